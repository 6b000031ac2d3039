//! The rules of a task's headers, through the public functions only.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use retide_avro::headers::{
    self, Headless, LATE_BY, ingest, parked, write_dead_letter, write_poison, write_task,
};
use retide_avro::schema::Schema;
use retide_avro::schemas::OWN;
use retide_avro::{
    Arrival, ENVELOPE_AVRO, ENVELOPE_JSON, Intake, RETRY_TASK_FINGERPRINT, RETRY_TASK_FORMER,
    RETRY_TASK_SCHEMA, Schemas,
};
use retide_core::campaign::{Id, Replay};
use retide_core::control::Place;
use retide_core::wait::{Cause, Waited};
use retide_core::{
    Deferral, Ended, Exhausted, Failure, Header, Kind, Omitted, Origin, Poison, Reason, Record,
    Source, Stopped, Task, Terminal, Timestamp, Wait, scene,
};

/// Name and value of a header.
type Pair<'a> = (&'a str, &'a str);

const NOW_MS: u64 = 1_700_000_000_000;

fn now() -> Timestamp {
    Timestamp::from_millis(NOW_MS)
}

fn origin() -> Origin {
    Origin {
        topic: "retry.tasks".into(),
        partition: 3,
        offset: 42,
    }
}

fn header(name: impl AsRef<[u8]>, value: &[u8]) -> Header {
    Header {
        name: name.as_ref().into(),
        value: Some(Bytes::copy_from_slice(value)),
    }
}

fn record(value: &[u8], headers: &[(&str, &str)]) -> Record {
    Record {
        key: Some(Bytes::from_static(b"key")),
        value: Some(Bytes::copy_from_slice(value)),
        headers: headers
            .iter()
            .map(|(name, value)| header(name, value.as_bytes()))
            .collect(),
    }
}

fn written(task: &Task) -> Record {
    let mut headers = Vec::new();
    write_task(task, &mut |name, value| {
        headers.push(Header {
            name: name.into(),
            value: value.map(Bytes::copy_from_slice),
        });
    });
    Record {
        headers,
        ..task.record.clone()
    }
}

/// `RetryTask` in Avro, by the library's own writer.
fn avro_envelope(scene: &str, due_at: Option<i64>) -> Vec<u8> {
    use apache_avro::types::Value;
    let some = |value| Value::Union(1, Box::new(value));
    let null = || Value::Union(0, Box::new(Value::Null));
    let schema = apache_avro::Schema::parse_str(RETRY_TASK_SCHEMA).unwrap();
    let fields = [
        ("scene", Value::String(scene.to_owned())),
        ("id", some(Value::String("order-1".to_owned()))),
        ("payload", Value::Bytes(b"pay".to_vec())),
        ("contentType", some(Value::String("text/plain".to_owned()))),
        (
            "headers",
            Value::Array(vec![Value::Record(vec![
                ("name".to_owned(), Value::String("trace".to_owned())),
                ("value".to_owned(), some(Value::Bytes(vec![0xff]))),
            ])]),
        ),
        ("key", null()),
        (
            "dueAt",
            due_at.map_or_else(null, |due| some(Value::TimestampMillis(due))),
        ),
        ("delayMs", null()),
        ("deadlineAt", null()),
    ];
    let fields = fields.map(|(name, value)| (name.to_owned(), value));
    apache_avro::to_avro_datum(&schema, Value::Record(fields.to_vec())).unwrap()
}

fn single_object(datum: &[u8]) -> Vec<u8> {
    [&[0xc3, 0x01][..], &RETRY_TASK_FINGERPRINT, datum].concat()
}

fn confluent(datum: &[u8]) -> Vec<u8> {
    [&[0, 0, 0, 0, 7][..], datum].concat()
}

#[test]
fn the_fingerprints_are_those_of_the_schema() {
    let schema = Schema::parse(RETRY_TASK_SCHEMA, &[]).unwrap();
    let former = apache_avro::Schema::parse_str(RETRY_TASK_SCHEMA).unwrap();

    let former = former.fingerprint::<apache_avro::rabin::Rabin>().bytes;

    assert_eq!(schema.fingerprint(), RETRY_TASK_FINGERPRINT);
    assert_eq!(former, RETRY_TASK_FORMER);
}

#[test]
fn an_envelope_with_either_fingerprint_is_opened() {
    for print in [RETRY_TASK_FINGERPRINT, RETRY_TASK_FORMER] {
        let value = [&[0xc3, 0x01][..], &print, &avro_envelope("pay", None)].concat();

        let task = ingest(record(&value, &[]), origin(), now()).unwrap();

        assert_eq!((&*task.scene, &*task.id), ("pay", "order-1"));
    }
}

#[test]
fn a_callback_that_is_parked_still_says_how_its_task_ended() {
    let mut task = ingest(record(b"{}", &[("retry-scene", "pay")]), origin(), now()).unwrap();
    task.kind = Kind::Callback;
    task.record.headers.push(header("retry-outcome", b"dead"));

    let resumed = parked(written(&task), origin()).unwrap();

    assert_eq!(resumed.record, task.record);
}

#[test]
fn a_task_does_not_hold_the_room_of_the_headers_that_it_was_read_from() {
    let task = ingest(record(b"{}", &[("retry-scene", "pay")]), origin(), now()).unwrap();

    let resumed = parked(written(&task), origin()).unwrap();

    assert_eq!(task.record.headers.capacity(), 0);
    assert_eq!(resumed.record.headers.capacity(), 0);
}

#[test]
fn a_producer_cannot_set_what_only_retide_may() {
    let spoofed = record(
        b"v",
        &[
            ("a", "1"),
            ("retry-scene", "pay"),
            ("retry-attempt", "9"),
            ("retry-origin", "x/1/1"),
            ("retry-first-failed-at", "1"),
            ("retry-error", "a: b"),
            ("retry-error-host", "c"),
            ("retry-hops", "9"),
            ("retry-held-since", "9"),
            ("retry-pending-since", "9"),
            ("retry-command", "9/9/9"),
            ("retry-kind", "callback"),
            ("a", "2"),
        ],
    );

    let task = ingest(spoofed, origin(), now()).unwrap();

    assert_eq!(task.attempt, 1);
    assert_eq!(task.origin, origin());
    assert_eq!(task.first_failed_at, now());
    assert_eq!((task.failure, task.hops, task.kind), (None, 0, Kind::Work));
    assert_eq!((task.commanded, task.pending_since), (None, None));
    assert_eq!(task.id, headers::identity(&origin()));
    assert_eq!(task.record, record(b"v", &[("a", "1"), ("a", "2")]));
}

#[test]
fn a_record_that_its_target_puts_back_counts_on() {
    let back = |more: &[(&str, &str)]| {
        let given = [
            ("retry-scene", "pay"),
            ("retry-id", "order-7"),
            ("retry-attempt", "3"),
            ("retry-due-at", "1699999999000"),
            ("retry-origin", "x/1/1"),
            ("retry-round", "3"),
        ];
        ingest(record(b"v", &[&given, more].concat()), origin(), now())
    };

    let task = back(&[]).unwrap();
    let later = back(&[("retry-delay-ms", "5000")]).unwrap();
    let broken = back(&[("retry-round", "many")]).unwrap_err();

    assert_eq!((&*task.id, task.attempt, task.due), ("order-7", 4, now()));
    assert_eq!(task.record, record(b"v", &[]));
    // The due time is that of the attempt it was given for.
    assert_eq!(later.due, Timestamp::from_millis(NOW_MS + 5_000));
    assert_eq!(broken.reason, Reason::BadHeader);
}

#[test]
fn due_times_follow_the_table() {
    let past = (NOW_MS - 364 * 24 * 3_600_000).to_string();
    let later = (NOW_MS + 5).to_string();
    let later_still = Timestamp::from_millis(NOW_MS + 2_000);
    let edge = scene::MAX_DELAY.as_millis().to_string();
    let beyond = (scene::MAX_DELAY.as_millis() + 1).to_string();
    let huge = u64::MAX.to_string();
    let table: &[(&[Pair], Result<Timestamp, Reason>)] = &[
        (&[], Ok(now())),
        (&[("retry-due-at", &past)], Ok(now())),
        (&[("retry-due-at", "2023-11-14T22:13:20Z")], Ok(now())),
        (&[("retry-due-at", "5")], Err(Reason::BadDue)),
        (&[("retry-due-at", "0")], Err(Reason::BadDue)),
        (&[("retry-due-at", "1700000000")], Err(Reason::BadDue)),
        (&[("retry-delay-ms", " 2000.0\n")], Ok(later_still)),
        (
            &[("retry-due-at", &later)],
            Ok(Timestamp::from_millis(NOW_MS + 5)),
        ),
        (&[("retry-delay-ms", "0")], Ok(now())),
        (&[("retry-delay-ms", &edge)], Ok(now() + scene::MAX_DELAY)),
        (&[("retry-delay-ms", &beyond)], Err(Reason::DueTooFar)),
        (&[("retry-due-at", &huge)], Err(Reason::DueTooFar)),
        (&[("retry-due-at", "-1")], Err(Reason::BadDue)),
        (&[("retry-delay-ms", "-1")], Err(Reason::BadDue)),
        (&[("retry-due-at", "+1")], Err(Reason::BadDue)),
        (&[("retry-due-at", "")], Err(Reason::BadDue)),
        (&[("retry-due-at", "soon")], Err(Reason::BadDue)),
        (&[("retry-delay-ms", "1.5")], Err(Reason::BadDue)),
        (
            &[("retry-due-at", "5"), ("retry-delay-ms", "5")],
            Err(Reason::BadDue),
        ),
        // The last one counts.
        (
            &[("retry-due-at", "soon"), ("retry-due-at", &past)],
            Ok(now()),
        ),
    ];

    for (headers, expected) in table {
        let due = ingest(record(b"v", headers), origin(), now())
            .map(|task| task.due)
            .map_err(|poison| poison.reason);

        assert_eq!(due, *expected, "{headers:?}");
    }
}

#[test]
fn bad_headers_are_refused_and_the_record_stays_untouched() {
    let long_scene = "s".repeat(headers::MAX_SCENE + 1);
    let long_id = "i".repeat(headers::MAX_ID + 1);
    let table: &[(&str, &[u8])] = &[
        ("retry-scene", b"\xff"),
        ("retry-scene", long_scene.as_bytes()),
        ("retry-id", b""),
        ("retry-id", b"a\nb"),
        ("retry-id", long_id.as_bytes()),
        ("retry-deadline-at", b"-4"),
    ];

    for (name, value) in table {
        let mut bad = record(b"v", &[("x", "1"), ("retry-attempt", "7")]);
        bad.headers.push(header(name, value));
        let poison = ingest(bad.clone(), origin(), now()).unwrap_err();

        assert_eq!(poison.reason, Reason::BadHeader, "{name}");
        assert_eq!(poison.record, bad);
        assert_eq!(poison.id, headers::identity(&origin()));
    }
}

#[test]
fn what_converters_put_around_a_value_is_none_of_it() {
    let quoted = format!("\"{}\"", NOW_MS + 5);
    for scene in ["pay", " pay", "\"pay\"", "\u{feff}\"pay\" "] {
        let plain = record(b"x", &[("retry-scene", scene), ("retry-due-at", &quoted)]);
        let task = ingest(plain, origin(), now()).unwrap();
        assert_eq!(&*task.scene, "pay", "{scene:?}");
        assert_eq!(task.due, Timestamp::from_millis(NOW_MS + 5));

        let value = br#"{"scene":"pay","payload":1}"#;
        let headers = [("content-type", ENVELOPE_JSON), ("retry-scene", scene)];
        let task = ingest(record(value, &headers), origin(), now()).unwrap();
        assert_eq!(&*task.scene, "pay", "{scene:?}");
    }
}

#[test]
fn a_header_that_is_no_text_is_refused_with_what_it_is() {
    let long = |value: u64| value.to_be_bytes().to_vec();
    let binary = "(a number in binary? its digits are meant); text in UTF-8 expected";
    for (name, value, why) in [
        ("retry-scene", None, "retry-scene has no value; leave it out, or give it one".to_owned()),
        ("retry-id", None, "retry-id has no value; leave it out, or give it one".to_owned()),
        ("retry-due-at", None, "retry-due-at has no value; leave it out, or give it one".to_owned()),
        ("retry-id", Some(vec![]), "retry-id is empty; leave it out, or name one".to_owned()),
        ("retry-id", Some(vec![b'x'; 257]), "retry-id has 257 bytes; at most 256 expected".to_owned()),
        ("retry-id", Some(b"a\nb".to_vec()), r#"retry-id is "a\nb"; one line expected"#.to_owned()),
        ("retry-id", Some(b"\xe9".to_vec()), "retry-id is the bytes e9; text in UTF-8 expected".to_owned()),
        // As Java's LongSerializer writes 2000, and 100, which is text by chance.
        ("retry-delay-ms", Some(long(2_000)), format!("retry-delay-ms is the bytes 00 00 00 00 00 00 07 d0 {binary}")),
        ("retry-delay-ms", Some(long(100)), format!("retry-delay-ms is the bytes 00 00 00 00 00 00 00 64 {binary}")),
        ("retry-id", Some(vec![0, 0, 0, 7]), format!("retry-id is the bytes 00 00 00 07 {binary}")),
        ("retry-scene", Some(b"p\0a\0y\0".to_vec()), "retry-scene is the bytes 70 00 61 00 79 00 (UTF-16?); text in UTF-8 expected".to_owned()),
        ("retry-due-at", Some(b"1795905406.61".to_vec()), r#"retry-due-at is "1795905406.61"; milliseconds since 1970 expected (seconds with a fraction? whole milliseconds are meant)"#.to_owned()),
        ("retry-due-at", Some(b"2026-12-24T18:00:00".to_vec()), r#"retry-due-at is "2026-12-24T18:00:00"; milliseconds since 1970 expected (it does not say its offset from UTC, such as Z)"#.to_owned()),
    ] {
        let mut record = record(b"x", &[]);
        record.headers = vec![Header { name: name.into(), value: value.map(Bytes::from) }];
        let poison = ingest(record, origin(), now()).unwrap_err();
        assert_eq!(&*poison.detail.message, why);
    }
}

#[test]
fn a_name_of_retides_is_known_in_any_case() {
    let later = NOW_MS + 600_000;
    let given = [
        ("Retry-Scene", "pay"),
        ("RETRY-ID", "order-1"),
        ("Retry-Due-At", &*later.to_string()),
        ("retry-Attempt", "9"),
        ("Retry-Count", "3"),
    ];

    let task = ingest(record(b"v", &given), origin(), now()).unwrap();
    let poison = ingest(record(b"v", &[("Retry-Delay-Ms", "soon")]), origin(), now());

    assert_eq!((&*task.scene, &*task.id), ("pay", "order-1"));
    assert_eq!(task.due, Timestamp::from_millis(later));
    assert_eq!(task.attempt, 1);
    assert_eq!(task.record, record(b"v", &[("Retry-Count", "3")]));
    assert_eq!(poison.unwrap_err().reason, Reason::BadDue);
    assert_eq!(parked(written(&task), origin()), Ok(task));
}

#[test]
fn a_name_that_is_no_text_is_refused_and_the_record_stays_untouched() {
    let mut bad = record(b"v", &[("retry-scene", "pay"), ("retry-id", "order-1")]);
    bad.headers.push(header(b"caf\xe9", b"x"));

    let poison = ingest(bad.clone(), origin(), now()).unwrap_err();

    assert_eq!(poison.reason, Reason::BadHeader);
    assert_eq!(&*poison.detail.message, r"header name caf\xe9 is not UTF-8");
    assert_eq!((&*poison.scene, &*poison.id), ("pay", "order-1"));
    assert_eq!(poison.record, bad);
}

#[test]
fn a_name_goes_on_whole_although_it_has_a_nul() {
    let odd = [("a\0b", "x"), ("retry-scene\0x", "y"), ("", "z")];
    let given = [&[("retry-scene", "pay")][..], &odd].concat();

    let task = ingest(record(b"v", &given), origin(), now()).unwrap();

    assert_eq!(task.record, record(b"v", &odd));
    assert_eq!(parked(written(&task), origin()), Ok(task));
}

#[test]
fn headers_that_could_not_be_read_are_not_taken_for_none() {
    let found = record(b"v", &[]);

    let poison = headers::headless(Headless(found.clone()), origin());

    assert_eq!(poison.reason, Reason::TooManyHeaders);
    assert_eq!(poison.origin, origin());
    assert_eq!(poison.record, found);
}

#[test]
fn a_parked_callback_that_cannot_run_is_still_one() {
    let mut task = ingest(record(b"{}", &[("retry-scene", "pay")]), origin(), now()).unwrap();
    task.kind = Kind::Callback;
    let place = Place {
        at: now(),
        partition: 0,
        offset: 3,
    };
    let name = "mend".into();
    let replay = Box::new(Replay {
        campaign: Id { place, name },
        times: 2,
    });
    task.replay = Some(replay.clone());
    let mut broken = written(&task);
    broken.headers.push(header("retry-due-at", b"soon"));
    let spoofed = [
        ("retry-kind", "callback"),
        ("retry-campaign", "mend/0/0/3"),
        ("retry-replayed", "2"),
    ];
    let spoofed = record(b"{}", &spoofed);
    let aside = |record, source| headers::set_aside(record, source, origin(), 2);

    let poison = parked(broken.clone(), origin()).unwrap_err();
    let (parked, fresh) = (
        aside(broken, Source::Tier(1)),
        aside(spoofed, Source::Tasks),
    );

    assert_eq!((poison.kind, &poison.id), (Kind::Callback, &task.id));
    assert_eq!((parked.kind, &parked.id), (Kind::Callback, &task.id));
    assert_eq!(parked.reason, Reason::Crashed);
    assert_eq!(parked.record, Record::default());
    assert_eq!(poison.replay, Some(replay.clone()));
    assert_eq!(parked.replay, Some(replay));
    assert_eq!((fresh.kind, fresh.replay), (Kind::Work, None));
}

#[test]
fn a_dead_letter_has_no_more_headers_than_every_client_reads() {
    let many = Record {
        headers: vec![header("x", b""); headers::READABLE - 1],
        ..record(b"v", &[])
    };
    let poison = ingest(many, origin(), now()).unwrap_err();
    let ended = Ended {
        id: poison.id.clone(),
        scene: poison.scene.clone(),
        kind: Kind::Work,
        terminal: Terminal::Dead,
        reason: Some(poison.reason),
        attempts: 0,
        origin: origin(),
        first_failed_at: now(),
        at: now(),
        failure: Some(poison.detail.clone()),
        key: None,
        omitted: Omitted::Nothing,
    };

    let mut count = 0;
    write_poison(&poison, &ended, &mut |_, _| count += 1);

    assert!(count <= headers::READABLE, "{count}");
}

#[test]
fn more_than_512_headers_are_refused() {
    let many = |count| Record {
        headers: vec![header("x", b""); count],
        ..Record::default()
    };

    let poison = ingest(many(513), origin(), now()).unwrap_err();

    assert!(ingest(many(512), origin(), now()).is_ok());
    assert_eq!(poison.reason, Reason::TooManyHeaders);
}

#[test]
fn a_dead_letter_of_many_headers_can_be_produced_again() {
    let mut full = record(
        b"v",
        &[
            ("retry-scene", "pay"),
            ("retry-deadline-at", "1700000000005"),
        ],
    );
    full.headers.extend(vec![header("x", b""); 512]);
    let task = ingest(full, origin(), now()).unwrap();
    let ended = Ended {
        id: task.id.clone(),
        scene: task.scene.clone(),
        kind: task.kind,
        terminal: Terminal::Dead,
        reason: Some(Reason::Rejected),
        attempts: 1,
        origin: origin(),
        first_failed_at: now(),
        at: now(),
        failure: Some(Failure::new("http-400", "no")),
        key: None,
        omitted: Omitted::Nothing,
    };
    let mut headers = Vec::new();
    write_dead_letter(&task, &ended, &mut |name, value| {
        headers.push(header(name, value.unwrap()));
    });
    let letter = Record {
        headers,
        ..task.record.clone()
    };

    let again = ingest(letter, origin(), now()).unwrap();

    assert_eq!(again.record, task.record);
}

#[test]
fn the_content_type_of_an_envelope_counts_as_a_header() {
    let inner = vec![r#"{"name":"x"}"#; 512].join(",");
    let envelope = |content_type: &str| {
        let value = format!(r#"{{"scene":"pay"{content_type},"headers":[{inner}]}}"#);
        let record = record(value.as_bytes(), &[("content-type", ENVELOPE_JSON)]);
        ingest(record, origin(), now()).map(|task| task.record.headers.len())
    };

    let refused = envelope(r#","contentType":"text/plain""#).unwrap_err();

    assert_eq!(envelope(""), Ok(512));
    assert_eq!(refused.reason, Reason::TooManyHeaders);
}

/// Reads a record where the schema of [`confluent`] is known to be ours.
fn ingest_known(record: Record) -> Result<Task, Box<Poison>> {
    let mut schemas = Schemas::default();
    schemas.add(Some(7), OWN).unwrap();
    let intake = Intake {
        schemas: Arc::new(schemas),
        ..Intake::default()
    };
    let arrival = Arrival {
        origin: origin(),
        entered: now(),
        stamped: now(),
    };
    intake.ingest(record, arrival)
}

#[test]
fn an_envelope_is_unwrapped_in_every_frame() {
    let datum = avro_envelope("pay", Some(NOW_MS as i64 + 9));
    let json = format!(
        r#"{{"scene":"pay","id":"order-1","payload":"pay","contentType":"text/plain",
            "headers":[{{"name":"trace","valueBase64":"/w=="}}],"dueAt":{}}}"#,
        NOW_MS + 9
    );
    let values = [
        (single_object(&datum), "application/avro"),
        (confluent(&datum), "application/avro"),
        (confluent(&datum), ENVELOPE_AVRO),
        (json.into_bytes(), ENVELOPE_JSON),
    ];

    for (value, content_type) in values {
        let wrapped = record(&value, &[("x", "1"), ("content-type", content_type)]);
        let task = ingest_known(wrapped).unwrap();

        let mut plain = record(b"pay", &[("x", "1"), ("content-type", "text/plain")]);
        plain.headers.push(header("trace", b"\xff"));
        assert_eq!((&*task.scene, &*task.id), ("pay", "order-1"));
        assert_eq!(task.due, Timestamp::from_millis(NOW_MS + 9));
        assert_eq!(task.record, plain);
    }
}

#[test]
fn an_envelope_whose_payload_is_json_says_so_unless_its_producer_does() {
    let content_types = |fields: &str| {
        let value = format!(r#"{{"scene":"pay",{fields}}}"#);
        let record = record(value.as_bytes(), &[("content-type", ENVELOPE_JSON)]);
        let task = ingest(record, origin(), now()).expect("a task");
        let headers = task.record.headers.into_iter();
        let headers = headers.filter(|header| header.name == "content-type");
        headers
            .map(|header| String::from_utf8(header.value.expect("a value").to_vec()).expect("text"))
            .collect::<Vec<_>>()
    };

    let json = ["application/json"];
    for payload in [
        r#"{"a":1}"#,
        "[1]",
        "7",
        "true",
        r#""{\"a\":1}""#,
        r#"" [] ""#,
    ] {
        assert_eq!(
            content_types(&format!(r#""payload":{payload}"#)),
            json,
            "{payload}"
        );
    }
    assert_eq!(content_types(r#""payloadBase64":"eyJhIjoxfQ==""#), json);
    for payload in [r#""text""#, r#""7""#, r#""{""#, "null"] {
        let found = content_types(&format!(r#""payload":{payload}"#));
        assert!(found.is_empty(), "{payload}: {found:?}");
    }
    let said = content_types(r#""payload":{"a":1},"contentType":"text/plain""#);
    assert_eq!(said, ["text/plain"]);
    let header = content_types(
        r#""payload":{"a":1},"headers":[{"name":"content-type","value":"text/plain"}]"#,
    );
    assert_eq!(header, ["text/plain"]);
}

#[test]
fn frames_of_other_registries_are_named_by_their_first_bytes() {
    let glue = "0300b7b4a7f0a19f4b3c8e5d6f7a8b9c0d1e0670617902";
    let table = [
        (
            "00000000000000006706706179",
            "00 00 00 00 00 00 00 00 (a frame of the Apicurio registry with 8 bytes, id 103)",
        ),
        (
            glue,
            "03 00 b7 b4 a7 f0 a1 9f (a frame of the AWS Glue registry)",
        ),
        ("06706179020e6f72646572", "06 70 61 79 02 0e 6f 72"),
    ];
    for (value, named) in table {
        let digit = |at| u8::from_str_radix(&value[at..at + 2], 16).unwrap();
        let value: Vec<u8> = (0..value.len()).step_by(2).map(digit).collect();
        let poison = ingest_known(record(&value, &[("content-type", ENVELOPE_AVRO)])).unwrap_err();

        let why = &poison.detail.message;
        assert_eq!(poison.reason, Reason::BadEnvelope);
        assert!(why.contains(named), "{why}");
    }
}

#[test]
fn a_broken_envelope_is_refused_only_if_it_surely_is_one() {
    let datum = avro_envelope("pay", None);
    let cut = &datum[..datum.len() - 1];

    let reason = |value: &[u8], headers: &[(&str, &str)]| {
        ingest_known(record(value, headers))
            .map(|task| task.scene.to_string())
            .map_err(|poison| poison.reason)
    };

    let json = &[("content-type", ENVELOPE_JSON)];
    let avro = &[("content-type", ENVELOPE_AVRO)];
    assert_eq!(reason(&single_object(cut), &[]), Err(Reason::BadEnvelope));
    assert_eq!(reason(&confluent(cut), avro), Err(Reason::BadEnvelope));
    assert_eq!(reason(b"{", json), Err(Reason::BadEnvelope));
    assert_eq!(reason(b"{\"scene\":\"\"}", json), Err(Reason::BadEnvelope));
    assert_eq!(reason(&confluent(cut), &[]), Err(Reason::BadEnvelope));
    // A frame of whatever schema is no payload for the scene `default`; one byte is no frame, and an image has none.
    assert_eq!(reason(b"\0plain", &[]), Err(Reason::BadEnvelope));
    assert_eq!(reason(b"\0", &[]), Ok(String::new()));
    let image = &[("content-type", "image/png")];
    assert_eq!(reason(b"\0plain", image), Ok(String::new()));
    // A scene makes no payload of what our fingerprint, or a known schema, says is an envelope; of any other frame it does.
    let scene = &[("retry-scene", "mine")];
    assert_eq!(reason(&single_object(cut), scene), Err(Reason::BadEnvelope));
    assert_eq!(reason(&confluent(cut), scene), Err(Reason::BadEnvelope));
    assert_eq!(reason(b"\0plain", scene), Ok("mine".to_owned()));
}

#[test]
fn poison_keeps_its_headers_and_ours_come_last() {
    let bad = record(
        b"v",
        &[("retry-origin", "theirs"), ("retry-due-at", "soon")],
    );
    let poison = ingest(bad.clone(), origin(), now()).unwrap_err();
    let ended = Ended {
        id: poison.id.clone(),
        scene: poison.scene.clone(),
        kind: Kind::Work,
        terminal: Terminal::Dead,
        reason: Some(poison.reason),
        attempts: 0,
        origin: origin(),
        first_failed_at: now(),
        at: now(),
        failure: Some(poison.detail.clone()),
        key: None,
        omitted: Omitted::Nothing,
    };

    let mut headers = Vec::new();
    write_poison(&poison, &ended, &mut |name, value| {
        headers.push(header(name, value.unwrap()));
    });

    let last = |name: &str| headers.iter().rfind(|header| header.name == name).unwrap();
    assert_eq!(headers[..2], bad.headers[..]);
    assert_eq!(
        last("retry-origin").value.as_deref(),
        Some(&b"retry.tasks/3/42"[..])
    );
    assert_eq!(last("retry-reason").value.as_deref(), Some(&b"bad-due"[..]));
    assert_eq!(last("retry-outcome").value.as_deref(), Some(&b"dead"[..]));
}

fn any_bytes() -> impl Strategy<Value = Option<Bytes>> {
    option::of(vec(any::<u8>(), 0..40).prop_map(Bytes::from))
}

fn any_record() -> impl Strategy<Value = Record> {
    let headers = vec(("[a-z-]{0,8}", any_bytes()), 0..6).prop_map(|headers| {
        headers
            .into_iter()
            .map(|(name, value)| Header {
                name: name.into(),
                value,
            })
            .collect()
    });
    (any_bytes(), any_bytes(), headers).prop_map(|(key, value, headers)| Record {
        key,
        value,
        headers,
    })
}

prop_compose! {
    fn any_task()(
        id in "[^\\p{Cc}]{1,40}",
        scene in "[^\\p{Cc}]{0,20}",
        callback in any::<bool>(),
        attempt in 1..=u32::MAX,
        times in (0..1_u64 << 50, 0..1_u64 << 50, option::of(0..1_u64 << 50)),
        deferral in option::of((0..1_u64 << 50, prop::array::uniform3(0..1_u64 << 40))),
        place in ("[a-z./]{1,20}", any::<i32>(), any::<i64>()),
        failure in option::of((
            "(?s)[a-z: \n-]{0,80}", ".{0,300}", option::of("[a-z0-9.:\\[\\]-]{1,60}"),
        )),
        hops in any::<u32>(),
        throttled in any::<u32>(),
        held in option::of(0..1_u64 << 50),
        pending in option::of(0..1_u64 << 50),
        stopped in option::of((0..1_u64 << 40, prop::array::uniform2(option::of(0..1_u64 << 50)))),
        exhausted in option::of((0..1_u64 << 50, any::<u32>(), any::<bool>())),
        commanded in option::of((0..1_u64 << 50, any::<i32>(), any::<i64>())),
        record in any_record(),
    ) -> Task {
        Task {
            id: id.into(),
            scene: scene.into(),
            kind: if callback { Kind::Callback } else { Kind::Work },
            attempt,
            due: Timestamp::from_millis(times.0),
            deferral: deferral.map(|(until, [rebalance, agenda, order])| {
                let waited = Waited { order, ..Waited::default() };
                let wait = Wait { rebalance, agenda, waited, ..Wait::default() };
                let (due, until) = (Timestamp::from_millis(times.0), Timestamp::from_millis(until));
                Box::new(Deferral::new(due, wait, until, Cause::Breaker))
            }),
            first_failed_at: Timestamp::from_millis(times.1),
            deadline: times.2.map(Timestamp::from_millis),
            origin: Origin { topic: place.0.into(), partition: place.1, offset: place.2 },
            failure: failure.map(|(class, message, host)| {
                Failure::new(&class, &message).of_host(host.map(Into::into))
            }),
            throttled: throttled % attempt,
            exhausted: exhausted.map(|(at, attempts, is_held)| {
                let at = Timestamp::from_millis(at);
                Box::new(Exhausted { at, attempts: attempts % attempt, is_held })
            }),
            hops,
            held_since: held.map(Timestamp::from_millis),
            pending_since: pending.map(Timestamp::from_millis),
            stopped: stopped.map(|(before, instants)| {
                let [since, to] = instants.map(|instant| instant.map(Timestamp::from_millis));
                Box::new(Stopped { since, before: Duration::from_millis(before), to })
            }),
            commanded: commanded.map(|(at, partition, offset)| {
                Box::new(Place { at: Timestamp::from_millis(at), partition, offset })
            }),
            replay: commanded.map(|(at, partition, offset)| {
                let place = Place { at: Timestamp::from_millis(at), partition, offset };
                let campaign = Id { name: "mend".into(), place };
                Box::new(Replay { campaign, times: hops })
            }),
            record,
        }
    }
}

/// Flips, cuts and inserts.
fn mutate(bytes: &mut Vec<u8>, at: usize, byte: u8, how: u8) {
    let at = at % (bytes.len() + 1);
    match how % 3 {
        0 if at < bytes.len() => bytes[at] = byte,
        1 => bytes.truncate(at),
        _ => bytes.insert(at, byte),
    }
}

#[test]
fn a_parked_task_of_an_earlier_version_was_never_deferred_and_an_unknown_cause_is_the_reads() {
    let mut task = ingest(record(b"{}", &[("retry-scene", "pay")]), origin(), now()).unwrap();
    assert_eq!(parked(written(&task), origin()).unwrap().deferral, None);
    let until = task.due + Duration::from_mins(1);
    let deferral = Deferral::new(task.due, Wait::default(), until, Cause::Breaker);
    task.deferral = Some(Box::new(deferral));
    let mut later = written(&task);
    let text = |header: &Header| header.value.clone().unwrap_or_default();
    let mut late_by = later.headers.iter_mut();
    let late_by = late_by.rfind(|header| header.name == LATE_BY).unwrap();
    assert_eq!(text(late_by), "breaker=60000000");

    late_by.value = Some("breaker=1000 moon=59999000".into());

    let read = parked(later, origin()).unwrap();
    assert_eq!(read.due, task.due);
    let wait = read.deferral.unwrap().wait;
    assert_eq!((wait.waited.breaker, wait.read), (1_000, 59_999_000));
    assert_eq!(wait.total(), Duration::from_mins(1));
}

proptest! {
    #[test]
    fn what_is_written_is_read_back_equal(task in any_task()) {
        let read = parked(written(&task), origin());

        prop_assert_eq!(read, Ok(task));
    }

    #[test]
    fn no_time_comes_back_early(micros in any::<u64>(), task in any_task()) {
        let task = Task { due: Timestamp::from_micros(micros), ..task };

        let read = parked(written(&task), origin()).unwrap();

        prop_assert!(read.due >= task.due);
        prop_assert!(read.due.since(task.due).as_micros() < 1_000);
    }

    #[test]
    fn a_missing_or_broken_header_never_panics_and_loses_nothing(
        task in any_task(), which in any::<usize>(), value in any_bytes(),
    ) {
        let mut record = written(&task);
        let which = which % record.headers.len();
        record.headers[which].value = value;
        for result in [parked(record.clone(), origin()), ingest(record.clone(), origin(), now())] {
            if let Err(poison) = result {
                prop_assert_eq!(&poison.record, &record);
            }
        }
        let name = record.headers.remove(which).name;
        let optional = [
            headers::DEADLINE_AT,
            headers::ERROR,
            headers::ERROR_HOST,
            headers::DEFERRED_UNTIL,
            LATE_BY,
            headers::HELD_SINCE,
            headers::EXHAUSTED,
            headers::PENDING_SINCE,
            headers::STOPPED,
            headers::COMMAND,
            headers::THROTTLED,
            headers::CAMPAIGN,
            headers::REPLAYED,
        ];
        let optional = optional.contains(&name.as_str().unwrap());
        if headers::is_own(name.as_bytes()) && !optional {
            prop_assert!(parked(record, origin()).is_err());
        }
    }

    #[test]
    fn no_bytes_panic(
        record in any_record(), own in 0..headers::NAMES.len(), value in any_bytes(),
    ) {
        let mut record = record;
        record.headers.push(Header { name: headers::NAMES[own].into(), value });
        let _ = parked(record.clone(), origin());
        if let Err(poison) = ingest(record.clone(), origin(), now()) {
            prop_assert_eq!(poison.record, record);
        }
    }

    #[test]
    fn no_mutated_envelope_panics(
        edits in vec((any::<usize>(), any::<u8>(), any::<u8>()), 1..6), frame in 0..3_u8,
    ) {
        let json = br#"{"scene":"pay","payload":{"a":[1]},"headers":[{"name":"t"}]}"#;
        let mut datum = if frame == 2 { json.to_vec() } else { avro_envelope("pay", Some(5)) };
        for (at, byte, how) in edits {
            mutate(&mut datum, at, byte, how);
        }
        let (value, content_type) = match frame {
            0 => (single_object(&datum), ""),
            1 => (confluent(&datum), ENVELOPE_AVRO),
            _ => (datum, ENVELOPE_JSON),
        };
        let record = record(&value, &[("content-type", content_type)]);
        if let Err(poison) = ingest(record.clone(), origin(), now()) {
            prop_assert_eq!(poison.record, record);
        }
    }
}
