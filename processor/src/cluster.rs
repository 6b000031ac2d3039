//! A cluster as retide needs it: which topics, with which settings, and what is wrong with those that are there.
//!
//! | module | what |
//! |---|---|
//! | `plan` | the topics, and the forms in which other tools create them |
//! | `check` | what is wrong with a cluster, and how it is mended |
//! | `survey` | what can be asked besides: brokers, permissions, the clock |
//! | `tools` | command lines of Kafka's own tools |
//!
//! Not the command line that calls it. Invariant: a topic that exists is never changed here, and no call waits without a limit.

mod check;
mod plan;
mod survey;
mod tools;

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::admin::{
    AdminClient, AdminOptions, NewTopic, OwnedResourceSpecifier, ResourceSpecifier,
    TopicReplication,
};
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::DeliveryResult;
use rdkafka::metadata::{Metadata, MetadataBroker};
use rdkafka::producer::{BaseProducer, Producer, ProducerContext};
use thiserror::Error;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::oneshot;
use tracing::debug;

use crate::cluster::check::{Seen, SeenTopic};
use crate::cluster::tools::Tools;

pub use check::{Finding, Severity};
pub use plan::{
    COPY_BYTES, DEAD_LETTERS, Layout, OUTAGE, Plan, Role, TASK_BYTES, TopicPlan, copy_bytes,
};
pub use survey::{Access, Answer, Broker, Clock, Questions, Survey, survey};

/// What became of a planned topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Created {
    /// It was created, as planned.
    New {
        /// The topic.
        topic: Arc<str>,
    },
    /// It was there; whether it is as planned is for [`check`] to say.
    Exists {
        /// The topic.
        topic: Arc<str>,
    },
    /// The cluster refuses to create it.
    Refused {
        /// The topic.
        topic: Arc<str>,
        /// Why.
        source: RDKafkaErrorCode,
    },
}

/// Why a cluster could not be asked.
#[derive(Debug, Error)]
pub enum Error {
    /// No address to ask at.
    #[error("no bootstrap.servers in the client's configuration")]
    NoAddress,
    /// A property that the client library does not take.
    #[error("configure the kafka client")]
    Client(#[source] KafkaError),
    /// No broker answers.
    #[error("no kafka broker answers at {address}")]
    Unreachable {
        /// The addresses tried: as configured, or as brokers advertise them.
        address: String,
        /// What happened at each of them.
        source: Box<Silence>,
    },
    /// A broker answers, but not to this.
    #[error("{request} at {address}")]
    Request {
        /// What was asked for.
        request: &'static str,
        /// The addresses of the cluster.
        address: String,
        /// What came back.
        source: KafkaError,
    },
    /// A topic was created and does not appear.
    #[error("topic {topic} was created but is not there after {waited:?}")]
    Unseen {
        /// The topic.
        topic: Arc<str>,
        /// How long it was waited for.
        waited: Duration,
    },
    /// No thread to ask on.
    #[error("start a thread")]
    Thread(#[source] io::Error),
}

/// What happened instead of an answer.
#[derive(Debug)]
pub struct Silence {
    /// The last thing that each address was at fault for, in the words of the client library.
    pub reasons: Vec<String>,
    /// What the call came back with.
    pub error: KafkaError,
}

/// Clients of one cluster, used on a thread of their own.
struct Session {
    /// The addresses, as they were configured.
    address: String,
    /// When it began.
    since: Instant,
    /// Finds the cluster, and hears why it cannot.
    probe: BaseProducer<Reasons>,
    /// Asks and creates.
    admin: AdminClient<Reasons>,
    /// Drives what `admin` is asked.
    runtime: Runtime,
    /// The configuration of both.
    config: ClientConfig,
}

/// Hears what goes wrong with connections.
#[derive(Debug, Default)]
struct Reasons {
    /// The last thing that went wrong with each broker.
    last: Mutex<BTreeMap<String, String>>,
}

/// How long a cluster is looked for: longer than an election or a slow lookup of names, shorter than a person waits.
const FIND: Duration = Duration::from_secs(9);

/// How long finding a cluster and asking it may take together.
const ASK: Duration = Duration::from_secs(14);

/// Most milliseconds for one connection, or for its first answer: with less than half of [`FIND`], each address is tried twice and says
/// what is wrong with it.
const CONNECT: &str = "4000";

/// How long a transaction is waited for.
const TRANSACTION: Duration = Duration::from_secs(10);

/// How long the client library may take to hand over what it heard; it has it already.
const HEAR: Duration = Duration::from_millis(100);

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

/// The topics of `plan` that exist, and how many partitions each of them has.
///
/// # Errors
/// If the cluster cannot be asked.
pub async fn existing(
    config: &ClientConfig,
    plan: &Plan,
) -> Result<BTreeMap<Arc<str>, usize>, Error> {
    let plan = plan.clone();
    apart(config, move |session| {
        let seen = session.find()?;
        let names = plan.topics.iter().map(|topic| Arc::clone(&topic.name));
        Ok(names
            .filter_map(|name| {
                let partitions = seen.topics.get(&*name)?.replicas.len();
                Some((name, partitions))
            })
            .collect())
    })
    .await
}

/// Looks for what keeps retide from its promises: refusals first, then warnings; nothing if all is well.
///
/// `transactions` is the prefix of the transactional ids that retide will use; none for a guarantee that needs no transactions.
///
/// # Errors
/// If the cluster cannot be asked.
pub async fn check(
    config: &ClientConfig,
    plan: &Plan,
    transactions: Option<&str>,
) -> Result<Vec<Finding>, Error> {
    let plan = plan.clone();
    let transactions = transactions.map(str::to_owned);
    apart(config, move |session| {
        session.check(&plan, transactions.as_deref())
    })
    .await
}

/// The command line that creates a topic which is not retide's own, with as many partitions and replicas as brokers give by default.
pub fn create_topic(config: &ClientConfig, bootstrap: &str, topic: &str) -> String {
    Tools::new(config, bootstrap).create(topic)
}

/// Does `work` on a thread of its own, since the client library blocks. The answer does not wait for the end of the clients, which may
/// hang in a lookup of names.
async fn apart<T: Send + 'static>(
    config: &ClientConfig,
    work: impl FnOnce(&Session) -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    let config = config.clone();
    let (answer, answered) = oneshot::channel();
    thread::Builder::new()
        .name("cluster".to_owned())
        .spawn(move || match Session::open(config) {
            Ok(session) => {
                let _ = answer.send(work(&session));
                drop(session);
            }
            Err(error) => {
                let _ = answer.send(Err(error));
            }
        })
        .map_err(Error::Thread)?;
    answered
        .await
        .unwrap_or_else(|_| unreachable!("the thread of a session ended without an answer"))
}

// === impl Session ===

impl Session {
    /// Makes the clients; nothing is asked yet.
    fn open(mut config: ClientConfig) -> Result<Self, Error> {
        let address = ["bootstrap.servers", "metadata.broker.list"]
            .into_iter()
            .find_map(|key| config.get(key))
            .filter(|address| !address.trim().is_empty())
            .ok_or(Error::NoAddress)?
            .to_owned();
        for (key, value) in [
            ("socket.connection.setup.timeout.ms", CONNECT),
            ("api.version.request.timeout.ms", CONNECT),
            ("reconnect.backoff.max.ms", "1000"),
        ] {
            config.set(key, value);
        }
        Ok(Self {
            address,
            since: Instant::now(),
            probe: config
                .create_with_context(Reasons::default())
                .map_err(Error::Client)?,
            admin: config
                .create_with_context(Reasons::default())
                .map_err(Error::Client)?,
            runtime: Builder::new_current_thread()
                .build()
                .map_err(Error::Thread)?,
            config,
        })
    }

    /// What there is, without settings.
    fn find(&self) -> Result<Seen, Error> {
        // All topics: asking for one by its name could create it.
        match self.probe.client().fetch_metadata(None, FIND) {
            Ok(metadata) => Ok(seen(&metadata)),
            Err(error) => {
                self.probe.poll(HEAR);
                Err(Error::Unreachable {
                    address: self.address.clone(),
                    source: Box::new(Silence {
                        reasons: self.probe.client().context().take().into_values().collect(),
                        error,
                    }),
                })
            }
        }
    }

    /// See [`check`].
    fn check(&self, plan: &Plan, transactions: Option<&str>) -> Result<Vec<Finding>, Error> {
        self.look(plan, transactions).map(|(_, findings)| findings)
    }

    /// What there is, and what is wrong with it.
    fn look(&self, plan: &Plan, transactions: Option<&str>) -> Result<(Seen, Vec<Finding>), Error> {
        let mut seen = self.find()?;
        self.read_settings(plan, &mut seen)?;
        let tools = Tools::new(&self.config, &self.address);
        let mut findings = check::findings(plan, &seen, &tools);
        if let Some(prefix) = transactions {
            let id = format!("{prefix}-check");
            if let Err(error) = self.try_transactions(&id, &seen)? {
                findings.insert(0, check::no_transactions(prefix, &id, &error, &tools));
            }
        }
        Ok((seen, findings))
    }

    /// See [`create`].
    fn create(&self, plan: &Plan, timeout: Duration) -> Result<Vec<Created>, Error> {
        let seen = self.find()?;
        let new: Vec<NewTopic<'_>> = plan
            .topics
            .iter()
            .filter(|topic| !seen.topics.contains_key(&*topic.name))
            .map(new_topic)
            .collect();
        let mut results = BTreeMap::new();
        if !new.is_empty() {
            let options = AdminOptions::new()
                .request_timeout(Some(timeout))
                .operation_timeout(Some(timeout));
            let answer = self
                .runtime
                .block_on(self.admin.create_topics(&new, &options));
            for result in self.answer("create topics", answer, &seen)? {
                match result {
                    Ok(name) => results.insert(name, None),
                    Err((name, code)) => results.insert(name, Some(code)),
                };
            }
        }
        let mut created = Vec::new();
        for topic in &plan.topics {
            let name = Arc::clone(&topic.name);
            created.push(match results.get(&*name) {
                None | Some(Some(RDKafkaErrorCode::TopicAlreadyExists)) => {
                    Created::Exists { topic: name }
                }
                Some(None) => Created::New { topic: name },
                Some(Some(code)) => Created::Refused {
                    topic: name,
                    source: *code,
                },
            });
        }
        self.wait_for(&created, timeout)?;
        Ok(created)
    }

    /// Waits until the brokers know of all that was created: what comes next may be a check, or a worker.
    fn wait_for(&self, created: &[Created], timeout: Duration) -> Result<(), Error> {
        let start = Instant::now();
        let mut missing = created.iter().filter_map(Created::as_new).peekable();
        while missing.peek().is_some() {
            let seen = self.find()?;
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

    /// Adds the settings of the planned topics that are there.
    fn read_settings(&self, plan: &Plan, seen: &mut Seen) -> Result<(), Error> {
        let names = plan.topics.iter().map(|topic| &*topic.name);
        let there: Vec<ResourceSpecifier<'_>> = names
            .filter(|name| seen.topics.contains_key(*name))
            .map(ResourceSpecifier::Topic)
            .collect();
        if there.is_empty() {
            return Ok(());
        }
        let options = AdminOptions::new().request_timeout(Some(self.left()));
        let answer = self
            .runtime
            .block_on(self.admin.describe_configs(&there, &options));
        for resource in self
            .answer("read the settings of topics", answer, seen)?
            .into_iter()
            .flatten()
        {
            let OwnedResourceSpecifier::Topic(name) = resource.specifier else {
                continue;
            };
            let entries = resource.entries.into_iter();
            if let Some(topic) = seen.topics.get_mut(&name) {
                topic.settings = entries
                    .filter_map(|entry| Some((entry.name, entry.value?)))
                    .collect();
            }
        }
        Ok(())
    }

    /// Begins to use transactions, as a worker would, with an id that nobody else uses. The inner error is what comes of it.
    fn try_transactions(&self, id: &str, seen: &Seen) -> Result<Result<(), KafkaError>, Error> {
        let mut config = self.config.clone();
        config.set("transactional.id", id);
        config.set("enable.idempotence", "true");
        let producer: BaseProducer<Reasons> = config
            .create_with_context(Reasons::default())
            .map_err(Error::Client)?;
        let Err(error) = producer.init_transactions(TRANSACTION.min(self.left())) else {
            return Ok(Ok(()));
        };
        producer.poll(HEAR);
        let mut reasons = producer.client().context().take();
        // It was found at one of these, so others may fail.
        reasons.retain(|broker, _| !broker.ends_with("/bootstrap"));
        let code = error.rdkafka_error_code();
        if code == Some(RDKafkaErrorCode::OperationTimedOut) && !reasons.is_empty() {
            return Err(unanswered(seen, reasons.into_values().collect(), error));
        }
        Ok(Err(error))
    }

    /// How much time is left to ask.
    fn left(&self) -> Duration {
        ASK.saturating_sub(self.since.elapsed())
    }

    /// The answer to a request of `admin`. One that does not come is due to a wrong advertised address: a broker was found.
    fn answer<T>(
        &self,
        request: &'static str,
        answer: Result<T, KafkaError>,
        seen: &Seen,
    ) -> Result<T, Error> {
        answer.map_err(|error| match error {
            KafkaError::AdminOp(
                RDKafkaErrorCode::OperationTimedOut | RDKafkaErrorCode::BrokerTransportFailure,
            ) => unanswered(seen, Vec::new(), error),
            _ => Error::Request {
                request,
                address: self.address.clone(),
                source: error,
            },
        })
    }
}

/// Nobody answers at the addresses that brokers advertise.
fn unanswered(seen: &Seen, reasons: Vec<String>, error: KafkaError) -> Error {
    let advertised: Vec<&str> = seen.brokers.values().map(String::as_str).collect();
    Error::Unreachable {
        address: format!("{}, which brokers advertise", advertised.join(",")),
        source: Box::new(Silence { reasons, error }),
    }
}

/// What is to be created.
fn new_topic(topic: &TopicPlan) -> NewTopic<'_> {
    let replication = TopicReplication::Fixed(i32::from(topic.replication_factor));
    let mut new = NewTopic::new(&topic.name, topic.partitions, replication);
    for (key, value) in &topic.config {
        new = new.set(key, value);
    }
    new
}

/// A broker's number and the address that it advertises.
fn broker(broker: &MetadataBroker) -> (i32, String) {
    (broker.id(), format!("{}:{}", broker.host(), broker.port()))
}

/// What the metadata tells of a cluster. A topic without partitions is one that is going or not there yet.
fn seen(metadata: &Metadata) -> Seen {
    let mut seen = Seen {
        brokers: metadata.brokers().iter().map(broker).collect(),
        ..Seen::default()
    };
    for topic in metadata.topics() {
        if topic.partitions().is_empty() {
            continue;
        }
        let mut partitions: Vec<_> = topic.partitions().iter().collect();
        partitions.sort_by_key(|partition| partition.id());
        let found = SeenTopic {
            replicas: partitions
                .iter()
                .map(|partition| partition.replicas().to_vec())
                .collect(),
            settings: BTreeMap::new(),
        };
        seen.topics.insert(topic.name().to_owned(), found);
    }
    seen
}

// === impl Created ===

impl Created {
    /// The topic, if it is new.
    fn as_new(&self) -> Option<&Arc<str>> {
        match self {
            Self::New { topic } => Some(topic),
            Self::Exists { .. } | Self::Refused { .. } => None,
        }
    }
}

// === impl Silence ===

impl fmt::Display for Silence {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.reasons.is_empty() {
            return write!(formatter, "no answer in time");
        }
        write!(formatter, "{}", self.reasons.join("; "))
    }
}

impl std::error::Error for Silence {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.error)
    }
}

// === impl Reasons ===

impl Reasons {
    /// What was heard, by broker.
    fn take(&self) -> BTreeMap<String, String> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut *last)
    }
}

impl ClientContext for Reasons {
    fn log(&self, _: RDKafkaLogLevel, facility: &str, message: &str) {
        // What matters of it comes back as an error.
        debug!(facility, message, "kafka client");
    }

    fn error(&self, error: KafkaError, reason: &str) {
        debug!(%error, reason, "kafka client reports an error");
        if error.rdkafka_error_code() == Some(RDKafkaErrorCode::AllBrokersDown) {
            return;
        }
        // `ADDRESS/bootstrap: what happened (after 0ms in state CONNECT, 1 identical error(s) suppressed)`
        let what = reason.split(" (after ").next().unwrap_or(reason);
        let broker = what.split(": ").next().unwrap_or_default();
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        last.insert(broker.to_owned(), what.to_owned());
    }
}

impl ProducerContext for Reasons {
    type DeliveryOpaque = ();

    fn delivery(&self, _: &DeliveryResult<'_>, (): Self::DeliveryOpaque) {}
}
