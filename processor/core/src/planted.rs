//! Planted bugs: mistakes that the simulation has to notice.
//!
//! One hook stands in the code where one can be made: `Planted::is`. Without the feature `planted`, which a release build refuses, it is
//! constantly false, a [`Planted`] has no size, and nothing of this is in the binary. Invariant: where no mistake is planted, nothing behaves
//! differently.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::breaker::{Breaker, LONGEST_OPEN, PROBING, Rejected, State};
use crate::completions::Completions;
use crate::cooldown::Rest;
use crate::entry::Entry;
use crate::outcome::{Outcome, Terminal};
use crate::scene::{MAX_DELAY, Weight};
use crate::step::{Commit, Now};
use crate::task::Task;

/// A mistake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bug {
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
    /// A record that cannot be read is not counted among the dead tasks that people are told of.
    PoisonUncounted,
    /// What was counted for one batch is counted for the next one, too.
    DeadCountedTwice,
    /// What was counted of a shard is told although the shard was given away.
    DeadOfReleasedKept,
    /// What was counted for a batch that was not written is told beside what is counted when it is written.
    ReturnedAlertKept,
    /// A record that is set aside counts as done.
    AsideDone,
    /// What former owners of a shard have taken is not looked at.
    TakenForgotten,
    /// A task that a command meets in a queue starts all the same.
    CancelledAttempted,
    /// What is taken is not marked.
    TakenUnmarked,
    /// What is taken stays marked when its batch was not written.
    TakenKeptOnReturn,
    /// How far the steps of former owners were is not looked at.
    StepRestarted,
    /// What was applied is counted although it was not written.
    AppliedKept,
    /// A commit that takes offsets ahead looks like the one before.
    TakenUntold,
    /// Batches under way are not waited for before tiers are looked through.
    Unfenced,
    /// A server that has asked for rest is never called again.
    CooldownKept,
    /// What other processes say of cooldowns is not heard.
    CooldownUnheard,
    /// A throttled attempt counts like any other.
    ThrottledCounted,
    /// A shard that comes makes a worker forget the holds.
    HoldForgotten,
    /// A hold does not count for what is delivered to a topic.
    HoldCallsOnly,
    /// A task that is held is looked at much later.
    HeldTooLong,
    /// The tasks of a shard are taken in before the commands that stood there are read.
    CommandsUnawaited,
    /// A command that names no ids is over although a record is set aside that it may be about.
    AsideForgotten,
    /// A step of a command answers while its shard is given away.
    AnsweredLeaving,
    /// What a step has counted is forgotten before its answer is written.
    CountsForgotten,
    /// What was to be written of a step is, although its shard was given away and has come back since.
    ProgressOfBefore,
    /// A scene is not braked however many of its tasks die.
    BrakeIgnored,
    /// A scene that is braked stays so.
    BrakeKeptForEver,
    /// A task whose attempt is pending is tried again at its limit, as if nothing had been made.
    PendingAttempted,
    /// The limit of a pending attempt never ends it.
    PendingKept,
    /// What is told of a task counts although its target has done it meanwhile.
    CompletedAfterEnd,
    /// A ramp lets all through at once.
    RampIgnored,
    /// A ramp goes on whatever fails.
    RampNeverFalls,
    /// A task that has ended has its id for a moment only.
    DuplicateWindowShort,
    /// What former owners of a shard knew of ids is not looked at.
    IdsForgotten,
    /// What is known of the id of a task that is parked is not written down.
    IdUnwritten,
    /// A task that is replaced goes on as if it was not.
    ReplacedAttempted,
    /// Which tasks are replaced is not written down.
    ReplacedUnwritten,
    /// A record that waits for a call before it takes the place of its task is forgotten.
    PayloadForgotten,
    /// A task that is out of attempts is started again by itself.
    ExhaustedStarts,
    /// What people let go of those is not heard.
    ExhaustedKept,
    /// What people want of a breaker is not done.
    ForcedIgnored,
    /// What people want of breakers is forgotten when a shard comes.
    ForcedForgotten,
    /// The deadline of a task goes on though a hold says that it stands still.
    DeadlineRuns,
    /// The time for which a deadline stood still does not count once it goes on.
    StoppedTimeLost,
    /// A hold that is over is forgotten, and with it that deadlines stood still.
    StoodForgotten,
    /// A task that is to keep its schedule gets that of the record in its place.
    KeepDueMoved,
    /// What was replayed is not looked at, so that another campaign replays it again.
    LetterTwice,
    /// A campaign begins at the first letter when its shard comes.
    CampaignRestarted,
    /// The brake of a campaign does not stop it.
    CampaignBrakeIgnored,
    /// The newest letter is replayed first.
    ReplayOutOfOrder,
    /// A letter is replayed although an earlier campaign means it that is not over.
    ClaimIgnored,
    /// Nobody is told that a campaign has stopped.
    CampaignUntold,
    /// The leader does not know that people were told of letters that retention takes.
    WarnedForgotten,
    /// People are told of letters that were replayed while they were counted.
    ReplayedWarned,
}

/// The mistake that an engine makes, if one is planted in it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Planted {
    /// Which one.
    #[cfg(feature = "planted")]
    bug: Option<Bug>,
}

// === impl Bug ===

impl Bug {
    /// Every mistake that the simulation is known to notice by itself; the others are [`Self::RARE`].
    pub const ALL: [Self; 69] = [
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
        Self::PoisonUncounted,
        Self::DeadCountedTwice,
        Self::DeadOfReleasedKept,
        Self::ReturnedAlertKept,
        Self::AsideDone,
        Self::TakenForgotten,
        Self::TakenUnmarked,
        Self::StepRestarted,
        Self::AppliedKept,
        Self::Unfenced,
        Self::CooldownKept,
        Self::CooldownUnheard,
        Self::ThrottledCounted,
        Self::HoldForgotten,
        Self::HoldCallsOnly,
        Self::HeldTooLong,
        Self::CommandsUnawaited,
        Self::DuplicateWindowShort,
        Self::IdsForgotten,
        Self::IdUnwritten,
        Self::ReplacedAttempted,
        Self::ReplacedUnwritten,
        Self::PayloadForgotten,
        Self::BrakeIgnored,
        Self::PendingAttempted,
        Self::PendingKept,
        Self::CompletedAfterEnd,
        Self::ForcedIgnored,
        Self::ForcedForgotten,
        Self::DeadlineRuns,
        Self::StoppedTimeLost,
        Self::StoodForgotten,
        Self::KeepDueMoved,
        Self::LetterTwice,
        Self::CampaignRestarted,
        Self::CampaignBrakeIgnored,
        Self::ReplayOutOfOrder,
        Self::ClaimIgnored,
        Self::CampaignUntold,
        Self::WarnedForgotten,
        Self::ReplayedWarned,
    ];

    /// Mistakes that take more histories than a test has, or are not played yet.
    pub const RARE: [Self; 12] = [
        Self::TakenUntold,
        Self::CancelledAttempted,
        Self::TakenKeptOnReturn,
        Self::AsideForgotten,
        Self::AnsweredLeaving,
        Self::CountsForgotten,
        Self::ProgressOfBefore,
        Self::BrakeKeptForEver,
        Self::RampIgnored,
        Self::RampNeverFalls,
        Self::ExhaustedStarts,
        Self::ExhaustedKept,
    ];
}

// === impl Planted ===

impl Planted {
    /// No mistake.
    pub const NONE: Self = Self {
        #[cfg(feature = "planted")]
        bug: None,
    };

    /// This mistake, or none.
    #[cfg(feature = "planted")]
    pub const fn of(bug: Option<Bug>) -> Self {
        Self { bug }
    }

    /// Whether this mistake is planted.
    #[cfg(feature = "planted")]
    #[inline]
    pub(crate) fn is(self, bug: Bug) -> bool {
        self.bug == Some(bug)
    }

    /// Whether this mistake is planted: none is in this build.
    #[cfg(not(feature = "planted"))]
    #[inline]
    #[allow(
        clippy::unused_self,
        reason = "the same hook as in a build that has them"
    )]
    pub(crate) const fn is(self, _: Bug) -> bool {
        false
    }

    /// The time as the agenda sees it.
    pub(crate) fn clock(self, now: Now) -> Now {
        if !self.is(Bug::Early) {
            return now;
        }
        let wall = now.wall + Duration::from_millis(1);
        Now { wall, ..now }
    }

    /// What a new lane is told of the last commit.
    pub(crate) fn known(self, known: Completions) -> Completions {
        if self.is(Bug::CompletionsForgotten) {
            return Completions::default();
        }
        known
    }

    /// What is committed.
    pub(crate) fn commit(self, mut commit: Commit) -> Commit {
        if self.is(Bug::OffsetByOne) {
            commit.watermark += 1;
        }
        if self.is(Bug::WrongBase) {
            commit.completions = commit.completions.moved(1);
        }
        commit
    }

    /// What a target is taken to have said.
    pub(crate) fn heard(self, outcome: &Outcome) -> Cow<'_, Outcome> {
        if self.is(Bug::ThrottleUnheard)
            && let Outcome::Throttled { failure, .. } = outcome
        {
            return Cow::Owned(Outcome::Retryable(failure.clone()));
        }
        Cow::Borrowed(outcome)
    }

    /// Whether a breaker is asked at all.
    pub(crate) fn asks(self, breaker: &Breaker, now: Duration) -> Result<(), Rejected> {
        let is_kept = self.is(Bug::BrakeKeptForEver) && breaker.is_flood();
        if is_kept || (self.is(Bug::BreakerStuckOpen) && breaker.state() == State::Open) {
            return Err(Rejected {
                until: now + PROBING,
                down_for: LONGEST_OPEN,
            });
        }
        Ok(())
    }

    /// Whether a server may be called.
    pub(crate) fn rests(self, rest: Rest, now: Duration) -> Rest {
        match rest {
            Rest::Paced { .. } if self.is(Bug::CooldownKept) => Rest::Shut {
                until: now + MAX_DELAY,
            },
            Rest::None | Rest::Shut { .. } | Rest::Paced { .. } => rest,
        }
    }

    /// A task that is deferred.
    pub(crate) fn deferred(self, task: &mut Task) {
        if self.is(Bug::DeferralBurnsAttempt) {
            task.attempt += 1;
        }
        if self.is(Bug::DeferralMovesDue) {
            task.due = task.wake();
            task.deferral = None;
        }
    }

    /// The key of a task that has an empty one.
    pub(crate) fn empty_key(self, task: &Task) -> Option<&Bytes> {
        let ordered = self.is(Bug::EmptyKeyOrdered);
        task.record.key.as_ref().filter(|_| ordered)
    }

    /// What a scene counts.
    pub(crate) fn weight(self, weight: Weight) -> Weight {
        if self.is(Bug::WeightIgnored) {
            return Weight::default();
        }
        weight
    }

    /// What is written.
    pub(crate) fn written(self, entries: &mut Vec<Entry>) {
        if self.is(Bug::AttemptUncounted) {
            for entry in entries.iter_mut() {
                if let Entry::Park { task, .. } = entry
                    && task.attempt > 2
                {
                    Arc::make_mut(task).attempt -= 1;
                }
            }
        }
        if self.is(Bug::ThrottledCounted) {
            for entry in entries.iter_mut() {
                if let Entry::Park { task, .. } = entry {
                    Arc::make_mut(task).throttled = 0;
                }
            }
        }
        if self.is(Bug::CallbackForgotten) {
            entries.retain(|entry| {
                !matches!(entry, Entry::Callback(ended) if ended.terminal == Terminal::Expired)
            });
        }
    }
}
