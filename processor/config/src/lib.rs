//! The configuration: `retide.toml`, environment variables over it, and what they mean.
//!
//! | module | what |
//! |---|---|
//! | [`source`] | files and variables, and errors with their places |
//! | [`scene`] | the rules of a scene |
//! | [`schemas`] | the schemas of other writers |
//! | [`breaker`] | when its target is left alone |
//! | [`concurrency`] | how many of its calls are in flight |
//! | [`duplicates`] | what becomes of a task whose id another one has |
//! | [`foreign`] | topics with dead letters of others |
//! | [`instance`] | what a process is called in its group, where that is written with variables |
//! | [`kafka`] | how Kafka is reached |
//! | [`secrets`] | what must not be shown |
//! | [`keys`] | each key with its default, what is in force, and from where |
//! | `number`, [`property`] | the properties of Kafka's client, and numbers among them |
//! | `former` | scenes as older versions wrote them |
//! | `text` | durations, sizes and addresses |
//!
//! Invariant: a [`Config`] that exists is valid but for what only a broker or a target can tell.

pub mod breaker;
pub mod concurrency;
pub mod duplicates;
pub mod foreign;
mod former;
pub mod instance;
pub mod kafka;
pub mod keys;
mod number;
pub mod property;
pub mod scene;
pub mod schemas;
pub mod secrets;
pub mod source;
#[cfg(test)]
mod tests;
mod text;

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;

use retide_avro::beside::Library;
use retide_avro::{Format, Intake};
use retide_connectors::{Outbound, egress, secret, tls};
use retide_core::command::Invocation;
use retide_core::engine::UNKNOWN_SCENE_HOLD;
use retide_core::{Ladder, with_causes};

pub use self::foreign::Foreign;
pub use self::kafka::{BOOTSTRAP, Client, Kafka};
pub use self::scene::{Exhausted, Scene};
pub use self::schemas::Schemas;
pub use self::source::Error;

pub use self::text::rfc3339;

pub use self::source::Source;

/// The file that is read when none is named, if it is there.
pub const FILE: &str = "retide.toml";

/// Most scenes, and targets with a breaker, with series of their own unless it is configured otherwise: each has up to 60.
pub const SCENE_SERIES: usize = 100;

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
    /// The topics with dead letters of others whose records become tasks, by name.
    pub sources: BTreeMap<String, Foreign>,
    /// The scenes, by name; those on the scenes topic go before them.
    pub scenes: BTreeMap<String, Scene>,
    /// What the command line said of cluster and topics.
    #[serde(skip)]
    pub invocation: Invocation,
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
    /// The dead letters.
    pub dead_letters: DeadLetters,
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

/// The dead letters.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DeadLetters {
    /// Whose headers they have beside retide's.
    pub also: Also,
    /// How long before a dead letter goes that nobody has replayed people are told; nobody if it is zero.
    #[serde(deserialize_with = "text::span")]
    pub warn_before: Duration,
}

/// Whose headers dead letters have beside retide's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Also {
    /// Nobody's.
    #[default]
    None,
    /// Those of Spring for Apache Kafka.
    Spring,
    /// Those of Kafka Connect.
    Connect,
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
            scene_series: SCENE_SERIES,
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
    /// Reads `file`, or [`FILE`] if that is there, the variables, and what the command line says; `client` is asked whether it takes its
    /// properties.
    pub fn load(
        file: Option<&Path>,
        variables: impl IntoIterator<Item = (String, String)>,
        overrides: &Overrides,
        client: &dyn Client,
    ) -> Result<Self, Error> {
        Self::load_from(file, variables, overrides, client).map(|(config, _)| config)
    }

    /// The same, with where it was read.
    pub fn load_from(
        file: Option<&Path>,
        variables: impl IntoIterator<Item = (String, String)>,
        overrides: &Overrides,
        client: &dyn Client,
    ) -> Result<(Self, Source), Error> {
        let source = match file {
            Some(file) => Source::file(file)?,
            None if Path::new(FILE).exists() => Source::file(Path::new(FILE))?,
            None => Source::default(),
        };
        let variables: Vec<(String, String)> = variables.into_iter().collect();
        let source = source.overlay(variables.iter().cloned())?;
        let mut config = Self::from_source(&source, overrides, client)?;
        if let Some((path, instance_id)) = config.instance_id_as_written() {
            let instance_id = instance::expand(&instance_id, &variables)
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
    fn problems(&self, source: &Source, client: &dyn Client) -> Vec<Error> {
        let mut wrong = source.literals();
        wrong.extend(check_scenes(source, &self.scenes));
        wrong.extend(self.kafka.check(source, client));
        wrong.extend(self.check_outbound(source));
        wrong.extend(self.clone().know_schemas(source).err());
        wrong.extend(check_profiles(source, &self.scenes, &self.tls));
        wrong.extend(check_deliveries(source, &self.scenes, &self.topics.prefix));
        wrong.extend(foreign::check(self, source));
        wrong
    }

    /// Puts in force what the command line says.
    fn overrule(&mut self, overrides: &Overrides) {
        self.invocation.bootstrap.clone_from(&overrides.bootstrap);
        self.invocation.prefix.clone_from(&overrides.prefix);
        if let Some(bootstrap) = &overrides.bootstrap {
            let key = "bootstrap.servers";
            self.kafka.overrule(key, bootstrap);
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
        let native = self.kafka.instance_id().map(str::to_owned);
        let (path, id) = own.or(native.map(|id| (["kafka", kafka::INSTANCE_ID], id)))?;
        Some((path.map(str::to_owned).to_vec(), id))
    }

    /// Gives what was read its meaning.
    pub fn from_source(
        source: &Source,
        overrides: &Overrides,
        client: &dyn Client,
    ) -> Result<Self, Error> {
        let mut config = source.read::<Self>().checked(|config| {
            let mut config = config.clone();
            config.overrule(overrides);
            config.problems(source, client)
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
pub fn prefix(text: &str) -> Option<String> {
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
pub fn unknown_profile<'a>(profile: &str, known: impl Iterator<Item = &'a String>) -> String {
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
            dead_letters: DeadLetters::default(),
            scenes: SceneRecords::default(),
        }
    }
}

// === impl Also ===

impl Also {
    /// Whose headers, if somebody's.
    pub const fn library(self) -> Option<Library> {
        match self {
            Self::None => None,
            Self::Spring => Some(Library::Spring),
            Self::Connect => Some(Library::Connect),
        }
    }
}

// === impl DeadLetters ===

impl Default for DeadLetters {
    fn default() -> Self {
        Self {
            also: Also::default(),
            warn_before: Duration::from_hours(24),
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
