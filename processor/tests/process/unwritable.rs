//! Writes that can never succeed: a record that no topic takes ends alone, and a topic that takes no records stops what needs it, and
//! nothing else.

use std::ops::Range;
use std::thread;
use std::time::{Duration, Instant};

use rdkafka::admin::{AdminClient, AdminOptions};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::OwnedHeaders;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use retide_native::headers::add;

use crate::commands::get;
use crate::rig::{FLAKY, Retide, Rig, Stored};
use crate::support::{PATIENCE, config, free_address};

/// How long a trouble may take to be told.
const TOLD: Duration = Duration::from_secs(30);

/// Time between two tries to write.
const AGAIN: Duration = Duration::from_secs(1);

/// A scene that keeps the order of its keys.
const LINE: &str = r#"
[scenes.line]
target = { http = { url = "http://TARGET/line", timeout = "1m" } }
backoff = { fixed = { delay = "700ms" } }
ordering = "key"
"#;

#[test]
fn a_record_that_no_topic_takes_ends_alone_and_without_its_value() {
    let rig = Rig::new(Duration::ZERO, &format!("{FLAKY}{LINE}"));
    let producer = zstd(&rig);
    // Small where it is produced, and too large for any topic once it is written by somebody else.
    let (cyclic, zeros) = (cyclic(), vec![b'0'; 12_000_000]);
    for (id, scene, key, delay, value) in [
        ("large-parked", "flaky", None, "60000", &cyclic),
        ("large-local", "flaky", None, "60000", &zeros),
        ("large-unknown", "nobody", None, "0", &cyclic),
        // What is behind it comes back when this one would have been due.
        ("large-line", "line", Some("k"), "25000", &cyclic),
    ] {
        let headers = [
            ("retry-scene", scene),
            ("retry-id", id),
            ("retry-delay-ms", delay),
        ];
        send(&rig, &producer, &headers, key, value);
    }
    send(
        &rig,
        &producer,
        &[("retry-scene", "line"), ("retry-id", "next-in-line")],
        Some("k"),
        b"0",
    );
    producer.flush(PATIENCE).unwrap();
    rig.produce(0, [0; 8].into_iter());

    let retide = rig.run();
    let ends = rig.ends_within(13, PATIENCE);

    for (id, ends) in &ends {
        let expected = if id.starts_with("large") {
            "dead"
        } else {
            "delivered"
        };
        assert_eq!(ends, &[expected], "{id}");
    }
    assert_eq!(rig.target.count(), 9);
    let letters = rig.read("dead-letters");
    assert_eq!(letters.len(), 4);
    for letter in letters {
        let id = letter.text("retry-id");
        let reason = if id == "large-unknown" {
            "unknown-scene"
        } else {
            "unwritable"
        };
        assert_eq!(letter.text("retry-reason"), reason, "{id}");
        assert_eq!(letter.text("retry-omitted"), "value", "{id}");
        assert_eq!(letter.value, None, "{id}");
        let origin = format!("{}/", rig.topic("tasks"));
        assert!(letter.text("retry-origin").starts_with(&origin), "{id}");
    }
    let alerts = rig.read("alerts");
    let is_told = |alert: &Stored| alert.text("retry-reason") == "unwritable";
    assert!(alerts.iter().any(is_told));
    retide.terminate();
    assert_eq!(retide.wait(), Some(0));
}

#[test]
fn a_topic_that_takes_no_records_stops_what_needs_it_and_nothing_else() {
    let rig = Rig::new(Duration::ZERO, "");
    let address = free_address();
    let basics = rig.basics();
    rig.configure(&format!("{basics}[admin]\nlisten = '{address}'\n{FLAKY}"));
    let retide = rig.run();
    rig.produce(0, [0; 4].into_iter());
    let mut ended = 4;
    rig.ends(ended);

    // No end can be written, so no call is made; parking goes on. The limit leaves room for the markers of transactions.
    rig.set("callbacks", &[("max.message.bytes", "100")]);
    let mut next = 100;
    told(
        &rig,
        &retide,
        &address,
        ["callbacks", "max.message.bytes="],
        || {
            rig.produce(next, [0].into_iter());
            next += 1;
        },
    );
    let calls = rig.target.count();
    rig.produce(200, [0; 20].into_iter());
    let producer = rig.producer();
    let park = |numbers: Range<usize>| {
        for number in numbers {
            let id = format!("parked-{number}");
            let headers = [
                ("retry-scene", "flaky"),
                ("retry-id", &id),
                ("retry-delay-ms", "600000"),
            ];
            rig.send(&producer, &headers, b"0");
        }
        producer.flush(PATIENCE).unwrap();
    };
    park(0..5);
    until("parked", || rig.read("delay.1m").len() == 5);
    assert_eq!(
        rig.target.count(),
        calls,
        "called although no end can be written"
    );
    rig.set("callbacks", &[("max.message.bytes", "1048588")]);
    ended += next - 100 + 20;
    let ends = rig.ends_within(ended, PATIENCE);
    assert!(ends.values().all(|ends| ends == &["delivered"]), "{ends:?}");
    assert_eq!(rig.target.count(), ended, "called again");
    until("ready", || {
        get(&address, "/readyz").is_some_and(|(status, _)| status == 200)
    });

    // A tier has others to stand in for it.
    rig.set("delay.now", &[("max.message.bytes", "100")]);
    rig.produce(300, [1; 4].into_iter());
    ended += 4;
    rig.ends_within(ended, PATIENCE);
    rig.set("delay.now", &[("max.message.bytes", "1048588")]);

    // So it has if it wants keys, and tasks have none.
    rig.set("delay.1m", &[("cleanup.policy", "compact")]);
    park(5..10);
    until("parked elsewhere", || rig.read("delay.10s").len() >= 5);
    rig.set("delay.1m", &[("cleanup.policy", "delete")]);

    // What is delivered needs no dead letter.
    delete(&rig, "dead-letters");
    let mut dead = 0;
    told(
        &rig,
        &retide,
        &address,
        ["dead-letters", "retide init"],
        || {
            dead += 1;
            let id = format!("dead-{dead}");
            rig.send(
                &producer,
                &[("retry-scene", "nobody"), ("retry-id", &id)],
                b"0",
            );
            producer.flush(PATIENCE).unwrap();
        },
    );
    rig.produce(400, [0; 4].into_iter());
    ended += 4;
    let last = format!("dead-{dead}");
    until("delivered", || {
        let callbacks = rig.read("callbacks");
        assert!(callbacks.iter().all(|end| end.text("retry-id") != last));
        let delivered = |end: &&Stored| end.text("retry-outcome") == "delivered";
        callbacks.iter().filter(delivered).count() == ended
    });
    assert!(rig.retide(&["init"]).status.success());
    let ends = rig.ends_within(ended + dead, PATIENCE);
    assert_eq!(ends[&last], ["dead"]);
    assert!(ends.values().all(|ends| ends.len() == 1), "{ends:?}");
    until("alerts", || {
        alerts(&rig, "callbacks") > 0 && alerts(&rig, "dead-letters") > 0
    });
    retide.terminate();
    assert_eq!(retide.wait(), Some(0));
}

#[test]
fn a_target_topic_that_does_not_exist_costs_others_nothing() {
    let target = "[scenes.stray]\ntarget = { kafka = { topic = 'MISSING' } }\n\
                  backoff = { fixed = { delay = '700ms' } }\nmax_attempts = 2\n";
    let rig = Rig::new(Duration::ZERO, "");
    let missing = rig.topic("missing");
    let address = free_address();
    let (basics, target) = (rig.basics(), target.replace("MISSING", &missing));
    rig.configure(&format!(
        "{basics}[admin]\nlisten = '{address}'\n{FLAKY}{target}"
    ));
    let retide = rig.run();
    let producer = rig.producer();

    for number in 0..20 {
        let id = format!("stray-{number}");
        rig.send(
            &producer,
            &[("retry-scene", "stray"), ("retry-id", &id)],
            b"0",
        );
    }
    producer.flush(PATIENCE).unwrap();
    rig.produce(0, [0; 20].into_iter());
    let ends = rig.ends(40);

    for (id, ends) in &ends {
        let expected = if id.starts_with("stray") {
            "dead"
        } else {
            "delivered"
        };
        assert_eq!(ends, &[expected], "{id}");
    }
    // None of its records was waited for in a transaction, and none counts as delivered.
    let (_, metrics) = get(&address, "/metrics").unwrap();
    for (scene, outcome, count) in [
        ("stray", "delivered", 0),
        ("stray", "dead", 20),
        ("flaky", "delivered", 20),
    ] {
        let series = format!(
            "retide_tasks_ended_total{{scene=\"{scene}\",outcome=\"{outcome}\"}} {count}\n"
        );
        assert!(metrics.contains(&series), "{series}{metrics}");
    }
    let aborted = "retide_ledger_batches_total{result=\"aborted\"} 0\n";
    assert!(metrics.contains(aborted), "{metrics}");
    assert_eq!(
        retide
            .log()
            .matches("target topic takes no records")
            .count(),
        1
    );
    let consumer: BaseConsumer = config(&rig.bootstrap, "reader").create().unwrap();
    let metadata = consumer.fetch_metadata(None, PATIENCE).unwrap();
    assert!(
        metadata
            .topics()
            .iter()
            .all(|topic| topic.name() != missing),
        "made by a typo"
    );
    // Made at last, it gets what comes from then on.
    crate::support::create_topics(&rig.bootstrap, &[&missing]);
    until("delivered to the topic", || {
        rig.send(&producer, &[("retry-scene", "stray")], b"0");
        producer.flush(PATIENCE).unwrap();
        !rig.read("missing").is_empty()
    });
    retide.terminate();
    assert_eq!(retide.wait(), Some(0));
}

/// How many alerts say that this topic takes no records.
fn alerts(rig: &Rig, topic: &str) -> usize {
    let alerts = rig.read("alerts").into_iter();
    let texts = alerts.filter_map(|alert| String::from_utf8(alert.value?).ok());
    let topic = format!("\"{}\"", rig.topic(topic));
    texts
        .filter(|text| text.contains("topic-unwritable") && text.contains(&topic))
        .count()
}

/// Waits until it is told that a topic takes no records: on `/readyz`, as a metric, and in the log with what mends it. Now and then it has
/// something written: a broker takes up what an admin says a moment later, and until then takes records.
fn told(
    rig: &Rig,
    retide: &Retide,
    address: &str,
    [topic, mends]: [&str; 2],
    mut nudge: impl FnMut(),
) {
    let topic = rig.topic(topic);
    let (start, mut last) = (Instant::now(), None::<Instant>);
    loop {
        if last.is_none_or(|at| at.elapsed() > AGAIN) {
            nudge();
            last = Some(Instant::now());
        }
        let (status, body) = get(address, "/readyz").unwrap_or_default();
        if status == 503 && body.contains(&topic) && body.contains(mends) {
            break;
        }
        assert!(start.elapsed() < TOLD, "{status} {body}\n{}", retide.log());
        thread::park_timeout(Duration::from_millis(50));
    }
    let (_, metrics) = get(address, "/metrics").unwrap();
    let series = format!("retide_trouble{{kind=\"topic-unwritable\",subject=\"{topic}\"}} 1");
    assert!(metrics.contains(&series), "{metrics}");
    retide.wait_for(&format!("{topic} takes no records"));
}

/// Waits until something is so.
fn until(what: &str, is_so: impl Fn() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < PATIENCE, "never: {what}");
        thread::park_timeout(Duration::from_millis(50));
    }
}

/// Deletes a topic of the rig's.
fn delete(rig: &Rig, topic: &str) {
    let topic = rig.topic(topic);
    let admin: AdminClient<DefaultClientContext> =
        config(&rig.bootstrap, "admin").create().unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let done = runtime.block_on(admin.delete_topics(&[&topic], &AdminOptions::new()));
    assert!(done.unwrap().iter().all(Result::is_ok));
}

/// A producer that compresses well.
fn zstd(rig: &Rig) -> BaseProducer {
    config(&rig.bootstrap, "producer")
        .set("compression.type", "zstd")
        .set("message.max.bytes", "20000000")
        .create()
        .unwrap()
}

/// Hands one record to a producer.
fn send(
    rig: &Rig,
    producer: &BaseProducer,
    headers: &[(&str, &str)],
    key: Option<&str>,
    value: &[u8],
) {
    let mut all = OwnedHeaders::new();
    for (name, value) in headers {
        add(&mut all, name.as_bytes(), Some(value.as_bytes()));
    }
    let topic = rig.topic("tasks");
    let mut record = BaseRecord::<str, [u8]>::to(&topic)
        .payload(value)
        .headers(all);
    record.key = key;
    producer.send(record).map_err(|(error, _)| error).unwrap();
}

/// Three million bytes that only a compressor with a large window finds small.
fn cyclic() -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let random: Vec<u8> = (0..100_000)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as u8
        })
        .collect();
    random.repeat(30)
}
