//! The raw baselines on Kafka: a bare consumer and producer of the client library, made by hand since they are the yardstick, in a plain loop
//! on one thread that copies a topic, in transactions or without.
//!
//! Invariant: the loops use the commit interval, the sizes of batches and the compression that retide uses, and do nothing else.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::{BorrowedHeaders, Message, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use retide_kafka::client::client_config;
use retide_kafka::producer::producer_config;

use crate::bench::testbed::send;
use crate::bench::{Error, PATIENCE, Samples, Testbed};

/// A copy under way.
struct Copy<'a> {
    /// Where it takes place.
    bed: &'a Testbed,
    /// Reads.
    consumer: BaseConsumer,
    /// Writes to the dead-letters topic, which nobody else writes in a measurement.
    producer: BaseProducer,
}

/// Longest wait for one answer of the broker.
const CALL: Duration = Duration::from_secs(30);

/// Copies everything on `topic`, records and offsets in one transaction, as often as retide would commit.
pub(super) fn transactional(bed: &Testbed, topic: &str, records: u64) -> Result<Samples, Error> {
    let id = format!("{}-transactional-copy", bed.config.processor.group);
    let mut config = producer_config(&client_config(bed.config.kafka.producer()));
    config.set("transactional.id", &id);
    let copy = Copy::new(bed, topic, &id, config.create()?)?;
    copy.producer.init_transactions(CALL)?;
    copy.all(records, |copy| {
        copy.producer.begin_transaction()?;
        let (count, offsets) = copy.interval()?;
        let membership = copy.consumer.group_metadata();
        let membership = membership.ok_or(KafkaError::Canceled)?;
        copy.producer
            .send_offsets_to_transaction(&offsets, &membership, CALL)?;
        copy.producer.commit_transaction(CALL)?;
        Ok(count)
    })
}

/// Copies everything on `topic`, records first and then their offsets, as often as retide would commit.
pub(super) fn plain(bed: &Testbed, topic: &str, records: u64) -> Result<Samples, Error> {
    let id = format!("{}-plain-copy", bed.config.processor.group);
    let config = producer_config(&client_config(bed.config.kafka.producer()));
    let copy = Copy::new(bed, topic, &id, config.create()?)?;
    copy.all(records, |copy| {
        let (count, offsets) = copy.interval()?;
        copy.producer.flush(CALL)?;
        if count > 0 {
            copy.consumer.commit(&offsets, CommitMode::Sync)?;
        }
        Ok(count)
    })
}

// === impl Copy ===

impl<'a> Copy<'a> {
    /// A copy of `topic` from its beginning.
    fn new(
        bed: &'a Testbed,
        topic: &str,
        group: &str,
        producer: BaseProducer,
    ) -> Result<Self, Error> {
        let mut config = client_config(bed.config.kafka.consumer());
        for (key, value) in [
            ("group.id", group),
            ("enable.auto.commit", "false"),
            ("isolation.level", "read_committed"),
            ("queued.max.messages.kbytes", "16384"),
        ] {
            config.set(key, value);
        }
        let consumer: BaseConsumer = config.create()?;
        let mut list = bed.partitions(topic);
        list.set_all_offsets(Offset::Beginning)?;
        #[allow(
            clippy::disallowed_methods,
            reason = "the bare client is the yardstick"
        )]
        consumer.assign(&list)?;
        Ok(Self {
            bed,
            consumer,
            producer,
        })
    }

    /// Copies as many records as there are, so many at a time as `once` says it did.
    fn all(
        &self,
        records: u64,
        once: impl Fn(&Self) -> Result<u64, Error>,
    ) -> Result<Samples, Error> {
        let (mut samples, mut done) = (Samples::start(), 0);
        while done < records {
            if samples.idle() > PATIENCE {
                return Err(Error::Stuck {
                    what: "records copied",
                    done,
                    all: records,
                });
            }
            done += once(self)?;
            samples.add(done);
        }
        Ok(samples)
    }

    /// Hands over what can be read within a commit interval: how many records, and the offsets behind them.
    fn interval(&self) -> Result<(u64, TopicPartitionList), Error> {
        let until = Instant::now() + self.bed.config.processor.commit_interval;
        let mut next = BTreeMap::new();
        let mut count = 0;
        while Instant::now() < until {
            let wait = until.saturating_duration_since(Instant::now());
            let Some(message) = self.consumer.poll(wait) else {
                break;
            };
            let message = message?;
            #[allow(
                clippy::disallowed_methods,
                reason = "the client copies the list, nobody reads a name"
            )]
            let headers = message.headers();
            let mut record = BaseRecord::<[u8], [u8]>::to(&self.bed.topics.dead_letters)
                .partition(message.partition())
                .headers(headers.map_or_else(OwnedHeaders::new, BorrowedHeaders::detach));
            record.payload = message.payload();
            record.key = message.key();
            send(&self.producer, record)?;
            // Deliveries are taken note of as they come: without, they would pile up.
            if count % 1_024 == 0 {
                self.producer.poll(Duration::ZERO);
            }
            let place = (message.topic().to_owned(), message.offset() + 1);
            next.insert(message.partition(), place);
            count += 1;
        }
        let mut offsets = TopicPartitionList::new();
        for (partition, (topic, offset)) in next {
            offsets.add_partition_offset(&topic, partition, Offset::Offset(offset))?;
        }
        Ok((count, offsets))
    }
}
