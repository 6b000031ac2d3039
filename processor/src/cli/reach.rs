//! What commands ask of a cluster before they begin, and what they say where it is refused.
//!
//! Invariant: a refusal names the topic or group, and the command line that mends it.

use std::collections::BTreeMap;
use std::sync::Arc;

use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use tokio::runtime::Runtime;

use retide_config::Config;
use retide_core::with_causes;
use retide_kafka::client::client_config;
use retide_kafka::cluster::{self, Severity, User};
use retide_kafka::topics::Topics;
use retide_shell::process;
use retide_shell::scenes::{self, Follower};

use crate::cli::init;
use crate::cli::output::{Exit, Failed};

/// The topics of a configuration, with the one that tasks come in by.
pub(super) fn topics(config: &Config) -> Topics {
    Topics::new(&config.topics.prefix, &config.topics.tiers)
        .with_intake(config.topics.tasks.clone())
}

/// The topics that exist, with their numbers of partitions; fails if the first one of `topics` does not, or `user` may not do what it does
/// on one of them.
pub(super) fn reach(
    config: &Config,
    user: User,
    topics: &[&Arc<str>],
) -> Result<BTreeMap<Arc<str>, usize>, Failed> {
    let (plan, scope) = (process::plan(config), init::scope(config, &BTreeMap::new()));
    let names: Vec<&str> = topics.iter().map(|topic| &***topic).collect();
    let client = client_config(config.kafka.client());
    let asked = cluster::reach(&client, &plan, (user, &scope), &names);
    let there = Runtime::new()?.block_on(asked)?;
    // Workers do without that one, and who asks for it here does not.
    let denied = |denial: &&cluster::Finding| {
        denial.severity != Severity::Warn || denial.problem == cluster::DENIED_NEW
    };
    if let Some(denial) = there.denials.iter().find(denied) {
        let message = format!("{}: {}", denial.subject, denial.problem);
        return Err(Failed::because(Exit::Precondition, message).with_fix(&denial.fix));
    }
    let missing = topics
        .first()
        .filter(|topic| !there.partitions.contains_key(**topic));
    if let Some(missing) = missing {
        return Err(missing_topic(config, missing));
    }
    Ok(there.partitions)
}

/// Reads the scenes topic, for somebody who may do what `user` does.
pub(super) fn scenes_of(config: &Config, user: User, topics: &Topics) -> Result<Follower, Failed> {
    let client = client_config(config.kafka.consumer());
    let group = &config.processor.group;
    Follower::start(&client, &topics.scenes, group).map_err(|error| match &error {
        scenes::Error::Kafka { topic, source } => {
            failed(config, user, &format!("read {topic}"), source)
        }
        scenes::Error::Missing { .. }
        | scenes::Error::Slow { .. }
        | scenes::Error::Encode { .. } => error.into(),
    })
}

/// A topic that does not exist.
pub(super) fn missing_topic(config: &Config, topic: &str) -> Failed {
    let message = format!("topic {topic} does not exist");
    Failed::because(Exit::Precondition, message).with_fix(&config.invocation.line("init"))
}

/// What it means that `what` failed: a refusal has the command lines that let `user` do all that it does.
pub(super) fn failed(config: &Config, user: User, what: &str, error: &KafkaError) -> Failed {
    let refused = matches!(
        error.rdkafka_error_code(),
        Some(
            RDKafkaErrorCode::TopicAuthorizationFailed
                | RDKafkaErrorCode::GroupAuthorizationFailed
                | RDKafkaErrorCode::TransactionalIdAuthorizationFailed
                | RDKafkaErrorCode::ClusterAuthorizationFailed
        )
    );
    let message = format!("{what}: {}", with_causes(error));
    if refused {
        let fix = init::allow(config, &process::plan(config), user);
        return Failed::because(Exit::Precondition, message).with_fix(&fix);
    }
    let exit = match error.rdkafka_error_code() {
        Some(
            RDKafkaErrorCode::AllBrokersDown
            | RDKafkaErrorCode::BrokerTransportFailure
            | RDKafkaErrorCode::OperationTimedOut
            | RDKafkaErrorCode::MessageTimedOut,
        ) => Exit::Unreachable,
        Some(_) | None => Exit::Failure,
    };
    Failed::because(exit, message)
}
