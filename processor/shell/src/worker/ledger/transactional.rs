//! The guarantee `exactly_once`: what was decided, and the offsets it was decided for, in one transaction.
//!
//! Two writers take batches in turn, so that one fills its transaction while the other commits. Invariants: batches commit strictly in
//! order; a batch is written again from memory until it is durable or its shards are no longer ours; whether a transaction that was
//! lost sight of has committed is read from the group's offsets, never guessed.

use std::collections::BTreeSet;
use std::mem;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use rdkafka::ClientConfig;
use rdkafka::consumer::Consumer;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{BaseProducer, Producer, PurgeConfig};
use rdkafka::topic_partition_list::Offset;
use tracing::debug;

use retide_core::{Entry, ids};
use retide_kafka::producer::{CALL, flush, producer_config};
use retide_kafka::record::{ClientHeaders, Parts, to_produce};

use crate::event::{BatchAborted, BatchSlow, ProducerDistrusted, ProducerReplaced};
use crate::threads::Ended;
use crate::worker::encode::{Encoder, Scratch};
use crate::worker::group::Client;
use crate::worker::ids::{Note, Parked};
use crate::worker::ledger::deliveries::{
    Deliveries, Failed, Flushed, NOTED, produce, settle_deliveries,
};
use crate::worker::ledger::refusal::refuses;
use crate::worker::ledger::verdict::{Pieces, Undelivered, Verdict, learn_partitions};
use crate::worker::ledger::{
    AGAIN, Batch, Ledger, Ownership, Part, Receipt, RecordKind, ReturnedBatch, Submitted,
    committed, returned,
};

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
    /// What that id begins with.
    id: String,
    /// How often another id was taken.
    ids: u32,
    /// Whether the commit of the last transaction was asked for, and not its abort since: what was never asked for cannot have happened.
    may_commit: bool,
    /// The producer, unless it was given up and not made again yet.
    producer: Option<BaseProducer<Deliveries>>,
    /// What the producer was made for.
    made: Demands,
    /// What the next one is to be made for.
    demands: Demands,
    /// Until when that is so.
    until: Instant,
    /// How many batches both writers have returned.
    returns: Arc<AtomicU64>,
    /// The group whose offsets are committed.
    group: Arc<Client>,
    /// The shards that are ours.
    ownership: Arc<Ownership>,
    /// Turns what was decided into records.
    encoder: Arc<Encoder>,
}

/// What a producer is made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Demands {
    /// How far its batches are taken apart.
    pieces: Pieces,
    /// How long a transaction may take.
    patience: Duration,
}

/// The right to commit: held by one writer at a time, in the order of the batches.
struct CommitTurn {
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
    /// A batch before it was returned, on which it rests.
    Late,
    /// Records were not delivered.
    Undelivered(Box<Verdict>),
    /// Not all records were acknowledged in the time it had.
    Slow(RecordKind, Part),
    /// Nobody knows what became of the transaction, or the producer is of no use any more.
    Unknown(KafkaError),
}

/// A call that took so long may have been sent twice: the client sends it again, without a word, when its connection breaks, and waits
/// [`RETRY_BACKOFF`] less a fifth before that.
const RESENT: Duration = Duration::from_millis(800);

/// Pause of the client before it sends a request again, in milliseconds: far above what a commit takes, so that few producers are given
/// up for nothing; short beside an election, after which it is what records wait for.
const RETRY_BACKOFF: &str = "1000";

/// How long an open transaction may live: after a crash it holds back readers of its partitions for as long.
const TRANSACTION_TIMEOUT: Duration = Duration::from_secs(10);

/// Longest life of a transaction that holds a single task, which a quota lets through that slowly.
const LONGEST_TRANSACTION: Duration = Duration::from_mins(5);

/// Longest wait for the end of a transaction that was aborted.
const BEGIN: Duration = Duration::from_secs(3);

/// How long a producer is used that is made for a trouble: for as long it is not asked again whether that is over.
const AS_DEMANDED: Duration = Duration::from_mins(1);

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
        group: &Arc<Client>,
        ownership: &Arc<Ownership>,
        encoder: &Arc<Encoder>,
    ) -> Result<Self, KafkaError> {
        #[allow(
            clippy::disallowed_methods,
            reason = "one receipt for each batch under way, and there are few"
        )]
        let (to_drive, receipts) = unbounded();
        let (first_pass, second_take) = bounded(1);
        let (second_pass, first_take) = bounded(1);
        // The first batch is the first writer's, and so is the first turn.
        let _ = second_pass.send(());
        let turns = [(first_take, first_pass), (second_take, second_pass)];
        group.context().ids().told();
        let (mut batches, mut threads) = (Vec::new(), Vec::new());
        let returns = Arc::new(AtomicU64::new(0));
        for (number, (take, pass)) in turns.into_iter().enumerate() {
            let id = format!("{id}-{number}");
            let mut writer = Writer {
                config: writer_config(config, &id),
                id,
                ids: 0,
                may_commit: true,
                producer: None,
                made: Demands::default(),
                demands: Demands::default(),
                until: Instant::now(),
                returns: Arc::clone(&returns),
                group: Arc::clone(group),
                ownership: Arc::clone(ownership),
                encoder: Arc::clone(encoder),
            };
            writer.ready()?;
            let mut turn = CommitTurn {
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
                    if matches!(receipt, Receipt::Returned(_)) {
                        // Before the turn is passed on: the next one is not to commit what rests on this one.
                        writer.returns.fetch_add(1, Ordering::AcqRel);
                    }
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

// === impl CommitTurn ===

impl CommitTurn {
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

// === impl Demands ===

impl Default for Demands {
    fn default() -> Self {
        Self {
            pieces: Pieces::default(),
            patience: TRANSACTION_TIMEOUT,
        }
    }
}

impl Demands {
    /// How long records may take to be acknowledged.
    fn write(self) -> Duration {
        // What is left is for the commit.
        self.patience * 7 / 10
    }
}

// === impl Writer ===

impl Writer {
    /// Makes the producer if there is none, or one that was made for something else. Its transactional id ends whatever its predecessor
    /// left open.
    fn ready(&mut self) -> Result<(), KafkaError> {
        if self.demands != Demands::default() && Instant::now() >= self.until {
            self.demands = Demands::default();
        }
        if self.made != self.demands {
            self.producer = None;
        }
        if self.producer.is_none() {
            let mut config = self.config.clone();
            let timeout = self.demands.patience.as_millis().to_string();
            config.set("transaction.timeout.ms", timeout);
            self.demands.pieces.configure(&mut config);
            let producer: BaseProducer<Deliveries> =
                config.create_with_context(Deliveries::default())?;
            let patience = if self.may_commit { CALL } else { BEGIN };
            if let Err(error) = producer.init_transactions(patience) {
                self.leave_id(&error);
                return Err(error);
            }
            self.producer = Some(producer);
            self.made = self.demands;
        }
        Ok(())
    }

    /// The producer that is there. Without one there is no transaction, and nothing to be in doubt about.
    fn producer(&self) -> Result<&BaseProducer<Deliveries>, Trouble> {
        self.producer
            .as_ref()
            .ok_or(Trouble::Abortable(KafkaError::Canceled))
    }

    /// Takes another transactional id, if the end of the last transaction is decided and does not come: a marker of it cannot be written, as
    /// long as a topic takes no records at all.
    fn leave_id(&mut self, error: &KafkaError) {
        let is_pending =
            error.rdkafka_error_code() == Some(RDKafkaErrorCode::ConcurrentTransactions);
        if is_pending && !self.may_commit {
            self.ids += 1;
            let id = format!("{}-{}", self.id, self.ids);
            self.config.set("transactional.id", id);
        }
    }

    /// Lets the next transactions be made by a producer for these demands.
    fn demand(&mut self, demands: Demands) {
        self.demands = demands;
        self.until = Instant::now() + AS_DEMANDED;
    }

    /// Writes a batch until it is durable, nothing of it is ours, or it is known that it cannot be written as it is.
    fn write(&mut self, mut submitted: Submitted, turn: &mut CommitTurn) -> Receipt {
        loop {
            submitted.keep_owned(&self.ownership);
            if submitted.batch.is_empty() {
                return Receipt::Dropped;
            }
            if submitted.needs_closed(self.encoder.writability())
                || submitted.is_unreadable(self.group.context().readability())
            {
                return Receipt::Returned(Box::new(submitted.returned()));
            }
            self.refuse_at_once(&mut submitted);
            match self.try_write(&submitted, turn) {
                Ok(()) => return committed(submitted),
                Err(Trouble::Undelivered(verdict)) => {
                    self.abort();
                    if let Some(receipt) = self.follow(*verdict, &mut submitted) {
                        return receipt;
                    }
                }
                Err(Trouble::GivenUp) => {
                    self.abort();
                }
                Err(Trouble::Late) => {
                    self.abort();
                    return Receipt::Returned(Box::new(submitted.returned()));
                }
                Err(Trouble::Slow(kind, share)) => {
                    return self.shrink(kind, share, submitted);
                }
                Err(Trouble::Abortable(error)) => {
                    let context = self.group.context();
                    let (worker, error) = (context.worker(), &error);
                    BatchAborted { worker, error }.emit(context.metrics());
                    context.refused(error);
                    self.abort();
                    thread::sleep(AGAIN);
                }
                Err(Trouble::Unknown(error)) => {
                    self.give_up("transaction", &error);
                    // Else the group's offsets say nothing of this transaction: equal ones are those of another.
                    if self.may_commit && self.settle_doubt(&mut submitted) {
                        return committed(submitted);
                    }
                    thread::sleep(AGAIN);
                }
            }
        }
    }

    /// Lets deliveries take their other form whose topic takes no records, as was found out not long ago or is said now: a transaction
    /// that waits for such a topic holds up everything else in it.
    fn refuse_at_once(&self, submitted: &mut Submitted) {
        let mut has_refused = false;
        for settled in &mut submitted.batch.settled {
            if let Some(target) = settled.target() {
                settled.refused = refuses(&self.group, self.encoder.writability(), target);
                has_refused |= settled.refused;
            }
        }
        if has_refused {
            submitted.tell_of_refused();
        }
    }

    /// Does what is to be done about records that were not delivered; gives a receipt if the batch cannot be written as it is.
    fn follow(&mut self, verdict: Verdict, submitted: &mut Submitted) -> Option<Receipt> {
        let Verdict {
            replaced,
            refused,
            closed,
            mixed,
            passing,
        } = verdict;
        if closed || !refused.is_empty() {
            let batch = mem::take(&mut submitted.batch);
            let returned = ReturnedBatch {
                refused,
                ..returned(batch)
            };
            return Some(Receipt::Returned(Box::new(returned)));
        }
        if !replaced.is_empty() {
            for index in replaced {
                submitted.batch.settled[index].refused = true;
            }
            submitted.tell_of_refused();
        } else if mixed {
            let pieces = self.made.pieces.smaller();
            self.demand(Demands {
                pieces,
                ..self.demands
            });
        } else {
            let error = passing.unwrap_or(KafkaError::Canceled);
            let context = self.group.context();
            let (worker, error) = (context.worker(), &error);
            BatchAborted { worker, error }.emit(context.metrics());
            thread::sleep(AGAIN);
        }
        None
    }

    /// Hands a batch back that did not fit the time it had; a single consequence gets more time instead.
    fn shrink(&mut self, kind: RecordKind, share: Part, submitted: Submitted) -> Receipt {
        let Part { done, of } = share;
        BatchSlow { done, of }.emit(self.group.context().metrics());
        let left = self.abort();
        if done == 0 {
            // A transaction that does not even begin may wait for the end of the one before.
            self.producer = None;
        }
        let writability = self.encoder.writability();
        let mut suspects = BTreeSet::new();
        for Undelivered { record, .. } in submitted.locate(kind, &self.encoder, left) {
            if suspects.insert(Arc::clone(&record.topic)) {
                writability.suspect(record);
            }
        }
        if submitted.batch.settled.len() <= 1 {
            let patience = (self.made.patience * 2).min(LONGEST_TRANSACTION);
            self.demand(Demands {
                patience,
                ..self.demands
            });
        }
        Receipt::Returned(Box::new(ReturnedBatch {
            slow: Some(share),
            ..returned(submitted.batch)
        }))
    }

    /// One transaction: records, turn, offsets, commit.
    fn try_write(&mut self, submitted: &Submitted, turn: &mut CommitTurn) -> Result<(), Trouble> {
        let group = Arc::clone(&self.group);
        let ownership = Arc::clone(&self.ownership);
        let returns = Arc::clone(&self.returns);
        self.ready().map_err(Trouble::Abortable)?;
        drop(self.producer()?.context().take_offsets());
        let ids = group.context().ids();
        // Before it writes anything: what it writes stands behind what is known by now.
        let filling = ids.fill();
        self.may_commit = false;
        self.producer()?.begin_transaction().map_err(classify)?;
        let parked = self.write_all(RecordKind::Consequence, submitted, &[])?;
        filling.done(&parked, self.producer()?.context().take_offsets());
        turn.take();
        if returns.load(Ordering::Acquire) != submitted.batch.returns {
            return Err(Trouble::Late);
        }
        let notes = ids.notes(&submitted.batch.shards());
        let mut settled = submitted.batch.settled.iter();
        if !notes.is_empty() || settled.any(|settled| settled.form().has(RecordKind::Order)) {
            let written = self.write_all(RecordKind::Order, submitted, &notes);
            if written.is_err() && !notes.is_empty() {
                // Nothing waits for these.
                ids.refused();
            }
            written?;
        }
        let offsets = submitted.batch.offsets().map_err(Trouble::Abortable)?;
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
        let patience = self.made.patience;
        self.producer()?
            .send_offsets_to_transaction(&offsets, &membership, patience)
            .map_err(classify)?;
        self.may_commit = true;
        self.producer()?
            .commit_transaction(patience)
            .map_err(classify)?;
        ids.written(notes);
        self.distrust(asked.elapsed());
        Ok(())
    }

    /// Writes the records of one kind, and what is known of ids besides, and waits for their acknowledgement. Nothing of it can take effect
    /// before the commit is asked for. Gives the tasks that are parked where it is to be known.
    fn write_all(
        &self,
        kind: RecordKind,
        submitted: &Submitted,
        notes: &[Note],
    ) -> Result<Vec<Parked>, Trouble> {
        let producer = self.producer()?;
        let (encoder, known) = (&*self.encoder, self.group.context().ids());
        let (mut number, mut scratch) = (0, Scratch::default());
        let (mut written, mut parked) = (Ok(()), Vec::new());
        for settled in &submitted.batch.settled {
            let write = |parts: Parts<'_>, headers, entry: Option<&Entry>| {
                let mut opaque = number;
                if let Some(Entry::Park { task, .. }) = entry
                    && let Some(shard) = parts.partition
                    && let Some(lane) = known.lane(parts.topic, shard)
                {
                    let hash = ids::hash(task.id.as_bytes());
                    parked.push(Parked { number, lane, hash });
                    opaque |= NOTED;
                }
                let record = to_produce(parts, headers, opaque);
                number += 1;
                produce(producer, record)
            };
            let form = settled.form();
            written = form.each(kind, settled.shards, encoder, &mut scratch, write);
            if written.is_err() {
                break;
            }
        }
        for note in notes {
            if written.is_err() {
                break;
            }
            let parts = Parts {
                topic: encoder.order(),
                partition: Some(note.shard()),
                key: Some(&note.key),
                value: note.value.as_deref(),
            };
            written = produce(
                producer,
                to_produce(parts, ClientHeaders::default(), number),
            );
            number += 1;
        }
        let flushed = match written {
            Ok(()) => settle_deliveries(producer, self.made.write()),
            Err(error) => Err(error),
        };
        let (failed, unregistered) = producer.context().take();
        if !failed.is_empty() || !unregistered.is_empty() {
            let mut undelivered = submitted.locate(kind, encoder, failed);
            learn_partitions(producer.client(), &mut undelivered);
            let writability = encoder.writability();
            let batch = &submitted.batch;
            let mut verdict = Verdict::of(undelivered, self.made.pieces, batch, writability);
            verdict.unregistered(unregistered, submitted, encoder);
            return Err(Trouble::Undelivered(Box::new(verdict)));
        }
        match flushed {
            Ok(Flushed::All) => Ok(parked),
            Ok(Flushed::Failed) => Err(Trouble::Abortable(KafkaError::Canceled)),
            Ok(Flushed::TimedOut(left)) => {
                let done = number.saturating_sub(left);
                Err(Trouble::Slow(kind, Part { done, of: number }))
            }
            Err(error) => Err(Trouble::Abortable(error)),
        }
    }

    /// Gives the producer up if one of its calls may have been sent twice: the first copy could still arrive, and end what comes after.
    fn distrust(&mut self, took: Duration) {
        if took >= RESENT {
            ProducerDistrusted { took }.emit(self.group.context().metrics());
            self.producer = None;
        }
    }

    /// Aborts the open transaction; gives the producer up if that fails. Says which records were not delivered.
    fn abort(&mut self) -> Vec<Failed> {
        let Some(producer) = &self.producer else {
            return Vec::new();
        };
        // The client's own abort waits for records under way, and hears of none of them: it does not poll.
        if producer.in_flight_count() > 0 {
            producer.purge(PurgeConfig::default().queue());
            if let Err(error) = flush(producer) {
                debug!(%error, "records still under way");
            }
        }
        let asked = Instant::now();
        // Its commit was not asked for, or refused.
        self.may_commit = false;
        if let Err(error) = producer.abort_transaction(CALL) {
            let (failed, _) = producer.context().take();
            self.give_up("abort", &error);
            return failed;
        }
        // Records purged by the abort report themselves as failed.
        let mut left = producer.in_flight_count();
        loop {
            producer.poll(Duration::ZERO);
            let before = mem::replace(&mut left, producer.in_flight_count());
            if left == 0 || left >= before {
                break;
            }
        }
        let (failed, _) = producer.context().take();
        self.distrust(asked.elapsed());
        failed
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
            match self.ready().and_then(|()| self.committed(&submitted.batch)) {
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
        if batch.has_more {
            return Ok(false);
        }
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
        .set("retry.backoff.ms", RETRY_BACKOFF)
        .set("retry.backoff.max.ms", RETRY_BACKOFF);
    config
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
