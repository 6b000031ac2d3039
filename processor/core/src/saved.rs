//! What a shard has saved up of slow rates, as it rides in the metadata of its offset commits.
//!
//! Not how that is used: see [`crate::quota`]. Invariant: a form that is written is read as what it was, or as less where there was no room
//! for all of it; the slowest rates go first.

use std::cmp::Reverse;
use std::time::Duration;

use xxhash_rust::xxh3::xxh3_64;

use crate::completions::{put_varint, take_varint};
use crate::time::Timestamp;

/// What a shard has saved up of slow rates.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Saved {
    /// Of each rate, by its id, the slowest first.
    rates: Vec<One>,
    /// Since when nobody has started anything for the shard, if that is known.
    pub at: Option<MachineTime>,
}

/// What is saved up of one rate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct One {
    /// The id of the rate.
    id: u32,
    /// The time between two attempts of the shard; none once it was written.
    period: Duration,
    /// The time it took to save that up.
    saved: Duration,
}

/// An instant, as the clock of a machine shows it that runs on while processes come and go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MachineTime {
    /// Which clock: another one for each machine and each time it was started; not 0.
    clock: u32,
    /// What it shows.
    shows: Duration,
}

/// Most rates of one shard: a rate of this kind, if it has no burst, belongs to one shard of all.
const MOST: usize = 48;

/// The id of what is no rate: see [`Saved::mark`].
const MARK: u32 = u32::from_be_bytes(*b"mark");

/// Most bytes of a form.
pub(crate) const MAX_BYTES: usize = 600;

// === impl MachineTime ===

impl MachineTime {
    /// What the clock shows of a machine, with what names its last start.
    pub fn new(started: &[u8], shows: Duration) -> Self {
        let clock = (xxh3_64(started) as u32).max(1);
        Self { clock, shows }
    }

    /// The instant this time later.
    #[must_use]
    pub fn after(self, time: Duration) -> Self {
        let shows = self.shows.saturating_add(time);
        Self { shows, ..self }
    }

    /// How much later than `earlier` it is, if both are of one clock.
    pub fn since(self, earlier: Self) -> Option<Duration> {
        let same = self.clock == earlier.clock;
        same.then(|| self.shows.saturating_sub(earlier.shows))
    }
}

// === impl Saved ===

impl Saved {
    /// Whether nothing is saved up.
    pub const fn is_empty(&self) -> bool {
        self.rates.is_empty()
    }

    /// The ids of the rates.
    pub fn rates(&self) -> impl Iterator<Item = u32> {
        self.rates.iter().map(|rate| rate.id)
    }

    /// How long a rate was saved up for.
    pub fn of(&self, id: u32) -> Option<Duration> {
        let mut rates = self.rates.iter();
        rates.find(|rate| rate.id == id).map(|rate| rate.saved)
    }

    /// Adds a rate that lets the shard start something in each `period`, if anything of it is saved up.
    pub fn put(&mut self, id: u32, period: Duration, saved: Duration) {
        if saved < Duration::from_millis(1) {
            return;
        }
        let place = |rate: &One| (Reverse(rate.period), rate.id);
        let one = One { id, period, saved };
        let at = self
            .rates
            .partition_point(|rate| place(rate) <= place(&one));
        self.rates.insert(at, one);
        self.rates.truncate(MOST);
    }

    /// Makes the form another one than that of any commit before: so that whoever has to find out whether a commit was written can tell, where
    /// its offset and its completions are those of the one before. No rate has this id.
    pub fn mark(&mut self, now: Timestamp) {
        let told = Duration::from_millis(now.as_micros().max(1));
        self.put(MARK, Duration::MAX, told);
    }

    /// The form, of `most` bytes; nothing if nothing is saved up.
    ///
    /// It is the clock and what it shows, or 0, and then the rates, each as four bytes of its id and what was saved up. Times are in
    /// milliseconds, as varints.
    pub(crate) fn encode(&self, most: usize) -> Vec<u8> {
        let mut form = Vec::new();
        match self.at {
            Some(MachineTime { clock, shows }) => {
                put_varint(&mut form, clock.into());
                put_varint(&mut form, millis(shows));
            }
            None => form.push(0),
        }
        let empty = form.len();
        for One { id, saved, .. } in &self.rates {
            let before = form.len();
            form.extend_from_slice(&id.to_le_bytes());
            put_varint(&mut form, millis(*saved));
            if form.len() > most.min(MAX_BYTES) {
                form.truncate(before);
                break;
            }
        }
        if form.len() == empty {
            form.clear();
        }
        form
    }

    /// Reads what [`Self::encode`] wrote.
    pub(crate) fn decode(mut form: &[u8]) -> Option<Self> {
        let clock = u32::try_from(take_varint(&mut form)?).ok()?;
        let at = if clock == 0 {
            None
        } else {
            let shows = Duration::from_millis(take_varint(&mut form)?);
            Some(MachineTime { clock, shows })
        };
        let mut rates = Vec::new();
        while let Some((id, rest)) = form.split_first_chunk() {
            form = rest;
            rates.push(One {
                id: u32::from_le_bytes(*id),
                period: Duration::ZERO,
                saved: Duration::from_millis(take_varint(&mut form)?),
            });
        }
        let is_read = form.is_empty() && !rates.is_empty();
        is_read.then_some(Self { rates, at })
    }
}

/// Milliseconds, rounded down.
fn millis(time: Duration) -> u64 {
    // What a varint of these forms holds; 292 million years.
    u64::try_from(time.as_millis())
        .unwrap_or(u64::MAX)
        .min(u64::MAX >> 1)
}
