//! `on_exhausted = "hold"`: a task that is out of attempts waits for people, whoever has its shard, and what they say of it is done.

use crate::hold::{json, wait_for_waiting};
use crate::rig::Rig;

/// A scene whose tasks have two attempts, and are held then.
const HELD: &str = r#"
[scenes.held]
target = { http = { url = "http://TARGET/flaky", timeout = "1m" } }
backoff = { fixed = { delay = "100ms" } }
max_attempts = 2
deadline = "1h"
on_exhausted = "hold"
brake = false
"#;

#[test]
fn what_is_out_of_attempts_waits_for_people_through_a_kill() {
    let rig = Rig::new(std::time::Duration::ZERO, HELD);
    let producer = rig.producer();
    let tasks = |verb: &str, arguments: &[&str]| {
        let all = [&["tasks", verb, "--yes"][..], arguments].concat();
        let output = rig.retide(&all);
        assert!(output.status.success(), "{verb}: {output:?}");
    };
    let [one, other] = [rig.run(), rig.run()];
    for number in 0..8 {
        let id = format!("task-{number}");
        let headers = [("retry-scene", "held"), ("retry-id", id.as_str())];
        rig.send(&producer, &headers, b"3");
    }

    wait_for_waiting(&rig, "exhausted/held", 8);
    one.kill();
    let told = rig.retide(&["explain", "task-3"]);
    tasks("cancel", &["--id", "task-0"]);
    tasks("complete", &["--id", "task-1", "--outcome", "success"]);
    tasks("run-now", &["--id", "task-2"]);
    rig.ends(3);
    let unknown = rig.retide(&["release", "exhausted/other", "--yes"]);
    let released = json(&rig.retide(&[
        "--output",
        "json",
        "release",
        "exhausted/held",
        "--reason",
        "it is mended",
        "--yes",
    ]));
    let ends = rig.ends(8);

    let told = String::from_utf8_lossy(&told.stdout).into_owned();
    assert!(told.contains("held"), "{told}");
    assert!(told.contains("attempts-exhausted"), "{told}");
    assert_eq!(unknown.status.code(), Some(3), "{unknown:?}");
    let line = &released[0];
    assert_eq!(line["confirmed"], line["shards"], "{line}");
    let of = |number: usize| ends[&format!("task-{number}")].clone();
    assert_eq!(of(0), ["cancelled"]);
    assert!((1..8).all(|number| of(number) == ["delivered"]), "{ends:?}");
    let attempts = rig.target.attempts();
    let made = |number: usize| {
        let id = format!("task-{number}");
        let of = attempts.keys().filter(|(task, _)| *task == id);
        of.map(|(_, attempt)| *attempt).max()
    };
    assert_eq!([made(0), made(1)], [Some(2), Some(2)]);
    assert!((2..8).all(|number| made(number) == Some(4)), "{attempts:?}");
    let events = rig.read("events");
    let held = events
        .iter()
        .filter(|event| event.text("retry-event") == "held");
    assert_eq!(held.count(), 8, "each is told of once");
    let alerts = rig.read("alerts").into_iter();
    let mut alerts = alerts.filter_map(|alert| String::from_utf8(alert.value?).ok());
    assert!(alerts.any(|text| text.contains("tasks-exhausted")));
    drop(other);
}
