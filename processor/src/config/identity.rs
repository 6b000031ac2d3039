//! What a process and its members of the group are called, so that operators can tell which is which.
//!
//! Invariant: the members of one process have different names, and so have those of two processes, unless somebody gave both the same.

use std::fs;
use std::process;

use crate::cluster;
use crate::config::{Config, Guarantee, text};

/// What a member of the group is called.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// The name of the worker in this process.
    pub name: String,
    /// The name of its client: of this one only, since quotas may be given to the names of clients.
    pub client_id: Option<String>,
    /// The name that it has from one start to the next, if it is a static member.
    pub instance_id: Option<String>,
}

/// Where the kernel says what the machine is called: in a container, as a rule, what its pod is.
const HOST: &str = "/proc/sys/kernel/hostname";

/// The variable that says the same, where there is one.
const VARIABLE: &str = "HOSTNAME";

/// Longest name: a member adds its number to it, and brokers take 249 characters.
const LONGEST: usize = 200;

// === impl Identity ===

impl Identity {
    /// The identity of a worker called `name` that nobody has to tell from others.
    pub fn named(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            ..Self::default()
        }
    }

    /// The identity of worker `number` of this process.
    pub fn of(config: &Config, number: usize) -> Self {
        let client = config.kafka.consumer();
        let base = client.get("client.id").unwrap_or("retide");
        let (host, process) = (host().unwrap_or_default(), process::id());
        let host: String = host.chars().filter(|letter| is_plain(*letter)).collect();
        let instance_id = config.processor.instance_id.as_ref();
        let name = format!("worker-{number}");
        Self {
            client_id: Some(format!(
                "{base}-{host}-{process}-{name}-{}",
                fingerprint(config)
            )),
            instance_id: instance_id.map(|id| format!("{id}-{number}")),
            name,
        }
    }
}

/// What members of a group have to have in common, as the end of their clients' names: others see nothing else of it.
pub fn fingerprint(config: &Config) -> String {
    let guarantee = match config.processor.guarantee {
        Guarantee::ExactlyOnce => cluster::EXACTLY_ONCE,
        Guarantee::AtLeastOnce => cluster::AT_LEAST_ONCE,
    };
    let tiers = config.topics.tiers.tiers().iter();
    let tiers: Vec<&str> = tiers.map(|tier| &*tier.name).collect();
    cluster::fingerprint(guarantee, &tiers)
}

/// Puts the values of variables in the place of `${NAME}`.
pub(super) fn expand(written: &str, variables: &[(String, String)]) -> Result<String, String> {
    let mut parts = written.split("${");
    let mut expanded = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let Some((name, rest)) = part.split_once('}') else {
            return Err(format!("`${{{part}` has no end: expected `}}`"));
        };
        let value = variables.iter().find(|(known, _)| known == name);
        let value = value.map(|(_, value)| value.clone());
        let value = value.or_else(|| host().filter(|_| name == VARIABLE));
        let value = value.ok_or_else(|| format!("there is no variable {name}"))?;
        expanded.push_str(&value);
        expanded.push_str(rest);
    }
    if !text::is_name(&expanded, LONGEST) {
        return Err(format!(
            "`{expanded}`: expected 1 to {LONGEST} letters, digits, dots, underscores or dashes"
        ));
    }
    Ok(expanded)
}

/// What the machine is called, if it says so.
fn host() -> Option<String> {
    let name = fs::read_to_string(HOST).ok()?.trim().to_owned();
    (!name.is_empty()).then_some(name)
}

/// Whether a letter may be in a name.
fn is_plain(letter: char) -> bool {
    text::is_name(letter.encode_utf8(&mut [0; 4]), 4)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instance_id_takes_in_variables_and_is_a_name() {
        let variables = [("POD".to_owned(), "shop-7".to_owned())];
        let expand = |written| expand(written, &variables);

        assert_eq!(expand("retide-0"), Ok("retide-0".to_owned()));
        assert_eq!(expand("a-${POD}.b"), Ok("a-shop-7.b".to_owned()));
        assert!(expand("${HOSTNAME}").is_ok());
        for (written, message) in [
            ("${NODE}", "there is no variable NODE"),
            ("x${POD", "`${POD` has no end: expected `}`"),
            (
                "a b",
                "`a b`: expected 1 to 200 letters, digits, dots, underscores or dashes",
            ),
        ] {
            assert_eq!(expand(written), Err(message.to_owned()));
        }
    }
}
