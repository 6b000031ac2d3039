//! Which topics take records: known to all workers of a process as soon as one of them has found out.
//!
//! Not what is done about it: the core decides what waits, and the ledger what is written. Invariants: a topic is closed only by what a
//! broker said of it, and opened again only by that; reading it takes nothing from a worker but the load of a number.
//!
//! | who | finds out |
//! |---|---|
//! | the ledger | what was refused, and what was not acknowledged in time, which is only a suspicion |
//! | `watch` | what may be written, by asking; what is written, by a transaction that is aborted |

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::error::RDKafkaErrorCode;

use retide_core::{Sink, Sinks};
use retide_kafka::client::is_missing;
use retide_kafka::cluster::Tools;
use retide_kafka::record::OutRecord;
use retide_kafka::topics::Topics;

use crate::trouble::{Effect, Kind, Trouble, Troubles};

/// Which topics take records.
pub struct Writability {
    /// The topics of retide.
    topics: Arc<Topics>,
    /// What is known of them, and of targets.
    state: Mutex<State>,
    /// Counts changes of what is closed.
    version: AtomicU64,
    /// The tier that takes the records of each tier.
    stand_in: Vec<AtomicUsize>,
    /// Where it is told, if anywhere.
    telling: Option<Telling>,
}

/// Where it is told that a topic takes no records, and how that is mended.
struct Telling {
    /// The troubles of the process.
    troubles: Troubles,
    /// Writes command lines.
    tools: Tools,
    /// The command that makes topics.
    init: String,
}

/// What is known.
#[derive(Default)]
struct State {
    /// Topics of retide that take no records.
    closed: BTreeMap<Arc<str>, Closed>,
    /// Topics of retide that have not acknowledged records in time, each with one of those.
    suspects: BTreeMap<Arc<str>, OutRecord>,
    /// Topics of others.
    targets: HashMap<Arc<str>, Target>,
}

/// A topic that takes no records.
struct Closed {
    /// Who has found that out, and how it is found out that it is over.
    by: By,
    /// A record that was refused.
    sample: Option<OutRecord>,
}

/// By what a topic is known to be closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum By {
    /// The cluster says so when asked.
    Description,
    /// A record was refused.
    Record,
}

/// What is known of a target.
struct Target {
    /// Until when that is believed.
    until: Instant,
    /// How long it is believed the next time, if it refuses records; none if it takes them.
    refuses: Option<Duration>,
}

/// What a target does, as far as is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TargetState {
    /// It takes records.
    Takes,
    /// It takes none: it is not even tried.
    Refuses,
    /// It is to be found out.
    Unknown,
}

/// Why a topic takes no records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cause(pub(crate) RDKafkaErrorCode);

/// How long a target that refuses records is left alone at first: short beside any wait between attempts, and long beside a transaction.
const LEFT_ALONE: Duration = Duration::from_secs(2);

/// Longest time for which it is: whoever makes the topic sees its records within that time.
const LEFT_ALONE_MOST: Duration = Duration::from_secs(30);

/// How long a target that takes records is believed to: a topic that is deleted is found out by the first record, but only after seconds.
const BELIEVED: Duration = Duration::from_mins(1);

// === impl Writability ===

impl Writability {
    /// All topics take records; nobody is told of others.
    pub fn new(topics: &Arc<Topics>) -> Self {
        Self {
            topics: Arc::clone(topics),
            state: Mutex::default(),
            version: AtomicU64::new(0),
            stand_in: (0..topics.tiers.len()).map(AtomicUsize::new).collect(),
            telling: None,
        }
    }

    /// As [`Self::new`], telling people with the commands that mend it: those of `tools`, and `init`, which makes topics.
    pub(crate) fn telling(
        topics: &Arc<Topics>,
        troubles: Troubles,
        tools: Tools,
        init: String,
    ) -> Self {
        Self {
            telling: Some(Telling {
                troubles,
                tools,
                init,
            }),
            ..Self::new(topics)
        }
    }

    /// A number that changes with [`Self::closed`].
    pub fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    /// What takes no records.
    pub fn closed(&self) -> Sinks {
        let state = self.lock();
        let mut sinks = Sinks::NONE;
        if state.closed.is_empty() {
            return sinks;
        }
        let is_closed = |topic: &Arc<str>| state.closed.contains_key(topic);
        let topics = &self.topics;
        for (topic, sink) in [
            (&topics.callbacks, Sink::Callbacks),
            (&topics.dead_letters, Sink::DeadLetters),
            (&topics.events, Sink::Events),
            (&topics.alerts, Sink::Alerts),
            (&topics.order, Sink::Order),
            (&topics.commands, Sink::Commands),
        ] {
            if is_closed(topic) {
                sinks = sinks.with(sink);
            }
        }
        if topics.tiers.iter().all(is_closed) {
            sinks = sinks.with(Sink::Tiers);
        }
        sinks
    }

    /// Whether a topic of retide takes no records.
    pub(crate) fn is_closed(&self, topic: &str) -> bool {
        self.lock().closed.contains_key(topic)
    }

    /// Whether a topic is one of those that retide writes to for itself.
    pub(crate) fn is_own(&self, topic: &str) -> bool {
        let tiers = self.topics.tiers.iter();
        tiers
            .chain(self.topics.written())
            .any(|own| **own == *topic)
    }

    /// Whether a topic holds records of producers.
    pub(crate) fn holds_tasks(&self, topic: &str) -> bool {
        let tiers = self.topics.tiers.iter();
        tiers
            .chain([&self.topics.dead_letters])
            .any(|own| **own == *topic)
    }

    /// Which of the two it is that hold records of producers.
    pub(crate) fn sink(&self, topic: &str) -> Sink {
        if *self.topics.dead_letters == *topic {
            Sink::DeadLetters
        } else {
            Sink::Tiers
        }
    }

    /// The tier that takes the records of `tier`: itself, or the nearest one that does.
    pub(crate) fn tier(&self, tier: usize) -> usize {
        self.stand_in[tier].load(Ordering::Relaxed)
    }

    /// A topic of retide takes no records, as a broker says; `sample` is one that it did not take.
    pub(crate) fn close(&self, topic: &str, cause: Cause, by: By, sample: Option<OutRecord>) {
        let Some(topic) = self.name(topic) else {
            return;
        };
        let mut state = self.lock();
        state.suspects.remove(&topic);
        let before = state.closed.remove(&topic);
        let is_new = before.is_none();
        let before = before.and_then(|closed| closed.sample);
        let closed = Closed {
            by,
            sample: sample.or(before),
        };
        state.closed.insert(Arc::clone(&topic), closed);
        if is_new {
            self.follow(&state);
        }
        drop(state);
        self.tell(&topic, cause);
    }

    /// A topic of retide takes records.
    pub(crate) fn open(&self, topic: &str) {
        let mut state = self.lock();
        state.suspects.remove(topic);
        if state.closed.remove(topic).is_none() {
            return;
        }
        self.follow(&state);
        drop(state);
        if let Some(Telling { troubles, .. }) = &self.telling {
            troubles.end(Kind::TopicUnwritable, topic);
        }
    }

    /// A topic of retide has not acknowledged a record in time: whether it takes any is to be found out.
    pub(crate) fn suspect(&self, record: OutRecord) {
        if self.is_own(&record.topic) {
            let mut state = self.lock();
            state.suspects.insert(Arc::clone(&record.topic), record);
        }
    }

    /// The topics that the cluster says are closed, and that only it can open.
    pub(crate) fn described(&self) -> Vec<Arc<str>> {
        let state = self.lock();
        let closed = state.closed.iter();
        closed
            .filter(|(_, closed)| closed.by == By::Description)
            .map(|(topic, _)| Arc::clone(topic))
            .collect()
    }

    /// Records to try whether their topics take them, of those that are closed or suspected to be.
    pub(crate) fn samples(&self) -> Vec<OutRecord> {
        let state = self.lock();
        let closed = state.closed.values();
        closed
            .filter(|closed| closed.by == By::Record)
            .filter_map(|closed| closed.sample.as_ref())
            .chain(state.suspects.values())
            .cloned()
            .collect()
    }

    /// What a target does, as far as is known.
    pub(crate) fn target(&self, topic: &str) -> TargetState {
        let state = self.lock();
        match state.targets.get(topic) {
            Some(target) if Instant::now() < target.until => match target.refuses {
                Some(_) => TargetState::Refuses,
                None => TargetState::Takes,
            },
            Some(_) | None => TargetState::Unknown,
        }
    }

    /// A target takes records.
    pub(crate) fn target_takes(&self, topic: &Arc<str>) {
        let target = Target {
            until: Instant::now() + BELIEVED,
            refuses: None,
        };
        let before = self.lock().targets.insert(Arc::clone(topic), target);
        let refused = before.is_some_and(|before| before.refuses.is_some());
        if let Some(Telling { troubles, .. }) = &self.telling
            && refused
        {
            troubles.end(Kind::TargetUnwritable, topic);
        }
    }

    /// A target takes no records: it is left alone for a moment, which is longer each time.
    pub(crate) fn target_refuses(&self, topic: &Arc<str>, cause: Cause) {
        let mut state = self.lock();
        let before = state.targets.get(topic).and_then(|target| target.refuses);
        let pause = before.map_or(LEFT_ALONE, |pause| (pause * 2).min(LEFT_ALONE_MOST));
        let target = Target {
            until: Instant::now() + pause,
            refuses: Some(pause),
        };
        state.targets.insert(Arc::clone(topic), target);
        drop(state);
        if let Some(Telling {
            troubles, tools, ..
        }) = &self.telling
        {
            troubles.begin(Trouble {
                kind: Kind::TargetUnwritable,
                subject: topic.to_string(),
                says: format!("the target topic takes no records: {cause}"),
                fix: Some(match cause.0 {
                    code if is_missing(code) => tools.create(topic),
                    RDKafkaErrorCode::TopicAuthorizationFailed => tools.allow_write(topic),
                    _ => tools.describe(topic),
                }),
                effect: Effect::Limits,
            });
        }
    }

    /// The name of a topic of retide's, as all share it.
    fn name(&self, topic: &str) -> Option<Arc<str>> {
        let mut own = self.topics.tiers.iter().chain(self.topics.written());
        own.find(|own| ***own == *topic).map(Arc::clone)
    }

    /// Follows a change of what is closed.
    fn follow(&self, state: &State) {
        let closed: Vec<bool> = self
            .topics
            .tiers
            .iter()
            .map(|topic| state.closed.contains_key(topic))
            .collect();
        for (tier, stand_in) in self.stand_in.iter().enumerate() {
            // A shorter wait comes back too soon and goes on; only where there is none, a longer one is late.
            let shorter = (0..=tier).rev();
            let mut nearest = shorter.chain(tier + 1..closed.len());
            let open = nearest.find(|tier| !closed[*tier]).unwrap_or(tier);
            stand_in.store(open, Ordering::Relaxed);
        }
        self.version.fetch_add(1, Ordering::AcqRel);
    }

    /// Tells people of a topic that takes no records.
    fn tell(&self, topic: &Arc<str>, cause: Cause) {
        let Some(Telling {
            troubles,
            tools,
            init,
        }) = &self.telling
        else {
            return;
        };
        let tier = self.topics.tiers.iter().position(|tier| tier == topic);
        let stand_in = tier
            .map(|tier| self.tier(tier))
            .filter(|to| tier != Some(*to));
        if *topic == self.topics.commands && is_missing(cause.0) {
            // Groups have worked before there was one; who looks at the topics tells that there is none.
            return;
        }
        let (waits, effect) = if *topic == self.topics.commands {
            ("commands wait until it does".to_owned(), Effect::Limits)
        } else if let Some(stand_in) = stand_in {
            let other = &self.topics.tiers[stand_in];
            (format!("its records go to {other}"), Effect::Limits)
        } else {
            let waits =
                "what needs it waits, and no target is called whose end could not be written";
            (waits.to_owned(), Effect::Stops)
        };
        let fix = match cause.0 {
            code if is_missing(code) => init.clone(),
            RDKafkaErrorCode::TopicAuthorizationFailed => tools.allow_write(topic),
            RDKafkaErrorCode::MessageSizeTooLarge | RDKafkaErrorCode::InvalidMessageSize => {
                tools.set(topic, "max.message.bytes", DEFAULT_LIMIT)
            }
            RDKafkaErrorCode::InvalidTimestamp => {
                tools.set(topic, "message.timestamp.type", "LogAppendTime")
            }
            RDKafkaErrorCode::InvalidRecord => tools.set(topic, "cleanup.policy", "delete"),
            RDKafkaErrorCode::NotEnoughReplicas
            | RDKafkaErrorCode::NotEnoughReplicasAfterAppend => {
                tools.set(topic, "min.insync.replicas", "1")
            }
            _ => tools.describe(topic),
        };
        troubles.begin(Trouble {
            kind: Kind::TopicUnwritable,
            subject: topic.to_string(),
            says: format!("{topic} takes no records: {cause}; {waits}"),
            fix: Some(fix),
            effect,
        });
    }

    /// Locks what no panic leaves half-changed.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The brokers' default limit of a batch, in bytes.
const DEFAULT_LIMIT: &str = "1048588";

// === impl Cause ===

impl std::fmt::Display for Cause {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            code if is_missing(code) => formatter.write_str("it does not exist"),
            RDKafkaErrorCode::TopicAuthorizationFailed => {
                formatter.write_str("retide may not write it (TopicAuthorizationFailed)")
            }
            RDKafkaErrorCode::MessageSizeTooLarge | RDKafkaErrorCode::InvalidMessageSize => {
                formatter.write_str("its max.message.bytes is too small (MessageSizeTooLarge)")
            }
            RDKafkaErrorCode::InvalidTimestamp => {
                formatter.write_str("it refuses the time of its records (InvalidTimestamp)")
            }
            RDKafkaErrorCode::InvalidRecord => formatter.write_str(
                "it refuses records without a key, as one whose cleanup.policy is compact (InvalidRecord)",
            ),
            RDKafkaErrorCode::NotEnoughReplicas
            | RDKafkaErrorCode::NotEnoughReplicasAfterAppend => formatter.write_str(
                "fewer replicas are in sync than its min.insync.replicas (NotEnoughReplicas)",
            ),
            code => write!(formatter, "{code:?} ({code})"),
        }
    }
}
