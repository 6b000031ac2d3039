//! `retide submit`: puts tasks on the retry topic, as any producer can.

use std::fs::File;
use std::io::{self, BufRead, BufReader, IsTerminal, Read};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use clap::Args;
use rdkafka::error::KafkaError;
use serde::Serialize;
use tokio::runtime::Runtime;
use uuid::Uuid;

use retide_avro::headers;
use retide_core::Header;

use crate::cli::init;
use crate::cli::output::{Exit, Failed, Output, Row, print, say};
use crate::cluster;
use crate::config::Config;
use crate::publish::{Publisher, Stored};
use crate::shell::ledger::OutRecord;
use crate::topics::Topics;

/// What `submit` takes.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  echo '{\"order\":7}' | retide submit --scene payment
  retide submit --scene payment --id order-7 --delay 10s order.json
  retide submit --scene report --due 2026-12-24T18:00:00Z --header content-type=text/csv report.csv
  jq -c '.[]' orders.json | retide submit --scene payment --lines

Any producer can do the same: the payload is the record's value, and the header retry-scene is the only one it has to set.")]
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
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration, conflicts_with = "due")]
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
    /// Submit each line as a task of its own
    #[arg(long)]
    lines: bool,
    /// The payload's file; - or nothing for stdin
    #[arg(value_name = "FILE")]
    file: Option<PathBuf>,
}

/// A task that was submitted.
#[derive(Debug, Serialize)]
struct Line {
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

// === impl Line ===

impl Row for Line {
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
    let topics = Topics::new(&config.topics.prefix, &config.topics.tiers);
    let plan = init::plan(config);
    let client = config.kafka.client();
    let there = Runtime::new()?.block_on(cluster::existing(&client, &plan))?;
    if !there.contains_key(&topics.tasks) {
        let message = format!(
            "topic {} does not exist; `retide init` creates it",
            topics.tasks
        );
        return Err(Failed::because(Exit::Precondition, message));
    }
    let mut input = open(options)?;
    let mut submission = Submission {
        config,
        options,
        topic: topics.tasks,
        output,
        stored: 0,
        failed: 0,
    };
    if options.lines {
        let mut payloads = input.split(b'\n');
        loop {
            let some: Vec<Vec<u8>> = payloads.by_ref().take(AT_ONCE).collect::<Result<_, _>>()?;
            if some.is_empty() {
                break;
            }
            let some = some.into_iter().filter(|payload| !payload.is_empty());
            submission.submit(some.collect())?;
        }
    } else {
        let mut payload = Vec::new();
        input.by_ref().take(MOST + 1).read_to_end(&mut payload)?;
        if payload.len() as u64 > MOST {
            let message = format!("the payload is over {} MiB", MOST >> 20);
            return Err(Failed::because(Exit::Usage, message));
        }
        submission.submit(vec![payload])?;
    }
    match submission {
        Submission { failed: 0, .. } => Ok(()),
        Submission { stored: 0, .. } => Err(Failed::silently(Exit::Failure)),
        Submission { .. } => Err(Failed::silently(Exit::Partly)),
    }
}

/// Tasks on their way.
struct Submission<'a> {
    /// The configuration.
    config: &'a Config,
    /// What the command line says.
    options: &'a Options,
    /// The retry topic.
    topic: Arc<str>,
    /// How what is stored is printed.
    output: Output,
    /// How many are stored.
    stored: usize,
    /// How many are not.
    failed: usize,
}

// === impl Submission ===

impl Submission<'_> {
    /// Produces one task for each payload, and prints where they stand.
    fn submit(&mut self, payloads: Vec<Vec<u8>>) -> Result<(), Failed> {
        let producer = self.config.kafka.producer();
        let mut publisher = Publisher::try_new(&producer)?;
        let mut ids = Vec::with_capacity(payloads.len());
        for payload in payloads {
            let id = match &self.options.id {
                Some(id) => id.clone(),
                None => Uuid::new_v4().to_string(),
            };
            publisher.send(&self.record(&id, payload));
            ids.push(id);
        }
        let mut lines = Vec::with_capacity(ids.len());
        for (id, result) in ids.into_iter().zip(publisher.finish()) {
            match result {
                Ok(Stored { partition, offset }) => lines.push(Line {
                    id,
                    topic: Arc::clone(&self.topic),
                    partition,
                    offset,
                }),
                Err(error) => {
                    self.failed += 1;
                    say(&format!("error: task {id}: {error}"));
                }
            }
        }
        self.stored += lines.len();
        if lines.is_empty() {
            return Ok(());
        }
        print(&lines, self.output)
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
fn open(options: &Options) -> Result<Box<dyn BufRead>, Failed> {
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
    if headers::NAMES.contains(&name) {
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
    fn a_header_of_retides_own_is_refused() {
        assert_eq!(header("a=b=c"), Ok(("a".into(), "b=c".into())));
        assert!(header("=b").is_err());
        assert!(header("a").is_err());
        assert!(header("retry-attempt=9").is_err());
    }
}
