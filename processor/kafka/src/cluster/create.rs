//! Creating topics, and giving them more partitions.
//!
//! Not what they are to be like, which the plan says. Invariant: a topic that exists is not changed, but for its number of partitions where
//! that is asked for.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::admin::{AdminOptions, NewPartitions};
use rdkafka::error::RDKafkaErrorCode;

use retide_native::admin;

use crate::cluster::Error;
use crate::cluster::check::Seen;
use crate::cluster::plan::{self, Plan, TopicPlan};
use crate::cluster::session::{Session, apart};
use crate::topics::Role;

/// What became of a planned topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Created {
    /// It was created, as planned.
    New {
        /// The topic.
        topic: Arc<str>,
    },
    /// It was created without some settings that are only good to have, since the cluster refuses those.
    Trimmed {
        /// The topic.
        topic: Arc<str>,
        /// The settings.
        without: Vec<&'static str>,
        /// Why the cluster refuses the topic with them.
        reason: String,
    },
    /// It was there; whether it is as planned is for [`check`](fn@super::check) to say.
    Exists {
        /// The topic.
        topic: Arc<str>,
        /// How many partitions it has; none if that may not be seen.
        partitions: Option<usize>,
    },
    /// The cluster refuses to create it.
    Refused {
        /// The topic.
        topic: Arc<str>,
        /// Why.
        source: RDKafkaErrorCode,
        /// Why, in the broker's words.
        reason: Option<String>,
    },
}

/// Why a topic was not created.
#[derive(Clone, Debug)]
struct Refusal {
    /// Why.
    code: RDKafkaErrorCode,
    /// Why, in the broker's words.
    reason: Option<String>,
}

/// Pause before it is looked again whether a created topic has reached the brokers, which takes milliseconds.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// Creates the topics of `plan` that do not exist, and waits up to `timeout` for them.
///
/// What became of each topic, in the order of the plan.
///
/// # Errors
/// If the cluster cannot be asked. That it refuses to create a topic is no error but [`Created::Refused`].
pub async fn create(
    config: &ClientConfig,
    plan: &Plan,
    timeout: Duration,
) -> Result<Vec<Created>, Error> {
    let plan = plan.clone();
    apart(config, move |session| session.create(&plan, timeout)).await
}

/// What became of a topic that is to have more partitions: how many it had, and why the cluster refuses if it does.
pub type Widened = BTreeMap<Arc<str>, (usize, Option<String>)>;

/// Gives the topics of `plan` as many partitions as it says, where they have fewer: the retry topic last, and only if all others have them,
/// so that nothing is produced to partitions that nobody reads.
///
/// # Errors
/// If the cluster cannot be asked. That it refuses is no error.
pub async fn widen(
    config: &ClientConfig,
    plan: &Plan,
    timeout: Duration,
) -> Result<Widened, Error> {
    let plan = plan.clone();
    apart(config, move |session| session.widen(&plan, timeout)).await
}

// === impl Session ===

impl Session {
    /// See [`create`].
    fn create(&self, plan: &Plan, timeout: Duration) -> Result<Vec<Created>, Error> {
        let mut seen = self.find_named(plan.names())?;
        self.read_permissions(plan, &mut seen);
        let missing = || {
            let topics = plan.topics.iter();
            topics.filter(|topic| !seen.topics.contains_key(&*topic.name))
        };
        let mut results = self.request(missing(), &[], (timeout, &seen))?;
        // What is only good to have is left out where the cluster refuses it: little by little.
        let mut trimmed = BTreeMap::new();
        for settings in [&plan::TUNING[..], &plan::OPTIONAL] {
            let again: Vec<&TopicPlan> = missing()
                .filter(|topic| {
                    let refused = results.get(&*topic.name).and_then(Option::as_ref);
                    refused.is_some_and(|refusal| refusal.may_be_of(settings))
                        && !topic.without(settings).is_empty()
                })
                .collect();
            for (name, result) in self.request(again.iter().copied(), settings, (timeout, &seen))? {
                let topic = again.iter().find(|topic| *topic.name == *name);
                let (Some(topic), Some(first)) = (topic, results.get(&name)) else {
                    continue;
                };
                if result.is_none() {
                    let reason = first.as_ref().map(Refusal::words).unwrap_or_default();
                    trimmed.insert(name.clone(), (topic.without(settings), reason));
                    results.insert(name, None);
                }
            }
        }
        let mut created = Vec::new();
        for topic in &plan.topics {
            let name = Arc::clone(&topic.name);
            let partitions = || seen.topics.get(&*name).map(|topic| topic.replicas.len());
            created.push(match (results.remove(&*name), trimmed.remove(&*name)) {
                (Some(None), Some((without, reason))) => Created::Trimmed {
                    topic: name,
                    without,
                    reason,
                },
                (Some(None), None) => Created::New { topic: name },
                (Some(Some(Refusal { code, reason })), _)
                    if code != RDKafkaErrorCode::TopicAlreadyExists =>
                {
                    Created::Refused {
                        topic: name,
                        source: code,
                        reason,
                    }
                }
                (None | Some(Some(_)), _) => Created::Exists {
                    partitions: partitions(),
                    topic: name,
                },
            });
        }
        self.wait_for(&created, timeout)?;
        Ok(created)
    }

    /// See [`widen`].
    fn widen(&self, plan: &Plan, timeout: Duration) -> Result<Widened, Error> {
        let seen = self.find_named(plan.names())?;
        let mut widened = Widened::new();
        let narrow = |topic: &&TopicPlan| {
            let found = seen.topics.get(&*topic.name);
            found.is_some_and(|found| found.replicas.len() < topic.partitions as usize)
        };
        let narrow = plan.topics.iter().filter(narrow);
        let (last, first): (Vec<_>, Vec<_>) = narrow.partition(|topic| topic.role == Role::Tasks);
        for topics in [first, last] {
            let is_refused = widened.values().any(|(_, refused)| refused.is_some());
            if topics.is_empty() || is_refused {
                continue;
            }
            let new: Vec<NewPartitions<'_>> = topics
                .iter()
                .map(|topic| NewPartitions::new(&topic.name, topic.partitions as usize))
                .collect();
            let options = AdminOptions::new()
                .request_timeout(Some(timeout))
                .operation_timeout(Some(timeout));
            let answer = self
                .runtime
                .block_on(self.admin.create_partitions(&new, &options));
            let results = self.answer("add partitions", answer, &seen)?;
            for (topic, result) in topics.iter().zip(results) {
                let found = seen.topics.get(&*topic.name);
                let before = found.map_or(0, |found| found.replicas.len());
                let refused = result.err().map(|(_, code)| code.to_string());
                widened.insert(Arc::clone(&topic.name), (before, refused));
            }
        }
        Ok(widened)
    }

    /// Asks for topics, without these settings. What became of each: nothing if it was created.
    fn request<'a>(
        &self,
        topics: impl Iterator<Item = &'a TopicPlan>,
        without: &[&'static str],
        (timeout, seen): (Duration, &Seen),
    ) -> Result<BTreeMap<String, Option<Refusal>>, Error> {
        let new: Vec<admin::NewTopic<'_>> = topics
            .map(|topic| admin::NewTopic {
                name: &topic.name,
                partitions: topic.partitions,
                replication_factor: i32::from(topic.replication_factor),
                config: topic
                    .config
                    .iter()
                    .filter(|(key, _)| !topic.without(without).contains(key))
                    .map(|(key, value)| (*key, &**value))
                    .collect(),
            })
            .collect();
        if new.is_empty() {
            return Ok(BTreeMap::new());
        }
        let answer = admin::create(self.admin.inner(), &new, timeout);
        let answer = self.answer("create topics", answer, seen)?;
        Ok(answer
            .into_iter()
            .map(|admin::Created { topic, result }| {
                let refusal = result.err().map(|(code, reason)| Refusal { code, reason });
                (topic, refusal)
            })
            .collect())
    }

    /// Waits until the brokers know of all that was created: what comes next may be a check, or a worker.
    fn wait_for(&self, created: &[Created], timeout: Duration) -> Result<(), Error> {
        let start = Instant::now();
        let mut missing = created.iter().filter_map(Created::as_new).peekable();
        while missing.peek().is_some() {
            let seen = self.find_named(missing.clone().map(|topic| &**topic))?;
            while missing
                .next_if(|topic| seen.topics.contains_key(&***topic))
                .is_some()
            {}
            let Some(topic) = missing.peek() else {
                break;
            };
            let waited = start.elapsed();
            if waited >= timeout {
                return Err(Error::Unseen {
                    topic: Arc::clone(topic),
                    waited,
                });
            }
            thread::sleep(LOOK_AGAIN);
        }
        Ok(())
    }
}

// === impl Created ===

impl Created {
    /// The topic, if it is new.
    fn as_new(&self) -> Option<&Arc<str>> {
        match self {
            Self::New { topic } | Self::Trimmed { topic, .. } => Some(topic),
            Self::Exists { .. } | Self::Refused { .. } => None,
        }
    }
}

// === impl Refusal ===

impl Refusal {
    /// Whether these settings of the topic may be the reason. A policy may refuse any of them; a broker that does not know or take a value
    /// is asked again only without what makes retide quicker.
    fn may_be_of(&self, settings: &[&str]) -> bool {
        match self.code {
            RDKafkaErrorCode::PolicyViolation => true,
            RDKafkaErrorCode::InvalidConfig | RDKafkaErrorCode::InvalidRequest => {
                settings.len() == plan::TUNING.len()
            }
            _ => false,
        }
    }

    /// The broker's words, else Kafka's for the code.
    fn words(&self) -> String {
        self.reason.clone().unwrap_or_else(|| self.code.to_string())
    }
}
