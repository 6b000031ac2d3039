//! What goes out over HTTP, and a target that suddenly refuses everything.

use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use rdkafka::producer::Producer;
use retide_core::wall;
use tokio::runtime::Runtime;

use crate::commands::get;
use crate::rig::{self, Rig};
use crate::support::PATIENCE;

/// How long the target is well before, and how long it refuses everything: longer than the waits of a task's attempts together.
const BEFORE: Duration = Duration::from_secs(2);
const REFUSES: Duration = Duration::from_secs(5);

/// Time between two tasks.
const EVERY: Duration = Duration::from_millis(20);

/// A target that may refuse everybody; it refuses the task `bad` in any case.
#[derive(Default)]
struct Door {
    shut: AtomicBool,
    /// The headers of each call.
    calls: Mutex<Vec<HeaderMap>>,
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

fn serve(runtime: &Runtime, door: &Arc<Door>) -> SocketAddr {
    let router = Router::new().route("/paid", post(answer));
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

#[test]
fn a_wall_of_404_kills_few_tasks_and_headers_left_out_are_told() {
    let runtime = Runtime::new().unwrap();
    let door = Arc::<Door>::default();
    let address = serve(&runtime, &door);
    let rig = Rig::new(Duration::ZERO, "");
    let port = TcpListener::bind("127.0.0.1:0").unwrap();
    let admin = port.local_addr().unwrap().to_string();
    drop(port);
    let scene = format!(
        r#"
[admin]
listen = "{admin}"
[scenes.paid]
target = {{ http = {{ url = "http://{address}/paid", timeout = "5s", content_type = "text/plain" }} }}
backoff = {{ fixed = {{ delay = "500ms" }} }}
max_attempts = 3
concurrency = 16
"#
    );
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
    let start = Instant::now();
    while door
        .calls
        .lock()
        .unwrap()
        .iter()
        .all(|call| call["retry-id"] != "bad")
    {
        assert!(start.elapsed() < PATIENCE, "nobody called");
        thread::park_timeout(Duration::from_millis(20));
    }
    produce(BEFORE / 4);
    door.shut.store(true, Ordering::SeqCst);
    produce(REFUSES);
    door.shut.store(false, Ordering::SeqCst);
    producer.flush(PATIENCE).unwrap();
    let ends = rig.ends_within(made + 2, PATIENCE);

    assert_eq!(ends["bad"], ["dead"]);
    let delivered = |outcomes: &&Vec<String>| *outcomes == &["delivered"];
    let dead = ends.len() - 1 - ends.values().filter(delivered).count();
    assert!(
        dead < wall::LEAST as usize,
        "{dead} of {made} are not delivered"
    );
    let alerts: Vec<serde_json::Value> = rig
        .read("alerts")
        .iter()
        .map(|record| serde_json::from_slice(record.value.as_ref().unwrap()).unwrap())
        .filter(|alert: &serde_json::Value| alert["rule"] == "breaker-open")
        .collect();
    assert_eq!(alerts.len(), 1, "{alerts:?}");
    assert_eq!(alerts[0]["reason"], "refused-in-a-row", "{alerts:?}");
    assert_eq!(alerts[0]["scene"], "paid", "{alerts:?}");

    check_dressed(&door);
    let metrics = get(&admin, "/metrics").unwrap().1;
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
