//! Headers: whatever a record says, it becomes a task that survives a delay topic and a dead letter, or is handed back.

use std::str;
use std::sync::LazyLock;
use std::time::Duration;

use bytes::Bytes;

use retide_avro::beside::{self, Beside, Dead, Library, Stage};
use retide_avro::foreign::{self, Dialect, Foreign};
use retide_avro::headers::{CONTENT_TYPE, ROUND, SCENE, is_named, write_dead_letter, write_poison};
use retide_avro::letter::Letter;
use retide_avro::wire::SINGLE_OBJECT_MARKER;
use retide_avro::{Arrival, Intake, ingest, parked};
use retide_core::{
    Ended, Header, Kind, Omitted, Poison, Reason, Record, Task, Terminal, Timestamp,
    scene::MAX_DELAY,
};

use crate::record;

/// When a record is read whose bytes do not say: in milliseconds since the epoch.
const NOW: Timestamp = Timestamp::from_millis(1_700_000_000_000);

/// How records are read where no topic is configured.
static INTAKE: LazyLock<Intake> = LazyLock::new(Intake::default);

/// What stands in each content type of an envelope.
const TASK: &[u8] = b"vnd.retide.task";

/// Reads a record as one of the retry topic and as one of a delay topic.
///
/// The bytes are `now|key|value|name=value|name…`: a time in microseconds, then what stands on the record.
pub fn headers(data: &[u8]) {
    let mut parts = data.split(|byte| *byte == b'|');
    let now = parts.next().and_then(number).unwrap_or(NOW);
    let record = Record {
        key: parts.next().and_then(some),
        value: parts.next().and_then(some),
        headers: parts.map(header).collect(),
    };

    // Somebody else may have written it to the topic of dead letters.
    let _ = Letter::of(&record);
    check_foreign(&record, now);
    // What retide has written for other libraries on a dead letter is no part of the record.
    let mut bare = record.clone();
    beside::take_off(&mut bare);
    match ingest(record.clone(), record::place(), now) {
        Ok(task) => {
            record::check_task(&task, data.len());
            record::check_count(&task);
            check_ingested(&task, &bare, now);
            for library in [None, Some(Library::Spring), Some(Library::Connect)] {
                check_replay(&task, now, library);
            }
            check_restored(&task, &record, now);
        }
        Err(poison) => check_poison(&poison, &bare, now),
    }
    match parked(record.clone(), record::place()) {
        Ok(task) => {
            record::check_task(&task, data.len());
            let producers = record::producers(&record);
            assert_eq!(task.record.headers[..producers.len()], producers);
        }
        Err(poison) => check_poison(&poison, &record, now),
    }
}

/// A time in microseconds.
fn number(text: &[u8]) -> Option<Timestamp> {
    let micros = str::from_utf8(text).ok()?.parse().ok()?;
    Some(Timestamp::from_micros(micros))
}

/// Bytes, unless there are none.
fn some(bytes: &[u8]) -> Option<Bytes> {
    (!bytes.is_empty()).then(|| Bytes::copy_from_slice(bytes))
}

/// A header; without `=` it has no value.
fn header(part: &[u8]) -> Header {
    let mut parts = part.splitn(2, |byte| *byte == b'=');
    record::header(parts.next().unwrap_or_default(), parts.next())
}

/// What a producer may decide, and what not.
fn check_ingested(task: &Task, record: &Record, now: Timestamp) {
    assert_eq!((task.hops, task.kind), (0, Kind::Work));
    let came_back = record
        .headers
        .iter()
        .any(|header| is_named(header.name.as_bytes(), ROUND));
    assert!(task.attempt == 1 || came_back);
    assert_eq!((task.first_failed_at, &task.failure), (now, &None));
    assert_eq!(task.origin, record::place());
    assert!(task.due >= now && task.due <= now + MAX_DELAY);
    let named = record
        .headers
        .iter()
        .any(|header| is_named(header.name.as_bytes(), SCENE));
    // What says that it is an envelope is one, whatever names its scene.
    let says = |header: &Header| {
        let value = header
            .value
            .as_deref()
            .unwrap_or_default()
            .to_ascii_lowercase();
        is_named(header.name.as_bytes(), CONTENT_TYPE)
            && value.windows(TASK.len()).any(|part| part == TASK)
    };
    let is_ours = |value: &Bytes| value.starts_with(&SINGLE_OBJECT_MARKER);
    let is_envelope = record.headers.iter().any(says) || record.value.as_ref().is_some_and(is_ours);
    if (named || task.scene.is_empty()) && !is_envelope {
        let producers = record::producers(record);
        let headers = producers;
        assert_eq!(
            task.record,
            Record {
                headers,
                ..record.clone()
            }
        );
    }
}

/// What a source writes of it is a task of its scene with the headers that are nobody's of retide, or is handed back.
fn check_foreign(record: &Record, now: Timestamp) {
    for dialect in Dialect::ALL.map(Some).into_iter().chain([None]) {
        let read = Foreign::of(record, dialect);
        let id = read.id(&record::place());
        assert_eq!(read.id(&record::place()), id);
        assert!(!read.is_pointer || read.origin.is_some());
        let own = ("orders", &*id);
        let headers = record::collect(|sink| foreign::write(record, own, None, sink));
        let copy = Record {
            headers,
            ..record.clone()
        };
        match ingest(copy, record::place(), now) {
            Ok(task) => assert_eq!((task.attempt, &*task.id), (1, &*id)),
            Err(poison) => assert_eq!(poison.id, id),
        }
    }
}

/// What its dead letter leaves out is restored from the record that it was made of.
fn check_restored(task: &Task, record: &Record, now: Timestamp) {
    let (mut small, mut ended) = (task.clone(), ended(task, now));
    for _ in 0..2 {
        ended.omitted = ended.omitted.more(&mut small.record);
        let headers = record::collect(|sink| write_dead_letter(&small, &ended, sink));
        let mut letter = Record {
            headers,
            ..small.record.clone()
        };
        let read = Letter::of(&letter).expect("a dead letter");
        let arrival = Arrival::new(record::place(), now, now);
        let found = (record.clone(), arrival);

        assert!(read.restore(&mut letter, found, &INTAKE));

        assert_eq!(letter.value, task.record.value);
        assert!(letter.headers.starts_with(&task.record.headers));
    }
}

/// How it ends, if it dies then.
fn ended(task: &Task, now: Timestamp) -> Ended {
    Ended {
        id: task.id.clone(),
        scene: task.scene.clone(),
        kind: task.kind,
        terminal: Terminal::Dead,
        reason: Some(Reason::AttemptsExhausted),
        attempts: task.attempt,
        origin: task.origin.clone(),
        first_failed_at: task.first_failed_at,
        at: now,
        failure: task.failure.clone(),
        key: task.record.key.clone(),
        omitted: Omitted::default(),
    }
}

/// Its dead letter, produced to the retry topic as it is, is a new attempt at the same task, whatever library's headers it has beside.
fn check_replay(task: &Task, now: Timestamp, library: Option<Library>) {
    let ended = ended(task, now);
    let headers = record::collect(|sink| {
        write_dead_letter(task, &ended, sink);
        if let Some(library) = library {
            let dead = Dead {
                ended: &ended,
                record: &task.record,
                shard: 0,
                stage: Stage::Task,
            };
            let group = "g".into();
            Beside { library, group }.write(&dead, sink);
        }
    });
    let letter = Record {
        headers,
        ..task.record.clone()
    };

    let read = Letter::of(&letter).expect("a dead letter");
    assert_eq!((&*read.id, &*read.scene), (&*task.id, &*task.scene));
    assert_eq!(read.fingerprint, ended.fingerprint());

    let again = ingest(letter, record::place(), now + Duration::from_secs(1)).unwrap();

    assert_eq!((&again.id, &again.scene), (&task.id, &task.scene));
    assert_eq!(again.deadline, task.deadline);
    assert_eq!(again.record, task.record);
}

/// A refused record is untouched, and its dead letter begins with what it came with.
fn check_poison(poison: &Poison, record: &Record, now: Timestamp) {
    record::check_poison(poison, record);
    let ended = Ended {
        id: poison.id.clone(),
        scene: poison.scene.clone(),
        kind: Kind::Work,
        terminal: Terminal::Dead,
        reason: Some(poison.reason),
        attempts: 0,
        origin: poison.origin.clone(),
        first_failed_at: now,
        at: now,
        failure: Some(poison.detail.clone()),
        key: record.key.clone(),
        omitted: Omitted::default(),
    };

    let headers = record::collect(|sink| write_poison(poison, &ended, sink));

    assert_eq!(headers[..record.headers.len()], record.headers);
    let letter = Record {
        headers,
        ..Record::default()
    };
    let read = Letter::of(&letter).expect("a dead letter");
    assert_eq!(read.id, *poison.id);
    assert_eq!(read.outcome, Terminal::Dead);
    assert_eq!(read.fingerprint, ended.fingerprint());
}
