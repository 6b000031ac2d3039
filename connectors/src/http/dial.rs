//! How connections are made: resolve, connect, TLS.
//!
//! A name may have addresses that do not answer. So they are tried beside each other: the next one a moment after the one before, at once
//! when that one fails (RFC 8305), and those that have not answered a second time, since a full queue of a listener drops what comes.
//! Invariant: nothing of a request is written here, so what fails here has not been done.

use std::collections::{HashSet, VecDeque};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustls::ClientConfig;
use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout_at};
use tokio_rustls::TlsConnector;
use url::{Host, Url};

use super::config;
use super::status::NoAnswer;
use super::wire::Stream;
use crate::egress::{self, Place};
use crate::tls::{Alpn, Tls};

/// Time without a word on a connection after which it is asked whether it is still there, and between two such questions.
const KEEPALIVE: Duration = Duration::from_secs(15);

/// Questions without an answer after which a connection is given up.
const KEEPALIVE_TRIES: u32 = 3;

/// Time that an address has before the next one is tried beside it: what RFC 8305 advises.
const HEAD_START: Duration = Duration::from_millis(250);

/// Time after which addresses that have not answered are tried anew beside what is under way: shorter than the second in which the system
/// sends a lost SYN again.
const ANEW: Duration = Duration::from_millis(700);

/// Times that an address is tried within one dial; each costs a socket that waits.
const ROUNDS: usize = 3;

/// Addresses of a name that are tried.
const MAX_ADDRESSES: usize = 16;

/// Time for which the addresses of a name are taken for granted: connections that are made in a burst ask once.
const FRESH: Duration = Duration::from_secs(1);

/// Time for which the addresses of a name are used where asking for them fails.
const STALE: Duration = Duration::from_mins(5);

/// Makes connections to one target.
pub(super) struct Dialer {
    /// Where to.
    host: Host,
    /// At which port.
    port: u16,
    /// The same as rules name it.
    name: String,
    /// Which addresses may be dialled.
    egress: Arc<egress::Config>,
    /// How TLS is spoken, if it is.
    tls: Option<Tls>,
    /// By what it was spoken last.
    spoken: Mutex<Option<Arc<ClientConfig>>>,
    /// What is known of the name.
    known: Mutex<Known>,
    /// The addresses that it has, in place of what the system says.
    #[cfg(test)]
    names: Mutex<Option<Names>>,
}

/// The addresses of a name, as a test changes them.
#[cfg(test)]
pub(super) type Names = Arc<Mutex<Vec<IpAddr>>>;

/// The addresses of a name.
#[derive(Default)]
struct Known {
    /// The latest ones.
    latest: Vec<IpAddr>,
    /// Those before them: a name may have more addresses than one answer names.
    before: Vec<IpAddr>,
    /// When they were asked for.
    asked: Option<Instant>,
}

/// A connection that was made.
pub(super) struct Dialed {
    /// The connection.
    pub(super) stream: Stream,
    /// Whom to.
    pub(super) peer: IpAddr,
    /// Whether HTTP/2 is spoken on it.
    pub(super) is_two: bool,
}

/// Why no connection was made.
#[derive(Clone, Debug)]
pub(super) struct Undialed {
    /// What failed.
    pub(super) way: NoAnswer,
    /// In words.
    pub(super) message: String,
    /// Whether another try may go better at once.
    pub(super) is_passing: bool,
}

/// What a dial is at.
#[derive(Default)]
pub(super) struct Stage(AtomicU8);

// === impl Dialer ===

impl Dialer {
    /// What makes connections to `url`, to such addresses and with such TLS.
    pub(super) fn new(url: &Url, egress: Arc<egress::Config>, tls: Option<Tls>) -> Self {
        let host = url.host().map(|host| host.to_owned());
        Self {
            host: host.unwrap_or_else(|| Host::Domain(String::new())),
            port: url.port_or_known_default().unwrap_or_default(),
            name: config::host(url),
            egress,
            tls,
            spoken: Mutex::default(),
            known: Mutex::default(),
            #[cfg(test)]
            names: Mutex::default(),
        }
    }

    /// The name has these addresses, whatever the system says.
    #[cfg(test)]
    pub(super) fn resolves_by(&self, names: Names) {
        *self.names.lock().unwrap_or_else(PoisonError::into_inner) = Some(names);
    }

    /// Asks which addresses the name has.
    async fn look_up(&self, name: &str) -> io::Result<Vec<IpAddr>> {
        #[cfg(test)]
        {
            let names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(names) = &*names {
                return Ok(names.lock().unwrap_or_else(PoisonError::into_inner).clone());
            }
        }
        let found = tokio::net::lookup_host((name, self.port)).await?;
        Ok(found.map(|address| address.ip()).collect())
    }

    /// Whether TLS is spoken, and so the protocol agreed upon with each connection.
    pub(super) const fn is_secure(&self) -> bool {
        self.tls.is_some()
    }

    /// Makes a connection by `deadline`, and says at each moment in `stage` what it is at.
    pub(super) async fn dial(
        &self,
        offer: Alpn,
        stage: &Stage,
        deadline: Instant,
    ) -> Result<Dialed, Undialed> {
        stage.set(NoAnswer::Dns);
        let addresses = self.permitted(self.resolve(FRESH, deadline).await?)?;
        stage.set(NoAnswer::Connect);
        let (stream, peer) = connect(&addresses, self.port, deadline).await?;
        let Some(tls) = &self.tls else {
            return Ok(Dialed {
                stream: Stream::Plain(stream),
                peer,
                is_two: false,
            });
        };
        stage.set(NoAnswer::Tls);
        let failed = |message, is_passing| Undialed::new(NoAnswer::Tls, message, is_passing);
        let config = tls.current(offer).map_err(|error| failed(error, false))?;
        let shake = TlsConnector::from(config).connect(tls.server_name(), stream);
        let stream = match timeout_at(deadline, shake).await {
            Ok(Ok(stream)) => stream,
            // What the two cannot agree on they will not agree on in a moment.
            Ok(Err(error)) => {
                return Err(failed(tls.explain(&error), !is_disagreement(&error)));
            }
            Err(_) => return Err(failed("no TLS handshake in time".to_owned(), false)),
        };
        let is_two = stream.get_ref().1.alpn_protocol() == Some(b"h2");
        Ok(Dialed {
            stream: Stream::Tls(Box::new(stream)),
            peer,
            is_two,
        })
    }

    /// Whether TLS is spoken by something else since the last time this was asked.
    pub(super) fn has_changed(&self) -> bool {
        let current = self
            .tls
            .as_ref()
            .and_then(|tls| tls.current(Alpn::Any).ok());
        let Some(current) = current else { return false };
        let mut spoken = self.spoken.lock().unwrap_or_else(PoisonError::into_inner);
        let before = spoken.replace(Arc::clone(&current));
        before.is_some_and(|before| !Arc::ptr_eq(&before, &current))
    }

    /// What it means that a connection ended with this error, if TLS is the cause.
    pub(super) fn tls_cause(&self, error: &(dyn std::error::Error + 'static)) -> Option<String> {
        self.tls.as_ref()?.cause(error)
    }

    /// From now on, and for as long as answers of the name service are taken for granted, the name has these addresses.
    #[cfg(test)]
    pub(super) fn knows(&self, addresses: &[IpAddr]) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.latest = addresses.to_vec();
        known.asked = Some(Instant::now());
    }

    /// Those of the addresses that may be dialled, if there are any.
    fn permitted(&self, addresses: Vec<IpAddr>) -> Result<Vec<IpAddr>, Undialed> {
        let Self {
            name, port, egress, ..
        } = self;
        let place = Place {
            host: name,
            port: *port,
        };
        let mut denied = None;
        let mut permitted = addresses;
        permitted.retain(|address| match egress.permit(place, *address) {
            Ok(()) => true,
            Err(found) => {
                denied = Some(found);
                false
            }
        });
        match denied {
            Some(denied) if permitted.is_empty() => {
                let message = denied.to_string();
                Err(Undialed::new(NoAnswer::Egress, message, false))
            }
            Some(_) | None => Ok(permitted),
        }
    }

    /// Asks anew which addresses the name has, if `age` has passed since the last time: `None` if it is not a name, or if that is not known.
    pub(super) async fn refresh(&self, age: Duration, deadline: Instant) -> Option<Vec<IpAddr>> {
        let Host::Domain(_) = self.host else {
            return None;
        };
        self.resolve(age, deadline).await.ok()?;
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        Some([&*known.latest, &*known.before].concat())
    }

    /// The addresses, if they can be found out; asked for if the known ones are older than `age`.
    async fn resolve(&self, age: Duration, deadline: Instant) -> Result<Vec<IpAddr>, Undialed> {
        let name = match &self.host {
            Host::Ipv4(address) => return Ok(vec![IpAddr::V4(*address)]),
            Host::Ipv6(address) => return Ok(vec![IpAddr::V6(*address)]),
            Host::Domain(name) => name,
        };
        let known = |age: Duration| {
            let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
            let is_fresh = known.asked.is_some_and(|asked| asked.elapsed() < age);
            is_fresh.then(|| known.latest.clone())
        };
        if let Some(addresses) = known(age) {
            return Ok(addresses);
        }
        let message = match timeout_at(deadline, self.look_up(name)).await {
            Ok(Ok(found)) => {
                let mut seen = HashSet::new();
                let found: Vec<_> = found
                    .into_iter()
                    .filter(|address| seen.insert(*address))
                    .take(MAX_ADDRESSES)
                    .collect();
                if !found.is_empty() {
                    let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
                    known.before = std::mem::replace(&mut known.latest, found.clone());
                    known.asked = Some(Instant::now());
                    return Ok(found);
                }
                format!("{name} has no address")
            }
            Ok(Err(error)) => format!("{name}: {error}"),
            Err(_) => format!("{name}: no answer of the name service in time"),
        };
        known(STALE).ok_or_else(|| Undialed::new(NoAnswer::Dns, message, false))
    }
}

// === impl Undialed ===

impl Undialed {
    /// No connection, for this reason.
    pub(super) const fn new(way: NoAnswer, message: String, is_passing: bool) -> Self {
        Self {
            way,
            message,
            is_passing,
        }
    }
}

// === impl Stage ===

impl Stage {
    /// It is at this: what fails now, or takes too long, fails in this way.
    fn set(&self, way: NoAnswer) {
        self.0.store(way as u8, Ordering::Relaxed);
    }

    /// What it is at.
    pub(super) fn way(&self) -> NoAnswer {
        let at = self.0.load(Ordering::Relaxed);
        [NoAnswer::Dns, NoAnswer::Tls]
            .into_iter()
            .find(|way| *way as u8 == at)
            .unwrap_or(NoAnswer::Connect)
    }
}

/// Whether TLS failed since the two sides do not agree, such as on a certificate: not a connection that broke.
fn is_disagreement(error: &io::Error) -> bool {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref());
    matches!(inner, Some(inner) if !matches!(inner, rustls::Error::General(_)))
}

/// Connects to the first of the addresses that answers.
pub(super) async fn connect(
    addresses: &[IpAddr],
    port: u16,
    deadline: Instant,
) -> Result<(TcpStream, IpAddr), Undialed> {
    let mut left: Vec<IpAddr> = alternate(addresses);
    let mut queue: VecDeque<IpAddr> = left.iter().copied().collect();
    let mut tries = JoinSet::new();
    let mut failed = None;
    let mut round = 1;
    let mut next = Instant::now();
    loop {
        tokio::select! {
            // What has been made before what could be begun.
            biased;
            Some(done) = tries.join_next() => match done {
                Ok((address, Ok(stream))) => return Ok((stream, address)),
                Ok((address, Err(error))) => {
                    left.retain(|other| *other != address);
                    queue.retain(|other| *other != address);
                    let address = SocketAddr::new(address, port);
                    failed = Some(format!("{address}: {error}"));
                    next = Instant::now();
                }
                // Nothing in a try panics.
                Err(error) => failed = Some(error.to_string()),
            },
            () = sleep_until(deadline) => {
                let waiting: Vec<_> = left.iter().map(IpAddr::to_string).collect();
                let message = format!("{}: no connection in time", waiting.join(", "));
                return Err(Undialed::new(NoAnswer::Connect, message, false));
            }
            () = sleep_until(next), if !queue.is_empty() => {
                if let Some(address) = queue.pop_front() {
                    let one = async move { (address, open(SocketAddr::new(address, port)).await) };
                    tries.spawn(one);
                }
                next = Instant::now() + HEAD_START;
                if queue.is_empty() && round < ROUNDS {
                    round += 1;
                    queue = left.iter().copied().collect();
                    next += ANEW;
                }
            }
        }
        if left.is_empty() {
            let message = failed.unwrap_or_default();
            return Err(Undialed::new(NoAnswer::Connect, message, true));
        }
    }
}

/// The addresses in the order in which they are tried: as the system sorts them, but of the two families in turn, so that a network
/// without one of them costs one head start only.
fn alternate(addresses: &[IpAddr]) -> Vec<IpAddr> {
    let is_first = |address: &&IpAddr| address.is_ipv6() == addresses[0].is_ipv6();
    let mut first = addresses.iter().filter(is_first);
    let mut second = addresses.iter().filter(|address| !is_first(address));
    let mut order: Vec<IpAddr> = Vec::with_capacity(addresses.len());
    while order.len() < addresses.len() {
        order.extend(first.next());
        order.extend(second.next());
    }
    order
}

/// Connects to one address.
async fn open(address: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let keepalive = TcpKeepalive::new()
        .with_time(KEEPALIVE)
        .with_interval(KEEPALIVE)
        .with_retries(KEEPALIVE_TRIES);
    SockRef::from(&stream).set_tcp_keepalive(&keepalive)?;
    Ok(stream)
}
