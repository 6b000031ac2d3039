//! Publishing a few records, each acknowledged by every replica in sync, or an error for each: what commands and the demo do.
//!
//! Not the ledger: nothing here is part of a transaction.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::client::ClientContext;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{DeliveryResult, Message};
use rdkafka::producer::{BaseProducer, Producer, ProducerContext};

use crate::record::OutRecord;

/// Produces records and remembers what became of each.
pub struct Publisher {
    /// The producer.
    producer: BaseProducer<Deliveries>,
    /// How many records were handed to it.
    sent: usize,
    /// Of how many it was told what became of them.
    told: usize,
}

/// Where a record stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stored {
    /// The partition.
    pub partition: i32,
    /// The offset.
    pub offset: i64,
}

/// What became of the records, by the order in which they were sent.
#[derive(Default)]
struct Deliveries(Mutex<BTreeMap<usize, Result<Stored, KafkaError>>>);

/// Longest time for a record to be acknowledged: the broker has been reached already.
const DELIVERY: Duration = Duration::from_secs(15);

// === impl Publisher ===

impl Publisher {
    /// A publisher for the cluster that `config` names.
    pub fn try_new(config: &ClientConfig) -> Result<Self, KafkaError> {
        let mut config = config.clone();
        for (key, value) in [
            ("enable.idempotence", "true".to_owned()),
            ("compression.type", "lz4".to_owned()),
            // The one of the Java clients, so that a key has one partition whoever produces.
            ("partitioner", "murmur2_random".to_owned()),
            ("delivery.timeout.ms", DELIVERY.as_millis().to_string()),
            // Whether a record is too large is the topic's to say.
            ("message.max.bytes", "10000000".to_owned()),
        ] {
            config.set(key, value);
        }
        Ok(Self {
            producer: config.create_with_context(Deliveries::default())?,
            sent: 0,
            told: 0,
        })
    }

    /// Hands a record over; what becomes of it is told by [`Self::finish`].
    pub fn send(&mut self, record: &OutRecord) {
        let index = self.sent;
        self.sent += 1;
        let mut out = record.to_produce(index);
        let deadline = Instant::now() + DELIVERY;
        while let Err((error, again)) = self.producer.send(out) {
            let full = error.rdkafka_error_code() == Some(RDKafkaErrorCode::QueueFull);
            if !full || Instant::now() >= deadline {
                self.producer.context().note(index, Err(error));
                return;
            }
            self.producer.poll(POLL);
            out = again;
        }
        self.producer.poll(Duration::ZERO);
    }

    /// How many records were handed over of which it was not told what became of them.
    pub fn in_flight(&self) -> usize {
        self.sent - self.told
    }

    /// Waits up to `wait` for acknowledgements, and gives those of the next records, in the order they were sent.
    pub fn acknowledged(&mut self, wait: Duration) -> Vec<Result<Stored, KafkaError>> {
        self.producer.poll(wait);
        let mut deliveries = self.producer.context().lock();
        let mut results = Vec::new();
        while let Some(result) = deliveries.remove(&self.told) {
            self.told += 1;
            results.push(result);
        }
        results
    }

    /// Waits for the acknowledgements: one result for each record of which none was given, in the order they were sent.
    pub fn finish(&mut self) -> Vec<Result<Stored, KafkaError>> {
        // A little longer than a delivery takes at most, so that each record's own error is known.
        let flushed = self.producer.flush(DELIVERY + POLL * 10);
        let mut deliveries = self.producer.context().lock();
        let left = self.told..self.sent;
        self.told = self.sent;
        left.map(|index| {
            deliveries
                .remove(&index)
                .unwrap_or_else(|| Err(flushed.clone().err().unwrap_or(KafkaError::Canceled)))
        })
        .collect()
    }
}

/// Longest wait for room in the producer's queue before time is looked at again.
const POLL: Duration = Duration::from_millis(100);

// === impl Deliveries ===

impl Deliveries {
    /// Notes what became of a record.
    fn note(&self, index: usize, result: Result<Stored, KafkaError>) {
        self.lock().insert(index, result);
    }

    /// All of them.
    fn lock(&self) -> MutexGuard<'_, BTreeMap<usize, Result<Stored, KafkaError>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ClientContext for Deliveries {}

impl ProducerContext for Deliveries {
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, index: usize) {
        self.note(
            index,
            match result {
                Ok(message) => Ok(Stored {
                    partition: message.partition(),
                    offset: message.offset(),
                }),
                Err((error, _)) => Err(error.clone()),
            },
        );
    }
}
