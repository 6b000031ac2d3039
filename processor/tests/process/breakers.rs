//! `retide breakers`: what people want of a breaker is done by every process, until they take it back.

use std::time::Instant;

use crate::hold::json;
use crate::rig::Rig;
use crate::scenes::{put, put_all};
use crate::support::PATIENCE;

/// A scene without a breaker, and one whose breaker opens after three failures, for a minute.
const SCENES: &str = r#"
[scenes.plain]
target = { http = { url = "http://TARGET/plain", timeout = "1m" } }

[scenes.watched]
target = { http = { url = "http://TARGET/flaky", timeout = "1m" } }
backoff = { fixed = { delay = "100ms" } }
max_attempts = 12
breaker = { min_calls = 3, open = "1m" }
"#;

#[test]
fn what_is_no_target_or_lasts_too_long_is_exit_code_2() {
    let rig = Rig::bare("127.0.0.1:1".to_owned(), SCENES);

    for (arguments, words) in [
        (&["breakers", "open", "a b", "--yes"][..], "is no target"),
        (&["breakers", "open", "a", "--for", "31d", "--yes"], "30d"),
        (
            &["breakers", "close", "a", "--until", "1", "--yes"],
            "over already",
        ),
        (&["breakers", "open", "a"], "add --yes"),
        (&["breakers", "reset"], "TARGET"),
    ] {
        rig.refuses(arguments, words);
    }
}

#[test]
fn a_target_is_not_called_while_people_keep_it_open_and_is_when_they_keep_it_closed() {
    let rig = Rig::new(std::time::Duration::ZERO, SCENES);
    let producer = rig.producer();
    let send = |id: &str, scene: &str, value: &[u8]| {
        rig.send(
            &producer,
            &[("retry-scene", scene), ("retry-id", id)],
            value,
        );
    };
    let target = rig.target.address.to_string();
    let breakers = |arguments: &[&str]| {
        let all = [&["--output", "json", "breakers"][..], arguments].concat();
        json(&rig.retide(&all))
    };
    let [one, other] = [rig.run(), rig.run()];

    let open = breakers(&["open", &target, "--reason", "a test", "--yes"]);
    for number in 0..5 {
        send(&format!("plain-{number}"), "plain", b"0");
    }
    let start = Instant::now();
    let deferred = |text: &str| text == "deferred";
    while rig
        .read("events")
        .iter()
        .filter(|event| deferred(&event.text("retry-event")))
        .count()
        < 5
    {
        assert!(start.elapsed() < PATIENCE, "nothing is deferred");
    }
    one.kill();
    let called = rig.target.count();
    let listed = breakers(&["ls"]);
    let reset = breakers(&["reset", &target, "--yes"]);
    rig.ends(5);
    let plain = rig.target.attempts();
    let closed = breakers(&["close", &target, "--for", "10m", "--yes"]);
    send("watched", "watched", b"11");
    let ends = rig.ends(6);

    assert_eq!(open[0]["confirmed"], open[0]["shards"], "{open}");
    assert_eq!(called, 0, "it was called");
    assert_eq!(
        (
            &listed[0]["state"],
            &listed[0]["forced"],
            &listed[0]["reason"]
        ),
        (&"open".into(), &"open".into(), &"a test".into()),
        "{listed}"
    );
    assert_eq!(reset[0]["forced"], "reset", "{reset}");
    assert_eq!(plain.len(), 5, "no attempt is used up: {plain:?}");
    assert!(plain.keys().all(|(_, attempt)| *attempt == 1), "{plain:?}");
    assert_eq!(closed[0]["confirmed"], closed[0]["shards"], "{closed}");
    assert_eq!(ends["watched"], ["delivered"], "eleven failures opened it");
    drop(other);
}

#[test]
fn a_record_that_cannot_be_read_is_taken_back_by_the_name_that_is_listed() {
    let rig = Rig::new(std::time::Duration::ZERO, SCENES);
    let breakers = |arguments: &[&str]| {
        let all = [&["--output", "json", "breakers"][..], arguments].concat();
        json(&rig.retide(&all))
    };
    // One that would be a target in small letters, and one that would be none.
    for name in ["SHOP", "a b"] {
        put(&rig, &format!("breaker/{name}"), r#"{"state": "open"}"#);
    }
    let listed = |all: &serde_json::Value| -> Vec<String> {
        let lines = all.as_array().into_iter().flatten();
        let targets = lines.filter_map(|line| line["target"].as_str());
        targets.map(str::to_owned).collect()
    };

    let before = breakers(&["ls"]);
    breakers(&["reset", "SHOP", "a b", "--yes", "--no-wait"]);
    let after = breakers(&["ls"]);

    assert_eq!(listed(&before), ["SHOP", "a b"], "{before}");
    assert_eq!(listed(&after), <[&str; 0]>::default(), "{after}");
}

#[test]
fn a_flood_of_records_that_cannot_be_read_is_counted_and_stops_nobody() {
    let rig = Rig::new(std::time::Duration::ZERO, SCENES);
    let long = format!("hold/{}", "x".repeat(300_000));
    let holds = (0..105).map(|number| format!("hold/bad-{number:03}"));
    put_all(&rig, holds.chain([long]), "no hold");
    put_all(
        &rig,
        (0..103).map(|number| format!("bad-{number:03}")),
        "no scene",
    );

    let holds = rig.retide(&["--output", "json", "holds"]);
    let scenes = rig.retide(&["--output", "json", "scenes", "list"]);
    let running = rig.launch(&["run", "--ignore-unusable-scenes"]);
    let headers = [("retry-id", "a"), ("retry-scene", "plain")];
    let producer = rig.producer();
    rig.send(&producer, &headers, b"0");
    rig.ends(1);
    for kind in ["hold-unreadable", "scene-unreadable"] {
        let line = format!("trouble=\"{kind}\" subject=\"*\"");
        running.wait_for(&line);
    }
    // One that is not listed is known, and goes.
    let released = rig.retide(&["release", "bad-104", "--yes", "--no-wait"]);
    let after = rig.retide(&["holds"]);

    for (output, others) in [
        (&holds, "6 others"),
        (&scenes, "3 others"),
        (&after, "5 others"),
    ] {
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(told.contains(others), "{told}");
    }
    assert_eq!(json(&holds).as_array().unwrap().len(), 100);
    assert!(released.status.success(), "{released:?}");
}
