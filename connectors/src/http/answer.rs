//! The outcome of an attempt: by its answer, or by the way in which none came.
//!
//! Invariant: the status and the headers decide; the start of the body is a message for people.

use std::time::{Duration, SystemTime};

use http::StatusCode;
use http::header::HeaderMap;
use retide_core::{Failure, Outcome};

use super::config::Config;
use super::retry_after;
use super::status::{Meaning, NoAnswer, Status};

/// The outcome that an answer is; `start` is what was read of its body.
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
    let control = |word: &[u8]| {
        let value = headers.get("retry-control");
        value.is_some_and(|value| value.as_bytes().trim_ascii().eq_ignore_ascii_case(word))
    };
    let stopped = control(b"stop");
    let meaning = config.meaning(code);
    #[allow(
        clippy::disallowed_methods,
        reason = "a server says by its wall clock until when it wants rest"
    )]
    let wait = || asked(config, (code, meaning), headers, SystemTime::now());
    match meaning {
        Meaning::Success if status == StatusCode::ACCEPTED && control(b"pending") => {
            #[allow(
                clippy::disallowed_methods,
                reason = "a server may say by its wall clock until when it will answer"
            )]
            let limit = retry_after::pending_for(headers, SystemTime::now());
            Outcome::Pending { limit }
        }
        Meaning::Success => Outcome::Success,
        Meaning::Retryable | Meaning::Throttled | Meaning::Permanent if stopped => {
            Outcome::Permanent(failure())
        }
        Meaning::Retryable => match wait() {
            Some(after) => Outcome::Throttled {
                after,
                failure: failure(),
            },
            None => Outcome::Retryable(failure()),
        },
        Meaning::Throttled => Outcome::Throttled {
            after: wait().unwrap_or_default(),
            failure: failure(),
        },
        Meaning::Permanent => match wait() {
            Some(after) => Outcome::Throttled {
                after,
                failure: failure(),
            },
            None if config.configured(code).is_none() && is_at_the_door(code) => {
                Outcome::Refused(failure())
            }
            None => Outcome::Permanent(failure()),
        },
    }
}

/// How long the target is to be left alone although it has done the task: until a limit begins anew of which nothing is left, if its
/// configuration wants that to be heard.
pub(super) fn spent(config: &Config, outcome: &Outcome, headers: &HeaderMap) -> Option<Duration> {
    let is_taken = matches!(outcome, Outcome::Success | Outcome::Pending { .. });
    if !config.rate_limit_reset || !is_taken {
        return None;
    }
    #[allow(
        clippy::disallowed_methods,
        reason = "a server says by its wall clock when its limit begins anew"
    )]
    let now = SystemTime::now();
    let after = retry_after::reset(headers, now, true)?;
    Some(after.min(config.max_retry_after)).filter(|after| !after.is_zero())
}

/// Whether a status may be about everybody who asks, or about the way to the target, rather than about one task: redirects, as to a page to log
/// in, keys that are not known any more, an address that is not there.
const fn is_at_the_door(code: u16) -> bool {
    matches!(code, 300..=399 | 401..=407 | 410 | 411 | 415 | 421 | 426 | 451 | 495..=499)
}

/// How long an answer that is no success asks to be left alone, at most as long as the target may.
///
/// `Retry-After` says so on whatever is tried again. On a 4xx it also says *that* it is: the target itself calls its refusal a passing one,
/// as GitHub does with 403 and RFC 9110 with 413. On a 3xx it is about the address that is not gone to. What the configuration calls
/// permanent stays so.
fn asked(
    config: &Config,
    (code, meaning): (u16, Meaning),
    headers: &HeaderMap,
    now: SystemTime,
) -> Option<Duration> {
    let is_refusal = meaning == Meaning::Permanent;
    if is_refusal && (!(400..500).contains(&code) || config.configured(code).is_some()) {
        return None;
    }
    let after = retry_after::asked(headers, now).or_else(|| {
        // These stand on answers of all kinds: they are about this one if it is a 429, or if they say that nothing is left.
        config
            .rate_limit_reset
            .then(|| retry_after::reset(headers, now, meaning != Meaning::Throttled))
            .flatten()
    })?;
    Some(after.min(config.max_retry_after))
}

/// An outcome whose failure repeats nothing of what the target has said.
pub(super) fn without_body(mut outcome: Outcome) -> Outcome {
    let Some(failure) = outcome.failure_mut() else {
        return outcome;
    };
    if &*failure.class == NoAnswer::Malformed.word() {
        failure.message = "no status that can be read".into();
    } else if let Some(code) = failure.class.strip_prefix("http-") {
        let status = StatusCode::from_bytes(code.as_bytes()).ok();
        let reason = status.and_then(|status| status.canonical_reason());
        failure.message = reason.unwrap_or_default().into();
    }
    outcome
}

/// The outcome of an attempt without an answer.
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
