//! The ledger of a worker: two writers that take batches in turn, as `shell::ledger::transactional` has them.
//!
//! The same steps without threads: what waits there for an answer is a [`Stage`] here. Invariants: those of the shell's ledger.

use std::collections::{BTreeMap, BTreeSet};

use retide_core::{LaneId, Source, alert};

use crate::broker::{
    Aside, Cause, Fate, NO_OFFSET, Outgoing, PartitionId, Payload, ProducerId, Progress, Refusal,
    Topic,
};
use crate::bug::Bug;
use crate::world::{At, Caller, Env, MILLI, News, Part, Reply, Request};

/// The consequence of one offset.
#[derive(Clone, Debug)]
pub(crate) struct Settled {
    /// The offset.
    pub(crate) cause: Cause,
    /// The records to write.
    pub(crate) records: Vec<Outgoing>,
    /// The records to write instead if a topic refuses one of those.
    pub(crate) otherwise: Vec<Outgoing>,
}

/// What is committed together.
#[derive(Clone, Debug, Default)]
pub(crate) struct Batch {
    /// The consequences.
    pub(crate) settled: Vec<Settled>,
    /// The offsets they are the consequences of.
    pub(crate) progress: Vec<Progress>,
    /// How many batches its maker knows to have been handed back.
    pub(crate) returns: u64,
}

/// What became of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Receipt {
    /// It is durable, as far as its shards were still ours.
    Committed,
    /// None of its shards is ours any more.
    Dropped,
    /// It cannot be written as it is; nothing of it was committed.
    Returned,
}

/// What is said of a batch.
#[derive(Clone, Debug)]
pub(crate) struct Told {
    /// What became of it.
    pub(crate) receipt: Receipt,
    /// Which consequences were written in their other form.
    pub(crate) replaced: Vec<Cause>,
    /// Which have a record that is too large.
    pub(crate) large: BTreeMap<Cause, Topic>,
    /// Which topics took no records.
    pub(crate) closed: BTreeSet<Topic>,
}

/// The shards whose offsets may be committed, each with the epoch in which it was taken.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ownership {
    /// The shards.
    pub(crate) owned: BTreeMap<i32, u64>,
}

/// A batch on its way.
#[derive(Clone, Debug)]
struct Submitted {
    /// What to write.
    batch: Batch,
    /// The epochs of the shards that were ours when it was submitted.
    epochs: BTreeMap<i32, u64>,
    /// Whether a part of it was dropped.
    is_partial: bool,
    /// What is told of those that died since a topic refused them.
    told: Vec<Settled>,
}

/// What a writer waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// A batch.
    Idle,
    /// A producer.
    Init,
    /// The delivery of its records.
    Deliveries,
    /// Its turn, to commit.
    Turn,
    /// The delivery of what it has to write of the order of keys.
    KeyOrder,
    /// The offsets to be taken.
    Offsets,
    /// The transaction to commit.
    Commit,
    /// The transaction to abort; then it begins again at once or after a pause.
    Abort(Pause),
    /// A moment to pass, to begin again.
    Again,
    /// A new producer, which ends what the old one left.
    DoubtInit,
    /// The offsets of the group, which tell what became of a transaction.
    DoubtOffsets,
    /// A moment to pass, to ask again what became of a transaction.
    DoubtAgain,
    /// Its turn, to say what became of its batch.
    Report(Receipt),
}

/// Whether to begin again at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pause {
    /// At once.
    No,
    /// After a moment.
    Yes,
}

/// Whether a transaction was asked to commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Doubt {
    /// It was not, and has not committed whatever the group's offsets are.
    NotAsked,
    /// It was, and may have.
    Asked,
}

/// One of the two writers.
#[derive(Debug)]
struct Writer {
    /// Its transactional id.
    id: ProducerId,
    /// The epoch of its producer, unless that was given up.
    epoch: Option<u32>,
    /// What it waits for.
    stage: Stage,
    /// Its batch.
    submitted: Option<Submitted>,
    /// The requests that are not answered.
    calls: BTreeSet<u64>,
    /// Whether its producer is not to be used for another transaction.
    suspect: bool,
    /// Whether its transaction may have committed.
    doubt: Doubt,
    /// Whether a delivery failed.
    failed: bool,
    /// The consequences that were refused.
    refused: BTreeSet<Cause>,
    /// Those of its batch whose other form is written.
    replaced: Vec<Cause>,
    /// The consequences with a record that is too large.
    large: BTreeMap<Cause, Topic>,
    /// The topics that took no records.
    closed: BTreeSet<Topic>,
    /// Whether the batch is handed back once its transaction is aborted.
    gives_back: bool,
}

/// The ledger.
#[derive(Debug)]
pub(crate) struct Ledger {
    /// The writers.
    writers: [Writer; 2],
    /// Who gets the next batch.
    next: usize,
    /// Who may commit.
    turn: usize,
    /// How many batches were handed back.
    returns: u64,
    /// The mistake it makes.
    bug: Bug,
}

/// Pause before a batch is written again.
const AGAIN: At = 50 * MILLI;

// === impl Ownership ===

impl Ownership {
    /// Whether the shard has been ours without a break since `epochs`.
    fn still_has(&self, shard: i32, epochs: &BTreeMap<i32, u64>) -> bool {
        let since = epochs.get(&shard);
        since.is_some() && self.owned.get(&shard) == since
    }
}

// === impl Settled ===

impl Settled {
    /// What is written besides the consequences of offsets.
    pub(crate) fn beside(shard: i32, topic: Topic, payload: Payload) -> Self {
        let source = Source::Tasks;
        let cause = Cause {
            lane: LaneId { shard, source },
            offset: NO_OFFSET,
            of: 0,
        };
        Self {
            cause,
            records: vec![Outgoing {
                place: PartitionId { topic, shard },
                payload,
                cause,
            }],
            otherwise: Vec::new(),
        }
    }
}

// === impl Submitted ===

impl Submitted {
    /// Tells of those that died since a topic has refused them: of the consequences that are written in their other form.
    fn tell_of_refused(&mut self, replaced: &[Cause]) {
        let settled = self.batch.settled.iter();
        let refused = settled.filter(|settled| replaced.contains(&settled.cause));
        let dead = refused.flat_map(|settled| {
            let ended = settled.records.iter().filter_map(Outgoing::ended);
            ended.map(|ended| (settled.cause.lane.shard, ended))
        });
        let told = alert::of_dead(dead)
            .map(|(shard, alert)| Settled::beside(shard, Topic::Alerts, Payload::Alert(alert)));
        self.told = told.collect();
    }

    /// Drops what belongs to shards that are not ours, or have been away since.
    fn keep_owned(&mut self, ownership: &Ownership) {
        let Self {
            batch,
            epochs,
            is_partial,
            told: _,
        } = self;
        let ours = |lane: LaneId| ownership.still_has(lane.shard, epochs);
        let before = batch.settled.len();
        batch.settled.retain(|settled| ours(settled.cause.lane));
        batch.progress.retain(|progress| ours(progress.lane));
        *is_partial |= batch.settled.len() < before;
    }

    /// Whether all of its shards are still ours.
    fn is_owned(&self, ownership: &Ownership) -> bool {
        let progress = self.batch.progress.iter().map(|progress| progress.lane);
        let settled = self.batch.settled.iter().map(|settled| settled.cause.lane);
        progress
            .chain(settled)
            .all(|lane| ownership.still_has(lane.shard, &self.epochs))
    }
}

// === impl Ledger ===

impl Ledger {
    /// The ledger of `worker`.
    pub(crate) fn new(worker: usize, bug: Bug) -> Self {
        let writer = |writer| Writer {
            id: ProducerId { worker, writer },
            epoch: None,
            stage: Stage::Idle,
            submitted: None,
            calls: BTreeSet::new(),
            suspect: false,
            doubt: Doubt::NotAsked,
            failed: false,
            refused: BTreeSet::new(),
            replaced: Vec::new(),
            large: BTreeMap::new(),
            closed: BTreeSet::new(),
            gives_back: false,
        };
        Self {
            writers: [writer(0), writer(1)],
            next: 0,
            turn: 0,
            returns: 0,
            bug,
        }
    }

    /// Hands over a batch.
    pub(crate) fn submit(&mut self, batch: Batch, context: &mut CommitContext<'_>) {
        let index = self.next;
        self.next = 1 - self.next;
        let writer = &mut self.writers[index];
        assert_eq!(writer.stage, Stage::Idle, "a writer was given two batches");
        writer.submitted = Some(Submitted {
            batch,
            epochs: context.ownership.owned.clone(),
            is_partial: false,
            told: Vec::new(),
        });
        self.begin(index, context);
    }

    /// A moment has passed.
    pub(crate) fn again(&mut self, index: usize, context: &mut CommitContext<'_>) {
        if self.writers[index].stage == Stage::DoubtAgain {
            return self.doubt(index, context);
        }
        self.begin(index, context);
    }

    /// A request was answered, or not in time.
    pub(crate) fn answered(
        &mut self,
        index: usize,
        call: u64,
        reply: Reply,
        context: &mut CommitContext<'_>,
    ) {
        // What comes after its sender has stopped waiting is dropped by the client.
        if !self.writers[index].calls.remove(&call) {
            return;
        }
        let reply = self.heard(index, reply);
        match (self.writers[index].stage, reply) {
            (Stage::Init, Reply::Epoch(epoch)) => {
                self.writers[index].epoch = Some(epoch);
                self.send(index, context);
            }
            (Stage::Deliveries, reply) => self.delivered(index, reply, context),
            (Stage::KeyOrder, Reply::Unwritable { closed, .. })
                if self.bug != Bug::RefusedRepeated =>
            {
                self.writers[index].closed.extend(closed);
                self.give_back(index, context);
            }
            (Stage::KeyOrder, Reply::Unwritable { .. }) => self.abort(index, Pause::Yes, context),
            (Stage::KeyOrder, Reply::Done) => {
                if self.writers[index].calls.is_empty() {
                    self.offsets(index, context);
                }
            }
            (Stage::Offsets, Reply::Done) => {
                self.end(index, Fate::Committed, Stage::Commit, context);
            }
            (Stage::Commit, Reply::Done) => self.report(index, Receipt::Committed, context),
            (Stage::Offsets | Stage::Commit, Reply::Refused(Refusal::Generation))
            | (Stage::KeyOrder | Stage::Offsets | Stage::Commit, Reply::Failed) => {
                self.abort(index, Pause::Yes, context);
            }
            (Stage::Abort(Pause::Yes), Reply::Done) if self.bug == Bug::DroppedOnAbort => {
                self.report(index, Receipt::Committed, context);
            }
            (Stage::Abort(Pause::No), Reply::Done) => self.begin(index, context),
            // Without a producer there is no transaction, and nothing to be in doubt about.
            (Stage::Abort(Pause::Yes), Reply::Done) | (Stage::Init, _) => {
                self.sleep(index, Stage::Again, context);
            }
            (Stage::Abort(pause), _) => {
                self.writers[index].epoch = None;
                match pause {
                    Pause::No => self.begin(index, context),
                    Pause::Yes => self.sleep(index, Stage::Again, context),
                }
            }
            (Stage::DoubtInit, Reply::Epoch(epoch)) => {
                self.writers[index].epoch = Some(epoch);
                self.ask_offsets(index, context);
            }
            (Stage::DoubtInit, Reply::Done | Reply::Refused(_))
                if self.bug == Bug::ProducerKept =>
            {
                self.ask_offsets(index, context);
            }
            (Stage::DoubtOffsets, Reply::Offsets(offsets)) => {
                self.compare(index, &offsets, context);
            }
            (Stage::DoubtInit | Stage::DoubtOffsets, _) => {
                self.writers[index].epoch = None;
                self.sleep(index, Stage::DoubtAgain, context);
            }
            (Stage::KeyOrder | Stage::Offsets | Stage::Commit, _) => {
                self.lose_sight(index, context);
            }
            (stage, reply) => unreachable!("{reply:?} while waiting for {stage:?}"),
        }
    }

    /// An answer, with what it means for the producer: what its client has sent twice may arrive once more, in a transaction that comes
    /// after it.
    fn heard(&mut self, index: usize, reply: Reply) -> Reply {
        if !matches!(reply, Reply::DoneAgain) {
            return reply;
        }
        self.writers[index].suspect = self.bug != Bug::RepeatedKept;
        Reply::Done
    }

    /// Writes a batch, or what is left of it.
    fn begin(&mut self, index: usize, context: &mut CommitContext<'_>) {
        let writer = &mut self.writers[index];
        if std::mem::take(&mut writer.gives_back) {
            return self.report(index, Receipt::Returned, context);
        }
        writer.failed = false;
        writer.doubt = Doubt::NotAsked;
        writer.calls.clear();
        if std::mem::take(&mut writer.suspect) {
            writer.epoch = None;
        }
        let Some(submitted) = &mut writer.submitted else {
            unreachable!("nothing to write");
        };
        if self.bug != Bug::CommitAfterRevoke {
            submitted.keep_owned(context.ownership);
        }
        for settled in &mut submitted.batch.settled {
            if writer.refused.contains(&settled.cause) {
                settled.records = std::mem::take(&mut settled.otherwise);
                writer.replaced.push(settled.cause);
            }
        }
        writer.refused.clear();
        if self.bug != Bug::RefusedUntold {
            submitted.tell_of_refused(&writer.replaced);
        }
        if submitted.batch.progress.is_empty() {
            return self.report(index, Receipt::Dropped, context);
        }
        if writer.epoch.is_none() {
            let request = Request::Init { id: writer.id };
            return self.call(index, Stage::Init, &request, context);
        }
        self.send(index, context);
    }

    /// Sends the records of a batch.
    fn send(&mut self, index: usize, context: &mut CommitContext<'_>) {
        let writer = &self.writers[index];
        let (Some(submitted), Some(epoch)) = (&writer.submitted, writer.epoch) else {
            unreachable!("nothing to send");
        };
        let id = writer.id;
        // A few requests of whole partitions each.
        let requests = context.env.chance.between(1, 3);
        let mut parts: BTreeMap<u64, Vec<Outgoing>> = BTreeMap::new();
        let out_of_turn = self.bug == Bug::KeyOrderOutOfTurn;
        let settled = submitted.batch.settled.iter().chain(&submitted.told);
        for record in settled.flat_map(|one| &one.records) {
            if record.place.topic == Topic::KeyOrder && !out_of_turn {
                continue;
            }
            let place = record.place;
            let hash = place.shard as u64 * 3 + topic_number(place.topic);
            parts
                .entry(hash % requests)
                .or_default()
                .push(record.clone());
        }
        self.writers[index].stage = Stage::Deliveries;
        let empty = parts.is_empty();
        for records in parts.into_values() {
            let request = Request::Produce { id, epoch, records };
            self.call(index, Stage::Deliveries, &request, context);
        }
        if empty || self.bug == Bug::CommitBeforeProduce {
            self.writers[index].calls.clear();
            self.take_turn(index, context);
        }
    }

    /// A request with records was answered.
    fn delivered(&mut self, index: usize, reply: Reply, context: &mut CommitContext<'_>) {
        let swallow = self.bug == Bug::SwallowedDelivery;
        let writer = &mut self.writers[index];
        match reply {
            Reply::Done => {}
            Reply::Failed if swallow => {}
            Reply::Failed => writer.failed = true,
            Reply::Rejected(causes) => {
                writer.failed |= causes.is_empty();
                writer.refused.extend(causes);
            }
            Reply::Unwritable { .. } if self.bug == Bug::RefusedRepeated => writer.failed = true,
            Reply::Unwritable { closed, large } => {
                writer.closed.extend(closed);
                writer.large.extend(large);
            }
            Reply::Refused(_)
            | Reply::TimedOut
            | Reply::Epoch(_)
            | Reply::DoneAgain
            | Reply::KeyOrder(_)
            | Reply::Offsets(_) => {
                return self.lose_sight(index, context);
            }
        }
        if !writer.calls.is_empty() {
            return;
        }
        if !writer.closed.is_empty() || !writer.large.is_empty() {
            return self.give_back(index, context);
        }
        if writer.failed {
            // What failed for another reason is written again as it was.
            writer.refused.clear();
            return self.abort(index, Pause::Yes, context);
        }
        if !writer.refused.is_empty() {
            return self.abort(index, Pause::No, context);
        }
        self.take_turn(index, context);
    }

    /// Waits for the right to commit.
    fn take_turn(&mut self, index: usize, context: &mut CommitContext<'_>) {
        self.writers[index].stage = Stage::Turn;
        if self.turn == index || self.bug == Bug::TurnIgnored {
            self.key_order(index, context);
        }
    }

    /// Hands a batch back after its transaction is aborted.
    fn give_back(&mut self, index: usize, context: &mut CommitContext<'_>) {
        self.writers[index].gives_back = true;
        self.writers[index].refused.clear();
        self.abort(index, Pause::No, context);
    }

    /// Writes what there is of the order of keys: nothing of the batch before can come behind it any more.
    fn key_order(&mut self, index: usize, context: &mut CommitContext<'_>) {
        let writer = &self.writers[index];
        let (Some(submitted), Some(epoch)) = (&writer.submitted, writer.epoch) else {
            unreachable!("nothing to commit");
        };
        let id = writer.id;
        if submitted.batch.returns != self.returns && self.bug != Bug::ReturnIgnored {
            return self.give_back(index, context);
        }
        let records = submitted.batch.settled.iter().flat_map(|one| &one.records);
        let records: Vec<Outgoing> = records
            .filter(|record| record.place.topic == Topic::KeyOrder)
            .cloned()
            .collect();
        if records.is_empty() || self.bug == Bug::KeyOrderOutOfTurn {
            return self.offsets(index, context);
        }
        let request = Request::Produce { id, epoch, records };
        self.call(index, Stage::KeyOrder, &request, context);
    }

    /// Adds the offsets to the transaction.
    fn offsets(&mut self, index: usize, context: &mut CommitContext<'_>) {
        let writer = &self.writers[index];
        let (Some(submitted), Some(epoch)) = (&writer.submitted, writer.epoch) else {
            unreachable!("nothing to commit");
        };
        let Some(membership) = context.membership else {
            return self.abort(index, Pause::Yes, context);
        };
        if self.bug != Bug::CommitAfterRevoke && !submitted.is_owned(context.ownership) {
            return self.abort(index, Pause::No, context);
        }
        let silent = submitted.batch.settled.iter();
        let silent = silent
            .filter(|settled| settled.cause.of == 0 && settled.cause.offset != NO_OFFSET)
            .map(|settled| settled.cause);
        let request = Request::Offsets {
            id: writer.id,
            epoch,
            offsets: submitted.batch.progress.clone(),
            aside: Aside {
                silent: silent.collect(),
                is_partial: submitted.is_partial,
            },
            membership,
        };
        self.call(index, Stage::Offsets, &request, context);
    }

    /// Aborts the transaction and begins again.
    fn abort(&mut self, index: usize, pause: Pause, context: &mut CommitContext<'_>) {
        self.writers[index].calls.clear();
        self.end(index, Fate::Aborted, Stage::Abort(pause), context);
    }

    /// Ends the transaction.
    fn end(&mut self, index: usize, fate: Fate, stage: Stage, context: &mut CommitContext<'_>) {
        let writer = &mut self.writers[index];
        if fate == Fate::Committed {
            writer.doubt = Doubt::Asked;
        }
        let (id, Some(epoch)) = (writer.id, writer.epoch) else {
            unreachable!("no transaction to end");
        };
        self.call(index, stage, &Request::End { id, epoch, fate }, context);
    }

    /// Nobody knows what became of a transaction: gives the producer up, and finds out.
    fn lose_sight(&mut self, index: usize, context: &mut CommitContext<'_>) {
        let timed_out_in_commit = self.writers[index].stage == Stage::Commit;
        if timed_out_in_commit && self.bug == Bug::DoubtTakenAsDone {
            self.writers[index].epoch = None;
            return self.report(index, Receipt::Committed, context);
        }
        if timed_out_in_commit && self.bug == Bug::DoubtTakenAsFailed {
            self.writers[index].epoch = None;
            return self.sleep(index, Stage::Again, context);
        }
        if timed_out_in_commit && self.bug == Bug::ProducerKept {
            // Ends what may have ended already, and goes on with the same epoch.
            return self.end(index, Fate::Aborted, Stage::DoubtInit, context);
        }
        self.writers[index].epoch = None;
        self.doubt(index, context);
    }

    /// Finds out what became of a transaction.
    fn doubt(&mut self, index: usize, context: &mut CommitContext<'_>) {
        let writer = &mut self.writers[index];
        writer.calls.clear();
        let Some(submitted) = &mut writer.submitted else {
            unreachable!("no transaction to find out about");
        };
        submitted.keep_owned(context.ownership);
        if submitted.batch.progress.is_empty() {
            return self.sleep(index, Stage::Again, context);
        }
        if writer.epoch.is_some() {
            return self.ask_offsets(index, context);
        }
        let request = Request::Init { id: writer.id };
        self.call(index, Stage::DoubtInit, &request, context);
    }

    /// Asks for the offsets of the group.
    fn ask_offsets(&mut self, index: usize, context: &mut CommitContext<'_>) {
        let submitted = submitted_of(&self.writers[index]);
        let lanes = submitted
            .batch
            .progress
            .iter()
            .map(|progress| progress.lane);
        let request = Request::Fetch {
            lanes: lanes.collect(),
        };
        self.call(index, Stage::DoubtOffsets, &request, context);
    }

    /// The transaction has committed if, and only if, it was asked to and the group's offsets are those of the batch. They are equal without
    /// a commit where a batch completes nothing that was not complete before.
    fn compare(&mut self, index: usize, offsets: &[Progress], context: &mut CommitContext<'_>) {
        let writer = &self.writers[index];
        let mut progress = submitted_of(writer).batch.progress.iter();
        if writer.doubt == Doubt::Asked && progress.all(|progress| offsets.contains(progress)) {
            return self.report(index, Receipt::Committed, context);
        }
        self.sleep(index, Stage::Again, context);
    }

    /// Lets a moment pass.
    fn sleep(&mut self, index: usize, stage: Stage, context: &mut CommitContext<'_>) {
        let writer = &mut self.writers[index];
        writer.stage = stage;
        writer.calls.clear();
        let worker = writer.id.worker;
        context
            .env
            .tell(AGAIN, worker, News::Again { writer: index });
    }

    /// Says what became of a batch, when it is this writer's turn.
    fn report(&mut self, index: usize, receipt: Receipt, context: &mut CommitContext<'_>) {
        let writer = &mut self.writers[index];
        writer.calls.clear();
        writer.stage = Stage::Report(receipt);
        if self.turn != index && self.bug != Bug::TurnIgnored {
            return;
        }
        writer.stage = Stage::Idle;
        writer.submitted = None;
        let replaced = std::mem::take(&mut writer.replaced);
        context.receipts.push(Told {
            receipt,
            replaced,
            large: std::mem::take(&mut writer.large),
            closed: std::mem::take(&mut writer.closed),
        });
        self.returns += u64::from(receipt == Receipt::Returned);
        let other = 1 - index;
        self.turn = other;
        if self.writers[other].stage == Stage::Turn {
            self.key_order(other, context);
        } else if let Stage::Report(receipt) = self.writers[other].stage {
            self.report(other, receipt, context);
        }
    }

    /// Asks something of the broker.
    fn call(
        &mut self,
        index: usize,
        stage: Stage,
        request: &Request,
        context: &mut CommitContext<'_>,
    ) {
        let writer = &mut self.writers[index];
        writer.stage = stage;
        let caller = Caller {
            worker: writer.id.worker,
            part: Part::Writer(index),
        };
        let call = context.env.ask(caller, request);
        writer.calls.insert(call);
    }
}

/// What a ledger needs of the worker it belongs to.
pub(crate) struct CommitContext<'a> {
    /// The world.
    pub(crate) env: &'a mut Env,
    /// The shards that are ours.
    pub(crate) ownership: &'a Ownership,
    /// The consumer's place in the group.
    pub(crate) membership: Option<crate::group::Membership>,
    /// What is said of batches.
    pub(crate) receipts: &'a mut Vec<Told>,
}

/// The batch a writer works on.
fn submitted_of(writer: &Writer) -> &Submitted {
    let Some(submitted) = &writer.submitted else {
        unreachable!("no batch");
    };
    submitted
}

/// A number for each topic.
fn topic_number(topic: Topic) -> u64 {
    use retide_core::Source;
    match topic {
        Topic::Events | Topic::KeyOrder | Topic::Alerts => 0,
        Topic::DeadLetters => 1,
        Topic::Orders => 2,
        Topic::Read(Source::Tasks) => 3,
        Topic::Callbacks => 4,
        Topic::Read(Source::Commands) => 99,
        Topic::Read(Source::Tier(tier)) => 5 + tier as u64,
    }
}
