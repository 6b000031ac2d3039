//! What becomes of commands, in numbers.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::{counter, gauge, words};

/// The words for what commands do.
const VERBS: [&str; 8] = [
    "cancel",
    "run-now",
    "reschedule",
    "complete",
    "replay",
    "pause-campaign",
    "resume-campaign",
    "abort-campaign",
];

/// The counters of commands.
pub(crate) struct CommandMetrics {
    /// Requests that were read, by [`VERBS`].
    requests: Vec<Counter>,
    /// Records of the commands topic that were refused.
    refused: Counter,
    /// Commands that have ended.
    ended: Counter,
    /// Tasks with which it was done, and those for which it was too late.
    tasks: Vec<Counter>,
    /// Tasks that campaigns have replayed.
    replayed: Counter,
    /// Campaigns that are led and not over.
    pub(super) campaigns: Gauge,
    /// Steps under way.
    pub(super) steps: Gauge,
    /// Bytes of what is known of where ids are.
    pub(super) id_bytes: Gauge,
    /// Records that were read to find tasks.
    looked: Counter,
    /// What is known of ids.
    pub(crate) ids: IdMetrics,
}

/// What people hold.
pub(crate) struct HoldMetrics {
    /// Holds in force.
    pub(crate) in_force: Gauge,
    /// Targets whose breakers people force.
    pub(crate) forced: Gauge,
    /// Due tasks that are on hold.
    pub(super) tasks: Gauge,
}

/// What is known of ids, where scenes look for duplicates.
pub(crate) struct IdMetrics {
    /// Ids that are known.
    pub(super) known: Gauge,
    /// Tasks whose ids are not, for want of room.
    pub(crate) unknown: Counter,
}

// === impl IdMetrics ===

impl IdMetrics {
    /// Registers them.
    pub(super) fn register(r: &mut Registry) -> Self {
        let help = "Ids of tasks that are under way or have ended of late, of scenes that look for duplicates";
        let known = gauge(r, "known_ids", help);
        let help =
            "Tasks whose duplicates are not found, since their shard has no room for their ids";
        let unknown = counter(r, "unknown_ids", help);
        Self { known, unknown }
    }
}

// === impl HoldMetrics ===

impl HoldMetrics {
    /// Registers them.
    pub(super) fn register(r: &mut Registry) -> Self {
        let help = "Due tasks on hold, as far as they were looked at of late";
        Self {
            in_force: gauge(r, "holds", "Holds in force"),
            forced: gauge(
                r,
                "forced_breakers",
                "Targets whose breakers people keep open or closed",
            ),
            tasks: gauge(r, "held_tasks", help),
        }
    }
}

// === impl CommandMetrics ===

impl CommandMetrics {
    /// Registers them.
    pub(super) fn register(r: &mut Registry) -> Self {
        let help = "Commands read";
        let requests = words(r, ("commands", help), "verb", VERBS.into_iter());
        let help = "Tasks that commands have met, by what was done";
        let results = ["done", "too-late"];
        Self {
            ids: IdMetrics::register(r),
            requests,
            refused: counter(r, "commands_refused", "Commands refused"),
            ended: counter(r, "commands_ended", "Commands that have ended"),
            tasks: words(r, ("commanded_tasks", help), "result", results.into_iter()),
            replayed: counter(r, "replayed_tasks", "Tasks that campaigns have replayed"),
            campaigns: gauge(
                r,
                "campaigns",
                "Campaigns that this process leads and that are not over",
            ),
            steps: gauge(
                r,
                "command_steps",
                "Steps of commands under way, by shard one each",
            ),
            id_bytes: gauge(
                r,
                "command_id_bytes",
                "Bytes that hold which ids may be where in tiers",
            ),
            looked: counter(
                r,
                "command_looked_records",
                "Records of tiers that were read to find the tasks of commands",
            ),
        }
    }

    /// A request was read.
    pub(crate) fn request(&self, verb: &str) {
        let place = VERBS.iter().position(|known| *known == verb);
        if let Some(counter) = place.and_then(|place| self.requests.get(place)) {
            counter.inc();
        }
    }

    /// A record was refused.
    pub(crate) fn refused(&self) {
        self.refused.inc();
    }

    /// Records were read to find tasks.
    pub(crate) fn looked(&self, records: u64) {
        self.looked.inc_by(records);
    }

    /// A command has ended.
    pub(crate) fn ended(&self) {
        self.ended.inc();
    }

    /// So many replays are durable.
    pub(crate) fn replayed(&self, tasks: u64) {
        self.replayed.inc_by(tasks);
    }

    /// What was done with tasks is durable.
    pub(crate) fn tasks(&self, [done, too_late]: [u64; 2]) {
        for (counter, count) in self.tasks.iter().zip([done, too_late]) {
            counter.inc_by(count);
        }
    }
}
