//! The wire of a connection: a stream with or without TLS, and what has come and gone on it since the request under way began.
//!
//! Invariant: what the tap says of a request is true of that request only, and what a body brings is not kept.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

/// Bytes of an answer's head that are kept until it has been read: as many as hyper reads of one before it gives up.
const KEPT: usize = 400 * 1024;

/// Bytes of room that a tap keeps from one answer to the next: more than the heads of usual answers.
const ROOM: usize = 8 * 1024;

/// A stream to a target.
pub(super) enum Stream {
    /// Without TLS.
    Plain(TcpStream),
    /// With TLS.
    Tls(Box<TlsStream<TcpStream>>),
}

/// A stream that notes what comes and goes.
pub(super) struct Wire {
    stream: Stream,
    tap: Arc<Tap>,
}

/// What has come and gone on a connection since the request under way began.
#[derive(Default)]
pub(super) struct Tap(Mutex<Seen>);

/// See [`Tap`].
#[derive(Default)]
struct Seen {
    /// Whether an answer is waited for, so that its start is kept.
    waiting: bool,
    /// The start of the answer.
    start: Vec<u8>,
    /// Bytes that have come.
    came: u64,
    /// Bytes that have gone.
    gone: u64,
}

/// What a tap has seen of a request and its answer.
pub(super) struct Glimpse {
    /// The start of the answer.
    pub(super) start: Vec<u8>,
    /// Whether a byte of an answer has come.
    pub(super) came: bool,
    /// Whether a byte of the request has gone.
    pub(super) gone: bool,
}

// === impl Wire ===

impl Wire {
    /// The wire that `stream` is, and its tap.
    pub(super) fn new(stream: Stream) -> (Self, Arc<Tap>) {
        let tap = Arc::new(Tap::default());
        let wire = Self {
            stream,
            tap: Arc::clone(&tap),
        };
        (wire, tap)
    }
}

impl AsyncRead for Wire {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let Self { stream, tap } = self.get_mut();
        let before = buffer.filled().len();
        let polled = match stream {
            Stream::Plain(stream) => Pin::new(stream).poll_read(context, buffer),
            Stream::Tls(stream) => Pin::new(stream).poll_read(context, buffer),
        };
        let new = &buffer.filled()[before..];
        if !new.is_empty() {
            tap.lock().came(new);
        }
        polled
    }
}

impl AsyncWrite for Wire {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let Self { stream, tap } = self.get_mut();
        let polled = match stream {
            Stream::Plain(stream) => Pin::new(stream).poll_write(context, bytes),
            Stream::Tls(stream) => Pin::new(stream).poll_write(context, bytes),
        };
        tap.wrote(&polled);
        polled
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let Self { stream, tap } = self.get_mut();
        let polled = match stream {
            Stream::Plain(stream) => Pin::new(stream).poll_write_vectored(context, slices),
            Stream::Tls(stream) => Pin::new(stream).poll_write_vectored(context, slices),
        };
        tap.wrote(&polled);
        polled
    }

    fn is_write_vectored(&self) -> bool {
        match &self.stream {
            Stream::Plain(stream) => stream.is_write_vectored(),
            Stream::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().stream {
            Stream::Plain(stream) => Pin::new(stream).poll_flush(context),
            Stream::Tls(stream) => Pin::new(stream).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().stream {
            Stream::Plain(stream) => Pin::new(stream).poll_shutdown(context),
            Stream::Tls(stream) => Pin::new(stream).poll_shutdown(context),
        }
    }
}

// === impl Tap ===

impl Tap {
    /// A request is about to go: what came before says nothing of it.
    pub(super) fn begin(&self) {
        let mut seen = self.lock();
        seen.waiting = true;
        seen.start.clear();
        seen.start.shrink_to(ROOM);
        seen.came = 0;
        seen.gone = 0;
    }

    /// The head of the answer has been read: what comes now need not be kept.
    pub(super) fn end(&self) {
        self.lock().waiting = false;
    }

    /// Bytes that have come since a request last began.
    pub(super) fn came(&self) -> u64 {
        self.lock().came
    }

    /// What has been seen of the request under way and its answer.
    pub(super) fn glimpse(&self) -> Glimpse {
        let mut seen = self.lock();
        seen.waiting = false;
        Glimpse {
            start: std::mem::take(&mut seen.start),
            came: seen.came > 0,
            gone: seen.gone > 0,
        }
    }

    /// Notes what a write has done.
    fn wrote(&self, polled: &Poll<io::Result<usize>>) {
        if let Poll::Ready(Ok(count)) = polled {
            self.lock().gone += *count as u64;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Seen> {
        // Nothing here panics half-way.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Seen ===

impl Seen {
    /// Notes bytes that have come.
    fn came(&mut self, new: &[u8]) {
        self.came += new.len() as u64;
        if self.waiting {
            let room = KEPT.saturating_sub(self.start.len()).min(new.len());
            self.start.extend_from_slice(&new[..room]);
        }
    }
}
