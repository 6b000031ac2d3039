//! The head of an answer that hyper does not take, read as curl and Go's client read it: by its status line.
//!
//! Invariant: a head is never better than its status line. What does not begin as an answer of HTTP is no success by chance.

use http::header::{HeaderMap, HeaderName, HeaderValue};
use http::{StatusCode, header};

/// Characters of a line that cannot be read which are shown.
const SHOWN: usize = 60;

/// The start of an answer, as far as it can be read.
#[derive(Debug)]
pub(super) enum Head {
    /// An answer: its status, those of its headers that can be read, and the start of its body.
    Answer {
        /// The status.
        status: StatusCode,
        /// The headers that can be read.
        headers: HeaderMap,
        /// The bytes of the body that came with it.
        body: Vec<u8>,
    },
    /// The answer breaks off before there is a status.
    Cut,
    /// Not an answer of HTTP, as these words say.
    Odd(String),
}

/// Reads the head of an answer from its first bytes. Answers that only announce another one are passed over.
pub(super) fn read(start: &[u8]) -> Head {
    let mut rest = start;
    loop {
        while let [b'\r' | b'\n', after @ ..] = rest {
            rest = after;
        }
        let (line, after) = match line(rest) {
            Some((line, after)) => (line, after),
            None if rest.is_empty() => return Head::Cut,
            None => match status(rest) {
                // The status is there if something follows its digits.
                Some(status) if !rest.ends_with(status.as_str().as_bytes()) => {
                    (rest, &rest[rest.len()..])
                }
                _ if may_become_one(rest) => return Head::Cut,
                _ => return odd(rest),
            },
        };
        let Some(status) = status(line) else {
            return odd(line);
        };
        let (headers, body) = headers(after);
        if status.is_informational() && status != StatusCode::SWITCHING_PROTOCOLS {
            match body {
                Some(next) => rest = next,
                None => return Head::Cut,
            }
            continue;
        }
        return Head::Answer {
            status,
            headers,
            body: body.unwrap_or_default().to_vec(),
        };
    }
}

/// The first line without its end, and what follows.
fn line(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = bytes.iter().position(|&byte| byte == b'\n')?;
    let line = bytes[..end].strip_suffix(b"\r").unwrap_or(&bytes[..end]);
    Some((line, &bytes[end + 1..]))
}

/// The status of a status line: three digits after the name and the version of the protocol, however these are written.
fn status(line: &[u8]) -> Option<StatusCode> {
    let mut words = line
        .split(u8::is_ascii_whitespace)
        .filter(|word| !word.is_empty());
    let version = words.next()?;
    let (name, version) = version.split_at_checked(5)?;
    let is_version = !version.is_empty()
        && version
            .iter()
            .all(|byte| byte.is_ascii_digit() || *byte == b'.');
    if !name.eq_ignore_ascii_case(b"HTTP/") || !is_version {
        return None;
    }
    let code = words.next()?;
    if code.len() != 3 || !code.iter().all(u8::is_ascii_digit) {
        return None;
    }
    StatusCode::from_bytes(code).ok()
}

/// Whether bytes without an end of a line are the start of a status line.
fn may_become_one(bytes: &[u8]) -> bool {
    let name = &bytes[..bytes.len().min(5)];
    name.eq_ignore_ascii_case(&b"HTTP/"[..name.len()]) && bytes.len() < "HTTP/1.1 200 ".len()
}

/// The headers that can be read, and what follows the blank line after them; `None` if that has not come.
fn headers(mut bytes: &[u8]) -> (HeaderMap, Option<&[u8]>) {
    let mut headers = HeaderMap::new();
    let mut last: Option<(HeaderName, Vec<u8>)> = None;
    let mut keep = |last: &mut Option<(HeaderName, Vec<u8>)>| {
        if let Some((name, value)) = last.take()
            && let Ok(value) = HeaderValue::from_bytes(value.trim_ascii())
        {
            headers.append(name, value);
        }
    };
    let mut body = None;
    while let Some((line, after)) = line(bytes) {
        bytes = after;
        if line.is_empty() {
            body = Some(after);
            break;
        }
        if line[0].is_ascii_whitespace() {
            if let Some((_, value)) = &mut last {
                value.push(b' ');
                value.extend_from_slice(line.trim_ascii());
            }
            continue;
        }
        keep(&mut last);
        let mut parts = line.splitn(2, |&byte| byte == b':');
        if let (Some(name), Some(value)) = (parts.next(), parts.next()) {
            last = HeaderName::from_bytes(name.trim_ascii())
                .ok()
                .map(|name| (name, value.to_vec()));
        }
    }
    keep(&mut last);
    // Nothing here says how the body is framed: it is shown as it came.
    headers.remove(header::TRANSFER_ENCODING);
    (headers, body)
}

/// Says what stands where a status line is expected.
fn odd(line: &[u8]) -> Head {
    let words = match line {
        [0x14..=0x17, 0x03, ..] => {
            "the target speaks TLS where HTTP without TLS is expected: is its address https?"
                .to_owned()
        }
        [0, _, _, 0x04 | 0x07, ..] => {
            "the target speaks HTTP/2 without TLS, which is not supported".to_owned()
        }
        _ => {
            let shown = String::from_utf8_lossy(line);
            let shown: String = shown.chars().take(SHOWN).collect();
            format!("expected a status line, such as \"HTTP/1.1 200 OK\", found {shown:?}")
        }
    };
    Head::Odd(words)
}
