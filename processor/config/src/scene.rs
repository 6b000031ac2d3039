//! A scene as it is configured, in a file or on the scenes topic, and the rules it stands for.
//!
//! Invariant: what [`Scene::rules`] accepts can be scheduled.

use std::num::NonZeroU32;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use retide_connectors::TargetConfig;
use retide_connectors::secret::Reference;
use retide_core::breaker::Rule;
use retide_core::cron::{self, Schedule};
use retide_core::pending;
use retide_core::scene::{self, Cooldown, MAX_DELAY, OnExhausted, Walls};
use retide_core::topic::is_own;
use retide_core::verdict::LEAST_WAIT;
use retide_core::wall;
use retide_core::{
    Backoff as Waits, Base, Jitter, Ordering, Overrides, Policy, Rate as CoreRate, Terminal,
    Timestamp, Weight,
};
use retide_core::{span, with_causes};

use crate::breaker::{self, Breaker};
use crate::concurrency::Concurrency;
use crate::duplicates::Duplicates;
use crate::text;

/// The rules of one scene, as they are written.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scene {
    /// Where attempts go.
    pub target: TargetConfig,
    /// How long to wait between attempts.
    #[serde(default)]
    pub backoff: Backoff,
    /// How the wait is spread.
    #[serde(default)]
    pub jitter: Jitter,
    /// What waits are counted from.
    #[serde(default, skip_serializing_if = "is_default")]
    pub from: Base,
    /// Attempts made before the task is given up.
    #[serde(default = "max_attempts")]
    pub max_attempts: NonZeroU32,
    /// Attempts that may be throttled before the task is given up, which do not count as the others do; by default those of `on.throttled`, or
    /// else ten for each of `max_attempts`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_throttled: Option<NonZeroU32>,
    /// What becomes of a task that is out of attempts.
    #[serde(default, skip_serializing_if = "is_default")]
    pub on_exhausted: Exhausted,
    /// How many tasks out of attempts are held in a shard, where they are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_held: Option<NonZeroU32>,
    /// What waits when a target asks to be left alone for a while.
    #[serde(default, skip_serializing_if = "is_default")]
    pub cooldown: Cooldown,
    /// Whether it stops when its tasks suddenly die in numbers.
    #[serde(default = "brake", skip_serializing_if = "is_braked")]
    pub brake: bool,
    /// What is different for failures of one class.
    #[serde(default, skip_serializing_if = "is_default")]
    pub on: On,
    /// Time from the first sight of a task after which no attempt starts.
    #[serde(default, with = "text::maybe", skip_serializing_if = "Option::is_none")]
    pub deadline: Option<Duration>,
    /// Attempts per time, of the whole group.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate: Option<Rate>,
    /// Attempts in flight at once, per process.
    #[serde(default)]
    pub concurrency: Concurrency,
    /// When its target is left alone, and how it is tried again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub breaker: Option<Breaker>,
    /// Which tasks wait for each other.
    #[serde(default, skip_serializing_if = "is_default")]
    pub ordering: Ordering,
    /// What becomes of a task whose id another one has, or had.
    #[serde(default, skip_serializing_if = "is_default")]
    pub duplicates: Duplicates,
    /// Its part of the service, where scenes have to wait for each other.
    #[serde(default = "weight", skip_serializing_if = "is_usual")]
    pub weight: u32,
    /// How long a target may take that says that it will answer later.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pending: Option<Pending>,
    /// Where the end of a task is reported besides the callbacks topic.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub callback: Option<Callback>,
}

/// How long a target may take that says that it will answer later, as it is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pending {
    /// How long, where the target does not say; [`pending::USUAL`] by default, or `max` if that is less.
    #[serde(
        rename = "for",
        default,
        with = "text::maybe",
        skip_serializing_if = "Option::is_none"
    )]
    pub usual: Option<Duration>,
    /// How long at most; [`pending::MOST`] by default, or `for` if that is more.
    #[serde(
        rename = "max",
        default,
        with = "text::maybe",
        skip_serializing_if = "Option::is_none"
    )]
    pub most: Option<Duration>,
}

/// What becomes of a task that is out of attempts, as it is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Exhausted {
    /// It is dead.
    #[default]
    Dead,
    /// It is held for people.
    Hold,
}

/// What is different for failures of one class.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct On {
    /// Where the target asked to be left alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub throttled: Option<Override>,
    /// Where no answer came in time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<Override>,
    /// Where it failed otherwise in a way that another attempt may mend.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retryable: Option<Override>,
}

/// What is different for one class of failures; the rest is as in the scene.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Override {
    /// How long to wait between attempts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backoff: Option<Backoff>,
    /// How the wait is spread.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jitter: Option<Jitter>,
    /// Attempts made before the task is given up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_attempts: Option<NonZeroU32>,
}

/// The shapes of waits between attempts, as they are written.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum Backoff {
    /// Always the same.
    Fixed {
        /// The wait.
        #[serde(with = "text::duration")]
        delay: Duration,
    },
    /// `first`, then `step` more each time, up to `max`.
    Linear {
        /// The first wait.
        #[serde(with = "text::duration")]
        first: Duration,
        /// What is added each time.
        #[serde(with = "text::duration")]
        step: Duration,
        /// The longest wait.
        #[serde(with = "text::duration")]
        max: Duration,
    },
    /// `first`, then `factor` times more each time, up to `max`.
    Exponential {
        /// The first wait.
        #[serde(with = "text::duration")]
        first: Duration,
        /// What each wait is multiplied by.
        #[serde(default = "factor")]
        factor: f64,
        /// The longest wait.
        #[serde(with = "text::duration")]
        max: Duration,
    },
    /// One wait per attempt; past the end, the last one.
    Levels {
        /// The waits.
        #[serde(
            default,
            with = "text::durations",
            skip_serializing_if = "Vec::is_empty"
        )]
        delays: Vec<Duration>,
        /// A list of waits known by name, in place of `delays`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        preset: Option<Preset>,
    },
    /// Anything from `min` to `max`.
    Random {
        /// The shortest wait.
        #[serde(with = "text::duration")]
        min: Duration,
        /// The longest wait.
        #[serde(with = "text::duration")]
        max: Duration,
    },
    /// Until a schedule says so.
    Cron {
        /// The cron expression.
        schedule: String,
        /// The zone whose wall clock it is read on.
        #[serde(default = "utc")]
        timezone: String,
    },
    /// Until the next of some points in time.
    At {
        /// The points.
        #[serde(with = "text::times")]
        times: Vec<Timestamp>,
    },
}

/// Lists of waits known by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Preset {
    /// [`Waits::classic`].
    Classic,
}

/// How many attempts may start in a span of time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rate {
    /// Attempts per `per`.
    pub limit: NonZeroU32,
    /// The span.
    #[serde(with = "text::duration", default = "second")]
    pub per: Duration,
    /// Attempts that may start at once after a quiet time; by default what passes in [`BURST`], at least one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub burst: Option<NonZeroU32>,
    /// Whose attempts count.
    #[serde(default, skip_serializing_if = "is_default")]
    pub of: Of,
}

/// Whose attempts count in a limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Of {
    /// Those of the scene.
    #[default]
    Scene,
    /// Those of all scenes that call the same scheme, host and port, and name the same limit.
    Host,
}

/// The delivery of callback records to a target of the scene's own.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Callback {
    /// Where callbacks go.
    pub target: TargetConfig,
    /// The ends they are made for.
    #[serde(default = "every_end")]
    pub on: Vec<End>,
}

/// The end of a task, as it is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum End {
    /// The target took it.
    Delivered,
    /// It was given up.
    Dead,
    /// Its deadline passed.
    Expired,
    /// Somebody has cancelled it.
    Cancelled,
}

/// What is wrong with a scene that could be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}: {message}", path.join("."))]
pub struct Error {
    /// The keys within the scene that lead to it.
    pub path: Vec<String>,
    /// What is wrong there.
    pub message: String,
}

/// The time whose attempts may start at once when a rate names no burst: wakes a few milliseconds late cost no throughput then.
pub const BURST: Duration = Duration::from_millis(100);

/// Most tasks out of attempts that a shard may hold: each is looked at twice a minute, which is a record written and read.
pub const MOST_HELD: NonZeroU32 = NonZeroU32::new(100_000).unwrap();

/// Longest name of a scene, in bytes: it is part of keys, headers and metrics.
pub const MAX_NAME: usize = 100;

// === impl Scene ===

impl Scene {
    /// The rules this stands for, under `name`. Targets are checked, but not connected.
    pub fn rules(&self, name: &str) -> Result<scene::Scene, Error> {
        if !text::is_name(name, MAX_NAME) {
            let message = format!(
                "`{name}` is no name of a scene: 1 to {MAX_NAME} letters, digits, dots, underscores and dashes"
            );
            return Err(error(&[], message));
        }
        self.check_deadline()?;
        let rule = self.breaker_rule()?;
        let wall = if self.brake {
            wall::RULE
        } else {
            wall::UNBRAKED
        };
        let callback = self.callback.as_ref();
        let callback = callback.map(|callback| callback.rules(rule));
        Ok(scene::Scene {
            name: name.into(),
            host: self.host()?,
            target: self.target.core(),
            policy: self.policy()?,
            max_throttled: self.max_throttled()?,
            on_exhausted: self.on_exhausted()?,
            cooldown: self.cooldown,
            on: self.overrides()?,
            base: self.from,
            deadline: self.deadline,
            rate: self.rate.map(Rate::rules).transpose()?,
            concurrency: self.concurrency.most(),
            least_concurrency: self.concurrency.least()?,
            breaker: rule.and_then(|rule| breaker::key(rule, &self.target)),
            walls: Walls {
                work: breaker::wall(name, &self.target, wall),
                callback: self.callback.as_ref().and_then(|callback| {
                    breaker::wall(&format!("{name}, callbacks"), &callback.target, wall)
                }),
            },
            weight: self.weight()?,
            pending: self.pending()?,
            callback: callback.transpose()?,
            ordering: self.ordering,
            duplicates: self.duplicates.rules()?,
        })
    }

    /// All that keeps it from standing for rules, as far as it can be told apart.
    pub fn problems(&self, name: &str) -> Vec<Error> {
        let mut wrong = vec![
            self.check_deadline().err(),
            self.weight().err(),
            self.rate.map(Rate::rules).transpose().err(),
            self.concurrency.least().err(),
            self.host().err(),
            self.breaker_rule().err(),
            self.duplicates.rules().err(),
            self.policy().err(),
            self.overrides().err(),
            self.max_throttled().err(),
            self.pending().err(),
            self.on_exhausted().err(),
        ];
        let callback = self.callback.as_ref();
        wrong.push(callback.and_then(|callback| callback.rules(None).err()));
        // What else there is, its name among it.
        wrong.push(self.rules(name).err());
        let mut wrong: Vec<Error> = wrong.into_iter().flatten().collect();
        let mut seen = Vec::new();
        wrong.retain(|error| {
            let is_new = !seen.contains(error);
            seen.push(error.clone());
            is_new
        });
        wrong
    }

    /// The topic of retide's own under `prefix` to which the scene delivers, if it does, and the keys that lead to it.
    pub fn own_topic(&self, prefix: &str) -> Option<(&'static [&'static str], &str)> {
        let callback = self.callback.as_ref().map(|callback| &callback.target);
        let targets = [
            (&["target", "kafka", "topic"][..], Some(&self.target)),
            (&["callback", "target", "kafka", "topic"], callback),
        ];
        targets.into_iter().find_map(|(keys, target)| {
            let topic = target?.topic()?;
            is_own(prefix, topic).then_some((keys, topic))
        })
    }

    /// The profiles of TLS that its targets name, and the keys that lead to them.
    pub fn profiles(&self) -> impl Iterator<Item = (Vec<&'static str>, &str)> {
        let callback = self.callback.as_ref().map(|callback| &callback.target);
        let targets = [
            (&["target"][..], Some(&self.target)),
            (&["callback", "target"], callback),
        ];
        targets.into_iter().filter_map(|(keys, target)| {
            let target = target?.configured();
            Some(([keys, &[target.kind(), "tls"]].concat(), target.profile()?))
        })
    }

    /// Where secrets of its targets stand, and the keys that lead to them.
    pub fn references(&self) -> impl Iterator<Item = (String, &Reference)> {
        let callback = self.callback.as_ref().map(|callback| &callback.target);
        let targets = [
            ("target", Some(&self.target)),
            ("callback.target", callback),
        ];
        targets.into_iter().flat_map(|(way, target)| {
            let target = target.map(TargetConfig::configured).into_iter();
            target.flat_map(move |target| {
                let (kind, all) = (target.kind(), target.references().into_iter());
                all.map(move |(key, reference)| (format!("{way}.{kind}.{key}"), reference))
            })
        })
    }

    /// Whether tasks wait for points in time, in one of the ways they can fail, all of which have passed.
    pub fn is_over(&self, now: Timestamp) -> bool {
        let On {
            throttled,
            timeout,
            retryable,
        } = &self.on;
        let own = [throttled, timeout, retryable].into_iter().flatten();
        let mut all = own
            .filter_map(|own| own.backoff.as_ref())
            .chain([&self.backoff]);
        all.any(|backoff| match backoff {
            Backoff::At { times } => times.last().is_none_or(|last| *last < now),
            Backoff::Fixed { .. }
            | Backoff::Linear { .. }
            | Backoff::Exponential { .. }
            | Backoff::Levels { .. }
            | Backoff::Random { .. }
            | Backoff::Cron { .. } => false,
        })
    }

    /// When to try again, and how often.
    fn policy(&self) -> Result<Policy, Error> {
        let backoff = self.backoff.rules()?;
        check_jitter(&backoff, self.jitter).map_err(|message| error(&["jitter"], message))?;
        Ok(Policy {
            backoff,
            jitter: self.jitter,
            max_attempts: self.max_attempts,
        })
    }

    /// The same for failures of one class.
    fn overrides(&self) -> Result<Overrides, Error> {
        let On {
            throttled,
            timeout,
            retryable,
        } = &self.on;
        let policy = |class: &str, own: &Option<Override>| match own {
            None => Ok(None),
            Some(own) => own.policy(self).map(Some).map_err(|error| Error {
                path: ["on", class]
                    .map(str::to_owned)
                    .into_iter()
                    .chain(error.path)
                    .collect(),
                ..error
            }),
        };
        Ok(Overrides {
            throttled: policy("throttled", throttled)?,
            timeout: policy("timeout", timeout)?,
            retryable: policy("retryable", retryable)?,
        })
    }

    /// Most attempts of a task that may be throttled.
    fn max_throttled(&self) -> Result<NonZeroU32, Error> {
        let of_class = self.on.throttled.as_ref().and_then(|own| own.max_attempts);
        match (self.max_throttled, of_class) {
            (Some(_), Some(_)) => {
                let message = "`on.throttled.max_attempts` says the same: expected one of them";
                Err(error(&["max_throttled"], message.into()))
            }
            (Some(most), None) | (None, Some(most)) => Ok(most),
            (None, None) => Ok(scene::most_throttled(self.max_attempts)),
        }
    }

    /// What becomes of a task that is out of attempts.
    fn on_exhausted(&self) -> Result<OnExhausted, Error> {
        match (self.on_exhausted, self.max_held) {
            (Exhausted::Dead, None) => Ok(OnExhausted::Dead),
            (Exhausted::Dead, Some(_)) => {
                let message = "it is said of tasks that nobody holds: expected `on_exhausted = \"hold\"` beside it";
                Err(error(&["max_held"], message.into()))
            }
            (Exhausted::Hold, Some(most)) if most > MOST_HELD => {
                let message = format!(
                    "{most} are more than a shard looks after: expected at most {MOST_HELD}"
                );
                Err(error(&["max_held"], message))
            }
            (Exhausted::Hold, most) => Ok(OnExhausted::Hold {
                most: most.unwrap_or(scene::MAX_HELD),
            }),
        }
    }

    /// The host whose limits it has, which has to be called.
    fn host(&self) -> Result<Option<scene::Host>, Error> {
        let rate = self.rate.is_some_and(|rate| rate.of == Of::Host);
        let concurrency = self.concurrency.of() == Of::Host;
        let key = match (rate, concurrency) {
            (false, false) => return Ok(None),
            (true, _) => "rate",
            (false, true) => "concurrency",
        };
        let Some(name) = self.target.authority() else {
            let message = "a limit of the host goes with a target that is called, such as `http`";
            return Err(error(&[key, "of"], message.into()));
        };
        Ok(Some(scene::Host {
            name: name.into(),
            rate,
            concurrency,
        }))
    }

    /// The rule of the breaker, which has to have a target that is called.
    fn breaker_rule(&self) -> Result<Option<Rule>, Error> {
        let Some(breaker) = self.breaker else {
            return Ok(None);
        };
        let callback = self.callback.as_ref().map(|callback| &callback.target);
        let mut targets = [&self.target].into_iter().chain(callback);
        if targets.all(|target| target.core() != scene::Target::Call) {
            let message = "a breaker goes with a target that is called, such as `http`".into();
            return Err(error(&["breaker"], message));
        }
        breaker.rule().map(Some)
    }

    /// How long a target may take that says that it will answer later, which has to be one that can say so.
    fn pending(&self) -> Result<pending::Pending, Error> {
        let Some(pending) = self.pending else {
            return Ok(pending::Pending::default());
        };
        if self.target.core() != scene::Target::Call {
            let message =
                "answers that come later go with a target that is called, such as `http`".into();
            return Err(error(&["pending"], message));
        }
        pending.rules()
    }

    /// Its part of the service.
    fn weight(&self) -> Result<Weight, Error> {
        Weight::try_new(self.weight).ok_or_else(|| {
            let message = format!("expected a whole number from 1 to {}", Weight::MAX);
            error(&["weight"], message)
        })
    }

    /// Refuses a deadline that no attempt could meet, or that is further off than time is counted.
    fn check_deadline(&self) -> Result<(), Error> {
        match self.deadline {
            Some(deadline) if deadline.is_zero() => Err(error(
                &["deadline"],
                "expected a duration of more than nothing".into(),
            )),
            Some(deadline) => check_delay(&["deadline"], deadline),
            None => Ok(()),
        }
    }
}

// === impl Override ===

impl Override {
    /// What it makes of the policy of `scene`.
    fn policy(&self, scene: &Scene) -> Result<Policy, Error> {
        let Self {
            backoff,
            jitter,
            max_attempts,
        } = self;
        if backoff.is_none() && jitter.is_none() && max_attempts.is_none() {
            let message = "expected `backoff`, `jitter` or `max_attempts`".into();
            return Err(error(&[], message));
        }
        let own = backoff.as_ref().unwrap_or(&scene.backoff).rules()?;
        let spread = jitter.unwrap_or(scene.jitter);
        check_jitter(&own, spread).map_err(|message| {
            let key = if jitter.is_some() {
                "jitter"
            } else {
                "backoff"
            };
            error(&[key], message)
        })?;
        Ok(Policy {
            backoff: own,
            jitter: spread,
            max_attempts: max_attempts.unwrap_or(scene.max_attempts),
        })
    }
}

// === impl Pending ===

impl Pending {
    /// The rules this stands for.
    fn rules(self) -> Result<pending::Pending, Error> {
        let Self { usual, most } = self;
        for (key, span) in [("for", usual), ("max", most)] {
            let Some(span) = span else { continue };
            if span < LEAST_WAIT {
                let message = format!("expected a duration of at least {}", span::text(LEAST_WAIT));
                return Err(error(&["pending", key], message));
            }
            check_delay(&["pending", key], span)?;
        }
        if let (Some(usual), Some(most)) = (usual, most)
            && usual > most
        {
            let message = format!("expected at most `max`, {}", span::text(most));
            return Err(error(&["pending", "for"], message));
        }
        let most = most.unwrap_or_else(|| pending::MOST.max(usual.unwrap_or_default()));
        Ok(pending::Pending {
            usual: usual.unwrap_or(pending::USUAL).min(most),
            most,
        })
    }
}

// === impl Callback ===

impl Callback {
    /// The callback this stands for, where its scene has a breaker of this rule.
    fn rules(&self, rule: Option<Rule>) -> Result<scene::Callback, Error> {
        if self.on.is_empty() {
            let message =
                "expected at least one of `delivered`, `dead`, `expired` and `cancelled`".into();
            return Err(error(&["callback", "on"], message));
        }
        Ok(scene::Callback {
            target: self.target.core(),
            breaker: rule.and_then(|rule| breaker::key(rule, &self.target)),
            on: self.on.iter().map(|end| end.terminal()).collect(),
        })
    }
}

// === impl Backoff ===

impl Backoff {
    /// The waits this stands for.
    fn rules(&self) -> Result<Waits, Error> {
        match self {
            Self::Fixed { delay } => {
                at_least(&["backoff", "fixed", "delay"], *delay)?;
                Ok(Waits::Fixed {
                    delay: checked("fixed", "delay", *delay)?,
                })
            }
            Self::Linear { first, step, max } => {
                at_least(&["backoff", "linear", "first"], *first)?;
                not_below("linear", ("first", *first), *max)?;
                Ok(Waits::Linear {
                    first: checked("linear", "first", *first)?,
                    step: checked("linear", "step", *step)?,
                    max: checked("linear", "max", *max)?,
                })
            }
            Self::Exponential { first, factor, max } => exponential(*first, *factor, *max),
            Self::Levels { delays, preset } => levels(delays, *preset),
            Self::Random { min, max } => {
                at_least(&["backoff", "random", "max"], *max)?;
                not_below("random", ("min", *min), *max)?;
                Ok(Waits::Random {
                    min: checked("random", "min", *min)?,
                    max: checked("random", "max", *max)?,
                })
            }
            Self::Cron { schedule, timezone } => cron(schedule, timezone),
            Self::At { times } => at(times),
        }
    }
}

impl Default for Backoff {
    /// A second, doubled each time, up to an hour.
    fn default() -> Self {
        Self::Exponential {
            first: second(),
            factor: factor(),
            max: Duration::from_hours(1),
        }
    }
}

// === impl Rate ===

impl Rate {
    /// The rate this stands for.
    fn rules(self) -> Result<CoreRate, Error> {
        let Self {
            limit, per, burst, ..
        } = self;
        // Longer, and one attempt would be further off than time is counted; zero is no span.
        if per.is_zero() || per > MAX_DELAY {
            return Err(error(
                &["rate", "per"],
                "expected a duration of more than nothing, at most 366 days".into(),
            ));
        }
        let in_burst = f64::from(limit.get()) * BURST.as_secs_f64() / per.as_secs_f64();
        let burst = burst.unwrap_or_else(|| {
            NonZeroU32::new(in_burst.min(f64::from(u32::MAX)) as u32).unwrap_or(NonZeroU32::MIN)
        });
        Ok(CoreRate { limit, per, burst })
    }
}

// === impl End ===

impl End {
    /// The end in the core's terms.
    const fn terminal(self) -> Terminal {
        match self {
            Self::Delivered => Terminal::Delivered,
            Self::Dead => Terminal::Dead,
            Self::Expired => Terminal::Expired,
            Self::Cancelled => Terminal::Cancelled,
        }
    }
}

/// Exponential waits, which have to grow from something.
fn exponential(first: Duration, factor: f64, max: Duration) -> Result<Waits, Error> {
    at_least(&["backoff", "exponential", "first"], first)?;
    if !factor.is_finite() || factor < 1.0 {
        let message = format!("expected a number of at least 1, found `{factor}`");
        return Err(error(&["backoff", "exponential", "factor"], message));
    }
    not_below("exponential", ("first", first), max)?;
    Ok(Waits::Exponential {
        first: checked("exponential", "first", first)?,
        factor,
        max: checked("exponential", "max", max)?,
    })
}

/// A list of waits, or one known by name.
fn levels(delays: &[Duration], preset: Option<Preset>) -> Result<Waits, Error> {
    match (delays, preset) {
        ([], Some(Preset::Classic)) => Ok(Waits::classic()),
        ([_, ..], None) => {
            for (index, delay) in delays.iter().enumerate() {
                let index = format!("[{index}]");
                let path = ["backoff", "levels", "delays", &index];
                at_least(&path, *delay)?;
                check_delay(&path, *delay)?;
            }
            Ok(Waits::Levels {
                delays: delays.to_vec(),
            })
        }
        ([], None) | ([_, ..], Some(_)) => Err(error(
            &["backoff", "levels"],
            "expected either `delays`, a list of durations, or `preset`".into(),
        )),
    }
}

/// A schedule in a zone.
fn cron(schedule: &str, timezone: &str) -> Result<Waits, Error> {
    Schedule::try_new(schedule, timezone)
        .map(Waits::Cron)
        .map_err(|refused| {
            let (key, message) = match &refused {
                cron::Error::Zone(zone) => ("timezone", unknown_zone(zone)),
                cron::Error::TooLong
                | cron::Error::Unreadable { .. }
                | cron::Error::Foreign(_)
                | cron::Error::Rare => ("schedule", with_causes(&refused)),
            };
            error(&["backoff", "cron", key], message)
        })
}

/// What is wrong with the name of a zone, and which one was probably meant.
fn unknown_zone(zone: &str) -> String {
    let nearest = cron::zones()
        .map(|name| (strsim::damerau_levenshtein(zone, name), name))
        .min();
    match nearest {
        Some((edits, name)) if edits <= 2.max(zone.len() / 3) => {
            format!("unknown time zone `{zone}`; did you mean `{name}`?")
        }
        _ => format!("unknown time zone `{zone}`; expected a name such as `Europe/Berlin`"),
    }
}

/// Points in time, one after the other.
fn at(times: &[Timestamp]) -> Result<Waits, Error> {
    let path = ["backoff", "at", "times"];
    if times.is_empty() {
        return Err(error(&path, "expected at least one time".into()));
    }
    let falling = times.windows(2).position(|pair| pair[0] >= pair[1]);
    if let Some(index) = falling {
        let index = format!("[{}]", index + 1);
        let message = "expected a time after the one before it".into();
        return Err(error(&[path.as_slice(), &[&index]].concat(), message));
    }
    Ok(Waits::At {
        times: times.to_vec(),
    })
}

/// Refuses a way of spreading waits that has no meaning for them; says why.
fn check_jitter(backoff: &Waits, jitter: Jitter) -> Result<(), String> {
    match (backoff, jitter) {
        (_, Jitter::None)
        | (Waits::Exponential { .. }, _)
        | (
            Waits::Fixed { .. } | Waits::Linear { .. } | Waits::Levels { .. },
            Jitter::Full | Jitter::Equal,
        ) => Ok(()),
        (Waits::Random { .. }, _) => {
            Err("`random` waits are spread already: expected jitter `none`".into())
        }
        (Waits::Cron(_) | Waits::At { .. }, _) => {
            Err("points in time are not spread: expected jitter `none`".into())
        }
        (_, Jitter::Decorrelated) => {
            Err("jitter `decorrelated` goes with `exponential` waits only".into())
        }
    }
}

/// Refuses a longest wait below the shortest one.
fn not_below(shape: &str, (key, least): (&str, Duration), max: Duration) -> Result<(), Error> {
    if max < least {
        let message = format!("expected a duration of at least `{key}`");
        return Err(error(&["backoff", shape, "max"], message));
    }
    Ok(())
}

/// A wait of a shape, unless it is further off than retide parks tasks.
fn checked(shape: &str, key: &str, wait: Duration) -> Result<Duration, Error> {
    check_delay(&["backoff", shape, key], wait).map(|()| wait)
}

/// Refuses a wait that is shorter than any: it would be made longer without a word.
fn at_least(path: &[&str], wait: Duration) -> Result<(), Error> {
    if wait < LEAST_WAIT {
        let message = format!("expected a wait of at least {}", span::text(LEAST_WAIT));
        return Err(error(path, message));
    }
    Ok(())
}

/// Refuses a wait that is further off than retide parks tasks.
fn check_delay(path: &[&str], delay: Duration) -> Result<(), Error> {
    if delay > MAX_DELAY {
        return Err(error(
            path,
            "expected a duration of at most 366 days".into(),
        ));
    }
    Ok(())
}

/// An error at the value that `path` leads to within the scene.
pub(super) fn error(path: &[&str], message: String) -> Error {
    Error {
        path: path.iter().map(|&key| key.to_owned()).collect(),
        message,
    }
}

/// Attempts where the scene names no number: with the default waits, about nine hours.
const fn max_attempts() -> NonZeroU32 {
    NonZeroU32::new(16).unwrap()
}

/// What a scene counts where it names no weight.
fn weight() -> u32 {
    Weight::default().get().into()
}

/// Whether a weight is what it is where none is written.
#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde wants it")]
fn is_usual(weight: &u32) -> bool {
    *weight == self::weight()
}

/// The first wait, and the span of a rate, where none is named.
const fn second() -> Duration {
    Duration::from_secs(1)
}

/// The zone of a schedule where none is named.
fn utc() -> String {
    "UTC".into()
}

/// Whether a value is what it is where none is written.
pub(super) fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// Whether scenes are braked that say nothing of it.
const fn brake() -> bool {
    true
}

/// Whether that is as it is where none is written.
#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde wants it")]
const fn is_braked(brake: &bool) -> bool {
    *brake
}

/// The factor of exponential waits where none is named.
const fn factor() -> f64 {
    2.0
}

/// The ends a callback is made for where none are named: all.
fn every_end() -> Vec<End> {
    vec![End::Delivered, End::Dead, End::Expired]
}
