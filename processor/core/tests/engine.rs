//! The engine seen from outside: whole action lists, and properties over random histories.

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;

use retide_core::Position;
use retide_core::breaker;
use retide_core::campaign::{Id, LEADER, Replay, Report, Said};
use retide_core::completions::Completions;
use retide_core::control::{Control, Place};
use retide_core::engine::Left;
use retide_core::hold::{Deadlines, Hold};
use retide_core::lane::Limits;
use retide_core::scene::{Callback, Target};
use retide_core::selector::{ErrorFingerprint, Parts, Selector};
use retide_core::wait::Cause;
use retide_core::wall;
use retide_core::{
    Action, Backoff, Commit, Deferral, Ended, Engine, Entry, Event, Failure, Gates, Input, Kind,
    Ladder, LaneId, Now, Omitted, Outcome, Poison, Rate, Reason, Record, Scene, Scenes, Settlement,
    Source, Task, Terminal, Timestamp, Transition, Wait,
};

use support::{START, TASKS, at};

const fn tier(index: usize) -> LaneId {
    LaneId {
        shard: 0,
        source: Source::Tier(index),
    }
}

fn scene(change: impl FnOnce(&mut Scene)) -> Scenes {
    let mut scene = Scene {
        concurrency: NonZeroU32::new(4).unwrap(),
        ..Scene::new(
            "pay",
            Target::Call,
            support::policy(Duration::from_secs(30), 3),
        )
    };
    change(&mut scene);
    [scene].into_iter().collect()
}

fn task(name: &str, due: Now) -> Task {
    let mut task = support::task(name, "pay", due.wall);
    task.first_failed_at = at(0).wall;
    task.record.value = Some("payload".into());
    task
}

fn position(lane: LaneId, offset: i64) -> Position {
    Position {
        lane,
        run: 0,
        offset,
    }
}

/// An engine with one shard, and the steps it takes.
struct Bench {
    engine: Engine,
}

impl Bench {
    fn new(scenes: Scenes) -> Self {
        Self::limited(scenes, Limits::of(256 << 20))
    }

    fn limited(scenes: Scenes, limits: Limits) -> Self {
        let mut bench = Self::unassigned(1, scenes, limits);
        bench.assign(0);
        bench
    }

    /// An engine without shards, where the group has so many.
    fn of_group(shards: u32, scenes: Scenes) -> Self {
        Self::unassigned(shards, scenes, Limits::of(256 << 20))
    }

    fn unassigned(shards: u32, scenes: Scenes, limits: Limits) -> Self {
        let gates = Arc::new(Gates::default());
        let shards = NonZeroU32::new(shards).unwrap();
        let mut bench = Self {
            engine: Engine::new(Ladder::default(), limits, gates, shards),
        };
        bench.step(at(0), Input::Rules(scenes));
        bench
    }

    fn assign(&mut self, start: i64) {
        let tiers = (0..11).map(Source::Tier);
        for source in [Source::Tasks].into_iter().chain(tiers) {
            let lane = LaneId { shard: 0, source };
            let known = Completions::default();
            self.step(at(0), Input::Assign { lane, start, known });
        }
    }

    fn step(&mut self, now: Now, input: Input) -> Vec<Action> {
        let mut actions = Vec::new();
        self.engine.step(now, input, &mut actions);
        actions
    }

    fn record(&mut self, now: Now, lane: LaneId, offset: i64, task: Task) -> Vec<Action> {
        let input = Input::Record {
            position: position(lane, offset),
            appended: now.wall,
            task: Box::new(task),
        };
        self.step(now, input)
    }

    /// Goes on until nothing more is to be done at `now`: how many offsets are settled by that.
    fn settled_by(&mut self, now: Now) -> usize {
        let mut settled = 0;
        while self.engine.next_wake().is_some_and(|wake| wake <= now.wall) {
            let actions = self.step(now, Input::Tick);
            settled += actions
                .iter()
                .filter(|action| matches!(action, Action::Settle(_)))
                .count();
            self.engine.commits();
        }
        settled
    }

    /// Answers the one call that `actions` start.
    fn answer(&mut self, now: Now, actions: &[Action], outcome: Outcome) -> Vec<Action> {
        let [Action::Dispatch { ticket, .. }] = actions else {
            panic!("one dispatch expected, not {actions:?}");
        };
        let ticket = *ticket;
        self.step(now, Input::Attempted { ticket, outcome })
    }

    fn watermark(&mut self, lane: LaneId) -> Option<i64> {
        let commits = self.engine.commits();
        let commit = commits.iter().find(|commit| commit.lane == lane)?;
        Some(commit.watermark)
    }
}

fn told(name: &str, now: Now, transition: Transition) -> Event {
    Event {
        id: name.into(),
        scene: "pay".into(),
        kind: Kind::Work,
        at: now.wall,
        transition,
        wait: None,
        left_out: None,
        command: None,
    }
}

fn event(name: &str, now: Now, transition: Transition) -> Entry {
    Entry::Event(told(name, now, transition))
}

fn ended(
    task: &Task,
    now: Now,
    terminal: Terminal,
    reason: Option<Reason>,
    attempts: u32,
) -> Arc<Ended> {
    Arc::new(Ended {
        id: Arc::clone(&task.id),
        scene: Arc::clone(&task.scene),
        kind: task.kind,
        terminal,
        reason,
        attempts,
        origin: task.origin.clone(),
        first_failed_at: task.first_failed_at,
        at: now.wall,
        failure: task.failure.clone(),
        key: None,
        omitted: Omitted::Nothing,
    })
}

/// The records of an end: event, callback, and a dead letter if it is a bad one.
fn end_of(
    task: &Task,
    now: Now,
    terminal: Terminal,
    reason: Option<Reason>,
    attempts: u32,
) -> Vec<Entry> {
    let ended = ended(task, now, terminal, reason, attempts);
    let transition = Transition::Ended {
        terminal,
        attempts,
        reason,
        fingerprint: ended.fingerprint(),
    };
    let mut entries = vec![
        event(&task.id, now, transition),
        Entry::Callback(Arc::clone(&ended)),
    ];
    if terminal != Terminal::Delivered {
        let task = Arc::new(task.clone());
        entries.push(Entry::DeadLetter { task, ended });
    }
    entries
}

/// The same where the attempt was late by so many microseconds in reading.
fn read_late(mut entries: Vec<Entry>, read: u64) -> Vec<Entry> {
    for entry in &mut entries {
        if let Entry::Event(event) = entry {
            event.wait = Some(Wait {
                read,
                ..Wait::default()
            });
        }
    }
    entries
}

/// Where the task of a settlement that parks it is to wait, if it moves.
fn where_parked(actions: &[Action]) -> Option<i32> {
    match actions {
        [Action::Settle(Settlement { entries, .. })] => match &entries[0] {
            Entry::Park { to, .. } => *to,
            other => panic!("a parked task expected, not {other:?}"),
        },
        [] => None,
        other => panic!("one settlement at most expected, not {other:?}"),
    }
}

fn fifty_a_second() -> Rate {
    Rate {
        limit: NonZeroU32::new(50).unwrap(),
        per: Duration::from_secs(1),
        burst: NonZeroU32::new(50).unwrap(),
    }
}

fn settle(lane: LaneId, offset: i64, entries: Vec<Entry>) -> Action {
    Action::Settle(Settlement {
        lane,
        offset,
        home: 0,
        entries,
        otherwise: Vec::new(),
        applied: Vec::new(),
    })
}

#[test]
fn a_task_due_now_is_called_and_ends_once() {
    let mut bench = Bench::new(scene(|_| {}));
    let task = task("a", at(0));

    let called = bench.record(at(1), TASKS, 7, task.clone());
    let before = bench.watermark(TASKS);
    let settled = bench.answer(at(9), &called, Outcome::Success);

    assert_eq!(before, Some(7));
    let entries = end_of(&task, at(9), Terminal::Delivered, None, 1);
    let entries = read_late(entries, 1_000);
    assert_eq!(settled, [settle(TASKS, 7, entries)]);
    assert_eq!(bench.watermark(TASKS), Some(8));
}

#[test]
fn a_failed_attempt_is_parked_for_the_wait_of_its_scene() {
    let mut bench = Bench::new(scene(|_| {}));
    let failure = Failure::new("http-503", "busy");
    let mut next = task("a", at(0));

    let called = bench.record(at(1), TASKS, 0, next.clone());
    let settled = bench.answer(at(5), &called, Outcome::Retryable(failure.clone()));

    next.attempt = 2;
    next.hops = 1;
    next.due = at(30_005).wall;
    next.failure = Some(failure.clone());
    let failed = Transition::Failed {
        attempt: 1,
        outcome: "retryable",
        failure,
        due: next.due,
    };
    let entries = vec![
        Entry::Park {
            tier: 3,
            to: None,
            task: Arc::new(next),
        },
        event("a", at(5), failed),
    ];
    let entries = read_late(entries, 1_000);
    assert_eq!(settled, [settle(TASKS, 0, entries)]);
}

#[test]
fn a_failed_call_names_the_host_that_was_called_in_all_that_follows() {
    let calls = |host: &str, attempts| {
        let target = format!("https://{host}:443");
        scene(|scene| {
            scene.policy.max_attempts = NonZeroU32::new(attempts).unwrap();
            scene.walls.work = Some(breaker::Key {
                target: breaker::Subject::wall(&target, &scene.name),
                rule: wall::UNBRAKED,
            });
        })
    };
    let mut bench = Bench::new(calls("Old.example", 2));
    let failure = Failure::new("http-503", "busy");
    let failed = || Outcome::Retryable(failure.clone());
    let host_of = |failure: &Option<Failure>| failure.clone().and_then(|failure| failure.host);

    // The scene moves while the call is out.
    let called = bench.record(at(0), TASKS, 0, task("a", at(0)));
    bench.step(at(1), Input::Rules(calls("new.example", 2)));
    let parked = bench.answer(at(5), &called, failed());

    let [Action::Settle(Settlement { entries, .. })] = &parked[..] else {
        panic!("{parked:?}");
    };
    let (_, again) = entries[0].parked().unwrap();
    assert_eq!(host_of(&again.failure).as_deref(), Some("old.example"));
    let mut again = Task::clone(again);
    again.due = at(1_000).wall;
    let called = bench.record(at(1_000), tier(0), 0, again);
    let dead = bench.answer(at(1_005), &called, failed());
    let [Action::Settle(Settlement { entries, .. })] = &dead[..] else {
        panic!("{dead:?}");
    };
    let ended = entries.iter().find_map(Entry::dead_letter).unwrap();
    assert_eq!(host_of(&ended.failure).as_deref(), Some("new.example"));
    let print = Some(ErrorFingerprint::of(
        &ended.scene,
        &failure.of_host(Some("new.example".into())),
    ));
    assert_eq!(ended.fingerprint(), print);
    let told = entries.iter().find_map(Entry::event).unwrap();
    let Transition::Ended { fingerprint, .. } = told.transition else {
        panic!("{told:?}");
    };
    assert_eq!(fingerprint, print);
}

#[test]
fn a_change_of_rules_counts_from_the_next_decision_on() {
    let mut bench = Bench::new(scene(|_| {}));
    let rules = |seconds, attempts| {
        Input::Rules(scene(|scene| {
            scene.policy.backoff = Backoff::Fixed {
                delay: Duration::from_secs(seconds),
            };
            scene.policy.max_attempts = NonZeroU32::new(attempts).unwrap();
        }))
    };
    let failed = || Outcome::Retryable(Failure::new("http-503", "busy"));
    let due_of = |actions: &[Action]| match actions {
        [Action::Settle(Settlement { entries, .. })] => match &entries[0] {
            Entry::Park { task, .. } => Some(task.due),
            _ => None,
        },
        _ => panic!("{actions:?}"),
    };

    // While the call is out: its verdict is the next decision.
    let called = bench.record(at(0), TASKS, 0, task("a", at(0)));
    bench.step(at(1_000), rules(5, 3));
    let parked = bench.answer(at(2_000), &called, failed());
    assert_eq!(due_of(&parked), Some(at(7_000).wall));

    // While it is parked: when it is due stays, what follows from the attempt changes.
    bench.step(at(3_000), rules(60, 2));
    let mut again = task("a", at(7_000));
    again.attempt = 2;
    assert_eq!(bench.record(at(6_000), tier(1), 0, again), []);
    let called = bench.step(at(7_000), Input::Tick);
    assert!(matches!(&called[..], [Action::Dispatch { .. }]));
    let dead = bench.answer(at(7_000), &called, failed());
    assert_eq!(due_of(&dead), None);

    // Taken away while the call is out: by the rules it was started under.
    let called = bench.record(at(8_000), TASKS, 1, task("b", at(8_000)));
    bench.step(at(8_000), Input::Rules(Scenes::default()));
    let parked = bench.answer(at(8_000), &called, failed());
    assert_eq!(due_of(&parked), Some(at(68_000).wall));
}

#[test]
fn a_target_that_asks_for_longer_gets_longer() {
    let mut bench = Bench::new(scene(|_| {}));
    let outcome = Outcome::Throttled {
        after: Duration::from_mins(1),
        failure: Failure::new("http-429", "slow down"),
    };

    let called = bench.record(at(0), TASKS, 0, task("a", at(0)));
    let settled = bench.answer(at(5), &called, outcome);

    let [Action::Settle(Settlement { entries, .. })] = &settled[..] else {
        panic!("one settlement expected, not {settled:?}");
    };
    let [Entry::Park { tier, task, .. }, _] = &entries[..] else {
        panic!("a parked task expected, not {entries:?}");
    };
    assert_eq!((*tier, task.due), (4, at(60_005).wall));
}

#[test]
fn the_last_attempt_and_a_rejection_are_dead_letters() {
    for (attempt, permanent, reason) in [
        (3, false, Reason::AttemptsExhausted),
        (1, true, Reason::Rejected),
    ] {
        let mut bench = Bench::new(scene(|_| {}));
        let failure = Failure::new("http-4xx", "no");
        let mut task = task("a", at(0));
        task.attempt = attempt;
        let outcome = if permanent {
            Outcome::Permanent(failure.clone())
        } else {
            Outcome::Retryable(failure.clone())
        };

        let called = bench.record(at(0), tier(0), 0, task.clone());
        let settled = bench.answer(at(5), &called, outcome);

        task.failure = Some(failure);
        let entries = end_of(&task, at(5), Terminal::Dead, Some(reason), attempt);
        let entries = read_late(entries, 0);
        assert_eq!(settled, [settle(tier(0), 0, entries)]);
    }
}

#[test]
fn a_task_past_its_deadline_expires_without_an_attempt() {
    let mut bench = Bench::new(scene(|scene| scene.deadline = Some(Duration::from_secs(1))));
    let task = task("a", at(0));

    let settled = bench.record(at(1_001), TASKS, 0, task.clone());

    let reason = Some(Reason::DeadlinePassed);
    let entries = end_of(&task, at(1_001), Terminal::Expired, reason, 0);
    let entries = read_late(entries, 1_001_000);
    assert_eq!(settled, [settle(TASKS, 0, entries)]);
}

#[test]
fn a_retry_that_would_come_after_the_deadline_expires_at_once() {
    let mut bench = Bench::new(scene(|scene| {
        scene.deadline = Some(Duration::from_secs(20));
    }));
    let failure = Failure::new("timeout", "5s");
    let mut task = task("a", at(0));

    let called = bench.record(at(0), TASKS, 0, task.clone());
    let settled = bench.answer(at(5), &called, Outcome::Timeout(failure.clone()));

    task.failure = Some(failure);
    let reason = Some(Reason::DeadlinePassed);
    let entries = end_of(&task, at(5), Terminal::Expired, reason, 1);
    let entries = read_late(entries, 0);
    assert_eq!(settled, [settle(TASKS, 0, entries)]);
}

#[test]
fn a_task_without_rules_is_a_dead_letter_with_the_reason() {
    for (name, reason) in [("", Reason::NoScene), ("nobody", Reason::UnknownScene)] {
        let mut bench = Bench::new(scene(|_| {}));
        let mut task = task("a", at(0));
        task.scene = name.into();

        let settled = bench.record(at(0), TASKS, 0, task.clone());

        let ended = ended(&task, at(0), Terminal::Dead, Some(reason), 0);
        let [Action::Settle(settlement)] = &settled[..] else {
            panic!("one settlement expected, not {settled:?}");
        };
        let letter = Entry::DeadLetter {
            task: Arc::new(task),
            ended,
        };
        assert_eq!(settlement.entries.last(), Some(&letter));
    }
}

#[test]
fn poison_is_kept_and_the_lane_moves_on() {
    let mut bench = Bench::new(scene(|_| {}));
    let poison = Arc::new(Poison {
        kind: Kind::Work,
        id: "p".into(),
        scene: "".into(),
        key: None,
        origin: task("p", at(0)).origin,
        record: Record::default(),
        reason: Reason::BadDue,
        detail: Failure::new("bad-due", "soon"),
        replay: None,
    });

    let input = Input::Poison {
        position: position(TASKS, 3),
        poison: Arc::clone(&poison),
    };
    let settled = bench.step(at(0), input);

    let [Action::Settle(settlement)] = &settled[..] else {
        panic!("one settlement expected, not {settled:?}");
    };
    let kept = settlement.entries.iter().any(
        |entry| matches!(entry, Entry::Poison { poison: kept, ended } if *kept == poison && ended.terminal == Terminal::Dead),
    );
    assert!(kept);
    assert_eq!(bench.watermark(TASKS), Some(4));
}

#[test]
fn a_parked_callback_that_cannot_be_read_tells_its_campaign_and_ends_without_another_callback() {
    let mut bench = Bench::new(scene(|_| {}));
    let place = Place {
        at: at(0).wall,
        partition: 0,
        offset: 7,
    };
    let name = "mend".into();
    let replay = Replay {
        campaign: Id { place, name },
        times: 1,
    };
    let poison = Arc::new(Poison {
        kind: Kind::Callback,
        id: "p".into(),
        scene: "".into(),
        key: None,
        origin: task("p", at(0)).origin,
        record: Record::default(),
        reason: Reason::Crashed,
        detail: Failure::new("crashed", "twice"),
        replay: Some(Box::new(replay.clone())),
    });

    let input = Input::Poison {
        position: position(TASKS, 3),
        poison,
    };
    let settled = bench.step(at(0), input);

    let [Action::Settle(settlement)] = &settled[..] else {
        panic!("one settlement expected, not {settled:?}");
    };
    let [
        Entry::Event(_),
        Entry::Poison { ended, .. },
        Entry::Control {
            to: LEADER,
            control,
        },
    ] = &settlement.entries[..]
    else {
        panic!("{:?}", settlement.entries);
    };
    assert_eq!(ended.kind, Kind::Callback);
    let said = Report {
        campaign: replay.campaign,
        said: Said::end(Terminal::Dead),
    };
    assert_eq!(**control, Control::Report(said));
}

#[test]
fn a_task_due_later_is_parked_in_the_longest_tier_that_fits() {
    let mut bench = Bench::new(scene(|_| {}));
    let mut parked = task("a", at(12_000));

    let settled = bench.record(at(0), TASKS, 0, parked.clone());

    parked.hops = 1;
    let due = parked.due;
    let entries = vec![
        Entry::Park {
            tier: 2,
            to: None,
            task: Arc::new(parked),
        },
        event("a", at(0), Transition::Parked { due }),
    ];
    assert_eq!(settled, [settle(TASKS, 0, entries)]);
}

#[test]
fn no_call_starts_a_microsecond_early() {
    let mut bench = Bench::new(scene(|_| {}));
    let due = at(4_000);
    bench.record(at(0), tier(0), 0, task("a", due));
    let almost = Now {
        wall: Timestamp::from_micros(due.wall.as_micros() - 1),
        ..due
    };

    let early = bench.step(almost, Input::Tick);
    let wake = bench.engine.next_wake();
    let in_time = bench.step(due, Input::Tick);

    assert_eq!(early, []);
    assert_eq!(wake, Some(due.wall));
    assert!(matches!(&in_time[..], [Action::Dispatch { .. }]));
}

#[test]
fn a_task_in_line_is_not_due_any_more_when_the_clock_is_set_back() {
    let mut bench = Bench::new(scene(|scene| scene.concurrency = NonZeroU32::MIN));
    let called = bench.record(at(5_000), TASKS, 0, task("first", at(0)));
    bench.record(at(5_000), TASKS, 1, task("second", at(4_000)));

    let answered = bench.answer(at(3_000), &called, Outcome::Success);
    let in_time = bench.step(at(4_000), Input::Tick);

    assert!(matches!(&answered[..], [Action::Settle(_)]));
    assert!(matches!(&in_time[..], [Action::Dispatch { .. }]));
}

#[test]
fn a_lane_reads_on_when_the_clock_is_set_back() {
    let mut bench = Bench::new(scene(|_| {}));
    let far = Now {
        wall: at(3_600_000).wall,
        ..at(0)
    };
    let read = bench.record(far, tier(3), 0, task("a", at(3_670_000)));

    let set_back = bench.step(at(1), Input::Tick);

    assert!(matches!(&read[..], [Action::Pause { .. }]));
    assert!(matches!(&set_back[..], [Action::Resume { run: 1, .. }]));
}

#[test]
fn a_tier_lets_a_task_with_much_time_left_hop() {
    let mut bench = Bench::new(scene(|_| {}));
    // In the tier of 30 s, readable from 28 s on; 42 s are left then.
    let mut hopped = task("a", at(70_000));
    let read = bench.record(at(0), tier(3), 0, hopped.clone());

    let before = bench.step(at(27_999), Input::Tick);
    let after = bench.step(at(28_000), Input::Tick);

    // It is far ahead, so its lane has stopped reading until it is nearer.
    assert_eq!(
        read,
        [Action::Pause {
            lane: tier(3),
            next: 1
        }]
    );
    assert_eq!(
        before,
        [Action::Resume {
            lane: tier(3),
            run: 1
        }]
    );
    hopped.hops = 1;
    let transition = Transition::Hopped {
        due: hopped.due,
        hops: 1,
    };
    let entries = vec![
        Entry::Park {
            tier: 3,
            to: None,
            task: Arc::new(hopped),
        },
        event("a", at(28_000), transition),
    ];
    assert_eq!(after, [settle(tier(3), 0, entries)]);
}

#[test]
fn a_clock_ahead_of_the_brokers_makes_no_storm_of_hops() {
    let mut bench = Bench::new(scene(|_| {}));
    // By this clock, the tier of 30 s would have let go of it long ago.
    let ahead = at(3_600_000);
    let input = |offset, hops| Input::Record {
        position: position(tier(3), offset),
        appended: at(0).wall,
        task: Box::new(Task {
            hops,
            ..task("a", at(3_640_000))
        }),
    };
    let hops = |actions: &[Action]| {
        matches!(
            actions,
            [Action::Settle(Settlement { entries, .. })] if matches!(entries[0], Entry::Park { tier: 3, .. })
        )
    };

    let few = bench.step(ahead, input(0, 39));
    let many = bench.step(ahead, input(1, 40));
    let before = bench.step(at(3_604_999), Input::Tick);
    let after = bench.step(at(3_605_000), Input::Tick);

    assert!(hops(&few), "{few:?}");
    assert_eq!((many, before), (vec![], vec![]));
    assert!(hops(&after), "{after:?}");
}

#[test]
fn a_record_too_far_beyond_the_open_ones_is_read_when_there_is_room() {
    let mut bench = Bench::new(scene(|scene| {
        scene.concurrency = NonZeroU32::new(1_000).unwrap();
    }));
    let mut called = Vec::new();
    for offset in 0..600 {
        called.extend(bench.record(at(0), TASKS, offset, task("open", at(0))));
    }

    // Between them lies what a transaction has written and aborted.
    let far = bench.record(at(0), TASKS, 30_000, task("far", at(0)));
    let before = bench.watermark(TASKS);
    for action in &called {
        bench.answer(at(1), std::slice::from_ref(action), Outcome::Success);
    }
    let commits = bench.engine.commits();
    let commit = commits.iter().find(|commit| commit.lane == TASKS).unwrap();
    let committed = Input::Committed {
        lane: TASKS,
        epoch: commit.epoch,
        watermark: commit.watermark,
    };
    let resumed = [
        bench.step(at(2), committed),
        bench.step(at(21), Input::Tick),
    ]
    .concat();

    assert_eq!(
        far,
        [Action::Pause {
            lane: TASKS,
            next: 30_000
        }]
    );
    assert_eq!((before, commit.watermark), (Some(0), 600));
    assert_eq!(
        resumed,
        [Action::Resume {
            lane: TASKS,
            run: 1
        }]
    );
}

#[test]
fn records_polled_before_a_pause_come_again() {
    let mut bench = Bench::new(scene(|_| {}));
    bench.record(at(0), tier(10), 0, task("a", at(86_400_000)));

    let stale = bench.record(at(0), tier(10), 1, task("b", at(0)));

    assert_eq!(stale, []);
    assert_eq!(bench.watermark(tier(10)), Some(0));
}

#[test]
fn a_closed_gate_holds_a_line_and_overflow_is_deferred_without_an_attempt() {
    let mut bench = Bench::new(scene(|scene| {
        scene.concurrency = NonZeroU32::MIN;
    }));
    let called = bench.record(at(0), TASKS, 0, task("first", at(0)));
    // Until a fifth of the offsets that a lane may have are open.
    for offset in 1..9_999 {
        let waits = bench.record(at(0), TASKS, offset, task("waits", at(0)));
        assert_eq!(waits, []);
    }
    let mut deferred = task("late", at(0));

    let overflow = bench.record(at(0), TASKS, 9_999, deferred.clone());
    let answered = bench.answer(at(1), &called, Outcome::Success);

    let (due, until) = (at(0).wall, at(5_000).wall);
    let deferral = Deferral::new(due, Wait::default(), until, Cause::Concurrency);
    deferred.deferral = Some(Box::new(deferral));
    deferred.hops = 1;
    let entries = vec![
        Entry::Park {
            tier: 1,
            to: None,
            task: Arc::new(deferred),
        },
        Entry::Event(Event {
            wait: Some(Wait::default()),
            ..told("late", at(0), Transition::Deferred { due, until })
        }),
    ];
    assert_eq!(overflow, [settle(TASKS, 9_999, entries)]);
    // The place of the first is the second's at once.
    assert!(matches!(
        &answered[..],
        [
            Action::Settle(Settlement { offset: 0, .. }),
            Action::Dispatch { .. }
        ]
    ));
}

#[test]
fn overflow_is_deferred_to_when_its_gate_is_expected_to_admit_it() {
    let mut bench = Bench::new(scene(|scene| {
        scene.rate = Some(Rate {
            limit: NonZeroU32::new(10).unwrap(),
            per: Duration::from_secs(1),
            burst: NonZeroU32::MIN,
        });
    }));
    for offset in 0..9_999 {
        bench.record(at(0), TASKS, offset, task("waits", at(0)));
    }

    let due = |actions: &[Action]| match actions {
        [Action::Settle(settlement)] => match &settlement.entries[0] {
            Entry::Park { task, .. } => task.wake(),
            other => panic!("{other:?}"),
        },
        other => panic!("{other:?}"),
    };
    let first = bench.record(at(0), TASKS, 9_999, task("late", at(0)));
    let second = bench.record(at(0), TASKS, 10_000, task("later", at(0)));

    // 9,999 are in line, ten of them a second; then these, one after the other.
    assert_eq!(due(&first), at(1_000_000).wall);
    assert_eq!(due(&second), at(1_000_100).wall);
}

/// A gate of one call with 10,000 tasks in line before it, and so many calls made that take this long; what offset comes next, and when.
fn line_of_10_000(calls: u64, takes: u64) -> (Bench, i64, Now) {
    let mut bench = Bench::new(scene(|scene| scene.concurrency = NonZeroU32::MIN));
    let mut called = bench.record(at(0), TASKS, 0, task("first", at(0)));
    for offset in 1..9_999 {
        bench.record(at(0), TASKS, offset, task("waits", at(0)));
    }
    let mut next = 9_999;
    for call in 1..=calls {
        let now = at(call * takes);
        called = bench.answer(now, &called, Outcome::Success).split_off(1);
        bench.record(now, TASKS, next, task("waits", at(0)));
        next += 1;
    }
    (bench, next, at(calls * takes))
}

/// How long a task is deferred that finds no place in line, in seconds.
fn deferred(bench: &mut Bench, now: Now, offset: i64) -> f64 {
    let overflow = bench.record(now, TASKS, offset, task("late", at(0)));
    let [Action::Settle(settlement)] = &overflow[..] else {
        panic!("one settlement expected, not {overflow:?}");
    };
    let Entry::Park { task, .. } = &settlement.entries[0] else {
        panic!("a parked task expected, not {settlement:?}");
    };
    task.wake().since(now.wall).as_secs_f64()
}

#[test]
fn overflow_of_a_gate_without_a_rate_is_back_before_its_calls_have_made_room_at_their_pace() {
    let (mut bench, offset, now) = line_of_10_000(5_000, 10);

    let wait = deferred(&mut bench, now, offset);

    // 10,000 are before it, which would take 100 s.
    assert!((50.0..70.0).contains(&wait), "{wait} s");
}

#[test]
fn a_pace_is_not_believed_for_much_longer_than_it_was_measured() {
    // The first call of a cold target says that the next tasks take an hour.
    let (mut bench, mut offset, now) = line_of_10_000(1, 360);
    for _ in 0..10_000 {
        let wait = deferred(&mut bench, now, offset);
        assert!((5.0..=10.001).contains(&wait), "{wait} s");
        offset += 1;
    }

    // However long it was measured: it may change.
    let (mut bench, offset, now) = line_of_10_000(600, 1_000);
    let wait = deferred(&mut bench, now, offset);

    assert!((120.0..=240.0).contains(&wait), "{wait} s");
}

#[test]
fn overflow_that_its_rate_cannot_admit_before_its_deadline_expires_at_once() {
    let mut bench = Bench::new(scene(|scene| {
        scene.rate = Some(Rate {
            limit: NonZeroU32::new(10).unwrap(),
            per: Duration::from_secs(1),
            burst: NonZeroU32::MIN,
        });
    }));
    // A line of a thousand seconds.
    for offset in 0..10_000 {
        bench.record(at(0), TASKS, offset, task("waits", at(0)));
    }
    let with_deadline = |millis| {
        let mut task = task("late", at(0));
        task.deadline = Some(at(millis).wall);
        task
    };

    let expired = bench.record(at(0), TASKS, 10_000, with_deadline(999_000));
    let in_time = bench.record(at(0), TASKS, 10_001, with_deadline(1_000_500));

    let [Action::Settle(expired)] = &expired[..] else {
        panic!("one settlement expected, not {expired:?}");
    };
    assert!(matches!(
        &expired.entries[..],
        [_, Entry::Callback(ended), _] if ended.terminal == Terminal::Expired && ended.attempts == 0
    ));
    // It comes back in time for its deadline, although others found no place before it.
    let [Action::Settle(in_time)] = &in_time[..] else {
        panic!("one settlement expected, not {in_time:?}");
    };
    assert!(matches!(
        &in_time.entries[..],
        [Entry::Park { task, .. }, _] if task.wake() == at(999_500).wall
    ));
}

#[test]
fn overflow_that_is_held_and_whose_deadline_stands_still_does_not_expire() {
    let mut bench = Bench::new(scene(|scene| {
        scene.rate = Some(Rate {
            limit: NonZeroU32::new(10).unwrap(),
            per: Duration::from_secs(1),
            burst: NonZeroU32::MIN,
        });
    }));
    let selector = Selector::new(Parts {
        ids: ["held".into()].into(),
        ..Parts::default()
    });
    let hold = Hold {
        name: "h".into(),
        selector: selector.unwrap(),
        deadlines: Deadlines::Stop,
        since: at(0).wall,
        released: None,
        ..Hold::of_exhausted(&"pay".into())
    };
    bench.step(at(0), Input::Holds([Arc::new(hold)].into_iter().collect()));
    // A line of a thousand seconds.
    for offset in 0..10_000 {
        bench.record(at(0), TASKS, offset, task("waits", at(0)));
    }
    let mut late = task("held", at(1_000));
    late.deadline = Some(at(60_000).wall);
    bench.record(at(0), TASKS, 10_000, late);

    let actions = bench.step(at(1_000), Input::Tick);

    let parked = actions.iter().find_map(|action| match action {
        Action::Settle(settlement) => settlement.entries.iter().find_map(Entry::parked),
        _ => None,
    });
    let (_, task) = parked.unwrap_or_else(|| panic!("parked, not {actions:?}"));
    let stopped = task.stopped.as_deref().unwrap();
    assert_eq!((&*task.id, stopped.since), ("held", Some(at(1_000).wall)));
}

#[test]
fn overflow_of_a_gate_of_unknown_pace_is_parked_no_longer_than_until_its_deadline() {
    let mut bench = Bench::new(scene(|scene| scene.concurrency = NonZeroU32::MIN));
    for offset in 0..9_999 {
        bench.record(at(0), TASKS, offset, task("waits", at(0)));
    }
    let mut soon = task("soon", at(0));
    soon.deadline = Some(at(5_500).wall);
    let mut later = task("later", at(0));
    later.deadline = Some(at(6_500).wall);

    let stays = bench.record(at(0), TASKS, 9_999, soon);
    let parked = bench.record(at(0), TASKS, 10_000, later);

    assert_eq!(stays, []);
    let [Action::Settle(parked)] = &parked[..] else {
        panic!("one settlement expected, not {parked:?}");
    };
    assert!(matches!(
        &parked.entries[..],
        [Entry::Park { task, .. }, _] if task.wake() == at(5_000).wall
    ));
}

#[test]
fn a_rate_opens_the_gate_when_it_said() {
    let mut bench = Bench::new(scene(|scene| {
        scene.rate = Some(Rate {
            limit: NonZeroU32::new(10).unwrap(),
            per: Duration::from_secs(1),
            burst: NonZeroU32::MIN,
        });
    }));
    bench.record(at(100), TASKS, 0, task("a", at(0)));
    bench.record(at(100), TASKS, 1, task("b", at(0)));

    assert_eq!(bench.engine.next_wake(), Some(at(200).wall));
    assert_eq!(bench.step(at(199), Input::Tick), []);
    let opened = bench.step(at(200), Input::Tick);
    assert!(matches!(&opened[..], [Action::Dispatch { .. }]));
}

#[test]
fn a_task_moves_to_a_shard_that_its_rate_belongs_to() {
    let rate = Rate {
        limit: NonZeroU32::new(10).unwrap(),
        per: Duration::from_secs(1),
        burst: NonZeroU32::MIN,
    };
    let mut bench = Bench::of_group(3, scene(|scene| scene.rate = Some(rate)));
    // Which of the three it is follows from the scene's name.
    let lane = |shard, source| LaneId { shard, source };
    let (elsewhere, there) = (lane(0, Source::Tasks), lane(1, Source::Tier(0)));
    for lane in [elsewhere, there] {
        let known = Completions::default();
        let start = 0;
        bench.step(at(0), Input::Assign { lane, start, known });
    }
    let mut task = task("a", at(0));

    let moved = bench.record(at(100), elsewhere, 0, task.clone());
    task.hops = 1;
    // How late it is so far goes with it.
    let wait = Wait {
        read: 100_000,
        ..Wait::default()
    };
    task.deferral = Some(Box::new(Deferral {
        until: at(100).wall,
        wait,
    }));
    let called = bench.record(at(100), there, 0, task.clone());

    let entries = vec![
        Entry::Park {
            tier: 0,
            to: Some(1),
            task: Arc::new(task),
        },
        event("a", at(100), Transition::Parked { due: at(0).wall }),
    ];
    assert_eq!(moved, [settle(elsewhere, 0, entries)]);
    assert!(matches!(&called[..], [Action::Dispatch { lane, .. }] if *lane == there));
}

#[test]
fn what_moves_to_another_shard_is_overdue_there_only_once_that_is_durable() {
    let rate = Rate {
        limit: NonZeroU32::new(1).unwrap(),
        per: Duration::from_mins(1),
        burst: NonZeroU32::new(1).unwrap(),
    };
    for is_durable in [false, true] {
        let mut bench = Bench::of_group(3, scene(|scene| scene.rate = Some(rate)));
        let lane = |shard| LaneId { shard, ..TASKS };
        for shard in [0, 1] {
            let (lane, start, known) = (lane(shard), 0, Completions::default());
            bench.step(at(0), Input::Assign { lane, start, known });
        }

        let moved = bench.record(at(100), lane(0), 0, task("a", at(0)));
        let told = bench.engine.overdue(at(10_000).wall);
        for commit in bench.engine.commits().into_iter().filter(|_| is_durable) {
            let Commit {
                lane,
                epoch,
                watermark,
                ..
            } = commit;
            let committed = Input::Committed {
                lane,
                epoch,
                watermark,
            };
            bench.step(at(200), committed);
        }
        bench.step(at(300), Input::Revoke { shard: 0 });
        bench.step(at(300), Input::Release { shard: 0 });

        assert_eq!(where_parked(&moved), Some(1));
        assert_eq!(told["pay"].tasks, 1);
        let left = bench.engine.overdue(at(10_000).wall);
        let left: Vec<u64> = left.values().map(|overdue| overdue.tasks).collect();
        let expected: &[u64] = if is_durable { &[1] } else { &[] };
        assert_eq!(left, expected, "durable: {is_durable}");
    }
}

#[test]
fn a_task_in_line_is_looked_at_again_when_another_shard_comes() {
    // Twelve attempts a minute over twelve shards: one a minute for each.
    let rate = Rate {
        limit: NonZeroU32::new(12).unwrap(),
        per: Duration::from_mins(1),
        burst: NonZeroU32::new(12).unwrap(),
    };
    let mut bench = Bench::of_group(12, scene(|scene| scene.rate = Some(rate)));
    let assign = |shard| Input::Assign {
        lane: LaneId { shard, ..TASKS },
        start: 0,
        known: Completions::default(),
    };
    bench.step(at(0), assign(0));
    bench.record(at(0), TASKS, 0, task("a", at(0)));
    let alone = bench.engine.next_wake();

    for shard in 1..12 {
        bench.step(at(30_000), assign(shard));
    }
    let together = bench.engine.next_wake();

    // What was saved up is half an attempt, and the rest comes twelve times as fast. It is asked a little before.
    assert_eq!(alone, Some(at(59_700).wall));
    let rounded = at(32_200).wall + Duration::from_micros(1);
    assert_eq!(together, Some(rounded));
}

#[test]
fn tasks_behind_a_long_line_move_to_the_other_shards_of_its_rate_in_turn_and_once() {
    let mut bench = Bench::of_group(12, scene(|scene| scene.rate = Some(fifty_a_second())));
    bench.assign(0);
    // One shard of twelve admits 41 in ten seconds.
    for offset in 0..42 {
        assert_eq!(bench.record(at(0), TASKS, offset, task("a", at(0))), []);
    }

    let moved: Vec<Option<i32>> = (42..66)
        .map(|offset| {
            let actions = bench.record(at(0), TASKS, offset, task("a", at(0)));
            where_parked(&actions)
        })
        .collect();
    let mut elsewhere = task("a", at(0));
    elsewhere.origin.partition = 5;
    let tier = LaneId {
        source: Source::Tier(0),
        ..TASKS
    };
    let stays = bench.record(at(0), tier, 0, elsewhere);

    // A twelfth of them stays.
    assert_eq!(moved.iter().filter(|to| to.is_none()).count(), 2);
    for shard in 1..12 {
        assert_eq!(moved.iter().filter(|to| **to == Some(shard)).count(), 2);
    }
    assert_eq!(stays, []);
}

#[test]
fn tasks_behind_a_long_line_move_however_many_are_due_at_once() {
    let mut bench = Bench::of_group(12, scene(|scene| scene.rate = Some(fifty_a_second())));
    bench.assign(0);
    for offset in 0..5_000 {
        bench.record(at(0), TASKS, offset, task("a", at(500)));
    }

    let moved = bench.settled_by(at(500));

    // Two are started, which half a second has saved up for, and 42 are in line when the others come: a twelfth of those stays.
    assert_eq!(moved, 4_543);
}

#[test]
fn overflow_is_deferred_however_much_is_due_at_once() {
    let mut bench = Bench::new(scene(|scene| scene.rate = Some(fifty_a_second())));
    for offset in 0..13_000 {
        bench.record(at(0), TASKS, offset, task("a", at(500)));
    }

    let deferred = bench.settled_by(at(500));

    // Until less than a fifth of the offsets that a lane may have are open: 9,999.
    assert_eq!(deferred, 3_001);
}

#[test]
fn the_gate_of_a_scene_that_is_taken_out_of_force_is_forgotten() {
    let gates = Arc::new(Gates::default());
    let limits = Limits::of(64 << 20);
    let mut engine = Engine::new(
        Ladder::default(),
        limits,
        Arc::clone(&gates),
        NonZeroU32::MIN,
    );
    let rules = scene(|_| {});
    engine.step(at(0), Input::Rules(rules.clone()), &mut Vec::new());
    let gate = Arc::downgrade(&gates.gate(rules.get("pay").unwrap()));

    engine.step(at(0), Input::Rules(rules), &mut Vec::new());
    let in_force = gate.upgrade().is_some();
    engine.step(at(0), Input::Rules(Scenes::default()), &mut Vec::new());

    assert!(in_force);
    assert!(gate.upgrade().is_none());
}

#[test]
fn what_is_said_of_a_task_that_moved_is_written_where_it_entered() {
    let mut bench = Bench::of_group(12, scene(|_| {}));
    bench.assign(0);
    let mut task = task("a", at(0));
    // Whoever can write to a tier can name any partition.
    task.origin.partition = 29;
    let tier = LaneId {
        source: Source::Tier(0),
        ..TASKS
    };

    let called = bench.record(at(0), tier, 0, task);
    let settled = bench.answer(at(1), &called, Outcome::Success);

    assert!(
        matches!(&settled[..], [Action::Settle(Settlement { lane, home: 5, .. })] if *lane == tier)
    );
}

#[test]
fn a_topic_target_is_settled_with_both_ends() {
    let mut bench = Bench::new(scene(|scene| {
        scene.target = Target::Produce {
            topic: "orders".into(),
        };
    }));
    let task = task("a", at(0));

    let settled = bench.record(at(0), TASKS, 0, task.clone());

    let [Action::Settle(settlement)] = &settled[..] else {
        panic!("one settlement expected, not {settled:?}");
    };
    let mut entries = vec![Entry::Deliver {
        topic: "orders".into(),
        task: Arc::new(task.clone()),
        deadline: None,
        wait: Wait::default(),
    }];
    let ended = end_of(&task, at(0), Terminal::Delivered, None, 1);
    entries.extend(read_late(ended, 0));
    assert_eq!(settlement.entries, entries);
    assert!(matches!(
        &settlement.otherwise[..],
        [Entry::Park { tier: 3, .. }, Entry::Event(_)]
    ));
}

/// How late the one call that is started is, by cause, in milliseconds.
fn waited(actions: &[Action]) -> Vec<(&'static str, u64)> {
    let mut waits = actions.iter().filter_map(|action| match action {
        Action::Dispatch { wait, .. } => Some(wait),
        _ => None,
    });
    let (Some(wait), None) = (waits.next(), waits.next()) else {
        panic!("one dispatch expected, not {actions:?}");
    };
    let parts = wait.by_cause().into_iter();
    let parts = parts.filter(|(_, micros)| *micros > 0);
    parts
        .map(|(cause, micros)| (cause, micros / 1_000))
        .collect()
}

#[test]
fn a_late_attempt_says_where_the_time_went() {
    let mut bench = Bench::new(scene(|scene| scene.concurrency = NonZeroU32::MIN));

    let read_late = bench.record(at(30), TASKS, 0, task("a", at(10)));
    // It comes before the gate 2 ms late, and stays there until the first call is back.
    bench.record(at(40), TASKS, 1, task("b", at(50)));
    bench.step(at(52), Input::Tick);
    let in_line = bench.answer(at(59), &read_late, Outcome::Success);
    let ticket = in_line.iter().find_map(|action| match action {
        Action::Dispatch { ticket, .. } => Some(*ticket),
        _ => None,
    });
    bench.step(
        at(60),
        Input::Attempted {
            ticket: ticket.unwrap(),
            outcome: Outcome::Success,
        },
    );
    // A second late, and nobody looked.
    bench.record(at(70), tier(0), 0, task("c", at(80)));
    let looked_late = bench.step(at(1_080), Input::Tick);

    assert_eq!(waited(&read_late), [("read", 20)]);
    assert_eq!(waited(&in_line), [("agenda", 2), ("concurrency", 7)]);
    assert_eq!(waited(&looked_late), [("agenda", 1_000)]);
}

#[test]
fn a_line_that_was_held_by_several_things_says_for_how_long_by_each() {
    // An attempt a second, one at a time.
    let rate = Rate {
        limit: NonZeroU32::MIN,
        per: Duration::from_secs(1),
        burst: NonZeroU32::MIN,
    };
    let mut bench = Bench::new(scene(|scene| {
        scene.concurrency = NonZeroU32::MIN;
        scene.rate = Some(rate);
    }));
    let first = bench.record(at(1_000), TASKS, 0, task("a", at(1_000)));
    bench.record(at(1_000), TASKS, 1, task("b", at(1_000)));

    // Its call comes back late; the rate has had an attempt to spare by then, but the first look is the one after.
    let second = bench.answer(at(3_500), &first, Outcome::Success);
    assert_eq!(second.len(), 2);
    bench.record(at(3_500), TASKS, 2, task("c", at(3_500)));
    let Action::Dispatch { ticket, .. } = second[1] else {
        panic!("a dispatch expected, not {second:?}");
    };
    let outcome = Outcome::Success;
    bench.step(at(3_700), Input::Attempted { ticket, outcome });
    // The rate opens at 4,500.
    let third = bench.step(at(4_600), Input::Tick);

    assert_eq!(waited(&second), [("concurrency", 2_500)]);
    let expected = [("agenda", 100), ("rate", 800), ("concurrency", 200)];
    assert_eq!(waited(&third), expected);
}

#[test]
fn a_task_that_was_due_before_its_lane_was_ours_says_so() {
    let mut bench = Bench::of_group(1, scene(|_| {}));
    let assign = Input::Assign {
        lane: TASKS,
        start: 0,
        known: Completions::default(),
    };
    bench.step(at(500), assign);

    let called = bench.record(at(600), TASKS, 0, task("a", at(100)));

    assert_eq!(waited(&called), [("rebalance", 400), ("read", 100)]);
}

#[test]
fn a_flood_fills_one_batch_at_a_time_and_holds_no_other_scene_back() {
    let topic = Target::Produce {
        topic: "paid".into(),
    };
    let mut scenes = scene(|scene| scene.concurrency = NonZeroU32::MAX);
    let flood = Scene {
        name: "flood".into(),
        host: None,
        target: topic,
        ..Scene::clone(scenes.get("pay").unwrap())
    };
    scenes.insert(flood);
    let limits = Limits {
        batch_tasks: 100,
        ..Limits::of(64 << 20)
    };
    let mut bench = Bench::limited(scenes, limits);
    let mut settled = Vec::new();
    for offset in 0..5_000 {
        // Of each fifty one is called, and one is not due yet and has to be parked.
        let mut task = task("a", at(1_000));
        match offset % 50 {
            48 => task.due = at(3_600_000).wall,
            49 => {}
            _ => task.scene = "flood".into(),
        }
        settled.extend(bench.record(at(0), TASKS, offset, task));
    }
    let mut batches = vec![settled.len()];

    let mut calls = 0;
    while batches.last() != Some(&0) {
        bench.engine.commits();
        let mut batch = 0;
        // As the drive does: whatever is to be done now, then a batch.
        while bench
            .engine
            .next_wake()
            .is_some_and(|wake| wake <= at(1_000).wall)
        {
            for action in bench.step(at(1_000), Input::Tick) {
                match action {
                    Action::Dispatch { .. } => calls += 1,
                    Action::Settle(_) => batch += 1,
                    other => panic!("{other:?}"),
                }
            }
        }
        assert_eq!(calls, 100, "called before the second batch");
        batches.push(batch);
    }

    assert_eq!(batches.iter().sum::<usize>(), 4_900);
    assert!(batches.iter().all(|batch| *batch <= 100), "{batches:?}");
}

#[test]
fn a_callback_is_delivered_only_where_its_scene_wants_it() {
    let wants_bad_ends = |scene: &mut Scene| {
        scene.callback = Some(Callback {
            target: Target::Call,
            breaker: None,
            on: vec![Terminal::Dead],
        });
    };
    for (outcome, terminal) in [
        (
            Outcome::Permanent(Failure::new("http-404", "")),
            Terminal::Dead,
        ),
        (Outcome::Success, Terminal::Delivered),
    ] {
        let mut bench = Bench::new(scene(wants_bad_ends));

        let called = bench.record(at(0), TASKS, 0, task("a", at(0)));
        let settled = bench.answer(at(1), &called, outcome);

        let [Action::Settle(settlement)] = &settled[..] else {
            panic!("one settlement expected, not {settled:?}");
        };
        let delivered = settlement.entries.iter().filter_map(|entry| match entry {
            Entry::DeliverCallback(ended) => Some(ended.terminal),
            _ => None,
        });
        let expected = Some(Terminal::Dead).filter(|dead| *dead == terminal);
        assert!(delivered.eq(expected), "{settlement:?}");
    }
}

#[test]
fn a_refused_delivery_to_a_topic_brings_the_callback_of_the_end_that_it_is() {
    let mut bench = Bench::new(scene(|scene| {
        scene.target = Target::Produce {
            topic: "orders".into(),
        };
        scene.policy.max_attempts = NonZeroU32::MIN;
        scene.callback = Some(Callback {
            target: Target::Call,
            breaker: None,
            on: Terminal::ALL.to_vec(),
        });
    }));

    let settled = bench.record(at(0), TASKS, 0, task("a", at(0)));

    let [Action::Settle(settlement)] = &settled[..] else {
        panic!("one settlement expected, not {settled:?}");
    };
    let ends = [&settlement.entries, &settlement.otherwise].map(|entries| match entries.last() {
        Some(Entry::DeliverCallback(ended)) => ended.terminal,
        other => panic!("a callback to deliver expected, not {other:?}"),
    });
    assert_eq!(ends, [Terminal::Delivered, Terminal::Dead]);
}

#[test]
fn the_delivery_of_a_callback_is_due_at_the_end_and_is_not_reported_again() {
    let mut bench = Bench::new(scene(|scene| {
        scene.callback = Some(Callback {
            target: Target::Call,
            breaker: None,
            on: Terminal::ALL.to_vec(),
        });
    }));
    let work = task("a", at(0));
    let delivery = ended(&work, at(1), Terminal::Delivered, None, 1).delivery();

    let called = bench.record(at(120), tier(0), 0, delivery);
    let settled = bench.answer(at(121), &called, Outcome::Success);

    let [Action::Settle(settlement)] = &settled[..] else {
        panic!("one settlement expected, not {settled:?}");
    };
    let [Entry::Event(event)] = &settlement.entries[..] else {
        panic!("one event expected, not {settlement:?}");
    };
    assert_eq!(event.kind, Kind::Callback);
    // It is due when the task ended.
    let wait = Wait {
        read: 119_000,
        ..Wait::default()
    };
    assert_eq!(event.wait, Some(wait));
}

#[test]
fn a_shard_that_leaves_starts_what_is_quick_and_nothing_that_may_hang() {
    let pay = Scene::clone(scene(|_| {}).iter().next().unwrap());
    let other = |name: &str| Scene {
        name: name.into(),
        ..pay.clone()
    };
    let scenes = [pay.clone(), other("quick"), other("unknown")];
    let of = |scene: &str, name: &str, due| Task {
        scene: scene.into(),
        ..task(name, due)
    };
    let mut bench = Bench::new(scenes.into_iter().collect());
    for (offset, scene) in [(0, "pay"), (1, "quick")] {
        let called = bench.record(at(0), TASKS, offset, of(scene, "known", at(0)));
        bench.answer(at(5), &called, Outcome::Success);
    }
    let hangs = bench.record(at(10), TASKS, 2, of("pay", "hangs", at(10)));

    bench.step(at(600), Input::Leave { shard: 0 });
    let same = bench.record(at(601), TASKS, 3, of("pay", "may hang", at(601)));
    let new = bench.record(at(602), TASKS, 4, of("unknown", "may, too", at(602)));
    let called = bench.record(at(603), TASKS, 5, of("quick", "does not", at(603)));
    let left = bench.engine.calls_left(0);
    bench.answer(at(610), &called, Outcome::Success);
    let one = bench.engine.calls_left(0);
    bench.answer(at(700), &hangs, Outcome::Success);
    let none = bench.engine.calls_left(0);

    assert_eq!((same, new), (vec![], vec![]));
    assert!(matches!(&called[..], [Action::Dispatch { .. }]));
    let calls = |before, since| Left { before, since };
    assert_eq!((left, one, none), (calls(1, 1), calls(1, 0), calls(0, 0)));
    // What was not started is open: the next owner reads it.
    assert_eq!(bench.watermark(TASKS), Some(3));
}

#[test]
fn a_scene_whose_calls_take_long_is_not_started_in_a_shard_that_leaves() {
    let mut bench = Bench::new(scene(|_| {}));
    let slow = bench.record(at(0), TASKS, 0, task("slow", at(0)));
    bench.answer(at(900), &slow, Outcome::Success);
    let before = bench.record(at(1_000), TASKS, 1, task("before", at(1_000)));

    bench.step(at(1_001), Input::Leave { shard: 0 });
    bench.answer(at(1_002), &before, Outcome::Success);
    let after = bench.record(at(1_003), TASKS, 2, task("after", at(1_003)));

    assert_eq!(after, []);
    assert_eq!(bench.engine.calls_left(0), Left::default());
}

#[test]
fn a_shard_is_drained_when_its_last_call_is_back() {
    let mut bench = Bench::new(scene(|_| {}));
    let called = bench.record(at(0), TASKS, 0, task("flies", at(0)));
    bench.record(at(0), TASKS, 1, task("waits", at(900)));

    let revoked = bench.step(at(1), Input::Revoke { shard: 0 });
    let read = bench.record(at(2), TASKS, 2, task("too late", at(0)));
    let ticked = bench.step(at(1_000), Input::Tick);
    let answered = bench.answer(at(1_001), &called, Outcome::Success);
    let watermark = bench.watermark(TASKS);
    bench.step(at(1_002), Input::Release { shard: 0 });

    assert_eq!((revoked, read, ticked), (vec![], vec![], vec![]));
    assert!(matches!(
        &answered[..],
        [
            Action::Settle(Settlement { offset: 0, .. }),
            Action::Drained { shard: 0 }
        ]
    ));
    // The one that waited is read again by the next owner.
    assert_eq!(watermark, Some(1));
    assert_eq!((bench.engine.open(), bench.engine.bytes()), (0, 0));
}

#[test]
fn a_call_that_returns_after_its_shard_was_given_away_is_ignored() {
    let mut bench = Bench::new(scene(|scene| scene.concurrency = NonZeroU32::MIN));
    let called = bench.record(at(0), TASKS, 0, task("a", at(0)));
    bench.step(at(0), Input::Revoke { shard: 0 });
    bench.step(at(0), Input::Release { shard: 0 });
    bench.assign(0);
    let again = bench.record(at(1), TASKS, 0, task("a", at(0)));

    let late = bench.answer(at(2), &called, Outcome::Success);

    // It gives its place back, and that is all.
    assert_eq!(again, []);
    assert!(matches!(&late[..], [Action::Dispatch { .. }]));
}

/// A step of a random history.
#[derive(Clone, Debug)]
enum Chance {
    /// A record is read from a lane.
    Read { lane: usize, due_in: i64 },
    /// The n-th call in flight comes back.
    Return { nth: usize, kind: usize },
    /// Time passes.
    Pass { millis: u64 },
    /// The shard is given away and taken again.
    Move,
    /// The rules change.
    Rules { concurrency: u32, limit: u32 },
}

fn chance() -> impl Strategy<Value = Chance> {
    prop_oneof![
        8 => (0_usize..6, -5_000_i64..100_000).prop_map(|(lane, due_in)| Chance::Read { lane, due_in }),
        6 => (0_usize..16, 0_usize..5).prop_map(|(nth, kind)| Chance::Return { nth, kind }),
        4 => (0_u64..20_000).prop_map(|millis| Chance::Pass { millis }),
        1 => Just(Chance::Move),
        // Half of the rates are so slow that commits keep what they save up.
        1 => (1_u32..6, prop_oneof![Just(1), 1_u32..50]).prop_map(|(concurrency, limit)| Chance::Rules { concurrency, limit }),
    ]
}

/// What a random history has shown so far.
#[derive(Default)]
struct History {
    /// Offsets read in this assignment and not settled.
    open: BTreeSet<(LaneId, i64)>,
    /// Calls in flight and the open offset they are for, if it is still ours.
    calls: BTreeMap<u64, Option<(LaneId, i64)>>,
    /// The next offset of each lane.
    ends: BTreeMap<LaneId, i64>,
    /// The run of each lane, and whether it is paused.
    runs: BTreeMap<LaneId, (u64, bool)>,
}

impl History {
    fn observe(&mut self, now: Now, actions: &[Action]) -> Result<(), TestCaseError> {
        for action in actions {
            match action {
                Action::Dispatch {
                    ticket, task, wait, ..
                } => {
                    prop_assert!(task.due <= now.wall, "early");
                    prop_assert_eq!(wait.total(), now.wall.since(task.due));
                    let place = task.id.split_once('/').map(|(lane, offset)| {
                        let lane = lane.parse::<usize>().unwrap();
                        (lane_of(lane), offset.parse::<i64>().unwrap())
                    });
                    prop_assert!(self.open.contains(&place.unwrap()));
                    prop_assert!(
                        !self.calls.values().any(|call| *call == place),
                        "called twice"
                    );
                    prop_assert!(self.calls.insert(*ticket, place).is_none());
                }
                Action::Settle(Settlement { lane, offset, .. }) => {
                    prop_assert!(
                        self.open.remove(&(*lane, *offset)),
                        "settled twice or never read"
                    );
                }
                Action::Pause { lane, next } => {
                    prop_assert_eq!(Some(next), self.ends.get(lane));
                    self.runs.entry(*lane).or_default().1 = true;
                }
                Action::Resume { lane, run } => {
                    self.runs.insert(*lane, (*run, false));
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
        Ok(())
    }

    /// What there is to commit is durable at once: an attempt may wait for that.
    fn commit(&mut self, bench: &mut Bench, now: Now) -> Result<(), TestCaseError> {
        for commit in bench.engine.commits() {
            let Commit {
                lane,
                epoch,
                watermark,
                completions,
                ..
            } = commit;
            for (_, offset) in self.open.iter().filter(|(of, _)| *of == lane) {
                prop_assert!(watermark <= *offset);
                prop_assert!(!completions.contains(*offset));
            }
            let actions = bench.step(
                now,
                Input::Committed {
                    lane,
                    epoch,
                    watermark,
                },
            );
            self.observe(now, &actions)?;
        }
        Ok(())
    }
}

fn lane_of(index: usize) -> LaneId {
    [TASKS, tier(0), tier(1), tier(3), tier(4), tier(5)][index]
}

proptest! {
    #[test]
    fn every_offset_is_settled_once_never_early_and_no_commit_passes_an_open_one(chances in prop::collection::vec(chance(), 1..120)) {
        let mut bench = Bench::new(scene(|_| {}));
        let mut history = History::default();
        let mut millis = 0;

        for chance in chances {
            let now = at(millis);
            let input = match chance {
                Chance::Read { lane: index, due_in } => {
                    let lane = lane_of(index);
                    let (run, paused) = history.runs.get(&lane).copied().unwrap_or_default();
                    if paused {
                        continue;
                    }
                    let end = history.ends.entry(lane).or_default();
                    let offset = *end;
                    *end += 1;
                    history.open.insert((lane, offset));
                    let due = at(millis.saturating_add_signed(due_in));
                    let task = Box::new(task(&format!("{index}/{offset}"), due));
                    Input::Record { position: Position { lane, run, offset }, appended: now.wall, task }
                }
                Chance::Return { nth, kind } => {
                    let Some(ticket) = history.calls.keys().nth(nth).copied() else { continue };
                    history.calls.remove(&ticket);
                    let failure = Failure::new("x", "y");
                    let outcome = match kind {
                        0 | 1 => Outcome::Success,
                        2 => Outcome::Retryable(failure),
                        3 => Outcome::Permanent(failure),
                        _ => Outcome::Throttled { after: Duration::from_secs(3), failure },
                    };
                    Input::Attempted { ticket, outcome }
                }
                Chance::Pass { millis: more } => {
                    millis += more;
                    Input::Tick
                }
                Chance::Move => {
                    let actions = bench.step(now, Input::Revoke { shard: 0 });
                    history.observe(now, &actions)?;
                    bench.step(now, Input::Release { shard: 0 });
                    prop_assert_eq!((bench.engine.open(), bench.engine.bytes()), (0, 0));
                    // What was open is read again under new offsets: the test's lanes never go back.
                    let start = history.ends.values().max().copied().unwrap_or_default();
                    bench.assign(start);
                    history.open.clear();
                    history.runs.clear();
                    history.calls.values_mut().for_each(|call| *call = None);
                    history.ends.clear();
                    for index in 0..6 {
                        history.ends.insert(lane_of(index), start);
                    }
                    continue;
                }
                Chance::Rules { concurrency, limit } => Input::Rules(scene(|scene| {
                    scene.concurrency = NonZeroU32::new(concurrency).unwrap();
                    scene.rate = Some(Rate {
                        limit: NonZeroU32::new(limit).unwrap(),
                        per: Duration::from_secs(1),
                        burst: NonZeroU32::MIN,
                    });
                })),
            };
            let now = at(millis);
            let actions = bench.step(now, input);
            history.observe(now, &actions)?;
            history.commit(&mut bench, now)?;
            prop_assert_eq!(bench.engine.open(), history.open.len());
        }

        // Left alone, everything comes to its end: no task is forgotten.
        for _ in 0..2_000 {
            if history.open.is_empty() {
                break;
            }
            let wake = bench.engine.next_wake().map_or(0, |wake| wake.as_millis().saturating_sub(START) + 1);
            millis = wake.max(millis + 1);
            let actions = bench.step(at(millis), Input::Tick);
            history.observe(at(millis), &actions)?;
            history.commit(&mut bench, at(millis))?;
            for ticket in history.calls.keys().copied().collect::<Vec<_>>() {
                history.calls.remove(&ticket);
                let actions = bench.step(at(millis), Input::Attempted { ticket, outcome: Outcome::Success });
                history.observe(at(millis), &actions)?;
            }
        }
        prop_assert!(history.open.is_empty(), "{:?} never ended", history.open);
        prop_assert_eq!(bench.engine.bytes(), 0);
    }
}
