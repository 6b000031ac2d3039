//! Tasks that are out of attempts, of scenes that hold those; and deadlines that stand still while people hold a task.

mod support;

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use retide_core::completions::Completions;
use retide_core::hold::{Deadlines, Hold, MAX_REMEMBERED, REMEMBERED, Revision, Standing};
use retide_core::lane::Limits;
use retide_core::scene::{OnExhausted, Target};
use retide_core::{
    Action, Engine, Entry, Exhausted, Failure, Gates, Holds, Input, Ladder, LaneId, Now, Outcome,
    Position, Reason, Scene, Scenes, State, Task, Terminal, Timestamp, Transition,
};

use support::{NOW_TIER, START, TASKS, at};

/// A scene that holds so many tasks that are out of attempts, of which each has two.
fn holding(most: u32) -> Scene {
    let policy = support::policy(Duration::from_secs(1), 2);
    Scene {
        on_exhausted: OnExhausted::Hold {
            most: NonZeroU32::new(most).unwrap(),
        },
        ..Scene::new("pay", Target::Call, policy)
    }
}

/// The hold of the scene, after people have let tasks go up to then.
fn released(millis: u64, offset: i64) -> Holds {
    let hold = Hold {
        released: Some(at(millis).wall),
        revision: Revision {
            partition: 0,
            offset,
        },
        ..Hold::of_exhausted(&"pay".into())
    };
    [Arc::new(hold)].into_iter().collect()
}

/// An engine that has shard 0.
struct Bench {
    engine: Engine,
    next: i64,
}

impl Bench {
    fn new(scene: Scene) -> Self {
        let (limits, gates) = (Limits::of(256 << 20), Arc::new(Gates::default()));
        let engine = Engine::new(Ladder::default(), limits, gates, NonZeroU32::MIN);
        let mut bench = Self { engine, next: 0 };
        bench.rules(0, scene);
        for lane in [TASKS, NOW_TIER] {
            let known = Completions::default();
            let start = 0;
            bench.step(at(0), Input::Assign { lane, start, known });
        }
        bench
    }

    fn rules(&mut self, millis: u64, scene: Scene) -> Vec<Action> {
        let scenes: Scenes = [scene].into_iter().collect();
        self.step(at(millis), Input::Rules(scenes))
    }

    fn step(&mut self, now: Now, input: Input) -> Vec<Action> {
        let mut actions = Vec::new();
        self.engine.step(now, input, &mut actions);
        self.engine.commits();
        actions
    }

    /// Reads a task from a tier.
    fn read(&mut self, millis: u64, task: Task) -> Vec<Action> {
        self.read_from(NOW_TIER, millis, task)
    }

    /// The same from this lane.
    fn read_from(&mut self, lane: LaneId, millis: u64, task: Task) -> Vec<Action> {
        let now = at(millis);
        let position = Position {
            lane,
            run: 0,
            offset: self.next,
        };
        self.next += 1;
        let input = Input::Record {
            position,
            appended: now.wall,
            task: Box::new(task),
        };
        self.step(now, input)
    }

    /// Reads a task, which is started, and fails.
    fn fail(&mut self, millis: u64, task: Task) -> Vec<Action> {
        let started = self.read(millis, task);
        let [Action::Dispatch { ticket, .. }] = started[..] else {
            panic!("a call expected, not {started:?}");
        };
        let outcome = Outcome::Retryable(Failure::new("http-503", "busy"));
        self.step(at(millis), Input::Attempted { ticket, outcome })
    }

    /// What is written down of the hold now.
    fn standing(&mut self) -> Option<Standing> {
        let changes = self.engine.changes().into_iter();
        let standings = changes.filter_map(|(_, state)| match state {
            State::Hold { name, standing } if &*name == "exhausted/pay" => Some(standing),
            _ => None,
        });
        standings.last().flatten()
    }
}

/// The task before its last attempt.
fn last(id: &str) -> Task {
    Task {
        attempt: 2,
        ..support::task(id, "pay", at(0).wall)
    }
}

/// The task that is parked by the one settlement, and the words of the events with it.
fn parked(actions: &[Action]) -> (Task, Vec<&'static str>) {
    let [Action::Settle(settlement)] = actions else {
        panic!("one settlement expected, not {actions:?}");
    };
    let mut entries = settlement.entries.iter();
    let (_, task) = entries.find_map(Entry::parked).unwrap();
    let events = settlement.entries.iter().filter_map(Entry::event);
    let words = events.map(|event| event.transition.word()).collect();
    (Task::clone(task), words)
}

/// How and why the task of the one settlement ended.
fn end(actions: &[Action]) -> (Terminal, Option<Reason>) {
    let [Action::Settle(settlement)] = actions else {
        panic!("one settlement expected, not {actions:?}");
    };
    let mut events = settlement.entries.iter().filter_map(Entry::event);
    let ended = events.find_map(|event| match event.transition {
        Transition::Ended {
            terminal, reason, ..
        } => Some((terminal, reason)),
        _ => None,
    });
    ended.unwrap_or_else(|| panic!("an end expected, not {settlement:?}"))
}

#[test]
fn the_last_attempt_fails_and_the_task_is_held_and_told_of_once() {
    let mut bench = Bench::new(holding(10));

    let (task, told) = parked(&bench.fail(0, last("a")));
    let (again, told_again) = parked(&bench.read(10, task.clone()));

    assert_eq!((told, told_again), (vec!["held"], vec![]));
    let exhausted = Exhausted {
        at: at(0).wall,
        attempts: 2,
        is_held: true,
    };
    assert_eq!(task.exhausted.as_deref(), Some(&exhausted));
    assert_eq!((task.attempt, again.attempt), (3, 3));
    let wait = again.wake().since(at(10).wall);
    assert!(
        wait <= Duration::from_mins(1) && !wait.is_zero(),
        "{wait:?}"
    );
    assert_eq!(bench.engine.held()["exhausted/pay"], 1);
}

#[test]
fn who_is_let_go_has_as_many_attempts_again() {
    let mut bench = Bench::new(holding(10));
    let (task, _) = parked(&bench.fail(0, last("a")));
    let (task, _) = parked(&bench.read(10, task));

    bench.step(at(1_000), Input::Holds(released(1_000, 7)));
    let (third, words) = parked(&bench.fail(6_000, task));
    let due = third.due.since(Timestamp::from_millis(START)).as_millis() as u64;
    let (held, held_words) = parked(&bench.fail(due, third.clone()));
    let (waits, _) = parked(&bench.read(due + 10, held.clone()));

    assert_eq!((words, held_words), (vec!["failed"], vec!["held"]));
    assert_eq!((third.attempt, waits.attempt), (4, 5));
    assert_eq!(held.exhausted.map(|last| last.attempts), Some(4));
}

#[test]
fn a_release_that_is_the_first_record_of_its_topic_is_known_to_all_shards() {
    let mut bench = Bench::new(holding(10));
    bench.standing();

    bench.step(at(1_000), Input::Holds(released(1_000, 0)));

    let standing = bench.standing().map(|standing| standing.revision);
    assert_eq!(standing, Some(Revision::default()));
}

#[test]
fn a_release_counts_once_for_each_task_whatever_the_clock_of_its_worker() {
    let mut bench = Bench::new(holding(10));
    // Somebody whose clock is ahead by a minute lets all go.
    bench.step(at(0), Input::Holds(released(60_000, 7)));

    let (task, _) = parked(&bench.fail(0, last("a")));
    let (_, words) = parked(&bench.read(10, task));

    assert_eq!(words, [""; 0], "it is held");
}

#[test]
fn more_than_may_be_held_are_dead_and_the_reason_says_so() {
    let mut bench = Bench::new(holding(2));
    for id in ["a", "b"] {
        let (task, _) = parked(&bench.fail(0, last(id)));
        bench.read(10, task);
    }

    let third = end(&bench.fail(100, last("c")));
    let standing = bench.standing();

    assert_eq!(third, (Terminal::Dead, Some(Reason::TooManyHeld)));
    assert_eq!(standing.map(|standing| standing.waiting), Some(2));
}

#[test]
fn what_former_owners_hold_counts_for_the_next_one() {
    let mut bench = Bench::new(holding(2));
    let standing = Standing {
        waiting: 2,
        ..Standing::default()
    };
    let holds = vec![("exhausted/pay".into(), standing)];
    bench.step(at(0), Input::HoldsKnown { shard: 0, holds });

    let soon = end(&bench.fail(1_000, last("a")));
    let (_, late) = parked(&bench.fail(120_000, last("b")));

    assert_eq!(soon, (Terminal::Dead, Some(Reason::TooManyHeld)));
    assert_eq!(late, ["held"], "those were seen nowhere");
}

#[test]
fn a_task_is_held_no_longer_than_its_deadline_or_than_its_scene_wants_that() {
    let deadline = Scene {
        deadline: Some(Duration::from_secs(3)),
        ..holding(10)
    };
    let mut bench = Bench::new(deadline);
    let (task, _) = parked(&bench.fail(0, last("a")));
    let (task, _) = parked(&bench.read(10, task));
    let (other, _) = parked(&bench.fail(20, last("b")));

    let wakes = task.wake().since(at(0).wall);
    let expired = end(&bench.read(3_001, task));
    bench.rules(
        3_002,
        Scene {
            on_exhausted: OnExhausted::Dead,
            ..holding(10)
        },
    );
    let dead = end(&bench.read(3_003, other));

    assert_eq!(wakes, Duration::from_millis(3_001));
    assert_eq!(expired, (Terminal::Expired, Some(Reason::DeadlinePassed)));
    assert_eq!(dead, (Terminal::Dead, Some(Reason::AttemptsExhausted)));
}

#[test]
fn a_ramp_lets_those_go_that_were_held_and_no_others() {
    let mut bench = Bench::new(holding(10));
    let mut waiting = Vec::new();
    for id in ["a", "b", "c"] {
        let (task, _) = parked(&bench.fail(0, last(id)));
        waiting.push(parked(&bench.read(10, task)).0);
    }
    let ramp = retide_core::ramp::Ramp::try_new(&[1, 5], 0.2);
    let slow = released(1_000, 7);
    let hold = Hold::clone(slow.of_exhausted("pay").unwrap());
    let holds = [Arc::new(Hold { ramp, ..hold })].into_iter().collect();

    bench.step(at(1_000), Input::Holds(holds));
    let later = parked(&bench.fail(2_000, last("d"))).0;
    let started = waiting
        .into_iter()
        .filter(|task| {
            matches!(
                bench.read(7_000, task.clone())[..],
                [Action::Dispatch { .. }]
            )
        })
        .count();
    let later = bench.read(7_001, later);

    // A pace of one a second, of which two seconds' worth is saved up.
    assert!((1..3).contains(&started), "{started} of three");
    assert!(matches!(later[..], [Action::Settle(_)]), "{later:?}");
}

/// A hold of the scene's tasks, since then.
fn hold(deadlines: Deadlines, since: u64) -> Holds {
    let hold = Hold {
        name: "h".into(),
        deadlines,
        since: at(since).wall,
        released: None,
        ..Hold::of_exhausted(&"pay".into())
    };
    [Arc::new(hold)].into_iter().collect()
}

/// A bench whose scene's tasks have ten seconds.
fn ten_seconds() -> Bench {
    Bench::new(Scene {
        deadline: Some(Duration::from_secs(10)),
        ..holding(10)
    })
}

/// For how long the deadline of a task stood still that was started.
fn stood(actions: &[Action]) -> Duration {
    let [Action::Dispatch { task, .. }] = actions else {
        panic!("a call expected, not {actions:?}");
    };
    let stopped = task.stopped.as_deref().copied().unwrap_or_default();
    assert_eq!(stopped.since, None, "it goes on");
    stopped.before
}

#[test]
fn a_deadline_stands_still_while_the_task_is_held_and_is_later_by_that() {
    for (deadlines, expected) in [(Deadlines::Run, "expired"), (Deadlines::Stop, "started")] {
        let mut bench = ten_seconds();
        bench.step(at(1_000), Input::Holds(hold(deadlines, 1_000)));

        let (task, _) = parked(&bench.read(1_000, support::task("a", "pay", at(0).wall)));
        let stopped = task.is_stopped();
        bench.step(at(2_000), Input::Holds(Holds::default()));
        let goes_on = bench.read(60_000, task);

        assert_eq!(stopped, deadlines == Deadlines::Stop);
        if let [Action::Dispatch { ticket, .. }] = goes_on[..] {
            assert_eq!(expected, "started");
            // Nine seconds are left of it.
            assert_eq!(stood(&goes_on), Duration::from_secs(59));
            let outcome = Outcome::Retryable(Failure::new("x", "y"));
            let last = bench.step(at(68_500), Input::Attempted { ticket, outcome });
            let end = end(&last).0;
            assert_eq!(end, Terminal::Expired, "a second later is too late");
        } else {
            let end = end(&goes_on).0;
            assert_eq!((end, expected), (Terminal::Expired, "expired"));
        }
    }
}

#[test]
fn a_deadline_that_has_passed_when_the_hold_begins_has_passed() {
    let mut bench = ten_seconds();
    bench.step(at(11_000), Input::Holds(hold(Deadlines::Stop, 11_000)));

    let late = bench.read(12_000, support::task("a", "pay", at(0).wall));

    assert_eq!(end(&late).0, Terminal::Expired);
}

#[test]
fn what_nobody_could_look_at_while_it_was_held_was_held() {
    let mut bench = ten_seconds();
    bench.step(at(20_000), Input::Holds(hold(Deadlines::Stop, 4_000)));

    // The process was away.
    let (task, _) = parked(&bench.read(20_000, support::task("a", "pay", at(0).wall)));
    bench.step(at(21_000), Input::Holds(Holds::default()));
    let goes_on = bench.read(80_000, task);

    assert_eq!(stood(&goes_on), Duration::from_secs(80 - 4));
}

#[test]
fn what_nobody_has_read_while_it_was_held_was_held() {
    let mut bench = ten_seconds();
    bench.step(at(20_000), Input::Holds(hold(Deadlines::Stop, 4_000)));

    // It was produced before that.
    let first = support::task("a", "pay", at(0).wall);
    let (task, _) = parked(&bench.read_from(TASKS, 20_000, first));
    bench.step(at(21_000), Input::Holds(Holds::default()));
    let goes_on = bench.read(80_000, task);

    assert_eq!(stood(&goes_on), Duration::from_secs(80 - 4));
}

#[test]
fn what_is_held_twice_is_later_by_both_and_by_no_more() {
    let mut bench = Bench::new(Scene {
        deadline: Some(Duration::from_mins(10)),
        ..holding(10)
    });
    let hold = |since| Input::Holds(hold(Deadlines::Stop, since));
    bench.step(at(1_000), hold(1_000));
    let (task, _) = parked(&bench.read(1_000, support::task("a", "pay", at(0).wall)));
    bench.step(at(5_000), Input::Holds(Holds::default()));
    // Another hold lets deadlines go on.
    let run = Hold {
        name: "run".into(),
        since: at(5_000).wall,
        released: None,
        ..Hold::of_exhausted(&"pay".into())
    };
    bench.step(
        at(5_000),
        Input::Holds([Arc::new(run)].into_iter().collect()),
    );
    let (task, _) = parked(&bench.read(60_000, task));
    assert!(!task.is_stopped());
    bench.step(at(61_000), hold(61_000));
    let (task, _) = parked(&bench.read(120_000, task));
    bench.step(at(121_000), Input::Holds(Holds::default()));
    let goes_on = bench.read(180_000, task);

    assert_eq!(stood(&goes_on), Duration::from_secs(59 + 119));
}

/// That deadlines of the scene's tasks stood still at these times.
fn stood_at(times: &[(u64, u64)]) -> Holds {
    let holds = times.iter().map(|(since, until)| {
        let since = hold(Deadlines::Stop, *since);
        let hold = since.iter().find(|hold| hold.released.is_none()).unwrap();
        Arc::new(hold.stood(at(*until).wall).unwrap())
    });
    holds.collect()
}

#[test]
fn what_nobody_has_looked_at_until_the_hold_was_over_was_held() {
    for lane in [TASKS, NOW_TIER] {
        // The process was away, or another one was.
        let mut bench = ten_seconds();
        bench.step(at(60_000), Input::Holds(stood_at(&[(4_000, 59_000)])));
        let goes_on = bench.read_from(lane, 64_500, support::task("a", "pay", at(0).wall));
        assert_eq!(stood(&goes_on), Duration::from_secs(59 - 4));

        // The process has heard of both, and has not read the task.
        let mut bench = ten_seconds();
        bench.step(at(4_000), Input::Holds(hold(Deadlines::Stop, 4_000)));
        bench.step(at(59_000), Input::Holds(Holds::default()));
        let goes_on = bench.read_from(lane, 64_500, support::task("a", "pay", at(0).wall));
        assert_eq!(stood(&goes_on), Duration::from_secs(59 - 4));
        let late = bench.read_from(lane, 65_001, support::task("late", "pay", at(0).wall));
        assert_eq!(end(&late).0, Terminal::Expired);
    }
}

#[test]
fn a_hold_that_is_on_counts_from_when_it_began_beside_one_that_is_over() {
    // One that is over within the other, one that reaches into it, and one before it.
    for (over, expected) in [
        ((6_000, 20_000), 80 - 4),
        ((1_000, 6_000), 80 - 1),
        ((1_000, 3_000), 80 - 4 + 2),
    ] {
        let mut bench = ten_seconds();
        let (on, over_by_now) = (hold(Deadlines::Stop, 4_000), stood_at(&[over]));
        let holds = on.iter().chain(over_by_now.over()).cloned().collect();
        bench.step(at(30_000), Input::Holds(holds));

        let (task, _) = parked(&bench.read(30_000, support::task("a", "pay", at(0).wall)));
        bench.step(at(31_000), Input::Holds(Holds::default()));
        let goes_on = bench.read(80_000, task);

        assert_eq!(stood(&goes_on), Duration::from_secs(expected), "{over:?}");
    }
}

#[test]
fn what_is_over_counts_once_and_only_what_was_due_in_time_meanwhile() {
    let mut bench = Bench::new(Scene {
        deadline: Some(Duration::from_mins(1)),
        ..holding(10)
    });
    let times = [(10_000, 20_000), (15_000, 30_000), (115_000, 120_000)];
    bench.step(at(61_000), Input::Holds(stood_at(&times)));
    let stood_of = |bench: &mut Bench, millis, task: Task| {
        let actions = bench.read(millis, task);
        let [Action::Dispatch { task, .. }] = &actions[..] else {
            panic!("a call expected, not {actions:?}");
        };
        (Task::clone(task), stood(&actions).as_secs())
    };

    let mut later = support::task("later", "pay", at(0).wall);
    later.due = at(25_000).wall;
    let (_, since_due) = stood_of(&mut bench, 62_000, later);
    let (task, first) = stood_of(&mut bench, 70_000, support::task("a", "pay", at(0).wall));
    let (_, again) = stood_of(&mut bench, 75_000, task);
    // Its deadline, which is 20 s later, has passed before the last one began.
    let late = bench.read(121_000, support::task("late", "pay", at(0).wall));

    assert_eq!((first, again, since_due), (20, 20, 5));
    assert_eq!(end(&late).0, Terminal::Expired);
}

#[test]
fn what_is_over_is_remembered_for_a_month_and_of_so_many() {
    let month = REMEMBERED.as_millis() as u64;
    let mut holds = stood_at(&[(0, 5_000)]);
    for (millis, count) in [(month + 5_000, 1), (month + 5_001, 0)] {
        holds.take_ended(at(millis).wall);
        assert_eq!(holds.over().count(), count);
    }

    let many = (0..MAX_REMEMBERED as u64 + 7).map(|number| (number, number + 1));
    assert_eq!(
        stood_at(&many.collect::<Vec<_>>()).over().count(),
        MAX_REMEMBERED
    );
}

#[test]
fn a_task_whose_scene_is_gone_is_not_held_by_a_hold_and_its_own_deadline_goes_on() {
    let mut bench = ten_seconds();
    bench.step(at(1_000), Input::Holds(hold(Deadlines::Stop, 1_000)));
    let task = Task {
        deadline: Some(at(9_000).wall),
        ..support::task("a", "pay", at(0).wall)
    };
    let (task, _) = parked(&bench.read(1_000, task));
    bench.step(at(5_000), Input::Rules(Scenes::default()));

    let (task, _) = parked(&bench.read(6_000, task));
    let (task, _) = parked(&bench.read(13_000, task));
    let late = bench.read(15_000, task);

    assert_eq!(end(&late).0, Terminal::Expired, "five seconds later");
}
