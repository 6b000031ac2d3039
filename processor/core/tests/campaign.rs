//! What a task looks like that is played back from its dead letter.

mod support;

use std::sync::Arc;

use retide_core::campaign::{Id, LINK, Replay, STRIPPED, STRIPPED_PREFIXES, Spec, replayed};
use retide_core::control::Place;
use retide_core::ramp::{FAILURE_RATE, Ramp, STEPS};
use retide_core::task::{Exhausted, Name};
use retide_core::{Failure, Header, Task, Timestamp};

/// When the letter is played back.
const NOW: Timestamp = Timestamp::from_millis(9_000);

fn header(name: &str, value: &str) -> Header {
    Header {
        name: Name::from(name.as_bytes()),
        value: Some(value.to_owned().into()),
    }
}

/// A campaign that only says how fast it goes.
fn spec() -> Spec {
    Spec {
        selector: None,
        died: None,
        ramp: Ramp::try_new(&STEPS, FAILURE_RATE).unwrap(),
        rate: None,
        scene: None,
        set_headers: Vec::new(),
        remove_headers: Vec::new(),
        edit: None,
        include_new: false,
        keep_deadline: false,
    }
}

/// The task of a letter, with these headers of its producer.
fn letter(headers: &[(&str, &str)]) -> Task {
    let mut task = support::task("order-7", "pay", Timestamp::from_millis(5_000));
    let headers = headers.iter().map(|(name, value)| header(name, value));
    task.record.headers = headers.collect();
    Task {
        attempt: 4,
        first_failed_at: Timestamp::from_millis(1_000),
        deadline: Some(Timestamp::from_millis(60_000)),
        failure: Some(Failure::new("http-503", "busy")),
        throttled: 2,
        hops: 9,
        exhausted: Some(Box::new(Exhausted {
            at: Timestamp::from_millis(4_000),
            attempts: 3,
            is_held: false,
        })),
        ..task
    }
}

fn play(letter: &Task, spec: &Spec) -> Task {
    let place = Place {
        at: NOW,
        partition: 0,
        offset: 3,
    };
    let campaign = Id {
        place,
        name: "mend".into(),
    };
    replayed(letter.clone(), spec, Replay { campaign, times: 2 }, NOW)
}

/// Names and values of its headers, in their order.
fn headers(task: &Task) -> Vec<(String, String)> {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    let all = task.record.headers.iter();
    all.map(|header| {
        let value = header.value.as_deref().unwrap_or_default();
        (text(header.name.as_bytes()), text(value))
    })
    .collect()
}

fn named(all: &[(&str, &str)]) -> Vec<(String, String)> {
    let all = all.iter();
    all.map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
        .collect()
}

#[test]
fn identity_and_payload_stay_and_all_else_begins_anew() {
    let before = letter(&[("order-no", "7"), ("order-no", "8")]);

    let after = play(&before, &spec());

    assert_eq!((&after.id, &after.scene), (&before.id, &before.scene));
    assert_eq!(after.origin, before.origin);
    assert_eq!(after.record, before.record);
    assert_eq!((after.attempt, after.due), (1, NOW));
    assert_eq!((after.first_failed_at, after.deadline), (NOW, None));
    assert_eq!((after.failure, after.exhausted), (None, None));
    assert_eq!((after.throttled, after.hops), (0, 0));
    let replay = after.replay.unwrap();
    assert_eq!((&*replay.campaign.name, replay.times), ("mend", 2));
}

#[test]
fn a_campaign_may_keep_deadlines_and_name_another_scene() {
    let before = letter(&[]);
    let spec = Spec {
        scene: Some("mended".into()),
        keep_deadline: true,
        ..spec()
    };

    let after = play(&before, &spec);

    assert_eq!(&*after.scene, "mended");
    assert_eq!(after.deadline, before.deadline);
    assert_eq!(after.first_failed_at, before.first_failed_at);
}

#[test]
fn what_belongs_to_one_way_of_a_record_does_not_travel_twice() {
    for name in STRIPPED.iter().chain(&STRIPPED_PREFIXES) {
        for name in [name.to_string(), name.to_uppercase()] {
            let before = letter(&[("kept", "1"), (&name, "secret")]);

            let mut left = headers(&play(&before, &spec()));

            // The trace goes on as a link.
            left.retain(|(name, _)| name != LINK);
            assert_eq!(left, named(&[("kept", "1")]), "{name}");
        }
    }
    let kept = [
        ("kafka_dlt-original-topic", "orders"),
        ("x-authorization", "1"),
        ("mm3", "1"),
    ];
    assert_eq!(headers(&play(&letter(&kept), &spec())), named(&kept));
}

#[test]
fn the_trace_of_the_last_life_is_a_link_however_often_a_task_is_replayed() {
    let first = play(
        &letter(&[("traceparent", "00-1"), ("tracestate", "a=b")]),
        &spec(),
    );
    assert_eq!(headers(&first), named(&[(LINK, "00-1")]));

    // Without a trace of its own, it keeps the link that it has.
    let second = play(&first, &spec());
    assert_eq!(headers(&second), named(&[(LINK, "00-1")]));

    let mut third = second;
    third.record.headers.push(header("Traceparent", "00-2"));
    assert_eq!(headers(&play(&third, &spec())), named(&[(LINK, "00-2")]));
}

#[test]
fn headers_are_set_and_removed_by_name_in_any_case() {
    let before = letter(&[
        ("Tenant", "1"),
        ("tenant", "2"),
        ("Region", "eu"),
        ("kept", "1"),
    ]);
    let spec = Spec {
        set_headers: vec![header("tenant", "7"), header("new", "1")],
        remove_headers: vec![Name::from(b"region".as_slice())],
        ..spec()
    };

    let after = play(&before, &spec);

    let expected = named(&[("kept", "1"), ("tenant", "7"), ("new", "1")]);
    assert_eq!(headers(&after), expected);
    assert!(Arc::ptr_eq(&after.id, &before.id));
}
