//! Refusals of target topics: whether one takes no records is asked before a transaction waits for it.

use std::sync::Arc;
use std::time::Duration;

use rdkafka::consumer::Consumer;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::metadata::MetadataTopic;
use tracing::debug;

use retide_kafka::client::is_missing;

use crate::worker::group;
use crate::writable::{Cause, TargetState, Writability};

/// Longest wait for what the cluster says of a target.
pub(super) const ASK: Duration = Duration::from_secs(1);

/// Whether a target takes no records, as was found out not long ago or is said now: whoever waits for such a topic in a transaction holds
/// up everything else in it.
pub(crate) fn refuses(group: &group::Client, writability: &Writability, target: &Arc<str>) -> bool {
    match writability.target(target) {
        TargetState::Refuses => return true,
        TargetState::Takes => return false,
        TargetState::Unknown => {}
    }
    match refusal(group, target) {
        Ok(Some(code)) => {
            writability.target_refuses(target, Cause(code));
            return true;
        }
        Ok(None) => writability.target_takes(target),
        // Whoever cannot ask finds out by trying.
        Err(error) => debug!(%error, "target topic not described"),
    }
    false
}

/// Why a target takes no records, if the cluster knows at once.
pub(crate) fn refusal(
    group: &group::Client,
    topic: &str,
) -> Result<Option<RDKafkaErrorCode>, KafkaError> {
    let metadata = group.fetch_metadata(Some(topic), ASK)?;
    let error = metadata.topics().first().and_then(MetadataTopic::error);
    let code = error.map(RDKafkaErrorCode::from);
    Ok(
        code.filter(|code| {
            is_missing(*code) || *code == RDKafkaErrorCode::TopicAuthorizationFailed
        }),
    )
}
