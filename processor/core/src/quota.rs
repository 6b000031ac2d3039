//! Quotas: a worker's part of the rates of its scenes, which are those of the whole group.
//!
//! Nothing is said between workers. A rate belongs to shards: to as many as its burst has attempts, or to all of them, each with an equal
//! part of both. A worker has one limiter for those that it owns, and a task elsewhere moves to one of them before its attempt. Invariant:
//! what all limiters of the group have saved up together is never more than the burst, and grows by the limit at most: a shard that goes
//! takes its part along, other rules begin with nothing saved up, and a shard goes before it comes. Periods are rounded up, bursts down. So
//! no span of time sees more attempts than the limit allows in it, and one burst. Steady time is all that is looked at, and only differences
//! of it: neither clock steps nor workers whose clocks have nothing in common change anything.
//!
//! What a shard has saved up of a slow rate outlives its owner, lest a rate that is slower than restarts never lets anything start. It is
//! committed with the offsets of the shard ([`Saved`]), and the next owner begins with it.
//! - What is committed is never more than what is left: no attempt starts that needs any of it, before it is committed that less is left.
//! - It is committed when a shard is given away, and from time to time while a rate saves up, for owners that die.
//! - Time without an owner saves up nothing, unless the next owner runs on the same machine: only there their clocks can be compared.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use governor::clock::Clock;
use governor::middleware::NoOpMiddleware;
use governor::nanos::Nanos;
use governor::state::{NotKeyed, StateStore};
use governor::{Quota, RateLimiter};
use xxhash_rust::xxh3::xxh3_64;

use crate::map::Map;
use crate::planted::{Bug, Planted};
use crate::saved::{MachineTime, Saved};
use crate::scene::{Rate, Scenes};

/// The quotas of a worker.
#[derive(Debug)]
pub struct Quotas {
    /// How many shards there are.
    all: NonZeroU32,
    /// The shards that are ours.
    owned: BTreeSet<i32>,
    /// The quota of each rate.
    pools: Vec<RateShare>,
    /// How the tasks of a scene count, if it has a rate.
    by_scene: Map<Arc<str>, Counts>,
    /// The time, for the limiters.
    clock: ToldClock,
    /// The clock of this machine, if it is known, and what it showed when steady time began.
    machine: Option<MachineTime>,
    /// What was saved up of shards that are about to be ours.
    brought: BTreeMap<i32, Saved>,
    /// What is saved up of shards that are being given away.
    left: BTreeMap<i32, Saved>,
    /// The rates of which commits of ours, or of owners before us, may say that something is saved up.
    told: HashSet<u32>,
    /// The shards whose next commit has to say anew what is saved up, whatever that is.
    changed: BTreeSet<i32>,
    /// Whether that is wanted soon.
    unsaved: bool,
    /// When more is saved up than is committed, by so much that it is to be committed.
    save_at: Duration,
    /// How often it was asked what is to be committed.
    commits: u64,
    /// The mistake they make.
    pub(crate) bug: Planted,
}

/// The quota of one rate.
#[derive(Debug)]
struct RateShare {
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
    /// What is committed of it.
    kept: Kept,
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
    /// The quota they count in, as its place among all.
    place: usize,
    /// Whether they stay where they are.
    stays: bool,
}

/// Our part of a rate.
#[derive(Debug)]
struct Part {
    /// How many shards it is the part of.
    owned: u32,
    /// The time between two attempts.
    period: Duration,
    /// Attempts that may start at once.
    burst: NonZeroU32,
    /// When the limiter was made.
    since: Duration,
    /// What the limiter goes by.
    arrival: Arrival,
    /// Admits attempts.
    limiter: Limiter,
}

/// What commits say that one of our shards has saved up of a rate, as the time in which the shard alone saves up as much.
#[derive(Clone, Debug, Default)]
struct Kept {
    /// What the last commit says that is durable.
    durable: Duration,
    /// What those say that are under way, each with its number.
    under_way: VecDeque<(u64, Duration)>,
    /// What the last one says that was handed over: the same for all shards, or nothing if they differ.
    last: Option<Duration>,
    /// Whether less is to be committed, since an attempt is to start.
    spend: bool,
    /// Whether a task waits.
    waits: bool,
    /// When an attempt was started last: others may follow.
    started: Duration,
}

/// The theoretical arrival time of a limiter, in nanoseconds since it was made: the state of the algorithm.
#[derive(Clone, Debug)]
struct Arrival(Arc<AtomicU64>);

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
type Limiter = RateLimiter<NotKeyed, Arrival, ToldClock, NoOpMiddleware<Nanos>>;

/// A clock that shows what it was told last: the core has none of its own.
#[derive(Clone, Debug, Default)]
struct ToldClock {
    /// Nanoseconds of steady time; never goes back.
    nanos: Arc<AtomicU64>,
}

/// How long a ready queue may be, in the time it takes to serve, before the tasks behind it move to other shards of the rate: more than a rebalance takes,
/// so that little moves for short bursts, and short, since shards end so far apart that all had as much to do.
const LONG: Duration = Duration::from_secs(10);

/// Least time between two attempts of a shard with which it is committed what the shard has saved up: below, an owner that begins with
/// nothing costs no more than other delays of a restart.
const KEPT: Duration = Duration::from_secs(1);

/// Least time between two attempts of a worker with which that is committed while it owns the shard, too: below, attempts start so often that
/// there is little to keep.
const SLOW: Duration = Duration::from_secs(2);

/// How long before an attempt may start it is committed that what is committed is used up: longer than commits take as a rule, since the
/// attempt waits for it, and short, since what was saved up is lost if the worker dies in between.
const AHEAD: Duration = Duration::from_millis(300);

/// When to ask again for an attempt that waits for a commit; once that is durable, it is asked at once.
const ASK_SAVED: Duration = Duration::from_millis(250);

/// What may be saved up beyond what is committed: an eighth of the time between two attempts, within these bounds while a task waits. A
/// commit of offsets alone costs little, and who dies after each five seconds makes an attempt an hour, too.
const STEPS: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(5));

/// What the machine's clock may be off by, at both ends: it shows hundredths of a second.
const GRAIN: Duration = Duration::from_millis(20);

/// Longest time that a limiter counts with, 146 years: sums of a few of them still fit its integers.
const MOST: u64 = u64::MAX / 4;

/// How the rate of a scene, one of these, divides over so many shards, whoever owns them, if it has one.
pub fn division(scenes: &Scenes, scene: &str, shards: NonZeroU32) -> Option<Division> {
    let mut all = Quotas::new(shards);
    all.follow(Duration::ZERO, scenes);
    let RateShare { rate, spread, .. } = all.of(scene)?;
    let Part { period, burst, .. } = Part::new(*rate, *spread, 1, &all.clock)?;
    Some(Division {
        shards: spread.count,
        period,
        burst,
    })
}

// === impl Quotas ===

impl Quotas {
    /// The quotas of a worker that has no shard of the `all` there are.
    pub fn new(all: NonZeroU32) -> Self {
        Self {
            all,
            owned: BTreeSet::new(),
            pools: Vec::new(),
            by_scene: Map::default(),
            clock: ToldClock::default(),
            machine: None,
            brought: BTreeMap::new(),
            left: BTreeMap::new(),
            told: HashSet::new(),
            changed: BTreeSet::new(),
            unsaved: false,
            save_at: Duration::MAX,
            commits: 0,
            bug: Planted::default(),
        }
    }

    /// The shards that are ours, and all there are.
    pub fn part(&self) -> (usize, u32) {
        (self.owned.len(), self.all.get())
    }

    /// How many shards are ours, and how many there are.
    pub fn shares(&self) -> (u32, NonZeroU32) {
        let owned = u32::try_from(self.owned.len()).unwrap_or(u32::MAX);
        (owned, self.all)
    }

    /// What the clock of this machine showed when steady time began.
    pub fn set_machine(&mut self, began: MachineTime) {
        self.machine = Some(began);
    }

    /// Other rules are in force: a rate that is the same goes on, any other one starts with nothing saved up. `now` is steady time here
    /// and below.
    pub fn follow(&mut self, now: Duration, scenes: &Scenes) {
        self.clock.tell(now);
        let before = std::mem::take(&mut self.pools).into_iter();
        let mut before: HashMap<_, _> = before.map(|share| (share.key(), share)).collect();
        let mut places = HashMap::new();
        // What keeps an order, or looks for duplicates, cannot move to where there is more of its rate: that has a part, and an attempt of its burst, in each shard.
        let ordered = scenes.iter().filter(|scene| scene.stays());
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
            let stays = scene.stays();
            let known = Counts { place, stays };
            self.by_scene.insert(Arc::clone(&scene.name), known);
        }
        let gone = before.values().any(RateShare::is_kept);
        let is_new = |share: &RateShare| share.is_kept() && share.kept.last.is_none();
        let new = self.pools.iter().any(is_new);
        if gone || new {
            self.changed.clone_from(&self.owned);
            self.unsaved |= !self.owned.is_empty();
        }
        self.plan_saving(now);
    }

    /// There are `all` shards from now on: every rate divides anew, with nothing saved up.
    pub fn resize(&mut self, now: Duration, all: NonZeroU32, scenes: &Scenes) {
        if self.all != all {
            self.all = all;
            self.pools.clear();
            self.follow(now, scenes);
        }
    }

    /// What the owners before us have saved up of a shard that is about to be ours.
    pub fn bring(&mut self, shard: i32, saved: Saved) {
        self.brought.insert(shard, saved);
    }

    /// A shard is ours, with what was saved up of it.
    pub fn take(&mut self, now: Duration, shard: i32) {
        let saved = self.brought.remove(&shard).unwrap_or_default();
        if !self.owned.insert(shard) {
            return;
        }
        self.clock.tell(now);
        self.left.remove(&shard);
        self.told.extend(saved.rates());
        // Since then, as its clock says, nobody has started anything for the shard.
        let idle = self.machine.zip(saved.at).and_then(|(machine, at)| {
            let idle = machine.after(now).since(at)?;
            Some(idle.saturating_sub(GRAIN))
        });
        let full = self.bug.is(Bug::LimiterResetOnRebalance);
        for share in &mut self.pools {
            if !share.spread.has(shard) {
                continue;
            }
            let known = saved.of(share.id());
            let brought = known.map(|known| known + idle.unwrap_or_default());
            let ours = share.saved_by_all(now);
            let most = if full { MOST.into() } else { 0 };
            let all = ours + brought.unwrap_or_default().min(share.most()).as_nanos() + most;
            share.set(share.owned + 1, all, &self.clock);
            if share.owned == 1 {
                share.kept = Kept::default();
            }
            share.kept.unite();
            if share.is_kept() {
                // Until what is committed is ours, it may be more with each instant.
                let known = known.map(|known| saved.at.map_or(known, |_| Duration::MAX));
                share.kept.durable = share.kept.durable.max(known.unwrap_or_default());
                self.unsaved = true;
            }
        }
        self.changed.insert(shard);
        self.plan_saving(now);
    }

    /// Nothing more is started for a shard, which takes its part of what is saved up along.
    pub fn give_up(&mut self, now: Duration, shard: i32) {
        if !self.owned.remove(&shard) {
            return;
        }
        self.clock.tell(now);
        let mut saved = Saved::default();
        for share in &mut self.pools {
            if !share.spread.has(shard) {
                continue;
            }
            let (all, each) = (share.saved_by_all(now), share.saved_by_each(now));
            // Where commits of several shards say what does not add up yet, they are not to be believed together.
            if share.is_kept() && share.kept.last.is_some() {
                saved.put(share.id(), share.alone(), each);
            }
            let rest = all.saturating_sub(each.as_nanos());
            share.set(share.owned - 1, rest, &self.clock);
        }
        saved.at = self.machine.map(|machine| machine.after(now));
        self.unsaved |= !saved.is_empty();
        self.told.extend(saved.rates());
        self.left.insert(shard, saved);
        self.changed.insert(shard);
        self.plan_saving(now);
    }

    /// A shard is given away: nothing can be committed for it any more.
    pub fn release(&mut self, shard: i32) {
        self.left.remove(&shard);
        self.changed.remove(&shard);
        self.unsaved &= !self.owned.is_empty() || !self.left.is_empty();
    }

    /// Whether it is to be committed soon what is saved up.
    pub const fn is_unsaved(&self) -> bool {
        self.unsaved
    }

    /// When it may be time for that next, in steady time.
    pub const fn save_at(&self) -> Duration {
        self.save_at
    }

    /// Notes that it is time.
    pub fn note_time(&mut self, now: Duration) {
        if now >= self.save_at {
            self.unsaved = true;
            // Until it is asked what is to be committed.
            self.save_at = Duration::MAX;
        }
    }

    /// Decides what the next commit is to say: the shards of which it has to be part.
    pub fn save(&mut self, now: Duration) -> BTreeSet<i32> {
        self.commits += 1;
        let mut shards = std::mem::take(&mut self.changed);
        for share in &mut self.pools {
            if !share.is_kept() || share.part.is_none() {
                continue;
            }
            let Some(says) = share.to_say(now) else {
                continue;
            };
            share.kept.spend = false;
            share.kept.last = Some(says);
            share.kept.under_way.push_back((self.commits, says));
            if !says.is_zero() {
                self.told.insert(share.id());
            }
            // All of them, lest together they say more than is left.
            let spread = share.spread;
            let ours = self.owned.iter().copied();
            shards.extend(ours.filter(|shard| spread.has(*shard)));
        }
        self.unsaved = false;
        self.plan_saving(now);
        shards
    }

    /// What a commit of a shard says that is saved up, as [`Self::save`] has decided it; the number of the commit.
    pub fn saved(&self, shard: i32) -> (Saved, u64) {
        if let Some(left) = self.left.get(&shard) {
            return (left.clone(), self.commits);
        }
        let mut saved = Saved::default();
        for share in &self.pools {
            if share.spread.has(shard) && share.part.is_some() && share.is_kept() {
                let says = share.kept.last.unwrap_or_default();
                saved.put(share.id(), share.alone(), says);
            }
        }
        (saved, self.commits)
    }

    /// A commit is durable. Whether an attempt may have waited for it.
    pub fn committed(&mut self, number: u64) -> bool {
        let mut waited = false;
        for share in &mut self.pools {
            let kept = &mut share.kept;
            while let Some((of, says)) = kept.under_way.front().copied()
                && of <= number
            {
                kept.under_way.pop_front();
                waited |= kept.waits && says < kept.durable;
                kept.durable = says;
            }
        }
        waited
    }

    /// Commits were not made: what is saved up is to be committed again.
    pub fn returned(&mut self) {
        for share in &mut self.pools {
            share.kept.unite();
        }
        self.changed.clone_from(&self.owned);
        self.changed.extend(self.left.keys());
        self.unsaved |= !self.changed.is_empty();
    }

    /// Finds out when more is to be committed.
    fn plan_saving(&mut self, now: Duration) {
        let times = self.pools.iter().filter_map(|share| share.save_at(now));
        let next = times.min().unwrap_or(Duration::MAX);
        self.save_at = if self.unsaved { Duration::MAX } else { next };
    }

    /// How many shards there are.
    pub const fn shards(&self) -> u32 {
        self.all.get()
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

    /// Longest ready queue behind which a task stays here: behind a longer one, another shard is better; none if there is no other.
    pub fn longest_queue(&self, scene: &str) -> Option<usize> {
        let share = self.of(scene)?;
        let period = share.part.as_ref()?.period;
        let longest = LONG.as_nanos() / period.as_nanos();
        let moves = !self.stays(scene) && share.spread.count > 1;
        moves.then(|| usize::try_from(longest).unwrap_or(usize::MAX))
    }

    /// Admits an attempt; if it may not start, when to ask again.
    pub fn admit(&mut self, now: Duration, scene: &str) -> Result<(), Duration> {
        self.clock.tell(now);
        let Some(counts) = self.by_scene.get(scene) else {
            return Ok(());
        };
        let trusts = self.bug.is(Bug::SavedSpentTwice);
        let share = &mut self.pools[counts.place];
        let Some(part) = &share.part else {
            return Err(Duration::MAX);
        };
        if !share.is_kept() || trusts {
            return part.check(now, &self.clock);
        }
        let (waited, saved) = (share.kept.waits, part.saved(now));
        let answer = match saved.checked_sub(part.period) {
            Some(left) if part.each(left, share.alone()) >= share.kept.most() => {
                part.check(now, &self.clock)
            }
            // What is committed has to be less before.
            Some(_) => {
                self.unsaved |= share.kept.spend();
                Err(now + ASK_SAVED)
            }
            None => {
                let wait = part.period.saturating_sub(saved);
                let until = now + wait;
                if part.period < SLOW && share.kept.most().is_zero() {
                    Err(until)
                } else if wait > AHEAD {
                    Err(until.saturating_sub(AHEAD))
                } else {
                    self.unsaved |= !share.kept.most().is_zero() && share.kept.spend();
                    Err(until)
                }
            }
        };
        share.kept.waits = answer.is_err();
        if answer.is_ok() {
            share.kept.started = now;
        }
        if answer.is_ok() || !waited {
            self.plan_saving(now);
        }
        answer
    }

    /// The time between two attempts where the rate is the limit, if there is one and we have a part in it.
    pub fn spacing(&self, scene: &str) -> Option<Duration> {
        let share = self.of(scene)?;
        share.part.as_ref().map(|part| part.period)
    }

    /// The quota for the tasks of a scene, if it has a rate.
    fn of(&self, scene: &str) -> Option<&RateShare> {
        let counts = self.by_scene.get(scene)?;
        self.pools.get(counts.place)
    }

    /// The quota for the tasks of a scene, to be changed.
    fn of_mut(&mut self, scene: &str) -> Option<&mut RateShare> {
        let counts = self.by_scene.get(scene)?;
        self.pools.get_mut(counts.place)
    }

    /// Whether the tasks of a scene stay where they entered.
    fn stays(&self, scene: &str) -> bool {
        let known = self.by_scene.get(scene);
        known.is_some_and(|known| known.stays)
    }

    /// A share that begins now, with nothing saved up.
    fn share(&self, pool: &Arc<str>, rate: Rate) -> RateShare {
        let all = self.all.get();
        let spread = Spread {
            first: (xxh3_64(pool.as_bytes()) % u64::from(all)) as u32,
            count: rate.burst.get().min(all),
            all,
        };
        let mut share = RateShare {
            pool: Arc::clone(pool),
            rate,
            spread,
            owned: 0,
            part: None,
            kept: Kept::default(),
            moves: 0,
        };
        let saved = if self.bug.is(Bug::FreshBurst) {
            MOST.into()
        } else {
            0
        };
        share.set(spread.among(&self.owned), saved, &self.clock);
        if self.told.contains(&share.id()) {
            // Some commit may still say that there is something.
            share.kept.durable = Duration::MAX;
        }
        share
    }
}

// === impl RateShare ===

impl RateShare {
    /// What tells it from others.
    fn key(&self) -> (Arc<str>, Rate) {
        (Arc::clone(&self.pool), self.rate)
    }

    /// What commits know it by: the rate, and how it divides.
    fn id(&self) -> u32 {
        let Rate { limit, per, burst } = self.rate;
        let [limit, burst, all] = [limit.get(), burst.get(), self.spread.all].map(u32::to_le_bytes);
        let per = per.as_nanos().to_le_bytes();
        let bytes = [self.pool.as_bytes(), &limit, &burst, &all, &per].concat();
        xxh3_64(&bytes) as u32
    }

    /// The time between two attempts of a shard alone.
    fn alone(&self) -> Duration {
        Duration::from_nanos(self.spread.period(self.rate, NonZeroU32::MIN))
    }

    /// Whether it is committed what is saved up.
    fn is_kept(&self) -> bool {
        self.alone() >= KEPT
    }

    /// Most that a shard can save up, as the time it takes.
    fn most(&self) -> Duration {
        let burst = u128::from(self.rate.burst.get());
        let nanos = self.alone().as_nanos() * burst / u128::from(self.spread.count);
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(MOST).min(MOST))
    }

    /// What each of our shards has saved up, as the time in which it does alone.
    fn saved_by_each(&self, now: Duration) -> Duration {
        let part = self.part.as_ref();
        part.map_or(Duration::ZERO, |part| {
            part.each(part.saved(now), self.alone())
        })
    }

    /// What our shards have saved up together, in nanoseconds of one of them.
    fn saved_by_all(&self, now: Duration) -> u128 {
        let part = self.part.as_ref();
        part.map_or(0, |part| part.all(part.saved(now), self.alone()))
    }

    /// So many shards are ours, which have `saved` up together, in nanoseconds of one of them.
    fn set(&mut self, owned: u32, saved: u128, clock: &ToldClock) {
        self.owned = owned;
        self.part = Part::new(self.rate, self.spread, owned, clock);
        if let Some(part) = &self.part {
            part.begin(saved, self.alone());
        }
    }

    /// What may be saved up beyond what is committed.
    fn step(&self, period: Duration) -> Duration {
        let (least, most) = STEPS;
        let step = period / 8;
        if self.kept.waits {
            step.clamp(least, most)
        } else {
            step.max(least)
        }
    }

    /// When more is to be committed than is, if ever.
    fn save_at(&self, now: Duration) -> Option<Duration> {
        let part = self.part.as_ref()?;
        if !self.is_kept() || part.period < SLOW {
            return None;
        }
        let Some(last) = self.kept.last else {
            return Some(now);
        };
        let (saved, full) = (
            self.saved_by_each(now),
            part.each(part.full(), self.alone()),
        );
        let step = self.step(part.period);
        let at = (last + step).min(full);
        // What is nearly full is so.
        let is_full = last + Duration::from_millis(2) >= full;
        // An attempt is about to take it.
        let is_near = self.kept.waits && at.max(saved) + AHEAD * 2 >= part.period;
        let soonest = self.kept.started + step;
        (!is_full && !is_near).then(|| soonest.max(now + at.saturating_sub(saved)))
    }

    /// What the next commit is to say that each of our shards has saved up, if it is to say something new.
    fn to_say(&self, now: Duration) -> Option<Duration> {
        let Kept { last, spend, .. } = self.kept;
        let is_slow = self.part.as_ref().is_some_and(|part| part.period >= SLOW);
        if spend || !is_slow {
            return (last != Some(Duration::ZERO)).then_some(Duration::ZERO);
        }
        let is_time = self.save_at(now).is_some_and(|at| at <= now);
        (last.is_none() || is_time).then(|| self.saved_by_each(now))
    }

    /// The shard of the spread whose turn it is.
    fn next(&mut self) -> i32 {
        let turn = self.moves;
        self.moves = turn.wrapping_add(1);
        self.spread.shard(turn)
    }
}

// === impl Kept ===

impl Kept {
    /// Most that a next owner may be told.
    fn most(&self) -> Duration {
        let under_way = self.under_way.iter().map(|(_, says)| *says);
        under_way.fold(self.durable, Duration::max)
    }

    /// Commits say one thing or another: what they say is not known again before the next one is durable.
    fn unite(&mut self) {
        self.durable = self.most();
        self.under_way.clear();
        self.last = None;
    }

    /// An attempt is to start that needs it: whether that has yet to be committed.
    fn spend(&mut self) -> bool {
        self.spend = self.last != Some(Duration::ZERO);
        self.spend
    }
}

// === impl Part ===

impl Part {
    /// The quota of a worker that owns `owned` of the rate's shards; `None` if it owns none of them. The limiter is `governor`'s (the generic cell rate algorithm,
    /// ITU-T I.371), with nothing used up.
    fn new(rate: Rate, spread: Spread, owned: u32, clock: &ToldClock) -> Option<Self> {
        let shards = NonZeroU32::new(owned)?;
        let nanos = spread.period(rate, shards);
        let period = Duration::from_nanos(nanos);
        // An attempt for each of our shards at least: the rate belongs to as many as its burst has.
        let burst = u128::from(rate.burst.get()) * u128::from(owned) / u128::from(spread.count);
        let burst = burst.min(u128::from(MOST / nanos)) as u32;
        let burst = NonZeroU32::new(burst).unwrap_or(NonZeroU32::MIN);
        let quota = Quota::with_period(period)
            .unwrap_or_else(|| unreachable!("a period of at least a nanosecond"))
            .allow_burst(burst);
        let arrival = Arrival(Arc::default());
        Some(Self {
            owned,
            period,
            burst,
            since: Duration::from_nanos(clock.now().as_u64()),
            arrival: arrival.clone(),
            limiter: RateLimiter::new(quota, arrival, clock.clone()),
        })
    }

    /// Begins with what its shards have `saved` up together, in nanoseconds of one of them, which takes `alone` from one attempt to the next.
    fn begin(&self, saved: u128, alone: Duration) {
        let full = self.full().as_nanos();
        let saved = saved.min(u128::from(MOST) * u128::from(self.owned));
        let saved = (saved * self.period.as_nanos() / alone.as_nanos().max(1)).min(full);
        self.arrival.set((full - saved) as u64);
    }

    /// What the limiter has saved up, as the time it took.
    fn saved(&self, now: Duration) -> Duration {
        let by_now = now.saturating_sub(self.since) + self.full();
        by_now.saturating_sub(self.arrival.get()).min(self.full())
    }

    /// Most that it can save up.
    fn full(&self) -> Duration {
        self.period * self.burst.get()
    }

    /// So much of what is saved up, in nanoseconds of one of its shards.
    fn all(&self, saved: Duration, alone: Duration) -> u128 {
        saved.as_nanos() * alone.as_nanos() / self.period.as_nanos()
    }

    /// The part of it that each of its shards has, in the time of one.
    fn each(&self, saved: Duration, alone: Duration) -> Duration {
        let nanos = self.all(saved, alone) / u128::from(self.owned.max(1));
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(MOST))
    }

    /// Lets an attempt start, or says when one may.
    fn check(&self, now: Duration, clock: &ToldClock) -> Result<(), Duration> {
        self.limiter.check().map_err(|not_until| {
            let wait = not_until.wait_time_from(clock.now());
            now.saturating_add(wait)
        })
    }
}

// === impl Arrival ===

impl Arrival {
    /// The time.
    fn get(&self) -> Duration {
        Duration::from_nanos(self.0.load(Ordering::Acquire))
    }

    /// Sets it.
    fn set(&self, nanos: u64) {
        self.0.store(nanos, Ordering::Release);
    }
}

impl StateStore for Arrival {
    type Key = NotKeyed;

    fn measure_and_replace<T, F, E>(&self, _key: &NotKeyed, decide: F) -> Result<T, E>
    where
        F: Fn(Option<Nanos>) -> Result<(T, Nanos), E>,
    {
        // Nobody else writes: a limiter is one worker's.
        let (answer, next) = decide(Some(self.0.load(Ordering::Acquire).into()))?;
        self.set(next.into());
        Ok(answer)
    }
}

// === impl Spread ===

impl Spread {
    /// How many of these shards the rate belongs to.
    fn among(self, owned: &BTreeSet<i32>) -> u32 {
        owned.iter().filter(|shard| self.has(**shard)).count() as u32
    }

    /// The time between two attempts of a worker that has so many of them, in nanoseconds.
    fn period(self, rate: Rate, shards: NonZeroU32) -> u64 {
        let pace = u128::from(rate.limit.get()) * u128::from(shards.get());
        let nanos = (rate.per.as_nanos() * u128::from(self.count)).div_ceil(pace);
        u64::try_from(nanos).unwrap_or(MOST).clamp(1, MOST)
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
