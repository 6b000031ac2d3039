use bytes::Bytes;

use retide_core::{Failure, Origin, Record, Task};

use super::*;
use crate::fact::{DeadLetter, Said};

/// A topic's place on partition 3.
fn place(topic: &str, offset: i64) -> Origin {
    Origin {
        topic: topic.into(),
        partition: 3,
        offset,
    }
}

fn millis(millis: u64) -> Timestamp {
    Timestamp::from_millis(millis)
}

/// The task of offset `offset` of the retry topic, which came in then.
fn entered(offset: i64, at: u64) -> Fact {
    Fact {
        at: place("retry.tasks", offset),
        appended: millis(at),
        what: Said::Entered {
            scene: "payment".into(),
            due: Some(millis(at)),
        },
    }
}

fn event(offset: i64, at: i64, word: &str, attempts: Option<i64>, due_at: Option<i64>) -> Fact {
    let is_failure = word == "failed";
    Fact {
        at: place("retry.events", offset),
        appended: millis(at as u64),
        what: Said::Event(Box::new(wire::Event {
            id: "a".into(),
            scene: "payment".into(),
            kind: "work".into(),
            at,
            event: word.into(),
            due_at,
            deferred_until: None,
            attempts,
            hops: None,
            outcome: is_failure.then(|| "retryable".into()),
            reason: None,
            error_class: is_failure.then(|| "http-503".into()),
            error_message: is_failure.then(|| "busy".into()),
            lateness: attempts.map(|_| wire::Lateness {
                read: 1_000,
                order: 2_500_000,
                rate: 4_000,
                ..wire::Lateness::default()
            }),
            headers_left_out: is_failure.then(|| "cookie (withheld)".into()),
            command: ["rescheduled", "cancelled", "too-late"]
                .contains(&word)
                .then(|| "c-1".into()),
            fingerprint: None,
        })),
    }
}

fn about_a_callback(mut fact: Fact) -> Fact {
    match &mut fact.what {
        Said::Event(event) => event.kind = "callback".into(),
        Said::Parked { task, .. } => task.kind = Kind::Callback,
        other => panic!("{other:?}"),
    }
    fact
}

/// A record of tier `tier` of the task that entered at offset `origin`.
fn parked(tier: usize, origin: i64, at: u64, (attempt, hops, due): (u32, u32, u64)) -> Fact {
    Fact {
        at: place("retry.delay", i64::from(hops)),
        appended: millis(at),
        what: Said::Parked {
            tier,
            task: Box::new(Task {
                id: "a".into(),
                scene: "payment".into(),
                kind: Kind::Work,
                attempt,
                due: millis(due),
                deferral: None,
                first_failed_at: millis(1_000),
                deadline: None,
                origin: place("retry.tasks", origin),
                failure: (attempt > 1).then(|| Failure::new("http-503", "busy")),
                hops,
                throttled: 0,
                exhausted: None,
                held_since: None,
                pending_since: None,
                stopped: None,
                commanded: None,
                replay: None,
                record: Record {
                    key: None,
                    value: Some(Bytes::from_static(b"{}")),
                    headers: Vec::new(),
                },
            }),
        },
    }
}

fn callback(origin: i64, at: i64, outcome: &str, attempts: i64) -> Fact {
    Fact {
        at: place("retry.callbacks", origin),
        appended: millis(at as u64),
        what: Said::Callback(Box::new(wire::Callback {
            id: "a".into(),
            scene: "payment".into(),
            kind: "work".into(),
            outcome: outcome.into(),
            reason: (outcome == "dead").then(|| "attempts-exhausted".into()),
            attempts,
            origin: place("retry.tasks", origin).to_string(),
            first_failed_at: 1_000,
            ended_at: at,
            error_class: Some("http-503".into()),
            error_message: Some("busy".into()),
            key: None,
            fingerprint: None,
        })),
    }
}

fn dead_letter(origin: i64, at: u64) -> Fact {
    Fact {
        at: place("retry.dead-letters", 7),
        appended: millis(at),
        what: Said::DeadLetter(Box::new(DeadLetter {
            kind: Kind::Work,
            scene: "payment".into(),
            origin: Some(place("retry.tasks", origin)),
            outcome: "dead".into(),
            reason: Some("attempts-exhausted".into()),
            attempts: Some(2),
            error: Some("http-503: busy".into()),
        })),
    }
}

fn told(facts: Vec<Fact>, now: u64) -> Vec<Timeline> {
    tell(facts, &Ladder::default(), millis(now))
}

/// Time and word of each moment.
fn outline(timeline: &Timeline) -> Vec<(u64, &str)> {
    let moments = timeline.moments.iter();
    moments
        .map(|moment| (moment.at.as_millis(), moment.what.as_str()))
        .collect()
}

/// Two failures, then success.
fn third_time_lucky() -> Vec<Fact> {
    vec![
        entered(5, 1_000),
        parked(0, 5, 1_021, (2, 1, 1_720)),
        parked(0, 5, 1_741, (3, 2, 2_440)),
        callback(5, 2_450, "delivered", 3),
        event(0, 1_020, "failed", Some(1), Some(1_720)),
        event(1, 1_740, "failed", Some(2), Some(2_440)),
        event(2, 2_450, "delivered", Some(3), None),
    ]
}

#[test]
fn an_end_with_a_failure_names_what_it_has_in_common_with_others() {
    let print = Some("b7b08647f7768afd".to_owned());
    let mut dead = event(1, 1_740, "dead", Some(2), None);
    let mut failed = event(0, 1_020, "failed", Some(1), Some(1_720));
    for fact in [&mut dead, &mut failed] {
        if let Said::Event(event) = &mut fact.what {
            event.fingerprint.clone_from(&print);
        }
    }
    let mut callback = callback(5, 1_740, "dead", 2);
    if let Said::Callback(callback) = &mut callback.what {
        callback.fingerprint.clone_from(&print);
    }

    let by_event = told(
        vec![entered(5, 1_000), failed, dead, callback.clone()],
        9_000,
    );
    let by_callback = told(vec![entered(5, 1_000), callback], 9_000);

    let told = by_event[0].moments.iter().map(Moment::details);
    let told: Vec<bool> = told.map(|text| text.contains("fingerprint b7b0")).collect();
    assert_eq!(told, [false, false, true, false], "{by_event:?}");
    assert_eq!(by_event[0].moments[1].fingerprint, print);
    let end = &by_callback[0].moments;
    assert!(
        end.iter()
            .any(|moment| moment.what == "dead" && moment.fingerprint == print)
    );
}

#[test]
fn a_record_that_was_dropped_is_no_task_and_is_told_with_the_one_that_had_its_id() {
    let duplicate = |offset, at, record| {
        let mut fact = event(offset, at, "duplicate", None, None);
        if let Said::Event(event) = &mut fact.what {
            event.outcome = Some("dropped".to_owned());
            event.error_class = Some("duplicate".to_owned());
            let record = place("retry.tasks", record);
            event.error_message = Some(format!(
                "{record}: the task that entered at offset 5 is under way"
            ));
        }
        fact
    };
    let timelines = told(
        vec![
            entered(5, 1_000),
            entered(8, 1_500),
            entered(9, 3_000),
            parked(0, 5, 1_021, (2, 1, 1_720)),
            callback(5, 2_450, "delivered", 2),
            event(0, 1_020, "failed", Some(1), Some(1_720)),
            duplicate(1, 1_500, 8),
            event(2, 2_450, "delivered", Some(2), None),
            // After its end.
            duplicate(3, 3_000, 9),
        ],
        9_000,
    );

    let [timeline] = &timelines[..] else {
        panic!("{timelines:?}");
    };
    assert_eq!(
        outline(timeline),
        [
            (1_000, "entered"),
            (1_020, "failed"),
            (1_500, "duplicate"),
            (2_450, "delivered"),
            (3_000, "duplicate"),
            (2_450, "callback"),
        ]
    );
    assert_eq!(timeline.state.word, "delivered");
    let told = timeline.moments[2].details();
    assert!(told.contains("dropped"), "{told}");
}

#[test]
fn a_task_that_is_replaced_is_over_and_the_record_that_has_its_place_is_another_one() {
    let mut taken = event(1, 1_500, "duplicate", None, None);
    if let Said::Event(event) = &mut taken.what {
        event.outcome = Some("replaced".to_owned());
        event.error_class = Some("duplicate".to_owned());
        let record = place("retry.tasks", 8);
        event.error_message = Some(format!(
            "{record}: takes the place of the task that entered at offset 5"
        ));
    }
    let timelines = told(
        vec![
            entered(5, 1_000),
            entered(8, 1_500),
            parked(0, 5, 1_021, (2, 1, 1_720)),
            event(0, 1_020, "failed", Some(1), Some(1_720)),
            taken,
            callback(8, 2_450, "delivered", 1),
            event(2, 2_450, "delivered", Some(1), None),
        ],
        9_000,
    );

    let words: Vec<&str> = timelines.iter().map(|of| &*of.state.word).collect();
    assert_eq!(words, ["replaced", "delivered"]);
    assert_eq!(
        outline(&timelines[0]),
        [(1_000, "entered"), (1_020, "failed"), (1_500, "duplicate")]
    );
}

#[test]
fn what_commands_have_done_is_told_with_their_names_and_also_what_came_too_late() {
    let mut moved = parked(4, 5, 1_301, (1, 1, 90_000));
    if let Said::Parked { task, .. } = &mut moved.what {
        task.commanded = "1300/0/7".parse().ok().map(Box::new);
    }
    let timelines = told(
        vec![
            entered(5, 1_000),
            parked(0, 5, 1_021, (1, 0, 60_000)),
            moved,
            callback(5, 2_000, "cancelled", 0),
            event(0, 1_020, "parked", None, Some(60_000)),
            event(1, 1_300, "rescheduled", None, Some(90_000)),
            event(2, 2_000, "cancelled", Some(0), None),
            event(3, 2_500, "too-late", None, None),
        ],
        9_000,
    );

    let [timeline] = &timelines[..] else {
        panic!("{timelines:?}");
    };
    assert_eq!(
        outline(timeline),
        [
            (1_000, "entered"),
            (1_020, "parked"),
            (1_300, "rescheduled"),
            (2_000, "cancelled"),
            (2_500, "too-late"),
            (2_000, "callback"),
        ]
    );
    assert_eq!(timeline.state.word, "cancelled");
    assert!(
        timeline.state.text.ends_with("nothing comes next"),
        "{}",
        timeline.state.text
    );
    let rescheduled = &timeline.moments[2];
    assert!(
        rescheduled.details().contains("by command c-1"),
        "{}",
        rescheduled.details()
    );
    assert!(rescheduled.place.is_some());
}

#[test]
fn an_attempt_that_is_pending_is_told_with_its_limit_and_as_made() {
    let mut later = parked(4, 5, 1_021, (1, 1, 3_601_020));
    if let Said::Parked { task, .. } = &mut later.what {
        task.pending_since = Some(millis(1_020));
    }
    let facts = vec![
        entered(5, 1_000),
        later.clone(),
        event(0, 1_020, "pending", Some(1), Some(3_601_020)),
    ];

    let timelines = told(facts.clone(), 9_000);
    let without_events = told(vec![entered(5, 1_000), later], 9_000);
    let over = [
        parked(0, 5, 61_021, (2, 2, 61_720)),
        event(1, 61_020, "failed", Some(1), Some(61_720)),
    ];
    let over = told([facts, over.into()].concat(), 61_100);

    let [timeline] = &timelines[..] else {
        panic!("{timelines:?}");
    };
    assert_eq!(outline(timeline), [(1_000, "entered"), (1_020, "pending")]);
    let details = timeline.moments[1].details();
    assert!(
        details.starts_with("attempt 1 · ") && details.contains("until 1970-01-01T01:00:01.020Z"),
        "{details}"
    );
    assert_eq!(timeline.state.word, "pending");
    assert!(
        timeline.state.text.contains(
            "attempt 1 is pending: its target answers by a command; that is given up in 59m 52s"
        ),
        "{}",
        timeline.state.text
    );
    assert_eq!(
        outline(&without_events[0]),
        [(1_000, "entered"), (1_021, "pending")]
    );
    assert_eq!(
        outline(&over[0]),
        [(1_000, "entered"), (1_020, "pending"), (61_020, "failed")]
    );
    assert_eq!(over[0].state.word, "parked");
}

#[test]
fn two_failures_and_a_success_are_told_in_order_with_their_waits() {
    let timelines = told(third_time_lucky(), 9_000);

    let [timeline] = &timelines[..] else {
        panic!("{timelines:?}");
    };
    assert_eq!(
        outline(timeline),
        [
            (1_000, "entered"),
            (1_020, "failed"),
            (1_740, "failed"),
            (2_450, "delivered"),
            (2_450, "callback"),
        ]
    );
    assert_eq!(
        timeline.moments[2].details(),
        "attempt 2 · retryable · http-503: busy · due 1970-01-01T00:00:02.440Z · waited 720ms, scheduled 700ms · late by order 2s 500ms + rate 4ms + read 1ms · without headers cookie (withheld) · in retry.delay/3/2"
    );
    assert_eq!(
        timeline.moments[3].details(),
        "after 3 attempts · waited 710ms, scheduled 700ms · late by order 2s 500ms + rate 4ms + read 1ms"
    );
    assert_eq!(
        timeline.state.text,
        "delivered after 3 attempts, 1s 450ms after it was entered; nothing comes next"
    );
    assert_eq!(timeline.notes, [""; 0]);
}

#[test]
fn the_order_in_which_records_are_found_does_not_matter() {
    let mut facts = third_time_lucky();
    facts.reverse();

    assert_eq!(told(facts, 9_000), told(third_time_lucky(), 9_000));

    let (callback, letter) = (callback(5, 1_750, "dead", 2), dead_letter(5, 1_760));
    let dead = vec![entered(5, 1_000), callback.clone(), letter.clone()];
    let expected = [
        (1_000, "entered"),
        (1_750, "gap"),
        (1_750, "dead"),
        (1_750, "callback"),
        (1_760, "dead-letter"),
    ];
    assert_eq!(outline(&told(dead, 9_000)[0]), expected);
    let turned = vec![letter, callback, entered(5, 1_000)];
    assert_eq!(outline(&told(turned, 9_000)[0]), expected);
}

#[test]
fn without_events_the_story_is_told_by_the_records_of_tiers_and_the_callback() {
    let mut facts = third_time_lucky();
    facts.retain(|fact| !matches!(fact.what, Said::Event(_)));

    let timelines = told(facts, 9_000);

    let [timeline] = &timelines[..] else {
        panic!("{timelines:?}");
    };
    assert_eq!(
        outline(timeline),
        [
            (1_000, "entered"),
            (1_021, "failed"),
            (1_741, "failed"),
            (2_450, "delivered"),
            (2_450, "callback"),
        ]
    );
    assert!(timeline.moments.iter().all(|moment| !moment.by_event));
    assert_eq!(
        timeline.moments[3].details(),
        "after 3 attempts · waited 709ms, scheduled 699ms"
    );
    assert_eq!(
        timeline.moments[1].details(),
        "attempt 1 · http-503: busy · due 1970-01-01T00:00:01.720Z · waited 21ms, scheduled 0s · in retry.delay/3/1"
    );
}

#[test]
fn an_event_that_is_missing_is_filled_in_from_the_record_of_the_tier() {
    let mut facts = third_time_lucky();
    facts.remove(4);

    let timelines = told(facts, 9_000);

    assert_eq!(
        outline(&timelines[0])[1..3],
        [(1_021, "failed"), (1_740, "failed")]
    );
    assert!(!timelines[0].moments[1].by_event);
    assert!(timelines[0].moments[2].by_event);
}

#[test]
fn an_attempt_without_any_record_is_named_as_missing() {
    let mut facts = third_time_lucky();
    // Its event, and the record it was parked in.
    facts.remove(4);
    facts.remove(1);

    let timelines = told(facts, 9_000);

    assert_eq!(
        outline(&timelines[0])[..3],
        [(1_000, "entered"), (1_740, "gap"), (1_740, "failed")]
    );
    assert!(
        timelines[0].moments[1]
            .details()
            .starts_with("of attempt 1 nothing was found"),
        "{}",
        timelines[0].moments[1].details()
    );
}

#[test]
fn an_end_without_its_event_is_told_by_the_dead_letter() {
    let facts = vec![
        entered(5, 1_000),
        event(0, 1_020, "failed", Some(1), Some(1_720)),
        dead_letter(5, 1_760),
    ];

    let timelines = told(facts, 9_000);

    assert_eq!(
        outline(&timelines[0]),
        [
            (1_000, "entered"),
            (1_020, "failed"),
            (1_760, "dead"),
            (1_760, "dead-letter"),
        ]
    );
    assert_eq!(
        timelines[0].state.text,
        "dead after 2 attempts (attempts-exhausted), 760ms after it was entered; nothing comes next, its dead letter can be produced to the retry topic again"
    );
}

#[test]
fn an_identity_used_again_is_another_story() {
    let mut facts = third_time_lucky();
    facts.push(entered(6, 5_000));
    facts.push(event(3, 5_010, "failed", Some(1), Some(5_710)));
    facts.push(callback(6, 5_720, "delivered", 2));
    facts.push(event(4, 5_720, "delivered", Some(2), None));
    // The callback says so, too late for the second one.
    if let Said::Callback(callback) = &mut facts[9].what {
        callback.first_failed_at = 5_001;
    }

    let timelines = told(facts, 9_000);

    let [first, second] = &timelines[..] else {
        panic!("{timelines:?}");
    };
    assert_eq!(*first, told(third_time_lucky(), 9_000)[0]);
    assert_eq!(
        outline(second),
        [
            (5_000, "entered"),
            (5_010, "failed"),
            (5_720, "delivered"),
            (5_720, "callback"),
        ]
    );
    assert_eq!(second.notes, [""; 0]);
}

#[test]
fn an_identity_used_twice_at_the_same_time_is_said_to_be_uncertain() {
    let mut facts = third_time_lucky();
    facts.push(entered(6, 1_500));

    let timelines = told(facts, 9_000);

    assert_eq!(timelines.len(), 2);
    for timeline in timelines {
        assert!(
            timeline
                .notes
                .iter()
                .any(|note| note.contains("events name no origin")),
            "{:?}",
            timeline.notes
        );
    }
}

#[test]
fn a_task_that_waits_is_where_it_was_parked_last() {
    let hour = 3_600_000;
    let facts = vec![
        entered(5, 1_000),
        event(0, 1_010, "parked", None, Some(1_000 + hour)),
        parked(8, 5, 1_020, (1, 1, 1_000 + hour as u64)),
    ];

    let timelines = told(facts.clone(), 61_000);
    let State {
        word,
        text,
        remaining_ms,
        ..
    } = &timelines[0].state;
    assert_eq!((word.as_str(), *remaining_ms), ("parked", Some(3_540_000)));
    assert_eq!(
        text,
        "parked in retry.delay/3/1, attempt 1 is due in 59m, at 1970-01-01T01:00:01.000Z; nothing happens before"
    );

    let late = told(facts, 3_661_000);
    assert_eq!(
        late[0].state.text,
        "parked in retry.delay/3/1, attempt 1 was due 1m ago, at 1970-01-01T01:00:01.000Z: it is under way, waits for room at its gate, or no worker runs"
    );
}

#[test]
fn a_task_far_from_due_says_when_it_hops_and_where_to() {
    let facts = vec![
        entered(5, 1_000),
        parked(8, 5, 1_020, (1, 1, 1_000 + 5_400_000)),
    ];

    let timelines = told(facts, 61_000);

    assert!(
        timelines[0]
            .state
            .text
            .ends_with("; before, at 1970-01-01T00:59:59.020Z, it hops to tier 30m"),
        "{}",
        timelines[0].state.text
    );
}

#[test]
fn a_task_that_nobody_has_come_to_is_only_entered() {
    let timelines = told(vec![entered(5, 1_000)], 2_000);

    assert_eq!(timelines[0].state.word, "entered");
    assert_eq!(outline(&timelines[0]), [(1_000, "entered")]);
}

#[test]
fn the_delivery_of_its_callback_belongs_to_the_task_that_ended() {
    let mut facts = third_time_lucky();
    let delivery = about_a_callback(parked(0, 5, 2_470, (2, 1, 3_450)));
    facts.push(delivery);
    facts.push(about_a_callback(event(
        3,
        2_460,
        "failed",
        Some(1),
        Some(3_450),
    )));

    let timelines = told(facts.clone(), 3_000);
    assert_eq!(timelines.len(), 1);
    assert_eq!(outline(&timelines[0]).last(), Some(&(2_460, "failed")));
    assert!(
        timelines[0].state.text.contains(
            "the delivery of its callback: parked in retry.delay/3/1, attempt 2 is due in 450ms"
        ),
        "{}",
        timelines[0].state.text
    );

    facts.push(about_a_callback(event(
        4,
        3_460,
        "delivered",
        Some(2),
        None,
    )));
    let timelines = told(facts, 4_000);
    assert!(
        timelines[0]
            .state
            .text
            .ends_with("the delivery of its callback ended as delivered"),
        "{}",
        timelines[0].state.text
    );
}

#[test]
fn without_any_record_of_the_entry_the_story_says_so() {
    let facts = vec![event(2, 2_450, "delivered", Some(3), None)];

    let timelines = told(facts, 9_000);

    assert_eq!(
        outline(&timelines[0]),
        [(2_450, "gap"), (2_450, "delivered")]
    );
    assert_eq!(
        timelines[0].notes,
        ["where it entered is not told by any record that was found"]
    );
}

#[test]
fn hostile_times_are_printed() {
    assert_eq!(clock(Timestamp::MAX), "9999-12-31T23:59:59.000Z");
}
