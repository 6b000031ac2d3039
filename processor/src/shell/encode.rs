//! From decisions to records: the topic, the partition and the bytes of each entry.
//!
//! Invariant: everything but a delivery goes to the partition of its shard.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use serde::Serialize;

use retide_avro::headers::{self, Sink};
use retide_avro::wire::{self, Codec, EventLine, Format, Framing, Wire};
use retide_connectors::kafka;
use retide_core::task::Failure;
use retide_core::{
    Alert, Entry, Header, Kind, Origin, Poison, Reason, Record, Settlement, Task, Terminal,
    Timestamp,
};

use crate::shell::ledger::{OutHeaders, OutRecord, Settled};
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
}

/// The rule that counts tasks that died.
const DEAD_TASKS: &str = "dead-tasks";

// === impl Formats ===

impl Default for Formats {
    /// Avro everywhere.
    fn default() -> Self {
        Self {
            callbacks: Format::Avro,
            events: Some(Format::Avro),
            alerts: Format::Avro,
        }
    }
}

// === impl Encoder ===

impl Encoder {
    /// Encodes callbacks, events and alerts in `formats`.
    pub fn new(topics: Arc<Topics>, formats: Formats) -> Self {
        Self {
            topics,
            callbacks: Codec::new(formats.callbacks, Framing::SingleObject),
            bodies: Codec::new(Format::Json, Framing::SingleObject),
            events: formats
                .events
                .map(|format| Codec::new(format, Framing::SingleObject)),
            alerts: Codec::new(formats.alerts, Framing::SingleObject),
        }
    }

    /// The records of one settlement.
    ///
    /// # Errors
    /// If an entry has no encoding, which is a broken invariant of the codec.
    pub fn settled(&self, settlement: &Settlement) -> Result<Settled, wire::Error> {
        let shard = settlement.lane.shard;
        let encode = |entries: &[Entry]| -> Result<Vec<OutRecord>, wire::Error> {
            entries
                .iter()
                .filter_map(|entry| self.entry(shard, entry).transpose())
                .collect()
        };
        Ok(Settled {
            shard,
            records: encode(&settlement.entries)?,
            otherwise: encode(&settlement.otherwise)?,
        })
    }

    /// Counts the dead tasks of one transaction by scene.
    pub fn count(dead: &mut BTreeMap<Arc<str>, (i32, Alert)>, settlement: &Settlement) {
        for entry in &settlement.entries {
            let (Entry::DeadLetter { ended, .. } | Entry::Poison { ended, .. }) = entry else {
                continue;
            };
            let (Terminal::Dead, Some(reason)) = (ended.terminal, ended.reason) else {
                continue;
            };
            let alert = Alert {
                rule: DEAD_TASKS,
                scene: Arc::clone(&ended.scene),
                at: ended.at,
                count: 0,
                example: Arc::clone(&ended.id),
                reason,
            };
            let (_, alert) = dead
                .entry(Arc::clone(&ended.scene))
                .or_insert((settlement.lane.shard, alert));
            alert.count += 1;
        }
    }

    /// The records of the alerts of one transaction.
    ///
    /// # Errors
    /// As [`Self::settled`].
    pub fn alert(&self, shard: i32, alert: &Alert) -> Result<Settled, wire::Error> {
        let key = format!("{}/{}", alert.scene, alert.rule);
        let headers = collect(|sink| headers::write_alert(alert, sink));
        let report = &wire::Alert::from(alert);
        Ok(Settled {
            shard,
            records: vec![report_on(
                &self.topics.alerts,
                shard,
                &key,
                (&self.alerts, report),
                headers,
            )?],
            otherwise: Vec::new(),
        })
    }

    /// The task that delivers a callback record.
    ///
    /// # Errors
    /// If the record is no callback.
    pub fn callback(
        &self,
        record: Record,
        origin: Origin,
        now: Timestamp,
    ) -> Result<Task, Box<Poison>> {
        let decoded = self
            .callbacks
            .decode(record.value.as_deref().unwrap_or_default())
            .and_then(|callback| self.bodies.encode(&callback));
        let body = match decoded {
            Ok(body) => body,
            Err(error) => {
                return Err(Box::new(Poison {
                    id: headers::identity(&origin),
                    scene: "".into(),
                    origin,
                    record,
                    reason: Reason::BadEnvelope,
                    detail: Failure::new("bad-callback", &error.to_string()),
                }));
            }
        };
        let text = |name: &str| {
            let value = record
                .header(name)
                .map(|value| String::from_utf8_lossy(value));
            Arc::<str>::from(value.unwrap_or_default())
        };
        let header = |name: &str, value: Bytes| Header {
            name: name.into(),
            value: Some(value),
        };
        let outcome = record.header(headers::OUTCOME).cloned().unwrap_or_default();
        Ok(Task {
            id: text(headers::ID),
            scene: text(headers::SCENE),
            kind: Kind::Callback,
            attempt: 1,
            due: now,
            first_failed_at: now,
            deadline: None,
            origin,
            failure: None,
            hops: 0,
            record: Record {
                key: record.key,
                value: Some(body.into()),
                headers: vec![
                    header("content-type", wire::CONTENT_TYPE_JSON.into()),
                    header(headers::OUTCOME, outcome),
                ],
            },
        })
    }

    /// The record of one entry, if it has one.
    fn entry(&self, shard: i32, entry: &Entry) -> Result<Option<OutRecord>, wire::Error> {
        let topics = &self.topics;
        Ok(Some(match entry {
            Entry::Park { tier, task } => {
                let headers = collect(|sink| headers::write_task(task, sink));
                out(&topics.tiers[*tier], shard, &task.record, headers)
            }
            Entry::Deliver { topic, task } => {
                let headers = collect(|sink| kafka::write_headers(task, sink));
                OutRecord {
                    partition: None,
                    ..out(topic, shard, &task.record, headers)
                }
            }
            Entry::DeadLetter { task, ended } => {
                let headers = collect(|sink| headers::write_dead_letter(task, ended, sink));
                out(&topics.dead_letters, shard, &task.record, headers)
            }
            Entry::Poison { poison, ended } => {
                let headers = collect(|sink| headers::write_poison(poison, ended, sink));
                out(&topics.dead_letters, shard, &poison.record, headers)
            }
            Entry::Callback(ended) => {
                let headers = collect(|sink| headers::write_ended(ended, sink));
                let report = &wire::Callback::from(&**ended);
                report_on(
                    &topics.callbacks,
                    shard,
                    &ended.id,
                    (&self.callbacks, report),
                    headers,
                )?
            }
            Entry::Event(event) => {
                let Some(codec) = &self.events else {
                    return Ok(None);
                };
                let headers = collect(|sink| headers::write_event(event, sink));
                let report = &EventLine::from(event);
                report_on(&topics.events, shard, &event.id, (codec, report), headers)?
            }
        }))
    }
}

/// A record that goes on as it came, but for its headers.
fn out(topic: &Arc<str>, shard: i32, record: &Record, headers: OutHeaders) -> OutRecord {
    OutRecord {
        topic: Arc::clone(topic),
        partition: Some(shard),
        key: record.key.clone(),
        value: record.value.clone(),
        headers,
    }
}

/// A record of retide's own, and the header that names its content type.
fn report_on<R: Wire>(
    topic: &Arc<str>,
    shard: i32,
    key: &str,
    (codec, report): (&Codec<R>, &impl Serialize),
    mut headers: OutHeaders,
) -> Result<OutRecord, wire::Error> {
    let content_type = codec.format().content_type();
    headers.push("content-type", Some(content_type.as_bytes()));
    Ok(OutRecord {
        topic: Arc::clone(topic),
        partition: Some(shard),
        key: Some(Bytes::copy_from_slice(key.as_bytes())),
        value: Some(codec.encode(report)?.into()),
        headers,
    })
}

/// The headers that `write` writes.
fn collect(write: impl FnOnce(&mut Sink<'_>)) -> OutHeaders {
    let mut headers = OutHeaders::default();
    write(&mut |name, value| headers.push(name, value));
    headers
}
