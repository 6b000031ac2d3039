//! Attempts whose targets answer later: parked without a permit, never made again, given up at their limit.

mod support;

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use retide_core::completions::Completions;
use retide_core::lane::Limits;
use retide_core::pending::{Pending, UNANSWERED};
use retide_core::scene::{Callback, Target};
use retide_core::selector::{Parts, Selector};
use retide_core::{
    Action, Engine, Entry, Event, Gates, Input, Kind, Ladder, LaneId, Now, Outcome, Position,
    Reason, Scene, Task, Terminal, Transition,
};

use support::{NOW_TIER, TASKS, at};

const fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// A scene with one call at once.
fn scene() -> Scene {
    let policy = support::policy(secs(30), 2);
    Scene {
        concurrency: NonZeroU32::MIN,
        pending: Pending {
            usual: secs(60),
            most: secs(600),
        },
        callback: Some(Callback {
            target: Target::Call,
            breaker: None,
            on: vec![Terminal::Delivered],
        }),
        ..Scene::new("pay", Target::Call, policy)
    }
}

/// An engine that has shard 0.
struct Bench(Engine);

impl Bench {
    fn new() -> Self {
        let engine = Engine::new(
            Ladder::default(),
            Limits::of(256 << 20),
            Arc::new(Gates::default()),
            NonZeroU32::MIN,
        );
        let mut bench = Self(engine);
        bench.step(at(0), Input::Rules([scene()].into_iter().collect()));
        for lane in [TASKS, NOW_TIER] {
            let known = Completions::default();
            let start = 0;
            bench.step(at(0), Input::Assign { lane, start, known });
        }
        bench
    }

    fn step(&mut self, now: Now, input: Input) -> Vec<Action> {
        let mut actions = Vec::new();
        self.0.step(now, input, &mut actions);
        self.0.commits();
        actions
    }

    fn read(&mut self, now: Now, (lane, offset): (LaneId, i64), task: Task) -> Vec<Action> {
        let (run, task) = (0, Box::new(task));
        let position = Position { lane, run, offset };
        let appended = now.wall;
        self.step(
            now,
            Input::Record {
                position,
                appended,
                task,
            },
        )
    }

    /// Reads a task that is due and lets its target say that it answers later.
    fn call(&mut self, now: Now, task: Task, limit: Option<Duration>) -> Vec<Action> {
        let actions = self.read(now, (TASKS, 0), task);
        let [Action::Dispatch { ticket, .. }] = &actions[..] else {
            panic!("a call expected, not {actions:?}");
        };
        let (ticket, outcome) = (*ticket, Outcome::Pending { limit });
        self.step(now, Input::Attempted { ticket, outcome })
    }
}

fn task() -> Task {
    support::task("order-7", "pay", at(0).wall)
}

/// The entries of the one settlement.
fn entries(actions: &[Action]) -> &[Entry] {
    let mut settled = actions.iter().filter_map(|action| match action {
        Action::Settle(settlement) => Some(&settlement.entries[..]),
        _ => None,
    });
    let entries = settled.next().expect("a settlement");
    assert!(settled.next().is_none(), "one settlement, not {actions:?}");
    entries
}

/// The task that is parked, and what is told of that.
fn parked(actions: &[Action]) -> (Task, Transition) {
    let [
        Entry::Park { task, .. },
        Entry::Event(Event { transition, .. }),
    ] = entries(actions)
    else {
        panic!("a parked task expected, not {actions:?}");
    };
    (Task::clone(task), transition.clone())
}

#[test]
fn an_attempt_is_pending_for_as_long_as_its_target_asks_within_the_bound_and_counts_as_made() {
    for (asked, seconds) in [(None, 60), (Some(secs(90)), 90), (Some(secs(9_000)), 600)] {
        let mut bench = Bench::new();

        let (task, told) = parked(&bench.call(at(500), task(), asked));

        let until = at(500).wall + secs(seconds);
        assert_eq!((task.attempt, task.due), (1, until));
        assert_eq!(task.pending_since, Some(at(500).wall));
        assert_eq!((task.attempts_made(), task.failure), (1, None));
        assert_eq!(told, Transition::Pending { attempt: 1, until });
        assert_eq!((bench.0.in_flight(), bench.0.open()), (0, 0));
    }
}

#[test]
fn its_limit_is_a_timeout_that_asks_for_no_permit() {
    let mut bench = Bench::new();
    let (pending, _) = parked(&bench.call(at(0), task(), None));
    // The only permit there is is taken.
    let other = Task {
        id: "order-8".into(),
        ..task()
    };
    assert_eq!(bench.read(at(0), (TASKS, 1), other).len(), 1);

    let early = bench.read(at(55_000), (NOW_TIER, 0), pending);
    let late = bench.step(at(60_000), Input::Tick);

    assert_eq!(early, []);
    assert!(
        !late
            .iter()
            .any(|action| matches!(action, Action::Dispatch { .. })),
        "{late:?}"
    );
    assert!(matches!(&late[0], Action::LimitPassed { outcome, .. } if outcome.word() == "timeout"));
    let (next, told) = parked(&late);
    let due = at(90_000).wall;
    assert_eq!((next.attempt, next.due, next.pending_since), (2, due, None));
    let Transition::Failed {
        attempt,
        outcome,
        failure,
        due: told_due,
    } = told
    else {
        panic!("{told:?}");
    };
    assert_eq!((attempt, outcome, told_due), (1, "timeout", due));
    assert_eq!(&*failure.class, UNANSWERED);
}

#[test]
fn the_limit_of_the_last_attempt_is_the_end() {
    let mut bench = Bench::new();
    let last = Task {
        attempt: 2,
        ..task()
    };
    let last = Task {
        pending_since: Some(at(0).wall),
        ..last
    };

    let actions = bench.read(at(1), (NOW_TIER, 0), last);

    let ended = entries(&actions).iter().find_map(|entry| match entry {
        Entry::Callback(ended) => Some(ended),
        _ => None,
    });
    let ended = ended.expect("an end");
    assert_eq!(
        (ended.terminal, ended.reason, ended.attempts),
        (Terminal::Dead, Some(Reason::AttemptsExhausted), 2)
    );
}

#[test]
fn the_delivery_of_a_callback_is_never_pending() {
    let mut bench = Bench::new();
    let callback = Task {
        kind: Kind::Callback,
        ..task()
    };
    let actions = bench.read(at(0), (NOW_TIER, 0), callback);
    let [Action::Dispatch { ticket, .. }] = &actions[..] else {
        panic!("a call expected, not {actions:?}");
    };

    let ticket = *ticket;
    let outcome = Outcome::Pending { limit: None };
    let actions = bench.step(at(1), Input::Attempted { ticket, outcome });

    let [Entry::Event(event)] = entries(&actions) else {
        panic!("an end expected, not {actions:?}");
    };
    assert_eq!(event.transition.word(), "delivered");
}

#[test]
fn who_is_called_may_say_what_came_of_it_before_its_answer_is_heard() {
    let first = Selector::new(Parts {
        attempts: Some(1..=1),
        ..Parts::default()
    });
    let first = first.unwrap();
    let of = |attempt, pending_since| Task {
        attempt,
        pending_since,
        ..task()
    };
    let pending = Some(at(0).wall);

    assert!(!first.fits(&of(1, None), None));
    assert!(first.fits_call(&of(1, None), None));
    assert!(first.fits(&of(1, pending), None));
    // Its limit has passed, and the next one has not begun.
    assert!(first.fits(&of(2, None), None));
    assert!(!first.fits(&of(2, pending), None));
    assert!(!first.fits_call(&of(3, None), None));
}
