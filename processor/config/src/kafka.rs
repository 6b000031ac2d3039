//! How Kafka is reached: properties of its client, verbatim.
//!
//! Not the client: [`Client`] is asked what it takes, so that nobody who reads a configuration has to link one. Invariant: what passes
//! the check is not refused by the client when workers start.

use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;
use toml::{Table, Value};

pub use retide_core::command::BOOTSTRAP;

use super::source::Source;
use super::{Error, number, property};

/// Properties of consumers where the user names none.
pub(super) const CONSUMER: [(&str, &str); 4] = [
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
pub(super) const INSTANCE_ID: &str = "group.instance.id";

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

/// Properties of a client, by their names.
pub type Properties = BTreeMap<String, String>;

/// What Kafka's client says of its properties.
pub trait Client {
    /// Whether the client takes a property with a value.
    fn check(&self, property: &str, value: &str) -> Result<(), Refusal>;

    /// Whether a consumer and a producer come about with these properties, which name no broker; the client's words if one does not.
    fn create(&self, consumer: &Properties, producer: &Properties) -> Result<(), String>;
}

/// Why a client does not take a property with a value. The text is the client's, which may repeat the value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// There is no such property.
    Unknown,
    /// The property is a number, and the value is none.
    NotANumber(String),
    /// The value is not one of those that the property takes.
    Value(String),
}

/// The client of those who have none: it takes everything.
#[derive(Clone, Copy, Debug)]
pub struct NoClient;

/// How Kafka is reached: properties of librdkafka, verbatim.
#[derive(Clone, Default, Deserialize)]
#[serde(try_from = "Table")]
pub struct Kafka {
    /// Of every client.
    common: Properties,
    /// Of consumers, over those of every client.
    consumer: Properties,
    /// Of producers, over those of every client.
    producer: Properties,
    /// What the members of the group are called, from process to process.
    instance_id: Option<String>,
}

// === impl NoClient ===

impl Client for NoClient {
    fn check(&self, _: &str, _: &str) -> Result<(), Refusal> {
        Ok(())
    }

    fn create(&self, _: &Properties, _: &Properties) -> Result<(), String> {
        Ok(())
    }
}

// === impl Kafka ===

impl Kafka {
    /// What every client is configured with.
    pub fn client(&self) -> Properties {
        self.with(&[], &Properties::new())
    }

    /// What a consumer is configured with.
    pub fn consumer(&self) -> Properties {
        self.with(&CONSUMER, &self.consumer)
    }

    /// What a producer is configured with.
    pub fn producer(&self) -> Properties {
        self.with(&[], &self.producer)
    }

    /// What is wrong with the properties: those that are retide's, that there are not, that the client would read as another value, or
    /// that it would refuse.
    pub(super) fn check(&self, source: &Source, client: &dyn Client) -> Vec<Error> {
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
                    None => number::refusal(property, value, client)
                        .or_else(|| invalid(property, value, client)),
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
        let refused = property::refused(self.consumer(), self.producer(), client);
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

    /// What the members of the group are called, from process to process, if that was named here.
    pub(super) fn instance_id(&self) -> Option<&str> {
        self.instance_id.as_deref()
    }

    /// Sets a property of every client, whatever those of consumers and producers say.
    pub(super) fn overrule(&mut self, property: &str, value: &str) {
        self.consumer.remove(property);
        self.producer.remove(property);
        self.set(property, value);
    }

    /// Sets a property of every client.
    pub fn set(&mut self, property: &str, value: &str) {
        self.common.insert(property.to_owned(), value.to_owned());
    }

    /// The section of a file that says the same. It may hold secrets.
    pub fn written(&self) -> Table {
        let table = |properties: &Properties| -> Table {
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
        let of = |section: &str, properties: &Properties| -> Vec<_> {
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
    fn with(&self, defaults: &[(&str, &str)], over: &Properties) -> Properties {
        let always = [("bootstrap.servers", BOOTSTRAP), ("client.id", "retide")];
        let defaults = always.iter().chain(defaults);
        let defaults = defaults.map(|&(property, value)| (property.to_owned(), value.to_owned()));
        let given = self.common.iter().chain(over);
        let given = given.map(|(property, value)| (property.clone(), value.clone()));
        defaults.chain(given).collect()
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
fn invalid(property: &str, value: &str, client: &dyn Client) -> Option<String> {
    match client.check(property, value) {
        Err(Refusal::Unknown) => Some(property::unknown(property)),
        Err(Refusal::NotANumber(message) | Refusal::Value(message)) => {
            Some(redacted(&message, value))
        }
        Ok(()) => None,
    }
}

/// Collects properties; a key with dots that stands unquoted is a table in a table.
fn properties(key: &str, value: Value, properties_of: &mut Properties) -> Result<(), String> {
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

/// A message of the Kafka client's without the value that it may repeat.
fn redacted(message: &str, value: &str) -> String {
    if value.is_empty() {
        return message.to_owned();
    }
    message.replace(value, "<value not shown>")
}
