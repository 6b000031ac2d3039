//! Suspects: records at which a process has died, so that one which ends two in a row is set aside, and not taken into hand by all others.
//!
//! A process that dies with a record in hand leaves a mark on the order topic, in the partition of the record's shard: whoever gets a shard
//! reads that anyway. The key of a mark is `suspect/TOPIC/PARTITION/OFFSET`, its value the number of deaths and the last one's cause; a mark is
//! deleted when its record is done with. What has no time to leave a mark (a kill, no memory, a broker away) counts for nothing.
//!
//! Not the decision what becomes of such a record: it is a dead letter, by the core. Invariant: nothing of a record that is set aside is
//! looked at but its headers, by bytes, for the identity of its task; and after one more death not even these.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use tracing::{error, warn};

use retide_avro::headers;
use retide_core::Origin;
use retide_kafka::topics::Topics;

use crate::threads::{Ended, Threads};
use crate::worker::feed::Assignment;

/// The records at which processes have died.
#[derive(Default)]
pub(crate) struct Suspects {
    /// How many are to be set aside: looked at for each record, and 0 as a rule.
    set_aside: AtomicUsize,
    /// The deaths at each record of the shards that are or were ours, by `topic/partition/offset`.
    deaths: Mutex<BTreeMap<String, u32>>,
    /// Where marks are left; none in a process that leaves none.
    marker: Mutex<Option<Marker>>,
}

/// Where marks are left.
#[derive(Clone)]
struct Marker {
    /// The configuration of a producer.
    config: ClientConfig,
    /// The order topic.
    topic: Arc<str>,
}

/// The name of the threads that leave marks: they are left alone when they die.
pub(crate) const MARKING: &str = "mark";

/// Deaths in a row after which a record is set aside.
pub(crate) const MOST_DEATHS: u32 = 2;

/// How long a process that dies waits for its mark to be written: it is to be gone within a second.
const LAST_WORD: Duration = Duration::from_millis(700);

/// How long it may take to delete marks, which nothing waits for.
const DELETED: Duration = Duration::from_secs(10);

/// What the keys of marks begin with; no other key of the order topic does.
const KEY: &str = "suspect/";

// === impl Suspects ===

impl Suspects {
    /// From now on marks are left by a producer of this configuration.
    pub(crate) fn mark_on(&self, config: ClientConfig, topics: &Topics) {
        let topic = Arc::clone(&topics.order);
        *lock(&self.marker) = Some(Marker { config, topic });
    }

    /// How often a process has died at a record, as far as that is known and enough to set it aside: 0 nearly always.
    pub(crate) fn deaths(&self, topic: &str, partition: i32, offset: i64) -> u32 {
        if self.set_aside.load(Ordering::Relaxed) == 0 {
            return 0;
        }
        let deaths = lock(&self.deaths);
        let deaths = deaths.get(&format!("{topic}/{partition}/{offset}"));
        deaths
            .copied()
            .filter(|count| *count >= MOST_DEATHS)
            .unwrap_or_default()
    }

    /// The process dies with this record in hand: leaves a mark, if that can be done in a moment.
    pub(crate) fn mark(&self, record: &str, why: &str) {
        // Whoever dies may hold a lock.
        let (Ok(deaths), Ok(marker)) = (self.deaths.try_lock(), self.marker.try_lock()) else {
            return;
        };
        let Some(Origin { partition, .. }) = headers::origin_of(record) else {
            return;
        };
        let Some(marker) = marker.clone() else { return };
        let count = deaths.get(record).map_or(1, |count| count + 1);
        let (key, value) = (format!("{KEY}{record}"), format!("{count} {why}"));
        let (told, done) = mpsc::channel();
        let marking = thread::Builder::new()
            .name(MARKING.to_owned())
            .spawn(move || {
                let _ = told.send(marker.write(partition, &[(key, Some(value))], LAST_WORD));
            });
        let written =
            marking.is_ok() && done.recv_timeout(LAST_WORD).is_ok_and(|done| done.is_ok());
        if written {
            error!(
                record,
                deaths = count,
                "mark left: a record at which {MOST_DEATHS} processes die is set aside"
            );
        } else {
            error!(
                record,
                "no mark left in time: the next process takes the record into hand as if nothing had been"
            );
        }
    }

    /// Forgets what was known of these shards: it is read anew.
    pub(crate) fn forget(&self, shards: &[i32]) {
        self.change(|deaths| {
            deaths.retain(|record, _| {
                let origin = headers::origin_of(record);
                origin.is_none_or(|origin| !shards.contains(&origin.partition))
            });
        });
    }

    /// Takes in a record of the order topic, if it is a mark; says whether it is one.
    pub(crate) fn replay(&self, key: &[u8], value: Option<&[u8]>) -> bool {
        let Some(record) = key.strip_prefix(KEY.as_bytes()) else {
            return false;
        };
        let Some(record) = str::from_utf8(record)
            .ok()
            .filter(|record| headers::origin_of(record).is_some())
        else {
            return true;
        };
        let count = value.and_then(count).filter(|count| *count > 0);
        self.change(|deaths| match count {
            Some(count) => {
                deaths.insert(record.to_owned(), count);
            }
            None => {
                deaths.remove(record);
            }
        });
        true
    }

    /// Deletes the marks of records that are done with, as these lanes say.
    pub(crate) fn settle(&self, assignments: &[Assignment], topics: &Topics, threads: &Threads) {
        let is_done = |record: &str| {
            let origin = headers::origin_of(record)?;
            let lane = assignments.iter().find(|assignment| {
                assignment.lane.shard == origin.partition
                    && *topics.name(assignment.lane.source) == origin.topic
            })?;
            let done = origin.offset < lane.start || lane.known.contains(origin.offset);
            done.then_some(origin.partition)
        };
        let mut done = Vec::new();
        self.change(|deaths| {
            deaths.retain(|record, _| {
                let partition = is_done(record);
                done.extend(partition.map(|partition| (partition, format!("{KEY}{record}"))));
                partition.is_none()
            });
        });
        let marker = lock(&self.marker).clone();
        let Some(marker) = marker.filter(|_| !done.is_empty()) else {
            return;
        };
        let body = move || {
            for (partition, key) in done {
                if let Err(error) = marker.write(partition, &[(key, None)], DELETED) {
                    warn!(
                        error,
                        "mark not deleted, it is when the shard is assigned again"
                    );
                }
            }
            Ended::Told
        };
        // What is not deleted now is deleted at another assignment.
        if let Err(error) = threads.spawn("suspects", body) {
            warn!(%error, "marks not deleted");
        }
    }

    /// Changes what is known, and counts anew what is to be set aside.
    fn change(&self, change: impl FnOnce(&mut BTreeMap<String, u32>)) {
        let mut deaths = lock(&self.deaths);
        change(&mut deaths);
        let aside = deaths.values().filter(|count| **count >= MOST_DEATHS);
        self.set_aside.store(aside.count(), Ordering::Relaxed);
    }
}

impl fmt::Debug for Suspects {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut map = formatter.debug_map();
        map.entries(lock(&self.deaths).iter()).finish()
    }
}

// === impl Marker ===

impl Marker {
    /// Writes records of the order topic, within a time.
    fn write(
        &self,
        partition: i32,
        records: &[(String, Option<String>)],
        patience: Duration,
    ) -> Result<(), String> {
        let said = |error: rdkafka::error::KafkaError| error.to_string();
        let mut config = self.config.clone();
        config
            .set("linger.ms", "0")
            .set("message.timeout.ms", patience.as_millis().to_string());
        let producer: BaseProducer = config.create().map_err(said)?;
        for (key, value) in records {
            let mut record = BaseRecord::<str, str>::to(&self.topic)
                .partition(partition)
                .key(key.as_str());
            record.payload = value.as_deref();
            producer.send(record).map_err(|(error, _)| said(error))?;
        }
        producer.flush(patience).map_err(said)
    }
}

/// The number that a mark's value begins with.
fn count(value: &[u8]) -> Option<u32> {
    let text = value.split(|byte| *byte == b' ').next()?;
    str::from_utf8(text).ok()?.parse().ok()
}

/// Locks what no panic leaves half-changed.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_set_aside_after_two_deaths_and_until_its_mark_is_deleted() {
        let suspects = Suspects::default();
        let key = b"suspect/retry.tasks/1/7";
        let deaths = || suspects.deaths("retry.tasks", 1, 7);

        assert!(suspects.replay(key, Some(b"1 a panic")));
        assert_eq!(deaths(), 0);
        assert!(suspects.replay(key, Some(b"2 a panic")));
        assert_eq!(deaths(), 2);
        assert_eq!(suspects.deaths("retry.tasks", 1, 8), 0);
        assert_eq!(suspects.deaths("retry.delay.5s", 1, 7), 0);
        assert!(suspects.replay(key, None));
        assert_eq!(deaths(), 0);

        suspects.replay(key, Some(b"3 another"));
        suspects.forget(&[0]);
        assert_eq!(deaths(), 3);
        suspects.forget(&[1]);
        assert_eq!(deaths(), 0);
    }

    #[test]
    fn only_marks_are_taken_for_marks() {
        let suspects = Suspects::default();

        assert!(!suspects.replay(b"0123456789abcdef0123456789abcdef", Some(b"\x01")));
        for key in [&b"suspect/"[..], b"suspect/\xff/1/2", b"suspect/t/x/2"] {
            assert!(suspects.replay(key, Some(b"2 x")));
        }
        for value in [None, Some(&b""[..]), Some(b"x"), Some(b"-2"), Some(b"\xff")] {
            assert!(suspects.replay(b"suspect/t/1/2", value));
        }
        assert_eq!(suspects.deaths("t", 1, 2), 0);
        assert!(lock(&suspects.deaths).is_empty());
    }
}
