//! The wire of a connection: a stream with or without TLS, and what has come and gone on it since the request under way began.
//!
//! A target that closes a connection at once may have said something before: that it takes no further stream, or an answer. So a write that
//! fails since the connection is gone is taken for done, and the connection ends where what has come ends.
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
    /// Whether the target is gone, so that nothing is written any more.
    is_gone: bool,
}

/// The bytes that have come and gone on a connection since the request under way began.
#[derive(Default)]
pub(super) struct Tap(Mutex<Seen>);

/// The state of a [`Tap`].
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

/// The view of a tap on a request and its answer.
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
            is_gone: false,
        };
        (wire, tap)
    }

    /// Notes a write of `length` bytes; one that fails since the target is gone counts as done.
    fn wrote(&mut self, polled: Poll<io::Result<usize>>, length: usize) -> Poll<io::Result<usize>> {
        self.tap.wrote(&polled);
        match polled {
            Poll::Ready(Err(error)) if is_gone(&error) => {
                self.is_gone = true;
                Poll::Ready(Ok(length))
            }
            Poll::Ready(_) | Poll::Pending => polled,
        }
    }
}

impl AsyncRead for Wire {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let Self { stream, tap, .. } = self.get_mut();
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
        let wire = self.get_mut();
        if wire.is_gone {
            return Poll::Ready(Ok(bytes.len()));
        }
        let polled = match &mut wire.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_write(context, bytes),
            Stream::Tls(stream) => Pin::new(stream).poll_write(context, bytes),
        };
        wire.wrote(polled, bytes.len())
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let wire = self.get_mut();
        let length = || slices.iter().map(|slice| slice.len()).sum();
        if wire.is_gone {
            return Poll::Ready(Ok(length()));
        }
        let polled = match &mut wire.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_write_vectored(context, slices),
            Stream::Tls(stream) => Pin::new(stream).poll_write_vectored(context, slices),
        };
        wire.wrote(polled, length())
    }

    fn is_write_vectored(&self) -> bool {
        match &self.stream {
            Stream::Plain(stream) => stream.is_write_vectored(),
            Stream::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let wire = self.get_mut();
        if wire.is_gone {
            return Poll::Ready(Ok(()));
        }
        let polled = match &mut wire.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_flush(context),
            Stream::Tls(stream) => Pin::new(stream).poll_flush(context),
        };
        match polled {
            Poll::Ready(Err(error)) if is_gone(&error) => {
                wire.is_gone = true;
                Poll::Ready(Ok(()))
            }
            Poll::Ready(_) | Poll::Pending => polled,
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

    /// Takes the view on the request under way and its answer.
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

/// Whether a write has failed since the target has closed the connection.
fn is_gone(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::BrokenPipe
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::net::{Ipv4Addr, TcpListener};
    use std::time::Duration;

    use socket2::SockRef;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    #[tokio::test]
    async fn what_came_before_a_connection_was_closed_is_read_after_a_write_has_failed() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap())
            .await
            .unwrap();
        let (mut target, _) = listener.accept().unwrap();
        io::Write::write_all(&mut target, b"goodbye").unwrap();
        // It goes without waiting for anything.
        SockRef::from(&target)
            .set_linger(Some(Duration::ZERO))
            .unwrap();
        drop(target);

        let (mut wire, tap) = Wire::new(Stream::Plain(stream));
        tap.begin();
        while !wire.is_gone {
            wire.write_all(b"request").await.unwrap();
            wire.flush().await.unwrap();
        }
        let mut said = Vec::new();
        let ended = wire.read_to_end(&mut said).await;

        assert_eq!(said, b"goodbye", "{ended:?}");
        let glimpse = tap.glimpse();
        assert_eq!(glimpse.start, b"goodbye");
        assert!(!glimpse.gone, "nothing has gone after it was closed");
    }
}
