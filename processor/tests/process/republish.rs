//! `retide dead-letters replay --republish`: records go back to the topic where they failed, after everybody who reads it was named.

use std::collections::BTreeMap;
use std::time::Duration;

use rdkafka::producer::Producer;
use serde_json::json;
use tokio::runtime::Runtime;

use crate::rig::{ONE_ATTEMPT, Rig, serve};
use crate::shop::{Shop, dry_run};
use crate::support::{PATIENCE, create_topics, has_read, member};

/// A scene whose tasks go back to the topic of orders.
const BACK: &str = "\n[scenes.back]\ntarget = { kafka = { topic = 'ORDERS' } }\n";

/// Letters of orders.
const LETTERS: usize = 7;

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
    let shop = serve(&runtime, Shop::default().router()).to_string();
    let rig = Rig::new(Duration::ZERO, &[ONE_ATTEMPT, BACK].concat());
    let (orders, refunds) = (rig.topic("orders"), rig.topic("refunds"));
    create_topics(&rig.bootstrap, &[&orders, &refunds]);
    let scenes = [ONE_ATTEMPT, BACK].concat();
    let scenes = scenes.replace("SHOP", &shop).replace("ORDERS", &orders);
    rig.configure(&format!("{}{scenes}", rig.basics()));
    let name = |group: &str| format!("{}-{group}", rig.prefix);
    let [billing, audit, other] = ["billing", "audit", "other"].map(name);
    let _members = [
        member(&rig.bootstrap, &billing, "classic", &orders),
        member(&rig.bootstrap, &other, "classic", &refunds),
    ];
    has_read(&rig.bootstrap, &audit, &orders);
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
    let dry = dry_run(&rig, &[&["--scene", "shop"], &flag[..]].concat());
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
