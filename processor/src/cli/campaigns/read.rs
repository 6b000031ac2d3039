//! The campaigns that stand on the commands topic: the last record of each says how it is.
//!
//! Invariant: no group is joined and nothing is committed; no more than [`MOST`] are held in memory.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use rdkafka::error::KafkaError;
use rdkafka::message::{BorrowedMessage, Message};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use retide_config::Config;
use retide_core::campaign::{CAMPAIGN, Campaign, Id, LEADER};
use retide_core::control::{Control, Refusal};
use retide_kafka::client::client_config;
use retide_kafka::cluster::User;
use retide_kafka::scan::{self, Scanned};
use retide_kafka::topics::Topics;

use crate::cli::output::{Exit, Failed, say};
use crate::cli::reach::{failed, reach, topics};
use crate::cli::tasks::follow as commands;

/// The campaigns that were found.
pub(in crate::cli) struct Campaigns {
    /// How each is.
    by_id: BTreeMap<Id, Campaign>,
    /// How many older ones were forgotten.
    forgotten: u64,
    /// Whether the topic was read to its end.
    is_whole: bool,
    /// The topic.
    topic: String,
}

/// Most campaigns that are held; the oldest is forgotten where there are more.
const MOST: usize = 1_000;

/// How long the topic is read.
const PATIENCE: Duration = Duration::from_mins(1);

/// What the tool is called by brokers.
pub(super) const NAME: &str = "retide-campaigns";

/// Reads all campaigns.
pub(in crate::cli) fn all(config: &Config) -> Result<Campaigns, Failed> {
    let topics = topics(config);
    let topic = &topics.commands;
    reach(config, User::Tasks, &[topic])?;
    let refused = |error: KafkaError| failed(config, User::Tasks, &format!("read {topic}"), &error);
    let consumer = scan::consumer(client_config(config.kafka.consumer()), NAME).map_err(refused)?;
    let mut starts = TopicPartitionList::new();
    starts
        .add_partition_offset(topic, LEADER, Offset::Beginning)
        .map_err(refused)?;
    let mut campaigns = Campaigns {
        by_id: BTreeMap::new(),
        forgotten: 0,
        is_whole: true,
        topic: topic.to_string(),
    };
    let scanned = scan::read(&consumer, &starts, Instant::now() + PATIENCE, |message| {
        if let Some(Ok(Control::Campaign(campaign))) = told(message, &topics) {
            campaigns.take(*campaign);
        }
        ControlFlow::Continue(())
    })
    .map_err(refused)?;
    campaigns.is_whole = !matches!(scanned, Scanned::OutOfTime { .. });
    Ok(campaigns)
}

/// What a record says that is of a campaign; nothing of others, of which there may be many and large ones.
fn told(message: &BorrowedMessage<'_>, topics: &Topics) -> Option<Result<Control, Box<Refusal>>> {
    message.key()?.strip_prefix(CAMPAIGN.as_bytes())?;
    commands::read(message, topics)
}

// === impl Campaigns ===

impl Campaigns {
    /// Notes how a campaign is.
    fn take(&mut self, campaign: Campaign) {
        self.by_id.insert(campaign.id.clone(), campaign);
        if self.by_id.len() > MOST {
            self.by_id.pop_first();
            self.forgotten += 1;
        }
    }

    /// All of them, the newest first.
    pub(in crate::cli) fn newest_first(&self) -> impl Iterator<Item = &Campaign> {
        self.by_id.values().rev()
    }

    /// The newest of a name.
    pub(super) fn named(&self, name: &str) -> Result<&Campaign, Failed> {
        let mut all = self.newest_first();
        all.find(|campaign| &*campaign.id.name == name)
            .ok_or_else(|| {
                let rest = if self.is_whole {
                    String::new()
                } else {
                    format!("; {} was not read to its end in time", self.topic)
                };
                let message = format!("no campaign {name} is on topic {}{rest}", self.topic);
                Failed::because(Exit::NotFound, message)
            })
    }

    /// Says what was not read.
    pub(super) fn end(&self) -> Result<(), Failed> {
        if self.forgotten > 0 {
            say(&format!(
                "note: the newest {MOST} campaigns are shown; {} are older",
                self.forgotten
            ));
        }
        if !self.is_whole {
            let message = format!("{} was not read to its end in time", self.topic);
            return Err(Failed::because(Exit::Partly, message));
        }
        if self.by_id.is_empty() {
            say("there are no campaigns; `retide dead-letters replay` starts one");
        }
        Ok(())
    }
}
