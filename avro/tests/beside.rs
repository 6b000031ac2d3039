//! The headers of other libraries on retide's dead letters: the bytes that those libraries write themselves, and nothing that stays on a task.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use retide_avro::beside::{Beside, Dead, Library, Stage};
use retide_avro::control::campaign::default_ramp;
use retide_avro::foreign::Foreign;
use retide_avro::headers::{ingest, is_own, write_dead_letter, write_poison};
use retide_avro::letter::{self, Read};
use retide_core::campaign::{Id, Replay, Spec, replayed};
use retide_core::control::Place;
use retide_core::{
    Digest, Ended, Failure, Header, Omitted, Origin, Reason, Record, Task, Terminal, Timestamp,
};
use serde_json::Value;

/// When the task entered.
const ENTERED: u64 = 1_700_000_000_123;

fn at(topic: &str, partition: i32, offset: i64) -> Origin {
    Origin {
        topic: topic.into(),
        partition,
        offset,
    }
}

fn header(name: &str, value: &[u8]) -> Header {
    Header {
        name: name.into(),
        value: Some(Bytes::copy_from_slice(value)),
    }
}

fn beside(library: Library, group: &str) -> Beside {
    Beside {
        library,
        group: group.into(),
    }
}

/// A task with these headers of its producer's, which entered there.
fn task(theirs: Vec<Header>, origin: &Origin) -> Task {
    let mut headers = theirs;
    headers.push(header("retry-scene", b"orders"));
    headers.push(header("retry-id", b"o-7"));
    let record = Record {
        key: Some("k".into()),
        value: Some("v".into()),
        headers,
    };
    ingest(record, origin.clone(), Timestamp::from_millis(ENTERED)).unwrap()
}

/// The end of a task, at which this failed.
fn ended(task: &Task, failure: Option<Failure>) -> Ended {
    Ended {
        id: task.id.clone(),
        scene: task.scene.clone(),
        kind: task.kind,
        terminal: Terminal::Dead,
        reason: Some(Reason::AttemptsExhausted),
        attempts: 3,
        origin: task.origin.clone(),
        first_failed_at: task.first_failed_at,
        at: Timestamp::from_millis(ENTERED + 9),
        failure,
        key: task.record.key.clone(),
        omitted: Omitted::Nothing,
    }
}

/// The record of the dead letter.
fn letter(task: &Task, ended: &Ended, beside: Option<&Beside>) -> Record {
    let mut headers = Vec::new();
    let mut sink = |name: &[u8], value: Option<&[u8]>| {
        headers.push(Header {
            name: name.into(),
            value: value.map(Bytes::copy_from_slice),
        });
    };
    write_dead_letter(task, ended, &mut sink);
    if let Some(beside) = beside {
        let dead = Dead {
            ended,
            record: &task.record,
            shard: 3,
            stage: Stage::Task,
        };
        beside.write(&dead, &mut sink);
    }
    Record {
        headers,
        ..task.record.clone()
    }
}

/// A campaign that means all letters.
fn spec() -> Spec {
    Spec {
        selector: None,
        died: None,
        ramp: default_ramp(),
        rate: None,
        scene: None,
        set_headers: Vec::new(),
        remove_headers: Vec::new(),
        edit: None,
        include_new: false,
        keep_deadline: false,
    }
}

/// The headers behind retide's own.
fn behind(record: &Record) -> Vec<(String, Vec<u8>)> {
    let mut all = record.headers.iter();
    let own = all.rposition(|header| is_own(header.name.as_bytes()));
    let behind = record.headers[own.unwrap() + 1..].iter();
    let pair = |header: &Header| {
        (
            header.name.to_string(),
            header.value.clone().unwrap().to_vec(),
        )
    };
    behind.map(pair).collect()
}

/// What a library has written itself, by name: the last header of each.
fn written(dialect: &str) -> Vec<BTreeMap<String, Vec<u8>>> {
    let lines = include_str!("../../processor/tests/process/letters/letters.jsonl").lines();
    let letters = lines.map(|line| serde_json::from_str::<Value>(line).unwrap());
    let letters = letters.filter(|letter| letter["dialect"] == *dialect);
    let headers = |letter: Value| {
        let headers = letter["headers"].as_array().unwrap().iter();
        let headers = headers.filter_map(|header| {
            let value = BASE64_STANDARD.decode(header[1].as_str()?).unwrap();
            Some((header[0].as_str()?.to_owned(), value))
        });
        headers.collect()
    };
    letters.map(headers).collect()
}

#[test]
fn each_value_has_the_bytes_that_the_library_itself_writes_for_it() {
    for (library, dialect, group) in [
        (Library::Spring, "spring", "shop"),
        (Library::Connect, "connect", "sink"),
    ] {
        for (number, theirs) in written(dialect).into_iter().enumerate() {
            let text = |name: &str| String::from_utf8(theirs[name].clone()).unwrap();
            let (class, message, entered) = match library {
                Library::Spring => (
                    text("kafka_dlt-exception-fqcn"),
                    text("kafka_dlt-exception-message"),
                    u64::from_be_bytes(
                        theirs["kafka_dlt-original-timestamp"][..]
                            .try_into()
                            .unwrap(),
                    ),
                ),
                Library::Connect => (
                    text("__connect.errors.exception.class.name"),
                    text("__connect.errors.exception.message"),
                    ENTERED,
                ),
            };
            let mut task = task(Vec::new(), &at("orders", 0, number as i64));
            task.first_failed_at = Timestamp::from_millis(entered);
            // As long as it is; classes of retide's own are cut.
            let failure = Failure {
                class: class.into(),
                message: message.into(),
                host: None,
            };
            let ended = ended(&task, Some(failure));

            let mut ours = Vec::new();
            beside(library, group).write(
                &Dead {
                    ended: &ended,
                    record: &task.record,
                    shard: 0,
                    stage: Stage::Task,
                },
                &mut |name, value| {
                    let name = String::from_utf8(name.to_vec()).unwrap();
                    ours.push((name, value.unwrap().to_vec()));
                },
            );

            assert!(!ours.is_empty());
            for (name, value) in ours {
                let is_of_theirs =
                    ["__connect.errors.stage", "__connect.errors.class.name"].contains(&&*name);
                let library_wrote = theirs.get(&name).expect("a header that the library has");
                // Where it failed is Connect's own; that there is such a header is what counts.
                assert!(is_of_theirs || *library_wrote == value, "{name}: {value:?}");
            }
        }
    }
}

#[test]
fn they_stand_behind_retides_own_and_say_the_origin_of_the_letter() {
    let origin = at("retry.tasks", 3, 42);
    let task = task(vec![header("theirs", b"1")], &origin);
    let ended = ended(&task, Some(Failure::new("http-503", "Service Unavailable")));

    let spring = letter(&task, &ended, Some(&beside(Library::Spring, "retide")));
    let connect = letter(&task, &ended, Some(&beside(Library::Connect, "retide")));

    let bytes = |value: &str| value.as_bytes().to_vec();
    let expected = [
        ("kafka_dlt-exception-fqcn", bytes("http-503")),
        ("kafka_dlt-exception-message", bytes("Service Unavailable")),
        ("kafka_dlt-original-topic", bytes("retry.tasks")),
        ("kafka_dlt-original-partition", vec![0, 0, 0, 3]),
        ("kafka_dlt-original-offset", vec![0, 0, 0, 0, 0, 0, 0, 42]),
        (
            "kafka_dlt-original-timestamp",
            ENTERED.to_be_bytes().to_vec(),
        ),
        ("kafka_dlt-original-consumer-group", bytes("retide")),
    ];
    let expected = expected.map(|(name, value)| (name.to_owned(), value));
    assert_eq!(behind(&spring), expected);
    let expected = [
        ("__connect.errors.topic", "retry.tasks"),
        ("__connect.errors.partition", "3"),
        ("__connect.errors.offset", "42"),
        ("__connect.errors.connector.name", "retide"),
        ("__connect.errors.task.id", "3"),
        ("__connect.errors.stage", "TASK_PUT"),
        ("__connect.errors.class.name", "orders"),
        ("__connect.errors.exception.class.name", "http-503"),
        ("__connect.errors.exception.message", "Service Unavailable"),
    ];
    let expected = expected.map(|(name, value)| (name.to_owned(), bytes(value)));
    assert_eq!(behind(&connect), expected);
    for (record, library) in [(spring, Library::Spring), (connect, Library::Connect)] {
        for dialect in [None, Some(library.dialect())] {
            let read = Foreign::of(&record, dialect);
            assert_eq!(read.dialect, Some(library.dialect()));
            assert_eq!(read.origin, Some(origin.clone()));
            assert_eq!(read.reader.as_deref(), Some("retide"));
        }
    }
}

#[test]
fn without_an_attempt_the_reason_is_what_failed() {
    let task = task(Vec::new(), &at("retry.tasks", 3, 42));
    let ended = Ended {
        reason: Some(Reason::DeadlinePassed),
        terminal: Terminal::Expired,
        ..ended(&task, None)
    };

    let letter = letter(&task, &ended, Some(&beside(Library::Spring, "retide")));

    let first = behind(&letter).remove(0);
    assert_eq!(
        first,
        (
            "kafka_dlt-exception-fqcn".to_owned(),
            b"deadline-passed".to_vec()
        )
    );
    assert!(
        behind(&letter)
            .iter()
            .all(|(name, _)| !name.ends_with("message"))
    );
}

#[test]
fn a_task_that_has_such_headers_keeps_them_and_gets_none() {
    let theirs = vec![
        header("kafka_dlt-original-topic", b"orders"),
        header("kafka_dlt-original-partition", &0_i32.to_be_bytes()),
        header("kafka_dlt-original-offset", &9_i64.to_be_bytes()),
    ];
    let task = task(theirs.clone(), &at("retry.tasks", 3, 42));
    assert_eq!(task.record.headers, theirs);
    let ended = ended(&task, Some(Failure::new("http-503", "no")));

    let spring = letter(&task, &ended, Some(&beside(Library::Spring, "retide")));
    let connect = letter(&task, &ended, Some(&beside(Library::Connect, "retide")));

    assert_eq!(spring, letter(&task, &ended, None));
    assert_eq!(Foreign::of(&spring, None).origin, Some(at("orders", 0, 9)));
    // Another library's do not keep them away.
    assert_eq!(behind(&connect).len(), 9);
}

#[test]
fn the_smallest_form_of_a_letter_has_none() {
    let task = task(Vec::new(), &at("retry.tasks", 3, 42));
    let beside = beside(Library::Spring, "retide");
    for (omitted, count) in [
        (Omitted::Nothing, 7),
        (Omitted::Value(Digest::of_value(None)), 7),
        (Omitted::Record(None), 0),
    ] {
        let ended = Ended {
            omitted,
            ..ended(&task, Some(Failure::new("http-503", "no")))
        };

        let letter = letter(&task, &ended, Some(&beside));

        assert_eq!(behind(&letter).len(), count, "{omitted:?}");
    }
}

#[test]
fn a_letter_that_is_a_task_again_has_them_no_more_and_its_producers_stay() {
    for library in [Library::Spring, Library::Connect] {
        // Of the other library, and of names that retide does not write.
        let theirs = match library {
            Library::Spring => vec![
                header("__connect.errors.topic", b"orders"),
                header("kafka_dlt-exception-stacktrace", b"at"),
            ],
            Library::Connect => vec![
                header("kafka_dlt-original-topic", b"orders"),
                header("__connect.errors.exception.stacktrace", b"at"),
            ],
        };
        let task = task(theirs.clone(), &at("retry.tasks", 3, 42));
        let ended = ended(&task, Some(Failure::new("http-503", "no")));
        let mut record = letter(&task, &ended, Some(&beside(library, "retide")));
        assert!(behind(&record).len() > 6);

        // Replayed by a campaign.
        let stands = at("retry.dead-letters", 3, 7);
        let spec = spec();
        let died = Timestamp::from_millis(ENTERED + 9);
        let read = letter::read(record.clone(), &stands, died, (&spec, &[]), |_, _| None);
        let Read::Meant(meant) = read else {
            panic!("{read:?}")
        };
        assert_eq!(meant.ineligible, None);
        let place = Place {
            at: died,
            partition: 0,
            offset: 1,
        };
        let name = "again".into();
        let campaign = Id { place, name };
        let replay = Replay { campaign, times: 1 };
        let again = replayed(*meant.task, &spec, replay, died);
        assert_eq!(again.record.headers, theirs, "{library:?}");

        // Produced to the retry topic as it is, and with what a copy of another tool adds.
        record.headers.push(header("traceparent", b"00-1"));
        let again = ingest(record, at("retry.tasks", 0, 1), died).unwrap();
        let mut expected = theirs;
        expected.push(header("traceparent", b"00-1"));
        assert_eq!(again.record.headers, expected, "{library:?}");
    }
}

#[test]
fn headers_of_a_producer_stay_wherever_they_stand() {
    // Behind retide's own, as a recoverer of Spring's writes to the retry topic itself.
    let headers = vec![
        header("retry-scene", b"orders"),
        header("kafka_dlt-original-topic", b"orders"),
        header("kafka_dlt-original-offset", &9_i64.to_be_bytes()),
    ];
    let record = Record {
        headers: headers.clone(),
        ..Record::default()
    };

    let task = ingest(record, at("retry.tasks", 3, 42), Timestamp::from_millis(9)).unwrap();

    assert_eq!(task.record.headers, headers[1..]);
}

#[test]
fn a_record_that_is_no_task_gets_those_of_its_last_end() {
    let beside = beside(Library::Connect, "retide");
    let letter = |record: Record, origin: Origin| {
        let poison = ingest(record, origin, Timestamp::from_millis(ENTERED)).unwrap_err();
        let ended = Ended {
            id: poison.id.clone(),
            scene: poison.scene.clone(),
            kind: poison.kind,
            terminal: Terminal::Dead,
            reason: Some(poison.reason),
            attempts: 0,
            origin: poison.origin.clone(),
            first_failed_at: Timestamp::from_millis(ENTERED),
            at: Timestamp::from_millis(ENTERED),
            failure: Some(poison.detail.clone()),
            key: None,
            omitted: Omitted::Nothing,
        };
        let mut headers = Vec::new();
        let mut sink = |name: &[u8], value: Option<&[u8]>| {
            headers.push(Header {
                name: name.into(),
                value: value.map(Bytes::copy_from_slice),
            });
        };
        write_poison(&poison, &ended, &mut sink);
        let dead = Dead {
            ended: &ended,
            record: &poison.record,
            shard: 3,
            stage: Stage::Reading,
        };
        beside.write(&dead, &mut sink);
        Record {
            headers,
            ..poison.record
        }
    };
    let record = Record {
        headers: vec![
            header("retry-scene", b"orders"),
            header("retry-delay-ms", b"soon"),
        ],
        ..Record::default()
    };

    let first = letter(record, at("retry.tasks", 3, 42));
    let second = letter(first.clone(), at("retry.tasks", 0, 50));

    assert_eq!(
        Foreign::of(&first, None).origin,
        Some(at("retry.tasks", 3, 42))
    );
    assert_eq!(
        Foreign::of(&second, None).origin,
        Some(at("retry.tasks", 0, 50))
    );
    let count = |record: &Record| {
        let headers = record.headers.iter();
        let is_topic = |header: &&Header| header.name.as_bytes() == b"__connect.errors.topic";
        headers.filter(is_topic).count()
    };
    assert_eq!((count(&first), count(&second)), (1, 1));
    assert!(behind(&first).contains(&(
        "__connect.errors.stage".to_owned(),
        b"HEADER_CONVERTER".to_vec()
    )));
}
