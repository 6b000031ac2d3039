//! Records that are sent at their times, from a thread of its own, and what the broker says of them.
//!
//! Invariant: what is sent is in the ledger before its record is handed to the client, an acknowledgement after the broker's word.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::client::ClientContext;
use rdkafka::message::{DeliveryResult, Message};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer, ProducerContext};
use rdkafka::types::RDKafkaErrorCode;

use crate::Failed;
use crate::ledger::{Ledger, now_micros};

/// How far those are that send.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    /// The tasks.
    pub(crate) tasks: Sent,
    /// Further records of tasks that one of them takes the place of.
    pub(crate) rounds: AtomicUsize,
    /// The commands.
    pub(crate) commands: Sent,
    /// How many commands targets send or will send.
    pub(crate) later: AtomicUsize,
    /// Those of them that are sent.
    pub(crate) said_later: Sent,
    /// Set to end before everything is sent.
    pub(crate) stop: AtomicBool,
}

/// How far one of them is.
#[derive(Debug, Default)]
pub(crate) struct Sent {
    /// Acknowledged records.
    pub(crate) acked: AtomicUsize,
    /// Whether everything was sent, and acknowledged or given up.
    pub(crate) done: AtomicBool,
}

/// Who sends records at their times.
pub(crate) struct Pace {
    /// The name of its thread.
    pub(crate) name: &'static str,
    /// The broker.
    pub(crate) bootstrap: String,
    /// What is sent and acknowledged.
    pub(crate) ledger: Ledger,
    /// How far it is, for whoever waits.
    pub(crate) progress: Arc<Progress>,
    /// Which part of that is its own.
    pub(crate) part: fn(&Progress) -> &Sent,
}

/// Writes down acknowledgements.
pub(crate) struct Acks(Pace);

/// A record with its name, which its acknowledgement bears.
pub(crate) type Record<'a> = BaseRecord<'a, str, [u8], Box<String>>;

/// Ends the name of a record of which there was one before.
pub(crate) const COPY: &str = "+";

/// Ends the name of a record that takes the place of the task of its identity.
pub(crate) const ROUND: &str = "*";

/// Longest wait for the last acknowledgements: longer than any broker is away.
const FLUSH: Duration = Duration::from_mins(1);

// === impl Progress ===

impl Progress {
    /// How many commands are acknowledged, whoever has sent them.
    pub(crate) fn commands_acked(&self) -> usize {
        let acked = |sent: &Sent| sent.acked.load(Ordering::Acquire);
        acked(&self.commands) + acked(&self.said_later)
    }
}

// === impl Pace ===

impl Pace {
    /// Starts to `send` each at its time, which is since now.
    pub(crate) fn start<T>(
        self,
        all: impl Iterator<Item = (Duration, T)> + Send + 'static,
        send: impl Fn(&BaseProducer<Acks>, T) + Send + 'static,
    ) -> Result<(), Failed> {
        let (name, part) = (self.name, self.part);
        let progress = Arc::clone(&self.progress);
        let producer: BaseProducer<Acks> = ClientConfig::new()
            .set("bootstrap.servers", &self.bootstrap)
            .set("enable.idempotence", "true")
            .set("linger.ms", "2")
            .create_with_context(Acks(self))?;
        thread::Builder::new().name(name.into()).spawn(move || {
            let start = Instant::now();
            for (at, one) in all {
                while start.elapsed() < at {
                    if progress.stop.load(Ordering::Acquire) {
                        return;
                    }
                    producer.poll(Duration::from_millis(1));
                }
                send(&producer, one);
            }
            if let Err(error) = producer.flush(FLUSH) {
                eprintln!("{name}: {error}");
            }
            part(&progress).done.store(true, Ordering::Release);
        })?;
        Ok(())
    }
}

// === impl Acks ===

impl Acks {
    /// Writes a line down.
    pub(crate) fn write(&self, line: &[&str]) {
        self.0.ledger.write(line);
    }
}

impl ClientContext for Acks {}

impl ProducerContext for Acks {
    type DeliveryOpaque = Box<String>;

    fn delivery(&self, result: &DeliveryResult<'_>, id: Box<String>) {
        let at = now_micros().to_string();
        match result {
            Ok(message) => {
                let (partition, offset) = (message.partition(), message.offset());
                let place = [partition.to_string(), offset.to_string()];
                if let Some(id) = id.strip_suffix(COPY) {
                    return self.write(&["again", &at, id, &place[0], &place[1]]);
                }
                if let Some(id) = id.strip_suffix(ROUND) {
                    self.0.progress.rounds.fetch_add(1, Ordering::Release);
                    return self.write(&["again", &at, id, &place[0], &place[1]]);
                }
                self.write(&["ack", &at, &id, &place[0], &place[1]]);
                let sent = (self.0.part)(&self.0.progress);
                sent.acked.fetch_add(1, Ordering::Release);
            }
            Err((error, _)) => self.write(&["error", &at, &id, &error.to_string()]),
        }
    }
}

/// Hands a record to the client, which may have to make room for it.
pub(crate) fn hand(producer: &BaseProducer<Acks>, id: &str, mut record: Record<'_>) {
    while let Err((error, again)) = producer.send(record) {
        if error.rdkafka_error_code() != Some(RDKafkaErrorCode::QueueFull) {
            let at = now_micros().to_string();
            let line = ["error", &at, id, &error.to_string()];
            return producer.context().write(&line);
        }
        producer.poll(Duration::from_millis(10));
        record = again;
    }
}
