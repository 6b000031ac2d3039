//! Commands, on a real broker: each place in which a task waits is reached, each task has one end, and what a command says at its end is so.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::{Duration, Instant};

use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use serde_json::{Value, json};

use crate::commands::get;
use crate::rig::{Rig, Stored};
use crate::support::{PATIENCE, free_address};

/// Where tasks wait when a command comes.
const PLACES: [&str; 7] = ["unread", "long", "short", "soon", "ready", "key", "flight"];

/// What commands say.
const VERBS: [&str; 3] = ["cancel", "run-now", "reschedule"];

/// How tasks are named.
const SELECTORS: [&str; 2] = ["id", "scene"];

/// Tasks of each scene.
const TASKS: usize = 3;

/// How long the target takes: a command meets calls in flight.
const TAKES: Duration = Duration::from_millis(1_500);

/// The scene of tasks that wait in a place until a command comes that names them so.
fn scene(place: &str, verb: &str, selector: &str) -> String {
    format!("{place}-{verb}-{selector}")
}

/// All scenes, with what they are of.
fn all() -> impl Iterator<Item = (&'static str, &'static str, &'static str)> {
    PLACES.into_iter().flat_map(|place| {
        VERBS
            .into_iter()
            .flat_map(move |verb| SELECTORS.map(|selector| (place, verb, selector)))
    })
}

/// The rules of all scenes.
fn scenes() -> String {
    let mut text = String::new();
    for (place, verb, selector) in all() {
        let name = scene(place, verb, selector);
        let more = match place {
            // One of them goes, and the others wait for hours.
            "ready" => "rate = { limit = 1, per = \"10h\", burst = 1 }\n",
            "key" => "ordering = \"key\"\n",
            _ => "",
        };
        let _ = write!(
            text,
            "[scenes.{name}]\ntarget = {{ http = {{ url = \"http://TARGET/flaky\", timeout = \"5s\" }} }}\n\
             backoff = {{ fixed = {{ delay = \"2h\" }} }}\nmax_attempts = 4\n{more}"
        );
    }
    text
}

/// The id of a task.
fn id(scene: &str, number: usize) -> String {
    format!("{scene}-{number}")
}

/// Produces a task that waits where its scene says.
fn produce(rig: &Rig, producer: &BaseProducer, place: &str, name: &str, number: usize) {
    let id = id(name, number);
    let mut headers = OwnedHeaders::new();
    let wait = match place {
        "long" | "unread" => "7200000",
        "short" => "40000",
        "soon" => "13000",
        _ => "",
    };
    for (key, value) in [
        ("retry-scene", name),
        ("retry-id", &id),
        ("retry-delay-ms", wait),
    ] {
        if !value.is_empty() {
            let value = Some(value);
            headers = headers.insert(Header { key, value });
        }
    }
    // The first of a key fails and waits, and the others wait for it; in flight, all fail once.
    let fails = place == "flight" || (place == "key" && number == 0);
    let payload = if fails { "1" } else { "0" };
    let topic = rig.topic("tasks");
    let record = BaseRecord::to(&topic)
        .key(name)
        .payload(payload)
        .headers(headers);
    producer.send(record).map_err(|(error, _)| error).unwrap();
    producer.poll(Duration::ZERO);
}

/// Sends the command for a scene.
fn command(rig: &Rig, producer: &BaseProducer, verb: &str, selector: &str, name: &str) {
    let select = if selector == "id" {
        let ids: Vec<String> = (0..TASKS).map(|number| id(name, number)).collect();
        json!({ "id": ids })
    } else {
        json!({ "scene": name })
    };
    let mut request =
        json!({ "command": verb, "id": name, "select": select, "by": "test", "reason": "a test" });
    if verb == "reschedule" {
        request["in"] = "1s".into();
    }
    send(rig, producer, name, &request);
}

/// Sends a record to the commands topic.
pub(crate) fn send(rig: &Rig, producer: &BaseProducer, key: &str, request: &Value) {
    let (topic, value) = (rig.topic("commands"), request.to_string());
    let record = BaseRecord::to(&topic).key(key).payload(&value);
    producer.send(record).map_err(|(error, _)| error).unwrap();
    producer.poll(Duration::ZERO);
}

/// Waits until so many commands have ended, and gives what their ends say by id.
pub(crate) fn ended(rig: &Rig, count: usize) -> BTreeMap<String, Value> {
    let reader = rig.reader("commands");
    let start = Instant::now();
    let mut ends = BTreeMap::new();
    while ends.len() < count {
        assert!(
            start.elapsed() < PATIENCE,
            "{} of {count} commands have ended: {:?}",
            ends.len(),
            ends.keys()
        );
        let Some(record) = reader.next(Duration::from_millis(100)) else {
            continue;
        };
        if record.text("retry-command-stage") == "ended" {
            let value: Value = serde_json::from_slice(&record.value.unwrap()).unwrap();
            let id = String::from_utf8(record.key.unwrap()).unwrap();
            let before = ends.insert(id, value);
            assert_eq!(before, None, "ended twice");
        }
    }
    ends
}

/// How many tasks the end of a command says it has met, by what was done.
pub(crate) fn counts(end: &Value) -> (u64, u64) {
    let number = |key: &str| end[key].as_u64().unwrap_or_else(|| panic!("{end}"));
    (number("done"), number("too_late"))
}

/// The events of tasks, by id, each as its word and what it follows from.
fn events(records: &[Stored]) -> BTreeMap<String, Vec<String>> {
    let mut events: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for record in records {
        let id = record.text("retry-id");
        events
            .entry(id)
            .or_default()
            .push(record.text("retry-event"));
    }
    events
}

/// What has to hold when everything is over.
fn judge(rig: &Rig, ends: &BTreeMap<String, Value>) {
    let outcomes = rig.ends(all().count() * TASKS + 1);
    let attempts = rig.target.attempts();
    let all_events = events(&rig.read("events"));
    for (place, verb, selector) in all() {
        let name = scene(place, verb, selector);
        let (done, too_late) = counts(&ends[&name]);
        let ids: Vec<String> = (0..TASKS).map(|number| id(&name, number)).collect();
        let of = |id: &String| outcomes.get(id).cloned().unwrap_or_default();
        let count = |word: &str| ids.iter().filter(|id| of(id) == [word]).count() as u64;
        let (cancelled, delivered) = (count("cancelled"), count("delivered"));
        let said = format!("{name}: {} {outcomes:?}", ends[&name]);
        assert_eq!(cancelled + delivered, TASKS as u64, "one end each, {said}");
        match verb {
            "cancel" => assert_eq!(done, cancelled, "{said}"),
            _ => assert_eq!(cancelled, 0, "{said}"),
        }
        // Of those that have ended before it came, nothing is left to be found.
        assert!(done + too_late <= TASKS as u64, "{said}");
        if place != "ready" && place != "soon" {
            assert_eq!(done + too_late, TASKS as u64, "{said}");
        }
        for id in &ids {
            let cancelled = of(id) == ["cancelled"];
            let seen: u32 = (1..5)
                .map(|attempt| u32::from(attempts.contains_key(&(id.clone(), attempt))))
                .sum();
            let most = u32::from(place == "flight" || place == "key");
            assert!(
                !cancelled || seen <= most,
                "{id} was attempted {seen} times and cancelled"
            );
            let events = &all_events[id];
            let ended = events
                .iter()
                .filter(|word| *word == "cancelled" || *word == "delivered");
            assert_eq!(ended.count(), 1, "{id}: {events:?}");
        }
    }
}

/// Tasks and commands of a place, or of all but some, with one way to name tasks.
fn of(
    places: &'static [&'static str],
    selector: &'static str,
) -> impl Iterator<Item = (&'static str, &'static str, &'static str)> {
    all().filter(move |(place, _, of)| places.contains(place) && *of == selector)
}

/// Produces the tasks of these places, and waits until they are where they are to be.
fn place(
    rig: &Rig,
    producer: &BaseProducer,
    places: &'static [&'static str],
    selector: &'static str,
) {
    let before = rig.target.count();
    let mut called = 0;
    for (place, verb, selector) in of(places, selector) {
        let name = scene(place, verb, selector);
        for number in 0..TASKS {
            produce(rig, producer, place, &name, number);
        }
        called += match place {
            "flight" => TASKS,
            // The first of each key fails, and one of each scene with a rate is called.
            "key" | "ready" => 1,
            _ => 0,
        };
    }
    producer.flush(PATIENCE).unwrap();
    rig.target.wait_for(before + called);
}

/// Sends the commands for the tasks of these places.
fn command_all(
    rig: &Rig,
    producer: &BaseProducer,
    places: &'static [&'static str],
    selector: &'static str,
) {
    for (place, verb, selector) in of(places, selector) {
        let name = scene(place, verb, selector);
        command(rig, producer, verb, selector, &name);
    }
    producer.flush(PATIENCE).unwrap();
}

#[test]
fn commands_reach_tasks_wherever_they_wait() {
    const WAITING: &[&str] = &["long", "short", "soon", "ready", "key"];
    let rig = Rig::new(TAKES, &scenes());
    let producer = rig.producer();
    // Nobody has read these yet, and one task does not exist.
    place(&rig, &producer, &["unread"], "id");
    place(&rig, &producer, &["unread"], "scene");
    command_all(&rig, &producer, &["unread"], "id");
    let later = json!({ "command": "cancel", "id": "later", "select": { "id": "not-there-yet" } });
    send(&rig, &producer, "later", &later);
    command_all(&rig, &producer, &["unread"], "scene");
    let [one, other] = [rig.run(), rig.run()];

    let mut count = of(&["unread"], "id").count() * 2;
    for selector in SELECTORS {
        place(&rig, &producer, WAITING, selector);
        place(&rig, &producer, &["flight"], selector);
        command_all(&rig, &producer, &["flight"], selector);
        command_all(&rig, &producer, WAITING, selector);
        count += of(&PLACES, selector).count() - of(&["unread"], selector).count();
        if selector == "id" {
            ended(&rig, count);
        }
    }
    one.kill();
    // And the one that has found its task.
    let ends = ended(&rig, count + 1);
    assert_eq!(
        counts(&ends["later"]),
        (0, 0),
        "its end was told before its task came"
    );

    // What runs now waits for a rate of one in ten hours, as it is to. And where the next owner has met a task before its call, the call fails
    // after the command, and the task waits for its next attempt.
    let waits = ["ready", "flight", "key"];
    let ready: Vec<String> = all()
        .filter(|(place, verb, _)| waits.contains(place) && *verb != "cancel")
        .map(|(place, verb, selector)| scene(place, verb, selector))
        .collect();
    let request = json!({ "command": "complete", "outcome": "success", "id": "done", "select": { "scene": ready } });
    send(&rig, &producer, "done", &request);
    producer.flush(PATIENCE).unwrap();
    ended(&rig, count + 2);
    // The next owner knows of the command that waits.
    let headers = [
        ("retry-scene", "long-cancel-id"),
        ("retry-id", "not-there-yet"),
    ];
    rig.send(&producer, &headers, b"0");
    producer.flush(PATIENCE).unwrap();
    judge(&rig, &ends);
    // Whoever has the shards of the one that was killed knows what was taken: nothing is found a second time.
    let every: Vec<String> = all()
        .map(|(place, verb, selector)| scene(place, verb, selector))
        .collect();
    let request = json!({ "command": "cancel", "id": "again", "select": { "scene": every } });
    send(&rig, &producer, "again", &request);
    producer.flush(PATIENCE).unwrap();
    let ends = ended(&rig, count + 3);
    assert_eq!(counts(&ends["again"]), (0, 0), "{}", ends["again"]);
    let mut outcomes = rig.ends(all().count() * TASKS + 1);
    assert_eq!(
        outcomes.remove("not-there-yet"),
        Some(vec!["cancelled".to_owned()])
    );
    assert!(outcomes.values().all(|of| of.len() == 1), "{outcomes:?}");
    assert_eq!(rig.target.early(), 0);
    drop(other);
}

/// Records of tiers that a process has read for commands.
fn looked(address: &str) -> u64 {
    let (_, metrics) = get(address, "/metrics").unwrap();
    let mut lines = metrics.lines();
    let value = lines.find_map(|line| line.strip_prefix("retide_command_looked_records_total "));
    value.unwrap().parse().unwrap()
}

#[test]
fn one_id_is_found_without_its_tier_being_read() {
    /// Tasks of a tier: three ranges of each partition.
    const PARKED: usize = 12_000;
    /// Records that are read for an id at most: one range, in each of two looks.
    const FEW: u64 = 3_000;
    let scene =
        "[scenes.many]\ntarget = { http = { url = 'http://TARGET/flaky', timeout = '5s' } }\n";
    let rig = Rig::new(Duration::ZERO, scene);
    let address = free_address();
    let admin = format!("[admin]\nlisten = '{address}'\n");
    rig.configure(&format!("{}{admin}{scene}", rig.basics()));
    let producer = rig.producer();
    let name = |number: usize| format!("many-{number}");
    for number in 0..PARKED {
        let id = name(number);
        let headers = [
            ("retry-scene", "many"),
            ("retry-id", &*id),
            ("retry-delay-ms", "7200000"),
        ];
        rig.send(&producer, &headers, b"0");
    }
    producer.flush(PATIENCE).unwrap();
    let cancel = |id: &str| {
        let select = json!({ "id": id });
        let request =
            json!({ "command": "cancel", "id": id, "select": select, "expires_in": "0s" });
        send(&rig, &producer, id, &request);
        producer.flush(PATIENCE).unwrap();
    };

    let first = rig.run();
    let (reader, mut parked) = (rig.reader("events"), 0);
    let start = Instant::now();
    while parked < PARKED {
        assert!(start.elapsed() < PATIENCE, "{parked} are parked");
        let event = reader.next(Duration::from_millis(100));
        parked += usize::from(event.is_some_and(|event| event.text("retry-event") == "parked"));
    }
    cancel(&name(1_234));
    let mut ends = ended(&rig, 1);
    let read = looked(&address);
    assert!(read <= FEW, "{read} were read for one");
    // The next one knows what this one has known, and the one after that: one has ended in order, the other not.
    first.terminate();
    first.wait();
    let second = rig.run();
    cancel(&name(4_321));
    ended(&rig, 2);
    let read = looked(&address);
    assert!(read <= FEW, "{read} were read for one after a restart");
    second.kill();
    let _third = rig.run();
    cancel(&name(9_876));
    cancel("not-there");
    ends.extend(ended(&rig, 4));
    let read = looked(&address);
    assert!(read <= 2 * FEW, "{read} were read for two after a crash");
    for number in [1_234, 4_321, 9_876] {
        let end = &ends[&name(number)];
        assert_eq!(counts(end), (1, 0), "{end}");
    }
    assert_eq!(ends["not-there"]["not_found"], 1);
    let select = json!({ "scene": "many" });
    let all = json!({ "command": "cancel", "id": "all", "select": select });
    send(&rig, &producer, "all", &all);
    producer.flush(PATIENCE).unwrap();
    let ends = ended(&rig, 5);
    assert_eq!(counts(&ends["all"]), (PARKED as u64 - 3, 0));
}
