//! The generator: produces the tasks of a plan at a steady pace, and writes down what it intended and what was acknowledged.
//!
//! Invariant: an intent is in the ledger before its record is handed to the client, an acknowledgement after the broker's word.

use std::sync::Arc;
use std::time::Duration;

use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, Producer};

use crate::Failed;
use crate::ledger::{Ledger, fingerprint, now_micros};
use crate::orders;
use crate::pace::{Acks, Pace, Progress, Record, hand};
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
        let pace = Pace {
            name: "generator",
            bootstrap,
            ledger,
            progress,
            part: |progress| &progress.tasks,
        };
        let at = move |number| Duration::from_secs_f64(number as f64 / rate as f64);
        let all = (0..tasks).map(move |number| (at(number), number));
        pace.start(all, move |producer, number| {
            let plan = Plan::of(seed, number, rate);
            let scene = match &plan.key {
                Some(_) => ORDERED,
                None if applied && number % TO_ONE_APPLIED == 0 => APPLIED,
                None if swept && orders::is_swept(number) => SWEPT,
                None => SCENE,
            };
            send(producer, &topic, scene, &plan);
        })
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
    producer.context().write(&[
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
    let mut record = Record::with_opaque_to(topic, Box::new(id.clone()))
        .payload(payload)
        .headers(headers);
    // Records without one go anywhere, those of a key to one partition.
    record.key = key;
    hand(producer, id, record);
}
