//! A target that allows so many calls in a second, and three processes that call it.

use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use rdkafka::producer::Producer;
use tokio::runtime::Runtime;

use crate::commands::get;
use crate::rig::{self, Rig};
use crate::support::PATIENCE;

/// How many calls the target takes in a second.
const LIMIT: usize = 20;

/// How long it wants rest where there are more, in seconds.
const REST: u64 = 2;

/// Tasks in each of the four shards.
const TASKS: usize = 40;

/// A target that counts calls by the second.
#[derive(Default)]
struct Limited {
    /// When each call came, with its attempt, and whether it was refused.
    calls: Mutex<Vec<(Instant, u32, bool)>>,
}

async fn answer(State(target): State<Arc<Limited>>, headers: HeaderMap) -> Response {
    let now = Instant::now();
    let attempt = headers["retry-attempt"].to_str().unwrap().parse().unwrap();
    let mut calls = target.calls.lock().unwrap();
    let late = calls
        .iter()
        .filter(|(at, _, refused)| !refused && now.duration_since(*at) < Duration::from_secs(1));
    let refused = late.count() >= LIMIT;
    calls.push((now, attempt, refused));
    if refused {
        let rest = REST.to_string();
        return (StatusCode::TOO_MANY_REQUESTS, [("retry-after", rest)]).into_response();
    }
    StatusCode::OK.into_response()
}

fn serve(runtime: &Runtime, target: &Arc<Limited>) -> SocketAddr {
    let router = Router::new().route("/paid", post(answer));
    rig::serve(runtime, router.with_state(Arc::clone(target)))
}

/// A port that nobody listens on.
fn free() -> String {
    let port = TcpListener::bind("127.0.0.1:0").unwrap();
    port.local_addr().unwrap().to_string()
}

#[test]
fn three_processes_find_what_a_target_allows_and_nothing_dies_of_it() {
    let runtime = Runtime::new().unwrap();
    let target = Arc::<Limited>::default();
    let address = serve(&runtime, &target);
    let rig = Rig::calm(Duration::ZERO, "");
    // One attempt that counts: what is throttled does not.
    let scene = format!(
        r#"
[scenes.paid]
target = {{ http = {{ url = "http://{address}/paid", timeout = "5s" }} }}
backoff = {{ fixed = {{ delay = "100ms" }} }}
max_attempts = 1
"#
    );
    rig.configure(&format!("{}{scene}", rig.basics()));
    let admins = [free(), free(), free()];
    let processes = admins.each_ref().map(|admin| {
        let listen = ("RETIDE__ADMIN__LISTEN", admin.clone());
        rig.launch_with(&["run"], &[listen])
    });
    let start = Instant::now();
    for admin in &admins {
        // All of them have shards.
        let has_some = || {
            let metrics = get(admin, "/metrics");
            metrics.is_some_and(|(_, text)| {
                let assigned = text
                    .lines()
                    .find_map(|line| line.strip_prefix("retide_owned_shards "));
                assigned.is_some_and(|count| count != "0")
            })
        };
        while !has_some() {
            assert!(start.elapsed() < PATIENCE, "no shards");
            thread::park_timeout(Duration::from_millis(50));
        }
    }

    let producer = rig.producer();
    for index in 0..TASKS {
        for shard in 0..4 {
            let id = format!("{shard}-{index}");
            let headers = [("retry-scene", "paid"), ("retry-id", id.as_str())];
            rig.send_to(shard, &producer, &headers, b"x");
        }
    }
    producer.flush(PATIENCE).unwrap();
    let ends = rig.ends(TASKS * 4);

    let bad = ends.values().filter(|ends| **ends != ["delivered"]);
    assert_eq!(bad.count(), 0, "{ends:?}");
    let calls = target.calls.lock().unwrap().clone();
    let begin = calls[0].0;
    let after =
        |(at, ..): &&(Instant, u32, bool)| at.duration_since(begin) > Duration::from_secs(1);
    let later = calls.iter().filter(after);
    let refused = later.clone().filter(|(.., refused)| *refused).count();
    let took = calls.last().unwrap().0.duration_since(begin);
    // One in a hundred, and never less than one that came together with another one.
    assert!(refused <= 2, "{refused} of {}, {took:?}", later.count());
    // The others heard of it: nobody called until the rest was over.
    let first = calls.iter().find(|(.., refused)| *refused).unwrap().0;
    let told = first + Duration::from_secs(1);
    let rest = told..first + Duration::from_secs(REST);
    let during = calls.iter().filter(|(at, ..)| rest.contains(at)).count();
    assert_eq!(during, 0, "calls while the target rests");
    let heard = |told_by: &str| {
        let line =
            format!("retide_cooldowns_total{{target=\"http://{address}\",told_by=\"{told_by}\"}} ");
        let counts = admins.iter().map(|admin| {
            let metrics = get(admin, "/metrics").unwrap().1;
            let count = metrics.lines().find_map(|text| text.strip_prefix(&line));
            count
                .unwrap_or_else(|| panic!("no {line} in {metrics}"))
                .parse::<u64>()
                .unwrap()
        });
        counts.sum::<u64>()
    };
    assert!(heard("server") > 0);
    assert!(heard("server") + heard("process") >= 3, "all know of it");
    let throttled = calls.iter().filter(|(.., refused)| *refused).count();
    assert!(calls.len() - throttled >= TASKS * 4);
    drop(processes);
}
