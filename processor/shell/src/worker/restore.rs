//! What has to be known of a shard before it is worked on: committed offsets, where its logs begin and end, and the order of its tasks.
//!
//! Not what is read after that. Invariants: a shard is worked on when all of it is known, and not before; one of which that cannot be
//! found out stands still alone, whatever it is that hinders, and is asked for again.
//!
//! A committed offset that its log does not have any more:
//! - below the log's first offset, the records between were deleted unread: the lane goes on behind the gap;
//! - beyond the log's end, the topic was made anew, or its end was lost: the lane begins with what is there;
//! - never committed, where the log does not begin with offset 0: the records before were deleted unread.

use std::collections::{BTreeMap, BTreeSet};
use std::mem;
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::consumer::Consumer;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use retide_core::completions::Completions;
use retide_core::control::Looking;
use retide_core::saved::Saved;
use retide_core::{Alert, LaneId, Timestamp};
use retide_kafka::cluster;
use retide_kafka::offsets::{self, Edge, Offsets};
use retide_kafka::topics::Topics;
use retide_native::topics::{Topic, describe};

use crate::event::CommitUnreadable;
use crate::metrics::Metrics;
use crate::threads::Threads;
use crate::trouble::{Effect, Kind, Trouble};
use crate::worker::binding::Bindings;
use crate::worker::feed::{Assignment, Reading};
use crate::worker::order::{self, Written};
use crate::worker::presence::Seen;
use crate::worker::readable::Readability;

/// Where what is to be known of shards is asked.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asking<'a> {
    /// The configuration of a consumer of the group.
    pub(crate) config: &'a ClientConfig,
    /// The clients that ask; they are of the group.
    pub(crate) probe: &'a order::Probe,
    /// The topics.
    pub(crate) topics: &'a Arc<Topics>,
    /// The threads of the process, which know at which records processes have died.
    pub(crate) threads: &'a Threads,
    /// Where events are counted.
    pub(crate) metrics: &'a Metrics,
    /// Partitions whose topics were made anew under this worker: what is committed for them may be of the topics that are gone.
    pub(crate) renewed: &'a Renewed,
    /// The topics that do not exist, as far as that is certain.
    pub(crate) readability: &'a Readability,
    /// Set when nobody wants it any more.
    pub(crate) stop: &'a AtomicBool,
}

/// Partitions of topics that were made anew, by topic and shard, until their lanes begin with what is there.
pub(crate) type Renewed = Mutex<BTreeSet<(Arc<str>, i32)>>;

/// What was found out.
#[derive(Debug, Default)]
pub(crate) struct Known {
    /// The lanes of the shards of which all is known.
    pub(crate) assignments: Vec<Assignment>,
    /// What was written of those shards of which anything was.
    pub(crate) orders: Vec<(i32, Written)>,
    /// Records that are gone.
    pub(crate) gaps: Vec<Gap>,
    /// The shards that have to be asked for again, and why.
    pub(crate) pending: BTreeMap<i32, Pending>,
}

/// Why a shard cannot be worked on yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Pending {
    /// How many partitions topics have is not known.
    Topics(KafkaError),
    /// One of its topics was made anew.
    Anew,
    /// A topic does not have the partition yet, others have: told by who looks at all topics.
    Narrow,
    /// What the group has committed for it is not known.
    Committed(KafkaError),
    /// Where this partition begins and ends is not known.
    Edges {
        /// The topic.
        topic: Arc<str>,
    },
    /// The order of its tasks cannot be read to its end.
    Order {
        /// The first offset that cannot be read, if that is known.
        stable: Option<i64>,
    },
}

/// Records that were gone before they were read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gap {
    /// The topic.
    pub topic: Arc<str>,
    /// The lane.
    pub lane: LaneId,
    /// The offset up to which the group has read.
    pub from: i64,
    /// Where it goes on.
    pub to: i64,
    /// What has become of the records.
    pub what: Gone,
}

/// What has become of records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gone {
    /// They were deleted.
    Deleted,
    /// Their topic was made anew, or its end was lost.
    Anew,
}

/// The topics of which a shard has a partition each, as the cluster has them.
pub(crate) type Described = Vec<(Arc<str>, Seen)>;

/// A lane as the group and the log have it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Found {
    /// The lane.
    lane: LaneId,
    /// The next offset to read, if any was committed, and what was written beside it.
    committed: Option<(i64, String)>,
    /// The first offset that is there.
    first: i64,
    /// One past the last one.
    end: i64,
}

/// What the group has committed, by topic and partition; none where it has committed nothing.
type Committed = BTreeMap<(String, i32), Option<(i64, String)>>;

/// Longest wait for one answer, after which it is seen whether it is still wanted.
const ASK: Duration = Duration::from_secs(2);

/// Longest wait for what concerns one shard, where others are not to wait for it.
const ONE: Duration = Duration::from_millis(500);

// === impl Asking ===

impl Asking<'_> {
    /// What is to be known of `shards`, as far as it can be found out within `patience`, or a little more.
    pub(crate) fn known(self, shards: &[i32], patience: Duration) -> Known {
        let deadline = Instant::now() + patience;
        let mut known = Known::default();
        let mut wanted: BTreeSet<i32> = shards.iter().copied().collect();
        if wanted.is_empty() {
            return known;
        }
        self.keep_whole(&mut wanted, &mut known.pending);
        let committed = self.committed(&mut wanted, deadline, &mut known.pending);
        let bindings = match Bindings::ask(self.probe.client().client(), self.topics, ASK) {
            Ok(bindings) => bindings,
            Err(error) => {
                let unknown = mem::take(&mut wanted).into_iter();
                let unknown = unknown.map(|shard| (shard, Pending::Topics(error.clone())));
                known.pending.extend(unknown);
                return known;
            }
        };
        // After the offsets: a log's start only moves on, and its end, too.
        let edges = self.edges(&wanted, deadline);
        let mut found = Vec::new();
        for shard in wanted.clone() {
            match self.found(shard, &committed, &edges) {
                Ok(lanes) => found.extend(lanes),
                Err(pending) => {
                    wanted.remove(&shard);
                    known.pending.insert(shard, pending);
                }
            }
        }
        // After the offsets, too: only then it is decided what there is to read.
        let shards: Vec<i32> = wanted.iter().copied().collect();
        let orders = order::Source {
            config: self.config,
            probe: self.probe,
            topics: self.topics,
            bindings: &bindings,
            suspects: self.threads.suspects(),
            metrics: self.metrics,
            stop: self.stop,
        }
        .read(&shards, deadline.max(Instant::now() + ONE));
        for (shard, stable) in &orders.pending {
            let stable = *stable;
            known.pending.insert(*shard, Pending::Order { stable });
        }
        known.orders = orders.known;
        found.retain(|found| !known.pending.contains_key(&found.lane.shard));
        for (shard, written) in &mut known.orders {
            // What says more than there is, is of a topic that was made anew.
            let is_there = |looking: &Looking| {
                let mut lanes = found.iter().filter(|of| of.lane.shard == *shard);
                lanes.any(|of| of.lane.source == looking.source && looking.to <= of.end)
            };
            for progress in written.steps.values_mut() {
                progress.looking.retain(is_there);
            }
        }
        for found in found {
            let (assignment, gap) = self.assignment(&found, &bindings);
            known.assignments.push(assignment);
            known.gaps.extend(gap);
        }
        let suspects = self.threads.suspects();
        suspects.settle(&known.assignments, self.topics, self.threads);
        known
    }

    /// How many shards there are: as many as partitions that all topics have which exist.
    pub(crate) fn count(self, described: &Described) -> Option<NonZeroU32> {
        let counts = described
            .iter()
            .filter_map(|(topic, seen)| self.partitions(topic, *seen));
        NonZeroU32::new(u32::try_from(counts.min()?).ok()?)
    }

    /// How many partitions a topic has, if that says how many shards there are.
    ///
    /// One that may not be described is not known to be narrow. One that does not exist stops what needs it, which others find out and
    /// tell; but without the retry topic there is no shard, and nobody knows the order of keys without theirs.
    fn partitions(self, topic: &Arc<str>, seen: Seen) -> Option<usize> {
        match seen {
            Seen::There { partitions, .. } => Some(partitions),
            Seen::Hidden => None,
            Seen::Missing => {
                let is_needed = [&self.topics.tasks, &self.topics.order].contains(&topic);
                // One that is read is missing for certain when that was said twice: until then its offsets are not given up.
                let is_read = self.topics.source(topic).is_some();
                let is_certain = self.readability.unreadable().has_topic(topic);
                (is_needed || (is_read && !is_certain)).then_some(0)
            }
        }
    }

    /// What the cluster says of each topic of which a shard has a partition.
    pub(crate) fn described(self) -> Result<Described, KafkaError> {
        let topics = self.topics;
        let all = [&topics.tasks].into_iter().chain(&topics.tiers);
        let all: Vec<&Arc<str>> = all.chain(topics.written()).collect();
        let names: Vec<&str> = all.iter().map(|name| &***name).collect();
        let answer = describe(self.probe.client().client(), &names, ASK)?;
        // What is refused does not say of which topic.
        let (mut found, mut other) = (BTreeMap::new(), Seen::Missing);
        for topic in answer {
            match topic {
                Ok(Topic {
                    name,
                    id,
                    partitions,
                }) => {
                    found.insert(name, Seen::There { partitions, id });
                }
                Err(RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownTopic) => {
                }
                Err(_) => other = Seen::Hidden,
            }
        }
        let of = |topic: &Arc<str>| {
            let seen = found.get(&**topic).copied().unwrap_or(other);
            (Arc::clone(topic), seen)
        };
        Ok(all.into_iter().map(of).collect())
    }

    /// Takes out the shards that not all topics have.
    fn keep_whole(self, wanted: &mut BTreeSet<i32>, pending: &mut BTreeMap<i32, Pending>) {
        let described = match self.described() {
            Ok(described) => described,
            Err(error) => {
                for shard in mem::take(wanted) {
                    pending.insert(shard, Pending::Topics(error.clone()));
                }
                return;
            }
        };
        wanted.retain(|shard| {
            let at = usize::try_from(*shard).unwrap_or(usize::MAX);
            let mut counts = described
                .iter()
                .filter_map(|(topic, seen)| self.partitions(topic, *seen));
            let is_narrow = counts.any(|partitions| partitions <= at);
            if is_narrow {
                pending.insert(*shard, Pending::Narrow);
            }
            !is_narrow
        });
    }

    /// What the group has committed for the shards; those of which it is not known are taken out.
    fn committed(
        self,
        wanted: &mut BTreeSet<i32>,
        deadline: Instant,
        pending: &mut BTreeMap<i32, Pending>,
    ) -> Committed {
        let all: Vec<i32> = wanted.iter().copied().collect();
        let all_at_once = self.ask_committed(&all, ASK.min(left(deadline)));
        let Err(error) = all_at_once else {
            return all_at_once.unwrap_or_default();
        };
        // One that a transaction without end hinders, or all of them: the first few tell.
        let mut committed = Committed::new();
        let mut failures = 0;
        for shard in all {
            let hopeless = failures >= 2 && committed.is_empty();
            let is_late = left(deadline).is_zero() || self.stop.load(Ordering::Acquire);
            let answer = if hopeless || is_late {
                Err(error.clone())
            } else {
                self.ask_committed(&[shard], ONE)
            };
            match answer {
                Ok(of_shard) => committed.extend(of_shard),
                Err(error) => {
                    failures += 1;
                    wanted.remove(&shard);
                    pending.insert(shard, Pending::Committed(error));
                }
            }
        }
        committed
    }

    /// What the group has committed for the shards.
    fn ask_committed(self, shards: &[i32], wait: Duration) -> Result<Committed, KafkaError> {
        let mut list = TopicPartitionList::new();
        if shards.is_empty() {
            return Ok(Committed::new());
        }
        for shard in shards {
            for (_, topic) in self.topics.of_shard(*shard) {
                list.add_partition(topic, *shard);
            }
        }
        let answer = self.probe.decided().committed_offsets(list, wait)?;
        let mut committed = Committed::new();
        for element in answer.elements() {
            element.error()?;
            let at = (element.topic().to_owned(), element.partition());
            let value = match element.offset() {
                Offset::Offset(next) => Some((next, element.metadata().to_owned())),
                _ => None,
            };
            committed.insert(at, value);
        }
        Ok(committed)
    }

    /// Where the lanes of the shards begin and end.
    fn edges(self, shards: &BTreeSet<i32>, deadline: Instant) -> (Offsets, Offsets) {
        let ask = |edge| {
            let partitions = shards.iter().flat_map(|shard| {
                let topics = self.topics.of_shard(*shard);
                topics.map(|(_, topic)| (&**topic, *shard))
            });
            let wait = ASK.min(left(deadline)).max(ONE);
            offsets::edges(self.probe.client(), partitions, edge, wait).unwrap_or_default()
        };
        (ask(Edge::First), ask(Edge::End))
    }

    /// The lanes of a shard, if all of them are known.
    fn found(
        self,
        shard: i32,
        committed: &Committed,
        (first, end): &(Offsets, Offsets),
    ) -> Result<Vec<Found>, Pending> {
        let unreadable = self.readability.unreadable();
        let mut lanes = Vec::new();
        for (source, topic) in self.topics.of_shard(shard) {
            let at = (topic.to_string(), shard);
            let lane = LaneId { shard, source };
            if unreadable.is_deleted(source) {
                // Nothing is there. When it is, the shard begins anew.
                lanes.push(Found {
                    lane,
                    committed: None,
                    first: 0,
                    end: 0,
                });
                continue;
            }
            let (Some(first), Some(end)) = (first.get(&at), end.get(&at)) else {
                let topic = Arc::clone(topic);
                return Err(Pending::Edges { topic });
            };
            lanes.push(Found {
                lane,
                committed: committed.get(&at).cloned().flatten(),
                first: *first,
                end: *end,
            });
        }
        Ok(lanes)
    }

    /// Where a lane goes on, and what is gone of it.
    fn assignment(self, found: &Found, bindings: &Bindings) -> (Assignment, Option<Gap>) {
        let Found {
            lane,
            committed,
            first,
            end,
        } = found;
        let topic = self.topics.name(lane.source);
        let (next, text) = committed
            .as_ref()
            .map_or((0, ""), |(next, text)| (*next, text));
        let gap = |to, what| Gap {
            topic: Arc::clone(topic),
            lane: *lane,
            from: next,
            to,
            what,
        };
        let binding = bindings.of(topic, lane.shard);
        let mut renewed = self.renewed.lock().unwrap_or_else(PoisonError::into_inner);
        let is_renewed = renewed.remove(&(Arc::clone(topic), lane.shard));
        drop(renewed);
        if next > *end || is_renewed {
            let assignment = Assignment {
                lane: *lane,
                start: *first,
                end: *end,
                known: Completions::default(),
                saved: Saved::default(),
                binding,
            };
            // What is gone of one that was made anew under this worker is told by the drive, which knows what was done.
            let gap = (!is_renewed).then(|| gap(*first, Gone::Anew));
            return (assignment, gap);
        }
        let (known, saved) =
            Completions::decode_with(text, binding, next).unwrap_or_else(|error| {
                CommitUnreadable {
                    topic,
                    partition: lane.shard,
                    offset: next,
                    error: &error,
                }
                .emit(self.metrics);
                (Completions::default(), Saved::default())
            });
        let assignment = Assignment {
            lane: *lane,
            start: next.max(*first),
            end: *end,
            known: known.within(next.max(*first), *end),
            saved,
            binding,
        };
        (
            assignment,
            (next < *first).then(|| gap(*first, Gone::Deleted)),
        )
    }
}

/// How long it is until `deadline`.
fn left(deadline: Instant) -> Duration {
    deadline.saturating_duration_since(Instant::now())
}

// === impl Gap ===

impl Gap {
    /// How many offsets are gone; none if that is not known.
    pub fn records(&self) -> i64 {
        match self.what {
            Gone::Deleted => self.to - self.from,
            Gone::Anew => 0,
        }
    }

    /// What people must know of it.
    pub(crate) fn alert(&self, at: Timestamp) -> Alert {
        let Self {
            topic,
            lane,
            from,
            to,
            what,
        } = self;
        Alert {
            rule: "records-gone",
            scene: "".into(),
            at,
            count: u32::try_from(self.records()).unwrap_or(u32::MAX),
            example: format!("{topic}/{}/{from}-{to}", lane.shard).into(),
            reason: match what {
                Gone::Deleted => "deleted",
                Gone::Anew => "made-anew",
            },
            target: None,
            expiring: None,
        }
    }

    /// What is gone, as people read it.
    pub fn says(&self) -> String {
        let Self { from, to, .. } = self;
        match self.what {
            Gone::Deleted => format!(
                "records from offset {from} to {to} were deleted before they were read: their tasks are lost, and reading goes on at {to}"
            ),
            Gone::Anew => format!(
                "offset {from}, up to which the group has read, is beyond the end: the topic was made anew, or its end was lost; reading \
                 begins with what is there, at {to}"
            ),
        }
    }
}

// === impl Known ===

impl Known {
    /// The shards of which all is known.
    pub(crate) fn shards(&self) -> impl Iterator<Item = i32> {
        let shards: BTreeSet<i32> = self
            .assignments
            .iter()
            .map(|assignment| assignment.lane.shard)
            .collect();
        shards.into_iter()
    }

    /// Forgets the shards that are not `wanted` any more.
    pub(crate) fn keep(&mut self, wanted: impl Fn(i32) -> bool) {
        self.assignments.retain(|of| wanted(of.lane.shard));
        self.orders.retain(|(shard, _)| wanted(*shard));
        self.gaps.retain(|gap| wanted(gap.lane.shard));
    }

    /// What the drive is to be told.
    pub(crate) fn readings(self) -> impl Iterator<Item = Reading> {
        let assigned = Reading::Assigned(self.assignments, self.orders);
        let gaps = (!self.gaps.is_empty()).then_some(Reading::Gaps(self.gaps));
        [assigned].into_iter().chain(gaps)
    }
}

// === impl Pending ===

impl Pending {
    /// The kind of trouble, and whom it befalls; none if it is told elsewhere, since what all topics have goes on.
    pub(crate) fn subject(&self, shard: i32, topics: &Topics) -> Option<(Kind, String)> {
        let topic = match self {
            Self::Topics(_) | Self::Anew | Self::Committed(_) => &topics.tasks,
            Self::Narrow => return None,
            Self::Edges { topic } => topic,
            Self::Order { .. } => &topics.order,
        };
        Some((Kind::PartitionStuck, format!("{topic}/{shard}")))
    }

    /// The trouble that it is, if it is one.
    pub(crate) fn trouble(
        &self,
        shard: i32,
        topics: &Topics,
        config: &ClientConfig,
    ) -> Option<Trouble> {
        let (kind, subject) = self.subject(shard, topics)?;
        Some(Trouble {
            kind,
            subject,
            says: self.says(shard, topics),
            fix: self.fix(shard, topics, config),
            effect: Effect::Stops,
        })
    }

    /// What mends it.
    fn fix(&self, shard: i32, topics: &Topics, config: &ClientConfig) -> Option<String> {
        match self {
            Self::Order {
                stable: Some(stable),
            } => Some(cluster::abort(config, &topics.order, shard, *stable)),
            Self::Committed(_) | Self::Order { stable: None } => {
                Some(cluster::find_hanging(config))
            }
            Self::Topics(_) | Self::Anew | Self::Narrow | Self::Edges { .. } => None,
        }
    }

    /// Why the shard stands still, as people read it.
    fn says(&self, shard: i32, topics: &Topics) -> String {
        match self {
            Self::Topics(error) => format!(
                "shard {shard} stands still: how many partitions the topics have is not known ({error})"
            ),
            Self::Anew => format!("shard {shard} begins anew, since a topic of it was made anew"),
            Self::Narrow => format!("shard {shard} begins when all topics have its partition"),
            Self::Committed(error) => format!(
                "shard {shard} stands still: the group's committed offsets are not known ({error}); no answer, or a transaction that is \
                 not ended"
            ),
            Self::Edges { topic } => format!(
                "shard {shard} stands still: partition {shard} of {topic} does not say where it begins and ends: it has no leader, or no \
                 broker answers"
            ),
            Self::Order {
                stable: Some(stable),
            } => format!(
                "shard {shard} stands still: {} cannot be read beyond offset {stable}: a transaction that began there is not ended",
                topics.order
            ),
            Self::Order { stable: None } => format!(
                "shard {shard} stands still: partition {shard} of {} cannot be read",
                topics.order
            ),
        }
    }
}
