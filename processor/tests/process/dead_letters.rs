//! `retide dead-letters`: what died, told from what workers have written, beside what strangers have.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Output;
use std::thread;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rdkafka::message::OwnedHeaders;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use serde_json::Value;

use retide_avro::wire;
use retide_avro::{Codec, Format, Framing};
use retide_core::Failure;
use retide_core::selector::ErrorFingerprint;
use retide_native::headers::add;

use crate::rig::{Rig, Stored};
use crate::support::PATIENCE;

/// A scene whose tasks have one attempt.
const ONCE: &str = r#"
[scenes.flaky]
target = { http = { url = "http://TARGET/flaky", timeout = "1m" } }
backoff = { fixed = { delay = "1s" } }
max_attempts = 1
brake = false
"#;

/// Bytes that are no text, and a header that is none.
const BYTES: &[u8] = b"\xff\0\x01poison\xfe";

/// How many tasks fail at their target.
const FAILED: usize = 7;

/// What a command printed.
fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// What a command said.
fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// A record with these headers, on this topic and partition.
fn send(
    rig: &Rig,
    producer: &BaseProducer,
    (topic, partition): (&str, i32),
    headers: &[(&[u8], Option<&[u8]>)],
    value: Option<&[u8]>,
) {
    let mut all = OwnedHeaders::new();
    for (name, value) in headers {
        add(&mut all, name, *value);
    }
    let topic = rig.topic(topic);
    let mut record = BaseRecord::<[u8], [u8]>::to(&topic)
        .partition(partition)
        .key(b"the-key".as_slice())
        .headers(all);
    record.payload = value;
    producer.send(record).map_err(|(error, _)| error).unwrap();
}

/// What a command prints in JSON; its exit code is 0.
fn json(rig: &Rig, arguments: &[&str]) -> Value {
    let all = [&["--output", "json", "dead-letters"][..], arguments].concat();
    let output = rig.retide(&all);
    assert_eq!(output.status.code(), Some(0), "{arguments:?}: {output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// The identities in what a command prints.
fn ids(rig: &Rig, arguments: &[&str]) -> BTreeSet<String> {
    let lines = json(rig, arguments);
    let lines = lines.as_array().unwrap().iter();
    lines
        .map(|line| line["id"].as_str().unwrap().to_owned())
        .collect()
}

/// Tasks of which none is delivered, and records of strangers on the topic where they end.
fn fill(rig: &Rig) -> usize {
    let producer = rig.producer();
    let flaky = (b"retry-scene".as_slice(), Some(b"flaky".as_slice()));
    for number in 0..FAILED {
        let id = format!("failed-{number}");
        let (id, order) = (Some(id.as_bytes()), number.to_string());
        let headers = [
            flaky,
            (b"retry-id", id),
            (b"order-no", Some(order.as_bytes())),
        ];
        send(rig, &producer, ("tasks", 0), &headers, Some(b"9"));
    }
    let poison = [
        flaky,
        (b"retry-id", Some(b"poison".as_slice())),
        (b"retry-due-at", Some(b"soon")),
        (b"caf\xe9", Some(b"\xff\xfe")),
        (b"none", None),
    ];
    send(rig, &producer, ("tasks", 1), &poison, Some(BYTES));
    let large = vec![b'x'; 990_000];
    let unknown = [
        (b"retry-scene".as_slice(), Some(b"gone".as_slice())),
        (b"retry-id", Some(b"large")),
    ];
    send(rig, &producer, ("tasks", 2), &unknown, Some(&large));
    let unknown = [
        (b"retry-scene".as_slice(), Some(b"gone".as_slice())),
        (b"retry-id", Some(b"document")),
    ];
    let document = br#"{"order":{"no":4711,"sum":1.10},"lines":[]}"#;
    send(rig, &producer, ("tasks", 2), &unknown, Some(document));
    // What nobody of retide has written.
    let letters = ("dead-letters", 3);
    send(rig, &producer, letters, &[], Some(b"no headers"));
    let foreign = [(
        b"kafka_dlt-exception-message".as_slice(),
        Some(b"x".as_slice()),
    )];
    send(rig, &producer, letters, &foreign, Some(b"foreign"));
    let spoilt = [
        (b"retry-id".as_slice(), Some(b"\xff".as_slice())),
        (b"retry-outcome", Some(b"dead")),
    ];
    send(rig, &producer, letters, &spoilt, None);
    // As little as a version of another time may have written.
    let least = [
        (b"retry-id".as_slice(), Some(b"least".as_slice())),
        (b"retry-outcome", Some(b"expired")),
        (b"retry-attempt", Some(b"many")),
        (b"retry-origin", Some(b"nowhere")),
        (b"\xff", Some(b"\xfe")),
    ];
    send(rig, &producer, letters, &least, None);
    producer.flush(PATIENCE).unwrap();
    FAILED + 3
}

#[test]
fn what_died_is_grouped_listed_shown_and_the_oldest_of_it_deleted() {
    let rig = Rig::new(Duration::ZERO, ONCE);
    let worker = rig.run();
    let ended = fill(&rig);
    rig.ends(ended);
    drop(worker);

    let letters = rig.read("dead-letters").into_iter();
    let letters = letters.filter(|letter| !letter.text("retry-fingerprint").is_empty());
    let letters: BTreeMap<String, Stored> = letters
        .map(|letter| (letter.text("retry-id"), letter))
        .collect();
    // From here on, one whose headers no client reads.
    let mut crowd = vec![(b"".as_slice(), None); 100_001];
    crowd.push((b"retry-outcome".as_slice(), Some(b"dead".as_slice())));
    let producer = rig.producer();
    send(
        &rig,
        &producer,
        ("dead-letters", 3),
        &crowd,
        Some(b"unread"),
    );
    producer.flush(PATIENCE).unwrap();
    let print = letters["failed-0"].text("retry-fingerprint");
    let host = letters["failed-0"].text("retry-error-host");
    assert_eq!(host, "127.0.0.1");
    let failure = Failure::new("http-503", "Service Unavailable").of_host(Some(host.into()));
    assert_eq!(ErrorFingerprint::of("flaky", &failure).to_string(), print);
    // What only reads is told beside each other.
    thread::scope(|scope| {
        scope.spawn(|| they_are_grouped(&rig, &print));
        scope.spawn(|| they_are_listed(&rig, &print));
        scope.spawn(|| they_are_shown(&rig));
        scope.spawn(|| the_fingerprint_stands_in_callbacks_and_events(&rig, &letters));
        scope.spawn(|| nothing_else_is_deleted(&rig));
    });
    the_oldest_are_deleted(&rig);
    what_is_hostile_does_nothing_to_a_terminal(&rig);
    where_the_topic_is_compacted_nothing_is_deleted(&rig);
}

/// By fingerprint, largest first.
fn they_are_grouped(rig: &Rig, print: &str) {
    let output = rig.retide(&["--output", "json", "dead-letters", "cohorts"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let said = stderr(&output);
    assert!(
        said.contains("4 of the records are no dead letters"),
        "{said}"
    );
    assert!(said.contains(&rig.topic("dead-letters/3/0")), "{said}");
    assert!(said.contains("11 dead letters in 4 cohorts"), "{said}");
    let rows: Value = serde_json::from_slice(&output.stdout).unwrap();
    let rows = rows.as_array().unwrap();
    let first = &rows[0];
    assert_eq!(first["fingerprint"], print);
    assert_eq!(first["count"], FAILED);
    assert_eq!(first["scene"], "flaky");
    assert_eq!(first["target"], format!("http://{}", rig.target.address));
    let sample = first["sample"]["id"].as_str().unwrap();
    assert!(sample.starts_with("failed-"), "{first}");
    assert_eq!(
        first["sample"]["error"], "http-503: Service Unavailable",
        "{first}"
    );
    assert!(first["first"].as_u64() <= first["last"].as_u64(), "{first}");
    let gone = &rows[1];
    assert_eq!(
        (&gone["count"], &gone["scene"]),
        (&2.into(), &"gone".into())
    );
    assert_eq!(gone["reason"], "unknown-scene");
    let shares: f64 = rows.iter().map(|row| row["share"].as_f64().unwrap()).sum();
    assert!((shares - 1.0).abs() < 1e-9, "{rows:?}");

    let few = json(rig, &["cohorts", "--limit", "1"]);
    assert_eq!(few[1]["fingerprint"], "others");
    assert_eq!(
        (&few[1]["count"], &few[1]["cohorts"]),
        (&4.into(), &3.into())
    );
    let table = stdout(&rig.retide(&["dead-letters", "cohorts", "--scene", "flaky"]));
    let row = table.lines().find(|line| line.contains(print)).unwrap();
    for word in ["7", "87.5%", "flaky", "failed-", "http-503"] {
        assert!(row.contains(word), "{table}");
    }
}

/// By what is known of them.
fn they_are_listed(rig: &Rig, print: &str) {
    let failed = (0..FAILED).map(|number| format!("failed-{number}"));
    assert_eq!(ids(rig, &["ls", "--fingerprint", print]), failed.collect());
    let target = rig.target.address.to_string();
    let called = ["ls", "--target", &target, "--attempts", "1"];
    assert_eq!(ids(rig, &called).len(), FAILED);
    let one = ["ls", "--header", "order-no=3", "--key", "the-key"];
    assert_eq!(ids(rig, &one), ["failed-3".to_owned()].into());
    let origin = format!("{}/2", rig.topic("tasks"));
    let gone = ["large", "document"].map(str::to_owned).into();
    assert_eq!(ids(rig, &["ls", "--origin", &origin]), gone);
    let since = ["ls", "--died", "-1h..", "--entered", "-1h.."];
    assert_eq!(ids(rig, &since).len(), FAILED + 3);
    let none = rig.retide(&["dead-letters", "ls", "--died", "..-1h"]);
    assert_eq!(none.status.code(), Some(3), "{none:?}");

    let stream = ["--output", "ndjson", "dead-letters", "ls", "--limit", "2"];
    let output = rig.retide(&stream);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert_eq!(stdout(&output).lines().count(), 2, "{output:?}");
    assert!(
        stderr(&output).contains("--limit was reached"),
        "{output:?}"
    );
    let output = rig.retide(&["dead-letters", "ls", "--limit", "2"]);
    assert_eq!(stdout(&output).lines().count(), 3, "{output:?}");
    assert!(
        stderr(&output).contains("11 dead letters, the newest 2 of them shown"),
        "{output:?}"
    );
    let output = rig.retide(&["dead-letters", "ls", "--timeout", "0s"]);
    assert_eq!(output.status.code(), Some(6), "{output:?}");
}

/// With headers, payload and story.
fn they_are_shown(rig: &Rig) {
    let poison = json(rig, &["show", "--id", "poison"]);
    let poison = &poison[0];
    let payload = poison["payload"]["base64"].as_str().unwrap();
    assert_eq!(STANDARD.decode(payload).unwrap(), BYTES, "{poison}");
    assert_eq!(poison["payload"]["form"], "binary");
    let headers = poison["recordHeaders"].as_array().unwrap();
    let spoilt = headers.iter().find(|header| header["base64"].is_string());
    assert_eq!(spoilt.unwrap()["base64"], STANDARD.encode(b"\xff\xfe"));
    assert_eq!(headers[2]["value"], "soon");
    assert_eq!(poison["reason"], "bad-header", "{poison}");
    let moments = poison["stories"][0]["lines"].as_array().unwrap();
    let words: Vec<&str> = moments
        .iter()
        .filter_map(|moment| moment["what"].as_str())
        .collect();
    assert!(
        words.contains(&"dead") && words.contains(&"dead-letter"),
        "{words:?}"
    );
    let text = stdout(&rig.retide(&["dead-letters", "show", "--id", "poison"]));
    for words in [
        "bad-header: header name caf",
        "2 bytes, no text: ff fe",
        "none: (no value)",
        "00000000  ff 00 01 70 6f 69 73 6f 6e fe",
        "...poison.",
        "now: dead",
    ] {
        assert!(text.contains(words), "{words}: {text}");
    }

    let two = ["--id", "document", "--id", "large", "--no-story"];
    let text = stdout(&rig.retide(&[&["dead-letters", "show"][..], &two].concat()));
    assert!(
        text.contains("\n  \"order\": {\n    \"no\": 4711,\n    \"sum\": 1.10\n"),
        "{text}"
    );
    assert!(!text.contains("SINCE START"), "{text}");
    assert!(text.len() < 40_000, "{}", text.len());
    assert!(text.contains("bytes more: --whole shows them"), "{text}");
    let least = json(rig, &["show", "--id", "least", "--no-story"]);
    assert_eq!(least[0]["outcome"], "expired");
    assert_eq!(least[0]["payload"], Value::Null);
    rig.refuses(&["dead-letters", "show"], "say which dead letters");
    rig.refuses(&["dead-letters", "ls", "--died", "soon"], "--died");
}

/// The same one for a task, whoever tells it.
fn the_fingerprint_stands_in_callbacks_and_events(rig: &Rig, letters: &BTreeMap<String, Stored>) {
    let codec = Codec::<wire::Event>::new(Format::Avro, Framing::SingleObject);
    let mut events = BTreeMap::new();
    for record in rig.read("events") {
        let event = codec.decode(&record.value.unwrap()).unwrap();
        if event.event == "dead" {
            events.insert(event.id, event.fingerprint.unwrap_or_default());
        }
    }
    let mut told = 0;
    for record in rig.read("callbacks") {
        let callback: wire::Callback = serde_json::from_slice(&record.value.unwrap()).unwrap();
        let print = letters[&callback.id].text("retry-fingerprint");
        assert_eq!(print.len(), 16, "{}", callback.id);
        assert_eq!(
            callback.fingerprint.as_ref(),
            Some(&print),
            "{}",
            callback.id
        );
        assert_eq!(events[&callback.id], print, "{}", callback.id);
        told += 1;
    }
    assert_eq!(told, FAILED + 3);
}

/// By what they are, unseen, or where there is nothing.
fn nothing_else_is_deleted(rig: &Rig) {
    for (arguments, words) in [
        (
            &["--fingerprint", "00000000000000ff", "--yes"][..],
            "cannot delete records by what they are",
        ),
        (
            &["--before", "1h", "--scene", "flaky", "--yes"],
            "cannot delete records by what they are",
        ),
        (&["--yes"], "--before"),
        (
            &["--before", "2999-01-01T00:00:00Z", "--yes"],
            "a time to come",
        ),
        (&["--before", "0/999999", "--yes"], "ends at offset"),
        (&["--before", "1/x", "--yes"], "PARTITION/OFFSET"),
        (&["--before", "0s"], "add --yes"),
    ] {
        rig.refuses(&[&["dead-letters", "purge"][..], arguments].concat(), words);
    }
}

/// From the beginning of partitions.
fn the_oldest_are_deleted(rig: &Rig) {
    let purge = |arguments: &[&str]| {
        rig.retide(
            &[
                &["--output", "json", "dead-letters", "purge"][..],
                arguments,
            ]
            .concat(),
        )
    };
    let nothing = purge(&["--before", "1h", "--yes"]);
    assert_eq!(nothing.status.code(), Some(3), "{nothing:?}");

    let dry = json(rig, &["purge", "--before", "0s", "--dry-run"]);
    assert_eq!(
        (&dry["count"], &dry["complete"]),
        (&11.into(), &true.into()),
        "{dry}"
    );
    assert_eq!(dry["samples"].as_array().unwrap().len(), 5, "{dry}");

    // The first two of the partition of those that failed.
    let lines = json(rig, &["ls", "--scene", "flaky", "--error", "http-503"]);
    let lines = lines.as_array().unwrap();
    let mut offsets: Vec<i64> = lines
        .iter()
        .map(|line| line["offset"].as_i64().unwrap())
        .collect();
    offsets.sort_unstable();
    let cut = purge(&["--before", &format!("0/{}", offsets[2]), "--yes"]);
    assert_eq!(cut.status.code(), Some(0), "{cut:?}");
    assert!(stderr(&cut).contains("2 dead letters"), "{cut:?}");
    let rows: Value = serde_json::from_slice(&cut.stdout).unwrap();
    assert_eq!(
        (&rows[0]["count"], &rows[0]["state"]),
        (&2.into(), &"deleted".into())
    );
    let left = json(rig, &["ls", "--scene", "flaky", "--error", "http-503"]);
    assert_eq!(left.as_array().unwrap().len(), FAILED - 2);

    let all = purge(&["--before", "0s", "--yes"]);
    assert_eq!(all.status.code(), Some(0), "{all:?}");
    assert!(
        stderr(&all).contains("4 records that are no dead letters"),
        "{all:?}"
    );
    assert!(
        stderr(&all).contains("9 dead letters were deleted"),
        "{all:?}"
    );
    let empty = rig.retide(&["dead-letters", "cohorts"]);
    assert_eq!(empty.status.code(), Some(3), "{empty:?}");
}

/// An identity and a failure that would clear the screen, and one that would turn text around.
fn what_is_hostile_does_nothing_to_a_terminal(rig: &Rig) {
    let hostile = "\u{202e}evil\u{1b}[2J";
    let letter = [
        (b"retry-id".as_slice(), Some(hostile.as_bytes())),
        (b"retry-outcome", Some(b"dead")),
        (b"retry-error", Some(b"x: \x1b]0;owned\x07")),
        (b"\x1b[2J", Some(b"\x1b[2J")),
    ];
    let producer = rig.producer();
    send(
        rig,
        &producer,
        ("dead-letters", 3),
        &letter,
        Some(b"\x1b[2J"),
    );
    producer.flush(PATIENCE).unwrap();
    for command in [
        &["dead-letters", "show", "--id", hostile][..],
        &["dead-letters", "ls"],
        &["dead-letters", "cohorts"],
        &["explain", hostile],
    ] {
        let output = rig.retide(command);
        assert!(stdout(&output).contains("evil"), "{output:?}");
        let all = stdout(&output) + &stderr(&output);
        assert!(!all.contains(['\u{1b}', '\u{7}', '\u{202e}']), "{all}");
    }
}

/// As an administrator may set it.
fn where_the_topic_is_compacted_nothing_is_deleted(rig: &Rig) {
    rig.set("dead-letters", &[("cleanup.policy", "compact")]);
    let topic = rig.topic("dead-letters");
    let mends = |line: &str| line.contains(&topic) && line.contains("cleanup.policy=delete");
    let start = Instant::now();
    // The broker itself hears of it a while later.
    while !stdout(&rig.retide(&["doctor"])).lines().any(mends) {
        assert!(start.elapsed() < PATIENCE, "never told");
    }
    let refused = rig.retide(&["dead-letters", "purge", "--before", "0s", "--yes"]);
    assert_eq!(refused.status.code(), Some(4), "{refused:?}");
    for words in ["cleanup.policy", "retide doctor"] {
        assert!(stderr(&refused).contains(words), "{refused:?}");
    }
}
