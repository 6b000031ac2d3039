//! From decisions to records: the topic, the partition and the bytes of each entry.
//!
//! Invariant: a task is parked in the shard it was read from, unless it moves to another one; all that is said of it goes to the partition
//! of the shard it entered by, so that it is in order there.

use std::io::Write as _;
use std::sync::Arc;

use serde::Serialize;

use retide_avro::headers::{self, Sink};
use retide_avro::wire::{self, Codec, EventLine, Format, Framing, Wire};
use retide_connectors::kafka;
use retide_core::key_order::Change;
use retide_core::{Alert, Entry, Record};

use crate::shell::writable::Writability;
use crate::topics::Topics;

/// Encodes entries for the topics of one prefix.
pub struct Encoder {
    /// The topics.
    topics: Arc<Topics>,
    /// Of the callbacks topic.
    callbacks: Codec<wire::Callback>,
    /// Of the body of a callback that is delivered.
    bodies: Codec<wire::Callback>,
    /// Of the events topic; none if no events are written.
    events: Option<Codec<wire::Event>>,
    /// Of the alerts topic.
    alerts: Codec<wire::Alert>,
    /// Which topics take records.
    writability: Arc<Writability>,
}

/// The shards of a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The one it was read from.
    pub shard: i32,
    /// The one it entered by.
    pub home: i32,
}

/// A record to write, but for its headers.
#[derive(Clone, Copy, Debug)]
pub struct Parts<'a> {
    /// The topic.
    pub topic: &'a Arc<str>,
    /// The partition; none leaves it to the key.
    pub partition: Option<i32>,
    /// The key.
    pub key: Option<&'a [u8]>,
    /// The value.
    pub value: Option<&'a [u8]>,
}

/// Memory for the record that is being written, used again for the next one.
#[derive(Debug, Default)]
pub struct Scratch {
    /// The key.
    key: Vec<u8>,
    /// The value.
    value: Vec<u8>,
}

/// How the records on retide's own topics are written.
#[derive(Clone, Copy, Debug)]
pub struct Formats {
    /// On the callbacks topic.
    pub callbacks: Format,
    /// On the events topic; none writes no events.
    pub events: Option<Format>,
    /// On the alerts topic.
    pub alerts: Format,
    /// What stands before a callback in Avro.
    pub callback_frame: Framing,
    /// What stands before an alert in Avro.
    pub alert_frame: Framing,
}

// === impl Formats ===

impl Default for Formats {
    /// What strangers read in JSON, the audit log in Avro.
    fn default() -> Self {
        Self {
            callbacks: Format::Json,
            events: Some(Format::Avro),
            alerts: Format::Json,
            callback_frame: Framing::default(),
            alert_frame: Framing::default(),
        }
    }
}

// === impl Encoder ===

impl Encoder {
    /// Encodes callbacks, events and alerts in `formats`.
    pub fn new(topics: Arc<Topics>, formats: Formats) -> Self {
        let writability = Arc::new(Writability::new(&topics));
        Self {
            topics,
            writability,
            callbacks: Codec::new(formats.callbacks, formats.callback_frame),
            bodies: Codec::new(Format::Json, Framing::SingleObject),
            events: formats
                .events
                .map(|format| Codec::new(format, Framing::SingleObject)),
            alerts: Codec::new(formats.alerts, formats.alert_frame),
        }
    }

    /// As it is, for the topics of `writability` that take records.
    #[must_use]
    pub fn with(self, writability: &Arc<Writability>) -> Self {
        Self {
            writability: Arc::clone(writability),
            ..self
        }
    }

    /// Which topics take records.
    pub fn writability(&self) -> &Arc<Writability> {
        &self.writability
    }

    /// How many records `entries` are.
    pub fn records(&self, entries: &[Entry]) -> usize {
        let left_out = |entry: &&Entry| self.events.is_none() && matches!(entry, Entry::Event(_));
        entries.len() - entries.iter().filter(left_out).count()
    }

    /// The record of an alert; its headers go to `sink`.
    fn alert<'a>(
        &'a self,
        shard: i32,
        alert: &Alert,
        scratch: &'a mut Scratch,
        sink: &mut Sink<'_>,
    ) -> Result<Parts<'a>, wire::Error> {
        headers::write_alert(alert, sink);
        let key = &[&*alert.scene, "/", alert.rule];
        let report = &wire::Alert::from(alert);
        let topic = &self.topics.alerts;
        scratch.report((topic, shard), key, (&self.alerts, report), sink)
    }

    /// The topic that takes the records of a tier.
    fn tier(&self, tier: usize) -> &Arc<str> {
        &self.topics.tiers[self.writability.tier(tier)]
    }

    /// The record of what is outstanding of a key.
    fn order<'a>(&'a self, shard: i32, change: &'a Change, scratch: &'a mut Scratch) -> Parts<'a> {
        scratch.key.clear();
        let _ = write!(scratch.key, "{}", change.key);
        Parts {
            topic: &self.topics.order,
            partition: Some(shard),
            key: Some(&scratch.key),
            value: change.value.as_deref(),
        }
    }

    /// The record of one entry, if it has one; its headers go to `sink`.
    ///
    /// # Errors
    /// If it has no encoding, which is a broken invariant of the codec.
    pub fn entry<'a>(
        &'a self,
        Place { shard, home }: Place,
        entry: &'a Entry,
        scratch: &'a mut Scratch,
        sink: &mut Sink<'_>,
    ) -> Result<Option<Parts<'a>>, wire::Error> {
        let topics = &self.topics;
        Ok(Some(match entry {
            Entry::Park { tier, to, task } => {
                headers::write_task(task, sink);
                Parts::of(self.tier(*tier), to.unwrap_or(shard), &task.record)
            }
            Entry::Deliver {
                topic,
                task,
                deadline,
                ..
            } => {
                kafka::write_headers(task, sink);
                headers::write_deadline(*deadline, sink);
                Parts {
                    partition: None,
                    ..Parts::of(topic, home, &task.record)
                }
            }
            Entry::DeadLetter { task, ended } => {
                headers::write_dead_letter(task, ended, sink);
                Parts::of(&topics.dead_letters, home, &task.record)
            }
            Entry::Poison { poison, ended } => {
                headers::write_poison(poison, ended, sink);
                Parts {
                    // Set aside, it has none, and nobody looks for one. Its own stays as it was.
                    key: poison.record.key.as_deref().or(poison.key.as_deref()),
                    ..Parts::of(&topics.dead_letters, home, &poison.record)
                }
            }
            Entry::Callback(ended) => {
                headers::write_ended(ended, sink);
                let report = &wire::Callback::from(&**ended);
                let to = (&topics.callbacks, home);
                scratch.report(to, &[&ended.id], (&self.callbacks, report), sink)?
            }
            Entry::DeliverCallback(ended) => {
                headers::write_task(&ended.delivery(), sink);
                sink(
                    headers::OUTCOME.as_bytes(),
                    Some(ended.terminal.word().as_bytes()),
                );
                let report = &wire::Callback::from(&**ended);
                // The first tier has no delay.
                let to = (self.tier(0), home);
                scratch.report(to, &[&ended.id], (&self.bodies, report), sink)?
            }
            Entry::Event(event) => {
                let Some(codec) = &self.events else {
                    return Ok(None);
                };
                headers::write_event(event, sink);
                let report = &EventLine::from(event);
                scratch.report((&topics.events, home), &[&event.id], (codec, report), sink)?
            }
            Entry::Order(change) => self.order(shard, change, scratch),
            Entry::Alert(alert) => self.alert(shard, alert, scratch, sink)?,
        }))
    }
}

// === impl Place ===

impl Place {
    /// The place of what never moved.
    pub const fn at(shard: i32) -> Self {
        Self { shard, home: shard }
    }
}

// === impl Parts ===

impl<'a> Parts<'a> {
    /// A record that goes on as it came, but for its headers.
    fn of(topic: &'a Arc<str>, shard: i32, record: &'a Record) -> Self {
        Self {
            topic,
            partition: Some(shard),
            key: record.key.as_deref(),
            value: record.value.as_deref(),
        }
    }
}

// === impl Scratch ===

impl Scratch {
    /// A record of retide's own, and the header that names its content type.
    fn report<'a, R: Wire>(
        &'a mut self,
        (topic, shard): (&'a Arc<str>, i32),
        key: &[&str],
        (codec, report): (&Codec<R>, &impl Serialize),
        sink: &mut Sink<'_>,
    ) -> Result<Parts<'a>, wire::Error> {
        let content_type = codec.format().content_type();
        sink(
            headers::CONTENT_TYPE.as_bytes(),
            Some(content_type.as_bytes()),
        );
        self.key.clear();
        for part in key {
            self.key.extend_from_slice(part.as_bytes());
        }
        self.value.clear();
        codec.encode_into(report, &mut self.value)?;
        Ok(Parts {
            topic,
            partition: Some(shard),
            key: Some(&self.key),
            value: Some(&self.value),
        })
    }
}
