//! Ramps: tasks that were held are let go slowly at first, and faster as long as that goes well.
//!
//! A ramp is that of the whole group. Each worker lets its part of the pace through, as many of it as it owns of the shards, and decides by
//! its own calls:
//! - What takes it up: at least 5 calls of a step came back, 3 s after its first start or later, and no more than `failure_rate` of them failed.
//!   Behind the last step that is named, each one is twice as fast as the one before, and from [`MOST`] on there is no limit any more.
//! - What makes it fall back: of at least 5 calls of a step, more than `failure_rate` failed. Then all is held again, until people
//!   say something else.
//! - What it never does: wait for its time. A step without calls is not over.
//!
//! Invariant: no span of time sees more than the pace of the steps that were reached in it, and two seconds of it at once.

use std::num::NonZeroU32;
use std::time::Duration;

/// How tasks are let go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ramp {
    /// The paces of the first steps, in tasks a second of the whole group.
    steps: Vec<NonZeroU32>,
    /// How many of a thousand calls of a step may fail.
    failures: u32,
}

/// How far a ramp is in a shard: what is written down of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// How many steps are over.
    pub step: u32,
    /// Whether it fell back, and all is held again.
    pub fell: bool,
}

/// A ramp as a worker climbs it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Climb {
    /// How far it is.
    progress: Progress,
    /// The calls of this step that have come back.
    calls: u32,
    /// Those of them that failed.
    failed: u32,
    /// When the first one of this step was started, in steady time.
    began: Option<Duration>,
    /// What may start now, in millionths of a task.
    credit: u64,
    /// When that was so, in steady time.
    counted: Duration,
}

/// The part of a ramp that a worker has.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Part {
    /// How many shards are its own.
    pub(crate) owned: u32,
    /// How many there are.
    pub(crate) all: NonZeroU32,
}

/// What has become of a ramp.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Turn {
    /// It goes on as it is.
    None,
    /// The next step has begun.
    Up,
    /// It fell back, after so many calls, of which so many failed.
    Fell {
        /// The calls.
        calls: u32,
        /// The failed ones.
        failed: u32,
    },
}

/// The paces of the first steps where none are named.
pub const STEPS: [u32; 4] = [1, 5, 20, 100];

/// The part of calls that may fail where none is named: a target that is just back may fail a few.
pub const FAILURE_RATE: f64 = 0.2;

/// Most steps that may be named.
pub const MAX_STEPS: usize = 16;

/// The pace from which on there is no limit: faster than a group calls one target.
pub const MOST: u32 = 10_000;

/// Calls of a step before it is decided by them: fewer say little, and at one a second more take long.
const CALLS: u32 = 5;

/// Shortest time of a step: a target that fails under load does not do so with its first calls.
const LEAST: Duration = Duration::from_secs(3);

/// A task, in the unit of [`Climb::credit`].
const ONE: u64 = 1_000_000;

/// How much may be saved up, in seconds of the pace.
const SAVED: u64 = 2;

// === impl Ramp ===

impl Ramp {
    /// A ramp with these steps, if they rise and the part is one.
    pub fn try_new(steps: &[u32], failure_rate: f64) -> Option<Self> {
        let rising = steps.windows(2).all(|pair| pair[0] < pair[1]);
        let steps = steps.iter().map(|step| NonZeroU32::new(*step));
        let steps: Vec<NonZeroU32> = steps.collect::<Option<_>>()?;
        let is_right =
            rising && (1..=MAX_STEPS).contains(&steps.len()) && (0.0..1.0).contains(&failure_rate);
        is_right.then(|| Self {
            steps,
            failures: (failure_rate * 1_000.0).round() as u32,
        })
    }

    /// The paces of the steps that are named.
    pub fn steps(&self) -> impl Iterator<Item = u32> {
        self.steps.iter().map(|step| step.get())
    }

    /// The part of the calls of a step that may fail.
    pub fn failure_rate(&self) -> f64 {
        f64::from(self.failures) / 1_000.0
    }

    /// The pace of a step, in tasks a second of the whole group; none if there is no limit any more.
    pub fn pace(&self, step: u32) -> Option<u32> {
        let last = self.steps.len() - 1;
        let at = usize::try_from(step).unwrap_or(usize::MAX);
        let pace = if let Some(pace) = self.steps.get(at) {
            pace.get()
        } else {
            let doublings = u32::try_from(at - last).unwrap_or(u32::MAX);
            let factor = 2_u32.checked_pow(doublings).unwrap_or(u32::MAX);
            self.steps[last].get().saturating_mul(factor)
        };
        (pace < MOST).then_some(pace)
    }
}

// === impl Climb ===

impl Climb {
    /// A ramp that begins there.
    pub(crate) fn from(progress: Progress) -> Self {
        Self {
            progress,
            ..Self::default()
        }
    }

    /// How far it is.
    pub(crate) const fn progress(&self) -> Progress {
        self.progress
    }

    /// Owners before have got as far as that: it goes on no faster than they, and does not go on if one fell back.
    pub(crate) fn meet(&mut self, known: Progress) {
        self.progress.fell |= known.fell;
        self.progress.step = self.progress.step.min(known.step);
    }

    /// Whether nothing is held any more.
    pub(crate) fn is_over(&self, ramp: &Ramp) -> bool {
        !self.progress.fell && ramp.pace(self.progress.step).is_none()
    }

    /// Whether a task may start now.
    pub(crate) fn may_start(&mut self, now: Duration, ramp: &Ramp, part: Part) -> bool {
        if self.progress.fell {
            return false;
        }
        let Some(pace) = ramp.pace(self.progress.step) else {
            return true;
        };
        // Millionths of a task a second, which are tasks in a microsecond.
        let each = u64::from(pace) * u64::from(part.owned);
        let all = u64::from(part.all.get());
        let micros = now.saturating_sub(self.counted).as_micros();
        let micros = u64::try_from(micros).unwrap_or(u64::MAX).min(3_600 * ONE);
        let most = (each * SAVED * ONE / all).max(ONE);
        self.credit = (self.credit + micros * each / all).min(most);
        self.counted = now;
        self.credit >= ONE
    }

    /// The time between two tasks of this worker, if it has a part and there is a limit.
    pub(crate) fn spacing(&self, ramp: &Ramp, part: Part) -> Option<Duration> {
        let pace = ramp.pace(self.progress.step)?;
        let all = u64::from(part.all.get()) * ONE;
        let micros = all.checked_div(u64::from(pace) * u64::from(part.owned))?;
        Some(Duration::from_micros(micros))
    }

    /// A task starts.
    pub(crate) fn start(&mut self, now: Duration) {
        self.credit = self.credit.saturating_sub(ONE);
        self.began.get_or_insert(now);
    }

    /// A call has come back.
    pub(crate) fn returned(&mut self, now: Duration, failed: bool, ramp: &Ramp) -> Turn {
        if self.progress.fell || self.is_over(ramp) {
            return Turn::None;
        }
        self.calls = self.calls.saturating_add(1);
        self.failed = self.failed.saturating_add(u32::from(failed));
        if self.calls < CALLS {
            return Turn::None;
        }
        if u64::from(self.failed) * 1_000 > u64::from(self.calls) * u64::from(ramp.failures) {
            self.progress.fell = true;
            return Turn::Fell {
                calls: self.calls,
                failed: self.failed,
            };
        }
        let began = self.began.unwrap_or(now);
        if now.saturating_sub(began) < LEAST {
            return Turn::None;
        }
        self.progress.step += 1;
        (self.calls, self.failed, self.began) = (0, 0, None);
        Turn::Up
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A worker that has a fourth of the shards.
    const FOURTH: Part = Part {
        owned: 3,
        all: NonZeroU32::new(12).unwrap(),
    };

    /// All of them.
    const ALL: Part = Part {
        owned: 12,
        all: NonZeroU32::new(12).unwrap(),
    };

    fn ramp() -> Ramp {
        Ramp::try_new(&STEPS, FAILURE_RATE).unwrap()
    }

    /// How many tasks start in so many seconds, asked every millisecond, and come back at once.
    fn climb(
        climb: &mut Climb,
        part: Part,
        from: u64,
        seconds: u64,
        fails: impl Fn(u32) -> bool,
    ) -> u32 {
        let mut started = 0;
        for millis in from * 1_000..(from + seconds) * 1_000 {
            let now = Duration::from_millis(millis);
            while climb.may_start(now, &ramp(), part) && started < 1_000_000 {
                climb.start(now);
                started += 1;
                climb.returned(now, fails(started), &ramp());
                if climb.is_over(&ramp()) {
                    return started;
                }
            }
        }
        started
    }

    #[test]
    fn paces_double_behind_the_last_step_until_there_is_no_limit() {
        let paces = (0..).map_while(|step| ramp().pace(step));

        let expected = [1, 5, 20, 100, 200, 400, 800, 1_600, 3_200, 6_400];
        assert_eq!(paces.collect::<Vec<_>>(), expected);
        assert_eq!(ramp().pace(u32::MAX), None);
    }

    #[test]
    fn what_is_no_ramp_is_refused() {
        for steps in [&[][..], &[0], &[5, 5], &[5, 1], &[1; MAX_STEPS + 1]] {
            assert_eq!(Ramp::try_new(steps, 0.5), None, "{steps:?}");
        }
        for rate in [-0.1, 1.0, f64::NAN] {
            assert_eq!(Ramp::try_new(&[1], rate), None, "{rate}");
        }
    }

    #[test]
    fn the_first_step_lets_its_pace_through_and_each_worker_its_part_of_it() {
        let fails = |_| false;
        let mut all = Climb::default();
        let mut fourth = Climb::default();

        // Five calls at one a second, the first one after a second.
        assert_eq!(climb(&mut all, ALL, 0, 5, fails), 4);
        assert_eq!(all.progress().step, 0);
        assert_eq!(climb(&mut fourth, FOURTH, 0, 20, fails), 4);
        assert_eq!(fourth.progress().step, 0);
    }

    #[test]
    fn a_target_that_does_well_has_all_back_soon() {
        let mut well = Climb::default();

        let started = climb(&mut well, ALL, 0, 60, |_| false);

        assert!(well.is_over(&ramp()), "{well:?} after {started}");
    }

    #[test]
    fn too_many_failures_hold_all_again_for_good() {
        let mut down = Climb::default();

        let started = climb(&mut down, ALL, 0, 600, |call| call > 30);

        assert!(down.progress().fell, "{down:?}");
        assert!((31..100).contains(&started), "{started}");
        assert!(!down.may_start(Duration::from_hours(1), &ramp(), ALL));
    }

    #[test]
    fn a_ramp_goes_on_where_others_got_to() {
        let mut next = Climb::from(Progress {
            step: 3,
            fell: false,
        });
        next.meet(Progress {
            step: 1,
            fell: false,
        });
        assert_eq!(next.progress().step, 1);
        next.meet(Progress {
            step: 9,
            fell: true,
        });

        assert!(!next.may_start(Duration::from_hours(1), &ramp(), ALL));
    }
}
