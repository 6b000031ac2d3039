//! Limits: which topics take records, how large a batch may be, and whether anything is committed at all, as the engine is told.
//!
//! Not what follows from them, which the engine decides.

use std::time::{Duration, Instant};

use rdkafka::consumer::Consumer;

use retide_core::{Input, Writable};

use crate::trouble::{Effect, Kind, Trouble};
use crate::worker::drive::State;
use crate::worker::ledger::{Ledger, Part};

/// How long nothing may be committed before no more calls are started: longer than an election, short beside what calls cost that are made
/// again.
const STUCK: Duration = Duration::from_secs(5);

/// How long before people are told.
const STUCK_LONG: Duration = Duration::from_secs(10);

/// A batch that took no longer leaves room for larger ones.
const FITS: Duration = Duration::from_secs(2);

/// A batch that took longer is too large, although it was committed.
const FITS_NOT: Duration = Duration::from_secs(4);

/// Settlements of a batch from which on their number is not limited any more.
const WIDE_TASKS: usize = 20_000;

/// Bytes of a batch from which on they are not limited any more.
const WIDE_BYTES: usize = 64 << 20;

// === impl State ===

impl<L: Ledger> State<L> {
    /// Follows which topics take records.
    pub(super) fn follow_writable(&mut self) {
        let writability = self.parts.encoder.writability();
        let version = writability.version();
        if version != self.writable_version {
            let closed = writability.closed();
            self.writable_version = version;
            self.set_writable(Writable {
                closed,
                ..self.writable
            });
        }
    }

    /// Follows how long dead letters are kept.
    pub(super) fn follow_kept(&mut self) {
        let kept = self.parts.kept.get();
        if kept != self.kept {
            self.kept = kept;
            self.step(Input::LettersKept(kept));
        }
    }

    /// Tells the engine what can be written, if that has changed.
    fn set_writable(&mut self, writable: Writable) {
        if writable != self.writable {
            self.writable = writable;
            self.step(Input::Writable(writable));
        }
    }

    /// Makes batches smaller, after one of `tasks` and `bytes` was too large for the time it had.
    pub(super) fn narrow(&mut self, share: Part, tasks: usize, bytes: usize) {
        let Part { done, of } = share;
        // Half of what was done, so that the next one fits; where nothing was, nothing is known.
        let part = |whole: usize| (whole * done / of.max(1) / 2).max(whole / 16).max(1);
        let writable = Writable {
            batch_tasks: self.writable.batch_tasks.min(part(tasks)),
            batch_bytes: self.writable.batch_bytes.min(part(bytes)),
            ..self.writable
        };
        self.set_writable(writable);
    }

    /// Makes batches larger again, after one that took little time.
    pub(super) fn widen(&mut self, took: Duration) {
        let Writable {
            batch_tasks,
            batch_bytes,
            ..
        } = self.writable;
        if batch_tasks == usize::MAX && batch_bytes == usize::MAX {
            return;
        }
        let wider = |limit: usize, most: usize| {
            match took {
                took if took < FITS => Some(limit.saturating_mul(2)),
                took if took < FITS_NOT => Some(limit),
                _ => Some((limit / 2).max(1)),
            }
            .filter(|limit| *limit < most)
            .unwrap_or(usize::MAX)
        };
        self.set_writable(Writable {
            batch_tasks: wider(batch_tasks, WIDE_TASKS),
            batch_bytes: wider(batch_bytes, WIDE_BYTES),
            ..self.writable
        });
    }

    /// Follows of which topics offsets can be committed.
    pub(super) fn follow_readable(&mut self) {
        let readability = self.parts.feed.consumer.context().readability();
        let version = readability.version();
        if version == self.readable_version {
            return;
        }
        self.readable_version = version;
        let unreadable = readability.unreadable();
        let is_back = self.unreadable.without(&unreadable).next().is_some();
        let denied = unreadable.denied().collect();
        self.unreadable = unreadable;
        self.step(Input::Unreadable(denied));
        if is_back {
            // What was left out meanwhile.
            self.touch(|_| true);
        }
    }

    /// Follows whether anything is committed at all.
    pub(super) fn follow_commits(&mut self, now: Instant) {
        let busy = !self.under_way.is_empty()
            || !self.settled.is_empty()
            || self.parts.engine.to_write_again() > 0;
        let since = self.waiting_since.filter(|_| busy);
        self.waiting_since = since.or_else(|| busy.then_some(now));
        let since = self.waiting_since.unwrap_or(now);
        let waits = now.saturating_duration_since(since);
        let stuck = waits >= STUCK;
        if stuck || self.writable.stuck {
            self.tell_stuck(waits);
        }
        self.set_writable(Writable {
            stuck,
            ..self.writable
        });
    }

    /// Tells people that nothing is committed, or that it is again.
    fn tell_stuck(&self, waits: Duration) {
        let worker = self.parts.heartbeat.name();
        let troubles = self.parts.metrics.troubles().held_by(worker);
        if waits < STUCK_LONG {
            return troubles.end(Kind::CommitStuck, worker);
        }
        let calls = self.parts.engine.unwritten() + self.settled.len();
        troubles.begin(Trouble {
            kind: Kind::CommitStuck,
            subject: worker.to_owned(),
            says: format!(
                "nothing could be committed for {} s, no call is started until that is over; {calls} tasks and the batches under way wait",
                waits.as_secs()
            ),
            fix: None,
            effect: Effect::Stops,
        });
    }
}
