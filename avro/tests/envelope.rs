//! Envelopes through the public functions only: what is recognised as one, what producers in other languages write, and how what cannot
//! be read is refused.

use std::fmt::Write as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use retide_avro::headers::{self, write_poison};
use retide_avro::{Arrival, ENVELOPE_AVRO, ENVELOPE_JSON, Form, Intake, ingest};
use retide_core::{
    Ended, Header, Kind, Omitted, Origin, Poison, Reason, Record, Task, Terminal, Timestamp,
};
use serde_json::json;

/// When every record is read.
const NOW_MS: u64 = 1_700_000_000_000;

/// A header that says what the value is.
const J: (&str, &str) = ("content-type", ENVELOPE_JSON);

fn arrival() -> Arrival {
    Arrival {
        origin: Origin {
            topic: "retry.tasks".into(),
            partition: 3,
            offset: 42,
        },
        entered: Timestamp::from_millis(NOW_MS),
        stamped: Timestamp::from_millis(NOW_MS),
    }
}

fn header(name: &str, value: &[u8]) -> Header {
    Header {
        name: name.into(),
        value: Some(Bytes::copy_from_slice(value)),
    }
}

fn record(value: &[u8], headers: &[(&str, &str)]) -> Record {
    let headers = headers.iter();
    Record {
        key: Some(Bytes::from_static(b"key")),
        value: Some(Bytes::copy_from_slice(value)),
        headers: headers
            .map(|(name, value)| header(name, value.as_bytes()))
            .collect(),
    }
}

/// Reads a record of a topic whose records are envelopes of this form.
fn take(intake: Option<Form>, record: Record) -> Result<Task, Box<Poison>> {
    Intake {
        envelope: intake,
        ..Intake::default()
    }
    .ingest(record, arrival())
}

/// Reads an envelope in JSON.
fn read(value: impl AsRef<[u8]>) -> Result<Task, Box<Poison>> {
    take(None, record(value.as_ref(), &[J]))
}

/// Why an envelope in JSON is refused.
fn refusal(value: impl AsRef<[u8]>) -> String {
    let poison = read(value).expect_err("a refusal");
    format!("{}: {}", poison.detail.class, poison.detail.message)
}

/// The record that the dead letter of `poison` is, produced to the retry topic as it stands.
fn again(poison: &Poison) -> Record {
    let ended = Ended {
        id: poison.id.clone(),
        scene: poison.scene.clone(),
        kind: Kind::Work,
        terminal: Terminal::Dead,
        reason: Some(poison.reason),
        attempts: 0,
        origin: poison.origin.clone(),
        first_failed_at: Timestamp::from_millis(NOW_MS),
        at: Timestamp::from_millis(NOW_MS),
        failure: Some(poison.detail.clone()),
        key: poison.key.clone(),
        omitted: Omitted::Nothing,
    };
    let mut headers = Vec::new();
    write_poison(poison, &ended, &mut |name, value| {
        headers.push(Header {
            name: name.into(),
            value: value.map(Bytes::copy_from_slice),
        });
    });
    Record {
        headers,
        ..poison.record.clone()
    }
}

#[test]
fn our_content_type_always_means_an_envelope() {
    let value = br#"{"scene":"pay","payload":{"a":1},"delayMs":3600000}"#;

    for content_type in [
        "application/vnd.retide.task+json",
        "Application/VND.retide.task+JSON; charset=utf-8",
        "\"application/vnd.retide.task+json\"",
    ] {
        for more in [
            &[][..],
            &[("retry-scene", "pay")],
            &[("Retry-Scene", "pay")],
        ] {
            let headers = [&[("Content-Type", content_type)][..], more].concat();

            let task = take(None, record(value, &headers)).expect("a task");

            assert_eq!(task.record.value.as_deref(), Some(&br#"{"a":1}"#[..]));
            assert_eq!(task.due, Timestamp::from_millis(NOW_MS + 3_600_000));
            assert_eq!(&*task.scene, "pay");
        }
    }
    // A proxy says more.
    let both = [J, ("content-type", "application/json")];
    assert!(take(None, record(value, &both)).is_ok_and(|task| task.due > arrival().entered));
    let other = [
        ("content-type", "application/vnd.retide.task+xml"),
        ("retry-scene", "pay"),
    ];
    let poison = take(None, record(value, &other)).expect_err("no such form");
    assert_eq!(poison.reason, Reason::BadEnvelope);
    let nothing = Record {
        value: None,
        ..record(b"", &[J, ("retry-scene", "pay")])
    };
    assert_eq!(
        take(None, nothing).map_err(|it| it.reason),
        Err(Reason::BadEnvelope)
    );
}

#[test]
fn a_header_only_adds_to_an_envelope() {
    let due = (NOW_MS + 5).to_string();
    let whole = format!(r#"{{"scene":"pay","id":"o-7","dueAt":{due},"deadlineAt":{due}}}"#);
    let same = [
        J,
        ("retry-scene", "pay"),
        ("retry-id", "o-7"),
        ("retry-due-at", &*due),
        ("retry-deadline-at", &*due),
    ];

    let task = take(None, record(whole.as_bytes(), &same)).expect("the same twice");
    assert_eq!((&*task.scene, &*task.id), ("pay", "o-7"));
    let task = take(None, record(b"{\"payload\":1}", &same)).expect("all from the headers");
    assert_eq!((&*task.scene, &*task.id), ("pay", "o-7"));
    assert_eq!(task.due, Timestamp::from_millis(NOW_MS + 5));

    for (name, value, said) in [
        ("retry-scene", "refund", ["\"refund\"", "\"pay\""]),
        ("retry-id", "o-8", ["\"o-8\"", "\"o-7\""]),
        ("retry-due-at", "1700000000006", ["1700000000006", &*due]),
        (
            "retry-deadline-at",
            "1700000000006",
            ["1700000000006", &*due],
        ),
        ("retry-delay-ms", "7", ["retry-delay-ms (7)", "dueAt"]),
    ] {
        let poison = take(None, record(whole.as_bytes(), &[J, (name, value)]));

        let poison = poison.expect_err(name);
        assert_eq!(poison.reason, Reason::BadEnvelope, "{name}");
        for said in said {
            assert!(
                poison.detail.message.contains(said),
                "{}",
                poison.detail.message
            );
        }
    }
}

#[test]
fn a_wrapper_never_is_a_payload() {
    let plain = [
        r#"{"scene":"pay","payload":"x"}"#,
        r#" {"payloadBase64":"eA==","scene":"pay","more":1}"#,
        "\u{feff}{\"scene\":\"pay\",\"delayMs\":5}",
        "\0\0\0\0m{\"scene\":\"pay\",\"payload\":{}}",
    ];
    for value in plain {
        for headers in [&[][..], &[("content-type", "application/json")]] {
            let poison = take(None, record(value.as_bytes(), headers)).expect_err(value);

            assert_eq!(poison.reason, Reason::BadEnvelope);
            assert!(
                poison.detail.message.contains(ENVELOPE_JSON),
                "{}",
                poison.detail.message
            );
            assert_eq!(&*poison.scene, "pay");
            // Its dead letter is no plain task of that scene.
            let again = take(None, again(&poison)).expect_err(value);
            assert_eq!(again.reason, Reason::BadEnvelope);
        }
    }
    for other in [
        r#"{"payload":"x"}"#,
        r#"{"scene":7,"payload":1}"#,
        r#"{"scene":"a","act":2}"#,
        "[]",
        "{",
    ] {
        let task = take(None, record(other.as_bytes(), &[])).expect("somebody's payload");
        assert_eq!(&*task.scene, "");
    }
    let named = take(None, record(plain[0].as_bytes(), &[("retry-scene", "log")])).expect("a task");
    assert_eq!(named.record.value.as_deref(), Some(plain[0].as_bytes()));
}

#[test]
fn every_record_of_a_topic_may_be_an_envelope() {
    let value = br#"{"scene":"pay","id":"o-7","payload":"x"}"#;
    let json = Some(Form::Json);

    for headers in [&[][..], &[("content-type", "application/json"), ("a", "b")]] {
        let task = take(json, record(value, headers)).expect("a task");
        assert_eq!((&*task.scene, &*task.id), ("pay", "o-7"));
        assert_eq!(task.record.value.as_deref(), Some(&b"x"[..]));
        assert!(
            !task
                .record
                .headers
                .iter()
                .any(|header| header.name == "content-type")
        );
    }
    // What `submit`, a target and the dead letters of tasks put there.
    let plain = take(json, record(b"x", &[("retry-scene", "pay")])).expect("a plain task");
    assert_eq!(plain.record.value.as_deref(), Some(&b"x"[..]));
    // A proxy that adds the header makes no payload of a wrapper.
    let proxied = take(json, record(value, &[("retry-scene", "pay")])).expect("a task");
    assert_eq!(proxied.record.value.as_deref(), Some(&b"x"[..]));

    for (value, words) in [
        (&b"x"[..], "78"),
        (b"", "empty"),
        (b"\x03\0\x01", "Glue"),
        (b"\"{}\"", "encoded twice"),
        (b"\0\0\0\0\x07\x02", "schema id 7"),
        (b"\xff\xfe{\0", "UTF-16"),
    ] {
        let poison = take(json, record(value, &[])).expect_err(words);
        assert_eq!(poison.reason, Reason::BadEnvelope);
        assert!(
            poison.detail.message.contains(words),
            "{}",
            poison.detail.message
        );
    }
    let tombstone = Record {
        value: None,
        ..record(b"", &[])
    };
    let poison = take(json, tombstone).expect_err("no value");
    assert_eq!(poison.reason, Reason::BadEnvelope);
    // A dead letter of one stays one.
    let bad = record(br#"{"scene":"pay","id":"o-7","dueAt":1700000000}"#, &[]);
    let poison = take(json, bad).expect_err("seconds");
    let again = take(json, again(&poison)).expect_err("seconds again");
    assert_eq!(
        (poison.reason, again.reason),
        (Reason::BadDue, Reason::BadDue)
    );
    assert_eq!((&*again.scene, &*again.id), ("pay", "o-7"));
}

#[test]
fn what_libraries_write_is_read() {
    let same = [
        // Jackson with unset members, Go's nil slice.
        r#"{"scene":"pay","id":"7","payload":"x","payloadBase64":null,"contentType":null,"headers":null,"key":null,
            "keyBase64":null,"dueAt":null,"delayMs":null,"deadlineAt":null}"#,
        "\u{feff}{\"scene\":\"pay\",\"id\":7,\"payload\":\"x\"}",
        "\0\0\0\0m {\"scene\":\"pay\",\"id\":\"7\",\"payload\":\"x\",\"headers\":{}}",
        r#"{"scene":"pay","id":"7","payload":"x","headers":[null]}"#,
        r#"{"scene":"pay","id":"7","payloadBase64":"eA"}"#,
        r#"{"scene":"pay","id":"7","payloadBase64":"eA==\r\n"}"#,
    ];
    for value in same {
        let task = read(value).unwrap_or_else(|poison| panic!("{value}: {:?}", poison.detail));
        assert_eq!((&*task.scene, &*task.id), ("pay", "7"), "{value}");
        assert_eq!(task.record, record(b"x", &[]), "{value}");
    }

    for time in [
        "1700000002000",
        "1700000002000.0",
        "1.700000002e12",
        r#""1700000002000""#,
        r#"" 1700000002000.00 ""#,
        r#""2023-11-14T22:13:22Z""#,
        r#""2023-11-14T23:13:21.9999999+01:00""#,
    ] {
        let task = read(format!(
            r#"{{"scene":"pay","dueAt":{time},"deadlineAt":{time}}}"#
        ));
        let task = task.unwrap_or_else(|poison| panic!("{time}: {:?}", poison.detail));
        let time = Timestamp::from_millis(NOW_MS + 2_000);
        assert_eq!((task.due, task.deadline), (time, Some(time)));
    }
    for delay in ["2000", "2e3", r#""2000""#, r#""2000.0""#] {
        let task = read(format!(r#"{{"scene":"pay","delayMs":{delay}}}"#)).expect(delay);
        assert_eq!(task.due, Timestamp::from_millis(NOW_MS + 2_000));
    }

    let named = record(b"x", &[("a", "b"), ("n", "1.50")]);
    for headers in [
        r#"{"a":"b","n":1.50}"#,
        r#"[{"name":"a","value":"b"},{"value":1.50,"name":"n"}]"#,
        r#"[{"name":"a","valueBase64":"Yg"},{"name":"n","valueBase64":"MS41MA==","value":null}]"#,
    ] {
        let task = read(format!(
            r#"{{"scene":"pay","payload":"x","headers":{headers}}}"#
        ));
        assert_eq!(task.expect(headers).record, named);
    }
    let task = read(r#"{"scene":"pay","headers":{"a":null},"key":12}"#).expect("a task");
    assert_eq!(
        task.record.headers,
        [Header {
            name: "a".into(),
            value: None
        }]
    );
    assert_eq!(task.record.key.as_deref(), Some(&b"12"[..]));
}

#[test]
fn base64_is_that_of_any_library() {
    let bytes: Vec<u8> = (0..200)
        .map(|number| 0xfb_u8.wrapping_add(number))
        .collect();
    let standard = STANDARD.encode(&bytes);
    let url = standard.replace('+', "-").replace('/', "_");
    let lines = |width: usize, end: &str| {
        let chunks = standard.as_bytes().chunks(width);
        chunks.fold(String::new(), |mut text, chunk| {
            let _ = write!(text, "{}{end}", str::from_utf8(chunk).unwrap());
            text
        })
    };

    for text in [
        standard.clone(),
        url.clone(),
        url.trim_end_matches('=').to_owned(),
        lines(76, "\n"),
        lines(60, "\r\n"),
    ] {
        let value = json!({"scene": "pay", "payloadBase64": text, "keyBase64": text});
        let task = read(value.to_string()).expect("a task");
        assert_eq!(task.record.value.as_deref(), Some(&*bytes));
        assert_eq!(task.record.key.as_deref(), Some(&*bytes));
    }
    let refused = refusal(r#"{"scene":"pay","payloadBase64":"ab!d"}"#);
    assert!(
        refused.contains("payloadBase64: '!' at character 3"),
        "{refused}"
    );
    let refused = refusal(r#"{"scene":"pay","keyBase64":"abcde"}"#);
    assert!(refused.contains("keyBase64: 5 symbols"), "{refused}");
}

/// Members of an envelope beside a scene, and words of their refusal.
const REFUSED: &[(&str, &[&str])] = &[
    (r#""Payload":1"#, &[r#""Payload""#, "did you mean payload?"]),
    (
        r#""delay_ms":1"#,
        &[r#""delay_ms""#, "did you mean delayMs?"],
    ),
    (r#""zzz":1"#, &[r#""zzz""#, "payloadBase64"]),
    (r#""scene":"pay""#, &["scene is there twice"]),
    (
        r#""id":{"string":"o-7"}"#,
        &["id: an object", "Avro's JSON"],
    ),
    (
        r#""id":true"#,
        &["id: true found, text or a number expected"],
    ),
    (r#""id":"""#, &["id is empty"]),
    (r#""id":"text/plain""#, &["text/plain", "media type"]),
    (
        r#""contentType":7"#,
        &["contentType: the number 7 found, text expected"],
    ),
    (
        r#""dueAt":true"#,
        &["dueAt: true found", "milliseconds since 1970"],
    ),
    (
        r#""dueAt":1795836382000.25"#,
        &["dueAt: the number 1795836382000.25"],
    ),
    (r#""dueAt":"soon""#, &[r#"dueAt: text "soon""#]),
    (
        r#""dueAt":"2026-12-24T18:00:00""#,
        &["dueAt: text", "2026-12-24T18:00:00Z"],
    ),
    (
        r#""delayMs":"5s""#,
        &[r#"delayMs: text "5s""#, "milliseconds"],
    ),
    (r#""dueAt":-5"#, &["bad-due: dueAt is -5"]),
    (r#""delayMs":-5"#, &["bad-due: delayMs is -5"]),
    (
        r#""payloadBase64":[1]"#,
        &["payloadBase64: an array [1] found, text in base64"],
    ),
    (
        r#""payload":1,"payloadBase64":"""#,
        &["both payload and payloadBase64"],
    ),
    (
        r#""payload":"\ud800""#,
        &["payload: text", "half a character"],
    ),
    (
        r#""headers":"a""#,
        &[r#"headers: text "a" found, an object"#],
    ),
    (
        r#""headers":{"a":true}"#,
        &["headers.a: true found, text or a number"],
    ),
    (
        r#""headers":{"a":"","a":""}"#,
        &["headers.a is there twice"],
    ),
    (
        r#""headers":[7]"#,
        &["headers[0]: the number 7 found, an object"],
    ),
    (
        r#""headers":[{"value":"b"}]"#,
        &["headers[0].name is missing"],
    ),
    (
        r#""headers":[{"name":7}]"#,
        &["headers[0].name: the number 7"],
    ),
    (
        r#""headers":[{"name":"a"},{"name":"a","value":{}}]"#,
        &["headers[1].value: an object {} found"],
    ),
    (
        r#""headers":[{"name":"a","Value":"b"}]"#,
        &["headers[0].Value", "did you mean value?"],
    ),
    (
        r#""headers":[{"name":"a","value":"","valueBase64":""}]"#,
        &["headers[0].value and headers[0].valueBase64"],
    ),
    (
        r#""headers":{"retry-delay-ms":"9"}"#,
        &["retry-delay-ms", "the field delayMs"],
    ),
    (
        r#""headers":{"Retry_Due_At":"9"}"#,
        &["Retry_Due_At", "the field dueAt"],
    ),
    (
        r#""contentType":"application/vnd.retide.task+json""#,
        &["contentType is that of an envelope"],
    ),
    (r#""payload":NaN"#, &["not JSON at line 1, column", "NaN"]),
];

#[test]
fn a_refusal_names_the_path_what_was_found_and_what_is_expected() {
    for (members, words) in REFUSED {
        let refused = refusal(format!(r#"{{"scene":"pay",{members}}}"#));

        for words in *words {
            assert!(
                refused.contains(words),
                "{members}: {refused} lacks {words}"
            );
        }
        for words in ["i64", "sequence", "invalid type", "Symbol", "EOF", "serde"] {
            assert!(!refused.contains(words), "{members}: {refused}");
        }
    }
    assert!(refusal(b"").contains("empty"));
    assert!(refusal(r#"{"scene":"a","payload":{"#).contains("it ends at line 1, column 24"));
    assert!(refusal(b"{\"scene\":\"\xff\"}").contains("not UTF-8 at byte 10"));
    assert!(refusal(r#"{"payload":1}"#).contains("scene is missing"));
    assert!(refusal(r#"{"scene":"","payload":1}"#).contains("scene is missing"));
    assert!(refusal(r#"{"scene":"a"} x"#).contains("not JSON at line 1, column 15"));
}

#[test]
fn a_refusal_carries_scene_id_and_key_as_far_as_they_can_be_read() {
    for value in [
        r#"{"scene":"pay","id":"o-7","key":"k","headers":7}"#,
        r#"{"scene":"pay","id":{"string":"o-7"},"key":{"bytes":"k"}}"#,
        r#"{"Scene":"pay","ID":"o-7","Key":"k"}"#,
        r#"{"scene":"pay","id":"o-7","keyBase64":"aw","dueAt":1700000000}"#,
        r#"{"scene":"x","scene":"pay","id":"o-7","key":"k"}"#,
        r#"{"scene":"pay","id":"o-7","key":"k","payload":{"a":"#,
        r#"{"scene":"pay","id":"o-7","key":"k","payload":NaN}"#,
    ] {
        let poison = read(value).expect_err(value);

        assert_eq!((&*poison.scene, &*poison.id), ("pay", "o-7"), "{value}");
        assert_eq!(poison.key.as_deref(), Some(&b"k"[..]), "{value}");
        assert_eq!(poison.record, record(value.as_bytes(), &[J]));
    }
    let number = read(r#"{"scene":"pay","id":7,"more":1}"#).expect_err("an unknown key");
    assert_eq!(
        (&*number.id, number.key.as_deref()),
        ("7", Some(&b"key"[..]))
    );
    let other = record(
        br#"{"scene":"pay","id":"o-7"}"#,
        &[("content-type", ENVELOPE_AVRO)],
    );
    assert_eq!(&*take(None, other).expect_err("no Avro").id, "o-7");
    // The producer's header counts first, and what retide made of the place does not count.
    let wrong = record(
        br#"{"scene":"pay","id":"o-7","x":1}"#,
        &[J, ("retry-id", "o-8")],
    );
    assert_eq!(&*take(None, wrong).expect_err("an unknown key").id, "o-8");
    let derived = read("{").expect_err("no object");
    assert_eq!(derived.id, headers::identity(&arrival().origin));
    let mended = Record {
        value: Some(Bytes::from_static(br#"{"scene":"pay","id":"o-7"}"#)),
        ..again(&derived)
    };
    assert_eq!(
        take(None, mended).map(|task| task.id.to_string()),
        Ok("o-7".to_owned())
    );
}

#[test]
fn times_in_another_unit_are_refused() {
    let soon = NOW_MS + 60_000;
    for (name, value, reason, words) in [
        ("retry-due-at", soon / 1_000, Reason::BadDue, "seconds?"),
        (
            "retry-due-at",
            soon * 1_000,
            Reason::DueTooFar,
            "microseconds?",
        ),
        (
            "retry-due-at",
            soon * 1_000_000,
            Reason::DueTooFar,
            "nanoseconds?",
        ),
        ("retry-due-at", 0, Reason::BadDue, "leave it out"),
        ("retry-due-at", 60_000, Reason::BadDue, "a delay?"),
        (
            "retry-due-at",
            1_577_836_800_000,
            Reason::BadDue,
            "over a year before",
        ),
        (
            "retry-delay-ms",
            soon,
            Reason::DueTooFar,
            "a point in time?",
        ),
        (
            "retry-deadline-at",
            soon / 1_000,
            Reason::BadDue,
            "seconds?",
        ),
        (
            "retry-deadline-at",
            soon * 1_000,
            Reason::BadDue,
            "microseconds?",
        ),
        (
            "retry-deadline-at",
            soon * 1_000_000,
            Reason::BadDue,
            "nanoseconds?",
        ),
    ] {
        let plain = record(b"x", &[("retry-scene", "pay"), (name, &value.to_string())]);
        let field = match name {
            "retry-due-at" => "dueAt",
            "retry-delay-ms" => "delayMs",
            _ => "deadlineAt",
        };
        let wrapped = json!({"scene": "pay", field: value});
        let wrapped = record(wrapped.to_string().as_bytes(), &[J]);

        for (record, name) in [(plain, name), (wrapped, field)] {
            let poison = take(None, record).expect_err(name);
            assert_eq!(poison.reason, reason, "{name} {value}");
            let message = &poison.detail.message;
            let said = [name, words, &value.to_string()];
            assert!(said.iter().all(|said| message.contains(said)), "{message}");
            // A dead letter that is produced again years later is no better.
            let later = Arrival {
                entered: Timestamp::from_millis(2 * NOW_MS),
                stamped: Timestamp::from_millis(2 * NOW_MS),
                ..arrival()
            };
            assert!(
                Intake::default().ingest(again(&poison), later).is_err(),
                "{message}"
            );
        }
    }
    // What is far away on purpose, and what is old but may be meant.
    for (name, value) in [
        ("retry-deadline-at", "253402300799000"),
        ("retry-deadline-at", "9223372036854775807"),
        ("retry-due-at", "1669000000000"),
        ("retry-due-at", "2023-01-01T00:00:00Z"),
    ] {
        assert!(
            take(None, record(b"x", &[(name, value)])).is_ok(),
            "{name} {value}"
        );
    }
    // It is the record's own time that counts, however long ago that was.
    let old = Arrival {
        stamped: Timestamp::from_millis(1_577_836_800_000),
        ..arrival()
    };
    let due = record(b"x", &[("retry-due-at", "1577836800000")]);
    assert!(Intake::default().ingest(due, old).is_ok());
}

#[test]
fn a_header_that_is_meant_to_be_retides_is_named() {
    for (name, meant) in [
        ("\"retry-due-at\"", "retry-due-at"),
        ("'Retry-Scene'", "retry-scene"),
        (" retry-id", "retry-id"),
        ("retry-delay-ms:", "retry-delay-ms"),
        ("retry_due_at", "retry-due-at"),
        ("retryDelayMs", "retry-delay-ms"),
        ("RETRY.DEADLINE.AT", "retry-deadline-at"),
    ] {
        let poison = ingest(
            record(b"x", &[("retry-scene", "pay"), (name, "5")]),
            arrival().origin,
            arrival().entered,
        );

        let poison = poison.expect_err(name);
        assert_eq!(poison.reason, Reason::BadHeader);
        assert!(
            poison.detail.message.contains(meant),
            "{}",
            poison.detail.message
        );
    }
    for other in [
        "retry-count",
        "retry_topic-attempts",
        "retry_id",
        "x-retry-due-at",
        "retry",
        "r",
    ] {
        let task = take(None, record(b"x", &[("retry-scene", "pay"), (other, "5")]));
        assert_eq!(task.expect(other).record, record(b"x", &[(other, "5")]));
    }
    for (id, is_media) in [
        ("text/plain", true),
        ("Application/JSON; charset=utf-8", true),
        ("application/vnd.acme+json", true),
        (ENVELOPE_AVRO, true),
        ("video/42", false),
        ("order/json", false),
        ("message/7", false),
    ] {
        let task = take(None, record(b"x", &[("retry-id", id)]));
        assert_eq!(task.is_err(), is_media, "{id}");
    }
}

#[test]
fn an_envelope_in_the_schema_of_kafka_connect_is_named_and_its_task_known() {
    let value =
        r#"{"schema":{"type":"struct"},"payload":{"scene":"pay","id":"o-9","payload":"x"}}"#;

    let poison = take(Some(Form::Json), record(value.as_bytes(), &[])).expect_err("a refusal");

    assert_eq!((&*poison.scene, &*poison.id), ("pay", "o-9"));
    let why = &poison.detail.message;
    assert!(
        why.contains("Kafka Connect") && why.contains("schemas.enable"),
        "{why}"
    );
}

#[test]
fn bytes_as_node_writes_them_into_json_are_no_payload() {
    let why = refusal(r#"{"scene":"pay","payload":{"type":"Buffer","data":[104,105]}}"#);
    assert_eq!(
        why,
        "bad-envelope: payload: a Buffer of Node found; payloadBase64 expected, with its toString(\"base64\")"
    );
    assert!(read(r#"{"scene":"pay","payload":{"type":"Buffer","size":2}}"#).is_ok());
}
