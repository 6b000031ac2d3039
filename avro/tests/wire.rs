//! Every record, in every format and frame.

use std::fmt::Debug;

use apache_avro::Schema;
use apache_avro::schema_compatibility::SchemaCompatibility;
use bytes::Bytes;
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use retide_avro::wire::{
    Alert, Blob, Callback, CallbackLine, Codec, Error, Event, EventLine, Lateness, MAX_ENCODED,
    Scene, Wire,
};
use retide_avro::{Format, Framing};
use retide_core::selector::ErrorFingerprint;
use retide_core::{
    Ended, Failure, Kind, Omitted, Origin, Reason, Terminal, Timestamp, Transition, Wait,
};
use serde::{Deserialize, Serialize};

fn codecs<R: Wire>() -> [Codec<R>; 3] {
    [
        Codec::new(Format::Avro, Framing::SingleObject),
        Codec::new(Format::Avro, Framing::Confluent { schema_id: 258 }),
        Codec::new(Format::Json, Framing::SingleObject),
    ]
}

/// Round trip in every codec; then the same bytes damaged must not panic.
fn check<R: Wire + PartialEq + Debug>(record: &R, edits: &[(usize, u8, bool)]) {
    for codec in codecs::<R>() {
        let mut bytes = codec.encode(record).unwrap();
        assert_eq!(&codec.decode(&bytes).unwrap(), record);
        for (at, byte, cut) in edits {
            let at = at % (bytes.len() + 1);
            if *cut {
                bytes.truncate(at);
            } else if at < bytes.len() {
                bytes[at] = *byte;
            }
            let _ = codec.decode(&bytes);
        }
    }
}

fn edits() -> impl Strategy<Value = Vec<(usize, u8, bool)>> {
    vec(
        (any::<usize>(), any::<u8>(), prop::bool::weighted(0.2)),
        0..8,
    )
}

fn text() -> impl Strategy<Value = Option<String>> {
    option::of(".{0,20}")
}

prop_compose! {
    fn any_callback()(
        texts in (".{0,20}", ".{0,20}", ".{0,20}", ".{0,20}", ".{0,20}"),
        options in (text(), text(), text(), text()),
        numbers in (any::<i64>(), any::<i64>(), any::<i64>()),
        key in option::of(vec(any::<u8>(), 0..20)),
    ) -> Callback {
        Callback {
            id: texts.0, scene: texts.1, kind: texts.2, outcome: texts.3, origin: texts.4,
            reason: options.0, error_class: options.1, error_message: options.2,
            attempts: numbers.0, first_failed_at: numbers.1, ended_at: numbers.2,
            key: key.map(|key| Blob(key.into())), fingerprint: options.3,
        }
    }
}

prop_compose! {
    fn any_event()(
        texts in (".{0,20}", ".{0,20}", ".{0,20}", ".{0,20}"),
        options in (text(), text(), text(), text()),
        at in any::<i64>(),
        numbers in (option::of(any::<i64>()), option::of(any::<i64>()), option::of(any::<i64>()), option::of(any::<i64>())),
        lateness in option::of(prop::array::uniform9(any::<i64>())),
        left_out in text(),
        command in text(),
        fingerprint in text(),
    ) -> Event {
        Event {
            id: texts.0, scene: texts.1, kind: texts.2, event: texts.3, at,
            due_at: numbers.0, attempts: numbers.1, hops: numbers.2, deferred_until: numbers.3,
            outcome: options.0, reason: options.1, error_class: options.2, error_message: options.3,
            headers_left_out: left_out, command, fingerprint,
            lateness: lateness.map(|[rebalance, read, agenda, order, rate, concurrency, breaker, room, cooldown]| {
                Lateness { rebalance, read, agenda, order, rate, concurrency, breaker, room, cooldown }
            }),
        }
    }
}

/// Every kind of event.
fn every_event() -> Vec<retide_core::Event> {
    let due = Timestamp::from_micros(1_700_000_000_000_001);
    let failed = Transition::Failed {
        attempt: 3,
        outcome: "timeout",
        failure: Failure::new("timeout", "no answer"),
        due,
    };
    let held = Transition::Held {
        attempt: 3,
        outcome: "timeout",
        failure: Failure::new("timeout", "no answer"),
        reason: Reason::AttemptsExhausted,
    };
    let ended = |reason| Transition::Ended {
        terminal: Terminal::Dead,
        attempts: 2,
        reason,
        fingerprint: reason.and_then(|_| ErrorFingerprint::parse("00000000000000ff")),
    };
    [
        Transition::Parked { due },
        Transition::Hopped { due, hops: 7 },
        Transition::Deferred {
            due,
            until: Timestamp::from_millis(1_700_000_060_000),
        },
        Transition::Rescheduled { due },
        Transition::TooLate { why: "delivered" },
        Transition::Replayed {
            campaign: "mend".into(),
            times: 2,
            shard: 3,
        },
        Transition::Duplicate {
            fate: "dropped",
            told: Failure::new(
                "duplicate",
                "t/1/2: the task that entered at offset 1 is under way",
            ),
        },
        Transition::Pending {
            attempt: 2,
            until: due,
        },
        failed,
        held,
        ended(None),
        ended(Some(Reason::Rejected)),
    ]
    .map(|transition| retide_core::Event {
        id: "id".into(),
        scene: "pay".into(),
        kind: Kind::Work,
        at: Timestamp::from_millis(5),
        wait: matches!(transition, Transition::Failed { .. }).then_some(Wait {
            read: 7,
            ..Wait::default()
        }),
        left_out: matches!(transition, Transition::Failed { .. }).then(|| "cookie".into()),
        command: matches!(
            transition,
            Transition::Rescheduled { .. } | Transition::TooLate { .. }
        )
        .then(|| "c-1".into()),
        transition,
    })
    .into()
}

/// An event as versions before the lateness wrote it.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Before {
    id: String,
    scene: String,
    kind: String,
    at: i64,
    event: String,
    due_at: Option<i64>,
    attempts: Option<i64>,
    hops: Option<i64>,
    outcome: Option<String>,
    reason: Option<String>,
    error_class: Option<String>,
    error_message: Option<String>,
}

impl Wire for Before {
    const SCHEMA: &'static str = include_str!("../schemas/earlier/Event.1.avsc");
}

/// What it wrote of a task that was delivered.
fn delivered() -> Before {
    Before {
        id: "a".into(),
        scene: "pay".into(),
        kind: "work".into(),
        at: 5,
        event: "delivered".into(),
        due_at: None,
        attempts: Some(2),
        hops: None,
        outcome: None,
        reason: None,
        error_class: None,
        error_message: None,
    }
}

#[test]
fn an_event_of_an_earlier_version_is_read_and_says_nothing_of_lateness() {
    for format in [Format::Avro, Format::Json] {
        let before = Codec::<Before>::new(format, Framing::SingleObject);
        let now = Codec::<Event>::new(format, Framing::SingleObject);

        let read = now.decode(&before.encode(&delivered()).unwrap()).unwrap();

        assert_eq!(
            (&*read.id, &*read.event, read.attempts),
            ("a", "delivered", Some(2))
        );
        assert_eq!(read.lateness, None);
    }
}

/// An event as versions before the cause `order` wrote it.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Orderless {
    id: String,
    scene: String,
    kind: String,
    at: i64,
    event: String,
    due_at: Option<i64>,
    attempts: Option<i64>,
    hops: Option<i64>,
    outcome: Option<String>,
    reason: Option<String>,
    error_class: Option<String>,
    error_message: Option<String>,
    lateness: Option<OrderlessLateness>,
}

#[derive(Serialize, Deserialize)]
struct OrderlessLateness {
    rebalance: i64,
    read: i64,
    agenda: i64,
    rate: i64,
    concurrency: i64,
    breaker: i64,
    room: i64,
}

impl Wire for Orderless {
    const SCHEMA: &'static str = include_str!("../schemas/earlier/Event.2.avsc");
}

#[test]
fn lateness_of_an_earlier_version_is_read_and_has_nothing_by_order() {
    for format in [Format::Avro, Format::Json] {
        let before = Codec::<Orderless>::new(format, Framing::SingleObject);
        let now = Codec::<Event>::new(format, Framing::SingleObject);
        let lateness = OrderlessLateness {
            rebalance: 1,
            read: 2,
            agenda: 3,
            rate: 4,
            concurrency: 5,
            breaker: 6,
            room: 7,
        };
        let Before {
            id,
            scene,
            kind,
            event,
            ..
        } = delivered();
        let old = Orderless {
            id,
            scene,
            kind,
            at: 5,
            event,
            due_at: None,
            attempts: Some(2),
            hops: None,
            outcome: None,
            reason: None,
            error_class: None,
            error_message: None,
            lateness: Some(lateness),
        };

        let read = now.decode(&before.encode(&old).unwrap()).unwrap();

        let expected = Lateness {
            rebalance: 1,
            read: 2,
            agenda: 3,
            order: 0,
            rate: 4,
            concurrency: 5,
            breaker: 6,
            room: 7,
            cooldown: 0,
        };
        assert_eq!(read.lateness, Some(expected));
    }
}

#[test]
fn readers_of_earlier_schemas_and_of_this_one_can_read_each_others_records() {
    let schema = |text| Schema::parse_str(text).unwrap();

    for (now, earlier) in [
        (Event::SCHEMA, Event::EARLIER),
        (Callback::SCHEMA, Callback::EARLIER),
    ] {
        let now = schema(now);
        for before in earlier.iter().map(|text| schema(text)) {
            SchemaCompatibility::can_read(&before, &now).unwrap();
            SchemaCompatibility::can_read(&now, &before).unwrap();
        }
    }
}

/// A [`Callback`] before there were fingerprints.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct CallbackBefore {
    id: String,
    scene: String,
    kind: String,
    outcome: String,
    reason: Option<String>,
    attempts: i64,
    origin: String,
    first_failed_at: i64,
    ended_at: i64,
    error_class: Option<String>,
    error_message: Option<String>,
    key: Option<Blob>,
}

impl Wire for CallbackBefore {
    const SCHEMA: &'static str = include_str!("../schemas/earlier/Callback.1.avsc");
}

#[test]
fn a_callback_of_an_earlier_version_is_read_and_has_no_fingerprint() {
    for format in [Format::Avro, Format::Json] {
        let before = Codec::<CallbackBefore>::new(format, Framing::SingleObject);
        let now = Codec::<Callback>::new(format, Framing::SingleObject);
        let old = CallbackBefore {
            id: "a".into(),
            scene: "pay".into(),
            kind: "work".into(),
            outcome: "dead".into(),
            reason: Some("rejected".into()),
            attempts: 2,
            origin: "t/1/2".into(),
            first_failed_at: 5,
            ended_at: 6,
            error_class: Some("http-400".into()),
            error_message: Some("no".into()),
            key: Some(Blob(Bytes::from_static(b"k"))),
        };

        let read = now.decode(&before.encode(&old).unwrap()).unwrap();

        assert_eq!((&*read.id, read.attempts), ("a", 2));
        assert_eq!(read.key, Some(Blob(Bytes::from_static(b"k"))));
        assert_eq!(read.fingerprint, None);
    }
}

/// An [`Alert`] before there was one of a target.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct AlertBefore {
    rule: String,
    scene: String,
    at: i64,
    count: i64,
    example: String,
    reason: String,
}

impl Wire for AlertBefore {
    const SCHEMA: &'static str = include_str!("../schemas/earlier/Alert.1.avsc");
}

#[test]
fn an_alert_of_an_earlier_version_is_read_and_names_no_target() {
    for format in [Format::Avro, Format::Json] {
        let before = Codec::<AlertBefore>::new(format, Framing::SingleObject);
        let now = Codec::<Alert>::new(format, Framing::SingleObject);
        let old = AlertBefore {
            rule: "dead-tasks".into(),
            scene: "pay".into(),
            at: 5,
            count: 7,
            example: "a".into(),
            reason: "rejected".into(),
        };

        let read = now.decode(&before.encode(&old).unwrap()).unwrap();

        assert_eq!((&*read.rule, read.count), ("dead-tasks", 7));
        assert_eq!((read.target, read.until), (None, None));
    }
    let schema = |text| Schema::parse_str(text).unwrap();
    let (before, now) = (schema(AlertBefore::SCHEMA), schema(Alert::SCHEMA));
    SchemaCompatibility::can_read(&before, &now).unwrap();
    SchemaCompatibility::can_read(&now, &before).unwrap();
}

#[test]
fn lateness_that_is_nothing_costs_a_byte_for_each_cause() {
    let codec = Codec::<Event>::new(Format::Avro, Framing::SingleObject);
    let mut event = every_event().pop().unwrap();
    let bytes = |event: &retide_core::Event| codec.encode(&EventLine::from(event)).unwrap().len();

    let without = bytes(&event);
    event.wait = Some(Wait::default());
    let with = bytes(&event);

    assert_eq!(with - without, 9);
}

#[test]
fn an_event_is_read_as_it_was_written() {
    for event in every_event() {
        for codec in codecs::<Event>() {
            let line = EventLine::from(&event);

            let read = codec.decode(&codec.encode(&line).unwrap()).unwrap();

            let due = |due: Timestamp| Some(due.as_micros().div_ceil(1_000) as i64);
            let (due_at, attempts, hops) = match &event.transition {
                Transition::Parked { due: at }
                | Transition::Rescheduled { due: at }
                | Transition::Deferred { due: at, .. } => (due(*at), None, None),
                Transition::Replayed { times, .. } => (None, Some((*times).into()), None),
                Transition::TooLate { .. } | Transition::Duplicate { .. } => (None, None, None),
                Transition::Hopped { due: at, hops } => (due(*at), None, Some((*hops).into())),
                Transition::Pending { until: at, attempt }
                | Transition::Failed {
                    due: at, attempt, ..
                } => (due(*at), Some((*attempt).into()), None),
                Transition::Held {
                    attempt: attempts, ..
                }
                | Transition::Ended { attempts, .. } => (None, Some((*attempts).into()), None),
            };
            assert_eq!(read.event, event.transition.word());
            assert_eq!(
                (&*read.id, &*read.scene, &*read.kind, read.at),
                ("id", "pay", "work", 5)
            );
            assert_eq!(
                (read.due_at, read.attempts, read.hops),
                (due_at, attempts, hops)
            );
            let outcome = match &*read.event {
                "failed" | "held" => Some("timeout"),
                "too-late" => Some("delivered"),
                "duplicate" => Some("dropped"),
                "replayed" => Some("mend"),
                _ => None,
            };
            assert_eq!(read.outcome.as_deref(), outcome);
            assert_eq!(read.command.as_deref(), event.command.as_deref());
            let (class, message) = match &*read.event {
                "failed" | "held" => (Some("timeout"), Some("no answer")),
                "duplicate" => (
                    Some("duplicate"),
                    Some("t/1/2: the task that entered at offset 1 is under way"),
                ),
                _ => (None, None),
            };
            assert_eq!(read.error_class.as_deref(), class);
            assert_eq!(read.error_message.as_deref(), message);
            let rejected = matches!(
                event.transition,
                Transition::Ended {
                    reason: Some(_),
                    ..
                }
            );
            let failure = Failure::new("timeout", "no answer");
            let print = match &*read.event {
                "failed" | "held" => Some(ErrorFingerprint::of("pay", &failure).to_string()),
                _ => rejected.then(|| "00000000000000ff".to_owned()),
            };
            assert_eq!(read.fingerprint, print);
            let held = (read.event == "held").then_some("attempts-exhausted");
            assert_eq!(
                read.reason.as_deref(),
                rejected.then_some("rejected").or(held)
            );
        }
    }
}

proptest! {
    // Avro without optimization takes some 30 ms for each.
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn callbacks_survive_every_format(record in any_callback(), edits in edits()) {
        check(&record, &edits);
        let _ = Ended::try_from(record);
    }

    #[test]
    fn events_survive_every_format(record in any_event(), edits in edits()) {
        check(&record, &edits);
    }

    #[test]
    fn alerts_and_scenes_survive_every_format(
        a in ".{0,20}", b in ".{0,20}", c in ".{0,20}", d in ".{0,20}",
        at in any::<i64>(), count in any::<i64>(), edits in edits(),
    ) {
        check(&Scene { name: a.clone(), rules: b.clone(), updated_at: at }, &edits);
        let target = (count % 2 == 0).then(|| a.clone());
        let (failed, until) = (target.as_ref().map(|_| count), target.as_ref().map(|_| at));
        let (slow, since) = (failed, until);
        let samples = target.clone().map(|target| vec![target, String::new()]);
        check(&Alert { rule: a, scene: b, at, count, example: c, reason: d, target, failed, slow, since, until, samples }, &edits);
    }
}

proptest! {
    #[test]
    fn no_bytes_panic(bytes in vec(any::<u8>(), 0..60)) {
        for codec in codecs::<Callback>() {
            let _ = codec.decode(&bytes);
            let empty = Scene { name: String::new(), rules: String::new(), updated_at: 0 };
            let framed = Codec::<Scene>::new(codec.format(), Framing::SingleObject);
            let mut framed_bytes = framed.encode(&empty).unwrap();
            framed_bytes.truncate(10);
            framed_bytes.extend(&bytes);
            let _ = framed.decode(&framed_bytes);
        }
    }
}

#[test]
fn an_end_survives_its_callback() {
    for terminal in Terminal::ALL {
        for reason in Reason::ALL.map(Some).into_iter().chain([None]) {
            let ended = Ended {
                id: "id".into(),
                scene: "pay".into(),
                kind: Kind::Callback,
                terminal,
                reason,
                attempts: u32::MAX,
                origin: Origin {
                    topic: "a/b".into(),
                    partition: 1,
                    offset: 2,
                },
                first_failed_at: Timestamp::from_millis(5),
                at: Timestamp::from_millis(6),
                failure: Some(Failure::new("timeout", "none")),
                key: Some(Bytes::from_static(b"\xff")),
                omitted: Omitted::Nothing,
            };

            assert_eq!(Ended::try_from(Callback::from(&ended)).unwrap(), ended);
            for codec in codecs::<Callback>() {
                let line = codec.encode(&CallbackLine::from(&ended)).unwrap();
                assert_eq!(line, codec.encode(&Callback::from(&ended)).unwrap());
            }
        }
    }
}

#[test]
fn what_is_too_large_or_goes_on_is_refused() {
    let scene = Scene {
        name: "pay".to_owned(),
        rules: String::new(),
        updated_at: 1,
    };
    let [avro, _, json] = codecs::<Scene>();

    let mut bytes = avro.encode(&scene).unwrap();
    bytes.push(0);

    assert!(matches!(
        avro.decode(&bytes),
        Err(Error::Trailing { left: 1 })
    ));
    assert!(matches!(avro.decode(b"{}"), Err(Error::Frame)));
    let large = vec![b' '; MAX_ENCODED + 1];
    assert!(matches!(json.decode(&large), Err(Error::TooLarge { .. })));
    assert_eq!(
        String::from_utf8(json.encode(&scene).unwrap()).unwrap(),
        r#"{"name":"pay","rules":"","updatedAt":1}"#
    );
}

#[test]
fn a_record_is_framed_by_the_specification_and_read_with_the_fingerprint_of_earlier_versions() {
    let scene = Scene {
        name: "pay".into(),
        rules: "x".into(),
        updated_at: 5,
    };
    let codec = Codec::<Scene>::new(Format::Avro, Framing::SingleObject);
    let schema = Schema::parse_str(Scene::SCHEMA).unwrap();
    let former = schema.fingerprint::<apache_avro::rabin::Rabin>().bytes;

    let bytes = codec.encode(&scene).unwrap();
    let before = [&[0xc3, 0x01][..], &former, &bytes[10..]].concat();

    // By Java.
    assert_eq!(
        bytes[..10],
        [0xc3, 0x01, 0xbc, 0x41, 0x73, 0x21, 0xb8, 0xb0, 0x25, 0x71]
    );
    assert_ne!(bytes[..10], before[..10]);
    assert_eq!(codec.decode(&before).unwrap(), scene);
}
