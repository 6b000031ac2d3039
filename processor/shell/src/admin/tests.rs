//! The endpoints over a real connection.

use std::time::Instant;

use axum::http::Method;
use reqwest::Client;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use retide_core::Ladder;

use super::*;
use crate::health::STALL;

/// Endpoints that answer.
struct Open {
    address: SocketAddr,
    health: Arc<Health>,
    stop: oneshot::Sender<()>,
    served: JoinHandle<io::Result<()>>,
}

impl Open {
    fn new(health: Health) -> Self {
        let metrics = Arc::new(Metrics::new(&Ladder::default()));
        let health = Arc::new(health.with_troubles(metrics.troubles()));
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let admin = Admin::bind(any, metrics, Arc::clone(&health)).expect("a free port");
        let (stop, stopped) = oneshot::channel();
        Self {
            address: admin.local_addr(),
            health,
            stop,
            served: tokio::spawn(admin.serve(async {
                let _ = stopped.await;
            })),
        }
    }

    async fn ask(&self, method: Method, path: &str) -> reqwest::Response {
        self.ask_for(method, path, "*/*").await
    }

    async fn ask_for(&self, method: Method, path: &str, accept: &str) -> reqwest::Response {
        // The client wants one even where nothing is encrypted; an error says that there is one.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let url = format!("http://{}{path}", self.address);
        let client = Client::builder().timeout(Duration::from_mins(1)).build();
        let request = client.expect("a client").request(method, url);
        let request = request.header(header::ACCEPT, accept);
        request.send().await.expect("an answer")
    }

    async fn get(&self, path: &str) -> (u16, Value) {
        let response = self.ask(Method::GET, path).await;
        let status = response.status().as_u16();
        let body = response.bytes().await.expect("a body");
        (status, serde_json::from_slice(&body).expect("JSON"))
    }
}

#[tokio::test]
async fn readiness_says_which_worker_waits_for_what() {
    let open = Open::new(Health::new(STALL));
    let worker = open.health.worker("worker-0");

    let waiting = json!([{ "worker": "worker-0", "waits_for": ["start", "assignment", "rules"] }]);
    let body = json!({ "ready": false, "draining": false, "waiting": waiting, "troubles": [] });
    assert_eq!(open.get("/readyz").await, (503, body));

    worker.beat();
    worker.assigned();
    worker.ruled();
    let body = json!({ "ready": true, "draining": false, "waiting": [], "troubles": [] });
    assert_eq!(open.get("/readyz").await, (200, body));

    open.health.drain();
    let body = json!({ "ready": false, "draining": true, "waiting": [], "troubles": [] });
    assert_eq!(open.get("/readyz").await, (503, body));
    assert_eq!(open.get("/livez").await.0, 200);
}

#[tokio::test]
async fn a_process_whose_worker_is_silent_is_not_alive() {
    let open = Open::new(Health::new(Duration::ZERO));
    let _worker = open.health.worker("worker-0");

    let (status, body) = open.get("/livez").await;

    assert_eq!(status, 503);
    assert_eq!(body["stalled"][0]["worker"], "worker-0");
}

#[tokio::test]
async fn metrics_are_prometheus_text_and_open_metrics_for_those_who_ask() {
    let open = Open::new(Health::new(STALL));
    let version = env!("CARGO_PKG_VERSION");
    let build = format!("retide_build_info{{version=\"{version}\"}} 1\n");

    for (accept, form) in [
        ("*/*", Exposition::Text),
        (
            "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3",
            Exposition::OpenMetrics,
        ),
    ] {
        let response = open.ask_for(Method::GET, "/metrics", accept).await;

        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(
            response.headers()[header::CONTENT_TYPE],
            form.content_type()
        );
        assert_eq!(response.headers()[header::CONNECTION], "close");
        let text = response.bytes().await.expect("a body");
        let text = String::from_utf8_lossy(&text);
        assert!(text.contains(&build), "{text}");
        assert_eq!(text.ends_with("# EOF\n"), form == Exposition::OpenMetrics);
    }
}

#[tokio::test]
async fn other_paths_are_not_found_and_other_methods_not_allowed() {
    let open = Open::new(Health::new(STALL));

    assert_eq!(
        open.get("/version").await.1["version"],
        env!("CARGO_PKG_VERSION")
    );
    for (method, path, status) in [
        (Method::GET, "/", 404),
        (Method::GET, "/metrics/x", 404),
        (Method::POST, "/livez", 405),
        (Method::DELETE, "/metrics", 405),
        (Method::HEAD, "/version", 200),
    ] {
        let response = open.ask(method.clone(), path).await;
        assert_eq!(response.status().as_u16(), status, "{method} {path}");
    }
}

#[tokio::test]
async fn it_ends_when_told_to() {
    let open = Open::new(Health::new(STALL));

    open.stop.send(()).expect("it runs");

    open.served.await.expect("no panic").expect("no error");
}

#[tokio::test(start_paused = true)]
async fn connections_that_say_nothing_make_room_for_others() {
    let open = Open::new(Health::new(STALL));
    let start = Instant::now();
    let mut idle = Vec::new();
    for _ in 0..CONNECTIONS {
        idle.push(TcpStream::connect(open.address).await.expect("a place"));
    }

    // Time stands still until nobody has anything to do, and then goes on to the end of the idle connections.
    let mut other = TcpStream::connect(open.address).await.expect("a place");
    other
        .write_all(b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n")
        .await
        .expect("a connection");
    let mut answer = String::new();
    timeout(2 * VISIT, other.read_to_string(&mut answer))
        .await
        .expect("in time")
        .expect("an answer");

    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(start.elapsed() < VISIT, "no real time has passed");
    for mut stream in idle {
        assert!(matches!(stream.read(&mut [0]).await, Ok(0) | Err(_)));
    }
}
