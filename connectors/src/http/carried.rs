//! The headers of a record that go out with its request, and the count of those that do not.
//!
//! What keeps a header at home, in this order:
//!
//! 1. its name: HTTP does not allow it ([`Reason::Name`]), it is retide's own or the connection's ([`Reason::Reserved`]), or the target's
//!    `headers` set it ([`Reason::Configured`]);
//! 2. the rules: `headers_not_from_task` names it ([`Reason::Denied`]), [`WITHHELD`] does and `headers_from_task` does not ask for it
//!    ([`Reason::Withheld`]), or `headers_from_task` has no pattern for it ([`Reason::NotAllowed`]);
//! 3. its value: there is none ([`Reason::Null`]), or it is longer than [`MAX_VALUE`] ([`Reason::TooLong`]);
//! 4. the others: a later one of a name that HTTP allows once takes its place ([`Reason::Repeated`]), or the request is as large already as
//!    common servers take ([`Reason::NoRoom`]).
//!
//! What the payload is ([`DESCRIBES`]) goes before all others and needs no pattern. Invariant: each header of a record goes out or is counted.

use std::fmt;
use std::str;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::header::{HeaderMap, HeaderName, HeaderValue};
use retide_core::{Header, Kind, Task};
use serde::{Deserialize, Serialize};

use crate::left_out::{LeftOut, Reason};

/// Longest value of a record's header that is sent, in bytes: half of what a line may have at nginx, Apache and gunicorn.
pub const MAX_VALUE: usize = 4 * 1024;

/// Bytes of a request before its body, retide's headers and the target's among them: what Tomcat and Jetty take, the smallest of the common
/// servers.
pub const MAX_HEAD: usize = 8 * 1024;

/// Most headers of a record that are sent: gunicorn and Apache take 100 with retide's.
pub const MAX_HEADERS: usize = 64;

/// Bytes that a header takes on the wire besides its name and value: a colon, a space, and the end of the line.
pub(super) const LINE: usize = 4;

/// Headers of the connection or the message frame, and one of retide's: never taken from a record or a configuration.
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

/// Headers that say what the payload is: without them the target could not read it.
const DESCRIBES: [&str; 2] = ["content-type", "content-encoding"];

/// Headers that a record rarely means for the target: it got them from whoever called its producer. Credentials and cookies are somebody
/// else's, forwarding headers speak for an address that is not there, and encodings ask for answers that nobody decodes.
const WITHHELD: [&str; 25] = [
    "accept-encoding",
    "api-key",
    "authorization",
    "cf-connecting-ip",
    "client-ip",
    "cookie",
    "cookie2",
    "fastly-client-ip",
    "forwarded",
    "set-cookie",
    "set-cookie2",
    "true-client-ip",
    "via",
    "x-amz-security-token",
    "x-api-key",
    "x-auth-token",
    "x-client-ip",
    "x-cluster-client-ip",
    "x-envoy-external-address",
    "x-forwarded",
    "x-forwarded-*",
    "x-original-forwarded-for",
    "x-original-url",
    "x-real-ip",
    "x-rewrite-url",
];

/// Headers that a request has once: of several, the last one counts, as in Kafka's `Headers.lastHeader`.
const ONCE: [&str; 41] = [
    "age",
    "authorization",
    "b3",
    "content-disposition",
    "content-encoding",
    "content-location",
    "content-md5",
    "content-range",
    "content-type",
    "cookie",
    "date",
    "dnt",
    "etag",
    "expires",
    "from",
    "if-modified-since",
    "if-range",
    "if-unmodified-since",
    "last-modified",
    "location",
    "max-forwards",
    "mime-version",
    "origin",
    "priority",
    "range",
    "referer",
    "retry-after",
    "server",
    "traceparent",
    "uber-trace-id",
    "user-agent",
    "x-amzn-trace-id",
    "x-api-key",
    "x-b3-parentspanid",
    "x-b3-sampled",
    "x-b3-spanid",
    "x-b3-traceid",
    "x-cloud-trace-context",
    "x-correlation-id",
    "x-real-ip",
    "x-request-id",
];

/// Names of headers, as a scene writes them: `x-*`, `traceparent`. A `*` stands for any characters, or none; case does not matter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Pattern(String);

/// The rules for the headers of records that a target is sent.
#[derive(Debug)]
pub(super) struct Rules {
    /// Patterns of `headers_from_task`.
    allowed: Vec<Pattern>,
    /// Patterns of `headers_not_from_task`.
    denied: Vec<Pattern>,
}

/// The part of a record's headers that goes out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Carry {
    /// All headers that the rules let through.
    All,
    /// Only what the payload is: the target has said that the headers are too large for it.
    Least,
}

/// The room that is left in a request.
#[derive(Debug)]
struct Room {
    /// In bytes.
    bytes: usize,
    /// In headers.
    headers: usize,
}

// === impl Pattern ===

impl Pattern {
    /// Every name.
    pub fn any() -> Self {
        Self("*".to_owned())
    }

    /// Whether `name`, in lower case, is one of these.
    fn matches(&self, name: &str) -> bool {
        matches(self.0.as_bytes(), name.as_bytes())
    }
}

impl TryFrom<String> for Pattern {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        // What is left without the stars has to be part of a name.
        let rest = text.replace('*', "");
        let is_name = HeaderName::from_bytes(rest.as_bytes()).is_ok();
        if text.is_empty() || !rest.is_empty() && !is_name {
            return Err(format!(
                "{text:?} is no name of a header, nor a pattern such as \"x-*\""
            ));
        }
        Ok(Self(text.to_ascii_lowercase()))
    }
}

impl From<Pattern> for String {
    fn from(pattern: Pattern) -> Self {
        pattern.0
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// Whether `name` is what `pattern` says, where a star stands for any characters.
fn matches(pattern: &[u8], name: &[u8]) -> bool {
    let (mut at, mut seen) = (0, 0);
    // Where the last star was, and what of the name it has taken.
    let mut star = None;
    while seen < name.len() {
        if pattern.get(at) == Some(&b'*') {
            star = Some((at, seen));
            at += 1;
        } else if pattern.get(at) == Some(&name[seen]) {
            at += 1;
            seen += 1;
        } else if let Some((place, taken)) = &mut star {
            *taken += 1;
            (at, seen) = (*place + 1, *taken);
        } else {
            return false;
        }
    }
    pattern[at..].iter().all(|&byte| byte == b'*')
}

// === impl Rules ===

impl Rules {
    /// The rules that these patterns make.
    pub(super) fn new(allowed: &[Pattern], denied: &[Pattern]) -> Self {
        Self {
            allowed: allowed.to_vec(),
            denied: denied.to_vec(),
        }
    }

    /// Why a header of this name stays at home whatever its value, if it does.
    fn keeps(&self, name: &str) -> Option<Reason> {
        let any = |patterns: &[Pattern]| patterns.iter().any(|pattern| pattern.matches(name));
        if any(&self.denied) {
            return Some(Reason::Denied);
        }
        let withheld = WITHHELD
            .iter()
            .find(|withheld| matches(withheld.as_bytes(), name.as_bytes()));
        if let Some(withheld) = withheld {
            // Asked for by name, and not by a pattern that was written with other names in mind.
            let asked = self.allowed.iter().any(|pattern| {
                pattern.matches(name) && matches(withheld.as_bytes(), pattern.0.as_bytes())
            });
            return (!asked).then_some(Reason::Withheld);
        }
        (!any(&self.allowed) && !DESCRIBES.contains(&name)).then_some(Reason::NotAllowed)
    }

    /// Adds those headers of `task` to `headers` that go out, and says which do not. `own` are those of the target's configuration;
    /// `room` is what the request may grow by, in bytes.
    pub(super) fn carry(
        &self,
        (task, carry): (&Task, Carry),
        own: &HeaderMap,
        headers: &mut HeaderMap,
        room: usize,
    ) -> Option<Box<LeftOut>> {
        let mut left_out: Option<Box<LeftOut>> = None;
        let mut room = Room {
            bytes: room,
            headers: MAX_HEADERS,
        };
        // What the payload is goes first, so that there is room for it.
        for first in [true, false] {
            for header in &task.record.headers {
                if describes(header) != first {
                    continue;
                }
                let reason = match self.sent(task.kind, header, carry, own) {
                    Ok((name, value)) => place(name, value, headers, &mut room),
                    Err(reason) => Some(reason),
                };
                if let Some(reason) = reason {
                    left_out.get_or_insert_default().add(header, reason);
                }
            }
        }
        left_out
    }

    /// The header as it is sent, or why it is not.
    fn sent(
        &self,
        kind: Kind,
        header: &Header,
        carry: Carry,
        own: &HeaderMap,
    ) -> Result<(HeaderName, HeaderValue), Reason> {
        let name = HeaderName::from_bytes(header.name.as_bytes()).map_err(|_| Reason::Name)?;
        // How its task ended is what a callback is about.
        let is_end = kind == Kind::Callback && name == "retry-outcome";
        if !is_end {
            if is_reserved(&name) {
                return Err(Reason::Reserved);
            }
            if own.contains_key(&name) {
                return Err(Reason::Configured);
            }
            if let Some(reason) = self.keeps(name.as_str()) {
                return Err(reason);
            }
            if carry == Carry::Least && !DESCRIBES.contains(&name.as_str()) {
                return Err(Reason::Refused);
            }
        }
        let value = encode(header.value.as_deref().ok_or(Reason::Null)?);
        if value.len() > MAX_VALUE {
            return Err(Reason::TooLong);
        }
        Ok((name, value))
    }
}

// === impl Room ===

impl Room {
    /// Takes a header of so many bytes in, if it fits.
    fn take(&mut self, size: usize) -> Option<()> {
        let bytes = self.bytes.checked_sub(size)?;
        self.headers = self.headers.checked_sub(1)?;
        self.bytes = bytes;
        Some(())
    }
}

/// Puts a header of a record into the request; says so if that leaves it out, or one before it.
fn place(
    name: HeaderName,
    value: HeaderValue,
    headers: &mut HeaderMap,
    room: &mut Room,
) -> Option<Reason> {
    let size = size(&name, &value);
    if ONCE.contains(&name.as_str())
        && let Some(before) = headers.get_mut(&name)
    {
        let Some(bytes) = (room.bytes + self::size(&name, before)).checked_sub(size) else {
            return Some(Reason::NoRoom);
        };
        room.bytes = bytes;
        *before = value;
        return Some(Reason::Repeated);
    }
    if room.take(size).is_none() {
        return Some(Reason::NoRoom);
    }
    headers.append(name, value);
    None
}

/// Bytes that a header takes on the wire.
pub(super) fn size(name: &HeaderName, value: &HeaderValue) -> usize {
    name.as_str().len() + value.len() + LINE
}

/// Whether retide or the connection sets this header.
pub(super) fn is_reserved(name: &HeaderName) -> bool {
    FRAMING.contains(&name.as_str()) || crate::OWN.contains(&name.as_str())
}

/// Whether a header says what the payload is.
fn describes(header: &Header) -> bool {
    let name = header.name.as_bytes();
    DESCRIBES
        .iter()
        .any(|own| name.eq_ignore_ascii_case(own.as_bytes()))
}

/// A value as HTTP can carry it. Text of one line is sent as it is, in UTF-8. Everything else is a byte sequence of RFC 9651, which is
/// base64 between colons: nothing is lost, and whoever reads it can tell.
fn encode(value: &[u8]) -> HeaderValue {
    if str::from_utf8(value).is_ok()
        && let Ok(value) = HeaderValue::from_bytes(value)
    {
        return value;
    }
    let encoded = format!(":{}:", STANDARD.encode(value));
    HeaderValue::try_from(encoded).unwrap_or_else(|_| unreachable!("base64 is visible characters"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_stands_for_the_names_it_says() {
        for (pattern, name, expected) in [
            ("*", "x", true),
            ("x-*", "x-", true),
            ("X-*", "x-team", true),
            ("x-*", "y-x-team", false),
            ("*-id", "x-request-id", true),
            ("*-id", "x-request-idea", false),
            ("x-*-id", "x-a-id-b-id", true),
            ("traceparent", "traceparent", true),
            ("traceparent", "traceparents", false),
            ("*a*b*", "xxaxxbxx", true),
            ("*a*b*", "xxbxxaxx", false),
            ("**", "", true),
        ] {
            let pattern = Pattern::try_from(pattern.to_owned()).expect("a pattern");

            assert_eq!(pattern.matches(name), expected, "{pattern} {name}");
        }
        for text in ["", "a b", "x:*", "é*", "a\n"] {
            assert!(Pattern::try_from(text.to_owned()).is_err(), "{text}");
        }
    }

    #[test]
    fn what_is_withheld_goes_out_only_if_it_is_asked_for_by_name() {
        let keeps = |allowed: &[&str], denied: &[&str], name: &str| {
            let patterns = |texts: &[&str]| -> Vec<_> {
                let texts = texts.iter().map(|&text| text.to_owned());
                texts
                    .map(|text| Pattern::try_from(text).expect("a pattern"))
                    .collect()
            };
            Rules::new(&patterns(allowed), &patterns(denied)).keeps(name)
        };

        for (allowed, denied, name, expected) in [
            (&["*"][..], &[][..], "x-team", None),
            (&["*"], &[], "authorization", Some(Reason::Withheld)),
            (&["*", "Authorization"], &[], "authorization", None),
            (&["x-*"], &[], "x-forwarded-for", Some(Reason::Withheld)),
            (&["x-forwarded-*"], &[], "x-forwarded-for", None),
            (&["x-forwarded-for"], &[], "x-forwarded-for", None),
            (
                &["x-forwarded-for"],
                &[],
                "x-forwarded-host",
                Some(Reason::Withheld),
            ),
            (&["cook*"], &[], "cookie", Some(Reason::Withheld)),
            (&["x-*"], &[], "team", Some(Reason::NotAllowed)),
            (&[], &[], "x-team", Some(Reason::NotAllowed)),
            (&[], &[], "content-type", None),
            (
                &["*"],
                &["content-type"],
                "content-type",
                Some(Reason::Denied),
            ),
            (&["*", "x-team"], &["x-*"], "x-team", Some(Reason::Denied)),
        ] {
            assert_eq!(
                keeps(allowed, denied, name),
                expected,
                "{allowed:?} {denied:?} {name}"
            );
        }
    }

    #[test]
    fn what_is_no_text_of_one_line_is_a_byte_sequence() {
        for (value, expected) in [
            (&b"a b"[..], &b"a b"[..]),
            (b"", b""),
            ("déjà".as_bytes(), "déjà".as_bytes()),
            (b"caf\xe9", b":Y2Fm6Q==:"),
            (b"a\r\nb: c", b":YQ0KYjogYw==:"),
            (b"\0", b":AA==:"),
        ] {
            assert_eq!(encode(value).as_bytes(), expected);
        }
    }
}
