//! The engine's part in duplicates: a task whose id is under way, or has ended of late, is dropped where its scene wants that, or takes the
//! place of the one before it.
//!
//! What is known of ids is [`crate::duplicates`]'s. What a newcomer waits for before it takes a place: the call of the other task, and all that
//! was decided about their id, to be durable; in memory, one for each id. What becomes of the other task: it leaves the queue of its key with
//! the newcomer's record, and goes without a word when it is met next, wherever that is. Invariants: a task is dropped or not when it is read
//! from the retry topic, before anything else is done with it; no attempt starts of a task that is replaced; and what is known of an id is
//! written in the transaction that makes it so.

use std::collections::{BTreeMap, hash_map};
use std::mem;
use std::sync::Arc;

use super::{Closing, Engine};
use crate::agenda::Item;
use crate::campaign::Said;
use crate::consequence;
use crate::duplicates::{
    Became, Decided, Identity, Known, Mode, Newcomer, Replaced, Schedule, Told,
};
use crate::entry::{Ended, Entry, Transition};
use crate::key_order::{End, Fingerprint, Standing};
use crate::lane::{LaneId, Source};
use crate::map::Map;
use crate::outcome::Terminal;
use crate::planted::Bug;
use crate::scene::Ordering;
use crate::state::State;
use crate::step::{Action, Now, Position, Settlement};
use crate::task::{Kind, Task};
use crate::time::Timestamp;

/// Who waits before a place is taken, and after.
#[derive(Debug, Default)]
pub(super) struct Replacing {
    /// The records that are to take the place of a task, by shard and id.
    newcomers: BTreeMap<(i32, Identity), Item>,
    /// The tasks that are replaced and were met before that was durable.
    leaving: Vec<Item>,
    /// How many calls are in flight of each task that may be replaced, by shard and the offset at which it entered.
    calls: Map<(i32, i64), u32>,
    /// Whether some of them may have waited long enough.
    is_due: bool,
}

/// How a record that was read stands to the task of its id.
#[derive(Clone, Copy, Debug)]
struct Place {
    /// What its scene does with duplicates.
    mode: Mode,
    /// The id.
    id: Identity,
    /// The task that has the id, if another one does.
    taken: Option<Known>,
}

// === impl Replacing ===

impl Replacing {
    /// A call has come back that was noted.
    pub(super) fn call_returned(&mut self, shard: i32, task: &Task) {
        if let hash_map::Entry::Occupied(mut calls) = self.calls.entry((shard, task.origin.offset))
        {
            *calls.get_mut() -= 1;
            if *calls.get() == 0 {
                calls.remove();
            }
        }
    }

    /// Somebody may have waited long enough.
    pub(super) fn look_again(&mut self) {
        self.is_due = !self.newcomers.is_empty() || !self.leaving.is_empty();
    }

    /// Whether a record of a shard waits.
    pub(super) fn has_newcomer(&self, shard: i32) -> bool {
        let mut all = self.newcomers.keys();
        all.any(|(of, _)| *of == shard)
    }

    /// Takes those records out that wait to take a place.
    pub(super) fn extract(&mut self, which: impl Fn(&Item) -> bool, into: &mut Vec<Item>) {
        let met = self.newcomers.extract_if(.., |_, item| which(item));
        into.extend(met.map(|(_, item)| item));
    }

    /// Forgets a shard.
    pub(super) fn forget(&mut self, shard: i32) {
        self.newcomers.retain(|(of, _), _| *of != shard);
        self.leaving.retain(|item| item.lane.shard != shard);
    }
}

// === impl Engine ===

impl Engine {
    /// A shard is ours, of whose ids former owners have written this.
    pub(super) fn know_ids(
        &mut self,
        now: Now,
        shard: i32,
        ids: Vec<(Identity, Known)>,
        replaced: Vec<(i64, Replaced)>,
    ) {
        if self.bug.is(Bug::IdsForgotten) {
            return;
        }
        self.duplicates.begin(shard, now.wall, ids, replaced);
    }

    /// Other rules are in force: whether one of them looks for duplicates.
    pub(super) fn want_ids(&mut self) {
        let mut scenes = self.scenes.iter();
        self.duplicates.is_wanted = scenes.any(|scene| scene.duplicates.looks());
    }

    /// Whether a task that was read is a duplicate; it is dropped then.
    pub(super) fn is_dropped(
        &mut self,
        now: Now,
        position: Position,
        task: &Task,
        actions: &mut Vec<Action>,
    ) -> bool {
        let Position { lane, offset, .. } = position;
        if !self.duplicates.is_wanted || lane.source != Source::Tasks {
            return false;
        }
        let scene = self.scenes.find(&task.scene);
        let Some(rule) = scene.map(|scene| scene.duplicates) else {
            return false;
        };
        if !rule.looks() || self.duplicates.is_replaced(lane.shard, offset) {
            return false;
        }
        let id = Identity::of_task(task);
        let replaces = rule.mode.replaces();
        if task.attempt > 1 {
            let known = self.duplicates.known(lane.shard, id);
            let is_taken = known.is_some_and(|known| known.until.is_none());
            if !replaces || !is_taken {
                self.duplicates.come_back(lane.shard, id, offset);
            }
            return false;
        }
        if replaces && self.replacing.newcomers.contains_key(&(lane.shard, id)) {
            // It takes the place of the one that waits, whatever has become of the task by now.
            return false;
        }
        if replaces && self.duplicates.is_busy(lane.shard, id) {
            let known = self.duplicates.known(lane.shard, id);
            let waits = known.is_none_or(|known| match known.until {
                None => known.offset < offset,
                Some(until) => until <= now.wall,
            });
            if waits {
                // What has become of the task is not durable: it waits.
                return false;
            }
        }
        match self.duplicates.enter(now.wall, lane.shard, id, offset) {
            Newcomer::First => {
                self.keep_schedule(rule.mode, lane.shard, id, task);
                false
            }
            Newcomer::Unknown => false,
            Newcomer::Duplicate(known)
                if replaces && known.until.is_none() && known.offset < offset =>
            {
                // It takes the place of the task as soon as it may.
                false
            }
            Newcomer::Duplicate(known) => {
                let told = consequence::duplicate(task, known, "dropped", now.wall);
                // Those behind it wait until that is durable: if it is not, the id may be free when the record is read again. A former owner
                // may have listed it, too.
                self.enter(lane.shard, task);
                self.end_in_order((lane, offset), task, offset);
                if replaces {
                    // Who comes next waits for that.
                    self.duplicates.decided((lane, offset), id, None);
                }
                let closing = Closing {
                    lane,
                    offset,
                    home: lane.shard,
                    bytes: 0,
                };
                self.settle(closing, vec![told], actions);
                true
            }
        }
    }

    /// Keeps the schedule of a task that is in memory, and has its id, if its scene wants that.
    fn keep_schedule(&mut self, mode: Mode, shard: i32, id: Identity, task: &Task) {
        match mode {
            Mode::KeepDue => self.duplicates.goes_by(shard, id, Schedule::of(task)),
            Mode::Allow | Mode::Drop | Mode::Replace => {}
        }
    }

    /// Gives a record that was read back if it is a task of its own; if it takes the place of another one, it is parked at once, or waits.
    pub(super) fn if_alone(
        &mut self,
        now: Now,
        item: Item,
        actions: &mut Vec<Action>,
    ) -> Option<Item> {
        let (item, besides) = self.take_place(now, item, Vec::new(), actions)?;
        if besides.is_empty() {
            return Some(item);
        }
        let closing = self.closing(&item);
        let mut task = Arc::unwrap_or_clone(item.task);
        task.due = task.due.ceil_to_millis();
        let parked = Transition::Parked { due: task.due };
        let told = Some((parked, None));
        let parked = consequence::park(Arc::new(task), None, &self.ladder, now.wall, told);
        let entries = parked.into_iter().chain(besides).collect();
        self.settle(closing, entries, actions);
        None
    }

    /// A record that was read takes the place of the task of its id, if there is one and its scene wants that: gives it back, with what is to be
    /// written besides what becomes of it. Or lets it wait until it may.
    pub(super) fn take_place(
        &mut self,
        now: Now,
        mut item: Item,
        mut besides: Vec<Entry>,
        actions: &mut Vec<Action>,
    ) -> Option<(Item, Vec<Entry>)> {
        let Some(place) = self.place_of(&item).filter(|_| besides.is_empty()) else {
            return Some((item, besides));
        };
        let Place { mode, id, taken } = place;
        let shard = item.lane.shard;
        let waits = self.replacing.newcomers.contains_key(&(shard, id));
        let Some(known) = taken else {
            if waits || self.duplicates.is_busy(shard, id) {
                self.await_place(now, item, place, actions);
                return None;
            }
            self.duplicates.come_back(shard, id, item.offset);
            self.keep_schedule(mode, shard, id, &item.task);
            return Some((item, besides));
        };
        if known.offset > item.offset {
            // A later one was faster.
            let told = consequence::duplicate(&item.task, known, Mode::Drop.fate(), now.wall);
            let at = (item.lane, item.offset);
            self.end_in_order(at, &item.task, item.offset);
            self.duplicates.decided(at, id, None);
            self.settle_item(&item, vec![told], actions);
            return None;
        }
        if waits || self.must_await(&item, id, known) {
            self.await_place(now, item, place, actions);
            return None;
        }
        let replaced = Replaced {
            by: item.offset,
            at: now.wall.ceil_to_millis(),
        };
        if !self.duplicates.replace(shard, id, (known.offset, replaced)) {
            return Some((item, besides));
        }
        let schedule = known.schedule.filter(|_| mode == Mode::KeepDue);
        if let Some(schedule) = schedule {
            self.uncount(&item);
            item.counted = false;
            if !self.bug.is(Bug::KeepDueMoved) {
                schedule.put(Arc::make_mut(&mut item.task));
            }
            item.wake = item.task.wake();
        }
        self.keep_schedule(mode, shard, id, &item.task);
        let at = (item.lane, item.offset);
        self.end_in_order(at, &item.task, known.offset);
        self.duplicates.decided(at, id, Some(known.offset));
        let fate = schedule.map_or(Mode::Replace, |_| mode).fate();
        if !self.bug.is(Bug::ReplacedUnwritten) {
            besides.push(Entry::State(State::Replaced {
                task: known.offset,
                replaced: Some(replaced),
            }));
        }
        besides.push(consequence::replaces(
            &item.task,
            known.offset,
            fate,
            now.wall,
        ));
        Some((item, besides))
    }

    /// How a record stands to the task of its id, if its scene replaces, and it does not have the id itself.
    fn place_of(&self, item: &Item) -> Option<Place> {
        let task = &item.task;
        let is_new = item.lane.source == Source::Tasks && task.attempt == 1;
        if !self.duplicates.is_wanted || !is_new || task.kind != Kind::Work {
            return None;
        }
        let mode = self.scenes.find(&task.scene)?.duplicates.mode;
        if !mode.replaces() || self.home(task) != item.lane.shard {
            return None;
        }
        let id = Identity::of_task(task);
        let known = self.duplicates.known(item.lane.shard, id);
        if known.is_some_and(|known| known.offset == item.offset) {
            return None;
        }
        let taken = known.filter(|known| known.until.is_none());
        Some(Place { mode, id, taken })
    }

    /// A call of a task starts: nothing takes its place before it is back. Whether that is noted: where no id is known, nothing takes any.
    pub(super) fn note_call(&mut self, shard: i32, task: &Task) -> bool {
        let is_noted = task.kind == Kind::Work && !self.duplicates.is_idle();
        if is_noted {
            let calls = self.replacing.calls.entry((shard, task.origin.offset));
            *calls.or_default() += 1;
        }
        is_noted
    }

    /// Whether the place of a task cannot be taken now.
    fn must_await(&mut self, item: &Item, id: Identity, known: Known) -> bool {
        let shard = item.lane.shard;
        if self.is_full() {
            self.replacing.is_due = true;
            return true;
        }
        let is_called = self.replacing.calls.contains_key(&(shard, known.offset));
        if is_called || self.duplicates.is_busy(shard, id) {
            return true;
        }
        let (Some(bytes), Some(order)) = (item.task.record.ordering_key(), self.orders.get(shard))
        else {
            return false;
        };
        let key = Fingerprint::of(&item.task.scene, bytes);
        order.standing(key, item.offset) == Standing::Unsettled
    }

    /// A record waits until it may take the place of the task of its id. Of two that wait, the later one does.
    fn await_place(&mut self, now: Now, item: Item, place: Place, actions: &mut Vec<Action>) {
        let at = (item.lane.shard, place.id);
        let later = Arc::clone(&item.task);
        let Some(before) = self.replacing.newcomers.insert(at, item) else {
            return;
        };
        let told = consequence::replaces(&later, before.offset, place.mode.fate(), now.wall);
        let at = (before.lane, before.offset);
        self.end_in_order(at, &before.task, before.offset);
        // Who takes the place waits for that, too.
        self.duplicates.decided(at, place.id, None);
        self.settle_item(&before, vec![told], actions);
    }

    /// The task that entered at `replaced` leaves the queue of its key, as a consequence of the offset of `task`, which has its id.
    fn end_in_order(&mut self, (lane, offset): (LaneId, i64), task: &Task, replaced: i64) {
        let scene = self.scenes.find(&task.scene);
        let is_ordered = scene.is_some_and(|scene| scene.ordering == Ordering::Key);
        let Some(order) = self.orders.get(lane.shard).filter(|_| is_ordered) else {
            return;
        };
        let bytes = task.record.ordering_key();
        let guess = bytes.map(|bytes| Fingerprint::of(&task.scene, bytes));
        let Some(key) = order.key_of(guess, replaced) else {
            return;
        };
        self.replacing
            .leaving
            .extend(order.take_held(key, replaced, self.latest));
        if let Some(decision) = order.ended(key, replaced) {
            let end = End {
                key,
                task: replaced,
                offset,
                decision,
            };
            self.lanes.add_end(lane, end);
        }
    }

    /// A settlement that takes the place of a task is not written as it is: that task leaves the queue of its key at once.
    pub(super) fn leave_order_at_once(&mut self, settlement: &Settlement) {
        let states = settlement.entries.iter().filter_map(Entry::state);
        let mut replaced = states.filter_map(State::replaced);
        let (Some(task), Some(order)) = (replaced.next(), self.orders.get(settlement.lane.shard))
        else {
            return;
        };
        let mut woken = Vec::new();
        order.leave(task, &mut woken);
        self.look_again(woken);
    }

    /// Whether a task is replaced by another one of its id.
    pub(super) fn is_replaced(&self, item: &Item) -> bool {
        let (shard, task) = (item.lane.shard, &item.task);
        !self.duplicates.is_idle()
            && task.kind == Kind::Work
            && self.duplicates.is_replaced(shard, task.origin.offset)
            && self.home(task) == shard
            && !self.bug.is(Bug::ReplacedAttempted)
    }

    /// A task that is replaced is met: it goes without a word, which was said when it was replaced. Or it waits until that is durable.
    pub(super) fn leave_replaced(&mut self, item: Item, actions: &mut Vec<Action>) {
        let (shard, task) = (item.lane.shard, item.task.origin.offset);
        if !self.duplicates.goes(shard, task) {
            self.replacing.leaving.push(item);
            return;
        }
        self.forget_met(&item);
        self.leave_exhausted(shard, &item.task);
        let replaced = None;
        let gone = Entry::State(State::Replaced { task, replaced });
        // To a campaign it is as if somebody had cancelled it.
        let said = Said::end(Terminal::Cancelled);
        let report = consequence::report(&item.task, said);
        let entries = [gone].into_iter().chain(report).collect();
        self.settle_item(&item, entries, actions);
    }

    /// Lets those go on that have waited for something to be durable.
    pub(super) fn follow_replacing(&mut self, now: Now, actions: &mut Vec<Action>) {
        if !mem::take(&mut self.replacing.is_due) {
            return;
        }
        for item in mem::take(&mut self.replacing.leaving) {
            if self.is_full() {
                self.replacing.leaving.push(item);
                self.replacing.is_due = true;
            } else {
                self.leave_replaced(item, actions);
            }
        }
        for (at, item) in mem::take(&mut self.replacing.newcomers) {
            if self.is_full() {
                self.replacing.newcomers.insert(at, item);
                self.replacing.is_due = true;
            } else if self.bug.is(Bug::PayloadForgotten) {
                self.settle_item(&item, Vec::new(), actions);
            } else if self.meets(&item) {
                self.command(item);
            } else {
                self.ingest(now, item, actions);
            }
        }
    }

    /// When somebody is to be looked at who waits, if nothing else happens before.
    pub(super) fn next_replacing(&self, room: bool) -> Option<Timestamp> {
        (room && self.replacing.is_due).then_some(self.latest)
    }

    /// A settlement goes into the batch: what was decided about its id is durable with that.
    pub(super) fn note_decided(&mut self, lane: LaneId, offset: i64) {
        if !self.duplicates.is_idle() {
            let (given, _) = self.lanes.batches(lane);
            self.duplicates.submitted((lane, offset), given + 1);
        }
    }

    /// That a task is not replaced any more was to be written, and was not.
    pub(super) fn mark_unwritten(&mut self, shard: i32, task: i64) {
        if self.has(shard) {
            self.duplicates.mark_unwritten(shard, task);
        }
    }

    /// A settlement: what it means for the id of its task is written with it.
    pub(super) fn note_ids(&mut self, closing: Closing, entries: &mut Vec<Entry>) {
        if self.duplicates.is_idle() || closing.home != closing.lane.shard {
            return;
        }
        let Some(decided) = self.decided(closing, entries) else {
            return;
        };
        let has_ended = matches!(decided.became, Became::Ended(_));
        if decided.replaces || has_ended {
            let at = (closing.lane, closing.offset);
            self.duplicates.decided(at, decided.id, None);
        }
        if let Some(state) = self.duplicates.became(closing.lane.shard, decided) {
            let is_lost = decided.became == Became::Parked && self.bug.is(Bug::IdUnwritten);
            if !is_lost {
                entries.push(Entry::State(state));
            }
        }
    }

    /// A delivery to a topic: both forms of what follows from it get what is known of its id then.
    pub(super) fn deliver_ids(
        &mut self,
        closing: Closing,
        entries: &mut Vec<Entry>,
        otherwise: &mut Vec<Entry>,
    ) {
        if self.duplicates.is_idle() || closing.home != closing.lane.shard {
            return;
        }
        let taken = self.decided(closing, entries);
        let refused = self.decided(closing, otherwise);
        let (Some(taken), Some(refused)) = (taken, refused) else {
            return;
        };
        if taken.replaces {
            let at = (closing.lane, closing.offset);
            self.duplicates.decided(at, taken.id, None);
        }
        if self.duplicates.delivers(closing.lane.shard, taken) {
            for (entries, decided) in [(entries, taken), (otherwise, refused)] {
                let (id, known) = (decided.id, decided.known());
                entries.push(Entry::State(State::Id { id, known }));
            }
        }
    }

    /// A delivery goes into the batch: which of both has become of it is known when that is over.
    pub(super) fn note_delivery(&mut self, settlement: &Settlement) {
        let Settlement {
            lane,
            offset,
            entries,
            otherwise,
            ..
        } = settlement;
        if self.duplicates.is_idle() || otherwise.is_empty() {
            return;
        }
        let state = |entries: &[Entry]| {
            let mut states = entries.iter().filter_map(Entry::state);
            states.find_map(State::id)
        };
        let delivered = entries.iter().find_map(Entry::delivered);
        let (Some((_, task)), Some((id, if_taken)), Some((_, if_refused))) =
            (delivered, state(entries), state(otherwise))
        else {
            return;
        };
        let (given, _) = self.lanes.batches(*lane);
        let told = Told {
            id,
            task: task.origin.offset,
            if_taken,
            if_refused,
        };
        self.duplicates.delivered((*lane, *offset), given + 1, told);
    }

    /// What was to be written of an id that is forgotten was not.
    pub(super) fn id_unwritten(&mut self, shard: i32, id: Identity) {
        if self.has(shard) {
            self.duplicates.unwritten(shard, id);
        }
    }

    /// What is to be written of ids that are forgotten.
    pub(super) fn id_changes(&mut self, states: &mut Vec<(i32, State)>) {
        states.append(&mut self.duplicates.changes());
    }

    /// Lets the offsets of shards be committed beside what is to be written of ids: nothing is written that goes with none.
    pub(super) fn touch_forgotten_ids(&mut self) {
        for shard in self.duplicates.forgotten() {
            self.lanes.touch(shard);
        }
    }

    /// How many ids are known that are under way, or have ended of late.
    pub fn known_ids(&self) -> usize {
        self.duplicates.len()
    }

    /// How many tasks there were so far whose ids are not known since there was no room: duplicates of theirs are tasks like any other.
    pub const fn unknown_ids(&self) -> u64 {
        self.duplicates.unknown()
    }

    /// The bytes that is known of ids takes.
    pub(super) fn id_bytes(&self) -> usize {
        self.duplicates.bytes()
    }

    /// What the entries of a settlement say of a task of the shard, if they are about one.
    fn decided(&self, closing: Closing, entries: &[Entry]) -> Option<Decided> {
        // What cannot be read has no place among the ids: it may name one that another task has.
        if entries
            .iter()
            .any(|entry| matches!(entry, Entry::Poison { .. }))
        {
            return None;
        }
        entries.iter().find_map(|entry| {
            if let Some((to, task)) = entry.parked().filter(|(_, task)| task.kind == Kind::Work) {
                let scene = self.scenes.find(&task.scene);
                let rule = scene.map(|scene| scene.duplicates).unwrap_or_default();
                let stays = to.is_none_or(|to| to == closing.lane.shard);
                let keeps = rule.mode == Mode::KeepDue && stays;
                return Some(Decided {
                    id: Identity::of_task(task),
                    offset: task.origin.offset,
                    became: if stays { Became::Parked } else { Became::Gone },
                    is_wanted: rule.looks() && stays,
                    replaces: rule.mode.replaces(),
                    schedule: keeps.then(|| Schedule::of(task)),
                });
            }
            let ended = entry.ended()?;
            let until = self.known_until(ended);
            let scene = self.scenes.find(&ended.scene);
            Some(Decided {
                id: Identity::of(&ended.scene, &ended.id),
                offset: ended.origin.offset,
                became: until.map_or(Became::Gone, Became::Ended),
                is_wanted: until.is_some(),
                replaces: scene.is_some_and(|scene| scene.duplicates.mode.replaces()),
                schedule: None,
            })
        })
    }

    /// Until when the id of a task that has ended is known, if it is: what has ended badly may be produced again at once.
    fn known_until(&self, ended: &Ended) -> Option<Timestamp> {
        let rule = self.scenes.find(&ended.scene)?.duplicates;
        let is_kept = match ended.terminal {
            Terminal::Delivered | Terminal::Cancelled => true,
            Terminal::Dead | Terminal::Expired => false,
        };
        if !is_kept || !rule.looks() || rule.window.is_zero() {
            return None;
        }
        let window = if self.bug.is(Bug::DuplicateWindowShort) {
            rule.window / 1_000
        } else {
            rule.window
        };
        Some((ended.at + window).ceil_to_millis())
    }
}
