//! Tasks whose target is down, from the first failure until the last of them is through: an engine, its tiers and a target, in virtual time.

mod support;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use retide_core::Position;
use retide_core::brake;
use retide_core::breaker::{self, Fraction, Rule, State};
use retide_core::completions::Completions;
use retide_core::entry::{BREAKER_CLOSED, BREAKER_OPEN, FLOOD_BRAKE, TargetHealth};
use retide_core::forced::{AllForced, Force, Forced};
use retide_core::hold::{Revision, Standing};
use retide_core::lane::Limits;
use retide_core::scene::{Callback, DEFAULT, Target, TargetNames};
use retide_core::wall;
use retide_core::{
    Action, Alert, Engine, Entry, Failure, Gates, Header, Holds, Input, Kind, Ladder, LaneId, Now,
    Outcome, Scene, Scenes, Source, Task, Terminal, Timestamp, Transition,
};

/// The wall clock at the beginning, in microseconds.
const START: u64 = 1_000_000_000_000;

/// How long a target takes for an answer.
const TAKES: Duration = Duration::from_millis(20);

/// How long it takes until what was settled stands in its topic.
const COMMIT: Duration = Duration::from_millis(100);

const MINUTE: Duration = Duration::from_mins(1);

const fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn rule() -> Rule {
    Rule {
        failure_rate: Fraction::try_new(0.5).unwrap(),
        slow_call: None,
        slow_rate: Fraction::WHOLE,
        window: secs(30),
        min_calls: 20,
        open: secs(10),
        probes: 5,
        slow_start: secs(30),
    }
}

/// A scene that calls its target, with a breaker.
fn scene(name: &str) -> Scene {
    Scene {
        concurrency: NonZeroU32::new(64).unwrap(),
        breaker: Some(breaker::Key {
            target: (*format!("http://{name}:80")).into(),
            rule: rule(),
        }),
        ..Scene::new(name, Target::Call, support::policy(secs(5), 1_000))
    }
}

fn task(scene: &str, id: &str, due: Timestamp) -> Task {
    support::task(id, scene, due)
}

/// A call that a target saw.
#[derive(Clone, Debug)]
struct Called {
    scene: Arc<str>,
    id: Arc<str>,
    attempt: u32,
    late: Duration,
}

/// One lane, and what stands on it that was not read.
#[derive(Default)]
struct Topic {
    records: VecDeque<(i64, Timestamp, Task)>,
    end: i64,
    run: u64,
    paused: bool,
}

/// An engine, its topics, and targets of which one may be down.
struct World {
    engine: Engine,
    ladder: Ladder,
    now: Duration,
    topics: BTreeMap<LaneId, Topic>,
    /// When what was settled is there.
    written: BTreeMap<(Duration, u64), (LaneId, Task)>,
    answers: BTreeMap<(Duration, u64), Outcome>,
    /// When each scene's target is down.
    down: BTreeMap<Arc<str>, (Duration, Duration)>,
    /// Whether targets that are down refuse everybody.
    refuses: bool,
    /// Whether targets that are down find every task bad.
    finds_bad: bool,
    /// Tasks that every target finds bad.
    unfit: BTreeSet<Arc<str>>,
    /// Tasks that are refused always.
    bad: BTreeSet<Arc<str>>,
    called: Vec<Called>,
    ended: BTreeMap<Arc<str>, (Terminal, u32, Duration)>,
    deferred: u64,
    /// What deferrals follow from, where they name it.
    named: BTreeSet<Arc<str>>,
    most_hops: u32,
    switches: Vec<(Duration, Arc<str>, State)>,
    alerts: Vec<Alert>,
    most_open: usize,
    /// How many calls at once the targets work on; more of them share what there is.
    capacity: usize,
    /// When what was settled is committed, if anything was.
    commit_at: Option<Duration>,
    last: u64,
}

impl World {
    fn new(scenes: impl IntoIterator<Item = Scene>) -> Self {
        Self::limited(scenes, Limits::of(64 << 20))
    }

    fn limited(scenes: impl IntoIterator<Item = Scene>, limits: Limits) -> Self {
        let gates = Arc::new(Gates::default());
        let ladder = Ladder::default();
        let mut world = Self {
            engine: Engine::new(ladder.clone(), limits, gates, NonZeroU32::MIN),
            ladder,
            now: Duration::ZERO,
            topics: BTreeMap::new(),
            written: BTreeMap::new(),
            answers: BTreeMap::new(),
            down: BTreeMap::new(),
            refuses: false,
            finds_bad: false,
            unfit: BTreeSet::new(),
            bad: BTreeSet::new(),
            called: Vec::new(),
            ended: BTreeMap::new(),
            deferred: 0,
            named: BTreeSet::new(),
            most_hops: 0,
            switches: Vec::new(),
            alerts: Vec::new(),
            most_open: 0,
            capacity: usize::MAX,
            commit_at: None,
            last: 0,
        };
        world.step(Input::Rules(scenes.into_iter().collect::<Scenes>()));
        let tiers = (0..world.ladder.tiers().len()).map(Source::Tier);
        for source in [Source::Tasks].into_iter().chain(tiers) {
            let lane = LaneId { shard: 0, source };
            world.topics.insert(lane, Topic::default());
            world.step(Input::Assign {
                lane,
                start: 0,
                known: Completions::default(),
            });
        }
        world
    }

    fn wall(&self) -> Timestamp {
        Timestamp::from_micros(START) + self.now
    }

    fn produce(&mut self, task: Task) {
        let source = match task.kind {
            Kind::Work => Source::Tasks,
            Kind::Callback => Source::Tier(0),
        };
        self.append(LaneId { shard: 0, source }, task);
    }

    fn append(&mut self, lane: LaneId, task: Task) {
        let appended = self.wall();
        let topic = self.topics.get_mut(&lane).unwrap();
        topic.records.push_back((topic.end, appended, task));
        topic.end += 1;
    }

    fn number(&mut self) -> u64 {
        self.last += 1;
        self.last
    }

    fn step(&mut self, input: Input) {
        let now = Now {
            wall: self.wall(),
            steady: self.now,
        };
        let mut actions = Vec::new();
        self.engine.step(now, input, &mut actions);
        for action in actions {
            self.follow(action);
        }
        self.most_open = self.most_open.max(self.engine.open());
    }

    fn commit(&mut self) {
        self.commit_at = None;
        for commit in self.engine.commits() {
            self.step(Input::Committed {
                lane: commit.lane,
                epoch: commit.epoch,
                watermark: commit.watermark,
            });
        }
        // What had no room may have some now.
        self.step(Input::Tick);
    }

    fn follow(&mut self, action: Action) {
        match action {
            Action::Dispatch {
                ticket,
                scene,
                task,
                wait,
                ..
            } => {
                let name = match task.kind {
                    Kind::Work => Arc::clone(&scene.name),
                    Kind::Callback => format!("{}-callback", scene.name).into(),
                };
                let is_down = self
                    .down
                    .get(&name)
                    .is_some_and(|(from, to)| (*from..*to).contains(&self.now));
                let outcome = if self.bad.contains(&task.id) || is_down && self.refuses {
                    Outcome::Refused(Failure::new("http-404", "not found"))
                } else if self.unfit.contains(&task.id) || is_down && self.finds_bad {
                    Outcome::Permanent(Failure::new("http-400", "bad request"))
                } else if is_down {
                    Outcome::Retryable(Failure::new("connect", "refused"))
                } else {
                    Outcome::Success
                };
                let load = (self.answers.len() + 1) as f64 / self.capacity as f64;
                let takes = TAKES.mul_f64(load.max(1.0));
                self.answers.insert((self.now + takes, ticket), outcome);
                self.called.push(Called {
                    scene: name,
                    id: Arc::clone(&task.id),
                    attempt: task.attempt,
                    late: wait.total(),
                });
            }
            Action::Settle(settlement) => {
                self.commit_at.get_or_insert(self.now + COMMIT);
                for entry in settlement.entries {
                    self.note(entry);
                }
            }
            Action::Pause { lane, next } => {
                let topic = self.topics.get_mut(&lane).unwrap();
                topic.paused = true;
                assert!(
                    topic
                        .records
                        .front()
                        .is_none_or(|(offset, ..)| *offset >= next)
                );
            }
            Action::Resume { lane, run } => {
                let topic = self.topics.get_mut(&lane).unwrap();
                (topic.run, topic.paused) = (run, false);
            }
            Action::Drained { .. }
            | Action::Judged { .. }
            | Action::ReadLetters(_)
            | Action::Look(_)
            | Action::LimitPassed { .. }
            | Action::Cooldown { .. } => {}
            Action::Switched { target, switch } => {
                let target = Arc::clone(target.text());
                self.switches.push((self.now, target, switch.to));
            }
        }
    }

    fn note(&mut self, entry: Entry) {
        match entry {
            Entry::Park { tier, task, .. } => {
                self.most_hops = self.most_hops.max(task.hops);
                let lane = LaneId {
                    shard: 0,
                    source: Source::Tier(tier),
                };
                let key = (self.now + COMMIT, self.number());
                self.written.insert(key, (lane, Arc::unwrap_or_clone(task)));
            }
            Entry::Event(event) => match event.transition {
                Transition::Deferred { .. } => {
                    self.deferred += 1;
                    self.named.extend(event.command);
                }
                Transition::Ended {
                    terminal, attempts, ..
                } => {
                    let end = (terminal, attempts, self.now);
                    let before = self.ended.insert(event.id, end);
                    assert_eq!(before, None, "ended twice");
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
            Entry::Alert(alert) => self.alerts.push(*alert),
            Entry::Deliver { .. }
            | Entry::DeadLetter { .. }
            | Entry::Poison { .. }
            | Entry::Callback(_)
            | Entry::DeliverCallback(_)
            | Entry::State(_)
            | Entry::Control { .. } => {}
        }
    }

    /// The next record that can be read, and its lane.
    fn readable(&self) -> Option<(Duration, LaneId)> {
        let of = |(lane, topic): (&LaneId, &Topic)| {
            let (_, appended, _) = topic.records.front().filter(|_| !topic.paused)?;
            let at = match lane.source {
                Source::Tasks | Source::Commands => *appended,
                Source::Tier(tier) => self.ladder.tiers()[tier].readable_at(*appended),
            };
            Some((at.since(Timestamp::from_micros(START)), *lane))
        };
        self.topics.iter().filter_map(of).min()
    }

    /// Lets time pass until then.
    fn run_until(&mut self, end: Duration) {
        loop {
            let written = self.written.keys().next().map(|(at, _)| *at);
            let answered = self.answers.keys().next().map(|(at, _)| *at);
            let read = self.readable();
            let start = Timestamp::from_micros(START);
            let wake = self.engine.next_wake().map(|wake| wake.since(start));
            let times = [
                written,
                answered,
                read.map(|(at, _)| at),
                wake,
                self.commit_at,
            ];
            let Some(next) = times.into_iter().flatten().min().filter(|at| *at <= end) else {
                self.now = self.now.max(end);
                return;
            };
            self.now = self.now.max(next);
            if self.commit_at == Some(next) {
                self.commit();
            } else if answered == Some(next) {
                let ((_, ticket), outcome) = self.answers.pop_first().unwrap();
                self.step(Input::Attempted { ticket, outcome });
            } else if written == Some(next) {
                let (_, (lane, task)) = self.written.pop_first().unwrap();
                self.append(lane, task);
            } else if let Some((_, lane)) = read.filter(|(at, _)| *at == next) {
                let topic = self.topics.get_mut(&lane).unwrap();
                let (offset, appended, task) = topic.records.pop_front().unwrap();
                let position = Position {
                    lane,
                    run: topic.run,
                    offset,
                };
                self.step(Input::Record {
                    position,
                    appended,
                    task: Box::new(task),
                });
            } else {
                self.step(Input::Tick);
            }
        }
    }

    /// The target of a scene is down from now on, for so long.
    fn take_down(&mut self, scene: &str, span: Duration) {
        self.down.insert(scene.into(), (self.now, self.now + span));
    }

    fn calls(&self, scene: &str) -> impl Iterator<Item = &Called> {
        let of = move |called: &&Called| &*called.scene == scene;
        self.called
            .iter()
            .filter(of)
            .collect::<Vec<_>>()
            .into_iter()
    }

    /// Each attempt of each task was made once, one after the other, and there are as many as its end says.
    fn check_attempts(&self) {
        let mut made: BTreeMap<&str, u32> = BTreeMap::new();
        for called in &self.called {
            let last = made.entry(&called.id).or_default();
            assert_eq!(called.attempt, *last + 1, "{called:?}");
            *last += 1;
        }
        for (id, (_, attempts, _)) in &self.ended {
            let made = made.get(&**id).copied().unwrap_or_default();
            assert_eq!(*attempts, made, "{id}");
        }
    }
}

/// An outage of so long with so many tasks due at its beginning, and when the last of them was through after it; calls to the dead target,
/// deferrals per task and most hops of one.
fn outage(span: Duration, tasks: usize) -> (Duration, usize, f64, u32) {
    let mut world = World::new([scene("pay")]);
    world.take_down("pay", span);
    for number in 0..tasks {
        world.produce(task("pay", &format!("t{number}"), world.wall()));
    }

    world.run_until(span);
    let calls = world.called.len();
    assert_eq!(world.ended.len(), 0);
    let mut end = span;
    while world.ended.len() < tasks {
        end += secs(1);
        assert!(end < span + secs(600), "{} are through", world.ended.len());
        world.run_until(end);
    }

    world.check_attempts();
    let last = world.ended.values().map(|(_, _, at)| *at).max().unwrap();
    let each = world.deferred as f64 / tasks as f64;
    (last.saturating_sub(span), calls, each, world.most_hops)
}

#[test]
fn an_outage_costs_few_calls_and_hops_and_all_are_through_soon_after() {
    // The probe that finds it well, the wait of the last one deferred before, and the slow start of what is left.
    let bound = MINUTE + MINUTE + rule().slow_start;
    for (span, tasks, most_calls, most_hops) in [
        (secs(30), 300, 100, 10),
        (secs(600), 300, 180, 30),
        (secs(21_600), 100, 2_000, 450),
    ] {
        let (late, calls, deferred, hops) = outage(span, tasks);

        eprintln!(
            "down for {span:?}: the last of {tasks} is through {late:?} after, {calls} calls meanwhile, {deferred:.1} deferrals per task, at most {hops} hops"
        );
        assert!(late < bound, "{late:?}");
        assert!(calls <= most_calls, "{calls} calls to a dead target");
        assert!(hops <= most_hops, "{hops} hops");
    }
}

#[test]
fn a_flood_is_drained_within_the_slow_start_and_a_minute() {
    let mut world = World::new([scene("pay")]);
    world.take_down("pay", secs(300));
    for number in 0..5_000 {
        world.produce(task("pay", &format!("t{number}"), world.wall()));
    }

    world.run_until(secs(300));
    let open = world.most_open;
    let mut end = world.now;
    while world.ended.len() < 5_000 {
        end += secs(1);
        assert!(end < secs(500), "{} are through", world.ended.len());
        world.run_until(end);
    }

    eprintln!(
        "5,000 are through {:?} after the outage, at most {open} were open",
        end.saturating_sub(secs(300))
    );
    world.check_attempts();
    // 64 calls of 20 ms are 3,200 a second: by capacity alone, 6 s.
    assert!(end < secs(300) + MINUTE + MINUTE + rule().slow_start);
}

#[test]
fn while_it_is_open_nothing_is_called_and_no_attempt_is_used_up() {
    let mut world = World::new([scene("pay")]);
    world.take_down("pay", secs(9));
    for number in 0..100 {
        world.produce(task("pay", &format!("t{number}"), world.wall()));
    }
    world.run_until(secs(1));
    let opened = world.switches.first().cloned();
    let before = world.called.len();

    world.run_until(secs(9));
    let meanwhile = world.called.len() - before;
    world.run_until(secs(200));

    assert!(matches!(opened, Some((at, _, State::Open)) if at <= TAKES));
    // As many as may be in flight, and one in the place of each that failed until it opened.
    assert_eq!((before, meanwhile), (64 + 19, 0));
    assert_eq!(world.ended.len(), 100);
    let states: Vec<State> = world.switches.iter().map(|(.., state)| *state).collect();
    assert_eq!(states, [State::Open, State::HalfOpen, State::Closed]);
    world.check_attempts();
    let attempts: BTreeSet<u32> = world.ended.values().map(|(_, made, _)| *made).collect();
    assert_eq!(
        attempts,
        [1, 2].into(),
        "those called before, and the others"
    );
}

#[test]
fn a_task_whose_deadline_is_before_the_next_probe_expires_and_others_get_their_chance() {
    let mut world = World::new([scene("pay")]);
    world.take_down("pay", secs(40));
    for number in 0..70 {
        world.produce(task("pay", &format!("t{number}"), world.wall()));
    }
    world.run_until(secs(35));
    let (id, ..) = world
        .switches
        .last()
        .map(|(at, _, state)| (*at, *state))
        .unwrap();
    assert!(id >= secs(30), "open until a minute or so");
    let mut doomed = task("pay", "doomed", world.wall());
    doomed.deadline = Some(world.wall() + secs(10));
    let mut saved = task("pay", "saved", world.wall());
    saved.deadline = Some(world.wall() + secs(120));
    world.produce(doomed);
    world.produce(saved);

    world.run_until(secs(300));

    let end = |id: &str| world.ended[id].0;
    assert_eq!(end("doomed"), Terminal::Expired);
    assert_eq!(world.ended["doomed"].1, 0, "attempts");
    assert_eq!(end("saved"), Terminal::Delivered);
    world.check_attempts();
}

#[test]
fn a_scene_with_one_task_goes_on_as_soon_as_its_target_does() {
    let mut world = World::new([Scene {
        breaker: Some(breaker::Key {
            target: "http://pay:80".into(),
            rule: Rule {
                min_calls: 1,
                probes: 1,
                ..rule()
            },
        }),
        ..scene("pay")
    }]);
    world.take_down("pay", secs(60));
    world.produce(task("pay", "only", world.wall()));

    world.run_until(secs(200));

    // Open for 10, 20, 40 s: probes at 10, 30 and 70 s, give or take the calls.
    let (_, attempts, at) = world.ended["only"];
    assert_eq!(attempts, 4);
    assert!((secs(70)..secs(71)).contains(&at), "{at:?}");
}

#[test]
fn another_scene_is_as_late_as_without_the_outage() {
    let late = |down: bool| {
        let limits = Limits::of(16 << 20);
        let mut world = World::limited([scene("pay"), scene("other")], limits);
        if down {
            world.take_down("pay", secs(120));
        }
        for second in 0..130 {
            for number in 0..20 {
                let id = format!("{second}-{number}");
                let due = world.wall();
                world.produce(task("pay", &format!("p{id}"), due));
                world.produce(task("other", &format!("o{id}"), due));
            }
            world.run_until(secs(second + 1));
        }
        world.run_until(secs(400));
        assert_eq!(world.ended.len(), 5_200);
        world.check_attempts();
        let late = world.calls("other").map(|called| called.late);
        late.max().unwrap()
    };

    let (without, with) = (late(false), late(true));

    eprintln!("other scene: late by at most {with:?} in the outage, {without:?} without");
    assert!(with <= without + Duration::from_millis(25), "{with:?}");
}

#[test]
fn scenes_of_one_target_and_rule_share_its_breaker() {
    let twin = Scene {
        name: "twin".into(),
        host: None,
        ..scene("pay")
    };
    let mut world = World::new([scene("pay"), twin]);
    world.take_down("pay", secs(25));
    for number in 0..70 {
        world.produce(task("pay", &format!("t{number}"), world.wall()));
    }
    world.run_until(secs(5));
    assert_eq!(world.switches.len(), 1);

    world.produce(task("twin", "twin", world.wall()));
    world.run_until(secs(9));

    assert_eq!(world.calls("twin").count(), 0);
    assert_eq!(
        world.engine.breaker_states(),
        [("http://pay:80".into(), State::Open)].into()
    );
}

#[test]
fn a_dead_callback_target_holds_up_no_work() {
    let mut scene = scene("pay");
    scene.callback = Some(Callback {
        target: Target::Call,
        breaker: Some(breaker::Key {
            target: "http://ended:80".into(),
            rule: rule(),
        }),
        on: vec![Terminal::Delivered],
    });
    let mut world = World::new([scene]);
    world.take_down("pay-callback", secs(100));
    for number in 0..100 {
        let mut callback = task("pay", &format!("c{number}"), world.wall());
        callback.kind = Kind::Callback;
        callback.record.headers = vec![Header {
            name: "retry-outcome".into(),
            value: Some("delivered".into()),
        }];
        world.produce(callback);
    }
    world.run_until(secs(2));
    let target = world
        .switches
        .first()
        .map(|(_, target, _)| target.to_string());

    world.produce(task("pay", "work", world.wall()));
    world.run_until(secs(3));

    assert_eq!(target.as_deref(), Some("http://ended:80"));
    assert_eq!(
        world.ended.get("work").map(|end| end.0),
        Some(Terminal::Delivered)
    );
    world.run_until(secs(400));
    assert_eq!(world.ended.len(), 101);
    world.check_attempts();
}

#[test]
fn what_waits_for_a_breaker_does_not_wait_for_a_clock_that_was_set_back() {
    let mut world = World::new([scene("pay")]);
    world.take_down("pay", secs(5));
    for number in 0..100 {
        world.produce(task("pay", &format!("t{number}"), world.wall()));
    }
    world.run_until(secs(1));
    let waits = |world: &World| world.engine.open();
    assert!(waits(&world) > 0, "some wait in memory");

    // An hour back: what was due is due no more, and is so again at its due time.
    let due = Timestamp::from_micros(START);
    let back = Now {
        wall: due.before(secs(3_600)),
        steady: secs(2),
    };
    let mut actions = Vec::new();
    world.engine.step(back, Input::Tick, &mut actions);

    assert_eq!(actions, []);
    assert_eq!(world.engine.next_wake(), Some(due));
}

#[test]
fn as_many_are_in_flight_as_a_target_works_on_where_the_number_follows_it() {
    // More than 500 a second, so that there is a line at all times.
    let in_flight = |least: Option<NonZeroU32>| {
        let mut world = World::new([Scene {
            least_concurrency: least,
            breaker: None,
            ..scene("pay")
        }]);
        world.capacity = 10;
        let mut sum = 0;
        for second in 0..40 {
            for number in 0..550 {
                world.produce(task("pay", &format!("t{second}-{number}"), world.wall()));
            }
            world.run_until(secs(second + 1));
            sum += if second >= 20 { world.answers.len() } else { 0 };
        }
        world.check_attempts();
        sum / 20
    };

    let (fixed, follows) = (in_flight(None), in_flight(Some(NonZeroU32::MIN)));

    assert_eq!(fixed, 64);
    assert!((8..=18).contains(&follows), "{follows}");
}

#[test]
fn a_call_that_comes_back_after_its_shard_is_gone_still_counts() {
    let mut world = World::new([scene("pay")]);
    world.take_down("pay", secs(5));
    for number in 0..30 {
        world.produce(task("pay", &format!("t{number}"), world.wall()));
    }
    world.run_until(Duration::from_millis(1));
    assert_eq!((world.called.len(), world.switches.len()), (30, 0));

    world.step(Input::Revoke { shard: 0 });
    world.step(Input::Release { shard: 0 });
    world.run_until(secs(1));

    let states: Vec<State> = world.switches.iter().map(|(.., state)| *state).collect();
    assert_eq!(states, [State::Open]);
    assert_eq!(world.ended.len(), 0);
    // There was nothing to write it with; it goes with the next thing that is.
    assert_eq!(world.alerts, []);
    let lane = LaneId {
        shard: 0,
        source: Source::Tasks,
    };
    world.step(Input::Assign {
        lane,
        start: 1_000,
        known: Completions::default(),
    });
    let topic = world.topics.get_mut(&lane).unwrap();
    (topic.end, topic.run) = (1_000, 0);
    topic.records.clear();
    let later = world.wall() + secs(100);
    world.produce(task("pay", "parked", later));
    world.run_until(secs(2));
    assert_eq!(rules_of(&world.alerts), ["breaker-open"]);
}

/// The rules by which there were alerts.
fn rules_of(alerts: &[Alert]) -> Vec<&str> {
    alerts.iter().map(|alert| alert.rule).collect()
}

#[test]
fn people_are_told_once_that_a_target_is_down_and_once_that_it_is_well_again() {
    let mut world = World::new([scene("pay"), scene("other")]);
    world.run_until(secs(5));
    world.take_down("pay", secs(100));
    for number in 0..200 {
        world.produce(task("pay", &format!("p{number}"), world.wall()));
        world.produce(task("other", &format!("o{number}"), world.wall()));
    }

    world.run_until(secs(104));
    let openings = world.switches.iter();
    let openings = openings.filter(|(.., to)| *to == State::Open).count();
    let down = world.alerts.clone();
    world.run_until(secs(400));

    assert!(openings >= 3, "probes failed meanwhile: {openings}");
    let opened = Timestamp::from_micros(START) + secs(5) + TAKES;
    let example = Arc::clone(&down[0].example);
    assert!(example.starts_with('p'), "{example}");
    assert_eq!(
        down,
        [Alert {
            rule: "breaker-open",
            scene: "pay".into(),
            at: opened,
            count: 20,
            example,
            reason: "failure-rate",
            target: Some(TargetHealth {
                name: "http://pay:80".into(),
                failed: 20,
                slow: 0,
                since: opened,
                until: Some(opened + secs(10)),
                samples: Vec::new(),
            }),
            expiring: None,
        }]
    );
    assert_eq!(rules_of(&world.alerts), ["breaker-open", "breaker-closed"]);
    let closed = &world.alerts[1];
    let health = closed.target.as_ref().unwrap();
    assert_eq!((closed.count, closed.reason), (5, "probes"));
    assert_eq!(
        (health.failed, health.since, health.until),
        (0, opened, None)
    );
    assert!(closed.at > opened + secs(99), "{closed:?}");
}

/// A scene whose target has a wall, and no breaker.
fn walled(name: &str) -> Scene {
    let mut scene = scene(name);
    scene.walls.work = Some(breaker::Key {
        target: breaker::Subject::wall(&format!("http://{name}:80"), name),
        rule: wall::RULE,
    });
    scene.breaker = None;
    scene.policy.max_attempts = NonZeroU32::new(3).unwrap();
    scene
}

/// Produces a task every 20 ms for so long.
fn keep_producing(world: &mut World, made: &mut usize, span: Duration) {
    let end = world.now + span;
    while world.now < end {
        world.produce(task("pay", &format!("t{made}"), world.wall()));
        *made += 1;
        world.run_until(world.now + Duration::from_millis(20));
    }
}

fn dead(world: &World) -> usize {
    let ends = world.ended.values();
    ends.filter(|(terminal, ..)| *terminal == Terminal::Dead)
        .count()
}

#[test]
fn a_sudden_wall_kills_few_tasks_is_told_once_and_all_others_are_delivered() {
    let mut world = World::new([walled("pay")]);
    let mut made = 0;

    keep_producing(&mut world, &mut made, secs(5));
    world.refuses = true;
    world.take_down("pay", secs(600));
    keep_producing(&mut world, &mut made, secs(60));
    let meanwhile = world.called.len();
    world.run_until(secs(900));

    assert_eq!(world.ended.len(), made);
    assert_eq!(dead(&world), wall::LEAST as usize - 1);
    // What made it a wall, what was in flight then, and three probes a minute.
    assert!(meanwhile < 250 + 64 + 60, "{meanwhile} calls");
    world.check_attempts();
    let rules: Vec<_> = world.alerts.iter().map(|alert| alert.rule).collect();
    assert_eq!(rules, [BREAKER_OPEN, BREAKER_CLOSED]);
    assert_eq!(world.alerts[0].reason, "refused-in-a-row");
    assert_eq!(world.alerts[0].count, wall::LEAST);
}

#[test]
fn bad_tasks_between_good_ones_and_a_target_that_refuses_from_the_start_get_what_they_always_got() {
    let mut world = World::new([walled("pay")]);
    world.bad = (0..1_000)
        .step_by(4)
        .map(|id| format!("t{id}").into())
        .collect();
    let mut made = 0;
    keep_producing(&mut world, &mut made, secs(20));
    world.run_until(secs(60));
    assert_eq!(world.ended.len(), made);
    assert_eq!(dead(&world), made.div_ceil(4));
    assert_eq!(world.called.len(), made);

    let mut world = World::new([walled("pay")]);
    world.refuses = true;
    world.take_down("pay", secs(600));
    let mut made = 0;
    keep_producing(&mut world, &mut made, secs(20));
    world.run_until(secs(60));
    assert_eq!(dead(&world), made);
    assert_eq!(world.called.len(), made);
    assert!(world.alerts.is_empty(), "{:?}", world.alerts);
}

/// A target that is well for five seconds and finds everything bad for thirty, while fifty tasks come in a second.
fn flooded(attempts: u32) -> (World, usize) {
    let mut pay = walled("pay");
    pay.policy.max_attempts = NonZeroU32::new(attempts).unwrap();
    pay.max_throttled = NonZeroU32::new(10).unwrap();
    let mut world = World::new([pay]);
    let mut made = 0;
    keep_producing(&mut world, &mut made, secs(5));
    world.finds_bad = true;
    world.take_down("pay", secs(35));
    keep_producing(&mut world, &mut made, secs(30));
    (world, made)
}

#[test]
fn a_flood_of_bad_ends_is_braked_is_told_once_and_all_others_are_delivered() {
    for attempts in [1, 3] {
        let (mut world, made) = flooded(attempts);
        let meanwhile = world.called.len();
        world.run_until(secs(300));

        assert_eq!(world.ended.len(), made);
        assert_eq!(dead(&world), brake::LEAST as usize - 1);
        // Those before it, what tripped it, what was in flight then, and three probes each time.
        assert!(meanwhile < 250 + 16 + 64 + 15, "{meanwhile} calls");
        assert_eq!(rules_of(&world.alerts), [FLOOD_BRAKE, BREAKER_CLOSED]);
        let alert = &world.alerts[0];
        assert_eq!((alert.reason, &*alert.scene), ("flood", "pay"));
        assert_eq!(alert.count, brake::RECENT);
        let health = alert.target.as_ref().unwrap();
        assert_eq!(health.failed, brake::LEAST);
        assert_eq!(health.samples.len(), 3);
        // The one that tripped it is tried again.
        let died = |id: &&Arc<str>| world.ended[*id].0 == Terminal::Dead;
        assert_eq!(health.samples.iter().filter(died).count(), 2);
    }
}

#[test]
fn tasks_that_are_bad_themselves_come_to_their_end_and_do_not_hold_up_others_for_long() {
    let mut pay = walled("pay");
    pay.max_throttled = NonZeroU32::new(10).unwrap();
    let mut world = World::new([pay]);
    let mut made = 0;
    keep_producing(&mut world, &mut made, secs(5));
    // A producer that is wrong: every second one of the next three hundred.
    world.unfit = (made..made + 300)
        .step_by(2)
        .map(|number| format!("t{number}").into())
        .collect();
    keep_producing(&mut world, &mut made, secs(10));
    world.run_until(secs(3_600));

    assert_eq!(world.ended.len(), made);
    assert_eq!(dead(&world), 150);
}

#[test]
fn a_scene_without_a_brake_and_one_that_half_of_all_die_of_lose_what_they_always_lost() {
    let mut pay = walled("pay");
    pay.walls.work.as_mut().unwrap().rule = wall::UNBRAKED;
    let mut world = World::new([pay]);
    let mut made = 0;
    keep_producing(&mut world, &mut made, secs(5));
    world.finds_bad = true;
    world.take_down("pay", secs(10));
    keep_producing(&mut world, &mut made, secs(4));
    world.run_until(secs(60));
    assert_eq!(dead(&world), 200);

    let mut world = World::new([walled("pay")]);
    world.unfit = (0..1_000)
        .step_by(2)
        .map(|number| format!("t{number}").into())
        .collect();
    let mut made = 0;
    keep_producing(&mut world, &mut made, secs(20));
    world.run_until(secs(60));
    assert_eq!(dead(&world), made / 2);
    assert_eq!(world.called.len(), made);
}

/// What people want of a target, by the record of this offset.
fn forced(target: &str, force: Force, offset: i64, (from, to): (u64, u64)) -> Arc<Forced> {
    let start = Timestamp::from_micros(START);
    Arc::new(Forced {
        target: target.into(),
        revision: Revision {
            partition: 0,
            offset,
        },
        force,
        by: "ann".into(),
        reason: "they move".into(),
        since: start + secs(from),
        until: start + secs(to),
    })
}

/// That people want this, and nothing else.
fn want(version: u64, forced: impl IntoIterator<Item = Arc<Forced>>) -> Input {
    let all: AllForced = forced.into_iter().collect();
    Input::Holds(Holds::default().with_forced(all.at_version(version)))
}

#[test]
fn what_people_keep_open_uses_no_attempt_tells_nobody_and_is_back_soon_after() {
    let mut world = World::new([scene("pay"), scene("other")]);
    world.run_until(secs(1));
    world.step(want(1, [forced("pay", Force::Open, 7, (1, 3_600))]));
    for number in 0..200 {
        world.produce(task("pay", &format!("p{number}"), world.wall()));
    }
    world.produce(task("other", "o", world.wall()));

    world.run_until(secs(300));
    let called = world.calls("pay").count();
    world.step(want(2, []));
    world.run_until(secs(420));

    assert_eq!(called, 0);
    assert_eq!(world.calls("other").count(), 1);
    assert_eq!(world.ended.len(), 201, "a minute, and the slow start");
    world.check_attempts();
    assert!(world.calls("pay").all(|called| called.attempt == 1));
    assert_eq!(world.named, ["breaker/pay".into()].into());
    assert_eq!(world.alerts, []);
}

#[test]
fn breakers_do_what_people_want_in_the_order_of_their_targets() {
    let names: Vec<String> = (0..20).map(|number| format!("s{number:02}")).collect();
    let mut world = World::new(names.iter().map(|name| scene(name)));
    let wanted = |name: &String| forced(name, Force::Open, 7, (0, 3_600));

    world.step(want(1, names.iter().map(wanted)));

    let switched = world.switches.iter().map(|(_, target, _)| &**target);
    let targets: Vec<String> = names
        .iter()
        .map(|name| format!("http://{name}:80"))
        .collect();
    assert_eq!(switched.collect::<Vec<_>>(), targets);
}

#[test]
fn what_people_keep_open_expires_at_its_deadline_and_not_before() {
    let mut world = World::new([scene("pay")]);
    world.run_until(secs(1));
    world.step(want(1, [forced("pay", Force::Open, 7, (1, 3_600))]));
    let deadlines = [("soon", 10), ("later", 40), ("last", 100)];
    for (id, end) in deadlines {
        let mut task = task("pay", id, world.wall());
        task.deadline = Some(world.wall() + secs(end - 1));
        world.produce(task);
    }

    world.run_until(secs(30));
    let early = world.ended.clone();
    world.step(want(2, []));
    world.run_until(secs(200));

    let ends = |ended: &BTreeMap<Arc<str>, (Terminal, u32, Duration)>| -> Vec<_> {
        let ends = ended
            .iter()
            .map(|(id, (terminal, ..))| (id.to_string(), *terminal));
        ends.collect()
    };
    assert_eq!(ends(&early), [("soon".to_owned(), Terminal::Expired)]);
    let at = early["soon"].2;
    assert!((secs(10)..secs(11)).contains(&at), "{at:?}");
    assert_eq!(world.ended["later"].0, Terminal::Delivered);
    assert_eq!(world.ended["last"].0, Terminal::Delivered);
}

#[test]
fn an_outage_that_shows_when_people_let_go_is_told() {
    let mut world = World::new([scene("pay")]);
    world.take_down("pay", secs(300));
    world.step(want(1, [forced("pay", Force::Open, 7, (0, 60))]));
    for number in 0..200 {
        world.produce(task("pay", &format!("p{number}"), world.wall()));
    }

    world.run_until(secs(59));
    let before = (world.called.len(), world.alerts.len());
    world.run_until(secs(500));

    assert_eq!(before, (0, 0));
    assert_eq!(rules_of(&world.alerts), ["breaker-open", "breaker-closed"]);
    assert_eq!(world.ended.len(), 200);
}

#[test]
fn what_people_keep_closed_is_called_whatever_it_says_until_that_ends() {
    let mut world = World::new([scene("pay")]);
    world.take_down("pay", secs(300));
    world.step(want(
        1,
        [forced("http://pay:80", Force::Closed, 7, (0, 60))],
    ));
    for number in 0..200 {
        world.produce(task("pay", &format!("p{number}"), world.wall()));
    }

    world.run_until(secs(60));
    let switches = world.switches.len();
    let called = world.called.len();
    world.run_until(secs(90));

    assert_eq!(switches, 0);
    assert!(
        called >= 200 * 10,
        "each of them every five seconds: {called}"
    );
    assert_eq!(rules_of(&world.alerts), ["breaker-open"]);
}

#[test]
fn what_was_said_before_counts_again_when_what_was_said_last_ends() {
    let mut world = World::new([scene("pay")]);
    let all = [
        forced("pay", Force::Open, 7, (0, 3_600)),
        forced("pay:80", Force::Closed, 8, (1, 30)),
    ];
    world.run_until(secs(1));
    world.step(want(1, all));
    world.produce(task("pay", "before", world.wall()));

    world.run_until(secs(31));
    world.produce(task("pay", "after", world.wall()));
    world.run_until(secs(120));

    let ids: Vec<&str> = world.calls("pay").map(|called| &*called.id).collect();
    assert_eq!(ids, ["before"]);
}

#[test]
fn a_breaker_of_new_rules_and_one_of_another_process_do_what_people_want_too() {
    let mut world = World::new([scene("other")]);
    world.step(want(1, [forced("pay", Force::Open, 7, (0, 3_600))]));
    let scenes: Scenes = [scene("other"), scene("pay")].into_iter().collect();
    world.step(Input::Rules(scenes));
    world.produce(task("pay", "p", world.wall()));

    world.run_until(secs(60));

    assert_eq!(world.called.len(), 0);
}

#[test]
fn each_shard_writes_down_what_it_knows_and_which_breakers_are_not_closed() {
    let mut world = World::new([scene("pay"), scene("other")]);
    let told = |world: &mut World| {
        let changes = world.engine.changes().into_iter();
        let told = changes.filter_map(|(shard, state)| match state {
            retide_core::State::Hold { name, standing } => Some((shard, name, standing)),
            _ => None,
        });
        told.collect::<Vec<_>>()
    };
    let standing = |offset, state| {
        let revision = Revision {
            partition: 0,
            offset,
        };
        Some(Standing {
            revision,
            breaker: Some(state),
            ..Standing::default()
        })
    };
    told(&mut world);

    world.step(want(1, [forced("pay", Force::Open, 7, (0, 3_600))]));
    let is_untold = world.engine.has_untold_holds();
    let knows = told(&mut world);
    world.step(want(2, [forced("pay", Force::Reset, 8, (1, 3_600))]));
    let reset = told(&mut world);
    let holds = vec![("breaker/gone".into(), Standing::default())];
    world.step(Input::HoldsKnown { shard: 0, holds });
    let gone = told(&mut world);
    world.take_down("other", secs(60));
    for number in 0..40 {
        world.produce(task("other", &format!("o{number}"), world.wall()));
    }
    world.run_until(secs(6));
    let down = told(&mut world);
    world.step(want(3, []));
    let over = told(&mut world);

    assert!(is_untold);
    let pay: Arc<str> = "breaker/pay".into();
    assert_eq!(knows, [(0, Arc::clone(&pay), standing(7, State::Open))]);
    assert_eq!(reset, [(0, Arc::clone(&pay), standing(8, State::Closed))]);
    assert_eq!(gone, [(0, "breaker/gone".into(), None)]);
    let other = Some(Standing {
        breaker: Some(State::Open),
        ..Standing::default()
    });
    assert_eq!(down, [(0, "breaker/http://other:80".into(), other)]);
    assert_eq!(over, [(0, pay, None)]);
}

#[test]
fn a_task_whose_scene_does_not_exist_calls_what_the_default_one_calls() {
    let produces = Target::Produce {
        topic: "copies".into(),
    };
    let copy = Scene::new("copy", produces, support::policy(secs(5), 1));
    let all = [scene("pay"), copy, scene(DEFAULT)];
    let without: TargetNames = all[..2].iter().collect();
    let with: TargetNames = all.iter().collect();

    assert_eq!(with.of_task("pay", Kind::Work), Some("http://pay:80"));
    assert_eq!(with.of_task("copy", Kind::Work), Some("topic copies"));
    assert_eq!(with.of_task("gone", Kind::Work), Some("http://default:80"));
    assert_eq!(with.of_task("pay", Kind::Callback), None);
    assert_eq!(without.of_task("gone", Kind::Work), None);
}
