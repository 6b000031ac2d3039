//! Cooldowns: a server that asks for rest is left alone by the whole group until then, and called at a pace that it bears afterwards.
//!
//! # What begins one
//! An answer that says for how long the server wants rest: 429 or 503 with `Retry-After`, whatever a scene lists as throttled, or, if a scene
//! wants that, an answer by which nothing is left of a limit. And another process that says that it was told so.
//!
//! # What ends it
//! The time that the server named, and a little more: each process starts again up to a twentieth later, at most [`MOST_JITTER`], so that
//! not all of them start at once.
//!
//! # What follows
//! Each process says how many calls succeeded within the last second before it knew. What all of them say together is what the
//! server bears, and four fifths of that is the group's [`Pace`] afterwards: each worker has the part of it that it has of the shards. The
//! pace stays for [`FLAT`], doubles every [`DOUBLES`] from then on, and is forgotten after [`PACED`]. Where nobody says anything, it
//! begins with [`FLOOR`] and doubles every two seconds. A slow start by calls in flight, as a breaker has it, is no bound for a server that
//! answers at once: the first of them may be a thousand calls in a second.
//!
//! # What it never does
//! A cooldown keeps no task: what waits, waits elsewhere. It looks at no clock: time is told, and is steady. What other processes say is
//! advice: it is bounded, and harmless if it is lost.
//!
//! Invariants: no call is admitted before the time that the server named; every cooldown ends; its memory is fixed.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::scene::MAX_DELAY;

/// One server, such as `https://shop.example:443`, as far as its rest goes; shared by the workers of a process.
#[derive(Debug)]
pub struct Server {
    /// The steady time until which there is something to look at, in microseconds: all that is read where the server has never asked for
    /// rest, or long ago.
    special: AtomicU64,
    /// Calls that succeeded of late.
    passed: Passed,
    /// The part of the longest jitter that this process adds to the end of a cooldown, in 65,536ths.
    spread: u16,
    /// What changes.
    inner: Mutex<Inner>,
}

/// Whether a server may be called now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rest {
    /// As often as usual.
    None,
    /// Not before this steady time.
    Shut {
        /// The time.
        until: Duration,
    },
    /// At this pace, counted from this steady time on.
    Paced {
        /// The pace of the whole group.
        pace: Pace,
        /// When the cooldown ended.
        since: Duration,
    },
}

/// How often a server may be called by the whole group: calls in a thousand seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Pace(u64);

/// What one process tells all others of a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signal {
    /// The server.
    pub server: Arc<str>,
    /// For how long it wants rest from the moment on in which that is said.
    pub left: Duration,
    /// How many calls of this process succeeded in the second before the cooldown.
    pub passed: u32,
}

/// Who says that a server wants rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Teller {
    /// The server itself.
    Server,
    /// Another process.
    Process,
}

/// What another process has told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heard {
    /// The process.
    pub by: u64,
    /// For how long the server wanted rest.
    pub left: Duration,
    /// How many calls of that process had succeeded.
    pub passed: u32,
    /// How long ago that was said, as far as clocks tell.
    pub ago: Duration,
}

/// What changes.
#[derive(Debug, Default)]
struct Inner {
    /// The time that the server named; zero if it never did.
    until: Duration,
    /// When the cooldown began.
    began: Duration,
    /// The latest `until` that others were told.
    told: Duration,
    /// The pace that was in force when it began.
    before: Option<Pace>,
    /// How many calls of this process succeeded before it began.
    own: u32,
    /// How many calls of others did.
    others: Vec<(u64, u32)>,
}

/// Calls that succeeded in this second and in the last one. Workers that meet at the turn of a second may lose a few.
#[derive(Debug, Default)]
struct Passed {
    /// The number of the second, and how many succeeded in it.
    current: AtomicU64,
    /// The same of the second before that one in which any did.
    last: AtomicU64,
}

/// Longest rest that is believed of another process: whoever is wrong, or hostile, costs a server no more calls than that. A server that wants
/// more rest is asked by each process once an hour, which it will hear from the server itself.
pub const MOST_HEARD: Duration = Duration::from_hours(1);

/// Longest time by which a process is later than the server asks for.
pub const MOST_JITTER: Duration = Duration::from_secs(1);

/// The jitter, as a part of the rest.
const JITTER: u32 = 20;

/// How long a pace stays what it is: so long that what a limit costs when it is found again is little beside what passes meanwhile.
pub const FLAT: Duration = Duration::from_secs(30);

/// In what time a pace doubles after that.
pub const DOUBLES: Duration = Duration::from_mins(1);

/// In what time a pace doubles from the end of the cooldown on where nobody knows what the server bears.
const DOUBLES_UNKNOWN: Duration = Duration::from_secs(2);

/// After what time a pace is forgotten: by then it has doubled nine times.
pub const PACED: Duration = Duration::from_mins(10);

/// The same where nobody knows: it has doubled fifteen times.
const PACED_UNKNOWN: Duration = Duration::from_secs(30);

/// The least pace after a first cooldown: slower, and a server that has been called seldom would be called more seldom still.
pub const FLOOR: Pace = Pace(5_000);

/// The least pace at all: a server whose limit is lower refuses a call now and then, and says for how long; slower, and the tasks of many
/// shards would be late for minutes where a server asks for rest for another reason than its limit.
const LEAST: Pace = Pace(500);

/// Most processes of which it is remembered what they said: more is far above any group.
const MOST_OTHERS: usize = 64;

/// Most calls in a second that are believed: more, and there is no pace to speak of.
const MOST_PASSED: u32 = 1_000_000;

/// By how much later a rest has to end than was told, so that it is told again: calls that were in flight together are told a little
/// different times.
const AGAIN: Duration = Duration::from_millis(500);

/// How far apart the ends of one cooldown are at most, as several processes tell them by their clocks.
const SAME: Duration = Duration::from_secs(2);

// === impl Teller ===

impl Teller {
    /// The word for it in logs and metrics.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Server => "server",
            Self::Process => "process",
        }
    }
}

// === impl Pace ===

impl Pace {
    /// So many calls in a thousand seconds.
    pub const fn new(calls: u64) -> Self {
        Self(calls)
    }

    /// The calls in a thousand seconds.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The time between two calls of a worker that owns so many of all shards.
    pub fn gap(self, owned: usize, all: u32) -> Duration {
        let calls = u128::from(self.0) * (owned.max(1) as u128);
        let nanos = 1_000_000_000_000_u128 * u128::from(all.max(1)) / calls.max(1);
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }

    /// The pace after some time in which it doubles every `doubles`.
    fn grown(self, time: Duration, doubles: Duration) -> Self {
        let (time, doubles) = (time.as_micros(), doubles.as_micros());
        let whole = (time / doubles).min(20) as u32;
        let rest = u128::from(self.0) * (time % doubles) / doubles;
        let grown = (u128::from(self.0) + rest) << whole;
        Self(u64::try_from(grown).unwrap_or(u64::MAX))
    }
}

// === impl Server ===

impl Server {
    /// A server that has not asked for rest, as the process with this seed sees it.
    pub fn new(name: &str, seed: u64) -> Self {
        Self {
            special: AtomicU64::new(0),
            passed: Passed::default(),
            spread: (xxh3_64_with_seed(name.as_bytes(), seed) >> 48) as u16,
            inner: Mutex::default(),
        }
    }

    /// Whether the server may be called.
    pub fn rest(&self, now: Duration) -> Rest {
        if micros(now) >= self.special.load(Ordering::Acquire) {
            return Rest::None;
        }
        let inner = self.lock();
        let end = self.end(&inner);
        if now < end {
            return Rest::Shut { until: end };
        }
        inner
            .pace(now.saturating_sub(end))
            .map_or(Rest::None, |pace| Rest::Paced { pace, since: end })
    }

    /// How long it will be left alone.
    pub fn left(&self, now: Duration) -> Option<Duration> {
        match self.rest(now) {
            Rest::Shut { until } => Some(until.saturating_sub(now)),
            Rest::None | Rest::Paced { .. } => None,
        }
    }

    /// A call has succeeded.
    pub fn succeeded(&self, now: Duration) {
        self.passed.add(now);
    }

    /// The server asks for rest: what others are to be told, if it is news.
    pub fn asked(&self, now: Duration, after: Duration) -> Option<(Duration, u32)> {
        let until = now + after.min(MAX_DELAY);
        let mut inner = self.lock();
        if now >= self.end(&inner) {
            self.begin(&mut inner, now);
        }
        inner.until = inner.until.max(until);
        let is_news = inner.told.is_zero() || inner.until > inner.told + AGAIN;
        if is_news {
            inner.told = inner.until;
        }
        self.note(&inner);
        is_news.then(|| (inner.until.saturating_sub(now), inner.own))
    }

    /// Another process says that the server has asked for rest: what this one is to say of its own calls, if that is news here.
    pub fn heard(&self, now: Duration, heard: Heard) -> Option<(Duration, u32)> {
        let Heard {
            by,
            left,
            passed,
            ago,
        } = heard;
        let (left, passed) = (left.min(MOST_HEARD), passed.min(MOST_PASSED));
        if left.is_zero() || ago >= left + PACED {
            return None;
        }
        let mut inner = self.lock();
        let end = self.end(&inner);
        let mut said = None;
        if let Some(left) = left.checked_sub(ago).filter(|left| !left.is_zero()) {
            if now >= end {
                self.begin(&mut inner, now);
                said = Some((left, inner.own));
            }
            inner.until = inner.until.max(now + left);
            inner.told = inner.told.max(inner.until);
        } else {
            // It is over, and so is what this process knows better; what remains is how much the server bears.
            let until = (now + left)
                .saturating_sub(ago)
                .max(Duration::from_micros(1));
            if now < end || until + SAME < inner.until {
                return None;
            }
            if until > inner.until + SAME || inner.until.is_zero() {
                *inner = Inner {
                    until,
                    began: until.saturating_sub(left),
                    told: until,
                    ..Inner::default()
                };
            }
        }
        if let Some((_, known)) = inner.others.iter_mut().find(|(known, _)| *known == by) {
            *known = passed;
        } else if inner.others.len() < MOST_OTHERS {
            inner.others.push((by, passed));
        }
        self.note(&inner);
        said
    }

    /// A cooldown begins.
    fn begin(&self, inner: &mut Inner, now: Duration) {
        let end = self.end(inner);
        let before = if inner.until.is_zero() {
            None
        } else {
            inner.pace(now.saturating_sub(end))
        };
        *inner = Inner {
            until: now,
            began: now,
            told: Duration::ZERO,
            before,
            own: self.passed.of_late(now),
            others: Vec::new(),
        };
    }

    /// When this process starts again.
    fn end(&self, inner: &Inner) -> Duration {
        let span = inner.until.saturating_sub(inner.began);
        let most = (span / JITTER).min(MOST_JITTER);
        inner.until + most * u32::from(self.spread) / (u32::from(u16::MAX) + 1)
    }

    /// Notes until when there is something to look at.
    fn note(&self, inner: &Inner) {
        let special = micros(self.end(inner) + PACED);
        self.special.store(special, Ordering::Release);
    }

    /// What changes; no panic leaves it half-changed.
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Inner ===

impl Inner {
    /// The pace so long after the end of the cooldown, as long as it matters.
    fn pace(&self, since: Duration) -> Option<Pace> {
        let others = self.others.iter().map(|(_, passed)| u64::from(*passed));
        let passed = others.fold(u64::from(self.own), u64::saturating_add);
        let borne = Pace(passed.saturating_mul(800));
        let base = match (passed, self.before) {
            (0, None) => {
                let pace = FLOOR.grown(since, DOUBLES_UNKNOWN);
                return (since < PACED_UNKNOWN).then_some(pace);
            }
            (0, Some(before)) => Pace(before.0 / 2).max(LEAST),
            (_, None) => borne.max(FLOOR),
            (_, Some(before)) => borne.min(Pace(before.0 / 5 * 4)).max(LEAST),
        };
        (since < PACED).then(|| base.grown(since.saturating_sub(FLAT), DOUBLES))
    }
}

// === impl Passed ===

impl Passed {
    /// Counts one.
    fn add(&self, now: Duration) {
        let second = (now.as_secs() & u64::from(u32::MAX)) << 32;
        let current = self.current.load(Ordering::Relaxed);
        if current & !u64::from(u32::MAX) == second {
            self.current.fetch_add(1, Ordering::Relaxed);
        } else {
            self.last.store(current, Ordering::Relaxed);
            self.current.store(second | 1, Ordering::Relaxed);
        }
    }

    /// How many there were in this second or in the one before, whichever are more.
    fn of_late(&self, now: Duration) -> u32 {
        let second = now.as_secs() & u64::from(u32::MAX);
        let counts = [&self.current, &self.last].map(|known| {
            let known = known.load(Ordering::Relaxed);
            let is_late = second.saturating_sub(known >> 32) <= 1;
            if is_late { known as u32 } else { 0 }
        });
        counts.into_iter().max().unwrap_or_default()
    }
}

/// Steady time in microseconds.
fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    use proptest::prelude::*;

    const fn secs(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    const fn millis(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    /// A server of a process without jitter.
    fn server() -> Server {
        Server {
            spread: 0,
            ..Server::new("http://shop:80", 7)
        }
    }

    fn pace(server: &Server, now: Duration) -> Option<u64> {
        match server.rest(now) {
            Rest::Paced { pace, .. } => Some(pace.get()),
            Rest::None => None,
            Rest::Shut { until } => panic!("shut until {until:?}"),
        }
    }

    const fn heard(by: u64, left: Duration, passed: u32, ago: Duration) -> Heard {
        Heard {
            by,
            left,
            passed,
            ago,
        }
    }

    #[test]
    fn a_server_is_left_alone_as_long_as_it_asks_for_and_never_longer_than_a_jitter() {
        for seed in 0..100 {
            let server = Server::new("http://shop:80", seed);
            assert_eq!(server.rest(secs(100)), Rest::None);

            assert_eq!(server.asked(secs(100), secs(10)), Some((secs(10), 0)));

            let Rest::Shut { until } = server.rest(secs(100)) else {
                panic!("open");
            };
            assert!((secs(110)..secs(110) + millis(500)).contains(&until));
            assert_eq!(
                server.rest(until.saturating_sub(millis(1))),
                Rest::Shut { until }
            );
            assert!(matches!(server.rest(until), Rest::Paced { .. }));
            assert_eq!(server.rest(until + PACED), Rest::None);
        }
    }

    #[test]
    fn a_later_end_counts_and_is_told_if_it_is_news() {
        let server = server();
        assert!(server.asked(secs(100), secs(10)).is_some());

        assert_eq!(server.asked(secs(100) + millis(400), secs(10)), None);
        assert_eq!(server.asked(secs(101), secs(1)), None);
        assert_eq!(server.asked(secs(102), secs(20)), Some((secs(20), 0)));

        assert_eq!(server.left(secs(103)), Some(secs(19)));
    }

    #[test]
    fn the_pace_is_what_all_have_seen_pass_and_grows() {
        let server = server();
        for call in 0..7 {
            server.succeeded(secs(99) + millis(100 * call));
        }
        assert_eq!(server.asked(secs(100), secs(5)), Some((secs(5), 7)));
        assert_eq!(
            server.heard(secs(100), heard(1, secs(5), 6, Duration::ZERO)),
            None
        );
        assert_eq!(
            server.heard(secs(100), heard(2, secs(5), 6, Duration::ZERO)),
            None
        );
        // The same process says it again.
        assert_eq!(
            server.heard(secs(101), heard(2, secs(4), 7, Duration::ZERO)),
            None
        );

        assert_eq!(pace(&server, secs(105)), Some(16_000));
        assert_eq!(pace(&server, secs(135)), Some(16_000));
        assert_eq!(pace(&server, secs(165)), Some(24_000));
        assert_eq!(pace(&server, secs(195)), Some(32_000));
        assert_eq!(server.rest(secs(105) + PACED), Rest::None);
    }

    #[test]
    fn a_server_that_asks_again_and_again_is_called_more_and_more_seldom() {
        let server = server();
        let mut now = secs(100);
        let mut paces = Vec::new();
        for _ in 0..40 {
            server.succeeded(now);
            assert!(server.asked(now, secs(5)).is_some());
            now += secs(5);
            paces.push(pace(&server, now).unwrap_or_default());
        }

        assert_eq!(paces[..3], [5_000, 800, 640]);
        assert_eq!(paces.last(), Some(&LEAST.get()));
    }

    #[test]
    fn where_nobody_knows_what_a_server_bears_its_pace_doubles_soon() {
        let server = server();
        assert!(server.asked(secs(100), secs(5)).is_some());

        assert_eq!(pace(&server, secs(105)), Some(5_000));
        assert_eq!(pace(&server, secs(109)), Some(20_000));
        assert_eq!(pace(&server, secs(135)), None);
    }

    #[test]
    fn who_hears_of_a_cooldown_leaves_the_server_alone_and_says_what_has_passed() {
        let server = server();
        server.succeeded(secs(100));

        let said = server.heard(secs(100), heard(1, secs(5), 9, millis(100)));

        assert_eq!(said, Some((millis(4_900), 1)));
        assert_eq!(server.left(secs(101)), Some(millis(3_900)));
        assert_eq!(pace(&server, secs(105)), Some(8_000));
        // Nothing of that is news to the others.
        assert_eq!(server.asked(secs(101), secs(4)), None);
    }

    #[test]
    fn what_is_old_hostile_or_from_a_wrong_clock_is_bounded_or_ignored() {
        let server = server();
        let now = secs(1_000);
        let none = Duration::ZERO;

        assert_eq!(server.heard(now, heard(1, none, 9, none)), None);
        assert_eq!(server.heard(now, heard(1, secs(5), 9, secs(7_200))), None);
        assert_eq!(server.heard(now, heard(1, secs(5), 9, Duration::MAX)), None);
        assert_eq!(server.rest(now), Rest::None);
        for by in 0..1_000 {
            server.heard(now, heard(by, Duration::MAX, u32::MAX, none));
        }
        assert_eq!(server.left(now), Some(MOST_HEARD));
        assert_eq!(server.lock().others.len(), MOST_OTHERS);
        assert!(pace(&server, now + MOST_HEARD).is_some());
        assert_eq!(server.rest(now + MOST_HEARD + PACED), Rest::None);
    }

    #[test]
    fn who_joins_late_learns_the_pace_of_a_cooldown_that_is_over_and_not_of_one_before() {
        let server = server();
        let now = secs(1_000);

        assert_eq!(server.heard(now, heard(1, secs(5), 4, secs(200))), None);
        assert_eq!(server.heard(now, heard(1, secs(5), 10, secs(25))), None);
        assert_eq!(server.heard(now, heard(2, secs(6), 10, secs(26))), None);
        assert_eq!(server.heard(now, heard(3, secs(5), 99, secs(100))), None);

        assert_eq!(pace(&server, now), Some(16_000));
        // What this process finds out itself counts from then on.
        assert!(server.asked(now, secs(5)).is_some());
        assert_eq!(pace(&server, now + secs(5)), Some(8_000));
    }

    #[test]
    fn a_worker_has_the_part_of_a_pace_that_it_has_of_the_shards() {
        assert_eq!(Pace(16_000).gap(12, 12), Duration::from_micros(62_500));
        assert_eq!(Pace(16_000).gap(4, 12), Duration::from_micros(187_500));
        assert_eq!(Pace(0).gap(0, 0), secs(1_000));
    }

    proptest! {
        #[test]
        fn every_cooldown_ends_whatever_is_said(
            said in prop::collection::vec(
                (0_u64..20, any::<bool>(), 0_u64..100_000, any::<u32>(), 0_u64..100_000, 0_u64..4), 1..60),
            seed in any::<u64>(),
        ) {
            let server = Server::new("http://shop:80", seed);
            let mut now = Duration::ZERO;
            let mut latest = Duration::ZERO;
            for (gone, own, left, passed, ago, by) in said {
                now += secs(gone);
                if own {
                    let asked = server.asked(now, secs(left));
                    prop_assert!(asked.is_none_or(|(told, _)| told >= secs(left)));
                    latest = latest.max(now + secs(left));
                    if left > 0 {
                        prop_assert!(server.left(now).is_some_and(|rest| rest >= secs(left)));
                    }
                } else {
                    server.heard(now, heard(by, secs(left), passed, secs(ago)));
                    latest = latest.max(now + secs(left.min(3_600)));
                }
                server.succeeded(now);
            }
            prop_assert_eq!(server.left(latest + MOST_JITTER), None);
            prop_assert_eq!(server.rest(latest + MOST_JITTER + PACED), Rest::None);
        }
    }
}
