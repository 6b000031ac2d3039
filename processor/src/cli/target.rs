//! `retide target`: an HTTP target to play with, which shows each request in one line and fails as often as it is told to.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::time::Duration;

use axum::http::StatusCode;
use clap::Args;
use serde::Serialize;
use signal_hook::consts::{SIGINT, SIGTERM};
use tokio::runtime::Runtime;
use uuid::Uuid;

use retide_history::timeline::clock;

use crate::cli::output::{Exit, Failed, Output, put, say, width};
use crate::cli::terminal;
use crate::playground::{self, Answers, Reply, Request};

/// What `target` takes.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  retide target
      takes everything, at http://127.0.0.1:8000
  retide target --fail-first 2
      the first two attempts of each task fail
  retide target --fail 0.3 --status 429 --retry-after 5
      three in ten attempts are turned away for 5 seconds
  retide target --delay 10s
      answers so late that attempts time out

One line for each request goes to stdout. Ctrl-C ends it.
It is for trying things out: anybody who can reach it may call it.")]
pub(super) struct Options {
    /// Where it listens; port 0 takes a free one
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8000")]
    listen: SocketAddr,
    /// The part of the requests that fail, from 0 to 1
    #[arg(long, value_name = "PART", default_value_t = 0.0, value_parser = part)]
    fail: f64,
    /// The attempts of each task that fail, before one is let through
    #[arg(long, value_name = "N", default_value_t = 0)]
    fail_first: u32,
    /// The status of those that fail
    #[arg(long, value_name = "STATUS", default_value = "503", value_parser = status)]
    status: StatusCode,
    /// What those that fail ask for with Retry-After, in seconds
    #[arg(long, value_name = "SECONDS")]
    retry_after: Option<u64>,
    /// How long each answer takes
    #[arg(long, value_name = "DURATION", default_value = "0s", value_parser = retide_core::span::parse)]
    delay: Duration,
    /// Where chance comes from: the same seed, the same failures
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Print headers and bodies whole
    #[arg(long)]
    verbose: bool,
}

/// Requests that are told and not printed yet, at most: those who call wait then, since nobody reads.
const AHEAD: usize = 1_000;

/// Longest wait for a request before signals are looked at.
const LOOK: Duration = Duration::from_millis(50);

/// Characters of a body that a line shows.
const SHOWN: usize = 60;

/// One request, as it is printed.
#[derive(Debug, Serialize)]
struct RequestRow {
    /// When it came.
    at: String,
    /// Its method.
    method: String,
    /// Its path and query.
    path: String,
    /// What was answered.
    status: u16,
    /// The task's identity.
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<String>,
    /// The task's scene.
    #[serde(skip_serializing_if = "Option::is_none")]
    scene: Option<String>,
    /// Which attempt it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    attempt: Option<u32>,
    /// All headers, in order.
    headers: Vec<(String, String)>,
    /// The body as text.
    body: String,
}

/// The target.
struct Target {
    /// How it answers.
    how: How,
    /// Requests without a task so far.
    others: AtomicU64,
    /// Prints what came.
    lines: SyncSender<RequestRow>,
}

/// How a target answers.
#[derive(Clone, Copy, Debug)]
struct How {
    /// The part of the requests that fail.
    fail: f64,
    /// The attempts of each task that fail.
    fail_first: u32,
    /// What a failure is.
    failure: Reply,
    /// How long each answer takes.
    delay: Duration,
    /// Where chance comes from.
    seed: u64,
}

/// Plays a target until a signal.
pub(super) fn target(options: &Options, output: Output) -> Result<(), Failed> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&stop))?;
    }
    let (sender, lines) = sync_channel(AHEAD);
    let target = Arc::new(Target {
        how: options.how(),
        others: AtomicU64::new(0),
        lines: sender,
    });
    let runtime = Runtime::new()?;
    let served = runtime.block_on(playground::serve(options.listen, target));
    let address = served.map_err(|error| {
        let message = format!("listen on {}: {error}", options.listen);
        let fix = "another address, such as --listen 127.0.0.1:8001";
        Failed::because(Exit::Precondition, message).with_fix(fix)
    })?;
    say(&format!(
        "listening on http://{address}, {}; Ctrl-C ends it",
        options.words()
    ));
    let mut printed = 0_u64;
    while !stop.load(Ordering::Relaxed) {
        match lines.recv_timeout(LOOK) {
            Ok(line) => {
                let text = match output {
                    Output::Table => line.text(options.verbose),
                    Output::Json => format!(
                        "{}{}",
                        if printed == 0 { "[\n" } else { ",\n" },
                        json(&line)?
                    ),
                    Output::Ndjson => json(&line)?,
                };
                printed += 1;
                put(&text)?;
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    // Calls that are still answered late are of no interest any more.
    runtime.shutdown_background();
    match (output, printed) {
        (Output::Json, 0) => put("[]"),
        (Output::Json, _) => put("]"),
        (Output::Table | Output::Ndjson, _) => Ok(()),
    }
}

/// A line as JSON.
fn json(line: &RequestRow) -> Result<String, Failed> {
    Ok(serde_json::to_string(line).map_err(std::io::Error::from)?)
}

// === impl Options ===

impl Options {
    /// How the target answers.
    fn how(&self) -> How {
        How {
            fail: self.fail,
            fail_first: self.fail_first,
            failure: Reply {
                retry_after: self.retry_after,
                ..Reply::of(self.status)
            },
            delay: self.delay,
            seed: self.seed,
        }
    }

    /// How the target answers, in words.
    fn words(&self) -> String {
        let status = self.status.as_u16();
        let mut fails = Vec::new();
        if self.fail_first > 0 {
            fails.push(format!(
                "{status} to the first {} attempts of each task",
                self.fail_first
            ));
        }
        if self.fail > 0.0 {
            fails.push(format!("{status} to {} % of them", self.fail * 100.0));
        }
        match fails.as_slice() {
            [] => "200 to all requests".to_owned(),
            fails => fails.join(", "),
        }
    }
}

// === impl How ===

impl How {
    /// What is answered to an attempt of a task; chance is of both and the seed, whatever came between.
    fn answer(&self, id: &str, attempt: u32) -> Reply {
        let space = Uuid::from_u64_pair(self.seed, u64::from(attempt));
        let (chance, _) = Uuid::new_v5(&space, id.as_bytes()).as_u64_pair();
        let chance = chance as f64 / u64::MAX as f64;
        let fails = attempt <= self.fail_first || chance < self.fail;
        Reply {
            delay: self.delay,
            ..if fails {
                self.failure
            } else {
                Reply::of(StatusCode::OK)
            }
        }
    }
}

impl Answers for Target {
    fn answer(&self, request: &Request) -> Reply {
        let text = |name: &str| request.text(name).map(str::to_owned);
        let id = text("retry-id").or_else(|| text("idempotency-key"));
        let attempt = request
            .text("retry-attempt")
            .and_then(|text| text.parse().ok());
        let reply = if let (Some(id), Some(attempt)) = (&id, attempt) {
            self.how.answer(id, attempt)
        } else {
            // Nothing of retide's: each counts for itself, after the attempts that fail of a task.
            let number = self.others.fetch_add(1, Ordering::Relaxed);
            self.how.answer(&number.to_string(), u32::MAX)
        };
        let line = RequestRow {
            at: clock(retide_shell::clock::timestamp()),
            method: request.method.to_string(),
            path: request.uri.to_string(),
            status: reply.status.as_u16(),
            id,
            scene: text("retry-scene"),
            attempt,
            headers: request
                .headers
                .iter()
                .map(|(name, value)| {
                    let value = String::from_utf8_lossy(value.as_bytes());
                    (name.to_string(), value.into_owned())
                })
                .collect(),
            body: String::from_utf8_lossy(&request.body).into_owned(),
        };
        // It ends then.
        let _ = self.lines.send(line);
        reply
    }
}

// === impl RequestRow ===

impl RequestRow {
    /// One line for people, or all there is.
    fn text(&self, whole: bool) -> String {
        let time = self.at.split_once('T').map_or(&*self.at, |(_, time)| time);
        let mut parts = vec![
            time.trim_end_matches('Z').to_owned(),
            format!("{} {}", self.method, self.path),
            self.status.to_string(),
        ];
        parts.extend(self.id.clone());
        parts.extend(self.attempt.map(|attempt| format!("attempt {attempt}")));
        let head = terminal::line(&parts.join("  "));
        // The feed at the end of a file is not shown.
        let body = terminal::line(self.body.trim_end());
        if whole {
            let mut text = vec![head];
            let headers = self.headers.iter();
            text.extend(
                headers.map(|(name, value)| format!("    {name}: {}", terminal::line(value))),
            );
            text.push(format!("    {body}"));
            return text.join("\n");
        }
        let shown: String = body.chars().take(SHOWN).collect();
        let line = format!("{head}  {shown}");
        let line = line.trim_end();
        match width() {
            Some(width) => line.chars().take(width).collect(),
            None => line.to_owned(),
        }
    }
}

/// A part of all.
fn part(text: &str) -> Result<f64, String> {
    let part: Option<f64> = text.parse().ok();
    part.filter(|part| (0.0..=1.0).contains(part))
        .ok_or_else(|| "expected a number from 0 to 1, such as 0.3".to_owned())
}

/// A status.
fn status(text: &str) -> Result<StatusCode, String> {
    let status: Option<u16> = text.parse().ok();
    status
        .filter(|status| (200..=599).contains(status))
        .and_then(|status| StatusCode::from_u16(status).ok())
        .ok_or_else(|| "expected a status from 200 to 599, such as 503".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_repeats_itself_and_the_first_attempts_fail() {
        let how = How {
            fail: 0.3,
            fail_first: 0,
            failure: Reply::of(StatusCode::SERVICE_UNAVAILABLE),
            delay: Duration::ZERO,
            seed: 1,
        };
        let failed = |how: How| -> Vec<u32> {
            let all = 1..=1_000;
            all.filter(|attempt| how.answer("a", *attempt) == how.failure)
                .collect()
        };

        assert!((200..400).contains(&failed(how).len()));
        assert_eq!(failed(how), failed(how));
        assert_ne!(failed(how), failed(How { seed: 2, ..how }));
        let first = How {
            fail: 0.0,
            fail_first: 2,
            ..how
        };
        assert_eq!(failed(first), [1, 2]);
        assert_eq!(failed(How { fail: 1.0, ..how }).len(), 1_000);
    }

    #[test]
    fn what_can_be_no_part_or_status_is_refused() {
        assert_eq!(part("0.3"), Ok(0.3));
        assert!(part("30").is_err() && part("NaN").is_err() && part("-1").is_err());
        assert_eq!(status("429"), Ok(StatusCode::TOO_MANY_REQUESTS));
        assert!(status("99").is_err() && status("teapot").is_err());
    }
}
