//! Records of the scenes topic that cannot be read, by name: whoever may write there can write millions of them, with names of a megabyte.
//!
//! Invariant: a few are listed, the others are counted as far as [`MOST_COUNTED`], and no text is longer than [`MAX_ERROR`].

use std::collections::{BTreeMap, HashSet};
use std::hash::{BuildHasher, RandomState};

use retide_core::hold::Revision;

/// A record that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unreadable {
    /// Its partition.
    pub partition: i32,
    /// Its offset.
    pub offset: i64,
    /// What is wrong with it.
    pub error: String,
}

/// The last records of their names that cannot be read.
#[derive(Clone, Debug, Default)]
pub struct Unreadables {
    /// Those that are listed.
    listed: BTreeMap<String, Unreadable>,
    /// The hashes of the names of others.
    others: HashSet<u64>,
    /// What the hashes are made with: nobody knows which names have the same.
    hasher: RandomState,
}

/// Most that are listed: more than people mend one by one, and a line in the log, a trouble and a metric for each is bearable.
const MOST_LISTED: usize = 100;

/// Most of the others that are counted, of 16 bytes each.
const MOST_COUNTED: usize = 100_000;

/// Longest name that is listed, in bytes: one of a target has as many.
const MAX_NAME: usize = 300;

/// Longest text of what is wrong, in bytes.
const MAX_ERROR: usize = 1_024;

// === impl Unreadables ===

impl Unreadables {
    /// Takes in that the last record of a name cannot be read. Gives the record as it is listed if that is new; `None` if it is known, or not
    /// listed.
    pub(super) fn insert(
        &mut self,
        name: &str,
        at: Revision,
        error: &str,
    ) -> (bool, Option<&Unreadable>) {
        let is_listed = self.listed.contains_key(name);
        if !is_listed && (self.listed.len() >= MOST_LISTED || name.len() > MAX_NAME) {
            let hash = self.hasher.hash_one(name);
            let is_new = self.others.len() < MOST_COUNTED && self.others.insert(hash);
            return (is_new, None);
        }
        self.others.remove(&self.hasher.hash_one(name));
        let unreadable = Unreadable {
            partition: at.partition,
            offset: at.offset,
            error: error[..error.floor_char_boundary(MAX_ERROR)].to_owned(),
        };
        let known = self.listed.entry(name.to_owned());
        let before = known.or_insert_with(|| Unreadable {
            partition: -1,
            ..unreadable.clone()
        });
        let is_new = *before != unreadable;
        *before = unreadable;
        (is_new, is_new.then_some(before))
    }

    /// Takes in that a name has no such record any more; whether it had one.
    pub(super) fn remove(&mut self, name: &str) -> bool {
        self.listed.remove(name).is_some() || self.others.remove(&self.hasher.hash_one(name))
    }

    /// Whether the last record of this name cannot be read, listed or not.
    pub fn contains(&self, name: &str) -> bool {
        self.listed.contains_key(name) || self.others.contains(&self.hasher.hash_one(name))
    }

    /// Those that are listed, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&String, &Unreadable)> {
        self.listed.iter()
    }

    /// How many others there are, in words, if there are any.
    pub fn others(&self) -> Option<String> {
        match self.others.len() {
            0 => None,
            MOST_COUNTED => Some(format!("{MOST_COUNTED} or more others")),
            1 => Some("1 other".to_owned()),
            count => Some(format!("{count} others")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT: Revision = Revision {
        partition: 1,
        offset: 7,
    };

    #[test]
    fn a_flood_of_records_that_cannot_be_read_is_counted_and_bounded() {
        let mut all = Unreadables::default();

        for number in 0..MOST_LISTED + 3 {
            all.insert(&format!("n{number:09}"), AT, "broken");
        }
        assert_eq!(all.iter().count(), MOST_LISTED);
        assert_eq!(all.others().as_deref(), Some("3 others"));

        // Said twice, it is one; it is known, and goes.
        let last = format!("n{:09}", MOST_LISTED + 2);
        assert_eq!(all.insert(&last, AT, "broken"), (false, None));
        assert!(all.contains(&last) && !all.contains("fine"));
        assert!(all.remove(&last) && !all.remove(&last));
        assert_eq!(all.others().as_deref(), Some("2 others"));

        for number in 0..MOST_COUNTED + 10 {
            all.insert(&format!("m{number}"), AT, "broken");
        }
        assert_eq!(all.others().as_deref(), Some("100000 or more others"));
        assert_eq!(all.iter().count(), MOST_LISTED);
    }

    #[test]
    fn a_name_or_a_text_of_a_megabyte_is_not_kept() {
        let mut all = Unreadables::default();
        let long = "ä".repeat(1 << 19);

        all.insert(&long, AT, "broken");
        all.insert("short", AT, &long);

        assert_eq!(all.others().as_deref(), Some("1 other"));
        let listed: Vec<(&String, &Unreadable)> = all.iter().collect();
        let [(name, unreadable)] = listed[..] else {
            panic!("one is listed, not {listed:?}");
        };
        assert_eq!((&**name, unreadable.error.len()), ("short", MAX_ERROR));
        assert!(all.contains(&long));
        assert!(all.remove(&long));
        assert_eq!(all.others(), None);
    }

    #[test]
    fn what_is_listed_is_told_once_and_again_where_it_is_another_record() {
        let mut all = Unreadables::default();
        let later = Revision { offset: 8, ..AT };

        let told = [AT, AT, later].map(|at| all.insert("a", at, "broken").1.is_some());

        assert_eq!(told, [true, false, true]);
    }
}
