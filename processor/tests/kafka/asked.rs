//! What is asked of the cluster: the topics that it is about, and none of the thousands that others may have there; and who reads a topic.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rdkafka::ClientContext;
use rdkafka::Statistics;
use rdkafka::client::Client;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::KafkaError;

use retide_kafka::cluster::standing::{ReadingGroup, reading_groups};
use retide_native::{admin, topics};

use crate::support::{PATIENCE, bootstrap, config, create_topics, has_read, is_kafka, member};

/// How many topics a client has been told of.
#[derive(Default)]
struct Told {
    /// As its last statistics say.
    topics: AtomicI64,
    /// How many statistics there were.
    times: AtomicU64,
}

impl ClientContext for Told {
    fn stats(&self, statistics: Statistics) {
        self.topics
            .store(statistics.metadata_cache_cnt, Ordering::SeqCst);
        self.times.fetch_add(1, Ordering::SeqCst);
    }
}

impl ConsumerContext for Told {}

/// A question.
type Asks = fn(&Client<Told>, &str) -> Result<(), KafkaError>;

#[test]
fn who_asks_about_one_topic_is_told_of_no_other() {
    let bootstrap = bootstrap();
    let names = ["a", "b", "c"].map(|name| format!("asked-{}-{name}", uuid::Uuid::new_v4()));
    create_topics(&bootstrap, &names.each_ref().map(String::as_str));
    let questions: [(&str, Asks); 4] = [
        ("describe", |client, topic| {
            topics::describe(client, &[topic], PATIENCE).map(drop)
        }),
        ("permitted", |client, topic| {
            admin::permitted(client, &[topic], PATIENCE).map(drop)
        }),
        ("settings", |client, topic| {
            admin::settings(client, &[topic], PATIENCE).map(drop)
        }),
        ("committed", |client, topic| {
            let topics = [topic.to_owned()].into();
            admin::committed(client, "asked", &topics, PATIENCE).map(drop)
        }),
    ];
    for (what, ask) in questions {
        let consumer: BaseConsumer<Told> = config(&bootstrap, "asked")
            .set("statistics.interval.ms", "20")
            .create_with_context(Told::default())
            .unwrap();

        // The coordinator of a group may be loading just now.
        let start = Instant::now();
        while let Err(error) = ask(consumer.client(), &names[1]) {
            assert!(start.elapsed() < PATIENCE, "{what}: {error}");
        }

        // What was under way when it was answered may be from before.
        let told = consumer.client().context();
        let (before, start) = (told.times.load(Ordering::SeqCst), Instant::now());
        while told.times.load(Ordering::SeqCst) < before + 2 {
            assert!(start.elapsed() < PATIENCE, "no statistics");
            drop(consumer.poll(Duration::from_millis(20)));
        }
        assert_eq!(told.topics.load(Ordering::SeqCst), 1, "{what}");
    }
}

#[test]
fn who_reads_a_topic_is_told_whatever_the_protocol_of_its_group() {
    if !is_kafka() {
        // Others may have no groups of the newer protocol (KIP-848).
        return;
    }
    let bootstrap = bootstrap();
    let prefix = format!("readers-{}", uuid::Uuid::new_v4());
    let [orders, refunds] = ["orders", "refunds"].map(|name| format!("{prefix}-{name}"));
    create_topics(&bootstrap, &[&orders, &refunds]);
    let group = |name: &str| format!("{prefix}-{name}");
    let _members = [
        member(&bootstrap, &group("classic"), "classic", &orders),
        member(&bootstrap, &group("newer"), "consumer", &orders),
        member(&bootstrap, &group("elsewhere"), "classic", &refunds),
        member(&bootstrap, &group("newer-elsewhere"), "consumer", &refunds),
    ];
    has_read(&bootstrap, &group("rests"), &orders);
    let asker: BaseConsumer = config(&bootstrap, "asked").create().unwrap();

    let found = reading_groups(&asker, &[orders].into()).unwrap();

    let expected = [("classic", 1), ("newer", 1), ("rests", 0)];
    let expected = expected.map(|(name, members)| ReadingGroup {
        group: group(name),
        members,
    });
    assert_eq!(found.groups, expected);
}
