//! The series of scenes: those in force have their own, as long as there is room, and everything else is counted together.
//!
//! Invariant: a worker looks the counters of its scenes up when the rules change, never per record.

use std::collections::{HashMap, HashSet};
use std::iter;
use std::sync::{Arc, Mutex, OnceLock, Weak};
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use retide_connectors::left_out::{self, LeftOut};
use retide_core::{Outcome, Scenes, Terminal, Wait, scene};

use crate::failing::Failing;
use crate::metrics::tally::SceneTally;
use crate::metrics::{LENGTH, OTHER, add, escape, lock};

/// The counters of one scene, shared by the workers in which it is in force; its series go when it is in force nowhere.
pub struct SceneMetrics {
    /// Where the series stand.
    families: Arc<SceneFamilies>,
    /// The scene.
    name: Arc<str>,
    /// Its series, once it has something to say: its own, or those of all that found no room.
    series: OnceLock<Arc<Series>>,
    /// What goes wrong, as lines of the log.
    pub(super) failing: Failing,
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
    /// Records that were one too many.
    duplicates: OnceLock<Counter>,
    /// Attempts whose targets answer later, and those of them whose limit has passed, once there is one.
    pending: OnceLock<[Counter; 2]>,
}

/// The counters of the scenes in force, as one worker sees them between two changes of the rules.
pub struct SceneSet {
    /// The place of each scene.
    places: HashMap<Arc<str>, usize>,
    /// The counters; the first ones are those of scenes that do not exist.
    pub(super) scenes: Vec<Arc<SceneMetrics>>,
}

/// What is counted by scene.
pub(super) struct SceneFamilies {
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
    /// Records that were one too many.
    duplicates: Family<SceneLabels, Counter>,
    /// Attempts whose targets answer later, and those of them whose limit has passed.
    pending: [Family<SceneLabels, Counter>; 2],
    /// The scenes in force.
    pub(super) live: Mutex<HashMap<Arc<str>, Weak<SceneMetrics>>>,
    /// How many scenes may have series of their own.
    pub(super) most: usize,
    /// The labels of those that have.
    pub(super) named: Mutex<HashSet<Arc<str>>>,
    /// The series of all the others.
    others: OnceLock<Arc<Series>>,
}

/// A histogram by scene.
type Histograms = Family<SceneLabels, Histogram, fn() -> Histogram>;

/// Which scene.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct SceneLabels {
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

/// The words of [`Outcome`], in the order of [`place`].
pub(super) const OUTCOMES: [&str; 6] = [
    "success",
    "retryable",
    "permanent",
    "throttled",
    "timeout",
    "pending",
];

/// What makes attempts late, in the words of [`Wait::by_cause`], and the late begin of their call or batch.
pub const CAUSES: [&str; 10] = [
    "rebalance",
    "read",
    "agenda",
    "order",
    "rate",
    "concurrency",
    "breaker",
    "room",
    "cooldown",
    "start",
];

/// Bounds of lateness, in seconds: fine around the milliseconds a task is late as a rule, up to the day it is late after an outage.
const LATENESS: [f64; 22] = [
    0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.02, 0.03, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0,
    30.0, 60.0, 300.0, 900.0, 3600.0, 21600.0, 86400.0,
];

// === impl SceneFamilies ===

impl SceneFamilies {
    /// Registers what is counted by scene.
    pub(super) fn register(registry: &mut Registry, most: usize) -> Self {
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
        let help = "Records of the retry topic that were dropped, since another task had their id, or tasks whose place one has taken";
        let duplicates = add(r, ("duplicates", help), Family::default());
        let pending = [
            (
                "pending",
                "Attempts that are pending since their targets answer later, each once that is durable",
            ),
            (
                "pending_timeouts",
                "Pending attempts whose limit has passed",
            ),
        ];
        let pending = pending.map(|about| add(r, about, Family::default()));
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
            duplicates,
            pending,
            live: Mutex::default(),
            most,
            named: Mutex::default(),
            others: OnceLock::new(),
        }
    }

    /// The labels of scenes that have series.
    pub(super) fn named(&self) -> Vec<Arc<str>> {
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
            duplicates: OnceLock::new(),
            pending: OnceLock::new(),
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
        self.duplicates.remove(&scene);
        for pending in &self.pending {
            pending.remove(&scene);
        }
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
    pub(super) fn new(scene: &str) -> Self {
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

    /// The limit of a pending attempt has passed.
    pub(crate) fn limit_passed(&self, outcome: &Outcome) {
        self.pending(1).inc();
        if let Some(failure) = outcome.failure() {
            self.failing.attempt(failure);
        }
    }

    /// The counter of pending attempts, or of those whose limit has passed.
    fn pending(&self, which: usize) -> &Counter {
        let series = self.series();
        let counters = series.pending.get_or_init(|| {
            let labels = SceneLabels::new(&series.label);
            let families = &self.families.pending;
            [0, 1].map(|which: usize| families[which].get_or_create_owned(&labels))
        });
        &counters[which]
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
    pub(super) fn add(&self, tally: &SceneTally) {
        if tally.is_nothing() {
            return;
        }
        let series = self.series();
        series.attempts[place(&Outcome::Success)].inc_by(tally.delivered);
        series.attempts[RETRYABLE].inc_by(tally.refused);
        series.deferred.inc_by(tally.deferred);
        if tally.duplicates > 0 {
            let counter = series.duplicates.get_or_init(|| {
                let scene = SceneLabels::new(&series.label);
                self.families.duplicates.get_or_create_owned(&scene)
            });
            counter.inc_by(tally.duplicates);
        }
        series.tasks_read.inc_by(tally.read);
        if tally.pending > 0 {
            self.pending(0).inc_by(tally.pending);
        }
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

/// The place of an outcome among [`OUTCOMES`].
pub(super) const fn place(outcome: &Outcome) -> usize {
    match outcome {
        Outcome::Success => 0,
        Outcome::Retryable(_) => 1,
        Outcome::Permanent(_) | Outcome::Refused(_) => 2,
        Outcome::Throttled { .. } => 3,
        Outcome::Timeout(_) => 4,
        Outcome::Pending { .. } => 5,
    }
}

/// The place of [`Outcome::Retryable`].
const RETRYABLE: usize = 1;

// === impl SceneSet ===

impl SceneSet {
    /// The counters of these scenes.
    pub(super) fn new(families: &Arc<SceneFamilies>, scenes: &Scenes) -> Self {
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
    pub(super) fn place(&self, scene: &str) -> usize {
        self.places.get(scene).copied().unwrap_or_default()
    }
}
