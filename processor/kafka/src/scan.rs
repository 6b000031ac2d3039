//! Reading topics once, from somewhere to their ends, within a time: what commands do that look for tasks, and workers that are given a
//! shard whose order they have to know.
//!
//! Not the feed of a worker. Invariant: no group is joined and nothing is committed, so that nobody notices.

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::BorrowedMessage;
use rdkafka::metadata::MetadataTopic;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList, TopicPartitionListElem};

use retide_avro::headers::is_named;
use retide_core::Timestamp;
use retide_native as native;

use crate::client::{Kept, LoggingContext, complained, is_missing, is_of_group};
use crate::failure::Failure;

/// How far a topic was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scanned {
    /// To the end of each partition.
    ToEnd,
    /// Until whoever looks had seen enough.
    Enough,
    /// Until time was up.
    OutOfTime {
        /// The partitions whose ends were not reached.
        left: BTreeSet<i32>,
    },
}

/// Longest wait for one answer of the broker.
pub const CALL: Duration = Duration::from_secs(5);

/// How long a broker waits for records, in milliseconds: the end of each topic is waited for in turn.
const ONCE: &str = "10";

/// The same for those who follow a topic, whose requests would else be a hundred a second.
const FOLLOW: &str = "500";

/// Longest wait for a record, after which time is looked at again.
const POLL: Duration = Duration::from_millis(100);

/// A consumer that sees what is committed. The client wants the name of a group, although nothing joins it.
pub fn consumer(
    client: ClientConfig,
    group: &str,
) -> Result<BaseConsumer<LoggingContext>, KafkaError> {
    consumer_for(client, group, LoggingContext)
}

/// A consumer that sees what is committed, and waits for more of it.
pub fn follower(
    mut client: ClientConfig,
    group: &str,
) -> Result<BaseConsumer<LoggingContext>, KafkaError> {
    client.set("isolation.level", "read_committed");
    made(client, group, Some(FOLLOW), LoggingContext)
}

/// As [`follower`], and waits as long as its configuration says.
pub(crate) fn follower_as_is(
    mut client: ClientConfig,
    group: &str,
) -> Result<BaseConsumer<LoggingContext>, KafkaError> {
    client.set("isolation.level", "read_committed");
    made(client, group, None, LoggingContext)
}

/// A consumer that sees what is committed, and tells `context` what happens to it.
pub fn consumer_for<C: ConsumerContext>(
    mut client: ClientConfig,
    group: &str,
    context: C,
) -> Result<BaseConsumer<C>, KafkaError> {
    client.set("isolation.level", "read_committed");
    made(client, group, Some(ONCE), context)
}

/// A consumer that sees what its configuration lets it see.
pub fn consumer_as_is(
    client: ClientConfig,
    group: &str,
) -> Result<BaseConsumer<LoggingContext>, KafkaError> {
    made(client, group, Some(ONCE), LoggingContext)
}

/// A consumer whose fetches wait so many milliseconds, if that is said.
fn made<C: ConsumerContext>(
    mut client: ClientConfig,
    group: &str,
    wait: Option<&str>,
    context: C,
) -> Result<BaseConsumer<C>, KafkaError> {
    for (key, value) in [
        ("group.id", group),
        ("enable.auto.commit", "false"),
        ("enable.partition.eof", "true"),
        // What was deleted is of no interest.
        ("auto.offset.reset", "earliest"),
    ] {
        client.set(key, value);
    }
    if let Some(wait) = wait {
        client.set("fetch.wait.max.ms", wait);
    }
    client.create_with_context(context)
}

/// The partitions of a topic; none of one that does not exist.
pub fn partitions(
    consumer: &BaseConsumer<LoggingContext>,
    topic: &str,
) -> Result<TopicPartitionList, KafkaError> {
    partitions_within(consumer, topic, CALL)
}

/// As [`partitions`], with a longest wait of one's own.
pub fn partitions_within(
    consumer: &BaseConsumer<LoggingContext>,
    topic: &str,
    wait: Duration,
) -> Result<TopicPartitionList, KafkaError> {
    let metadata = consumer.fetch_metadata(Some(topic), wait)?;
    let mut partitions = TopicPartitionList::new();
    for topic in metadata.topics() {
        if let Some(refused) = refusal(topic) {
            return Err(refused);
        }
        for partition in topic.partitions() {
            partitions.add_partition(topic.name(), partition.id());
        }
    }
    Ok(partitions)
}

/// Why a topic may not be described, if it may not.
pub fn refusal(topic: &MetadataTopic) -> Option<KafkaError> {
    let code = RDKafkaErrorCode::from(topic.error()?);
    let refused = code == RDKafkaErrorCode::TopicAuthorizationFailed;
    refused.then_some(KafkaError::MetadataFetch(code))
}

/// Where to start reading the partitions of a topic: where they begin, or at their first record that is not older than `since`. Where all are
/// older, that is the end.
///
/// # Errors
/// If the cluster does not tell.
pub fn starts(
    consumer: &BaseConsumer<LoggingContext>,
    topic: &str,
    since: Option<Timestamp>,
) -> Result<TopicPartitionList, KafkaError> {
    let all = partitions(consumer, topic)?;
    // Kafka takes the time for an offset.
    let start = match since {
        Some(since) => Offset::Offset(i64::try_from(since.as_millis()).unwrap_or(i64::MAX)),
        None => Offset::Beginning,
    };
    let mut starts = TopicPartitionList::with_capacity(all.count());
    for element in all.elements() {
        starts.add_partition_offset(topic, element.partition(), start)?;
    }
    if since.is_some() && starts.count() > 0 {
        return consumer.offsets_for_times(starts, CALL);
    }
    Ok(starts)
}

/// Reads from `starts`, which are of one topic, since the end of a partition is told without it.
pub fn read(
    consumer: &BaseConsumer<LoggingContext>,
    starts: &TopicPartitionList,
    deadline: Instant,
    mut look: impl FnMut(&BorrowedMessage<'_>) -> ControlFlow<()>,
) -> Result<Scanned, KafkaError> {
    let mut left: BTreeSet<i32> = starts
        .elements()
        .iter()
        .map(TopicPartitionListElem::partition)
        .collect();
    #[allow(clippy::disallowed_methods, reason = "the reader of topics")]
    consumer.assign(starts)?;
    while !left.is_empty() {
        if Instant::now() >= deadline {
            return Ok(Scanned::OutOfTime { left });
        }
        match consumer.poll(POLL) {
            None => {}
            Some(Ok(message)) => match look(&message) {
                ControlFlow::Continue(()) => {}
                ControlFlow::Break(()) => return Ok(Scanned::Enough),
            },
            Some(Err(KafkaError::PartitionEOF(partition))) => {
                left.remove(&partition);
            }
            Some(Err(error)) if is_of_group(&error) => {}
            Some(Err(error)) => match Failure::of(&error) {
                Failure::Passing => complained(&error, "who reads a topic"),
                Failure::Lasting | Failure::Fatal | Failure::Fenced => return Err(error),
            },
        }
    }
    Ok(Scanned::ToEnd)
}

/// Goes on reading from `starts` as well: of partitions that are not read yet.
///
/// # Errors
/// If the client refuses.
pub fn read_on(
    consumer: &BaseConsumer<LoggingContext>,
    starts: &TopicPartitionList,
) -> Result<(), KafkaError> {
    #[allow(clippy::disallowed_methods, reason = "the reader of topics")]
    consumer.incremental_assign(starts)
}

/// The next record that comes within `wait`, for who reads on until somebody has seen enough: `note` is told of errors that may pass, and of a
/// topic that is missing, since it may be made anew.
///
/// # Errors
/// If nothing will come any more.
pub fn next(
    consumer: &Kept<BaseConsumer<LoggingContext>>,
    wait: Duration,
    note: impl FnOnce(&KafkaError),
) -> Result<Option<BorrowedMessage<'_>>, KafkaError> {
    let error = match consumer.poll(wait) {
        None => {
            consumer.hold();
            return Ok(None);
        }
        Some(Ok(message)) => return Ok(Some(message)),
        Some(Err(KafkaError::PartitionEOF(_))) => return Ok(None),
        Some(Err(error)) if is_of_group(&error) => return Ok(None),
        Some(Err(error)) => error,
    };
    match Failure::of(&error) {
        Failure::Lasting if !error.rdkafka_error_code().is_some_and(is_missing) => Err(error),
        Failure::Fatal | Failure::Fenced => Err(error),
        Failure::Lasting | Failure::Passing => {
            note(&error);
            Ok(None)
        }
    }
}

/// The text of the last header of this name, which is the one that counts.
pub fn last(message: &BorrowedMessage<'_>, name: &str) -> Option<String> {
    last_bytes(message, name).map(|value| String::from_utf8_lossy(value).into_owned())
}

/// The value of the last header of this name, in whatever case it is written.
pub fn last_bytes<'a>(message: &'a BorrowedMessage<'_>, name: &str) -> Option<&'a [u8]> {
    let headers = native::headers::read(message).ok()?;
    let values = headers.iter().filter(|(other, _)| is_named(other, name));
    values.last()?.1
}
