//! Dead letters of others: each becomes one task with its key, payload and headers, also where processes die meanwhile, and a source that
//! stands still holds up nobody.

use std::collections::BTreeMap;
use std::fs;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use rdkafka::consumer::BaseConsumer;
use rdkafka::message::OwnedHeaders;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use retide_avro::foreign::{Dialect, Foreign};
use retide_native::headers::add;
use serde_json::Value;

use crate::commands::get;
use crate::rig::{DRAIN, Retide, Rig, Stored, end_of};
use crate::secured::{Secured, secured};
use crate::support::{PATIENCE, config, create_topics, free_address};

/// Letters of each dialect.
const LETTERS: usize = 200;

/// Time between two letters that come one after the other.
const PACE: Duration = Duration::from_millis(10);

/// The dialects, and letters without headers that are known.
const DIALECTS: [&str; 6] = [
    "spring",
    "connect",
    "streams",
    "smallrye",
    "share-group",
    "unknown",
];

/// The user of a broker that lets nobody do what was not allowed.
const USER: &str = "sources";

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

/// Hands a letter to a producer.
fn send(producer: &BaseProducer, topic: &str, letter: &Letter) {
    let mut headers = OwnedHeaders::new();
    for (name, value) in &letter.headers {
        add(&mut headers, name.as_bytes(), value.as_deref());
    }
    let mut record = BaseRecord::<[u8], [u8]>::to(topic).headers(headers);
    (record.key, record.payload) = (letter.key.as_deref(), letter.value.as_deref());
    producer.send(record).map_err(|(error, _)| error).unwrap();
    producer.poll(Duration::ZERO);
}

/// Produces letters to a topic.
fn produce(rig: &Rig, topic: &str, letters: impl Iterator<Item = Letter>) {
    let producer = rig.producer();
    for letter in letters {
        send(&producer, topic, &letter);
    }
    producer.flush(PATIENCE).unwrap();
}

/// Produces letters of a dialect, one after the other, until it is enough, and says how many.
fn trickle(rig: &Rig, dialect: &str, is_enough: &AtomicBool) -> usize {
    let (producer, topic) = (rig.producer(), of(rig, dialect));
    let mut sent = 0;
    while !is_enough.load(Ordering::Acquire) {
        send(&producer, &topic, &letter(dialect, sent));
        sent += 1;
        thread::park_timeout(PACE);
    }
    producer.flush(PATIENCE).unwrap();
    sent
}

/// Produces letters of Spring's from number `first` on, one after the other, until the process says that the source stands still. Says how
/// many there are then.
fn trickle_until_stopped(rig: &Rig, retide: &Retide, first: usize) -> usize {
    let (producer, topic) = (rig.producer(), of(rig, "spring"));
    let (start, said, mut sent) = (Instant::now(), retide.log().len(), first);
    while !retide.log()[said..].contains("trouble begins trouble=\"source-stopped\"") {
        assert!(start.elapsed() < PATIENCE, "{}", retide.log());
        send(&producer, &topic, &letter("spring", sent));
        sent += 1;
        thread::park_timeout(PACE);
    }
    producer.flush(PATIENCE).unwrap();
    sent
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

/// Each of the first letters of these dialects is a task once, with its key, payload and headers.
fn each_is_a_task_once(rig: &Rig, dialects: &[&str], letters: usize) {
    let count = letters * dialects.len();
    let ends = rig.ends(count);
    assert_eq!(ends.len(), count);
    for (id, ends) in ends {
        assert_eq!(ends, ["delivered"], "{id}");
    }
    assert_eq!(each_is_a_task(rig, dialects, letters), count, "each once");
}

/// Each of the first letters of these dialects is a task, with its key, payload and headers. Says how many tasks there are.
fn each_is_a_task(rig: &Rig, dialects: &[&str], letters: usize) -> usize {
    let tasks = tasks(rig, letters * dialects.len());
    let count = tasks.len();
    let mut by_value: BTreeMap<_, Vec<Stored>> = BTreeMap::new();
    for task in tasks {
        by_value.entry(task.value.clone()).or_default().push(task);
    }
    for dialect in dialects {
        for number in 0..letters {
            let letter = letter(dialect, number);
            let copies = by_value.remove(&letter.value).expect("a task");
            for task in &copies {
                assert_eq!(task.key, letter.key, "{dialect} {number}");
                let (theirs, own) = task.headers.split_at(letter.headers.len());
                assert_eq!(theirs, letter.headers, "{dialect} {number}");
                let own: Vec<&str> = own.iter().map(|(name, _)| name.as_str()).collect();
                assert_eq!(own, ["retry-scene", "retry-id"]);
                assert_eq!(task.text("retry-scene"), "taken");
                assert_eq!(task.text("retry-id"), copies[0].text("retry-id"));
            }
        }
    }
    count
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
    let send = |numbers: Range<usize>| {
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

    each_is_a_task_once(&rig, &DIALECTS, LETTERS);
}

#[test]
fn a_process_that_stood_still_copies_nothing_that_others_have_copied() {
    let rig = Rig::new(Duration::ZERO, TAKEN);
    // At almost each moment there is a letter that has been read and is not copied yet.
    let patient = format!("{DRAIN}\ncommit_interval = '1s'");
    rig.configure(&sources(&rig, ["spring"].into_iter()).replace(DRAIN, &patient));
    create_topics(&rig.bootstrap, &[&of(&rig, "spring")]);
    let first = rig.run();
    let is_enough = AtomicBool::new(false);

    let (sent, second) = thread::scope(|scope| {
        let sending = scope.spawn(|| trickle(&rig, "spring", &is_enough));
        rig.target.wait_for(1);
        first.signal("-STOP");
        let second = rig.run();
        // It has those as well that the first one has read.
        let seen = rig.target.count();
        rig.target.wait_for(seen + LETTERS);
        first.signal("-CONT");
        is_enough.store(true, Ordering::Release);
        (sending.join().unwrap(), second)
    });

    rig.target.wait_for(sent);
    // Whatever it had in hand, it has written or given up then.
    first.terminate();
    first.wait();
    each_is_a_task_once(&rig, &["spring"], sent);
    second.terminate();
    assert_eq!(second.wait(), Some(0));
}

#[test]
fn letters_are_tasks_once_each_while_a_process_joins_and_leaves() {
    let rig = Rig::new(Duration::ZERO, TAKEN);
    let text = sources(&rig, ["spring"].into_iter());
    rig.configure(&text);
    let admin = free_address();
    let text = text.replace("TARGET", &rig.target.address.to_string());
    let other = format!("{text}[admin]\nlisten = '{admin}'\n");
    fs::write(rig.file("other.toml"), other).unwrap();
    create_topics(&rig.bootstrap, &[&of(&rig, "spring")]);
    let first = rig.run();
    let is_enough = AtomicBool::new(false);

    let sent = thread::scope(|scope| {
        let sending = scope.spawn(|| trickle(&rig, "spring", &is_enough));
        rig.target.wait_for(1);
        let second = rig.launch(&["run", "--config", "other.toml"]);
        let start = Instant::now();
        let copies = "retide_source_letters_total{source=\"spring\",dialect=\"spring\"} ";
        while !get(&admin, "/metrics").is_some_and(|(_, metrics)| metrics.contains(copies)) {
            assert!(start.elapsed() < PATIENCE, "{}", second.log());
            thread::park_timeout(Duration::from_millis(20));
        }
        second.terminate();
        let log = second.log();
        assert_eq!(second.wait(), Some(0));
        assert!(!log.contains("source-stopped"), "{log}");
        is_enough.store(true, Ordering::Release);
        sending.join().unwrap()
    });

    each_is_a_task_once(&rig, &["spring"], sent);
    assert!(!first.log().contains("source-stopped"), "{}", first.log());
}

#[test]
fn at_least_once_no_letter_is_lost_over_a_kill_and_a_copy_has_the_same_identity() {
    let rig = Rig::new(Duration::ZERO, TAKEN);
    let loose = format!("{DRAIN}\nguarantee = 'at_least_once'");
    rig.configure(&sources(&rig, ["spring", "unknown"].into_iter()).replace(DRAIN, &loose));
    let topics = ["spring", "unknown"].map(|dialect| of(&rig, dialect));
    create_topics(&rig.bootstrap, &topics.each_ref().map(String::as_str));
    let first = rig.run();
    let is_enough = AtomicBool::new(false);

    let (sent, _second) = thread::scope(|scope| {
        let sending = ["spring", "unknown"].map(|dialect| {
            let (rig, is_enough) = (&rig, &is_enough);
            scope.spawn(move || trickle(rig, dialect, is_enough))
        });
        rig.target.wait_for(LETTERS);
        first.kill();
        let second = rig.run();
        is_enough.store(true, Ordering::Release);
        (sending.map(|sending| sending.join().unwrap()), second)
    });

    let [spring, unknown] = sent;
    let ends = rig.ends(spring + unknown);
    assert!(ends.values().flatten().all(|end| end == "delivered"));
    assert_eq!(ends.len(), spring + unknown, "an identity for each letter");
    each_is_a_task(&rig, &["spring"], spring);
    each_is_a_task(&rig, &["unknown"], unknown);
}

/// A rig on a broker that lets the user of sources do what was allowed, with this guarantee, and where it can be asked how it is. Its
/// configuration is `user.toml`. Also given: the lines that allow all that is needed.
fn as_user(broker: &Secured, dialects: &[&str], guarantee: &str) -> (Rig, String, String) {
    let rig = Rig::bare(broker.plain.clone(), TAKEN);
    assert!(rig.retide(&["init"]).status.success());
    let topics: Vec<String> = dialects.iter().map(|dialect| of(&rig, dialect)).collect();
    let topics: Vec<&str> = topics.iter().map(String::as_str).collect();
    create_topics(&rig.bootstrap, &topics);
    let admin = free_address();
    let guarantee = format!("{DRAIN}\nguarantee = '{guarantee}'");
    let text = sources(&rig, dialects.iter().copied()).replace(DRAIN, &guarantee);
    let text = text.replace("TARGET", &rig.target.address.to_string());
    let (_, rest) = text.split_once("\n[kafka.consumer]").unwrap();
    let login = broker.login(USER);
    let text = format!("{login}[kafka.consumer]{rest}[admin]\nlisten = '{admin}'\n");
    fs::write(rig.file("user.toml"), text).unwrap();
    let words = ["init", "--acls", "--role", "run"];
    let principal = format!("User:{USER}");
    let whose = ["--principal", &principal, "--config", "user.toml"];
    let printed = rig.retide(&[words, whose].concat());
    (rig, admin, String::from_utf8(printed.stdout).unwrap())
}

/// The line that allows the user of sources this.
fn line(operation: &str, resource: &str) -> String {
    format!("kafka-acls.sh --allow-principal User:{USER} --operation {operation} {resource}")
}

/// Waits until the broker has taken in what was allowed or not: `doctor` says `words` of it, or nothing that is to be mended.
pub(crate) fn until_doctor_says(rig: &Rig, words: Option<&str>) {
    let start = Instant::now();
    loop {
        let doctor = rig.retide(&["doctor", "--no-targets", "--config", "user.toml"]);
        let said = String::from_utf8(doctor.stdout).unwrap();
        let is_so = match words {
            Some(words) => said.contains(words),
            None => doctor.status.success(),
        };
        if is_so {
            return;
        }
        assert!(start.elapsed() < PATIENCE, "{words:?}: {said}");
    }
}

/// Sources of which one may not be read at first, the group of another one may not be used, and then the retry topic may not be written.
fn denied(guarantee: &str) {
    const DIALECTS: [&str; 3] = ["spring", "connect", "streams"];
    let Some(broker) = secured() else { return };
    let (rig, admin, all) = as_user(broker, &DIALECTS, guarantee);
    let topics = DIALECTS.map(|dialect| of(&rig, dialect));
    let group = format!("{}-source-connect", rig.prefix);
    let less = all.replace(&format!(" --topic {}", topics[0]), "");
    let less = less.replace(&format!(" --group {group}"), "");
    broker.grant(&less);
    let letters = |numbers: Range<usize>| {
        for dialect in DIALECTS {
            let letters = numbers.clone().map(|number| letter(dialect, number));
            produce(&rig, &of(&rig, dialect), letters);
        }
    };
    letters(0..10);

    let retide = rig.launch(&["run", "--config", "user.toml"]);
    retide.wait_for_times(2, "trouble begins trouble=\"source-stopped\"");
    rig.target.wait_for(10);
    let (_, ready) = get(&admin, "/readyz").unwrap();
    for words in ["source-stopped", &topics[0], &topics[1], "init --acls"] {
        assert!(ready.contains(words), "{words}: {ready}");
    }
    let plain = [("retry-scene", "taken"), ("retry-id", "plain")];
    let producer = rig.producer();
    rig.send(&producer, &plain, b"plain");
    rig.target.wait_for(11);

    broker.grant(&line("Read", &format!("--topic {}", topics[0])));
    broker.grant(&line("Read", &format!("--group {group}")));
    rig.target.wait_for(31);
    retide.wait_for_times(2, "trouble over trouble=\"source-stopped\"");
    // What is read and cannot be written is not lost.
    let write = line("Write", &format!("--topic {}", rig.topic("tasks")));
    broker.undo(&write);
    until_doctor_says(&rig, Some("does not become tasks"));
    letters(10..20);
    retide.wait_for_times(5, "trouble begins trouble=\"source-stopped\"");
    rig.send(
        &producer,
        &[("retry-scene", "taken"), ("retry-id", "more")],
        b"more",
    );
    rig.target.wait_for(32);
    assert_eq!(rig.target.count(), 32);
    broker.grant(&write);

    let count = 2 + 20 * DIALECTS.len();
    assert_eq!(rig.ends(count).len(), count);
    assert_eq!(each_is_a_task(&rig, &DIALECTS, 20), count);
    retide.terminate();
    assert_eq!(retide.wait(), Some(0));
}

#[test]
fn what_a_source_may_not_do_stops_nobody_else_and_goes_on_when_it_may() {
    denied("exactly_once");
}

#[test]
fn at_least_once_what_a_source_may_not_do_loses_no_letter() {
    denied("at_least_once");
}

#[test]
fn what_is_copied_is_seen_only_with_its_offsets() {
    let Some(broker) = secured() else { return };
    let (rig, _, all) = as_user(broker, &["spring"], "exactly_once");
    broker.grant(&all);
    until_doctor_says(&rig, None);
    let retide = rig.launch(&["run", "--config", "user.toml"]);
    let topic = of(&rig, "spring");
    produce(&rig, &topic, [letter("spring", 0)].into_iter());
    rig.target.wait_for(1);

    // A member goes on reading for a while whose group may not be used any more, and cannot commit its offsets.
    let read = line("Read", &format!("--group {}-source-spring", rig.prefix));
    broker.undo(&read);
    let mut sent = trickle_until_stopped(&rig, &retide, 1);
    broker.grant(&read);

    each_is_a_task_once(&rig, &["spring"], sent);
    retide.wait_for("trouble over trouble=\"source-stopped\"");
    // The same where it is the retry topic that refuses, and the process dies before that is mended.
    let write = line("Write", &format!("--topic {}", rig.topic("tasks")));
    broker.undo(&write);
    sent = trickle_until_stopped(&rig, &retide, sent);
    retide.kill();
    broker.grant(&write);
    until_doctor_says(&rig, None);
    let _second = rig.launch(&["run", "--config", "user.toml"]);

    each_is_a_task_once(&rig, &["spring"], sent);
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
    (0..4)
        .find(|partition| end_of(&consumer, topic, *partition) > 0)
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
    rig.set("tasks", &[("max.message.bytes", "20000")]);
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
