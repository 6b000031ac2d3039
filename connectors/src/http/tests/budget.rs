//! How long each part of an attempt may take, and what it is called that it took longer.

use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};
use std::time::Instant;

use socket2::{Domain, Socket, Type};

use super::*;

/// A listener whose queue is full: who connects to it hears nothing.
struct Hole {
    address: SocketAddr,
    listener: Socket,
    queued: Vec<tokio::net::TcpStream>,
}

/// A hole at this address of the loopback, and port; 0 for any.
async fn hole(ip: [u8; 4], port: u16) -> Hole {
    let listener = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    let address = SocketAddrV4::new(Ipv4Addr::from(ip), port);
    listener.bind(&address.into()).expect("a port");
    listener.listen(0).expect("it listens");
    let address = listener.local_addr().expect("an address");
    let address = address.as_socket().expect("one of IP");
    let mut queued = Vec::new();
    loop {
        let connect = tokio::net::TcpStream::connect(address);
        let Ok(Ok(stream)) = tokio::time::timeout(Duration::from_millis(300), connect).await else {
            break;
        };
        queued.push(stream);
    }
    Hole {
        address,
        listener,
        queued,
    }
}

#[tokio::test]
async fn a_black_hole_is_a_connect_within_its_time() {
    let hole = hole([127, 0, 0, 1], 0).await;
    let start = Instant::now();

    let outcome = attempt(Config {
        timeout: Duration::from_mins(1),
        connect_timeout: Some(Duration::from_millis(300)),
        ..config(hole.address)
    })
    .await;

    let failure = outcome.failure().expect("nobody answers");
    assert_eq!(&*failure.class, "connect", "{failure}");
    assert!(start.elapsed() < Duration::from_secs(30));
}

#[tokio::test]
async fn a_black_hole_at_the_first_address_costs_a_moment() {
    let hole = hole([127, 0, 0, 7], 0).await;
    let good = SocketAddr::new(IpAddr::from([127, 0, 0, 8]), hole.address.port());
    let listener = TcpListener::bind(good).await.expect("the same port");
    raw::serve_at(listener, |_, _| raw::ok());
    let url = format!("http://shop.test:{}/", good.port());
    let config = Config {
        timeout: Duration::from_secs(30),
        ..Config::new(url)
    };
    let http = Http::try_new(config).expect("a valid configuration");
    let names = vec![hole.address.ip(), good.ip()];
    http.client.resolves_by(Arc::new(Mutex::new(names)));

    let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
    let addresses = [hole.address.ip(), good.ip()];
    let dialled = dial::connect(&addresses, good.port(), deadline).await;
    let attempt = http.attempt(Arc::new(fixture::task(&[]))).await;

    // Beside the first one, and not for the pool's second dial.
    assert_eq!(dialled.ok().map(|(_, peer)| peer), Some(good.ip()));
    assert_eq!(attempt.outcome, Outcome::Success);
}

#[tokio::test]
async fn a_full_queue_that_has_room_again_is_found() {
    let mut hole = hole([127, 0, 0, 9], 0).await;
    let addresses = [hole.address.ip()];
    let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
    let port = hole.address.port();
    let dialled = tokio::spawn(async move { dial::connect(&addresses, port, deadline).await });

    // Whoever is in the queue leaves it, one after the other, as the listener takes them.
    hole.queued.clear();
    let listener = hole.listener.try_clone().expect("a handle");
    let taker = std::thread::spawn(move || {
        while let Ok((socket, _)) = listener.accept() {
            drop(socket);
        }
    });

    let (_, peer) = dialled.await.expect("no panic").expect("it is taken");
    assert_eq!(peer, hole.address.ip());
    hole.listener
        .shutdown(std::net::Shutdown::Both)
        .expect("it ends");
    taker.join().expect("no panic");
}

#[tokio::test]
async fn a_target_that_is_back_within_a_moment_costs_no_attempt() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    drop(listener);
    let attempt = tokio::spawn(attempt(config(address)));
    tokio::time::sleep(Duration::from_millis(200)).await;

    let listener = TcpListener::bind(address).await.expect("the same port");
    raw::serve_at(listener, |_, _| raw::ok());

    assert_eq!(attempt.await.expect("no panic"), Outcome::Success);
}

#[tokio::test]
async fn each_stage_that_hangs_has_its_name() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let silent = listener.local_addr().expect("an address");
    for (url, class) in [
        (format!("http://{silent}/"), "timeout"),
        (format!("https://{silent}/"), "tls"),
        ("http://no-such-name.invalid/".to_owned(), "dns"),
    ] {
        let outcome = attempt(Config {
            timeout: Duration::from_millis(500),
            ..Config::new(url)
        })
        .await;

        let failure = outcome.failure().expect("nobody answers");
        assert_eq!(&*failure.class, class, "{failure}");
    }
}

#[tokio::test]
async fn https_at_a_port_without_tls_and_the_other_way_round_are_named() {
    let (plain, _) = serve((200, &[], "")).await;
    let (acceptor, _) = raw::tls(&[b"http/1.1"]);
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let secure = listener.local_addr().expect("an address");
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            let _ = acceptor.accept(socket).await;
        }
    });

    let wrong = attempt(Config::new(format!("https://{plain}/"))).await;
    let other = attempt(config(secure)).await;

    let class = |outcome: &Outcome| outcome.failure().expect("it fails").class.clone();
    assert_eq!(&*class(&wrong), "tls", "{wrong:?}");
    assert_eq!(&*class(&other), "malformed", "{other:?}");
}
