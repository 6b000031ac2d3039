//! Who else works on a prefix: the members of a group, whether their configurations fit together, and other groups.
//!
//! Not what they have done. Invariant: no group is joined.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::client::{Client, ClientContext};
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::KafkaError;
use rdkafka::groups::GroupInfo;
use tracing::debug;
use uuid::Uuid;

use retide_native::admin;

use super::{ANSWER, Standing, Whose};
use crate::client::LoggingContext;
use crate::cluster::check::{Finding, Severity};
use crate::cluster::{Error, apart};

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

/// A group that reads a topic.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ReadingGroup {
    /// The group.
    pub group: String,
    /// Its members that read the topic now; none where only its offsets are there.
    pub members: usize,
}

/// The groups that read topics.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReadingGroups {
    /// The groups, by name.
    pub groups: Vec<ReadingGroup>,
    /// Groups of which nobody knows whether they read it.
    pub unseen: usize,
}

/// How far groups without members are looked at: each takes two requests.
#[derive(Clone, Copy, Debug)]
struct Patience {
    /// Most of them.
    groups: usize,
    /// Longest time.
    time: Duration,
}

/// Where a worker starts.
const START: Patience = Patience {
    groups: 50,
    time: Duration::from_secs(6),
};

/// Where somebody asks for them.
const ASKED: Patience = Patience {
    groups: usize::MAX,
    time: Duration::from_secs(30),
};

/// What is wrong with a group whose members do not fit together begins so.
pub const DISAGREES: &str = "has a member of another configuration";

/// How a fingerprint says that the guarantee is `exactly_once`.
pub const EXACTLY_ONCE: &str = "exactly_once";

/// How a fingerprint says that the guarantee is `at_least_once`.
pub const AT_LEAST_ONCE: &str = "at_least_once";

// === impl Standing ===

impl Standing {
    /// Looks at the members of the group, and at other groups.
    pub(super) fn look_at_groups(
        &mut self,
        whose: &Whose,
        consumer: &BaseConsumer<LoggingContext>,
    ) {
        let list = match consumer.fetch_group_list(None, ANSWER) {
            Ok(list) => list,
            Err(error) => {
                debug!(%error, "groups unknown");
                return;
            }
        };
        let ours: BTreeSet<String> = self.lanes.iter().map(|lane| lane.topic.clone()).collect();
        let of_group = |group: &&GroupInfo| group.name() == whose.group;
        if let Some(group) = list.groups().iter().find(of_group) {
            self.members = members_of(group);
        }
        let others = list.groups().iter().filter(|group| !of_group(group));
        let others = reading_among(consumer.client(), others, &ours, START);
        self.others
            .extend(others.groups.into_iter().map(|reader| reader.group));
    }
}

/// The groups that read one of `topics`: a member of theirs subscribes to it, or has partitions of it; or offsets of it are committed.
///
/// # Errors
/// If the brokers do not answer, or refuse.
pub fn reading_groups<C: ConsumerContext>(
    consumer: &BaseConsumer<C>,
    topics: &BTreeSet<String>,
) -> Result<ReadingGroups, KafkaError> {
    let list = consumer.fetch_group_list(None, ANSWER)?;
    Ok(reading_among(
        consumer.client(),
        list.groups().iter(),
        topics,
        ASKED,
    ))
}

/// Those of some groups that read one of `topics`.
fn reading_among<'a, C: ClientContext>(
    client: &Client<C>,
    groups: impl Iterator<Item = &'a GroupInfo>,
    topics: &BTreeSet<String>,
    patience: Patience,
) -> ReadingGroups {
    let deadline = Instant::now() + patience.time;
    let mut readers = ReadingGroups::default();
    let mut empty = Vec::new();
    for group in groups {
        let members = members_of(group);
        let reads = |member: &&Member| !member.topics.is_disjoint(topics);
        let reading = members.iter().filter(reads).count();
        let name = group.name().to_owned();
        if reading > 0 {
            readers.groups.push(ReadingGroup {
                group: name,
                members: reading,
            });
        } else if members.is_empty() && matches!(group.protocol_type(), "consumer" | "") {
            empty.push(name);
        }
    }
    let over = empty.len().saturating_sub(patience.groups);
    empty.truncate(patience.groups);
    readers.unseen += over;
    // Those of the newer protocol (KIP-848) have members that the older question does not tell.
    let assigned = admin::assigned(client, &empty, topics, ANSWER).unwrap_or_else(|error| {
        debug!(%error, "members of groups unknown");
        BTreeMap::new()
    });
    for group in empty {
        if let Some(members) = assigned.get(&group).copied() {
            readers.groups.push(ReadingGroup { group, members });
            continue;
        }
        if Instant::now() >= deadline {
            readers.unseen += 1;
            continue;
        }
        match admin::committed(client, &group, topics, ANSWER) {
            Ok(true) => readers.groups.push(ReadingGroup { group, members: 0 }),
            Ok(false) => {}
            Err(error) => {
                debug!(%error, group, "offsets of the group unknown");
                readers.unseen += 1;
            }
        }
    }
    readers.groups.sort_unstable();
    readers
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
fn members_of(group: &GroupInfo) -> Vec<Member> {
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
