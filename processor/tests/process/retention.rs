//! Dead letters that retention takes: people are told of those that nobody has replayed, once, whoever looks.

use std::thread;
use std::time::{Duration, Instant};

use axum::Router;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use rdkafka::producer::{BaseRecord, Producer};
use serde_json::Value;
use tokio::runtime::Runtime;

use retide_shell::clock;

use crate::rig::{ONE_ATTEMPT, Rig, serve};
use crate::support::PATIENCE;

/// For how many milliseconds the topic keeps letters: people are told in the last tenth of that.
const KEPT: u64 = 10_000;

/// How many tasks die in a partition.
const LETTERS: usize = 3;

/// A target that takes what was replayed, and nothing else.
fn shop() -> Router {
    let answer = |headers: HeaderMap| async move {
        if headers.contains_key("mended") {
            StatusCode::OK
        } else {
            StatusCode::BAD_GATEWAY
        }
    };
    Router::new().route("/paid", post(answer))
}

/// Tasks enter in this partition and die, the `ended`th of all among them.
fn die(rig: &Rig, partition: i32, ended: usize) {
    let producer = rig.producer();
    for number in 0..LETTERS {
        let id = format!("{partition}-{number}");
        let headers = [("retry-scene", "shop"), ("retry-id", &id)];
        rig.send_to(partition, &producer, &headers, b"9");
    }
    producer.flush(PATIENCE).unwrap();
    rig.ends(ended);
    // The broker deletes no segment with a record that is as young as this one, so that nothing goes while the test looks.
    let topic = rig.topic("dead-letters");
    let soon = clock::since_epoch() + Duration::from_mins(30);
    let mut young = BaseRecord::<[u8], [u8]>::to(&topic)
        .partition(partition)
        .payload(b"no letter".as_slice());
    young.timestamp = Some(i64::try_from(soon.as_millis()).unwrap());
    producer.send(young).map_err(|(error, _)| error).unwrap();
    producer.flush(PATIENCE).unwrap();
}

/// What people were told of letters that go, once this is among it.
fn told(rig: &Rig, place: &str) -> Vec<Value> {
    let start = Instant::now();
    loop {
        let alerts = rig.read("alerts").into_iter();
        let alerts = alerts.map(|alert| serde_json::from_slice(&alert.value.unwrap()).unwrap());
        let told: Vec<Value> = alerts
            .filter(|alert: &Value| alert["rule"] == "dead-letters-expire")
            .collect();
        if told.iter().any(|alert| alert["samples"][0] == place) {
            return told;
        }
        assert!(start.elapsed() < PATIENCE, "{place}: {told:?}");
        thread::park_timeout(Duration::from_millis(100));
    }
}

#[test]
fn people_are_told_once_before_letters_go_that_nobody_has_replayed() {
    let runtime = Runtime::new().unwrap();
    let address = serve(&runtime, shop());
    let rig = Rig::new(
        Duration::ZERO,
        &ONE_ATTEMPT.replace("SHOP", &address.to_string()),
    );
    let one = rig.run();
    die(&rig, 0, LETTERS);
    let replay = ["dead-letters", "replay", "--scene", "shop"];
    let mended = ["--set-header", "mended=yes", "--yes"];
    let replayed = rig.retide(&[&replay[..], &mended].concat());
    assert!(replayed.status.success(), "{replayed:?}");
    die(&rig, 1, 2 * LETTERS);

    let settings = [
        ("retention.ms", KEPT.to_string()),
        ("message.timestamp.type", "CreateTime".to_owned()),
    ];
    let settings = settings.each_ref().map(|(name, value)| (*name, &**value));
    rig.set("dead-letters", &settings);
    let first = told(&rig, "1/0");

    // All partitions are looked at together, and told together.
    let [alert] = &first[..] else {
        panic!("{first:?}")
    };
    assert_eq!(alert["scene"], "shop", "{alert}");
    assert_eq!(alert["count"], LETTERS, "{alert}");
    let letters = rig.read("dead-letters");
    // Tasks that are called at the same time die in any order.
    let mut of_partition = letters
        .iter()
        .filter(|letter| letter.text("retry-id").starts_with("1-"));
    let letter = of_partition.next().expect("told before it goes");
    assert_eq!(alert["example"], letter.text("retry-id"), "{alert}");
    let until = alert["until"].as_u64().unwrap();
    assert_eq!(u128::from(until), letter.at_millis + u128::from(KEPT));
    assert!(
        alert["at"].as_u64().unwrap() + KEPT / 10 >= until,
        "{alert}"
    );

    // Another one looks, which knows of that.
    one.kill();
    let other = rig.run();
    die(&rig, 2, 3 * LETTERS);
    let both = told(&rig, "2/0");
    assert_eq!(both.len(), 2, "{both:?}");
    drop(other);
}
