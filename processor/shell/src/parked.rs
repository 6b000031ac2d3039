//! Tasks under way: which scenes still have some, found by reading the topics they wait in.
//!
//! Not a count: the first task of a scene is enough. What a transaction under way is about to park is not seen. Invariant: nothing is
//! committed and no group is joined, so that nobody notices.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Message};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use retide_avro::{Arrival, Intake, headers};
use retide_config::{Config, Scene};
use retide_core::completions::Completions;
use retide_core::{Origin, Source};
use retide_kafka::client::{LoggingContext, client_config};
use retide_kafka::record::received;
use retide_kafka::scan::{self, CALL, Scanned, last};
use retide_kafka::topics::Topics;

use crate::clock;
use crate::worker::binding::Bindings;

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

/// Looks for tasks that would lose their rules.
struct Search<'a> {
    /// The group whose offsets say what is done.
    group: &'a str,
    /// The scenes there are.
    scenes: &'a BTreeMap<String, Scene>,
    /// The scenes looked for.
    names: &'a BTreeSet<String>,
    /// How records of the retry topic are read.
    intake: &'a Intake,
    /// What commit metadata is bound to.
    bindings: Bindings,
    /// What is complete above the first offset read, by topic and partition.
    done: HashMap<(Source, i32), Completions>,
    /// What was found, by scene.
    found: BTreeMap<String, Found>,
}

/// Longest time for reading: some millions of tasks.
const PATIENCE: Duration = Duration::from_mins(1);

/// Longest wait for the committed offsets: as long as a transaction may hold them up, as a rule.
const COMMITTED: Duration = Duration::from_secs(15);

/// The first task of each of the scenes `names`, among all `scenes`, that has one under way. Stops as soon as each has.
pub fn find(
    config: &Config,
    topics: &Topics,
    scenes: &BTreeMap<String, Scene>,
    names: &BTreeSet<String>,
) -> Result<BTreeMap<String, Found>, Error> {
    // For its committed offsets.
    let consumer = scan::consumer(
        client_config(config.kafka.consumer()),
        &config.processor.group,
    )?;
    let mut search = Search {
        group: &config.processor.group,
        scenes,
        names,
        intake: &topics.intake,
        bindings: Bindings::ask(consumer.client(), topics, COMMITTED)?,
        done: HashMap::new(),
        found: BTreeMap::new(),
    };
    let deadline = Instant::now() + PATIENCE;
    let mut read = 0;
    // One after the other: the end of a partition is told without its topic.
    for (source, topic) in topics.read() {
        if !search.is_over() {
            search.topic(&consumer, (source, topic), deadline, &mut read)?;
        }
    }
    Ok(search.found)
}

// === impl Search ===

impl Search<'_> {
    /// Whether every scene looked for has a task.
    fn is_over(&self) -> bool {
        self.found.len() == self.names.len()
    }

    /// Reads a topic from what is not done to its end, or until every scene has a task.
    fn topic(
        &mut self,
        consumer: &BaseConsumer<LoggingContext>,
        (source, topic): (Source, &Arc<str>),
        deadline: Instant,
        read: &mut u64,
    ) -> Result<(), Error> {
        let partitions = scan::partitions(consumer, topic)?;
        if partitions.count() == 0 {
            // A topic that does not exist holds nothing.
            return Ok(());
        }
        let starts = self.starts(source, &self.committed(consumer, &partitions)?)?;
        let scanned = scan::read(consumer, &starts, deadline, |message| {
            *read += 1;
            self.look(source, message);
            if self.is_over() {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        })?;
        match scanned {
            Scanned::ToEnd | Scanned::Enough => Ok(()),
            Scanned::OutOfTime { .. } => Err(Error::Slow { read: *read }),
        }
    }

    /// The committed offsets, waiting for transactions that still may change them.
    fn committed(
        &self,
        consumer: &BaseConsumer<LoggingContext>,
        partitions: &TopicPartitionList,
    ) -> Result<TopicPartitionList, Error> {
        let deadline = Instant::now() + COMMITTED;
        loop {
            match consumer.committed_offsets(partitions.clone(), CALL) {
                Ok(committed) => return Ok(committed),
                Err(error)
                    if error.rdkafka_error_code() == Some(RDKafkaErrorCode::OperationTimedOut) =>
                {
                    if Instant::now() >= deadline {
                        let group = self.group.to_owned();
                        return Err(Error::Committed { group });
                    }
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Where to start reading: at what is not done.
    fn starts(
        &mut self,
        source: Source,
        committed: &TopicPartitionList,
    ) -> Result<TopicPartitionList, KafkaError> {
        let mut starts = TopicPartitionList::with_capacity(committed.count());
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
            self.done.insert((source, element.partition()), done);
        }
        Ok(starts)
    }

    /// Notes a task if its scene is looked for and has none yet.
    fn look(&mut self, source: Source, message: &BorrowedMessage<'_>) {
        let (partition, offset) = (message.partition(), message.offset());
        let done = self.done.get(&(source, partition));
        if done.is_some_and(|done| done.contains(offset)) {
            return;
        }
        let origin = Origin {
            topic: Arc::from(message.topic()),
            partition,
            offset,
        };
        let (id, named) = match source {
            Source::Tasks => {
                let now = clock::timestamp();
                // The scene may stand in an envelope; what is no task at all needs no rules.
                let Some(Ok(task)) = received(message).ok().map(|record| {
                    let arrival = Arrival {
                        origin: origin.clone(),
                        entered: now,
                        stamped: now,
                    };
                    self.intake.ingest(record, arrival)
                }) else {
                    return;
                };
                (task.id.to_string(), task.scene.to_string())
            }
            Source::Commands => return,
            Source::Tier(_) => (
                last(message, headers::ID).unwrap_or_default(),
                last(message, headers::SCENE).unwrap_or_default(),
            ),
        };
        let scene = if self.scenes.contains_key(&named) {
            named.as_str()
        } else {
            retide_core::scene::DEFAULT
        };
        if self.names.contains(scene) && !self.found.contains_key(scene) {
            self.found.insert(scene.to_owned(), Found { id, origin });
        }
    }
}
