//! The feed: one OS thread per worker that polls the consumer and hands on what it reads, in order.
//!
//! Nothing user-written runs here, and nothing is decided: it decodes nothing and keeps no offsets. Invariant: when a shard is given
//! away, the feed waits inside the rebalance until the drive says that everything of it is committed.
//!
//! Ownership: all topics are subscribed to with the `range` assignor, which gives partition p of each of them to the same member as
//! long as they have the same number of partitions. The other way was tried on Kafka 4.3: subscribe to the retry topic only, with
//! `cooperative-sticky`, and extend each assignment by the other topics. It is correct, too, but a worker that joins costs two
//! rebalances and up to a second without an owner (lateness p99 852-1860 ms against 64-96 ms), brokers expire the offsets of topics that
//! nobody subscribes to, and it takes 60 lines more.

use std::collections::{BTreeSet, HashMap};
use std::mem;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use crossbeam_channel::{Receiver, Sender, bounded, never};
use rdkafka::ClientConfig;
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Message};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList, TopicPartitionListElem};
use rdkafka::types::RDKafkaRespErr;
use tracing::{error, warn};

use retide_avro::headers::{self, Headless};
use retide_core::completions::{Binding, Completions};
use retide_core::engine::Position;
use retide_core::order::Shard;
use retide_core::{Header, LaneId, Name, Record, Source, Timestamp};
use retide_native::{self as native, headers::Headers};

use crate::client::{complained, logged};
use crate::event::{CommitUnreadable, ConsumerReported, ShardsAssigned, ShardsLost, ShardsRevoked};
use crate::metrics::Metrics;
use crate::shell::binding::Bindings;
use crate::shell::order;
use crate::suspects::MOST_DEATHS;
use crate::threads::{Ended, Hand, Threads};
use crate::topics::Topics;

/// What the feed tells the drive.
#[derive(Debug)]
pub enum Reading {
    /// These lanes are ours, and this was known of the order of their shards' tasks.
    Assigned(Vec<Assignment>, Vec<(i32, Shard)>),
    /// These shards are to be given away; the feed waits for `done`.
    Revoked {
        /// The shards.
        shards: Vec<i32>,
        /// Whether they are gone already, so that nothing more can be committed for them.
        lost: bool,
        /// Dropped or sent to when the drive has let go of them.
        done: Sender<()>,
    },
    /// Records, in the order in which they were read; at most [`BATCH`].
    Records(Vec<Read>),
    /// The consumer cannot go on.
    Failed(KafkaError),
}

/// A record, as it stands on the topic.
#[derive(Clone, Debug)]
pub struct Read {
    /// Where it was read.
    pub position: Position,
    /// When the broker appended it, or what its producer said if the topic does not keep append times; the epoch if it bears no time.
    pub appended: Timestamp,
    /// The record, whole or as far as it could be read.
    pub record: Result<Record, Headless>,
}

/// A lane that was assigned, and where its last commit left it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Assignment {
    /// The lane.
    pub lane: LaneId,
    /// The next offset to read.
    pub start: i64,
    /// What is complete above it.
    pub known: Completions,
    /// What the metadata of its commits is bound to.
    pub binding: Binding,
}

/// What the drive asks of the feed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// Stop reading a lane.
    Pause {
        /// The lane.
        lane: LaneId,
    },
    /// Read a lane from `next` on.
    Resume {
        /// The lane.
        lane: LaneId,
        /// The run to give with each record.
        run: u64,
        /// The first offset wanted.
        next: i64,
    },
}

/// The feed as the drive sees it. Dropping it leaves the group; the drive has to have let go of every shard.
pub struct Feed {
    /// What was read.
    pub readings: Receiver<Reading>,
    /// What is wanted.
    pub requests: Sender<Request>,
    /// The consumer, for group metadata and committed offsets.
    pub consumer: Arc<Client>,
    /// Set to leave the group.
    stop: Arc<AtomicBool>,
    /// The thread, until it is waited for.
    thread: Option<JoinHandle<()>>,
}

/// The consumer of a worker.
pub type Client = BaseConsumer<Context>;

/// What runs inside the consumer's callbacks.
#[derive(Debug)]
pub struct Context {
    /// The consumer's configuration, for others that do not join.
    config: ClientConfig,
    /// Asks whether anything is known of the order of tasks.
    probe: order::Probe,
    /// The topics.
    topics: Arc<Topics>,
    /// To the drive.
    readings: Sender<Reading>,
    /// How often lanes were assigned.
    assignments: AtomicU64,
    /// Where events are counted.
    metrics: Arc<Metrics>,
    /// The worker.
    name: String,
    /// The threads of the process.
    threads: Threads,
    /// Set to leave the group.
    stop: Arc<AtomicBool>,
}

/// Most records that go to the drive at once: enough that the hand-over costs nothing, few enough that no timer waits for them.
pub const BATCH: usize = 64;

/// Readings on their way to the drive: enough to bridge a commit, few beside what lanes hold.
const BUFFER: usize = 32;

/// Requests on their way to the feed: a drive never has more lanes to pause at once.
const REQUESTS: usize = 1_024;

/// Longest wait for a record, after which requests are looked at again.
const POLL: Duration = Duration::from_millis(10);

/// Longest wait for committed offsets: an open transaction of the former owner has to end or time out before they are known.
/// Brokers look for overdue transactions every ten seconds, and a transaction may take ten; short beside `max.poll.interval.ms`.
const COMMITTED: Duration = Duration::from_mins(1);

/// Longest wait for them at a time, after which it is seen whether they are still wanted: short beside the time a process has to drain.
const ASK: Duration = Duration::from_secs(2);

// === impl Feed ===

impl Feed {
    /// Joins the group of `config` and starts to read, for the worker `name`, on one of these threads.
    ///
    /// # Errors
    /// If the configuration is refused, or the thread cannot be started.
    pub fn start(
        config: &ClientConfig,
        topics: &Arc<Topics>,
        name: &str,
        metrics: &Arc<Metrics>,
        threads: &Threads,
    ) -> Result<Self, KafkaError> {
        let (to_drive, readings) = bounded(BUFFER);
        let (requests, from_drive) = bounded(REQUESTS);
        let mut config = config.clone();
        for (key, value) in [
            ("partition.assignment.strategy", "range"),
            ("enable.auto.commit", "false"),
            ("enable.auto.offset.store", "false"),
            ("auto.offset.reset", "error"),
            ("isolation.level", "read_committed"),
            // One queue for all partitions: what is prefetched stays within this, however many lanes there are, and so does one fetch. A new
            // task waits behind it where all of a tier is due: this is some 60 ms of work on small tasks, 16 MiB was four times as much and
            // no faster.
            ("queued.max.messages.kbytes", "4096"),
        ] {
            config.set(key, value);
        }
        let stop = Arc::new(AtomicBool::new(false));
        let context = Context {
            config: config.clone(),
            probe: order::Probe::new(config.clone())?,
            topics: Arc::clone(topics),
            readings: to_drive.clone(),
            assignments: AtomicU64::new(0),
            metrics: Arc::clone(metrics),
            name: name.to_owned(),
            threads: threads.clone(),
            stop: Arc::clone(&stop),
        };
        let consumer: Arc<Client> = Arc::new(config.create_with_context(context)?);
        let names: Vec<&str> = topics.read().map(|(_, name)| &**name).collect();
        consumer.subscribe(&names)?;
        let reader = Reader {
            consumer: Arc::clone(&consumer),
            topics: Arc::clone(topics),
            runs: HashMap::new(),
            assignment: 0,
            last: Source::Tasks,
            hand: Hand::new(topics),
            failed: Vec::new(),
            readings: to_drive,
            requests: from_drive,
        };
        let stopping = Arc::clone(&stop);
        let body = move || {
            reader.run(&stopping);
            if stopping.load(Ordering::Acquire) {
                Ended::Told
            } else {
                Ended::Early("nobody takes what it reads".to_owned())
            }
        };
        let thread = threads
            .spawn(&format!("{name}-feed"), body)
            .map_err(|error| KafkaError::ClientCreation(error.to_string()))?;
        Ok(Self {
            readings,
            requests,
            consumer,
            stop,
            thread: Some(thread),
        })
    }
}

impl Feed {
    /// Whether its thread has ended, so that nothing will be read any more.
    pub fn has_ended(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }
}

impl Drop for Feed {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        let readings = mem::replace(&mut self.readings, never());
        let Some(thread) = self.thread.take() else {
            return;
        };
        // A channel keeps what is in it beyond its last receiver: a revocation would wait for ever for somebody to drop its `done`.
        while !thread.is_finished() {
            let _ = readings.recv_timeout(POLL);
        }
        // Its panic was told.
        let _ = thread.join();
    }
}

/// The state of the feed's thread.
struct Reader {
    /// The consumer.
    consumer: Arc<Client>,
    /// The topics.
    topics: Arc<Topics>,
    /// The run of each lane that was ever paused in this assignment.
    runs: HashMap<LaneId, u64>,
    /// The assignment of `runs`.
    assignment: u64,
    /// What the last record was read from.
    last: Source,
    /// The record being read.
    hand: Arc<Hand>,
    /// What the drive asked for and could not be done yet.
    failed: Vec<Request>,
    /// To the drive.
    readings: Sender<Reading>,
    /// From the drive.
    requests: Receiver<Request>,
}

// === impl Reader ===

impl Reader {
    /// Polls until told to stop.
    fn run(mut self, stop: &AtomicBool) {
        let consumer = Arc::clone(&self.consumer);
        consumer.context().threads().works_with(&self.hand);
        while !stop.load(Ordering::Acquire) {
            self.follow_all();
            let (records, failed) = self.collect(&consumer);
            let records = (!records.is_empty()).then_some(Reading::Records(records));
            for reading in records.into_iter().chain(failed) {
                if self.readings.send(reading).is_err() {
                    return;
                }
            }
        }
    }

    /// Polls until there is nothing, enough, or a failure.
    fn collect(&mut self, consumer: &Client) -> (Vec<Read>, Option<Reading>) {
        let mut records = Vec::new();
        let mut wait = POLL;
        while records.len() < BATCH {
            let polled = consumer.poll(wait);
            if self.notice_assignment() {
                // Read before the poll in which the lanes were assigned anew: they come again, and what comes now is ahead of them.
                records.clear();
            }
            match polled {
                None => break,
                Some(Ok(message)) => records.extend(self.read(&message)),
                Some(Err(error)) => {
                    if let Some(failed) = failure(error, consumer.context().metrics()) {
                        return (records, Some(failed));
                    }
                }
            }
            wait = Duration::ZERO;
        }
        (records, None)
    }

    /// A record as the drive wants it.
    fn read(&mut self, message: &BorrowedMessage<'_>) -> Option<Read> {
        let topic = message.topic();
        // Records come in bundles from one topic.
        if **self.topics.name(self.last) != *topic {
            self.last = self.topics.source(topic)?;
        }
        let source = self.last;
        let lane = LaneId {
            shard: message.partition(),
            source,
        };
        let suspects = self.consumer.context().threads().suspects();
        let deaths = suspects.deaths(topic, lane.shard, message.offset());
        if deaths == 0 {
            self.hand.take(lane, message.offset());
        }
        let run = self.runs.get(&lane).copied().unwrap_or_default();
        let millis = message.timestamp().to_millis().unwrap_or_default();
        Some(Read {
            position: Position {
                lane,
                run,
                offset: message.offset(),
            },
            appended: Timestamp::from_millis(u64::try_from(millis).unwrap_or_default()),
            // Who died last may have died of its headers.
            record: if deaths > MOST_DEATHS {
                Ok(Record::default())
            } else {
                record(message)
            },
        })
    }

    /// Does everything the drive has asked for. What fails is tried again after each poll, until the lanes are assigned anew.
    fn follow_all(&mut self) {
        self.notice_assignment();
        let mut requests = mem::take(&mut self.failed);
        let old = requests.len();
        requests.extend(self.requests.try_iter());
        for (number, request) in requests.into_iter().enumerate() {
            let Err(error) = self.follow(request) else {
                continue;
            };
            if number >= old {
                // As a rule the lane has just been given away.
                warn!(%error, ?request, "lane not paused or resumed, trying again");
            }
            self.failed.push(request);
        }
    }

    /// Forgets the runs of lanes that were assigned anew: they start from the first one. So do requests about what they were before. Says
    /// whether there were any.
    fn notice_assignment(&mut self) -> bool {
        let assignment = self.consumer.context().assignments.load(Ordering::Acquire);
        let anew = self.assignment != assignment;
        if anew {
            self.assignment = assignment;
            self.runs.clear();
            self.failed.clear();
        }
        anew
    }

    /// Does what the drive asks.
    fn follow(&mut self, request: Request) -> Result<(), KafkaError> {
        match request {
            Request::Pause { lane } => self.consumer.pause(&self.partition(lane)),
            Request::Resume { lane, run, next } => {
                let name = self.topics.name(lane.source);
                self.consumer.seek(
                    name,
                    lane.shard,
                    Offset::Offset(next),
                    Duration::from_secs(5),
                )?;
                self.runs.insert(lane, run);
                self.consumer.resume(&self.partition(lane))
            }
        }
    }

    /// The lane as the client names it.
    fn partition(&self, lane: LaneId) -> TopicPartitionList {
        let mut list = TopicPartitionList::new();
        list.add_partition(self.topics.name(lane.source), lane.shard);
        list
    }
}

/// What an error of the consumer means to the drive, if it is more than passing.
fn failure(error: KafkaError, metrics: &Metrics) -> Option<Reading> {
    if let Some(
        code @ (RDKafkaErrorCode::Fatal
        | RDKafkaErrorCode::AutoOffsetReset
        | RDKafkaErrorCode::TopicAuthorizationFailed
        | RDKafkaErrorCode::GroupAuthorizationFailed),
    ) = error.rdkafka_error_code()
    {
        if code == RDKafkaErrorCode::AutoOffsetReset {
            error!(
                "a committed offset is no longer there: tasks were deleted unread, or the log was truncated; find out which, set the \
                 group's offsets with kafka-consumer-groups.sh --reset-offsets, and start again"
            );
        }
        return Some(Reading::Failed(error));
    }
    // The client goes on by itself.
    ConsumerReported { error: &error }.emit(metrics);
    None
}

/// The record of a message, copied out of the client's buffer at once: all that it holds into one piece of memory. Names that are known
/// take none.
pub(crate) fn record(message: &BorrowedMessage<'_>) -> Result<Record, Headless> {
    let (key, value) = (message.key(), message.payload());
    let headers = native::headers::read(message);
    let length = |part: Option<&[u8]>| part.map_or(0, <[u8]>::len);
    let mut room = length(key) + length(value);
    for (name, value) in headers.iter().flat_map(Headers::iter) {
        // As a rule retide's own are known, and nobody else has a name that begins like theirs.
        let known = name.starts_with(b"retry-");
        room += length(value) + if known { 0 } else { name.len() };
    }
    let mut memory = BytesMut::with_capacity(room);
    let mut copy = |part: &[u8]| {
        memory.extend_from_slice(part);
        memory.split().freeze()
    };
    let mut record = Record {
        key: key.map(&mut copy),
        value: value.map(&mut copy),
        headers: Vec::new(),
    };
    let Ok(headers) = headers else {
        return Err(Headless(record));
    };
    let headers = headers.iter().map(|(name, value)| Header {
        name: headers::known(name).unwrap_or_else(|| Name::from(copy(name))),
        value: value.map(&mut copy),
    });
    record.headers = headers.collect();
    Ok(record)
}

// === impl Context ===

impl ClientContext for Context {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        logged(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        complained(&error, reason);
    }
}

impl ConsumerContext for Context {
    fn rebalance(
        &self,
        consumer: &BaseConsumer<Self>,
        err: RDKafkaRespErr,
        partitions: &mut TopicPartitionList,
    ) {
        let done = match err {
            RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS => {
                self.assign(consumer, partitions)
            }
            RDKafkaRespErr::RD_KAFKA_RESP_ERR__REVOKE_PARTITIONS => {
                self.revoke(consumer, partitions);
                consumer.unassign()
            }
            _ => consumer.unassign(),
        };
        if let Err(error) = done {
            error!(%error, "rebalance failed");
            let _ = self.readings.send(Reading::Failed(error));
        }
    }
}

impl Context {
    /// Where events are counted.
    pub(crate) fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// The worker.
    pub(crate) fn worker(&self) -> &str {
        &self.name
    }

    /// The threads of the process.
    pub(crate) fn threads(&self) -> &Threads {
        &self.threads
    }

    /// Starts every lane where its last commit left it.
    fn assign(
        &self,
        consumer: &BaseConsumer<Self>,
        partitions: &TopicPartitionList,
    ) -> Result<(), KafkaError> {
        let Some(committed) = self.committed(consumer, partitions)? else {
            return consumer.unassign();
        };
        let bindings = Bindings::ask(consumer.client(), &self.topics, COMMITTED)?;
        let mut starts = TopicPartitionList::with_capacity(committed.count());
        let mut assignments = Vec::with_capacity(committed.count());
        for element in committed.elements() {
            element.error()?;
            let (start, offset) = match element.offset() {
                Offset::Offset(next) => (next, Offset::Offset(next)),
                // Never committed: everything that is there is still to be done.
                _ => (0, Offset::Beginning),
            };
            starts.add_partition_offset(element.topic(), element.partition(), offset)?;
            let binding = bindings.of(element.topic(), element.partition());
            let known = Completions::decode(element.metadata(), binding, start);
            let known = known.unwrap_or_else(|error| {
                CommitUnreadable {
                    topic: element.topic(),
                    partition: element.partition(),
                    offset: start,
                    error: &error,
                }
                .emit(&self.metrics);
                Completions::default()
            });
            if let Some(source) = self.topics.source(element.topic()) {
                let shard = element.partition();
                let lane = LaneId { shard, source };
                assignments.push(Assignment {
                    lane,
                    start,
                    known,
                    binding,
                });
            }
        }
        let shards = &shards(partitions);
        ShardsAssigned {
            worker: &self.name,
            shards,
        }
        .emit(&self.metrics);
        // After the offsets: only then it is decided what there is to read.
        let orders = order::Source {
            config: &self.config,
            probe: &self.probe,
            topic: &self.topics.order,
            suspects: self.threads.suspects(),
            metrics: &self.metrics,
            stop: &self.stop,
        }
        .read(shards);
        let orders = match orders {
            Ok(orders) => orders,
            Err(_) if self.stop.load(Ordering::Acquire) => return consumer.unassign(),
            Err(error) => {
                error!(topic = &*self.topics.order, "order of tasks unknown");
                return Err(error);
            }
        };
        let suspects = self.threads.suspects();
        suspects.settle(&assignments, &self.topics, &self.threads);
        let assigned = Reading::Assigned(assignments, orders);
        if self.readings.send(assigned).is_err() {
            return Ok(());
        }
        self.assignments.fetch_add(1, Ordering::Release);
        consumer.assign(&starts)?;
        // The client keeps a lane paused that was paused before it went away.
        consumer.resume(&starts)
    }

    /// The committed offsets, waiting for transactions that still may change them; none if nobody wants them any more.
    fn committed(
        &self,
        consumer: &BaseConsumer<Self>,
        partitions: &TopicPartitionList,
    ) -> Result<Option<TopicPartitionList>, KafkaError> {
        let deadline = Instant::now() + COMMITTED;
        loop {
            match consumer.committed_offsets(partitions.clone(), ASK) {
                Ok(committed) => return Ok(Some(committed)),
                Err(_) if self.stop.load(Ordering::Acquire) => return Ok(None),
                Err(error)
                    if error.rdkafka_error_code() == Some(RDKafkaErrorCode::OperationTimedOut)
                        && Instant::now() < deadline => {}
                Err(error) => {
                    error!(
                        "committed offsets unknown: no answer, or a transaction that never ends; `kafka-transactions.sh find-hanging` finds those"
                    );
                    return Err(error);
                }
            }
        }
    }

    /// Waits until the drive has let go of the shards of `partitions`.
    fn revoke(&self, consumer: &BaseConsumer<Self>, partitions: &TopicPartitionList) {
        let shards = shards(partitions);
        let (done, is_done) = bounded(1);
        let lost = consumer.assignment_lost();
        if lost {
            ShardsLost {
                worker: &self.name,
                shards: &shards,
            }
            .emit(&self.metrics);
        } else {
            ShardsRevoked {
                worker: &self.name,
                shards: &shards,
            }
            .emit(&self.metrics);
        }
        let reading = Reading::Revoked { shards, lost, done };
        if self.readings.send(reading).is_ok() {
            // An error says the same as a word: the drive has let go.
            let _ = is_done.recv();
        }
    }
}

/// The shards of `partitions`, each once.
fn shards(partitions: &TopicPartitionList) -> Vec<i32> {
    let elements = partitions.elements();
    let shards: BTreeSet<i32> = elements
        .iter()
        .map(TopicPartitionListElem::partition)
        .collect();
    shards.into_iter().collect()
}
