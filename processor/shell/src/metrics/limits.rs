//! The series of concurrency limits: how many calls may be in flight at once, by scene or host.

use std::collections::{HashMap, HashSet};
use std::sync::Mutex;

use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use retide_core::Scenes;
use retide_core::scene::Of;

use crate::metrics::{add, escape, lock};

/// How many calls may be in flight at once, by scene or host.
pub(super) struct LimitFamily {
    /// The number.
    limit: Family<LimitLabels, Gauge>,
    /// Whose series stand in the family: those of the scenes in force that have something to say.
    live: Mutex<HashMap<Of, Gauge>>,
    /// Who calls anything.
    calling: Mutex<HashSet<Of>>,
}

/// Which scene, or, as the target, which host.
type LimitLabels = [(&'static str, String); 1];

// === impl LimitFamily ===

impl LimitFamily {
    /// Registers the number.
    pub(super) fn register(registry: &mut Registry) -> Self {
        let help = "Calls that this process may have in flight at once, of a scene or of all scenes that share the limit of their target";
        Self {
            limit: add(registry, ("concurrency_limit", help), Family::default()),
            live: Mutex::default(),
            calling: Mutex::default(),
        }
    }

    /// Only these scenes call anything from now on.
    pub(super) fn keep(&self, scenes: &Scenes) {
        let all: HashSet<Of> = scenes.iter().filter_map(|scene| scene.calls_of()).collect();
        let mut live = lock(&self.live);
        live.retain(|of, _| {
            let stays = all.contains(of);
            if !stays {
                self.limit.remove(&limit_labels(of));
            }
            stays
        });
        *lock(&self.calling) = all;
    }

    /// It is this number, as long as no more than `most` are said.
    pub(super) fn set(&self, of: &Of, calls: u32, most: usize) {
        let mut live = lock(&self.live);
        // A worker may still have what is not in force any more.
        if !live.contains_key(of) && live.len() < most && lock(&self.calling).contains(of) {
            let gauge = self.limit.get_or_create_owned(&limit_labels(of));
            live.insert(of.clone(), gauge);
        }
        if let Some(gauge) = live.get(of) {
            gauge.set(calls.into());
        }
    }
}

/// The labels of a limit.
fn limit_labels(of: &Of) -> LimitLabels {
    match of {
        Of::Scene(name) => [("scene", escape(name))],
        Of::Host(name) => [("target", escape(name))],
    }
}
