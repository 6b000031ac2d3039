//! Promises to those who produce tasks and to those who receive them.

use std::fs;
use std::time::Duration;

use retide_embedded::Broker;

use crate::rig::{FLAKY, Rig};

/// The whole way of tasks that fail none to four times where four attempts are allowed.
fn end_to_end(rig: &Rig) {
    const TASKS: usize = 500;
    let failures = |index: usize| index as u32 % 5;
    let retide = rig.run();

    rig.produce(0, (0..TASKS).map(failures));
    let ends = rig.ends(TASKS);

    let dead = TASKS / 5;
    for index in 0..TASKS {
        let id = format!("task-{index}");
        let expected = if failures(index) > 3 {
            "dead"
        } else {
            "delivered"
        };
        assert_eq!(ends[&id], [expected], "{id}");
    }
    assert_eq!(rig.read("callbacks").len(), TASKS);
    assert_eq!(rig.read("dead-letters").len(), dead);
    let expected: usize = (0..TASKS)
        .map(|index| failures(index).min(3) as usize + 1)
        .sum();
    assert_eq!(rig.target.attempts().len(), expected);
    assert_eq!(rig.target.count(), expected);
    assert_eq!(rig.target.early(), 0);
    retide.terminate();
    assert_eq!(retide.wait(), Some(0));
}

#[test]
fn every_task_ends_once_after_its_attempts() {
    end_to_end(&Rig::new(Duration::ZERO, FLAKY));
}

#[test]
fn every_task_ends_once_after_its_attempts_on_the_embedded_broker() {
    let broker = Broker::start().unwrap();
    let rig = Rig::bare(broker.bootstrap().to_owned(), FLAKY);
    assert!(rig.retide(&["init"]).status.success());
    end_to_end(&rig);
}

#[test]
fn every_task_ends_once_after_its_attempts_at_least_once() {
    let rig = Rig::new(Duration::ZERO, FLAKY);
    let basics = rig
        .basics()
        .replace("[topics]\n", "[topics]\nevents = { enabled = false }\n");
    let processor = "guarantee = 'at_least_once'\nworkers = 2\n";
    rig.configure(&format!("{basics}{processor}{FLAKY}"));
    end_to_end(&rig);
    assert_eq!(rig.read("events").len(), 0, "events are off");
}

#[test]
fn a_deadline_ends_a_task_as_expired_and_its_callback_is_delivered() {
    let scenes = r#"
[scenes.flaky]
target = { http = { url = "http://TARGET/flaky" } }
backoff = { fixed = { delay = "3s" } }
deadline = "8500ms"
callback = { target = { http = { url = "http://TARGET/ended" } }, on = ["expired"] }
"#;
    let rig = Rig::new(Duration::ZERO, scenes);
    let _retide = rig.run();

    rig.produce(0, [9, 0].into_iter());
    let ends = rig.ends(2);

    assert_eq!(ends["task-0"], ["expired"]);
    assert_eq!(ends["task-1"], ["delivered"]);
    // The deadline counts from when it was produced, which may be a while before its first attempt. Three attempts for one, one for the other, and one callback, since only one task expired.
    rig.target.wait_for(5);
    let requests = rig.target.requests();
    let callbacks: Vec<_> = requests
        .iter()
        .filter(|request| request.path == "ended")
        .collect();
    let [callback] = callbacks[..] else {
        panic!("{callbacks:?}");
    };
    assert_eq!(callback.text("retry-id"), "task-0");
    assert_eq!(callback.text("retry-outcome"), "expired");
    assert_eq!(callback.text("content-type"), "application/json");
    let body: serde_json::Value = serde_json::from_slice(&callback.body).unwrap();
    assert_eq!(body["outcome"], "expired");
    assert_eq!(body["attempts"], 3);
    let [letter] = &rig.read("dead-letters")[..] else {
        panic!("one dead letter");
    };
    assert_eq!(letter.value.as_deref(), Some(&b"9"[..]));
    assert_eq!(letter.text("retry-outcome"), "expired");
}

#[test]
fn a_scene_applied_takes_effect_without_a_restart() {
    let rig = Rig::new(Duration::ZERO, "");
    let retide = rig.run();
    let apply = |text: &str| {
        let text = text.replace("TARGET", &rig.target.address.to_string());
        fs::write(rig.file("scenes.toml"), text).unwrap();
        let output = rig.retide(&["scenes", "apply", "scenes.toml"]);
        assert!(output.status.success(), "{output:?}");
    };

    rig.produce(0, [0].into_iter());
    assert_eq!(
        rig.ends(1)["task-0"],
        ["dead"],
        "its scene does not exist yet"
    );
    apply(FLAKY);
    retide.wait_for_times(2, "scene rules changed");
    rig.produce(1, [9].into_iter());
    assert_eq!(rig.ends(2)["task-1"], ["dead"]);
    assert_eq!(rig.target.count(), 4, "attempts of the first rules");
    apply(&FLAKY.replace("max_attempts = 4", "max_attempts = 2"));
    retide.wait_for_times(3, "scene rules changed");
    rig.produce(2, [9].into_iter());
    assert_eq!(rig.ends(3)["task-2"], ["dead"]);

    assert_eq!(rig.target.count(), 6, "attempts of the second rules");
}
