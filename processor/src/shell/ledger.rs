//! The ledger: writes what was decided, and the offsets it was decided for.
//!
//! One implementation for each guarantee; here is what they share. Invariants: no offset is committed before what it is the
//! consequence of is durable, and none for a shard that is not ours.

mod at_least_once;
mod transactional;

use std::collections::BTreeMap;
use std::mem;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use crossbeam_channel::Receiver;
use rdkafka::ClientConfig;
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{DeliveryResult, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer, ProducerContext};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use retide_core::{Alert, Entry, Header, LaneId};
use retide_native as native;

use crate::client::{complained, logged};
use crate::shell::encode::{Encoder, Parts, Place, Scratch};

pub use at_least_once::AtLeastOnce;
pub use transactional::Transactional;

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
    pub headers: OutHeaders,
}

/// When a record is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum RecordKind {
    /// As soon as may be.
    Consequence,
    /// When the batch before is committed: of two records of a key, the one of the later batch has to be the later one in the log, too,
    /// since that is the one which stays.
    Order,
}

/// Headers of a record to write, in one piece of memory however many they are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OutHeaders {
    /// Names and values, one after the other.
    bytes: Vec<u8>,
    /// The ends of each name and value in `bytes`; the value has none if there is no value.
    ends: Vec<(usize, Option<usize>)>,
}

/// The consequence of one offset.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settled {
    /// The shard of the offset, and that in which its task entered.
    pub place: Place,
    /// The offset, if it is to be said of it which form was written.
    pub offset: Option<(LaneId, i64)>,
    /// The records to write. If there is another form of them, the first is the one that may be refused; the others rest on it.
    pub records: Content,
    /// The records to write instead if the topic of one of those refuses it; empty if that cannot be.
    pub otherwise: Content,
}

/// Records to write, encoded or not: who writes them encodes them one by one, so that a batch never exists as bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// What was decided.
    Entries(Vec<Entry>),
    /// What a human must know.
    Alert(Alert),
    /// Records as they are written.
    Records(Vec<OutRecord>),
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
        /// The consequences that were written in their other form, since a topic refused the first one: their offsets, where they are known.
        refused: Vec<Option<(LaneId, i64)>>,
    },
    /// None of its shards is ours any more; nothing was committed.
    Dropped,
}

/// Collects the headers of a record, in order.
trait Collect: Default {
    /// Adds a header behind those that are there.
    fn add(&mut self, name: &[u8], value: Option<&[u8]>);
}

/// Headers as the client takes them.
struct ClientHeaders(OwnedHeaders);

/// Writes batches durably, in order. One of the four seams.
pub trait Ledger: Send {
    /// Hands over a batch; waits while two are under way.
    fn submit(&mut self, batch: Batch);

    /// What became of the batches, one receipt each, in order.
    fn receipts(&self) -> &Receiver<Receipt>;

    /// Whether the order of tasks may be written: nothing of a former owner's gets in later.
    fn keeps_order(&self) -> bool;

    /// Waits for the batches under way and ends.
    fn stop(self)
    where
        Self: Sized;
}

/// The shards whose offsets may be committed: taken by the drive at assignment, given up before anyone else has them.
#[derive(Debug, Default)]
pub struct Ownership {
    /// The shards and how often we have had each of them: a shard that was away in between is another one.
    shards: Mutex<Shards>,
    /// Locked while offsets are on their way whose commit no generation guards.
    commit: Mutex<()>,
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

/// Collects the deliveries that failed.
#[derive(Debug, Default)]
struct Deliveries {
    /// The index in the batch and the error.
    failed: Mutex<Vec<(usize, KafkaError)>>,
}

/// Longest wait for one call to a producer; in a transaction, a producer that takes longer is made anew.
const CALL: Duration = Duration::from_secs(10);

/// Pause between two looks for acknowledgements: nothing beside what a commit takes, and a wake-up costs little beside it.
const STEP: Duration = Duration::from_micros(500);

/// Pause before a batch is written again: a rebalance or an election takes longer than a few milliseconds.
const AGAIN: Duration = Duration::from_millis(50);

// === impl Content ===

impl Content {
    /// Nothing to write.
    pub const fn none() -> Self {
        Self::Entries(Vec::new())
    }

    /// Whether there is nothing to write.
    pub const fn is_empty(&self) -> bool {
        match self {
            Self::Entries(entries) => entries.is_empty(),
            Self::Alert(_) => false,
            Self::Records(records) => records.is_empty(),
        }
    }

    /// Whether any of it is of this kind.
    fn has(&self, kind: RecordKind) -> bool {
        match self {
            Self::Entries(entries) => entries.iter().any(|entry| RecordKind::of(entry) == kind),
            Self::Alert(_) | Self::Records(_) => kind == RecordKind::Consequence,
        }
    }

    /// Hands each record of this kind to `write`: its parts and its headers.
    ///
    /// # Panics
    /// If an entry has no encoding: a broken invariant of the codec.
    fn each<H: Collect, E>(
        &self,
        kind: RecordKind,
        place: Place,
        encoder: &Encoder,
        scratch: &mut Scratch,
        mut write: impl FnMut(Parts<'_>, H) -> Result<(), E>,
    ) -> Result<(), E> {
        match self {
            Self::Entries(entries) => {
                for entry in entries.iter().filter(|entry| RecordKind::of(entry) == kind) {
                    let mut headers = H::default();
                    let sink = &mut |name: &[u8], value: Option<&[u8]>| headers.add(name, value);
                    let parts = encoder.entry(place, entry, scratch, sink);
                    if let Some(parts) = parts.unwrap_or_else(|error| unreachable!("{error}")) {
                        write(parts, headers)?;
                    }
                }
            }
            // All but the entries of a decision are of one kind.
            Self::Alert(_) | Self::Records(_) if kind == RecordKind::Order => {}
            Self::Alert(alert) => {
                let mut headers = H::default();
                let sink = &mut |name: &[u8], value: Option<&[u8]>| headers.add(name, value);
                let parts = encoder.alert(place.shard, alert, scratch, sink);
                write(
                    parts.unwrap_or_else(|error| unreachable!("{error}")),
                    headers,
                )?;
            }
            Self::Records(records) => {
                for record in records {
                    let mut headers = H::default();
                    for (name, value) in record.headers.iter() {
                        headers.add(name, value);
                    }
                    write(record.parts(), headers)?;
                }
            }
        }
        Ok(())
    }
}

// === impl RecordKind ===

impl RecordKind {
    /// The kind of an entry's record.
    const fn of(entry: &Entry) -> Self {
        match entry {
            Entry::Park { .. }
            | Entry::Deliver { .. }
            | Entry::DeadLetter { .. }
            | Entry::Poison { .. }
            | Entry::Callback(_)
            | Entry::DeliverCallback(_)
            | Entry::Event(_)
            | Entry::Alert(_) => Self::Consequence,
            Entry::Order(_) => Self::Order,
        }
    }
}

// === impl OutHeaders ===

impl OutHeaders {
    /// Adds a header behind those that are there.
    pub fn push(&mut self, name: &[u8], value: Option<&[u8]>) {
        self.bytes.extend_from_slice(name);
        let name_end = self.bytes.len();
        let value_end = value.map(|value| {
            self.bytes.extend_from_slice(value);
            self.bytes.len()
        });
        self.ends.push((name_end, value_end));
    }

    /// Names and values, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], Option<&[u8]>)> {
        let mut start = 0;
        self.ends.iter().map(move |&(name_end, value_end)| {
            let name = &self.bytes[start..name_end];
            start = value_end.unwrap_or(name_end);
            (name, value_end.map(|end| &self.bytes[name_end..end]))
        })
    }
}

impl Collect for OutHeaders {
    fn add(&mut self, name: &[u8], value: Option<&[u8]>) {
        self.push(name, value);
    }
}

// === impl ClientHeaders ===

impl Default for ClientHeaders {
    fn default() -> Self {
        // As many as a parked task has, and a few of the producer's.
        Self(OwnedHeaders::new_with_capacity(16))
    }
}

impl Collect for ClientHeaders {
    fn add(&mut self, name: &[u8], value: Option<&[u8]>) {
        native::headers::add(&mut self.0, name, value);
    }
}

impl FromIterator<Header> for OutHeaders {
    fn from_iter<I: IntoIterator<Item = Header>>(headers: I) -> Self {
        let mut all = Self::default();
        for Header { name, value } in headers {
            all.push(name.as_bytes(), value.as_deref());
        }
        all
    }
}

// === impl OutRecord ===

impl OutRecord {
    /// A record to keep.
    fn new(parts: Parts<'_>, headers: OutHeaders) -> Self {
        Self {
            topic: Arc::clone(parts.topic),
            partition: parts.partition,
            key: parts.key.map(Bytes::copy_from_slice),
            value: parts.value.map(Bytes::copy_from_slice),
            headers,
        }
    }

    /// The record as the client takes it; `index` comes back with its delivery.
    pub(crate) fn to_produce(&self, index: usize) -> BaseRecord<'_, [u8], [u8], usize> {
        let mut headers = ClientHeaders::default();
        for (name, value) in self.headers.iter() {
            headers.add(name, value);
        }
        to_produce(self.parts(), headers, index)
    }

    /// The record but for its headers.
    fn parts(&self) -> Parts<'_> {
        Parts {
            topic: &self.topic,
            partition: self.partition,
            key: self.key.as_deref(),
            value: self.value.as_deref(),
        }
    }
}

/// A record as the client takes it; `index` comes back with its delivery.
fn to_produce(
    parts: Parts<'_>,
    ClientHeaders(headers): ClientHeaders,
    index: usize,
) -> BaseRecord<'_, [u8], [u8], usize> {
    let mut out = BaseRecord::with_opaque_to(parts.topic, index);
    out.headers = Some(headers);
    out.partition = parts.partition;
    out.key = parts.key;
    out.payload = parts.value;
    out
}

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

    /// The shard is ours no more: what is not committed for it yet will not be. Waits for a commit that is held.
    pub fn give_up(&self, shard: i32) {
        lock(&self.shards).owned.remove(&shard);
        drop(lock(&self.commit));
    }

    /// Shards found to be ours from here on are not given up before the guard is dropped.
    fn hold(&self) -> MutexGuard<'_, ()> {
        lock(&self.commit)
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
    /// A batch that is handed over now.
    fn new(batch: Batch, ownership: &Ownership) -> Self {
        Self {
            batch,
            epochs: ownership.epochs(),
            since: Instant::now(),
        }
    }

    /// Drops what belongs to shards that are not ours, or have been away since.
    fn keep_owned(&mut self, ownership: &Ownership) {
        let Self { batch, epochs, .. } = self;
        batch
            .settled
            .retain(|settled| ownership.still_has(settled.place.shard, epochs));
        batch
            .progress
            .retain(|progress| ownership.still_has(progress.shard, epochs));
    }

    /// Whether all of its shards are still ours.
    fn is_owned(&self, ownership: &Ownership) -> bool {
        let progress = self.batch.progress.iter().map(|progress| progress.shard);
        let settled = self.batch.settled.iter().map(|settled| settled.place.shard);
        progress
            .chain(settled)
            .all(|shard| ownership.still_has(shard, &self.epochs))
    }
}

/// The configuration of a producer: the user's, and what every guarantee needs.
pub(crate) fn producer_config(config: &ClientConfig) -> ClientConfig {
    let mut config = config.clone();
    for (key, value) in [
        ("enable.idempotence", "true"),
        ("compression.type", "lz4"),
        ("partitioner", "murmur2_random"),
        // The client's default: who writes one batch at a time, or hands over as it reads, would leave the broker idle otherwise.
        ("linger.ms", "5"),
        // A topic that does not exist is found out well within one call.
        ("topic.metadata.propagation.max.ms", "2000"),
        // Below the broker's default limit of 1 MiB for a batch; a larger record travels alone.
        ("batch.size", "900000"),
        // Whether a record is too large is the topic's to say.
        ("message.max.bytes", "10000000"),
    ] {
        config.set(key, value);
    }
    config
}

/// Hands a record to the producer, waiting while its queue is full. A refusal is collected like a failed delivery.
fn produce(
    producer: &BaseProducer<Deliveries>,
    mut out: BaseRecord<'_, [u8], [u8], usize>,
) -> Result<(), KafkaError> {
    let index = out.delivery_opaque;
    // No look at the clock unless the queue is full.
    let mut deadline = None;
    while let Err((error, again)) = producer.send(out) {
        match error.rdkafka_error_code() {
            Some(RDKafkaErrorCode::QueueFull)
                if Instant::now() < *deadline.get_or_insert_with(|| Instant::now() + CALL) =>
            {
                producer.poll(Duration::from_millis(10));
                out = again;
            }
            Some(code) if is_refusal(code) => {
                lock(&producer.context().failed).push((index, error));
                return Ok(());
            }
            _ => return Err(error),
        }
    }
    Ok(())
}

/// Waits until every record is acknowledged or has failed, at most [`CALL`].
///
/// [`Producer::flush`] of the client polls in steps of 100 ms. A poll ends no earlier than asked for, which would be most of the time of a
/// commit, and it spins for its last millisecond, which would be a core: none is asked to wait here.
pub(crate) fn flush<C: ProducerContext>(producer: &BaseProducer<C>) -> Result<(), KafkaError> {
    let deadline = Instant::now() + CALL;
    let mut left = producer.in_flight_count();
    while let Err(error) = producer.flush(Duration::ZERO) {
        if Instant::now() >= deadline {
            return Err(error);
        }
        // Takes one bundle of acknowledgements, if there is one.
        producer.poll(Duration::ZERO);
        let before = mem::replace(&mut left, producer.in_flight_count());
        if left == before {
            thread::sleep(STEP);
        }
    }
    Ok(())
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

/// Locks what no panic leaves half-changed.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

// === impl Deliveries ===

impl ClientContext for Deliveries {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        logged(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        complained(&error, reason);
    }
}

impl ProducerContext for Deliveries {
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, index: usize) {
        if let Err((error, _)) = result {
            lock(&self.failed).push((index, error.clone()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shard_is_not_given_up_in_the_middle_of_a_commit() {
        // Only the right order passes every time.
        for _ in 0..100 {
            let ownership = Ownership::default();
            let order = Mutex::new(Vec::new());
            ownership.take(0);
            let epochs = ownership.epochs();

            let commit = ownership.hold();
            thread::scope(|scope| {
                scope.spawn(|| {
                    ownership.give_up(0);
                    lock(&order).push("given up");
                });
                while ownership.still_has(0, &epochs) {
                    thread::yield_now();
                }
                thread::yield_now();
                lock(&order).push("committed");
                drop(commit);
            });

            assert_eq!(*lock(&order), ["committed", "given up"]);
        }
    }
}
