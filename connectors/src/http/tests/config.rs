//! What a configuration may say.

use std::collections::BTreeMap;

use super::*;

#[test]
fn a_configuration_that_cannot_work_is_refused() {
    let url = |url: &str| Http::try_new(Config::new(url)).expect_err("it is invalid");
    let header = |name: &str, value: &str| {
        let headers = BTreeMap::from([(name.to_owned(), value.to_owned())]);
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
        success = [404, "3xx"]
        retryable = ["4xx"]
        throttled = [418, "connect"]
        permanent = [501]
        max_reply = 100
    "#;

    let config: Config = toml::from_str(text).expect("a valid configuration");

    let expected = Config {
        url: "https://shop.example/paid".to_owned(),
        timeout: Duration::from_secs(65),
        connect_timeout: Some(Duration::from_secs(3)),
        idle_timeout: Some(Duration::from_secs(30)),
        max_age: Some(Duration::from_mins(1)),
        resend: false,
        headers: BTreeMap::from([("authorization".to_owned(), "Bearer abc".to_owned())]),
        success: vec![Status::Code(404), Status::Class(3)],
        retryable: vec![Status::Class(4)],
        throttled: vec![Status::Code(418), Status::NoAnswer(NoAnswer::Connect)],
        permanent: vec![Status::Code(501)],
        max_reply: 100,
        tls: None,
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
        "success = [\"6xx\"]",
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
        headers: BTreeMap::from([("authorization".to_owned(), "Bearer abc".to_owned())]),
        ..Config::new("https://shop.example/paid?token=abc")
    };

    let shown = format!("{config:?}");

    assert!(shown.contains("https://shop.example/paid"));
    assert!(!shown.contains("abc"), "{shown}");
}
