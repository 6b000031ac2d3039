//! What an answer means for the attempt, and what it means that none came.
//!
//! Invariant: the status and the headers decide; the start of the body is a message for people.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use chrono::NaiveDateTime;
use http::StatusCode;
use http::header::{HeaderMap, RETRY_AFTER};
use retide_core::{Failure, Outcome};

use super::config::Config;
use super::status::{Meaning, NoAnswer, Status};

/// Longest wait a target may ask for: a wrong clock or unit at the other side must not park a task for good.
pub const MAX_RETRY_AFTER: Duration = Duration::from_hours(24);

/// What an answer means for the attempt; `start` is what was read of its body.
pub(super) fn outcome(
    config: &Config,
    status: StatusCode,
    headers: &HeaderMap,
    start: &[u8],
) -> Outcome {
    let code = status.as_u16();
    let reason = status.canonical_reason().unwrap_or_default();
    let failure = || {
        let start = String::from_utf8_lossy(start);
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
    match config.meaning(code) {
        Meaning::Success => Outcome::Success,
        Meaning::Permanent => Outcome::Permanent(failure()),
        Meaning::Retryable | Meaning::Throttled if stopped => Outcome::Permanent(failure()),
        Meaning::Retryable => match asks_for_rest(code)
            .then(|| retry_after(headers, SystemTime::now()))
            .flatten()
        {
            Some(after) => Outcome::Throttled {
                after,
                failure: failure(),
            },
            None => Outcome::Retryable(failure()),
        },
        Meaning::Throttled => Outcome::Throttled {
            after: retry_after(headers, SystemTime::now()).unwrap_or_default(),
            failure: failure(),
        },
    }
}

/// What it means that no answer came, in this way.
pub(super) fn none(config: &Config, way: NoAnswer, message: &str) -> Outcome {
    let failure = Failure::new(way.word(), message);
    let listed = config
        .listed(Status::NoAnswer(way))
        .or_else(|| config.listed(Status::NoAnswer(way.broader()?)));
    match (listed, way) {
        (Some(Meaning::Success), _) => unreachable!("refused with the configuration"),
        // The guard of the process: no attempt gets past it.
        (Some(Meaning::Permanent), _) | (None, NoAnswer::Egress) => Outcome::Permanent(failure),
        (Some(Meaning::Throttled), _) => Outcome::Throttled {
            after: Duration::ZERO,
            failure,
        },
        (None, NoAnswer::Timeout) => Outcome::Timeout(failure),
        (Some(Meaning::Retryable), _)
        | (
            None,
            NoAnswer::Dns
            | NoAnswer::Connect
            | NoAnswer::Tls
            | NoAnswer::Unsent
            | NoAnswer::Reply
            | NoAnswer::Malformed,
        ) => Outcome::Retryable(failure),
    }
}

/// Whether HTTP gives `Retry-After` a meaning on this status, and it is one that is tried again.
const fn asks_for_rest(code: u16) -> bool {
    matches!(code, 429 | 503)
}

/// How long the target asks to be left alone, if it does so in a way that can be read: seconds, or a date in any of HTTP's three forms.
/// At most [`MAX_RETRY_AFTER`].
pub(super) fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
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
