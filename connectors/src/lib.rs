//! Targets: where attempts go.
//!
//! | read | for |
//! | --- | --- |
//! | [`egress`] | which addresses are dialled |
//! | [`http`] | a request per attempt; the model for further connectors |
//! | [`tls`] | how TLS is spoken |
//! | [`secret`] | what stands elsewhere than in a scene |
//! | [`kafka`] | a record per attempt, produced by the ledger itself |
//! | [`server`] | a server that attempts call: reached and examined without an attempt |
//!
//! Each connector has a `Config` that a scene names and that is [`Configured`], a dispatch that makes the attempt, and a classify that
//! turns the answer into an [`Outcome`]. Nothing here decides what follows from an outcome. How one is added: the crate's `README.md`.

pub mod egress;
pub mod http;
pub mod kafka;
pub mod left_out;
mod outbound;
pub mod secret;
pub mod server;
pub mod tls;

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use retide_core::{Outcome, Task, scene};
use serde::{Deserialize, Serialize};

pub use self::left_out::LeftOut;
pub use self::outbound::Outbound;
pub use self::server::Server;

/// Every header's name that is retide's, as `retide-avro` lists them: neither a record nor a configuration sets one on a request.
pub const OWN: [&str; 31] = [
    "retry-scene",
    "retry-id",
    "retry-attempt",
    "retry-throttled",
    "retry-due-at",
    "retry-delay-ms",
    "retry-deferred-until",
    "retry-late-by",
    "retry-first-failed-at",
    "retry-deadline-at",
    "retry-origin",
    "retry-error",
    "retry-error-host",
    "retry-hops",
    "retry-command",
    "retry-exhausted",
    "retry-held-since",
    "retry-pending-since",
    "retry-stopped",
    "retry-campaign",
    "retry-replayed",
    "retry-round",
    "retry-kind",
    "retry-reason",
    "retry-fingerprint",
    "retry-outcome",
    "retry-event",
    "retry-read-from",
    "retry-omitted",
    "retry-omitted-xxh3",
    "retry-refused",
];

/// Makes one attempt of a task. One of the four seams.
///
/// An implementation never panics on what the other side says, bounds its own time, and holds no state of a task.
#[async_trait]
pub trait Target: Send + Sync {
    /// Makes the attempt and says how it went.
    async fn attempt(&self, task: Arc<Task>) -> Attempt;

    /// Makes further attempts over new connections if it calls `authority`, such as `https://shop.example:443`: its breaker has opened,
    /// and what is behind the connections that it keeps may be to blame.
    fn renew(&self, _authority: &str) {}
}

/// A target as a scene configures it, of whatever kind: checked, named, examined and built without a look inside.
///
/// A kind that does not answer all of this does not compile, and neither does a [`Destination`] that `retide doctor` cannot examine.
pub trait Configured {
    /// The word of the kind, which is its key in a scene's `target`.
    fn kind(&self) -> &'static str;

    /// The target as far as the core must know it.
    fn core(&self) -> scene::Target;

    /// Where attempts go.
    fn destination(&self) -> Result<Destination<'_>, Error>;

    /// Longest time of one attempt, if the target bounds it.
    fn timeout(&self) -> Option<Duration>;

    /// The profile of TLS that the key `tls` names, if one is named.
    fn profile(&self) -> Option<&str>;

    /// The values that stand elsewhere, with the keys that lead to them from the kind on.
    fn references(&self) -> Vec<(String, &secret::Reference)>;

    /// The values in which a credential may stand in clear, with the keys that lead to them from the kind on.
    fn exposed(&mut self) -> Vec<(String, Exposed<'_>)>;

    /// All that keeps the target from being used as it is configured, as far as it can be told apart.
    fn problems(&self, outbound: &Outbound) -> Vec<Error>;

    /// Checks the configuration and makes the target ready; `None` if the ledger makes the attempts itself.
    fn build(&self, outbound: &Outbound) -> Result<Option<Arc<dyn Target>>, Error>;
}

/// Where the attempts of a target go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Destination<'a> {
    /// A server that each attempt calls.
    Server(Server),
    /// The topic of this name, of the same cluster.
    Topic(&'a str),
}

/// A value of a configuration that people may have put a credential into.
#[derive(Debug)]
pub enum Exposed<'a> {
    /// A header that is sent.
    Header {
        /// The name of the header.
        name: &'a str,
        /// The value of the header.
        value: &'a mut secret::MaybeSecret,
    },
    /// An address.
    Url(&'a mut String),
}

/// The end of an attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// The outcome, as the target said it.
    pub outcome: Outcome,
    /// The headers of the record that it was not sent, if there are any.
    pub left_out: Option<Box<LeftOut>>,
    /// How long the target wants to be left alone although it has done the task: nothing is left of a limit of its own.
    pub spent: Option<Duration>,
}

/// A target as a scene names it, such as `{ http = { url = "https://shop.example/paid" } }`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[expect(
    clippy::large_enum_variant,
    reason = "there are as many as scenes, and nearly all are of the large one"
)]
pub enum TargetConfig {
    /// An HTTP request per attempt.
    Http(http::Config),
    /// A record on a Kafka topic per attempt.
    Kafka(kafka::Config),
}

/// Why a target cannot be used as it is configured.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The HTTP target is at fault.
    #[error("http target")]
    Http(#[from] http::Error),
    /// The Kafka target is at fault.
    #[error("kafka target")]
    Kafka(#[from] kafka::Error),
}

// === impl Attempt ===

impl From<Outcome> for Attempt {
    /// Nothing was left out, and of nothing is nothing left.
    fn from(outcome: Outcome) -> Self {
        Self {
            outcome,
            left_out: None,
            spent: None,
        }
    }
}

// === impl Destination ===

impl fmt::Display for Destination<'_> {
    /// Where attempts go, with nothing in it that could be secret.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Server(server) => server.fmt(formatter),
            Self::Topic(topic) => write!(formatter, "kafka {topic}"),
        }
    }
}

// === impl Error ===

impl Error {
    /// The keys that lead to what is wrong, from the kind of the target on.
    pub fn path(&self) -> Vec<String> {
        let (kind, keys) = match self {
            Self::Http(error) => ("http", error.path()),
            Self::Kafka(kafka::Error::Topic { .. }) => ("kafka", vec!["topic".to_owned()]),
        };
        [kind.to_owned()].into_iter().chain(keys).collect()
    }
}

// === impl TargetConfig ===

impl TargetConfig {
    /// The configuration of its kind: nothing else looks at which kind that is.
    pub fn configured(&self) -> &dyn Configured {
        match self {
            Self::Http(config) => config,
            Self::Kafka(config) => config,
        }
    }

    /// The configuration of its kind, to be changed.
    pub fn configured_mut(&mut self) -> &mut dyn Configured {
        match self {
            Self::Http(config) => config,
            Self::Kafka(config) => config,
        }
    }

    /// The target as far as the core must know it.
    pub fn core(&self) -> scene::Target {
        self.configured().core()
    }

    /// Where attempts go, if the configuration is good enough to say so.
    pub fn destination(&self) -> Option<Destination<'_>> {
        self.configured().destination().ok()
    }

    /// The server that attempts call, if they call one.
    pub fn server(&self) -> Option<Server> {
        match self.destination()? {
            Destination::Server(server) => Some(server),
            Destination::Topic(_) => None,
        }
    }

    /// The topic that attempts are records of, if they are.
    pub fn topic(&self) -> Option<&str> {
        match self.destination()? {
            Destination::Server(_) => None,
            Destination::Topic(topic) => Some(topic),
        }
    }

    /// The server that attempts call, such as `https://shop.example:443`, with nothing in it that could be secret.
    pub fn authority(&self) -> Option<String> {
        self.server().map(|server| server.to_string())
    }

    /// All that keeps the target from being used as it is configured, as far as it can be told apart.
    pub fn problems(&self, outbound: &Outbound) -> Vec<Error> {
        self.configured().problems(outbound)
    }

    /// Checks the configuration and makes the target ready; `None` if the ledger makes the attempts itself.
    pub fn connect(&self, outbound: &Outbound) -> Result<Option<Arc<dyn Target>>, Error> {
        self.configured().build(outbound)
    }
}

/// The identity of an attempt, as the names and texts of headers.
pub(crate) fn identity(task: &Task) -> [(&'static str, Cow<'_, str>); 6] {
    [
        ("retry-id", Cow::Borrowed(&*task.id)),
        ("retry-scene", Cow::Borrowed(&*task.scene)),
        ("retry-attempt", Cow::Owned(task.attempt.to_string())),
        ("retry-due-at", Cow::Owned(task.due.as_millis().to_string())),
        ("retry-origin", Cow::Owned(task.origin.to_string())),
        // What a record that the target puts back counts on from: the attempt alone is not believed.
        ("retry-round", Cow::Owned(task.attempt.to_string())),
    ]
}

#[cfg(test)]
pub(crate) mod fixture {
    use bytes::Bytes;
    use retide_core::{Header, Kind, Origin, Record, Timestamp};

    use super::*;

    /// A task about to make its third attempt, with these headers of the producer's.
    pub(crate) fn task(headers: &[(&str, Option<&'static [u8]>)]) -> Task {
        Task {
            id: Arc::from("order-7"),
            scene: Arc::from("payment"),
            kind: Kind::Work,
            attempt: 3,
            due: Timestamp::from_millis(1_700_000_000_123),
            deferral: None,
            first_failed_at: Timestamp::from_millis(1_700_000_000_000),
            deadline: None,
            origin: Origin {
                topic: Arc::from("orders"),
                partition: 4,
                offset: 99,
            },
            failure: None,
            hops: 0,
            throttled: 0,
            exhausted: None,
            held_since: None,
            pending_since: None,
            stopped: None,
            commanded: None,
            replay: None,
            record: Record {
                key: Some(Bytes::from_static(b"key")),
                value: Some(Bytes::from_static(b"\x00\xffpayload\n")),
                headers: headers
                    .iter()
                    .map(|(name, value)| Header {
                        name: (*name).to_owned().into(),
                        value: value.map(Bytes::from_static),
                    })
                    .collect(),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn parse(text: &str) -> Result<TargetConfig, toml::de::Error> {
        let mut keys: BTreeMap<String, TargetConfig> = toml::from_str(text)?;
        Ok(keys.remove("target").expect("a key called target"))
    }

    #[test]
    fn an_http_target_is_a_call() {
        let target = parse(r#"target = { http = { url = "http://127.0.0.1/paid" } }"#)
            .expect("a valid target");

        assert_eq!(target.core(), scene::Target::Call);
        assert!(
            target
                .connect(&Outbound::default())
                .expect("it connects")
                .is_some()
        );
    }

    #[test]
    fn a_kafka_target_is_produced_by_the_ledger() {
        let target = parse(r#"target = { kafka = { topic = "paid" } }"#).expect("a valid target");

        let topic = Arc::from("paid");
        assert_eq!(target.core(), scene::Target::Produce { topic });
        assert!(
            target
                .connect(&Outbound::default())
                .expect("it is valid")
                .is_none()
        );
    }

    #[test]
    fn unknown_targets_and_keys_are_errors() {
        for text in [
            r#"target = { htp = { url = "http://127.0.0.1/" } }"#,
            r#"target = { http = { url = "http://127.0.0.1/", tmeout = "5s" } }"#,
            r#"target = { http = { timeout = "5s" } }"#,
            r#"target = { kafka = { topic = "paid", key = "x" } }"#,
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_target_that_cannot_work_does_not_connect() {
        for text in [
            r#"target = { http = { url = "ftp://127.0.0.1/" } }"#,
            r#"target = { kafka = { topic = "../paid" } }"#,
        ] {
            let target = parse(text).expect("it parses");

            assert!(target.connect(&Outbound::default()).is_err(), "{text}");
        }
    }

    #[test]
    fn an_authority_is_host_and_port_and_nothing_else() {
        let authority = |url: &str| {
            let text = format!("target = {{ http = {{ url = '{url}' }} }}");
            parse(&text).expect("a target").authority()
        };

        for (url, expected) in [
            (
                "https://shop.example/paid?token=s3cret#x",
                "https://shop.example:443",
            ),
            ("HTTP://Shop.Example:80/", "http://shop.example:80"),
            ("http://shop.example", "http://shop.example:80"),
            ("http://[::1]:8000/x", "http://[::1]:8000"),
        ] {
            assert_eq!(authority(url).as_deref(), Some(expected));
        }
        assert_eq!(authority("http://user:s3cret@shop.example/"), None);
        assert_eq!(authority("nonsense"), None);
        let topic = parse(r#"target = { kafka = { topic = "paid" } }"#).expect("a target");
        assert_eq!(topic.authority(), None);
    }

    #[test]
    fn a_target_survives_being_written_and_read() {
        let text = r#"target = { http = { url = "https://shop.example/", timeout = "1m 5s", success = [404, "3xx"] } }"#;
        let target = parse(text).expect("a valid target");

        let written = serde_json::to_string(&target).expect("it serializes");
        let read: TargetConfig = serde_json::from_str(&written).expect("it parses");

        assert_eq!(read, target);
    }
}
