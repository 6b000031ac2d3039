//! Committed offsets that somebody else has set: what their metadata says is believed where it was written for them, and nowhere else.

use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseRecord, Producer};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use retide_core::completions::{Binding, Completions};
use retide_native::topics::{cluster_id, describe};

use crate::rig::{FLAKY, Rig};
use crate::support::{PATIENCE, config};

/// Tasks of each partition.
const TASKS: i64 = 12;

/// What an earlier version committed for 500 tasks of another prefix, of which every fiftieth was slow.
const EARLIER: &str = "1.681478ff.AfMDADEBMQExATEBMQExATEBMQExATE";

#[test]
fn commit_metadata_is_believed_only_where_it_was_written() {
    let rig = Rig::new(Duration::ZERO, FLAKY);
    let topic = rig.topic("tasks");
    let consumer: BaseConsumer = config(&rig.bootstrap, &rig.prefix).create().unwrap();
    let cluster = cluster_id(consumer.client(), PATIENCE).unwrap();
    let found = describe(consumer.client(), &[&topic], PATIENCE).unwrap();
    let id = found[0].as_ref().unwrap().id.expect("a topic id").0;
    let done = Completions::between(1, TASKS, [5].into_iter());
    let bound = |cluster: &str, partition| Binding::new(cluster, &topic, id, partition);
    let metadata = [
        EARLIER.to_owned(),
        done.encode(bound("elsewhere", 1), 0),
        // Right in all but the offset: somebody has reset it and kept the text.
        done.encode(bound(&cluster, 2), 1),
        done.encode(bound(&cluster, 3), 0),
    ];
    let producer = rig.producer();
    let mut offsets = TopicPartitionList::new();
    for (partition, metadata) in (0..).zip(&metadata) {
        for number in 0..TASKS {
            let id = format!("{partition}-{number}");
            let header = |key, value| Header {
                key,
                value: Some(value),
            };
            let headers = OwnedHeaders::new()
                .insert(header("retry-scene", "flaky"))
                .insert(header("retry-id", &id));
            let record = BaseRecord::<(), str>::to(&topic)
                .partition(partition)
                .headers(headers);
            let sent = producer.send(record.payload("0"));
            sent.map_err(|(error, _)| error).unwrap();
        }
        let offset = Offset::Offset(0);
        offsets
            .add_partition_offset(&topic, partition, offset)
            .unwrap();
        let mut element = offsets.find_partition(&topic, partition).unwrap();
        element.set_metadata(metadata.as_str());
    }
    producer.flush(PATIENCE).unwrap();
    consumer.commit(&offsets, CommitMode::Sync).unwrap();

    let retide = rig.run();
    // Two of the last partition: the first one, and the one that its metadata leaves out.
    let expected = 3 * TASKS as usize + 2;
    let ends = rig.ends(expected);

    let of = |partition: i32| {
        let of = format!("{partition}-");
        ends.keys().filter(|id| id.starts_with(&of)).count()
    };
    assert_eq!([of(0), of(1), of(2), of(3)], [12, 12, 12, 2]);
    assert!(ends.contains_key("3-0") && ends.contains_key("3-5"));
    assert_eq!(rig.target.count(), expected);
    for (partition, why) in [
        (0, "written by an earlier version"),
        (1, "written for another cluster, topic or offset"),
        (2, "written for another cluster, topic or offset"),
    ] {
        retide.wait_for(&format!("partition={partition} offset=0"));
        retide.wait_for(why);
    }
    assert!(!retide.log().contains("partition=3 offset=0"));
    // What it commits itself is believed by the next one.
    retide.terminate();
    assert_eq!(retide.wait(), Some(0));
    let next = rig.run();
    let since = Instant::now();
    rig.produce(0, [0].into_iter());
    rig.ends_within(expected + 1, PATIENCE);
    assert!(since.elapsed() < PATIENCE);
    assert!(!next.log().contains("not believed"), "{}", next.log());
    assert_eq!(rig.target.count(), expected + 1);
}
