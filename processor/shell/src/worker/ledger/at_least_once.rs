//! The guarantee `at_least_once`: an idempotent producer, and offsets committed once everything below them is acknowledged.
//!
//! Not a transaction: what was written before a crash and not committed is written again by whoever goes on. Invariants: one batch at
//! a time, so that offsets never pass one that is not written; what rests on a record that may be refused is written after that one
//! was accepted, and the mark of a taken record after what has become of it; what was accepted is not written again; no shard is given up while its offsets are on their way, since the client
//! commits in whatever generation it is by then.
//!
//! It does not keep the order of tasks: what a former owner writes too late would stay, and keep tasks from starting for ever.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::mem;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Instant;

use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use rdkafka::ClientConfig;
use rdkafka::consumer::{CommitMode, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::producer::{BaseProducer, Producer};
use tracing::warn;

use retide_core::{Entry, Failure, Sink};
use retide_kafka::client::Kept;
use retide_kafka::producer::{flush, producer_config};
use retide_kafka::record::{OutRecord, Parts};

use crate::event::ProducerReplaced;
use crate::threads::Ended;
use crate::worker::encode::{Encoder, Scratch};
use crate::worker::group::Client;
use crate::worker::ledger::deliveries::{Deliveries, produce};
use crate::worker::ledger::refusal::refuses;
use crate::worker::ledger::verdict::{Pieces, Undelivered, Verdict, learn_partitions};
use crate::worker::ledger::{
    AGAIN, Batch, Content, IN_PIECES, Ledger, Ownership, Receipt, RecordKind, ReturnedBatch,
    Settled, Submitted, committed, returned,
};

/// The ledger of the `at_least_once` guarantee.
pub struct AtLeastOnce {
    /// To the writer.
    batches: Sender<Submitted>,
    /// From the writer.
    receipts: Receiver<Receipt>,
    /// The shards that are ours.
    ownership: Arc<Ownership>,
    /// The writer's thread.
    thread: JoinHandle<()>,
}

/// The writer: a producer and the group it commits for.
struct Writer {
    /// The producer's configuration.
    config: ClientConfig,
    /// The producer, unless it was given up and not made again yet.
    producer: Option<Kept<BaseProducer<Deliveries>>>,
    /// The group whose offsets are committed.
    group: Arc<Client>,
    /// The shards that are ours.
    ownership: Arc<Ownership>,
    /// Turns what was decided into records.
    encoder: Arc<Encoder>,
    /// How many batches were returned.
    returns: u64,
    /// How far the producer's batches are taken apart, and until when.
    pieces: (Pieces, Instant),
    /// What the producer was made for.
    made: Pieces,
}

/// What is still to be written of the consequence of one offset.
struct Pending {
    /// The shard of the offset.
    shard: i32,
    /// The consequence, by its index in the batch.
    settled: usize,
    /// Whether nothing more can be left out of it.
    is_least: bool,
    /// Whether it waits until all before it are written: a mark without its consequence would be a lost task.
    waits: bool,
    /// The records; see [`Settled::records`].
    records: Vec<OutRecord>,
    /// Their other form; see [`Settled::otherwise`].
    otherwise: Vec<OutRecord>,
}

// === impl AtLeastOnce ===

impl AtLeastOnce {
    /// Starts the writer. `config` is the producer's.
    ///
    /// # Errors
    /// If the configuration is refused, or the thread cannot be started.
    pub fn start(
        config: &ClientConfig,
        group: &Arc<Client>,
        ownership: &Arc<Ownership>,
        encoder: &Arc<Encoder>,
    ) -> Result<Self, KafkaError> {
        let mut config = producer_config(config);
        config.remove("transactional.id");
        let mut writer = Writer {
            config,
            producer: None,
            group: Arc::clone(group),
            ownership: Arc::clone(ownership),
            encoder: Arc::clone(encoder),
            returns: 0,
            pieces: (Pieces::default(), Instant::now()),
            made: Pieces::default(),
        };
        writer.ready()?;
        // One is written and one waits, which makes two under way.
        let (batches, from_drive) = bounded(1);
        #[allow(
            clippy::disallowed_methods,
            reason = "one receipt for each batch under way, and there are few"
        )]
        let (to_drive, receipts) = unbounded();
        let body = move || {
            while let Ok(submitted) = from_drive.recv() {
                let _ = to_drive.send(writer.write(submitted));
            }
            Ended::Told
        };
        let context = group.context();
        let thread = context
            .threads()
            .spawn(&format!("{}-ledger", context.worker()), body)
            .map_err(|error| KafkaError::ClientCreation(error.to_string()))?;
        Ok(Self {
            batches,
            receipts,
            ownership: Arc::clone(ownership),
            thread,
        })
    }
}

impl Ledger for AtLeastOnce {
    fn submit(&mut self, batch: Batch) {
        self.batches
            .send(Submitted::new(batch, &self.ownership))
            .unwrap_or_else(|_| unreachable!("the writer ended before its ledger"));
    }

    fn receipts(&self) -> &Receiver<Receipt> {
        &self.receipts
    }

    fn keeps_order(&self) -> bool {
        false
    }

    fn stop(self) {
        drop(self.batches);
        // Its panic was told.
        let _ = self.thread.join();
    }
}

// === impl Writer ===

impl Writer {
    /// Makes the producer if there is none, or one that is of no use any more, or was made for something else.
    fn ready(&mut self) -> Result<&BaseProducer<Deliveries>, KafkaError> {
        let usable = |producer: &Kept<BaseProducer<_>>| producer.client().fatal_error().is_none();
        let (mut pieces, until) = self.pieces;
        if Instant::now() >= until {
            pieces = Pieces::default();
        }
        if self.made != pieces || !self.producer.as_ref().is_some_and(usable) {
            self.producer = None;
            let mut config = self.config.clone();
            pieces.configure(&mut config);
            let make = |config: &ClientConfig| config.create_with_context(Deliveries::default());
            self.producer = Some(Kept::make(&config, make)?);
            self.made = pieces;
        }
        let producer = self.producer.as_ref().ok_or(KafkaError::Canceled)?;
        producer.hold();
        Ok(producer)
    }

    /// Writes a batch until it is durable, nothing of it is ours, or it is known that it cannot be written as it is.
    fn write(&mut self, mut submitted: Submitted) -> Receipt {
        if submitted.batch.returns != self.returns
            || submitted.needs_closed(self.encoder.writability())
            || submitted.is_unreadable(self.group.context().readability())
        {
            return self.hand_back(returned(submitted.batch));
        }
        self.refuse_at_once(&mut submitted);
        let mut pending = self.encode(&submitted.batch.settled, 0);
        loop {
            submitted.keep_owned_progress(&self.ownership);
            pending.retain(|one| self.ownership.still_has(one.shard, &submitted.epochs));
            if pending.iter().all(|one| one.records.is_empty()) {
                return self.commit(submitted);
            }
            let mut others = pending.iter().filter(|one| !one.waits);
            if others.all(|one| one.records.is_empty()) {
                for one in &mut pending {
                    one.waits = false;
                }
            }
            match self.try_write(&pending, &submitted) {
                Ok(failed) => {
                    let mut undelivered = keep_failed(&mut pending, failed);
                    if undelivered.is_empty() {
                        continue;
                    }
                    if let Some(producer) = &self.producer {
                        learn_partitions(producer.client(), &mut undelivered);
                    }
                    let writability = self.encoder.writability();
                    let batch = &submitted.batch;
                    let verdict = Verdict::of(undelivered, self.made, batch, writability);
                    if let Some(receipt) = self.follow(verdict, &mut submitted, &mut pending) {
                        return receipt;
                    }
                }
                Err(error) => {
                    let at = "writing a batch";
                    let context = self.group.context();
                    let (worker, error) = (context.worker(), &error);
                    ProducerReplaced { worker, at, error }.emit(context.metrics());
                    self.producer = None;
                    let mut topics = pending.iter().flat_map(|one| &one.records);
                    let writability = self.encoder.writability();
                    if topics.any(|record| writability.is_closed(&record.topic)) {
                        return self.hand_back_rest(submitted, &pending, BTreeMap::new());
                    }
                    thread::sleep(AGAIN);
                }
            }
        }
    }

    /// Lets deliveries take their other form whose topic takes no records, as far as is known.
    fn refuse_at_once(&self, submitted: &mut Submitted) {
        for settled in &mut submitted.batch.settled {
            if let Some(target) = settled.target() {
                settled.refused = refuses(&self.group, self.encoder.writability(), target);
            }
        }
        submitted.tell_of_refused();
    }

    /// Does what is to be done about records that were not delivered; gives a receipt if the batch cannot be written as it is.
    fn follow(
        &mut self,
        verdict: Verdict,
        submitted: &mut Submitted,
        pending: &mut Vec<Pending>,
    ) -> Option<Receipt> {
        let Verdict {
            replaced,
            refused,
            closed,
            mixed,
            passing,
        } = verdict;
        let mut now_refused = Vec::new();
        for one in pending.iter_mut() {
            if replaced.contains(&one.settled) {
                submitted.batch.settled[one.settled].refused = true;
                one.records = mem::take(&mut one.otherwise);
                now_refused.push(one.settled);
            }
        }
        // What was told of others may be written.
        let told = submitted.told_of(&now_refused);
        pending.extend(self.encode(&submitted.batch.settled, told));
        if closed || !refused.is_empty() {
            let submitted =
                mem::replace(submitted, Submitted::new(Batch::default(), &self.ownership));
            return Some(self.hand_back_rest(submitted, pending, refused));
        }
        if mixed {
            self.pieces = (self.made.smaller(), Instant::now() + IN_PIECES);
        } else if let Some(error) = passing {
            warn!(%error, "records not accepted, writing them again");
            thread::sleep(AGAIN);
        }
        None
    }

    /// Hands a batch back of which `pending` is not written.
    fn hand_back_rest(
        &mut self,
        submitted: Submitted,
        pending: &[Pending],
        refused: BTreeMap<usize, (Sink, Failure)>,
    ) -> Receipt {
        let open = pending.iter().filter(|one| !one.records.is_empty());
        let open: BTreeSet<usize> = open.map(|one| one.settled).collect();
        let all = 0..submitted.batch.settled.len();
        let written = all.filter(|index| !open.contains(index)).collect();
        self.hand_back(ReturnedBatch {
            refused,
            written,
            ..returned(submitted.batch)
        })
    }

    /// Hands a batch back.
    fn hand_back(&mut self, batch: ReturnedBatch) -> Receipt {
        self.returns += 1;
        Receipt::Returned(Box::new(batch))
    }

    /// Encodes a batch, from the consequence with the index `first` on: parts of it may have to be written again, others not.
    fn encode(&self, settled: &[Settled], first: usize) -> Vec<Pending> {
        let mut scratch = Scratch::default();
        let mut encode = |shards, content: &Content| match content {
            Content::Records(records) => records.clone(),
            Content::Entries(_) => {
                let mut records = Vec::new();
                for kind in [RecordKind::Consequence, RecordKind::Order] {
                    let keep = |parts: Parts<'_>, headers, _: Option<&Entry>| {
                        records.push(OutRecord::new(parts, headers));
                        Ok::<_, Infallible>(())
                    };
                    let Ok(()) = content.each(kind, shards, &self.encoder, &mut scratch, keep);
                }
                records
            }
        };
        let pending = settled
            .iter()
            .enumerate()
            .skip(first)
            .map(|(index, settled)| Pending {
                shard: settled.shards.own,
                settled: index,
                is_least: settled.is_least(),
                // What is decided stands before what is to be known of shards.
                waits: settled.offset.is_none() && settled.form().has(RecordKind::Order),
                records: encode(settled.shards, settled.form()),
                otherwise: if settled.refused {
                    Vec::new()
                } else {
                    encode(settled.shards, &settled.otherwise)
                },
            });
        pending.collect()
    }

    /// Writes what is next of a batch. Says which of those records failed, by their number.
    fn try_write(
        &mut self,
        pending: &[Pending],
        submitted: &Submitted,
    ) -> Result<BTreeMap<usize, KafkaError>, KafkaError> {
        let ownership = Arc::clone(&self.ownership);
        let writability = Arc::clone(self.encoder.writability());
        let producer = self.ready()?;
        let records = pending.iter().flat_map(|one| &one.records[..next(one)]);
        for (number, record) in records.enumerate() {
            produce(producer, record.to_produce(number))?;
        }
        // The client tries again by itself, and without repeating anything, as long as we let it.
        while let Err(error) = flush(producer) {
            let mut progress = submitted.batch.progress.iter();
            if !progress.all(|one| ownership.still_has(one.shard, &submitted.epochs)) {
                return Err(error);
            }
            let (mut suspects, mut closed) = (BTreeSet::new(), false);
            for record in pending.iter().flat_map(|one| &one.records[..next(one)]) {
                if suspects.insert(&record.topic) {
                    closed |= writability.is_closed(&record.topic);
                    writability.suspect(record.clone());
                }
            }
            if closed {
                return Err(error);
            }
            warn!(%error, "records not acknowledged yet");
        }
        let (failed, _) = producer.context().take();
        let failed = failed.into_iter();
        Ok(failed.map(|failed| (failed.number, failed.error)).collect())
    }

    /// Commits the offsets of a batch that is written, as far as they are still ours to commit.
    fn commit(&self, mut submitted: Submitted) -> Receipt {
        loop {
            let commit = self.ownership.hold();
            submitted.keep_owned_progress(&self.ownership);
            if submitted.batch.is_empty() {
                return Receipt::Dropped;
            }
            // What is written is written: only its offsets are left.
            let unreadable = self.group.context().readability().unreadable();
            let mut progress = mem::take(&mut submitted.batch.progress);
            progress.retain(|of| !unreadable.has_topic(&of.topic));
            if progress.is_empty() {
                return committed(submitted);
            }
            submitted.batch.progress = progress;
            let offsets = submitted
                .batch
                .offsets()
                .and_then(|offsets| self.group.commit(&offsets, CommitMode::Sync));
            drop(commit);
            match offsets {
                Ok(()) => {
                    return committed(submitted);
                }
                // In a rebalance too: it ends with the shards given up, or with a membership in which the commit is accepted.
                Err(error) => {
                    self.group.context().refused(&error);
                    warn!(%error, "offsets not committed, trying again");
                }
            }
            thread::sleep(AGAIN);
        }
    }
}

/// How many records of a consequence are written next: one that may be refused goes first, and alone.
fn next(pending: &Pending) -> usize {
    let all = pending.records.len();
    if pending.waits {
        0
    } else if pending.otherwise.is_empty() {
        all
    } else {
        all.min(1)
    }
}

/// Leaves of a batch what is still to be written, after its next records were, but for those that failed: gives those.
fn keep_failed(
    pending: &mut [Pending],
    mut failed: BTreeMap<usize, KafkaError>,
) -> Vec<Undelivered> {
    let (mut first, mut undelivered) = (0, Vec::new());
    for one in pending {
        let numbers = first..first + next(one);
        first = numbers.end;
        if numbers.is_empty() {
            continue;
        }
        let mut number = numbers.start;
        let (before, settled, is_least) = (undelivered.len(), one.settled, one.is_least);
        one.records.retain(|record| {
            let error = failed.remove(&number).filter(|_| number < numbers.end);
            number += 1;
            let Some(error) = error else {
                // Those that were not written yet have no number, and stay.
                return number > numbers.end;
            };
            undelivered.push(Undelivered {
                settled,
                record: record.clone(),
                is_least,
                error,
            });
            true
        });
        if undelivered.len() == before {
            // Accepted: there is no other form of it any more.
            one.otherwise.clear();
        }
    }
    undelivered
}
