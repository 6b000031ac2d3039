//! Scenes: the named rule sets that tasks follow, as far as decisions need them.
//!
//! Not the configuration format, nor the target itself: the shell parses those and keeps the targets. Invariant: a [`Scene`] that
//! exists is valid; [`Backoff`] constructors refuse what could not be scheduled.

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::outcome::Terminal;
use crate::task::Task;

/// The scene used for tasks that name none, or one that does not exist.
pub const DEFAULT: &str = "default";

/// Longest wait between two attempts: as far ahead as retide parks tasks.
pub const MAX_DELAY: Duration = Duration::from_hours(366 * 24);

/// The rules of one scene.
#[derive(Clone, Debug, PartialEq)]
pub struct Scene {
    /// Its name.
    pub name: Arc<str>,
    /// How an attempt is made.
    pub target: Target,
    /// How long to wait between attempts.
    pub backoff: Backoff,
    /// How the wait is spread.
    pub jitter: Jitter,
    /// Attempts made before the task is given up.
    pub max_attempts: NonZeroU32,
    /// Time from the first sight of a task after which no attempt starts.
    pub deadline: Option<Duration>,
    /// Attempts per time, of the whole group.
    pub rate: Option<Rate>,
    /// Attempts in flight at once, per process.
    pub concurrency: NonZeroU32,
    /// Where the end of a task is reported besides the callbacks topic.
    pub callback: Option<Callback>,
}

/// How an attempt is made, as far as the core must know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// By a call that the shell makes and reports back.
    Call,
    /// By a record in the ledger's own transaction: exactly once.
    Produce {
        /// The topic.
        topic: Arc<str>,
    },
}

/// The delivery of callback records to a target of the scene's own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Callback {
    /// How the callback is made.
    pub target: Target,
    /// The ends it is made for.
    pub on: Vec<Terminal>,
}

/// How many attempts may start in a span of time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Attempts per `per`.
    pub limit: NonZeroU32,
    /// The span.
    pub per: Duration,
    /// Attempts that may start at once after a quiet time.
    pub burst: NonZeroU32,
}

/// How long to wait after the n-th failed attempt.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Backoff {
    /// Always the same.
    Fixed {
        /// The wait.
        delay: Duration,
    },
    /// `first`, then `step` more each time, up to `max`.
    Linear {
        /// The first wait.
        first: Duration,
        /// What is added each time.
        step: Duration,
        /// The longest wait.
        max: Duration,
    },
    /// `first`, then `factor` times more each time, up to `max`.
    Exponential {
        /// The first wait.
        first: Duration,
        /// What each wait is multiplied by; at least 1.
        factor: f64,
        /// The longest wait.
        max: Duration,
    },
    /// One wait per attempt; past the end, the last one.
    Levels {
        /// The waits; not empty.
        delays: Vec<Duration>,
    },
}

/// How a wait is spread so that tasks which failed together do not come back together.
///
/// The names and shapes are those of the AWS Architecture Blog's "Exponential Backoff and Jitter" (2015).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Jitter {
    /// The wait as it is.
    #[default]
    None,
    /// Anything from nothing to the wait.
    Full,
    /// Half the wait, and anything up to the other half.
    Equal,
}

/// The scenes in force, by name.
#[derive(Clone, Debug, Default)]
pub struct Scenes {
    /// The rules by name.
    by_name: HashMap<Arc<str>, Arc<Scene>>,
}

// === impl Scene ===

impl Scene {
    /// The wait after attempt number `attempt` (from 1) of `task` has failed.
    ///
    /// Spread by a hash of the task and the attempt: the same after a crash, different from task to task.
    pub fn delay(&self, task: &Task, attempt: u32) -> Duration {
        let wait = self.backoff.delay(attempt);
        self.jitter
            .spread(wait, xxh3_64_with_seed(task.id.as_bytes(), attempt.into()))
    }
}

// === impl Backoff ===

impl Backoff {
    /// The waits known as `classic`: a queue's sixteen levels from 10 s to 2 h that many message brokers have made familiar.
    pub fn classic() -> Self {
        const SECONDS: [u64; 16] = [
            10, 30, 60, 120, 180, 240, 300, 360, 420, 480, 540, 600, 1200, 1800, 3600, 7200,
        ];
        Self::Levels {
            delays: SECONDS.into_iter().map(Duration::from_secs).collect(),
        }
    }

    /// The wait after attempt number `attempt` (from 1) has failed, before jitter; at most [`MAX_DELAY`].
    pub fn delay(&self, attempt: u32) -> Duration {
        let retries = attempt.saturating_sub(1);
        let wait = match self {
            Self::Fixed { delay } => *delay,
            Self::Linear { first, step, max } => step
                .checked_mul(retries)
                .and_then(|more| first.checked_add(more))
                .map_or(*max, |wait| wait.min(*max)),
            Self::Exponential { first, factor, max } => {
                let exponent = i32::try_from(retries).unwrap_or(i32::MAX);
                let seconds = first.as_secs_f64() * factor.powi(exponent);
                // NaN and infinity fall to `max`, too.
                Duration::try_from_secs_f64(seconds).map_or(*max, |wait| wait.min(*max))
            }
            Self::Levels { delays } => delays
                .get(retries as usize)
                .or(delays.last())
                .copied()
                .unwrap_or_default(),
        };
        wait.min(MAX_DELAY)
    }
}

// === impl Jitter ===

impl Jitter {
    /// Spreads `wait` by `hash`, which is taken as uniformly distributed.
    pub fn spread(self, wait: Duration, hash: u64) -> Duration {
        // 53 bits: what a double holds exactly; the quotient is in [0, 1).
        let fraction = (hash >> 11) as f64 / (1_u64 << 53) as f64;
        match self {
            Self::None => wait,
            Self::Full => wait.mul_f64(fraction),
            Self::Equal => wait / 2 + (wait / 2).mul_f64(fraction),
        }
    }
}

// === impl Scenes ===

impl Scenes {
    /// The rules for a task of this name: its own, or those of [`DEFAULT`].
    pub fn find(&self, name: &str) -> Option<&Arc<Scene>> {
        self.by_name.get(name).or_else(|| self.by_name.get(DEFAULT))
    }

    /// The rules of exactly this name.
    pub fn get(&self, name: &str) -> Option<&Arc<Scene>> {
        self.by_name.get(name)
    }

    /// Puts rules in force, in place of those of the same name.
    pub fn insert(&mut self, scene: Scene) {
        self.by_name
            .insert(Arc::clone(&scene.name), Arc::new(scene));
    }

    /// Takes the rules of this name out of force.
    pub fn remove(&mut self, name: &str) {
        self.by_name.remove(name);
    }

    /// Every scene, in no order.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Scene>> {
        self.by_name.values()
    }

    /// How many scenes there are.
    pub fn len(&self) -> usize {
        self.by_name.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.by_name.is_empty()
    }
}

impl FromIterator<Scene> for Scenes {
    fn from_iter<I: IntoIterator<Item = Scene>>(scenes: I) -> Self {
        let mut all = Self::default();
        for scene in scenes {
            all.insert(scene);
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn secs(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn waits_follow_their_shape_and_stop_at_the_longest() {
        let linear = Backoff::Linear {
            first: secs(1),
            step: secs(2),
            max: secs(6),
        };
        let exponential = Backoff::Exponential {
            first: secs(1),
            factor: 2.0,
            max: secs(5),
        };
        let levels = Backoff::Levels {
            delays: vec![secs(3), secs(9)],
        };
        let waits = |backoff: &Backoff| [1, 2, 3, 4, u32::MAX].map(|n| backoff.delay(n).as_secs());

        assert_eq!(waits(&Backoff::Fixed { delay: secs(7) }), [7, 7, 7, 7, 7]);
        assert_eq!(waits(&linear), [1, 3, 5, 6, 6]);
        assert_eq!(waits(&exponential), [1, 2, 4, 5, 5]);
        assert_eq!(waits(&levels), [3, 9, 9, 9, 9]);
        assert_eq!(Backoff::classic().delay(16), secs(7200));
    }

    #[test]
    fn jitter_stays_within_its_bounds() {
        for hash in [0, 1, u64::MAX / 2, u64::MAX] {
            assert_eq!(Jitter::None.spread(secs(10), hash), secs(10));
            assert!(Jitter::Full.spread(secs(10), hash) <= secs(10));
            let equal = Jitter::Equal.spread(secs(10), hash);
            assert!(equal >= secs(5) && equal <= secs(10));
        }
    }
}
