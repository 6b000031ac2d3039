//! A target over HTTP that answers at once or after a while, fails the first attempts of each task, and counts.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use axum::Router;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;
use tokio::sync::oneshot;

use retide_shell::clock;

/// A target that runs on a thread of its own, until it is dropped.
pub(crate) struct Target {
    /// Where it listens.
    pub(crate) address: SocketAddr,
    /// What it has seen.
    seen: Arc<Seen>,
    /// Dropped to end it.
    _stop: oneshot::Sender<()>,
}

/// How a target answers.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Manner {
    /// How long it takes.
    pub(crate) takes: Duration,
    /// How many attempts of each task fail.
    pub(crate) failures: u64,
}

/// Arrival at the target after the due time, in milliseconds; the figures say how many attempts were at most so late.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Lateness {
    /// Half of them.
    pub p50: f64,
    /// 99 in 100.
    pub p99: f64,
    /// 999 in 1,000.
    pub p999: f64,
    /// All.
    pub max: f64,
    /// Attempts before their due time.
    pub early: u64,
    /// Attempts in all.
    pub attempts: u64,
}

/// A time in which attempts are due, in microseconds since the epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Window {
    /// Its start.
    pub(crate) from: u64,
    /// Its end, which is not part of it.
    pub(crate) to: u64,
}

/// All requests so far.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Arrivals {
    /// How many.
    pub(crate) requests: u64,
    /// How late they were together, in microseconds.
    pub(crate) late_micros: u64,
}

/// What a target has seen.
struct Seen {
    /// How it answers.
    manner: Manner,
    /// Requests so far.
    requests: AtomicU64,
    /// Requests before their due time.
    early: AtomicU64,
    /// How late they were together, in microseconds.
    late_micros: AtomicU64,
    /// How late each of them was.
    lateness: Mutex<Noted>,
}

/// How late requests were.
struct Noted {
    /// Of those that are due in this time.
    window: Window,
    /// Arrival after due time, in microseconds.
    histogram: Histogram<u64>,
}

/// Header of a task: when it is due by the plan, in milliseconds since the epoch, where that is not what retide says.
pub(crate) const DUE: &str = "bench-due-at";

/// Longest lateness that is told apart: an hour, in microseconds.
const MOST_LATE: u64 = 3_600_000_000;

// === impl Target ===

impl Target {
    /// Starts to listen on a free port.
    pub(crate) fn start(manner: Manner) -> io::Result<Self> {
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let seen = Arc::new(Seen {
            manner,
            requests: AtomicU64::new(0),
            early: AtomicU64::new(0),
            late_micros: AtomicU64::new(0),
            lateness: Mutex::new(Noted {
                window: Window::ALL,
                histogram: Histogram::new_with_bounds(1, MOST_LATE, 3)
                    .unwrap_or_else(|error| unreachable!("{error}")),
            }),
        });
        let (stop, stopped) = oneshot::channel::<()>();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let shared = Arc::clone(&seen);
        thread::Builder::new()
            .name("bench-target".to_owned())
            .spawn(move || {
                runtime.block_on(async move {
                    let listener = TcpListener::from_std(listener)?;
                    let router = Router::new()
                        .route("/", post(answer))
                        .route("/failing/{failures}", post(answer_failing))
                        .with_state(shared);
                    tokio::select! {
                        served = async { axum::serve(listener, router).await } => served,
                        _ = stopped => Ok(()),
                    }
                })
            })?;
        Ok(Self {
            address,
            seen,
            _stop: stop,
        })
    }

    /// How many requests it has seen.
    pub(crate) fn requests(&self) -> u64 {
        self.seen.requests.load(Ordering::Acquire)
    }

    /// How many requests it has seen, and how late they were together.
    pub(crate) fn arrivals(&self) -> Arrivals {
        Arrivals {
            requests: self.requests(),
            late_micros: self.seen.late_micros.load(Ordering::Acquire),
        }
    }

    /// Forgets how late they were, and notes from now on the lateness of those only that are due in this time.
    pub(crate) fn measure(&self, window: Window) {
        self.take_lateness();
        self.seen.noted().window = window;
    }

    /// How late they were since this was last asked.
    pub(crate) fn take_lateness(&self) -> Lateness {
        let histogram = &mut self.seen.noted().histogram;
        let millis = |micros: u64| micros as f64 / 1e3;
        let lateness = Lateness {
            p50: millis(histogram.value_at_quantile(0.5)),
            p99: millis(histogram.value_at_quantile(0.99)),
            p999: millis(histogram.value_at_quantile(0.999)),
            max: millis(histogram.max()),
            early: self.seen.early.swap(0, Ordering::AcqRel),
            attempts: histogram.len(),
        };
        histogram.reset();
        lateness
    }
}

// === impl Window ===

impl Window {
    /// Everything.
    pub(crate) const ALL: Self = Self {
        from: 0,
        to: u64::MAX,
    };
}

// === impl Seen ===

impl Seen {
    /// How late requests were.
    fn noted(&self) -> MutexGuard<'_, Noted> {
        self.lateness.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes how late a request is that arrives `now`, in microseconds.
    fn note(&self, due: u64, now: u64) {
        let Some(late) = now.checked_sub(due) else {
            self.early.fetch_add(1, Ordering::AcqRel);
            return;
        };
        self.late_micros.fetch_add(late, Ordering::AcqRel);
        let noted = &mut *self.noted();
        if (noted.window.from..noted.window.to).contains(&due) {
            noted.histogram.saturating_record(late);
        }
    }
}

/// Answers one request as the target was told.
async fn answer(State(seen): State<Arc<Seen>>, headers: HeaderMap) -> StatusCode {
    let failures = seen.manner.failures;
    reply(&seen, &headers, failures).await
}

/// Answers one request of a task whose first attempts fail.
async fn answer_failing(
    State(seen): State<Arc<Seen>>,
    Path(failures): Path<u64>,
    headers: HeaderMap,
) -> StatusCode {
    reply(&seen, &headers, failures).await
}

/// Notes a request and answers it.
async fn reply(seen: &Seen, headers: &HeaderMap, failures: u64) -> StatusCode {
    let now = clock::since_epoch();
    let number = |name: &str| -> Option<u64> { headers.get(name)?.to_str().ok()?.parse().ok() };
    if let Some(due) = number(DUE).or_else(|| number("retry-due-at")) {
        seen.note(due.saturating_mul(1_000), now.as_micros() as u64);
    }
    seen.requests.fetch_add(1, Ordering::AcqRel);
    if !seen.manner.takes.is_zero() {
        tokio::time::sleep(seen.manner.takes).await;
    }
    if number("retry-attempt").unwrap_or(u64::MAX) <= failures {
        return StatusCode::SERVICE_UNAVAILABLE;
    }
    StatusCode::OK
}
