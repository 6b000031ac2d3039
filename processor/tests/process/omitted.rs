//! Dead letters that lack their payloads: a replay fetches those from where the tasks entered, and takes nothing else for them.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Bytes;
use axum::extract::DefaultBodyLimit;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use rdkafka::admin::{AdminClient, AdminOptions};
use rdkafka::client::DefaultClientContext;
use rdkafka::message::OwnedHeaders;
use rdkafka::producer::{BaseRecord, Producer};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use retide_native::headers::add;
use serde_json::Value;
use tokio::runtime::Runtime;

use crate::rig::{FLAKY, ONE_ATTEMPT, Rig, Stored, TIERS, serve};
use crate::secured::secured;
use crate::shop::dry_run;
use crate::sources::until_doctor_says;
use crate::support::{PATIENCE, config, create_topics};

/// What the topics take that are said to take little: any letter without its payload.
const LITTLE: &str = "20000";

/// What topics take as a rule.
const USUAL: &str = "1048588";

/// A target that fails until it is mended, and keeps what it was given then.
#[derive(Clone, Default)]
struct Shop {
    /// Whether it works.
    mended: Arc<AtomicBool>,
    /// What it has taken, by identity.
    taken: Arc<Mutex<BTreeMap<String, Vec<Vec<u8>>>>>,
}

// === impl Shop ===

impl Shop {
    /// What it answers.
    fn router(&self) -> Router {
        let shop = self.clone();
        let answer = move |headers: HeaderMap, body: Bytes| async move {
            if !shop.mended.load(Ordering::SeqCst) {
                return StatusCode::BAD_GATEWAY;
            }
            let id = headers["retry-id"].to_str().unwrap().to_owned();
            let mut taken = shop.taken.lock().unwrap();
            taken.entry(id).or_default().push(body.to_vec());
            StatusCode::OK
        };
        let router = Router::new().route("/paid", post(answer));
        router.layer(DefaultBodyLimit::disable())
    }

    /// What it has taken since it was asked last.
    fn taken(&self) -> BTreeMap<String, Vec<Vec<u8>>> {
        std::mem::take(&mut *self.taken.lock().unwrap())
    }
}

/// So many bytes that no compressor makes small, other ones for each seed.
fn noise(seed: u64, bytes: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    };
    std::iter::repeat_with(next).take(bytes).collect()
}

/// Payloads that are too large for the dead letters.
fn payload(seed: u64) -> Vec<u8> {
    noise(seed, 100_000)
}

/// Replays dead letters, and gives what became of the campaign.
fn replay(rig: &Rig, name: &str, options: &[&str]) -> Value {
    let replay = ["--output", "json", "dead-letters", "replay", "--name", name];
    let pace = ["--ramp", "50", "--yes"];
    let output = rig.retide(&[&replay[..], options, &pace].concat());
    // What its exit code says stands there, too.
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

/// Waits until so many dead letters of these identities are there, and gives the newest of each.
fn letters(rig: &Rig, ids: &[&str], count: usize) -> BTreeMap<String, Stored> {
    let start = Instant::now();
    loop {
        let all = rig.read("dead-letters").into_iter();
        let all = all.map(|letter| (letter.text("retry-id"), letter));
        let all: Vec<_> = all.filter(|(id, _)| ids.contains(&&**id)).collect();
        if all.len() >= count {
            return all.into_iter().collect();
        }
        assert!(start.elapsed() < PATIENCE, "{} of {count}", all.len());
    }
}

/// Writes a record to the dead letters that is one of these, but for some headers.
fn forge(rig: &Rig, letter: &Stored, other: &[(&str, &str)]) {
    let mut headers = OwnedHeaders::new();
    for (name, value) in &letter.headers {
        add(&mut headers, name.as_bytes(), value.as_deref());
    }
    for (name, value) in other {
        // The last one counts.
        add(&mut headers, name.as_bytes(), Some(value.as_bytes()));
    }
    let topic = rig.topic("dead-letters");
    let mut record = BaseRecord::<[u8], [u8]>::to(&topic).headers(headers);
    record.key = letter.key.as_deref();
    record.partition = Some(3);
    let producer = rig.producer();
    producer.send(record).map_err(|(error, _)| error).unwrap();
    producer.flush(PATIENCE).unwrap();
}

/// Deletes all records of a partition of the retry topic.
fn delete(rig: &Rig, partition: i32) {
    let mut list = TopicPartitionList::new();
    list.add_partition_offset(&rig.topic("tasks"), partition, Offset::End)
        .unwrap();
    let admin: AdminClient<DefaultClientContext> =
        config(&rig.bootstrap, "admin").create().unwrap();
    let deleted = admin.delete_records(&list, &AdminOptions::new());
    Runtime::new().unwrap().block_on(deleted).unwrap();
}

#[test]
fn what_letters_lack_is_fetched_and_delivered_byte_for_byte_or_counted() {
    let (runtime, shop) = (Runtime::new().unwrap(), Shop::default());
    let address = serve(&runtime, shop.router());
    let rig = Rig::new(
        Duration::ZERO,
        &ONE_ATTEMPT.replace("SHOP", &address.to_string()),
    );
    let _retide = rig.run();
    rig.set("dead-letters", &[("max.message.bytes", LITTLE)]);
    let producer = rig.producer();
    let scene = ("retry-scene", "shop");
    for (partition, id, seed) in [
        (0, "kept", 1),
        (0, "twin", 2),
        (0, "twin", 3),
        (1, "lost", 4),
    ] {
        rig.send_to(
            partition,
            &producer,
            &[scene, ("retry-id", id)],
            &payload(seed),
        );
    }
    // One without an identity of its own.
    rig.send_to(2, &producer, &[scene, ("order-no", "5")], &payload(5));
    producer.flush(PATIENCE).unwrap();
    let ids = ["kept", "twin", "lost"];
    let stand = letters(&rig, &ids, 4);
    for letter in stand.values() {
        assert_eq!(letter.text("retry-omitted"), "value");
        assert_eq!(letter.value, None);
    }
    let derived = derived(&rig);
    let shown = rig.retide(&["dead-letters", "show", "--id", "kept", "--no-story"]);
    let shown = String::from_utf8(shown.stdout).unwrap();
    let place = format!("value; stands at {}/0/0", rig.topic("tasks"));
    assert!(shown.contains(&place), "{shown}");

    what_dies_again_is_fetched_again(&rig, &shop, &derived);
    another_record_is_not_taken(&rig, &shop, &stand);
    what_is_gone_is_counted_unless_a_payload_is_given(&rig, &shop);
    what_no_tier_takes_is_refused(&rig, &shop);
}

/// The identity that retide has given a task.
fn derived(rig: &Rig) -> String {
    let start = Instant::now();
    loop {
        let mut all = rig.read("dead-letters").into_iter();
        if let Some(letter) = all.find(|letter| letter.text("order-no") == "5") {
            return letter.text("retry-id");
        }
        assert!(start.elapsed() < PATIENCE, "it did not die");
    }
}

/// The first replay comes too early, and its letters lack their payloads again.
fn what_dies_again_is_fetched_again(rig: &Rig, shop: &Shop, derived: &str) {
    let both = ["--id", "kept", "--id", derived];
    let dry = dry_run(rig, &both);
    assert_eq!(
        (&dry["count"], &dry["eligible"]),
        (&2.into(), &2.into()),
        "{dry}"
    );
    let lacking = serde_json::json!({ "count": 2, "looked": 2, "there": 2 });
    assert_eq!(dry["lacking"], lacking, "{dry}");
    let early = replay(rig, "early", &[&both[..], &["--stop-at", "99%"]].concat());
    assert_eq!(
        (&early["replayed"], &early["dead"]),
        (&2.into(), &2.into()),
        "{early}"
    );
    letters(rig, &["kept", derived], 4);
    shop.mended.store(true, Ordering::SeqCst);

    let later = replay(rig, "later", &both);

    assert_eq!(later["delivered"], 2, "{later}");
    assert_eq!(later["ineligible"]["replayed-before"], 2, "{later}");
    let expected = [("kept", 1), (derived, 5)];
    let expected = expected.map(|(id, seed)| (id.to_owned(), vec![payload(seed)]));
    assert!(shop.taken() == BTreeMap::from(expected), "other bytes");
}

/// A letter says that its task stands where another one does: of another identity, and of the same with another payload.
fn another_record_is_not_taken(rig: &Rig, shop: &Shop, letters: &BTreeMap<String, Stored>) {
    let tasks = rig.topic("tasks");
    let place = |offset: i64| format!("{tasks}/0/{offset}");
    let twin = &letters["twin"];
    let own = twin.text("retry-origin");
    // Which of the two has died last is not known.
    let other = [1, 2].into_iter().find(|offset| place(*offset) != own);
    for (mark, offset) in [("id", 0), ("bytes", other.unwrap()), ("nothing", 90)] {
        let other = [
            ("retry-origin", &*place(offset)),
            ("retry-scene", "shop"),
            ("forged", mark),
        ];
        forge(rig, twin, &other);
    }
    for mark in ["id", "bytes", "nothing"] {
        let forged = format!("forged={mark}");
        let options = ["--header", &*forged];
        let gone = serde_json::json!({ "origin-gone": 1 });
        assert_eq!(dry_run(rig, &options)["ineligible"], gone, "{mark}");
        let campaign = replay_none(rig, mark, &options);
        assert_eq!(campaign["ineligible"], gone, "{mark} {campaign}");
    }
    assert_eq!(shop.taken().len(), 0);

    let twins = replay(rig, "twins", &["--id", "twin"]);
    assert_eq!(twins["delivered"], 2, "{twins}");
    let taken = shop.taken();
    let mut twins = taken["twin"].clone();
    twins.sort();
    let mut expected = [payload(2), payload(3)];
    expected.sort();
    assert!(twins == expected, "other bytes");
}

/// A replay that replays nothing; what became of it.
fn replay_none(rig: &Rig, name: &str, options: &[&str]) -> Value {
    let start = [
        "--output",
        "json",
        "dead-letters",
        "replay",
        "--name",
        name,
        "--yes",
    ];
    let output = rig.retide(&[&start[..], options].concat());
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// The retry topic has deleted what a letter lacks.
fn what_is_gone_is_counted_unless_a_payload_is_given(rig: &Rig, shop: &Shop) {
    delete(rig, 1);
    let lost = ["--id", "lost"];
    let gone = serde_json::json!({ "origin-gone": 1 });
    let dry = dry_run(rig, &lost);
    assert_eq!(
        (&dry["eligible"], &dry["ineligible"]),
        (&0.into(), &gone),
        "{dry}"
    );
    let campaign = replay_none(rig, "lost", &lost);
    assert_eq!(campaign["ineligible"], gone, "{campaign}");

    let replay = ["dead-letters", "replay", "--yes", "--edit"];
    let mut edited = rig.command(&[&replay[..], &lost].concat());
    let edited = edited
        .env_remove("VISUAL")
        .env("EDITOR", "sed -i '$a given'");
    let output = edited.output().unwrap();

    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let expected = BTreeMap::from([("lost".to_owned(), vec![b"given".to_vec()])]);
    assert_eq!(shop.taken(), expected);
}

/// What was fetched is too large to be parked: it is counted, and what is beside it is replayed.
fn what_no_tier_takes_is_refused(rig: &Rig, shop: &Shop) {
    shop.mended.store(false, Ordering::SeqCst);
    let producer = rig.producer();
    for (id, bytes) in [("large", payload(6)), ("small", b"7".to_vec())] {
        let headers = [("retry-scene", "shop"), ("retry-id", id), ("try", "6")];
        rig.send_to(3, &producer, &headers, &bytes);
    }
    producer.flush(PATIENCE).unwrap();
    letters(rig, &["large", "small"], 2);
    shop.mended.store(true, Ordering::SeqCst);
    for tier in TIERS {
        let topic = format!("delay.{tier}");
        rig.set(&topic, &[("max.message.bytes", LITTLE)]);
    }

    let campaign = replay(rig, "large", &["--header", "try=6"]);

    let refused = serde_json::json!({ "refused": 1 });
    assert_eq!(campaign["ineligible"], refused, "{campaign}");
    assert_eq!(campaign["state"], "done", "{campaign}");
    let expected = BTreeMap::from([("small".to_owned(), vec![b"7".to_vec()])]);
    assert_eq!(shop.taken(), expected);
    for tier in TIERS {
        let topic = format!("delay.{tier}");
        rig.set(&topic, &[("max.message.bytes", USUAL)]);
    }
}

#[test]
fn an_origin_that_may_not_be_read_is_counted_and_stops_no_campaign() {
    let Some(broker) = secured() else { return };
    let rig = Rig::bare(broker.plain.clone(), "");
    let (hidden, basics) = (rig.topic("hidden"), rig.basics());
    assert!(rig.retide(&["init"]).status.success());
    create_topics(&broker.plain, &[&hidden]);
    let (_, rest) = basics.split_once("\n[kafka.consumer]").unwrap();
    let text = format!("{}[kafka.consumer]{rest}{FLAKY}", broker.login("run"));
    let text = text.replace("TARGET", &rig.target.address.to_string());
    std::fs::write(rig.file("user.toml"), text).unwrap();
    let lines = rig.retide(&[
        "init",
        "--acls",
        "--principal",
        "User:run",
        "--role",
        "run",
        "--config",
        "user.toml",
    ]);
    broker.grant(&String::from_utf8(lines.stdout).unwrap());
    until_doctor_says(&rig, None);
    let retide = rig.launch(&["run", "--config", "user.toml"]);
    retide.wait_for("shards assigned");
    let headers = [
        ("retry-scene", "flaky"),
        ("retry-hops", "0"),
        ("retry-outcome", "dead"),
        ("retry-omitted", "value"),
        ("retry-omitted-xxh3", "99aa06d3014798d86001c324468d497f"),
    ];
    let headers = headers.map(|(name, value)| (name.to_owned(), Some(value.as_bytes().to_vec())));
    let letter = Stored {
        key: None,
        value: None,
        headers: headers.to_vec(),
        at_millis: 0,
    };
    for number in 0..20 {
        let id = format!("hidden-{number}");
        let origin = format!("{hidden}/0/{number}");
        forge(
            &rig,
            &letter,
            &[("retry-id", &id), ("retry-origin", &origin)],
        );
    }

    let replay = ["dead-letters", "replay", "--scene", "flaky", "--yes"];
    let output = rig.retide(&[&["--output", "json"][..], &replay].concat());

    let campaign: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    assert_eq!(campaign["state"], "done", "{output:?}");
    let denied = serde_json::json!({ "origin-denied": 20 });
    assert_eq!(campaign["ineligible"], denied, "{campaign}");
}
