//! A target that is down for a while, and another scene that goes on.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use rdkafka::producer::{BaseProducer, Producer};
use retide_shell::clock;
use tokio::runtime::Runtime;

use crate::commands::get;
use crate::rig::{self, Request, Rig, Stored};
use crate::support::{PATIENCE, free_address};

/// How long a breaker is open at first; then twice as long.
const OPEN: Duration = Duration::from_secs(3);

/// How long the target is well before, and how long it is down: until it is probed for the second time.
const BEFORE: Duration = Duration::from_secs(5);
const DOWN: Duration = Duration::from_secs(9);

/// Time between two tasks of each scene.
const EVERY: Duration = Duration::from_millis(25);

/// Half-open again at the latest this long after the target is back: where the machine stood still, the second probe was in vain, too.
const PROBED: Duration = Duration::from_secs(12);

/// The longest rung of tasks whose target has been down for so long, and the slow start.
const RUNG: Duration = Duration::from_secs(5);
const SLOW_START: Duration = Duration::from_secs(3);

/// How late tasks of the other scene may be on a box that does other things, whatever they were before.
const NOISE: u128 = 100_000;

/// Calls to a target that is down: what opens its breaker after a busy time in which it was well, what was in flight then, and twice the probes;
/// without a breaker over 1,000.
const MOST_CALLS: usize = 100;

/// A target that can be down.
#[derive(Default)]
struct Outage {
    down: AtomicBool,
    /// Attempts by task, and whether the target was down.
    calls: Mutex<Vec<(String, bool)>>,
}

async fn answer(State(outage): State<Arc<Outage>>, headers: HeaderMap) -> StatusCode {
    let id = headers["retry-id"].to_str().unwrap().to_owned();
    let down = outage.down.load(Ordering::SeqCst);
    outage.calls.lock().unwrap().push((id, down));
    if down {
        StatusCode::SERVICE_UNAVAILABLE
    } else {
        StatusCode::OK
    }
}

fn serve(runtime: &Runtime, outage: &Arc<Outage>) -> SocketAddr {
    let router = Router::new().route("/paid", post(answer));
    rig::serve(runtime, router.with_state(Arc::clone(outage)))
}

/// Produces a task of each scene again and again for this time, all due at once.
fn produce(rig: &Rig, producer: &BaseProducer, made: &mut usize, span: Duration) {
    let start = Instant::now();
    let mut next = start;
    while start.elapsed() < span {
        let due = clock::since_epoch();
        let due = due.as_millis().to_string();
        for scene in ["paid", "other"] {
            let id = format!("{scene}-{made}");
            let headers = [
                ("retry-scene", scene),
                ("retry-id", &*id),
                ("retry-due-at", &*due),
            ];
            rig.send(producer, &headers, b"0");
        }
        *made += 1;
        next += EVERY;
        thread::park_timeout(next.saturating_duration_since(Instant::now()));
    }
}

/// How late the slowest but one in a hundred of these was, in microseconds, while the target's machine did not stand still.
fn p99(requests: &[Request], stalls: &[Range<u128>]) -> u128 {
    let late = |request: &Request| {
        let due = u128::from(request.number("retry-due-at")) * 1_000;
        let asleep = stalls.iter().map(|stall| {
            let end = stall.end.min(request.at_micros);
            end.saturating_sub(stall.start.max(due))
        });
        let late = request.at_micros.saturating_sub(due);
        late.saturating_sub(asleep.sum())
    };
    let mut late: Vec<u128> = requests.iter().map(late).collect();
    late.sort_unstable();
    late[late.len() * 99 / 100]
}

/// People were told once that the target was down, and once that it is well again.
fn check_alerts(rig: &Rig, target: &str) {
    let alerts = rig.read("alerts");
    let read = |record: &Stored| -> serde_json::Value {
        serde_json::from_slice(record.value.as_ref().unwrap()).unwrap()
    };
    let mut all: Vec<_> = alerts.iter().map(read).collect();
    all.sort_by_key(|alert| alert["at"].as_u64());
    let rules: Vec<_> = all
        .iter()
        .map(|alert| alert["rule"].as_str().unwrap())
        .collect();
    assert_eq!(rules, ["breaker-open", "breaker-closed"], "{all:?}");
    let (open, closed) = (&all[0], &all[1]);
    for alert in [open, closed] {
        assert_eq!(alert["target"], format!("http://{target}"), "{alert}");
        assert_eq!(alert["scene"], "paid", "{alert}");
    }
    assert_eq!(open["reason"], "failed-in-a-row");
    let number = |alert: &serde_json::Value, key: &str| alert[key].as_u64().unwrap();
    assert!(number(open, "failed") >= 20, "{open}");
    assert!(number(open, "count") > number(open, "failed"), "{open}");
    assert_eq!(
        number(open, "until") - number(open, "at"),
        OPEN.as_millis() as u64,
        "{open}"
    );
    assert!(closed["until"].is_null(), "{closed}");
    assert!(
        number(closed, "at") - number(closed, "since") > DOWN.as_millis() as u64,
        "{closed}"
    );
    let key = alerts.iter().filter_map(|record| record.key.as_deref());
    assert!(key.into_iter().any(|key| key == b"paid/breaker-open"));
}

#[test]
fn an_outage_uses_up_no_attempts_holds_up_no_other_scene_and_is_made_up_for_soon_after() {
    let runtime = Runtime::new().unwrap();
    let outage = Arc::<Outage>::default();
    let dead = serve(&runtime, &outage);
    let rig = Rig::calm(Duration::ZERO, "");
    let admin = free_address();
    let basics = rig.basics();
    let scenes = format!(
        r#"
[admin]
listen = "{admin}"
[scenes.paid]
target = {{ http = {{ url = "http://{dead}/paid?token=s3cret", timeout = "1m" }} }}
backoff = {{ fixed = {{ delay = "1s" }} }}
max_attempts = 4
concurrency = 16
breaker = {{ open = "{}s", slow_start = "{}s" }}
[scenes.other]
target = {{ http = {{ url = "http://TARGET/other", timeout = "1m" }} }}
concurrency = 16
"#,
        OPEN.as_secs(),
        SLOW_START.as_secs()
    );
    rig.configure(&format!("{basics}{scenes}"));
    let retide = rig.run();
    let producer = rig.producer();
    let mut made = 0;

    produce(&rig, &producer, &mut made, BEFORE);
    let before = rig.target.count();
    outage.down.store(true, Ordering::SeqCst);
    produce(&rig, &producer, &mut made, DOWN);
    let metrics = get(&admin, "/metrics").unwrap().1;
    outage.down.store(false, Ordering::SeqCst);
    let back = Instant::now();
    let during = rig.target.count();
    producer.flush(PATIENCE).unwrap();
    let ends = rig.ends_within(2 * made, PATIENCE);
    let drained = back.elapsed();

    let delivered = |outcomes: &&Vec<String>| *outcomes == &["delivered"];
    assert_eq!(ends.values().filter(delivered).count(), 2 * made);
    let calls = outage.calls.lock().unwrap().clone();
    let in_vain = calls.iter().filter(|(_, down)| *down).count();
    let mut seen: BTreeMap<String, u64> = BTreeMap::new();
    for (id, _) in calls {
        *seen.entry(id).or_default() += 1;
    }
    for record in rig.read("callbacks") {
        let body: serde_json::Value = serde_json::from_slice(&record.value.unwrap()).unwrap();
        if let Some(calls) = seen.remove(body["id"].as_str().unwrap()) {
            assert_eq!(body["attempts"].as_u64(), Some(calls), "{body}");
        }
    }
    assert!(seen.is_empty(), "{seen:?}");
    let requests = rig.target.requests();
    let stalls = rig.target.stalls();
    let p99 = |range: Range<usize>| p99(&requests[range], &stalls);
    let (without, with) = (p99(0..before), p99(before..during));
    eprintln!(
        "{made} tasks each; {in_vain} calls in vain; p99 lateness of the other scene {without} µs before, {with} µs during; all through {drained:?} after"
    );
    assert!(in_vain <= MOST_CALLS, "{in_vain} calls in vain");
    assert!(with <= (without * 3 / 2).max(NOISE), "{with} µs");
    assert!(drained < PROBED + RUNG + SLOW_START, "{drained:?}");
    check_alerts(&rig, &dead.to_string());
    let line = format!("retide_breaker_state{{target=\"http://{dead}\"}} 2");
    assert!(metrics.contains(&line), "{metrics}");
    assert!(!metrics.contains("s3cret"));
    let log = retide.log();
    assert!(log.matches("breaker switched").count() >= 3, "{log}");
    retide.terminate();
    assert_eq!(retide.wait(), Some(0));
}
