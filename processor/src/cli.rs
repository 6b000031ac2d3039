//! The command line: what each command takes, what it prints, and how it exits.
//!
//! | module | command |
//! |---|---|
//! | `ask` | who wants what a command does, and whether it shall be done |
//! | `bench` | `retide bench` |
//! | `board` | what people want, and which shards know it: what `hold` and `breakers` share |
//! | `breakers` | `retide breakers ls`, `open`, `close` and `reset` |
//! | `callbacks` | `retide callbacks` |
//! | `campaigns` | `retide campaigns` |
//! | `config` | `retide config` |
//! | `dead_letters` | `retide dead-letters` |
//! | `demo` | `retide demo` |
//! | `doctor` | `retide doctor` |
//! | `explain` | `retide explain` |
//! | `hold` | `retide hold`, `release` and `holds` |
//! | `init` | `retide init` |
//! | `run` | `retide run` |
//! | `scenes` | `retide scenes` |
//! | `preview` | `retide scenes preview` |
//! | `submit` | `retide submit` |
//! | `suggest` | the scene that was probably meant |
//! | `target` | `retide target` |
//! | `tasks` | `retide tasks` |
//! | `reach` | what commands ask of a cluster first, and what they say where it is refused |
//! | `terminal` | texts of others, so that they do nothing to a terminal |
//! | `output` | tables, JSON, and the ways a command can fail |
//!
//! Data goes to stdout, talk to stderr.

mod ask;
mod bench;
mod board;
mod breakers;
mod callbacks;
mod campaigns;
mod config;
mod dead_letters;
mod demo;
mod doctor;
mod explain;
mod hold;
mod init;
mod outlook;
mod output;
mod preview;
mod reach;
mod run;
mod scenes;
mod submit;
mod suggest;
mod target;
mod tasks;
mod terminal;

use std::env;
use std::path::PathBuf;

use clap::{Args, CommandFactory, Parser, Subcommand};

use retide_config::{Config, Overrides, Source, source};
use retide_shell::leave::leave;
use retide_shell::librdkafka::Librdkafka;
use retide_shell::log::{Format, Log, Speaker};

use self::output::{Exit, Failed, Output, put, say};

/// retide retries failed tasks, and Kafka is its only store.
#[derive(Debug, Parser)]
#[command(
    name = "retide",
    version,
    about,
    max_term_width = 100,
    arg_required_else_help = true,
    after_help = EXAMPLES,
    after_long_help = format!("{EXAMPLES}\n\n{LONG}"),
)]
struct Cli {
    /// What every command takes.
    #[command(flatten)]
    global: Global,
    /// What to do.
    #[command(subcommand)]
    command: Command,
}

/// What every command takes.
#[derive(Debug, Args)]
#[command(next_help_heading = "Global options")]
struct Global {
    /// The configuration [default: retide.toml, if it is there]
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Kafka's address, over the configuration's
    #[arg(long, global = true, value_name = "HOST:PORT,…")]
    bootstrap: Option<String>,
    /// What the topics' names begin with, over the configuration's
    #[arg(long, global = true, value_name = "PREFIX", value_parser = prefix)]
    prefix: Option<String>,
    /// How data is printed
    #[arg(
        long,
        global = true,
        value_enum,
        value_name = "FORMAT",
        default_value_t
    )]
    output: Output,
}

/// What to do.
#[derive(Debug, Subcommand)]
enum Command {
    /// Show it all on this machine; needs no Kafka
    Demo(demo::Options),
    /// Create the topics
    Init(init::Options),
    /// See whether all is well, and how to mend what is not
    Doctor(doctor::Options),
    /// Run workers: wait, try again, end tasks
    Run(run::Options),
    /// Put one task, or one per line, on the retry topic
    Submit(submit::Options),
    /// Tell what became of one task, from the topics alone
    Explain(explain::Options),
    /// Tell how tasks ended, one line each
    Callbacks(callbacks::Options),
    /// List, cancel, hurry or move tasks under way
    #[command(subcommand)]
    Tasks(Box<tasks::Command>),
    /// See what died, and why; try it again, or delete the oldest of it
    #[command(subcommand)]
    DeadLetters(Box<dead_letters::Command>),
    /// See how replays of dead letters go; pause, resume and abort them
    #[command(subcommand)]
    Campaigns(campaigns::Command),
    /// Keep targets from being called, let them be called, or let their breakers begin anew
    #[command(subcommand)]
    Breakers(breakers::Verb),
    /// Hold tasks: none of them is started until somebody lets them go
    Hold(Box<hold::Options>),
    /// Let go what a hold holds
    Release(Box<hold::Release>),
    /// List the holds, and how many tasks wait for each
    Holds,
    /// Show and change the rules on the scenes topic
    #[command(subcommand)]
    Scenes(scenes::Command),
    /// Show the configuration in force
    #[command(subcommand)]
    Config(config::Command),
    /// Be an HTTP target to play with, which shows each request
    Target(target::Options),
    /// Measure retide on a cluster, beside a raw baseline
    #[command(subcommand)]
    Bench(bench::Command),
    /// Be the target of a measurement
    #[command(hide = true)]
    BenchTarget(bench::Target),
    /// Print a completion script for a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
}

/// Shown by `-h` and `--help`.
const EXAMPLES: &str = "\
Examples:
  retide demo                     watch it work; needs only this binary
  retide init                     create the topics
  retide scenes apply scenes.toml say what a scene's tasks are to do
  retide doctor                   see whether all is well
  retide run                      work
  echo '{\"order\":7}' | retide submit --scene payment --id order-7
  retide explain order-7          see what became of a task";

/// Shown by `--help` only, behind the examples.
const LONG: &str = "\
Environment:
  RETIDE__SECTION__KEY       sets a key of the configuration, as
                             RETIDE__TOPICS__PREFIX does
  RETIDE__SECTION__KEY_FILE  the same, from a file: for secrets
  RETIDE_LOG                 what is logged to stderr: info or
                             retide=debug, say

Exit codes:
  0 ok, 1 failure, 2 usage or configuration, 3 not found,
  4 conflict or failed precondition, 5 unreachable, 6 partly done,
  130 interrupted";

/// Parses the command line, does what it says, and exits.
pub fn main() -> ! {
    let cli = Cli::parse();
    let log = log(&cli.command);
    let code = match dispatch(cli, &log) {
        Ok(()) => 0,
        Err(failed) => failed.report(&log),
    };
    leave(code, &log)
}

/// Does what the command line says.
fn dispatch(Cli { global, command }: Cli, log: &Log) -> Result<(), Failed> {
    match command {
        Command::Demo(options) => demo::demo(&options),
        Command::Completions { shell } => {
            let mut command = Cli::command();
            let mut script = Vec::new();
            // Into memory: the generator panics when a reader has seen enough.
            clap_complete::generate(shell, &mut command, "retide", &mut script);
            put(String::from_utf8_lossy(&script).trim_end())
        }
        Command::Init(options) => init::init(&load(&global)?, &options, global.output),
        Command::Doctor(options) => doctor::doctor(&load(&global)?, &options, global.output),
        Command::Run(options) => run::run(load(&global)?, &options, log),
        Command::Submit(options) => submit::submit(&load(&global)?, &options, global.output),
        Command::BenchTarget(options) => bench::target(&options),
        Command::Callbacks(options) => {
            callbacks::callbacks(&load(&global)?, &options, global.output)
        }
        Command::Target(options) => target::target(&options, global.output),
        Command::Explain(options) => explain::explain(&load(&global)?, options, global.output),
        Command::Bench(command) => bench::bench(load(&global)?, &command, global.output),
        Command::Config(command) => {
            let (config, source) = load_from(&global)?;
            config::config(
                (&config, &source),
                &overrides(&global),
                &command,
                global.output,
            )
        }
        Command::Tasks(command) => tasks::tasks(&load(&global)?, *command, global.output),
        Command::DeadLetters(command) => {
            dead_letters::dead_letters(&load(&global)?, *command, global.output)
        }
        Command::Campaigns(command) => {
            campaigns::campaigns(&load(&global)?, &command, global.output)
        }
        Command::Breakers(verb) => breakers::breakers(&load(&global)?, &verb, global.output),
        Command::Hold(options) => hold::hold(&load(&global)?, &options, global.output),
        Command::Release(options) => hold::release(&load(&global)?, &options, global.output),
        Command::Holds => hold::holds(&load(&global)?, global.output),
        Command::Scenes(command) => scenes::scenes(&load(&global)?, command, global.output),
    }
}

/// The configuration.
fn load(global: &Global) -> Result<Config, Failed> {
    load_from(global).map(|(config, _)| config)
}

/// What the command line says over file and variables.
fn overrides(global: &Global) -> Overrides {
    Overrides {
        bootstrap: global.bootstrap.clone(),
        prefix: global.prefix.clone(),
    }
}

/// The configuration, and where it was read.
fn load_from(global: &Global) -> Result<(Config, Source), Failed> {
    // A variable whose name or value is not Unicode is none of ours, or would be refused anyway.
    let variables: Vec<(String, String)> = env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect();
    for line in source::misnamed(variables.iter().map(|(name, _)| name.as_str())) {
        say(&format!("warning: {line}"));
    }
    Config::load_from(
        global.config.as_deref(),
        variables,
        &overrides(global),
        &Librdkafka,
    )
    .map_err(|error| Failed::new(Exit::Usage, &error))
}

/// A prefix of topics' names.
fn prefix(text: &str) -> Result<String, String> {
    retide_config::prefix(text)
        .ok_or_else(|| "expected 1 to 200 letters, digits, dots, underscores or dashes".to_owned())
}

/// Logs to stderr: everything notable while workers run, else only what goes wrong.
fn log(command: &Command) -> Log {
    let default = match command {
        Command::Run(_) => "info",
        Command::Demo(_) | Command::Doctor(_) => "error",
        Command::Init(_)
        | Command::Bench(_)
        | Command::BenchTarget(_)
        | Command::Submit(_)
        | Command::Explain(_)
        | Command::Config(_)
        | Command::Callbacks(_)
        | Command::Target(_)
        | Command::Tasks(_)
        | Command::DeadLetters(_)
        | Command::Campaigns(_)
        | Command::Breakers(_)
        | Command::Hold(_)
        | Command::Release(_)
        | Command::Holds
        | Command::Scenes(_)
        | Command::Completions { .. } => "warn",
    };
    match command {
        Command::Run(options) => Log::start(options.log_format.format(), Speaker::Process, default),
        _ => Log::start(Format::Text, Speaker::Command, default),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
