//! The guarantee `exactly_once`: what was decided, and the offsets it was decided for, in one transaction.
//!
//! Two writers take batches in turn, so that one fills its transaction while the other commits. Invariants: batches commit strictly in
//! order; a batch is written again from memory until it is durable or its shards are no longer ours; whether a transaction that was
//! lost sight of has committed is read from the group's offsets, never guessed.

use std::collections::BTreeSet;
use std::mem;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use rdkafka::ClientConfig;
use rdkafka::consumer::Consumer;
use rdkafka::error::KafkaError;
use rdkafka::producer::{BaseProducer, Producer};
use rdkafka::topic_partition_list::Offset;
use tracing::warn;

use crate::event::{BatchAborted, ProducerDistrusted, ProducerReplaced};
use crate::shell::encode::{Encoder, Parts, Scratch};
use crate::shell::feed;
use crate::shell::ledger::{
    AGAIN, Batch, CALL, Content, Deliveries, Ledger, Ownership, Receipt, RecordKind, Settled,
    Submitted, flush, is_refusal, lock, produce, producer_config, to_produce,
};
use crate::threads::Ended;

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
    /// Turns what was decided into records.
    encoder: Arc<Encoder>,
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

/// A call that took so long may have been sent twice: the client sends it again, without a word, when its connection breaks, and waits
/// [`RETRY_BACKOFF`] less a fifth before that.
const RESENT: Duration = Duration::from_millis(800);

/// Pause of the client before it sends a request again, in milliseconds: far above what a commit takes, so that few producers are given
/// up for nothing; short beside an election, after which it is what records wait for.
const RETRY_BACKOFF: &str = "1000";

/// How long an open transaction may live, in milliseconds: after a crash it holds back readers of its partitions for as long.
const TRANSACTION_TIMEOUT: &str = "10000";

/// How long a record waits for others, in milliseconds: longer than a batch takes to be written, so that one goes when it is full, or when all
/// is written and flushed. The broker has the other writer's meanwhile. With a short time, the client looks at all partitions whenever it
/// runs out for one of them, which was a fifth of its work.
const LINGER: &str = "100";

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
        encoder: &Arc<Encoder>,
    ) -> Result<Self, KafkaError> {
        let (to_drive, receipts) = unbounded();
        let (first_pass, second_take) = bounded(1);
        let (second_pass, first_take) = bounded(1);
        // The first batch is the first writer's, and so is the first turn.
        let _ = second_pass.send(());
        let turns = [(first_take, first_pass), (second_take, second_pass)];
        let (mut batches, mut threads) = (Vec::new(), Vec::new());
        for (number, (take, pass)) in turns.into_iter().enumerate() {
            let id = format!("{id}-{number}");
            let mut writer = Writer {
                config: writer_config(config, &id),
                producer: None,
                group: Arc::clone(group),
                ownership: Arc::clone(ownership),
                encoder: Arc::clone(encoder),
            };
            writer.ready()?;
            let mut turn = Turn {
                take,
                pass,
                held: false,
            };
            // One under way at each writer, none waiting: the drive collects meanwhile.
            let (to_writer, from_drive) = bounded::<Submitted>(0);
            let to_drive = to_drive.clone();
            let body = move || {
                while let Ok(submitted) = from_drive.recv() {
                    let receipt = writer.write(submitted, &mut turn);
                    // Receipts come in order, also of a batch that came to nothing.
                    turn.take();
                    let _ = to_drive.send(receipt);
                    turn.pass();
                }
                Ended::Told
            };
            let context = group.context();
            let thread = context
                .threads()
                .spawn(&format!("{}-ledger-{number}", context.worker()), body)
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
}

impl Ledger for Transactional {
    fn submit(&mut self, batch: Batch) {
        let writer = &self.batches[self.next];
        self.next = (self.next + 1) % self.batches.len();
        writer
            .send(Submitted::new(batch, &self.ownership))
            .unwrap_or_else(|_| unreachable!("a writer ended before its ledger"));
    }

    fn receipts(&self) -> &Receiver<Receipt> {
        &self.receipts
    }

    fn keeps_order(&self) -> bool {
        true
    }

    fn stop(self) {
        drop(self.batches);
        for thread in self.threads {
            // Its panic was told.
            let _ = thread.join();
        }
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
        let mut refused = Vec::new();
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
                    for index in indices {
                        let settled = &mut submitted.batch.settled[index];
                        refused.push(settled.offset);
                        settled.records = mem::replace(&mut settled.otherwise, Content::none());
                    }
                    self.abort();
                }
                Err(Trouble::GivenUp) => self.abort(),
                Err(Trouble::Abortable(error)) => {
                    let context = self.group.context();
                    let (worker, error) = (context.worker(), &error);
                    BatchAborted { worker, error }.emit(context.metrics());
                    self.abort();
                    thread::sleep(AGAIN);
                }
                Err(Trouble::Unknown(error)) => {
                    self.give_up("transaction", &error);
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
        let encoder = Arc::clone(&self.encoder);
        let mut scratch = Scratch::default();
        let producer = self.ready().map_err(Trouble::Unknown)?;
        producer.begin_transaction().map_err(classify)?;
        let mut write_all = |kind| {
            for (index, settled) in batch.settled.iter().enumerate() {
                let Settled { place, records, .. } = settled;
                let write = |parts: Parts<'_>, headers| {
                    produce(producer, to_produce(parts, headers, index))
                };
                let written = records.each(kind, *place, &encoder, &mut scratch, write);
                written.map_err(classify)?;
            }
            flush(producer).map_err(classify)?;
            Ok(mem::take(&mut *lock(&producer.context().failed)))
        };
        let failed = write_all(RecordKind::Consequence)?;
        if !failed.is_empty() {
            return Err(refusals(batch, failed));
        }
        turn.take();
        let mut settled = batch.settled.iter();
        if settled.any(|settled| settled.records.has(RecordKind::Order)) {
            let mut failed = write_all(RecordKind::Order)?;
            if let Some((_, error)) = failed.pop() {
                return Err(Trouble::Abortable(error));
            }
        }
        let offsets = batch.offsets().map_err(Trouble::Abortable)?;
        // Not the client's, which may be of a generation whose shards are not known here yet.
        let membership = group
            .context()
            .membership()
            .ok_or(Trouble::Abortable(KafkaError::Canceled))?;
        // After the membership, and again: the batch before may have been dropped, and this one must not commit past it. A shard that
        // goes from here on ends the generation just read, and the broker refuses it.
        if !submitted.is_owned(&ownership) {
            return Err(Trouble::GivenUp);
        }
        let asked = Instant::now();
        producer
            .send_offsets_to_transaction(&offsets, &membership, CALL)
            .map_err(classify)?;
        producer.commit_transaction(CALL).map_err(classify)?;
        self.distrust(asked.elapsed());
        Ok(())
    }

    /// Gives the producer up if one of its calls may have been sent twice: the first copy could still arrive, and end what comes after.
    fn distrust(&mut self, took: Duration) {
        if took >= RESENT {
            ProducerDistrusted { took }.emit(self.group.context().metrics());
            self.producer = None;
        }
    }

    /// Aborts the open transaction; gives the producer up if that fails.
    fn abort(&mut self) {
        let Some(producer) = &self.producer else {
            return;
        };
        let asked = Instant::now();
        if let Err(error) = producer.abort_transaction(CALL) {
            self.give_up("abort", &error);
            return;
        }
        // Records purged by the abort report themselves as failed.
        producer.poll(Duration::ZERO);
        lock(&producer.context().failed).clear();
        self.distrust(asked.elapsed());
    }

    /// Gives the producer up: the next use makes another one.
    fn give_up(&mut self, at: &'static str, error: &KafkaError) {
        let context = self.group.context();
        let worker = context.worker();
        ProducerReplaced { worker, at, error }.emit(context.metrics());
        self.producer = None;
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
                    self.give_up("settling what became of a transaction", &error);
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

/// The configuration of a writer's producer: the user's, and what a transaction needs.
fn writer_config(config: &ClientConfig, id: &str) -> ClientConfig {
    let mut config = producer_config(config);
    config
        .set("transactional.id", id)
        .set("linger.ms", LINGER)
        .set("transaction.timeout.ms", TRANSACTION_TIMEOUT)
        .set("retry.backoff.ms", RETRY_BACKOFF)
        .set("retry.backoff.max.ms", RETRY_BACKOFF);
    config
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

/// What an error of the transaction protocol means for the transaction.
fn classify(error: KafkaError) -> Trouble {
    match &error {
        KafkaError::Transaction(cause) if cause.txn_requires_abort() => Trouble::Abortable(error),
        // Timed out, fatal or fenced. A call that timed out may still take effect: on a transaction that comes after it, if the
        // producer were kept.
        _ => Trouble::Unknown(error),
    }
}
