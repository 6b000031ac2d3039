//! Sinks: what records are written to, as far as it makes a difference to what may be done while one of them takes none.
//!
//! Not whether a topic takes records, which the shell finds out.

use crate::entry::Entry;
use crate::outcome::Terminal;

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
    /// The commands topic.
    Commands,
}

/// A set of [`Sink`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sinks(u8);

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
                        Terminal::Delivered | Terminal::Expired | Terminal::Cancelled => sinks,
                    }
                }
                Entry::Callback(_) => sinks.with(Sink::Callbacks),
                Entry::Event(_) => sinks.with(Sink::Events),
                Entry::State(_) => sinks.with(Sink::Order),
                Entry::Alert(_) => sinks.with(Sink::Alerts),
                Entry::Control { .. } => sinks.with(Sink::Commands),
            };
        }
        sinks
    }
}
