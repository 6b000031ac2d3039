//! What is read of dead letters: those of retide, of earlier versions, and of strangers.

use bytes::Bytes;
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use retide_avro::headers::{
    ERROR_HOST, FINGERPRINT, OMITTED_XXH3, ingest, write_dead_letter, write_poison,
};
use retide_avro::letter::{self, Letter, Read};
use retide_avro::{Arrival, Intake};
use retide_core::campaign::{Edit, Ineligible, Spec};
use retide_core::ramp::{FAILURE_RATE, Ramp, STEPS};
use retide_core::selector::{ErrorFingerprint, Span};
use retide_core::{
    Digest, Ended, Failure, Header, Kind, Omitted, Origin, Reason, Record, Task, Terminal,
    Timestamp,
};

fn now() -> Timestamp {
    Timestamp::from_millis(1_700_000_000_000)
}

fn origin() -> Origin {
    Origin {
        topic: "retry.tasks".into(),
        partition: 3,
        offset: 42,
    }
}

fn header(name: &str, value: &[u8]) -> Header {
    Header {
        name: name.as_bytes().into(),
        value: Some(Bytes::copy_from_slice(value)),
    }
}

fn record(headers: &[(&str, &[u8])]) -> Record {
    Record {
        key: Some(Bytes::from_static(b"key")),
        value: Some(Bytes::from_static(b"value")),
        headers: headers
            .iter()
            .map(|(name, value)| header(name, value))
            .collect(),
    }
}

fn failure() -> Failure {
    Failure::new("http-503", "Service Unavailable").of_host(Some("shop.example".into()))
}

fn task() -> Task {
    let record = record(&[
        ("retry-scene", b"pay"),
        ("retry-id", b"order-7"),
        ("retry-deadline-at", b"1700000900000"),
        ("order-no", b"4711"),
    ]);
    Task {
        failure: Some(failure()),
        ..ingest(record, origin(), now()).unwrap()
    }
}

/// The digest of the value that its letter leaves out.
fn digest() -> Digest {
    Digest::of_value(Some(b"value"))
}

fn ended(task: &Task) -> Ended {
    Ended {
        id: task.id.clone(),
        scene: task.scene.clone(),
        kind: task.kind,
        terminal: Terminal::Dead,
        reason: Some(Reason::AttemptsExhausted),
        attempts: 16,
        origin: task.origin.clone(),
        first_failed_at: task.first_failed_at,
        at: now(),
        failure: task.failure.clone(),
        key: task.record.key.clone(),
        omitted: Omitted::Value(digest()),
    }
}

/// The record of a dead letter, with these headers before retide's.
fn written(write: impl FnOnce(&mut dyn FnMut(&[u8], Option<&[u8]>))) -> Record {
    let mut headers = Vec::new();
    write(&mut |name, value| {
        headers.push(Header {
            name: name.into(),
            value: value.map(Bytes::copy_from_slice),
        });
    });
    Record {
        headers,
        ..record(&[])
    }
}

#[test]
fn a_dead_letter_is_read_as_it_was_written() {
    let (task, ended) = (task(), ended(&task()));

    let letter = Letter::of(&written(|sink| write_dead_letter(&task, &ended, sink)));

    let failure = failure();
    let expected = Letter {
        id: "order-7".into(),
        scene: "pay".into(),
        kind: Kind::Work,
        outcome: Terminal::Dead,
        reason: Some("attempts-exhausted".into()),
        fingerprint: Some(ErrorFingerprint::of("pay", &failure)),
        failure: Some(failure),
        attempts: Some(16),
        entered: Some(now()),
        due: Some(now()),
        deadline: Some(Timestamp::from_millis(1_700_000_900_000)),
        origin: Some(origin()),
        omitted: Some("value".into()),
        digest: Some(digest()),
        replay: None,
        is_poison: false,
    };
    assert_eq!(letter, Some(expected));
}

#[test]
fn the_fingerprint_of_a_letter_stands_in_its_header_and_without_it_is_the_same() {
    let (task, ended) = (task(), ended(&task()));
    let mut record = written(|sink| write_dead_letter(&task, &ended, sink));
    let is_it = |header: &Header| header.name.as_bytes() == FINGERPRINT.as_bytes();

    let said = record.headers.iter().find(|header| is_it(header)).cloned();
    record.headers.retain(|header| !is_it(header));

    let print = ended.fingerprint().unwrap();
    let said = said.and_then(|header| header.value).unwrap();
    assert_eq!(said, print.to_string().as_bytes());
    assert_eq!(Letter::of(&record).unwrap().fingerprint, Some(print));
    // What another version has written counts.
    record
        .headers
        .push(header(FINGERPRINT, b"00000000000000ff"));
    let letter = Letter::of(&record).unwrap();
    assert_eq!(
        letter.fingerprint,
        ErrorFingerprint::parse("00000000000000ff")
    );
    record.headers.push(header(FINGERPRINT, b"none"));
    assert_eq!(Letter::of(&record).unwrap().fingerprint, Some(print));
    // Earlier versions wrote no host, and had none in their fingerprints.
    let is_host = |header: &Header| header.name.as_bytes() == ERROR_HOST.as_bytes();
    record.headers.retain(|header| !is_host(header));
    let before = ErrorFingerprint::of("pay", &failure().of_host(None));
    assert_eq!(Letter::of(&record).unwrap().fingerprint, Some(before));
}

#[test]
fn an_end_without_a_failure_has_the_fingerprint_of_its_reason() {
    let ended = Ended {
        terminal: Terminal::Expired,
        reason: Some(Reason::DeadlinePassed),
        failure: None,
        ..ended(&task())
    };

    let print = ErrorFingerprint::of("pay", &Failure::new("deadline-passed", ""));

    assert_eq!(ended.fingerprint(), Some(print));
    let delivered = Ended {
        terminal: Terminal::Delivered,
        reason: None,
        ..ended
    };
    assert_eq!(delivered.fingerprint(), None);
}

#[test]
fn of_names_that_a_record_had_before_the_last_counts() {
    let poison = ingest(
        record(&[
            ("retry-scene", b"pay"),
            ("Retry-Id", b"\xff\xfe"),
            ("retry-outcome", b"delivered"),
            ("retry-fingerprint", b"00000000000000ff"),
            ("retry-due-at", b"soon"),
        ]),
        origin(),
        now(),
    )
    .unwrap_err();
    let ended = Ended {
        id: poison.id.clone(),
        terminal: Terminal::Dead,
        reason: Some(poison.reason),
        attempts: 0,
        failure: Some(poison.detail.clone()),
        ..ended(&task())
    };

    let letter = Letter::of(&written(|sink| write_poison(&poison, &ended, sink))).unwrap();

    assert_eq!(letter.id, *poison.id);
    assert_eq!(letter.outcome, Terminal::Dead);
    assert_eq!(letter.fingerprint, ended.fingerprint());
    assert_eq!((letter.attempts, letter.due), (Some(0), None));
}

#[test]
fn a_record_of_somebody_else_is_no_dead_letter() {
    for headers in [
        &[][..],
        &[("retry-id", b"a".as_slice())],
        &[("retry-outcome", b"dead")],
        &[("retry-id", b""), ("retry-outcome", b"dead")],
        &[("retry-id", b"\xff"), ("retry-outcome", b"dead")],
        &[("retry-id", b"a"), ("retry-outcome", b"delivered")],
        &[("retry-id", b"a"), ("retry-outcome", b"\xff")],
        &[("kafka_dlt-exception-message", b"x")],
    ] {
        assert_eq!(Letter::of(&record(headers)), None, "{headers:?}");
    }
    let least = record(&[("retry-id", b"a"), ("retry-outcome", b"dead")]);
    let letter = Letter::of(&least).unwrap();
    assert_eq!((letter.fingerprint, letter.attempts), (None, None));
}

proptest! {
    #[test]
    fn no_headers_panic(headers in vec((any::<usize>(), option::of(vec(any::<u8>(), 0..24))), 0..30)) {
        let names = retide_avro::headers::NAMES;
        let mut record = record(&[("retry-id", b"a"), ("retry-outcome", b"dead")]);
        record.headers.extend(headers.into_iter().map(|(name, value)| Header {
            name: names[name % names.len()].as_bytes().into(),
            value: value.map(Bytes::from),
        }));
        let _ = Letter::of(&record);
    }
}

/// A campaign that means all letters, with this change of payloads.
fn spec(edit: Option<Edit>) -> Spec {
    Spec {
        selector: None,
        died: Some(Span {
            from: Timestamp::EPOCH,
            before: Timestamp::MAX,
        }),
        ramp: Ramp::try_new(&STEPS, FAILURE_RATE).unwrap(),
        rate: None,
        scene: None,
        set_headers: Vec::new(),
        remove_headers: Vec::new(),
        edit,
        include_new: false,
        keep_deadline: false,
    }
}

/// Where a dead letter stands.
fn stands() -> Origin {
    Origin {
        topic: "retry.dead-letters".into(),
        partition: 3,
        offset: 7,
    }
}

/// The record that a task was made of.
fn produced() -> Record {
    record(&[
        ("retry-scene", b"pay"),
        ("retry-id", b"order-7"),
        ("order-no", b"4711"),
    ])
}

/// The dead letter of a task that is made of a record, without so much of it.
fn smaller(produced: Record, times: u32) -> Record {
    let mut task = ingest(produced, origin(), now()).unwrap();
    let mut ended = ended(&task);
    ended.omitted = Omitted::Nothing;
    for _ in 0..times {
        ended.omitted = ended.omitted.more(&mut task.record);
    }
    let letter = written(|sink| write_dead_letter(&task, &ended, sink));
    Record {
        headers: letter.headers,
        ..task.record
    }
}

/// When a record that stands at the origin has arrived.
fn arrival() -> Arrival {
    Arrival {
        origin: origin(),
        entered: now(),
        stamped: now(),
    }
}

/// The letter as it is replayed, where this record is found at its origin.
fn found(letter: Record, edit: Option<Edit>, found: Record) -> retide_core::campaign::Letter {
    let spec = spec(edit);
    match letter::read(letter, &stands(), now(), (&spec, &[]), |_, _| None) {
        Read::Lacking(lacking) => {
            assert_eq!(*lacking.origin(), origin());
            let edit = spec.edit.as_ref();
            lacking.found((found, arrival()), &Intake::default(), edit)
        }
        read => panic!("{read:?}"),
    }
}

#[test]
fn what_a_letter_lacks_is_taken_from_the_record_that_its_task_was_made_of() {
    let before = ingest(produced(), origin(), now()).unwrap();
    for times in [1, 2] {
        let letter = smaller(produced(), times);
        assert_eq!(letter.value, None);

        let whole = found(letter, None, produced());

        assert_eq!(whole.ineligible, None, "{times}");
        assert_eq!(whole.task.record, before.record, "{times}");
        assert_eq!(
            (&whole.task.id, &whole.task.scene),
            (&before.id, &before.scene)
        );
        assert_eq!((whole.partition, whole.offset), (3, 7));
    }
    // Without an id of its own, and in an envelope.
    let envelope = br#"{"scene":"pay","key":"k","payload":{"order":7},"headers":{"a":"b"}}"#;
    let mut enveloped = record(&[(
        "content-type",
        b"application/vnd.retide.task+json".as_slice(),
    )]);
    enveloped.value = Some(Bytes::from_static(envelope));
    for produced in [enveloped, record(&[("retry-scene", b"pay")])] {
        let before = ingest(produced.clone(), origin(), now()).unwrap();
        for times in [1, 2] {
            let whole = found(smaller(produced.clone(), times), None, produced.clone());
            assert_eq!(
                (whole.ineligible, &whole.task.record),
                (None, &before.record)
            );
        }
    }
}

#[test]
fn another_record_at_the_origin_is_never_taken_for_it() {
    let with = |change: &dyn Fn(&mut Record)| {
        let mut record = produced();
        change(&mut record);
        record
    };
    let no_id = record(&[("retry-scene", b"pay")]);
    let other_value = |record: &mut Record| record.value = Some(Bytes::from_static(b"Value"));
    for (name, letter, found_there) in [
        ("bytes", produced(), with(&other_value)),
        (
            "key",
            produced(),
            with(&|it| it.key = Some(Bytes::from_static(b"k"))),
        ),
        ("no key", produced(), with(&|it| it.key = None)),
        (
            "id",
            produced(),
            with(&|it| it.headers[1] = header("retry-id", b"order-8")),
        ),
        (
            "no task",
            produced(),
            with(&|it| it.headers.push(header("retry-due-at", b"soon"))),
        ),
        // A topic that was made anew gives the same ids again.
        ("derived id", no_id.clone(), {
            let mut record = no_id;
            other_value(&mut record);
            record
        }),
    ] {
        for times in [1, 2] {
            let letter = smaller(letter.clone(), times);
            let left = found(letter, None, found_there.clone());
            let expected = Some(Ineligible::OriginGone);
            assert_eq!(
                (left.ineligible, &left.task.record.value),
                (expected, &None),
                "{name}"
            );
        }
    }
    // Where headers are left out, too, they have to be those.
    let headers = with(&|it| it.headers[2] = header("order-no", b"4712"));
    let left = found(smaller(produced(), 2), None, headers.clone());
    assert_eq!(left.ineligible, Some(Ineligible::OriginGone));
    let kept = found(smaller(produced(), 1), None, headers);
    assert_eq!(kept.ineligible, None);
    assert_eq!(kept.task.record.headers, [header("order-no", b"4711")]);
}

#[test]
fn what_is_fetched_is_edited_and_what_is_given_needs_no_fetching() {
    let json = Record {
        value: Some(Bytes::from_static(br#"{"a":1}"#)),
        ..produced()
    };
    let patch = Edit::Patch(r#"[{"op":"replace","path":"/a","value":2}]"#.into());
    let given = Edit::Payload(Bytes::from_static(b"given"));
    let read = |letter: Record, edit: &Edit| {
        let spec = spec(Some(edit.clone()));
        letter::read(letter, &stands(), now(), (&spec, &[]), |_, _| None)
    };

    let patched = found(smaller(json.clone(), 1), Some(patch.clone()), json.clone());
    assert_eq!(
        patched.task.record.value.as_deref(),
        Some(&br#"{"a":2}"#[..])
    );
    let unfit = found(smaller(produced(), 1), Some(patch), produced());
    assert_eq!(unfit.ineligible, Some(Ineligible::EditFailed));
    match read(smaller(json.clone(), 1), &given) {
        Read::Meant(letter) => {
            assert_eq!(letter.ineligible, None);
            assert_eq!(letter.task.record.value.as_deref(), Some(&b"given"[..]));
        }
        read => panic!("{read:?}"),
    }
    // Its headers are not given.
    let whole = found(smaller(json.clone(), 2), Some(given), json);
    assert_eq!(whole.task.record.value.as_deref(), Some(&b"given"[..]));
    assert_eq!(whole.task.record.headers, [header("order-no", b"4711")]);
}

#[test]
fn a_letter_that_cannot_say_what_it_lacks_is_not_replayed_without_it() {
    let is_digest = |header: &Header| header.name.as_bytes() == OMITTED_XXH3.as_bytes();
    let mut earlier = smaller(produced(), 1);
    earlier.headers.retain(|header| !is_digest(header));
    // What a callback delivers stands on no topic.
    let mut callback = smaller(produced(), 1);
    callback.headers.push(header("retry-kind", b"callback"));
    let mut poison = smaller(produced(), 1);
    let is_hops = |header: &Header| header.name.as_bytes() == b"retry-hops";
    poison.headers.retain(|header| !is_hops(header));
    for (record, why) in [
        (earlier, Ineligible::Omitted),
        (callback, Ineligible::Omitted),
        (poison, Ineligible::Unreadable),
    ] {
        let spec = spec(None);
        let read = letter::read(record, &stands(), now(), (&spec, &[]), |_, _| None);
        let Read::Meant(letter) = read else {
            panic!("{read:?}")
        };
        assert_eq!(letter.ineligible, Some(why));
    }
}
