//! What goes out over HTTP, and a target that suddenly refuses everything.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use rdkafka::producer::Producer;
use retide_core::{brake, wall};
use tokio::runtime::Runtime;

use crate::commands::get;
use crate::rig::{self, Rig};
use crate::support::{PATIENCE, free_address};

/// How long the target is well before.
const BEFORE: Duration = Duration::from_secs(2);

/// For how many seconds it refuses everything, where `RETIDE_TEST_REFUSES` does not say: longer than the waits of a task's attempts together.
const REFUSES: usize = 5;

/// Time between two tasks.
const EVERY: Duration = Duration::from_millis(20);

/// A target that may refuse everybody; it refuses the task `bad` in any case.
#[derive(Default)]
struct Door {
    shut: AtomicBool,
    /// The headers of each call.
    calls: Mutex<Vec<HeaderMap>>,
    /// Calls of what finds everybody's tasks bad instead.
    sent: AtomicUsize,
}

async fn answer(State(door): State<Arc<Door>>, headers: HeaderMap) -> StatusCode {
    let is_bad = headers["retry-id"] == "bad";
    door.calls.lock().unwrap().push(headers);
    if is_bad || door.shut.load(Ordering::SeqCst) {
        StatusCode::NOT_FOUND
    } else {
        StatusCode::OK
    }
}

/// What finds every task bad while the door is shut.
async fn take(State(door): State<Arc<Door>>) -> StatusCode {
    door.sent.fetch_add(1, Ordering::SeqCst);
    if door.shut.load(Ordering::SeqCst) {
        StatusCode::BAD_REQUEST
    } else {
        StatusCode::OK
    }
}

fn serve(runtime: &Runtime, door: &Arc<Door>) -> SocketAddr {
    let router = Router::new()
        .route("/paid", post(answer))
        .route("/sent", post(take));
    rig::serve(runtime, router.with_state(Arc::clone(door)))
}

/// The task with many headers was sent those it should be.
fn check_dressed(door: &Door) {
    let calls = door.calls.lock().unwrap().clone();
    let dressed = calls
        .iter()
        .find(|call| call["retry-id"] == "dressed")
        .unwrap();
    let all = |name: &str| -> Vec<&str> {
        let values = dressed.get_all(name).iter();
        values.map(|value| value.to_str().unwrap()).collect()
    };
    assert_eq!(all("traceparent"), ["00-2"]);
    assert_eq!(all("x-kind"), ["1"]);
    assert_eq!(all("content-type"), ["text/plain"]);
    assert!(all("cookie").is_empty(), "{dressed:?}");
}

/// A wall, or a brake, is said where people look: as a state, as a trouble, and on the page of what is ready.
fn check_is_told(admin: &str, kind: &str, subject: &str) {
    let metrics = get(admin, "/metrics").unwrap().1;
    let state = format!("retide_breaker_state{{target=\"{subject}\"}} ");
    let state = metrics.lines().find_map(|line| line.strip_prefix(&state));
    // Its probes are on their way now and then.
    assert!(matches!(state, Some("1" | "2")), "{metrics}");
    let trouble = format!("retide_trouble{{kind=\"{kind}\",subject=\"{subject}\"}} 1");
    assert!(metrics.contains(&trouble), "{metrics}");
    let (status, ready) = get(admin, "/readyz").unwrap();
    assert_eq!(status, 200, "{ready}");
    assert!(ready.contains(kind), "{ready}");
}

/// Waits until a task was seen.
fn wait_for_call(door: &Door, id: &str) {
    let start = Instant::now();
    let came = || {
        let calls = door.calls.lock().unwrap();
        calls.iter().any(|call| call["retry-id"] == id)
    };
    while !came() {
        assert!(start.elapsed() < PATIENCE, "nobody called");
        thread::park_timeout(Duration::from_millis(20));
    }
}

/// Waits until enough was seen to be well.
fn wait_for_health(door: &Door) {
    let start = Instant::now();
    while door.sent.load(Ordering::SeqCst) < brake::HEALTHY as usize + 16 {
        assert!(start.elapsed() < PATIENCE, "nobody called");
        thread::park_timeout(Duration::from_millis(20));
    }
}

/// The alerts of a rule.
fn of_rule(rig: &Rig, rule: &str) -> Vec<serde_json::Value> {
    let records = rig.read("alerts").into_iter();
    let alerts = records.map(|record| serde_json::from_slice(&record.value.unwrap()).unwrap());
    alerts
        .filter(|alert: &serde_json::Value| alert["rule"] == rule)
        .collect()
}

/// Few of these tasks died when all were found bad, and people were told once.
fn check_flood(rig: &Rig, sent: &BTreeMap<String, Vec<String>>, made: usize) {
    assert_eq!(sent.len(), made);
    let delivered = sent.values().filter(|ends| **ends == ["delivered"]);
    let dead = made - delivered.count();
    eprintln!("{dead} of {made} died");
    assert!(dead < brake::LEAST as usize, "{dead} of {made} died");
    let floods = of_rule(rig, "flood-brake");
    assert_eq!(floods.len(), 1, "{floods:?}");
    assert_eq!(floods[0]["scene"], "sent", "{floods:?}");
    let samples = floods[0]["samples"].as_array().unwrap();
    assert_eq!(samples.len(), 3, "{floods:?}");
}

/// A scene that meets a wall, and one whose tasks are found bad.
fn scenes(admin: &str, address: SocketAddr) -> String {
    format!(
        r#"
[admin]
listen = "{admin}"
[scenes.paid]
target = {{ http = {{ url = "http://{address}/paid", timeout = "1m", content_type = "text/plain" }} }}
backoff = {{ fixed = {{ delay = "500ms" }} }}
max_attempts = 3
concurrency = 16
[scenes.sent]
target = {{ http = {{ url = "http://{address}/sent", timeout = "1m" }} }}
backoff = {{ fixed = {{ delay = "500ms" }} }}
max_attempts = 1
"#
    )
}

#[test]
fn a_wall_of_404_and_a_flood_of_400_kill_few_tasks_and_headers_left_out_are_told() {
    let runtime = Runtime::new().unwrap();
    let door = Arc::<Door>::default();
    let address = serve(&runtime, &door);
    let rig = Rig::new(Duration::ZERO, "");
    let admin = free_address();
    let scene = scenes(&admin, address);
    rig.configure(&format!("{}{scene}", rig.basics()));
    let retide = rig.run();
    let producer = rig.producer();
    let mut made = 0;
    let mut produce = |span: Duration| {
        let start = Instant::now();
        let mut next = start;
        while start.elapsed() < span {
            let id = format!("t{made}");
            rig.send(
                &producer,
                &[("retry-scene", "paid"), ("retry-id", &id)],
                b"0",
            );
            let id = format!("s{made}");
            rig.send(
                &producer,
                &[("retry-scene", "sent"), ("retry-id", &id)],
                b"0",
            );
            made += 1;
            next += EVERY;
            thread::park_timeout(next.saturating_duration_since(Instant::now()));
        }
    };

    let dressed = [
        ("retry-scene", "paid"),
        ("retry-id", "dressed"),
        ("cookie", "a=b"),
        ("traceparent", "00-1"),
        ("traceparent", "00-2"),
        ("x-kind", "1"),
    ];
    rig.send(&producer, &dressed, b"0");
    produce(BEFORE);
    rig.send(
        &producer,
        &[("retry-scene", "paid"), ("retry-id", "bad")],
        b"0",
    );
    produce(BEFORE / 4);
    // One that is refused between successes is dead at once.
    wait_for_call(&door, "bad");
    produce(BEFORE / 4);
    wait_for_health(&door);
    door.shut.store(true, Ordering::SeqCst);
    let refuses = Duration::from_secs(rig::size("REFUSES", REFUSES) as u64);
    produce(refuses);
    let subject = |scene: &str| format!("http://{address} (scene {scene})");
    check_is_told(&admin, "target-walled", &subject("paid"));
    check_is_told(&admin, "scene-braked", &subject("sent"));
    door.shut.store(false, Ordering::SeqCst);
    producer.flush(PATIENCE).unwrap();
    // The longer it was shut, the later are those that look whether it still is.
    let patience = PATIENCE + 3 * refuses;
    let ends = rig.ends_within(2 * made + 2, patience).into_iter();

    let delivered = |outcomes: &&Vec<String>| *outcomes == &["delivered"];
    let (sent, ends): (BTreeMap<_, _>, BTreeMap<_, _>) =
        ends.partition(|(id, _)| id.starts_with('s'));
    check_flood(&rig, &sent, made);
    assert_eq!(ends["bad"], ["dead"]);
    let dead = ends.len() - 1 - ends.values().filter(delivered).count();
    assert!(
        dead < wall::LEAST as usize,
        "{dead} of {made} are not delivered"
    );
    let alerts = of_rule(&rig, "breaker-open");
    assert_eq!(alerts.len(), 1, "{alerts:?}");
    assert_eq!(alerts[0]["reason"], "refused-in-a-row", "{alerts:?}");
    assert_eq!(alerts[0]["scene"], "paid", "{alerts:?}");

    check_dressed(&door);
    let metrics = get(&admin, "/metrics").unwrap().1;
    // As often as its events say: one that is bad, and those that were refused before it was a wall.
    let line = format!(
        "retide_attempts_total{{scene=\"paid\",outcome=\"permanent\"}} {}",
        dead + 1
    );
    assert!(metrics.contains(&line), "{line}: {metrics}");
    for reason in ["withheld", "repeated"] {
        let line = format!("retide_headers_left_out_total{{scene=\"paid\",reason=\"{reason}\"}} 1");
        assert!(metrics.contains(&line), "{metrics}");
    }
    retide.terminate();
    assert_eq!(retide.wait(), Some(0));
    let story = rig.retide(&["explain", "dressed"]);
    let story = String::from_utf8_lossy(&story.stdout).into_owned();
    let told = "without headers cookie (withheld), traceparent (repeated)";
    assert!(story.contains(told), "{story}");
}

/// A target that answers 200 at once, with a body that never ends.
#[derive(Default)]
struct Endless(Mutex<Vec<String>>);

async fn stream(State(endless): State<Arc<Endless>>, headers: HeaderMap) -> Body {
    let id = headers["retry-id"].to_str().unwrap().to_owned();
    endless.0.lock().unwrap().push(id);
    let chunks = futures_util::stream::unfold((), |()| async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        Some((Ok::<_, std::convert::Infallible>(": still here\n"), ()))
    });
    Body::from_stream(chunks)
}

impl Endless {
    /// Waits until so many calls were made.
    fn wait_for(&self, calls: usize) {
        let start = Instant::now();
        while self.0.lock().unwrap().len() < calls {
            assert!(start.elapsed() < PATIENCE, "nobody called");
            thread::park_timeout(Duration::from_millis(5));
        }
    }
}

#[test]
fn a_status_that_has_arrived_is_kept_by_those_who_leave_while_the_body_goes_on() {
    const EACH: usize = 8;
    let runtime = Runtime::new().unwrap();
    let endless = Arc::<Endless>::default();
    let router = Router::new().route("/stream", post(stream));
    let address = rig::serve(&runtime, router.with_state(Arc::clone(&endless)));
    let rig = Rig::new(Duration::ZERO, "");
    let scene = format!(
        "[scenes.stream]\n\
         target = {{ http = {{ url = 'http://{address}/stream', timeout = '1m' }} }}\n\
         backoff = {{ fixed = {{ delay = '1s' }} }}\n\
         concurrency = 64\n"
    );
    rig.configure(&format!("{}{scene}", rig.basics()));
    let producer = rig.producer();
    let produce = |first: usize| {
        for number in first..first + EACH {
            let id = format!("s{number}");
            let headers = [("retry-scene", "stream"), ("retry-id", &id)];
            rig.send(&producer, &headers, b"0");
        }
        producer.flush(PATIENCE).unwrap();
    };

    let first = rig.run();
    produce(0);
    endless.wait_for(EACH);
    let second = rig.run();
    produce(EACH);
    endless.wait_for(2 * EACH);
    // They have just been answered.
    first.terminate();
    second.terminate();
    assert_eq!((first.wait(), second.wait()), (Some(0), Some(0)));
    let third = rig.run();
    produce(2 * EACH);
    let ends = rig.ends(3 * EACH);

    assert!(ends.values().all(|end| end == &["delivered"]), "{ends:?}");
    let mut calls = endless.0.lock().unwrap().clone();
    let all = calls.len();
    calls.sort_unstable();
    calls.dedup();
    assert_eq!(all, calls.len(), "called twice: {all} calls");
    third.terminate();
    assert_eq!(third.wait(), Some(0));
}
