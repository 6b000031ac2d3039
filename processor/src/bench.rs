//! Measurements, each beside a raw baseline of its own in the same run.
//!
//! | module | what |
//! |---|---|
//! | `dispatch` | attempts over HTTP, and how late they are; beside a bare client |
//! | `deliver` | attempts that are records on a topic of the same cluster; beside a plain transactional copy |
//! | `hop` | tasks that are due later, forwarded between topics, with each guarantee; beside a plain transactional copy |
//! | `copy` | the plain copies |
//! | `lateness` | how late attempts are at parts of the capacity; beside a bare client |
//! | `causes` | where the time went |
//! | `target` | the HTTP target |
//! | `remote` | the HTTP target in a process of its own |
//! | `testbed` | topics of a measurement's own |
//! | `park` | a process with many parked tasks: start, memory, idling, take-over, and all of them due at once; beside one with none |
//! | `storm` | a healthy scene while others hang, reject and are flooded; beside itself without them |
//!
//! Invariant: what went in is counted where it comes out; a measurement whose counts differ is an error, not a figure.

mod causes;
mod copy;
mod deliver;
mod dispatch;
mod hop;
mod lateness;
mod park;
mod remote;
mod storm;
mod stream;
mod target;
mod testbed;
mod worker;

use std::process::ExitStatus;
use std::time::{Duration, Instant};

use rdkafka::error::KafkaError;
use serde::Serialize;

use retide_kafka::cluster;
use retide_shell::process;

pub use self::causes::Cause;
pub use self::deliver::{Deliver, deliver};
pub use self::dispatch::{Dispatch, Pace, Steady, Volume, dispatch, steady};
pub use self::hop::{Hop, HopPart, Load, Measured, hop};
pub use self::lateness::{Late, Loads, Step, lateness};
pub use self::park::{Drained, Park, Parked, Stage, TakeOver, park};
pub use self::remote::serve;
pub use self::storm::{Phase, Scenario, Storm, storm};
pub use self::target::Lateness;
pub use self::testbed::Testbed;
pub use self::worker::Memory;

/// Why a measurement came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A client of the measurement's own failed.
    #[error("measure")]
    Kafka(#[from] KafkaError),
    /// The topics could not be created.
    #[error("create topics")]
    Topics(#[from] cluster::Error),
    /// retide could not start, or could not go on.
    #[error("run retide")]
    Process(#[from] process::Error),
    /// A thread or a runtime cannot be started.
    #[error("start")]
    Start(#[from] std::io::Error),
    /// The target in another process does not say what it was asked.
    #[error("the target answers {text:?}")]
    Target {
        /// What it says.
        text: String,
        /// What is wrong with that.
        source: serde_json::Error,
    },
    /// Nothing moved for too long.
    #[error("{what}: {done} of {all} after {} s without any", PATIENCE.as_secs())]
    Stuck {
        /// What was waited for.
        what: &'static str,
        /// How many were done.
        done: u64,
        /// How many there are.
        all: u64,
    },
    /// What came out is not what went in.
    #[error("{what}: {found} where {expected} went in")]
    Count {
        /// What was counted.
        what: &'static str,
        /// How many came out.
        found: u64,
        /// How many went in.
        expected: u64,
    },
    /// Attempts were made before they were due.
    #[error("{count} attempts were early")]
    Early {
        /// How many.
        count: u64,
    },
    /// Tasks that are to be due at once were still being produced when they were due.
    #[error("{count} tasks due {} s after the first one was produced took {} s to produce: more time is needed", due_in.as_secs(), took.as_secs())]
    TooSoon {
        /// How many.
        count: u64,
        /// When they were due, from the start of producing.
        due_in: Duration,
        /// How long producing took.
        took: Duration,
    },
    /// A process that was measured ended by itself, and has said why.
    #[error("a process of retide's ended by itself: {status}")]
    Worker {
        /// How.
        status: ExitStatus,
    },
}

/// Longest time in which nothing moves.
const PATIENCE: Duration = Duration::from_mins(1);

/// How many of something were done by when.
#[derive(Debug)]
pub(crate) struct Samples {
    /// Times since the first look, and the count at each.
    seen: Vec<(Duration, u64)>,
    /// The first look.
    start: Instant,
}

/// A speed, without the start and the end of its measurement.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Speed {
    /// Records per second.
    pub per_second: f64,
    /// How long was measured.
    pub seconds: f64,
}

// === impl Samples ===

impl Samples {
    /// Nothing is done yet.
    pub(crate) fn start() -> Self {
        Self {
            seen: Vec::new(),
            start: Instant::now(),
        }
    }

    /// So many are done now.
    pub(crate) fn add(&mut self, count: u64) {
        if self.seen.last().is_none_or(|(_, last)| count > *last) {
            self.seen.push((self.start.elapsed(), count));
        }
    }

    /// How many were done at the last look.
    pub(crate) fn last(&self) -> u64 {
        self.seen.last().map_or(0, |(_, count)| *count)
    }

    /// How long nothing was done.
    pub(crate) fn idle(&self) -> Duration {
        let last = self.seen.last().map_or(Duration::ZERO, |(time, _)| *time);
        self.start.elapsed().saturating_sub(last)
    }

    /// From the first sample to the last.
    pub(crate) fn span(&self) -> Duration {
        match (self.seen.first(), self.seen.last()) {
            (Some((from, _)), Some((to, _))) => to.saturating_sub(*from),
            _ => Duration::ZERO,
        }
    }

    /// The speed from the first sample above a tenth of `all` on: before that, clients warm up. From the start if there is no other sample.
    pub(crate) fn speed(&self, all: u64) -> Speed {
        let (to, after) = self.seen.last().copied().unwrap_or_default();
        let warm = |(_, count): &&(Duration, u64)| *count >= all / 10 && *count < after;
        let (from, before) = self.seen.iter().find(warm).copied().unwrap_or_default();
        let seconds = to.saturating_sub(from).as_secs_f64();
        Speed {
            per_second: (after - before) as f64 / seconds.max(1e-9),
            seconds,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_speed_leaves_the_warm_up_out() {
        let at = |millis, count| (Duration::from_millis(millis), count);
        let samples = Samples {
            seen: vec![at(900, 5), at(1_000, 20), at(1_500, 60), at(2_000, 100)],
            start: Instant::now(),
        };

        let speed = samples.speed(100);

        assert!((speed.per_second - 80.0).abs() < 1e-6, "{speed:?}");
        assert!((speed.seconds - 1.0).abs() < 1e-9);
    }
}
