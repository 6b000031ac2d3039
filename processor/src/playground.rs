//! An HTTP target to play with: it takes every request, and what it says to each is asked of whoever has started it.
//!
//! Behind `retide target`, and behind the demo, whose script says what happens. Invariant: a request is told before it is answered, so
//! that one whose caller does not wait is told, too.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{HeaderMap, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use tokio::net::TcpListener;

/// A request.
pub(crate) struct Request {
    /// Its method.
    pub(crate) method: Method,
    /// Its path and query.
    pub(crate) uri: Uri,
    /// Its headers.
    pub(crate) headers: HeaderMap,
    /// Its body.
    pub(crate) body: Bytes,
}

/// What is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Reply {
    /// The status.
    pub(crate) status: StatusCode,
    /// How long the caller is asked to leave the target alone, in seconds.
    pub(crate) retry_after: Option<u64>,
    /// How long the answer takes.
    pub(crate) delay: Duration,
}

/// Says what is answered to a request.
pub(crate) trait Answers: Send + Sync + 'static {
    /// What is answered to this one.
    fn answer(&self, request: &Request) -> Reply;
}

/// Largest body that is taken, in bytes: what brokers take of a record at most in practice.
const MOST: usize = 32 << 20;

// === impl Request ===

impl Request {
    /// The text of a header.
    pub(crate) fn text(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }
}

// === impl Reply ===

impl Reply {
    /// This status, at once.
    pub(crate) const fn of(status: StatusCode) -> Self {
        Self {
            status,
            retry_after: None,
            delay: Duration::ZERO,
        }
    }
}

/// Starts to listen; the server serves as long as the runtime runs.
pub(crate) async fn serve(
    address: SocketAddr,
    answers: Arc<dyn Answers>,
) -> io::Result<SocketAddr> {
    let listener = TcpListener::bind(address).await?;
    let address = listener.local_addr()?;
    let router = Router::new()
        .fallback(answer)
        .layer(DefaultBodyLimit::max(MOST))
        .with_state(answers);
    tokio::spawn(async move { axum::serve(listener, router).await });
    Ok(address)
}

/// Answers one request.
async fn answer(
    State(answers): State<Arc<dyn Answers>>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let request = Request {
        method,
        uri,
        headers,
        body,
    };
    let Reply {
        status,
        retry_after,
        delay,
    } = answers.answer(&request);
    tokio::time::sleep(delay).await;
    let mut response = status.into_response();
    if let Some(seconds) = retry_after {
        response
            .headers_mut()
            .insert(header::RETRY_AFTER, seconds.into());
    }
    response
}
