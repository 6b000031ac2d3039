//! `retide hold`, `release` and `holds`: what is held is not started, by whoever has its shard, and is back when it is let go.

use std::process::Output;
use std::time::Instant;

use serde_json::Value;

use crate::rig::{FLAKY, Rig};
use crate::support::PATIENCE;

/// A scene of its own beside the one whose tasks are held.
const OTHER: &str = r#"
[scenes.other]
target = { http = { url = "http://TARGET/other", timeout = "1m" } }
"#;

/// What a command printed, as JSON.
pub(crate) fn json(output: &Output) -> Value {
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Waits until a hold holds so many due tasks, as all shards say.
pub(crate) fn wait_for_waiting(rig: &Rig, name: &str, count: u64) {
    let start = Instant::now();
    loop {
        let holds = json(&rig.retide(&["--output", "json", "holds"]));
        let mut lines = holds.as_array().unwrap().iter();
        let hold = lines.find(|hold| hold["name"] == name);
        if hold.is_some_and(|hold| hold["waiting"] == count) {
            return;
        }
        assert!(start.elapsed() < PATIENCE, "{name}: {count} of {holds}");
    }
}

#[test]
fn what_holds_nothing_or_for_too_long_is_exit_code_2() {
    let rig = Rig::bare("127.0.0.1:1".to_owned(), FLAKY);

    for (arguments, words) in [
        (&["hold", "--yes"][..], "the selector is empty"),
        (&["hold", "--scene", "", "--yes"], "an empty text"),
        (&["hold", "--scene", "a"], "add --yes"),
        (&["hold", "--scene", "a", "--for", "31d", "--yes"], "30d"),
        (
            &["hold", "--scene", "a", "--until", "1", "--yes"],
            "over already",
        ),
        (
            &["hold", "--scene", "a", "--until", "x", "--yes"],
            "a time as",
        ),
        (
            &["hold", "--scene", "a", "--name", "a/b", "--yes"],
            "no name of a hold",
        ),
        (&["release", "--yes"], "name the holds"),
        (&["release", "a", "--ramp=5,5", "--yes"], "rising numbers"),
        (&["release", "a", "--scene", "b", "--yes"], "name the holds"),
    ] {
        rig.refuses(arguments, words);
    }
}

#[test]
fn what_is_held_waits_through_a_kill_and_is_back_when_it_is_released() {
    let rig = Rig::new(std::time::Duration::ZERO, &format!("{FLAKY}{OTHER}"));
    let producer = rig.producer();
    let send = |id: &str, scene: &str, tenant: &str| {
        let headers = [("retry-scene", scene), ("retry-id", id), ("tenant", tenant)];
        rig.send(&producer, &headers, b"0");
    };
    let flaky = ["hold", "--scene", "flaky", "--reason", "a test", "--yes"];
    // Nobody runs yet: it counts from the start.
    let written = rig.retide(&[&flaky[..], &["--no-wait"]].concat());
    for number in 0..10 {
        send(&format!("held-{number}"), "flaky", "1");
    }

    let [one, other] = [rig.run(), rig.run()];
    let tenant = ["hold", "--header", "tenant=7", "--name", "tenant", "--yes"];
    let tenant = json(&rig.retide(&[&["--output", "json"][..], &tenant].concat()));
    for number in 0..5 {
        send(&format!("free-{number}"), "other", "1");
        send(&format!("tenant-{number}"), "other", "7");
    }
    rig.ends(5);
    // The same tasks are held once.
    let again = json(&rig.retide(&[&["--output", "json"][..], &flaky].concat()));
    wait_for_waiting(&rig, "scene-flaky", 10);
    wait_for_waiting(&rig, "tenant", 5);
    one.kill();
    for number in 10..13 {
        send(&format!("held-{number}"), "flaky", "1");
        send(&format!("free-{number}"), "other", "1");
    }
    // Whoever has the shards of the one that was killed starts what is not held.
    rig.ends(8);
    let called = rig.target.count();
    let unknown = rig.retide(&["release", "scene-flakey", "--yes"]);
    let dry = rig.retide(&["release", "--all", "--dry-run"]);
    let released = rig.retide(&[
        "--output",
        "json",
        "release",
        "--scene",
        "flaky",
        "--ramp=5,50",
        "--yes",
    ]);
    let more = rig.retide(&["release", "tenant", "--yes"]);
    let ends = rig.ends(26);
    let climbing = json(&rig.retide(&["--output", "json", "holds"]));
    let done = rig.retide(&["release", "scene-flaky", "--yes"]);
    let left = rig.retide(&["holds"]);

    assert!(written.status.success(), "{written:?}");
    assert_eq!(tenant[0]["state"], "held");
    assert_eq!(again[0]["name"], "scene-flaky");
    for hold in [&tenant[0], &again[0]] {
        assert_eq!(hold["confirmed"], hold["shards"], "{hold}");
    }
    assert_eq!(called, 8, "something was called that is held");
    assert_eq!(unknown.status.code(), Some(3), "{unknown:?}");
    let said = String::from_utf8_lossy(&unknown.stderr);
    assert!(said.contains("scene-flaky"), "{said}");
    assert!(dry.status.success(), "{dry:?}");
    let released = json(&released);
    assert_eq!(
        (&released[0]["state"], &released[0]["pace"]),
        (&"ramp".into(), &5.into())
    );
    assert_eq!(climbing[0]["name"], "scene-flaky");
    assert!(climbing[0]["state"] != "fell-back", "{climbing}");
    assert!(done.status.success(), "{done:?}");
    assert!(more.status.success(), "{more:?}");
    assert!(ends.values().all(|of| of[..] == ["delivered"]), "{ends:?}");
    let attempts = rig.target.attempts();
    assert_eq!(attempts.len(), 26, "no attempt is used up: {attempts:?}");
    assert!(attempts.keys().all(|(_, attempt)| *attempt == 1));
    assert!(String::from_utf8_lossy(&left.stderr).contains("nothing is held"));
    drop(other);
}

#[test]
fn deadlines_stand_still_where_the_hold_says_so() {
    let scenes = r#"
[scenes.stops]
target = { http = { url = "http://TARGET/stops", timeout = "1m" } }
deadline = "8s"

[scenes.runs]
target = { http = { url = "http://TARGET/runs", timeout = "1m" } }
deadline = "8s"
"#;
    let rig = Rig::new(std::time::Duration::ZERO, scenes);
    let producer = rig.producer();
    let stops = ["hold", "--scene", "stops", "--deadlines", "stop", "--yes"];
    let one = rig.run();
    let stops = rig.retide(&stops);
    let runs = rig.retide(&["hold", "--scene", "runs", "--yes"]);
    for scene in ["runs", "stops"] {
        rig.send(
            &producer,
            &[("retry-scene", scene), ("retry-id", scene)],
            b"0",
        );
    }

    // The deadline of the one has passed, and so would that of the other.
    let expired = rig.ends(1);
    let held = json(&rig.retide(&["--output", "json", "holds"]));
    let released = rig.retide(&["release", "--all", "--yes"]);
    let ends = rig.ends(2);

    assert!(stops.status.success(), "{stops:?}");
    assert!(runs.status.success(), "{runs:?}");
    assert_eq!(expired["runs"], ["expired"]);
    let mut lines = held.as_array().unwrap().iter();
    let line = lines.find(|line| line["name"] == "scene-stops").unwrap();
    assert_eq!(line["deadlines"], "stop");
    assert!(released.status.success(), "{released:?}");
    assert_eq!(ends["stops"], ["delivered"], "{ends:?}");
    // Whoever reads a task of it later knows when that was.
    let records = rig.read("scenes");
    let over = records.iter().position(|record| {
        let key = record.key.as_deref().unwrap_or_default();
        key.starts_with(b"hold/scene-stops@")
    });
    let released = records.iter().position(|record| {
        record.key.as_deref() == Some(b"hold/scene-stops") && record.value.is_none()
    });
    assert!(over.is_some() && over < released, "{over:?} {released:?}");
    let over: Value =
        serde_json::from_slice(records[over.unwrap()].value.as_ref().unwrap()).unwrap();
    assert_eq!(over["deadlines"], "stood");
    assert!(over["since"].as_u64() < over["until"].as_u64(), "{over}");
    drop(one);
}
