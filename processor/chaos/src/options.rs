//! What a campaign is made of.

use std::path::PathBuf;

use clap::{ArgAction, Parser, ValueEnum};

use crate::plan::Scope;

/// A crash campaign against retide on a real Kafka, and its check.
///
/// Everything that happens follows from the seed, except what clocks and schedulers add. Exits with 0 if every promise was kept, 1 if
/// one was broken, 2 if the campaign itself failed.
#[derive(Clone, Debug, Parser)]
#[command(name = "chaos/run")]
pub(crate) struct Options {
    /// Decides tasks, faults and their times
    #[arg(long, default_value_t = 1)]
    pub(crate) seed: u64,
    /// How many tasks are produced
    #[arg(long, default_value_t = 2_000)]
    pub(crate) tasks: usize,
    /// How often a process is killed and started again
    #[arg(long, default_value_t = 3)]
    pub(crate) kills: usize,
    /// How often a process is stopped for 1.5 times the session timeout, and goes on
    #[arg(long, default_value_t = 1)]
    pub(crate) zombies: usize,
    /// How often a reply of the broker is lost
    #[arg(long, default_value_t = 2)]
    pub(crate) lost_replies: usize,
    /// Which replies are lost, in turn
    #[arg(long, value_enum, value_delimiter = ',', default_value = "end-txn")]
    pub(crate) replies: Vec<Reply>,
    /// How often the broker is killed and started again on its data
    #[arg(long, default_value_t = 0)]
    pub(crate) broker_kills: usize,
    /// How long it is away, in seconds, beyond what a start takes [default: 1 to 7, by the seed]
    #[arg(long)]
    pub(crate) broker_away: Option<u64>,
    /// How often processes join and leave in quick succession
    #[arg(long, default_value_t = 0)]
    pub(crate) storms: usize,
    /// How many things an adversary does to the group besides: odd records, permissions, quotas, partitions, deletions, settings, scenes,
    /// commit metadata, other groups, open transactions; each lasts up to half a minute, two at a time
    #[arg(long, value_name = "ACTS", num_args = 0..=1, default_value_t = 0, default_missing_value = "26")]
    pub(crate) adversary: usize,
    /// Whether people act on tasks meanwhile, and targets answer later: commands, holds, breakers by hand, records that are produced
    /// again; never beside an adversary, who deletes their topics
    #[arg(long, action = ArgAction::Set, default_value_t = true, value_name = "BOOL")]
    pub(crate) commands: bool,
    /// How many campaigns replay dead letters meanwhile; some overlap, one is paused, one meets a target that is broken, one is aborted.
    /// Where people do not act, or with at-least-once, there are none
    #[arg(long, value_name = "CAMPAIGNS", default_value_t = 0)]
    pub(crate) replays: usize,
    /// How many threads are busy beside the campaign, in bursts of up to 4 seconds, as a build on the same machine is; twice the number of
    /// processors makes it a crowded one
    #[arg(long, value_name = "THREADS", default_value_t = 0)]
    pub(crate) load: usize,
    /// How many processes run
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(2..=4))]
    pub(crate) processes: u64,
    /// What is promised: with at-least-once, what ends may end twice, and order holds as long as nothing goes wrong
    #[arg(long, value_enum, default_value_t = Guarantee::ExactlyOnce)]
    pub(crate) guarantee: Guarantee,
    /// How many workers each process has
    #[arg(long, default_value_t = 1)]
    pub(crate) workers: u64,
    /// Tasks a second
    #[arg(long, default_value_t = 60)]
    pub(crate) rate: u64,
    /// Where ledgers and logs go; must not exist yet [default: target/chaos/SEED-TIME]
    #[arg(long)]
    pub(crate) dir: Option<PathBuf>,
    /// The binary under test [default: built from this checkout]
    #[arg(long)]
    pub(crate) retide: Option<PathBuf>,
}

/// What retide promises.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Guarantee {
    /// One end, in a transaction
    ExactlyOnce,
    /// An end, or more
    AtLeastOnce,
}

/// A reply of the broker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Reply {
    /// To the end of a transaction
    EndTxn,
    /// To the offsets of a transaction
    TxnOffsetCommit,
    /// To records
    Produce,
    /// To a heartbeat of the group
    Heartbeat,
    /// To the question for committed offsets
    OffsetFetch,
    /// To a new transactional producer
    InitProducerId,
    /// To the partitions of a transaction
    AddPartitions,
    /// To the group of a transaction
    AddOffsets,
}

// === impl Options ===

impl Options {
    /// Whether there are commands.
    pub(crate) const fn has_commands(&self) -> bool {
        self.commands && self.adversary == 0
    }

    /// How many campaigns replay dead letters.
    pub(crate) const fn replays(&self) -> usize {
        let is_once = matches!(self.guarantee, Guarantee::ExactlyOnce);
        if is_once && self.has_commands() {
            self.replays
        } else {
            0
        }
    }

    /// What tasks there are.
    pub(crate) const fn scope(&self) -> Scope {
        Scope {
            tasks: self.tasks,
            rate: self.rate,
            has_commands: self.has_commands(),
            is_once: matches!(self.guarantee, Guarantee::ExactlyOnce),
        }
    }
}

// === impl Guarantee ===

impl Guarantee {
    /// Its name in retide's configuration.
    pub(crate) const fn word(self) -> &'static str {
        match self {
            Self::ExactlyOnce => "exactly_once",
            Self::AtLeastOnce => "at_least_once",
        }
    }
}

// === impl Reply ===

impl Reply {
    /// The number of the API it answers.
    pub(crate) const fn api(self) -> i16 {
        match self {
            Self::Produce => 0,
            Self::OffsetFetch => 9,
            Self::Heartbeat => 12,
            Self::InitProducerId => 22,
            Self::AddPartitions => 24,
            Self::AddOffsets => 25,
            Self::EndTxn => 26,
            Self::TxnOffsetCommit => 28,
        }
    }

    /// Its name in the fault journal.
    pub(crate) const fn word(self) -> &'static str {
        match self {
            Self::Produce => "produce",
            Self::Heartbeat => "heartbeat",
            Self::OffsetFetch => "offset-fetch",
            Self::InitProducerId => "init-producer-id",
            Self::AddPartitions => "add-partitions",
            Self::AddOffsets => "add-offsets",
            Self::EndTxn => "end-txn",
            Self::TxnOffsetCommit => "txn-offset-commit",
        }
    }
}
