//! Tasks whose scene does not exist, tasks that people hold, and records that their target has put back.

mod support;

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use retide_core::Position;
use retide_core::completions::Completions;
use retide_core::hold::{Deadlines, Revision, Standing};
use retide_core::lane::Limits;
use retide_core::scene::{DEFAULT, Missing, Target};
use retide_core::selector::{Parts, Selector};
use retide_core::{
    Action, Engine, Entry, Gates, Hold, Holds, Input, Ladder, LaneId, Now, Reason, Scene, Scenes,
    State, Task, Terminal, Timestamp,
};

use support::{NOW_TIER, START, TASKS, at};

fn scene(name: &str) -> Scene {
    let policy = support::policy(Duration::from_secs(30), 3);
    Scene::new(name, Target::Call, policy)
}

fn scenes(names: &[&str]) -> Scenes {
    names.iter().map(|name| scene(name)).collect()
}

fn task(id: &str, scene: &str) -> Task {
    support::task(id, scene, at(0).wall)
}

/// An engine that has shard 0.
struct Bench(Engine);

impl Bench {
    fn new(scenes: Scenes) -> Self {
        let limits = Limits::of(256 << 20);
        let engine = Engine::new(
            Ladder::default(),
            limits,
            Arc::new(Gates::default()),
            NonZeroU32::MIN,
        );
        let mut bench = Self(engine);
        bench.step(at(0), Input::Rules(scenes));
        for lane in [TASKS, NOW_TIER] {
            let known = Completions::default();
            bench.step(
                at(0),
                Input::Assign {
                    lane,
                    start: 0,
                    known,
                },
            );
        }
        bench
    }

    fn step(&mut self, now: Now, input: Input) -> Vec<Action> {
        let mut actions = Vec::new();
        self.0.step(now, input, &mut actions);
        self.0.commits();
        actions
    }

    fn read(&mut self, now: Now, lane: LaneId, offset: i64, task: Task) -> Vec<Action> {
        let position = Position {
            lane,
            run: 0,
            offset,
        };
        let input = Input::Record {
            position,
            appended: now.wall,
            task: Box::new(task),
        };
        self.step(now, input)
    }
}

/// The task that is parked by the one settlement.
fn parked(actions: &[Action]) -> Task {
    let [Action::Settle(settlement)] = actions else {
        panic!("one settlement expected, not {actions:?}");
    };
    let Entry::Park { task, .. } = &settlement.entries[0] else {
        panic!("a parked task expected, not {settlement:?}");
    };
    Task::clone(task)
}

/// How and why the task of the one settlement ended.
fn end(actions: &[Action]) -> (Terminal, Option<Reason>, u32) {
    let [Action::Settle(settlement)] = actions else {
        panic!("one settlement expected, not {actions:?}");
    };
    let mut entries = settlement.entries.iter();
    let ended = entries.find_map(|entry| match entry {
        Entry::Callback(ended) => Some(ended),
        _ => None,
    });
    let ended = ended.unwrap_or_else(|| panic!("an end expected, not {settlement:?}"));
    (ended.terminal, ended.reason, ended.attempts)
}

#[test]
fn a_parked_task_without_its_scene_is_held_and_goes_on_when_that_is_back() {
    let mut bench = Bench::new(Scenes::default());

    let held = parked(&bench.read(at(0), NOW_TIER, 0, task("a", "pay")));
    let (first, since) = (held.wake(), held.held_since);
    let later = at(60_000);
    let again = parked(&bench.read(later, NOW_TIER, 1, held));
    bench.step(at(61_000), Input::Rules(scenes(&["pay"])));
    let called = bench.read(again.due_now(), NOW_TIER, 2, again.clone());

    assert_eq!(first, at(5_000).wall);
    assert_eq!((since, again.held_since), (Some(at(0).wall), since));
    assert_eq!(again.wake(), at(90_000).wall, "looked at twice a minute");
    assert_eq!(again.attempt, 1);
    assert!(
        matches!(called[..], [Action::Dispatch { .. }]),
        "{called:?}"
    );
}

#[test]
fn a_new_task_is_held_if_its_scene_existed_and_dead_if_it_never_did() {
    let unknown = (Terminal::Dead, Some(Reason::UnknownScene), 0);
    let mut bench = Bench::new(scenes(&["pay"]));
    bench.step(at(0), Input::Rules(Scenes::default()));

    let held = bench.read(at(1), TASKS, 0, task("a", "pay"));
    let dead = bench.read(at(2), TASKS, 1, task("b", "nobody"));

    assert_eq!(parked(&held).held_since, Some(at(1).wall));
    assert_eq!(end(&dead), unknown);
}

#[test]
fn rules_that_cannot_be_read_are_not_replaced_by_those_for_all_others() {
    let mut known = scenes(&[DEFAULT]);
    known.miss("pay", Missing::Unreadable);
    let mut bench = Bench::new(known);

    let held = bench.read(at(0), TASKS, 0, task("a", "pay"));
    let called = bench.read(at(0), TASKS, 1, task("b", "nobody"));
    bench.step(at(1), Input::Rules(scenes(&[DEFAULT])));
    let deleted = bench.read(at(1), TASKS, 2, task("c", "pay"));

    assert_eq!(parked(&held).held_since, Some(at(0).wall));
    assert!(
        matches!(called[..], [Action::Dispatch { .. }]),
        "{called:?}"
    );
    assert!(
        matches!(deleted[..], [Action::Dispatch { .. }]),
        "{deleted:?}"
    );
}

#[test]
fn where_scenes_cannot_be_read_whose_names_nobody_knows_those_that_are_not_known_wait() {
    let mut known = scenes(&[DEFAULT, "pay"]);
    known.miss_some();
    let mut bench = Bench::new(known);

    let held = bench.read(at(0), TASKS, 0, task("a", "nobody"));
    let called = bench.read(at(0), TASKS, 1, task("b", "pay"));
    bench.step(at(1), Input::Rules(scenes(&[DEFAULT])));
    let known = bench.read(at(1), TASKS, 2, task("c", "other"));

    assert_eq!(parked(&held).held_since, Some(at(0).wall));
    for called in [called, known] {
        assert!(
            matches!(called[..], [Action::Dispatch { .. }]),
            "{called:?}"
        );
    }
}

#[test]
fn a_task_that_is_held_is_not_due_earlier_for_that() {
    let mut bench = Bench::new(scenes(&["pay"]));
    bench.step(at(0), Input::Rules(Scenes::default()));
    let later = Task {
        due: at(60_000).wall,
        ..task("a", "pay")
    };

    let parked = parked(&bench.read(at(1), TASKS, 0, later));

    assert_eq!((parked.wake(), parked.held_since), (at(60_000).wall, None));
}

#[test]
fn holding_has_an_end_which_a_deadline_goes_before() {
    let mut bench = Bench::new(Scenes::default());
    bench.0 = bench.0.holding(Duration::from_secs(20));
    let long = Task {
        held_since: Some(at(0).wall),
        ..task("a", "pay")
    };
    let short = Task {
        deadline: Some(at(7_000).wall),
        ..task("b", "pay")
    };

    let last = parked(&bench.read(at(18_000), NOW_TIER, 0, long));
    let dead = bench.read(at(20_000), NOW_TIER, 1, last.clone());
    let held = parked(&bench.read(at(3_000), NOW_TIER, 2, short));
    let expired = bench.read(at(7_001), NOW_TIER, 3, held.clone());

    assert_eq!(last.wake(), at(20_000).wall);
    assert_eq!(end(&dead), (Terminal::Dead, Some(Reason::UnknownScene), 0));
    assert_eq!(held.wake(), at(7_001).wall);
    let expected = (Terminal::Expired, Some(Reason::DeadlinePassed), 0);
    assert_eq!(end(&expired), expected);
}

#[test]
fn tasks_that_are_held_are_counted_and_people_are_told_once() {
    let mut bench = Bench::new(Scenes::default());
    let (mut alerts, mut next) = (Vec::new(), Vec::new());
    for number in 0..100 {
        let actions = bench.read(at(0), NOW_TIER, number, task("a", "pay"));
        next.push(parked(&actions));
    }

    let first: Vec<_> = bench.0.missing().collect();
    for (number, task) in next.into_iter().enumerate() {
        let due = task.due_now();
        for action in bench.read(due, NOW_TIER, 100 + number as i64, task) {
            let Action::Settle(settlement) = action else {
                continue;
            };
            alerts.extend(
                settlement
                    .entries
                    .into_iter()
                    .filter_map(|entry| match entry {
                        Entry::Alert(alert) => Some(alert),
                        _ => None,
                    }),
            );
        }
    }
    let second: Vec<_> = bench.0.missing().collect();
    bench.step(at(9_000), Input::Rules(scenes(&["pay"])));

    assert_eq!(
        (first.len(), &*first[0].scene, first[0].tasks),
        (1, "pay", 100)
    );
    assert!((100..=200).contains(&second[0].tasks), "{second:?}");
    assert_eq!(alerts.len(), 1);
    assert_eq!(
        (alerts[0].rule, &*alerts[0].scene),
        ("scene-unknown", "pay")
    );
    assert_eq!(alerts[0].count, 101);
    assert_eq!(bench.0.missing().count(), 0);
}

#[test]
fn a_record_that_comes_back_counts_on_and_waits_until_its_attempts_are_used_up() {
    let exhausted = (Terminal::Dead, Some(Reason::AttemptsExhausted), 3);
    let mut bench = Bench::new(scenes(&["pay"]));
    let round = |attempt| Task {
        attempt,
        due: at(0).wall,
        ..task("a", "pay")
    };

    let second = parked(&bench.read(at(0), TASKS, 0, round(2)));
    let dead = bench.read(at(0), TASKS, 1, round(4));

    assert_eq!((second.attempt, second.due), (2, at(30_000).wall));
    assert_eq!(second.failure.unwrap().class.as_ref(), "returned");
    assert_eq!(end(&dead), exhausted);
}

/// A hold of the tasks of a scene, until then.
fn hold(name: &str, scene: &str, offset: i64, until: Now) -> Arc<Hold> {
    let parts = Parts {
        scenes: [scene.into()].into(),
        ..Parts::default()
    };
    Arc::new(Hold {
        name: name.into(),
        revision: Revision {
            partition: 0,
            offset,
        },
        selector: Selector::new(parts).unwrap(),
        by: "ann".into(),
        reason: "a test".into(),
        since: at(0).wall,
        until: until.wall,
        ramp: None,
        deadlines: Deadlines::Run,
        released: None,
    })
}

/// What is written down of holds.
fn told(bench: &mut Bench) -> Vec<(i32, String, Option<Standing>)> {
    let changes = bench.0.changes().into_iter();
    let told = changes.filter_map(|(shard, state)| match state {
        State::Hold { name, standing } => Some((shard, name.to_string(), standing)),
        _ => None,
    });
    told.collect()
}

/// An hour later, and nothing ends before that.
const LATE: u64 = 3_600_000;

#[test]
fn a_task_on_hold_waits_without_an_attempt_and_goes_on_within_a_minute_of_the_release() {
    let mut bench = Bench::new(scenes(&["pay", "ship"]));
    bench.step(
        at(0),
        Input::Holds([hold("h", "pay", 7, at(LATE))].into_iter().collect()),
    );

    let actions = bench.read(at(0), TASKS, 0, task("a", "pay"));
    let held = parked(&actions);
    let other = bench.read(at(0), TASKS, 1, task("b", "ship"));
    let again = bench.read(at(600_000), NOW_TIER, 0, held.clone());
    bench.step(at(600_001), Input::Holds(Holds::default()));
    let again_parked = parked(&again);
    let called = bench.read(again_parked.due_now(), NOW_TIER, 1, again_parked.clone());

    let Action::Settle(settlement) = &actions[0] else {
        panic!("{actions:?}")
    };
    let event = settlement.entries.iter().find_map(Entry::event).unwrap();
    assert_eq!(event.command.as_deref(), Some("hold/h"));
    assert_eq!((held.attempt, held.held_since), (1, Some(at(0).wall)));
    assert!(matches!(other[..], [Action::Dispatch { .. }]), "{other:?}");
    assert_eq!(again_parked.wake(), at(630_000).wall);
    let Action::Settle(settlement) = &again[0] else {
        panic!("{again:?}")
    };
    assert_eq!(settlement.entries.len(), 1, "that is told once");
    assert!(
        matches!(called[..], [Action::Dispatch { .. }]),
        "{called:?}"
    );
}

#[test]
fn a_hold_ends_by_itself_and_a_deadline_before_that() {
    let mut bench = Bench::new(scenes(&["pay"]));
    let short = Task {
        deadline: Some(at(7_000).wall),
        ..task("b", "pay")
    };
    bench.step(
        at(0),
        Input::Holds([hold("h", "pay", 7, at(12_000))].into_iter().collect()),
    );

    let first = parked(&bench.read(at(8_000), TASKS, 0, task("a", "pay")));
    let called = bench.read(first.due_now(), NOW_TIER, 0, first.clone());
    bench.step(
        at(3_000),
        Input::Holds([hold("h", "pay", 8, at(LATE))].into_iter().collect()),
    );
    let second = parked(&bench.read(at(3_000), TASKS, 1, short));
    let expired = bench.read(at(7_001), NOW_TIER, 1, second.clone());

    assert_eq!(first.wake(), at(12_000).wall);
    assert!(
        matches!(called[..], [Action::Dispatch { .. }]),
        "{called:?}"
    );
    assert_eq!(second.wake(), at(7_001).wall);
    let expected = (Terminal::Expired, Some(Reason::DeadlinePassed), 0);
    assert_eq!(end(&expired), expected);
}

#[test]
fn tasks_that_wait_in_memory_when_a_hold_comes_are_held() {
    let mut bench = Bench::new(scenes(&["pay"]));
    let soon = Task {
        due: at(500).wall,
        ..task("a", "pay")
    };

    let nothing = bench.read(at(0), TASKS, 0, soon);
    bench.step(
        at(400),
        Input::Holds([hold("h", "pay", 7, at(LATE))].into_iter().collect()),
    );
    let held = parked(&bench.step(at(500), Input::Tick));

    assert_eq!(nothing, []);
    assert_eq!((held.due, held.attempt), (at(500).wall, 1));
}

#[test]
fn each_shard_writes_down_which_hold_it_knows_how_many_tasks_wait_and_that_it_is_over() {
    let mut bench = Bench::new(scenes(&["pay"]));
    let standing = |offset, waiting| {
        let revision = Revision {
            partition: 0,
            offset,
        };
        Some(Standing {
            revision,
            waiting,
            ramp: None,
            breaker: None,
        })
    };
    let holds = |offset| Input::Holds([hold("h", "pay", offset, at(LATE))].into_iter().collect());

    bench.step(at(0), holds(7));
    assert!(bench.0.has_untold_holds());
    assert_eq!(told(&mut bench), [(0, "h".to_owned(), standing(7, 0))]);
    assert!(!bench.0.has_untold_holds());
    for offset in 0..3 {
        bench.read(at(1), TASKS, offset, task("a", "pay"));
    }
    bench.step(at(4_000), Input::Tick);
    assert_eq!(told(&mut bench), [(0, "h".to_owned(), standing(7, 3))]);
    assert_eq!(bench.0.held(), [("h".into(), 3)].into());
    bench.step(at(4_001), holds(9));
    assert_eq!(told(&mut bench), [(0, "h".to_owned(), standing(9, 3))]);
    bench.step(at(4_002), Input::Holds(Holds::default()));
    assert_eq!(told(&mut bench), [(0, "h".to_owned(), None)]);
    // What former owners have written of one that is over.
    let holds = vec![("old".into(), Standing::default())];
    bench.step(at(4_003), Input::HoldsKnown { shard: 0, holds });
    assert_eq!(told(&mut bench), [(0, "old".to_owned(), None)]);
}

/// The time a task is due.
trait Due {
    fn due_now(&self) -> Now;
}

impl Due for Task {
    fn due_now(&self) -> Now {
        at(self.wake().since(Timestamp::from_millis(START)).as_millis() as u64)
    }
}
