//! Answers that break the rules of HTTP, beside what curl and Go's client make of them.

use super::raw::{Act, serve_act};
use super::*;

/// What became of an attempt: a status, or a class.
fn what(outcome: &Outcome) -> String {
    let class = outcome
        .failure()
        .map_or("http-200", |failure| &failure.class);
    class.trim_start_matches("http-").to_owned()
}

/// Answers in full, and what is made of them: a status where curl or Go's client have one, else a class.
fn table() -> Vec<(String, &'static str)> {
    let ok = |head: &str| format!("HTTP/1.1 200 OK\r\n{head}\r\n\r\n");
    let many = |count: usize| vec!["x-header: a value"; count].join("\r\n");
    vec![
        (ok("content-length: 0"), "200"),
        // More of it than hyper takes.
        (ok(&format!("{}\r\ncontent-length: 0", many(100))), "200"),
        (ok(&format!("{}\r\ncontent-length: 0", many(101))), "200"),
        (ok(&format!("{}\r\ncontent-length: 0", many(120))), "200"),
        (ok(&format!("{}\r\ncontent-length: 0", many(5000))), "200"),
        (
            ok(&format!("x: {}\r\ncontent-length: 0", "a".repeat(500_000))),
            "200",
        ),
        // Headers that are none.
        (ok("x-long: a\r\n\tb\r\ncontent-length: 0"), "200"),
        (ok("Server : x\r\nContent-Length: 0"), "200"),
        (ok("X Y: a\r\ncontent-length: 0"), "200"),
        (ok("x-n: a\u{1}b\r\ncontent-length: 0"), "200"),
        (ok("x-\u{e9}: a\r\ncontent-length: 0"), "200"),
        (ok(": a\r\ncontent-length: 0"), "200"),
        (ok("hello\r\ncontent-length: 0"), "200"),
        (ok("hello\r\nx: \u{0}"), "200"),
        // Lengths and framing.
        (ok("content-length:"), "200"),
        (ok("content-length: 1\r\ncontent-length: 2") + "ab", "200"),
        (ok("content-length: 2\r\ncontent-length: 2") + "ab", "200"),
        (ok("content-length: 2, 2") + "ab", "200"),
        (ok("content-length: -1"), "200"),
        (ok("content-length: none"), "200"),
        (ok("content-length: 99999999999999999999999"), "200"),
        (ok("content-length: 100") + "short", "200"),
        (
            ok("content-length: 2\r\ntransfer-encoding: chunked") + "0\r\n\r\n",
            "200",
        ),
        (ok("transfer-encoding: chunked") + "zz\r\n", "200"),
        (ok("transfer-encoding: chunked") + "5\r\nab", "200"),
        (ok("transfer-encoding: gzip") + "ab", "200"),
        (ok("transfer-encoding: identity") + "ab", "200"),
        (
            "HTTP/1.0 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n".into(),
            "200",
        ),
        ("HTTP/1.0 200 OK\r\n\r\nbody".into(), "200"),
        // Status lines.
        (
            "HTTP/1.1  200  OK\r\ncontent-length: 0\r\n\r\n".into(),
            "200",
        ),
        ("HTTP/1.1 200\r\ncontent-length: 0\r\n\r\n".into(), "200"),
        (
            "HTTP/1.1 200 \u{e9}\r\ncontent-length: 0\r\n\r\n".into(),
            "200",
        ),
        ("HTTP/1.2 200 OK\r\ncontent-length: 0\r\n\r\n".into(), "200"),
        ("HTTP/2 200 OK\r\ncontent-length: 0\r\n\r\n".into(), "200"),
        ("http/1.1 200 OK\r\ncontent-length: 0\r\n\r\n".into(), "200"),
        (
            "\r\nHTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n".into(),
            "200",
        ),
        ("HTTP/1.1 200 OK\ncontent-length: 0\n\n".into(), "200"),
        ("HTTP/1.1 200 OK\r\n".into(), "200"),
        ("HTTP/1.1 200 OK\r\nx: 1\r\ny".into(), "200"),
        ("HTTP/1.1 200 O".into(), "200"),
        ("HTTP/1.1 503 Busy\r\n : \r\n".into(), "503"),
        ("HTTP/1.1 999 No\r\ncontent-length: 0\r\n\r\n".into(), "999"),
        // Answers before the answer.
        (
            "HTTP/1.1 100 Continue\r\n\r\n".to_owned() + &ok("content-length: 0"),
            "200",
        ),
        (
            "HTTP/1.1 103 Hints\r\nlink: x\r\n\r\n".to_owned() + &ok("x y: 0"),
            "200",
        ),
        (
            "HTTP/1.1 103 Hints\r\nx y: x\r\n\r\n".to_owned() + &ok("x: 0"),
            "200",
        ),
        ("HTTP/1.1 100 Continue\r\n\r\n".into(), "reply"),
        (
            "HTTP/1.1 101 Switching Protocols\r\nupgrade: h2c\r\n\r\n".into(),
            "101",
        ),
        // What nobody takes for an answer.
        (String::new(), "reply"),
        ("HTTP/1.1 20".into(), "reply"),
        ("ICY 200 OK\r\n\r\n".into(), "malformed"),
        ("<html>hello</html>".into(), "malformed"),
        ("HTTP/1.1 2000 OK\r\n\r\n".into(), "malformed"),
        ("HTTP/1.1 099 OK\r\n\r\n".into(), "malformed"),
        ("HTTP/1.1 OK\r\n\r\n".into(), "malformed"),
        ("HTTP/x 200 OK\r\n\r\n".into(), "malformed"),
        ("SSH-2.0-OpenSSH_9.2\r\n".into(), "malformed"),
    ]
}

#[tokio::test]
async fn an_odd_answer_is_taken_by_its_status_and_else_named() {
    for (answer, expected) in table() {
        let shown: String = answer.chars().take(80).collect();
        let (address, counts) = serve_act(move |_, _| Act::Finish(answer.clone().into())).await;

        let outcome = attempt(config(address)).await;

        assert_eq!(what(&outcome), expected, "{shown:?} {outcome:?}");
        assert_eq!(counts.requests(), 1, "{shown:?}");
    }
}

#[tokio::test]
async fn an_answer_that_cannot_be_read_is_shown() {
    for (answer, words) in [
        (&b"HTTP/1.1 2000 OK\r\n\r\n"[..], "\"HTTP/1.1 2000 OK\""),
        (b"ICY 200 OK\r\n\r\n", "\"ICY 200 OK\""),
        (b"\x15\x03\x01\x00\x02\x02\x16", "TLS"),
        (b"\x00\x00\x12\x04\x00\x00\x00\x00\x00", "HTTP/2"),
    ] {
        let (address, _) = serve_act(move |_, _| Act::Finish(answer.to_vec())).await;

        let outcome = attempt(config(address)).await;

        let failure = outcome.failure().expect("it is no answer");
        assert_eq!(&*failure.class, "malformed");
        assert!(failure.message.contains(words), "{failure}");
    }
}

#[tokio::test]
async fn headers_of_an_odd_answer_count_as_far_as_they_can_be_read() {
    let answer = b"HTTP/1.1 503 Busy\r\nx y: z\r\nRetry-After : 7\r\nfolded: a\r\n b\r\n\r\nlater";
    let (address, _) = serve_act(move |_, _| Act::Finish(answer.to_vec())).await;

    let outcome = attempt(config(address)).await;

    let expected = Outcome::Throttled {
        after: Duration::from_secs(7),
        failure: failure("http-503", "later"),
    };
    assert_eq!(outcome, expected);
}

#[tokio::test]
async fn who_is_careful_about_broken_connections_is_so_about_what_cannot_be_read() {
    let (address, _) = serve_act(|_, _| Act::Finish(b"ICY 200 OK\r\n\r\n".to_vec())).await;

    let outcome = attempt(Config {
        permanent: vec![Status::NoAnswer(NoAnswer::Reply)],
        ..config(address)
    })
    .await;

    assert!(matches!(&outcome, Outcome::Permanent(failure) if &*failure.class == "malformed"));
}
