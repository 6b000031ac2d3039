//! A task that is due soon, behind many that are not.

use retide_shell::clock;
use std::time::Duration;

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

    rig.target.wait_for(1);

    let requests = rig.target.requests();
    let [request] = &requests[..] else {
        panic!("{requests:?}");
    };
    assert_eq!(request.text("retry-id"), "soon");
    // The 10,000 are parked, not forgotten.
    retide.terminate();
    assert_eq!(retide.wait(), Some(0));
    let parked = rig.read("delay.1h");
    assert_eq!(parked.len(), 10_000);
    let at = request.at_micros;
    let late = at - due * 1_000;
    let stalls = rig.target.stalls();
    let stalled = stalls.iter().map(|stall| {
        stall
            .end
            .min(at)
            .saturating_sub(stall.start.max(due * 1_000))
    });
    let stalled: u128 = stalled.sum();
    // A machine so slow that it reads the 10,000 for longer reads what stands behind them later.
    let last = parked.iter().map(|record| record.at_millis).max().unwrap();
    let behind = last.saturating_sub(due) * 1_000;
    eprintln!(
        "late by {late} µs, of which {stalled} nothing moved and {behind} the others were read"
    );
    assert!(late < 250_000 + stalled + behind, "late by {late} µs");
}
