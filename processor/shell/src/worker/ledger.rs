//! The ledger: writes what was decided, and the offsets it was decided for.
//!
//! One implementation for each guarantee; here is what they share. Invariants: no offset is committed before what it is the
//! consequence of is durable, and none for a shard that is not ours.

mod at_least_once;
mod transactional;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::convert::Infallible;
use std::mem;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::Receiver;
use rdkafka::ClientConfig;
use rdkafka::client::{Client, ClientContext};
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::Consumer;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{DeliveryResult, Message};
use rdkafka::metadata::MetadataTopic;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer, ProducerContext};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use tracing::debug;

use retide_core::step::Applied;
use retide_core::{Alert, Ended, Entry, Failure, LaneId, Omitted, Sink, Sinks, alert};
use retide_kafka::client::{complained, is_missing, logged};
use retide_kafka::failure::{is_of_record, is_of_size, is_refusal, wants_keys, word};
use retide_kafka::producer::{CALL, STEP};
use retide_kafka::record::{Collect, OutRecord, Parts};

use crate::worker::encode::{Encoder, Place, Scratch};
use crate::worker::group;
use crate::worker::readable::Readability;
use crate::writable::{By, Cause, TargetState, Writability};

pub use at_least_once::AtLeastOnce;
pub use transactional::Transactional;

/// When a record is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum RecordKind {
    /// As soon as may be.
    Consequence,
    /// When the batch before is committed: of two records of a key, the one of the later batch has to be the later one in the log, too,
    /// since that is the one which stays.
    Order,
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
    /// Whether that is so.
    pub refused: bool,
    /// The commands that it follows from.
    pub applied: Vec<Applied>,
}

/// Records to write, encoded or not: who writes them encodes them one by one, so that a batch never exists as bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// What was decided.
    Entries(Vec<Entry>),
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
    /// Whether it has consequences of offsets that are not among [`Self::progress`], so that these do not say whether it was written.
    pub has_more: bool,
    /// How many batches have been returned, as far as is known to whoever made this one: it rests on all others.
    pub returns: u64,
}

/// What became of a batch. Receipts come in the order of the batches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Receipt {
    /// It is durable, as far as its shards were still ours.
    Committed {
        /// How long that took, from the batch's submission.
        took: Duration,
        /// The consequences that were written in their other form, since a topic refused the first one.
        refused: Vec<Settled>,
    },
    /// None of its shards is ours any more; nothing was committed.
    Dropped,
    /// It cannot be written as it is. Nothing was committed, and no batch that was handed over before this was said.
    Returned(Box<ReturnedBatch>),
}

/// A batch that was not written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReturnedBatch {
    /// What stood in it, as far as its shards are still ours.
    pub settled: Vec<Settled>,
    /// Those with a record that is refused for good, by their index: where it was to be written, and what the broker said.
    pub refused: BTreeMap<usize, (Sink, Failure)>,
    /// Those that are durable all the same, by their index: nothing of them is to be written again.
    pub written: BTreeSet<usize>,
    /// The part of its records that were acknowledged in the time it had, if that was too short.
    pub slow: Option<Share>,
}

/// A part of a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    /// The part.
    pub done: usize,
    /// The whole.
    pub of: usize,
}

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
pub(crate) struct Deliveries {
    /// Records that were not delivered.
    failed: Mutex<Vec<Failed>>,
    /// Topics that the client could not add to its transaction, with the reason: it says so in its log only.
    unregistered: Mutex<BTreeMap<String, RDKafkaErrorCode>>,
}

/// What a client says of a record that was not delivered.
#[derive(Clone, Debug)]
pub(crate) struct Failed {
    /// The number of the record.
    number: usize,
    /// The topic that it was written to.
    topic: String,
    /// What was said of it.
    error: KafkaError,
}

/// A record that was not delivered.
#[derive(Debug)]
struct Undelivered {
    /// The consequence it is part of, by its index in the batch.
    settled: usize,
    /// The record.
    record: OutRecord,
    /// Whether nothing more can be left out of it.
    is_least: bool,
    /// What was said of it.
    error: KafkaError,
}

/// What records that were not delivered mean for their batch.
#[derive(Debug, Default)]
struct Verdict {
    /// Consequences that take their other form, by their index.
    replaced: BTreeSet<usize>,
    /// Consequences whose record is refused for good.
    refused: BTreeMap<usize, (Sink, Failure)>,
    /// Whether a topic of retide was closed.
    closed: bool,
    /// Whether several records were refused together, of which some might be taken alone.
    mixed: bool,
    /// An error that may pass.
    passing: Option<KafkaError>,
}

/// How far the client's batches have to be taken apart for each record to be refused or taken by itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
enum Pieces {
    /// As large as brokers take them by default.
    #[default]
    Large,
    /// A few records.
    Small,
    /// One record each.
    Single,
}

/// How waiting for acknowledgements came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flushed {
    /// All records are acknowledged or have failed.
    All,
    /// Some have failed, and the others get nowhere.
    Failed,
    /// Time is up; so many are left.
    TimedOut(usize),
}

/// Longest wait for what the cluster says of a target.
const ASK: Duration = Duration::from_secs(1);

/// How long other failures are waited for after the first: those of requests under way.
const FAILURES: Duration = Duration::from_millis(50);

/// Records below this size, in bytes, are refused because of the limit of their topic, and not for their size.
const SMALL_RECORD: usize = 16 << 10;

/// Bytes of the client's batches that are [`Pieces::Small`].
const SMALL_BATCH: &str = "100000";

/// How long batches stay in smaller pieces: one record that needs that does not slow all that come after it for long.
const IN_PIECES: Duration = Duration::from_mins(1);

/// Pause before a batch is written again: a rebalance or an election takes longer than a few milliseconds.
const AGAIN: Duration = Duration::from_millis(50);

// === impl Settled ===

impl Settled {
    /// The records to write.
    const fn form(&self) -> &Content {
        if self.refused {
            &self.otherwise
        } else {
            &self.records
        }
    }

    /// What people are told of tasks that died since a topic has refused them. No offset has it as its consequence, and a batch that is handed
    /// back does not have it: whether the topic refuses them is found out anew.
    fn of_refused((shard, alert): (i32, Box<Alert>)) -> Self {
        Self {
            place: Place::at(shard),
            offset: None,
            records: Content::none(),
            otherwise: Content::Entries(vec![Entry::Alert(alert)]),
            refused: true,
            applied: Vec::new(),
        }
    }

    /// Whether it is what people are told of tasks that died since a topic has refused them.
    const fn is_of_refused(&self) -> bool {
        self.refused && self.records.is_empty()
    }

    /// The dead letters of its form.
    fn dead(&self) -> impl Iterator<Item = (i32, &Ended)> {
        let entries: &[Entry] = match self.form() {
            Content::Entries(entries) => entries,
            Content::Records(_) => &[],
        };
        entries.iter().filter_map(|entry| match entry {
            Entry::DeadLetter { ended, .. } => Some((self.place.shard, &**ended)),
            Entry::Poison { .. }
            | Entry::Park { .. }
            | Entry::Deliver { .. }
            | Entry::Callback(_)
            | Entry::DeliverCallback(_)
            | Entry::Event(_)
            | Entry::State(_)
            | Entry::Control { .. }
            | Entry::Alert(_) => None,
        })
    }

    /// The topic of others that it delivers to, if it still does.
    fn target(&self) -> Option<&Arc<str>> {
        if self.refused || self.otherwise.is_empty() {
            return None;
        }
        match &self.records {
            Content::Entries(entries) => entries.iter().find_map(|entry| match entry {
                Entry::Deliver { topic, .. } => Some(topic),
                Entry::Park { .. }
                | Entry::DeadLetter { .. }
                | Entry::Poison { .. }
                | Entry::Callback(_)
                | Entry::DeliverCallback(_)
                | Entry::Event(_)
                | Entry::State(_)
                | Entry::Alert(_)
                | Entry::Control { .. } => None,
            }),
            Content::Records(records) => records.first().map(|record| &record.topic),
        }
    }

    /// Whether its dead letter is as small as it gets.
    fn is_least(&self) -> bool {
        let Content::Entries(entries) = self.form() else {
            return false;
        };
        entries.iter().any(|entry| match entry {
            Entry::DeadLetter { ended, .. } | Entry::Poison { ended, .. } => {
                ended.omitted == Omitted::Record
            }
            Entry::Park { .. }
            | Entry::Deliver { .. }
            | Entry::Callback(_)
            | Entry::DeliverCallback(_)
            | Entry::Event(_)
            | Entry::State(_)
            | Entry::Alert(_)
            | Entry::Control { .. } => false,
        })
    }
}

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
            Self::Records(records) => records.is_empty(),
        }
    }

    /// Whether any of it is of this kind.
    fn has(&self, kind: RecordKind) -> bool {
        match self {
            Self::Entries(entries) => entries.iter().any(|entry| RecordKind::of(entry) == kind),
            Self::Records(_) => kind == RecordKind::Consequence,
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
            Self::Records(_) if kind == RecordKind::Order => {}
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
            | Entry::Alert(_)
            | Entry::Control { .. } => Self::Consequence,
            Entry::State(_) => Self::Order,
        }
    }
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

    /// Tells people, with the batch, of the tasks that died since a topic has refused them: of all that are in it now.
    fn tell_of_refused(&mut self) {
        let settled = &mut self.batch.settled;
        settled.retain(|settled| !settled.is_of_refused());
        let all = settled.iter().enumerate();
        let refused = all.filter(|(_, settled)| settled.refused);
        let refused: Vec<usize> = refused.map(|(index, _)| index).collect();
        self.told_of(&refused);
    }

    /// Tells people, with the batch, of the tasks that died since a topic has refused them: of those with these indices. Gives the index of
    /// the first of what is told.
    fn told_of(&mut self, refused: &[usize]) -> usize {
        let settled = &mut self.batch.settled;
        let dead = refused.iter().flat_map(|index| settled[*index].dead());
        let told: Vec<_> = alert::of_dead(dead).map(Settled::of_refused).collect();
        let first = settled.len();
        settled.extend(told);
        first
    }

    /// Whether it needs a topic that takes no records.
    fn needs_closed(&self, writability: &Writability) -> bool {
        if writability.version() == 0 {
            return false;
        }
        let closed = writability.closed();
        let needs = |content: &Content| match content {
            Content::Entries(entries) => Sinks::of(entries).meets(closed),
            Content::Records(_) => false,
        };
        let mut settled = self.batch.settled.iter();
        !closed.is_empty() && settled.any(|settled| needs(settled.form()))
    }

    /// Whether its offsets cannot be committed, or those of its consequences.
    fn is_unreadable(&self, readability: &Readability) -> bool {
        if readability.version() == 0 {
            return false;
        }
        let unreadable = readability.unreadable();
        let is_denied = |settled: &Settled| {
            let lane = settled.offset.map(|(lane, _)| lane);
            lane.is_some_and(|lane| unreadable.is_denied(lane.source))
        };
        let mut progress = self.batch.progress.iter();
        progress.any(|of| unreadable.has_topic(&of.topic))
            || self.batch.settled.iter().any(is_denied)
    }

    /// What is handed back of it.
    fn returned(self) -> ReturnedBatch {
        returned(self.batch)
    }

    /// One of its records for `topic`.
    fn sample(&self, topic: &str, encoder: &Encoder) -> Option<OutRecord> {
        let mut scratch = Scratch::default();
        for settled in &self.batch.settled {
            for kind in [RecordKind::Consequence, RecordKind::Order] {
                let find = |parts: Parts<'_>, headers| {
                    if **parts.topic == *topic {
                        return Err(Box::new(OutRecord::new(parts, headers)));
                    }
                    Ok(())
                };
                let form = settled.form();
                if let Err(record) = form.each(kind, settled.place, encoder, &mut scratch, find) {
                    return Some(*record);
                }
            }
        }
        None
    }

    /// The records with these numbers, counted over all records of `kind`, and what was said of each.
    fn locate(&self, kind: RecordKind, encoder: &Encoder, failed: Vec<Failed>) -> Vec<Undelivered> {
        let failed = failed.into_iter().map(|failed| (failed.number, failed));
        let mut failed: HashMap<usize, Failed> = failed.collect();
        let (mut found, mut number, mut scratch) = (Vec::new(), 0, Scratch::default());
        for (index, settled) in self.batch.settled.iter().enumerate() {
            let keep = |parts: Parts<'_>, headers| {
                if let Some(Failed { topic, error, .. }) = failed.remove(&number) {
                    let mut record = OutRecord::new(parts, headers);
                    if *record.topic != *topic {
                        // Another tier has come to stand in for the one that it was written to.
                        record.topic = Arc::from(topic);
                    }
                    found.push(Undelivered {
                        settled: index,
                        record,
                        is_least: settled.is_least(),
                        error,
                    });
                }
                number += 1;
                Ok::<_, Infallible>(())
            };
            let form = settled.form();
            let Ok(()) = form.each(kind, settled.place, encoder, &mut scratch, keep);
        }
        found
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

    /// As [`Self::keep_owned`], of offsets only: what is written is known by its index.
    fn keep_owned_progress(&mut self, ownership: &Ownership) {
        let Self { batch, epochs, .. } = self;
        let is_ours = |progress: &Progress| ownership.still_has(progress.shard, epochs);
        batch.progress.retain(is_ours);
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

// === impl Verdict ===

impl Verdict {
    /// Takes in that a transaction may not write to `topics`; those of retide are closed with a record of `submitted` as their sample.
    fn unregistered(
        &mut self,
        topics: BTreeMap<String, RDKafkaErrorCode>,
        submitted: &Submitted,
        encoder: &Encoder,
    ) {
        let writability = encoder.writability();
        for (topic, code) in topics {
            if writability.is_own(&topic) {
                let sample = submitted.sample(&topic, encoder);
                writability.close(&topic, Cause(code), By::Record, sample);
                self.closed = true;
                continue;
            }
            let settled = submitted.batch.settled.iter().enumerate();
            for (index, settled) in settled {
                if let Some(target) = settled.target().filter(|target| ***target == *topic)
                    && self.replaced.insert(index)
                {
                    writability.target_refuses(target, Cause(code));
                }
            }
        }
    }

    /// What to do about a batch of which `undelivered` was not delivered, written in `pieces`.
    fn of(
        undelivered: Vec<Undelivered>,
        pieces: Pieces,
        batch: &Batch,
        writability: &Writability,
    ) -> Self {
        let mut verdict = Self::default();
        // How many were refused together, and how large they are.
        let mut together: HashMap<(Arc<str>, Option<i32>), (usize, usize)> = HashMap::new();
        for one in &undelivered {
            let place = (Arc::clone(&one.record.topic), one.record.partition);
            let (count, size) = together.entry(place).or_default();
            *count += 1;
            *size += one.record.size();
        }
        for one in undelivered {
            let Some(code) = one
                .error
                .rdkafka_error_code()
                .filter(|code| is_refusal(*code))
            else {
                verdict.passing = Some(one.error);
                continue;
            };
            let Undelivered {
                settled,
                record,
                is_least,
                error,
            } = one;
            let place = (Arc::clone(&record.topic), record.partition);
            let (count, size) = together.get(&place).copied().unwrap_or_default();
            let is_alone = pieces == Pieces::Single || count == 1;
            // What refuses a few small ones takes none by itself either.
            let are_small = is_of_size(code) && size < SMALL_RECORD;
            if is_of_record(code) && !is_alone && !are_small {
                verdict.mixed = true;
            } else if writability.is_own(&record.topic) {
                let size = record.size();
                let is_small = is_of_size(code) && size < SMALL_RECORD;
                if is_of_record(code)
                    && writability.holds_tasks(&record.topic)
                    && !is_least
                    && !is_small
                    && !wants_keys(code, &record)
                {
                    let message = format!("{} refused {size} bytes: {error}", record.topic);
                    let failure = Failure::new(word(code), &message);
                    let sink = writability.sink(&record.topic);
                    verdict.refused.insert(settled, (sink, failure));
                } else {
                    let topic = Arc::clone(&record.topic);
                    writability.close(&topic, Cause(code), By::Record, Some(record));
                    verdict.closed = true;
                }
            } else if batch.settled[settled].target().is_some() {
                if !is_of_record(code) {
                    writability.target_refuses(&record.topic, Cause(code));
                }
                verdict.replaced.insert(settled);
            } else {
                verdict.passing = Some(error);
            }
        }
        verdict
    }
}

// === impl Pieces ===

impl Pieces {
    /// The next smaller ones.
    const fn smaller(self) -> Self {
        match self {
            Self::Large => Self::Small,
            Self::Small | Self::Single => Self::Single,
        }
    }

    /// What a producer needs for them.
    fn configure(self, config: &mut ClientConfig) {
        match self {
            Self::Large => {}
            Self::Small => {
                config.set("batch.size", SMALL_BATCH);
            }
            Self::Single => {
                config.set("batch.num.messages", "1");
            }
        }
    }
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
                lock(&producer.context().failed).push(Failed {
                    number: index,
                    topic: again.topic.to_owned(),
                    error,
                });
                return Ok(());
            }
            _ => return Err(error),
        }
    }
    Ok(())
}

/// Waits until every record is acknowledged or has failed, at most `patience`; not for long once one has failed, since the others of its
/// transaction may then get nowhere. In the steps of [`flush`](retide_kafka::producer::flush).
pub(crate) fn settle_deliveries(
    producer: &BaseProducer<Deliveries>,
    patience: Duration,
) -> Result<Flushed, KafkaError> {
    let start = Instant::now();
    let mut left = producer.in_flight_count();
    let mut failed_at = None;
    while let Err(error) = producer.flush(Duration::ZERO) {
        if error.rdkafka_error_code() != Some(RDKafkaErrorCode::OperationTimedOut) {
            return Err(error);
        }
        let now = Instant::now();
        if now.duration_since(start) >= patience {
            return Ok(Flushed::TimedOut(producer.in_flight_count().max(0) as usize));
        }
        if producer.context().has_failed()
            && now.duration_since(*failed_at.get_or_insert(now)) >= FAILURES
        {
            return Ok(Flushed::Failed);
        }
        // Takes one bundle of acknowledgements, if there is one.
        producer.poll(Duration::ZERO);
        let before = mem::replace(&mut left, producer.in_flight_count());
        if left == before {
            thread::sleep(STEP);
        }
    }
    Ok(Flushed::All)
}

/// Whether a target takes no records, as was found out not long ago or is said now: whoever waits for such a topic in a transaction holds
/// up everything else in it.
pub(crate) fn refuses(group: &group::Client, writability: &Writability, target: &Arc<str>) -> bool {
    match writability.target(target) {
        TargetState::Refuses => return true,
        TargetState::Takes => return false,
        TargetState::Unknown => {}
    }
    match refusal(group, target) {
        Ok(Some(code)) => {
            writability.target_refuses(target, Cause(code));
            return true;
        }
        Ok(None) => writability.target_takes(target),
        // Whoever cannot ask finds out by trying.
        Err(error) => debug!(%error, "target topic not described"),
    }
    false
}

/// Why a target takes no records, if the cluster knows at once.
pub(crate) fn refusal(
    group: &group::Client,
    topic: &str,
) -> Result<Option<RDKafkaErrorCode>, KafkaError> {
    let metadata = group.fetch_metadata(Some(topic), ASK)?;
    let error = metadata.topics().first().and_then(MetadataTopic::error);
    let code = error.map(RDKafkaErrorCode::from);
    Ok(
        code.filter(|code| {
            is_missing(*code) || *code == RDKafkaErrorCode::TopicAuthorizationFailed
        }),
    )
}

/// Asks for the partitions of the topics of which a producer knows too few to have written to: they were widened since it asked. What goes
/// to a partition that there is passes; the producer knows of it now.
fn learn_partitions<C: ClientContext>(producer: &Client<C>, undelivered: &mut [Undelivered]) {
    let mut counts: HashMap<Arc<str>, usize> = HashMap::new();
    for one in undelivered {
        let code = one.error.rdkafka_error_code();
        let Some(partition) = one
            .record
            .partition
            .filter(|_| code.is_some_and(is_missing))
        else {
            continue;
        };
        let topic = &one.record.topic;
        let count = counts.entry(Arc::clone(topic)).or_insert_with(|| {
            let answer = producer.fetch_metadata(Some(topic), ASK).ok();
            let described = answer.as_ref().and_then(|answer| answer.topics().first());
            described.map_or(0, |topic| topic.partitions().len())
        });
        if usize::try_from(partition).is_ok_and(|partition| partition < *count) {
            one.error = KafkaError::MessageProduction(RDKafkaErrorCode::LeaderNotAvailable);
        }
    }
}

/// The receipt of a batch that is durable.
fn committed(submitted: Submitted) -> Receipt {
    let took = submitted.since.elapsed();
    let settled = submitted.batch.settled.into_iter();
    let refused = settled.filter(|settled| settled.refused).collect();
    Receipt::Committed { took, refused }
}

/// What is handed back of a batch.
fn returned(batch: Batch) -> ReturnedBatch {
    let mut settled = batch.settled;
    for settled in &mut settled {
        settled.refused = false;
    }
    ReturnedBatch {
        settled,
        ..ReturnedBatch::default()
    }
}

/// Locks what no panic leaves half-changed.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What the client calls the lines about topics that it adds to a transaction.
const UNREGISTERED: &str = "ADDPARTS";

/// What it calls the line about a transaction that is to be aborted.
const FAILED_TRANSACTION: &str = "TXNERR";

/// What stands before the name of a topic that it could not add, in quotes.
const REFUSED_TOPIC: &str = "Failed to add partition \"";

/// What it says of topics that were left out since another one was refused.
const NOT_ATTEMPTED: &str = "not attempted";

// === impl Failed ===

impl Failed {
    /// What was said of it, if a code says it.
    pub(crate) fn code(&self) -> Option<RDKafkaErrorCode> {
        self.error.rdkafka_error_code()
    }
}

// === impl Deliveries ===

impl Deliveries {
    /// Whether a delivery has failed, or will.
    fn has_failed(&self) -> bool {
        !lock(&self.failed).is_empty() || !lock(&self.unregistered).is_empty()
    }

    /// What has failed: the numbers of records, and topics that take none.
    pub(crate) fn take(&self) -> (Vec<Failed>, BTreeMap<String, RDKafkaErrorCode>) {
        (
            mem::take(&mut lock(&self.failed)),
            mem::take(&mut lock(&self.unregistered)),
        )
    }
}

impl ClientContext for Deliveries {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        // The transaction fails with an error that names no topic.
        let topic = (facility == UNREGISTERED)
            .then(|| message.split_once(REFUSED_TOPIC)?.1.split_once('"'))
            .flatten();
        if let Some((topic, reason)) = topic {
            let code = if reason.contains("authorization") {
                RDKafkaErrorCode::TopicAuthorizationFailed
            } else {
                RDKafkaErrorCode::Unknown
            };
            if !reason.contains(NOT_ATTEMPTED) {
                lock(&self.unregistered).insert(topic.to_owned(), code);
            }
            return;
        }
        if facility == FAILED_TRANSACTION {
            // What follows from that is told by whoever deals with it.
            return debug!(facility, message, "transaction failed");
        }
        logged(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        complained(&error, reason);
    }
}

impl ProducerContext for Deliveries {
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, index: usize) {
        if let Err((error, message)) = result {
            lock(&self.failed).push(Failed {
                number: index,
                topic: message.topic().to_owned(),
                error: error.clone(),
            });
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
