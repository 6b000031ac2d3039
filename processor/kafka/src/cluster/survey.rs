//! What can be asked of a cluster besides its topics: each broker, what may be read and written, and the brokers' clock.
//!
//! Not what is made of the answers. Invariant: nothing is changed; what is written, if that is asked for, stands in transactions that
//! are aborted, and nobody who reads committed records sees it.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use futures_util::future::join_all;
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminOptions, ResourceSpecifier};
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{DeliveryResult, Header, Message, OwnedHeaders, Timestamp};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer, ProducerContext};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use tracing::debug;
use uuid::Uuid;

use retide_native::admin::Operation;

use crate::cluster::acl::{Resource, Scope, User};
use crate::cluster::check::{Asking, Seen};
use crate::cluster::plan::{Plan, TopicPlan};
use crate::cluster::tools::Tools;
use crate::cluster::{Error, Finding, Looked, Reasons, Session, apart};
use crate::ends::Ends;
use crate::scan;
use crate::topics::Reads;

/// What is asked, and by whom.
#[derive(Clone)]
pub struct Questions {
    /// The topics.
    pub plan: Plan,
    /// The consumer group, and what else is used beside the topics.
    pub scope: Scope,
    /// What consumers are configured with.
    pub consumer: ClientConfig,
    /// What producers are configured with, if something may be written.
    pub producer: Option<ClientConfig>,
}

/// The answers.
#[derive(Clone, Debug)]
pub struct Survey {
    /// The brokers, by their numbers.
    pub brokers: Vec<Broker>,
    /// What is wrong with topics and transactions, as [`check`](super::check) finds it.
    pub findings: Vec<Finding>,
    /// What a worker may not do with topics, and would.
    pub denials: Vec<Finding>,
    /// How many topics a worker may write, by the brokers' word; none if they do not tell.
    pub may_write: Option<usize>,
    /// All topics that may be described.
    pub topics: BTreeSet<String>,
    /// Partitions of the planned topic that has the most.
    pub shards: usize,
    /// Whether the group's offsets may be read.
    pub group: Access,
    /// Whether the group may be joined, and offsets committed for it.
    pub joining: Access,
    /// Whether the topics that are read may be read.
    pub read: Vec<(Arc<str>, Access)>,
    /// Whether the topics that are written may be written; none if nothing was to be written.
    pub written: Option<Vec<(Arc<str>, Access)>>,
    /// The brokers' clock, beside the one here.
    pub clock: Clock,
    /// The command line that lists what the user may do.
    pub list_acls: String,
    /// The command line that shows which requests, and so which version of Kafka, the brokers know.
    pub show_versions: String,
}

/// A broker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Broker {
    /// Its number.
    pub id: i32,
    /// The address that it advertises.
    pub address: String,
    /// What it answers there.
    pub answer: Answer,
}

/// What a broker answers at the address that it advertises.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It has a setting that came with Kafka 3.6.
    Recent,
    /// It does not have it, or its settings may not be read.
    Any,
    /// None, and why.
    Silence(String),
}

/// Whether something may be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Access {
    /// It was done.
    Granted,
    /// It was refused; the command line allows it.
    Denied {
        /// The command line.
        fix: String,
    },
    /// It could not be found out.
    Unknown {
        /// Why not.
        reason: String,
    },
}

/// How far the brokers' clock is ahead of the one here, in milliseconds; below zero, it is behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clock {
    /// Between these.
    Measured {
        /// The least that it can be.
        least: i64,
        /// The most that it can be.
        most: i64,
    },
    /// At least so much, by the newest record that a broker has stamped.
    AtLeast(i64),
    /// Nobody knows.
    Unknown,
}

/// The newest stamp of a broker's that was read, less the time here when it was.
type Newest = Option<i64>;

/// A setting of brokers that came with Kafka 3.6, and has stayed.
const RECENT: &str = "log.message.timestamp.after.max.ms";

/// Longest wait for one broker: it was found within less, or has been named by one that was.
const BROKER: Duration = Duration::from_secs(4);

/// Longest wait for the offsets of the group: its coordinator may have to be found first.
const GROUP: Duration = Duration::from_secs(3);

/// How long a coordinator is waited for that is being found, or made.
const COORDINATOR: Duration = Duration::from_secs(8);

/// Pause before it is asked for again.
const AGAIN: Duration = Duration::from_millis(200);

/// Longest time for reading the ends of all topics together.
const READ: Duration = Duration::from_secs(5);

/// Longest time for all that is written together.
const WRITE: Duration = Duration::from_secs(6);

/// After this a broker ends by itself what was begun here, in milliseconds.
const ABORT: &str = "8000";

/// Longest time for one record to be acknowledged, in milliseconds; below [`ABORT`].
const DELIVERY: &str = "3000";

/// Asks the cluster of `config`, in about 25 seconds at most.
///
/// # Errors
/// If the cluster cannot be asked at all.
pub async fn survey(config: &ClientConfig, questions: &Questions) -> Result<Survey, Error> {
    let questions = questions.clone();
    apart(config, move |session| session.survey(&questions)).await
}

// === impl Session ===

impl Session {
    /// See [`survey`].
    fn survey(&self, questions: &Questions) -> Result<Survey, Error> {
        let Questions { plan, scope, .. } = questions;
        let asking = Asking {
            user: User::Run,
            scope: Some(scope),
        };
        let Looked {
            seen,
            findings,
            denials,
        } = self.look(plan, scope.transactions.as_deref(), asking)?;
        let brokers = self.ask_brokers(&seen);
        let tools = Tools::new(&self.config, &self.address);
        let (group, joining, read, newest) = questions.read(&seen, &tools)?;
        let probe = match &questions.producer {
            Some(producer) => Some(questions.write(producer, &seen, &tools)?),
            None => None,
        };
        let (written, measured) = probe.unzip();
        let clock = match (measured.flatten(), newest) {
            (Some(clock), _) => clock,
            (None, Some(ahead)) if ahead > 0 => Clock::AtLeast(ahead),
            (None, _) => Clock::Unknown,
        };
        Ok(Survey {
            brokers,
            findings,
            denials,
            may_write: may_write(plan, scope, &seen),
            shards: plan
                .topics
                .iter()
                .filter(|topic| topic.role.is_sharded())
                .filter_map(|topic| Some(seen.topics.get(&*topic.name)?.replicas.len()))
                .max()
                .unwrap_or(0),
            topics: seen.topics.into_keys().collect(),
            group,
            joining,
            read,
            written,
            clock,
            list_acls: tools.list_acls(),
            show_versions: tools.versions(),
        })
    }

    /// Asks every broker at the address that it advertises.
    fn ask_brokers(&self, seen: &Seen) -> Vec<Broker> {
        let options = AdminOptions::new().request_timeout(Some(BROKER));
        let resources: Vec<_> = seen
            .brokers
            .keys()
            .map(|id| [ResourceSpecifier::Broker(*id)])
            .collect();
        let asked = resources
            .iter()
            .map(|resource| self.admin.describe_configs(resource, &options));
        let answers = self.runtime.block_on(join_all(asked));
        let answer = |answer: Result<Vec<Result<_, RDKafkaErrorCode>>, KafkaError>| match answer {
            Err(error) => Answer::Silence(error.to_string()),
            Ok(resources) => {
                let mut resources = resources.into_iter().flatten();
                let recent = resources.any(|resource: rdkafka::admin::ConfigResource| {
                    resource.entries.iter().any(|entry| entry.name == RECENT)
                });
                if recent { Answer::Recent } else { Answer::Any }
            }
        };
        let brokers = seen.brokers.iter().zip(answers);
        brokers
            .map(|((id, address), found)| Broker {
                id: *id,
                address: address.clone(),
                answer: answer(found),
            })
            .collect()
    }
}

// === impl Questions ===

impl Questions {
    /// Reads the offsets of the group, and the end of each topic that workers read. The group is not joined, nothing is committed.
    #[allow(
        clippy::type_complexity,
        reason = "four answers of one consumer, taken apart at once"
    )]
    fn read(
        &self,
        seen: &Seen,
        tools: &Tools,
    ) -> Result<(Access, Access, Vec<(Arc<str>, Access)>, Newest), Error> {
        let group = &self.scope.group;
        let consumer = scan::consumer_for(self.consumer.clone(), group, Reasons::default())
            .map_err(Error::Client)?;
        // What brokers say may not be read has been said already.
        let told = |topic: &TopicPlan| {
            let allowed = seen.allowed.get(&*topic.name);
            allowed.is_some_and(|allowed| !allowed.contains(&Operation::Read))
        };
        let there: Vec<_> = self
            .plan
            .topics
            .iter()
            .filter(|topic| topic.role.about().reads != Reads::Nothing && !told(topic))
            .filter_map(|topic| Some((topic, seen.topics.get(&*topic.name)?.replicas.len())))
            .collect();
        let committed = match there.first() {
            None => None,
            Some((topic, partitions)) => {
                let mut list = TopicPartitionList::new();
                for partition in 0..*partitions {
                    list.add_partition(&topic.name, partition as i32);
                }
                let deadline = Instant::now() + COORDINATOR;
                Some(committed(&consumer, &list, deadline).map(drop))
            }
        };
        let fix = |operation| tools.allow(&[operation], Resource::Group, group);
        let read_group = || fix(Operation::Read);
        let joining = match &committed {
            Some(Ok(())) => access(try_commit(&consumer)?, read_group),
            Some(Err(error)) => access(Err(error.clone()), read_group),
            None => Access::Unknown {
                reason: "there is no topic to ask for".to_owned(),
            },
        };
        let topics = there
            .iter()
            .map(|(topic, partitions)| (&topic.name, *partitions));
        let mut newest = None;
        let ends = Ends::read(consumer, topics, Instant::now() + READ, |message| {
            if let Timestamp::LogAppendTime(stamp) = message.timestamp() {
                newest = newest.max(Some(stamp - now()));
            }
        })
        .map_err(Error::Client)?;
        let mut all = Vec::new();
        for (topic, _) in there {
            let result = ends.of(&topic.name);
            let fix = || tools.allow(&[Operation::Read], Resource::Topic, &topic.name);
            all.push((Arc::clone(&topic.name), access(result, fix)));
        }
        let committed = match (ends.group, committed) {
            (Some(refused), _) => Some(Err(refused)),
            (None, committed) => committed,
        };
        let allowed = match committed {
            Some(result) => access(result, read_group),
            None => Access::Unknown {
                reason: "there is no topic to ask for".to_owned(),
            },
        };
        Ok((allowed, joining, all, newest))
    }

    /// Writes one record to each topic that workers write, each in a transaction that is aborted.
    #[allow(
        clippy::type_complexity,
        reason = "two answers of one producer, taken apart at once"
    )]
    fn write(
        &self,
        producer: &ClientConfig,
        seen: &Seen,
        tools: &Tools,
    ) -> Result<(Vec<(Arc<str>, Access)>, Option<Clock>), Error> {
        let deadline = Instant::now() + WRITE;
        let mut config = producer.clone();
        let id = format!("{}-check", self.scope.group);
        for (key, value) in [
            ("transactional.id", id.as_str()),
            ("enable.idempotence", "true"),
            ("transaction.timeout.ms", ABORT),
            ("message.timeout.ms", DELIVERY),
            ("linger.ms", "0"),
        ] {
            config.set(key, value);
        }
        let producer: BaseProducer<Receipts> = config
            .create_with_context(Receipts::default())
            .map_err(Error::Client)?;
        let mut ready = producer.init_transactions(left(deadline));
        let mut all = Vec::new();
        for topic in &self.plan.topics {
            let writes = User::Run.on(topic.role, Some(&self.scope));
            if !writes.contains(&Operation::Write) || !seen.topics.contains_key(&*topic.name) {
                continue;
            }
            let fix = || tools.allow(&[Operation::Write], Resource::Topic, &topic.name);
            let result = match &ready {
                Ok(()) => {
                    let (result, again) = probe(&producer, &topic.name, deadline);
                    ready = again;
                    result
                }
                Err(error) => Err(error.clone()),
            };
            all.push((Arc::clone(&topic.name), access(result, fix)));
        }
        Ok((all, producer.context().clock()))
    }
}

/// How many topics a worker may write, of those that it writes; none if brokers do not tell.
fn may_write(plan: &Plan, scope: &Scope, seen: &Seen) -> Option<usize> {
    let written = plan.topics.iter().filter(|topic| {
        let needed = User::Run.on(topic.role, Some(scope));
        needed.contains(&Operation::Write) && seen.topics.contains_key(&*topic.name)
    });
    let mut granted = 0;
    for topic in written {
        let allowed = seen.allowed.get(&*topic.name)?;
        granted += usize::from(allowed.contains(&Operation::Write));
    }
    Some(granted)
}

/// The offsets of the group, if they may be read. A cluster that has just been set up makes the topic for them first.
pub(super) fn committed(
    consumer: &BaseConsumer<Reasons>,
    list: &TopicPartitionList,
    deadline: Instant,
) -> Result<TopicPartitionList, KafkaError> {
    loop {
        let error = match consumer.committed_offsets(list.clone(), GROUP) {
            Ok(committed) => return Ok(committed),
            Err(error) => error,
        };
        let passes = matches!(
            error.rdkafka_error_code(),
            Some(
                RDKafkaErrorCode::NotCoordinator
                    | RDKafkaErrorCode::CoordinatorNotAvailable
                    | RDKafkaErrorCode::CoordinatorLoadInProgress
                    | RDKafkaErrorCode::WaitingForCoordinator
            )
        );
        if !passes || Instant::now() >= deadline {
            return Err(error);
        }
        consumer.poll(AGAIN);
    }
}

/// Whether offsets may be committed for the group, which is what joining it takes as well: tries to commit one of a topic that does not
/// exist. The broker looks at the group first, and has nothing to store then.
pub(super) fn try_commit(
    consumer: &BaseConsumer<Reasons>,
) -> Result<Result<(), KafkaError>, Error> {
    let topic = format!("retide-doctor-{}", Uuid::new_v4().simple());
    let mut list = TopicPartitionList::new();
    list.add_partition_offset(&topic, 0, Offset::Offset(0))
        .map_err(Error::Client)?;
    let Err(error) = consumer.commit(&list, CommitMode::Sync) else {
        return Ok(Ok(()));
    };
    Ok(match error.rdkafka_error_code() {
        // What was tried is refused for the topic.
        Some(
            RDKafkaErrorCode::TopicAuthorizationFailed
            | RDKafkaErrorCode::UnknownTopicOrPartition
            | RDKafkaErrorCode::UnknownTopic
            | RDKafkaErrorCode::UnknownPartition,
        ) => Ok(()),
        Some(_) | None => Err(error),
    })
}

/// Begins a transaction, writes one record, and aborts. What became of the record, and whether another transaction can be begun.
fn probe(
    producer: &BaseProducer<Receipts>,
    topic: &str,
    deadline: Instant,
) -> (Result<(), KafkaError>, Result<(), KafkaError>) {
    if let Err(error) = producer.begin_transaction() {
        return (Err(error.clone()), Err(error));
    }
    let headers = OwnedHeaders::new().insert(Header {
        key: "retry-probe",
        value: Some("retide doctor, aborted"),
    });
    let record = BaseRecord::<'_, str, str, Arc<Mutex<Receipt>>>::with_opaque_to(
        topic,
        Arc::new(Mutex::new(Receipt::new())),
    );
    let receipt = Arc::clone(&record.delivery_opaque);
    let sent = producer.send(
        record
            .partition(0)
            .key("retide-doctor")
            .payload("")
            .headers(headers),
    );
    let result = sent.map_err(|(error, _)| error).and_then(|()| {
        let flushed = producer.flush(left(deadline));
        let mut receipt = receipt.lock().unwrap_or_else(PoisonError::into_inner);
        match (receipt.result.take(), producer.context().refusal()) {
            // All that a transaction that may not go on says of its records is that they were dropped.
            (Some(Err(_)), Some(code)) => Err(KafkaError::MessageProduction(code)),
            (Some(result), _) => result,
            (None, _) => Err(flushed.err().unwrap_or(KafkaError::Canceled)),
        }
    });
    (result, producer.abort_transaction(left(deadline)))
}

/// What it means for access that something was done, or not.
pub(super) fn access(result: Result<(), KafkaError>, fix: impl FnOnce() -> String) -> Access {
    let Err(error) = result else {
        return Access::Granted;
    };
    match error.rdkafka_error_code() {
        Some(
            RDKafkaErrorCode::TopicAuthorizationFailed
            | RDKafkaErrorCode::GroupAuthorizationFailed
            | RDKafkaErrorCode::ClusterAuthorizationFailed,
        ) => Access::Denied { fix: fix() },
        _ => Access::Unknown {
            reason: error.to_string(),
        },
    }
}

/// How long it is until `deadline`.
fn left(deadline: Instant) -> Duration {
    deadline.saturating_duration_since(Instant::now())
}

/// Milliseconds since the epoch, by the clock here.
#[allow(
    clippy::disallowed_methods,
    reason = "compared with a broker's, and with nothing else"
)]
fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    i64::try_from(since.unwrap_or_default().as_millis()).unwrap_or(i64::MAX)
}

/// What became of one record.
struct Receipt {
    /// When it was handed over, in milliseconds since the epoch.
    sent: i64,
    /// Whether it was appended.
    result: Option<Result<(), KafkaError>>,
}

/// Hears what became of records, and when brokers appended them.
#[derive(Default)]
struct Receipts(Mutex<Heard>);

/// What a producer heard.
#[derive(Default)]
struct Heard {
    /// How far ahead the brokers' clock is, as far as all stamps so far tell.
    clock: Option<(i64, i64)>,
    /// Whether the transaction was refused for want of a permission.
    refusal: Option<RDKafkaErrorCode>,
}

// === impl Receipt ===

impl Receipt {
    /// Of a record that is handed over now.
    fn new() -> Self {
        Self {
            sent: now(),
            result: None,
        }
    }
}

// === impl Receipts ===

impl Receipts {
    /// The clock as far as it is known.
    fn clock(&self) -> Option<Clock> {
        let heard = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (least, most) = heard.clock?;
        // A clock that was set while it was measured leaves nothing in between.
        (least <= most).then_some(Clock::Measured { least, most })
    }

    /// Whether a permission is missing; forgotten once it was asked for.
    fn refusal(&self) -> Option<RDKafkaErrorCode> {
        let mut heard = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        heard.refusal.take()
    }
}

/// How far the clock may be ahead, that stamped at `stamp` what was on its way from `sent` to `heard`, all in whole milliseconds, and
/// within what was known.
fn narrowed(known: Option<(i64, i64)>, sent: i64, stamp: i64, heard: i64) -> (i64, i64) {
    let (least, most) = known.unwrap_or((i64::MIN, i64::MAX));
    // Each of them was rounded down.
    (least.max(stamp - heard - 1), most.min(stamp - sent + 1))
}

impl ClientContext for Receipts {
    fn log(&self, _: RDKafkaLogLevel, facility: &str, message: &str) {
        debug!(facility, message, "kafka client");
        // The one place where the client library says why a transaction cannot go on.
        if facility == "TXNERR" && message.contains("Topic authorization failed") {
            let mut heard = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            heard.refusal = Some(RDKafkaErrorCode::TopicAuthorizationFailed);
        }
    }

    fn error(&self, error: KafkaError, reason: &str) {
        debug!(%error, reason, "kafka client reports an error");
    }
}

impl ProducerContext for Receipts {
    type DeliveryOpaque = Arc<Mutex<Receipt>>;

    fn delivery(&self, result: &DeliveryResult<'_>, receipt: Self::DeliveryOpaque) {
        let mut receipt = receipt.lock().unwrap_or_else(PoisonError::into_inner);
        receipt.result = Some(match result {
            Ok(message) => {
                if let Timestamp::LogAppendTime(stamp) = message.timestamp() {
                    let mut heard = self.0.lock().unwrap_or_else(PoisonError::into_inner);
                    heard.clock = Some(narrowed(heard.clock, receipt.sent, stamp, now()));
                }
                Ok(())
            }
            Err((error, _)) => Err(error.clone()),
        });
    }
}

impl ConsumerContext for Reasons {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_stamp_narrows_what_the_clock_can_be() {
        // Ten seconds ahead, 40 ms there and back, then 4 ms.
        let slow = narrowed(None, 1_000, 11_020, 1_040);
        let fast = narrowed(Some(slow), 2_000, 12_002, 2_004);

        assert_eq!(slow, (9_979, 10_021));
        assert_eq!(fast, (9_997, 10_003));
    }

    #[test]
    fn what_is_refused_has_a_command_line_and_what_fails_otherwise_a_reason() {
        let denied = KafkaError::MessageConsumption(RDKafkaErrorCode::TopicAuthorizationFailed);
        let silent = KafkaError::MessageConsumption(RDKafkaErrorCode::OperationTimedOut);
        let of = |result| access(result, || "allow".to_owned());

        assert_eq!(of(Ok(())), Access::Granted);
        assert_eq!(
            of(Err(denied)),
            Access::Denied {
                fix: "allow".to_owned()
            }
        );
        assert!(matches!(of(Err(silent)), Access::Unknown { .. }));
    }
}
