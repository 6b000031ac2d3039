//! A consumer that is used once more: it forgets how far it has read what is no longer assigned, and reads that from where it is told.

use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::Message;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use retide_kafka::client::LoggingContext;
use retide_kafka::scan;
use retide_native::positions;

use crate::support::{PATIENCE, bootstrap, config, create_topics, produce_ten};

/// The first partition of a topic, from an offset.
fn from(topic: &str, offset: i64) -> TopicPartitionList {
    let mut starts = TopicPartitionList::new();
    starts
        .add_partition_offset(topic, 0, Offset::Offset(offset))
        .unwrap();
    starts
}

/// The offset of the next record.
fn next(consumer: &BaseConsumer<LoggingContext>) -> i64 {
    let start = Instant::now();
    loop {
        assert!(start.elapsed() < PATIENCE, "no record");
        if let Some(Ok(message)) = consumer.poll(Duration::from_millis(20)) {
            return message.offset();
        }
    }
}

#[test]
fn a_consumer_forgets_what_it_has_read_and_reads_it_again() {
    let bootstrap = bootstrap();
    let topic = format!("positions-{}", uuid::Uuid::new_v4().simple());
    create_topics(&bootstrap, &[&topic]);
    produce_ten(&bootstrap, &topic, 0);
    let consumer = scan::consumer(config(&bootstrap, "positions"), "positions").unwrap();
    let is_forgotten = || positions::none(consumer.client(), &from(&topic, 0));
    assert!(is_forgotten(), "nothing was read");

    for offset in [0, 7, 2] {
        scan::read_on(&consumer, &from(&topic, offset)).unwrap();
        assert_eq!(next(&consumer), offset);
        assert!(!is_forgotten());
        // As the sweep does with what it is through with.
        consumer.pause(&from(&topic, 0)).unwrap();

        consumer.resume(&from(&topic, 0)).unwrap();
        consumer.unassign().unwrap();
        let start = Instant::now();
        while !is_forgotten() {
            assert!(start.elapsed() < PATIENCE, "never forgotten");
            consumer.poll(Duration::from_millis(1));
        }
    }
}
