//! What the core asks to be written: one [`Entry`] per record on a topic.
//!
//! Typed, not encoded: names of topics, headers and wire formats are `retide-avro`'s and the shell's. Invariant: everything that
//! follows from one decision stands in one batch.

use std::mem;
use std::sync::Arc;

use bytes::Bytes;

use crate::campaign::{self, Replay};
use crate::control::{Control, Place};
use crate::digest::Digest;
use crate::outcome::{Reason, Terminal};
use crate::selector::ErrorFingerprint;
use crate::state::State;
use crate::task::{Failure, Kind, Origin, Record, Task};
use crate::time::Timestamp;
use crate::wait::Wait;

/// One record to write, on the partition of its shard, unless it moves to another one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry {
    /// Park the task in a tier.
    Park {
        /// The tier, as its place in the ladder.
        tier: usize,
        /// The shard it moves to; none if it stays in its own.
        to: Option<i32>,
        /// The task, with its due time set.
        task: Arc<Task>,
    },
    /// Deliver the task to a topic of the same cluster, exactly once.
    Deliver {
        /// The topic.
        topic: Arc<str>,
        /// The task.
        task: Arc<Task>,
        /// When no attempt may start any more, in whichever round: the record may come back.
        deadline: Option<Timestamp>,
        /// How late it is so far.
        wait: Wait,
    },
    /// Keep a task that ended badly, replayable.
    DeadLetter {
        /// The task as it was last tried.
        task: Arc<Task>,
        /// How and why it ended.
        ended: Arc<Ended>,
    },
    /// Keep a record that could not be read, bytes untouched.
    Poison {
        /// The record as it came.
        poison: Arc<Poison>,
        /// How and why it ended.
        ended: Arc<Ended>,
    },
    /// Report the end of a task.
    Callback(Arc<Ended>),
    /// Deliver the report of an end to the target that its scene has for that: park [`Ended::delivery`] in the shortest tier.
    DeliverCallback(Arc<Ended>),
    /// Report a transition of a task.
    Event(Event),
    /// Keep what the next owner of the shard has to know.
    State(State),
    /// Tell people something beside the task.
    Alert(Box<Alert>),
    /// Pass on what becomes of a command.
    Control {
        /// The shard in whose partition that is written.
        to: i32,
        /// What is written.
        control: Box<Control>,
    },
}

/// A record that could not be read as a task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Poison {
    /// The identity that it names, as far as it can be read; else that of its origin: the same after a replay.
    pub id: Arc<str>,
    /// The scene it named, or nothing.
    pub scene: Arc<str>,
    /// The key of the task that it would have been: that of its envelope as far as it can be read, else the record's.
    pub key: Option<Bytes>,
    /// Whether it is a task, or the delivery of a callback as far as it can be told: the end of that is not reported.
    pub kind: Kind,
    /// Where it was read.
    pub origin: Origin,
    /// Key, value and *all* headers as they came.
    pub record: Record,
    /// Why it cannot be run.
    pub reason: Reason,
    /// What exactly was wrong, for people.
    pub detail: Failure,
    /// That it is a task which a campaign has replayed, and retide has parked, as far as that can be read.
    pub replay: Option<Box<Replay>>,
}

/// The end of a task: the content of its callback record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    /// The task's identity.
    pub id: Arc<str>,
    /// The scene it followed, or nothing where the record named none.
    pub scene: Arc<str>,
    /// Whether this is the work or the delivery of a callback.
    pub kind: Kind,
    /// How it ended.
    pub terminal: Terminal,
    /// Why, if it ended badly.
    pub reason: Option<Reason>,
    /// How many attempts were made.
    pub attempts: u32,
    /// Where the task entered.
    pub origin: Origin,
    /// When it entered: see [`crate::task::entered`].
    pub first_failed_at: Timestamp,
    /// When it ended.
    pub at: Timestamp,
    /// What the last failed attempt said.
    pub failure: Option<Failure>,
    /// The key of the producer's record.
    pub key: Option<Bytes>,
    /// What its dead letter lacks of the record.
    pub omitted: Omitted,
}

/// What a dead letter lacks of the record it is of, since the topic would not take it; it stands at its origin as long as that is retained.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Omitted {
    /// Nothing.
    #[default]
    Nothing,
    /// The value, with its digest.
    Value(Digest),
    /// The value and the producer's headers, with the digest of both; none where nobody has looked at them.
    Record(Option<Digest>),
}

/// One transition of one task: the audit log's line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// The task's identity.
    pub id: Arc<str>,
    /// The scene it follows.
    pub scene: Arc<str>,
    /// Whether this is the work or the delivery of a callback.
    pub kind: Kind,
    /// When it was decided.
    pub at: Timestamp,
    /// What happened.
    pub transition: Transition,
    /// How late the attempt was that it is about, or the look at its deadline; how late the task is when it is deferred.
    pub wait: Option<Wait>,
    /// The headers of the record that the attempt went without, in words.
    pub left_out: Option<Box<str>>,
    /// The command that it follows from, by the name that its sender has given it.
    pub command: Option<Arc<str>>,
}

/// What happened to a task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Transition {
    /// The task was read from the retry topic and parked until it is due.
    Parked {
        /// When its attempt may start.
        due: Timestamp,
    },
    /// The task was forwarded from one tier to another.
    Hopped {
        /// When its attempt may start.
        due: Timestamp,
        /// How often it was forwarded by now.
        hops: u32,
    },
    /// The gate of the task had no room for long: the task waits in a tier, and no attempt is used up. Told once for each cause.
    Deferred {
        /// When its attempt might have started.
        due: Timestamp,
        /// When the gate is expected to admit it.
        until: Timestamp,
    },
    /// A command has moved the time of the next attempt.
    Rescheduled {
        /// When the attempt may start.
        due: Timestamp,
    },
    /// A campaign has replayed the dead letter of the task.
    Replayed {
        /// The campaign.
        campaign: Arc<str>,
        /// How often that was done by now.
        times: u32,
        /// The shard in which the task entered, where that is told.
        shard: i32,
    },
    /// A command came too late for the task.
    TooLate {
        /// Why: `delivered`, or the word of another end.
        why: &'static str,
    },
    /// Another record has come whose id the task has, or had until a while ago.
    Duplicate {
        /// What became of that record: `dropped`; or of the task, whose place it takes: `replaced`, or `payload-replaced`.
        fate: &'static str,
        /// Where it stands, and of which task that tells.
        told: Failure,
    },
    /// The target has said that it will answer later: the attempt is pending.
    Pending {
        /// The attempt, from 1.
        attempt: u32,
        /// When it counts as one without an answer.
        until: Timestamp,
    },
    /// An attempt failed and another one follows.
    Failed {
        /// The attempt that failed, from 1.
        attempt: u32,
        /// What the target said, in the words of [`crate::Outcome::word`].
        outcome: &'static str,
        /// The details.
        failure: Failure,
        /// When the next attempt may start.
        due: Timestamp,
    },
    /// The last attempt that the scene allows failed, and the task is held for people.
    Held {
        /// That attempt, from 1.
        attempt: u32,
        /// What the target said, in the words of [`crate::Outcome::word`].
        outcome: &'static str,
        /// The details.
        failure: Failure,
        /// Why there is no other one.
        reason: Reason,
    },
    /// The task ended.
    Ended {
        /// How.
        terminal: Terminal,
        /// How many attempts were made.
        attempts: u32,
        /// Why, if it ended badly.
        reason: Option<Reason>,
        /// What its failure has in common with others: see [`Ended::fingerprint`].
        fingerprint: Option<ErrorFingerprint>,
    },
}

/// What a human must know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Alert {
    /// The rule that fired, such as `dead-tasks`.
    pub rule: &'static str,
    /// The scene it is about, or one of those.
    pub scene: Arc<str>,
    /// When it fired.
    pub at: Timestamp,
    /// How many tasks it is about, or calls.
    pub count: u32,
    /// One of those tasks, to start looking.
    pub example: Arc<str>,
    /// Why that one ended, in the words of [`Reason::word`], or why a breaker has switched, in those of [`crate::breaker::TripReason::word`].
    pub reason: &'static str,
    /// The target whose breaker has switched, if one has.
    pub target: Option<TargetHealth>,
    /// The first of the dead letters that go, if it is about those.
    pub expiring: Option<Expiring>,
}

/// A dead letter that goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Expiring {
    /// From when on its topic may delete it.
    pub at: Timestamp,
    /// The partition of the dead letters.
    pub partition: i32,
    /// The offset.
    pub offset: i64,
}

/// How a target does whose breaker has switched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TargetHealth {
    /// The target, such as `https://shop.example:443`.
    pub name: Arc<str>,
    /// How many of the calls failed.
    pub failed: u32,
    /// How many were slow.
    pub slow: u32,
    /// When it was last well.
    pub since: Timestamp,
    /// When it is called again, if it may not be called now.
    pub until: Option<Timestamp>,
    /// Some of the tasks that died, if that is what has made it switch.
    pub samples: Vec<Arc<str>>,
}

/// The rule that counts the tasks that died.
pub const DEAD_TASKS: &str = "dead-tasks";

/// The rule that tasks are held by since their scene does not exist.
pub const SCENE_UNKNOWN: &str = "scene-unknown";

/// The rule that a ramp has fallen back by, so that its tasks are held again.
pub const RAMP_FELL: &str = "ramp-fell-back";

/// The rule that tasks are held by which are out of attempts.
pub const TASKS_EXHAUSTED: &str = "tasks-exhausted";

/// The rule that a breaker has opened by.
pub const BREAKER_OPEN: &str = "breaker-open";

/// The rule that a scene is braked by whose tasks died in numbers: see [`crate::brake`].
pub const FLOOD_BRAKE: &str = "flood-brake";

/// The rule that a campaign is over or waits for people by, although it was not done: see [`crate::campaign`].
pub const CAMPAIGN_STOPPED: &str = "campaign-stopped";

/// The rule that people are told by of dead letters which retention takes: see [`crate::step::LettersKept`].
pub const DEAD_LETTERS_EXPIRE: &str = "dead-letters-expire";

/// The rule that a breaker has closed by after it was open.
pub const BREAKER_CLOSED: &str = "breaker-closed";

// === impl Entry ===

impl Entry {
    /// The task that is parked, and its shard if that is another one.
    pub fn parked(&self) -> Option<(Option<i32>, &Arc<Task>)> {
        match self {
            Self::Park { to, task, .. } => Some((*to, task)),
            Self::Deliver { .. }
            | Self::DeadLetter { .. }
            | Self::Poison { .. }
            | Self::Callback(_)
            | Self::DeliverCallback(_)
            | Self::Event(_)
            | Self::State(_)
            | Self::Alert(_)
            | Self::Control { .. } => None,
        }
    }

    /// The identity of the task that it is about, if it is about one.
    pub fn id(&self) -> Option<&Arc<str>> {
        match self {
            Self::Park { task, .. }
            | Self::Deliver { task, .. }
            | Self::DeadLetter { task, .. } => Some(&task.id),
            Self::Poison { ended, .. } | Self::Callback(ended) | Self::DeliverCallback(ended) => {
                Some(&ended.id)
            }
            Self::Event(event) => Some(&event.id),
            Self::State(_) | Self::Alert(_) | Self::Control { .. } => None,
        }
    }

    /// The topic of others that a task is delivered to, and the task.
    pub fn delivered(&self) -> Option<(&Arc<str>, &Arc<Task>)> {
        match self {
            Self::Deliver { topic, task, .. } => Some((topic, task)),
            Self::Park { .. }
            | Self::DeadLetter { .. }
            | Self::Poison { .. }
            | Self::Callback(_)
            | Self::DeliverCallback(_)
            | Self::Event(_)
            | Self::State(_)
            | Self::Alert(_)
            | Self::Control { .. } => None,
        }
    }

    /// The end that a record of the dead-letters topic is of.
    pub fn dead_letter(&self) -> Option<&Arc<Ended>> {
        match self {
            Self::DeadLetter { ended, .. } | Self::Poison { ended, .. } => Some(ended),
            Self::Park { .. }
            | Self::Deliver { .. }
            | Self::Callback(_)
            | Self::DeliverCallback(_)
            | Self::Event(_)
            | Self::State(_)
            | Self::Alert(_)
            | Self::Control { .. } => None,
        }
    }

    /// The transition that is told.
    pub fn event(&self) -> Option<&Event> {
        match self {
            Self::Event(event) => Some(event),
            Self::Park { .. }
            | Self::Deliver { .. }
            | Self::DeadLetter { .. }
            | Self::Poison { .. }
            | Self::Callback(_)
            | Self::DeliverCallback(_)
            | Self::State(_)
            | Self::Alert(_)
            | Self::Control { .. } => None,
        }
    }

    /// The end that a callback record tells.
    pub fn ended(&self) -> Option<&Arc<Ended>> {
        match self {
            Self::Callback(ended) => Some(ended),
            Self::Park { .. }
            | Self::Deliver { .. }
            | Self::DeadLetter { .. }
            | Self::Poison { .. }
            | Self::DeliverCallback(_)
            | Self::Event(_)
            | Self::State(_)
            | Self::Alert(_)
            | Self::Control { .. } => None,
        }
    }

    /// What is written of a shard for its next owner. The later of two such records of a key is the one that counts, so that they are written in
    /// the order of their batches.
    pub const fn state(&self) -> Option<&State> {
        match self {
            Self::State(state) => Some(state),
            Self::Park { .. }
            | Self::Deliver { .. }
            | Self::DeadLetter { .. }
            | Self::Poison { .. }
            | Self::Callback(_)
            | Self::DeliverCallback(_)
            | Self::Event(_)
            | Self::Alert(_)
            | Self::Control { .. } => None,
        }
    }

    /// The task whose record is written: parked, delivered or kept.
    pub fn task(&self) -> Option<&Arc<Task>> {
        match self {
            Self::Park { task, .. }
            | Self::Deliver { task, .. }
            | Self::DeadLetter { task, .. } => Some(task),
            Self::Poison { .. }
            | Self::Callback(_)
            | Self::DeliverCallback(_)
            | Self::Event(_)
            | Self::State(_)
            | Self::Alert(_)
            | Self::Control { .. } => None,
        }
    }

    /// The record of the commands topic that it is, if it is one.
    fn control(&self) -> Option<&Control> {
        match self {
            Self::Control { control, .. } => Some(control),
            Self::Park { .. }
            | Self::Deliver { .. }
            | Self::DeadLetter { .. }
            | Self::Poison { .. }
            | Self::Callback(_)
            | Self::DeliverCallback(_)
            | Self::Event(_)
            | Self::State(_)
            | Self::Alert(_) => None,
        }
    }

    /// The campaign whose record it is, if it is one.
    pub fn campaign(&self) -> Option<&campaign::Id> {
        match self.control()? {
            Control::Campaign(campaign) => Some(&campaign.id),
            Control::Request(_)
            | Control::Step(_)
            | Control::Answer(_)
            | Control::Ended(_)
            | Control::Ask(_)
            | Control::Report(_) => None,
        }
    }

    /// The command whose step has answered by this, or goes on with it.
    pub fn answered(&self) -> Option<Place> {
        match self.control()? {
            Control::Answer(answer) => Some(answer.place),
            Control::Step(step) => Some(step.command.place),
            Control::Request(_)
            | Control::Ended(_)
            | Control::Ask(_)
            | Control::Campaign(_)
            | Control::Report(_) => None,
        }
    }
}

// === impl Ended ===

impl Ended {
    /// What its failure has in common with others: of the last attempt, else of why it ended badly; none where nothing has failed.
    pub fn fingerprint(&self) -> Option<ErrorFingerprint> {
        let of = |failure: &Failure| ErrorFingerprint::of_kind(self.kind, &self.scene, failure);
        let reason = || {
            let reason = self.reason?;
            Some(of(&Failure::new(reason.word(), "")))
        };
        self.failure.as_ref().map(of).or_else(reason)
    }

    /// The task that delivers this to a target of the scene's own; its record is the shell's to make.
    pub fn delivery(&self) -> Task {
        Task {
            id: Arc::clone(&self.id),
            scene: Arc::clone(&self.scene),
            kind: Kind::Callback,
            attempt: 1,
            due: self.at.ceil_to_millis(),
            deferral: None,
            first_failed_at: self.at,
            deadline: None,
            origin: self.origin.clone(),
            failure: None,
            hops: 0,
            throttled: 0,
            exhausted: None,
            held_since: None,
            pending_since: None,
            stopped: None,
            commanded: None,
            replay: None,
            record: Record::default(),
        }
    }
}

// === impl Omitted ===

impl Omitted {
    /// Leaves out more of a record: its value or, if that is gone, its headers.
    #[must_use]
    pub fn more(self, record: &mut Record) -> Self {
        match self {
            Self::Nothing => {
                let value = record.value.take();
                Self::Value(Digest::of_value(value.as_deref()))
            }
            Self::Value(digest) => {
                let headers = mem::take(&mut record.headers);
                Self::Record(Some(digest.with_headers(&headers)))
            }
            Self::Record(digest) => Self::Record(digest),
        }
    }

    /// The digest of what is omitted, if it is known.
    pub const fn digest(self) -> Option<Digest> {
        match self {
            Self::Nothing => None,
            Self::Value(digest) => Some(digest),
            Self::Record(digest) => digest,
        }
    }

    /// The words for it in the `retry-omitted` header, if anything is omitted.
    pub const fn words(self) -> Option<&'static str> {
        match self {
            Self::Nothing => None,
            Self::Value(_) => Some("value"),
            Self::Record(_) => Some("value and headers"),
        }
    }
}

// === impl Transition ===

impl Transition {
    /// The shard in which the task entered, where whoever tells this may be another one.
    pub const fn home(&self) -> Option<i32> {
        match self {
            Self::Replayed { shard, .. } => Some(*shard),
            Self::Parked { .. }
            | Self::Hopped { .. }
            | Self::Deferred { .. }
            | Self::Rescheduled { .. }
            | Self::TooLate { .. }
            | Self::Duplicate { .. }
            | Self::Pending { .. }
            | Self::Failed { .. }
            | Self::Held { .. }
            | Self::Ended { .. } => None,
        }
    }

    /// The word for this transition in the `retry-event` header.
    pub const fn word(&self) -> &'static str {
        match self {
            Self::Parked { .. } => "parked",
            Self::Hopped { .. } => "hopped",
            Self::Deferred { .. } => "deferred",
            Self::Rescheduled { .. } => "rescheduled",
            Self::Replayed { .. } => "replayed",
            Self::TooLate { .. } => "too-late",
            Self::Duplicate { .. } => "duplicate",
            Self::Pending { .. } => "pending",
            Self::Failed { .. } => "failed",
            Self::Held { .. } => "held",
            Self::Ended { terminal, .. } => terminal.word(),
        }
    }
}
