//! A task that is due soon, behind many that are not.

use retide_shell::clock;
use std::time::{Duration, Instant};

use crate::rig::{FLAKY, Rig};

#[test]
fn a_task_of_12_seconds_is_not_held_up_by_10_000_tasks_of_an_hour_before_it() {
    let rig = Rig::calm(Duration::ZERO, FLAKY);
    let retide = rig.run();
    let producer = rig.producer();
    for index in 0..10_000 {
        let id = format!("later-{index}");
        let headers = [
            ("retry-scene", "flaky"),
            ("retry-id", &id),
            // More than its tier by the longest time until it is read.
            ("retry-delay-ms", "3660000"),
        ];
        rig.send(&producer, &headers, b"0");
    }
    let due = clock::since_epoch() + Duration::from_secs(12);
    let due = due.as_millis();
    let headers = [
        ("retry-scene", "flaky"),
        ("retry-id", "soon"),
        ("retry-due-at", &due.to_string()),
    ];
    rig.send(&producer, &headers, b"0");
    rdkafka::producer::Producer::flush(&producer, Duration::from_secs(10)).unwrap();

    let start = Instant::now();
    rig.target.wait_for(1);

    assert!(start.elapsed() < Duration::from_secs(14));
    let requests = rig.target.requests();
    let [request] = &requests[..] else {
        panic!("{requests:?}");
    };
    assert_eq!(request.text("retry-id"), "soon");
    let late = request.at_micros - due * 1_000;
    eprintln!("late by {late} µs");
    assert!(late < 250_000, "late by {late} µs");
    // The 10,000 are parked, not forgotten.
    retide.terminate();
    assert_eq!(retide.wait(), Some(0));
    assert_eq!(rig.read("delay.1h").len(), 10_000);
}
