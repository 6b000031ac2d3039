//! `retide bench park`.

use std::time::Duration;

use clap::Args;

use retide_core::span;

use crate::bench::{self, Memory, Parked, Stage};
use crate::cli::bench::late;

/// What `park` takes.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  retide bench park
      a million tasks that wait: start, memory, idling, take-over
  retide bench park --due-in 90s
      and a million more, all due 90 s after producing them began
  retide bench park --tasks 10000000 --due-in 5m
      ten million of each

retide runs in processes of its own, with this configuration. Memory and
processor time are read from /proc; elsewhere they are left out.")]
pub(in crate::cli) struct Options {
    /// Tasks that are parked
    #[arg(long, default_value_t = 1_000_000, value_name = "N", value_parser = clap::value_parser!(u64).range(1_000..=10_000_000))]
    tasks: u64,
    /// Bytes of each payload
    #[arg(long, default_value_t = 512, value_name = "N", value_parser = clap::value_parser!(u32).range(0..=900_000))]
    bytes: u32,
    /// How long an idle process is watched
    #[arg(long, default_value = "10s", value_name = "DURATION", value_parser = span)]
    idle: Duration,
    /// Park as many tasks again, for a Kafka target, all due so long after the first of them is produced; leave time to produce them
    #[arg(long, value_name = "DURATION", value_parser = span)]
    due_in: Option<Duration>,
    /// Measure on a broker in this process
    #[arg(long)]
    pub(super) embedded: bool,
}

// === impl Options ===

impl Options {
    /// What is to be measured.
    pub(super) const fn parked(&self) -> Parked {
        Parked {
            tasks: self.tasks,
            bytes: self.bytes as usize,
            idle: self.idle,
            due_in: self.due_in,
        }
    }
}

/// The table of a measurement.
pub(super) fn table(measured: &bench::Park) -> String {
    let bench::Park {
        tasks,
        bytes,
        tiers,
        empty,
        parked,
        take_over,
        drain,
    } = measured;
    let mut text = format!(
        "{tasks} tasks of {bytes} bytes each, parked in {}\n{}\n{}\n\
         another process joins in {:.2} s, and takes over {:.2} s after the first one is killed (session.timeout.ms = {})",
        tiers.join(", "),
        stage("nothing parked", empty),
        stage("all parked", parked),
        take_over.join_seconds,
        take_over.seconds,
        take_over
            .session_timeout_ms
            .as_deref()
            .unwrap_or("the client's default"),
    );
    if let Some(drained) = drain {
        text.push('\n');
        text.push_str(&drain_lines(drained));
    }
    text
}

/// What became of those that were due at once.
fn drain_lines(drained: &bench::Drained) -> String {
    format!(
        "{} more, all due at once: on the target's topic in {:.1} s, {:.0} /s; {}, {} of a processor\n\
         {} new tasks a second of another scene\n{}\n{}",
        drained.tasks,
        drained.seconds,
        drained.per_second,
        memory(drained.memory),
        percent(drained.processor_percent),
        drained.other_rate,
        late("before", &drained.before_ms),
        late("meanwhile", &drained.meanwhile_ms),
    )
}

/// One line about a process.
fn stage(name: &str, stage: &Stage) -> String {
    format!(
        "{name:<16} ready in {:.2} s · {} · idle {} of a processor",
        stage.ready_seconds,
        memory(stage.memory),
        percent(stage.processor_percent),
    )
}

/// Memory, in words.
fn memory(memory: Option<Memory>) -> String {
    memory.map_or_else(
        || "memory not known here".to_owned(),
        |Memory { resident, peak }| {
            format!(
                "{:.1} MB resident (peak {:.1} MB)",
                resident as f64 / 1e6,
                peak as f64 / 1e6
            )
        },
    )
}

/// A share, in words.
fn percent(share: Option<f64>) -> String {
    share.map_or_else(
        || "an unknown share".to_owned(),
        |share| format!("{share:.1} %"),
    )
}

/// A time of at least a second and at most a day.
fn span(text: &str) -> Result<Duration, String> {
    span::parse(text)
        .ok()
        .filter(|span| (Duration::from_secs(1)..=Duration::from_hours(24)).contains(span))
        .ok_or_else(|| "expected a duration from 1s to 24h, such as 90s".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_known_is_said_to_be_so() {
        let unknown = Stage {
            ready_seconds: 0.5,
            memory: None,
            processor_percent: None,
        };

        assert_eq!(
            stage("all parked", &unknown),
            "all parked       ready in 0.50 s · memory not known here · idle an unknown share of a processor"
        );
    }

    #[test]
    fn times_are_bounded() {
        assert_eq!(span("90s"), Ok(Duration::from_secs(90)));
        for text in ["", "0s", "999ms", "25h", "x", "-1s"] {
            assert!(span(text).is_err(), "{text}");
        }
    }
}
