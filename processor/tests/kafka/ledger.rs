//! One transaction per batch: records and offsets, in order, and nothing for shards that are not ours.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::Message;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use retide::shell::ledger::{
    Batch, Ledger, OutRecord, Ownership, Progress, Receipt, Settled, Transactional,
};
use retide::topics::Topics;

use crate::support::{PATIENCE, SHARDS, Worker, bootstrap, config, create, until};

/// A worker with all shards and the ledger that commits for it.
struct Bench {
    bootstrap: String,
    group: String,
    topics: Arc<Topics>,
    worker: Worker,
    ownership: Arc<Ownership>,
    ledger: Transactional,
}

impl Bench {
    fn new() -> Option<Self> {
        let bootstrap = bootstrap()?;
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
        let mut producer = rdkafka::ClientConfig::new();
        producer.set("bootstrap.servers", &bootstrap);
        let ledger =
            Transactional::start(&producer, &group, &worker.feed.consumer, &ownership).unwrap();
        Some(Self {
            bootstrap,
            group,
            topics,
            worker,
            ownership,
            ledger,
        })
    }

    fn record(&self, shard: i32, value: &str) -> OutRecord {
        OutRecord {
            topic: Arc::clone(&self.topics.tiers[0]),
            partition: Some(shard),
            key: None,
            value: Some(value.to_owned().into()),
            headers: Vec::new(),
        }
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

    /// The values on a shard of the first tier, as a read-committed consumer sees them.
    fn values(&self, shard: i32, isolation: &str) -> Vec<String> {
        let consumer: BaseConsumer = config(&self.bootstrap, "reader")
            .set("isolation.level", isolation)
            .set("enable.partition.eof", "true")
            .create()
            .unwrap();
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(&self.topics.tiers[0], shard, Offset::Beginning)
            .unwrap();
        consumer.assign(&list).unwrap();
        let mut values = Vec::new();
        loop {
            match consumer.poll(PATIENCE).expect("an end of the partition") {
                Ok(message) => {
                    let value = message.payload().unwrap_or_default();
                    values.push(String::from_utf8_lossy(value).into_owned());
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

fn settled(shard: i32, records: Vec<OutRecord>) -> Settled {
    Settled {
        shard,
        records,
        otherwise: Vec::new(),
    }
}

#[test]
fn batches_commit_in_order_with_their_offsets_and_completions() {
    let Some(mut bench) = Bench::new() else {
        return;
    };
    let batches = 40;

    for number in 1..=batches {
        let record = bench.record(0, &number.to_string());
        bench.ledger.submit(Batch {
            settled: vec![settled(0, vec![record])],
            progress: vec![bench.progress(0, number, &format!("m{number}"))],
        });
    }
    let receipts: Vec<Receipt> = (0..batches).map(|_| bench.receipt()).collect();

    let committed = |receipt: &Receipt| matches!(receipt, Receipt::Committed { refused: 0, .. });
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
fn nothing_is_written_for_a_shard_that_was_given_up() {
    let Some(mut bench) = Bench::new() else {
        return;
    };
    bench.ownership.give_up(1);

    let both = Batch {
        settled: vec![
            settled(0, vec![bench.record(0, "ours")]),
            settled(1, vec![bench.record(1, "theirs")]),
        ],
        progress: vec![bench.progress(0, 5, ""), bench.progress(1, 5, "")],
    };
    let theirs = Batch {
        settled: vec![settled(1, vec![bench.record(1, "theirs")])],
        progress: vec![bench.progress(1, 6, "")],
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
    let Some(mut bench) = Bench::new() else {
        return;
    };
    let mut refused = settled(
        0,
        vec![bench.record(0, "delivered"), bench.record(0, "lost")],
    );
    refused.records[1].topic = format!("{}.missing", bench.group).into();
    refused.records[1].partition = None;
    refused.otherwise = vec![bench.record(0, "parked")];
    let other = settled(2, vec![bench.record(2, "other")]);

    bench.ledger.submit(Batch {
        settled: vec![refused, other],
        progress: vec![bench.progress(0, 1, ""), bench.progress(2, 1, "")],
    });
    let receipt = bench.receipt();

    assert!(
        matches!(receipt, Receipt::Committed { refused: 1, .. }),
        "{receipt:?}"
    );
    assert_eq!(bench.values(0, "read_committed"), ["parked"]);
    assert_eq!(bench.values(2, "read_committed"), ["other"]);
    bench.stop();
}

#[test]
fn a_member_that_was_replaced_cannot_commit() {
    let Some(mut bench) = Bench::new() else {
        return;
    };
    // Another member joins; the first one takes no part in the rebalance, so its generation is over.
    let mut other = Worker::join(&bench.bootstrap, &bench.group, &bench.topics);
    until("the other owns all", &mut [&mut other], |workers| {
        workers[0].shards().len() == SHARDS as usize
    });

    bench.ledger.submit(Batch {
        settled: vec![settled(0, vec![bench.record(0, "stale")])],
        progress: vec![bench.progress(0, 9, "")],
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

    assert_eq!(receipt, Receipt::Dropped);
    assert_eq!(bench.values(0, "read_committed"), Vec::<String>::new());
    bench.ledger.stop();
    other.leave();
    bench.worker.leave();
}

#[test]
fn a_batch_behind_a_dropped_one_does_not_commit_for_its_shard() {
    let Some(mut bench) = Bench::new() else {
        return;
    };
    // No other form: this batch is written again and again, and keeps its turn.
    let mut stuck = bench.record(0, "first");
    stuck.topic = format!("{}.missing", bench.group).into();
    stuck.partition = None;

    bench.ledger.submit(Batch {
        settled: vec![settled(0, vec![stuck])],
        progress: vec![bench.progress(0, 5, "")],
    });
    bench.ledger.submit(Batch {
        settled: vec![settled(0, vec![bench.record(0, "second")])],
        progress: vec![bench.progress(0, 9, "")],
    });
    // Until the second batch is produced and waits for its turn.
    let start = Instant::now();
    while bench.values(0, "read_uncommitted") != ["second"] {
        assert!(start.elapsed() < PATIENCE, "never: the second batch");
        bench.worker.turn();
    }
    bench.ownership.give_up(0);
    let receipts = [bench.receipt(), bench.receipt()];

    assert_eq!(bench.committed(0).0, Offset::Invalid, "{receipts:?}");
    assert_eq!(receipts, [Receipt::Dropped, Receipt::Dropped]);
    assert_eq!(bench.values(0, "read_committed"), Vec::<String>::new());
    bench.stop();
}

#[test]
fn a_shard_that_comes_back_brings_no_old_batch_with_it() {
    let Some(mut bench) = Bench::new() else {
        return;
    };
    let mut stuck = bench.record(0, "first");
    stuck.topic = format!("{}.missing", bench.group).into();
    stuck.partition = None;

    bench.ledger.submit(Batch {
        settled: vec![settled(0, vec![stuck])],
        progress: vec![bench.progress(0, 5, "")],
    });
    bench.ledger.submit(Batch {
        settled: vec![settled(0, vec![bench.record(0, "second")])],
        progress: vec![bench.progress(0, 9, "")],
    });
    bench.ownership.give_up(0);
    bench.ownership.take(0);
    bench.ledger.submit(Batch {
        settled: vec![settled(0, vec![bench.record(0, "new")])],
        progress: vec![bench.progress(0, 2, "")],
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
