//! The body of an answer: it decides nothing, and is read for the sake of the connection, and of a message where the attempt failed.
//!
//! Invariant: nobody waits for it longer than [`MAX_WAIT`], and a success does not wait at all.

use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use h2::RecvStream;
use http_body_util::BodyExt;
use hyper::body::{Body as _, Incoming};
use retide_core::task::MAX_MESSAGE;
use tokio::time::{Instant, timeout_at};

use super::pool::{OneLease, TwoLease};

/// Time in which a body comes, or is not waited for any longer: usual ones come with the head.
pub(super) const MAX_WAIT: Duration = Duration::from_secs(1);

/// The body of an answer, and the connection on which it comes.
pub(super) enum Body {
    /// A body of HTTP/1.1.
    One {
        /// What comes.
        incoming: Incoming,
        /// The connection.
        lease: OneLease,
    },
    /// A body of HTTP/2.
    Two {
        /// What comes.
        incoming: RecvStream,
        /// The stream.
        lease: TwoLease,
    },
    /// On a connection that is closed: all there is.
    Read(Vec<u8>),
}

// === impl Body ===

impl Body {
    /// Reads at most `limit` bytes by `until`, keeps as many as a message can hold, and gives the connection back if that was all.
    pub(super) async fn read(self, limit: usize, until: Instant) -> Vec<u8> {
        let mut start = Start::new(limit);
        match self {
            Self::One {
                mut incoming,
                lease,
            } => {
                while start.has_room() {
                    match timeout_at(until, incoming.frame()).await {
                        // Trailers say nothing here.
                        Ok(Some(Ok(frame))) => start.take(&frame.into_data().unwrap_or_default()),
                        Ok(None) => {
                            lease.give_back();
                            break;
                        }
                        Ok(Some(Err(_))) | Err(_) => break,
                    }
                }
            }
            Self::Two {
                mut incoming,
                lease,
            } => {
                while start.has_room() {
                    let Ok(Some(Ok(chunk))) = timeout_at(until, incoming.data()).await else {
                        break;
                    };
                    // Only a stream that is gone has no use for it.
                    let _ = incoming.flow_control().release_capacity(chunk.len());
                    start.take(&chunk);
                }
                drop(lease);
            }
            Self::Read(body) => start.take(&body),
        }
        start.bytes
    }

    /// Reads it, if not now then beside what follows, so that the connection can be used again.
    pub(super) fn discard(mut self, limit: usize) {
        if let Self::One { incoming, .. } = &mut self {
            // As a rule all of it is there; then a task of its own would cost more than the reading.
            let mut context = Context::from_waker(Waker::noop());
            let mut seen = 0;
            loop {
                match Pin::new(&mut *incoming).poll_frame(&mut context) {
                    Poll::Ready(Some(Ok(frame))) => {
                        seen += frame.into_data().unwrap_or_default().len();
                        if seen >= limit {
                            return;
                        }
                    }
                    Poll::Ready(Some(Err(_))) => return,
                    Poll::Ready(None) => {
                        if let Self::One { lease, .. } = self {
                            lease.give_back();
                        }
                        return;
                    }
                    Poll::Pending => break,
                }
            }
        }
        match self {
            Self::Two { incoming, .. } if incoming.is_end_stream() => {}
            Self::Read(_) => {}
            Self::One { .. } | Self::Two { .. } => {
                let until = Instant::now() + MAX_WAIT;
                tokio::spawn(async move { drop(self.read(limit, until).await) });
            }
        }
    }
}

/// The start of a body, as it is read.
struct Start {
    /// Bytes of the body that are kept.
    bytes: Vec<u8>,
    /// Bytes that may still be read.
    left: usize,
}

// === impl Start ===

impl Start {
    /// Nothing read of at most `limit` bytes.
    const fn new(limit: usize) -> Self {
        Self {
            bytes: Vec::new(),
            left: limit,
        }
    }

    /// Whether more is to be read.
    const fn has_room(&self) -> bool {
        self.left > 0
    }

    /// More has come.
    fn take(&mut self, chunk: &[u8]) {
        let kept = (MAX_MESSAGE - self.bytes.len())
            .min(self.left)
            .min(chunk.len());
        self.bytes.extend_from_slice(&chunk[..kept]);
        self.left = self.left.saturating_sub(chunk.len());
    }
}
