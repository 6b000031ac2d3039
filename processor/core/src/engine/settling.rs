//! The engine's part in settlements: an open offset is completed with the records that follow from it.
//!
//! Whether they can be written is `writing.rs`'s. Invariant: an offset is completed once, by [`Engine::write`], together with its records.

use std::sync::Arc;

use super::{Closing, Engine};
use crate::agenda::Item;
use crate::entry::{Ended, Entry};
use crate::overdue::Move;
use crate::step::{Action, Applied, Settlement};

impl Engine {
    /// Settles the offset of a task that waited.
    pub(super) fn settle_item(
        &mut self,
        item: &Item,
        entries: Vec<Entry>,
        actions: &mut Vec<Action>,
    ) {
        let closing = self.closing(item);
        self.settle(closing, entries, actions);
    }

    /// Completes an offset with the records that follow from it.
    pub(super) fn settle(
        &mut self,
        closing: Closing,
        entries: Vec<Entry>,
        actions: &mut Vec<Action>,
    ) {
        self.settle_by(closing, entries, Vec::new(), actions);
    }

    /// As [`Self::settle`], by these commands.
    pub(super) fn settle_by(
        &mut self,
        closing: Closing,
        mut entries: Vec<Entry>,
        applied: Vec<Applied>,
        actions: &mut Vec<Action>,
    ) {
        self.bug.written(&mut entries);
        for (to, task) in entries.iter().filter_map(Entry::parked) {
            if task.is_exhausted() {
                self.count_exhausted(self.latest, to.unwrap_or(closing.lane.shard), task);
            }
        }
        self.note_order(closing, &entries);
        self.note_ids(closing, &mut entries);
        entries.extend(self.alerts.take_next());
        let entries = self.with_delivery(entries);
        self.close_as_is(closing, (entries, Vec::new()), applied, actions);
    }

    /// Marks an offset complete and lets go of the bytes it held: its consequence is in the batch.
    pub(super) fn close(
        &mut self,
        closing: Closing,
        entries: Vec<Entry>,
        otherwise: Vec<Entry>,
        actions: &mut Vec<Action>,
    ) {
        let [entries, otherwise] = [entries, otherwise].map(|entries| self.with_delivery(entries));
        self.close_as_is(closing, (entries, otherwise), Vec::new(), actions);
    }

    /// As [`Self::close`], with nothing added.
    pub(super) fn close_as_is(
        &mut self,
        closing: Closing,
        (entries, otherwise): (Vec<Entry>, Vec<Entry>),
        applied: Vec<Applied>,
        actions: &mut Vec<Action>,
    ) {
        let Closing {
            lane: id,
            offset,
            home,
            bytes,
        } = closing;
        let settlement = Settlement {
            lane: id,
            offset,
            home,
            entries,
            otherwise,
            applied,
        };
        if let Some(settlement) = self.if_writable(bytes, settlement) {
            self.write(bytes, settlement, actions);
        }
    }

    /// Puts a settlement in the batch.
    pub(super) fn write(
        &mut self,
        bytes: usize,
        mut settlement: Settlement,
        actions: &mut Vec<Action>,
    ) {
        let moves = self.deferral_elsewhere(&settlement);
        let Settlement { lane, offset, .. } = settlement;
        let mut parked = settlement.entries.iter().filter_map(Entry::parked);
        if parked.any(|(to, _)| to.is_some_and(|to| to != lane.shard)) {
            self.lanes.moves(lane);
        }
        let task = settlement.entries.iter().find_map(Entry::id);
        self.lanes.complete(lane, offset, bytes, task, moves);
        self.alerts.count(lane.shard, &settlement.entries);
        self.count_applied(&mut settlement);
        self.note_delivery(&settlement);
        self.note_decided(lane, offset);
        actions.push(Action::Settle(settlement));
    }

    /// What a settlement defers in another shard, if that is ours.
    pub(super) fn deferral_elsewhere(&self, settlement: &Settlement) -> Option<Move> {
        let (to, task) = settlement.entries.iter().find_map(Entry::parked)?;
        let to = to.filter(|to| *to != settlement.lane.shard && self.has(*to))?;
        task.deferral.is_some().then(|| Move {
            to,
            scene: Arc::clone(&task.scene),
            due: task.due,
        })
    }

    /// What follows from a decision, with the delivery of the callback in it if its scene wants that.
    fn with_delivery(&self, mut entries: Vec<Entry>) -> Vec<Entry> {
        let wants = |ended: &Ended| {
            let scene = self.scenes.get(&ended.scene);
            let callback = scene.and_then(|scene| scene.callback.as_ref());
            callback.is_some_and(|callback| callback.on.contains(&ended.terminal))
        };
        let ended = entries.iter().find_map(Entry::ended);
        let wanted = ended.filter(|ended| wants(ended));
        let delivery = wanted.map(|ended| Entry::DeliverCallback(Arc::clone(ended)));
        entries.extend(delivery);
        entries
    }

    /// The offset of a task that waited, which does not any more.
    pub(super) fn closing(&mut self, item: &Item) -> Closing {
        self.uncount(item);
        Closing {
            lane: item.lane,
            offset: item.offset,
            home: self.home(&item.task),
            bytes: item.task.memory_size(),
        }
    }

    /// A task does not wait any more: it is not counted as due.
    pub(super) fn uncount(&mut self, item: &Item) {
        if item.counted {
            let shard = item.lane.shard;
            self.dues.take(shard, &item.task.scene, item.task.due);
        }
    }
}
