//! What goes out.

use std::collections::BTreeMap;

use retide_core::Kind;

use super::*;

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
    assert_eq!(headers["content-length"], "0");
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
