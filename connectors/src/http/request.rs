//! The request of an attempt: what goes out, and which headers of a record and a configuration go with it.
//!
//! Invariant: whatever a record holds, the request is one that HTTP allows, and the payload is sent byte for byte.

use std::str;

use bytes::Bytes;
use http::header::{
    ACCEPT, CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, USER_AGENT,
};
use http::{Method, Request, Uri};
use http_body_util::Full;
use retide_core::{Kind, Task};

/// Bytes of producer's headers sent along, names and values: what common servers accept without configuration.
pub const MAX_HEADERS: usize = 16 * 1024;

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

/// The request of an attempt of `task` at `uri`; `own` are the headers of the configuration.
pub(super) fn make(uri: &Uri, own: &HeaderMap, task: &Task) -> Request<Full<Bytes>> {
    let body = task.record.value.clone().unwrap_or_default();
    let mut headers = headers(own, task);
    // Servers ask for the length of an empty body, too: RFC 9110, 8.6.
    headers.insert(CONTENT_LENGTH, HeaderValue::from(body.len()));
    let mut request = Request::new(Full::new(body));
    *request.method_mut() = Method::POST;
    *request.uri_mut() = uri.clone();
    *request.headers_mut() = headers;
    request
}

/// The headers of a request: retide's, the configuration's, then the producer's that are none of these.
fn headers(own: &HeaderMap, task: &Task) -> HeaderMap {
    let mut headers = own.clone();
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
        if own.contains_key(&name) || is_reserved(&name) && !outcome {
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

/// Whether retide or the connection sets this header.
pub(super) fn is_reserved(name: &HeaderName) -> bool {
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
