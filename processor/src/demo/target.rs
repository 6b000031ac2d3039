//! The target of the demo: an HTTP server on loopback that follows the script, and writes down what it sees.

use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};

use axum::http::StatusCode;
use hdrhistogram::Histogram;

use retide_shell::clock;

use crate::demo::plan::{Answer, HANG, Kind, Script};
use crate::playground::{self, Answers, Reply, Request};

/// The server's address, and what it has seen.
pub(crate) struct Target {
    /// Where it listens.
    pub(crate) address: SocketAddr,
    /// What it has seen.
    pub(crate) seen: Arc<Seen>,
}

/// What the target has seen.
pub(crate) struct Seen {
    /// What it says.
    script: Script,
    /// What it counts.
    counts: Mutex<Counts>,
}

/// What the target counts.
pub(crate) struct Counts {
    /// Attempts of tasks of the demo.
    pub(crate) attempts: u64,
    /// Attempts that arrived before their due time.
    pub(crate) early: u64,
    /// Attempts that arrived a second time, or after a later one of their task.
    pub(crate) repeated: u64,
    /// Attempts that never arrived, since a later one of their task did: the machine was so busy that they timed out before.
    pub(crate) skipped: u64,
    /// Arrival after due time, in microseconds.
    pub(crate) lateness: Histogram<u64>,
    /// What was said last to each task of a scene, by its number.
    pub(crate) said: HashMap<Kind, HashMap<u64, Answer>>,
    /// The last attempt of each task, by its number.
    last: HashMap<u64, u32>,
}

/// Longest lateness that is told apart: an hour, in microseconds.
const MOST_LATE: u64 = 3_600_000_000;

// === impl Target ===

impl Target {
    /// Starts to listen on a free port. It serves as long as the runtime runs.
    pub(crate) async fn start(script: Script) -> io::Result<Self> {
        let lateness = Histogram::new_with_bounds(1, MOST_LATE, 3)
            .unwrap_or_else(|error| unreachable!("{error}"));
        let seen = Arc::new(Seen {
            script,
            counts: Mutex::new(Counts {
                attempts: 0,
                early: 0,
                repeated: 0,
                skipped: 0,
                said: HashMap::new(),
                lateness,
                last: HashMap::new(),
            }),
        });
        let anywhere = (Ipv4Addr::LOCALHOST, 0).into();
        let address = playground::serve(anywhere, Arc::<Seen>::clone(&seen)).await?;
        Ok(Self { address, seen })
    }
}

// === impl Counts ===

impl Counts {
    /// Counts an attempt that is not the next one of its task.
    fn number(&mut self, index: u64, attempt: u32) {
        let last = self.last.get(&index).copied().unwrap_or_default();
        if attempt <= last {
            self.repeated += 1;
            return;
        }
        self.skipped += u64::from(attempt - last - 1);
        self.last.insert(index, attempt);
    }
}

// === impl Seen ===

impl Seen {
    /// Reads what was counted.
    pub(crate) fn read<T>(&self, read: impl FnOnce(&Counts) -> T) -> T {
        read(&self.counts.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Writes an attempt down and says what the script says to it.
    fn attempt(&self, request: &Request) -> Option<Answer> {
        // Before anything else: the lock below is not retide's lateness.
        let now = clock::since_epoch();
        let text = |name: &str| request.text(name);
        let index = Script::index(text("idempotency-key")?)?;
        let attempt: u32 = text("retry-attempt")?.parse().ok()?;
        let due: u64 = text("retry-due-at")?.parse().ok()?;
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        counts.attempts += 1;
        counts.number(index, attempt);
        match (now.as_micros() as u64).checked_sub(due.saturating_mul(1_000)) {
            Some(late) => counts.lateness.saturating_record(late),
            None => counts.early += 1,
        }
        let plan = self.script.plan(index);
        let answer = plan.answer(attempt);
        let last = counts.said.entry(plan.kind).or_default();
        last.insert(index, answer);
        drop(counts);
        Some(answer)
    }
}

impl Answers for Seen {
    fn answer(&self, request: &Request) -> Reply {
        match self.attempt(request) {
            // A task of someone else's, submitted while the demo is up.
            None | Some(Answer::Accept) => Reply::of(StatusCode::OK),
            Some(Answer::Fail) => Reply::of(StatusCode::SERVICE_UNAVAILABLE),
            Some(Answer::Reject) => Reply::of(StatusCode::UNPROCESSABLE_ENTITY),
            Some(Answer::Throttle(after)) => Reply {
                retry_after: Some(after.as_secs()),
                ..Reply::of(StatusCode::TOO_MANY_REQUESTS)
            },
            Some(Answer::Hang) => Reply {
                delay: HANG,
                ..Reply::of(StatusCode::OK)
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_attempt_that_never_arrived_is_no_repeat_and_a_repeat_is_one() {
        let mut counts = Counts {
            attempts: 0,
            early: 0,
            repeated: 0,
            skipped: 0,
            lateness: Histogram::new(3).unwrap(),
            said: HashMap::new(),
            last: HashMap::new(),
        };

        for attempt in [1, 3, 4] {
            counts.number(7, attempt);
        }
        assert_eq!((counts.repeated, counts.skipped), (0, 1));

        for attempt in [4, 2, 5] {
            counts.number(7, attempt);
        }
        assert_eq!((counts.repeated, counts.skipped), (2, 1));
    }
}
