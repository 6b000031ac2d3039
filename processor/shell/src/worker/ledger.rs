//! The ledger: writes what was decided, and the offsets it was decided for.
//!
//! One implementation for each guarantee; here is what they share. Invariants: no offset is committed before what it is the
//! consequence of is durable, and none for a shard that is not ours.

mod at_least_once;
pub(crate) mod deliveries;
mod ownership;
mod refusal;
mod transactional;
mod verdict;

pub use self::at_least_once::AtLeastOnce;
pub use self::ownership::Ownership;
pub use self::transactional::Transactional;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crossbeam_channel::Receiver;
use rdkafka::error::KafkaError;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use retide_core::step::{self, Applied};
use retide_core::{Alert, Ended, Entry, Failure, LaneId, Omitted, Settlement, Sink, Sinks, alert};
use retide_kafka::record::{Collect, OutRecord, Parts};

use self::deliveries::Failed;
use self::verdict::Undelivered;
use crate::worker::encode::{Encoder, Scratch, Shards};
use crate::worker::readable::Readability;
use crate::writable::Writability;

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
    pub shards: Shards,
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
    pub slow: Option<Part>,
}

/// A part of a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
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

/// A batch on its way to a writer.
struct Submitted {
    /// What to write.
    batch: Batch,
    /// The epochs of the shards that were ours when it was submitted.
    epochs: BTreeMap<i32, u64>,
    /// When it was submitted.
    since: Instant,
}

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

    /// The consequence of an offset, as it was decided.
    pub(crate) fn of(settlement: Settlement) -> Self {
        let Settlement {
            lane,
            offset,
            home,
            entries,
            otherwise,
            applied,
        } = settlement;
        Self {
            shards: Shards {
                own: lane.shard,
                home,
            },
            offset: Some((lane, offset)),
            records: Content::Entries(entries),
            otherwise: Content::Entries(otherwise),
            refused: false,
            applied,
        }
    }

    /// What is written beside the consequences of offsets: a single record of a shard.
    pub(crate) fn beside(shard: i32, entry: Entry) -> Self {
        Self {
            shards: Shards::at(shard),
            offset: None,
            records: Content::Entries(vec![entry]),
            otherwise: Content::none(),
            refused: false,
            applied: Vec::new(),
        }
    }

    /// Whether a call was made whose answer it follows from.
    pub(crate) fn is_of_call(&self) -> bool {
        step::is_of_call(self.records.entries(), self.otherwise.entries())
    }

    /// What people are told of tasks that died since a topic has refused them. No offset has it as its consequence, and a batch that is handed
    /// back does not have it: whether the topic refuses them is found out anew.
    fn of_refused((shard, alert): (i32, Box<Alert>)) -> Self {
        Self {
            shards: Shards::at(shard),
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
        self.form()
            .entries()
            .iter()
            .filter_map(|entry| match entry {
                Entry::DeadLetter { ended, .. } => Some((self.shards.own, &**ended)),
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
            Content::Entries(entries) => {
                let delivered = entries.iter().find_map(Entry::delivered);
                delivered.map(|(topic, _)| topic)
            }
            Content::Records(records) => records.first().map(|record| &record.topic),
        }
    }

    /// Whether its dead letter is as small as it gets.
    fn is_least(&self) -> bool {
        let Content::Entries(entries) = self.form() else {
            return false;
        };
        let mut dead_letters = entries.iter().filter_map(Entry::dead_letter);
        dead_letters.any(|ended| matches!(ended.omitted, Omitted::Record(_)))
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

    /// What was decided; nothing, if it is of records as they are written.
    pub(crate) fn entries(&self) -> &[Entry] {
        match self {
            Self::Entries(entries) => entries,
            Self::Records(_) => &[],
        }
    }

    /// Whether any of it is of this kind.
    fn has(&self, kind: RecordKind) -> bool {
        match self {
            Self::Entries(entries) => entries.iter().any(|entry| RecordKind::of(entry) == kind),
            Self::Records(_) => kind == RecordKind::Consequence,
        }
    }

    /// Hands each record of this kind to `write`: its parts, its headers, and the entry that it is of, if it is of one.
    ///
    /// # Panics
    /// If an entry has no encoding: a broken invariant of the codec.
    fn each<H: Collect, E>(
        &self,
        kind: RecordKind,
        shards: Shards,
        encoder: &Encoder,
        scratch: &mut Scratch,
        mut write: impl FnMut(Parts<'_>, H, Option<&Entry>) -> Result<(), E>,
    ) -> Result<(), E> {
        match self {
            Self::Entries(entries) => {
                for entry in entries.iter().filter(|entry| RecordKind::of(entry) == kind) {
                    let mut headers = H::default();
                    let sink = &mut |name: &[u8], value: Option<&[u8]>| headers.add(name, value);
                    let parts = encoder.entry(shards, entry, scratch, sink);
                    if let Some(parts) = parts.unwrap_or_else(|error| unreachable!("{error}")) {
                        write(parts, headers, Some(entry))?;
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
                    write(record.parts(), headers, None)?;
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
        if entry.state().is_some() {
            Self::Order
        } else {
            Self::Consequence
        }
    }
}

// === impl Batch ===

impl Batch {
    /// Whether there is nothing to commit.
    pub fn is_empty(&self) -> bool {
        self.progress.is_empty()
    }

    /// The shards whose offsets it commits.
    fn shards(&self) -> BTreeSet<i32> {
        self.progress
            .iter()
            .map(|progress| progress.shard)
            .collect()
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
                let find = |parts: Parts<'_>, headers, _: Option<&Entry>| {
                    if **parts.topic == *topic {
                        return Err(Box::new(OutRecord::new(parts, headers)));
                    }
                    Ok(())
                };
                let form = settled.form();
                if let Err(record) = form.each(kind, settled.shards, encoder, &mut scratch, find) {
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
            let keep = |parts: Parts<'_>, headers, _: Option<&Entry>| {
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
            let Ok(()) = form.each(kind, settled.shards, encoder, &mut scratch, keep);
        }
        found
    }

    /// Drops what belongs to shards that are not ours, or have been away since.
    fn keep_owned(&mut self, ownership: &Ownership) {
        let Self { batch, epochs, .. } = self;
        batch
            .settled
            .retain(|settled| ownership.still_has(settled.shards.own, epochs));
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
        let settled = self.batch.settled.iter().map(|settled| settled.shards.own);
        progress
            .chain(settled)
            .all(|shard| ownership.still_has(shard, &self.epochs))
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
