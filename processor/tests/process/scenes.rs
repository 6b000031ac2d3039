//! Scenes that vanish, scenes that cannot be used, and records that come back.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::{Header, Message, OwnedHeaders};
use rdkafka::producer::{BaseRecord, Producer};

use crate::rig::{FLAKY, Rig, Stored};
use crate::support::{PATIENCE, config, create_topics};

/// Puts a record of JSON on the scenes topic, as it is.
pub(crate) fn put(rig: &Rig, name: &str, value: &str) {
    put_all(rig, [name.to_owned()], value);
}

/// Puts the same record there by each of these names.
pub(crate) fn put_all(rig: &Rig, names: impl IntoIterator<Item = String>, value: &str) {
    let producer = rig.producer();
    let topic = rig.topic("scenes");
    for name in names {
        let content_type = Header {
            key: "content-type",
            value: Some("application/json"),
        };
        let record = BaseRecord::<str, str>::to(&topic)
            .key(&name)
            .payload(value)
            .headers(OwnedHeaders::new().insert(content_type));
        producer.send(record).map_err(|(error, _)| error).unwrap();
    }
    producer.flush(PATIENCE).unwrap();
}

/// The rules as they stand on the scenes topic.
fn rules(name: &str, rules: &str) -> String {
    serde_json::json!({ "name": name, "rules": rules, "updatedAt": 0 }).to_string()
}

#[test]
fn parked_tasks_are_held_while_their_scene_is_gone_and_go_on_when_it_is_back() {
    const TASKS: usize = 20;
    let rig = Rig::new(Duration::ZERO, FLAKY);
    let first = rig.run();
    let producer = rig.producer();
    for number in 0..TASKS {
        let id = format!("task-{number}");
        let headers = [
            ("retry-scene", "flaky"),
            ("retry-id", &*id),
            ("retry-delay-ms", "3000"),
        ];
        rig.send(&producer, &headers, b"0");
    }
    producer.flush(PATIENCE).unwrap();
    let start = Instant::now();
    while rig.read("delay.now").len() < TASKS {
        assert!(start.elapsed() < PATIENCE, "they are not parked");
    }
    first.kill();

    // Out of the file: nobody but its tasks remembers it.
    rig.configure(&rig.basics());
    let second = rig.run();
    second.wait_for("scene-unknown");
    // After a second look: a scene that is back before is worth no alert.
    let is_told = |alert: &Stored| alert.text("retry-reason") == "unknown-scene";
    let start = Instant::now();
    while !rig.read("alerts").iter().any(is_told) {
        assert!(start.elapsed() < PATIENCE, "nobody is told");
    }
    let (ended, called) = (rig.read("callbacks").len(), rig.target.count());
    rig.configure(&format!("{}{FLAKY}", rig.basics()));
    let scenes = rig.file("retide.toml");
    let applied = rig.retide(&["scenes", "apply", scenes.to_str().unwrap()]);
    let ends = rig.ends(TASKS);
    second.terminate();

    assert_eq!((ended, called), (0, 0));
    assert!(applied.status.success(), "{applied:?}");
    assert!(ends.values().all(|ends| ends == &["delivered"]), "{ends:?}");
    assert!(
        rig.target
            .attempts()
            .keys()
            .all(|(_, attempt)| *attempt == 1)
    );
    assert_eq!(second.wait(), Some(0));
}

#[test]
fn scenes_that_cannot_be_used_are_refused_and_named() {
    let rig = Rig::new(Duration::ZERO, "");
    let own = rig.topic("tasks");
    let file = rig.file("loop.toml");
    let target = format!("[scenes.loop]\ntarget = {{ kafka = {{ topic = '{own}' }} }}\n");
    std::fs::write(&file, target).unwrap();
    put(
        &rig,
        "garbled",
        r#"{"name":"garbled","rules":"new_key = 1","updatedAt":0}"#,
    );
    put(
        &rig,
        "loop",
        &rules("loop", &format!("[target.kafka]\ntopic = '{own}'\n")),
    );

    let apply = rig.retide(&["scenes", "apply", file.to_str().unwrap()]);
    let from_file = rig.retide(&["run", "--scenes", file.to_str().unwrap()]);
    let from_topic = rig.retide(&["run"]);
    let ignoring = rig.launch(&["run", "--ignore-unusable-scenes"]);
    ignoring.wait_for("shards assigned");
    let producer = rig.producer();
    for scene in ["loop", "garbled"] {
        let headers = [("retry-scene", scene), ("retry-id", scene)];
        rig.send(&producer, &headers, b"0");
    }
    producer.flush(PATIENCE).unwrap();
    let ends = rig.ends(1);
    ignoring.wait_for("scene-unknown");
    let letters = rig.read("dead-letters");
    let deleted = rig.retide(&["scenes", "delete", "--force", "garbled", "loop"]);
    ignoring.terminate();
    assert_eq!(ignoring.wait(), Some(0));
    let again = rig.run();

    for refused in [&apply, &from_file] {
        let text = String::from_utf8_lossy(&refused.stderr);
        assert_eq!(refused.status.code(), Some(2), "{text}");
        assert!(
            text.contains("loop.toml:2") && text.contains(&own),
            "{text}"
        );
    }
    let text = String::from_utf8(from_topic.stderr).unwrap();
    assert_eq!(from_topic.status.code(), Some(4), "{text}");
    for part in [
        "scene garbled",
        "offset 0",
        "new_key",
        "scene loop",
        &own,
        "scenes delete garbled loop",
    ] {
        assert!(text.contains(part), "no {part} in {text}");
    }
    assert_eq!(ends["loop"], ["dead"]);
    assert_eq!(letters.len(), 1);
    assert!(letters[0].text("retry-error").starts_with("own-topic: "));
    assert!(deleted.status.success(), "{deleted:?}");
    drop(again);
}

#[test]
fn a_record_that_its_consumer_puts_back_counts_on_to_its_last_attempt() {
    let rig = Rig::new(Duration::ZERO, "");
    let work = rig.topic("work");
    create_topics(&rig.bootstrap, &[&work]);
    rig.configure(&format!(
        "{}[scenes.again]\ntarget = {{ kafka = {{ topic = '{work}' }} }}\nmax_attempts = 3\n\
         backoff = {{ fixed = {{ delay = '200ms' }} }}\n",
        rig.basics()
    ));
    let done = Arc::new(AtomicBool::new(false));
    let consumer: BaseConsumer = config(&rig.bootstrap, &work)
        .set("auto.offset.reset", "earliest")
        .set("isolation.level", "read_committed")
        .create()
        .unwrap();
    #[allow(
        clippy::disallowed_methods,
        reason = "what judges retide shares no reader with it"
    )]
    consumer.subscribe(&[&work]).unwrap();
    let (back, tasks, stop) = (rig.producer(), rig.topic("tasks"), Arc::clone(&done));
    let putting = thread::spawn(move || {
        let mut rounds = Vec::new();
        while !stop.load(Ordering::Acquire) {
            let Some(Ok(message)) = consumer.poll(Duration::from_millis(50)) else {
                continue;
            };
            let mut headers = OwnedHeaders::new();
            for (name, value) in retide_native::headers::read(&message).unwrap().iter() {
                if name == b"retry-round" {
                    rounds.push(String::from_utf8(value.unwrap().to_vec()).unwrap());
                }
                retide_native::headers::add(&mut headers, name, value);
            }
            let record = BaseRecord::<[u8], [u8]>::to(&tasks)
                .payload(message.payload().unwrap())
                .headers(headers);
            back.send(record).map_err(|(error, _)| error).unwrap();
            back.flush(PATIENCE).unwrap();
        }
        rounds
    });
    let running = rig.run();

    let headers = [("retry-scene", "again"), ("retry-id", "order-7")];
    let producer = rig.producer();
    rig.send(&producer, &headers, b"work");
    producer.flush(PATIENCE).unwrap();
    let start = Instant::now();
    let ends = loop {
        let callbacks = rig.read("callbacks");
        let ends: Vec<_> = callbacks
            .iter()
            .map(|end| end.text("retry-outcome"))
            .collect();
        if ends.iter().any(|end| end == "dead") {
            break ends;
        }
        assert!(start.elapsed() < PATIENCE && ends.len() < 9, "{ends:?}");
    };
    done.store(true, Ordering::Release);
    let rounds = putting.join().unwrap();
    let letters = rig.read("dead-letters");
    drop(running);

    assert_eq!(rounds, ["1", "2", "3"]);
    assert_eq!(ends.iter().filter(|end| *end == "delivered").count(), 3);
    assert_eq!(ends.len(), 4);
    assert_eq!(letters.len(), 1);
    assert_eq!(letters[0].text("retry-reason"), "attempts-exhausted");
    assert_eq!(letters[0].text("retry-attempt"), "3");
}

#[test]
fn an_empty_key_is_no_key_for_the_order_of_tasks() {
    const TASKS: usize = 40;
    let ordered = FLAKY.replace("max_attempts = 4", "max_attempts = 4\nordering = 'key'");
    // In one line, with a commit after each, they would take a multiple of that.
    let rig = Rig::new(Duration::from_millis(500), &ordered);
    let running = rig.run();
    let producer = rig.producer();
    let topic = rig.topic("tasks");
    for _ in 0..TASKS {
        let header = Header {
            key: "retry-scene",
            value: Some("flaky"),
        };
        let record = BaseRecord::<str, str>::to(&topic)
            .key("")
            .payload("0")
            .headers(OwnedHeaders::new().insert(header));
        producer.send(record).map_err(|(error, _)| error).unwrap();
    }
    producer.flush(PATIENCE).unwrap();

    rig.target.wait_for(TASKS);
    let requests = rig.target.requests();
    let all = requests.iter().map(|request| request.at_micros);
    let (first, last) = (all.clone().min().unwrap(), all.max().unwrap());
    drop(running);

    let took = Duration::from_micros((last - first) as u64);
    assert!(
        took < Duration::from_millis(500 * TASKS as u64 / 2),
        "{took:?}"
    );
}
