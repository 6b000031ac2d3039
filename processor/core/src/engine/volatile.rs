//! The tasks of a lane of which something is settled that is not durable, by id as far as they are few.
//!
//! A task that is parked is in its tier for sure when its batch is over, and one that has ended may come back until then. A command that names
//! ids waits for that only if it may be about one of them.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

/// Tasks of which what follows is not durable.
#[derive(Clone, Debug, Default)]
pub(super) struct Volatile {
    /// The ids, each with the number of its batch, in their order.
    listed: VecDeque<(u64, Arc<str>)>,
    /// The last batch with more than are listed, or 0.
    more: u64,
}

/// Most that are listed of a lane: people hurry a few, and others are not worth the memory.
const MOST: usize = 64;

// === impl Volatile ===

impl Volatile {
    /// Something of a task is settled in a batch.
    pub(super) fn add(&mut self, batch: u64, id: &Arc<str>) {
        if self.more == batch || self.listed.len() >= MOST {
            self.more = batch;
        } else {
            self.listed.push_back((batch, Arc::clone(id)));
        }
    }

    /// All batches up to this one are over.
    pub(super) fn over(&mut self, batch: u64) {
        let is_over = |(of, _): &(u64, Arc<str>)| *of <= batch;
        while self.listed.front().is_some_and(is_over) {
            self.listed.pop_front();
        }
        if self.more <= batch {
            self.more = 0;
        }
    }

    /// Whether something of one of these may be settled in a batch that is not over.
    pub(super) fn may_have(&self, ids: &BTreeSet<Arc<str>>) -> bool {
        self.more > 0 || self.listed.iter().any(|(_, id)| ids.contains(id))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(ids: &[&str]) -> BTreeSet<Arc<str>> {
        ids.iter().map(|id| Arc::from(*id)).collect()
    }

    #[test]
    fn an_id_is_listed_until_its_batch_is_over() {
        let mut volatile = Volatile::default();
        volatile.add(1, &Arc::from("a"));
        volatile.add(2, &Arc::from("b"));

        assert!(volatile.may_have(&ids(&["a", "x"])));
        assert!(!volatile.may_have(&ids(&["x"])));
        volatile.over(1);

        assert!(!volatile.may_have(&ids(&["a"])));
        assert!(volatile.may_have(&ids(&["b"])));
    }

    #[test]
    fn where_they_are_many_each_may_be_meant_until_the_last_batch_is_over() {
        let mut volatile = Volatile::default();
        for number in 0..=MOST {
            volatile.add(1, &Arc::from(number.to_string()));
        }
        volatile.add(2, &Arc::from("b"));

        assert!(volatile.may_have(&ids(&["x"])));
        volatile.over(1);

        assert!(volatile.may_have(&ids(&["x"])));
        assert!(volatile.may_have(&ids(&["b"])));
        volatile.over(2);

        assert!(!volatile.may_have(&ids(&["b"])));
    }
}
