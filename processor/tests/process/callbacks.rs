//! `retide callbacks`, on a topic that was begun in Avro; and the scenes that commands name.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use crate::bounded::Running;
use crate::rig::{FLAKY, Rig};

/// What a command printed, one document a line.
fn lines(output: &Output) -> Vec<serde_json::Value> {
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    let lines = text.lines();
    lines
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

/// What a command said.
fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// The tasks that lines are about.
fn ids(lines: &[serde_json::Value]) -> BTreeSet<&str> {
    lines
        .iter()
        .map(|line| line["id"].as_str().unwrap())
        .collect()
}

#[test]
fn callbacks_of_a_topic_in_both_formats_are_told_and_followed() {
    let rig = Rig::new(Duration::ZERO, "");
    let formats = "callbacks = { format = 'json' }\nalerts = { format = 'json' }\n";
    let older = rig.basics().replace(
        formats,
        "callbacks = { format = 'avro' }\nalerts = { format = 'avro' }\n",
    );
    rig.configure(&format!("{older}{FLAKY}"));
    rig.produce(0, [0, 0, 9].into_iter());
    let retide = rig.run();
    rig.ends(3);
    drop(retide);
    // As it is by default.
    let newer = rig.basics().replace(formats, "");
    rig.configure(&format!("{newer}{FLAKY}"));
    rig.produce(3, [0, 0].into_iter());
    let retide = rig.run();
    rig.ends(5);
    let told = |arguments: &[&str]| {
        rig.retide(&[&["callbacks", "--output", "ndjson"], arguments].concat())
    };

    let formats: BTreeSet<String> = rig
        .read("callbacks")
        .iter()
        .map(|record| record.text("content-type"))
        .collect();
    assert_eq!(formats.len(), 2, "{formats:?}");
    let all = told(&[]);
    assert_eq!(all.status.code(), Some(0), "{all:?}");
    let all = lines(&all);
    let tasks = ["task-0", "task-1", "task-2", "task-3", "task-4"];
    assert_eq!(ids(&all), BTreeSet::from(tasks));
    let times: Vec<i64> = all
        .iter()
        .map(|line| line["endedAt"].as_i64().unwrap())
        .collect();
    assert!(times.is_sorted(), "{times:?}");
    let dead = lines(&told(&[
        "--outcome",
        "dead",
        "--scene",
        "flaky",
        "--since",
        "10m",
    ]));
    assert_eq!(ids(&dead), BTreeSet::from(["task-2"]));
    assert_eq!(dead[0]["errorClass"], "http-503");
    assert_eq!(dead[0]["attempts"], 4);
    assert_eq!(
        ids(&lines(&told(&[
            "--last", "1", "--id", "task-2", "--id", "task-0"
        ]))),
        BTreeSet::from(["task-2"])
    );
    assert_eq!(lines(&told(&["--since", "2999-01-01T00:00:00Z"])).len(), 0);
    let table = rig.retide(&["callbacks"]);
    let table = String::from_utf8(table.stdout).unwrap();
    assert_eq!(table.lines().count(), 6, "{table}");
    let row = table.lines().find(|line| line.contains("task-2")).unwrap();
    for word in ["flaky", "dead", "4", "attempts-exhausted", "http-503"] {
        assert!(row.contains(word), "{row}");
    }
    let document = rig.retide(&["callbacks", "--output", "json"]);
    let document: serde_json::Value = serde_json::from_slice(&document.stdout).unwrap();
    assert_eq!(document.as_array().unwrap().len(), 5);

    let nobody = told(&["--id", "nobody"]);
    assert_eq!(nobody.status.code(), Some(3), "{nobody:?}");
    let other = told(&["--scene", "flakey"]);
    assert_eq!(other.status.code(), Some(0), "{other:?}");
    assert!(stderr(&other).contains("did you mean flaky?"), "{other:?}");

    they_are_followed_until_somebody_has_seen_enough(&rig);
    drop(retide);

    scenes_are_listed_applied_from_stdin_and_meant(&rig);
}

/// The ends of tasks that come meanwhile.
fn they_are_followed_until_somebody_has_seen_enough(rig: &Rig) {
    let mut follow = rig
        .command(&["callbacks", "--follow", "--last", "1", "--output", "ndjson"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .map(Running::from)
        .unwrap();
    let followed = follow.lines();
    let first = followed.next().unwrap();
    assert!(!first.contains("task-5"), "{first}");
    rig.produce(5, [0].into_iter());
    let next = followed.next().unwrap();
    assert!(next.contains("task-5"), "{next}");
    let pid = follow.id().to_string();
    assert!(
        Command::new("kill")
            .args(["-INT", &pid])
            .status()
            .unwrap()
            .success()
    );
    assert_eq!(follow.wait().code(), Some(130));

    // Whoever reads has seen enough.
    let mut cut = rig
        .command(&["callbacks", "--follow", "--output", "ndjson"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map(Running::from)
        .unwrap();
    cut.first_line();
    rig.produce(6, [0].into_iter());
    let cut = cut.output();
    assert_eq!(cut.status.code(), Some(141));
    assert_eq!(stderr(&cut), "");
}

/// The scenes that commands name.
fn scenes_are_listed_applied_from_stdin_and_meant(rig: &Rig) {
    let mut apply = rig
        .command(&["scenes", "apply", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .map(Running::from)
        .unwrap();
    let scenes = "[scenes.payment]\r\ntarget = { kafka = { topic = 'paid' } }\r\n";
    apply
        .stdin
        .take()
        .unwrap()
        .write_all(scenes.as_bytes())
        .unwrap();
    assert_eq!(apply.wait().code(), Some(0));

    let listed = lines(&rig.retide(&["scenes", "list", "--output", "ndjson"]));
    let scenes: Vec<_> = listed
        .iter()
        .map(|scene| {
            (
                scene["scene"].as_str().unwrap(),
                scene["from"].as_str().unwrap(),
            )
        })
        .collect();
    assert_eq!(scenes, [("flaky", "configuration"), ("payment", "topic")]);
    assert_eq!(listed[1]["target"], "kafka paid");
    for arguments in [
        &["submit", "--scene", "paymnt"][..],
        &["scenes", "preview", "paymnt"],
        &["scenes", "delete", "paymnt"],
        &["scenes", "export", "Payment"],
    ] {
        let refused = rig.retide(arguments);
        assert_eq!(refused.status.code(), Some(3), "{arguments:?}: {refused:?}");
        let said = stderr(&refused);
        assert!(
            said.contains("did you mean payment?"),
            "{arguments:?}: {said}"
        );
    }
    let forced = rig.retide(&["submit", "--scene", "paymnt", "--force", "--id", "lost"]);
    assert_eq!(forced.status.code(), Some(0), "{forced:?}");
    let retide = rig.run();
    rig.ends(8);
    drop(retide);
    let told = rig.retide(&["explain", "lost"]);
    assert!(stderr(&told).contains("did you mean payment?"), "{told:?}");
}
