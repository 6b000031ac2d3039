//! Records of the commands topic: what is written byte for byte, what people may write, and what is refused with which words.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use apache_avro::types::Value;
use bytes::Bytes;
use proptest::prelude::*;

use retide_avro::control::{self, COMMAND_SCHEMA, MAX_REFUSAL, STAGE, Stage, decode, encode};
use retide_avro::schema::Schema;
use retide_core::control::{
    Answer, Command, Control, Counts, EXPIRY, Ended, Looked, MAX_ID, MAX_TEXT, Place, Refusal,
    Step, Verb,
};
use retide_core::selector::{ErrorFingerprint, MAX_VALUES, OriginPattern, Parts, Selector, Span};
use retide_core::{Failure, Header, Outcome, Record, Source, Timestamp};

/// When every request is appended.
const NOW: Timestamp = Timestamp::from_millis(1_795_836_382_000);

/// Where it stands.
const PLACE: Place = Place {
    at: NOW,
    partition: 3,
    offset: 42,
};

/// The topic of a tier.
fn topic(source: Source) -> Arc<str> {
    match source {
        Source::Tier(tier) => format!("retry.delay.{tier}").into(),
        other => unreachable!("{other:?} is no tier"),
    }
}

/// The tier of a topic.
fn tier(topic: &str) -> Option<Source> {
    let tier = topic.strip_prefix("retry.delay.")?;
    tier.parse().ok().map(Source::Tier)
}

/// A record without headers.
fn plain(value: impl Into<Vec<u8>>) -> Record {
    Record {
        value: Some(Bytes::from(value.into())),
        ..Record::default()
    }
}

/// The request that a text is.
fn request(text: &str) -> Command {
    match decode(&plain(text), PLACE, &tier) {
        Ok(Control::Request(command)) => Arc::unwrap_or_clone(command),
        other => panic!("{text}: {other:?}"),
    }
}

/// Why a value is no request.
fn refusal(value: impl Into<Vec<u8>>) -> String {
    let refusal = *decode(&plain(value), PLACE, &tier).expect_err("it is refused");
    assert_eq!(refusal.place, PLACE);
    assert!(refusal.why.len() <= MAX_REFUSAL && !refusal.why.is_empty());
    refusal.why.into()
}

/// The parts of a request for the tasks that `select` says.
fn parts(select: &str) -> Parts {
    let text = format!(r#"{{"command":"cancel","select":{select}}}"#);
    request(&text).selector.parts().clone()
}

/// Why tasks cannot be selected so.
fn bad_select(select: &str) -> String {
    refusal(format!(r#"{{"command":"cancel","select":{select}}}"#))
}

/// What is read from what is written.
fn again(control: &Control) -> Control {
    let written = encode(control, &topic);
    let record = Record {
        key: Some(written.key),
        value: Some(written.value),
        headers: written.headers,
    };
    decode(&record, PLACE, &tier).expect("what is written is read")
}

/// A command that uses every part of a selector.
fn whole() -> Command {
    let span = Span {
        from: Timestamp::from_millis(1_795_000_000_000),
        before: Timestamp::MAX,
    };
    let parts = Parts {
        ids: ["a", "b"].map(Arc::from).into(),
        scenes: ["payment".into()].into(),
        keys: [Bytes::from_static(b"k"), Bytes::from_static(b"\xff\x00")].into(),
        headers: vec![
            ("order-no".into(), Bytes::from_static(b"4711")),
            ("order-no".into(), Bytes::from_static(b"\xff")),
        ],
        errors: ["http-503".into()].into(),
        fingerprints: [ErrorFingerprint::parse("00000000000000ff").expect("one")].into(),
        targets: ["shop.example".into()].into(),
        attempts: Some(2..=5),
        entered: Some(span),
        due: Some(Span {
            from: Timestamp::EPOCH,
            before: NOW,
        }),
        origins: vec![
            OriginPattern {
                topic: "retry.tasks".into(),
                partition: Some(3),
                offset: Some(9),
            },
            OriginPattern {
                topic: "other".into(),
                partition: None,
                offset: None,
            },
        ],
    };
    Command {
        place: PLACE,
        id: "c-1".into(),
        verb: Verb::Complete(Outcome::Permanent(Failure::new("fraud", "card is stolen"))),
        selector: Selector::new(parts).expect("parts"),
        by: "ann".into(),
        reason: "a \"reason\"".into(),
        expires: NOW + EXPIRY,
    }
}

#[test]
fn what_is_written_never_changes() {
    let text = |control: &Control| {
        let written = encode(control, &topic);
        let headers = written.headers.iter().map(|header| {
            let value = header.value.as_deref().unwrap_or_default();
            format!("{}={}", header.name, value.escape_ascii())
        });
        let headers: Vec<String> = headers.collect();
        assert_eq!(&written.key[..], b"c-1");
        format!(
            "{} {}",
            headers.join(" "),
            String::from_utf8_lossy(&written.value)
        )
    };
    let command = Arc::new(whole());
    let select = r#""select":{"id":["a","b"],"scene":["payment"],"key":["k"],"key_base64":["/wA="],"header":[{"name":"order-no","value":"4711"},{"name":"order-no","value_base64":"/w=="}],"error":["http-503"],"fingerprint":["00000000000000ff"],"target":["shop.example"],"attempts":"2..5","entered":"1795000000000..","due":"0..1795836382000","origin":["retry.tasks/3/9","other"]}"#;
    let common = format!(
        r#"{{"command":"complete",{select},"outcome":"permanent","error":"fraud: card is stolen","id":"c-1","by":"ann","reason":"a \"reason\"","expires_at":1795839982000"#
    );
    let place = "1795836382000/3/42";

    assert_eq!(
        text(&Control::Request(command.clone())),
        format!(" {common}}}")
    );
    let looked = vec![Looked {
        source: Source::Tier(2),
        to: 7,
    }];
    let step = Step {
        again: false,
        before: Counts::default(),
        command,
        shards: 12,
        looked: Some(looked),
    };
    assert_eq!(
        text(&Control::Step(step)),
        format!(
            r#"retry-command-stage=step retry-command={place} {common},"place":"{place}","shards":12,"looked":[{{"topic":"retry.delay.2","to":7}}]}}"#
        )
    );
    let counts = Counts {
        done: 3,
        too_late: 1,
        found: 1,
    };
    let answer = Answer {
        place: PLACE,
        id: "c-1".into(),
        of: [5, 7].into(),
        shards: 12,
        ids: 2,
        counts,
        again: None,
    };
    assert_eq!(
        text(&Control::Answer(answer)),
        format!(
            r#"retry-command-stage=answer retry-command={place} {{"place":"{place}","id":"c-1","of":[5,7],"shards":12,"ids":2,"done":3,"too_late":1,"found":1}}"#
        )
    );
    let ended = |result| {
        Control::Ended(Ended {
            place: PLACE,
            id: "c-1".into(),
            at: NOW,
            ids: 2,
            result,
        })
    };
    assert_eq!(
        text(&ended(Ok(counts))),
        format!(
            r#"retry-command-stage=ended retry-command={place} {{"place":"{place}","id":"c-1","at":1795836382000,"matched":4,"done":3,"too_late":1,"not_found":1,"ids":2,"found":1}}"#
        )
    );
    assert_eq!(
        text(&ended(Err("no".into()))),
        format!(
            r#"retry-command-stage=ended retry-command={place} {{"place":"{place}","id":"c-1","at":1795836382000,"refused":"no","matched":0,"done":0,"too_late":0,"not_found":2,"ids":2,"found":0}}"#
        )
    );
}

#[test]
fn a_request_is_read_as_people_write_it() {
    let command = request(
        r#" {"command":"cancel","select":{"scene":"payment","header":{"order-no":4711}},"by":"ann","reason":"refunded"} "#,
    );
    assert_eq!(command.verb, Verb::Cancel);
    assert_eq!(&*command.id, "1795836382000/3/42");
    assert_eq!((&*command.by, &*command.reason), ("ann", "refunded"));
    assert_eq!(command.expires, NOW + EXPIRY);
    let parts = command.selector.parts();
    assert_eq!(parts.scenes, BTreeSet::from(["payment".into()]));
    assert_eq!(
        parts.headers,
        [("order-no".into(), Bytes::from_static(b"4711"))]
    );

    let with = |rest: &str| {
        request(&format!(
            "\u{feff}{{\"select\":{{\"id\":[1,\"b\"]}},{rest}}}"
        ))
    };
    let due = |rest: &str| match with(rest).verb {
        Verb::Reschedule { due } => due,
        other => panic!("{other:?}"),
    };
    assert_eq!(with(r#""command":"run-now""#).verb, Verb::RunNow);
    let ten = NOW + Duration::from_mins(10);
    assert_eq!(due(r#""command":"reschedule","in":"10m""#), ten);
    assert_eq!(
        due(r#""command":"reschedule","at":"2026-11-28T01:26:22+00:00""#),
        due(r#""command":"reschedule","at":1795829182000"#)
    );
    assert_eq!(
        with(r#""command":"complete","outcome":"success""#).verb,
        Verb::Complete(Outcome::Success)
    );
    let told = |rest: &str| {
        let verb = with(&format!(
            r#""command":"complete","outcome":"retryable"{rest}"#
        ))
        .verb;
        match verb {
            Verb::Complete(Outcome::Retryable(failure)) => failure.to_string(),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(told(""), "reported: told by a command");
    assert_eq!(told(r#","reason":"by hand""#), "reported: by hand");
    assert_eq!(told(r#","error":"http-502: bad""#), "http-502: bad");
    assert_eq!(told(r#","error":"bad""#), "reported: bad");
    let expires = |rest: &str| with(&format!(r#""command":"cancel",{rest}"#)).expires;
    assert_eq!(expires(r#""expires_in":"0s""#), NOW);
    assert_eq!(
        expires(r#""expires_in":"7d""#),
        NOW + Duration::from_hours(168)
    );
    assert_eq!(
        expires(r#""expires_at":1795836383000,"expires_in":null"#),
        NOW + Duration::from_secs(1)
    );
}

#[test]
fn each_part_of_a_selector_is_read() {
    let span = |select: &str| {
        let parts = parts(&format!(r#"{{"due":"{select}"}}"#));
        let span = parts.due.expect("a span");
        (span.from, span.before)
    };
    let hour = Duration::from_hours(1);
    assert_eq!(span("-1h..+1h"), (NOW.before(hour), NOW + hour));
    assert_eq!(span("now.."), (NOW, Timestamp::MAX));
    assert_eq!(span("..now"), (Timestamp::EPOCH, NOW));
    assert_eq!(
        span("2026-11-28T03:26:22Z..1795836383000"),
        (NOW, NOW + Duration::from_secs(1))
    );
    let attempts = |text: &str| parts(&format!(r#"{{"attempts":{text}}}"#)).attempts;
    assert_eq!(attempts("3"), Some(3..=3));
    assert_eq!(attempts(r#""2..5""#), Some(2..=5));
    assert_eq!(attempts(r#""2..""#), Some(2..=u32::MAX));
    assert_eq!(attempts(r#""..5""#), Some(0..=5));
    let header = |text: &str| parts(&format!(r#"{{"header":{text}}}"#)).headers;
    let order = ("order".into(), Bytes::from_static(b"4=7"));
    assert_eq!(header(r#""order=4=7""#), vec![order.clone()]);
    assert_eq!(header(r#"["order=4=7"]"#), vec![order.clone()]);
    assert_eq!(header(r#"{"order":"4=7"}"#), vec![order.clone()]);
    assert_eq!(
        header(r#"[{"name":"order","value_base64":"ND03"}]"#),
        [order]
    );
    let origin = |text: &str| {
        let origins = parts(&format!(r#"{{"origin":"{text}"}}"#)).origins;
        let origin = origins.first().expect("one");
        (origin.topic.to_string(), origin.partition, origin.offset)
    };
    assert_eq!(origin("t"), ("t".to_owned(), None, None));
    assert_eq!(origin("t/1"), ("t".to_owned(), Some(1), None));
    assert_eq!(origin("t/1/2"), ("t".to_owned(), Some(1), Some(2)));
    let several = parts(r#"{"key":["a","b","a"],"key_base64":"AA==","target":"h","error":["x"]}"#);
    assert_eq!(several.keys.len(), 3);
}

#[test]
fn what_names_no_tasks_is_refused_in_words() {
    let many = format!(r#"{{"id":[{}7]}}"#, "7,".repeat(MAX_VALUES));
    let long = format!(r#"{{"id":"{}"}}"#, "x".repeat(1 << 18));
    let huge = format!(r#"{{"id":"{}"}}"#, "x".repeat(1 << 20));
    let deep = format!(r#"{{"id":{}"#, "[".repeat(1 << 18));
    for (select, words) in [
        ("{}", "the selector is empty"),
        ("[]", "select is \"[]"),
        ("\"all\"", "an object is expected"),
        (r#"{"id":[]}"#, "\"id\" of select is []"),
        (r#"{"scene":"s","id":null}"#, "\"id\" of select is null"),
        (r#"{"scene":"s","id":""}"#, "leave it out, or name a value"),
        (r#"{"id":["a",""]}"#, "an empty text"),
        (r#"{"id":["a",null]}"#, "null found, text"),
        (r#"{"id":{"a":1}}"#, "an array of texts"),
        (r#"{"scnee":"s"}"#, "did you mean scene?"),
        (r#"{"where":"s"}"#, "expected are id, scene"),
        (r#"{"id":"a","id":"b"}"#, "select.id is there twice"),
        (r#"{"header":{"a":["b"]}}"#, "send a command for each value"),
        (r#"{"header":"a"}"#, "NAME=VALUE expected"),
        (r#"{"header":"=a"}"#, "an empty name"),
        (r#"{"header":{"a":"b","a":"c"}}"#, "twice"),
        (r#"{"fingerprint":"12"}"#, "16 hexadecimal digits"),
        (r#"{"attempts":"5..2"}"#, "attempts ends before it begins"),
        (r#"{"attempts":".."}"#, "N, N..M"),
        (r#"{"attempts":"few"}"#, "N, N..M"),
        (r#"{"entered":"2h..now"}"#, "with + or - before it"),
        (r#"{"entered":"-2h"}"#, "FROM..TO expected"),
        (r#"{"entered":".."}"#, "FROM..TO expected"),
        (r#"{"entered":"now..-2h"}"#, "entered ends before it begins"),
        (r#"{"due":"1795836382.."}"#, "seconds?"),
        (r#"{"due":"2026-11-28.."}"#, "a date?"),
        (r#"{"origin":"t/x"}"#, "TOPIC/PARTITION"),
        (r#"{"origin":"t/1/2/3"}"#, "TOPIC/PARTITION"),
        (r#"{"origin":"/1"}"#, "TOPIC/PARTITION"),
        (r#"{"key_base64":"A"}"#, "base64"),
        (&many, "over 1000 values"),
        (&long, "has 262144 bytes; it may have 1024"),
        (&huge, "it may have 524288: send several"),
        (&deep, "not JSON at line 1"),
    ] {
        let why = bad_select(select);
        assert!(
            why.contains(words),
            "{}: {why}",
            &select[..select.len().min(60)]
        );
    }
}

#[test]
fn what_is_no_request_is_refused_in_words() {
    for (rest, words) in [
        (r#""command":"delete""#, "one of cancel, run-now"),
        (r#""command":"cancelled""#, "did you mean cancel?"),
        (r#""command":"run_now""#, "did you mean run-now?"),
        (r#""commnad":"cancel""#, "did you mean command?"),
        (r#""reason":"x""#, "command is missing"),
        (
            r#""command":"cancel","in":"5m""#,
            "belongs to the command reschedule",
        ),
        (
            r#""command":"run-now","outcome":"success""#,
            "belongs to the command complete",
        ),
        (r#""command":"reschedule""#, "needs at"),
        (
            r#""command":"reschedule","at":1795836383000,"in":"5m""#,
            "both at and in",
        ),
        (r#""command":"reschedule","in":"5""#, "no unit"),
        (r#""command":"reschedule","in":"9999d""#, "the longest wait"),
        (r#""command":"reschedule","at":1795836382"#, "seconds?"),
        (r#""command":"reschedule","at":1.0e300"#, "a time as"),
        (r#""command":"reschedule","at":"tomorrow""#, "a time as"),
        (r#""command":"complete""#, "outcome is missing"),
        (
            r#""command":"complete","outcome":"sucess""#,
            "did you mean success?",
        ),
        (
            r#""command":"complete","outcome":"success","error":"x""#,
            "leave one of them out",
        ),
        (r#""command":"cancel","expires_in":"8d""#, "at the latest"),
        (
            r#""command":"cancel","expires_at":1795836381000"#,
            "expired 1s before",
        ),
        (
            r#""command":"cancel","expires_at":1795836381000,"expires_in":"1s""#,
            "both expires_in",
        ),
        (r#""command":"cancel","id":"""#, "id is empty"),
        (r#""command":"cancel","id":"a\nb""#, "one line"),
        (r#""command":"cancel","id":["a"]"#, "text or a number"),
        (r#""command":"cancel","id":"\ud800""#, "half a character"),
    ] {
        let why = refusal(format!(r#"{{"select":{{"id":"a"}},{rest}}}"#));
        assert!(why.contains(words), "{rest}: {why}");
    }
    let long = |key: &str, length| {
        let value = "x".repeat(length);
        refusal(format!(
            r#"{{"command":"cancel","select":{{"id":"a"}},"{key}":"{value}"}}"#
        ))
    };
    assert!(long("id", MAX_ID + 1).contains("it may have 256"));
    assert!(long("reason", MAX_TEXT + 1).contains("it may have 1024"));
    for value in ["", " ", "cancel 4711", "[]", "7", "{", "{\"a\":1}}"] {
        refusal(value);
    }
    assert!(refusal(b"{\"id\":\"\xff\"}".to_vec()).contains("not UTF-8"));
    assert!(decode(&Record::default(), PLACE, &tier).is_err());
}

#[test]
fn a_refusal_says_which_command() {
    let id = |text: &str| {
        let refusal = decode(&plain(text), PLACE, &tier).expect_err("it is refused");
        refusal.id.to_string()
    };

    assert_eq!(id(r#"{"id":"c-7","command":"x"}"#), "c-7");
    assert_eq!(id(r#"{"id":"c-7","select":{"id":"a"#), "c-7");
    assert_eq!(id("nothing"), PLACE.to_string());
}

#[test]
fn a_record_of_another_stage_is_no_request() {
    let staged = |stage: &str, value: &str| {
        let header = Header {
            name: STAGE.into(),
            value: Some(Bytes::copy_from_slice(stage.as_bytes())),
        };
        let record = Record {
            headers: vec![header],
            ..plain(value)
        };
        decode(&record, PLACE, &tier)
    };
    let text = r#"{"command":"cancel","select":{"id":"a"}}"#;

    let later = staged("hold", text).expect_err("it is refused");
    assert!(later.why.contains("does not know"), "{later:?}");
    for stage in [Stage::Step, Stage::Answer, Stage::Ended] {
        assert!(staged(stage.word(), text).is_err(), "{stage:?}");
    }
    // Of a tier that is gone nothing is left to be looked at.
    let step = staged(
        "step",
        r#"{"command":"cancel","select":{"id":"a"},"expires_at":7,"place":"1/2/3","shards":2,"looked":[{"topic":"gone","to":1},{"topic":"retry.delay.4","to":2}]}"#,
    );
    let Ok(Control::Step(step)) = step else {
        panic!("{step:?}");
    };
    let looked = vec![Looked {
        source: Source::Tier(4),
        to: 2,
    }];
    assert_eq!(step.looked, Some(looked));
    // A later version may say more of an answer.
    let answer = r#"{"place":"1/2/3","id":"a","of":[1],"shards":2,"ids":0,"done":1,"too_late":0,"found":0,"more":[]}"#;
    assert!(staged("answer", answer).is_ok());
}

#[test]
fn a_selector_is_read_alone() {
    let read = control::selector(br#"{"scene":"a","due":"..+1h"}"#, NOW).expect("a selector");
    assert_eq!(
        read.parts().due.expect("a span").before,
        NOW + Duration::from_hours(1)
    );
    assert!(control::selector(b"{}", NOW).is_err());
}

/// Texts of all kinds that are not empty.
fn word() -> impl Strategy<Value = String> {
    prop_oneof!["[a-z0-9./=:\"\\\\ -]{1,12}", "\\PC{1,8}", "[^\u{0}]{1,6}"]
}

/// An instant in whole milliseconds, of times that people mean.
fn instant() -> impl Strategy<Value = Timestamp> {
    (1_000_000_000_000_u64..4_000_000_000_000).prop_map(Timestamp::from_millis)
}

/// A span of time.
fn span() -> impl Strategy<Value = Span> {
    (
        instant(),
        prop_oneof![4 => instant(), 1 => Just(Timestamp::MAX)],
    )
        .prop_filter_map("a span", |(from, before)| {
            (from < before).then_some(Span { from, before })
        })
}

/// Parts of a selector.
fn any_parts() -> impl Strategy<Value = Parts> {
    let words = || prop::collection::vec(word(), 0..3);
    let bytes = || prop::collection::vec(any::<u8>(), 1..8).prop_map(Bytes::from);
    let value = || prop_oneof![word().prop_map(Bytes::from), bytes()];
    let origin = (
        "[a-z.]{1,9}",
        prop::option::of((0_i32..9, prop::option::of(0_i64..99))),
    );
    let origin = origin.prop_map(|(topic, place)| OriginPattern {
        topic: topic.into(),
        partition: place.map(|(partition, _)| partition),
        offset: place.and_then(|(_, offset)| offset),
    });
    let attempts = (0_u32..9, 0_u32..9).prop_map(|(from, more)| from..=from + more);
    (
        (words(), words(), words(), words()),
        prop::collection::vec(value(), 0..3),
        prop::collection::vec((word(), value()), 0..3),
        prop::collection::vec(any::<u64>(), 0..2),
        prop::option::of(attempts),
        (prop::option::of(span()), prop::option::of(span())),
        prop::collection::vec(origin, 0..3),
    )
        .prop_map(
            |((ids, scenes, errors, targets), keys, headers, prints, attempts, spans, origins)| {
                let print = |number: u64| ErrorFingerprint::parse(&format!("{number:016x}"));
                Parts {
                    ids: ids.into_iter().map(Arc::from).collect(),
                    scenes: scenes.into_iter().map(Arc::from).collect(),
                    keys: keys.into_iter().collect(),
                    headers: headers
                        .into_iter()
                        .map(|(name, value)| (name.into(), value))
                        .collect(),
                    errors: errors.into_iter().map(Box::from).collect(),
                    fingerprints: prints.into_iter().filter_map(print).collect(),
                    targets: targets.into_iter().map(Box::from).collect(),
                    attempts,
                    entered: spans.0,
                    due: spans.1,
                    origins,
                }
            },
        )
}

/// Something to do.
fn verb() -> impl Strategy<Value = Verb> {
    let failure = || {
        let parts = (word(), "\\PC{0,9}");
        parts.prop_map(|(class, message)| Failure::new(&class, &message))
    };
    prop_oneof![
        Just(Verb::Cancel),
        Just(Verb::RunNow),
        (0_u64..1_000_000).prop_map(|late| Verb::Reschedule {
            due: NOW + Duration::from_millis(late)
        }),
        Just(Verb::Complete(Outcome::Success)),
        failure().prop_map(|failure| Verb::Complete(Outcome::Retryable(failure))),
        failure().prop_map(|failure| Verb::Complete(Outcome::Permanent(failure))),
    ]
}

/// A command.
fn command() -> impl Strategy<Value = Command> {
    let text = || prop_oneof![Just(String::new()), word()];
    let id = word().prop_filter("one line", |id| !id.contains(char::is_control));
    (id, verb(), any_parts(), text(), text(), 0_u64..600_000_000).prop_filter_map(
        "a selector",
        |(id, verb, parts, by, reason, wait)| {
            Some(Command {
                place: PLACE,
                id: id.into(),
                verb,
                selector: Selector::new(parts).ok()?,
                by: by.into(),
                reason: reason.into(),
                expires: NOW + Duration::from_millis(wait),
            })
        },
    )
}

proptest! {
    #[test]
    fn what_is_written_is_read(
        command in command(),
        shards in 1_u32..99,
        looked in prop::option::of(prop::collection::vec((0_usize..12, 0_i64..99), 0..4)),
        counts in (any::<u64>(), any::<u64>(), any::<u64>()),
        why in prop::option::of("\\PC{0,40}"),
    ) {
        let looked = looked.map(|looked| {
            let looked = looked.into_iter();
            looked.map(|(tier, to)| Looked { source: Source::Tier(tier), to }).collect()
        });
        let counts = Counts { done: counts.0, too_late: counts.1, found: counts.2 };
        let id = command.id.clone();
        let command = Arc::new(command);
        let step = Step { command: command.clone(), shards, again: true, before: counts, looked };
        let once_more = why.is_some().then(|| Box::new(step.clone()));
        let answer = Answer { place: PLACE, id: id.clone(), of: [3].into(), shards, ids: 9, counts, again: once_more };
        let result = why.map_or(Ok(counts), |why| Err(why.into()));
        let ended = Ended { place: PLACE, id, at: NOW, ids: 9, result };
        for control in [
            Control::Request(command),
            Control::Step(step),
            Control::Answer(answer),
            Control::Ended(ended),
        ] {
            prop_assert_eq!(again(&control), control);
        }
    }

    #[test]
    fn nothing_makes_it_panic(value in "\\PC{0,64}", stage in prop::option::of("step|answer|ended|x")) {
        let mut record = plain(value);
        record.headers.extend(stage.map(|stage| Header { name: STAGE.into(), value: Some(stage.into()) }));
        if let Err(refusal) = decode(&record, PLACE, &tier) {
            prop_assert!(refusal.why.len() <= MAX_REFUSAL && refusal.id.len() <= MAX_ID);
        }
    }
}

// === Avro ===

/// A request in Avro, of the fields that are not left out; those of `select` likewise.
fn in_avro(fields: &[(&str, &str)], select: &[(&str, Value)]) -> Vec<u8> {
    let schema = apache_avro::Schema::parse_str(COMMAND_SCHEMA).unwrap();
    let texts = |texts: &[&str]| {
        Value::Array(
            texts
                .iter()
                .map(|text| Value::String((*text).to_owned()))
                .collect(),
        )
    };
    let optional = |text: Option<&str>| match text {
        Some(text) => Value::Union(1, Box::new(Value::String(text.to_owned()))),
        None => Value::Union(0, Box::new(Value::Null)),
    };
    let chosen = |name: &str| {
        let found = select.iter().find(|(key, _)| *key == name);
        found.map(|(_, value)| value.clone())
    };
    let arrays = [
        "id",
        "scene",
        "key",
        "key_base64",
        "header",
        "error",
        "fingerprint",
        "target",
    ];
    let mut parts: Vec<(String, Value)> = Vec::new();
    for name in arrays {
        parts.push((name.to_owned(), chosen(name).unwrap_or_else(|| texts(&[]))));
    }
    for name in ["attempts", "entered", "due"] {
        parts.push((
            name.to_owned(),
            chosen(name).unwrap_or_else(|| optional(None)),
        ));
    }
    parts.push((
        "origin".to_owned(),
        chosen("origin").unwrap_or_else(|| texts(&[])),
    ));
    let said = |name: &str| {
        fields
            .iter()
            .find(|(key, _)| *key == name)
            .map(|(_, text)| *text)
    };
    let mut record: Vec<(String, Value)> = vec![
        (
            "command".to_owned(),
            Value::String(said("command").unwrap().to_owned()),
        ),
        ("select".to_owned(), Value::Record(parts)),
    ];
    for name in [
        "id",
        "by",
        "reason",
        "at",
        "in",
        "outcome",
        "error",
        "expires_in",
        "expires_at",
    ] {
        record.push((name.to_owned(), optional(said(name))));
    }
    apache_avro::to_avro_datum(&schema, Value::Record(record)).unwrap()
}

/// An array of texts.
fn texts(texts: &[&str]) -> Value {
    Value::Array(
        texts
            .iter()
            .map(|text| Value::String((*text).to_owned()))
            .collect(),
    )
}

/// What is read of a value.
fn read(value: impl Into<Vec<u8>>) -> Result<Control, Box<Refusal>> {
    decode(&plain(value), PLACE, &tier)
}

/// The two frames of a datum.
fn frames(datum: &[u8]) -> [Vec<u8>; 2] {
    let fingerprint = Schema::parse(COMMAND_SCHEMA, &[]).unwrap().fingerprint();
    [
        [&[0xc3, 0x01], &fingerprint[..], datum].concat(),
        [&[0, 0, 0, 0, 42], datum].concat(),
    ]
}

#[test]
fn a_request_in_avro_is_the_same_one_in_json() {
    let header = Value::Record(vec![
        ("name".to_owned(), Value::String("order-no".to_owned())),
        ("value".to_owned(), Value::String("4711".to_owned())),
    ]);
    let datum = in_avro(
        &[
            ("command", "reschedule"),
            ("id", "c-1"),
            ("by", "ann"),
            ("reason", "later"),
            ("in", "10m"),
            ("expires_in", "2h"),
        ],
        &[
            ("scene", texts(&["payment", "mail"])),
            ("header", Value::Array(vec![header])),
            (
                "attempts",
                Value::Union(1, Box::new(Value::String("2..5".to_owned()))),
            ),
        ],
    );
    let json = r#"{"command":"reschedule","select":{"scene":["payment","mail"],"header":{"order-no":"4711"},"attempts":"2..5"},
        "id":"c-1","by":"ann","reason":"later","in":"10m","expires_in":"2h"}"#;

    for framed in frames(&datum) {
        assert_eq!(read(framed), read(json));
    }
}

#[test]
fn a_request_in_avro_that_says_nothing_is_refused_as_in_json() {
    let datum = in_avro(&[("command", "cancel"), ("id", "c-2")], &[]);
    for framed in frames(&datum) {
        let refusal = read(framed).unwrap_err();

        assert_eq!(&*refusal.id, "c-2", "who has sent it finds it");
        assert_eq!(
            refusal.why,
            read(r#"{"command":"cancel","select":{},"id":"c-2"}"#)
                .unwrap_err()
                .why
        );
    }
}

#[test]
fn avro_of_another_schema_is_refused_with_what_would_be_read() {
    let datum = in_avro(&[("command", "cancel")], &[("id", texts(&["a"]))]);
    let [mut own, confluent] = frames(&datum);
    own[2] ^= 1;
    let longer = [&confluent[..], b"\0"].concat();
    let short = confluent[..confluent.len() - 1].to_vec();
    for broken in [
        own,
        longer,
        short,
        vec![0],
        vec![0xc3, 0x01],
        [&[0, 0, 0, 0, 1], &[0xff; 40][..]].concat(),
    ] {
        let why = read(broken).unwrap_err().why;

        assert!(why.contains("io.retide.Command"), "{why}");
    }
}
