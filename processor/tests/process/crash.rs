//! Processes that die, join, leave and are told to stop.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::rig::{FLAKY, Rig};

/// Every task has exactly one end, as it has to be, and no attempt was early. Gives how many attempts were made twice.
fn check(rig: &Rig, ends: &BTreeMap<String, Vec<String>>, tasks: usize) -> usize {
    assert_eq!(ends.len(), tasks);
    for (id, outcomes) in ends {
        assert_eq!(outcomes, &["delivered"], "{id}");
    }
    // Again from the beginning: an end that came twice may have come after the last first one.
    assert_eq!(rig.read("callbacks").len(), tasks);
    assert_eq!(rig.read("dead-letters").len(), 0);
    assert_eq!(rig.target.early(), 0);
    let attempts = rig.target.attempts();
    for index in 0..tasks {
        for number in 1..=failures(index) + 1 {
            let key = (format!("task-{index}"), number);
            assert!(attempts.contains_key(&key), "{key:?} is missing");
        }
    }
    let expected: usize = (0..tasks).map(|index| failures(index) as usize + 1).sum();
    assert_eq!(attempts.len(), expected);
    rig.target.count() - expected
}

/// How often a task fails.
fn failures(index: usize) -> u32 {
    index as u32 % 3
}

#[test]
fn a_process_killed_three_times_loses_no_task_and_ends_none_twice() {
    const PART: usize = 1_800;
    const TASKS: usize = 3 * PART;
    let rig = Rig::new(Duration::from_millis(50), FLAKY);
    let survivor = rig.run();
    let mut victim = rig.run();

    for kill in 1..=3 {
        // A part before each kill: a fast machine does not run out of work while a process joins.
        let part = (kill - 1) * PART..kill * PART;
        let seen = rig.target.count();
        rig.produce(part.start, part.map(failures));
        rig.target.wait_for(seen + 1_200);
        victim.kill();
        eprintln!("kill {kill} at {} attempts", rig.target.count());
        victim = rig.run();
    }
    let ends = rig.ends(TASKS);

    let twice = check(&rig, &ends, TASKS);
    eprintln!("{twice} attempts made twice");
    // In flight, at most the scene's concurrency, and what was not committed yet: well below a second's work for each kill.
    assert!(twice < 3 * 1_500, "{twice}");
    drop((survivor, victim));
}

#[test]
fn processes_that_join_and_leave_by_sigterm_lose_and_repeat_nothing() {
    const TASKS: usize = 3_000;
    let rig = Rig::new(Duration::from_millis(100), FLAKY);
    let first = rig.run();
    let second = rig.run();
    rig.produce(0, (0..TASKS).map(failures));

    rig.target.wait_for(500);
    let third = rig.run();
    rig.target.wait_for(1_500);
    first.terminate();
    assert_eq!(first.wait(), Some(0));
    rig.target.wait_for(2_500);
    third.terminate();
    assert_eq!(third.wait(), Some(0));
    let ends = rig.ends(TASKS);

    assert_eq!(check(&rig, &ends, TASKS), 0, "attempts made twice");
    drop(second);
}

#[test]
fn a_second_signal_quits_at_once() {
    let rig = Rig::new(Duration::from_mins(1), FLAKY);
    let retide = rig.run();
    rig.produce(0, [0].into_iter());
    rig.target.wait_for(1);

    retide.terminate();
    retide.wait_for("a second signal quits at once");
    retide.terminate();

    assert_eq!(retide.wait(), Some(130));
}
