//! Following a topic: read once, from its beginning or shortly before its end, to its end, and from there for ever.
//!
//! Who needs a shard's state only while the shard is assigned reads it with [`scan`], which reads here, too. Invariants: no group is
//! joined and nothing is committed; what a transaction has written that is not committed is never seen.

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::consumer::BaseConsumer;
use rdkafka::error::KafkaError;
use rdkafka::message::BorrowedMessage;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use thiserror::Error;

use crate::client::{Kept, LoggingContext, complained, is_of_group};
use crate::scan::{self, Scanned};

/// Follows a topic.
pub struct Follower {
    /// The consumer.
    consumer: Kept<BaseConsumer<LoggingContext>>,
    /// How many partitions the topic had when it began.
    partitions: usize,
}

/// Why a topic cannot be followed.
#[derive(Debug, Error)]
pub enum Error {
    /// Kafka or its client refuses.
    #[error("read the topic")]
    Kafka(#[from] KafkaError),
    /// The topic does not exist.
    #[error("the topic does not exist")]
    Missing,
    /// The end was not reached in time.
    #[error("the end of the topic was not reached in time")]
    Slow,
}

/// Longest wait for what the broker says of the topic: a worker that has just been started does not give up at once.
const ANSWER: Duration = Duration::from_secs(10);

/// Longest wait for a record, after which whoever follows does something else.
const POLL: Duration = Duration::from_millis(100);

// === impl Follower ===

impl Follower {
    /// Reads all that the topic holds now, by `deadline`, and hands each record to `take`. The client wants the name of a group, although
    /// nothing joins it: one that the user may ask for.
    ///
    /// # Errors
    /// If the topic is not there, or not read to its end.
    pub fn start(
        config: &ClientConfig,
        names: (&str, &str),
        deadline: Instant,
        take: impl FnMut(&BorrowedMessage<'_>),
    ) -> Result<Self, Error> {
        Self::start_at(Offset::Beginning, config, names, deadline, take)
    }

    /// As [`Self::start`], but reads no more than the last `most` records of each partition at first.
    ///
    /// # Errors
    /// As there.
    pub fn recent(
        most: u32,
        config: &ClientConfig,
        names: (&str, &str),
        deadline: Instant,
        take: impl FnMut(&BorrowedMessage<'_>),
    ) -> Result<Self, Error> {
        Self::start_at(
            Offset::OffsetTail(most.into()),
            config,
            names,
            deadline,
            take,
        )
    }

    /// Reads from there on.
    fn start_at(
        start: Offset,
        config: &ClientConfig,
        (topic, group): (&str, &str),
        deadline: Instant,
        mut take: impl FnMut(&BorrowedMessage<'_>),
    ) -> Result<Self, Error> {
        let consumer = Kept::make(config, |config| scan::follower_as_is(config.clone(), group))?;
        let partitions = scan::partitions_within(&consumer, topic, ANSWER)?;
        if partitions.count() == 0 {
            return Err(Error::Missing);
        }
        let mut starts = TopicPartitionList::with_capacity(partitions.count());
        for partition in partitions.elements() {
            starts.add_partition_offset(topic, partition.partition(), start)?;
        }
        let scanned = scan::read(&consumer, &starts, deadline, |message| {
            take(message);
            ControlFlow::Continue(())
        })?;
        match scanned {
            Scanned::ToEnd | Scanned::Enough => Ok(Self {
                consumer,
                partitions: partitions.count(),
            }),
            Scanned::OutOfTime { .. } => Err(Error::Slow),
        }
    }

    /// How many partitions the topic had at the start.
    pub const fn partitions(&self) -> usize {
        self.partitions
    }

    /// Waits a short while for records, and hands all that are there to `take`.
    pub fn follow(&self, mut take: impl FnMut(&BorrowedMessage<'_>)) {
        let mut wait = POLL;
        self.consumer.hold();
        while let Some(polled) = self.consumer.poll(wait) {
            // Whatever else is there already is the same change to those who follow.
            wait = Duration::ZERO;
            match polled {
                Ok(message) => take(&message),
                Err(KafkaError::PartitionEOF(_)) => {}
                Err(error) if is_of_group(&error) => {}
                // The client goes on by itself, and the topic may be made anew.
                Err(error) => complained(&error, "who follows a topic"),
            }
        }
    }
}
