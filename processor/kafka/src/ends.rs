//! Reading the last records of many topics at once: which of them can be read, and why the others cannot.
//!
//! Not what they hold, which whoever asks looks at. Invariants: no group is joined and nothing is committed; an error is told of the topic that
//! it is about.

use std::collections::BTreeMap;
use std::mem;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::consumer::base_consumer::PartitionQueue;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::BorrowedMessage;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use tracing::debug;

use crate::client::is_of_group;
use crate::failure::Failure;

/// What came of reading the last records of topics.
#[derive(Debug, Default)]
pub struct Ends {
    /// Why topics could not be read, by topic.
    errors: BTreeMap<Arc<str>, KafkaError>,
    /// Why the group was refused, of which the client library tells only those who poll.
    pub group: Option<KafkaError>,
}

/// A partition whose end was not reached yet: it is read from a queue of its own, since an error does not say which partition it is about.
struct Open<C: ConsumerContext> {
    /// Its topic.
    topic: Arc<str>,
    /// Its records.
    queue: PartitionQueue<C>,
    /// The last error, which may pass.
    error: Option<KafkaError>,
}

/// Pause between two looks at what has come.
const LOOK: Duration = Duration::from_millis(10);

// === impl Ends ===

impl Ends {
    /// Reads the last record of each partition of these topics, which have so many, and shows it to `look`: until each end was reached, or has
    /// failed, or time is up.
    ///
    /// # Errors
    /// If the consumer is refused.
    pub fn read<'a, C: ConsumerContext>(
        consumer: BaseConsumer<C>,
        topics: impl Iterator<Item = (&'a Arc<str>, usize)> + Clone,
        deadline: Instant,
        mut look: impl FnMut(&BorrowedMessage<'_>),
    ) -> Result<Self, KafkaError> {
        let consumer = Arc::new(consumer);
        let mut list = TopicPartitionList::new();
        for (topic, partitions) in topics.clone() {
            for partition in 0..partitions {
                list.add_partition_offset(topic, partition as i32, Offset::OffsetTail(1))?;
            }
        }
        #[allow(clippy::disallowed_methods, reason = "the reader of ends")]
        consumer.assign(&list)?;
        let mut open = Vec::new();
        for (topic, partitions) in topics {
            for partition in 0..partitions {
                let queue = consumer.split_partition_queue(topic, partition as i32);
                open.extend(queue.map(|queue| Open {
                    topic: Arc::clone(topic),
                    queue,
                    error: None,
                }));
            }
        }
        let mut ends = Self::default();
        while !open.is_empty() && Instant::now() < deadline {
            for mut one in mem::take(&mut open) {
                match one.queue.poll(Duration::ZERO) {
                    None => {}
                    Some(Ok(message)) => look(&message),
                    Some(Err(KafkaError::PartitionEOF(_))) => continue,
                    Some(Err(error)) => match Failure::of(&error) {
                        Failure::Passing => one.error = Some(error),
                        Failure::Lasting | Failure::Fatal | Failure::Fenced => {
                            ends.errors.insert(one.topic, error);
                            continue;
                        }
                    },
                }
                open.push(one);
            }
            // The client's own events; nothing of a partition comes this way. It is also the pause between two looks.
            let left = deadline.saturating_duration_since(Instant::now());
            if let Some(Err(error)) = consumer.poll(LOOK.min(left)) {
                debug!(%error, "consumer reports");
                if is_of_group(&error) {
                    ends.group = Some(error);
                }
            }
        }
        for Open { topic, error, .. } in open {
            let late = KafkaError::MessageConsumption(RDKafkaErrorCode::OperationTimedOut);
            ends.errors.entry(topic).or_insert(error.unwrap_or(late));
        }
        Ok(ends)
    }

    /// Whether all partitions of a topic were read.
    ///
    /// # Errors
    /// Why one was not.
    pub fn of(&self, topic: &str) -> Result<(), KafkaError> {
        match self.errors.get(topic) {
            Some(error) => Err(error.clone()),
            None => Ok(()),
        }
    }
}
