//! The target: answers as the payload says, and writes down what it saw before it answers.
//!
//! Invariant: an attempt that anyone could know of is in the ledger.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use tokio::net::TcpListener;

use crate::Failed;
use crate::ledger::{Ledger, fingerprint, now_micros};
use crate::plan::Fate;

/// What the target keeps.
struct Target {
    /// Where it writes down what it saw.
    ledger: Ledger,
    /// The instant monotonic time is measured from.
    start: Instant,
}

/// Starts a target that writes to `path`; gives its address.
pub(crate) async fn start(path: &Path) -> Result<SocketAddr, Failed> {
    let target = Arc::new(Target {
        ledger: Ledger::create(path)?,
        start: Instant::now(),
    });
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let address = listener.local_addr()?;
    let router = Router::new()
        .route("/task", post(answer))
        .with_state(target);
    tokio::spawn(async move { axum::serve(listener, router).await });
    Ok(address)
}

/// One attempt.
async fn answer(State(target): State<Arc<Target>>, headers: HeaderMap, body: Bytes) -> StatusCode {
    let (wall, steady) = (now_micros(), target.start.elapsed());
    let text = |name: &str| {
        let value = headers.get(name).and_then(|value| value.to_str().ok());
        value.unwrap_or_default().replace(['\t', '\n'], " ")
    };
    let attempt = text("retry-attempt");
    let status = match Fate::of(&body) {
        Fate::Fails(times) if attempt.parse().is_ok_and(|attempt: u32| attempt > times) => {
            StatusCode::OK
        }
        Fate::Fails(_) => StatusCode::SERVICE_UNAVAILABLE,
        Fate::Refused => StatusCode::BAD_REQUEST,
    };
    target.ledger.write(&[
        &wall.to_string(),
        &steady.as_micros().to_string(),
        &text("retry-id"),
        &attempt,
        &text("retry-due-at"),
        &text("idempotency-key"),
        &fingerprint(&body),
        &text("retry-origin"),
        status.as_str(),
    ]);
    // Between 5 and 60 ms, so that there is something in flight when a process dies.
    let takes = 5 + u64::from(body.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte))) % 56;
    tokio::time::sleep(Duration::from_millis(takes)).await;
    status
}
