//! How a group stands in the partitions that it reads, and what shows that somebody has worked there.
//!
//! Not what does not fit. Invariant: no group is joined and nothing is committed.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::thread;
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList, TopicPartitionListElem};
use tracing::debug;

use super::{ANSWER, Committed, LaneStanding, Whose, strays};
use crate::client::LoggingContext;
use crate::cluster::check::Seen;
use crate::offsets::{self, Edge, Offsets};
use crate::scan::{self, Scanned};
use crate::topics::{Reads, Role};

/// Longest wait for the group's offsets: its coordinator may have to be found first, or made.
const COMMITTED: Duration = Duration::from_secs(8);

/// Longest time for a look at what only retide writes.
const LOOK: Duration = Duration::from_secs(5);

/// Pause before something is asked again.
const AGAIN: Duration = Duration::from_millis(100);

/// How the group stands in each of these partitions.
pub(super) fn lanes(
    all: &BaseConsumer<LoggingContext>,
    stable: &BaseConsumer<LoggingContext>,
    read: &[(String, i32)],
) -> Vec<LaneStanding> {
    // In this order: what is committed is never beyond an end that was asked for later, nor below a start that was asked for before.
    let first = edges(all, read, Edge::First);
    let committed = committed(all, read);
    let (stable, end) = (edges(stable, read, Edge::End), edges(all, read, Edge::End));
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

/// What the group has committed by now, transactions that are open among it, and where the partitions end by now: in this order, for the same
/// reason. What cannot be found out stays as it was.
pub(super) fn look_again(
    all: &BaseConsumer<LoggingContext>,
    stable: &BaseConsumer<LoggingContext>,
    lanes: &mut [LaneStanding],
) {
    let read = lanes.iter();
    let read: Vec<_> = read
        .map(|lane| (lane.topic.clone(), lane.partition))
        .collect();
    let committed = committed(stable, &read);
    let (stable, end) = (
        edges(stable, &read, Edge::End),
        edges(all, &read, Edge::End),
    );
    for (lane, at) in lanes.iter_mut().zip(&read) {
        lane.committed = committed.get(at).copied().unwrap_or(lane.committed);
        lane.stable = stable.get(at).copied().or(lane.stable);
        lane.end = end.get(at).copied().or(lane.end);
    }
}

/// Where these partitions begin or end, as far as that can be found out.
fn edges(
    consumer: &BaseConsumer<LoggingContext>,
    partitions: &[(String, i32)],
    edge: Edge,
) -> Offsets {
    let partitions = partitions
        .iter()
        .map(|(topic, partition)| (&**topic, *partition));
    offsets::edges(consumer, partitions, edge, ANSWER).unwrap_or_else(|error| {
        debug!(%error, ?edge, "edges unknown");
        Offsets::new()
    })
}

/// What the group has committed for each of these partitions.
pub(super) fn committed(
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
                let of = |element: &TopicPartitionListElem<'_>| match (
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
pub(super) fn stray_records(
    strays: &BTreeSet<String>,
    lanes: &[LaneStanding],
) -> BTreeMap<String, i64> {
    let mut records: BTreeMap<String, i64> =
        strays.iter().map(|topic| (topic.clone(), 0)).collect();
    for lane in lanes.iter().filter(|lane| strays.contains(&lane.topic)) {
        *records.entry(lane.topic.clone()).or_default() += lane.left();
    }
    records
}

/// What shows that somebody has worked on a prefix.
pub(super) fn worked(
    whose: &Whose,
    seen: &Seen,
    consumer: &BaseConsumer<LoggingContext>,
) -> Option<String> {
    // Commands are written by people, too, before anything was done. What is parked in order is in a tier as well. A process that died before
    // its first commit leaves a mark on the order topic, which is state and no work.
    let is_work = |role: Role| {
        role != Role::Commands && role.is_written() && role.about().reads != Reads::State
    };
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
    let scanned = scan::read(&reader, starts, deadline, |_| ControlFlow::Break(()));
    match scanned {
        Ok(scanned) => Some(scanned == Scanned::Enough),
        Err(error) => {
            let code = error.rdkafka_error_code();
            (code != Some(RDKafkaErrorCode::TopicAuthorizationFailed)).then_some(false)
        }
    }
}

/// The other prefixes on whose topics the group has offsets.
pub(super) fn prefixes(
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
