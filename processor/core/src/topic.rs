//! The names of retide's own topics, as far as a name tells whose a topic is.
//!
//! Not what a topic is for: the catalogue of topics says that. Invariant: a topic of retide is its own under every prefix, whatever
//! tiers are configured.

/// The ends of the names of retide's topics, but for those of tiers: what there is now, and what there may be.
const OWN: [&str; 12] = [
    "tasks",
    "callbacks",
    "alerts",
    "dead-letters",
    "events",
    "order",
    "scenes",
    "commands",
    "taken",
    "signals",
    "workers",
    "lag",
];

/// Whether a topic is retide's own under `prefix`, whatever tiers are configured: nobody but retide delivers there.
pub fn is_own(prefix: &str, topic: &str) -> bool {
    let name = topic.strip_prefix(prefix);
    let name = name.and_then(|name| name.strip_prefix('.'));
    name.is_some_and(|name| OWN.contains(&name) || name.starts_with("delay."))
}
