//! What a target said (outcome), what that means for the task (verdict), and why a task ended badly.
//!
//! Invariant: the words here are the words on the topics, in logs and in metrics.

use std::time::Duration;

use crate::task::Failure;
use crate::time::Timestamp;

/// What the target said of one attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The task is done.
    Success,
    /// The attempt failed in a way that another one may mend.
    Retryable(Failure),
    /// The attempt failed in a way that no other one will mend.
    Permanent(Failure),
    /// The attempt was refused by an answer that may be about everybody rather than about this task, such as 404: see [`crate::wall`].
    Refused(Failure),
    /// The target asks to be left alone for a while.
    Throttled {
        /// The least time to wait before the next attempt.
        after: Duration,
        /// What it said.
        failure: Failure,
    },
    /// No answer within the target's time limit.
    Timeout(Failure),
    /// The target has taken the task, and will say later what came of it: see [`crate::pending`].
    Pending {
        /// How long that may take, if the target says so.
        limit: Option<Duration>,
    },
}

/// How a task ended. Exactly one of these stands on the callbacks topic for each task.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Terminal {
    /// The target took it.
    Delivered,
    /// The task was given up; it stands on the dead-letters topic with its [`Reason`].
    Dead,
    /// The deadline of the task passed; it stands on the dead-letters topic.
    Expired,
    /// Somebody has cancelled the task.
    Cancelled,
}

/// What the engine does about an outcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The task ended well.
    Delivered,
    /// The next attempt may start at `due`.
    Retry {
        /// When the next attempt may start.
        due: Timestamp,
    },
    /// The task is out of attempts, and is held for people since then.
    Held {
        /// Since when.
        since: Timestamp,
    },
    /// The task is given up.
    Dead(Reason),
    /// No further attempt can start before the deadline.
    Expired,
    /// The attempt is not over: somebody says what came of it, or nobody does until then.
    Pending {
        /// When the attempt counts as one without an answer.
        until: Timestamp,
    },
}

/// Why a record stands on the dead-letters topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reason {
    /// A header of retide's could not be read.
    BadHeader,
    /// The due time or delay could not be read: never taken for "now".
    BadDue,
    /// The due time, of the producer's or of the scene's schedule, is further away than retide parks tasks.
    DueTooFar,
    /// The envelope in the value could not be decoded.
    BadEnvelope,
    /// More headers than retide carries along.
    TooManyHeaders,
    /// The record names no scene, and there is none called `default`.
    NoScene,
    /// The scene it names does not exist, and there is none called `default`.
    UnknownScene,
    /// The target refused it for good.
    Rejected,
    /// The last attempt that its scene allows has failed.
    AttemptsExhausted,
    /// The same, where its scene holds such tasks and as many are held as may be.
    TooManyHeld,
    /// The deadline passed before an attempt succeeded.
    DeadlinePassed,
    /// No point in time is left at which its scene would have tried again.
    ScheduleEnded,
    /// Processes that had it in hand have died.
    Crashed,
    /// A topic would not take its record, and never will: it is too large for it, or breaks a rule of it.
    Unwritable,
    /// It came as a dead letter of others that only names its record, and that is not retained any more.
    OriginGone,
}

// === impl Outcome ===

impl Outcome {
    /// The word for [`Self::Throttled`].
    pub const THROTTLED: &'static str = "throttled";

    /// The word for this outcome in headers, events and metrics.
    pub const fn word(&self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::Retryable(_) => "retryable",
            Self::Permanent(_) | Self::Refused(_) => "permanent",
            Self::Throttled { .. } => Self::THROTTLED,
            Self::Timeout(_) => "timeout",
            Self::Pending { .. } => "pending",
        }
    }

    /// What the target said, if it was not success.
    pub const fn failure(&self) -> Option<&Failure> {
        match self {
            Self::Success | Self::Pending { .. } => None,
            Self::Retryable(failure)
            | Self::Permanent(failure)
            | Self::Refused(failure)
            | Self::Throttled { failure, .. }
            | Self::Timeout(failure) => Some(failure),
        }
    }

    /// What went wrong, to be changed.
    pub const fn failure_mut(&mut self) -> Option<&mut Failure> {
        match self {
            Self::Success | Self::Pending { .. } => None,
            Self::Retryable(failure)
            | Self::Permanent(failure)
            | Self::Refused(failure)
            | Self::Throttled { failure, .. }
            | Self::Timeout(failure) => Some(failure),
        }
    }
}

// === impl Terminal ===

impl Terminal {
    /// Every way a task can end.
    pub const ALL: [Self; 4] = [Self::Delivered, Self::Dead, Self::Expired, Self::Cancelled];

    /// The word for this end in headers, records and metrics.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Delivered => "delivered",
            Self::Dead => "dead",
            Self::Expired => "expired",
            Self::Cancelled => "cancelled",
        }
    }

    /// The end that `word` names, if it names one.
    pub fn from_word(word: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|terminal| terminal.word() == word)
    }
}

// === impl Reason ===

impl Reason {
    /// Every reason there is.
    pub const ALL: [Self; 15] = [
        Self::BadHeader,
        Self::BadDue,
        Self::DueTooFar,
        Self::BadEnvelope,
        Self::TooManyHeaders,
        Self::NoScene,
        Self::UnknownScene,
        Self::Rejected,
        Self::AttemptsExhausted,
        Self::TooManyHeld,
        Self::DeadlinePassed,
        Self::ScheduleEnded,
        Self::Crashed,
        Self::Unwritable,
        Self::OriginGone,
    ];

    /// The word for this reason in the `retry-reason` header.
    pub const fn word(self) -> &'static str {
        match self {
            Self::BadHeader => "bad-header",
            Self::BadDue => "bad-due",
            Self::DueTooFar => "due-too-far",
            Self::BadEnvelope => "bad-envelope",
            Self::TooManyHeaders => "too-many-headers",
            Self::NoScene => "no-scene",
            Self::UnknownScene => "unknown-scene",
            Self::Rejected => "rejected",
            Self::AttemptsExhausted => "attempts-exhausted",
            Self::TooManyHeld => "too-many-held",
            Self::DeadlinePassed => "deadline-passed",
            Self::ScheduleEnded => "schedule-ended",
            Self::Crashed => "crashed",
            Self::Unwritable => "unwritable",
            Self::OriginGone => "origin-gone",
        }
    }
}
