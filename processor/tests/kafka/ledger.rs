//! Records before offsets, in order, and nothing for shards that are not ours: in one transaction, or one after the other.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::admin::{AdminClient, AdminOptions, NewPartitions};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::Message;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use retide_avro::wire::{Alert, Codec};
use retide_avro::{Format, Framing};
use retide_core::{
    Ended, Entry, Kind, LaneId, Omitted, Origin, Reason, Record, Source, Task, Terminal, Timestamp,
};
use retide_kafka::record::{OutHeaders, OutRecord};
use retide_kafka::topics::Topics;
use retide_shell::worker::encode::{Encoder, Formats, Shards};
use retide_shell::worker::feed::Reading;
use retide_shell::worker::ledger::{
    AtLeastOnce, Batch, Content, Ledger, Ownership, Progress, Receipt, Settled, Transactional,
};

use crate::support::{
    Guarantee, PATIENCE, SHARDS, Worker, bootstrap, config, create, create_topics, until,
};

/// A worker with all shards and the ledger that commits for it.
struct Bench<L> {
    bootstrap: String,
    group: String,
    topics: Arc<Topics>,
    worker: Worker,
    ownership: Arc<Ownership>,
    ledger: L,
}

impl<L: Guarantee> Bench<L> {
    fn new() -> Self {
        let bootstrap = bootstrap();
        let group = format!("ledger-{}", uuid::Uuid::new_v4());
        let topics = create(&bootstrap, &group);
        let mut worker = Worker::join(&bootstrap, &group, &topics);
        until("one worker owns all", &mut [&mut worker], |workers| {
            workers[0].shards().len() == SHARDS as usize
        });
        let ownership = Arc::new(Ownership::default());
        for shard in 0..SHARDS {
            ownership.take(shard);
        }
        let encoder = Arc::new(Encoder::new(Arc::clone(&topics), Formats::default()));
        let consumer = &worker.feed.consumer;
        let ledger = L::start(&bootstrap, &group, consumer, &ownership, &encoder);
        Self {
            bootstrap,
            group,
            topics,
            worker,
            ownership,
            ledger,
        }
    }

    fn record(&self, shard: i32, value: &str) -> OutRecord {
        OutRecord {
            topic: Arc::clone(&self.topics.tiers[0]),
            partition: Some(shard),
            key: None,
            value: Some(value.to_owned().into()),
            headers: OutHeaders::default(),
        }
    }

    /// A record to a topic that there is not, and that topic's name.
    fn stray(&self, value: &str) -> (OutRecord, String) {
        let missing = format!("{}.missing", self.group);
        let record = OutRecord {
            topic: missing.as_str().into(),
            ..self.record(0, value)
        };
        (record, missing)
    }

    fn progress(&self, shard: i32, next: i64, metadata: &str) -> Progress {
        Progress {
            topic: Arc::clone(&self.topics.tasks),
            shard,
            next,
            metadata: metadata.to_owned(),
        }
    }

    /// The receipt of the next batch, while the worker goes on polling.
    fn receipt(&mut self) -> Receipt {
        let start = Instant::now();
        loop {
            assert!(start.elapsed() < PATIENCE, "never: a receipt");
            if let Ok(receipt) = self.ledger.receipts().try_recv() {
                return receipt;
            }
            self.worker.turn();
        }
    }

    /// What the group has committed of the retry topic's shard.
    fn committed(&self, shard: i32) -> (Offset, String) {
        let mut list = TopicPartitionList::new();
        list.add_partition(&self.topics.tasks, shard);
        let committed = self
            .worker
            .feed
            .consumer
            .committed_offsets(list, PATIENCE)
            .unwrap();
        let element = &committed.elements()[0];
        (element.offset(), element.metadata().to_owned())
    }

    /// Whether there is no receipt yet, after a time in which several tries fail.
    fn still_waits(&mut self) -> bool {
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(5) {
            if !self.ledger.receipts().is_empty() {
                return false;
            }
            self.worker.turn();
        }
        true
    }

    /// Waits until the values on a shard of the first tier are these, for a reader of everything.
    fn wait_for_values(&mut self, shard: i32, values: &[&str]) {
        let start = Instant::now();
        while self.values(shard, "read_uncommitted") != values {
            assert!(start.elapsed() < PATIENCE, "never: {values:?}");
            self.worker.turn();
        }
    }

    /// The values on a shard of the first tier, as a consumer of this isolation sees them.
    fn values(&self, shard: i32, isolation: &str) -> Vec<String> {
        self.values_of(&self.topics.tiers[0], shard, isolation)
    }

    /// The values on a partition, as text.
    fn values_of(&self, topic: &str, shard: i32, isolation: &str) -> Vec<String> {
        let values = self.payloads_of(topic, shard, isolation).into_iter();
        values
            .map(|value| String::from_utf8_lossy(&value).into_owned())
            .collect()
    }

    /// What people are told on a shard, as a consumer that reads committed records sees it.
    fn alerts(&self, shard: i32) -> Vec<Alert> {
        let codec = Codec::new(Format::Json, Framing::SingleObject);
        let values = self.payloads_of(&self.topics.alerts, shard, "read_committed");
        let values = values.into_iter();
        values.map(|value| codec.decode(&value).unwrap()).collect()
    }

    /// The values on a partition.
    fn payloads_of(&self, topic: &str, shard: i32, isolation: &str) -> Vec<Vec<u8>> {
        let consumer: BaseConsumer = config(&self.bootstrap, "reader")
            .set("isolation.level", isolation)
            .set("enable.partition.eof", "true")
            .create()
            .unwrap();
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(topic, shard, Offset::Beginning)
            .unwrap();
        #[allow(
            clippy::disallowed_methods,
            reason = "what judges retide shares no reader with it"
        )]
        consumer.assign(&list).unwrap();
        let mut values = Vec::new();
        loop {
            match consumer.poll(PATIENCE).expect("an end of the partition") {
                Ok(message) => {
                    values.push(message.payload().unwrap_or_default().to_vec());
                }
                Err(rdkafka::error::KafkaError::PartitionEOF(_)) => return values,
                Err(error) => panic!("{error}"),
            }
        }
    }

    fn stop(self) {
        self.ledger.stop();
        self.worker.leave();
    }
}

const fn tasks(shard: i32) -> LaneId {
    let source = Source::Tasks;
    LaneId { shard, source }
}

fn settled(shard: i32, records: Vec<OutRecord>) -> Settled {
    Settled {
        shards: Shards::at(shard),
        offset: Some((tasks(shard), 0)),
        records: Content::Records(records),
        otherwise: Content::none(),
        refused: false,
        applied: Vec::new(),
    }
}

#[test]
fn batches_commit_in_order_with_their_offsets_and_completions() {
    batches_in_order::<Transactional>();
}

#[test]
fn batches_are_durable_before_their_offsets_at_least_once() {
    batches_in_order::<AtLeastOnce>();
}

fn batches_in_order<L: Guarantee>() {
    let mut bench = Bench::<L>::new();
    let batches = 40;

    for number in 1..=batches {
        let record = bench.record(0, &number.to_string());
        bench.ledger.submit(Batch {
            settled: vec![settled(0, vec![record])],
            progress: vec![bench.progress(0, number, &format!("m{number}"))],
            has_more: false,
            returns: 0,
        });
    }
    let receipts: Vec<Receipt> = (0..batches).map(|_| bench.receipt()).collect();

    let committed = |receipt: &Receipt| matches!(receipt, Receipt::Committed { refused, .. } if refused.is_empty());
    assert!(receipts.iter().all(committed), "{receipts:?}");
    assert_eq!(
        bench.committed(0),
        (Offset::Offset(batches), format!("m{batches}"))
    );
    let mut values: Vec<i64> = bench
        .values(0, "read_committed")
        .iter()
        .map(|value| value.parse().unwrap())
        .collect();
    values.sort_unstable();
    assert_eq!(values, (1..=batches).collect::<Vec<_>>());
    bench.stop();
}

#[test]
fn a_partition_that_a_topic_has_just_got_is_written_to() {
    to_a_new_partition::<Transactional>();
}

#[test]
fn a_partition_that_a_topic_has_just_got_is_written_to_at_least_once() {
    to_a_new_partition::<AtLeastOnce>();
}

fn to_a_new_partition<L: Guarantee>() {
    let mut bench = Bench::<L>::new();
    let tier = Arc::clone(&bench.topics.tiers[0]);
    for (number, partition) in [(1, 0), (2, 0), (3, SHARDS)] {
        if partition == SHARDS {
            // All producers, two at most, have asked for this topic, and ask again in minutes.
            widen(&bench.bootstrap, &tier, SHARDS + 1);
        }
        let record = OutRecord {
            partition: Some(partition),
            ..bench.record(0, &number.to_string())
        };
        bench.ledger.submit(Batch {
            settled: vec![settled(0, vec![record])],
            progress: vec![bench.progress(0, number, "")],
            has_more: false,
            returns: 0,
        });
        let receipt = bench.receipt();
        assert!(matches!(receipt, Receipt::Committed { .. }), "{receipt:?}");
    }
    assert_eq!(bench.values(SHARDS, "read_committed"), ["3"]);
    bench.stop();
}

/// Gives a topic so many partitions, and waits until the cluster says so.
fn widen(bootstrap: &str, topic: &str, partitions: i32) {
    let admin: AdminClient<DefaultClientContext> = config(bootstrap, "widen").create().unwrap();
    let more = NewPartitions::new(topic, partitions as usize);
    let options = AdminOptions::new();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let done = runtime.block_on(admin.create_partitions([&more], &options));
    assert!(done.unwrap().iter().all(Result::is_ok));
    let start = Instant::now();
    loop {
        assert!(start.elapsed() < PATIENCE, "never: {partitions} partitions");
        let metadata = admin.inner().fetch_metadata(Some(topic), PATIENCE).unwrap();
        let found = metadata.topics()[0].partitions().len();
        if found == partitions as usize {
            return;
        }
    }
}

#[test]
fn nothing_is_written_for_a_shard_that_was_given_up() {
    nothing_for_others::<Transactional>();
}

#[test]
fn nothing_is_written_for_a_shard_that_was_given_up_at_least_once() {
    nothing_for_others::<AtLeastOnce>();
}

fn nothing_for_others<L: Guarantee>() {
    let mut bench = Bench::<L>::new();
    bench.ownership.give_up(1);

    let both = Batch {
        settled: vec![
            settled(0, vec![bench.record(0, "ours")]),
            settled(1, vec![bench.record(1, "theirs")]),
        ],
        progress: vec![bench.progress(0, 5, ""), bench.progress(1, 5, "")],
        has_more: false,
        returns: 0,
    };
    let theirs = Batch {
        settled: vec![settled(1, vec![bench.record(1, "theirs")])],
        progress: vec![bench.progress(1, 6, "")],
        has_more: false,
        returns: 0,
    };
    bench.ledger.submit(both);
    bench.ledger.submit(theirs);
    let receipts = [bench.receipt(), bench.receipt()];

    assert!(matches!(
        receipts,
        [Receipt::Committed { .. }, Receipt::Dropped]
    ));
    assert_eq!(bench.committed(0).0, Offset::Offset(5));
    assert_eq!(bench.committed(1).0, Offset::Invalid);
    assert_eq!(bench.values(0, "read_committed"), ["ours"]);
    assert_eq!(bench.values(1, "read_committed"), Vec::<String>::new());
    bench.stop();
}

#[test]
fn a_topic_that_refuses_a_record_does_not_hold_up_the_batch() {
    a_refusal::<Transactional>();
}

#[test]
fn a_topic_that_refuses_a_record_gets_nothing_that_rests_on_it_at_least_once() {
    a_refusal::<AtLeastOnce>();
}

fn a_refusal<L: Guarantee>() {
    let mut bench = Bench::<L>::new();
    let stray = |value| bench.stray(value).0;
    let mut refused = settled(0, vec![stray("lost"), bench.record(0, "delivered")]);
    refused.otherwise = Content::Records(vec![bench.record(0, "parked")]);
    let other = settled(2, vec![bench.record(2, "other")]);
    // The last attempts of others.
    let last = [(0, 1, "a"), (2, 1, "b")].map(|(shard, offset, id)| Settled {
        offset: Some((tasks(shard), offset)),
        otherwise: Content::Entries(vec![dead_letter("pay", id)]),
        ..settled(shard, vec![stray(id)])
    });
    let all = [refused, other].into_iter().chain(last);

    bench.ledger.submit(Batch {
        settled: all.collect(),
        progress: vec![bench.progress(0, 2, ""), bench.progress(2, 2, "")],
        has_more: false,
        returns: 0,
    });
    let receipt = bench.receipt();

    let Receipt::Committed { refused, .. } = receipt else {
        panic!("{receipt:?}");
    };
    let refused: Vec<_> = refused
        .iter()
        .filter_map(|settled| settled.offset)
        .collect();
    assert_eq!(refused, [(tasks(0), 0), (tasks(0), 1), (tasks(2), 1)]);
    assert_eq!(bench.values(0, "read_committed"), ["parked"]);
    assert_eq!(bench.values(2, "read_committed"), ["other"]);
    // People are told of all that died, be it together or not.
    let alerts = [0, 2].map(|shard| bench.alerts(shard));
    let alerts: Vec<Alert> = alerts.into_iter().flatten().collect();
    let count: i64 = alerts.iter().map(|alert| alert.count).sum();
    assert_eq!(count, 2, "{alerts:?}");
    for Alert {
        rule,
        scene,
        reason,
        ..
    } in &alerts
    {
        let said = (&**rule, &**scene, &**reason);
        assert_eq!(said, ("dead-tasks", "pay", "attempts-exhausted"));
    }
    bench.stop();
}

/// The dead letter of a task of `scene` whose last attempt failed.
fn dead_letter(scene: &str, id: &str) -> Entry {
    let origin = Origin {
        topic: "tasks".into(),
        partition: 0,
        offset: 0,
    };
    let task = Task {
        id: id.into(),
        scene: scene.into(),
        kind: Kind::Work,
        attempt: 3,
        due: Timestamp::EPOCH,
        deferral: None,
        first_failed_at: Timestamp::EPOCH,
        deadline: None,
        origin: origin.clone(),
        failure: None,
        hops: 1,
        throttled: 0,
        exhausted: None,
        held_since: None,
        pending_since: None,
        stopped: None,
        commanded: None,
        replay: None,
        record: Record::default(),
    };
    let ended = Ended {
        id: id.into(),
        scene: scene.into(),
        kind: Kind::Work,
        terminal: Terminal::Dead,
        reason: Some(Reason::AttemptsExhausted),
        attempts: 3,
        origin,
        first_failed_at: Timestamp::EPOCH,
        at: Timestamp::EPOCH,
        failure: None,
        key: None,
        omitted: Omitted::Nothing,
    };
    Entry::DeadLetter {
        task: task.into(),
        ended: ended.into(),
    }
}

#[test]
fn a_member_that_was_replaced_cannot_commit() {
    let bench = Bench::<Transactional>::new();

    assert_eq!(replaced_member(bench), Vec::<String>::new());
}

#[test]
fn a_member_that_was_replaced_cannot_commit_at_least_once_either() {
    let bench = Bench::<AtLeastOnce>::new();

    // What it wrote stays, and is written again by the other.
    assert_eq!(replaced_member(bench), ["stale"]);
}

/// What is left of a batch of a member that was replaced.
fn replaced_member<L: Guarantee>(mut bench: Bench<L>) -> Vec<String> {
    // Another member joins; the first one takes no part in the rebalance, so its generation is over.
    let mut other = Worker::join(&bench.bootstrap, &bench.group, &bench.topics);
    until("the other owns all", &mut [&mut other], |workers| {
        workers[0].shards().len() == SHARDS as usize
    });

    bench.ledger.submit(Batch {
        settled: vec![settled(0, vec![bench.record(0, "stale")])],
        progress: vec![bench.progress(0, 9, "")],
        has_more: false,
        returns: 0,
    });
    let start = Instant::now();
    let early = loop {
        // Long enough for several tries; nothing may come of them.
        match bench.ledger.receipts().recv_timeout(Duration::from_secs(2)) {
            Ok(receipt) => break Some(receipt),
            Err(_) if start.elapsed() > Duration::from_secs(2) => break None,
            Err(_) => {}
        }
    };
    bench.ownership.give_up(0);
    let receipt = early.unwrap_or_else(|| bench.ledger.receipts().recv_timeout(PATIENCE).unwrap());

    let committed = bench.committed(0).0;
    let values = bench.values(0, "read_committed");
    bench.ledger.stop();
    // Before anything is asserted: a member that does not answer would keep a failed test from ending.
    other.leave();
    bench.worker.leave();
    assert_eq!(receipt, Receipt::Dropped);
    assert_eq!(committed, Offset::Invalid);
    values
}

#[test]
fn a_batch_behind_a_dropped_one_does_not_commit_for_its_shard() {
    let mut bench = Bench::<Transactional>::new();
    // No other form: this batch is written again and again, and keeps its turn.
    let (stuck, _) = bench.stray("first");

    bench.ledger.submit(Batch {
        settled: vec![settled(0, vec![stuck])],
        progress: vec![bench.progress(0, 5, "")],
        has_more: false,
        returns: 0,
    });
    bench.ledger.submit(Batch {
        settled: vec![settled(0, vec![bench.record(0, "second")])],
        progress: vec![bench.progress(0, 9, "")],
        has_more: false,
        returns: 0,
    });
    // Until the second batch is produced and waits for its turn.
    bench.wait_for_values(0, &["second"]);
    bench.ownership.give_up(0);
    let receipts = [bench.receipt(), bench.receipt()];

    assert_eq!(bench.committed(0).0, Offset::Invalid, "{receipts:?}");
    assert_eq!(receipts, [Receipt::Dropped, Receipt::Dropped]);
    assert_eq!(bench.values(0, "read_committed"), Vec::<String>::new());
    bench.stop();
}

#[test]
fn a_shard_that_comes_back_brings_no_old_batch_with_it() {
    nothing_from_before::<Transactional>();
}

#[test]
fn a_shard_that_comes_back_brings_no_old_batch_with_it_at_least_once() {
    nothing_from_before::<AtLeastOnce>();
}

fn nothing_from_before<L: Guarantee>() {
    let mut bench = Bench::<L>::new();
    let (stuck, _) = bench.stray("first");

    bench.ledger.submit(Batch {
        settled: vec![settled(0, vec![stuck])],
        progress: vec![bench.progress(0, 5, "")],
        has_more: false,
        returns: 0,
    });
    bench.ledger.submit(Batch {
        settled: vec![settled(0, vec![bench.record(0, "second")])],
        progress: vec![bench.progress(0, 9, "")],
        has_more: false,
        returns: 0,
    });
    bench.ownership.give_up(0);
    bench.ownership.take(0);
    bench.ledger.submit(Batch {
        settled: vec![settled(0, vec![bench.record(0, "new")])],
        progress: vec![bench.progress(0, 2, "")],
        has_more: false,
        returns: 0,
    });
    let receipts = [bench.receipt(), bench.receipt(), bench.receipt()];

    assert!(
        matches!(
            receipts,
            [
                Receipt::Dropped,
                Receipt::Dropped,
                Receipt::Committed { .. }
            ]
        ),
        "{receipts:?}"
    );
    assert_eq!(bench.committed(0).0, Offset::Offset(2));
    assert_eq!(bench.values(0, "read_committed"), ["new"]);
    bench.stop();
}

#[test]
fn a_batch_is_committed_while_a_rebalance_waits_for_it() {
    commit_in_rebalance::<Transactional>();
}

#[test]
fn a_batch_is_committed_while_a_rebalance_waits_for_it_at_least_once() {
    commit_in_rebalance::<AtLeastOnce>();
}

fn commit_in_rebalance<L: Guarantee>() {
    let mut bench = Bench::<L>::new();
    let mut other = Worker::join(&bench.bootstrap, &bench.group, &bench.topics);
    let (shards, done) = loop {
        match bench.worker.feed.readings.recv_timeout(PATIENCE).unwrap() {
            Reading::Revoked { shards, done, .. } => break (shards, done),
            Reading::Assigned(..)
            | Reading::Gaps(_)
            | Reading::Shards(_)
            | Reading::Deleted(_)
            | Reading::Alerts(_)
            | Reading::Searched(_) => {}
            Reading::Failed(error) => panic!("{error}"),
        }
    };

    // Whoever goes on there looks for the offset that is committed.
    let moved = shards[0];
    let task = OutRecord {
        topic: Arc::clone(&bench.topics.tasks),
        ..bench.record(moved, "task")
    };
    let mut records = vec![task; 3];
    records.push(bench.record(moved, "last"));
    bench.ledger.submit(Batch {
        settled: vec![settled(moved, records)],
        progress: vec![bench.progress(moved, 3, "")],
        has_more: false,
        returns: 0,
    });
    let receipt = bench.ledger.receipts().recv_timeout(PATIENCE).unwrap();
    let committed = bench.committed(moved).0;
    for shard in shards.iter().copied() {
        bench.ownership.give_up(shard);
    }
    let gone = |lane: &LaneId| shards.contains(&lane.shard);
    bench.worker.lanes.retain(|lane, _| !gone(lane));
    done.send(()).unwrap();
    until(
        "two workers share all",
        &mut [&mut bench.worker, &mut other],
        |workers| workers.iter().all(|worker| worker.shards().len() == 2),
    );

    assert!(matches!(receipt, Receipt::Committed { .. }), "{receipt:?}");
    assert_eq!(committed, Offset::Offset(3));
    let mut lanes = other.lanes.values();
    assert!(
        lanes.any(|lane| lane.lane.shard == moved && lane.start == 3),
        "nobody goes on where the first left"
    );
    bench.ledger.stop();
    other.leave();
    bench.worker.leave();
}

#[test]
fn offsets_do_not_move_past_a_batch_that_is_not_written() {
    let mut bench = Bench::<AtLeastOnce>::new();
    let (stuck, missing) = bench.stray("first");

    bench.ledger.submit(Batch {
        settled: vec![settled(0, vec![bench.record(0, "beside"), stuck])],
        progress: vec![bench.progress(0, 5, "")],
        has_more: false,
        returns: 0,
    });
    bench.ledger.submit(Batch {
        settled: vec![settled(0, vec![bench.record(0, "second")])],
        progress: vec![bench.progress(0, 9, "")],
        has_more: false,
        returns: 0,
    });
    let waits = bench.still_waits();
    let before = bench.committed(0).0;
    create_topics(&bench.bootstrap, &[&missing]);
    let receipts = [bench.receipt(), bench.receipt()];

    assert!(waits, "a receipt for what is not written");
    assert_eq!(before, Offset::Invalid);
    assert!(
        matches!(
            receipts,
            [Receipt::Committed { .. }, Receipt::Committed { .. }]
        ),
        "{receipts:?}"
    );
    assert_eq!(bench.committed(0).0, Offset::Offset(9));
    assert_eq!(bench.values_of(&missing, 0, "read_committed"), ["first"]);
    // What was accepted at once was not written again.
    assert_eq!(bench.values(0, "read_committed"), ["beside", "second"]);
    bench.stop();
}

#[test]
fn a_shard_given_up_while_its_batch_is_written_is_not_committed() {
    let mut bench = Bench::<AtLeastOnce>::new();
    let (stuck, missing) = bench.stray("ours");

    bench.ledger.submit(Batch {
        settled: vec![
            settled(0, vec![stuck]),
            settled(1, vec![bench.record(1, "theirs")]),
        ],
        progress: vec![bench.progress(0, 5, ""), bench.progress(1, 5, "")],
        has_more: false,
        returns: 0,
    });
    bench.wait_for_values(1, &["theirs"]);
    bench.ownership.give_up(1);
    create_topics(&bench.bootstrap, &[&missing]);
    let receipt = bench.receipt();

    assert!(matches!(receipt, Receipt::Committed { .. }), "{receipt:?}");
    assert_eq!(bench.committed(0).0, Offset::Offset(5));
    assert_eq!(bench.committed(1).0, Offset::Invalid);
    assert_eq!(bench.values_of(&missing, 0, "read_committed"), ["ours"]);
    bench.stop();
}
