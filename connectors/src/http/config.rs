//! The configuration of an HTTP target: its keys, their defaults, and what of it can be refused before a request is made.
//!
//! Invariant: a [`Config`] that passes its checks leads to a target that can make attempts; nothing secret in it is shown.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::time::Duration;

use http::header::{HeaderMap, HeaderName, HeaderValue};
use retide_core::scene::MAX_DELAY;
use serde::{Deserialize, Serialize};
use url::Url;

use crate::secret::{MaybeSecret, Reference};
use crate::server::{Server, host};
use crate::tls::{Profiles, Tls};

use super::carried::{Pattern, is_reserved};
use super::error::Error;
use super::pool::Limits;
use super::status::{Meaning, Status};

/// Time for one attempt where the configuration names none: long for a healthy service, short beside the first waits of a scene.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);

/// Longest time for one attempt: as long as it lasts, its place in memory and in the offsets is taken.
pub const MAX_TIMEOUT: Duration = Duration::from_hours(1);

/// Bytes of a reply that are read where the configuration names no limit: enough to keep the connection of any usual answer.
pub const DEFAULT_MAX_REPLY: usize = 64 * 1024;

/// Part of the timeout that is left for the answer: later there is no connection, and the attempt fails in a way that says that the target
/// has seen nothing of it. A handshake with a target far away must fit into the rest.
const ANSWER_SHARE: u32 = 4;

/// Longest time for that where the configuration names none: the system sends a lost SYN again after 1, 3 and 7 seconds.
const MAX_CONNECT: Duration = Duration::from_secs(10);

/// Time without use after which a connection is given up where the configuration names none: common servers keep them for 5 seconds or more.
const DEFAULT_IDLE: Duration = Duration::from_secs(4);

/// Age at which a connection is given up where the configuration names none: so soon a target that moves is followed.
const DEFAULT_AGE: Duration = Duration::from_mins(2);

/// Longest age of a connection, and longest time without use: longer than any server keeps one.
pub(super) const MAX_AGE: Duration = Duration::from_hours(24);

/// Longest wait a target may ask for where the configuration does not say otherwise: a wrong clock or unit at the other side must not park a
/// task for good, and limits of a day are over after one.
pub const DEFAULT_MAX_RETRY_AFTER: Duration = Duration::from_hours(24);

/// Where the requests go and how answers are read.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The address, `http` or `https`.
    pub url: String,
    /// Time for a whole attempt: connection, request and reply.
    #[serde(default = "default_timeout", with = "span")]
    pub timeout: Duration,
    /// Time of it until there is a connection: name, address and TLS.
    #[serde(
        default,
        with = "span_or_none",
        skip_serializing_if = "Option::is_none"
    )]
    pub connect_timeout: Option<Duration>,
    /// Time without use after which a connection is given up; sooner if the target says so.
    #[serde(
        default,
        with = "span_or_none",
        skip_serializing_if = "Option::is_none"
    )]
    pub idle_timeout: Option<Duration>,
    /// Age at which a connection is given up.
    #[serde(
        default,
        with = "span_or_none",
        skip_serializing_if = "Option::is_none"
    )]
    pub max_age: Option<Duration>,
    /// Whether a request is sent again, within the attempt, that was sent and not processed; else that is the class `unsent`.
    #[serde(default = "yes", skip_serializing_if = "is_yes")]
    pub resend: bool,
    /// Headers sent with each request, in place of the producer's of the same name; credentials among them, which stand elsewhere.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub headers: BTreeMap<String, MaybeSecret>,
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
    /// The profile by which TLS is spoken, of those in the process's configuration: files are no business of a scene's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<String>,
    /// The content type of a payload whose producer named none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content_type: Option<String>,
    /// Headers of a record that are sent; those withheld by default have to be named.
    #[serde(
        default = "default_headers_from_task",
        skip_serializing_if = "is_every_header"
    )]
    pub headers_from_task: Vec<Pattern>,
    /// Headers of a record that are not sent, whatever the other list says.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub headers_not_from_task: Vec<Pattern>,
    /// Longest wait that the target may ask for.
    #[serde(
        default = "default_max_retry_after",
        with = "span",
        skip_serializing_if = "is_default_max_retry_after"
    )]
    pub max_retry_after: Duration,
    /// Whether the wait may also be told by headers that say when a rate limit begins anew; on a success, too, if nothing is left of it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub rate_limit_reset: bool,
}

// === impl Config ===

impl Config {
    /// A configuration for `url` with everything else as by default.
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            timeout: DEFAULT_TIMEOUT,
            connect_timeout: None,
            idle_timeout: None,
            max_age: None,
            resend: true,
            headers: BTreeMap::new(),
            success: Vec::new(),
            retryable: Vec::new(),
            throttled: Vec::new(),
            permanent: Vec::new(),
            max_reply: DEFAULT_MAX_REPLY,
            tls: None,
            content_type: None,
            headers_from_task: default_headers_from_task(),
            headers_not_from_task: Vec::new(),
            max_retry_after: DEFAULT_MAX_RETRY_AFTER,
            rate_limit_reset: false,
        }
    }

    /// The address, if requests can be sent to it.
    pub(super) fn parse_url(&self) -> Result<Url, Error> {
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

    /// The TLS of the target, if it has any, by the profiles of a process.
    pub(super) fn parse_tls(&self, url: &Url, profiles: &Profiles) -> Result<Option<Tls>, Error> {
        if url.scheme() != "https" {
            return match self.tls {
                Some(_) => Err(Error::TlsUnused),
                None => Ok(None),
            };
        }
        let tls = profiles.of(self.tls.as_deref(), &host(url));
        tls.map(Some)
            .map_err(|message| Error::ServerName { message })
    }

    /// The server of the address, if requests can be sent to it.
    pub(super) fn server(&self) -> Result<Server, Error> {
        let url = self.parse_url()?;
        Server::of(&url, self.tls.as_deref()).ok_or(Error::NoHost)
    }

    /// Scheme, host and port of the address, if requests can be sent to it.
    pub fn authority(&self) -> Option<String> {
        Some(self.server().ok()?.to_string())
    }

    /// How long connections live, and may take to come about.
    pub(super) fn limits(&self) -> Limits {
        let share = self
            .timeout
            .saturating_sub(self.timeout / ANSWER_SHARE)
            .min(MAX_CONNECT);
        Limits {
            connect: self.connect_timeout.unwrap_or(share),
            idle: self.idle_timeout.unwrap_or(DEFAULT_IDLE),
            age: self.max_age.unwrap_or(DEFAULT_AGE),
        }
    }

    /// Refuses spans that leave no time for an attempt, or for anything else.
    pub(super) fn check_spans(&self) -> Result<(), Error> {
        if self.timeout.is_zero() || self.timeout > MAX_TIMEOUT {
            return Err(Error::Timeout);
        }
        if self
            .connect_timeout
            .is_some_and(|span| span.is_zero() || span > self.timeout)
        {
            return Err(Error::ConnectTimeout);
        }
        for (key, span) in [
            ("idle_timeout", self.idle_timeout),
            ("max_age", self.max_age),
        ] {
            if span.is_some_and(|span| span > MAX_AGE) {
                return Err(Error::Age { key });
            }
        }
        Ok(())
    }

    /// The headers, if they can be sent.
    pub(super) fn parse_headers(&self) -> Result<HeaderMap, Error> {
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
            if let Some(instead) = misnamed(name) {
                let name = name.clone();
                return Err(Error::Misnamed { name, instead });
            }
            let value = match value {
                MaybeSecret::Plain(value) => value.as_str(),
                MaybeSecret::Elsewhere(reference) => {
                    reference.check().map_err(|message| Error::Reference {
                        name: name.clone(),
                        message,
                    })?;
                    // Its place among the others; what it is comes with the request.
                    ""
                }
            };
            let mut value = HeaderValue::from_str(value).map_err(|source| Error::HeaderValue {
                name: name.clone(),
                source,
            })?;
            value.set_sensitive(true);
            headers.insert(parsed, value);
        }
        Ok(headers)
    }

    /// The headers whose values stand elsewhere.
    pub fn references(&self) -> impl Iterator<Item = (&str, &Reference)> {
        let headers = self.headers.iter();
        headers.filter_map(|(name, value)| Some((name.as_str(), value.reference()?)))
    }

    /// The content type of a payload whose producer named none, if it can be sent.
    pub(super) fn parse_content_type(&self) -> Result<Option<HeaderValue>, Error> {
        let Some(text) = &self.content_type else {
            return Ok(None);
        };
        let essence = text.split(';').next().unwrap_or_default().trim();
        let is_word = |word: &str| HeaderName::from_bytes(word.as_bytes()).is_ok();
        let is_type = essence
            .split_once('/')
            .is_some_and(|(kind, subtype)| is_word(kind) && is_word(subtype));
        match HeaderValue::from_str(text) {
            Ok(value) if is_type => Ok(Some(value)),
            Ok(_) | Err(_) => Err(Error::ContentType),
        }
    }

    /// Refuses a longest wait that is longer than tasks are parked.
    pub(super) fn check_max_retry_after(&self) -> Result<(), Error> {
        if self.max_retry_after > MAX_DELAY {
            return Err(Error::MaxRetryAfter);
        }
        Ok(())
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
    pub(super) fn check_statuses(&self) -> Result<(), Error> {
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

    /// The meaning of `code`: by the lists, or else by HTTP.
    pub(super) fn meaning(&self, code: u16) -> Meaning {
        self.configured(code).unwrap_or_else(|| Meaning::of(code))
    }

    /// The meaning of `code` by the lists: an exact code first, then a class.
    pub(super) fn configured(&self, code: u16) -> Option<Meaning> {
        self.listed(Status::Code(code)).or_else(|| {
            let mut lists = self.lists().into_iter();
            lists
                .find(|(_, list, _)| list.iter().any(|status| status.contains(code)))
                .map(|(_, _, meaning)| meaning)
        })
    }

    /// The meaning of exactly this status by the lists.
    pub(super) fn listed(&self, status: Status) -> Option<Meaning> {
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
            .field("connect_timeout", &self.connect_timeout)
            .field("idle_timeout", &self.idle_timeout)
            .field("max_age", &self.max_age)
            .field("resend", &self.resend)
            .field("headers", &self.headers.keys())
            .field("success", &self.success)
            .field("retryable", &self.retryable)
            .field("throttled", &self.throttled)
            .field("permanent", &self.permanent)
            .field("max_reply", &self.max_reply)
            .field("tls", &self.tls)
            .field("content_type", &self.content_type)
            .field("headers_from_task", &self.headers_from_task)
            .field("headers_not_from_task", &self.headers_not_from_task)
            .field("max_retry_after", &self.max_retry_after)
            .field("rate_limit_reset", &self.rate_limit_reset)
            .finish()
    }
}

/// The key that is probably meant by a header named like a variable whose value stands in a file.
fn misnamed(name: &str) -> Option<String> {
    let upper = name.to_ascii_uppercase();
    let (suffix, key) = [("_FILE", "file"), ("_ENV", "env")]
        .into_iter()
        .find(|(suffix, _)| upper.ends_with(suffix))?;
    let header = name[..name.len() - suffix.len()].to_ascii_lowercase();
    let header = header.replace('_', "-");
    Some(format!("{header} = {{ {key} = \"…\" }}"))
}

/// For serde: see [`DEFAULT_TIMEOUT`].
const fn default_timeout() -> Duration {
    DEFAULT_TIMEOUT
}

/// For serde: see [`DEFAULT_MAX_REPLY`].
const fn default_max_reply() -> usize {
    DEFAULT_MAX_REPLY
}

/// For serde: what is done where nothing is said.
const fn yes() -> bool {
    true
}

/// For serde: whether nothing need be said.
#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes it so")]
const fn is_yes(is: &bool) -> bool {
    *is
}

/// Spans of time that may be left out.
mod span_or_none {
    use std::time::Duration;

    use serde::{Deserializer, Serializer};

    use super::span;

    /// Writes a span.
    #[expect(clippy::ref_option, reason = "serde passes it so")]
    pub(super) fn serialize<S: Serializer>(
        span: &Option<Duration>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        match span {
            Some(span) => span::serialize(span, serializer),
            None => serializer.serialize_none(),
        }
    }

    /// Reads a span.
    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<Duration>, D::Error> {
        span::deserialize(deserializer).map(Some)
    }
}

/// For serde: see [`DEFAULT_MAX_RETRY_AFTER`].
const fn default_max_retry_after() -> Duration {
    DEFAULT_MAX_RETRY_AFTER
}

/// For serde: whether it is [`DEFAULT_MAX_RETRY_AFTER`].
fn is_default_max_retry_after(span: &Duration) -> bool {
    *span == DEFAULT_MAX_RETRY_AFTER
}

/// For serde: every header that is not withheld.
fn default_headers_from_task() -> Vec<Pattern> {
    vec![Pattern::any()]
}

/// For serde: whether it is every header that is not withheld.
fn is_every_header(patterns: &[Pattern]) -> bool {
    patterns == [Pattern::any()]
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
        serializer.serialize_str(&retide_core::span::text(*span))
    }

    /// Reads a span.
    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Duration, D::Error> {
        let text = String::deserialize(deserializer)?;
        retide_core::span::parse(&text).map_err(D::Error::custom)
    }
}
