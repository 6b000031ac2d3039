//! The ready queues: the due tasks of each scene that wait to be started, and for what.
//!
//! Not the decision which scene is next, which is [`crate::fairness`]'s, nor whether a task starts, which is `admission.rs`'s. Invariants: a
//! queue in the set has tasks, but for the time in which it is served; what a task waited for in a queue, and its round, add up to its time
//! in it.

use std::collections::{BTreeMap, BTreeSet};
use std::mem;
use std::sync::Arc;
use std::time::Duration;

use crate::agenda::{Item, Queue};
use crate::fairness::Deficit;
use crate::time::Timestamp;
use crate::wait::{Cause, Waited};

/// The ready queues of all scenes that have ready tasks.
#[derive(Debug, Default)]
pub(super) struct Ready {
    /// The queues, by the name of the scene.
    queues: BTreeMap<Arc<str>, ReadyQueue>,
}

/// Due tasks of one scene, earliest first.
#[derive(Debug)]
pub(super) struct ReadyQueue {
    /// The tasks.
    items: Queue,
    /// When the gate is to be asked again.
    pub(super) ask_at: Timestamp,
    /// What the tasks wait for.
    hold: Hold,
    /// Since when the tasks wait for that.
    changed: Timestamp,
    /// How long there was something to wait for, until then.
    waited: Waited,
    /// The round of its scene.
    pub(super) deficit: Deficit,
    /// Since when the pace of the gate is measured.
    since: Timestamp,
    /// How many tasks the gate has let through since then.
    served: u32,
    /// When the gate is expected to admit the next task that finds no place in the queue.
    pub(super) expected: Timestamp,
}

/// What the tasks of a ready queue wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hold {
    /// The round of their scene.
    Round,
    /// The rate of their scene.
    Rate,
    /// A call of their scene to come back.
    Concurrency,
    /// Their turn in the pace of a target that has asked for rest.
    Pace,
    /// Room in the batch for what follows from them.
    Room,
}

/// Longest time over which the pace of a gate is measured: at least the last half minute counts.
const MEASURED: Duration = Duration::from_mins(1);

/// How far ahead a pace is believed, in multiples of the time over which it was measured: the first calls of a target that is cold say
/// little.
const FORESEEN: u32 = 4;

// === impl Ready ===

impl Ready {
    /// The queue of a scene, if the scene has ready tasks.
    pub(super) fn get(&self, name: &str) -> Option<&ReadyQueue> {
        self.queues.get(name)
    }

    /// The queue of a scene, to change it.
    pub(super) fn get_mut(&mut self, name: &str) -> Option<&mut ReadyQueue> {
        self.queues.get_mut(name)
    }

    /// Puts a queue into the set; one without tasks is dropped.
    pub(super) fn put(&mut self, name: Arc<str>, queue: ReadyQueue) {
        if !queue.is_empty() {
            self.queues.insert(name, queue);
        }
    }

    /// Takes the queue of a scene out of the set, to serve it.
    pub(super) fn take(&mut self, name: &str) -> Option<ReadyQueue> {
        self.queues.remove(name)
    }

    /// Puts a due task into the queue of a scene, which begins with this round if there is none.
    pub(super) fn enqueue(&mut self, now: Timestamp, name: Arc<str>, deficit: Deficit, item: Item) {
        let queue = self.queues.entry(name);
        let queue = queue.or_insert_with(|| ReadyQueue::new(now, deficit));
        queue.push(now, item);
    }

    /// How many tasks of a scene are ready, if it is its gate that holds them.
    pub(super) fn gated(&self, name: &str) -> usize {
        match self.queues.get(name) {
            Some(queue) if matches!(queue.hold, Hold::Rate | Hold::Concurrency | Hold::Pace) => {
                queue.len()
            }
            Some(_) | None => 0,
        }
    }

    /// The scenes whose gates are to be asked now, by the place of their round; those that wait for room only if there is `room`.
    pub(super) fn to_ask(&self, now: Timestamp, room: bool) -> BTreeSet<(u64, Arc<str>)> {
        let queues = self.queues.iter();
        queues
            .filter(|(_, queue)| queue.ask_at <= now && (room || queue.hold != Hold::Room))
            .map(|(name, queue)| (queue.deficit.place, Arc::clone(name)))
            .collect()
    }

    /// When a gate is to be asked next; of those that wait for room only if there is `room`.
    pub(super) fn next_ask(&self, room: bool) -> Option<Timestamp> {
        let queues = self.queues.values();
        let asked = queues.filter(|queue| room || queue.hold != Hold::Room);
        asked.map(|queue| queue.ask_at).min()
    }

    /// Lets the gates of those scenes be asked again at `now`: what they said does not hold any more.
    pub(super) fn ask_again(&mut self, now: Timestamp, of: impl Fn(&str) -> bool) {
        for (name, queue) in &mut self.queues {
            if of(name) {
                queue.ask_at = queue.ask_at.min(now);
            }
        }
    }

    /// Drops the tasks of a shard that is given away.
    pub(super) fn forget(&mut self, shard: i32) {
        self.queues.retain(|_, queue| {
            queue.items.forget(shard);
            !queue.is_empty()
        });
    }

    /// Takes those tasks out; what they waited for counts no more.
    pub(super) fn extract(&mut self, which: impl Fn(&Item) -> bool, into: &mut Vec<Item>) {
        self.queues.retain(|_, queue| {
            queue.items.extract(&which, into);
            !queue.is_empty()
        });
    }

    /// Takes all tasks out, queue by queue; what they waited for in them is of no use any more.
    pub(super) fn take_all(&mut self) -> impl Iterator<Item = Queue> + use<> {
        mem::take(&mut self.queues)
            .into_values()
            .map(|queue| queue.items)
    }
}

// === impl ReadyQueue ===

impl ReadyQueue {
    /// A queue without tasks, whose scene has this round.
    pub(super) fn new(now: Timestamp, deficit: Deficit) -> Self {
        Self {
            items: Queue::default(),
            ask_at: now,
            hold: Hold::Round,
            changed: now,
            waited: Waited::default(),
            deficit,
            since: now,
            served: 0,
            expected: Timestamp::EPOCH,
        }
    }

    /// What the tasks wait for.
    pub(super) const fn hold(&self) -> Hold {
        self.hold
    }

    /// The cause of the deferral of a task that finds no place in the queue.
    pub(super) const fn cause(&self) -> Cause {
        match self.hold {
            Hold::Concurrency => Cause::Concurrency,
            Hold::Pace => Cause::Cooldown,
            Hold::Rate | Hold::Round | Hold::Room => Cause::Rate,
        }
    }

    /// How many tasks there are.
    pub(super) fn len(&self) -> usize {
        self.items.len()
    }

    /// Whether there is none.
    fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// Puts a task into the queue, or back into it.
    pub(super) fn push(&mut self, now: Timestamp, mut item: Item) {
        item.waited = self.waited(now).less(item.waited);
        self.items.push(item);
    }

    /// Takes the earliest task.
    pub(super) fn pop(&mut self, now: Timestamp) -> Option<Item> {
        let mut item = self.items.pop()?;
        item.waited = self.waited(now).less(item.waited);
        Some(item)
    }

    /// Lets the tasks wait for `hold` from now on; the gate is to be asked again at `until`.
    pub(super) fn wait(&mut self, now: Timestamp, hold: Hold, until: Timestamp) {
        self.waited = self.waited(now);
        self.changed = now;
        self.hold = hold;
        self.ask_at = until;
    }

    /// Counts tasks that the gate has let through. What was long ago counts less and less.
    pub(super) fn serve(&mut self, now: Timestamp, tasks: usize) {
        self.served = self.served.saturating_add(tasks as u32);
        let age = now.since(self.since);
        if age > MEASURED {
            self.since = self.since + age / 2;
            self.served /= 2;
        }
    }

    /// How far ahead the pace of the gate is believed.
    pub(super) fn foreseen(&self, now: Timestamp) -> Duration {
        now.since(self.since).saturating_mul(FORESEEN)
    }

    /// The time between two admissions, as it was so far; zero if there was none yet.
    pub(super) fn spacing(&self, now: Timestamp) -> Duration {
        now.since(self.since)
            .checked_div(self.served)
            .unwrap_or_default()
    }

    /// How long there was something to wait for until now.
    fn waited(&self, now: Timestamp) -> Waited {
        let mut waited = self.waited;
        // When the gate opens again is known of a rate; what comes after that is not its fault.
        match self.hold {
            Hold::Round => {}
            Hold::Rate => {
                waited.rate += now.min(self.ask_at).since(self.changed).as_micros() as u64;
            }
            Hold::Concurrency => waited.concurrency += now.since(self.changed).as_micros() as u64,
            Hold::Pace => waited.cooldown += now.since(self.changed).as_micros() as u64,
            Hold::Room => waited.room += now.since(self.changed).as_micros() as u64,
        }
        waited
    }
}
