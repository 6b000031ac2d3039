//! Reading what former owners of shards have written of them on the order topic.
//!
//! | key | value |
//! |---|---|
//! | a fingerprint | which tasks of a key are outstanding |
//! | `taken/TOPIC/CHUNK` | which parked records were taken: the binding of the partition, and the marks |
//! | `step/MILLIS/PARTITION/OFFSET` | how far the step of a command is, in JSON |
//! | `replayed/PARTITION/CHUNK` | which dead letters of a partition were replayed, of the shard that leads campaigns |
//! | `warned/PARTITION` | when people were told of dead letters of a partition that retention takes, of that shard |
//! | `held/NAME` | how a hold stands, in JSON |
//! | `id/HASH` | at which offset the task of an id entered, and, if it has ended, until when the id is its own |
//! | `ids/TOPIC/FROM` | which ids may stand in a range of offsets: the binding of the partition, and their hashes |
//! | `suspect/…` | records at which processes have died |
//!
//! Not writing it, which is the ledger's. Invariants: everything that was written in a transaction whose offsets are committed is read; a
//! mark that was made for a topic which is gone is not believed of another one of its name.
//!
//! Whether a scene is ordered now makes no difference: what was written when one was has to be known to whoever ends its tasks, or it would
//! name them for ever, and keep the next ones of their keys waiting. Where nothing was ever written, that costs one question a shard.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::ControlFlow;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::consumer::BaseConsumer;
use rdkafka::error::KafkaError;
use rdkafka::message::Message;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use tracing::debug;

use retide_core::control::{Place, Progress};
use retide_core::duplicates::{Identity, Known, Replaced};
use retide_core::hold::Standing;
use retide_core::ids::Block;
use retide_core::key_order::Shard;
use retide_core::taken::Taken;
use retide_kafka::client::{Kept, LoggingContext};
use retide_kafka::offsets;
use retide_kafka::scan::{self, CALL, Scanned};
use retide_kafka::topics::Topics;

use crate::event::{OrderRead, OrderUnreadable, StateUnreadable};
use crate::holds;
use crate::metrics::Metrics;
use crate::replayed::{Replayed, Warned};
use crate::suspects::Suspects;
use crate::worker::binding::Bindings;
use crate::worker::duplicates;
use crate::worker::ids;
use crate::worker::progress;

/// Where and how the order of shards is read.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Source<'a> {
    /// The configuration of a consumer.
    pub(crate) config: &'a ClientConfig,
    /// Asks whether there is anything to read.
    pub(crate) probe: &'a Probe,
    /// The topics, of which the order topic is read.
    pub(crate) topics: &'a Topics,
    /// What marks have to be bound to.
    pub(crate) bindings: &'a Bindings,
    /// Takes in the marks of records at which processes have died.
    pub(crate) suspects: &'a Suspects,
    /// Where events are counted.
    pub(crate) metrics: &'a Metrics,
    /// Set when nobody wants it any more.
    pub(crate) stop: &'a AtomicBool,
}

/// What was read.
#[derive(Debug, Default)]
pub(crate) struct Orders {
    /// What was written of each shard of which anything was.
    pub(crate) known: Vec<(i32, Written)>,
    /// The shards that could not be read to their ends, and the first offset that cannot be read, if that is known.
    pub(crate) pending: Vec<(i32, Option<i64>)>,
}

/// What former owners of a shard have written of it.
#[derive(Clone, Debug, Default)]
pub struct Written {
    /// Which tasks of which keys are outstanding.
    pub(crate) order: Shard,
    /// Which parked records were taken, by tier.
    pub(crate) taken: BTreeMap<retide_core::Source, Taken>,
    /// How far the steps of commands are.
    pub(crate) steps: BTreeMap<Place, Progress>,
    /// Which dead letters were replayed, by partition.
    pub(crate) replayed: Replayed,
    /// When people were told of dead letters that retention takes.
    pub(crate) warned: Warned,
    /// How holds stand.
    pub(crate) holds: BTreeMap<Arc<str>, Standing>,
    /// Which ids are under way, or have ended of late.
    pub(crate) duplicates: BTreeMap<Identity, Known>,
    /// Which tasks are replaced by others of their ids, by the offsets at which they entered.
    pub(crate) replaced: BTreeMap<i64, Replaced>,
    /// Which ids may stand where in tiers.
    pub(crate) ids: ids::Written,
}

/// Who reads, and the shards that can be read, each with its first offset.
type Readable = (BaseConsumer<LoggingContext>, Vec<(i32, i64)>);

/// Two clients that live as long as their worker. Brokers tell each of them what it asks for by its isolation level.
pub(crate) struct Probe {
    /// Sees what transactions have written that are not over: where logs end, and whether all of it can be read.
    all: Kept<BaseConsumer<LoggingContext>>,
    /// Is not told of a committed offset that a transaction is about to change: the transaction may be over after its owner has lost the shard.
    decided: Kept<BaseConsumer<LoggingContext>>,
}

/// What the keys of marks of taken records begin with.
pub(crate) const TAKEN: &str = "taken/";

/// What the keys of the progress of steps begin with.
pub(crate) const STEP: &str = "step/";

/// Pause before a client asks by itself again whether a transaction is over, which takes milliseconds as a rule.
const AGAIN: Duration = Duration::from_millis(10);

// === impl Probe ===

impl Probe {
    /// Clients that have asked for nothing yet.
    pub(crate) fn new(mut config: ClientConfig) -> Result<Self, KafkaError> {
        // They would pile up between two assignments.
        config.set("statistics.interval.ms", "0");
        let make = |config: &ClientConfig| config.create_with_context(LoggingContext);
        config.set("isolation.level", "read_uncommitted");
        let all = Kept::make(&config, make)?;
        config.set("isolation.level", "read_committed");
        // How often it is asked whether a transaction is over.
        config.set("retry.backoff.ms", AGAIN.as_millis().to_string());
        let decided = Kept::make(&config, make)?;
        Ok(Self { all, decided })
    }

    /// The client that sees what is not over, rid of what it has reported since it was last asked.
    pub(crate) fn client(&self) -> &BaseConsumer<LoggingContext> {
        Self::ready(&self.all)
    }

    /// The client that is told what is decided: committed offsets are to be asked of it alone.
    pub(crate) fn decided(&self) -> &BaseConsumer<LoggingContext> {
        Self::ready(&self.decided)
    }

    /// A client without old reports, and with brokers to ask.
    fn ready(client: &Kept<BaseConsumer<LoggingContext>>) -> &BaseConsumer<LoggingContext> {
        while client.poll(Duration::ZERO).is_some() {}
        client.hold();
        client
    }
}

impl fmt::Debug for Probe {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Probe").finish_non_exhaustive()
    }
}

// === impl Source ===

impl Source<'_> {
    /// The order of `shards`, of those that have any, as far as it can be read by `deadline`. To be called when the committed offsets of
    /// the shards are known: a transaction that has changed them is decided then, but its records may not be readable yet.
    pub(crate) fn read(self, shards: &[i32], deadline: Instant) -> Orders {
        let since = Instant::now();
        let mut orders = Orders::default();
        self.suspects.forget(shards);
        let mut starts = TopicPartitionList::new();
        let consumer = match self.readable(shards, deadline, &mut orders) {
            Ok(Some((consumer, filled))) => {
                for (shard, low) in filled {
                    let added =
                        starts.add_partition_offset(self.topic(), shard, Offset::Offset(low));
                    match added {
                        Ok(()) => orders.known.push((shard, Written::default())),
                        Err(_) => orders.pending.push((shard, None)),
                    }
                }
                consumer
            }
            Ok(None) => return orders,
            Err(error) => {
                debug!(%error, topic = self.topic(), "order of tasks unknown");
                orders.known.clear();
                orders.pending = shards.iter().map(|shard| (*shard, None)).collect();
                return orders;
            }
        };
        if starts.count() == 0 {
            return orders;
        }
        let known = &mut orders.known;
        let scanned = scan::read(&consumer, &starts, deadline, |message| {
            let (partition, offset) = (message.partition(), message.offset());
            let order = known.iter_mut().find(|(shard, _)| *shard == partition);
            if let Some((_, order)) = order {
                let key = message.key().unwrap_or_default();
                if self.suspects.replay(key, message.payload()) {
                    return ControlFlow::Continue(());
                }
                let topic = self.topic();
                match self.replay(partition, order, key, message.payload()) {
                    Some(true) => return ControlFlow::Continue(()),
                    Some(false) => {
                        StateUnreadable {
                            topic,
                            partition,
                            offset,
                        }
                        .emit(self.metrics);
                        return ControlFlow::Continue(());
                    }
                    None => {}
                }
                if let Err(error) = order.order.replay(key, message.payload()) {
                    OrderUnreadable {
                        topic,
                        partition,
                        offset,
                        error,
                    }
                    .emit(self.metrics);
                }
            }
            ControlFlow::Continue(())
        });
        let unread = match scanned {
            Ok(Scanned::ToEnd | Scanned::Enough) => BTreeSet::new(),
            Ok(Scanned::OutOfTime { left }) => left,
            Err(error) => {
                debug!(%error, topic = self.topic(), "order of tasks unknown");
                known.iter().map(|(shard, _)| *shard).collect()
            }
        };
        known.retain(|(shard, _)| !unread.contains(shard));
        orders
            .pending
            .extend(unread.into_iter().map(|shard| (shard, None)));
        if !orders.known.is_empty() {
            let shards: Vec<i32> = orders.known.iter().map(|(shard, _)| *shard).collect();
            let keys = orders.known.iter().map(|(_, of)| of.order.len()).sum();
            OrderRead {
                shards: &shards,
                keys,
                took: since.elapsed(),
            }
            .emit();
        }
        orders
    }

    /// The order topic.
    fn topic(&self) -> &str {
        &self.topics.order
    }

    /// Takes in a record that is about commands: whether it can be read. `None` if it is about something else.
    fn replay(
        &self,
        shard: i32,
        written: &mut Written,
        key: &[u8],
        value: Option<&[u8]>,
    ) -> Option<bool> {
        if let Some(place) = key.strip_prefix(STEP.as_bytes()) {
            let read = |value: &[u8]| progress::decode(value, self.topics);
            return Some(put(&mut written.steps, parsed(place), value, read));
        }
        if let Some(is_read) = written.replayed.read(key, value) {
            return Some(is_read);
        }
        if let Some(is_read) = written.warned.read(key, value) {
            return Some(is_read);
        }
        if let Some(name) = holds::name_of(key) {
            // One that cannot be read is one that nobody knows of, and is taken away.
            let standing = value.map(|value| holds::decode(value).unwrap_or_default());
            match standing {
                Some(standing) => drop(written.holds.insert(name.into(), standing)),
                None => drop(written.holds.remove(name)),
            }
            return Some(true);
        }
        if let Some(task) = key.strip_prefix(duplicates::REPLACED.as_bytes()) {
            let read = duplicates::decode_replaced;
            return Some(put(&mut written.replaced, parsed(task), value, read));
        }
        if let Some(id) = key.strip_prefix(duplicates::KEY.as_bytes()) {
            let id = str::from_utf8(id).ok().and_then(Identity::parse);
            let read = duplicates::decode;
            return Some(put(&mut written.duplicates, id, value, read));
        }
        let is_ids = key.starts_with(ids::KEY.as_bytes());
        let at = key.strip_prefix(if is_ids { ids::KEY } else { TAKEN }.as_bytes())?;
        let at = str::from_utf8(at).ok().and_then(|at| at.rsplit_once('/'));
        let at = at.and_then(|(topic, chunk)| Some((topic, chunk.parse().ok()?)));
        let Some((topic, chunk)) = at else {
            return Some(false);
        };
        let Some(source @ retide_core::Source::Tier(_)) = self.topics.source(topic) else {
            // A tier that is not read any more: nothing of it is taken twice.
            return Some(true);
        };
        let binding = self.bindings.of(topic, shard).to_bytes();
        if is_ids {
            let known = written.ids.entry(source).or_default();
            // One that is not of this topic, or of another version, is as good as none.
            let block = value.and_then(|value| value.strip_prefix(&binding[..]));
            match block.and_then(|value| Block::decode(chunk, value)) {
                Some(block) => drop(known.insert(chunk, block)),
                None => drop(known.remove(&chunk)),
            }
            return Some(true);
        }
        let taken = written.taken.entry(source).or_default();
        // Marks of a topic that is gone say nothing of the one that is there.
        let marks = value.and_then(|value| value.strip_prefix(&binding[..]));
        Some(taken.replay(chunk, marks).is_some())
    }

    /// The shards of which anything is written and all can be read, with their first offsets, and who reads them; those of which it cannot
    /// be read by `deadline` are pending.
    fn readable(
        &self,
        shards: &[i32],
        deadline: Instant,
        orders: &mut Orders,
    ) -> Result<Option<Readable>, KafkaError> {
        let (filled, unknown) = offsets::spans(self.probe.client(), self.topic(), shards, CALL)?;
        let unknown = unknown.into_iter();
        orders.pending.extend(unknown.map(|shard| (shard, None)));
        if filled.is_empty() {
            return Ok(None);
        }
        let consumer = scan::consumer(self.config.clone(), group(self.config))?;
        let is_late = || Instant::now() >= deadline || self.stop.load(Ordering::Acquire);
        let readable = offsets::until_readable(&consumer, self.topic(), filled, CALL, is_late)?;
        orders.pending.extend(readable.held);
        Ok(Some((consumer, readable.ready)))
    }
}

/// Takes in a record of a kind: whether its key and its value can be read. One without a value takes its entry away.
fn put<K: Ord, V>(
    entries: &mut BTreeMap<K, V>,
    key: Option<K>,
    value: Option<&[u8]>,
    read: impl FnOnce(&[u8]) -> Option<V>,
) -> bool {
    let Some(key) = key else { return false };
    let Some(value) = value else {
        entries.remove(&key);
        return true;
    };
    let read = read(value);
    let is_read = read.is_some();
    entries.extend(read.map(|value| (key, value)));
    is_read
}

/// What a part of a key says, if it can be read.
fn parsed<T: FromStr>(text: &[u8]) -> Option<T> {
    str::from_utf8(text).ok()?.parse().ok()
}

/// The group of a consumer's configuration: clients want its name, although nothing joins it.
fn group(config: &ClientConfig) -> &str {
    config.get("group.id").unwrap_or("retide")
}
