//! The engine's part in key order: which task waits for others of its key, where, and when it goes on.
//!
//! What the order is, is [`crate::key_order`]'s. Invariant: a task of an ordered scene passes [`Engine::precedence`] before each attempt, and
//! nothing that changes its key queue happens while a delivery of it is not committed.

use std::time::Duration;

use super::{Closing, Engine};
use crate::agenda::Item;
use crate::entry::Entry;
use crate::key_order::{Awaited, End, Fingerprint, Others, Parking, Shard, Standing, Waiter};
use crate::lane::{LaneId, Source};
use crate::planted::Bug;
use crate::scene::{MAX_DELAY, Ordering};
use crate::state::State;
use crate::step::{Action, Now};
use crate::task::{Kind, Task};
use crate::tier::{HORIZON, STRAIGHT};
use crate::time::Timestamp;
use crate::verdict::{self, LEAST_WAIT};
use crate::wait::Cause;
use crate::window::Ahead;

/// Tasks of one key that may wait in memory for each other: as many as end while the next ones come back from a tier. All of them, and a
/// key with many would hold the offsets of others.
const NEAR: usize = 16;

/// Least wait of a task that is parked since others of its key are before it.
const LEAST: Duration = Duration::from_secs(1);

/// Longest wait for a first one that should be back from its tier, and is not, or whose attempt is pending.
const MOST: Duration = Duration::from_mins(1);

/// Time that each task before it takes at least: one commit. So the last of many comes back a few times, not each time one ends.
const EACH: Duration = Duration::from_millis(100);

/// Whether a due task is the first of its key, and if not, what it waits for.
pub(super) enum Precedence {
    /// The task is the first, or has no key that counts, or has expired.
    First,
    /// Tasks before it may not have been read yet.
    Unread(Fingerprint),
    /// That cannot be told here: the task is to come back later.
    PutOff,
    /// A delivery of its key is not committed.
    Unsettled(Fingerprint),
    /// These tasks are before it.
    Behind(Fingerprint, Others),
    /// The task is to be ordered, and others of its key are in this shard, which is not where the task is.
    NotAtHome(i32),
}

impl Engine {
    /// A shard is ours, of whose order this is known.
    pub(super) fn begin_order(&mut self, shard: i32, order: Shard) {
        if self.bug.is(Bug::KeyOrderLostOnRevoke) {
            return;
        }
        self.orders.begin(shard, order);
    }

    /// A task was read: it has its place in the queue of its key, if there is one for it.
    pub(super) fn enter(&mut self, shard: i32, task: &Task) {
        let Some(key) = self.key_of_task(shard, task) else {
            return;
        };
        let (offset, due) = (task.origin.offset, task.wake());
        let orders = self.orders.of(shard);
        match key {
            (key, Ordering::Key) => orders.enter(key, offset, due),
            (key, Ordering::None) => orders.came_back(key, offset, due),
        }
    }

    /// The retry topic was read up to `end`.
    pub(super) fn read_to(&mut self, shard: i32, end: i64) {
        let mut woken = Vec::new();
        if let Some(order) = self.orders.get(shard) {
            order.read_to(end, &mut woken);
        }
        self.look_again(woken);
    }

    /// Gives a due task back if it is the first of its key; else it waits for those before it.
    pub(super) fn if_first(
        &mut self,
        now: Now,
        item: Item,
        actions: &mut Vec<Action>,
    ) -> Option<Item> {
        match self.precedence(now, &item) {
            Precedence::First => Some(item),
            behind @ (Precedence::Unread(_)
            | Precedence::PutOff
            | Precedence::Unsettled(_)
            | Precedence::Behind(..)
            | Precedence::NotAtHome(_)) => {
                self.wait_behind(now, item, &behind, actions);
                None
            }
        }
    }

    /// Where a due task stands among those of its key.
    pub(super) fn precedence(&mut self, now: Now, item: &Item) -> Precedence {
        let shard = item.lane.shard;
        let Some((key, Ordering::Key)) = self.key_of_task(shard, &item.task) else {
            // When its scene had no order, it may have moved.
            let home = self.home(&item.task);
            return if home == shard || self.ordering(&item.task) == Ordering::None {
                Precedence::First
            } else {
                Precedence::NotAtHome(home)
            };
        };
        // Rules may have changed since it was read.
        self.enter(shard, &item.task);
        let offset = item.task.origin.offset;
        match self.orders.of(shard).standing(key, offset) {
            Standing::First => self.is_first(key, item),
            Standing::Unsettled => Precedence::Unsettled(key),
            Standing::Behind(others) => {
                let scene = self.scenes.find(&item.task.scene);
                if scene.is_some_and(|scene| verdict::expires(scene, &item.task, now.wall)) {
                    // It expires in its place.
                    return Precedence::First;
                }
                Precedence::Behind(key, others)
            }
        }
    }

    /// Lets a task wait that is not the first of its key: here, or in a tier.
    pub(super) fn wait_behind(
        &mut self,
        now: Now,
        item: Item,
        precedence: &Precedence,
        actions: &mut Vec<Action>,
    ) {
        match *precedence {
            Precedence::First => unreachable!("the first of its key waits for nothing"),
            Precedence::Unread(key) => {
                let order = self.orders.of(item.lane.shard);
                if let Err(item) = order.hold_unread(self.latest, key, item) {
                    self.put_off(now, item, actions);
                }
            }
            Precedence::PutOff => self.put_off(now, item, actions),
            Precedence::Unsettled(key) => self.hold(now, key, item, actions),
            Precedence::Behind(key, others) => {
                if is_far(now, &item, others) || self.is_crowded(item.lane) {
                    self.park_behind(now, item, others, actions);
                } else {
                    self.hold(now, key, item, actions);
                }
            }
            Precedence::NotAtHome(_) if self.is_full() => self.wait_for_room(item),
            Precedence::NotAtHome(home) => {
                self.defer_until(now, item, Some(home), (now.wall, Cause::Order), actions);
            }
        }
    }

    /// Gives a task back if it may be parked; else the task waits here until it may.
    pub(super) fn if_settled(&mut self, item: Item) -> Option<Item> {
        let Some((key, _)) = self.key_of_task(item.lane.shard, &item.task) else {
            return Some(item);
        };
        let offset = item.task.origin.offset;
        match self.orders.of(item.lane.shard).standing(key, offset) {
            Standing::Unsettled => {
                let (now, order) = (self.latest, self.orders.of(item.lane.shard));
                order.hold(now, key, item).err()
            }
            Standing::First | Standing::Behind(_) => Some(item),
        }
    }

    /// A settlement: what it means for the order.
    pub(super) fn note_order(&mut self, closing: Closing, entries: &[Entry]) {
        let Closing { lane, offset, .. } = closing;
        let mut woken = Vec::new();
        if closing.home != lane.shard {
            return;
        }
        // What cannot be read has no place in the queue of its key, and its offset may be another task's.
        if entries
            .iter()
            .any(|entry| matches!(entry, Entry::Poison { .. }))
        {
            return;
        }
        for entry in entries {
            match entry {
                Entry::Park { task, .. } => {
                    let Some((key, _)) = self.key_of_task(lane.shard, task) else {
                        continue;
                    };
                    let orders = self.orders.of(lane.shard);
                    let parking = Parking {
                        due: task.wake(),
                        pending: task.pending_since.is_some(),
                    };
                    orders.parked(key, task.origin.offset, parking, &mut woken);
                }
                Entry::Callback(ended) => {
                    let (Some(bytes), Some(order)) = (&ended.key, self.orders.get(lane.shard))
                    else {
                        continue;
                    };
                    let key = Fingerprint::of(&ended.scene, bytes);
                    let task = ended.origin.offset;
                    let Some(decision) = order.ended(key, task) else {
                        continue;
                    };
                    let end = End {
                        key,
                        task,
                        offset,
                        decision,
                    };
                    if self.bug.is(Bug::KeyOrderUncommitted) {
                        order.committed(end, &mut woken);
                    }
                    self.lanes.add_end(lane, end);
                }
                Entry::Deliver { .. }
                | Entry::DeadLetter { .. }
                | Entry::Poison { .. }
                | Entry::DeliverCallback(_)
                | Entry::Event(_)
                | Entry::State(_)
                | Entry::Alert(_)
                | Entry::Control { .. } => {}
            }
        }
        self.look_again(woken);
    }

    /// A delivery to a topic: both forms of what follows from it get what is to be written of the order then.
    pub(super) fn deliver_in_order(
        &mut self,
        Closing { lane, offset, .. }: Closing,
        entries: &mut Vec<Entry>,
        otherwise: &mut Vec<Entry>,
    ) {
        let delivered = entries.iter().find_map(Entry::delivered);
        let parked = otherwise.iter().find_map(Entry::parked);
        let parked = parked.map(|(_, task)| task.wake());
        let Some((_, task)) = delivered else { return };
        let Some((key, _)) = self.key_of_task(lane.shard, task) else {
            return;
        };
        let task = task.origin.offset;
        let orders = self.orders.of(lane.shard);
        let Some((decision, if_taken, if_refused)) = orders.delivered(key, task, parked) else {
            return;
        };
        self.lanes.add_end(
            lane,
            End {
                key,
                task,
                offset,
                decision,
            },
        );
        let state = |change| Entry::State(State::Order(change));
        entries.extend(if_taken.map(state));
        otherwise.extend(if_refused.map(state));
    }

    /// Ends are committed: the next ones may start.
    pub(super) fn pass_on(&mut self, shard: i32, ends: Vec<End>) {
        let Some(order) = self.orders.get(shard) else {
            return;
        };
        let mut woken = Vec::new();
        for end in ends {
            order.committed(end, &mut woken);
        }
        self.look_again(woken);
    }

    /// A delivery was refused, and the other form of what follows from it is committed.
    pub(super) fn refused(&mut self, lane: LaneId, epoch: u64, offset: i64) {
        if self.lanes.is_assigned(lane, epoch) {
            self.duplicates.refused((lane, offset));
        }
        let end = self.lanes.find_end(lane, epoch, offset);
        let (Some(end), Some(order)) = (end, self.orders.get(lane.shard)) else {
            return;
        };
        let mut woken = Vec::new();
        order.refused(end, &mut woken);
        self.look_again(woken);
    }

    /// Of `awaited`, those that are in no tier: whoever waits for them goes on. Gives those that are gone: a task that is in memory now, or
    /// has ended, is not.
    pub fn forget_gone(&mut self, awaited: Vec<Awaited>) -> Vec<Awaited> {
        let mut woken = Vec::new();
        let mut gone = awaited;
        gone.retain(|awaited| {
            let order = self.orders.get(awaited.shard);
            order.is_some_and(|order| order.gone(*awaited, &mut woken))
        });
        self.look_again(woken);
        gone
    }

    /// The tasks that keys wait for, which are in tiers as far as is known and were due before the instant of their shard: whoever has read
    /// all of the tiers and has not seen them may say that they are gone ([`Self::forget_gone`]).
    pub fn awaited(&self, before: impl Fn(i32) -> Timestamp) -> Vec<Awaited> {
        self.orders.awaited(before)
    }

    /// Other rules are in force: whoever waits for others may not have to any more.
    pub(super) fn reorder(&mut self) {
        let mut woken = Vec::new();
        self.orders.wake_all(&mut woken);
        self.look_again(woken);
    }

    /// Drops the tasks of a shard that wait here.
    pub(super) fn forget_held(&mut self, shard: i32) {
        if let Some(order) = self.orders.get(shard) {
            order.forget_held();
        }
    }

    /// The key of a task whose queue it is in, or is to be, and whether its scene puts it there.
    fn key_of_task(&mut self, shard: i32, task: &Task) -> Option<(Fingerprint, Ordering)> {
        let bytes = task.record.ordering_key();
        let bytes = bytes.or_else(|| self.bug.empty_key(task));
        let bytes = bytes?;
        let ordering = self.ordering(task);
        match (ordering, task.kind) {
            (_, Kind::Callback) => return None,
            (Ordering::Key, Kind::Work) => {}
            (Ordering::None, Kind::Work) => {
                // Its scene may have been an ordered one.
                let order = self.orders.get(shard)?;
                if order.is_empty() {
                    return None;
                }
            }
        }
        if self.home(task) != shard {
            return None;
        }
        Some((Fingerprint::of(&task.scene, bytes), ordering))
    }

    /// Whether a task has to keep the order of its key.
    fn ordering(&self, task: &Task) -> Ordering {
        let scene = self.scenes.find(&task.scene);
        let key = task.record.ordering_key();
        let key = key.or_else(|| self.bug.empty_key(task));
        match (task.kind, key, scene) {
            (Kind::Work, Some(_), Some(scene)) => scene.ordering,
            (Kind::Work | Kind::Callback, _, _) => Ordering::None,
        }
    }

    /// Whether the first known task of its key is the first: not if tasks before it may not have been read.
    fn is_first(&mut self, key: Fingerprint, item: &Item) -> Precedence {
        let (shard, offset) = (item.lane.shard, item.task.origin.offset);
        let source = Source::Tasks;
        let ahead = self.lanes.ahead(LaneId { shard, source }, offset);
        match ahead.unwrap_or(Ahead::Read) {
            Ahead::Read => Precedence::First,
            Ahead::Complete => Precedence::Unread(key),
            // Somebody else has read it there and parked it here, or the retry topic was made anew. If it comes back after it was put
            // off, that was committed, and there is nobody else.
            Ahead::Unknown if self.orders.of(shard).is_listed(key, offset) => Precedence::First,
            Ahead::Unknown => Precedence::PutOff,
        }
    }

    /// Keeps a task until something happens to its key queue; one that is there twice is put off.
    fn hold(&mut self, now: Now, key: Fingerprint, item: Item, actions: &mut Vec<Action>) {
        let order = self.orders.of(item.lane.shard);
        if let Err(item) = order.hold(now.wall, key, item) {
            self.put_off(now, item, actions);
        }
    }

    /// Parks a task for a moment.
    fn put_off(&mut self, now: Now, item: Item, actions: &mut Vec<Action>) {
        let others = Others {
            count: 1,
            due: now.wall,
            is_parked: false,
            is_pending: false,
        };
        self.park_behind(now, item, others, actions);
    }

    /// Parks a task that others are before: until the first of them is due, and as long as those take at least that are before it.
    fn park_behind(&mut self, wall: Now, item: Item, others: Others, actions: &mut Vec<Action>) {
        if self.is_full() {
            return self.wait_for_room(item);
        }
        let now = wall.wall;
        let Others {
            count,
            due,
            is_parked,
            is_pending,
        } = others;
        let from = if is_pending {
            // It may end at any time: the longer this one has waited, the longer it may still have to.
            let look = now + now.since(item.task.due).min(MOST);
            look.min(due.max(now))
        } else if is_parked && due < now {
            // What is known may be old: the longer ago it was, the longer the first one may still take.
            now + now.since(due).min(MOST)
        } else {
            due.max(now)
        };
        let behind_first = u32::try_from(count - 1).unwrap_or(u32::MAX);
        let due = from + EACH.saturating_mul(behind_first);
        let due = due.max(now + LEAST).min(now + MAX_DELAY);
        let scene = self.scenes.find(&item.task.scene);
        let deadline = scene.and_then(|scene| verdict::deadline(scene, &item.task));
        // It expires in its place.
        let due = deadline.map_or(due, |deadline| due.min(deadline + LEAST_WAIT));
        self.defer_until(wall, item, None, (due, Cause::Order), actions);
    }

    /// Tasks that waited here are to be looked at.
    pub(super) fn look_again(&mut self, woken: Vec<Waiter>) {
        for waiter in woken {
            let item = waiter.go_on(self.latest);
            if self.is_met(&item) {
                self.command(item);
            } else {
                self.agenda.push(item);
            }
        }
    }
}

/// Whether a task is better parked than kept until those before it have ended.
fn is_far(now: Now, item: &Item, others: Others) -> bool {
    let Others {
        count,
        due,
        is_parked,
        is_pending: _,
    } = others;
    let most = match item.lane.source {
        // As long as a task stays in memory that comes from there.
        Source::Tasks => STRAIGHT,
        Source::Tier(_) | Source::Commands => HORIZON,
    };
    count > NEAR || due.since(now.wall) > most || (is_parked && due < now.wall)
}
