//! The breakers of a worker's scenes: who may call a target that may be down, and what waits for it.
//!
//! When a breaker is open, is [`crate::breaker`]'s. Invariant: a permit is returned exactly once, used or not; a task that is rejected uses
//! no attempt.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use crate::breaker::{
    Answer, Breaker, Fraction, Key, Permit, Rejected, State, StateChange, Subject,
};
use crate::gate::Gates;
use crate::planted::Planted;
use crate::scene::{Route, Scenes};
use crate::step::Action;
use crate::task::Kind;
use crate::tier::HORIZON;

/// Where a task waits whose breaker is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shelter {
    /// In memory, until the breaker is asked again.
    Memory,
    /// In a tier, until the breaker is asked again: the task is one of the first, which probe.
    ProbeTier,
    /// In a tier, for longer.
    Tier,
}

/// The breakers of a worker's scenes.
#[derive(Debug, Default)]
pub(super) struct Breakers {
    /// The breakers of the scenes in force.
    by_key: HashMap<Key, Watched>,
    /// The mistake they make.
    pub(super) bug: Planted,
}

/// The permit of a breaker for one call.
#[derive(Clone, Debug)]
pub(super) struct CallPermit {
    /// Whom the breaker is about.
    pub(super) target: Subject,
    /// The breaker.
    pub(super) breaker: Arc<Breaker>,
    /// The permit that the breaker gave.
    pub(super) permit: Permit,
}

/// The permits for one call of a target.
#[derive(Clone, Debug, Default)]
pub(super) struct CallPermits {
    /// The permit of the target's breaker, where it has one.
    pub(super) breaker: Option<CallPermit>,
    /// The permit of the target's wall.
    pub(super) wall: Option<CallPermit>,
}

/// A breaker, and what waits for it.
#[derive(Debug)]
struct Watched {
    /// The breaker.
    breaker: Arc<Breaker>,
    /// When it is asked again.
    until: Duration,
    /// Tasks that wait in memory until then.
    held: u32,
    /// Tasks that wait in a tier until then.
    probes: u32,
}

/// Tasks that wait in memory for a breaker to let something through: more than there are probes as a rule, so that a scene with few tasks
/// goes on at once, and too few to keep offsets of a lane open that others need.
const HELD: u32 = 32;

// === impl Breakers ===

impl Breakers {
    /// Has those of these scenes, and no others.
    pub(super) fn follow(&mut self, scenes: &Scenes, gates: &Gates) {
        let kinds = |scene| Kind::ALL.into_iter().map(move |kind| (scene, kind));
        let routes = scenes.iter().flat_map(|scene| kinds(&**scene));
        let routes = routes.filter_map(|(scene, kind)| scene.route(kind));
        let keys = routes.flat_map(|route| [route.breaker, route.wall]);
        let keys: Vec<&Key> = keys.flatten().collect();
        for key in &keys {
            self.get(key, gates);
        }
        let keys: HashSet<&Key> = keys.into_iter().collect();
        self.by_key.retain(|key, _| keys.contains(key));
    }

    /// The breaker of this key.
    fn get(&mut self, key: &Key, gates: &Gates) -> Arc<Breaker> {
        if let Some(watched) = self.by_key.get(key) {
            return Arc::clone(&watched.breaker);
        }
        let breaker = gates.breaker(key);
        let watched = Watched {
            breaker: Arc::clone(&breaker),
            until: Duration::ZERO,
            held: 0,
            probes: 0,
        };
        self.by_key.insert(key.clone(), watched);
        breaker
    }

    /// Where to put a task whose breaker is asked again at `until`.
    pub(super) fn shelter(&mut self, key: &Key, now: Duration, until: Duration) -> Shelter {
        let Some(watched) = self.by_key.get_mut(key) else {
            unreachable!("denied by a breaker that was not asked");
        };
        if watched.until != until {
            (watched.until, watched.held, watched.probes) = (until, 0, 0);
        }
        if until.saturating_sub(now) <= HORIZON {
            if watched.held < HELD {
                watched.held += 1;
                return Shelter::Memory;
            }
        } else if watched.probes < key.rule.probes {
            watched.probes += 1;
            return Shelter::ProbeTier;
        }
        Shelter::Tier
    }

    /// Asks the wall and the breaker of a route for one call; who says no, and how.
    pub(super) fn ask<'a>(
        &mut self,
        now: Duration,
        route: Route<'a>,
        gates: &Gates,
        actions: &mut Vec<Action>,
    ) -> Result<CallPermits, (&'a Key, Rejected)> {
        let mut permits = CallPermits::default();
        if let Some(key) = route.wall {
            let permit = self.ask_one(now, key, gates, actions);
            permits.wall = Some(permit.map_err(|rejected| (key, rejected))?);
        }
        if let Some(key) = route.breaker {
            match self.ask_one(now, key, gates, actions) {
                Ok(permit) => permits.breaker = Some(permit),
                Err(rejected) => {
                    permits.unused();
                    return Err((key, rejected));
                }
            }
        }
        Ok(permits)
    }

    /// How long the target of this breaker may not be called as often as usual, having been down.
    pub(super) fn ramp_left(
        &mut self,
        now: Duration,
        key: &Key,
        gates: &Gates,
    ) -> Option<Duration> {
        self.get(key, gates).ramp_left(now)
    }

    /// Whom there are breakers about, and the worst state that one of each is in.
    pub(super) fn states(&self) -> HashMap<Subject, State> {
        let mut states: HashMap<Subject, State> = HashMap::new();
        for (key, watched) in &self.by_key {
            let state = watched.breaker.state();
            states
                .entry(key.target.clone())
                .and_modify(|worst| *worst = state.max(*worst))
                .or_insert(state);
        }
        states
    }

    /// Asks one breaker for one call.
    fn ask_one(
        &mut self,
        now: Duration,
        key: &Key,
        gates: &Gates,
        actions: &mut Vec<Action>,
    ) -> Result<CallPermit, Rejected> {
        let breaker = self.get(key, gates);
        self.bug.asks(&breaker, now)?;
        let Answer { permit, switch } = breaker.ask(now);
        let target = key.target.clone();
        say_switch(&target, switch, actions);
        permit.map(|permit| CallPermit {
            target,
            breaker,
            permit,
        })
    }
}

// === impl CallPermits ===

impl CallPermits {
    /// The part of the calls that may usually be in flight.
    pub(super) fn ramp(&self) -> Fraction {
        let breaker = self.breaker.as_ref();
        breaker.map_or(Fraction::WHOLE, |breaker| breaker.permit.ramp)
    }

    /// Returns the permits of a call that is not made.
    pub(super) fn unused(self) {
        for CallPermit {
            breaker, permit, ..
        } in [self.breaker, self.wall].into_iter().flatten()
        {
            breaker.unused(permit);
        }
    }
}

/// Says that a breaker has switched, if it has.
pub(super) fn say_switch(target: &Subject, switch: Option<StateChange>, actions: &mut Vec<Action>) {
    if let Some(switch) = switch {
        actions.push(Action::Switched {
            target: target.clone(),
            switch,
        });
    }
}
