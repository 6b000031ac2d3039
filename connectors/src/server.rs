//! A server that attempts call: whether it may be dialled, can be reached, and shows a good certificate, without a request.
//!
//! Not an attempt: connections are opened and closed, and all that is sent is the handshake of TLS. Invariant: a probe goes by the rules by
//! which attempts go, and ends by its deadline.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, SystemTime};

use rustls::ProtocolVersion;
use tokio::io::AsyncReadExt;
use tokio::net::{TcpStream, lookup_host};
use tokio::time::{Instant, timeout, timeout_at};
use tokio_rustls::TlsConnector;
use url::{Host, Url};

use crate::Outbound;
use crate::egress::{Denied, HostPort};
use crate::tls::{Alpn, Tls, not_after};

/// A server that attempts call: no more of its address than what is no secret.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Server {
    /// The scheme of its address, such as `https`.
    pub scheme: String,
    /// Host and port, as addresses write them.
    pub address: String,
    /// The profile of TLS that the scene names.
    pub profile: Option<String>,
    /// The host, without brackets.
    host: String,
    /// The port.
    port: u16,
    /// Whether TLS is spoken.
    is_secure: bool,
}

/// The findings at a server that can be reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reached {
    /// The server takes connections without TLS, as the address says.
    Plain,
    /// The handshake went well.
    Tls {
        /// The version of TLS, such as `1.3`.
        version: &'static str,
        /// Until when the target's certificate is valid, if that can be read.
        not_after: Option<SystemTime>,
    },
}

/// Why attempts at a server would fail.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unreached {
    /// The server cannot be used as it is configured.
    #[error("{0}")]
    Config(String),
    /// The name has no address.
    #[error("its name is not resolved: {0}")]
    Dns(String),
    /// None of its addresses may be dialled.
    #[error("{denied}")]
    Egress {
        /// Why not.
        denied: Denied,
    },
    /// No address takes connections.
    #[error("{0}")]
    Connect(String),
    /// There is no TLS with it, or not as it is configured.
    #[error("{0}")]
    Tls(String),
    /// The address says plain HTTP, and the target speaks TLS.
    #[error("it speaks TLS at this port")]
    SpeaksTls,
}

/// Longest wait for what a server says of a client's certificate after the handshake, and for what plain HTTP says to a handshake.
const AFTER: Duration = Duration::from_millis(300);

// === impl Server ===

impl Server {
    /// The server of an address, with the profile of TLS that the scene names; `None` if the address has no host, or no port.
    pub(crate) fn of(url: &Url, profile: Option<&str>) -> Option<Self> {
        let port = url.port_or_known_default()?;
        Some(Self {
            scheme: url.scheme().to_owned(),
            address: format!("{}:{port}", url.host_str()?),
            profile: profile.map(str::to_owned),
            host: host(url),
            port,
            is_secure: url.scheme() == "https",
        })
    }

    /// Connects, and speaks TLS if attempts do.
    pub async fn probe(
        &self,
        outbound: &Outbound,
        deadline: Instant,
    ) -> Result<Reached, Unreached> {
        let tls = self.is_secure.then(|| {
            let tls = outbound.tls.of(self.profile.as_deref(), &self.host);
            tls.map_err(|message| Unreached::Config(message.to_owned()))
        });
        let tls = tls.transpose()?;
        let addresses = self.permitted(outbound, &self.addresses(deadline).await?)?;
        let (socket, address) = connect(&addresses, deadline).await?;
        let Some(tls) = tls else {
            drop(socket);
            return self.plain(outbound, address, deadline).await;
        };
        let shaken = timeout_at(deadline, handshake(&tls, socket)).await;
        shaken.unwrap_or_else(|_| {
            let message = "no end of the handshake in time: it may speak plain HTTP at this port";
            Err(Unreached::Tls(message.to_owned()))
        })
    }

    /// Why it may not be dialled, as far as that is known without asking for the addresses of its name.
    pub fn foresee(&self, outbound: &Outbound) -> Option<Denied> {
        outbound.egress.foresee(self.host_port())
    }

    /// Why none of the addresses that its name has now may be dialled.
    pub async fn denied(&self, outbound: &Outbound, deadline: Instant) -> Option<Denied> {
        let addresses = self.addresses(deadline).await.ok()?;
        match self.permitted(outbound, &addresses) {
            Err(Unreached::Egress { denied }) => Some(denied),
            Err(
                Unreached::Config(_)
                | Unreached::Dns(_)
                | Unreached::Connect(_)
                | Unreached::Tls(_)
                | Unreached::SpeaksTls,
            )
            | Ok(_) => None,
        }
    }

    /// The host and the port that rules of egress are asked about.
    fn host_port(&self) -> HostPort<'_> {
        let Self { host, port, .. } = self;
        let port = *port;
        HostPort { host, port }
    }

    /// The addresses of its host.
    async fn addresses(&self, deadline: Instant) -> Result<Vec<SocketAddr>, Unreached> {
        let HostPort { host, port } = self.host_port();
        if let Ok(address) = host.parse::<IpAddr>() {
            return Ok(vec![(address, port).into()]);
        }
        match timeout_at(deadline, lookup_host((host, port))).await {
            Ok(Ok(addresses)) => {
                let addresses: Vec<_> = addresses.collect();
                if addresses.is_empty() {
                    return Err(Unreached::Dns("no address".to_owned()));
                }
                Ok(addresses)
            }
            Ok(Err(error)) => Err(Unreached::Dns(error.to_string())),
            Err(_) => Err(Unreached::Dns("no answer in time".to_owned())),
        }
    }

    /// The addresses that may be dialled, of these, and at least one.
    fn permitted(
        &self,
        outbound: &Outbound,
        addresses: &[SocketAddr],
    ) -> Result<Vec<SocketAddr>, Unreached> {
        let (mut permitted, mut last) = (Vec::new(), None);
        for &address in addresses {
            match outbound.egress.permit(self.host_port(), address.ip()) {
                Ok(()) => permitted.push(address),
                Err(denied) => last = last.or(Some(denied)),
            }
        }
        match last {
            Some(denied) if permitted.is_empty() => Err(Unreached::Egress { denied }),
            Some(_) | None => Ok(permitted),
        }
    }

    /// Whether it is reached by plain HTTP, and would not rather speak TLS.
    async fn plain(
        &self,
        outbound: &Outbound,
        address: SocketAddr,
        deadline: Instant,
    ) -> Result<Reached, Unreached> {
        let deadline = deadline.min(Instant::now() + AFTER);
        let asked = async {
            let tls = outbound.tls.of(None, &self.host).ok()?;
            let config = tls.current(Alpn::Http1).ok()?;
            let socket = TcpStream::connect(address).await.ok()?;
            let connected = TlsConnector::from(config).connect(tls.server_name(), socket);
            Some(connected.await.map(drop))
        };
        match timeout_at(deadline, asked).await {
            Ok(Some(Ok(()))) => Err(Unreached::SpeaksTls),
            Ok(Some(Err(error))) if is_tls(&error) => Err(Unreached::SpeaksTls),
            Ok(Some(Err(_)) | None) | Err(_) => Ok(Reached::Plain),
        }
    }
}

impl fmt::Display for Server {
    /// Scheme, host and port.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}://{}", self.scheme, self.address)
    }
}

/// A connection to the first of some addresses that takes one.
async fn connect(
    addresses: &[SocketAddr],
    deadline: Instant,
) -> Result<(TcpStream, SocketAddr), Unreached> {
    let mut last = "no connection in time".to_owned();
    for (index, &address) in addresses.iter().enumerate() {
        // A part of what is left, so that one that does not answer leaves time for the others.
        let left = deadline.saturating_duration_since(Instant::now());
        let part = left / u32::try_from(addresses.len() - index).unwrap_or(1);
        match timeout(part, TcpStream::connect(address)).await {
            Ok(Ok(socket)) => return Ok((socket, address)),
            Ok(Err(error)) => last = error.to_string(),
            Err(_) => {}
        }
    }
    Err(Unreached::Connect(last))
}

/// The handshake as attempts make it.
async fn handshake(tls: &Tls, socket: TcpStream) -> Result<Reached, Unreached> {
    let config = tls.current(Alpn::Any).map_err(Unreached::Tls)?;
    let connected = TlsConnector::from(config).connect(tls.server_name(), socket);
    let mut stream = connected
        .await
        .map_err(|error| Unreached::Tls(tls.explain(&error)))?;
    let (_, session) = stream.get_ref();
    let version = match session.protocol_version() {
        Some(ProtocolVersion::TLSv1_2) => "1.2",
        _ => "1.3",
    };
    let certificates = session.peer_certificates();
    let not_after = certificates.and_then(|chain| not_after(chain.first()?));
    // A server of TLS 1.3 says only now what it thinks of the client's certificate.
    if let Ok(Err(error)) = timeout(AFTER, stream.read(&mut [0; 1])).await
        && let Some(cause) = tls.cause(&error)
    {
        return Err(Unreached::Tls(cause));
    }
    Ok(Reached::Tls { version, not_after })
}

/// Whether a failed handshake was one with somebody who speaks TLS.
fn is_tls(error: &io::Error) -> bool {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref());
    matches!(
        inner,
        Some(
            rustls::Error::InvalidCertificate(_)
                | rustls::Error::AlertReceived(_)
                | rustls::Error::PeerIncompatible(_)
                | rustls::Error::NoCertificatesPresented
        )
    )
}

/// The host of an address: a name, or an address without brackets.
pub(crate) fn host(url: &Url) -> String {
    match url.host() {
        Some(Host::Domain(name)) => name.to_owned(),
        Some(Host::Ipv4(address)) => address.to_string(),
        Some(Host::Ipv6(address)) => address.to_string(),
        None => String::new(),
    }
}
