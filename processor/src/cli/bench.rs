//! `retide bench`: measures retide, each mode beside a raw baseline of its own in the same run.

mod park;
mod storm;

use std::io;
use std::time::Duration;

use clap::{Args, Subcommand};
use serde::Serialize;
use tokio::runtime::Runtime;

use crate::bench::{self, Load, Pace, Volume};
use crate::cli::init;
use crate::cli::output::{Exit, Failed, Output, put, say};
use crate::cluster;
use crate::config::Config;
use crate::embedded::Broker;

/// What is measured.
#[derive(Debug, Subcommand)]
#[command(after_help = "\
Examples:
  retide bench hop
  retide bench hop --records 500000 --output json
  retide bench dispatch --failures 3
  retide bench lateness --rate 200 --output json
  retide bench park --due-in 90s                a million tasks parked, and a million due at once
  retide bench storm
  retide bench hop --embedded                   on a broker in this process: the accounting means something, the speed little

Topics of their own are created on the cluster and deleted afterwards. Compare ratios, not figures of different machines.")]
pub(super) enum Command {
    /// Tasks that are due later, forwarded into a tier and from tier to tier; beside a plain transactional copy
    Hop(Hop),
    /// Tasks that are due at once, to an HTTP target in this process; beside a bare client that makes the same requests
    Dispatch(Dispatch),
    /// How late attempts are under a steady load; beside a bare client with a timer for each request
    Lateness(Steady),
    /// What parked tasks cost a process: start, memory, idling, take-over, and all of them due at once; beside one with none
    Park(park::Options),
    /// How late a healthy scene is while others hang, reject and are flooded; beside itself without them
    Storm(storm::Options),
}

/// What `hop` takes.
#[derive(Debug, Args)]
pub(super) struct Hop {
    /// Records of each part
    #[arg(long, default_value_t = 200_000, value_name = "N", value_parser = clap::value_parser!(u64).range(1_000..=100_000_000))]
    records: u64,
    /// Bytes of each payload
    #[arg(long, default_value_t = 512, value_name = "N", value_parser = clap::value_parser!(u32).range(0..=900_000))]
    bytes: u32,
    /// Measure on a broker in this process
    #[arg(long)]
    embedded: bool,
}

/// What `dispatch` takes.
#[derive(Debug, Args)]
pub(super) struct Dispatch {
    /// Tasks
    #[arg(long, default_value_t = 20_000, value_name = "N", value_parser = clap::value_parser!(u64).range(100..=10_000_000))]
    tasks: u64,
    /// Bytes of each payload
    #[arg(long, default_value_t = 512, value_name = "N", value_parser = clap::value_parser!(u32).range(0..=900_000))]
    bytes: u32,
    /// Requests in flight at once
    #[arg(long, default_value_t = 64, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    concurrency: u32,
    /// Attempts of each task that fail; it waits 1 s, 2 s, 4 s, and 4 s again
    #[arg(long, default_value_t = 0, value_name = "N", value_parser = clap::value_parser!(u64).range(0..=50))]
    failures: u64,
    /// How long the target takes
    #[arg(long, default_value = "0s", value_name = "DURATION", value_parser = humantime::parse_duration)]
    takes: Duration,
    /// Measure on a broker in this process
    #[arg(long)]
    embedded: bool,
}

/// What `lateness` takes.
#[derive(Debug, Args)]
pub(super) struct Steady {
    /// New tasks a second
    #[arg(long, default_value_t = 200, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=100_000))]
    rate: u64,
    /// Seconds
    #[arg(long, default_value_t = 20, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=86_400))]
    seconds: u64,
    /// Attempts of each task that fail; it waits 1 s, 2 s, 4 s, and 4 s again
    #[arg(long, default_value_t = 3, value_name = "N", value_parser = clap::value_parser!(u64).range(0..=50))]
    failures: u64,
    /// Measure on a broker in this process
    #[arg(long)]
    embedded: bool,
}

/// A result, with what has to be known to compare it.
#[derive(Debug, Serialize)]
struct Figures<R> {
    /// The version of retide.
    version: &'static str,
    /// Processors of this machine.
    processors: usize,
    /// Whether the program was built with optimisations.
    optimised: bool,
    /// The guarantee.
    guarantee: String,
    /// Partitions of each topic.
    partitions: i32,
    /// Workers of the process.
    workers: u32,
    /// Milliseconds that a transaction collects.
    commit_interval_ms: u128,
    /// Whether events are written.
    events: bool,
    /// What was measured.
    #[serde(flatten)]
    measured: R,
}

/// Measures.
pub(super) fn bench(mut config: Config, command: &Command, output: Output) -> Result<(), Failed> {
    let (Command::Hop(Hop { embedded, .. })
    | Command::Dispatch(Dispatch { embedded, .. })
    | Command::Lateness(Steady { embedded, .. })
    | Command::Park(park::Options { embedded, .. })
    | Command::Storm(storm::Options { embedded, .. })) = command;
    let broker = embedded.then(Broker::start).transpose()?;
    if let Some(broker) = &broker {
        config.kafka.set("bootstrap.servers", broker.bootstrap());
        config.topics.replication_factor = 1;
    }
    // Finds out whether Kafka can be reached at all, and says so well.
    let plan = init::plan(&config);
    Runtime::new()?.block_on(cluster::existing(&config.kafka.client(), &plan))?;
    match command {
        Command::Hop(options) => {
            let load = Load {
                records: options.records,
                bytes: options.bytes as usize,
            };
            show(&config, bench::hop(&config, load, say)?, output, hop)
        }
        Command::Dispatch(options) => {
            let volume = Volume {
                tasks: options.tasks,
                bytes: options.bytes as usize,
                concurrency: options.concurrency,
                failures: options.failures,
                takes: options.takes,
            };
            let measured = bench::dispatch(&config, volume, say)?;
            show(&config, measured, output, dispatch)
        }
        Command::Lateness(options) => {
            let pace = Pace {
                rate: options.rate,
                time: Duration::from_secs(options.seconds),
                failures: options.failures,
            };
            show(&config, bench::steady(&config, pace, say)?, output, steady)
        }
        Command::Park(options) => {
            let measured = bench::park(&config, options.parked(), say)?;
            show(&config, measured, output, park::table)
        }
        Command::Storm(options) => {
            let measured = bench::storm(&config, options.weather(), say)?;
            show(&config, measured, output, storm::table)
        }
    }
}

/// The table of a measurement of attempts a second.
fn dispatch(measured: &bench::Dispatch) -> String {
    let bench::Dispatch {
        tasks,
        attempts,
        concurrency,
        retide,
        bare,
        ratio,
        wall_seconds,
        bare_seconds,
        lateness_ms,
    } = measured;
    format!(
        "{tasks} tasks, {attempts} attempts, {concurrency} at a time\n\
         bare client   {:>9.0} /s   1.00      {bare_seconds:>6.1} s in all\n\
         retide        {:>9.0} /s   {ratio:.2}      {wall_seconds:>6.1} s in all\n\
         {}",
        bare.per_second,
        retide.per_second,
        late("retide", lateness_ms),
    )
}

/// The table of a measurement of lateness.
fn steady(measured: &bench::Steady) -> String {
    let bench::Steady {
        rate,
        failures,
        retide_ms,
        bare_ms,
    } = measured;
    format!(
        "{rate} new tasks a second, {failures} failures each\n{}\n{}",
        late("bare client", bare_ms),
        late("retide", retide_ms),
    )
}

/// One line about lateness.
fn late(who: &str, lateness: &bench::Lateness) -> String {
    let bench::Lateness {
        p50,
        p99,
        p999,
        max,
        early,
        attempts,
    } = lateness;
    format!(
        "{who:<13} late by p50 {p50:.2} ms · p99 {p99:.2} ms · p99.9 {p999:.2} ms · max {max:.2} ms · {early} of {attempts} early"
    )
}

/// The table of a measurement of hops.
fn hop(measured: &bench::Hop) -> String {
    let bench::Hop {
        records,
        bytes,
        ingest,
        tier,
        copy,
        ingest_ratio,
        tier_ratio,
    } = measured;
    format!(
        "{records} records of {bytes} bytes each\n\
         plain transactional copy   {:>9.0} /s   1.00\n\
         retry topic to a tier      {:>9.0} /s   {ingest_ratio:.2}\n\
         tier to tier               {:>9.0} /s   {tier_ratio:.2}",
        copy.per_second, ingest.per_second, tier.per_second,
    )
}

/// Prints a result.
fn show<R: Serialize>(
    config: &Config,
    measured: R,
    output: Output,
    table: impl FnOnce(&R) -> String,
) -> Result<(), Failed> {
    let figures = Figures {
        version: env!("CARGO_PKG_VERSION"),
        processors: std::thread::available_parallelism().map_or(1, Into::into),
        optimised: !cfg!(debug_assertions),
        guarantee: config.processor.guarantee.to_string(),
        partitions: config.topics.partitions,
        workers: config.processor.workers.get(),
        commit_interval_ms: config.processor.commit_interval.as_millis(),
        events: config.topics.events.enabled,
        measured,
    };
    match output {
        Output::Table => {
            if !figures.optimised {
                say("built without optimisations: the ratios mean little");
            }
            put(&format!(
                "retide {} · {} · events {} · {} partitions · {} workers · commit every {} ms · {} processors",
                figures.version,
                figures.guarantee,
                if figures.events { "on" } else { "off" },
                figures.partitions,
                figures.workers,
                figures.commit_interval_ms,
                figures.processors,
            ))?;
            put(&table(&figures.measured))
        }
        Output::Json => put(&serde_json::to_string_pretty(&figures).map_err(io::Error::from)?),
        Output::Ndjson => put(&serde_json::to_string(&figures).map_err(io::Error::from)?),
    }
}

impl From<bench::Error> for Failed {
    fn from(error: bench::Error) -> Self {
        Self::new(Exit::Failure, &error)
    }
}
