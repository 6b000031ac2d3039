//! Which dead letters were replayed: marks that the leader of campaigns has written on the order topic, in its shard's partition.
//!
//! | key | value |
//! |---|---|
//! | `replayed/PARTITION/CHUNK` | marks of a chunk of offsets of that partition of the dead letters |
//!
//! Not who writes them. Invariant: whatever stands there is read or passed over.

use std::collections::BTreeMap;
use std::str;

use retide_core::campaign::LEADER;
use retide_core::taken::Taken;

/// Which dead letters were replayed, by partition.
#[derive(Clone, Debug, Default)]
pub struct Replayed(BTreeMap<i32, Taken>);

/// What the keys of marks begin with.
pub(crate) const REPLAYED: &str = "replayed/";

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
}
