//! Why a broker cannot be talked to, told apart by what the client library says, and what to do about each.
//!
//! Not the looking: that is [`handshake`](super::handshake)'s. Invariant: what is advised belongs to the cause, and where the cause is not
//! known, nothing is claimed.

use rdkafka::ClientConfig;

use retide_core::command::BOOTSTRAP;

use crate::cluster::handshake::{self, Handshake, Mistrust};

/// Why a broker cannot be talked to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Cause {
    /// Nobody listens.
    Refused,
    /// The name of the host is not known.
    Unresolved,
    /// Nobody answers.
    Silent,
    /// Something answers that is no broker.
    NotKafka,
    /// The broker speaks TLS, and the client does not.
    WantsTls,
    /// The client speaks TLS, and the broker does not.
    WantsNoTls,
    /// The broker's certificate is not trusted; why, where that is known.
    Certificate(Option<Mistrust>),
    /// The broker wants a certificate of the client's.
    WantsCertificate,
    /// The broker does not take the client's certificate.
    CertificateRefused,
    /// The broker wants a login.
    WantsLogin,
    /// The broker knows no login at this address.
    WantsNoLogin,
    /// The broker does not know this way of logging in, but these.
    Mechanism(String),
    /// User or password are wrong.
    Password,
    /// The library says something else.
    Other,
}

/// What the client is set up for.
struct Setup<'a>(&'a ClientConfig);

// === impl Cause ===

impl Cause {
    /// The cause, by the last thing that was heard of an address; a handshake is made where that tells more.
    pub(super) fn of(reason: &str, config: &ClientConfig) -> Self {
        let heard = Self::heard(reason, &Setup(config));
        let address = address(reason);
        match heard {
            Self::Certificate(_) => match handshake::shake(&address, config) {
                Handshake::Mistrust(mistrust) => Self::Certificate(Some(mistrust)),
                Handshake::Trusted | Handshake::NoTls => Self::Certificate(None),
            },
            // A port that speaks TLS hangs up as well, or one that does not where the client does.
            Self::WantsLogin => match (
                Setup(config).speaks_tls(),
                handshake::shake(&address, config),
            ) {
                (true, Handshake::NoTls) => Self::WantsNoTls,
                (false, Handshake::Trusted | Handshake::Mistrust(_)) => Self::WantsTls,
                (true, Handshake::Trusted | Handshake::Mistrust(_)) | (false, Handshake::NoTls) => {
                    Self::WantsLogin
                }
            },
            heard => heard,
        }
    }

    /// The cause where nothing was heard, or nothing that tells it, at `address`.
    pub(super) fn silent(address: &str, config: &ClientConfig) -> Self {
        if Setup(config).speaks_tls() {
            return Self::Silent;
        }
        match handshake::shake(address, config) {
            Handshake::NoTls => Self::Silent,
            Handshake::Trusted | Handshake::Mistrust(_) => Self::WantsTls,
        }
    }

    /// The cause as the client library words it.
    fn heard(reason: &str, setup: &Setup<'_>) -> Self {
        let has = |text: &str| reason.contains(text);
        if has("certificate verify failed") {
            return Self::Certificate(None);
        }
        // Alerts of the broker's, by their numbers in RFC 8446.
        let alert = |number: u32| has(&format!("SSL alert number {number}"));
        if alert(42)
            || alert(116)
            || alert(40)
            || has("client SSL authentication might be required")
        {
            return if setup.has_certificate() {
                Self::CertificateRefused
            } else {
                Self::WantsCertificate
            };
        }
        if alert(43) || alert(44) || alert(45) || alert(46) || alert(48) {
            return Self::CertificateRefused;
        }
        if has("PLAINTEXT broker listener") || has("wrong version number") {
            return Self::WantsNoTls;
        }
        if has("connecting to a SSL listener") {
            return Self::WantsTls;
        }
        if let Some((_, known)) = reason.split_once("broker's supported mechanisms:") {
            let known = known.trim();
            if has("not valid in current SASL state") || known.is_empty() || known == "(n/a)" {
                return Self::WantsNoLogin;
            }
            return Self::Mechanism(known.to_owned());
        }
        if has("not valid in current SASL state") {
            return Self::WantsNoLogin;
        }
        if has("SASL authentication error") || has("Authentication failed") || has("SASL SCRAM") {
            return Self::Password;
        }
        // A broker that wants a login hangs up on whoever asks for something else first.
        let hangs_up = has("Disconnected") && !setup.logs_in();
        if has("might require SASL authentication") || hangs_up {
            return Self::WantsLogin;
        }
        if has("Connection refused") {
            return Self::Refused;
        }
        if has("Failed to resolve") {
            return Self::Unresolved;
        }
        // The first bytes of an alert of TLS, taken for the size of an answer.
        if has("Invalid response size 35251") {
            return Self::WantsTls;
        }
        if has("Invalid response size") {
            return Self::NotKafka;
        }
        if has("timed out") || has("timeout") || has("No route to host") {
            return Self::Silent;
        }
        Self::Other
    }

    /// Whether waiting longer will hardly help.
    pub(super) fn is_plain(reason: &str, config: &ClientConfig) -> bool {
        match Self::heard(reason, &Setup(config)) {
            Self::Refused
            | Self::Unresolved
            | Self::WantsTls
            | Self::WantsNoTls
            | Self::Certificate(_)
            | Self::WantsCertificate
            | Self::CertificateRefused
            | Self::WantsLogin
            | Self::WantsNoLogin
            | Self::Mechanism(_)
            | Self::Password => true,
            Self::Silent | Self::NotKafka | Self::Other => false,
        }
    }

    /// What is said instead of the library's words, if those mislead.
    pub(super) fn words(&self, reason: &str) -> Option<String> {
        let address = address(reason);
        match self {
            Self::Certificate(Some(mistrust)) => Some(format!(
                "{address}: certificate verify failed: the broker's certificate is not trusted: {}",
                mistrust.words()
            )),
            Self::Certificate(None) => Some(format!(
                "{address}: certificate verify failed: the broker's certificate is not trusted"
            )),
            Self::WantsTls => Some(format!(
                "{address}: the broker speaks TLS at this port, and security.protocol is not ssl or sasl_ssl"
            )),
            Self::WantsNoTls => Some(format!(
                "{address}: the broker does not speak TLS at this port, and security.protocol says that it does ({})",
                reason.split(": ").skip(1).collect::<Vec<_>>().join(": ")
            )),
            Self::WantsCertificate => Some(format!(
                "{address}: the broker wants a certificate of the client's, and none is configured ({})",
                tail(reason)
            )),
            Self::CertificateRefused => Some(format!(
                "{address}: the broker does not accept the client's certificate ({})",
                tail(reason)
            )),
            Self::WantsLogin => Some(format!(
                "{address}: the broker hangs up at once, as one does that wants a login by SASL ({})",
                tail(reason)
            )),
            Self::Refused
            | Self::Unresolved
            | Self::Silent
            | Self::NotKafka
            | Self::WantsNoLogin
            | Self::Mechanism(_)
            | Self::Password
            | Self::Other => None,
        }
    }

    /// What to do about it.
    pub(super) fn hint(&self, config: &ClientConfig) -> String {
        let setup = Setup(config);
        match self {
            Self::Refused => {
                let address = config.get("bootstrap.servers");
                let unset = address.filter(|&address| address == BOOTSTRAP);
                let unset = unset.map_or("", |_| " (that is the one where none is configured)");
                format!(
                    "start the broker, or correct the address{unset}: --bootstrap HOST:PORT, or bootstrap.servers in [kafka] of \
                     retide.toml; `retide demo` starts a broker of its own to look around"
                )
            }
            Self::Unresolved => "correct the name of the host: bootstrap.servers in [kafka] of retide.toml, or --bootstrap \
                                 HOST:PORT; or the resolver of this machine"
                .to_owned(),
            Self::Silent => "see whether a firewall lets this machine reach the address, and whether it is that of a broker: \
                             bootstrap.servers in [kafka] of retide.toml, or --bootstrap HOST:PORT"
                .to_owned(),
            Self::NotKafka => "something else than Kafka listens there: correct bootstrap.servers in [kafka] of retide.toml, or \
                               --bootstrap HOST:PORT"
                .to_owned(),
            Self::WantsTls => format!(
                "set security.protocol = \"{}\" in [kafka] of retide.toml, and ssl.ca.location to the file of the CA that has signed \
                 the broker's certificate; or connect to a port without TLS",
                if setup.logs_in() { "sasl_ssl" } else { "ssl" }
            ),
            Self::WantsNoTls => format!(
                "set security.protocol = \"{}\" in [kafka] of retide.toml, or connect to the port of the broker's that speaks TLS",
                if setup.logs_in() {
                    "sasl_plaintext"
                } else {
                    "plaintext"
                }
            ),
            Self::Certificate(mistrust) => match mistrust {
                Some(Mistrust::Expired(_)) => "renew the broker's certificate; or set the clock of this machine, if that is wrong \
                                               (chronyc tracking)"
                    .to_owned(),
                Some(Mistrust::NotYet) => "set the clock of this machine, or of the one where the certificate was made (chronyc \
                                           tracking)"
                    .to_owned(),
                Some(Mistrust::Name(names)) => {
                    let names = if names.is_empty() {
                        "that stands in the certificate".to_owned()
                    } else {
                        names.join(" or ")
                    };
                    format!(
                        "connect by the name {names} (bootstrap.servers in [kafka] of retide.toml, or --bootstrap, and the broker's \
                         advertised.listeners), or have a certificate made for the name that is used (subjectAltName)"
                    )
                }
                Some(Mistrust::Issuer | Mistrust::Other(_)) | None => {
                    let now = match config.get("ssl.ca.location") {
                        Some(place) => format!("; it is {place} now"),
                        None => "; the CAs of this system are trusted now".to_owned(),
                    };
                    format!(
                        "set ssl.ca.location in [kafka] of retide.toml to the file (PEM) of the CA that has signed the broker's \
                         certificate{now}"
                    )
                }
            },
            Self::WantsCertificate => "set ssl.certificate.location and ssl.key.location in [kafka] of retide.toml to a certificate \
                                       that the broker trusts, and its key"
                .to_owned(),
            Self::CertificateRefused => "have the certificate of ssl.certificate.location signed by a CA in the broker's truststore, \
                                         and see that it has not expired; the broker's log has the reason"
                .to_owned(),
            Self::WantsLogin => format!(
                "it seems that the broker wants a login at this address: set security.protocol = \"{}\", sasl.mechanism, sasl.username and \
                 sasl.password in [kafka] of retide.toml",
                if setup.speaks_tls() {
                    "sasl_ssl"
                } else {
                    "sasl_plaintext"
                }
            ),
            Self::WantsNoLogin => format!(
                "the broker knows no login at this address: set security.protocol = \"{}\" in [kafka] of retide.toml, or connect to \
                 the port that has one",
                if setup.speaks_tls() { "ssl" } else { "plaintext" }
            ),
            Self::Mechanism(known) => {
                format!("set sasl.mechanism in [kafka] of retide.toml to one that the broker knows: {known}")
            }
            Self::Password => "correct sasl.username and sasl.password in [kafka] of retide.toml (or RETIDE__KAFKA__SASL_PASSWORD_FILE); \
                               the broker does not know this user with this password"
                .to_owned(),
            Self::Other => "see whether the brokers run, and bootstrap.servers, security.protocol, ssl.* and sasl.* in [kafka] of \
                            retide.toml"
                .to_owned(),
        }
    }
}

// === impl Setup ===

impl Setup<'_> {
    /// The security protocol.
    fn protocol(&self) -> String {
        let protocol = self.0.get("security.protocol").unwrap_or("plaintext");
        protocol.to_ascii_lowercase()
    }

    /// Whether the client speaks TLS.
    fn speaks_tls(&self) -> bool {
        self.protocol().ends_with("ssl")
    }

    /// Whether the client logs in.
    fn logs_in(&self) -> bool {
        self.protocol().starts_with("sasl")
    }

    /// Whether the client has a certificate of its own.
    fn has_certificate(&self) -> bool {
        [
            "ssl.certificate.location",
            "ssl.certificate.pem",
            "ssl.keystore.location",
        ]
        .iter()
        .any(|property| self.0.get(property).is_some())
    }
}

/// The host and port that `ssl://HOST:PORT/bootstrap: what happened` is about.
pub(super) fn address(reason: &str) -> String {
    let broker = reason.split(": ").next().unwrap_or_default();
    let broker = broker.split_once("://").map_or(broker, |(_, rest)| rest);
    broker.split('/').next().unwrap_or_default().to_owned()
}

/// The library's last words.
fn tail(reason: &str) -> &str {
    reason.rsplit(": ").next().unwrap_or(reason)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The cause that is heard by a client with these properties.
    fn heard(reason: &str, properties: &[(&str, &str)]) -> Cause {
        let mut config = ClientConfig::new();
        for (property, value) in properties {
            config.set(*property, *value);
        }
        Cause::heard(reason, &Setup(&config))
    }

    #[test]
    fn each_text_of_the_library_has_its_cause() {
        let ssl = [("security.protocol", "SSL")];
        let own = [
            ("security.protocol", "SSL"),
            ("ssl.certificate.location", "x"),
        ];
        let none: &[(&str, &str)] = &[];
        let cases = [
            (
                "a:1/bootstrap: Connect to ipv4#127.0.0.1:1 failed: Connection refused",
                none,
                Cause::Refused,
            ),
            (
                "a:1/bootstrap: Failed to resolve 'a:1': Name or service not known",
                none,
                Cause::Unresolved,
            ),
            (
                "ssl://a:1/bootstrap: SSL handshake failed: error:0A000086:SSL routines::certificate verify failed: broker certificate \
                 could not be verified, verify that ssl.ca.location is correctly configured",
                &ssl[..],
                Cause::Certificate(None),
            ),
            (
                "ssl://a:1/bootstrap: SSL transport error: error:0A00045C:SSL routines::tlsv13 alert certificate required: SSL alert \
                 number 116",
                &ssl[..],
                Cause::WantsCertificate,
            ),
            (
                "ssl://a:1/bootstrap: error:0A000412:SSL routines::ssl/tls alert bad certificate: SSL alert number 42",
                &own[..],
                Cause::CertificateRefused,
            ),
            (
                "ssl://a:1/bootstrap: SSL handshake failed: Disconnected: connecting to a PLAINTEXT broker listener?",
                &ssl[..],
                Cause::WantsNoTls,
            ),
            (
                "a:1/bootstrap: Invalid response size 352518912 (0..100000000): increase receive.message.max.bytes",
                none,
                Cause::WantsTls,
            ),
            (
                "a:1/bootstrap: Invalid response size 1213486160 (0..100000000)",
                none,
                Cause::NotKafka,
            ),
            (
                "sasl_plaintext://a:1/bootstrap: SASL PLAIN mechanism handshake failed: Broker: Unsupported SASL mechanism: broker's \
                 supported mechanisms: SCRAM-SHA-512",
                none,
                Cause::Mechanism("SCRAM-SHA-512".to_owned()),
            ),
            (
                "sasl_plaintext://a:1/bootstrap: SASL PLAIN mechanism handshake failed: Broker: Request not valid in current SASL state: \
                 broker's supported mechanisms: ",
                none,
                Cause::WantsNoLogin,
            ),
            (
                "sasl_ssl://a:1/bootstrap: SASL authentication error: Authentication failed during authentication due to invalid \
                 credentials with SASL mechanism SCRAM-SHA-512",
                none,
                Cause::Password,
            ),
            (
                "a:1/bootstrap: Disconnected: verify that security.protocol is correctly configured, broker might require SASL \
                 authentication",
                none,
                Cause::WantsLogin,
            ),
        ];
        for (reason, properties, cause) in cases {
            assert_eq!(heard(reason, properties), cause, "{reason}");
        }
        assert_eq!(address("sasl_ssl://[::1]:9093/bootstrap: x"), "[::1]:9093");
        assert_eq!(address("b-1:9092/1: x: y"), "b-1:9092");
    }
}
