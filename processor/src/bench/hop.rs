//! Tasks that are due later: from the retry topic into a tier, and from tier to tier, with each guarantee; beside plain copies of the
//! same records with the same commit interval, batches and compression, on one thread.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rdkafka::message::OwnedHeaders;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use serde::Serialize;

use retide_avro::headers;
use retide_config::{Config, Guarantee};
use retide_core::{Header, Timestamp};
use retide_kafka::client::client_config;
use retide_native as native;
use retide_shell::clock;

use crate::bench::testbed::{parked, send};
use crate::bench::{Error, Samples, Speed, Testbed, copy};

/// How much is measured.
#[derive(Clone, Debug)]
pub struct Load {
    /// Records of each part.
    pub records: u64,
    /// Bytes of each payload.
    pub bytes: usize,
    /// What is measured beside the transactional copy.
    pub parts: BTreeSet<HopPart>,
}

/// One part of the measurement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum HopPart {
    /// A copy without transactions.
    PlainCopy,
    /// From the retry topic into a tier, exactly once.
    Ingest,
    /// From tier to tier, exactly once.
    Tier,
    /// From the retry topic into a tier, at least once.
    IngestAtLeastOnce,
    /// From tier to tier, at least once.
    TierAtLeastOnce,
}

/// What was measured.
#[derive(Clone, Debug, Serialize)]
pub struct Hop {
    /// Records of each part.
    pub records: u64,
    /// Bytes of each payload.
    pub bytes: usize,
    /// The plain transactional copy.
    pub transactional_copy: Speed,
    /// The other parts.
    pub parts: Vec<Measured>,
}

/// What was measured in one part.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Measured {
    /// The part.
    pub part: HopPart,
    /// How fast it was.
    #[serde(flatten)]
    pub speed: Speed,
    /// By the speed of the transactional copy.
    pub ratio: f64,
}

/// Where the records of one part stand, and which headers they have.
struct Part<'a> {
    /// The topic.
    topic: &'a str,
    /// The headers of each of them.
    headers: Vec<Header>,
}

/// How far off the tasks are due: beyond any measurement, and on the 1h rung.
const LATER: Duration = Duration::from_hours(1);

/// Measures hops on the cluster that `config` names; `say` is told what is going on.
///
/// # Errors
/// If a client fails, nothing moves for a minute, or what comes out is not what went in.
pub fn hop(config: &Config, load: &Load, say: impl Fn(&str)) -> Result<Hop, Error> {
    let mut config = config.clone();
    let (mut base, mut parts) = (None, Vec::new());
    for guarantee in [Guarantee::ExactlyOnce, Guarantee::AtLeastOnce] {
        let wanted = load.parts.iter().any(|part| part.guarantee() == guarantee);
        if base.is_some() && !wanted {
            continue;
        }
        config.processor.guarantee = guarantee;
        // Topics of its own for each guarantee: what one run leaves in the tiers is not for the next one to read.
        let bed = Testbed::make(&config)?;
        let measured = measure(&bed, load, &mut base, &say);
        bed.remove();
        parts.extend(measured?);
    }
    let base = base.unwrap_or_else(|| unreachable!("the first guarantee measures it"));
    let rate = |(part, speed): (HopPart, Speed)| Measured {
        part,
        speed,
        ratio: speed.per_second / base.per_second,
    };
    Ok(Hop {
        records: load.records,
        bytes: load.bytes,
        transactional_copy: base,
        parts: parts.into_iter().map(rate).collect(),
    })
}

/// Measures the parts of one guarantee on topics that are there, and the transactional copy if it is not known yet.
fn measure(
    bed: &Testbed,
    load: &Load,
    base: &mut Option<Speed>,
    say: impl Fn(&str),
) -> Result<Vec<(HopPart, Speed)>, Error> {
    let now = clock::since_epoch();
    let due = Timestamp::EPOCH + now + LATER + LATER / 2;
    let guarantee = bed.config.processor.guarantee;
    let wanted = |part: HopPart| load.parts.contains(&part).then_some(part);
    let (ingest, tier) = match guarantee {
        Guarantee::ExactlyOnce => (HopPart::Ingest, HopPart::Tier),
        Guarantee::AtLeastOnce => (HopPart::IngestAtLeastOnce, HopPart::TierAtLeastOnce),
    };
    let (tasks, parked) = (&*bed.topics.tasks, &*bed.topics.tiers[0]);
    let mut measured = Vec::new();
    let mut expected = 0;
    if base.is_none() || wanted(ingest).is_some() {
        say(&format!("producing {} tasks", load.records));
        let first = Part {
            topic: tasks,
            headers: entering(due),
        };
        first.produce(bed, load)?;
    }
    if base.is_none() {
        say("copying them in plain transactions");
        *base = Some(copy::transactional(bed, tasks, load.records)?.speed(load.records));
        if let Some(part) = wanted(HopPart::PlainCopy) {
            say("copying them without transactions");
            let samples = copy::plain(bed, tasks, load.records)?;
            measured.push((part, samples.speed(load.records)));
        }
    }
    if let Some(part) = wanted(ingest) {
        say(&format!("forwarding them into a tier, {guarantee}"));
        let samples = forward(bed, load, tasks)?;
        measured.push((part, samples.speed(load.records)));
        expected += load.records;
    }
    if let Some(part) = wanted(tier) {
        say(&format!("producing {} parked tasks", load.records));
        let second = Part {
            topic: parked,
            headers: waiting(due),
        };
        second.produce(bed, load)?;
        if wanted(ingest).is_none() {
            // They stand in the retry topic for the copy only, and are not what is measured.
            bed.skip(tasks)?;
        }
        say(&format!("forwarding them from tier to tier, {guarantee}"));
        let samples = forward(bed, load, parked)?;
        measured.push((part, samples.speed(load.records)));
        expected += load.records;
    }
    say("counting");
    let mut found = 0;
    for topic in &bed.topics.tiers[1..] {
        found += bed.count(topic)?;
    }
    // Nothing crashes here, so that even what may be repeated is not.
    if found != expected {
        return Err(Error::Count {
            what: "tasks in tiers",
            found,
            expected,
        });
    }
    Ok(measured)
}

/// Runs retide until everything on `topic` has gone on.
fn forward(bed: &Testbed, load: &Load, topic: &str) -> Result<Samples, Error> {
    let text = "scenes.bench.target = { http = { url = 'http://127.0.0.1:9/' } }";
    let process = bed.run(text.to_owned())?;
    let samples = bed.follow(topic, load.records);
    process.stop()?;
    samples
}

/// What a producer sets on a task.
fn entering(due: Timestamp) -> Vec<Header> {
    let header = |name: &str, value: String| Header {
        name: headers::name(name),
        value: Some(value.into()),
    };
    vec![
        header(headers::SCENE, "bench".to_owned()),
        header(headers::DUE_AT, due.as_millis().to_string()),
    ]
}

/// What retide sets on a task that is parked.
fn waiting(due: Timestamp) -> Vec<Header> {
    let task = parked("bench", 2, due);
    let mut all = Vec::new();
    headers::write_task(&task, &mut |name, value| {
        all.push(Header {
            name: headers::name(name),
            value: value.map(Bytes::copy_from_slice),
        });
    });
    all
}

// === impl HopPart ===

impl HopPart {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::PlainCopy,
        Self::Ingest,
        Self::Tier,
        Self::IngestAtLeastOnce,
        Self::TierAtLeastOnce,
    ];

    /// The guarantee it is measured with.
    const fn guarantee(self) -> Guarantee {
        match self {
            // With the copy it is compared with.
            Self::PlainCopy | Self::Ingest | Self::Tier => Guarantee::ExactlyOnce,
            Self::IngestAtLeastOnce | Self::TierAtLeastOnce => Guarantee::AtLeastOnce,
        }
    }
}

// === impl Part ===

impl Part<'_> {
    /// Produces the records of this part, over all partitions in turn.
    fn produce(&self, bed: &Testbed, load: &Load) -> Result<(), Error> {
        let mut config = client_config(bed.config.kafka.producer());
        config.set("enable.idempotence", "true");
        config.set("compression.type", "lz4");
        config.set("linger.ms", "20");
        let producer: BaseProducer = config.create()?;
        let payload: Arc<[u8]> = payload(load.bytes);
        let partitions = bed.config.topics.partitions as u64;
        let mut headers = OwnedHeaders::new();
        for Header { name, value } in &self.headers {
            native::headers::add(&mut headers, name.as_bytes(), value.as_deref());
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
