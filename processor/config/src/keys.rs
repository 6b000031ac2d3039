//! What is in force of each key of the configuration, and from where: what `retide config show` prints.
//!
//! Invariant: no secret is part of it.

use std::fmt::Debug;
use std::time::Duration;

use serde::Serialize;
use toml::{Table, Value};

use crate::kafka::CONSUMER;
use crate::secrets::{self, masked};
use crate::source::{MASKED, Place, Source};
use crate::{Config, Foreign, Overrides, text};

pub use self::list::{Key, PROCESS, SCENE, SECTIONS, Section};

mod list;

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
    // Lists and tables: as they were written, behind the key that is before them in the docs.
    for (index, key) in PROCESS.iter().enumerate() {
        if all.iter().any(|shown| shown.key == key.name) {
            continue;
        }
        let path = path(key.name);
        let before = index.checked_sub(1).map(|index| PROCESS[index].name);
        let before = all.iter().position(|shown| Some(&*shown.key) == before);
        let shown = Shown {
            key: key.name.to_owned(),
            value: written(source.table(), &path)
                .map_or_else(|| key.default.to_owned(), ToString::to_string),
            origin: origin(&path),
        };
        all.insert(before.map_or(0, |before| before + 1), shown);
    }
    // What there is no default for: as it was written, too.
    let mut rest = Vec::new();
    leaves(source.table(), &mut Vec::new(), &mut rest);
    for (path, value) in rest {
        let name = path.join(".");
        let is_shown_below = ["scenes", "sources"].contains(&&*path[0]);
        let is_part = |shown: &Shown| {
            let rest = name.strip_prefix(&shown.key);
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        };
        if !is_shown_below && !all.iter().any(is_part) {
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
    let sources = config.sources.iter().map(|(name, foreign)| {
        let group = Some(foreign.group(name, &config.processor.group));
        let foreign = Foreign {
            group,
            ..foreign.clone()
        };
        (["sources", name], Table::try_from(foreign))
    });
    let scenes = config.scenes.iter();
    let scenes = scenes.map(|(name, scene)| (["scenes", name], Table::try_from(masked(scene).0)));
    for (way, table) in sources.chain(scenes) {
        let Ok(table) = table else {
            continue;
        };
        let mut below = Vec::new();
        leaves(&table, &mut way.map(str::to_owned).to_vec(), &mut below);
        all.extend(below.into_iter().map(|(path, value)| Shown {
            origin: origin(&path),
            key: path.join("."),
            value,
        }));
    }
    all
}

/// The value that `path` leads to, if it was written.
fn written<'a>(table: &'a Table, path: &[String]) -> Option<&'a Value> {
    let (first, rest) = path.split_first()?;
    let mut value = table.get(first)?;
    for key in rest {
        value = value.get(key)?;
    }
    Some(value)
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
        ("topics.dead_letters.also", word(&topics.dead_letters.also)),
        (
            "topics.dead_letters.warn_before",
            span(topics.dead_letters.warn_before),
        ),
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
