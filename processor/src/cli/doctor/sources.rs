//! Whether the dead letters of others can become tasks: their topics and groups, their scenes, and what retide may do.
//!
//! Not whether their headers are known, which no topic says. Invariant: no group is joined, and nothing is read of a topic but its settings.

use std::collections::BTreeMap;
use std::time::Duration;

use retide_config::{Config, Foreign, Scene};
use retide_core::{span, with_causes};
use retide_kafka::client::client_config;
use retide_kafka::cluster::{self, Access, Lost, Reader, Sight, Survey, Tools};
use retide_kafka::topics::OUTAGE;
use retide_native::admin::Operation;
use retide_shell::identity;

use super::{CheckRow, Section};

/// A source, and what was found of it.
struct Found<'a> {
    /// The configuration.
    config: &'a Config,
    /// Its name.
    name: &'a str,
    /// What is configured of it.
    source: &'a Foreign,
    /// Its topic, as lines are about it.
    topic: String,
    /// Its group, as lines are about it.
    group: String,
    /// What the cluster says.
    known: &'a cluster::Foreign,
    /// Writes command lines.
    tools: Tools,
}

/// Most partitions that a line names.
const NAMED: usize = 3;

/// What is said of the sources.
pub(super) async fn lines(
    config: &Config,
    survey: &Survey,
    scenes: &BTreeMap<String, (Scene, Option<String>)>,
) -> Vec<CheckRow> {
    let workers = config.processor.group.as_str();
    let reader = |(name, source): (&String, &Foreign)| Reader {
        topic: source.topic.clone(),
        group: source.group(name, workers),
        mark: identity::mark(config, name),
    };
    let readers: Vec<Reader> = config.sources.iter().map(reader).collect();
    let client = client_config(config.kafka.client());
    let consumer = client_config(config.kafka.consumer());
    let known = match cluster::foreign(&client, &consumer, &readers).await {
        Ok(known) => known,
        Err(error) => {
            let message = format!("not checked: {}", with_causes(&error));
            let fix = config.invocation.line("doctor");
            return vec![CheckRow::warn(Section::Sources, "topics", message, fix)];
        }
    };
    let mut lines = Vec::new();
    for ((name, source), (reader, known)) in config.sources.iter().zip(readers.iter().zip(&known)) {
        let found = Found {
            config,
            name,
            source,
            topic: format!("source {name}: topic {}", source.topic),
            group: format!("source {name}: group {}", reader.group),
            known,
            tools: Tools::new(&client, config.kafka.bootstrap()),
        };
        let mut of_source = found.of_topic();
        of_source.extend(found.of_group(survey));
        if !scenes.contains_key(&source.scene) {
            of_source.push(CheckRow::fail(
                Section::Sources,
                format!("source {name}"),
                format!(
                    "there is no scene {}: its letters are dead letters here, too, or tasks of the scene default, if there is one",
                    source.scene
                ),
                config.invocation.line("scenes apply scenes.toml"),
            ));
        }
        if of_source.is_empty() {
            let dialect = retide_config::foreign::word(source.dialect);
            let message = format!(
                "its letters become tasks of {} (dialect {dialect})",
                source.scene
            );
            of_source.push(CheckRow::ok(Section::Sources, found.topic, message));
        }
        lines.extend(of_source);
    }
    lines
}

// === impl Found ===

impl Found<'_> {
    /// What is wrong with the topic.
    fn of_topic(&self) -> Vec<CheckRow> {
        let topic = &self.source.topic;
        let client = client_config(self.config.kafka.client());
        let allow = |operations: &[Operation]| {
            cluster::allow(&client, self.config.kafka.bootstrap(), operations, topic)
        };
        let (message, fix) = match self.known.sight {
            Sight::There => return self.of_records(allow(&[Operation::Read])),
            Sight::Missing => (
                "does not exist: nothing is copied",
                format!(
                    "correct `topic` of [sources.{}], or {}",
                    self.name,
                    self.tools.create(topic)
                ),
            ),
            Sight::Hidden => (
                "retide may not describe it, so it is not known whether it exists: nothing is copied",
                allow(&[Operation::Read, Operation::DescribeConfigs]),
            ),
        };
        vec![fail(&self.topic, message, fix)]
    }

    /// What is wrong with a topic that is there; `allow` lets retide read it.
    fn of_records(&self, allow: String) -> Vec<CheckRow> {
        let topic = &self.source.topic;
        let mut lines = Vec::new();
        if self.known.may_read == Some(false) {
            let message = "retide may not read it: nothing is copied";
            lines.push(fail(&self.topic, message, allow));
        }
        let set = |key: &str| self.known.settings.get(key).map_or("", String::as_str);
        if set("cleanup.policy").contains("compact") {
            let message =
                "is compacted: of letters of one key, only the last one is there after a while";
            let fix = self.tools.set(topic, "cleanup.policy", "delete");
            lines.push(warn(&self.topic, message, fix));
        }
        let kept = set("retention.ms").parse().map(Duration::from_millis);
        if let Ok(kept) = kept
            && kept < OUTAGE
        {
            let message = format!(
                "retention.ms is {}, which is less than {}: what stands there while nobody copies is deleted",
                span::text(kept),
                span::text(OUTAGE)
            );
            let outage = OUTAGE.as_millis().to_string();
            let fix = self.tools.set(topic, "retention.ms", &outage);
            lines.push(warn(&self.topic, message, fix));
        }
        lines
    }

    /// What is wrong with the group.
    fn of_group(&self, survey: &Survey) -> Vec<CheckRow> {
        let mut lines = Vec::new();
        match &self.known.group {
            Access::Granted => {}
            Access::Denied { fix } => {
                let message = "retide may not join it: nothing is copied";
                lines.push(fail(&self.group, message, fix));
            }
            Access::Unknown { reason } => {
                let message = format!("not checked: {reason}");
                lines.push(warn(&self.group, message, &*survey.list_acls));
            }
        }
        for stranger in &self.known.strangers {
            let fix = format!(
                "stop it, or set another `group` of [sources.{}]: a new group begins with the oldest letter that is there",
                self.name
            );
            let who = format!(
                "has a member that is not of this source: {} at {}",
                stranger.client, stranger.host
            );
            lines.push(if stranger.topics.contains(&self.source.topic) {
                let message =
                    format!("{who}. It reads the topic, too, and what it takes becomes no task");
                fail(&self.group, message, fix)
            } else {
                let message = format!("{who}. It reads other topics, and each time that it comes or goes, copying pauses");
                warn(&self.group, message, fix)
            });
        }
        lines.extend(self.deleted());
        lines.extend(self.made_anew());
        lines
    }

    /// That letters were deleted before they were copied.
    fn deleted(&self) -> Option<CheckRow> {
        let lost = self.known.lost.iter();
        let lost: Vec<&Lost> = lost.filter(|lost| lost.next < lost.first).collect();
        let count: i64 = lost.iter().map(|lost| lost.first - lost.next).sum();
        let places = named(&lost, |Lost { next, first, .. }| {
            format!("has read up to {next}, and the log begins at {first}")
        })?;
        let message = format!(
            "{places}: up to {count} letters were deleted before they were copied, but for markers of transactions among them; the source \
             goes on behind them"
        );
        let fix = format!(
            "find out what deletes them: retention.ms and retention.bytes ({}), kafka-delete-records.sh; let `retide run` not stand still \
             for longer than letters are kept",
            self.tools.describe(&self.source.topic)
        );
        Some(warn(&self.group, message, fix))
    }

    /// That the group has read what the topic does not have yet.
    fn made_anew(&self) -> Option<CheckRow> {
        let lost = self.known.lost.iter();
        let lost: Vec<&Lost> = lost.filter(|lost| lost.next > lost.end).collect();
        let places = named(&lost, |Lost { next, end, .. }| {
            format!("has read up to {next}, and the log ends at {end}")
        })?;
        let message = format!(
            "{places}: the topic was made anew, or its end was lost; the source begins with what is there"
        );
        let fix = "find out which: the topic's id and the brokers' logs tell";
        Some(warn(&self.group, message, fix))
    }
}

/// Something that is to be mended.
fn fail(subject: &str, message: impl Into<String>, fix: impl Into<String>) -> CheckRow {
    CheckRow::fail(Section::Sources, subject, message, fix)
}

/// Something that is worth knowing.
fn warn(subject: &str, message: impl Into<String>, fix: impl Into<String>) -> CheckRow {
    CheckRow::warn(Section::Sources, subject, message, fix)
}

/// What is said of each of the first partitions, and how many more there are; none if there is none.
fn named(lost: &[&Lost], says: impl Fn(&Lost) -> String) -> Option<String> {
    let one = |lost: &&Lost| format!("of partition {} it {}", lost.partition, says(lost));
    let some: Vec<String> = lost.iter().take(NAMED).map(one).collect();
    if some.is_empty() {
        return None;
    }
    let more = match lost.len().saturating_sub(NAMED) {
        0 => String::new(),
        more => format!("; and so of {more} more"),
    };
    Some(format!("{}{more}", some.join("; ")))
}
