//! Batches: what was settled, and the offsets it was settled for, are handed to the ledger.
//!
//! Not how they are written. Invariant: an offset is handed over together with everything settled before it.

use std::collections::BTreeSet;
use std::mem;
use std::sync::Arc;
use std::time::{Duration, Instant};

use retide_core::completions::Binding;
use retide_core::{Commit, Entry};

use crate::metrics::tally::Tally;
use crate::worker::drive::State;
use crate::worker::encode::Shards;
use crate::worker::ledger::{Batch, Content, Ledger, Progress, Settled};

/// A batch that the ledger has.
pub(super) struct UnderWay {
    /// Its offsets.
    pub(super) commits: Vec<Commit>,
    /// How many consequences stand in it.
    pub(super) tasks: usize,
    /// What to count once it is durable.
    pub(super) tally: Tally,
}

/// Most batches under way: one commits while the other fills.
const UNDER_WAY: usize = 2;

/// Time between two commits of offsets that have not changed. Brokers forget those of topics that nobody subscribes to, a week after the last
/// commit as they come, and sooner where an operator says so.
pub(super) const REFRESH: Duration = Duration::from_hours(1);

/// Time between two commits of offsets that have only moved behind markers of transactions: such a commit is a transaction of its own.
const PASS: Duration = Duration::from_secs(3);

// === impl State ===

impl<L: Ledger> State<L> {
    /// Hands over what was collected, if it is time and the ledger has room.
    pub(super) fn commit_if_due(&mut self) {
        let now = Instant::now();
        if now >= self.refresh_at {
            self.refresh_at = now + REFRESH;
            self.touch(|_| true);
        }
        // Where something is settled, it goes with that.
        if now >= self.pass_at && self.settled.is_empty() && self.parts.engine.has_passed() {
            self.pass_at = now + PASS;
            self.touched = true;
        }
        if self.has_to_commit()
            && self.may_hand_over()
            && (self.parts.engine.is_full() || now >= self.commit_at)
        {
            self.commit();
        }
    }

    /// Whether there is anything to hand over.
    pub(super) fn has_to_commit(&self) -> bool {
        self.touched || !self.settled.is_empty() || self.parts.engine.has_unsaved()
    }

    /// Whether a batch may be handed over.
    pub(super) fn may_hand_over(&self) -> bool {
        self.under_way.len() < UNDER_WAY && self.returning == 0
    }

    /// Hands over what was collected.
    pub(super) fn commit(&mut self) {
        let mut batch = Batch {
            returns: self.returns,
            ..Batch::default()
        };
        batch.settled.reserve(self.settled.len());
        let mut tally = Tally::new(&self.parts.metrics, &self.counters);
        let now = self.now().wall;
        let keeps_order = self.parts.ledger.keeps_order();
        for mut settlement in self.settled.drain(..) {
            if !keeps_order {
                let is_kept = |entry: &Entry| !entry.is_state();
                settlement.entries.retain(is_kept);
                settlement.otherwise.retain(is_kept);
            }
            let records = self.parts.encoder.records(&settlement.entries);
            tally.count(&settlement, records, now);
            batch.settled.push(Settled {
                shards: Shards {
                    own: settlement.lane.shard,
                    home: settlement.home,
                },
                offset: Some((settlement.lane, settlement.offset)),
                records: Content::Entries(settlement.entries),
                otherwise: Content::Entries(settlement.otherwise),
                applied: settlement.applied,
                refused: false,
            });
        }
        for (shard, alert) in self.parts.engine.alerts() {
            tally.count_records(1);
            batch.settled.push(Settled {
                shards: Shards::at(shard),
                offset: None,
                records: Content::Entries(vec![Entry::Alert(alert)]),
                otherwise: Content::none(),
                applied: Vec::new(),
                refused: false,
            });
        }
        // Where offsets cannot be committed beside their consequences, others of their shard stand for them: it is theirs to commit.
        let mut blind = BTreeSet::new();
        if !self.unreadable.is_empty() {
            let settled = batch.settled.iter();
            let lanes = settled.filter_map(|settled| settled.offset.map(|(lane, _)| lane));
            blind.extend(lanes.filter(|lane| self.unreadable.has(lane.source)));
        }
        for lane in &blind {
            self.parts.engine.touch(lane.shard);
        }
        batch.has_more = !blind.is_empty();
        let commits = self.parts.engine.commits();
        for (shard, state) in self.changes() {
            tally.count_records(1);
            batch.settled.push(Settled {
                shards: Shards::at(shard),
                offset: None,
                records: Content::Entries(vec![Entry::State(state)]),
                otherwise: Content::none(),
                applied: Vec::new(),
                refused: false,
            });
        }
        for commit in &commits {
            if self.unreadable.has(commit.lane.source) || self.unbound.contains(&commit.lane) {
                continue;
            }
            batch.progress.push(Progress {
                topic: Arc::clone(self.parts.topics.name(commit.lane.source)),
                shard: commit.lane.shard,
                next: commit.watermark,
                metadata: commit.metadata(self.binding(commit)),
            });
        }
        self.touched = false;
        self.submitted += 1;
        self.under_way.push_back(UnderWay {
            commits,
            tasks: batch.settled.len(),
            tally,
        });
        self.parts.ledger.submit(batch);
    }

    /// What is to be written of the order of tasks besides what settlements hold.
    fn changes(&mut self) -> Vec<(i32, retide_core::State)> {
        let changes = self.parts.engine.changes();
        if self.parts.ledger.keeps_order() {
            return changes;
        }
        mem::take(&mut self.outdated)
    }

    /// What the metadata of a commit is bound to.
    fn binding(&self, commit: &Commit) -> Binding {
        let binding = self.bindings.get(&commit.lane);
        *binding.unwrap_or_else(|| unreachable!("a commit of a lane that is not assigned"))
    }

    /// Commits the offsets of the shards of these assignments soon, changed or not.
    pub(super) fn touch(&mut self, of: impl Fn(u64) -> bool) {
        for (shard, assignment) in &self.shards {
            if of(*assignment) {
                self.parts.engine.touch(*shard);
            }
        }
        self.touched = true;
    }
}
