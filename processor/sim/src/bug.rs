//! The mistakes that can be planted: in the model of the shell always, in the core with the feature `planted`.

use retide_core::planted::Planted;

/// A mistake.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Bug {
    /// None.
    #[default]
    None,
    /// A transaction commits before its records are acknowledged.
    CommitBeforeProduce,
    /// Batches are committed whether their shards are still ours or not.
    CommitAfterRevoke,
    /// A record that was not delivered is taken as delivered.
    SwallowedDelivery,
    /// A batch whose transaction was aborted is not written again.
    DroppedOnAbort,
    /// A producer whose commit timed out is used for the next transaction.
    ProducerKept,
    /// A producer whose client has sent a request twice is used for the next transaction.
    RepeatedKept,
    /// A commit that timed out is taken as done.
    DoubtTakenAsDone,
    /// A commit that timed out is taken as failed.
    DoubtTakenAsFailed,
    /// The writers commit in any order.
    TurnIgnored,
    /// Records are read before their transaction has committed.
    ReadUncommitted,
    /// Records polled before a pause are taken for records polled after it.
    StaleRun,
    /// A shard is given away without waiting for its last commit.
    NoDrain,
    /// A shard is given away while its last batch is being written.
    GivenUncommitted,
    /// The order of keys is read while transactions that have written of it are not over.
    KeyOrderReadEarly,
    /// The order of keys is written before the batch before has committed.
    KeyOrderOutOfTurn,
    /// Commit metadata is believed whatever it was written for.
    MetadataBelieved,
    /// A batch that was refused is written again as it was, for ever.
    RefusedRepeated,
    /// Nobody is told of tasks whose last attempts were refused by the topics that they were delivered to.
    RefusedUntold,
    /// A batch is committed that rests on one that was handed back.
    ReturnIgnored,
    /// A record overtakes one of its key that is set aside.
    AsideOvertaken,
    /// A mistake of the core.
    #[cfg(feature = "planted")]
    Core(retide_core::planted::Bug),
}

// === impl Bug ===

impl Bug {
    /// The mistake of the core, if it is one.
    #[cfg_attr(
        not(feature = "planted"),
        allow(
            clippy::unused_self,
            reason = "nothing is planted in the core of this build"
        )
    )]
    pub(crate) const fn of_core(self) -> Planted {
        #[cfg(feature = "planted")]
        if let Self::Core(bug) = self {
            return Planted::of(Some(bug));
        }
        Planted::NONE
    }

    /// Every mistake there is.
    pub fn all() -> Vec<Self> {
        let of_shell = [
            Self::CommitBeforeProduce,
            Self::CommitAfterRevoke,
            Self::SwallowedDelivery,
            Self::DroppedOnAbort,
            Self::ProducerKept,
            Self::RepeatedKept,
            Self::DoubtTakenAsDone,
            Self::DoubtTakenAsFailed,
            Self::TurnIgnored,
            Self::ReadUncommitted,
            Self::StaleRun,
            Self::NoDrain,
            Self::GivenUncommitted,
            Self::KeyOrderReadEarly,
            Self::KeyOrderOutOfTurn,
            Self::MetadataBelieved,
            Self::RefusedRepeated,
            Self::RefusedUntold,
            Self::ReturnIgnored,
            Self::AsideOvertaken,
        ];
        #[cfg(feature = "planted")]
        let of_core = retide_core::planted::Bug::ALL.map(Self::Core);
        #[cfg(not(feature = "planted"))]
        let of_core = [];
        of_shell.into_iter().chain(of_core).collect()
    }

    /// Those of the core that are not among them.
    #[cfg(feature = "planted")]
    pub fn rare() -> Vec<Self> {
        retide_core::planted::Bug::RARE.map(Self::Core).into()
    }
}
