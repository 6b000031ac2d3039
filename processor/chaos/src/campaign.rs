//! A campaign: broker, proxy, target, processes and tasks; faults by the seed; then the checker's verdict.
//!
//! Invariant: it ends, whatever happens, and leaves no process behind.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::Message;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;

use crate::Failed;
use crate::adversary::{Act, Adversary};
use crate::broker::{self, Access, Broker, Ports};
use crate::fleet::{Fleet, Held, name};
use crate::generator::Generator;
use crate::holds::Holder;
use crate::ledger::{Faults, Ledger, now_micros};
use crate::load::Load;
use crate::options::{Guarantee, Options, Reply};
use crate::orders::{Later, LaterSender, Order, Sender};
use crate::pace::Progress;
use crate::plan::{
    self, APPLIED, BACKOFF_MS, DEADLINE_S, FORCED, Fault, HELD, KEPT, LATER, LATEST, MAX_ATTEMPTS,
    ONCE, ORDERED, PATIENT_BACKOFF_MS, RESTED, Random, SCENE, SPENT, SPENT_ATTEMPTS,
    SPENT_BACKOFF_MS, STOPPED, SWEPT,
};
use crate::proxy::{Loss, Proxy};
use crate::replays::{Replayer, Replays};
use crate::target::{self, Parts};

/// How a campaign ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Every promise was kept.
    Kept,
    /// One was broken.
    Broken,
    /// A signal came first.
    Interrupted,
}

/// How the work is laid out.
struct Layout {
    /// Partitions of each topic.
    partitions: u64,
    /// Workers of each process.
    workers: u64,
    /// What is promised.
    guarantee: Guarantee,
    /// Who may do what at the broker.
    access: Access,
}

/// What faults are done to.
struct Stage {
    /// The processes.
    fleet: Fleet,
    /// The broker; locked while it is away.
    broker: tokio::sync::Mutex<Broker>,
    /// Between odd processes and the broker.
    proxy: Proxy,
    /// One loss at a time.
    losing: tokio::sync::Mutex<()>,
    /// The journal.
    faults: Arc<Faults>,
    /// Does things to the group, if there is one.
    adversary: Option<Adversary>,
    /// What tasks are for.
    target: Parts,
}

/// The group's session timeout.
const SESSION: Duration = Duration::from_secs(6);

/// Longest time after the last fault and the last task until every task has ended: the longest way of a task, a session, a transaction
/// and a rebalance, several times over.
const FINISH: Duration = Duration::from_mins(2);

/// How long after the last end is looked for ends that come twice: longer than a transaction that a dead process left open.
const AFTER: Duration = Duration::from_secs(3);

/// Longest time a lost reply is waited for: heartbeats and transactions come every second.
const LOSS: Duration = Duration::from_secs(10);

/// Acts of the adversary that go on at once: those that last, and short ones beside them.
const ACTS: usize = 4;

/// How long an act takes, about.
const ACT: Duration = Duration::from_secs(8);

/// What retide's topics' names begin with; the group has the same name.
pub(crate) const PREFIX: &str = "chaos";

/// Who retide is to the broker, in a campaign with an adversary.
pub(crate) const USER: &str = "retide";

/// The password of that user.
pub(crate) const PASSWORD: &str = "retide-secret";

/// Runs a campaign and its check.
pub(crate) async fn run(options: &Options) -> Result<Verdict, Failed> {
    let dir = folder(options)?;
    eprintln!("seed {}, ledgers in {}", options.seed, dir.display());
    let retide = match &options.retide {
        Some(path) => fs::canonicalize(path)?,
        None => build()?,
    };
    let jars = broker::jars()?;
    let mut signals = (
        signal(SignalKind::interrupt())?,
        signal(SignalKind::terminate())?,
    );
    let interrupted = async {
        tokio::select! {
            _ = signals.0.recv() => {}
            _ = signals.1.recv() => {}
        }
    };
    // Everything that was started lives in this future, and ends with it.
    tokio::select! {
        verdict = campaign(options, &dir, retide, &jars) => verdict,
        () = interrupted => Ok(Verdict::Interrupted),
    }
}

/// The campaign itself.
async fn campaign(
    options: &Options,
    dir: &Path,
    retide: PathBuf,
    jars: &Path,
) -> Result<Verdict, Failed> {
    let started = Instant::now();
    let partitions = Random::new(options.seed, 2).between(4, 7);
    let layout = Layout {
        partitions,
        workers: options.workers,
        guarantee: options.guarantee,
        access: match options.adversary {
            0 => Access::Open,
            _ => Access::Users,
        },
    };
    let progress = Guard(Arc::<Progress>::default());
    let (later, answers) = Later::new(&progress.0);
    let (stage, bootstrap) = Stage::set(dir, (retide, jars), &layout, later.clone()).await?;
    describe(dir, options, partitions)?;
    let sampler = Java::sampler(jars, &bootstrap, dir)?;
    let load = Load::start(options.load, options.seed)?;
    for _ in 0..options.processes {
        stage.fleet.join(Held::No);
    }
    let ends = Ends::watch(&bootstrap)?;
    let awaited = command(options, (dir, &bootstrap), answers, &progress.0)?;
    Generator {
        bootstrap: bootstrap.clone(),
        topic: format!("{PREFIX}.tasks"),
        partitions,
        seed: options.seed,
        tasks: options.tasks,
        scope: options.scope(),
        applied: stage.adversary.is_some(),
        awaited,
        ended: ends.ended(),
        ledger: Ledger::create(&dir.join("generator.tsv"))?,
        progress: Arc::clone(&progress.0),
    }
    .start()?;
    let holder = Holder {
        fleet: &stage.fleet,
        ledger: Ledger::create(&dir.join("holds.tsv"))?,
        breakers: Ledger::create(&dir.join("breakers.tsv"))?,
        target: stage.target.clone(),
        seed: options.seed,
    };

    let replayer = Replayer {
        later,
        replays: ends.replays(),
        broken: stage.target.broken.clone(),
        ledger: Arc::new(Ledger::create(&dir.join("replays.tsv"))?),
        seed: options.seed,
    };

    let (held, let_go) = (hold(&holder, options), let_go(&holder, options));
    let tasks = Duration::from_secs(options.tasks as u64 / options.rate.max(1));
    let performance = async {
        let letters = replayer.replay(options.replays(), tasks);
        let (held, (), ()) = tokio::join!(held, letters, happen(&stage, options));
        held?;
        Ok::<_, Failed>(finish(&stage, &progress.0, &ends).await)
    };
    let watch = async {
        match &stage.adversary {
            Some(adversary) => adversary.look(&stage.fleet, &progress.0, &ends).await,
            None => std::future::pending().await,
        }
    };
    let finished = tokio::select! {
        () = stage.fleet.supervise() => unreachable!("supervision does not end"),
        () = watch => unreachable!("the watch does not end"),
        failed = let_go => return Err(failed),
        finished = tokio::time::timeout(limit(options), performance) => match finished {
            Ok(finished) => finished?,
            Err(_) => false,
        },
    };
    eprintln!(
        "{}: {} acknowledged, {} ended, {} commands, {} done, {:.0} s",
        if finished { "finished" } else { "not finished" },
        progress.0.tasks.acked.load(Ordering::Acquire),
        ends.count(),
        progress.0.commands_acked(),
        ends.commands(),
        started.elapsed().as_secs_f32(),
    );
    stage.fleet.leave_all().await;
    drop((sampler, load));
    let verdict = check(jars, &bootstrap, dir).await?;
    if verdict == Verdict::Kept {
        // Everything that is on the topics is in the checker's dump; the rest is large.
        drop(stage);
        fs::remove_dir_all(dir.join("broker/data"))?;
    }
    Ok(verdict)
}

/// Starts to send commands, and what targets say later; gives the commands that wait for tasks, and the tasks.
fn command(
    options: &Options,
    (dir, bootstrap): (&Path, &str),
    answers: mpsc::Receiver<Order>,
    progress: &Arc<Progress>,
) -> Result<Vec<(String, usize)>, Failed> {
    if !options.has_commands() {
        progress.commands.done.store(true, Ordering::Release);
        return Ok(Vec::new());
    }
    let orders = Order::all(options.seed, options.tasks, options.scope());
    let awaited = orders.iter().filter_map(Order::awaits).collect();
    let topic = format!("{PREFIX}.commands");
    Sender {
        bootstrap: bootstrap.to_owned(),
        topic: topic.clone(),
        orders,
        ledger: Ledger::create(&dir.join("commands.tsv"))?,
        progress: Arc::clone(progress),
    }
    .start()?;
    LaterSender {
        orders: answers,
        bootstrap: bootstrap.to_owned(),
        topic,
        ledger: Ledger::create(&dir.join("answers.tsv"))?,
        progress: Arc::clone(progress),
    }
    .start()?;
    Ok(awaited)
}

/// Holds tasks while they are produced, and says of a target whether it is called.
async fn hold(holder: &Holder<'_>, options: &Options) -> Result<(), Failed> {
    if options.has_commands() {
        let tasks = Duration::from_secs(options.tasks as u64 / options.rate.max(1));
        tokio::try_join!(holder.hold(tasks), holder.stop(tasks), holder.force(tasks))?;
    }
    Ok(())
}

/// Lets tasks go that are out of attempts; ends when it fails.
async fn let_go(holder: &Holder<'_>, options: &Options) -> Failed {
    if options.has_commands() {
        holder.let_go().await
    } else {
        std::future::pending().await
    }
}

/// Longest time for tasks and faults; only a campaign that hangs takes as long.
fn limit(options: &Options) -> Duration {
    let tasks = Duration::from_secs(options.tasks as u64 / options.rate.max(1));
    let faults = (plan::faults(options).len() + options.adversary) as u32;
    FINISH * 2 + tasks + Duration::from_mins(1) * faults
}

/// Makes the folder of a campaign.
fn folder(options: &Options) -> Result<PathBuf, Failed> {
    let dir = options.dir.clone().unwrap_or_else(|| {
        let root = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../target/chaos"));
        root.join(format!("{}-{}", options.seed, now_micros() / 1_000_000))
    });
    if dir.exists() {
        return Err(format!("{} must not exist yet", dir.display()).into());
    }
    fs::create_dir_all(dir.join("logs"))?;
    Ok(fs::canonicalize(dir)?)
}

/// Builds retide and gives its binary.
fn build() -> Result<PathBuf, Failed> {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let built = Command::new(cargo)
        .args(["build", "-q", "-p", "retide"])
        .current_dir(root)
        .status()?;
    if !built.success() {
        return Err("retide cannot be built".into());
    }
    // Beside our own binary, or above it where that is a test's.
    let own = std::env::current_exe()?;
    let found = own
        .ancestors()
        .map(|folder| folder.join("retide"))
        .find(|path| path.is_file());
    found.ok_or_else(|| {
        "retide was built, but is not beside this binary: name it with --retide".into()
    })
}

/// Writes a configuration of retide's.
fn configure(path: &Path, layout: &Layout, bootstrap: &str, parts: &Parts) -> Result<(), Failed> {
    let Layout {
        partitions,
        workers,
        guarantee,
        access,
    } = layout;
    let login = match access {
        Access::Open => String::new(),
        Access::Users => format!(
            "security.protocol = 'sasl_plaintext'\nsasl.mechanisms = 'PLAIN'\n\
             sasl.username = '{USER}'\nsasl.password = '{PASSWORD}'\n"
        ),
    };
    let guarantee = guarantee.word();
    let text = format!(
        "[kafka]\nbootstrap.servers = '{bootstrap}'\n{login}\
         [kafka.consumer]\nsession.timeout.ms = {}\nheartbeat.interval.ms = 500\n\
         [topics]\nprefix = '{PREFIX}'\npartitions = {partitions}\ntiers = ['now', '5s', '10s', '30s', '1m']\n\
         [processor]\ngroup = '{PREFIX}'\nworkers = {workers}\nguarantee = '{guarantee}'\n",
        SESSION.as_millis(),
    );
    let (rules, target) = (rules(parts.all), at(parts.all));
    let (rested, forced) = (at(parts.rested), at(parts.forced));
    let duplicates = |mode: &str| match layout.guarantee {
        Guarantee::ExactlyOnce => format!("duplicates = '{mode}'\n"),
        Guarantee::AtLeastOnce => String::new(),
    };
    let (drop, replace, keep) = (
        duplicates("drop"),
        duplicates("replace"),
        duplicates("keep-due"),
    );
    let patient = format!(
        "concurrency = {FEW}\nbackoff = {{ fixed = {{ delay = '{PATIENT_BACKOFF_MS}ms' }} }}\nmax_attempts = 10000\n"
    );
    let scenes = format!(
        "[scenes.{SCENE}]\n{rules}concurrency = {CONCURRENCY}\n\
         [scenes.{SWEPT}]\n{rules}concurrency = {CONCURRENCY}\n\
         [scenes.{ORDERED}]\n{rules}concurrency = {ORDERED_CONCURRENCY}\nordering = 'key'\n\
         [scenes.{LATER}]\n{rules}concurrency = {FEW}\npending = {{ for = '1h' }}\n\
         [scenes.{HELD}]\n{rules}concurrency = {FEW}\n\
         [scenes.{SPENT}]\n{target}concurrency = {FEW}\nbackoff = {{ fixed = {{ delay = '{SPENT_BACKOFF_MS}ms' }} }}\n\
         max_attempts = {SPENT_ATTEMPTS}\ndeadline = '1h'\non_exhausted = 'hold'\nbrake = false\n\
         [scenes.{RESTED}]\n{rested}concurrency = {FEW}\nbackoff = {{ fixed = {{ delay = '500ms' }} }}\n\
         [scenes.{FORCED}]\n{forced}{patient}breaker = {{ min_calls = {TRIPS}, open = '1m', probes = 2, slow_start = '0s' }}\n\
         [scenes.{STOPPED}]\n{target}{patient}deadline = '{DEADLINE_S}s'\n\
         [scenes.{ONCE}]\n{rules}concurrency = {FEW}\n{drop}\
         [scenes.{LATEST}]\n{rules}concurrency = {FEW}\n{replace}\
         [scenes.{KEPT}]\n{rules}concurrency = {FEW}\n{keep}",
    );
    Ok(fs::write(path, text + &scenes)?)
}

/// The rules of every scene.
fn rules(target: u16) -> String {
    let backoff: Vec<String> = BACKOFF_MS.iter().map(|ms| format!("'{ms}ms'")).collect();
    let target = at(target);
    format!(
        "{target}backoff = {{ levels = {{ delays = [{}] }} }}\nmax_attempts = {MAX_ATTEMPTS}\n",
        backoff.join(", "),
    )
}

/// The target of every scene.
fn at(target: u16) -> String {
    format!("target = {{ http = {{ url = 'http://127.0.0.1:{target}/task', timeout = '30s' }} }}\n")
}

/// The command that stores the scene on the scenes topic.
pub(crate) fn apply(fleet: &Fleet) -> Command {
    let mut command = fleet.command(0);
    command.args(["scenes", "apply", APPLIED_FILE]);
    command
}

/// The file with the scene that is stored on the scenes topic.
const APPLIED_FILE: &str = "applied.toml";

/// Calls in flight of one process.
const CONCURRENCY: u32 = 64;

/// Those of the ordered scene.
const ORDERED_CONCURRENCY: u32 = 16;

/// Failed calls in a row that open the breaker of a target which is down.
const TRIPS: u32 = 3;

/// Those of a scene with few tasks.
const FEW: u32 = 8;

/// Writes down what the checker has to know.
fn describe(dir: &Path, options: &Options, partitions: u64) -> Result<(), Failed> {
    let ledger = Ledger::create(&dir.join("campaign.tsv"))?;
    let backoff: Vec<String> = BACKOFF_MS.iter().map(u64::to_string).collect();
    for (key, value) in [
        ("seed", options.seed.to_string()),
        ("tasks", options.tasks.to_string()),
        ("prefix", PREFIX.to_owned()),
        ("partitions", partitions.to_string()),
        ("processes", options.processes.to_string()),
        ("workers", options.workers.to_string()),
        (
            "concurrency",
            (3 * CONCURRENCY + ORDERED_CONCURRENCY + 9 * FEW).to_string(),
        ),
        ("guarantee", options.guarantee.word().to_owned()),
        ("adversary", options.adversary.to_string()),
        ("load", options.load.to_string()),
        ("replays", options.replays().to_string()),
        ("backoff_ms", backoff.join(",")),
    ] {
        ledger.write(&[key, &value]);
    }
    // It waits as long as its target wants.
    ledger.write(&[&format!("backoff_ms {RESTED}"), "0"]);
    for (scene, wait) in [
        (SPENT, SPENT_BACKOFF_MS),
        (FORCED, PATIENT_BACKOFF_MS),
        (STOPPED, PATIENT_BACKOFF_MS),
    ] {
        ledger.write(&[&format!("backoff_ms {scene}"), &wait.to_string()]);
    }
    Ok(())
}

/// Whether everything was produced and every acknowledged task has ended, or is one of `gone`, and so has every acknowledged command.
pub(crate) fn is_finished(progress: &Progress, ends: &Ends, gone: &HashSet<String>) -> bool {
    let Progress {
        tasks, commands, ..
    } = progress;
    let done = tasks.done.load(Ordering::Acquire) && commands.done.load(Ordering::Acquire);
    let acked = tasks.acked.load(Ordering::Acquire);
    let told = progress.commands_acked();
    let later = progress.later.load(Ordering::Acquire);
    let done = done && progress.said_later.acked.load(Ordering::Acquire) >= later;
    let done = done && ends.count() + ends.missing(gone) >= acked && ends.commands() >= told;
    done && ends.is_told_of_all(progress.rounds.load(Ordering::Acquire))
}

/// Waits until every acknowledged task has ended, and a little longer.
async fn finish(stage: &Stage, progress: &Progress, ends: &Ends) -> bool {
    let gone = stage
        .adversary
        .as_ref()
        .map(Adversary::gone)
        .unwrap_or_default();
    let mut since = Instant::now();
    let mut last = 0;
    loop {
        let ended = ends.count() + ends.commands();
        if is_finished(progress, ends, &gone) {
            tokio::time::sleep(AFTER).await;
            // A target may have said something meanwhile.
            if is_finished(progress, ends, &gone) {
                return true;
            }
        }
        if ended > last {
            (since, last) = (Instant::now(), ended);
        }
        if since.elapsed() > FINISH {
            return false;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Stops the generator when a campaign ends early.
struct Guard(Arc<Progress>);

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.stop.store(true, Ordering::Release);
    }
}

// === faults ===

/// Does the faults of the plan, one after another or at the same time, as their pauses have it.
async fn happen(stage: &Arc<Stage>, options: &Options) {
    // The first tasks are on their way before anything happens.
    tokio::time::sleep(Duration::from_secs(5)).await;
    tokio::join!(suffer(stage, options), act(stage, options));
}

/// Does the faults of the plan.
async fn suffer(stage: &Arc<Stage>, options: &Options) {
    let faults = plan::faults(options);
    // Spread over the acts of the adversary.
    let longer = ACT * options.adversary as u32 / faults.len().max(1) as u32;
    let mut running = JoinSet::new();
    for (number, (pause, fault)) in faults.into_iter().enumerate() {
        tokio::time::sleep(pause + longer).await;
        let stage = Arc::clone(stage);
        let random = Random::new(options.seed, 100 + number as u64);
        running.spawn(async move {
            match &stage.adversary {
                Some(adversary) => {
                    let _running = adversary.running().await;
                    stage.inflict(fault, random).await;
                }
                None => stage.inflict(fault, random).await,
            }
        });
    }
    while let Some(done) = running.join_next().await {
        sure(done);
    }
}

/// Does the acts of the adversary, a few at a time.
async fn act(stage: &Arc<Stage>, options: &Options) {
    let mut running = JoinSet::new();
    for (number, (pause, act)) in Act::of(options.seed, options.adversary)
        .into_iter()
        .enumerate()
    {
        tokio::time::sleep(pause).await;
        if running.len() >= ACTS
            && let Some(done) = running.join_next().await
        {
            sure(done);
        }
        let stage = Arc::clone(stage);
        let random = Random::new(options.seed, 10_000 + number as u64);
        running.spawn(async move {
            if let Some(adversary) = &stage.adversary {
                adversary.commit(act, &stage.fleet, random).await;
            }
        });
    }
    while let Some(done) = running.join_next().await {
        sure(done);
    }
}

/// Ends everything if a fault could not be done: the campaign would show less than it says.
fn sure(done: Result<(), tokio::task::JoinError>) {
    if let Err(error) = done {
        eprintln!("retide-chaos: a fault failed: {error}");
        std::process::abort();
    }
}

// === impl Stage ===

impl Stage {
    /// Starts broker, proxy and target, and creates the topics; gives the broker's address, too.
    async fn set(
        dir: &Path,
        (retide, jars): (PathBuf, &Path),
        layout: &Layout,
        later: Later,
    ) -> Result<(Arc<Self>, String), Failed> {
        let (proxy, listener) = Proxy::bind().await?;
        let ports = Ports::free();
        let access = layout.access;
        let mut broker = Broker::format(&dir.join("broker"), jars, (ports, proxy.port), access)?;
        broker.start().await?;
        tokio::spawn(proxy.clone().run(listener, ports.proxied));
        let target = target::start(&dir.join("target.tsv"), later).await?;
        let bootstrap = broker.bootstrap();
        let proxied = format!("127.0.0.1:{}", proxy.port);
        // A user is known by the proxied listener alone.
        let direct = match access {
            Access::Open => &bootstrap,
            Access::Users => &proxied,
        };
        configure(&dir.join("retide.toml"), layout, direct, &target)?;
        configure(&dir.join("proxied.toml"), layout, &proxied, &target)?;
        let faults = Arc::new(Faults::create(&dir.join("faults.tsv"))?);
        let adversary = match access {
            Access::Open => None,
            Access::Users => {
                let rules = rules(target.all);
                let scene = format!("[scenes.{APPLIED}]\n{rules}concurrency = {CONCURRENCY}\n");
                fs::write(dir.join(APPLIED_FILE), scene)?;
                let partitions = layout.partitions;
                Some(Adversary::new((dir, jars), &bootstrap, &faults, partitions).await?)
            }
        };
        let fleet = Fleet::new(
            retide,
            dir.to_owned(),
            Arc::clone(&faults),
            adversary.is_some(),
        );
        if !fleet.command(0).arg("init").status()?.success() {
            return Err("retide init failed".into());
        }
        if adversary.is_some() && !apply(&fleet).status()?.success() {
            return Err("retide scenes apply failed".into());
        }
        let stage = Arc::new(Self {
            fleet,
            broker: tokio::sync::Mutex::new(broker),
            proxy,
            losing: tokio::sync::Mutex::default(),
            faults,
            adversary,
            target,
        });
        Ok((stage, bootstrap))
    }

    /// Does one fault, from its beginning to its end.
    async fn inflict(&self, fault: Fault, mut random: Random) {
        match fault {
            Fault::Kill(down) => {
                let number = self.take(&mut random).await;
                let fault = self.faults.begin("kill", &name(number), "");
                self.fleet.kill(number);
                tokio::time::sleep(down).await;
                self.fleet.start(number);
                self.fleet.release(number);
                self.faults.end(fault);
            }
            Fault::Zombie => {
                let number = self.take(&mut random).await;
                let fault = self.faults.begin("zombie", &name(number), "");
                self.fleet.signal(number, "STOP");
                tokio::time::sleep(SESSION.mul_f32(1.5)).await;
                self.fleet.signal(number, "CONT");
                self.fleet.release(number);
                self.faults.end(fault);
            }
            Fault::Lose(reply, loss, count) => self.lose(reply, loss, count).await,
            Fault::Broker(down) => {
                let mut broker = self.broker.lock().await;
                let fault = self.faults.begin("broker", "", &format!("{down:?}"));
                broker.kill();
                tokio::time::sleep(down).await;
                if let Err(error) = broker.start().await {
                    eprintln!("retide-chaos: {error}");
                    std::process::abort();
                }
                self.faults.end(fault);
            }
            Fault::Storm => self.storm(&mut random).await,
        }
    }

    /// Loses replies, or all heartbeats for longer than a session.
    async fn lose(&self, reply: Reply, loss: Loss, count: usize) {
        let _one = self.losing.lock().await;
        let detail = format!("{} {} x{count}", reply.word(), loss.word());
        let fault = self.faults.begin("reply", "", &detail);
        if reply == Reply::Heartbeat {
            self.proxy.lose(reply.api(), loss, usize::MAX);
            tokio::time::sleep(SESSION.mul_f32(1.5)).await;
        } else {
            self.proxy.lose(reply.api(), loss, count);
            let since = Instant::now();
            while self.proxy.is_losing() && since.elapsed() < LOSS * count as u32 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
        let missing = self.proxy.stop_losing();
        eprintln!("fault {fault}: {missing} replies lost");
        // What was lost silently is missed after ten seconds.
        if loss == Loss::Silent && missing > 0 {
            tokio::time::sleep(LOSS).await;
        }
        self.faults.end(fault);
    }

    /// Processes that join and leave again, two of each.
    async fn storm(&self, random: &mut Random) {
        let fault = self.faults.begin("storm", "", "");
        let first = self.fleet.join(Held::Yes);
        tokio::time::sleep(random.millis(500, 2_500)).await;
        let second = self.fleet.join(Held::Yes);
        tokio::time::sleep(random.millis(500, 2_500)).await;
        self.fleet.leave(first).await;
        tokio::time::sleep(random.millis(0, 1_500)).await;
        self.fleet.leave(second).await;
        self.faults.end(fault);
    }

    /// Takes hold of a process, waiting for one that may be taken.
    async fn take(&self, random: &mut Random) -> usize {
        loop {
            if let Some(number) = self.fleet.take(random) {
                return number;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

// === ends ===

/// Counts the tasks and the commands that have ended, as a read-committed consumer sees it.
pub(crate) struct Ends {
    /// Which tasks.
    ids: Arc<Mutex<HashSet<String>>>,
    /// The places of the commands.
    commands: Arc<Mutex<HashSet<String>>>,
    /// What became of records that take the place of others, or of which others do.
    fates: Arc<Mutex<Fates>>,
    /// Their names.
    ended: Ended,
    /// What is seen of dead letters and of campaigns that replay them.
    replays: Replays,
    /// Set to stop counting.
    stop: Arc<AtomicBool>,
}

/// What became of the records of tasks of which there are several.
#[derive(Default)]
struct Fates {
    /// The tasks.
    ids: HashSet<String>,
    /// Where it is told that one has ended, or that another one has its place.
    places: HashSet<(String, i32, i64)>,
}

/// The names of commands that have ended; cheap to clone.
#[derive(Clone, Default)]
pub(crate) struct Ended(Arc<Mutex<HashSet<String>>>);

impl Ended {
    /// Whether this one has.
    pub(crate) fn contains(&self, name: &str) -> bool {
        let names = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        names.contains(name)
    }

    /// One has, which has said this.
    fn add(&self, said: &[u8]) {
        let said = String::from_utf8_lossy(said);
        let name = said.find("cmd-").and_then(|at| {
            let end = said[at..].find("-\"")?;
            said.get(at..=at + end)
        });
        let mut names = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        names.extend(name.map(str::to_owned));
    }
}

impl Ends {
    /// The names of the commands that have ended, from now on, too.
    fn ended(&self) -> Ended {
        self.ended.clone()
    }

    /// What is seen of replays, from now on, too.
    fn replays(&self) -> Replays {
        self.replays.clone()
    }

    /// How many tasks have ended.
    pub(crate) fn count(&self) -> usize {
        self.ids().len()
    }

    /// How many commands have ended.
    pub(crate) fn commands(&self) -> usize {
        let commands = self.commands.lock();
        commands.unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Whether it is told of all records that take the place of others, of which there are so many, and of the first ones, what became of them.
    fn is_told_of_all(&self, rounds: usize) -> bool {
        let fates = self.fates.lock().unwrap_or_else(PoisonError::into_inner);
        fates.places.len() >= fates.ids.len() + rounds
    }

    /// How many of `gone` have not ended.
    fn missing(&self, gone: &HashSet<String>) -> usize {
        let ids = self.ids();
        gone.iter().filter(|id| !ids.contains(*id)).count()
    }

    /// Those that have ended.
    fn ids(&self) -> MutexGuard<'_, HashSet<String>> {
        self.ids.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts to count on a thread of its own.
    fn watch(bootstrap: &str) -> Result<Self, Failed> {
        let consumer: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", bootstrap)
            .set("group.id", "chaos-ends")
            .set("enable.auto.commit", "false")
            .set("isolation.level", "read_committed")
            .set("auto.offset.reset", "earliest")
            // Partitions that are added count soon.
            .set("topic.metadata.refresh.interval.ms", "2000")
            .create()?;
        #[allow(
            clippy::disallowed_methods,
            reason = "what judges retide shares no reader with it"
        )]
        consumer.subscribe(&[
            &format!("{PREFIX}.callbacks"),
            &format!("{PREFIX}.commands"),
            &format!("{PREFIX}.events"),
            &format!("{PREFIX}.dead-letters"),
        ])?;
        let ends = Self {
            ids: Arc::default(),
            commands: Arc::default(),
            fates: Arc::default(),
            ended: Ended::default(),
            replays: Replays::default(),
            stop: Arc::default(),
        };
        let (ids, stop) = (Arc::clone(&ends.ids), Arc::clone(&ends.stop));
        let (commands, ended) = (Arc::clone(&ends.commands), ends.ended());
        let (fates, replays) = (Arc::clone(&ends.fates), ends.replays());
        thread::Builder::new().name("ends".into()).spawn(move || {
            while !stop.load(Ordering::Acquire) {
                // Errors pass: the broker comes back.
                let Some(Ok(message)) = consumer.poll(Duration::from_millis(100)) else {
                    continue;
                };
                let Ok(headers) = retide_native::headers::read(&message) else {
                    continue;
                };
                let text = |name: &[u8]| {
                    let value = headers.last(name);
                    value.and_then(|value| String::from_utf8(value.to_vec()).ok())
                };
                let stage = text(b"retry-command-stage");
                if stage.as_ref().is_some_and(|stage| stage == "campaign") {
                    replays.see(message.payload().unwrap_or_default());
                    continue;
                }
                if message.topic().ends_with(".dead-letters") {
                    replays.died(text(b"retry-fingerprint").unwrap_or_default());
                    continue;
                }
                if stage.is_some_and(|stage| stage == "ended") {
                    let mut commands = commands.lock().unwrap_or_else(PoisonError::into_inner);
                    commands.extend(text(b"retry-command"));
                    ended.add(message.payload().unwrap_or_default());
                    continue;
                }
                let event = text(b"retry-event");
                let is_told = event.as_ref().is_none_or(|event| event == "duplicate");
                let scene = text(b"retry-scene").unwrap_or_default();
                let id = text(b"retry-id");
                if let Some(id) = &id
                    && is_told
                    && [LATEST, KEPT].contains(&&*scene)
                {
                    let mut fates = fates.lock().unwrap_or_else(PoisonError::into_inner);
                    let place = (message.topic().to_owned(), message.partition());
                    fates.ids.insert(id.clone());
                    fates.places.insert((place.0, place.1, message.offset()));
                }
                if event.is_some() {
                    continue;
                }
                // Those of the plan alone: what else ends was written by an adversary.
                let mut ids = ids.lock().unwrap_or_else(PoisonError::into_inner);
                ids.extend(id.filter(|id| plan::is_planned(id)));
            }
        })?;
        Ok(ends)
    }
}

impl Drop for Ends {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
    }
}

// === checker ===

/// A Java process; it ends when this is dropped.
struct Java(Child);

impl Java {
    /// Samples the group's offsets.
    fn sampler(jars: &Path, bootstrap: &str, dir: &Path) -> Result<Self, Failed> {
        let child = checker(jars)
            .args([
                "sample",
                "--bootstrap",
                bootstrap,
                "--group",
                PREFIX,
                "--out",
            ])
            .arg(dir.join("offsets.tsv"))
            .stdin(Stdio::null())
            .stderr(fs::File::create(dir.join("logs/sampler.log"))?)
            .spawn()?;
        Ok(Self(child))
    }
}

impl Drop for Java {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The checker, without arguments.
pub(crate) fn checker(jars: &Path) -> Command {
    let mut command = Command::new("java");
    command
        .args(["-XX:TieredStopAtLevel=1", "-cp"])
        .arg(format!("{}/*", jars.display()))
        .arg("-Dorg.slf4j.simpleLogger.defaultLogLevel=error")
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/Checker.java"));
    command
}

/// Runs the checker.
async fn check(jars: &Path, bootstrap: &str, dir: &Path) -> Result<Verdict, Failed> {
    let child = checker(jars)
        .args(["check", "--bootstrap", bootstrap])
        .arg(dir)
        .stdin(Stdio::null())
        .spawn()?;
    let mut java = Java(child);
    loop {
        if let Some(status) = java.0.try_wait()? {
            return match status.code() {
                Some(0) => Ok(Verdict::Kept),
                Some(1) => Ok(Verdict::Broken),
                _ => Err("the checker failed".into()),
            };
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
