//! What the bodies about records share.
//!
//! Not a body itself.

use bytes::Bytes;

use retide_avro::headers::{self, MAX_HEADERS, Sink};
use retide_avro::{parked, write_task};
use retide_core::{Header, Kind, Origin, Poison, Record, Task, Timestamp};

/// Memory that one byte of a record may come to: the smallest header is two bytes of Avro, and a list doubles as it grows.
const FACTOR: usize = 2 * size_of::<Header>();

/// Memory that a record may come to however short it is: a list begins with room for four, and a content type may be added.
const FLOOR: usize = 16 * size_of::<Header>();

/// Where every record stands.
pub(crate) fn place() -> Origin {
    Origin {
        topic: "retry.tasks".into(),
        partition: 3,
        offset: 42,
    }
}

/// A header.
pub(crate) fn header(name: &[u8], value: Option<&[u8]>) -> Header {
    Header {
        name: name.into(),
        value: value.map(Bytes::copy_from_slice),
    }
}

/// The headers that `write` writes.
pub(crate) fn collect(write: impl FnOnce(&mut Sink<'_>)) -> Vec<Header> {
    let mut headers = Vec::new();
    write(&mut |name, value| headers.push(header(name, value)));
    headers
}

/// The record of a task on a delay topic.
pub(crate) fn written(task: &Task) -> Record {
    Record {
        headers: collect(|sink| write_task(task, sink)),
        ..task.record.clone()
    }
}

/// The record without what only retide may set.
pub(crate) fn producers(record: &Record) -> Vec<Header> {
    let headers = record.headers.iter();
    headers
        .filter(|header| !headers::is_own(header.name.as_bytes()))
        .cloned()
        .collect()
}

/// A task is the same after a stay on a delay topic, but for times, which only whole milliseconds survive.
pub(crate) fn check_stay(task: &Task) {
    let whole = Task {
        due: task.due.ceil_to_millis(),
        first_failed_at: task.first_failed_at.ceil_to_millis(),
        deadline: task.deadline.map(Timestamp::ceil_to_millis),
        ..task.clone()
    };

    assert_eq!(parked(written(task), place()), Ok(whole));
}

/// What holds for every task made of a record whose bytes are `size`.
pub(crate) fn check_task(task: &Task, size: usize) {
    assert!(!task.id.is_empty() && task.id.len() <= headers::MAX_ID);
    assert!(task.scene.len() <= headers::MAX_SCENE);
    assert!(!task.id.contains(char::is_control) && !task.scene.contains(char::is_control));
    assert!(task.attempt > 0);
    for header in &task.record.headers {
        let outcome = task.kind == Kind::Callback
            && headers::is_named(header.name.as_bytes(), headers::OUTCOME);
        assert!(
            outcome || !headers::is_own(header.name.as_bytes()),
            "{header:?}"
        );
    }
    let room = task.record.headers.capacity() * size_of::<Header>();
    let held = task.record.memory_size() + room;
    assert!(held <= FACTOR * size + FLOOR, "{held} bytes of {size}");
    check_stay(task);
}

/// What holds for every record that is refused.
pub(crate) fn check_poison(poison: &Poison, record: &Record) {
    assert_eq!(poison.record, *record);
    assert_eq!(poison.origin, place());
    assert!(!poison.id.is_empty() && poison.id.len() <= headers::MAX_ID);
    assert!(poison.scene.len() <= headers::MAX_SCENE);
}

/// No producer gets more headers through than the limit.
pub(crate) fn check_count(task: &Task) {
    assert!(task.record.headers.len() <= MAX_HEADERS);
}
