//! The configuration: `retide.toml`, environment variables over it, and what they mean.
//!
//! | module | what |
//! |---|---|
//! | [`source`] | files and variables, and errors with their places |
//! | [`scene`] | the rules of a scene |
//! | [`schemas`] | the schemas of other writers |
//! | [`breaker`] | when its target is left alone |
//! | [`concurrency`] | how many of its calls are in flight |
//! | [`identity`] | what a process and its members are called |
//! | `secrets` | what must not be shown |
//! | [`keys`] | each key with its default, what is in force, and from where |
//! | `number`, `property` | the properties of Kafka's client, and numbers among them |
//! | `former` | scenes as older versions wrote them |
//! | `text` | durations, sizes and addresses |
//!
//! Invariant: a [`Config`] that exists is valid but for what only a broker or a target can tell.

pub mod breaker;
pub mod concurrency;
mod former;
pub mod identity;
pub mod keys;
mod number;
mod property;
pub mod scene;
pub mod schemas;
pub(crate) mod secrets;
pub mod source;
mod text;

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::error::KafkaError;
use serde::Deserialize;
use toml::{Table, Value};

use retide_avro::{Format, Intake};
use retide_connectors::{Outbound, egress, secret, tls};
use retide_core::command::Invocation;
use retide_core::engine::UNKNOWN_SCENE_HOLD;
use retide_core::{Ladder, with_causes};

use crate::metrics;

pub use self::scene::Scene;
pub use self::schemas::Schemas;
pub use self::source::Error;

pub(crate) use self::text::rfc3339;

pub use self::source::Source;

/// The file that is read when none is named, if it is there.
pub const FILE: &str = "retide.toml";

/// Where Kafka is when nobody says.
pub(crate) const BOOTSTRAP: &str = "localhost:9092";

/// Properties of consumers where the user names none.
const CONSUMER: [(&str, &str); 4] = [
    // A worker that died is missed after this; the others take over what it had.
    ("session.timeout.ms", "15000"),
    // How soon a worker hears of a rebalance, which all wait for: it decides how late tasks are whose shards move when one joins or leaves.
    ("heartbeat.interval.ms", "100"),
    // A lane that is read again waits for the fetch under way.
    ("fetch.wait.max.ms", "100"),
    // What is prefetched is worked off in a tenth of a second; the client's default would wait for a second before it fetches more.
    ("fetch.queue.backoff.ms", "10"),
];

/// The property that makes a member of the group a static one.
const INSTANCE_ID: &str = "group.instance.id";

/// Properties that retide sets by itself, since its promises hang on them, and what to do instead.
const RESERVED: [(&str, &str); 11] = [
    ("group.id", "set `group` in [processor]"),
    (
        "partition.assignment.strategy",
        "shards are assigned by `cooperative-sticky`",
    ),
    ("enable.auto.commit", "offsets are committed by the ledger"),
    (
        "enable.auto.offset.store",
        "offsets are committed by the ledger",
    ),
    ("auto.offset.reset", "a lost offset must not go unnoticed"),
    ("isolation.level", "set by the guarantee"),
    ("transactional.id", "made for each worker"),
    ("enable.idempotence", "always on"),
    ("partitioner", "Java's, `murmur2_random`"),
    ("group.protocol", "the classic protocol"),
    ("enable.partition.eof", "not used"),
];

/// The whole configuration.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// How Kafka is reached.
    pub kafka: Kafka,
    /// retide's topics.
    pub topics: Topics,
    /// The process and its workers.
    pub processor: Processor,
    /// The endpoints for operators.
    pub admin: Admin,
    /// What is dialled, and what is not.
    pub egress: egress::Config,
    /// How TLS is spoken with targets, by the names that scenes use.
    pub tls: BTreeMap<String, tls::Config>,
    /// The schemas of other writers.
    pub schemas: Schemas,
    /// What scenes may name as secrets.
    pub secrets: secret::Config,
    /// The scenes, by name; those on the scenes topic go before them.
    pub scenes: BTreeMap<String, Scene>,
    /// What the command line said of cluster and topics.
    #[serde(skip)]
    pub invocation: Invocation,
}

/// How Kafka is reached: properties of librdkafka, verbatim.
#[derive(Clone, Default, Deserialize)]
#[serde(try_from = "Table")]
pub struct Kafka {
    /// Of every client.
    common: BTreeMap<String, String>,
    /// Of consumers, over those of every client.
    consumer: BTreeMap<String, String>,
    /// Of producers, over those of every client.
    producer: BTreeMap<String, String>,
    /// What the members of the group are called, from process to process.
    instance_id: Option<String>,
}

/// retide's topics.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Topics {
    /// What their names begin with.
    #[serde(deserialize_with = "text::prefix")]
    pub prefix: String,
    /// Partitions of each of them: as many shards there are.
    #[serde(deserialize_with = "text::partitions")]
    pub partitions: i32,
    /// Copies of each partition; -1 leaves it to the broker.
    #[serde(deserialize_with = "text::replication_factor")]
    pub replication_factor: i16,
    /// The tiers.
    #[serde(deserialize_with = "text::ladder")]
    pub tiers: Ladder,
    /// The retry topic.
    pub tasks: Intake,
    /// The callbacks topic.
    pub callbacks: Reports,
    /// The alerts topic.
    pub alerts: Reports,
    /// The events topic.
    pub events: Events,
    /// The scenes topic.
    pub scenes: SceneRecords,
}

/// A topic with reports that others read: callbacks, alerts.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Reports {
    /// How its records are written.
    pub format: Format,
    /// What stands before a record in Avro.
    pub framing: Frame,
    /// The number that the registry gave the schema, if it is not to be asked.
    pub schema_id: Option<u32>,
}

/// What stands before a record in Avro.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Frame {
    /// Avro's marker and the schema's fingerprint.
    #[default]
    SingleObject,
    /// Confluent's magic byte and the number that a registry gave the schema.
    Confluent,
}

/// The scenes topic, which only retide reads.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SceneRecords {
    /// How its records are written.
    pub format: Format,
}

/// The events topic.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Events {
    /// How its records are written.
    pub format: Format,
    /// Whether there are any: without them there is no audit log, and hops cost half.
    pub enabled: bool,
}

/// The process and its workers.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Processor {
    /// The consumer group.
    #[serde(deserialize_with = "text::group")]
    pub group: String,
    /// What the process is called in the group, from one start to the next: its workers are static members then, called so and by their
    /// numbers. `${NAME}` stands for a variable of the environment.
    pub instance_id: Option<String>,
    /// Workers of the process, each with its own shards.
    pub workers: NonZeroU32,
    /// What is promised about a crash.
    pub guarantee: Guarantee,
    /// How long a transaction collects.
    #[serde(deserialize_with = "text::positive")]
    pub commit_interval: Duration,
    /// Bytes of tasks, and of what is known of keys, held in memory, of the whole process.
    #[serde(deserialize_with = "text::memory")]
    pub memory_limit: u64,
    /// How long calls in flight are waited for when a shard is given away.
    #[serde(deserialize_with = "text::positive")]
    pub drain_deadline: Duration,
    /// How long a parked task is held at most whose scene does not exist.
    #[serde(deserialize_with = "text::positive")]
    pub unknown_scene_hold: Duration,
    /// Whether to start although scenes on the scenes topic cannot be used.
    pub ignore_unusable_scenes: bool,
}

/// What is promised about a crash.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Guarantee {
    /// Consequence and offset are one transaction.
    #[default]
    ExactlyOnce,
    /// Consequences first, then the offset: a crash repeats what lies between.
    AtLeastOnce,
}

impl fmt::Display for Guarantee {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::ExactlyOnce => "exactly_once",
            Self::AtLeastOnce => "at_least_once",
        })
    }
}

/// The endpoints for operators.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Admin {
    /// The address, or none.
    #[serde(deserialize_with = "text::address")]
    pub listen: Option<SocketAddr>,
    /// How many scenes have series of their own in `/metrics`; the others count together, as `other`.
    pub scene_series: usize,
}

impl Default for Admin {
    fn default() -> Self {
        Self {
            listen: None,
            scene_series: metrics::SCENES,
        }
    }
}

/// What the command line says over the file and the variables.
#[derive(Clone, Debug, Default)]
pub struct Overrides {
    /// The address of Kafka.
    pub bootstrap: Option<String>,
    /// The prefix of the topics.
    pub prefix: Option<String>,
}

// === impl Config ===

impl Config {
    /// Reads `file`, or [`FILE`] if that is there, the variables, and what the command line says.
    pub fn load(
        file: Option<&Path>,
        variables: impl IntoIterator<Item = (String, String)>,
        overrides: &Overrides,
    ) -> Result<Self, Error> {
        Self::load_from(file, variables, overrides).map(|(config, _)| config)
    }

    /// The same, with where it was read.
    pub fn load_from(
        file: Option<&Path>,
        variables: impl IntoIterator<Item = (String, String)>,
        overrides: &Overrides,
    ) -> Result<(Self, Source), Error> {
        let source = match file {
            Some(file) => Source::file(file)?,
            None if Path::new(FILE).exists() => Source::file(Path::new(FILE))?,
            None => Source::default(),
        };
        let variables: Vec<(String, String)> = variables.into_iter().collect();
        let source = source.overlay(variables.iter().cloned())?;
        let mut config = Self::from_source(&source, overrides)?;
        if let Some((path, instance_id)) = config.instance_id_as_written() {
            let instance_id = identity::expand(&instance_id, &variables)
                .map_err(|message| source.error(path, &message))?;
            config.processor.instance_id = Some(instance_id);
        }
        config.invocation.config = file.map(Path::to_owned);
        Ok((config, source))
    }

    /// What connections to targets go by.
    pub fn outbound(&self) -> Outbound {
        Outbound {
            egress: Arc::new(self.egress.clone()),
            tls: Arc::new(tls::Profiles::new(&self.tls)),
            secrets: Arc::new(secret::Secrets::new(self.secrets.clone())),
        }
    }

    /// A scene whose profile of TLS is none of the configuration's, and what is said of that.
    pub fn unknown_profile(&self) -> Option<(&str, String)> {
        self.scenes.iter().find_map(|(name, scene)| {
            let unknown = scene.profiles().map(|(_, profile)| profile);
            let unknown = unknown.filter(|&profile| !self.tls.contains_key(profile));
            let profile = unknown.min()?;
            Some((name.as_str(), unknown_profile(profile, self.tls.keys())))
        })
    }

    /// Rules for connections by which none could be made.
    fn check_outbound(&self, source: &Source) -> Vec<Error> {
        let at = |path: &[&str], message: &str| {
            source.error(path.iter().map(|&key| key.to_owned()).collect(), message)
        };
        let mut wrong = Vec::new();
        if let Err(message) = self.egress.check() {
            wrong.push(at(&["egress", "only"], message));
        }
        for (name, profile) in &self.tls {
            if let Err(error) = profile.check() {
                wrong.push(at(&["tls", name, error.key], error.message));
            }
        }
        wrong
    }

    /// Everything that is wrong with it, beyond single values.
    fn problems(&self, source: &Source) -> Vec<Error> {
        let mut wrong = source.literals();
        wrong.extend(check_scenes(source, &self.scenes));
        wrong.extend(self.kafka.check(source));
        wrong.extend(self.check_outbound(source));
        wrong.extend(self.clone().know_schemas(source).err());
        wrong.extend(check_profiles(source, &self.scenes, &self.tls));
        wrong.extend(check_deliveries(source, &self.scenes, &self.topics.prefix));
        wrong
    }

    /// Puts in force what the command line says.
    fn overrule(&mut self, overrides: &Overrides) {
        self.invocation.bootstrap.clone_from(&overrides.bootstrap);
        self.invocation.prefix.clone_from(&overrides.prefix);
        if let Some(bootstrap) = &overrides.bootstrap {
            let key = "bootstrap.servers";
            for properties in [&mut self.kafka.consumer, &mut self.kafka.producer] {
                properties.remove(key);
            }
            self.kafka.set(key, bootstrap);
        }
        if let Some(prefix) = &overrides.prefix {
            self.topics.prefix.clone_from(prefix);
        }
    }

    /// Reads the schemas that are configured.
    fn know_schemas(&mut self, source: &Source) -> Result<(), Error> {
        let at = |path: Vec<String>, message: &str| {
            let section = ["schemas".to_owned()].into_iter();
            source.error(section.chain(path).collect(), message)
        };
        let known = self.schemas.known();
        let known = known.map_err(|wrong| at(wrong.path, &wrong.message))?;
        if let Some(profile) = &self.schemas.tls
            && !self.tls.contains_key(profile)
        {
            let message = unknown_profile(profile, self.tls.keys());
            return Err(at(vec!["tls".to_owned()], &message));
        }
        self.topics.tasks.schemas = Arc::new(known);
        for (topic, reports) in [
            ("callbacks", self.topics.callbacks),
            ("alerts", self.topics.alerts),
        ] {
            let Reports {
                format,
                framing,
                schema_id,
            } = reports;
            let wrong = |key: &str, message: &str| {
                let path = ["topics", topic, key].map(str::to_owned);
                Err(source.error(path.to_vec(), message))
            };
            if framing == Frame::Confluent && format == Format::Json {
                return wrong("framing", "it is for `format = \"avro\"`");
            }
            if schema_id.is_some() && framing != Frame::Confluent {
                return wrong("schema_id", "it is for `framing = \"confluent\"`");
            }
            if framing == Frame::Confluent && schema_id.is_none() && self.schemas.registry.is_none()
            {
                return wrong(
                    "framing",
                    "set `schema_id`, or `registry` in [schemas], where the schema is registered at the start",
                );
            }
        }
        Ok(())
    }

    /// What the process is called in the group, as it was written, and where that was.
    fn instance_id_as_written(&self) -> Option<(Vec<String>, String)> {
        let own = self.processor.instance_id.clone();
        let own = own.map(|id| (["processor", "instance_id"], id));
        let native = self.kafka.instance_id.clone();
        let (path, id) = own.or(native.map(|id| (["kafka", INSTANCE_ID], id)))?;
        Some((path.map(str::to_owned).to_vec(), id))
    }

    /// Gives what was read its meaning.
    fn from_source(source: &Source, overrides: &Overrides) -> Result<Self, Error> {
        let mut config = source.read::<Self>().checked(|config| {
            let mut config = config.clone();
            config.overrule(overrides);
            config.problems(source)
        })?;
        config.overrule(overrides);
        config.know_schemas(source)?;
        Ok(config)
    }
}

/// Reads the scenes of a file, where retide's topics have this prefix; whatever else stands in it has to be valid, too, but does not count.
pub fn scenes(file: &str, text: String, prefix: &str) -> Result<BTreeMap<String, Scene>, Error> {
    let source = Source::text(file, text)?;
    let config = source.read::<Config>().checked(|config| {
        let mut wrong = source.literals();
        wrong.extend(check_scenes(&source, &config.scenes));
        wrong.extend(check_deliveries(&source, &config.scenes, prefix));
        wrong
    })?;
    Ok(config.scenes)
}

/// Reads the rules of one scene, as they stand on the scenes topic, whichever version wrote them.
pub fn rules(name: &str, text: String) -> Result<Scene, Error> {
    let mut source = Source::text(name, text)?;
    source.amend(former::mend);
    source
        .read::<Scene>()
        .checked(|scene| check_scene(&source, name, scene, &[]))
}

/// What the names of topics may begin with.
pub(crate) fn prefix(text: &str) -> Option<String> {
    // Topics have names of at most 249 characters, and the longest ending is `.delay.` and a tier.
    text::is_name(text, 200).then(|| text.to_owned())
}

/// What is wrong with scenes that could not be scheduled or have no usable target.
fn check_scenes(source: &Source, scenes: &BTreeMap<String, Scene>) -> Vec<Error> {
    let wrong = scenes
        .iter()
        .map(|(name, scene)| check_scene(source, name, scene, &["scenes", name]));
    wrong.flatten().collect()
}

/// What is wrong with scenes that deliver to a topic of retide's own: a task would go round for ever, or spoil what others read.
fn check_deliveries(source: &Source, scenes: &BTreeMap<String, Scene>, prefix: &str) -> Vec<Error> {
    let own = scenes.iter().filter_map(|(name, scene)| {
        let (keys, topic) = scene.own_topic(prefix)?;
        let path = ["scenes", name].into_iter().chain(keys.iter().copied());
        let message = format!(
            "{topic} is retide's own: expected a topic that others read, and retide does not"
        );
        Some(source.error(path.map(str::to_owned).collect(), &message))
    });
    own.collect()
}

/// What is wrong with a scene that could not be scheduled or has no usable target; it stands where `path` leads.
fn check_scene(source: &Source, name: &str, scene: &Scene, path: &[&str]) -> Vec<Error> {
    let below = |keys: &[String]| -> Vec<String> {
        let path = path.iter().map(|&key| key.to_owned());
        path.chain(keys.iter().cloned()).collect()
    };
    let wrong = scene.problems(name).into_iter();
    let mut wrong: Vec<Error> = wrong
        .map(|error| source.error(below(&error.path), &error.message))
        .collect();
    let callback = scene.callback.as_ref().map(|callback| &callback.target);
    for (keys, target) in [
        (&["target"][..], Some(&scene.target)),
        (&["callback", "target"], callback),
    ] {
        // Which profiles there are is known to the process that makes attempts.
        let outbound = Outbound::default();
        for error in target
            .map(|target| target.problems(&outbound))
            .into_iter()
            .flatten()
        {
            let keys = keys.iter().map(|&key| key.to_owned());
            let keys: Vec<String> = keys.chain(error.path()).collect();
            wrong.push(source.error(below(&keys), &with_causes(&error)));
        }
    }
    wrong
}

/// What is wrong with scenes whose profile of TLS is none of `profiles`.
fn check_profiles(
    source: &Source,
    scenes: &BTreeMap<String, Scene>,
    profiles: &BTreeMap<String, tls::Config>,
) -> Vec<Error> {
    let mut wrong = Vec::new();
    for (name, scene) in scenes {
        for (keys, profile) in scene.profiles() {
            if profiles.contains_key(profile) {
                continue;
            }
            let path = ["scenes", name].into_iter().chain(keys);
            let path = path.map(str::to_owned).collect();
            let message = unknown_profile(profile, profiles.keys());
            wrong.push(source.error(path, &message));
        }
    }
    wrong
}

/// What is wrong with the name of a profile, and which one was probably meant.
pub(crate) fn unknown_profile<'a>(
    profile: &str,
    known: impl Iterator<Item = &'a String>,
) -> String {
    let nearest = known
        .map(|name| (strsim::damerau_levenshtein(profile, name), name))
        .min();
    match nearest {
        Some((edits, name)) if edits <= 2 => {
            format!("there is no [tls.{profile}]; did you mean `{name}`?")
        }
        _ => format!("there is no [tls.{profile}] in the configuration of the process"),
    }
}

/// A message of the Kafka client's without the value that it may repeat.
fn redacted(message: &str, value: Option<&str>) -> String {
    match value {
        Some(value) if !value.is_empty() => message.replace(value, "<value not shown>"),
        _ => message.to_owned(),
    }
}

// === impl Kafka ===

impl Kafka {
    /// What every client is configured with.
    pub fn client(&self) -> ClientConfig {
        self.with(&[], &BTreeMap::new())
    }

    /// What a consumer is configured with.
    pub fn consumer(&self) -> ClientConfig {
        self.with(&CONSUMER, &self.consumer)
    }

    /// What a producer is configured with.
    pub fn producer(&self) -> ClientConfig {
        self.with(&[], &self.producer)
    }

    /// What is wrong with the properties: those that are retide's, that there are not, that the client would read as another value, or
    /// that it would refuse.
    fn check(&self, source: &Source) -> Vec<Error> {
        let mut wrong = Vec::new();
        let path = |section: Option<&str>, property: &str| -> Vec<String> {
            let path = ["kafka"].into_iter().chain(section).chain([property]);
            path.map(str::to_owned).collect()
        };
        for (section, properties) in [
            (None, &self.common),
            (Some("consumer"), &self.consumer),
            (Some("producer"), &self.producer),
        ] {
            for (property, value) in properties {
                let reserved = RESERVED.iter().find(|(reserved, _)| reserved == property);
                let message = match reserved {
                    Some((_, instead)) => Some(format!("`{property}` is set by retide: {instead}")),
                    None => number::refusal(property, value).or_else(|| invalid(property, value)),
                };
                if let Some(message) = message {
                    wrong.push(source.error(path(section, property), &message));
                }
            }
        }
        let is_plain = [&self.common, &self.consumer, &self.producer]
            .into_iter()
            .all(|properties| properties.keys().all(|key| key == "bootstrap.servers"));
        if !wrong.is_empty() || is_plain {
            return wrong;
        }
        let refused = property::refused(&self.consumer(), &self.producer());
        let refused = refused.map(|(message, property)| {
            let section = [("consumer", &self.consumer), ("producer", &self.producer)]
                .into_iter()
                .find(|(_, properties)| properties.contains_key(&property));
            let path = path(section.map(|(section, _)| section), &property);
            source.error(path, &message)
        });
        wrong.extend(refused);
        wrong
    }

    /// Sets a property of every client.
    pub fn set(&mut self, property: &str, value: &str) {
        self.common.insert(property.to_owned(), value.to_owned());
    }

    /// The section of a file that says the same. It may hold secrets.
    pub(crate) fn written(&self) -> Table {
        let table = |properties: &BTreeMap<String, String>| -> Table {
            let properties = properties.iter();
            properties
                .map(|(key, value)| (key.clone(), Value::String(value.clone())))
                .collect()
        };
        let mut written = table(&self.common);
        if let Some(id) = &self.instance_id {
            written.insert(INSTANCE_ID.to_owned(), Value::String(id.clone()));
        }
        for (key, properties) in [("consumer", &self.consumer), ("producer", &self.producer)] {
            written.insert(key.to_owned(), Value::Table(table(properties)));
        }
        written
    }

    /// The properties that were named, those of consumers and producers with the section before them.
    pub(super) fn properties(&self) -> Vec<(String, String)> {
        let of = |section: &str, properties: &BTreeMap<String, String>| -> Vec<_> {
            let properties = properties.iter();
            properties
                .map(|(key, value)| (format!("{section}{key}"), value.clone()))
                .collect()
        };
        let mut all = of("", &self.common);
        all.extend(of("consumer.", &self.consumer));
        all.extend(of("producer.", &self.producer));
        all.retain(|(key, _)| key != "bootstrap.servers");
        all.extend(
            self.instance_id
                .iter()
                .map(|id| (INSTANCE_ID.to_owned(), id.clone())),
        );
        all
    }

    /// The addresses at which Kafka is looked for.
    pub fn bootstrap(&self) -> &str {
        self.common
            .get("bootstrap.servers")
            .map_or(BOOTSTRAP, String::as_str)
    }

    /// Defaults, the common properties over them, and some over these.
    fn with(&self, defaults: &[(&str, &str)], over: &BTreeMap<String, String>) -> ClientConfig {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", BOOTSTRAP);
        config.set("client.id", "retide");
        for (property, value) in defaults {
            config.set(*property, *value);
        }
        for (property, value) in self.common.iter().chain(over) {
            config.set(property, value);
        }
        config
    }
}

impl TryFrom<Table> for Kafka {
    type Error = String;

    fn try_from(table: Table) -> Result<Self, String> {
        let mut kafka = Self::default();
        for (key, value) in table {
            match (key.as_str(), value) {
                ("consumer", Value::Table(table)) => {
                    properties("", table.into(), &mut kafka.consumer)?;
                }
                ("producer", Value::Table(table)) => {
                    properties("", table.into(), &mut kafka.producer)?;
                }
                (_, value) => properties(&key, value, &mut kafka.common)?,
            }
        }
        // Of the members of the group, and of no other consumer.
        for properties in [&mut kafka.common, &mut kafka.consumer] {
            let instance_id = properties.remove(INSTANCE_ID);
            kafka.instance_id = instance_id.or(kafka.instance_id);
        }
        Ok(kafka)
    }
}

impl fmt::Debug for Kafka {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The values may be secret.
        formatter
            .debug_struct("Kafka")
            .field("common", &self.common.keys())
            .field("consumer", &self.consumer.keys())
            .field("producer", &self.producer.keys())
            .field("instance_id", &self.instance_id)
            .finish()
    }
}

/// Why the client takes no such property.
fn invalid(property: &str, value: &str) -> Option<String> {
    let mut config = ClientConfig::new();
    config.set(property, value);
    match config.create_native_config() {
        Err(KafkaError::ClientConfig(_, message, ..)) if message.starts_with("No such") => {
            Some(property::unknown(property))
        }
        Err(KafkaError::ClientConfig(_, message, ..)) => Some(redacted(&message, Some(value))),
        Ok(_) | Err(_) => None,
    }
}

/// Collects properties; a key with dots that stands unquoted is a table in a table.
fn properties(
    key: &str,
    value: Value,
    properties_of: &mut BTreeMap<String, String>,
) -> Result<(), String> {
    let text = match value {
        Value::String(text) => text,
        Value::Integer(number) => number.to_string(),
        Value::Float(number) => number.to_string(),
        Value::Boolean(value) => value.to_string(),
        Value::Table(table) => {
            for (next, value) in table {
                let next = if key.is_empty() {
                    next
                } else {
                    format!("{key}.{next}")
                };
                properties(&next, value, properties_of)?;
            }
            return Ok(());
        }
        Value::Array(_) | Value::Datetime(_) => {
            return Err(format!(
                "`{key}`: expected a string, a number, true or false"
            ));
        }
    };
    properties_of.insert(key.to_owned(), text);
    Ok(())
}

// === impl Topics ===

impl Default for Reports {
    /// What any program reads without a schema.
    fn default() -> Self {
        Self {
            format: Format::Json,
            framing: Frame::default(),
            schema_id: None,
        }
    }
}

impl Default for Topics {
    fn default() -> Self {
        Self {
            prefix: "retry".into(),
            partitions: 12,
            replication_factor: -1,
            tiers: Ladder::default(),
            tasks: Intake::default(),
            callbacks: Reports::default(),
            alerts: Reports::default(),
            events: Events::default(),
            scenes: SceneRecords::default(),
        }
    }
}

// === impl Events ===

impl Default for Events {
    fn default() -> Self {
        Self {
            format: Format::default(),
            enabled: true,
        }
    }
}

// === impl Processor ===

impl Default for Processor {
    fn default() -> Self {
        Self {
            group: "retide".into(),
            instance_id: None,
            workers: NonZeroU32::MIN,
            guarantee: Guarantee::default(),
            commit_interval: Duration::from_millis(100),
            memory_limit: 512 << 20,
            drain_deadline: Duration::from_secs(5),
            unknown_scene_hold: UNKNOWN_SCENE_HOLD,
            ignore_unusable_scenes: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use retide_avro::schemas::{Key, Meaning};
    use retide_core::{Backoff, Jitter, Timestamp};

    use super::*;

    const SCENE: &str = "target = { http = { url = 'http://h/' } }\nbackoff = { levels = { preset = 'classic' } }\nrate = { limit = 5, per = '1m' }\ndeadline = '1h'\n";

    const POINTS: &str = "target = { kafka = { topic = 'x' } }\nbackoff = { at = { times = ['2026-12-24T09:00:00.5+01:00', 2027-01-01T00:00:00Z] } }\nfrom = 'scheduled'\n";

    const CLASSES: &str = r"
        target = { http = { url = 'http://h/', throttled = [503, 'timeout'], permanent = ['reply'] } }
        backoff = { cron = { schedule = '30 2 * * MON-FRI', timezone = 'Europe/Berlin' } }
        max_attempts = 9
        [on.throttled]
        backoff = { exponential = { first = '1s', max = '1h' } }
        jitter = 'decorrelated'
        [on.timeout]
        backoff = { random = { min = '1s', max = '9s' } }
        [on.retryable]
        max_attempts = 3
    ";

    const ADAPTIVE: &str = "target = { http = { url = 'http://h/' } }\nconcurrency = { max = 9, min = 3, adaptive = false }\n";

    const BREAKER: &str = "target = { http = { url = 'http://h/' } }\nbreaker = { failure_rate = 0.25, slow_call = '5s', slow_rate = 0.9, window = '1m', min_calls = 5, open = '1s', probes = 1, slow_start = '0s' }\n";

    fn read(text: &str, variables: &[(&str, &str)]) -> Result<Config, Error> {
        let variables = variables
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        let source = Source::text("retide.toml", text.to_owned())?.overlay(variables)?;
        Config::from_source(&source, &Overrides::default())
    }

    fn refusal(text: &str, variables: &[(&str, &str)]) -> String {
        read(text, variables).expect_err("refused").to_string()
    }

    #[test]
    fn what_is_written_is_in_force() {
        let config = read(
            r#"
            [kafka]
            bootstrap.servers = "kafka-1:9092"
            "security.protocol" = "SASL_SSL"
            [kafka.consumer]
            session.timeout.ms = 10000
            [topics]
            prefix = "again"
            tiers = ["now", "10s", "1h"]
            events = { enabled = false }
            [topics.callbacks]
            format = "avro"
            [processor]
            guarantee = "at_least_once"
            commit_interval = "50ms"
            memory_limit = "64MiB"
            [admin]
            listen = "127.0.0.1:9464"
            [scenes.payment]
            target = { http = { url = "https://shop.example/paid", timeout = "5s" } }
            backoff = { exponential = { first = "1s", factor = 2.0, max = "1h" } }
            jitter = "equal"
            max_attempts = 16
            deadline = "24h"
            rate = { limit = 100, per = "1s", burst = 20 }
            concurrency = 64
            breaker = {}
            callback = { target = { http = { url = "https://shop.example/retry-ended" } }, on = ["delivered", "dead", "expired"] }
            "#,
            &[],
        )
        .unwrap();

        assert_eq!(config.kafka.bootstrap(), "kafka-1:9092");
        let consumer = config.kafka.consumer();
        assert_eq!(consumer.get("session.timeout.ms"), Some("10000"));
        assert_eq!(consumer.get("security.protocol"), Some("SASL_SSL"));
        assert_eq!(config.kafka.producer().get("session.timeout.ms"), None);
        assert_eq!(consumer.get("fetch.wait.max.ms"), Some("100"));
        assert_eq!(config.topics.tiers.tiers().len(), 3);
        assert_eq!(config.topics.callbacks.format, Format::Avro);
        assert_eq!(config.topics.alerts.format, Format::Json);
        assert_eq!(config.topics.scenes.format, Format::Avro);
        assert_eq!(config.topics.events.format, Format::Avro);
        assert!(!config.topics.events.enabled);
        assert_eq!(config.processor.guarantee, Guarantee::AtLeastOnce);
        assert_eq!(config.processor.memory_limit, 64 << 20);
        assert!(config.scenes.contains_key("payment"));
    }

    #[test]
    fn schemas_are_read_when_the_configuration_is() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            let path = folder.path().join(name);
            fs::write(&path, text).unwrap();
            path.to_str().unwrap().to_owned()
        };
        let good = file(
            "good.avsc",
            r#"{"type": "record", "name": "RetryTask", "fields": []}"#,
        );
        let bad = file("bad.avsc", "{");
        let known = |text: &str| read(text, &[]).map(|config| config.topics.tasks.schemas);
        let refused = |text: &str| refusal(text, &[]);

        let schemas = known(&format!(
            "[schemas]\nids = {{ 7 = 'RetryTask', 8 = '{good}' }}\nfiles = ['{good}']\n"
        ));

        let schemas = schemas.unwrap();
        assert_eq!(schemas.meaning(Key::Id(7)), Some(Meaning::Own));
        assert!(matches!(
            schemas.meaning(Key::Id(8)),
            Some(Meaning::Writer(_))
        ));
        assert_eq!(schemas.meaning(Key::Id(9)), None);
        assert!(!schemas.may_ask(Key::Id(9)));
        let registry = "[schemas]\nregistry = 'http://localhost:8081'\n";
        assert!(known(registry).unwrap().may_ask(Key::Id(9)));
        assert_eq!(
            refused(&format!("[schemas]\nids = {{ 7 = '{bad}' }}\n")),
            format!(
                "retide.toml:2:9: schemas.ids.7: {bad} is no Avro schema: no JSON: EOF while parsing an object at line 1 column 1"
            )
        );
        for (text, says) in [
            ("ids = { seven = 'RetryTask' }", "expected the number"),
            ("ids = { 7 = 'nowhere.avsc' }", "cannot read nowhere.avsc"),
            ("registry = 'localhost:8081'", "expected http://"),
            ("registry = 'http://a:b@h/'", "`username`"),
            ("token = 'x'", "set `registry` as well"),
            ("registry = 'http://h/'\nusername = 'x'", "go together"),
            ("registry = 'https://h/'\ntls = 'bank'", "bank"),
            ("registri = 'http://h/'", "registry"),
        ] {
            let refused = refused(&format!("[schemas]\n{text}\n"));
            assert!(refused.contains(says), "{refused}");
        }
        let by_variable = [("RETIDE__SCHEMAS__IDS__7", "RetryTask")];
        let config = read("", &by_variable).unwrap();
        let schemas = config.topics.tasks.schemas;
        assert_eq!(schemas.meaning(Key::Id(7)), Some(Meaning::Own));
    }

    #[test]
    fn a_frame_with_a_number_needs_a_number() {
        let reports = |text: &str| {
            let text = format!("[topics]\ncallbacks = {{ format = 'avro', {text} }}\n");
            read(&text, &[]).map(|config| config.topics.callbacks)
        };

        let given = reports("framing = 'confluent', schema_id = 12").unwrap();

        assert_eq!(
            (given.framing, given.schema_id),
            (Frame::Confluent, Some(12))
        );
        let refused = reports("framing = 'confluent'").unwrap_err().to_string();
        assert!(
            refused.contains("topics.callbacks.framing: set `schema_id`"),
            "{refused}"
        );
        let refused = reports("schema_id = 12").unwrap_err().to_string();
        assert!(refused.contains("topics.callbacks.schema_id"), "{refused}");
        let json = "[topics]\nalerts = { framing = 'confluent', schema_id = 1 }\n";
        assert!(refusal(json, &[]).contains("topics.alerts.framing"));
    }

    #[test]
    fn a_number_of_the_client_with_a_unit_is_refused_where_it_stands() {
        for (text, place) in [
            (
                "[kafka]\nacks = 'all'\nsession.timeout.ms = '10s'\n",
                "3:17",
            ),
            ("[kafka]\n\"session.timeout.ms\" = '10s'\n", "2:1"),
            ("[kafka.consumer]\nsession.timeout.ms = '10s'\n", "2:17"),
        ] {
            let consumer = if text.contains("consumer") {
                "consumer."
            } else {
                ""
            };
            assert_eq!(
                refusal(text, &[]),
                format!(
                    "retide.toml:{place}: kafka.{consumer}session.timeout.ms: expected a whole number of milliseconds, found \"10s\"; \
                     write 10000"
                )
            );
        }
    }

    #[test]
    fn a_mistake_is_named_with_its_place_and_what_was_expected() {
        let scene = "[scenes.a]\ntarget = { http = { url = 'http://h/' } }\n";
        let with = |line: &str| format!("{scene}{line}\n");

        for (text, expected) in [
            (
                "[topics]\nprefx = 'a'".to_owned(),
                "retide.toml:2:1: topics.prefx: unknown key `prefx`; did you mean `prefix`?",
            ),
            (
                "[processor]\nworkers = 0".to_owned(),
                "retide.toml:2:1: processor.workers: invalid value: integer `0`, expected a whole number of at least 1",
            ),
            (
                "[processor]\ncommit_interval = 5".to_owned(),
                "retide.toml:2:1: processor.commit_interval: invalid type: integer `5`, expected a duration with its unit, such as \"5s\" or \"24h\"",
            ),
            (
                with("backoff = { exponential = { first = '1s', factor = 0.5, max = '1h' } }"),
                "retide.toml:3:43: scenes.a.backoff.exponential.factor: expected a number of at least 1, found `0.5`",
            ),
            (
                with("max_atempts = 3"),
                "retide.toml:3:1: scenes.a.max_atempts: unknown key `max_atempts`; did you mean `max_attempts`?",
            ),
            (
                with("backoff = { expnential = {} }"),
                "retide.toml:3:1: scenes.a.backoff: unknown value `expnential`; did you mean `exponential`?",
            ),
            (
                with("rate = { limit = 0 }"),
                "retide.toml:3:10: scenes.a.rate.limit: invalid value: integer `0`, expected a whole number of at least 1",
            ),
            (
                "[scenes.a]\nmax_attempts = 3".to_owned(),
                "retide.toml:1:9: scenes.a: missing key `target`",
            ),
            (
                "[scenes.a]\ntarget = { http = { url = 'ftp://h/' } }".to_owned(),
                "retide.toml:2:21: scenes.a.target.http.url: http target: url scheme ftp is neither http nor https",
            ),
            (
                "[kafka]\ngroup.id = 'x'".to_owned(),
                "retide.toml:2:7: kafka.group.id: `group.id` is set by retide: set `group` in [processor]",
            ),
            (
                "[topics]\ntiers = ['5s']".to_owned(),
                "retide.toml:2:1: topics.tiers: the first tier must be `now`",
            ),
        ] {
            assert_eq!(refusal(&text, &[]), expected);
        }
    }

    #[test]
    fn waits_that_could_not_be_scheduled_are_refused_with_their_place() {
        let scene = "[scenes.a]\ntarget = { http = { url = 'http://h/' } }\n";
        let with = |line: &str| format!("{scene}{line}\n");

        for (text, expected) in [
            (
                with("backoff = { random = { min = '5s', max = '1s' } }"),
                "retide.toml:3:36: scenes.a.backoff.random.max: expected a duration of at least `min`",
            ),
            (
                with("backoff = { fixed = { delay = '-1s' } }"),
                "retide.toml:3:23: scenes.a.backoff.fixed.delay: `-1s` is no duration such as `5s`, `1h 30m` or `24h` (units are `ms`, `s`, `m`, `h` and `d`)",
            ),
            (
                with("backoff = { levels = { delays = ['1s', '2000d'] } }"),
                "retide.toml:3:40: scenes.a.backoff.levels.delays[1]: expected a duration of at most 366 days",
            ),
            (
                with("backoff = { levels = { delays = [] } }"),
                "retide.toml:3:13: scenes.a.backoff.levels: expected either `delays`, a list of durations, or `preset`",
            ),
            (
                with("backoff = { exponential = { first = '0s', max = '1h' } }"),
                "retide.toml:3:29: scenes.a.backoff.exponential.first: expected a wait of at least 1ms",
            ),
            (
                with("backoff = { exponential = { first = '1s', factor = nan, max = '1h' } }"),
                "retide.toml:3:43: scenes.a.backoff.exponential.factor: expected a number of at least 1, found `NaN`",
            ),
            (
                with("backoff = { cron = { schedule = '0 0 30 2 *' } }"),
                "retide.toml:3:22: scenes.a.backoff.cron.schedule: a cron expression that does not fire in every year",
            ),
            (
                with("backoff = { cron = { schedule = '0 25 * * *' } }"),
                "retide.toml:3:22: scenes.a.backoff.cron.schedule: no cron expression: Component error: Number out of bounds.",
            ),
            (
                with("backoff = { cron = { schedule = '@daily', timezone = 'Europe/Berln' } }"),
                "retide.toml:3:43: scenes.a.backoff.cron.timezone: unknown time zone `Europe/Berln`; did you mean `Europe/Berlin`?",
            ),
            (
                with("backoff = { at = { times = [] } }"),
                "retide.toml:3:20: scenes.a.backoff.at.times: expected at least one time",
            ),
            (
                with(
                    "backoff = { at = { times = ['2026-12-24T09:00:00+01:00', 2026-12-24T08:00:00Z] } }",
                ),
                "retide.toml:3:58: scenes.a.backoff.at.times[1]: expected a time after the one before it",
            ),
            (
                with("backoff = { at = { times = ['tomorrow'] } }"),
                "retide.toml:3:29: scenes.a.backoff.at.times[0]: invalid value: string \"tomorrow\", expected a time with an offset such as \"2026-12-24T09:00:00+01:00\"",
            ),
            (
                with("backoff = { at = { times = [2026-12-24] } }"),
                "retide.toml:3:29: scenes.a.backoff.at.times[0]: invalid value: string \"2026-12-24\", expected a time with an offset such as \"2026-12-24T09:00:00+01:00\"",
            ),
        ] {
            assert_eq!(refusal(&text, &[]), expected);
        }
    }

    #[test]
    fn what_says_two_things_or_nothing_is_refused_with_its_place() {
        let scene = "[scenes.a]\ntarget = { http = { url = 'http://h/' } }\n";
        let with = |line: &str| format!("{scene}{line}\n");

        for (text, expected) in [
            (
                "[scenes.a.target.http]\nurl = 'http://h/'\nretryable = [404, 409]\npermanent = [\n  410,\n  409,\n]".to_owned(),
                "retide.toml:6:3: scenes.a.target.http.permanent[1]: http target: 409 stands in `retryable`, too",
            ),
            (
                "[scenes.a.target.http]\nurl = 'http://h/'\nsuccess = ['timeout']".to_owned(),
                "retide.toml:3:12: scenes.a.target.http.success[0]: http target: timeout is no answer, and so no success",
            ),
            (
                "[scenes.a.target.http]\nurl = 'http://h/'\ntimeout = '2h'".to_owned(),
                "retide.toml:3:1: scenes.a.target.http.timeout: http target: expected a timeout of more than nothing, at most 1h",
            ),
            (
                with("jitter = 'decorrelated'\nbackoff = { fixed = { delay = '1s' } }"),
                "retide.toml:3:1: scenes.a.jitter: jitter `decorrelated` goes with `exponential` waits only",
            ),
            (
                with("jitter = 'full'\n[scenes.a.on.timeout]\nbackoff = { random = { min = '1s', max = '2s' } }"),
                "retide.toml:5:1: scenes.a.on.timeout.backoff: `random` waits are spread already: expected jitter `none`",
            ),
            (
                with("[scenes.a.on.throttled]"),
                "retide.toml:3:14: scenes.a.on.throttled: expected `backoff`, `jitter` or `max_attempts`",
            ),
            (
                with("[scenes.a.on.permanent]\nmax_attempts = 2"),
                "retide.toml:3:14: scenes.a.on.permanent: unknown key `permanent`; expected one of `throttled`, `timeout`, `retryable`",
            ),
            (
                with("[scenes.a.on.timeout]\nmax_attempts = 0"),
                "retide.toml:4:1: scenes.a.on.timeout.max_attempts: invalid value: integer `0`, expected a whole number of at least 1",
            ),
            (
                with("rate = { limit = 5, per = '0s' }"),
                "retide.toml:3:21: scenes.a.rate.per: expected a duration of more than nothing, at most 366 days",
            ),
            (
                with("weight = 0"),
                "retide.toml:3:1: scenes.a.weight: expected a whole number from 1 to 100",
            ),
            (
                with("weight = 101"),
                "retide.toml:3:1: scenes.a.weight: expected a whole number from 1 to 100",
            ),
            (
                with("weight = -1"),
                "retide.toml:3:1: scenes.a.weight: invalid value: integer `-1`, expected a whole number",
            ),
            (
                with("callback = { target = { kafka = { topic = 'x' } }, on = [] }"),
                "retide.toml:3:52: scenes.a.callback.on: expected at least one of `delivered`, `dead` and `expired`",
            ),
        ] {
            assert_eq!(refusal(&text, &[]), expected);
        }
    }

    #[test]
    fn a_breaker_that_means_nothing_is_refused_with_its_place() {
        let scene = "[scenes.a]\ntarget = { http = { url = 'http://h/' } }\n";

        for (breaker, expected) in [
            (
                "failure_rate = 0",
                "3:13: scenes.a.breaker.failure_rate: expected a number over 0, at most 1, found `0`",
            ),
            (
                "failure_rate = nan",
                "3:13: scenes.a.breaker.failure_rate: expected a number over 0, at most 1, found `NaN`",
            ),
            (
                "slow_call = '1s', slow_rate = 80",
                "3:31: scenes.a.breaker.slow_rate: expected a number over 0, at most 1, found `80`",
            ),
            (
                "slow_rate = 0.5",
                "3:13: scenes.a.breaker.slow_rate: `slow_rate` goes with `slow_call`, which says what is slow",
            ),
            (
                "slow_call = '0s'",
                "3:13: scenes.a.breaker.slow_call: expected a duration of 1ms to 1h",
            ),
            (
                "window = '1ms'",
                "3:13: scenes.a.breaker.window: expected a duration of 100ms to 1h",
            ),
            (
                "min_calls = 0",
                "3:13: scenes.a.breaker.min_calls: expected a number of 1 to 1000000, found `0`",
            ),
            (
                "open = '2h'",
                "3:13: scenes.a.breaker.open: expected a duration of 100ms to 1h",
            ),
            (
                "probes = 5000",
                "3:13: scenes.a.breaker.probes: expected a number of 1 to 1000, found `5000`",
            ),
            (
                "slow_start = '61m'",
                "3:13: scenes.a.breaker.slow_start: expected a duration of 0s to 1h",
            ),
            (
                "widow = '1s'",
                "3:13: scenes.a.breaker.widow: unknown key `widow`; did you mean `window`?",
            ),
        ] {
            let text = format!("{scene}breaker = {{ {breaker} }}");
            assert_eq!(refusal(&text, &[]), format!("retide.toml:{expected}"));
        }
        let topic = "[scenes.a]\ntarget = { kafka = { topic = 'x' } }\nbreaker = {}";
        assert_eq!(
            refusal(topic, &[]),
            "retide.toml:3:1: scenes.a.breaker: a breaker goes with a target that is called, such as `http`"
        );
    }

    #[test]
    fn a_concurrency_is_a_number_or_bounds() {
        let of = |concurrency: &str| {
            let text = format!(
                "target = {{ http = {{ url = 'http://h/' }} }}\nconcurrency = {concurrency}"
            );
            let scene = rules("a", text).unwrap().rules("a").unwrap();
            let least = scene.least_concurrency.map(NonZeroU32::get);
            (scene.concurrency.get(), least)
        };

        assert_eq!(of("7"), (7, None));
        assert_eq!(of("{}"), (64, Some(1)));
        assert_eq!(of("{ max = 9, min = 3 }"), (9, Some(3)));
        assert_eq!(of("{ max = 9, min = 3, adaptive = false }"), (9, None));
        let scene = "[scenes.a]\ntarget = { http = { url = 'http://h/' } }\n";
        for (concurrency, expected) in [
            (
                "0",
                "3:1: scenes.a.concurrency: invalid value: integer `0`, expected a whole number of at least 1, or `{ max, min, adaptive, of }`",
            ),
            (
                "'many'",
                "3:1: scenes.a.concurrency: invalid type: string \"many\", expected a whole number of at least 1, or `{ max, min, adaptive, of }`",
            ),
            (
                "{ max = 0 }",
                "3:17: scenes.a.concurrency.max: invalid value: integer `0`, expected a whole number of at least 1",
            ),
            (
                "{ max = 3, min = 4 }",
                "3:26: scenes.a.concurrency.min: expected a number of at most `max`, 3, found `4`",
            ),
            (
                "{ maks = 3 }",
                "3:17: scenes.a.concurrency.maks: unknown key `maks`; did you mean `max`?",
            ),
        ] {
            let text = format!("{scene}concurrency = {concurrency}");
            assert_eq!(refusal(&text, &[]), format!("retide.toml:{expected}"));
        }
    }

    #[test]
    fn targets_have_a_breaker_each_by_the_rule_of_their_scene() {
        let of = |text: &str| rules("a", text.to_owned()).unwrap().rules("a").unwrap();
        let callback = "callback = { target = { http = { url = 'https://ended/?token=s3cret' } } }";

        let own = of(&format!(
            "target = {{ http = {{ url = 'http://h/a' }} }}\nbreaker = {{}}\n{callback}"
        ));
        let same = of("target = { http = { url = 'http://h/b' } }\nbreaker = { probes = 5 }");
        let other = of("target = { http = { url = 'http://h/b' } }\nbreaker = { probes = 6 }");
        let topic = of(&format!(
            "target = {{ kafka = {{ topic = 'x' }} }}\nbreaker = {{}}\n{callback}"
        ));
        let none = of(&format!(
            "target = {{ http = {{ url = 'http://h/a' }} }}\n{callback}"
        ));

        let key = own.breaker.clone().unwrap();
        assert_eq!(key.target.target(), "http://h:80");
        assert_eq!(own.breaker, same.breaker);
        assert_ne!(own.breaker, other.breaker);
        let key = own.callback.unwrap().breaker.unwrap();
        assert_eq!(key.target.target(), "https://ended:443");
        assert_eq!(topic.breaker, None);
        assert_eq!(topic.callback.unwrap().breaker, Some(key));
        assert_eq!((none.breaker, none.callback.unwrap().breaker), (None, None));
    }

    #[test]
    fn a_limit_may_be_that_of_a_host_that_is_called() {
        let of = |text: &str| rules("a", text.to_owned()).unwrap().rules("a").unwrap();
        let target = "target = { http = { url = 'http://h/a' } }";

        let own = of(&format!("{target}\nrate = {{ limit = 9 }}"));
        let common = of(&format!("{target}\nrate = {{ limit = 9, of = 'host' }}"));
        let text =
            "[scenes.a]\ntarget = { kafka = { topic = 'x' } }\nrate = { limit = 9, of = 'host' }";

        let calls = of(&format!(
            "{target}\nconcurrency = {{ max = 8, adaptive = false, of = 'host' }}"
        ));

        assert_eq!((&**own.rate_of(), own.concurrency_of()), ("a", None));
        assert_eq!(&**common.rate_of(), "http://h:80");
        assert_eq!(common.concurrency_of(), None);
        assert_eq!(&**calls.rate_of(), "a");
        assert_eq!(
            calls.concurrency_of().map(|host| &**host),
            Some("http://h:80")
        );
        assert_eq!(
            (calls.concurrency.get(), calls.least_concurrency),
            (8, None)
        );
        assert_eq!(own.rate, common.rate);
        assert_eq!(
            refusal(text, &[]),
            "retide.toml:3:21: scenes.a.rate.of: a limit of the host goes with a target that is called, such as `http`"
        );
    }

    #[test]
    fn durations_have_our_units_everywhere() {
        let scene = "[scenes.a]\ntarget = { http = { url = 'http://h/' } }\n";

        for (text, expected) in [
            (
                format!("{scene}deadline = '30M'"),
                "retide.toml:3:1: scenes.a.deadline: `30M` is no duration; did you mean `30m`?",
            ),
            (
                format!("{scene}backoff = {{ levels = {{ delays = ['5s', '30 min'] }} }}"),
                "retide.toml:3:40: scenes.a.backoff.levels.delays[1]: `30 min` is no duration; did you mean `30m`?",
            ),
            (
                format!("{scene}rate = {{ limit = 1, per = 'PT5M' }}"),
                "retide.toml:3:21: scenes.a.rate.per: `PT5M` is no duration; did you mean `5m`?",
            ),
            (
                "[scenes.a.target.http]\nurl = 'http://h/'\ntimeout = '5M'".to_owned(),
                "retide.toml:3:1: scenes.a.target.http.timeout: `5M` is no duration; did you mean `5m`?",
            ),
            (
                "[processor]\nunknown_scene_hold = '1w'".to_owned(),
                "retide.toml:2:1: processor.unknown_scene_hold: `1w` is no duration; did you mean `7d`?",
            ),
            (
                "[processor]\ndrain_deadline = '10'".to_owned(),
                "retide.toml:2:1: processor.drain_deadline: `10` has no unit",
            ),
            (
                format!("{scene}backoff = {{ fixed = {{ delay = '0s' }} }}"),
                "retide.toml:3:23: scenes.a.backoff.fixed.delay: expected a wait of at least 1ms",
            ),
        ] {
            let message = refusal(&text, &[]);
            assert!(message.starts_with(expected), "{message}");
        }
    }

    #[test]
    fn what_runs_would_refuse_of_the_clients_properties_is_refused_at_once() {
        for (text, expected) in [
            (
                "[kafka]\nclient.id = 'x'\nacks = 1",
                "retide.toml:3:1: kafka.acks: `acks` must be set to `all`",
            ),
            (
                "[kafka.producer]\nretries = 0",
                "retide.toml:2:1: kafka.producer.retries: ",
            ),
            (
                "[kafka]\n\nbootstrap.server = 'h:1'",
                "retide.toml:3:11: kafka.bootstrap.server: `bootstrap.server` is no property of the Kafka client; did you mean `bootstrap.servers`?",
            ),
            (
                "[kafka]\nbootstrap_servers = 'h:1'",
                "retide.toml:2:1: kafka.bootstrap_servers: `bootstrap_servers` is no property of the Kafka client; did you mean `bootstrap.servers`?",
            ),
            (
                "[kafka]\n[kafka.consumer]\n'group.id' = 'x'",
                "retide.toml:3:1: kafka.consumer.group.id: `group.id` is set by retide: set `group` in [processor]",
            ),
            (
                "[processor]\nmemory_limit = '1MiB'",
                "retide.toml:2:1: processor.memory_limit: expected at least 16MiB, found 1MiB",
            ),
        ] {
            let message = refusal(text, &[]);
            assert!(message.starts_with(expected), "{message}");
        }
        assert!(read("[kafka]\nacks = 'all'\nlinger.ms = 3", &[]).is_ok());
    }

    #[test]
    fn what_somebody_meant_to_be_replaced_is_refused_with_the_way_that_works() {
        let header = |value: &str| {
            format!(
                "[scenes.pay.target.http]\nurl = 'http://h/'\nheaders = {{ authorization = '{value}' }}"
            )
        };

        let message = refusal(&header("Bearer ${TOKEN}"), &[]);
        assert!(
            message.starts_with("retide.toml:3:13: scenes.pay.target.http.headers.authorization: `${TOKEN}` is not replaced"),
            "{message}"
        );
        assert!(
            message.contains("`authorization = { env = \"TOKEN\", prefix = \"Bearer \" }`"),
            "{message}"
        );
        for value in ["$TOKEN", "$(TOKEN)", "{{ token }}", "Bearer <masked>"] {
            read(&header(value), &[]).unwrap_err();
        }
        for value in ["pa$word", "Bearer abc$", "50$", "a${"] {
            assert_eq!(read(&header(value), &[]).is_ok(), value != "a${", "{value}");
        }
        let url = refusal(
            "[scenes.Pay]\ntarget = { http = { url = 'http://${HOST}/' } }",
            &[],
        );
        assert!(
            url.contains("RETIDE__SCENES__Pay__TARGET__HTTP__URL"),
            "{url}"
        );
        let password = refusal("[kafka]\nsasl.password = '${PASSWORD}'", &[]);
        assert!(
            password.contains("RETIDE__KAFKA__SASL_PASSWORD_FILE"),
            "{password}"
        );
        assert!(read("[processor]\ninstance_id = '${HOSTNAME}'", &[]).is_ok());
        assert!(read("", &[("RETIDE__KAFKA__SASL_PASSWORD", "a${b}")]).is_ok());
        let file = refusal(
            "[scenes.a]\ntarget = { http = { url = 'http://h/', headers = { authorization_FILE = '/run/tok' } } }",
            &[],
        );
        assert!(
            file.contains("did you mean `authorization = { file = \"…\" }`?"),
            "{file}"
        );
    }

    #[test]
    fn variables_keep_the_names_of_scenes_and_are_text_where_text_is_wanted() {
        let text = "[scenes.OrderPaid]\ntarget = { http = { url = 'http://h/', headers = { X-Api-Version = '1' } } }\n";
        for name in ["OrderPaid", "ORDERPAID", "orderpaid"] {
            let config = read(
                text,
                &[(&format!("RETIDE__SCENES__{name}__MAX_ATTEMPTS"), "3")],
            )
            .unwrap();
            assert_eq!(config.scenes["OrderPaid"].max_attempts.get(), 3);
            assert_eq!(config.scenes.len(), 1);
        }
        let config = read(
            text,
            &[
                ("RETIDE__PROCESSOR__GROUP", "2024"),
                ("RETIDE__TOPICS__PREFIX", "007"),
                (
                    "RETIDE__SCENES__OrderPaid__TARGET__HTTP__HEADERS__X_API_VERSION",
                    "2",
                ),
                (
                    "RETIDE__SCENES__OrderPaid__TARGET__HTTP__HEADERS__X_ON",
                    "true",
                ),
            ],
        )
        .unwrap();
        assert_eq!(
            (&*config.processor.group, &*config.topics.prefix),
            ("2024", "007")
        );
        let written = toml::to_string(&config.scenes["OrderPaid"]).unwrap();
        assert!(
            written.contains("X-Api-Version = \"2\"") && written.contains("x-on = \"true\""),
            "{written}"
        );

        let missing = refusal("", &[("RETIDE__SCENES__Pay__MAX_ATTEMPTS", "3")]);
        assert_eq!(
            missing,
            "RETIDE__SCENES__Pay__MAX_ATTEMPTS: scenes.Pay: missing key `target`"
        );
        let both = "[scenes.Pay]\ntarget.kafka.topic = 'x'\n[scenes.PAY]\ntarget.kafka.topic = 'x'";
        let unclear = refusal(both, &[("RETIDE__SCENES__pay__WEIGHT", "3")]);
        assert!(
            unclear.starts_with("RETIDE__SCENES__pay__WEIGHT: `pay` may be `PAY` or `Pay`"),
            "{unclear}"
        );
        let once = source::misnamed(
            [
                "RETIDE_KAFKA_BOOTSTRAP_SERVERS",
                "RETIDE_SERVICE_HOST",
                "RETIDE_LOG",
            ]
            .into_iter(),
        );
        assert_eq!(once.len(), 1);
        assert!(
            once[0].contains("did you mean RETIDE__KAFKA__BOOTSTRAP_SERVERS?"),
            "{once:?}"
        );
    }

    #[test]
    fn every_mistake_is_told() {
        let text = "[scenes.a]\r\ntarget = { http = { url = 'http://h/', tmeout = '1s', timeout = '5M' } }\r\nmax_attempts = 0\r\ndeadline = '0s'\r\nweight = 0\r\n[scenes.b]\r\nwieght = 2\r\n[processor]\r\nworkers = 'x'\r\n";

        let message = refusal(text, &[]);

        let lines: Vec<&str> = message.lines().collect();
        for (line, expected) in lines.iter().zip([
            "retide.toml:2:40: scenes.a.target.http.tmeout: ",
            "retide.toml:2:55: scenes.a.target.http.timeout: ",
            "retide.toml:3:1: scenes.a.max_attempts: ",
            "retide.toml:4:1: scenes.a.deadline: ",
            "retide.toml:5:1: scenes.a.weight: ",
            "retide.toml:6:9: scenes.b: missing key `target`",
            "retide.toml:7:1: scenes.b.wieght: ",
            "retide.toml:9:1: processor.workers: ",
        ]) {
            assert!(line.starts_with(expected), "{message}");
        }
        assert_eq!(lines.len(), 8, "{message}");
    }

    #[test]
    fn a_file_begins_with_a_mark_or_not() {
        assert!(Source::text("f", "\u{feff}[topics]\r\nprefix = 'x'\r\n".to_owned()).is_ok());
    }

    #[test]
    fn each_key_is_shown_with_its_default_and_where_it_was_read() {
        let text = "[processor]\nworkers = 2\n[kafka]\nsasl.password = 's3cret'\n[scenes.a]\ntarget = { http = { url = 'http://h/', headers = { authorization = 's3cret' } } }\n";
        let source = Source::text("retide.toml", text.to_owned()).unwrap();
        let source = source
            .overlay([("RETIDE__PROCESSOR__GROUP".to_owned(), "g".to_owned())])
            .unwrap();
        let overrides = Overrides {
            bootstrap: Some("h:1".to_owned()),
            prefix: None,
        };
        let config = Config::from_source(&source, &overrides).unwrap();

        let shown = keys::shown(&config, &source, &overrides);

        let of = |key: &str| {
            let shown = shown.iter().find(|shown| shown.key == key).unwrap();
            (shown.value.as_str(), shown.origin.as_str())
        };
        assert_eq!(of("processor.workers"), ("2", "retide.toml:2"));
        assert_eq!(of("processor.group"), ("\"g\"", "RETIDE__PROCESSOR__GROUP"));
        assert_eq!(of("kafka.bootstrap.servers"), ("\"h:1\"", "--bootstrap"));
        assert_eq!(of("topics.partitions"), ("12", "default"));
        assert_eq!(
            of("kafka.sasl.password"),
            ("\"<masked>\"".trim_matches('"'), "retide.toml:4")
        );
        assert_eq!(of("scenes.a.max_attempts"), ("16", "default"));
        assert!(!format!("{shown:?}").contains("s3cret"));
        let defaults = keys::shown(
            &Config::default(),
            &Source::default(),
            &Overrides::default(),
        );
        for key in keys::PROCESS {
            let shown = defaults.iter().find(|shown| shown.key == key.name);
            assert_eq!(
                shown.map(|shown| shown.value.as_str()),
                Some(key.default),
                "{}",
                key.name
            );
        }
    }

    /// The rows of all tables of keys on a page of the docs.
    fn rows_of_keys(page: &str) -> Vec<String> {
        let file = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("docs")
            .join(page);
        let text = fs::read_to_string(file).unwrap();
        let mut rows = Vec::new();
        let mut inside = false;
        for line in text.lines() {
            inside = line.starts_with('|') && (inside || line == KEYS);
            if inside && line.starts_with("| `") {
                rows.push(line.to_owned());
            }
        }
        rows
    }

    /// The head of a table of keys.
    const KEYS: &str = "| key | type | default | bounds | what it says |";

    #[test]
    fn the_docs_list_every_key_and_no_other() {
        let row = |key: &keys::Key| {
            let keys::Key {
                name,
                kind,
                default,
                bounds,
                meaning,
            } = key;
            let default = match *default {
                "none" => "none".to_owned(),
                default => format!("`{default}`"),
            };
            format!("| `{name}` | {kind} | {default} | {bounds} | {meaning} |")
        };
        let mut pages: BTreeMap<&str, Vec<String>> = BTreeMap::new();
        for section in keys::SECTIONS {
            pages
                .entry(section.page)
                .or_default()
                .extend(section.keys.iter().map(row));
        }
        for (page, rows) in pages {
            let (mut listed, mut known) = (rows_of_keys(page), rows.clone());
            listed.sort();
            known.sort();
            assert_eq!(
                listed,
                known,
                "docs/{page} is to list\n{KEYS}\n{}",
                rows.join("\n")
            );
        }
    }

    /// The keys that a table of this type has, as its refusal of another one names them.
    fn fields<T: serde::de::DeserializeOwned>() -> Vec<String> {
        let table = Table::from_iter([("no-key".to_owned(), Value::from(1))]);
        let refused = T::deserialize(table).err().unwrap().to_string();
        let (_, expected) = refused.split_once("expected ").unwrap();
        let names = expected.split('`').skip(1).step_by(2);
        names.map(str::to_owned).collect()
    }

    #[test]
    fn the_keys_of_the_docs_are_those_that_are_read() {
        let below = |table: &str, fields: Vec<String>| -> Vec<String> {
            let fields = fields.iter();
            fields.map(|field| format!("{table}.{field}")).collect()
        };
        let tables = [
            below("topics.tasks", fields::<Intake>()),
            below("topics.callbacks", fields::<Reports>()),
            below("topics.alerts", fields::<Reports>()),
            below("topics.events", fields::<Events>()),
            below("topics.scenes", fields::<SceneRecords>()),
        ]
        .concat();
        let mut process = [
            below("topics", fields::<Topics>()),
            below("processor", fields::<Processor>()),
            below("admin", fields::<Admin>()),
            below("egress", fields::<egress::Config>()),
            below("schemas", fields::<Schemas>()),
            below("secrets", fields::<secret::Config>()),
        ]
        .concat();
        process.retain(|key| {
            !tables
                .iter()
                .any(|below| below.starts_with(&format!("{key}.")))
        });
        process.extend(tables);
        let read = [
            ("", process),
            ("tls.NAME", fields::<tls::Config>()),
            ("scenes.NAME", fields::<Scene>()),
            (
                "scenes.NAME.target.http",
                fields::<retide_connectors::http::Config>(),
            ),
            (
                "scenes.NAME.target.kafka",
                fields::<retide_connectors::kafka::Config>(),
            ),
            ("scenes.NAME.rate", fields::<scene::Rate>()),
            ("scenes.NAME.concurrency", fields::<concurrency::Bounds>()),
            ("scenes.NAME.breaker", fields::<breaker::Breaker>()),
            ("scenes.NAME.callback", fields::<scene::Callback>()),
        ];
        assert_eq!(read.len(), keys::SECTIONS.len());
        for (section, (name, mut read)) in keys::SECTIONS.iter().zip(read) {
            assert_eq!(section.name, name);
            // Properties of Kafka's client are no table of ours.
            let known = section.keys.iter().map(|key| key.name);
            let known = known.filter(|name| !name.starts_with("kafka."));
            let mut known: Vec<String> = known.map(str::to_owned).collect();
            known.sort();
            read.sort();
            assert_eq!(known, read, "[{name}]");
        }
        let sections = "egress kafka admin processor scenes schemas secrets tls topics";
        let mut all = fields::<Config>();
        all.sort();
        let mut sections: Vec<&str> = sections.split(' ').collect();
        sections.sort_unstable();
        assert_eq!(all, sections, "a section that no page names");
    }

    #[test]
    fn the_defaults_of_the_docs_are_those_in_force() {
        let base = "target = { http = { url = 'http://h/' } }\n";
        let scene = |text: &str| rules("a", format!("{base}{text}")).unwrap();
        let section = |name: &str| {
            keys::SECTIONS
                .iter()
                .find(|section| section.name == name)
                .unwrap()
                .keys
        };
        let written = |name: &str| section(name).iter().filter(|key| key.default != "none");

        for key in written("scenes.NAME") {
            let same = scene(&format!("{} = {}", key.name, key.default));
            assert_eq!(same, scene(""), "{}", key.name);
        }
        for key in written("scenes.NAME.target.http") {
            let same = format!(
                "target = {{ http = {{ url = 'http://h/', {} = {} }} }}",
                key.name, key.default
            );
            // How long connections live is decided where they are made.
            let is_later = ["idle_timeout", "max_age"].contains(&key.name);
            assert!(
                is_later || rules("a", same).unwrap() == scene(""),
                "{}",
                key.name
            );
        }
        for (table, needed) in [
            ("rate", "limit = 1"),
            ("concurrency", ""),
            ("breaker", "slow_call = '1s'"),
            ("callback", "target = { http = { url = 'http://h/' } }"),
        ] {
            let rules_of = |text: &str| {
                let scene = scene(&format!("[{table}]\n{needed}\n{text}"));
                scene.rules("a").unwrap()
            };
            for key in written(&format!("scenes.NAME.{table}")) {
                let same = rules_of(&format!("{} = {}", key.name, key.default));
                assert_eq!(same, rules_of(""), "{table}.{}", key.name);
            }
        }
    }

    #[test]
    fn syntax_errors_have_a_place() {
        let message = refusal("[topics]\nprefix = \n", &[]);

        assert!(message.starts_with("retide.toml:2:"), "{message}");
    }

    #[test]
    fn a_variable_goes_before_the_file_and_is_named_in_errors() {
        let text = "[processor]\nworkers = 2\n";
        let config = read(
            text,
            &[
                ("RETIDE__PROCESSOR__WORKERS", "3"),
                ("RETIDE__KAFKA__BOOTSTRAP_SERVERS", "b:1"),
                ("RETIDE__TOPICS__PREFIX", "other"),
                ("UNRELATED", "x"),
            ],
        )
        .unwrap();

        assert_eq!(config.processor.workers.get(), 3);
        assert_eq!(config.kafka.bootstrap(), "b:1");
        assert_eq!(config.topics.prefix, "other");
        assert_eq!(
            refusal(text, &[("RETIDE__PROCESSOR__WORKRS", "3")]),
            "RETIDE__PROCESSOR__WORKRS: processor.workrs: unknown key `workrs`; did you mean `workers`?"
        );
        assert_eq!(
            refusal(text, &[("RETIDE__PROCESSOR__WORKERS", "many")]),
            "RETIDE__PROCESSOR__WORKERS: processor.workers: invalid type: string \"many\", expected a whole number of at least 1"
        );
    }

    #[test]
    fn a_variable_can_name_a_file_with_a_secret() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), "s3cret\n").unwrap();
        let name = "RETIDE__KAFKA__SASL_PASSWORD_FILE";

        let config = read("", &[(name, file.path().to_str().unwrap())]).unwrap();

        let client = config.kafka.client();
        assert_eq!(client.get("sasl.password"), Some("s3cret"));
        assert!(!format!("{config:?}").contains("s3cret"));
        let refused = refusal("", &[(name, "/nowhere")]);
        assert_eq!(refused, format!("read /nowhere, named by {name},"));
    }

    #[test]
    fn no_error_shows_a_secret() {
        for text in [
            "[kafka]\nsasl.password = ['s3cret']",
            "[kafka]\nsecurity.protocol = 's3cret'",
            "[kafka]\nno.such.property = 's3cret'",
            "[scenes.a]\ntarget = { http = { url = 'http://h/', headers = { authorization = [\"s3cret\"] } } }",
            "[scenes.a]\ntarget = { http = { url = 'http://h/', headers = \"s3cret\" } }",
        ] {
            let message = refusal(text, &[]);

            assert!(!message.contains("s3cret"), "{message}");
        }
    }

    #[test]
    fn a_scene_is_over_when_its_last_time_has_passed() {
        let over = |text: &str, now: &str| {
            let scene = rules("a", text.to_owned()).unwrap();
            scene.is_over(Timestamp::from_rfc3339(now).unwrap())
        };

        assert!(!over(POINTS, "2026-12-31T00:00:00Z"));
        assert!(over(POINTS, "2027-01-01T00:00:01Z"));
        assert!(!over(SCENE, "2027-01-01T00:00:01Z"));
        let class = format!(
            "{SCENE}on = {{ timeout = {{ backoff = {{ at = {{ times = [2026-01-01T00:00:00Z] }} }} }} }}"
        );
        assert!(over(&class, "2027-01-01T00:00:01Z"));
    }

    #[test]
    fn what_a_class_of_failures_leaves_out_is_as_in_the_scene() {
        let core = rules("a", CLASSES.to_owned()).unwrap().rules("a").unwrap();

        let [throttled, timeout, retryable] =
            [core.on.throttled, core.on.timeout, core.on.retryable].map(|policy| policy.unwrap());
        assert_eq!(throttled.jitter, Jitter::Decorrelated);
        assert_eq!(throttled.max_attempts.get(), 9);
        assert!(matches!(timeout.backoff, Backoff::Random { .. }));
        assert_eq!(retryable.backoff, core.policy.backoff);
        assert_eq!(retryable.max_attempts.get(), 3);
    }

    #[test]
    fn a_scene_survives_being_written_and_read() {
        for text in [SCENE, POINTS, CLASSES, BREAKER, ADAPTIVE] {
            let scene = rules("a", text.to_owned()).unwrap();

            let written = toml::to_string(&scene).unwrap();

            assert_eq!(rules("a", written).unwrap(), scene);
            // As a file in JSON, which is what `export` prints, too.
            let json = serde_json::to_string(&scene).unwrap();
            assert_eq!(serde_json::from_str::<Scene>(&json).unwrap(), scene);
        }
    }
}
