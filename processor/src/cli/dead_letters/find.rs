//! Reads the dead-letters topic, and gives those dead letters that are meant.
//!
//! There is no index: the topic is read, from the time on that is asked for. Invariants: no group is joined and nothing is committed; nothing
//! of what is read is held here.

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::consumer::BaseConsumer;
use rdkafka::error::KafkaError;
use rdkafka::message::{BorrowedMessage, Message};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList, TopicPartitionListElem};

use retide_avro::control;
use retide_avro::letter::Letter;
use retide_config::Config;
use retide_core::campaign::{Campaign, Edit, Ineligible, MOST_REPLAYS};
use retide_core::scene::{Scene, TargetNames};
use retide_core::selector::{Selector, Span};
use retide_core::{Origin, Record, Timestamp, with_causes};
use retide_kafka::client::{LoggingContext, client_config};
use retide_kafka::cluster::User;
use retide_kafka::offsets;
use retide_kafka::record::received;
use retide_kafka::scan::{self, CALL, Scanned};
use retide_kafka::topics::Topics;
use retide_shell::clock;
use retide_shell::replayed::Replayed;
use retide_shell::rules::merged;
use retide_shell::scenes::Follower;

use crate::cli::output::{Exit, Failed, say};
use crate::cli::reach::{failed, reach, topics};

use super::Which;

/// Which dead letters are meant.
pub(super) struct Wanted {
    /// By what is known of the tasks: those that fit one of these; all, if there is none.
    selectors: Vec<Selector>,
    /// By when they died.
    died: Option<Span>,
    /// When reading stops.
    timeout: Duration,
}

/// A dead letter that was read.
pub(super) struct Found<'a> {
    /// What its headers say.
    pub(super) letter: Letter,
    /// The record.
    pub(super) record: Record,
    /// Where it stands.
    pub(super) at: Origin,
    /// When it died: the time of its record.
    pub(super) died: Timestamp,
    /// What its scene calls now, if it still exists.
    pub(super) target: Option<&'a str>,
}

/// What was read.
#[derive(Debug, Default)]
pub(super) struct Looked {
    /// The topic.
    topic: Arc<str>,
    /// How many records.
    pub(super) records: u64,
    /// How many of them are meant.
    pub(super) count: u64,
    /// How many are no dead letters of retide's.
    foreign: u64,
    /// The first of those.
    example: Option<Origin>,
    /// The partitions that were not read to their ends.
    left: BTreeSet<i32>,
    /// Whether reading stopped since enough was seen.
    is_cut: bool,
}

/// How often it is told how far reading has come.
pub(super) const TELL: Duration = Duration::from_secs(2);

/// Records between two looks at the clock.
const GLANCE: u64 = 1_024;

/// What the commands for dead letters are called by brokers.
pub(super) const NAME: &str = "retide-dead-letters";

// === impl Wanted ===

impl Wanted {
    /// What the options say.
    pub(super) fn of(which: &Which) -> Result<Self, Failed> {
        let died = which.died.as_deref();
        let died = died.map(|text| control::span("--died", text, clock::timestamp()));
        let died = died.transpose();
        let died = died.map_err(|why| Failed::because(Exit::Usage, String::from(why)))?;
        if died.is_some_and(|died| died.from >= died.before) {
            return Err(Failed::because(Exit::Usage, "--died ends before it begins"));
        }
        Ok(Self {
            selectors: which.select.selectors_if_any()?,
            died,
            timeout: which.timeout,
        })
    }

    /// Whether it says which tasks, or when they died.
    pub(super) fn is_said(&self) -> bool {
        !self.selectors.is_empty() || self.died.is_some()
    }

    /// Whether a dead letter is meant.
    fn holds(&self, found: &Found<'_>) -> bool {
        let Found {
            letter,
            record,
            target,
            died,
            ..
        } = found;
        self.died.is_none_or(|span| span.has(*died))
            && letter.fits_any(record, *target, &self.selectors)
    }
}

/// A consumer of dead letters.
pub(super) fn consumer(
    config: &Config,
    user: User,
) -> Result<BaseConsumer<LoggingContext>, Failed> {
    scan::consumer(client_config(config.kafka.consumer()), NAME)
        .map_err(|error| failed(config, user, "read topics", &error))
}

/// Gives each dead letter that is meant to `look`, until that has seen enough or time is over.
pub(super) fn each(
    config: &Config,
    wanted: &Wanted,
    mut look: impl FnMut(Found<'_>) -> ControlFlow<()>,
) -> Result<Looked, Failed> {
    let topics = topics(config);
    let topic = &topics.dead_letters;
    reach(config, User::DeadLetters, &[topic])?;
    let targets = targets(config, &topics, &wanted.selectors)?;
    let refused = |error: KafkaError| {
        let what = format!("read {topic}");
        failed(config, User::DeadLetters, &what, &error)
    };
    let consumer = consumer(config, User::DeadLetters)?;
    let start = Instant::now();
    let (starts, all) = starts(&consumer, topic, wanted.died).map_err(refused)?;
    let mut looked = Looked {
        topic: Arc::clone(topic),
        ..Looked::default()
    };
    if starts.count() == 0 {
        return Ok(looked);
    }
    let mut told = start;
    let scanned = scan::read(&consumer, &starts, start + wanted.timeout, |message| {
        looked.records += 1;
        if looked.records.is_multiple_of(GLANCE) && told.elapsed() >= TELL {
            told = Instant::now();
            looked.tell(all, start.elapsed());
        }
        let Some(found) = looked.take(message, &targets) else {
            return ControlFlow::Continue(());
        };
        if !wanted.holds(&found) {
            return ControlFlow::Continue(());
        }
        looked.count += 1;
        look(found)
    })
    .map_err(refused)?;
    match scanned {
        Scanned::ToEnd => {}
        Scanned::Enough => looked.is_cut = true,
        Scanned::OutOfTime { left } => looked.left = left,
    }
    Ok(looked)
}

/// What the scenes of the configuration and of the scenes topic call. Where that topic cannot be read, and nobody asks for a target, those of
/// the configuration have to do.
fn targets(
    config: &Config,
    topics: &Topics,
    selectors: &[Selector],
) -> Result<TargetNames, Failed> {
    let group = &config.processor.group;
    let follower = Follower::start(
        &client_config(config.kafka.consumer()),
        &topics.scenes,
        group,
    );
    let asks = |selector: &Selector| !selector.parts().targets.is_empty();
    let scenes = match &follower {
        Ok(follower) => merged(&config.scenes, follower.scenes()),
        Err(error) if selectors.iter().any(asks) => {
            return Err(Failed::new(Exit::Failure, error));
        }
        Err(error) => {
            say(&format!(
                "note: targets of scenes on {} are not known: {}",
                topics.scenes,
                with_causes(error)
            ));
            config.scenes.clone()
        }
    };
    let rules = scenes.iter();
    let rules: Vec<Scene> = rules
        .filter_map(|(name, scene)| scene.rules(name).ok())
        .collect();
    Ok(rules.iter().collect())
}

/// The partitions of a topic.
pub(super) fn partitions(
    consumer: &BaseConsumer<LoggingContext>,
    topic: &str,
) -> Result<Vec<i32>, KafkaError> {
    Ok(partitions_of(&scan::partitions(consumer, topic)?))
}

/// The partitions of a list.
fn partitions_of(list: &TopicPartitionList) -> Vec<i32> {
    let elements = list.elements();
    elements
        .iter()
        .map(TopicPartitionListElem::partition)
        .collect()
}

/// Where to start reading, and about how many records there are from there on.
fn starts(
    consumer: &BaseConsumer<LoggingContext>,
    topic: &str,
    died: Option<Span>,
) -> Result<(TopicPartitionList, u64), KafkaError> {
    let from = died
        .map(|died| died.from)
        .filter(|from| *from > Timestamp::EPOCH);
    let starts = scan::starts(consumer, topic, from)?;
    let (spans, _) = offsets::spans(consumer, topic, &partitions_of(&starts), CALL)?;
    let elements = starts.elements();
    let records = elements.iter().map(|element| {
        let Some((first, end)) = spans.get(&element.partition()) else {
            return 0;
        };
        match element.offset() {
            Offset::Offset(offset) => end - offset.max(*first),
            Offset::End => 0,
            _ => end - first,
        }
    });
    let records = records.filter_map(|records| u64::try_from(records).ok());
    let records = records.sum();
    Ok((starts, records))
}

// === impl Found ===

impl Found<'_> {
    /// What keeps it from being replayed with this change of payloads, as workers find it: `campaigns` are those that are not over.
    pub(super) fn ineligible(
        &self,
        replayed: &Replayed,
        campaigns: &[Campaign],
        edit: Option<&Edit>,
    ) -> Option<Ineligible> {
        if replayed.has(self.at.partition, self.at.offset) {
            return Some(Ineligible::Replayed);
        }
        let replay = self.letter.replay.as_ref();
        let mut campaigns = campaigns.iter();
        let is_claimed = campaigns.any(|campaign| {
            campaign.claims(self.at.partition, self.at.offset, replay)
                && self
                    .letter
                    .is_meant(&self.record, self.died, self.target, &campaign.spec)
        });
        if is_claimed {
            return Some(Ineligible::Claimed);
        }
        let times = replay.map(|replay| replay.times);
        if times.is_some_and(|times| times >= MOST_REPLAYS) {
            return Some(Ineligible::TooOften);
        }
        self.letter.ineligible(edit)
    }
}

// === impl Looked ===

impl Looked {
    /// Nothing of this topic yet.
    pub(super) fn at(topic: &Arc<str>) -> Self {
        Self {
            topic: Arc::clone(topic),
            ..Self::default()
        }
    }

    /// The dead letter that a record is, if it is one.
    pub(super) fn take<'a>(
        &mut self,
        message: &BorrowedMessage<'_>,
        targets: &'a TargetNames,
    ) -> Option<Found<'a>> {
        let read = received(message).ok();
        let read = read.and_then(|record| Some((Letter::of(&record)?, record)));
        let place = || Origin {
            topic: Arc::clone(&self.topic),
            partition: message.partition(),
            offset: message.offset(),
        };
        let Some((letter, record)) = read else {
            self.foreign += 1;
            if self.example.is_none() {
                self.example = Some(place());
            }
            return None;
        };
        let died = message.timestamp().to_millis().unwrap_or_default();
        Some(Found {
            target: targets.of_task(&letter.scene, letter.kind),
            at: place(),
            died: Timestamp::from_millis(u64::try_from(died).unwrap_or_default()),
            letter,
            record,
        })
    }

    /// Says how far reading has come.
    pub(super) fn tell(&self, all: u64, time: Duration) {
        let Self {
            topic,
            records,
            count,
            ..
        } = self;
        let seconds = time.as_secs();
        say(&format!(
            "reading {topic}: {records} of about {all} records, {count} dead letters so far, {seconds} s"
        ));
    }

    /// The same, where the newest so many were printed.
    pub(super) fn end_newest(&self, shown: u64) -> Result<(), Failed> {
        if shown == self.count {
            return self.end("");
        }
        self.end(&format!(", the newest {shown} of them shown"))
    }

    /// Says what was read, and what was not: `shown` is what was printed, in words.
    pub(super) fn end(&self, shown: &str) -> Result<(), Failed> {
        let Self {
            topic,
            records,
            count,
            foreign,
            example,
            left,
            is_cut,
        } = self;
        if let Some(example) = example {
            say(&format!(
                "note: {foreign} of the records are no dead letters of retide's, the first at {example}: they were passed over"
            ));
        }
        let read = format!("{records} records of {topic} read");
        if !left.is_empty() {
            let left: Vec<String> = left.iter().map(ToString::to_string).collect();
            let message = format!(
                "{count} dead letters so far; {read}, and not to the end of partition {}; --timeout gives more time, --died a later start",
                left.join(" ")
            );
            return Err(Failed::because(Exit::Partly, message));
        }
        if *count == 0 {
            let message = format!("no dead letter fits; {read}");
            return Err(Failed::because(Exit::NotFound, message));
        }
        let rest = if *is_cut {
            ", and not to the end: --limit was reached"
        } else {
            ""
        };
        say(&format!("{count} dead letters{shown}; {read}{rest}"));
        Ok(())
    }
}
