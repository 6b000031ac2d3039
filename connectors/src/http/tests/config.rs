//! What a configuration may say.

use std::collections::BTreeMap;

use super::*;

#[test]
fn a_configuration_that_cannot_work_is_refused() {
    let url = |url: &str| Http::try_new(Config::new(url)).expect_err("it is invalid");
    let header = |name: &str, value: &str| {
        let headers = BTreeMap::from([(name.to_owned(), value.into())]);
        let config = Config {
            headers,
            ..Config::new("http://127.0.0.1/")
        };
        Http::try_new(config).expect_err("it is invalid")
    };

    assert!(matches!(url("shop"), Error::Url { .. }));
    assert!(matches!(url("ftp://shop/"), Error::Scheme { .. }));
    assert!(matches!(url("http://me:pw@shop/"), Error::Credentials));
    assert!(matches!(header("a b", ""), Error::HeaderName { .. }));
    assert!(matches!(header("a", "\n"), Error::HeaderValue { .. }));
    assert!(matches!(header("Retry-Id", "1"), Error::Reserved { .. }));
    assert!(matches!(header("Host", "a"), Error::Reserved { .. }));
    let twice = Config {
        success: vec![Status::Code(404)],
        permanent: vec![Status::Code(404)],
        ..Config::new("http://127.0.0.1/")
    };
    assert!(matches!(Http::try_new(twice), Err(Error::Ambiguous { .. })));
    let nothing = Config {
        success: vec![Status::Class(2), Status::NoAnswer(NoAnswer::Reply)],
        ..Config::new("http://127.0.0.1/")
    };
    let error = Http::try_new(nothing).expect_err("no answer is no success");
    assert_eq!(error.path(), ["success", "[1]"]);
    for content_type in ["", "json", "application/", "text /html", "a/b\n"] {
        let config = Config {
            content_type: Some(content_type.to_owned()),
            ..Config::new("http://127.0.0.1/")
        };
        let error = Http::try_new(config).expect_err("no content type");
        assert_eq!(error.path(), ["content_type"], "{content_type}");
    }
    let long = Config {
        max_retry_after: Duration::from_hours(367 * 24),
        ..Config::new("http://127.0.0.1/")
    };
    assert!(matches!(Http::try_new(long), Err(Error::MaxRetryAfter)));
    for timeout in [Duration::ZERO, MAX_TIMEOUT + Duration::from_secs(1)] {
        let config = Config {
            timeout,
            ..Config::new("http://127.0.0.1/")
        };
        assert!(matches!(Http::try_new(config), Err(Error::Timeout)));
    }
}

#[test]
fn a_configuration_is_read_from_toml() {
    let text = r#"
        url = "https://shop.example/paid"
        timeout = "1m 5s"
        connect_timeout = "3s"
        idle_timeout = "30s"
        max_age = "1m"
        resend = false
        headers = { authorization = "Bearer abc" }
        success = [404, "3xx", 999]
        retryable = ["4xx"]
        throttled = [418, "connect"]
        permanent = [501]
        max_reply = 100
        content_type = "application/json; charset=utf-8"
        headers_from_task = ["X-*", "traceparent"]
        headers_not_from_task = ["x-internal-*"]
        max_retry_after = "1m"
        rate_limit_reset = true
    "#;

    let pattern = |text: &str| Pattern::try_from(text.to_owned()).expect("a pattern");

    let config: Config = toml::from_str(text).expect("a valid configuration");

    let expected = Config {
        url: "https://shop.example/paid".to_owned(),
        timeout: Duration::from_secs(65),
        connect_timeout: Some(Duration::from_secs(3)),
        idle_timeout: Some(Duration::from_secs(30)),
        max_age: Some(Duration::from_mins(1)),
        resend: false,
        headers: BTreeMap::from([("authorization".to_owned(), "Bearer abc".into())]),
        success: vec![Status::Code(404), Status::Class(3), Status::Code(999)],
        retryable: vec![Status::Class(4)],
        throttled: vec![Status::Code(418), Status::NoAnswer(NoAnswer::Connect)],
        permanent: vec![Status::Code(501)],
        max_reply: 100,
        tls: None,
        content_type: Some("application/json; charset=utf-8".to_owned()),
        headers_from_task: vec![pattern("x-*"), pattern("traceparent")],
        headers_not_from_task: vec![pattern("x-internal-*")],
        max_retry_after: Duration::from_mins(1),
        rate_limit_reset: true,
    };
    assert_eq!(config, expected);
    let brief: Config = toml::from_str(r#"url = "http://shop/""#).expect("a valid configuration");
    assert_eq!(brief, Config::new("http://shop/"));
}

#[test]
fn a_mistake_in_the_configuration_is_an_error() {
    for line in [
        "tmeout = \"5s\"",
        "timeout = 5",
        "timeout = \"fast\"",
        "success = [99]",
        "success = [1000]",
        "success = [\"10xx\"]",
        "success = [\"0xx\"]",
        "headers_from_task = [\"\"]",
        "headers_from_task = [\"a b\"]",
        "headers_from_task = \"x-*\"",
        "max_retry_after = 5",
        "success = [\"503\"]",
        "max_reply = -1",
    ] {
        let text = format!("url = \"http://shop/\"\n{line}");

        assert!(toml::from_str::<Config>(&text).is_err(), "{line}");
    }
}

#[test]
fn secrets_do_not_show() {
    let config = Config {
        headers: BTreeMap::from([("authorization".to_owned(), "Bearer abc".into())]),
        ..Config::new("https://shop.example/paid?token=abc")
    };

    let shown = format!("{config:?}");

    assert!(shown.contains("https://shop.example/paid"));
    assert!(!shown.contains("abc"), "{shown}");
}
