//! Command lines of Kafka's own tools.
//!
//! Invariant: what is printed may be pasted into a POSIX shell, whatever the names in it are.

use rdkafka::ClientConfig;

use retide_core::command::{line, word};
use retide_native::admin::Operation;

use crate::cluster::acl::{self, Resource};

/// Writes the command lines that mend one cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tools {
    /// The brokers' addresses.
    bootstrap: String,
    /// The user that retide is to the brokers.
    principal: String,
    /// Whether the tools need credentials or certificates, which are named in a file.
    secured: bool,
}

/// The file that the tools read credentials from, by the name that Kafka's own documentation has for it.
const CREDENTIALS: &str = "client.properties";

// === impl Tools ===

impl Tools {
    /// The tools for the cluster of `config`, whose addresses are `bootstrap`.
    pub fn new(config: &ClientConfig, bootstrap: &str) -> Self {
        let protocol = config.get("security.protocol");
        let name = config.get("sasl.username").unwrap_or("NAME");
        Self {
            bootstrap: bootstrap.to_owned(),
            principal: format!("User:{name}"),
            secured: protocol.is_some_and(|protocol| !protocol.eq_ignore_ascii_case("plaintext")),
        }
    }

    /// Sets one setting of a topic.
    pub fn set(&self, topic: &str, key: &str, value: &str) -> String {
        let setting = format!("{key}={value}");
        self.run(
            "kafka-configs.sh",
            &[
                "--alter",
                "--entity-type",
                "topics",
                "--entity-name",
                topic,
                "--add-config",
                &setting,
            ],
        )
    }

    /// Adds partitions to a topic.
    pub(super) fn widen(&self, topic: &str, partitions: usize) -> String {
        let partitions = partitions.to_string();
        self.run(
            "kafka-topics.sh",
            &["--alter", "--topic", topic, "--partitions", &partitions],
        )
    }

    /// Forgets what a group has committed for a topic.
    pub(super) fn delete_offsets(&self, group: &str, topic: &str) -> String {
        self.run(
            "kafka-consumer-groups.sh",
            &["--delete-offsets", "--group", group, "--topic", topic],
        )
    }

    /// Forgets a group.
    pub(super) fn delete_group(&self, group: &str) -> String {
        self.run("kafka-consumer-groups.sh", &["--delete", "--group", group])
    }

    /// Looks for transactions that nobody ends.
    pub(super) fn find_hanging(&self) -> String {
        self.run(
            "kafka-transactions.sh",
            &["find-hanging", "--broker-id", "ID"],
        )
    }

    /// Ends a transaction that nobody else ends.
    pub(super) fn abort(&self, topic: &str, partition: i32, start: i64) -> String {
        let (partition, start) = (partition.to_string(), start.to_string());
        self.run(
            "kafka-transactions.sh",
            &[
                "abort",
                "--topic",
                topic,
                "--partition",
                &partition,
                "--start-offset",
                &start,
            ],
        )
    }

    /// Creates a topic with what brokers give by default.
    pub fn create(&self, topic: &str) -> String {
        self.run(
            "kafka-topics.sh",
            &["--create", "--if-not-exists", "--topic", topic],
        )
    }

    /// Lists what users may do.
    pub(super) fn list_acls(&self) -> String {
        self.run("kafka-acls.sh", &["--list"])
    }

    /// Shows which requests the brokers know.
    pub(super) fn versions(&self) -> String {
        self.run("kafka-broker-api-versions.sh", &[])
    }

    /// Shows a topic.
    pub fn describe(&self, topic: &str) -> String {
        self.run("kafka-topics.sh", &["--describe", "--topic", topic])
    }

    /// Lets retide's user write to a topic.
    pub fn allow_write(&self, topic: &str) -> String {
        self.allow(&[Operation::Write], Resource::Topic, topic)
    }

    /// Lets retide's user do `operations` on what is called `name`.
    pub(super) fn allow(&self, operations: &[Operation], resource: Resource, name: &str) -> String {
        self.grant(operations, resource, &[name], &[])
    }

    /// Lets retide's user do `operations` on all that begins with `prefix`, which ends in a separator.
    pub(super) fn allow_prefix(
        &self,
        operations: &[Operation],
        resource: Resource,
        prefix: &str,
    ) -> String {
        self.grant(
            operations,
            resource,
            &[prefix],
            &["--resource-pattern-type", "prefixed"],
        )
    }

    /// Lets retide's user do `operations` on what has these names, with more options.
    fn grant(
        &self,
        operations: &[Operation],
        resource: Resource,
        names: &[&str],
        more: &[&str],
    ) -> String {
        let mut words = vec!["--add", "--allow-principal", &self.principal];
        for operation in operations {
            words.extend(["--operation", acl::operation_word(*operation)]);
        }
        for name in names {
            words.extend([resource.option(), name]);
        }
        words.extend(more);
        self.acls(&words)
    }

    /// Calls the tool for ACLs.
    pub(super) fn acls(&self, words: &[&str]) -> String {
        self.run("kafka-acls.sh", words)
    }

    /// The user that retide is to the brokers, as ACLs name it.
    pub(super) fn principal(&self) -> &str {
        &self.principal
    }

    /// Moves partitions to the replicas that `plan`, a reassignment in JSON, names.
    pub(super) fn reassign(&self, topic: &str, plan: &str) -> String {
        let file = format!("{topic}.json");
        let write = line(&["printf", "%s", plan]);
        let run = self.run(
            "kafka-reassign-partitions.sh",
            &["--reassignment-json-file", &file, "--execute"],
        );
        format!("{write} > {} && {run}", word(&file))
    }

    /// A line of one of the tools.
    fn run(&self, tool: &str, words: &[&str]) -> String {
        let mut all = vec![tool, "--bootstrap-server", &self.bootstrap];
        if self.secured {
            all.extend(["--command-config", CREDENTIALS]);
        }
        all.extend(words);
        line(&all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secured_cluster_needs_credentials_and_names_its_user() {
        let mut config = ClientConfig::new();
        config.set("security.protocol", "SASL_SSL");
        config.set("sasl.username", "retide");

        let fix = Tools::new(&config, "a:9093").allow_prefix(
            &[Operation::Write],
            Resource::TransactionalId,
            "retry-",
        );

        assert_eq!(
            fix,
            "kafka-acls.sh --bootstrap-server a:9093 --command-config client.properties --add --allow-principal User:retide \
             --operation Write --transactional-id retry- --resource-pattern-type prefixed"
        );
    }
}
