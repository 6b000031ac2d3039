//! A record per attempt, on a topic of the same cluster.
//!
//! There is no dispatch and nothing to classify: the ledger produces the record within the transaction that also ends the task and
//! commits its offset, so the attempt happens exactly once or not at all. Invariant: key, payload and the producer's headers arrive
//! as they were; retide's own headers follow them.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use retide_core::{Failure, Outcome, Task, scene};
use serde::{Deserialize, Serialize};

use crate::secret::Reference;
use crate::{Attempt, Configured, Destination, Exposed, Outbound, Target};

/// Longest name Kafka allows for a topic.
pub const MAX_TOPIC: usize = 249;

/// Where headers are written to: a name and a value, in order.
pub type Sink<'a> = dyn FnMut(&[u8], Option<&[u8]>) + 'a;

/// Where the records go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The topic.
    pub topic: String,
}

/// A target that is a topic of retide's own: whatever is delivered there goes round for ever, or spoils what others read.
#[derive(Clone, Debug)]
pub struct OwnTopic {
    /// The topic.
    pub topic: String,
}

#[async_trait]
impl Target for OwnTopic {
    /// Refuses for good: nobody mends that by another attempt.
    async fn attempt(&self, _task: Arc<Task>) -> Attempt {
        let message = format!("{} is retide's own, nothing is delivered there", self.topic);
        Outcome::Permanent(Failure::new("own-topic", &message)).into()
    }
}

/// Why a Kafka target cannot be used as it is configured.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Kafka would refuse the topic's name.
    #[error(
        "topic {topic:?} is not a name Kafka allows: 1 to {MAX_TOPIC} of a-z, A-Z, 0-9, '.', '_' and '-', but not \".\" or \"..\""
    )]
    Topic {
        /// The name.
        topic: String,
    },
}

/// Hands the headers of the record of an attempt to `sink`: the producer's own in order, then those that tell the reader about the
/// attempt.
pub fn write_headers(task: &Task, sink: &mut Sink<'_>) {
    for header in &task.record.headers {
        sink(header.name.as_bytes(), header.value.as_deref());
    }
    for (name, text) in crate::identity(task) {
        sink(name.as_bytes(), Some(text.as_bytes()));
    }
}

// === impl Config ===

impl Config {
    /// Refuses a topic that Kafka would refuse.
    pub fn validate(&self) -> Result<(), Error> {
        let topic = self.topic.as_str();
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        let fits = (1..=MAX_TOPIC).contains(&topic.len()) && topic.bytes().all(allowed);
        if !fits || topic == "." || topic == ".." {
            return Err(Error::Topic {
                topic: topic.to_owned(),
            });
        }
        Ok(())
    }
}

impl Configured for Config {
    fn kind(&self) -> &'static str {
        "kafka"
    }

    fn core(&self) -> scene::Target {
        let topic = Arc::from(self.topic.as_str());
        scene::Target::Produce { topic }
    }

    fn destination(&self) -> Result<Destination<'_>, crate::Error> {
        self.validate()?;
        Ok(Destination::Topic(&self.topic))
    }

    /// The transaction of the ledger has its own bounds.
    fn timeout(&self) -> Option<Duration> {
        None
    }

    /// The ledger's producer connects, by `[kafka]`.
    fn profile(&self) -> Option<&str> {
        None
    }

    fn references(&self) -> Vec<(String, &Reference)> {
        Vec::new()
    }

    fn exposed(&mut self) -> Vec<(String, Exposed<'_>)> {
        Vec::new()
    }

    fn problems(&self, _outbound: &Outbound) -> Vec<crate::Error> {
        let error = self.validate().err();
        error.map(crate::Error::Kafka).into_iter().collect()
    }

    fn build(&self, _outbound: &Outbound) -> Result<Option<Arc<dyn Target>>, crate::Error> {
        self.validate()?;
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture;

    #[test]
    fn only_names_that_kafka_allows_are_topics() {
        let valid = |topic: &str| {
            let topic = topic.to_owned();
            Config { topic }.validate().is_ok()
        };

        for topic in ["a", "Orders.v1_retry-2", "...", &"x".repeat(MAX_TOPIC)] {
            assert!(valid(topic), "{topic}");
        }
        for topic in ["", ".", "..", "a b", "é", "a/b", &"x".repeat(MAX_TOPIC + 1)] {
            assert!(!valid(topic), "{topic}");
        }
    }

    #[test]
    fn the_producers_headers_come_first_and_unchanged() {
        let task = fixture::task(&[("b", Some(b"\xff")), ("a", None), ("b", Some(b""))]);

        let mut headers = Vec::new();
        write_headers(&task, &mut |name, value| {
            headers.push((name.to_owned(), value.map(<[u8]>::to_vec)));
        });

        let expected: [(&str, Option<&[u8]>); 9] = [
            ("b", Some(b"\xff")),
            ("a", None),
            ("b", Some(b"")),
            ("retry-id", Some(b"order-7")),
            ("retry-scene", Some(b"payment")),
            ("retry-attempt", Some(b"3")),
            ("retry-due-at", Some(b"1700000000123")),
            ("retry-origin", Some(b"orders/4/99")),
            ("retry-round", Some(b"3")),
        ];
        let expected = expected.map(|(name, value)| {
            let name = name.as_bytes().to_vec();
            (name, value.map(<[u8]>::to_vec))
        });
        assert_eq!(headers, expected);
    }
}
