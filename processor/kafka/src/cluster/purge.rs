//! Deleting the beginning of partitions, which is all that Kafka can delete of a topic whose records are not replaced.
//!
//! Not which records those are. Invariant: nothing at or behind the offset that is named is deleted.

use std::collections::BTreeMap;
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::admin::AdminOptions;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use crate::cluster::Error;
use crate::cluster::session::apart;

/// What became of each partition: the first offset that is there now, or why nothing was deleted.
pub type Purged = BTreeMap<i32, Result<i64, RDKafkaErrorCode>>;

/// How long brokers may take: each of them moves a number and writes it down, and its followers do so, too.
const PURGE: Duration = Duration::from_secs(30);

/// Deletes the records of `topic` that stand before these offsets, by partition.
///
/// # Errors
/// If the cluster cannot be asked.
pub async fn purge(
    config: &ClientConfig,
    topic: &str,
    before: &BTreeMap<i32, i64>,
) -> Result<Purged, Error> {
    const WHAT: &str = "delete records";
    let mut list = TopicPartitionList::with_capacity(before.len());
    for (partition, offset) in before {
        list.add_partition_offset(topic, *partition, Offset::Offset(*offset))
            .map_err(Error::Client)?;
    }
    let topic = topic.to_owned();
    apart(config, move |session| {
        let seen = session.find_named([&*topic])?;
        let options = AdminOptions::new()
            .request_timeout(Some(PURGE))
            .operation_timeout(Some(PURGE));
        let answer = session.admin.delete_records(&list, &options);
        let answer = session.runtime.block_on(answer);
        let answer = session.answer(WHAT, answer, &seen)?;
        let elements = answer.elements();
        let purged = elements.iter().map(|element| {
            let offset = match (element.error(), element.offset()) {
                (Ok(()), Offset::Offset(offset)) => Ok(offset),
                (Ok(()), _) => Err(RDKafkaErrorCode::Unknown),
                (Err(error), _) => Err(code(&error)),
            };
            (element.partition(), offset)
        });
        Ok(purged.collect())
    })
    .await
}

/// The code of an error.
fn code(error: &KafkaError) -> RDKafkaErrorCode {
    error
        .rdkafka_error_code()
        .unwrap_or(RDKafkaErrorCode::Unknown)
}
