//! Gates: how many calls of a scene may be in flight, and what is kept of the breakers and cooldowns of a process.
//!
//! A gate is a scene's own, or that of all scenes that call the same host and name the same concurrency. Not the rate, which is the whole
//! group's and split by shard: see [`crate::quota`]. Not the ready queue in front of a gate. A breaker is here only to be shared; when it is
//! open is [`crate::breaker`]'s, and when a server rests is [`crate::cooldown`]'s. All of them are shared by the workers of a process. Invariant: every admission to a call is given back exactly once, and calls in flight are counted on when
//! the rules change. A gate that no scene in force has, and no call, is forgotten with the next change of rules.

use std::collections::HashSet;
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use dashmap::DashMap;

use crate::breaker::{self, Breaker, Fraction};
use crate::concurrency::{Bounds, Limit};
use crate::cooldown::Server;
use crate::map::Seeded;
use crate::scene::{Scene, Scenes};
use crate::task::Kind;

/// The gates of a process, by scene, and the breakers of their targets.
#[derive(Debug, Default)]
pub struct Gates {
    /// One gate per scene that has its own.
    by_scene: DashMap<Arc<str>, Arc<Gate>, Seeded>,
    /// One gate per host and concurrency.
    by_host: DashMap<(Arc<str>, Calls), Arc<Gate>, Seeded>,
    /// One breaker per target and rule, as long as it is in force in a worker.
    breakers: DashMap<breaker::Key, Weak<Breaker>>,
    /// What is known of the rest of each server, as long as a scene in force in a worker calls it.
    servers: DashMap<Arc<str>, Weak<Server>>,
    /// What this process has that others have not: their cooldowns do not end at the same time.
    seed: u64,
}

/// The most calls in flight, and the fewest where that follows the target.
type Calls = (NonZeroU32, Option<NonZeroU32>);

/// The gate of one scene, or of those of one host.
#[derive(Debug)]
pub struct Gate {
    /// Calls in flight, of all workers; kept when the rules change.
    in_flight: Arc<AtomicU32>,
    /// How long the longest calls of late took, in microseconds, by the kind of task; 0 if none has come
    /// back. Kept like `in_flight`.
    took: Arc<[AtomicU64; Kind::ALL.len()]>,
    /// Most calls in flight.
    concurrency: Concurrency,
}

/// Most calls in flight.
#[derive(Clone, Debug)]
enum Concurrency {
    /// Always so many.
    Fixed(u32),
    /// As many as the target answers well.
    Adaptive(Arc<Limit>),
}

/// The part of a long call that is forgotten with each shorter one: half of it after 44.
const FADES: u64 = 64;

/// As many calls are in flight as may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

// === impl Gates ===

impl Gates {
    /// The gate of `scene`, made or changed to follow its rules.
    pub fn gate(&self, scene: &Scene) -> Arc<Gate> {
        if let Some(key) = key(scene) {
            let gate = self.by_host.entry(key);
            let gate = gate.or_insert_with(|| Arc::new(Gate::new(Concurrency::of(scene))));
            return Arc::clone(&gate);
        }
        // The lock of one who only looks, and no name to make an entry by: this is for each call.
        if let Some(gate) = self.by_scene.get(&scene.name)
            && gate.concurrency.follows(scene)
        {
            return Arc::clone(&gate);
        }
        let mut gate = self
            .by_scene
            .entry(Arc::clone(&scene.name))
            .or_insert_with(|| Arc::new(Gate::new(Concurrency::of(scene))));
        if !gate.concurrency.follows(scene) {
            *gate = Arc::new(gate.changed(Concurrency::of(scene)));
        }
        Arc::clone(&gate)
    }

    /// Only these scenes are in force from now on: forgets the gates of others, unless a call is in flight. A worker that goes on with
    /// others for a moment makes them again.
    pub fn follow(&self, scenes: &Scenes) {
        let hosts: HashSet<(Arc<str>, Calls)> =
            scenes.iter().filter_map(|scene| key(scene)).collect();
        let has_own = |name: &str| scenes.get(name).is_some_and(|scene| key(scene).is_none());
        self.by_scene
            .retain(|name, gate| has_own(name) || is_used(gate));
        self.by_host
            .retain(|key, gate| hosts.contains(key) || is_used(gate));
    }

    /// How many calls `scene` may have in flight, with those that it has that in common with. Nothing is made or changed: a worker whose
    /// rules are old may ask.
    pub fn limit(&self, scene: &Scene) -> u32 {
        let gate = match scene.concurrency_of() {
            Some(host) => {
                let calls = (scene.concurrency, scene.least_concurrency);
                let gate = self.by_host.get(&(Arc::clone(host), calls));
                gate.map(|gate| Arc::clone(&gate))
            }
            None => self.by_scene.get(&scene.name).map(|gate| Arc::clone(&gate)),
        };
        match gate.filter(|gate| gate.concurrency.follows(scene)) {
            Some(gate) => gate.concurrency.calls(),
            None => Concurrency::of(scene).calls(),
        }
    }

    /// The gates of a process with this seed.
    pub fn seeded(seed: u64) -> Self {
        Self {
            seed,
            ..Self::default()
        }
    }

    /// The server of this name: the one that other workers have, or a new one.
    pub fn server(&self, name: &str) -> Arc<Server> {
        if let Some(server) = self.servers.get(name).and_then(|known| known.upgrade()) {
            return server;
        }
        self.servers.retain(|_, known| known.strong_count() > 0);
        let mut known = self.servers.entry(name.into()).or_default();
        // Another worker may have made it meanwhile.
        known.upgrade().unwrap_or_else(|| {
            let server = Arc::new(Server::new(name, self.seed));
            *known = Arc::downgrade(&server);
            server
        })
    }

    /// The breaker of this key: the one that other workers have, or a new one.
    pub fn breaker(&self, key: &breaker::Key) -> Arc<Breaker> {
        if let Some(breaker) = self.breakers.get(key).and_then(|known| known.upgrade()) {
            return breaker;
        }
        self.breakers.retain(|_, known| known.strong_count() > 0);
        let mut known = self.breakers.entry(key.clone()).or_default();
        // Another worker may have made it meanwhile.
        known.upgrade().unwrap_or_else(|| {
            let breaker = Arc::new(Breaker::new(key.rule));
            *known = Arc::downgrade(&breaker);
            breaker
        })
    }
}

// === impl Gate ===

impl Gate {
    /// A gate without calls.
    fn new(concurrency: Concurrency) -> Self {
        Self {
            in_flight: Arc::default(),
            took: Arc::default(),
            concurrency,
        }
    }

    /// A gate that goes on where this one is.
    fn changed(&self, concurrency: Concurrency) -> Self {
        Self {
            in_flight: Arc::clone(&self.in_flight),
            took: Arc::clone(&self.took),
            concurrency,
        }
    }

    /// Admits one call, to be given back by [`Self::release`], where so much of the concurrency may be used.
    pub fn admit(&self, ramp: Fraction) -> Result<(), Full> {
        let most = ramp.of(self.concurrency.calls());
        self.in_flight
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |calls| {
                (calls < most).then_some(calls + 1)
            })
            .map(drop)
            .map_err(|_| Full)
    }

    /// Whether as many calls are in flight as may be, if no breaker allows fewer.
    pub fn is_full(&self) -> bool {
        self.in_flight.load(Ordering::Acquire) >= self.concurrency.calls()
    }

    /// Returns the permit of a call that was not made, or says nothing of how many at once the target answers well.
    pub fn release(&self) {
        self.in_flight.fetch_sub(1, Ordering::AcqRel);
    }

    /// Returns the permit of a call and records its outcome.
    pub fn returned(&self, now: Duration, call: breaker::Call) {
        let in_flight = self.in_flight.fetch_sub(1, Ordering::AcqRel);
        if let Concurrency::Adaptive(limit) = &self.concurrency {
            limit.returned(now, in_flight, call);
        }
    }
}

impl Gate {
    /// Notes how long a call took.
    pub fn took(&self, kind: Kind, took: Duration) {
        let known = &self.took[kind as usize];
        let took = u64::try_from(took.as_micros()).unwrap_or(u64::MAX).max(1);
        // Workers that meet here lose one of two calls, which changes little.
        let longest = known.load(Ordering::Relaxed);
        let longest = longest - longest / FADES;
        known.store(longest.max(took), Ordering::Relaxed);
    }

    /// How long the longest calls of late took; nothing if none has come back.
    pub fn longest(&self, kind: Kind) -> Option<Duration> {
        let micros = self.took[kind as usize].load(Ordering::Relaxed);
        (micros > 0).then(|| Duration::from_micros(micros))
    }
}

// === impl Concurrency ===

impl Concurrency {
    /// The concurrency of a scene; one that follows its target knows nothing of the target yet.
    fn of(scene: &Scene) -> Self {
        match scene.least_concurrency {
            None => Self::Fixed(scene.concurrency.get()),
            Some(least) => Self::Adaptive(Arc::new(Limit::new(bounds(scene, least)))),
        }
    }

    /// Whether it is that of a scene.
    fn follows(&self, scene: &Scene) -> bool {
        match (self, scene.least_concurrency) {
            (Self::Fixed(calls), None) => *calls == scene.concurrency.get(),
            (Self::Adaptive(limit), Some(least)) => limit.bounds() == bounds(scene, least),
            (Self::Fixed(_), Some(_)) | (Self::Adaptive(_), None) => false,
        }
    }

    /// How many it is now.
    fn calls(&self) -> u32 {
        match self {
            Self::Fixed(calls) => *calls,
            Self::Adaptive(limit) => limit.calls(),
        }
    }
}

/// What the gate of a scene is known by, if it is that of a host.
fn key(scene: &Scene) -> Option<(Arc<str>, Calls)> {
    let host = scene.concurrency_of()?;
    let calls = (scene.concurrency, scene.least_concurrency);
    Some((Arc::clone(host), calls))
}

/// Whether somebody is about to go through a gate, or has not come back; calls of before a change of rules have an older one.
fn is_used(gate: &Arc<Gate>) -> bool {
    Arc::strong_count(gate) > 1 || gate.in_flight.load(Ordering::Acquire) > 0
}

/// The bounds of a scene's concurrency.
fn bounds(scene: &Scene, least: NonZeroU32) -> Bounds {
    Bounds {
        least,
        most: scene.concurrency,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::backoff::{Backoff, Jitter, Policy};
    use crate::scene::{self, Target};

    const fn count(value: u32) -> NonZeroU32 {
        NonZeroU32::new(value).unwrap()
    }

    fn scene(concurrency: u32) -> Scene {
        Scene {
            deadline: Some(Duration::from_secs(9)),
            concurrency: count(concurrency),
            ..Scene::new(
                "s",
                Target::Call,
                Policy {
                    backoff: Backoff::classic(),
                    jitter: Jitter::None,
                    max_attempts: count(3),
                },
            )
        }
    }

    #[test]
    fn calls_in_flight_are_counted_across_a_change_of_rules() {
        let gates = Gates::default();
        let before = gates.gate(&scene(1));
        assert_eq!(before.admit(Fraction::WHOLE), Ok(()));

        let after = gates.gate(&scene(2));
        assert_eq!(after.admit(Fraction::WHOLE), Ok(()));
        assert_eq!(after.admit(Fraction::WHOLE), Err(Full));
        before.release();

        assert_eq!(after.admit(Fraction::WHOLE), Ok(()));
    }

    #[test]
    fn scenes_of_one_host_and_concurrency_have_it_in_common_and_others_do_not() {
        let gates = Gates::default();
        let named = |name: &str, host: Option<&str>, concurrency| Scene {
            name: name.into(),
            host: host.map(|name| scene::Host {
                name: name.into(),
                rate: false,
                concurrency: true,
            }),
            ..scene(concurrency)
        };
        let admitted = |scene: &Scene| gates.gate(scene).admit(Fraction::WHOLE);
        let (one, other) = (Some("http://one:80"), Some("http://other:80"));
        assert_eq!(admitted(&named("a", one, 1)), Ok(()));

        assert_eq!(admitted(&named("b", one, 1)), Err(Full));
        assert_eq!(admitted(&named("c", other, 1)), Ok(()));
        assert_eq!(admitted(&named("d", one, 2)), Ok(()));
        assert_eq!(admitted(&named("a", None, 1)), Ok(()));
        gates.gate(&named("a", one, 1)).release();

        assert_eq!(admitted(&named("b", one, 1)), Ok(()));
    }

    #[test]
    fn a_gate_that_no_scene_in_force_has_is_forgotten_unless_a_call_is_in_flight() {
        let gates = Gates::default();
        let hosted = |concurrency| Scene {
            name: "hosted".into(),
            host: Some(scene::Host {
                name: "http://shop:80".into(),
                rate: false,
                concurrency: true,
            }),
            ..scene(concurrency)
        };
        let known = || (gates.by_scene.len(), gates.by_host.len());
        let called = gates.gate(&scene(1));
        assert_eq!(called.admit(Fraction::WHOLE), Ok(()));
        drop(gates.gate(&hosted(1)));
        drop(gates.gate(&hosted(2)));

        gates.follow(&[scene(2), hosted(2)].into_iter().collect());
        assert_eq!(known(), (1, 1));
        // The call has the gate of the rules before.
        drop(gates.gate(&scene(2)));
        gates.follow(&Scenes::default());
        assert_eq!(known(), (1, 0));
        called.release();
        gates.follow(&Scenes::default());

        assert_eq!(known(), (0, 0));
    }

    #[test]
    fn a_concurrency_that_follows_its_target_is_kept_while_its_bounds_are() {
        let gates = Gates::default();
        let adaptive = |most| Scene {
            least_concurrency: Some(count(2)),
            ..scene(most)
        };
        let calls = |scene: &Scene| gates.gate(scene).concurrency.calls();
        let failed = breaker::Call {
            failed: true,
            took: Duration::from_millis(1),
        };
        let gate = gates.gate(&adaptive(64));
        assert_eq!(calls(&adaptive(64)), 20);

        for second in 0..600 {
            assert_eq!(gate.admit(Fraction::WHOLE), Ok(()));
            gate.returned(Duration::from_secs(second), failed);
        }

        assert_eq!(gates.limit(&adaptive(64)), 2);
        // Asking changes nothing.
        assert_eq!(gates.limit(&adaptive(65)), 20);
        assert_eq!(calls(&adaptive(64)), 2);
        assert_eq!(calls(&adaptive(65)), 20);
        assert_eq!(calls(&scene(65)), 65);
        assert_eq!(gates.limit(&scene(65)), 65);
    }
}
