//! `retide explain`: what became of one task, as a timeline.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Args;
use comfy_table::{ColumnConstraint, ContentArrangement, Table, Width, presets};
use serde::Serialize;
use tokio::runtime::Runtime;

use retide_config::Config;
use retide_core::span::human;
use retide_core::{Reason, Timestamp, span};
use retide_history::search::{self, Ask, Found, Query, Reading, Unnamed};
use retide_history::timeline::{self, Moment, Timeline};
use retide_kafka::client::client_config;
use retide_kafka::cluster::User;
use retide_kafka::topics::Topics;
use retide_shell::clock;
use retide_shell::registry::Registry;
use retide_shell::scenes::Follower;

use crate::cli::output::{Exit, Failed, Output, put, say, width};
use crate::cli::reach::{failed, reach, topics};
use crate::cli::terminal;
use crate::cli::{submit, suggest};

/// What `explain` takes.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  retide explain order-7
  retide explain order-7 --from 6h
      nothing older than six hours
  retide explain order-7 --partition 3 --timeout 5m
  retide --output json explain order-7 | jq '.stories[].state'

It reads the retry topic to find the partitions on which the task entered,
and these partitions of the other topics; all of them if it is not found
there. No group is joined and nothing is committed.")]
pub(super) struct Options {
    /// The task's identity, as in the header retry-id
    #[arg(value_name = "TASK_ID")]
    id: String,
    /// Read this partition of each topic only
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i32).range(0..))]
    partition: Option<i32>,
    /// Read nothing older: RFC 3339, milliseconds since the epoch, or a duration such as 6h
    #[arg(long, value_name = "TIME", value_parser = from)]
    from: Option<Timestamp>,
    /// Stop reading after this, and tell what was found by then
    #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = span::parse)]
    timeout: Duration,
}

/// What is printed in JSON.
#[derive(Debug, Serialize)]
struct Document<'a> {
    /// The task's identity.
    id: &'a str,
    /// What became of it; more than one if the identity was used more than once.
    #[serde(rename = "stories")]
    timelines: &'a [Timeline],
    /// What was read.
    read: &'a [Reading],
}

/// One line of JSON.
#[derive(Debug, Serialize)]
struct Entry<'a> {
    /// The task's identity.
    id: &'a str,
    /// Where the task entered, if that is known.
    origin: Option<&'a str>,
    /// What happened.
    #[serde(flatten)]
    moment: &'a Moment,
}

/// Columns of the narrowest terminal for which rows are folded: what comes before the details takes 50 of them.
const NARROWEST: u16 = 80;

/// How long before a task entered its records are looked for where that time is known: timestamps are those of several clocks.
pub(super) const MARGIN: Duration = Duration::from_hours(1);

/// Tells what became of a task.
pub(super) fn explain(config: &Config, options: Options, output: Output) -> Result<(), Failed> {
    let topics = topics(config);
    let read = [
        &topics.tasks,
        &topics.callbacks,
        &topics.dead_letters,
        &topics.events,
    ];
    let read: Vec<&Arc<str>> = read.into_iter().chain(&topics.tiers).collect();
    reach(config, User::Explain, &read)?;
    let Options {
        id,
        partition,
        from,
        timeout,
    } = options;
    let query = Query {
        id,
        partition,
        from,
        deadline: Instant::now() + timeout,
    };
    let Found {
        facts, readings, ..
    } = look(config, &topics, &query, User::Explain)?;
    let now = clock::timestamp();
    let timelines = timeline::tell(facts, &config.topics.tiers, now);
    let unread = unread(&readings);
    if timelines.is_empty() {
        return Err(nothing(&query, &readings, &unread));
    }
    if !config.topics.events.enabled {
        say(
            "events are off (topics.events.enabled): told from the other topics, without the times of decisions",
        );
    }
    show(&query.id, &timelines, &readings, output)?;
    for timeline in &timelines {
        tell_of_scene(config, &topics, timeline);
    }
    if unread.is_empty() {
        Ok(())
    } else {
        let message = format!(
            "not all was read within {}; not read to the end: {}",
            human(timeout.as_millis() as u64),
            unread.join(", ")
        );
        Err(Failed::because(Exit::Partly, message))
    }
}

/// Looks for the records of a task, says how far that is, and asks a registry for what cannot be read without it.
pub(super) fn look(
    config: &Config,
    topics: &Topics,
    query: &Query,
    user: User,
) -> Result<Found, Failed> {
    let runtime = config.schemas.registry.as_ref().map(|_| Runtime::new());
    let runtime = runtime.transpose()?;
    let registry =
        runtime.and_then(|runtime| Some((Registry::of(config, runtime.handle())?, runtime)));
    let registry = registry.as_ref().map(|(registry, _)| registry);
    let ask = registry.map(|registry| |key| registry.ask_now(key));
    let start = Instant::now();
    let patience = query.deadline.saturating_duration_since(start).as_secs();
    let found = search::search(
        client_config(config.kafka.consumer()),
        topics,
        query,
        ask.as_ref().map(|ask| ask as Ask<'_>),
        |topic, records| {
            let seconds = start.elapsed().as_secs();
            say(&format!(
                "reading {topic}: {records} records so far, {seconds} s of {patience} s"
            ));
        },
    )
    .map_err(|error| failed(config, user, "read topics", &error))?;
    if let (Some(unnamed), Some(registry)) = (&found.unnamed, registry) {
        tell_of_registry(unnamed, registry.address());
    }
    Ok(found)
}

/// Says which records cannot be read without the registry, which gives no answer: the task may be among them.
fn tell_of_registry(unnamed: &Unnamed, registry: &str) {
    let Unnamed {
        records,
        example,
        key,
        why,
    } = unnamed;
    say(&format!(
        "note: {records} records of the retry topic cannot be read, {example} among them: what {key} is has to be asked of the schema \
         registry {registry}, which gives no answer: {why}. The task may be one of them. See to the registry, or name the schema in \
         [schemas] ids; until then workers set such records aside, and lose none"
    ));
}

/// Says which scene was probably meant, where a task is dead since its scene does not exist.
fn tell_of_scene(config: &Config, topics: &Topics, timeline: &Timeline) {
    let words = [Reason::NoScene, Reason::UnknownScene].map(Reason::word);
    let unknown = |moment: &Moment| {
        moment
            .reason
            .as_deref()
            .is_some_and(|reason| words.contains(&reason))
    };
    if !timeline.moments.iter().any(unknown) {
        return;
    }
    // What the scenes topic does not say is no matter here.
    let Ok(follower) = Follower::start(
        &client_config(config.kafka.consumer()),
        &topics.scenes,
        &config.processor.group,
    ) else {
        return;
    };
    let known: BTreeSet<&String> = config
        .scenes
        .keys()
        .chain(follower.scenes().keys())
        .collect();
    let known: Vec<&String> = known.into_iter().collect();
    say(&match timeline.scene.as_str() {
        "" => "note: the record names no scene: the header retry-scene is missing".to_owned(),
        scene if known.iter().any(|known| *known == scene) => {
            format!("note: there is a scene {scene} now; there was none then")
        }
        scene => format!(
            "note: there is no scene {scene}{}",
            suggest::words(scene, &known)
        ),
    });
}

/// Prints timelines.
fn show(id: &str, timelines: &[Timeline], read: &[Reading], output: Output) -> Result<(), Failed> {
    let json = |written: serde_json::Result<String>| written.map_err(std::io::Error::from);
    match output {
        Output::Table => {
            let texts = timelines.iter().enumerate();
            let texts =
                texts.map(|(index, timeline)| table(id, timeline, (index + 1, timelines.len())));
            put(&texts.collect::<Vec<_>>().join("\n\n"))
        }
        Output::Json => {
            let document = Document {
                id,
                timelines,
                read,
            };
            put(&json(serde_json::to_string_pretty(&document))?)
        }
        Output::Ndjson => {
            for timeline in timelines {
                let origin = timeline.origin.as_deref();
                for moment in &timeline.moments {
                    put(&json(serde_json::to_string(&Entry { id, origin, moment }))?)?;
                }
            }
            Ok(())
        }
    }
}

/// A timeline for people.
pub(super) fn table(id: &str, timeline: &Timeline, (number, of): (usize, usize)) -> String {
    let mut head = vec![format!("task {id}")];
    if of > 1 {
        head.push(format!("{number} of {of} with this identity"));
    }
    if !timeline.scene.is_empty() {
        head.push(format!("scene {}", timeline.scene));
    }
    head.extend(
        timeline
            .origin
            .as_ref()
            .map(|origin| format!("entered as {origin}")),
    );
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    table.set_header(["TIME", "SINCE START", "WHAT", "DETAILS"]);
    if let Some(width) = width() {
        // Details go on below themselves.
        let width = u16::try_from(width).unwrap_or(u16::MAX).max(NARROWEST);
        table.set_width(width);
        table.set_content_arrangement(ContentArrangement::Dynamic);
        for (column, width) in [27, 14, 13].into_iter().enumerate() {
            if let Some(column) = table.column_mut(column) {
                column.set_constraint(ColumnConstraint::UpperBoundary(Width::Fixed(width)));
            }
        }
    }
    let start = timeline
        .moments
        .first()
        .map_or(Timestamp::EPOCH, |moment| moment.at);
    for moment in &timeline.moments {
        let since = human(moment.at.since(start).as_millis() as u64);
        table.add_row([
            timeline::clock(moment.at),
            format!("+{since}"),
            terminal::line(&moment.what),
            terminal::line(&moment.details()),
        ]);
    }
    let mut text = vec![terminal::line(&head.join(" · ")), table.trim_fmt()];
    let notes = timeline.notes.iter();
    text.extend(notes.map(|note| format!("note: {}", terminal::line(note))));
    text.push(format!("now: {}", terminal::line(&timeline.state.text)));
    text.join("\n")
}

/// What was not read to its end, as text.
pub(super) fn unread(readings: &[Reading]) -> Vec<String> {
    let unread = readings.iter().filter(|reading| !reading.unread.is_empty());
    unread
        .map(|reading| {
            if reading.unread.contains(&search::ALL) {
                return reading.topic.to_string();
            }
            let partitions = reading.unread.iter().map(ToString::to_string);
            let partitions = partitions.collect::<Vec<_>>().join(" ");
            format!("{} (partition {partitions})", reading.topic)
        })
        .collect()
}

/// No record of the task was found.
fn nothing(query: &Query, readings: &[Reading], unread: &[String]) -> Failed {
    let records: u64 = readings.iter().map(|reading| reading.records).sum();
    let mut message = vec![format!(
        "task {} was not found among {records} records of {} topics",
        query.id,
        readings
            .iter()
            .filter(|reading| !reading.partitions.is_empty())
            .count()
    )];
    let partition = query
        .partition
        .map(|partition| format!(", partition {partition} only"));
    let from = query
        .from
        .map(|from| format!(", since {}", timeline::clock(from)));
    message.extend(partition.into_iter().chain(from));
    // Topics without a record would hide the others.
    let read = readings.iter().filter(|reading| {
        reading.unread.is_empty() && (reading.records > 0 || reading.partitions.is_empty())
    });
    for reading in read {
        let Reading {
            topic,
            partitions,
            records,
            ..
        } = reading;
        message.push(match partitions.len() {
            0 => format!("\n  {topic}: no such topic, or partition"),
            count => {
                let records = if *records == 1 {
                    "1 record".to_owned()
                } else {
                    format!("{records} records")
                };
                format!("\n  {topic}: {records} on {count} partitions")
            }
        });
    }
    if unread.is_empty() {
        return Failed::because(Exit::NotFound, message.concat());
    }
    message.push(format!("\nnot read to the end: {}", unread.join(", ")));
    Failed::because(Exit::Partly, message.concat())
}

/// When to start reading.
pub(super) fn from(text: &str) -> Result<Timestamp, String> {
    if let Ok(ago) = span::parse(text) {
        let now = clock::timestamp();
        return Ok(now.before(ago));
    }
    let time = submit::time(text).map_err(|_| {
        "expected a time such as 2026-12-24T18:00:00Z, milliseconds since the epoch, or a duration such as 6h"
    })?;
    Ok(Timestamp::from_millis(time))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reading_starts_at_a_time_or_some_time_ago() {
        assert_eq!(from("1500"), Ok(Timestamp::from_millis(1_500)));
        assert_eq!(
            from("1970-01-01T00:00:02Z"),
            Ok(Timestamp::from_millis(2_000))
        );
        assert!(from("6h").unwrap() < from("1h").unwrap());
        assert!(from("yesterday").is_err());
    }
}
