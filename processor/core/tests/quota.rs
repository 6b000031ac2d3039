//! Rates over a whole group: no span of time sees more than the limit and one burst, and little of the limit is left unused, whoever comes,
//! goes or dies.

use std::collections::{BTreeMap, VecDeque};
use std::num::NonZeroU32;
use std::time::Duration;

use proptest::prelude::*;

use retide_core::completions::{Binding, Completions};
use retide_core::quota::Quotas;
use retide_core::saved::{MachineTime, Saved};
use retide_core::scene::{Host, Target};
use retide_core::{Backoff, Jitter, Ordering, Policy, Rate, Scene, Scenes};

const SCENE: &str = "pay";

const fn count(value: u32) -> NonZeroU32 {
    NonZeroU32::new(value).unwrap()
}

fn rules(rate: Rate) -> Scenes {
    [scene(SCENE, None, rate)].into_iter().collect()
}

fn scene(name: &str, host: Option<&str>, rate: Rate) -> Scene {
    Scene {
        host: host.map(|name| Host {
            name: name.into(),
            rate: true,
            concurrency: false,
        }),
        rate: Some(rate),
        concurrency: count(1),
        ..Scene::new(
            name,
            Target::Call,
            Policy {
                backoff: Backoff::classic(),
                jitter: Jitter::None,
                max_attempts: count(3),
            },
        )
    }
}

const fn rate_of(limit: u32, secs: u64, burst: u32) -> Rate {
    Rate {
        limit: count(limit),
        per: Duration::from_secs(secs),
        burst: count(burst),
    }
}

/// A worker, whose steady clock began at an instant of its own.
struct Worker {
    shares: Quotas,
    born: Duration,
    /// Which of the rules it follows.
    follows: usize,
}

/// A commit under way: its number, and what it says of each shard.
type Under = (u64, Vec<(i32, Saved)>);

/// A group, and what its targets saw.
struct Group {
    workers: Vec<Worker>,
    /// The owner of each shard.
    owners: Vec<Option<usize>>,
    /// What is committed of each shard.
    committed: Vec<Saved>,
    /// The commits of each worker under way, oldest first, each with its number.
    under_way: Vec<VecDeque<Under>>,
    /// The rates that were put in force, and when.
    rules: Vec<(Duration, Rate)>,
    /// The starts under each of them.
    starts: BTreeMap<usize, Vec<Duration>>,
    now: Duration,
}

impl Group {
    fn new(all: u32, born: &[u64], rate: Rate) -> Self {
        let worker = |born: &u64| {
            let mut shares = Quotas::new(count(all));
            shares.set_machine(machine(Duration::from_nanos(*born)));
            shares.follow(Duration::from_nanos(*born), &rules(rate));
            Worker {
                shares,
                born: Duration::from_nanos(*born),
                follows: 0,
            }
        };
        Self {
            workers: born.iter().map(worker).collect(),
            owners: vec![None; all as usize],
            committed: vec![Saved::default(); all as usize],
            under_way: vec![VecDeque::new(); born.len()],
            rules: vec![(Duration::ZERO, rate)],
            starts: BTreeMap::new(),
            now: Duration::ZERO,
        }
    }

    /// Whoever has the shard gives it up before the other one takes it.
    fn give(&mut self, shard: usize, to: Option<usize>) {
        if let Some(before) = self.owners[shard] {
            let Worker { shares, born, .. } = &mut self.workers[before];
            shares.give_up(*born + self.now, shard as i32);
            self.commit(before);
            self.commit_all(before);
            self.workers[before].shares.release(shard as i32);
        }
        self.take(shard, to);
    }

    /// A shard is somebody's, or nobody's.
    fn take(&mut self, shard: usize, to: Option<usize>) {
        self.owners[shard] = to;
        if let Some(after) = to {
            let saved = self.read_again(shard);
            let Worker { shares, born, .. } = &mut self.workers[after];
            shares.bring(shard as i32, saved);
            shares.take(*born + self.now, shard as i32);
        }
    }

    /// Hands over a commit of a worker, if it wants one.
    fn commit(&mut self, worker: usize) {
        let Worker { shares, born, .. } = &mut self.workers[worker];
        shares.note_time(*born + self.now);
        if !shares.is_unsaved() {
            return;
        }
        let mut number = 0;
        let said = shares.save(*born + self.now).into_iter().map(|shard| {
            let (saved, of) = shares.saved(shard);
            number = of;
            (shard, saved)
        });
        let said = said.collect();
        self.under_way[worker].push_back((number, said));
    }

    /// The oldest commit of a worker is durable.
    fn end_commit(&mut self, worker: usize) {
        if let Some((number, said)) = self.under_way[worker].pop_front() {
            for (shard, saved) in said {
                self.committed[shard as usize] = saved;
            }
            self.workers[worker].shares.committed(number);
        }
    }

    /// All commits of a worker are durable.
    fn commit_all(&mut self, worker: usize) {
        while !self.under_way[worker].is_empty() {
            self.end_commit(worker);
        }
    }

    /// No commit of a worker that is under way is made.
    fn return_all(&mut self, worker: usize) {
        if !self.under_way[worker].is_empty() {
            self.under_way[worker].clear();
            self.workers[worker].shares.returned();
        }
    }

    /// What a next owner reads of what is committed.
    fn read_again(&self, shard: usize) -> Saved {
        let binding = Binding::default();
        let text = Completions::default().encode_with(&self.committed[shard], binding, 7);
        let read = Completions::decode_with(&text, binding, 7);
        read.unwrap().1
    }

    /// A worker dies, and its commits under way, or all but the first, with it. Another one begins in its place.
    fn kill(&mut self, worker: usize, written: bool) {
        if written {
            self.end_commit(worker);
        }
        self.under_way[worker].clear();
        let all = count(self.owners.len() as u32);
        let mut shares = Quotas::new(all);
        shares.set_machine(machine(self.workers[worker].born));
        self.workers[worker].shares = shares;
        self.follow(worker);
        for shard in 0..self.owners.len() {
            if self.owners[shard] == Some(worker) {
                self.owners[shard] = None;
            }
        }
    }

    /// Puts the last rules in force for a worker.
    fn follow(&mut self, worker: usize) {
        let last = self.rules.len() - 1;
        let worker = &mut self.workers[worker];
        let rules = rules(self.rules[last].1);
        worker.shares.follow(worker.born + self.now, &rules);
        worker.follows = last;
    }

    /// Starts all that a worker may start, at most `most`; when it may start more.
    fn start(&mut self, worker: usize, most: usize) -> Option<Duration> {
        let Worker {
            shares,
            born,
            follows,
        } = &mut self.workers[worker];
        for _ in 0..most {
            if let Err(until) = shares.admit(*born + self.now, SCENE) {
                return Some(until.saturating_sub(*born));
            }
            self.starts.entry(*follows).or_default().push(self.now);
        }
        None
    }

    /// The first span of time with too many starts.
    fn excess(&self) -> Option<String> {
        // The same rate again is another one: it is put in force when nobody has saved up anything for it, or goes on.
        for (index, starts) in &self.starts {
            let (since, Rate { limit, per, burst }) = self.rules[*index];
            let within = |count: usize, span: Duration, burst: u32| {
                count as u128 * per.as_nanos()
                    <= u128::from(limit.get()) * span.as_nanos()
                        + u128::from(burst) * per.as_nanos()
            };
            for (last, end) in starts.iter().enumerate() {
                if !within(last + 1, end.saturating_sub(since), 0) {
                    return Some(format!("{} since {since:?}, at {end:?}", last + 1));
                }
                for (first, start) in starts[..=last].iter().enumerate() {
                    let count = last - first + 1;
                    if !within(count, end.saturating_sub(*start), burst.get()) {
                        return Some(format!("{count} from {start:?} to {end:?}"));
                    }
                }
            }
        }
        None
    }
}

/// What the clock of the machine, one of two, showed when the steady time of a worker began.
fn machine(born: Duration) -> MachineTime {
    let started = [(born.as_nanos() % 2) as u8];
    MachineTime::new(&started, Duration::from_nanos(1 << 51).saturating_sub(born))
}

/// What happens.
#[derive(Clone, Debug)]
enum Step {
    /// Time passes, in thousandths of the time between two attempts of the group.
    Pass(u32),
    /// A worker starts what it may.
    Start(usize, usize),
    /// A shard changes hands.
    Move(usize, Option<usize>),
    /// Other rules are put in force.
    Rules(Rate),
    /// A worker hears of them.
    Follow(usize),
    /// A worker commits, if it wants to.
    Commit(usize),
    /// Its oldest commit is durable.
    Committed(usize),
    /// Its commits are not made.
    Returned(usize),
    /// It dies; its oldest commit may have been made.
    Kill(usize, bool),
}

fn rate() -> impl Strategy<Value = Rate> {
    let per = prop_oneof![Just(1_u64), Just(7), Just(60), Just(86_400)];
    (1_u32..50, per, 1_u32..20).prop_map(|(limit, per, burst)| Rate {
        limit: count(limit),
        per: Duration::from_secs(per),
        burst: count(burst),
    })
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0_u32..3_000).prop_map(Step::Pass),
        // A quiet time, so that a burst is saved up.
        1 => (0_u32..40_000).prop_map(Step::Pass),
        8 => (0_usize..6, 1_usize..40).prop_map(|(worker, most)| Step::Start(worker, most)),
        4 => (0_usize..12, prop::option::weighted(0.8, 0_usize..6)).prop_map(|(shard, to)| Step::Move(shard, to)),
        1 => rate().prop_map(Step::Rules),
        2 => (0_usize..6).prop_map(Step::Follow),
        8 => (0_usize..6).prop_map(Step::Commit),
        8 => (0_usize..6).prop_map(Step::Committed),
        1 => (0_usize..6).prop_map(Step::Returned),
        1 => (0_usize..6, any::<bool>()).prop_map(|(worker, written)| Step::Kill(worker, written)),
    ]
}

#[test]
fn a_scene_that_keeps_an_order_has_a_part_of_its_rate_in_each_shard_and_its_tasks_stay() {
    let rate = rate_of(4, 1, 1);
    let mut ordered = scene("ordered", Some("host"), rate);
    ordered.ordering = Ordering::Key;
    let free = scene("free", Some("host"), rate);
    let mut shares = Quotas::new(count(4));
    shares.follow(Duration::ZERO, &[ordered, free].into_iter().collect());
    (0..4).for_each(|shard| shares.take(Duration::ZERO, shard));

    for shard in 0..4 {
        assert!(shares.belongs("ordered", shard));
        assert_eq!(shares.detour("ordered", shard), None);
        assert_eq!(shares.elsewhere("ordered", shard), None);
    }
    assert_eq!(shares.longest_queue("ordered"), None);
    // It is the rate of both, and those of the other one may move.
    let elsewhere: Vec<_> = (0..4).map(|_| shares.elsewhere("free", 0)).collect();
    assert_eq!(elsewhere.iter().flatten().count(), 3);
    assert_eq!(shares.longest_queue("free"), Some(40));
}

proptest! {
    #[test]
    fn no_span_of_time_sees_more_than_the_limit_and_one_burst(
        shards in 1_u32..=12,
        born in prop::collection::vec(0_u64..1 << 50, 1..=6),
        rate in rate(),
        steps in prop::collection::vec(step(), 1..200),
    ) {
        let mut group = Group::new(shards, &born, rate);
        for shard in 0..shards as usize {
            group.give(shard, Some(shard % born.len()));
        }

        for step in steps {
            match step {
                Step::Pass(thousandths) => {
                    let Rate { limit, per, .. } = group.rules[group.rules.len() - 1].1;
                    group.now += per / limit.get() * thousandths / 1_000;
                }
                Step::Start(worker, most) => {
                    group.start(worker % born.len(), most);
                }
                Step::Move(shard, to) => {
                    group.give(shard % shards as usize, to.map(|to| to % born.len()));
                }
                // The same one again would go on for those who have heard of no other.
                Step::Rules(rate) => {
                    if group.rules.iter().all(|(_, before)| *before != rate) {
                        group.rules.push((group.now, rate));
                    }
                }
                Step::Follow(worker) => group.follow(worker % born.len()),
                Step::Commit(worker) => group.commit(worker % born.len()),
                Step::Committed(worker) => group.end_commit(worker % born.len()),
                Step::Returned(worker) => group.return_all(worker % born.len()),
                Step::Kill(worker, written) => group.kill(worker % born.len(), written),
            }
        }

        prop_assert_eq!(group.excess(), None);
    }

    #[test]
    fn a_task_moves_once_to_where_a_rate_is_whatever_rules_its_owners_follow(
        shards in 1_u32..40,
        bursts in prop::collection::vec(1_u32..50, 2),
        at in 0_i32..50,
    ) {
        let under = |burst: u32| {
            let mut shares = Quotas::new(count(shards));
            let rate = Rate { limit: count(1), per: Duration::from_secs(1), burst: count(burst) };
            shares.follow(Duration::ZERO, &rules(rate));
            shares
        };
        let (mut before, mut after) = (under(bursts[0]), under(bursts[1]));

        let belongs: Vec<i32> = (0..shards as i32).filter(|shard| before.belongs(SCENE, *shard)).collect();
        prop_assert_eq!(belongs.len() as u32, bursts[0].min(shards));
        // Twice around, so that every turn comes.
        for _ in 0..2 * shards {
            let first = before.detour(SCENE, at).unwrap_or(at);
            let second = after.detour(SCENE, first).unwrap_or(first);
            prop_assert!(before.belongs(SCENE, first) && (0..shards as i32).contains(&first));
            prop_assert!(after.belongs(SCENE, second) && (0..shards as i32).contains(&second));
            let third = before.detour(SCENE, second).unwrap_or(second);
            prop_assert!(before.belongs(SCENE, third) && after.belongs(SCENE, third));
        }
    }
}

#[test]
fn tasks_that_move_go_to_the_shards_of_a_rate_in_turn() {
    let mut shares = Quotas::new(count(12));
    shares.follow(Duration::ZERO, &rules(rate_of(12, 1, 3)));
    let first = (0..12)
        .find(|shard| shares.belongs(SCENE, *shard) && !shares.belongs(SCENE, (shard + 11) % 12));
    let ours: Vec<i32> = (0..3).map(|turn| (first.unwrap() + turn) % 12).collect();
    let other = (ours[2] + 1) % 12;

    let detours: Vec<i32> = (0..6).filter_map(|_| shares.detour(SCENE, other)).collect();
    let moves: Vec<Option<i32>> = (0..3).map(|_| shares.elsewhere(SCENE, ours[1])).collect();

    assert_eq!(detours, [&ours[..], &ours[..]].concat());
    // The turn of our own passes as any other.
    assert_eq!(moves, [Some(ours[0]), None, Some(ours[2])]);
}

#[test]
fn a_line_is_long_that_takes_ten_seconds() {
    let mut group = Group::new(12, &[0], rate_of(50, 1, 50));
    let shares = &mut group.workers[0].shares;
    assert_eq!(shares.longest_queue(SCENE), None);

    shares.take(Duration::ZERO, 0);
    // An attempt every 240 ms.
    assert_eq!(shares.longest_queue(SCENE), Some(41));
    shares.take(Duration::ZERO, 1);
    assert_eq!(shares.longest_queue(SCENE), Some(83));

    let mut alone = Quotas::new(count(12));
    alone.follow(Duration::ZERO, &rules(rate_of(50, 1, 1)));
    (0..12).for_each(|shard| alone.take(Duration::ZERO, shard));
    assert_eq!(alone.longest_queue(SCENE), None);
}

#[test]
fn a_group_left_alone_uses_its_rate() {
    // Half a millisecond: as late as a wake may be, rounded up.
    let late = Duration::from_micros(500);
    for (limit, per, burst) in [
        (50, 1, 1),
        (50, 1, 5),
        (1_000, 1, 100),
        (100, 1, 20),
        (5, 60, 1),
        (5, 60, 12),
        (5, 60, 30),
        (1, 60, 1),
    ] {
        let rate = rate_of(limit, per, burst);
        let per = rate.per;
        let mut group = Group::new(12, &[0, 1 << 40, 77], rate);
        for shard in 0..12 {
            group.give(shard, Some(shard / 5));
        }

        let end = per * 2_000 / limit;
        while group.now < end {
            let wakes: Vec<Duration> = (0..3)
                .filter_map(|worker| {
                    group.commit(worker);
                    group.commit_all(worker);
                    group.start(worker, usize::MAX)
                })
                .collect();
            let next = wakes.iter().min().copied();
            group.now = (next.unwrap() + late).max(group.now + late);
        }

        let starts = group.starts[&0].len();
        assert_eq!(group.excess(), None, "{rate:?}");
        assert!(starts >= 1_900, "{starts} of 2000 under {rate:?}");
    }
}

#[test]
fn a_shard_takes_its_part_of_what_is_saved_up_along() {
    let rate = rate_of(12, 60, 12);
    let mut group = Group::new(12, &[0, 0], rate);
    for shard in 0..12 {
        group.give(shard, Some(0));
    }
    group.now = Duration::from_hours(1);
    group.start(0, 0);

    for shard in 0..9 {
        group.give(shard, Some(1));
    }
    for worker in 0..2 {
        group.commit(worker);
        group.start(worker, 1);
        group.commit(worker);
        group.commit_all(worker);
    }
    group.start(0, 99);
    assert_eq!(group.starts[&0].len(), 3);
    group.start(1, 99);

    // All of the burst, to the millisecond.
    assert_eq!(group.starts[&0].len(), 11);
    assert_eq!(group.excess(), None);
}

/// A worker that has one shard of four, and lives for so long each time before the next one begins, until `until`; how many attempts it
/// starts.
fn live_and_let_die(rate: Rate, until: Duration, lives: Duration, killed: bool) -> usize {
    let mut group = Group::new(1, &[0], rate);
    while group.now < until {
        group.take(0, Some(0));
        let end = group.now + lives;
        while group.now < end {
            group.start(0, 1);
            group.commit(0);
            // A commit takes as long as this.
            group.now += Duration::from_millis(50);
            group.commit_all(0);
        }
        if killed {
            group.kill(0, false);
        } else {
            group.give(0, None);
            group.kill(0, false);
        }
        // The next one takes its time.
        group.now += Duration::from_secs(2);
    }
    assert_eq!(group.excess(), None);
    group.starts.values().map(Vec::len).sum()
}

#[test]
fn a_rate_that_is_slower_than_restarts_is_kept_and_used() {
    // In 20 minutes.
    let lives = |per, lives, killed| {
        let until = Duration::from_mins(20);
        live_and_let_die(
            rate_of(1, per, 1),
            until,
            Duration::from_secs(lives),
            killed,
        )
    };

    // Time between two owners counts.
    assert!((19..=20).contains(&lives(60, 38, false)));
    assert!((99..=200).contains(&lives(6, 2, false)));
    assert_eq!(lives(1_000, 5, false), 1);
    // It does not where the owner has died, nor what was saved up after its last commit.
    let killed = lives(60, 38, true);
    assert!((14..=19).contains(&killed), "{killed}");
    let killed = lives(6, 4, true);
    assert!((70..=140).contains(&killed), "{killed}");
}

#[test]
fn what_is_saved_up_stays_while_a_worker_has_as_many_shards_of_a_rate() {
    // Of twelve shards, the rate belongs to three.
    let mut group = Group::new(12, &[0, 0], rate_of(12, 60, 3));
    for shard in 0..12 {
        group.give(shard, Some(0));
    }
    group.now = Duration::from_hours(1);

    // Those it does not belong to come and go, and what is had already is given once more; nobody is kept waiting by that.
    let others = (0..12).filter(|shard| !group.workers[0].shares.belongs(SCENE, *shard));
    for shard in others.collect::<Vec<_>>() {
        group.give(shard as usize, Some(1));
        group.give(shard as usize, Some(0));
    }
    let now = group.now;
    (0..12).for_each(|shard| group.workers[0].shares.take(now, shard));
    let rules = rules(group.rules[0].1);
    group.workers[0].shares.follow(now, &rules);
    group.start(0, 1);
    group.commit(0);
    group.commit_all(0);
    group.start(0, 99);

    assert_eq!(group.starts[&0].len(), 3);
}

#[test]
fn scenes_of_one_host_and_rate_have_it_in_common_and_others_do_not() {
    let (rate, other) = (rate_of(10, 1, 12), rate_of(10, 1, 24));
    let host = Some("https://shop.example:443");
    let scenes: Scenes = [
        scene("paid", host, rate),
        scene("sent", host, rate),
        scene("its-own", None, rate),
        scene("another", host, other),
    ]
    .into_iter()
    .collect();
    let mut shares = Quotas::new(count(12));
    shares.follow(Duration::ZERO, &scenes);
    for shard in 0..12 {
        shares.take(Duration::ZERO, shard);
    }
    let later = Duration::from_mins(1);
    let admitted = |shares: &mut Quotas, scene: &str| {
        let asks = std::iter::repeat_with(|| shares.admit(later, scene));
        asks.take_while(Result::is_ok).count()
    };

    assert_eq!(admitted(&mut shares, "paid"), 12);
    assert_eq!(admitted(&mut shares, "sent"), 0);
    assert_eq!(admitted(&mut shares, "its-own"), 12);
    assert_eq!(admitted(&mut shares, "another"), 24);

    // What one of them has used up stays so when another one goes.
    let left: Scenes = [scene("sent", host, rate)].into_iter().collect();
    shares.follow(later, &left);
    assert_eq!(admitted(&mut shares, "sent"), 0);
}
