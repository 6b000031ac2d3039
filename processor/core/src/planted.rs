//! Planted bugs: mistakes that the simulation has to notice.
//!
//! Not in a build that anyone runs: only behind the feature `planted`, which a release build refuses. Invariant: with [`Bug::None`]
//! nothing behaves differently.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::breaker::{Breaker, Denied, LONGEST_OPEN, PROBING, State};
use crate::completions::Completions;
use crate::engine::{Commit, Now};
use crate::entry::Entry;
use crate::outcome::{Outcome, Terminal};
use crate::scene::Weight;
use crate::task::Task;

/// A mistake.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Bug {
    /// None.
    #[default]
    None,
    /// The offset committed is one too high.
    OffsetByOne,
    /// The completions committed are counted from a wrong base.
    WrongBase,
    /// A task is due one tick too early.
    Early,
    /// The answer to a call of an earlier assignment is taken for one of this assignment.
    NoEpochCheck,
    /// Tasks of a shard that is given away stay in the agenda.
    AgendaKept,
    /// Completions of the last commit are not looked at, so that what they cover ends a second time.
    CompletionsForgotten,
    /// A change of rules grants a fresh burst.
    FreshBurst,
    /// A shard that comes or goes fills up what may be used at once.
    LimiterResetOnRebalance,
    /// A full lane reads on.
    NeverFull,
    /// A shard is said to be drained while its calls are in flight.
    DrainedEarly,
    /// A target that asks for time is not heard.
    ThrottleUnheard,
    /// A failed attempt is not counted.
    AttemptUncounted,
    /// A task that expires is not reported.
    CallbackForgotten,
    /// A clock that is set back is not noticed.
    ClockBackIgnored,
    /// A breaker that is open stays so.
    BreakerStuckOpen,
    /// A task that is deferred loses an attempt.
    DeferralBurnsAttempt,
    /// A task that is deferred is due when that ends, so that it was never late.
    DeferralMovesDue,
    /// What former owners of a shard knew of the order of its tasks is not looked at.
    KeyOrderLostOnRevoke,
    /// A task starts when the end of the one before it is decided, whether that is committed or not.
    KeyOrderUncommitted,
    /// Scenes count the same, whatever their weights.
    WeightIgnored,
    /// A scene whose turn is over does not go behind the others.
    TurnKept,
    /// What was read before a lane was paused, and not taken, counts as read.
    StalePass,
    /// Nobody counts how much is known of keys.
    KeysUncounted,
    /// A parked task whose scene is gone is dead at once.
    MissingSceneKills,
    /// An empty key is a key like any other.
    EmptyKeyOrdered,
    /// Calls are started although what follows from them cannot be written.
    CalledUnwritable,
    /// An attempt starts with what was saved up, while that is still committed for the next owner.
    SavedSpentTwice,
    /// A refusal of a wall gives its task up.
    WallIgnored,
}

// === impl Bug ===

impl Bug {
    /// Every mistake there is.
    pub const ALL: [Self; 28] = [
        Self::OffsetByOne,
        Self::WrongBase,
        Self::Early,
        Self::NoEpochCheck,
        Self::AgendaKept,
        Self::CompletionsForgotten,
        Self::FreshBurst,
        Self::LimiterResetOnRebalance,
        Self::NeverFull,
        Self::DrainedEarly,
        Self::ThrottleUnheard,
        Self::AttemptUncounted,
        Self::CallbackForgotten,
        Self::ClockBackIgnored,
        Self::BreakerStuckOpen,
        Self::DeferralBurnsAttempt,
        Self::DeferralMovesDue,
        Self::KeyOrderLostOnRevoke,
        Self::KeyOrderUncommitted,
        Self::WeightIgnored,
        Self::TurnKept,
        Self::StalePass,
        Self::KeysUncounted,
        Self::MissingSceneKills,
        Self::EmptyKeyOrdered,
        Self::CalledUnwritable,
        Self::SavedSpentTwice,
        Self::WallIgnored,
    ];

    /// The time as the agenda sees it.
    pub(crate) fn clock(self, now: Now) -> Now {
        if self != Self::Early {
            return now;
        }
        let wall = now.wall + Duration::from_millis(1);
        Now { wall, ..now }
    }

    /// What a new lane is told of the last commit.
    pub(crate) fn known(self, known: Completions) -> Completions {
        if self == Self::CompletionsForgotten {
            return Completions::default();
        }
        known
    }

    /// What is committed.
    pub(crate) fn commit(self, mut commit: Commit) -> Commit {
        if self == Self::OffsetByOne {
            commit.watermark += 1;
        }
        if self == Self::WrongBase {
            commit.completions = commit.completions.moved(1);
        }
        commit
    }

    /// What a target is taken to have said.
    pub(crate) fn heard(self, outcome: &Outcome) -> Outcome {
        if let (Self::ThrottleUnheard, Outcome::Throttled { failure, .. }) = (self, outcome) {
            return Outcome::Retryable(failure.clone());
        }
        outcome.clone()
    }

    /// Whether a breaker is asked at all.
    pub(crate) fn asks(self, breaker: &Breaker, now: Duration) -> Result<(), Denied> {
        if self == Self::BreakerStuckOpen && breaker.state() == State::Open {
            return Err(Denied {
                until: now + PROBING,
                down_for: LONGEST_OPEN,
            });
        }
        Ok(())
    }

    /// A task that is deferred.
    pub(crate) fn deferred(self, task: &mut Task) {
        if self == Self::DeferralBurnsAttempt {
            task.attempt += 1;
        }
        if self == Self::DeferralMovesDue {
            task.due = task.wake();
            task.deferral = None;
        }
    }

    /// The key of a task that has an empty one.
    pub(crate) fn empty_key(self, task: &Task) -> Option<&Bytes> {
        let ordered = self == Self::EmptyKeyOrdered;
        task.record.key.as_ref().filter(|_| ordered)
    }

    /// What a scene counts.
    pub(crate) fn weight(self, weight: Weight) -> Weight {
        if self == Self::WeightIgnored {
            return Weight::default();
        }
        weight
    }

    /// What is written.
    pub(crate) fn written(self, mut entries: Vec<Entry>) -> Vec<Entry> {
        if self == Self::AttemptUncounted {
            for entry in &mut entries {
                if let Entry::Park { task, .. } = entry
                    && task.attempt > 2
                {
                    Arc::make_mut(task).attempt -= 1;
                }
            }
        }
        if self == Self::CallbackForgotten {
            entries.retain(|entry| {
                !matches!(entry, Entry::Callback(ended) if ended.terminal == Terminal::Expired)
            });
        }
        entries
    }
}
