//! Producers: what every one of them is configured with, and how all their records are waited for.
//!
//! Not what is done about a record that fails: see [`failure`](crate::failure).

use std::mem;
use std::thread;
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::error::KafkaError;
use rdkafka::producer::{BaseProducer, Producer, ProducerContext};

/// Longest wait for one call to a producer; in a transaction, a producer that takes longer is made anew.
pub const CALL: Duration = Duration::from_secs(10);

/// Pause between two looks for acknowledgements: nothing beside what a commit takes, and a wake-up costs little beside it.
pub const STEP: Duration = Duration::from_micros(500);

/// The configuration of a producer: the user's, and what every guarantee needs.
pub fn producer_config(config: &ClientConfig) -> ClientConfig {
    let mut config = config.clone();
    for (key, value) in [
        ("enable.idempotence", "true"),
        ("compression.type", "lz4"),
        ("partitioner", "murmur2_random"),
        // The client's default: who writes one batch at a time, or hands over as it reads, would leave the broker idle otherwise.
        ("linger.ms", "5"),
        // What is written is named by people: a topic that they mistype is not to come into being.
        ("allow.auto.create.topics", "false"),
        // A topic that does not exist is found out well within one call.
        ("topic.metadata.propagation.max.ms", "2000"),
        // Below the broker's default limit of 1 MiB for a batch; a larger record travels alone.
        ("batch.size", "900000"),
        // Whether a record is too large is the topic's to say.
        ("message.max.bytes", "10000000"),
    ] {
        config.set(key, value);
    }
    config
}

/// Waits until every record is acknowledged or has failed, at most [`CALL`].
///
/// [`Producer::flush`] of the client polls in steps of 100 ms. A poll ends no earlier than asked for, which would be most of the time of a
/// commit, and it spins for its last millisecond, which would be a core: none is asked to wait here.
pub fn flush<C: ProducerContext>(producer: &BaseProducer<C>) -> Result<(), KafkaError> {
    let deadline = Instant::now() + CALL;
    let mut left = producer.in_flight_count();
    while let Err(error) = producer.flush(Duration::ZERO) {
        if Instant::now() >= deadline {
            return Err(error);
        }
        // Takes one bundle of acknowledgements, if there is one.
        producer.poll(Duration::ZERO);
        let before = mem::replace(&mut left, producer.in_flight_count());
        if left == before {
            thread::sleep(STEP);
        }
    }
    Ok(())
}
