//! The engine's part in writing: what becomes of a batch that was not written, and what waits for a topic that takes no records.
//!
//! Whether a topic takes records is the shell's to find out. Invariants: an offset whose consequence is not durable is open again, or still
//! is; a settlement that waits keeps its place in the order of its key; no call starts whose end could not be written.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use super::{Action, Closing, Engine, Now, Settlement};
use crate::consequence::{self, End as Ending};
use crate::entry::{Ended, Entry, Omitted, Transition};
use crate::lane::LaneId;
use crate::order::{End, Fingerprint};
use crate::outcome::{Reason, Terminal};
#[cfg(feature = "planted")]
use crate::planted::Bug;
use crate::scene::{Ordering, Scene};
use crate::task::Failure;

/// What records are written to, as far as it makes a difference to what may be done while one of them takes none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sink {
    /// All tiers: as long as one takes records, it stands in for the others.
    Tiers,
    /// The callbacks topic.
    Callbacks,
    /// The dead-letters topic.
    DeadLetters,
    /// The events topic.
    Events,
    /// The alerts topic.
    Alerts,
    /// The order topic.
    Order,
}

/// A set of [`Sink`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sinks(u8);

/// What can be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Writable {
    /// What takes no records.
    pub closed: Sinks,
    /// Whether nothing has been committed for so long that nothing more is to be started.
    pub stuck: bool,
    /// Most settlements of a batch, so that it fits the time it has.
    pub batch_tasks: usize,
    /// Most bytes of the tasks of a batch, likewise.
    pub batch_bytes: usize,
}

/// A batch that was not written.
#[derive(Clone, Debug, Default)]
pub struct Returned {
    /// The lanes of its commits, with their epochs.
    pub lanes: Vec<(LaneId, u64)>,
    /// What stood in it, and what is to become of that.
    pub settlements: Vec<(Settlement, Fate)>,
    /// What stood in it of the order of keys besides, by shard.
    pub changes: Vec<(i32, Fingerprint)>,
}

/// What is to become of a settlement that was not written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It is written again as it is, as soon as that is possible.
    Again,
    /// Its task's record is refused, and will be the next time: the task ends.
    Refused(Failure),
}

/// What is not written yet.
#[derive(Debug, Default)]
pub(super) struct Writing {
    /// What can be written.
    writable: Writable,
    /// Settlements to be written again, as soon as there is room.
    again: VecDeque<Unwritten>,
    /// Settlements that wait for a topic.
    held: VecDeque<Unwritten>,
    /// How many of those each scene has.
    scenes: BTreeMap<Arc<str>, usize>,
}

/// A settlement that is not written; its offset is open.
#[derive(Debug)]
struct Unwritten {
    /// The settlement.
    settlement: Settlement,
    /// The bytes it holds.
    weight: usize,
    /// What it means for the order of its key.
    end: Option<End>,
    /// Its key, of which nothing may be written before.
    key: Option<Fingerprint>,
}

// === impl Settlement ===

impl Settlement {
    /// Whether a call was made whose answer it follows from.
    pub fn is_of_call(&self) -> bool {
        self.entries.iter().any(|entry| {
            let Entry::Event(event) = entry else {
                return false;
            };
            match event.transition {
                Transition::Failed { .. } => true,
                Transition::Ended { attempts, .. } => attempts > 0 && self.otherwise.is_empty(),
                Transition::Parked { .. }
                | Transition::Hopped { .. }
                | Transition::Deferred { .. } => false,
            }
        })
    }

    /// The bytes of the task that it is of, as far as it still has them.
    pub fn weight(&self) -> usize {
        let mut entries = self.entries.iter();
        let task = entries.find_map(|entry| match entry {
            Entry::Park { task, .. }
            | Entry::Deliver { task, .. }
            | Entry::DeadLetter { task, .. } => Some(task),
            Entry::Poison { .. }
            | Entry::Callback(_)
            | Entry::DeliverCallback(_)
            | Entry::Event(_)
            | Entry::Order(_)
            | Entry::Alert(_) => None,
        });
        task.map_or(0, |task| task.weight())
    }
}

// === impl Sinks ===

impl Sinks {
    /// No sink.
    pub const NONE: Self = Self(0);

    /// With `sink` in it.
    #[must_use]
    pub const fn with(self, sink: Sink) -> Self {
        Self(self.0 | 1 << sink as u8)
    }

    /// Whether `sink` is in it.
    pub const fn contains(self, sink: Sink) -> bool {
        self.0 & 1 << sink as u8 != 0
    }

    /// Whether it is empty.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Whether any sink is in both.
    pub const fn meets(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    /// What `entries` are written to.
    pub fn of(entries: &[Entry]) -> Self {
        let mut sinks = Self::NONE;
        for entry in entries {
            sinks = match entry {
                Entry::Park { .. } | Entry::DeliverCallback(_) => sinks.with(Sink::Tiers),
                // A topic that is not retide's has a second form of what follows.
                Entry::Deliver { .. } => sinks,
                Entry::DeadLetter { ended, .. } | Entry::Poison { ended, .. } => {
                    let sinks = sinks.with(Sink::DeadLetters);
                    match ended.terminal {
                        // One alert tells of all that died in a batch.
                        Terminal::Dead => sinks.with(Sink::Alerts),
                        Terminal::Delivered | Terminal::Expired => sinks,
                    }
                }
                Entry::Callback(_) => sinks.with(Sink::Callbacks),
                Entry::Event(_) => sinks.with(Sink::Events),
                Entry::Order(_) => sinks.with(Sink::Order),
                Entry::Alert(_) => sinks.with(Sink::Alerts),
            };
        }
        sinks
    }
}

// === impl Writable ===

impl Default for Writable {
    /// Everything.
    fn default() -> Self {
        Self {
            closed: Sinks::NONE,
            stuck: false,
            batch_tasks: usize::MAX,
            batch_bytes: usize::MAX,
        }
    }
}

// === impl Writing ===

impl Writing {
    /// Whether something is to be written again.
    pub(super) fn has_more(&self) -> bool {
        !self.again.is_empty()
    }

    /// Most settlements, and bytes of them, of a batch.
    pub(super) const fn most(&self) -> (usize, usize) {
        (self.writable.batch_tasks, self.writable.batch_bytes)
    }

    /// Keeps a settlement until its topics take records.
    fn hold(&mut self, unwritten: Unwritten) {
        let scene = scene_of(&unwritten.settlement);
        *self.scenes.entry(scene).or_default() += 1;
        self.held.push_back(unwritten);
    }

    /// Drops what belongs to a shard.
    fn forget(&mut self, shard: i32) {
        self.again
            .retain(|unwritten| unwritten.settlement.lane.shard != shard);
        let held = std::mem::take(&mut self.held);
        self.scenes.clear();
        for unwritten in held {
            if unwritten.settlement.lane.shard != shard {
                self.hold(unwritten);
            }
        }
    }

    /// The keys of which nothing may be written, by shard.
    fn keys(&self) -> BTreeSet<(i32, Fingerprint)> {
        let all = self.again.iter().chain(&self.held);
        all.filter_map(|unwritten| Some((unwritten.settlement.lane.shard, unwritten.key?)))
            .collect()
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
        if before.closed != writable.closed {
            self.writing.again.append(&mut self.writing.held);
            self.writing.scenes.clear();
        }
        self.ask_all_at(now.wall);
    }

    /// Whether what follows from a call of `scene` could be written.
    pub(super) fn can_be_written(&self, scene: &Scene) -> bool {
        let Writable { closed, stuck, .. } = self.writing.writable;
        if !stuck && closed.is_empty() {
            return true;
        }
        #[cfg(feature = "planted")]
        if self.bug == Bug::CalledUnwritable {
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
        if closed.contains(Sink::Order) && scene.ordering == Ordering::Key {
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
        } = returned;
        let mut ends = BTreeMap::new();
        let mut ours = BTreeSet::new();
        for (id, epoch) in lanes {
            let Some(lane) = self.lanes.get_mut(&id).filter(|lane| lane.epoch == epoch) else {
                continue;
            };
            lane.dirty = true;
            ours.insert(id);
            let committed = lane.ends.committed().into_iter();
            ends.extend(committed.map(|end| ((id, end.offset), end)));
        }
        for (shard, key) in changes {
            if let Some(order) = self.orders.get(shard) {
                order.write_again(key);
            }
        }
        for (settlement, fate) in settlements {
            let id = settlement.lane;
            if !ours.contains(&id) {
                continue;
            }
            let weight = settlement.weight();
            self.held += weight;
            let lane = self.lane(id);
            lane.held += weight;
            lane.window.reopen(settlement.offset);
            let end = ends.remove(&(id, settlement.offset));
            match fate {
                Fate::Again => {
                    let key = self.key_of(&settlement);
                    self.writing.again.push_back(Unwritten {
                        settlement,
                        weight,
                        end,
                        key,
                    });
                }
                Fate::Refused(failure) => {
                    self.end_refused(now, settlement, weight, &failure, actions);
                }
            }
        }
    }

    /// Writes again what can be, at most `most` of it.
    pub(super) fn write_again(&mut self, most: usize, actions: &mut Vec<Action>) {
        for _ in 0..most {
            if self.is_full() {
                return;
            }
            let Some(unwritten) = self.writing.again.pop_front() else {
                return;
            };
            if self.must_wait(&unwritten.settlement) {
                self.writing.hold(unwritten);
                continue;
            }
            let Unwritten {
                settlement,
                weight,
                end,
                key: _,
            } = unwritten;
            let lane = self.lane(settlement.lane);
            if let Some(end) = end {
                lane.ends.add(end);
            }
            self.write(weight, settlement, actions);
        }
    }

    /// Gives a new settlement back if it can be written; else its offset stays open.
    pub(super) fn if_writable(
        &mut self,
        weight: usize,
        settlement: Settlement,
    ) -> Option<Settlement> {
        if self.writing.writable.closed.is_empty() || !self.must_wait(&settlement) {
            return Some(settlement);
        }
        let lane = self.lane(settlement.lane);
        let end = lane.ends.take(settlement.offset);
        let key = self.key_of(&settlement);
        self.writing.hold(Unwritten {
            settlement,
            weight,
            end,
            key,
        });
        None
    }

    /// The keys of which nothing may be written now, by shard; none is asked where the order topic takes no records.
    pub(super) fn unwritten_keys(&self) -> Option<BTreeSet<(i32, Fingerprint)>> {
        if self.writing.writable.closed.contains(Sink::Order) {
            return None;
        }
        Some(self.writing.keys())
    }

    /// Drops what is not written of a shard that is given away: the next owner reads its tasks again.
    pub(super) fn forget_unwritten(&mut self, shard: i32) {
        self.writing.forget(shard);
    }

    /// Whether a settlement has to wait for a topic.
    fn must_wait(&self, settlement: &Settlement) -> bool {
        let closed = self.writing.writable.closed;
        let forms = [&settlement.entries, &settlement.otherwise];
        forms
            .into_iter()
            .any(|entries| Sinks::of(entries).meets(closed))
            || (closed.contains(Sink::Order) && self.is_ordered(settlement))
    }

    /// Whether the order of keys changes with a settlement.
    fn is_ordered(&self, settlement: &Settlement) -> bool {
        settlement.entries.iter().any(|entry| {
            let (scene, key) = match entry {
                Entry::Park { task, .. } | Entry::Deliver { task, .. } => {
                    (&task.scene, &task.record.key)
                }
                Entry::Callback(ended) => (&ended.scene, &ended.key),
                Entry::DeadLetter { .. }
                | Entry::Poison { .. }
                | Entry::DeliverCallback(_)
                | Entry::Event(_)
                | Entry::Order(_)
                | Entry::Alert(_) => return false,
            };
            let scene = self.scenes.find(scene);
            key.is_some() && scene.is_some_and(|scene| scene.ordering == Ordering::Key)
        })
    }

    /// The key of a settlement's task, where its shard keeps an order.
    fn key_of(&mut self, settlement: &Settlement) -> Option<Fingerprint> {
        let order = self.orders.get(settlement.lane.shard)?;
        if order.is_empty() {
            return None;
        }
        settlement.entries.iter().find_map(|entry| {
            let (scene, key) = match entry {
                Entry::Park { task, .. } | Entry::Deliver { task, .. } => {
                    (&task.scene, &task.record.key)
                }
                Entry::Callback(ended) => (&ended.scene, &ended.key),
                Entry::DeadLetter { .. }
                | Entry::Poison { .. }
                | Entry::DeliverCallback(_)
                | Entry::Event(_)
                | Entry::Order(_)
                | Entry::Alert(_) => return None,
            };
            Some(Fingerprint::of(scene, key.as_ref()?))
        })
    }

    /// Ends a task whose record is refused, in a form that is smaller each time that is refused, too.
    fn end_refused(
        &mut self,
        now: Now,
        settlement: Settlement,
        weight: usize,
        failure: &Failure,
        actions: &mut Vec<Action>,
    ) {
        let Settlement {
            lane,
            offset,
            home,
            entries,
            otherwise,
        } = settlement;
        let closing = Closing {
            lane,
            offset,
            home,
            weight,
        };
        // What was refused is the form that was written last.
        let refused = if otherwise.is_empty() {
            entries
        } else {
            otherwise
        };
        let entries = if has_letter(&refused) {
            refused.into_iter().map(smaller).collect()
        } else {
            died(now, refused, failure)
        };
        self.settle(closing, entries, actions);
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
        Entry::Order(_) | Entry::Alert(_) => None,
    });
    scene.map_or_else(|| "".into(), Arc::clone)
}

/// What follows if a task dies instead of what is in `entries`.
fn died(now: Now, entries: Vec<Entry>, failure: &Failure) -> Vec<Entry> {
    let (mut task, mut wait, mut alerts) = (None, None, Vec::new());
    for entry in entries {
        match entry {
            Entry::Park { task: parked, .. } => task = Some(parked),
            Entry::DeliverCallback(ended) => task = Some(Arc::new(ended.delivery())),
            Entry::Event(event) => wait = event.wait,
            Entry::Alert(_) => alerts.push(entry),
            Entry::Deliver { .. }
            | Entry::DeadLetter { .. }
            | Entry::Poison { .. }
            | Entry::Callback(_)
            | Entry::Order(_) => {}
        }
    }
    let Some(task) = task else {
        // Nothing of a producer's was in it.
        return alerts;
    };
    let mut task = Arc::unwrap_or_clone(task);
    task.failure = Some(failure.clone());
    let how = Ending {
        terminal: Terminal::Dead,
        reason: Some(Reason::Unwritable),
        attempts: task.attempt.saturating_sub(1),
        wait,
    };
    let ended = consequence::end(Arc::new(task), how, now.wall);
    ended.into_iter().map(smaller).chain(alerts).collect()
}

/// Whether a dead letter is among `entries`.
fn has_letter(entries: &[Entry]) -> bool {
    let is_letter =
        |entry: &Entry| matches!(entry, Entry::DeadLetter { .. } | Entry::Poison { .. });
    entries.iter().any(is_letter)
}

/// A dead letter without its value, or without its headers if the value is gone; anything else as it is.
fn smaller(entry: Entry) -> Entry {
    match entry {
        Entry::DeadLetter {
            mut task,
            mut ended,
        } => {
            let record = &mut Arc::make_mut(&mut task).record;
            record.value = None;
            if omit(&mut ended) == Omitted::Record {
                record.headers.clear();
            }
            Entry::DeadLetter { task, ended }
        }
        Entry::Poison {
            mut poison,
            mut ended,
        } => {
            let record = &mut Arc::make_mut(&mut poison).record;
            record.value = None;
            if omit(&mut ended) == Omitted::Record {
                record.headers.clear();
            }
            Entry::Poison { poison, ended }
        }
        Entry::Park { .. }
        | Entry::Deliver { .. }
        | Entry::Callback(_)
        | Entry::DeliverCallback(_)
        | Entry::Event(_)
        | Entry::Order(_)
        | Entry::Alert(_) => entry,
    }
}

/// Leaves out more of the record that ended.
fn omit(ended: &mut Arc<Ended>) -> Omitted {
    let ended = Arc::make_mut(ended);
    ended.omitted = ended.omitted.more();
    ended.omitted
}
