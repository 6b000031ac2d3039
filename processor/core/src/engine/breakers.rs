//! The breakers of a worker's scenes, and the cooldowns of their servers: who may call a target that may be down or wants rest, and what waits
//! for it.
//!
//! When a breaker is open, is [`crate::breaker`]'s; when a server rests, [`crate::cooldown`]'s. Invariant: a permit is returned exactly once,
//! used or not; a task that is rejected uses no attempt.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use crate::breaker::{
    Answer, Breaker, Fraction, Key, Order, Permit, Rejected, State, StateChange, Subject,
};
use crate::cooldown::{Rest, Server};
use crate::forced::AllForced;
use crate::gate::Gates;
use crate::map::Map;
use crate::planted::{Bug, Planted};
use crate::scene::{Cooldown, Route, Scene, Scenes};
use crate::step::{Action, Now};
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
    by_key: Map<Key, Watched>,
    /// The servers that have asked for rest of late, and what waits for that.
    resting: Map<Arc<str>, Resting>,
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
    /// The server that is called, if the scene has its cooldowns.
    pub(super) server: Option<Called>,
}

/// The server of a call.
#[derive(Clone, Debug)]
pub(super) struct Called {
    /// The name.
    pub(super) name: Arc<str>,
    /// The server.
    pub(super) server: Arc<Server>,
    /// Whether its calls start at a pace.
    is_paced: bool,
}

/// Who says that a call may not be made, and how.
#[derive(Clone, Debug)]
pub(super) enum Denied<'a> {
    /// A breaker.
    Breaker(&'a Key, Rejected),
    /// A server wants rest until this steady time.
    Cooldown(Arc<str>, Duration),
    /// A server that has asked for rest is called again at this steady time.
    Pace(Arc<str>, Duration),
}

/// A server that has asked for rest.
#[derive(Debug, Default)]
struct Resting {
    /// When a call of this worker started last, or might have.
    last: Duration,
    /// When it is asked again.
    until: Duration,
    /// Tasks that wait in memory until then.
    held: usize,
}

/// A breaker, and what waits for it.
#[derive(Debug)]
struct Watched {
    /// The breaker.
    breaker: Arc<Breaker>,
    /// The server of a wall's target.
    server: Option<Called>,
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

/// Tasks that wait in memory for the end of a short cooldown: it is known, and they start again one after the other.
const HELD_COOLING: usize = 1_000;

/// When to look at a pace again at the latest: it grows meanwhile.
const ASK_PACE: Duration = Duration::from_secs(1);

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
        let servers: HashSet<&str> = keys.iter().map(|key| key.target.target()).collect();
        self.resting.retain(|name, _| servers.contains(&**name));
    }

    /// The breaker of this key.
    fn get(&mut self, key: &Key, gates: &Gates) -> Arc<Breaker> {
        Arc::clone(&watched(&mut self.by_key, key, gates).breaker)
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

    /// Where to put a task whose server wants rest until `until`.
    pub(super) fn shelter_cooling(
        &mut self,
        name: &Arc<str>,
        now: Duration,
        until: Duration,
    ) -> Shelter {
        let resting = self.resting.entry(Arc::clone(name)).or_default();
        if resting.until != until {
            (resting.until, resting.held) = (until, 0);
        }
        if until.saturating_sub(now) <= HORIZON && resting.held < HELD_COOLING {
            resting.held += 1;
            return Shelter::Memory;
        }
        Shelter::ProbeTier
    }

    /// Asks the server, the wall and the breaker of a route for one call of a worker that owns so many of all shards; who says no, and how.
    pub(super) fn ask<'a>(
        &mut self,
        now: Duration,
        (scene, route): (&Scene, Route<'a>),
        part: (usize, u32),
        gates: &Gates,
        actions: &mut Vec<Action>,
    ) -> Result<CallPermits, Denied<'a>> {
        let mut permits = CallPermits::default();
        if let Some(key) = route.wall {
            let known = watched(&mut self.by_key, key, gates);
            permits.server = match (scene.cooldown, &known.server) {
                (Cooldown::Host, Some(called)) => {
                    ask_server(now, called, part, &mut self.resting, self.bug)?
                }
                (Cooldown::Host | Cooldown::None, _) => None,
            };
            let permit = ask_one(now, key, &known.breaker, self.bug, actions);
            permits.wall = Some(permit.map_err(|rejected| Denied::Breaker(key, rejected))?);
        }
        if let Some(key) = route.breaker {
            let breaker = &watched(&mut self.by_key, key, gates).breaker;
            match ask_one(now, key, breaker, self.bug, actions) {
                Ok(permit) => permits.breaker = Some(permit),
                Err(rejected) => {
                    permits.unused();
                    return Err(Denied::Breaker(key, rejected));
                }
            }
        }
        Ok(permits)
    }

    /// A call starts.
    pub(super) fn started(&mut self, now: Duration, permits: &CallPermits) {
        if let Some(Called {
            name,
            is_paced: true,
            ..
        }) = &permits.server
            && let Some(resting) = self.resting.get_mut(name)
        {
            resting.last = now;
        }
    }

    /// The server of this name, if a scene in force calls it.
    pub(super) fn server(&self, name: &str) -> Option<&Called> {
        let mut watched = self.by_key.values();
        watched.find_map(|watched| {
            watched
                .server
                .as_ref()
                .filter(|called| *called.name == *name)
        })
    }

    /// How long each server will be left alone that has asked for rest.
    pub(super) fn cooldowns(&self, now: Duration) -> HashMap<Arc<str>, Duration> {
        let servers = self
            .by_key
            .values()
            .filter_map(|known| known.server.as_ref());
        servers
            .filter_map(|called| Some((Arc::clone(&called.name), called.server.left(now)?)))
            .collect()
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

    /// Does what people want.
    pub(super) fn force(&self, now: Now, all: &AllForced, actions: &mut Vec<Action>) {
        if self.bug.is(Bug::ForcedIgnored) {
            return;
        }
        let mut breakers: Vec<_> = self.by_key.iter().collect();
        // Not as the map has them: the same history is the same each time.
        breakers.sort_unstable_by_key(|(key, _)| *key);
        for (key, watched) in breakers {
            let order = all.of(now.wall, &key.target).map(|forced| Order {
                revision: forced.revision,
                force: forced.force,
                until: now.steady + forced.until.since(now.wall),
            });
            let switch = watched.breaker.force(now.steady, all.version(), order);
            say_switch(&key.target, switch, actions);
        }
    }

    /// Whom each breaker is about, and the state that it is in.
    pub(super) fn healths(&self) -> impl Iterator<Item = (&Subject, State)> {
        let all = self.by_key.iter();
        all.map(|(key, watched)| (&key.target, watched.breaker.state()))
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

    /// Whose scenes are braked: see [`crate::brake`].
    pub(super) fn floods(&self) -> Vec<Subject> {
        let walls = self.by_key.iter();
        let flooded = walls.filter(|(_, watched)| watched.breaker.is_flood());
        flooded.map(|(key, _)| key.target.clone()).collect()
    }

    /// Whose breakers are not closed since people want that.
    pub(super) fn by_people(&self) -> HashSet<Subject> {
        let all = self.by_key.iter();
        let by_people = all.filter(|(_, watched)| watched.breaker.is_by_people());
        by_people.map(|(key, _)| key.target.clone()).collect()
    }
}

// === impl CallPermits ===

impl CallPermits {
    /// The part of the calls that may usually be in flight.
    pub(super) fn ramp(&self) -> Fraction {
        let permits = [&self.breaker, &self.wall].into_iter().flatten();
        let ramps = permits.map(|permit| permit.permit.ramp);
        ramps.min().unwrap_or(Fraction::WHOLE)
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

/// What is known of the breaker of this key; it is made where it is not there.
fn watched<'a>(by_key: &'a mut Map<Key, Watched>, key: &Key, gates: &Gates) -> &'a mut Watched {
    if !by_key.contains_key(key) {
        let breaker = gates.breaker(key);
        let server = key.target.is_wall().then(|| Called {
            name: key.target.target().into(),
            server: gates.server(key.target.target()),
            is_paced: false,
        });
        let watched = Watched {
            breaker,
            server,
            until: Duration::ZERO,
            held: 0,
            probes: 0,
        };
        by_key.insert(key.clone(), watched);
    }
    by_key
        .get_mut(key)
        .unwrap_or_else(|| unreachable!("it was just put there"))
}

/// Asks the server of a wall's target for one call of a worker that owns so many of all shards.
fn ask_server(
    now: Duration,
    called: &Called,
    (owned, all): (usize, u32),
    resting: &mut Map<Arc<str>, Resting>,
    bug: Planted,
) -> Result<Option<Called>, Denied<'static>> {
    match bug.rests(called.server.rest(now), now) {
        Rest::None => Ok(Some(called.clone())),
        Rest::Shut { until } => Err(Denied::Cooldown(Arc::clone(&called.name), until)),
        Rest::Paced { pace, since } => {
            let name = &called.name;
            let gap = pace.gap(owned, all);
            let resting = resting.entry(Arc::clone(name)).or_default();
            if resting.last < since {
                resting.last = since;
            }
            let next = resting.last.saturating_add(gap);
            if now < next {
                let until = next.min(now + ASK_PACE);
                return Err(Denied::Pace(Arc::clone(name), until));
            }
            Ok(Some(Called {
                is_paced: true,
                ..called.clone()
            }))
        }
    }
}

/// Asks one breaker for one call.
fn ask_one(
    now: Duration,
    key: &Key,
    breaker: &Arc<Breaker>,
    bug: Planted,
    actions: &mut Vec<Action>,
) -> Result<CallPermit, Rejected> {
    bug.asks(breaker, now)?;
    let Answer { permit, switch } = breaker.ask(now);
    say_switch(&key.target, switch, actions);
    permit.map(|permit| CallPermit {
        target: key.target.clone(),
        breaker: Arc::clone(breaker),
        permit,
    })
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
