//! What hostile or careless producers send: each record ends as a dead letter with its reason and its bytes untouched, or runs as
//! documented; and the partition moves on.

use std::time::Duration;

use rdkafka::message::{Header as OutHeader, OwnedHeaders};
use rdkafka::producer::{BaseRecord, Producer};
use retide_avro::headers::{NAMES, READABLE};
use retide_native::headers::add;

use crate::rig::{FLAKY, Rig, Stored, named};
use crate::support::PATIENCE;

use self::End::{Dead, Delivered};

/// A record as a producer sends it, and how it has to end.
struct Case {
    name: &'static str,
    headers: &'static [Given],
    value: Option<&'static [u8]>,
    end: End,
}

/// A header as a producer sets it.
type Given = (&'static [u8], Option<&'static [u8]>);

/// How a record has to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Delivered,
    Dead(&'static str),
}

const FLAKY_SCENE: Given = (b"retry-scene", Some(b"flaky"));
const JSON: Given = (b"content-type", Some(b"application/vnd.retide.task+json"));
const AVRO: Given = (b"content-type", Some(b"application/vnd.retide.task+avro"));
const ZERO: Option<&[u8]> = Some(b"0");

/// All for one partition.
const CASES: &[Case] = &[
    Case {
        name: "garbage",
        headers: &[],
        value: Some(b"\x00\xff\x13garbage"),
        end: Dead("no-scene"),
    },
    Case {
        name: "nothing at all",
        headers: &[],
        value: None,
        end: Dead("no-scene"),
    },
    Case {
        name: "tombstone with a scene",
        headers: &[FLAKY_SCENE],
        value: None,
        end: Delivered,
    },
    Case {
        name: "truncated json envelope",
        headers: &[JSON],
        value: Some(b"{\"scene\": \"fl"),
        end: Dead("bad-envelope"),
    },
    Case {
        name: "truncated avro envelope",
        headers: &[AVRO],
        value: Some(b"\xc3\x01\x00"),
        end: Dead("bad-envelope"),
    },
    Case {
        name: "invalid utf-8 in the scene",
        headers: &[(b"retry-scene", Some(b"\xff\xfe"))],
        value: ZERO,
        end: Dead("bad-header"),
    },
    Case {
        name: "a scene without a value",
        headers: &[(b"retry-scene", None)],
        value: ZERO,
        end: Dead("bad-header"),
    },
    Case {
        name: "unknown scene",
        headers: &[(b"retry-scene", Some(b"nowhere"))],
        value: ZERO,
        end: Dead("unknown-scene"),
    },
    Case {
        name: "invalid utf-8 in the value",
        headers: &[FLAKY_SCENE],
        value: Some(b"\xff\xfe\x00"),
        end: Delivered,
    },
    Case {
        name: "900 KB",
        headers: &[FLAKY_SCENE],
        value: Some(&[b'x'; 900_000]),
        end: Delivered,
    },
    Case {
        name: "due in 1970",
        headers: &[FLAKY_SCENE, (b"retry-due-at", Some(b"1000"))],
        value: ZERO,
        end: Dead("bad-due"),
    },
    Case {
        name: "due in seconds",
        headers: &[FLAKY_SCENE, (b"retry-due-at", Some(b"1798761600"))],
        value: ZERO,
        end: Dead("bad-due"),
    },
    Case {
        name: "a due time in quotes",
        headers: &[FLAKY_SCENE, (b"\"retry-due-at\"", Some(b"4102444800000"))],
        value: ZERO,
        end: Dead("bad-header"),
    },
    Case {
        name: "a delay with a fraction of zeros",
        headers: &[FLAKY_SCENE, (b"retry-delay-ms", Some(b" 10.0\n"))],
        value: ZERO,
        end: Delivered,
    },
    Case {
        name: "an envelope that does not say that it is one",
        headers: &[(b"content-type", Some(b"application/json"))],
        value: Some(b"{\"scene\":\"flaky\",\"payload\":\"0\"}"),
        end: Dead("bad-envelope"),
    },
    Case {
        name: "two scenes",
        headers: &[JSON, FLAKY_SCENE],
        value: Some(b"{\"scene\":\"steady\",\"payload\":\"0\"}"),
        end: Dead("bad-envelope"),
    },
    Case {
        name: "due in year 9999",
        headers: &[FLAKY_SCENE, (b"retry-due-at", Some(b"253370764800000"))],
        value: ZERO,
        end: Dead("due-too-far"),
    },
    Case {
        name: "due beyond time",
        headers: &[
            FLAKY_SCENE,
            (b"retry-due-at", Some(b"18446744073709551615")),
        ],
        value: ZERO,
        end: Dead("due-too-far"),
    },
    Case {
        name: "negative due",
        headers: &[FLAKY_SCENE, (b"retry-due-at", Some(b"-1"))],
        value: ZERO,
        end: Dead("bad-due"),
    },
    Case {
        name: "due in words",
        headers: &[FLAKY_SCENE, (b"retry-due-at", Some(b"tomorrow"))],
        value: ZERO,
        end: Dead("bad-due"),
    },
    Case {
        name: "empty due",
        headers: &[FLAKY_SCENE, (b"retry-due-at", Some(b""))],
        value: ZERO,
        end: Dead("bad-due"),
    },
    Case {
        name: "negative delay",
        headers: &[FLAKY_SCENE, (b"retry-delay-ms", Some(b"-5"))],
        value: ZERO,
        end: Dead("bad-due"),
    },
    Case {
        name: "due and delay",
        headers: &[
            FLAKY_SCENE,
            (b"retry-due-at", Some(b"1")),
            (b"retry-delay-ms", Some(b"1")),
        ],
        value: ZERO,
        end: Dead("bad-due"),
    },
    Case {
        name: "deadline in words",
        headers: &[FLAKY_SCENE, (b"retry-deadline-at", Some(b"soon"))],
        value: ZERO,
        end: Dead("bad-header"),
    },
    Case {
        name: "spoofed attempt",
        headers: &[
            FLAKY_SCENE,
            (b"retry-attempt", Some(b"99")),
            (b"retry-hops", Some(b"7")),
        ],
        value: ZERO,
        end: Delivered,
    },
    Case {
        name: "spoofed origin",
        headers: &[
            FLAKY_SCENE,
            (b"retry-origin", Some(b"x/0/0")),
            (b"retry-error", Some(b"\xff")),
        ],
        value: ZERO,
        end: Delivered,
    },
    Case {
        name: "header without a value",
        headers: &[FLAKY_SCENE, (b"x", None)],
        value: ZERO,
        end: Delivered,
    },
    Case {
        name: "empty id",
        headers: &[FLAKY_SCENE, (b"retry-id", Some(b""))],
        value: ZERO,
        end: Dead("bad-header"),
    },
    Case {
        name: "line breaks in the id",
        headers: &[FLAKY_SCENE, (b"retry-id", Some(b"a\r\nx: y"))],
        value: ZERO,
        end: Dead("bad-header"),
    },
    Case {
        name: "a name that is not UTF-8",
        headers: &[FLAKY_SCENE, (b"caf\xe9", Some(b"x")), (b"\xff", None)],
        value: ZERO,
        end: Dead("bad-header"),
    },
    Case {
        name: "names with a NUL, and none",
        headers: &[
            (b"retry-scene", Some(b"nowhere")),
            (b"a\0b", Some(b"x")),
            (b"retry-scene\0x", Some(b"y")),
            (b"\0", None),
            (b"", Some(b"z")),
        ],
        value: ZERO,
        end: Dead("unknown-scene"),
    },
    Case {
        name: "a name of ours with a NUL",
        headers: &[FLAKY_SCENE, (b"retry-delay-ms\0", Some(b"tomorrow"))],
        value: ZERO,
        end: Delivered,
    },
    Case {
        name: "a scene in capitals",
        headers: &[(b"Retry-Scene", Some(b"flaky"))],
        value: ZERO,
        end: Delivered,
    },
    Case {
        name: "a delay in capitals",
        headers: &[FLAKY_SCENE, (b"Retry-Delay-Ms", Some(b"tomorrow"))],
        value: ZERO,
        end: Dead("bad-due"),
    },
];

#[test]
fn bad_input_is_a_dead_letter_with_its_bytes_or_runs_as_documented() {
    let rig = Rig::new(Duration::ZERO, FLAKY);
    let retide = rig.run();
    let names: Vec<String> = (0..1_000).map(|number| format!("h{number}")).collect();

    let producer = rig.producer();
    let topic = rig.topic("tasks");
    let send = |headers: OwnedHeaders, value: Option<&[u8]>| {
        // All on one partition: what comes after has to get through.
        let mut record = BaseRecord::<(), [u8]>::to(&topic)
            .partition(1)
            .headers(headers);
        record.payload = value;
        producer.send(record).map_err(|(error, _)| error).unwrap();
    };
    for case in CASES {
        let mut headers = OwnedHeaders::new();
        for (key, value) in case
            .headers
            .iter()
            .copied()
            .chain([(b"case".as_slice(), Some(case.name.as_bytes()))])
        {
            add(&mut headers, key, value);
        }
        send(headers, case.value);
    }
    let mut many = OwnedHeaders::new();
    for key in &names {
        many = many.insert(OutHeader {
            key,
            value: Some(b"v".as_slice()),
        });
    }
    for (key, value) in [("retry-scene", "flaky"), ("case", "1,000 headers")] {
        many = many.insert(OutHeader {
            key,
            value: Some(value.as_bytes()),
        });
    }
    send(many, Some(b"0"));
    // One more than the client reads, and as many as a dead letter has no room for.
    send(crowd(100_001), Some(b"unread"));
    send(crowd(99_990), Some(b"nearly"));
    producer.flush(PATIENCE).unwrap();
    let ends = rig.ends(CASES.len() + 3);

    assert_eq!(ends.len(), CASES.len() + 3);
    assert!(
        ends.values().all(|outcomes| outcomes.len() == 1),
        "{ends:?}"
    );
    let letters = rig.read("dead-letters");
    let letter = |name: &str| letters.iter().find(|letter| letter.text("case") == name);
    let requests = rig.target.requests();
    for case in CASES {
        let delivered: Vec<_> = requests
            .iter()
            .filter(|request| request.text("case") == case.name)
            .collect();
        match case.end {
            Delivered => {
                let [request] = delivered[..] else {
                    panic!("{}: {} attempts", case.name, delivered.len());
                };
                assert_eq!(
                    request.body,
                    case.value.unwrap_or_default(),
                    "{}",
                    case.name
                );
                assert_eq!(request.text("retry-attempt"), "1", "{}", case.name);
                assert!(
                    request.text("retry-origin").starts_with(&topic),
                    "{}",
                    case.name
                );
                assert!(letter(case.name).is_none(), "{}", case.name);
            }
            Dead(reason) => {
                assert!(delivered.is_empty(), "{}", case.name);
                let Some(letter) = letter(case.name) else {
                    panic!("{}: no dead letter", case.name);
                };
                assert_eq!(letter.text("retry-reason"), reason, "{}", case.name);
                assert_eq!(letter.value.as_deref(), case.value, "{}", case.name);
                assert!(has(letter, case.headers), "{}: {letter:?}", case.name);
            }
        }
    }
    let letter = letter("1,000 headers").expect("a dead letter");
    assert_eq!(letter.text("retry-reason"), "too-many-headers");
    let kept = letter.headers.iter().take(1_000).map(|(name, _)| name);
    assert!(kept.eq(&names));
    check_crowded(&rig, &letters, &topic);
    assert!(!retide.log().contains("panicked"), "{}", retide.log());
    retide.terminate();
    assert_eq!(retide.wait(), Some(0));
}

/// So many headers without a name.
fn crowd(count: usize) -> OwnedHeaders {
    let mut headers = OwnedHeaders::new_with_capacity(count);
    for _ in 0..count {
        add(&mut headers, b"", None);
    }
    headers
}

/// A record with more headers than clients read is a dead letter that they do read, and says where the record is.
fn check_crowded(rig: &Rig, letters: &[Stored], topic: &str) {
    for (value, left) in [(&b"unread"[..], 0), (b"nearly", READABLE - NAMES.len())] {
        let letter = letters
            .iter()
            .find(|letter| letter.value.as_deref() == Some(value))
            .expect("a dead letter");
        assert_eq!(letter.text("retry-reason"), "too-many-headers");
        assert!(letter.text("retry-origin").starts_with(topic));
        let empty = letter.headers.iter().filter(|(name, _)| name.is_empty());
        assert_eq!(empty.count(), left);
        // Finds the record itself among others that no client reads as text.
        let told = rig.retide(&["explain", &letter.text("retry-id")]);
        assert!(told.status.success(), "{told:?}");
    }
}

/// Whether a dead letter begins with the headers that its record came with, byte for byte; a scene that could not run may be kept apart.
fn has(letter: &Stored, headers: &[Given]) -> bool {
    headers.iter().all(|(name, value)| {
        letter
            .headers
            .iter()
            .any(|(kept, bytes)| *kept == named(name) && bytes.as_deref() == *value)
    })
}
