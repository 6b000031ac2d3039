//! Producers that cannot set headers: every record of the retry topic is an envelope, and no wrapper reaches a target.

use std::fs;
use std::time::Duration;

use rdkafka::producer::{BaseProducer, Producer as _};
use retide_avro::RETRY_TASK_FINGERPRINT;
use retide_shell::clock;

use crate::rig::{Request, Rig};
use crate::support::PATIENCE;

/// Name and value of a header.
type Pair<'a> = (&'a str, &'a str);

#[test]
fn every_record_of_the_retry_topic_is_an_envelope_where_that_is_configured() {
    let rig = Rig::new(Duration::ZERO, "");
    rig.configure(
        &format!(
            "{}[scenes.default]\ntarget = {{ http = {{ url = 'http://TARGET/wrong' }} }}\n\
             [scenes.any]\ntarget = {{ http = {{ url = 'http://TARGET/any' }} }}\n",
            rig.basics()
        )
        .replace("[topics]\n", "[topics]\ntasks = { envelope = 'json' }\n"),
    );
    let json = ("content-type", "application/vnd.retide.task+json");
    let producer = rig.producer();
    let now = clock::since_epoch();
    let seconds = now.as_secs() + 60;
    // As Confluent's REST proxy, ksqlDB and Flink write: a key and a value.
    rig.send(
        &producer,
        &[],
        br#"{"scene":"any","id":"proxy","payload":{"a":1},"headers":{"trace":7},"dueAt":null}"#,
    );
    // As the serializer for JSON Schema frames it, and a proxy that adds a header.
    rig.send(
        &producer,
        &[json, ("retry-scene", "any")],
        b"\0\0\0\0m{\"scene\":\"any\",\"id\":\"later\",\"payloadBase64\":\"eA\",\"delayMs\":\"1500.0\"}",
    );
    rig.send(
        &producer,
        &[("retry-scene", "any"), ("retry-id", "plain")],
        b"plain",
    );
    let refused =
        br#"{"scene":"any","id":"order-7","key":"k","headers":[{"name":"a","value":{}}]}"#;
    rig.send(&producer, &[], refused);
    let late = format!(r#"{{"scene":"any","id":"seconds","dueAt":{seconds}}}"#);
    rig.send(&producer, &[], late.as_bytes());
    producer.flush(PATIENCE).unwrap();

    let retide = rig.run();
    let ends = rig.ends(5);

    for id in ["proxy", "later", "plain"] {
        assert_eq!(ends[id], ["delivered"], "{id}");
    }
    let requests = rig.target.requests();
    let request = |id: &str| -> &Request {
        let mut requests = requests.iter();
        requests
            .find(|request| request.text("idempotency-key") == id)
            .unwrap()
    };
    assert!(requests.iter().all(|request| request.path == "any"));
    assert_eq!(request("proxy").body, br#"{"a":1}"#);
    assert_eq!(request("proxy").text("content-type"), "application/json");
    assert_eq!(request("proxy").text("trace"), "7");
    assert_eq!(request("later").body, b"x");
    assert_eq!(request("plain").body, b"plain");
    assert_eq!(rig.target.early(), 0);

    check_refused(&rig, refused);
    check_again(&rig, &producer, refused);
    retide.terminate();
    assert_eq!(retide.wait(), Some(0));
    check_submit(&rig, &seconds.to_string());
    check_avro(&rig, &producer);
}

/// The end of an envelope that was refused says what could be read of it.
fn check_refused(rig: &Rig, refused: &[u8]) {
    let letters = rig.read("dead-letters");
    let letter = |id: &str| {
        let mut letters = letters.iter();
        letters
            .find(|letter| letter.text("retry-id") == id)
            .unwrap()
    };
    let dead = letter("order-7");
    assert_eq!(dead.text("retry-reason"), "bad-envelope");
    assert_eq!(dead.text("retry-scene"), "any");
    assert_eq!(dead.value.as_deref(), Some(refused));
    let why = dead.text("retry-error");
    assert!(
        why.contains("headers[0].value: an object {} found"),
        "{why}"
    );
    let why = letter("seconds").text("retry-error");
    assert!(
        why.starts_with("bad-due: dueAt") && why.contains("seconds?"),
        "{why}"
    );
    let callbacks = rig.read("callbacks");
    let mut callbacks = callbacks.iter();
    let callback = callbacks.find(|callback| callback.text("retry-id") == "order-7");
    let body = callback.unwrap().value.as_deref().unwrap();
    let body: serde_json::Value = serde_json::from_slice(body).unwrap();
    assert_eq!(body["scene"], "any");
    assert_eq!(body["key"], "aw==");
    let told = rig.retide(&["explain", "order-7"]);
    assert!(told.status.success(), "{told:?}");
}

/// Produced again as it stands, a dead letter is still an envelope.
fn check_again(rig: &Rig, producer: &BaseProducer, refused: &[u8]) {
    let letters = rig.read("dead-letters");
    let mut letters = letters.iter();
    let dead = letters
        .find(|letter| letter.text("retry-id") == "order-7")
        .unwrap();
    let headers: Vec<(&str, String)> = dead
        .headers
        .iter()
        .map(|(name, _)| (&**name, dead.text(name)))
        .collect();
    let headers: Vec<(&str, &str)> = headers
        .iter()
        .map(|(name, value)| (*name, &**value))
        .collect();
    let before = rig.read("callbacks").len();
    rig.send(producer, &headers, refused);
    producer.flush(PATIENCE).unwrap();
    rig.wait_for_no_lag();
    let callbacks = rig.read("callbacks");
    assert_eq!(callbacks.len(), before + 1);
    assert_eq!(
        callbacks
            .iter()
            .filter(|it| it.text("retry-id") == "order-7")
            .count(),
        2
    );
    assert_eq!(rig.target.count(), 3);
}

/// What would be a dead letter is not submitted.
fn check_submit(rig: &Rig, seconds: &str) {
    for times in [
        ["--due", seconds],
        ["--due", "2020-01-01T00:00:00Z"],
        ["--due", "1798761600000000"],
        ["--deadline", seconds],
        ["--deadline", "1798761600000000"],
        ["--header", "Retry-Due-At=5"],
    ] {
        let refused = rig.retide(&[&["submit", "--scene", "any"][..], &times].concat());
        assert_eq!(refused.status.code(), Some(2), "{refused:?}");
    }
    rig.wait_for_no_lag();
}

/// Every record is an envelope in Avro, where that is configured instead; none of another kind reaches a target.
fn check_avro(rig: &Rig, producer: &BaseProducer) {
    let text = fs::read_to_string(rig.file("retide.toml")).unwrap();
    let text = text.replace("envelope = 'json'", "envelope = 'avro'");
    rig.configure(&format!("{text}[schemas]\nids = {{ 7 = 'RetryTask' }}\n"));
    let mut single = vec![0xc3, 0x01];
    single.extend(RETRY_TASK_FINGERPRINT);
    let object = br#"{"scene":"any","id":"in-json","payload":"x"}"#;
    let records: [(&[Pair<'_>], Vec<u8>); 6] = [
        (&[], [b"\0\0\0\0\x07", &datum("framed")[..]].concat()),
        (&[], [single, datum("single")].concat()),
        (
            &[("retry-scene", "any"), ("retry-id", "plain-too")],
            b"plain".to_vec(),
        ),
        // A schema that nobody knows, an object, and text whose type is said.
        (&[], [b"\0\0\0\0\x08", &datum("unknown")[..]].concat()),
        (&[], object.to_vec()),
        (&[("content-type", "text/plain")], b"text".to_vec()),
    ];
    for (headers, value) in &records {
        rig.send(producer, headers, value);
    }
    producer.flush(PATIENCE).unwrap();

    let retide = rig.run();
    rig.wait_for_no_lag();

    let ends = rig.ends(5 + records.len());
    for id in ["framed", "single", "plain-too"] {
        assert_eq!(ends[id], ["delivered"], "{id}");
    }
    assert_eq!(ends["in-json"], ["dead"]);
    let requests = rig.target.requests();
    let framed = |request: &&Request| request.text("idempotency-key") == "framed";
    let framed = requests.iter().find(framed).unwrap();
    assert_eq!(framed.body, b"bytes");
    assert_eq!(rig.target.count(), 6);
    assert!(requests.iter().all(|request| request.path == "any"));
    let letters = rig.read("dead-letters");
    for (value, says) in [
        (&records[3].1, "schema id 8"),
        (&records[4].1, "(JSON)"),
        (&records[5].1, "the first bytes are 74 65 78 74;"),
    ] {
        let mut letters = letters.iter();
        let letter = letters.find(|letter| letter.value.as_ref() == Some(value));
        let letter = letter.unwrap();
        assert_eq!(letter.text("retry-reason"), "bad-envelope");
        let why = letter.text("retry-error");
        assert!(why.contains(says), "{why}");
    }
    retide.terminate();
    assert_eq!(retide.wait(), Some(0));
}

/// A task in retide's own schema, without a frame: scene, identity and payload, and nothing else.
fn datum(id: &str) -> Vec<u8> {
    let mut datum = Vec::new();
    let mut text = |branch: Option<u8>, text: &str| {
        datum.extend(branch);
        datum.push(u8::try_from(text.len() * 2).unwrap());
        datum.extend_from_slice(text.as_bytes());
    };
    text(None, "any");
    text(Some(2), id);
    text(None, "bytes");
    datum.extend([0; 6]);
    datum
}
