//! When tasks are looked at again that wait in tiers for something nobody knows the time of, and how many there are.
//!
//! A task is looked at again after a while that grows with the time for which it has waited. Where many wait, looks are spread, so that
//! they do not all come at once. Invariant: a task that is counted is counted in one slot: when its time has come, it is looked at and goes
//! to another one, here or where its shard is by then.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::time::Timestamp;

/// The looks that are to come.
#[derive(Debug, Default)]
pub(super) struct Looks {
    /// How many tasks are looked at next in each [`SLOT`].
    slots: BTreeMap<u64, u32>,
    /// The time of the last look that was given to one: the next one is a little later where many wait.
    expected: Timestamp,
}

/// Time to the first look at a task that waits: what was done by mistake is undone within minutes, or not soon.
pub(super) const SHORTEST: Duration = Duration::from_secs(5);

/// Longest time to the next look, but for the spread.
const LONGEST: Duration = Duration::from_secs(30);

/// Looks are this far apart where many tasks wait: 2,000 a second cost a worker a few percent, and the other scenes nothing.
const APART: Duration = Duration::from_micros(500);

/// What the looks are counted by, in milliseconds.
const SLOT: u64 = 5_000;

/// How many slots after its own a look may be late.
const LATE: u64 = 2;

// === impl Looks ===

impl Looks {
    /// How long a task that waits since then waits for its next look. Longer and longer: whoever made it wait by mistake notices soon.
    pub(super) fn after(since: Timestamp, now: Timestamp) -> Duration {
        (now.since(since) / 2).clamp(SHORTEST, LONGEST)
    }

    /// When the next task is looked at, after `look` or up to `spread` later.
    pub(super) fn next(&self, now: Timestamp, look: Duration, spread: Duration) -> Timestamp {
        self.next_apart(now, (look, APART), spread)
    }

    /// The same where looks are so far apart.
    pub(super) fn next_apart(
        &self,
        now: Timestamp,
        (look, apart): (Duration, Duration),
        spread: Duration,
    ) -> Timestamp {
        let soonest = now + look;
        // What was given long ago, or by a clock that was ahead, says nothing.
        let many = u32::try_from(self.total()).unwrap_or(u32::MAX);
        let spread = apart.saturating_mul(many).min(spread);
        soonest.max((self.expected + apart).min(soonest + spread))
    }

    /// A task is looked at then: the next one a little later.
    pub(super) const fn expect(&mut self, due: Timestamp) {
        self.expected = due;
    }

    /// A task is looked at then, and waits until it is.
    pub(super) fn add(&mut self, now: Timestamp, due: Timestamp) {
        self.expect(due);
        self.count_in(now, due);
    }

    /// A task waits until it is looked at then.
    pub(super) fn count_in(&mut self, now: Timestamp, due: Timestamp) {
        *self.slots.entry(slot(due)).or_default() += 1;
        self.forget_before(now);
    }

    /// A task was looked at whose time was then; whether it was counted.
    pub(super) fn count_out(&mut self, due: Timestamp) -> bool {
        let Some(count) = self.slots.get_mut(&slot(due)).filter(|count| **count > 0) else {
            return false;
        };
        *count -= 1;
        true
    }

    /// How many tasks wait, as far as is known.
    pub(super) fn count(&self, now: Timestamp) -> u32 {
        let first = slot(now).saturating_sub(LATE);
        self.slots.range(first..).map(|(_, count)| count).sum()
    }

    /// How many looks are counted.
    fn total(&self) -> u64 {
        self.slots.values().map(|count| u64::from(*count)).sum()
    }

    /// Looks whose time is long over have been.
    fn forget_before(&mut self, now: Timestamp) {
        let first = slot(now).saturating_sub(LATE);
        while let Some(entry) = self.slots.first_entry()
            && *entry.key() < first
        {
            entry.remove();
        }
    }
}

/// The slot of a look.
fn slot(due: Timestamp) -> u64 {
    due.as_millis() / SLOT
}
