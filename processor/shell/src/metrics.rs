//! The numbers of a process, as Prometheus reads them.
//!
//! Not what happened: that is told by `crate::event`, whose `emit` counts here. What belongs to a batch (ends, hops, dead letters,
//! records) is counted once the batch is durable, so that counters and topics say the same; attempts are counted when they are
//! answered, since the target saw them whatever becomes of the batch. A record that a target topic refuses counts as what follows from that.
//!
//! Invariant: no label holds a task's id, and the scenes named are those in force; everything else is counted for `unknown`.

mod breakers;
mod commands;
mod cooldowns;
pub mod exposition;
mod limits;
mod process;
pub mod scenes;
pub(crate) mod share;
mod sources;
pub(crate) mod standing;
pub(crate) mod tally;

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use prometheus_client::encoding::text;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Metric, Registry};

use retide_config::SCENE_SERIES;
use retide_core::breaker::State;
use retide_core::cooldown::Teller;
use retide_core::scene::Of;
use retide_core::{Ladder, Reason, Scenes};

use self::breakers::BreakerFamilies;
use self::commands::{CommandMetrics, HoldMetrics};
use self::cooldowns::CooldownFamilies;
use self::limits::LimitFamily;
use self::scenes::{SceneFamilies, SceneSet};
use self::sources::SourceMetrics;
use crate::metrics::exposition::Exposition;
use crate::metrics::process::Process;
use crate::metrics::standing::Standing;
use crate::trouble::Troubles;

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
    /// What people hold.
    pub(crate) holds: HoldMetrics,
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
    /// What becomes of commands.
    pub(crate) commands: CommandMetrics,
    /// What sources copy.
    pub(crate) sources: SourceMetrics,
    /// Connectors that panicked.
    pub(crate) target_panics: Counter,
    /// How many calls may be in flight at once.
    limits: LimitFamily,
    /// The breakers.
    breakers: BreakerFamilies,
    /// The cooldowns of targets.
    cooldowns: CooldownFamilies,
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

/// The scene, and the target, that everything counts for beyond [`SCENE_SERIES`].
const OTHER: &str = "other";

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
        let help = "How long batches took, from hand-over to durable";
        let ledger_commit = add(r, ("ledger_commit_seconds", help), Histogram::new(LENGTH));
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
            holds: HoldMetrics::register(r),
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
            commands: CommandMetrics::register(r),
            sources: SourceMetrics::register(r),
            target_panics: counter(r, "target_panics", "Connectors that panicked in a call"),
            limits: LimitFamily::register(r),
            breakers: BreakerFamilies::register(r, most),
            cooldowns: CooldownFamilies::register(r, most),
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
        self.cooldowns.keep(scenes);
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

    /// A target wants rest, as it or another process says.
    pub(crate) fn cooldown_began(&self, target: &str, teller: Teller) {
        self.cooldowns.began(target, teller);
    }

    /// So long these targets will be left alone, and no others.
    pub(crate) fn cooldowns_are(&self, cooling: &HashMap<Arc<str>, Duration>) {
        self.cooldowns.are(cooling);
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

/// The text of a label's value, which the encoder writes as it is.
pub(crate) fn escape(text: &str) -> String {
    text.replace('\\', r"\\")
        .replace('"', "\\\"")
        .replace('\n', r"\n")
}

/// How a process is configured.
type ConfigurationLabels = Vec<(&'static str, String)>;

/// Locks what no panic leaves half-changed.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
