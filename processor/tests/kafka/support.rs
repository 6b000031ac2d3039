//! A broker to test against, topics of one's own, and a worker as far as ownership goes.

use std::collections::{BTreeMap, BTreeSet};
use std::env;
use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::process::{self, Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use crossbeam_channel::select;
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use retide_core::Position;
use retide_core::{Ladder, LaneId};
use retide_embedded::Broker;
use retide_kafka::topics::Topics;
use retide_shell::identity::Identity;
use retide_shell::metrics::Metrics;
use retide_shell::threads::Threads;
use retide_shell::worker::encode::Encoder;
use retide_shell::worker::feed::{Assignment, Feed, Read, Reading, Request};
use retide_shell::worker::group::Client;
use retide_shell::worker::ledger::{AtLeastOnce, Ledger, Ownership, Transactional};

/// Partitions of each topic of a test.
pub(crate) const SHARDS: i32 = 4;
/// Longest wait for anything; only a failure takes as long.
pub(crate) const PATIENCE: Duration = Duration::from_mins(1);

/// The broker that this process has started; it ends with the process, which closes its standard input.
static RIG: LazyLock<Option<(Child, String)>> = LazyLock::new(|| {
    let run = concat!(env!("CARGO_MANIFEST_DIR"), "/../docker/kafka/run");
    let mut child = Command::new(run)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .ok()?;
    let mut line = String::new();
    BufReader::new(child.stdout.take()?)
        .read_line(&mut line)
        .ok()?;
    let bootstrap = line.trim_end().strip_prefix("bootstrap ")?.to_owned();
    Some((child, bootstrap))
});

/// The broker in this process, where no other can be had.
static EMBEDDED: LazyLock<Broker> = LazyLock::new(|| {
    eprintln!(
        "NOT ON KAFKA: these tests use the embedded broker; install Java 17 and Maven, or set RETIDE_TEST_BOOTSTRAP"
    );
    Broker::start().unwrap()
});

/// A port of loopback where nobody listens: below those that a system gives to connections, so that none of these has it before its
/// listener does, and another one each time.
pub(crate) fn free_port() -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    loop {
        let number = process::id() * 64 + NEXT.fetch_add(1, Ordering::Relaxed);
        let port = 10_000 + (number % 10_000) as u16;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// The address of such a port.
pub(crate) fn free_address() -> String {
    format!("127.0.0.1:{}", free_port())
}

/// A broker's address: the cluster that `RETIDE_TEST_BOOTSTRAP` names, else one started here, else the embedded one.
pub(crate) fn bootstrap() -> String {
    if let Ok(named) = env::var("RETIDE_TEST_BOOTSTRAP") {
        return named;
    }
    if let Some((_, bootstrap)) = &*RIG {
        return bootstrap.clone();
    }
    assert!(
        env::var("RETIDE_REQUIRE_KAFKA").as_deref() != Ok("1"),
        "RETIDE_REQUIRE_KAFKA=1, but there is no broker: see the message of docker/kafka/run above"
    );
    EMBEDDED.bootstrap().to_owned()
}

pub(crate) fn config(bootstrap: &str, group: &str) -> ClientConfig {
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", bootstrap)
        .set("group.id", group)
        .set("session.timeout.ms", "6000")
        .set("max.poll.interval.ms", "6000")
        .set("heartbeat.interval.ms", "500");
    config
}

/// Whether the broker is the Kafka that is started here, so that it is known what it can do.
pub(crate) fn is_kafka() -> bool {
    env::var_os("RETIDE_TEST_BOOTSTRAP").is_none() && RIG.is_some()
}

/// Somebody else's member of a group, of this protocol, which reads a topic when this returns.
pub(crate) fn member(bootstrap: &str, group: &str, protocol: &str, topic: &str) -> BaseConsumer {
    let mut config = ClientConfig::new();
    for (key, value) in [
        ("bootstrap.servers", bootstrap),
        ("group.id", group),
        ("group.protocol", protocol),
        ("enable.auto.commit", "false"),
    ] {
        config.set(key, value);
    }
    let consumer: BaseConsumer = config.create().unwrap();
    #[allow(
        clippy::disallowed_methods,
        reason = "this is somebody else's consumer"
    )]
    consumer.subscribe(&[topic]).unwrap();
    let start = Instant::now();
    while consumer.assignment().unwrap().count() == 0 {
        assert!(start.elapsed() < PATIENCE, "{group} reads nothing");
        drop(consumer.poll(Duration::from_millis(50)));
    }
    consumer
}

/// Makes a group without members that has read a topic.
pub(crate) fn has_read(bootstrap: &str, group: &str, topic: &str) {
    let consumer: BaseConsumer = config(bootstrap, group).create().unwrap();
    let mut offsets = TopicPartitionList::new();
    let offset = Offset::Offset(0);
    offsets.add_partition_offset(topic, 1, offset).unwrap();
    consumer.commit(&offsets, CommitMode::Sync).unwrap();
}

/// Metrics for the tiers of [`create`].
pub(crate) fn metrics() -> Arc<Metrics> {
    let ladder = Ladder::try_new(&["now", "5s", "1m"]).unwrap();
    Arc::new(Metrics::new(&ladder))
}

/// Topics of their own for one test.
pub(crate) fn create(bootstrap: &str, prefix: &str) -> Arc<Topics> {
    let ladder = Ladder::try_new(&["now", "5s", "1m"]).unwrap();
    let topics = Topics::new(prefix, &ladder);
    let read = topics.read().map(|(_, name)| &**name);
    let names: Vec<&str> = read.chain(topics.written().map(|name| &**name)).collect();
    create_topics(bootstrap, &names);
    Arc::new(topics)
}

/// Topics of these names.
pub(crate) fn create_topics(bootstrap: &str, names: &[&str]) {
    let admin: AdminClient<DefaultClientContext> = config(bootstrap, "admin").create().unwrap();
    let new: Vec<NewTopic<'_>> = names
        .iter()
        .map(|name| NewTopic::new(name, SHARDS, TopicReplication::Fixed(1)))
        .collect();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let results = runtime
        .block_on(admin.create_topics(&new, &AdminOptions::new()))
        .unwrap();
    assert!(results.iter().all(Result::is_ok), "{results:?}");
}

/// A ledger as a test starts it.
pub(crate) trait Guarantee: Ledger + Sized + 'static {
    /// Starts it; `id` is its own.
    fn start(
        bootstrap: &str,
        id: &str,
        group: &Arc<Client>,
        ownership: &Arc<Ownership>,
        encoder: &Arc<Encoder>,
    ) -> Self;
}

impl Guarantee for Transactional {
    fn start(
        bootstrap: &str,
        id: &str,
        group: &Arc<Client>,
        ownership: &Arc<Ownership>,
        encoder: &Arc<Encoder>,
    ) -> Self {
        Self::start(&producer(bootstrap), id, group, ownership, encoder).unwrap()
    }
}

impl Guarantee for AtLeastOnce {
    fn start(
        bootstrap: &str,
        _: &str,
        group: &Arc<Client>,
        ownership: &Arc<Ownership>,
        encoder: &Arc<Encoder>,
    ) -> Self {
        Self::start(&producer(bootstrap), group, ownership, encoder).unwrap()
    }
}

fn producer(bootstrap: &str) -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", bootstrap);
    config
}

/// Ten records on one partition.
pub(crate) fn produce_ten(bootstrap: &str, topic: &str, shard: i32) {
    let producer: BaseProducer = config(bootstrap, "producer").create().unwrap();
    for _ in 0..10 {
        let record = BaseRecord::<(), str>::to(topic)
            .payload("x")
            .partition(shard);
        producer.send(record).map_err(|(error, _)| error).unwrap();
    }
    producer.flush(PATIENCE).unwrap();
}

/// A worker as far as ownership goes: it lets go at once.
pub(crate) struct Worker {
    pub(crate) feed: Feed,
    /// How often it was told which shards are its.
    pub(crate) assignments: u64,
    pub(crate) lanes: BTreeMap<LaneId, Assignment>,
    /// The last assignment of each shard.
    numbers: BTreeMap<i32, u64>,
    /// What was read, of each shard since its last assignment.
    pub(crate) records: Vec<Position>,
}

impl Worker {
    pub(crate) fn join(bootstrap: &str, group: &str, topics: &Arc<Topics>) -> Self {
        let (config, metrics) = (config(bootstrap, group), metrics());
        let threads = Threads::default();
        let identity = Identity::named("test");
        let feed = Feed::start(&config, &identity, topics, &metrics, &threads).unwrap();
        Self {
            feed,
            assignments: 0,
            lanes: BTreeMap::new(),
            numbers: BTreeMap::new(),
            records: Vec::new(),
        }
    }

    /// Takes in one reading, if there is one.
    pub(crate) fn turn(&mut self) {
        self.feed.turned();
        let wait = Duration::from_millis(20);
        select! {
            recv(self.feed.readings) -> reading => self.read(reading.unwrap()),
            recv(self.feed.tasks) -> reads => self.take(&reads.unwrap().records),
            recv(self.feed.tiers) -> reads => self.take(&reads.unwrap().records),
            default(wait) => {}
        }
    }

    fn read(&mut self, reading: Reading) {
        match reading {
            Reading::Assigned(lanes, _) => {
                self.assignments += 1;
                let assignment = self.assignments;
                let start = |lane: &Assignment| (lane.lane, Offset::Offset(lane.start));
                let starts = lanes.iter().map(start).collect();
                for lane in lanes {
                    self.numbers.insert(lane.lane.shard, assignment);
                    self.lanes.insert(lane.lane, lane);
                }
                self.records
                    .retain(|position| self.numbers.get(&position.lane.shard) != Some(&assignment));
                self.feed.request(Request::Read {
                    assignment,
                    lanes: starts,
                    awaited: Vec::new(),
                });
            }
            Reading::Revoked { shards, done, .. } => {
                self.lanes.retain(|lane, _| !shards.contains(&lane.shard));
                self.feed.request(Request::Leave { shards });
                // As the drive does: whoever waits may have given up by then.
                drop(done);
            }
            Reading::Gaps(_)
            | Reading::Shards(_)
            | Reading::Deleted(_)
            | Reading::Alerts(_)
            | Reading::Searched(_) => {}
            Reading::Failed(error) => panic!("{error}"),
        }
    }

    fn take(&mut self, records: &[Read]) {
        for read in records {
            let lane = read.position.lane;
            if self.lanes.contains_key(&lane)
                && self.numbers.get(&lane.shard) == Some(&read.assignment)
            {
                self.records.push(read.position);
            }
        }
    }

    pub(crate) fn shards(&self) -> BTreeSet<i32> {
        self.lanes.keys().map(|lane| lane.shard).collect()
    }

    /// Whether every shard it has is whole.
    pub(crate) fn is_whole(&self, topics: &Topics) -> bool {
        self.lanes.len() == self.shards().len() * topics.read().count()
    }

    pub(crate) fn leave(mut self) {
        let stopping = std::thread::spawn({
            let readings = self.feed.readings.clone();
            move || {
                while let Ok(reading) = readings.recv() {
                    drop(reading);
                }
            }
        });
        self.lanes.clear();
        drop(self.feed);
        stopping.join().unwrap();
    }
}

/// Turns all workers until `reached`, or fails.
pub(crate) fn until(
    what: &str,
    workers: &mut [&mut Worker],
    mut reached: impl FnMut(&[&mut Worker]) -> bool,
) {
    let start = Instant::now();
    while !reached(workers) {
        assert!(start.elapsed() < PATIENCE, "never: {what}");
        for worker in workers.iter_mut() {
            worker.turn();
        }
    }
}
