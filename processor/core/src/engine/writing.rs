//! The engine's part in writing: what becomes of a batch that was not written, and what waits for a topic that takes no records.
//!
//! Whether a topic takes records is the shell's to find out. Invariants: an offset whose consequence is not durable is open again, or still
//! is; a settlement that waits keeps its place in the order of its key; no call starts whose end could not be written.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use bytes::Bytes;

use super::{Closing, Engine};
use crate::campaign::LEADER;
use crate::consequence::{self, End as Ending};
use crate::control::Place;
use crate::entry::{DEAD_LETTERS_EXPIRE, Ended, Entry, Transition};
use crate::forced::BREAKER;
use crate::hold::HOLD;
use crate::key_order::{End, Fingerprint};
use crate::lane::Source;
use crate::outcome::{Reason, Terminal};
use crate::planted::Bug;
use crate::scene::{Ordering, Scene};
use crate::sink::{Sink, Sinks};
use crate::state::{State, StateKey};
use crate::step::{Action, Effect, Fate, Now, Returned, Settlement, Writable};
use crate::task::{Failure, Record};

/// What is not written yet.
#[derive(Debug, Default)]
pub(super) struct Writing {
    /// What can be written.
    writable: Writable,
    /// The sources of which no offset can be committed.
    unreadable: BTreeSet<Source>,
    /// Settlements to be written again, as soon as there is room.
    again: VecDeque<Unwritten>,
    /// Whether the first of these waits for a batch: see [`Engine::is_behind_delivery`].
    waits: bool,
    /// Settlements that wait for a topic: one that takes no records, or the one their task was read from.
    held: VecDeque<Unwritten>,
    /// How many of those each scene has.
    scenes: BTreeMap<Arc<str>, usize>,
    /// The keys of those, by shard: what comes behind them waits, too.
    keys: BTreeSet<(i32, Fingerprint)>,
    /// Whether the order topic has taken no records since the batch being collected was begun.
    was_order_closed: bool,
}

/// A settlement that is not written; its offset is open.
#[derive(Debug)]
struct Unwritten {
    /// The settlement.
    settlement: Settlement,
    /// The bytes it holds.
    bytes: usize,
    /// What it means for the order of its key.
    end: Option<End>,
    /// The key of its task: nothing of that key may be written before.
    key: Option<Fingerprint>,
}

/// Deliveries that are not written, by shard and task. What one parks, if it is refused, stands behind a look at tiers that begins before.
#[derive(Debug, Default)]
pub(super) struct Deliveries(BTreeMap<i32, BTreeSet<Arc<str>>>);

// === impl Deliveries ===

impl Deliveries {
    /// Whether there is one in a shard, of one of these tasks if they are named.
    pub(super) fn may_have(&self, shard: i32, ids: Option<&BTreeSet<Arc<str>>>) -> bool {
        let held = self.0.get(&shard);
        held.is_some_and(|held| ids.is_none_or(|ids| !ids.is_disjoint(held)))
    }
}

// === impl Writing ===

impl Writing {
    /// Whether something is to be written again.
    pub(super) fn has_more(&self) -> bool {
        !self.again.is_empty() && !self.waits
    }

    /// Most settlements, and bytes of them, of a batch.
    pub(super) const fn most(&self) -> (usize, usize) {
        (self.writable.batch_tasks, self.writable.batch_bytes)
    }

    /// Whether the alerts topic takes records.
    pub(super) const fn takes_alerts(&self) -> bool {
        !self.writable.closed.contains(Sink::Alerts)
    }

    /// Keeps a settlement until its topics take records.
    fn hold(&mut self, unwritten: Unwritten) {
        self.keys.extend(unwritten.at());
        let scene = scene_of(&unwritten.settlement);
        *self.scenes.entry(scene).or_default() += 1;
        self.held.push_back(unwritten);
    }

    /// The deliveries that are not written.
    pub(super) fn deliveries(&self) -> Deliveries {
        let mut deliveries = Deliveries::default();
        for unwritten in self.again.iter().chain(&self.held) {
            let Settlement {
                lane,
                entries,
                otherwise,
                ..
            } = &unwritten.settlement;
            let id = entries.iter().find_map(Entry::id);
            if let Some(id) = id.filter(|_| !otherwise.is_empty()) {
                let ids = deliveries.0.entry(lane.shard).or_default();
                ids.insert(Arc::clone(id));
            }
        }
        deliveries
    }

    /// Whether something of a shard is not written.
    pub(super) fn has_of(&self, shard: i32) -> bool {
        let mut all = self.again.iter().chain(&self.held);
        all.any(|unwritten| unwritten.settlement.lane.shard == shard)
    }

    /// Whether what is to be written again first has no records: it goes with what was written before it.
    fn goes_along(&self) -> bool {
        let first = self.again.front();
        first.is_some_and(|first| {
            let Settlement { lane, entries, .. } = &first.settlement;
            lane.source == Source::Commands && entries.is_empty()
        })
    }

    /// Whether a round of a campaign is not written.
    pub(super) fn has_round(&self) -> bool {
        let mut all = self.again.iter().chain(&self.held);
        all.any(|unwritten| {
            let mut entries = unwritten.settlement.entries.iter();
            entries.any(|entry| entry.campaign().is_some())
        })
    }

    /// The steps of commands whose answers are not written, by shard.
    pub(super) fn answering(&self) -> BTreeSet<(i32, Place)> {
        let all = self.again.iter().chain(&self.held);
        let all = all.filter(|unwritten| unwritten.settlement.lane.source == Source::Commands);
        all.flat_map(|unwritten| {
            let Settlement { lane, entries, .. } = &unwritten.settlement;
            let places = entries.iter().filter_map(Entry::answered);
            places.map(|place| (lane.shard, place))
        })
        .collect()
    }

    /// Lets everything be written again that can be now.
    fn try_all_again(&mut self) {
        // What was held first goes first.
        self.held.append(&mut self.again);
        std::mem::swap(&mut self.held, &mut self.again);
        self.scenes.clear();
        self.keys.clear();
    }

    /// Drops what belongs to a shard, and gives it.
    fn forget(&mut self, shard: i32) -> Vec<Settlement> {
        self.extract(|settlement| settlement.lane.shard == shard)
    }

    /// Takes out those settlements.
    pub(super) fn extract(&mut self, which: impl Fn(&Settlement) -> bool) -> Vec<Settlement> {
        let is_gone = |unwritten: &Unwritten| which(&unwritten.settlement);
        let again = std::mem::take(&mut self.again).into_iter();
        let (mut gone, again): (VecDeque<_>, VecDeque<_>) = again.partition(is_gone);
        self.again = again;
        let held = std::mem::take(&mut self.held);
        self.scenes.clear();
        self.keys.clear();
        for unwritten in held {
            if is_gone(&unwritten) {
                gone.push_back(unwritten);
            } else {
                self.hold(unwritten);
            }
        }
        gone.into_iter().map(|gone| gone.settlement).collect()
    }
}

impl Unwritten {
    /// The shard and the key of the task.
    fn at(&self) -> Option<(i32, Fingerprint)> {
        Some((self.settlement.lane.shard, self.key?))
    }
}

// === impl Engine ===

impl Engine {
    /// How many settlements wait for a topic that takes no records, or to be written again.
    pub fn unwritten(&self) -> usize {
        self.writing.again.len() + self.writing.held.len()
    }

    /// How many of them can be written, and are as soon as there is room.
    pub fn to_write_again(&self) -> usize {
        self.writing.again.len()
    }

    /// How many of them, of `shards`, are of calls.
    pub fn unwritten_calls(&self, shards: &[i32]) -> usize {
        let all = self.writing.again.iter().chain(&self.writing.held);
        all.filter(|unwritten| shards.contains(&unwritten.settlement.lane.shard))
            .filter(|unwritten| unwritten.settlement.is_of_call())
            .count()
    }

    /// Other topics take records.
    pub(super) fn follow_writable(&mut self, now: Now, writable: Writable) {
        let before = std::mem::replace(&mut self.writing.writable, writable);
        // What is settled while it is open must not be written without it, even if it closes again before that.
        self.writing.was_order_closed &= writable.closed.contains(Sink::Order);
        if before.closed != writable.closed {
            self.writing.try_all_again();
        }
        self.ask_all_at(now.wall);
    }

    /// Of other sources no offset can be committed.
    pub(super) fn follow_unreadable(&mut self, now: Now, sources: BTreeSet<Source>) {
        self.writing.unreadable = sources;
        self.writing.try_all_again();
        self.ask_all_at(now.wall);
    }

    /// Whether what follows from a call of `scene`, for a task that was read from `source`, could be written.
    pub(super) fn can_be_written(&self, scene: &Scene, source: Source) -> bool {
        if self.writing.unreadable.contains(&source) {
            return false;
        }
        let Writable { closed, stuck, .. } = self.writing.writable;
        if !stuck && closed.is_empty() {
            return true;
        }
        if self.bug.is(Bug::CalledUnwritable) {
            return true;
        }
        let every_end = Sinks::NONE
            .with(Sink::Tiers)
            .with(Sink::Callbacks)
            .with(Sink::Events);
        let bad_end = Sinks::NONE.with(Sink::DeadLetters).with(Sink::Alerts);
        if stuck || closed.meets(every_end) {
            return false;
        }
        if closed.contains(Sink::Order) && scene.stays() {
            return false;
        }
        // Most calls end well. A scene of which one has ended badly waits.
        !(closed.meets(bad_end) && self.writing.scenes.contains_key(&scene.name))
    }

    /// A batch was not written: its offsets are open again.
    pub(super) fn returned(&mut self, now: Now, returned: Returned, actions: &mut Vec<Action>) {
        let Returned {
            lanes,
            settlements,
            changes,
            alerts,
        } = returned;
        let mut ends = BTreeMap::new();
        let mut ours = BTreeSet::new();
        for (id, epoch) in lanes {
            let Some(open) = self.lanes.returned(now.steady, id, epoch) else {
                continue;
            };
            ours.insert(id);
            ends.extend(open.into_iter().map(|end| ((id, end.offset), end)));
        }
        self.quotas.returned();
        self.alerts.returned(alerts);
        if !self.has(LEADER) {
            self.alerts.untell(DEAD_LETTERS_EXPIRE);
        }
        for (shard, key) in changes {
            match key {
                StateKey::Hold(name) => self.hold_unwritten(shard, name),
                StateKey::Id(id) => self.id_unwritten(shard, id),
                StateKey::Replaced(task) => self.mark_unwritten(shard, task),
                StateKey::Order(key) => {
                    if let Some(order) = self.orders.get(shard) {
                        order.write_again(key);
                    }
                }
                StateKey::Letters { partition, chunk } => {
                    self.replayed_unwritten(shard, partition, chunk);
                }
                StateKey::Warned(partition) => self.warned_unwritten(shard, partition),
                StateKey::Taken { .. } | StateKey::Step(_) => self.control_unwritten(shard, &key),
            }
        }
        for (settlement, fate) in settlements {
            let id = settlement.lane;
            if !ours.contains(&id) {
                continue;
            }
            let bytes = settlement.memory_size();
            self.lanes.reopen(id, settlement.offset, bytes);
            self.uncount_applied(&settlement);
            self.duplicates.returned((id, settlement.offset));
            let end = ends.remove(&(id, settlement.offset));
            match fate {
                Fate::Again if self.is_commanded(&settlement) => self.command_again(settlement),
                Fate::Again => {
                    self.unwritten_end(&settlement, end);
                    let key = self.key_of(&settlement).or(end.map(|end| end.key));
                    self.writing.again.push_back(Unwritten {
                        settlement,
                        bytes,
                        end,
                        key,
                    });
                }
                Fate::Refused(sink, failure) => {
                    self.leave_order_at_once(&settlement);
                    self.end_refused(now, (settlement, bytes), (sink, &failure), actions);
                }
            }
        }
        let shards: BTreeSet<i32> = ours.iter().map(|lane| lane.shard).collect();
        for shard in shards {
            self.steps_wait_again(shard);
        }
    }

    /// Writes again what can be, at most `most` of it.
    pub(super) fn write_again(&mut self, most: usize, actions: &mut Vec<Action>) {
        let mut shards = BTreeSet::new();
        self.write_unwritten(most, &mut shards, actions);
        for shard in shards {
            self.steps_wait_again(shard);
        }
    }

    /// The same; adds the shards of what is written.
    fn write_unwritten(
        &mut self,
        most: usize,
        shards: &mut BTreeSet<i32>,
        actions: &mut Vec<Action>,
    ) {
        let mut left = most;
        self.writing.waits = false;
        // What is over by what was written before goes with that: it is never known to be over alone.
        while self.writing.goes_along() || (left > 0 && !self.is_full()) {
            left = left.saturating_sub(1);
            let Some(first) = self.writing.again.front() else {
                return;
            };
            if self.is_behind_delivery(first) {
                self.writing.waits = true;
                return;
            }
            let Some(unwritten) = self.writing.again.pop_front() else {
                return;
            };
            let is_behind = unwritten
                .at()
                .is_some_and(|at| self.writing.keys.contains(&at));
            if is_behind || self.must_wait(&unwritten.settlement, unwritten.key) {
                self.writing.hold(unwritten);
                continue;
            }
            let Unwritten {
                mut settlement,
                bytes,
                end,
                key,
            } = unwritten;
            if let Some(end) = end {
                self.write_end(&mut settlement, bytes, end);
            } else {
                self.write_parked(&settlement, key);
            }
            shards.insert(settlement.lane.shard);
            self.write(bytes, settlement, actions);
        }
    }

    /// Whether a settlement ends a task of a key of which a delivery is being written. It was decided beside that one, and changed nothing of
    /// the order then; by now others have been told that its task is outstanding, which is to be taken back, and what would be written for
    /// that depends on what becomes of the delivery. It waits for the batch.
    fn is_behind_delivery(&self, unwritten: &Unwritten) -> bool {
        let Some(end) = unwritten.end else {
            return false;
        };
        let Settlement { lane, entries, .. } = &unwritten.settlement;
        let is_delivery = entries.iter().any(|entry| entry.delivered().is_some());
        !is_delivery && self.orders.is_undecided(lane.shard, end.key)
    }

    /// A task is parked with the batch, and so is its place among those of its key: what was written of that beside the first try may be in
    /// another batch, which nobody knows the end of.
    fn write_parked(&mut self, settlement: &Settlement, key: Option<Fingerprint>) {
        let shard = settlement.lane.shard;
        let is_parked = settlement
            .entries
            .iter()
            .any(|entry| entry.parked().is_some());
        if let Some(key) = key.filter(|key| is_parked && !self.orders.is_undecided(shard, *key))
            && let Some(order) = self.orders.get(shard)
        {
            order.write_again(key);
        }
    }

    /// The end of a settlement waits with it.
    fn unwritten_end(&mut self, settlement: &Settlement, end: Option<End>) {
        if let (Some(end), Some(order)) = (end, self.orders.get(settlement.lane.shard)) {
            order.unwritten(end);
        }
    }

    /// The end of a settlement goes into the batch with it.
    fn write_end(&mut self, settlement: &mut Settlement, bytes: usize, end: End) {
        let closing = Closing::of(settlement, bytes);
        let Settlement {
            lane,
            entries,
            otherwise,
            ..
        } = settlement;
        let is_delivery = |entry: &Entry| matches!(entry, Entry::Deliver { .. });
        if entries.iter().any(is_delivery) {
            // What it says of the order of its key was so when it was first decided.
            for entries in [&mut *entries, &mut *otherwise] {
                entries.retain(|entry| !matches!(entry, Entry::State(State::Order(_))));
            }
            return self.deliver_in_order(closing, entries, otherwise);
        }
        self.lanes.add_end(*lane, end);
        if let Some(order) = self.orders.get(lane.shard) {
            order.written(end);
        }
    }

    /// Gives a new settlement back if it can be written; else the settlement waits, and its offset stays open.
    pub(super) fn if_writable(
        &mut self,
        bytes: usize,
        settlement: Settlement,
    ) -> Option<Settlement> {
        if self.is_all_writable() {
            return Some(settlement);
        }
        let Settlement { lane, offset, .. } = settlement;
        // A record that others took the place of has no word of its key.
        let key = self.key_of(&settlement);
        let key = key.or_else(|| self.lanes.key_of_end(lane, offset));
        let at = key.map(|key| (settlement.lane.shard, key));
        let waits = self.must_wait(&settlement, key);
        // Nothing of a key is written before what came before it.
        let mut before = self.writing.again.iter().filter_map(Unwritten::at);
        let is_behind_again = at.is_some_and(|at| before.any(|before| before == at));
        let is_behind_held = at.is_some_and(|at| self.writing.keys.contains(&at));
        if !waits && !is_behind_again && !is_behind_held {
            return Some(settlement);
        }
        let end = self.lanes.take_end(settlement.lane, settlement.offset);
        self.unwritten_end(&settlement, end);
        let unwritten = Unwritten {
            settlement,
            bytes,
            end,
            key,
        };
        if is_behind_again {
            self.writing.again.push_back(unwritten);
        } else {
            self.writing.hold(unwritten);
        }
        None
    }

    /// Whether the order topic takes records.
    pub(super) fn may_be_told(&self) -> bool {
        !self.writing.writable.closed.contains(Sink::Order)
    }

    /// Whether what has changed of the order of keys goes with the batch that is handed over: if the order topic takes records, or did when
    /// the batch was begun, since what was settled then must not be written without it.
    pub(super) fn may_change_order(&mut self) -> bool {
        let is_closed = self.writing.writable.closed.contains(Sink::Order);
        let was_closed = std::mem::replace(&mut self.writing.was_order_closed, is_closed);
        !(was_closed && is_closed)
    }

    /// Whether every topic takes records, and nothing waits for one.
    pub(super) fn is_all_writable(&self) -> bool {
        let Writing {
            writable,
            unreadable,
            again,
            held,
            ..
        } = &self.writing;
        writable.closed.is_empty() && unreadable.is_empty() && again.is_empty() && held.is_empty()
    }

    /// Drops what is not written of a shard that is given away, and gives it: the next owner reads its tasks again.
    pub(super) fn forget_unwritten(&mut self, shard: i32) -> Vec<Settlement> {
        self.writing.forget(shard)
    }

    /// Whether a settlement has to wait for a topic.
    fn must_wait(&self, settlement: &Settlement, key: Option<Fingerprint>) -> bool {
        if self.writing.unreadable.contains(&settlement.lane.source) {
            return true;
        }
        let closed = self.writing.writable.closed;
        let forms = [&settlement.entries, &settlement.otherwise];
        // Several records of commands may be over by what follows from one of them.
        let is_command = settlement.lane.source == Source::Commands;
        // What has no records is over by what another one says, which may wait.
        let is_along = is_command
            && settlement.entries.is_empty()
            && self
                .writing
                .held
                .iter()
                .any(|held| held.settlement.lane == settlement.lane);
        is_along
            || (is_command && closed.contains(Sink::Commands))
            || forms
                .into_iter()
                .any(|entries| Sinks::of(entries).meets(closed))
            || (closed.contains(Sink::Order)
                && (settlement.lane.source == Source::Commands
                    || key.is_some()
                    || self.is_ordered(settlement)
                    || !settlement.applied.is_empty()
                    || self.lanes.is_early(settlement.lane, settlement.offset)))
    }

    /// Whether the order of keys changes with a settlement.
    fn is_ordered(&self, settlement: &Settlement) -> bool {
        settlement
            .entries
            .iter()
            .filter_map(keyed)
            .any(|(name, _)| {
                let scene = self.scenes.find(name);
                scene.is_some_and(|scene| scene.ordering == Ordering::Key)
            })
    }

    /// The key of a settlement's task, where its shard keeps an order.
    fn key_of(&mut self, settlement: &Settlement) -> Option<Fingerprint> {
        let order = self.orders.get(settlement.lane.shard)?;
        if order.is_empty() {
            return None;
        }
        let (scene, key) = settlement.entries.iter().find_map(keyed)?;
        Some(Fingerprint::of(scene, key))
    }

    /// Ends a task whose record is refused, in a form that is smaller each time that is refused, too.
    fn end_refused(
        &mut self,
        now: Now,
        (settlement, bytes): (Settlement, usize),
        (sink, failure): (Sink, &Failure),
        actions: &mut Vec<Action>,
    ) {
        if let Some(id) = settlement.entries.iter().find_map(Entry::campaign) {
            let id = id.clone();
            return self.round_refused(now, (settlement.offset, bytes), &id, failure, actions);
        }
        let closing = Closing::of(&settlement, bytes);
        let Settlement {
            lane,
            entries,
            otherwise,
            mut applied,
            ..
        } = settlement;
        // What was refused is the form that was written last.
        let mut refused = if otherwise.is_empty() {
            entries
        } else {
            otherwise
        };
        // What it says of the order of its key is not so: that is written anew.
        refused.retain(|entry| {
            if let (Entry::State(State::Order(change)), Some(order)) =
                (entry, self.orders.get(lane.shard))
            {
                order.write_again(change.key);
            }
            !matches!(entry, Entry::State(State::Order(_)))
        });
        let parked = refused.iter().find_map(Entry::parked);
        let parked = parked.map(|(to, task)| (to.unwrap_or(lane.shard), Arc::clone(task)));
        let commands = refused.iter().filter_map(Entry::event);
        let mut commands = commands.filter_map(|event| event.command.clone());
        // A hold is none, and no breaker that people keep open.
        let command = commands.find(|id| !id.starts_with(HOLD) && !id.starts_with(BREAKER));
        let command = command.filter(|_| !applied.is_empty());
        let mut entries = match sink {
            Sink::Tiers => died(now, refused, failure),
            Sink::Callbacks
            | Sink::DeadLetters
            | Sink::Events
            | Sink::Alerts
            | Sink::Order
            | Sink::Commands => refused.into_iter().map(smaller).collect(),
        };
        if let Some((shard, task)) = parked {
            if task.deferral.is_some() {
                // It is not in its tier.
                self.dues.back(shard, &task.scene, task.due);
            }
            if let Some(command) = command {
                // The task has died of what the command asked for.
                entries.push(consequence::too_late(
                    &task,
                    now.wall,
                    Terminal::Dead,
                    &command,
                ));
                for applied in &mut applied {
                    applied.effect = Effect::TooLate;
                }
            }
            return self.settle_by(closing, entries, applied, actions);
        }
        // An end, which has the delivery of its callback already, or has lost it for good.
        self.note_order(closing, &entries);
        self.note_ids(closing, &mut entries);
        self.close_as_is(closing, (entries, Vec::new()), applied, actions);
    }
}

/// The scene and the key of the task that an entry parks, delivers or ends, if it is one that may go after others.
fn keyed(entry: &Entry) -> Option<(&Arc<str>, &Bytes)> {
    match entry {
        Entry::Park { task, .. } | Entry::Deliver { task, .. } => {
            Some((&task.scene, task.record.ordering_key()?))
        }
        // An empty key is none, as in the record that it came from.
        Entry::Callback(ended) => {
            let key = ended.key.as_ref().filter(|key| !key.is_empty());
            Some((&ended.scene, key?))
        }
        Entry::DeadLetter { .. }
        | Entry::Poison { .. }
        | Entry::DeliverCallback(_)
        | Entry::Event(_)
        | Entry::State(_)
        | Entry::Alert(_)
        | Entry::Control { .. } => None,
    }
}

/// The scene whose task a settlement is of, or nothing.
fn scene_of(settlement: &Settlement) -> Arc<str> {
    let mut entries = settlement.entries.iter();
    let scene = entries.find_map(|entry| match entry {
        Entry::Park { task, .. } | Entry::Deliver { task, .. } => Some(&task.scene),
        Entry::DeadLetter { ended, .. }
        | Entry::Poison { ended, .. }
        | Entry::Callback(ended)
        | Entry::DeliverCallback(ended) => Some(&ended.scene),
        Entry::Event(event) => Some(&event.scene),
        Entry::State(_) | Entry::Alert(_) | Entry::Control { .. } => None,
    });
    scene.map_or_else(|| "".into(), Arc::clone)
}

/// What follows if what is parked in `entries` dies instead: the task, or the delivery of the callback of one that has ended.
fn died(now: Now, entries: Vec<Entry>, failure: &Failure) -> Vec<Entry> {
    let parks = entries
        .iter()
        .any(|entry| matches!(entry, Entry::Park { .. }));
    let (mut all, mut task, mut wait) = (Vec::new(), None, None);
    for entry in entries {
        match entry {
            Entry::Park { task: parked, .. } => task = Some(parked),
            Entry::DeliverCallback(ended) => task = Some(Arc::new(ended.delivery())),
            // It tells that the task is parked, but for that it has taken another one's place.
            Entry::Event(event)
                if parks && !matches!(event.transition, Transition::Duplicate { .. }) =>
            {
                wait = event.wait;
            }
            Entry::Event(_)
            | Entry::Deliver { .. }
            | Entry::DeadLetter { .. }
            | Entry::Poison { .. }
            | Entry::Callback(_)
            | Entry::State(_)
            | Entry::Alert(_)
            | Entry::Control { .. } => all.push(entry),
        }
    }
    let Some(task) = task else {
        return all;
    };
    let mut task = Arc::unwrap_or_clone(task);
    task.failure = Some(failure.clone());
    let how = Ending {
        terminal: Terminal::Dead,
        reason: Some(Reason::Unwritable),
        attempts: task.attempts_made(),
        wait,
    };
    let ended = consequence::end(Arc::new(task), how, now.wall);
    all.extend(ended.into_iter().map(smaller));
    all
}

/// A dead letter without its value, or without its headers if the value is gone; anything else as it is.
fn smaller(entry: Entry) -> Entry {
    match entry {
        Entry::DeadLetter {
            mut task,
            mut ended,
        } => {
            omit(&mut ended, &mut Arc::make_mut(&mut task).record);
            Entry::DeadLetter { task, ended }
        }
        Entry::Poison {
            mut poison,
            mut ended,
        } => {
            omit(&mut ended, &mut Arc::make_mut(&mut poison).record);
            Entry::Poison { poison, ended }
        }
        Entry::Park { .. }
        | Entry::Deliver { .. }
        | Entry::Callback(_)
        | Entry::DeliverCallback(_)
        | Entry::Event(_)
        | Entry::State(_)
        | Entry::Alert(_)
        | Entry::Control { .. } => entry,
    }
}

/// Leaves out more of the record that ended.
fn omit(ended: &mut Arc<Ended>, record: &mut Record) {
    let ended = Arc::make_mut(ended);
    ended.omitted = ended.omitted.more(record);
}
