//! Where partitions begin and end, and what a group has committed: asked for many of them at once.
//!
//! Invariant: one request a broker, whatever the number of partitions, and no call waits without a limit.

use std::collections::{BTreeMap, BTreeSet};
use std::thread;
use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::KafkaError;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

/// Offsets by topic and partition.
pub type Offsets = BTreeMap<(String, i32), i64>;

/// An end of a partition's log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Edge {
    /// The first offset that is there.
    First,
    /// One past the last offset that the consumer may see: of one that reads committed records only, the last stable offset.
    End,
}

/// What stands on partitions of one topic: the first offset of each, and one past its last.
pub type Spans = BTreeMap<i32, (i64, i64)>;

/// How far what stands on a topic can be read by who reads committed records only.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Readable {
    /// The partitions of which all can be read, each with its first offset.
    pub ready: Vec<(i32, i64)>,
    /// The others, each with the first offset that cannot be read, if that is known.
    pub held: Vec<(i32, Option<i64>)>,
}

/// Pause before it is asked again whether transactions are over, which takes milliseconds as a rule.
const AGAIN: Duration = Duration::from_millis(10);

/// The edges of `partitions`. A partition that has no answer is left out.
pub fn edges<'a, C: ConsumerContext>(
    consumer: &BaseConsumer<C>,
    partitions: impl IntoIterator<Item = (&'a str, i32)>,
    edge: Edge,
    wait: Duration,
) -> Result<Offsets, KafkaError> {
    // The protocol asks for the offset of a point in time, and has two points in time that stand for the edges.
    let edge = match edge {
        Edge::First => Offset::Beginning,
        Edge::End => Offset::End,
    };
    let mut list = TopicPartitionList::new();
    for (topic, partition) in partitions {
        list.add_partition_offset(topic, partition, edge)?;
    }
    if list.count() == 0 {
        return Ok(Offsets::new());
    }
    Ok(known(&consumer.offsets_for_times(list, wait)?))
}

/// The offsets of a list that are known.
pub fn known(list: &TopicPartitionList) -> Offsets {
    let elements = list.elements();
    let known = elements
        .iter()
        .filter_map(|element| match (element.error(), element.offset()) {
            (Ok(()), Offset::Offset(offset)) => {
                Some(((element.topic().to_owned(), element.partition()), offset))
            }
            _ => None,
        });
    known.collect()
}

/// What stands on `partitions` of a topic, and those of which that is not known. A partition on which nothing stands is in neither.
pub fn spans<C: ConsumerContext>(
    consumer: &BaseConsumer<C>,
    topic: &str,
    partitions: &[i32],
    wait: Duration,
) -> Result<(Spans, BTreeSet<i32>), KafkaError> {
    let all = || partitions.iter().map(|partition| (topic, *partition));
    let first = edges(consumer, all(), Edge::First, wait)?;
    let end = edges(consumer, all(), Edge::End, wait)?;
    let (mut spans, mut unknown) = (Spans::new(), BTreeSet::new());
    for partition in partitions {
        let at = (topic.to_owned(), *partition);
        match (first.get(&at), end.get(&at)) {
            (Some(first), Some(end)) if first < end => {
                spans.insert(*partition, (*first, *end));
            }
            (Some(_), Some(_)) => {}
            _ => {
                unknown.insert(*partition);
            }
        }
    }
    Ok((spans, unknown))
}

/// Waits until `consumer`, which reads committed records only, sees all of `spans`, or until `gives_up`: as long as a transaction is open,
/// readers see nothing of what is behind its first record.
pub fn until_readable<C: ConsumerContext>(
    consumer: &BaseConsumer<C>,
    topic: &str,
    mut spans: Spans,
    wait: Duration,
    gives_up: impl Fn() -> bool,
) -> Result<Readable, KafkaError> {
    let mut ready = Vec::new();
    loop {
        let partitions = spans.keys().map(|partition| (topic, *partition));
        let stable = edges(consumer, partitions, Edge::End, wait)?;
        let of = |partition| stable.get(&(topic.to_owned(), partition)).copied();
        spans.retain(|partition, (first, end)| {
            let is_ready = of(*partition).is_some_and(|stable| stable >= *end);
            if is_ready {
                ready.push((*partition, *first));
            }
            !is_ready
        });
        if spans.is_empty() || gives_up() {
            let held = spans.keys().map(|partition| (*partition, of(*partition)));
            let held = held.collect();
            return Ok(Readable { ready, held });
        }
        thread::sleep(AGAIN);
    }
}
