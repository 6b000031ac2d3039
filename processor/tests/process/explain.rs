//! `retide explain`: what the topics tell of a task is what its target saw.

use std::net::TcpListener;
use std::process::Output;
use std::time::{Duration, Instant};

use rdkafka::producer::Producer;
use serde_json::Value;

use retide_embedded::Broker;

use crate::rig::{FLAKY, Rig};
use crate::support::PATIENCE;

/// A scene that gives up after two attempts.
const HASTY: &str = r#"
[scenes.hasty]
target = { http = { url = "http://TARGET/flaky" } }
backoff = { fixed = { delay = "700ms" } }
max_attempts = 2
callback = { target = { http = { url = "http://TARGET/ended" } }, on = ["dead"] }
"#;

/// What a command printed.
fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// What a command said.
fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// The only story of a task, as JSON.
fn story(rig: &Rig, id: &str) -> Value {
    let output = rig.retide(&["--output", "json", "explain", id]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let mut document: Value = serde_json::from_str(&stdout(&output)).unwrap();
    assert_eq!(document["id"], id);
    let stories = document["stories"].as_array_mut().unwrap();
    assert_eq!(stories.len(), 1, "{stories:?}");
    stories.remove(0)
}

/// The words of a story's lines.
fn words(story: &Value) -> Vec<&str> {
    let lines = story["lines"].as_array().unwrap();
    lines
        .iter()
        .map(|line| line["what"].as_str().unwrap())
        .collect()
}

/// A time in a story, in milliseconds since the epoch.
fn millis(value: &Value) -> u128 {
    let time = humantime::parse_rfc3339(value.as_str().unwrap()).unwrap();
    time.duration_since(std::time::UNIX_EPOCH)
        .unwrap()
        .as_millis()
}

/// Tasks that end well, badly and later, told by what their target saw.
fn what_became_of_each(rig: &Rig, events: bool) {
    let retide = rig.run();
    let producer = rig.producer();
    let lucky = [("retry-scene", "flaky"), ("retry-id", "lucky")];
    rig.send(&producer, &lucky, b"2");
    let hopeless = [("retry-scene", "hasty"), ("retry-id", "hopeless")];
    rig.send(&producer, &hopeless, b"9");
    let later = [
        ("retry-scene", "flaky"),
        ("retry-id", "later"),
        // From when it was produced: more than its tier by the longest time until it is read.
        ("retry-delay-ms", "3660000"),
    ];
    rig.send(&producer, &later, b"0");
    producer.flush(PATIENCE).unwrap();
    rig.ends(2);
    // Three attempts, two attempts, and the callback of the task that died.
    rig.target.wait_for(6);
    retide.terminate();
    assert_eq!(retide.wait(), Some(0));

    let lucky = story(rig, "lucky");
    assert_eq!(
        words(&lucky),
        ["entered", "failed", "failed", "delivered", "callback"]
    );
    let requests = rig.target.requests();
    let seen: Vec<_> = requests
        .iter()
        .filter(|request| request.text("retry-id") == "lucky")
        .collect();
    assert_eq!(seen.len(), 3);
    let lines = lucky["lines"].as_array().unwrap();
    for (attempt, request) in seen.iter().enumerate() {
        let line = &lines[attempt + 1];
        assert_eq!(line["attempt"], attempt + 1);
        assert_eq!(line["by_event"], events);
        // Said after the target had answered, and before it saw the next attempt.
        let told = millis(&line["at"]);
        // A broker's time is rounded down to milliseconds.
        assert!((told + 1) * 1_000 > request.at_micros, "{line} {request:?}");
        if let Some(next) = seen.get(attempt + 1) {
            assert!(told * 1_000 <= next.at_micros, "{line} {next:?}");
            assert_eq!(millis(&line["due"]), next.number("retry-due-at").into());
            assert_eq!(line["error"], "http-503: Service Unavailable");
            assert!(line["place"].as_str().unwrap().contains(".delay.now/"));
        }
    }
    assert_eq!(lucky["origin"], seen[0].text("retry-origin"));
    assert_eq!(lucky["state"]["word"], "delivered");
    if events {
        assert!(lines[2]["scheduled_ms"].as_u64().unwrap() >= 650, "{lucky}");
    }

    let hopeless = story(rig, "hopeless");
    let expected = ["entered", "failed", "dead", "callback", "dead-letter"];
    assert_eq!(words(&hopeless)[..5], expected);
    assert_eq!(hopeless["lines"][2]["attempt"], 2);
    assert_eq!(hopeless["lines"][4]["reason"], "attempts-exhausted");
    assert_eq!(hopeless["state"]["word"], "dead");
    if events {
        assert_eq!(
            words(&hopeless)[5..],
            ["parked", "delivered"],
            "its callback"
        );
        for line in [5, 6] {
            assert_eq!(hopeless["lines"][line]["kind"], "callback");
        }
    }

    let later = story(rig, "later");
    assert_eq!(words(&later), ["entered", "parked"]);
    let state = &later["state"];
    assert_eq!(state["word"], "parked");
    assert!(state["place"].as_str().unwrap().contains(".delay.1h/"));
    let remaining = state["remaining_ms"].as_u64().unwrap();
    assert!((3_560_000..3_660_000).contains(&remaining), "{later}");

    let table = rig.retide(&["explain", "hopeless"]);
    let text = stdout(&table);
    assert!(
        text.lines()
            .last()
            .unwrap()
            .starts_with("now: dead after 2 attempts (attempts-exhausted)"),
        "{text}"
    );
    eprintln!("{text}\n{}", stdout(&rig.retide(&["explain", "lucky"])));
    eprintln!("{}", stdout(&rig.retide(&["explain", "later"])));
    let lines = rig.retide(&["--output", "ndjson", "explain", "later"]);
    assert_eq!(stdout(&lines).lines().count(), 2);

    let unknown = rig.retide(&["explain", "nobody"]);
    assert_eq!(unknown.status.code(), Some(3), "{unknown:?}");
    assert_eq!(stdout(&unknown), "");
    let said = stderr(&unknown);
    assert!(
        said.contains(&format!(
            "{}: 3 records on 4 partitions",
            rig.topic("tasks")
        )),
        "{said}"
    );
}

#[test]
fn a_task_is_explained_as_its_target_saw_it() {
    let rig = Rig::new(Duration::ZERO, &format!("{FLAKY}{HASTY}"));
    what_became_of_each(&rig, true);
}

#[test]
fn a_task_is_explained_by_events_in_json_and_callbacks_in_avro() {
    let rig = Rig::new(Duration::ZERO, "");
    let basics = rig
        .basics()
        .replace("[topics]\n", "[topics]\nevents = { format = 'json' }\n")
        .replace(
            "callbacks = { format = 'json' }",
            "callbacks = { format = 'avro' }",
        );
    rig.configure(&format!("{basics}{FLAKY}{HASTY}"));
    what_became_of_each(&rig, true);
}

#[test]
fn a_task_is_explained_without_events() {
    let rig = Rig::new(Duration::ZERO, "");
    let basics = rig
        .basics()
        .replace("[topics]\n", "[topics]\nevents = { enabled = false }\n");
    rig.configure(&format!("{basics}{FLAKY}{HASTY}"));
    what_became_of_each(&rig, false);
    let output = rig.retide(&["explain", "later"]);
    assert!(stderr(&output).contains("events are off"), "{output:?}");
}

#[test]
fn a_task_without_an_identity_is_found_by_the_one_made_of_its_place_and_only_where_it_is_looked_for()
 {
    let rig = Rig::new(Duration::ZERO, FLAKY);
    let producer = rig.producer();
    rig.send(&producer, &[("retry-scene", "flaky")], b"0");
    producer.flush(PATIENCE).unwrap();
    let retide = rig.run();
    rig.target.wait_for(1);
    let request = rig.target.requests().remove(0);
    rig.ends(1);
    drop(retide);
    let (id, origin) = (request.text("retry-id"), request.text("retry-origin"));

    let found = story(&rig, &id);
    assert_eq!(found["origin"], origin);
    assert_eq!(words(&found), ["entered", "delivered", "callback"]);

    let partition: i32 = origin.rsplit('/').nth(1).unwrap().parse().unwrap();
    let here = rig.retide(&["explain", &id, "--partition", &partition.to_string()]);
    assert_eq!(here.status.code(), Some(0), "{here:?}");
    let elsewhere = ((partition + 1) % 4).to_string();
    let elsewhere = rig.retide(&["explain", &id, "--partition", &elsewhere]);
    assert_eq!(elsewhere.status.code(), Some(3), "{elsewhere:?}");
    let before = rig.retide(&["explain", &id, "--from", "10m"]);
    assert_eq!(before.status.code(), Some(0), "{before:?}");
    let after = rig.retide(&["explain", &id, "--from", "2999-01-01T00:00:00Z"]);
    assert_eq!(after.status.code(), Some(3), "{after:?}");
    assert!(stderr(&after).contains("among 0 records"), "{after:?}");
}

#[test]
fn what_cannot_be_read_in_time_is_exit_code_6_and_named() {
    let rig = Rig::new(Duration::ZERO, FLAKY);

    let output = rig.retide(&["explain", "a", "--timeout", "0s"]);

    assert_eq!(output.status.code(), Some(6), "{output:?}");
    let said = stderr(&output);
    assert!(said.contains("not read to the end: "), "{said}");
    assert!(said.contains(&rig.topic("events")), "{said}");
}

#[test]
fn explain_without_a_cluster_or_without_topics_says_so() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let rig = Rig::bare(silent.local_addr().unwrap().to_string(), FLAKY);
    let start = Instant::now();
    let output = rig.retide(&["explain", "a"]);
    assert_eq!(output.status.code(), Some(5), "{output:?}");
    assert!(start.elapsed() < Duration::from_secs(15));
    drop(rig);

    let broker = Broker::start().unwrap();
    let rig = Rig::bare(broker.bootstrap().to_owned(), FLAKY);
    let output = rig.retide(&["explain", "a"]);
    assert_eq!(output.status.code(), Some(4), "{output:?}");
    assert!(stderr(&output).contains("retide init"), "{output:?}");
}
