//! The series of breakers: the state of each target's, and how often it has switched.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use retide_core::Scenes;
use retide_core::breaker::State;

use crate::metrics::{OTHER, add, escape, lock};

/// What is counted by target.
pub(super) struct BreakerFamilies {
    /// The state of its breaker.
    state: Family<TargetLabels, Gauge>,
    /// How often it has switched, and to what.
    switches: Family<SwitchLabels, Counter>,
    /// The targets that are told.
    live: Mutex<Live>,
    /// How many of them may have series of their own.
    most: usize,
}

/// The targets that are told.
#[derive(Default)]
struct Live {
    /// Those that have a breaker in the scenes in force, and of walls those that have been seen.
    watched: HashMap<Arc<str>, Watched>,
    /// What scenes in force see of their targets: a wall is told from the first one on.
    walls: HashSet<Arc<str>>,
}

/// A target whose breaker is told.
struct Watched {
    /// What stands for it in the label.
    label: Arc<str>,
    /// The state of its breaker.
    state: State,
}

/// Which target.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct TargetLabels {
    /// Whom it calls, escaped.
    target: String,
}

/// Which target, and what its breaker did.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct SwitchLabels {
    /// Whom it calls, escaped.
    target: String,
    /// The word for the state it is in since.
    to: &'static str,
}

/// The states of a breaker, each with its value in the gauge.
const STATES: [State; 3] = [State::Closed, State::HalfOpen, State::Open];

// === impl BreakerFamilies ===

impl BreakerFamilies {
    /// Registers what is counted by target.
    pub(super) fn register(registry: &mut Registry, most: usize) -> Self {
        let r = registry;
        let help = "State of the breaker of a target: 0 closed, 1 half-open, 2 open; the worst, where it has several";
        let state = add(r, ("breaker_state", help), Family::default());
        let help = "How often the breaker of a target has switched, by what to";
        let switches = add(r, ("breaker_transitions", help), Family::default());
        Self {
            state,
            switches,
            live: Mutex::default(),
            most,
        }
    }

    /// Only the targets of these scenes have breakers from now on.
    pub(super) fn keep(&self, scenes: &Scenes) {
        let own = scenes.iter().filter_map(|scene| scene.breaker.as_ref());
        let callbacks = scenes.iter().filter_map(|scene| scene.callback.as_ref());
        let callbacks = callbacks.filter_map(|callback| callback.breaker.as_ref());
        let targets: HashSet<&Arc<str>> =
            own.chain(callbacks).map(|key| key.target.text()).collect();
        let walls = scenes.iter().map(|scene| &scene.walls);
        let walls = walls.flat_map(|walls| [&walls.work, &walls.callback]);
        let mut live = lock(&self.live);
        live.walls = walls
            .flatten()
            .map(|key| Arc::clone(key.target.text()))
            .collect();
        let Live { watched, walls } = &mut *live;
        watched.retain(|target, watched| {
            let stays = targets.contains(target) || walls.contains(target);
            if !stays && *watched.label == **target {
                self.state.remove(&TargetLabels::new(target));
                for state in STATES {
                    self.switches.remove(&SwitchLabels::new(target, state));
                }
            }
            stays
        });
        for target in targets {
            self.watch(watched, target);
        }
    }

    /// Tells of the breaker of a target from now on.
    fn watch(&self, all: &mut HashMap<Arc<str>, Watched>, target: &Arc<str>) {
        if all.contains_key(target) {
            return;
        }
        let label = if all.len() < self.most {
            Arc::clone(target)
        } else {
            OTHER.into()
        };
        for state in STATES {
            let labels = SwitchLabels::new(&label, state);
            drop(self.switches.get_or_create_owned(&labels));
        }
        drop(self.state.get_or_create_owned(&TargetLabels::new(&label)));
        let state = State::Closed;
        all.insert(Arc::clone(target), Watched { label, state });
    }

    /// A breaker has switched.
    pub(super) fn switched(&self, target: &str, to: State) {
        let mut live = lock(&self.live);
        let Live { watched, walls } = &mut *live;
        if let Some(wall) = walls.get(target) {
            self.watch(watched, wall);
        }
        // A worker may still have what is not in force any more.
        if let Some(watched) = watched.get(target) {
            let labels = SwitchLabels::new(&watched.label, to);
            self.switches.get_or_create_owned(&labels).inc();
        }
    }

    /// A breaker is in this state; under one label, the worst one is told.
    pub(super) fn set(&self, target: &Arc<str>, state: State) {
        let mut live = lock(&self.live);
        let Some(watched) = live.watched.get_mut(target) else {
            return;
        };
        if watched.state == state {
            return;
        }
        watched.state = state;
        let label = Arc::clone(&watched.label);
        let worst = live
            .watched
            .values()
            .filter(|watched| watched.label == label);
        let worst = worst.map(|watched| watched.state).max();
        let labels = TargetLabels::new(&label);
        let gauge = self.state.get_or_create_owned(&labels);
        gauge.set(match worst.unwrap_or(state) {
            State::Closed => 0,
            State::HalfOpen => 1,
            State::Open => 2,
        });
    }
}

// === impl TargetLabels ===

impl TargetLabels {
    /// The labels of a target.
    pub(super) fn new(target: &str) -> Self {
        let target = escape(target);
        Self { target }
    }
}

// === impl SwitchLabels ===

impl SwitchLabels {
    /// The labels of what a target's breaker did.
    fn new(target: &str, to: State) -> Self {
        let (target, to) = (escape(target), to.word());
        Self { target, to }
    }
}
