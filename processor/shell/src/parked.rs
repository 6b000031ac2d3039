//! Tasks under way: which there are, and which scenes still have some, found by reading the topics they wait in.
//!
//! What a transaction under way is about to park is not seen. Invariant: nothing is
//! committed and no group is joined, so that nobody notices.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::ControlFlow;
use std::str;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::{BorrowedMessage, Message};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use retide_avro::{Arrival, Intake, headers};
use retide_config::{Config, Scene};
use retide_core::completions::Completions;
use retide_core::taken::Taken;
use retide_core::{Origin, Source, Task, Timestamp};
use retide_kafka::client::{LoggingContext, client_config};
use retide_kafka::failure::Failure;
use retide_kafka::record::received;
use retide_kafka::scan::{self, CALL, Scanned, last};
use retide_kafka::topics::Topics;

use crate::clock;
use crate::worker::binding::Bindings;
use crate::worker::order::TAKEN;

/// A task of a scene that is under way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Its identity, as far as it can be read.
    pub id: String,
    /// Where it stands.
    pub origin: Origin,
}

/// Why tasks could not be looked for.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Kafka refuses.
    #[error("look for tasks")]
    Kafka(#[from] KafkaError),
    /// The offsets up to which tasks are done are not known.
    #[error(
        "committed offsets of group {group} not known within {} s: no answer, or a transaction that does not end",
        COMMITTED.as_secs()
    )]
    Committed {
        /// The group.
        group: String,
    },
    /// There is more to read than is read in time.
    #[error(
        "{read} records read in {} s, and not all that wait",
        PATIENCE.as_secs()
    )]
    Slow {
        /// How many were read.
        read: u64,
    },
}

/// What was read of the tasks under way.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Looked {
    /// How many records.
    pub records: u64,
    /// Of which topics.
    pub topics: Vec<Arc<str>>,
    /// Those that were not read to their ends.
    pub unread: Vec<Arc<str>>,
}

/// Reads what is not done of the topics that tasks wait in.
struct Reader<'a> {
    /// The group whose offsets say what is done.
    group: &'a str,
    /// Reads, and knows the group's committed offsets.
    consumer: BaseConsumer<LoggingContext>,
    /// What commit metadata is bound to.
    bindings: Bindings,
    /// How many records were read.
    records: u64,
    /// What was taken out of its place by commands, by topic and partition.
    taken: HashMap<(String, i32), Taken>,
}

/// Longest time for reading: some millions of tasks.
const PATIENCE: Duration = Duration::from_mins(1);

/// Longest wait for the committed offsets: as long as a transaction may hold them up, as a rule.
const COMMITTED: Duration = Duration::from_secs(15);

/// Pause before they are asked for again.
const AGAIN: Duration = Duration::from_millis(100);

/// The first task of each of the scenes `names`, among all `scenes`, that has one under way. Stops as soon as each has.
///
/// # Errors
/// If it is not known.
pub fn find(
    config: &Config,
    topics: &Topics,
    scenes: &BTreeMap<String, Scene>,
    names: &BTreeSet<String>,
) -> Result<BTreeMap<String, Found>, Error> {
    let mut reader = Reader::try_new(config, topics)?;
    let mut found = BTreeMap::new();
    let deadline = Instant::now() + PATIENCE;
    reader.read_taken(&topics.order, deadline)?;
    // One after the other: the end of a partition is told without its topic.
    for (source, topic) in topics.waiting() {
        let scanned = reader.topic(topic, deadline, |message| {
            if let Some((named, task)) = named(source, message, &topics.intake) {
                let scene = if scenes.contains_key(&named) {
                    named.as_str()
                } else {
                    retide_core::scene::DEFAULT
                };
                if names.contains(scene) && !found.contains_key(scene) {
                    found.insert(scene.to_owned(), task);
                }
            }
            if found.len() == names.len() {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        })?;
        match scanned {
            Scanned::ToEnd => {}
            Scanned::Enough => break,
            Scanned::OutOfTime { .. } => {
                return Err(Error::Slow {
                    read: reader.records,
                });
            }
        }
    }
    Ok(found)
}

/// Gives each task under way to `look`, with its place, until that has seen enough or `deadline` is over. A task that moves meanwhile may be
/// missing, or be given twice.
///
/// # Errors
/// If the topics cannot be read.
pub fn each(
    config: &Config,
    topics: &Topics,
    deadline: Instant,
    mut look: impl FnMut(Task, Origin) -> ControlFlow<()>,
) -> Result<Looked, Error> {
    let mut reader = Reader::try_new(config, topics)?;
    let mut looked = Looked::default();
    let mut is_over = false;
    reader.read_taken(&topics.order, deadline)?;
    for (source, topic) in topics.waiting() {
        if is_over || Instant::now() >= deadline {
            looked.unread.push(Arc::clone(topic));
            continue;
        }
        looked.topics.push(Arc::clone(topic));
        let scanned = reader.topic(topic, deadline, |message| {
            match task(source, message, &topics.intake) {
                Some(task) => look(task, place(message)),
                None => ControlFlow::Continue(()),
            }
        })?;
        match scanned {
            Scanned::ToEnd => {}
            Scanned::Enough | Scanned::OutOfTime { .. } => {
                is_over = scanned == Scanned::Enough;
                looked.unread.push(Arc::clone(topic));
            }
        }
    }
    looked.records = reader.records;
    Ok(looked)
}

// === impl Reader ===

impl<'a> Reader<'a> {
    /// A reader of what the group of `config` has not done.
    fn try_new(config: &'a Config, topics: &Topics) -> Result<Self, Error> {
        let group = &config.processor.group;
        // For its committed offsets.
        let consumer = scan::consumer(client_config(config.kafka.consumer()), group)?;
        Ok(Self {
            group,
            bindings: Bindings::ask(consumer.client(), topics, COMMITTED)?,
            consumer,
            records: 0,
            taken: HashMap::new(),
        })
    }

    /// Reads what was taken: parked records whose consequence is written although the group has not got as far as that.
    fn read_taken(&mut self, order: &Arc<str>, deadline: Instant) -> Result<(), Error> {
        let partitions = scan::partitions(&self.consumer, order)?;
        if partitions.count() == 0 {
            return Ok(());
        }
        let mut starts = TopicPartitionList::with_capacity(partitions.count());
        for element in partitions.elements() {
            starts.add_partition_offset(order, element.partition(), Offset::Beginning)?;
        }
        let (taken, bindings) = (&mut self.taken, &self.bindings);
        let scanned = scan::read(&self.consumer, &starts, deadline, |message| {
            let key = message.key().and_then(|key| str::from_utf8(key).ok());
            let at = key.and_then(|key| key.strip_prefix(TAKEN)?.rsplit_once('/'));
            if let Some((topic, chunk)) = at
                && let Ok(chunk) = chunk.parse()
            {
                let partition = message.partition();
                let binding = bindings.of(topic, partition).to_bytes();
                let marks = message.payload();
                let marks = marks.and_then(|value| value.strip_prefix(&binding[..]));
                let taken = taken.entry((topic.to_owned(), partition)).or_default();
                // What cannot be read is as good as nothing: more is looked at.
                let _ = taken.replay(chunk, marks);
            }
            ControlFlow::Continue(())
        })?;
        match scanned {
            Scanned::ToEnd | Scanned::Enough => Ok(()),
            Scanned::OutOfTime { .. } => Err(Error::Slow { read: self.records }),
        }
    }

    /// Reads a topic from what is not done to its end, or until whoever looks has seen enough.
    fn topic(
        &mut self,
        topic: &Arc<str>,
        deadline: Instant,
        mut look: impl FnMut(&BorrowedMessage<'_>) -> ControlFlow<()>,
    ) -> Result<Scanned, Error> {
        let partitions = scan::partitions(&self.consumer, topic)?;
        if partitions.count() == 0 {
            // A topic that does not exist holds nothing.
            return Ok(Scanned::ToEnd);
        }
        let (starts, done) = self.starts(&self.committed(&partitions)?)?;
        let taken = self.taken.iter();
        let taken = taken.filter(|((of, _), _)| **of == **topic);
        let taken: HashMap<i32, &Taken> = taken
            .map(|((_, partition), taken)| (*partition, taken))
            .collect();
        let records = &mut self.records;
        let scanned = scan::read(&self.consumer, &starts, deadline, |message| {
            *records += 1;
            let (partition, offset) = (message.partition(), message.offset());
            let taken = taken.get(&partition);
            let done = done.get(&partition);
            if done.is_some_and(|done| done.contains(offset))
                || taken.is_some_and(|taken| taken.contains(offset))
            {
                return ControlFlow::Continue(());
            }
            look(message)
        })?;
        Ok(scanned)
    }

    /// The committed offsets, waiting for transactions that still may change them.
    fn committed(&self, partitions: &TopicPartitionList) -> Result<TopicPartitionList, Error> {
        let deadline = Instant::now() + COMMITTED;
        loop {
            match self.consumer.committed_offsets(partitions.clone(), CALL) {
                Ok(committed) => return Ok(committed),
                // No answer, or the group has no coordinator yet.
                Err(error) if Failure::of(&error) == Failure::Passing => {
                    if Instant::now() >= deadline {
                        let group = self.group.to_owned();
                        return Err(Error::Committed { group });
                    }
                    thread::sleep(AGAIN);
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Where to start reading, which is at what is not done, and what is done beyond that, by partition.
    fn starts(
        &self,
        committed: &TopicPartitionList,
    ) -> Result<(TopicPartitionList, HashMap<i32, Completions>), KafkaError> {
        let mut starts = TopicPartitionList::with_capacity(committed.count());
        let mut all = HashMap::new();
        for element in committed.elements() {
            element.error()?;
            let start = match element.offset() {
                Offset::Offset(next) => Offset::Offset(next),
                // Nothing was ever done.
                _ => Offset::Beginning,
            };
            starts.add_partition_offset(element.topic(), element.partition(), start)?;
            // What is not believed is as good as nothing: more is looked at.
            let binding = self.bindings.of(element.topic(), element.partition());
            let next = start.to_raw().unwrap_or_default();
            let done = Completions::decode(element.metadata(), binding, next).unwrap_or_default();
            all.insert(element.partition(), done);
        }
        Ok((starts, all))
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

/// The task that a record is; none if it cannot be read.
fn task(source: Source, message: &BorrowedMessage<'_>, intake: &Intake) -> Option<Task> {
    let record = received(message).ok()?;
    match source {
        Source::Tasks => {
            let stamped = message.timestamp().to_millis();
            let stamped = stamped.and_then(|millis| u64::try_from(millis).ok());
            let stamped = stamped.map_or(Timestamp::EPOCH, Timestamp::from_millis);
            let arrival = Arrival::new(place(message), stamped, clock::timestamp());
            intake.ingest(record, arrival).ok()
        }
        Source::Tier(_) => retide_avro::parked(record, place(message)).ok(),
        Source::Commands => None,
    }
}

/// The scene that a record names, and which task it is; none if it is no task, which needs no rules.
fn named(
    source: Source,
    message: &BorrowedMessage<'_>,
    intake: &Intake,
) -> Option<(String, Found)> {
    let (id, named) = match source {
        // The scene may stand in an envelope.
        Source::Tasks => {
            let task = task(source, message, intake)?;
            (task.id.to_string(), task.scene.to_string())
        }
        Source::Tier(_) => (
            last(message, headers::ID).unwrap_or_default(),
            last(message, headers::SCENE).unwrap_or_default(),
        ),
        Source::Commands => return None,
    };
    let origin = place(message);
    Some((named, Found { id, origin }))
}
