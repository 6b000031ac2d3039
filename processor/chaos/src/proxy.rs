//! A proxy between retide and the broker that knows enough of Kafka's protocol to lose the reply it is told to lose.
//!
//! Every request and reply is a length and a body; a request's body begins with the number of its API, its version and a correlation id,
//! a reply's with that id. Nothing else is looked at, nothing is changed. Invariant: what the lost reply was to has been done.

use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};

/// What becomes of a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Loss {
    /// It never arrives; the connection stays.
    Silent,
    /// It never arrives, and the connection is closed.
    Closing,
    /// It arrives late, as does everything behind it.
    Late(Duration),
}

/// A proxy; it ends with its runtime.
#[derive(Clone)]
pub(crate) struct Proxy {
    /// Its port.
    pub(crate) port: u16,
    /// What it is to do.
    orders: Arc<Mutex<Orders>>,
}

/// What the proxy is to do, and what it did.
#[derive(Debug, Default)]
struct Orders {
    /// The API whose replies are lost, how, and how many of them.
    order: Option<(i16, Loss, usize)>,
    /// How many were lost so far.
    lost: usize,
}

/// The requests of a connection that have no reply yet: the API of each, by correlation id.
type Waiting = Arc<Mutex<HashMap<i32, i16>>>;

/// Longest body that is taken for one: far above what retide sends or asks for.
const MAX_BODY: usize = 256 << 20;

// === impl Loss ===

impl Loss {
    /// Its name in the fault journal.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Silent => "silent",
            Self::Closing => "closing",
            Self::Late(_) => "late",
        }
    }
}

// === impl Proxy ===

impl Proxy {
    /// A proxy on a port of its own, to a broker at the port that [`Self::run`] is given.
    pub(crate) async fn bind() -> io::Result<(Self, TcpListener)> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let proxy = Self {
            port: listener.local_addr()?.port(),
            orders: Arc::default(),
        };
        Ok((proxy, listener))
    }

    /// Carries connections to the broker's `port`.
    pub(crate) async fn run(self, listener: TcpListener, port: u16) {
        let broker = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        while let Ok((client, _)) = listener.accept().await {
            let proxy = self.clone();
            tokio::spawn(async move {
                // An error is the end of one connection; the client notices.
                let _ = proxy.carry(client, broker).await;
            });
        }
    }

    /// Loses the next `count` replies to `api`.
    pub(crate) fn lose(&self, api: i16, loss: Loss, count: usize) {
        let mut orders = lock(&self.orders);
        orders.order = Some((api, loss, count));
        orders.lost = 0;
    }

    /// Loses nothing more; gives how many replies were lost since [`Self::lose`].
    pub(crate) fn stop_losing(&self) -> usize {
        let mut orders = lock(&self.orders);
        orders.order = None;
        orders.lost
    }

    /// Whether there is still something to lose.
    pub(crate) fn is_losing(&self) -> bool {
        lock(&self.orders).order.is_some()
    }

    /// One connection, until either side closes it.
    async fn carry(&self, client: TcpStream, broker: SocketAddr) -> io::Result<()> {
        let server = TcpStream::connect(broker).await?;
        client.set_nodelay(true)?;
        server.set_nodelay(true)?;
        let (from_client, to_client) = client.into_split();
        let (from_server, to_server) = server.into_split();
        let waiting = Waiting::default();
        tokio::select! {
            result = requests(from_client, to_server, &waiting) => result,
            result = self.replies(from_server, to_client, &waiting) => result,
        }
    }

    /// Carries replies, but for those that are to be lost.
    async fn replies(
        &self,
        mut from: OwnedReadHalf,
        mut to: OwnedWriteHalf,
        waiting: &Waiting,
    ) -> io::Result<()> {
        loop {
            let body = body(&mut from).await?;
            let id = number(&body, 0)?;
            let api = lock(waiting).remove(&id);
            match api.and_then(|api| self.loss(api)) {
                None => {}
                Some(Loss::Silent) => continue,
                Some(Loss::Closing) => return Ok(()),
                Some(Loss::Late(by)) => tokio::time::sleep(by).await,
            }
            send(&mut to, &body).await?;
        }
    }

    /// What is to become of a reply to `api`.
    fn loss(&self, api: i16) -> Option<Loss> {
        let mut orders = lock(&self.orders);
        let (wanted, loss, left) = orders.order?;
        if api != wanted {
            return None;
        }
        orders.order = (left > 1).then_some((wanted, loss, left - 1));
        orders.lost += 1;
        Some(loss)
    }
}

/// Carries requests and keeps in mind which API each is for.
async fn requests(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    waiting: &Waiting,
) -> io::Result<()> {
    loop {
        let body = body(&mut from).await?;
        let api = (number(&body, 0)? >> 16) as i16;
        let id = number(&body, 4)?;
        lock(waiting).insert(id, api);
        send(&mut to, &body).await?;
    }
}

/// Reads a length and as many bytes.
async fn body(from: &mut OwnedReadHalf) -> io::Result<Vec<u8>> {
    let length = from.read_u32().await? as usize;
    if length > MAX_BODY {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut body = vec![0; length];
    from.read_exact(&mut body).await?;
    Ok(body)
}

/// Writes a length and as many bytes.
async fn send(to: &mut OwnedWriteHalf, body: &[u8]) -> io::Result<()> {
    let mut frame = Vec::with_capacity(body.len() + 4);
    frame.extend((body.len() as u32).to_be_bytes());
    frame.extend(body);
    to.write_all(&frame).await
}

/// The big-endian number at `at`.
fn number(body: &[u8], at: usize) -> io::Result<i32> {
    let bytes = body.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
    let bytes = bytes.ok_or(io::ErrorKind::InvalidData)?;
    Ok(i32::from_be_bytes(bytes))
}

/// Locks what no panic leaves half-changed.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
