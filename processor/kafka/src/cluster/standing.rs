//! What a group has done of what is on a prefix's topics, who else works there, and what does not fit.
//!
//! | module | what |
//! |---|---|
//! | `lanes` | the partitions that the group reads, and what shows that somebody has worked |
//! | `members` | the members of the group, and other groups |
//! | `faults` | what does not fit |
//! | `hanging` | transactions that nobody ends |
//!
//! Not what the topics are like: that is [`check`](super::check)'s. Invariant: no group is joined and nothing is committed, but by
//! [`begin`], which is asked for.
//!
//! A group without offsets is *new* where nobody has worked yet, and *lost* where somebody has: all that is retained would be called again.
//! Somebody has worked if a topic that only retide writes has a committed record, or has had records that are deleted.

mod faults;
mod hanging;
mod lanes;
mod members;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use crate::client::LoggingContext;
use crate::cluster::check::{Finding, Seen};
use crate::cluster::plan::Plan;
use crate::cluster::tools::Tools;
use crate::cluster::{Error, Session, apart};
use crate::scan;
use crate::topics::Role;

use hanging::hanging;
use lanes::{lanes, look_again, prefixes, stray_records, worked};

pub use hanging::Hanging;
pub use members::{
    AT_LEAST_ONCE, DISAGREES, EXACTLY_ONCE, Member, ReadingGroup, ReadingGroups, disagreements,
    fingerprint, members, members_by, others, reading_groups,
};

/// The group of whom it is asked, and where.
#[derive(Clone, Debug)]
pub struct Whose {
    /// The topics.
    pub plan: Plan,
    /// What their names begin with.
    pub prefix: String,
    /// The group.
    pub group: String,
    /// What consumers are configured with.
    pub consumer: ClientConfig,
    /// What a member with this configuration is known by: see [`fingerprint`].
    pub fingerprint: String,
    /// How long a partition is looked at of which the last records cannot be read yet.
    pub patience: Duration,
}

/// How a group stands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// The partitions that it reads, tiers among them that are not configured any more.
    pub lanes: Vec<LaneStanding>,
    /// The tiers that are not configured any more, and how many records of each are not done.
    pub strays: BTreeMap<String, i64>,
    /// What shows that somebody has worked here; asked only where the group has committed nothing.
    pub worked: Option<String>,
    /// Other groups with offsets or members on these topics.
    pub others: BTreeSet<String>,
    /// Other prefixes on whose topics this group has offsets.
    pub prefixes: BTreeSet<String>,
    /// The members of the group.
    pub members: Vec<Member>,
    /// What does not fit: refusals first.
    pub findings: Vec<Finding>,
}

/// A partition that a group reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LaneStanding {
    /// The topic.
    pub topic: String,
    /// The partition.
    pub partition: i32,
    /// The first offset that is there, if that is known.
    pub first: Option<i64>,
    /// One past the last offset that readers of committed records see.
    pub stable: Option<i64>,
    /// One past the last offset.
    pub end: Option<i64>,
    /// What the group has committed.
    pub committed: Committed,
}

/// What a group has committed for a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Committed {
    /// The next offset to read.
    At(i64),
    /// Nothing.
    Never,
    /// It could not be found out.
    Unknown,
}

/// Where a group without offsets begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Begin {
    /// With everything that is retained.
    Beginning,
    /// With what is written from now on.
    Now,
}

/// Longest wait for one answer.
const ANSWER: Duration = Duration::from_secs(5);

/// How a group stands.
///
/// # Errors
/// If the cluster cannot be asked at all.
pub async fn standing(config: &ClientConfig, whose: &Whose) -> Result<Standing, Error> {
    let whose = whose.clone();
    apart(config, move |session| session.standing(&whose)).await
}

/// Commits for each partition without an offset where the group begins. How many these were.
///
/// # Errors
/// If the cluster cannot be asked, or refuses.
pub async fn begin(config: &ClientConfig, whose: &Whose, from: Begin) -> Result<usize, Error> {
    let whose = whose.clone();
    apart(config, move |session| session.begin(&whose, from)).await
}

/// The tiers of `prefix` among `topics` that are not planned.
pub fn strays<'a>(
    prefix: &str,
    plan: &Plan,
    topics: impl Iterator<Item = &'a String>,
) -> BTreeSet<String> {
    let tiers = format!("{prefix}.delay.");
    let planned = |name: &str| plan.topics.iter().any(|topic| &*topic.name == name);
    topics
        .filter(|name| name.starts_with(&tiers) && !planned(name))
        .cloned()
        .collect()
}

// === impl Whose ===

impl Whose {
    /// The partitions that are read: of the retry topic, the tiers, and tiers that are not planned any more.
    fn read(&self, seen: &Seen) -> Vec<(String, i32)> {
        let planned = self.plan.topics.iter();
        let planned = planned
            .filter(|topic| topic.role.is_read())
            .map(|topic| topic.name.to_string());
        let strays = strays(&self.prefix, &self.plan, seen.topics.keys());
        let mut read = Vec::new();
        for topic in planned.chain(strays) {
            let partitions = seen.topics.get(&topic).map_or(0, |t| t.replicas.len());
            read.extend((0..partitions).map(|partition| (topic.clone(), partition as i32)));
        }
        read
    }

    /// A consumer of this group that sees what is committed, or everything.
    fn consumer(&self, isolation: &str) -> Result<BaseConsumer<LoggingContext>, Error> {
        let mut config = self.consumer.clone();
        config.set("isolation.level", isolation);
        scan::consumer_as_is(config, &self.group).map_err(Error::Client)
    }

    /// The partitions that are only written, or read when a shard is taken over.
    fn written(&self, seen: &Seen) -> Vec<(String, i32)> {
        let is_written = |role: Role| role.is_written() && !role.is_read();
        let written = self.plan.topics.iter();
        let written = written.filter(|topic| is_written(topic.role));
        let mut all = Vec::new();
        for topic in written {
            let partitions = seen.topics.get(&*topic.name);
            let partitions = partitions.map_or(0, |t| t.replicas.len());
            all.extend((0..partitions).map(|partition| (topic.name.to_string(), partition as i32)));
        }
        all
    }
}

// === impl Session ===

impl Session {
    /// See [`standing`].
    fn standing(&self, whose: &Whose) -> Result<Standing, Error> {
        let seen = self.find()?;
        let read = whose.read(&seen);
        let (all, stable) = (
            whose.consumer("read_uncommitted")?,
            whose.consumer("read_committed")?,
        );
        let lanes = lanes(&all, &stable, &read);
        let strays = stray_records(
            &strays(&whose.prefix, &whose.plan, seen.topics.keys()),
            &lanes,
        );
        let mut standing = Standing {
            lanes,
            strays,
            ..Standing::default()
        };
        if standing.is_without_offsets() && standing.records() > 0 {
            standing.worked = worked(whose, &seen, &all);
        }
        if standing.worked.is_some() {
            // Another process of the group may have begun meanwhile: its offsets are committed with what shows that it works.
            look_again(&all, &stable, &mut standing.lanes);
            if !standing.is_without_offsets() {
                standing.worked = None;
            }
        }
        standing.prefixes = prefixes(whose, &seen, &all);
        standing.look_at_groups(whose, &all);
        let tools = Tools::new(&self.config, &self.address);
        standing.findings = standing.find_faults(whose, &tools);
        let written = whose.written(&seen);
        let hanging = hanging((&all, &stable), &read, &written, whose.patience);
        let hanging = hanging.into_iter().map(|at| at.finding(&tools));
        standing.findings.extend(hanging);
        standing.findings.sort_by_key(|finding| finding.severity);
        Ok(standing)
    }

    /// See [`begin`].
    fn begin(&self, whose: &Whose, from: Begin) -> Result<usize, Error> {
        let seen = self.find()?;
        let read = whose.read(&seen);
        let (all, stable) = (
            whose.consumer("read_uncommitted")?,
            whose.consumer("read_committed")?,
        );
        let mut list = TopicPartitionList::new();
        for lane in lanes(&all, &stable, &read) {
            let at = match from {
                Begin::Beginning => lane.first,
                // What an open transaction has written belongs to what comes.
                Begin::Now => lane.stable,
            };
            if let (Committed::Never, Some(at)) = (lane.committed, at) {
                list.add_partition_offset(&lane.topic, lane.partition, Offset::Offset(at))
                    .map_err(Error::Client)?;
            }
        }
        let count = list.count();
        if count > 0 {
            all.commit(&list, CommitMode::Sync)
                .map_err(|source| Error::Request {
                    request: "commit where the group begins",
                    address: self.address.clone(),
                    source,
                })?;
        }
        Ok(count)
    }
}

// === impl Standing ===

impl Standing {
    /// Whether the group has committed nothing at all, as far as that is known.
    pub fn is_without_offsets(&self) -> bool {
        self.lanes
            .iter()
            .all(|lane| lane.committed == Committed::Never)
    }

    /// How many records are there to be read, markers of transactions among them.
    pub fn records(&self) -> i64 {
        let records = self.lanes.iter().map(|lane| {
            let (first, end) = (lane.first.unwrap_or(0), lane.end.unwrap_or(0));
            (end - first).max(0)
        });
        records.sum()
    }
}

// === impl LaneStanding ===

impl LaneStanding {
    /// How many offsets are not done, as far as is known.
    fn left(&self) -> i64 {
        let (Some(first), Some(end)) = (self.first, self.end) else {
            return 0;
        };
        let next = match self.committed {
            Committed::At(next) => next.max(first),
            Committed::Never | Committed::Unknown => first,
        };
        (end - next).max(0)
    }
}
