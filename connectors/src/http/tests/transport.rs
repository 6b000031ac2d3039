//! How connections are made, and what it means that they break.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io::Write;
use std::time::Instant;

use http_body_util::Full;
use hyper::Response;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use rustls::pki_types::CertificateDer;
use tempfile::NamedTempFile;

use super::*;
use crate::server::{Reached, Unreached};
use crate::tls;

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
    let (acceptor, certificate) = raw::tls(&[b"h2", b"http/1.1"]);
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
    let asked = async |outbound: &Outbound| {
        let http = Http::within(Config::new(&*url), outbound).expect("valid");
        http.attempt(Arc::new(fixture::task(&[]))).await.outcome
    };

    let trusted = asked(&trusting(&certificate).0).await;
    let stranger = asked(&Outbound::default()).await;

    assert_eq!(trusted, Outcome::Permanent(failure("http-409", "h2")));
    let failure = stranger.failure().expect("not trusted");
    assert_eq!(&*failure.class, "tls");
}

/// The rules of a process that trusts this certificate alone, and the file that holds it.
pub(super) fn trusting(certificate: &CertificateDer<'_>) -> (Outbound, NamedTempFile) {
    let mut ca = NamedTempFile::new().expect("a file");
    ca.write_all(tls::tests::pem("CERTIFICATE", certificate).as_bytes())
        .expect("it is written");
    let profile = tls::Config {
        ca: Some(ca.path().to_owned()),
        ..tls::Config::default()
    };
    let profiles = BTreeMap::from([(tls::DEFAULT.to_owned(), profile)]);
    let outbound = Outbound {
        tls: Arc::new(tls::Profiles::new(&profiles)),
        ..Outbound::default()
    };
    (outbound, ca)
}

#[tokio::test]
async fn a_probe_tells_which_protocol_is_spoken_at_a_port() {
    let (secure, certificate) = serve_tls().await;
    let (plain, _) = serve((200, &[], "")).await;
    let (outbound, _ca) = trusting(&certificate);
    let probe = async |scheme: &str, address: SocketAddr, outbound: &Outbound| {
        let config = Config::new(format!("{scheme}://localhost:{}/", address.port()));
        let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
        let server = config.server().expect("a server");
        server.probe(outbound, deadline).await
    };

    let as_said = [
        probe("https", secure, &outbound).await,
        probe("http", plain, &outbound).await,
    ];
    let crossed = [
        probe("http", secure, &outbound).await,
        // Whoever is not trusted speaks TLS all the same.
        probe("http", secure, &Outbound::default()).await,
        probe("https", plain, &outbound).await,
    ];

    let is_dated = |reached: &Reached| {
        matches!(
            reached,
            Reached::Tls {
                version: "1.3",
                not_after: Some(_)
            }
        )
    };
    assert!(as_said[0].as_ref().is_ok_and(is_dated), "{as_said:?}");
    assert_eq!(as_said[1], Ok(Reached::Plain));
    assert_eq!(crossed[0], Err(Unreached::SpeaksTls));
    assert_eq!(crossed[1], Err(Unreached::SpeaksTls));
    assert!(matches!(crossed[2], Err(Unreached::Tls(_))), "{crossed:?}");
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
    for (head, class) in [
        (&b""[..], "reply"),
        (b"HTTP/1.1 2", "reply"),
        (b"nonsense\r\n\r\n", "malformed"),
    ] {
        let address = serve_raw(head, b"").await;

        let outcome = attempt(config(address)).await;

        assert!(matches!(&outcome, Outcome::Retryable(failure) if &*failure.class == class));
    }
}
