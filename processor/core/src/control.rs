//! Commands: what people tell retide to do with tasks that are under way, and what became of that.
//!
//! A command is a record of the commands topic, of one of these forms ([`Control`]): a *request*, as somebody sent it; a *step* for each
//! shard, which follows from it; an *answer* of each shard, when every task of the shard was looked at; and the *end*, with the sums, where
//! the request stands. Campaigns ([`crate::campaign`]) have forms of their own. Each of them is an ordinary record of a lane: what follows from it is written in the transaction that completes its
//! offset. Not how they are written down, which is `retide-avro`'s, nor what a step does, which is the engine's (`engine/control.rs`).
//! Invariant: of two commands for one task the one that stands later on the topic is in force.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use crate::campaign::{self, Campaign, Report};
use crate::lane::Source;
use crate::outcome::Outcome;
use crate::selector::Selector;
use crate::time::Timestamp;

/// A record of the commands topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Control {
    /// What somebody wants.
    Request(Arc<Command>),
    /// What a shard has to do for it.
    Step(Step),
    /// What a shard has done for it.
    Answer(Answer),
    /// What became of it.
    Ended(Ended),
    /// What somebody wants of a campaign.
    Ask(Arc<campaign::Request>),
    /// How a campaign is.
    Campaign(Box<Campaign>),
    /// What tasks of a campaign say.
    Report(Report),
}

/// What somebody wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Command {
    /// Where the request stands: what tells commands apart, and which of two is in force.
    pub place: Place,
    /// The name that its sender has given it, at most [`MAX_ID`] bytes.
    pub id: Arc<str>,
    /// What is to be done.
    pub verb: Verb,
    /// With which tasks.
    pub selector: Selector,
    /// Who wants it, at most [`MAX_TEXT`] bytes.
    pub by: Box<str>,
    /// Why, at most [`MAX_TEXT`] bytes.
    pub reason: Box<str>,
    /// Until when it waits for tasks that it names and that do not exist yet; nothing is begun for it later.
    pub expires: Timestamp,
}

/// Where a request stands on the commands topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// When the broker appended it, in whole milliseconds: first, since it orders requests of all partitions.
    pub at: Timestamp,
    /// The partition.
    pub partition: i32,
    /// The offset.
    pub offset: i64,
}

/// What is to be done with a task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verb {
    /// The task ends as [`crate::Terminal::Cancelled`], without another attempt.
    Cancel,
    /// The next attempt may start at once.
    RunNow,
    /// The next attempt may start then.
    Reschedule {
        /// When.
        due: Timestamp,
    },
    /// An attempt was made elsewhere, and this came of it.
    Complete(Outcome),
}

/// What a shard has to do for a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// The command.
    pub command: Arc<Command>,
    /// How many shards have a step of it.
    pub shards: u32,
    /// Whether all look once more.
    pub again: bool,
    /// What was done before, then: one shard counts on from there.
    pub before: Counts,
    /// None if the shard's tasks are to be looked at; else they were, tiers up to these offsets, and it waits for tasks that do not exist yet.
    pub looked: Option<Vec<Looked>>,
}

/// How far a tier was looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Looked {
    /// The tier.
    pub source: Source,
    /// The first offset that was not.
    pub to: i64,
}

/// What a shard has done for a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Which command.
    pub place: Place,
    /// The name of the command.
    pub id: Arc<str>,
    /// The shards that it is of.
    pub of: BTreeSet<i32>,
    /// How many shards answer.
    pub shards: u32,
    /// How many ids the command names.
    pub ids: u32,
    /// What was done.
    pub counts: Counts,
    /// What is asked of all shards once more, since tasks were on their way to other shards.
    pub again: Option<Box<Step>>,
}

/// How many tasks a command has met.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Those with which it was done.
    pub done: u64,
    /// Those that had ended meanwhile, or for which a later command is in force.
    pub too_late: u64,
    /// The ids that belong to them, of those that the command names.
    pub found: u64,
}

/// How far a step is: kept with the settlements that follow from it, so that its counts are exact whoever goes on with it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Whether it is of the second look: a record of the first one may still stand.
    pub again: bool,
    /// What was done so far.
    pub counts: Counts,
    /// The tiers that are looked at, and how far.
    pub looking: Vec<Looking>,
}

/// How far the look at a tier is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Looking {
    /// The tier.
    pub source: Source,
    /// The first offset that was not looked at.
    pub next: i64,
    /// The first one that is not to be.
    pub to: i64,
}

/// What became of a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    /// Which command.
    pub place: Place,
    /// The name of the command.
    pub id: Arc<str>,
    /// When all was done.
    pub at: Timestamp,
    /// How many ids the command names.
    pub ids: u32,
    /// The sums over all shards, or why nothing was done.
    pub result: Result<Counts, Box<str>>,
}

/// A record of the commands topic that is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Where it stands.
    pub place: Place,
    /// The name that its sender has given it, as far as it can be read.
    pub id: Arc<str>,
    /// Why, and what to do.
    pub why: Box<str>,
}

/// Longest id of a command.
pub const MAX_ID: usize = 256;

/// Longest name of who wants it, and longest reason.
pub const MAX_TEXT: usize = 1_024;

/// How long a command waits for tasks that do not exist yet, if it does not say.
pub const EXPIRY: Duration = Duration::from_hours(1);

/// How long it may wait at most: as long as its request is kept.
pub const LONGEST: Duration = Duration::from_hours(7 * 24);

// === impl Verb ===

impl Verb {
    /// The word for this verb in commands and events.
    pub const fn word(&self) -> &'static str {
        match self {
            Self::Cancel => "cancel",
            Self::RunNow => "run-now",
            Self::Reschedule { .. } => "reschedule",
            Self::Complete(_) => "complete",
        }
    }
}

// === impl Counts ===

impl Counts {
    /// The sum of both.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self {
            done: self.done.saturating_add(other.done),
            too_late: self.too_late.saturating_add(other.too_late),
            found: self.found.saturating_add(other.found),
        }
    }

    /// All tasks that it has met.
    pub const fn matched(self) -> u64 {
        self.done.saturating_add(self.too_late)
    }

    /// How many of `ids` no task was found for.
    pub fn not_found(self, ids: u32) -> u64 {
        u64::from(ids).saturating_sub(self.found)
    }
}

// === impl Place ===

impl std::fmt::Display for Place {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            formatter,
            "{}/{}/{}",
            self.at.as_millis(),
            self.partition,
            self.offset
        )
    }
}

impl std::str::FromStr for Place {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let mut parts = text.split('/');
        let (Some(at), Some(partition), Some(offset), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(());
        };
        Ok(Self {
            at: Timestamp::from_millis(at.parse().map_err(|_| ())?),
            partition: partition.parse().map_err(|_| ())?,
            offset: offset.parse().map_err(|_| ())?,
        })
    }
}
