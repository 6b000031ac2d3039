//! The admin endpoints: is it alive, is it ready, what are its numbers, which version is it.
//!
//! Not for the public: there is no authentication, so `[admin] listen` is an address of the inside. Invariant: whoever connects can
//! occupy one of a few connections for a short time, and nothing else; a worker never waits for a probe.

use std::io;
use std::net::{self, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::middleware::map_response;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::serve::Listener;
use serde::Serialize;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Sleep, sleep};

use crate::health::Health;
use crate::metrics::Metrics;
use crate::metrics::exposition::Exposition;

/// The admin endpoints, bound to an address.
#[derive(Debug)]
pub struct Admin {
    /// Where it listens.
    listener: net::TcpListener,
    /// That address, with the port it got.
    address: SocketAddr,
    /// What it says.
    sources: Sources,
}

/// What the endpoints speak of.
#[derive(Clone, Debug)]
struct Sources {
    /// The numbers.
    metrics: Arc<Metrics>,
    /// The signs of life.
    health: Arc<Health>,
}

/// The body of `/version`.
#[derive(Serialize)]
struct Build {
    /// The version of retide.
    version: &'static str,
    /// The oldest Rust it builds with.
    rust_version: &'static str,
    /// The processor it runs on.
    arch: &'static str,
    /// The operating system it runs on.
    os: &'static str,
}

/// A listener whose connections are few and short.
struct Door {
    /// Accepts them.
    listener: TcpListener,
    /// One permit for each that may be open.
    room: Arc<Semaphore>,
}

/// A connection that ends when its time is over, whatever the other side does.
struct Visit {
    /// The connection.
    stream: TcpStream,
    /// The end of its time.
    end: Pin<Box<Sleep>>,
    /// Its place.
    _permit: OwnedSemaphorePermit,
}

/// Most connections at once: a few scrapers and probes, each with a second try.
const CONNECTIONS: usize = 32;

/// How long a connection may live. It serves one request, which takes milliseconds.
const VISIT: Duration = Duration::from_secs(10);

// === impl Admin ===

impl Admin {
    /// Listens on `address`; connections wait until [`Self::serve`].
    ///
    /// # Errors
    /// If the address is taken or not ours.
    pub fn bind(
        address: SocketAddr,
        metrics: Arc<Metrics>,
        health: Arc<Health>,
    ) -> io::Result<Self> {
        let listener = net::TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        Ok(Self {
            listener,
            address,
            sources: Sources { metrics, health },
        })
    }

    /// Where it listens; a port of 0 has become a real one.
    pub const fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Answers until `shutdown` comes, and then for as long as requests are under way, which is not long.
    ///
    /// # Errors
    /// If there is no runtime to listen with.
    pub async fn serve(
        self,
        shutdown: impl Future<Output = ()> + Send + 'static,
    ) -> io::Result<()> {
        let door = Door {
            listener: TcpListener::from_std(self.listener)?,
            room: Arc::new(Semaphore::new(CONNECTIONS)),
        };
        axum::serve(door, router(self.sources))
            .with_graceful_shutdown(shutdown)
            .await
    }
}

/// The endpoints. What is not among them is 404; a method other than GET and HEAD is 405.
fn router(sources: Sources) -> Router {
    Router::new()
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .route("/version", get(version))
        .layer(map_response(last))
        .with_state(sources)
}

/// Whether the process is alive.
async fn livez(State(sources): State<Sources>) -> Response {
    let liveness = sources.health.liveness();
    let status = if liveness.live {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    json(status, &liveness)
}

/// Whether the process does its work.
async fn readyz(State(sources): State<Sources>) -> Response {
    let readiness = sources.health.readiness();
    let status = if readiness.ready {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    json(status, &readiness)
}

/// The numbers.
async fn metrics(State(sources): State<Sources>, headers: HeaderMap) -> Response {
    let accept = headers.get_all(header::ACCEPT).iter();
    let accept: Vec<&str> = accept.filter_map(|value| value.to_str().ok()).collect();
    let form = Exposition::wanted(&accept.join(","));
    let headers = [
        (header::CONTENT_TYPE, form.content_type()),
        (header::VARY, "accept"),
    ];
    (headers, sources.metrics.encode_as(form)).into_response()
}

/// Which version it is.
async fn version() -> Response {
    let build = Build {
        version: env!("CARGO_PKG_VERSION"),
        rust_version: env!("CARGO_PKG_RUST_VERSION"),
        arch: std::env::consts::ARCH,
        os: std::env::consts::OS,
    };
    json(StatusCode::OK, &build)
}

/// Each connection serves one request, so that its time is the request's.
async fn last(mut response: Response) -> Response {
    let close = HeaderValue::from_static("close");
    response.headers_mut().insert(header::CONNECTION, close);
    response
}

/// An answer in JSON.
fn json(status: StatusCode, body: &impl Serialize) -> Response {
    let headers = [(header::CONTENT_TYPE, "application/json")];
    let body = serde_json::to_string(body)
        .unwrap_or_else(|error| unreachable!("plain structs have a JSON form: {error}"));
    (status, headers, body).into_response()
}

// === impl Door ===

impl Listener for Door {
    type Io = Visit;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Visit, SocketAddr) {
        let room = Arc::clone(&self.room).acquire_owned().await;
        let permit = room.unwrap_or_else(|_| unreachable!("the semaphore is never closed"));
        // Axum's own accept, which goes on after errors that pass.
        let (stream, address) = Listener::accept(&mut self.listener).await;
        let visit = Visit {
            stream,
            end: Box::pin(sleep(VISIT)),
            _permit: permit,
        };
        (visit, address)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

// === impl Visit ===

impl Visit {
    /// Fails when the connection's time is over.
    fn check(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        match self.end.as_mut().poll(context) {
            Poll::Ready(()) => Err(io::ErrorKind::TimedOut.into()),
            Poll::Pending => Ok(()),
        }
    }
}

impl AsyncRead for Visit {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.check(context)?;
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Visit {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.check(context)?;
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests;
