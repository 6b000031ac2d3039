//! Whether the workers of a process turn, and whether they have what they need.
//!
//! Not how well they do: that is what metrics are for. Invariant: reading it takes nothing from the workers but a lock at start, so a
//! probe cannot slow them.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::trouble::{Effect, Listed, Troubles};

/// The health of a process: of all its workers.
#[derive(Debug)]
pub struct Health {
    /// The instant that beats are measured from.
    start: Instant,
    /// How long a worker may be silent.
    stall: Duration,
    /// The workers there are to be.
    workers: Mutex<Vec<Arc<Heartbeat>>>,
    /// Whether the process is about to end.
    draining: AtomicBool,
    /// What is wrong for longer than a moment.
    troubles: Troubles,
}

/// The signs of life of one worker.
#[derive(Debug)]
pub struct Heartbeat {
    /// The worker's name.
    name: String,
    /// The instant that beats are measured from.
    start: Instant,
    /// When the loop last turned, in milliseconds since `start`.
    turned_at: AtomicU64,
    /// Whether the loop has begun.
    begun: AtomicBool,
    /// Whether the loop has ended.
    ended: AtomicBool,
    /// Whether the group has said which shards are its, be it none.
    assigned: AtomicBool,
    /// When the last assignment was lost, in milliseconds since `start`, until the next one; [`NEVER`] otherwise.
    lost_at: AtomicU64,
    /// How long it may be without an assignment between two.
    between: Duration,
    /// Whether it has rules.
    ruled: AtomicBool,
}

/// Whether the process is alive.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Liveness {
    /// Whether every worker turns.
    pub live: bool,
    /// Those that do not.
    pub stalled: Vec<Stalled>,
}

/// A worker whose loop does not turn.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Stalled {
    /// Its name.
    pub worker: String,
    /// How long ago it last turned, in milliseconds.
    pub silent_ms: u64,
}

/// Whether the process does its work.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Readiness {
    /// Whether every worker has what it needs.
    pub ready: bool,
    /// Whether the process is about to end.
    pub draining: bool,
    /// Those that wait, and for what.
    pub waiting: Vec<Waiting>,
    /// What is wrong, what stops something first.
    pub troubles: Vec<Listed>,
}

/// A worker that cannot work yet.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Waiting {
    /// Its name.
    pub worker: String,
    /// What it waits for.
    pub waits_for: Vec<Need>,
}

/// What a worker needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Need {
    /// That its loop begins.
    Start,
    /// That the group says which shards are its; none is an answer too.
    Assignment,
    /// The rules of its scenes.
    Rules,
    /// Nothing helps: it has ended.
    Restart,
}

/// No instant that comes.
const NEVER: u64 = u64::MAX;

/// The part of the time a worker may be silent that it may be without an assignment between two: five seconds as a rule.
const BETWEEN: u32 = 6;

/// How long a worker may be silent. Its loop never waits longer than a tenth of a second at once, but a machine may.
pub const STALL: Duration = Duration::from_secs(30);

// === impl Health ===

impl Health {
    /// The health of a process whose workers may be silent for `stall`; [`STALL`] as a rule.
    pub fn new(stall: Duration) -> Self {
        Self {
            start: Instant::now(),
            stall,
            workers: Mutex::default(),
            draining: AtomicBool::new(false),
            troubles: Troubles::default(),
        }
    }

    /// The health of a process that has these troubles.
    #[must_use]
    pub fn with_troubles(self, troubles: &Troubles) -> Self {
        let troubles = troubles.clone();
        Self { troubles, ..self }
    }

    /// A worker that is about to start. It counts from now on, so the process is not ready before its last worker is.
    pub fn worker(&self, name: &str) -> Arc<Heartbeat> {
        let worker = Arc::new(Heartbeat {
            name: name.to_owned(),
            start: self.start,
            turned_at: AtomicU64::new(millis(self.start.elapsed())),
            begun: AtomicBool::new(false),
            ended: AtomicBool::new(false),
            assigned: AtomicBool::new(false),
            lost_at: AtomicU64::new(NEVER),
            between: self.stall / BETWEEN,
            ruled: AtomicBool::new(false),
        });
        let mut workers = self.workers.lock().unwrap_or_else(PoisonError::into_inner);
        workers.push(Arc::clone(&worker));
        worker
    }

    /// The process is about to end: not ready any more, and workers may end.
    pub fn drain(&self) {
        self.draining.store(true, Ordering::Release);
    }

    /// Whether every worker's loop turns. One that has ended does not, unless the process is about to end.
    pub fn liveness(&self) -> Liveness {
        let now = millis(self.start.elapsed());
        let draining = self.draining.load(Ordering::Acquire);
        let mut stalled = Vec::new();
        for worker in self.workers() {
            let silent_ms = now.saturating_sub(worker.turned_at.load(Ordering::Acquire));
            let ended = worker.ended.load(Ordering::Acquire);
            let silent = silent_ms >= millis(self.stall);
            if (ended && !draining) || (!ended && silent) {
                stalled.push(Stalled {
                    worker: worker.name.clone(),
                    silent_ms,
                });
            }
        }
        Liveness {
            live: stalled.is_empty(),
            stalled,
        }
    }

    /// Whether every worker has joined the group, knows its shards and has rules, no trouble stops anything, and the process is not about
    /// to end.
    pub fn readiness(&self) -> Readiness {
        let draining = self.draining.load(Ordering::Acquire);
        let workers = self.workers();
        let mut waiting = Vec::new();
        for worker in &workers {
            let waits_for = worker.waits_for();
            if !waits_for.is_empty() {
                waiting.push(Waiting {
                    worker: worker.name.clone(),
                    waits_for,
                });
            }
        }
        let troubles = self.troubles.list();
        let stopped = troubles.iter().any(|listed| listed.effect == Effect::Stops);
        Readiness {
            ready: !draining && !workers.is_empty() && waiting.is_empty() && !stopped,
            draining,
            waiting,
            troubles,
        }
    }

    /// The workers.
    fn workers(&self) -> Vec<Arc<Heartbeat>> {
        let workers = self.workers.lock().unwrap_or_else(PoisonError::into_inner);
        workers.clone()
    }
}

// === impl Heartbeat ===

impl Heartbeat {
    /// The worker's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The loop turns.
    pub fn beat(&self) {
        let now = millis(self.start.elapsed());
        self.turned_at.store(now, Ordering::Release);
        self.begun.store(true, Ordering::Release);
    }

    /// The group has said which shards are its, be it none.
    pub fn assigned(&self) {
        self.lost_at.store(NEVER, Ordering::Release);
        self.assigned.store(true, Ordering::Release);
    }

    /// All shards are lost, until the group says which ones are its next: as a rule in a moment, for which nobody is to be told.
    pub fn lost(&self) {
        let now = millis(self.start.elapsed());
        self.lost_at.fetch_min(now, Ordering::AcqRel);
    }

    /// Whether it has an assignment, or had one a moment ago.
    fn has_assignment(&self) -> bool {
        let lost_at = Duration::from_millis(self.lost_at.load(Ordering::Acquire));
        let between = self.start.elapsed().saturating_sub(lost_at);
        self.assigned.load(Ordering::Acquire) && (between.is_zero() || between < self.between)
    }

    /// It has rules.
    pub fn ruled(&self) {
        self.ruled.store(true, Ordering::Release);
    }

    /// The loop has ended.
    pub fn ended(&self) {
        self.ended.store(true, Ordering::Release);
    }

    /// What it waits for.
    fn waits_for(&self) -> Vec<Need> {
        let is = |flag: &AtomicBool| flag.load(Ordering::Acquire);
        if is(&self.ended) {
            return vec![Need::Restart];
        }
        [
            (is(&self.begun), Need::Start),
            (self.has_assignment(), Need::Assignment),
            (is(&self.ruled), Need::Rules),
        ]
        .into_iter()
        .filter_map(|(has, need)| (!has).then_some(need))
        .collect()
    }
}

/// A span in whole milliseconds.
fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trouble::{Kind, Trouble};

    /// A worker that lacks nothing.
    fn working(health: &Health, name: &str) -> Arc<Heartbeat> {
        let worker = health.worker(name);
        worker.beat();
        worker.assigned();
        worker.ruled();
        worker
    }

    #[test]
    fn a_process_is_ready_when_each_of_its_workers_lacks_nothing() {
        let health = Health::new(STALL);
        assert!(!health.readiness().ready, "nobody works");

        let _one = working(&health, "one");
        let other = health.worker("other");
        other.beat();
        let waits_for = vec![Need::Assignment, Need::Rules];
        let worker = "other".to_owned();

        let readiness = Readiness {
            ready: false,
            draining: false,
            waiting: vec![Waiting { worker, waits_for }],
            troubles: vec![],
        };
        assert_eq!(health.readiness(), readiness);
        other.ruled();
        other.assigned();
        assert!(health.readiness().ready);
    }

    #[test]
    fn a_worker_between_two_assignments_is_ready_for_a_moment_and_not_for_long() {
        for (stall, ready) in [(STALL, true), (Duration::from_nanos(12), false)] {
            let health = Health::new(stall);
            let worker = working(&health, "one");
            assert!(health.readiness().ready);

            worker.lost();
            assert_eq!(health.readiness().ready, ready);
            worker.assigned();

            assert!(health.readiness().ready);
        }
    }

    #[test]
    fn a_worker_that_is_silent_too_long_is_not_alive() {
        let health = Health::new(Duration::ZERO);
        let _worker = working(&health, "one");

        let liveness = health.liveness();

        assert!(!liveness.live);
        assert_eq!(liveness.stalled[0].worker, "one");
    }

    #[test]
    fn a_worker_may_end_only_while_the_process_drains() {
        let health = Health::new(STALL);
        let worker = working(&health, "one");
        assert!(health.liveness().live);

        worker.ended();
        assert!(!health.liveness().live);
        assert!(!health.readiness().ready);

        health.drain();
        assert!(health.liveness().live);
        assert!(!health.readiness().ready);
    }
    #[test]
    fn a_process_is_not_ready_while_a_trouble_stops_something() {
        let troubles = Troubles::default();
        let health = Health::new(STALL).with_troubles(&troubles);
        let _worker = working(&health, "one");
        let trouble = Trouble {
            kind: Kind::PartitionStuck,
            subject: "retry.tasks/1".to_owned(),
            says: "a transaction that never ends".to_owned(),
            fix: None,
            effect: Effect::Limits,
        };

        troubles.begin(trouble.clone());
        assert!(health.readiness().ready);
        assert_eq!(health.readiness().troubles[0].subject, "retry.tasks/1");

        let effect = Effect::Stops;
        troubles.begin(Trouble { effect, ..trouble });
        assert!(!health.readiness().ready);
        assert!(health.liveness().live);

        troubles.end(Kind::PartitionStuck, "retry.tasks/1");
        assert!(health.readiness().ready);
    }
}
