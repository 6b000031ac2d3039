//! A scene as it is configured, in a file or on the scenes topic, and the rules it stands for.
//!
//! Invariant: what [`Scene::rules`] accepts can be scheduled.

use std::num::NonZeroU32;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use retide_connectors::TargetConfig;
use retide_core::scene::{self, MAX_DELAY};
use retide_core::{Jitter, Rate as CoreRate, Terminal};

use crate::config::text;

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
    /// Attempts made before the task is given up.
    #[serde(default = "max_attempts")]
    pub max_attempts: NonZeroU32,
    /// Time from the first sight of a task after which no attempt starts.
    #[serde(default, with = "text::maybe", skip_serializing_if = "Option::is_none")]
    pub deadline: Option<Duration>,
    /// Attempts per time, of the whole group.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate: Option<Rate>,
    /// Attempts in flight at once, per process.
    #[serde(default = "concurrency")]
    pub concurrency: NonZeroU32,
    /// Where the end of a task is reported besides the callbacks topic.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub callback: Option<Callback>,
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
}

/// Lists of waits known by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Preset {
    /// [`scene::Backoff::classic`].
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
        Ok(scene::Scene {
            name: name.into(),
            target: self.target.core(),
            backoff: self.backoff.rules()?,
            jitter: self.jitter,
            max_attempts: self.max_attempts,
            deadline: self.deadline,
            rate: self.rate.map(Rate::rules).transpose()?,
            concurrency: self.concurrency,
            callback: self.callback.as_ref().map(|callback| scene::Callback {
                target: callback.target.core(),
                on: callback.on.iter().map(|end| end.terminal()).collect(),
            }),
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

// === impl Backoff ===

impl Backoff {
    /// The waits this stands for.
    fn rules(&self) -> Result<scene::Backoff, Error> {
        let checked = |shape: &str, key: &str, wait: Duration| {
            check_delay(&["backoff", shape, key], wait).map(|()| wait)
        };
        Ok(match self {
            Self::Fixed { delay } => scene::Backoff::Fixed {
                delay: checked("fixed", "delay", *delay)?,
            },
            Self::Linear { first, step, max } => scene::Backoff::Linear {
                first: checked("linear", "first", *first)?,
                step: checked("linear", "step", *step)?,
                max: checked("linear", "max", not_below("linear", *first, *max)?)?,
            },
            Self::Exponential { first, factor, max } => {
                if !factor.is_finite() || *factor < 1.0 {
                    return Err(error(
                        &["backoff", "exponential", "factor"],
                        format!("expected a number of at least 1, found `{factor}`"),
                    ));
                }
                scene::Backoff::Exponential {
                    first: checked("exponential", "first", *first)?,
                    factor: *factor,
                    max: checked(
                        "exponential",
                        "max",
                        not_below("exponential", *first, *max)?,
                    )?,
                }
            }
            Self::Levels { delays, preset } => match (delays.as_slice(), preset) {
                ([], Some(Preset::Classic)) => scene::Backoff::classic(),
                ([_, ..], None) => {
                    for (index, delay) in delays.iter().enumerate() {
                        let index = format!("[{index}]");
                        check_delay(&["backoff", "levels", "delays", &index], *delay)?;
                    }
                    scene::Backoff::Levels {
                        delays: delays.clone(),
                    }
                }
                ([], None) | ([_, ..], Some(_)) => {
                    return Err(error(
                        &["backoff", "levels"],
                        "expected either `delays`, a list of durations, or `preset`".into(),
                    ));
                }
            },
        })
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
        let Self { limit, per, burst } = self;
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
        }
    }
}

/// Refuses a longest wait below the first one.
fn not_below(shape: &str, first: Duration, max: Duration) -> Result<Duration, Error> {
    if max < first {
        let message = "expected a duration of at least `first`".into();
        return Err(error(&["backoff", shape, "max"], message));
    }
    Ok(max)
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
fn error(path: &[&str], message: String) -> Error {
    Error {
        path: path.iter().map(|&key| key.to_owned()).collect(),
        message,
    }
}

/// Attempts where the scene names no number: with the default waits, about nine hours.
const fn max_attempts() -> NonZeroU32 {
    NonZeroU32::new(16).unwrap()
}

/// Calls in flight where the scene names no number: enough for a fast target, bearable for a slow one.
const fn concurrency() -> NonZeroU32 {
    NonZeroU32::new(64).unwrap()
}

/// The first wait, and the span of a rate, where none is named.
const fn second() -> Duration {
    Duration::from_secs(1)
}

/// The factor of exponential waits where none is named.
const fn factor() -> f64 {
    2.0
}

/// The ends a callback is made for where none are named: all.
fn every_end() -> Vec<End> {
    vec![End::Delivered, End::Dead, End::Expired]
}
