//! The ledger: writes what was decided, and the offsets it was decided for, in one transaction.
//!
//! Two writers take batches in turn, so that one fills its transaction while the other commits. Invariants: batches commit strictly in
//! order; a batch is written again from memory until it is durable or its shards are no longer ours; whether a transaction that was
//! lost sight of has committed is read from the group's offsets, never guessed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use bytes::Bytes;
use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use rdkafka::ClientConfig;
use rdkafka::client::ClientContext;
use rdkafka::consumer::Consumer;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{DeliveryResult, Header as OutHeader, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer, ProducerContext};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use tracing::{error, warn};

use retide_core::Header;

use crate::shell::feed;

/// A record to write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutRecord {
    /// The topic.
    pub topic: Arc<str>,
    /// The partition; none leaves it to the key.
    pub partition: Option<i32>,
    /// The key.
    pub key: Option<Bytes>,
    /// The value.
    pub value: Option<Bytes>,
    /// The headers, in order.
    pub headers: Vec<Header>,
}

/// The consequence of one offset.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settled {
    /// The shard of the offset.
    pub shard: i32,
    /// The records to write.
    pub records: Vec<OutRecord>,
    /// The records to write instead if the topic of one of those refuses it; empty if that cannot be.
    pub otherwise: Vec<OutRecord>,
}

/// The next offset of one partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Progress {
    /// The topic.
    pub topic: Arc<str>,
    /// The partition, which is the shard.
    pub shard: i32,
    /// The next offset to read.
    pub next: i64,
    /// The completions above it, as text.
    pub metadata: String,
}

/// What is committed together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// The consequences.
    pub settled: Vec<Settled>,
    /// The offsets they are the consequences of.
    pub progress: Vec<Progress>,
}

/// What became of a batch. Receipts come in the order of the batches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Receipt {
    /// It is durable, as far as its shards were still ours.
    Committed {
        /// How long that took, from the batch's submission.
        took: Duration,
        /// How many consequences were written in their other form, since a topic refused the first one.
        refused: usize,
    },
    /// None of its shards is ours any more; nothing was written.
    Dropped,
}

/// Writes batches durably, in order. One of the four seams.
pub trait Ledger: Send {
    /// Hands over a batch; waits while two are under way.
    fn submit(&mut self, batch: Batch);

    /// What became of the batches, one receipt each, in order.
    fn receipts(&self) -> &Receiver<Receipt>;
}

/// The shards whose offsets may be committed: taken by the drive at assignment, given up before anyone else has them.
#[derive(Debug, Default)]
pub struct Ownership {
    /// The shards and how often we have had each of them: a shard that was away in between is another one.
    shards: Mutex<Shards>,
}

/// The shards that are ours.
#[derive(Debug, Default)]
struct Shards {
    /// Each with the epoch in which it was taken.
    owned: BTreeMap<i32, u64>,
    /// The latest epoch.
    epoch: u64,
}

/// A batch on its way to a writer.
struct Submitted {
    /// What to write.
    batch: Batch,
    /// The epochs of the shards that were ours when it was submitted.
    epochs: BTreeMap<i32, u64>,
    /// When it was submitted.
    since: Instant,
}

/// The ledger of the `exactly_once` guarantee.
pub struct Transactional {
    /// To the two writers, in turn.
    batches: Vec<Sender<Submitted>>,
    /// Whose turn it is to get a batch.
    next: usize,
    /// From the writers.
    receipts: Receiver<Receipt>,
    /// The shards that are ours.
    ownership: Arc<Ownership>,
    /// The writers' threads.
    threads: Vec<JoinHandle<()>>,
}

/// One writer: a transactional producer and what it needs to start over.
struct Writer {
    /// The producer's configuration, with its transactional id.
    config: ClientConfig,
    /// The producer, unless it was given up and not made again yet.
    producer: Option<BaseProducer<Deliveries>>,
    /// The group whose offsets are committed.
    group: Arc<feed::Client>,
    /// The shards that are ours.
    ownership: Arc<Ownership>,
}

/// The right to commit: held by one writer at a time, in the order of the batches.
struct Turn {
    /// Receives the right.
    take: Receiver<()>,
    /// Passes it on.
    pass: Sender<()>,
    /// Whether it is held.
    held: bool,
}

/// Collects the deliveries that failed.
#[derive(Debug, Default)]
struct Deliveries {
    /// The index in the batch and the error.
    failed: Mutex<Vec<(usize, KafkaError)>>,
}

/// Why a batch was not committed.
#[derive(Debug)]
enum Trouble {
    /// The transaction can be aborted and the batch written again.
    Abortable(KafkaError),
    /// A shard of it was given up meanwhile.
    GivenUp,
    /// Topics refuse the records of these consequences; others would be accepted.
    Refused(BTreeSet<usize>),
    /// Nobody knows what became of the transaction, or the producer is of no use any more.
    Unknown(KafkaError),
}

/// Longest wait for one call of the transaction protocol; longer, and its producer is made anew.
const CALL: Duration = Duration::from_secs(10);

/// How long an open transaction may live, in milliseconds: after a crash it holds back readers of its partitions for as long.
const TRANSACTION_TIMEOUT: &str = "10000";

/// Pause before a batch is written again: a rebalance or an election takes longer than a few milliseconds.
const AGAIN: Duration = Duration::from_millis(50);

// === impl Ownership ===

impl Ownership {
    /// The shard is ours. Batches of the time before it was given up stay dropped.
    pub fn take(&self, shard: i32) {
        let mut shards = lock(&self.shards);
        if !shards.owned.contains_key(&shard) {
            shards.epoch += 1;
            let epoch = shards.epoch;
            shards.owned.insert(shard, epoch);
        }
    }

    /// The shard is ours no more: what is not committed for it yet will not be.
    pub fn give_up(&self, shard: i32) {
        lock(&self.shards).owned.remove(&shard);
    }

    /// Our shards, each with its epoch.
    fn epochs(&self) -> BTreeMap<i32, u64> {
        lock(&self.shards).owned.clone()
    }

    /// Whether the shard has been ours without a break since `epochs`.
    fn still_has(&self, shard: i32, epochs: &BTreeMap<i32, u64>) -> bool {
        let since = epochs.get(&shard);
        since.is_some() && lock(&self.shards).owned.get(&shard) == since
    }
}

// === impl Batch ===

impl Batch {
    /// Whether there is nothing to commit.
    pub fn is_empty(&self) -> bool {
        self.progress.is_empty()
    }

    /// The offsets as the client wants them.
    fn offsets(&self) -> Result<TopicPartitionList, KafkaError> {
        let mut list = TopicPartitionList::with_capacity(self.progress.len());
        for progress in &self.progress {
            let Progress {
                topic,
                shard,
                next,
                metadata,
            } = progress;
            list.add_partition_offset(topic, *shard, Offset::Offset(*next))?;
            if let Some(mut element) = list.find_partition(topic, *shard) {
                element.set_metadata(metadata.as_str());
            }
        }
        Ok(list)
    }
}

// === impl Submitted ===

impl Submitted {
    /// Drops what belongs to shards that are not ours, or have been away since.
    fn keep_owned(&mut self, ownership: &Ownership) {
        let Self { batch, epochs, .. } = self;
        batch
            .settled
            .retain(|settled| ownership.still_has(settled.shard, epochs));
        batch
            .progress
            .retain(|progress| ownership.still_has(progress.shard, epochs));
    }

    /// Whether all of its shards are still ours.
    fn is_owned(&self, ownership: &Ownership) -> bool {
        let progress = self.batch.progress.iter().map(|progress| progress.shard);
        let settled = self.batch.settled.iter().map(|settled| settled.shard);
        progress
            .chain(settled)
            .all(|shard| ownership.still_has(shard, &self.epochs))
    }
}

// === impl Transactional ===

impl Transactional {
    /// Starts the two writers. `config` is the producer's, `id` the prefix of their transactional ids, unique to this worker.
    ///
    /// # Errors
    /// If the configuration is refused, no transaction can be initialised within 10 s, or a thread cannot be started.
    pub fn start(
        config: &ClientConfig,
        id: &str,
        group: &Arc<feed::Client>,
        ownership: &Arc<Ownership>,
    ) -> Result<Self, KafkaError> {
        let (to_drive, receipts) = unbounded();
        let (first_pass, second_take) = bounded(1);
        let (second_pass, first_take) = bounded(1);
        // The first batch is the first writer's, and so is the first turn.
        let _ = second_pass.send(());
        let turns = [(first_take, first_pass), (second_take, second_pass)];
        let (mut batches, mut threads) = (Vec::new(), Vec::new());
        for (number, (take, pass)) in turns.into_iter().enumerate() {
            let mut writer = Writer::new(config, &format!("{id}-{number}"), group, ownership);
            writer.ready()?;
            let mut turn = Turn {
                take,
                pass,
                held: false,
            };
            // One under way at each writer, none waiting: the drive collects meanwhile.
            let (to_writer, from_drive) = bounded::<Submitted>(0);
            let to_drive = to_drive.clone();
            let thread = thread::Builder::new()
                .name(format!("ledger-{number}"))
                .spawn(move || {
                    while let Ok(submitted) = from_drive.recv() {
                        let receipt = writer.write(submitted, &mut turn);
                        // Receipts come in order, also of a batch that came to nothing.
                        turn.take();
                        let _ = to_drive.send(receipt);
                        turn.pass();
                    }
                })
                .map_err(|error| KafkaError::ClientCreation(error.to_string()))?;
            batches.push(to_writer);
            threads.push(thread);
        }
        Ok(Self {
            batches,
            next: 0,
            receipts,
            ownership: Arc::clone(ownership),
            threads,
        })
    }

    /// Waits for the batches under way and ends the writers.
    pub fn stop(self) {
        drop(self.batches);
        for thread in self.threads {
            if thread.join().is_err() {
                error!("ledger writer panicked");
            }
        }
    }
}

impl Ledger for Transactional {
    fn submit(&mut self, batch: Batch) {
        let writer = &self.batches[self.next];
        self.next = (self.next + 1) % self.batches.len();
        let submitted = Submitted {
            batch,
            epochs: self.ownership.epochs(),
            since: Instant::now(),
        };
        writer
            .send(submitted)
            .unwrap_or_else(|_| unreachable!("a writer ended before its ledger"));
    }

    fn receipts(&self) -> &Receiver<Receipt> {
        &self.receipts
    }
}

// === impl Turn ===

impl Turn {
    /// Waits for the right to commit.
    fn take(&mut self) {
        if !self.held {
            // The other writer gone means that nothing is before us.
            let _ = self.take.recv();
            self.held = true;
        }
    }

    /// Gives the right to the other writer.
    fn pass(&mut self) {
        self.take();
        self.held = false;
        let _ = self.pass.try_send(());
    }
}

// === impl Writer ===

impl Writer {
    /// A writer whose producer is still to be made.
    fn new(
        config: &ClientConfig,
        id: &str,
        group: &Arc<feed::Client>,
        ownership: &Arc<Ownership>,
    ) -> Self {
        let mut config = config.clone();
        for (key, value) in [
            ("transactional.id", id),
            ("transaction.timeout.ms", TRANSACTION_TIMEOUT),
            ("enable.idempotence", "true"),
            ("compression.type", "lz4"),
            ("partitioner", "murmur2_random"),
            ("linger.ms", "2"),
            // A topic that does not exist is found out well within one call.
            ("topic.metadata.propagation.max.ms", "2000"),
            // Below the broker's default limit of 1 MiB for a batch; a larger record travels alone.
            ("batch.size", "900000"),
            // Whether a record is too large is the topic's to say.
            ("message.max.bytes", "10000000"),
        ] {
            config.set(key, value);
        }
        Self {
            config,
            producer: None,
            group: Arc::clone(group),
            ownership: Arc::clone(ownership),
        }
    }

    /// Makes the producer if there is none. Its transactional id ends whatever its predecessor left open.
    fn ready(&mut self) -> Result<&BaseProducer<Deliveries>, KafkaError> {
        if self.producer.is_none() {
            let producer: BaseProducer<Deliveries> =
                self.config.create_with_context(Deliveries::default())?;
            producer.init_transactions(CALL)?;
            self.producer = Some(producer);
        }
        self.producer.as_ref().ok_or(KafkaError::Canceled)
    }

    /// Writes a batch until it is durable, or nothing of it is ours.
    fn write(&mut self, mut submitted: Submitted, turn: &mut Turn) -> Receipt {
        let since = submitted.since;
        let mut refused = 0;
        loop {
            submitted.keep_owned(&self.ownership);
            if submitted.batch.is_empty() {
                return Receipt::Dropped;
            }
            match self.try_write(&submitted, turn) {
                Ok(()) => {
                    return Receipt::Committed {
                        took: since.elapsed(),
                        refused,
                    };
                }
                Err(Trouble::Refused(indices)) => {
                    refused += indices.len();
                    for index in indices {
                        let settled = &mut submitted.batch.settled[index];
                        settled.records = std::mem::take(&mut settled.otherwise);
                    }
                    self.abort();
                }
                Err(Trouble::GivenUp) => self.abort(),
                Err(Trouble::Abortable(error)) => {
                    warn!(%error, "transaction aborted, writing its batch again");
                    self.abort();
                    thread::sleep(AGAIN);
                }
                Err(Trouble::Unknown(error)) => {
                    warn!(%error, "transaction lost sight of, starting a new producer");
                    self.producer = None;
                    if self.settle_doubt(&mut submitted) {
                        return Receipt::Committed {
                            took: since.elapsed(),
                            refused,
                        };
                    }
                    thread::sleep(AGAIN);
                }
            }
        }
    }

    /// One transaction: records, turn, offsets, commit.
    fn try_write(&mut self, submitted: &Submitted, turn: &mut Turn) -> Result<(), Trouble> {
        let batch = &submitted.batch;
        let group = Arc::clone(&self.group);
        let ownership = Arc::clone(&self.ownership);
        let producer = self.ready().map_err(Trouble::Unknown)?;
        producer.begin_transaction().map_err(classify)?;
        for (index, settled) in batch.settled.iter().enumerate() {
            for record in &settled.records {
                produce(producer, record, index)?;
            }
        }
        producer.flush(CALL).map_err(classify)?;
        let failed = std::mem::take(&mut *lock(&producer.context().failed));
        if !failed.is_empty() {
            return Err(refusals(batch, failed));
        }
        turn.take();
        let offsets = batch.offsets().map_err(Trouble::Abortable)?;
        let membership = group
            .group_metadata()
            .ok_or(Trouble::Abortable(KafkaError::Canceled))?;
        // After the membership, and again: the batch before may have been dropped, and this one must not commit past it. A shard that
        // goes from here on ends the generation just read, and the broker refuses it.
        if !submitted.is_owned(&ownership) {
            return Err(Trouble::GivenUp);
        }
        producer
            .send_offsets_to_transaction(&offsets, &membership, CALL)
            .map_err(classify)?;
        producer.commit_transaction(CALL).map_err(classify)
    }

    /// Aborts the open transaction; gives the producer up if that fails.
    fn abort(&mut self) {
        let Some(producer) = &self.producer else {
            return;
        };
        if let Err(error) = producer.abort_transaction(CALL) {
            warn!(%error, "abort failed, starting a new producer");
            self.producer = None;
            return;
        }
        // Records purged by the abort report themselves as failed.
        producer.poll(Duration::ZERO);
        lock(&producer.context().failed).clear();
    }

    /// Whether a batch whose transaction was lost sight of did commit: then, and only then, the group's offsets are its offsets.
    fn settle_doubt(&mut self, submitted: &mut Submitted) -> bool {
        loop {
            // What others own now, they may have committed further.
            submitted.keep_owned(&self.ownership);
            if submitted.batch.is_empty() {
                return false;
            }
            // The new producer's first act completes or aborts what the old one left; only then do the offsets stand still.
            match self
                .ready()
                .map(|_| ())
                .and_then(|()| self.committed(&submitted.batch))
            {
                Ok(committed) => return committed,
                Err(error) => {
                    warn!(%error, "fate of a transaction still unknown");
                    self.producer = None;
                    thread::sleep(AGAIN);
                }
            }
        }
    }

    /// Whether the group's offsets are those of `batch`.
    fn committed(&self, batch: &Batch) -> Result<bool, KafkaError> {
        let committed = self.group.committed_offsets(batch.offsets()?, CALL)?;
        for progress in &batch.progress {
            let Some(element) = committed.find_partition(&progress.topic, progress.shard) else {
                return Ok(false);
            };
            element.error()?;
            let offset = Offset::Offset(progress.next);
            if element.offset() != offset || element.metadata() != progress.metadata {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// Hands a record to the producer, waiting while its queue is full.
fn produce(
    producer: &BaseProducer<Deliveries>,
    record: &OutRecord,
    index: usize,
) -> Result<(), Trouble> {
    let deadline = Instant::now() + CALL;
    let mut headers = OwnedHeaders::new_with_capacity(record.headers.len());
    for Header { name, value } in &record.headers {
        headers = headers.insert(OutHeader {
            key: name,
            value: value.as_deref(),
        });
    }
    let mut out =
        BaseRecord::<[u8], [u8], usize>::with_opaque_to(&record.topic, index).headers(headers);
    out.partition = record.partition;
    out.key = record.key.as_deref();
    out.payload = record.value.as_deref();
    while let Err((error, again)) = producer.send(out) {
        match error.rdkafka_error_code() {
            Some(RDKafkaErrorCode::QueueFull) if Instant::now() < deadline => {
                producer.poll(Duration::from_millis(10));
                out = again;
            }
            Some(code) if is_refusal(code) => {
                lock(&producer.context().failed).push((index, error));
                return Ok(());
            }
            _ => return Err(classify(error)),
        }
    }
    Ok(())
}

/// What failed deliveries mean: refused, if each of them has another form; else the batch is written again.
fn refusals(batch: &Batch, failed: Vec<(usize, KafkaError)>) -> Trouble {
    let mut indices = BTreeSet::new();
    for (index, error) in failed {
        let refused = error.rdkafka_error_code().is_some_and(is_refusal);
        if !refused || batch.settled[index].otherwise.is_empty() {
            return Trouble::Abortable(error);
        }
        warn!(%error, "target topic refuses a record");
        indices.insert(index);
    }
    Trouble::Refused(indices)
}

/// Whether an error is about this record and topic, and will be the same next time.
fn is_refusal(code: RDKafkaErrorCode) -> bool {
    matches!(
        code,
        RDKafkaErrorCode::UnknownTopic
            | RDKafkaErrorCode::UnknownTopicOrPartition
            | RDKafkaErrorCode::UnknownPartition
            | RDKafkaErrorCode::TopicAuthorizationFailed
            | RDKafkaErrorCode::MessageSizeTooLarge
            | RDKafkaErrorCode::InvalidRecord
            | RDKafkaErrorCode::PolicyViolation
            | RDKafkaErrorCode::InvalidTopic
    )
}

/// What an error of the transaction protocol means for the transaction.
fn classify(error: KafkaError) -> Trouble {
    match &error {
        KafkaError::Transaction(cause) if cause.txn_requires_abort() => Trouble::Abortable(error),
        // Timed out, fatal or fenced. A call that timed out may still take effect: on a transaction that comes after it, if the
        // producer were kept.
        _ => Trouble::Unknown(error),
    }
}

/// Locks what no panic leaves half-changed.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

// === impl Deliveries ===

impl ClientContext for Deliveries {}

impl ProducerContext for Deliveries {
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, index: usize) {
        if let Err((error, _)) = result {
            lock(&self.failed).push((index, error.clone()));
        }
    }
}
