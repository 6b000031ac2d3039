//! Whether a target can be reached and shows a good certificate, without a request.
//!
//! Not an attempt: connections are opened and closed, and all that is sent is the handshake of TLS. Invariant: it goes by the rules by
//! which attempts go, and ends by its deadline.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, SystemTime};

use rustls::ProtocolVersion;
use tokio::io::AsyncReadExt;
use tokio::net::{TcpStream, lookup_host};
use tokio::time::{Instant, timeout, timeout_at};
use tokio_rustls::TlsConnector;
use url::Url;

use super::config::host;
use super::{Config, Error};
use crate::Outbound;
use crate::egress::{Denied, Place};
use crate::tls::{Alpn, Tls, not_after};

/// What was found at a target that can be reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reached {
    /// It takes connections, by plain HTTP as the address says.
    Plain,
    /// The handshake went well.
    Tls {
        /// The version of TLS, such as `1.3`.
        version: &'static str,
        /// Until when the target's certificate is valid, if that can be read.
        not_after: Option<SystemTime>,
    },
}

/// Why attempts at a target would fail.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unreached {
    /// It cannot be used as it is configured.
    #[error("{0}")]
    Config(String),
    /// Its name has no address.
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

/// Connects to the target of a configuration, and speaks TLS with it if its address says so.
pub async fn probe(
    config: &Config,
    outbound: &Outbound,
    deadline: Instant,
) -> Result<Reached, Unreached> {
    let refused = |error: Error| Unreached::Config(error.to_string());
    let url = config.parse_url().map_err(refused)?;
    let tls = config.parse_tls(&url, &outbound.tls).map_err(refused)?;
    let addresses = addresses(&url, deadline).await?;
    let addresses = permitted(&url, outbound, &addresses)?;
    let (socket, address) = connect(&addresses, deadline).await?;
    let Some(tls) = tls else {
        drop(socket);
        return plain(&url, outbound, address, deadline).await;
    };
    let shaken = timeout_at(deadline, handshake(&tls, socket)).await;
    shaken.unwrap_or_else(|_| {
        let message = "no end of the handshake in time: it may speak plain HTTP at this port";
        Err(Unreached::Tls(message.to_owned()))
    })
}

/// Whether a place may be dialled, as far as that is known without asking for the addresses of its name.
pub fn foresee(config: &Config, outbound: &Outbound) -> Option<Denied> {
    let url = config.parse_url().ok()?;
    let (host, port) = place(&url)?;
    let place = Place { host: &host, port };
    outbound.egress.foresee(place)
}

/// The addresses that the host of a target has now, and those of them that may not be dialled.
pub async fn denied(config: &Config, outbound: &Outbound, deadline: Instant) -> Option<Denied> {
    let url = config.parse_url().ok()?;
    let addresses = addresses(&url, deadline).await.ok()?;
    match permitted(&url, outbound, &addresses) {
        Err(Unreached::Egress { denied }) => Some(denied),
        _ => None,
    }
}

/// The host, without brackets, and the port of an address.
fn place(url: &Url) -> Option<(String, u16)> {
    Some((host(url), url.port_or_known_default()?))
}

/// The addresses of a host.
async fn addresses(url: &Url, deadline: Instant) -> Result<Vec<SocketAddr>, Unreached> {
    let (host, port) = place(url).ok_or_else(|| Unreached::Dns("no host".to_owned()))?;
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

/// Those of some addresses that may be dialled, at least one.
fn permitted(
    url: &Url,
    outbound: &Outbound,
    addresses: &[SocketAddr],
) -> Result<Vec<SocketAddr>, Unreached> {
    let (host, port) = place(url).ok_or_else(|| Unreached::Dns("no host".to_owned()))?;
    let place = Place { host: &host, port };
    let (mut permitted, mut last) = (Vec::new(), None);
    for &address in addresses {
        match outbound.egress.permit(place, address.ip()) {
            Ok(()) => permitted.push(address),
            Err(denied) => last = last.or(Some(denied)),
        }
    }
    match last {
        Some(denied) if permitted.is_empty() => Err(Unreached::Egress { denied }),
        Some(_) | None => Ok(permitted),
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

/// Whether a target that is reached by plain HTTP would rather speak TLS.
async fn plain(
    url: &Url,
    outbound: &Outbound,
    address: SocketAddr,
    deadline: Instant,
) -> Result<Reached, Unreached> {
    let deadline = deadline.min(Instant::now() + AFTER);
    let asked = async {
        let tls = outbound.tls.of(None, &host(url)).ok()?;
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
