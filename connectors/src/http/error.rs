//! Why an HTTP target cannot be used as it is configured.

use http::header::{InvalidHeaderName, InvalidHeaderValue};
use retide_core::scene::MAX_DELAY;

use super::config::{MAX_AGE, MAX_TIMEOUT};
use super::status::Status;

/// Why an HTTP target cannot be used as it is configured.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The address cannot be read.
    #[error("parse url")]
    Url {
        /// What is wrong with it.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The address names no host.
    #[error("url without a host")]
    NoHost,
    /// The address is neither `http` nor `https`.
    #[error("url scheme {scheme} is neither http nor https")]
    Scheme {
        /// The scheme.
        scheme: String,
    },
    /// The address holds a user or a password, and addresses reach logs.
    #[error("url holds credentials, which belong in the authorization header")]
    Credentials,
    /// The timeout leaves no time for an attempt, or for anything else.
    #[error(
        "expected a timeout of more than nothing, at most {}",
        retide_core::span::text(MAX_TIMEOUT)
    )]
    Timeout,
    /// The time for a connection is none, or longer than the whole attempt.
    #[error("expected a connect_timeout of more than nothing, at most the timeout")]
    ConnectTimeout,
    /// A connection is kept for too long.
    #[error("expected a {key} of at most {}", retide_core::span::text(MAX_AGE))]
    Age {
        /// The key that says how long.
        key: &'static str,
    },
    /// The name of a header is not one.
    #[error("header name {name:?}")]
    HeaderName {
        /// The name.
        name: String,
        /// What is wrong with it.
        #[source]
        source: InvalidHeaderName,
    },
    /// The value of a header is not one; it may be secret and is not shown.
    #[error("value of header {name}")]
    HeaderValue {
        /// The header's name.
        name: String,
        /// What is wrong with it.
        #[source]
        source: InvalidHeaderValue,
    },
    /// The header is set by retide or belongs to the connection.
    #[error("header {name} is not free to set")]
    Reserved {
        /// The header's name.
        name: String,
    },
    /// The header is named as variables are whose value stands in a file.
    #[error("header {name} would be sent under this name; did you mean `{instead}`?")]
    Misnamed {
        /// The header's name.
        name: String,
        /// What was probably meant.
        instead: String,
    },
    /// The value of the header could stand nowhere.
    #[error("header {name}: {message}")]
    Reference {
        /// The header's name.
        name: String,
        /// What is wrong.
        message: &'static str,
    },
    /// The content type is none.
    #[error("expected a content type such as `application/json`")]
    ContentType,
    /// The target may ask for longer waits than tasks are parked.
    #[error(
        "expected a duration of at most {}",
        retide_core::span::text(MAX_DELAY)
    )]
    MaxRetryAfter,
    /// A status is given two meanings.
    #[error("{status} stands in `{first}`, too")]
    Ambiguous {
        /// The status.
        status: Status,
        /// The list that gives it the first one.
        first: &'static str,
        /// The list that gives it the second one.
        second: &'static str,
        /// Its place in that one.
        index: usize,
    },
    /// A success is claimed where there is no answer.
    #[error("{status} is no answer, and so no success")]
    NoSuccess {
        /// How no answer comes.
        status: Status,
        /// Its place in the list.
        index: usize,
    },
    /// A profile of TLS is named for an address that is reached without.
    #[error("goes with an address that begins with https://")]
    TlsUnused,
    /// No certificate could be for the host of the address.
    #[error("{message}")]
    ServerName {
        /// Why not.
        message: &'static str,
    },
}

// === impl Error ===

impl Error {
    /// The keys that lead to what is wrong, within the target's configuration.
    pub fn path(&self) -> Vec<String> {
        let keys = |keys: &[&str]| keys.iter().map(|&key| key.to_owned()).collect();
        match self {
            Self::Url { .. }
            | Self::NoHost
            | Self::Scheme { .. }
            | Self::Credentials
            | Self::ServerName { .. } => keys(&["url"]),
            Self::Timeout => keys(&["timeout"]),
            Self::ConnectTimeout => keys(&["connect_timeout"]),
            Self::Age { key } => keys(&[key]),
            Self::ContentType => keys(&["content_type"]),
            Self::MaxRetryAfter => keys(&["max_retry_after"]),
            Self::HeaderName { name, .. }
            | Self::HeaderValue { name, .. }
            | Self::Misnamed { name, .. }
            | Self::Reference { name, .. }
            | Self::Reserved { name } => keys(&["headers", name]),
            Self::Ambiguous { second, index, .. } => keys(&[second, &format!("[{index}]")]),
            Self::NoSuccess { index, .. } => keys(&["success", &format!("[{index}]")]),
            Self::TlsUnused => keys(&["tls"]),
        }
    }
}
