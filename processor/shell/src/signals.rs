//! Signals: what one process tells all others at once, on a topic of one partition. So far, which servers want rest.
//!
//! Not what follows from that, which the engine decides. A signal is advice: it is written in no transaction, nobody waits for it, and where
//! it is lost, each process hears the same from the server itself. So the topic is followed from shortly before its end, and what was said long
//! ago, or by a clock that is off, is bounded by the engine. Invariants: telling never holds up a worker; what comes from the topic is
//! bounded before it is read.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, TrySendError, bounded, never};
use rdkafka::ClientConfig;
use rdkafka::message::{BorrowedMessage, Message};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use serde::{Deserialize, Serialize};
use tracing::debug;
use uuid::Uuid;

use retide_config::Config;
use retide_core::cooldown::{Heard, Signal};
use retide_core::with_causes;
use retide_kafka::client::client_config;
use retide_kafka::follow::Follower;
use retide_kafka::producer::producer_config;

use crate::clock;
use crate::threads::Ended;
use crate::trouble::{Effect, Kind, Trouble, Troubles};

/// The end of the workers' lines: tells and hears.
pub struct Signals {
    /// Tells.
    teller: Arc<Teller>,
    /// Where lasting troubles are told.
    troubles: Troubles,
    /// How the topic is read.
    client: ClientConfig,
    /// The group in whose name.
    group: String,
    /// The workers.
    workers: Vec<Sender<Told>>,
}

/// The line of one worker.
pub struct Line {
    /// Tells; nobody, where there is no topic.
    teller: Option<Arc<Teller>>,
    /// What other processes say.
    pub(crate) heard: Receiver<Told>,
}

/// What another process says of a server.
pub(crate) type Told = (Arc<str>, Heard);

/// Writes signals.
struct Teller {
    /// The producer, if the client takes its configuration.
    producer: Option<BaseProducer>,
    /// The topic.
    topic: Arc<str>,
    /// This process.
    process: Uuid,
}

/// A record.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    /// What is said: [`COOLDOWN`].
    signal: String,
    /// The server, such as `https://shop.example:443`.
    target: String,
    /// For how long it wants rest, in milliseconds.
    left_ms: u64,
    /// How many calls of the process succeeded in the second before.
    passed: u32,
    /// The process.
    process: Uuid,
    /// When that was said, in milliseconds since the epoch.
    at: u64,
}

/// The word for a server that wants rest.
const COOLDOWN: &str = "cooldown";

/// Largest record that is looked at: a name of a server has at most 253 bytes.
const MOST_BYTES: usize = 2_048;

/// Records that are read at first, of which those count that are not over: a cooldown is one of each process.
const RECENT: u32 = 1_000;

/// Longest time for that.
const START: Duration = Duration::from_secs(10);

/// Time between two tries to follow the topic.
const AGAIN: Duration = Duration::from_secs(5);

/// Signals that wait for a worker; more are lost to it.
const WAITING: usize = 256;

/// Signals that wait for the broker; more are lost.
const UNSENT: u32 = 1_000;

/// How long a signal is worth being sent.
const FRESH: Duration = Duration::from_secs(5);

/// Pause of a thread that has nothing to follow.
const PAUSE: Duration = Duration::from_millis(100);

// === impl Signals ===

impl Signals {
    /// The signals of a process.
    pub(crate) fn new(
        config: &Config,
        topic: &Arc<str>,
        process: Uuid,
        troubles: &Troubles,
    ) -> Self {
        let mut producer = producer_config(&client_config(config.kafka.producer()));
        for (key, value) in [
            // One record at a time, and it is urgent.
            ("linger.ms", "0".to_owned()),
            ("message.timeout.ms", FRESH.as_millis().to_string()),
            ("queue.buffering.max.messages", UNSENT.to_string()),
        ] {
            producer.set(key, value);
        }
        let producer = producer
            .create()
            .inspect_err(|error| debug!(%error, "no signals are sent"));
        Self {
            teller: Arc::new(Teller {
                producer: producer.ok(),
                topic: Arc::clone(topic),
                process,
            }),
            troubles: troubles.held_by("signals"),
            client: client_config(config.kafka.consumer()),
            group: config.processor.group.clone(),
            workers: Vec::new(),
        }
    }

    /// A line for one more worker.
    pub(crate) fn line(&mut self) -> Line {
        let (told, heard) = bounded(WAITING);
        self.workers.push(told);
        Line {
            teller: Some(Arc::clone(&self.teller)),
            heard,
        }
    }

    /// Hears other processes until it is time to end.
    pub(crate) fn run(mut self, stop: &AtomicBool) -> Ended {
        let mut follower = None;
        let mut start_at = Instant::now();
        while !stop.load(Ordering::Acquire) {
            if let Some(producer) = &self.teller.producer {
                producer.poll(Duration::ZERO);
            }
            match &follower {
                None if Instant::now() >= start_at => {
                    follower = self.start();
                    start_at = Instant::now() + AGAIN;
                }
                None => thread::park_timeout(PAUSE),
                Some(topic) => Follower::follow(topic, |message| self.take(message)),
            }
        }
        Ended::Told
    }

    /// Follows the topic, if that is possible.
    fn start(&mut self) -> Option<Follower> {
        let topic = Arc::clone(&self.teller.topic);
        let (client, group) = (self.client.clone(), self.group.clone());
        let by = Instant::now() + START;
        let started = Follower::recent(RECENT, &client, (&topic, &group), by, |message| {
            self.take(message);
        });
        match started {
            Ok(follower) => {
                self.troubles.end(Kind::TopicUnreadable, &topic);
                Some(follower)
            }
            Err(error) => {
                let why = with_causes(&error);
                self.troubles.begin(Trouble {
                    kind: Kind::TopicUnreadable,
                    subject: topic.to_string(),
                    says: format!(
                        "which servers want rest is not heard from other processes: {why}"
                    ),
                    fix: Some("retide doctor, which says what the topic needs".to_owned()),
                    effect: Effect::Limits,
                });
                None
            }
        }
    }

    /// Hands a record of another process to each worker. What cannot be read is of another version, or of somebody else.
    fn take(&self, message: &BorrowedMessage<'_>) {
        let value = message.payload().unwrap_or_default();
        if let Some(told) = heard(value, self.teller.process, millis(clock::since_epoch())) {
            for worker in &self.workers {
                // A worker that is behind hears it from the others of its process, or from the server.
                match worker.try_send(told.clone()) {
                    Ok(()) | Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {}
                }
            }
        }
    }
}

// === impl Line ===

impl Line {
    /// The line of a worker that neither tells nor hears.
    pub fn none() -> Self {
        Self {
            teller: None,
            heard: never(),
        }
    }

    /// Tells all other processes.
    pub(crate) fn tell(&self, signal: &Signal) {
        if let Some(teller) = &self.teller {
            teller.tell(signal);
        }
    }
}

// === impl Teller ===

impl Teller {
    /// Writes a signal, unless there is no room: it is not waited for.
    fn tell(&self, signal: &Signal) {
        let record = Record {
            signal: COOLDOWN.to_owned(),
            target: signal.server.to_string(),
            left_ms: millis(signal.left),
            passed: signal.passed,
            process: self.process,
            at: millis(clock::since_epoch()),
        };
        let (Some(producer), Ok(value)) = (&self.producer, serde_json::to_vec(&record)) else {
            return;
        };
        let out = BaseRecord::to(&self.topic)
            .key(&record.target)
            .payload(&value)
            .partition(0);
        if let Err((error, _)) = producer.send(out) {
            debug!(%error, "signal lost");
        }
    }
}

impl Drop for Teller {
    /// What nobody has taken is of no use to those who come later.
    fn drop(&mut self) {
        if let Some(producer) = &self.producer {
            producer.purge(rdkafka::producer::PurgeConfig::default().queue());
        }
    }
}

/// What a record says that another process wrote, if it can be read at `now`, in milliseconds since the epoch.
fn heard(value: &[u8], own: Uuid, now: u64) -> Option<Told> {
    if value.len() > MOST_BYTES {
        return None;
    }
    let record: Record = serde_json::from_slice(value).ok()?;
    if record.signal != COOLDOWN || record.process == own {
        return None;
    }
    let heard = Heard {
        by: record.process.as_u64_pair().0,
        left: Duration::from_millis(record.left_ms),
        passed: record.passed,
        // A clock that is ahead of this one says nothing of the future.
        ago: Duration::from_millis(now.saturating_sub(record.at)),
    };
    Some((record.target.into(), heard))
}

/// Whole milliseconds.
fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: Uuid = Uuid::from_u128(7);

    fn line(at: u64, process: u128) -> String {
        let process = Uuid::from_u128(process);
        format!(
            r#"{{"signal":"cooldown","target":"http://h:80","left_ms":5000,"passed":7,"process":"{process}","at":{at}}}"#
        )
    }

    #[test]
    fn what_another_process_says_is_heard_with_its_age() {
        let of = |at, now| heard(line(at, 9 << 64).as_bytes(), OWN, now);

        let (server, told) = of(10_000, 10_150).expect("a signal");

        assert_eq!(&*server, "http://h:80");
        let expected = Heard {
            by: 9,
            left: Duration::from_secs(5),
            passed: 7,
            ago: Duration::from_millis(150),
        };
        assert_eq!(told, expected);
        // A clock that is ahead.
        assert_eq!(of(99_000, 10_000).expect("one").1.ago, Duration::ZERO);
    }

    #[test]
    fn what_is_its_own_foreign_broken_or_too_large_is_not_heard() {
        let own = line(1, 7);
        let other = line(1, 8).replace("cooldown", "flood");
        let large = line(1, 8).replace("http://h:80", &"h".repeat(MOST_BYTES));
        let negative = line(1, 8).replace("5000", "-1");

        for value in [&own, &other, &large, &negative, "", "null", "[1]"] {
            assert_eq!(heard(value.as_bytes(), OWN, 1), None, "{value}");
        }
    }
}
