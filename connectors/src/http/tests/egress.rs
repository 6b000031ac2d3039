//! What is not dialled, however it is written, with canaries that notice any connection.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::atomic::{AtomicUsize, Ordering};

use socket2::{Domain, Socket, Type};
use tokio::time::Instant;

use super::*;
use crate::Outbound;
use crate::egress;
use crate::http::dial::{Dialer, Stage};
use crate::tls::Alpn;

/// A listener at every address of this machine, at one port, which counts who connects.
struct Canary {
    port: u16,
    seen: Arc<AtomicUsize>,
    /// Whether it listens at addresses of IPv6.
    six: bool,
}

impl Canary {
    fn start() -> Self {
        let six = Socket::new(Domain::IPV6, Type::STREAM, None).and_then(|socket| {
            socket.set_only_v6(false)?;
            socket.bind(&SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)).into())?;
            socket.listen(1024)?;
            Ok(std::net::TcpListener::from(socket))
        });
        let is_six = six.is_ok();
        let listener = six.unwrap_or_else(|_| {
            std::net::TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).expect("a port")
        });
        listener.set_nonblocking(true).expect("a socket");
        let listener = TcpListener::from_std(listener).expect("a listener");
        let port = listener.local_addr().expect("an address").port();
        let seen = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&seen);
        tokio::spawn(async move {
            while let Ok((mut socket, _)) = listener.accept().await {
                counted.fetch_add(1, Ordering::SeqCst);
                tokio::spawn(async move {
                    let _ = socket.read(&mut [0; 4096]).await;
                    let answer =
                        b"HTTP/1.1 403 No\r\nconnection: close\r\ncontent-length: 6\r\n\r\nSECRET";
                    let _ = socket.write_all(answer).await;
                });
            }
        });
        Self {
            port,
            seen,
            six: is_six,
        }
    }

    fn seen(&self) -> usize {
        self.seen.load(Ordering::SeqCst)
    }
}

/// The process's rules.
fn outbound(rules: &str) -> Outbound {
    let egress: egress::Config = toml::from_str(rules).expect("rules");
    Outbound {
        egress: Arc::new(egress),
        ..Outbound::default()
    }
}

/// What comes of an attempt by the rules of a process.
async fn attempt_within(host: &str, port: u16, outbound: &Outbound) -> Outcome {
    let url = format!("http://{host}:{port}/");
    let config = Config {
        timeout: Duration::from_secs(20),
        ..Config::new(url)
    };
    let http = Http::within(config, outbound).unwrap_or_else(|error| panic!("{host}: {error}"));
    http.attempt(Arc::new(fixture::task(&[]))).await.outcome
}

/// An address of IPv4 in the ways in which URLs take it.
fn spellings(address: Ipv4Addr) -> BTreeSet<String> {
    let [a, b, c, d] = address.octets();
    let bits = address.to_bits();
    let (last_two, last_three) = (bits & 0xffff, bits & 0x00ff_ffff);
    let wide = |text: &str| -> String {
        let wide = |digit: char| match digit {
            '0'..='9' => char::from_u32(u32::from(digit) - 0x30 + 0xff10).expect("a digit"),
            other => other,
        };
        text.chars().map(wide).collect()
    };
    let plain = address.to_string();
    [
        plain.clone(),
        format!("{plain}."),
        format!("{bits}"),
        format!("{bits}."),
        format!("0x{bits:x}"),
        format!("0X{bits:X}"),
        format!("0{bits:o}"),
        format!("0x{a:x}.0x{b:x}.0x{c:x}.0x{d:x}"),
        format!("0x{a:02x}.{b}.0{c:o}.{d}"),
        format!("0{a:o}.0{b:o}.0{c:o}.0{d:o}"),
        format!("000{a:o}.000{b:o}.000{c:o}.000{d:o}"),
        format!("{a}.{last_three}"),
        format!("{a}.{b}.{last_two}"),
        format!("0x{a:x}.0x{last_three:x}"),
        format!("0{a:o}.0x{b:x}.{last_two}"),
        format!("0x{a:x}.{b}.0{last_two:o}"),
        wide(&plain),
        wide(&format!("{bits}")),
        plain.replace('.', "。"),
        plain.replace('.', "．"),
        plain.replace('.', "%2e"),
        format!("%{:02x}{}", plain.as_bytes()[0], &plain[1..]),
        format!("[::ffff:{plain}]"),
        format!("[::FFFF:{:x}:{:x}]", bits >> 16, last_two),
        format!("[0:0:0:0:0:ffff:{plain}]"),
        format!(
            "[0000:0000:0000:0000:0000:ffff:{:04x}:{:04x}]",
            bits >> 16,
            last_two
        ),
    ]
    .into_iter()
    .collect()
}

/// The forms of IPv6 that carry an address of IPv4, which a router may turn back.
fn carried(address: Ipv4Addr) -> BTreeSet<String> {
    let bits = address.to_bits();
    let (high, low) = (bits >> 16, bits & 0xffff);
    let turned = !bits;
    [
        format!("[::{address}]"),
        format!("[::ffff:0:{address}]"),
        format!("[64:ff9b::{address}]"),
        format!("[64:ff9b::{high:x}:{low:x}]"),
        format!("[64:ff9b:1::{address}]"),
        format!(
            "[64:ff9b:1:{high:x}:{:x}:{:x}::]",
            low >> 8,
            (low & 0xff) << 8
        ),
        format!("[2002:{high:x}:{low:x}::]"),
        format!("[2002:{high:x}:{low:x}::1]"),
        format!("[2001:0:{high:x}:{low:x}::1]"),
        format!("[2001::{:x}:{:x}]", turned >> 16, turned & 0xffff),
        format!("[2600::5efe:{address}]"),
    ]
    .into_iter()
    .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_spelling_of_this_machine_gets_past_the_guard() {
    let canary = Canary::start();
    let off = outbound("deny = []");
    let on = [
        outbound("deny = ['loopback']"),
        outbound("only = 'public'"),
        outbound(
            "only = 'allowed'\nallow = ['10.0.0.0/8', 'localhost.example', '*.local', '*.localhost']",
        ),
        outbound(&format!("ports = [{}]", canary.port ^ 1)),
    ];
    let mut hosts = BTreeSet::new();
    for address in ["127.0.0.1", "127.8.9.10", "127.255.255.254", "0.0.0.0"] {
        hosts.extend(spellings(address.parse().expect("an address")));
    }
    for name in ["localhost", "LOCALHOST", "ｌocalhost", "loc%61lhost"] {
        hosts.insert(name.to_owned());
    }
    if canary.six {
        for six in [
            "[::1]",
            "[::]",
            "[0:0:0:0:0:0:0:1]",
            "[0000::0001]",
            "[0::0:0]",
        ] {
            hosts.insert(six.to_owned());
        }
    } else {
        hosts.retain(|host| !host.starts_with('['));
    }
    assert!(hosts.len() >= 75, "{}", hosts.len());

    for host in &hosts {
        let before = canary.seen();
        let reached = attempt_within(host, canary.port, &off).await;
        assert_eq!(
            canary.seen(),
            before + 1,
            "{host} is a way here: {reached:?}"
        );
        let answer = failure("http-403", "SECRET");
        assert_eq!(reached.failure(), Some(&answer), "{host}");

        for guard in &on {
            let outcome = attempt_within(host, canary.port, guard).await;

            let Outcome::Permanent(failure) = outcome else {
                panic!("{host}: {outcome:?}");
            };
            assert_eq!(&*failure.class, "egress", "{host}");
        }
        assert_eq!(canary.seen(), before + 1, "{host} got past the guard");
    }
}

#[tokio::test]
async fn nothing_inside_is_dialled_where_only_public_addresses_are() {
    let outbound = outbound("only = 'public'");
    let mut hosts: BTreeSet<String> = [
        "224.0.0.1",
        "239.1.2.3",
        "255.255.255.255",
        "240.0.0.1",
        "192.0.2.1",
        "198.18.0.1",
        "192.0.0.192",
        "[fe80::1]",
        "[fec0::1]",
        "[fc00::1]",
        "[fd00:ec2::254]",
        "[fd20:ce::254]",
        "[ff02::1]",
        "[2001:db8::1]",
        "[100::1]",
        "[64:ff9b:1::808:808]",
    ]
    .map(str::to_owned)
    .into();
    for address in [
        "10.0.0.1",
        "172.16.0.1",
        "192.168.0.1",
        "100.64.0.1",
        "100.100.100.200",
        "169.254.169.254",
        "168.63.129.16",
        "127.0.0.1",
    ] {
        let address = address.parse().expect("an address");
        hosts.extend(spellings(address));
        hosts.extend(carried(address));
    }
    assert!(hosts.len() >= 200, "{}", hosts.len());

    for host in hosts {
        let outcome = attempt_within(&host, 80, &outbound).await;

        let failure = outcome.failure().expect("not dialled");
        assert_eq!(&*failure.class, "egress", "{host}: {failure}");
    }
}

#[tokio::test]
async fn by_default_metadata_is_not_dialled_and_a_scene_may_want_it_tried_again() {
    let metadata: Ipv4Addr = "169.254.169.254".parse().expect("an address");
    let hosts = spellings(metadata).into_iter().chain(carried(metadata));
    for host in hosts.chain(["[fd00:ec2::254]".to_owned(), "[fe80::1]".to_owned()]) {
        let outcome = attempt_within(&host, 80, &Outbound::default()).await;

        let failure = outcome.failure().expect("not dialled");
        assert_eq!(&*failure.class, "egress", "{host}: {failure}");
        assert_eq!(outcome.word(), "permanent");
    }

    let text = "url = 'http://169.254.169.254/'\nretryable = ['egress']";
    let outcome = attempt(toml::from_str(text).expect("a target")).await;
    assert_eq!(outcome.word(), "retryable");
}

#[tokio::test]
async fn an_address_is_checked_each_time_it_is_dialled() {
    let good = Canary::start();
    let outbound = outbound("only = 'public'\nallow = ['127.0.0.9', '*.trusted.example']");
    let dial = async |host: &str, addresses: &[&str]| {
        let url = format!("http://{host}:{}/", good.port);
        let url = url::Url::parse(&url).expect("an address");
        let dialer = Dialer::new(&url, Arc::clone(&outbound.egress), None);
        let mut results = Vec::new();
        for addresses in addresses {
            let addresses: Vec<IpAddr> = addresses
                .split(' ')
                .map(|address| address.parse().expect("an address"))
                .collect();
            dialer.knows(&addresses);
            let deadline = Instant::now() + Duration::from_secs(20);
            let made = dialer.dial(Alpn::Any, 0, &Stage::default(), deadline).await;
            let made = made.map(|made| made.peer.to_string());
            results.push(made.map_err(|undialed| (undialed.way, undialed.message)));
        }
        results
    };
    let denied = |message: &str| Err((NoAnswer::Egress, message.to_owned()));
    let loopback = "rebind.example is a loopback address, which [egress] does not allow";

    // A name that moves, one that is both, and one of which all addresses are inside.
    let moved = dial(
        "rebind.example",
        &[
            "127.0.0.9",
            "127.0.0.1",
            "127.0.0.9",
            "::ffff:127.0.0.1",
            "10.0.0.1 127.0.0.9",
            "10.0.0.1 127.0.0.1",
        ],
    )
    .await;
    assert_eq!(
        moved,
        [
            Ok("127.0.0.9".to_owned()),
            denied(loopback),
            Ok("127.0.0.9".to_owned()),
            denied(loopback),
            Ok("127.0.0.9".to_owned()),
            denied(loopback),
        ]
    );
    // What is trusted by its name is dialled wherever it is, but for metadata.
    let trusted = dial("a.trusted.example", &["127.0.0.1", "169.254.169.254"]).await;
    assert_eq!(trusted[0], Ok("127.0.0.1".to_owned()));
    assert_eq!(
        trusted[1],
        denied("a.trusted.example is a metadata address, which [egress] does not allow")
    );
    // Those that were dialled, as far as it has noticed them.
    assert!(good.seen() <= 4);
}

#[tokio::test]
async fn answers_are_no_part_of_errors_where_they_are_kept_out() {
    let kept = outbound("error_bodies = false");
    let ask = async |head: &'static [u8]| {
        let address = serve_raw(head, b"").await;
        let outcome = attempt_within("127.0.0.1", address.port(), &kept).await;
        outcome.failure().expect("it failed").clone()
    };

    let refused = ask(b"HTTP/1.1 403 secret\r\ncontent-length: 6\r\n\r\nSECRET").await;
    assert_eq!(refused, failure("http-403", "Forbidden"));
    let odd = ask(b"-ERR unknown command SECRET\r\n\r\n").await;
    assert_eq!(&*odd.class, "malformed");
    assert!(!odd.message.contains("SECRET"), "{odd}");
}
