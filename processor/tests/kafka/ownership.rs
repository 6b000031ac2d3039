//! Who owns which shard: every worker has whole shards, each shard has one worker, and what one has committed the next one starts from.

use std::collections::BTreeSet;

use rdkafka::consumer::{CommitMode, Consumer};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use retide::shell::feed::{Assignment, Request};
use retide_core::completions::Completions;
use retide_core::{LaneId, Source};

use crate::support::{PATIENCE, SHARDS, Worker, bootstrap, config, create, until};

#[test]
fn workers_own_whole_shards_and_every_shard_has_one_owner() {
    let Some(bootstrap) = bootstrap() else { return };
    let prefix = format!("own-{}", uuid::Uuid::new_v4());
    let topics = create(&bootstrap, &prefix);
    let all: BTreeSet<i32> = (0..SHARDS).collect();

    let mut first = Worker::join(&bootstrap, &prefix, &topics);
    until("one worker owns all", &mut [&mut first], |workers| {
        workers[0].shards() == all && workers[0].is_whole(&topics)
    });

    let mut second = Worker::join(&bootstrap, &prefix, &topics);
    until(
        "two workers share all",
        &mut [&mut first, &mut second],
        |workers| {
            let [one, other] = workers else { return false };
            let halves = [one.shards(), other.shards()];
            halves.iter().all(|half| half.len() == 2)
                && halves[0].is_disjoint(&halves[1])
                && one.is_whole(&topics)
                && other.is_whole(&topics)
        },
    );

    first.leave();
    until(
        "the one that stays owns all",
        &mut [&mut second],
        |workers| workers[0].shards() == all && workers[0].is_whole(&topics),
    );
    second.leave();
}

#[test]
fn the_next_owner_starts_where_the_last_commit_and_its_completions_say() {
    let Some(bootstrap) = bootstrap() else { return };
    let prefix = format!("next-{}", uuid::Uuid::new_v4());
    let topics = create(&bootstrap, &prefix);
    let producer: BaseProducer = config(&bootstrap, &prefix).create().unwrap();
    for _ in 0..10 {
        let record = BaseRecord::<(), str>::to(&topics.tasks)
            .payload("x")
            .partition(1);
        producer.send(record).map_err(|(error, _)| error).unwrap();
    }
    producer.flush(PATIENCE).unwrap();
    let lane = LaneId {
        shard: 1,
        source: Source::Tasks,
    };

    let mut first = Worker::join(&bootstrap, &prefix, &topics);
    until("ten records", &mut [&mut first], |workers| {
        workers[0].records.len() == 10
    });
    let known = Completions::between(4, 9, [5].into_iter());
    let mut commit = TopicPartitionList::new();
    commit
        .add_partition_offset(&topics.tasks, 1, Offset::Offset(3))
        .unwrap();
    commit
        .find_partition(&topics.tasks, 1)
        .unwrap()
        .set_metadata(known.encode());
    first
        .feed
        .consumer
        .commit(&commit, CommitMode::Sync)
        .unwrap();
    first.leave();

    let mut second = Worker::join(&bootstrap, &prefix, &topics);
    until("seven records", &mut [&mut second], |workers| {
        workers[0].records.len() == 7
    });
    let assignment = second.lanes.get(&lane).cloned();
    second.leave();

    let start = 3;
    assert_eq!(assignment, Some(Assignment { lane, start, known }));
}

#[test]
fn a_resumed_lane_reads_again_from_the_offset_it_was_paused_at() {
    let Some(bootstrap) = bootstrap() else { return };
    let prefix = format!("pause-{}", uuid::Uuid::new_v4());
    let topics = create(&bootstrap, &prefix);
    let producer: BaseProducer = config(&bootstrap, &prefix).create().unwrap();
    for _ in 0..10 {
        let record = BaseRecord::<(), str>::to(&topics.tiers[1])
            .payload("x")
            .partition(0);
        producer.send(record).map_err(|(error, _)| error).unwrap();
    }
    producer.flush(PATIENCE).unwrap();
    let lane = LaneId {
        shard: 0,
        source: Source::Tier(1),
    };
    let mut worker = Worker::join(&bootstrap, &prefix, &topics);
    until("ten records", &mut [&mut worker], |workers| {
        workers[0].records.len() == 10
    });

    worker.feed.requests.send(Request::Pause { lane }).unwrap();
    let (run, next) = (1, 6);
    worker
        .feed
        .requests
        .send(Request::Resume { lane, run, next })
        .unwrap();

    until("four more", &mut [&mut worker], |workers| {
        workers[0].records.len() == 14
    });
    let again: Vec<i64> = worker.records[10..]
        .iter()
        .map(|(_, offset)| *offset)
        .collect();
    worker.leave();
    assert_eq!(again, [6, 7, 8, 9]);
}
