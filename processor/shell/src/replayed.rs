//! Which dead letters were replayed, and of which people were told that retention takes them: what the leader of campaigns has written on the
//! order topic, in its shard's partition.
//!
//! | key | value |
//! |---|---|
//! | `replayed/PARTITION/CHUNK` | marks of a chunk of offsets of that partition of the dead letters |
//! | `warned/PARTITION` | when people were told of letters of that partition, in milliseconds since the epoch |
//!
//! Not who writes them. Invariant: whatever stands there is read or passed over.

use std::collections::BTreeMap;
use std::str::{self, FromStr};

use retide_core::Timestamp;
use retide_core::campaign::LEADER;
use retide_core::taken::Taken;

/// Which dead letters were replayed, by partition.
#[derive(Clone, Debug, Default)]
pub struct Replayed(BTreeMap<i32, Taken>);

/// When people were told of dead letters that retention takes, by partition.
#[derive(Clone, Debug, Default)]
pub(crate) struct Warned(BTreeMap<i32, Timestamp>);

/// What the keys of marks begin with.
pub(crate) const REPLAYED: &str = "replayed/";

/// What the keys of the times begin with at which people were told.
pub(crate) const WARNED: &str = "warned/";

// === impl Replayed ===

impl Replayed {
    /// Takes in a record of the order topic, whatever it is about.
    pub fn take(&mut self, shard: i32, key: Option<&[u8]>, value: Option<&[u8]>) {
        if shard == LEADER
            && let Some(key) = key
        {
            let _ = self.read(key, value);
        }
    }

    /// Takes in a record of the leader's shard: whether it can be read. `None` if it is about something else.
    pub(crate) fn read(&mut self, key: &[u8], value: Option<&[u8]>) -> Option<bool> {
        let at = key.strip_prefix(REPLAYED.as_bytes())?;
        let at = str::from_utf8(at).ok().and_then(|at| at.split_once('/'));
        let at = at.and_then(|(of, chunk)| Some((of.parse().ok()?, chunk.parse().ok()?)));
        let Some((partition, chunk)) = at else {
            return Some(false);
        };
        let marks: &mut Taken = self.0.entry(partition).or_default();
        Some(marks.replay(chunk, value).is_some())
    }

    /// Whether a dead letter was replayed.
    pub fn has(&self, partition: i32, offset: i64) -> bool {
        let marks = self.0.get(&partition);
        marks.is_some_and(|marks| marks.contains(offset))
    }

    /// The marks by partition.
    pub(crate) fn into_marks(self) -> impl Iterator<Item = (i32, Taken)> {
        self.0.into_iter()
    }
}

// === impl Warned ===

impl Warned {
    /// Takes in a record of the leader's shard: whether it can be read. `None` if it is about something else.
    pub(crate) fn read(&mut self, key: &[u8], value: Option<&[u8]>) -> Option<bool> {
        let partition = key.strip_prefix(WARNED.as_bytes())?;
        let Some(partition) = number(partition) else {
            return Some(false);
        };
        let at = value.map(number);
        if let Some(Some(at)) = at {
            self.0.insert(partition, Timestamp::from_millis(at));
        } else {
            self.0.remove(&partition);
        }
        Some(at != Some(None))
    }

    /// The times by partition.
    pub(crate) fn into_times(self) -> impl Iterator<Item = (i32, Timestamp)> {
        self.0.into_iter()
    }
}

/// The number that is written so.
fn number<N: FromStr>(text: &[u8]) -> Option<N> {
    str::from_utf8(text).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_read_and_whatever_else_stands_there_is_passed_over() {
        let mut written = Taken::default();
        written.insert(7);
        let (chunk, marks) = written.changes().next().unwrap();
        let key = format!("replayed/3/{chunk}");
        let mut replayed = Replayed::default();

        replayed.take(LEADER, Some(key.as_bytes()), marks.as_deref());
        replayed.take(LEADER + 1, Some(b"replayed/4/0"), marks.as_deref());
        replayed.take(LEADER, Some(b"held/a"), Some(b"{}"));

        assert!(replayed.has(3, 7));
        assert!(!replayed.has(3, 8) && !replayed.has(4, 7));
        for key in ["replayed/", "replayed/x/0", "replayed/3", "replayed/3/x"] {
            assert_eq!(
                replayed.read(key.as_bytes(), Some(b"")),
                Some(false),
                "{key}"
            );
        }
        assert_eq!(replayed.read(b"step/1/2/3", None), None);
        replayed.take(LEADER, Some(key.as_bytes()), None);
        assert!(!replayed.has(3, 7));
    }
    #[test]
    fn when_people_were_told_is_read_and_what_cannot_be_is_forgotten() {
        let mut warned = Warned::default();
        let mut read = |key: &str, value: Option<&str>| {
            let is_read = warned.read(key.as_bytes(), value.map(str::as_bytes));
            let times: Vec<(i32, u64)> = warned
                .clone()
                .into_times()
                .map(|(partition, at)| (partition, at.as_millis()))
                .collect();
            (is_read, times)
        };

        assert_eq!(
            read("warned/3", Some("1700000000000")),
            (Some(true), vec![(3, 1_700_000_000_000)])
        );
        assert_eq!(read("replayed/3/0", None).0, None);
        assert_eq!(
            read("warned/x", Some("1")),
            (Some(false), vec![(3, 1_700_000_000_000)])
        );
        assert_eq!(read("warned/3", Some("soon")), (Some(false), Vec::new()));
        assert_eq!(read("warned/3", None), (Some(true), Vec::new()));
    }
}
