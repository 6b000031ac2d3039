//! Duplicates and the engine: what is dropped, what is known of ids, and what is written down of that.

mod support;

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use retide_core::completions::Completions;
use retide_core::duplicates::{Identity, Known, Mode, Replaced, Rule};
use retide_core::key_order::Shard;
use retide_core::lane::Limits;
use retide_core::scene::Target;
use retide_core::{
    Action, Engine, Entry, Failure, Fate, Gates, Input, Ladder, LaneId, Now, Ordering, Outcome,
    Position, Returned, Scene, Settlement, Sink, Sinks, Source, State, Task, Transition, Writable,
};

use support::{TASKS, at};

/// The tier that is read.
const TIER: LaneId = LaneId {
    shard: 0,
    source: Source::Tier(0),
};

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
        ..Scene::new(name, target, support::policy(Duration::from_secs(30), 3))
    }
}

impl Bench {
    fn new(ids: Vec<(Identity, Known)>) -> Self {
        Self::of(ids, Vec::new())
    }

    fn of(ids: Vec<(Identity, Known)>, replaced: Vec<(i64, Replaced)>) -> Self {
        Self::with(ids, replaced, Shard::default())
    }

    /// One that knows what former owners have written of ids and of the order of keys.
    fn with(ids: Vec<(Identity, Known)>, replaced: Vec<(i64, Replaced)>, order: Shard) -> Self {
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
            scene("new", Target::Call, Mode::Replace),
            scene("kept", Target::Call, Mode::KeepDue),
            Scene {
                ordering: Ordering::Key,
                ..scene("keyed", Target::Call, Mode::Replace)
            },
        ];
        bench.step(at(0), Input::Rules(scenes.into_iter().collect()));
        let known = Input::IdsKnown {
            shard: 0,
            ids,
            replaced,
        };
        bench.step(at(0), known);
        let order = Box::new(order);
        bench.step(at(0), Input::Outstanding { shard: 0, order });
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

    /// A task is read from a tier.
    fn read_tier(&mut self, millis: u64, offset: i64, task: &Task) -> Vec<Action> {
        let position = Position {
            lane: TIER,
            run: 0,
            offset,
        };
        let record = Input::Record {
            position,
            appended: at(millis).wall,
            task: Box::new(task.clone()),
        };
        let mut actions = self.step(at(millis), record);
        actions.extend(self.step(at(millis), Input::Tick));
        actions
    }

    /// As [`Self::commit`], with what follows from it.
    fn durable(&mut self, millis: u64) -> Vec<Action> {
        let commits = self.engine.commits();
        self.engine.changes();
        let mut actions = Vec::new();
        for commit in commits {
            let committed = Input::Committed {
                lane: commit.lane,
                epoch: commit.epoch,
                watermark: commit.watermark,
            };
            actions.extend(self.step(at(millis), committed));
        }
        actions.extend(self.step(at(millis), Input::Tick));
        actions
    }

    /// A batch with this in it could not be written, and comes back.
    fn give_back(&mut self, millis: u64, settlement: Settlement) -> Vec<Action> {
        let lanes = self.engine.commits().into_iter();
        let returned = Returned {
            lanes: lanes.map(|of| (of.lane, of.epoch)).collect(),
            settlements: vec![(settlement, Fate::Again)],
            ..Returned::default()
        };
        self.step(at(millis), Input::Returned(Box::new(returned)))
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
    if scene == "keyed" {
        task.record.key = Some("k".into());
    }
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
            schedule: None,
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
fn a_record_leaves_the_queue_of_its_key_only_when_that_can_be_written() {
    let mut bench = Bench::new(Vec::new());
    let writable = |closed| {
        Input::Writable(Writable {
            closed,
            ..Writable::default()
        })
    };
    bench.read(0, 0, "keyed", "a");
    // The call is in flight: who comes next waits.
    assert_eq!(bench.read(10, 1, "keyed", "a"), []);

    bench.step(at(20), writable(Sinks::NONE.with(Sink::Order)));
    let replaced = bench.read(30, 2, "keyed", "a");
    let open = bench.step(at(40), writable(Sinks::NONE));

    assert_eq!(replaced, []);
    let settlement = settlement(&open);
    assert_eq!((settlement.lane, settlement.offset), (TASKS, 1));
}

#[test]
fn a_record_that_is_dropped_leaves_the_queue_of_its_key() {
    let read_later = |bench: &mut Bench| {
        let mut task = task(0, 5, "keyed", "a");
        task.due = at(50_000).wall;
        let position = Position {
            lane: TASKS,
            run: 0,
            offset: 5,
        };
        bench.step(
            at(0),
            Input::Record {
                position,
                appended: at(0).wall,
                task: Box::new(task),
            },
        )
    };
    // The former owner has listed it, and has not committed its offset.
    let mut former = Bench::new(Vec::new());
    read_later(&mut former);
    let mut order = Shard::default();
    for state in former.commit(10, None) {
        if let State::Order(change) = state {
            let key = change.key.to_string();
            let value = change.value.as_deref();
            order.replay(key.as_bytes(), value).unwrap();
        }
    }
    let ended = Known {
        offset: 3,
        until: Some(at(WINDOW).wall),
        schedule: None,
    };
    let ids = vec![(Identity::of("keyed", "a"), ended)];
    let mut bench = Bench::with(ids, Vec::new(), order);
    assert_eq!(bench.engine.keys(), 1);

    let dropped = read_later(&mut bench);
    bench.commit(20, None);

    assert!(is_dropped(&dropped), "{dropped:?}");
    assert_eq!(bench.engine.keys(), 0);
}

#[test]
fn the_next_one_of_its_key_waits_until_it_is_durable_that_a_record_is_dropped() {
    // Should the process die before that, the id may be free when the record is read again, and the record a task.
    let ended = Known {
        offset: 3,
        until: Some(at(WINDOW).wall),
        schedule: None,
    };
    let mut bench = Bench::new(vec![(Identity::of("keyed", "a"), ended)]);

    let dropped = bench.read(0, 0, "keyed", "a");
    let next = bench.read(10, 1, "keyed", "b");
    let then = bench.durable(20);

    assert!(is_dropped(&dropped), "{dropped:?}");
    assert_eq!(next, []);
    assert!(ticket(&then).is_some(), "{then:?}");
}

#[test]
fn an_id_is_not_forgotten_before_the_end_of_its_task_is_durable() {
    for scene in ["once", "new"] {
        let mut bench = Bench::new(Vec::new());
        let called = bench.read(0, 0, scene, "a");
        let end = bench.answer(10, &called, Outcome::Success);

        bench.give_back(20, end);
        bench.step(at(WINDOW + 1_000), Input::Tick);
        assert_eq!(bench.engine.changes(), [], "{scene}");
        assert_eq!(bench.commit(WINDOW + 1_010, None), [], "{scene}");
        bench.step(at(WINDOW + 1_020), Input::Tick);

        assert_eq!(bench.engine.changes(), [(0, forgotten(scene))]);
    }
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
        schedule: None,
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
fn a_delivery_that_is_refused_while_its_shard_leaves_has_not_ended() {
    let mut bench = Bench::new(Vec::new());
    bench.read(0, 0, "topic", "a");
    bench.engine.changes();
    let commits = bench.engine.commits();
    bench.step(at(10), Input::Revoke { shard: 0 });
    for commit in commits.into_iter().filter(|commit| commit.lane == TASKS) {
        let (lane, epoch, watermark) = (commit.lane, commit.epoch, commit.watermark);
        let offset = 0;
        bench.step(
            at(20),
            Input::Refused {
                lane,
                epoch,
                offset,
            },
        );
        bench.step(
            at(20),
            Input::Committed {
                lane,
                epoch,
                watermark,
            },
        );
    }

    bench.step(at(WINDOW + 1_000), Input::Tick);

    assert_eq!(bench.engine.changes(), [], "it waits for its next attempt");
}

#[test]
fn an_end_that_is_not_written_is_written_again_with_its_id() {
    let mut bench = Bench::new(Vec::new());
    let call = bench.read(0, 0, "once", "a");
    let ended = bench.answer(10, &call, Outcome::Success);

    let again = bench.give_back(20, ended.clone());

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

/// The task that a settlement parks.
fn parked(settlement: &Settlement) -> &Arc<Task> {
    let mut parked = settlement.entries.iter().filter_map(Entry::parked);
    parked.next().expect("nothing is parked").1
}

/// What the settlement tells of duplicates: what became of whom.
fn told(settlement: &Settlement) -> Vec<(&'static str, String)> {
    let events = settlement.entries.iter().filter_map(Entry::event);
    events
        .filter_map(|event| match &event.transition {
            Transition::Duplicate { fate, told } => Some((*fate, told.message.to_string())),
            _ => None,
        })
        .collect()
}

/// Whether all that was done is that a replaced task has gone.
fn has_gone(actions: &[Action], task: i64) -> bool {
    let [Action::Settle(settlement)] = actions else {
        return false;
    };
    let gone = State::Replaced {
        task,
        replaced: None,
    };
    settlement.entries == [Entry::State(gone)]
}

/// Whether a settlement marks a task as replaced, in a record that names the newcomer.
fn marks(settlement: &Settlement, task: i64, by: i64) -> bool {
    let states = settlement.entries.iter().filter_map(Entry::state);
    let mut marks = states.filter_map(|state| match state {
        State::Replaced { task, replaced } => Some((*task, replaced.map(|replaced| replaced.by))),
        _ => None,
    });
    marks.any(|mark| mark == (task, Some(by)))
}

#[test]
fn a_newcomer_takes_the_place_of_a_parked_task_which_goes_without_a_word() {
    for (scene, fate, attempt) in [("new", "replaced", 1), ("kept", "payload-replaced", 2)] {
        let mut bench = Bench::new(Vec::new());
        let call = bench.read(0, 0, scene, "a");
        let old = bench.answer(10, &call, Outcome::Retryable(no()));
        let old = Arc::clone(parked(&old));
        bench.durable(20);

        let taken = bench.read(1_000, 1, scene, "a");

        let [Action::Settle(taken)] = &taken[..] else {
            panic!("{taken:?}");
        };
        let new = parked(taken);
        let says = "retry.tasks/0/1: takes the place of the task that entered at offset 0";
        assert_eq!(told(taken), [(fate, says.to_owned())]);
        assert!(marks(taken, 0, 1), "{taken:?}");
        let known: Vec<_> = states(&taken.entries);
        let [
            State::Id {
                known: Some(known), ..
            },
        ] = &known[..]
        else {
            panic!("{known:?}");
        };
        assert_eq!((known.offset, known.until), (1, None));
        assert_eq!((new.origin.offset, new.attempt), (1, attempt));
        let schedule = known
            .schedule
            .map(|schedule| (schedule.due, schedule.attempt));
        if scene == "kept" {
            assert_eq!(new.due, old.due);
            assert_eq!(new.first_failed_at, old.first_failed_at);
            assert_eq!(schedule, Some((old.due, 2)));
        } else {
            assert_eq!(new.due, at(1_000).wall);
            assert_eq!(schedule, None);
        }
        let new = Arc::clone(new);
        // It stays until that is durable.
        assert_eq!(bench.read_tier(31_000, 0, &old), []);
        assert!(has_gone(&bench.durable(31_010), 0));
        assert!(ticket(&bench.read_tier(31_020, 1, &new)).is_some());
    }
}

#[test]
fn a_newcomer_waits_for_a_call_and_takes_the_place_if_it_fails() {
    for scene in ["new", "kept"] {
        let mut bench = Bench::new(Vec::new());
        let call = bench.read(0, 0, scene, "a");

        assert_eq!(bench.read(10, 1, scene, "a"), []);
        let failed = bench.answer(20, &call, Outcome::Retryable(no()));
        let due = parked(&failed).due;
        let taken = bench.durable(30);

        let taken = settlement(&taken);
        assert!(marks(taken, 0, 1), "{taken:?}");
        let (new, is_kept) = (parked(taken), scene == "kept");
        assert_eq!(new.attempt, if is_kept { 2 } else { 1 });
        assert_eq!(new.due, if is_kept { due } else { at(10).wall });
    }
}

#[test]
fn a_newcomer_is_a_task_of_its_own_if_the_call_it_waits_for_succeeds() {
    for scene in ["new", "kept"] {
        let mut bench = Bench::new(Vec::new());
        let call = bench.read(0, 0, scene, "a");
        assert_eq!(bench.read(10, 1, scene, "a"), []);
        let delivered = bench.answer(20, &call, Outcome::Success);
        assert!(
            delivered
                .entries
                .iter()
                .any(|entry| entry.ended().is_some())
        );

        let started = bench.durable(30);

        // Also within the window: it came before the end.
        assert!(ticket(&started).is_some(), "{started:?}");
    }
}

#[test]
fn of_two_newcomers_that_wait_the_later_one_takes_the_place() {
    let mut bench = Bench::new(Vec::new());
    let call = bench.read(0, 0, "new", "a");
    assert_eq!(bench.read(10, 1, "new", "a"), []);

    let second = bench.read(20, 2, "new", "a");

    let second = settlement(&second);
    assert_eq!(second.offset, 1);
    let says = "retry.tasks/0/2: takes the place of the task that entered at offset 1";
    assert_eq!(told(second), [("replaced", says.to_owned())]);
    bench.answer(30, &call, Outcome::Retryable(no()));
    let taken = bench.durable(40);
    assert!(marks(settlement(&taken), 0, 2), "{taken:?}");
}

#[test]
fn what_is_read_while_a_newcomer_waits_takes_its_place_though_the_task_has_ended() {
    for after in [5, WINDOW + 5] {
        let mut bench = Bench::new(Vec::new());
        let call = bench.read(0, 0, "new", "a");
        assert_eq!(bench.read(10, 1, "new", "a"), []);
        bench.answer(20, &call, Outcome::Success);

        let second = bench.read(20 + after, 2, "new", "a");
        let started = bench.durable(30 + after);

        let says = "retry.tasks/0/2: takes the place of the task that entered at offset 1";
        assert_eq!(settlement(&second).offset, 1);
        assert_eq!(told(settlement(&second)), [("replaced", says.to_owned())]);
        let [Action::Dispatch { task, .. }] = &started[..] else {
            panic!("not one call: {started:?}");
        };
        assert_eq!(task.origin.offset, 2);
    }
}

#[test]
fn a_task_that_waits_in_memory_does_not_start_once_it_is_replaced() {
    let mut bench = Bench::new(Vec::new());
    let later = |offset| {
        let mut task = task(0, offset, "new", "a");
        task.due = at(900).wall;
        task
    };
    let read = |bench: &mut Bench, offset| {
        let position = Position {
            lane: TASKS,
            run: 0,
            offset,
        };
        let record = Input::Record {
            position,
            appended: at(0).wall,
            task: Box::new(later(offset)),
        };
        bench.step(at(0), record)
    };
    assert_eq!(read(&mut bench, 0), []);

    let taken = read(&mut bench, 1);

    assert!(marks(settlement(&taken), 0, 1), "{taken:?}");
    bench.durable(10);
    assert!(has_gone(&bench.step(at(900), Input::Tick), 0));
}

#[test]
fn the_next_owner_knows_who_is_replaced() {
    let replaced = Replaced {
        by: 1,
        at: at(0).wall,
    };
    let known = Known {
        offset: 1,
        until: None,
        schedule: None,
    };
    let ids = vec![(Identity::of("new", "a"), known)];
    let mut bench = Bench::of(ids, vec![(0, replaced)]);

    // Both were open when the owner before was gone.
    assert!(has_gone(&bench.read(0, 0, "new", "a"), 0));
    assert!(ticket(&bench.read(0, 1, "new", "a")).is_some());
}

#[test]
fn a_place_that_is_not_written_is_taken_again() {
    let mut bench = Bench::new(Vec::new());
    let call = bench.read(0, 0, "new", "a");
    let old = bench.answer(10, &call, Outcome::Retryable(no()));
    let old = Arc::clone(parked(&old));
    bench.durable(20);
    let taken = bench.read(1_000, 1, "new", "a");
    let taken = settlement(&taken).clone();
    assert_eq!(bench.read_tier(1_010, 0, &old), []);

    let again = bench.give_back(1_020, taken.clone());

    assert_eq!(settlement(&again), &taken);
    // Who comes next waits for that, too.
    assert_eq!(bench.read(1_030, 2, "new", "a"), []);
    let both = bench.durable(1_040);
    let settled: Vec<_> = both
        .iter()
        .filter_map(|action| match action {
            Action::Settle(settlement) => Some(settlement.offset),
            _ => None,
        })
        .collect();
    assert_eq!(settled, [0, 2]);
}

#[test]
fn those_behind_a_replaced_task_go_on_when_its_place_is_taken() {
    let mut bench = Bench::new(Vec::new());
    let call = bench.read(0, 0, "keyed", "a");
    bench.answer(10, &call, Outcome::Retryable(no()));
    bench.durable(20);
    // Another one of the key is behind it, and is parked as long.
    let behind = bench.read(30, 1, "keyed", "b");
    let behind = Arc::clone(parked(settlement(&behind)));
    let behind_due = Now {
        wall: behind.wake(),
        ..at(40_000)
    };
    bench.durable(40);

    let taken = bench.read(1_000, 2, "keyed", "a");
    let new = Arc::clone(parked(settlement(&taken)));
    bench.durable(1_010);

    // In the order in which they entered: the newcomer has its own place.
    assert_eq!(ticket(&bench.read_tier(1_020, 1, &new)), None);
    assert_eq!(bench.read_tier(29_000, 2, &behind), []);
    let call = bench.step(behind_due, Input::Tick);
    assert!(ticket(&call).is_some(), "{call:?}");
}

#[test]
fn a_task_that_is_over_cannot_be_replaced() {
    let mut bench = Bench::new(Vec::new());
    let call = bench.read(0, 0, "new", "a");
    bench.answer(10, &call, Outcome::Success);
    bench.durable(20);

    assert!(is_dropped(&bench.read(30, 1, "new", "a")));
    bench.durable(40);
    assert!(ticket(&bench.read(10 + WINDOW, 2, "new", "a")).is_some());
}

#[test]
fn a_task_that_has_its_id_back_is_written_down_anew() {
    let id = Identity::of("once", "a");
    let known = Known {
        offset: -7,
        until: Some(at(1_000).wall),
        schedule: None,
    };
    let mut bench = Bench::new(vec![(id, known)]);
    let call = bench.read(1_000, 0, "once", "a");

    let parked = bench.answer(1_010, &call, Outcome::Retryable(no()));

    assert_eq!(states(&parked.entries), [state("once", 0, None)]);
}
