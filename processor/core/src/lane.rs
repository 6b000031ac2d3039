//! Lanes by name: which partition of which topic, and how much a worker may hold of them.
//!
//! Not the state of a lane, which is the engine's (`engine/lanes.rs`).

/// One partition of one of retide's topics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LaneId {
    /// The partition, the same number on every topic of a shard.
    pub shard: i32,
    /// The topic.
    pub source: Source,
}

/// The topics whose offsets are committed: those that tasks are read from, and the commands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Source {
    /// The retry topic.
    Tasks,
    /// A tier, as its place in the ladder.
    Tier(usize),
    /// The commands topic.
    Commands,
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
