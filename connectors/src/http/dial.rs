//! How connections are made: resolve, connect, TLS.

use std::sync::Arc;
use std::time::Duration;

use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::connect::HttpConnector;
use rustls::crypto::ring;
use rustls::{ClientConfig, RootCertStore};

/// Time without a word on a connection after which it is asked whether it is still there, and between two such questions.
const KEEPALIVE: Duration = Duration::from_secs(15);

/// How TLS is spoken, for a connector that names protocols itself.
pub(super) fn tls(current: Option<Arc<ClientConfig>>) -> Result<ClientConfig, rustls::Error> {
    let Some(current) = current else {
        let provider = Arc::new(ring::default_provider());
        let tls =
            ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
        // Never speaks TLS, so it must not need the system's root certificates.
        let roots = RootCertStore::empty();
        return Ok(tls.with_root_certificates(roots).with_no_client_auth());
    };
    let mut tls = ClientConfig::clone(&current);
    tls.alpn_protocols = Vec::new();
    Ok(tls)
}

/// What makes the connections of a target.
pub(super) fn connector(tls: ClientConfig) -> HttpsConnector<HttpConnector> {
    let mut connector = HttpConnector::new();
    connector.enforce_http(false);
    connector.set_nodelay(true);
    connector.set_keepalive(Some(KEEPALIVE));
    connector.set_keepalive_interval(Some(KEEPALIVE));
    connector.set_keepalive_retries(Some(3));
    HttpsConnectorBuilder::new()
        .with_tls_config(tls)
        .https_or_http()
        .enable_all_versions()
        .wrap_connector(connector)
}
