//! When to try again: waits, points in time, and how they are spread.
//!
//! Not whether: attempts and deadlines are [`crate::verdict`]'s. Pure: chance is a hash of the task and the attempt, so that a replay
//! gives the same answer. Invariant: what is chosen lies within [`Policy::band`].

use std::num::NonZeroU32;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::cron::Schedule;
use crate::scene::MAX_DELAY;
use crate::time::Timestamp;

/// When to try again after a failed attempt, and how often at most.
#[derive(Clone, Debug, PartialEq)]
pub struct Policy {
    /// How long to wait between attempts.
    pub backoff: Backoff,
    /// How the wait is spread.
    pub jitter: Jitter,
    /// Attempts made before the task is given up.
    pub max_attempts: NonZeroU32,
}

/// How long to wait after the n-th failed attempt.
#[derive(Clone, Debug, PartialEq)]
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
    /// Anything from `min` to `max`, whatever the attempt.
    Random {
        /// The shortest wait.
        min: Duration,
        /// The longest wait.
        max: Duration,
    },
    /// Until a schedule says so.
    Cron(Schedule),
    /// Until the next of some points in time; past the last one there is no further attempt.
    At {
        /// The points, rising; not empty.
        times: Vec<Timestamp>,
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
    /// Anything from the first wait to three times the one before, up to the longest; in place of the factor, and only with
    /// [`Backoff::Exponential`].
    Decorrelated,
}

/// What a wait is counted from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Base {
    /// The end of the attempt.
    #[default]
    Actual,
    /// When the attempt was due, however late or long it was; where that leads into the past, there is no wait.
    Scheduled,
}

/// Attempts that a decorrelated wait looks back on. All before them have no part in it, so that the wait after attempt number
/// [`u32::MAX`] is found as soon as any other; the longest wait is reached long before.
const CHAIN: u32 = 64;

/// What a decorrelated wait may grow by: the formula's number.
const GROWTH: u32 = 3;

// === impl Policy ===

impl Policy {
    /// When the attempt after number `attempt` (from 1) of task `id` may start: not before `earliest`, and by a wait counted from `base`;
    /// none if no point in time is left.
    pub fn next(
        &self,
        id: &str,
        attempt: u32,
        base: Timestamp,
        earliest: Timestamp,
    ) -> Option<Timestamp> {
        match &self.backoff {
            Backoff::Cron(schedule) => schedule.first_from(earliest),
            Backoff::At { times } => {
                let next = times.partition_point(|time| *time < earliest);
                times.get(next).copied()
            }
            Backoff::Fixed { .. }
            | Backoff::Linear { .. }
            | Backoff::Exponential { .. }
            | Backoff::Levels { .. }
            | Backoff::Random { .. } => Some((base + self.wait(id, attempt)).max(earliest)),
        }
    }

    /// The wait after attempt number `attempt` (from 1) of task `id`: the same after a crash, different from task to task. Zero for
    /// points in time.
    pub fn wait(&self, id: &str, attempt: u32) -> Duration {
        let fraction = fraction(id, attempt);
        let wait = match &self.backoff {
            Backoff::Random { min, max } => *min + max.saturating_sub(*min).mul_f64(fraction),
            Backoff::Exponential { first, max, .. } if self.jitter == Jitter::Decorrelated => {
                decorrelated(id, attempt, *first, *max)
            }
            backoff => self.jitter.spread(backoff.delay(attempt), fraction),
        };
        wait.min(MAX_DELAY)
    }

    /// The shortest and the longest wait there can be after attempt number `attempt` (from 1); none for points in time.
    pub fn band(&self, attempt: u32) -> Option<(Duration, Duration)> {
        let (least, most) = match (&self.backoff, self.jitter) {
            (Backoff::Cron(_) | Backoff::At { .. }, _) => return None,
            (Backoff::Random { min, max }, _) => (*min, *max),
            (Backoff::Exponential { first, max, .. }, Jitter::Decorrelated) => {
                let growth = GROWTH.saturating_pow(attempt.min(CHAIN));
                (*first, first.saturating_mul(growth).min(*max))
            }
            (backoff, Jitter::None | Jitter::Decorrelated) => {
                (backoff.delay(attempt), backoff.delay(attempt))
            }
            (backoff, Jitter::Full) => (Duration::ZERO, backoff.delay(attempt)),
            (backoff, Jitter::Equal) => (backoff.delay(attempt) / 2, backoff.delay(attempt)),
        };
        Some((least.min(MAX_DELAY), most.min(MAX_DELAY)))
    }
}

/// The decorrelated wait after attempt number `attempt`, found by going through those before it as if all had failed the same way:
/// `wait = min(max, first + hash(id, n) * (3 * wait before - first))`, where the wait before the first one is `first`.
fn decorrelated(id: &str, attempt: u32, first: Duration, max: Duration) -> Duration {
    let mut wait = first;
    for attempt in attempt.saturating_sub(CHAIN - 1).max(1)..=attempt {
        let more = wait.saturating_mul(GROWTH).saturating_sub(first);
        wait = (first + more.mul_f64(fraction(id, attempt))).min(max);
    }
    wait
}

/// A number in [0, 1), uniformly distributed over tasks and attempts.
fn fraction(id: &str, attempt: u32) -> f64 {
    let hash = xxh3_64_with_seed(id.as_bytes(), attempt.into());
    // 53 bits: what a double holds exactly.
    (hash >> 11) as f64 / (1_u64 << 53) as f64
}

// === impl Backoff ===

impl Backoff {
    /// The waits known as `classic`: from 10 s by ever longer steps to an hour, and from there hour by hour to half a day.
    pub fn classic() -> Self {
        const SECONDS: [u64; 14] = [
            10, 15, 30, 35, 40, 50, 60, 120, 240, 360, 480, 600, 1200, 2400,
        ];
        let hours = (1..=12).map(Duration::from_hours);
        Self::Levels {
            delays: SECONDS
                .map(Duration::from_secs)
                .into_iter()
                .chain(hours)
                .collect(),
        }
    }

    /// The wait after attempt number `attempt` (from 1) has failed, before it is spread, at most [`MAX_DELAY`]; of random ones the
    /// longest, of points in time zero.
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
            Self::Random { max, .. } => *max,
            Self::Cron(_) | Self::At { .. } => Duration::ZERO,
        };
        wait.min(MAX_DELAY)
    }
}

// === impl Jitter ===

impl Jitter {
    /// Spreads `wait` by `fraction`, a number in [0, 1).
    fn spread(self, wait: Duration, fraction: f64) -> Duration {
        match self {
            Self::None | Self::Decorrelated => wait,
            Self::Full => wait.mul_f64(fraction),
            Self::Equal => wait / 2 + (wait / 2).mul_f64(fraction),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use proptest::prelude::*;

    const fn secs(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn policy(backoff: Backoff, jitter: Jitter) -> Policy {
        Policy {
            backoff,
            jitter,
            max_attempts: NonZeroU32::MAX,
        }
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
    }

    #[test]
    fn classic_is_the_ladder_that_people_know() {
        let Backoff::Levels { delays } = Backoff::classic() else {
            panic!("levels");
        };

        let names: Vec<String> = delays
            .iter()
            .map(|delay| crate::span::text(*delay))
            .collect();

        assert_eq!(
            names.join(" "),
            "10s 15s 30s 35s 40s 50s 1m 2m 4m 6m 8m 10m 20m 40m 1h 2h 3h 4h 5h 6h 7h 8h 9h 10h 11h 12h"
        );
    }

    #[test]
    fn a_decorrelated_wait_is_the_formula_over_the_attempts_before() {
        let exponential = Backoff::Exponential {
            first: secs(1),
            factor: 2.0,
            max: secs(60),
        };
        let policy = policy(exponential, Jitter::Decorrelated);
        let mut before = secs(1);

        for attempt in 1..=CHAIN {
            let most = before * 3;
            let wait = (secs(1) + most.saturating_sub(secs(1)).mul_f64(fraction("a", attempt)))
                .min(secs(60));
            assert_eq!(policy.wait("a", attempt), wait);
            before = wait;
        }
        // As far as the number goes, and at once.
        assert!(policy.wait("a", u32::MAX) <= secs(60));
        assert_eq!(policy.band(1), Some((secs(1), secs(3))));
        assert_eq!(policy.band(u32::MAX), Some((secs(1), secs(60))));
    }

    #[test]
    fn points_in_time_are_taken_one_after_the_other_and_end() {
        let times = [10, 20, 30].map(Timestamp::from_millis).to_vec();
        let policy = policy(Backoff::At { times }, Jitter::None);
        let next = |earliest| {
            let earliest = Timestamp::from_micros(earliest);
            policy.next("a", 1, Timestamp::EPOCH, earliest)
        };

        assert_eq!(next(0), Some(Timestamp::from_millis(10)));
        assert_eq!(next(10_000), Some(Timestamp::from_millis(10)));
        assert_eq!(next(10_001), Some(Timestamp::from_millis(20)));
        assert_eq!(next(30_001), None);
    }

    /// A wait of up to a year.
    fn wait() -> impl Strategy<Value = Duration> {
        prop_oneof![0_u64..100_000, 0_u64..366 * 86_400_000].prop_map(Duration::from_millis)
    }

    fn backoff() -> impl Strategy<Value = Backoff> {
        let two = || (wait(), wait()).prop_map(|(a, b)| (a.min(b), a.max(b)));
        prop_oneof![
            wait().prop_map(|delay| Backoff::Fixed { delay }),
            (two(), wait()).prop_map(|((first, max), step)| Backoff::Linear { first, step, max }),
            (two(), 1.0_f64..1e9).prop_map(|((first, max), factor)| Backoff::Exponential {
                first,
                factor,
                max
            }),
            (two(), 1.0_f64..2.0).prop_map(|((first, max), factor)| Backoff::Exponential {
                first,
                factor,
                max
            }),
            prop::collection::vec(wait(), 1..20).prop_map(|delays| Backoff::Levels { delays }),
            two().prop_map(|(min, max)| Backoff::Random { min, max }),
        ]
    }

    fn jitter() -> impl Strategy<Value = Jitter> {
        prop::sample::select(vec![
            Jitter::None,
            Jitter::Full,
            Jitter::Equal,
            Jitter::Decorrelated,
        ])
    }

    fn attempt() -> impl Strategy<Value = u32> {
        prop_oneof![1_u32..100, 1_u32..=u32::MAX, Just(u32::MAX)]
    }

    proptest! {
        #[test]
        fn a_wait_lies_in_its_band_and_is_the_same_again(
            backoff in backoff(),
            jitter in jitter(),
            id in "[a-z]{0,12}",
            attempt in attempt(),
        ) {
            let policy = policy(backoff, jitter);

            let wait = policy.wait(&id, attempt);

            let (least, most) = policy.band(attempt).unwrap();
            prop_assert!(least <= wait && wait <= most, "{wait:?} of {least:?} to {most:?}");
            prop_assert!(most <= MAX_DELAY);
            prop_assert_eq!(policy.clone().wait(&id, attempt), wait);
        }

        #[test]
        fn waits_never_fall_and_stay_at_the_longest(backoff in backoff(), attempt in attempt()) {
            let cap = match &backoff {
                Backoff::Linear { max, .. } | Backoff::Exponential { max, .. } => *max,
                Backoff::Fixed { delay } => *delay,
                Backoff::Levels { .. } | Backoff::Random { .. } | Backoff::Cron(_) | Backoff::At { .. } => return Ok(()),
            };

            let (wait, after) = (backoff.delay(attempt), backoff.delay(attempt.saturating_add(1)));

            prop_assert!(wait <= after && after <= cap);
        }

        #[test]
        fn waits_are_spread_over_the_whole_band(jitter in jitter(), seed in 0_u32..1_000) {
            let (first, max) = (secs(100), secs(100_000));
            let policy = policy(Backoff::Exponential { first, factor: 2.0, max }, jitter);
            let (least, most) = policy.band(3).unwrap();

            let waits: Vec<Duration> = (0..500).map(|task| policy.wait(&format!("{seed}-{task}"), 3)).collect();

            let near = |wait: Duration, end: Duration| wait.abs_diff(end) * 10 <= most.saturating_sub(least);
            prop_assert!(waits.iter().any(|wait| near(*wait, least)));
            // The end of a decorrelated band takes several high ones in a row.
            prop_assert!(jitter == Jitter::Decorrelated || waits.iter().any(|wait| near(*wait, most)));
        }
    }
}
