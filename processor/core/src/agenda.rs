//! The agenda: what is to be done next, over all lanes of a worker.
//!
//! Not a clock, nor a limit: lanes stop reading before it grows too large. Invariants: an item leaves at or after its time, the earliest of
//! its scene first; scenes that have something to be done take turns, item by item, so that one that is flooded does not hold up the others.

use std::cmp::Ordering;
use std::collections::{BTreeSet, BinaryHeap, VecDeque};
use std::mem;
use std::sync::Arc;

use crate::lane::LaneId;
use crate::map::Map;
use crate::task::Task;
use crate::time::Timestamp;
use crate::wait::{Waited, Way};

/// A task that waits in memory; its offset is open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// When to look at it again.
    pub wake: Timestamp,
    /// Tells items of the same time apart: first in, first out.
    pub sequence: u64,
    /// The lane it was read from.
    pub lane: LaneId,
    /// The offset in that lane.
    pub offset: i64,
    /// When it was read.
    pub read: Timestamp,
    /// What the task waited for so far; in a ready queue, what is to be remembered of that: see `Waited::less`.
    pub waited: Waited,
    /// Whether the task counts among what is due, or soon.
    pub counted: bool,
    /// The task.
    pub task: Arc<Task>,
}

/// The items of all scenes.
#[derive(Clone, Debug, Default)]
pub struct Agenda {
    /// The items of each scene that has some, by the name that its tasks give.
    scenes: Map<Arc<str>, SceneItems>,
    /// The scenes that are not in `rotation`, by the time of their earliest item.
    waiting: BTreeSet<(Timestamp, Arc<str>)>,
    /// The scenes whose earliest item was seen to be due, in the order in which they are served.
    rotation: VecDeque<Arc<str>>,
}

/// The items of one scene.
#[derive(Clone, Debug, Default)]
struct SceneItems {
    /// The items; there are some.
    items: Queue,
    /// Whether the scene takes turns.
    in_turn: bool,
}

/// Items by time.
#[derive(Clone, Debug, Default)]
pub(crate) struct Queue {
    /// The earliest item on top.
    heap: BinaryHeap<QueuePos>,
}

/// An item in its order: small, since many of them change places for each one that comes or goes.
#[derive(Clone, Debug)]
struct QueuePos {
    /// When to look at the item.
    wake: Timestamp,
    /// The number of the item among those of the same time.
    sequence: u64,
    /// The item.
    item: Box<Item>,
}

// === impl Item ===

impl Item {
    /// The way of the task to an attempt that is decided now, through a lane that became ours at `assigned`.
    pub fn way(&self, assigned: Timestamp, decided: Timestamp) -> Way {
        Way {
            due: self.task.due,
            deferral: self.task.deferral.as_deref().copied(),
            assigned,
            read: self.read,
            waited: self.waited,
            decided,
        }
    }
}

// === impl QueuePos ===

impl Ord for QueuePos {
    /// The earlier item is the greater one, since [`BinaryHeap`] hands out the greatest first.
    fn cmp(&self, other: &Self) -> Ordering {
        (other.wake, other.sequence).cmp(&(self.wake, self.sequence))
    }
}

impl PartialOrd for QueuePos {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for QueuePos {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for QueuePos {}

// === impl Agenda ===

impl Agenda {
    /// Puts an item in its place.
    pub fn push(&mut self, item: Item) {
        let (wake, name) = (item.wake, Arc::clone(&item.task.scene));
        let plan = match self.scenes.get_mut(&name) {
            Some(plan) => plan,
            None => self.scenes.entry(Arc::clone(&name)).or_default(),
        };
        let earliest = plan.items.next();
        plan.items.push(item);
        if plan.in_turn || earliest.is_some_and(|earliest| earliest <= wake) {
            return;
        }
        if let Some(earliest) = earliest {
            self.waiting.remove(&(earliest, Arc::clone(&name)));
        }
        self.waiting.insert((wake, name));
    }

    /// The item that leaves next, though it may not be its time yet.
    pub fn peek(&self) -> Option<&Item> {
        let waiting = || self.waiting.first().map(|(_, name)| name);
        let name = self.rotation.front().or_else(waiting)?;
        self.scenes.get(name)?.items.peek()
    }

    /// Takes the next item whose time has come.
    pub fn pop_due(&mut self, now: Timestamp) -> Option<Item> {
        while let Some((wake, _)) = self.waiting.first()
            && *wake <= now
        {
            let (_, name) = self.waiting.pop_first()?;
            self.plan(&name).in_turn = true;
            self.rotation.push_back(name);
        }
        let name = self.rotation.pop_front()?;
        let items = &mut self.plan(&name).items;
        let item = items.pop_due(now);
        match items.next() {
            None => drop(self.scenes.remove(&name)),
            Some(next) if next <= now => self.rotation.push_back(name),
            Some(next) => {
                self.plan(&name).in_turn = false;
                self.waiting.insert((next, name));
            }
        }
        item
    }

    /// The time of the item that leaves next.
    pub fn next(&self) -> Option<Timestamp> {
        self.peek().map(|item| item.wake)
    }

    /// Drops the items of a shard that is given away.
    pub fn forget(&mut self, shard: i32) {
        for plan in self.scenes.values_mut() {
            plan.items.forget(shard);
        }
        self.rebuild();
    }

    /// Items are gone: which scenes have some, and when, is found out anew.
    fn rebuild(&mut self) {
        self.scenes.retain(|_, plan| {
            plan.in_turn = false;
            !plan.items.is_empty()
        });
        self.rotation.clear();
        let earliest =
            |(name, plan): (&Arc<str>, &SceneItems)| Some((plan.items.next()?, Arc::clone(name)));
        self.waiting = self.scenes.iter().filter_map(earliest).collect();
    }

    /// Takes those items out.
    pub(crate) fn extract(&mut self, which: impl Fn(&Item) -> bool, into: &mut Vec<Item>) {
        let before = into.len();
        // Not as the map has them: the same history is the same each time.
        let mut scenes: Vec<_> = self.scenes.iter_mut().collect();
        scenes.sort_unstable_by_key(|(name, _)| *name);
        for (_, plan) in scenes {
            plan.items.extract(&which, into);
        }
        if into.len() > before {
            self.rebuild();
        }
    }

    /// The items, scene by scene.
    pub(crate) fn into_queues(self) -> impl Iterator<Item = Queue> {
        self.scenes.into_values().map(|plan| plan.items)
    }

    /// The items of a scene that has some.
    fn plan(&mut self, name: &str) -> &mut SceneItems {
        self.scenes
            .get_mut(name)
            .unwrap_or_else(|| unreachable!("scene {name} has a turn and no items"))
    }
}

// === impl Queue ===

impl Queue {
    /// Puts an item in its place.
    pub(crate) fn push(&mut self, item: Item) {
        self.heap.push(QueuePos {
            wake: item.wake,
            sequence: item.sequence,
            item: Box::new(item),
        });
    }

    /// The earliest item.
    fn peek(&self) -> Option<&Item> {
        self.heap.peek().map(|place| &*place.item)
    }

    /// Takes the earliest item if its time has come.
    fn pop_due(&mut self, now: Timestamp) -> Option<Item> {
        let due = self.heap.peek().is_some_and(|place| place.wake <= now);
        if due { self.pop() } else { None }
    }

    /// Takes the earliest item, whatever its time.
    pub(crate) fn pop(&mut self) -> Option<Item> {
        self.heap.pop().map(|place| *place.item)
    }

    /// The time of the earliest item.
    fn next(&self) -> Option<Timestamp> {
        self.heap.peek().map(|place| place.wake)
    }

    /// Drops the items of a shard that is given away.
    pub(crate) fn forget(&mut self, shard: i32) {
        self.heap.retain(|place| place.item.lane.shard != shard);
    }

    /// Takes those items out.
    pub(crate) fn extract(&mut self, which: impl Fn(&Item) -> bool, into: &mut Vec<Item>) {
        if !self.heap.iter().any(|place| which(&place.item)) {
            return;
        }
        let all = mem::take(&mut self.heap).into_vec().into_iter();
        let (out, rest): (Vec<_>, Vec<_>) = all.partition(|place| which(&place.item));
        self.heap = rest.into();
        into.extend(out.into_iter().map(|place| *place.item));
    }

    /// How many items wait.
    pub(crate) fn len(&self) -> usize {
        self.heap.len()
    }

    /// Whether nothing waits.
    pub(crate) fn is_empty(&self) -> bool {
        self.heap.is_empty()
    }
}
