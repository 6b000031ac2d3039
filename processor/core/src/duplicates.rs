//! Which ids of a shard are under way, or have ended of late: what tells a duplicate from a task.
//!
//! An id counts within its scene, and is known by a hash of both. What enters it: a task of a scene that looks for duplicates, when it is read
//! from the retry topic. What lets it go: the end of that task, or the end of the window after it; a task that moves to another shard; or
//! [`MOST`], by which those that have ended and would go first go early. What never happens: a record is taken for a duplicate of itself, when
//! it is read a second time after a crash; or an id is under way that somebody has found to be gone.
//!
//! Where a scene *replaces*, the newcomer becomes the task of its id, and the task before it is *replaced*: it may be anywhere, so that it is
//! marked by its offset in the retry topic, and goes without a word when it is met next. The mark is written in the transaction by which the
//! newcomer is parked, and taken away in the one by which the other has gone. Nothing of an id is replaced while a call of it is in flight, or
//! something that was decided about it is not durable: the newcomer waits.
//!
//! Not what becomes of a duplicate, nor how this is written down, which is a record of [`crate::state::State::Id`] beside the settlement that
//! it follows from. Invariant: what is known as written is what the next owner of the shard reads, or will when the batches under way are
//! durable.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::{xxh3_64, xxh3_128_with_seed};

use crate::lane::LaneId;
use crate::state::State;
use crate::task::{Stopped, Task};
use crate::time::Timestamp;

/// What becomes of a task whose id is under way, or has ended within the window.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// It is a task like any other.
    #[default]
    Allow,
    /// It is dropped.
    Drop,
    /// It is the task from now on, and the one before it is replaced.
    Replace,
    /// The same, but it goes by the schedule of the one before it.
    KeepDue,
}

/// What a scene does with duplicates.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rule {
    /// What becomes of them.
    pub mode: Mode,
    /// How long after its end a task still has them.
    pub window: Duration,
}

/// The hash of a scene and an id.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Identity([u8; 16]);

/// What is written down of an id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Known {
    /// The offset in the retry topic at which its task entered.
    pub offset: i64,
    /// Until when the id is known of, if the task has ended; none while it is under way.
    pub until: Option<Timestamp>,
    /// The schedule of the task, where its scene keeps that for those that replace it.
    pub schedule: Option<Schedule>,
}

/// What a task keeps that gets the payload of another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Schedule {
    /// When the next attempt may start.
    pub due: Timestamp,
    /// The number of that attempt.
    pub attempt: u32,
    /// How many of those before it were throttled.
    pub throttled: u32,
    /// When the task entered.
    pub entered: Timestamp,
    /// When no attempt may start any more, if the producer has named that.
    pub deadline: Option<Timestamp>,
    /// How its deadline has stood still, if it has.
    pub stopped: Option<Stopped>,
}

/// What is written down of a task that is replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Replaced {
    /// The offset in the retry topic at which the task entered that has its place.
    pub by: i64,
    /// When it was replaced.
    pub at: Timestamp,
}

/// How a newcomer stands to what is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Newcomer {
    /// It is the only one, as far as is known, and is known from now on.
    First,
    /// The same, but there is no room to know it.
    Unknown,
    /// It is one too many.
    Duplicate(Known),
}

/// What has become of a task, as far as its id is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Became {
    /// The task is parked in its shard.
    Parked,
    /// The task has ended, and its id is known until then.
    Ended(Timestamp),
    /// Its id is not known any more: the task has ended, or has moved to another shard.
    Gone,
}

/// A decision about a task, as far as its id is concerned.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Decided {
    /// The id.
    pub(crate) id: Identity,
    /// The offset in the retry topic at which the task entered.
    pub(crate) offset: i64,
    /// What has become of the task.
    pub(crate) became: Became,
    /// Whether the id is to be known from now on if it is not.
    pub(crate) is_wanted: bool,
    /// Whether its scene replaces: nothing of the id is replaced before this is durable.
    pub(crate) replaces: bool,
    /// The schedule of the task, if it is parked, and its scene keeps that.
    pub(crate) schedule: Option<Schedule>,
}

/// What is known of the ids of all shards of a worker.
#[derive(Clone, Debug, Default)]
pub(crate) struct Duplicates {
    /// By shard.
    shards: BTreeMap<i32, Shard>,
    /// Whether a scene in force looks for duplicates.
    pub(crate) is_wanted: bool,
    /// Tasks that are not known, since there was no room for their ids.
    unknown: u64,
}

/// What is known of the ids of a shard.
#[derive(Clone, Debug, Default)]
struct Shard {
    /// The ids.
    ids: HashMap<Identity, Entry>,
    /// Those that have ended, by when they are forgotten.
    ended: BTreeSet<(Timestamp, Identity)>,
    /// Those that are forgotten, and written down so far.
    gone: BTreeSet<Identity>,
    /// Deliveries to topics in batches that are not durable, by lane and offset.
    deliveries: BTreeMap<(LaneId, i64), Delivery>,
    /// The schedules of those whose scenes keep them.
    schedules: HashMap<Identity, Schedule>,
    /// The tasks that are replaced and were not met since, by the offsets at which they entered.
    replaced: BTreeMap<i64, Mark>,
    /// The same that are given up, and written down so far.
    given_up: BTreeSet<i64>,
    /// What was decided about ids that end, or whose scenes replace, and is not durable, by lane and offset.
    changing: BTreeMap<(LaneId, i64), Changing>,
    /// How often each id stands there.
    busy: HashMap<Identity, u32>,
}

/// A task that is replaced.
#[derive(Clone, Copy, Debug)]
struct Mark {
    /// Whether that is durable.
    is_durable: bool,
}

/// A decision about an id that is not durable.
#[derive(Clone, Copy, Debug)]
struct Changing {
    /// The id.
    id: Identity,
    /// The batch of its lane that it is in, if it is in one.
    batch: Option<u64>,
    /// The task that is replaced by it, if one is.
    replaces: Option<i64>,
}

/// What is known of an id.
#[derive(Clone, Copy, Debug)]
struct Entry {
    /// The offset in the retry topic at which its task entered.
    offset: i64,
    /// Until when it is known, if its task has ended.
    until: Option<Timestamp>,
    /// Whether anything is written down of it.
    written: bool,
    /// Whether that is of another task that had the id before.
    stale: bool,
}

/// A delivery to a topic of which it is not known yet whether the topic takes it.
#[derive(Clone, Copy, Debug)]
struct Delivery {
    /// The batch of its lane that it is in.
    batch: u64,
    /// What it is of.
    told: Told,
}

/// What is written down of the id of a task that is delivered to a topic.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Told {
    /// The id.
    pub(crate) id: Identity,
    /// The offset in the retry topic at which the task entered.
    pub(crate) task: i64,
    /// What is known of the id if the topic takes the record.
    pub(crate) if_taken: Option<Known>,
    /// The same if the topic refuses it.
    pub(crate) if_refused: Option<Known>,
}

/// Most ids of a shard: some 8 MiB.
pub const MOST: usize = 65_536;

/// Bytes that one takes: 40 in a table that is half or more full, and 24 in a tree that is, where it has ended.
const BYTES: usize = 128;

/// Bytes that a schedule takes, or a task that is replaced, likewise.
const MORE_BYTES: usize = 144;

/// How long a task is known to be replaced that nobody meets: longer than any is parked. Its record is gone, then.
const LOST: Duration = Duration::from_hours(400 * 24);

/// Most ids that are forgotten in a step, and tombstones that go into a batch for a shard.
const AT_ONCE: usize = 1_000;

// === impl Rule ===

impl Rule {
    /// Whether anything is to be known of ids.
    pub fn looks(self) -> bool {
        match self.mode {
            Mode::Allow => false,
            Mode::Drop | Mode::Replace | Mode::KeepDue => true,
        }
    }
}

// === impl Mode ===

impl Mode {
    /// The word for it in a configuration.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Drop => "drop",
            Self::Replace => "replace",
            Self::KeepDue => "keep-due",
        }
    }

    /// Whether a newcomer becomes the task of its id.
    pub const fn replaces(self) -> bool {
        match self {
            Self::Allow | Self::Drop => false,
            Self::Replace | Self::KeepDue => true,
        }
    }

    /// The word for what becomes of a record whose id a newcomer has.
    pub(crate) const fn fate(self) -> &'static str {
        match self {
            Self::Allow | Self::Drop => "dropped",
            Self::Replace => "replaced",
            Self::KeepDue => "payload-replaced",
        }
    }
}

// === impl Decided ===

impl Decided {
    /// What is known of the id from then on.
    pub(crate) const fn known(&self) -> Option<Known> {
        let until = match self.became {
            Became::Parked => None,
            Became::Ended(until) => Some(until),
            Became::Gone => return None,
        };
        Some(Known {
            offset: self.offset,
            until,
            schedule: self.schedule,
        })
    }
}

// === impl Schedule ===

impl Schedule {
    /// The schedule of a task. An attempt that is pending counts as one that has failed at once: its answer would be about another payload.
    pub fn of(task: &Task) -> Self {
        let (due, attempt) = match task.pending_since {
            Some(since) => (since, task.attempt.saturating_add(1)),
            None => (task.due, task.attempt),
        };
        Self {
            due: due.ceil_to_millis(),
            attempt,
            throttled: task.throttled,
            entered: task.first_failed_at,
            deadline: task.deadline,
            stopped: task.stopped.as_deref().copied(),
        }
    }

    /// Lets a task go by it.
    pub(crate) fn put(self, task: &mut Task) {
        task.due = self.due;
        task.attempt = self.attempt;
        task.throttled = self.throttled;
        task.first_failed_at = self.entered;
        task.deadline = self.deadline;
        task.stopped = self.stopped.map(Box::new);
    }
}

// === impl Identity ===

impl Identity {
    /// The identity of the tasks that name `scene` and `id`.
    pub fn of(scene: &str, id: &str) -> Self {
        let hash = xxh3_128_with_seed(id.as_bytes(), xxh3_64(scene.as_bytes()));
        Self(hash.to_be_bytes())
    }

    /// The identity of a task.
    pub fn of_task(task: &Task) -> Self {
        Self::of(&task.scene, &task.id)
    }

    /// The identity that [`fmt::Display`] has written.
    pub fn parse(text: &str) -> Option<Self> {
        let digit = |byte: &u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(byte);
        if text.len() != 32 || !text.as_bytes().iter().all(digit) {
            return None;
        }
        let hash = u128::from_str_radix(text, 16).ok()?;
        Some(Self(hash.to_be_bytes()))
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:032x}", u128::from_be_bytes(self.0))
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Identity({self})")
    }
}

// === impl Duplicates ===

impl Duplicates {
    /// Whether nothing is known and nothing is to be: a record costs nothing then.
    pub(crate) fn is_idle(&self) -> bool {
        !self.is_wanted && self.shards.is_empty()
    }

    /// What a shard begins with, as former owners have written it down.
    pub(crate) fn begin(
        &mut self,
        shard: i32,
        now: Timestamp,
        ids: impl IntoIterator<Item = (Identity, Known)>,
        replaced: impl IntoIterator<Item = (i64, Replaced)>,
    ) {
        let mut begun = Shard::default();
        for (task, replaced) in replaced {
            if replaced.at + LOST <= now {
                begun.given_up.insert(task);
                continue;
            }
            begun.replaced.insert(task, Mark { is_durable: true });
        }
        for (id, known) in ids {
            let Known {
                offset,
                until,
                schedule,
            } = known;
            let is_over = until.is_some_and(|until| until <= now);
            if is_over || !begun.has_room() {
                begun.gone.insert(id);
                continue;
            }
            begun.put(
                id,
                Entry {
                    offset,
                    until,
                    written: true,
                    stale: false,
                },
            );
            begun.keep(id, schedule);
        }
        if !begun.is_empty() {
            self.shards.insert(shard, begun);
        }
    }

    /// Forgets a shard.
    pub(crate) fn end(&mut self, shard: i32) {
        self.shards.remove(&shard);
    }

    /// A task enters at `offset` of the retry topic.
    pub(crate) fn enter(
        &mut self,
        now: Timestamp,
        shard: i32,
        id: Identity,
        offset: i64,
    ) -> Newcomer {
        let known = self.shards.entry(shard).or_default();
        let before = known.ids.get(&id).copied();
        match before {
            // It is read again: whatever is known is of itself.
            Some(before) if before.offset == offset => return Newcomer::First,
            Some(Entry { offset, until, .. }) if until.is_none_or(|until| now < until) => {
                return Newcomer::Duplicate(Known {
                    offset,
                    until,
                    schedule: known.schedules.get(&id).copied(),
                });
            }
            Some(_) | None => {}
        }
        if known.begin(id, offset) {
            Newcomer::First
        } else {
            self.unknown += 1;
            Newcomer::Unknown
        }
    }

    /// A task that its target has put back enters at `offset`: it goes on as what it was.
    pub(crate) fn come_back(&mut self, shard: i32, id: Identity, offset: i64) {
        self.shards.entry(shard).or_default().begin(id, offset);
    }

    /// What is to be written down of an id after a decision about its task, if that is news.
    pub(crate) fn became(&mut self, shard: i32, decided: Decided) -> Option<State> {
        let Decided {
            id,
            offset,
            became,
            is_wanted,
            replaces: _,
            schedule,
        } = decided;
        let known = if is_wanted {
            self.shards.entry(shard).or_default()
        } else {
            self.shards.get_mut(&shard)?
        };
        let before = known.ids.get(&id).copied();
        match before {
            Some(before) if before.offset != offset => return None,
            None if !is_wanted => return None,
            Some(_) | None => {}
        }
        let forgotten = State::Id { id, known: None };
        let until = match became {
            Became::Parked => None,
            Became::Ended(until) => Some(until),
            Became::Gone => return known.take(id).then_some(forgotten),
        };
        let is_same = |before: Entry| {
            let is_told = before.written && !before.stale && before.until == until;
            is_told && (schedule.is_none() || known.schedules.get(&id) == schedule.as_ref())
        };
        if before.is_some_and(is_same) {
            return None;
        }
        let written = known.take(id);
        if !known.has_room() {
            return written.then_some(forgotten);
        }
        let entry = Entry {
            offset,
            until,
            written: true,
            stale: false,
        };
        known.put(id, entry);
        known.keep(id, schedule);
        let known = decided.known();
        Some(State::Id { id, known })
    }

    /// A task is delivered to a topic: whether anything is to be written down of its id, which depends on the topic. Until it is known which of
    /// both has become of it, the task is under way.
    pub(crate) fn delivers(&mut self, shard: i32, decided: Decided) -> bool {
        let Decided {
            id,
            offset,
            is_wanted,
            ..
        } = decided;
        let known = if is_wanted {
            self.shards.entry(shard).or_default()
        } else if let Some(known) = self.shards.get_mut(&shard) {
            known
        } else {
            return false;
        };
        if let Some(before) = known.ids.get_mut(&id) {
            let is_of_it = before.offset == offset;
            before.written |= is_of_it;
            before.stale &= !is_of_it;
            return is_of_it;
        }
        if !is_wanted || !known.has_room() {
            return false;
        }
        let entry = Entry {
            offset,
            until: None,
            written: true,
            stale: false,
        };
        known.put(id, entry);
        true
    }

    /// What is known of an id.
    pub(crate) fn known(&self, shard: i32, id: Identity) -> Option<Known> {
        let known = self.shards.get(&shard)?;
        let Entry { offset, until, .. } = *known.ids.get(&id)?;
        let schedule = known.schedules.get(&id).copied();
        Some(Known {
            offset,
            until,
            schedule,
        })
    }

    /// The task of this id that is under way in memory goes by this schedule.
    pub(crate) fn goes_by(&mut self, shard: i32, id: Identity, schedule: Schedule) {
        if let Some(known) = self.shards.get_mut(&shard) {
            known.keep(id, Some(schedule));
        }
    }

    /// The task that entered at `replaced.by` becomes the one of this id, and the one before it is replaced; false if there is no room to know
    /// that.
    pub(crate) fn replace(
        &mut self,
        shard: i32,
        id: Identity,
        (task, replaced): (i64, Replaced),
    ) -> bool {
        let known = self.shards.entry(shard).or_default();
        if !known.has_room() {
            self.unknown += 1;
            return false;
        }
        if let Some(entry) = known.ids.get_mut(&id) {
            entry.offset = replaced.by;
            entry.stale = true;
        }
        let mark = Mark { is_durable: false };
        known.given_up.remove(&task);
        known.replaced.insert(task, mark);
        true
    }

    /// Whether the task that entered at `task` is replaced.
    pub(crate) fn is_replaced(&self, shard: i32, task: i64) -> bool {
        let known = self.shards.get(&shard);
        known.is_some_and(|known| known.replaced.contains_key(&task))
    }

    /// A task that is replaced is met, and goes: true if its mark may go with it, false if it has to wait until the mark is durable.
    pub(crate) fn goes(&mut self, shard: i32, task: i64) -> bool {
        let Some(known) = self.shards.get_mut(&shard) else {
            return true;
        };
        let may_go = known.replaced.get(&task).is_none_or(|mark| mark.is_durable);
        if may_go {
            known.replaced.remove(&task);
        }
        may_go
    }

    /// Something is decided about an id, which is the consequence of an offset.
    pub(crate) fn decided(&mut self, at: (LaneId, i64), id: Identity, replaces: Option<i64>) {
        let known = self.shards.entry(at.0.shard).or_default();
        // What was decided before of the same offset has come to nothing, but for whom it has replaced.
        let before = known.unsettle(at);
        let replaces = replaces.or_else(|| before.and_then(|before| before.replaces));
        let batch = None;
        let changing = Changing {
            id,
            batch,
            replaces,
        };
        known.changing.insert(at, changing);
        *known.busy.entry(id).or_default() += 1;
    }

    /// What was decided goes into a batch of its lane.
    pub(crate) fn submitted(&mut self, at: (LaneId, i64), batch: u64) {
        let known = self.shards.get_mut(&at.0.shard);
        if let Some(changing) = known.and_then(|known| known.changing.get_mut(&at)) {
            changing.batch = Some(batch);
        }
    }

    /// What was decided comes to nothing: its task is in memory again. Whom it has replaced stays so.
    pub(crate) fn undecided(&mut self, at: (LaneId, i64)) {
        let Some(known) = self.shards.get_mut(&at.0.shard) else {
            return;
        };
        let changing = known.changing.get(&at);
        if changing.is_some_and(|changing| changing.replaces.is_none()) {
            known.unsettle(at);
        }
    }

    /// Whether something was decided about an id that is not durable.
    pub(crate) fn is_busy(&self, shard: i32, id: Identity) -> bool {
        let known = self.shards.get(&shard);
        known.is_some_and(|known| known.busy.contains_key(&id))
    }

    /// A delivery goes into a batch of its lane.
    pub(crate) fn delivered(&mut self, at: (LaneId, i64), batch: u64, told: Told) {
        if let Some(known) = self.shards.get_mut(&at.0.shard) {
            known.deliveries.insert(at, Delivery { batch, told });
        }
    }

    /// A topic has refused a delivery.
    pub(crate) fn refused(&mut self, at: (LaneId, i64)) {
        let Some(known) = self.shards.get_mut(&at.0.shard) else {
            return;
        };
        if let Some(Delivery { told, .. }) = known.deliveries.remove(&at) {
            known.settle(told.id, told.task, told.if_refused);
        }
    }

    /// The batches of a lane up to this one are over.
    pub(crate) fn committed(&mut self, lane: LaneId, over: u64) {
        let Some(known) = self.shards.get_mut(&lane.shard) else {
            return;
        };
        if !known.deliveries.is_empty() {
            let is_over = |(of, _): &(LaneId, i64), delivery: &mut Delivery| {
                *of == lane && delivery.batch <= over
            };
            let over: Vec<_> = known.deliveries.extract_if(.., is_over).collect();
            for (_, Delivery { told, .. }) in over {
                known.settle(told.id, told.task, told.if_taken);
            }
        }
        if !known.changing.is_empty() {
            let is_over = |((of, _), changing): (&(LaneId, i64), &Changing)| {
                *of == lane && changing.batch.is_some_and(|batch| batch <= over)
            };
            let all = known.changing.iter();
            let durable: Vec<_> = all
                .filter(|entry| is_over(*entry))
                .map(|(at, _)| *at)
                .collect();
            for at in durable {
                let replaced = known.unsettle(at).and_then(|changing| changing.replaces);
                let mark = replaced.and_then(|task| known.replaced.get_mut(&task));
                if let Some(mark) = mark {
                    mark.is_durable = true;
                }
            }
        }
    }

    /// A delivery was not written, and is not in a batch any more.
    pub(crate) fn returned(&mut self, at: (LaneId, i64)) {
        if let Some(known) = self.shards.get_mut(&at.0.shard) {
            known.deliveries.remove(&at);
            if let Some(changing) = known.changing.get_mut(&at) {
                changing.batch = None;
            }
        }
    }

    /// Parked tasks of a shard are gone: nobody knows which. Those that are under way as far as was written are forgotten.
    pub(crate) fn forget_under_way(&mut self, shard: i32) {
        let Some(known) = self.shards.get_mut(&shard) else {
            return;
        };
        let of = |_: &Identity, entry: &mut Entry| entry.until.is_none() && entry.written;
        let ids: Vec<Identity> = known.ids.extract_if(of).map(|(id, _)| id).collect();
        for id in &ids {
            known.schedules.remove(id);
        }
        known.gone.extend(ids);
    }

    /// Forgets the ids whose windows are over.
    pub(crate) fn forget_over(&mut self, now: Timestamp) {
        for known in self.shards.values_mut() {
            for _ in 0..AT_ONCE {
                let first = known.ended.first().copied();
                let Some((_, id)) = first.filter(|(until, _)| *until <= now) else {
                    break;
                };
                known.forget(id);
            }
        }
        if !self.is_wanted {
            self.shards.retain(|_, known| !known.is_empty());
        }
    }

    /// The shards of which something is to be written down that is forgotten.
    pub(crate) fn forgotten(&self) -> impl Iterator<Item = i32> {
        let shards = self.shards.iter();
        let has_news = |known: &Shard| !known.gone.is_empty() || !known.given_up.is_empty();
        let forgotten = shards.filter(move |(_, known)| has_news(known));
        forgotten.map(|(shard, _)| *shard)
    }

    /// What is to be written down as forgotten.
    pub(crate) fn changes(&mut self) -> Vec<(i32, State)> {
        let mut changes = Vec::new();
        for (shard, known) in &mut self.shards {
            for _ in 0..AT_ONCE {
                let Some(id) = known.gone.pop_first() else {
                    break;
                };
                changes.push((*shard, State::Id { id, known: None }));
            }
            for _ in 0..AT_ONCE {
                let Some(task) = known.given_up.pop_first() else {
                    break;
                };
                let replaced = None;
                changes.push((*shard, State::Replaced { task, replaced }));
            }
        }
        changes
    }

    /// What was to be written down of a task as not replaced any more was not.
    pub(crate) fn mark_unwritten(&mut self, shard: i32, task: i64) {
        let known = self.shards.entry(shard).or_default();
        if !known.replaced.contains_key(&task) {
            known.given_up.insert(task);
        }
    }

    /// What was to be written down of an id as forgotten was not.
    pub(crate) fn unwritten(&mut self, shard: i32, id: Identity) {
        let known = self.shards.entry(shard).or_default();
        match known.ids.get_mut(&id) {
            Some(entry) => entry.written = true,
            None => drop(known.gone.insert(id)),
        }
    }

    /// How many ids are known.
    pub(crate) fn len(&self) -> usize {
        self.shards.values().map(|known| known.ids.len()).sum()
    }

    /// How many tasks there were whose ids are not known since there was no room.
    pub(crate) const fn unknown(&self) -> u64 {
        self.unknown
    }

    /// The bytes that is known of ids takes.
    pub(crate) fn bytes(&self) -> usize {
        let of = |known: &Shard| {
            let more = known.schedules.len() + known.replaced.len();
            known.ids.len() * BYTES + more * MORE_BYTES
        };
        self.shards.values().map(of).sum()
    }
}

// === impl Shard ===

impl Shard {
    /// Whether nothing is known, and nothing is to be written down.
    fn is_empty(&self) -> bool {
        self.ids.is_empty()
            && self.gone.is_empty()
            && self.replaced.is_empty()
            && self.given_up.is_empty()
            && self.changing.is_empty()
    }

    /// Makes room for one more id, of those that have ended.
    fn has_room(&mut self) -> bool {
        if self.ids.len() + self.replaced.len() < MOST {
            return true;
        }
        let first = self.ended.first().copied();
        if let Some((_, id)) = first {
            self.forget(id);
        }
        first.is_some()
    }

    /// A task of this id is under way from now on, whatever was known of the id; false if there is no room to know it.
    fn begin(&mut self, id: Identity, offset: i64) -> bool {
        let written = self.take(id);
        let has_room = self.has_room();
        if has_room {
            let until = None;
            self.put(
                id,
                Entry {
                    offset,
                    until,
                    written,
                    stale: written,
                },
            );
        } else if written {
            self.gone.insert(id);
        }
        has_room
    }

    /// Puts an id that is not there.
    fn put(&mut self, id: Identity, entry: Entry) {
        self.gone.remove(&id);
        self.ids.insert(id, entry);
        self.may_forget(id);
    }

    /// An id may be forgotten when its window is over: if its task has ended, and that is durable. Before, the end may come to nothing, and the
    /// task be under way again.
    fn may_forget(&mut self, id: Identity) {
        let until = self.ids.get(&id).and_then(|entry| entry.until);
        if let Some(until) = until.filter(|_| !self.busy.contains_key(&id)) {
            self.ended.insert((until, id));
        }
    }

    /// Takes an id out: whether anything is written down of it.
    fn take(&mut self, id: Identity) -> bool {
        let is_gone = self.gone.remove(&id);
        if !self.schedules.is_empty() {
            self.schedules.remove(&id);
        }
        let Some(entry) = self.ids.remove(&id) else {
            return is_gone;
        };
        if let Some(until) = entry.until {
            self.ended.remove(&(until, id));
        }
        entry.written
    }

    /// Forgets an id, which is to be written down if anything was.
    fn forget(&mut self, id: Identity) {
        if self.take(id) {
            self.gone.insert(id);
        }
    }

    /// What is known from now on of the id of the task that entered at `task`, as it was written.
    fn settle(&mut self, id: Identity, task: i64, known: Option<Known>) {
        // Its target may have put it back meanwhile.
        if self.ids.get(&id).is_none_or(|entry| entry.offset != task) {
            return;
        }
        self.take(id);
        if let Some(known) = known {
            let Known {
                offset,
                until,
                schedule,
            } = known;
            let entry = Entry {
                offset,
                until,
                written: true,
                stale: false,
            };
            self.put(id, entry);
            self.keep(id, schedule);
        }
    }

    /// Keeps the schedule of the task of an id, if there is one to keep.
    fn keep(&mut self, id: Identity, schedule: Option<Schedule>) {
        if let Some(schedule) = schedule {
            self.schedules.insert(id, schedule);
        }
    }

    /// What was decided of an offset is durable, or comes to nothing.
    fn unsettle(&mut self, at: (LaneId, i64)) -> Option<Changing> {
        let changing = self.changing.remove(&at)?;
        if let Some(count) = self.busy.get_mut(&changing.id) {
            *count -= 1;
            if *count == 0 {
                self.busy.remove(&changing.id);
                self.may_forget(changing.id);
            }
        }
        Some(changing)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(number: usize) -> Identity {
        Identity::of("pay", &number.to_string())
    }

    fn decided(number: usize, became: Became) -> Decided {
        Decided {
            id: id(number),
            offset: number as i64,
            became,
            is_wanted: true,
            replaces: false,
            schedule: None,
        }
    }

    #[test]
    fn a_shard_knows_so_many_ids_and_those_that_have_ended_make_room() {
        let now = Timestamp::from_millis(1_000);
        let mut known = Duplicates::default();
        for number in 0..MOST {
            assert_eq!(
                known.enter(now, 0, id(number), number as i64),
                Newcomer::First
            );
        }

        let one_more = known.enter(now, 0, id(MOST), MOST as i64);
        let until = now + Duration::from_secs(9);
        known.became(0, decided(7, Became::Ended(until)));
        let in_its_place = known.enter(now, 0, id(MOST), MOST as i64);

        assert_eq!(one_more, Newcomer::Unknown);
        assert_eq!(in_its_place, Newcomer::First);
        assert_eq!((known.len(), known.unknown()), (MOST, 1));
        // What stands of it on the topic is to go.
        let gone = State::Id {
            id: id(7),
            known: None,
        };
        assert_eq!(known.changes(), [(0, gone)]);
        assert!(known.bytes() <= 8 << 20);
    }

    #[test]
    fn an_identity_is_the_same_for_ever_and_read_as_it_was_written() {
        let identity = Identity::of("pay", "order-8");

        assert_eq!(Identity::parse(&identity.to_string()), Some(identity));
        assert_ne!(identity, Identity::of("payorder", "-8"));
        assert_eq!(identity.to_string().len(), 32);
        assert_eq!(Identity::parse("x"), None);
    }

    #[test]
    fn ids_that_are_under_way_are_forgotten_when_parked_tasks_are_gone() {
        let now = Timestamp::from_millis(1_000);
        let mut known = Duplicates::default();
        known.enter(now, 0, id(1), 1);
        known.became(0, decided(1, Became::Parked));
        // In memory, and written nowhere.
        known.enter(now, 0, id(2), 2);

        known.forget_under_way(0);

        assert_eq!(known.enter(now, 0, id(1), 3), Newcomer::First);
        assert!(matches!(
            known.enter(now, 0, id(2), 4),
            Newcomer::Duplicate(_)
        ));
    }
}
