//! The agenda: what is to be done next, over all lanes of a worker, in order of time.
//!
//! Not a clock, nor a limit: lanes stop reading before it grows too large. Invariant: an item leaves at or after its time, earliest first.

use std::cmp::Ordering;
use std::collections::BinaryHeap;
use std::sync::Arc;

use crate::lane::LaneId;
use crate::task::Task;
use crate::time::Timestamp;
use crate::wait::{Held, Way};

/// A task that waits in memory; its offset is open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// When to look at it again.
    pub wake: Timestamp,
    /// Tells items of the same time apart: first in, first out.
    pub sequence: u64,
    /// The lane it was read from.
    pub lane: LaneId,
    /// Its offset in that lane.
    pub offset: i64,
    /// When it was read.
    pub read: Timestamp,
    /// What held it so far; while it is there, what its line knows of that.
    pub held: Held,
    /// The task.
    pub task: Arc<Task>,
}

/// Items by time.
#[derive(Clone, Debug, Default)]
pub struct Agenda {
    /// The earliest item on top.
    heap: BinaryHeap<Place>,
}

/// An item in its order: small, since many of them change places for each one that comes or goes.
#[derive(Clone, Debug)]
struct Place {
    /// When to look at the item.
    wake: Timestamp,
    /// Its number among those of the same time.
    sequence: u64,
    /// The item.
    item: Box<Item>,
}

// === impl Item ===

impl Item {
    /// Its way to an attempt that is decided now, through a lane that became ours at `assigned`.
    pub fn way(&self, assigned: Timestamp, decided: Timestamp) -> Way {
        Way {
            due: self.task.due,
            assigned,
            read: self.read,
            held: self.held,
            decided,
        }
    }
}

// === impl Place ===

impl Ord for Place {
    /// The earlier item is the greater one, since [`BinaryHeap`] hands out the greatest first.
    fn cmp(&self, other: &Self) -> Ordering {
        (other.wake, other.sequence).cmp(&(self.wake, self.sequence))
    }
}

impl PartialOrd for Place {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Place {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Place {}

// === impl Agenda ===

impl Agenda {
    /// Puts an item in its place.
    pub fn push(&mut self, item: Item) {
        self.heap.push(Place {
            wake: item.wake,
            sequence: item.sequence,
            item: Box::new(item),
        });
    }

    /// The earliest item.
    pub fn peek(&self) -> Option<&Item> {
        self.heap.peek().map(|place| &*place.item)
    }

    /// Takes the earliest item whose time has come.
    pub fn pop_due(&mut self, now: Timestamp) -> Option<Item> {
        let due = self.heap.peek().is_some_and(|place| place.wake <= now);
        if due { self.pop() } else { None }
    }

    /// Takes the earliest item, whatever its time.
    pub fn pop(&mut self) -> Option<Item> {
        self.heap.pop().map(|place| *place.item)
    }

    /// The time of the earliest item.
    pub fn next(&self) -> Option<Timestamp> {
        self.heap.peek().map(|place| place.wake)
    }

    /// Drops the items of a shard that is given away.
    pub fn forget(&mut self, shard: i32) {
        self.heap.retain(|place| place.item.lane.shard != shard);
    }

    /// How many items wait.
    pub fn len(&self) -> usize {
        self.heap.len()
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.heap.is_empty()
    }
}
