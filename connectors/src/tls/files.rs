//! The files of a profile.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, InconsistentKeys, RootCertStore};
use rustls_platform_verifier::Verifier;

use super::explain::words;
use super::own::OrOwn;
use super::{Config, Usable, Version};

/// Largest file that is read: a bundle of every public CA is a quarter of it.
const MAX_FILE: u64 = 1 << 20;

/// The bytes of a profile's files.
#[derive(PartialEq, Eq)]
pub(super) struct Files {
    /// The certificates of those who are trusted.
    ca: Option<Vec<u8>>,
    /// The client's certificate.
    cert: Option<Vec<u8>>,
    /// The key to it.
    key: Option<Vec<u8>>,
}

// === impl Files ===

impl Files {
    /// Reads the files of a profile.
    pub(super) fn read(config: &Config) -> Result<Self, String> {
        let read = |key: &str, path: &Option<_>| path.as_deref().map(|path| read(key, path));
        Ok(Self {
            ca: read("ca", &config.ca).transpose()?,
            cert: read("cert", &config.cert).transpose()?,
            key: read("key", &config.key).transpose()?,
        })
    }

    /// The TLS configuration of a profile with these files.
    pub(super) fn usable(&self, config: &Config) -> Result<Usable, String> {
        let provider = Arc::new(ring::default_provider());
        let versions: Vec<_> = [(Version::V12, &TLS12), (Version::V13, &TLS13)]
            .into_iter()
            .filter(|(version, _)| config.speaks(*version))
            .map(|(_, version)| version)
            .collect();
        let roots = self.verifier(config, &provider)?;
        let builder = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&versions)
            .map_err(|error| error.to_string())?
            .dangerous()
            .with_custom_certificate_verifier(roots);
        let mut not_after = None;
        let mut any = match (&self.cert, &self.key) {
            (Some(cert), Some(key)) => {
                let chain = certificates("cert", cert)?;
                not_after = chain.first().and_then(self::not_after);
                let key = PrivateKeyDer::from_pem_slice(key).map_err(|error| match error {
                    pem::Error::NoItemsFound => {
                        "key: no private key in PEM; one that is encrypted is not read".to_owned()
                    }
                    error => format!("key: {error}"),
                })?;
                builder
                    .with_client_auth_cert(chain, key)
                    .map_err(|error| match error {
                        rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => {
                            "key: is not the key to the certificate in `cert`".to_owned()
                        }
                        error => format!("cert and key: {}", words(&error)),
                    })?
            }
            (None, _) | (_, None) => builder.with_no_client_auth(),
        };
        any.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let mut http1 = any.clone();
        http1.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Usable {
            any: Arc::new(any),
            http1: Arc::new(http1),
            not_after,
        })
    }

    /// The authorities that are trusted.
    fn verifier(
        &self,
        config: &Config,
        provider: &Arc<CryptoProvider>,
    ) -> Result<Arc<dyn ServerCertVerifier>, String> {
        let roots = match &self.ca {
            Some(ca) => certificates("ca", ca)?,
            None => Vec::new(),
        };
        let own = roots.clone();
        if self.ca.is_none() || config.system_roots {
            let verifier = Verifier::new_with_extra_roots(roots, Arc::clone(provider))
                .map_err(|error| format!("no root certificates of the system: {error}"))?;
            return Ok(OrOwn::with(Arc::new(verifier), own));
        }
        let mut store = RootCertStore::empty();
        for root in roots {
            store
                .add(root)
                .map_err(|error| format!("ca: {}", words(&error)))?;
        }
        let verifier: Arc<dyn ServerCertVerifier> =
            WebPkiServerVerifier::builder_with_provider(Arc::new(store), Arc::clone(provider))
                .build()
                .map_err(|error| format!("ca: {error}"))?;
        Ok(OrOwn::with(verifier, own))
    }
}

/// Until when a certificate is valid, if that can be read.
pub fn not_after(certificate: &CertificateDer<'_>) -> Option<SystemTime> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).ok()?;
    let seconds = u64::try_from(parsed.validity().not_after.timestamp()).ok()?;
    UNIX_EPOCH.checked_add(Duration::from_secs(seconds))
}

/// The bytes of a file.
fn read(key: &str, path: &Path) -> Result<Vec<u8>, String> {
    let failed = |error: &dyn std::fmt::Display| format!("{key}: read {}: {error}", path.display());
    let metadata = fs::metadata(path).map_err(|error| failed(&error))?;
    if !metadata.is_file() || metadata.len() > MAX_FILE {
        return Err(failed(&"expected a file of at most 1 MiB"));
    }
    fs::read(path).map_err(|error| failed(&error))
}

/// The certificates in a file, at least one.
fn certificates(key: &str, text: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(text).collect();
    match certificates {
        Ok(certificates) if !certificates.is_empty() => Ok(certificates),
        Ok(_) => Err(format!("{key}: no certificate in PEM")),
        Err(error) => Err(format!("{key}: {error}")),
    }
}
