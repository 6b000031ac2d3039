//! Where partitions begin and end, and what a group has committed: asked for many of them at once.
//!
//! Invariant: one request a broker, whatever the number of partitions, and no call waits without a limit.

use std::collections::BTreeMap;
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
