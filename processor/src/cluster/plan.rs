//! The topics that retide needs, with the settings it relies on, and the forms in which others create them.
//!
//! Not what a cluster has: that is [`check`](super::check)'s to compare. Invariant: a topic created as planned has nothing to be refused.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use uuid::Uuid;

use retide_core::Ladder;
use retide_core::command::{self, Invocation};

use crate::topics::Topics;

/// How many partitions and replicas topics have when they are created.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Partitions of each topic but the scenes topic: the shards, and with them the most workers.
    pub partitions: i32,
    /// Replicas of each partition; -1 leaves it to the broker.
    pub replication_factor: i16,
}

/// What a topic is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The retry topic.
    Tasks,
    /// Parked tasks.
    Tier {
        /// How long each of them waits.
        delay: Duration,
    },
    /// One record per end of a task.
    Callbacks,
    /// What a human must know.
    Alerts,
    /// Tasks that ended badly.
    DeadLetters,
    /// The audit log.
    Events,
    /// Which tasks of a key are outstanding.
    Order,
    /// Scene rules.
    Scenes,
}

/// What workers do with the topics of a role.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct About {
    /// What they read there.
    pub reads: Reads,
    /// Whether they write there.
    pub writes: bool,
    /// Whether what they write there holds the payload of a task.
    pub copies: bool,
}

/// What workers read on a topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reads {
    /// Nothing: others do.
    Nothing,
    /// Tasks, whose offsets are committed.
    Tasks,
    /// What has to be known beside the tasks, from the topic's beginning.
    State,
}

/// One topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicPlan {
    /// Its name.
    pub name: Arc<str>,
    /// What it is for.
    pub role: Role,
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
    /// The topics: the retry topic first, then the other ones that are read, then those that are only written.
    pub topics: Vec<TopicPlan>,
    /// The options with which retide was called, for the commands that mend something.
    pub invocation: Invocation,
}

/// Outage budget: how long nobody may be there to read a record before it is gone. A week has a weekend in it.
pub const OUTAGE: Duration = Duration::from_hours(7 * 24);

/// How long dead letters are kept: people look into them, and people are on holiday.
pub const DEAD_LETTERS: Duration = Duration::from_hours(30 * 24);

/// Largest batch of the retry topic: Kafka's own default, stated so that a broker's larger one does not let in what cannot go on.
pub const TASK_BYTES: i64 = 1_048_588;

/// Largest batch of the topics that a task is copied to: [`copy_bytes`] of [`TASK_BYTES`], rounded up to 2 MiB.
pub const COPY_BYTES: i64 = 2 * 1_024 * 1_024;

/// Most that a copy of a record gains besides its key's encoding. Retide's headers are capped (identity 256, scene 128, error 323, origin
/// 280 bytes) and add less than 2 KiB; lz4 grows what another codec had made small of incompressible data by 0.4 %, 5 KiB in 1 MiB; the
/// rest is for producers who cannot count to the byte.
const ROOM: i64 = 64 * 1_024;

/// Largest segment of a partition of the order topic. Only whole segments are compacted, and whoever gets a shard reads all of it.
const ORDER_SEGMENT: u64 = 16 * 1_024 * 1_024;

/// How long the order topic remembers that a key has no outstanding tasks any more: longer than anybody takes to read it, since who has
/// seen tasks of a key must also see that there are none.
const TOMBSTONE: Duration = Duration::from_mins(10);

/// What stands between the prefix and the name of a tier.
const TIER: &str = ".delay.";

/// Setting: how a topic forgets.
pub(super) const CLEANUP: &str = "cleanup.policy";
/// Setting: how long records are kept.
pub(super) const RETENTION: &str = "retention.ms";
/// Setting: how many bytes of a partition are kept.
pub(super) const RETENTION_BYTES: &str = "retention.bytes";
/// Setting: whose clock a record's timestamp is from.
pub(super) const TIMESTAMP_TYPE: &str = "message.timestamp.type";
/// Setting: how large segments become.
const SEGMENT_BYTES: &str = "segment.bytes";
/// Setting: which part of a log is replaced at least before it is compacted.
const DIRTY: &str = "min.cleanable.dirty.ratio";
/// Setting: how long tombstones are kept.
const TOMBSTONES: &str = "delete.retention.ms";
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
    /// Those of these settings that the topic has and retide runs without.
    pub(super) fn without(&self, settings: &[&'static str]) -> Vec<&'static str> {
        let keys = settings.iter().copied();
        keys.filter(|key| self.config.contains_key(key))
            .filter(|key| *key != RETENTION || !self.role.is_read())
            .collect()
    }
}

// === impl Role ===

impl Role {
    /// What workers do with a topic of this role: the one place that says so.
    pub const fn about(self) -> About {
        match self {
            Self::Tasks => About {
                reads: Reads::Tasks,
                writes: false,
                copies: false,
            },
            Self::Tier { .. } => About {
                reads: Reads::Tasks,
                writes: true,
                copies: true,
            },
            Self::Callbacks | Self::DeadLetters => About {
                reads: Reads::Nothing,
                writes: true,
                copies: true,
            },
            Self::Alerts | Self::Events => About {
                reads: Reads::Nothing,
                writes: true,
                copies: false,
            },
            Self::Order => About {
                reads: Reads::State,
                writes: true,
                copies: false,
            },
            Self::Scenes => About {
                reads: Reads::State,
                writes: false,
                copies: false,
            },
        }
    }

    /// Whether workers read tasks from it.
    pub const fn is_read(self) -> bool {
        matches!(self.about().reads, Reads::Tasks)
    }

    /// Whether records of the retry topic are copied to it, with what retide adds to them.
    pub const fn is_copied_to(self) -> bool {
        self.about().copies
    }

    /// How long its records wait before they may be read.
    pub(super) const fn delay(self) -> Duration {
        match self {
            Self::Tier { delay } => delay,
            Self::Tasks
            | Self::Callbacks
            | Self::Alerts
            | Self::DeadLetters
            | Self::Events
            | Self::Order
            | Self::Scenes => Duration::ZERO,
        }
    }

    /// How long its records are kept; a compacted topic keeps them until they are replaced.
    fn retention(self) -> Option<Duration> {
        match self {
            Self::Tasks | Self::Tier { .. } | Self::Callbacks | Self::Alerts | Self::Events => {
                Some(OUTAGE + self.delay())
            }
            Self::DeadLetters => Some(DEAD_LETTERS),
            Self::Order | Self::Scenes => None,
        }
    }

    /// The settings of a topic with this role. The producer's compression is left as it is.
    fn config(self) -> BTreeMap<&'static str, String> {
        let mut config = BTreeMap::new();
        match self.retention() {
            Some(retention) => {
                config.insert(CLEANUP, "delete".to_owned());
                config.insert(RETENTION, retention.as_millis().to_string());
            }
            None => {
                config.insert(CLEANUP, "compact".to_owned());
            }
        }
        if self.is_read() {
            // A broker may have a limit of its own, which would drop tasks that wait.
            config.insert(RETENTION_BYTES, "-1".to_owned());
        }
        if self.is_copied_to() {
            config.insert(MAX_BYTES, COPY_BYTES.to_string());
        }
        match self {
            Self::Tasks => {
                config.insert(MAX_BYTES, TASK_BYTES.to_string());
                // A producer's clock that is years behind must not make its tasks old enough to be deleted unread.
                config.insert(TIMESTAMP_TYPE, "LogAppendTime".to_owned());
            }
            Self::Tier { .. } => {
                config.insert(TIMESTAMP_TYPE, "LogAppendTime".to_owned());
            }
            Self::Order => {
                config.insert(SEGMENT_BYTES, ORDER_SEGMENT.to_string());
                config.insert(DIRTY, "0.1".to_owned());
                config.insert(TOMBSTONES, TOMBSTONE.as_millis().to_string());
            }
            Self::Callbacks | Self::Alerts | Self::DeadLetters | Self::Events | Self::Scenes => {}
        }
        config
    }
}

// === impl Plan ===

impl Plan {
    /// The plan for `topics`, whose tiers are those of `ladder`.
    pub fn new(topics: &Topics, ladder: &Ladder, layout: Layout) -> Self {
        let topic = |name: &Arc<str>, role: Role| TopicPlan {
            name: Arc::clone(name),
            role,
            partitions: match role {
                Role::Scenes => 1,
                Role::Tasks
                | Role::Tier { .. }
                | Role::Callbacks
                | Role::Alerts
                | Role::DeadLetters
                | Role::Events
                | Role::Order => layout.partitions,
            },
            replication_factor: layout.replication_factor,
            config: role.config(),
        };
        let tiers = topics.tiers.iter().zip(ladder.tiers());
        let mut plan = vec![
            topic(&topics.tasks, Role::Tasks),
            topic(&topics.callbacks, Role::Callbacks),
        ];
        plan.extend(tiers.map(|(name, tier)| topic(name, Role::Tier { delay: tier.delay })));
        plan.extend([
            topic(&topics.alerts, Role::Alerts),
            topic(&topics.dead_letters, Role::DeadLetters),
            topic(&topics.events, Role::Events),
            topic(&topics.order, Role::Order),
            topic(&topics.scenes, Role::Scenes),
        ]);
        Self {
            topics: plan,
            invocation: Invocation::default(),
        }
    }

    /// What the names of all tiers begin with, up to a separator.
    pub(super) fn tiers(&self) -> Option<String> {
        let mut topics = self.topics.iter();
        let tier = topics.find(|topic| matches!(topic.role, Role::Tier { .. }))?;
        let (prefix, _) = tier.name.rsplit_once(TIER)?;
        Some(format!("{prefix}{TIER}"))
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
                r#"retry.scenes 1 {"cleanup.policy": "compact"}"#,
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
kafka-topics.sh --bootstrap-server a:9092,b:9092 --create --if-not-exists --topic retry.scenes --partitions 1 --replication-factor 3 --config cleanup.policy=compact
"
        );
    }

    #[test]
    fn the_brokers_own_replication_is_left_out_and_what_a_shell_would_read_is_quoted() {
        let lines = plan("a b$(c)", -1).kafka_topics("[::1]:9092");

        assert_eq!(
            lines.lines().last(),
            Some(
                "kafka-topics.sh --bootstrap-server '[::1]:9092' --create --if-not-exists --topic 'a b$(c).scenes' --partitions 1 \
                 --config cleanup.policy=compact"
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
        assert_eq!(documents.matches("---\n").count(), 9);
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
