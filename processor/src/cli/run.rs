//! `retide run`: checks the cluster, runs the workers, and drains them when told to stop.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, IsTerminal};
use std::mem::ManuallyDrop;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use tokio::runtime::{Builder, Handle};
use tokio::signal::unix::{SignalKind, signal};
use tracing::{error, info};

use retide_config::{self as config, Config, Guarantee, Scene};
use retide_core::span;
use retide_kafka::client::client_config;
use retide_kafka::cluster::{self, Begin, Finding, User, Whose};
use retide_shell::admin::Admin;
use retide_shell::health::{Health, STALL};
use retide_shell::leave::{self, Watchdog, leave};
use retide_shell::log::{Format, Log};
use retide_shell::metrics::Metrics;
use retide_shell::outbound;
use retide_shell::process::{self, Error, Process};
use retide_shell::threads::{Threads, wake_soon};

use crate::cli::init;
use crate::cli::output::{Exit, Failed, say};

/// What `run` takes.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  retide run
      with retide.toml, and the scenes on the scenes topic
  retide run --scenes scenes.toml
      with the scenes of a file, too
  RETIDE__PROCESSOR__WORKERS=4 retide run
      four workers in this process

Run as many processes as you like, up to one worker per partition: they
share the work by the consumer group. SIGTERM or Ctrl-C drains: calls in
flight end, everything is committed, and the shards go to the others. A
second one quits at once; what was in flight is tried again by whoever takes
over.

A group that has committed nothing on topics where work was done is not
started: its name may be wrong, or its offsets have expired.
--from-beginning and --from-now say which is meant; where the group has
offsets they change nothing.")]
pub(super) struct Options {
    /// A file with scenes; those on the scenes topic win over them
    #[arg(long, value_name = "FILE")]
    scenes: Option<PathBuf>,
    /// Where the group has committed nothing: do everything again that is retained, ended tasks among them
    #[arg(long, conflicts_with = "from_now")]
    from_beginning: bool,
    /// Where the group has committed nothing: leave what is there, and do what comes from now on
    #[arg(long)]
    from_now: bool,
    /// Start although scenes on the scenes topic cannot be read, or deliver to a topic of retide's own: tasks of the first are
    /// held, those of the second are dead letters
    #[arg(long)]
    ignore_unusable_scenes: bool,
    /// How log lines are written
    #[arg(long, value_enum, value_name = "FORMAT", default_value_t)]
    pub(super) log_format: LogFormat,
}

/// How log lines are written, as the command line says it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum LogFormat {
    /// For people
    #[default]
    Text,
    /// One JSON object per line
    Json,
}

/// What a process needs beside its workers.
struct Surroundings {
    /// The threads.
    threads: Threads,
    /// Ends a drain that does not end.
    watchdog: Watchdog,
    /// The log.
    log: Log,
}

/// Longest time between the end of a drain's deadline and that of the process: for what a last commit, leaving the group and closing
/// connections take, with some to spare.
const LEAVE: Duration = Duration::from_secs(5);

/// How long a signal is the same as the one before: GNU `timeout` sends it to the process and then to its group. No person is so fast.
const TWICE: Duration = Duration::from_millis(1);

/// The session timeout of consumers in milliseconds, where none is configured.
const SESSION: u64 = 45_000;

/// How long after its session a member that was killed is gone for certain.
const GONE: Duration = Duration::from_secs(3);

/// Pause before the members of the group are looked at again.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

// === impl Options ===

impl Options {
    /// Where a group without offsets begins, if that is said.
    const fn begin(&self) -> Option<Begin> {
        match (self.from_beginning, self.from_now) {
            (true, _) => Some(Begin::Beginning),
            (false, true) => Some(Begin::Now),
            (false, false) => None,
        }
    }
}

// === impl LogFormat ===

impl LogFormat {
    /// What the log is told.
    pub(super) const fn format(self) -> Format {
        match self {
            Self::Text => Format::Text,
            Self::Json => Format::Json,
        }
    }
}

/// Checks the cluster, runs the workers, and drains them when told to stop.
pub(super) fn run(mut config: Config, options: &Options, log: &Log) -> Result<(), Failed> {
    let threads = Threads::default();
    // Before anything else that could go wrong.
    log.queue(&threads)?;
    leave::on_panic(&threads, log);
    let surroundings = Surroundings {
        watchdog: Watchdog::start(&threads, log)?,
        threads,
        log: log.clone(),
    };
    if let Some(file) = &options.scenes {
        config.scenes.extend(scenes(file, &config.topics.prefix)?);
        if let Some((scene, message)) = config.unknown_profile() {
            let message = format!("{}: scene {scene}: {message}", file.display());
            return Err(Failed::because(Exit::Usage, message));
        }
    }
    // Never taken down: its threads may be held up by anything, and the process ends without them.
    let runtime = ManuallyDrop::new(
        Builder::new_multi_thread()
            .enable_all()
            .thread_name(leave::CALLS)
            .on_thread_start(wake_soon)
            .build()?,
    );
    // Before the first worker: a signal during the start counts, too.
    let signals = runtime.block_on(async { Signals::listen() })?;
    let begin = options.begin();
    config.processor.ignore_unusable_scenes |= options.ignore_unusable_scenes;
    runtime.block_on(start(
        (config, begin),
        runtime.handle().clone(),
        signals,
        surroundings,
    ))
}

/// Checks the cluster, starts the workers, and works.
async fn start(
    (mut config, begin): (Config, Option<Begin>),
    runtime: Handle,
    mut signals: Signals,
    surroundings: Surroundings,
) -> Result<(), Failed> {
    tokio::select! {
        biased;
        checked = async {
            check(&config).await?;
            check_group(&config, begin).await
        } => checked?,
        name = signals.next() => {
            info!(signal = name, "told to stop before the start");
            return Ok(());
        }
    }
    let metrics = Metrics::limited(&config.topics.tiers, config.admin.scene_series);
    metrics.configured(&[
        ("group", &config.processor.group),
        ("prefix", &config.topics.prefix),
        ("guarantee", &config.processor.guarantee.to_string()),
        ("workers", &config.processor.workers.to_string()),
    ]);
    let metrics = Arc::new(metrics);
    let log = &surroundings.log;
    log.count_lost(&metrics);
    let health = Arc::new(Health::new(STALL).with_troubles(metrics.troubles()));
    let admin = listen(&config, &metrics, &health)?;
    let scenes = std::mem::take(&mut config.scenes);
    let config = Arc::new(config);
    let threads = surroundings.threads.clone();
    let mut starting = tokio::task::spawn_blocking({
        let config = Arc::clone(&config);
        move || Process::start(&config, scenes, &runtime, &threads, &metrics, &health)
    });
    let started = tokio::select! {
        biased;
        death = surroundings.threads.death() => return Err(Error::Died(death).into()),
        started = &mut starting => started,
        name = signals.next() => {
            info!(signal = name, "draining as soon as all has started; a second signal quits at once");
            surroundings.bound(&config);
            quit_at(signals, surroundings.log.clone());
            let process = starting.await.map_err(|error| Failed::new(Exit::Failure, &error))??;
            return drain(process).await;
        }
    };
    let process = started.map_err(|error| Failed::new(Exit::Failure, &error))??;
    info!(
        version = env!("CARGO_PKG_VERSION"),
        bootstrap = config.kafka.bootstrap(),
        group = config.processor.group,
        workers = config.processor.workers.get(),
        "retide runs"
    );
    outbound::tell(&config);
    if let Some(admin) = admin {
        // Until the process ends, so that a probe sees it drain.
        let serving = admin.serve(std::future::pending());
        tokio::spawn(surroundings.threads.clone().watch("admin", serving));
    }
    work(process, &config, signals, surroundings).await
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

/// The scenes of a file; `-` is stdin.
pub(super) fn scenes(file: &PathBuf, prefix: &str) -> Result<BTreeMap<String, Scene>, Failed> {
    let (name, read) = if file.as_os_str() == "-" {
        if io::stdin().is_terminal() {
            say("reading scenes from the terminal; end them with Ctrl-D");
        }
        ("stdin".to_owned(), io::read_to_string(io::stdin()))
    } else {
        (file.display().to_string(), fs::read_to_string(file))
    };
    let text =
        read.map_err(|error| Failed::because(Exit::Usage, format!("read {name}: {error}")))?;
    config::scenes(&name, text, prefix).map_err(|error| Failed::new(Exit::Usage, &error))
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
    let (client, plan) = (client_config(config.kafka.client()), process::plan(config));
    let scope = init::scope(config, &BTreeMap::new());
    let findings = cluster::check_as(&client, &plan, User::Run, &scope).await?;
    if let Some(missing) = init::missing(&findings) {
        return Err(missing);
    }
    if init::tell(&findings) {
        return Err(Failed::because(
            Exit::Precondition,
            "retide does not run on this cluster until the above is mended",
        ));
    }
    Ok(())
}

/// Refuses a group that would do again what is done, or whose members do not fit together.
async fn check_group(config: &Config, begin: Option<Begin>) -> Result<(), Failed> {
    let (client, whose) = (
        client_config(config.kafka.client()),
        process::whose(config, Duration::ZERO),
    );
    if let Some(begin) = begin {
        match cluster::begin(&client, &whose, begin).await {
            Ok(partitions) => info!(partitions, group = whose.group, ?begin, "group begins"),
            // Only a group without members takes offsets from outside: another process has begun, which is seen below.
            Err(error) => info!(%error, group = whose.group, "group not begun here"),
        }
    }
    let standing = cluster::standing(&client, &whose).await?;
    let disagree = |found: &Finding| found.problem.contains(cluster::DISAGREES);
    let (members, findings): (Vec<_>, Vec<_>) = standing.findings.into_iter().partition(disagree);
    let refused = init::tell(&findings);
    // Nobody waits for what changes nothing.
    let refused = if refused {
        init::tell(&members);
        true
    } else {
        still_disagree(config, &whose, members).await?
    };
    if refused {
        return Err(Failed::because(
            Exit::Precondition,
            "retide does not run in this group until the above is mended",
        ));
    }
    Ok(())
}

/// Whether members of another configuration stay. One that was killed is a member until its session ends.
async fn still_disagree(
    config: &Config,
    whose: &Whose,
    mut members: Vec<Finding>,
) -> Result<bool, Failed> {
    let session = client_config(config.kafka.consumer());
    let session = session
        .get("session.timeout.ms")
        .and_then(|text| text.parse().ok());
    let patience = Duration::from_millis(session.unwrap_or(SESSION)) + GONE;
    let deadline = Instant::now() + patience;
    if let Some(Finding { problem, .. }) = members.first() {
        let patience = span::text(Duration::from_secs(patience.as_secs()));
        say(&format!(
            "waiting up to {patience} for it to leave: group {} {problem}",
            whose.group
        ));
    }
    while !members.is_empty() {
        if Instant::now() >= deadline {
            return Ok(init::tell(&members));
        }
        tokio::time::sleep(LOOK_AGAIN).await;
        members = cluster::others(&client_config(config.kafka.client()), whose).await?;
    }
    Ok(false)
}

/// Works until a signal comes or a worker cannot go on, then drains.
async fn work(
    mut process: Process,
    config: &Config,
    mut signals: Signals,
    surroundings: Surroundings,
) -> Result<(), Failed> {
    let failure = tokio::select! {
        biased;
        // A failure first: it decides how the process exits.
        failure = process.failure() => Some(failure),
        name = signals.next() => {
            info!(signal = name, "draining; a second signal quits at once");
            None
        }
    };
    if let Some(failure @ Error::Died(_)) = failure {
        // What is left without this thread cannot be drained in order.
        return Err(failure.into());
    }
    surroundings.bound(config);
    quit_at(signals, surroundings.log.clone());
    let drained = tokio::select! {
        biased;
        death = surroundings.threads.death() => return Err(Error::Died(death).into()),
        drained = drain(process) => drained,
    };
    match failure {
        Some(error) => Err(error.into()),
        None => drained,
    }
}

/// Drains the workers.
async fn drain(process: Process) -> Result<(), Failed> {
    tokio::task::spawn_blocking(move || process.stop())
        .await
        .map_err(|error| Failed::new(Exit::Failure, &error))??;
    info!("drained");
    Ok(())
}

/// Quits at the next signal.
fn quit_at(mut signals: Signals, log: Log) {
    tokio::spawn(async move {
        let first = Instant::now();
        let mut name = signals.next().await;
        while first.elapsed() < TWICE {
            name = signals.next().await;
        }
        error!(signal = name, "quitting without draining");
        leave(Exit::Interrupted as u8, &log);
    });
}

// === impl Surroundings ===

impl Surroundings {
    /// From now on the process ends within a time, whatever holds it up.
    fn bound(&self, config: &Config) {
        self.watchdog.bound(config.processor.drain_deadline + LEAVE);
    }
}

impl From<Error> for Failed {
    /// How a process that cannot go on exits.
    fn from(error: Error) -> Self {
        let exit = match &error {
            Error::Scenes(retide_shell::scenes::Error::Missing { .. }) | Error::Unusable(_) => {
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
