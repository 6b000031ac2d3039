//! The numbers of a process, as Prometheus reads them.
//!
//! Not what happened: that is told by `crate::event`, whose `emit` counts here. What belongs to a batch (ends, hops, dead letters,
//! records) is counted once the batch is durable, so that counters and topics say the same; attempts are counted when they are
//! answered, since the target saw them whatever becomes of the batch. A record that a target topic refuses counts as what follows from that.
//!
//! Invariant: no label holds a task's id, and the scenes named are those in force; everything else is counted for `unknown`.
//! A worker looks the counters of its scenes up when the rules change, never per record.

pub mod exposition;
mod process;
pub(crate) mod standing;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::iter;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant};

use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Metric, Registry};

use retide_config::SCENE_SERIES;
use retide_connectors::left_out::{self, LeftOut};
use retide_core::breaker::State;
use retide_core::scene::Of;
use retide_core::{
    Ended, Entry, Kind, Ladder, Outcome, Reason, Scenes, Settlement, Source, Terminal, Timestamp,
    Transition, Wait, scene,
};

use crate::failing::Failing;
use crate::trouble::Troubles;

use self::exposition::Exposition;
use self::process::Process;
use self::standing::{Said, Standing};

/// The metrics of a process, shared by its workers.
pub struct Metrics {
    /// What is read.
    registry: Registry,
    /// What is late at the moment.
    standing: Standing,
    /// What the operating system says, if it says anything.
    process: Option<Process>,
    /// How many workers there were.
    shares: AtomicU64,
    /// Taken while what is only looked up then is read.
    reading: Mutex<()>,
    /// How a process is configured, which is said once.
    configuration: Family<ConfigurationLabels, Gauge>,
    /// What is counted by scene.
    scenes: Arc<SceneFamilies>,
    /// The counters of the scenes that were put in force last: they stay when no worker is left.
    in_force: Mutex<Arc<SceneSet>>,
    /// Tasks written to each tier, in the order of the ladder.
    parked: Vec<Counter>,
    /// Records on the dead-letters topic, in the order of [`Reason::ALL`].
    dead_letters: [Counter; Reason::ALL.len()],
    /// Offsets whose consequence is not decided.
    open_records: Gauge,
    /// Bytes of the tasks held in memory.
    held_bytes: Gauge,
    /// Calls under way.
    calls_in_flight: Gauge,
    /// Shards this process owns.
    owned_shards: Gauge,
    /// Keys with outstanding tasks that go one after the other.
    ordered_keys: Gauge,
    /// How long batches took, from hand-over to durable.
    pub(crate) ledger_commit: Histogram,
    /// Records in durable batches.
    ledger_records: Counter,
    /// Batches that became durable.
    pub(crate) batches_committed: Counter,
    /// Batches that came to nothing, their shards being someone else's.
    pub(crate) batches_dropped: Counter,
    /// Transactions aborted; their batches are written again.
    pub(crate) batches_aborted: Counter,
    /// Batches that were not written as they were.
    pub(crate) batches_returned: Counter,
    /// Producers made anew.
    pub(crate) producers_replaced: Counter,
    /// Records that a target topic refused.
    pub(crate) refused_records: Counter,
    /// Assignments.
    pub(crate) rebalances_assigned: Counter,
    /// Shards asked back.
    pub(crate) rebalances_revoked: Counter,
    /// Shards gone without being asked back.
    pub(crate) rebalances_lost: Counter,
    /// Errors the consumer went on after.
    pub(crate) consumer_errors: Counter,
    /// Commits whose metadata could not be read.
    pub(crate) unreadable_commits: Counter,
    /// Records set aside since processes died at them.
    pub(crate) set_aside_records: Counter,
    /// Records of the order topic that could not be read.
    pub(crate) unreadable_orders: Counter,
    /// Offsets that were gone before they were read.
    pub(crate) records_gone: Counter,
    /// Parked tasks that were gone when others of their keys waited for them.
    pub(crate) awaited_gone: Counter,
    /// Connectors that panicked.
    pub(crate) target_panics: Counter,
    /// How many calls may be in flight at once.
    limits: LimitFamily,
    /// The breakers.
    breakers: BreakerFamilies,
    /// Shards of the whole group.
    pub(crate) shards: Gauge,
    /// Scenes in force.
    pub(crate) scenes_in_force: Gauge,
    /// Running workers.
    pub(crate) workers: Gauge,
    /// Lines of the log that could not be written.
    pub(crate) log_lines_dropped: Counter,
    /// What is wrong for longer than a moment.
    troubles: Troubles,
}

/// The counters of one scene, shared by the workers in which it is in force; its series go when it is in force nowhere.
pub struct SceneMetrics {
    /// Where the series stand.
    families: Arc<SceneFamilies>,
    /// The scene.
    name: Arc<str>,
    /// Its series, once it has something to say: its own, or those of all that found no room.
    series: OnceLock<Arc<Series>>,
    /// What goes wrong, as lines of the log.
    failing: Failing,
}

/// The series of a scene, or of all that have none of their own. The long ones begin when they have something to say.
struct Series {
    /// What stands for the scene in the label.
    label: Arc<str>,
    /// How late attempts started.
    lateness: OnceLock<Histogram>,
    /// Attempts, in the order of [`OUTCOMES`].
    attempts: [Counter; OUTCOMES.len()],
    /// How long attempts took.
    attempt: OnceLock<Histogram>,
    /// Tasks read from the retry topic.
    tasks_read: Counter,
    /// Ends of tasks, in the order of [`Terminal::ALL`].
    tasks_ended: [Counter; Terminal::ALL.len()],
    /// Ends of callbacks, in the order of [`Terminal::ALL`].
    callbacks_ended: OnceLock<[Counter; Terminal::ALL.len()]>,
    /// Tasks that found no place before their gate.
    deferred: Counter,
}

/// The counters of the scenes in force, as one worker sees them between two changes of the rules.
pub struct SceneSet {
    /// The place of each scene.
    places: HashMap<Arc<str>, usize>,
    /// The counters; the first ones are those of scenes that do not exist.
    scenes: Vec<Arc<SceneMetrics>>,
}

/// What is to be counted once a batch is durable.
pub(crate) struct Tally {
    /// The scenes in force when it was handed over.
    set: Arc<SceneSet>,
    /// What happened in each of them.
    scenes: Vec<SceneTally>,
    /// Tasks written to each tier.
    parked: Vec<u64>,
    /// Records written to the dead-letters topic.
    dead_letters: [u64; Reason::ALL.len()],
    /// Tasks that ended otherwise than delivered, by scene and why, each with the end that came last.
    undelivered: BTreeMap<Why, (u64, Arc<Ended>)>,
    /// Records written.
    records: u64,
}

/// The place of a scene, and how and why tasks of it ended.
type Why = (usize, Terminal, Option<Reason>);

/// What happened in one scene.
#[derive(Clone, Default)]
struct SceneTally {
    /// Tasks read from the retry topic.
    read: u64,
    /// Ends of tasks.
    tasks: [u64; Terminal::ALL.len()],
    /// Ends of callbacks.
    callbacks: [u64; Terminal::ALL.len()],
    /// Attempts the ledger made itself.
    delivered: u64,
    /// Attempts the ledger made itself, and whose records were refused.
    refused: u64,
    /// Tasks that found no place before their gate.
    deferred: u64,
}

/// What a worker holds at the moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Load {
    /// Open offsets.
    pub(crate) open: usize,
    /// Bytes of the tasks in memory.
    pub(crate) held: usize,
    /// Calls in flight.
    pub(crate) calls: usize,
    /// Shards.
    pub(crate) shards: usize,
    /// Keys with outstanding tasks that go one after the other.
    pub(crate) keys: usize,
}

/// A worker's part in the gauges of its process; it is taken out again when this is dropped.
pub(crate) struct Share {
    /// The gauges.
    metrics: Arc<Metrics>,
    /// Its number among the workers.
    number: u64,
    /// What is in them of this worker.
    load: Load,
}

/// What is counted by scene.
struct SceneFamilies {
    /// How late attempts started.
    lateness: Histograms,
    /// How late attempts of all scenes started, by cause, in the order of [`CAUSES`].
    causes: [Histogram; CAUSES.len()],
    /// Attempts by outcome.
    attempts: Family<OutcomeLabels, Counter>,
    /// Headers of records that were left out of requests.
    left_out: Family<ReasonLabels, Counter>,
    /// How long attempts took.
    attempt: Histograms,
    /// Tasks read from the retry topic.
    tasks_read: Family<SceneLabels, Counter>,
    /// Ends of tasks.
    tasks_ended: Family<OutcomeLabels, Counter>,
    /// Ends of callbacks.
    callbacks_ended: Family<OutcomeLabels, Counter>,
    /// Tasks that found no place before their gate.
    deferred: Family<SceneLabels, Counter>,
    /// The scenes in force.
    live: Mutex<HashMap<Arc<str>, Weak<SceneMetrics>>>,
    /// How many scenes may have series of their own.
    most: usize,
    /// The labels of those that have.
    named: Mutex<HashSet<Arc<str>>>,
    /// The series of all the others.
    others: OnceLock<Arc<Series>>,
}

/// A histogram by scene.
type Histograms = Family<SceneLabels, Histogram, fn() -> Histogram>;

/// Which scene.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct SceneLabels {
    /// Its name, escaped.
    scene: String,
}

/// Which scene, and how it went.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabels {
    /// The scene's name, escaped.
    scene: String,
    /// The word for how it went.
    outcome: &'static str,
}

/// Which scene, and why something was left out.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabels {
    /// The scene's name, escaped.
    scene: String,
    /// The word for the reason.
    reason: &'static str,
}

/// The scene that attempts and ends count for if there are no rules for them.
const UNKNOWN: &str = "unknown";

/// The scene, and the target, that everything counts for beyond [`SCENE_SERIES`].
const OTHER: &str = "other";

/// The words of [`Outcome`], in the order of [`place`].
const OUTCOMES: [&str; 5] = ["success", "retryable", "permanent", "throttled", "timeout"];

/// What makes attempts late, in the words of [`Wait::by_cause`], and the late begin of their call or batch.
pub const CAUSES: [&str; 9] = [
    "rebalance",
    "read",
    "agenda",
    "order",
    "rate",
    "concurrency",
    "breaker",
    "room",
    "start",
];

/// Bounds of lateness, in seconds: fine around the milliseconds a task is late as a rule, up to the day it is late after an outage.
const LATENESS: [f64; 22] = [
    0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.02, 0.03, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0,
    30.0, 60.0, 300.0, 900.0, 3600.0, 21600.0, 86400.0,
];

/// Bounds of the length of a call or commit, in seconds: from one within a rack to the longest time limit.
const LENGTH: [f64; 16] = [
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0,
];

// === impl Metrics ===

impl Metrics {
    /// The metrics of a process whose tiers are those of `ladder`, all at nothing.
    pub fn new(ladder: &Ladder) -> Self {
        Self::limited(ladder, SCENE_SERIES)
    }

    /// As [`Self::new`], where so many scenes have series of their own.
    pub fn limited(ladder: &Ladder, most: usize) -> Self {
        let mut registry = Registry::default();
        let process = Process::register(&mut registry);
        let r = registry.sub_registry_with_prefix("retide");
        let version = [("version", env!("CARGO_PKG_VERSION"))];
        r.register("build", "Version of retide", Info::new(version));
        let scenes = Arc::new(SceneFamilies::register(r, most));
        let in_force = Mutex::new(Arc::new(SceneSet::new(&scenes, &Scenes::default())));
        let tiers = ladder.tiers().iter().map(|tier| &*tier.name);
        let help = "Tasks written to a tier, to wait there";
        let parked = words(r, ("parked", help), "tier", tiers);
        let reasons = Reason::ALL.map(Reason::word);
        let help = "Records written to the dead-letters topic";
        let dead_letters = words(r, ("dead_letters", help), "reason", reasons.into_iter());
        let help = "Batches of the ledger, by what became of them";
        let results = ["committed", "dropped", "aborted", "returned"];
        let batches = words(r, ("ledger_batches", help), "result", results.into_iter());
        let help = "Changes of the shards of a worker";
        let kinds = ["assigned", "revoked", "lost"];
        let rebalances = words(r, ("rebalances", help), "kind", kinds.into_iter());
        let length = Histogram::new(LENGTH);
        let help = "How long batches took, from hand-over to durable";
        let ledger_commit = add(r, ("ledger_commit_seconds", help), length);
        let troubles = Troubles::default();
        let help = "What is wrong for longer than a moment: 1 while it lasts";
        r.register("trouble", help, troubles.series().clone());
        Self {
            scenes,
            in_force,
            parked,
            dead_letters: dead_letters
                .try_into()
                .unwrap_or_else(|_| unreachable!("as many counters as reasons")),
            open_records: gauge(r, "open_records", "Records read whose end is not decided"),
            held_bytes: gauge(r, "held_bytes", "Bytes of tasks held in memory"),
            calls_in_flight: gauge(r, "calls_in_flight", "Calls to targets under way"),
            owned_shards: gauge(r, "owned_shards", "Shards that this process owns"),
            ordered_keys: gauge(
                r,
                "ordered_keys",
                "Keys whose outstanding tasks go one after the other",
            ),
            ledger_commit,
            ledger_records: counter(r, "ledger_records", "Records in durable batches"),
            batches_committed: batches[0].clone(),
            batches_dropped: batches[1].clone(),
            batches_aborted: batches[2].clone(),
            batches_returned: batches[3].clone(),
            producers_replaced: counter(r, "producers_replaced", "Producers made anew"),
            refused_records: counter(r, "refused_records", "Records target topics refused"),
            rebalances_assigned: rebalances[0].clone(),
            rebalances_revoked: rebalances[1].clone(),
            rebalances_lost: rebalances[2].clone(),
            consumer_errors: counter(r, "consumer_errors", "Errors the consumer survived"),
            unreadable_commits: counter(
                r,
                "unreadable_commits",
                "Commit metadata not believed, and taken as empty",
            ),
            set_aside_records: counter(
                r,
                "set_aside_records",
                "Records set aside as dead letters, since processes died at them",
            ),
            unreadable_orders: counter(
                r,
                "unreadable_orders",
                "Records of the order topic not understood",
            ),
            awaited_gone: counter(r, "ordered_tasks_gone", "Parked tasks gone, keys go on"),
            records_gone: counter(
                r,
                "records_gone",
                "Offsets whose records were deleted before they were read",
            ),
            target_panics: counter(r, "target_panics", "Connectors that panicked in a call"),
            limits: LimitFamily::register(r),
            breakers: BreakerFamilies::register(r, most),
            standing: Standing::register(r),
            process,
            reading: Mutex::default(),
            shares: AtomicU64::new(0),
            configuration: add(
                r,
                ("config_info", "How the process is configured: always 1"),
                Family::default(),
            ),
            shards: gauge(r, "shards", "Shards of the whole group"),
            scenes_in_force: gauge(r, "scenes", "Scenes in force"),
            workers: gauge(r, "workers", "Running workers"),
            log_lines_dropped: counter(
                r,
                "log_lines_dropped",
                "Log lines that stderr did not take",
            ),
            troubles,
            registry,
        }
    }

    /// All of it as `OpenMetrics` text.
    pub fn encode(&self) -> String {
        self.encode_as(Exposition::OpenMetrics)
    }

    /// All of it in this form.
    pub fn encode_as(&self, form: Exposition) -> String {
        let mut out = String::new();
        let reading = lock(&self.reading);
        self.standing.look(self.scenes.named().into_iter());
        if let Some(process) = &self.process {
            process.look();
        }
        text::encode(&mut out, &self.registry)
            .unwrap_or_else(|error| unreachable!("a string takes any text: {error}"));
        drop(reading);
        form.of(out)
    }

    /// The partitions of the retry topic end there now.
    pub(crate) fn ends_are(&self, ends: impl Iterator<Item = (i32, i64)>) {
        self.standing.ends_are(ends);
    }

    /// Says how the process is configured.
    pub fn configured(&self, labels: &[(&'static str, &str)]) {
        let labels = labels.iter();
        let labels = labels.map(|(name, value)| (*name, escape(value))).collect();
        self.configuration.get_or_create_owned(&labels).set(1);
    }

    /// What is wrong for longer than a moment: listed here, on `/readyz` and in the log.
    pub fn troubles(&self) -> &Troubles {
        &self.troubles
    }

    /// Writes the lines that are due: of troubles, and of scenes in which something goes wrong. To be called every second or so.
    pub(crate) fn tick(&self) {
        self.troubles.tick();
        let now = Instant::now();
        let scenes: Vec<_> = lock(&self.scenes.live).values().cloned().collect();
        for scene in scenes.iter().filter_map(Weak::upgrade) {
            scene.failing.tick(now);
        }
    }

    /// Puts these scenes in force; gives their counters.
    pub fn put_in_force(&self, scenes: &Scenes) -> Arc<SceneSet> {
        let set = Arc::new(SceneSet::new(&self.scenes, scenes));
        *lock(&self.in_force) = Arc::clone(&set);
        self.limits.keep(scenes);
        self.breakers.keep(scenes);
        set
    }

    /// So many calls may be in flight at once.
    pub(crate) fn limit_is(&self, of: &Of, calls: u32) {
        let has_series = match of {
            Of::Scene(name) => lock(&self.scenes.named).contains(name),
            Of::Host(_) => true,
        };
        if has_series {
            self.limits.set(of, calls, self.scenes.most);
        }
    }

    /// A breaker of this target has switched.
    pub(crate) fn breaker_switched(&self, target: &str, to: State) {
        self.breakers.switched(target, to);
    }

    /// The breaker of this target is in this state.
    pub(crate) fn breaker_is(&self, target: &Arc<str>, state: State) {
        self.breakers.set(target, state);
    }

    /// The counters of the scenes put in force last.
    pub(crate) fn in_force(&self) -> Arc<SceneSet> {
        Arc::clone(&lock(&self.in_force))
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Metrics").finish_non_exhaustive()
    }
}

/// Registers a metric.
fn add<M: Metric + Clone>(registry: &mut Registry, (name, help): (&str, &str), metric: M) -> M {
    registry.register(name, help, metric.clone());
    metric
}

/// A new counter.
fn counter(registry: &mut Registry, name: &str, help: &str) -> Counter {
    add(registry, (name, help), Counter::default())
}

/// A new gauge.
fn gauge(registry: &mut Registry, name: &str, help: &str) -> Gauge {
    add(registry, (name, help), Gauge::default())
}

/// A new counter for each of `words`, told apart by `label`.
fn words<'a>(
    registry: &mut Registry,
    named: (&str, &str),
    label: &'static str,
    words: impl Iterator<Item = &'a str>,
) -> Vec<Counter> {
    let family = Family::<[(&'static str, String); 1], Counter>::default();
    let family = add(registry, named, family);
    words
        .map(|word| family.get_or_create_owned(&[(label, word.to_owned())]))
        .collect()
}

// === impl SceneFamilies ===

impl SceneFamilies {
    /// Registers what is counted by scene.
    fn register(registry: &mut Registry, most: usize) -> Self {
        let lateness: Histograms = Family::new_with_constructor(|| Histogram::new(LATENESS));
        let attempt: Histograms = Family::new_with_constructor(|| Histogram::new(LENGTH));
        let r = registry;
        let help = "How long after its due time an attempt started";
        let lateness = add(r, ("lateness_seconds", help), lateness);
        let help = "How long after their due time attempts started, by what took the time";
        let causes =
            Family::<[(&'static str, &'static str); 1], Histogram, _>::new_with_constructor(
                (|| Histogram::new(LATENESS)) as fn() -> Histogram,
            );
        let causes = add(r, ("lateness_by_cause_seconds", help), causes);
        let causes = CAUSES.map(|cause| causes.get_or_create_owned(&[("cause", cause)]));
        let attempts = add(r, ("attempts", "Answered attempts"), Family::default());
        let help = "Headers of records that were left out of requests, by reason";
        let left_out = add(r, ("headers_left_out", help), Family::default());
        let help = "How long an attempt took, from its start to its answer";
        let attempt = add(r, ("attempt_seconds", help), attempt);
        let help = "Tasks read from the retry topic, each once what follows is durable";
        let tasks_read = add(r, ("tasks_read", help), Family::default());
        let tasks_ended = add(r, ("tasks_ended", "Ends of tasks"), Family::default());
        let help = "Ends of deliveries of callbacks";
        let callbacks_ended = add(r, ("callbacks_ended", help), Family::default());
        let help = "Due tasks sent back to a tier, the line before their gate being full or their target's breaker open";
        let deferred = add(r, ("deferred", help), Family::default());
        Self {
            lateness,
            causes,
            attempts,
            left_out,
            attempt,
            tasks_read,
            tasks_ended,
            callbacks_ended,
            deferred,
            live: Mutex::default(),
            most,
            named: Mutex::default(),
            others: OnceLock::new(),
        }
    }

    /// The labels of scenes that have series.
    fn named(&self) -> Vec<Arc<str>> {
        let named = lock(&self.named).iter().map(Arc::clone).collect::<Vec<_>>();
        let others = self.others.get();
        let others = others.map(|series| Arc::clone(&series.label));
        named.into_iter().chain(others).collect()
    }

    /// The series of a scene that has something to say: its own, as long as there is room.
    fn series(&self, name: &Arc<str>) -> Arc<Series> {
        let mut named = lock(&self.named);
        let has_room = named.len() < self.most || named.contains(name) || &**name == UNKNOWN;
        if has_room {
            named.insert(Arc::clone(name));
            return Arc::new(self.series_as(name));
        }
        let others = self
            .others
            .get_or_init(|| Arc::new(self.series_as(&OTHER.into())));
        Arc::clone(others)
    }

    /// Series under this label.
    fn series_as(&self, label: &Arc<str>) -> Series {
        let scene = SceneLabels::new(label);
        let by = |family: &Family<OutcomeLabels, Counter>, outcome: &'static str| {
            family.get_or_create_owned(&OutcomeLabels::new(label, outcome))
        };
        Series {
            label: Arc::clone(label),
            lateness: OnceLock::new(),
            attempts: OUTCOMES.map(|word| by(&self.attempts, word)),
            attempt: OnceLock::new(),
            tasks_read: self.tasks_read.get_or_create_owned(&scene),
            tasks_ended: Terminal::ALL.map(|end| by(&self.tasks_ended, end.word())),
            callbacks_ended: OnceLock::new(),
            deferred: self.deferred.get_or_create_owned(&scene),
        }
    }

    /// Takes the series of this label away.
    fn remove(&self, label: &Arc<str>) {
        lock(&self.named).remove(label);
        let scene = SceneLabels::new(label);
        self.lateness.remove(&scene);
        self.attempt.remove(&scene);
        self.tasks_read.remove(&scene);
        self.deferred.remove(&scene);
        for outcome in OUTCOMES {
            let labels = OutcomeLabels::new(label, outcome);
            self.attempts.remove(&labels);
        }
        for reason in left_out::Reason::ALL {
            self.left_out.remove(&ReasonLabels::new(label, reason));
        }
        for end in Terminal::ALL {
            let labels = OutcomeLabels::new(label, end.word());
            self.tasks_ended.remove(&labels);
            self.callbacks_ended.remove(&labels);
        }
    }

    /// The counters of a scene: those there are, or new ones.
    fn of(self: &Arc<Self>, name: &Arc<str>) -> Arc<SceneMetrics> {
        let mut live = lock(&self.live);
        if let Some(metrics) = live.get(name).and_then(Weak::upgrade) {
            return metrics;
        }
        let metrics = Arc::new(SceneMetrics {
            families: Arc::clone(self),
            name: Arc::clone(name),
            series: OnceLock::new(),
            failing: Failing::new(name),
        });
        live.insert(Arc::clone(name), Arc::downgrade(&metrics));
        metrics
    }
}

// === impl SceneLabels ===

impl SceneLabels {
    /// The labels of a scene.
    fn new(scene: &str) -> Self {
        let scene = escape(scene);
        Self { scene }
    }
}

// === impl OutcomeLabels ===

impl OutcomeLabels {
    /// The labels of how it went in a scene.
    fn new(scene: &str, outcome: &'static str) -> Self {
        let scene = escape(scene);
        Self { scene, outcome }
    }
}

// === impl ReasonLabels ===

impl ReasonLabels {
    /// The labels of what was left out in a scene for a reason.
    fn new(scene: &str, reason: left_out::Reason) -> Self {
        let (scene, reason) = (escape(scene), reason.word());
        Self { scene, reason }
    }
}

/// The text of a label's value, which the encoder writes as it is.
pub(crate) fn escape(text: &str) -> String {
    text.replace('\\', r"\\")
        .replace('"', "\\\"")
        .replace('\n', r"\n")
}

// === impl SceneMetrics ===

impl SceneMetrics {
    /// Its series, from when it has something to say.
    fn series(&self) -> &Series {
        self.series.get_or_init(|| self.families.series(&self.name))
    }

    /// What stands for it in the label, from when it has something to say.
    pub(crate) fn label(&self) -> &Arc<str> {
        &self.series().label
    }

    /// An attempt starts this long after it was decided, which was late itself.
    pub fn started(&self, wait: Wait, start: Duration) {
        let late = wait.total() + start;
        let series = self.series();
        let lateness = series.lateness.get_or_init(|| {
            let labels = SceneLabels::new(&series.label);
            self.families.lateness.get_or_create_owned(&labels)
        });
        lateness.observe(late.as_secs_f64());
        let parts = wait.by_cause().into_iter();
        let parts = parts.map(|(_, micros)| Duration::from_micros(micros));
        for (cause, part) in self.families.causes.iter().zip(parts.chain([start])) {
            cause.observe(part.as_secs_f64());
        }
    }

    /// An attempt was answered.
    pub(crate) fn answered(&self, outcome: &Outcome, took: Duration) {
        let series = self.series();
        series.attempts[place(outcome)].inc();
        let attempt = series.attempt.get_or_init(|| {
            let labels = SceneLabels::new(&series.label);
            self.families.attempt.get_or_create_owned(&labels)
        });
        attempt.observe(took.as_secs_f64());
        if let Some(failure) = outcome.failure() {
            self.failing.attempt(failure);
        }
    }

    /// Headers of a record were left out of the request of its attempt.
    pub(crate) fn left_out(&self, left_out: &LeftOut) {
        let scene = &self.series().label;
        for (reason, count) in left_out.counts() {
            let labels = ReasonLabels::new(scene, reason);
            let counter = self.families.left_out.get_or_create_owned(&labels);
            counter.inc_by(count.into());
        }
    }

    /// Counts what happened.
    fn add(&self, tally: &SceneTally) {
        if tally.is_nothing() {
            return;
        }
        let series = self.series();
        series.attempts[place(&Outcome::Success)].inc_by(tally.delivered);
        series.attempts[RETRYABLE].inc_by(tally.refused);
        series.deferred.inc_by(tally.deferred);
        series.tasks_read.inc_by(tally.read);
        for (counter, count) in series.tasks_ended.iter().zip(tally.tasks) {
            counter.inc_by(count);
        }
        if tally.callbacks.iter().any(|count| *count > 0) {
            let counters = series.callbacks_ended.get_or_init(|| {
                let labels = |end: Terminal| OutcomeLabels::new(&series.label, end.word());
                let family = &self.families.callbacks_ended;
                Terminal::ALL.map(|end| family.get_or_create_owned(&labels(end)))
            });
            for (counter, count) in counters.iter().zip(tally.callbacks) {
                counter.inc_by(count);
            }
        }
    }
}

impl Drop for SceneMetrics {
    fn drop(&mut self) {
        let families = &self.families;
        let mut live = lock(&families.live);
        // Another worker may have brought the scene back meanwhile; then the series are its.
        if live
            .get(&self.name)
            .is_none_or(|other| other.strong_count() > 0)
        {
            return;
        }
        live.remove(&self.name);
        families.remove(&self.name);
    }
}

// === impl SceneTally ===

impl SceneTally {
    /// Whether nothing happened.
    fn is_nothing(&self) -> bool {
        let Self {
            read,
            tasks,
            callbacks,
            delivered,
            refused,
            deferred,
        } = self;
        let ends = tasks.iter().chain(callbacks);
        let others = [read, delivered, refused, deferred].into_iter();
        others.chain(ends).all(|count| *count == 0)
    }
}

/// The place of an outcome among [`OUTCOMES`].
const fn place(outcome: &Outcome) -> usize {
    match outcome {
        Outcome::Success => 0,
        Outcome::Retryable(_) => 1,
        Outcome::Permanent(_) | Outcome::Refused(_) => 2,
        Outcome::Throttled { .. } => 3,
        Outcome::Timeout(_) => 4,
    }
}

/// The place of [`Outcome::Retryable`].
const RETRYABLE: usize = 1;

/// The scene of a transition.
fn scene(entry: &Entry) -> Option<&str> {
    match entry {
        Entry::Event(event) => Some(&event.scene),
        Entry::Park { .. }
        | Entry::Deliver { .. }
        | Entry::DeadLetter { .. }
        | Entry::Poison { .. }
        | Entry::Callback(_)
        | Entry::DeliverCallback(_)
        | Entry::Order(_)
        | Entry::Alert(_) => None,
    }
}

// === impl SceneSet ===

impl SceneSet {
    /// The counters of these scenes.
    fn new(families: &Arc<SceneFamilies>, scenes: &Scenes) -> Self {
        let unknown: Arc<str> = UNKNOWN.into();
        // The first ones are for what has no scene: the rules it follows, or nothing.
        let default = scenes.get(scene::DEFAULT).map(|scene| &scene.name);
        let names = iter::once(default.unwrap_or(&unknown))
            .chain(scenes.iter().map(|scene| &scene.name))
            .map(Arc::clone);
        let mut set = Self {
            places: HashMap::new(),
            scenes: Vec::new(),
        };
        for (place, name) in names.enumerate() {
            set.scenes.push(families.of(&name));
            set.places.insert(name, place);
        }
        set
    }

    /// The counters for a task of this scene.
    pub fn of(&self, scene: &str) -> &Arc<SceneMetrics> {
        &self.scenes[self.place(scene)]
    }

    /// The place of a scene.
    fn place(&self, scene: &str) -> usize {
        self.places.get(scene).copied().unwrap_or_default()
    }
}

// === impl Tally ===

impl Tally {
    /// Nothing, yet.
    pub(crate) fn new(metrics: &Metrics, set: &Arc<SceneSet>) -> Self {
        Self {
            set: Arc::clone(set),
            scenes: vec![SceneTally::default(); set.scenes.len()],
            parked: vec![0; metrics.parked.len()],
            dead_letters: [0; Reason::ALL.len()],
            undelivered: BTreeMap::new(),
            records: 0,
        }
    }

    /// Notes the consequence of an offset that is handed over `now`, as so many records.
    pub(crate) fn count(&mut self, settlement: &Settlement, records: usize, now: Timestamp) {
        self.records += records as u64;
        for entry in &settlement.entries {
            if let Entry::Deliver { task, wait, .. } = entry {
                let start = now.since(task.due).saturating_sub(wait.total());
                let place = self.set.place(&task.scene);
                self.set.scenes[place].started(*wait, start);
            }
        }
        let is_read = settlement.lane.source == Source::Tasks;
        if let Some(scene) = settlement
            .entries
            .iter()
            .find_map(scene)
            .filter(|_| is_read)
        {
            self.scenes[self.set.place(scene)].read += 1;
        }
        self.add(&settlement.entries, |count| *count += 1);
    }

    /// Notes that a topic has refused the first form of what was counted, and that the other one was written; each as so many records.
    pub(crate) fn refuse(
        &mut self,
        (first, before): (&[Entry], usize),
        (other, records): (&[Entry], usize),
    ) {
        self.records = (self.records + records as u64).saturating_sub(before as u64);
        self.add(first, |count| *count = count.saturating_sub(1));
        self.add(other, |count| *count += 1);
        for entry in first {
            if let Entry::Deliver { task, .. } = entry {
                self.scenes[self.set.place(&task.scene)].refused += 1;
            }
        }
    }

    /// Counts these entries, up or down.
    fn add(&mut self, entries: &[Entry], count: fn(&mut u64)) {
        for entry in entries {
            match entry {
                Entry::Park { tier, .. } => count(&mut self.parked[*tier]),
                Entry::DeliverCallback(_) => count(&mut self.parked[0]),
                Entry::Deliver { task, .. } => {
                    count(&mut self.scenes[self.set.place(&task.scene)].delivered);
                }
                Entry::DeadLetter { ended, .. } | Entry::Poison { ended, .. } => {
                    if let Some(reason) = ended.reason {
                        count(&mut self.dead_letters[reason as usize]);
                    }
                    let key = (self.set.place(&ended.scene), ended.terminal, ended.reason);
                    let (times, last) = (0, Arc::clone(ended));
                    let (times, last) = self.undelivered.entry(key).or_insert((times, last));
                    count(times);
                    *last = Arc::clone(ended);
                }
                Entry::Callback(_) | Entry::Order(_) | Entry::Alert(_) => {}
                Entry::Event(event) => {
                    let scene = &mut self.scenes[self.set.place(&event.scene)];
                    match (&event.transition, event.kind) {
                        (Transition::Ended { terminal, .. }, Kind::Work) => {
                            count(&mut scene.tasks[*terminal as usize]);
                        }
                        (Transition::Ended { terminal, .. }, Kind::Callback) => {
                            count(&mut scene.callbacks[*terminal as usize]);
                        }
                        (Transition::Deferred { .. }, _) => count(&mut scene.deferred),
                        (
                            Transition::Parked { .. }
                            | Transition::Hopped { .. }
                            | Transition::Failed { .. },
                            _,
                        ) => {}
                    }
                }
            }
        }
    }

    /// Notes records beside those of offsets.
    pub(crate) fn count_records(&mut self, records: usize) {
        self.records += records as u64;
    }

    /// Counts it all: it is durable.
    pub(crate) fn add_to(&self, metrics: &Metrics) {
        metrics.ledger_records.inc_by(self.records);
        for (counter, count) in metrics.parked.iter().zip(&self.parked) {
            counter.inc_by(*count);
        }
        for (counter, count) in metrics.dead_letters.iter().zip(self.dead_letters) {
            counter.inc_by(count);
        }
        for (scene, tally) in self.set.scenes.iter().zip(&self.scenes) {
            scene.add(tally);
        }
        for (&(place, terminal, reason), (times, last)) in &self.undelivered {
            let failing = &self.set.scenes[place].failing;
            failing.ends((terminal, reason), *times, last.failure.as_ref());
        }
    }
}

// === impl Share ===

impl Share {
    /// The part of a worker that holds nothing.
    pub(crate) fn new(metrics: Arc<Metrics>) -> Self {
        let load = Load::default();
        let number = metrics.shares.fetch_add(1, Ordering::Relaxed);
        Self {
            metrics,
            number,
            load,
        }
    }

    /// The worker says what is late.
    pub(crate) fn say(&self, said: Said) {
        self.metrics.standing.say(self.number, said);
    }

    /// The worker holds this now.
    pub(crate) fn report(&mut self, load: Load) {
        let metrics = &self.metrics;
        for (gauge, now, before) in [
            (&metrics.open_records, load.open, self.load.open),
            (&metrics.held_bytes, load.held, self.load.held),
            (&metrics.calls_in_flight, load.calls, self.load.calls),
            (&metrics.owned_shards, load.shards, self.load.shards),
            (&metrics.ordered_keys, load.keys, self.load.keys),
        ] {
            gauge.inc_by(now as i64 - before as i64);
        }
        self.load = load;
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.report(Load::default());
        self.metrics.standing.forget(self.number);
    }
}

/// How many calls may be in flight at once, by scene or host.
struct LimitFamily {
    /// The number.
    limit: Family<LimitLabels, Gauge>,
    /// Whose series stand in the family: those of the scenes in force that have something to say.
    live: Mutex<HashMap<Of, Gauge>>,
    /// Who calls anything.
    calling: Mutex<HashSet<Of>>,
}

/// Which scene, or, as the target, which host.
type LimitLabels = [(&'static str, String); 1];

// === impl LimitFamily ===

impl LimitFamily {
    /// Registers the number.
    fn register(registry: &mut Registry) -> Self {
        let help = "Calls that this process may have in flight at once, of a scene or of all scenes that share the limit of their target";
        Self {
            limit: add(registry, ("concurrency_limit", help), Family::default()),
            live: Mutex::default(),
            calling: Mutex::default(),
        }
    }

    /// Only these scenes call anything from now on.
    fn keep(&self, scenes: &Scenes) {
        let all: HashSet<Of> = scenes.iter().filter_map(|scene| scene.calls_of()).collect();
        let mut live = lock(&self.live);
        live.retain(|of, _| {
            let stays = all.contains(of);
            if !stays {
                self.limit.remove(&limit_labels(of));
            }
            stays
        });
        *lock(&self.calling) = all;
    }

    /// It is this number, as long as no more than `most` are said.
    fn set(&self, of: &Of, calls: u32, most: usize) {
        let mut live = lock(&self.live);
        // A worker may still have what is not in force any more.
        if !live.contains_key(of) && live.len() < most && lock(&self.calling).contains(of) {
            let gauge = self.limit.get_or_create_owned(&limit_labels(of));
            live.insert(of.clone(), gauge);
        }
        if let Some(gauge) = live.get(of) {
            gauge.set(calls.into());
        }
    }
}

/// The labels of a limit.
fn limit_labels(of: &Of) -> LimitLabels {
    match of {
        Of::Scene(name) => [("scene", escape(name))],
        Of::Host(name) => [("target", escape(name))],
    }
}

/// What is counted by target.
struct BreakerFamilies {
    /// The state of its breaker.
    state: Family<TargetLabels, Gauge>,
    /// How often it has switched, and to what.
    switches: Family<SwitchLabels, Counter>,
    /// The targets that are told.
    live: Mutex<Live>,
    /// How many of them may have series of their own.
    most: usize,
}

/// The targets that are told.
#[derive(Default)]
struct Live {
    /// Those that have a breaker in the scenes in force, and of walls those that have been seen.
    watched: HashMap<Arc<str>, Watched>,
    /// What scenes in force see of their targets: a wall is told from the first one on.
    walls: HashSet<Arc<str>>,
}

/// A target whose breaker is told.
struct Watched {
    /// What stands for it in the label.
    label: Arc<str>,
    /// The state of its breaker.
    state: State,
}

/// Which target.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TargetLabels {
    /// Whom it calls, escaped.
    target: String,
}

/// Which target, and what its breaker did.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct SwitchLabels {
    /// Whom it calls, escaped.
    target: String,
    /// The word for the state it is in since.
    to: &'static str,
}

/// The states of a breaker, each with its value in the gauge.
const STATES: [State; 3] = [State::Closed, State::HalfOpen, State::Open];

// === impl BreakerFamilies ===

impl BreakerFamilies {
    /// Registers what is counted by target.
    fn register(registry: &mut Registry, most: usize) -> Self {
        let r = registry;
        let help = "State of the breaker of a target: 0 closed, 1 half-open, 2 open; the worst, where it has several";
        let state = add(r, ("breaker_state", help), Family::default());
        let help = "How often the breaker of a target has switched, by what to";
        let switches = add(r, ("breaker_transitions", help), Family::default());
        Self {
            state,
            switches,
            live: Mutex::default(),
            most,
        }
    }

    /// Only the targets of these scenes have breakers from now on.
    fn keep(&self, scenes: &Scenes) {
        let own = scenes.iter().filter_map(|scene| scene.breaker.as_ref());
        let callbacks = scenes.iter().filter_map(|scene| scene.callback.as_ref());
        let callbacks = callbacks.filter_map(|callback| callback.breaker.as_ref());
        let targets: HashSet<&Arc<str>> =
            own.chain(callbacks).map(|key| key.target.text()).collect();
        let walls = scenes.iter().map(|scene| &scene.walls);
        let walls = walls.flat_map(|walls| [&walls.work, &walls.callback]);
        let mut live = lock(&self.live);
        live.walls = walls
            .flatten()
            .map(|key| Arc::clone(key.target.text()))
            .collect();
        let Live { watched, walls } = &mut *live;
        watched.retain(|target, watched| {
            let stays = targets.contains(target) || walls.contains(target);
            if !stays && *watched.label == **target {
                self.state.remove(&TargetLabels::new(target));
                for state in STATES {
                    self.switches.remove(&SwitchLabels::new(target, state));
                }
            }
            stays
        });
        for target in targets {
            self.watch(watched, target);
        }
    }

    /// Tells of the breaker of a target from now on.
    fn watch(&self, all: &mut HashMap<Arc<str>, Watched>, target: &Arc<str>) {
        if all.contains_key(target) {
            return;
        }
        let label = if all.len() < self.most {
            Arc::clone(target)
        } else {
            OTHER.into()
        };
        for state in STATES {
            let labels = SwitchLabels::new(&label, state);
            drop(self.switches.get_or_create_owned(&labels));
        }
        drop(self.state.get_or_create_owned(&TargetLabels::new(&label)));
        let state = State::Closed;
        all.insert(Arc::clone(target), Watched { label, state });
    }

    /// A breaker has switched.
    fn switched(&self, target: &str, to: State) {
        let mut live = lock(&self.live);
        let Live { watched, walls } = &mut *live;
        if let Some(wall) = walls.get(target) {
            self.watch(watched, wall);
        }
        // A worker may still have what is not in force any more.
        if let Some(watched) = watched.get(target) {
            let labels = SwitchLabels::new(&watched.label, to);
            self.switches.get_or_create_owned(&labels).inc();
        }
    }

    /// A breaker is in this state; under one label, the worst one is told.
    fn set(&self, target: &Arc<str>, state: State) {
        let mut live = lock(&self.live);
        let Some(watched) = live.watched.get_mut(target) else {
            return;
        };
        if watched.state == state {
            return;
        }
        watched.state = state;
        let label = Arc::clone(&watched.label);
        let worst = live
            .watched
            .values()
            .filter(|watched| watched.label == label);
        let worst = worst.map(|watched| watched.state).max();
        let labels = TargetLabels::new(&label);
        let gauge = self.state.get_or_create_owned(&labels);
        gauge.set(match worst.unwrap_or(state) {
            State::Closed => 0,
            State::HalfOpen => 1,
            State::Open => 2,
        });
    }
}

// === impl TargetLabels ===

impl TargetLabels {
    /// The labels of a target.
    fn new(target: &str) -> Self {
        let target = escape(target);
        Self { target }
    }
}

// === impl SwitchLabels ===

impl SwitchLabels {
    /// The labels of what a target's breaker did.
    fn new(target: &str, to: State) -> Self {
        let (target, to) = (escape(target), to.word());
        Self { target, to }
    }
}

/// How a process is configured.
type ConfigurationLabels = Vec<(&'static str, String)>;

/// Locks what no panic leaves half-changed.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
