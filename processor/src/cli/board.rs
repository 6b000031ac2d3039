//! What people want of tasks and targets, and which shards know it: records of the scenes topic, written and read by `retide hold`, `release`,
//! `holds` and `breakers`.
//!
//! Not what the records say. Invariant: nothing is written before it was read as workers read it, and somebody has said yes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use clap::Args;
use rdkafka::message::{BorrowedMessage, Message};
use serde_json::{Map, Value};
use signal_hook::consts::{SIGINT, SIGTERM};

use retide_config::{Config, Exhausted};
use retide_core::forced::Forced;
use retide_core::hold::{Hold, Revision};
use retide_core::span;
use retide_kafka::client::client_config;
use retide_kafka::cluster::User;
use retide_kafka::follow;
use retide_kafka::publish::Publisher;
use retide_kafka::record::{OutHeaders, OutRecord};
use retide_kafka::topics::Topics;
use retide_shell::holds::Standings;
use retide_shell::scenes::Unreadables;

use crate::cli::ask;
use crate::cli::output::{Exit, Failed, say};
use crate::cli::reach::{failed, reach, scenes_of};

/// What everything takes that changes what people want.
#[derive(Debug, Args)]
pub(super) struct Acting {
    /// Why
    #[arg(long, value_name = "TEXT")]
    pub(super) reason: Option<String>,
    /// Who wants it [default: $USER]
    #[arg(long, value_name = "NAME")]
    pub(super) by: Option<String>,
    /// Do not ask
    #[arg(long, short)]
    pub(super) yes: bool,
    /// Only say what it would be about
    #[arg(long)]
    pub(super) dry_run: bool,
    /// How long it is waited for that all shards know
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = span::parse)]
    pub(super) wait: Duration,
    /// Do not wait for that
    #[arg(long, conflicts_with = "wait")]
    pub(super) no_wait: bool,
}

/// The holds and what is forced, and how they stand.
pub(super) struct Board<'a> {
    /// The configuration.
    pub(super) config: &'a Config,
    /// The topics.
    topics: Topics,
    /// The holds by name.
    pub(super) holds: BTreeMap<String, Arc<Hold>>,
    /// The scenes of the topic that hold their tasks when they are out of attempts.
    pub(super) holding: BTreeSet<String>,
    /// Those that cannot be read.
    pub(super) unreadable: Unreadables,
    /// What people want of breakers, by target.
    pub(super) forced: BTreeMap<String, Arc<Forced>>,
    /// The targets of which that cannot be read.
    pub(super) unreadable_forced: Unreadables,
    /// What shards have written of them.
    pub(super) standings: Standings,
    /// Reads on what they write; nobody does where that is refused.
    follower: Option<follow::Follower>,
    /// Set by a signal.
    stop: Arc<AtomicBool>,
}

/// Longest time for reading what shards have written.
const PATIENCE: Duration = Duration::from_secs(30);

// === impl Acting ===

impl Acting {
    /// The keys of a record that say who wants it, why, and when it ends by itself.
    pub(super) fn said(&self, until: Option<&str>, lasts: Option<Duration>) -> Map<String, Value> {
        let mut keys = Map::new();
        let mut put = |key: &str, value: String| keys.insert(key.to_owned(), value.into());
        put("by", self.by());
        put("reason", self.reason.clone().unwrap_or_default());
        if let Some(until) = until {
            put("until", until.to_owned());
        }
        if let Some(lasts) = lasts {
            put("for", span::text(lasts));
        }
        keys
    }

    /// Who wants it.
    pub(super) fn by(&self) -> String {
        ask::who(self.by.as_deref())
    }

    /// Asks whether it shall be done.
    pub(super) fn confirm(&self, word: &str, what: &str) -> Result<(), Failed> {
        if self.yes {
            return Ok(());
        }
        ask::somebody(|| {
            format!(
                "{word} changes what is done with tasks, and nobody can be asked here: add --yes, or --dry-run to see what it is about"
            )
        })?;
        ask::agreement(what, "nothing was written")
    }
}

// === impl Board ===

impl<'a> Board<'a> {
    /// Reads the holds, and how they stand.
    pub(super) fn open(config: &'a Config, user: User) -> Result<Self, Failed> {
        let topics = Topics::new(&config.topics.prefix, &config.topics.tiers);
        reach(config, user, &[&topics.scenes])?;
        let scenes = scenes_of(config, user, &topics)?;
        let (client, group) = (
            client_config(config.kafka.consumer()),
            &config.processor.group,
        );
        let mut standings = Standings::default();
        let deadline = Instant::now() + PATIENCE;
        let take = |message: &BorrowedMessage<'_>| {
            standings.take(message.partition(), message.key(), message.payload());
        };
        let follower = follow::Follower::start(&client, (&topics.order, group), deadline, take)
            .inspect_err(|error| {
                let topic = &topics.order;
                say(&format!(
                    "note: how shards stand is not known, since {topic} cannot be read: {error}"
                ));
            })
            .ok();
        standings.shards = follower.as_ref().map_or(0, follow::Follower::partitions);
        let stop = Arc::new(AtomicBool::new(false));
        for signal in [SIGINT, SIGTERM] {
            signal_hook::flag::register(signal, Arc::clone(&stop))?;
        }
        let holding = scenes.scenes().iter();
        let holding = holding.filter(|(_, scene)| scene.on_exhausted == Exhausted::Hold);
        Ok(Self {
            config,
            holding: holding.map(|(name, _)| name.clone()).collect(),
            holds: scenes.holds().clone(),
            forced: scenes.forced().clone(),
            unreadable_forced: scenes.unreadable_forced().clone(),
            unreadable: scenes.unreadable_holds().clone(),
            topics,
            standings,
            follower,
            stop,
        })
    }

    /// Waits until `is_done` says of each shard that it is, time is up, or somebody has seen enough.
    pub(super) fn wait(&mut self, wait: Duration, is_done: impl Fn(&Self, i32) -> bool) {
        let deadline = Instant::now() + wait;
        while !(0..self.standings.shards as i32).all(|shard| is_done(self, shard)) {
            if Instant::now() >= deadline || self.stop.load(Ordering::Relaxed) {
                return;
            }
            let Some(follower) = &self.follower else {
                return;
            };
            let standings = &mut self.standings;
            follower.follow(|message| {
                standings.take(message.partition(), message.key(), message.payload());
            });
        }
    }

    /// Says how many cannot be read and are not listed.
    pub(super) fn tell_others(&self, unreadable: &Unreadables) {
        if let Some(others) = unreadable.others() {
            say(&format!(
                "{others} on {} cannot be read or do not count, and are not listed",
                self.topics.scenes
            ));
        }
    }

    /// Whether a shard knows what is said of something since `revision`.
    pub(super) fn knows(&self, name: &str, revision: Revision, shard: i32) -> bool {
        let by_shard = self.standings.by_name.get(name);
        let standing = by_shard.and_then(|by_shard| by_shard.get(&shard));
        standing.is_some_and(|standing| standing.revision >= revision)
    }

    /// Writes records, and says where they stand.
    pub(super) fn write(
        &self,
        records: &[(String, Option<Bytes>)],
    ) -> Result<Vec<Revision>, Failed> {
        let mut publisher = Publisher::try_new(&client_config(self.config.kafka.producer()))
            .map_err(|error| Failed::new(Exit::Failure, &error))?;
        for (key, value) in records {
            publisher.send(&OutRecord {
                topic: Arc::clone(&self.topics.scenes),
                partition: None,
                key: Some(key.clone().into()),
                value: value.clone(),
                headers: OutHeaders::default(),
            });
        }
        let stored = publisher.finish().into_iter().map(|stored| {
            let what = format!("write {}", self.topics.scenes);
            let stored = stored.map_err(|error| {
                failed(self.config, User::ScenesApply, &what, &error).or_exit(Exit::Unreachable)
            })?;
            Ok(Revision {
                partition: stored.partition,
                offset: stored.offset,
            })
        });
        stored.collect()
    }

    /// Says that not all shards know something, and exits so.
    pub(super) fn partly(&self, what: &str, list: &str, confirmed: usize) -> Result<(), Failed> {
        let shards = self.standings.shards;
        if self.stop.load(Ordering::Relaxed) {
            return Err(Failed::silently(Exit::Interrupted));
        }
        if confirmed >= shards {
            return Ok(());
        }
        let retide = &self.config.invocation;
        let message = format!(
            "{what} is written, and {confirmed} of {shards} shards have said that they know: does {} run? To look at it again: {}",
            retide.line("run"),
            retide.line(list)
        );
        Err(Failed::because(Exit::Partly, message))
    }
}
