//! A broker that lets nobody do what was not allowed, with logins, with certificates good and bad, and with a policy for topics.

use std::fmt::Write as _;
use std::fs;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::LazyLock;

use base64::prelude::{BASE64_STANDARD, Engine as _};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, date_time_ymd};
use tempfile::TempDir;

use crate::bounded::{self, Lines};

/// The broker; it ends with this process, which closes its standard input.
pub(crate) struct Secured {
    /// Where nobody logs in, and everybody may do everything.
    pub(crate) plain: String,
    /// Where users log in by `PLAIN`, each with the password [`PASSWORD`].
    pub(crate) sasl: String,
    /// TLS with a good certificate for `localhost`.
    pub(crate) good: String,
    /// TLS with a certificate that has expired.
    pub(crate) expired: String,
    /// TLS with a certificate for another host.
    pub(crate) other: String,
    /// TLS that wants a certificate of the client's.
    pub(crate) mutual: String,
    /// Where everybody may do everything, of a broker that then tells an address at which nobody listens.
    pub(crate) away: String,
    /// Certificates, and what the broker is configured with.
    directory: TempDir,
    _child: Child,
}

/// Everybody's password.
pub(crate) const PASSWORD: &str = "open-sesame";

/// The broker's own folder.
const BROKER: &str = "broker";

/// Those who can log in.
pub(crate) const USERS: [&str; 11] = [
    "init", "run", "less", "least", "loose", "submit", "explain", "rules", "control", "letters",
    "sources",
];

/// The broker; none without Java and Maven, which the tests then say.
pub(crate) fn secured() -> Option<&'static Secured> {
    static SECURED: LazyLock<Option<Secured>> = LazyLock::new(Secured::start);
    if SECURED.is_none() {
        assert!(
            std::env::var("RETIDE_REQUIRE_KAFKA").as_deref() != Ok("1"),
            "RETIDE_REQUIRE_KAFKA=1, but there is no broker"
        );
        eprintln!("NOT CHECKED: no Java and Maven for a broker of its own");
    }
    SECURED.as_ref()
}

// === impl Secured ===

impl Secured {
    fn start() -> Option<Self> {
        let directory = TempDir::new().unwrap();
        let place = directory.path();
        certify(place);
        let run = concat!(env!("CARGO_MANIFEST_DIR"), "/../docker/kafka/run");
        let jars = bounded::try_output(Command::new(run).arg("--jars")).ok()?;
        if !jars.status.success() {
            return None;
        }
        let jars = String::from_utf8(jars.stdout).unwrap();
        let compiled = Command::new("javac")
            .args(["-cp", &format!("{}/*", jars.trim()), "-d"])
            .arg(place)
            .arg(concat!(
                env!("CARGO_MANIFEST_DIR"),
                "/tests/process/Policy.java"
            ))
            .status()
            .ok()?;
        assert!(compiled.success());
        let properties = place.join("extra.properties");
        fs::write(&properties, configuration(place)).unwrap();
        // The broker's log says of each request what its user was allowed.
        let audit = "org.slf4j.simpleLogger.log.kafka.authorizer.logger=debug\n";
        fs::write(place.join("simplelogger.properties"), audit).unwrap();
        let mut child = Command::new(run)
            .arg("--properties")
            .arg(&properties)
            .arg("--classes")
            .arg(place)
            .arg(place.join(BROKER))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = Lines::of(child.stdout.take().unwrap());
        let next = |words: &str| {
            let line = lines.next().unwrap();
            line.strip_prefix(words).unwrap().to_owned()
        };
        let plain = next("bootstrap ");
        let sasl = next("port 1 ");
        // Certificates are for names.
        let named = |words: &str| next(words).replace("127.0.0.1", "localhost");
        Some(Self {
            plain,
            sasl,
            good: named("port 2 "),
            expired: named("port 3 "),
            other: named("port 4 "),
            mutual: named("port 5 "),
            away: next("port 6 "),
            directory,
            _child: child,
        })
    }

    /// The certificate of the CA that has signed those of the broker.
    pub(crate) fn ca(&self) -> PathBuf {
        self.directory.path().join("ca.pem")
    }

    /// The certificate of a CA that has signed nothing here.
    pub(crate) fn stranger(&self) -> PathBuf {
        self.directory.path().join("stranger.pem")
    }

    /// What the broker has logged, what users asked for among it.
    pub(crate) fn log(&self) -> String {
        let log = self.directory.path().join(BROKER).join("log");
        String::from_utf8_lossy(&fs::read(log).unwrap()).into_owned()
    }

    /// What lets a client log in, as lines of `[kafka]`.
    pub(crate) fn login(&self, user: &str) -> String {
        format!(
            "[kafka]\nbootstrap.servers = '{}'\nsecurity.protocol = 'sasl_plaintext'\nsasl.mechanism = 'PLAIN'\n\
             sasl.username = '{user}'\nsasl.password = '{PASSWORD}'\n",
            self.sasl
        )
    }

    /// Does what lines of `kafka-acls.sh` say, joined or not, without a JVM for each of them.
    pub(crate) fn grant(&self, lines: &str) {
        self.request(CREATE_ACLS, lines);
    }

    /// Undoes what a line of `kafka-acls.sh` has said.
    pub(crate) fn undo(&self, line: &str) {
        self.request(DELETE_ACLS, line);
    }

    /// Has the broker do something with each of the rules that lines say.
    fn request(&self, key: u8, lines: &str) {
        let rules: Vec<Vec<u8>> = lines
            .split(['\n', '&'])
            .map(str::trim)
            .filter(|line| !line.is_empty())
            .flat_map(rules)
            .collect();
        let mut body = (rules.len() as i32).to_be_bytes().to_vec();
        body.extend(rules.concat());
        // In version 1.
        let mut request = vec![0, key, 0, 1, 0, 0, 0, 7];
        request.extend(string("test"));
        request.extend(body);
        let mut stream = bounded::connect(&self.plain).unwrap();
        stream
            .write_all(&(request.len() as i32).to_be_bytes())
            .unwrap();
        stream.write_all(&request).unwrap();
        let mut size = [0; 4];
        stream.read_exact(&mut size).unwrap();
        let mut answer = vec![0; i32::from_be_bytes(size) as usize];
        stream.read_exact(&mut answer).unwrap();
        // The number of the request, how long it was held back, how many results, and of each a code and a text that may be none.
        let mut results = &answer[12..];
        let looked_at = if key == CREATE_ACLS { rules.len() } else { 1 };
        for _ in 0..looked_at {
            let text = i16::from_be_bytes([results[2], results[3]]).max(0) as usize;
            assert_eq!(&results[..2], [0, 0], "{lines}");
            results = &results[4 + text..];
        }
    }
}

/// The request that adds rules.
const CREATE_ACLS: u8 = 30;

/// The request that takes rules away.
const DELETE_ACLS: u8 = 31;

/// What a line of `kafka-acls.sh` adds, as `CreateAcls` has it.
fn rules(line: &str) -> Vec<Vec<u8>> {
    let words: Vec<&str> = line.split_whitespace().collect();
    assert_eq!(words[0], "kafka-acls.sh", "{line}");
    let after = |option: &str| -> Vec<&str> {
        let pairs = words.windows(2).filter(|pair| pair[0] == option);
        pairs.map(|pair| pair[1]).collect()
    };
    let pattern = match after("--resource-pattern-type")[..] {
        ["prefixed"] => 4,
        [] => 3,
        ref other => panic!("{other:?}"),
    };
    let (allowed, denied) = (after("--allow-principal"), after("--deny-principal"));
    let (principal, permission) = match (&allowed[..], &denied[..]) {
        ([principal], []) => (*principal, 3),
        ([], [principal]) => (*principal, 2),
        other => panic!("{other:?}"),
    };
    let mut rules = Vec::new();
    for (option, resource) in [("--topic", 2), ("--group", 3), ("--transactional-id", 5)] {
        for name in after(option) {
            for operation in after("--operation") {
                let operation = match operation {
                    "Read" => 3,
                    "Write" => 4,
                    "Create" => 5,
                    "Delete" => 6,
                    "Alter" => 7,
                    "Describe" => 8,
                    "DescribeConfigs" => 10,
                    other => panic!("{other}"),
                };
                let mut rule = vec![resource];
                rule.extend(string(name));
                rule.push(pattern);
                rule.extend(string(principal));
                rule.extend(string("*"));
                rule.extend([operation, permission]);
                rules.push(rule);
            }
        }
    }
    assert!(!rules.is_empty(), "{line}");
    rules
}

/// A text as Kafka's protocol has it.
fn string(text: &str) -> Vec<u8> {
    let mut bytes = (text.len() as i16).to_be_bytes().to_vec();
    bytes.extend(text.as_bytes());
    bytes
}

/// Makes the certificates.
fn certify(place: &Path) {
    let authority = |name: &str| {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        let text = pem("CERTIFICATE", certificate.der());
        fs::write(place.join(format!("{name}.pem")), text).unwrap();
        Issuer::new(params, key)
    };
    let ca = authority("ca");
    authority("stranger");
    for (name, host, until) in [
        ("good", "localhost", 2090),
        ("expired", "localhost", 2021),
        ("other", "kafka.example", 2090),
    ] {
        let mut params = CertificateParams::new(vec![host.to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, host);
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = date_time_ymd(until, 1, 1);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &ca).unwrap();
        let both = format!(
            "{}{}",
            pem("PRIVATE KEY", &key.serialize_der()),
            pem("CERTIFICATE", certificate.der())
        );
        fs::write(place.join(format!("{name}.pem")), both).unwrap();
    }
}

/// Bytes in PEM.
pub(crate) fn pem(label: &str, bytes: &[u8]) -> String {
    let text = BASE64_STANDARD.encode(bytes);
    let lines: Vec<&str> = (0..text.len())
        .step_by(64)
        .map(|start| &text[start..text.len().min(start + 64)])
        .collect();
    format!(
        "-----BEGIN {label}-----\n{}\n-----END {label}-----\n",
        lines.join("\n")
    )
}

/// What the broker is configured with.
fn configuration(place: &Path) -> String {
    let listeners = ["SASL", "GOOD", "EXPIRED", "OTHER", "MUTUAL", "AWAY"];
    let mut addresses = String::new();
    for (number, listener) in listeners.iter().enumerate() {
        let _ = write!(addresses, ",{listener}://127.0.0.1:FREE{}", number + 1);
    }
    let users: Vec<String> = USERS
        .iter()
        .map(|user| format!("user_{user}=\"{PASSWORD}\""))
        .collect();
    let mut text = format!(
        "listeners=PLAINTEXT://127.0.0.1:PORT,CONTROLLER://127.0.0.1:CONTROLLER{addresses}\n\
         advertised.listeners=PLAINTEXT://127.0.0.1:PORT{}\n\
         listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,SASL:SASL_PLAINTEXT,GOOD:SSL,EXPIRED:SSL,OTHER:SSL,\
         MUTUAL:SSL,AWAY:PLAINTEXT\n\
         authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer\n\
         super.users=User:ANONYMOUS\n\
         create.topic.policy.class.name=Policy\n\
         listener.name.sasl.sasl.enabled.mechanisms=PLAIN\n\
         listener.name.sasl.plain.sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule required {};\n\
         listener.name.mutual.ssl.client.auth=required\n\
         listener.name.mutual.ssl.truststore.type=PEM\n\
         listener.name.mutual.ssl.truststore.location={}\n",
        addresses
            .replace("127.0.0.1:FREE6", "127.0.0.1:1")
            .replace("127.0.0.1:FREE", "localhost:FREE")
            .replace("SASL://localhost", "SASL://127.0.0.1"),
        users.join(" "),
        place.join("ca.pem").display(),
    );
    for (listener, certificate) in [
        ("good", "good"),
        ("expired", "expired"),
        ("other", "other"),
        ("mutual", "good"),
    ] {
        let _ = write!(
            text,
            "listener.name.{listener}.ssl.keystore.type=PEM\nlistener.name.{listener}.ssl.keystore.location={}\n",
            place.join(format!("{certificate}.pem")).display()
        );
    }
    text
}
