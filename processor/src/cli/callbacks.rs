//! `retide callbacks`: how tasks end, one line each, as the callbacks topic tells it.
//!
//! Not the story of one task, which `explain` tells. Invariants: no group is joined and nothing is committed; what is held in memory does
//! not grow with the topic.

use std::collections::{BTreeSet, VecDeque};
use std::mem;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use clap::Args;
use rdkafka::consumer::BaseConsumer;
use rdkafka::error::KafkaError;
use rdkafka::message::{BorrowedMessage, Message};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use serde::Serialize;
use signal_hook::consts::{SIGINT, SIGTERM};

use retide_avro::headers;
use retide_avro::wire;
use retide_config::Config;
use retide_core::span::human;
use retide_core::{Terminal, Timestamp, with_causes};
use retide_history::report::Reader;
use retide_history::timeline::clock;
use retide_kafka::client::{Kept, LoggingContext, client_config};
use retide_kafka::cluster::User;
use retide_kafka::scan::{self, Scanned, last};
use retide_kafka::topics::Topics;

use crate::cli::explain::from;
use crate::cli::output::{Exit, Failed, Output, put, say, width};
use crate::cli::reach::{failed, reach};
use crate::cli::suggest;
use crate::cli::terminal;

/// What `callbacks` takes.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  retide callbacks
      how all tasks ended that the topic still knows
  retide callbacks --follow --last 10
      the last ten, and those to come
  retide callbacks --scene payment --outcome dead --since 1h
      what died in the last hour
  retide --output ndjson callbacks --follow | jq .id
      the records themselves, one a line

Callbacks in JSON and in Avro are read, also on one topic. No group is
joined and nothing is committed. Ctrl-C ends --follow, with exit code 130.
Exit code 3: no callback of the tasks that --id names.")]
pub(super) struct Options {
    /// Go on with those to come, until Ctrl-C
    #[arg(long, short)]
    follow: bool,
    /// Of tasks of this scene; may be repeated
    #[arg(long = "scene", value_name = "NAME")]
    scenes: Vec<String>,
    /// Of this task; may be repeated
    #[arg(long = "id", value_name = "ID")]
    ids: Vec<String>,
    /// Of tasks that ended so; may be repeated
    #[arg(long = "outcome", value_name = "OUTCOME", value_delimiter = ',', value_parser = outcome)]
    outcomes: Vec<Terminal>,
    /// Since then: RFC 3339, milliseconds since the epoch, or a duration such
    /// as 6h
    #[arg(long, value_name = "TIME", value_parser = from)]
    since: Option<Timestamp>,
    /// The last N of them only
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(0..=MOST_LAST))]
    last: Option<u32>,
    /// Stop reading what is there after this
    #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = retide_core::span::parse)]
    timeout: Duration,
}

/// A callback record, and where it stands.
#[derive(Debug, Serialize)]
struct CallbackRow {
    /// When the task ended, or the record's time.
    #[serde(skip)]
    at: Timestamp,
    /// What it says.
    #[serde(flatten)]
    says: Says,
    /// The topic.
    topic: Arc<str>,
    /// The partition.
    partition: i32,
    /// The offset.
    offset: i64,
}

/// What a callback record says.
#[derive(Debug, Serialize)]
#[serde(untagged)]
enum Says {
    /// All of it.
    Whole(Box<wire::Callback>),
    /// What its headers say, where the value cannot be read.
    Headers {
        /// The task's identity.
        id: String,
        /// Its scene.
        scene: String,
        /// How it ended.
        outcome: String,
        /// Why the value cannot be read.
        unreadable: String,
    },
}

/// Most lines that `--last` holds in memory.
const MOST_LAST: i64 = 100_000;

/// Lines that are put in order of time before they are printed.
const SORTED: usize = 10_000;

/// Longest wait for a record before signals are looked at.
const POLL: Duration = Duration::from_millis(100);

/// How often it is looked whether the topic was widened.
const LOOK: Duration = Duration::from_secs(30);

/// What the callbacks tool is called by brokers.
const NAME: &str = "retide-callbacks";

/// Tells how tasks end.
pub(super) fn callbacks(config: &Config, options: &Options, output: Output) -> Result<(), Failed> {
    let topics = Topics::new(&config.topics.prefix, &config.topics.tiers);
    let topic = &topics.callbacks;
    reach(config, User::Read, &[topic])?;
    let refused = |error: KafkaError| failed(config, User::Read, &format!("read {topic}"), &error);
    let client = client_config(config.kafka.consumer());
    let consumer = Kept::make(&client, |client| {
        if options.follow {
            scan::follower(client.clone(), NAME)
        } else {
            scan::consumer(client.clone(), NAME)
        }
    })
    .map_err(refused)?;
    let mut reading = Reading {
        topic,
        options,
        reader: Reader::default(),
        printer: Printer::new(output),
        held: VecDeque::new(),
        found: 0,
        unreadable: 0,
        others: BTreeSet::new(),
    };
    let stop = Arc::new(AtomicBool::new(false));
    if options.follow {
        for signal in [SIGINT, SIGTERM] {
            signal_hook::flag::register(signal, Arc::clone(&stop))?;
        }
    }
    let mut known = scan::starts(&consumer, topic, options.since).map_err(refused)?;
    let left = reading.there(&consumer, &known, &stop).map_err(refused)?;
    reading.flush()?;
    if options.follow {
        return reading.follow(&consumer, &mut known, &stop, refused);
    }
    reading.end(config, &left)
}

/// Callbacks that are read and printed.
struct Reading<'a> {
    /// The callbacks topic.
    topic: &'a Arc<str>,
    /// Which ones are wanted.
    options: &'a Options,
    /// Reads records.
    reader: Reader<wire::Callback>,
    /// Prints them.
    printer: Printer,
    /// Those that are not printed yet.
    held: VecDeque<CallbackRow>,
    /// How many were found.
    found: u64,
    /// How many of them could be read in part only.
    unreadable: u64,
    /// Scenes of which there are callbacks, a few of them.
    others: BTreeSet<String>,
}

// === impl Reading ===

impl Reading<'_> {
    /// Reads what is there; gives the partitions that were not read to their ends.
    fn there(
        &mut self,
        consumer: &BaseConsumer<LoggingContext>,
        starts: &TopicPartitionList,
        stop: &AtomicBool,
    ) -> Result<BTreeSet<i32>, KafkaError> {
        if starts.count() == 0 {
            return Ok(BTreeSet::new());
        }
        let deadline = Instant::now() + self.options.timeout;
        let mut failed = None;
        let scanned = scan::read(consumer, starts, deadline, |message| {
            if let Err(error) = self.take(message) {
                failed = Some(error);
            }
            if failed.is_some() || stop.load(Ordering::Relaxed) {
                return ControlFlow::Break(());
            }
            ControlFlow::Continue(())
        })?;
        self.printer.failed = failed;
        Ok(match scanned {
            Scanned::ToEnd | Scanned::Enough => BTreeSet::new(),
            Scanned::OutOfTime { left } => left,
        })
    }

    /// Takes a record, if it is wanted.
    fn take(&mut self, message: &BorrowedMessage<'_>) -> Result<(), Failed> {
        let line = CallbackRow::of(message, self.topic, &self.reader);
        if !self.options.wants(&line) {
            if self.others.len() < suggest::SHOWN * 4 {
                self.others.insert(line.says.scene().to_owned());
            }
            return Ok(());
        }
        self.found += 1;
        self.unreadable += u64::from(matches!(line.says, Says::Headers { .. }));
        self.held.push_back(line);
        let Some(last) = self.options.last else {
            if self.held.len() >= SORTED {
                return self.flush();
            }
            return Ok(());
        };
        // Twice as many as wanted, so that they are sorted now and then only.
        let last = last as usize;
        if self.held.len() >= (last * 2).max(SORTED) {
            self.keep(last);
        }
        Ok(())
    }

    /// Keeps the last ones.
    fn keep(&mut self, last: usize) {
        let held = self.held.make_contiguous();
        held.sort_by_key(CallbackRow::order);
        self.held.drain(..held_over(self.held.len(), last));
    }

    /// Prints what was read.
    fn flush(&mut self) -> Result<(), Failed> {
        if let Some(failed) = self.printer.failed.take() {
            return Err(failed);
        }
        self.keep(self.options.last.map_or(usize::MAX, |last| last as usize));
        self.printer
            .print(mem::take(&mut self.held).make_contiguous())
    }

    /// Goes on with what comes, until a signal.
    fn follow(
        mut self,
        consumer: &Kept<BaseConsumer<LoggingContext>>,
        known: &mut TopicPartitionList,
        stop: &AtomicBool,
        refused: impl Fn(KafkaError) -> Failed,
    ) -> Result<(), Failed> {
        let mut looked = Instant::now();
        while !stop.load(Ordering::Relaxed) {
            let note = |error: &KafkaError| say(&format!("note: {}: {error}", self.topic));
            if let Some(message) = scan::next(consumer, POLL, note).map_err(&refused)? {
                let line = CallbackRow::of(&message, self.topic, &self.reader);
                if self.options.wants(&line) {
                    self.printer.print(&[line])?;
                }
            }
            if looked.elapsed() >= LOOK {
                looked = Instant::now();
                widened(consumer, self.topic, known);
            }
        }
        self.printer.end()?;
        Err(Failed::silently(Exit::Interrupted))
    }

    /// Says what was not found or not read.
    fn end(self, config: &Config, left: &BTreeSet<i32>) -> Result<(), Failed> {
        let Self {
            topic,
            options,
            printer,
            found,
            unreadable,
            others,
            ..
        } = self;
        printer.end()?;
        if !left.is_empty() {
            let left: Vec<String> = left.iter().map(ToString::to_string).collect();
            let message = format!(
                "{topic} was not read to its end within {}; left: partition {}",
                human(options.timeout.as_millis() as u64),
                left.join(" ")
            );
            return Err(Failed::because(Exit::Partly, message));
        }
        if unreadable > 0 {
            let message = format!(
                "{unreadable} records of {topic} are in no format that is known here: told from their headers"
            );
            return Err(Failed::because(Exit::Partly, message));
        }
        if found > 0 {
            return Ok(());
        }
        if !options.ids.is_empty() {
            let message = format!("{topic} has no callback of {}", options.ids.join(" or "));
            let fix = config.invocation.line(&format!(
                "explain {}",
                retide_core::command::word(&options.ids[0])
            ));
            return Err(Failed::because(Exit::NotFound, message)
                .with_fix(&format!("see what became of the task: {fix}")));
        }
        let others: Vec<&str> = others.iter().map(String::as_str).collect();
        let hint = options.scenes.first();
        let hint = hint.map(|scene| suggest::words(scene, &others));
        say(&format!(
            "no callbacks on {topic}{}{}",
            if options.wants_all() {
                " yet"
            } else {
                " that are asked for"
            },
            hint.unwrap_or_default()
        ));
        Ok(())
    }
}

/// How many of `held` are more than the last ones.
const fn held_over(held: usize, last: usize) -> usize {
    held.saturating_sub(last)
}

/// Reads the partitions, too, that the topic got meanwhile.
fn widened(consumer: &BaseConsumer<LoggingContext>, topic: &str, known: &mut TopicPartitionList) {
    // What cannot be asked now is asked the next time.
    let Ok(all) = scan::partitions(consumer, topic) else {
        return;
    };
    let mut new = TopicPartitionList::new();
    for element in all.elements() {
        let partition = element.partition();
        if known.find_partition(topic, partition).is_none()
            && new
                .add_partition_offset(topic, partition, Offset::Beginning)
                .is_ok()
        {
            known.add_partition(topic, partition);
        }
    }
    if new.count() > 0
        && let Err(error) = scan::read_on(consumer, &new)
    {
        say(&format!("note: {topic}: {error}"));
    }
}

// === impl Options ===

impl Options {
    /// Whether nothing is left out.
    fn wants_all(&self) -> bool {
        self.scenes.is_empty()
            && self.ids.is_empty()
            && self.outcomes.is_empty()
            && self.since.is_none()
    }

    /// Whether a callback is asked for.
    fn wants(&self, line: &CallbackRow) -> bool {
        let is_of = |all: &[String], one: &str| all.is_empty() || all.iter().any(|own| own == one);
        is_of(&self.scenes, line.says.scene())
            && is_of(&self.ids, line.says.id())
            && (self.outcomes.is_empty()
                || Terminal::from_word(line.says.outcome())
                    .is_some_and(|outcome| self.outcomes.contains(&outcome)))
    }
}

/// An outcome, by its word.
fn outcome(text: &str) -> Result<Terminal, String> {
    Terminal::from_word(text).ok_or_else(|| {
        let words = ["delivered", "dead", "expired", "cancelled"]
            .into_iter()
            .filter(|word| Terminal::from_word(word).is_some());
        format!("expected {}", words.collect::<Vec<_>>().join(", "))
    })
}

// === impl CallbackRow ===

impl CallbackRow {
    /// What a record says.
    fn of(
        message: &BorrowedMessage<'_>,
        topic: &Arc<str>,
        reader: &Reader<wire::Callback>,
    ) -> Self {
        let stamped = message.timestamp().to_millis().unwrap_or_default();
        let (at, says) = match reader.read(message) {
            Ok(callback) => (callback.ended_at, Says::Whole(Box::new(callback))),
            Err(error) => {
                let text = |name| last(message, name).unwrap_or_default();
                let says = Says::Headers {
                    id: text(headers::ID),
                    scene: text(headers::SCENE),
                    outcome: text(headers::OUTCOME),
                    unreadable: with_causes(&error),
                };
                (stamped, says)
            }
        };
        Self {
            at: Timestamp::from_millis(u64::try_from(at).unwrap_or_default()),
            says,
            topic: Arc::clone(topic),
            partition: message.partition(),
            offset: message.offset(),
        }
    }

    /// What lines are sorted by.
    fn order(&self) -> (Timestamp, i32, i64) {
        (self.at, self.partition, self.offset)
    }

    /// What stands in the columns.
    fn cells(&self) -> [String; 6] {
        let says = &self.says;
        let (attempts, why) = match says {
            Says::Whole(callback) => (callback.attempts.to_string(), why(callback)),
            Says::Headers { unreadable, .. } => {
                ("?".to_owned(), format!("cannot be read: {unreadable}"))
            }
        };
        let plain =
            |text: &str| -> String { terminal::line(if text.is_empty() { "-" } else { text }) };
        [
            clock(self.at),
            plain(says.scene()),
            plain(says.id()),
            plain(says.outcome()),
            attempts,
            if why.is_empty() { why } else { plain(&why) },
        ]
    }
}

/// Why a task ended badly, in a few words; of one that was delivered, what went wrong before.
fn why(callback: &wire::Callback) -> String {
    let error = match (&callback.error_class, &callback.error_message) {
        (Some(class), Some(message)) if !message.is_empty() => Some(format!("{class}: {message}")),
        (class, message) => class.clone().or_else(|| message.clone()),
    };
    let parts = callback.reason.iter().cloned().chain(error);
    parts.collect::<Vec<_>>().join(" · ")
}

// === impl Says ===

impl Says {
    /// The task's identity.
    fn id(&self) -> &str {
        match self {
            Self::Whole(callback) => &callback.id,
            Self::Headers { id, .. } => id,
        }
    }

    /// Its scene.
    fn scene(&self) -> &str {
        match self {
            Self::Whole(callback) => &callback.scene,
            Self::Headers { scene, .. } => scene,
        }
    }

    /// How it ended.
    fn outcome(&self) -> &str {
        match self {
            Self::Whole(callback) => &callback.outcome,
            Self::Headers { outcome, .. } => outcome,
        }
    }
}

/// Prints callbacks as they come.
struct Printer {
    /// How.
    output: Output,
    /// How wide the columns are so far.
    widths: [usize; 6],
    /// How many were printed.
    printed: u64,
    /// Why no more can be printed.
    failed: Option<Failed>,
}

/// What stands above the columns.
const HEADINGS: [&str; 6] = ["ENDED AT", "SCENE", "ID", "OUTCOME", "ATTEMPTS", "WHY"];

// === impl Printer ===

impl Printer {
    /// Nothing is printed yet.
    fn new(output: Output) -> Self {
        Self {
            output,
            widths: HEADINGS.map(str::len),
            printed: 0,
            failed: None,
        }
    }

    /// Prints some.
    fn print(&mut self, lines: &[CallbackRow]) -> Result<(), Failed> {
        if lines.is_empty() {
            return Ok(());
        }
        let mut text = Vec::new();
        match self.output {
            Output::Table => {
                let rows: Vec<[String; 6]> = lines.iter().map(CallbackRow::cells).collect();
                for row in &rows {
                    for (width, cell) in self.widths.iter_mut().zip(row) {
                        *width = (*width).max(cell.chars().count());
                    }
                }
                if self.printed == 0 {
                    text.push(self.row(&HEADINGS.map(str::to_owned)));
                }
                text.extend(rows.iter().map(|row| self.row(row)));
            }
            Output::Json => {
                for (index, line) in lines.iter().enumerate() {
                    let first = self.printed == 0 && index == 0;
                    let line = serde_json::to_string(line).map_err(std::io::Error::from)?;
                    text.push(format!("{}\n{line}", if first { "[" } else { "," }));
                }
            }
            Output::Ndjson => {
                for line in lines {
                    text.push(serde_json::to_string(line).map_err(std::io::Error::from)?);
                }
            }
        }
        self.printed += lines.len() as u64;
        put(&text.join("\n"))
    }

    /// One line of the table, cut at the edge of a terminal.
    fn row(&self, cells: &[String; 6]) -> String {
        let columns = cells.iter().zip(self.widths).enumerate();
        let columns = columns.map(|(column, (cell, width))| match column {
            4 => format!("{cell:>width$}"),
            5 => cell.clone(),
            _ => format!("{cell:<width$}"),
        });
        let line = columns.collect::<Vec<_>>().join("  ");
        let line = line.trim_end();
        match width() {
            Some(width) if line.chars().count() > width => {
                let cut: String = line.chars().take(width.saturating_sub(1)).collect();
                format!("{cut}…")
            }
            Some(_) | None => line.to_owned(),
        }
    }

    /// Ends a document.
    fn end(self) -> Result<(), Failed> {
        match (self.output, self.printed) {
            (Output::Json, 0) => put("[]"),
            (Output::Json, _) => put("]"),
            (Output::Table | Output::Ndjson, _) => Ok(()),
        }
    }
}
