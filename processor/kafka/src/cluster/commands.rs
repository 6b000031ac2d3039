//! Command lines for people: what somebody has to run for a cluster to be as retide needs it.
//!
//! Not running them. Invariant: each works as it is printed, with the flags that were given.

use rdkafka::ClientConfig;

use retide_core::command;
use retide_native::admin::Operation;

use crate::cluster::acl::{self, Scope, User};
use crate::cluster::plan::Plan;
use crate::cluster::tools::Tools;
use crate::topics::Topics;

/// The command line that creates a topic which is not retide's own, with as many partitions and replicas as brokers give by default.
pub fn create_topic(config: &ClientConfig, bootstrap: &str, topic: &str) -> String {
    Tools::new(config, bootstrap).create(topic)
}

/// The command line that lets retide's user do `operations` on a topic.
pub fn allow(
    config: &ClientConfig,
    bootstrap: &str,
    operations: &[Operation],
    topic: &str,
) -> String {
    Tools::new(config, bootstrap).allow(operations, acl::Resource::Topic, topic)
}

/// The command lines that let retide's user do, on this cluster, all that `users` do.
pub fn allow_all(
    config: &ClientConfig,
    bootstrap: &str,
    users: &[User],
    (plan, scope): (&Plan, &Scope),
    principal: Option<&str>,
    host: Option<&str>,
) -> Vec<String> {
    let tools = Tools::new(config, bootstrap);
    let principal = principal.unwrap_or(tools.principal()).to_owned();
    acl::lines(&acl::rules(users, plan, scope), &tools, &principal, host)
}

/// The same as a `KafkaUser` for the operator of Strimzi.
pub fn strimzi_user(
    users: &[User],
    (plan, scope): (&Plan, &Scope),
    principal: &str,
    host: Option<&str>,
    cluster_label: &str,
) -> String {
    acl::strimzi(
        &acl::rules(users, plan, scope),
        principal,
        host,
        cluster_label,
    )
}

/// The command line that ends a transaction which holds readers of a partition back at `start`.
pub fn abort(config: &ClientConfig, topic: &str, partition: i32, start: i64) -> String {
    Tools::new(config, bootstrap(config)).abort(topic, partition, start)
}

/// The command line that looks for transactions that nobody ends.
pub fn find_hanging(config: &ClientConfig) -> String {
    Tools::new(config, bootstrap(config)).find_hanging()
}

/// The command line that gives all topics so many partitions.
pub fn widen_all(config: &ClientConfig, topics: &Topics, partitions: usize) -> String {
    let prefix = topics.prefix();
    format!(
        "retide init --bootstrap {} --prefix {} --partitions {partitions}",
        command::word(bootstrap(config)),
        command::word(prefix)
    )
}

/// The address of Kafka in a client's configuration.
fn bootstrap(config: &ClientConfig) -> &str {
    let address = config.get("bootstrap.servers");
    address
        .or_else(|| config.get("metadata.broker.list"))
        .unwrap_or_default()
}
