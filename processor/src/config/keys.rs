//! Every key of the configuration with its default, and what is in force of it and from where: what `retide config show` prints and
//! `docs/configuration.md` and `docs/scenes.md` list.
//!
//! Invariant: no secret is part of it.

use std::fmt::Debug;
use std::time::Duration;

use serde::Serialize;
use toml::{Table, Value};

use crate::config::secrets::{self, masked};
use crate::config::source::{MASKED, Place, Source};
use crate::config::{CONSUMER, Config, Overrides, text};

/// A key of the configuration.
#[derive(Clone, Copy, Debug)]
pub struct Key {
    /// The keys that lead to it.
    pub name: &'static str,
    /// What it is where nothing is said, as it would be written.
    pub default: &'static str,
    /// What it says.
    pub meaning: &'static str,
}

/// A key in force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Shown {
    /// The keys that lead to it.
    pub key: String,
    /// Its value, as it would be written; secrets are left out.
    pub value: String,
    /// Where that was read: `default`, a file with its line, a variable, or an option.
    pub origin: String,
}

/// A key, its default and its meaning.
const fn key(name: &'static str, default: &'static str, meaning: &'static str) -> Key {
    Key {
        name,
        default,
        meaning,
    }
}

/// The keys of a process, without those of `[tls.NAME]` and `[scenes.NAME]`.
pub const PROCESS: [Key; 35] = [
    key(
        "kafka.bootstrap.servers",
        "\"localhost:9092\"",
        "where Kafka is; any other property of librdkafka stands beside it, and goes before the broker's or client's default",
    ),
    key("kafka.client.id", "\"retide\"", "what clients are called"),
    key(
        "topics.prefix",
        "\"retry\"",
        "what the names of topics begin with",
    ),
    key(
        "topics.partitions",
        "12",
        "shards: the most workers that can share the work",
    ),
    key(
        "topics.replication_factor",
        "-1",
        "copies of each partition; -1 leaves it to the broker",
    ),
    key(
        "topics.tiers",
        "[\"now\", \"5s\", \"10s\", \"30s\", \"1m\", \"5m\", \"10m\", \"30m\", \"1h\", \"6h\", \"24h\"]",
        "the waits that have a topic of their own",
    ),
    key(
        "topics.tasks.envelope",
        "none",
        "the form of the envelope that every record of `PREFIX.tasks` is, for producers without headers: `\"json\"` or `\"avro\"`",
    ),
    key(
        "topics.callbacks.format",
        "\"json\"",
        "how callbacks are written; or `\"avro\"`",
    ),
    key(
        "topics.alerts.format",
        "\"json\"",
        "how alerts are written; or `\"avro\"`",
    ),
    key(
        "topics.events.format",
        "\"avro\"",
        "how events are written; or `\"json\"`",
    ),
    key(
        "topics.scenes.format",
        "\"avro\"",
        "how scenes are written; or `\"json\"`",
    ),
    key(
        "topics.events.enabled",
        "true",
        "whether there is an audit log",
    ),
    key("processor.group", "\"retide\"", "the consumer group"),
    key(
        "processor.instance_id",
        "none",
        "static membership; `${NAME}` stands for a variable",
    ),
    key("processor.workers", "1", "workers of a process"),
    key(
        "processor.guarantee",
        "\"exactly_once\"",
        "or `\"at_least_once\"`",
    ),
    key(
        "processor.commit_interval",
        "\"100ms\"",
        "how long a transaction collects",
    ),
    key(
        "processor.memory_limit",
        "\"512MiB\"",
        "of tasks and keys, in a process; at least 16MiB",
    ),
    key(
        "processor.drain_deadline",
        "\"5s\"",
        "for calls in flight when a shard is given away",
    ),
    key(
        "processor.unknown_scene_hold",
        "\"7d\"",
        "longest time for which tasks are held whose scene does not exist, or whose secret is missing",
    ),
    key(
        "processor.ignore_unusable_scenes",
        "false",
        "start although scenes on the topic cannot be used",
    ),
    key(
        "admin.listen",
        "\"off\"",
        "where `/livez /readyz /metrics /version` are",
    ),
    key(
        "admin.scene_series",
        "100",
        "scenes with series of their own in `/metrics`",
    ),
    key(
        "egress.only",
        "none",
        "the only addresses that are dialled: `\"public\"` or `\"allowed\"`",
    ),
    key(
        "egress.error_bodies",
        "true",
        "whether the start of an answer is part of an error",
    ),
    key(
        "schemas.registry",
        "none",
        "the registry that is asked for schemas of other writers",
    ),
    key("schemas.username", "none", "the name that it is shown"),
    key("schemas.password", "none", "the password to it"),
    key(
        "schemas.token",
        "none",
        "the token that it is shown instead",
    ),
    key("schemas.tls", "none", "the profile of TLS for it"),
    key(
        "schemas.timeout",
        "\"5s\"",
        "how long an answer is waited for",
    ),
    key(
        "secrets.files",
        "none",
        "the only folders whose files scenes may name as secrets; all, where none is named",
    ),
    key(
        "secrets.env",
        "none",
        "the only variables that scenes may name as secrets, such as `\"SHOP_*\"`; all but `RETIDE__…`, where none is named",
    ),
    key(
        "kafka.consumer.session.timeout.ms",
        "15000",
        "after which a worker that died is missed",
    ),
    key(
        "kafka.consumer.heartbeat.interval.ms",
        "100",
        "how soon a worker hears of a rebalance",
    ),
];

/// The keys of a scene; `target` has none by default.
pub const SCENE: [Key; 11] = [
    key(
        "backoff",
        "{ exponential = { first = \"1s\", factor = 2.0, max = \"1h\" } }",
        "the waits between attempts",
    ),
    key("jitter", "\"none\"", "how they are spread"),
    key("from", "\"actual\"", "what they are counted from"),
    key("max_attempts", "16", "attempts before a task is given up"),
    key("deadline", "none", "time after which no attempt starts"),
    key("rate", "none", "attempts per time, of the whole group"),
    key("concurrency", "64", "calls in flight, per process"),
    key("weight", "1", "its part where scenes wait for each other"),
    key("breaker", "none", "when its target is left alone"),
    key("ordering", "\"none\"", "or `\"key\"`"),
    key(
        "callback",
        "none",
        "where ends are reported besides the callbacks topic",
    ),
];

/// Everything in force, in the order of the docs, and from where.
pub fn shown(config: &Config, source: &Source, overrides: &Overrides) -> Vec<Shown> {
    let origin = |path: &[String]| match source.origin(path) {
        Some(Place::File { file, line, .. }) => format!("{file}:{line}"),
        Some(Place::Variable(name)) => name,
        Some(Place::Unknown) | None => "default".to_owned(),
    };
    let mut all = Vec::new();
    for (name, value) in in_force(config) {
        let path = path(&name);
        let flag = match name.as_str() {
            "kafka.bootstrap.servers" if overrides.bootstrap.is_some() => Some("--bootstrap"),
            "topics.prefix" if overrides.prefix.is_some() => Some("--prefix"),
            _ => None,
        };
        all.push(Shown {
            origin: flag.map_or_else(|| origin(&path), str::to_owned),
            key: name,
            value,
        });
    }
    // What there is no default for: as it was written.
    let mut rest = Vec::new();
    leaves(source.table(), &mut Vec::new(), &mut rest);
    for (path, value) in rest {
        let name = path.join(".");
        let is_scene = path[0] == "scenes";
        if !is_scene && !all.iter().any(|shown| shown.key == name) {
            let value = if secrets::is_named_so(&name) {
                MASKED.to_owned()
            } else {
                value
            };
            all.push(Shown {
                origin: origin(&path),
                key: name,
                value,
            });
        }
    }
    for (name, scene) in &config.scenes {
        let Ok(table) = Table::try_from(masked(scene).0) else {
            continue;
        };
        let mut of_scene = Vec::new();
        let mut way = vec!["scenes".to_owned(), name.clone()];
        leaves(&table, &mut way, &mut of_scene);
        all.extend(of_scene.into_iter().map(|(path, value)| Shown {
            origin: origin(&path),
            key: path.join("."),
            value,
        }));
    }
    all
}

/// The keys that lead to a key: a property of Kafka's client is one.
fn path(name: &str) -> Vec<String> {
    let Some(property) = name.strip_prefix("kafka.") else {
        return name.split('.').map(str::to_owned).collect();
    };
    let (section, property) = match property.split_once('.') {
        Some((section @ ("consumer" | "producer"), property)) => (Some(section), property),
        Some(_) | None => (None, property),
    };
    let path = ["kafka"].into_iter().chain(section).chain([property]);
    path.map(str::to_owned).collect()
}

/// What is in force of the keys that have a default.
fn in_force(config: &Config) -> Vec<(String, String)> {
    let sections = [of_topics(config), of_processor(config), of_targets(config)];
    let mut all = of_kafka(config);
    let rest = sections.into_iter().flatten();
    all.extend(rest.map(|(key, value)| (key.to_owned(), value)));
    all
}

/// The properties of Kafka's client: those that are named, and those that retide sets where they are not.
fn of_kafka(config: &Config) -> Vec<(String, String)> {
    let mut all = vec![(
        "bootstrap.servers".to_owned(),
        config.kafka.bootstrap().to_owned(),
    )];
    all.extend(config.kafka.properties());
    if !all.iter().any(|(known, _)| known == "client.id") {
        all.push(("client.id".to_owned(), "retide".to_owned()));
    }
    for (property, default) in CONSUMER {
        let key = format!("consumer.{property}");
        if !all
            .iter()
            .any(|(known, _)| known == property || *known == key)
        {
            all.push((key, default.to_owned()));
        }
    }
    let shown = all.into_iter().map(|(key, value)| {
        let value = match value.parse::<i64>() {
            _ if secrets::is_property(&key) => MASKED.to_owned(),
            Ok(number) => number.to_string(),
            Err(_) => quoted(&value),
        };
        (format!("kafka.{key}"), value)
    });
    shown.collect()
}

/// The keys of `[topics]`.
fn of_topics(config: &Config) -> Vec<(&'static str, String)> {
    let topics = &config.topics;
    let tiers = topics.tiers.tiers().iter();
    let tiers: Vec<String> = tiers.map(|tier| tier.name.to_string()).collect();
    vec![
        ("topics.prefix", quoted(&topics.prefix)),
        ("topics.partitions", topics.partitions.to_string()),
        (
            "topics.replication_factor",
            topics.replication_factor.to_string(),
        ),
        ("topics.tiers", list(&tiers)),
        (
            "topics.tasks.envelope",
            topics
                .tasks
                .envelope
                .as_ref()
                .map_or_else(none, |form| word(form)),
        ),
        ("topics.callbacks.format", word(&topics.callbacks.format)),
        ("topics.alerts.format", word(&topics.alerts.format)),
        ("topics.events.format", word(&topics.events.format)),
        ("topics.scenes.format", word(&topics.scenes.format)),
        ("topics.events.enabled", topics.events.enabled.to_string()),
    ]
}

/// The keys of `[processor]` and `[admin]`.
fn of_processor(config: &Config) -> Vec<(&'static str, String)> {
    let (processor, admin) = (&config.processor, &config.admin);
    let listen = admin
        .listen
        .map_or_else(|| "off".to_owned(), |address| address.to_string());
    let instance_id = processor.instance_id.as_deref();
    vec![
        ("processor.group", quoted(&processor.group)),
        (
            "processor.instance_id",
            instance_id.map_or_else(none, quoted),
        ),
        ("processor.workers", processor.workers.to_string()),
        (
            "processor.guarantee",
            quoted(&processor.guarantee.to_string()),
        ),
        ("processor.commit_interval", span(processor.commit_interval)),
        (
            "processor.memory_limit",
            quoted(&text::sized(processor.memory_limit)),
        ),
        ("processor.drain_deadline", span(processor.drain_deadline)),
        (
            "processor.unknown_scene_hold",
            span(processor.unknown_scene_hold),
        ),
        (
            "processor.ignore_unusable_scenes",
            processor.ignore_unusable_scenes.to_string(),
        ),
        ("admin.listen", quoted(&listen)),
        ("admin.scene_series", admin.scene_series.to_string()),
    ]
}

/// The keys of `[egress]`, `[schemas]` and `[secrets]`.
fn of_targets(config: &Config) -> Vec<(&'static str, String)> {
    let (egress, schemas, named) = (&config.egress, &config.schemas, &config.secrets);
    let hidden = |secret: Option<&String>| secret.map_or_else(none, |_| MASKED.to_owned());
    let registry = schemas.registry.as_ref().map(url::Url::as_str);
    let folders: Vec<String> = named
        .files
        .iter()
        .map(|folder| folder.display().to_string())
        .collect();
    vec![
        (
            "egress.only",
            egress.only.as_ref().map_or_else(none, |only| word(only)),
        ),
        ("egress.error_bodies", egress.error_bodies.to_string()),
        ("schemas.registry", registry.map_or_else(none, quoted)),
        (
            "schemas.username",
            schemas.username.as_deref().map_or_else(none, quoted),
        ),
        ("schemas.password", hidden(schemas.password.as_ref())),
        ("schemas.token", hidden(schemas.token.as_ref())),
        (
            "schemas.tls",
            schemas.tls.as_deref().map_or_else(none, quoted),
        ),
        ("schemas.timeout", span(schemas.timeout)),
        ("secrets.files", list(&folders)),
        ("secrets.env", list(&named.env)),
    ]
}

/// What stands where there is no value.
fn none() -> String {
    "none".to_owned()
}

/// A text as it would be written.
fn quoted(text: &str) -> String {
    Value::String(text.to_owned()).to_string()
}

/// A duration as it would be written.
fn span(span: Duration) -> String {
    quoted(&retide_core::span::text(span))
}

/// One of some words as it would be written.
fn word(value: &dyn Debug) -> String {
    quoted(&format!("{value:?}").to_lowercase())
}

/// A list of texts as it would be written.
fn list(texts: &[String]) -> String {
    match texts {
        [] => none(),
        texts => Value::from(texts.to_vec()).to_string(),
    }
}

/// The values of a table, with the ways to them.
fn leaves(table: &Table, way: &mut Vec<String>, all: &mut Vec<(Vec<String>, String)>) {
    for (key, value) in table {
        way.push(key.clone());
        match value {
            Value::Table(table) if !table.is_empty() => leaves(table, way, all),
            _ => all.push((way.clone(), value.to_string())),
        }
        way.pop();
    }
}
