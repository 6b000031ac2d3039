//! Batches: what was settled, and the offsets it was settled for, are handed to the ledger.
//!
//! Not how they are written. Invariant: an offset is handed over together with everything settled before it.

use std::collections::BTreeSet;
use std::mem;
use std::sync::Arc;
use std::time::{Duration, Instant};

use retide_core::completions::Binding;
use retide_core::control::Control;
use retide_core::{Commit, Entry, LaneId, Settlement, Source, State as Kept};

use crate::metrics::tally::Tally;
use crate::worker::drive::State;
use crate::worker::ledger::{Batch, Ledger, Progress, Settled};

/// Whether a batch is to be handed over early, for what commands do with a few tasks: somebody waits for that.
#[derive(Debug)]
pub(super) struct Hurry {
    /// Whether something stands in the batch that tasks wait for.
    is_on: bool,
    /// Whether something stands in it that only says what was done.
    is_answering: bool,
    /// Tasks that commands were applied to in a row.
    tasks: usize,
    /// When the last one was.
    last: Instant,
    /// Until when the ledger is spoken for: early batches take half of its time at most, also where a broker is slow.
    spoken_for: Instant,
}

/// A batch that the ledger has.
pub(super) struct UnderWay {
    /// Its offsets.
    pub(super) commits: Vec<Commit>,
    /// How many consequences stand in it.
    pub(super) tasks: usize,
    /// What to count once it is durable.
    pub(super) tally: Tally,
    /// Whether it was handed over early.
    pub(super) is_early: bool,
}

/// Most batches under way: one commits while the other fills.
const UNDER_WAY: usize = 2;

/// Time between two commits of offsets that have not changed. Brokers forget those of topics that nobody subscribes to, a week after the last
/// commit as they come, and sooner where an operator says so.
pub(super) const REFRESH: Duration = Duration::from_hours(1);

/// Time between two commits of offsets that have only moved behind markers of transactions: such a commit is a transaction of its own.
const PASS: Duration = Duration::from_secs(3);

/// Shortest time between two batches that are handed over early.
const TOGETHER: Duration = Duration::from_millis(10);

/// How far ahead the ledger may be spoken for: a command or two that come alone wait for no pause.
const AHEAD: Duration = Duration::from_secs(1);

/// Tasks of a row that commits are hurried for. What a command does with many is waited for in seconds, and small batches would make it slow.
const FEW: usize = 2_000;

/// How long nothing is applied between two rows.
const ROW: Duration = Duration::from_secs(1);

// === impl Hurry ===

impl Hurry {
    /// Nobody waits.
    pub(super) fn new(now: Instant) -> Self {
        Self {
            is_on: false,
            is_answering: false,
            tasks: 0,
            last: now,
            spoken_for: now,
        }
    }

    /// An early batch was committed, and as much time is left to others: the generic cell rate algorithm, of time.
    pub(super) fn committed(&mut self, now: Instant, took: Duration) {
        self.spoken_for = self.spoken_for.max(now) + took * 2;
    }

    /// When the next early batch may be handed over, after one at `last`.
    fn next(&self, last: Instant) -> Instant {
        let soonest = last + TOGETHER;
        let paid = self.spoken_for.checked_sub(AHEAD);
        paid.map_or(soonest, |paid| paid.max(soonest))
    }

    /// The same of one that only says what was done: nothing is borrowed for it.
    fn next_to_answer(&self, last: Instant) -> Instant {
        self.spoken_for.max(last + TOGETHER)
    }

    /// A settlement goes into the batch.
    pub(super) fn note(&mut self, settlement: &Settlement) {
        if settlement.applied.is_empty() {
            if settlement.lane.source == Source::Commands {
                for entry in &settlement.entries {
                    let Entry::Control { control, .. } = entry else {
                        continue;
                    };
                    match &**control {
                        Control::Step(step) => self.is_on |= step.looked.is_none(),
                        Control::Answer(_) | Control::Ended(_) => self.is_answering = true,
                        Control::Request(_)
                        | Control::Ask(_)
                        | Control::Campaign(_)
                        | Control::Report(_) => {}
                    }
                }
            }
            return;
        }
        let now = Instant::now();
        if now.saturating_duration_since(self.last) >= ROW {
            self.tasks = 0;
        }
        self.last = now;
        self.tasks += 1;
        self.is_on |= self.tasks <= FEW;
    }

    /// The batch is handed over.
    const fn handed_over(&mut self) {
        self.is_on = false;
        self.is_answering = false;
    }
}

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
            && (self.parts.engine.is_full() || now >= self.due_at())
        {
            self.commit();
        }
    }

    /// When what was collected may be handed over early, if somebody waits for it.
    fn early_at(&self) -> Option<Instant> {
        let (engine, hurry) = (&self.parts.engine, &self.hurry);
        if hurry.is_on || engine.wants_fence_to_look() {
            Some(hurry.next(self.handed_at))
        } else if hurry.is_answering || engine.wants_fence() {
            Some(hurry.next_to_answer(self.handed_at))
        } else {
            None
        }
    }

    /// When what was collected is to be handed over: soon, where somebody waits for it.
    pub(super) fn due_at(&self) -> Instant {
        let early = self.early_at();
        early.map_or(self.commit_at, |early| early.min(self.commit_at))
    }

    /// Whether there is anything to hand over.
    pub(super) fn has_to_commit(&self) -> bool {
        self.touched
            || !self.settled.is_empty()
            || self.parts.engine.has_unsaved()
            || self.parts.engine.has_untold_holds()
            || self.parts.engine.wants_fence()
    }

    /// Whether a batch may be handed over.
    pub(super) fn may_hand_over(&self) -> bool {
        self.under_way.len() < UNDER_WAY && self.returning == 0
    }

    /// Collects the consequence of an offset for the next batch, in the form in which the ledger takes it: a batch of thousands is then handed
    /// over as it is, and nothing that is due waits for that.
    pub(super) fn settle(&mut self, mut settlement: Settlement) {
        if !self.parts.ledger.keeps_order() {
            let is_kept =
                |entry: &Entry| !matches!(entry, Entry::State(Kept::Order(_) | Kept::Id { .. }));
            settlement.entries.retain(is_kept);
            settlement.otherwise.retain(is_kept);
        }
        self.settled.push(Settled::of(settlement));
    }

    /// Hands over what was collected.
    pub(super) fn commit(&mut self) {
        let mut batch = Batch {
            returns: self.returns,
            ..Batch::default()
        };
        // What comes next is as much, most of the time, and is not moved while it grows.
        let room = Vec::with_capacity(self.settled.len());
        batch.settled = mem::replace(&mut self.settled, room);
        let mut tally = Tally::new(&self.parts.metrics, &self.counters);
        let now = self.now().wall;
        for settled in &batch.settled {
            let records = self.parts.encoder.records(settled.records.entries());
            tally.count(settled, records, now);
        }
        for (shard, alert) in self.parts.engine.alerts() {
            tally.count_records(1);
            batch
                .settled
                .push(Settled::beside(shard, Entry::Alert(alert)));
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
            let state = self.bound(shard, state);
            tally.count_records(1);
            batch
                .settled
                .push(Settled::beside(shard, Entry::State(state)));
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
        self.handed_at = Instant::now();
        let is_early = self.early_at().is_some() && self.handed_at < self.commit_at;
        self.hurry.handed_over();
        self.submitted += 1;
        self.under_way.push_back(UnderWay {
            commits,
            tasks: batch.settled.len(),
            tally,
            is_early,
        });
        self.parts.ledger.submit(batch);
    }

    /// What is to be written of shards besides what settlements hold.
    fn changes(&mut self) -> Vec<(i32, Kept)> {
        let mut changes = self.parts.engine.changes();
        if !self.parts.ledger.keeps_order() {
            changes.retain(|(_, state)| !matches!(state, Kept::Order(_) | Kept::Id { .. }));
            changes.append(&mut self.outdated);
        }
        changes
    }

    /// The same with marks that are bound to their topic: they are not believed of another one of its name.
    fn bound(&self, shard: i32, state: Kept) -> Kept {
        let Kept::Taken {
            source,
            chunk,
            marks: Some(marks),
        } = state
        else {
            return state;
        };
        let binding = self.bindings.get(&LaneId { shard, source });
        let binding =
            binding.unwrap_or_else(|| unreachable!("taken from a lane that is not assigned"));
        let bound = [&binding.to_bytes()[..], &marks[..]].concat();
        Kept::Taken {
            source,
            chunk,
            marks: Some(bound.into()),
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_few_batches_wait_for_no_pause_and_many_take_half_of_the_time() {
        let start = Instant::now();
        let took = Duration::from_millis(50);
        let mut hurry = Hurry::new(start);
        let mut now = start;
        let mut ends = Vec::new();

        while now < start + Duration::from_secs(20) {
            now += took;
            hurry.committed(now, took);
            ends.push(now);
            now = hurry.next(now);
        }

        let alone = took + TOGETHER;
        assert_eq!(ends[4] - ends[0], alone * 4);
        let last = &ends[ends.len() - 100..];
        assert_eq!(last[99] - last[0], took * 2 * 99);
    }

    #[test]
    fn what_only_says_what_was_done_borrows_no_time() {
        let start = Instant::now();
        let took = Duration::from_millis(50);
        let mut hurry = Hurry::new(start);
        let now = start + took;
        assert_eq!(hurry.next_to_answer(start), start + TOGETHER);

        hurry.committed(now, took);

        assert_eq!(hurry.next(now), now + TOGETHER);
        assert_eq!(hurry.next_to_answer(now), now + took * 2);
    }

    #[test]
    fn a_batch_that_took_long_is_followed_by_a_pause_as_long() {
        let start = Instant::now();
        let took = Duration::from_secs(3);
        let mut hurry = Hurry::new(start);

        hurry.committed(start + took, took);

        assert_eq!(hurry.next(start + took) + AHEAD, start + took * 3);
    }
}
