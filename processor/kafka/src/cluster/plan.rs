//! The topics of a prefix with their settings, as the catalogue has them, and the forms in which others create them.
//!
//! Not what a cluster has: that is [`check`](super::check)'s to compare. Invariant: a topic created as planned has nothing to be refused.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use uuid::Uuid;

use retide_core::Ladder;
use retide_core::command::{self, Invocation};

#[cfg(test)]
use crate::topics::{COPY_BYTES, TASK_BYTES};
use crate::topics::{Cleanup, DIRTY, Role, SEGMENT_BYTES, TOMBSTONES, Timestamps, Topics};

/// How many partitions and replicas topics have when they are created.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Partitions of each topic but the scenes topic: the shards, and with them the most workers.
    pub partitions: i32,
    /// Replicas of each partition; -1 leaves it to the broker.
    pub replication_factor: i16,
}

/// One topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicPlan {
    /// Its name.
    pub name: Arc<str>,
    /// What it is for.
    pub role: Role,
    /// How long its records wait before they may be read; nothing but in a tier.
    pub delay: Duration,
    /// How many partitions it is created with.
    pub partitions: i32,
    /// Replicas of each partition; -1 leaves it to the broker.
    pub replication_factor: i16,
    /// The settings that differ from a broker's, or that retide relies on.
    pub config: BTreeMap<&'static str, String>,
}

/// The topics of a prefix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The topics, in the order of [`Role::ALL`].
    pub topics: Vec<TopicPlan>,
    /// The options with which retide was called, for the commands that mend something.
    pub invocation: Invocation,
}

/// Most that a copy of a record gains besides its key's encoding. Retide's headers are capped (identity 256, scene 128, error 323, origin
/// 280 bytes) and add less than 2 KiB; lz4 grows what another codec had made small of incompressible data by 0.4 %, 5 KiB in 1 MiB; the
/// rest is for producers who cannot count to the byte.
const ROOM: i64 = 64 * 1_024;

/// Setting: how a topic forgets.
pub(super) const CLEANUP: &str = "cleanup.policy";
/// Setting: how long records are kept.
pub(super) const RETENTION: &str = "retention.ms";
/// Setting: how many bytes of a partition are kept.
pub(super) const RETENTION_BYTES: &str = "retention.bytes";
/// Setting: whose clock a record's timestamp is from.
pub(super) const TIMESTAMP_TYPE: &str = "message.timestamp.type";
/// Setting: the largest batch.
pub(super) const MAX_BYTES: &str = "max.message.bytes";

/// The largest batch that topics must take which get copies of tasks, if the retry topic takes batches of `tasks` bytes.
///
/// The copy that grows most is the delivery of a callback: its JSON body holds the producer's key in base64, a third longer.
pub const fn copy_bytes(tasks: i64) -> i64 {
    tasks.saturating_add(tasks / 3).saturating_add(ROOM)
}

/// The largest batch of the retry topic whose copies need no more than `bytes`.
pub(super) const fn largest_task(bytes: i64) -> i64 {
    (bytes - ROOM) / 4 * 3
}

/// Settings that make retide quicker, and are left out where a cluster refuses them.
pub(super) const TUNING: [&str; 3] = [SEGMENT_BYTES, DIRTY, TOMBSTONES];

/// All settings that a cluster may refuse and retide runs on: what is missing of them is said by [`check`](super::check).
pub(super) const OPTIONAL: [&str; 5] =
    [SEGMENT_BYTES, DIRTY, TOMBSTONES, RETENTION_BYTES, RETENTION];

// === impl TopicPlan ===

impl TopicPlan {
    /// The plan of a topic with this role, whose records wait so long.
    fn new(name: &Arc<str>, role: Role, delay: Duration, layout: Layout) -> Self {
        Self {
            name: Arc::clone(name),
            role,
            delay,
            partitions: if role.is_sharded() {
                layout.partitions
            } else {
                1
            },
            replication_factor: layout.replication_factor,
            config: config(role, delay),
        }
    }

    /// Those of these settings that the topic has and retide runs without.
    pub(super) fn without(&self, settings: &[&'static str]) -> Vec<&'static str> {
        let keys = settings.iter().copied();
        keys.filter(|key| self.config.contains_key(key))
            .filter(|key| *key != RETENTION || !self.role.is_read())
            .collect()
    }
}

// === impl Plan ===

impl Plan {
    /// The names of the topics.
    pub fn names(&self) -> impl Iterator<Item = &str> + Clone {
        self.topics.iter().map(|topic| &*topic.name)
    }

    /// The plan for `topics`, whose tiers are those of `ladder`.
    pub fn new(topics: &Topics, ladder: &Ladder, layout: Layout) -> Self {
        let delays: Vec<Duration> = ladder.tiers().iter().map(|tier| tier.delay).collect();
        let mut plan = Vec::new();
        for role in Role::ALL {
            let delays = if role == Role::Tier {
                &*delays
            } else {
                &[Duration::ZERO]
            };
            let topics = topics.of(role).iter().zip(delays);
            plan.extend(topics.map(|(name, delay)| TopicPlan::new(name, role, *delay, layout)));
        }
        Self {
            topics: plan,
            invocation: Invocation::default(),
        }
    }

    /// What the names of all tiers begin with, up to a separator.
    pub(super) fn tiers(&self) -> Option<String> {
        let mut topics = self.topics.iter();
        let tier = topics.find(|topic| topic.role == Role::Tier)?;
        let (prefix, _) = tier.name.rsplit_once('.')?;
        Some(format!("{prefix}."))
    }

    /// One `kafka-topics.sh` line for each topic, for the brokers at `bootstrap`.
    pub fn kafka_topics(&self, bootstrap: &str) -> String {
        let mut text = String::new();
        for topic in &self.topics {
            let mut words = vec![
                "kafka-topics.sh".to_owned(),
                "--bootstrap-server".to_owned(),
                bootstrap.to_owned(),
                "--create".to_owned(),
                "--if-not-exists".to_owned(),
                "--topic".to_owned(),
                topic.name.to_string(),
                "--partitions".to_owned(),
                topic.partitions.to_string(),
            ];
            if topic.replication_factor > 0 {
                words.push("--replication-factor".to_owned());
                words.push(topic.replication_factor.to_string());
            }
            for (key, value) in &topic.config {
                words.push("--config".to_owned());
                words.push(format!("{key}={value}"));
            }
            text.push_str(&command::line(&words));
            text.push('\n');
        }
        text
    }

    /// One `KafkaTopic` for each topic, as the operator of Strimzi 0.49 or later reads it, for the Kafka resource called `cluster_label`.
    pub fn strimzi(&self, cluster_label: &str) -> String {
        let mut text = String::new();
        for topic in &self.topics {
            let _ = write!(
                text,
                "---\n\
                 apiVersion: kafka.strimzi.io/v1\n\
                 kind: KafkaTopic\n\
                 metadata:\n  \
                   name: {}\n  \
                   labels:\n    \
                     strimzi.io/cluster: {}\n\
                 spec:\n  \
                   topicName: {}\n  \
                   partitions: {}\n",
                resource_name(&topic.name),
                quoted(cluster_label),
                quoted(&topic.name),
                topic.partitions,
            );
            if topic.replication_factor > 0 {
                let _ = writeln!(text, "  replicas: {}", topic.replication_factor);
            }
            text.push_str("  config:\n");
            for (key, value) in &topic.config {
                // Numbers and plain words, all of them written above.
                let _ = writeln!(text, "    {key}: {value}");
            }
        }
        text
    }
}

/// The settings of a topic with this role, whose records wait so long. The producer's compression is left as it is.
fn config(role: Role, delay: Duration) -> BTreeMap<&'static str, String> {
    let about = role.about();
    let mut config = BTreeMap::new();
    match about.cleanup {
        Cleanup::Delete { kept } => {
            config.insert(CLEANUP, "delete".to_owned());
            config.insert(RETENTION, (kept + delay).as_millis().to_string());
        }
        Cleanup::Compact { .. } => {
            config.insert(CLEANUP, "compact".to_owned());
        }
    }
    if role.is_read() {
        // A broker may have a limit of its own, which would drop tasks that wait.
        config.insert(RETENTION_BYTES, "-1".to_owned());
    }
    if let Some(bytes) = about.max_bytes {
        config.insert(MAX_BYTES, bytes.to_string());
    }
    match about.timestamps {
        Timestamps::Append | Timestamps::Waits => {
            config.insert(TIMESTAMP_TYPE, "LogAppendTime".to_owned());
        }
        Timestamps::Any => {}
    }
    config.extend(
        about
            .tuning
            .iter()
            .map(|(key, value)| (*key, (*value).to_owned())),
    );
    config
}

/// A text as a YAML scalar: JSON's strings are YAML's.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// A name that Kubernetes takes: the topic's own, or else what is left of it, told apart by a digest of the whole.
fn resource_name(topic: &str) -> String {
    let word = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let label = |label: &str| {
        let bytes = label.as_bytes();
        bytes.iter().all(|byte| word(*byte) || *byte == b'-')
            && bytes.first().copied().is_some_and(word)
            && bytes.last().copied().is_some_and(word)
    };
    if topic.split('.').all(label) {
        return topic.to_owned();
    }
    let left: String = topic
        .to_ascii_lowercase()
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
        .collect();
    let digest = Uuid::new_v5(&Uuid::NAMESPACE_OID, topic.as_bytes()).simple();
    // A topic's name has up to 249 characters, a resource's 253.
    let name = format!("{:.240}-{:.8}", left, digest.to_string());
    name.trim_start_matches('-').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(prefix: &str, replication_factor: i16) -> Plan {
        let ladder = Ladder::try_new(&["now", "24h"]).unwrap();
        let layout = Layout {
            partitions: 12,
            replication_factor,
        };
        Plan::new(&Topics::new(prefix, &ladder), &ladder, layout)
    }

    #[test]
    fn each_topic_has_the_settings_that_retide_relies_on() {
        let plan = plan("retry", -1);

        let shown: Vec<String> = plan
            .topics
            .iter()
            .map(|topic| format!("{} {} {:?}", topic.name, topic.partitions, topic.config))
            .collect();
        assert_eq!(
            shown,
            [
                r#"retry.tasks 12 {"cleanup.policy": "delete", "max.message.bytes": "1048588", "message.timestamp.type": "LogAppendTime", "retention.bytes": "-1", "retention.ms": "604800000"}"#,
                r#"retry.callbacks 12 {"cleanup.policy": "delete", "max.message.bytes": "2097152", "retention.ms": "604800000"}"#,
                r#"retry.delay.now 12 {"cleanup.policy": "delete", "max.message.bytes": "2097152", "message.timestamp.type": "LogAppendTime", "retention.bytes": "-1", "retention.ms": "604800000"}"#,
                r#"retry.delay.24h 12 {"cleanup.policy": "delete", "max.message.bytes": "2097152", "message.timestamp.type": "LogAppendTime", "retention.bytes": "-1", "retention.ms": "691200000"}"#,
                r#"retry.alerts 12 {"cleanup.policy": "delete", "retention.ms": "604800000"}"#,
                r#"retry.dead-letters 12 {"cleanup.policy": "delete", "max.message.bytes": "2097152", "retention.ms": "2592000000"}"#,
                r#"retry.events 12 {"cleanup.policy": "delete", "retention.ms": "604800000"}"#,
                r#"retry.order 12 {"cleanup.policy": "compact", "delete.retention.ms": "600000", "min.cleanable.dirty.ratio": "0.1", "segment.bytes": "16777216"}"#,
                r#"retry.commands 12 {"cleanup.policy": "delete", "max.message.bytes": "1048588", "message.timestamp.type": "LogAppendTime", "retention.ms": "604800000"}"#,
                r#"retry.scenes 1 {"cleanup.policy": "compact"}"#,
                r#"retry.signals 1 {"cleanup.policy": "delete", "retention.ms": "3600000", "segment.ms": "3600000"}"#,
            ]
        );
    }

    #[test]
    fn the_planned_limit_takes_every_copy_of_a_planned_task() {
        assert_eq!(copy_bytes(TASK_BYTES), 1_463_653);
        const { assert!(copy_bytes(TASK_BYTES) <= COPY_BYTES) };
    }

    #[test]
    fn the_command_lines_of_kafka_create_the_plan() {
        let lines = plan("retry", 3).kafka_topics("a:9092,b:9092");

        assert_eq!(
            lines,
            "\
kafka-topics.sh --bootstrap-server a:9092,b:9092 --create --if-not-exists --topic retry.tasks --partitions 12 --replication-factor 3 --config cleanup.policy=delete --config max.message.bytes=1048588 --config message.timestamp.type=LogAppendTime --config retention.bytes=-1 --config retention.ms=604800000
kafka-topics.sh --bootstrap-server a:9092,b:9092 --create --if-not-exists --topic retry.callbacks --partitions 12 --replication-factor 3 --config cleanup.policy=delete --config max.message.bytes=2097152 --config retention.ms=604800000
kafka-topics.sh --bootstrap-server a:9092,b:9092 --create --if-not-exists --topic retry.delay.now --partitions 12 --replication-factor 3 --config cleanup.policy=delete --config max.message.bytes=2097152 --config message.timestamp.type=LogAppendTime --config retention.bytes=-1 --config retention.ms=604800000
kafka-topics.sh --bootstrap-server a:9092,b:9092 --create --if-not-exists --topic retry.delay.24h --partitions 12 --replication-factor 3 --config cleanup.policy=delete --config max.message.bytes=2097152 --config message.timestamp.type=LogAppendTime --config retention.bytes=-1 --config retention.ms=691200000
kafka-topics.sh --bootstrap-server a:9092,b:9092 --create --if-not-exists --topic retry.alerts --partitions 12 --replication-factor 3 --config cleanup.policy=delete --config retention.ms=604800000
kafka-topics.sh --bootstrap-server a:9092,b:9092 --create --if-not-exists --topic retry.dead-letters --partitions 12 --replication-factor 3 --config cleanup.policy=delete --config max.message.bytes=2097152 --config retention.ms=2592000000
kafka-topics.sh --bootstrap-server a:9092,b:9092 --create --if-not-exists --topic retry.events --partitions 12 --replication-factor 3 --config cleanup.policy=delete --config retention.ms=604800000
kafka-topics.sh --bootstrap-server a:9092,b:9092 --create --if-not-exists --topic retry.order --partitions 12 --replication-factor 3 --config cleanup.policy=compact --config delete.retention.ms=600000 --config min.cleanable.dirty.ratio=0.1 --config segment.bytes=16777216
kafka-topics.sh --bootstrap-server a:9092,b:9092 --create --if-not-exists --topic retry.commands --partitions 12 --replication-factor 3 --config cleanup.policy=delete --config max.message.bytes=1048588 --config message.timestamp.type=LogAppendTime --config retention.ms=604800000
kafka-topics.sh --bootstrap-server a:9092,b:9092 --create --if-not-exists --topic retry.scenes --partitions 1 --replication-factor 3 --config cleanup.policy=compact
kafka-topics.sh --bootstrap-server a:9092,b:9092 --create --if-not-exists --topic retry.signals --partitions 1 --replication-factor 3 --config cleanup.policy=delete --config retention.ms=3600000 --config segment.ms=3600000
"
        );
    }

    #[test]
    fn the_brokers_own_replication_is_left_out_and_what_a_shell_would_read_is_quoted() {
        let lines = plan("a b$(c)", -1).kafka_topics("[::1]:9092");

        assert_eq!(
            lines.lines().last(),
            Some(
                "kafka-topics.sh --bootstrap-server '[::1]:9092' --create --if-not-exists --topic 'a b$(c).signals' --partitions 1 \
                 --config cleanup.policy=delete --config retention.ms=3600000 --config segment.ms=3600000"
            )
        );
    }

    #[test]
    fn the_resources_of_strimzi_create_the_plan() {
        let documents = plan("retry", 3).strimzi("main");

        let tier = "\
---
apiVersion: kafka.strimzi.io/v1
kind: KafkaTopic
metadata:
  name: retry.delay.24h
  labels:
    strimzi.io/cluster: \"main\"
spec:
  topicName: \"retry.delay.24h\"
  partitions: 12
  replicas: 3
  config:
    cleanup.policy: delete
    max.message.bytes: 2097152
    message.timestamp.type: LogAppendTime
    retention.bytes: -1
    retention.ms: 691200000
";
        assert_eq!(documents.matches("---\n").count(), 11);
        assert!(documents.contains(tier), "{documents}");
        assert!(!plan("retry", -1).strimzi("main").contains("replicas"));
    }

    #[test]
    fn a_resource_has_a_name_that_kubernetes_takes() {
        assert_eq!(resource_name("retry.dead-letters"), "retry.dead-letters");
        assert_eq!(resource_name("Retry_A.tasks"), "retry-a-tasks-99f1e00c");
        assert_eq!(resource_name("_.tasks"), "tasks-bf73cd9d");
        assert_ne!(resource_name("a_b.tasks"), resource_name("A_b.tasks"));
        assert!(resource_name(&"X".repeat(249)).len() <= 253);
    }
}
