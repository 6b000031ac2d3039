//! Headers of other libraries that a dead letter has beside retide's, so that tools which are made for those read it.
//!
//! | library | header | value |
//! |---|---|---|
//! | Spring | `kafka_dlt-exception-fqcn`, `-exception-message` | what failed last: a word and a text |
//! | | `kafka_dlt-original-topic`, `-original-partition`, `-original-offset` | where the task entered; numbers are big-endian |
//! | | `kafka_dlt-original-timestamp` | when it entered, in milliseconds since the epoch, big-endian |
//! | | `kafka_dlt-original-consumer-group` | the group of the workers |
//! | Connect | `__connect.errors.topic`, `.partition`, `.offset` | where the task entered |
//! | | `__connect.errors.connector.name`, `.task.id` | the group of the workers, and the shard |
//! | | `__connect.errors.stage` | `TASK_PUT`, or `HEADER_CONVERTER` for a record that could not be read as a task |
//! | | `__connect.errors.class.name` | the scene, if there is one |
//! | | `__connect.errors.exception.class.name`, `.exception.message` | what failed last |
//!
//! Not how a letter of others is read: that is [`crate::foreign`], which reads these as well. Invariants: they stand behind retide's own
//! headers, and are taken off again where a dead letter becomes a task; no name is on a letter twice by them, so a letter whose record has one
//! of these names gets none; the smallest form of a letter has none.

use retide_core::{Ended, Header, Omitted, Record, Terminal};

use crate::foreign::Dialect;
use crate::headers::{OUTCOME, Sink, is_named, millis};

/// Whose headers a dead letter has beside retide's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Library {
    /// Spring for Apache Kafka.
    Spring,
    /// Kafka Connect.
    Connect,
}

/// What is written beside retide's own headers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Beside {
    /// Whose headers.
    pub library: Library,
    /// The group of the workers.
    pub group: Box<str>,
}

/// What has ended, as far as these headers tell it.
#[derive(Clone, Copy, Debug)]
pub struct Dead<'a> {
    /// How and why it ended.
    pub ended: &'a Ended,
    /// The record whose headers stand before.
    pub record: &'a Record,
    /// The shard that it entered by.
    pub shard: i32,
    /// Where it failed.
    pub stage: Stage,
}

/// Where a record failed, in Connect's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// As a task: its attempts, or the wait for them.
    Task,
    /// Before that: it could not be read as one.
    Reading,
}

/// What the names of all these headers begin with.
const SPRING: &str = "kafka_dlt-";

/// The same of Connect's.
const CONNECT: &str = "__connect.errors.";

/// All names that are written, without what they begin with.
const SPRING_NAMES: [&str; 7] = [
    "exception-fqcn",
    "exception-message",
    "original-topic",
    "original-partition",
    "original-offset",
    "original-timestamp",
    "original-consumer-group",
];

/// The same of Connect's.
const CONNECT_NAMES: [&str; 9] = [
    "topic",
    "partition",
    "offset",
    "connector.name",
    "task.id",
    "stage",
    "class.name",
    "exception.class.name",
    "exception.message",
];

// === impl Library ===

impl Library {
    /// The dialect of a letter with such headers.
    pub const fn dialect(self) -> Dialect {
        match self {
            Self::Spring => Dialect::Spring,
            Self::Connect => Dialect::Connect,
        }
    }

    /// Whether one of its headers that are written has this name.
    fn has(self, name: &[u8]) -> bool {
        let (start, names) = match self {
            Self::Spring => (SPRING, &SPRING_NAMES[..]),
            Self::Connect => (CONNECT, &CONNECT_NAMES[..]),
        };
        let rest = name.strip_prefix(start.as_bytes());
        rest.is_some_and(|rest| names.iter().any(|name| name.as_bytes() == rest))
    }
}

// === impl Stage ===

impl Stage {
    /// The word that Connect has for it.
    const fn word(self) -> &'static str {
        match self {
            Self::Task => "TASK_PUT",
            Self::Reading => "HEADER_CONVERTER",
        }
    }
}

// === impl Beside ===

impl Beside {
    /// Writes the headers behind those that retide has written.
    pub fn write(&self, dead: &Dead<'_>, sink: &mut Sink<'_>) {
        let Dead { ended, record, .. } = dead;
        let mut theirs = record.headers.iter();
        let has_some = theirs.any(|header| self.library.has(header.name.as_bytes()));
        if has_some || matches!(ended.omitted, Omitted::Record(_)) {
            return;
        }
        match self.library {
            Library::Spring => self.spring(dead, sink),
            Library::Connect => self.connect(dead, sink),
        }
    }

    /// Writes those of Spring's, in its order.
    fn spring(&self, Dead { ended, .. }: &Dead<'_>, sink: &mut Sink<'_>) {
        let names = self.library.dialect().names();
        let origin = &ended.origin;
        let entered = i64::try_from(millis(ended.first_failed_at)).unwrap_or(i64::MAX);
        let (class, message) = failure(ended);
        write_text("kafka_dlt-exception-fqcn", class, sink);
        write_text("kafka_dlt-exception-message", message, sink);
        write_text(names.topic, &origin.topic, sink);
        sink(
            names.partition.as_bytes(),
            Some(&origin.partition.to_be_bytes()),
        );
        sink(names.offset.as_bytes(), Some(&origin.offset.to_be_bytes()));
        sink(
            b"kafka_dlt-original-timestamp",
            Some(&entered.to_be_bytes()),
        );
        write_text(names.reader.unwrap_or_default(), &self.group, sink);
    }

    /// Writes those of Connect's, in its order.
    fn connect(&self, dead: &Dead<'_>, sink: &mut Sink<'_>) {
        let names = self.library.dialect().names();
        let Dead {
            ended,
            shard,
            stage,
            ..
        } = dead;
        let origin = &ended.origin;
        let (class, message) = failure(ended);
        write_text(names.topic, &origin.topic, sink);
        write_text(names.partition, &origin.partition.to_string(), sink);
        write_text(names.offset, &origin.offset.to_string(), sink);
        write_text(names.reader.unwrap_or_default(), &self.group, sink);
        write_text("__connect.errors.task.id", &shard.to_string(), sink);
        write_text("__connect.errors.stage", stage.word(), sink);
        write_text("__connect.errors.class.name", &ended.scene, sink);
        write_text("__connect.errors.exception.class.name", class, sink);
        write_text("__connect.errors.exception.message", message, sink);
    }
}

/// Takes what retide has written beside its own headers off the record of a dead letter, and nothing off any other record: a producer's
/// headers of the same names stand before the outcome, and the record of a task that has not ended badly has none.
pub fn take_off(record: &mut Record) {
    let is_known = |Header { name, .. }: &Header| {
        let name = name.as_bytes();
        Library::Spring.has(name) || Library::Connect.has(name)
    };
    // Each record goes through here, and hardly one has such a header.
    if !record.headers.iter().any(is_known) {
        return;
    }
    let mut headers = record.headers.iter();
    let outcome = headers.rposition(|header| is_named(header.name.as_bytes(), OUTCOME));
    let Some(outcome) = outcome else { return };
    let said = record.headers[outcome].value.as_deref();
    let mut bad = [Terminal::Dead, Terminal::Expired].iter();
    if !bad.any(|bad| said == Some(bad.word().as_bytes())) {
        return;
    }
    let mut place = 0;
    record.headers.retain(|header| {
        place += 1;
        place <= outcome || !is_known(header)
    });
}

/// What failed last, as a word and a text; without an attempt, why there was none.
fn failure(ended: &Ended) -> (&str, &str) {
    match (&ended.failure, ended.reason) {
        (Some(failure), _) => (&failure.class, &failure.message),
        (None, Some(reason)) => (reason.word(), ""),
        (None, None) => ("", ""),
    }
}

/// Writes a text that is there.
fn write_text(name: &str, value: &str, sink: &mut Sink<'_>) {
    if !value.is_empty() {
        sink(name.as_bytes(), Some(value.as_bytes()));
    }
}
