//! Which of the topics that are read are there, and whether they are the ones that were there before.
//!
//! Not what is done about it. Invariants: a topic is taken for deleted when the cluster has said twice that it does not exist, or once that
//! another one has its name; that is said once.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use retide_native::topics::TopicId;

/// What the cluster says of a topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Seen {
    /// It is there.
    There {
        /// How many partitions it has.
        partitions: usize,
        /// Its id, where the cluster has such.
        id: Option<TopicId>,
    },
    /// It does not exist.
    Missing,
    /// It may not be described.
    Hidden,
}

/// The topics as they were seen before.
#[derive(Debug, Default)]
pub(crate) struct Presence {
    /// Those that were there, with their ids.
    known: BTreeMap<Arc<str>, Option<TopicId>>,
    /// Those that were missing at the last look, for the first time.
    suspects: BTreeSet<Arc<str>>,
    /// Those that do not exist.
    missing: BTreeSet<Arc<str>>,
}

/// What has changed.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Change {
    /// Topics that were there and are deleted, whether or not another one has the name now.
    pub(crate) deleted: Vec<Arc<str>>,
    /// Topics that are there again, or are other ones: their offsets begin anew.
    pub(crate) anew: Vec<Arc<str>>,
    /// Whether a topic that was taken for deleted is there all the same: it is read on where its offsets say.
    pub(crate) is_back: bool,
}

impl Presence {
    /// Follows what the cluster says of topics now.
    pub(crate) fn see<'a>(
        &mut self,
        topics: impl IntoIterator<Item = (&'a Arc<str>, Seen)>,
    ) -> Change {
        let mut change = Change::default();
        let suspects = std::mem::take(&mut self.suspects);
        for (topic, seen) in topics {
            match seen {
                Seen::Hidden => {}
                Seen::Missing if self.missing.contains(topic) => {}
                Seen::Missing if suspects.contains(topic) => {
                    self.missing.insert(Arc::clone(topic));
                    if self.known.contains_key(topic) {
                        change.deleted.push(Arc::clone(topic));
                    }
                }
                Seen::Missing => {
                    self.suspects.insert(Arc::clone(topic));
                }
                Seen::There { id, .. } => {
                    let was_missing = self.missing.remove(topic);
                    let before = self.known.insert(Arc::clone(topic), id);
                    let is_other =
                        matches!((before, id), (Some(Some(before)), Some(id)) if before != id);
                    let is_same =
                        matches!((before, id), (Some(Some(before)), Some(id)) if before == id);
                    if is_other && !was_missing {
                        change.deleted.push(Arc::clone(topic));
                    }
                    if is_other || (was_missing && !is_same) {
                        change.anew.push(Arc::clone(topic));
                    }
                    change.is_back |= was_missing && is_same;
                }
            }
        }
        change
    }

    /// Whether a topic was missing at the last look, and is to be looked at again soon.
    pub(crate) fn is_in_doubt(&self) -> bool {
        !self.suspects.is_empty()
    }

    /// Whether a topic does not exist.
    pub(crate) fn is_missing(&self, topic: &str) -> bool {
        self.missing.contains(topic)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn there(id: u128) -> Seen {
        Seen::There {
            partitions: 1,
            id: Some(TopicId(id)),
        }
    }

    #[test]
    fn a_topic_is_deleted_once_and_anew_when_it_is_there_again() {
        let topic: Arc<str> = "t".into();
        let mut presence = Presence::default();
        let mut see = |seen| {
            let change = presence.see([(&topic, seen)]);
            assert!(!change.is_back || seen == there(3), "{seen:?}");
            (change.deleted.len(), change.anew.len())
        };

        assert_eq!(see(there(1)), (0, 0));
        assert_eq!(see(Seen::Missing), (0, 0), "a broker may lag behind");
        assert_eq!(see(there(1)), (0, 0));
        assert_eq!(see(Seen::Missing), (0, 0));
        assert_eq!(see(Seen::Missing), (1, 0));
        assert_eq!(see(Seen::Missing), (0, 0), "it is said once");
        assert_eq!(see(Seen::Hidden), (0, 0));
        assert_eq!(see(there(2)), (0, 1));
        assert_eq!(see(there(2)), (0, 0));
        assert_eq!(see(there(3)), (1, 1), "nobody has seen it missing");
        assert_eq!(see(Seen::Missing), (0, 0));
        assert_eq!(see(Seen::Missing), (1, 0));
        assert_eq!(see(there(3)), (0, 0), "the same one after all");
        assert_eq!(see(Seen::Missing), (0, 0));
        assert_eq!(see(Seen::Missing), (1, 0));
        assert!(presence.see([(&topic, there(3))]).is_back);
    }

    #[test]
    fn a_topic_that_was_never_there_is_missing_and_not_deleted() {
        let topic: Arc<str> = "t".into();
        let mut presence = Presence::default();
        for _ in 0..3 {
            let change = presence.see([(&topic, Seen::Missing)]);
            assert_eq!(change, Change::default());
        }
        assert!(presence.is_missing("t") && !presence.is_in_doubt());
        let change = presence.see([(&topic, there(1))]);
        assert_eq!(change.anew.len(), 1);
    }
}
