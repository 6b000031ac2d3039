//! A request about a campaign is sent, and what becomes of it is waited for.
//!
//! Invariant: what is sent was read as workers read it; no group is joined and nothing is committed.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use clap::Args;
use rdkafka::ClientConfig;
use rdkafka::consumer::BaseConsumer;
use rdkafka::error::KafkaError;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use serde_json::{Map, Value};
use signal_hook::consts::{SIGINT, SIGTERM};
use uuid::Uuid;

use retide_avro::control;
use retide_config::Config;
use retide_core::campaign::{Campaign, LEADER, Request, State};
use retide_core::control::{Control, Ended, Place};
use retide_core::{Record, span};
use retide_kafka::client::{Kept, LoggingContext, client_config};
use retide_kafka::cluster::User;
use retide_kafka::publish::{Publisher, Stored};
use retide_kafka::record::{OutHeaders, OutRecord};
use retide_kafka::scan;
use retide_kafka::topics::Topics;
use retide_shell::clock;

use crate::cli::ask;
use crate::cli::output::{Exit, Failed, Output, say};
use crate::cli::reach::{failed, reach, topics};
use crate::cli::tasks::follow as commands;

use super::{line, read};

/// What everything takes that asks something of a campaign.
#[derive(Debug, Args)]
pub(in crate::cli) struct Asking {
    /// Why; it stands in the log of the campaign
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
    /// Who wants it [default: $USER]
    #[arg(long, value_name = "NAME")]
    by: Option<String>,
    /// Do not ask
    #[arg(long, short)]
    pub(in crate::cli) yes: bool,
    /// Only show what it would be about
    #[arg(long)]
    pub(in crate::cli) dry_run: bool,
    /// How long it is waited for that a worker takes it on
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = span::parse)]
    wait: Duration,
    /// Do not wait for that
    #[arg(long, conflicts_with = "wait")]
    no_wait: bool,
}

/// A request that was sent.
pub(in crate::cli) struct Sent {
    /// Where it stands.
    stored: Stored,
    /// Set by a signal.
    stop: Arc<AtomicBool>,
}

/// What is read on of the leader's partition.
struct Reader<'a> {
    /// The configuration.
    config: &'a Config,
    /// The topics.
    topics: Topics,
    /// The consumer.
    consumer: Kept<BaseConsumer<LoggingContext>>,
}

/// Longest wait for a record before time and signals are looked at.
const POLL: Duration = Duration::from_millis(100);

/// How often it is told how far a campaign is.
const TELL: Duration = Duration::from_secs(2);

/// After how long without any answer it is asked whether workers run.
const SILENCE: Duration = Duration::from_secs(10);

/// Reads a request as workers do.
pub(in crate::cli) fn request(keys: &Map<String, Value>) -> Result<(Bytes, Arc<Request>), Failed> {
    let text = Bytes::from(Value::Object(keys.clone()).to_string());
    let place = Place {
        at: clock::timestamp(),
        partition: LEADER,
        offset: 0,
    };
    let record = Record {
        value: Some(text.clone()),
        ..Record::default()
    };
    match control::decode(&record, place, &|_| None) {
        Ok(Control::Ask(request)) => Ok((text, request)),
        Ok(
            Control::Request(_)
            | Control::Step(_)
            | Control::Answer(_)
            | Control::Ended(_)
            | Control::Campaign(_)
            | Control::Report(_),
        ) => unreachable!("a record without headers is a request, and this one is of a campaign"),
        Err(refusal) => Err(Failed::because(Exit::Usage, String::from(refusal.why))),
    }
}

/// Sends a request.
pub(in crate::cli) fn send(
    config: &Config,
    name: &str,
    keys: &Map<String, Value>,
) -> Result<Sent, Failed> {
    let (text, _) = request(keys)?;
    let topics = topics(config);
    reach(config, User::Tasks, &[&topics.commands])?;
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&stop))?;
    }
    let mut publisher = Publisher::try_new(&client_config(config.kafka.producer()))?;
    publisher.send(&OutRecord {
        topic: Arc::clone(&topics.commands),
        partition: Some(LEADER),
        key: Some(name.to_owned().into()),
        value: Some(text),
        headers: OutHeaders::default(),
    });
    let mut stored = publisher.finish();
    let stored = stored.pop().unwrap_or(Err(KafkaError::Canceled));
    let stored = stored.map_err(|error| {
        let what = format!("send a request about campaign {name}");
        failed(config, User::Tasks, &what, &error).or_exit(Exit::Unreachable)
    })?;
    Ok(Sent { stored, stop })
}

/// Waits until a request was taken on, and shows the campaign as it is then.
pub(super) fn accepted(
    config: &Config,
    sent: &Sent,
    what: &str,
    asking: &Asking,
    output: Output,
) -> Result<(), Failed> {
    if asking.no_wait {
        say(&format!("{what}: sent"));
        return Ok(());
    }
    let reader = Reader::from(config, sent.stored.offset + 1)?;
    let campaign = reader.answer(sent, what, asking)?;
    say(&format!("{what}: done"));
    match campaign {
        Some(campaign) => line::print_whole(&campaign, output),
        None => Ok(()),
    }
}

/// Waits until a campaign that was asked for is over, paused or stopped, and tells how it goes.
pub(in crate::cli) fn started(
    config: &Config,
    sent: &Sent,
    name: &str,
    asking: &Asking,
    output: Output,
) -> Result<(), Failed> {
    let what = format!("start campaign {name}");
    let look = config.invocation.line(&format!("campaigns show {name}"));
    if asking.no_wait {
        say(&format!("{what}: sent; to look at it: {look}"));
        return Ok(());
    }
    let reader = Reader::from(config, sent.stored.offset + 1)?;
    let campaign = reader.answer(sent, &what, asking)?;
    reader.watch(campaign, name, &sent.stop, output)
}

/// Tells how a campaign goes, until it is over, paused or stopped.
pub(super) fn watch(config: &Config, campaign: &Campaign, output: Output) -> Result<(), Failed> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&stop))?;
    }
    // What was counted up to there is known, and each record says all.
    let reader = Reader::from(config, campaign.counted_to.max(campaign.id.place.offset))?;
    let name = Arc::clone(&campaign.id.name);
    reader.watch(Some(campaign.clone()), &name, &stop, output)
}

// === impl Asking ===

impl Asking {
    /// The keys of a request.
    pub(in crate::cli) fn keys(&self, word: &str, name: &str) -> Map<String, Value> {
        let reason = self.reason.clone().unwrap_or_default();
        [
            ("command", word.to_owned()),
            ("name", name.to_owned()),
            ("id", Uuid::new_v4().to_string()),
            ("by", ask::who(self.by.as_deref())),
            ("reason", reason),
        ]
        .map(|(key, text)| (key.to_owned(), text.into()))
        .into_iter()
        .collect()
    }
}

// === impl Reader ===

impl<'a> Reader<'a> {
    /// Reads on from an offset.
    fn from(config: &'a Config, offset: i64) -> Result<Self, Failed> {
        let topics = topics(config);
        let refused = |error: KafkaError| {
            let what = format!("read {}", topics.commands);
            failed(config, User::Tasks, &what, &error)
        };
        let client = client_config(config.kafka.consumer());
        let make = |client: &ClientConfig| scan::follower(client.clone(), read::NAME);
        let consumer = Kept::make(&client, make).map_err(refused)?;
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(&topics.commands, LEADER, Offset::Offset(offset))
            .map_err(refused)?;
        scan::read_on(&consumer, &list).map_err(refused)?;
        Ok(Self {
            config,
            topics,
            consumer,
        })
    }

    /// The next record, if there is one.
    fn next(&self) -> Result<Option<Control>, Failed> {
        let topic = &self.topics.commands;
        let note = |error: &KafkaError| say(&format!("note: {topic}: {error}"));
        let message = scan::next(&self.consumer, POLL, note).map_err(|error| {
            let what = format!("read {topic}");
            failed(self.config, User::Tasks, &what, &error)
        })?;
        let control = message.and_then(|message| commands::read(&message, &self.topics));
        Ok(control.and_then(Result::ok))
    }

    /// Waits for the answer to a request, and gives the campaign as it was last told before that.
    fn answer(&self, sent: &Sent, what: &str, asking: &Asking) -> Result<Option<Campaign>, Failed> {
        let (start, mut is_silent, mut last) = (Instant::now(), true, None);
        loop {
            if sent.stop.load(Ordering::Relaxed) {
                let message = format!("interrupted: what was sent still counts: {what}");
                return Err(Failed::because(Exit::Interrupted, message));
            }
            match self.next()? {
                Some(Control::Campaign(campaign)) => last = Some(*campaign),
                Some(Control::Ended(Ended { place, result, .. }))
                    if place.offset == sent.stored.offset
                        && place.partition == sent.stored.partition =>
                {
                    return match result {
                        Ok(_) => Ok(last),
                        Err(why) => Err(Failed::because(
                            Exit::Precondition,
                            format!("{what}: refused: {why}"),
                        )),
                    };
                }
                Some(_) | None => {}
            }
            if start.elapsed() >= asking.wait {
                let message = format!(
                    "{what}: sent, and no worker has answered in time; it counts as soon as one runs"
                );
                return Err(Failed::because(Exit::Partly, message));
            }
            if is_silent && start.elapsed() >= SILENCE {
                is_silent = false;
                say(&format!(
                    "no worker has answered for {} s: does {} run?",
                    SILENCE.as_secs(),
                    self.config.invocation.line("run"),
                ));
            }
        }
    }

    /// Tells how a campaign goes, until it is over, paused or stopped; then shows it.
    fn watch(
        &self,
        mut last: Option<Campaign>,
        name: &str,
        stop: &AtomicBool,
        output: Output,
    ) -> Result<(), Failed> {
        let (mut told, mut before) = (Instant::now(), String::new());
        let command = |what: &str| {
            self.config
                .invocation
                .line(&format!("campaigns {what} {name}"))
        };
        loop {
            if let Some(campaign) = last.as_ref().filter(|it| it.state != State::Running) {
                line::print_whole(campaign, output)?;
                return ended(campaign, &command("resume"));
            }
            if stop.load(Ordering::Relaxed) {
                let message = format!(
                    "interrupted: the campaign goes on; to look at it: {}; to stop it: {}",
                    command("show"),
                    command("pause")
                );
                return Err(Failed::because(Exit::Interrupted, message));
            }
            if let Some(Control::Campaign(campaign)) = self.next()?
                && &*campaign.id.name == name
            {
                last = Some(*campaign);
            }
            if told.elapsed() >= TELL
                && let Some(campaign) = &last
            {
                told = Instant::now();
                let words = line::words(campaign);
                if words != before {
                    say(&format!("{name}: {words}"));
                    before = words;
                }
            }
        }
    }
}

/// How it is told that a campaign does not go on.
fn ended(campaign: &Campaign, resume: &str) -> Result<(), Failed> {
    let counts = &campaign.counts;
    let name = &campaign.id.name;
    match campaign.state {
        State::Running => Ok(()),
        State::Done if counts.replayed == 0 => Err(Failed::because(
            Exit::NotFound,
            format!("campaign {name} has replayed no dead letter"),
        )),
        State::Done if counts.said.delivered == counts.replayed => Ok(()),
        State::Done => Err(Failed::silently(Exit::Partly)),
        State::Aborted => {
            let message = format!("campaign {name} was aborted");
            Err(Failed::because(Exit::Partly, message))
        }
        State::Paused => {
            let message = format!("campaign {name} is paused; to go on: {resume}");
            Err(Failed::because(Exit::Partly, message))
        }
        State::Stopped => {
            let message = format!(
                "campaign {name} has stopped itself: {} of {} attempts failed; mend what fails, then: {resume}",
                counts.said.failed, counts.said.came_back
            );
            Err(Failed::because(Exit::Partly, message))
        }
    }
}
