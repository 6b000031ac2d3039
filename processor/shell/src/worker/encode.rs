//! From decisions to records: the topic, the partition and the bytes of each entry.
//!
//! Invariant: a task is parked in the shard it was read from, unless it moves to another one; all that is said of it goes to the partition
//! of the shard it entered by, so that it is in order there.

use std::io::Write as _;
use std::sync::Arc;

use serde::Serialize;

use retide_avro::beside::{Beside, Dead, Stage};
use retide_avro::control;
use retide_avro::headers::{self, Sink};
use retide_avro::wire::{self, CallbackLine, Codec, EventLine, Format, Framing, Wire};
use retide_connectors::kafka;
use retide_core::control::Control;
use retide_core::{Alert, Ended, Entry, Record, State};
use retide_kafka::record::Parts;
use retide_kafka::topics::Topics;

use crate::holds::{self, HELD};
use crate::replayed::{REPLAYED, WARNED};
use crate::worker::duplicates;
use crate::worker::order::{STEP, TAKEN};
use crate::worker::progress;
use crate::writable::Writability;

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
    /// What dead letters have beside retide's headers, if anything.
    beside: Option<Beside>,
}

/// The shards of a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shards {
    /// The one it was read from.
    pub own: i32,
    /// The one it entered by.
    pub home: i32,
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
            beside: None,
        }
    }

    /// As it is, with this beside retide's headers of dead letters.
    #[must_use]
    pub fn beside(self, beside: Option<Beside>) -> Self {
        Self { beside, ..self }
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

    /// Writes what a dead letter has beside retide's headers.
    fn write_beside(
        &self,
        (ended, record): (&Ended, &Record),
        (shard, stage): (i32, Stage),
        sink: &mut Sink<'_>,
    ) {
        if let Some(beside) = &self.beside {
            let dead = Dead {
                ended,
                record,
                shard,
                stage,
            };
            beside.write(&dead, sink);
        }
    }

    /// The topic of shard state.
    pub(crate) fn order(&self) -> &Arc<str> {
        &self.topics.order
    }

    /// The topic that takes the records of a tier.
    fn tier(&self, tier: usize) -> &Arc<str> {
        &self.topics.tiers[self.writability.tier(tier)]
    }

    /// The record of what has to be known of a shard.
    fn state<'a>(&'a self, shard: i32, state: &'a State, scratch: &'a mut Scratch) -> Parts<'a> {
        let Scratch { key, value } = scratch;
        key.clear();
        let value = match state {
            State::Order(change) => {
                let _ = write!(key, "{}", change.key);
                change.value.as_deref()
            }
            State::Taken {
                source,
                chunk,
                marks,
            } => {
                let _ = write!(key, "{TAKEN}{}/{chunk}", self.topics.name(*source));
                marks.as_deref()
            }
            State::Step { place, progress } => {
                let _ = write!(key, "{STEP}{place}");
                progress.as_ref().map(|progress| {
                    value.clear();
                    progress::encode(progress, &self.topics, value);
                    &value[..]
                })
            }
            State::Letters {
                partition,
                chunk,
                marks,
            } => {
                let _ = write!(key, "{REPLAYED}{partition}/{chunk}");
                marks.as_deref()
            }
            State::Warned { partition, at } => {
                let _ = write!(key, "{WARNED}{partition}");
                at.map(|at| {
                    value.clear();
                    let _ = write!(value, "{}", at.as_millis());
                    &value[..]
                })
            }
            State::Hold { name, standing } => {
                let _ = write!(key, "{HELD}{name}");
                standing.as_ref().map(|standing| {
                    value.clear();
                    holds::encode(standing, value);
                    &value[..]
                })
            }
            State::Replaced { task, replaced } => {
                let _ = write!(key, "{}{task}", duplicates::REPLACED);
                replaced.as_ref().map(|replaced| {
                    value.clear();
                    duplicates::encode_replaced(replaced, value);
                    &value[..]
                })
            }
            State::Id { id, known } => {
                let _ = write!(key, "{}{id}", duplicates::KEY);
                known.as_ref().map(|known| {
                    value.clear();
                    duplicates::encode(known, value);
                    &value[..]
                })
            }
        };
        Parts {
            topic: &self.topics.order,
            partition: Some(shard),
            key: Some(key),
            value,
        }
    }

    /// The record of what becomes of a command; its headers go to `sink`.
    fn control<'a>(
        &'a self,
        to: i32,
        control: &Control,
        scratch: &'a mut Scratch,
        sink: &mut Sink<'_>,
    ) -> Parts<'a> {
        let written = control::encode(control, &|source| Arc::clone(self.topics.name(source)));
        for header in &written.headers {
            sink(header.name.as_bytes(), header.value.as_deref());
        }
        scratch.key.clear();
        scratch.key.extend_from_slice(&written.key);
        scratch.value.clear();
        scratch.value.extend_from_slice(&written.value);
        Parts {
            topic: &self.topics.commands,
            partition: Some(to),
            key: Some(&scratch.key),
            value: Some(&scratch.value),
        }
    }

    /// The record of one entry, if it has one; its headers go to `sink`.
    ///
    /// # Errors
    /// If it has no encoding, which is a broken invariant of the codec.
    pub fn entry<'a>(
        &'a self,
        Shards { own: shard, home }: Shards,
        entry: &'a Entry,
        scratch: &'a mut Scratch,
        sink: &mut Sink<'_>,
    ) -> Result<Option<Parts<'a>>, wire::Error> {
        let topics = &self.topics;
        Ok(Some(match entry {
            Entry::Park { tier, to, task } => {
                headers::write_task(task, sink);
                let tier = self.writability.tier(*tier);
                // Where a tier stands in that only owners of shards write to, a task stays where it is, and moves later.
                let to = to.filter(|_| tier < topics.shared);
                Parts::of(&topics.tiers[tier], to.unwrap_or(shard), &task.record)
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
                self.write_beside((ended, &task.record), (home, Stage::Task), sink);
                Parts::of(&topics.dead_letters, home, &task.record)
            }
            Entry::Poison { poison, ended } => {
                headers::write_poison(poison, ended, sink);
                self.write_beside((ended, &poison.record), (home, Stage::Reading), sink);
                Parts {
                    // Set aside, it has none, and nobody looks for one. Its own stays as it was.
                    key: poison.record.key.as_deref().or(poison.key.as_deref()),
                    ..Parts::of(&topics.dead_letters, home, &poison.record)
                }
            }
            Entry::Callback(ended) => {
                headers::write_ended(ended, sink);
                let report = &CallbackLine::from(&**ended);
                let to = (&topics.callbacks, home);
                scratch.report(to, &[&ended.id], (&self.callbacks, report), sink)?
            }
            Entry::DeliverCallback(ended) => {
                headers::write_task(&ended.delivery(), sink);
                sink(
                    headers::OUTCOME.as_bytes(),
                    Some(ended.terminal.word().as_bytes()),
                );
                let report = &CallbackLine::from(&**ended);
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
                // The leader of a campaign says it of tasks of all shards.
                let home = event.transition.home().unwrap_or(home);
                scratch.report((&topics.events, home), &[&event.id], (codec, report), sink)?
            }
            Entry::State(state) => self.state(shard, state, scratch),
            Entry::Control { to, control } => self.control(*to, control, scratch, sink),
            Entry::Alert(alert) => self.alert(shard, alert, scratch, sink)?,
        }))
    }
}

// === impl Shards ===

impl Shards {
    /// The shards of what never moved.
    pub const fn at(shard: i32) -> Self {
        Self {
            own: shard,
            home: shard,
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use bytes::Bytes;

    use retide_core::control;
    use retide_core::entry::{DEAD_TASKS, Event};
    use retide_core::key_order::{Change, Fingerprint};
    use retide_core::{
        Ended, Kind, Ladder, Omitted, Origin, Record, Task, Terminal, Timestamp, Transition,
    };
    use retide_kafka::topics::{Key, Partitions, Role, Value};

    use super::*;

    fn task() -> Task {
        Task {
            id: "the-id".into(),
            scene: "the-scene".into(),
            kind: Kind::Work,
            attempt: 1,
            due: Timestamp::EPOCH,
            deferral: None,
            first_failed_at: Timestamp::EPOCH,
            deadline: None,
            origin: Origin {
                topic: "retry.tasks".into(),
                partition: 2,
                offset: 7,
            },
            failure: None,
            hops: 0,
            throttled: 0,
            exhausted: None,
            held_since: None,
            pending_since: None,
            stopped: None,
            commanded: None,
            replay: None,
            record: Record {
                key: Some(Bytes::from_static(b"the-key")),
                ..Record::default()
            },
        }
    }

    fn ended(task: &Task) -> Ended {
        Ended {
            id: Arc::clone(&task.id),
            scene: Arc::clone(&task.scene),
            kind: task.kind,
            terminal: Terminal::Dead,
            reason: None,
            attempts: 1,
            origin: task.origin.clone(),
            first_failed_at: Timestamp::EPOCH,
            at: Timestamp::EPOCH,
            failure: None,
            key: None,
            omitted: Omitted::Nothing,
        }
    }

    /// One entry for each role that workers write.
    fn entries() -> Vec<Entry> {
        let task = Arc::new(task());
        let ended = Arc::new(ended(&task));
        vec![
            Entry::Park {
                tier: 1,
                to: None,
                task: Arc::clone(&task),
            },
            Entry::Callback(Arc::clone(&ended)),
            Entry::Event(Event {
                id: Arc::clone(&task.id),
                scene: Arc::clone(&task.scene),
                kind: task.kind,
                at: Timestamp::EPOCH,
                transition: Transition::Parked {
                    due: Timestamp::EPOCH,
                },
                wait: None,
                left_out: None,
                command: None,
            }),
            Entry::State(State::Order(Change {
                key: Fingerprint::of("the-scene", b"the-key"),
                value: None,
            })),
            Entry::Alert(Box::new(Alert {
                rule: DEAD_TASKS,
                scene: Arc::clone(&task.scene),
                at: Timestamp::EPOCH,
                count: 1,
                example: Arc::clone(&task.id),
                reason: "exhausted",
                target: None,
                expiring: None,
            })),
            Entry::DeadLetter { task, ended },
            Entry::Control {
                to: 1,
                control: Box::new(Control::Ended(control::Ended {
                    place: "1/2/3".parse().unwrap(),
                    id: "the-command".into(),
                    at: Timestamp::EPOCH,
                    ids: 0,
                    result: Ok(control::Counts::default()),
                })),
            },
        ]
    }

    #[test]
    fn each_record_is_on_its_topic_as_the_catalogue_has_it() {
        let ladder = Ladder::try_new(&["now", "5s"]).unwrap();
        let topics = Arc::new(Topics::new("retry", &ladder));
        let encoder = Encoder::new(Arc::clone(&topics), Formats::default());
        let shards = Shards { own: 1, home: 2 };
        let fingerprint = Fingerprint::of("the-scene", b"the-key").to_string();
        let mut written = BTreeSet::new();

        for entry in &entries() {
            let (mut scratch, mut is_report) = (Scratch::default(), false);
            let mut sink = |name: &[u8], _: Option<&[u8]>| {
                is_report |= name == headers::CONTENT_TYPE.as_bytes();
            };
            let parts = encoder.entry(shards, entry, &mut scratch, &mut sink);
            let parts = parts.unwrap().unwrap();

            let mut roles = Role::ALL.into_iter();
            let role = roles.find(|role| topics.of(*role).contains(parts.topic));
            let about = role.unwrap().about();
            let partition = match about.partitions {
                // Requests go by their key, and what becomes of them to the shard that it is for.
                Partitions::ByKey if role == Some(Role::Commands) => Some(1),
                Partitions::ByKey => None,
                Partitions::Shard => Some(shards.own),
                Partitions::Home => Some(shards.home),
                Partitions::One => Some(0),
            };
            let key = match about.key {
                Key::Producers => "the-key",
                Key::Task => "the-id",
                Key::SceneAndRule => "the-scene/dead-tasks",
                Key::Scene => "the-scene",
                Key::Fingerprint => &fingerprint,
                Key::Command => "the-command",
                Key::Server => unreachable!("a topic of signals"),
            };
            assert_eq!(parts.partition, partition, "{about:?}");
            assert_eq!(parts.key, Some(key.as_bytes()), "{about:?}");
            assert_eq!(is_report, about.value == Value::Report, "{about:?}");
            written.insert(about.name);
        }

        let roles = Role::ALL.into_iter();
        let roles = roles.filter(|role| role.is_written());
        let roles: BTreeSet<_> = roles.map(|role| role.about().name).collect();
        assert_eq!(written, roles);
    }
}
