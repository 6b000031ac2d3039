//! The catalogue of topics: what each of them is for, who reads and writes it, and what is set there; and their names.
//!
//! | who | takes from the table |
//! |---|---|
//! | [`Topics`] | names, and which of them are written |
//! | `cluster::plan` | partitions and settings, also as `kafka-topics.sh` and Strimzi have them |
//! | `cluster::check`, `drift` | what is to be refused, and what is worth knowing |
//! | `cluster::acl`, `survey` | who needs which permission |
//! | `cluster::standing` | which topics show that a group has worked |
//! | `shell::encode`, `story::search`, core's `Source` and `topic` | nothing: tests compare them with the table |
//! | `docs/topics.md` | the table in words, compared by a test |
//!
//! Not how records are encoded or read. Whoever adds a topic adds a [`Role`] with its row and its name here, its codec, and its reader.
//! Invariant: shard p is partition p of each topic that has shards, so that a record never changes its owner on its way.

use std::slice;
use std::sync::Arc;
use std::time::Duration;

use retide_avro::Intake;
use retide_core::{Ladder, Source};

/// What a topic is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The retry topic.
    Tasks,
    /// One record per end of a task.
    Callbacks,
    /// Parked tasks: one topic for each tier.
    Tier,
    /// What a human must know.
    Alerts,
    /// Tasks that ended badly.
    DeadLetters,
    /// The audit log.
    Events,
    /// What a shard has to know beside its tasks: which tasks of a key are outstanding, what was taken, how far commands are done.
    Order,
    /// Commands, and what becomes of them.
    Commands,
    /// Scene rules.
    Scenes,
    /// What one process tells all others at once.
    Signals,
}

/// One row of the table: all that is true of the topics of a role.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct About {
    /// The end of the name, behind the prefix and a dot; that of a tier goes on with a dot and the tier.
    pub name: &'static str,
    /// What a record is, for people.
    pub record: &'static str,
    /// Which partitions there are.
    pub partitions: Partitions,
    /// What records are keyed by.
    pub key: Key,
    /// What values are.
    pub value: Value,
    /// What workers read.
    pub reads: Reads,
    /// What workers write.
    pub writes: Writes,
    /// Whether records of the retry topic are copied there, with what retide adds to them.
    pub copies: bool,
    /// What `submit` and other producers do.
    pub submit: Use,
    /// What `explain` and others who look for a task do.
    pub explain: Use,
    /// What the commands for scenes do.
    pub scenes: Use,
    /// What the commands for tasks do.
    pub tasks: Use,
    /// What the commands for dead letters do.
    pub letters: Use,
    /// How records are forgotten.
    pub cleanup: Cleanup,
    /// Whose clock timestamps are from.
    pub timestamps: Timestamps,
    /// The largest batch; none leaves it to the broker.
    pub max_bytes: Option<i64>,
    /// Settings that make retide quicker, in the order of their names.
    pub tuning: &'static [(&'static str, &'static str)],
}

/// Which partitions a topic has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Partitions {
    /// As many as there are shards; producers choose by the key.
    ByKey,
    /// As many as there are shards; a task stays in the one that it is in.
    Shard,
    /// As many as there are shards; what is said of a task stands in the one by which it entered.
    Home,
    /// One.
    One,
}

/// What records are keyed by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Key {
    /// Whatever the producer has chosen; of a callback that is delivered, the task's id.
    Producers,
    /// The task's id.
    Task,
    /// The scene and the rule, as in `payment/breaker`.
    SceneAndRule,
    /// The scene.
    Scene,
    /// A fingerprint of a scene and a task's key.
    Fingerprint,
    /// The command's id.
    Command,
    /// The server that it is about.
    Server,
}

/// What values are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value {
    /// The producer's bytes.
    Producers,
    /// JSON or Avro, as the configuration says.
    Report,
    /// A format of retide's own.
    Own,
    /// JSON.
    Json,
}

/// What workers read on a topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reads {
    /// Nothing: others do.
    Nothing,
    /// Tasks, whose offsets are committed.
    Tasks,
    /// Commands, whose offsets are committed.
    Commands,
    /// What has to be known beside the tasks, from the topic's beginning.
    State,
    /// What others say, from shortly before the topic's end.
    Signals,
    /// Dead letters: the oldest, and where a campaign replays them.
    Letters,
}

/// What workers write on a topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Writes {
    /// Nothing: others do.
    Nothing,
    /// What they have decided.
    Always,
    /// The same, if it is wanted: `topics.events.enabled`.
    IfWanted,
    /// What they have heard from a target: in no transaction, and nothing depends on it.
    Signals,
}

/// What a command does with a topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// Nothing.
    Nothing,
    /// It reads.
    Reads,
    /// It writes.
    Writes,
    /// It does both.
    Both,
}

/// How records are forgotten.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cleanup {
    /// By age, counted from the end of their wait.
    Delete {
        /// How old they become.
        kept: Duration,
    },
    /// By the next record with the same key.
    Compact {
        /// What is lost where they are forgotten by age.
        otherwise: &'static str,
    },
}

/// Whose clock the timestamps of records are from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Timestamps {
    /// It makes no difference.
    Any,
    /// The broker's is better: a producer's clock that is years behind must not make records old enough to be deleted unread.
    Append,
    /// It has to be the broker's: waits count from there.
    Waits,
}

/// Outage budget: how long nobody may be there to read a record before it is gone. A week has a weekend in it.
pub const OUTAGE: Duration = Duration::from_hours(7 * 24);

/// How long signals are kept: as long as the longest of them counts that other processes believe.
pub const SIGNALS: Duration = Duration::from_hours(1);

/// How long dead letters are kept: people look into them, and people are on holiday.
pub const DEAD_LETTERS: Duration = Duration::from_hours(30 * 24);

/// Largest batch of the retry topic: Kafka's own default, stated so that a broker's larger one does not let in what cannot go on.
pub const TASK_BYTES: i64 = 1_048_588;

/// Largest batch of the topics that a task is copied to: what a copy of [`TASK_BYTES`] needs, rounded up to 2 MiB.
pub const COPY_BYTES: i64 = 2 * 1_024 * 1_024;

/// Setting: how large segments become.
pub const SEGMENT_BYTES: &str = "segment.bytes";
/// Setting: how old segments become before another one begins.
pub const SEGMENT_MS: &str = "segment.ms";
/// Setting: which part of a log is replaced at least before it is compacted.
pub const DIRTY: &str = "min.cleanable.dirty.ratio";
/// Setting: how long tombstones are kept.
pub const TOMBSTONES: &str = "delete.retention.ms";

/// What is the same for most topics: workers write what they have decided there, in the shard by which a task entered, and nobody of retide
/// reads it.
const MOST: About = About {
    name: "",
    record: "",
    partitions: Partitions::Home,
    key: Key::Task,
    value: Value::Report,
    reads: Reads::Nothing,
    writes: Writes::Always,
    copies: false,
    submit: Use::Nothing,
    explain: Use::Nothing,
    scenes: Use::Nothing,
    tasks: Use::Nothing,
    letters: Use::Nothing,
    cleanup: Cleanup::Delete { kept: OUTAGE },
    timestamps: Timestamps::Any,
    max_bytes: None,
    tuning: &[],
};

/// The row of [`Role::Order`].
const ORDER: About = About {
    name: "order",
    record: "which tasks of a key are outstanding, which records were taken, how far a command is done, how holds and breakers stand",
    partitions: Partitions::Shard,
    key: Key::Fingerprint,
    value: Value::Own,
    reads: Reads::State,
    tasks: Use::Reads,
    cleanup: Cleanup::Compact {
        otherwise: "what is known of the order of tasks gets lost as it ages",
    },
    // Tombstones are kept for ten minutes: longer than anybody takes to read the topic, since who has seen tasks of a key must
    // also see that there are none any more. Segments have 16 MiB: only whole ones are compacted, and whoever gets a shard
    // reads all of it.
    tuning: &[
        (TOMBSTONES, "600000"),
        (DIRTY, "0.1"),
        (SEGMENT_BYTES, "16777216"),
    ],
    ..MOST
};

/// The row of [`Role::Commands`].
const COMMANDS: About = About {
    name: "commands",
    record: "a command for tasks, or what becomes of it",
    partitions: Partitions::ByKey,
    key: Key::Command,
    value: Value::Json,
    reads: Reads::Commands,
    tasks: Use::Both,
    timestamps: Timestamps::Append,
    max_bytes: Some(TASK_BYTES),
    ..MOST
};

/// The row of [`Role::Scenes`].
const SCENES: About = About {
    name: "scenes",
    record: "the rules of a scene, a hold, or what people want of a breaker",
    partitions: Partitions::One,
    key: Key::Scene,
    reads: Reads::State,
    writes: Writes::Nothing,
    // To tell that a scene does not exist.
    submit: Use::Reads,
    scenes: Use::Both,
    // To tell which tasks have a target.
    tasks: Use::Reads,
    letters: Use::Reads,
    cleanup: Cleanup::Compact {
        otherwise: "scene rules get lost as they age",
    },
    ..MOST
};

// === impl Role ===

impl Role {
    /// All roles, in the order in which topics are created and listed.
    pub const ALL: [Self; 10] = [
        Self::Tasks,
        Self::Callbacks,
        Self::Tier,
        Self::Alerts,
        Self::DeadLetters,
        Self::Events,
        Self::Order,
        Self::Commands,
        Self::Scenes,
        Self::Signals,
    ];

    /// The row of this role: the one place that says what its topics are.
    pub const fn about(self) -> About {
        match self {
            Self::Tasks => About {
                name: "tasks",
                record: "a task, as it was produced",
                partitions: Partitions::ByKey,
                key: Key::Producers,
                value: Value::Producers,
                reads: Reads::Tasks,
                writes: Writes::Nothing,
                submit: Use::Writes,
                explain: Use::Reads,
                scenes: Use::Reads,
                tasks: Use::Reads,
                letters: Use::Reads,
                timestamps: Timestamps::Append,
                max_bytes: Some(TASK_BYTES),
                ..MOST
            },
            Self::Callbacks => About {
                name: "callbacks",
                record: "how a task has ended",
                copies: true,
                explain: Use::Reads,
                letters: Use::Reads,
                max_bytes: Some(COPY_BYTES),
                ..MOST
            },
            Self::Tier => About {
                name: "delay",
                record: "a task that waits",
                partitions: Partitions::Shard,
                key: Key::Producers,
                value: Value::Producers,
                reads: Reads::Tasks,
                copies: true,
                explain: Use::Reads,
                scenes: Use::Reads,
                tasks: Use::Reads,
                letters: Use::Reads,
                timestamps: Timestamps::Waits,
                max_bytes: Some(COPY_BYTES),
                ..MOST
            },
            Self::Alerts => About {
                name: "alerts",
                record: "what a human must know",
                partitions: Partitions::Shard,
                key: Key::SceneAndRule,
                ..MOST
            },
            Self::DeadLetters => About {
                name: "dead-letters",
                record: "a task that ended badly",
                key: Key::Producers,
                value: Value::Producers,
                reads: Reads::Letters,
                copies: true,
                explain: Use::Reads,
                letters: Use::Reads,
                cleanup: Cleanup::Delete { kept: DEAD_LETTERS },
                max_bytes: Some(COPY_BYTES),
                ..MOST
            },
            Self::Events => About {
                name: "events",
                record: "a transition of a task",
                writes: Writes::IfWanted,
                explain: Use::Reads,
                letters: Use::Reads,
                ..MOST
            },
            Self::Order => ORDER,
            Self::Commands => COMMANDS,
            Self::Scenes => SCENES,
            Self::Signals => About {
                name: "signals",
                record: "what one process tells all others at once",
                partitions: Partitions::One,
                key: Key::Server,
                value: Value::Own,
                reads: Reads::Signals,
                writes: Writes::Signals,
                cleanup: Cleanup::Delete { kept: SIGNALS },
                // Only whole segments are deleted.
                tuning: &[(SEGMENT_MS, "3600000")],
                ..MOST
            },
        }
    }

    /// Whether workers read tasks from it.
    pub const fn is_read(self) -> bool {
        matches!(self.about().reads, Reads::Tasks)
    }

    /// Whether workers run where its topic is missing, or may not be used: groups have worked before there was one.
    pub const fn is_new(self) -> bool {
        matches!(self, Self::Commands | Self::Signals)
    }

    /// Whether its topics have a partition for each shard.
    pub const fn is_sharded(self) -> bool {
        !matches!(self.about().partitions, Partitions::One)
    }

    /// Whether workers write there what they have decided; with events as if they were wanted.
    pub const fn is_written(self) -> bool {
        matches!(self.about().writes, Writes::Always | Writes::IfWanted)
    }
}

/// The names of a prefix's topics.
#[derive(Clone, Debug)]
pub struct Topics {
    /// The retry topic: anyone produces here.
    pub tasks: Arc<str>,
    /// One record per end of a task.
    pub callbacks: Arc<str>,
    /// What a human must know.
    pub alerts: Arc<str>,
    /// Tasks that ended badly.
    pub dead_letters: Arc<str>,
    /// Every transition of every task.
    pub events: Arc<str>,
    /// What shards have to know beside their tasks.
    pub order: Arc<str>,
    /// Commands, and what becomes of them.
    pub commands: Arc<str>,
    /// Scene rules, keyed by name; one partition.
    pub scenes: Arc<str>,
    /// What one process tells all others at once; one partition.
    pub signals: Arc<str>,
    /// Parked tasks, one topic for each tier of the ladder.
    pub tiers: Vec<Arc<str>>,
    /// How many of them, the shortest, take tasks that move from one shard to another; what the others hold is written by the owners of their
    /// shards alone.
    pub shared: usize,
    /// Tiers that the ladder does not have any more: they are read until they are empty, and nothing is parked there.
    pub draining: Vec<Draining>,
    /// How records of the retry topic are read.
    pub intake: Intake,
    /// Whether commands are read: groups work where their topic is missing.
    pub has_commands: bool,
}

/// A tier that is read until it is empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Draining {
    /// The topic.
    pub topic: Arc<str>,
    /// How many partitions it has: others may have been widened since it was a tier.
    pub partitions: i32,
}

// === impl Topics ===

impl Topics {
    /// The topics of `prefix` with the tiers of `ladder`.
    pub fn new(prefix: &str, ladder: &Ladder) -> Self {
        let topic = |role: Role| Arc::from(format!("{prefix}.{}", role.about().name));
        let tiers = topic(Role::Tier);
        Self {
            tasks: topic(Role::Tasks),
            callbacks: topic(Role::Callbacks),
            alerts: topic(Role::Alerts),
            dead_letters: topic(Role::DeadLetters),
            events: topic(Role::Events),
            order: topic(Role::Order),
            commands: topic(Role::Commands),
            scenes: topic(Role::Scenes),
            signals: topic(Role::Signals),
            tiers: ladder
                .tiers()
                .iter()
                .map(|tier| Arc::from(format!("{tiers}.{tier}")))
                .collect(),
            shared: (0..ladder.tiers().len())
                .filter(|tier| !ladder.is_owned(*tier))
                .count(),
            draining: Vec::new(),
            intake: Intake::default(),
            has_commands: false,
        }
    }

    /// The topics of a role: one for each tier of the ladder, and one for each other role.
    pub fn of(&self, role: Role) -> &[Arc<str>] {
        slice::from_ref(match role {
            Role::Tasks => &self.tasks,
            Role::Callbacks => &self.callbacks,
            Role::Tier => return &self.tiers,
            Role::Alerts => &self.alerts,
            Role::DeadLetters => &self.dead_letters,
            Role::Events => &self.events,
            Role::Order => &self.order,
            Role::Commands => &self.commands,
            Role::Scenes => &self.scenes,
            Role::Signals => &self.signals,
        })
    }

    /// The prefix of them all.
    pub fn prefix(&self) -> &str {
        let name = self.tasks.strip_suffix(Role::Tasks.about().name);
        name.and_then(|name| name.strip_suffix('.'))
            .unwrap_or(&self.tasks)
    }

    /// What the names of all tiers begin with, up to a separator.
    pub fn tier_prefix(&self) -> String {
        format!("{}.{}.", self.prefix(), Role::Tier.about().name)
    }

    /// The same, with tiers that are to be drained.
    #[must_use]
    pub fn with_draining(self, draining: Vec<Draining>) -> Self {
        Self { draining, ..self }
    }

    /// The same, with commands that are read.
    #[must_use]
    pub fn with_commands(self) -> Self {
        Self {
            has_commands: true,
            ..self
        }
    }

    /// The same, with a retry topic that is read so.
    #[must_use]
    pub fn with_intake(self, intake: Intake) -> Self {
        Self { intake, ..self }
    }

    /// The topics whose offsets are committed: those of [`Self::waiting`], and that of commands if it is there. All but those that are drained
    /// have the same number of partitions.
    pub fn read(&self) -> impl Iterator<Item = (Source, &Arc<str>)> {
        let commands = self
            .has_commands
            .then_some((Source::Commands, &self.commands));
        self.waiting().chain(commands)
    }

    /// The topics that tasks wait in.
    pub fn waiting(&self) -> impl Iterator<Item = (Source, &Arc<str>)> {
        let draining = self.draining.iter().map(|tier| &tier.topic);
        let tiers = self.tiers.iter().chain(draining).enumerate();
        let tiers = tiers.map(|(index, topic)| (Source::Tier(index), topic));
        [(Source::Tasks, &self.tasks)].into_iter().chain(tiers)
    }

    /// The topics that the tasks of a shard are read from.
    pub fn of_shard(&self, shard: i32) -> impl Iterator<Item = (Source, &Arc<str>)> {
        self.read().filter(move |(source, _)| match source {
            Source::Tasks | Source::Commands => true,
            Source::Tier(index) => index
                .checked_sub(self.tiers.len())
                .is_none_or(|index| shard < self.draining[index].partitions),
        })
    }

    /// The topics that are only written, or read by whoever gets a shard, with the same number of partitions again.
    pub fn written(&self) -> impl Iterator<Item = &Arc<str>> {
        let roles = Role::ALL.into_iter();
        let roles = roles.filter(|role| role.is_written() && !role.is_read());
        roles.flat_map(|role| self.of(role))
    }

    /// The name of a topic that is read.
    pub fn name(&self, source: Source) -> &Arc<str> {
        match source {
            Source::Tasks => &self.tasks,
            Source::Commands => &self.commands,
            Source::Tier(index) => match index.checked_sub(self.tiers.len()) {
                None => &self.tiers[index],
                Some(index) => &self.draining[index].topic,
            },
        }
    }

    /// What is read from `topic`, if it is one that is read.
    pub fn source(&self, topic: &str) -> Option<Source> {
        self.read()
            .find_map(|(source, name)| (&**name == topic).then_some(source))
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;
    use std::iter;

    use retide_core::topic::is_own;

    use super::*;

    #[test]
    fn all_roles_are_listed() {
        let next = |role: &Role| match role {
            Role::Tasks => Some(Role::Callbacks),
            Role::Callbacks => Some(Role::Tier),
            Role::Tier => Some(Role::Alerts),
            Role::Alerts => Some(Role::DeadLetters),
            Role::DeadLetters => Some(Role::Events),
            Role::Events => Some(Role::Order),
            Role::Order => Some(Role::Commands),
            Role::Commands => Some(Role::Scenes),
            Role::Scenes => Some(Role::Signals),
            Role::Signals => None,
        };

        let roles: Vec<Role> = iter::successors(Some(Role::Tasks), next).collect();

        assert_eq!(roles, Role::ALL);
    }

    #[test]
    fn every_topic_that_is_read_is_found_by_its_name() {
        let topics = Topics::new("retry", &Ladder::default());
        assert_eq!(topics.source("retry.commands"), None);
        let topics = topics.with_commands();

        for (source, name) in topics.read() {
            assert_eq!(topics.source(name), Some(source));
            assert_eq!(topics.name(source), name);
        }
        assert_eq!(topics.source("retry.commands"), Some(Source::Commands));
        let roles = Role::ALL.into_iter().filter(|role| role.is_read());
        let names: Vec<_> = roles.flat_map(|role| topics.of(role)).collect();
        assert_eq!(
            topics.waiting().map(|(_, name)| name).collect::<Vec<_>>(),
            names
        );
        assert_eq!(&*topics.tiers[4], "retry.delay.1m");
        assert_eq!(topics.source("retry.scenes"), None);
    }

    #[test]
    fn a_tier_that_is_drained_is_read_as_far_as_it_has_partitions() {
        let draining = Draining {
            topic: "retry.delay.2m".into(),
            partitions: 4,
        };
        let topics = Topics::new("retry", &Ladder::default()).with_draining(vec![draining]);
        let source = Source::Tier(topics.tiers.len());

        assert_eq!(topics.source("retry.delay.2m"), Some(source));
        assert_eq!(&**topics.name(source), "retry.delay.2m");
        let has = |shard| topics.of_shard(shard).any(|(of, _)| of == source);
        assert!(has(3) && !has(4));
    }

    #[test]
    fn all_topics_of_the_prefix_are_own_and_no_others() {
        let topics = Topics::new("retry", &Ladder::default());
        assert_eq!(topics.prefix(), "retry");

        for name in Role::ALL.iter().flat_map(|role| topics.of(*role)) {
            assert!(is_own("retry", name), "{name}");
        }
        assert!(is_own("retry", "retry.delay.7m"));
        for other in [
            "retry",
            "retry.work",
            "other.tasks",
            "retry2.tasks",
            "tasks",
        ] {
            assert!(!is_own("retry", other), "{other}");
        }
    }

    /// The table in words, as a page of the docs has it.
    fn table() -> String {
        let users = |role: Role, uses: &[Use]| {
            let about = role.about();
            let commands = [
                (about.submit, "producers", "`submit`"),
                (about.explain, "`explain`", "`explain`"),
                (about.scenes, "`scenes`", "`scenes`"),
                (about.tasks, "`tasks`, people and programs", "`tasks`"),
                (about.letters, "`dead-letters`", "`dead-letters`"),
            ];
            let commands = commands.into_iter().filter(|(of, ..)| uses.contains(of));
            let writes = uses.contains(&Use::Writes);
            let commands = commands.map(|(_, writer, reader)| if writes { writer } else { reader });
            let workers = if writes {
                match about.writes {
                    Writes::Nothing => None,
                    Writes::Always => Some("workers"),
                    Writes::IfWanted => Some("workers, if `topics.events.enabled`"),
                    Writes::Signals => Some("workers, in no transaction"),
                }
            } else {
                match about.reads {
                    Reads::Nothing => None,
                    Reads::Tasks | Reads::Commands => Some("workers, who commit offsets"),
                    Reads::State => Some("workers, from its beginning"),
                    Reads::Signals => Some("workers, from shortly before its end"),
                    Reads::Letters => {
                        Some("workers, the oldest, and where a campaign replays them")
                    }
                }
            };
            let all: Vec<&str> = workers.into_iter().chain(commands).collect();
            if all.is_empty() {
                "you".to_owned()
            } else {
                all.join("; ")
            }
        };
        let mut text = String::from(
            "| topic | a record is | written by | read by | partition | key | value | kept | largest batch | timestamps |\n\
             |---|---|---|---|---|---|---|---|---|---|\n",
        );
        for role in Role::ALL {
            let about = role.about();
            let tier = if role == Role::Tier { ".TIER" } else { "" };
            let days = |kept: Duration| kept.as_secs() / 3_600 / 24;
            let cells = [
                format!("`PREFIX.{}{tier}`", about.name),
                about.record.to_owned(),
                users(role, &[Use::Writes, Use::Both]),
                users(role, &[Use::Reads, Use::Both]),
                match about.partitions {
                    Partitions::ByKey => "by its key",
                    Partitions::Shard => "the shard it was decided in",
                    Partitions::Home => "the shard its task entered by",
                    Partitions::One => "the only one",
                }
                .to_owned(),
                match about.key {
                    Key::Producers => "the producer's",
                    Key::Task => "the task's id",
                    Key::SceneAndRule => "`SCENE/RULE`",
                    Key::Scene => "the scene's name",
                    Key::Fingerprint => "a fingerprint of scene and key",
                    Key::Command => "the command's id",
                    Key::Server => "the server",
                }
                .to_owned(),
                match about.value {
                    Value::Producers => "the producer's bytes".to_owned(),
                    Value::Report => format!("`topics.{}.format`", about.name),
                    Value::Own => "retide's own".to_owned(),
                    Value::Json => "JSON".to_owned(),
                },
                match about.cleanup {
                    Cleanup::Delete { kept } if role == Role::Tier => {
                        format!("its wait and {} days", days(kept))
                    }
                    Cleanup::Delete { kept } if days(kept) == 0 => retide_core::span::text(kept),
                    Cleanup::Delete { kept } => format!("{} days", days(kept)),
                    Cleanup::Compact { .. } => "until replaced (compacted)".to_owned(),
                },
                about
                    .max_bytes
                    .map_or_else(|| "the broker's".to_owned(), |bytes| bytes.to_string()),
                match about.timestamps {
                    Timestamps::Any => "the broker's choice",
                    Timestamps::Append => "`LogAppendTime`",
                    Timestamps::Waits => "`LogAppendTime`, or retide refuses to run",
                }
                .to_owned(),
            ];
            let _ = writeln!(text, "| {} |", cells.join(" | "));
        }
        text
    }

    #[test]
    fn the_page_of_the_docs_has_the_table_of_the_catalogue() {
        let page = include_str!("../../docs/topics.md");

        let table = table();

        assert!(page.contains(&table), "docs/topics.md lacks this:\n{table}");
    }
}
