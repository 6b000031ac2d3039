//! The rules of the HTTP target, against servers in the same process.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{HeaderMap as Headers, StatusCode};
use axum::routing::post;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use hyper_util::server::conn::auto;
use rustls::ServerConfig;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::*;
use crate::fixture;

/// What a server of the tests answers: status, headers and body.
type Answer = (u16, &'static [(&'static str, &'static str)], &'static str);

/// Requests as a server of the tests saw them.
type Seen = Arc<Mutex<Vec<(Headers, Bytes)>>>;

/// Serves `answer` to every request and keeps what was asked.
async fn serve(answer: Answer) -> (SocketAddr, Seen) {
    async fn reply(
        State((seen, answer)): State<(Seen, Answer)>,
        request: Request,
    ) -> (StatusCode, Headers, &'static str) {
        let (parts, body) = request.into_parts();
        let body = axum::body::to_bytes(body, usize::MAX)
            .await
            .expect("a body");
        seen.lock().expect("no panic").push((parts.headers, body));
        let (code, headers, text) = answer;
        let mut sent = Headers::new();
        for (name, value) in headers {
            sent.insert(*name, value.parse().expect("a header's value"));
        }
        (StatusCode::from_u16(code).expect("a status"), sent, text)
    }

    let seen = Seen::default();
    let app = Router::new()
        .route("/", post(reply))
        .with_state((Arc::clone(&seen), answer));
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(async move { axum::serve(listener, app).await });
    (address, seen)
}

fn config(address: SocketAddr) -> Config {
    Config::new(format!("http://{address}/"))
}

async fn attempt(config: Config) -> Outcome {
    let http = Http::try_new(config).expect("a valid configuration");
    http.attempt(Arc::new(fixture::task(&[]))).await
}

async fn attempt_answered(answer: Answer) -> Outcome {
    let (address, _) = serve(answer).await;
    attempt(config(address)).await
}

fn failure(class: &str, message: &str) -> Failure {
    Failure::new(class, message)
}

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

#[tokio::test]
async fn a_request_carries_payload_identity_and_the_producers_headers() {
    let (address, seen) = serve((200, &[], "")).await;
    let mut config = config(address);
    config.headers = BTreeMap::from([("X-Team".to_owned(), "configured".to_owned())]);
    let http = Http::try_new(config).expect("a valid configuration");
    let task = fixture::task(&[
        ("Content-Type", Some(b"application/json")),
        ("content-type", Some(b"text/plain")),
        ("authorization", Some(b"Bearer abc")),
        ("trace", Some(b"one")),
        ("trace", Some(b"two")),
        ("x-team", Some(b"produced")),
        ("retry-attempt", Some(b"77")),
        ("retry-outcome", Some(b"dead")),
        ("idempotency-key", Some(b"other")),
        ("host", Some(b"elsewhere")),
        ("content-length", Some(b"1")),
        ("transfer-encoding", Some(b"chunked")),
        ("connection", Some(b"close")),
    ]);
    let payload = task.record.value.clone().expect("a payload");

    let outcome = http.attempt(Arc::new(task)).await;

    assert_eq!(outcome, Outcome::Success);
    let (headers, body) = seen.lock().expect("no panic").remove(0);
    let all = |name: &str| -> Vec<_> {
        let values = headers.get_all(name).iter();
        values.map(|value| value.to_str().expect("text")).collect()
    };
    assert_eq!(body, payload);
    assert_eq!(all("content-type"), ["application/json"]);
    assert_eq!(all("authorization"), ["Bearer abc"]);
    assert_eq!(all("trace"), ["one", "two"]);
    assert_eq!(all("x-team"), ["configured"]);
    assert_eq!(all("idempotency-key"), ["order-7"]);
    assert_eq!(all("retry-id"), ["order-7"]);
    assert_eq!(all("retry-scene"), ["payment"]);
    assert_eq!(all("retry-attempt"), ["3"]);
    assert_eq!(all("retry-due-at"), ["1700000000123"]);
    assert_eq!(all("retry-origin"), ["orders/4/99"]);
    assert_eq!(all("host"), [address.to_string()]);
    assert_eq!(all("content-length"), [payload.len().to_string()]);
    assert!(all("retry-outcome").is_empty() && all("transfer-encoding").is_empty());
    assert!(all("connection").is_empty());
}

#[tokio::test]
async fn a_callback_says_how_its_task_ended_and_a_tombstone_is_empty() {
    let (address, seen) = serve((200, &[], "")).await;
    let http = Http::try_new(config(address)).expect("a valid configuration");
    let mut task = fixture::task(&[("retry-outcome", Some(b"dead"))]);
    task.kind = Kind::Callback;
    task.record.value = None;

    http.attempt(Arc::new(task)).await;

    let (headers, body) = seen.lock().expect("no panic").remove(0);
    assert_eq!(headers["retry-outcome"], "dead");
    assert_eq!(headers["content-type"], "application/octet-stream");
    assert!(body.is_empty());
}

#[tokio::test]
async fn hostile_record_headers_are_left_out() {
    static LONG: [u8; MAX_HEADERS] = [b'x'; MAX_HEADERS];
    let (address, seen) = serve((200, &[], "")).await;
    let http = Http::try_new(config(address)).expect("a valid configuration");
    let mut task = fixture::task(&[
        ("split", Some(b"a\r\nx-injected: b")),
        ("bytes", Some(b"\xff\xfe")),
        ("nul", Some(b"\0")),
        ("none", None),
        ("", Some(b"a")),
        ("na me", Some(b"a")),
        ("x\r\ny", Some(b"a")),
        ("\u{e9}", Some(b"a")),
        ("long", Some(&LONG)),
        ("kept", Some(b"yes")),
    ]);
    task.id = Arc::from("a\r\nb%\u{e9}");

    let outcome = http.attempt(Arc::new(task)).await;

    assert_eq!(outcome, Outcome::Success);
    let (headers, _) = seen.lock().expect("no panic").remove(0);
    assert_eq!(headers["kept"], "yes");
    assert_eq!(headers["idempotency-key"], "a%0D%0Ab%25%C3%A9");
    for name in ["split", "x-injected", "bytes", "nul", "none", "long"] {
        assert!(!headers.contains_key(name), "{name}");
    }
}

#[tokio::test]
async fn a_server_that_hangs_is_a_timeout_within_the_limit() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let limit = Duration::from_millis(100);
    let start = Instant::now();

    let outcome = attempt(Config {
        timeout: limit,
        ..config(address)
    })
    .await;

    assert!(matches!(&outcome, Outcome::Timeout(failure) if &*failure.class == "timeout"));
    // Generous, since the machine may be busy, yet far below every default.
    assert!((limit..Duration::from_secs(5)).contains(&start.elapsed()));
}

#[tokio::test]
async fn a_refused_connection_is_retryable() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    drop(listener);

    let outcome = attempt(config(address)).await;

    assert!(matches!(&outcome, Outcome::Retryable(failure) if &*failure.class == "connect"));
}

/// Answers 200 over TLS to each connection, with the protocol it was agreed to speak as the body: the address and the certificate.
async fn serve_tls() -> (SocketAddr, CertificateDer<'static>) {
    let names = vec!["localhost".to_owned()];
    let made = rcgen::generate_simple_self_signed(names).expect("a certificate");
    let (certificate, key) = (made.cert.der().clone(), made.signing_key.serialize_der());
    let mut tls = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(
            vec![certificate.clone()],
            PrivatePkcs8KeyDer::from(key).into(),
        )
        .expect("a key");
    tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let acceptor = TlsAcceptor::from(Arc::new(tls));
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            let Ok(stream) = acceptor.accept(socket).await else {
                continue;
            };
            let agreed = stream.get_ref().1.alpn_protocol().map(<[u8]>::to_vec);
            let answer = service_fn(move |_| {
                let body = Full::new(Bytes::from(agreed.clone().unwrap_or_default()));
                async move {
                    let mut answer = Response::new(body);
                    *answer.status_mut() = StatusCode::CONFLICT;
                    Ok::<_, Infallible>(answer)
                }
            });
            tokio::spawn(async move {
                let server = auto::Builder::new(TokioExecutor::new());
                let _ = server.serve_connection(TokioIo::new(stream), answer).await;
            });
        }
    });
    (address, certificate)
}

#[tokio::test]
async fn an_https_target_is_asked_in_http_2_if_it_is_trusted() {
    let (address, certificate) = serve_tls().await;
    let url = format!("https://localhost:{}/", address.port());
    let trusting = async |roots: RootCertStore| {
        let mut http = Http::try_new(Config::new(&*url)).expect("valid");
        let provider = Arc::new(ring::default_provider());
        let tls = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions");
        http.client = client(tls.with_root_certificates(roots).with_no_client_auth());
        http.attempt(Arc::new(fixture::task(&[]))).await
    };
    let mut roots = RootCertStore::empty();
    roots.add(certificate).expect("a root");

    let trusted = trusting(roots).await;
    let stranger = trusting(RootCertStore::empty()).await;

    assert_eq!(trusted, Outcome::Permanent(failure("http-409", "h2")));
    let failure = stranger.failure().expect("not trusted");
    assert_eq!(&*failure.class, "connect");
    assert!(failure.message.contains("UnknownIssuer"), "{failure}");
}

#[tokio::test]
async fn that_no_answer_comes_means_what_the_configuration_says() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let silent = listener.local_addr().expect("an address");
    let closed = {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        listener.local_addr().expect("an address")
    };
    let outcome = async |address, way: NoAnswer, word: &str| {
        let mut config = Config {
            timeout: Duration::from_millis(100),
            ..config(address)
        };
        let list = match word {
            "retryable" => &mut config.retryable,
            "throttled" => &mut config.throttled,
            _ => &mut config.permanent,
        };
        list.push(Status::NoAnswer(way));
        attempt(config).await
    };

    for word in ["retryable", "throttled", "permanent"] {
        let timeout = outcome(silent, NoAnswer::Timeout, word).await;
        let connect = outcome(closed, NoAnswer::Connect, word).await;
        let broken = serve_raw(b"", b"").await;
        let reply = outcome(broken, NoAnswer::Reply, word).await;

        assert_eq!([timeout.word(), connect.word(), reply.word()], [word; 3]);
        let class = |outcome: &Outcome| outcome.failure().expect("it failed").class.clone();
        assert_eq!(
            [class(&timeout), class(&connect), class(&reply)],
            ["timeout", "connect", "reply"].map(Box::from)
        );
    }
    // What is not listed is what it is.
    let other = outcome(closed, NoAnswer::Reply, "permanent").await;
    assert_eq!(other.word(), "retryable");
}

/// Accepts one connection, reads the request's first bytes, writes `head`, then `chunk` again and again until the client hangs up.
async fn serve_raw(head: &'static [u8], chunk: &'static [u8]) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(async move {
        let (mut socket, _) = listener.accept().await.expect("a client");
        let _ = socket.read(&mut [0; 4096]).await;
        let mut sent = socket.write_all(head).await;
        while sent.is_ok() && !chunk.is_empty() {
            sent = socket.write_all(chunk).await;
        }
    });
    address
}

#[tokio::test]
async fn an_endless_reply_is_cut_at_the_cap() {
    let head = b"HTTP/1.1 503 Busy\r\ntransfer-encoding: chunked\r\n\r\n";
    let address = serve_raw(head, b"4\r\nbusy\r\n").await;

    let outcome = attempt(Config {
        max_reply: 6,
        timeout: Duration::from_mins(1),
        ..config(address)
    })
    .await;

    assert_eq!(outcome, Outcome::Retryable(failure("http-503", "busybu")));
}

#[tokio::test]
async fn an_answer_that_breaks_off_is_retryable() {
    for head in [&b""[..], b"HTTP/1.1 2", b"nonsense\r\n\r\n"] {
        let address = serve_raw(head, b"").await;

        let outcome = attempt(config(address)).await;

        assert!(matches!(&outcome, Outcome::Retryable(failure) if &*failure.class == "reply"));
    }
}

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
        headers: BTreeMap::from([("authorization".to_owned(), "Bearer abc".to_owned())]),
        success: vec![Status::Code(404), Status::Class(3)],
        retryable: vec![Status::Class(4)],
        throttled: vec![Status::Code(418), Status::NoAnswer(NoAnswer::Connect)],
        permanent: vec![Status::Code(501)],
        max_reply: 100,
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
