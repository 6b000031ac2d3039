//! The broker: partitions, transactions and what readers may see of them.
//!
//! One broker, never down; what goes wrong on the way to it and back is the world's. Modelled on Kafka's transaction protocol as
//! librdkafka speaks it, without the epoch bump at each transaction of KIP-890. Invariant: a reader sees a record once its
//! transaction has committed, and no offset is handed out twice.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use retide_core::completions::Binding;
use retide_core::control::{Control, Place, Progress as StepProgress};
use retide_core::duplicates::{Identity, Known as KnownId, Replaced};
use retide_core::hold::Standing as HoldStanding;
use retide_core::key_order::Shard;
use retide_core::state::State;
use retide_core::taken::Taken;
use retide_core::{Alert, Ended, Event, LaneId, Poison, Sink, Source, Task, Timestamp};

use crate::bug::Bug;
use crate::group::{Group, Membership};
use crate::orders::Order;
use crate::plan::Submission;
use crate::world::At;

/// A partition of one of retide's topics, or of a target's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct PartitionId {
    /// The topic.
    pub(crate) topic: Topic,
    /// The partition.
    pub(crate) shard: i32,
}

/// A topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Topic {
    /// One that tasks are read from.
    Read(Source),
    /// The callbacks.
    Callbacks,
    /// The events.
    Events,
    /// The dead letters.
    DeadLetters,
    /// What a topic target delivers to.
    Orders,
    /// Which tasks of a key are outstanding.
    KeyOrder,
    /// What people must know.
    Alerts,
}

/// What a record holds.
#[derive(Clone, Debug)]
pub(crate) enum Payload {
    /// What a producer asks for.
    Submitted(Arc<Submission>),
    /// A task that waits.
    Parked(Arc<Task>),
    /// The end of a task.
    Callback(Arc<Ended>),
    /// A task that ended badly.
    DeadLetter(Arc<Task>, Arc<Ended>),
    /// A record that is no task.
    Poison(Arc<Poison>),
    /// A task delivered to a topic.
    Delivered(Arc<Task>),
    /// A transition.
    Event(Arc<Event>),
    /// The outstanding tasks of a key.
    State(State),
    /// What people must know.
    Alert(Box<Alert>),
    /// A command that somebody sends.
    Order(Box<Order>),
    /// What follows from one.
    Control(Box<Control>),
}

/// A record to write, as part of the consequence of one offset.
#[derive(Clone, Debug)]
pub(crate) struct Outgoing {
    /// Where to.
    pub(crate) place: PartitionId,
    /// What.
    pub(crate) payload: Payload,
    /// Which offset it follows from.
    pub(crate) cause: Cause,
}

/// The offset that a record follows from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Cause {
    /// The lane.
    pub(crate) lane: LaneId,
    /// The offset.
    pub(crate) offset: i64,
    /// How many records follow from it.
    pub(crate) of: usize,
}

/// The next offset of one lane, as it is committed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Progress {
    /// The lane.
    pub(crate) lane: LaneId,
    /// The next offset to read.
    pub(crate) next: i64,
    /// The completions above it, as text.
    pub(crate) metadata: String,
}

/// A transactional id: a worker and one of its two writers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ProducerId {
    /// The worker.
    pub(crate) worker: usize,
    /// The writer.
    pub(crate) writer: usize,
}

/// One record or marker of a partition; its index is its offset.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    /// When it was appended, by the broker's clock.
    pub(crate) appended: Timestamp,
    /// What it holds; nothing if it is a marker.
    pub(crate) payload: Option<Payload>,
    /// What became of its transaction.
    pub(crate) fate: Fate,
}

/// What became of a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// Nothing yet.
    Open(ProducerId),
    /// It is to be read.
    Committed,
    /// It is to be skipped.
    Aborted,
}

/// A partition.
#[derive(Debug, Default)]
pub(crate) struct Partition {
    /// Its records and markers.
    pub(crate) log: Vec<Entry>,
    /// The first offset of each open transaction.
    open: BTreeMap<ProducerId, i64>,
}

/// The state of a transactional id.
#[derive(Debug)]
struct Producer {
    /// The epoch; requests of a lower one are refused.
    epoch: u32,
    /// Its transaction.
    transaction: Transaction,
}

/// A transaction.
#[derive(Debug)]
enum Transaction {
    /// None, or the last one has ended.
    None {
        /// How the last one ended.
        last: Option<Fate>,
    },
    /// Records may be added.
    Open(Open),
    /// Decided; its markers are being written.
    Ending {
        /// How it ends.
        fate: Fate,
        /// The partitions without a marker yet.
        places: BTreeSet<PartitionId>,
        /// The offsets, until they are in force.
        offsets: Option<Vec<(u64, Progress)>>,
    },
}

/// A transaction that records may be added to.
#[derive(Debug, Default)]
struct Open {
    /// Tells it from the next one.
    serial: u64,
    /// The partitions written to.
    places: BTreeSet<PartitionId>,
    /// The records written.
    records: Vec<Outgoing>,
    /// The offsets to commit, each with its place in the order in which they came.
    offsets: Vec<(u64, Progress)>,
    /// What its records do not say.
    aside: Aside,
}

/// What the judge is told of a transaction that its records do not say.
#[derive(Clone, Debug, Default)]
pub(crate) struct Aside {
    /// Offsets from which nothing follows.
    pub(crate) silent: Vec<Cause>,
    /// Whether a part of its batch was dropped, since shards were lost meanwhile.
    pub(crate) is_partial: bool,
}

/// Why a request was not followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// A newer producer has the transactional id, or there is no such transaction.
    Fenced,
    /// The transaction before is not over.
    Concurrent,
    /// The member is not one of the group, or of another generation.
    Generation,
}

/// What a commit made durable.
#[derive(Debug, Default)]
pub(crate) struct Decided {
    /// How it was decided.
    pub(crate) committed: bool,
    /// The partitions whose markers are to be written.
    pub(crate) places: Vec<PartitionId>,
    /// The records it made durable.
    pub(crate) records: Vec<Outgoing>,
    /// What those do not say.
    pub(crate) aside: Aside,
}

/// All that the broker knows.
#[derive(Debug, Default)]
pub(crate) struct Broker {
    /// The partitions.
    partitions: BTreeMap<PartitionId, Partition>,
    /// The transactional ids.
    producers: BTreeMap<ProducerId, Producer>,
    /// The group.
    pub(crate) group: Group,
    /// The offsets in force.
    committed: BTreeMap<LaneId, (u64, Progress)>,
    /// How many offsets came.
    came: u64,
    /// The transaction that began last, until someone asks.
    begun: Option<(ProducerId, u64)>,
    /// The number of the last transaction.
    serial: u64,
    /// Whether the targets' topic refuses records.
    pub(crate) refuses_orders: bool,
    /// Which of retide's topics take no records, and until when.
    pub(crate) closed: BTreeMap<Topic, At>,
}

/// What metadata of a lane's commits is bound to.
pub(crate) fn binding(lane: LaneId) -> Binding {
    bound_by("here", lane)
}

/// What metadata of the same lane's commits is bound to on another cluster.
pub(crate) fn binding_elsewhere(lane: LaneId) -> Binding {
    bound_by("elsewhere", lane)
}

/// What metadata is bound to on this cluster.
fn bound_by(cluster: &str, LaneId { shard, source }: LaneId) -> Binding {
    Binding::new(cluster, &format!("{source:?}"), 1, shard)
}
/// What the value of a record begins with that is too large for retide's topics: it came compressed.
pub(crate) const LARGE: &[u8] = b"large";

/// Longest metadata of an offset commit: the broker's default.
pub(crate) const MAX_METADATA: usize = 4_096;

/// The offset of what follows from no offset of its own.
pub(crate) const NO_OFFSET: i64 = -1;

// === impl Outgoing ===

impl Outgoing {
    /// The end of the task whose dead letter it is.
    pub(crate) fn ended(&self) -> Option<&Ended> {
        match &self.payload {
            Payload::DeadLetter(_, ended) => Some(ended),
            Payload::Submitted(_)
            | Payload::Parked(_)
            | Payload::Callback(_)
            | Payload::Delivered(_)
            | Payload::Event(_)
            | Payload::Poison(_)
            | Payload::State(_)
            | Payload::Order(_)
            | Payload::Control(_)
            | Payload::Alert(_) => None,
        }
    }

    /// Whether it is larger than any topic of retide takes.
    pub(crate) fn is_too_large(&self) -> bool {
        let (Payload::Parked(task) | Payload::DeadLetter(task, _)) = &self.payload else {
            return false;
        };
        task.record
            .value
            .as_ref()
            .is_some_and(|value| value.starts_with(LARGE))
    }
}

// === impl Topic ===

impl Topic {
    /// What the core calls it, if it is one of those that it may have to do without.
    pub(crate) const fn sink(self) -> Option<Sink> {
        match self {
            Self::Callbacks => Some(Sink::Callbacks),
            Self::Events => Some(Sink::Events),
            Self::DeadLetters => Some(Sink::DeadLetters),
            Self::Alerts => Some(Sink::Alerts),
            Self::KeyOrder => Some(Sink::Order),
            Self::Read(Source::Commands) => Some(Sink::Commands),
            Self::Read(Source::Tasks | Source::Tier(_)) | Self::Orders => None,
        }
    }
}

/// What former owners of a shard have written of it.
#[derive(Clone, Debug, Default)]
pub(crate) struct KnownShard {
    /// The order of its tasks.
    pub(crate) order: Shard,
    /// The taken offsets of its tiers.
    pub(crate) taken: BTreeMap<Source, Taken>,
    /// How far its steps are.
    pub(crate) steps: BTreeMap<Place, StepProgress>,
    /// How holds stand.
    pub(crate) holds: BTreeMap<Arc<str>, HoldStanding>,
    /// Which ids are under way, or have ended of late.
    pub(crate) ids: BTreeMap<Identity, KnownId>,
    /// Which dead letters were replayed.
    pub(crate) replayed: BTreeMap<i32, Taken>,
    /// When people were told of dead letters that go, by partition.
    pub(crate) warned: BTreeMap<i32, Timestamp>,
    /// Which tasks are replaced.
    pub(crate) replaced: BTreeMap<i64, Replaced>,
}

// === impl KnownShard ===

impl KnownShard {
    /// Takes in a record.
    pub(crate) fn replay(&mut self, state: &State) {
        match state {
            State::Order(change) => {
                let key = change.key.to_string();
                let read = self.order.replay(key.as_bytes(), change.value.as_deref());
                read.unwrap_or_else(|error| unreachable!("{error}"));
            }
            State::Taken {
                source,
                chunk,
                marks,
            } => {
                let taken = self.taken.entry(*source).or_default();
                let read = taken.replay(*chunk, marks.as_deref());
                read.unwrap_or_else(|| unreachable!("marks that cannot be read"));
            }
            State::Step { place, progress } => match progress {
                Some(progress) => drop(self.steps.insert(*place, progress.clone())),
                None => drop(self.steps.remove(place)),
            },
            State::Letters {
                partition,
                chunk,
                marks,
            } => {
                let known = self.replayed.entry(*partition).or_default();
                let read = known.replay(*chunk, marks.as_deref());
                read.unwrap_or_else(|| unreachable!("marks that cannot be read"));
            }
            State::Warned { partition, at } => match at {
                Some(at) => drop(self.warned.insert(*partition, *at)),
                None => drop(self.warned.remove(partition)),
            },
            State::Hold { name, standing } => match standing {
                Some(standing) => drop(self.holds.insert(Arc::clone(name), *standing)),
                None => drop(self.holds.remove(name)),
            },
            State::Id { id, known } => match known {
                Some(known) => drop(self.ids.insert(*id, *known)),
                None => drop(self.ids.remove(id)),
            },
            State::Replaced { task, replaced } => match replaced {
                Some(replaced) => drop(self.replaced.insert(*task, *replaced)),
                None => drop(self.replaced.remove(task)),
            },
        }
    }
}

// === impl Entry ===

impl Entry {
    /// Whether a reader is given it.
    pub(crate) fn is_readable(&self, bug: Bug) -> bool {
        match self.fate {
            Fate::Committed => true,
            Fate::Open(_) => bug == Bug::ReadUncommitted,
            Fate::Aborted => false,
        }
    }
}

// === impl Partition ===

impl Partition {
    /// One past the last offset that readers may see: no open transaction below it.
    pub(crate) fn stable_end(&self) -> i64 {
        let first_open = self.open.values().min().copied();
        first_open.unwrap_or(self.log.len() as i64)
    }

    /// Appends a record or a marker.
    fn append(&mut self, entry: Entry) {
        self.log.push(entry);
    }
}

// === impl Broker ===

impl Broker {
    /// The partition at `place`.
    pub(crate) fn partition(&mut self, place: PartitionId) -> &mut Partition {
        self.partitions.entry(place).or_default()
    }

    /// All partitions that anything was written to.
    pub(crate) fn partitions(&self) -> impl Iterator<Item = (&PartitionId, &Partition)> {
        self.partitions.iter()
    }

    /// A record outside of any transaction; gives its offset.
    pub(crate) fn append(
        &mut self,
        place: PartitionId,
        payload: Payload,
        appended: Timestamp,
    ) -> i64 {
        let partition = self.partition(place);
        let offset = partition.log.len() as i64;
        partition.append(Entry {
            appended,
            payload: Some(payload),
            fate: Fate::Committed,
        });
        offset
    }

    /// Gives out a new epoch, once the transaction before it is over. If there is one to be aborted, it says so.
    pub(crate) fn init(&mut self, id: ProducerId) -> (Result<u32, Refusal>, Option<Decided>) {
        let producer = self.producers.entry(id).or_insert(Producer {
            epoch: 0,
            transaction: Transaction::None { last: None },
        });
        match &producer.transaction {
            Transaction::None { .. } => {
                producer.epoch += 1;
                producer.transaction = Transaction::None { last: None };
                (Ok(producer.epoch), None)
            }
            Transaction::Open(_) => {
                producer.epoch += 1;
                let decided = self.decide(id, Fate::Aborted);
                (Err(Refusal::Concurrent), Some(decided))
            }
            Transaction::Ending { .. } => (Err(Refusal::Concurrent), None),
        }
    }

    /// The transaction that has begun since this was asked last, and its number.
    pub(crate) fn begun(&mut self) -> Option<(ProducerId, u64)> {
        self.begun.take()
    }

    /// Adds records to the transaction of `id`, which begins with them if need be.
    pub(crate) fn produce(
        &mut self,
        id: ProducerId,
        epoch: u32,
        records: Vec<Outgoing>,
        appended: Timestamp,
    ) -> Result<(), Refusal> {
        self.open(id, epoch)?;
        for record in records {
            let partition = self.partitions.entry(record.place).or_default();
            let offset = partition.log.len() as i64;
            partition.open.entry(id).or_insert(offset);
            partition.append(Entry {
                appended,
                payload: Some(record.payload.clone()),
                fate: Fate::Open(id),
            });
            let open = self.transaction(id);
            open.places.insert(record.place);
            open.records.push(record);
        }
        Ok(())
    }

    /// Adds offsets to the transaction of `id`, if the member may commit them.
    pub(crate) fn add_offsets(
        &mut self,
        id: ProducerId,
        epoch: u32,
        (offsets, aside): (Vec<Progress>, Aside),
        membership: Membership,
    ) -> Result<(), Refusal> {
        self.open(id, epoch)?;
        if !self.group.accepts(membership) {
            return Err(Refusal::Generation);
        }
        let first = self.came;
        self.came += offsets.len() as u64;
        let open = self.transaction(id);
        open.offsets.extend((first..).zip(offsets));
        open.aside.silent.extend(aside.silent);
        open.aside.is_partial |= aside.is_partial;
        Ok(())
    }

    /// Ends the transaction of `id`.
    pub(crate) fn end(
        &mut self,
        id: ProducerId,
        epoch: u32,
        fate: Fate,
    ) -> Result<Option<Decided>, Refusal> {
        let producer = self.producers.get(&id).ok_or(Refusal::Fenced)?;
        if producer.epoch != epoch {
            return Err(Refusal::Fenced);
        }
        match &producer.transaction {
            Transaction::Open(_) => Ok(Some(self.decide(id, fate))),
            Transaction::Ending { .. } => Err(Refusal::Concurrent),
            // Said again, or there was nothing to end, which a client does not even ask.
            Transaction::None { last } if last.is_none_or(|last| last == fate) => Ok(None),
            Transaction::None { .. } => Err(Refusal::Fenced),
        }
    }

    /// Aborts a transaction that takes too long; its producer is fenced.
    pub(crate) fn time_out(&mut self, id: ProducerId, serial: u64) -> Option<Decided> {
        let producer = self.producers.get_mut(&id)?;
        match &producer.transaction {
            Transaction::Open(open) if open.serial == serial => {
                producer.epoch += 1;
                Some(self.decide(id, Fate::Aborted))
            }
            Transaction::Open(_) | Transaction::None { .. } | Transaction::Ending { .. } => None,
        }
    }

    /// Writes the marker of a decided transaction to a partition.
    pub(crate) fn mark(&mut self, id: ProducerId, place: PartitionId, appended: Timestamp) {
        let Some(Producer {
            transaction: Transaction::Ending { fate, places, .. },
            ..
        }) = self.producers.get_mut(&id)
        else {
            unreachable!("a marker without a decision");
        };
        places.remove(&place);
        let fate = *fate;
        let partition = self.partitions.entry(place).or_default();
        let first = partition
            .open
            .remove(&id)
            .unwrap_or_else(|| unreachable!("a marker without records"));
        for entry in &mut partition.log[first as usize..] {
            if entry.fate == Fate::Open(id) {
                entry.fate = fate;
            }
        }
        partition.append(Entry {
            appended,
            payload: None,
            fate,
        });
        self.close_if_marked(id);
    }

    /// Puts the offsets of a decided transaction in force; gives those that are.
    pub(crate) fn mark_offsets(&mut self, id: ProducerId) -> Vec<Progress> {
        let Some(Producer {
            transaction: Transaction::Ending { fate, offsets, .. },
            ..
        }) = self.producers.get_mut(&id)
        else {
            unreachable!("a marker without a decision");
        };
        let mut offsets = offsets.take().unwrap_or_default();
        if *fate == Fate::Aborted {
            offsets.clear();
        }
        // Markers may come in another order than the offsets did: the offsets that came last count.
        let committed = &self.committed;
        offsets.retain(|(order, progress)| {
            let before = committed.get(&progress.lane);
            before.is_none_or(|(before, _)| before < order)
        });
        for (order, progress) in &offsets {
            let offset = (*order, progress.clone());
            self.committed.insert(progress.lane, offset);
        }
        self.close_if_marked(id);
        offsets.into_iter().map(|(_, progress)| progress).collect()
    }

    /// Somebody sets a committed offset, with metadata that was not written for it.
    pub(crate) fn set_offset(&mut self, progress: Progress) {
        self.committed.insert(progress.lane, (self.came, progress));
        self.came += 1;
    }

    /// The committed offsets of lanes, unless a transaction that holds some of them is not over.
    pub(crate) fn fetch(&self, lanes: &[LaneId]) -> Option<Vec<Progress>> {
        let pending = |(_, progress): &(u64, Progress)| lanes.contains(&progress.lane);
        let unstable = self
            .producers
            .values()
            .any(|producer| match &producer.transaction {
                Transaction::None { .. } => false,
                Transaction::Open(open) => open.offsets.iter().any(pending),
                Transaction::Ending { offsets, .. } => offsets.iter().flatten().any(pending),
            });
        if unstable {
            return None;
        }
        let committed = lanes.iter().filter_map(|lane| self.committed.get(lane));
        Some(committed.map(|(_, progress)| progress.clone()).collect())
    }

    /// The order of shards, as it was written, unless a transaction is not over that has written of it; `bug` may not wait for that.
    pub(crate) fn key_order(
        &mut self,
        shards: &BTreeSet<i32>,
        bug: Bug,
    ) -> Option<Vec<(i32, KnownShard)>> {
        let mut orders = Vec::new();
        for shard in shards.iter().copied() {
            let topic = Topic::KeyOrder;
            let partition = self.partition(PartitionId { topic, shard });
            let end = partition.stable_end();
            if end < partition.log.len() as i64 && bug != Bug::KeyOrderReadEarly {
                return None;
            }
            let mut known = KnownShard::default();
            for entry in &partition.log[..end as usize] {
                let (Some(Payload::State(state)), Fate::Committed) = (&entry.payload, entry.fate)
                else {
                    continue;
                };
                known.replay(state);
            }
            orders.push((shard, known));
        }
        Some(orders)
    }

    /// Whether a transaction of `id` is open.
    pub(crate) fn has_open(&self, id: ProducerId) -> bool {
        let producer = self.producers.get(&id);
        producer.is_some_and(|producer| matches!(producer.transaction, Transaction::Open(_)))
    }

    /// Whether any transaction is not over.
    pub(crate) fn is_busy(&self) -> bool {
        self.producers
            .values()
            .any(|producer| !matches!(producer.transaction, Transaction::None { .. }))
    }

    /// Begins a transaction of `id` if none is open.
    fn open(&mut self, id: ProducerId, epoch: u32) -> Result<(), Refusal> {
        let producer = self.producers.get_mut(&id).ok_or(Refusal::Fenced)?;
        if producer.epoch != epoch {
            return Err(Refusal::Fenced);
        }
        match producer.transaction {
            Transaction::Open(_) => Ok(()),
            Transaction::Ending { .. } => Err(Refusal::Concurrent),
            Transaction::None { .. } => {
                self.serial += 1;
                producer.transaction = Transaction::Open(Open {
                    serial: self.serial,
                    ..Open::default()
                });
                self.begun = Some((id, self.serial));
                Ok(())
            }
        }
    }

    /// The open transaction of `id`.
    fn transaction(&mut self, id: ProducerId) -> &mut Open {
        let Some(Producer {
            transaction: Transaction::Open(open),
            ..
        }) = self.producers.get_mut(&id)
        else {
            unreachable!("checked to be open");
        };
        open
    }

    /// Decides the open transaction of `id`.
    fn decide(&mut self, id: ProducerId, fate: Fate) -> Decided {
        let open = std::mem::take(self.transaction(id));
        if let Some(producer) = self.producers.get_mut(&id) {
            producer.transaction = Transaction::Ending {
                fate,
                places: open.places.clone(),
                offsets: Some(open.offsets),
            };
        }
        Decided {
            committed: fate == Fate::Committed,
            places: open.places.into_iter().collect(),
            records: open.records,
            aside: open.aside,
        }
    }

    /// Ends a transaction whose last marker was written.
    fn close_if_marked(&mut self, id: ProducerId) {
        if let Some(producer) = self.producers.get_mut(&id)
            && let Transaction::Ending {
                fate,
                places,
                offsets: None,
            } = &producer.transaction
            && places.is_empty()
        {
            producer.transaction = Transaction::None { last: Some(*fate) };
        }
    }
}
