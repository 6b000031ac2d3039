//! `retide bench`: measures retide, each mode beside a raw baseline of its own in the same run.

mod park;
mod storm;

use std::fmt::Write as _;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use serde::Serialize;
use tokio::runtime::Runtime;

use retide_config::Config;
use retide_core::span;
use retide_embedded::Broker;
use retide_kafka::client::client_config;
use retide_kafka::cluster;
use retide_shell::process;

use crate::bench::{self, Cause, HopPart, Load, Loads, Pace, Volume};
use crate::cli::output::{Exit, Failed, Output, document, put, say};

/// What is measured.
#[derive(Debug, Subcommand)]
#[command(after_help = "\
Examples:
  retide bench hop
  retide bench hop --records 500000 --output json
  retide bench hop --parts ingest,ingest-at-least-once
  retide bench dispatch --failures 3
  retide bench dispatch --takes 50ms --concurrency 512
  retide bench dispatch --kafka
  retide bench lateness
      25, 50 and 80 % of the capacity: seven minutes
  retide bench lateness --rate 200 --output json
  retide bench park --due-in 90s
      a million tasks parked, and a million due at once
  retide bench storm
  retide bench hop --embedded
      on a broker in this process: the accounting means something, the speed
      little

Topics of their own are created on the cluster and deleted afterwards.
Compare ratios, not figures of different machines.")]
pub(super) enum Command {
    /// Tasks that are due later, forwarded into a tier and from tier to tier, with each guarantee; beside plain copies
    Hop(Hop),
    /// Tasks that are due at once, to an HTTP target in another process, or to a topic; beside a bare client, or a plain copy
    Dispatch(Dispatch),
    /// How late attempts are at parts of the capacity, and where the time went; beside a bare client with a timer for each request
    Lateness(Steady),
    /// What parked tasks cost a process: start, memory, idling, take-over, and all of them due at once; beside one with none
    Park(park::Options),
    /// How late a healthy scene is while others hang, reject and are flooded; beside itself without them
    Storm(storm::Options),
}

/// What the target of a measurement takes, which a measurement starts in a process of its own.
#[derive(Debug, Args)]
pub(super) struct Target {
    /// How it answers, as JSON
    #[arg(long)]
    manner: String,
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
    /// What to measure beside the plain transactional copy [default: all]
    #[arg(long, value_enum, value_delimiter = ',', value_name = "PART,…")]
    parts: Vec<Part>,
    /// Measure on a broker in this process
    #[arg(long)]
    embedded: bool,
}

/// A part of `hop`.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Part {
    /// A copy without transactions: records, then their offsets
    PlainCopy,
    /// From the retry topic into a tier, exactly once
    Ingest,
    /// From tier to tier, exactly once
    Tier,
    /// From the retry topic into a tier, at least once
    IngestAtLeastOnce,
    /// From tier to tier, at least once
    TierAtLeastOnce,
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
    /// How long the target takes: no more requests a second are possible than --concurrency by this
    #[arg(long, default_value = "0s", value_name = "DURATION", value_parser = span::parse)]
    takes: Duration,
    /// Deliver to a topic of the same cluster instead, in the transaction that commits; beside a plain transactional copy
    #[arg(long, conflicts_with_all = ["concurrency", "failures", "takes"])]
    kafka: bool,
    /// Measure on a broker in this process
    #[arg(long)]
    embedded: bool,
}

/// What `lateness` takes.
#[derive(Debug, Args)]
pub(super) struct Steady {
    /// The steps, in percent of the capacity, which is measured first
    #[arg(long, value_delimiter = ',', default_value = "25,50,80", value_name = "PERCENT,…", value_parser = clap::value_parser!(u32).range(1..=1_000))]
    loads: Vec<u32>,
    /// How long tasks wait for their first attempt, as many of one as of another; as many again wait the first of these, and then fail
    /// twice, with exponential backoff and jitter between 1 and 4 s
    #[arg(long, value_delimiter = ',', default_value = "1s,7s,30s", value_name = "DURATION,…", value_parser = delay)]
    delays: Vec<Duration>,
    /// Tasks due at once, each fails once: as many attempts a second as they take is what the measurement of the capacity tries
    #[arg(long, default_value_t = 60_000, value_name = "N", value_parser = clap::value_parser!(u64).range(100..=10_000_000))]
    tasks: u64,
    /// Instead of steps: so many new tasks a second, due at once, that fail a few times
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=100_000), conflicts_with_all = ["loads", "delays", "tasks"])]
    rate: Option<u64>,
    /// With --rate: attempts of each task that fail; it waits 1 s, 2 s, 4 s, and 4 s again
    #[arg(long, default_value_t = 3, value_name = "N", value_parser = clap::value_parser!(u64).range(0..=50), requires = "rate")]
    failures: u64,
    /// Seconds that are measured, of each step
    #[arg(long, default_value_t = 20, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=86_400))]
    seconds: u64,
    /// Measure on a broker in this process
    #[arg(long)]
    embedded: bool,
}

/// How long a task may be made to wait.
fn delay(text: &str) -> Result<Duration, String> {
    let delay = span::parse(text).map_err(|error| error.to_string())?;
    if delay > LONGEST {
        return Err(format!("at most {}", span::text(LONGEST)));
    }
    Ok(delay)
}

/// Longest delay of a task: every step lasts as long, and nobody waits for more.
const LONGEST: Duration = Duration::from_mins(10);

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

/// Answers requests until the measurement is over.
pub(super) fn target(options: &Target) -> Result<(), Failed> {
    Ok(bench::serve(&options.manner)?)
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
    let plan = process::plan(&config);
    Runtime::new()?.block_on(cluster::existing(
        &client_config(config.kafka.client()),
        &plan,
    ))?;
    match command {
        Command::Hop(options) => {
            let parts = options.parts.iter().map(|part| HopPart::from(*part));
            let load = Load {
                records: options.records,
                bytes: options.bytes as usize,
                parts: if options.parts.is_empty() {
                    HopPart::ALL.into()
                } else {
                    parts.collect()
                },
            };
            show(&config, bench::hop(&config, &load, say)?, output, hop)
        }
        Command::Dispatch(options) if options.kafka => {
            let Dispatch { tasks, bytes, .. } = *options;
            let measured = bench::deliver(&config, tasks, bytes as usize, say)?;
            show(&config, measured, output, deliver)
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
            let time = Duration::from_secs(options.seconds);
            let Some(rate) = options.rate else {
                let loads = Loads {
                    percent: options.loads.clone(),
                    time,
                    delays: options.delays.clone(),
                    tasks: options.tasks,
                };
                let measured = bench::lateness(&config, &loads, say)?;
                return show(&config, measured, output, lateness_table);
            };
            let pace = Pace {
                rate,
                time,
                failures: options.failures,
            };
            show(&config, bench::steady(&config, pace, say)?, output, steady)
        }
        Command::Park(options) => {
            let measured = bench::park(&config, options.parked(), say)?;
            show(&config, measured, output, park::table)
        }
        Command::Storm(options) => {
            let measured = bench::storm(&config, options.scenario(), say)?;
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
        most_per_second,
        lateness_ms,
    } = measured;
    let most = most_per_second.map_or_else(String::new, |most| {
        format!(", and so at most {most:.0} /s to this target")
    });
    format!(
        "{tasks} tasks, {attempts} attempts, {concurrency} at a time{most}\n\
         bare client   {:>9.0} /s   1.00      {bare_seconds:>6.1} s in all\n\
         retide        {:>9.0} /s   {ratio:.2}      {wall_seconds:>6.1} s in all\n\
         {}",
        bare.per_second,
        retide.per_second,
        late("retide", lateness_ms),
    )
}

/// The table of a measurement of deliveries to a topic.
fn deliver(measured: &bench::Deliver) -> String {
    let bench::Deliver {
        tasks,
        bytes,
        retide,
        transactional_copy,
        ratio,
    } = measured;
    format!(
        "{tasks} tasks of {bytes} bytes each, to a topic\n\
         plain transactional copy   {:>9.0} /s   1.00\n\
         retide                     {:>9.0} /s   {ratio:.2}",
        transactional_copy.per_second, retide.per_second,
    )
}

/// The table of a measurement of lateness.
fn steady(measured: &bench::Steady) -> String {
    let bench::Steady {
        rate,
        failures,
        retide_ms,
        causes,
        bare_ms,
    } = measured;
    format!(
        "{rate} new tasks a second, {failures} failures each\n{}\n{}\n{}",
        late("bare client", bare_ms),
        late("retide", retide_ms),
        where_it_went(causes),
    )
}

/// The table of a measurement of lateness at parts of the capacity.
fn lateness_table(measured: &bench::Late) -> String {
    let bench::Late {
        at_once,
        capacity,
        bare,
        steps,
    } = measured;
    let mut text = format!(
        "capacity {:.0} attempts/s, of tasks due at once {:.0}/s, bare client {:.0}/s",
        capacity.per_second, at_once.per_second, bare.per_second
    );
    for step in steps {
        let bench::Step {
            percent,
            attempts_per_second,
            retide_ms,
            causes,
            bare_ms,
            producer_late_ms,
        } = step;
        let _ = write!(
            text,
            "\n{percent} %: {attempts_per_second:.0} attempts/s, each task produced at most {producer_late_ms:.0} ms after its time\n\
             {}\n{}\n{}",
            late("bare client", bare_ms),
            late("retide", retide_ms),
            where_it_went(causes),
        );
    }
    text
}

/// One line about where the time went.
fn where_it_went(causes: &[Cause]) -> String {
    let part = |cause: &Cause| {
        let p99 = cause
            .p99_at_most_ms
            .map_or_else(String::new, |p99| format!(" (p99 ≤ {p99} ms)"));
        format!("{} {:.2} ms{p99}", cause.cause, cause.mean_ms)
    };
    let parts: Vec<String> = causes.iter().map(part).collect();
    format!("{:<13} on average {}", "", parts.join(" · "))
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
        transactional_copy,
        parts,
    } = measured;
    let mut text = format!("{records} records of {bytes} bytes each");
    let mut line = |what, per_second, ratio| {
        let _ = write!(text, "\n{what:<38} {per_second:>9.0} /s   {ratio:.2}");
    };
    line(
        "plain transactional copy",
        transactional_copy.per_second,
        1.0,
    );
    for part in parts {
        let what = match part.part {
            HopPart::PlainCopy => "plain copy without transactions",
            HopPart::Ingest => "retry topic to a tier, exactly once",
            HopPart::Tier => "tier to tier, exactly once",
            HopPart::IngestAtLeastOnce => "retry topic to a tier, at least once",
            HopPart::TierAtLeastOnce => "tier to tier, at least once",
        };
        line(what, part.speed.per_second, part.ratio);
    }
    text
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
        Output::Json | Output::Ndjson => document(&figures, output),
    }
}

impl From<Part> for HopPart {
    fn from(part: Part) -> Self {
        match part {
            Part::PlainCopy => Self::PlainCopy,
            Part::Ingest => Self::Ingest,
            Part::Tier => Self::Tier,
            Part::IngestAtLeastOnce => Self::IngestAtLeastOnce,
            Part::TierAtLeastOnce => Self::TierAtLeastOnce,
        }
    }
}

impl From<bench::Error> for Failed {
    fn from(error: bench::Error) -> Self {
        Self::new(Exit::Failure, &error)
    }
}
