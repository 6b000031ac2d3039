//! The generator: produces the tasks of a plan at a steady pace, and writes down what it intended and what was acknowledged.
//!
//! Invariant: an intent is in the ledger before its record is handed to the client, an acknowledgement after the broker's word.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::client::ClientContext;
use rdkafka::message::{DeliveryResult, Header, Message, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer, ProducerContext};

use crate::Failed;
use crate::ledger::{Ledger, fingerprint, now_micros};
use crate::orders;
use crate::plan::{APPLIED, ORDERED, Plan, SCENE, SWEPT, TO_ONE_APPLIED};

/// What is produced, and where.
pub(crate) struct Generator {
    /// The broker.
    pub(crate) bootstrap: String,
    /// The retry topic.
    pub(crate) topic: String,
    /// The seed of the tasks.
    pub(crate) seed: u64,
    /// How many tasks.
    pub(crate) tasks: usize,
    /// Tasks a second.
    pub(crate) rate: u64,
    /// Whether some tasks are of the scene on the scenes topic.
    pub(crate) applied: bool,
    /// Whether some tasks are of the scene that commands are about.
    pub(crate) swept: bool,
    /// Intents and acknowledgements.
    pub(crate) ledger: Ledger,
    /// How far it is, for whoever waits.
    pub(crate) progress: Arc<Progress>,
}

/// How far the generator is.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    /// Acknowledged tasks.
    pub(crate) acked: AtomicUsize,
    /// Whether everything was produced, and acknowledged or given up.
    pub(crate) done: AtomicBool,
    /// Acknowledged commands.
    pub(crate) told: AtomicUsize,
    /// Whether every command was sent, and acknowledged or given up.
    pub(crate) told_all: AtomicBool,
    /// Set to end before that.
    pub(crate) stop: AtomicBool,
}

/// Writes down acknowledgements.
struct Acks {
    /// Where to.
    ledger: Ledger,
    /// How far the generator is.
    progress: Arc<Progress>,
}

/// Longest wait for the last acknowledgements: longer than any broker is away.
const FLUSH: Duration = Duration::from_mins(1);

impl ClientContext for Acks {}

impl ProducerContext for Acks {
    type DeliveryOpaque = Box<String>;

    fn delivery(&self, result: &DeliveryResult<'_>, id: Box<String>) {
        let at = now_micros().to_string();
        match result {
            Ok(message) => {
                let (partition, offset) = (message.partition(), message.offset());
                self.ledger
                    .write(&["ack", &at, &id, &partition.to_string(), &offset.to_string()]);
                self.progress.acked.fetch_add(1, Ordering::Release);
            }
            Err((error, _)) => {
                self.ledger.write(&["error", &at, &id, &error.to_string()]);
            }
        }
    }
}

// === impl Generator ===

impl Generator {
    /// Starts on a thread of its own.
    pub(crate) fn start(self) -> Result<(), Failed> {
        let Self {
            bootstrap,
            topic,
            seed,
            tasks,
            rate,
            applied,
            swept,
            ledger,
            progress,
        } = self;
        let context = Acks {
            ledger,
            progress: Arc::clone(&progress),
        };
        let producer: BaseProducer<Acks> = ClientConfig::new()
            .set("bootstrap.servers", bootstrap)
            .set("enable.idempotence", "true")
            .set("linger.ms", "2")
            .create_with_context(context)?;
        thread::Builder::new()
            .name("generator".into())
            .spawn(move || {
                let start = Instant::now();
                for number in 0..tasks {
                    let at = Duration::from_secs_f64(number as f64 / rate as f64);
                    while start.elapsed() < at {
                        if progress.stop.load(Ordering::Acquire) {
                            return;
                        }
                        producer.poll(Duration::from_millis(1));
                    }
                    let plan = Plan::of(seed, number, rate);
                    let scene = match &plan.key {
                        Some(_) => ORDERED,
                        None if applied && number % TO_ONE_APPLIED == 0 => APPLIED,
                        None if swept && orders::is_swept(number) => SWEPT,
                        None => SCENE,
                    };
                    send(&producer, &topic, scene, &plan);
                }
                if let Err(error) = producer.flush(FLUSH) {
                    eprintln!("generator: {error}");
                }
                progress.done.store(true, Ordering::Release);
            })?;
        Ok(())
    }
}

/// Hands one task to the client.
fn send(producer: &BaseProducer<Acks>, topic: &str, scene: &str, plan: &Plan) {
    let Plan {
        id,
        fate,
        delay,
        key,
        batch,
        payload,
    } = plan;
    let key = key.as_deref();
    let delay = delay.as_millis().to_string();
    let batch = batch.map(|batch| batch.to_string());
    let ledger = &producer.context().ledger;
    ledger.write(&[
        "intent",
        &now_micros().to_string(),
        id,
        fate.outcome(),
        &fate.attempts().to_string(),
        &delay,
        &fingerprint(payload),
        key.unwrap_or_default(),
        batch.as_deref().unwrap_or_default(),
        scene,
    ]);
    let header = |key, value| Header {
        key,
        value: Some(value),
    };
    let mut headers = OwnedHeaders::new()
        .insert(header("retry-scene", scene))
        .insert(header("retry-id", id))
        .insert(header("retry-delay-ms", &delay));
    if let Some(batch) = &batch {
        headers = headers.insert(header("batch", batch));
    }
    let mut record =
        BaseRecord::<str, [u8], Box<String>>::with_opaque_to(topic, Box::new(id.clone()))
            .payload(payload)
            .headers(headers);
    // Records without one go anywhere, those of a key to one partition.
    record.key = key;
    while let Err((error, again)) = producer.send(record) {
        if error.rdkafka_error_code() != Some(rdkafka::types::RDKafkaErrorCode::QueueFull) {
            let at = now_micros().to_string();
            ledger.write(&["error", &at, id, &error.to_string()]);
            return;
        }
        producer.poll(Duration::from_millis(10));
        record = again;
    }
}
