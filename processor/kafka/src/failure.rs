//! What errors mean: one classification for all who read, and for all who write.
//!
//! Not what is done about them.

use rdkafka::error::RDKafkaErrorCode;

use crate::client::is_missing;
use crate::record::OutRecord;

/// Whether an error is about this record and topic, and will be the same next time.
pub fn is_refusal(code: RDKafkaErrorCode) -> bool {
    is_of_record(code)
        || is_missing(code)
        || matches!(
            code,
            RDKafkaErrorCode::TopicAuthorizationFailed
                | RDKafkaErrorCode::InvalidTopic
                | RDKafkaErrorCode::InvalidTimestamp
                | RDKafkaErrorCode::NotEnoughReplicas
                | RDKafkaErrorCode::NotEnoughReplicasAfterAppend
                | RDKafkaErrorCode::UnsupportedForMessageFormat
                | RDKafkaErrorCode::InvalidRequiredAcks
        )
}

/// Whether a refusal is about the record: its topic may take others.
pub fn is_of_record(code: RDKafkaErrorCode) -> bool {
    is_of_size(code)
        || matches!(
            code,
            RDKafkaErrorCode::InvalidRecord
                | RDKafkaErrorCode::PolicyViolation
                | RDKafkaErrorCode::InvalidMessage
        )
}

/// Whether a topic refuses a record since it has no key: one that is compacted takes none of those.
pub fn wants_keys(code: RDKafkaErrorCode, record: &OutRecord) -> bool {
    code == RDKafkaErrorCode::InvalidRecord && record.key.is_none()
}

/// Whether a refusal is about the size of a record, or of those that travelled with it.
pub fn is_of_size(code: RDKafkaErrorCode) -> bool {
    matches!(
        code,
        RDKafkaErrorCode::MessageSizeTooLarge
            | RDKafkaErrorCode::MessageBatchTooLarge
            | RDKafkaErrorCode::InvalidMessageSize
    )
}

/// The word for a refusal in the `retry-error` header.
pub fn word(code: RDKafkaErrorCode) -> &'static str {
    match code {
        code if is_of_size(code) => "too-large",
        RDKafkaErrorCode::PolicyViolation => "policy-violation",
        _ => "invalid-record",
    }
}
