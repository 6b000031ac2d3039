//! `retide dead-letters replay --republish`: records go back to the topic where they failed, after everybody who reads it was named.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use axum::Router;
use axum::http::StatusCode;
use axum::routing::post;
use rdkafka::Offset;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::producer::Producer;
use rdkafka::topic_partition_list::TopicPartitionList;
use serde_json::json;
use tokio::runtime::Runtime;

use crate::hold;
use crate::rig::{ONE_ATTEMPT, Rig, serve};
use crate::support::{PATIENCE, config, create_topics};

/// A scene whose tasks go back to the topic of orders.
const BACK: &str = "\n[scenes.back]\ntarget = { kafka = { topic = 'ORDERS' } }\n";

/// Letters of orders.
const LETTERS: usize = 7;

/// A member of a group that reads a topic, which is in the group when this returns.
fn member(rig: &Rig, group: &str, topic: &str) -> BaseConsumer {
    let mut config = config(&rig.bootstrap, group);
    config.set("max.poll.interval.ms", "300000");
    let consumer: BaseConsumer = config.create().unwrap();
    #[allow(
        clippy::disallowed_methods,
        reason = "this is somebody else's consumer"
    )]
    consumer.subscribe(&[topic]).unwrap();
    let start = Instant::now();
    while consumer.assignment().unwrap().count() == 0 {
        assert!(start.elapsed() < PATIENCE, "{group} reads nothing");
        drop(consumer.poll(Duration::from_millis(50)));
    }
    consumer
}

/// Makes a group without members that has read a topic.
fn has_read(rig: &Rig, group: &str, topic: &str) {
    let consumer: BaseConsumer = config(&rig.bootstrap, group).create().unwrap();
    let mut offsets = TopicPartitionList::new();
    let offset = Offset::Offset(0);
    offsets.add_partition_offset(topic, 1, offset).unwrap();
    consumer.commit(&offsets, CommitMode::Sync).unwrap();
}

/// The payload of a task.
fn payload(id: &str) -> String {
    format!("payload of {id}")
}

/// Produces a task of a record that another library's group failed at, on this topic.
fn fails(rig: &Rig, id: &str, topic: &str) {
    let producer = rig.producer();
    let headers = [
        ("retry-scene", "shop"),
        ("retry-id", id),
        ("dead-letter-topic", topic),
        ("dead-letter-partition", "0"),
        ("dead-letter-offset", "7"),
        ("tenant", "blue"),
    ];
    rig.send(&producer, &headers, payload(id).as_bytes());
    producer.flush(PATIENCE).unwrap();
}

#[test]
fn what_goes_back_to_its_topic_needs_a_flag_and_everybody_who_reads_it_is_named() {
    let runtime = Runtime::new().unwrap();
    let broken = Router::new().route("/paid", post(|| async { StatusCode::BAD_GATEWAY }));
    let shop = serve(&runtime, broken).to_string();
    let rig = Rig::new(Duration::ZERO, &[ONE_ATTEMPT, BACK].concat());
    let (orders, refunds) = (rig.topic("orders"), rig.topic("refunds"));
    create_topics(&rig.bootstrap, &[&orders, &refunds]);
    let scenes = [ONE_ATTEMPT, BACK].concat();
    let scenes = scenes.replace("SHOP", &shop).replace("ORDERS", &orders);
    rig.configure(&format!("{}{scenes}", rig.basics()));
    let name = |group: &str| format!("{}-{group}", rig.prefix);
    let [billing, audit, other] = ["billing", "audit", "other"].map(name);
    let _members = [
        member(&rig, &billing, &orders),
        member(&rig, &other, &refunds),
    ];
    has_read(&rig, &audit, &orders);
    let _retide = rig.run();
    let ids: Vec<String> = (0..LETTERS)
        .map(|number| format!("order-{number}"))
        .collect();
    for id in &ids {
        fails(&rig, id, &orders);
    }
    fails(&rig, "refund", &refunds);
    rig.ends(LETTERS + 1);

    // Without the flag nothing is sent.
    let replay = ["dead-letters", "replay", "--scene", "shop", "--yes"];
    for (more, words) in [
        (&["--to-scene", "back"][..], "say --republish"),
        (&["--to-scene", "back"], &*billing),
        (&["--to-scene", "back"], &*audit),
        (
            &["--to-scene", "shop", "--republish"],
            "produces to no topic",
        ),
        (
            &["--to-scene", "none", "--republish"],
            "there is no scene none",
        ),
        (&["--republish"], "--to-scene"),
    ] {
        rig.refuses(&[&replay, more].concat(), words);
    }
    assert!(rig.read("orders").is_empty());

    // Who reads it is told before.
    let flag = ["--to-scene", "back", "--republish"];
    let dry = [
        "--output",
        "json",
        "dead-letters",
        "replay",
        "--scene",
        "shop",
        "--dry-run",
    ];
    let dry = hold::json(&rig.retide(&[&dry[..], &flag].concat()));
    let groups = json!([{"group": audit, "members": 0}, {"group": billing, "members": 1}]);
    assert_eq!(dry["republish"]["topic"], *orders, "{dry}");
    assert_eq!(dry["republish"]["groups"], groups, "{dry}");
    assert_eq!(
        dry["republish"]["elsewhere"],
        json!({refunds.clone(): 1}),
        "{dry}"
    );

    let header = format!("dead-letter-topic={orders}");
    let replay = ["dead-letters", "replay", "--header", &header];
    let replay = [&replay[..], &flag, &["--ramp", "50", "--yes"]].concat();
    let done = rig.retide(&replay);
    let said = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{done:?}");
    assert!(said.contains(&*billing) && said.contains(&*audit), "{said}");
    assert!(!said.contains(&*other), "{said}");
    each_is_back_as_it_was(&rig, &ids);
    let again = rig.retide(&replay);
    assert_eq!(again.status.code(), Some(3), "{again:?}");
    assert_eq!(rig.read("orders").len(), LETTERS);
}

/// Each record is on its topic once, and its task was delivered.
fn each_is_back_as_it_was(rig: &Rig, ids: &[String]) {
    let back = rig.read("orders");
    let mut payloads = BTreeMap::new();
    for record in &back {
        assert_eq!(record.text("tenant"), "blue");
        let value = String::from_utf8(record.value.clone().unwrap()).unwrap();
        payloads.insert(record.text("retry-id"), value);
    }
    let expected = ids.iter().map(|id| (id.clone(), payload(id)));
    assert_eq!(payloads, expected.collect());
    assert_eq!(back.len(), LETTERS);
    let ends = rig.read("callbacks");
    let mut ends: Vec<String> = ends
        .iter()
        .filter(|end| end.text("retry-outcome") == "delivered")
        .map(|end| end.text("retry-id"))
        .collect();
    ends.sort_unstable();
    assert_eq!(ends, ids);
}
