//! The protocol of the engine: what it is told ([`Input`]), what it answers ([`Action`]), and what they are made of.
//!
//! Types only: what follows from an input is decided by [`crate::engine::Engine::step`]. Invariant: whoever drives an engine needs nothing
//! but these types and the few questions that the engine answers.

use std::collections::BTreeSet;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use crate::breaker::{self, StateChange};
use crate::campaign::{Id, Letter, Spec};
use crate::completions::{Binding, Completions};
use crate::control::{Command, Control, Place, Progress, Refusal};
use crate::cooldown;
use crate::duplicates::{Identity, Known, Replaced};
use crate::entry::{Alert, Entry, Poison, Transition};
use crate::hold::{Holds, Standing};
use crate::key_order;
use crate::lane::{LaneId, Source};
use crate::outcome::Outcome;
use crate::saved::Saved;
use crate::scene::{Scene, Scenes};
use crate::sink::{Sink, Sinks};
use crate::state::StateKey;
use crate::taken::Taken;
use crate::task::{Failure, Task};
use crate::time::Timestamp;
use crate::wait::Wait;

/// The time, as the caller sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// Wall-clock time: what due times are compared with.
    pub wall: Timestamp,
    /// Time since a fixed instant, which no clock step changes: what rates are measured by.
    pub steady: Duration,
}

/// What happened.
#[derive(Clone, Debug)]
pub enum Input {
    /// A lane is ours: reading starts at `start`, where `known` is done already.
    Assign {
        /// The lane.
        lane: LaneId,
        /// The first offset that will be read.
        start: i64,
        /// What the last commit says of the offsets above it.
        known: Completions,
    },
    /// What former owners of a shard have saved up of its rates; it comes before the shard's first lane.
    Saved {
        /// The shard.
        shard: i32,
        /// What they have saved up.
        saved: Saved,
    },
    /// What former owners of a shard knew of the order of its tasks; it comes before the shard's first record.
    Outstanding {
        /// The shard.
        shard: i32,
        /// What they knew.
        order: Box<key_order::Shard>,
    },
    /// What former owners of a shard have written of its commands; it comes before the shard's first lane.
    Known {
        /// The shard.
        shard: i32,
        /// The taken offsets of its tiers.
        taken: Vec<(Source, Taken)>,
        /// How far its steps are.
        steps: Vec<(Place, Progress)>,
    },
    /// What former owners of a shard have written of holds; it comes before the shard's first lane.
    HoldsKnown {
        /// The shard.
        shard: i32,
        /// The holds by name, and how they stand.
        holds: Vec<(Arc<str>, Standing)>,
    },
    /// What former owners of a shard have written of the ids of its tasks; it comes before the shard's first lane.
    IdsKnown {
        /// The shard.
        shard: i32,
        /// The ids.
        ids: Vec<(Identity, Known)>,
        /// The tasks that are replaced, by the offsets at which they entered.
        replaced: Vec<(i64, Replaced)>,
    },
    /// These holds are in force from now on.
    Holds(Holds),
    /// Records of commands stand in the lane of a shard up to this offset, which are to be read before its tasks are taken in; it comes
    /// after the shard's lanes.
    Standing {
        /// The shard.
        shard: i32,
        /// One past the last one.
        to: i64,
    },
    /// A record of the commands topic was read, or one that is refused.
    Control {
        /// Where it was read.
        position: Position,
        /// What it says.
        control: Result<Control, Box<Refusal>>,
    },
    /// A look has begun: where each of its lanes ends, and the retry topic of its shards.
    LookBegun {
        /// The number of [`Look`].
        number: u64,
        /// The ends: the next offset of what is written, committed or not, since a commit is known before readers are given what it committed.
        ends: Vec<(LaneId, i64)>,
    },
    /// A look has found a task that one of its commands may be about.
    Found {
        /// The number of [`Look`].
        number: u64,
        /// The lane.
        lane: LaneId,
        /// The offset.
        offset: i64,
        /// The task.
        task: Box<Task>,
    },
    /// A look has passed everything of a lane below an offset, and has said what it has found there.
    Looked {
        /// The number of [`Look`].
        number: u64,
        /// The lane.
        lane: LaneId,
        /// The offset.
        next: i64,
    },
    /// What former owners of the shard that leads campaigns have written of the letters that were replayed, by partition; it comes before
    /// the shard's first lane.
    ReplayedKnown {
        /// The shard.
        shard: i32,
        /// The marks.
        marks: Vec<(i32, Taken)>,
        /// When people were told of letters of a partition that retention takes.
        warned: Vec<(i32, Timestamp)>,
    },
    /// Dead letters were read, as [`Action::ReadLetters`] asked for.
    Letters(Letters),
    /// How long dead letters are kept from now on; none if that is not known, or people do not want to be told of those that go.
    LettersKept(Option<LettersKept>),
    /// A record was read.
    Record {
        /// Where it was read.
        position: Position,
        /// When the broker appended it.
        appended: Timestamp,
        /// The task it holds.
        task: Box<Task>,
    },
    /// A record was read that is no task.
    Poison {
        /// Where it was read.
        position: Position,
        /// The record, and what is wrong with it.
        poison: Arc<Poison>,
    },
    /// A record was read of which it is not known yet what it is: its offset is open until it comes as [`Self::Record`] or [`Self::Poison`],
    /// with this position. Nothing behind it waits for that.
    SetAside {
        /// Where it was read.
        position: Position,
        /// The bytes it holds meanwhile.
        bytes: usize,
    },
    /// Everything of a lane was read below an offset, at which there may be nothing: what lies between it and the last record are markers of
    /// transactions, or what was aborted.
    Passed {
        /// The lane, its run, and that offset.
        position: Position,
    },
    /// A call is made without some headers of its record; it comes before the call is back.
    LeftOut {
        /// The call.
        ticket: u64,
        /// The headers that the call is made without, in words.
        headers: Box<str>,
    },
    /// A call came back.
    Attempted {
        /// The call.
        ticket: u64,
        /// What the target said.
        outcome: Outcome,
    },
    /// What was committed for an offset, as [`Self::Committed`] will say, is the other form of its consequence.
    Refused {
        /// The lane.
        lane: LaneId,
        /// The epoch of [`Commit`].
        epoch: u64,
        /// The offset.
        offset: i64,
    },
    /// The offset commit of a lane is durable. There is one for each [`Commit`], in their order, as long as the lane is ours.
    Committed {
        /// The lane.
        lane: LaneId,
        /// The epoch of [`Commit`].
        epoch: u64,
        /// The watermark of [`Commit`].
        watermark: i64,
    },
    /// A batch was not written, and nothing of its offsets is committed. It stands for the [`Self::Committed`] of all its lanes.
    Returned(Box<Returned>),
    /// Other topics take records, or other amounts of them.
    Writable(Writable),
    /// Of these sources no offset can be committed, from now on and until others are said: what follows from their tasks waits.
    Unreadable(BTreeSet<Source>),
    /// People must know something that was found out outside of the engine.
    Alert {
        /// The shard in whose partition that is written.
        shard: i32,
        /// What they must know.
        alert: Box<Alert>,
    },
    /// A target has said in a success that nothing is left of a limit for this time; it comes before the call is back.
    Spent {
        /// The call.
        ticket: u64,
        /// For how long.
        after: Duration,
    },
    /// Another process says that a server has asked for rest: advice.
    Cooldown {
        /// The server.
        server: Arc<str>,
        /// What it says.
        heard: cooldown::Heard,
    },
    /// Time has passed.
    Tick,
    /// These scenes are in force from now on.
    Rules(Scenes),
    /// There are so many shards in the group from now on: partitions were added.
    Shards(NonZeroU32),
    /// The shard is to be given away soon: its calls in flight are waited for, and meanwhile nothing is started that may not be back by
    /// then; [`crate::Engine::calls_left`] says how many there are.
    Leave {
        /// The shard.
        shard: i32,
    },
    /// The shard is to be given away: nothing more is started for it; [`Action::Drained`] says when its last call is back.
    Revoke {
        /// The shard.
        shard: i32,
    },
    /// The shard is given away; calls that come back later are ignored.
    Release {
        /// The shard.
        shard: i32,
    },
}

/// Where a record was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// The lane.
    pub lane: LaneId,
    /// The run of the lane in which it was read: 0, or what the last [`Action::Resume`] said.
    pub run: u64,
    /// The offset.
    pub offset: i64,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Call the target of `scene`, and report with this ticket.
    Dispatch {
        /// The number of the call.
        ticket: u64,
        /// The lane its task was read from.
        lane: LaneId,
        /// The rules in force.
        scene: Arc<Scene>,
        /// The task.
        task: Arc<Task>,
        /// How late that is.
        wait: Wait,
    },
    /// Write these records; the offset is complete in the same transaction.
    Settle(Settlement),
    /// Stop reading a lane; the next record wanted is at or after `next`.
    Pause {
        /// The lane.
        lane: LaneId,
        /// One past the last offset that was taken.
        next: i64,
    },
    /// Read on from where [`Action::Pause`] said.
    Resume {
        /// The lane.
        lane: LaneId,
        /// To be given with each record read from now on.
        run: u64,
    },
    /// The last call of a shard that is to be given away is back, and what follows from it was said.
    Drained {
        /// The shard.
        shard: i32,
    },
    /// Count the call that has come back by what its answer was taken for. Only after an answer that may be about everybody, and one that was
    /// taken for another: all others are taken for what they are.
    Judged {
        /// What it was taken for.
        outcome: Outcome,
    },
    /// Count a pending attempt whose limit has passed.
    LimitPassed {
        /// The scene whose rules it follows.
        scene: Arc<str>,
        /// What it comes to.
        outcome: Outcome,
    },
    /// Look through tiers, beside the lanes. It stands for the look before, if that is not over.
    Look(Look),
    /// Read dead letters, beside the lanes. It is answered once, by [`Input::Letters`], however long that takes.
    ReadLetters(ReadLetters),
    /// Tell all other processes, and people, that a server has asked for rest.
    Cooldown {
        /// What to tell.
        signal: cooldown::Signal,
        /// Who has told that to this process.
        told_by: cooldown::Teller,
    },
    /// Tell people that the breaker of a target has switched.
    Switched {
        /// Whom it is about.
        target: breaker::Subject,
        /// From what to what.
        switch: StateChange,
    },
}

/// A look through tiers for tasks that commands are about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Look {
    /// Tells looks apart.
    pub number: u64,
    /// The commands: what fits the selector of one of them is to be said.
    pub commands: Vec<Arc<Command>>,
    /// What is looked through.
    pub lanes: Vec<LookLane>,
}

/// A tier that is looked through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LookLane {
    /// The lane.
    pub lane: LaneId,
    /// Which assignment of the lane it is for.
    pub epoch: u64,
    /// The first offset to look at; the last one is the last that is written when it begins.
    pub from: i64,
}

/// Dead letters that are to be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadLetters {
    /// Tells readings apart.
    pub number: u64,
    /// What they are read for.
    pub purpose: LetterPurpose,
    /// The partitions; if there are none, of all partitions is wanted where they begin and end, and no letter.
    pub wants: Vec<LetterWant>,
    /// Most letters of each partition.
    pub most: u32,
    /// Most bytes of the letters of each partition, but for the last one.
    pub bytes: usize,
}

/// What dead letters are read for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LetterPurpose {
    /// To be replayed: payloads that they lack are fetched from where their tasks entered, and count among the bytes.
    Replay {
        /// Which letters are meant.
        spec: Arc<Spec>,
        /// Campaigns that began earlier and are not over: which of them mean a letter is told with it ([`Letter::others`]).
        others: Vec<(Id, Arc<Spec>)>,
    },
    /// To see how old they are: all of them, as they stand.
    Age,
}

/// How long dead letters are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LettersKept {
    /// For so long: then their topic may delete them.
    pub keeps: Duration,
    /// So long before that people are told of those that nobody has replayed; of a short time less, and nobody if it is zero.
    pub warn_before: Duration,
}

/// A partition of the dead letters that is read on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LetterWant {
    /// The partition.
    pub partition: i32,
    /// The first offset.
    pub from: i64,
    /// The first one that is not wanted; if none, what stands there now.
    pub to: Option<i64>,
}

/// Dead letters that were read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Letters {
    /// The number of [`ReadLetters`].
    pub number: u64,
    /// How far each partition was read.
    pub slices: Vec<LetterSlice>,
    /// The letters that are meant, of each partition in the order of their offsets.
    pub letters: Vec<Letter>,
}

/// How far a partition of the dead letters was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LetterSlice {
    /// The partition.
    pub partition: i32,
    /// The first offset that is there.
    pub first: i64,
    /// Everything below was looked at.
    pub next: i64,
    /// The first offset that is not written, as readers see it.
    pub end: i64,
    /// Records that are no letters of retide's.
    pub unread: u64,
}

/// A command that was applied to the task of a settlement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applied {
    /// The command.
    pub place: Place,
    /// How.
    pub effect: Effect,
    /// The task.
    pub id: Arc<str>,
    /// Whether it was counted when all looked once more, as far as it was counted.
    pub again: bool,
}

/// How a command was applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// What it says was done.
    Done,
    /// It came too late.
    TooLate,
}

/// The consequence of one offset.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settlement {
    /// The lane.
    pub lane: LaneId,
    /// The offset.
    pub offset: i64,
    /// The shard in which the task entered: what is said of it is written there, wherever it moved to.
    pub home: i32,
    /// The records to write.
    pub entries: Vec<Entry>,
    /// The records to write instead if a topic of the producer's choice refuses its [`Entry::Deliver`].
    pub otherwise: Vec<Entry>,
    /// The commands that it follows from.
    pub applied: Vec<Applied>,
}

/// What may be committed for a lane.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Commit {
    /// The lane.
    pub lane: LaneId,
    /// Which assignment of the lane it is for.
    pub epoch: u64,
    /// The next offset to read.
    pub watermark: i64,
    /// What is complete above it.
    pub completions: Completions,
    /// What its shard has saved up of its rates; with the retry topic only.
    pub saved: Saved,
}

/// What can be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Writable {
    /// What takes no records.
    pub closed: Sinks,
    /// Whether nothing has been committed for so long that nothing more is to be started.
    pub stuck: bool,
    /// Most settlements of a batch, so that it fits the time it has.
    pub batch_tasks: usize,
    /// Most bytes of the tasks of a batch, likewise.
    pub batch_bytes: usize,
}

/// A batch that was not written.
#[derive(Clone, Debug, Default)]
pub struct Returned {
    /// The lanes of its commits, with their epochs.
    pub lanes: Vec<(LaneId, u64)>,
    /// What stood in it, and what is to become of that.
    pub settlements: Vec<(Settlement, Fate)>,
    /// What stood in it of the state of shards besides.
    pub changes: Vec<(i32, StateKey)>,
    /// The alerts that stood in it besides, by shard.
    pub alerts: Vec<(i32, Box<Alert>)>,
}

/// What is to become of a settlement that was not written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    /// The settlement is written again as it is, as soon as that is possible.
    Again,
    /// The record of it that is written to this sink is refused, and will be the next time.
    Refused(Sink, Failure),
}

// === impl Settlement ===

impl Settlement {
    /// Whether a call was made whose answer it follows from.
    pub fn is_of_call(&self) -> bool {
        is_of_call(&self.entries, &self.otherwise)
    }

    /// The bytes of the task that it is of, as far as it still has them.
    pub fn memory_size(&self) -> usize {
        let task = self.entries.iter().find_map(Entry::task);
        task.map_or(0, |task| task.memory_size())
    }
}

/// Whether a call was made from whose answer these entries follow, with those to write instead.
pub fn is_of_call(entries: &[Entry], otherwise: &[Entry]) -> bool {
    entries.iter().any(|entry| {
        let Entry::Event(event) = entry else {
            return false;
        };
        match event.transition {
            Transition::Failed { .. } | Transition::Pending { .. } | Transition::Held { .. } => {
                true
            }
            Transition::Ended { attempts, .. } => attempts > 0 && otherwise.is_empty(),
            Transition::Parked { .. }
            | Transition::Hopped { .. }
            | Transition::Deferred { .. }
            | Transition::Rescheduled { .. }
            | Transition::Replayed { .. }
            | Transition::TooLate { .. }
            | Transition::Duplicate { .. } => false,
        }
    })
}

// === impl Commit ===

impl Commit {
    /// The text for the metadata of the offset.
    pub fn metadata(&self, binding: Binding) -> String {
        self.completions
            .encode_with(&self.saved, binding, self.watermark)
    }
}

// === impl Writable ===

impl Default for Writable {
    /// Everything.
    fn default() -> Self {
        Self {
            closed: Sinks::NONE,
            stuck: false,
            batch_tasks: usize::MAX,
            batch_bytes: usize::MAX,
        }
    }
}
