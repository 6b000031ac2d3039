//! Servers that show the very certificate that is named as `ca`.
//!
//! `openssl req -x509` makes certificates that may sign others, and people give them to servers. Verifiers refuse such a one as that of a
//! server, although somebody has said of this one, byte for byte, that it is trusted. Invariant: nobody is trusted by this who is not named
//! in `ca`, byte for byte, for another name, at another time or for another purpose than the certificate says.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_name;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, Error, SignatureScheme};

/// Trusts whom another verifier trusts, and who shows one of some certificates.
#[derive(Debug)]
pub(super) struct OrOwn {
    /// The other verifier.
    other: Arc<dyn ServerCertVerifier>,
    /// The certificates.
    own: Vec<CertificateDer<'static>>,
}

// === impl OrOwn ===

impl OrOwn {
    /// `other`, and besides who shows one of these certificates.
    pub(super) fn with(
        other: Arc<dyn ServerCertVerifier>,
        own: Vec<CertificateDer<'static>>,
    ) -> Arc<dyn ServerCertVerifier> {
        if own.is_empty() {
            return other;
        }
        Arc::new(Self { other, own })
    }
}

impl ServerCertVerifier for OrOwn {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let Self { other, own } = self;
        let found =
            other.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now);
        if found.is_ok() || !own.iter().any(|own| own == end_entity) {
            return found;
        }
        check_time_and_purpose(end_entity, now)?;
        verify_server_name(&ParsedCertificate::try_from(end_entity)?, server_name)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let other = &self.other;
        other.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let other = &self.other;
        other.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.other.supported_verify_schemes()
    }

    fn root_hint_subjects(&self) -> Option<&[DistinguishedName]> {
        self.other.root_hint_subjects()
    }
}

/// Refuses a certificate that is not valid now, or not for servers.
fn check_time_and_purpose(certificate: &CertificateDer<'_>, now: UnixTime) -> Result<(), Error> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate)
        .map_err(|_| CertificateError::BadEncoding)?;
    let validity = parsed.validity();
    let seconds =
        |time: x509_parser::time::ASN1Time| u64::try_from(time.timestamp()).unwrap_or_default();
    let time = |seconds| UnixTime::since_unix_epoch(std::time::Duration::from_secs(seconds));
    let (from, until) = (seconds(validity.not_before), seconds(validity.not_after));
    if now.as_secs() < from {
        let not_before = time(from);
        return Err(CertificateError::NotValidYetContext {
            time: now,
            not_before,
        }
        .into());
    }
    if now.as_secs() > until {
        let not_after = time(until);
        return Err(CertificateError::ExpiredContext {
            time: now,
            not_after,
        }
        .into());
    }
    let usage = parsed
        .extended_key_usage()
        .map_err(|_| CertificateError::BadEncoding)?;
    match usage {
        Some(usage) if !usage.value.server_auth && !usage.value.any => {
            Err(CertificateError::InvalidPurpose.into())
        }
        Some(_) | None => Ok(()),
    }
}
