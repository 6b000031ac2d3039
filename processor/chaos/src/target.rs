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
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use tokio::net::TcpListener;

use crate::Failed;
use crate::ledger::{Ledger, fingerprint, now_micros};
use crate::orders::Later;
use crate::plan::{After, Fate, LIMIT_S};

/// What the target keeps.
struct Target {
    /// Where it writes down what it saw.
    ledger: Ledger,
    /// Says later what came of what it took.
    later: Later,
    /// The instant monotonic time is measured from.
    start: Instant,
}

/// Starts a target that writes to `path` and says `later` what it does not know at once; gives its address.
pub(crate) async fn start(path: &Path, later: Later) -> Result<SocketAddr, Failed> {
    let target = Arc::new(Target {
        ledger: Ledger::create(path)?,
        later,
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
async fn answer(State(target): State<Arc<Target>>, headers: HeaderMap, body: Bytes) -> Response {
    let (wall, steady) = (now_micros(), target.start.elapsed());
    let text = |name: &str| {
        let value = headers.get(name).and_then(|value| value.to_str().ok());
        value.unwrap_or_default().replace(['\t', '\n'], " ")
    };
    let attempt = text("retry-attempt");
    let fate = Fate::of(&body);
    let number: u32 = attempt.parse().unwrap_or_default();
    let status = match fate {
        Fate::Later(_) if number == 1 => StatusCode::ACCEPTED,
        Fate::Later(_) => StatusCode::OK,
        Fate::Fails(times) | Fate::Spent(times) if number > times => StatusCode::OK,
        Fate::Fails(_) | Fate::Spent(_) => StatusCode::SERVICE_UNAVAILABLE,
        Fate::Refused => StatusCode::BAD_REQUEST,
    };
    let limit = match (fate, status) {
        (Fate::Later(After::Limit), StatusCode::ACCEPTED) => Some(Duration::from_secs(LIMIT_S)),
        // Longer than a campaign.
        (_, StatusCode::ACCEPTED) => Some(Duration::from_hours(1)),
        (_, _) => None,
    };
    let (id, pending) = (text("retry-id"), limit.map(|limit| limit.as_millis()));
    target.ledger.write(&[
        &wall.to_string(),
        &steady.as_micros().to_string(),
        &id,
        &attempt,
        &text("retry-due-at"),
        &text("idempotency-key"),
        &fingerprint(&body),
        &text("retry-origin"),
        status.as_str(),
        "0",
        &pending.unwrap_or_default().to_string(),
    ]);
    // Between 5 and 60 ms, so that there is something in flight when a process dies.
    let chance = u64::from(body.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte)));
    if let (Fate::Later(after), Some(_)) = (fate, limit) {
        // From before the answer to some seconds after it.
        target
            .later
            .say(id, after, Duration::from_millis(chance * 20));
    }
    tokio::time::sleep(Duration::from_millis(5 + chance % 56)).await;
    let Some(limit) = limit else {
        return status.into_response();
    };
    let limit = format!("{}s", limit.as_secs());
    let headers = [
        ("retry-control", "pending".to_owned()),
        ("retry-pending-for", limit),
    ];
    (status, headers).into_response()
}
