//! How connections are made: resolve, connect, TLS.
//!
//! A name may have addresses that do not answer. So they are tried beside each other: which one when is `race`'s.
//! Invariant: nothing of a request is written here, so what fails here has not been done.

use std::collections::HashSet;
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

use super::race::Race;
use super::status::NoAnswer;
use super::wire::Stream;
use crate::egress::{self, HostPort};
use crate::server;
use crate::tls::{Alpn, Tls};

/// Time without a word on a connection after which it is asked whether it is still there, and between two such questions.
const KEEPALIVE: Duration = Duration::from_secs(15);

/// Questions without an answer after which a connection is given up.
const KEEPALIVE_TRIES: u32 = 3;

/// Addresses of a name that are tried.
const MAX_ADDRESSES: usize = 16;

/// Time for which the addresses of a name are taken for granted: connections that are made in a burst ask once.
const FRESH: Duration = Duration::from_secs(1);

/// Time for which the addresses of a name are used where asking for them fails.
const STALE: Duration = Duration::from_mins(5);

/// Makes connections to one target.
pub(super) struct Dialer {
    /// The host to connect to.
    host: Host,
    /// The port to connect to.
    port: u16,
    /// The host as rules of egress name it.
    name: String,
    /// The rules of egress.
    egress: Arc<egress::Config>,
    /// The TLS of the target, if it has any.
    tls: Option<Tls>,
    /// The TLS configuration of the last look.
    spoken: Mutex<Option<Arc<ClientConfig>>>,
    /// The addresses of the name, as far as they are known.
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
    /// The addresses before them: a name may have more than one answer names.
    before: Vec<IpAddr>,
    /// When they were asked for.
    asked: Option<Instant>,
}

/// A connection that was made.
pub(super) struct Dialed {
    /// The connection.
    pub(super) stream: Stream,
    /// The address that it leads to.
    pub(super) peer: IpAddr,
    /// Whether HTTP/2 is spoken on it.
    pub(super) is_two: bool,
}

/// Why no connection was made.
#[derive(Clone, Debug)]
pub(super) struct Undialed {
    /// The stage that failed.
    pub(super) way: NoAnswer,
    /// In words.
    pub(super) message: String,
    /// Whether another try may go better at once.
    pub(super) is_passing: bool,
}

/// The stage of a dial.
#[derive(Default)]
pub(super) struct Stage(AtomicU8);

// === impl Dialer ===

impl Dialer {
    /// A dialer for `url`, by these rules of egress and this TLS.
    pub(super) fn new(url: &Url, egress: Arc<egress::Config>, tls: Option<Tls>) -> Self {
        let host = url.host().map(|host| host.to_owned());
        Self {
            host: host.unwrap_or_else(|| Host::Domain(String::new())),
            port: url.port_or_known_default().unwrap_or_default(),
            name: server::host(url),
            egress,
            tls,
            spoken: Mutex::default(),
            known: Mutex::default(),
            #[cfg(test)]
            names: Mutex::default(),
        }
    }

    /// Gives the name these addresses, whatever the system says.
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

    /// Makes a connection by `deadline`, to the addresses after the first `skip` ones before those, and says at each moment in `stage` what
    /// it is at.
    pub(super) async fn dial(
        &self,
        offer: Alpn,
        skip: usize,
        stage: &Stage,
        deadline: Instant,
    ) -> Result<Dialed, Undialed> {
        stage.set(NoAnswer::Dns);
        let mut addresses = self.permitted(self.resolve(FRESH, deadline).await?)?;
        let skip = skip.checked_rem(addresses.len()).unwrap_or_default();
        addresses.rotate_left(skip);
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

    /// The cause in words of a connection that ended with this error, if TLS is to blame.
    pub(super) fn tls_cause(&self, error: &(dyn std::error::Error + 'static)) -> Option<String> {
        self.tls.as_ref()?.cause(error)
    }

    /// Gives the name these addresses for as long as answers of the name service are taken for granted.
    #[cfg(test)]
    pub(super) fn knows(&self, addresses: &[IpAddr]) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.latest = addresses.to_vec();
        known.asked = Some(Instant::now());
    }

    /// The addresses that may be dialled, of these; an error if none may.
    fn permitted(&self, addresses: Vec<IpAddr>) -> Result<Vec<IpAddr>, Undialed> {
        let Self {
            name, port, egress, ..
        } = self;
        let at = HostPort {
            host: name,
            port: *port,
        };
        let mut denied = None;
        let mut permitted = addresses;
        permitted.retain(|address| match egress.permit(at, *address) {
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
    /// Sets the stage: a dial that fails now, or takes too long, fails in this way.
    fn set(&self, way: NoAnswer) {
        self.0.store(way as u8, Ordering::Relaxed);
    }

    /// The stage.
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
    let mut race = Race::new(addresses, Instant::now());
    let mut tries = JoinSet::new();
    let mut failed = None;
    while race.is_on() {
        let next = race.next();
        tokio::select! {
            // What has been made before what could be begun.
            biased;
            Some(done) = tries.join_next() => match done {
                Ok((address, Ok(stream))) => return Ok((stream, address)),
                Ok((address, Err(error))) => {
                    race.failed(address, Instant::now());
                    let address = SocketAddr::new(address, port);
                    failed = Some(format!("{address}: {error}"));
                }
                // Nothing in a try panics.
                Err(error) => failed = Some(error.to_string()),
            },
            () = sleep_until(deadline) => {
                let waiting: Vec<_> = race.left().iter().map(IpAddr::to_string).collect();
                let message = format!("{}: no connection in time", waiting.join(", "));
                return Err(Undialed::new(NoAnswer::Connect, message, false));
            }
            () = sleep_until(next.unwrap_or(deadline)), if next.is_some() => {
                if let Some(address) = race.begin(Instant::now()) {
                    let one = async move { (address, open(SocketAddr::new(address, port)).await) };
                    tries.spawn(one);
                }
            }
        }
    }
    let message = failed.unwrap_or_default();
    Err(Undialed::new(NoAnswer::Connect, message, true))
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
