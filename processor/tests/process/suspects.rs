//! A record at which processes die: two in a row, and it is set aside by the third.

use std::time::{Duration, Instant};

use rdkafka::producer::Producer;

use crate::rig::{FLAKY, Rig};
use crate::support::PATIENCE;

#[test]
fn a_record_at_which_two_processes_died_is_set_aside() {
    let rig = Rig::new(Duration::ZERO, FLAKY);
    let topic = rig.topic("tasks");
    let producer = rig.producer();
    for (partition, id) in [(0, "beside"), (1, "before"), (1, "bad"), (1, "after")] {
        let headers = [("retry-scene", "flaky"), ("retry-id", id)];
        rig.send_to(partition, &producer, &headers, b"0");
    }
    producer.flush(PATIENCE).unwrap();
    let place = format!("{topic}/1/1");
    // By name of the thread, since it passes through more than one.
    let at = |thread: &str| [("RETIDE_PLANTED_PANIC_AT", format!("{thread}@{place}"))];

    for (thread, deaths) in [("worker-0-tasks", 1), ("worker-0", 2)] {
        let retide = rig.launch_with(&["run"], &at(thread));
        retide.wait_for("mark left");
        let log = retide.log();
        assert!(log.contains(&place), "{log}");
        assert!(log.contains(&format!("deaths={deaths}")), "{log}");
        assert_eq!(retide.wait(), Some(1));
    }
    let third = rig.launch_with(&["run"], &at("worker-0"));
    let ends = rig.ends(4);

    assert_eq!(ends["bad"], ["dead"]);
    for id in ["beside", "before", "after"] {
        assert_eq!(ends[id], ["delivered"], "{id}");
    }
    third.wait_for("record set aside");
    let letters = rig.read("dead-letters");
    let [letter] = &letters[..] else {
        panic!("{letters:?}");
    };
    assert_eq!(letter.text("retry-reason"), "crashed");
    assert_eq!(letter.text("retry-origin"), place);
    assert_eq!(letter.value, None);
    assert_eq!(letter.text("retry-omitted"), "value and headers");
    let alerts = rig.read("alerts");
    let told = |alert: &crate::rig::Stored| alert.text("retry-reason") == "crashed";
    assert!(alerts.iter().any(told), "{alerts:?}");
    third.terminate();
    assert_eq!(third.wait(), Some(0));
    // Who comes next finds the record done with, and deletes the mark.
    let _next = rig.run();
    let start = Instant::now();
    let key = format!("suspect/{place}").into_bytes();
    let mark = || {
        let records = rig.read("order");
        let mark = records
            .into_iter()
            .rfind(|record| record.key.as_ref() == Some(&key));
        mark.expect("the mark").value
    };
    while mark().is_some() {
        assert!(start.elapsed() < PATIENCE, "the mark is still there");
    }
}
