//! A cluster as retide needs it: which topics, with which settings, and what is wrong with those that are there.
//!
//! | module | what |
//! |---|---|
//! | `plan` | the topics, and the forms in which other tools create them |
//! | `check` | what is wrong with a cluster, and how it is mended |
//! | `standing` | what a group has done of what is there, and who else works |
//! | `survey` | what can be asked besides: brokers, permissions, the clock |
//! | `acl` | who may do what: the least rules of each user |
//! | `cause` | why a broker cannot be talked to, and what to do about it |
//! | `handshake` | what a port speaks, and what is wrong with its certificate |
//! | `tools` | command lines of Kafka's own tools |
//!
//! Not the command line that calls it. Invariant: a topic that exists is never changed here, and no call waits without a limit.

mod acl;
mod cause;
mod check;
mod handshake;
mod plan;
pub mod standing;
mod survey;
mod tools;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io::{self, Write as _};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::admin::{
    AdminClient, AdminOptions, NewPartitions, OwnedResourceSpecifier, ResourceSpecifier,
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
use tracing::{debug, enabled, info};

use retide_core::command;
use retide_native::admin::{self, Operation};

use crate::cluster::cause::Cause;
use crate::cluster::check::Asking;
pub use crate::cluster::tools::Tools;
use crate::topics::{Role, Topics};

pub use acl::{Scope, User};
pub use check::MISSING;
pub use check::{Aspect, Finding, Seen, SeenTopic, Severity, aspects};
pub use plan::{Layout, Plan, TopicPlan, copy_bytes};
pub use standing::DISAGREES;
pub use standing::{
    AT_LEAST_ONCE, Begin, Committed, EXACTLY_ONCE, LaneStanding, Member, Standing, Whose, begin,
    fingerprint, others, standing,
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
    /// It was created without some settings that are only good to have, since the cluster refuses those.
    Trimmed {
        /// The topic.
        topic: Arc<str>,
        /// The settings.
        without: Vec<&'static str>,
        /// Why the cluster refuses the topic with them.
        reason: String,
    },
    /// It was there; whether it is as planned is for [`check`] to say.
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
    /// What to do about it.
    pub hint: String,
}

/// Clients of one cluster, used on a thread of their own.
struct Session {
    /// The addresses, as they were configured.
    address: String,
    /// When it began.
    since: Instant,
    /// Finds the cluster, and hears why it cannot.
    probe: Arc<BaseProducer<Reasons>>,
    /// Set once a broker has answered.
    found: Arc<AtomicBool>,
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

/// How long it is looked for where each address says plainly why it cannot be used: long enough for a second try of each.
const FIND_PLAIN: Duration = Duration::from_millis(1_500);

/// Time after which it is said what is waited for.
const ANNOUNCE: Duration = Duration::from_secs(1);

/// Pause between two looks at what was heard of the addresses.
const LISTEN: Duration = Duration::from_millis(50);

/// How long finding a cluster and asking it may take together.
const ASK: Duration = Duration::from_secs(14);

/// Most milliseconds for one connection, or for its first answer: with less than half of [`FIND`], each address is tried twice and says
/// what is wrong with it.
const CONNECT: &str = "4000";

/// Least time for asking what may be done, which one broker answers at once.
const LEAST: Duration = Duration::from_secs(2);

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
        Ok(there(&plan, &seen))
    })
    .await
}

/// What a user finds before it begins.
#[derive(Clone, Debug)]
pub struct There {
    /// The planned topics that exist, and how many partitions each of them has.
    pub partitions: BTreeMap<Arc<str>, usize>,
    /// What the user may not do with the topics that it is about to use, as far as brokers tell.
    pub denials: Vec<Finding>,
}

/// As [`existing`], and whether `user` may do what it does with `topics`, some of the planned ones.
///
/// # Errors
/// If the cluster cannot be asked.
pub async fn reach(
    config: &ClientConfig,
    plan: &Plan,
    (user, scope): (User, &Scope),
    topics: &[&str],
) -> Result<There, Error> {
    let (plan, scope) = (plan.clone(), scope.clone());
    let mut some = plan.clone();
    some.topics.retain(|topic| topics.contains(&&*topic.name));
    apart(config, move |session| {
        let mut seen = session.find()?;
        session.read_permissions(&some, &mut seen);
        let tools = Tools::new(&session.config, &session.address);
        let asking = Asking {
            user,
            scope: Some(&scope),
        };
        Ok(There {
            denials: check::denials(&some, &seen, &tools, asking),
            partitions: there(&plan, &seen),
        })
    })
    .await
}

/// The topics of a plan that exist, and how many partitions each of them has.
fn there(plan: &Plan, seen: &Seen) -> BTreeMap<Arc<str>, usize> {
    let names = plan.topics.iter().map(|topic| Arc::clone(&topic.name));
    names
        .filter_map(|name| {
            let partitions = seen.topics.get(&*name)?.replicas.len();
            Some((name, partitions))
        })
        .collect()
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
        let asking = Asking {
            user: User::Run,
            scope: None,
        };
        let looked = session.look(&plan, transactions.as_deref(), asking)?;
        Ok(looked.all())
    })
    .await
}

/// As [`check`], and whether `user` may do all that it does on the topics.
///
/// # Errors
/// If the cluster cannot be asked.
pub async fn check_as(
    config: &ClientConfig,
    plan: &Plan,
    user: User,
    scope: &Scope,
) -> Result<Vec<Finding>, Error> {
    let (plan, scope) = (plan.clone(), scope.clone());
    apart(config, move |session| {
        // Who creates topics does not use them.
        let asking = Asking {
            user,
            scope: Some(&scope).filter(|_| user != User::Init),
        };
        let transactions = match user {
            User::Run => scope.transactions.as_deref(),
            User::Init | User::Submit | User::Explain | User::ScenesApply | User::Read => None,
        };
        let looked = session.look(&plan, transactions, asking)?;
        Ok(looked.all())
    })
    .await
}

/// Which of `topics` retide's user may write, where brokers tell: none that may not be described. A topic that is not there is left out.
///
/// # Errors
/// If the cluster cannot be asked.
pub async fn writable(
    config: &ClientConfig,
    topics: &BTreeSet<String>,
) -> Result<BTreeMap<String, bool>, Error> {
    let topics = topics.clone();
    apart(config, move |session| {
        if topics.is_empty() {
            return Ok(BTreeMap::new());
        }
        let seen = session.find()?;
        let names: Vec<&str> = topics.iter().map(|topic| &**topic).collect();
        let answer = admin::permitted(session.admin.inner(), &names, session.left().max(LEAST));
        let answer = session.answer("describe topics", answer, &seen)?;
        let told = answer.into_iter().filter_map(|permitted| {
            let may = match permitted.operations {
                Ok(operations) => operations?.contains(&Operation::Write),
                // Whoever may write a topic may describe it.
                Err(RDKafkaErrorCode::TopicAuthorizationFailed) => false,
                Err(_) => return None,
            };
            Some((permitted.topic, may))
        });
        Ok(told.collect())
    })
    .await
}

/// The command line that creates a topic which is not retide's own, with as many partitions and replicas as brokers give by default.
pub fn create_topic(config: &ClientConfig, bootstrap: &str, topic: &str) -> String {
    Tools::new(config, bootstrap).create(topic)
}

/// The command line that lets retide's user do `operations` on a topic.
pub fn allow(
    config: &ClientConfig,
    bootstrap: &str,
    operations: &[Operation],
    topic: &str,
) -> String {
    Tools::new(config, bootstrap).allow(operations, acl::Resource::Topic, topic)
}

/// The command lines that let retide's user do, on this cluster, all that `users` do.
pub fn allow_all(
    config: &ClientConfig,
    bootstrap: &str,
    users: &[User],
    (plan, scope): (&Plan, &Scope),
    principal: Option<&str>,
    host: Option<&str>,
) -> Vec<String> {
    let tools = Tools::new(config, bootstrap);
    let principal = principal.unwrap_or(tools.principal()).to_owned();
    acl::lines(&acl::rules(users, plan, scope), &tools, &principal, host)
}

/// The same as a `KafkaUser` for the operator of Strimzi.
pub fn strimzi_user(
    users: &[User],
    (plan, scope): (&Plan, &Scope),
    principal: &str,
    host: Option<&str>,
    cluster_label: &str,
) -> String {
    acl::strimzi(
        &acl::rules(users, plan, scope),
        principal,
        host,
        cluster_label,
    )
}

/// The command line that ends a transaction which holds readers of a partition back at `start`.
pub fn abort(config: &ClientConfig, topic: &str, partition: i32, start: i64) -> String {
    Tools::new(config, bootstrap(config)).abort(topic, partition, start)
}

/// The command line that looks for transactions that nobody ends.
pub fn find_hanging(config: &ClientConfig) -> String {
    Tools::new(config, bootstrap(config)).find_hanging()
}

/// The command line that gives all topics so many partitions.
pub fn widen_all(config: &ClientConfig, topics: &Topics, partitions: usize) -> String {
    let prefix = topics.prefix();
    format!(
        "retide init --bootstrap {} --prefix {} --partitions {partitions}",
        command::word(bootstrap(config)),
        command::word(prefix)
    )
}

/// The address of Kafka in a client's configuration.
fn bootstrap(config: &ClientConfig) -> &str {
    let address = config.get("bootstrap.servers");
    address
        .or_else(|| config.get("metadata.broker.list"))
        .unwrap_or_default()
}

/// Does `work` on a thread of its own, since the client library blocks. The answer does not wait for the end of the clients, which may
/// hang in a lookup of names.
async fn apart<T: Send + 'static>(
    config: &ClientConfig,
    work: impl FnOnce(&Session) -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    let config = config.clone();
    let address = address(&config).ok_or(Error::NoAddress)?.to_owned();
    let found = Arc::new(AtomicBool::new(false));
    let (answer, mut answered) = oneshot::channel();
    let finds = Arc::clone(&found);
    thread::Builder::new()
        .name("cluster".to_owned())
        .spawn(move || match Session::open(config, finds) {
            Ok(session) => {
                let _ = answer.send(work(&session));
                drop(session);
            }
            Err(error) => {
                let _ = answer.send(Err(error));
            }
        })
        .map_err(Error::Thread)?;
    let answered = if let Ok(answered) = tokio::time::timeout(ANNOUNCE, &mut answered).await {
        answered
    } else {
        if !found.load(Ordering::Acquire) {
            announce(&address);
        }
        answered.await
    };
    answered.unwrap_or_else(|_| unreachable!("the thread of a session ended without an answer"))
}

/// Says what is waited for: where it is logged what happens, in the log, else as talk.
fn announce(address: &str) {
    if enabled!(tracing::Level::INFO) {
        info!(address, "waiting for kafka");
    } else {
        // Nothing can be done about a stderr that is closed.
        let _ = writeln!(io::stderr(), "waiting for {address} …");
    }
}

/// The addresses, as they were configured.
fn address(config: &ClientConfig) -> Option<&str> {
    ["bootstrap.servers", "metadata.broker.list"]
        .into_iter()
        .find_map(|key| config.get(key))
        .filter(|address| !address.trim().is_empty())
}

/// What was seen of a cluster.
struct Looked {
    /// What there is.
    seen: Seen,
    /// What is wrong with it, refusals first.
    findings: Vec<Finding>,
    /// What may not be done with it.
    denials: Vec<Finding>,
}

// === impl Looked ===

impl Looked {
    /// All that is wrong, refusals first.
    fn all(self) -> Vec<Finding> {
        let mut all = self.findings;
        all.extend(self.denials);
        all.sort_by_key(|finding| finding.severity);
        all
    }
}

// === impl Session ===

impl Session {
    /// Makes the clients; nothing is asked yet.
    fn open(mut config: ClientConfig, found: Arc<AtomicBool>) -> Result<Self, Error> {
        let address = address(&config).ok_or(Error::NoAddress)?.to_owned();
        // That a broker hangs up is told in the log only.
        config.set_log_level(RDKafkaLogLevel::Info);
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
            found,
            probe: Arc::new(
                config
                    .create_with_context(Reasons::default())
                    .map_err(Error::Client)?,
            ),
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
        let (answer, answered) = sync_channel(1);
        let probe = Arc::clone(&self.probe);
        // Apart, since the call hears nothing while it waits.
        thread::Builder::new()
            .name("metadata".to_owned())
            .spawn(move || {
                // All topics: asking for one by its name could create it.
                let metadata = probe.client().fetch_metadata(None, FIND);
                let _ = answer.send(metadata.map(|metadata| seen(&metadata)));
            })
            .map_err(Error::Thread)?;
        let start = Instant::now();
        let context = self.probe.client().context();
        let error = loop {
            match answered.recv_timeout(LISTEN) {
                Ok(Ok(seen)) => {
                    self.found.store(true, Ordering::Release);
                    return Ok(seen);
                }
                Ok(Err(error)) => {
                    self.probe.poll(HEAR);
                    break error;
                }
                Err(RecvTimeoutError::Timeout) => {
                    self.probe.poll(Duration::ZERO);
                    if start.elapsed() >= FIND_PLAIN && self.is_plain(&context.reasons()) {
                        break KafkaError::MetadataFetch(RDKafkaErrorCode::BrokerTransportFailure);
                    }
                }
                Err(RecvTimeoutError::Disconnected) => {
                    break KafkaError::MetadataFetch(RDKafkaErrorCode::Fail);
                }
            }
        };
        Err(Error::Unreachable {
            address: self.address.clone(),
            source: Box::new(self.silence(context.reasons(), error)),
        })
    }

    /// Whether each address has said why it cannot be used, so that waiting will hardly help.
    fn is_plain(&self, reasons: &BTreeMap<String, String>) -> bool {
        let addresses = self
            .address
            .split(',')
            .filter(|part| !part.trim().is_empty());
        !reasons.is_empty()
            && reasons.len() >= addresses.count()
            && reasons
                .values()
                .all(|reason| Cause::is_plain(reason, &self.config))
    }

    /// What happened instead of an answer, and what to do about it.
    fn silence(&self, reasons: BTreeMap<String, String>, error: KafkaError) -> Silence {
        let mut said = Vec::new();
        let mut first = None;
        for reason in reasons.into_values() {
            let mut cause = Cause::of(&reason, &self.config);
            if matches!(cause, Cause::Silent | Cause::NotKafka | Cause::Other) {
                let address = cause::address(&reason);
                if Cause::silent(&address, &self.config) == Cause::WantsTls {
                    cause = Cause::WantsTls;
                }
            }
            said.push(cause.words(&reason).unwrap_or(reason));
            first.get_or_insert(cause);
        }
        let cause = first.unwrap_or_else(|| {
            let mut addresses = self.address.split(',').map(str::trim);
            let address = addresses.next().unwrap_or_default();
            let cause = Cause::silent(address, &self.config);
            said.extend(cause.words(&format!("{address}: no answer in time")));
            cause
        });
        said.dedup();
        Silence {
            reasons: said,
            error,
            hint: cause.hint(&self.config),
        }
    }

    /// What there is, and what is wrong with it.
    fn look(
        &self,
        plan: &Plan,
        transactions: Option<&str>,
        asking: Asking<'_>,
    ) -> Result<Looked, Error> {
        let mut seen = self.find()?;
        self.read_settings(plan, &mut seen)?;
        self.read_permissions(plan, &mut seen);
        let tools = Tools::new(&self.config, &self.address);
        let mut findings = check::findings(plan, &seen, &tools);
        let denials = check::denials(plan, &seen, &tools, asking);
        if let Some(prefix) = transactions {
            let id = format!("{prefix}-check");
            if let Err(error) = self.try_transactions(&id, &seen)? {
                findings.insert(0, check::no_transactions(prefix, &id, &error, &tools));
            }
        }
        Ok(Looked {
            seen,
            findings,
            denials,
        })
    }

    /// Adds what may be done with the planned topics, as far as brokers tell.
    fn read_permissions(&self, plan: &Plan, seen: &mut Seen) {
        let names: Vec<&str> = plan.topics.iter().map(|topic| &*topic.name).collect();
        let timeout = self.left().max(LEAST);
        let permitted = match admin::permitted(self.admin.inner(), &names, timeout) {
            Ok(permitted) => permitted,
            Err(error) => {
                // A broker that does not know the question: what is denied shows where it is done.
                debug!(%error, "permissions not told");
                return;
            }
        };
        for admin::Permitted { topic, operations } in permitted {
            match operations {
                Ok(Some(operations)) => {
                    seen.allowed.insert(topic, operations.into_iter().collect());
                }
                Err(RDKafkaErrorCode::TopicAuthorizationFailed) => {
                    seen.hidden.insert(topic);
                }
                Ok(None) | Err(_) => {}
            }
        }
    }

    /// See [`create`].
    fn create(&self, plan: &Plan, timeout: Duration) -> Result<Vec<Created>, Error> {
        let mut seen = self.find()?;
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
        let seen = self.find()?;
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
        let mut reasons = producer.client().context().reasons();
        // It was found at one of these, so others may fail.
        reasons.retain(|broker, _| !broker.ends_with("/bootstrap"));
        let code = error.rdkafka_error_code();
        if code == Some(RDKafkaErrorCode::OperationTimedOut) && !reasons.is_empty() {
            return Err(self.unanswered(seen, reasons, error));
        }
        Ok(Err(error))
    }

    /// How much time is left to ask.
    fn left(&self) -> Duration {
        ASK.saturating_sub(self.since.elapsed())
    }

    /// Nobody answers at the addresses that brokers advertise.
    fn unanswered(
        &self,
        seen: &Seen,
        reasons: BTreeMap<String, String>,
        error: KafkaError,
    ) -> Error {
        let advertised: Vec<&str> = seen.brokers.values().map(String::as_str).collect();
        let mut silence = self.silence(reasons, error);
        silence.hint = format!(
            "correct advertised.listeners of the brokers, which clients have to reach at these addresses; or {}",
            silence.hint
        );
        Error::Unreachable {
            address: format!("{}, which brokers advertise", advertised.join(",")),
            source: Box::new(silence),
        }
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
            ) => self.unanswered(seen, BTreeMap::new(), error),
            _ => Error::Request {
                request,
                address: self.address.clone(),
                source: error,
            },
        })
    }
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
            Self::New { topic } | Self::Trimmed { topic, .. } => Some(topic),
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
        // What was heard says more.
        self.reasons
            .is_empty()
            .then_some(&self.error as &(dyn std::error::Error + 'static))
    }
}

// === impl Error ===

impl Error {
    /// What to do about it, if that is known.
    pub fn hint(&self) -> Option<&str> {
        match self {
            Self::Unreachable { source, .. } => Some(&source.hint),
            Self::NoAddress => {
                Some("set bootstrap.servers in [kafka] of retide.toml, or --bootstrap HOST:PORT")
            }
            Self::Client(_) | Self::Request { .. } | Self::Unseen { .. } | Self::Thread(_) => None,
        }
    }
}

/// Why a topic was not created.
#[derive(Clone, Debug)]
struct Refusal {
    /// Why.
    code: RDKafkaErrorCode,
    /// Why, in the broker's words.
    reason: Option<String>,
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

// === impl Reasons ===

impl Reasons {
    /// What was heard, by broker.
    fn reasons(&self) -> BTreeMap<String, String> {
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        last.clone()
    }

    /// Notes `ADDRESS/bootstrap: what happened (after 0ms in state CONNECT, 1 identical error(s) suppressed)`.
    fn note(&self, reason: &str) {
        let what = reason.split(" (after ").next().unwrap_or(reason);
        let broker = what.split(": ").next().unwrap_or_default();
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        last.insert(broker.to_owned(), what.to_owned());
    }
}

impl ClientContext for Reasons {
    fn log(&self, _: RDKafkaLogLevel, facility: &str, message: &str) {
        debug!(facility, message, "kafka client");
        // `[thrd:ADDRESS/bootstrap]: ADDRESS/bootstrap: what happened`; of a broker that hangs up no error is made.
        if facility == "FAIL" {
            let message = message.split_once("]: ").map_or(message, |(_, rest)| rest);
            // That nobody answers is no reason, and that the library takes it for an old broker misleads.
            if !message.contains("Timed out") {
                self.note(message);
            }
        }
    }

    fn error(&self, error: KafkaError, reason: &str) {
        debug!(%error, reason, "kafka client reports an error");
        if error.rdkafka_error_code() == Some(RDKafkaErrorCode::AllBrokersDown) {
            return;
        }
        self.note(reason);
    }
}

impl ProducerContext for Reasons {
    type DeliveryOpaque = ();

    fn delivery(&self, _: &DeliveryResult<'_>, (): Self::DeliveryOpaque) {}
}
