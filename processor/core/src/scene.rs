//! Scenes: the named rule sets that tasks follow, as far as decisions need them.
//!
//! Not the configuration format, nor the target itself: the shell parses those and keeps the targets. Invariant: a [`Scene`] that
//! exists is valid, and one that is put in force is in force for every decision made from then on.

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::backoff::{Base, Policy};
use crate::breaker;
use crate::duplicates;
use crate::map::Map;
use crate::outcome::{Outcome, Terminal};
use crate::pending::Pending;
use crate::task::Kind;

/// The scene used for tasks that name none, or one that does not exist.
pub const DEFAULT: &str = "default";

/// Longest wait between two attempts: as far ahead as retide parks tasks.
pub const MAX_DELAY: Duration = Duration::from_hours(366 * 24);

/// Most scenes that are remembered when they are gone: far more than a person takes away, and few beside what tasks may name.
const MISSING: usize = 10_000;

/// Calls in flight where the scene names no number: enough for a fast target, bearable for a slow one.
pub const CONCURRENCY: NonZeroU32 = NonZeroU32::new(64).unwrap();

/// How often a task may be throttled for each attempt that its scene allows, where nothing is said of it: a target that says when to come again
/// is well, and what it asks for is time rather than attempts.
pub const THROTTLED_PER_ATTEMPT: u32 = 10;

/// How many tasks of a scene that are out of attempts are held in a shard where nothing is said of it: more than people look at one by one, and
/// few records a second, by which each is looked at.
pub const MAX_HELD: NonZeroU32 = NonZeroU32::new(1_000).unwrap();

/// The rules of one scene.
#[derive(Clone, Debug, PartialEq)]
pub struct Scene {
    /// The name of the scene.
    pub name: Arc<str>,
    /// The host it calls, if it has limits in common with other scenes that call the same one.
    pub host: Option<Host>,
    /// How an attempt is made.
    pub target: Target,
    /// When to try again, and how often.
    pub policy: Policy,
    /// Most attempts of a task at which the target asked to be left alone: they do not count as attempts otherwise.
    pub max_throttled: NonZeroU32,
    /// What becomes of a task that is out of attempts.
    pub on_exhausted: OnExhausted,
    /// What else waits when its targets ask to be left alone.
    pub cooldown: Cooldown,
    /// The policy for failures of one class, in place of that.
    pub on: Overrides,
    /// What waits are counted from.
    pub base: Base,
    /// Time from the first sight of a task after which no attempt starts.
    pub deadline: Option<Duration>,
    /// Attempts per time, of the whole group.
    pub rate: Option<Rate>,
    /// Attempts in flight at once, per process.
    pub concurrency: NonZeroU32,
    /// The fewest that this may become where it follows its target; none if it is what it is.
    pub least_concurrency: Option<NonZeroU32>,
    /// The breaker of its target, if it has one and calls it.
    pub breaker: Option<breaker::Key>,
    /// What is left alone where its targets suddenly refuse everything: see [`crate::wall`].
    pub walls: Walls,
    /// Which of its tasks wait for each other.
    pub ordering: Ordering,
    /// What becomes of a task whose id another one has, or had.
    pub duplicates: duplicates::Rule,
    /// The part of the service that the scene gets, where scenes have to wait for each other.
    pub weight: Weight,
    /// How long a target may take that says that it will answer later.
    pub pending: Pending,
    /// Where the end of a task is reported besides the callbacks topic.
    pub callback: Option<Callback>,
}

/// What is known of the walls of a scene's targets by, where they are called; each scene sees its own, since it is about a path or a
/// credential rather than a host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Walls {
    /// The wall of the scene's target.
    pub work: Option<breaker::Key>,
    /// The wall of the target of its callbacks.
    pub callback: Option<breaker::Key>,
}

/// Where the attempts of tasks of one kind go, and what guards them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route<'a> {
    /// How an attempt is made.
    pub target: &'a Target,
    /// The breaker of the target, if it has one and is called.
    pub breaker: Option<&'a breaker::Key>,
    /// The wall of the target, if it is called.
    pub wall: Option<&'a breaker::Key>,
}

/// What scenes call, for each kind of task: see [`Route::called`].
#[derive(Clone, Debug, Default)]
pub struct TargetNames(HashMap<Arc<str>, [Option<String>; Kind::ALL.len()]>);

/// How an attempt is made, as far as the core must know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// By a call that the shell makes and reports back.
    Call,
    /// By a record in the ledger's own transaction: exactly once.
    Produce {
        /// The topic.
        topic: Arc<str>,
    },
}

/// The delivery of callback records to a target of the scene's own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Callback {
    /// How the callback is made.
    pub target: Target,
    /// The breaker of this target, if it has one and is called.
    pub breaker: Option<breaker::Key>,
    /// The ends it is made for.
    pub on: Vec<Terminal>,
}

/// What a scene has in common with all that call the same host, and have the same limit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    /// The host, such as `https://shop.example:443`. The name of a scene holds no `://`.
    pub name: Arc<str>,
    /// Whether it is the rate.
    pub rate: bool,
    /// Whether it is the concurrency.
    pub concurrency: bool,
}

/// Whose calls count in a limit.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Of {
    /// The calls of the scene of this name.
    Scene(Arc<str>),
    /// The calls of all scenes that call this host, and have the same limit.
    Host(Arc<str>),
}

/// What becomes of a task that is out of attempts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnExhausted {
    /// It is dead.
    #[default]
    Dead,
    /// It is held until people let it go, or its deadline passes.
    Hold {
        /// How many tasks of the scene are held so in a shard; more are dead.
        most: NonZeroU32,
    },
}

/// What waits when a target asks to be left alone for a while: see [`crate::cooldown`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Cooldown {
    /// All tasks of scenes with the same that call the same scheme, host and port.
    #[default]
    Host,
    /// The task that was told so, and no other one.
    None,
}

/// How many attempts may start in a span of time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Rate {
    /// Attempts per `per`.
    pub limit: NonZeroU32,
    /// The span.
    pub per: Duration,
    /// Attempts that may start at once after a quiet time.
    pub burst: NonZeroU32,
}

/// Which tasks of a scene wait for each other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Ordering {
    /// None.
    #[default]
    None,
    /// One does not start before those with the same key that were produced before it, to the same partition, have ended.
    Key,
}

/// How much a scene counts beside others: 1 to 100.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Weight(u8);

/// Policies for failures of one class, in place of the scene's.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Overrides {
    /// Where the target asked to be left alone.
    pub throttled: Option<Policy>,
    /// Where no answer came in time.
    pub timeout: Option<Policy>,
    /// Where it failed otherwise in a way that another attempt may mend.
    pub retryable: Option<Policy>,
}

/// The scenes in force, by name.
#[derive(Clone, Debug, Default)]
pub struct Scenes {
    /// The rules by name.
    by_name: Map<Arc<str>, Arc<Scene>>,
    /// Scenes that are known of, and have no rules in force.
    missing: Map<Arc<str>, Missing>,
    /// Whether there are others that cannot be read, of which nobody knows the names.
    misses_some: bool,
}

/// Why a scene that is known of has no rules in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Missing {
    /// The scene was taken away.
    Gone,
    /// The scene is there, and cannot be read.
    Unreadable,
}

// === impl Scene ===

impl Scene {
    /// A scene with a target and a policy, and everything else as where nothing is said of it.
    pub fn new(name: impl Into<Arc<str>>, target: Target, policy: Policy) -> Self {
        Self {
            name: name.into(),
            host: None,
            target,
            max_throttled: most_throttled(policy.max_attempts),
            on_exhausted: OnExhausted::default(),
            cooldown: Cooldown::default(),
            policy,
            on: Overrides::default(),
            base: Base::default(),
            deadline: None,
            rate: None,
            concurrency: CONCURRENCY,
            least_concurrency: None,
            breaker: None,
            walls: Walls::default(),
            ordering: Ordering::default(),
            duplicates: duplicates::Rule::default(),
            weight: Weight::default(),
            pending: Pending::default(),
            callback: None,
        }
    }

    /// Whether its tasks stay in the shard in which they entered, which knows of their keys or ids.
    pub fn stays(&self) -> bool {
        self.ordering == Ordering::Key || self.duplicates.looks()
    }

    /// Whose rate its attempts count in: the host's, or its own.
    pub fn rate_of(&self) -> &Arc<str> {
        let host = self.host.as_ref().filter(|host| host.rate);
        host.map_or(&self.name, |host| &host.name)
    }

    /// Whose concurrency its calls count in, if that is not its own.
    pub fn concurrency_of(&self) -> Option<&Arc<str>> {
        let host = self.host.as_ref().filter(|host| host.concurrency);
        host.map(|host| &host.name)
    }

    /// Whose calls count in its concurrency, if it calls something.
    pub fn calls_of(&self) -> Option<Of> {
        let callback = self.callback.as_ref().map(|callback| &callback.target);
        let mut targets = [&self.target].into_iter().chain(callback);
        targets
            .any(|target| *target == Target::Call)
            .then(|| match self.concurrency_of() {
                Some(host) => Of::Host(Arc::clone(host)),
                None => Of::Scene(Arc::clone(&self.name)),
            })
    }

    /// The policy after a failed attempt: the one for its class, or the scene's.
    pub fn policy_for(&self, outcome: &Outcome) -> &Policy {
        let Overrides {
            throttled,
            timeout,
            retryable,
        } = &self.on;
        let own = match outcome {
            Outcome::Throttled { .. } => throttled,
            Outcome::Timeout(_) => timeout,
            Outcome::Retryable(_) => retryable,
            // Nothing follows them.
            Outcome::Success
            | Outcome::Permanent(_)
            | Outcome::Refused(_)
            | Outcome::Pending { .. } => &None,
        };
        own.as_ref().unwrap_or(&self.policy)
    }

    /// The most attempts that any task of the scene can see.
    pub fn most_attempts(&self) -> NonZeroU32 {
        let Overrides {
            throttled,
            timeout,
            retryable,
        } = &self.on;
        let own = [throttled, timeout, retryable];
        let own = own.into_iter().flatten().map(|policy| policy.max_attempts);
        own.fold(self.policy.max_attempts, NonZeroU32::max)
    }

    /// Lets the attempts of tasks of this kind be made so, if the scene wants them tried.
    pub fn set_target(&mut self, kind: Kind, target: Target) {
        match kind {
            Kind::Work => self.target = target,
            Kind::Callback => {
                if let Some(callback) = &mut self.callback {
                    callback.target = target;
                }
            }
        }
    }

    /// The target that it calls, such as `https://shop.example:443`, if it calls one.
    pub fn calls(&self) -> Option<&str> {
        let key = self.walls.work.as_ref().or(self.breaker.as_ref());
        key.map(|key| key.target.target())
    }

    /// The host that calls of tasks of this kind go to, if they go to one.
    pub fn host_called(&self, kind: Kind) -> Option<&Arc<str>> {
        let route = self.route(kind)?;
        let key = route.wall.or(route.breaker)?;
        key.target.host()
    }

    /// The route of tasks of this kind; none if the scene does not want them tried.
    pub fn route(&self, kind: Kind) -> Option<Route<'_>> {
        let (target, breaker, wall) = match kind {
            Kind::Work => (&self.target, &self.breaker, &self.walls.work),
            Kind::Callback => {
                let callback = self.callback.as_ref()?;
                (&callback.target, &callback.breaker, &self.walls.callback)
            }
        };
        Some(Route {
            target,
            breaker: breaker.as_ref(),
            wall: wall.as_ref(),
        })
    }
}

/// How often a task may be throttled whose scene says nothing of it.
pub const fn most_throttled(max_attempts: NonZeroU32) -> NonZeroU32 {
    match NonZeroU32::new(THROTTLED_PER_ATTEMPT) {
        Some(factor) => max_attempts.saturating_mul(factor),
        None => max_attempts,
    }
}

// === impl Route ===

impl Route<'_> {
    /// What it leads to, in the words of selectors: a server as a breaker names it, or a topic.
    pub fn called(&self) -> Option<String> {
        match self.target {
            Target::Call => {
                let key = self.wall.or(self.breaker)?;
                Some(key.target.target().to_owned())
            }
            Target::Produce { topic } => Some(format!("topic {topic}")),
        }
    }
}

// === impl TargetNames ===

impl<'a> FromIterator<&'a Scene> for TargetNames {
    fn from_iter<I: IntoIterator<Item = &'a Scene>>(scenes: I) -> Self {
        let scenes = scenes.into_iter().map(|scene| {
            let called = |kind| scene.route(kind).and_then(|route| route.called());
            (Arc::clone(&scene.name), Kind::ALL.map(called))
        });
        Self(scenes.collect())
    }
}

impl TargetNames {
    /// What a task of this scene and kind calls; one whose scene does not exist is that of [`DEFAULT`].
    pub fn of_task(&self, scene: &str, kind: Kind) -> Option<&str> {
        let of = self.0.get(scene).or_else(|| self.0.get(DEFAULT))?;
        let at = Kind::ALL.iter().position(|other| *other == kind)?;
        of[at].as_deref()
    }
}

// === impl Weight ===

impl Weight {
    /// The largest: a scene that counts for more than a hundred others would better have a group of its own.
    pub const MAX: u8 = 100;

    /// A weight, if it is one.
    pub fn try_new(weight: u32) -> Option<Self> {
        let weight = u8::try_from(weight).ok()?;
        (1..=Self::MAX).contains(&weight).then_some(Self(weight))
    }

    /// The number.
    pub const fn get(self) -> u8 {
        self.0
    }
}

impl Default for Weight {
    /// The weight of a scene that counts like any other.
    fn default() -> Self {
        Self(1)
    }
}

// === impl Scenes ===

impl Scenes {
    /// The rules for a task of this name: its own, or those of [`DEFAULT`], unless its own are there and cannot be read.
    pub fn find(&self, name: &str) -> Option<&Arc<Scene>> {
        let own = self.by_name.get(name);
        own.or_else(|| {
            let unreadable = self.missing.get(name) == Some(&Missing::Unreadable)
                || (self.misses_some && name != DEFAULT);
            self.by_name.get(DEFAULT).filter(|_| !unreadable)
        })
    }

    /// Whether a task of this name, which has no rules in force, may have some again: there were some, or they cannot be read.
    pub fn is_missing(&self, name: &str) -> bool {
        self.misses_some
            || self.missing.contains_key(name)
            || self.missing.get(DEFAULT) == Some(&Missing::Unreadable)
    }

    /// Scenes cannot be read of which nobody knows the names: a task whose scene has no rules in force may be of one of them.
    pub const fn miss_some(&mut self) {
        self.misses_some = true;
    }

    /// A scene of this name is known of; that counts while it has no rules in force.
    pub fn miss(&mut self, name: impl Into<Arc<str>>, why: Missing) {
        let name = name.into();
        if self.by_name.contains_key(&name) {
            return;
        }
        if why == Missing::Unreadable || self.missing.len() < MISSING {
            let known = self.missing.entry(name).or_insert(why);
            if why == Missing::Unreadable {
                *known = why;
            }
        }
    }

    /// Knows of all scenes that `before` knew of, and has no rules of its own for.
    pub(crate) fn remember(&mut self, before: &Self) {
        let names = before.by_name.keys().chain(before.missing.keys());
        for name in names {
            if !self.by_name.contains_key(name) && !self.missing.contains_key(name) {
                self.missing.insert(Arc::clone(name), Missing::Gone);
            }
        }
    }

    /// The rules of exactly this name.
    pub fn get(&self, name: &str) -> Option<&Arc<Scene>> {
        self.by_name.get(name)
    }

    /// Puts rules in force, in place of those of the same name.
    pub fn insert(&mut self, scene: Scene) {
        self.missing.remove(&scene.name);
        self.by_name
            .insert(Arc::clone(&scene.name), Arc::new(scene));
    }

    /// Takes the rules of this name out of force.
    pub fn remove(&mut self, name: &str) {
        if let Some((name, _)) = self.by_name.remove_entry(name) {
            self.missing.insert(name, Missing::Gone);
        }
    }

    /// Every scene, in no order.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Scene>> {
        self.by_name.values()
    }

    /// How many scenes there are.
    pub fn len(&self) -> usize {
        self.by_name.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.by_name.is_empty()
    }
}

impl FromIterator<Scene> for Scenes {
    fn from_iter<I: IntoIterator<Item = Scene>>(scenes: I) -> Self {
        let mut all = Self::default();
        for scene in scenes {
            all.insert(scene);
        }
        all
    }
}
