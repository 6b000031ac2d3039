//! The share of a worker in the gauges of its process, which goes with it.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::metrics::Metrics;
use crate::metrics::standing::Said;

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
    /// Steps of commands under way.
    pub(crate) steps: usize,
    /// Campaigns that are led and not over.
    pub(crate) campaigns: usize,
    /// Due tasks that are on hold.
    pub(crate) on_hold: usize,
    /// Bytes of what is known of where ids are.
    pub(crate) ids: usize,
    /// Ids that are under way or have ended of late, where scenes look for duplicates.
    pub(crate) known: usize,
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
            (&metrics.commands.steps, load.steps, self.load.steps),
            (
                &metrics.commands.campaigns,
                load.campaigns,
                self.load.campaigns,
            ),
            (&metrics.holds.tasks, load.on_hold, self.load.on_hold),
            (&metrics.commands.id_bytes, load.ids, self.load.ids),
            (&metrics.commands.ids.known, load.known, self.load.known),
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
