//! `retide submit`: puts tasks on the retry topic, as any producer can.

use std::collections::{BTreeSet, VecDeque};
use std::fs::File;
use std::io::{self, BufRead, BufReader, IsTerminal, Read};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use clap::Args;
use rdkafka::error::KafkaError;
use serde::Serialize;
use uuid::Uuid;

use retide_avro::headers;
use retide_config::Config;
use retide_core::scene::{DEFAULT, MAX_DELAY};
use retide_core::{Header, span, with_causes};
use retide_kafka::client::client_config;
use retide_kafka::cluster::User;
use retide_kafka::publish::{Publisher, Stored};
use retide_kafka::record::OutRecord;
use retide_kafka::topics::Topics;
use retide_shell::clock;
use retide_shell::scenes::Follower;

use crate::cli::output::{Exit, Failed, Output, Row, Rows, say};
use crate::cli::reach::{failed, reach};
use crate::cli::{run, suggest};

/// What `submit` takes.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  echo '{\"order\":7}' | retide submit --scene payment
  retide submit --scene payment --id order-7 --delay 10s order.json
  retide submit --scene report --due 2026-12-24T18:00:00Z --header content-type=text/csv report.csv
  jq -c '.[]' orders.json | retide submit --scene payment --lines

A payload that is JSON goes to the target as application/json, unless
--header content-type says something else. Any producer can do the same: the
payload is the record's value, and the header retry-scene is the only one it
has to set.")]
pub(super) struct Options {
    /// The rules that the task follows
    #[arg(long, value_name = "NAME")]
    scene: String,
    /// The task's identity, and its idempotency key at the target [default: a random one]
    #[arg(long, value_name = "ID", conflicts_with = "lines")]
    id: Option<String>,
    /// The record's key, which decides its partition
    #[arg(long)]
    key: Option<String>,
    /// How long to wait before the first attempt, such as 10s or 1h 30m
    #[arg(long, value_name = "DURATION", value_parser = span::parse, conflicts_with = "due")]
    delay: Option<Duration>,
    /// When to make the first attempt: RFC 3339, or milliseconds since the epoch
    #[arg(long, value_name = "TIME", value_parser = time)]
    due: Option<u64>,
    /// When to give up: RFC 3339, or milliseconds since the epoch
    #[arg(long, value_name = "TIME", value_parser = time)]
    deadline: Option<u64>,
    /// A header that goes along to the target; may be repeated
    #[arg(long = "header", value_name = "NAME=VALUE", value_parser = header)]
    headers: Vec<(String, String)>,
    /// Submit each line as a task of its own, as soon as it is read; empty ones are left out
    #[arg(long)]
    lines: bool,
    /// Even if there is no such scene
    #[arg(long)]
    force: bool,
    /// A file with scenes that exist, too, as `retide run` takes it
    #[arg(long, value_name = "FILE")]
    scenes: Option<PathBuf>,
    /// The payload's file; - or nothing for stdin
    #[arg(value_name = "FILE")]
    file: Option<PathBuf>,
}

/// A task that was submitted.
#[derive(Debug, Serialize)]
struct TaskRow {
    /// Its identity.
    id: String,
    /// The retry topic.
    topic: Arc<str>,
    /// The partition.
    partition: i32,
    /// The offset.
    offset: i64,
}

/// Largest payload that is read: above what brokers take by default, so that it is the broker who refuses.
const MOST: u64 = 16 << 20;

/// Tasks handed over before their acknowledgements are waited for.
const AT_ONCE: usize = 10_000;

/// Lines that are read ahead of those that are sent.
const AHEAD: usize = 1_000;

/// Pause between two looks at what became of tasks.
const HEAR: Duration = Duration::from_millis(10);

/// Pause between two looks while there is nothing to hear of.
const IDLE: Duration = Duration::from_millis(200);

// === impl TaskRow ===

impl Row for TaskRow {
    const HEADINGS: &'static [&'static str] = &["id", "topic", "partition", "offset"];

    fn cells(&self) -> Vec<String> {
        vec![
            self.id.clone(),
            self.topic.to_string(),
            self.partition.to_string(),
            self.offset.to_string(),
        ]
    }
}

/// Puts tasks on the retry topic.
pub(super) fn submit(config: &Config, options: &Options, output: Output) -> Result<(), Failed> {
    check_times(options)?;
    let topics = Topics::new(&config.topics.prefix, &config.topics.tiers);
    reach(config, User::Submit, &[&topics.tasks])?;
    if !options.force {
        check_scene(config, &topics, options)?;
    }
    let input = open(options)?;
    let mut submission = Submission {
        config,
        options,
        topic: topics.tasks,
        publisher: Publisher::try_new(&client_config(config.kafka.producer()))?,
        ids: VecDeque::new(),
        rows: Rows::new(output),
        stored: 0,
        failed: 0,
        refused: None,
    };
    let read = if options.lines {
        submission.lines(input)
    } else {
        payload(input).map(|payload| submission.send(payload))
    };
    // What was sent is told of, whatever comes then.
    submission.finish().and(read)
}

/// Refuses times that would make a dead letter of every task.
fn check_times(options: &Options) -> Result<(), Failed> {
    let now = clock::timestamp();
    let due = options.due.map(|due| headers::check_due("--due", due, now));
    let deadline = options.deadline;
    let deadline = deadline.map(|it| headers::check_deadline("--deadline", it, now));
    if options.delay.is_some_and(|delay| delay > MAX_DELAY) {
        let message = format!(
            "--delay is over {} days, the longest wait of a task",
            MAX_DELAY.as_secs() / 86_400
        );
        return Err(Failed::because(Exit::Usage, message));
    }
    for checked in [due, deadline].into_iter().flatten() {
        checked.map_err(|words| Failed::because(Exit::Usage, String::from(words)))?;
    }
    Ok(())
}

/// Refuses a scene that does not exist, so that its tasks would be dead letters.
fn check_scene(config: &Config, topics: &Topics, options: &Options) -> Result<(), Failed> {
    let name = &options.scene;
    let mut known: BTreeSet<String> = config.scenes.keys().cloned().collect();
    if let Some(file) = &options.scenes {
        known.extend(run::scenes(file, &config.topics.prefix)?.into_keys());
    }
    if known.contains(name) {
        return Ok(());
    }
    match Follower::start(
        &client_config(config.kafka.consumer()),
        &topics.scenes,
        &config.processor.group,
    ) {
        Ok(follower) => known.extend(follower.scenes().keys().cloned()),
        Err(error) => {
            let error = with_causes(&error);
            say(&format!(
                "note: whether the scene {name} exists was not checked: {error}"
            ));
            return Ok(());
        }
    }
    if known.contains(name) {
        return Ok(());
    }
    if known.contains(DEFAULT) {
        say(&format!(
            "note: there is no scene {name}; its tasks follow the scene {DEFAULT}"
        ));
        return Ok(());
    }
    let mut message = format!("there is no scene {name}: its tasks would be dead letters");
    let known: Vec<&str> = known.iter().map(String::as_str).collect();
    message.push_str(&suggest::words(name, &known));
    let fix = format!(
        "{}; or --force, which submits all the same",
        config.invocation.line("scenes apply FILE")
    );
    Err(Failed::because(Exit::NotFound, message).with_fix(&fix))
}

/// Everything, as one payload.
fn payload(input: impl Read) -> Result<Vec<u8>, Failed> {
    let mut payload = Vec::new();
    input.take(MOST + 1).read_to_end(&mut payload)?;
    if payload.len() as u64 > MOST {
        let message = format!("the payload is over {} MiB", MOST >> 20);
        return Err(Failed::because(Exit::Usage, message));
    }
    Ok(payload)
}

/// The next line without its end; none at the end.
fn line(input: &mut impl BufRead) -> Result<Option<Vec<u8>>, Failed> {
    let mut line = Vec::new();
    input.by_ref().take(MOST + 1).read_until(b'\n', &mut line)?;
    if line.is_empty() {
        return Ok(None);
    }
    if line.last() == Some(&b'\n') {
        line.pop();
    } else if line.len() as u64 > MOST {
        let message = format!("a line is over {} MiB", MOST >> 20);
        return Err(Failed::because(Exit::Usage, message));
    }
    // The end of a line on Windows.
    if line.last() == Some(&b'\r') {
        line.pop();
    }
    Ok(Some(line))
}

/// Tasks on their way.
struct Submission<'a> {
    /// The configuration.
    config: &'a Config,
    /// What the command line says.
    options: &'a Options,
    /// The retry topic.
    topic: Arc<str>,
    /// Produces them.
    publisher: Publisher,
    /// The identities of those of which nothing was heard yet.
    ids: VecDeque<String>,
    /// What is printed of those that are stored.
    rows: Rows<TaskRow>,
    /// How many are stored.
    stored: usize,
    /// How many are not.
    failed: usize,
    /// The last refusal.
    refused: Option<KafkaError>,
}

// === impl Submission ===

impl Submission<'_> {
    /// Sends each line as it comes.
    fn lines(&mut self, mut input: Box<dyn BufRead + Send>) -> Result<(), Failed> {
        let (sender, lines) = sync_channel(AHEAD);
        // Apart: a line is sent, and its place printed, while the next one is waited for.
        thread::Builder::new()
            .name("lines".to_owned())
            .spawn(move || {
                while let Some(line) = line(&mut input).transpose() {
                    let over = line.is_err();
                    if sender.send(line).is_err() || over {
                        break;
                    }
                }
            })?;
        loop {
            let wait = if self.publisher.in_flight() > 0 {
                HEAR
            } else {
                IDLE
            };
            match lines.recv_timeout(wait) {
                Ok(line) => {
                    let line = line?;
                    if !line.is_empty() {
                        self.send(line);
                    }
                    self.take(Duration::ZERO)?;
                }
                Err(RecvTimeoutError::Timeout) => {
                    self.take(Duration::ZERO)?;
                    self.rows.flush()?;
                }
                Err(RecvTimeoutError::Disconnected) => return Ok(()),
            }
            while self.publisher.in_flight() >= AT_ONCE {
                self.take(HEAR)?;
            }
        }
    }

    /// Produces a task.
    fn send(&mut self, payload: Vec<u8>) {
        let id = match &self.options.id {
            Some(id) => id.clone(),
            None => Uuid::new_v4().to_string(),
        };
        let record = self.record(&id, payload);
        self.publisher.send(&record);
        self.ids.push_back(id);
    }

    /// Prints where tasks stand of which that is heard within `wait`.
    fn take(&mut self, wait: Duration) -> Result<(), Failed> {
        for result in self.publisher.acknowledged(wait) {
            self.told(result)?;
        }
        Ok(())
    }

    /// Prints where the next task stands, or why not.
    fn told(&mut self, result: Result<Stored, KafkaError>) -> Result<(), Failed> {
        let id = self.ids.pop_front().unwrap_or_default();
        match result {
            Ok(Stored { partition, offset }) => {
                self.stored += 1;
                self.rows.add(TaskRow {
                    id,
                    topic: Arc::clone(&self.topic),
                    partition,
                    offset,
                })
            }
            Err(error) => {
                self.failed += 1;
                say(&format!("error: task {id}: {error}"));
                self.refused = Some(error);
                Ok(())
            }
        }
    }

    /// Waits until it is known of all tasks what became of them.
    fn finish(mut self) -> Result<(), Failed> {
        for result in self.publisher.finish() {
            self.told(result)?;
        }
        let Self {
            config,
            topic,
            rows,
            stored,
            failed: count,
            refused,
            ..
        } = self;
        rows.end()?;
        let Some(error) = refused else {
            return Ok(());
        };
        let what = format!(
            "{count} of {} tasks were not stored on {topic}",
            stored + count
        );
        let failed = failed(config, User::Submit, &what, &error);
        Err(if stored > 0 {
            failed.or_exit(Exit::Partly)
        } else {
            failed
        })
    }

    /// The record of one task.
    fn record(&self, id: &str, payload: Vec<u8>) -> OutRecord {
        let options = self.options;
        let header = |name: &str, value: String| Header {
            name: headers::name(name),
            value: Some(value.into()),
        };
        let mut all = vec![
            header(headers::SCENE, options.scene.clone()),
            header(headers::ID, id.to_owned()),
        ];
        let delay = options.delay.map(|delay| delay.as_millis().to_string());
        let due = options.due.map(|due| due.to_string());
        let deadline = options.deadline.map(|deadline| deadline.to_string());
        for (name, value) in [
            (headers::DELAY_MS, delay),
            (headers::DUE_AT, due),
            (headers::DEADLINE_AT, deadline),
        ] {
            all.extend(value.map(|value| header(name, value)));
        }
        for (name, value) in &options.headers {
            all.push(header(name, value.clone()));
        }
        let is_described = options
            .headers
            .iter()
            .any(|(name, _)| headers::is_named(name.as_bytes(), headers::CONTENT_TYPE));
        if !is_described && retide_avro::is_json(&payload) {
            all.push(header(headers::CONTENT_TYPE, retide_avro::JSON.to_owned()));
        }
        OutRecord {
            topic: Arc::clone(&self.topic),
            partition: None,
            key: options.key.clone().map(Bytes::from),
            value: Some(payload.into()),
            headers: all.into_iter().collect(),
        }
    }
}

/// The file, or stdin.
fn open(options: &Options) -> Result<Box<dyn BufRead + Send>, Failed> {
    match &options.file {
        Some(file) if file.as_os_str() != "-" => {
            let opened = File::open(file).map_err(|error| {
                Failed::because(Exit::Usage, format!("read {}: {error}", file.display()))
            })?;
            Ok(Box::new(BufReader::new(opened)))
        }
        _ => {
            if io::stdin().is_terminal() {
                say("reading the payload from the terminal; end it with Ctrl-D");
            }
            Ok(Box::new(BufReader::new(io::stdin())))
        }
    }
}

/// A point in time, in milliseconds since the epoch; rounded up, so that a task is not early.
pub(super) fn time(text: &str) -> Result<u64, String> {
    if let Ok(millis) = text.parse() {
        return Ok(millis);
    }
    let time: SystemTime = humantime::parse_rfc3339_weak(text)
        .or_else(|_| humantime::parse_rfc3339(text))
        .map_err(|_| {
            "expected a time such as 2026-12-24T18:00:00Z, or milliseconds since the epoch"
                .to_owned()
        })?;
    let since = time
        .duration_since(UNIX_EPOCH)
        .map_err(|_| "expected a time after 1970".to_owned())?;
    u64::try_from(since.as_nanos().div_ceil(1_000_000)).map_err(|error| error.to_string())
}

/// A header of the producer's.
fn header(text: &str) -> Result<(String, String), String> {
    let (name, value) = text
        .split_once('=')
        .filter(|(name, _)| !name.is_empty())
        .ok_or("expected NAME=VALUE")?;
    if headers::is_own(name.as_bytes()) || headers::misspelt(name.as_bytes()).is_some() {
        return Err(format!(
            "{name} is set by retide, or by an option of this command"
        ));
    }
    Ok((name.to_owned(), value.to_owned()))
}

impl From<KafkaError> for Failed {
    /// A producer that cannot be made.
    fn from(error: KafkaError) -> Self {
        Failed::new(Exit::Failure, &error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_rfc_3339_or_milliseconds_and_never_rounded_down() {
        assert_eq!(time("1700000000123"), Ok(1_700_000_000_123));
        assert_eq!(time("1970-01-01T00:00:01Z"), Ok(1_000));
        assert_eq!(time("1970-01-01T00:00:00.0001Z"), Ok(1));
        assert!(time("tomorrow").is_err());
        assert!(time("-5").is_err());
    }

    #[test]
    fn a_line_ends_as_on_windows_or_not() {
        let mut input = &b"a\r\n\r\nb\rc\nd\r"[..];
        let mut lines = Vec::new();

        while let Some(line) = line(&mut input).unwrap_or_else(|_| panic!("a line")) {
            lines.push(line);
        }

        assert_eq!(lines, [&b"a"[..], b"", b"b\rc", b"d"]);
    }

    #[test]
    fn a_header_of_retides_own_is_refused() {
        assert_eq!(header("a=b=c"), Ok(("a".into(), "b=c".into())));
        assert!(header("=b").is_err());
        assert!(header("a").is_err());
        assert!(header("retry-attempt=9").is_err());
        assert!(header("Retry-Due-At=9").is_err());
        assert!(header("retry_due_at=9").is_err());
    }
}
