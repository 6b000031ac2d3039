//! `retide tasks ls` and `show`, and the dry runs of commands: tasks under way, as the topics have them.
//!
//! There is no index: what the group has not done is read. Invariants: no group is joined and nothing is committed; what is held in memory
//! is bounded by what is printed.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use serde::Serialize;

use retide_config::{Config, Scene};
use retide_core::scene::{self, DEFAULT};
use retide_core::selector::{ErrorFingerprint, Selector};
use retide_core::{Origin, Task, Timestamp};
use retide_history::timeline;
use retide_kafka::client::client_config;
use retide_kafka::cluster::User;
use retide_kafka::topics::Topics;
use retide_shell::parked::{self, Looked};
use retide_shell::rules::merged;
use retide_shell::scenes::Follower;

use crate::cli::output::{Exit, Failed, Output, Row, document, print, put, say};
use crate::cli::reach::{failed, reach, topics};

use super::Ls;

/// Tasks that a dry run shows.
const SAMPLES: usize = 5;

/// How long a dry run reads.
const PATIENCE: Duration = Duration::from_mins(1);

/// A task under way.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Line {
    /// Its identity.
    id: String,
    /// Its scene.
    scene: String,
    /// Attempts made so far.
    attempts: u32,
    /// When the next one may start, in ms since the epoch.
    due_at: u64,
    /// Since when the last one is pending, in ms since the epoch: its target answers later, until the due time at most.
    #[serde(skip_serializing_if = "Option::is_none")]
    pending_since: Option<u64>,
    /// Until when it is deferred.
    #[serde(skip_serializing_if = "Option::is_none")]
    deferred_until: Option<u64>,
    /// When it entered, in ms since the epoch.
    entered_at: u64,
    /// When no attempt may start any more, if its producer has said so.
    #[serde(skip_serializing_if = "Option::is_none")]
    deadline_at: Option<u64>,
    /// Where it entered.
    origin: String,
    /// What its last attempt said.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    /// What that has in common with others.
    #[serde(skip_serializing_if = "Option::is_none")]
    fingerprint: Option<String>,
    /// The key of its record, as text.
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<String>,
    /// The producer's headers, as text.
    headers: Vec<(String, String)>,
    /// The topic it waits in.
    topic: String,
    /// The partition.
    partition: i32,
    /// The offset.
    offset: i64,
}

/// What a dry run prints in JSON.
#[derive(Debug, Serialize)]
struct Dry {
    /// What would be done.
    command: &'static str,
    /// With how many tasks.
    count: u64,
    /// A few of them.
    samples: Vec<Line>,
    /// Whether all was read.
    complete: bool,
    /// How many records were read.
    records: u64,
}

/// What was found.
struct Found {
    /// How many tasks.
    count: u64,
    /// The first of them.
    lines: Vec<Line>,
    /// What was read.
    looked: Looked,
}

// === impl Line ===

impl Line {
    /// A task that waits there.
    fn of(task: &Task, at: &Origin) -> Self {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let failure = task.failure.as_ref();
        let headers = task.record.headers.iter();
        Self {
            id: task.id.to_string(),
            scene: task.scene.to_string(),
            attempts: task.attempts_made(),
            due_at: task.due.as_millis(),
            pending_since: task.pending_since.map(Timestamp::as_millis),
            deferred_until: task
                .deferral
                .as_ref()
                .map(|deferral| deferral.until.as_millis()),
            entered_at: task.first_failed_at.as_millis(),
            deadline_at: task.deadline.map(Timestamp::as_millis),
            origin: task.origin.to_string(),
            error: failure.map(ToString::to_string),
            fingerprint: failure
                .map(|failure| ErrorFingerprint::of(&task.scene, failure).to_string()),
            key: task.record.key.as_ref().map(|key| text(key)),
            headers: headers
                .map(|header| {
                    let value = header.value.as_deref().unwrap_or_default();
                    (header.name.to_string(), text(value))
                })
                .collect(),
            topic: at.topic.to_string(),
            partition: at.partition,
            offset: at.offset,
        }
    }

    /// All of it, for people.
    fn whole(&self) -> String {
        let clock = |millis| timeline::clock(Timestamp::from_millis(millis));
        let mut rows = vec![
            ("task", self.id.clone()),
            ("scene", self.scene.clone()),
            ("attempts", self.attempts.to_string()),
            ("due", clock(self.due_at)),
        ];
        rows.extend(self.pending_since.map(|at| ("pending since", clock(at))));
        rows.extend(self.deferred_until.map(|at| ("deferred until", clock(at))));
        rows.push((
            "entered",
            format!("{} as {}", clock(self.entered_at), self.origin),
        ));
        rows.extend(self.deadline_at.map(|at| ("deadline", clock(at))));
        rows.extend(self.error.clone().map(|error| ("error", error)));
        rows.extend(self.fingerprint.clone().map(|print| ("fingerprint", print)));
        rows.extend(self.key.clone().map(|key| ("key", key)));
        let headers = self.headers.iter();
        rows.extend(headers.map(|(name, value)| ("header", format!("{name}={value}"))));
        let (topic, partition, offset) = (&self.topic, self.partition, self.offset);
        rows.push((
            "waits in",
            format!("{topic}, partition {partition}, offset {offset}"),
        ));
        let rows = rows.iter();
        let rows = rows.map(|(name, value)| format!("{name:<15}{}", value.escape_debug()));
        rows.collect::<Vec<_>>().join("\n")
    }
}

impl Row for Line {
    const HEADINGS: &'static [&'static str] =
        &["id", "scene", "attempts", "due", "waits in", "error"];

    fn cells(&self) -> Vec<String> {
        vec![
            self.id.clone(),
            self.scene.clone(),
            match self.pending_since {
                Some(_) => format!("{}, pending", self.attempts),
                None => self.attempts.to_string(),
            },
            timeline::clock(Timestamp::from_millis(self.due_at)),
            self.topic.clone(),
            self.error.clone().unwrap_or_default(),
        ]
    }
}

/// Lists tasks.
pub(super) fn ls(config: &Config, options: &Ls, output: Output) -> Result<(), Failed> {
    let selectors = options.select.selectors()?;
    let found = find(config, &selectors, options.limit as usize, options.timeout)?;
    if found.count > 0 || output != Output::Table {
        print(&found.lines, output)?;
    }
    found.end()
}

/// Shows tasks, all that is known of each.
pub(super) fn show(config: &Config, options: &Ls, output: Output) -> Result<(), Failed> {
    let selectors = options.select.selectors()?;
    let found = find(config, &selectors, options.limit as usize, options.timeout)?;
    if output == Output::Table {
        let texts: Vec<String> = found.lines.iter().map(Line::whole).collect();
        if !texts.is_empty() {
            put(&texts.join("\n\n"))?;
        }
    } else {
        print(&found.lines, output)?;
    }
    found.end()
}

/// Counts the tasks that a command is about, and shows a few.
pub(in crate::cli) fn dry_run(
    config: &Config,
    command: &'static str,
    selectors: &[Selector],
    output: Output,
) -> Result<(), Failed> {
    let found = find(config, selectors, SAMPLES, PATIENCE)?;
    if output == Output::Table {
        if found.count > 0 {
            print(&found.lines, output)?;
        }
        say(&format!(
            "{command}: {} tasks; nothing was sent",
            found.count
        ));
    } else {
        let dry = Dry {
            command,
            count: found.count,
            samples: found.lines.clone(),
            complete: found.looked.unread.is_empty(),
            records: found.looked.records,
        };
        document(&dry, output)?;
    }
    found.end()
}

/// Looks for the tasks that one of the selectors means.
fn find(
    config: &Config,
    selectors: &[Selector],
    limit: usize,
    timeout: Duration,
) -> Result<Found, Failed> {
    let topics = topics(config);
    let read: Vec<_> = topics.waiting().map(|(_, topic)| topic).collect();
    reach(config, User::Tasks, &read)?;
    let scenes = scenes(config, &topics, selectors)?;
    let (mut count, mut lines) = (0, Vec::new());
    let start = Instant::now();
    let mut told = start;
    let looked = parked::each(config, &topics, start + timeout, |task, at| {
        let scene = scenes.get(&*task.scene).or_else(|| scenes.get(DEFAULT));
        if selectors.iter().any(|selector| selector.fits(&task, scene)) {
            count += 1;
            if lines.len() < limit {
                lines.push(Line::of(&task, &at));
            }
        }
        if told.elapsed() >= TELL {
            told = Instant::now();
            let seconds = start.elapsed().as_secs();
            say(&format!(
                "reading {}: {count} tasks so far, {seconds} s",
                at.topic
            ));
        }
        ControlFlow::Continue(())
    })
    .map_err(|error| match &error {
        parked::Error::Kafka(source) => failed(config, User::Tasks, "read topics", source),
        parked::Error::Committed { .. } | parked::Error::Slow { .. } => {
            Failed::new(Exit::Unreachable, &error)
        }
    })?;
    lines.sort_by_key(|line| line.due_at);
    Ok(Found {
        count,
        lines,
        looked,
    })
}

/// How often it is told how far reading has come.
const TELL: Duration = Duration::from_secs(2);

/// The rules of all scenes, if a selector asks for what they say.
fn scenes(
    config: &Config,
    topics: &Topics,
    selectors: &[Selector],
) -> Result<BTreeMap<String, scene::Scene>, Failed> {
    let asks = |selector: &Selector| !selector.parts().targets.is_empty();
    if !selectors.iter().any(asks) {
        return Ok(BTreeMap::new());
    }
    let follower = Follower::start(
        &client_config(config.kafka.consumer()),
        &topics.scenes,
        &config.processor.group,
    )
    .map_err(|error| Failed::new(Exit::Failure, &error))?;
    let all: BTreeMap<String, Scene> = merged(&config.scenes, follower.scenes());
    let rules = all.iter();
    let rules = rules.filter_map(|(name, scene)| Some((name.clone(), scene.rules(name).ok()?)));
    Ok(rules.collect())
}

// === impl Found ===

impl Found {
    /// Says what was read, and what was not.
    fn end(self) -> Result<(), Failed> {
        let Self {
            count,
            lines,
            looked:
                Looked {
                    records,
                    topics,
                    unread,
                },
        } = self;
        let read = format!("{records} records of {} topics read", topics.len());
        if !unread.is_empty() {
            let message = format!(
                "{count} tasks so far; {read}, and not to the end: {}; --timeout gives more time",
                unread.join(", ")
            );
            return Err(Failed::because(Exit::Partly, message));
        }
        if count == 0 {
            let message = format!("no task under way fits; {read}");
            return Err(Failed::because(Exit::NotFound, message));
        }
        let shown = lines.len() as u64;
        if shown < count {
            say(&format!("{count} tasks, {shown} of them shown; {read}"));
        } else {
            say(&format!("{count} tasks; {read}"));
        }
        Ok(())
    }
}
