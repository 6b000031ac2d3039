//! The thread that finds out which topics take records, beside those who write: what may be written, and what is. It also looks whether
//! the topics still are what retide needs.
//!
//! Invariant: nothing that it writes is ever to be read: its transactions are aborted.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{BaseProducer, Producer, PurgeConfig};
use tracing::debug;

use retide_kafka::client::{Kept, is_missing};
use retide_kafka::failure::is_refusal;
use retide_kafka::producer::flush;
use retide_kafka::record::OutRecord;
use retide_kafka::topics::Topics;
use retide_native::admin::{self, Operation, Permitted};

use crate::drift::Drift;
use crate::threads::Ended;
use crate::worker::ledger::deliveries::{Deliveries, Failed, Flushed, settle_deliveries};
use crate::writable::{By, Cause, Writability};

/// Watches the topics of a process.
pub(crate) struct Watch {
    /// The configuration of a producer.
    producer: ClientConfig,
    /// The transactional id of its own.
    id: String,
    /// The topics.
    topics: Vec<Arc<str>>,
    /// What is known of them.
    writability: Arc<Writability>,
    /// The producer that tries, while there is something to try.
    trying: Option<BaseProducer<Deliveries>>,
    /// Looks at partitions and settings.
    drift: Drift,
}

/// Pause between two tries of what takes no records: whoever mends it sees the work go on within that time.
const TRY: Duration = Duration::from_secs(1);

/// Pause between two questions for what may be written, while all of it may.
const ASK: Duration = Duration::from_secs(5);

/// Pause between two looks at partitions and settings: what was changed is told within twice that time.
const LOOK: Duration = Duration::from_secs(10);

/// Longest wait for an answer.
const CALL: Duration = Duration::from_secs(5);

/// Longest wait for one record to be taken.
const TAKEN: Duration = Duration::from_secs(3);

/// How often it looks whether it is to end.
const STEP: Duration = Duration::from_millis(100);

// === impl Watch ===

impl Watch {
    /// A watch over what is written to; `id` is a transactional id of its own.
    pub(crate) fn new(
        producer: &ClientConfig,
        id: String,
        topics: &Topics,
        events: bool,
        writability: &Arc<Writability>,
        drift: Drift,
    ) -> Self {
        let written = topics.written();
        let written = written.filter(|topic| events || **topic != topics.events);
        Self {
            producer: producer.clone(),
            id,
            topics: written.chain(&topics.tiers).map(Arc::clone).collect(),
            writability: Arc::clone(writability),
            trying: None,
            drift,
        }
    }

    /// Asks what may be written, once: to be done before the first call is made.
    pub(crate) fn ask(&self) {
        let client = match self.asking() {
            Ok(client) => client,
            Err(error) => return debug!(%error, "what may be written is not asked"),
        };
        self.describe(&client);
    }

    /// Watches until `stop` is set.
    pub(crate) fn run(mut self, stop: &AtomicBool) -> Ended {
        let client = self.asking().ok();
        let (mut ask_at, mut try_at) = (Instant::now() + ASK, Instant::now());
        let mut look_at = Instant::now();
        while !stop.load(Ordering::Acquire) {
            thread::sleep(STEP);
            let now = Instant::now();
            if let Some(client) = client.as_ref().filter(|_| now >= ask_at) {
                self.describe(client);
                let closed = !self.writability.described().is_empty();
                ask_at = Instant::now() + if closed { TRY } else { ASK };
            }
            if let Some(client) = client.as_ref().filter(|_| now >= look_at) {
                self.drift.look(client.client());
                client.poll(Duration::ZERO);
                client.hold();
                look_at = Instant::now() + LOOK;
            }
            if now >= try_at {
                self.try_all();
                try_at = Instant::now() + TRY;
            }
        }
        Ended::Told
    }

    /// A client that asks.
    fn asking(&self) -> Result<Kept<BaseProducer<Deliveries>>, KafkaError> {
        let mut config = self.producer.clone();
        config.remove("transactional.id");
        Kept::make(&config, |config| {
            config.create_with_context(Deliveries::default())
        })
    }

    /// Follows what the cluster says of the topics.
    fn describe(&self, client: &BaseProducer<Deliveries>) {
        let names: Vec<&str> = self.topics.iter().map(|topic| &**topic).collect();
        let answer = admin::permitted(client.client(), &names, CALL);
        client.poll(Duration::ZERO);
        let answer = match answer {
            Ok(answer) => answer,
            Err(error) => return debug!(%error, "what may be written is not told"),
        };
        let described = self.writability.described();
        for Permitted { topic, operations } in answer {
            let topic = &*topic;
            match operations {
                // The cluster does not say.
                Ok(None) => {}
                Ok(Some(operations)) if operations.contains(&Operation::Write) => {
                    if described.iter().any(|closed| **closed == *topic) {
                        self.writability.open(topic);
                    }
                }
                Ok(Some(_)) => self.close(topic, RDKafkaErrorCode::TopicAuthorizationFailed),
                Err(code)
                    if is_missing(code) || code == RDKafkaErrorCode::TopicAuthorizationFailed =>
                {
                    self.close(topic, code);
                }
                Err(error) => debug!(%error, topic, "topic not described"),
            }
        }
    }

    /// A topic takes no records, as the cluster says.
    fn close(&self, topic: &str, code: RDKafkaErrorCode) {
        self.writability
            .close(topic, Cause(code), By::Description, None);
    }

    /// Tries what takes no records, or is suspected not to.
    fn try_all(&mut self) {
        let samples = self.writability.samples();
        if samples.is_empty() {
            self.trying = None;
            return;
        }
        for sample in samples {
            if let Err(error) = self.try_one(&sample) {
                debug!(%error, topic = &*sample.topic, "topic not tried");
                self.trying = None;
            }
        }
    }

    /// Tries whether a topic takes a record.
    fn try_one(&mut self, sample: &OutRecord) -> Result<(), KafkaError> {
        let producer = match self.trying.take() {
            Some(producer) => producer,
            None => self.start()?,
        };
        producer.begin_transaction()?;
        let sent = producer.send(sample.to_produce(0));
        let flushed = settle_deliveries(&producer, TAKEN)?;
        let (failed, unregistered) = producer.context().take();
        if flushed != Flushed::All {
            producer.purge(PurgeConfig::default().queue().inflight());
            flush(&producer)?;
        }
        producer.abort_transaction(CALL)?;
        producer.poll(Duration::ZERO);
        drop(producer.context().take());
        let sent = sent.map_err(|(error, _)| error.rdkafka_error_code());
        let refused = failed.first().map(Failed::code);
        let code = sent.err().or(refused).flatten().or_else(|| {
            let refused = RDKafkaErrorCode::TopicAuthorizationFailed;
            (!unregistered.is_empty()).then_some(refused)
        });
        let topic = &sample.topic;
        match (code, flushed) {
            (Some(code), _) if is_refusal(code) => {
                self.writability
                    .close(topic, Cause(code), By::Record, Some(sample.clone()));
            }
            (None, Flushed::All) => self.writability.open(topic),
            // Nothing was said of it that lasts.
            (Some(_) | None, _) => {}
        }
        self.trying = Some(producer);
        Ok(())
    }

    /// A producer that says what keeps a record from being taken, instead of waiting until it passes.
    fn start(&self) -> Result<BaseProducer<Deliveries>, KafkaError> {
        let mut config = self.producer.clone();
        for (key, value) in [
            ("transactional.id", &*self.id),
            ("message.send.max.retries", "1"),
            ("retry.backoff.ms", "50"),
            ("linger.ms", "0"),
            ("transaction.timeout.ms", "10000"),
        ] {
            config.set(key, value);
        }
        let producer: BaseProducer<Deliveries> =
            config.create_with_context(Deliveries::default())?;
        producer.init_transactions(CALL)?;
        Ok(producer)
    }
}
