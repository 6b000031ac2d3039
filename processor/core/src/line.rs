//! Lines: the due tasks of one scene that wait to be started, and for what.
//!
//! Not the decision who is next: see [`crate::turn`]. Invariant: what a task waited for in line, and its turn, add up to its time in it.

use std::time::Duration;

use crate::agenda::{Item, Queue};
use crate::time::Timestamp;
use crate::turn::Turn;
use crate::wait::{Cause, Held};

/// Due tasks of one scene, earliest first.
#[derive(Debug)]
pub(crate) struct Line {
    /// The tasks.
    items: Queue,
    /// When the gate is to be asked again.
    pub(crate) ask_at: Timestamp,
    /// What the tasks wait for.
    hold: Hold,
    /// Since when they do.
    changed: Timestamp,
    /// How long there was something to wait for, until then.
    held: Held,
    /// The turn of its scene.
    pub(crate) turn: Turn,
    /// Since when the pace of the gate is measured.
    since: Timestamp,
    /// How many tasks it has let through since then.
    served: u32,
    /// When the gate is expected to admit the next task that finds no place.
    pub(crate) expected: Timestamp,
}

/// What the tasks in a line wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hold {
    /// Their turn.
    Turn,
    /// The rate of their scene.
    Rate,
    /// A call of their scene that comes back.
    Concurrency,
    /// Room in the batch for what follows from them.
    Room,
}

/// Over how long the pace of a gate is measured at most: it is that of the last half minute at least.
const MEASURED: Duration = Duration::from_mins(1);

/// How many times as far ahead as it was measured a pace is believed. The first calls of a target that is cold say little.
const FORESEEN: u32 = 4;

// === impl Line ===

impl Line {
    /// A line without tasks, whose turn is that.
    pub(crate) fn new(now: Timestamp, turn: Turn) -> Self {
        Self {
            items: Queue::default(),
            ask_at: now,
            hold: Hold::Turn,
            changed: now,
            held: Held::default(),
            turn,
            since: now,
            served: 0,
            expected: Timestamp::EPOCH,
        }
    }

    /// What its tasks wait for.
    pub(crate) const fn hold(&self) -> Hold {
        self.hold
    }

    /// What a task is deferred for that finds no place.
    pub(crate) const fn cause(&self) -> Cause {
        match self.hold {
            Hold::Concurrency => Cause::Concurrency,
            Hold::Rate | Hold::Turn | Hold::Room => Cause::Rate,
        }
    }

    /// How many tasks are in line.
    pub(crate) fn len(&self) -> usize {
        self.items.len()
    }

    /// Whether none is.
    pub(crate) fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// Puts a task in line, or back in it.
    pub(crate) fn push(&mut self, now: Timestamp, mut item: Item) {
        item.held = self.held(now).less(item.held);
        self.items.push(item);
    }

    /// Takes the earliest task.
    pub(crate) fn pop(&mut self, now: Timestamp) -> Option<Item> {
        let mut item = self.items.pop()?;
        item.held = self.held(now).less(item.held);
        Some(item)
    }

    /// Its tasks; what held them in line is of no use any more.
    pub(crate) fn into_items(self) -> Queue {
        self.items
    }

    /// Drops the tasks of a shard that is given away.
    pub(crate) fn forget(&mut self, shard: i32) {
        self.items.forget(shard);
    }

    /// From now on, the tasks wait for that; the gate is to be asked again at `until`.
    pub(crate) fn wait(&mut self, now: Timestamp, hold: Hold, until: Timestamp) {
        self.held = self.held(now);
        self.changed = now;
        self.hold = hold;
        self.ask_at = until;
    }

    /// So many tasks were let through. What was long ago counts less and less.
    pub(crate) fn serve(&mut self, now: Timestamp, tasks: usize) {
        self.served = self.served.saturating_add(tasks as u32);
        let age = now.since(self.since);
        if age > MEASURED {
            self.since = self.since + age / 2;
            self.served /= 2;
        }
    }

    /// How far ahead the time between two admissions says when a task comes to its turn.
    pub(crate) fn foreseen(&self, now: Timestamp) -> Duration {
        now.since(self.since).saturating_mul(FORESEEN)
    }

    /// The time between two admissions, as it was so far; none if there was none yet.
    pub(crate) fn spacing(&self, now: Timestamp) -> Duration {
        now.since(self.since)
            .checked_div(self.served)
            .unwrap_or_default()
    }

    /// How long there was something to wait for until now.
    fn held(&self, now: Timestamp) -> Held {
        let mut held = self.held;
        // When the gate opens again is known of a rate; what comes after that is not its fault.
        match self.hold {
            Hold::Turn => {}
            Hold::Rate => held.rate += now.min(self.ask_at).since(self.changed).as_micros() as u64,
            Hold::Concurrency => held.concurrency += now.since(self.changed).as_micros() as u64,
            Hold::Room => held.room += now.since(self.changed).as_micros() as u64,
        }
        held
    }
}
