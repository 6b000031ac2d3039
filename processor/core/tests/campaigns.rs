//! What a task looks like that is played back from its dead letter, and which letters are.

mod support;

use std::num::NonZeroU32;
use std::sync::Arc;

use retide_core::campaign::{
    Campaign, Id, Ineligible, LEADER, LINK, Letter, Replay, Request, STRIPPED, STRIPPED_PREFIXES,
    Spec, Verb, replayed,
};
use retide_core::completions::Completions;
use retide_core::control::{Control, Place};
use retide_core::lane::Limits;
use retide_core::ramp::{FAILURE_RATE, Ramp, STEPS};
use retide_core::step::{LetterPurpose, LetterSlice, Letters, ReadLetters};
use retide_core::task::{Exhausted, Name};
use retide_core::{
    Action, Digest, Engine, Entry, Failure, Fate, Gates, Header, Input, Ladder, LaneId, Omitted,
    Position, Record, Returned, Settlement, Sink, Source, Task, Timestamp,
};

/// When the letter is played back.
const NOW: Timestamp = Timestamp::from_millis(9_000);

fn header(name: &str, value: &str) -> Header {
    Header {
        name: Name::from(name.as_bytes()),
        value: Some(value.to_owned().into()),
    }
}

/// A campaign that only says how fast it goes.
fn spec() -> Spec {
    Spec {
        selector: None,
        died: None,
        ramp: Ramp::try_new(&STEPS, FAILURE_RATE).unwrap(),
        rate: None,
        scene: None,
        set_headers: Vec::new(),
        remove_headers: Vec::new(),
        edit: None,
        include_new: false,
        keep_deadline: false,
    }
}

/// The task of a letter, with these headers of its producer.
fn letter(headers: &[(&str, &str)]) -> Task {
    let mut task = support::task("order-7", "pay", Timestamp::from_millis(5_000));
    let headers = headers.iter().map(|(name, value)| header(name, value));
    task.record.headers = headers.collect();
    Task {
        attempt: 4,
        first_failed_at: Timestamp::from_millis(1_000),
        deadline: Some(Timestamp::from_millis(60_000)),
        failure: Some(Failure::new("http-503", "busy")),
        throttled: 2,
        hops: 9,
        exhausted: Some(Box::new(Exhausted {
            at: Timestamp::from_millis(4_000),
            attempts: 3,
            is_held: false,
        })),
        ..task
    }
}

fn play(letter: &Task, spec: &Spec) -> Task {
    let place = Place {
        at: NOW,
        partition: 0,
        offset: 3,
    };
    let campaign = Id {
        place,
        name: "mend".into(),
    };
    replayed(letter.clone(), spec, Replay { campaign, times: 2 }, NOW)
}

/// Names and values of its headers, in their order.
fn headers(task: &Task) -> Vec<(String, String)> {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    let all = task.record.headers.iter();
    all.map(|header| {
        let value = header.value.as_deref().unwrap_or_default();
        (text(header.name.as_bytes()), text(value))
    })
    .collect()
}

fn named(all: &[(&str, &str)]) -> Vec<(String, String)> {
    let all = all.iter();
    all.map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
        .collect()
}

#[test]
fn identity_and_payload_stay_and_all_else_begins_anew() {
    let before = letter(&[("order-no", "7"), ("order-no", "8")]);

    let after = play(&before, &spec());

    assert_eq!((&after.id, &after.scene), (&before.id, &before.scene));
    assert_eq!(after.origin, before.origin);
    assert_eq!(after.record, before.record);
    assert_eq!((after.attempt, after.due), (1, NOW));
    assert_eq!((after.first_failed_at, after.deadline), (NOW, None));
    assert_eq!((after.failure, after.exhausted), (None, None));
    assert_eq!((after.throttled, after.hops), (0, 0));
    let replay = after.replay.unwrap();
    assert_eq!((&*replay.campaign.name, replay.times), ("mend", 2));
}

#[test]
fn a_campaign_may_keep_deadlines_and_name_another_scene() {
    let before = letter(&[]);
    let spec = Spec {
        scene: Some("mended".into()),
        keep_deadline: true,
        ..spec()
    };

    let after = play(&before, &spec);

    assert_eq!(&*after.scene, "mended");
    assert_eq!(after.deadline, before.deadline);
    assert_eq!(after.first_failed_at, before.first_failed_at);
}

#[test]
fn what_belongs_to_one_way_of_a_record_does_not_travel_twice() {
    for name in STRIPPED.iter().chain(&STRIPPED_PREFIXES) {
        for name in [name.to_string(), name.to_uppercase()] {
            let before = letter(&[("kept", "1"), (&name, "secret")]);

            let mut left = headers(&play(&before, &spec()));

            // The trace goes on as a link.
            left.retain(|(name, _)| name != LINK);
            assert_eq!(left, named(&[("kept", "1")]), "{name}");
        }
    }
    let kept = [
        ("kafka_dlt-original-topic", "orders"),
        ("x-authorization", "1"),
        ("mm3", "1"),
    ];
    assert_eq!(headers(&play(&letter(&kept), &spec())), named(&kept));
}

#[test]
fn the_trace_of_the_last_life_is_a_link_however_often_a_task_is_replayed() {
    let first = play(
        &letter(&[("traceparent", "00-1"), ("tracestate", "a=b")]),
        &spec(),
    );
    assert_eq!(headers(&first), named(&[(LINK, "00-1")]));

    // Without a trace of its own, it keeps the link that it has.
    let second = play(&first, &spec());
    assert_eq!(headers(&second), named(&[(LINK, "00-1")]));

    let mut third = second;
    third.record.headers.push(header("Traceparent", "00-2"));
    assert_eq!(headers(&play(&third, &spec())), named(&[(LINK, "00-2")]));
}

#[test]
fn headers_are_set_and_removed_by_name_in_any_case() {
    let before = letter(&[
        ("Tenant", "1"),
        ("tenant", "2"),
        ("Region", "eu"),
        ("kept", "1"),
    ]);
    let spec = Spec {
        set_headers: vec![header("tenant", "7"), header("new", "1")],
        remove_headers: vec![Name::from(b"region".as_slice())],
        ..spec()
    };

    let after = play(&before, &spec);

    let expected = named(&[("kept", "1"), ("tenant", "7"), ("new", "1")]);
    assert_eq!(headers(&after), expected);
    assert!(Arc::ptr_eq(&after.id, &before.id));
}

/// The lane that the records of campaigns stand in.
const COMMANDS: LaneId = LaneId {
    shard: LEADER,
    source: Source::Commands,
};

/// An engine that leads a campaign, and the letters of partition 0.
struct Bench {
    engine: Engine,
    letters: Vec<Letter>,
    /// The commands topic.
    log: Vec<Control>,
    /// How many of it were read.
    read: usize,
    /// What was replayed.
    parked: Vec<Arc<Task>>,
    /// The task whose record no topic takes, and how often one was refused.
    refused: (&'static str, usize),
    /// Milliseconds since the start.
    now: u64,
}

// === impl Bench ===

impl Bench {
    /// A campaign that means all of these letters, and takes many at once, has begun.
    fn new(letters: Vec<Letter>) -> Self {
        let shards = NonZeroU32::new(4).unwrap();
        let ladder = Ladder::try_new(&["now", "5s"]).unwrap();
        let gates = Arc::new(Gates::default());
        let mut bench = Self {
            engine: Engine::new(ladder, Limits::of(1 << 20), gates, shards),
            letters,
            log: Vec::new(),
            read: 0,
            parked: Vec::new(),
            refused: ("", 0),
            now: 0,
        };
        for source in [
            Source::Tasks,
            Source::Tier(0),
            Source::Tier(1),
            Source::Commands,
        ] {
            let (start, known) = (0, Completions::default());
            let shard = LEADER;
            let lane = LaneId { shard, source };
            bench.step(Input::Assign { lane, start, known });
        }
        let place = Place {
            at: support::at(0).wall,
            partition: LEADER,
            offset: 0,
        };
        bench.log.push(Control::Ask(Arc::new(Request {
            place,
            id: "ask".into(),
            name: "mend".into(),
            verb: Verb::Start(Arc::new(Spec {
                ramp: Ramp::try_new(&[100], FAILURE_RATE).unwrap(),
                ..spec()
            })),
            by: "".into(),
            reason: "".into(),
        })));
        bench
    }

    /// Goes on until the campaign has looked at all letters, and is written so; the campaign.
    fn run(&mut self) -> Campaign {
        let end = i64::try_from(self.letters.len()).unwrap();
        for _ in 0..100 {
            while let Some(control) = self.log.get(self.read).cloned() {
                let offset = i64::try_from(self.read).unwrap();
                let position = Position {
                    lane: COMMANDS,
                    run: 0,
                    offset,
                };
                self.read += 1;
                let control = Ok(control);
                self.step(Input::Control { position, control });
            }
            self.now += 1_000;
            self.step(Input::Tick);
            let last = self.log.iter().rev().find_map(|control| match control {
                Control::Campaign(campaign) => Some(&**campaign),
                _ => None,
            });
            if let Some(campaign) = last
                && campaign.parts.iter().any(|part| part.next >= end)
            {
                return campaign.clone();
            }
        }
        panic!("it stands still");
    }

    /// Takes a step, writes what follows, and gives the letters that are asked for.
    fn step(&mut self, input: Input) {
        let mut inputs = vec![input];
        while let Some(input) = inputs.pop() {
            let mut actions = Vec::new();
            self.engine.step(support::at(self.now), input, &mut actions);
            for action in actions {
                match action {
                    Action::ReadLetters(read) => inputs.push(Input::Letters(self.answer(&read))),
                    Action::Settle(settlement) if self.refuses(&settlement) => {
                        self.refused.1 += 1;
                        let failure = Failure::new("too-large", "2 MB");
                        let lanes = self.engine.commits().into_iter();
                        let changes = self.engine.changes().into_iter();
                        inputs.push(Input::Returned(Box::new(Returned {
                            lanes: lanes.map(|of| (of.lane, of.epoch)).collect(),
                            settlements: vec![(settlement, Fate::Refused(Sink::Tiers, failure))],
                            changes: changes.map(|(shard, of)| (shard, of.key())).collect(),
                            ..Returned::default()
                        })));
                    }
                    Action::Settle(Settlement { entries, .. }) => {
                        for entry in entries {
                            match entry {
                                Entry::Control { control, .. } => self.log.push(*control),
                                Entry::Park { task, .. } => self.parked.push(task),
                                _ => {}
                            }
                        }
                    }
                    _ => {}
                }
            }
        }
    }

    /// Whether what is written has a record that no topic takes.
    fn refuses(&self, settlement: &Settlement) -> bool {
        let mut parked = settlement.entries.iter().filter_map(|entry| match entry {
            Entry::Park { task, .. } => Some(task),
            _ => None,
        });
        parked.any(|task| &*task.id == self.refused.0)
    }

    /// The letters that are asked for.
    fn answer(&self, read: &ReadLetters) -> Letters {
        assert!(matches!(read.purpose, LetterPurpose::Replay { .. }));
        let end = i64::try_from(self.letters.len()).unwrap();
        let (from, to) = match read.wants[..] {
            [] => (0, 0),
            [want] => (want.from, want.to.unwrap_or(end)),
            _ => panic!("{read:?}"),
        };
        let letters = self.letters.iter();
        let letters = letters.filter(|letter| (from..to).contains(&letter.offset));
        Letters {
            number: read.number,
            slices: vec![LetterSlice {
                partition: 0,
                first: 0,
                next: to,
                end,
                unread: 0,
            }],
            letters: letters.cloned().collect(),
        }
    }
}

#[test]
fn a_letter_whose_payload_was_not_found_is_counted_with_why_and_stops_nothing() {
    let why = [
        Some(Ineligible::OriginGone),
        Some(Ineligible::OriginDenied),
        Some(Ineligible::Omitted),
        None,
        Some(Ineligible::OriginGone),
    ];
    let mut bench = Bench::new(letters(why));

    let campaign = bench.run();

    let mut expected = [0; Ineligible::ALL.len()];
    expected[Ineligible::OriginGone.index()] = 2;
    expected[Ineligible::OriginDenied.index()] = 1;
    expected[Ineligible::Omitted.index()] = 1;
    assert_eq!(campaign.counts.ineligible, expected);
    assert_eq!(campaign.counts.replayed, 1);
    let parked: Vec<&str> = bench.parked.iter().map(|task| &*task.id).collect();
    assert_eq!(parked, ["task-3"]);
}

/// Letters of partition 0, as many as `eligible` has.
fn letters(eligible: impl IntoIterator<Item = Option<Ineligible>>) -> Vec<Letter> {
    let letters = eligible.into_iter().zip(0..);
    let letters = letters.map(|(ineligible, offset)| Letter {
        partition: 0,
        offset,
        at: support::at(0).wall,
        task: Box::new(support::task(
            &format!("task-{offset}"),
            "pay",
            support::at(0).wall,
        )),
        ineligible,
        others: Vec::new(),
    });
    letters.collect()
}

#[test]
fn a_letter_that_no_topic_takes_is_counted_and_the_others_are_replayed_in_their_order() {
    let mut bench = Bench::new(letters([None; 5]));
    bench.refused.0 = "task-2";

    let campaign = bench.run();

    let parked: Vec<&str> = bench.parked.iter().map(|task| &*task.id).collect();
    assert_eq!(parked, ["task-0", "task-1", "task-3", "task-4"]);
    assert_eq!(campaign.counts.replayed, 4);
    let mut expected = [0; Ineligible::ALL.len()];
    expected[Ineligible::Refused.index()] = 1;
    assert_eq!(campaign.counts.ineligible, expected);
    assert_eq!(campaign.parts[0].next, 5);
    // With others, and alone.
    assert_eq!(bench.refused.1, 2);
    let log = campaign.log.iter().map(|line| &*line.text);
    let log: Vec<&str> = log.filter(|text| text.contains("not replayed")).collect();
    assert_eq!(log, ["letter 0/2 not replayed: too-large: 2 MB"]);
}

#[test]
fn what_a_letter_leaves_out_has_a_digest_of_its_value_and_then_of_its_headers_too() {
    let headers = vec![header("order-no", "7")];
    let mut record = Record {
        value: Some("order 7".into()),
        headers: headers.clone(),
        ..Record::default()
    };
    let value = Digest::of_value(Some(b"order 7"));
    let both = value.with_headers(&headers);

    let first = Omitted::Nothing.more(&mut record);
    assert_eq!((first, record.value.take()), (Omitted::Value(value), None));
    assert_eq!(record.headers, headers);
    let second = first.more(&mut record);
    assert_eq!(
        (second, &record),
        (Omitted::Record(Some(both)), &Record::default())
    );
    assert_eq!(second.more(&mut record), second);
    assert_eq!(Omitted::Record(None).more(&mut record).digest(), None);
}
