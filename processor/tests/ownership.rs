//! Who owns which shard, on a real broker: every worker has whole shards, each shard has one worker, and what one has committed the
//! next one starts from.
//!
//! Needs a broker at `RETIDE_TEST_BOOTSTRAP`; without one it says so and does nothing, unless `RETIDE_REQUIRE_KAFKA=1` makes that a failure.

use std::collections::{BTreeMap, BTreeSet};
use std::env;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{CommitMode, Consumer};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use retide::shell::feed::{Assignment, Feed, Reading, Request};
use retide::topics::Topics;
use retide_core::completions::Completions;
use retide_core::{Ladder, LaneId, Source};

/// Partitions of each topic of a test.
const SHARDS: i32 = 4;
/// Longest wait for anything; only a failure takes as long.
const PATIENCE: Duration = Duration::from_mins(1);

/// The broker's address, if there is one to test against.
fn bootstrap() -> Option<String> {
    let bootstrap = env::var("RETIDE_TEST_BOOTSTRAP").ok();
    if bootstrap.is_none() {
        assert!(
            env::var("RETIDE_REQUIRE_KAFKA").as_deref() != Ok("1"),
            "RETIDE_REQUIRE_KAFKA=1, but RETIDE_TEST_BOOTSTRAP names no broker"
        );
        eprintln!("NOT TESTED: RETIDE_TEST_BOOTSTRAP names no broker");
    }
    bootstrap
}

fn config(bootstrap: &str, group: &str) -> ClientConfig {
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", bootstrap)
        .set("group.id", group)
        .set("session.timeout.ms", "6000")
        .set("heartbeat.interval.ms", "500");
    config
}

/// Topics of their own for one test.
fn create(bootstrap: &str, prefix: &str) -> Arc<Topics> {
    let ladder = Ladder::try_new(&["now", "5s", "1m"]).unwrap();
    let topics = Topics::new(prefix, &ladder);
    let admin: AdminClient<DefaultClientContext> = config(bootstrap, "admin").create().unwrap();
    let new: Vec<NewTopic<'_>> = topics
        .read()
        .map(|(_, name)| NewTopic::new(name, SHARDS, TopicReplication::Fixed(1)))
        .collect();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let results = runtime
        .block_on(admin.create_topics(&new, &AdminOptions::new()))
        .unwrap();
    assert!(results.iter().all(Result::is_ok), "{results:?}");
    Arc::new(topics)
}

/// A worker as far as ownership goes: it lets go at once.
struct Worker {
    feed: Feed,
    lanes: BTreeMap<LaneId, Assignment>,
    records: Vec<(LaneId, i64)>,
}

impl Worker {
    fn join(bootstrap: &str, group: &str, topics: &Arc<Topics>) -> Self {
        let feed = Feed::start(&config(bootstrap, group), topics, "test").unwrap();
        Self {
            feed,
            lanes: BTreeMap::new(),
            records: Vec::new(),
        }
    }

    /// Takes in one reading, if there is one.
    fn turn(&mut self) {
        match self.feed.readings.recv_timeout(Duration::from_millis(20)) {
            Ok(Reading::Assigned(lanes)) => {
                self.lanes
                    .extend(lanes.into_iter().map(|lane| (lane.lane, lane)));
            }
            Ok(Reading::Revoked { shards, done, .. }) => {
                self.lanes.retain(|lane, _| !shards.contains(&lane.shard));
                done.send(()).unwrap();
            }
            Ok(Reading::Record { position, .. }) => {
                self.records.push((position.lane, position.offset));
            }
            Ok(Reading::Failed(error)) => panic!("{error}"),
            Err(_) => {}
        }
    }

    fn shards(&self) -> BTreeSet<i32> {
        self.lanes.keys().map(|lane| lane.shard).collect()
    }

    /// Whether every shard it has is whole.
    fn is_whole(&self, topics: &Topics) -> bool {
        self.lanes.len() == self.shards().len() * topics.read().count()
    }

    fn leave(mut self) {
        let stopping = std::thread::spawn({
            let readings = self.feed.readings.clone();
            move || {
                while let Ok(reading) = readings.recv() {
                    drop(reading);
                }
            }
        });
        self.lanes.clear();
        self.feed.stop();
        stopping.join().unwrap();
    }
}

/// Turns all workers until `reached`, or fails.
fn until(what: &str, workers: &mut [&mut Worker], mut reached: impl FnMut(&[&mut Worker]) -> bool) {
    let start = Instant::now();
    while !reached(workers) {
        assert!(start.elapsed() < PATIENCE, "never: {what}");
        for worker in workers.iter_mut() {
            worker.turn();
        }
    }
}

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
