//! A group whose target allows only so many calls and asks for rest when there are more: three workers of three processes, their tiers, and
//! the target, in virtual time.

mod support;

use std::collections::{BTreeMap, VecDeque};
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use retide_core::breaker::{self, Subject};
use retide_core::completions::Completions;
use retide_core::cooldown::{Heard, Signal, Teller};
use retide_core::lane::Limits;
use retide_core::scene::{Callback, Cooldown, Target, Walls};
use retide_core::wall;
use retide_core::{
    Action, Engine, Entry, Failure, Gates, Input, Kind, Ladder, LaneId, Now, Outcome, Position,
    Reason, Scene, Scenes, Source, Task, Terminal, Timestamp, Transition,
};

/// The wall clock at the beginning, in microseconds.
const START: u64 = 1_000_000_000_000;

/// How long the target takes for an answer.
const TAKES: Duration = Duration::from_millis(3);

/// How long it takes until what was settled stands in its topic, or a signal is heard.
const COMMIT: Duration = Duration::from_millis(100);

/// The server.
const SERVER: &str = "http://shop:80";

const fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

const fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn scene(name: &str) -> Scene {
    Scene {
        walls: Walls {
            work: Some(wall_of(SERVER, name)),
            callback: None,
        },
        breaker: Some(breaker::Key {
            target: SERVER.into(),
            rule: breaker::Rule::DEFAULT,
        }),
        ..Scene::new(name, Target::Call, support::policy(secs(1), 2))
    }
}

fn wall_of(server: &str, scene: &str) -> breaker::Key {
    breaker::Key {
        target: Subject::wall(server, scene),
        rule: wall::RULE,
    }
}

fn task(scene: &str, id: &str, due: Timestamp) -> Task {
    support::task(id, scene, due)
}

/// One lane, and what stands on it that was not read.
#[derive(Default)]
struct Topic {
    records: VecDeque<(i64, Timestamp, Task)>,
    end: i64,
    run: u64,
    paused: bool,
}

/// A process with one worker, which owns one shard.
struct Worker {
    engine: Engine,
    topics: BTreeMap<LaneId, Topic>,
    written: VecDeque<(Duration, LaneId, Task)>,
    answers: VecDeque<(Duration, u64, Outcome)>,
    commit_at: Option<Duration>,
    /// What the others have said.
    told: VecDeque<(Duration, u64, Signal)>,
}

/// What a target answers, by its number of calls and time.
type Answers = Box<dyn FnMut(Duration, &Task) -> Outcome>;

/// The group.
struct Group {
    ladder: Ladder,
    workers: Vec<Worker>,
    now: Duration,
    answer: Answers,
    /// Whether processes hear each other.
    hears: bool,
    /// The calls that the target saw: when, by whom, of what, and whether they were throttled.
    called: Vec<(Duration, usize, Arc<str>, bool)>,
    ended: BTreeMap<Arc<str>, (Terminal, Option<Reason>, u32, Duration)>,
    signals: Vec<(Duration, usize, Teller, Signal)>,
    deferred: usize,
    /// Microseconds that attempts waited for a cooldown.
    waited: u64,
}

impl Group {
    fn new(processes: usize, scenes: &[Scene], answer: Answers) -> Self {
        let shards = NonZeroU32::new(processes as u32).unwrap();
        let ladder = Ladder::default();
        let worker = |seed| {
            let gates = Arc::new(Gates::seeded(seed));
            Worker {
                engine: Engine::new(ladder.clone(), Limits::of(64 << 20), gates, shards),
                topics: BTreeMap::new(),
                written: VecDeque::new(),
                answers: VecDeque::new(),
                commit_at: None,
                told: VecDeque::new(),
            }
        };
        let mut group = Self {
            workers: (0..processes as u64).map(worker).collect(),
            ladder,
            now: secs(100),
            answer,
            hears: true,
            called: Vec::new(),
            ended: BTreeMap::new(),
            signals: Vec::new(),
            deferred: 0,
            waited: 0,
        };
        for number in 0..processes {
            let rules: Scenes = scenes.iter().cloned().collect();
            group.step(number, Input::Rules(rules));
            let tiers = (0..group.ladder.tiers().len()).map(Source::Tier);
            for source in [Source::Tasks].into_iter().chain(tiers) {
                let shard = number as i32;
                let lane = LaneId { shard, source };
                group.workers[number].topics.insert(lane, Topic::default());
                let known = Completions::default();
                let start = 0;
                group.step(number, Input::Assign { lane, start, known });
            }
        }
        group
    }

    fn wall(&self) -> Timestamp {
        Timestamp::from_micros(START) + self.now
    }

    fn append(&mut self, number: usize, lane: LaneId, task: Task) {
        let appended = self.wall();
        let topic = self.workers[number].topics.get_mut(&lane).unwrap();
        topic.records.push_back((topic.end, appended, task));
        topic.end += 1;
    }

    fn produce(&mut self, number: usize, mut task: Task) {
        task.origin.partition = number as i32;
        let source = match task.kind {
            Kind::Work => Source::Tasks,
            Kind::Callback => Source::Tier(0),
        };
        let shard = number as i32;
        self.append(number, LaneId { shard, source }, task);
    }

    fn step(&mut self, number: usize, input: Input) {
        let (wall, steady) = (self.wall(), self.now);
        let mut actions = Vec::new();
        let engine = &mut self.workers[number].engine;
        engine.step(Now { wall, steady }, input, &mut actions);
        for action in actions {
            self.follow(number, action);
        }
    }

    fn follow(&mut self, number: usize, action: Action) {
        match action {
            Action::Dispatch {
                ticket, task, wait, ..
            } => {
                self.waited += wait.waited.cooldown;
                let outcome = (self.answer)(self.now, &task);
                let throttled = matches!(outcome, Outcome::Throttled { .. });
                self.called
                    .push((self.now, number, Arc::clone(&task.id), throttled));
                let at = self.now + TAKES;
                self.workers[number]
                    .answers
                    .push_back((at, ticket, outcome));
            }
            Action::Settle(settlement) => {
                let at = self.now + COMMIT;
                self.workers[number].commit_at.get_or_insert(at);
                for entry in settlement.entries {
                    self.note(number, entry);
                }
            }
            Action::Pause { lane, .. } => {
                self.workers[number].topics.get_mut(&lane).unwrap().paused = true;
            }
            Action::Resume { lane, run } => {
                let topic = self.workers[number].topics.get_mut(&lane).unwrap();
                (topic.run, topic.paused) = (run, false);
            }
            Action::Cooldown { signal, told_by } => {
                self.signals
                    .push((self.now, number, told_by, signal.clone()));
                if self.hears {
                    let at = self.now + COMMIT;
                    for (other, worker) in self.workers.iter_mut().enumerate() {
                        if other != number {
                            worker.told.push_back((at, number as u64, signal.clone()));
                        }
                    }
                }
            }
            Action::Drained { .. }
            | Action::Judged { .. }
            | Action::ReadLetters(_)
            | Action::Look(_)
            | Action::LimitPassed { .. }
            | Action::Switched { .. } => {}
        }
    }

    fn note(&mut self, number: usize, entry: Entry) {
        match entry {
            Entry::Park { tier, task, to, .. } => {
                assert_eq!(to, None, "nothing moves");
                let source = Source::Tier(tier);
                let shard = number as i32;
                let (at, lane) = (self.now + COMMIT, LaneId { shard, source });
                let task = Arc::unwrap_or_clone(task);
                self.workers[number].written.push_back((at, lane, task));
            }
            Entry::Event(event) => match event.transition {
                Transition::Deferred { .. } => self.deferred += 1,
                Transition::Ended {
                    terminal,
                    attempts,
                    reason,
                    ..
                } => {
                    let end = (terminal, reason, attempts, self.now);
                    assert_eq!(self.ended.insert(event.id, end), None, "ended twice");
                }
                Transition::Parked { .. }
                | Transition::Hopped { .. }
                | Transition::Rescheduled { .. }
                | Transition::Replayed { .. }
                | Transition::TooLate { .. }
                | Transition::Duplicate { .. }
                | Transition::Pending { .. }
                | Transition::Failed { .. }
                | Transition::Held { .. } => {}
            },
            Entry::Deliver { .. }
            | Entry::DeadLetter { .. }
            | Entry::Poison { .. }
            | Entry::Callback(_)
            | Entry::DeliverCallback(_)
            | Entry::Alert(_)
            | Entry::State(_)
            | Entry::Control { .. } => {}
        }
    }

    fn readable(&self, number: usize) -> Option<(Duration, LaneId)> {
        let of = |(lane, topic): (&LaneId, &Topic)| {
            let (_, appended, _) = topic.records.front().filter(|_| !topic.paused)?;
            let at = match lane.source {
                Source::Tasks | Source::Commands => *appended,
                Source::Tier(tier) => self.ladder.tiers()[tier].readable_at(*appended),
            };
            Some((at.since(Timestamp::from_micros(START)), *lane))
        };
        self.workers[number]
            .topics
            .iter()
            .filter_map(of)
            .min_by_key(|(at, _)| *at)
    }

    /// When something happens next at a worker.
    fn next(&self, number: usize) -> Option<Duration> {
        let worker = &self.workers[number];
        let wake = worker.engine.next_wake();
        let times = [
            worker.written.front().map(|(at, ..)| *at),
            worker.answers.front().map(|(at, ..)| *at),
            worker.told.front().map(|(at, ..)| *at),
            self.readable(number).map(|(at, _)| at),
            wake.map(|wake| wake.since(Timestamp::from_micros(START))),
            worker.commit_at,
        ];
        times.into_iter().flatten().min()
    }

    /// Lets time pass until then.
    fn run_until(&mut self, end: Duration) {
        let end = secs(100) + end;
        loop {
            let workers = 0..self.workers.len();
            let next = workers.filter_map(|number| Some((self.next(number)?, number)));
            let Some((at, number)) = next.min().filter(|(at, _)| *at <= end) else {
                self.now = self.now.max(end);
                return;
            };
            self.now = self.now.max(at);
            self.happen(number, at);
        }
    }

    fn happen(&mut self, number: usize, at: Duration) {
        let worker = &mut self.workers[number];
        if worker.commit_at == Some(at) {
            worker.commit_at = None;
            for commit in worker.engine.commits() {
                let (lane, epoch, watermark) = (commit.lane, commit.epoch, commit.watermark);
                self.step(
                    number,
                    Input::Committed {
                        lane,
                        epoch,
                        watermark,
                    },
                );
            }
            return self.step(number, Input::Tick);
        }
        if worker.answers.front().is_some_and(|(due, ..)| *due == at) {
            let (_, ticket, outcome) = worker.answers.pop_front().unwrap();
            return self.step(number, Input::Attempted { ticket, outcome });
        }
        if worker.told.front().is_some_and(|(due, ..)| *due == at) {
            let (_, by, signal) = worker.told.pop_front().unwrap();
            let heard = Heard {
                by,
                left: signal.left,
                passed: signal.passed,
                ago: COMMIT,
            };
            let server = signal.server;
            return self.step(number, Input::Cooldown { server, heard });
        }
        if worker.written.front().is_some_and(|(due, ..)| *due == at) {
            let (_, lane, task) = worker.written.pop_front().unwrap();
            return self.append(number, lane, task);
        }
        if let Some((_, lane)) = self.readable(number).filter(|(due, _)| *due == at) {
            let topic = self.workers[number].topics.get_mut(&lane).unwrap();
            let (offset, appended, task) = topic.records.pop_front().unwrap();
            let run = topic.run;
            let position = Position { lane, run, offset };
            let task = Box::new(task);
            return self.step(
                number,
                Input::Record {
                    position,
                    appended,
                    task,
                },
            );
        }
        self.step(number, Input::Tick);
    }

    /// The calls after that time, and how many of them were throttled.
    fn calls_after(&self, after: Duration) -> (usize, usize) {
        let after = secs(100) + after;
        let calls = self.called.iter().filter(|(at, ..)| *at >= after);
        let throttled = calls.clone().filter(|(.., throttled)| *throttled);
        (calls.count(), throttled.count())
    }

    fn delivered(&self) -> usize {
        let ends = self.ended.values();
        ends.filter(|(terminal, ..)| *terminal == Terminal::Delivered)
            .count()
    }
}

fn throttled(after: Duration) -> Outcome {
    let failure = Failure::new("http-429", "slow down");
    Outcome::Throttled { after, failure }
}

/// A target that takes so many calls in each second, and wants rest if there are more.
fn limited(limit: u32, rest: Duration) -> Answers {
    let mut second = (0, 0);
    Box::new(move |now, _| {
        if second.0 != now.as_secs() {
            second = (now.as_secs(), 0);
        }
        second.1 += 1;
        if second.1 > limit {
            return throttled(rest);
        }
        Outcome::Success
    })
}

/// A group of three with so many tasks each, which call a target that takes twenty in a second.
fn group_with(tasks: usize) -> Group {
    let mut group = Group::new(3, &[scene("pay"), scene("ship")], limited(20, secs(5)));
    for number in 0..3 {
        for index in 0..tasks {
            let name = if index % 4 == 0 { "ship" } else { "pay" };
            let due = group.wall();
            group.produce(number, task(name, &format!("{number}-{index}"), due));
        }
    }
    group
}

#[test]
fn a_group_finds_what_its_target_takes_and_is_refused_one_call_in_a_hundred() {
    let mut group = group_with(500);

    group.run_until(secs(200));

    let (calls, refused) = group.calls_after(secs(1));
    assert_eq!(group.delivered(), 1_500);
    assert!(refused * 100 <= calls, "{refused} of {calls}");
    // Twenty in a second are 75 seconds.
    let last = group.ended.values().map(|(.., at)| *at).max().unwrap();
    assert!(last < secs(100 + 120), "{last:?}");
    assert!(group.waited > 0);
}

#[test]
fn where_nobody_tells_the_others_each_of_them_finds_the_door_closed() {
    let told = {
        let mut group = group_with(100);
        group.run_until(secs(10));
        group.calls_after(Duration::ZERO).1
    };
    let mut group = group_with(100);
    group.hears = false;

    group.run_until(secs(10));

    let (_, refused) = group.calls_after(Duration::ZERO);
    assert!(told <= refused, "{told} {refused}");
    let said = |teller: Teller| {
        let signals = group.signals.iter();
        signals.filter(|(_, _, by, _)| *by == teller).count()
    };
    assert_eq!(said(Teller::Process), 0);
}

#[test]
fn nobody_calls_before_the_time_that_the_target_named() {
    let mut first = true;
    let answer = move |_, _: &Task| {
        if std::mem::take(&mut first) {
            throttled(secs(40))
        } else {
            Outcome::Success
        }
    };
    let mut group = Group::new(2, &[scene("pay"), scene("ship")], Box::new(answer));
    let due = group.wall();
    group.produce(0, task("pay", "first", due));
    group.run_until(secs(1));
    for number in 0..2 {
        for index in 0..2_000 {
            let due = group.wall();
            group.produce(number, task("ship", &format!("{number}-{index}"), due));
        }
    }

    group.run_until(secs(39));
    assert_eq!(group.called.len(), 1);
    group.run_until(secs(300));

    assert_eq!(group.delivered(), 4_001);
    let next = group.called[1].0;
    assert!(
        (secs(140)..secs(142)).contains(&next),
        "called again at {next:?}"
    );
    // The one that was throttled has had two attempts.
    assert_eq!(group.ended["first"].2, 2);
    let by: Vec<Teller> = group.signals.iter().map(|(_, _, by, _)| *by).collect();
    assert_eq!(by, [Teller::Server, Teller::Process]);
}

#[test]
fn throttled_attempts_have_a_bound_of_their_own_and_others_theirs() {
    let answer = |_, task: &Task| match (&*task.id, task.attempt) {
        ("fails", attempt) if attempt % 2 == 0 => {
            Outcome::Retryable(Failure::new("http-500", "no"))
        }
        ("late", 1) => throttled(secs(30)),
        ("passes", 8..) => Outcome::Success,
        _ => throttled(millis(1)),
    };
    let pay = Scene {
        max_throttled: NonZeroU32::new(8).unwrap(),
        cooldown: Cooldown::None,
        ..scene("pay")
    };
    let mut group = Group::new(1, &[pay], Box::new(answer));
    for id in ["fails", "passes", "never", "late"] {
        let due = group.wall();
        let mut task = task("pay", id, due);
        task.deadline = (id == "late").then(|| due + secs(10));
        group.produce(0, task);
    }

    group.run_until(secs(100));

    let ended = |id: &str| {
        let (terminal, reason, attempts, _) = group.ended[id];
        (terminal, reason, attempts)
    };
    let exhausted = Some(Reason::AttemptsExhausted);
    assert_eq!(ended("passes"), (Terminal::Delivered, None, 8));
    assert_eq!(ended("never"), (Terminal::Dead, exhausted, 8));
    // Two failures are as many as it may have; the calls between them were throttled.
    assert_eq!(ended("fails"), (Terminal::Dead, exhausted, 4));
    let passed = Some(Reason::DeadlinePassed);
    assert_eq!(ended("late"), (Terminal::Expired, passed, 1));
}

#[test]
fn a_scene_without_cooldowns_neither_begins_one_nor_waits_for_one() {
    let alone = Scene {
        cooldown: Cooldown::None,
        ..scene("alone")
    };
    let answer = |_, task: &Task| match &*task.id {
        "own" | "shared" if task.attempt == 1 => throttled(secs(20)),
        _ => Outcome::Success,
    };
    let mut group = Group::new(1, &[alone, scene("pay")], Box::new(answer));
    let due = group.wall();
    group.produce(0, task("alone", "own", due));
    group.run_until(millis(100));
    let due = group.wall();
    group.produce(0, task("pay", "goes", due));
    group.produce(0, task("pay", "shared", due));
    group.run_until(millis(200));
    let due = group.wall();
    group.produce(0, task("pay", "waits", due));
    group.produce(0, task("alone", "free", due));

    group.run_until(secs(10));
    let ended: Vec<&str> = group.ended.keys().map(|id| &**id).collect();
    assert_eq!(ended, ["free", "goes"]);
    group.run_until(secs(40));

    assert_eq!(group.delivered(), 5);
}

#[test]
fn what_is_throttled_trips_no_breaker_and_a_callback_that_is_holds_up_no_work() {
    let scene = Scene {
        callback: Some(Callback {
            target: Target::Call,
            breaker: None,
            on: vec![Terminal::Delivered],
        }),
        walls: Walls {
            work: Some(wall_of(SERVER, "pay")),
            callback: Some(wall_of("http://ended:80", "pay, callbacks")),
        },
        ..scene("pay")
    };
    let answer = |_, task: &Task| match task.kind {
        Kind::Callback if task.attempt == 1 && task.id.ends_with('7') => throttled(secs(3)),
        Kind::Work | Kind::Callback => Outcome::Success,
    };
    let mut group = Group::new(1, &[scene], Box::new(answer));
    for index in 0..100 {
        let due = group.wall();
        let callback = Task {
            kind: Kind::Callback,
            ..task("pay", &format!("callback-{index}"), due)
        };
        group.produce(0, callback);
        group.produce(0, task("pay", &format!("work-{index}"), due));
    }

    group.run_until(secs(2));
    let work = group.ended.keys().filter(|id| id.starts_with("work-"));
    assert_eq!(work.count(), 100);
    assert!(group.delivered() < 200, "no callback waits");
    group.run_until(secs(120));

    assert_eq!(group.delivered(), 200);
    assert!(group.signals.len() < 30, "{}", group.signals.len());
}

#[test]
fn a_server_that_no_scene_calls_is_nothing_to_us() {
    let mut group = Group::new(1, &[scene("pay")], Box::new(|_, _| Outcome::Success));
    let heard = Heard {
        by: 9,
        left: secs(30),
        passed: 3,
        ago: Duration::ZERO,
    };

    let other = "http://other:80".into();
    let input = |server| Input::Cooldown { server, heard };
    group.step(0, input(other));
    assert!(group.signals.is_empty());
    group.step(0, input(SERVER.into()));
    let cooling = group.workers[0].engine.cooldowns(group.now);
    assert_eq!(cooling.into_keys().collect::<Vec<_>>(), [SERVER.into()]);

    // It is forgotten with the last scene that calls it.
    group.step(0, Input::Rules(Scenes::default()));
    group.step(0, Input::Rules([scene("pay")].into_iter().collect()));
    assert!(group.workers[0].engine.cooldowns(group.now).is_empty());
}

#[test]
fn a_success_by_which_nothing_is_left_begins_a_cooldown_too() {
    let mut group = Group::new(1, &[scene("pay")], Box::new(|_, _| Outcome::Success));
    let due = group.wall();
    group.produce(0, task("pay", "a", due));
    group.run_until(millis(1));
    let (_, ticket, _) = group.workers[0].answers[0];

    let after = secs(7);
    group.step(0, Input::Spent { ticket, after });
    group.run_until(millis(100));
    let due = group.wall();
    group.produce(0, task("pay", "b", due));
    group.run_until(secs(6));

    assert_eq!(group.delivered(), 1);
    group.run_until(secs(10));
    assert_eq!(group.delivered(), 2);
}
