//! What goes out.

use std::collections::BTreeMap;

use retide_core::Kind;

use super::*;
use crate::left_out::Reason;

#[tokio::test]
async fn a_request_carries_payload_identity_and_the_producers_headers() {
    let (address, seen) = serve((200, &[], "")).await;
    let mut config = config(address);
    config.headers = BTreeMap::from([("X-Team".to_owned(), "configured".into())]);
    let http = Http::try_new(config).expect("a valid configuration");
    let task = fixture::task(&[
        ("Content-Type", Some(b"application/json")),
        ("content-type", Some(b"text/plain")),
        ("traceparent", Some(b"00-1")),
        ("traceparent", Some(b"00-2")),
        ("user-agent", Some(b"shop/1")),
        ("user-agent", Some(b"shop/2")),
        ("retry-count", Some(b"5")),
        ("retry-reason-code", Some(b"x")),
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

    let outcome = http.attempt(Arc::new(task)).await.outcome;

    assert_eq!(outcome, Outcome::Success);
    let (headers, body) = seen.lock().expect("no panic").remove(0);
    let all = |name: &str| -> Vec<_> {
        let values = headers.get_all(name).iter();
        values.map(|value| value.to_str().expect("text")).collect()
    };
    assert_eq!(body, payload);
    // Of those that HTTP allows once the last one counts, as in Kafka.
    assert_eq!(all("content-type"), ["text/plain"]);
    assert_eq!(all("traceparent"), ["00-2"]);
    assert_eq!(all("user-agent"), ["shop/2"]);
    // Only retide's own names are reserved.
    assert_eq!(all("retry-count"), ["5"]);
    assert_eq!(all("retry-reason-code"), ["x"]);
    assert!(all("authorization").is_empty());
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
    assert_eq!(headers["content-length"], "0");
    assert!(body.is_empty());
}

#[tokio::test]
async fn what_http_cannot_carry_is_encoded_or_left_out_and_told() {
    static LONG: [u8; MAX_VALUE + 1] = [b'x'; MAX_VALUE + 1];
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
        ("longest", Some(&LONG[1..])),
        ("cookie", Some(b"a=b")),
        ("X-Forwarded-For", Some(b"127.0.0.1")),
        ("kept", Some(b"yes")),
    ]);
    task.id = Arc::from("a\r\nb%\u{e9}");

    let Attempt {
        outcome, left_out, ..
    } = http.attempt(Arc::new(task)).await;

    assert_eq!(outcome, Outcome::Success);
    let (headers, _) = seen.lock().expect("no panic").remove(0);
    assert_eq!(headers["kept"], "yes");
    assert_eq!(headers["idempotency-key"], "a%0D%0Ab%25%C3%A9");
    assert_eq!(headers["split"], ":YQ0KeC1pbmplY3RlZDogYg==:");
    assert_eq!(headers["bytes"], "://4=:");
    assert_eq!(headers["nul"], ":AA==:");
    assert_eq!(headers["longest"].len(), MAX_VALUE);
    for name in ["x-injected", "none", "long", "cookie", "x-forwarded-for"] {
        assert!(!headers.contains_key(name), "{name}");
    }
    let left_out = left_out.expect("some are left out");
    let counts: Vec<_> = left_out.counts().collect();
    assert_eq!(
        counts,
        [
            (Reason::Name, 4),
            (Reason::Withheld, 2),
            (Reason::Null, 1),
            (Reason::TooLong, 1)
        ]
    );
    let told = left_out.to_string();
    assert!(told.contains("cookie (withheld)"), "{told}");
}

#[tokio::test]
async fn a_request_is_no_larger_than_common_servers_take() {
    static VALUE: [u8; 1_000] = [b'x'; 1_000];
    let (address, seen) = serve((200, &[], "")).await;
    let http = Http::try_new(config(address)).expect("a valid configuration");
    let attempt = async |headers: &[(&str, Option<&'static [u8]>)]| {
        let left_out = http
            .attempt(Arc::new(fixture::task(headers)))
            .await
            .left_out;
        let (headers, _) = seen.lock().expect("no panic").remove(0);
        let counts = left_out.map(|left_out| left_out.counts().collect::<Vec<_>>());
        (headers, counts.unwrap_or_default())
    };
    let names: Vec<String> = (0..100).map(|number| format!("x-{number}")).collect();

    let large: Vec<_> = names[..20]
        .iter()
        .map(|name| (name.as_str(), Some(&VALUE[..])))
        .chain([("content-type", Some(&b"text/plain"[..]))])
        .collect();
    let (headers, left_out) = attempt(&large).await;
    let size: usize = headers
        .iter()
        .map(|(name, value)| name.as_str().len() + value.len() + 4)
        .sum();
    assert!((7_000..MAX_HEAD).contains(&size), "{size}");
    assert_eq!(headers["content-type"], "text/plain");
    assert_eq!(left_out, [(Reason::NoRoom, 13)]);

    let many: Vec<_> = names
        .iter()
        .map(|name| (name.as_str(), Some(&b"1"[..])))
        .collect();
    let (headers, left_out) = attempt(&many).await;
    assert_eq!(left_out, [(Reason::NoRoom, 100 - MAX_HEADERS as u32)]);
    assert_eq!(headers.get("x-0"), Some(&"1".parse().expect("a value")));
}

/// Answers each request on a connection of its own, which is closed then; what came is sent on.
async fn serve_bytes(
    answer: fn(&str) -> &'static str,
) -> (SocketAddr, tokio::sync::mpsc::Receiver<Vec<u8>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let (sender, seen) = tokio::sync::mpsc::channel(64);
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            let mut bytes = Vec::new();
            let mut buffer = [0; 4096];
            loop {
                let read = socket.read(&mut buffer).await.unwrap_or_default();
                bytes.extend_from_slice(&buffer[..read]);
                let Some(head) = bytes.windows(4).position(|end| end == b"\r\n\r\n") else {
                    assert!(read > 0, "a request ended early");
                    continue;
                };
                let text = String::from_utf8_lossy(&bytes[..head]).to_lowercase();
                let length = text
                    .lines()
                    .find_map(|line| line.strip_prefix("content-length:"));
                let length: usize = length.map_or(0, |text| text.trim().parse().expect("a number"));
                if bytes.len() >= head + 4 + length {
                    let _ = socket.write_all(answer(&text).as_bytes()).await;
                    break;
                }
            }
            let _ = sender.send(bytes).await;
        }
    });
    (address, seen)
}

/// The body of a request that a strict server takes, or what is wrong with it.
fn strictly(bytes: &[u8]) -> Result<Vec<u8>, String> {
    let end = bytes.windows(4).position(|end| end == b"\r\n\r\n");
    let end = end.ok_or("no end of the head")?;
    let (head, body) = (&bytes[..end], &bytes[end + 4..]);
    let mut lines = Vec::new();
    let mut rest = head;
    while let Some(at) = rest.windows(2).position(|end| end == b"\r\n") {
        lines.push(&rest[..at]);
        rest = &rest[at + 2..];
    }
    lines.push(rest);
    if lines[0] != b"POST /paid?a=b HTTP/1.1" {
        return Err(format!("first line {:?}", lines[0].escape_ascii()));
    }
    let mut headers = Vec::new();
    for line in &lines[1..] {
        let shown = || line.escape_ascii().to_string();
        let colon = line
            .iter()
            .position(|byte| *byte == b':')
            .ok_or_else(shown)?;
        let (name, value) = (&line[..colon], &line[colon + 1..]);
        let is_token =
            |byte: &u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte);
        if name.is_empty() || !name.iter().all(is_token) {
            return Err(format!("name {}", shown()));
        }
        let value = value.strip_prefix(b" ").ok_or_else(shown)?;
        let is_visible = |byte: &u8| *byte == b'\t' || *byte >= b' ' && *byte != 0x7f;
        if !value.iter().all(is_visible) {
            return Err(format!("value {}", shown()));
        }
        let name = String::from_utf8_lossy(name).to_lowercase();
        if name != "repeated" && headers.iter().any(|(other, _)| *other == name) {
            return Err(format!("{name} twice"));
        }
        headers.push((name, value.to_vec()));
    }
    if headers.first().is_none_or(|(name, _)| name != "host") {
        return Err("host is not first".to_owned());
    }
    let get = |wanted: &str| headers.iter().find(|(name, _)| name == wanted);
    if let Some((name, _)) = get("transfer-encoding").or(get("connection")) {
        return Err(format!("{name} is sent"));
    }
    let length = get("content-length").ok_or("no length")?;
    if length.1 != body.len().to_string().as_bytes() {
        return Err(format!(
            "{} bytes of a body, said to be {length:?}",
            body.len()
        ));
    }
    Ok(body.to_vec())
}

#[tokio::test]
async fn the_bytes_of_a_request_are_what_a_strict_server_takes() {
    let (address, mut seen) = serve_bytes(|_| "HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n").await;
    let http = Http::try_new(Config {
        headers: BTreeMap::from([("X-Team".to_owned(), "shop".into())]),
        ..Config::new(format!("http://{address}/paid?a=b"))
    })
    .expect("a valid configuration");
    let hostile: &[(&str, Option<&'static [u8]>)] = &[
        ("Host", Some(b"elsewhere")),
        ("Content-Length", Some(b"7")),
        ("Transfer-Encoding", Some(b"chunked")),
        ("Connection", Some(b"close, x-team")),
        ("Expect", Some(b"100-continue")),
        ("X-Team", Some(b"other")),
        ("User-Agent", Some(b"a")),
        ("user-agent", Some(b"b")),
        ("Accept", Some(b"text/plain")),
        ("retry-id", Some(b"spoofed")),
        ("Retry-Scene", Some(b"spoofed")),
        ("idempotency-key", Some(b"spoofed")),
        ("traceparent", Some(b"1")),
        ("Traceparent", Some(b"2")),
        ("repeated", Some(b"1")),
        ("repeated", Some(b"2")),
        ("folded", Some(b"a\r\n b")),
        ("content-type", Some(b"text/plain")),
        ("Content-Type", Some(b"application/json")),
    ];

    for headers in [&[][..], hostile] {
        for value in [None, Some(&b""[..]), Some(b"x"), Some(b"\r\n\r\n\x00\xff")] {
            let mut task = fixture::task(headers);
            task.record.value = value.map(Bytes::from_static);

            let outcome = http.attempt(Arc::new(task)).await.outcome;

            assert_eq!(outcome, Outcome::Success);
            let bytes = seen.recv().await.expect("a request");
            let body = strictly(&bytes)
                .unwrap_or_else(|wrong| panic!("{wrong}: {}", bytes.escape_ascii()));
            assert_eq!(body, value.unwrap_or_default());
        }
    }

    let mut task = fixture::task(&[
        ("x-kind", Some(b"1")),
        ("content-type", Some(b"text/plain")),
    ]);
    task.record.value = Some(Bytes::from_static(b"hello"));
    http.attempt(Arc::new(task)).await;
    let golden = format!(
        "POST /paid?a=b HTTP/1.1\r\nhost: {address}\r\ncontent-length: 5\r\nidempotency-key: order-7\r\n\
         retry-id: order-7\r\nretry-scene: payment\r\nretry-attempt: 3\r\nretry-due-at: 1700000000123\r\n\
         retry-origin: orders/4/99\r\nretry-round: 3\r\nx-team: shop\r\ncontent-type: text/plain\r\nx-kind: 1\r\n\
         user-agent: retide/{}\r\naccept: */*\r\n\r\nhello",
        env!("CARGO_PKG_VERSION")
    );
    let bytes = seen.recv().await.expect("a request");
    assert_eq!(String::from_utf8_lossy(&bytes), golden);
}

#[tokio::test]
async fn a_target_that_finds_the_headers_too_large_is_asked_once_more_without_them() {
    fn small(head: &str) -> &'static str {
        if head.contains("x-large:") {
            "HTTP/1.1 431 Too Large\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
        } else {
            "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
        }
    }
    fn nginx(head: &str) -> &'static str {
        if head.contains("x-large:") {
            "HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-length: 45\r\n\r\n<title>400 Request Header Or Cookie Too Large"
        } else {
            "HTTP/1.1 503 Busy\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
        }
    }
    fn never(_: &str) -> &'static str {
        "HTTP/1.1 431 Too Large\r\nconnection: close\r\ncontent-length: 2\r\n\r\nno"
    }
    fn bad(_: &str) -> &'static str {
        "HTTP/1.1 400 Bad\r\nconnection: close\r\ncontent-length: 2\r\n\r\nno"
    }
    static VALUE: [u8; 3_000] = [b'x'; 3_000];
    let record: &[(&str, Option<&'static [u8]>)] = &[
        ("content-type", Some(b"text/plain")),
        ("x-large", Some(&VALUE)),
        ("x-small", Some(b"1")),
    ];
    let asked = async |answer, headers| {
        let (address, mut seen) = serve_bytes(answer).await;
        let http = Http::try_new(config(address)).expect("a valid configuration");
        let attempt = http.attempt(Arc::new(fixture::task(headers))).await;
        drop(http);
        let mut requests = Vec::new();
        while let Ok(bytes) = seen.try_recv() {
            requests.push(String::from_utf8_lossy(&bytes).into_owned());
        }
        (attempt, requests)
    };
    let counts = |attempt: &Attempt| -> Vec<_> {
        let left_out = attempt.left_out.as_ref().expect("some are left out");
        left_out.counts().collect()
    };

    let (attempt, requests) = asked(small, record).await;
    assert_eq!(attempt.outcome, Outcome::Success);
    assert_eq!(counts(&attempt), [(Reason::Refused, 2)]);
    assert_eq!(requests.len(), 2);
    assert!(requests[0].contains("x-small: 1") && !requests[1].contains("x-small"));
    assert!(requests[1].contains("content-type: text/plain"));

    let (attempt, requests) = asked(nginx, record).await;
    assert_eq!(
        attempt.outcome,
        Outcome::Retryable(failure("http-503", "Service Unavailable"))
    );
    assert_eq!(requests.len(), 2);

    // Without the record's there is nothing more to leave out.
    let (attempt, requests) = asked(never, record).await;
    let message = &attempt.outcome.failure().expect("it failed").message;
    assert!(message.contains("too large"), "{message}");
    assert_eq!(requests.len(), 2);
    let (attempt, requests) = asked(never, &[]).await;
    let message = &attempt.outcome.failure().expect("it failed").message;
    assert!(message.contains("the largest is"), "{message}");
    assert_eq!((attempt.left_out, requests.len()), (None, 1));

    // Any other 400 is an answer.
    let (attempt, requests) = asked(bad, &record[..1]).await;
    assert_eq!(
        attempt.outcome,
        Outcome::Permanent(failure("http-400", "no"))
    );
    assert_eq!(requests.len(), 1);
}
