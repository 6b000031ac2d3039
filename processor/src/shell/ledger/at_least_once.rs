//! The guarantee `at_least_once`: an idempotent producer, and offsets committed once everything below them is acknowledged.
//!
//! Not a transaction: what was written before a crash and not committed is written again by whoever goes on. Invariants: one batch at
//! a time, so that offsets never pass one that is not written; what rests on a record that may be refused is written after that one
//! was accepted; what was accepted is not written again; no shard is given up while its offsets are on their way, since the client
//! commits in whatever generation it is by then.
//!
//! It does not keep the order of tasks: what a former owner writes too late would stay, and keep tasks from starting for ever.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::mem;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use rdkafka::ClientConfig;
use rdkafka::consumer::{CommitMode, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::producer::{BaseProducer, Producer};
use tracing::warn;

use retide_core::LaneId;

use crate::event::ProducerReplaced;
use crate::shell::encode::{Encoder, Parts, Scratch};
use crate::shell::feed;
use crate::shell::ledger::{
    AGAIN, Batch, Content, Deliveries, Ledger, OutRecord, Ownership, Receipt, RecordKind, Settled,
    Submitted, flush, is_refusal, lock, produce, producer_config,
};
use crate::threads::Ended;

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
    producer: Option<BaseProducer<Deliveries>>,
    /// The group whose offsets are committed.
    group: Arc<feed::Client>,
    /// The shards that are ours.
    ownership: Arc<Ownership>,
    /// Turns what was decided into records.
    encoder: Arc<Encoder>,
}

/// What is still to be written of the consequence of one offset.
struct Pending {
    /// The shard of the offset.
    shard: i32,
    /// The offset, if it is known.
    offset: Option<(LaneId, i64)>,
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
        group: &Arc<feed::Client>,
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
        };
        writer.ready()?;
        // One is written and one waits, which makes two under way.
        let (batches, from_drive) = bounded(1);
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
    /// Makes the producer if there is none, or one that is of no use any more.
    fn ready(&mut self) -> Result<&BaseProducer<Deliveries>, KafkaError> {
        let usable = |producer: &BaseProducer<_>| producer.client().fatal_error().is_none();
        if !self.producer.as_ref().is_some_and(usable) {
            self.producer = None;
            self.producer = Some(self.config.create_with_context(Deliveries::default())?);
        }
        self.producer.as_ref().ok_or(KafkaError::Canceled)
    }

    /// Writes a batch until it is durable, or nothing of it is ours.
    fn write(&mut self, mut submitted: Submitted) -> Receipt {
        let mut pending = self.encode(mem::take(&mut submitted.batch.settled));
        let mut refused = Vec::new();
        loop {
            submitted.keep_owned(&self.ownership);
            pending.retain(|one| self.ownership.still_has(one.shard, &submitted.epochs));
            if pending.iter().all(|one| one.records.is_empty()) {
                return self.commit(submitted, refused);
            }
            match self.try_write(&pending, &submitted) {
                Ok(mut failed) => {
                    refused.extend(keep_failed(&mut pending, &mut failed));
                    if let Some((_, error)) = failed.first_key_value() {
                        warn!(%error, records = failed.len(), "records not accepted, writing them again");
                        thread::sleep(AGAIN);
                    }
                }
                Err(error) => {
                    let at = "writing a batch";
                    let context = self.group.context();
                    let (worker, error) = (context.worker(), &error);
                    ProducerReplaced { worker, at, error }.emit(context.metrics());
                    self.producer = None;
                    thread::sleep(AGAIN);
                }
            }
        }
    }

    /// Encodes a batch: parts of it may have to be written again, others not.
    fn encode(&self, settled: Vec<Settled>) -> Vec<Pending> {
        let mut scratch = Scratch::default();
        let mut encode = |place, content: Content| match content {
            Content::Records(records) => records,
            Content::Entries(_) | Content::Alert(_) => {
                let mut records = Vec::new();
                for kind in [RecordKind::Consequence, RecordKind::Order] {
                    let keep = |parts: Parts<'_>, headers| {
                        records.push(OutRecord::new(parts, headers));
                        Ok::<_, Infallible>(())
                    };
                    let Ok(()) = content.each(kind, place, &self.encoder, &mut scratch, keep);
                }
                records
            }
        };
        let pending = settled.into_iter().map(|settled| Pending {
            shard: settled.place.shard,
            offset: settled.offset,
            records: encode(settled.place, settled.records),
            otherwise: encode(settled.place, settled.otherwise),
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
        let producer = self.ready()?;
        let records = pending.iter().flat_map(|one| &one.records[..next(one)]);
        for (number, record) in records.enumerate() {
            produce(producer, record.to_produce(number))?;
        }
        // The client tries again by itself, and without repeating anything, as long as we let it.
        while let Err(error) = flush(producer) {
            if !submitted.is_owned(&ownership) {
                return Err(error);
            }
            warn!(%error, "records not acknowledged yet");
        }
        Ok(mem::take(&mut *lock(&producer.context().failed))
            .into_iter()
            .collect())
    }

    /// Commits the offsets of a batch that is written, as far as they are still ours to commit.
    fn commit(&self, mut submitted: Submitted, refused: Vec<Option<(LaneId, i64)>>) -> Receipt {
        loop {
            let commit = self.ownership.hold();
            submitted.keep_owned(&self.ownership);
            if submitted.batch.is_empty() {
                return Receipt::Dropped;
            }
            let committed = submitted
                .batch
                .offsets()
                .and_then(|offsets| self.group.commit(&offsets, CommitMode::Sync));
            drop(commit);
            match committed {
                Ok(()) => {
                    return Receipt::Committed {
                        took: submitted.since.elapsed(),
                        refused,
                    };
                }
                // In a rebalance too: it ends with the shards given up, or with a membership in which the commit is accepted.
                Err(error) => warn!(%error, "offsets not committed, trying again"),
            }
            thread::sleep(AGAIN);
        }
    }
}

/// How many records of a consequence are written next: one that may be refused goes first, and alone.
fn next(pending: &Pending) -> usize {
    let all = pending.records.len();
    if pending.otherwise.is_empty() {
        all
    } else {
        all.min(1)
    }
}

/// Leaves of a batch what is still to be written, after its next records were, but for those that failed. Says which consequences take
/// their other form; their failures are dealt with.
fn keep_failed(
    pending: &mut [Pending],
    failed: &mut BTreeMap<usize, KafkaError>,
) -> Vec<Option<(LaneId, i64)>> {
    let (mut first, mut replaced) = (0, Vec::new());
    for settled in pending {
        let mut numbers = first..first + next(settled);
        first = numbers.end;
        let Some((&number, error)) = failed.range(numbers.clone()).next() else {
            settled.records.drain(..numbers.len());
            // Accepted: there is no other form of it any more.
            settled.otherwise.clear();
            continue;
        };
        let refused = error.rdkafka_error_code().is_some_and(is_refusal);
        if refused && !settled.otherwise.is_empty() {
            warn!(%error, "target topic refuses a record");
            settled.records = mem::take(&mut settled.otherwise);
            failed.remove(&number);
            replaced.push(settled.offset);
            continue;
        }
        // Those that were not written yet have no number, and stay.
        settled.records.retain(|_| {
            numbers
                .next()
                .is_none_or(|number| failed.contains_key(&number))
        });
    }
    replaced
}
