//! What the batches of a lane park that are not durable, by id as far as they are few.
//!
//! A parked task is in its tier for sure when the batch is over; a command that names ids waits for that only if it may be about one of them.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

/// Parked tasks of a lane.
#[derive(Clone, Debug, Default)]
pub(super) struct Parks {
    /// The ids, each with the number of its batch, in their order.
    listed: VecDeque<(u64, Arc<str>)>,
    /// The last batch that parks more than are listed, or 0.
    more: u64,
}

/// Most that are listed of a lane: people hurry a few, and others are not worth the memory.
const MOST: usize = 64;

// === impl Parks ===

impl Parks {
    /// A batch parks a task.
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

    /// Whether one of these may be parked by a batch that is not over.
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
    fn an_id_is_parked_until_its_batch_is_over() {
        let mut parks = Parks::default();
        parks.add(1, &Arc::from("a"));
        parks.add(2, &Arc::from("b"));

        assert!(parks.may_have(&ids(&["a", "x"])));
        assert!(!parks.may_have(&ids(&["x"])));
        parks.over(1);

        assert!(!parks.may_have(&ids(&["a"])));
        assert!(parks.may_have(&ids(&["b"])));
    }

    #[test]
    fn where_they_are_many_each_may_be_parked_until_the_last_batch_is_over() {
        let mut parks = Parks::default();
        for number in 0..=MOST {
            parks.add(1, &Arc::from(number.to_string()));
        }
        parks.add(2, &Arc::from("b"));

        assert!(parks.may_have(&ids(&["x"])));
        parks.over(1);

        assert!(parks.may_have(&ids(&["x"])));
        assert!(parks.may_have(&ids(&["b"])));
        parks.over(2);

        assert!(!parks.may_have(&ids(&["b"])));
    }
}
