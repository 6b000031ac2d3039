//! What clients share: how they are heard.

use rdkafka::ClientConfig;
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::ConsumerContext;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use tracing::{debug, error, info, warn};

/// Hears a consumer's complaints; the end of a partition is none, and that the group is refused is none of those who only read: the
/// client asks for it, and they do without.
pub(crate) struct Quiet;

/// Whether an error is about a group that the client asks for by itself, and that is not used.
pub(crate) fn is_of_group(error: &KafkaError) -> bool {
    error.rdkafka_error_code() == Some(RDKafkaErrorCode::GroupAuthorizationFailed)
}

impl ClientContext for Quiet {
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

impl ConsumerContext for Quiet {}

/// Passes a line of the client library's on. That a connection failed is said twice, the other time to [`complained`], which knows why.
pub(crate) fn logged(level: RDKafkaLogLevel, facility: &str, message: &str) {
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
pub(crate) fn ask_often(config: &mut ClientConfig) {
    if config.get(METADATA).is_none() {
        config.set(METADATA, METADATA_MS);
    }
}

/// Tells what a client complains of. That it cannot reach a broker is told once for the whole process, not by each client some ten times a
/// second; and that a topic does not exist, once for the topic, not by each client for each partition.
pub(crate) fn complained(error: &KafkaError, reason: &str) {
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
pub(crate) fn is_missing(code: RDKafkaErrorCode) -> bool {
    matches!(
        code,
        RDKafkaErrorCode::UnknownTopic
            | RDKafkaErrorCode::UnknownTopicOrPartition
            | RDKafkaErrorCode::UnknownPartition
    )
}

/// Whether an error says no more than that a broker cannot be reached.
pub(crate) fn is_away(error: &KafkaError) -> bool {
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
