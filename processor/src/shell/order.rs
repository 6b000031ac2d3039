//! Reading what former owners of shards knew of the order of their tasks.
//!
//! Not writing it, which is the ledger's. Invariant: everything that was written in a transaction whose offsets are committed is read.
//!
//! Whether a scene is ordered now makes no difference: what was written when one was has to be known to whoever ends its tasks, or it would
//! name them for ever, and keep the next ones of their keys waiting. Where nothing was ever written, that costs one question a shard.

use std::fmt;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::Message;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use retide_core::order::Shard;

use crate::client::Quiet;
use crate::event::{OrderRead, OrderUnreadable};
use crate::metrics::Metrics;
use crate::scan::{self, CALL, Scanned};
use crate::suspects::Suspects;

/// Where and how the order of shards is read.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Source<'a> {
    /// The configuration of a consumer.
    pub(crate) config: &'a ClientConfig,
    /// Asks whether there is anything to read.
    pub(crate) probe: &'a Probe,
    /// The order topic.
    pub(crate) topic: &'a str,
    /// Takes in the marks of records at which processes have died.
    pub(crate) suspects: &'a Suspects,
    /// Where events are counted.
    pub(crate) metrics: &'a Metrics,
    /// Set when nobody wants it any more.
    pub(crate) stop: &'a AtomicBool,
}

/// A client that lives as long as its worker, and sees what transactions have written that are not over.
pub(crate) struct Probe(BaseConsumer<Quiet>);

/// Longest time for all of it: far below the time for which tombstones are kept, and `max.poll.interval.ms`.
const READ: Duration = Duration::from_mins(1);

/// Pause before it is asked again whether the transactions of former owners are over, which takes milliseconds as a rule.
const AGAIN: Duration = Duration::from_millis(10);

// === impl Probe ===

impl Probe {
    /// A client that has asked for nothing yet.
    pub(crate) fn new(mut config: ClientConfig) -> Result<Self, KafkaError> {
        config.set("isolation.level", "read_uncommitted");
        // They would pile up between two assignments.
        config.set("statistics.interval.ms", "0");
        config.create_with_context(Quiet).map(Self)
    }

    /// The client, rid of what it has reported since it was last asked.
    fn client(&self) -> &BaseConsumer<Quiet> {
        while self.0.poll(Duration::ZERO).is_some() {}
        &self.0
    }
}

impl fmt::Debug for Probe {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Probe").finish_non_exhaustive()
    }
}

// === impl Source ===

impl Source<'_> {
    /// The order of `shards`, of those that have any. To be called when the committed offsets of the shards are known: a transaction that
    /// has changed them is decided then, but its records may not be readable yet.
    pub(crate) fn read(self, shards: &[i32]) -> Result<Vec<(i32, Shard)>, KafkaError> {
        let since = Instant::now();
        let deadline = since + READ;
        self.suspects.forget(shards);
        let filled = self.filled(shards, deadline)?;
        if filled.is_empty() {
            return Ok(Vec::new());
        }
        let consumer = scan::consumer(self.config.clone(), group(self.config))?;
        let mut starts = TopicPartitionList::new();
        for &(shard, low, end) in &filled {
            // As long as a transaction is open, readers see nothing of what is behind its first record.
            while self.ends(&consumer, shard, deadline)?.1 < end {
                self.pause(deadline, None)?;
            }
            starts.add_partition_offset(self.topic, shard, Offset::Offset(low))?;
        }
        let mut orders: Vec<(i32, Shard)> = filled
            .iter()
            .map(|(shard, ..)| (*shard, Shard::default()))
            .collect();
        let scanned = scan::read(&consumer, &starts, deadline, |message| {
            let (partition, offset) = (message.partition(), message.offset());
            let order = orders.iter_mut().find(|(shard, _)| *shard == partition);
            if let Some((_, order)) = order {
                let key = message.key().unwrap_or_default();
                if self.suspects.replay(key, message.payload()) {
                    return ControlFlow::Continue(());
                }
                if let Err(error) = order.replay(key, message.payload()) {
                    let topic = self.topic;
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
        })?;
        match scanned {
            Scanned::ToEnd | Scanned::Enough => {}
            Scanned::OutOfTime { .. } => return Err(timed_out()),
        }
        let keys = orders.iter().map(|(_, order)| order.len()).sum();
        OrderRead {
            shards,
            keys,
            took: since.elapsed(),
        }
        .emit();
        Ok(orders)
    }

    /// The shards of which anything is written: with the first offset, and one past the last one, whatever became of its transaction.
    fn filled(
        &self,
        shards: &[i32],
        deadline: Instant,
    ) -> Result<Vec<(i32, i64, i64)>, KafkaError> {
        let probe = self.probe.client();
        let mut filled = Vec::new();
        for &shard in shards {
            let (low, end) = self.ends(probe, shard, deadline)?;
            if low < end {
                filled.push((shard, low, end));
            }
        }
        Ok(filled)
    }

    /// The first offset of a shard, and one past the last one that `consumer` may see.
    fn ends(
        &self,
        consumer: &BaseConsumer<Quiet>,
        shard: i32,
        deadline: Instant,
    ) -> Result<(i64, i64), KafkaError> {
        loop {
            match consumer.fetch_watermarks(self.topic, shard, CALL) {
                Ok(ends) => return Ok(ends),
                Err(error) => self.pause(deadline, Some(error))?,
            }
        }
    }

    /// Lets a moment pass, unless it is too late for that, nobody wants it any more, or `error` is not one that passes.
    fn pause(&self, deadline: Instant, error: Option<KafkaError>) -> Result<(), KafkaError> {
        let lasting = error.as_ref().is_some_and(is_lasting);
        if lasting || Instant::now() >= deadline || self.stop.load(Ordering::Acquire) {
            return Err(error.unwrap_or_else(timed_out));
        }
        thread::sleep(AGAIN);
        Ok(())
    }
}

/// The group of a consumer's configuration: clients want its name, although nothing joins it.
fn group(config: &ClientConfig) -> &str {
    config.get("group.id").unwrap_or("retide")
}

/// What it means that time is up.
fn timed_out() -> KafkaError {
    KafkaError::OffsetFetch(RDKafkaErrorCode::OperationTimedOut)
}

/// Whether an error will be the same next time.
fn is_lasting(error: &KafkaError) -> bool {
    let unknown = matches!(
        error.rdkafka_error_code(),
        Some(
            RDKafkaErrorCode::UnknownTopic
                | RDKafkaErrorCode::UnknownTopicOrPartition
                | RDKafkaErrorCode::UnknownPartition
        )
    );
    unknown || scan::is_fatal(error)
}
