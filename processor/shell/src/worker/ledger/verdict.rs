//! The verdict on a batch of which records were not delivered: what is written in another form, set aside, or written again.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use rdkafka::ClientConfig;
use rdkafka::client::{Client, ClientContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};

use retide_core::{Failure, Sink};
use retide_kafka::client::is_missing;
use retide_kafka::failure::{is_of_record, is_of_size, is_refusal, wants_keys, word};
use retide_kafka::record::OutRecord;

use crate::worker::encode::Encoder;
use crate::worker::ledger::refusal::ASK;
use crate::worker::ledger::{Batch, Submitted};
use crate::writable::{By, Cause, Writability};

/// A record that was not delivered.
#[derive(Debug)]
pub(super) struct Undelivered {
    /// The consequence it is part of, by its index in the batch.
    pub(super) settled: usize,
    /// The record.
    pub(super) record: OutRecord,
    /// Whether nothing more can be left out of it.
    pub(super) is_least: bool,
    /// What was said of it.
    pub(super) error: KafkaError,
}

/// What records that were not delivered mean for their batch.
#[derive(Debug, Default)]
pub(super) struct Verdict {
    /// Consequences that take their other form, by their index.
    pub(super) replaced: BTreeSet<usize>,
    /// Consequences whose record is refused for good.
    pub(super) refused: BTreeMap<usize, (Sink, Failure)>,
    /// Whether a topic of retide was closed.
    pub(super) closed: bool,
    /// Whether several records were refused together, of which some might be taken alone.
    pub(super) mixed: bool,
    /// An error that may pass.
    pub(super) passing: Option<KafkaError>,
}

/// How far the client's batches have to be taken apart for each record to be refused or taken by itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Pieces {
    /// As large as brokers take them by default.
    #[default]
    Large,
    /// A few records.
    Small,
    /// One record each.
    Single,
}

/// Records below this size, in bytes, are refused because of the limit of their topic, and not for their size.
const SMALL_RECORD: usize = 16 << 10;

/// Bytes of the client's batches that are [`Pieces::Small`].
const SMALL_BATCH: &str = "100000";

// === impl Verdict ===

impl Verdict {
    /// Takes in that a transaction may not write to `topics`; those of retide are closed with a record of `submitted` as their sample.
    pub(super) fn unregistered(
        &mut self,
        topics: BTreeSet<String>,
        submitted: &Submitted,
        encoder: &Encoder,
    ) {
        let writability = encoder.writability();
        let code = RDKafkaErrorCode::TopicAuthorizationFailed;
        for topic in topics {
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
    pub(super) fn of(
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
    pub(super) const fn smaller(self) -> Self {
        match self {
            Self::Large => Self::Small,
            Self::Small | Self::Single => Self::Single,
        }
    }

    /// What a producer needs for them.
    pub(super) fn configure(self, config: &mut ClientConfig) {
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

/// Asks for the partitions of the topics of which a producer knows too few to have written to: they were widened since it asked. What goes
/// to a partition that there is passes; the producer knows of it now.
pub(super) fn learn_partitions<C: ClientContext>(
    producer: &Client<C>,
    undelivered: &mut [Undelivered],
) {
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
