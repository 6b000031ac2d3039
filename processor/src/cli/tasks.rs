//! `retide tasks`: which tasks are under way, and what people do with them.
//!
//! | module | what |
//! |---|---|
//! | `selector` | which tasks are meant, as options |
//! | `under_way` | `ls`, `show` and `--dry-run`: the topics are read |
//! | `act` | `cancel`, `run-now`, `reschedule`, `complete`: a command is sent, and its end waited for |
//! | `follow` | what becomes of commands |
//!
//! Invariant: nothing is sent before all of it was read as workers read it, and somebody has said yes.

mod act;
pub(super) mod follow;
pub(super) mod selector;
pub(super) mod under_way;

use std::time::Duration;

use clap::{ArgGroup, Args, Subcommand, ValueEnum};

use retide_config::Config;
use retide_core::span;

use crate::cli::output::{Failed, Output};

use self::act::Asked;
use self::selector::Select;

/// What is done with tasks.
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// List tasks under way
    Ls(Ls),
    /// Show tasks under way, all that is known of each
    Show(Ls),
    /// End tasks as cancelled, without another attempt
    #[command(after_help = ACTING)]
    Cancel(Acting),
    /// Let the next attempt start at once
    #[command(after_help = ACTING)]
    RunNow(Acting),
    /// Let the next attempt start at another time
    #[command(after_help = ACTING)]
    Reschedule(Reschedule),
    /// Tell what came of an attempt that was made elsewhere
    #[command(after_help = ACTING)]
    Complete(Complete),
    /// Tell what became of a command
    #[command(name = "command")]
    Told(Again),
}

/// What `ls` and `show` take.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  retide tasks ls --scene payment
  retide tasks ls --header order-no=4711
  retide tasks ls --scene payment --due ..now --error http-503
  retide --output ndjson tasks ls --entered -2h.. --limit 1000000 | jq .id

The topics are read from where the group has got to: what moves meanwhile may
be missing, or be there twice. `retide explain ID` tells what a task has been
through. Exit code 3: none was found; 6: not all was read.")]
pub(super) struct Ls {
    /// Which tasks.
    #[command(flatten)]
    select: Select,
    /// Print at most so many; all are counted
    #[arg(long, value_name = "N", default_value = "100", value_parser = clap::value_parser!(u32).range(1..))]
    limit: u32,
    /// Stop reading after this
    #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = span::parse)]
    timeout: Duration,
}

/// What the commands take that do something with tasks.
#[derive(Debug, Args)]
pub(super) struct Acting {
    /// Which tasks.
    #[command(flatten)]
    select: Select,
    /// Why; it stands in the events of the tasks
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
    /// Who wants it [default: $USER]
    #[arg(long, value_name = "NAME")]
    by: Option<String>,
    /// Do not ask
    #[arg(long, short)]
    yes: bool,
    /// Only count the tasks, and show five of them
    #[arg(long)]
    dry_run: bool,
    /// The command's name [default: a random one]
    #[arg(long, value_name = "ID")]
    id_of_command: Option<String>,
    /// How long the end of the command is waited for
    #[arg(long, value_name = "DURATION", default_value = "10m", value_parser = span::parse)]
    wait: Duration,
    /// Do not wait for the end of the command
    #[arg(long, conflicts_with = "wait")]
    no_wait: bool,
    /// How long it also applies to tasks that --id names and that do not exist yet, at most 7d; 0s for not at all [default: 1h]
    #[arg(long, value_name = "DURATION", value_parser = span::parse)]
    expires: Option<Duration>,
}

/// What `reschedule` takes.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("when").args(["at", "delay"]).required(true))]
pub(super) struct Reschedule {
    /// When: RFC 3339, or milliseconds since the epoch
    #[arg(long, value_name = "TIME")]
    at: Option<String>,
    /// When, counted from now, such as 10m
    #[arg(long = "in", value_name = "DURATION", value_parser = span::parse)]
    delay: Option<Duration>,
    /// What all of them take.
    #[command(flatten)]
    acting: Acting,
}

/// What `complete` takes.
#[derive(Debug, Args)]
pub(super) struct Complete {
    /// What came of it
    #[arg(long, value_enum)]
    outcome: Outcome,
    /// What went wrong
    #[arg(long = "failure", value_name = "CLASS: MESSAGE")]
    failure: Option<String>,
    /// What all of them take.
    #[command(flatten)]
    acting: Acting,
}

/// What came of an attempt that was made elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Outcome {
    /// The task is delivered
    Success,
    /// The attempt failed, and another one may follow
    Retryable,
    /// The attempt failed for good
    Permanent,
}

/// What `command` takes.
#[derive(Debug, Args)]
pub(super) struct Again {
    /// The command's name, as it was printed when the command was sent
    #[arg(value_name = "COMMAND_ID")]
    id: String,
    /// How long its end is waited for
    #[arg(long, value_name = "DURATION", default_value = "0s", value_parser = span::parse)]
    wait: Duration,
}

/// Shown by `--help` of what does something with tasks.
const ACTING: &str = "\
Examples:
  retide tasks cancel --header order-no=4711 --reason refunded
  retide tasks run-now --scene payment --error http-503 --dry-run
  retide tasks reschedule --id order-7 --in 2h --yes
  retide tasks complete --id order-7 --outcome success --yes

A command reaches tasks wherever they wait. Ctrl-C ends the waiting, not the
command. Exit code 3: no task was found; 6: for some it was too late.";

/// Does what is said with tasks.
pub(super) fn tasks(config: &Config, command: Command, output: Output) -> Result<(), Failed> {
    let acting = match command {
        Command::Ls(options) => return under_way::ls(config, &options, output),
        Command::Show(options) => return under_way::show(config, &options, output),
        Command::Told(options) => {
            return act::again(config, &options.id, options.wait, output);
        }
        Command::Cancel(acting) => (Asked::Cancel, acting),
        Command::RunNow(acting) => (Asked::RunNow, acting),
        Command::Reschedule(Reschedule { at, delay, acting }) => {
            (Asked::Reschedule { at, delay }, acting)
        }
        Command::Complete(Complete {
            outcome,
            failure,
            acting,
        }) => {
            let outcome = match outcome {
                Outcome::Success => "success",
                Outcome::Retryable => "retryable",
                Outcome::Permanent => "permanent",
            };
            (Asked::Complete { outcome, failure }, acting)
        }
    };
    let (asked, acting) = acting;
    act::act(config, &asked, &acting, output)
}
