//! Handshakes with servers in the same process, by certificates made on the spot.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    date_time_ymd,
};
use rustls::crypto::ring;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::*;

/// An authority.
struct Ca {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
}

/// A certificate and its key.
struct Certified {
    certificate: CertificateDer<'static>,
    key: KeyPair,
}

/// How a server speaks TLS.
#[derive(Clone, Copy)]
struct Speaks<'a> {
    versions: &'a [&'static rustls::SupportedProtocolVersion],
    /// Whose certificates it wants of clients.
    wants: Option<&'a Ca>,
}

const ANY: Speaks<'_> = Speaks {
    versions: rustls::ALL_VERSIONS,
    wants: None,
};

impl Ca {
    fn new(name: &str) -> Self {
        let mut params = CertificateParams::new(Vec::new()).expect("parameters");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().expect("a key");
        let certificate = params.self_signed(&key).expect("a certificate");
        Self {
            certificate: certificate.der().clone(),
            issuer: Issuer::new(params, key),
        }
    }

    /// A certificate for a host, valid in these years.
    fn certify(&self, host: &str, from: i32, until: i32) -> Certified {
        let mut params = CertificateParams::new(vec![host.to_owned()]).expect("parameters");
        params.not_before = date_time_ymd(from, 1, 1);
        params.not_after = date_time_ymd(until, 1, 1);
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate");
        Certified {
            certificate: certificate.der().clone(),
            key,
        }
    }

    fn roots(&self) -> RootCertStore {
        let mut roots = RootCertStore::empty();
        roots.add(self.certificate.clone()).expect("a root");
        roots
    }
}

/// Bytes in PEM, which is made by hand so that reading is not tested by what wrote.
pub(crate) fn pem(label: &str, bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = format!("-----BEGIN {label}-----\n");
    for line in bytes.chunks(48) {
        for three in line.chunks(3) {
            let bits = three
                .iter()
                .chain([&0, &0])
                .take(3)
                .fold(0, |bits, byte| bits << 8 | usize::from(*byte));
            for digit in 0..4 {
                let at = bits >> (18 - 6 * digit) & 63;
                let used = digit <= three.len();
                text.push(if used { char::from(DIGITS[at]) } else { '=' });
            }
        }
        text.push('\n');
    }
    text + &format!("-----END {label}-----\n")
}

/// Serves TLS: answers `ok` to a first word, on each connection.
async fn serve(certified: &Certified, speaks: Speaks<'_>) -> SocketAddr {
    let provider = Arc::new(ring::default_provider());
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(speaks.versions)
        .expect("versions");
    let builder = match speaks.wants {
        Some(ca) => {
            let verifier =
                WebPkiClientVerifier::builder_with_provider(Arc::new(ca.roots()), provider);
            builder.with_client_cert_verifier(verifier.build().expect("a verifier"))
        }
        None => builder.with_no_client_auth(),
    };
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(certified.key.serialize_der()));
    let config = builder
        .with_single_cert(vec![certified.certificate.clone()], key)
        .expect("a certificate");
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let mut stream = acceptor.accept(socket).await?;
                stream.read_exact(&mut [0; 4]).await?;
                stream.write_all(b"ok").await?;
                stream.shutdown().await
            });
        }
    });
    address
}

/// Answers bytes to whatever comes, and closes the connection.
async fn serve_raw(bytes: &'static [u8]) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            let _ = socket.read(&mut [0; 4096]).await;
            let _ = socket.write_all(bytes).await;
        }
    });
    address
}

/// What comes of a handshake, a word and its answer: nothing, or why not.
async fn talk(tls: &Tls, address: SocketAddr) -> Result<(), String> {
    let config = tls.current(Alpn::Any)?;
    let socket = TcpStream::connect(address).await.expect("it listens");
    let connected = TlsConnector::from(config)
        .connect(tls.server_name(), socket)
        .await;
    let mut stream = connected.map_err(|error| tls.explain(&error))?;
    let said = async {
        stream.write_all(b"word").await?;
        stream.read_exact(&mut [0; 2]).await
    };
    match said.await {
        Ok(_) => Ok(()),
        Err(error) => Err(tls.cause(&error).unwrap_or_else(|| error.to_string())),
    }
}

/// The profiles of a configuration.
fn profiles(text: &str) -> Profiles {
    let configs: BTreeMap<String, Config> = toml::from_str(text).expect("profiles");
    for config in configs.values() {
        config.check().expect("a valid profile");
    }
    Profiles::new(&configs)
}

/// A profile for `localhost` with these lines.
fn tls(lines: &str) -> Tls {
    profiles(&format!("[default]\n{lines}"))
        .of(None, "localhost")
        .expect("a name")
}

fn write(directory: &Path, name: &str, text: &str) -> String {
    let path = directory.join(name);
    fs::write(&path, text).expect("a file");
    path.display().to_string()
}

#[tokio::test]
async fn a_certificate_is_good_or_it_is_said_why_not() {
    let directory = TempDir::new().expect("a directory");
    let (ca, stranger) = (Ca::new("ca"), Ca::new("stranger"));
    let file = write(
        directory.path(),
        "ca.pem",
        &pem("CERTIFICATE", &ca.certificate),
    );
    let trusting = tls(&format!("ca = '{file}'"));
    let named = tls(&format!("ca = '{file}'\nserver_name = 'shop.example'"));
    let system = tls("system_roots = true");

    let good = serve(&ca.certify("localhost", 2020, 2090), ANY).await;
    let other = serve(&ca.certify("shop.example", 2020, 2090), ANY).await;
    let expired = serve(&ca.certify("localhost", 2020, 2021), ANY).await;
    let early = serve(&ca.certify("localhost", 2089, 2090), ANY).await;
    let strange = serve(&stranger.certify("localhost", 2020, 2090), ANY).await;

    assert_eq!(talk(&trusting, good).await, Ok(()));
    assert_eq!(talk(&named, other).await, Ok(()));
    for (tls, address, expected) in [
        (
            &system,
            good,
            "the issuer of its certificate is not trusted: name it as `ca` of a [tls.NAME]",
        ),
        (
            &trusting,
            strange,
            "the issuer of its certificate is not trusted: name it as `ca` of a [tls.NAME]",
        ),
        (
            &trusting,
            expired,
            "its certificate expired at 2021-01-01T00:00:00Z",
        ),
        (
            &trusting,
            early,
            "its certificate is not valid before 2089-01-01T00:00:00Z",
        ),
        (
            &trusting,
            other,
            "its certificate is for shop.example, not for localhost",
        ),
    ] {
        assert_eq!(talk(tls, address).await, Err(expected.to_owned()));
    }
}

/// A certificate of a CA that signs itself, as `openssl req -x509` makes it, valid in these years.
fn of_a_ca(host: &str, from: i32, until: i32, usage: &[ExtendedKeyUsagePurpose]) -> Certified {
    let mut params = CertificateParams::new(vec![host.to_owned()]).expect("parameters");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.not_before = date_time_ymd(from, 1, 1);
    params.not_after = date_time_ymd(until, 1, 1);
    params.extended_key_usages = usage.to_vec();
    let key = KeyPair::generate().expect("a key");
    let certificate = params.self_signed(&key).expect("a certificate");
    Certified {
        certificate: certificate.der().clone(),
        key,
    }
}

#[tokio::test]
async fn a_server_may_show_the_certificate_of_a_ca_that_is_named_itself() {
    let directory = TempDir::new().expect("a directory");
    let good = of_a_ca("localhost", 2020, 2090, &[]);
    // Another one of the same name, as after it was made anew.
    let same = of_a_ca("localhost", 2020, 2090, &[]);
    let other = of_a_ca("shop.example", 2020, 2090, &[]);
    let expired = of_a_ca("localhost", 2020, 2021, &[]);
    let early = of_a_ca("localhost", 2089, 2090, &[]);
    let client = [ExtendedKeyUsagePurpose::ClientAuth];
    let client = of_a_ca("localhost", 2020, 2090, &client);
    let trusting = |certified: &Certified, lines: &str| {
        let text = pem("CERTIFICATE", &certified.certificate);
        let file = write(directory.path(), "ca.pem", &text);
        let tls = tls(&format!("ca = '{file}'\n{lines}"));
        // Its file is read now.
        tls.current(Alpn::Any).expect("usable");
        tls
    };

    for versions in [&rustls::version::TLS12, &rustls::version::TLS13] {
        let speaks = Speaks {
            versions: &[versions],
            ..ANY
        };
        let address = serve(&good, speaks).await;
        for lines in ["", "system_roots = true"] {
            assert_eq!(talk(&trusting(&good, lines), address).await, Ok(()));
        }
    }
    for (shown, named, expected) in [
        (
            &other,
            &other,
            "its certificate is for shop.example, not for localhost",
        ),
        (
            &expired,
            &expired,
            "its certificate expired at 2021-01-01T00:00:00Z",
        ),
        (
            &early,
            &early,
            "its certificate is not valid before 2089-01-01T00:00:00Z",
        ),
        (&client, &client, "its certificate is not one for a server"),
        (&same, &good, "its certificate is one of a CA"),
        (&good, &other, "its certificate is one of a CA"),
    ] {
        let address = serve(shown, ANY).await;
        let error = talk(&trusting(named, ""), address).await;
        let error = error.expect_err(expected);
        assert!(error.starts_with(expected), "{expected}: {error}");
    }
}

#[tokio::test]
async fn a_server_that_shows_the_certificate_of_another_ca_is_told_what_to_do() {
    let directory = TempDir::new().expect("a directory");
    let root = Ca::new("root");
    let mut params = CertificateParams::new(vec!["localhost".to_owned()]).expect("parameters");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().expect("a key");
    let certificate = params.signed_by(&key, &root.issuer).expect("a certificate");
    let certificate = certificate.der().clone();
    let file = write(
        directory.path(),
        "ca.pem",
        &pem("CERTIFICATE", &root.certificate),
    );
    let address = serve(&Certified { certificate, key }, ANY).await;

    let error = talk(&tls(&format!("ca = '{file}'")), address).await;

    let error = error.expect_err("it is not one for a server");
    assert!(error.contains("name it, the very same, as `ca`"), "{error}");
}

#[tokio::test]
async fn versions_are_kept_and_what_is_no_tls_is_said() {
    let directory = TempDir::new().expect("a directory");
    let ca = Ca::new("ca");
    let file = write(
        directory.path(),
        "ca.pem",
        &pem("CERTIFICATE", &ca.certificate),
    );
    let certified = ca.certify("localhost", 2020, 2090);
    let only = async |version| {
        let speaks = Speaks {
            versions: &[version],
            ..ANY
        };
        serve(&certified, speaks).await
    };
    let (v12, v13) = (
        only(&rustls::version::TLS12).await,
        only(&rustls::version::TLS13).await,
    );
    let any = tls(&format!("ca = '{file}'"));
    let new = tls(&format!("ca = '{file}'\nmin_version = '1.3'"));
    let old = tls(&format!("ca = '{file}'\nmax_version = '1.2'"));
    // An alert of a server that speaks TLS 1.1 at most, what plain HTTP says to a handshake, and a server that hangs up.
    let ancient = serve_raw(b"\x15\x03\x02\x00\x02\x02\x46").await;
    let plain = serve_raw(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n").await;
    let closing = serve_raw(b"").await;

    for (tls, address) in [(&any, v12), (&any, v13), (&new, v13), (&old, v12)] {
        assert_eq!(talk(tls, address).await, Ok(()));
    }
    let version = "it speaks no version of TLS that is allowed here";
    for (tls, address, expected) in [
        (&new, v12, version),
        (&old, v13, version),
        (&any, ancient, version),
        (
            &any,
            plain,
            "it does not speak TLS at this port, which may be one for http://",
        ),
        (
            &any,
            closing,
            "it closed the connection during the handshake",
        ),
    ] {
        let error = talk(tls, address).await.expect_err("no TLS in common");
        assert!(error.starts_with(expected), "{error}");
    }
}

#[tokio::test]
async fn a_client_shows_its_certificate_where_one_is_wanted() {
    let directory = TempDir::new().expect("a directory");
    let (ca, stranger) = (Ca::new("ca"), Ca::new("stranger"));
    let certified = ca.certify("localhost", 2020, 2090);
    let file = write(
        directory.path(),
        "ca.pem",
        &pem("CERTIFICATE", &ca.certificate),
    );
    let client = |name: &str, ca: &Ca, until: i32| {
        let client = ca.certify("client", 2020, until);
        let cert = pem("CERTIFICATE", &client.certificate);
        let key = pem("PRIVATE KEY", &client.key.serialize_der());
        let cert = write(directory.path(), &format!("{name}.crt"), &cert);
        let key = write(directory.path(), &format!("{name}.key"), &key);
        tls(&format!("ca = '{file}'\ncert = '{cert}'\nkey = '{key}'"))
    };
    let (good, foreign, expired) = (
        client("good", &ca, 2090),
        client("foreign", &stranger, 2090),
        client("expired", &ca, 2021),
    );
    let nobody = tls(&format!("ca = '{file}'"));

    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        let speaks = Speaks {
            versions: &[version],
            wants: Some(&ca),
        };
        let mutual = serve(&certified, speaks).await;

        assert_eq!(talk(&good, mutual).await, Ok(()));
        let said = talk(&nobody, mutual).await.expect_err("it wants one");
        assert!(said.contains("wants a client's certificate"), "{said}");
        let said = talk(&foreign, mutual).await.expect_err("not its own");
        assert!(said.contains("the client's certificate"), "{said}");
        let said = talk(&expired, mutual).await.expect_err("it has expired");
        assert_eq!(said, "it says that the client's certificate has expired");
    }
}

#[tokio::test]
async fn files_are_read_again_and_bad_ones_replace_nothing() {
    let directory = TempDir::new().expect("a directory");
    let (first, second) = (Ca::new("first"), Ca::new("second"));
    let text = |ca: &Ca| pem("CERTIFICATE", &ca.certificate);
    let file = write(directory.path(), "ca.pem", &text(&first));
    let profiles = profiles(&format!("[bank]\nca = '{file}'"));
    let bank = profiles.of(Some("bank"), "localhost").expect("a name");
    let old = serve(&first.certify("localhost", 2020, 2090), ANY).await;
    let new = serve(&second.certify("localhost", 2020, 2090), ANY).await;
    let look = || profiles.look().remove(0);
    let config = || bank.current(Alpn::Any).expect("usable");

    let before = config();
    assert_eq!(talk(&bank, old).await, Ok(()));
    assert!(talk(&bank, new).await.is_err());
    let same = look();
    assert_eq!((same.changed, same.problem), (false, None));
    assert!(Arc::ptr_eq(&before, &config()));

    for bad in ["", "nonsense", "-----BEGIN CERTIFICATE-----\n!!\n"] {
        fs::write(&file, bad).expect("a file");
        let looked = look();
        assert!(!looked.changed);
        let problem = looked.problem.expect("a problem");
        assert!(problem.starts_with("[tls.bank] ca: "), "{problem}");
        assert!(Arc::ptr_eq(&before, &config()), "the old ones count on");
    }
    fs::remove_file(&file).expect("a file");
    let gone = look().problem.expect("a problem");
    assert!(
        gone.contains("ca: read ") && gone.contains("ca.pem"),
        "{gone}"
    );
    assert_eq!(talk(&bank, old).await, Ok(()));

    fs::write(&file, text(&second)).expect("a file");
    let looked = look();
    assert_eq!((looked.changed, looked.problem), (true, None));
    assert!(!Arc::ptr_eq(&before, &config()));
    assert_eq!(talk(&bank, new).await, Ok(()));
    assert!(talk(&bank, old).await.is_err());
}

#[tokio::test]
async fn what_cannot_be_used_is_said_and_mended_by_the_files() {
    let directory = TempDir::new().expect("a directory");
    let ca = Ca::new("ca");
    let (one, other) = (
        ca.certify("client", 2020, 2090),
        ca.certify("client", 2020, 2090),
    );
    let key = pem("PRIVATE KEY", &other.key.serialize_der());
    let cert = write(
        directory.path(),
        "cert.pem",
        &pem("CERTIFICATE", &one.certificate),
    );
    let file = write(directory.path(), "key.pem", &key);
    let profiles = profiles(&format!("[bank]\ncert = '{cert}'\nkey = '{file}'"));
    let bank = profiles.of(Some("bank"), "localhost").expect("a name");

    let said = bank.current(Alpn::Any).expect_err("not its key");
    assert_eq!(
        said,
        "[tls.bank] key: is not the key to the certificate in `cert`"
    );
    let sealed = key.replace("PRIVATE KEY", "ENCRYPTED PRIVATE KEY");
    fs::write(&file, sealed).expect("a file");
    let said = profiles.look().remove(0).problem.expect("sealed");
    assert!(said.contains("one that is encrypted is not read"), "{said}");

    let key = pem("PRIVATE KEY", &one.key.serialize_der());
    fs::write(&file, key).expect("a file");
    let looked = profiles.look().remove(0);
    assert!(looked.changed);
    let expires = looked.not_after.expect("a certificate");
    assert_eq!(
        humantime::format_rfc3339_seconds(expires).to_string(),
        "2090-01-01T00:00:00Z"
    );
    assert!(bank.current(Alpn::Http1).is_ok());
}

#[test]
fn a_profile_is_for_its_hosts_and_for_those_who_name_it() {
    let profiles = profiles(
        "[bank]\nhosts = ['*.bank.example', '10.0.0.0/8']\nsystem_roots = true\n[default]\nhosts = ['inside.example']\nserver_name = 'x.example'",
    );
    let refusal = |name: Option<&str>, host: &str| {
        let tls = profiles.of(name, host).expect("a name");
        tls.refusal().map(str::to_owned)
    };
    let name = |host: &str| {
        let tls = profiles.of(None, host).expect("a name");
        tls.server_name().to_str().into_owned()
    };

    for host in ["a.bank.example", "10.1.1.1"] {
        assert_eq!(refusal(Some("bank"), host), None);
    }
    for host in ["bank.example", "evil.example", "11.1.1.1"] {
        let said = format!("[tls.bank] is not for {host}");
        assert_eq!(refusal(Some("bank"), host), Some(said));
    }
    assert_eq!(
        refusal(Some("bnak"), "a.bank.example"),
        Some("this process has no [tls.bnak]".to_owned())
    );
    assert_eq!(name("inside.example"), "x.example");
    assert_eq!(name("shop.example"), "shop.example");
    assert_eq!(name("localhost."), "localhost");
    assert_eq!(name("::1"), "::1");
}

#[test]
fn what_no_file_could_mend_is_refused() {
    for (text, key) in [
        ("cert = 'a'", "cert"),
        ("key = 'a'", "key"),
        ("min_version = '1.3'\nmax_version = '1.2'", "max_version"),
        ("server_name = 'a b'", "server_name"),
    ] {
        let config: Config = toml::from_str(text).expect("a profile");
        assert_eq!(config.check().expect_err("refused").key, key);
    }
    for text in ["min_version = '1.1'", "min_version = 1.3", "cacert = 'a'"] {
        assert!(toml::from_str::<Config>(text).is_err(), "{text}");
    }
}
