//! What commit metadata is bound to: the ids of the cluster and of the topics that are read.
//!
//! Not the check itself, which is the core's. Invariant: a binding is made of what the cluster says now, never of what was said of a topic
//! that has been created again since.

use std::collections::HashMap;
use std::time::Duration;

use rdkafka::client::{Client, ClientContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};

use retide_core::completions::Binding;
use retide_kafka::topics::Topics;
use retide_native::topics::{self, TopicId};

/// The ids of a cluster and its topics.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Bindings {
    /// The cluster's id.
    cluster: String,
    /// The id of each topic that is there and has one, by its name.
    topics: HashMap<String, TopicId>,
}

// === impl Bindings ===

impl Bindings {
    /// Asks for the ids of the topics that are read, and waits for them about `patience`.
    ///
    /// # Errors
    /// If the ids are not known by then.
    pub(crate) fn ask<C: ClientContext>(
        client: &Client<C>,
        topics: &Topics,
        patience: Duration,
    ) -> Result<Self, KafkaError> {
        let names: Vec<&str> = topics.read().map(|(_, name)| &**name).collect();
        let question = topics::ask(client, &names, patience)?;
        let cluster = topics::cluster_id(client, patience).ok_or(KafkaError::MetadataFetch(
            RDKafkaErrorCode::OperationTimedOut,
        ))?;
        // A topic that is not there is not read either.
        let found = question.wait()?.into_iter().flatten();
        Ok(Self {
            cluster,
            topics: found
                .filter_map(|topic| Some((topic.name, topic.id?)))
                .collect(),
        })
    }

    /// What the metadata of a commit for this partition is bound to.
    pub(crate) fn of(&self, topic: &str, partition: i32) -> Binding {
        let id = self.topics.get(topic).map_or(0, |TopicId(id)| *id);
        Binding::new(&self.cluster, topic, id, partition)
    }
}
