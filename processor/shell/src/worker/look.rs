//! A look, every few seconds, at what a worker's shards can be read from: whether it may be read, and to its end.
//!
//! Not how that is mended. Invariant: what stands still is told as long as it does, and no longer.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::Message;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use tracing::debug;

use retide_core::{Alert, Source, Timestamp};
use retide_kafka::client::{Kept, LoggingContext};
use retide_kafka::cluster;
use retide_kafka::offsets::{self, Edge, Offsets};
use retide_kafka::scan::{self, Scanned};
use retide_kafka::topics::Topics;
use retide_native::admin::{Operation, Permitted, permitted};

use crate::trouble::{Effect, Kind, Trouble, Troubles};
use crate::worker::readable::{Readability, Why};

/// Looks at the shards of a worker.
pub(crate) struct Look {
    /// The configuration of a consumer.
    config: ClientConfig,
    /// The topics.
    topics: Arc<Topics>,
    /// Where it is told.
    troubles: Troubles,
    /// Sees what is committed.
    stable: Kept<BaseConsumer<LoggingContext>>,
    /// The partitions that cannot be read to their ends: the first offset that cannot, and since when.
    held: HashMap<(String, i32), Held>,
    /// Where the partitions of topics that are read ended when they were last seen.
    ends: HashMap<(Source, i32), i64>,
    /// The partitions of tiers that are drained in which nothing is left, and where they ended then.
    empty: HashMap<(String, i32), i64>,
}

/// Why a partition cannot be read to its end.
#[derive(Clone, Copy, Debug)]
struct Held {
    /// The first offset that cannot be read.
    stable: i64,
    /// Since when it is so.
    since: Instant,
    /// Whether people were told.
    is_told: bool,
}

/// How long a partition has to stand still before that is told: as long as a transaction of a process that was killed, as a rule.
const STANDS: Duration = Duration::from_secs(15);

/// Longest wait for one answer.
const ASK: Duration = Duration::from_secs(3);

// === impl Look ===

impl Look {
    /// Looks at nothing yet.
    pub(crate) fn new(
        config: &ClientConfig,
        topics: &Arc<Topics>,
        troubles: Troubles,
    ) -> Result<Self, KafkaError> {
        let group = config.get("group.id").unwrap_or("retide");
        let mut client = config.clone();
        // They would pile up between two looks.
        client.set("statistics.interval.ms", "0");
        Ok(Self {
            stable: Kept::make(&client, |client| scan::consumer(client.clone(), group))?,
            config: config.clone(),
            topics: Arc::clone(topics),
            troubles,
            held: HashMap::new(),
            ends: HashMap::new(),
            empty: HashMap::new(),
        })
    }

    /// Where the partitions of a topic ended when they were last seen.
    pub(crate) fn ends(&self, source: Source) -> BTreeMap<i32, i64> {
        let ends = self.ends.iter().filter(|((of, _), _)| *of == source);
        ends.map(|((_, shard), end)| (*shard, *end)).collect()
    }

    /// Looks at `shards`, by a client that sees everything. What people must know, by shard.
    pub(crate) fn at(
        &mut self,
        shards: &[i32],
        all: &BaseConsumer<LoggingContext>,
        readability: &Readability,
        now: Timestamp,
    ) -> Vec<(i32, Alert)> {
        while self.stable.poll(Duration::ZERO).is_some() {}
        self.stable.hold();
        self.may_read(all, readability);
        let topics = Arc::clone(&self.topics);
        let lanes = || {
            shards.iter().flat_map(|shard| {
                let read = topics.of_shard(*shard).map(|(_, topic)| topic);
                // Commands are both.
                let written = topics.written();
                let written = written.filter(|topic| topics.source(topic).is_none());
                read.chain(written).map(|topic| (&**topic, *shard))
            })
        };
        // In this order: what is committed may be beyond an end that was asked for before, and is never behind it, unless it is held back.
        let ends = offsets::edges(all, lanes(), Edge::End, ASK);
        let stable = offsets::edges(&self.stable, lanes(), Edge::End, ASK);
        let (Ok(ends), Ok(stable)) = (ends, stable) else {
            return Vec::new();
        };
        for ((topic, shard), end) in &ends {
            if let Some(source) = topics.source(topic) {
                self.ends.insert((source, *shard), *end);
            }
        }
        self.look_at_strays(shards, all, &stable);
        let looked = Instant::now();
        let mut held = HashMap::new();
        for (at, stable) in stable {
            if ends.get(&at).is_none_or(|end| *end <= stable) {
                continue;
            }
            let before = self.held.get(&at).filter(|held| held.stable == stable);
            let new = Held {
                stable,
                since: looked,
                is_told: false,
            };
            held.insert(at, before.copied().unwrap_or(new));
        }
        self.held = held;
        let mut troubles = Vec::new();
        let mut alerts = Vec::new();
        for ((topic, shard), held) in &mut self.held {
            if looked.duration_since(held.since) < STANDS {
                continue;
            }
            let Held { stable, .. } = *held;
            if !held.is_told {
                held.is_told = true;
                alerts.push((*shard, alert(topic, *shard, stable, now)));
            }
            let is_read = topics.source(topic).is_some();
            troubles.push(Trouble {
                kind: Kind::PartitionStuck,
                subject: format!("{topic}/{shard}"),
                says: format!(
                    "cannot be read beyond offset {stable}: a transaction that began there is not ended, and holds readers back"
                ),
                fix: Some(cluster::abort(&self.config, topic, *shard, stable)),
                effect: if is_read {
                    Effect::Stops
                } else {
                    Effect::Limits
                },
            });
        }
        self.troubles.only(Kind::PartitionStuck, troubles);
        alerts
    }

    /// Tells of tiers that are drained, as long as anything is in them.
    fn look_at_strays(
        &mut self,
        shards: &[i32],
        all: &BaseConsumer<LoggingContext>,
        stable: &Offsets,
    ) {
        let topics = Arc::clone(&self.topics);
        let strays = topics.draining.iter().filter_map(|stray| {
            let shards = shards.iter().filter(|shard| **shard < stray.partitions);
            let left = self.left(&stray.topic, shards.copied(), all, stable);
            // What is not known is told when it is.
            let left = left.unwrap_or_else(|error| {
                debug!(%error, topic = &*stray.topic, "tier that is drained not looked at");
                0
            });
            (left > 0).then(|| stray_tier(&stray.topic, left))
        });
        let strays: Vec<Trouble> = strays.collect();
        self.troubles.only(Kind::StrayTier, strays);
    }

    /// How many records of these partitions of a tier are not done, markers of transactions among them, but where there are only those.
    fn left(
        &mut self,
        topic: &Arc<str>,
        shards: impl Iterator<Item = i32>,
        all: &BaseConsumer<LoggingContext>,
        stable: &Offsets,
    ) -> Result<i64, KafkaError> {
        let mut ends = BTreeMap::new();
        let mut list = TopicPartitionList::new();
        for shard in shards {
            let at = (topic.to_string(), shard);
            let end = stable.get(&at).copied().unwrap_or(0);
            if end > 0 && self.empty.get(&at) != Some(&end) {
                ends.insert(shard, end);
                list.add_partition(topic, shard);
            }
        }
        if ends.is_empty() {
            return Ok(0);
        }
        let committed = offsets::known(&all.committed_offsets(list, ASK)?);
        let mut starts = TopicPartitionList::new();
        let mut left = BTreeMap::new();
        for (shard, end) in &ends {
            let next = committed.get(&(topic.to_string(), *shard)).copied();
            let next = next.unwrap_or(0);
            if next < *end {
                left.insert(*shard, end - next);
                starts.add_partition_offset(topic, *shard, Offset::Offset(next))?;
            }
        }
        let mut none: BTreeSet<i32> = ends.keys().copied().collect();
        if starts.count() > 0 {
            let scanned = scan::read(&self.stable, &starts, Instant::now() + ASK, |message| {
                none.remove(&message.partition());
                if left.keys().any(|shard| none.contains(shard)) {
                    ControlFlow::Continue(())
                } else {
                    ControlFlow::Break(())
                }
            });
            self.stable.unassign()?;
            if let Scanned::OutOfTime { left } = scanned? {
                none.retain(|shard| !left.contains(shard));
            }
        }
        for shard in none {
            left.remove(&shard);
            self.empty.insert((topic.to_string(), shard), ends[&shard]);
        }
        Ok(left.values().sum())
    }

    /// Looks whether the topics may be read.
    fn may_read(&self, client: &BaseConsumer<LoggingContext>, readability: &Readability) {
        let read = self.topics.read().map(|(_, topic)| topic);
        let names: Vec<&str> = read
            .chain([&self.topics.order])
            .map(|topic| &**topic)
            .collect();
        let Ok(permitted) = permitted(client.client(), &names, ASK) else {
            return;
        };
        let denied: Vec<Permitted> = permitted
            .into_iter()
            .filter(|topic| match &topic.operations {
                Ok(Some(operations)) => !operations.contains(&Operation::Read),
                Ok(None) => false,
                Err(code) => *code == RDKafkaErrorCode::TopicAuthorizationFailed,
            })
            .collect();
        let is_denied = |topic: &Arc<str>| denied.iter().any(|denied| denied.topic == **topic);
        let sources = self.topics.read().filter(|(_, topic)| is_denied(topic));
        readability.only(Why::Denied, sources);
        let bootstrap = self.config.get("bootstrap.servers").unwrap_or_default();
        let denied: Vec<Trouble> = denied
            .into_iter()
            .map(|denied| Trouble {
                kind: Kind::TopicUnreadable,
                says: format!(
                    "retide may not read {}: what is there stands still, the rest goes on",
                    denied.topic
                ),
                fix: Some(cluster::allow(
                    &self.config,
                    bootstrap,
                    &[Operation::Describe, Operation::Read],
                    &denied.topic,
                )),
                subject: denied.topic,
                effect: Effect::Stops,
            })
            .collect();
        self.troubles.only(Kind::TopicUnreadable, denied);
    }
}

/// A tier that is drained.
fn stray_tier(topic: &str, left: i64) -> Trouble {
    let tier = topic.rsplit(".delay.").next().unwrap_or(topic);
    Trouble {
        kind: Kind::StrayTier,
        subject: topic.to_owned(),
        says: format!(
            "{topic} is no tier of this configuration, and up to {left} records in it are not done: they are read until it is empty, and \
             nothing is parked there"
        ),
        fix: Some(format!(
            "leave it until it is empty and delete it then, or add \"{tier}\" to tiers in [topics]"
        )),
        effect: Effect::Limits,
    }
}

/// What people must know of a partition that cannot be read to its end.
fn alert(topic: &str, shard: i32, stable: i64, at: Timestamp) -> Alert {
    Alert {
        rule: "partition-stuck",
        scene: "".into(),
        at,
        count: 1,
        example: format!("{topic}/{shard}/{stable}").into(),
        reason: "open-transaction",
        target: None,
        expiring: None,
    }
}
