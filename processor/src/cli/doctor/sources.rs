//! Whether the dead letters of others can become tasks: their topics, their scenes, and what retide may do.
//!
//! Not whether their headers are known, which no topic says. Invariant: no group is joined, and nothing is read of a topic but its settings.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use retide_config::{Config, Foreign, Scene};
use retide_core::{span, with_causes};
use retide_kafka::client::client_config;
use retide_kafka::cluster::{self, Survey, Tools};
use retide_kafka::topics::OUTAGE;
use retide_native::admin::Operation;

use super::{CheckRow, Section};

/// What is said of the sources.
pub(super) async fn lines(
    config: &Config,
    survey: &Survey,
    scenes: &BTreeMap<String, (Scene, Option<String>)>,
) -> Vec<CheckRow> {
    let topics = config.sources.values().map(|source| source.topic.clone());
    let topics: BTreeSet<String> = topics
        .filter(|topic| survey.topics.contains(topic))
        .collect();
    let client = client_config(config.kafka.client());
    let known = match cluster::foreign(&client, &topics).await {
        Ok(known) => known,
        Err(error) => {
            let message = format!("not checked: {}", with_causes(&error));
            let fix = config.invocation.line("doctor");
            return vec![CheckRow::warn(Section::Sources, "topics", message, fix)];
        }
    };
    let mut lines = Vec::new();
    for (name, source) in &config.sources {
        let topic = known.get(&source.topic);
        let subject = format!("source {name}: topic {}", source.topic);
        let mut of_source = of_topic(config, (name, source), topic, &subject);
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
            of_source.push(CheckRow::ok(Section::Sources, subject, message));
        }
        lines.extend(of_source);
    }
    lines
}

/// What is wrong with the topic of a source; `known` is none where it is not there.
fn of_topic(
    config: &Config,
    (name, source): (&str, &Foreign),
    known: Option<&cluster::Foreign>,
    subject: &str,
) -> Vec<CheckRow> {
    let topic = &source.topic;
    let client = client_config(config.kafka.client());
    let tools = Tools::new(&client, config.kafka.bootstrap());
    let Some(known) = known else {
        let message = "does not exist, or retide may not describe it: nothing is copied";
        let fix = format!(
            "correct `topic` of [sources.{name}], or {}",
            cluster::create_topic(&client, config.kafka.bootstrap(), topic)
        );
        return vec![CheckRow::fail(Section::Sources, subject, message, fix)];
    };
    let mut lines = Vec::new();
    if known.may_read == Some(false) {
        let message = "retide may not read it: nothing is copied";
        let operations = [Operation::Read];
        let fix = cluster::allow(&client, config.kafka.bootstrap(), &operations, topic);
        lines.push(CheckRow::fail(Section::Sources, subject, message, fix));
    }
    let set = |key: &str| known.settings.get(key).map_or("", String::as_str);
    if set("cleanup.policy").contains("compact") {
        let message =
            "is compacted: of letters of one key, only the last one is there after a while";
        let fix = tools.set(topic, "cleanup.policy", "delete");
        lines.push(CheckRow::warn(Section::Sources, subject, message, fix));
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
        let fix = tools.set(topic, "retention.ms", &OUTAGE.as_millis().to_string());
        lines.push(CheckRow::warn(Section::Sources, subject, message, fix));
    }
    lines
}
