//! `retide dead-letters purge`: the oldest dead letters are deleted.
//!
//! Kafka has two ways to delete. A tombstone deletes nothing of a topic whose records are not replaced by key, as this one is. `DeleteRecords`
//! moves the beginning of a partition, so that everything before an offset is gone. So the oldest can be deleted, and nothing else: no task, no
//! scene, no fingerprint. Invariant: nothing is deleted that was not counted, and nothing that is as new as what was said, or newer.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Instant;

use clap::Args;
use rdkafka::consumer::BaseConsumer;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::Message;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use serde::Serialize;
use tokio::runtime::Runtime;

use retide_config::Config;
use retide_core::Timestamp;
use retide_core::scene::TargetNames;
use retide_history::timeline;
use retide_kafka::client::{LoggingContext, client_config};
use retide_kafka::cluster::{self, User};
use retide_kafka::offsets::{self, Spans};
use retide_kafka::scan::{self, CALL, Scanned};
use retide_shell::clock;

use crate::cli::ask;
use crate::cli::explain;
use crate::cli::output::{Exit, Failed, Output, Row, document, print, say};
use crate::cli::reach::{failed, reach, topics};

use super::find::{self, Looked};
use super::line::Line;

/// What no dead letter can be deleted by: taken, so that it can be said why.
#[derive(Debug, Args)]
pub(super) struct Refused {
    /// An identity.
    #[arg(long, hide = true)]
    id: Vec<String>,
    /// Identities of a file.
    #[arg(long, hide = true)]
    id_file: Vec<String>,
    /// A scene.
    #[arg(long, hide = true)]
    scene: Vec<String>,
    /// A key.
    #[arg(long, hide = true)]
    key: Vec<String>,
    /// A header.
    #[arg(long, hide = true)]
    header: Vec<String>,
    /// A class of failures.
    #[arg(long, hide = true)]
    error: Vec<String>,
    /// A fingerprint.
    #[arg(long, hide = true)]
    fingerprint: Vec<String>,
    /// A target.
    #[arg(long, hide = true)]
    target: Vec<String>,
    /// Attempts made.
    #[arg(long, hide = true)]
    attempts: Vec<String>,
    /// When tasks entered.
    #[arg(long, hide = true, allow_hyphen_values = true)]
    entered: Vec<String>,
    /// When they were due.
    #[arg(long, hide = true, allow_hyphen_values = true)]
    due: Vec<String>,
    /// When they died.
    #[arg(long, hide = true, allow_hyphen_values = true)]
    died: Vec<String>,
    /// Where they entered.
    #[arg(long, hide = true)]
    origin: Vec<String>,
}

/// The options of [`Refused`].
pub(super) const REFUSED: [&str; 13] = [
    "id",
    "id_file",
    "scene",
    "key",
    "header",
    "error",
    "fingerprint",
    "target",
    "attempts",
    "entered",
    "due",
    "died",
    "origin",
];

/// Dead letters that are shown before they are deleted.
const SAMPLES: usize = 5;

/// What is to be deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Before {
    /// What is older.
    Time(Timestamp),
    /// What stands before an offset of a partition.
    Offset {
        /// The partition.
        partition: i32,
        /// The offset.
        offset: i64,
    },
}

/// A partition of which something is deleted.
#[derive(Clone, Debug, Serialize)]
struct Cut {
    /// The partition.
    partition: i32,
    /// Its first offset as it was found.
    from: i64,
    /// The first offset that stays.
    before: i64,
    /// How many dead letters stand between them.
    count: u64,
    /// How many other records do: what somebody else has written.
    others: u64,
    /// What became of it.
    state: String,
}

/// What is about to be deleted.
struct Counted {
    /// By partition.
    cuts: Vec<Cut>,
    /// The oldest.
    samples: Vec<Line>,
    /// What was read.
    looked: Looked,
    /// The partitions that were not read in time.
    left: BTreeSet<i32>,
}

/// What a dry run prints in JSON.
#[derive(Debug, Serialize)]
struct Dry<'a> {
    /// How many dead letters would be deleted.
    count: u64,
    /// A few of them.
    samples: &'a [Line],
    /// Where.
    partitions: &'a [Cut],
    /// Whether all was read.
    complete: bool,
    /// How many records were read.
    records: u64,
}

/// Deletes the oldest dead letters.
pub(super) fn purge(config: &Config, options: &super::Purge, output: Output) -> Result<(), Failed> {
    options.refused.check()?;
    let before = Before::of(options.before.as_deref().unwrap_or_default())?;
    let topics = topics(config);
    let topic = &topics.dead_letters;
    // To count needs no more than to read.
    let user = if options.dry_run {
        User::DeadLetters
    } else {
        User::Purge
    };
    reach(config, user, &[topic])?;
    let consumer = find::consumer(config, user)?;
    let refused = |error: KafkaError| failed(config, user, &format!("read {topic}"), &error);
    let cuts = cuts(&consumer, topic, before).map_err(refused)??;
    let deadline = Instant::now() + options.timeout;
    let counted = count(&consumer, topic, cuts, deadline).map_err(refused)?;
    if options.dry_run {
        return counted.dry_run(topic, output);
    }
    let count = counted.looked.count;
    if !counted.left.is_empty() {
        return Err(counted.partly("nothing was deleted"));
    }
    if counted.cuts.is_empty() {
        let message = format!("{topic} has nothing that is older; nothing was deleted");
        return Err(Failed::because(Exit::NotFound, message));
    }
    let what = format!(
        "{count} dead letters of {topic} are to be deleted, and cannot be replayed after that: {}",
        counted.words()
    );
    if options.yes {
        say(&what);
    } else {
        ask::somebody(|| format!("{what}\nnobody can be asked whether they shall be: add --yes"))?;
        if !counted.samples.is_empty() && output == Output::Table {
            print(&counted.samples, output)?;
        }
        ask::typed(&what, &count.to_string(), "nothing was deleted")?;
    }
    delete(config, topic, counted.cuts, output)
}

/// Deletes, and says what became of each partition.
fn delete(config: &Config, topic: &str, mut cuts: Vec<Cut>, output: Output) -> Result<(), Failed> {
    let before: BTreeMap<i32, i64> = cuts.iter().map(|cut| (cut.partition, cut.before)).collect();
    let client = client_config(config.kafka.client());
    let purged = Runtime::new()?.block_on(cluster::purge(&client, topic, &before))?;
    let (mut deleted, mut refused) = (0, 0_u64);
    for cut in &mut cuts {
        cut.state = match purged.get(&cut.partition) {
            Some(Ok(first)) if *first >= cut.before => {
                deleted += cut.count;
                "deleted".to_owned()
            }
            Some(Ok(first)) => {
                refused += 1;
                format!("still begins at {first}")
            }
            Some(Err(code)) => {
                refused += 1;
                format!("refused: {code}")
            }
            None => {
                refused += 1;
                "no answer".to_owned()
            }
        };
    }
    print(&cuts, output)?;
    if let Some(Err(code)) = purged.values().find(|purged| is_denied(purged)) {
        let what = format!("{deleted} dead letters were deleted; delete records of {topic}");
        let error = KafkaError::AdminOp(*code);
        return Err(failed(config, User::Purge, &what, &error));
    }
    let has_policy = |purged: &Result<i64, _>| *purged == Err(RDKafkaErrorCode::PolicyViolation);
    if purged.values().any(has_policy) {
        let message = format!(
            "{deleted} dead letters were deleted; Kafka deletes no records of {topic}, since its cleanup.policy is not \"delete\""
        );
        let fix = "`retide doctor` prints the command that sets it back";
        return Err(Failed::because(Exit::Precondition, message).with_fix(fix));
    }
    if refused == 0 {
        say(&format!("{deleted} dead letters were deleted"));
        return Ok(());
    }
    let exit = if refused == cuts.len() as u64 {
        Exit::Failure
    } else {
        Exit::Partly
    };
    let message = format!("{deleted} dead letters were deleted; {refused} partitions were not cut");
    Err(Failed::because(exit, message))
}

/// Whether a partition was not cut since that is not allowed.
fn is_denied(purged: &Result<i64, RDKafkaErrorCode>) -> bool {
    *purged == Err(RDKafkaErrorCode::TopicAuthorizationFailed)
}

/// The partitions of which something is to be deleted, with offsets that readers can see; or why nothing can be.
fn cuts(
    consumer: &BaseConsumer<LoggingContext>,
    topic: &Arc<str>,
    before: Before,
) -> Result<Result<Vec<Cut>, Failed>, KafkaError> {
    let partitions = find::partitions(consumer, topic)?;
    // First what there is, so that what comes meanwhile is none of it.
    let (spans, unknown) = offsets::spans(consumer, topic, &partitions, CALL)?;
    if !unknown.is_empty() {
        let unknown: Vec<String> = unknown.iter().map(ToString::to_string).collect();
        let message = format!(
            "where partition {} of {topic} begins and ends is not known; nothing was deleted",
            unknown.join(" ")
        );
        return Ok(Err(Failed::because(Exit::Unreachable, message)));
    }
    let ends = match before {
        Before::Time(time) => ends(consumer, topic, &spans, time)?,
        Before::Offset { partition, offset } => {
            if !partitions.contains(&partition) {
                let message = format!("{topic} has no partition {partition}");
                return Ok(Err(Failed::because(Exit::NotFound, message)));
            }
            let end = spans.get(&partition).map_or(0, |(_, end)| *end);
            if offset > end && spans.contains_key(&partition) {
                let message = format!(
                    "partition {partition} of {topic} ends at offset {end}, before {offset}"
                );
                return Ok(Err(Failed::because(Exit::Usage, message)));
            }
            BTreeMap::from([(partition, offset)])
        }
    };
    let cuts = spans.iter().filter_map(|(partition, (first, end))| {
        let before = (*ends.get(partition)?).min(*end);
        (before > *first).then(|| Cut {
            partition: *partition,
            from: *first,
            before,
            count: 0,
            others: 0,
            state: String::new(),
        })
    });
    Ok(Ok(cuts.collect()))
}

/// The first offset of each partition whose record is not older; where all are, the end.
fn ends(
    consumer: &BaseConsumer<LoggingContext>,
    topic: &str,
    spans: &Spans,
    time: Timestamp,
) -> Result<BTreeMap<i32, i64>, KafkaError> {
    let starts = scan::starts(consumer, topic, Some(time))?;
    let mut ends = BTreeMap::new();
    for element in starts.elements() {
        element.error()?;
        match element.offset() {
            Offset::Offset(offset) => {
                ends.insert(element.partition(), offset);
            }
            Offset::End => {
                let end = spans.get(&element.partition()).map(|(_, end)| *end);
                ends.extend(end.map(|end| (element.partition(), end)));
            }
            _ => {}
        }
    }
    Ok(ends)
}

/// Counts what is about to be deleted.
fn count(
    consumer: &BaseConsumer<LoggingContext>,
    topic: &Arc<str>,
    cuts: Vec<Cut>,
    deadline: Instant,
) -> Result<Counted, KafkaError> {
    let mut counted = Counted {
        cuts,
        samples: Vec::new(),
        looked: Looked::at(topic),
        left: BTreeSet::new(),
    };
    let all = counted
        .cuts
        .iter()
        .map(|cut| cut.before - cut.from)
        .sum::<i64>();
    let targets = TargetNames::default();
    let (start, mut told) = (Instant::now(), Instant::now());
    // One after the other, and none of them beyond its cut.
    for cut in &mut counted.cuts {
        let mut starts = TopicPartitionList::new();
        starts.add_partition_offset(topic, cut.partition, Offset::Offset(cut.from))?;
        let (looked, samples) = (&mut counted.looked, &mut counted.samples);
        let scanned = scan::read(consumer, &starts, deadline, |message| {
            if message.offset() >= cut.before {
                return ControlFlow::Break(());
            }
            looked.records += 1;
            if told.elapsed() >= find::TELL {
                told = Instant::now();
                looked.tell(u64::try_from(all).unwrap_or_default(), start.elapsed());
            }
            if let Some(found) = looked.take(message, &targets) {
                looked.count += 1;
                cut.count += 1;
                if samples.len() < SAMPLES {
                    samples.push(Line::of(&found));
                }
            } else {
                cut.others += 1;
            }
            ControlFlow::Continue(())
        })?;
        if matches!(scanned, Scanned::OutOfTime { .. }) {
            counted.left.insert(cut.partition);
        }
    }
    // Where nobody can read anything, what is left of transactions goes with the rest, later.
    let left = &counted.left;
    counted
        .cuts
        .retain(|cut| cut.count + cut.others > 0 || left.contains(&cut.partition));
    Ok(counted)
}

// === impl Refused ===

impl Refused {
    /// Says why nothing can be deleted by that.
    fn check(&self) -> Result<(), Failed> {
        let Self {
            id,
            id_file,
            scene,
            key,
            header,
            error,
            fingerprint,
            target,
            attempts,
            entered,
            due,
            died,
            origin,
        } = self;
        let said = [
            ("id", id),
            ("id-file", id_file),
            ("scene", scene),
            ("key", key),
            ("header", header),
            ("error", error),
            ("fingerprint", fingerprint),
            ("target", target),
            ("attempts", attempts),
            ("entered", entered),
            ("due", due),
            ("died", died),
            ("origin", origin),
        ];
        let Some((name, _)) = said.into_iter().find(|(_, values)| !values.is_empty()) else {
            return Ok(());
        };
        let message = format!(
            "--{name}: Kafka cannot delete records by what they are: it deletes the beginning of a partition, and nothing else, and a \
             tombstone deletes nothing of a topic that is not compacted. --before TIME deletes the oldest dead letters of all scenes"
        );
        Err(Failed::because(Exit::Usage, message))
    }
}

// === impl Before ===

impl Before {
    /// What the option says.
    fn of(text: &str) -> Result<Self, Failed> {
        let wrong = |why: &str| Failed::because(Exit::Usage, format!("--before {text}: {why}"));
        if let Some((partition, offset)) = text.split_once('/') {
            return match (partition.parse(), offset.parse()) {
                (Ok(partition), Ok(offset)) if partition >= 0 && offset >= 0 => {
                    Ok(Self::Offset { partition, offset })
                }
                _ => Err(wrong("PARTITION/OFFSET expected, two whole numbers")),
            };
        }
        let time = explain::from(text).map_err(|why| wrong(&why))?;
        if time > clock::timestamp() {
            return Err(wrong(
                "a time to come; what dies until then would be deleted unseen",
            ));
        }
        Ok(Self::Time(time))
    }
}

// === impl Counted ===

impl Counted {
    /// Says what would be deleted.
    fn dry_run(self, topic: &str, output: Output) -> Result<(), Failed> {
        let count = self.looked.count;
        if output == Output::Table {
            if !self.samples.is_empty() {
                print(&self.samples, output)?;
            }
        } else {
            let dry = Dry {
                count,
                samples: &self.samples,
                partitions: &self.cuts,
                complete: self.left.is_empty(),
                records: self.looked.records,
            };
            document(&dry, output)?;
        }
        if !self.left.is_empty() {
            return Err(self.partly("nothing was deleted"));
        }
        if self.cuts.is_empty() {
            let message = format!("{topic} has nothing that is older");
            return Err(Failed::because(Exit::NotFound, message));
        }
        say(&format!(
            "{count} dead letters would be deleted: {}; nothing was deleted",
            self.words()
        ));
        Ok(())
    }

    /// Which records those are.
    fn words(&self) -> String {
        let cuts = self.cuts.iter();
        let cuts = cuts.map(|cut| {
            format!(
                "{} of partition {} before offset {}",
                cut.count, cut.partition, cut.before
            )
        });
        let oldest = self.samples.iter().map(|line| line.died_at).min();
        let oldest = oldest.map(|at| timeline::clock(Timestamp::from_millis(at)));
        let mut words: Vec<String> = cuts.collect();
        let others: u64 = self.cuts.iter().map(|cut| cut.others).sum();
        if others > 0 {
            words.push(format!(
                "{others} records that are no dead letters of retide's"
            ));
        }
        words.extend(oldest.map(|at| format!("the oldest from {at}")));
        words.join(", ")
    }

    /// Not all was counted in time.
    fn partly(&self, end: &str) -> Failed {
        let left: Vec<String> = self.left.iter().map(ToString::to_string).collect();
        let message = format!(
            "{} dead letters were counted so far, and not all of partition {}; --timeout gives more time; {end}",
            self.looked.count,
            left.join(" ")
        );
        Failed::because(Exit::Partly, message)
    }
}

impl Row for Cut {
    const HEADINGS: &'static [&'static str] = &[
        "partition",
        "from offset",
        "before offset",
        "dead letters",
        "others",
        "state",
    ];

    fn cells(&self) -> Vec<String> {
        vec![
            self.partition.to_string(),
            self.from.to_string(),
            self.before.to_string(),
            self.count.to_string(),
            self.others.to_string(),
            self.state.clone(),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_deleted_is_older_than_a_time_or_before_an_offset() {
        let is_wrong = |text: &str| Before::of(text).is_err();

        assert_eq!(
            Before::of("3/1200").unwrap_or_else(|_| panic!("a place")),
            Before::Offset {
                partition: 3,
                offset: 1_200
            }
        );
        assert_eq!(
            Before::of("1795836382000").ok(),
            Some(Before::Time(Timestamp::from_millis(1_795_836_382_000)))
                .filter(|_| clock::timestamp() > Timestamp::from_millis(1_795_836_382_000))
        );
        assert!(Before::of("30d").is_ok());
        for text in [
            "",
            "-1/5",
            "1/-5",
            "1/2/3",
            "/",
            "soon",
            "2999-01-01T00:00:00Z",
        ] {
            assert!(is_wrong(text), "{text}");
        }
    }
}
