//! Tasks that are due later: from the retry topic into a tier, and from tier to tier; beside a plain transactional copy of the same
//! records with the same commit interval, batches and compression, on one thread.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::{BorrowedHeaders, Header as OutHeader, Message, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use serde::Serialize;

use retide_avro::headers;
use retide_core::{Header, Kind, Origin, Record, Task, Timestamp};

use crate::bench::bed::send;
use crate::bench::{Bed, Error, Samples, Speed};
use crate::config::Config;
use crate::shell::ledger::producer_config;

/// How much is measured.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// Records of each part.
    pub records: u64,
    /// Bytes of each payload.
    pub bytes: usize,
}

/// What was measured.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Hop {
    /// Records of each part.
    pub records: u64,
    /// Bytes of each payload.
    pub bytes: usize,
    /// From the retry topic into a tier.
    pub ingest: Speed,
    /// From tier to tier.
    pub tier: Speed,
    /// The plain transactional copy.
    pub copy: Speed,
    /// `ingest` by `copy`.
    pub ingest_ratio: f64,
    /// `tier` by `copy`.
    pub tier_ratio: f64,
}

/// Where the records of one part stand, and which headers they have.
struct Part<'a> {
    /// The topic.
    topic: &'a str,
    /// The headers of each of them.
    headers: Vec<Header>,
}

/// Longest wait for one answer of the broker.
const CALL: Duration = Duration::from_secs(30);

/// How far off the tasks are due: beyond any measurement, and on the 1h rung.
const LATER: Duration = Duration::from_hours(1);

/// Measures hops on the cluster that `config` names; `say` is told what is going on.
///
/// # Errors
/// If a client fails, nothing moves for a minute, or what comes out is not what went in.
pub fn hop(config: &Config, load: Load, say: impl Fn(&str)) -> Result<Hop, Error> {
    let bed = Bed::make(config)?;
    let measured = measure(&bed, load, say);
    bed.remove();
    measured
}

/// Measures on topics that are there.
fn measure(bed: &Bed, load: Load, say: impl Fn(&str)) -> Result<Hop, Error> {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    let due = Timestamp::EPOCH + now + LATER + LATER / 2;
    let (tasks, parked) = (&*bed.topics.tasks, &*bed.topics.tiers[0]);
    say(&format!("producing {} tasks", load.records));
    let first = Part {
        topic: tasks,
        headers: entering(due),
    };
    first.produce(bed, load)?;
    say("copying them in plain transactions");
    let copy = copy(bed, load, tasks)?.speed(load.records);
    say("forwarding them into a tier");
    let ingest = forward(bed, load, tasks)?.speed(load.records);
    say(&format!("producing {} parked tasks", load.records));
    let second = Part {
        topic: parked,
        headers: waiting(due),
    };
    second.produce(bed, load)?;
    say("forwarding them from tier to tier");
    let tier = forward(bed, load, parked)?.speed(load.records);
    say("counting");
    let mut found = 0;
    for topic in &bed.topics.tiers[1..] {
        found += bed.count(topic)?;
    }
    let expected = 2 * load.records;
    if found != expected {
        return Err(Error::Count {
            what: "tasks in tiers",
            found,
            expected,
        });
    }
    Ok(Hop {
        records: load.records,
        bytes: load.bytes,
        ingest,
        tier,
        copy,
        ingest_ratio: ingest.per_second / copy.per_second,
        tier_ratio: tier.per_second / copy.per_second,
    })
}

/// Runs retide until everything on `topic` has gone on.
fn forward(bed: &Bed, load: Load, topic: &str) -> Result<Samples, Error> {
    let text = "scenes.bench.target = { http = { url = 'http://127.0.0.1:9/' } }";
    let process = bed.run(text.to_owned())?;
    let samples = bed.follow(topic, load.records);
    process.stop()?;
    samples
}

/// Copies everything on `topic` to the dead-letters topic, which nobody else writes, and commits as often as retide would.
fn copy(bed: &Bed, load: Load, topic: &str) -> Result<Samples, Error> {
    let group = format!("{}-copy", bed.config.processor.group);
    let mut config = bed.config.kafka.consumer();
    for (key, value) in [
        ("group.id", group.as_str()),
        ("enable.auto.commit", "false"),
        ("isolation.level", "read_committed"),
        ("queued.max.messages.kbytes", "16384"),
    ] {
        config.set(key, value);
    }
    let consumer: BaseConsumer = config.create()?;
    let mut list = bed.partitions(topic);
    list.set_all_offsets(Offset::Beginning)?;
    consumer.assign(&list)?;
    let mut config = producer_config(&bed.config.kafka.producer());
    config.set("transactional.id", &group);
    let producer: BaseProducer = config.create()?;
    producer.init_transactions(CALL)?;
    let (mut samples, mut done) = (Samples::start(), 0);
    while done < load.records {
        if samples.idle() > super::PATIENCE {
            return Err(Error::Stuck {
                what: "records copied",
                done,
                all: load.records,
            });
        }
        done += copy_once(bed, &consumer, &producer)?;
        samples.add(done);
    }
    Ok(samples)
}

/// One transaction of the copy: how many records it copied.
fn copy_once(bed: &Bed, consumer: &BaseConsumer, producer: &BaseProducer) -> Result<u64, Error> {
    let until = Instant::now() + bed.config.processor.commit_interval;
    let mut next = BTreeMap::new();
    let mut count = 0;
    producer.begin_transaction()?;
    while Instant::now() < until {
        let Some(message) = consumer.poll(until.saturating_duration_since(Instant::now())) else {
            break;
        };
        let message = message?;
        let mut record = BaseRecord::<[u8], [u8]>::to(&bed.topics.dead_letters)
            .partition(message.partition())
            .headers(
                message
                    .headers()
                    .map_or_else(OwnedHeaders::new, BorrowedHeaders::detach),
            );
        record.payload = message.payload();
        record.key = message.key();
        send(producer, record)?;
        next.insert(
            message.partition(),
            (message.topic().to_owned(), message.offset() + 1),
        );
        count += 1;
    }
    let mut offsets = TopicPartitionList::new();
    for (partition, (topic, offset)) in next {
        offsets.add_partition_offset(&topic, partition, Offset::Offset(offset))?;
    }
    let membership = consumer.group_metadata().ok_or(KafkaError::Canceled)?;
    producer.send_offsets_to_transaction(&offsets, &membership, CALL)?;
    producer.commit_transaction(CALL)?;
    Ok(count)
}

/// What a producer sets on a task.
fn entering(due: Timestamp) -> Vec<Header> {
    let header = |name: &str, value: String| Header {
        name: name.into(),
        value: Some(value.into()),
    };
    vec![
        header(headers::SCENE, "bench".to_owned()),
        header(headers::DUE_AT, due.as_millis().to_string()),
    ]
}

/// What retide sets on a task that is parked.
fn waiting(due: Timestamp) -> Vec<Header> {
    let task = Task {
        id: "bench".into(),
        scene: "bench".into(),
        kind: Kind::Work,
        attempt: 2,
        due: due.ceil_to_millis(),
        first_failed_at: Timestamp::from_millis(1),
        deadline: None,
        origin: Origin {
            topic: "bench".into(),
            partition: 0,
            offset: 0,
        },
        failure: None,
        hops: 1,
        record: Record {
            key: None,
            value: None,
            headers: Vec::new(),
        },
    };
    let mut all = Vec::new();
    headers::write_task(&task, &mut |name, value| {
        all.push(Header {
            name: name.into(),
            value: value.map(Bytes::copy_from_slice),
        });
    });
    all
}

// === impl Part ===

impl Part<'_> {
    /// Produces the records of this part, over all partitions in turn.
    fn produce(&self, bed: &Bed, load: Load) -> Result<(), Error> {
        let mut config = bed.config.kafka.producer();
        config.set("enable.idempotence", "true");
        config.set("compression.type", "lz4");
        config.set("linger.ms", "20");
        let producer: BaseProducer = config.create()?;
        let payload: Arc<[u8]> = payload(load.bytes);
        let partitions = bed.config.topics.partitions as u64;
        let mut headers = OwnedHeaders::new();
        for Header { name, value } in &self.headers {
            headers = headers.insert(OutHeader {
                key: name,
                value: value.as_deref(),
            });
        }
        for index in 0..load.records {
            let record = BaseRecord::to(self.topic)
                .partition((index % partitions) as i32)
                .payload(&*payload)
                .headers(headers.clone());
            send(&producer, record)?;
        }
        producer.flush(Duration::from_mins(2))?;
        Ok(())
    }
}

/// Bytes that compress about as well as JSON does.
fn payload(bytes: usize) -> Arc<[u8]> {
    let words = b"{\"order\":104729,\"customer\":\"7f9c2ba4e88f827d\",\"amount\":\"19.99\",\"currency\":\"EUR\"},";
    words.iter().copied().cycle().take(bytes).collect()
}
