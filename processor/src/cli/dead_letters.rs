//! `retide dead-letters`: what died, and why.
//!
//! | module | what |
//! |---|---|
//! | `find` | which dead letters are meant: the topic is read |
//! | `line` | a dead letter, for people and programs |
//! | `cohorts` | `cohorts`: how many died alike |
//! | `ls` | `ls` |
//! | `show` | `show`: one of them, all that is known of it |
//! | `payload` | bytes, for people |
//! | `replay` | `replay`: a campaign is started |
//! | `republish` | one whose tasks are produced to a topic |
//! | `edit` | what it changes in dead letters |
//! | `lacking` | payloads that they lack |
//! | `purge` | `purge`: the oldest are deleted |
//!
//! Invariant: no group is joined and nothing is committed; only `replay` writes and only `purge` deletes, after somebody has said that it shall.

mod cohorts;
mod edit;
mod find;
mod lacking;
mod line;
mod ls;
mod payload;
mod purge;
mod replay;
mod republish;
mod retarget;
mod show;

use std::time::Duration;

use clap::{Args, Subcommand};

use retide_config::Config;
use retide_core::span;

use crate::cli::output::{Failed, Output};
use crate::cli::tasks::selector::Select;

/// What is done with dead letters.
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Tell how many died alike, largest first: the first thing to look at
    Cohorts(Cohorts),
    /// List dead letters, newest first
    Ls(Ls),
    /// Show dead letters: headers, payload, and what became of the task
    Show(Show),
    /// Try dead letters again: slowly first, and only as long as it goes well
    Replay(Box<replay::Replay>),
    /// Delete the oldest dead letters
    Purge(Purge),
}

/// Which dead letters are meant, of those that can be read in time.
#[derive(Debug, Args)]
pub(super) struct Which {
    /// By what is known of the tasks.
    #[command(flatten)]
    select: Select,
    /// That died then: RFC 3339, milliseconds since 1970, now, or relative such as -2h..
    #[arg(long, value_name = "FROM..TO", allow_hyphen_values = true)]
    died: Option<String>,
    /// Stop reading after this
    #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = span::parse)]
    timeout: Duration,
}

/// What `cohorts` takes.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  retide dead-letters cohorts
      all of them
  retide dead-letters cohorts --died -1h..
      what died in the last hour
  retide dead-letters cohorts --scene payment --limit 5

What has one fingerprint failed alike: it is of the same scene, and its last
failure has the same host, the same class and, but for numbers, the same
message. Options that name no dead letter are left out: without any, all are
counted. Exit code 3: none was found; 6: not all was read.")]
pub(super) struct Cohorts {
    /// Which dead letters.
    #[command(flatten)]
    which: Which,
    /// Print at most so many cohorts; the others are counted together
    #[arg(long, value_name = "N", default_value = "50", value_parser = clap::value_parser!(u32).range(1..))]
    limit: u32,
}

/// What `ls` takes.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  retide dead-letters ls --fingerprint 1f58f9fcb66d76a1
  retide dead-letters ls --scene payment --died -1d.. --limit 20
  retide --output ndjson dead-letters ls --limit 1000000 | jq .id

All that fit are counted, and the newest printed. With --output ndjson they
are printed as they are read, oldest of a partition first, and reading stops
at the limit. Exit code 3: none was found; 6: not all was read.")]
pub(super) struct Ls {
    /// Which dead letters.
    #[command(flatten)]
    which: Which,
    /// Print at most so many
    #[arg(long, value_name = "N", default_value = "100", value_parser = clap::value_parser!(u32).range(1..))]
    limit: u32,
}

/// What `show` takes.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  retide dead-letters show --id order-7
  retide dead-letters show --fingerprint 1f58f9fcb66d76a1 --limit 1
  retide --output json dead-letters show --id order-7 | jq -r '.[0].payload.base64' | base64 -d

A payload is shown as JSON, as text, or as bytes, whichever it is; with
--output json it is there byte for byte. What became of the task is told from
the topics, as `retide explain` tells it. Exit code 3: none was found; 6: not
all was read.")]
pub(super) struct Show {
    /// Which dead letters.
    #[command(flatten)]
    which: Which,
    /// Show at most so many, the newest
    #[arg(long, value_name = "N", default_value = "5", value_parser = clap::value_parser!(u32).range(1..=show::MOST))]
    limit: u32,
    /// Show payloads whole, however long
    #[arg(long)]
    whole: bool,
    /// Do not tell what became of the tasks
    #[arg(long)]
    no_story: bool,
}

/// What `purge` takes.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  retide dead-letters purge --before 30d --dry-run
  retide dead-letters purge --before 2026-11-01T00:00:00Z
  retide dead-letters purge --before 3/1200 --yes
      of partition 3, what stands before offset 1200

Kafka deletes the beginning of a partition, and nothing else: a dead letter
that is older than TIME stays where a newer one stands before it, and none can
be deleted by its id, scene or fingerprint. What is deleted cannot be replayed.
Exit code 3: there is nothing to delete; 6: some partitions refused.")]
pub(super) struct Purge {
    /// What is older: RFC 3339, milliseconds since 1970, or a duration such as 30d; or what stands before PARTITION/OFFSET
    #[arg(long, value_name = "TIME|PARTITION/OFFSET", required_unless_present_any = purge::REFUSED)]
    before: Option<String>,
    /// Do not ask
    #[arg(long, short)]
    yes: bool,
    /// Only count the dead letters, and show five of them
    #[arg(long)]
    dry_run: bool,
    /// Stop counting after this
    #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = span::parse)]
    timeout: Duration,
    /// What no dead letter can be deleted by.
    #[command(flatten)]
    refused: purge::Refused,
}

/// Does what is said with dead letters.
pub(super) fn dead_letters(
    config: &Config,
    command: Command,
    output: Output,
) -> Result<(), Failed> {
    match command {
        Command::Cohorts(options) => cohorts::cohorts(config, &options, output),
        Command::Ls(options) => ls::ls(config, &options, output),
        Command::Show(options) => show::show(config, &options, output),
        Command::Replay(options) => replay::replay(config, &options, output),
        Command::Purge(options) => purge::purge(config, &options, output),
    }
}
