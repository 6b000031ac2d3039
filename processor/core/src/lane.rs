//! The lane: the state of one assigned partition.
//!
//! Not its tasks, which wait in the agenda. Invariant: a lane that is full or has read far enough ahead stops reading; it never drops.

use std::collections::VecDeque;
use std::time::Duration;

use crate::order::Ends;
use crate::overdue::Moves;
use crate::tier::HORIZON;
use crate::time::Timestamp;
use crate::window::Window;

/// One partition of one of retide's topics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LaneId {
    /// The partition, the same number on every topic of a shard.
    pub shard: i32,
    /// The topic.
    pub source: Source,
}

/// The topics that tasks are read from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Source {
    /// The retry topic.
    Tasks,
    /// A tier, as its place in the ladder.
    Tier(usize),
}

/// How much a worker holds in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes held by all lanes together before lanes above their own minimum stop reading.
    pub total: usize,
    /// Bytes each lane may hold whatever the others do.
    pub lane_least: usize,
    /// Bytes no lane exceeds by more than one record.
    pub lane_most: usize,
    /// Open offsets of a lane.
    pub lane_open: usize,
    /// Settlements that are written together; what can wait does so from there on.
    pub batch_tasks: usize,
    /// Bytes of the tasks that are written together.
    pub batch_bytes: usize,
    /// Bytes of what is known of keys, from which on no more are read. They are part of `total`.
    pub keys: usize,
}

/// How much a worker holds in memory.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Memory {
    /// Bytes of open tasks.
    pub(crate) tasks: usize,
    /// Bytes of what is known of keys.
    pub(crate) keys: usize,
}

/// How much waits to be written.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Load {
    /// Settlements.
    pub(crate) tasks: usize,
    /// Bytes of their tasks.
    pub(crate) bytes: usize,
}

/// The state of one assigned partition.
#[derive(Clone, Debug)]
pub(crate) struct Lane {
    /// The topic.
    source: Source,
    /// Which assignment of the partition this is; an answer to a call of another one is not for this lane.
    pub(crate) epoch: u64,
    /// When it became ours.
    pub(crate) assigned: Timestamp,
    /// Open and completed offsets.
    pub(crate) window: Window,
    /// Counts resumptions; records polled before the last one are stale and come again.
    pub(crate) run: u64,
    /// Bytes held by open tasks.
    pub(crate) held: usize,
    /// Its part in the batch that is being collected.
    pub(crate) batch: Load,
    /// Calls in flight.
    pub(crate) calls: usize,
    /// Those of them that were in flight when the shard began to leave.
    pub(crate) before: usize,
    /// The last call that was started before the shard began to leave, if it has begun.
    pub(crate) leaving: Option<u64>,
    /// When the last record read is to be looked at.
    pub(crate) reach: Timestamp,
    /// The offset that lay too far beyond the open ones to be read when it came, or 0.
    pub(crate) wanted: i64,
    /// As far as keys waited for its tasks when it became ours: one past the last such offset, or 0.
    pub(crate) awaited: i64,
    /// Whether reading is stopped.
    pub(crate) paused: bool,
    /// Whether the shard is being given away.
    pub(crate) draining: bool,
    /// Whether there is something to commit.
    pub(crate) dirty: bool,
    /// Ends of ordered tasks that are not committed yet.
    pub(crate) ends: Ends,
    /// Tasks deferred in other shards, which is not committed yet.
    pub(crate) moves: Moves,
    /// The numbers of the commits under way, of what is saved up.
    pub(crate) saves: VecDeque<u64>,
}

/// How far a lane reads ahead: as far as tasks wait in the agenda rather than in a tier.
const READ_AHEAD: Duration = HORIZON;

/// How much of [`READ_AHEAD`] is left when a lane reads on: half, so that a busy tier is fetched in large pieces.
const READ_ON: Duration = Duration::from_secs(5);

/// The part of the memory for keys that is free when a lane reads on that was paused for it: small, since keys may be freed one by one,
/// over hours, and enough that each time some are read together.
const KEYS_FREE: usize = 16;

/// The part of the open offsets that a lane may have at which it is crowded. Small: they also have to fit an offset commit.
const CROWDED: usize = 5;

// === impl Limits ===

impl Limits {
    /// The limits of a worker that may hold `total` bytes.
    pub const fn of(total: usize) -> Self {
        Self {
            total,
            // With 12 partitions and 12 topics, the minimums add up to 18 MiB.
            lane_least: 128 << 10,
            // A quarter: no lane alone fills the worker.
            lane_most: total / 4,
            // Small tasks cost more than their bytes: heap entries, slots of the window.
            lane_open: 50_000,
            // A tenth of a second of work where everything goes well.
            batch_tasks: 20_000,
            // Three batches are in memory at once, each as tasks, as records and in the client's queue.
            batch_bytes: if total < 1 << 20 { 1 << 16 } else { total / 16 },
            // The other half is for tasks: those that keys wait for have to be read.
            keys: total / 2,
        }
    }
}

// === impl Load ===

impl Load {
    /// One more settlement.
    pub(crate) const fn add(&mut self, bytes: usize) {
        self.tasks += 1;
        self.bytes += bytes;
    }

    /// Takes away what is not to be written any more.
    pub(crate) const fn take(&mut self, part: Self) {
        self.tasks -= part.tasks;
        self.bytes -= part.bytes;
    }
}

// === impl Memory ===

impl Memory {
    /// All of it.
    const fn total(self) -> usize {
        self.tasks + self.keys
    }
}

// === impl Lane ===

impl Lane {
    /// A lane of `source` that is ours from now on.
    pub(crate) fn new(source: Source, epoch: u64, now: Timestamp, window: Window) -> Self {
        Self {
            source,
            epoch,
            assigned: now,
            window,
            run: 0,
            held: 0,
            batch: Load::default(),
            calls: 0,
            before: 0,
            leaving: None,
            reach: Timestamp::EPOCH,
            wanted: 0,
            awaited: 0,
            paused: false,
            draining: false,
            dirty: false,
            ends: Ends::default(),
            moves: Moves::default(),
            saves: VecDeque::new(),
        }
    }

    /// Whether to stop reading, where the worker holds `memory`.
    pub(crate) fn must_pause(&self, now: Timestamp, memory: Memory, limits: &Limits) -> bool {
        self.reach > now + READ_AHEAD
            || self.is_full(self.held, memory, limits)
            || (self.brings_keys() && memory.keys >= limits.keys)
    }

    /// Whether to read on after a pause, where the worker holds `memory`.
    pub(crate) fn may_resume(&self, now: Timestamp, memory: Memory, limits: &Limits) -> bool {
        // Twice what is held: reading goes on at half the limit, not record by record.
        self.reach <= now + READ_ON
            && !self.is_full(self.held.saturating_mul(2), memory, limits)
            && !(self.brings_keys() && memory.keys >= limits.keys - limits.keys / KEYS_FREE)
    }

    /// Whether what it reads may bring keys that nobody waits for.
    ///
    /// Tasks that keys wait for are in tiers, which are read however many keys there are. So is the retry topic as far as the last owner
    /// was: a task that is complete there, and parked, waits until everything before it is read; and a key may be named of which the task
    /// was to be parked when the topic of that refused it.
    fn brings_keys(&self) -> bool {
        self.source == Source::Tasks
            && !self.window.is_behind_known()
            && self.window.end() >= self.awaited
    }

    /// When to ask again whether a paused lane may read on.
    pub(crate) fn ask_again(&self, now: Timestamp) -> Timestamp {
        // A full lane empties at a pace nobody knows; 20 ms is short beside the reading that follows.
        self.reach
            .before(READ_ON)
            .max(now + Duration::from_millis(20))
    }

    /// Whether so much is held, here or in all, that a task which waits for its gate is better parked, lest others cannot be read.
    pub(crate) fn is_crowded(&self, memory: Memory, limits: &Limits) -> bool {
        self.held >= limits.lane_most / 2
            || memory.tasks >= limits.total.saturating_sub(memory.keys) / 2
            || self.window.open() >= limits.lane_open / CROWDED
    }

    /// Whether `held` bytes, or the open offsets, are as much as this lane may hold.
    fn is_full(&self, held: usize, memory: Memory, limits: &Limits) -> bool {
        held >= limits.lane_most
            || (held >= limits.lane_least && memory.total() >= limits.total)
            || self.window.open() >= limits.lane_open
            || !self.window.has_room()
            || !self.window.has_room_for(self.wanted)
    }
}
