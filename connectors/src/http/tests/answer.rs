//! What an answer means.

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

        // Some may be about everybody.
        let is_at_the_door = [300, 304, 401, 404, 410].contains(&code);
        assert_eq!(outcome.word(), "permanent", "{code}");
        let is_refused = matches!(outcome, Outcome::Refused(_));
        assert_eq!(is_refused, is_at_the_door, "{code}");
    }
    // What the configuration calls permanent is about the task.
    let (address, _) = serve((404, &[], "")).await;
    let mut listed = config(address);
    listed.permanent = vec![Status::Class(4)];
    assert!(matches!(attempt(listed).await, Outcome::Permanent(_)));
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
async fn retry_after_is_heeded_wherever_the_target_can_mean_it() {
    const ASKS: &[(&str, &str)] = &[("retry-after", "120")];
    let after = |code: u16| Outcome::Throttled {
        after: Duration::from_mins(2),
        failure: failure(&format!("http-{code}"), "later"),
    };
    let refused = |code| Outcome::Permanent(failure(&format!("http-{code}"), "later"));

    for code in [403, 408, 409, 413, 425, 429, 500, 502, 503, 504, 599] {
        let outcome = attempt_answered((code, ASKS, "later")).await;

        assert_eq!(outcome, after(code));
    }
    // It is about the address that is not gone to.
    let elsewhere = attempt_answered((302, ASKS, "later")).await;
    assert_eq!(elsewhere, Outcome::Refused(failure("http-302", "later")));
    assert_eq!(
        attempt_answered((200, ASKS, "later")).await,
        Outcome::Success
    );
    let soon = attempt_answered((403, &[("retry-after", "soon")], "later")).await;
    assert!(matches!(&soon, Outcome::Refused(_)), "{soon:?}");
    for (list, code, expected) in [
        ("throttled", 500, after(500)),
        ("throttled", 302, after(302)),
        ("retryable", 999, after(999)),
        ("permanent", 403, refused(403)),
        ("permanent", 500, refused(500)),
        ("permanent", 999, refused(999)),
    ] {
        let (address, _) = serve((code, ASKS, "later")).await;
        let mut config = config(address);
        match list {
            "throttled" => config.throttled = vec![Status::Class(code / 100)],
            "retryable" => config.retryable = vec![Status::Code(code)],
            _ => config.permanent = vec![Status::Code(code)],
        }

        assert_eq!(attempt(config).await, expected, "{list}");
    }
}

#[tokio::test]
async fn a_wait_that_is_asked_for_is_no_longer_than_the_configuration_says() {
    let wait = async |limit: Option<Duration>, value| {
        let headers: &'static [(&str, &str)] = match value {
            "long" => &[("retry-after", "99999999999999999999")],
            "dated" => &[("retry-after", "Fri, 31 Dec 2999 23:59:59 GMT")],
            _ => &[("retry-after", "7")],
        };
        let (address, _) = serve((503, headers, "later")).await;
        let mut config = config(address);
        config.max_retry_after = limit.unwrap_or(config.max_retry_after);
        match attempt(config).await {
            Outcome::Throttled { after, .. } => after.as_secs(),
            outcome => unreachable!("{outcome:?}"),
        }
    };

    assert_eq!(wait(None, "long").await, 86_400);
    assert_eq!(wait(None, "dated").await, 86_400);
    let minute = Some(Duration::from_mins(1));
    assert_eq!(wait(minute, "long").await, 60);
    assert_eq!(wait(minute, "dated").await, 60);
    assert_eq!(wait(minute, "short").await, 7);
    assert_eq!(wait(Some(Duration::ZERO), "short").await, 0);
}

#[tokio::test]
async fn the_reset_of_a_rate_limit_counts_if_the_configuration_says_so() {
    const LEFT: &[(&str, &str)] = &[("ratelimit-reset", "9"), ("ratelimit-remaining", "4")];
    const SPENT: &[(&str, &str)] = &[("x-ratelimit-reset", "9"), ("x-ratelimit-remaining", "0")];
    let wait = async |on: bool, code, headers| {
        let (address, _) = serve((code, headers, "later")).await;
        let config = Config {
            rate_limit_reset: on,
            ..config(address)
        };
        match attempt(config).await {
            Outcome::Throttled { after, .. } => Some(after.as_secs()),
            _ => None,
        }
    };

    assert_eq!(wait(false, 429, SPENT).await, Some(0));
    assert_eq!(wait(true, 429, SPENT).await, Some(9));
    assert_eq!(wait(true, 429, LEFT).await, Some(9));
    assert_eq!(wait(true, 403, SPENT).await, Some(9));
    assert_eq!(wait(true, 403, LEFT).await, None);
    assert_eq!(wait(true, 503, LEFT).await, None);
    assert_eq!(wait(false, 403, SPENT).await, None);
}

#[tokio::test]
async fn a_success_says_for_how_long_nothing_is_left_if_the_configuration_says_so() {
    const LEFT: &[(&str, &str)] = &[("ratelimit-reset", "9"), ("ratelimit-remaining", "4")];
    const SPENT: &[(&str, &str)] = &[("x-ratelimit-reset", "9"), ("x-ratelimit-remaining", "0")];
    let spent = async |on: bool, code, headers| {
        let (address, _) = serve((code, headers, "done")).await;
        let config = Config {
            rate_limit_reset: on,
            ..config(address)
        };
        let http = Http::try_new(config).expect("a valid configuration");
        let attempt = http.attempt(Arc::new(fixture::task(&[]))).await;
        attempt.spent.map(|after| after.as_secs())
    };

    assert_eq!(spent(true, 200, SPENT).await, Some(9));
    assert_eq!(spent(true, 200, LEFT).await, None);
    assert_eq!(spent(true, 200, &[]).await, None);
    assert_eq!(spent(false, 200, SPENT).await, None);
    // That is a wait, and no success.
    assert_eq!(spent(true, 429, SPENT).await, None);
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

    let expected = Outcome::Refused(failure("http-307", "Temporary Redirect"));
    assert_eq!(outcome, expected);
    assert_eq!(seen.lock().expect("no panic").len(), 1);
}

#[tokio::test]
async fn a_target_that_answers_later_says_so_by_202_and_a_header_and_for_how_long_if_it_likes() {
    type Headers = &'static [(&'static str, &'static str)];
    let minutes = Duration::from_mins;
    let cases: [(Headers, Option<Duration>); 7] = [
        (&[("retry-control", "pending")], None),
        (
            &[("retry-control", " Pending "), ("retry-pending-for", "30m")],
            Some(minutes(30)),
        ),
        (
            &[("retry-control", "pending"), ("retry-pending-for", "90")],
            Some(Duration::from_secs(90)),
        ),
        // What cannot be read is not there, and nothing is no time.
        (
            &[("retry-control", "pending"), ("retry-pending-for", "soon")],
            None,
        ),
        (
            &[("retry-control", "pending"), ("retry-pending-for", "0")],
            None,
        ),
        (
            &[("retry-control", "pending"), ("retry-pending-for", "-5m")],
            None,
        ),
        // Years are bounded where it is decided.
        (
            &[
                ("retry-control", "pending"),
                ("retry-pending-for", "40000d"),
            ],
            Some(Duration::from_hours(40_000 * 24)),
        ),
    ];
    for (headers, limit) in cases {
        let outcome = attempt_answered((202, headers, "taken")).await;

        assert_eq!(outcome, Outcome::Pending { limit }, "{headers:?}");
    }
    let pending: Headers = &[("retry-control", "pending")];
    for (code, headers) in [
        (200, pending),
        (204, pending),
        (202, &[]),
        (202, &[("retry-control", "later")]),
        (202, &[("retry-pending-for", "30m")]),
    ] {
        let outcome = attempt_answered((code, headers, "")).await;

        assert_eq!(outcome, Outcome::Success, "{code} {headers:?}");
    }
    // Neither on a failure, nor where the configuration calls it one.
    let busy = attempt_answered((503, pending, "busy")).await;
    assert_eq!(busy, Outcome::Retryable(failure("http-503", "busy")));
    let (address, _) = serve((202, pending, "")).await;
    let mut listed = config(address);
    listed.retryable = vec![Status::Code(202)];
    assert_eq!(attempt(listed).await.word(), "retryable");
}
