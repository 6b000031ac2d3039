//! Shares: a worker's part of the rates of its scenes, which are those of the whole group.
//!
//! Nothing is said between workers. A rate belongs to shards: to as many as its burst has attempts, or to all of them, each with an equal
//! part of both. A worker has one limiter for those that it owns, and a task elsewhere moves to one of them before its attempt. Invariant:
//! what all limiters of the group have saved up together is never more than the burst, and grows by the limit at most: a limiter is made
//! anew, with nothing saved up, when its worker has more or fewer shards or other rules, and a shard goes before it comes. Periods are
//! rounded up, bursts down. So no span of time sees more attempts than the limit allows in it, and one burst. Steady time is all that is
//! looked at, and only differences of it: neither clock steps nor workers whose clocks have nothing in common change anything.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use governor::clock::Clock;
use governor::middleware::NoOpMiddleware;
use governor::nanos::Nanos;
use governor::state::{InMemoryState, NotKeyed};
use governor::{Quota, RateLimiter};
use xxhash_rust::xxh3::xxh3_64;

#[cfg(feature = "planted")]
use crate::planted::Bug;
use crate::scene::{self, Rate, Scenes};

/// The shares of a worker.
#[derive(Debug)]
pub struct Shares {
    /// How many shards there are.
    all: NonZeroU32,
    /// The shards that are ours.
    owned: BTreeSet<i32>,
    /// The share in each rate.
    pools: Vec<Share>,
    /// How the tasks of a scene count, if it has a rate.
    by_scene: HashMap<Arc<str>, Counts>,
    /// The time, for the limiters.
    clock: ToldClock,
    /// The mistake they make.
    #[cfg(feature = "planted")]
    pub(crate) bug: Bug,
}

/// The share in one rate.
#[derive(Debug)]
struct Share {
    /// Whose rate it is.
    pool: Arc<str>,
    /// The rate of the group.
    rate: Rate,
    /// The shards it belongs to.
    spread: Spread,
    /// How many of these are ours.
    owned: u32,
    /// What keeps our part of the rate, unless we have none.
    part: Option<Part>,
    /// Counts the tasks that moved: each goes to the next shard of the spread.
    moves: u32,
}

/// How a rate divides over shards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Division {
    /// How many shards have a part of it.
    pub shards: u32,
    /// The time between two attempts of one of them.
    pub period: Duration,
    /// Attempts of one of them that may start at once.
    pub burst: NonZeroU32,
}

/// How the tasks of a scene count.
#[derive(Clone, Copy, Debug)]
struct Counts {
    /// The share they count in, as its place among all.
    place: usize,
    /// Whether they keep the order of keys, and stay where they are.
    ordering: scene::Ordering,
}

/// Our part of a rate.
#[derive(Debug)]
struct Part {
    /// The time between two attempts.
    period: Duration,
    /// Admits them.
    limiter: Limiter,
}

/// The shards that a rate belongs to: neighbours, so that those of a smaller burst are among those of a larger one, and a task that is
/// moved by old rules and then by new ones comes to rest.
#[derive(Clone, Copy, Debug)]
struct Spread {
    /// The first of them.
    first: u32,
    /// How many they are.
    count: u32,
    /// How many shards there are.
    all: u32,
}

/// A limiter that is told the time.
type Limiter = RateLimiter<NotKeyed, InMemoryState, ToldClock, NoOpMiddleware<Nanos>>;

/// A clock that shows what it was told last: the core has none of its own.
#[derive(Clone, Debug, Default)]
struct ToldClock {
    /// Nanoseconds of steady time; never goes back.
    nanos: Arc<AtomicU64>,
}

/// How long a line may be, in the time it takes, before the tasks behind it move to other shards of the rate: more than a rebalance takes,
/// so that little moves for short bursts, and short, since shards end so far apart that all had as much to do.
const LONG: Duration = Duration::from_secs(10);

/// Longest time that a limiter counts with, 146 years: sums of a few of them still fit its integers.
const MOST: u64 = u64::MAX / 4;

/// How the rate of a scene, one of these, divides over so many shards, whoever owns them, if it has one.
pub fn division(scenes: &Scenes, scene: &str, shards: NonZeroU32) -> Option<Division> {
    let mut all = Shares::new(shards);
    all.follow(Duration::ZERO, scenes);
    let Share { rate, spread, .. } = all.of(scene)?;
    let (burst, part) = Part::build(*rate, *spread, 1, &all.clock)?;
    Some(Division {
        shards: spread.count,
        period: part.period,
        burst,
    })
}

// === impl Shares ===

impl Shares {
    /// The shares of a worker that has no shard of the `all` there are.
    pub fn new(all: NonZeroU32) -> Self {
        Self {
            all,
            owned: BTreeSet::new(),
            pools: Vec::new(),
            by_scene: HashMap::new(),
            clock: ToldClock::default(),
            #[cfg(feature = "planted")]
            bug: Bug::None,
        }
    }

    /// Other rules are in force: a rate that is the same goes on, any other one starts with nothing saved up. `now` is steady time here
    /// and below.
    pub fn follow(&mut self, now: Duration, scenes: &Scenes) {
        self.clock.tell(now);
        let before = std::mem::take(&mut self.pools).into_iter();
        let mut before: HashMap<_, _> = before.map(|share| (share.key(), share)).collect();
        let mut places = HashMap::new();
        // What keeps an order cannot move to where there is more of its rate: that has a part, and an attempt of its burst, in each shard.
        let ordered = scenes
            .iter()
            .filter(|scene| scene.ordering == scene::Ordering::Key);
        let everywhere: HashSet<(Arc<str>, Rate)> = ordered
            .filter_map(|scene| Some((Arc::clone(scene.rate_of()), scene.rate?)))
            .collect();
        self.by_scene.clear();
        for scene in scenes.iter() {
            let Some(rate) = scene.rate else { continue };
            let mut key = (Arc::clone(scene.rate_of()), rate);
            if everywhere.contains(&key) {
                key.1.burst = rate.burst.max(self.all);
            }
            let place = *places.entry(key).or_insert_with_key(|key| {
                let share = before.remove(key);
                let share = share.unwrap_or_else(|| self.share(&key.0, key.1));
                self.pools.push(share);
                self.pools.len() - 1
            });
            let ordering = scene.ordering;
            let known = Counts { place, ordering };
            self.by_scene.insert(Arc::clone(&scene.name), known);
        }
    }

    /// There are `all` shards from now on: every rate divides anew, with nothing saved up.
    pub fn resize(&mut self, now: Duration, all: NonZeroU32, scenes: &Scenes) {
        if self.all != all {
            self.all = all;
            self.pools.clear();
            self.follow(now, scenes);
        }
    }

    /// A shard is ours, with nothing saved up.
    pub fn take(&mut self, now: Duration, shard: i32) {
        if self.owned.insert(shard) {
            self.split(now);
        }
    }

    /// Nothing more is started for a shard.
    pub fn give_up(&mut self, now: Duration, shard: i32) {
        if self.owned.remove(&shard) {
            self.split(now);
        }
    }

    /// The shard of a partition, whoever says that it exists.
    pub fn shard(&self, partition: i32) -> i32 {
        let all = i32::try_from(self.all.get()).unwrap_or(i32::MAX);
        partition.rem_euclid(all)
    }

    /// Whether attempts of a scene may start in a shard.
    pub fn belongs(&self, scene: &str, shard: i32) -> bool {
        self.of(scene).is_none_or(|share| share.spread.has(shard))
    }

    /// The shard to which a task has to move before its attempt, if it must: each one to the next.
    pub fn detour(&mut self, scene: &str, shard: i32) -> Option<i32> {
        let known = self.of_mut(scene)?;
        (!known.spread.has(shard)).then(|| known.next())
    }

    /// The shard in which a task should wait that cannot start soon: each one in the next, our own among them.
    pub fn elsewhere(&mut self, scene: &str, shard: i32) -> Option<i32> {
        if self.stays(scene) {
            return None;
        }
        let next = self.of_mut(scene)?.next();
        (next != shard).then_some(next)
    }

    /// How many tasks may be in line before others are better off in other shards; none if there are no others.
    pub fn line(&self, scene: &str) -> Option<usize> {
        let share = self.of(scene)?;
        let period = share.part.as_ref()?.period;
        let line = LONG.as_nanos() / period.as_nanos();
        let moves = !self.stays(scene) && share.spread.count > 1;
        moves.then(|| usize::try_from(line).unwrap_or(usize::MAX))
    }

    /// Admits an attempt; if it may not start, when one may.
    pub fn admit(&self, now: Duration, scene: &str) -> Result<(), Duration> {
        let Some(share) = self.of(scene) else {
            return Ok(());
        };
        let Some(Part { limiter, .. }) = &share.part else {
            return Err(Duration::MAX);
        };
        self.clock.tell(now);
        limiter.check().map_err(|not_until| {
            let wait = not_until.wait_time_from(self.clock.now());
            now.saturating_add(wait)
        })
    }

    /// The time between two attempts where the rate is the limit, if there is one and we have a part in it.
    pub fn spacing(&self, scene: &str) -> Option<Duration> {
        let share = self.of(scene)?;
        share.part.as_ref().map(|part| part.period)
    }

    /// The share for the tasks of a scene, if it has a rate.
    fn of(&self, scene: &str) -> Option<&Share> {
        let counts = self.by_scene.get(scene)?;
        self.pools.get(counts.place)
    }

    /// The same, to be changed.
    fn of_mut(&mut self, scene: &str) -> Option<&mut Share> {
        let counts = self.by_scene.get(scene)?;
        self.pools.get_mut(counts.place)
    }

    /// Whether the tasks of a scene stay where they entered.
    fn stays(&self, scene: &str) -> bool {
        let known = self.by_scene.get(scene);
        known.is_some_and(|known| known.ordering == scene::Ordering::Key)
    }

    /// A share that begins now.
    fn share(&self, pool: &Arc<str>, rate: Rate) -> Share {
        let all = self.all.get();
        let spread = Spread {
            first: (xxh3_64(pool.as_bytes()) % u64::from(all)) as u32,
            count: rate.burst.get().min(all),
            all,
        };
        let owned = spread.among(&self.owned);
        #[cfg(feature = "planted")]
        let part = match self.bug {
            Bug::FreshBurst => Part::full(rate, spread, owned, &self.clock),
            _ => Part::empty(rate, spread, owned, &self.clock),
        };
        #[cfg(not(feature = "planted"))]
        let part = Part::empty(rate, spread, owned, &self.clock);
        Share {
            pool: Arc::clone(pool),
            rate,
            spread,
            owned,
            part,
            moves: 0,
        }
    }

    /// Our shards have changed: where we have more or fewer of a rate's, what was saved up is lost.
    fn split(&mut self, now: Duration) {
        self.clock.tell(now);
        for share in &mut self.pools {
            let owned = share.spread.among(&self.owned);
            if owned == share.owned {
                continue;
            }
            share.owned = owned;
            share.part = Part::empty(share.rate, share.spread, owned, &self.clock);
            #[cfg(feature = "planted")]
            if self.bug == Bug::LimiterResetOnRebalance {
                share.part = Part::full(share.rate, share.spread, owned, &self.clock);
            }
        }
    }
}

// === impl Share ===

impl Share {
    /// What tells it from others.
    fn key(&self) -> (Arc<str>, Rate) {
        (Arc::clone(&self.pool), self.rate)
    }

    /// The shard of the spread whose turn it is.
    fn next(&mut self) -> i32 {
        let turn = self.moves;
        self.moves = turn.wrapping_add(1);
        self.spread.shard(turn)
    }
}

// === impl Part ===

impl Part {
    /// The part of a rate that `owned` of the shards have it belongs to, if any, with nothing saved up.
    fn empty(rate: Rate, spread: Spread, owned: u32, clock: &ToldClock) -> Option<Self> {
        let (burst, part) = Self::build(rate, spread, owned, clock)?;
        // The whole burst is used up at once: the next attempt is one period off.
        let used = part.limiter.check_n(burst);
        assert!(matches!(used, Ok(Ok(()))), "a new limiter has a burst");
        Some(part)
    }

    /// The same with a burst saved up.
    #[cfg(feature = "planted")]
    fn full(rate: Rate, spread: Spread, owned: u32, clock: &ToldClock) -> Option<Self> {
        Self::build(rate, spread, owned, clock).map(|(_, part)| part)
    }

    /// The limiter, as `governor` makes it (the generic cell rate algorithm, ITU-T I.371), and its burst.
    fn build(
        rate: Rate,
        spread: Spread,
        owned: u32,
        clock: &ToldClock,
    ) -> Option<(NonZeroU32, Self)> {
        let Rate { limit, per, burst } = rate;
        let (owned, count) = (u128::from(owned), u128::from(spread.count));
        let pace = u128::from(limit.get()) * owned;
        if pace == 0 {
            return None;
        }
        let nanos = (per.as_nanos() * count).div_ceil(pace);
        let nanos = u64::try_from(nanos).unwrap_or(MOST).clamp(1, MOST);
        let period = Duration::from_nanos(nanos);
        // An attempt for each of our shards at least: the rate belongs to as many as its burst has.
        let burst = u128::from(burst.get()) * owned / count;
        let burst = burst.min(u128::from(MOST / nanos)) as u32;
        let burst = NonZeroU32::new(burst).unwrap_or(NonZeroU32::MIN);
        let quota = Quota::with_period(period)
            .unwrap_or_else(|| unreachable!("a period of at least a nanosecond"))
            .allow_burst(burst);
        let limiter = RateLimiter::direct_with_clock(quota, clock.clone());
        Some((burst, Self { period, limiter }))
    }
}

// === impl Spread ===

impl Spread {
    /// How many of these shards the rate belongs to.
    fn among(self, owned: &BTreeSet<i32>) -> u32 {
        owned.iter().filter(|shard| self.has(**shard)).count() as u32
    }

    /// Whether the rate belongs to a shard.
    fn has(self, shard: i32) -> bool {
        let Ok(shard) = u32::try_from(shard) else {
            return false;
        };
        shard < self.all && (shard + self.all - self.first) % self.all < self.count
    }

    /// One of the shards it belongs to, in turn.
    fn shard(self, turn: u32) -> i32 {
        let shard = u64::from(self.first) + u64::from(turn % self.count);
        (shard % u64::from(self.all)) as i32
    }
}

// === impl ToldClock ===

impl ToldClock {
    /// Moves the clock on to `now`, unless it is there already; it stands still after 584 years.
    fn tell(&self, now: Duration) {
        let nanos = u64::try_from(now.as_nanos()).unwrap_or(u64::MAX);
        self.nanos.fetch_max(nanos, Ordering::AcqRel);
    }
}

impl Clock for ToldClock {
    type Instant = Nanos;

    fn now(&self) -> Nanos {
        Nanos::from(self.nanos.load(Ordering::Acquire))
    }
}
