//! Shards that a worker gives away, and how far it is with that.
//!
//! Not what is done: that is the drive's. Stages:
//! 1. [`Stage::Working`]: all goes on, but for calls that may not be back in time, until the calls are back that were in flight when it
//!    began, or its time is up. Where no call hangs, that is as long as one takes.
//! 2. [`Stage::Stopped`]: nothing more is started, nor read, until the calls are back that were started since, or their time is up.
//! 3. [`Stage::Committing`]: what was settled is being written. Then the shards are gone, unless a call that was waited for in vain has come
//!    back meanwhile: what follows from it is written, too, as long as there is time.
//!
//! Invariant: calls in flight are waited for as long as was said, and no shard is kept for longer than that and [`LAST`].

use std::time::{Duration, Instant};

use retide_core::engine::{LAST, Left};

/// Shards that are being given away.
#[derive(Debug)]
pub(crate) struct Leaving {
    /// The shards.
    shards: Vec<i32>,
    /// Until when the calls are waited for that were in flight when it began.
    deadline: Instant,
    /// When the shards are gone, whatever is left; known once they are stopped.
    end: Option<Instant>,
    /// How far it is.
    stage: Stage,
}

/// How far shards are that are being given away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// All goes on.
    Working,
    /// Nothing is started any more.
    Stopped,
    /// All that is waited for was settled and handed over.
    Committing {
        /// The number of the last batch with something of it.
        batch: u64,
    },
}

/// Time until shards are looked at again whose batch has no room yet.
const LOOK: Duration = Duration::from_millis(5);

// === impl Leaving ===

impl Leaving {
    /// Shards that begin to leave `now`, and wait as long as `patience` lasts for their calls.
    pub(crate) fn new(shards: Vec<i32>, now: Instant, patience: Duration) -> Self {
        Self {
            shards,
            deadline: now + patience,
            end: None,
            stage: Stage::Working,
        }
    }

    /// The shards.
    pub(crate) fn shards(&self) -> &[i32] {
        &self.shards
    }

    /// Whether the last batch with something of them was received, as far as is known.
    pub(crate) fn is_written(&self, received: u64) -> bool {
        matches!(self.stage, Stage::Committing { batch } if received >= batch)
    }

    /// Shards that are gone already.
    pub(crate) fn forget(&mut self, gone: &[i32]) {
        self.shards.retain(|shard| !gone.contains(shard));
    }

    /// Whether nothing more is to be started.
    pub(crate) fn is_to_stop(&self, now: Instant, left: Left) -> bool {
        self.stage == Stage::Working && self.has_waited(now, left)
    }

    /// Nothing more is started from `now` on.
    pub(crate) fn stopped(&mut self, now: Instant) {
        self.stage = Stage::Stopped;
        self.end = Some(self.deadline.max(now + LAST));
    }

    /// Whether what was settled is to be handed over.
    pub(crate) fn is_to_commit(&self, now: Instant, left: Left) -> bool {
        self.stage == Stage::Stopped && left.since == 0 && self.has_waited(now, left)
    }

    /// What was settled went with `batch` at the latest.
    pub(crate) const fn committing(&mut self, batch: u64) {
        self.stage = Stage::Committing { batch };
    }

    /// There is something to be handed over again: a batch was not written, or a call has come back since.
    pub(crate) fn unwritten(&mut self) {
        if let Stage::Committing { .. } = self.stage {
            self.stage = Stage::Stopped;
        }
    }

    /// Whether time is up for whatever is left.
    pub(crate) fn is_late(&self, now: Instant) -> bool {
        self.end.is_some_and(|end| now >= end)
    }

    /// When to look again, unless something happens before.
    pub(crate) fn next(&self, now: Instant) -> Instant {
        match (self.stage, self.end) {
            (Stage::Stopped, Some(end)) => end.min(now + LOOK),
            (Stage::Committing { .. }, Some(end)) => end,
            (Stage::Working | Stage::Stopped | Stage::Committing { .. }, _) => self.deadline,
        }
    }

    /// Whether nothing is waited for any more that was in flight when it began.
    fn has_waited(&self, now: Instant, left: Left) -> bool {
        left.before == 0 || now >= self.deadline
    }
}
