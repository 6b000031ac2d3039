//! Gates: a scene's permission to dispatch, by rate and by concurrency.
//!
//! Not the queue in front of them. Shared by the workers of a process. Invariant: every admission to a call is given back exactly
//! once, and a rule that did not change keeps its state, so that an update never grants a fresh burst.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use dashmap::DashMap;
use governor::clock::Clock;
use governor::middleware::NoOpMiddleware;
use governor::nanos::Nanos;
use governor::state::{InMemoryState, NotKeyed};
use governor::{Quota, RateLimiter};

#[cfg(feature = "planted")]
use crate::planted::Bug;
use crate::scene::{Rate, Scene};

/// The gates of a process, by scene.
#[derive(Debug, Default)]
pub struct Gates {
    /// One gate per scene.
    by_scene: DashMap<Arc<str>, Arc<Gate>>,
    /// The mistake it makes.
    #[cfg(feature = "planted")]
    bug: Bug,
}

/// The gate of one scene.
#[derive(Debug)]
pub struct Gate {
    /// The rate and its limiter, if the scene has one.
    limiter: Option<(Rate, Arc<Limiter>)>,
    /// Calls in flight, of all workers; kept when the rules change.
    in_flight: Arc<AtomicU32>,
    /// Most calls in flight.
    concurrency: u32,
}

/// Why a task was not admitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Denied {
    /// The rate is used up; one more is admitted at this steady time.
    Rate {
        /// When to ask again.
        until: Duration,
    },
    /// As many calls are in flight as may be.
    Concurrency,
}

/// A limiter that is told the time.
type Limiter = RateLimiter<NotKeyed, InMemoryState, ToldClock, NoOpMiddleware<Nanos>>;

/// A clock that shows what the last caller said: the core has none of its own.
#[derive(Clone, Debug, Default)]
struct ToldClock {
    /// Nanoseconds of steady time; never goes back, although workers may tell it out of order.
    nanos: Arc<AtomicU64>,
}

// === impl Gates ===

impl Gates {
    /// Gates that make a mistake.
    #[cfg(feature = "planted")]
    pub fn planted(bug: Bug) -> Self {
        Self {
            bug,
            ..Self::default()
        }
    }

    /// The gate of `scene`, made or changed to follow its rules.
    pub fn gate(&self, scene: &Scene) -> Arc<Gate> {
        let mut gate = self
            .by_scene
            .entry(Arc::clone(&scene.name))
            .or_insert_with(|| Arc::new(Gate::new(scene)));
        #[cfg(feature = "planted")]
        if self.bug == Bug::FreshBurst && !gate.follows(scene) {
            *gate = Arc::new(Gate::new(scene));
        }
        if !gate.follows(scene) {
            *gate = Arc::new(gate.changed(scene));
        }
        Arc::clone(&gate)
    }
}

// === impl Gate ===

impl Gate {
    /// A gate with the rules of `scene`.
    fn new(scene: &Scene) -> Self {
        Self {
            limiter: scene
                .rate
                .map(|rate| (rate, Arc::new(limiter(rate, ToldClock::default())))),
            in_flight: Arc::default(),
            concurrency: scene.concurrency.get(),
        }
    }

    /// Whether the gate has the rules of `scene`.
    fn follows(&self, scene: &Scene) -> bool {
        self.concurrency == scene.concurrency.get() && self.rate() == scene.rate
    }

    /// A gate with the rules of `scene` that goes on where this one is.
    fn changed(&self, scene: &Scene) -> Self {
        let limiter = match (&self.limiter, scene.rate) {
            (_, None) => None,
            (Some((rate, limiter)), Some(new)) if *rate == new => {
                Some((*rate, Arc::clone(limiter)))
            }
            (before, Some(rate)) => {
                let limiter = limiter(rate, ToldClock::default());
                if let Some((_, before)) = before {
                    // A changed rate starts with nothing saved up.
                    limiter.clock().tell(before.clock().now());
                    let _ = limiter.check_n(rate.burst);
                }
                Some((rate, Arc::new(limiter)))
            }
        };
        Self {
            limiter,
            in_flight: Arc::clone(&self.in_flight),
            concurrency: scene.concurrency.get(),
        }
    }

    /// The rate this gate keeps.
    fn rate(&self) -> Option<Rate> {
        self.limiter.as_ref().map(|(rate, _)| *rate)
    }

    /// Admits one call, to be given back by [`Self::release`]. `now` is steady time since a fixed instant.
    pub fn admit_call(&self, now: Duration) -> Result<(), Denied> {
        self.in_flight
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |calls| {
                (calls < self.concurrency).then_some(calls + 1)
            })
            .map_err(|_| Denied::Concurrency)?;
        self.admit(now).inspect_err(|_| self.release())
    }

    /// Admits something that is over at once. `now` is steady time since a fixed instant.
    pub fn admit(&self, now: Duration) -> Result<(), Denied> {
        let Some((_, limiter)) = &self.limiter else {
            return Ok(());
        };
        limiter.clock().tell(nanos(now));
        limiter.check().map_err(|not_until| {
            let wait = not_until.wait_time_from(limiter.clock().now());
            Denied::Rate { until: now + wait }
        })
    }

    /// Gives a call back.
    pub fn release(&self) {
        self.in_flight.fetch_sub(1, Ordering::AcqRel);
    }

    /// The time between two admissions when the gate is the limit, if it has a rate.
    pub fn spacing(&self) -> Option<Duration> {
        self.rate().map(|rate| rate.per / rate.limit.get())
    }
}

/// Steady time as the limiter counts it; saturates after 584 years.
fn nanos(span: Duration) -> Nanos {
    Nanos::from(u64::try_from(span.as_nanos()).unwrap_or(u64::MAX))
}

/// A limiter for `rate`: the generic cell rate algorithm (ITU-T I.371), as `governor` builds it.
fn limiter(rate: Rate, clock: ToldClock) -> Limiter {
    // A span too short for the limit would round to zero: one per nanosecond is as good as none.
    let spacing = (rate.per / rate.limit.get()).max(Duration::from_nanos(1));
    let quota = Quota::with_period(spacing)
        .unwrap_or_else(|| unreachable!("spacing of at least a nanosecond"))
        .allow_burst(rate.burst);
    RateLimiter::direct_with_clock(quota, clock)
}

// === impl ToldClock ===

impl ToldClock {
    /// Moves the clock on to `now`, unless it is there already.
    fn tell(&self, now: Nanos) {
        self.nanos.fetch_max(now.as_u64(), Ordering::AcqRel);
    }
}

impl Clock for ToldClock {
    type Instant = Nanos;

    fn now(&self) -> Nanos {
        Nanos::from(self.nanos.load(Ordering::Acquire))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::num::NonZeroU32;

    use crate::backoff::{Backoff, Base, Jitter, Policy};
    use crate::scene::{Overrides, Target};

    const fn count(value: u32) -> NonZeroU32 {
        NonZeroU32::new(value).unwrap()
    }

    fn scene(rate: Option<(u32, u32)>, concurrency: u32) -> Scene {
        Scene {
            name: "s".into(),
            target: Target::Call,
            policy: Policy {
                backoff: Backoff::classic(),
                jitter: Jitter::None,
                max_attempts: count(3),
            },
            on: Overrides::default(),
            base: Base::Actual,
            deadline: None,
            rate: rate.map(|(limit, burst)| Rate {
                limit: count(limit),
                per: Duration::from_secs(1),
                burst: count(burst),
            }),
            concurrency: count(concurrency),
            callback: None,
        }
    }

    fn admitted(gate: &Gate, now: Duration) -> u32 {
        (0..100).map_while(|_| gate.admit(now).ok()).count() as u32
    }

    #[test]
    fn a_rate_admits_its_burst_and_then_its_pace() {
        let gate = Gates::default().gate(&scene(Some((10, 3)), 9));
        let start = Duration::from_secs(100);

        assert_eq!(admitted(&gate, start), 3);
        assert_eq!(
            gate.admit(start),
            Err(Denied::Rate {
                until: start + Duration::from_millis(100)
            })
        );
        assert_eq!(admitted(&gate, start + Duration::from_millis(99)), 0);
        assert_eq!(admitted(&gate, start + Duration::from_millis(100)), 1);
    }

    #[test]
    fn a_change_of_rules_grants_no_fresh_burst() {
        let gates = Gates::default();
        let start = Duration::from_secs(100);
        assert_eq!(admitted(&gates.gate(&scene(Some((10, 3)), 9)), start), 3);

        let other_concurrency = gates.gate(&scene(Some((10, 3)), 8));
        assert_eq!(admitted(&other_concurrency, start), 0);
        let other_rate = gates.gate(&scene(Some((10, 50)), 8));
        assert_eq!(admitted(&other_rate, start), 0);
        assert_eq!(admitted(&other_rate, start + Duration::from_millis(100)), 1);
    }

    #[test]
    fn calls_in_flight_are_counted_across_a_change_of_rules() {
        let gates = Gates::default();
        let before = gates.gate(&scene(None, 1));
        assert_eq!(before.admit_call(Duration::ZERO), Ok(()));

        let after = gates.gate(&scene(None, 2));
        assert_eq!(after.admit_call(Duration::ZERO), Ok(()));
        assert_eq!(after.admit_call(Duration::ZERO), Err(Denied::Concurrency));
        before.release();

        assert_eq!(after.admit_call(Duration::ZERO), Ok(()));
    }

    #[test]
    fn a_call_denied_by_the_rate_takes_no_place() {
        let gate = Gates::default().gate(&scene(Some((1, 1)), 1));
        assert_eq!(gate.admit_call(Duration::ZERO), Ok(()));
        gate.release();

        assert!(gate.admit_call(Duration::ZERO).is_err());

        assert_eq!(gate.admit_call(Duration::from_secs(1)), Ok(()));
    }
}
