//! The breaker of a target: whether the target may be called, judged by how its last calls went.
//!
//! # What trips it
//! A closed breaker counts the calls of a rolling [`Rule::window`]. It opens when
//! - at least [`Rule::min_calls`] calls are in the window, and [`Rule::failure_rate`] of them failed;
//! - at least that many are, and [`Rule::slow_rate`] of them took longer than [`Rule::slow_call`];
//! - the last [`Rule::min_calls`] calls all failed, or all were slow, however many went well before;
//! - a probe fails.
//!
//! # What resets it
//! After [`Rule::open`], and twice as long each time that a probe has failed, up to [`LONGEST_OPEN`] or, if that is
//! longer, [`Rule::open`], the breaker is half-open: [`Rule::probes`] calls are let through. When as many have succeeded, it closes, and the number of calls in flight grows from a tenth to all of
//! them within [`Rule::slow_start`].
//!
//! # What counts
//! Timeouts, connections that fail, and every other failure that another attempt may mend count as failed. So does a target that asks for
//! rest without saying for how long, since rest is what an open breaker gives. Where it says for how long, that is a [cooldown](crate::cooldown)
//! and does not count: neither is the target down, nor is it well. A refusal for good is an answer: it counts as a success.
//!
//! # What people may want
//! [`Breaker::force`] opens it until a time, after which it probes; closes it until a time, before which nothing opens it; or lets it begin
//! anew. What is taken back before its time goes on as if that were there.
//!
//! # What it never does
//! A breaker keeps no task: what waits, waits elsewhere. It looks at no clock: time is told, and is steady.
//!
//! # Whose ideas
//!
//! Calls in a row are what [gobreaker](https://pkg.go.dev/github.com/sony/gobreaker/v2), Polly's first breaker and Envoy go by, which open
//! after 5 or so; here it takes more, since calls that were in flight together fail together.
//! The window in buckets with a least number of calls, the slow calls and the number of probes are those of
//! [resilience4j](https://resilience4j.readme.io/docs/circuitbreaker); [Failsafe](https://failsafe.dev/circuit-breaker/) takes ten buckets,
//! too. The longer time after each probe that failed is that of
//! [Envoy's outlier detection](https://www.envoyproxy.io/docs/envoy/latest/intro/arch_overview/upstream/outlier), and the growth afterwards,
//! linear from a tenth, that of [its slow start](https://www.envoyproxy.io/docs/envoy/latest/intro/arch_overview/upstream/load_balancing/slow_start).
//!
//! Invariants: no more than [`Rule::probes`] calls are in flight of a half-open breaker; only calls that were started since its last switch
//! count; its memory is fixed.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::brake::{End, Ends};
use crate::forced::Force;
use crate::hold::Revision;
use crate::outcome::Outcome;
use crate::selector;
use crate::tier::{HORIZON, Ladder};
use crate::wall::Watch;

/// Which breaker: scenes that call the same target by the same rule have one in common.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    /// Whom it is about.
    pub target: Subject,
    /// The rule.
    pub rule: Rule,
}

/// Whom a breaker is about: a target, such as `https://shop.example:443`, or, where it is that of a wall, a target as one scene sees it. Nothing
/// that could be secret.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Subject {
    /// The target.
    target: Arc<str>,
    /// The host of the target: see [`Self::host`].
    host: Option<Arc<str>>,
    /// What it is called in logs, metrics and alerts: the target, and of a wall the scene.
    text: Arc<str>,
    /// Whether it is the target as one scene sees it.
    is_wall: bool,
    /// The hash of that: each call looks breakers up by it, and the texts are long.
    hash: u64,
}

/// When a breaker opens, and how it closes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Rule {
    /// The part of the calls that fail at which it opens.
    pub failure_rate: Fraction,
    /// A call that takes longer is slow.
    pub slow_call: Option<Duration>,
    /// The part of the calls that are slow at which it opens.
    pub slow_rate: Fraction,
    /// How long a call counts.
    pub window: Duration,
    /// Calls within the window below which it stays closed. If so many in a row fail within it, or are slow, it opens.
    pub min_calls: u32,
    /// How long it is open at first.
    pub open: Duration,
    /// Calls at once that are let through to see whether it may close, and how many of them have to succeed.
    pub probes: u32,
    /// How long it takes after that until as many calls may be in flight as before.
    pub slow_start: Duration,
}

/// A part of a whole, in millionths.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fraction(u32);

/// The breaker of one target, shared by the workers of a process.
#[derive(Debug)]
pub struct Breaker {
    /// The rule.
    rule: Rule,
    /// What changes.
    inner: Mutex<Inner>,
}

/// Whether a target may be called; the worse, the greater.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum State {
    /// The target may be called.
    Closed,
    /// A few calls find out whether the target may be called.
    HalfOpen,
    /// The target may not be called.
    Open,
}

/// A change of state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StateChange {
    /// The state before.
    pub from: State,
    /// The state from now on.
    pub to: State,
    /// Why the state has changed.
    pub why: TripReason,
    /// The calls that say so.
    pub calls: Count,
    /// The steady time at which the target was last well.
    pub since: Duration,
    /// The steady time at which it will be half-open, if it is open.
    pub until: Option<Duration>,
    /// Whether it was people who had opened it, and nobody has been told that the target is down.
    pub by_people: bool,
}

/// Why a breaker changes its state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TripReason {
    /// Too many of the window's calls failed.
    FailureRate,
    /// Too many of the window's calls were slow.
    SlowRate,
    /// The last calls all failed.
    FailedInARow,
    /// The last calls all were slow.
    SlowInARow,
    /// The last calls all were refused, which is not usual.
    RefusedInARow,
    /// Too many of the last tasks died, which is not usual: see [`crate::brake`].
    Flood,
    /// The breaker was open for long enough.
    TimeToProbe,
    /// What probes came to.
    Probes,
    /// People want it.
    Forced,
}

/// What people want of a breaker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Order {
    /// Where it is said: the same order counts once.
    pub revision: Revision,
    /// What is wanted.
    pub force: Force,
    /// Until this steady time.
    pub until: Duration,
}

/// How many calls there were, and of which kinds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// All calls.
    pub calls: u32,
    /// Calls that failed.
    pub failed: u32,
    /// Calls that were slow.
    pub slow: u32,
}

/// What a breaker says to one more call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Whether it may be made.
    pub permit: Result<Permit, Rejected>,
    /// What has changed by being asked.
    pub switch: Option<StateChange>,
}

/// The permit for one call, to be returned by [`Breaker::returned`] or [`Breaker::unused`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Permit {
    /// The part of the calls that may usually be in flight.
    pub ramp: Fraction,
    /// The number of state changes before the permit was given.
    era: u64,
}

/// Why a call may not be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rejected {
    /// The steady time at which to ask again, and not before.
    pub until: Duration,
    /// How long the target has not been well.
    pub down_for: Duration,
}

/// How a call went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Call {
    /// Whether it failed.
    pub failed: bool,
    /// How long it took.
    pub took: Duration,
}

/// What changes.
#[derive(Debug)]
struct Inner {
    /// The latest time that anyone told: workers may tell it out of order.
    latest: Duration,
    /// How often the state has changed.
    era: u64,
    /// What the breaker does.
    phase: Phase,
    /// The calls that count.
    window: Window,
    /// The last of them.
    streak: Streak,
    /// Where it is that of a wall, what is usual.
    watch: Watch,
    /// And how the tasks of its scene end.
    ends: Ends,
    /// Why it is not closed, if it is that of a wall.
    wall: Wall,
    /// What people want of it, or wanted last.
    order: Option<Order>,
    /// The version of what people want that this is of.
    version: u64,
    /// Whether it is not closed since people want that, and not for what calls say.
    by_people: bool,
}

/// Why the breaker of a wall is not closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wall {
    /// Refusals in a row.
    Refusals,
    /// Tasks that died.
    Flood {
        /// Probes that have succeeded since.
        let_in: u32,
    },
}

/// What a call says of a target that may be behind a wall.
#[derive(Clone, Copy, Debug)]
pub struct Said<'a> {
    /// How the target answered.
    pub outcome: &'a Outcome,
    /// The task.
    pub task: &'a Arc<str>,
    /// Whether the task dies of it.
    pub dies: bool,
}

/// What follows from that.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Heard {
    /// What has changed.
    pub switch: Option<StateChange>,
    /// Whether what the target says is not about the task: another attempt may mend it.
    pub is_spared: bool,
    /// Some of the tasks that died, if that is what has changed something.
    pub samples: Vec<Arc<str>>,
}

/// What a breaker does.
#[derive(Clone, Copy, Debug)]
enum Phase {
    /// The breaker counts calls.
    Closed {
        /// When it closed, if it has been open.
        since: Option<Duration>,
    },
    /// The breaker waits.
    Open {
        /// When the target was last well.
        since: Duration,
        /// When it ends.
        until: Duration,
        /// How long it takes.
        span: Duration,
    },
    /// The breaker probes.
    HalfOpen {
        /// When the target was last well.
        since: Duration,
        /// How long it was open.
        span: Duration,
        /// Probes in flight.
        in_flight: u32,
        /// Probes that succeeded.
        succeeded: u32,
        /// Probes that succeeded and were slow.
        slow: u32,
    },
}

/// Calls of the last while, in buckets.
#[derive(Clone, Copy, Debug, Default)]
struct Window {
    /// The calls, by the number of the time they ended in.
    buckets: [Count; BUCKETS],
    /// The number of the time of the last call.
    last: u128,
}

/// The last calls, as far as all of them went the same way.
#[derive(Clone, Copy, Debug, Default)]
struct Streak {
    /// How many failed.
    failed: u32,
    /// How many were slow.
    slow: u32,
}

/// Buckets of a window: as old calls leave it by the bucket, it is between nine tenths of its length and all of it long.
const BUCKETS: usize = 10;

/// Longest time for which a breaker is open because probes fail, unless its rule asks for more: a target that is back is found within it.
pub const LONGEST_OPEN: Duration = Duration::from_mins(1);

/// The part of the calls that may be in flight when a breaker has just closed.
const FIRST: u32 = Fraction::WHOLE.0 / 10;

/// When to ask a breaker again whose probes are all in flight. Whole multiples of it, so that all who ask meanwhile come at the same time.
pub const PROBING: Duration = Duration::from_millis(100);

/// When to ask a breaker again at the latest that people keep open. Whole multiples of it, as for [`PROBING`].
const FORCED: Duration = Duration::from_secs(20);

/// Shortest and longest wait of a task whose target is not well.
const WAITS: (Duration, Duration) = (Duration::from_secs(5), Duration::from_mins(1));

// === impl Rule ===

impl Rule {
    /// The rule of a breaker whose scene names nothing.
    pub const DEFAULT: Self = Self {
        failure_rate: Fraction(500_000),
        slow_call: None,
        // A target that is slow still does its work.
        slow_rate: Fraction(800_000),
        window: Duration::from_secs(30),
        // One or two failures of a quiet scene say little.
        min_calls: 20,
        open: Duration::from_secs(10),
        probes: 5,
        slow_start: Duration::from_secs(30),
    };
}

// === impl Fraction ===

impl Fraction {
    /// All of it.
    pub const WHOLE: Self = Self(1_000_000);

    /// Half of it.
    pub const HALF: Self = Self(500_000);

    /// This part, if there is such a one: more than nothing, and not more than all.
    pub fn try_new(part: f64) -> Option<Self> {
        let whole = f64::from(Self::WHOLE.0);
        // The comparison refuses what is not a number, too.
        (part > 0.0 && part <= 1.0).then(|| Self(((part * whole).round() as u32).max(1)))
    }

    /// The part as a number over 0, at most 1.
    pub fn part(self) -> f64 {
        f64::from(self.0) / f64::from(Self::WHOLE.0)
    }

    /// So much of `count`, rounded up, and at least one.
    pub fn of(self, count: u32) -> u32 {
        let part = (u64::from(count) * u64::from(self.0)).div_ceil(u64::from(Self::WHOLE.0));
        (part as u32).max(1)
    }

    /// Whether `some` of `all` are this part, or more.
    fn is_reached(self, some: u32, all: u32) -> bool {
        u64::from(some) * u64::from(Self::WHOLE.0) >= u64::from(all) * u64::from(self.0)
    }
}

// === impl Key ===

impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        // A target is called by one rule, or a few.
        self.target.hash(state);
    }
}

// === impl Subject ===

impl Subject {
    /// A target as `scene` sees it, be it for its tasks or for its callbacks.
    pub fn wall(target: &str, scene: &str) -> Self {
        let text = format!("{target} (scene {scene})").into();
        Self::new(target.into(), text, true)
    }

    /// Whom such texts are about.
    fn new(target: Arc<str>, text: Arc<str>, is_wall: bool) -> Self {
        let host = selector::host_of(&target);
        Self {
            hash: xxh3_64_with_seed(text.as_bytes(), is_wall.into()),
            host: host.map(|host| host.to_ascii_lowercase().into()),
            target,
            text,
            is_wall,
        }
    }

    /// The target.
    pub fn target(&self) -> &str {
        &self.target
    }

    /// The host of the target in lower case, without scheme and port: an address of IPv6 stands in brackets. None of what has no scheme.
    pub const fn host(&self) -> Option<&Arc<str>> {
        self.host.as_ref()
    }

    /// What it is called in logs, metrics and alerts.
    pub const fn text(&self) -> &Arc<str> {
        &self.text
    }

    /// Whether it is the target as one scene sees it.
    pub const fn is_wall(&self) -> bool {
        self.is_wall
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.text)
    }
}

impl From<&str> for Subject {
    fn from(target: &str) -> Self {
        let target: Arc<str> = target.into();
        Self::new(Arc::clone(&target), target, false)
    }
}

impl Hash for Subject {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.hash);
    }
}

// === impl State ===

impl State {
    /// The word for it in logs and metrics.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::HalfOpen => "half-open",
            Self::Open => "open",
        }
    }

    /// The state that `word` names, if it names one.
    pub fn from_word(word: &str) -> Option<Self> {
        let all = [Self::Closed, Self::HalfOpen, Self::Open];
        all.into_iter().find(|state| state.word() == word)
    }
}

// === impl TripReason ===

impl TripReason {
    /// The word for it in logs and alerts.
    pub const fn word(self) -> &'static str {
        match self {
            Self::FailureRate => "failure-rate",
            Self::SlowRate => "slow-rate",
            Self::FailedInARow => "failed-in-a-row",
            Self::SlowInARow => "slow-in-a-row",
            Self::RefusedInARow => "refused-in-a-row",
            Self::Flood => "flood",
            Self::TimeToProbe => "time-to-probe",
            Self::Probes => "probes",
            Self::Forced => "forced",
        }
    }
}

// === impl Call ===

impl Call {
    /// A call that was answered so, and took so long.
    pub const fn of(outcome: &Outcome, took: Duration) -> Self {
        let failed = match outcome {
            Outcome::Retryable(_) | Outcome::Timeout(_) | Outcome::Throttled { .. } => true,
            Outcome::Success
            | Outcome::Pending { .. }
            | Outcome::Permanent(_)
            | Outcome::Refused(_) => false,
        };
        Self { failed, took }
    }
}

// === impl Breaker ===

impl Breaker {
    /// A closed breaker.
    pub fn new(rule: Rule) -> Self {
        Self {
            rule,
            inner: Mutex::new(Inner {
                latest: Duration::ZERO,
                era: 0,
                phase: Phase::Closed { since: None },
                window: Window::default(),
                streak: Streak::default(),
                watch: Watch::default(),
                ends: Ends::default(),
                wall: Wall::Refusals,
                order: None,
                version: 0,
                by_people: false,
            }),
        }
    }

    /// The state it is in.
    pub fn state(&self) -> State {
        self.lock().phase.state()
    }

    /// Whether it is not closed since people want that, and not for what calls say.
    pub fn is_by_people(&self) -> bool {
        self.lock().by_people
    }

    /// Whether it is that of a wall, and not closed since tasks died in numbers.
    pub fn is_flood(&self) -> bool {
        matches!(self.lock().wall, Wall::Flood { .. })
    }

    /// Whether one more call may be made.
    pub fn ask(&self, now: Duration) -> Answer {
        let mut inner = self.lock();
        let now = inner.tell(now);
        let switch = match inner.phase {
            Phase::Open { since, until, span } if now >= until => {
                let probing = Phase::HalfOpen {
                    since,
                    span,
                    in_flight: 0,
                    succeeded: 0,
                    slow: 0,
                };
                Some(inner.switch(probing, since, (TripReason::TimeToProbe, Count::default())))
            }
            Phase::Open { .. } | Phase::HalfOpen { .. } | Phase::Closed { .. } => None,
        };
        let era = inner.era;
        let forced = inner.is_forced(now, Force::Open);
        let permit = match &mut inner.phase {
            Phase::Closed { since } => Ok(self.ramp(*since, now)),
            Phase::HalfOpen {
                in_flight, since, ..
            } if *in_flight >= self.rule.probes => Err(Rejected {
                until: next_multiple(now, PROBING),
                down_for: now.saturating_sub(*since),
            }),
            Phase::HalfOpen { in_flight, .. } => {
                *in_flight += 1;
                Ok(Fraction::WHOLE)
            }
            Phase::Open { since, until, .. } => Err(Rejected {
                // People may take it back.
                until: if forced {
                    (*until).min(next_multiple(now, FORCED))
                } else {
                    *until
                },
                down_for: now.saturating_sub(*since),
            }),
        };
        let permit = permit.map(|ramp| Permit { ramp, era });
        Answer { permit, switch }
    }

    /// A call has come back.
    pub fn returned(&self, now: Duration, pass: Permit, call: Call) -> Option<StateChange> {
        let mut inner = self.lock();
        let now = inner.tell(now);
        self.count(&mut inner, now, pass, call)
    }

    /// Counts a call.
    fn count(
        &self,
        inner: &mut Inner,
        now: Duration,
        pass: Permit,
        call: Call,
    ) -> Option<StateChange> {
        // What was started before the last switch says nothing about the target since. Nothing opens what people keep closed.
        if inner.is_forced(now, Force::Closed) {
            return None;
        }
        if pass.era != inner.era {
            return None;
        }
        let is_slow = self.rule.slow_call.is_some_and(|limit| call.took > limit);
        match &mut inner.phase {
            Phase::Closed { .. } => {
                let width = self.rule.window / BUCKETS as u32;
                inner.window.add(now, width, call.failed, is_slow);
                inner.streak.add(call.failed, is_slow);
                let count = inner.window.count();
                let why = self.is_bad(count, inner.streak)?;
                Some(self.open(inner, (now, now), self.rule.open, (why, count)))
            }
            Phase::HalfOpen {
                since,
                span,
                in_flight,
                succeeded,
                slow,
            } => {
                *in_flight -= 1;
                *succeeded += 1;
                *slow += u32::from(is_slow);
                let (since, again) = (*since, *span * 2);
                let (all, slow) = (*succeeded, *slow);
                let count = Count {
                    calls: all,
                    failed: u32::from(call.failed),
                    slow,
                };
                let said = (TripReason::Probes, count);
                if call.failed {
                    return Some(self.open(inner, (since, now), again, said));
                }
                if all < self.rule.probes {
                    return None;
                }
                if self.rule.slow_rate.is_reached(slow, all) {
                    return Some(self.open(inner, (since, now), again, said));
                }
                Some(inner.switch(Phase::Closed { since: Some(now) }, since, said))
            }
            Phase::Open { .. } => unreachable!("a call of an open breaker"),
        }
    }

    /// A call of a target that may be behind a wall has come back: what that changes, and whether what the target says is about the task.
    pub fn heard(&self, now: Duration, pass: Permit, said: Said<'_>) -> Heard {
        let is_refused = matches!(said.outcome, Outcome::Refused(_));
        let mut inner = self.lock();
        let now = inner.tell(now);
        if inner.is_forced(now, Force::Closed) {
            return Heard::default();
        }
        let is_flood = matches!(inner.wall, Wall::Flood { .. });
        if pass.era != inner.era {
            // It was started before the wall was seen.
            let is_closed = matches!(inner.phase, Phase::Closed { .. });
            return Heard {
                is_spared: is_refused || (said.dies && is_flood && !is_closed),
                ..Heard::default()
            };
        }
        if matches!(inner.phase, Phase::Closed { .. }) {
            return self.heard_closed(&mut inner, now, said);
        }
        let failed = match said.outcome {
            Outcome::Success | Outcome::Pending { .. } => false,
            // Whoever finds a task bad has let it in, unless it finds all of them bad.
            Outcome::Permanent(_) => is_flood,
            Outcome::Refused(_)
            | Outcome::Retryable(_)
            | Outcome::Throttled { .. }
            | Outcome::Timeout(_) => true,
        };
        if let (Wall::Flood { let_in }, false) = (&mut inner.wall, failed) {
            *let_in += 1;
            let let_in = *let_in;
            if let_in >= self.rule.probes {
                return inner.let_go(now, let_in);
            }
        }
        let call = Call {
            failed,
            took: Duration::ZERO,
        };
        let switch = self.count(&mut inner, now, pass, call);
        if let Phase::Closed { since } = &mut inner.phase {
            // A target that refused everything was not overloaded.
            *since = None;
        }
        Heard {
            switch,
            is_spared: is_refused || (said.dies && is_flood),
            samples: Vec::new(),
        }
    }

    /// The same while there is no wall.
    fn heard_closed(&self, inner: &mut Inner, now: Duration, said: Said<'_>) -> Heard {
        if let Some(run) = inner.watch.hear(said.outcome, self.rule.min_calls) {
            let count = Count {
                calls: run,
                failed: run,
                slow: 0,
            };
            let why = (TripReason::RefusedInARow, count);
            inner.wall = Wall::Refusals;
            return Heard {
                switch: Some(self.open(inner, (now, now), self.rule.open, why)),
                is_spared: true,
                samples: Vec::new(),
            };
        }
        let end = match said.outcome {
            Outcome::Success => End::Delivered,
            Outcome::Refused(_) | Outcome::Permanent(_) if said.dies => End::Dead,
            // Of a target that is not well there is a breaker. Tasks whose attempts run out die in the order of their failures, which comes
            // in numbers wherever many fail for good among others that do well.
            Outcome::Refused(_)
            | Outcome::Permanent(_)
            | Outcome::Retryable(_)
            | Outcome::Throttled { .. }
            | Outcome::Timeout(_)
            // How it ends is not known.
            | Outcome::Pending { .. } => return Heard::default(),
        };
        let flood = inner.ends.note(end, said.task);
        let Some(flood) = flood.filter(|_| self.rule.failure_rate < Fraction::WHOLE) else {
            return Heard::default();
        };
        let count = Count {
            calls: flood.ends,
            failed: flood.dead,
            slow: 0,
        };
        inner.wall = Wall::Flood { let_in: 0 };
        let why = (TripReason::Flood, count);
        Heard {
            switch: Some(self.open(inner, (now, now), self.rule.open, why)),
            is_spared: true,
            samples: inner.ends.samples(),
        }
    }

    /// A pass was not used.
    pub fn unused(&self, pass: Permit) {
        let mut inner = self.lock();
        if pass.era != inner.era {
            return;
        }
        match &mut inner.phase {
            Phase::HalfOpen { in_flight, .. } => *in_flight -= 1,
            Phase::Closed { .. } | Phase::Open { .. } => {}
        }
    }

    /// Does what people want of it from now on; none if they want nothing any more. The same order again changes nothing, and neither does one
    /// of an earlier version: a worker of the process may hear of a change after others.
    pub fn force(&self, now: Duration, version: u64, order: Option<Order>) -> Option<StateChange> {
        let mut inner = self.lock();
        let now = inner.tell(now);
        let before = inner.order;
        if version < inner.version {
            return None;
        }
        inner.version = version;
        if before.map(|before| before.revision) == order.map(|order| order.revision) {
            return None;
        }
        let was_open = inner.is_forced(now, Force::Open);
        inner.order = order;
        let from = inner.phase;
        let said = (TripReason::Forced, Count::default());
        let Some(order) = order else {
            if let Phase::Open { until, .. } = &mut inner.phase
                && was_open
            {
                // It finds out by itself.
                *until = now;
            }
            return None;
        };
        let since = match from {
            Phase::Closed { .. } => now,
            Phase::Open { since, .. } | Phase::HalfOpen { since, .. } => since,
        };
        let phase = match order.force {
            Force::Open => Phase::Open {
                since,
                until: order.until,
                span: self.rule.open,
            },
            Force::Closed => Phase::Closed { since: None },
            Force::Reset => Phase::Closed {
                // As after probes, unless it was closed.
                since: (from.state() != State::Closed).then_some(now),
            },
        };
        match order.force {
            Force::Open => {}
            Force::Closed | Force::Reset => {
                inner.wall = Wall::Refusals;
                inner.ends.let_go();
            }
        }
        let switch = inner.switch(phase, since, said);
        inner.by_people |= switch.from == State::Closed && switch.to == State::Open;
        (switch.from != switch.to).then_some(switch)
    }

    /// How long it takes until as many calls may be in flight as usual; none if they may be already, or if it is not closed.
    pub fn ramp_left(&self, now: Duration) -> Option<Duration> {
        let inner = self.lock();
        let Phase::Closed { since: Some(since) } = inner.phase else {
            return None;
        };
        let left = (since + self.rule.slow_start).checked_sub(now)?;
        Some(left).filter(|left| !left.is_zero())
    }

    /// Opens it: the target has not been well for so long, or since now.
    fn open(
        &self,
        inner: &mut Inner,
        (since, now): (Duration, Duration),
        span: Duration,
        said: (TripReason, Count),
    ) -> StateChange {
        let span = span.min(self.rule.open.max(LONGEST_OPEN));
        let open = Phase::Open {
            since,
            until: now + span,
            span,
        };
        inner.switch(open, since, said)
    }

    /// Whether such calls open it, and why.
    fn is_bad(&self, count: Count, streak: Streak) -> Option<TripReason> {
        let Count {
            calls,
            failed,
            slow,
        } = count;
        // With so many calls in the window, the last ones of a streak are in it.
        let least = self.rule.min_calls;
        if calls < least {
            return None;
        }
        [
            (
                self.rule.failure_rate.is_reached(failed, calls),
                TripReason::FailureRate,
            ),
            (
                self.rule.slow_rate.is_reached(slow, calls),
                TripReason::SlowRate,
            ),
            (streak.failed >= least, TripReason::FailedInARow),
            (streak.slow >= least, TripReason::SlowInARow),
        ]
        .into_iter()
        .find_map(|(is_so, why)| is_so.then_some(why))
    }

    /// The part of the calls that may be in flight: from a tenth on, all of them once the time of the slow start is over.
    fn ramp(&self, since: Option<Duration>, now: Duration) -> Fraction {
        let Some(since) = since else {
            return Fraction::WHOLE;
        };
        let (gone, all) = (now.saturating_sub(since), self.rule.slow_start);
        if gone >= all {
            return Fraction::WHOLE;
        }
        let rest = u128::from(Fraction::WHOLE.0 - FIRST);
        let grown = rest * gone.as_nanos() / all.as_nanos();
        Fraction(FIRST + grown as u32)
    }

    /// What changes; no panic leaves it half-changed.
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Inner ===

impl Inner {
    /// Notes the time; it never goes back.
    fn tell(&mut self, now: Duration) -> Duration {
        self.latest = self.latest.max(now);
        self.latest
    }

    /// Whether people want that of it now.
    fn is_forced(&self, now: Duration, force: Force) -> bool {
        let order = self.order.filter(|order| now < order.until);
        order.is_some_and(|order| order.force == force)
    }

    /// As many probes as are wanted have succeeded since tasks died in numbers: the scene is let go.
    fn let_go(&mut self, now: Duration, let_in: u32) -> Heard {
        let Phase::HalfOpen { since, .. } = self.phase else {
            unreachable!("a probe of a breaker that is not half-open");
        };
        self.wall = Wall::Refusals;
        self.ends.let_go();
        let count = Count {
            calls: let_in,
            ..Count::default()
        };
        let phase = Phase::Closed { since: Some(now) };
        Heard {
            switch: Some(self.switch(phase, since, (TripReason::Probes, count))),
            ..Heard::default()
        }
    }

    /// Does something else from now on, for what calls said of a target that was last well at `since`.
    fn switch(
        &mut self,
        phase: Phase,
        since: Duration,
        (why, calls): (TripReason, Count),
    ) -> StateChange {
        let from = self.phase.state();
        let by_people = self.by_people;
        self.by_people &= match phase {
            Phase::HalfOpen { .. } => true,
            Phase::Open { .. } => why == TripReason::Forced,
            Phase::Closed { .. } => false,
        };
        self.phase = phase;
        self.era += 1;
        self.window = Window::default();
        self.streak = Streak::default();
        self.watch.forget();
        StateChange {
            from,
            to: phase.state(),
            why,
            calls,
            since,
            until: match phase {
                Phase::Open { until, .. } => Some(until),
                Phase::Closed { .. } | Phase::HalfOpen { .. } => None,
            },
            by_people,
        }
    }
}

// === impl Phase ===

impl Phase {
    /// The state in which that is.
    const fn state(&self) -> State {
        match self {
            Self::Closed { .. } => State::Closed,
            Self::HalfOpen { .. } => State::HalfOpen,
            Self::Open { .. } => State::Open,
        }
    }
}

// === impl Window ===

impl Window {
    /// Counts a call that ended now; a bucket is so wide.
    fn add(&mut self, now: Duration, width: Duration, failed: bool, slow: bool) {
        let number = now.as_nanos() / width.as_nanos().max(1);
        let gone = (number - self.last).min(BUCKETS as u128);
        for old in 0..gone {
            self.buckets[((number - old) % BUCKETS as u128) as usize] = Count::default();
        }
        self.last = number;
        let bucket = &mut self.buckets[(number % BUCKETS as u128) as usize];
        // A count that would not fit any more says enough as it is.
        if bucket.calls < u32::MAX / BUCKETS as u32 {
            bucket.calls += 1;
            bucket.failed += u32::from(failed);
            bucket.slow += u32::from(slow);
        }
    }

    /// All calls that count.
    fn count(&self) -> Count {
        let none = Count::default();
        self.buckets.iter().fold(none, |sum, bucket| Count {
            calls: sum.calls + bucket.calls,
            failed: sum.failed + bucket.failed,
            slow: sum.slow + bucket.slow,
        })
    }
}

// === impl Streak ===

impl Streak {
    /// Goes on with one more call.
    fn add(&mut self, failed: bool, slow: bool) {
        let next = |calls: u32, goes_on: bool| if goes_on { calls.saturating_add(1) } else { 0 };
        self.failed = next(self.failed, failed);
        self.slow = next(self.slow, slow);
    }
}

/// The next whole multiple of `step` after `now`.
fn next_multiple(now: Duration, step: Duration) -> Duration {
    let steps = now.as_nanos() / step.as_nanos() + 1;
    let nanos = steps.saturating_mul(step.as_nanos());
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

/// How long a task waits in a tier whose target has not been well for so long: about half of that, so that an outage costs it few hops and
/// it is back soon after the target is. A rung of the ladder, where there is one so short: one hop.
pub fn wait(ladder: &Ladder, down_for: Duration) -> Duration {
    let (least, most) = WAITS;
    let half = (down_for / 2).clamp(least, most);
    let tier = &ladder.tiers()[ladder.tier_for(half)];
    if tier.delay.is_zero() {
        // It would hop until it is near enough; so it is from the start.
        return half.min(HORIZON);
    }
    tier.delay
}

#[cfg(test)]
mod tests;
