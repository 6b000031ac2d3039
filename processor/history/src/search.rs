//! Finds the records of one task.
//!
//! What is said of a task stands on the partition on which it entered, so the retry topic is read first and says which partitions of the
//! others to read; all of them if it does not, and of tiers, where a task may have moved. Tiers come longest first and events last, since that is the way tasks go: what moves
//! while it is looked for is seen where it was, or where it went. Invariant: nothing is read after the deadline.

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::{BorrowedMessage, Message};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList, TopicPartitionListElem};
use serde::Serialize;
use tracing::warn;

use retide_avro::headers;
use retide_avro::schemas::Key;
use retide_avro::wire::{self, Wire};
use retide_avro::{Arrival, Intake};
use retide_core::{Kind, Origin, Timestamp, with_causes};
use retide_kafka::client::LoggingContext;
use retide_kafka::record::received;
use retide_kafka::scan::{self, CALL, Scanned, last, last_bytes};
use retide_kafka::topics::Topics;

use crate::fact::{DeadLetter, Fact, Said};
use crate::report::Reader;

/// What to look for, and where.
#[derive(Clone, Debug)]
pub struct Query {
    /// The task's identity.
    pub id: String,
    /// The only partition to read.
    pub partition: Option<i32>,
    /// Records before this are not read.
    pub from: Option<Timestamp>,
    /// When to stop reading.
    pub deadline: Instant,
}

/// What was found.
#[derive(Debug, Default)]
pub struct Found {
    /// The task's records.
    pub facts: Vec<Fact>,
    /// What was read for them.
    pub readings: Vec<Reading>,
    /// The records that could not be read since their schemas cannot be asked for, if there are any.
    pub unnamed: Option<Unnamed>,
}

/// Records of the retry topic whose schema a registry has to be asked for, which gives no answer.
#[derive(Clone, Debug)]
pub struct Unnamed {
    /// How many there are.
    pub records: u64,
    /// One of them.
    pub example: Origin,
    /// What its schema is named.
    pub key: Key,
    /// Why there is no answer.
    pub why: String,
}

/// How far a topic was read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Reading {
    /// The topic.
    pub topic: Arc<str>,
    /// The partitions that were to be read; none of a topic that does not exist.
    pub partitions: Vec<i32>,
    /// How many records were read.
    pub records: u64,
    /// The partitions that were not read to their ends.
    pub unread: BTreeSet<i32>,
}

/// Asks a registry what a schema is and learns it; else, why there is no answer.
pub type Ask<'a> = &'a dyn Fn(Key) -> Result<(), String>;

/// A topic, by what its records are.
#[derive(Clone, Copy, Debug)]
enum Sort {
    /// The retry topic.
    Tasks,
    /// A tier.
    Tier(usize),
    /// Dead letters.
    DeadLetters,
    /// Callback records.
    Callbacks,
    /// Events.
    Events,
}

/// A search under way.
struct Search<'a> {
    /// What to look for.
    query: &'a Query,
    /// How records of the retry topic are read.
    intake: &'a Intake,
    /// Asks a registry for their schemas, if there is one.
    ask: Option<Ask<'a>>,
    /// Reads.
    consumer: BaseConsumer<LoggingContext>,
    /// Reads events.
    events: Reader<wire::Event>,
    /// Reads callback records.
    callbacks: Reader<wire::Callback>,
    /// What was found.
    found: Found,
}

/// Time after which it is said how far a search is, and again.
const PROGRESS: Duration = Duration::from_secs(2);

/// Looks for the records of a task; `progress` is told now and then which topic is read, and how many records were.
pub fn search(
    client: ClientConfig,
    topics: &Topics,
    query: &Query,
    ask: Option<Ask<'_>>,
    mut progress: impl FnMut(&str, u64),
) -> Result<Found, KafkaError> {
    let mut search = Search {
        query,
        intake: &topics.intake,
        ask,
        consumer: scan::consumer(client, "retide-explain")?,
        events: Reader::default(),
        callbacks: Reader::default(),
        found: Found::default(),
    };
    let mut only: BTreeSet<i32> = query.partition.into_iter().collect();
    let anywhere = only.clone();
    for (sort, topic) in way(topics) {
        let partitions = match sort {
            Sort::Tier(_) => &anywhere,
            Sort::Tasks | Sort::DeadLetters | Sort::Callbacks | Sort::Events => &only,
        };
        search.topic((sort, topic), partitions, &mut progress)?;
        if matches!(sort, Sort::Tasks) && only.is_empty() {
            let facts = search.found.facts.iter();
            only.extend(facts.map(|fact| fact.at.partition));
        }
    }
    Ok(search.found)
}

/// The topics that are read, in their order.
fn way(topics: &Topics) -> Vec<(Sort, &Arc<str>)> {
    let mut way = vec![(Sort::Tasks, &topics.tasks)];
    let tiers = topics.tiers.iter().enumerate().rev();
    way.extend(tiers.map(|(tier, topic)| (Sort::Tier(tier), topic)));
    way.extend([
        (Sort::DeadLetters, &topics.dead_letters),
        (Sort::Callbacks, &topics.callbacks),
        (Sort::Events, &topics.events),
    ]);
    way
}

// === impl Search ===

impl Search<'_> {
    /// Reads a topic, or these partitions of it.
    fn topic(
        &mut self,
        (sort, topic): (Sort, &Arc<str>),
        only: &BTreeSet<i32>,
        progress: &mut impl FnMut(&str, u64),
    ) -> Result<(), KafkaError> {
        let deadline = self.query.deadline;
        let mut reading = Reading {
            topic: Arc::clone(topic),
            partitions: only.iter().copied().collect(),
            records: 0,
            unread: only.clone(),
        };
        if Instant::now() >= deadline {
            if reading.unread.is_empty() {
                // Which partitions there are was not asked any more.
                reading.unread.insert(ALL);
            }
            self.found.readings.push(reading);
            return Ok(());
        }
        let starts = self.starts(topic, only)?;
        reading.partitions = starts
            .elements()
            .iter()
            .map(TopicPartitionListElem::partition)
            .collect();
        let before: u64 = self
            .found
            .readings
            .iter()
            .map(|reading| reading.records)
            .sum();
        let mut next = Instant::now() + PROGRESS;
        let Self {
            query,
            intake,
            ask,
            consumer,
            events,
            callbacks,
            found,
        } = self;
        let scanned = scan::read(consumer, &starts, deadline, |message| {
            reading.records += 1;
            if reading.records.is_multiple_of(1_024) && Instant::now() >= next {
                next += PROGRESS;
                progress(topic, before + reading.records);
            }
            let what = match sort {
                Sort::Tasks => entered(message, &query.id, intake, |key| {
                    let Err(why) = name(key, *ask, &mut found.unnamed) else {
                        return;
                    };
                    let unnamed = found.unnamed.get_or_insert_with(|| Unnamed {
                        records: 0,
                        example: place(message),
                        key,
                        why,
                    });
                    unnamed.records += 1;
                }),
                _ if !is_of(message, &query.id) => None,
                Sort::Tier(tier) => parked(message, tier),
                Sort::DeadLetters => Some(dead_letter(message)),
                Sort::Callbacks => decode(message, callbacks).map(Said::Callback),
                Sort::Events => decode(message, events).map(Said::Event).or_else(|| {
                    last(message, headers::EVENT).map(|event| Said::Unreadable { event })
                }),
            };
            found.facts.extend(what.map(|what| Fact {
                at: place(message),
                appended: appended(message),
                what,
            }));
            ControlFlow::Continue(())
        })?;
        reading.unread = match scanned {
            Scanned::ToEnd | Scanned::Enough => BTreeSet::new(),
            Scanned::OutOfTime { left } => left,
        };
        self.found.readings.push(reading);
        Ok(())
    }

    /// Where to start reading a topic.
    fn starts(&self, topic: &str, only: &BTreeSet<i32>) -> Result<TopicPartitionList, KafkaError> {
        let all = scan::partitions(&self.consumer, topic)?;
        let mut starts = TopicPartitionList::with_capacity(all.count());
        // Kafka takes the time for an offset.
        let start = match self.query.from {
            Some(from) => Offset::Offset(from.as_millis() as i64),
            None => Offset::Beginning,
        };
        for element in all.elements() {
            if only.is_empty() || only.contains(&element.partition()) {
                starts.add_partition_offset(topic, element.partition(), start)?;
            }
        }
        match self.query.from {
            Some(_) if starts.count() > 0 => self.consumer.offsets_for_times(starts, CALL),
            Some(_) | None => Ok(starts),
        }
    }
}

/// Stands for all partitions where it is not known which there are.
pub const ALL: i32 = -1;

// === reading ===

/// Whether a record is about the task, by its header; the last one counts.
fn is_of(message: &BorrowedMessage<'_>, id: &str) -> bool {
    named(message) == Some(id.as_bytes())
}

/// The identity in the header.
fn named<'a>(message: &'a BorrowedMessage<'_>) -> Option<&'a [u8]> {
    last_bytes(message, headers::ID)
}

/// What a record of the retry topic says, if it is the task.
///
/// Before it is read, `ask` is told what its schema is named if a registry has to be asked for it.
fn entered(
    message: &BorrowedMessage<'_>,
    id: &str,
    intake: &Intake,
    ask: impl FnOnce(Key),
) -> Option<Said> {
    let other = named(message)
        .and_then(|name| str::from_utf8(name).ok())
        .filter(|name| *name != id && !name.is_empty() && name.len() <= headers::MAX_ID)
        .is_some_and(|name| !name.contains(char::is_control));
    if other {
        // By far the most, and it needs no decoding.
        return None;
    }
    // Any other identity is in the envelope, or made of the place.
    let (is_it, scene, due) = match received(message)
        .map_err(|record| headers::headless(record, place(message)))
        .and_then(|record| {
            if let Some(key) = intake.asks(&record) {
                ask(key);
            }
            let arrival = Arrival {
                origin: place(message),
                entered: appended(message),
                stamped: appended(message),
            };
            intake.ingest(record, arrival)
        }) {
        Ok(task) => (*task.id == *id, task.scene, Some(task.due)),
        Err(poison) => (*poison.id == *id, poison.scene, None),
    };
    is_it.then_some(Said::Entered { scene, due })
}

/// Asks a registry what a schema is; why it gives no answer, after which it is not asked for others.
fn name(key: Key, ask: Option<Ask<'_>>, unnamed: &mut Option<Unnamed>) -> Result<(), String> {
    match (ask, unnamed) {
        (Some(ask), None) => ask(key),
        (_, Some(unnamed)) => Err(unnamed.why.clone()),
        (None, None) => Err("it was not asked".to_owned()),
    }
}

/// What a record of a tier says.
fn parked(message: &BorrowedMessage<'_>, tier: usize) -> Option<Said> {
    let read = received(message)
        .map_err(|record| headers::headless(record, place(message)))
        .and_then(|record| headers::parked(record, place(message)));
    match read {
        Ok(task) => Some(Said::Parked {
            tier,
            task: Box::new(task),
        }),
        Err(poison) => {
            let at = place(message);
            warn!(reason = poison.reason.word(), %at, "parked task ignored: it cannot be read");
            None
        }
    }
}

/// What a dead letter says.
fn dead_letter(message: &BorrowedMessage<'_>) -> Said {
    let text = |name| last(message, name);
    let kind = text(headers::KIND);
    Said::DeadLetter(Box::new(DeadLetter {
        kind: kind
            .and_then(|kind| headers::kind_of(&kind))
            .unwrap_or(Kind::Work),
        scene: text(headers::SCENE).unwrap_or_default(),
        origin: text(headers::ORIGIN).and_then(|origin| headers::origin_of(&origin)),
        outcome: text(headers::OUTCOME).unwrap_or_default(),
        reason: text(headers::REASON),
        attempts: text(headers::ATTEMPT).and_then(|attempts| attempts.parse().ok()),
        error: text(headers::ERROR),
    }))
}

/// A record of retide's own, in whichever format it is written.
fn decode<R: Wire>(message: &BorrowedMessage<'_>, reader: &Reader<R>) -> Option<Box<R>> {
    match reader.read(message) {
        Ok(record) => Some(Box::new(record)),
        Err(error) => {
            let (error, at) = (with_causes(&error), place(message));
            warn!(error, %at, "record cannot be read");
            None
        }
    }
}

/// Where a record stands.
fn place(message: &BorrowedMessage<'_>) -> Origin {
    Origin {
        topic: Arc::from(message.topic()),
        partition: message.partition(),
        offset: message.offset(),
    }
}

/// The time of a record.
fn appended(message: &BorrowedMessage<'_>) -> Timestamp {
    let millis = message.timestamp().to_millis().unwrap_or_default();
    Timestamp::from_millis(u64::try_from(millis).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use retide_core::Ladder;
    use retide_kafka::topics::{Role, Use};

    use super::*;

    #[test]
    fn a_search_reads_the_topics_that_the_catalogue_lets_it_read() {
        let ladder = Ladder::try_new(&["now", "5s"]).unwrap();
        let topics = Topics::new("retry", &ladder);

        let read: BTreeSet<_> = way(&topics).into_iter().map(|(_, topic)| topic).collect();

        let roles = Role::ALL.into_iter();
        let roles = roles.filter(|role| role.about().explain == Use::Reads);
        assert_eq!(read, roles.flat_map(|role| topics.of(role)).collect());
    }
}
