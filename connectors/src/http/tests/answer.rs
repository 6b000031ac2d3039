//! What an answer means.

use std::time::UNIX_EPOCH;

use http::header::{HeaderMap, RETRY_AFTER};

use super::super::answer::retry_after;
use super::*;

#[tokio::test]
async fn a_status_decides_the_outcome() {
    for code in [200, 201, 204, 299] {
        let outcome = attempt_answered((code, &[], "")).await;

        assert_eq!(outcome, Outcome::Success, "{code}");
    }
    for code in [408, 425, 500, 502, 503, 504, 599] {
        let outcome = attempt_answered((code, &[], "busy")).await;

        let expected = Outcome::Retryable(failure(&format!("http-{code}"), "busy"));
        assert_eq!(outcome, expected);
    }
    let throttled = attempt_answered((429, &[], "busy")).await;
    assert_eq!(
        throttled,
        Outcome::Throttled {
            after: Duration::ZERO,
            failure: failure("http-429", "busy"),
        }
    );
    for code in [300, 304, 400, 401, 404, 409, 410, 422] {
        let outcome = attempt_answered((code, &[], "")).await;

        assert!(matches!(outcome, Outcome::Permanent(_)), "{code}");
    }
}

#[tokio::test]
async fn a_configured_status_outranks_its_class_and_http() {
    for (code, word) in [
        (404, "success"),
        (409, "retryable"),
        (500, "permanent"),
        (503, "retryable"),
        (201, "retryable"),
        (429, "retryable"),
        (507, "throttled"),
    ] {
        let (address, _) = serve((code, &[], "")).await;
        let config = Config {
            success: vec![Status::Code(404)],
            retryable: vec![
                Status::Code(409),
                Status::Code(429),
                Status::Code(503),
                Status::Class(2),
            ],
            throttled: vec![Status::Code(507)],
            permanent: vec![Status::Class(5)],
            ..config(address)
        };

        let outcome = attempt(config).await;

        assert_eq!(outcome.word(), word, "{code}");
    }
}

#[tokio::test]
async fn retry_after_is_honoured_on_429_503_and_what_counts_as_throttled() {
    let after = |seconds, code: u16| Outcome::Throttled {
        after: Duration::from_secs(seconds),
        failure: failure(&format!("http-{code}"), "later"),
    };

    let asked = attempt_answered((429, &[("retry-after", "120")], "later")).await;
    let long = attempt_answered((503, &[("retry-after", "99999999999999999999")], "later")).await;
    let dated = attempt_answered((
        503,
        &[("retry-after", "Fri, 31 Dec 2999 23:59:59 GMT")],
        "later",
    ))
    .await;
    let malformed = attempt_answered((429, &[("retry-after", "-1")], "later")).await;
    let elsewhere = attempt_answered((500, &[("retry-after", "120")], "later")).await;

    assert_eq!(asked, after(120, 429));
    assert_eq!(long, after(86_400, 503));
    assert_eq!(dated, after(86_400, 503));
    assert_eq!(malformed, after(0, 429));
    assert_eq!(elsewhere, Outcome::Retryable(failure("http-500", "later")));
    for (list, expected) in [
        ("throttled", after(120, 500)),
        (
            "permanent",
            Outcome::Permanent(failure("http-500", "later")),
        ),
    ] {
        let (address, _) = serve((500, &[("retry-after", "120")], "later")).await;
        let mut config = config(address);
        match list {
            "throttled" => config.throttled = vec![Status::Class(5)],
            _ => config.permanent = vec![Status::Class(5)],
        }

        assert_eq!(attempt(config).await, expected, "{list}");
    }
}

#[test]
fn retry_after_reads_dates_against_the_clock() {
    let now = UNIX_EPOCH + Duration::from_secs(784_111_777);
    let after = |value: &str| {
        let mut headers = HeaderMap::new();
        headers.insert(RETRY_AFTER, value.parse().expect("a header's value"));
        retry_after(&headers, now).map(|after| after.as_secs())
    };

    assert_eq!(after("Sun, 06 Nov 1994 08:49:37 GMT"), Some(0));
    assert_eq!(after("Sun, 06 Nov 1994 08:50:00 GMT"), Some(23));
    assert_eq!(after("Sat, 05 Nov 1994 08:50:00 GMT"), Some(0));
    // The forms that HTTP asks everyone to read still.
    assert_eq!(after("Sunday, 06-Nov-94 08:50:00 GMT"), Some(23));
    assert_eq!(after("Sun Nov  6 08:50:00 1994"), Some(23));
    // A year, and more than there are.
    assert_eq!(after("31536000"), Some(86_400));
    assert_eq!(after("Mon, 06 Nov 1995 08:49:37 GMT"), Some(86_400));
    for malformed in [
        "",
        "soon",
        "1.5",
        "-1",
        "+1",
        "120, 240",
        "1e3",
        "Sun, 06 Foo 1994 08:49:37 GMT",
        "Sun, 06 Nov 1994 08:49:37 CET",
        "Sun, 99 Nov 1994 99:49:37 GMT",
    ] {
        assert_eq!(after(malformed), None, "{malformed}");
    }
}

#[tokio::test]
async fn retry_control_stops_further_attempts() {
    let stop: &[_] = &[("retry-control", "Stop"), ("retry-after", "5")];

    let failed = attempt_answered((503, stop, "no")).await;
    let succeeded = attempt_answered((200, stop, "")).await;

    assert_eq!(failed, Outcome::Permanent(failure("http-503", "no")));
    assert_eq!(succeeded, Outcome::Success);
}

#[tokio::test]
async fn a_redirect_is_not_followed() {
    let (address, seen) = serve((307, &[("location", "/")], "")).await;

    let outcome = attempt(config(address)).await;

    let expected = Outcome::Permanent(failure("http-307", "Temporary Redirect"));
    assert_eq!(outcome, expected);
    assert_eq!(seen.lock().expect("no panic").len(), 1);
}
