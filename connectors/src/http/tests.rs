//! The rules of the HTTP target, against servers in the same process.

mod answer;
mod budget;
mod config;
mod egress;
mod kept;
mod moves;
mod odd;
mod raw;
mod request;
mod servers;
mod transport;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{HeaderMap as Headers, StatusCode};
use axum::routing::post;
use bytes::Bytes;
use retide_core::{Failure, Outcome};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::*;
use crate::{fixture, tls};

/// What a server of the tests answers: status, headers and body.
type Answer = (u16, &'static [(&'static str, &'static str)], &'static str);

/// Requests as a server of the tests saw them.
type Seen = Arc<Mutex<Vec<(Headers, Bytes)>>>;

/// Serves `answer` to every request and keeps what was asked.
async fn serve(answer: Answer) -> (SocketAddr, Seen) {
    async fn reply(
        State((seen, answer)): State<(Seen, Answer)>,
        request: Request,
    ) -> (StatusCode, Headers, &'static str) {
        let (parts, body) = request.into_parts();
        let body = axum::body::to_bytes(body, usize::MAX)
            .await
            .expect("a body");
        seen.lock().expect("no panic").push((parts.headers, body));
        let (code, headers, text) = answer;
        let mut sent = Headers::new();
        for (name, value) in headers {
            sent.insert(*name, value.parse().expect("a header's value"));
        }
        (StatusCode::from_u16(code).expect("a status"), sent, text)
    }

    let seen = Seen::default();
    let app = Router::new()
        .route("/", post(reply))
        .with_state((Arc::clone(&seen), answer));
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(async move { axum::serve(listener, app).await });
    (address, seen)
}

fn config(address: SocketAddr) -> Config {
    Config::new(format!("http://{address}/"))
}

async fn attempt(config: Config) -> Outcome {
    let http = Http::try_new(config).expect("a valid configuration");
    http.attempt(Arc::new(fixture::task(&[]))).await.outcome
}

async fn attempt_answered(answer: Answer) -> Outcome {
    let (address, _) = serve(answer).await;
    attempt(config(address)).await
}

fn failure(class: &str, message: &str) -> Failure {
    Failure::new(class, message)
}

/// Accepts one connection, reads the request's first bytes, writes `head`, then `chunk` again and again until the client hangs up.
async fn serve_raw(head: &'static [u8], chunk: &'static [u8]) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(async move {
        let (mut socket, _) = listener.accept().await.expect("a client");
        let _ = socket.read(&mut [0; 4096]).await;
        let mut sent = socket.write_all(head).await;
        while sent.is_ok() && !chunk.is_empty() {
            sent = socket.write_all(chunk).await;
        }
    });
    address
}
