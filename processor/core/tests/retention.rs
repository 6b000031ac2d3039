//! Dead letters that their topic is about to delete: who is told of them, when, and how often.

mod support;

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use retide_core::campaign::{LEADER, Letter};
use retide_core::completions::Completions;
use retide_core::entry::{DEAD_LETTERS_EXPIRE, Expiring};
use retide_core::lane::Limits;
use retide_core::step::{LetterSlice, LetterWant, Letters, LettersKept, ReadLetters};
use retide_core::taken::Taken;
use retide_core::{
    Action, Alert, Engine, Gates, Input, Ladder, LaneId, Now, Returned, Source, State, StateKey,
    Timestamp,
};

/// How long letters are kept.
const KEPT: Duration = Duration::from_hours(30 * 24);

/// A day.
const DAY: Duration = Duration::from_hours(24);

/// When the first letter died.
const DIED: Timestamp = Timestamp::from_millis(1_700_000_000_000);

/// An engine that leads campaigns, and the letters of partition 3.
struct Bench {
    engine: Engine,
    /// When each died, by offset; none where it is no letter.
    letters: Vec<Option<Timestamp>>,
    /// What is written.
    states: Vec<State>,
    now: Timestamp,
}

// === impl Bench ===

impl Bench {
    /// An engine that is told of letters a day before they go, and what it knows of former owners.
    fn new(now: Timestamp, marks: Taken, warned: Option<Timestamp>) -> Self {
        let shards = NonZeroU32::new(4).unwrap();
        let gates = Arc::new(Gates::default());
        let engine = Engine::new(Ladder::default(), Limits::of(1 << 20), gates, shards);
        let mut bench = Self {
            engine,
            letters: Vec::new(),
            states: Vec::new(),
            now,
        };
        bench.step(Input::ReplayedKnown {
            shard: LEADER,
            marks: vec![(3, marks)],
            warned: warned.map(|at| (3, at)).into_iter().collect(),
        });
        let lane = LaneId {
            shard: LEADER,
            source: Source::Tasks,
        };
        let (start, known) = (0, Completions::default());
        bench.step(Input::Assign { lane, start, known });
        bench
    }

    /// The letters are kept so long from now on; what is said by the end of the look that follows.
    fn kept(&mut self, keeps: Duration) -> Vec<(i32, Box<Alert>)> {
        let kept = LettersKept {
            keeps,
            warn_before: DAY,
        };
        let actions = self.step(Input::LettersKept(Some(kept)));
        self.answer(actions)
    }

    /// What is said by the end of the look that is due then.
    fn look(&mut self, now: Timestamp) -> Vec<(i32, Box<Alert>)> {
        self.now = now;
        let actions = self.step(Input::Tick);
        self.answer(actions)
    }

    /// Gives the engine what it asks for, and writes what it says.
    fn answer(&mut self, mut actions: Vec<Action>) -> Vec<(i32, Box<Alert>)> {
        while let Some(action) = actions.pop() {
            let Action::ReadLetters(read) = action else {
                panic!("{action:?}")
            };
            actions = self.step(Input::Letters(self.read(&read)));
        }
        let alerts = self.engine.alerts();
        let states = self.engine.changes().into_iter();
        self.states.extend(states.map(|(_, state)| state));
        alerts
    }

    /// What is asked for.
    fn read(&self, read: &ReadLetters) -> Letters {
        let end = self.letters.len() as i64;
        let all = LetterWant {
            partition: 3,
            from: 0,
            to: Some(0),
        };
        let want = read.wants.first().copied().unwrap_or(all);
        let to = want.to.unwrap_or(end);
        let mut letters = Vec::new();
        let mut next = want.from;
        while next < to && letters.len() < read.most as usize {
            letters.extend(self.letters[next as usize].map(|at| Letter {
                partition: 3,
                offset: next,
                at,
                task: Box::new(support::task(&format!("task-{next}"), "pay", at)),
                ineligible: None,
                others: Vec::new(),
            }));
            next += 1;
        }
        Letters {
            number: read.number,
            slices: vec![LetterSlice {
                partition: 3,
                first: 0,
                next,
                end,
                unread: 0,
            }],
            letters,
        }
    }

    fn step(&mut self, input: Input) -> Vec<Action> {
        let now = Now {
            wall: self.now,
            steady: self.now.since(DIED),
        };
        let mut actions = Vec::new();
        self.engine.step(now, input, &mut actions);
        actions
    }
}

/// What is said of letters: how many go, the first of them, and from when on that may be deleted.
fn said(alerts: &[(i32, Box<Alert>)]) -> Vec<(u32, &str, Expiring)> {
    let all = alerts.iter();
    all.map(|(shard, alert)| {
        assert_eq!((*shard, alert.rule), (LEADER, DEAD_LETTERS_EXPIRE));
        let first = alert.expiring.expect("what goes first");
        (alert.count, &*alert.example, first)
    })
    .collect()
}

/// The first letter that goes.
fn first(offset: i64, at: Timestamp) -> Expiring {
    Expiring {
        at,
        partition: 3,
        offset,
    }
}

/// Marks of these letters.
fn marks(offsets: &[i64]) -> Taken {
    let mut marks = Taken::default();
    for offset in offsets {
        marks.insert(*offset);
    }
    let _ = marks.changes().count();
    marks
}

#[test]
fn people_are_told_a_day_before_letters_go_and_once_a_day() {
    let begin = DIED + KEPT.saturating_sub(DAY);
    let mut bench = Bench::new(begin, marks(&[]), None);
    // A record that is no letter, two that go, and one that stays for a while.
    let second = DIED + Duration::from_mins(1);
    bench.letters = vec![None, Some(DIED), Some(second), Some(DIED + DAY)];

    assert_eq!(said(&bench.kept(KEPT)), []);
    assert_eq!(bench.states, []);
    let next = begin + Duration::from_mins(6);
    let told = bench.look(next);
    assert_eq!(said(&told), [(2, "task-1", first(1, DIED + KEPT))]);
    let warned = State::Warned {
        partition: 3,
        at: Some(next),
    };
    assert_eq!(bench.states, [warned]);
    assert_eq!(said(&bench.look(next + DAY / 2)), []);
    let told = bench.look(next + DAY + Duration::from_millis(1));
    assert_eq!(said(&told), [(3, "task-1", first(1, DIED + KEPT))]);

    // Whoever has the shard next knows of that.
    let mut other = Bench::new(next + DAY / 2, marks(&[]), Some(next));
    other.letters.clone_from(&bench.letters);
    assert_eq!(said(&other.kept(KEPT)), []);
}

#[test]
fn letters_that_were_replayed_do_not_count() {
    let mut bench = Bench::new(DIED + KEPT, marks(&[0, 2]), None);
    bench.letters = vec![Some(DIED); 3];
    assert_eq!(
        said(&bench.kept(KEPT)),
        [(1, "task-1", first(1, DIED + KEPT))]
    );

    let mut bench = Bench::new(DIED + KEPT, marks(&[0, 1, 2]), None);
    bench.letters = vec![Some(DIED); 3];
    assert_eq!(said(&bench.kept(KEPT)), []);
}

#[test]
fn of_many_letters_it_is_said_that_there_are_at_least_so_many() {
    let mut bench = Bench::new(DIED + KEPT, marks(&[]), None);
    bench.letters = vec![Some(DIED); 2_500];

    let told = bench.kept(KEPT);

    assert_eq!(said(&told), [(1_000, "task-0", first(0, DIED + KEPT))]);
}

#[test]
fn where_letters_are_kept_for_a_short_time_a_tenth_of_it_is_left() {
    let keeps = Duration::from_secs(100);
    let mut bench = Bench::new(DIED + Duration::from_secs(90), marks(&[]), None);
    bench.letters = vec![Some(DIED)];

    assert_eq!(said(&bench.kept(keeps)), []);
    let told = bench.look(DIED + Duration::from_secs(93));

    assert_eq!(said(&told), [(1, "task-0", first(0, DIED + keeps))]);
}

#[test]
fn nobody_is_told_where_nothing_is_deleted_or_nobody_wants_it() {
    let mut bench = Bench::new(DIED + KEPT, marks(&[]), None);
    bench.letters = vec![Some(DIED)];
    let unwanted = LettersKept {
        keeps: KEPT,
        warn_before: Duration::ZERO,
    };

    for kept in [None, Some(unwanted)] {
        assert_eq!(bench.step(Input::LettersKept(kept)), []);
        assert_eq!(said(&bench.look(DIED + KEPT + DAY)), []);
    }
}

#[test]
fn an_alert_that_was_not_written_is_told_again_with_its_time() {
    let mut bench = Bench::new(DIED + KEPT, marks(&[]), None);
    bench.letters = vec![Some(DIED)];
    let alerts = bench.kept(KEPT);
    assert_eq!(alerts.len(), 1);
    let returned = Returned {
        changes: vec![(LEADER, StateKey::Warned(3))],
        alerts: alerts.clone(),
        ..Returned::default()
    };

    let actions = bench.step(Input::Returned(Box::new(returned)));
    let again = bench.answer(actions);

    assert_eq!(again, alerts);
    assert_eq!(bench.states.len(), 2);
    assert_eq!(bench.states[0], bench.states[1]);
}
