//! Servers that do what they are told, byte by byte.

use std::sync::atomic::{AtomicUsize, Ordering};

use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::task::AbortHandle;
use tokio_rustls::TlsAcceptor;

use super::*;

/// What a server does with a request.
#[derive(Clone, Debug)]
pub(super) enum Act {
    /// Writes this and keeps the connection.
    Say(Vec<u8>),
    /// Writes this and closes.
    Finish(Vec<u8>),
    /// Writes this, and nothing more for good.
    Hang(Vec<u8>),
    /// Closes without a word, before it has read the request.
    Close,
    /// Resets the connection, before it has read the request.
    Reset,
}

/// What servers have seen.
#[derive(Clone, Default)]
pub(super) struct Counts(Arc<Tally>);

#[derive(Default)]
struct Tally {
    connections: AtomicUsize,
    requests: AtomicUsize,
}

impl Counts {
    /// Connections that were taken.
    pub(super) fn connections(&self) -> usize {
        self.0.connections.load(Ordering::SeqCst)
    }

    /// Requests that were processed.
    pub(super) fn requests(&self) -> usize {
        self.0.requests.load(Ordering::SeqCst)
    }

    /// One more connection; its number, from 0 on.
    fn connected(&self) -> usize {
        self.0.connections.fetch_add(1, Ordering::SeqCst)
    }

    /// One more request.
    fn processed(&self) {
        self.0.requests.fetch_add(1, Ordering::SeqCst);
    }
}

/// An answer as usual servers give it.
pub(super) fn ok() -> Act {
    Act::Say(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok".to_vec())
}

/// A server that does what `act` says with each request, by the number of the connection and of the request on it.
pub(super) async fn serve_act(
    act: impl Fn(usize, usize) -> Act + Send + Sync + 'static,
) -> (SocketAddr, Counts) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    (address, serve_at(listener, act).0)
}

/// The same for who has this port, until it is told to take no further connection.
pub(super) fn serve_at(
    listener: TcpListener,
    act: impl Fn(usize, usize) -> Act + Send + Sync + 'static,
) -> (Counts, AbortHandle) {
    let counts = Counts::default();
    let (act, seen) = (Arc::new(act), counts.clone());
    let listening = tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            let connection = seen.connected();
            let (act, seen) = (Arc::clone(&act), seen.clone());
            tokio::spawn(async move { talk(socket, connection, &*act, &seen).await });
        }
    });
    (counts, listening.abort_handle())
}

/// Serves one connection.
async fn talk(
    mut socket: TcpStream,
    connection: usize,
    act: &(impl Fn(usize, usize) -> Act + Send + Sync),
    counts: &Counts,
) {
    for request in 0.. {
        let act = act(connection, request);
        // Waits for the request without taking it.
        if !matches!(socket.peek(&mut [0]).await, Ok(1)) {
            return;
        }
        match act {
            Act::Close => return,
            Act::Reset => {
                #[expect(deprecated, reason = "a reset is what is wanted")]
                socket.set_linger(Some(Duration::ZERO)).expect("it is set");
                return;
            }
            Act::Say(_) | Act::Finish(_) | Act::Hang(_) => {}
        }
        if read_request(&mut socket).await.is_none() {
            return;
        }
        counts.processed();
        let (Act::Say(bytes) | Act::Finish(bytes) | Act::Hang(bytes)) = &act else {
            return;
        };
        if socket.write_all(bytes).await.is_err() {
            return;
        }
        match act {
            Act::Say(_) => {}
            Act::Hang(_) => {
                let _ = socket.read(&mut [0]).await;
                return;
            }
            Act::Finish(_) | Act::Close | Act::Reset => {
                let _ = socket.shutdown().await;
                return;
            }
        }
    }
}

/// Reads one request with the length that it says it has.
async fn read_request(socket: &mut TcpStream) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    loop {
        if let Some(end) = bytes.windows(4).position(|end| end == b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&bytes[..end]).to_lowercase();
            let length = head
                .lines()
                .find_map(|line| line.strip_prefix("content-length: ")?.trim().parse().ok())
                .unwrap_or(0);
            if bytes.len() >= end + 4 + length {
                return Some(bytes);
            }
        }
        if socket.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
    }
}

/// What a server of HTTP/2 does with a stream.
#[derive(Clone, Copy, Debug)]
pub(super) enum Stream {
    /// Answers 200.
    Answer,
    /// Resets it for this reason, unseen.
    Reset(u32),
    /// Says that it takes no more streams than those before, answers these, and closes.
    GoAway,
    /// Closes the connection without a word.
    Close,
}

/// The rules of a server that speaks TLS, for `localhost`, and these protocols.
pub(super) fn tls(protocols: &[&[u8]]) -> (TlsAcceptor, CertificateDer<'static>) {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]);
    let made = made.expect("a certificate");
    let (certificate, key) = (made.cert.der().clone(), made.signing_key.serialize_der());
    let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(
            vec![certificate.clone()],
            PrivatePkcs8KeyDer::from(key).into(),
        )
        .expect("a key");
    config.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
    (TlsAcceptor::from(Arc::new(config)), certificate)
}

/// A server of HTTP/2 over TLS that says it takes `most` streams at once and does what `act` says with each one, by its number on the
/// connection; HTTP/1.1 it answers with 200.
pub(super) async fn serve_two(
    most: u32,
    act: impl Fn(usize, usize) -> Stream + Send + Sync + 'static,
) -> (SocketAddr, CertificateDer<'static>, Counts) {
    let (acceptor, certificate) = tls(&[b"h2", b"http/1.1"]);
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let counts = Counts::default();
    tokio::spawn(serve_two_at(listener, acceptor, most, act, counts.clone()));
    (address, certificate, counts)
}

/// The same for who has this port and speaks TLS by these rules.
pub(super) async fn serve_two_at(
    listener: TcpListener,
    acceptor: TlsAcceptor,
    most: u32,
    act: impl Fn(usize, usize) -> Stream + Send + Sync + 'static,
    seen: Counts,
) {
    let act = Arc::new(act);
    while let Ok((socket, _)) = listener.accept().await {
        let connection = seen.connected();
        let (act, seen, acceptor) = (Arc::clone(&act), seen.clone(), acceptor.clone());
        tokio::spawn(async move {
            let Ok(mut socket) = acceptor.accept(socket).await else {
                return;
            };
            if socket.get_ref().1.alpn_protocol() == Some(b"h2") {
                let act = |stream| act(connection, stream);
                let _ = talk_two(&mut socket, most, act, &seen).await;
            } else {
                let mut bytes = [0; 4096];
                while matches!(socket.read(&mut bytes).await, Ok(1..)) {
                    seen.processed();
                    let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
                    let _ = socket.write_all(answer).await;
                }
            }
        });
    }
}

/// Serves one connection of HTTP/2: requests are taken for complete with their headers, as an answer may come so soon.
async fn talk_two(
    socket: &mut (impl AsyncRead + AsyncWrite + Unpin),
    most: u32,
    act: impl Fn(usize) -> Stream,
    counts: &Counts,
) -> std::io::Result<()> {
    const PREFACE: usize = 24;
    let (headers, reset, settings, go_away) = (1, 3, 4, 7);
    let mut preface = [0; PREFACE];
    socket.read_exact(&mut preface).await?;
    let limit = [&[0, 3][..], &most.to_be_bytes()].concat();
    write_frame(socket, settings, 0, 0, &limit).await?;
    let (mut last, mut count) = (0, 0);
    loop {
        let mut head = [0; 9];
        socket.read_exact(&mut head).await?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let (kind, flags) = (head[3], head[4]);
        let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        let mut payload = vec![0; length as usize];
        socket.read_exact(&mut payload).await?;
        if kind == settings && flags == 0 {
            write_frame(socket, settings, 1, 0, &[]).await?;
        }
        if kind != headers {
            continue;
        }
        let act = act(count);
        count += 1;
        match act {
            Stream::Answer => {
                counts.processed();
                last = stream;
                // `:status: 200` is the eighth entry of the static table.
                write_frame(socket, headers, 0x5, stream, &[0x88]).await?;
            }
            Stream::Reset(reason) => {
                write_frame(socket, reset, 0, stream, &reason.to_be_bytes()).await?;
            }
            Stream::GoAway => {
                let payload = [last.to_be_bytes(), 0_u32.to_be_bytes()].concat();
                write_frame(socket, go_away, 0, 0, &payload).await?;
                // Who closes with bytes unread resets the connection.
                let mut unread = [0; 4096];
                while socket.read(&mut unread).await? > 0 {}
                return Ok(());
            }
            Stream::Close => return socket.shutdown().await,
        }
    }
}

/// Writes a frame of HTTP/2.
async fn write_frame(
    socket: &mut (impl AsyncWrite + Unpin),
    kind: u8,
    flags: u8,
    stream: u32,
    payload: &[u8],
) -> std::io::Result<()> {
    let length = u32::try_from(payload.len()).expect("a short one");
    let mut frame = length.to_be_bytes()[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    socket.write_all(&frame).await?;
    socket.flush().await
}
