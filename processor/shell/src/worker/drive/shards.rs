//! Shards: the ones that are assigned, given away, and lost.
//!
//! Invariant: a shard is let go only after what was settled for it is durable, or can no longer be.

use std::collections::HashMap;
use std::mem;
use std::time::Instant;

use rdkafka::consumer::Consumer;
use rdkafka::topic_partition_list::Offset;

use retide_core::engine::Left;
use retide_core::{Input, LaneId, Source, State as Kept};

use crate::worker::drive::State;
use crate::worker::drive::gone::LATE;
use crate::worker::feed::{Assignment, Reading, Request};
use crate::worker::ids::Ids;
use crate::worker::leaving::Leaving;
use crate::worker::ledger::{Ledger, Settled};
use crate::worker::order::Written;

// === impl State ===

impl<L: Ledger> State<L> {
    /// The group says something.
    pub(super) fn read(&mut self, reading: Reading) {
        match reading {
            // What comes now goes back with everything else.
            Reading::Assigned(..) if self.stopping => {}
            Reading::Assigned(assignments, orders) => self.assigned(assignments, orders),
            Reading::Revoked { shards, lost, done } => {
                if lost {
                    self.parts.heartbeat.lost();
                    self.lose(&shards);
                } else {
                    self.leave(&shards);
                }
                self.asked.push((shards, done));
                self.answer();
            }
            Reading::Gaps(gaps) => self.gone(gaps),
            Reading::Deleted(deleted) => self.deleted(&deleted),
            Reading::Alerts(alerts) => {
                for (shard, alert) in alerts {
                    self.tell(shard, alert);
                }
                self.touch(|_| true);
            }
            Reading::Searched(searched) => self.searched(searched),
            Reading::Shards(all) => {
                self.parts.metrics.shards.set(all.get().into());
                self.step(Input::Shards(all));
            }
            Reading::Failed(_) => unreachable!("the loop ends with it"),
        }
    }

    /// Lanes are ours.
    fn assigned(&mut self, assignments: Vec<Assignment>, written: Vec<(i32, Written)>) {
        self.follow_readable();
        let mut known = HashMap::new();
        for (shard, mut written) in written {
            known.insert(shard, mem::take(&mut written.ids));
            self.know(shard, written);
        }
        for assignment in &assignments {
            let (shard, saved) = (assignment.lane.shard, assignment.saved.clone());
            if !saved.is_empty() {
                self.step(Input::Saved { shard, saved });
            }
        }
        // What waits in its tiers is to be read first.
        self.awaiting.look_at = Instant::now() + LATE;
        self.awaiting.suspects = None;
        self.assignment += 1;
        let mut lanes = Vec::with_capacity(assignments.len());
        let mut awaited = Vec::new();
        for assignment in assignments {
            let Assignment {
                lane,
                start,
                end,
                known: completed,
                saved: _,
                binding,
            } = assignment;
            let ids = known.get_mut(&lane.shard);
            let ids = ids.and_then(|ids| ids.remove(&lane.source));
            self.ids()
                .begin(lane, binding, (start, end), ids.unwrap_or_default());
            let known = completed;
            self.bindings.insert(lane, binding);
            self.unnamed.begin(lane);
            if self.unreadable.is_deleted(lane.source) {
                self.unbound.insert(lane);
            }
            self.shards.insert(lane.shard, self.assignment);
            self.parts.ownership.take(lane.shard);
            self.step(Input::Assign { lane, start, known });
            lanes.push((lane, Offset::Offset(start)));
            if lane.source == Source::Commands && start < end {
                awaited.push((lane, end));
            }
        }
        for (LaneId { shard, .. }, to) in &awaited {
            let (shard, to) = (*shard, *to);
            self.step(Input::Standing { shard, to });
        }
        if !lanes.is_empty() {
            let assignment = self.assignment;
            self.parts.feed.request(Request::Read {
                assignment,
                lanes,
                awaited,
            });
            self.touch(|since| since == assignment);
        }
        // No shard at all, where there are more workers than shards, is an assignment too.
        self.parts.heartbeat.assigned();
    }

    /// What former owners have written of a shard. The order of its tasks is to go on with, or, where it is not kept, to be forgotten by all.
    fn know(&mut self, shard: i32, written: Written) {
        let Written {
            order,
            taken,
            steps,
            replayed,
            warned,
            holds,
            duplicates,
            replaced,
            ids: _,
        } = written;
        let holds = holds.into_iter().collect();
        self.step(Input::HoldsKnown { shard, holds });
        self.step(Input::Known {
            shard,
            taken: taken.into_iter().collect(),
            steps: steps.into_iter().collect(),
        });
        let marks = replayed.into_marks().collect();
        let warned = warned.into_times().collect();
        self.step(Input::ReplayedKnown {
            shard,
            marks,
            warned,
        });
        if self.parts.ledger.keeps_order() {
            let order = Box::new(order);
            self.step(Input::Outstanding { shard, order });
            let ids = duplicates.into_iter().collect();
            let replaced = replaced.into_iter().collect();
            self.step(Input::IdsKnown {
                shard,
                ids,
                replaced,
            });
        } else {
            let ids = duplicates.into_keys();
            let forgotten = ids.map(|id| (shard, Kept::Id { id, known: None }));
            self.outdated.extend(forgotten);
            let forgotten = replaced.into_keys().map(|task| {
                let replaced = None;
                (shard, Kept::Replaced { task, replaced })
            });
            self.outdated.extend(forgotten);
            let tombstones = order
                .tombstones()
                .map(|change| (shard, Kept::Order(change)));
            self.outdated.extend(tombstones);
        }
    }

    /// Is to end, after giving everything away.
    pub(super) fn stop(&mut self) {
        self.stopping = true;
        let all: Vec<i32> = self.shards.keys().copied().collect();
        self.leave(&all);
    }

    /// Begins to give those of these shards away that are not being given away yet: all goes on, and calls in flight are waited for.
    fn leave(&mut self, shards: &[i32]) {
        let is_leaving = |shard: &i32| {
            let mut leaving = self.leaving.iter();
            leaving.any(|leaving| leaving.shards().contains(shard))
        };
        let owned = shards
            .iter()
            .filter(|shard| self.shards.contains_key(shard));
        let shards: Vec<i32> = owned.filter(|shard| !is_leaving(shard)).copied().collect();
        for shard in shards.iter().copied() {
            self.step(Input::Leave { shard });
            if self.ids().leave(shard) {
                self.parts.engine.touch(shard);
                self.touched = true;
            }
        }
        if !shards.is_empty() {
            let patience = self.parts.pace.drain_deadline;
            self.leaving
                .push(Leaving::new(shards, Instant::now(), patience));
        }
    }

    /// Gives shards away as far as they are ready.
    pub(super) fn give_away(&mut self) {
        if self.leaving.is_empty() {
            return;
        }
        for mut leaving in mem::take(&mut self.leaving) {
            if self.is_gone(&mut leaving) {
                self.count_uncommitted(leaving.shards());
                self.release(leaving.shards());
            } else {
                self.leaving.push(leaving);
            }
        }
        self.answer();
    }

    /// Takes shards through their stages as far as they come; whether they can be released.
    fn is_gone(&mut self, leaving: &mut Leaving) -> bool {
        let now = Instant::now();
        if leaving.is_written(self.received) {
            let mut settled = self.settled.iter();
            if settled.any(|one| leaving.shards().contains(&one.shards.own)) {
                // Answers that came while the last batch was written are as good as those before.
                leaving.unwritten();
            }
        }
        let left = self.calls_left(leaving.shards());
        if leaving.is_to_stop(now, left) {
            for shard in leaving.shards().iter().copied() {
                self.step(Input::Revoke { shard });
            }
            let shards = leaving.shards().to_vec();
            self.parts.feed.request(Request::Leave { shards });
            leaving.stopped(now);
        }
        if leaving.is_to_commit(now, left) {
            let is_theirs = |one: &Settled| leaving.shards().contains(&one.shards.own);
            let is_left = self.settled.iter().any(is_theirs) || self.parts.engine.has_unsaved();
            if (is_left || self.touched) && self.may_hand_over() {
                self.commit();
            }
            // What was given back to be written again is settled with the next step.
            let is_left = self.settled.iter().any(is_theirs) || self.parts.engine.has_unsaved();
            let is_left = is_left || self.touched;
            if !is_left && self.parts.engine.to_write_again() == 0 {
                leaving.committing(self.submitted);
            }
        }
        leaving.is_written(self.received) || leaving.is_late(now)
    }

    /// Counts the answered calls of shards that are not committed when the worker ends, and will not be.
    fn count_uncommitted(&mut self, shards: &[i32]) {
        if !self.stopping {
            return;
        }
        let is_theirs = |one: &&Settled| shards.contains(&one.shards.own) && one.is_of_call();
        let settled = self.settled.iter().filter(is_theirs).count();
        // Whatever is in them, it is not waited for any more.
        let under_way: usize = self.under_way.iter().map(|batch| batch.tasks).sum();
        self.uncommitted += settled + under_way + self.parts.engine.unwritten_calls(shards);
    }

    /// How many calls of shards are in flight.
    fn calls_left(&self, shards: &[i32]) -> Left {
        let mut all = Left::default();
        for shard in shards {
            let left = self.parts.engine.calls_left(*shard);
            all.before += left.before;
            all.since += left.since;
        }
        all
    }

    /// Shards are gone: nothing can be committed for them any more, and nothing is to be waited for.
    fn lose(&mut self, shards: &[i32]) {
        let owned = shards.iter().copied();
        let lost: Vec<i32> = owned
            .filter(|shard| self.shards.contains_key(shard))
            .collect();
        for shard in lost.iter().copied() {
            self.parts.ownership.give_up(shard);
            self.step(Input::Revoke { shard });
        }
        for leaving in &mut self.leaving {
            leaving.forget(&lost);
        }
        self.leaving.retain(|leaving| !leaving.shards().is_empty());
        self.release(&lost);
        self.parts.feed.request(Request::Leave { shards: lost });
    }

    /// Everything is gone.
    pub(super) fn lose_all(&mut self) {
        let all: Vec<i32> = self.shards.keys().copied().collect();
        self.lose(&all);
    }

    /// Forgets shards.
    fn release(&mut self, shards: &[i32]) {
        for shard in shards {
            // From here on nothing is committed for it, even if a batch is still under way.
            self.parts.ownership.give_up(*shard);
            self.ids().release(*shard);
            self.step(Input::Release { shard: *shard });
            self.shards.remove(shard);
        }
        self.settled
            .retain(|settled| !shards.contains(&settled.shards.own));
        self.outdated.retain(|(shard, _)| !shards.contains(shard));
        self.paused.retain(|lane, _| !shards.contains(&lane.shard));
        self.bindings
            .retain(|lane, _| !shards.contains(&lane.shard));
        self.unbound.retain(|lane| !shards.contains(&lane.shard));
    }

    /// What is known of where ids are.
    pub(super) fn ids(&self) -> &Ids {
        self.parts.feed.consumer.context().ids()
    }

    /// Tells those who wait for shards to be given away that all of theirs are.
    fn answer(&mut self) {
        let owned = &self.shards;
        self.asked
            .retain(|(shards, _)| shards.iter().any(|shard| owned.contains_key(shard)));
    }
}
