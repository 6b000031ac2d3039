//! Scenes that keep the order of their keys: what the engine does, over random histories with crashes, too.

mod support;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;

use retide_core::Position;
use retide_core::completions::Completions;
use retide_core::key_order::{Awaited, Fingerprint, Shard};
use retide_core::lane::Limits;
use retide_core::scene::Target;
use retide_core::{
    Action, Commit, Engine, Entry, Failure, Fate, Gates, Input, Ladder, LaneId, Now, Ordering,
    Outcome, Returned, Scene, Scenes, Settlement, Sink, Sinks, Source, State, Task, Timestamp,
    Transition, Wait, Writable,
};

use support::{TASKS, at};

fn rules(name: &str, target: Target, ordering: Ordering, backoff: u64) -> Scene {
    Scene {
        concurrency: NonZeroU32::new(8).unwrap(),
        ordering,
        ..Scene::new(
            name,
            target,
            support::policy(Duration::from_millis(backoff), 3),
        )
    }
}

/// Scenes: one that calls and one that produces, both in order, and one without order.
fn scenes(backoff: u64) -> Scenes {
    let topic = Target::Produce { topic: "t".into() };
    [
        rules("pay", Target::Call, Ordering::Key, backoff),
        rules("copy", topic, Ordering::Key, backoff),
        rules("any", Target::Call, Ordering::None, backoff),
    ]
    .into_iter()
    .collect()
}

fn task(scene: &str, key: &str, offset: i64, due: Now) -> Task {
    let mut task = support::task(&format!("{offset}"), scene, due.wall);
    task.first_failed_at = at(0).wall;
    task.origin.offset = offset;
    task.record.key = Some(key.to_owned().into());
    task.record.value = Some("payload".into());
    task
}

fn engine(limits: Limits) -> Engine {
    let gates = Arc::new(Gates::default());
    Engine::new(Ladder::default(), limits, gates, NonZeroU32::MIN)
}

/// A batch that is being written.
#[derive(Default)]
struct Batch {
    settled: Vec<Settlement>,
    commits: Vec<Commit>,
    changes: Vec<Entry>,
}

/// What a reader of a lane knows.
#[derive(Clone, Copy, Default)]
struct Reader {
    next: i64,
    run: u64,
    paused: bool,
}

/// A broker as far as one shard needs it, and one worker after the other.
struct World {
    engine: Engine,
    scenes: Scenes,
    limits: Limits,
    millis: u64,
    /// What stands in each lane, and when it was appended.
    logs: BTreeMap<LaneId, Vec<(Timestamp, Task)>>,
    /// The offsets in force.
    committed: BTreeMap<LaneId, (i64, Completions)>,
    /// The order topic, compacted.
    order: BTreeMap<Fingerprint, bytes::Bytes>,
    /// How often the order topic was written to.
    writes: usize,
    readers: BTreeMap<LaneId, Reader>,
    calls: BTreeMap<u64, Arc<Task>>,
    settled: Vec<Settlement>,
    under_way: VecDeque<Batch>,
    /// Whether topics of targets refuse records.
    refuses: bool,
    /// Tasks that have ended durably, and how often.
    ended: BTreeMap<i64, u32>,
    /// Started attempts, in their order.
    starts: Vec<i64>,
    /// How late the calls among them started, by cause.
    waits: Vec<Wait>,
    /// Most bytes that were held of keys.
    most_held: usize,
    /// Whether what was known of the order survives a crash: it must.
    forgets: bool,
}

impl World {
    /// Three tasks of one key were produced, and the first of them has failed and is parked for a minute.
    fn with_first_parked() -> Self {
        Self::with_first_of_parked(3, 60_000)
    }

    /// So many tasks of a key, of which the first one is parked for so long.
    fn with_first_of_parked(tasks: usize, delay: u64) -> Self {
        let mut world = Self::new(scenes(delay), Limits::of(64 << 20));
        for _ in 0..tasks {
            world.produce("pay", "a", 0);
        }
        world.read_all();
        world.answer(0, failed());
        world.submit();
        world.commit();
        world
    }

    /// As [`Self::with_first_parked`] with one task behind it, at a time when the first one is due and not read: it is looked for.
    fn with_first_awaited() -> (Self, Vec<Awaited>) {
        let mut world = Self::with_first_of_parked(2, 1_500);
        world.pass(2_000);
        let awaited = world.engine.awaited(|_| at(world.millis).wall);
        assert_eq!(awaited.len(), 1);
        (world, awaited)
    }

    fn new(scenes: Scenes, limits: Limits) -> Self {
        let mut world = Self {
            engine: engine(limits),
            scenes,
            limits,
            millis: 0,
            logs: BTreeMap::new(),
            committed: BTreeMap::new(),
            order: BTreeMap::new(),
            writes: 0,
            readers: BTreeMap::new(),
            calls: BTreeMap::new(),
            settled: Vec::new(),
            under_way: VecDeque::new(),
            refuses: false,
            ended: BTreeMap::new(),
            starts: Vec::new(),
            waits: Vec::new(),
            most_held: 0,
            forgets: false,
        };
        world.begin();
        world
    }

    fn lanes() -> impl Iterator<Item = LaneId> {
        let tiers = (0..11).map(Source::Tier);
        tiers
            .chain([Source::Tasks])
            .map(|source| LaneId { shard: 0, source })
    }

    /// A worker gets the shard.
    fn begin(&mut self) {
        self.engine = engine(self.limits);
        self.calls.clear();
        self.settled.clear();
        self.under_way.clear();
        self.step(Input::Rules(self.scenes.clone()));
        let mut order = Shard::default();
        for (key, value) in self.order.iter().filter(|_| !self.forgets) {
            order
                .replay(key.to_string().as_bytes(), Some(value))
                .unwrap();
        }
        let order = Box::new(order);
        self.step(Input::Outstanding { shard: 0, order });
        for lane in Self::lanes() {
            let (start, known) = self.committed.get(&lane).cloned().unwrap_or_default();
            let reader = Reader {
                next: start,
                ..Reader::default()
            };
            self.readers.insert(lane, reader);
            self.step(Input::Assign { lane, start, known });
        }
    }

    fn produce(&mut self, scene: &str, key: &str, due_in: u64) -> i64 {
        let log = self.logs.entry(TASKS).or_default();
        let offset = log.len() as i64;
        let due = at(self.millis + due_in);
        log.push((at(self.millis).wall, task(scene, key, offset, due)));
        offset
    }

    /// Reads up to `most` records of a lane.
    fn read(&mut self, lane: LaneId, most: usize) {
        for _ in 0..most {
            let reader = self.readers[&lane];
            let log = self.logs.entry(lane).or_default();
            let Some((appended, task)) = log.get(reader.next as usize).cloned() else {
                return;
            };
            if reader.paused {
                return;
            }
            self.readers.get_mut(&lane).unwrap().next += 1;
            let position = Position {
                lane,
                run: reader.run,
                offset: reader.next,
            };
            let task = Box::new(task);
            self.step(Input::Record {
                position,
                appended,
                task,
            });
        }
    }

    fn read_all(&mut self) {
        for lane in Self::lanes() {
            self.read(lane, usize::MAX);
        }
    }

    fn pass(&mut self, millis: u64) {
        self.millis += millis;
        self.step(Input::Tick);
    }

    fn answer(&mut self, nth: usize, outcome: Outcome) {
        if let Some(ticket) = self.calls.keys().nth(nth).copied() {
            self.calls.remove(&ticket);
            self.step(Input::Attempted { ticket, outcome });
        }
    }

    /// Hands a batch over.
    fn submit(&mut self) {
        if self.under_way.len() < 2 {
            let commits = self.engine.commits();
            let changes = self.engine.changes();
            self.under_way.push_back(Batch {
                settled: std::mem::take(&mut self.settled),
                commits,
                changes: changes
                    .into_iter()
                    .filter_map(|(_, state)| match state {
                        State::Order(_) => Some(Entry::State(state)),
                        State::Taken { .. }
                        | State::Letters { .. }
                        | State::Warned { .. }
                        | State::Step { .. }
                        | State::Hold { .. }
                        | State::Id { .. }
                        | State::Replaced { .. } => None,
                    })
                    .collect(),
            });
        }
    }

    /// Makes the oldest batch durable, and says so.
    fn commit(&mut self) {
        if let Some(batch) = self.under_way.pop_front() {
            let refused = self.write(&batch);
            for (lane, offset) in refused {
                let commit = batch.commits.iter().find(|commit| commit.lane == lane);
                let epoch = commit.unwrap().epoch;
                self.step(Input::Refused {
                    lane,
                    epoch,
                    offset,
                });
            }
            for Commit {
                lane,
                epoch,
                watermark,
                ..
            } in batch.commits
            {
                self.step(Input::Committed {
                    lane,
                    epoch,
                    watermark,
                });
            }
        }
    }

    /// The worker dies, its oldest batch written or not.
    fn crash(&mut self) {
        if self.millis.is_multiple_of(2)
            && let Some(batch) = self.under_way.pop_front()
        {
            self.write(&batch);
        }
        self.begin();
    }

    fn write(&mut self, batch: &Batch) -> Vec<(LaneId, i64)> {
        let now = at(self.millis).wall;
        let mut refused = Vec::new();
        let mut entries: Vec<&Entry> = Vec::new();
        for settlement in &batch.settled {
            if self.refuses && !settlement.otherwise.is_empty() {
                refused.push((settlement.lane, settlement.offset));
                entries.extend(&settlement.otherwise);
            } else {
                entries.extend(&settlement.entries);
            }
        }
        for entry in entries.into_iter().chain(&batch.changes) {
            match entry {
                Entry::Park { tier, task, .. } => {
                    let source = Source::Tier(*tier);
                    let lane = LaneId { shard: 0, source };
                    let log = self.logs.entry(lane).or_default();
                    log.push((now, (**task).clone()));
                }
                Entry::Callback(ended) => {
                    *self.ended.entry(ended.origin.offset).or_default() += 1;
                }
                Entry::State(State::Order(change)) => {
                    self.writes += 1;
                    match &change.value {
                        Some(value) => self.order.insert(change.key, value.clone()),
                        None => self.order.remove(&change.key),
                    };
                }
                Entry::Deliver { .. }
                | Entry::DeadLetter { .. }
                | Entry::Poison { .. }
                | Entry::DeliverCallback(_)
                | Entry::Event(_)
                | Entry::Alert(_)
                | Entry::State(_)
                | Entry::Control { .. } => {}
            }
        }
        for commit in &batch.commits {
            let offsets = (commit.watermark, commit.completions.clone());
            self.committed.insert(commit.lane, offsets);
        }
        refused
    }

    fn step(&mut self, input: Input) {
        let mut actions = Vec::new();
        self.engine.step(at(self.millis), input, &mut actions);
        self.most_held = self.most_held.max(self.engine.key_bytes());
        for action in actions {
            match action {
                Action::Dispatch {
                    ticket, task, wait, ..
                } => {
                    self.started(&task);
                    self.waits.push(wait);
                    self.calls.insert(ticket, task);
                }
                Action::Settle(settlement) => {
                    for entry in &settlement.entries {
                        if let Entry::Deliver { task, .. } = entry {
                            self.started(task);
                        }
                    }
                    self.settled.push(settlement);
                }
                Action::Pause { lane, next } => {
                    let reader = self.readers.get_mut(&lane).unwrap();
                    (reader.paused, reader.next) = (true, next);
                }
                Action::Resume { lane, run } => {
                    let reader = self.readers.get_mut(&lane).unwrap();
                    (reader.paused, reader.run) = (false, run);
                }
                Action::Drained { .. }
                | Action::Judged { .. }
                | Action::Switched { .. }
                | Action::ReadLetters(_)
                | Action::Look(_)
                | Action::LimitPassed { .. }
                | Action::Cooldown { .. } => {}
            }
        }
    }

    /// An attempt starts: everything of its key that was produced before it has ended durably.
    fn started(&mut self, task: &Task) {
        assert!(task.due <= at(self.millis).wall, "early");
        let offset = task.origin.offset;
        self.starts.push(offset);
        let ordered = self
            .scenes
            .find(&task.scene)
            .is_some_and(|scene| scene.ordering == Ordering::Key);
        if !ordered || task.record.key.is_none() {
            return;
        }
        let before = self.logs[&TASKS][..offset as usize].iter();
        let open: Vec<_> = before
            .filter(|(_, other)| {
                (&other.scene, &other.record.key) == (&task.scene, &task.record.key)
            })
            .map(|(_, other)| other.origin.offset)
            .filter(|other| !self.ended.contains_key(other))
            .collect();
        assert!(
            open.is_empty(),
            "{offset} starts before the end of {open:?}"
        );
    }

    /// Lets everything come to its end, each call answered by `answer`.
    fn finish(&mut self, mut answer: impl FnMut(&Task) -> Outcome) {
        let all = self.logs.get(&TASKS).map_or(0, Vec::len);
        for round in 0..8_000 {
            self.read_all();
            while let Some(task) = self.calls.values().next().cloned() {
                self.answer(0, answer(&task));
            }
            self.submit();
            self.commit();
            if self.ended.len() == all && self.engine.open() == 0 && self.settled.is_empty() {
                break;
            }
            let wake = self.engine.next_wake();
            let wake = wake.map_or(0, |wake| {
                wake.since(at(self.millis).wall).as_millis() as u64
            });
            // Whether a paused lane may read on is asked every few milliseconds, for as long as what it waits for is parked.
            let least = if round < 1_000 { 1 } else { 250 };
            self.pass(wake.clamp(least, 1_000));
        }
        self.submit();
        self.commit();
        let missing: BTreeSet<i64> = (0..all as i64)
            .filter(|offset| self.ended.get(offset) != Some(&1))
            .collect();
        assert!(missing.is_empty(), "not ended once: {missing:?}");
        assert_eq!(self.engine.bytes(), 0);
        assert_eq!(self.engine.keys(), 0, "keys are remembered");
        assert_eq!(self.engine.key_bytes(), 0);
        assert!(self.order.is_empty(), "keys stay on the topic");
    }
}

/// When the parked task of this offset is looked at next, as its last record says.
fn looked_at(world: &World, offset: i64) -> Timestamp {
    let tiers = world.logs.iter().filter(|(lane, _)| **lane != TASKS);
    let parked = tiers.flat_map(|(_, log)| log);
    let of = parked.filter(|(_, task)| task.origin.offset == offset);
    let last = of.max_by_key(|(_, task)| task.hops).expect("a record");
    last.1.wake()
}

#[test]
fn who_is_behind_a_pending_attempt_looks_again_and_again_also_after_a_crash() {
    let mut world = World::new(scenes(1_000), Limits::of(64 << 20));
    for _ in 0..2 {
        world.produce("pay", "a", 0);
    }
    world.read_all();
    let write = |world: &mut World| {
        world.submit();
        world.commit();
        world.read_all();
    };
    // For an hour.
    world.answer(0, Outcome::Pending { limit: None });
    write(&mut world);

    let mut waits = Vec::new();
    for round in 0..9 {
        let until = looked_at(&world, 1);
        waits.push(until.since(at(world.millis).wall).as_secs());
        if round % 2 == 1 {
            world.crash();
            world.read_all();
        }
        world.pass(until.since(at(world.millis).wall).as_millis() as u64);
        write(&mut world);
    }

    assert_eq!(world.starts, [0]);
    assert_eq!(waits, [1, 1, 2, 4, 8, 16, 32, 60, 60]);
    // At its limit, and after the wait of its scene, the first one is tried again.
    world.finish(|_| Outcome::Success);
    assert_eq!(world.starts, [0, 0, 1]);
    let hour = at(60 * 60 * 1_000).wall;
    let end = at(world.millis).wall;
    assert!(
        end > hour && end.since(hour) < Duration::from_mins(2),
        "{end}"
    );
}

fn failed() -> Outcome {
    Outcome::Retryable(Failure::new("http-503", "busy"))
}

#[test]
fn the_next_task_of_a_key_starts_when_the_end_of_the_one_before_it_is_committed() {
    let mut world = World::new(scenes(700), Limits::of(64 << 20));
    for key in ["a", "a", "b"] {
        world.produce("pay", key, 0);
    }

    world.read_all();
    assert_eq!(world.starts, [0, 2]);
    world.answer(0, Outcome::Success);
    world.pass(1);
    assert_eq!(world.starts, [0, 2], "its end is decided, not committed");
    world.submit();
    assert_eq!(world.starts, [0, 2]);
    world.commit();

    assert_eq!(world.starts, [0, 2, 1]);
    assert_eq!(world.writes, 0, "what is in memory need not be written");
}

#[test]
fn a_wait_for_those_before_it_is_said_to_be_one_for_order() {
    let mut world = World::new(scenes(700), Limits::of(64 << 20));
    for _ in 0..3 {
        world.produce("pay", "a", 0);
    }

    world.read_all();
    world.pass(30);
    world.answer(0, Outcome::Success);
    world.pass(4);
    world.submit();
    world.commit();
    assert_eq!(world.starts, [0, 1]);
    world.millis += 200;
    world.answer(0, Outcome::Success);
    world.submit();
    world.commit();

    let by_order = world.waits.iter().map(|wait| wait.waited.order);
    assert_eq!(by_order.collect::<Vec<_>>(), [0, 34_000, 234_000]);
    assert!(world.waits.iter().all(|wait| wait.agenda == 0));
}

#[test]
fn a_task_waits_while_the_one_before_it_is_parked_and_survives_a_crash() {
    let mut world = World::new(scenes(60_000), Limits::of(64 << 20));
    world.produce("pay", "a", 0);
    world.produce("pay", "a", 0);

    world.read_all();
    world.answer(0, failed());
    // The follower is parked with its head, not kept in memory for a minute.
    assert_eq!(world.engine.open(), 0);
    world.submit();
    world.commit();
    world.crash();
    world.read_all();
    world.pass(61_000);
    world.read_all();

    assert_eq!(world.starts, [0, 0]);
    world.finish(|_| Outcome::Success);
    assert_eq!(world.starts, [0, 0, 1]);
}

#[test]
fn a_key_goes_on_when_the_task_it_waits_for_is_in_no_tier_any_more() {
    let mut world = World::with_first_parked();
    world.crash();

    // The first record of the tier is gone, as is the task in it.
    let is_parked =
        |lane: &LaneId| *lane != TASKS && world.logs.get(lane).is_some_and(|log| log.len() == 3);
    let lane = World::lanes().find(is_parked).unwrap();
    world.readers.get_mut(&lane).unwrap().next = 1;
    world.ended.insert(0, 1);
    world.read_all();
    assert_eq!(world.engine.awaited(|_| at(world.millis).wall), []);
    world.pass(61_000);
    world.read_all();
    world.submit();
    world.commit();
    world.pass(10_000);
    world.read_all();
    assert_eq!(world.starts, [0], "they wait for it");

    let awaited = world.engine.awaited(|_| at(world.millis).wall);
    assert_eq!(awaited.iter().map(|of| of.offset).collect::<Vec<_>>(), [0]);
    assert_eq!(world.engine.forget_gone(awaited.clone()), awaited);
    assert_eq!(world.engine.forget_gone(awaited), [], "once");
    world.finish(|_| Outcome::Success);
    assert_eq!(world.starts, [0, 1, 2]);
}

#[test]
fn a_task_that_is_in_memory_is_not_gone_whatever_is_said() {
    let (mut world, awaited) = World::with_first_awaited();

    world.read_all();

    assert_eq!(world.engine.forget_gone(awaited), []);
    world.finish(|_| Outcome::Success);
    assert_eq!(world.starts, [0, 0, 1]);
}

#[test]
fn a_task_that_was_parked_once_more_while_it_was_looked_for_is_not_gone() {
    let (mut world, awaited) = World::with_first_awaited();

    // Where it is now was not looked at: it is not even written.
    world.read_all();
    world.answer(0, failed());

    assert_eq!(world.engine.forget_gone(awaited), []);
    world.submit();
    world.commit();
    world.pass(60_000);
    world.read_all();
    world.finish(|_| Outcome::Success);
    assert_eq!(world.starts, [0, 0, 0, 1]);
}

#[test]
#[should_panic(expected = "starts before the end of")]
fn without_the_order_topic_a_crash_would_lose_the_order() {
    let mut world = World::new(scenes(60_000), Limits::of(64 << 20));
    world.forgets = true;
    world.produce("pay", "a", 0);
    world.produce("pay", "a", 0);
    world.read_all();
    world.answer(0, failed());
    world.submit();
    world.commit();
    world.crash();
    world.pass(61_000);

    // The second one is read first, as if it were in another tier.
    let is_parked =
        |lane: &LaneId| *lane != TASKS && world.logs.get(lane).is_some_and(|log| log.len() == 2);
    let lane = World::lanes().find(is_parked).unwrap();
    world.readers.get_mut(&lane).unwrap().next = 1;
    world.read_all();
    world.pass(1);
}

#[test]
fn what_is_parked_while_the_order_topic_takes_records_is_written_with_its_place_even_if_that_closes_again()
 {
    let writable = |closed| {
        Input::Writable(Writable {
            closed,
            stuck: false,
            batch_tasks: usize::MAX,
            batch_bytes: usize::MAX,
        })
    };
    let closed = Sinks::NONE.with(Sink::Order);
    let mut world = World::new(scenes(60_000), Limits::of(64 << 20));
    world.step(writable(closed));
    world.submit();
    world.commit();

    // Open for a moment, between two batches.
    world.step(writable(Sinks::NONE));
    world.produce("pay", "a", 0);
    world.read_all();
    world.answer(0, failed());
    world.step(writable(closed));
    world.submit();

    let batch = world.under_way.back().unwrap();
    assert_eq!(batch.settled.len(), 1);
    assert_eq!(batch.changes.len(), 1);
}

#[test]
fn what_is_parked_once_more_since_its_batch_was_not_written_has_its_place_in_the_same_batch() {
    let writable = |closed| {
        Input::Writable(Writable {
            closed,
            ..Writable::default()
        })
    };
    let mut world = World::new(scenes(60_000), Limits::of(64 << 20));
    world.produce("pay", "a", 0);
    world.read_all();
    world.answer(0, failed());
    world.submit();
    let first = world.under_way.pop_front().unwrap();
    let changes = first.changes.iter().map(|change| match change {
        Entry::State(state) => (0, state.key()),
        other => panic!("a state expected, not {other:?}"),
    });
    let settlements = first.settled.iter().cloned();
    let returned = Returned {
        lanes: first.commits.iter().map(|of| (of.lane, of.epoch)).collect(),
        settlements: settlements.map(|of| (of, Fate::Again)).collect(),
        changes: changes.collect(),
        ..Returned::default()
    };

    // Its place is in a batch between, of which nobody knows yet whether it is written.
    world.step(writable(Sinks::NONE.with(Sink::Tiers)));
    world.step(Input::Returned(Box::new(returned)));
    world.submit();
    world.step(writable(Sinks::NONE));
    world.pass(10);
    world.submit();

    let batches = world.under_way.iter();
    let of = |batch: &Batch| (batch.settled.len(), batch.changes.len());
    assert_eq!(batches.map(of).collect::<Vec<_>>(), [(0, 1), (1, 1)]);
}

#[test]
fn a_task_whose_deadline_passes_expires_in_its_place() {
    let mut world = World::new(scenes(60_000), Limits::of(64 << 20));
    for _ in 0..3 {
        world.produce("pay", "a", 0);
    }
    let log = world.logs.get_mut(&TASKS).unwrap();
    log[1].1.deadline = Some(at(10_000).wall);

    world.read_all();
    world.answer(0, failed());
    for _ in 0..12 {
        world.submit();
        world.commit();
        world.read_all();
        world.pass(1_000);
    }
    world.submit();
    world.commit();

    assert_eq!(world.starts, [0]);
    assert_eq!(world.ended.keys().collect::<Vec<_>>(), [&1]);
    world.finish(|_| Outcome::Success);
    assert_eq!(world.starts, [0, 0, 2]);
}

#[test]
fn a_task_that_dies_lets_the_next_one_go() {
    let mut world = World::new(scenes(700), Limits::of(64 << 20));
    world.produce("pay", "a", 0);
    world.produce("pay", "a", 0);

    world.read_all();
    world.answer(0, Outcome::Permanent(Failure::new("http-400", "no")));
    world.submit();
    world.commit();

    assert_eq!(world.starts, [0, 1]);
}

#[test]
fn a_hot_key_holds_neither_other_keys_nor_other_scenes() {
    let mut world = World::new(scenes(700), Limits::of(128 << 20));
    for _ in 0..5_000 {
        world.produce("pay", "hot", 0);
    }
    let (other, free) = (world.produce("pay", "b", 0), world.produce("any", "hot", 0));

    world.read_all();

    assert_eq!(world.starts, [0, other, free]);
    // The others of the key are in a tier but for a few, spread over the time that they take at least.
    assert_eq!(world.engine.open(), 3 + 16);
    let mut dues = Vec::new();
    for settlement in &world.settled {
        if let Entry::Event(event) = &settlement.entries[1]
            && let Transition::Deferred { until, .. } = event.transition
        {
            dues.push(until.since(at(0).wall).as_secs());
        }
    }
    assert_eq!((dues[0], dues.len(), dues[dues.len() - 1]), (1, 4_983, 499));
    // One record for all of them.
    world.submit();
    world.commit();
    assert_eq!(world.writes, 1);
}

/// Room for so many keys with one task each.
fn room_for_keys(keys: usize) -> Limits {
    Limits {
        keys: keys * 152,
        ..Limits::of(64 << 20)
    }
}

#[test]
fn a_flood_of_keys_stops_reading_and_goes_on_when_some_have_ended() {
    for keys in [1_000, 10, 1] {
        let mut world = World::new(scenes(6_000), room_for_keys(100));
        for number in 0..1_000 {
            world.produce("pay", &format!("{}", number % keys), 0);
        }

        world.read_all();
        assert!(world.readers[&TASKS].paused);
        world.finish(|task| match task.attempt {
            1 if task.origin.offset % 10 == 0 => failed(),
            _ => Outcome::Success,
        });

        assert!(world.most_held >= 100 * 152, "{}", world.most_held);
        assert!(world.most_held <= 101 * 152, "{}", world.most_held);
    }
}

#[test]
fn what_is_known_of_keys_leaves_less_room_for_tasks() {
    let limits = Limits {
        total: 500 << 10,
        lane_least: 1 << 10,
        keys: 250 << 10,
        ..Limits::of(64 << 20)
    };
    let mut world = World::new(scenes(60_000), limits);
    for number in 0..2_000 {
        world.produce("pay", &format!("{number}"), 0);
    }

    world.read_all();

    let (tasks, keys) = (world.engine.bytes(), world.engine.key_bytes());
    // A task and its key.
    let one = (tasks + keys) / world.engine.open();
    assert!(world.readers[&TASKS].paused);
    assert!(keys > 50 << 10, "{keys}");
    assert!(tasks + keys <= limits.total + one, "{tasks} + {keys}");
}

#[test]
fn keys_of_a_former_owner_do_not_stop_reading_what_its_parked_tasks_wait_for() {
    let mut world = World::new(scenes(5_000), room_for_keys(1_000));
    for number in 0..100 {
        world.produce("pay", &format!("{number}"), 0);
    }
    world.read_all();
    // The first one is still called when all others are parked, above it.
    while let Some(nth) = world.calls.values().position(|task| task.origin.offset > 0) {
        world.answer(nth, failed());
    }
    world.submit();
    world.commit();
    assert_eq!((world.committed[&TASKS].0, world.order.len()), (0, 99));

    // The new owner has room for less.
    world.limits = room_for_keys(10);
    world.begin();

    world.finish(|_| Outcome::Success);
}

#[test]
fn keys_whose_tasks_were_not_parked_after_all_do_not_stop_reading_them() {
    let mut world = World::new(scenes(5_000), room_for_keys(1_000));
    for number in 0..100 {
        world.produce("pay", &format!("{number}"), 0);
    }
    world.read_all();
    while let Some(nth) = world.calls.values().position(|task| task.origin.offset > 0) {
        world.answer(nth, failed());
    }
    world.submit();
    // The broker refuses the batch that parks them, and takes the one that names their keys.
    let batch = world.under_way.pop_front().unwrap();
    world.write(&Batch {
        settled: Vec::new(),
        commits: Vec::new(),
        changes: batch.changes,
    });
    assert_eq!((world.committed.get(&TASKS), world.order.len()), (None, 99));

    world.limits = room_for_keys(10);
    world.begin();

    world.finish(|_| Outcome::Success);
}

#[test]
fn tasks_without_a_key_and_of_scenes_without_order_go_by_themselves() {
    let mut world = World::new(scenes(700), Limits::of(64 << 20));
    for _ in 0..3 {
        world.produce("any", "a", 0);
        world.produce("pay", "a", 0);
    }
    for (_, task) in world.logs.get_mut(&TASKS).unwrap() {
        if &*task.scene == "pay" {
            task.record.key = None;
        }
    }

    world.read_all();

    assert_eq!(world.starts, [0, 1, 2, 3, 4, 5]);
    assert_eq!(world.engine.keys(), 0);
}

#[test]
fn a_scene_that_keeps_order_no_more_lets_everybody_go_and_its_keys_are_forgotten() {
    let mut world = World::with_first_parked();
    world.produce("pay", "a", 0);
    assert_eq!(world.order.len(), 1);

    world.scenes = [rules("pay", Target::Call, Ordering::None, 60_000)]
        .into_iter()
        .collect();
    world.step(Input::Rules(world.scenes.clone()));
    world.read_all();

    assert_eq!(world.starts, [0, 3]);
    world.finish(|_| Outcome::Success);
}

#[test]
fn a_delivery_that_its_topic_refuses_stays_first() {
    let mut world = World::new(scenes(5_000), Limits::of(64 << 20));
    world.refuses = true;
    for _ in 0..3 {
        world.produce("copy", "a", 0);
    }

    world.read_all();
    world.submit();
    world.commit();
    assert_eq!(world.starts, [0]);
    world.crash();
    world.refuses = false;
    world.finish(|_| unreachable!("no calls"));

    assert_eq!(world.starts, [0, 0, 1, 2]);
}

#[test]
fn a_follower_makes_about_as_many_hops_as_its_head() {
    const FOLLOWERS: usize = 50;
    let mut world = World::new(scenes(60_000), Limits::of(64 << 20));
    for _ in 0..=FOLLOWERS {
        world.produce("pay", "a", 0);
    }

    world.finish(|task| {
        if task.origin.offset == 0 && task.attempt < 3 {
            failed()
        } else {
            Outcome::Success
        }
    });

    let parked: usize = world
        .logs
        .iter()
        .filter(|(lane, _)| **lane != TASKS)
        .map(|(_, log)| log.len())
        .sum();

    // The head made two; of the others, two of three make one more, since they were parked before it was.
    assert!(parked <= 3 * FOLLOWERS, "{parked} hops");
}

/// A step of a random history.
#[derive(Clone, Debug)]
enum Chance {
    Produce {
        scene: usize,
        key: usize,
        due_in: u64,
        deadline: Option<u64>,
    },
    Read {
        lane: usize,
        most: usize,
    },
    Return {
        nth: usize,
        kind: usize,
    },
    Pass {
        millis: u64,
    },
    Submit,
    Commit,
    Crash,
    Refuse,
}

fn chance() -> impl Strategy<Value = Chance> {
    let due_in = prop_oneof![4 => Just(0_u64), 1 => 0_u64..40_000];
    let deadline = prop::option::weighted(0.1, 0_u64..60_000);
    prop_oneof![
        8 => (0_usize..3, 0_usize..3, due_in, deadline)
            .prop_map(|(scene, key, due_in, deadline)| Chance::Produce { scene, key, due_in, deadline }),
        10 => (0_usize..12, 1_usize..4).prop_map(|(lane, most)| Chance::Read { lane, most }),
        6 => (0_usize..8, 0_usize..6).prop_map(|(nth, kind)| Chance::Return { nth, kind }),
        5 => (0_u64..8_000).prop_map(|millis| Chance::Pass { millis }),
        4 => Just(Chance::Submit),
        4 => Just(Chance::Commit),
        1 => Just(Chance::Crash),
        1 => Just(Chance::Refuse),
    ]
}

/// Roomy, or hardly any room.
fn limits() -> impl Strategy<Value = Limits> {
    let narrow =
        (1_usize..30, 1_usize..6, 100_usize..1_000).prop_map(|(lane_open, batch_tasks, keys)| {
            Limits {
                total: 3_000,
                lane_least: 600,
                lane_most: 1_200,
                lane_open,
                batch_tasks,
                batch_bytes: 2_000,
                keys,
            }
        });
    prop_oneof![Just(Limits::of(1 << 20)), narrow]
}

proptest! {
    #[test]
    fn no_task_starts_before_those_of_its_key_have_ended_durably(
        chances in prop::collection::vec(chance(), 1..150),
        limits in limits(),
        backoff in prop::sample::select(vec![10_u64, 700, 4_000, 30_000]),
    ) {
        let mut world = World::new(scenes(backoff), limits);
        for chance in chances {
            match chance {
                Chance::Produce { scene, key, due_in, deadline } => {
                    let offset = world.produce(["pay", "copy", "any"][scene], ["a", "b", "c"][key], due_in);
                    let deadline = deadline.map(|millis| at(world.millis + millis).wall);
                    world.logs.get_mut(&TASKS).unwrap()[offset as usize].1.deadline = deadline;
                }
                Chance::Read { lane, most } => {
                    let lane = World::lanes().nth(lane).unwrap();
                    world.read(lane, most);
                    world.read(TASKS, 1);
                }
                Chance::Return { nth, kind } => world.answer(nth, match kind {
                    0..3 => Outcome::Success,
                    3 => Outcome::Permanent(Failure::new("x", "y")),
                    _ => failed(),
                }),
                Chance::Pass { millis } => world.pass(millis),
                Chance::Submit => world.submit(),
                Chance::Commit => world.commit(),
                Chance::Crash => world.crash(),
                Chance::Refuse => world.refuses = !world.refuses,
            }
        }
        world.refuses = false;
        world.finish(|task| if task.attempt % 2 == 0 { Outcome::Success } else { failed() });
    }
}
