//! A connection: how it is begun, how long it lives, and how it is used.
//!
//! Not which one a request takes. Invariant: one that speaks HTTP/1.1 is owned by who uses it.

use std::future::poll_fn;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::client::conn::http1;
use tokio::time::{Instant, timeout_at};

use super::super::dial::Undialed;
use super::super::status::NoAnswer;
use super::super::wire::{Tap, Wire};

/// Streams that are opened on a connection before the target has said how many it takes. No server says just that, so it tells apart
/// that nothing was said.
const UNSAID: usize = 97;

/// Time in which a target is expected to say so.
pub(super) const SAY: Duration = Duration::from_millis(500);

/// The bounds of a connection's life.
pub(super) struct Life {
    /// The address that it leads to.
    pub(super) peer: IpAddr,
    /// When it was made.
    pub(super) born: Instant,
    /// When it is given up, however good.
    pub(super) until: Instant,
    /// The epoch of the pool in which it was made: see [`State::epoch`].
    pub(super) epoch: u64,
}

/// A connection that speaks HTTP/1.1.
pub(in crate::http) struct One {
    pub(in crate::http) sender: http1::SendRequest<Full<Bytes>>,
    pub(in crate::http) tap: Arc<Tap>,
    pub(super) life: Life,
    /// Time without use after which it is given up.
    pub(in crate::http) idle: Duration,
    /// When it last answered; never, if it is new.
    pub(in crate::http) answered: Option<Instant>,
    /// Whether it was kept without a request, be it after its dial, since who waited for it had another one by then.
    pub(super) was_kept: bool,
}

/// A connection that speaks HTTP/2.
pub(in crate::http) struct Two {
    pub(in crate::http) sender: h2::client::SendRequest<Bytes>,
    pub(in crate::http) tap: Arc<Tap>,
    pub(super) life: Life,
    /// Streams in use.
    pub(super) streams: AtomicUsize,
    /// Milliseconds of its life at which it was last used.
    pub(super) used: AtomicU64,
    /// Answers so far.
    pub(super) answers: AtomicU64,
    /// Whether no further stream is to be opened.
    pub(super) is_retired: AtomicBool,
}

/// A connection for a request that waits.
pub(super) enum Grant {
    /// A connection.
    One(One),
    /// A stream of a connection, counted as in use.
    Two(Arc<Two>),
}

// === impl One ===

impl One {
    /// Whether it has answered before, or was kept: the target may have closed it meanwhile.
    pub(in crate::http) const fn is_reused(&self) -> bool {
        self.was_kept || self.answered.is_some()
    }

    /// Whether it can take a request. A new one takes the first one before it says so.
    pub(super) fn is_open(&self) -> bool {
        if self.answered.is_some() {
            self.sender.is_ready()
        } else {
            !self.sender.is_closed()
        }
    }
}

// === impl Two ===

impl Two {
    /// Begins to speak HTTP/2, and waits until `deadline` for what the target says of itself.
    pub(super) async fn open(
        wire: Wire,
        tap: Arc<Tap>,
        life: Life,
        deadline: Instant,
    ) -> Result<Grant, Undialed> {
        let peer = life.peer;
        let failed =
            |error: h2::Error| Undialed::new(NoAnswer::Connect, format!("{peer}: {error}"), true);
        let (sender, mut connection) = h2::client::Builder::new()
            .initial_max_send_streams(UNSAID)
            .enable_push(false)
            .handshake(wire)
            .await
            .map_err(failed)?;
        let said = poll_fn(|context| match Pin::new(&mut connection).poll(context) {
            Poll::Ready(Ok(())) => Poll::Ready(Err(None)),
            Poll::Ready(Err(error)) => Poll::Ready(Err(Some(error))),
            Poll::Pending if connection.max_concurrent_send_streams() == UNSAID => Poll::Pending,
            Poll::Pending => Poll::Ready(Ok(())),
        });
        match timeout_at(deadline, said).await {
            // A target that says nothing may answer all the same.
            Ok(Ok(())) | Err(_) => {}
            Ok(Err(Some(error))) => return Err(failed(error)),
            Ok(Err(None)) => {
                let message = format!("{peer}: closed before a request");
                return Err(Undialed::new(NoAnswer::Connect, message, true));
            }
        }
        let two = Arc::new(Self {
            sender,
            tap,
            life,
            streams: AtomicUsize::new(0),
            used: AtomicU64::new(0),
            answers: AtomicU64::new(0),
            is_retired: AtomicBool::new(false),
        });
        let held = Arc::downgrade(&two);
        tokio::spawn(async move {
            // Its errors are those of the requests that are under way.
            drop(connection.await);
            if let Some(two) = held.upgrade() {
                two.retire();
            }
        });
        Ok(Grant::Two(two))
    }

    /// No further stream is opened.
    pub(in crate::http) fn retire(&self) {
        self.is_retired.store(true, Ordering::Relaxed);
    }

    /// Whether it has answered before.
    pub(in crate::http) fn is_reused(&self) -> bool {
        self.answers.load(Ordering::Relaxed) > 0
    }

    /// For how long it has not been used.
    pub(in crate::http) fn idle(&self, now: Instant) -> Duration {
        let used = Duration::from_millis(self.used.load(Ordering::Relaxed));
        now.duration_since(self.life.born).saturating_sub(used)
    }
}
