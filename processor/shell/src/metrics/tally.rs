//! The tally of a batch: what is counted once the batch is durable, so that counters and topics say the same.

use std::collections::BTreeMap;
use std::sync::Arc;

use retide_core::{Ended, Entry, Kind, Reason, Source, Terminal, Timestamp, Transition};

use crate::metrics::Metrics;
use crate::metrics::scenes::SceneSet;
use crate::worker::ledger::Settled;

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
    /// Tasks that commands have met: those with which it was done, and those for which it was too late.
    commanded: [u64; 2],
    /// Tasks that campaigns have replayed.
    replayed: u64,
    /// Records written.
    records: u64,
}

/// The place of a scene, and how and why tasks of it ended.
type Why = (usize, Terminal, Option<Reason>);

/// What happened in one scene.
#[derive(Clone, Default)]
pub(super) struct SceneTally {
    /// Tasks read from the retry topic.
    pub(super) read: u64,
    /// Ends of tasks.
    pub(super) tasks: [u64; Terminal::ALL.len()],
    /// Ends of callbacks.
    pub(super) callbacks: [u64; Terminal::ALL.len()],
    /// Attempts the ledger made itself.
    pub(super) delivered: u64,
    /// Attempts the ledger made itself, and whose records were refused.
    pub(super) refused: u64,
    /// Tasks that found no place before their gate.
    pub(super) deferred: u64,
    /// Records that were one too many.
    pub(super) duplicates: u64,
    /// Attempts whose targets answer later.
    pub(super) pending: u64,
}

// === impl SceneTally ===

impl SceneTally {
    /// Whether nothing happened.
    pub(super) fn is_nothing(&self) -> bool {
        let Self {
            read,
            tasks,
            callbacks,
            delivered,
            refused,
            deferred,
            duplicates,
            pending,
        } = self;
        let ends = tasks.iter().chain(callbacks);
        let others = [read, delivered, refused, deferred, duplicates, pending].into_iter();
        others.chain(ends).all(|count| *count == 0)
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
            commanded: [0; 2],
            replayed: 0,
            records: 0,
        }
    }

    /// Notes the consequence of an offset that is handed over `now`, as so many records.
    pub(crate) fn count(&mut self, settled: &Settled, records: usize, now: Timestamp) {
        let entries = settled.records.entries();
        self.records += records as u64;
        for applied in &settled.applied {
            self.commanded[applied.effect as usize] += 1;
        }
        for entry in entries {
            if let Entry::Deliver { task, wait, .. } = entry {
                let start = now.since(task.due).saturating_sub(wait.total());
                let place = self.set.place(&task.scene);
                self.set.scenes[place].started(*wait, start);
            }
        }
        let lane = settled.offset.map(|(lane, _)| lane);
        let is_read = lane.is_some_and(|lane| lane.source == Source::Tasks);
        if let Some(event) = entries.iter().find_map(Entry::event)
            && is_read
        {
            self.scenes[self.set.place(&event.scene)].read += 1;
        }
        self.add(entries, |count| *count += 1);
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
            if let Some((_, task)) = entry.delivered() {
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
                Entry::Callback(_) | Entry::State(_) | Entry::Alert(_) | Entry::Control { .. } => {}
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
                        (Transition::Duplicate { .. }, _) => count(&mut scene.duplicates),
                        (Transition::Pending { .. }, _) => count(&mut scene.pending),
                        (Transition::Replayed { .. }, _) => count(&mut self.replayed),
                        (
                            Transition::Parked { .. }
                            | Transition::Hopped { .. }
                            | Transition::Rescheduled { .. }
                            | Transition::TooLate { .. }
                            | Transition::Failed { .. }
                            | Transition::Held { .. },
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
        metrics.commands.tasks(self.commanded);
        metrics.commands.replayed(self.replayed);
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
