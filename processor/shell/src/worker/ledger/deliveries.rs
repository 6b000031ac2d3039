//! Deliveries: records are handed to the client and waited for, and those that fail are collected.
//!
//! Not what a failure means, which is the verdict's.

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::time::{Duration, Instant};
use std::{mem, thread};

use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{DeliveryResult, Message};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer, ProducerContext};
use tracing::debug;

use retide_kafka::client::{complained, logged};
use retide_kafka::failure::is_refusal;
use retide_kafka::producer::{CALL, STEP};

use crate::worker::ledger::lock;

/// Collects the deliveries that failed, and where records were written of which that is to be known.
#[derive(Debug, Default)]
pub(crate) struct Deliveries {
    /// The numbers of such records, and their offsets.
    offsets: Mutex<Vec<(usize, i64)>>,
    /// Records that were not delivered.
    failed: Mutex<Vec<Failed>>,
    /// Topics that the client may not add to its transaction: it says so in its log only.
    unregistered: Mutex<BTreeSet<String>>,
}

/// What a client says of a record that was not delivered.
#[derive(Clone, Debug)]
pub(crate) struct Failed {
    /// The number of the record.
    pub(super) number: usize,
    /// The topic that it was written to.
    pub(super) topic: String,
    /// What was said of it.
    pub(crate) error: KafkaError,
}

/// How waiting for acknowledgements came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flushed {
    /// All records are acknowledged or have failed.
    All,
    /// Some have failed, and the others get nowhere.
    Failed,
    /// Time is up; so many are left.
    TimedOut(usize),
}

/// How long other failures are waited for after the first: those of requests under way.
const FAILURES: Duration = Duration::from_millis(50);

/// Marks the number of a record of which it is to be known where it was written.
pub(super) const NOTED: usize = 1 << (usize::BITS - 1);

/// Hands a record to the producer, waiting while its queue is full. A refusal is collected like a failed delivery.
pub(crate) fn produce(
    producer: &BaseProducer<Deliveries>,
    mut out: BaseRecord<'_, [u8], [u8], usize>,
) -> Result<(), KafkaError> {
    let index = out.delivery_opaque & !NOTED;
    // No look at the clock unless the queue is full.
    let mut deadline = None;
    while let Err((error, again)) = producer.send(out) {
        match error.rdkafka_error_code() {
            Some(RDKafkaErrorCode::QueueFull)
                if Instant::now() < *deadline.get_or_insert_with(|| Instant::now() + CALL) =>
            {
                producer.poll(Duration::from_millis(10));
                out = again;
            }
            Some(code) if is_refusal(code) => {
                lock(&producer.context().failed).push(Failed {
                    number: index,
                    topic: again.topic.to_owned(),
                    error,
                });
                return Ok(());
            }
            _ => return Err(error),
        }
    }
    Ok(())
}

/// Waits until every record is acknowledged or has failed, at most `patience`; not for long once one has failed, since the others of its
/// transaction may then get nowhere. In the steps of [`flush`](retide_kafka::producer::flush).
pub(crate) fn settle_deliveries(
    producer: &BaseProducer<Deliveries>,
    patience: Duration,
) -> Result<Flushed, KafkaError> {
    let start = Instant::now();
    let mut left = producer.in_flight_count();
    let mut failed_at = None;
    while let Err(error) = producer.flush(Duration::ZERO) {
        if error.rdkafka_error_code() != Some(RDKafkaErrorCode::OperationTimedOut) {
            return Err(error);
        }
        let now = Instant::now();
        if now.duration_since(start) >= patience {
            return Ok(Flushed::TimedOut(producer.in_flight_count().max(0) as usize));
        }
        if producer.context().has_failed()
            && now.duration_since(*failed_at.get_or_insert(now)) >= FAILURES
        {
            return Ok(Flushed::Failed);
        }
        // Takes one bundle of acknowledgements, if there is one.
        producer.poll(Duration::ZERO);
        let before = mem::replace(&mut left, producer.in_flight_count());
        if left == before {
            thread::sleep(STEP);
        }
    }
    Ok(Flushed::All)
}

/// What the client calls the lines about topics that it adds to a transaction.
const UNREGISTERED: &str = "ADDPARTS";

/// What it calls the line about a transaction that is to be aborted.
const FAILED_TRANSACTION: &str = "TXNERR";

/// What stands before the name of a topic that it could not add, in quotes.
const REFUSED_TOPIC: &str = "Failed to add partition \"";

/// What it says of a topic that may not be written. All else that it says there is about the transaction, or passes: that the producer is
/// fenced, say, and the first topic of the list only bears the name.
const REFUSED: &str = "Topic authorization failed";

// === impl Failed ===

impl Failed {
    /// What was said of it, if a code says it.
    pub(crate) fn code(&self) -> Option<RDKafkaErrorCode> {
        self.error.rdkafka_error_code()
    }
}

// === impl Deliveries ===

impl Deliveries {
    /// Whether a delivery has failed, or will.
    fn has_failed(&self) -> bool {
        !lock(&self.failed).is_empty() || !lock(&self.unregistered).is_empty()
    }

    /// Where the records were written of which that is to be known, as far as it was said, by their numbers.
    pub(super) fn take_offsets(&self) -> Vec<(usize, i64)> {
        mem::take(&mut lock(&self.offsets))
    }

    /// What has failed: the numbers of records, and topics that may not be written.
    pub(crate) fn take(&self) -> (Vec<Failed>, BTreeSet<String>) {
        (
            mem::take(&mut lock(&self.failed)),
            mem::take(&mut lock(&self.unregistered)),
        )
    }
}

impl ClientContext for Deliveries {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        // The transaction fails with an error that names no topic.
        let topic = (facility == UNREGISTERED)
            .then(|| message.split_once(REFUSED_TOPIC)?.1.split_once('"'))
            .flatten();
        if let Some((topic, reason)) = topic {
            if reason.contains(REFUSED) {
                lock(&self.unregistered).insert(topic.to_owned());
            }
            return debug!(facility, message, "topic not added to a transaction");
        }
        if facility == FAILED_TRANSACTION {
            // What follows from that is told by whoever deals with it.
            return debug!(facility, message, "transaction failed");
        }
        logged(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        complained(&error, reason);
    }
}

impl ProducerContext for Deliveries {
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, index: usize) {
        let number = index & !NOTED;
        match result {
            Ok(message) if index & NOTED != 0 => {
                lock(&self.offsets).push((number, message.offset()));
            }
            Ok(_) => {}
            Err((error, message)) => lock(&self.failed).push(Failed {
                number,
                topic: message.topic().to_owned(),
                error: error.clone(),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The topics that are taken for ones that may not be written, if the client says this of `chaos.order`.
    fn refused(reason: &str) -> Vec<String> {
        let deliveries = Deliveries::default();
        let line = format!(
            "[thrd:main]: Failed to add partition \"chaos.order\" [3] to transaction: {reason}"
        );
        deliveries.log(RDKafkaLogLevel::Error, "ADDPARTS", &line);
        deliveries.take().1.into_iter().collect()
    }

    #[test]
    fn a_topic_is_refused_if_it_may_not_be_written() {
        assert_eq!(
            refused("Broker: Topic authorization failed"),
            ["chaos.order"]
        );
    }

    #[test]
    fn what_befalls_a_transaction_is_no_refusal_of_the_topic_that_is_named_first() {
        for reason in [
            "Broker: Producer attempted an operation with an old epoch",
            "Broker: There is a newer producer with the same transactionalId which fences the current one",
            "Broker: Transactional Id authorization failed",
            "Broker: Cluster authorization failed",
            "Broker: Producer attempted a transactional operation in an invalid state",
            "Broker: Operation not attempted",
            "Unknown broker error",
        ] {
            assert_eq!(refused(reason), Vec::<String>::new(), "{reason}");
        }
    }
}
