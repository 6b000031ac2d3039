//! Tasks by a plan: each one has its instant, whatever became of those before it, and is found again by its number.
//!
//! Invariant: how late an attempt was is measured from the plan, which it carries in [`DUE`]; a load that falls behind, or a task that is
//! read late, shows as lateness and is not left out.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rdkafka::error::KafkaError;
use rdkafka::message::{BorrowedMessage, Header as OutHeader, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};

use retide_avro::headers;
use retide_core::Timestamp;
use retide_kafka::client::client_config;
use retide_native as native;
use retide_shell::clock;

use crate::bench::target::{DUE, Target};
use crate::bench::testbed::send;
use crate::bench::{Error, PATIENCE, Testbed};

/// What a stream is made of.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Flow {
    /// The scene of its tasks.
    pub(crate) scene: &'static str,
    /// Tasks a second.
    pub(crate) rate: u64,
    /// How long before they are due tasks are produced, in turn.
    pub(crate) leads: &'static [Duration],
}

/// Tasks that are produced at their times until they are stopped.
pub(crate) struct Stream {
    /// The thread that produces; gives the number of tasks.
    thread: JoinHandle<Result<u64, KafkaError>>,
    /// Set to stop it.
    stop: Arc<AtomicBool>,
}

/// Which tasks of a scene were seen.
#[derive(Debug)]
pub(crate) struct Seen {
    /// One bit for each.
    bits: Vec<u64>,
    /// How many.
    tasks: u64,
    /// Records of tasks that were seen before, or were never produced.
    others: u64,
}

/// Bytes of the payload of each task of a stream.
const PAYLOAD: [u8; 512] = [b'x'; 512];

// === impl Stream ===

impl Stream {
    /// Starts to produce.
    pub(crate) fn start(bed: &Testbed, flow: Flow) -> Result<Self, Error> {
        let producer: BaseProducer = producer(bed, "0")?;
        let topic = Arc::clone(&bed.topics.tasks);
        let partitions = bed.config.topics.partitions as u64;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::Builder::new()
            .name(format!("bench-{}", flow.scene))
            .spawn(move || {
                let (start, epoch) = (Instant::now(), now());
                let mut index = 0;
                while !stopped.load(Ordering::Acquire) {
                    let after = Duration::from_micros(index * 1_000_000 / flow.rate);
                    thread::sleep((start + after).saturating_duration_since(Instant::now()));
                    let lead = flow.leads[index as usize % flow.leads.len()];
                    let due = epoch + after + lead;
                    let record = BaseRecord::to(&topic)
                        .partition((index % partitions) as i32)
                        .payload(&PAYLOAD[..])
                        .headers(entering(flow.scene, index, due));
                    send(&producer, record)?;
                    producer.poll(Duration::ZERO);
                    index += 1;
                }
                producer.flush(PATIENCE)?;
                Ok(index)
            })?;
        Ok(Self { thread, stop })
    }

    /// Stops: how many tasks were produced.
    pub(crate) fn stop(self) -> Result<u64, Error> {
        self.stop.store(true, Ordering::Release);
        let produced = self.thread.join();
        Ok(produced.unwrap_or_else(|panic| std::panic::resume_unwind(panic))?)
    }
}

// === impl Seen ===

impl Seen {
    /// Nothing was seen yet of `count` tasks.
    fn none(count: u64) -> Self {
        Self {
            bits: vec![0; count.div_ceil(64) as usize],
            tasks: 0,
            others: 0,
        }
    }

    /// A record of the task with this number.
    fn mark(&mut self, index: Option<u64>, count: u64) {
        let Some(index) = index.filter(|index| *index < count) else {
            self.others += 1;
            return;
        };
        let (word, bit) = (&mut self.bits[index as usize / 64], 1 << (index % 64));
        if *word & bit != 0 {
            self.others += 1;
            return;
        }
        *word |= bit;
        self.tasks += 1;
    }
}

/// Produces `count` tasks of a scene that are due at once.
pub(crate) fn flood(bed: &Testbed, scene: &str, count: u64) -> Result<(), Error> {
    let producer = producer(bed, "5")?;
    let due = now();
    for index in 0..count {
        let record = BaseRecord::to(&bed.topics.tasks)
            .partition((index % bed.config.topics.partitions as u64) as i32)
            .payload(&PAYLOAD[..])
            .headers(entering(scene, index, due));
        send(&producer, record)?;
    }
    Ok(producer.flush(PATIENCE)?)
}

/// Waits until a target has seen `count` requests since it was started.
pub(crate) fn arrive(target: &Target, count: u64) -> Result<(), Error> {
    let (mut seen, mut since) = (target.requests(), Instant::now());
    while seen < count {
        if since.elapsed() > PATIENCE {
            return Err(Error::Stuck {
                what: "attempts",
                done: seen,
                all: count,
            });
        }
        thread::sleep(Duration::from_millis(5));
        let before = std::mem::replace(&mut seen, target.requests());
        if before < seen {
            since = Instant::now();
        }
    }
    Ok(())
}

/// Reads a topic to its end, and until every task of `wanted` (scene and number of tasks) was seen on it: an error if one is missing, or
/// stands there twice. A record that says how its task ended counts only if it was delivered. `look` is shown those that count.
pub(crate) fn account(
    bed: &Testbed,
    topic: &str,
    wanted: &BTreeMap<&str, u64>,
    mut look: impl FnMut(&BorrowedMessage<'_>),
) -> Result<(), Error> {
    let all: u64 = wanted.values().sum();
    let mut seen: BTreeMap<&str, Seen> = wanted
        .iter()
        .map(|(scene, count)| (*scene, Seen::none(*count)))
        .collect();
    let mut done = 0;
    bed.read(topic, ("tasks delivered", all), |message| {
        let Some((scene, index)) = delivered(message) else {
            return done;
        };
        if let (Some(seen), Some(count)) = (seen.get_mut(scene), wanted.get(scene)) {
            let before = seen.tasks;
            seen.mark(index, *count);
            done += seen.tasks - before;
            look(message);
        }
        done
    })?;
    let found = done + seen.values().map(|seen| seen.others).sum::<u64>();
    if found != all {
        return Err(Error::Count {
            what: "records of delivered tasks",
            found,
            expected: all,
        });
    }
    Ok(())
}

/// Fails if attempts were early.
pub(crate) fn none_early(early: u64) -> Result<(), Error> {
    if early > 0 {
        return Err(Error::Early { count: early });
    }
    Ok(())
}

/// The scene and the number of the task of a record, unless it ended otherwise than delivered.
fn delivered<'a>(message: &'a BorrowedMessage<'_>) -> Option<(&'a str, Option<u64>)> {
    let (mut scene, mut id) = (None, None);
    for (name, value) in native::headers::read(message).ok()?.iter() {
        let text = value.and_then(|value| str::from_utf8(value).ok());
        match str::from_utf8(name).unwrap_or_default() {
            headers::SCENE => scene = text,
            headers::ID => id = text,
            headers::OUTCOME if text != Some("delivered") => return None,
            _ => {}
        }
    }
    let scene = scene?;
    let index = id?.strip_prefix(scene)?.strip_prefix('-')?;
    Some((scene, index.parse().ok()))
}

/// The identity of a task: its scene and its number.
pub(crate) fn identity(scene: &str, index: u64) -> String {
    format!("{scene}-{index}")
}

/// Time since the epoch.
pub(crate) fn now() -> Duration {
    clock::since_epoch()
}

/// A producer that waits `linger` milliseconds for more.
pub(crate) fn producer(bed: &Testbed, linger: &str) -> Result<BaseProducer, KafkaError> {
    let mut config = client_config(bed.config.kafka.producer());
    config.set("enable.idempotence", "true");
    config.set("compression.type", "lz4");
    config.set("linger.ms", linger);
    config.create()
}

/// What a producer sets on a task that is due `due` after the epoch.
fn entering(scene: &str, index: u64, due: Duration) -> OwnedHeaders {
    let due = (Timestamp::EPOCH + due).ceil_to_millis();
    let due = due.as_millis().to_string();
    let id = identity(scene, index);
    let header = |key, value| OutHeader {
        key,
        value: Some(value),
    };
    OwnedHeaders::new_with_capacity(4)
        .insert(header(headers::SCENE, scene))
        .insert(header(headers::ID, &*id))
        .insert(header(headers::DUE_AT, &*due))
        // An attempt says when it was due as retide sees it, which is never before the task was read.
        .insert(header(DUE, &*due))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_counts_once() {
        let mut seen = Seen::none(100);

        for index in [Some(0), Some(99), Some(64), Some(99), Some(100), None] {
            seen.mark(index, 100);
        }

        assert_eq!((seen.tasks, seen.others), (3, 3));
    }
}
