//! What clients share: how they are heard, and that they do not lose the cluster.

use std::ffi::CString;
use std::ops::Deref;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::client::{Client, ClientContext};
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer as _, ConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{BaseProducer, Producer as _, ProducerContext};
use tracing::{debug, error, info, warn};

use retide_native::brokers;

/// The context of a consumer that only reads: it passes what the client complains of to the log. The end of a partition is no complaint,
/// and a refused group is none either: the client asks for it, and who only reads does without.
pub struct LoggingContext;

/// What a client finds the cluster with again.
///
/// A broker that stood still is out of its cluster for a moment, and tells of topics and of no broker. librdkafka then forgets every broker that
/// it knew, the one that answers and those of `bootstrap.servers`, too, and asks nobody ever again: its issue 5301, open for 2.13. So whoever
/// keeps a client looks now and then whether it knows a broker.
#[derive(Debug)]
pub struct Lifeline {
    /// The brokers to begin with.
    servers: CString,
    /// When they are given to a client that knows none, if it is so.
    at: Mutex<Option<Instant>>,
}

/// A client that is kept for long, with what it finds its cluster with again: who makes it this way cannot forget that.
#[derive(Debug)]
pub struct Kept<T> {
    /// The client.
    client: T,
    /// Finds the cluster again.
    lifeline: Lifeline,
}

/// How long a client that knows no broker has been looking for one before it is given those of its configuration: longer than it takes one
/// that starts.
const LOOKS_FOR: Duration = Duration::from_secs(2);

/// Pause before it is given them again: rare, since it keeps what it is given.
const GIVE_AGAIN: Duration = Duration::from_mins(1);

// === impl Lifeline ===

impl Lifeline {
    /// That of a client with this configuration.
    pub fn new(config: &ClientConfig) -> Self {
        let servers = config.get("bootstrap.servers");
        let servers = servers.or_else(|| config.get("metadata.broker.list"));
        Self {
            servers: CString::new(servers.unwrap_or_default()).unwrap_or_default(),
            at: Mutex::default(),
        }
    }

    /// Looks whether the client knows a broker, and gives it some if not. To be called every few seconds at least.
    pub fn hold<C: ClientContext>(&self, client: &Client<C>) {
        let mut at = self.at.lock().unwrap_or_else(PoisonError::into_inner);
        if brokers::known(client) > 0 {
            *at = None;
            return;
        }
        let now = Instant::now();
        if now >= *at.get_or_insert(now + LOOKS_FOR) {
            debug!("a client knows no broker any more, it begins anew");
            brokers::add(client, &self.servers);
            *at = Some(now + GIVE_AGAIN);
        }
    }
}

// === impl Kept ===

impl<T> Kept<T> {
    /// A client with this configuration, as `make` makes one.
    ///
    /// # Errors
    /// If the configuration is refused.
    pub fn make(
        config: &ClientConfig,
        make: impl FnOnce(&ClientConfig) -> Result<T, KafkaError>,
    ) -> Result<Self, KafkaError> {
        Ok(Self {
            client: make(config)?,
            lifeline: Lifeline::new(config),
        })
    }
}

impl<C: ConsumerContext> Kept<BaseConsumer<C>> {
    /// See [`Lifeline::hold`].
    pub fn hold(&self) {
        self.lifeline.hold(self.client.client());
    }
}

impl<C: ProducerContext> Kept<BaseProducer<C>> {
    /// See [`Lifeline::hold`].
    pub fn hold(&self) {
        self.lifeline.hold(self.client.client());
    }
}

impl<T> Deref for Kept<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.client
    }
}

/// The configuration of a client with these properties.
pub fn client_config(properties: impl IntoIterator<Item = (String, String)>) -> ClientConfig {
    properties.into_iter().collect()
}

/// Whether an error is about a group that the client asks for by itself, and that is not used.
pub fn is_of_group(error: &KafkaError) -> bool {
    error.rdkafka_error_code() == Some(RDKafkaErrorCode::GroupAuthorizationFailed)
}

impl ClientContext for LoggingContext {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        logged(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        let told = matches!(
            error.rdkafka_error_code(),
            // Whoever reads a topic is given the refusal as well.
            Some(RDKafkaErrorCode::TopicAuthorizationFailed)
        );
        if !told && !is_of_group(&error) {
            complained(&error, reason);
        }
    }
}

impl ConsumerContext for LoggingContext {}

/// Passes a line of the client library's on. That a connection failed is said twice, the other time to [`complained`], which knows why.
pub fn logged(level: RDKafkaLogLevel, facility: &str, message: &str) {
    if facility == "FAIL" {
        debug!(target: "librdkafka", facility, "{message}");
        return;
    }
    match level {
        RDKafkaLogLevel::Emerg
        | RDKafkaLogLevel::Alert
        | RDKafkaLogLevel::Critical
        | RDKafkaLogLevel::Error => error!(target: "librdkafka", facility, "{message}"),
        RDKafkaLogLevel::Warning => warn!(target: "librdkafka", facility, "{message}"),
        RDKafkaLogLevel::Notice | RDKafkaLogLevel::Info => {
            info!(target: "librdkafka", facility, "{message}");
        }
        RDKafkaLogLevel::Debug => debug!(target: "librdkafka", facility, "{message}"),
    }
}

/// How often a client asks what the cluster says of its topics.
const METADATA: &str = "topic.metadata.refresh.interval.ms";

/// How often one does that reads for a worker. The client's own is five minutes: so long nobody had shards where the retry topic was made
/// anew, and nothing was read of a topic that a broker did not know for a moment, as it may after a standstill.
const METADATA_MS: &str = "10000";

/// Lets a client ask often what the cluster says of its topics, unless the user says how often.
pub fn ask_often(config: &mut ClientConfig) {
    if config.get(METADATA).is_none() {
        config.set(METADATA, METADATA_MS);
    }
}

/// Tells what a client complains of. That it cannot reach a broker is told once for the whole process, not by each client some ten times a
/// second; and that a topic does not exist, once for the topic, not by each client for each partition.
pub fn complained(error: &KafkaError, reason: &str) {
    if error.rdkafka_error_code() == Some(RDKafkaErrorCode::PartitionEOF) {
        return;
    }
    if is_away(error) {
        debug!(%error, reason, "a client cannot reach a broker");
    } else if error.rdkafka_error_code().is_some_and(is_missing) {
        debug!(%error, reason, "a client misses a topic");
    } else {
        warn!(%error, reason, "a client reports");
    }
}

/// Whether an error says that a topic does not exist.
pub fn is_missing(code: RDKafkaErrorCode) -> bool {
    matches!(
        code,
        RDKafkaErrorCode::UnknownTopic
            | RDKafkaErrorCode::UnknownTopicOrPartition
            | RDKafkaErrorCode::UnknownPartition
    )
}

/// Whether an error says no more than that a broker cannot be reached.
pub fn is_away(error: &KafkaError) -> bool {
    matches!(
        error.rdkafka_error_code(),
        Some(
            RDKafkaErrorCode::AllBrokersDown
                | RDKafkaErrorCode::BrokerTransportFailure
                | RDKafkaErrorCode::OperationTimedOut
                | RDKafkaErrorCode::Resolve
        )
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::io::{self, Read as _, Write as _};
    use std::net::{Shutdown, TcpListener, TcpStream};
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::thread;

    /// The topic that is asked for.
    const TOPIC: &str = "a topic with a name that is rather long";

    /// How many other topics a broker tells of that is out of its cluster.
    const OTHERS: u32 = 5_000;

    /// A broker that tells of its topic, and of itself as long as it is part of its cluster.
    struct Broker {
        /// Where it listens.
        port: u16,
        /// Whether it is part of its cluster.
        is_in: Arc<AtomicBool>,
        /// The connections to it.
        streams: Arc<Mutex<Vec<TcpStream>>>,
    }

    impl Broker {
        fn start() -> Self {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let port = listener.local_addr().unwrap().port();
            let is_in = Arc::new(AtomicBool::new(true));
            let streams = Arc::new(Mutex::new(Vec::new()));
            let (told, opened) = (Arc::clone(&is_in), Arc::clone(&streams));
            thread::spawn(move || {
                for stream in listener.incoming().flatten() {
                    opened.lock().unwrap().push(stream.try_clone().unwrap());
                    let told = Arc::clone(&told);
                    thread::spawn(move || serve(stream, port, &told));
                }
            });
            Self {
                port,
                is_in,
                streams,
            }
        }

        /// Is no part of its cluster any more, and closes its connections, as after a standstill.
        fn leave(&self) {
            self.is_in.store(false, Ordering::Release);
            for stream in self.streams.lock().unwrap().drain(..) {
                let _ = stream.shutdown(Shutdown::Both);
            }
        }
    }

    /// Answers each request of a connection with metadata of version 0: nothing else is asked for.
    fn serve(mut stream: TcpStream, port: u16, is_in: &AtomicBool) -> io::Result<()> {
        loop {
            let mut length = [0; 4];
            stream.read_exact(&mut length)?;
            let mut request = vec![0; usize::try_from(i32::from_be_bytes(length)).unwrap()];
            stream.read_exact(&mut request)?;
            assert_eq!(request[..4], [0, 3, 0, 0], "metadata, version 0");
            let mut answer = request[4..8].to_vec();
            let text = |answer: &mut Vec<u8>, text: &str| {
                answer.extend(u16::try_from(text.len()).unwrap().to_be_bytes());
                answer.extend(text.as_bytes());
            };
            let is_in = is_in.load(Ordering::Acquire);
            if is_in {
                answer.extend([0, 0, 0, 1, 0, 0, 0, 7]);
                text(&mut answer, "127.0.0.1");
                answer.extend(i32::from(port).to_be_bytes());
            } else {
                answer.extend([0; 4]);
            }
            // The topic, without an error and a partition, and others: while they are read, the client's other threads go on.
            let others = if is_in { 0 } else { OTHERS };
            answer.extend((others + 1).to_be_bytes());
            for number in 0..=others {
                answer.extend([0; 2]);
                let other = format!("{TOPIC} {number}");
                text(&mut answer, if number == 0 { TOPIC } else { &other });
                answer.extend([0; 4]);
            }
            stream.write_all(&u32::try_from(answer.len()).unwrap().to_be_bytes())?;
            stream.write_all(&answer)?;
        }
    }

    #[test]
    fn a_client_finds_a_cluster_again_that_said_it_had_no_brokers() {
        let broker = Broker::start();
        let mut config = ClientConfig::new();
        for (key, value) in [
            ("bootstrap.servers", &*format!("127.0.0.1:{}", broker.port)),
            ("api.version.request", "false"),
            ("broker.version.fallback", "0.9.0"),
        ] {
            config.set(key, value);
        }
        let client: Kept<BaseConsumer<LoggingContext>> =
            Kept::make(&config, |config| config.create_with_context(LoggingContext)).unwrap();
        let ask = || client.fetch_metadata(Some(TOPIC), Duration::from_millis(500));
        let start = Instant::now();
        let soon = || assert!(start.elapsed() < Duration::from_mins(1), "not in time");
        while brokers::known(client.client()) == 0 {
            soon();
            let _ = ask();
        }

        broker.leave();
        while brokers::known(client.client()) > 0 {
            soon();
            let _ = ask();
        }

        broker.is_in.store(true, Ordering::Release);
        while ask().is_err() || brokers::known(client.client()) == 0 {
            soon();
            client.hold();
        }
    }
}
