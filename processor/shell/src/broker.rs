//! Whether Kafka answers: asked every few seconds, for as long as a process runs.
//!
//! Not what is wrong with topics or partitions. Invariant: that nobody answers is told within [`AWAY`] and a few seconds, once, whatever
//! the clients of the workers say of it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};

use retide_kafka::client::{Kept, logged};
use retide_kafka::offsets::{self, Edge};

use crate::metrics::Metrics;
use crate::threads::Ended;
use crate::trouble::{Effect, Kind, Trouble, Troubles};

/// Asks the brokers whether they are there.
pub(crate) struct Watch {
    /// The client.
    client: Kept<BaseConsumer<Heard>>,
    /// Where the brokers are, as it is configured.
    bootstrap: String,
    /// The topic that is asked for.
    topic: Arc<str>,
    /// Where it is told.
    troubles: Troubles,
    /// Where it says how far the retry topic goes.
    metrics: Arc<Metrics>,
}

/// Keeps what the client complained of last.
#[derive(Default)]
struct Heard(Mutex<Option<String>>);

/// Time between two questions: a broker answers a thousand times as many.
const ASK: Duration = Duration::from_secs(2);

/// Longest wait for an answer: short beside the time in which a process ends.
const ANSWER: Duration = Duration::from_secs(2);

/// How long nobody answers before that is a trouble: longer than an election, a restart of one broker of several, or a pause of the
/// machine takes.
const AWAY: Duration = Duration::from_secs(10);

// === impl Watch ===

impl Watch {
    /// A watch that has asked for nothing yet.
    ///
    /// # Errors
    /// If the configuration is refused.
    pub(crate) fn new(
        config: &ClientConfig,
        bootstrap: &str,
        topic: &Arc<str>,
        metrics: &Arc<Metrics>,
    ) -> Result<Self, KafkaError> {
        let mut config = config.clone();
        config.set("statistics.interval.ms", "0");
        // What is read ends where workers see it end.
        config.set("isolation.level", "read_committed");
        Ok(Self {
            client: Kept::make(&config, |config| {
                config.create_with_context(Heard::default())
            })?,
            bootstrap: bootstrap.to_owned(),
            topic: Arc::clone(topic),
            troubles: metrics.troubles().held_by("broker"),
            metrics: Arc::clone(metrics),
        })
    }

    /// Asks until told to stop.
    pub(crate) fn run(self, stop: &AtomicBool) -> Ended {
        let mut answered = Instant::now();
        while !stop.load(Ordering::Acquire) {
            match self.client.fetch_metadata(Some(&self.topic), ANSWER) {
                Ok(metadata) => {
                    let topics = metadata.topics().iter();
                    let partitions = topics.map(|topic| topic.partitions().len()).sum();
                    self.look_for_ends(partitions);
                    answered = Instant::now();
                    self.troubles.end(Kind::BrokerAway, &self.bootstrap);
                }
                Err(error) if answered.elapsed() >= AWAY => self.tell(&error),
                Err(_) => {}
            }
            // What it has to say, which would pile up.
            while self.client.poll(Duration::ZERO).is_some() {}
            self.client.hold();
            thread::park_timeout(ASK);
        }
        self.troubles.end_all();
        Ended::Told
    }

    /// Says where the partitions of the retry topic end, so many of them, as far as somebody answers.
    fn look_for_ends(&self, partitions: usize) {
        let all = (0..partitions).filter_map(|partition| i32::try_from(partition).ok());
        let all = all.map(|partition| (&*self.topic, partition));
        if let Ok(ends) = offsets::edges(&self.client, all, Edge::End, ANSWER) {
            let ends = ends.into_iter();
            self.metrics
                .ends_are(ends.map(|((_, partition), end)| (partition, end)));
        }
    }

    /// Tells that nobody answers, and why, as far as the client knows.
    fn tell(&self, error: &KafkaError) {
        let heard = &self.client.context().0;
        let heard = heard.lock().unwrap_or_else(PoisonError::into_inner);
        let why = heard.clone().unwrap_or_else(|| error.to_string());
        self.troubles.begin(Trouble {
            kind: Kind::BrokerAway,
            subject: self.bootstrap.clone(),
            says: format!("no broker answers, nothing is read or committed: {why}"),
            fix: Some(
                "start the brokers, or see why they cannot be reached; it goes on by itself"
                    .to_owned(),
            ),
            effect: Effect::Stops,
        });
    }
}

// === impl Heard ===

impl ClientContext for Heard {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        logged(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        // This one says that all of them are, but not why.
        if error.rdkafka_error_code() != Some(RDKafkaErrorCode::AllBrokersDown) {
            let mut heard = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            *heard = Some(reason.to_owned());
        }
    }
}

impl ConsumerContext for Heard {}
