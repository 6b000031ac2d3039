//! Topics that others write and retide reads, and the groups by which it reads them.
//!
//! Not what is said of them, nor their records. Invariant: no group is joined, and nothing is committed.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::consumer::BaseConsumer;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::topic_partition_list::TopicPartitionList;
use tracing::debug;
use uuid::Uuid;

use retide_native::admin::{self, Operation};

use crate::client::is_of_group;
use crate::cluster::acl::Resource;
use crate::cluster::check::Seen;
use crate::cluster::session::{LEAST, Reasons, Session, apart};
use crate::cluster::standing::{Member, members};
use crate::cluster::survey::{access, committed, try_commit};
use crate::cluster::tools::Tools;
use crate::cluster::{Access, Error};
use crate::offsets::{self, Edge};
use crate::scan;

/// Who reads a topic that others write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reader {
    /// The topic.
    pub topic: String,
    /// The consumer group.
    pub group: String,
    /// What the names of its members' clients end with: see [`mark`].
    pub mark: String,
}

/// What is known of a topic that others write and retide reads, and of the group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Foreign {
    /// Whether the topic is seen.
    pub sight: Sight,
    /// Whether it may be read; none where brokers do not tell.
    pub may_read: Option<bool>,
    /// Its settings, as far as they may be seen.
    pub settings: BTreeMap<String, String>,
    /// Whether the group may be joined, its offsets read, and others committed.
    pub group: Access,
    /// The members of the group that are not of this reader.
    pub strangers: Vec<Member>,
    /// Partitions of which records were deleted before the group has read them, or that end before what it has read.
    pub lost: Vec<Lost>,
}

/// Whether a topic is seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sight {
    /// It is there.
    There,
    /// It is not there.
    Missing,
    /// It may not be described, so nobody tells whether it is there.
    Hidden,
}

/// A partition whose committed offset is not on its log any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lost {
    /// The partition.
    pub partition: i32,
    /// The next offset that the group reads.
    pub next: i64,
    /// The first offset that is there.
    pub first: i64,
    /// One past the last offset.
    pub end: i64,
}

/// Longest wait for one answer about a group.
const ANSWER: Duration = Duration::from_secs(3);

/// Longest time for looking at all groups: each takes some requests, of some milliseconds as a rule.
const GROUPS: Duration = Duration::from_secs(6);

/// How long a client is listened to that may hear that its group may not be used: a broker answers at once.
const HEAR: Duration = Duration::from_millis(150);

/// Longest wait for one thing that it hears.
const POLL: Duration = Duration::from_millis(10);

/// What stands before the digest of a mark.
const MARK: &str = "source";

/// What tells the members of a source of the group `workers`, which writes to the topic `tasks`, from all others in its group: the end of
/// their clients' names. Brokers tell nothing else of a member.
pub fn mark(tasks: &str, workers: &str, source: &str) -> String {
    let named = format!("{tasks} {workers} {source}");
    let digest = Uuid::new_v5(&Uuid::NAMESPACE_OID, named.as_bytes());
    format!("{MARK}.{:.8}", digest.simple().to_string())
}

/// The name of a client with this mark.
pub fn marked(client: &str, mark: &str) -> String {
    format!("{client}-{mark}")
}

/// Looks at topics that others write and retide reads, with the configuration of a client and that of a consumer. In the order of `readers`.
///
/// # Errors
/// If the cluster cannot be asked.
pub async fn foreign(
    config: &ClientConfig,
    consumer: &ClientConfig,
    readers: &[Reader],
) -> Result<Vec<Foreign>, Error> {
    let (consumer, readers) = (consumer.clone(), readers.to_vec());
    apart(config, move |session| {
        if readers.is_empty() {
            return Ok(Vec::new());
        }
        session.foreign(&consumer, &readers)
    })
    .await
}

// === impl Session ===

impl Session {
    /// See [`foreign`].
    fn foreign(&self, consumer: &ClientConfig, readers: &[Reader]) -> Result<Vec<Foreign>, Error> {
        let tools = Tools::new(&self.config, &self.address);
        let mut names: Vec<&str> = readers.iter().map(|reader| &*reader.topic).collect();
        names.sort_unstable();
        names.dedup();
        let seen = self.find_named(names.iter().copied())?;
        let client = self.admin.inner();
        let answer = admin::permitted(client, &names, self.left().max(LEAST));
        let mut told: BTreeMap<String, Result<Option<bool>, RDKafkaErrorCode>> = BTreeMap::new();
        for permitted in self.answer("describe topics", answer, &seen)? {
            let operations = permitted.operations;
            let may_read =
                operations.map(|operations| operations.map(|all| all.contains(&Operation::Read)));
            told.insert(permitted.topic, may_read);
        }
        names.retain(|name| seen.topics.contains_key(*name));
        let mut settings = BTreeMap::new();
        if !names.is_empty() {
            let answer = admin::settings(client, &names, self.left().max(LEAST));
            for set in self.answer("describe settings", answer, &seen)? {
                settings.insert(set.topic, set.settings.unwrap_or_default());
            }
        }
        let deadline = Instant::now() + GROUPS;
        let all = readers.iter().map(|reader| {
            let told = told.get(&reader.topic);
            let mut found = Foreign {
                sight: Sight::of(&seen, &reader.topic, told),
                may_read: told.and_then(|told| told.ok().flatten()),
                settings: settings.get(&reader.topic).cloned().unwrap_or_default(),
                group: Access::Unknown {
                    reason: "it took too long to look at other groups".to_owned(),
                },
                strangers: Vec::new(),
                lost: Vec::new(),
            };
            if Instant::now() < deadline {
                found.look_at_group(consumer, (&seen, reader), deadline, &tools)?;
            }
            Ok(found)
        });
        all.collect()
    }
}

// === impl Sight ===

impl Sight {
    /// Whether a topic is seen, and by what was `told` of it.
    fn of(seen: &Seen, topic: &str, told: Option<&Result<Option<bool>, RDKafkaErrorCode>>) -> Self {
        match told {
            _ if seen.topics.contains_key(topic) => Self::There,
            // Said of each topic that may not be described, whether it is there or not.
            Some(Err(RDKafkaErrorCode::TopicAuthorizationFailed)) => Self::Hidden,
            Some(_) | None => Self::Missing,
        }
    }
}

// === impl Foreign ===

impl Foreign {
    /// Adds what is known of the group.
    fn look_at_group(
        &mut self,
        consumer: &ClientConfig,
        (seen, reader): (&Seen, &Reader),
        deadline: Instant,
        tools: &Tools,
    ) -> Result<(), Error> {
        let Reader { topic, group, mark } = reader;
        let consumer = scan::consumer_for(consumer.clone(), group, Reasons::default())
            .map_err(Error::Client)?;
        let mut list = TopicPartitionList::new();
        let partitions = seen.topics.get(topic).map_or(0, |seen| seen.replicas.len()) as i32;
        // Of a topic that is not seen, too: the question finds the coordinator of the group, and who may not use the group is told so.
        for partition in 0..partitions.max(1) {
            list.add_partition(topic, partition);
        }
        let first = edges(&consumer, topic, partitions, Edge::First);
        let fix = || tools.allow(&[Operation::Read], Resource::Group, group);
        let asked = match refusal(&consumer, HEAR) {
            Some(refused) => Err(refused),
            // Where that comes late, the answer is that none comes.
            None => committed(&consumer, &list, deadline)
                .map_err(|error| refusal(&consumer, HEAR).unwrap_or(error)),
        };
        let offsets = match asked {
            Ok(offsets) => offsets,
            Err(error) => {
                self.group = access(Err(error), fix);
                return Ok(());
            }
        };
        self.group = access(try_commit(&consumer)?, fix);
        let end = edges(&consumer, topic, partitions, Edge::End);
        for ((_, partition), next) in offsets::known(&offsets) {
            if let (Some(first), Some(end)) = (first.get(&partition), end.get(&partition))
                && !(*first..=*end).contains(&next)
            {
                self.lost.push(Lost {
                    partition,
                    next,
                    first: *first,
                    end: *end,
                });
            }
        }
        match members(&consumer, group, ANSWER) {
            Ok(members) => {
                let strangers = members
                    .into_iter()
                    .filter(|member| !member.client.ends_with(&format!("-{mark}")));
                self.strangers.extend(strangers);
            }
            Err(error) => debug!(%error, group, "members of the group unknown"),
        }
        Ok(())
    }
}

/// That the group may not be used, if the client hears it in this time: it looks for the group's coordinator by itself, and a question for offsets
/// that finds none is not told why.
fn refusal(consumer: &BaseConsumer<Reasons>, wait: Duration) -> Option<KafkaError> {
    let until = Instant::now() + wait;
    while Instant::now() < until {
        match consumer.poll(POLL) {
            Some(Err(error)) if is_of_group(&error) => return Some(error),
            Some(_) | None => {}
        }
    }
    None
}

/// Where the partitions of a topic begin or end, as far as that can be found out.
fn edges(
    consumer: &BaseConsumer<Reasons>,
    topic: &str,
    partitions: i32,
    edge: Edge,
) -> BTreeMap<i32, i64> {
    let all = (0..partitions).map(|partition| (topic, partition));
    let edges = offsets::edges(consumer, all, edge, ANSWER).unwrap_or_else(|error| {
        debug!(%error, topic, ?edge, "edges unknown");
        BTreeMap::new()
    });
    let edges = edges.into_iter();
    edges
        .map(|((_, partition), offset)| (partition, offset))
        .collect()
}

#[cfg(test)]
mod tests {
    use crate::cluster::check::SeenTopic;

    use super::*;

    #[test]
    fn a_mark_is_of_one_source_of_one_group_on_one_topic() {
        let ours = mark("retry.tasks", "retide", "shop");

        assert_eq!(ours, mark("retry.tasks", "retide", "shop"));
        for other in [
            mark("other.tasks", "retide", "shop"),
            mark("retry.tasks", "other", "shop"),
            mark("retry.tasks", "retide", "sink"),
        ] {
            assert_ne!(ours, other);
        }
    }

    #[test]
    fn a_topic_that_may_not_be_described_is_not_called_missing() {
        let denied = Err(RDKafkaErrorCode::TopicAuthorizationFailed);
        let missing = Err(RDKafkaErrorCode::UnknownTopicOrPartition);
        let mut seen = Seen::default();
        assert_eq!(Sight::of(&seen, "dlt", Some(&denied)), Sight::Hidden);
        assert_eq!(Sight::of(&seen, "dlt", Some(&missing)), Sight::Missing);
        assert_eq!(Sight::of(&seen, "dlt", None), Sight::Missing);

        seen.topics.insert("dlt".to_owned(), SeenTopic::default());

        assert_eq!(Sight::of(&seen, "dlt", Some(&Ok(None))), Sight::There);
    }
}
