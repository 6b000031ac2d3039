//! Fetches single records from where letters say that they stand.
//!
//! Not joined to a group, nothing is committed. A letter may name any place of the cluster, and what is fetched is what the user of retide may
//! read. Whether it is the record that the letter means is for others to see. Invariant: a record that is not there any more is told from one
//! that cannot be read now: only the first is given up.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::Message;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use retide_avro::foreign::is_topic;
use retide_avro::headers::Headless;
use retide_core::{Origin, Record, Timestamp};

use crate::client::{Kept, LoggingContext, is_missing};
use crate::failure::Failure;
use crate::record::received;
use crate::scan;

/// Fetches records. It keeps one client, as long as nobody calls [`Origins::rest`].
pub struct Origins {
    /// The configuration of its client.
    config: ClientConfig,
    /// The client, once it was needed.
    client: Option<Kept<BaseConsumer<LoggingContext>>>,
    /// The next record that the client gives, if it reads on.
    next: Option<Origin>,
    /// Partitions that nothing can be fetched of, and when each was found to be so.
    refused: BTreeMap<(Arc<str>, i32), (Refused, Instant)>,
}

/// Why nothing can be fetched of a partition, whatever the offset.
#[derive(Clone, Copy)]
enum Refused {
    /// There is no such partition.
    Missing,
    /// It may not be read.
    Denied,
}

/// What was found.
#[derive(Debug, PartialEq, Eq)]
pub enum Fetched {
    /// The record.
    Record {
        /// Key, value and headers.
        record: Record,
        /// Its timestamp, or the epoch.
        stamped: Timestamp,
    },
    /// The record, whose headers cannot be read.
    Headless,
    /// Nothing, and why.
    Gone(String),
}

/// Longest wait for a record.
const FETCH: Duration = Duration::from_secs(8);

/// Longest wait before time is looked at again.
const POLL: Duration = Duration::from_millis(100);

/// How long nothing may come before it is asked whether the topic may be read at all: the client does not say it by itself.
const SILENT: Duration = Duration::from_millis(500);

/// How many records are read over before the client is sent to another place, which costs a round trip.
const NEAR: i64 = 100;

/// How long a partition is taken for refused: many letters are of one that is, each of which would be asked for, for seconds.
const REFUSED: Duration = Duration::from_secs(10);

/// Most partitions that are remembered to be refused: letters may name any.
const MOST_REFUSED: usize = 1_000;

/// How often a topic has to be missing: a broker that has just started knows of none.
const MISSING: u32 = 2;

// === impl Origins ===

impl Origins {
    /// With the configuration of a consumer, whose client wants the name of a group.
    pub fn new(config: &ClientConfig, group: &str) -> Self {
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
            refused: BTreeMap::new(),
        }
    }

    /// Lets go of the client, for as long as nobody needs it.
    pub fn rest(&mut self) {
        (self.client, self.next) = (None, None);
    }

    /// Fetches the record of this place, unless it `is_over` meanwhile.
    ///
    /// # Errors
    /// If it may be there and cannot be read now, or may not be read: [`is_denied`] tells which.
    pub fn fetch(
        &mut self,
        origin: &Origin,
        is_over: impl Fn() -> bool,
    ) -> Result<Fetched, KafkaError> {
        if !is_topic(&origin.topic) || origin.partition < 0 || origin.offset < 0 {
            // The client is not to see it: it takes some of these for something else.
            return Ok(Fetched::Gone("no record has such a place".to_owned()));
        }
        let partition = (Arc::clone(&origin.topic), origin.partition);
        self.refused
            .retain(|_, (_, since)| since.elapsed() < REFUSED);
        if let Some((refused, _)) = self.refused.get(&partition) {
            return refused.answer();
        }
        let mut missing = 0;
        let refused = loop {
            match self.try_fetch(origin, &is_over) {
                Err(error) if error.rdkafka_error_code().is_some_and(is_missing) => {
                    // Another client asks anew.
                    self.rest();
                    missing += 1;
                    if missing >= MISSING {
                        break Refused::Missing;
                    }
                }
                Err(error) if is_denied(&error) => {
                    // The client says that once.
                    self.rest();
                    break Refused::Denied;
                }
                Err(error) => {
                    self.rest();
                    return Err(error);
                }
                fetched => return fetched,
            }
        };
        if self.refused.len() < MOST_REFUSED {
            self.refused.insert(partition, (refused, Instant::now()));
        }
        refused.answer()
    }

    /// Fetches it once.
    fn try_fetch(
        &mut self,
        origin: &Origin,
        is_over: &impl Fn() -> bool,
    ) -> Result<Fetched, KafkaError> {
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
        let (until, mut ask_at) = (Instant::now() + FETCH, Some(Instant::now() + SILENT));
        while Instant::now() < until {
            if is_over() {
                return Err(KafkaError::Canceled);
            }
            match client.poll(POLL) {
                None => {
                    if ask_at.is_some_and(|at| Instant::now() >= at) {
                        ask_at = None;
                        check_allowed(client, topic)?;
                    }
                }
                Some(Ok(message)) => {
                    let is_there = (message.topic(), message.partition()) == (topic, *partition);
                    if !is_there || message.offset() < *offset {
                        continue;
                    }
                    let stamped = message.timestamp().to_millis().unwrap_or_default();
                    let stamped =
                        Timestamp::from_millis(u64::try_from(stamped).unwrap_or_default());
                    let found = (message.offset() == *offset).then(|| received(&message));
                    self.next = Some(Origin {
                        offset: message.offset() + 1,
                        ..origin.clone()
                    });
                    return Ok(match found {
                        Some(Ok(record)) => Fetched::Record { record, stamped },
                        Some(Err(Headless(_))) => Fetched::Headless,
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

// === impl Refused ===

impl Refused {
    /// What is said of each record there.
    fn answer(self) -> Result<Fetched, KafkaError> {
        match self {
            Self::Missing => Ok(Fetched::Gone("there is no such partition".to_owned())),
            Self::Denied => Err(KafkaError::MessageConsumption(
                RDKafkaErrorCode::TopicAuthorizationFailed,
            )),
        }
    }
}

/// Fails if the topic may not be described. Whatever else goes wrong is for whoever reads it to see.
fn check_allowed(client: &BaseConsumer<LoggingContext>, topic: &str) -> Result<(), KafkaError> {
    match scan::partitions(client, topic) {
        Err(error) if is_denied(&error) => Err(error),
        Ok(_) | Err(_) => Ok(()),
    }
}

/// Whether an error says that the topic may not be read.
pub fn is_denied(error: &KafkaError) -> bool {
    error.rdkafka_error_code() == Some(RDKafkaErrorCode::TopicAuthorizationFailed)
}

/// What stood there is not there any more, or never was.
fn gone() -> Fetched {
    Fetched::Gone("it is not retained any more".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_that_no_record_has_is_gone_without_a_look() {
        // Nothing listens there.
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", "127.0.0.1:1");
        let mut origins = Origins::new(&config, "g");
        for (topic, partition, offset) in [
            ("", 0, 0),
            ("..", 0, 0),
            ("a\0b", 0, 0),
            ("a b", 0, 0),
            ("a", -1, 0),
            ("a", 0, -1),
            ("a", 0, -2),
        ] {
            let origin = Origin {
                topic: topic.into(),
                partition,
                offset,
            };

            let fetched = origins.fetch(&origin, || panic!("it looks"));

            let gone = Fetched::Gone("no record has such a place".to_owned());
            assert_eq!(fetched, Ok(gone), "{topic:?}/{partition}/{offset}");
        }
    }
}
