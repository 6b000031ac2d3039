//! What a shard has to know besides what stands in its lanes: records of a compacted topic, read by whoever gets the shard.
//!
//! Written in the transaction of the settlements that change it. Not how keys and values are written down where they name topics, which is
//! the shell's. Invariant: what is handed out and not written is handed out again.

use std::sync::Arc;

use bytes::Bytes;

use crate::control::{Place, Progress};
use crate::duplicates::{Identity, Known, Replaced};
use crate::hold::Standing;
use crate::key_order::{Change, Fingerprint};
use crate::lane::Source;
use crate::time::Timestamp;

/// One record to write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// Which tasks of a key are outstanding.
    Order(Change),
    /// Which offsets of a tier are taken: see [`crate::taken`].
    Taken {
        /// The tier.
        source: Source,
        /// The chunk.
        chunk: i64,
        /// The marks; none if there are none any more, which is a tombstone.
        marks: Option<Bytes>,
    },
    /// How far a step of a command is.
    Step {
        /// The place of the command.
        place: Place,
        /// How far it is; none if it is over.
        progress: Option<Progress>,
    },
    /// Which dead letters of a partition were replayed; of the shard that leads campaigns.
    Letters {
        /// The partition of the dead letters.
        partition: i32,
        /// The chunk.
        chunk: i64,
        /// The marks, as in [`crate::taken`]; none if there are none any more.
        marks: Option<Bytes>,
    },
    /// When people were told of dead letters of a partition that retention takes; of the shard that leads campaigns.
    Warned {
        /// The partition of the dead letters.
        partition: i32,
        /// When; none if that does not count any more.
        at: Option<Timestamp>,
    },
    /// How a hold stands.
    Hold {
        /// The name of the hold.
        name: Arc<str>,
        /// How it stands; none if it is over.
        standing: Option<Standing>,
    },
    /// Whether the task of an id is under way, or has ended of late: see [`crate::duplicates`].
    Id {
        /// The id, within its scene.
        id: Identity,
        /// What is known of it; none if it is forgotten.
        known: Option<Known>,
    },
    /// Whether a task is replaced by another one of its id: see [`crate::duplicates`].
    Replaced {
        /// The offset in the retry topic at which the task entered.
        task: i64,
        /// How it was replaced; none if it is not, or has gone.
        replaced: Option<Replaced>,
    },
}

/// What tells the records of a shard apart.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum StateKey {
    /// [`State::Order`].
    Order(Fingerprint),
    /// [`State::Taken`].
    Taken {
        /// The tier.
        source: Source,
        /// The chunk.
        chunk: i64,
    },
    /// [`State::Step`].
    Step(Place),
    /// [`State::Letters`].
    Letters {
        /// The partition.
        partition: i32,
        /// The chunk.
        chunk: i64,
    },
    /// [`State::Warned`].
    Warned(i32),
    /// [`State::Hold`].
    Hold(Arc<str>),
    /// [`State::Id`].
    Id(Identity),
    /// [`State::Replaced`].
    Replaced(i64),
}

// === impl State ===

impl State {
    /// What tells it apart.
    pub fn key(&self) -> StateKey {
        match self {
            Self::Order(change) => StateKey::Order(change.key),
            Self::Taken { source, chunk, .. } => StateKey::Taken {
                source: *source,
                chunk: *chunk,
            },
            Self::Step { place, .. } => StateKey::Step(*place),
            Self::Letters {
                partition, chunk, ..
            } => StateKey::Letters {
                partition: *partition,
                chunk: *chunk,
            },
            Self::Warned { partition, .. } => StateKey::Warned(*partition),
            Self::Hold { name, .. } => StateKey::Hold(Arc::clone(name)),
            Self::Id { id, .. } => StateKey::Id(*id),
            Self::Replaced { task, .. } => StateKey::Replaced(*task),
        }
    }

    /// The task that is replaced from now on, by the offset at which it entered.
    pub fn replaced(&self) -> Option<i64> {
        match self {
            Self::Replaced { task, replaced } => replaced.map(|_| *task),
            Self::Order(_)
            | Self::Taken { .. }
            | Self::Step { .. }
            | Self::Letters { .. }
            | Self::Warned { .. }
            | Self::Hold { .. }
            | Self::Id { .. } => None,
        }
    }

    /// An id, and what is known of it.
    pub fn id(&self) -> Option<(Identity, Option<Known>)> {
        match self {
            Self::Id { id, known } => Some((*id, *known)),
            Self::Order(_)
            | Self::Taken { .. }
            | Self::Step { .. }
            | Self::Letters { .. }
            | Self::Warned { .. }
            | Self::Hold { .. }
            | Self::Replaced { .. } => None,
        }
    }
}
