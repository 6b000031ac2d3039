//! A name that moves to another address while its old one fails.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use super::raw::{Act, ok, serve_at};
use super::*;

/// Addresses of this machine.
const OLD: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2));
const NEW: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 3));

/// Longest time until a name is followed: less than two questions for its addresses are apart from each other, and what is between them.
const SECONDS: Duration = Duration::from_secs(8);

/// How the old address fails, keeping its connections where it can.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fails {
    /// It answers 503.
    Unavailable,
    /// It takes requests and does not answer.
    Hangs,
    /// It closes connections as requests come.
    Closes,
    /// It closes connections and takes no new ones.
    Refuses,
}

/// Calls, until the name has been followed; fails if that takes long, and if another call goes to the old address after that.
async fn follow(fails: Fails) {
    let old = TcpListener::bind((OLD, 0)).await.expect("a port");
    let port = old.local_addr().expect("an address").port();
    let new = TcpListener::bind((NEW, port)).await.expect("the same port");
    let has_moved = Arc::new(AtomicBool::new(false));
    let moved = Arc::clone(&has_moved);
    let (old, listening) = serve_at(old, move |_, _| {
        if !moved.load(Ordering::SeqCst) {
            return ok();
        }
        match fails {
            Fails::Unavailable => {
                Act::Say(b"HTTP/1.1 503 Gone\r\ncontent-length: 0\r\n\r\n".to_vec())
            }
            Fails::Hangs => Act::Hang(Vec::new()),
            Fails::Closes | Fails::Refuses => Act::Close,
        }
    });
    let (new, _) = serve_at(new, |_, _| ok());
    let names = Arc::new(Mutex::new(vec![OLD]));
    let mut config = Config::new(format!("http://shop.test:{port}/"));
    config.timeout = Duration::from_millis(500);
    let http = Http::try_new(config).expect("a valid configuration");
    http.client.resolves_by(Arc::clone(&names));
    let call = async || http.attempt(Arc::new(fixture::task(&[]))).await.outcome;

    // For longer than addresses are taken for granted.
    let start = Instant::now();
    while start.elapsed() < Duration::from_millis(1_100) {
        assert_eq!(call().await, Outcome::Success);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let before = old.requests();
    *names.lock().expect("no panic") = vec![NEW];
    has_moved.store(true, Ordering::SeqCst);
    if fails == Fails::Refuses {
        listening.abort();
    }
    let start = Instant::now();
    while new.requests() == 0 {
        let outcome = call().await;
        assert!(start.elapsed() < SECONDS, "{fails:?}: {outcome:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let last = old.requests();
    for _ in 0..20 {
        assert_eq!(call().await, Outcome::Success, "{fails:?}");
    }

    assert!(before > 0, "{fails:?}: it was well");
    assert_eq!(old.requests(), last, "{fails:?}: nobody looks back");
}

#[tokio::test]
async fn a_name_that_moves_is_followed_within_seconds_of_its_old_address_failing() {
    tokio::join!(
        follow(Fails::Unavailable),
        follow(Fails::Hangs),
        follow(Fails::Closes),
        follow(Fails::Refuses),
    );
}
