//! A session: clients of one cluster, which find it, ask it, and hear why they cannot.
//!
//! Not what is made of the answers. Invariant: no call waits without a limit, and who waits for a session does not wait for its clients' end.

use std::collections::BTreeMap;
use std::io::{self, Write as _};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, OwnedResourceSpecifier, ResourceSpecifier};
use rdkafka::client::{Client, ClientContext};
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::DeliveryResult;
use rdkafka::metadata::{Metadata, MetadataBroker};
use rdkafka::producer::{BaseProducer, Producer, ProducerContext};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::oneshot;
use tracing::{debug, enabled, info};

use retide_native::{admin, topics};

use crate::cluster::cause::{self, Cause};
use crate::cluster::check::{self, Asking, Finding, Seen, SeenTopic};
use crate::cluster::plan::Plan;
use crate::cluster::tools::Tools;
use crate::cluster::{Error, Silence};

/// Clients of one cluster, used on a thread of their own.
pub(super) struct Session {
    /// The addresses, as they were configured.
    pub(super) address: String,
    /// When it began.
    since: Instant,
    /// Finds the cluster, and hears why it cannot.
    probe: Arc<BaseProducer<Reasons>>,
    /// Set once a broker has answered.
    found: Arc<AtomicBool>,
    /// Asks and creates.
    pub(super) admin: AdminClient<Reasons>,
    /// Drives what `admin` is asked.
    pub(super) runtime: Runtime,
    /// The configuration of both.
    pub(super) config: ClientConfig,
}

/// Hears what goes wrong with connections.
#[derive(Debug, Default)]
pub(super) struct Reasons {
    /// The last thing that went wrong with each broker.
    last: Mutex<BTreeMap<String, String>>,
}

/// What was seen of a cluster.
pub(super) struct Looked {
    /// What there is.
    pub(super) seen: Seen,
    /// What is wrong with it, refusals first.
    pub(super) findings: Vec<Finding>,
    /// What may not be done with it.
    pub(super) denials: Vec<Finding>,
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
pub(super) const LEAST: Duration = Duration::from_secs(2);

/// How long a transaction is waited for.
const TRANSACTION: Duration = Duration::from_secs(10);

/// How long the client library may take to hand over what it heard; it has it already.
const HEAR: Duration = Duration::from_millis(100);

/// Does `work` on a thread of its own, since the client library blocks. The answer does not wait for the end of the clients, which may
/// hang in a lookup of names.
pub(super) async fn apart<T: Send + 'static>(
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

// === impl Looked ===

impl Looked {
    /// All that is wrong, refusals first.
    pub(super) fn all(self) -> Vec<Finding> {
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
            // To ask for a topic creates none.
            ("allow.auto.create.topics", "false"),
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

    /// What there is, without settings: all topics, for those that look for others than are planned.
    pub(super) fn find(&self) -> Result<Seen, Error> {
        self.find_by(|client| Ok(seen(&client.fetch_metadata(None, FIND)?)))
    }

    /// Which of these topics there are, and how many partitions they have, without settings or brokers. Nothing is asked of others: a cluster
    /// may have tens of thousands.
    pub(super) fn find_named<'a>(
        &self,
        names: impl IntoIterator<Item = &'a str>,
    ) -> Result<Seen, Error> {
        let names: Vec<String> = names.into_iter().map(str::to_owned).collect();
        self.find_by(move |client| {
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            let described = topics::describe(client, &names, FIND)?;
            // One that does not exist, or may not be seen, is not there.
            let there = described.into_iter().flatten();
            let topics = there.map(|topic| (topic.name, SeenTopic::of(topic.partitions)));
            Ok(Seen {
                topics: topics.collect(),
                ..Seen::default()
            })
        })
    }

    /// Finds the cluster by a question, or says why it is not found.
    fn find_by(
        &self,
        ask: impl FnOnce(&Client<Reasons>) -> Result<Seen, KafkaError> + Send + 'static,
    ) -> Result<Seen, Error> {
        let (answer, answered) = sync_channel(1);
        let probe = Arc::clone(&self.probe);
        // Apart, since the call hears nothing while it waits.
        thread::Builder::new()
            .name("metadata".to_owned())
            .spawn(move || {
                let _ = answer.send(ask(probe.client()));
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
        let reasons = context.reasons();
        // What has a number is known from a broker that answered, at an address that was configured.
        let advertised: Vec<String> = reasons
            .keys()
            .filter_map(|broker| broker.rsplit_once('/'))
            .filter(|(_, number)| number.parse::<i32>().is_ok())
            .map(|(address, _)| address.to_owned())
            .collect();
        if !advertised.is_empty() && advertised.len() == reasons.len() {
            return Err(self.unanswered(&advertised, reasons, error));
        }
        Err(Error::Unreachable {
            address: self.address.clone(),
            source: Box::new(self.silence(reasons, error)),
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
    pub(super) fn look(
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
    pub(super) fn read_permissions(&self, plan: &Plan, seen: &mut Seen) {
        let names: Vec<&str> = plan.names().collect();
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

    /// Adds the settings of the planned topics that are there.
    fn read_settings(&self, plan: &Plan, seen: &mut Seen) -> Result<(), Error> {
        let names = plan.names();
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
            let advertised: Vec<String> = seen.brokers.values().cloned().collect();
            return Err(self.unanswered(&advertised, reasons, error));
        }
        Ok(Err(error))
    }

    /// How much time is left to ask.
    pub(super) fn left(&self) -> Duration {
        ASK.saturating_sub(self.since.elapsed())
    }

    /// Nobody answers at the addresses that brokers advertise.
    fn unanswered(
        &self,
        advertised: &[String],
        reasons: BTreeMap<String, String>,
        error: KafkaError,
    ) -> Error {
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

    /// The answer to a request of `admin`. One that does not come, though a broker told its address, is due to that address.
    pub(super) fn answer<T>(
        &self,
        request: &'static str,
        answer: Result<T, KafkaError>,
        seen: &Seen,
    ) -> Result<T, Error> {
        answer.map_err(|error| match error {
            KafkaError::AdminOp(
                RDKafkaErrorCode::OperationTimedOut | RDKafkaErrorCode::BrokerTransportFailure,
            ) if !seen.brokers.is_empty() => {
                let advertised: Vec<String> = seen.brokers.values().cloned().collect();
                self.unanswered(&advertised, BTreeMap::new(), error)
            }
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

// === impl Reasons ===

impl Reasons {
    /// What was heard, by broker.
    pub(super) fn reasons(&self) -> BTreeMap<String, String> {
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
