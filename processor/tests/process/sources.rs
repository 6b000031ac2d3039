//! Dead letters of others: each becomes one task with its key, payload and headers, also where processes die meanwhile, and a source that
//! stands still holds up nobody.

use std::collections::BTreeMap;
use std::thread;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::OwnedHeaders;
use rdkafka::producer::{BaseRecord, Producer};
use retide_avro::foreign::{Dialect, Foreign};
use retide_native::headers::add;
use serde_json::Value;

use crate::commands::get;
use crate::rig::{Rig, Stored};
use crate::support::{PATIENCE, config, create_topics, free_address};
use crate::unwritable::set;

/// Letters of each dialect.
const LETTERS: usize = 200;

/// The dialects, and letters without headers that are known.
const DIALECTS: [&str; 6] = [
    "spring",
    "connect",
    "streams",
    "smallrye",
    "share-group",
    "unknown",
];

/// A scene whose target takes everything.
const TAKEN: &str = "\n[scenes.taken]\ntarget = { http = { url = 'http://TARGET/taken' } }\n";

/// A header, as it stands on a record.
type Header = (String, Option<Vec<u8>>);

/// A letter.
struct Letter {
    key: Option<Vec<u8>>,
    value: Option<Vec<u8>>,
    headers: Vec<Header>,
}

/// A header of text.
fn text(name: &str, value: &str) -> Header {
    (name.to_owned(), Some(value.as_bytes().to_vec()))
}

/// The letters that the libraries themselves have written of five records each: see `letters/make`.
fn written(dialect: &str) -> Vec<Letter> {
    let bytes = |value: &Value| {
        let text = value.as_str()?;
        Some(BASE64_STANDARD.decode(text).unwrap())
    };
    let lines = include_str!("letters/letters.jsonl").lines();
    let letters = lines.map(|line| serde_json::from_str::<Value>(line).unwrap());
    let letters = letters.filter(|letter| letter["dialect"] == *dialect);
    let letters = letters.map(|letter| {
        let headers = letter["headers"].as_array().unwrap().iter();
        let headers = headers.map(|header| {
            let name = header[0].as_str().unwrap().to_owned();
            (name, bytes(&header[1]))
        });
        Letter {
            key: bytes(&letter["key"]),
            value: bytes(&letter["value"]),
            headers: headers.collect(),
        }
    });
    letters.collect()
}

/// The letter that the library writes of record `number` of this topic's partition 0.
fn letter_of(dialect: &str, number: usize) -> Letter {
    let mut letters = written(dialect);
    let mut letter = letters.swap_remove(number % letters.len());
    let binary = i64::try_from(number).unwrap().to_be_bytes();
    for (name, value) in &mut letter.headers {
        if name.ends_with("offset") {
            *value = Some(match dialect {
                "spring" => binary.to_vec(),
                _ => number.to_string().into_bytes(),
            });
        }
    }
    letter
}

/// The topic of a test's letters of this dialect.
fn of(rig: &Rig, dialect: &str) -> String {
    format!("{}-{dialect}", rig.prefix)
}

/// Produces letters to a topic.
fn produce(rig: &Rig, topic: &str, letters: impl Iterator<Item = Letter>) {
    let producer = rig.producer();
    for letter in letters {
        let mut headers = OwnedHeaders::new();
        for (name, value) in &letter.headers {
            add(&mut headers, name.as_bytes(), value.as_deref());
        }
        let mut record = BaseRecord::<[u8], [u8]>::to(topic).headers(headers);
        (record.key, record.payload) = (letter.key.as_deref(), letter.value.as_deref());
        producer.send(record).map_err(|(error, _)| error).unwrap();
        producer.poll(Duration::ZERO);
    }
    producer.flush(PATIENCE).unwrap();
}

/// The sources of these dialects, and a scene.
fn sources<'a>(rig: &Rig, dialects: impl Iterator<Item = &'a str>) -> String {
    let one = |dialect| {
        let topic = of(rig, dialect);
        // One that is named, and the others are found out.
        let named = if dialect == "connect" {
            "dialect = 'connect'\n"
        } else {
            ""
        };
        format!("[sources.{dialect}]\ntopic = '{topic}'\nscene = 'taken'\n{named}")
    };
    let sources: String = dialects.map(one).collect();
    format!("{}{TAKEN}{sources}", rig.basics())
}

/// Letter `number` of a dialect, as it is to arrive.
fn letter(dialect: &str, number: usize) -> Letter {
    let headers = match dialect {
        // As Connect writes them by default.
        "unknown" => Vec::new(),
        dialect => letter_of(dialect, number).headers,
    };
    Letter {
        key: (!number.is_multiple_of(3)).then(|| format!("key-{number}").into_bytes()),
        value: Some(format!("{dialect} {number}").into_bytes()),
        headers,
    }
}

/// Waits until there are so many tasks on the retry topic, and gives them.
fn tasks(rig: &Rig, count: usize) -> Vec<Stored> {
    let start = Instant::now();
    loop {
        let tasks = rig.read("tasks");
        if tasks.len() >= count {
            return tasks;
        }
        let found = tasks.len();
        assert!(start.elapsed() < PATIENCE, "{found} of {count} tasks");
        thread::park_timeout(Duration::from_millis(50));
    }
}

#[test]
fn what_the_libraries_write_is_recognised() {
    for dialect in [
        "spring",
        "connect",
        "streams",
        "smallrye",
        "share-group",
        "pointer",
    ] {
        let letters = written(dialect);
        assert_eq!(letters.len(), 5, "{dialect}");
        for (number, letter) in letters.into_iter().enumerate() {
            let headers = letter
                .headers
                .into_iter()
                .map(|(name, value)| retide_core::Header {
                    name: name.into(),
                    value: value.map(Into::into),
                });
            let record = retide_core::Record {
                key: letter.key.map(Into::into),
                value: letter.value.map(Into::into),
                headers: headers.collect(),
            };

            let read = Foreign::of(&record, None);

            let word = read.dialect.map(Dialect::word);
            let is_pointer = dialect == "pointer";
            assert_eq!(word, Some(if is_pointer { "share-group" } else { dialect }));
            assert_eq!(read.is_pointer, is_pointer, "{dialect}");
            let origin = read.origin.map(|origin| origin.to_string());
            assert_eq!(origin, Some(format!("orders/0/{number}")), "{dialect}");
            let reader = match dialect {
                "spring" => Some("shop"),
                "connect" => Some("sink"),
                "share-group" => Some("copies"),
                "pointer" => Some("pointers"),
                _ => None,
            };
            assert_eq!(read.reader.as_deref(), reader, "{dialect}");
        }
    }
}

#[test]
fn letters_of_each_dialect_are_tasks_once_each_over_a_kill() {
    let rig = Rig::new(Duration::ZERO, TAKEN);
    rig.configure(&sources(&rig, DIALECTS.into_iter()));
    let topics = DIALECTS.map(|dialect| of(&rig, dialect));
    create_topics(&rig.bootstrap, &topics.each_ref().map(String::as_str));
    let send = |numbers: std::ops::Range<usize>| {
        for dialect in DIALECTS {
            let letters = numbers.clone().map(|number| letter(dialect, number));
            produce(&rig, &of(&rig, dialect), letters);
        }
    };
    send(0..LETTERS / 2);

    let first = rig.run();
    rig.target.wait_for(1);
    // While it copies.
    thread::scope(|scope| {
        let sending = scope.spawn(|| send(LETTERS / 2..LETTERS));
        rig.target.wait_for(LETTERS * DIALECTS.len() / 2);
        first.kill();
        sending.join().unwrap();
    });
    let _second = rig.run();

    let count = LETTERS * DIALECTS.len();
    let ends = rig.ends(count);
    assert_eq!(ends.len(), count);
    for (id, ends) in ends {
        assert_eq!(ends, ["delivered"], "{id}");
    }
    let tasks = tasks(&rig, count);
    assert_eq!(tasks.len(), count, "each once");
    let mut by_value: BTreeMap<_, _> = tasks
        .into_iter()
        .map(|task| (task.value.clone(), task))
        .collect();
    for dialect in DIALECTS {
        for number in 0..LETTERS {
            let letter = letter(dialect, number);
            let task = by_value.remove(&letter.value).expect("a task");
            assert_eq!(task.key, letter.key, "{dialect} {number}");
            let (theirs, own) = task.headers.split_at(letter.headers.len());
            assert_eq!(theirs, letter.headers, "{dialect} {number}");
            let own: Vec<&str> = own.iter().map(|(name, _)| name.as_str()).collect();
            assert_eq!(own, ["retry-scene", "retry-id"]);
            assert_eq!(task.text("retry-scene"), "taken");
        }
    }
}

#[test]
fn a_letter_that_only_names_its_record_is_that_record_or_says_that_it_is_gone() {
    let rig = Rig::new(Duration::ZERO, TAKEN);
    rig.configure(&sources(&rig, ["share-group"].into_iter()));
    let (letters, orders) = (of(&rig, "share-group"), of(&rig, "orders"));
    create_topics(&rig.bootstrap, &[&letters, &orders]);
    // All in one partition, so that offsets are numbers.
    let whole = |number: usize| Letter {
        key: Some(b"k".to_vec()),
        value: Some(format!("order {number}").into_bytes()),
        headers: vec![text("trace", &number.to_string())],
    };
    produce(&rig, &orders, (0..LETTERS).map(whole));
    let partition = partition_of(&rig, &orders);
    let pointer = |topic: &str, number: usize| {
        let mut letter = letter_of("pointer", number);
        letter.headers[0] = text("__dlq.errors.topic", topic);
        letter.headers[1] = text("__dlq.errors.partition", &partition.to_string());
        assert_eq!((&letter.key, &letter.value), (&None, &None));
        letter
    };
    produce(
        &rig,
        &letters,
        (0..LETTERS).rev().map(|number| pointer(&orders, number)),
    );
    let lost = [pointer(&orders, LETTERS + 7), pointer("no-such-topic", 0)];
    produce(&rig, &letters, lost.into_iter());

    let _retide = rig.run();

    let ends = rig.ends(LETTERS + 2);
    let dead = ends.values().filter(|ends| **ends == ["dead"]).count();
    assert_eq!((ends.len(), dead), (LETTERS + 2, 2));
    let mut seen: Vec<String> = rig
        .target
        .requests()
        .iter()
        .map(|request| {
            assert_eq!(request.text("__dlq.errors.group"), "pointers");
            let order = String::from_utf8(request.body.clone()).unwrap();
            assert_eq!(order, format!("order {}", request.text("trace")));
            assert_eq!(request.text("__dlq.errors.offset"), request.text("trace"));
            order
        })
        .collect();
    seen.sort();
    seen.dedup();
    assert_eq!(seen.len(), LETTERS);
    let mut dead = rig.read("dead-letters");
    dead.sort_by_key(|letter| letter.text("__dlq.errors.topic"));
    let said: Vec<_> = dead
        .iter()
        .map(|letter| letter.text("retry-reason"))
        .collect();
    assert_eq!(said, ["origin-gone", "origin-gone"]);
    let error = dead[0].text("retry-error");
    assert!(
        error.contains("only names no-such-topic/") || error.contains("is not retained"),
        "{error}"
    );
}

/// So many bytes that cannot be compressed.
fn noise(bytes: usize) -> Vec<u8> {
    let mut state = 1_u64;
    let next = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (state >> 56) as u8
    };
    std::iter::repeat_with(next).take(bytes).collect()
}

/// The partition that holds records, of a topic of which only one does.
fn partition_of(rig: &Rig, topic: &str) -> i32 {
    let consumer: BaseConsumer = config(&rig.bootstrap, "ends").create().unwrap();
    let ends = |partition| {
        consumer
            .fetch_watermarks(topic, partition, PATIENCE)
            .unwrap()
            .1
    };
    (0..4)
        .find(|partition| ends(*partition) > 0)
        .expect("records")
}

#[test]
fn a_source_that_stands_still_is_told_and_goes_on_when_that_is_mended() {
    let rig = Rig::new(Duration::ZERO, TAKEN);
    let admin = free_address();
    let text = sources(&rig, ["spring", "streams"].into_iter());
    rig.configure(&format!("{text}[admin]\nlisten = '{admin}'\n"));
    let (there, missing) = (of(&rig, "spring"), of(&rig, "streams"));
    create_topics(&rig.bootstrap, &[&there]);
    produce(&rig, &there, (0..10).map(|number| letter("spring", number)));

    let retide = rig.run();
    retide.wait_for("trouble begins trouble=\"source-stopped\"");
    rig.target.wait_for(10);
    let (_, ready) = get(&admin, "/readyz").unwrap();
    assert!(
        ready.contains("source-stopped") && ready.contains(&missing),
        "{ready}"
    );
    let plain = [("retry-scene", "taken"), ("retry-id", "plain")];
    let producer = rig.producer();
    rig.send(&producer, &plain, b"plain");
    rig.target.wait_for(11);
    let doctor = rig.retide(&["doctor", "--no-targets"]);
    let said = String::from_utf8(doctor.stdout).unwrap();
    assert!(
        said.contains(&format!("source streams: topic {missing}: does not exist")),
        "{said}"
    );
    assert!(said.contains("source spring: topic"), "{said}");

    create_topics(&rig.bootstrap, &[&missing]);
    produce(
        &rig,
        &missing,
        (0..10).map(|number| letter("streams", number)),
    );

    rig.target.wait_for(21);
    let (_, metrics) = get(&admin, "/metrics").unwrap();
    let counted = "retide_source_letters_total{source=\"streams\",dialect=\"streams\"} 10";
    assert!(metrics.contains(counted), "{metrics}");
    assert_eq!(rig.ends(21).len(), 21);
    retide.terminate();
    assert_eq!(retide.wait(), Some(0));
}

#[test]
fn a_letter_that_is_too_large_for_the_retry_topic_holds_up_none_behind_it() {
    let rig = Rig::new(Duration::ZERO, TAKEN);
    rig.configure(&sources(&rig, ["spring"].into_iter()));
    let topic = of(&rig, "spring");
    create_topics(&rig.bootstrap, &[&topic]);
    set(&rig, "tasks", "max.message.bytes", "20000");
    // Too large without its value, too.
    let large = Letter {
        value: Some(noise(100_000)),
        headers: vec![("trace".to_owned(), Some(noise(40_000)))],
        key: None,
    };
    let some = (0..5).map(|number| letter("spring", number));
    let more = (5..10).map(|number| letter("spring", number));
    produce(&rig, &topic, some.chain([large]).chain(more));

    let _retide = rig.run();

    let ends = rig.ends(11);
    let dead = ends.values().filter(|ends| **ends == ["dead"]).count();
    assert_eq!((ends.len(), dead), (11, 1));
    let [dead] = rig.read("dead-letters").try_into().expect("one");
    assert_eq!(dead.text("retry-reason"), "unwritable");
    assert_eq!(dead.value, None);
    assert!(dead.text("retry-error").contains(&format!("{topic}/")));
}
