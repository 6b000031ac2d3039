//! An HTTP request per attempt.
//!
//! Not a general client: one method, one address, no redirects, no proxy and no state of a task. Invariant: whatever a record holds
//! and whatever the other side answers, an attempt ends within its timeout with an [`Outcome`], and the payload is sent byte for byte.

mod status;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::str;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use bytes::Bytes;
use chrono::NaiveDateTime;
use http::header::{
    ACCEPT, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, InvalidHeaderName,
    InvalidHeaderValue, RETRY_AFTER, USER_AGENT,
};
use http::{Method, Request, Response, Uri};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use retide_core::task::MAX_MESSAGE;
use retide_core::{Failure, Kind, Outcome, Task};
use rustls::crypto::ring;
use rustls::{ClientConfig, RootCertStore};
use rustls_platform_verifier::BuilderVerifierExt;
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, timeout_at};
use url::Url;

use crate::Target;

pub use self::status::{NoAnswer, Status};

use self::status::Meaning;

/// Time for one attempt where the configuration names none: long for a healthy service, short beside the first waits of a scene.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);

/// Longest time for one attempt: as long as it lasts, its place in memory and in the offsets is taken.
pub const MAX_TIMEOUT: Duration = Duration::from_hours(1);

/// Bytes of a reply that are read where the configuration names no limit: enough to keep the connection of any usual answer.
pub const DEFAULT_MAX_REPLY: usize = 64 * 1024;

/// Longest wait a target may ask for: a wrong clock or unit at the other side must not park a task for good.
pub const MAX_RETRY_AFTER: Duration = Duration::from_hours(24);

/// Bytes of producer's headers sent along, names and values: what common servers accept without configuration.
pub const MAX_HEADERS: usize = 16 * 1024;

/// Time without a word on a connection after which it is asked whether it is still there, and between two such questions.
const KEEPALIVE: Duration = Duration::from_secs(15);

/// The content type of a payload whose producer named none.
const OCTETS: HeaderValue = HeaderValue::from_static("application/octet-stream");

/// Who asks, where the configuration does not say otherwise.
const AGENT: HeaderValue = HeaderValue::from_static(concat!("retide/", env!("CARGO_PKG_VERSION")));

/// What answers are good for: any, since only their start is read.
const ANYTHING: HeaderValue = HeaderValue::from_static("*/*");

/// Headers of the connection or the message frame, never taken from a record or a configuration.
const FRAMING: [&str; 13] = [
    "connection",
    "content-length",
    "expect",
    "host",
    "http2-settings",
    "idempotency-key",
    "keep-alive",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// Where the requests go and how answers are read.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The address, `http` or `https`.
    pub url: String,
    /// Time for a whole attempt: connection, request and reply.
    #[serde(default = "default_timeout", with = "span")]
    pub timeout: Duration,
    /// Headers sent with each request, in place of the producer's of the same name; the place for credentials.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub headers: BTreeMap<String, String>,
    /// Statuses that count as success, whatever HTTP makes of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub success: Vec<Status>,
    /// Statuses that another attempt may mend, whatever HTTP makes of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub retryable: Vec<Status>,
    /// Statuses by which the target asks for some rest, whatever HTTP makes of them; `Retry-After` counts on them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub throttled: Vec<Status>,
    /// Statuses that no attempt will mend, whatever HTTP makes of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub permanent: Vec<Status>,
    /// Bytes of a reply that are read; a longer one costs its connection.
    #[serde(default = "default_max_reply")]
    pub max_reply: usize,
}

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
        humantime::format_duration(MAX_TIMEOUT)
    )]
    Timeout,
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
    /// The client cannot be set up, as a rule for want of root certificates.
    #[error("set up client")]
    Client {
        /// What failed.
        #[source]
        source: rustls::Error,
    },
}

/// A client that keeps connections, of hyper's own: what clients for general use add to it costs as much again per request.
type Client = legacy::Client<HttpsConnector<HttpConnector>, Full<Bytes>>;

/// Makes attempts as HTTP requests over a pool of connections.
pub struct Http {
    /// The pooled client.
    client: Client,
    /// The parsed address.
    uri: Uri,
    /// The parsed headers of the configuration.
    headers: HeaderMap,
    /// The configuration, valid.
    config: Config,
}

// === impl Config ===

impl Config {
    /// A configuration for `url` with everything else as by default.
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            timeout: DEFAULT_TIMEOUT,
            headers: BTreeMap::new(),
            success: Vec::new(),
            retryable: Vec::new(),
            throttled: Vec::new(),
            permanent: Vec::new(),
            max_reply: DEFAULT_MAX_REPLY,
        }
    }

    /// The address, if requests can be sent to it.
    fn parse_url(&self) -> Result<Url, Error> {
        let url = Url::parse(&self.url).map_err(|error| Error::Url {
            source: error.into(),
        })?;
        if !["http", "https"].contains(&url.scheme()) {
            let scheme = url.scheme().to_owned();
            return Err(Error::Scheme { scheme });
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(Error::Credentials);
        }
        Ok(url)
    }

    /// Scheme, host and port of the address, if requests can be sent to it.
    pub fn authority(&self) -> Option<String> {
        let url = self.parse_url().ok()?;
        let (host, port) = (url.host_str()?, url.port_or_known_default()?);
        Some(format!("{}://{host}:{port}", url.scheme()))
    }

    /// The headers, if they can be sent.
    fn parse_headers(&self) -> Result<HeaderMap, Error> {
        let mut headers = HeaderMap::new();
        for (name, value) in &self.headers {
            let parsed =
                HeaderName::from_bytes(name.as_bytes()).map_err(|source| Error::HeaderName {
                    name: name.clone(),
                    source,
                })?;
            if is_reserved(&parsed) {
                return Err(Error::Reserved { name: name.clone() });
            }
            let mut value = HeaderValue::from_str(value).map_err(|source| Error::HeaderValue {
                name: name.clone(),
                source,
            })?;
            value.set_sensitive(true);
            headers.insert(parsed, value);
        }
        Ok(headers)
    }

    /// The lists of statuses, by their names, and what they make of a status.
    const fn lists(&self) -> [(&'static str, &Vec<Status>, Meaning); 4] {
        [
            ("success", &self.success, Meaning::Success),
            ("retryable", &self.retryable, Meaning::Retryable),
            ("throttled", &self.throttled, Meaning::Throttled),
            ("permanent", &self.permanent, Meaning::Permanent),
        ]
    }

    /// Refuses a status that stands in two of the lists, or where it has no meaning.
    fn check_statuses(&self) -> Result<(), Error> {
        for (index, &status) in self.success.iter().enumerate() {
            if matches!(status, Status::NoAnswer(_)) {
                return Err(Error::NoSuccess { status, index });
            }
        }
        let mut seen = HashMap::new();
        for (second, list, _) in self.lists() {
            for (index, &status) in list.iter().enumerate() {
                let first = *seen.entry(status).or_insert(second);
                if first != second {
                    return Err(Error::Ambiguous {
                        status,
                        first,
                        second,
                        index,
                    });
                }
            }
        }
        Ok(())
    }

    /// What `code` means: an exact code first, then a class, then what HTTP makes of it.
    fn meaning(&self, code: u16) -> Meaning {
        self.listed(Status::Code(code))
            .or_else(|| {
                let mut lists = self.lists().into_iter();
                lists
                    .find(|(_, list, _)| list.iter().any(|status| status.contains(code)))
                    .map(|(_, _, meaning)| meaning)
            })
            .unwrap_or_else(|| Meaning::of(code))
    }

    /// What the lists make of exactly this status.
    fn listed(&self, status: Status) -> Option<Meaning> {
        let mut lists = self.lists().into_iter();
        let (_, _, meaning) = lists.find(|(_, list, _)| list.contains(&status))?;
        Some(meaning)
    }
}

impl fmt::Debug for Config {
    /// Leaves out what may be secret: values of headers, and the query of the address.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let url = self.parse_url().map(|mut url| {
            url.set_query(None);
            url.to_string()
        });
        formatter
            .debug_struct("Config")
            .field("url", &url.as_deref().unwrap_or("invalid"))
            .field("timeout", &self.timeout)
            .field("headers", &self.headers.keys())
            .field("success", &self.success)
            .field("retryable", &self.retryable)
            .field("throttled", &self.throttled)
            .field("permanent", &self.permanent)
            .field("max_reply", &self.max_reply)
            .finish()
    }
}

// === impl Error ===

impl Error {
    /// The keys that lead to what is wrong, within the target's configuration.
    pub fn path(&self) -> Vec<String> {
        let keys = |keys: &[&str]| keys.iter().map(|&key| key.to_owned()).collect();
        match self {
            Self::Url { .. } | Self::Scheme { .. } | Self::Credentials => keys(&["url"]),
            Self::Timeout => keys(&["timeout"]),
            Self::HeaderName { name, .. }
            | Self::HeaderValue { name, .. }
            | Self::Reserved { name } => keys(&["headers", name]),
            Self::Ambiguous { second, index, .. } => keys(&[second, &format!("[{index}]")]),
            Self::NoSuccess { index, .. } => keys(&["success", &format!("[{index}]")]),
            Self::Client { .. } => Vec::new(),
        }
    }
}

// === impl Http ===

impl Http {
    /// Checks the configuration and sets up the client; connects to nothing yet.
    pub fn try_new(config: Config) -> Result<Self, Error> {
        let url = config.parse_url()?;
        let uri = url.as_str().parse().map_err(|source| {
            let source: http::uri::InvalidUri = source;
            Error::Url {
                source: source.into(),
            }
        })?;
        let headers = config.parse_headers()?;
        config.check_statuses()?;
        if config.timeout.is_zero() || config.timeout > MAX_TIMEOUT {
            return Err(Error::Timeout);
        }
        let tls = tls(&url).map_err(|source| Error::Client { source })?;
        Ok(Self {
            client: client(tls),
            uri,
            headers,
            config,
        })
    }

    /// The headers of a request: retide's, the configuration's, then the producer's that are none of these.
    fn headers(&self, task: &Task) -> HeaderMap {
        let mut headers = self.headers.clone();
        headers.insert("idempotency-key", text(&task.id));
        for (name, value) in crate::identity(task) {
            headers.insert(name, text(&value));
        }
        let mut room = MAX_HEADERS;
        for header in &task.record.headers {
            let Some((name, value)) = parse(header.name.as_bytes(), header.value.as_deref()) else {
                continue;
            };
            let outcome = task.kind == Kind::Callback && name == "retry-outcome";
            if self.headers.contains_key(&name) || is_reserved(&name) && !outcome {
                continue;
            }
            let size = name.as_str().len() + value.len();
            // A second content type would make the first one void.
            if size > room || name == CONTENT_TYPE && headers.contains_key(CONTENT_TYPE) {
                continue;
            }
            room -= size;
            headers.append(name, value);
        }
        for (name, value) in [
            (CONTENT_TYPE, OCTETS),
            (USER_AGENT, AGENT),
            (ACCEPT, ANYTHING),
        ] {
            headers.entry(name).or_insert(value);
        }
        headers
    }

    /// What an answer means for the attempt.
    async fn classify(&self, response: Response<Incoming>, deadline: Instant) -> Outcome {
        let (answer, body) = response.into_parts();
        let (code, headers) = (answer.status.as_u16(), answer.headers);
        let reason = answer.status.canonical_reason().unwrap_or_default();
        // The status is the answer; a body that breaks off or takes too long does not change it.
        let start = read(body, self.config.max_reply, deadline).await;
        let failure = || {
            let start = String::from_utf8_lossy(&start);
            let message = if start.trim().is_empty() {
                reason
            } else {
                &start
            };
            Failure::new(&format!("http-{code}"), message)
        };
        let stopped = headers
            .get("retry-control")
            .is_some_and(|value| value.as_bytes().trim_ascii().eq_ignore_ascii_case(b"stop"));
        match self.config.meaning(code) {
            Meaning::Success => Outcome::Success,
            Meaning::Permanent => Outcome::Permanent(failure()),
            Meaning::Retryable | Meaning::Throttled if stopped => Outcome::Permanent(failure()),
            Meaning::Retryable => match asks_for_rest(code)
                .then(|| retry_after(&headers, SystemTime::now()))
                .flatten()
            {
                Some(after) => Outcome::Throttled {
                    after,
                    failure: failure(),
                },
                None => Outcome::Retryable(failure()),
            },
            Meaning::Throttled => Outcome::Throttled {
                after: retry_after(&headers, SystemTime::now()).unwrap_or_default(),
                failure: failure(),
            },
        }
    }

    /// What it means that no answer came, in this way.
    fn no_answer(&self, way: NoAnswer, message: &str) -> Outcome {
        let failure = Failure::new(way.word(), message);
        match (self.config.listed(Status::NoAnswer(way)), way) {
            (Some(Meaning::Success), _) => unreachable!("refused with the configuration"),
            (Some(Meaning::Permanent), _) => Outcome::Permanent(failure),
            (Some(Meaning::Throttled), _) => Outcome::Throttled {
                after: Duration::ZERO,
                failure,
            },
            (None, NoAnswer::Timeout) => Outcome::Timeout(failure),
            (Some(Meaning::Retryable), _) | (None, NoAnswer::Connect | NoAnswer::Reply) => {
                Outcome::Retryable(failure)
            }
        }
    }
}

#[async_trait]
impl Target for Http {
    async fn attempt(&self, task: Arc<Task>) -> Outcome {
        let deadline = Instant::now() + self.config.timeout;
        let body = task.record.value.clone().unwrap_or_default();
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = self.uri.clone();
        *request.headers_mut() = self.headers(&task);
        match timeout_at(deadline, self.client.request(request)).await {
            Ok(Ok(response)) => self.classify(response, deadline).await,
            Ok(Err(error)) if error.is_connect() => {
                self.no_answer(NoAnswer::Connect, &root_cause(&error))
            }
            Ok(Err(error)) => self.no_answer(NoAnswer::Reply, &root_cause(&error)),
            Err(_) => self.no_answer(NoAnswer::Timeout, "no answer in time"),
        }
    }
}

impl fmt::Debug for Http {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Http")
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}

/// How TLS is spoken with the other side of `url`: whom the system trusts is trusted.
fn tls(url: &Url) -> Result<ClientConfig, rustls::Error> {
    let provider = Arc::new(ring::default_provider());
    let tls =
        ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    let tls = match url.scheme() {
        "https" => tls.with_platform_verifier()?,
        // Never speaks TLS, so it must not need the system's root certificates.
        _ => tls.with_root_certificates(RootCertStore::empty()),
    };
    Ok(tls.with_no_client_auth())
}

/// A client, which connects to nothing yet.
fn client(tls: ClientConfig) -> Client {
    let mut connector = HttpConnector::new();
    connector.enforce_http(false);
    connector.set_nodelay(true);
    connector.set_keepalive(Some(KEEPALIVE));
    connector.set_keepalive_interval(Some(KEEPALIVE));
    connector.set_keepalive_retries(Some(3));
    let connector = HttpsConnectorBuilder::new()
        .with_tls_config(tls)
        .https_or_http()
        .enable_all_versions()
        .wrap_connector(connector);
    legacy::Client::builder(TokioExecutor::new())
        .timer(TokioTimer::new())
        .pool_timer(TokioTimer::new())
        .build(connector)
}

/// Whether retide or the connection sets this header.
fn is_reserved(name: &HeaderName) -> bool {
    name.as_str().starts_with("retry-") || FRAMING.contains(&name.as_str())
}

/// A record's header as HTTP can carry it: a valid name and a text of one line.
fn parse(name: &[u8], value: Option<&[u8]>) -> Option<(HeaderName, HeaderValue)> {
    let name = HeaderName::from_bytes(name).ok()?;
    let value = str::from_utf8(value?).ok()?;
    let value = HeaderValue::from_bytes(value.as_bytes()).ok()?;
    Some((name, value))
}

/// `text` as a header's value; what HTTP does not allow in one is percent-encoded, since the header must not be missing.
fn text(text: &str) -> HeaderValue {
    if let Ok(value) = HeaderValue::from_str(text) {
        return value;
    }
    let encode = |byte: u8| match byte {
        b' '..=b'~' if byte != b'%' => char::from(byte).to_string(),
        _ => format!("%{byte:02X}"),
    };
    let encoded: String = text.bytes().map(encode).collect();
    HeaderValue::from_str(&encoded).expect("only visible characters are left")
}

/// Reads at most `limit` bytes of the body, for the sake of the connection, and keeps as many as a message can hold.
async fn read(mut body: Incoming, limit: usize, deadline: Instant) -> Vec<u8> {
    let mut start = Vec::new();
    let mut seen = 0;
    while seen < limit {
        let Ok(Some(Ok(frame))) = timeout_at(deadline, body.frame()).await else {
            break;
        };
        // Trailers say nothing here.
        let chunk = frame.into_data().unwrap_or_default();
        let kept = (MAX_MESSAGE - start.len())
            .min(limit - seen)
            .min(chunk.len());
        start.extend_from_slice(&chunk[..kept]);
        seen += chunk.len();
    }
    start
}

/// The innermost error, which says most in the fewest words.
fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}

/// Whether HTTP gives `Retry-After` a meaning on this status, and it is one that is tried again.
const fn asks_for_rest(code: u16) -> bool {
    matches!(code, 429 | 503)
}

/// How long the target asks to be left alone, if it does so in a way that can be read: seconds, or a date in any of HTTP's three forms.
/// At most [`MAX_RETRY_AFTER`].
fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let value = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    let after = if !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit()) {
        // Only a number too large for its type fails here.
        Duration::from_secs(value.parse().unwrap_or(u64::MAX))
    } else {
        // A date in the past asks for nothing.
        parse_date(value)?.duration_since(now).unwrap_or_default()
    };
    Some(after.min(MAX_RETRY_AFTER))
}

/// The instant of an HTTP date, such as `Sun, 06 Nov 1994 08:49:37 GMT`, `Sunday, 06-Nov-94 08:49:37 GMT` or
/// `Sun Nov  6 08:49:37 1994`. The weekday says nothing that the rest does not say, and is not compared with it.
fn parse_date(text: &str) -> Option<SystemTime> {
    let (_weekday, date) = text.split_once(' ')?;
    let date = [
        "%d %b %Y %H:%M:%S GMT",
        "%d-%b-%y %H:%M:%S GMT",
        "%b %e %H:%M:%S %Y",
    ]
    .into_iter()
    .find_map(|form| NaiveDateTime::parse_from_str(date, form).ok())?;
    let seconds = u64::try_from(date.and_utc().timestamp()).ok()?;
    UNIX_EPOCH.checked_add(Duration::from_secs(seconds))
}

/// For serde: see [`DEFAULT_TIMEOUT`].
const fn default_timeout() -> Duration {
    DEFAULT_TIMEOUT
}

/// For serde: see [`DEFAULT_MAX_REPLY`].
const fn default_max_reply() -> usize {
    DEFAULT_MAX_REPLY
}

/// Spans of time written as `10s` or `1m 30s`.
mod span {
    use std::time::Duration;

    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serializer};

    /// Writes a span.
    pub(super) fn serialize<S: Serializer>(
        span: &Duration,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&humantime::format_duration(*span))
    }

    /// Reads a span.
    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Duration, D::Error> {
        let text = String::deserialize(deserializer)?;
        humantime::parse_duration(&text).map_err(D::Error::custom)
    }
}
