//! Where measurements take place: topics of their own on a cluster, deleted afterwards.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Message};
use rdkafka::producer::{BaseProducer, BaseRecord};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use tokio::runtime::Runtime;
use tracing::warn;
use uuid::Uuid;

use retide_config::{Config, scenes};
use retide_core::{Kind, Origin, Record, Task, Timestamp};
use retide_kafka::client::{LoggingContext, client_config};
use retide_kafka::cluster::{self, Plan, TopicPlan};
use retide_kafka::offsets::{self, Edge};
use retide_kafka::scan::{self, Scanned};
use retide_kafka::topics::{Role, Topics};
use retide_shell::health::{Health, STALL};
use retide_shell::metrics::Metrics;
use retide_shell::process::{Process, plan};
use retide_shell::threads::Threads;

use crate::bench::{Error, PATIENCE, Samples};

/// Topics of a measurement, and the configuration that uses them.
pub struct Testbed {
    /// The configuration: the user's, but with a prefix and a group of its own.
    pub config: Config,
    /// The topics.
    pub topics: Topics,
    /// Where calls run.
    pub runtime: Runtime,
    /// The planned topics.
    plan: Plan,
}

/// Longest wait for one answer of the broker.
const CALL: Duration = Duration::from_secs(30);

/// Time between two looks at what is done: fine beside the seconds of a measurement.
const LOOK: Duration = Duration::from_millis(20);

// === impl Testbed ===

impl Testbed {
    /// Creates the topics of a measurement on the cluster that `config` names.
    pub fn make(config: &Config) -> Result<Self, Error> {
        let mut config = config.clone();
        let name = format!("bench-{}", Uuid::new_v4().simple());
        config.topics.prefix.clone_from(&name);
        config.processor.group = name;
        config.scenes.clear();
        let topics = Topics::new(&config.topics.prefix, &config.topics.tiers);
        let plan = plan(&config);
        let runtime = Runtime::new()?;
        runtime.block_on(cluster::create(
            &client_config(config.kafka.client()),
            &plan,
            CALL,
        ))?;
        Ok(Self {
            config,
            topics,
            runtime,
            plan,
        })
    }

    /// Creates one more topic, in which records have the time at which the broker appended them.
    pub(crate) fn add(&mut self, name: &str) -> Result<Arc<str>, Error> {
        let name: Arc<str> = format!("{}.{name}", self.config.topics.prefix).into();
        let topic = TopicPlan {
            name: Arc::clone(&name),
            role: Role::Events,
            delay: Duration::ZERO,
            partitions: self.config.topics.partitions,
            replication_factor: self.config.topics.replication_factor,
            config: BTreeMap::from([("message.timestamp.type", "LogAppendTime".to_owned())]),
        };
        let plan = Plan {
            topics: vec![topic.clone()],
            ..self.plan.clone()
        };
        let client = client_config(self.config.kafka.client());
        self.runtime
            .block_on(cluster::create(&client, &plan, CALL))?;
        self.plan.topics.push(topic);
        Ok(name)
    }

    /// Runs retide on the topics with the scenes of `text`, which are this program's own.
    pub(crate) fn run(&self, text: String) -> Result<Process, Error> {
        self.run_counted(text, &Arc::new(Metrics::new(&self.config.topics.tiers)))
    }

    /// As [`Self::run`], counting in `metrics`.
    pub(crate) fn run_counted(
        &self,
        text: String,
        metrics: &Arc<Metrics>,
    ) -> Result<Process, Error> {
        let scenes = scenes("bench.toml", text, &self.config.topics.prefix)
            .unwrap_or_else(|error| unreachable!("{error}"));
        let health = Arc::new(Health::new(STALL).with_troubles(metrics.troubles()));
        let runtime = self.runtime.handle();
        Ok(Process::start(
            &self.config,
            scenes,
            runtime,
            &Threads::default(),
            metrics,
            &health,
        )?)
    }

    /// Waits until the group has committed `count` offsets of `topic`, looking every [`LOOK`].
    pub(crate) fn follow(&self, topic: &str, count: u64) -> Result<Samples, Error> {
        let mut config = client_config(self.config.kafka.consumer());
        // Offsets are wanted as they stand: while transactions are under way, which is always, the client would ask for stable ones over
        // and over, and take a processor and the broker's time from what is measured.
        config.set("isolation.level", "read_uncommitted");
        let consumer = scan::consumer_as_is(config, &self.config.processor.group)?;
        let mut samples = Samples::start();
        while samples.last() < count {
            if samples.idle() > PATIENCE {
                return Err(Error::Stuck {
                    what: "committed offsets",
                    done: samples.last(),
                    all: count,
                });
            }
            let committed = consumer.committed_offsets(self.partitions(topic), CALL)?;
            let elements = committed.elements();
            let offsets = elements.iter().map(|element| match element.offset() {
                Offset::Offset(offset) => offset as u64,
                _ => 0,
            });
            samples.add(offsets.sum());
            thread::sleep(LOOK);
        }
        Ok(samples)
    }

    /// Has the group pass over everything that stands on `topic`.
    pub(crate) fn skip(&self, topic: &str) -> Result<(), Error> {
        let consumer = self.reader()?;
        let partitions = (0..self.config.topics.partitions).map(|partition| (topic, partition));
        let mut ends = TopicPartitionList::new();
        for ((topic, partition), end) in offsets::edges(&consumer, partitions, Edge::End, CALL)? {
            ends.add_partition_offset(&topic, partition, Offset::Offset(end))?;
        }
        Ok(consumer.commit(&ends, CommitMode::Sync)?)
    }

    /// Counts the records of a topic, as a read-committed consumer sees them.
    pub(crate) fn count(&self, topic: &str) -> Result<u64, Error> {
        let mut records = 0;
        self.read(topic, ("records read", 0), |_| {
            records += 1;
            records
        })
    }

    /// Shows the records of a topic to `look`, which says how much that was so far: to its end, and until that is as much as is `wanted`, and
    /// says how much it was.
    pub(crate) fn read(
        &self,
        topic: &str,
        (what, wanted): (&'static str, u64),
        mut look: impl FnMut(&BorrowedMessage<'_>) -> u64,
    ) -> Result<u64, Error> {
        let consumer = self.reader()?;
        let mut starts = self.partitions(topic);
        starts.set_all_offsets(Offset::Beginning)?;
        let (mut done, mut since) = (0, Instant::now());
        loop {
            let mut read = BTreeMap::new();
            let scanned = scan::read(&consumer, &starts, Instant::now() + PATIENCE, |message| {
                read.insert(message.partition(), message.offset() + 1);
                done = look(message);
                ControlFlow::Continue(())
            })?;
            if scanned == Scanned::ToEnd && done >= wanted {
                return Ok(done);
            }
            if !read.is_empty() {
                since = Instant::now();
            } else if since.elapsed() > PATIENCE {
                let all = wanted.max(done + 1);
                return Err(Error::Stuck { what, done, all });
            }
            for (partition, next) in read {
                starts.set_partition_offset(topic, partition, Offset::Offset(next))?;
            }
            thread::sleep(LOOK);
        }
    }

    /// A consumer that sees what is committed.
    fn reader(&self) -> Result<BaseConsumer<LoggingContext>, KafkaError> {
        let config = client_config(self.config.kafka.consumer());
        scan::consumer(config, &self.config.processor.group)
    }

    /// All partitions of a topic.
    pub(crate) fn partitions(&self, topic: &str) -> TopicPartitionList {
        let mut list = TopicPartitionList::new();
        list.add_partition_range(topic, 0, self.config.topics.partitions - 1);
        list
    }

    /// Deletes the topics.
    pub fn remove(self) {
        let names: Vec<&str> = self.plan.names().collect();
        let client: ClientConfig = client_config(self.config.kafka.client());
        let deleted = client
            .create::<AdminClient<DefaultClientContext>>()
            .and_then(|admin| {
                let options = AdminOptions::new().request_timeout(Some(CALL));
                self.runtime.block_on(admin.delete_topics(&names, &options))
            });
        if let Err(error) = deleted {
            let prefix = &self.config.topics.prefix;
            warn!(%error, prefix, "topics of a measurement are left behind");
        }
    }
}

/// Hands a record to a producer, waiting while its queue is full.
pub(crate) fn send(
    producer: &BaseProducer,
    mut record: BaseRecord<'_, [u8], [u8]>,
) -> Result<(), KafkaError> {
    while let Err((error, again)) = producer.send(record) {
        if error.rdkafka_error_code() != Some(RDKafkaErrorCode::QueueFull) {
            return Err(error);
        }
        producer.poll(Duration::from_millis(10));
        record = again;
    }
    Ok(())
}

/// A task as retide parks it until `due`, for attempt number `attempt`.
pub(crate) fn parked(scene: &str, attempt: u32, due: Timestamp) -> Task {
    Task {
        id: scene.into(),
        scene: scene.into(),
        kind: Kind::Work,
        attempt,
        due: due.ceil_to_millis(),
        deferral: None,
        first_failed_at: Timestamp::from_millis(1),
        deadline: None,
        origin: Origin {
            topic: "bench".into(),
            partition: 0,
            offset: 0,
        },
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
    }
}
