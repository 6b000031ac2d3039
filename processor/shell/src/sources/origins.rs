//! Fetches single records from where letters say that they stand.
//!
//! Not joined to a group, nothing is committed. A letter may name any place of the cluster, and what is fetched is what the user of retide may
//! read. Invariant: a record that is not there any more is told from one that cannot be read now: only the first is given up.

use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::Message;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use retide_core::{Origin, Record};
use retide_kafka::client::{Kept, LoggingContext, is_missing};
use retide_kafka::failure::Failure;
use retide_kafka::record::received;

/// Fetches records.
pub(super) struct Origins {
    /// The configuration of its client.
    config: ClientConfig,
    /// The client, once it was needed.
    client: Option<Kept<BaseConsumer<LoggingContext>>>,
    /// The next record that the client gives, if it reads on.
    next: Option<Origin>,
}

/// What was found.
pub(super) enum Fetched {
    /// The record.
    Record(Record),
    /// The record, whose headers cannot be read.
    Headless,
    /// Nothing, and why.
    Gone(String),
}

/// Longest wait for a record.
const FETCH: Duration = Duration::from_secs(8);

/// Longest wait before time is looked at again.
const POLL: Duration = Duration::from_millis(100);

/// How many records are read over before the client is sent to another place, which costs a round trip.
const NEAR: i64 = 100;

/// How often a topic has to be missing: a broker that has just started knows of none.
const MISSING: u32 = 2;

// === impl Origins ===

impl Origins {
    /// With the configuration of a consumer, whose client wants the name of a group.
    pub(super) fn new(config: &ClientConfig, group: &str) -> Self {
        let mut config = config.clone();
        for (key, value) in [
            ("group.id", group),
            ("enable.auto.commit", "false"),
            ("enable.partition.eof", "true"),
            // That a record is not there any more is to be told.
            ("auto.offset.reset", "error"),
            // Share groups are given what is not committed, too, unless they say otherwise.
            ("isolation.level", "read_uncommitted"),
            ("allow.auto.create.topics", "false"),
            ("topic.metadata.propagation.max.ms", "2000"),
            ("fetch.wait.max.ms", "10"),
            ("queued.max.messages.kbytes", "4096"),
        ] {
            config.set(key, value);
        }
        config.remove("group.instance.id");
        Self {
            config,
            client: None,
            next: None,
        }
    }

    /// Fetches the record of this place.
    ///
    /// # Errors
    /// If it may be there and cannot be read now.
    pub(super) fn fetch(&mut self, origin: &Origin) -> Result<Fetched, KafkaError> {
        let mut missing = 0;
        loop {
            match self.try_fetch(origin) {
                Err(error) if error.rdkafka_error_code().is_some_and(is_missing) => {
                    // Another client asks anew.
                    (self.client, self.next) = (None, None);
                    missing += 1;
                    if missing >= MISSING {
                        return Ok(Fetched::Gone("there is no such partition".to_owned()));
                    }
                }
                fetched => return fetched,
            }
        }
    }

    /// Fetches it once.
    fn try_fetch(&mut self, origin: &Origin) -> Result<Fetched, KafkaError> {
        let Origin {
            topic,
            partition,
            offset,
        } = origin;
        if self.client.is_none() {
            let make = |config: &ClientConfig| config.create_with_context(LoggingContext);
            self.client = Some(Kept::make(&self.config, make)?);
        }
        let Some(client) = &self.client else {
            unreachable!("made above");
        };
        client.hold();
        let is_near = self.next.take().is_some_and(|next| {
            let ahead = offset - next.offset;
            (&next.topic, next.partition) == (topic, *partition) && (0..=NEAR).contains(&ahead)
        });
        if !is_near {
            let mut list = TopicPartitionList::new();
            list.add_partition_offset(topic, *partition, Offset::Offset(*offset))?;
            #[allow(
                clippy::disallowed_methods,
                reason = "single records are read, each at its offset"
            )]
            client.assign(&list)?;
        }
        let until = Instant::now() + FETCH;
        while Instant::now() < until {
            match client.poll(POLL) {
                None => {}
                Some(Ok(message)) => {
                    let is_there = (message.topic(), message.partition()) == (topic, *partition);
                    if !is_there || message.offset() < *offset {
                        continue;
                    }
                    let found = (message.offset() == *offset).then(|| received(&message));
                    self.next = Some(Origin {
                        offset: message.offset() + 1,
                        ..origin.clone()
                    });
                    return Ok(match found {
                        Some(Ok(record)) => Fetched::Record(record),
                        Some(Err(_)) => Fetched::Headless,
                        None => {
                            self.next = None;
                            gone()
                        }
                    });
                }
                Some(Err(KafkaError::PartitionEOF(end))) if end == *partition => return Ok(gone()),
                Some(Err(error)) => match error.rdkafka_error_code() {
                    Some(
                        RDKafkaErrorCode::AutoOffsetReset | RDKafkaErrorCode::OffsetOutOfRange,
                    ) => return Ok(gone()),
                    _ => match Failure::of(&error) {
                        Failure::Passing => {}
                        Failure::Lasting | Failure::Fatal | Failure::Fenced => return Err(error),
                    },
                },
            }
        }
        let code = RDKafkaErrorCode::OperationTimedOut;
        Err(KafkaError::MessageConsumption(code))
    }
}

/// What stood there is not there any more, or never was.
fn gone() -> Fetched {
    Fetched::Gone("it is not retained any more".to_owned())
}
