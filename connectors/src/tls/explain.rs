//! A failed handshake in words for whoever has to mend it.
//!
//! Invariant: what the other side says about itself is bounded, and nothing secret is in it.

use std::error::Error;
use std::io;
use std::time::{Duration, UNIX_EPOCH};

use humantime::format_rfc3339_seconds;
use rustls::pki_types::UnixTime;
use rustls::{AlertDescription, CertificateError, InvalidMessage, PeerIncompatible};

/// The client's certificate, as a target that asks for one is shown it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shown {
    /// A certificate.
    Certificate,
    /// None is configured.
    Nothing,
}

/// Most names of a certificate that are repeated.
const NAMES: usize = 3;

/// The error of a connection that is closed in the middle of the handshake.
const CLOSED: &str = "it closed the connection during the handshake: as a rule it speaks no version of TLS, or none with a cipher in common, at this port";

/// A failed handshake in words.
pub fn handshake(error: &io::Error, shown: Shown) -> String {
    if let Some(cause) = cause(error, shown) {
        return cause;
    }
    match error.kind() {
        io::ErrorKind::UnexpectedEof
        | io::ErrorKind::ConnectionReset
        | io::ErrorKind::ConnectionAborted
        | io::ErrorKind::BrokenPipe => CLOSED.to_owned(),
        _ => format!("handshake: {error}"),
    }
}

/// An error in words, if one of TLS is in it.
pub fn cause(error: &(dyn Error + 'static), shown: Shown) -> Option<String> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(error) = error.downcast_ref::<rustls::Error>() {
            return Some(match error {
                rustls::Error::AlertReceived(alert) => said(*alert, shown),
                error => words(error),
            });
        }
        // What an I/O error wraps is not its source.
        let wrapped = error
            .downcast_ref::<io::Error>()
            .and_then(io::Error::get_ref);
        next = match wrapped {
            Some(wrapped) => Some(wrapped),
            None => error.source(),
        };
    }
    None
}

/// An error of TLS that this side found.
pub(super) fn words(error: &rustls::Error) -> String {
    match error {
        rustls::Error::InvalidCertificate(error) => certificate(error),
        rustls::Error::AlertReceived(alert) => said(*alert, Shown::Nothing),
        rustls::Error::InvalidMessage(InvalidMessage::UnknownProtocolVersion)
        | rustls::Error::PeerIncompatible(
            PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig
            | PeerIncompatible::ServerDoesNotSupportTls12Or13
            | PeerIncompatible::Tls12NotOffered
            | PeerIncompatible::Tls12NotOfferedOrEnabled,
        ) => "it speaks no version of TLS that is allowed here".to_owned(),
        rustls::Error::InvalidMessage(_) | rustls::Error::PeerSentOversizedRecord => {
            "it does not speak TLS at this port, which may be one for http://".to_owned()
        }
        rustls::Error::PeerIncompatible(_) => {
            format!("it has no way of TLS in common with this side: {error}")
        }
        rustls::Error::NoCertificatesPresented => "it shows no certificate".to_owned(),
        error => error.to_string(),
    }
}

/// The verifier's word for a certificate that may sign others, and is shown by a server as its own.
const OF_A_CA: &str = "CaUsedAsEndEntity";

/// The fault of the other side's certificate, in words.
fn certificate(error: &CertificateError) -> String {
    match error {
        CertificateError::UnknownIssuer => {
            "the issuer of its certificate is not trusted: name it as `ca` of a [tls.NAME]"
                .to_owned()
        }
        CertificateError::Expired => "its certificate has expired".to_owned(),
        CertificateError::ExpiredContext { not_after, .. } => {
            format!("its certificate expired at {}", time(*not_after))
        }
        CertificateError::NotValidYet => "its certificate is not valid yet".to_owned(),
        CertificateError::NotValidYetContext { not_before, .. } => {
            format!("its certificate is not valid before {}", time(*not_before))
        }
        CertificateError::NotValidForName => "its certificate is for another name".to_owned(),
        CertificateError::NotValidForNameContext {
            expected,
            presented,
        } => {
            let mut names: Vec<&str> = presented
                .iter()
                .take(NAMES)
                .map(|name| bare(name))
                .collect();
            if presented.len() > NAMES {
                names.push("and others");
            }
            let names = if names.is_empty() {
                "no name".to_owned()
            } else {
                names.join(", ")
            };
            format!(
                "its certificate is for {names}, not for {}",
                expected.to_str()
            )
        }
        CertificateError::Revoked => "its certificate was revoked".to_owned(),
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
            "its certificate is not one for a server".to_owned()
        }
        CertificateError::Other(other) if other.to_string() == OF_A_CA => {
            "its certificate is one of a CA: name it, the very same, as `ca` of a [tls.NAME], or have one made with \
             `-addext basicConstraints=critical,CA:FALSE`"
                .to_owned()
        }
        error => format!("its certificate cannot be used: {error}"),
    }
}

/// An alert of the other side about this one, in words.
fn said(alert: AlertDescription, shown: Shown) -> String {
    const WANTED: &str = "it wants a client's certificate: name `cert` and `key` in a [tls.NAME]";
    match (alert, shown) {
        (AlertDescription::CertificateRequired, _)
        | (
            AlertDescription::NoCertificate
            | AlertDescription::BadCertificate
            | AlertDescription::CertificateUnknown
            | AlertDescription::AccessDenied,
            Shown::Nothing,
        ) => WANTED.to_owned(),
        (AlertDescription::HandshakeFailure, Shown::Nothing) => {
            "it has no cipher in common, or wants a client's certificate (`cert` and `key` of a [tls.NAME])"
                .to_owned()
        }
        (AlertDescription::ProtocolVersion, _) => {
            "it speaks no version of TLS that is allowed here".to_owned()
        }
        (AlertDescription::UnrecognisedName, _) => {
            "it does not know the name it is asked for: see `server_name` of [tls.NAME]".to_owned()
        }
        (AlertDescription::CertificateExpired, Shown::Certificate) => {
            "it says that the client's certificate has expired".to_owned()
        }
        (AlertDescription::UnknownCA, Shown::Certificate) => {
            "it does not trust the issuer of the client's certificate".to_owned()
        }
        (
            AlertDescription::NoCertificate
            | AlertDescription::BadCertificate
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::CertificateRevoked
            | AlertDescription::CertificateUnknown
            | AlertDescription::AccessDenied
            | AlertDescription::HandshakeFailure
            | AlertDescription::DecryptError,
            Shown::Certificate,
        ) => format!("it refuses the client's certificate: {alert:?}"),
        (alert, _) => format!("it gives up the handshake: {alert:?}"),
    }
}

/// A name of a certificate as people write it: without the kind that it is of.
fn bare(name: &str) -> &str {
    let inner = name.split_once('(').map(|(_, inner)| inner);
    let inner = inner.and_then(|inner| inner.strip_suffix(')'));
    inner.map_or(name, |inner| inner.trim_matches('"'))
}

/// A point in time, to the second.
fn time(time: UnixTime) -> String {
    match UNIX_EPOCH.checked_add(Duration::from_secs(time.as_secs())) {
        Some(time) => format_rfc3339_seconds(time).to_string(),
        None => "a time far off".to_owned(),
    }
}
