//! What is read of dead letters: those of retide, of earlier versions, and of strangers.

use bytes::Bytes;
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use retide_avro::headers::{ERROR_HOST, FINGERPRINT, ingest, write_dead_letter, write_poison};
use retide_avro::letter::Letter;
use retide_core::selector::ErrorFingerprint;
use retide_core::{
    Ended, Failure, Header, Kind, Omitted, Origin, Reason, Record, Task, Terminal, Timestamp,
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
        omitted: Omitted::Value,
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
