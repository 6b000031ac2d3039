//! Command lines of Kafka's own tools.
//!
//! Invariant: what is printed may be pasted into a POSIX shell, whatever the names in it are.

use rdkafka::ClientConfig;

/// Writes the command lines that mend one cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Tools {
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
    pub(super) fn new(config: &ClientConfig, bootstrap: &str) -> Self {
        let protocol = config.get("security.protocol");
        let name = config.get("sasl.username").unwrap_or("NAME");
        Self {
            bootstrap: bootstrap.to_owned(),
            principal: format!("User:{name}"),
            secured: protocol.is_some_and(|protocol| !protocol.eq_ignore_ascii_case("plaintext")),
        }
    }

    /// Sets one setting of a topic.
    pub(super) fn set(&self, topic: &str, key: &str, value: &str) -> String {
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

    /// Creates a topic with what brokers give by default.
    pub(super) fn create(&self, topic: &str) -> String {
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
    pub(super) fn describe(&self, topic: &str) -> String {
        self.run("kafka-topics.sh", &["--describe", "--topic", topic])
    }

    /// Lets retide's user do `operations` on what begins with `name`; `resource` is the tool's option for the kind of it.
    pub(super) fn allow(&self, operations: &[&str], resource: &str, name: &str) -> String {
        let mut words = vec!["--add", "--allow-principal", &self.principal];
        for operation in operations {
            words.extend(["--operation", operation]);
        }
        words.extend([resource, name, "--resource-pattern-type", "prefixed"]);
        self.run("kafka-acls.sh", &words)
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

/// The words as a line for a shell.
pub(super) fn line<S: AsRef<str>>(words: &[S]) -> String {
    let words: Vec<String> = words.iter().map(|text| word(text.as_ref())).collect();
    words.join(" ")
}

/// One word, in quotes where a shell would read more than its letters.
fn word(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-:,=/@%+".contains(&byte);
    if !text.is_empty() && text.bytes().all(plain) {
        return text.to_owned();
    }
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_reaches_a_program_as_it_is() {
        for text in [
            "",
            "a b",
            "it's",
            "$(x) `y` \\ \"",
            "*",
            "~",
            "plain.word-1",
            "a\nb",
        ] {
            let command = format!("printf %s {}", word(text));

            let output = std::process::Command::new("sh")
                .args(["-c", &command])
                .output()
                .unwrap();

            assert_eq!(String::from_utf8_lossy(&output.stdout), text);
        }
    }

    #[test]
    fn a_secured_cluster_needs_credentials_and_names_its_user() {
        let mut config = ClientConfig::new();
        config.set("security.protocol", "SASL_SSL");
        config.set("sasl.username", "retide");

        let fix = Tools::new(&config, "a:9093").allow(&["Write"], "--transactional-id", "retry");

        assert_eq!(
            fix,
            "kafka-acls.sh --bootstrap-server a:9093 --command-config client.properties --add --allow-principal User:retide \
             --operation Write --transactional-id retry --resource-pattern-type prefixed"
        );
    }
}
