//! `retide tasks cancel`, `run-now`, `reschedule` and `complete`: commands are sent, and their ends waited for.
//!
//! Any producer can send what is sent here. Invariant: the text of each command was read as workers read it before the first one is sent.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use bytes::Bytes;
use serde::Serialize;
use serde_json::{Map, Value};
use signal_hook::consts::{SIGINT, SIGTERM};
use uuid::Uuid;

use retide_avro::control;
use retide_config::Config;
use retide_core::control::{Control, Counts, Ended, Place};
use retide_core::selector::Selector;
use retide_core::{Record, span};
use retide_kafka::client::client_config;
use retide_kafka::cluster::User;
use retide_kafka::publish::{Publisher, Stored};
use retide_kafka::record::{OutHeaders, OutRecord};
use retide_kafka::topics::Topics;
use retide_shell::clock;

use crate::cli::ask;
use crate::cli::output::{Exit, Failed, Output, Row, print, say};
use crate::cli::reach::{failed, reach};

use super::Acting;
use super::follow::{self, Followed, Following};
use super::under_way;

/// What is to be done.
pub(super) enum Asked {
    /// End them.
    Cancel,
    /// At once.
    RunNow,
    /// Then.
    Reschedule {
        /// A time.
        at: Option<String>,
        /// Or a while from now.
        delay: Option<Duration>,
    },
    /// An attempt was made elsewhere.
    Complete {
        /// What came of it.
        outcome: &'static str,
        /// What went wrong.
        failure: Option<String>,
    },
}

/// What became of a command.
#[derive(Debug, Serialize)]
struct Line {
    /// The command's name.
    id: String,
    /// What was to be done; nothing where that is not known any more.
    command: String,
    /// How it stands: `sent`, `working`, `done` or `refused`.
    state: &'static str,
    /// How many tasks it has met.
    matched: u64,
    /// With how many it was done.
    done: u64,
    /// For how many it was too late.
    too_late: u64,
    /// How many of the tasks that it names were not found.
    not_found: u64,
    /// Why nothing was done.
    #[serde(skip_serializing_if = "Option::is_none")]
    refused: Option<String>,
    /// Where it stands: the partition.
    partition: i32,
    /// And the offset.
    offset: i64,
}

/// A command that was read as workers read it.
struct Ready {
    /// Its name.
    id: String,
    /// Its text.
    text: Bytes,
    /// The tasks it means.
    selector: Selector,
}

// === impl Asked ===

impl Asked {
    /// The word for it.
    const fn word(&self) -> &'static str {
        match self {
            Self::Cancel => "cancel",
            Self::RunNow => "run-now",
            Self::Reschedule { .. } => "reschedule",
            Self::Complete { .. } => "complete",
        }
    }

    /// What it says beside the tasks.
    fn keys(&self, keys: &mut Map<String, Value>) {
        let mut put = |key: &str, value: Value| keys.insert(key.to_owned(), value);
        put("command", self.word().into());
        match self {
            Self::Cancel | Self::RunNow => {}
            Self::Reschedule { at, delay } => {
                if let Some(at) = at {
                    put("at", at.clone().into());
                }
                if let Some(delay) = delay {
                    put("in", span::text(*delay).into());
                }
            }
            Self::Complete { outcome, failure } => {
                put("outcome", (*outcome).into());
                if let Some(failure) = failure {
                    put("error", failure.clone().into());
                }
            }
        }
    }
}

// === impl Line ===

impl Row for Line {
    const HEADINGS: &'static [&'static str] = &[
        "command",
        "id",
        "state",
        "matched",
        "done",
        "too late",
        "not found",
    ];

    fn cells(&self) -> Vec<String> {
        vec![
            self.command.clone(),
            self.id.clone(),
            self.state.to_owned(),
            self.matched.to_string(),
            self.done.to_string(),
            self.too_late.to_string(),
            self.not_found.to_string(),
        ]
    }
}

impl Line {
    /// A command that stands there, and what is known of it.
    fn of(id: &str, command: &str, stored: Stored, followed: &Followed) -> Self {
        let (state, counts, not_found, refused) = match &followed.ended {
            Some(Ended { ids, result, .. }) => match result {
                Ok(counts) => ("done", *counts, counts.not_found(*ids), None),
                Err(why) => ("refused", Counts::default(), 0, Some(why.to_string())),
            },
            None if followed.shards == 0 => ("sent", followed.counts, 0, None),
            None => ("working", followed.counts, 0, None),
        };
        Self {
            id: id.to_owned(),
            command: command.to_owned(),
            state,
            matched: counts.matched(),
            done: counts.done,
            too_late: counts.too_late,
            not_found,
            refused,
            partition: stored.partition,
            offset: stored.offset,
        }
    }
}

/// Sends commands, and waits for their ends.
pub(super) fn act(
    config: &Config,
    asked: &Asked,
    acting: &Acting,
    output: Output,
) -> Result<(), Failed> {
    let ready = ready(asked, acting)?;
    if acting.dry_run {
        let selectors: Vec<Selector> = ready.into_iter().map(|it| it.selector).collect();
        return under_way::dry_run(config, asked.word(), &selectors, output);
    }
    confirm(asked, acting, &ready)?;
    let topics = Topics::new(&config.topics.prefix, &config.topics.tiers);
    reach(config, User::Tasks, &[&topics.commands])?;
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&stop))?;
    }
    let mut publisher = Publisher::try_new(&client_config(config.kafka.producer()))?;
    for it in &ready {
        publisher.send(&OutRecord {
            topic: Arc::clone(&topics.commands),
            partition: None,
            key: Some(it.id.clone().into()),
            value: Some(it.text.clone()),
            headers: OutHeaders::default(),
        });
    }
    let mut sent = Vec::new();
    for (it, stored) in ready.iter().zip(publisher.finish()) {
        let what = format!("send command {}", it.id);
        let stored = stored.map_err(|error| {
            failed(config, User::Tasks, &what, &error).or_exit(Exit::Unreachable)
        })?;
        sent.push(Following {
            id: it.id.clone(),
            stored,
            followed: Followed::default(),
        });
    }
    let count = sent.len();
    let ids: Vec<&str> = sent.iter().map(|it| &*it.id).collect();
    if count == 1 {
        say(&format!("{} {} sent", asked.word(), ids.join(", ")));
    } else {
        say(&format!(
            "{}: {count} commands sent, {} to {}",
            asked.word(),
            ids[0],
            ids[count - 1]
        ));
    }
    if acting.no_wait {
        return print(&lines(&sent, asked.word()), output);
    }
    follow::follow(
        config,
        &topics,
        &mut sent,
        (asked.word(), acting.wait),
        &stop,
    )?;
    end(config, &sent, asked.word(), &stop, output)
}

/// Tells what became of a command that was sent before.
pub(super) fn again(
    config: &Config,
    id: &str,
    wait: Duration,
    output: Output,
) -> Result<(), Failed> {
    let topics = Topics::new(&config.topics.prefix, &config.topics.tiers);
    reach(config, User::Tasks, &[&topics.commands])?;
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&stop))?;
    }
    let (word, mut sent) = follow::find(config, &topics, id)?;
    if sent.is_empty() {
        let message = format!("no command {id} is on topic {}", topics.commands);
        return Err(Failed::because(Exit::NotFound, message));
    }
    follow::follow(config, &topics, &mut sent, (word, wait), &stop)?;
    end(config, &sent, word, &stop, output)
}

/// The rows of commands.
fn lines(sent: &[Following], word: &str) -> Vec<Line> {
    let lines = sent.iter();
    lines
        .map(|it| Line::of(&it.id, word, it.stored, &it.followed))
        .collect()
}

/// Prints what became of commands, and exits accordingly.
fn end(
    config: &Config,
    sent: &[Following],
    word: &str,
    stop: &AtomicBool,
    output: Output,
) -> Result<(), Failed> {
    let lines = lines(sent, word);
    print(&lines, output)?;
    if let Some(why) = lines.iter().find_map(|line| line.refused.as_deref()) {
        return Err(Failed::because(Exit::Failure, format!("refused: {why}")));
    }
    let open: Vec<&Following> = sent
        .iter()
        .filter(|it| it.followed.ended.is_none())
        .collect();
    if let Some(first) = open.first() {
        let look = config
            .invocation
            .line(&format!("tasks command {}", first.id));
        let (exit, why) = if stop.load(std::sync::atomic::Ordering::Relaxed) {
            (Exit::Interrupted, "interrupted")
        } else {
            (Exit::Partly, "not done in time")
        };
        let message = format!("{why}: the command goes on; to look at it again: {look}");
        return Err(Failed::because(exit, message));
    }
    let sum = |count: fn(&Line) -> u64| lines.iter().map(count).sum::<u64>();
    if sum(|line| line.too_late) > 0 {
        return Err(Failed::silently(Exit::Partly));
    }
    if sum(|line| line.matched) == 0 {
        // A command for identities waits for tasks that come later.
        let waits = sum(|line| line.not_found) > 0;
        let more = if waits {
            "; until it expires, the command waits for those that it names"
        } else {
            ""
        };
        let message = format!("no task was found{more}");
        return Err(Failed::because(Exit::NotFound, message));
    }
    Ok(())
}

/// The commands that are asked for.
fn ready(asked: &Asked, acting: &Acting) -> Result<Vec<Ready>, Failed> {
    let selects = acting.select.parts()?;
    let name = acting.id_of_command.clone();
    let name = name.unwrap_or_else(|| Uuid::new_v4().to_string());
    let by = ask::who(acting.by.as_deref());
    let count = selects.len();
    let mut ready = Vec::new();
    for (index, select) in selects.into_iter().enumerate() {
        let id = if count == 1 {
            name.clone()
        } else {
            format!("{name}-{}", index + 1)
        };
        let mut keys = Map::new();
        asked.keys(&mut keys);
        let mut put = |key: &str, value: Value| keys.insert(key.to_owned(), value);
        put("select", select);
        put("id", id.clone().into());
        put("by", by.clone().into());
        put("reason", acting.reason.clone().unwrap_or_default().into());
        if let Some(expires) = acting.expires {
            put("expires_in", span::text(expires).into());
        }
        let text = Bytes::from(Value::Object(keys).to_string());
        let selector = read(&text)?;
        ready.push(Ready { id, text, selector });
    }
    Ok(ready)
}

/// Reads a command as workers do, and gives the tasks that it means.
fn read(text: &Bytes) -> Result<Selector, Failed> {
    let place = Place {
        at: clock::timestamp(),
        partition: 0,
        offset: 0,
    };
    let record = Record {
        value: Some(text.clone()),
        ..Record::default()
    };
    match control::decode(&record, place, &|_| None) {
        Ok(Control::Request(command)) => Ok(command.selector.clone()),
        Ok(
            Control::Step(_)
            | Control::Answer(_)
            | Control::Ended(_)
            | Control::Ask(_)
            | Control::Campaign(_)
            | Control::Report(_),
        ) => {
            unreachable!("a record without headers is a request, and this one is of tasks")
        }
        Err(refusal) => Err(Failed::because(Exit::Usage, String::from(refusal.why))),
    }
}

/// Asks whether it shall be done.
fn confirm(asked: &Asked, acting: &Acting, ready: &[Ready]) -> Result<(), Failed> {
    if acting.yes {
        return Ok(());
    }
    let word = asked.word();
    ask::somebody(|| {
        format!(
            "{word} changes tasks, and nobody can be asked here: add --yes, or --dry-run to see which tasks it is about"
        )
    })?;
    let selects = acting.select.parts()?;
    let first = selects.first().map(ToString::to_string).unwrap_or_default();
    let more = match ready.len() {
        1 => String::new(),
        count => format!(" and {} more such commands", count - 1),
    };
    let shown: String = first.chars().take(LONGEST_SHOWN).collect();
    let what = format!("{word} all tasks with {shown}{more} (--dry-run counts them)");
    ask::agreement(&what, "nothing was sent")
}

/// Longest selector that a question shows, in characters.
const LONGEST_SHOWN: usize = 400;
