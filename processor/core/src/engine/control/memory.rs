//! The tasks in memory that a command meets: out of their queues, and what waits to be written of them.
//!
//! Not what becomes of them, which is `effect`'s. Invariant: a task that a command has met is in no other queue, and its offset is open.

use std::collections::{BTreeSet, VecDeque};
use std::mem;

use super::super::Engine;
use super::Commands;
use crate::agenda::Item;
use crate::control::Place;
use crate::entry::Entry;
use crate::lane::{LaneId, Source};
use crate::planted::Bug;
use crate::step::{Applied, Settlement};
use crate::task::Task;
use crate::wait::Waited;

/// The tasks that commands have met, and with which nothing is done yet.
#[derive(Debug, Default)]
pub(super) struct Memory {
    /// Those that wait for room in the batch.
    met: VecDeque<Met>,
    /// Those that wait for the order of their keys to be settled.
    unsettled: BTreeSet<(LaneId, i64)>,
}

/// A task that a command has met.
#[derive(Debug)]
pub(super) struct Met {
    /// The task.
    pub(super) item: Item,
    /// What is to be written besides, of what was decided before and is not written.
    pub(super) besides: Vec<Entry>,
    /// The commands that this follows from.
    pub(super) applied: Vec<Applied>,
}

// === impl Memory ===

impl Memory {
    /// Whether none waits for room.
    pub(super) fn is_done(&self) -> bool {
        self.met.is_empty()
    }

    /// Adds one that waits for room.
    fn add(&mut self, met: Met) {
        self.met.push_back(met);
    }

    /// The one that has waited longest for room.
    pub(super) fn next(&mut self) -> Option<Met> {
        self.met.pop_front()
    }

    /// How many of a shard wait for room with what follows from a call, which is not written.
    pub(in crate::engine) fn answered(&self, shard: i32) -> usize {
        let is_answered = |met: &&Met| met.item.lane.shard == shard && !met.besides.is_empty();
        self.met.iter().filter(is_answered).count()
    }

    /// Whether one of a lane waits for the order of its key.
    pub(super) fn is_unsettled(&self, lane: LaneId) -> bool {
        self.unsettled.iter().any(|(of, _)| *of == lane)
    }

    /// Whether one of a shard does.
    pub(super) fn has_unsettled(&self, shard: i32) -> bool {
        self.unsettled.iter().any(|(lane, _)| lane.shard == shard)
    }

    /// Notes that a task waits for the order of its key.
    pub(super) fn unsettled(&mut self, at: (LaneId, i64)) {
        self.unsettled.insert(at);
    }

    /// Notes that it does not, or not any more.
    pub(super) fn settled(&mut self, at: (LaneId, i64)) {
        self.unsettled.remove(&at);
    }

    /// Forgets the tasks of a shard.
    pub(super) fn forget(&mut self, shard: i32) {
        self.met.retain(|met| met.item.lane.shard != shard);
        self.unsettled.retain(|(lane, _)| lane.shard != shard);
    }
}

// === impl Met ===

impl Met {
    /// A task of which nothing else is to be written.
    pub(super) const fn alone(item: Item) -> Self {
        Self {
            item,
            besides: Vec::new(),
            applied: Vec::new(),
        }
    }
}

// === impl Engine ===

impl Engine {
    /// Whether a command meets a task which is in memory, or is read.
    pub(in crate::engine) fn meets(&self, item: &Item) -> bool {
        !self.commands.steps.is_empty()
            && !self.places(item.lane, item.offset, &item.task).is_empty()
    }

    /// The same of a task that has waited for others of its key.
    pub(in crate::engine) fn is_met(&mut self, item: &Item) -> bool {
        self.commands.memory.settled((item.lane, item.offset));
        self.meets(item)
    }

    /// A task goes that a command may have met.
    pub(in crate::engine) fn forget_met(&mut self, item: &Item) {
        self.commands.memory.settled((item.lane, item.offset));
    }

    /// The places of the commands that a task meets.
    pub(super) fn places(&self, lane: LaneId, offset: i64, task: &Task) -> Vec<Place> {
        self.commands.steps.meets(&self.scenes, lane, offset, task)
    }

    /// The same of a task that is called.
    pub(super) fn places_of_call(&self, lane: LaneId, offset: i64, task: &Task) -> Vec<Place> {
        self.commands
            .steps
            .meets_call(&self.scenes, lane, offset, task)
    }

    /// A task that a command meets is in memory: what the command says is done with it, as soon as there is room.
    pub(in crate::engine) fn command(&mut self, item: Item) {
        self.commands.memory.add(Met::alone(item));
    }

    /// Takes the tasks in memory out of their queues that new steps are about.
    pub(super) fn reach_memory(&mut self) {
        let mut shards = self.commands.steps.new_shards();
        // Of those that stand in a shard, a later one may be in force.
        shards.retain(|shard| !self.awaits_commands(*shard));
        if shards.is_empty() {
            return;
        }
        let waits = !self.bug.is(Bug::Unfenced);
        let deliveries = self.writing.deliveries();
        self.extract_met(&shards);
        for shard in shards {
            let source = Source::Commands;
            let lane = LaneId { shard, source };
            let (given, _) = self.lanes.batches(lane);
            self.lanes.touch_lane(lane);
            let moved = self.lanes.last_move(self.steady, shard);
            // What is not durable may be parked by then or not.
            let lanes = &self.lanes;
            let is_fenced = |ids: Option<&_>| {
                waits && (lanes.is_volatile(ids) || deliveries.may_have(shard, ids))
            };
            self.commands
                .steps
                .begin(shard, given + 1, moved, is_fenced);
        }
    }

    /// Takes the tasks out of their queues that commands of these shards meet.
    fn extract_met(&mut self, shards: &BTreeSet<i32>) {
        let Commands { steps, unread, .. } = &mut self.commands;
        let (steps, scenes) = (&*steps, &self.scenes);
        let meets = |lane: LaneId, offset: i64, task: &Task| {
            shards.contains(&lane.shard) && !steps.meets(scenes, lane, offset, task).is_empty()
        };
        let of_item = |item: &Item| meets(item.lane, item.offset, &item.task);
        let mut met = Vec::new();
        self.agenda.extract(of_item, &mut met);
        self.ready.extract(of_item, &mut met);
        self.orders.extract(shards, self.latest, of_item, &mut met);
        unread.extract(of_item, &mut met);
        self.replacing.extract(of_item, &mut met);
        let outbound = mem::take(&mut self.outbound);
        for item in outbound {
            if of_item(&item) {
                met.push(item);
            } else {
                self.outbound.push_back(item);
            }
        }
        let unwritten = self.writing.extract(|settlement| {
            let parked = settlement.entries.iter().find_map(Entry::parked);
            parked.is_some_and(|(_, task)| meets(settlement.lane, settlement.offset, task))
        });
        for item in met {
            self.command(item);
        }
        for settlement in unwritten {
            self.command_again(settlement);
        }
    }

    /// What such a settlement is of is in memory again, and waits for the command.
    pub(in crate::engine) fn command_again(&mut self, settlement: Settlement) {
        self.duplicates
            .undecided((settlement.lane, settlement.offset));
        self.leave_order_at_once(&settlement);
        let Settlement {
            lane,
            offset,
            entries,
            applied,
            ..
        } = settlement;
        let (mut parked, mut besides) = (None, Vec::new());
        for entry in entries {
            match entry {
                Entry::Park { to, task, .. } => parked = Some((to, task)),
                Entry::Deliver { .. }
                | Entry::DeadLetter { .. }
                | Entry::Poison { .. }
                | Entry::Callback(_)
                | Entry::DeliverCallback(_)
                | Entry::Event(_)
                | Entry::State(_)
                | Entry::Alert(_)
                | Entry::Control { .. } => besides.push(entry),
            }
        }
        let Some((to, task)) = parked else {
            unreachable!("a command meets a task that is not parked");
        };
        if task.deferral.is_some() {
            // It is not in its tier.
            let shard = to.unwrap_or(lane.shard);
            self.dues.back(shard, &task.scene, task.due);
        }
        let item = Item {
            wake: task.wake(),
            sequence: 0,
            lane,
            offset,
            read: self.latest,
            waited: Waited::default(),
            counted: false,
            task,
        };
        self.commands.memory.add(Met {
            item,
            besides,
            applied,
        });
    }

    /// Whether a settlement that was not written parks a task that a command meets meanwhile.
    pub(in crate::engine) fn is_commanded(&self, settlement: &Settlement) -> bool {
        // What a campaign parks was not read as a task.
        let is_round = settlement.lane.source == Source::Commands;
        if self.commands.steps.is_empty() || !settlement.otherwise.is_empty() || is_round {
            return false;
        }
        let parked = settlement.entries.iter().find_map(Entry::parked);
        parked.is_some_and(|(_, task)| {
            !self
                .places(settlement.lane, settlement.offset, task)
                .is_empty()
        })
    }
}
