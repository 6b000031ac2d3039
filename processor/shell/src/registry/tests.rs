//! What a registry is asked, and how.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use base64::prelude::{BASE64_STANDARD, Engine as _};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::crypto::ring;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use tempfile::TempDir;
use tokio::runtime::Runtime;

use retide_config::{Overrides, Source};

use super::*;

use crate::librdkafka::Librdkafka;

/// Answers requests one after the other from `answers`, by their paths; the heads of the requests.
fn serve(
    tls: Option<Arc<ServerConfig>>,
    answers: &'static [(&'static str, &'static str)],
) -> (SocketAddr, Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (heads, requests) = channel();
    thread::spawn(move || {
        while let Ok((socket, _)) = listener.accept() {
            match &tls {
                None => answer_one(socket, answers, &heads),
                Some(config) => {
                    let session = ServerConnection::new(Arc::clone(config)).unwrap();
                    answer_one(StreamOwned::new(session, socket), answers, &heads);
                }
            }
        }
    });
    (address, requests)
}

fn answer_one(
    mut stream: impl Read + Write,
    answers: &[(&'static str, &'static str)],
    heads: &Sender<String>,
) {
    let (mut head, mut buffer) = (Vec::new(), [0; 4096]);
    while !head.windows(4).any(|end| end == b"\r\n\r\n") {
        match stream.read(&mut buffer) {
            Ok(read) if read > 0 => head.extend_from_slice(&buffer[..read]),
            _ => return,
        }
    }
    let head = String::from_utf8(head).unwrap();
    let path = head.split(' ').nth(1).unwrap();
    let found = answers.iter().find(|(known, _)| *known == path);
    let missing = r#"{"error_code": 40403, "message": "Schema not found"}"#;
    // What is no JSON is a page of something else at the address.
    let status = |body: &str| {
        let is_page = body.starts_with('<');
        if is_page { "404 Not Found" } else { "200 OK" }
    };
    let (status, body) = found.map_or(("404 Not Found", missing), |(_, body)| (status(body), body));
    let length = body.len();
    let _ = heads.send(head);
    let _ = write!(
        stream,
        "HTTP/1.1 {status}\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}"
    );
    let _ = stream.flush();
}

/// An authority, whose certificate is written to a file, and what it certifies for `localhost`.
fn certified(ca: &Path) -> Arc<ServerConfig> {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().unwrap();
    let authority = params.self_signed(&key).unwrap();
    let base64 = BASE64_STANDARD.encode(authority.der());
    let pem = format!("-----BEGIN CERTIFICATE-----\n{base64}\n-----END CERTIFICATE-----\n");
    fs::write(ca, pem).unwrap();
    let issuer = Issuer::new(params, key);
    let params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    let key = KeyPair::generate().unwrap();
    let certificate = params.signed_by(&key, &issuer).unwrap();
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], key);
    Arc::new(config.unwrap())
}

/// The registry of a configuration.
fn registry(text: &str, runtime: &Runtime) -> Registry {
    let source = Source::text("retide.toml", text.to_owned()).unwrap();
    let config = Config::from_source(&source, &Overrides::default(), &Librdkafka).unwrap();
    Registry::of(&config, runtime.handle()).unwrap()
}

#[test]
fn what_a_schema_refers_to_is_asked_for_as_well() {
    let runtime = Runtime::new().unwrap();
    let (address, requests) = serve(
        None,
        &[
            (
                "/schemas/ids/5",
                r#"{"schema": "{\"type\":\"record\",\"name\":\"RetryTask\",\"namespace\":\"com.shop\",\"fields\":[{\"name\":\"from\",\"type\":\"com.shop.From\"},{\"name\":\"scene\",\"type\":\"string\"},{\"name\":\"payload\",\"type\":\"bytes\"}]}",
                    "references": [{"name": "com.shop.From", "subject": "shop/from value", "version": 2}]}"#,
            ),
            (
                "/subjects/shop%2Ffrom%20value/versions/2",
                r#"{"subject": "shop/from value", "id": 4, "version": 2, "schema": "{\"type\":\"record\",\"name\":\"com.shop.From\",\"fields\":[{\"name\":\"place\",\"type\":\"com.shop.Place\"}]}",
                    "references": [{"name": "com.shop.Place", "subject": "place", "version": 1}]}"#,
            ),
            (
                "/subjects/place/versions/1",
                r#"{"schema": "{\"type\":\"enum\",\"name\":\"com.shop.Place\",\"symbols\":[\"WEB\",\"APP\"]}"}"#,
            ),
            (
                "/schemas/ids/6",
                r#"{"schema": "\"string\"", "references": [{"name": "x", "subject": "gone", "version": 1}]}"#,
            ),
            (
                "/schemas/ids/7",
                r#"{"schema": "{}", "schemaType": "PROTOBUF"}"#,
            ),
        ],
    );
    let registry = registry(
        &format!("[schemas]\nregistry = 'http://{address}/'\n"),
        &runtime,
    );
    let known = &registry.shared.known;

    for id in 5..=8 {
        registry.ask_now(Key::Id(id)).unwrap();
    }

    let meaning = known.meaning(Key::Id(5));
    assert!(matches!(&meaning, Some(Meaning::Writer(_))), "{meaning:?}");
    // What it refers to is gone.
    assert_eq!(known.meaning(Key::Id(6)), Some(Meaning::Missing));
    assert!(
        matches!(known.meaning(Key::Id(7)), Some(Meaning::Other(why)) if why.contains("PROTOBUF"))
    );
    assert_eq!(known.meaning(Key::Id(8)), Some(Meaning::Missing));
    let shown = requests.try_iter().collect::<Vec<_>>().join("\n");
    assert!(!shown.contains("authorization"), "{shown}");
}

#[test]
fn a_registry_over_https_is_shown_a_token_or_a_name_and_trusted_by_its_authority_only() {
    let runtime = Runtime::new().unwrap();
    let folder = TempDir::new().unwrap();
    let ca = folder.path().join("ca.pem");
    let (address, requests) = serve(
        Some(certified(&ca)),
        &[("/registry/schemas/ids/5", r#"{"schema": "\"string\""}"#)],
    );
    let port = address.port();
    let of = |lines: &str| {
        let ca = ca.display();
        let text = format!(
            "[schemas]\nregistry = 'https://localhost:{port}/registry'\n{lines}\n[tls.shop]\nca = '{ca}'\n"
        );
        registry(&text, &runtime).ask_now(Key::Id(5))
    };

    of("tls = 'shop'\ntoken = 'hush'").unwrap();
    of("tls = 'shop'\nusername = 'reader'\npassword = 'secret'").unwrap();
    let stranger = of("token = 'hush'");

    let shown: Vec<String> = requests.try_iter().collect();
    let has = |head: &str, line: &str| head.lines().any(|of| of.eq_ignore_ascii_case(line));
    assert!(has(&shown[0], "authorization: Bearer hush"), "{shown:?}");
    let basic = "authorization: Basic cmVhZGVyOnNlY3JldA==";
    assert!(has(&shown[1], basic), "{shown:?}");
    assert_eq!(shown.len(), 2, "a stranger was shown the token");
    let why = stranger.unwrap_err();
    assert!(why.contains("certificate"), "{why}");
}

#[test]
fn forged_names_take_no_more_than_so_much_memory() {
    let mut questions = Questions::default();
    let now = Instant::now();
    for id in 0..=u32::try_from(MOST_REMEMBERED + 100).unwrap() {
        let at = now + Duration::from_millis(id.into());
        let pause = questions.begin(Key::Id(id), at).unwrap();
        questions.under_way -= 1;
        questions.fail(Key::Id(id), at, pause, "away".into());
    }

    assert!(questions.open.len() <= MOST_REMEMBERED + 1);
    // The last one is remembered, and asked again later and later.
    let last = Key::Id(u32::try_from(MOST_REMEMBERED + 100).unwrap());
    let later = now + Duration::from_hours(1);
    assert_eq!(questions.begin(last, now), None);
    assert_eq!(questions.begin(last, later), Some(PAUSES[0] * 2));
}

#[test]
fn few_questions_are_on_their_way_at_once() {
    let mut questions = Questions::default();
    let now = Instant::now();
    let begun = (0..100).filter(|id| questions.begin(Key::Id(*id), now).is_some());
    assert_eq!(begun.count(), MOST_ASKED);
}

#[test]
fn what_is_no_answer_of_a_registry_says_nothing_of_a_schema() {
    let runtime = Runtime::new().unwrap();
    let (address, _requests) = serve(
        None,
        &[
            ("/schemas/ids/5", "<h1>nothing here</h1>"),
            (
                "/schemas/ids/6",
                r#"{"schema": "\"string\"", "references": [{"name": "x", "subject": "ring", "version": 1}]}"#,
            ),
            (
                "/subjects/ring/versions/1",
                r#"{"schema": "\"string\"", "references": [{"name": "x", "subject": "ring", "version": 1}]}"#,
            ),
            (
                "/schemas/guids/00000000-0000-0000-0000-000000000007",
                r#"{"schema": "\"string\""}"#,
            ),
        ],
    );
    let registry = registry(
        &format!("[schemas]\nregistry = 'http://{address}/'\n"),
        &runtime,
    );
    let known = &registry.shared.known;

    let page = registry.ask_now(Key::Id(5)).unwrap_err();
    registry.ask_now(Key::Guid(7)).unwrap();
    let ring = runtime.block_on(registry.shared.find(Key::Id(6)));

    assert!(page.contains("404"), "{page}");
    assert_eq!(known.meaning(Key::Id(5)), None);
    let meaning = known.meaning(Key::Guid(7));
    assert!(matches!(&meaning, Some(Meaning::Writer(_))), "{meaning:?}");
    assert!(
        matches!(&ring, Err(Failure::Other(why)) if why.contains("64")),
        "{ring:?}"
    );
}

#[test]
fn what_the_registry_does_not_know_is_forgotten_in_time_and_where_it_is_too_much() {
    let runtime = Runtime::new().unwrap();
    let registry = registry("[schemas]\nregistry = 'http://127.0.0.1:9/'\n", &runtime);
    let (now, known) = (Instant::now(), &registry.shared.known);
    let ids = 0..u32::try_from(MOST_REMEMBERED + 5).unwrap();
    for id in ids {
        known.learn(Key::Id(id), Meaning::Missing);
        let mut asked = registry.shared.asked();
        asked.missing.push_back((now + MISSING, Key::Id(id)));
    }

    registry.forget_missing(now);
    let left = registry.shared.asked().missing.len();
    registry.forget_missing(now + MISSING);

    assert_eq!(left, MOST_REMEMBERED);
    assert!(registry.shared.asked().missing.is_empty());
    let last = Key::Id(u32::try_from(MOST_REMEMBERED).unwrap());
    assert_eq!(known.meaning(last), None);
}

#[test]
fn an_answer_lets_what_had_none_be_asked_again_at_once() {
    let mut questions = Questions::default();
    let (now, key) = (Instant::now(), Key::Id(1));
    let pause = questions.begin(key, now).unwrap();
    questions.under_way -= 1;
    questions.fail(key, now, pause, "away".into());
    assert_eq!(questions.begin(key, now), None);

    questions.hurry(now);

    assert_eq!(questions.begin(key, now), Some(PAUSES[0] * 2));
}

#[test]
fn an_answer_without_an_end_is_not_read_to_it() {
    let runtime = Runtime::new().unwrap();
    let text = " ".repeat(MOST_BYTES) + r#"{"schema": "\"string\""}"#;
    let answers = vec![("/schemas/ids/5", &*text.leak())];
    let (address, _requests) = serve(None, answers.leak());
    let registry = registry(
        &format!("[schemas]\nregistry = 'http://{address}/'\n"),
        &runtime,
    );

    let why = registry.ask_now(Key::Id(5)).unwrap_err();

    assert!(why.contains("bytes long"), "{why}");
}
