//! What errors mean: one classification for all who read, and one for all who write.
//!
//! Not what is done about them:
//!
//! | who | goes on | gives up |
//! |---|---|---|
//! | a worker's feed | passing; lasting, but for the group: what may not be read stands still alone, and a login may be mended | the others |
//! | who reads to an end | passing | the others: the end would not come |
//! | who follows for ever | passing, and topics that are missing: one may be made anew | the others |

use rdkafka::error::{KafkaError, RDKafkaErrorCode};

use crate::client::is_missing;
use crate::record::OutRecord;

/// What an error means to a consumer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The client tries again by itself, and may get there.
    Passing,
    /// The client tries again in vain, until somebody changes a permission, a login or a topic.
    Lasting,
    /// The client does nothing any more.
    Fatal,
    /// The client does nothing any more, since another one has its identity.
    Fenced,
}

// === impl Failure ===

impl Failure {
    /// What `error` means.
    pub fn of(error: &KafkaError) -> Self {
        let Some(code) = error.rdkafka_error_code() else {
            return Self::Passing;
        };
        match code {
            RDKafkaErrorCode::Fenced
            | RDKafkaErrorCode::FencedInstanceId
            | RDKafkaErrorCode::ProducerFenced => Self::Fenced,
            _ if matches!(error, KafkaError::MessageConsumptionFatal(_)) => Self::Fatal,
            RDKafkaErrorCode::Fatal => Self::Fatal,
            RDKafkaErrorCode::Authentication
            | RDKafkaErrorCode::SaslAuthenticationFailed
            | RDKafkaErrorCode::TopicAuthorizationFailed
            | RDKafkaErrorCode::GroupAuthorizationFailed
            | RDKafkaErrorCode::ClusterAuthorizationFailed => Self::Lasting,
            code if is_missing(code) => Self::Lasting,
            _ => Self::Passing,
        }
    }
}

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_that_does_not_pass_is_told_from_one_that_does() {
        let of = |code| Failure::of(&KafkaError::MessageConsumption(code));

        assert_eq!(of(RDKafkaErrorCode::OperationTimedOut), Failure::Passing);
        assert_eq!(of(RDKafkaErrorCode::AllBrokersDown), Failure::Passing);
        for lasting in [
            RDKafkaErrorCode::TopicAuthorizationFailed,
            RDKafkaErrorCode::GroupAuthorizationFailed,
            RDKafkaErrorCode::Authentication,
            RDKafkaErrorCode::UnknownTopicOrPartition,
        ] {
            assert_eq!(of(lasting), Failure::Lasting, "{lasting:?}");
        }
        assert_eq!(of(RDKafkaErrorCode::Fatal), Failure::Fatal);
        assert_eq!(of(RDKafkaErrorCode::FencedInstanceId), Failure::Fenced);
        // Whatever it is, the client does nothing any more.
        let fatal = KafkaError::MessageConsumptionFatal(RDKafkaErrorCode::OperationTimedOut);
        assert_eq!(Failure::of(&fatal), Failure::Fatal);
    }
}
