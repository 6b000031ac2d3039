//! `retide tasks`: what it refuses, what it finds, and what is missing where nobody can read commands.

use std::fs;
use std::process::Output;
use std::time::{Duration, Instant};

use rdkafka::producer::{BaseRecord, Producer};
use serde_json::Value;

use crate::rig::{FLAKY, Rig};
use crate::support::PATIENCE;

/// What a command printed.
fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// What a command said.
fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[test]
fn what_names_no_task_and_what_nobody_has_said_yes_to_is_exit_code_2() {
    // Nobody is asked before that.
    let rig = Rig::bare("127.0.0.1:1".to_owned(), FLAKY);
    fs::write(rig.file("none.txt"), "\n \n").unwrap();

    for (arguments, words) in [
        (&["ls"][..], "the selector is empty"),
        (&["cancel", "--yes"], "the selector is empty"),
        (&["cancel", "--id", "a"], "add --yes"),
        (&["cancel", "--id", "", "--yes"], "an empty text"),
        (
            &["cancel", "--id-file", "none.txt", "--yes"],
            "names no task",
        ),
        (&["cancel", "--id-file", "gone.txt", "--yes"], "gone.txt"),
        (
            &["run-now", "--attempts", "5..2", "--yes"],
            "attempts ends before it begins",
        ),
        (&["run-now", "--due", "-2h", "--yes"], "FROM..TO"),
        (&["run-now", "--header", "a", "--yes"], "NAME=VALUE"),
        (
            &["run-now", "--fingerprint", "x", "--yes"],
            "16 hexadecimal digits",
        ),
        (&["reschedule", "--id", "a", "--yes"], "--at"),
        (
            &["reschedule", "--id", "a", "--at", "soon", "--yes"],
            "a time as",
        ),
        (
            &["reschedule", "--id", "a", "--in", "5x", "--yes"],
            "duration",
        ),
        (&["complete", "--id", "a", "--yes"], "--outcome"),
        (
            &[
                "complete",
                "--id",
                "a",
                "--outcome",
                "success",
                "--failure",
                "x",
                "--yes",
            ],
            "leave one of them out",
        ),
        (
            &["cancel", "--id", "a", "--yes", "--expires", "8d"],
            "at the latest",
        ),
        (
            &["cancel", "--id", "a", "--no-wait", "--wait", "1s"],
            "--wait",
        ),
    ] {
        rig.refuses(&[&["tasks"][..], arguments].concat(), words);
    }
}

#[test]
fn tasks_under_way_are_found_counted_and_shown_wherever_they_wait() {
    let rig = Rig::new(Duration::ZERO, FLAKY);
    let submit = |id: &str, more: &[&str]| {
        let all = ["submit", "--scene", "flaky", "--id", id, "--delay", "1h"];
        fs::write(rig.file("payload"), "{}").unwrap();
        let output = rig.retide(&[&all[..], more, &["payload"]].concat());
        assert!(output.status.success(), "{output:?}");
    };
    let json = |arguments: &[&str]| {
        let output = rig.retide(&[&["--output", "json", "tasks"][..], arguments].concat());
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        serde_json::from_str::<Value>(&stdout(&output)).unwrap()
    };
    let ids = |arguments: &[&str]| {
        let tasks = json(arguments);
        let tasks = tasks.as_array().unwrap().iter();
        let mut ids: Vec<String> = tasks
            .map(|task| task["id"].as_str().unwrap().to_owned())
            .collect();
        ids.sort();
        ids
    };
    for number in 0..7 {
        submit(
            &format!("t{number}"),
            &["--header", &format!("order={number}"), "--key", "k"],
        );
    }

    // On the retry topic.
    assert_eq!(ids(&["ls", "--scene", "flaky"]).len(), 7);
    assert_eq!(ids(&["ls", "--header", "order=3"]), ["t3"]);
    let worker = rig.run();
    let deadline = Instant::now() + PATIENCE;
    while json(&["ls", "--id", "t3"])[0]["topic"] != rig.topic("delay.1m") {
        assert!(Instant::now() < deadline, "it is not parked");
    }
    // In a tier.
    assert_eq!(
        ids(&["ls", "--id", "t1", "--id", "t2", "--id", "none"]),
        ["t1", "t2"]
    );
    assert_eq!(
        ids(&["ls", "--key", "k", "--due", "+30m..", "--attempts", "0"]).len(),
        7
    );
    let target = rig.target.address.to_string();
    assert_eq!(ids(&["ls", "--target", &target, "--limit", "2"]).len(), 2);
    let output = rig.retide(&["tasks", "show", "--id", "t4"]);
    assert!(
        stdout(&output).contains("header         order=4"),
        "{output:?}"
    );
    let dry = json(&["cancel", "--scene", "flaky", "--dry-run"]);
    assert_eq!(
        (&dry["count"], &dry["complete"]),
        (&7.into(), &true.into()),
        "{dry}"
    );
    assert_eq!(dry["samples"].as_array().unwrap().len(), 5, "{dry}");
    for absent in [
        &["ls", "--due", "..now"][..],
        &["cancel", "--id", "none", "--dry-run"],
    ] {
        let output = rig.retide(&[&["tasks"][..], absent].concat());
        assert_eq!(output.status.code(), Some(3), "{output:?}");
    }
    worker.kill();
}

#[test]
#[allow(
    clippy::too_many_lines,
    reason = "one command after the other, on one set of topics"
)]
fn commands_reach_tasks_wherever_they_wait_and_end_with_counts() {
    let rig = Rig::new(Duration::ZERO, FLAKY);
    fs::write(rig.file("payload"), "0").unwrap();
    let submit = |id: &str, delay: &str| {
        let order = format!("order={id}");
        let output = rig.retide(&[
            "submit", "--scene", "flaky", "--id", id, "--delay", delay, "--header", &order,
            "payload",
        ]);
        assert!(output.status.success(), "{output:?}");
    };
    let act = |arguments: &[&str], code: i32| {
        let all = [
            &["--output", "json", "tasks"][..],
            arguments,
            &["--yes", "--wait", "30s"],
        ]
        .concat();
        let output = rig.retide(&all);
        assert_eq!(
            output.status.code(),
            Some(code),
            "{arguments:?}: {output:?}"
        );
        serde_json::from_str::<Value>(&stdout(&output)).unwrap()[0].clone()
    };
    let counts = |line: &Value| {
        ["matched", "done", "too_late", "not_found"].map(|key| line[key].as_u64().unwrap())
    };
    for (id, delay) in [
        ("a", "1h"),
        ("b", "2h"),
        ("c", "1h"),
        ("d", "1h"),
        ("e", "5s"),
    ] {
        submit(id, delay);
    }
    let worker = rig.run();
    let parked = |id: &str| {
        let output = rig.retide(&["--output", "json", "tasks", "ls", "--id", id]);
        let tasks: Value = serde_json::from_str(&stdout(&output)).unwrap_or_default();
        tasks[0]["topic"]
            .as_str()
            .is_some_and(|topic| topic.contains(".delay."))
    };
    let deadline = Instant::now() + PATIENCE;
    while !["a", "b", "c", "d"].into_iter().all(parked) {
        assert!(Instant::now() < deadline, "they are not parked");
    }

    // In a tier, by what people know.
    let line = act(
        &["cancel", "--header", "order=a", "--reason", "refunded"],
        0,
    );
    assert_eq!(
        (&line["state"], counts(&line)),
        (&"done".into(), [1, 1, 0, 0]),
        "{line}"
    );
    let line = act(&["run-now", "--id", "b", "--id", "none"], 0);
    assert_eq!(counts(&line), [1, 1, 0, 1], "{line}");
    let line = act(
        &[
            "complete",
            "--id",
            "c",
            "--outcome",
            "success",
            "--id-of-command",
            "c-1",
        ],
        0,
    );
    assert_eq!(
        (&line["id"], counts(&line)),
        (&"c-1".into(), [1, 1, 0, 0]),
        "{line}"
    );
    let line = act(&["reschedule", "--id", "d", "--in", "1s"], 0);
    assert_eq!(counts(&line), [1, 1, 0, 0], "{line}");
    // Of what was cancelled nothing is under way.
    let output = rig.retide(&["tasks", "ls", "--id", "a"]);
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    let line = act(&["cancel", "--id", "none"], 3);
    assert_eq!(counts(&line), [0, 0, 0, 1], "{line}");
    // Before it is there.
    let output = rig.retide(&["tasks", "cancel", "--id", "later", "--no-wait", "--yes"]);
    assert!(output.status.success(), "{output:?}");
    submit("later", "1s");
    // By hand, and not readable.
    let producer = rig.producer();
    let topic = rig.topic("commands");
    for value in [
        r#"{"command":"cancel","select":{"scnee":"x"},"id":"c-2"}"#,
        "stop it",
    ] {
        let record = BaseRecord::<(), str>::to(&topic).payload(value);
        producer.send(record).map_err(|(error, _)| error).unwrap();
    }
    producer.flush(PATIENCE).unwrap();

    let ends = rig.ends(6);

    for (id, outcome) in [
        ("a", "cancelled"),
        ("b", "delivered"),
        ("c", "delivered"),
        ("d", "delivered"),
        ("e", "delivered"),
        ("later", "cancelled"),
    ] {
        assert_eq!(ends[id], [outcome], "{id}");
    }
    let called: Vec<String> = rig
        .target
        .requests()
        .iter()
        .map(|request| request.headers["retry-id"].to_str().unwrap().to_owned())
        .collect();
    assert!(
        !called.iter().any(|id| ["a", "c", "later"].contains(&&**id)),
        "{called:?}"
    );
    let output = rig.retide(&["explain", "a"]);
    let said = stdout(&output);
    assert!(
        said.contains("cancelled") && said.contains("by command"),
        "{said}"
    );
    let output = rig.retide(&["tasks", "command", "c-2", "--wait", "20s"]);
    assert!(
        stderr(&output).contains("did you mean scene?"),
        "{output:?}"
    );
    worker.kill();
}
