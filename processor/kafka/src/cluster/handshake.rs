//! What a broker's port speaks, and why its certificate is not trusted: a second handshake, after the client's own has failed.
//!
//! The client library has one text for all that can be wrong with a certificate. Invariant: nothing but a handshake is sent, and what is
//! found out here makes nobody trusted.

use std::fs;
use std::io::{self, Read as _, Write as _};
use std::net::{TcpStream, ToSocketAddrs as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use humantime::format_rfc3339_seconds;
use rdkafka::ClientConfig;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{
    CertificateError, ClientConnection, DigitallySignedStruct, RootCertStore, SignatureScheme,
};

/// What came of a handshake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Handshake {
    /// The port does not speak TLS, or nobody answers.
    NoTls,
    /// The port speaks TLS, and its certificate is trusted as far as can be seen here.
    Trusted,
    /// The port speaks TLS, and its certificate is not trusted.
    Mistrust(Mistrust),
}

/// Why a certificate is not trusted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Mistrust {
    /// It is over; since when, where that is known.
    Expired(Option<SystemTime>),
    /// It has not begun.
    NotYet,
    /// It is for other names, which are these.
    Name(Vec<String>),
    /// Nobody who is trusted has signed it.
    Issuer,
    /// Anything else.
    Other(String),
}

/// Longest time for a handshake: the port has just answered.
const HANDSHAKE: Duration = Duration::from_secs(2);

/// Where systems keep the certificates that they trust: where the client library looks as well.
const SYSTEM: [&str; 8] = [
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/certs/ca-bundle.crt",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
    "/etc/ssl/certs/ca-certificates.crt",
    "/usr/local/etc/ssl/cert.pem",
    "/usr/local/share/certs/ca-root-nss.crt",
];

/// Begins a handshake at `address`, a host and a port, trusting whom `config` trusts.
pub(super) fn shake(address: &str, config: &ClientConfig) -> Handshake {
    attempt(address, config).unwrap_or(Handshake::NoTls)
}

/// See [`shake`]; fails where nobody speaks TLS.
fn attempt(address: &str, config: &ClientConfig) -> io::Result<Handshake> {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
    let provider = Arc::new(ring::default_provider());
    let verifier = Arc::new(Witness::new(config, Arc::clone(&provider)));
    let tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::clone(&verifier) as Arc<dyn ServerCertVerifier>)
        .with_no_client_auth();
    let mut connection = ClientConnection::new(Arc::new(tls), name).map_err(io::Error::other)?;
    let deadline = Instant::now() + HANDSHAKE;
    let mut stream = connect(address)?;
    stream.set_write_timeout(Some(HANDSHAKE))?;
    let mut spoke = false;
    while connection.is_handshaking() {
        while connection.wants_write() {
            connection.write_tls(&mut stream)?;
        }
        stream.flush()?;
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            break;
        }
        stream.set_read_timeout(Some(left))?;
        let mut bytes = [0; 4_096];
        match stream.read(&mut bytes) {
            Ok(0) | Err(_) => break,
            Ok(read) => {
                // A record of a handshake, or an alert.
                spoke |= matches!(bytes[0], 21 | 22);
                let mut rest = &bytes[..read];
                while !rest.is_empty() {
                    connection.read_tls(&mut rest)?;
                    if connection.process_new_packets().is_err() {
                        return Ok(verifier.found(spoke));
                    }
                }
            }
        }
    }
    Ok(verifier.found(spoke))
}

/// Opens a connection.
fn connect(address: &str) -> io::Result<TcpStream> {
    let mut last = io::Error::from(io::ErrorKind::NotFound);
    for address in address.to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, HANDSHAKE) {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// Looks at a certificate, and remembers what is wrong with it.
#[derive(Debug)]
struct Witness {
    /// Judges; none if nobody is trusted at all.
    judge: Option<Arc<WebPkiServerVerifier>>,
    /// Whether the name counts.
    names: bool,
    /// What signatures may be made with.
    provider: Arc<CryptoProvider>,
    /// What was found.
    found: Mutex<Option<Result<(), Mistrust>>>,
}

// === impl Witness ===

impl Witness {
    /// One that trusts whom `config` trusts.
    fn new(config: &ClientConfig, provider: Arc<CryptoProvider>) -> Self {
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(trusted(config));
        let judge =
            WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider));
        Self {
            judge: judge.build().ok(),
            names: config.get("ssl.endpoint.identification.algorithm") != Some("none"),
            provider,
            found: Mutex::default(),
        }
    }

    /// What was found, if anybody `spoke` TLS.
    fn found(&self, spoke: bool) -> Handshake {
        let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        match found.take() {
            Some(Err(mistrust)) => Handshake::Mistrust(mistrust),
            Some(Ok(())) => Handshake::Trusted,
            None if spoke => Handshake::Trusted,
            None => Handshake::NoTls,
        }
    }
}

impl ServerCertVerifier for Witness {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let judged = match &self.judge {
            Some(judge) => judge
                .verify_server_cert(certificate, others, name, ocsp, now)
                .map(|_| ())
                .map_err(Mistrust::of),
            None => Err(Mistrust::Issuer),
        };
        let judged = match judged {
            Err(Mistrust::Name(_)) if !self.names => Ok(()),
            judged => judged,
        };
        *self.found.lock().unwrap_or_else(PoisonError::into_inner) = Some(judged);
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        let algorithms = &self.provider.signature_verification_algorithms;
        algorithms.supported_schemes()
    }
}

/// The certificates that a client with this configuration trusts.
fn trusted(config: &ClientConfig) -> Vec<CertificateDer<'static>> {
    if let Some(text) = config.get("ssl.ca.pem") {
        return certificates(text.as_bytes());
    }
    match config.get("ssl.ca.location") {
        Some(place) if place != "probe" => read(Path::new(place)),
        Some(_) | None => SYSTEM
            .iter()
            .map(|place| read(Path::new(place)))
            .find(|found| !found.is_empty())
            .unwrap_or_default(),
    }
}

/// The certificates of a file, or of the files of a directory.
fn read(place: &Path) -> Vec<CertificateDer<'static>> {
    let files: Vec<PathBuf> = match fs::read_dir(place) {
        Ok(entries) => entries.flatten().map(|entry| entry.path()).collect(),
        Err(_) => vec![place.to_owned()],
    };
    let texts = files.iter().filter_map(|file| fs::read(file).ok());
    texts.flat_map(|text| certificates(&text)).collect()
}

/// The certificates of a text.
fn certificates(text: &[u8]) -> Vec<CertificateDer<'static>> {
    CertificateDer::pem_slice_iter(text).flatten().collect()
}

// === impl Mistrust ===

impl Mistrust {
    /// What an error of the check says.
    fn of(error: rustls::Error) -> Self {
        let at = |time: UnixTime| UNIX_EPOCH + Duration::from_secs(time.as_secs());
        match error {
            rustls::Error::InvalidCertificate(error) => match error {
                CertificateError::Expired => Self::Expired(None),
                CertificateError::ExpiredContext { not_after, .. } => {
                    Self::Expired(Some(at(not_after)))
                }
                CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                    Self::NotYet
                }
                CertificateError::NotValidForName => Self::Name(Vec::new()),
                CertificateError::NotValidForNameContext { presented, .. } => {
                    Self::Name(presented.iter().map(|name| plain(name)).collect())
                }
                // What another one of the same name has signed is none of the trusted one's.
                CertificateError::UnknownIssuer | CertificateError::BadSignature => Self::Issuer,
                // A certificate that has signed itself, and is not trusted.
                error if error.to_string().contains("CaUsedAsEndEntity") => Self::Issuer,
                error => Self::Other(error.to_string()),
            },
            error => Self::Other(error.to_string()),
        }
    }

    /// What is wrong, as people say it.
    pub(super) fn words(&self) -> String {
        match self {
            Self::Expired(Some(when)) => {
                format!("it has expired, on {}", format_rfc3339_seconds(*when))
            }
            Self::Expired(None) => "it has expired".to_owned(),
            Self::NotYet => "it is not valid yet".to_owned(),
            Self::Name(names) if names.is_empty() => {
                "it is for another host name than the one that was connected to".to_owned()
            }
            Self::Name(names) => format!(
                "it is for another host name than the one that was connected to: for {}",
                names.join(", ")
            ),
            Self::Issuer => "nobody who is trusted here has signed it".to_owned(),
            Self::Other(reason) => reason.clone(),
        }
    }
}

/// A name without the words of the library around it.
fn plain(name: &str) -> String {
    let inner = name
        .split_once("(\"")
        .and_then(|(_, rest)| rest.split_once("\")"));
    inner.map_or_else(|| name.to_owned(), |(inner, _)| inner.to_owned())
}
