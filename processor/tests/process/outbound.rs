//! Where attempts may go, and by which TLS: what the process's configuration says, whoever wrote the scene.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rdkafka::producer::Producer;
use rustls::crypto::ring;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig, ServerConnection, StreamOwned};

use crate::rig::Rig;
use crate::secured::pem;
use crate::support::PATIENCE;

/// An authority, which certifies `localhost` and clients.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
}

impl Authority {
    fn new(name: &str) -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        Self {
            certificate: certificate.der().clone(),
            issuer: Issuer::new(params, key),
        }
    }

    fn pem(&self) -> String {
        pem("CERTIFICATE", &self.certificate)
    }

    fn certify(&self) -> (CertificateDer<'static>, Vec<u8>) {
        let params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        (certificate.der().clone(), key.serialize_der())
    }

    /// A target that speaks TLS, and wants certificates of clients that `clients` has signed: its address, and how often it was asked.
    fn serve(&self, clients: Option<&Self>) -> (SocketAddr, Arc<AtomicUsize>) {
        let provider = Arc::new(ring::default_provider());
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .unwrap();
        let builder = match clients {
            None => builder.with_no_client_auth(),
            Some(clients) => {
                let mut roots = RootCertStore::empty();
                roots.add(clients.certificate.clone()).unwrap();
                let verifier =
                    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
                builder.with_client_cert_verifier(verifier.build().unwrap())
            }
        };
        let (certificate, key) = self.certify();
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key));
        let config = Arc::new(builder.with_single_cert(vec![certificate], key).unwrap());
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let asked = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&asked);
        thread::spawn(move || {
            while let Ok((socket, _)) = listener.accept() {
                let (config, asked) = (Arc::clone(&config), Arc::clone(&counted));
                thread::spawn(move || answer(socket, config, &asked));
            }
        });
        (address, asked)
    }
}

/// Answers 200 to one request, and closes the connection.
fn answer(socket: TcpStream, config: Arc<ServerConfig>, asked: &AtomicUsize) {
    let session = ServerConnection::new(config).unwrap();
    let mut stream = StreamOwned::new(session, socket);
    let (mut head, mut buffer) = (Vec::new(), [0; 4096]);
    while !head.ends_with(b"payload") {
        match stream.read(&mut buffer) {
            Ok(read) if read > 0 => head.extend_from_slice(&buffer[..read]),
            _ => return,
        }
    }
    asked.fetch_add(1, Ordering::SeqCst);
    let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 0\r\n\r\n");
    stream.conn.send_close_notify();
    let _ = stream.flush();
}

/// Configures scenes for a target that wants certificates, one of another authority, and some that are not dialled.
fn configure(rig: &Rig, mutual: u16, later: u16) {
    let scene = |name: &str, url: &str, more: &str| {
        format!(
            "[scenes.{name}]\ntarget = {{ http = {{ url = '{url}', timeout = '1m'{more} }} }}\nmax_attempts = 1\n"
        )
    };
    let bank = ", tls = 'bank'";
    let scenes = [
        scene("good", &format!("https://localhost:{mutual}/"), bank),
        scene(
            "bare",
            &format!("https://localhost:{mutual}/"),
            ", tls = 'nobody'",
        ),
        scene("strange", &format!("https://localhost:{later}/"), ""),
        scene("plain", &format!("https://{}/", rig.target.address), bank),
        scene("secret", "http://169.254.169.254/latest/meta-data", ""),
        scene("spelled", "http://[::ffff:a9fe:a9fe]/", ""),
        scene("port", "http://127.0.0.1:6379/", ""),
    ]
    .concat();
    let rotated = format!(
        "[scenes.rotated]\ntarget = {{ http = {{ url = 'https://localhost:{later}/', tls = 'bank', timeout = '1m' }} }}\n\
         backoff = {{ fixed = {{ delay = '500ms' }} }}\nmax_attempts = 1000\n"
    );
    let target = rig.target.address.port();
    rig.configure(&format!(
        "{}[egress]\nports = [80, {mutual}, {later}, {target}]\n\
         [tls.bank]\nca = 'ca.pem'\ncert = 'client.crt'\nkey = 'client.key'\n[tls.nobody]\nca = 'ca.pem'\n{scenes}{rotated}",
        rig.basics()
    ));
}

/// What is said before, and by the log of the start.
fn check_words(doctor: &str, said: &str, log: &str) {
    for expected in [
        "link-local, metadata addresses are not dialled, at ports",
        "takes connections by TLS 1.3, certificate valid until",
        "no TLS with it: it wants a client's certificate",
        "no TLS with it: the issuer of its certificate is not trusted",
        "no TLS with it: it does not speak TLS at this port",
        "is not dialled: 169.254.169.254 is a metadata address",
        "is not dialled: 127.0.0.1 is asked for at port 6379",
        "the client's certificate is valid until",
    ] {
        assert!(doctor.contains(expected), "{expected}: {doctor}");
    }
    for expected in [
        "scene secret: its target would not be dialled: 169.254.169.254 is a metadata address",
        "scene port: its target would not be dialled",
    ] {
        assert!(said.contains(expected), "{said}");
    }
    assert!(!said.contains("scene good"), "{said}");
    for expected in [
        "link-local, metadata addresses are not dialled",
        "target is not dialled: its tasks are dead letters",
    ] {
        assert!(log.contains(expected), "{log}");
    }
}

#[test]
fn targets_are_dialled_by_the_rules_and_the_profiles_of_the_process() {
    let rig = Rig::new(Duration::ZERO, "");
    let (first, second) = (Authority::new("first"), Authority::new("second"));
    let (mutual, known) = first.serve(Some(&first));
    let (later, found) = second.serve(None);
    let file = |name: &str, text: &str| {
        fs::write(rig.file(name), text).unwrap();
    };
    file("ca.pem", &first.pem());
    let (certificate, key) = first.certify();
    file("client.crt", &pem("CERTIFICATE", &certificate));
    file("client.key", &pem("PRIVATE KEY", &key));
    configure(&rig, mutual.port(), later.port());
    let doctor = rig.retide(&["doctor", "--output", "ndjson"]);
    let doctor = String::from_utf8(doctor.stdout).unwrap();
    let applied = rig.retide(&["scenes", "apply", "--dry-run", "retide.toml"]);
    let retide = rig.run();
    let producer = rig.producer();
    let names = [
        "good", "bare", "strange", "plain", "secret", "spelled", "port", "rotated",
    ];
    for name in names {
        let headers = [("retry-scene", name), ("retry-id", name)];
        rig.send(&producer, &headers, b"payload");
    }
    producer.flush(PATIENCE).unwrap();
    let ends = rig.ends(names.len() - 1);

    // Half a file is worse than the old one, which counts on; the new one counts without a restart.
    file("ca.pem", "-----BEGIN CERTIFICATE-----\nhalf");
    retide.wait_for("tls-unusable");
    let headers = [("retry-scene", "good"), ("retry-id", "good-2")];
    rig.send(&producer, &headers, b"payload");
    producer.flush(PATIENCE).unwrap();
    let still = rig.ends(names.len());
    file("ca.pem", &format!("{}{}", first.pem(), second.pem()));
    let all = rig.ends(names.len() + 1);
    let log = retide.log();
    retide.terminate();
    assert_eq!(retide.wait(), Some(0));

    assert_eq!(ends["good"], ["delivered"]);
    assert!(!ends.contains_key("rotated"), "its CA is not trusted yet");
    assert_eq!(still["good-2"], ["delivered"]);
    assert_eq!(all["rotated"], ["delivered"]);
    assert_eq!(known.load(Ordering::SeqCst), 2);
    assert_eq!(found.load(Ordering::SeqCst), 1);
    let errors = rig.read("dead-letters");
    let error = |name: &str| {
        let dead = errors.iter().find(|dead| dead.text("retry-id") == name);
        dead.unwrap_or_else(|| panic!("{name} is dead"))
            .text("retry-error")
    };
    for (name, expected) in [
        ("bare", "tls: it wants a client's certificate"),
        (
            "strange",
            "tls: the issuer of its certificate is not trusted",
        ),
        ("plain", "tls: it does not speak TLS at this port"),
        ("secret", "egress: 169.254.169.254 is a metadata address"),
        (
            "spelled",
            "egress: ::ffff:169.254.169.254 is a metadata address",
        ),
        ("port", "egress: 127.0.0.1 is asked for at port 6379"),
    ] {
        let error = error(name);
        assert!(error.starts_with(expected), "{name}: {error}");
    }
    assert_eq!(rig.target.count(), 0);

    let said = String::from_utf8(applied.stderr).unwrap();
    check_words(&doctor, &said, &log);
}

#[test]
fn what_the_rules_for_connections_cannot_mean_is_refused_with_its_place() {
    let rig = Rig::bare("127.0.0.1:1".to_owned(), "");
    for (text, expected) in [
        (
            "[egress]\ndeny = ['privat']",
            "egress.deny[0]: unknown value `privat`; did you mean `private`?",
        ),
        (
            "[egress]\nallow = ['10.1.2.3/16']",
            "`10.1.2.3/16` does not begin a network: expected 10.1.0.0/16 or 10.1.2.3/32",
        ),
        (
            "[egress]\nonly = 'allowed'",
            "egress.only: nothing would be dialled",
        ),
        ("[tls.bank]\ncert = 'a'", "tls.bank.cert: goes with `key`"),
        ("[tls.bank]\ncacert = 'a'", "did you mean"),
        (
            "[tls.bank]\nca = 'a'\n[scenes.a]\ntarget = { http = { url = 'https://h/', tls = 'bnak' } }",
            "scenes.a.target.http.tls: there is no [tls.bnak]; did you mean `bank`?",
        ),
        (
            "[tls.bank]\nca = 'a'\n[scenes.a]\ntarget = { http = { url = 'http://h/', tls = 'bank' } }",
            "goes with an address that begins with https://",
        ),
    ] {
        rig.configure(&format!("{}{text}\n", rig.basics()));

        let start = Instant::now();
        let run = rig.retide(&["run"]);

        let said = String::from_utf8(run.stderr).unwrap();
        assert_eq!(run.status.code(), Some(2), "{said}");
        assert!(said.contains(expected), "{expected}: {said}");
        assert!(start.elapsed() < PATIENCE);
    }
}
