//! What a group has done of what is on a prefix's topics, who else works there, and what does not fit.
//!
//! Not what the topics are like: that is [`check`](super::check)'s. Invariant: no group is joined and nothing is committed, but by
//! [`begin`], which is asked for.
//!
//! A group without offsets is *new* where nobody has worked yet, and *lost* where somebody has: all that is retained would be called again.
//! Somebody has worked if a topic that only retide writes has a committed record, or has had records that are deleted.

use std::collections::{BTreeMap, BTreeSet};
use std::thread;
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::client::{Client, ClientContext};
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use tracing::debug;
use uuid::Uuid;

use retide_native::admin;

use crate::client::LoggingContext;
use crate::cluster::check::{Finding, Seen, Severity};
use crate::cluster::plan::Plan;
use crate::cluster::tools::Tools;
use crate::cluster::{Error, Session, apart};
use crate::offsets::{self, Edge, Offsets};
use crate::scan::{self, Scanned};
use crate::topics::{Reads, Role};

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

/// A member of a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// What its client is called.
    pub client: String,
    /// Where it runs.
    pub host: String,
    /// The topics that it subscribes to, in order.
    pub topics: BTreeSet<String>,
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

/// Longest wait for the group's offsets: its coordinator may have to be found first, or made.
const COMMITTED: Duration = Duration::from_secs(8);

/// Longest time for looking at other groups.
const GROUPS: Duration = Duration::from_secs(6);

/// Most groups without members whose offsets are asked for: each takes two requests.
const MOST_GROUPS: usize = 50;

/// Longest time for a look at what only retide writes.
const LOOK: Duration = Duration::from_secs(5);

/// Pause between two looks at a partition that may be held back.
const STANDS: Duration = Duration::from_secs(1);

/// What is wrong with a group whose members do not fit together begins so.
pub const DISAGREES: &str = "has a member of another configuration";

/// How a fingerprint says that the guarantee is `exactly_once`.
pub const EXACTLY_ONCE: &str = "exactly_once";

/// How a fingerprint says that the guarantee is `at_least_once`.
pub const AT_LEAST_ONCE: &str = "at_least_once";

/// Pause before something is asked again.
const AGAIN: Duration = Duration::from_millis(100);

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
            let committed = committed(&stable, &read);
            for lane in &mut standing.lanes {
                let at = (lane.topic.clone(), lane.partition);
                lane.committed = committed.get(&at).copied().unwrap_or(lane.committed);
            }
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

/// How the group stands in each of these partitions.
fn lanes(
    all: &BaseConsumer<LoggingContext>,
    stable: &BaseConsumer<LoggingContext>,
    read: &[(String, i32)],
) -> Vec<LaneStanding> {
    let ask = |consumer: &BaseConsumer<LoggingContext>, edge| {
        let partitions = read.iter().map(|(topic, partition)| (&**topic, *partition));
        offsets::edges(consumer, partitions, edge, ANSWER).unwrap_or_else(|error| {
            debug!(%error, ?edge, "edges unknown");
            Offsets::new()
        })
    };
    // In this order: what is committed is never beyond an end that was asked for later, nor below a start that was asked for before.
    let first = ask(all, Edge::First);
    let committed = committed(all, read);
    let (stable, end) = (ask(stable, Edge::End), ask(all, Edge::End));
    let of = |offsets: &Offsets, at: &(String, i32)| offsets.get(at).copied();
    let lane = |at: &(String, i32)| LaneStanding {
        topic: at.0.clone(),
        partition: at.1,
        first: of(&first, at),
        stable: of(&stable, at),
        end: of(&end, at),
        committed: committed.get(at).copied().unwrap_or(Committed::Unknown),
    };
    read.iter().map(lane).collect()
}

/// What the group has committed for each of these partitions.
fn committed(
    consumer: &BaseConsumer<LoggingContext>,
    read: &[(String, i32)],
) -> BTreeMap<(String, i32), Committed> {
    let deadline = Instant::now() + COMMITTED;
    let mut list = TopicPartitionList::new();
    for (topic, partition) in read {
        list.add_partition(topic, *partition);
    }
    if read.is_empty() {
        return BTreeMap::new();
    }
    loop {
        match consumer.committed_offsets(list.clone(), ANSWER) {
            Ok(committed) => {
                let elements = committed.elements();
                let of =
                    |element: &rdkafka::topic_partition_list::TopicPartitionListElem<'_>| match (
                        element.error(),
                        element.offset(),
                    ) {
                        (Err(_), _) => Committed::Unknown,
                        (Ok(()), Offset::Offset(next)) => Committed::At(next),
                        (Ok(()), _) => Committed::Never,
                    };
                return elements
                    .iter()
                    .map(|element| {
                        let at = (element.topic().to_owned(), element.partition());
                        (at, of(element))
                    })
                    .collect();
            }
            // The coordinator of a group is made when it is first asked for.
            Err(error) if is_passing(&error) && Instant::now() < deadline => thread::sleep(AGAIN),
            Err(error) => {
                debug!(%error, "committed offsets unknown");
                return BTreeMap::new();
            }
        }
    }
}

/// Whether an error may be gone in a moment.
fn is_passing(error: &KafkaError) -> bool {
    !matches!(
        error.rdkafka_error_code(),
        Some(
            RDKafkaErrorCode::GroupAuthorizationFailed
                | RDKafkaErrorCode::TopicAuthorizationFailed
                | RDKafkaErrorCode::Fatal
        )
    )
}

/// The tiers that are not planned any more, and how many records of each are not done.
fn stray_records(strays: &BTreeSet<String>, lanes: &[LaneStanding]) -> BTreeMap<String, i64> {
    let mut records: BTreeMap<String, i64> =
        strays.iter().map(|topic| (topic.clone(), 0)).collect();
    for lane in lanes.iter().filter(|lane| strays.contains(&lane.topic)) {
        *records.entry(lane.topic.clone()).or_default() += lane.left();
    }
    records
}

/// What shows that somebody has worked on a prefix.
fn worked(whose: &Whose, seen: &Seen, consumer: &BaseConsumer<LoggingContext>) -> Option<String> {
    // What is parked in order is in a tier as well. A process that died before its first commit leaves a mark on the order topic, which is
    // state and no work.
    let is_work = |role: Role| role.is_written() && role.about().reads != Reads::State;
    let written = whose.plan.topics.iter();
    let written = written.filter(|topic| is_work(topic.role));
    let names = written.map(|topic| topic.name.to_string());
    let names = names.chain(strays(&whose.prefix, &whose.plan, seen.topics.keys()));
    for topic in names {
        let partitions = seen.topics.get(&topic).map_or(0, |t| t.replicas.len());
        let partitions = || (0..partitions).map(|partition| (&*topic, partition as i32));
        let first = offsets::edges(consumer, partitions(), Edge::First, ANSWER).ok()?;
        let end = offsets::edges(consumer, partitions(), Edge::End, ANSWER).ok()?;
        if first.values().any(|first| *first > 0) {
            return Some(format!("{topic} has had records that are deleted now"));
        }
        let mut starts = TopicPartitionList::new();
        for ((topic, partition), _) in end.iter().filter(|(_, end)| **end > 0) {
            let added = starts.add_partition_offset(topic, *partition, Offset::Beginning);
            added.ok()?;
        }
        // `doctor --write-probe` writes there, too, in transactions that are aborted.
        let has_records = starts.count() > 0
            && has_record(whose, &starts).unwrap_or_else(|| {
                // Who only writes the topic cannot tell; that command writes to the first partition.
                starts.elements().iter().any(|start| start.partition() > 0)
            });
        if has_records {
            return Some(format!("{topic} has records"));
        }
    }
    None
}

/// Whether there is a committed record from `starts` on, which are of one topic; nothing if it may not be read.
fn has_record(whose: &Whose, starts: &TopicPartitionList) -> Option<bool> {
    let Ok(reader) = scan::consumer(whose.consumer.clone(), &whose.group) else {
        return Some(false);
    };
    let deadline = Instant::now() + LOOK;
    let scanned = scan::read(&reader, starts, deadline, |_| {
        std::ops::ControlFlow::Break(())
    });
    match scanned {
        Ok(scanned) => Some(scanned == Scanned::Enough),
        Err(error) => {
            let code = error.rdkafka_error_code();
            (code != Some(RDKafkaErrorCode::TopicAuthorizationFailed)).then_some(false)
        }
    }
}

/// The other prefixes on whose topics the group has offsets.
fn prefixes(
    whose: &Whose,
    seen: &Seen,
    consumer: &BaseConsumer<LoggingContext>,
) -> BTreeSet<String> {
    let others = seen.topics.iter().filter_map(|(name, topic)| {
        let prefix = name.strip_suffix(".tasks")?;
        let is_retide = seen.topics.contains_key(&format!("{prefix}.delay.now"));
        (prefix != whose.prefix && is_retide).then_some((prefix, name, topic.replicas.len()))
    });
    let mut read = Vec::new();
    for (_, name, partitions) in others.clone() {
        read.extend((0..partitions).map(|partition| (name.clone(), partition as i32)));
    }
    let committed = committed(consumer, &read);
    let has = |name: &String| {
        committed
            .iter()
            .any(|((topic, _), at)| topic == name && matches!(at, Committed::At(_)))
    };
    others
        .filter(|(_, name, _)| has(name))
        .map(|(prefix, ..)| prefix.to_owned())
        .collect()
}

/// The topics that a member of a consumer group subscribes to, as it has told the group; none if it has not, as in a rebalance.
fn subscription(metadata: &[u8]) -> Option<BTreeSet<String>> {
    let (_version, rest) = metadata.split_first_chunk::<2>()?;
    let (count, mut rest) = rest.split_first_chunk::<4>()?;
    let mut topics = BTreeSet::new();
    for _ in 0..u32::from_be_bytes(*count) {
        let (length, after) = rest.split_first_chunk::<2>()?;
        let (name, after) = after.split_at_checked(usize::from(u16::from_be_bytes(*length)))?;
        topics.insert(String::from_utf8_lossy(name).into_owned());
        rest = after;
    }
    Some(topics)
}

/// The members of a group that have said what they read.
///
/// # Errors
/// If the brokers do not answer, or refuse.
pub fn members<C: ConsumerContext>(
    consumer: &BaseConsumer<C>,
    group: &str,
    wait: Duration,
) -> Result<Vec<Member>, KafkaError> {
    members_by(consumer.client(), group, wait)
}

/// As [`members`], by any client.
pub fn members_by<C: ClientContext>(
    client: &Client<C>,
    group: &str,
    wait: Duration,
) -> Result<Vec<Member>, KafkaError> {
    let list = client.fetch_group_list(Some(group), wait)?;
    let groups = list.groups().iter();
    Ok(groups.flat_map(members_of).collect())
}

/// Members of the group of another configuration.
///
/// # Errors
/// If the cluster cannot be asked.
pub async fn others(config: &ClientConfig, whose: &Whose) -> Result<Vec<Finding>, Error> {
    let whose = whose.clone();
    apart(config, move |session| {
        let consumer = whose.consumer("read_committed")?;
        let members =
            members(&consumer, &whose.group, ANSWER).map_err(|source| Error::Request {
                request: "ask for the members of the group",
                address: session.address.clone(),
                source,
            })?;
        Ok(disagreements(&members, &whose))
    })
    .await
}

/// The members of a group that have said what they read.
fn members_of(group: &rdkafka::groups::GroupInfo) -> Vec<Member> {
    let members = group.members().iter();
    members
        .filter_map(|member| {
            Some(Member {
                client: member.client_id().to_owned(),
                host: member.client_host().trim_start_matches('/').to_owned(),
                topics: subscription(member.metadata()?)?,
            })
        })
        .collect()
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

    /// Looks at the members of the group, and at other groups.
    fn look_at_groups(&mut self, whose: &Whose, consumer: &BaseConsumer<LoggingContext>) {
        let deadline = Instant::now() + GROUPS;
        let list = match consumer.fetch_group_list(None, ANSWER) {
            Ok(list) => list,
            Err(error) => {
                debug!(%error, "groups unknown");
                return;
            }
        };
        let ours: BTreeSet<String> = self.lanes.iter().map(|lane| lane.topic.clone()).collect();
        let mut empty = Vec::new();
        for group in list.groups() {
            let members = members_of(group);
            if group.name() == whose.group {
                self.members = members;
            } else if members
                .iter()
                .any(|member| !member.topics.is_disjoint(&ours))
            {
                self.others.insert(group.name().to_owned());
            } else if members.is_empty() && matches!(group.protocol_type(), "consumer" | "") {
                empty.push(group.name().to_owned());
            }
        }
        let ours = |(topic, _): &(String, i32)| ours.contains(topic);
        for group in empty.into_iter().take(MOST_GROUPS) {
            if Instant::now() >= deadline {
                return;
            }
            match admin::committed(consumer.client(), &group, ANSWER) {
                Ok(committed) if committed.iter().any(ours) => {
                    self.others.insert(group);
                }
                Ok(_) => {}
                Err(error) => debug!(%error, group, "offsets of the group unknown"),
            }
        }
    }

    /// What does not fit.
    fn find_faults(&self, whose: &Whose, tools: &Tools) -> Vec<Finding> {
        let mut findings: Vec<Finding> = [
            self.lost(whose),
            self.two_prefixes(whose, tools),
            self.other_groups(whose, tools),
        ]
        .into_iter()
        .flatten()
        .collect();
        findings.extend(disagreements(&self.members, whose));
        findings.extend(self.stray_tiers(whose));
        findings.extend(self.gone(whose));
        findings
    }

    /// A group without offsets where somebody has worked.
    fn lost(&self, whose: &Whose) -> Option<Finding> {
        let worked = self.worked.as_ref()?;
        let entrance = format!("{}.tasks", whose.prefix);
        let in_tasks = |lane: &&LaneStanding| lane.topic == entrance;
        let count = |lanes: Vec<&LaneStanding>| -> i64 {
            let records = lanes.iter().map(|lane| {
                let (first, end) = (lane.first.unwrap_or(0), lane.end.unwrap_or(0));
                (end - first).max(0)
            });
            records.sum()
        };
        let (tasks, tiers): (Vec<_>, Vec<_>) = self.lanes.iter().partition(in_tasks);
        let (tasks, tiers) = (count(tasks), count(tiers));
        let name = if self.others.is_empty() {
            String::new()
        } else {
            let others: Vec<&str> = self.others.iter().map(String::as_str).collect();
            format!(
                "if it was renamed, set group in [processor] back (there are offsets of {}); else ",
                others.join(", ")
            )
        };
        Some(Finding {
            severity: Severity::Refuse,
            subject: format!("group {}", whose.group),
            problem: format!(
                "has no committed offset on {}, but work was done here before ({worked}): it was renamed or deleted, or its offsets have \
                 expired. Up to {tasks} records of the retry topic and {tiers} of tiers would be done again, those that have ended \
                 among them, with second callbacks",
                whose.prefix
            ),
            fix: format!(
                "{name}`{}` to do what is produced from now on, and leave up to {} records undone; or `{}` to do all of them again",
                whose.plan.invocation.line("run --from-now"),
                tasks + tiers,
                whose.plan.invocation.line("run --from-beginning"),
            ),
        })
    }

    /// A group that works on two prefixes.
    fn two_prefixes(&self, whose: &Whose, tools: &Tools) -> Option<Finding> {
        let other = self.prefixes.first()?;
        Some(Finding {
            severity: Severity::Refuse,
            subject: format!("group {}", whose.group),
            problem: format!(
                "has offsets on prefix {other}, too: members of one group would read different topics, and rates and shards are divided \
                 over all of them"
            ),
            fix: format!(
                "set another group in [processor] for prefix {}; if nobody works on {other} any more: {}",
                whose.prefix,
                tools.delete_offsets(&whose.group, &format!("{other}.tasks"))
            ),
        })
    }

    /// Other groups that work here.
    fn other_groups(&self, whose: &Whose, tools: &Tools) -> Option<Finding> {
        if self.others.is_empty() {
            return None;
        }
        let others: Vec<&str> = self.others.iter().map(String::as_str).collect();
        Some(Finding {
            severity: Severity::Warn,
            subject: format!("group {}", whose.group),
            problem: format!(
                "is not the only one on prefix {}: {} has offsets or members there. Each group of retide's does every task",
                whose.prefix,
                others.join(", ")
            ),
            fix: format!(
                "run retide with one group only; to forget a group that nobody uses: {}",
                tools.delete_group(others[0])
            ),
        })
    }

    /// Tiers that are not configured any more, with records in them.
    fn stray_tiers(&self, whose: &Whose) -> Vec<Finding> {
        let strays = self.strays.iter().filter(|(_, left)| **left > 0);
        strays
            .map(|(topic, left)| {
                let tier = topic.rsplit(".delay.").next().unwrap_or(topic);
                Finding {
                    severity: Severity::Warn,
                    subject: topic.clone(),
                    problem: format!(
                        "is no tier of this configuration, and up to {left} records in it are not done: `retide run` reads it until it is \
                         empty, and parks nothing there"
                    ),
                    fix: format!(
                        "leave it until it is empty and delete it then, or add \"{tier}\" to tiers in [topics] of prefix {}",
                        whose.prefix
                    ),
                }
            })
            .collect()
    }

    /// Partitions of which records are gone that were not read.
    fn gone(&self, whose: &Whose) -> Vec<Finding> {
        let mut findings = Vec::new();
        for lane in &self.lanes {
            let Committed::At(next) = lane.committed else {
                continue;
            };
            let subject = format!("{}/{}", lane.topic, lane.partition);
            let finding = |problem: String, fix: String| Finding {
                severity: Severity::Limit,
                subject: subject.clone(),
                problem,
                fix,
            };
            if let Some(first) = lane.first.filter(|first| *first > next) {
                findings.push(finding(
                    format!(
                        "group {} has read up to offset {next}, and the log begins at {first}: up to {} records were deleted before they \
                         were read, and their tasks are lost; `retide run` goes on behind them",
                        whose.group,
                        first - next
                    ),
                    "find out what deletes them: retention.ms and retention.bytes of the topic, kafka-delete-records.sh, a broker that \
                     was down for longer than its replicas"
                        .to_owned(),
                ));
            }
            if let Some(end) = lane.end.filter(|end| *end < next) {
                findings.push(finding(
                    format!(
                        "group {} has read up to offset {next}, and the log ends at {end}: the topic was made anew, or its end was lost; \
                         `retide run` begins with what is there",
                        whose.group
                    ),
                    "find out which: the topic's id and the brokers' logs tell".to_owned(),
                ));
            }
        }
        findings
    }
}

/// Members of the group that have another configuration.
pub fn disagreements(members: &[Member], whose: &Whose) -> Vec<Finding> {
    let tasks = format!("{}.tasks", whose.prefix);
    let mut findings = Vec::new();
    for member in members {
        let Member {
            client,
            host,
            topics,
        } = member;
        let (how, wanted) = if topics.contains(&tasks) {
            match fingerprint_of(client) {
                Some(theirs) if theirs != whose.fingerprint => (
                    "has other tiers, or another guarantee".to_owned(),
                    "tiers in [topics] and guarantee in [processor]",
                ),
                Some(_) | None => continue,
            }
        } else {
            let topics: Vec<&str> = topics.iter().map(String::as_str).collect();
            (
                format!("reads {}, and not {tasks}", topics.join(", ")),
                "prefix in [topics]",
            )
        };
        findings.push(Finding {
            severity: Severity::Refuse,
            subject: format!("group {}", whose.group),
            problem: format!("{DISAGREES}: {client} at {host} {how}"),
            fix: format!(
                "give all members the same {wanted}, or another group in [processor]; to change that, stop all members first"
            ),
        });
    }
    findings
}

/// What members of a group can see of each other's configuration, as the end of their clients' names: the guarantee and the tiers.
pub fn fingerprint(guarantee: &str, tiers: &[&str]) -> String {
    let digest = Uuid::new_v5(&Uuid::NAMESPACE_OID, tiers.join(" ").as_bytes());
    format!("{guarantee}.{:.8}", digest.simple().to_string())
}

/// The fingerprint at the end of a client's name, if it has one.
fn fingerprint_of(client: &str) -> Option<&str> {
    let (_, last) = client.rsplit_once('-')?;
    let (guarantee, digest) = last.split_once('.')?;
    let is_one = matches!(guarantee, EXACTLY_ONCE | AT_LEAST_ONCE)
        && digest.len() == 8
        && digest.bytes().all(|byte| byte.is_ascii_hexdigit());
    is_one.then_some(last)
}

/// A partition whose last records cannot be read, since a transaction is open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hanging {
    /// The topic.
    pub topic: String,
    /// The partition.
    pub partition: i32,
    /// The first offset that cannot be read, which is the first one of the transaction.
    pub stable: i64,
    /// One past the last offset.
    pub end: i64,
    /// Whether retide reads it.
    pub is_read: bool,
}

// === impl Hanging ===

impl Hanging {
    /// What is wrong, and what mends it.
    fn finding(&self, tools: &Tools) -> Finding {
        let Self {
            topic, partition, ..
        } = self;
        Finding {
            severity: if self.is_read {
                Severity::Limit
            } else {
                Severity::Warn
            },
            subject: format!("{topic}/{partition}"),
            problem: self.says(),
            fix: self.fix(tools),
        }
    }

    /// What is wrong.
    pub fn says(&self) -> String {
        let Self { stable, end, .. } = self;
        format!(
            "cannot be read beyond offset {stable}, and ends at {end}: a transaction that began there is not ended, and holds readers back"
        )
    }

    /// What mends it.
    fn fix(&self, tools: &Tools) -> String {
        let Self {
            topic,
            partition,
            stable,
            ..
        } = self;
        tools.abort(topic, *partition, *stable)
    }
}

/// The partitions whose last stable offset stands still for `patience` while there are records behind it.
fn hanging(
    (all, committed): (&BaseConsumer<LoggingContext>, &BaseConsumer<LoggingContext>),
    read: &[(String, i32)],
    written: &[(String, i32)],
    patience: Duration,
) -> Vec<Hanging> {
    let deadline = Instant::now() + patience;
    let mut held: Vec<Hanging> = Vec::new();
    let mut wanted: Vec<(String, i32)> = read.iter().chain(written).cloned().collect();
    let mut is_first = true;
    while !wanted.is_empty() && !patience.is_zero() {
        let ask = |consumer| {
            let partitions = wanted
                .iter()
                .map(|(topic, partition)| (&**topic, *partition));
            offsets::edges(consumer, partitions, Edge::End, ANSWER)
        };
        let (Ok(ends), Ok(stable)) = (ask(all), ask(committed)) else {
            return Vec::new();
        };
        // What is asked for last is never behind what was asked for first, unless it is held back.
        let now: Vec<Hanging> = stable
            .iter()
            .filter_map(|(at, stable)| {
                let end = *ends.get(at).filter(|end| *end > stable)?;
                Some(Hanging {
                    topic: at.0.clone(),
                    partition: at.1,
                    stable: *stable,
                    end,
                    is_read: read.contains(at),
                })
            })
            .collect();
        let stands = |at: &Hanging| {
            is_first
                || held.iter().any(|before| {
                    (&before.topic, before.partition, before.stable)
                        == (&at.topic, at.partition, at.stable)
                })
        };
        held = now.into_iter().filter(stands).collect();
        is_first = false;
        wanted = held
            .iter()
            .map(|at| (at.topic.clone(), at.partition))
            .collect();
        if Instant::now() >= deadline {
            return held;
        }
        if !wanted.is_empty() {
            thread::sleep(STANDS);
        }
    }
    Vec::new()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_subscription_is_read_as_clients_write_it() {
        let mut metadata = vec![0, 3, 0, 0, 0, 2];
        for topic in ["a.tasks", "a.delay.now"] {
            metadata.extend((topic.len() as u16).to_be_bytes());
            metadata.extend(topic.as_bytes());
        }
        metadata.extend([0xff, 0xff, 0xff, 0xff]);

        let topics = subscription(&metadata).unwrap();

        assert_eq!(
            topics.into_iter().collect::<Vec<_>>(),
            ["a.delay.now", "a.tasks"]
        );
        assert_eq!(subscription(&metadata[..12]), None);
        assert_eq!(subscription(&[]), None);
    }

    #[test]
    fn a_fingerprint_is_found_at_the_end_of_a_clients_name() {
        let ours = fingerprint(EXACTLY_ONCE, &["now", "5s"]);

        assert_eq!(fingerprint_of(&format!("retide-a-b-{ours}")), Some(&*ours));
        assert_ne!(ours, fingerprint(EXACTLY_ONCE, &["now", "10s"]));
        assert_ne!(ours, fingerprint(AT_LEAST_ONCE, &["now", "5s"]));
        assert_eq!(fingerprint_of("retide"), None);
        assert_eq!(fingerprint_of("my-client.1"), None);
    }
}
