//! What a process and its members of the group are called, so that operators can tell which is which.
//!
//! Invariant: the members of one process have different names, and so have those of two processes, unless somebody gave both the same.

use std::process;

use retide_config::instance::{host, is_name};
use retide_config::{Config, Guarantee};
use retide_kafka::cluster;
use retide_kafka::topics::Topics;

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
        let instance_id = config.processor.instance_id.as_ref();
        let name = format!("worker-{number}");
        Self {
            client_id: Some(format!("{}-{}", client(config, &name), fingerprint(config))),
            instance_id: instance_id.map(|id| format!("{id}-{number}")),
            name,
        }
    }
}

/// What the member of a source's group is called: others know by the end of the name that it is this source's.
pub(crate) fn of_source(config: &Config, source: &str) -> String {
    let client = client(config, &format!("source-{source}"));
    cluster::marked(&client, &mark(config, source))
}

/// What the names of the members of a source's group end with: see [`cluster::mark`].
pub fn mark(config: &Config, source: &str) -> String {
    let topics = Topics::new(&config.topics.prefix, &config.topics.tiers);
    cluster::mark(&topics.tasks, &config.processor.group, source)
}

/// What a client of this process is called that does what `name` says.
fn client(config: &Config, name: &str) -> String {
    let properties = config.kafka.consumer();
    let base = properties.get("client.id").map_or("retide", String::as_str);
    let (host, process) = (host().unwrap_or_default(), process::id());
    let host: String = host.chars().filter(|&letter| is_plain(letter)).collect();
    format!("{base}-{host}-{process}-{name}")
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

/// Whether a letter may be in a name.
fn is_plain(letter: char) -> bool {
    is_name(letter.encode_utf8(&mut [0; 4]))
}
