//! A search for tasks that keys wait for: whether they still are in a tier of their shard.
//!
//! What is written of the order of keys does not say where a task is parked, so that nobody sees that its record is gone: deleted, or
//! passed over by offsets that were set. Not when a search begins, which is the drive's to say. Invariant: a task is called gone only if
//! all that stood in the tiers of its shard when the search began, from where their lanes had been read to, was looked at without finding it.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::ops::ControlFlow;
use std::thread;
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::consumer::BaseConsumer;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Message};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use tracing::debug;

use retide_avro::headers;
use retide_core::key_order::Awaited;
use retide_core::{LaneId, Source};
use retide_kafka::client::LoggingContext;
use retide_kafka::offsets::{self, Edge, Offsets};
use retide_kafka::scan::{self, Scanned};
use retide_kafka::topics::Topics;

/// What is looked for.
#[derive(Clone, Debug)]
pub(crate) struct Wanted {
    /// The tasks. As far as the drive knows, they are in tiers, durably.
    pub(crate) tasks: Vec<Awaited>,
    /// How far each lane of their shards was read.
    pub(crate) ends: BTreeMap<LaneId, i64>,
    /// The number of the drive's assignment of each of the shards.
    pub(crate) assignments: BTreeMap<i32, u64>,
}

/// What came of it.
#[derive(Clone, Debug)]
pub struct Searched {
    /// The tasks that are in no tier.
    pub(crate) gone: Vec<Awaited>,
    /// The number of the drive's assignment of each of the shards.
    pub(crate) assignments: BTreeMap<i32, u64>,
}

/// A search that is under way.
pub(crate) struct Search {
    /// What is looked for.
    wanted: Wanted,
    /// The tasks that were not found yet: shard and offset.
    missing: HashSet<(i32, i64)>,
    /// The tiers that are not searched yet; none before it is known how far.
    left: Option<Vec<Source>>,
    /// Where the tiers ended when the search began.
    ends: Offsets,
    /// Where the tier that is being searched is read on, by shard.
    next: BTreeMap<i32, i64>,
    /// Reads the tiers.
    consumer: Option<BaseConsumer<LoggingContext>>,
    /// When it is given up.
    deadline: Instant,
}

/// How long it works at a time, with others waiting for the same thread.
const SLICE: Duration = Duration::from_millis(500);

/// Longest wait for one answer.
const ASK: Duration = Duration::from_secs(3);

/// Pause before it is looked again whether a transaction still holds back what is to be searched.
const AGAIN: Duration = Duration::from_millis(50);

/// Longest search. Millions of parked tasks take minutes to look at.
const LONGEST: Duration = Duration::from_mins(10);

// === impl Search ===

impl Search {
    /// Begins to look.
    pub(crate) fn new(wanted: Wanted) -> Self {
        let tasks = wanted.tasks.iter();
        Self {
            missing: tasks.map(|task| (task.shard, task.offset)).collect(),
            wanted,
            left: None,
            ends: Offsets::new(),
            next: BTreeMap::new(),
            consumer: None,
            deadline: Instant::now() + LONGEST,
        }
    }

    /// Looks for a moment, by clients that see what is committed, and everything. What came of it, once that is known.
    pub(crate) fn go_on(
        &mut self,
        config: &ClientConfig,
        topics: &Topics,
        all: &BaseConsumer<LoggingContext>,
    ) -> Option<Searched> {
        if let Err(error) = self.look(config, topics, all) {
            debug!(%error, "parked tasks that keys wait for not searched");
            return Some(self.inconclusive());
        }
        if self.missing.is_empty() || Instant::now() >= self.deadline {
            return Some(self.inconclusive());
        }
        if self.left.as_ref().is_none_or(|left| !left.is_empty()) {
            return None;
        }
        let missing = &self.missing;
        let tasks = self.wanted.tasks.iter().copied();
        Some(Searched {
            gone: tasks
                .filter(|task| missing.contains(&(task.shard, task.offset)))
                .collect(),
            assignments: self.wanted.assignments.clone(),
        })
    }

    /// Nothing is known to be gone.
    fn inconclusive(&self) -> Searched {
        Searched {
            gone: Vec::new(),
            assignments: self.wanted.assignments.clone(),
        }
    }

    /// Looks through tiers for a moment.
    fn look(
        &mut self,
        config: &ClientConfig,
        topics: &Topics,
        all: &BaseConsumer<LoggingContext>,
    ) -> Result<(), KafkaError> {
        let until = Instant::now() + SLICE;
        let group = config.get("group.id").unwrap_or("retide");
        if self.left.is_none() {
            let lanes = self.lanes(topics);
            let of = lanes.iter().map(|(topic, shard)| (&**topic, *shard));
            self.ends = offsets::edges(all, of, Edge::End, ASK)?;
            if self.ends.len() < lanes.len() {
                // One that does not say where it ends cannot be searched.
                return Err(KafkaError::OffsetFetch(RDKafkaErrorCode::NoOffset));
            }
            let tiers = topics.read().map(|(source, _)| source);
            self.left = Some(tiers.filter(|source| *source != Source::Tasks).collect());
        }
        let consumer = match self.consumer.take() {
            Some(consumer) => consumer,
            None => scan::consumer(config.clone(), group)?,
        };
        while let Some(source) = self.left.as_ref().and_then(|left| left.last().copied()) {
            if Instant::now() >= until || self.missing.is_empty() {
                break;
            }
            if self.next.is_empty() {
                self.next = self.starts(source, topics);
            }
            if self.is_searched(&consumer, topics, source, until)? {
                self.next.clear();
                self.left.as_mut().map(Vec::pop);
            }
        }
        self.consumer = Some(consumer);
        Ok(())
    }

    /// The partitions that are searched.
    fn lanes(&self, topics: &Topics) -> Vec<(String, i32)> {
        let shards = self.wanted.assignments.keys();
        shards
            .flat_map(|shard| {
                let read = topics.of_shard(*shard);
                let tiers = read.filter(|(source, _)| *source != Source::Tasks);
                tiers.map(|(_, topic)| (topic.to_string(), *shard))
            })
            .collect()
    }

    /// Where a tier is searched from, where there is anything to search.
    fn starts(&self, source: Source, topics: &Topics) -> BTreeMap<i32, i64> {
        let shards: BTreeSet<i32> = self.missing.iter().map(|(shard, _)| *shard).collect();
        let topic = topics.name(source);
        let starts = shards.into_iter().filter_map(|shard| {
            let end = self.ends.get(&(topic.to_string(), shard))?;
            let lane = LaneId { shard, source };
            let start = self.wanted.ends.get(&lane).copied().unwrap_or(0);
            (start < *end).then_some((shard, start))
        });
        starts.collect()
    }

    /// Looks through a tier; whether that is done.
    fn is_searched(
        &mut self,
        consumer: &BaseConsumer<LoggingContext>,
        topics: &Topics,
        source: Source,
        until: Instant,
    ) -> Result<bool, KafkaError> {
        let topic = topics.name(source);
        let of = self.next.keys().map(|shard| (&**topic, *shard));
        // What a transaction holds back is not seen yet.
        let stable = offsets::edges(consumer, of, Edge::End, ASK)?;
        let end = |shard: i32| self.ends.get(&(topic.to_string(), shard)).copied();
        let is_seen = |shard: i32| {
            let stable = stable.get(&(topic.to_string(), shard)).copied();
            stable >= end(shard)
        };
        if !self.next.keys().all(|shard| is_seen(*shard)) {
            thread::sleep(AGAIN);
            return Ok(false);
        }
        let mut starts = TopicPartitionList::new();
        for (shard, next) in &self.next {
            starts.add_partition_offset(topic, *shard, Offset::Offset(*next))?;
        }
        if starts.count() == 0 {
            return Ok(true);
        }
        let mut behind: BTreeMap<i32, i64> = self
            .next
            .keys()
            .filter_map(|shard| Some((*shard, end(*shard)?)))
            .collect();
        let (missing, next) = (&mut self.missing, &mut self.next);
        let scanned = scan::read(consumer, &starts, until, |message| {
            if let Some(found) = task(message, topics) {
                missing.remove(&found);
            }
            let (shard, after) = (message.partition(), message.offset() + 1);
            next.insert(shard, after);
            // What was written since is of no interest.
            if behind.get(&shard).is_some_and(|end| *end <= after) {
                behind.remove(&shard);
            }
            if missing.is_empty() || behind.is_empty() {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        })?;
        match scanned {
            Scanned::ToEnd | Scanned::Enough => Ok(true),
            Scanned::OutOfTime { left } => {
                next.retain(|shard, _| left.contains(shard));
                Ok(false)
            }
        }
    }
}

/// The task in a record of a tier: its shard, and its offset in the retry topic.
fn task(message: &BorrowedMessage<'_>, topics: &Topics) -> Option<(i32, i64)> {
    let origin = scan::last_bytes(message, headers::ORIGIN)?;
    let origin = headers::origin_of(str::from_utf8(origin).ok()?)?;
    let is_task = *origin.topic == *topics.tasks && origin.partition == message.partition();
    is_task.then_some((origin.partition, origin.offset))
}
