//! What becomes of commands: the partitions where they stand are read, to which shards write their answers.
//!
//! Invariant: no group is joined and nothing is committed.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::error::KafkaError;
use rdkafka::message::{BorrowedMessage, Message};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use retide_avro::control;
use retide_config::Config;
use retide_core::Timestamp;
use retide_core::control::{Answer, Control, Counts, Ended, Place, Refusal};
use retide_kafka::client::{Kept, client_config};
use retide_kafka::cluster::User;
use retide_kafka::publish::Stored;
use retide_kafka::record::received;
use retide_kafka::scan;
use retide_kafka::topics::Topics;

use crate::cli::output::{Exit, Failed, say};
use crate::cli::reach::failed;

/// A command that is followed.
pub(super) struct Following {
    /// Its name.
    pub(super) id: String,
    /// Where it stands.
    pub(super) stored: Stored,
    /// What is known of it.
    pub(super) followed: Followed,
}

/// What is known of a command.
#[derive(Default)]
pub(super) struct Followed {
    /// The shards that have answered.
    answered: BTreeSet<i32>,
    /// How many answer; none is known of yet if it is 0.
    pub(super) shards: u32,
    /// The sums so far.
    pub(super) counts: Counts,
    /// Its end.
    pub(super) ended: Option<Ended>,
}

/// Longest wait for a record before time and signals are looked at.
const POLL: Duration = Duration::from_millis(100);

/// How often it is told how far a command is.
const TELL: Duration = Duration::from_secs(2);

/// After how long without any answer it is asked whether workers run.
const SILENCE: Duration = Duration::from_secs(10);

/// How long the commands topic is read for a command.
const PATIENCE: Duration = Duration::from_mins(1);

/// What the tool is called by brokers.
const NAME: &str = "retide-tasks";

/// Waits until all commands have ended, time is up, or somebody has seen enough.
pub(super) fn follow(
    config: &Config,
    topics: &Topics,
    sent: &mut [Following],
    (word, wait): (&str, Duration),
    stop: &AtomicBool,
) -> Result<(), Failed> {
    let refused = |error: KafkaError| {
        let what = format!("read {}", topics.commands);
        failed(config, User::Tasks, &what, &error)
    };
    let mut starts: BTreeMap<i32, i64> = BTreeMap::new();
    for it in &*sent {
        if it.followed.ended.is_none() {
            let start = starts.entry(it.stored.partition).or_insert(i64::MAX);
            *start = (*start).min(it.stored.offset + 1);
        }
    }
    if starts.is_empty() || wait.is_zero() {
        return Ok(());
    }
    let client = client_config(config.kafka.consumer());
    let make = |client: &ClientConfig| scan::follower(client.clone(), NAME);
    let consumer = Kept::make(&client, make).map_err(refused)?;
    let mut list = TopicPartitionList::new();
    for (partition, offset) in starts {
        list.add_partition_offset(&topics.commands, partition, Offset::Offset(offset))
            .map_err(refused)?;
    }
    scan::read_on(&consumer, &list).map_err(refused)?;
    let start = Instant::now();
    let (mut told, mut before, mut is_silent) = (start, (0, Counts::default()), true);
    while sent.iter().any(|it| it.followed.ended.is_none()) {
        if stop.load(Ordering::Relaxed) || start.elapsed() >= wait {
            return Ok(());
        }
        let note = |error: &KafkaError| say(&format!("note: {}: {error}", topics.commands));
        if let Some(message) = scan::next(&consumer, POLL, note).map_err(refused)? {
            take(&message, topics, sent);
        }
        let now = progress(sent);
        if now.0 > 0 {
            is_silent = false;
        }
        if told.elapsed() >= TELL && now != before {
            (told, before) = (Instant::now(), now);
            say(&told_of(word, sent));
        }
        if is_silent && start.elapsed() >= SILENCE {
            is_silent = false;
            say(&format!(
                "no worker has answered for {} s: does {} run, and has it read {} since it started?",
                SILENCE.as_secs(),
                config.invocation.line("run"),
                topics.commands
            ));
        }
    }
    Ok(())
}

/// The commands of this name, or of parts of it, what is known of them, and what they do.
pub(super) fn find(
    config: &Config,
    topics: &Topics,
    id: &str,
) -> Result<(&'static str, Vec<Following>), Failed> {
    let refused = |error: KafkaError| {
        let what = format!("read {}", topics.commands);
        failed(config, User::Tasks, &what, &error)
    };
    let client = client_config(config.kafka.consumer());
    let consumer = scan::consumer(client, NAME).map_err(refused)?;
    let all = scan::partitions(&consumer, &topics.commands).map_err(refused)?;
    let mut starts = TopicPartitionList::with_capacity(all.count());
    for element in all.elements() {
        starts
            .add_partition_offset(&topics.commands, element.partition(), Offset::Beginning)
            .map_err(refused)?;
    }
    let is_it = |name: &str| {
        let part = name
            .strip_prefix(id)
            .and_then(|rest| rest.strip_prefix('-'));
        name == id || part.is_some_and(|part| part.bytes().all(|byte| byte.is_ascii_digit()))
    };
    let (mut word, mut sent) = ("", Vec::new());
    let deadline = Instant::now() + PATIENCE;
    let scanned = scan::read(&consumer, &starts, deadline, |message| {
        let is_request = scan::last(message, control::STAGE).is_none();
        let id = match read(message, topics) {
            Some(Ok(Control::Request(command))) => {
                if is_it(&command.id) {
                    word = command.verb.word();
                }
                Some(command.id.clone())
            }
            // One that workers refuse, too.
            Some(Err(refusal)) if is_request => Some(refusal.id),
            Some(_) | None => None,
        };
        match id {
            Some(id) if is_it(&id) => sent.push(Following {
                id: id.to_string(),
                stored: Stored {
                    partition: message.partition(),
                    offset: message.offset(),
                },
                followed: Followed::default(),
            }),
            Some(_) => {}
            None => take(message, topics, &mut sent),
        }
        ControlFlow::Continue(())
    })
    .map_err(refused)?;
    if let scan::Scanned::OutOfTime { .. } = scanned
        && sent.is_empty()
    {
        let message = format!("{} was not read to its end in time", topics.commands);
        return Err(Failed::because(Exit::Partly, message));
    }
    sent.sort_by(|one, other| (one.id.len(), &one.id).cmp(&(other.id.len(), &other.id)));
    Ok((word, sent))
}

/// How many shards have answered, and the sums.
fn progress(sent: &[Following]) -> (usize, Counts) {
    let all = sent.iter().map(|it| &it.followed);
    all.fold((0, Counts::default()), |(answered, counts), it| {
        let counts = counts.and(it.counts);
        (answered + it.answered.len(), counts)
    })
}

/// How far commands are, for people.
fn told_of(word: &str, sent: &[Following]) -> String {
    let (answered, counts) = progress(sent);
    let shards: u32 = sent.iter().map(|it| it.followed.shards).sum();
    format!(
        "{word}: {answered} of {shards} shards have answered, {} tasks done, {} too late",
        counts.done, counts.too_late
    )
}

/// What a record of the commands topic is, or why it is none; nothing of one that the client cannot read.
pub(in crate::cli) fn read(
    message: &BorrowedMessage<'_>,
    topics: &Topics,
) -> Option<Result<Control, Box<Refusal>>> {
    let at = u64::try_from(message.timestamp().to_millis()?).ok()?;
    let place = Place {
        at: Timestamp::from_millis(at),
        partition: message.partition(),
        offset: message.offset(),
    };
    let record = received(message).ok()?;
    let control = control::decode(&record, place, &|topic| topics.source(topic));
    Some(control)
}

/// Notes what a record says of the commands that are followed.
fn take(message: &BorrowedMessage<'_>, topics: &Topics, sent: &mut [Following]) {
    let find = |place: Place, sent: &mut [Following]| {
        let at = Stored {
            partition: place.partition,
            offset: place.offset,
        };
        sent.iter().position(|it| it.stored == at)
    };
    match read(message, topics) {
        Some(Ok(Control::Answer(Answer {
            place,
            of,
            shards,
            counts,
            ..
        }))) => {
            if let Some(index) = find(place, sent) {
                let followed = &mut sent[index].followed;
                followed.shards = shards;
                // Each shard answers once, alone or with others.
                if followed.answered.is_disjoint(&of) {
                    followed.counts = followed.counts.and(counts);
                    followed.answered.extend(of);
                }
            }
        }
        Some(Ok(Control::Ended(ended))) => {
            if let Some(index) = find(ended.place, sent) {
                sent[index].followed.ended = Some(ended);
            }
        }
        Some(
            Ok(
                Control::Request(_)
                | Control::Step(_)
                | Control::Ask(_)
                | Control::Campaign(_)
                | Control::Report(_),
            )
            | Err(_),
        )
        | None => {}
    }
}
