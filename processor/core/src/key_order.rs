//! Key order: which of the tasks with the same key may start, and what of that has to outlive its owner.
//!
//! Not the tasks that start, which the engine keeps. In each shard, a key that has outstanding tasks has a queue of them, by their offsets
//! in the retry topic; only the first may start, and it is first until its end is *committed*. What is parked would be forgotten by the
//! next owner, so that the offsets of a queue's parked tasks are written to a compacted topic whenever they change; what is in memory is read
//! again anyway. Invariant: a queue exists only while it has tasks, and what is written for it names exactly those that are parked, or were
//! before they came into memory.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::fmt;
use std::mem;

use bytes::Bytes;
use thiserror::Error;
use xxhash_rust::xxh3::{xxh3_64, xxh3_128_with_seed};

use crate::agenda::Item;
use crate::lane::LaneId;
use crate::task::Origin;
use crate::time::Timestamp;

/// What stands for a scene and a key: of fixed length, whatever producers use as keys. It is written down, so it never changes.
///
/// Two keys with the same fingerprint, which nobody sees by chance, would be ordered as one: later than they had to, never wrongly.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fingerprint(u128);

/// What is to be written for a key: the record's key and value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The key.
    pub key: Fingerprint,
    /// The outstanding tasks of the key that are parked; none if there are none, which is a tombstone.
    pub value: Option<Bytes>,
}

/// Why a record of the order topic is passed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Unreadable {
    /// A key that is no fingerprint.
    #[error("its key is no fingerprint of a key")]
    Key,
    /// A value of another version than this program writes.
    #[error("its value has the unknown version {0}")]
    Version(u8),
    /// A value that ends in the middle.
    #[error("its value ends in the middle")]
    Short,
    /// A number of more than 64 bits.
    #[error("its value holds a number that is too large")]
    TooLarge,
    /// Offsets that do not rise.
    #[error("the offsets in its value do not rise")]
    NotRising,
}

/// The order of one shard's tasks.
#[derive(Clone, Debug, Default)]
pub struct Shard {
    /// The keys that have outstanding tasks.
    queues: HashMap<Fingerprint, KeyQueue>,
    /// First tasks that wait until the retry topic is read beyond them.
    unread: BTreeSet<(i64, Fingerprint)>,
    /// The keys that are to be written.
    changed: BTreeSet<Fingerprint>,
    /// How many tasks stand in them.
    tasks: usize,
    /// How many decisions there were.
    decisions: u64,
}

/// The outstanding tasks of one key.
#[derive(Clone, Debug, Default)]
struct KeyQueue {
    /// The tasks, by their offsets in the retry topic.
    tasks: VecDeque<Outstanding>,
}

/// A task that has not ended durably.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Outstanding {
    /// The offset of the task in the retry topic.
    offset: i64,
    /// When it was due when it was last heard of.
    due: Timestamp,
    /// Where it is.
    location: Location,
    /// Whether the next owner has to be told of it: it was parked at some time, and has not ended.
    listed: bool,
    /// Whether its attempt was pending when it was parked last, so that it may end long before it is due.
    pending: bool,
}

/// Where an outstanding task is.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Location {
    /// In a tier, by this decision; the first one if a former owner has made it.
    Parked(Decision),
    /// In memory, somewhere in the engine.
    Memory,
    /// In memory, and here until something happens to its queue.
    Held(Box<Waiter>),
    /// The task has ended by this decision, which is not committed yet.
    Ended(Decision),
    /// The task was delivered to a topic by this decision, which is not committed yet; it has ended, too, if the topic refuses the record.
    Delivered(Decision),
    /// As [`Self::Delivered`], but if the topic refuses it, it is parked until its due time.
    DeliveredOrParked(Decision),
}

/// A task that waits here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Waiter {
    /// The task.
    item: Item,
    /// Since when it waits.
    since: Timestamp,
}

/// How a task is parked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Parking {
    /// Until when.
    pub(crate) due: Timestamp,
    /// Whether its attempt is pending.
    pub(crate) pending: bool,
}

/// Tells decisions about tasks apart: what a topic refused may be back, and have ended, before its owner hears that it was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Decision(u64);

/// Whether a task may start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// No other one is before it.
    First,
    /// What is to be written for its queue depends on a delivery that is not committed yet: nothing that changes it may happen before.
    Unsettled,
    /// Others are before it.
    Behind(Others),
}

/// The tasks before one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Others {
    /// How many they are.
    pub count: usize,
    /// When the first one is due, as far as is known: a former owner may have put it off.
    pub due: Timestamp,
    /// Whether the first one is in a tier, and not in memory.
    pub is_parked: bool,
    /// Whether its attempt is pending: nobody knows when that ends, but at the latest when it is due.
    pub is_pending: bool,
}

/// The first task of a key, which is in a tier as far as is known, and which the next ones of the key wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Awaited {
    /// The shard.
    pub shard: i32,
    /// The key.
    pub key: Fingerprint,
    /// The task's offset in the retry topic.
    pub offset: i64,
    /// By which decision it is there: one that was parked once more is somewhere else.
    decision: Decision,
}

/// An end that is not committed yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct End {
    /// The key.
    pub(crate) key: Fingerprint,
    /// The task's offset in the retry topic.
    pub(crate) task: i64,
    /// The offset of the lane whose consequence it is.
    pub(crate) offset: i64,
    /// The decision.
    pub(crate) decision: Decision,
}

/// The ends in one lane that are not committed yet: a group for each batch under way, and those of the batch being collected.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ends {
    /// Of batches under way, oldest first.
    under_way: VecDeque<Vec<End>>,
    /// Of the batch being collected.
    collecting: Vec<End>,
}

/// The order of all shards of a worker.
#[derive(Clone, Debug, Default)]
pub(crate) struct Orders {
    /// The shards in which there are ordered tasks.
    shards: BTreeMap<i32, Shard>,
}

/// The version of the values written.
const VERSION: u8 = 1;

/// The version of those in which an attempt is pending: it is said of each task whether its is. Only who knows what that is meets them.
const WITH_PENDING: u8 = 2;

/// Most bytes of a value: what brokers take in any case, less some room. That is more than 100,000 tasks of one key; those behind would be
/// known to the next owner when they are read, which is hours before their turn.
const MOST_BYTES: usize = 512 << 10;

/// What a key takes besides its tasks, in bytes: 49 in a table that is half or more full, and what the allocator adds.
const KEY_BYTES: usize = 104;

/// What each of its tasks takes, in bytes: 40 in a list that may have room for more.
const TASK_BYTES: usize = 48;

/// So few keys that it does not matter what their table takes.
const FEW: usize = 1_000;

/// Bytes of the numbers of a task at most.
const MOST_NUMBERS: usize = 21;

// === impl Fingerprint ===

impl Fingerprint {
    /// The fingerprint of `key` among the tasks that name `scene`.
    pub fn of(scene: &str, key: &[u8]) -> Self {
        Self(xxh3_128_with_seed(key, xxh3_64(scene.as_bytes())))
    }

    /// The fingerprint that [`Self::fmt`] has written.
    fn parse(text: &[u8]) -> Option<Self> {
        let digit = |byte: &u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(byte);
        if text.len() != 32 || !text.iter().all(digit) {
            return None;
        }
        let text = str::from_utf8(text).ok()?;
        u128::from_str_radix(text, 16).ok().map(Self)
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:032x}", self.0)
    }
}

// === impl Orders ===

impl Orders {
    /// What a shard begins with.
    pub(crate) fn begin(&mut self, number: i32, shard: Shard) {
        self.shards.insert(number, shard);
    }

    /// The order of a shard, in which there may be none yet.
    pub(crate) fn of(&mut self, number: i32) -> &mut Shard {
        self.shards.entry(number).or_default()
    }

    /// The order of a shard, if there is any.
    pub(crate) fn get(&mut self, number: i32) -> Option<&mut Shard> {
        self.shards.get_mut(&number)
    }

    /// Whether of a key of a shard a delivery is being written: see [`Shard::is_undecided`].
    pub(crate) fn is_undecided(&self, number: i32, key: Fingerprint) -> bool {
        let shard = self.shards.get(&number);
        shard.is_some_and(|shard| shard.is_undecided(key))
    }

    /// One past the last offset that a shard's keys name; 0 if none is named.
    pub(crate) fn named(&self, number: i32) -> i64 {
        self.shards.get(&number).map_or(0, Shard::named)
    }

    /// Forgets a shard.
    pub(crate) fn end(&mut self, number: i32) {
        self.shards.remove(&number);
    }

    /// What is to be written since this was last asked, by shard, but for the keys in `unwritten`.
    pub(crate) fn changes(&mut self) -> Vec<(i32, Change)> {
        let mut changes = Vec::new();
        for (number, shard) in &mut self.shards {
            changes.extend(shard.changes().map(|change| (*number, change)));
        }
        changes
    }

    /// Takes those tasks out that are held, of these shards.
    pub(crate) fn extract(
        &mut self,
        shards: &BTreeSet<i32>,
        now: Timestamp,
        which: impl Fn(&Item) -> bool,
        into: &mut Vec<Item>,
    ) {
        let shards = shards
            .iter()
            .filter_map(|number| self.shards.get_mut(number).map(|_| *number));
        let shards: Vec<i32> = shards.collect();
        for number in shards {
            let before = into.len();
            let queues = self.of(number).queues.values_mut();
            for task in queues.flat_map(|queue| &mut queue.tasks) {
                let is_met =
                    matches!(&task.location, Location::Held(waiter) if which(&waiter.item));
                let woken = is_met.then(|| task.wake()).flatten();
                into.extend(woken.map(|waiter| waiter.go_on(now)));
            }
            into[before..].sort_by_key(read_at);
        }
    }

    /// Lets everything go that is held: rules have changed.
    pub(crate) fn wake_all(&mut self, woken: &mut Vec<Waiter>) {
        for shard in self.shards.values_mut() {
            let before = woken.len();
            for queue in shard.queues.values_mut() {
                queue.wake_all(woken);
            }
            woken[before..].sort_by_key(|waiter| read_at(&waiter.item));
        }
    }

    /// The first tasks of keys that are in tiers, and were due before that of their shard.
    pub(crate) fn awaited(&self, before: impl Fn(i32) -> Timestamp) -> Vec<Awaited> {
        let mut awaited = Vec::new();
        for (number, shard) in &self.shards {
            let (number, before) = (*number, before(*number));
            let all = shard.awaited(before);
            awaited.extend(all.map(|(key, offset, decision)| Awaited {
                shard: number,
                key,
                offset,
                decision,
            }));
        }
        awaited.sort_unstable();
        awaited
    }

    /// How many keys have outstanding tasks.
    pub(crate) fn keys(&self) -> usize {
        self.shards.values().map(Shard::len).sum()
    }

    /// The bytes that is known of them takes.
    pub(crate) fn bytes(&self) -> usize {
        self.shards.values().map(Shard::bytes).sum()
    }
}

// === impl Shard ===

impl Shard {
    /// Takes in a record of the order topic, in the order of their offsets.
    ///
    /// # Errors
    /// If it was not written by retide. What was known of its key stays.
    pub fn replay(&mut self, key: &[u8], value: Option<&[u8]>) -> Result<(), Unreadable> {
        let key = Fingerprint::parse(key).ok_or(Unreadable::Key)?;
        let tasks = value.map_or(Ok(VecDeque::new()), decode)?;
        self.tasks += tasks.len();
        let before = if tasks.is_empty() {
            self.queues.remove(&key)
        } else {
            self.queues.insert(key, KeyQueue { tasks })
        };
        self.tasks -= before.map_or(0, |queue| queue.tasks.len());
        Ok(())
    }

    /// What is to be written for it to be forgotten.
    pub fn tombstones(&self) -> impl Iterator<Item = Change> {
        let keys = self.queues.keys();
        keys.map(|key| Change {
            key: *key,
            value: None,
        })
    }

    /// Whether there are no ordered tasks.
    pub fn is_empty(&self) -> bool {
        self.queues.is_empty()
    }

    /// How many keys have outstanding tasks.
    pub fn len(&self) -> usize {
        self.queues.len()
    }

    /// One past the last offset of the retry topic that is named; 0 if none is.
    pub(crate) fn named(&self) -> i64 {
        let last = self.queues.values().filter_map(|queue| queue.tasks.back());
        last.map(|task| task.offset.saturating_add(1))
            .max()
            .unwrap_or_default()
    }

    /// The bytes that it takes.
    pub fn bytes(&self) -> usize {
        KEY_BYTES * self.queues.len() + TASK_BYTES * self.tasks
    }

    /// A task was read, or is looked at: it is in memory now, and in its queue.
    pub(crate) fn enter(&mut self, key: Fingerprint, offset: i64, due: Timestamp) {
        let queue = self.queues.entry(key).or_insert_with(KeyQueue::with_one);
        match queue.find(offset) {
            Ok(index) => queue.tasks[index].came_back(due),
            Err(index) => {
                queue.tasks.insert(index, Outstanding::new(offset, due));
                self.tasks += 1;
            }
        }
    }

    /// As [`Self::enter`], of a task that its scene would not order any more.
    pub(crate) fn came_back(&mut self, key: Fingerprint, offset: i64, due: Timestamp) {
        if let Some(task) = self.task(key, offset) {
            task.came_back(due);
        }
    }

    /// Whether a task may start that is in a queue.
    pub(crate) fn standing(&self, key: Fingerprint, offset: i64) -> Standing {
        let Some(queue) = self.queues.get(&key) else {
            return Standing::First;
        };
        let (Some(first), Ok(count)) = (queue.tasks.front(), queue.find(offset)) else {
            return Standing::First;
        };
        if count == 0 {
            return Standing::First;
        }
        let is_parked = match first.location {
            Location::Parked(_) => true,
            Location::Memory | Location::Held(_) | Location::Ended(_) => false,
            Location::Delivered(_) | Location::DeliveredOrParked(_) => return Standing::Unsettled,
        };
        let is_ended = matches!(first.location, Location::Ended(_));
        Standing::Behind(Others {
            count,
            // What has ended is over with its batch.
            due: if is_ended {
                Timestamp::EPOCH
            } else {
                first.due
            },
            is_parked,
            // Also in memory, where the first record of a tier is until it is readable.
            is_pending: first.pending && !is_ended,
        })
    }

    /// Holds a task until something happens to its queue. Gives it back if there is another one of the same offset, as after an operator
    /// has set the group's offsets back.
    pub(crate) fn hold(
        &mut self,
        now: Timestamp,
        key: Fingerprint,
        item: Item,
    ) -> Result<(), Item> {
        match self.task(key, item.task.origin.offset) {
            Some(task) if task.location == Location::Memory => {
                task.location = Location::Held(Box::new(Waiter { item, since: now }));
                Ok(())
            }
            Some(_) | None => Err(item),
        }
    }

    /// Whether the next owner would be told of a task.
    pub(crate) fn is_listed(&self, key: Fingerprint, offset: i64) -> bool {
        let task = self.queues.get(&key).and_then(|queue| {
            let index = queue.find(offset).ok()?;
            queue.tasks.get(index)
        });
        task.is_some_and(|task| task.listed)
    }

    /// As [`Self::hold`], of the first task of a queue, until the retry topic is read beyond it.
    pub(crate) fn hold_unread(
        &mut self,
        now: Timestamp,
        key: Fingerprint,
        item: Item,
    ) -> Result<(), Item> {
        let offset = item.task.origin.offset;
        self.hold(now, key, item)?;
        self.unread.insert((offset, key));
        Ok(())
    }

    /// The retry topic has been read up to `end`: gives the tasks that have waited for that.
    pub(crate) fn read_to(&mut self, end: i64, woken: &mut Vec<Waiter>) {
        while let Some((offset, key)) = self.unread.first().copied()
            && offset < end
        {
            self.unread.pop_first();
            if let Some(task) = self.task(key, offset) {
                woken.extend(task.wake());
            }
        }
    }

    /// A task was parked until then. If it is the first one, gives those that were held behind it.
    pub(crate) fn parked(
        &mut self,
        key: Fingerprint,
        offset: i64,
        Parking { due, pending }: Parking,
        woken: &mut Vec<Waiter>,
    ) {
        let decision = self.decide();
        let Some(tasks) = self.queues.get_mut(&key) else {
            return;
        };
        let Ok(index) = tasks.find(offset) else {
            return;
        };
        let task = &mut tasks.tasks[index];
        if task.is_held() {
            return;
        }
        let is_first = index == 0;
        // Only of the first one others have to know when it is due.
        if !task.listed || (is_first && (task.due, task.pending) != (due, pending)) {
            self.changed.insert(key);
        }
        task.location = Location::Parked(decision);
        task.listed = true;
        (task.due, task.pending) = (due, pending);
        if is_first {
            tasks.wake_all(woken);
        }
    }

    /// A task has ended; nothing if it is in no queue.
    pub(crate) fn ended(&mut self, key: Fingerprint, offset: i64) -> Option<Decision> {
        let decision = self.decide();
        let task = self.task(key, offset).filter(|task| !task.is_held())?;
        task.location = Location::Ended(decision);
        if mem::take(&mut task.listed) {
            self.changed.insert(key);
        }
        Some(decision)
    }

    /// A task is delivered to a topic, and if that refuses it, it is parked until `otherwise`, or ends. Says what is to be written in
    /// either case; nothing at all if it is in no queue.
    pub(crate) fn delivered(
        &mut self,
        key: Fingerprint,
        offset: i64,
        otherwise: Option<Timestamp>,
    ) -> Option<(Decision, Option<Change>, Option<Change>)> {
        let decision = self.decide();
        let task = self.task(key, offset).filter(|task| !task.is_held())?;
        let was_listed = mem::take(&mut task.listed);
        task.location = Location::Delivered(decision);
        // What was to be written anyway is part of it: behind this one nothing more is written in this batch.
        let is_changed = self.changed.remove(&key) || was_listed;
        let delivered = is_changed.then(|| self.change(key));
        let Some(due) = otherwise else {
            return Some((decision, delivered.clone(), delivered));
        };
        let task = self.task(key, offset)?;
        task.due = due;
        task.listed = true;
        task.pending = false;
        let refused = self.change(key);
        let task = self.task(key, offset)?;
        task.listed = false;
        task.location = Location::DeliveredOrParked(decision);
        Some((decision, delivered, Some(refused)))
    }

    /// Whether a delivery of the key is in a batch that is not committed, so that nobody knows yet whether its task is parked: of such a key
    /// nothing else can be written, for it would have to say which.
    pub(crate) fn is_undecided(&self, key: Fingerprint) -> bool {
        let queue = self.queues.get(&key).into_iter();
        let mut tasks = queue.flat_map(|queue| &queue.tasks);
        tasks.any(|task| matches!(task.location, Location::DeliveredOrParked(_)) && !task.listed)
    }

    /// An end is not written, and may not be for long: until it is, the next owner has to be told of its task, which may be parked. Too much
    /// does no harm there: what is in memory is read again. The next owner has to be told of the other tasks of the key, too: a delivery has
    /// taken along what was to be written of them, and they may be parked by what is written before it.
    pub(crate) fn unwritten(&mut self, end: End) {
        let task = self.task(end.key, end.task);
        if let Some(task) = task.filter(|task| task.location.decision() == Some(end.decision)) {
            task.listed = true;
            self.changed.insert(end.key);
        }
    }

    /// An end of [`Self::unwritten`] is in the batch that is being collected.
    pub(crate) fn written(&mut self, end: End) {
        let task = self.task(end.key, end.task);
        if let Some(task) = task.filter(|task| task.location.decision() == Some(end.decision)) {
            task.listed = false;
            self.changed.insert(end.key);
        }
    }

    /// The end of a task is committed: gives the tasks whose turn may have come by that.
    pub(crate) fn committed(&mut self, end: End, woken: &mut Vec<Waiter>) {
        let Some((queue, index)) = self.find(end.key, end.task) else {
            return;
        };
        if queue.tasks[index].location.decision() == Some(end.decision) {
            self.remove(end.key, index, woken);
        }
    }

    /// The topic has refused the delivery of a task, and what follows from that is committed. If it is parked, gives those that were held
    /// behind it.
    pub(crate) fn refused(&mut self, end: End, woken: &mut Vec<Waiter>) {
        let Some((queue, index)) = self.find(end.key, end.task) else {
            return;
        };
        let task = &mut queue.tasks[index];
        if task.location == Location::DeliveredOrParked(end.decision) {
            task.location = Location::Parked(end.decision);
            task.listed = true;
            queue.wake_all(woken);
            self.changed.insert(end.key);
        }
    }

    /// The key in whose queue a task is: this one, as a rule.
    pub(crate) fn key_of(&self, guess: Option<Fingerprint>, offset: i64) -> Option<Fingerprint> {
        let has = |queue: &KeyQueue| queue.find(offset).is_ok();
        let guess = guess.filter(|key| self.queues.get(key).is_some_and(has));
        guess.or_else(|| {
            let mut queues = self.queues.iter();
            queues.find(|(_, queue)| has(queue)).map(|(key, _)| *key)
        })
    }

    /// Takes a task out that waits here, if it does; it stays in its queue.
    pub(crate) fn take_held(
        &mut self,
        key: Fingerprint,
        offset: i64,
        now: Timestamp,
    ) -> Option<Item> {
        let waiter = self.task(key, offset)?.wake()?;
        Some(waiter.go_on(now))
    }

    /// The end of a task is not written as it was decided, and will be in another way: it leaves its queue at once.
    pub(crate) fn leave(&mut self, offset: i64, woken: &mut Vec<Waiter>) {
        let Some(key) = self.key_of(None, offset) else {
            return;
        };
        let Some((queue, index)) = self.find(key, offset) else {
            return;
        };
        if matches!(queue.tasks[index].location, Location::Ended(_)) {
            self.remove(key, index, woken);
            self.changed.insert(key);
        }
    }

    /// What was to be written of a key was not.
    pub(crate) fn write_again(&mut self, key: Fingerprint) {
        self.changed.insert(key);
    }

    /// The first tasks of keys that are in tiers, and were due before `before`.
    fn awaited(&self, before: Timestamp) -> impl Iterator<Item = (Fingerprint, i64, Decision)> {
        self.queues.iter().filter_map(move |(key, queue)| {
            let first = queue.tasks.front()?;
            let Location::Parked(decision) = first.location else {
                return None;
            };
            (first.due < before).then_some((*key, first.offset, decision))
        })
    }

    /// A task is in no tier: if it is nowhere else, and was not parked once more meanwhile, it is gone and leaves its queue. Gives those whose
    /// turn may have come by that.
    pub(crate) fn gone(&mut self, awaited: Awaited, woken: &mut Vec<Waiter>) -> bool {
        let Awaited {
            key,
            offset,
            decision,
            ..
        } = awaited;
        let Some((queue, index)) = self.find(key, offset) else {
            return false;
        };
        if queue.tasks[index].location != Location::Parked(decision) {
            return false;
        }
        self.remove(key, index, woken);
        self.changed.insert(key);
        true
    }

    /// Takes a task out of its queue. Gives those whose turn may have come by that.
    fn remove(&mut self, key: Fingerprint, index: usize, woken: &mut Vec<Waiter>) {
        let Some(queue) = self.queues.get_mut(&key) else {
            return;
        };
        queue.tasks.remove(index);
        if queue.tasks.is_empty() {
            self.queues.remove(&key);
            // Half empty, and half of that: what a flood of keys took is given back.
            if self.queues.capacity() / 4 > self.queues.len().max(FEW) {
                self.queues.shrink_to(self.queues.len() * 2);
            }
        } else if index == 0 {
            queue.wake_first(woken);
        }
        self.tasks -= 1;
    }

    /// Drops the tasks that are held: the shard is given away.
    pub(crate) fn forget_held(&mut self) {
        for queue in self.queues.values_mut() {
            for task in &mut queue.tasks {
                drop(task.wake());
            }
        }
    }

    /// The number of a decision.
    const fn decide(&mut self) -> Decision {
        self.decisions += 1;
        Decision(self.decisions)
    }

    /// What is to be written since this was last asked.
    fn changes(&mut self) -> impl Iterator<Item = Change> {
        let changed = mem::take(&mut self.changed);
        changed.into_iter().map(|key| self.change(key))
    }

    /// What is to be written for a key.
    fn change(&self, key: Fingerprint) -> Change {
        let value = self.queues.get(&key).and_then(|queue| encode(&queue.tasks));
        Change { key, value }
    }

    /// A task that is in a queue.
    fn task(&mut self, key: Fingerprint, offset: i64) -> Option<&mut Outstanding> {
        let (queue, index) = self.find(key, offset)?;
        queue.tasks.get_mut(index)
    }

    /// The queue of a key, and the index of one of its tasks there, if that is still in it.
    fn find(&mut self, key: Fingerprint, offset: i64) -> Option<(&mut KeyQueue, usize)> {
        let queue = self.queues.get_mut(&key)?;
        let index = queue.find(offset).ok()?;
        Some((queue, index))
    }
}

// === impl KeyQueue ===

impl KeyQueue {
    /// A queue with room for one task: most keys never have more.
    fn with_one() -> Self {
        Self {
            tasks: VecDeque::with_capacity(1),
        }
    }

    /// Where the task of this offset stands, or belongs.
    fn find(&self, offset: i64) -> Result<usize, usize> {
        self.tasks.binary_search_by_key(&offset, |task| task.offset)
    }

    /// Releases every task that is held.
    fn wake_all(&mut self, woken: &mut Vec<Waiter>) {
        woken.extend(self.tasks.iter_mut().filter_map(Outstanding::wake));
    }

    /// Another task is first: gives it if it is held, or those behind it if it is parked, since they may have to wait for long.
    fn wake_first(&mut self, woken: &mut Vec<Waiter>) {
        let Some(first) = self.tasks.front_mut() else {
            return;
        };
        match first.location {
            Location::Held(_) => woken.extend(first.wake()),
            Location::Parked(_) => self.wake_all(woken),
            Location::Memory
            | Location::Ended(_)
            | Location::Delivered(_)
            | Location::DeliveredOrParked(_) => {}
        }
    }
}

// === impl Location ===

impl Location {
    /// The decision that is not committed yet.
    const fn decision(&self) -> Option<Decision> {
        match self {
            Self::Ended(decision)
            | Self::Delivered(decision)
            | Self::DeliveredOrParked(decision) => Some(*decision),
            Self::Parked(_) | Self::Memory | Self::Held(_) => None,
        }
    }
}

// === impl Outstanding ===

impl Outstanding {
    /// A task that was never parked.
    const fn new(offset: i64, due: Timestamp) -> Self {
        Self {
            offset,
            due,
            location: Location::Memory,
            listed: false,
            pending: false,
        }
    }

    /// The task is in memory.
    fn came_back(&mut self, due: Timestamp) {
        match self.location {
            Location::Parked(_) => {
                self.location = Location::Memory;
                self.due = due;
            }
            // It was parked, and is back before its owner has heard of that.
            Location::DeliveredOrParked(_) => {
                self.location = Location::Memory;
                self.due = due;
                self.listed = true;
            }
            // It never left, or is another one of the same offset.
            Location::Memory | Location::Held(_) | Location::Ended(_) | Location::Delivered(_) => {}
        }
    }

    /// Whether it waits here, so that whatever happens elsewhere happens to another one of the same offset.
    const fn is_held(&self) -> bool {
        matches!(self.location, Location::Held(_))
    }

    /// Releases the task if it is held.
    fn wake(&mut self) -> Option<Waiter> {
        match mem::replace(&mut self.location, Location::Memory) {
            Location::Held(waiter) => Some(*waiter),
            location => {
                self.location = location;
                None
            }
        }
    }
}

/// Where a task came from, and where it was read: the order of tasks that leave the queues of many keys at once. No map has one that is the
/// same each time.
fn read_at(item: &Item) -> (i32, i64, LaneId, i64) {
    let Origin {
        partition, offset, ..
    } = item.task.origin;
    (partition, offset, item.lane, item.offset)
}

// === impl Waiter ===

impl Waiter {
    /// The task, which is to be looked at now. Only since it was due it has waited for others.
    pub(crate) fn go_on(self, now: Timestamp) -> Item {
        let Self { mut item, since } = self;
        let waited = now.since(since.max(item.task.wake())).as_micros() as u64;
        item.waited.order = item.waited.order.saturating_add(waited);
        item.wake = now;
        item
    }
}

// === impl Ends ===

impl Ends {
    /// A task has ended, in the batch that is being collected.
    pub(crate) fn add(&mut self, end: End) {
        self.collecting.push(end);
    }

    /// Takes the end back that is the consequence of `offset`, from the batch that is being collected.
    pub(crate) fn take(&mut self, offset: i64) -> Option<End> {
        let index = self
            .collecting
            .iter()
            .rposition(|end| end.offset == offset)?;
        Some(self.collecting.remove(index))
    }

    /// The key of the end that is the consequence of `offset`, in the batch that is being collected.
    pub(crate) fn key(&self, offset: i64) -> Option<Fingerprint> {
        let mut ends = self.collecting.iter().rev();
        ends.find(|end| end.offset == offset).map(|end| end.key)
    }

    /// The batch is handed over.
    pub(crate) fn submit(&mut self) {
        self.under_way.push_back(mem::take(&mut self.collecting));
    }

    /// The oldest batch is durable: its ends are.
    pub(crate) fn committed(&mut self) -> Vec<End> {
        self.under_way.pop_front().unwrap_or_default()
    }

    /// The end that is the consequence of `offset`, in the oldest batch.
    pub(crate) fn find(&self, offset: i64) -> Option<End> {
        let mut ends = self.under_way.front()?.iter();
        ends.find(|end| end.offset == offset).copied()
    }
}

/// The value that names the listed ones of `tasks`: the version, then for each of them two variable-length numbers, zigzag-encoded: by how
/// much its offset is above the one before it, and by how many seconds its due time, rounded up, is after that one's. Where an attempt is
/// pending, a third one follows for each, 1 for those that are.
fn encode(tasks: &VecDeque<Outstanding>) -> Option<Bytes> {
    let listed = || tasks.iter().filter(|task| task.listed);
    let with_pending = listed().any(|task| task.pending);
    let version = if with_pending { WITH_PENDING } else { VERSION };
    let mut value = vec![version];
    let (mut offset, mut due) = (0_i64, 0_i64);
    for task in listed() {
        if value.len() + MOST_NUMBERS > MOST_BYTES {
            break;
        }
        let seconds = task.due.as_micros().div_ceil(1_000_000).cast_signed();
        push(&mut value, task.offset.wrapping_sub(offset));
        push(&mut value, seconds - due);
        if with_pending {
            push(&mut value, i64::from(task.pending));
        }
        (offset, due) = (task.offset, seconds);
    }
    (value.len() > 1).then(|| value.into())
}

/// The tasks that [`encode`] has named.
fn decode(value: &[u8]) -> Result<VecDeque<Outstanding>, Unreadable> {
    let (version, mut rest) = value.split_first().ok_or(Unreadable::Short)?;
    let with_pending = match *version {
        VERSION => false,
        WITH_PENDING => true,
        unknown => return Err(Unreadable::Version(unknown)),
    };
    // Most keys have one task.
    let mut tasks: VecDeque<Outstanding> = VecDeque::with_capacity(1);
    let (mut offset, mut due) = (0_i64, 0_i64);
    while !rest.is_empty() {
        offset = offset.wrapping_add(pull(&mut rest)?);
        due = due.wrapping_add(pull(&mut rest)?);
        let pending = with_pending && pull(&mut rest)? != 0;
        if tasks.back().is_some_and(|before| before.offset >= offset) {
            return Err(Unreadable::NotRising);
        }
        let seconds = u64::try_from(due).map_err(|_| Unreadable::TooLarge)?;
        tasks.push_back(Outstanding {
            offset,
            due: Timestamp::from_millis(seconds.saturating_mul(1_000)),
            location: Location::Parked(Decision(0)),
            listed: true,
            pending,
        });
    }
    tasks.shrink_to_fit();
    Ok(tasks)
}

/// Appends a number, seven bits at a time, small ones of either sign first.
fn push(value: &mut Vec<u8>, number: i64) {
    let mut left = ((number << 1) ^ (number >> 63)).cast_unsigned();
    while left >= 0x80 {
        value.push((left as u8) | 0x80);
        left >>= 7;
    }
    value.push(left as u8);
}

/// Takes a number off the front.
fn pull(rest: &mut &[u8]) -> Result<i64, Unreadable> {
    let mut number = 0_u64;
    for shift in (0..64).step_by(7) {
        let (byte, tail) = rest.split_first().ok_or(Unreadable::Short)?;
        *rest = tail;
        let bits = u64::from(byte & 0x7f);
        if shift == 63 && bits > 1 {
            return Err(Unreadable::TooLarge);
        }
        number |= bits << shift;
        if byte & 0x80 == 0 {
            return Ok((number >> 1).cast_signed() ^ -(number & 1).cast_signed());
        }
    }
    Err(Unreadable::TooLarge)
}

#[cfg(test)]
mod tests {
    use super::*;

    use proptest::prelude::*;

    /// Parked tasks of these offsets and due times, in seconds.
    fn parked(tasks: impl IntoIterator<Item = (i64, u64)>) -> VecDeque<Outstanding> {
        tasks
            .into_iter()
            .map(|(offset, seconds)| Outstanding {
                offset,
                due: Timestamp::from_millis(seconds * 1_000),
                location: Location::Parked(Decision(0)),
                listed: true,
                pending: false,
            })
            .collect()
    }

    #[test]
    fn a_fingerprint_is_the_same_for_ever() {
        let fingerprint = Fingerprint::of("payment", b"order-7");

        assert_eq!(fingerprint.to_string(), "d515d537923147951ab8be652bb15d0c");
        let text = fingerprint.to_string();
        assert_eq!(Fingerprint::parse(text.as_bytes()), Some(fingerprint));
        assert_ne!(Fingerprint::of("paymen", b"torder-7"), fingerprint);
    }

    #[test]
    fn a_value_is_small_and_the_same_for_ever() {
        let value = encode(&parked([(1_000, 1_700_000_000), (1_003, 1_700_000_001)])).unwrap();

        assert_eq!(
            &value[..],
            [1, 0xd0, 0x0f, 0x80, 0xc4, 0x9f, 0xd5, 0x0c, 6, 2]
        );
    }

    #[test]
    fn who_is_pending_is_told_to_the_next_owner() {
        let mut tasks = parked([(1_000, 1_700_000_000), (1_003, 1_700_000_001)]);
        tasks[0].pending = true;

        let value = encode(&tasks).unwrap();

        assert_eq!(
            &value[..],
            [2, 0xd0, 0x0f, 0x80, 0xc4, 0x9f, 0xd5, 0x0c, 2, 6, 2, 0]
        );
        assert_eq!(decode(&value).unwrap(), tasks);
    }

    #[test]
    fn a_delivery_that_waits_for_its_topic_does_not_keep_back_what_is_written_of_tasks_behind_it() {
        let (key, now) = (Fingerprint::of("payment", b"order-7"), Timestamp::EPOCH);
        let mut shard = Shard::default();
        shard.enter(key, 12, now);
        shard.enter(key, 20, now);
        let parking = Parking {
            due: now,
            pending: false,
        };
        shard.parked(key, 20, parking, &mut Vec::new());
        let (decision, taken_along, _) = shard.delivered(key, 12, None).unwrap();
        assert!(taken_along.is_some());

        shard.unwritten(End {
            key,
            task: 12,
            offset: 12,
            decision,
        });

        let changes: Vec<Change> = shard.changes().collect();
        let all = parked([(12, 0), (20, 0)]);
        assert_eq!(
            changes,
            [Change {
                key,
                value: encode(&all)
            }]
        );
    }

    #[test]
    fn whether_a_task_is_parked_is_not_decided_while_its_delivery_is_being_written() {
        let (key, now) = (Fingerprint::of("payment", b"order-7"), Timestamp::EPOCH);
        let mut shard = Shard::default();
        shard.enter(key, 12, now);
        assert!(!shard.is_undecided(key));
        let later = Timestamp::from_millis(9_000);

        let (decision, ..) = shard.delivered(key, 12, Some(later)).unwrap();
        assert!(shard.is_undecided(key));
        let end = End {
            key,
            task: 12,
            offset: 12,
            decision,
        };
        shard.unwritten(end);
        assert!(!shard.is_undecided(key));
        let (decision, ..) = shard.delivered(key, 12, Some(later)).unwrap();
        assert!(shard.is_undecided(key));
        shard.committed(End { decision, ..end }, &mut Vec::new());

        assert!(!shard.is_undecided(key));
    }

    #[test]
    fn a_task_costs_little_memory() {
        assert_eq!(size_of::<Outstanding>(), 40);
        assert_eq!(size_of::<(Fingerprint, KeyQueue)>(), 48);
    }

    #[test]
    fn what_is_too_long_to_be_written_names_those_that_come_first() {
        let all = parked((0..1_000_000).map(|offset| (offset, 0)));

        let value = encode(&all).unwrap();

        assert!(value.len() <= MOST_BYTES);
        let named = decode(&value).unwrap();
        assert!(named.len() > 100_000);
        assert_eq!(
            named,
            all.range(..named.len()).cloned().collect::<VecDeque<_>>()
        );
    }

    #[test]
    fn what_retide_did_not_write_is_said_to_be_so_and_changes_nothing() {
        let mut shard = Shard::default();
        let key = Fingerprint::of("s", b"k").to_string();
        shard
            .replay(key.as_bytes(), encode(&parked([(7, 1)])).as_deref())
            .unwrap();
        let mut hostile = |key: &[u8], value: &[u8]| shard.replay(key, Some(value)).unwrap_err();
        let number = |bits: u8| [[0xff; 9].as_slice(), &[bits]].concat();

        assert_eq!(hostile(b"order-7", &[1]), Unreadable::Key);
        assert_eq!(hostile(&[0xff; 32], &[1]), Unreadable::Key);
        assert_eq!(hostile(key.as_bytes(), &[]), Unreadable::Short);
        assert_eq!(hostile(key.as_bytes(), &[9]), Unreadable::Version(9));
        assert_eq!(hostile(key.as_bytes(), &[1, 2]), Unreadable::Short);
        assert_eq!(hostile(key.as_bytes(), &[1, 0x80]), Unreadable::Short);
        assert_eq!(
            hostile(key.as_bytes(), &[1, 2, 2, 0, 2]),
            Unreadable::NotRising
        );
        assert_eq!(hostile(key.as_bytes(), &[1, 2, 1]), Unreadable::TooLarge);
        let large = [&[1], &number(2)[..]].concat();
        assert_eq!(hostile(key.as_bytes(), &large), Unreadable::TooLarge);
        assert_eq!(shard.len(), 1);
        shard.replay(key.as_bytes(), None).unwrap();
        assert!(shard.is_empty());
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(
            tasks in prop::collection::btree_map(any::<i64>(), 0_u64..1 << 33, 0..50),
            pending in prop::option::of(0_usize..50),
        ) {
            let mut tasks = parked(tasks);
            if let Some(task) = pending.and_then(|index| tasks.get_mut(index)) {
                task.pending = true;
            }

            let read = encode(&tasks).map_or_else(VecDeque::new, |value| decode(&value).unwrap());

            prop_assert_eq!(read, tasks);
        }

        #[test]
        fn no_bytes_are_read_as_tasks_out_of_order(mut value in prop::collection::vec(any::<u8>(), 0..200)) {
            if let Some(version) = value.first_mut() {
                *version %= 3;
            }
            if let Ok(tasks) = decode(&value) {
                let offsets: Vec<i64> = tasks.iter().map(|task| task.offset).collect();
                prop_assert!(offsets.is_sorted());
                prop_assert!(tasks.len() <= value.len() / 2);
            }
        }
    }
}
