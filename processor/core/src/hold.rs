//! Holds: tasks that people do not want started, until somebody lets them go.
//!
//! Not how a hold is written down, which is `retide-avro`'s, nor what becomes of a task that is held, which is the engine's
//! (`engine/held.rs`). Invariants: a hold names something and ends by itself; there are no more than [`MAX_HOLDS`].

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use xxhash_rust::xxh3::xxh3_64;

use crate::ramp::{Progress, Ramp};
use crate::scene::Scene;
use crate::selector::Selector;
use crate::task::Task;
use crate::time::Timestamp;

/// Tasks that are not to be started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hold {
    /// Its name.
    pub name: Arc<str>,
    /// Where the record stands that says so: a hold of the same name that is said anew is another one.
    pub revision: Revision,
    /// Which tasks.
    pub selector: Selector,
    /// Who wants it.
    pub by: Box<str>,
    /// Why.
    pub reason: Box<str>,
    /// Since when.
    pub since: Timestamp,
    /// When it ends by itself.
    pub until: Timestamp,
    /// How its tasks are let go; none if they are not.
    pub ramp: Option<Ramp>,
}

/// Where the record of a hold stands on its topic.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Revision {
    /// The partition.
    pub partition: i32,
    /// The offset.
    pub offset: i64,
}

/// What tells holds apart by their names, in as many bytes as a number has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HoldId(u64);

/// How a hold stands in a shard: what is written down of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// The hold that the owner of the shard has taken in.
    pub revision: Revision,
    /// How many due tasks it holds there, as far as the owner has seen them of late.
    pub waiting: u32,
    /// How far its ramp is there, if it has one.
    pub ramp: Option<Progress>,
}

/// The holds in force, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Holds(BTreeMap<Arc<str>, Arc<Hold>>);

/// Most holds at once: more than people look after, and a task that is due is compared with each of them.
pub const MAX_HOLDS: usize = 1_000;

/// Longest name of a hold, in bytes: it is part of keys and events.
pub const MAX_NAME: usize = 100;

/// How long a hold lasts where nothing is said of that: long enough for a night, and for whoever comes back in the morning.
pub const LASTS: Duration = Duration::from_hours(24);

/// Longest time for which a hold may be asked for; it can be asked for again.
pub const LONGEST: Duration = Duration::from_hours(30 * 24);

// === impl Hold ===

impl Hold {
    /// What tells it apart.
    pub fn id(&self) -> HoldId {
        HoldId::of(&self.name)
    }

    /// Whether it is in force.
    pub fn is_on(&self, now: Timestamp) -> bool {
        now < self.until
    }
}

// === impl HoldId ===

impl HoldId {
    /// The id of the hold of this name.
    pub fn of(name: &str) -> Self {
        Self(xxh3_64(name.as_bytes()))
    }

    /// The number.
    pub const fn get(self) -> u64 {
        self.0
    }
}

// === impl Revision ===

impl fmt::Display for Revision {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}/{}", self.partition, self.offset)
    }
}

impl std::str::FromStr for Revision {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (partition, offset) = text.split_once('/').ok_or(())?;
        Ok(Self {
            partition: partition.parse().map_err(|_| ())?,
            offset: offset.parse().map_err(|_| ())?,
        })
    }
}

// === impl Holds ===

impl Holds {
    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Every hold, by name.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Hold>> {
        self.0.values()
    }

    /// The hold of this name.
    pub fn get(&self, name: &str) -> Option<&Arc<Hold>> {
        self.0.get(name)
    }

    /// The holds in force that a task is meant by, whose rules are these.
    pub fn of(
        &self,
        now: Timestamp,
        task: &Task,
        scene: &Scene,
    ) -> impl Iterator<Item = &Arc<Hold>> {
        let holds = self.0.values();
        holds.filter(move |hold| hold.is_on(now) && hold.selector.fits(task, Some(scene)))
    }

    /// The first time at which one of them ends by itself.
    pub fn next_end(&self) -> Option<Timestamp> {
        self.0.values().map(|hold| hold.until).min()
    }

    /// Takes those out that have ended, and gives their names.
    pub fn take_ended(&mut self, now: Timestamp) -> Vec<Arc<str>> {
        let ended = self.0.extract_if(.., |_, hold| !hold.is_on(now));
        ended.map(|(name, _)| name).collect()
    }

    /// Takes all of them out.
    pub fn clear(&mut self) {
        self.0.clear();
    }
}

impl FromIterator<Arc<Hold>> for Holds {
    /// Of more than [`MAX_HOLDS`], those that come first.
    fn from_iter<I: IntoIterator<Item = Arc<Hold>>>(holds: I) -> Self {
        let mut all = BTreeMap::new();
        for hold in holds {
            if all.len() < MAX_HOLDS || all.contains_key(&hold.name) {
                all.insert(Arc::clone(&hold.name), hold);
            }
        }
        Self(all)
    }
}
