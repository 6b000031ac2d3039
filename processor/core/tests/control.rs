//! Commands and the engine: what stands when a shard comes, what contradicts, what is old, and a flood.

mod support;

use std::collections::BTreeSet;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use retide_core::completions::Completions;
use retide_core::control::{
    Command, Control, Counts, Ended, LONGEST, Looked, Looking, Place, Progress, Step, Verb,
};
use retide_core::lane::Limits;
use retide_core::scene::Target;
use retide_core::selector::{Parts, Selector};
use retide_core::{
    Action, Commit, Engine, Entry, Failure, Fate, Gates, Input, Ladder, LaneId, Now, Ordering,
    Outcome, Position, Rate, Returned, Scene, Sink, Sinks, Source, State, StateKey, Task, Writable,
};

use support::{TASKS, at};

/// What the engine may hold.
const MEMORY: usize = 16 << 20;

const COMMANDS: LaneId = LaneId {
    shard: 0,
    source: Source::Commands,
};

/// An engine with one shard.
struct Bench {
    engine: Engine,
    /// What it wants done, but for looks.
    actions: Vec<Action>,
    /// How many looks it has asked for.
    looks: usize,
    /// What was written of the state of the shard.
    states: Vec<State>,
    /// What stands on the commands topic.
    log: Vec<Control>,
    /// How far it is read, the run to give with it, and whether it is not to be read.
    next: usize,
    run: u64,
    paused: bool,
    /// What looks find in the tier, and where the retry topic ends for them, if they are told.
    tier: Vec<Task>,
    tasks_to: Option<i64>,
}

fn task(id: &str, due: u64, offset: i64) -> Task {
    let mut task = support::task(id, "pay", at(due).wall);
    task.first_failed_at = at(0).wall;
    task.origin.offset = offset;
    task.record.value = Some("payload".into());
    task
}

fn ids(ids: &[&str]) -> Selector {
    Selector::new(Parts {
        ids: ids.iter().map(|id| Arc::from(*id)).collect(),
        ..Parts::default()
    })
    .unwrap()
}

/// All tasks.
fn all() -> Selector {
    Selector::new(Parts {
        scenes: ["pay".into()].into(),
        ..Parts::default()
    })
    .unwrap()
}

fn command(millis: u64, offset: i64, verb: Verb, selector: Selector) -> Arc<Command> {
    let appended = at(millis).wall;
    Arc::new(Command {
        place: Place {
            at: appended,
            partition: 0,
            offset,
        },
        id: format!("c-{offset}").into(),
        verb,
        selector,
        by: "".into(),
        reason: "".into(),
        expires: appended + Duration::from_hours(1),
    })
}

/// The rules of all tasks.
fn pay() -> Scene {
    Scene::new(
        "pay",
        Target::Call,
        support::policy(Duration::from_secs(30), 3),
    )
}

/// Why calls fail.
fn failure() -> Failure {
    Failure {
        class: "http-503".into(),
        message: "busy".into(),
        host: None,
    }
}

/// A step of a command.
fn step(command: &Arc<Command>) -> Step {
    Step {
        command: Arc::clone(command),
        shards: 1,
        again: false,
        before: Counts::default(),
        looked: None,
    }
}

impl Bench {
    /// One in whose lane of commands records stand up to `stand`.
    fn new(stand: i64) -> Self {
        let mut bench = Self::of(MEMORY);
        bench.assign(at(0), stand);
        bench
    }

    /// One that may hold so many bytes, and has no shard yet.
    fn of(memory: usize) -> Self {
        Self::of_group(memory, NonZeroU32::MIN)
    }

    /// The same in a group of so many shards.
    fn of_group(memory: usize, shards: NonZeroU32) -> Self {
        let gates = Arc::new(Gates::default());
        let engine = Engine::new(Ladder::default(), Limits::of(memory), gates, shards);
        let mut bench = Self {
            engine,
            actions: Vec::new(),
            looks: 0,
            states: Vec::new(),
            log: Vec::new(),
            next: 0,
            run: 0,
            paused: false,
            tier: Vec::new(),
            tasks_to: None,
        };
        bench.step(at(0), Input::Rules([pay()].into_iter().collect()));
        bench
    }

    /// The shard becomes the engine's, with nothing committed; in its lane of commands records stand up to `stand`.
    fn assign(&mut self, now: Now, stand: i64) {
        for source in [Source::Tasks, Source::Commands, Source::Tier(0)] {
            let lane = LaneId { shard: 0, source };
            let known = Completions::default();
            self.step(
                now,
                Input::Assign {
                    lane,
                    start: 0,
                    known,
                },
            );
        }
        self.step(
            now,
            Input::Standing {
                shard: 0,
                to: stand,
            },
        );
    }

    /// Takes a step, and answers each look with what is in the tier.
    fn step(&mut self, now: Now, input: Input) {
        let mut new = Vec::new();
        self.engine.step(now, input, &mut new);
        while let Some(index) = new.iter().position(|one| matches!(one, Action::Look(_))) {
            let Action::Look(look) = new.remove(index) else {
                unreachable!("just found");
            };
            self.looks += 1;
            let to = i64::try_from(self.tier.len()).unwrap();
            let lanes = look.lanes.iter().map(|of| (of.lane, of.from.max(to)));
            let ends = lanes.chain(self.tasks_to.map(|to| (TASKS, to))).collect();
            let number = look.number;
            let begun = Input::LookBegun { number, ends };
            self.engine.step(now, begun, &mut new);
            for of in &look.lanes {
                let lane = of.lane;
                for offset in of.from..to {
                    let found = Input::Found {
                        number,
                        lane,
                        offset,
                        task: Box::new(self.tier[usize::try_from(offset).unwrap()].clone()),
                    };
                    self.engine.step(now, found, &mut new);
                }
                let next = of.from.max(to);
                let looked = Input::Looked { number, lane, next };
                self.engine.step(now, looked, &mut new);
            }
        }
        for action in new {
            match action {
                Action::Pause { lane, next } if lane == COMMANDS => {
                    self.paused = true;
                    self.next = usize::try_from(next).unwrap();
                }
                Action::Resume { lane, run } if lane == COMMANDS => {
                    self.paused = false;
                    self.run = run;
                }
                other => self.actions.push(other),
            }
        }
    }

    fn record(&mut self, now: Now, offset: i64, task: Task) {
        let position = Position {
            lane: TASKS,
            run: 0,
            offset,
        };
        let (appended, task) = (now.wall, Box::new(task));
        self.step(
            now,
            Input::Record {
                position,
                appended,
                task,
            },
        );
    }

    /// Reads what stands on the commands topic, as far as it is to be read.
    fn read(&mut self, now: Now) {
        while !self.paused && self.next < self.log.len() {
            let position = Position {
                lane: COMMANDS,
                run: self.run,
                offset: i64::try_from(self.next).unwrap(),
            };
            let control = Ok(self.log[self.next].clone());
            self.next += 1;
            self.step(now, Input::Control { position, control });
        }
    }

    fn control(&mut self, now: Now, control: Control) {
        self.log.push(control);
        self.read(now);
    }

    /// A step of a command is read.
    fn told(&mut self, now: Now, command: &Arc<Command>) {
        self.control(now, Control::Step(step(command)));
    }

    /// Lets time pass, and commits everything, from `from` on for `millis`; what is written for the commands topic is read again.
    fn pass(&mut self, from: u64, millis: u64) {
        for now in (from..from + millis).step_by(10).map(at) {
            self.tick(now);
        }
    }

    /// Lets time pass until the engine wants to do something, and does that.
    fn go_on(&mut self, now: &mut Now) {
        let wake = self.engine.next_wake().unwrap();
        let rest = wake.since(now.wall).max(Duration::from_micros(1));
        now.wall = now.wall + rest;
        now.steady += rest;
        self.tick(*now);
    }

    /// Takes a step, and commits everything; what is written for the commands topic is read again.
    fn tick(&mut self, now: Now) {
        self.step(now, Input::Tick);
        let commits = self.engine.commits();
        let states = self.engine.changes().into_iter();
        self.states.extend(states.map(|(_, state)| state));
        for commit in commits {
            let (lane, epoch, watermark) = (commit.lane, commit.epoch, commit.watermark);
            self.step(
                now,
                Input::Committed {
                    lane,
                    epoch,
                    watermark,
                },
            );
        }
        let written = self.written();
        self.log.extend(written);
        self.read(now);
    }

    /// What was written for the commands topic, taken out of what is to be done.
    fn written(&mut self) -> Vec<Control> {
        let mut all = Vec::new();
        for action in &mut self.actions {
            if let Action::Settle(settlement) = action {
                settlement.entries.retain(|entry| {
                    if let Entry::Control { control, .. } = entry {
                        all.push((**control).clone());
                    }
                    !matches!(entry, Entry::Control { .. })
                });
            }
        }
        all
    }

    /// The progress of a step, as it was written last.
    fn progress(&self) -> Option<Progress> {
        let mut steps = self.states.iter().rev().filter_map(|state| match state {
            State::Step { progress, .. } => Some(progress.clone()),
            State::Order(_)
            | State::Taken { .. }
            | State::Letters { .. }
            | State::Warned { .. }
            | State::Hold { .. }
            | State::Id { .. }
            | State::Replaced { .. } => None,
        });
        steps.next().flatten()
    }

    /// Whether the first answer asks all to look once more.
    fn again(&self) -> Option<bool> {
        let mut log = self.log.iter();
        log.find_map(|one| match one {
            Control::Answer(answer) => Some(answer.again.is_some()),
            Control::Request(_)
            | Control::Step(_)
            | Control::Ended(_)
            | Control::Ask(_)
            | Control::Campaign(_)
            | Control::Report(_) => None,
        })
    }

    /// Whether a step has answered.
    fn has_answered(&self) -> bool {
        let mut log = self.log.iter();
        log.any(|one| matches!(one, Control::Answer(_)))
    }

    /// Calls fail that were started.
    fn answer(&mut self, now: Now) {
        let started = self.actions.iter().filter_map(|action| match action {
            Action::Dispatch { ticket, .. } => Some(*ticket),
            _ => None,
        });
        for ticket in started.collect::<Vec<_>>() {
            let outcome = Outcome::Retryable(failure());
            self.step(now, Input::Attempted { ticket, outcome });
        }
    }

    /// The ids of the tasks that were called.
    fn called(&self) -> BTreeSet<&str> {
        let called = self.actions.iter().filter_map(|action| {
            let Action::Dispatch { task, .. } = action else {
                return None;
            };
            Some(&*task.id)
        });
        called.collect()
    }

    /// The tasks that were parked.
    fn parked(&self) -> Vec<Task> {
        let mut tasks = Vec::new();
        for action in &self.actions {
            let Action::Settle(settlement) = action else {
                continue;
            };
            let parked = settlement.entries.iter().filter_map(Entry::parked);
            tasks.extend(parked.map(|(_, task)| (**task).clone()));
        }
        tasks
    }

    /// What has become of a task, in words.
    fn words(&self, id: &str) -> Vec<&'static str> {
        let mut words = Vec::new();
        for action in &self.actions {
            let Action::Settle(settlement) = action else {
                continue;
            };
            for entry in &settlement.entries {
                if let Entry::Event(event) = entry
                    && *event.id == *id
                {
                    words.push(event.transition.word());
                }
            }
        }
        words
    }
}

#[test]
fn no_task_is_called_before_the_commands_are_read_that_stood_when_its_shard_came() {
    let mut bench = Bench::new(1);
    let cancel = command(0, 0, Verb::Cancel, ids(&["a"]));

    bench.record(at(1), 0, task("a", 0, 0));
    bench.record(at(1), 1, task("b", 0, 1));
    bench.pass(2, 100);
    assert_eq!(bench.called(), BTreeSet::new());
    bench.told(at(200), &cancel);
    bench.pass(201, 100);

    assert_eq!(bench.called(), BTreeSet::from(["b"]));
    assert_eq!(bench.words("a"), ["cancelled"]);
}

#[test]
fn commands_that_cannot_be_read_hold_nothing_for_long_and_that_is_told() {
    let mut bench = Bench::new(1);

    bench.record(at(1), 0, task("a", 0, 0));
    bench.pass(2, 24_000);
    assert_eq!(bench.called(), BTreeSet::new());
    assert_eq!(bench.engine.unread_commands().count(), 0);
    bench.pass(24_002, 2_000);

    assert_eq!(bench.called(), BTreeSet::from(["a"]));
    assert_eq!(bench.engine.unread_commands().collect::<Vec<_>>(), [0]);
    bench.told(at(27_000), &command(0, 0, Verb::Cancel, ids(&["z"])));
    bench.pass(27_001, 100);
    assert_eq!(bench.engine.unread_commands().count(), 0);
}

#[test]
fn of_contradicting_commands_the_later_one_counts_in_whatever_order_they_are_read() {
    let cancel = command(10, 5, Verb::Cancel, ids(&["a"]));
    let hurry = command(10, 6, Verb::RunNow, ids(&["a"]));
    let move_on = command(
        10,
        4,
        Verb::Reschedule {
            due: at(5_000_000).wall,
        },
        ids(&["a"]),
    );

    for order in [
        [&cancel, &hurry, &move_on],
        [&hurry, &cancel, &move_on],
        [&move_on, &hurry, &cancel],
    ] {
        let mut bench = Bench::new(0);
        for command in order {
            bench.told(at(20), command);
        }
        bench.record(at(20), 0, task("a", 9_000, 0));
        bench.pass(21, 500);

        assert_eq!(bench.words("a"), ["rescheduled"], "{order:?}");
    }
}

#[test]
fn a_command_that_is_older_than_commands_are_kept_is_refused_in_words() {
    let mut bench = Bench::new(0);
    let old = command(0, 0, Verb::Cancel, ids(&["a"]));
    let later = LONGEST.as_millis() as u64 + 1_000;

    bench.control(at(later), Control::Request(old));

    let ends = bench.written();
    let [Control::Ended(ended)] = &ends[..] else {
        panic!("an end expected, not {ends:?}");
    };
    assert_eq!(
        ended.result,
        Err("the command is older than commands are kept".into())
    );
}

#[test]
fn progress_that_was_not_written_is_no_news_when_its_shard_has_come_back() {
    let cancel = command(10, 0, Verb::Cancel, all());
    let place = cancel.place;
    let mut bench = Bench::new(0);
    bench.record(at(1), 0, task("a", 500, 0));
    bench.told(at(20), &cancel);
    bench.step(at(30), Input::Tick);
    let lanes = bench.engine.commits().into_iter();
    let lanes = lanes.map(|commit| (commit.lane, commit.epoch)).collect();
    let written = bench.engine.changes().into_iter();
    bench.states.extend(written.map(|(_, state)| state));
    let progress = bench.progress().unwrap();
    assert_eq!(progress.counts.done, 1);

    // An earlier batch has written the same, this one is not written, and it takes long to find that out.
    bench.step(at(40), Input::Revoke { shard: 0 });
    bench.step(at(40), Input::Release { shard: 0 });
    let known = Input::Known {
        shard: 0,
        taken: Vec::new(),
        steps: vec![(place, progress)],
    };
    bench.step(at(50), known);
    bench.assign(at(50), 1);
    let returned = Returned {
        lanes,
        changes: vec![(0, StateKey::Step(place))],
        ..Returned::default()
    };
    bench.step(at(60), Input::Returned(Box::new(returned)));

    let _ = bench.engine.commits();
    assert_eq!(bench.engine.changes(), []);
}

#[test]
fn what_a_step_has_counted_stands_until_its_answer_is_written() {
    let mut bench = Bench::new(0);
    let closed = Sinks::NONE.with(Sink::Commands);
    let writable = |closed| {
        Input::Writable(Writable {
            closed,
            ..Writable::default()
        })
    };

    bench.step(at(0), writable(closed));
    bench.record(at(1), 0, task("a", 500, 0));
    bench.told(at(20), &command(10, 0, Verb::Cancel, all()));
    bench.pass(21, 300);
    assert_eq!(bench.words("a"), ["cancelled"]);
    assert!(!bench.has_answered());
    assert_eq!(bench.progress().unwrap().counts.done, 1);
    bench.step(at(400), writable(Sinks::NONE));
    bench.pass(401, 300);

    assert!(bench.has_answered());
    assert_eq!(bench.progress(), None);
}

#[test]
fn a_command_is_looked_at_twice_if_a_task_may_have_moved_however_far_ahead_the_broker_is() {
    // Nobody knows what has moved before the shard came, at 0.
    for (appended, read, twice) in [
        (4_990, 5_000, true),
        (45_000, 5_000, true),
        (59_990, 60_000, false),
        (69_000, 60_000, false),
        // A clock that is so far off says nothing.
        (71_000, 60_000, true),
    ] {
        let mut bench = Bench::new(0);

        bench.step(at(read), Input::Tick);
        bench.told(at(read), &command(appended, 0, Verb::Cancel, all()));
        bench.pass(read + 1, 300);

        assert_eq!(
            bench.again(),
            Some(twice),
            "appended {appended}, read {read}"
        );
    }
}

#[test]
fn a_task_moves_when_that_is_durable_however_long_it_takes() {
    for (durable, twice) in [(60_010, false), (80_030, true)] {
        let mut bench = Bench::new(0);
        let rate = Rate {
            limit: NonZeroU32::MIN,
            per: Duration::from_secs(1),
            burst: NonZeroU32::MIN,
        };
        let scene = Scene {
            rate: Some(rate),
            ..pay()
        };
        bench.step(at(0), Input::Rules([scene].into_iter().collect()));
        bench.step(at(0), Input::Shards(NonZeroU32::new(3).unwrap()));

        bench.record(at(60_000), 0, task("a", 60_000, 0));
        assert_eq!(bench.words("a"), ["parked"]);
        let commits = bench.engine.commits();
        let end = |bench: &mut Bench| {
            for Commit {
                lane,
                epoch,
                watermark,
                ..
            } in &commits
            {
                let committed = Input::Committed {
                    lane: *lane,
                    epoch: *epoch,
                    watermark: *watermark,
                };
                bench.step(at(durable), committed);
            }
        };
        if durable < 80_000 {
            end(&mut bench);
        }
        bench.told(at(80_000), &command(79_990, 0, Verb::Cancel, ids(&["a"])));
        bench.step(at(80_020), Input::Tick);
        if durable > 80_000 {
            end(&mut bench);
        }
        bench.pass(80_040, 300);

        assert_eq!(bench.again(), Some(twice), "durable at {durable}");
    }
}

#[test]
fn what_names_ids_waits_for_no_batch_that_parks_others() {
    for (selector, is_fenced) in [
        (ids(&["a"]), true),
        (ids(&["b", "a"]), true),
        (ids(&["b"]), false),
        (all(), true),
    ] {
        let mut bench = Bench::new(0);
        bench.record(at(10), 0, task("a", 3_600_000, 0));
        assert_eq!(bench.words("a"), ["parked"]);

        bench.told(at(20), &command(10, 0, Verb::RunNow, selector.clone()));
        bench.step(at(30), Input::Tick);

        assert_eq!(bench.looks, usize::from(!is_fenced), "{selector:?}");
        assert_eq!(bench.engine.wants_fence_to_look(), is_fenced);
        bench.pass(40, 100);
        assert!(bench.looks > 0, "{selector:?}");
    }
}

#[test]
fn a_command_meets_the_tasks_of_many_scenes_and_keys_in_one_order_always() {
    let mut bench = Bench::new(0);
    let names: Vec<String> = (0..20).map(|number| format!("s{number:02}")).collect();
    let scenes = names.iter().map(|name| Scene {
        name: (**name).into(),
        ..pay()
    });
    let keyed = Scene {
        name: "keyed".into(),
        ordering: Ordering::Key,
        concurrency: NonZeroU32::new(64).unwrap(),
        ..pay()
    };
    let rules = scenes.chain([keyed]).collect();
    bench.step(at(0), Input::Rules(rules));
    let mut wanted = Vec::new();
    for (offset, name) in (0..).zip(&names) {
        let mut soon = task(&format!("soon-{name}"), 900, offset);
        soon.scene = (**name).into();
        wanted.push(Arc::clone(&soon.id));
        bench.record(at(1), offset, soon);
    }
    for (offset, name) in (20..).zip(names.iter().chain(&names)) {
        let mut in_turn = task(&format!("{offset}-{name}"), 0, offset);
        in_turn.scene = "keyed".into();
        in_turn.record.key = Some(name.clone().into());
        if offset >= 40 {
            wanted.push(Arc::clone(&in_turn.id));
        }
        bench.record(at(2), offset, in_turn);
    }
    assert_eq!(bench.called().len(), 20, "the first one of each key");

    let those: Vec<&str> = wanted.iter().map(|id| &**id).collect();
    bench.told(at(10), &command(10, 0, Verb::Cancel, ids(&those)));
    bench.pass(11, 100);

    let ended = bench.actions.iter().filter_map(|action| match action {
        Action::Settle(settlement) => settlement.entries.iter().find_map(Entry::event),
        _ => None,
    });
    let ended = ended.filter(|event| event.transition.word() == "cancelled");
    let ended: Vec<_> = ended.map(|event| Arc::clone(&event.id)).collect();
    assert_eq!(ended, wanted);
}

#[test]
fn no_step_answers_while_its_shard_is_given_away() {
    let shard = 0;
    for leaves in [Input::Leave { shard }, Input::Revoke { shard }] {
        let mut bench = Bench::new(0);

        bench.told(at(20), &command(10, 0, Verb::Cancel, all()));
        bench.step(at(21), leaves);
        bench.pass(22, 1_000);

        assert!(!bench.has_answered());
    }
}

#[test]
fn of_commands_that_stand_none_is_followed_before_all_are_read() {
    let mut bench = Bench::new(2);

    bench.record(at(1), 0, task("a", 9_000, 0));
    bench.told(at(20), &command(10, 0, Verb::RunNow, all()));
    bench.pass(21, 200);
    assert!(bench.words("a").is_empty());
    bench.told(at(300), &command(10, 1, Verb::Cancel, all()));
    bench.pass(301, 300);

    assert_eq!(bench.words("a"), ["cancelled"]);
}

/// What the engine may hold where two large commands are more than a lane may.
const LITTLE: usize = 1 << 20;

impl Bench {
    /// Commands that are about no task fill the lane of commands of such an engine, from `offset` on; what stands behind them is not read.
    fn fill(&mut self, now: Now, offset: i64) {
        let names = (0..1_000).map(|number| Arc::from(format!("nobody-{number}")));
        let parts = Parts {
            ids: names.collect(),
            ..Parts::default()
        };
        let nobody = Selector::new(parts).unwrap();
        for offset in [offset, offset + 1] {
            self.told(now, &command(10, offset, Verb::Cancel, nobody.clone()));
        }
        assert!(self.paused);
    }
}

#[test]
fn a_task_that_is_read_while_more_commands_stand_than_may_be_held_meets_those_that_are_read() {
    let mut bench = Bench::of(LITTLE);
    bench.tasks_to = Some(1);
    bench.assign(at(0), 4);

    // The later one of those that have looked ends before.
    bench.told(at(20), &command(10, 9, Verb::Cancel, all()));
    bench.fill(at(20), 1);
    let over = command(5, 0, Verb::Cancel, all());
    let over = Ended {
        place: over.place,
        id: Arc::clone(&over.id),
        at: at(10).wall,
        ids: 0,
        result: Ok(Counts::default()),
    };
    bench.control(at(20), Control::Ended(over));
    bench.step(at(30), Input::Tick);
    assert_eq!(bench.looks, 1);
    bench.record(at(31), 0, task("a", 0, 0));
    bench.pass(32, 1_000);

    assert!(!bench.paused);
    assert_eq!(bench.called(), BTreeSet::new());
    assert_eq!(bench.words("a"), ["cancelled"]);
}

impl Bench {
    /// An engine in whose shard a cancel stands, at this offset of all that stands there, that looked at the empty tier under a former owner,
    /// for the second time.
    fn with_a_cancel_that_has_looked(offset: i64) -> (Self, Control) {
        let mut bench = Self::of(LITTLE);
        let cancel = command(10, offset, Verb::Cancel, all());
        let looking = Looking {
            source: Source::Tier(0),
            next: 0,
            to: 0,
        };
        let progress = Progress {
            again: true,
            looking: vec![looking],
            ..Progress::default()
        };
        let known = Input::Known {
            shard: 0,
            taken: Vec::new(),
            steps: vec![(cancel.place, progress)],
        };
        bench.step(at(0), known);
        bench.assign(at(0), offset + 1);
        let step = Step {
            again: true,
            ..step(&cancel)
        };
        (bench, Control::Step(step))
    }
}

#[test]
fn what_a_command_moves_is_found_by_a_later_one_that_could_not_be_held_and_has_looked_before() {
    let (mut bench, cancel) = Bench::with_a_cancel_that_has_looked(3);
    let due = at(5_000_000).wall;

    bench.record(at(1), 0, task("a", 9_000, 0));
    bench.told(at(20), &command(10, 0, Verb::Reschedule { due }, all()));
    bench.fill(at(20), 1);
    bench.control(at(20), cancel);
    bench.step(at(30), Input::Tick);
    assert_eq!(bench.words("a"), ["rescheduled"]);
    bench.tier = bench.parked();
    bench.pass(31, 1_000);

    assert!(!bench.paused);
    assert_eq!(bench.words("a"), ["rescheduled", "cancelled"]);
}

#[test]
fn what_was_parked_since_commands_could_not_be_read_is_found_by_one_that_has_looked_before() {
    let (mut bench, cancel) = Bench::with_a_cancel_that_has_looked(0);

    bench.record(at(1), 0, task("a", 5_000_000, 0));
    bench.pass(2, 26_000);
    assert_eq!(bench.words("a"), ["parked"]);
    bench.tier = bench.parked();
    bench.control(at(27_000), cancel);
    bench.pass(27_001, 1_000);

    assert_eq!(bench.words("a"), ["parked", "cancelled"]);
}

#[test]
fn what_a_former_owner_has_parked_without_the_commands_is_found_by_one_that_has_looked_before() {
    let (mut bench, cancel) = Bench::with_a_cancel_that_has_looked(0);
    bench.tier = vec![task("a", 5_000_000, 0)];

    bench.control(at(20), cancel);
    bench.pass(21, 1_000);

    assert_eq!(bench.words("a"), ["cancelled"]);
}

impl Bench {
    /// An engine in whose shard a cancel stands that has answered under a former owner, and waits for what was set aside among the first
    /// `tasks` records of the retry topic; the tier was empty.
    fn with_a_cancel_that_waits(tasks: i64, selector: Selector) -> (Self, Control) {
        let mut bench = Self::of(MEMORY);
        let cancel = command(10, 0, Verb::Cancel, selector);
        let looked = [(Source::Tier(0), 0), (Source::Tasks, tasks)];
        let step = Step {
            looked: Some(looked.map(|(source, to)| Looked { source, to }).into()),
            ..step(&cancel)
        };
        bench.assign(at(0), 1);
        (bench, Control::Step(step))
    }
}

#[test]
fn what_was_set_aside_stays_in_its_shard_until_the_command_is_read_that_waits_for_it() {
    const COUNT: i64 = 50;
    let mut bench = Bench::of_group(MEMORY, NonZeroU32::new(2).unwrap());
    // Two at once, and one in ten seconds: a queue of two is long.
    let rate = Rate {
        limit: NonZeroU32::MIN,
        per: Duration::from_secs(10),
        burst: NonZeroU32::new(2).unwrap(),
    };
    let rated = Scene {
        rate: Some(rate),
        ..pay()
    };
    bench.step(at(0), Input::Rules([rated].into_iter().collect()));
    bench.assign(at(0), 1);
    let cancel = step(&command(10, 0, Verb::Cancel, all()));
    let looked = [(Source::Tier(0), 0), (Source::Tasks, COUNT)];
    let cancel = Step {
        looked: Some(looked.map(|(source, to)| Looked { source, to }).into()),
        shards: 2,
        ..cancel
    };

    for offset in 0..COUNT {
        bench.record(at(1), offset, task(&format!("t-{offset}"), 0, offset));
    }
    // The commands cannot be read for so long.
    bench.pass(2, 26_000);
    let called = bench.called().len();
    let moved = bench.actions.iter().filter(|action| match action {
        Action::Settle(settlement) => settlement.entries.iter().any(|entry| match entry {
            Entry::Park { to, .. } => to.is_some_and(|to| to != 0),
            _ => false,
        }),
        _ => false,
    });
    assert_eq!(moved.count(), 0);
    bench.control(at(27_000), Control::Step(cancel));
    bench.pass(27_001, 1_000);

    assert!((1..10).contains(&called), "{called}");
    assert_eq!(cancelled(&bench), COUNT as usize - called);
}

#[test]
fn what_was_counted_of_the_second_look_stays_though_a_record_of_the_first_one_still_stands() {
    // A former owner has begun the second look, and could not write that the record is over that waited for what was set aside.
    let (mut bench, waits) = Bench::with_a_cancel_that_waits(1, all());
    let Control::Step(waits) = waits else {
        unreachable!("a step")
    };
    let done = Counts {
        done: 2,
        ..Counts::default()
    };
    let progress = Progress {
        again: true,
        counts: done,
        looking: Vec::new(),
    };
    let steps = vec![(waits.command.place, progress)];
    let taken = Vec::new();
    let shard = 0;
    let known = Input::Known {
        shard,
        taken,
        steps,
    };
    bench.step(at(0), known);
    let second = Step {
        again: true,
        looked: None,
        ..waits.clone()
    };

    bench.control(at(20), Control::Step(waits));
    bench.pass(21, 100);
    bench.control(at(130), Control::Step(second));
    bench.record(at(131), 0, task("a", 5_000_000, 0));
    bench.pass(132, 1_000);

    let mut log = bench.log.iter();
    let counts = log.find_map(|one| match one {
        Control::Answer(answer) => Some(answer.counts.done),
        _ => None,
    });
    assert_eq!(counts, Some(3));
    assert_eq!(bench.words("a"), ["cancelled"]);
}

#[test]
fn what_the_first_look_has_counted_and_is_not_written_takes_nothing_from_the_second_one() {
    let (mut bench, waits) = Bench::with_a_cancel_that_waits(1, all());
    let Control::Step(waits) = waits else {
        unreachable!("a step")
    };
    bench.control(at(20), Control::Step(waits.clone()));
    bench.record(at(21), 0, task("a", 5_000_000, 0));
    let mut millis = 30;
    while bench.words("a").is_empty() {
        millis += 1;
        bench.step(at(millis), Input::Tick);
    }
    let commits = bench.engine.commits();
    let settled = bench.actions.iter().find_map(|action| match action {
        Action::Settle(settlement) if !settlement.applied.is_empty() => Some(settlement.clone()),
        _ => None,
    });
    let second = Step {
        again: true,
        before: Counts {
            done: 1,
            ..Counts::default()
        },
        looked: None,
        ..waits
    };

    bench.control(at(millis), Control::Step(second));
    let returned = Returned {
        lanes: commits.iter().map(|of| (of.lane, of.epoch)).collect(),
        settlements: vec![(settled.unwrap(), Fate::Again)],
        ..Returned::default()
    };
    bench.step(at(millis + 1), Input::Returned(Box::new(returned)));
    bench.pass(millis + 2, 1_000);

    let mut log = bench.log.iter();
    let counts = log.find_map(|one| match one {
        Control::Answer(answer) => Some(answer.counts.done),
        _ => None,
    });
    assert_eq!(counts, Some(2));
}

#[test]
fn a_look_waits_for_a_delivery_that_is_not_written_only_if_it_may_be_about_its_task() {
    let mut bench = Bench::new(0);
    let topic = Target::Produce {
        topic: "orders".into(),
    };
    let copy = Scene::new("copy", topic, support::policy(Duration::from_secs(30), 3));
    let rules = [pay(), copy].into_iter().collect();
    bench.step(at(0), Input::Rules(rules));
    let mut delivered = task("b", 0, 0);
    delivered.scene = "copy".into();
    bench.record(at(1), 0, delivered);
    bench.step(at(5), Input::Tick);
    let delivery = bench.actions.iter().find_map(|action| match action {
        Action::Settle(settlement) if !settlement.otherwise.is_empty() => Some(settlement.clone()),
        _ => None,
    });
    let lanes = bench.engine.commits().into_iter();
    let closed = |closed| {
        Input::Writable(Writable {
            closed,
            ..Writable::default()
        })
    };
    let returned = Returned {
        lanes: lanes.map(|commit| (commit.lane, commit.epoch)).collect(),
        settlements: vec![(delivery.unwrap(), Fate::Again)],
        ..Returned::default()
    };
    bench.step(at(6), closed(Sinks::NONE.with(Sink::Callbacks)));
    bench.step(at(6), Input::Returned(Box::new(returned)));
    bench.tier = vec![task("a", 5_000_000, 1)];

    // One that names another task does not wait.
    bench.told(at(8), &command(7, 0, Verb::RunNow, ids(&["a"])));
    bench.pass(10, 500);
    assert_eq!(bench.looks, 1);
    assert!(!bench.words("a").is_empty());

    // One that names it, and one that names none, do until it is written.
    bench.told(at(510), &command(7, 1, Verb::RunNow, ids(&["b"])));
    bench.told(at(510), &command(7, 2, Verb::RunNow, all()));
    bench.pass(520, 500);
    assert_eq!(bench.looks, 1);
    bench.step(at(1_020), closed(Sinks::NONE));
    bench.pass(1_030, 500);
    assert!(bench.looks > 1);
}

#[test]
fn what_was_set_aside_meets_the_command_that_waits_for_it_wherever_it_is_by_then() {
    // Parked, and in a call, before the command is read.
    for (due, words) in [
        (5_000_000, &["parked", "cancelled"][..]),
        (0, &["cancelled"]),
    ] {
        let (mut bench, cancel) = Bench::with_a_cancel_that_waits(1, all());

        bench.record(at(1), 0, task("a", due, 0));
        bench.pass(2, 26_000);
        bench.tier = bench.parked();
        bench.control(at(27_000), cancel);
        bench.pass(27_001, 1_000);
        bench.answer(at(29_000));
        bench.pass(29_001, 1_000);

        assert_eq!(bench.words("a"), words);
        assert_eq!(bench.engine.steps(), 0);
        assert!(!bench.has_answered(), "it has answered before");
    }
    // Parked by a former owner.
    let (mut bench, cancel) = Bench::with_a_cancel_that_waits(1, all());
    bench.tier = vec![task("a", 5_000_000, 0)];
    bench.record(at(1), 0, task("b", 5_000_000, 1));
    bench.control(at(20), cancel);
    bench.pass(21, 1_000);
    assert_eq!(bench.words("a"), ["cancelled"]);
}

#[test]
fn a_command_that_waits_for_what_was_set_aside_meets_nothing_that_came_or_came_to_fit_since() {
    let (mut bench, cancel) = Bench::with_a_cancel_that_waits(1, all());
    bench.tier = vec![task("later", 5_000_000, 1)];
    bench.record(at(1), 0, task("a", 5_000_000, 0));
    bench.control(at(20), cancel);
    bench.pass(21, 1_000);
    assert_eq!(bench.words("a"), ["cancelled"]);
    assert!(bench.words("later").is_empty());

    let parts = Parts {
        attempts: Some(1..=9),
        ..Parts::default()
    };
    let (mut bench, cancel) = Bench::with_a_cancel_that_waits(2, Selector::new(parts).unwrap());
    let mut tried = task("tried", 5_000_000, 0);
    tried.attempt = 2;
    tried.failure = Some(failure());
    bench.tier = vec![tried];
    bench.control(at(20), cancel);
    bench.record(at(30), 1, task("b", 5_000_000, 1));
    bench.pass(31, 1_000);
    assert!(bench.words("tried").is_empty());
}

/// Commands of a flood: more than may wait at once, and more than a lane may hold of them.
const FLOOD: i64 = 30_000;

#[test]
fn a_flood_of_commands_is_bounded_and_keeps_no_task_waiting() {
    let mut bench = Bench::new(0);
    let (mut most, mut bytes) = (0, 0);
    for number in 0..FLOOD {
        let id = format!("nobody-{number}");
        bench.told(at(1_000), &command(0, number, Verb::Cancel, ids(&[&id])));
    }
    bench.record(at(1_000), 0, task("a", 0, 0));
    for round in 0..1_000 {
        bench.pass(1_000 + round * 1_000, 1_000);
        most = most.max(bench.engine.steps());
        bytes = bytes.max(bench.engine.bytes());
        let is_call = |action: &Action| matches!(action, Action::Dispatch { .. });
        bench.actions.retain(is_call);
        if round == 0 {
            assert_eq!(bench.called(), BTreeSet::from(["a"]));
        }
        if bench.next == bench.log.len() {
            break;
        }
    }

    assert_eq!(bench.next, bench.log.len());
    assert!(most <= 25_000, "{most} steps at once");
    assert!(bytes <= MEMORY, "{bytes}");
    // Each is told of, and those that are waited for are bounded.
    let answers = bench.log.iter();
    let answers = answers.filter(|one| matches!(one, Control::Ended(_)));
    assert_eq!(answers.count() as i64, FLOOD);
    assert!(bench.engine.steps() <= 10_000, "{}", bench.engine.steps());
}

/// How many tasks were cancelled.
fn cancelled(bench: &Bench) -> usize {
    let settled = bench.actions.iter().filter_map(|action| match action {
        Action::Settle(settlement) => Some(&settlement.entries),
        _ => None,
    });
    let events = settled.flatten().filter_map(Entry::event);
    events
        .filter(|event| event.transition.word() == "cancelled")
        .count()
}

/// Has `count` tasks in a tier cancelled, and steps whenever the engine wants it until all are, from when the first is: when that was, when
/// it is done, and the steps.
fn cancel_parked(bench: &mut Bench, count: usize) -> (Now, Now, usize) {
    let tier = (0..count).map(|offset| task(&format!("t-{offset}"), 3_600_000, offset as i64));
    bench.tier = tier.collect();
    bench.told(at(10), &command(5, 0, Verb::Cancel, all()));
    let mut millis = 10;
    while cancelled(bench) == 0 {
        bench.pass(millis, 10);
        millis += 10;
    }
    let began = at(millis);
    let (mut last, mut turns) = (cancelled(bench), 0);
    let mut now = began;
    while cancelled(bench) < count {
        let before = now.steady;
        bench.go_on(&mut now);
        let rest = now.steady.saturating_sub(before);
        assert!(rest < Duration::from_millis(5), "{rest:?} at {last}");
        let done = cancelled(bench);
        assert!(done - last <= 128, "{done} after {last}");
        (last, turns) = (done, turns + 1);
    }
    (began, now, turns)
}

/// The least time for so many tasks that are taken.
fn paced(count: usize) -> Duration {
    Duration::from_micros(40) * u32::try_from(count).unwrap()
}

#[test]
fn what_is_found_in_tiers_is_followed_evenly_and_as_soon_as_it_may() {
    const COUNT: usize = 2_000;
    let mut bench = Bench::new(0);

    let (began, now, turns) = cancel_parked(&mut bench, COUNT);

    // None of them costs a turn of its own.
    assert!(turns < COUNT / 20, "{turns}");
    let took = now.steady.saturating_sub(began.steady);
    let fastest = paced(COUNT);
    assert!(
        took > fastest / 2 && took < fastest * 2,
        "{took:?}, and {fastest:?} at best"
    );
}

#[test]
fn what_was_taken_before_takes_the_next_command_no_time() {
    const COUNT: usize = 10_000;
    let mut bench = Bench::new(0);
    let (_, mut now, _) = cancel_parked(&mut bench, COUNT);
    let answers = |bench: &Bench| {
        let answers = bench.log.iter();
        let answers = answers.filter(|one| matches!(one, Control::Answer(_)));
        answers.count()
    };
    while answers(&bench) < 1 {
        bench.go_on(&mut now);
    }
    let began = now;

    bench.told(now, &command(6, 1, Verb::RunNow, all()));
    while answers(&bench) < 2 {
        bench.go_on(&mut now);
    }

    let took = now.steady.saturating_sub(began.steady);
    assert!(took < paced(COUNT) / 2, "{took:?}");
}

#[test]
fn a_shard_that_leaves_waits_for_the_answer_of_a_call_whose_task_a_command_has_met() {
    let mut bench = Bench::new(0);
    bench.record(at(1), 0, task("a", 2, 0));
    bench.step(at(5), Input::Tick);
    let ticket = bench.actions.iter().find_map(|action| match action {
        Action::Dispatch { ticket, .. } => Some(*ticket),
        _ => None,
    });
    let ticket = ticket.unwrap();
    let outcome = Outcome::Retryable(Failure::new("http-503", "later"));
    bench.step(at(6), Input::Attempted { ticket, outcome });
    let settled = bench.actions.iter().find_map(|action| match action {
        Action::Settle(settlement) => Some(settlement.clone()),
        _ => None,
    });
    let settled = settled.unwrap();
    assert_eq!(settled.entries.iter().filter_map(Entry::parked).count(), 1);
    let lanes = bench.engine.commits().into_iter();
    let lanes = lanes.map(|commit| (commit.lane, commit.epoch)).collect();

    // It is not written, the command meets its task meanwhile, and there is no room for what follows.
    let room = |batch_tasks| {
        Input::Writable(Writable {
            batch_tasks,
            ..Writable::default()
        })
    };
    bench.step(at(7), room(0));
    bench.told(at(8), &command(7, 0, Verb::Cancel, all()));
    let returned = Returned {
        lanes,
        settlements: vec![(settled, Fate::Again)],
        ..Returned::default()
    };
    bench.step(at(9), Input::Returned(Box::new(returned)));
    bench.step(at(10), Input::Leave { shard: 0 });
    assert_eq!(bench.engine.calls_left(0).before, 1);
    assert_eq!(bench.words("a"), ["failed"]);

    bench.step(at(11), room(100));
    bench.step(at(12), Input::Tick);

    assert_eq!(bench.engine.calls_left(0).before, 0);
    assert_eq!(bench.words("a"), ["failed", "failed", "cancelled"]);
}
