//! Cooldowns as numbers: which servers are left alone, and how often they wanted that.
//!
//! Invariant: a server has series only while a scene in force calls it.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use retide_core::Scenes;
use retide_core::cooldown::Teller;
use retide_core::scene::Cooldown;

use crate::metrics::breakers::TargetLabels;
use crate::metrics::{OTHER, add, escape, lock};

/// What is counted of cooldowns by server.
pub(super) struct CooldownFamilies {
    /// How long a server will be left alone.
    left: Family<TargetLabels, Gauge<f64, AtomicU64>>,
    /// How often it wanted that.
    begun: Family<TellerLabels, Counter>,
    /// The servers that are told, with what stands for each in the label.
    live: Mutex<HashMap<Arc<str>, Arc<str>>>,
    /// How many of them may have series of their own.
    most: usize,
}

/// Which server, and who has said that it wants rest.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TellerLabels {
    /// The server, escaped.
    target: String,
    /// The word for who has said so.
    told_by: &'static str,
}

/// Who may say so.
const TELLERS: [Teller; 2] = [Teller::Server, Teller::Process];

// === impl CooldownFamilies ===

impl CooldownFamilies {
    /// Registers what is counted of cooldowns.
    pub(super) fn register(registry: &mut Registry, most: usize) -> Self {
        let help = "For how long a target will be left alone since it wants rest, in seconds";
        let left = add(registry, ("cooldown_seconds", help), Family::default());
        let help = "How often a target wanted rest, by who has said so to this process";
        let begun = add(registry, ("cooldowns", help), Family::default());
        Self {
            left,
            begun,
            live: Mutex::default(),
            most,
        }
    }

    /// Only the servers of these scenes have cooldowns from now on.
    pub(super) fn keep(&self, scenes: &Scenes) {
        let with = scenes
            .iter()
            .filter(|scene| scene.cooldown == Cooldown::Host);
        let keys = with.flat_map(|scene| [&scene.walls.work, &scene.walls.callback]);
        let servers: HashSet<&str> = keys.flatten().map(|key| key.target.target()).collect();
        let mut live = lock(&self.live);
        live.retain(|server, label| {
            let stays = servers.contains(&**server);
            if !stays && label == server {
                self.left.remove(&TargetLabels::new(label));
                for teller in TELLERS {
                    self.begun.remove(&TellerLabels::new(label, teller));
                }
            }
            stays
        });
        for server in servers {
            if live.contains_key(server) {
                continue;
            }
            let label: Arc<str> = if live.len() < self.most {
                server.into()
            } else {
                OTHER.into()
            };
            drop(self.left.get_or_create_owned(&TargetLabels::new(&label)));
            for teller in TELLERS {
                let labels = TellerLabels::new(&label, teller);
                drop(self.begun.get_or_create_owned(&labels));
            }
            live.insert(server.into(), label);
        }
    }

    /// A cooldown has begun, or is longer than was known.
    pub(super) fn began(&self, server: &str, teller: Teller) {
        // A worker may still have what is not in force any more.
        if let Some(label) = lock(&self.live).get(server) {
            let labels = TellerLabels::new(label, teller);
            self.begun.get_or_create_owned(&labels).inc();
        }
    }

    /// So long these servers will be left alone, and no others; under one label, the longest time is told.
    pub(super) fn are(&self, cooling: &HashMap<Arc<str>, Duration>) {
        let live = lock(&self.live);
        let mut longest: HashMap<&Arc<str>, Duration> = HashMap::new();
        for (server, label) in live.iter() {
            let left = cooling.get(server).copied().unwrap_or_default();
            let known = longest.entry(label).or_default();
            *known = left.max(*known);
        }
        for (label, left) in longest {
            let gauge = self.left.get_or_create_owned(&TargetLabels::new(label));
            gauge.set(left.as_secs_f64());
        }
    }
}

// === impl TellerLabels ===

impl TellerLabels {
    /// The labels of cooldowns.
    fn new(target: &str, teller: Teller) -> Self {
        Self {
            target: escape(target),
            told_by: teller.word(),
        }
    }
}
