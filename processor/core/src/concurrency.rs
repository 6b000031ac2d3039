//! The number of calls in flight that a target answers best to, found while it is called.
//!
//! Where calls take longer than they used to, they queue up at the target, and fewer at once are as fast; where they do not, and as many
//! are in flight as may be, there may be more. This is the gradient of Netflix's
//! [concurrency-limits](https://github.com/Netflix/concurrency-limits) (`Gradient2Limit`): the limit follows the ratio of the usual length
//! of a call to that of the last window, plus a few calls that may queue. What failed shrinks it as in its `AIMDLimit`. The usual length is
//! measured anew from time to time with half as many calls, like `VegasLimit` does, and more often at first: an average alone would follow
//! a target that is never without a queue, or was cold when it was called first, and the limit would creep up with it.
//!
//! Not the count of calls, which is the gate's. Pure: time is told, and is steady. Invariant: the limit stays within its bounds.

use std::num::NonZeroU32;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::breaker::Call;

/// Between which numbers of calls a limit moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// The fewest.
    pub least: NonZeroU32,
    /// The most.
    pub most: NonZeroU32,
}

/// A limit that follows its target, shared by the workers of a process.
#[derive(Debug)]
pub struct Limit {
    /// The bounds of the limit.
    bounds: Bounds,
    /// What changes.
    inner: Mutex<Inner>,
}

/// What changes.
#[derive(Clone, Copy, Debug)]
struct Inner {
    /// The limit, of which the whole part counts.
    limit: f64,
    /// How long a call takes that does not queue up, in seconds; none before the first window.
    usual: Option<f64>,
    /// The window that is being filled.
    window: Window,
    /// When it may end.
    ends: Duration,
    /// What it is for.
    phase: Phase,
    /// Windows that adapt before the measurement after the next one.
    spacing: u32,
}

/// What a window is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// To adapt the limit; so many more before the next measurement.
    Adapt(u32),
    /// Calls of before come back, all of them.
    Settle,
    /// To measure how long a call takes, with half of the calls.
    Measure,
}

/// Calls that came back.
#[derive(Clone, Copy, Debug, Default)]
struct Window {
    /// Calls that were answered.
    answered: u32,
    /// The seconds that these took.
    seconds: f64,
    /// Calls that failed.
    failed: u32,
    /// Most that were in flight.
    in_flight: u32,
}

/// Shortest window: long beside most calls, so that it sees all of them.
const WINDOW: Duration = Duration::from_secs(1);

/// Fewest calls of a window: fewer say nothing of the usual length.
const ENOUGH: u32 = 10;

/// The limit at first, within its bounds: a target that nobody knows is not flooded.
const FIRST: u32 = 20;

/// How far a window moves the limit towards what it says.
const SMOOTHING: f64 = 0.2;

/// The least part of the limit that a window's gradient leaves: one that is out of line does not take all.
const STEEPEST: f64 = 0.5;

/// Calls that may always queue up at a target; the root of the limit, where that is more, lets a large one grow as fast in proportion.
const QUEUE: f64 = 4.0;

/// The part of a window's calls that fail at which the limit shrinks: below it, it is the tasks that are at fault.
const FAILING: f64 = 0.1;

/// What a window of failed calls leaves of the limit.
const BACKOFF: f64 = 0.9;

/// Over how many windows the usual length follows.
const LONG: f64 = 600.0;

/// Windows that adapt before the first measurement; twice as many each time until the next one. What a target takes for its first calls
/// says little, and half of what it takes then may still be queue.
const SOON: u32 = 4;

/// Most windows that adapt between two measurements: two minutes as a rule, of which a measurement takes two seconds at half of the calls.
const MEASURE: u32 = 120;

// === impl Limit ===

impl Limit {
    /// A limit that knows nothing of its target yet.
    pub fn new(bounds: Bounds) -> Self {
        let first = f64::from(FIRST);
        Self {
            bounds,
            inner: Mutex::new(Inner {
                limit: bounds.clamp(first),
                usual: None,
                window: Window::default(),
                ends: Duration::ZERO,
                phase: Phase::Adapt(SOON),
                spacing: SOON * 2,
            }),
        }
    }

    /// The bounds of the limit.
    pub const fn bounds(&self) -> Bounds {
        self.bounds
    }

    /// How many calls may be in flight.
    pub fn calls(&self) -> u32 {
        let inner = self.lock();
        let part = match inner.phase {
            Phase::Adapt(_) => 1.0,
            Phase::Settle | Phase::Measure => 0.5,
        };
        self.bounds.clamp(inner.limit * part) as u32
    }

    /// A call has come back, one of so many in flight.
    pub fn returned(&self, now: Duration, in_flight: u32, call: Call) {
        let mut inner = self.lock();
        let window = &mut inner.window;
        if call.failed {
            window.failed += 1;
        } else {
            window.answered += 1;
            window.seconds += call.took.as_secs_f64();
        }
        window.in_flight = window.in_flight.max(in_flight);
        let calls = window.answered + window.failed;
        if now >= inner.ends && calls >= inner.enough() {
            inner.ends = now + WINDOW;
            let window = std::mem::take(&mut inner.window);
            inner.follow(window, self.bounds);
        }
    }

    /// What changes; no panic leaves it half-changed.
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Bounds ===

impl Bounds {
    /// The number within the bounds that is nearest.
    fn clamp(self, limit: f64) -> f64 {
        let most = f64::from(self.most.get());
        limit.clamp(f64::from(self.least.get()).min(most), most)
    }
}

// === impl Inner ===

impl Inner {
    /// Fewest calls of the window: where calls of before are to come back, as many as there may have been.
    fn enough(&self) -> u32 {
        match self.phase {
            Phase::Adapt(_) | Phase::Measure => ENOUGH,
            Phase::Settle => (self.limit as u32).max(ENOUGH),
        }
    }

    /// Follows what a window says.
    fn follow(&mut self, window: Window, bounds: Bounds) {
        let all = f64::from(window.answered + window.failed);
        if f64::from(window.failed) >= all * FAILING {
            self.limit = bounds.clamp(self.limit * BACKOFF);
            return;
        }
        let took = (window.seconds / f64::from(window.answered)).max(f64::MIN_POSITIVE);
        match self.phase {
            Phase::Settle => self.phase = Phase::Measure,
            Phase::Measure => {
                self.usual = Some(took);
                self.phase = Phase::Adapt(self.spacing);
                self.spacing = (self.spacing * 2).min(MEASURE);
            }
            Phase::Adapt(left) => {
                let usual = self.usual.map_or(took, |usual| average(usual, took));
                self.usual = Some(usual);
                // Where fewer are in flight than may be, nothing is known of more.
                if f64::from(window.in_flight) < self.limit / 2.0 {
                    return;
                }
                self.adapt(usual / took, bounds);
                self.phase = left.checked_sub(1).map_or(Phase::Settle, Phase::Adapt);
            }
        }
    }

    /// Follows the ratio of the usual length of a call to that of the last ones.
    fn adapt(&mut self, gradient: f64, bounds: Bounds) {
        let gradient = gradient.clamp(STEEPEST, 1.0);
        let queue = self.limit.sqrt().max(QUEUE);
        let target = self.limit * gradient + queue;
        let moved = self.limit * (1.0 - SMOOTHING) + target * SMOOTHING;
        self.limit = bounds.clamp(moved);
    }
}

/// The average that goes on with one more window; one that is shorter by half is believed sooner.
fn average(usual: f64, took: f64) -> f64 {
    let next = usual + (took - usual) / LONG;
    if next > 2.0 * took { next * 0.9 } else { next }
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::collections::BinaryHeap;

    use proptest::prelude::*;

    const fn bounds(least: u32, most: u32) -> Bounds {
        Bounds {
            least: NonZeroU32::new(least).unwrap(),
            most: NonZeroU32::new(most).unwrap(),
        }
    }

    /// A target that works on so many calls at once, each taking this time, and lets others queue.
    struct Target {
        capacity: u32,
        takes: Duration,
        /// Calls beyond these in flight fail at once.
        most: u32,
    }

    /// Calls it as often as the limit allows from then on for so long, with at most `demand` in flight; gives the mean limit of the last third.
    fn run(limit: &Limit, target: &Target, demand: u32, (from, span): (Duration, Duration)) -> f64 {
        let (mut now, mut sum, mut count) = (from, 0.0, 0.0);
        // When each worker of the target is free.
        let mut free: BinaryHeap<std::cmp::Reverse<Duration>> = (0..target.capacity)
            .map(|_| std::cmp::Reverse(now))
            .collect();
        let mut calls: BinaryHeap<std::cmp::Reverse<(Duration, Duration, bool)>> =
            BinaryHeap::new();
        while now < from + span {
            while (calls.len() as u32) < limit.calls().min(demand) {
                if calls.len() as u32 >= target.most {
                    let failed = (now + target.takes, now, true);
                    calls.push(std::cmp::Reverse(failed));
                    continue;
                }
                let std::cmp::Reverse(start) = free.pop().unwrap();
                let end = start.max(now) + target.takes;
                free.push(std::cmp::Reverse(end));
                calls.push(std::cmp::Reverse((end, now, false)));
            }
            let in_flight = calls.len() as u32;
            let std::cmp::Reverse((end, start, failed)) = calls.pop().unwrap();
            now = end;
            let took = end.saturating_sub(start);
            limit.returned(now, in_flight, Call { failed, took });
            if now > from + span * 2 / 3 {
                sum += f64::from(limit.calls());
                count += 1.0;
            }
        }
        sum / count
    }

    #[test]
    fn it_grows_where_calls_take_no_longer() {
        let limit = Limit::new(bounds(1, 64));
        let target = Target {
            capacity: 1_000,
            takes: Duration::from_millis(200),
            most: u32::MAX,
        };

        assert_eq!(limit.calls(), 20);
        let mean = run(
            &limit,
            &target,
            u32::MAX,
            (Duration::ZERO, Duration::from_mins(10)),
        );

        // But for the measurements, at half of it.
        assert!(mean > 62.0, "{mean}");
    }

    #[test]
    fn it_does_not_grow_where_nobody_calls_more() {
        let limit = Limit::new(bounds(1, 64));
        let target = Target {
            capacity: 1_000,
            takes: Duration::from_millis(50),
            most: u32::MAX,
        };

        run(
            &limit,
            &target,
            5,
            (Duration::ZERO, Duration::from_mins(10)),
        );

        assert_eq!(limit.calls(), 20);
    }

    #[test]
    fn it_shrinks_where_calls_take_longer_and_recovers() {
        let limit = Limit::new(bounds(2, 64));
        let at = |from, span| (Duration::from_secs(from), Duration::from_secs(span));
        let target = |takes| Target {
            capacity: 1_000,
            takes: Duration::from_millis(takes),
            most: u32::MAX,
        };
        run(&limit, &target(50), u32::MAX, at(0, 180));
        let before = limit.calls();

        let slow = run(&limit, &target(500), u32::MAX, at(180, 30));
        let again = run(&limit, &target(50), u32::MAX, at(210, 180));

        assert_eq!(before, 64);
        assert!(slow < 32.0, "{slow}");
        assert!(again > 55.0, "{again}");
    }

    #[test]
    fn it_shrinks_where_calls_fail_and_not_for_single_ones() {
        let limit = Limit::new(bounds(3, 64));
        let fail = |every: usize, from: u64| {
            for second in from..from + 60 {
                for number in 0..20 {
                    let call = Call {
                        failed: number % every == 0,
                        took: Duration::from_millis(9),
                    };
                    limit.returned(Duration::from_secs(second), 64, call);
                }
            }
            limit.calls()
        };

        assert_eq!(fail(20, 0), 64);
        assert_eq!(fail(5, 60), 3);
    }

    #[test]
    fn it_finds_the_capacity_of_a_target_and_stays_there() {
        for capacity in [1, 5, 40] {
            let limit = Limit::new(bounds(1, 1_000));
            let target = Target {
                capacity,
                takes: Duration::from_millis(200),
                most: u32::MAX,
            };

            let mean = run(
                &limit,
                &target,
                u32::MAX,
                (Duration::ZERO, Duration::from_hours(1)),
            );

            let most = f64::from(capacity) + f64::from(capacity).sqrt().max(QUEUE) + 3.0;
            eprintln!("capacity {capacity}: {mean:.1} in flight on average after 40 to 60 minutes");
            assert!(
                (f64::from(capacity) * 0.9..most * 1.1).contains(&mean),
                "{mean}"
            );
        }
    }

    #[test]
    fn a_target_that_is_cold_at_first_is_soon_known_better() {
        let limit = Limit::new(bounds(1, 64));
        let target = |takes| Target {
            capacity: 5,
            takes: Duration::from_millis(takes),
            most: u32::MAX,
        };
        let second = Duration::from_secs(1);

        run(&limit, &target(250), u32::MAX, (Duration::ZERO, second));
        let mean = run(&limit, &target(50), u32::MAX, (second, second * 60));

        assert!((4.5..14.0).contains(&mean), "{mean}");
    }

    #[test]
    fn it_stays_below_what_a_target_refuses() {
        let limit = Limit::new(bounds(1, 1_000));
        let target = Target {
            capacity: 1_000,
            takes: Duration::from_millis(200),
            most: 50,
        };

        let mean = run(
            &limit,
            &target,
            u32::MAX,
            (Duration::ZERO, Duration::from_mins(30)),
        );

        assert!((35.0..60.0).contains(&mean), "{mean}");
    }

    proptest! {
        #[test]
        fn it_stays_within_its_bounds(
            least in 1_u32..50,
            more in 0_u32..200,
            calls in prop::collection::vec((0_u64..2_000, 0_u64..20_000, prop::bool::ANY, 0_u32..300), 0..800),
        ) {
            let limit = Limit::new(bounds(least, least + more));
            let mut now = Duration::ZERO;

            for (passed, took, failed, in_flight) in calls {
                now += Duration::from_millis(passed);
                let took = Duration::from_millis(took);
                limit.returned(now, in_flight, Call { failed, took });
                prop_assert!((least..=least + more).contains(&limit.calls()));
            }
        }
    }

    proptest! {
        // Each of them is twenty minutes of calls.
        #![proptest_config(ProptestConfig::with_cases(8))]

        #[test]
        fn it_converges_on_any_capacity_from_any_bounds(capacity in 1_u32..80, takes in 100_u64..400, least in 1_u32..4) {
            let limit = Limit::new(bounds(least, 400));
            let target = Target { capacity, takes: Duration::from_millis(takes), most: u32::MAX };

            let mean = run(&limit, &target, u32::MAX, (Duration::ZERO, Duration::from_mins(20)));

            let most = f64::from(capacity) + f64::from(capacity).sqrt().max(QUEUE) + 2.0;
            prop_assert!((f64::from(capacity) * 0.85..most * 1.25).contains(&mean), "{} for {}", mean, capacity);
        }
    }
}
