//! Connections that are kept, and what it means that they are not.

use std::time::Instant;

use super::raw::{Act, Counts, Stream, ok, serve_act, serve_at, serve_two, serve_two_at};
use super::transport::trusting;
use super::*;

/// As many attempts one after the other, on one target.
async fn attempts(http: &Http, count: usize) -> Vec<Outcome> {
    let mut outcomes = Vec::new();
    for _ in 0..count {
        outcomes.push(http.attempt(Arc::new(fixture::task(&[]))).await.outcome);
    }
    outcomes
}

/// As many attempts at once, on one target.
async fn attempts_at_once(http: Http, count: usize) -> Vec<Outcome> {
    let http = Arc::new(http);
    let all: Vec<_> = (0..count)
        .map(|_| {
            let http = Arc::clone(&http);
            tokio::spawn(async move { http.attempt(Arc::new(fixture::task(&[]))).await })
        })
        .collect();
    let mut outcomes = Vec::new();
    for one in all {
        outcomes.push(one.await.expect("no panic").outcome);
    }
    outcomes
}

fn http(address: SocketAddr, change: impl FnOnce(&mut Config)) -> Http {
    let mut config = config(address);
    change(&mut config);
    Http::try_new(config).expect("a valid configuration")
}

fn all_succeed(outcomes: &[Outcome], counts: &Counts) {
    let failed: Vec<_> = outcomes.iter().filter_map(Outcome::failure).collect();
    assert!(failed.is_empty(), "{failed:?}");
    assert_eq!(counts.requests(), outcomes.len());
}

#[tokio::test]
async fn a_kept_connection_that_is_closed_as_the_request_comes_costs_no_attempt() {
    for end in [Act::Close, Act::Reset] {
        let (address, counts) = serve_act(move |_, request| match request {
            0..3 => ok(),
            _ => end.clone(),
        })
        .await;
        let http = http(address, |config| {
            config.permanent = vec![Status::NoAnswer(NoAnswer::Reply)];
        });

        let outcomes = attempts(&http, 20).await;

        all_succeed(&outcomes, &counts);
        assert_eq!(counts.connections(), 7);
    }
}

#[tokio::test]
async fn a_connection_that_was_kept_without_a_request_costs_no_attempt_either() {
    let (address, counts) = serve_act(|connection, _| match connection {
        0 => Act::Close,
        _ => ok(),
    })
    .await;
    let http = Arc::new(http(address, |config| {
        config.permanent = vec![Status::NoAnswer(NoAnswer::Reply)];
    }));
    let one = Arc::clone(&http);
    let who = tokio::spawn(async move { one.attempt(Arc::new(fixture::task(&[]))).await.outcome });
    // It asks for a connection and is gone before there is one, which is kept.
    tokio::task::yield_now().await;
    who.abort();
    assert!(who.await.is_err(), "it had an answer");
    while counts.connections() < 1 {
        tokio::task::yield_now().await;
    }
    for _ in 0..20 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }

    let outcomes = attempts(&http, 1).await;

    all_succeed(&outcomes, &counts);
    assert_eq!(counts.connections(), 2);
}

#[tokio::test]
async fn who_was_cut_off_on_a_kept_connection_and_finds_nobody_then_may_have_been_seen() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let (_, listening) = serve_at(listener, |_, request| match request {
        0 => ok(),
        _ => Act::Close,
    });
    let http = http(address, |_| ());
    assert_eq!(attempts(&http, 1).await, [Outcome::Success]);

    listening.abort();
    let outcome = attempts(&http, 1).await.remove(0);
    let next = attempts(&http, 1).await.remove(0);

    let failure = outcome.failure().expect("nobody is there");
    assert_eq!(&*failure.class, "unsent", "{failure}");
    assert!(failure.message.contains("and then: "), "{failure}");
    let failure = next.failure().expect("nobody is there");
    assert_eq!(&*failure.class, "connect", "{failure}");
}

#[tokio::test]
async fn what_is_not_to_be_sent_twice_ends_as_unsent() {
    let (address, _) = serve_act(|_, request| match request {
        0 => ok(),
        _ => Act::Reset,
    })
    .await;
    let http = http(address, |config| config.resend = false);

    let outcomes = attempts(&http, 2).await;

    assert_eq!(outcomes[0], Outcome::Success);
    let failure = outcomes[1].failure().expect("it is not sent again");
    assert_eq!(&*failure.class, "unsent", "{failure}");
}

#[tokio::test]
async fn a_new_connection_that_breaks_is_no_reason_to_send_again() {
    for end in [
        Act::Finish(Vec::new()),
        Act::Finish(b"HTTP/1.1 20".to_vec()),
    ] {
        let (address, counts) = serve_act(move |_, _| end.clone()).await;

        let outcomes = attempts(&http(address, |_| {}), 1).await;

        let failure = outcomes[0].failure().expect("no answer");
        assert_eq!(&*failure.class, "reply", "{failure}");
        assert_eq!(counts.requests(), 1);
    }
}

#[tokio::test]
async fn an_answer_cut_at_any_byte_is_sent_again_only_if_none_came() {
    let whole = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
    for end in 0..=whole.len() {
        let (address, counts) = serve_act(move |_, request| match request {
            0 => ok(),
            _ => Act::Finish(whole[..end].to_vec()),
        })
        .await;
        let http = http(address, |_| {});

        let outcomes = attempts(&http, 2).await;

        let class = outcomes[1].failure().map_or("", |failure| &*failure.class);
        match end {
            // A new connection answers its first request.
            0 => assert_eq!((class, counts.requests()), ("", 3)),
            1..13 => assert_eq!((class, counts.requests()), ("reply", 2), "{end}"),
            _ => assert_eq!((class, counts.requests()), ("", 2), "{end}"),
        }
    }
}

#[tokio::test]
async fn a_goodbye_to_an_idle_connection_is_no_answer() {
    let goodbye = b"HTTP/1.1 408 Request Time-out\r\nconnection: close\r\n\r\n";
    let (address, _) = serve_act(move |_, request| match request {
        0 => ok(),
        _ => Act::Finish(goodbye.to_vec()),
    })
    .await;

    let outcomes = attempts(&http(address, |_| {}), 3).await;

    assert_eq!(outcomes, vec![Outcome::Success; 3]);
}

#[tokio::test]
async fn a_connection_is_kept_as_long_as_both_sides_say() {
    type Change = fn(&mut Config);
    let same: Change = |_| {};
    for (said, change, expected) in [
        ("", same, 1),
        ("keep-alive: timeout=5\r\n", same, 1),
        ("Keep-Alive: max=100, timeout=1\r\n", same, 3),
        ("connection: close\r\n", same, 3),
        ("", |config| config.idle_timeout = Some(Duration::ZERO), 3),
        ("", |config| config.max_age = Some(Duration::ZERO), 3),
    ] {
        let answer = format!("HTTP/1.1 200 OK\r\n{said}content-length: 0\r\n\r\n");
        let (address, counts) = serve_act(move |_, _| Act::Say(answer.clone().into())).await;

        let outcomes = attempts(&http(address, change), 3).await;

        all_succeed(&outcomes, &counts);
        assert_eq!(counts.connections(), expected, "{said}");
    }
}

#[tokio::test]
async fn an_idle_connection_is_closed_though_nobody_asks_for_it() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let http = http(address, |config| {
        config.idle_timeout = Some(Duration::from_millis(50));
    });

    // The target lives on, so that it is not its end that closes the connection.
    let attempt = tokio::spawn(async move { (attempts(&http, 1).await, http) });
    let (mut socket, _) = listener.accept().await.expect("a connection");
    let mut bytes = [0; 4096];
    let _ = socket.read(&mut bytes).await.expect("a request");
    let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
    socket.write_all(answer).await.expect("it is written");
    let (outcomes, _http) = attempt.await.expect("no panic");

    assert_eq!(outcomes, [Outcome::Success]);
    let end = tokio::time::timeout(Duration::from_secs(30), socket.read(&mut bytes)).await;
    assert_eq!(end.expect("in time").expect("an end"), 0);
}

#[tokio::test]
async fn after_the_breaker_has_opened_connections_are_new() {
    let (address, counts) = serve_act(|_, _| ok()).await;
    let http = http(address, |_| {});

    attempts(&http, 2).await;
    http.renew("http://elsewhere.example:80");
    attempts(&http, 2).await;
    let before = counts.connections();
    http.renew(&format!("http://{address}"));
    attempts(&http, 2).await;

    assert_eq!([before, counts.connections()], [1, 2]);
}

#[tokio::test]
async fn a_connection_to_an_address_that_the_name_has_no_more_is_given_up() {
    let (address, counts) = serve_act(|_, _| ok()).await;
    let mut connections = Vec::new();
    let http = http(address, |_| {});

    for addresses in [
        vec![address.ip()],
        vec![[127, 0, 0, 2].into(), address.ip()],
        vec![[127, 0, 0, 2].into()],
    ] {
        http.client.found(addresses);
        attempts(&http, 2).await;
        connections.push(counts.connections());
    }

    assert_eq!(connections, [1, 1, 3]);
}

#[tokio::test]
async fn a_connection_that_answers_5xx_is_given_up_after_a_while() {
    let busy = b"HTTP/1.1 503 Busy\r\ncontent-length: 0\r\n\r\n";
    let (address, counts) = serve_act(move |_, _| Act::Say(busy.to_vec())).await;
    let http = http(address, |_| {});
    let start = Instant::now();

    while counts.connections() < 2 && start.elapsed() < Duration::from_secs(30) {
        attempts(&http, 1).await;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }

    assert_eq!(counts.connections(), 2);
    assert!(counts.requests() > 2, "it is kept for its first second");
}

#[tokio::test]
async fn who_waits_takes_a_connection_that_is_given_back() {
    // Nobody takes further connections: all but the first wait in the queue of the listener, or before it.
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(async move {
        let (mut socket, _) = listener.accept().await.expect("a connection");
        let mut bytes = [0; 4096];
        while matches!(socket.read(&mut bytes).await, Ok(1..)) {
            let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
            socket.write_all(answer).await.expect("it is written");
        }
        drop(listener);
    });
    let http = http(address, |_| {});

    let outcomes = attempts(&http, 10).await;

    assert_eq!(outcomes, vec![Outcome::Success; 10]);
}

#[tokio::test]
async fn a_success_is_one_at_its_head_whatever_its_body_does() {
    for head in [
        "HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nok",
        "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n: a\n\n",
        "HTTP/1.1 204 No Content\r\n\r\n",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz",
        "HTTP/1.1 200 OK\r\nx: never ended",
    ] {
        let (address, counts) = serve_act(move |_, _| Act::Hang(head.into())).await;
        let is_whole = !head.contains("never");
        let timeout = Duration::from_secs(if is_whole { 8 } else { 1 });
        let http = http(address, |config| config.timeout = timeout);
        let start = Instant::now();

        let outcomes = attempts(&http, 1).await;

        all_succeed(&outcomes, &counts);
        assert_eq!(start.elapsed() < timeout, is_whole, "{head}");
    }
}

#[tokio::test]
async fn a_failure_waits_a_second_for_its_message_and_not_more() {
    let head = "HTTP/1.1 500 Oh\r\ncontent-length: 100\r\n\r\nsome";
    let (address, _) = serve_act(move |_, _| Act::Hang(head.into())).await;
    let http = http(address, |config| config.timeout = Duration::from_mins(1));
    let start = Instant::now();

    let outcomes = attempts(&http, 1).await;

    assert_eq!(outcomes, [Outcome::Retryable(failure("http-500", "some"))]);
    assert!(start.elapsed() < Duration::from_secs(30));
}

/// A target at `address`, which speaks TLS by this certificate.
fn secure(
    address: SocketAddr,
    certificate: &rustls::pki_types::CertificateDer<'_>,
    change: impl FnOnce(&mut Config),
) -> Http {
    let mut config = Config::new(format!("https://localhost:{}/", address.port()));
    change(&mut config);
    let (outbound, ca) = trusting(certificate);
    let http = Http::within(config, &outbound).expect("a valid configuration");
    // The file is read with the first connection.
    std::mem::forget(ca);
    http
}

#[tokio::test]
async fn go_away_and_refused_streams_cost_no_attempt() {
    type Act = fn(usize, usize) -> Stream;
    let cases: [(&str, u32, Act); 3] = [
        ("go away", 100, |_, stream| match stream {
            0..10 => Stream::Answer,
            _ => Stream::GoAway,
        }),
        ("refused", 100, |_, stream| match stream % 2 {
            0 => Stream::Answer,
            _ => Stream::Reset(7),
        }),
        ("few streams", 4, |_, _| Stream::Answer),
    ];
    for (name, most, act) in cases {
        let (address, certificate, counts) = serve_two(most, act).await;
        let http = secure(address, &certificate, |config| {
            config.permanent = vec![Status::NoAnswer(NoAnswer::Reply)];
            config.timeout = Duration::from_mins(1);
        });

        let outcomes = attempts_at_once(http, 64).await;

        all_succeed(&outcomes, &counts);
        // A target that takes few streams is given more connections.
        let least = if most < 64 { 2 } else { 1 };
        assert!(counts.connections() >= least, "{name}");
        assert!(
            counts.connections() < 40,
            "{name}: {}",
            counts.connections()
        );
    }
}

#[tokio::test]
async fn a_handshake_that_hangs_fails_nobody_and_the_next_address_is_tried() {
    // Who comes to the first address is heard by nobody.
    let silent = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = silent.local_addr().expect("an address").port();
    let listener = TcpListener::bind(("127.0.0.2", port)).await;
    let listener = listener.expect("the same port");
    let (acceptor, certificate) = raw::tls(&[b"h2"]);
    let counts = Counts::default();
    let served = serve_two_at(
        listener,
        acceptor,
        100,
        |_, _| Stream::Answer,
        counts.clone(),
    );
    tokio::spawn(served);
    let target = SocketAddr::new([127, 0, 0, 1].into(), port);
    let http = secure(target, &certificate, |config| {
        config.timeout = Duration::from_mins(1);
        config.connect_timeout = Some(Duration::from_secs(20));
    });
    let names = vec![[127, 0, 0, 1].into(), [127, 0, 0, 2].into()];
    http.client.resolves_by(Arc::new(Mutex::new(names)));

    let outcomes = attempts_at_once(http, 20).await;

    all_succeed(&outcomes, &counts);
    drop(silent);
}

#[tokio::test]
async fn a_dial_of_http_1_1_that_hangs_is_not_waited_for_either() {
    let (acceptor, certificate) = raw::tls(&[b"http/1.1"]);
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let gate = Arc::new(tokio::sync::Semaphore::new(1));
    let opened = Arc::clone(&gate);
    let (tell, mut told) = tokio::sync::mpsc::channel(16);
    tokio::spawn(async move {
        let mut silent = Vec::new();
        for connection in 0.. {
            let (socket, _) = listener.accept().await.expect("a connection");
            if connection == 1 {
                silent.push(socket);
                continue;
            }
            let (acceptor, gate, tell) = (acceptor.clone(), Arc::clone(&opened), tell.clone());
            tokio::spawn(async move {
                let mut socket = acceptor.accept(socket).await.expect("a handshake");
                let mut bytes = [0; 4096];
                while matches!(socket.read(&mut bytes).await, Ok(1..)) {
                    tell.send(connection).await.expect("it listens");
                    if connection == 0 {
                        gate.acquire().await.expect("it is open").forget();
                    }
                    let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
                    socket.write_all(answer).await.expect("it is written");
                }
            });
        }
    });
    let http = Arc::new(secure(address, &certificate, |config| {
        config.timeout = Duration::from_mins(1);
    }));
    let call = || {
        let http = Arc::clone(&http);
        tokio::spawn(async move { http.attempt(Arc::new(fixture::task(&[]))).await.outcome })
    };
    assert_eq!(call().await.expect("no panic"), Outcome::Success);
    assert_eq!(told.recv().await, Some(0));

    // The first one has the kept connection, the second one a dial that hangs, until it is given that of the first one.
    let first = call();
    assert_eq!(told.recv().await, Some(0));
    let second = call();
    tokio::task::yield_now().await;
    gate.add_permits(1);
    assert_eq!(first.await.expect("no panic"), Outcome::Success);
    let of_second = told.recv().await;
    let third = call().await.expect("no panic");
    gate.add_permits(1);

    assert_eq!(third, Outcome::Success);
    assert_eq!(second.await.expect("no panic"), Outcome::Success);
    assert!(of_second.is_some());
}

#[tokio::test]
async fn a_dial_that_fails_is_not_the_failure_of_who_came_after_it_began() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let (release, released) = tokio::sync::oneshot::channel::<()>();
    let (acceptor, certificate) = raw::tls(&[b"h2"]);
    let counts = Counts::default();
    let seen = counts.clone();
    tokio::spawn(async move {
        let (mut socket, _) = listener.accept().await.expect("a connection");
        tokio::spawn(async move {
            let _ = released.await;
            // This is nothing of TLS, and nobody asks again for that.
            let _ = socket.write_all(b"HTTP/1.1 400 Bad\r\n\r\n").await;
            let _ = socket.read(&mut [0; 4096]).await;
        });
        serve_two_at(listener, acceptor, 100, |_, _| Stream::Answer, seen).await;
    });
    let http = Arc::new(secure(address, &certificate, |config| {
        config.timeout = Duration::from_mins(1);
    }));
    let call = |http: &Arc<Http>| {
        let http = Arc::clone(http);
        tokio::spawn(async move { http.attempt(Arc::new(fixture::task(&[]))).await.outcome })
    };

    let first = call(&http);
    tokio::task::yield_now().await;
    let others: Vec<_> = (0..20).map(|_| call(&http)).collect();
    tokio::task::yield_now().await;
    release.send(()).expect("it waits");

    let mut outcomes = Vec::new();
    for one in others {
        outcomes.push(one.await.expect("no panic"));
    }
    let failed: Vec<_> = outcomes.iter().filter_map(Outcome::failure).collect();
    assert!(failed.is_empty(), "{failed:?}");
    // The first one, too, if this machine has stood still for so long that its dial was taken to hang.
    let outcome = first.await.expect("no panic");
    let class = outcome.failure().map_or("tls", |failure| &*failure.class);
    assert_eq!(class, "tls", "{outcome:?}");
    assert!(counts.requests() >= 20);
}

#[tokio::test]
async fn a_stream_turned_away_is_unsent_where_nothing_is_sent_twice() {
    for act in [Stream::Reset(7), Stream::GoAway] {
        let (address, certificate, _) = serve_two(100, move |_, _| act).await;
        let http = secure(address, &certificate, |config| config.resend = false);

        let outcomes = attempts(&http, 1).await;

        let failure = outcomes[0].failure().expect("it is turned away");
        assert_eq!(&*failure.class, "unsent", "{failure}");
    }
}

#[tokio::test]
async fn a_target_that_turns_all_away_is_a_connect_when_the_time_is_up() {
    let (address, certificate, counts) = serve_two(100, |_, _| Stream::Reset(7)).await;
    let http = secure(address, &certificate, |config| {
        config.timeout = Duration::from_secs(2);
    });
    let mut ends = Vec::new();

    // A machine that stands still at the wrong moment makes a timeout of the last try.
    while ends.len() < 5 && !ends.iter().any(|class| class == "connect") {
        let outcome = attempts(&http, 1).await.remove(0);
        let failure = outcome.failure().expect("it is turned away").clone();
        ends.push(failure.class.to_string());
        assert!(
            &*failure.class == "timeout" || failure.message.contains("REFUSED_STREAM"),
            "{failure}"
        );
    }

    assert_eq!(ends.last().map(String::as_str), Some("connect"));
    assert_eq!(counts.requests(), 0);
}

#[tokio::test]
async fn a_stream_that_may_have_been_processed_is_a_reply() {
    // CANCEL, and a connection that ends under its first stream.
    for act in [Stream::Reset(8), Stream::Close] {
        let (address, certificate, _) = serve_two(100, move |_, _| act).await;
        let http = secure(address, &certificate, |_| {});

        let outcomes = attempts(&http, 1).await;

        let failure = outcomes[0].failure().expect("no answer");
        assert_eq!(&*failure.class, "reply", "{failure}");
    }
}

#[tokio::test]
async fn a_kept_connection_of_http_2_that_is_closed_costs_no_attempt() {
    let (address, certificate, counts) = serve_two(100, |_, stream| match stream {
        0 => Stream::Answer,
        _ => Stream::Close,
    })
    .await;
    let http = secure(address, &certificate, |_| {});

    let outcomes = attempts(&http, 5).await;

    all_succeed(&outcomes, &counts);
}

#[tokio::test]
async fn a_target_that_asks_for_http_1_1_is_asked_so() {
    let (address, certificate, counts) = serve_two(100, |_, _| Stream::Reset(0xd)).await;
    let http = secure(address, &certificate, |_| {});

    let outcomes = attempts(&http, 3).await;

    all_succeed(&outcomes, &counts);
    assert_eq!(
        counts.connections(),
        2,
        "one of HTTP/2, then one of HTTP/1.1"
    );
}
