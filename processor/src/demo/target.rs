//! The target of the demo: an HTTP server on loopback that follows the script, and writes down what it sees.

use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use hdrhistogram::Histogram;
use tokio::net::TcpListener;

use crate::demo::plan::{Answer, HANG, Script};

/// The server's address, and what it has seen.
pub(crate) struct Target {
    /// Where it listens.
    pub(crate) address: SocketAddr,
    /// What it has seen.
    pub(crate) seen: Arc<Seen>,
}

/// What the target has seen.
pub(crate) struct Seen {
    /// What it says.
    script: Script,
    /// What it counts.
    counts: Mutex<Counts>,
}

/// What the target counts.
pub(crate) struct Counts {
    /// Attempts of tasks of the demo.
    pub(crate) attempts: u64,
    /// Attempts that arrived before their due time.
    pub(crate) early: u64,
    /// Attempts that arrived a second time, or out of order.
    pub(crate) repeated: u64,
    /// Arrival after due time, in microseconds.
    pub(crate) lateness: Histogram<u64>,
    /// The last attempt of each task, by its number.
    last: HashMap<u64, u32>,
}

/// Longest lateness that is told apart: an hour, in microseconds.
const MOST_LATE: u64 = 3_600_000_000;

// === impl Target ===

impl Target {
    /// Starts to listen on a free port. It serves as long as the runtime runs.
    pub(crate) async fn start(script: Script) -> io::Result<Self> {
        let lateness = Histogram::new_with_bounds(1, MOST_LATE, 3)
            .unwrap_or_else(|error| unreachable!("{error}"));
        let seen = Arc::new(Seen {
            script,
            counts: Mutex::new(Counts {
                attempts: 0,
                early: 0,
                repeated: 0,
                lateness,
                last: HashMap::new(),
            }),
        });
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let router = Router::new()
            .route("/{scene}", post(answer))
            .with_state(Arc::clone(&seen));
        tokio::spawn(async move { axum::serve(listener, router).await });
        Ok(Self { address, seen })
    }
}

// === impl Seen ===

impl Seen {
    /// Reads what was counted.
    pub(crate) fn read<T>(&self, read: impl FnOnce(&Counts) -> T) -> T {
        read(&self.counts.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Writes an attempt down and says what the script says to it.
    fn attempt(&self, headers: &HeaderMap) -> Option<Answer> {
        // Before anything else: the lock below is not retide's lateness.
        let now = SystemTime::now().duration_since(UNIX_EPOCH).ok()?;
        let text = |name: &str| headers.get(name)?.to_str().ok();
        let index = Script::index(text("idempotency-key")?)?;
        let attempt: u32 = text("retry-attempt")?.parse().ok()?;
        let due: u64 = text("retry-due-at")?.parse().ok()?;
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        counts.attempts += 1;
        let last = counts.last.insert(index, attempt).unwrap_or_default();
        if attempt != last + 1 {
            counts.repeated += 1;
        }
        match (now.as_micros() as u64).checked_sub(due.saturating_mul(1_000)) {
            Some(late) => counts.lateness.saturating_record(late),
            None => counts.early += 1,
        }
        drop(counts);
        Some(self.script.plan(index).answer(attempt))
    }
}

/// Answers one request.
async fn answer(State(seen): State<Arc<Seen>>, headers: HeaderMap) -> Response {
    match seen.attempt(&headers) {
        // A task of someone else's, submitted while the demo is up.
        None | Some(Answer::Accept) => StatusCode::OK.into_response(),
        Some(Answer::Fail) => StatusCode::SERVICE_UNAVAILABLE.into_response(),
        Some(Answer::Reject) => StatusCode::UNPROCESSABLE_ENTITY.into_response(),
        Some(Answer::Throttle(after)) => {
            let after = [(header::RETRY_AFTER, after.as_secs().to_string())];
            (StatusCode::TOO_MANY_REQUESTS, after).into_response()
        }
        Some(Answer::Hang) => {
            tokio::time::sleep(HANG).await;
            StatusCode::OK.into_response()
        }
    }
}
