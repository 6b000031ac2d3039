//! The request of an attempt: what goes out, and in which order.
//!
//! `host` first, then what the body is, who asks and for which task, the target's own headers, and the record's, by the rules of
//! [`super::carried`]. Invariant: whatever a record holds, the request is one that HTTP allows, no header of retide's or the target's stands
//! in it twice, its length is right, and the payload is sent byte for byte.

use std::sync::Arc;

use bytes::Bytes;
use http::header::{
    ACCEPT, CONTENT_LENGTH, CONTENT_TYPE, HOST, HeaderMap, HeaderName, HeaderValue, USER_AGENT,
};
use http::{Method, Request, Uri};
use http_body_util::Full;
use retide_core::{Failure, Outcome, Task};

use super::carried::{Carry, MAX_HEAD, Rules, size};
use super::config::Config;
use super::error::Error;
use crate::LeftOut;
use crate::secret::{Secret, Secrets};

/// The content type of a payload whose producer named none, where the target's configuration does not either.
const OCTETS: HeaderValue = HeaderValue::from_static("application/octet-stream");

/// The `user-agent` where the configuration names none.
const AGENT: HeaderValue = HeaderValue::from_static(concat!("retide/", env!("CARGO_PKG_VERSION")));

/// The `accept` header: any answer is good, since only its start is read.
const ANYTHING: HeaderValue = HeaderValue::from_static("*/*");

/// The name of the header that is the same on each attempt.
const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// Bytes of a request's first line besides its path: `POST`, spaces, the version, and the end of the line.
const FIRST_LINE: usize = 16;

/// Bytes of headers that every server takes.
const USUAL: usize = 4 * 1024;

/// Makes the requests of one target.
#[derive(Debug)]
pub(super) struct Requests {
    /// The address.
    uri: Uri,
    /// The address as the `host` header has it.
    host: HeaderValue,
    /// The headers of the configuration.
    own: HeaderMap,
    /// Headers of the configuration whose values stand elsewhere.
    elsewhere: Vec<(HeaderName, Arc<Secret>)>,
    /// The content type of a payload whose producer named none.
    content_type: HeaderValue,
    /// The rules for the headers of a record.
    rules: Rules,
}

// === impl Requests ===

impl Requests {
    /// The requests of a target that is configured so, at `uri`.
    pub(super) fn try_new(config: &Config, uri: Uri, secrets: &Secrets) -> Result<Self, Error> {
        let authority = uri.authority().map(http::uri::Authority::as_str);
        let host = authority.and_then(|text| HeaderValue::from_str(text).ok());
        Ok(Self {
            host: host.unwrap_or_else(|| unreachable!("an address without a host")),
            uri,
            own: config.parse_headers()?,
            elsewhere: config
                .references()
                .filter_map(|(name, reference)| {
                    let name = HeaderName::from_bytes(name.as_bytes()).ok()?;
                    Some((name, secrets.of(reference)))
                })
                .collect(),
            content_type: config.parse_content_type()?.unwrap_or(OCTETS),
            rules: Rules::new(&config.headers_from_task, &config.headers_not_from_task),
        })
    }

    /// The header whose value is not known: without it, no request is made.
    pub(super) fn missing(&self) -> Option<&HeaderName> {
        let mut all = self.elsewhere.iter();
        let (name, _) = all.find(|(_, secret)| secret.value().is_none())?;
        Some(name)
    }

    /// The request of an attempt of `task`, and what of its record it does not have.
    pub(super) fn make(
        &self,
        task: &Task,
        carry: Carry,
    ) -> (Request<Full<Bytes>>, Option<Box<LeftOut>>) {
        let body = task.record.value.clone().unwrap_or_default();
        let (headers, left_out) = self.headers(task, body.len(), carry);
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = self.uri.clone();
        *request.headers_mut() = headers;
        (request, left_out)
    }

    /// The headers of the record of `task` that its request does not have.
    pub(super) fn left_out(&self, task: &Task, carry: Carry) -> Option<Box<LeftOut>> {
        let length = task.record.value.as_ref().map_or(0, Bytes::len);
        self.headers(task, length, carry).1
    }

    /// The headers of a request whose body has so many bytes.
    fn headers(
        &self,
        task: &Task,
        length: usize,
        carry: Carry,
    ) -> (HeaderMap, Option<Box<LeftOut>>) {
        let mut headers = HeaderMap::with_capacity(16 + self.own.len());
        headers.insert(HOST, self.host.clone());
        // Servers ask for the length of an empty body, too: RFC 9110, 8.6.
        headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
        headers.insert(IDEMPOTENCY_KEY, text(&task.id));
        for (name, value) in crate::identity(task) {
            headers.insert(name, text(&value));
        }
        for (name, value) in &self.own {
            headers.insert(name, value.clone());
        }
        for (name, secret) in &self.elsewhere {
            if let Some(value) = secret.value() {
                headers.insert(name, value);
            }
        }
        let mut left_out = None;
        if !task.record.headers.is_empty() {
            let room = MAX_HEAD.saturating_sub(self.size(&headers));
            left_out = self
                .rules
                .carry((task, carry), &self.own, &mut headers, room);
        }
        let defaults = [
            (CONTENT_TYPE, &self.content_type),
            (USER_AGENT, &AGENT),
            (ACCEPT, &ANYTHING),
        ];
        for (name, value) in defaults {
            headers.entry(name).or_insert_with(|| value.clone());
        }
        (headers, left_out)
    }

    /// The outcome of a request whose headers the target finds too large, with the largest one in words; `None` for any other outcome.
    pub(super) fn refused(&self, task: &Task, carry: Carry, outcome: &Outcome) -> Option<Outcome> {
        let failure = outcome.failure()?;
        let (headers, _) = self.headers(task, 0, carry);
        let head = self.size(&headers);
        if !finds_headers_too_large(failure, head) {
            return None;
        }
        let sizes = headers
            .iter()
            .map(|(name, value)| (name, size(name, value)));
        let (name, size) = sizes.max_by_key(|(_, size)| *size)?;
        let whose = if self.own.contains_key(name) {
            "the target's configuration"
        } else if crate::OWN.contains(&name.as_str()) || *name == IDEMPOTENCY_KEY || *name == HOST {
            "retide"
        } else {
            "the record"
        };
        let message = format!(
            "headers of {head} bytes are too large for it, the largest is {name} of {whose} with {size}: {}",
            failure.message
        );
        let failure = Failure::new(&failure.class, &message);
        Some(match outcome {
            Outcome::Success | Outcome::Pending { .. } => {
                unreachable!("{outcome:?} without a failure")
            }
            Outcome::Retryable(_) => Outcome::Retryable(failure),
            Outcome::Permanent(_) => Outcome::Permanent(failure),
            Outcome::Refused(_) => Outcome::Refused(failure),
            Outcome::Throttled { after, .. } => Outcome::Throttled {
                after: *after,
                failure,
            },
            Outcome::Timeout(_) => Outcome::Timeout(failure),
        })
    }

    /// Bytes of a request with these headers before its body, with those that it will have in any case.
    fn size(&self, headers: &HeaderMap) -> usize {
        let path = self
            .uri
            .path_and_query()
            .map_or(1, |path| path.as_str().len());
        let own: usize = headers.iter().map(|(name, value)| size(name, value)).sum();
        let defaults = [
            size(&CONTENT_TYPE, &self.content_type),
            size(&USER_AGENT, &AGENT),
            size(&ACCEPT, &ANYTHING),
        ];
        FIRST_LINE + path + own + defaults.into_iter().sum::<usize>()
    }
}

/// Whether the answer says that the headers are too large, which are so many bytes: by its status, or, as nginx and Tomcat do, in words.
/// Some servers have no words for it and only a 400: it is taken for that if the headers are larger than usual ones.
fn finds_headers_too_large(failure: &Failure, head: usize) -> bool {
    match &*failure.class {
        "http-431" | "http-494" => true,
        "http-400" => head > USUAL || says_so(&failure.message),
        "http-413" => says_so(&failure.message),
        _ => false,
    }
}

/// Whether the start of an answer is about the size of headers.
fn says_so(message: &str) -> bool {
    let message = message.to_ascii_lowercase();
    let about = |words: &[&str]| words.iter().any(|word| message.contains(word));
    about(&["header", "cookie"]) && about(&["large", "long", "size", "limit", "exceed", "big"])
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
