//! `retide run`: checks the cluster, runs the workers, and drains them when told to stop.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::process;
use std::sync::Arc;

use clap::{Args, ValueEnum};
use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};
use tracing::{error, info};

use crate::admin::Admin;
use crate::cli::init;
use crate::cli::output::{Exit, Failed, say};
use crate::cluster;
use crate::config::{self, Config, Guarantee, Scene};
use crate::health::{Health, STALL};
use crate::metrics::Metrics;
use crate::process::Process;

/// What `run` takes.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  retide run                                    with retide.toml, and the scenes on the scenes topic
  retide run --scenes scenes.toml               with the scenes of a file, too
  RETIDE__PROCESSOR__WORKERS=4 retide run       four workers in this process

Run as many processes as you like, up to one worker per partition: they share the work by the consumer group.
SIGTERM or Ctrl-C drains: calls in flight end, everything is committed, and the shards go to the others. A second one quits at once;
what was in flight is tried again by whoever takes over.")]
pub(super) struct Options {
    /// A file with scenes, which those on the scenes topic go before
    #[arg(long, value_name = "FILE")]
    scenes: Option<PathBuf>,
    /// How log lines are written
    #[arg(long, value_enum, value_name = "FORMAT", default_value_t)]
    pub(super) log_format: LogFormat,
}

/// How log lines are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

/// Checks the cluster, runs the workers, and drains them when told to stop.
pub(super) fn run(mut config: Config, options: &Options) -> Result<(), Failed> {
    if let Some(file) = &options.scenes {
        config.scenes.extend(scenes(file)?);
    }
    let runtime = Runtime::new()?;
    runtime.block_on(check(&config))?;
    // Before the first worker: a signal during the start counts, too.
    let signals = runtime.block_on(async { Signals::listen() })?;
    let metrics = Arc::new(Metrics::new(&config.topics.tiers));
    let health = Arc::new(Health::new(STALL).with_troubles(metrics.troubles()));
    let admin = listen(&config, &metrics, &health)?;
    let scenes = std::mem::take(&mut config.scenes);
    let process = Process::start(&config, scenes, runtime.handle(), &metrics, &health)?;
    info!(
        version = env!("CARGO_PKG_VERSION"),
        bootstrap = config.kafka.bootstrap(),
        group = config.processor.group,
        workers = config.processor.workers.get(),
        "retide runs"
    );
    if let Some(admin) = admin {
        // Until the process ends, so that a probe sees it drain.
        runtime.spawn(admin.serve(std::future::pending()));
    }
    runtime.block_on(work(process, signals))
}

/// Binds the admin endpoints, if there are to be any: what is wrong with their address is known before the group is joined.
fn listen(
    config: &Config,
    metrics: &Arc<Metrics>,
    health: &Arc<Health>,
) -> Result<Option<Admin>, Failed> {
    let Some(address) = config.admin.listen else {
        info!("no admin endpoints: [admin] listen is off");
        return Ok(None);
    };
    let admin = Admin::bind(address, Arc::clone(metrics), Arc::clone(health)).map_err(|error| {
        let message = format!("listen on {address}, as [admin] listen says: {error}");
        Failed::because(Exit::Precondition, message)
    })?;
    info!(address = %admin.local_addr(), "admin endpoints listen");
    Ok(Some(admin))
}

/// The scenes of a file.
pub(super) fn scenes(file: &PathBuf) -> Result<BTreeMap<String, Scene>, Failed> {
    let name = file.display().to_string();
    let text = fs::read_to_string(file)
        .map_err(|error| Failed::because(Exit::Usage, format!("read {name}: {error}")))?;
    config::scenes(&name, text).map_err(|error| Failed::new(Exit::Usage, &error))
}

/// What transactional ids begin with, if there are to be transactions.
pub(super) fn transactions(config: &Config) -> Option<&str> {
    match config.processor.guarantee {
        Guarantee::ExactlyOnce => Some(config.processor.group.as_str()),
        Guarantee::AtLeastOnce => None,
    }
}

/// Refuses a cluster on which retide could not keep its promises.
async fn check(config: &Config) -> Result<(), Failed> {
    let (client, plan) = (config.kafka.client(), init::plan(config));
    let findings = cluster::check(&client, &plan, transactions(config)).await?;
    if init::tell(&findings) {
        return Err(Failed::because(
            Exit::Precondition,
            "retide does not run on this cluster until the above is mended",
        ));
    }
    Ok(())
}

/// Works until a signal comes or a worker cannot go on, then drains.
async fn work(mut process: Process, mut signals: Signals) -> Result<(), Failed> {
    let failure = tokio::select! {
        biased;
        // A failure first: it decides how the process exits.
        failure = process.failure() => failure,
        name = signals.next() => {
            info!(signal = name, "draining; a second signal quits at once");
            None
        }
    };
    tokio::spawn(async move {
        let name = signals.next().await;
        error!(signal = name, "quitting without draining");
        say("quitting without draining");
        process::exit(Exit::Interrupted as i32);
    });
    let drained = tokio::task::spawn_blocking(move || process.stop())
        .await
        .map_err(|error| Failed::new(Exit::Failure, &error))?;
    match failure {
        Some(error) => Err(error.into()),
        None => drained.map_err(Failed::from),
    }?;
    info!("drained");
    Ok(())
}

impl From<crate::process::Error> for Failed {
    /// How a process that cannot go on exits.
    fn from(error: crate::process::Error) -> Self {
        let exit = match &error {
            crate::process::Error::Scenes(crate::scenes::Error::Missing { .. }) => {
                Exit::Precondition
            }
            _ => Exit::Failure,
        };
        Failed::new(exit, &error)
    }
}

/// The signals that end a process.
pub(super) struct Signals {
    /// From a service manager.
    terminate: tokio::signal::unix::Signal,
    /// From a terminal.
    interrupt: tokio::signal::unix::Signal,
}

// === impl Signals ===

impl Signals {
    /// Listens from now on; within a runtime.
    pub(super) fn listen() -> Result<Self, Failed> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    /// Waits for the next one.
    pub(super) async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}
