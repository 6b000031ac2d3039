//! Targets that answer later, on a real broker: what is pending is ended by a command or by its limit, whoever has its shard, and is not
//! called meanwhile.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use serde_json::{Value, json};
use tokio::runtime::Runtime;

use crate::commands::get;
use crate::control::{counts, ended, send};
use crate::rig::{self, Rig};
use crate::support::{PATIENCE, free_address};

/// Tasks of each sort.
const TASKS: usize = 6;

/// What becomes of tasks: the word in their ids, and how they end, after how many attempts.
const SORTS: [(&str, &str, u32); 6] = [
    ("success", "delivered", 1),
    ("retryable", "delivered", 2),
    ("permanent", "dead", 1),
    ("limit", "delivered", 2),
    ("now", "delivered", 2),
    ("cancel", "cancelled", 1),
];

/// How long those are pending of which nobody says anything.
const LIMIT: Duration = Duration::from_secs(3);

/// A target that takes the first attempt of each task and answers later, and does the others at once.
#[derive(Default)]
struct Later {
    /// When each attempt of each task came, in order.
    calls: Mutex<Vec<(String, u32, Instant)>>,
}

// === impl Later ===

impl Later {
    /// When each attempt came, by task and number.
    fn calls(&self) -> BTreeMap<(String, u32), Vec<Instant>> {
        let mut calls: BTreeMap<_, Vec<Instant>> = BTreeMap::new();
        for (id, attempt, at) in self.calls.lock().unwrap().iter() {
            calls.entry((id.clone(), *attempt)).or_default().push(*at);
        }
        calls
    }
}

async fn answer(State(later): State<Arc<Later>>, headers: HeaderMap) -> Response {
    let text = |name: &str| headers[name].to_str().unwrap().to_owned();
    let (id, attempt) = (text("retry-id"), text("retry-attempt").parse().unwrap());
    let call = (id.clone(), attempt, Instant::now());
    later.calls.lock().unwrap().push(call);
    let limit = format!("{}s", LIMIT.as_secs());
    let pending = ("retry-control", "pending".to_owned());
    match (attempt, &*id) {
        (1, "plain") => StatusCode::ACCEPTED.into_response(),
        (1, id) if id.starts_with("limit") => {
            let headers = [pending, ("retry-pending-for", limit)];
            (StatusCode::ACCEPTED, headers).into_response()
        }
        (1, _) => (StatusCode::ACCEPTED, [pending]).into_response(),
        _ => StatusCode::OK.into_response(),
    }
}

/// Scenes with two calls at once: fewer than tasks are pending.
fn scenes(address: &str) -> String {
    let scene = |name: &str, more: &str| {
        format!(
            "[scenes.{name}]\ntarget = {{ http = {{ url = 'http://{address}/later', timeout = '1m' }} }}\n\
             backoff = {{ fixed = {{ delay = '300ms' }} }}\nmax_attempts = 3\nconcurrency = 2\n\
             pending = {{ for = '1h' }}\n{more}"
        )
    };
    scene("later", "") + &scene("keyed", "ordering = 'key'\n")
}

/// The ids of the tasks of a sort.
fn ids(sort: &str) -> Vec<String> {
    (0..TASKS)
        .map(|number| format!("{sort}-{number}"))
        .collect()
}

/// Waits until so many attempts are pending durably.
fn wait_for_pending(rig: &Rig, count: usize) {
    let (reader, start) = (rig.reader("events"), Instant::now());
    let mut pending = BTreeSet::new();
    while pending.len() < count {
        assert!(
            start.elapsed() < PATIENCE,
            "{} of {count} are pending",
            pending.len()
        );
        if let Some(event) = reader.next(Duration::from_millis(100))
            && event.text("retry-event") == "pending"
        {
            pending.insert(event.text("retry-id"));
        }
    }
}

/// Waits until a process counts so many of something: it does when it knows that they are durable.
fn wait_for_count(admin: &str, series: &str, count: usize) {
    let line = format!("{series} {count}");
    let start = Instant::now();
    loop {
        let (_, metrics) = get(admin, "/metrics").unwrap();
        if metrics.lines().any(|text| text == line) {
            return;
        }
        assert!(start.elapsed() < PATIENCE, "no {line:?} in {metrics}");
        thread::park_timeout(Duration::from_millis(20));
    }
}

/// Says what came of the tasks of a sort.
fn tell(rig: &Rig, producer: &BaseProducer, sort: &str, ids: &[String]) {
    // Of the first attempt, and no other one.
    let select = json!({ "id": ids, "attempts": "1" });
    let request = match sort {
        "cancel" => json!({ "command": "cancel", "id": sort, "select": select }),
        "now" => json!({ "command": "run-now", "id": sort, "select": select }),
        outcome => json!({
            "command": "complete", "id": sort, "select": select, "outcome": outcome,
        }),
    };
    send(rig, producer, sort, &request);
}

#[test]
fn what_is_pending_is_ended_by_a_command_or_by_its_limit_through_kills() {
    let (runtime, later) = (Runtime::new().unwrap(), Arc::new(Later::default()));
    let router = Router::new().route("/later", post(answer));
    let address = rig::serve(&runtime, router.with_state(Arc::clone(&later)));
    let rig = Rig::new(Duration::ZERO, "");
    let admin = free_address();
    rig.configure(&(rig.basics() + &scenes(&address.to_string())));
    let producer = rig.producer();
    let submit = |id: &str, scene: &str| {
        // What only retide may say is not believed.
        let headers = [
            ("retry-scene", scene),
            ("retry-id", id),
            ("retry-pending-since", "1700000000000"),
        ];
        rig.send(&producer, &headers, b"x");
    };
    let listen = ("RETIDE__ADMIN__LISTEN", admin.clone());
    let one = rig.launch_with(&["run"], &[listen]);
    for id in SORTS.iter().flat_map(|(sort, ..)| ids(sort)) {
        submit(&id, "later");
    }
    submit("plain", "later");
    let all = SORTS.len() * TASKS;
    wait_for_pending(&rig, all);
    wait_for_count(&admin, "retide_pending_total{scene=\"later\"}", all);
    let other = rig.run();

    // Nobody who comes calls again what is pending, and everybody knows of it.
    one.kill();
    let shown = rig.retide(&[
        "--output",
        "json",
        "tasks",
        "ls",
        "--scene",
        "later",
        "--id",
        "success-0",
    ]);
    let explained = rig.retide(&["explain", "success-0"]);
    for (sort, ..) in SORTS.iter().filter(|(sort, ..)| *sort != "limit") {
        tell(&rig, &producer, sort, &ids(sort));
    }
    producer.flush(PATIENCE).unwrap();
    other.kill();
    let third = rig.run();
    let commands = ended(&rig, SORTS.len() - 1);
    let ends = rig.ends(all + 1);

    let calls = later.calls();
    for (sort, end, attempts) in SORTS {
        for id in ids(sort) {
            assert_eq!(ends[&id], [end], "{id}");
            let made = |attempt| calls.get(&(id.clone(), attempt));
            assert_eq!(made(1).map(Vec::len), Some(1), "{id} was called again");
            assert_eq!(made(2).is_some(), attempts == 2, "{id}: {calls:?}");
            if sort == "limit" {
                let waited = made(2).unwrap()[0].duration_since(made(1).unwrap()[0]);
                assert!(waited >= LIMIT, "{id} was called after {waited:?}");
            }
        }
    }
    for (id, command) in &commands {
        assert_eq!(counts(command), (TASKS as u64, 0), "{id}: {command}");
    }
    assert_eq!(ends["plain"], ["delivered"]);
    let shown: Value = serde_json::from_slice(&shown.stdout).unwrap();
    assert_eq!(shown[0]["attempts"], 1, "{shown}");
    assert!(shown[0]["pendingSince"].is_u64(), "{shown}");
    let explained = String::from_utf8_lossy(&explained.stdout).into_owned();
    for words in ["attempt 1 is pending", " pending "] {
        assert!(explained.contains(words), "{explained}");
    }
    drop(third);
}

#[test]
fn what_is_pending_keeps_the_turn_of_its_key_and_gives_it_on_when_it_is_completed() {
    let (runtime, later) = (Runtime::new().unwrap(), Arc::new(Later::default()));
    let router = Router::new().route("/later", post(answer));
    let address = rig::serve(&runtime, router.with_state(Arc::clone(&later)));
    let rig = Rig::new(Duration::ZERO, "");
    rig.configure(&(rig.basics() + &scenes(&address.to_string())));
    let producer = rig.producer();
    let topic = rig.topic("tasks");
    let submit = |id: &str| {
        let mut headers = OwnedHeaders::new();
        for (key, value) in [("retry-scene", "keyed"), ("retry-id", id)] {
            let value = Some(value);
            headers = headers.insert(Header { key, value });
        }
        let record = BaseRecord::to(&topic).key("account-1").payload("x");
        let sent = producer.send(record.headers(headers));
        sent.map_err(|(error, _)| error).unwrap();
        producer.flush(PATIENCE).unwrap();
    };
    let first = rig.run();
    submit("first");
    wait_for_pending(&rig, 1);
    submit("second");
    // It has come so far that it waits for the first one, which takes an hour.
    let reader = rig.reader("events");
    let start = Instant::now();
    loop {
        assert!(start.elapsed() < PATIENCE, "the second one is not deferred");
        let event = reader.next(Duration::from_millis(100));
        if event.is_some_and(|event| event.text("retry-event") == "deferred") {
            break;
        }
    }

    first.kill();
    let _second = rig.run();
    tell(&rig, &producer, "success", &["first".to_owned()]);
    producer.flush(PATIENCE).unwrap();
    wait_for_pending(&rig, 2);
    tell(&rig, &producer, "permanent", &["second".to_owned()]);
    producer.flush(PATIENCE).unwrap();
    let ends = rig.ends(2);

    assert_eq!(ends["first"], ["delivered"]);
    assert_eq!(ends["second"], ["dead"]);
    let calls = later.calls.lock().unwrap();
    let order: Vec<&str> = calls.iter().map(|(id, ..)| &**id).collect();
    assert_eq!(order, ["first", "second"]);
}
