//! Duplicates and the engine: what is dropped, what is known of ids, and what is written down of that.

mod support;

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use retide_core::completions::Completions;
use retide_core::duplicates::{Identity, Known, Mode, Rule};
use retide_core::lane::Limits;
use retide_core::scene::Target;
use retide_core::{
    Action, Backoff, Engine, Entry, Failure, Fate, Gates, Input, Jitter, Ladder, LaneId, Now,
    Outcome, Policy, Position, Returned, Scene, Settlement, Source, State, Task, Transition,
};

use support::{TASKS, at};

/// The window of the scene.
const WINDOW: u64 = 60_000;

/// An engine with one shard.
struct Bench {
    engine: Engine,
}

fn scene(name: &str, target: Target, mode: Mode) -> Scene {
    Scene {
        duplicates: Rule {
            mode,
            window: Duration::from_millis(WINDOW),
        },
        ..Scene::new(
            name,
            target,
            Policy {
                backoff: Backoff::Fixed {
                    delay: Duration::from_secs(30),
                },
                jitter: Jitter::None,
                max_attempts: NonZeroU32::new(3).unwrap(),
            },
        )
    }
}

impl Bench {
    fn new(ids: Vec<(Identity, Known)>) -> Self {
        let engine = Engine::new(
            Ladder::default(),
            Limits::of(16 << 20),
            Arc::new(Gates::default()),
            NonZeroU32::MIN,
        );
        let mut bench = Self { engine };
        let topic = Target::Produce {
            topic: "orders".into(),
        };
        let scenes = [
            scene("once", Target::Call, Mode::Drop),
            scene("topic", topic, Mode::Drop),
            scene("any", Target::Call, Mode::Allow),
        ];
        bench.step(at(0), Input::Rules(scenes.into_iter().collect()));
        bench.step(at(0), Input::IdsKnown { shard: 0, ids });
        for source in [Source::Tasks, Source::Tier(0)] {
            let assign = Input::Assign {
                lane: LaneId { shard: 0, source },
                start: 0,
                known: Completions::default(),
            };
            bench.step(at(0), assign);
        }
        bench
    }

    fn step(&mut self, now: Now, input: Input) -> Vec<Action> {
        let mut actions = Vec::new();
        self.engine.step(now, input, &mut actions);
        actions
    }

    /// A task is read from the retry topic, due at once.
    fn read(&mut self, millis: u64, offset: i64, scene: &str, id: &str) -> Vec<Action> {
        let task = task(millis, offset, scene, id);
        let position = Position {
            lane: TASKS,
            run: 0,
            offset,
        };
        let record = Input::Record {
            position,
            appended: at(millis).wall,
            task: Box::new(task),
        };
        let mut actions = self.step(at(millis), record);
        actions.extend(self.step(at(millis), Input::Tick));
        actions
    }

    /// The call that was started comes back.
    fn answer(&mut self, millis: u64, actions: &[Action], outcome: Outcome) -> Settlement {
        let ticket = ticket(actions).expect("no call was started");
        let actions = self.step(at(millis), Input::Attempted { ticket, outcome });
        settlement(&actions).clone()
    }

    /// What is to be written down besides, and everything is durable.
    fn commit(&mut self, millis: u64, refused: Option<i64>) -> Vec<State> {
        let commits = self.engine.commits();
        let changes = self.engine.changes();
        for commit in commits {
            let (lane, epoch, watermark) = (commit.lane, commit.epoch, commit.watermark);
            if let Some(offset) = refused.filter(|_| lane == TASKS) {
                let refused = Input::Refused {
                    lane,
                    epoch,
                    offset,
                };
                self.step(at(millis), refused);
            }
            let committed = Input::Committed {
                lane,
                epoch,
                watermark,
            };
            self.step(at(millis), committed);
        }
        changes.into_iter().map(|(_, state)| state).collect()
    }
}

fn task(millis: u64, offset: i64, scene: &str, id: &str) -> Task {
    let mut task = support::task(id, scene, at(millis).wall);
    task.origin.offset = offset;
    task
}

fn ticket(actions: &[Action]) -> Option<u64> {
    actions.iter().find_map(|action| match action {
        Action::Dispatch { ticket, .. } => Some(*ticket),
        _ => None,
    })
}

fn settlement(actions: &[Action]) -> &Settlement {
    let settled = actions.iter().find_map(|action| match action {
        Action::Settle(settlement) => Some(settlement),
        _ => None,
    });
    settled.expect("nothing was settled")
}

/// Whether the record that was read was dropped, and nothing else follows from it.
fn is_dropped(actions: &[Action]) -> bool {
    let [Action::Settle(settlement)] = actions else {
        return false;
    };
    let [Entry::Event(event)] = &settlement.entries[..] else {
        return false;
    };
    matches!(&event.transition, Transition::Duplicate { fate, .. } if *fate == "dropped")
}

/// What is written down of ids.
fn states(entries: &[Entry]) -> Vec<State> {
    let states = entries.iter().filter_map(|entry| match entry {
        Entry::State(state @ State::Id { .. }) => Some(state.clone()),
        _ => None,
    });
    states.collect()
}

fn state(scene: &str, offset: i64, until: Option<u64>) -> State {
    State::Id {
        id: Identity::of(scene, "a"),
        known: Some(Known {
            offset,
            until: until.map(|millis| at(millis).wall),
        }),
    }
}

fn forgotten(scene: &str) -> State {
    State::Id {
        id: Identity::of(scene, "a"),
        known: None,
    }
}

fn no() -> Failure {
    Failure::new("target", "no")
}

#[test]
fn a_record_is_dropped_while_another_task_has_its_id_and_until_the_window_is_over() {
    let mut bench = Bench::new(Vec::new());

    let call = bench.read(0, 0, "once", "a");
    let in_flight = bench.read(10, 1, "once", "a");
    let parked = bench.answer(20, &call, Outcome::Retryable(no()));
    let beside = bench.read(30, 2, "once", "a");
    let other_id = bench.read(30, 3, "once", "b");
    let other_scene = bench.read(30, 4, "any", "a");

    assert!(is_dropped(&in_flight), "{in_flight:?}");
    assert_eq!(states(&parked.entries), [state("once", 0, None)]);
    assert!(is_dropped(&beside), "{beside:?}");
    assert!(ticket(&other_id).is_some() && ticket(&other_scene).is_some());
    let ended = bench.answer(40, &other_id, Outcome::Success);
    assert_eq!(states(&ended.entries).len(), 1);
    assert!(is_dropped(&bench.read(40 + WINDOW - 1, 5, "once", "b")));
    assert!(ticket(&bench.read(40 + WINDOW, 6, "once", "b")).is_some());
}

#[test]
fn the_event_says_where_the_record_is_and_which_task_has_its_id() {
    let mut bench = Bench::new(Vec::new());
    bench.read(0, 0, "once", "a");

    let dropped = bench.read(10, 1, "once", "a");

    let Entry::Event(event) = &settlement(&dropped).entries[0] else {
        panic!("{dropped:?}");
    };
    let Transition::Duplicate { told, .. } = &event.transition else {
        panic!("{event:?}");
    };
    assert_eq!(
        told.to_string(),
        "duplicate: retry.tasks/0/1: the task that entered at offset 0 is under way"
    );
}

#[test]
fn what_ends_badly_may_be_produced_again_at_once() {
    let mut bench = Bench::new(Vec::new());
    let call = bench.read(0, 0, "once", "a");

    let dead = bench.answer(10, &call, Outcome::Permanent(no()));

    assert_eq!(states(&dead.entries), [], "nothing was written down before");
    assert!(ticket(&bench.read(20, 1, "once", "a")).is_some());
}

#[test]
fn the_next_owner_knows_the_ids_and_takes_no_record_for_a_duplicate_of_itself() {
    let id = |id| Identity::of("once", id);
    let known = |offset, until: Option<u64>| Known {
        offset,
        until: until.map(|millis| at(millis).wall),
    };
    let mut bench = Bench::new(vec![
        (id("a"), known(-7, None)),
        (id("b"), known(-6, Some(1_000))),
        (id("c"), known(-5, Some(0))),
        (id("d"), known(3, None)),
    ]);

    assert!(is_dropped(&bench.read(0, 0, "once", "a")));
    assert!(is_dropped(&bench.read(999, 1, "once", "b")));
    assert!(ticket(&bench.read(999, 2, "once", "c")).is_some());
    assert!(ticket(&bench.read(999, 3, "once", "d")).is_some());
}

#[test]
fn an_id_is_written_down_when_its_task_parks_ends_and_is_forgotten() {
    let mut bench = Bench::new(Vec::new());
    let call = bench.read(0, 0, "once", "a");

    let ended = bench.answer(10, &call, Outcome::Success);

    assert_eq!(
        states(&ended.entries),
        [state("once", 0, Some(10 + WINDOW))]
    );
    assert_eq!(bench.commit(20, None), []);
    bench.step(at(10 + WINDOW), Input::Tick);
    assert_eq!(bench.commit(10 + WINDOW, None), [forgotten("once")]);
    assert_eq!(bench.commit(20 + WINDOW, None), []);
    assert_eq!(bench.engine.known_ids(), 0);
}

#[test]
fn what_was_to_be_forgotten_and_is_not_written_is_forgotten_again_unless_the_id_is_back() {
    let mut bench = Bench::new(Vec::new());
    let mut calls = Vec::new();
    for (offset, id) in [(0, "a"), (1, "b")] {
        calls.push(bench.read(0, offset, "once", id));
    }
    for call in &calls {
        bench.answer(10, call, Outcome::Success);
    }
    bench.commit(20, None);
    bench.step(at(10 + WINDOW), Input::Tick);
    let commits = bench.engine.commits();
    let changes = bench.engine.changes();
    assert_eq!(changes.len(), 2);
    let back = bench.read(20 + WINDOW, 2, "once", "b");
    assert!(ticket(&back).is_some());

    let returned = Returned {
        lanes: commits.iter().map(|of| (of.lane, of.epoch)).collect(),
        changes: changes
            .iter()
            .map(|(shard, state)| (*shard, state.key()))
            .collect(),
        ..Returned::default()
    };
    bench.step(at(30 + WINDOW), Input::Returned(Box::new(returned)));

    assert_eq!(bench.commit(40 + WINDOW, None), [forgotten("once")]);
    // What stands there of the other one is written over when it ends badly.
    let dead = bench.answer(50 + WINDOW, &back, Outcome::Permanent(no()));
    assert_eq!(states(&dead.entries).len(), 1);
}

#[test]
fn a_delivery_that_the_topic_takes_has_ended_and_one_that_it_refuses_has_not() {
    for refused in [false, true] {
        let mut bench = Bench::new(Vec::new());
        let delivered = bench.read(0, 0, "topic", "a");
        let both = settlement(&delivered);
        assert_eq!(states(&both.entries), [state("topic", 0, Some(WINDOW))]);
        assert_eq!(states(&both.otherwise), [state("topic", 0, None)]);
        // As long as nobody knows.
        assert!(is_dropped(&bench.read(5, 1, "topic", "a")));

        bench.commit(10, refused.then_some(0));

        bench.step(at(WINDOW), Input::Tick);
        let later = bench.read(WINDOW, 2, "topic", "a");
        assert_eq!(is_dropped(&later), refused, "{later:?}");
    }
}

#[test]
fn an_end_that_is_not_written_is_written_again_with_its_id() {
    let mut bench = Bench::new(Vec::new());
    let call = bench.read(0, 0, "once", "a");
    let ended = bench.answer(10, &call, Outcome::Success);
    let lanes = bench.engine.commits().into_iter();
    let returned = Returned {
        lanes: lanes.map(|of| (of.lane, of.epoch)).collect(),
        settlements: vec![(ended.clone(), Fate::Again)],
        ..Returned::default()
    };

    let again = bench.step(at(20), Input::Returned(Box::new(returned)));

    assert_eq!(settlement(&again), &ended);
    assert!(is_dropped(&bench.read(30, 1, "once", "a")));
}

#[test]
fn a_scene_that_allows_duplicates_writes_nothing_down() {
    let mut bench = Bench::new(Vec::new());
    let first = bench.read(0, 0, "any", "a");
    let second = bench.read(0, 1, "any", "a");

    let ends = [first, second].map(|call| bench.answer(10, &call, Outcome::Success));

    assert!(ends.iter().all(|end| states(&end.entries).is_empty()));
    assert_eq!(bench.engine.known_ids(), 0);
}
