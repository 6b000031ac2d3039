//! A breaker as it is written in a scene, and the rule it stands for.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use retide_connectors::TargetConfig;
use retide_core::breaker::{Fraction, Key, Rule, Subject};

use crate::scene::{Error, error};
use crate::text;

/// When a target is left alone, and how it is tried again.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Breaker {
    /// The part of the calls that fail at which it opens.
    #[serde(default = "failure_rate")]
    pub failure_rate: f64,
    /// A call that takes longer is slow; by default none is.
    #[serde(default, with = "text::maybe", skip_serializing_if = "Option::is_none")]
    pub slow_call: Option<Duration>,
    /// The part of the calls that are slow at which it opens; by default 0.8.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slow_rate: Option<f64>,
    /// How long a call counts.
    #[serde(default = "window", with = "text::duration")]
    pub window: Duration,
    /// Calls within the window below which it stays closed; so many in a row that fail, or are slow, open it.
    #[serde(default = "min_calls")]
    pub min_calls: u32,
    /// How long it is open at first.
    #[serde(default = "open", with = "text::duration")]
    pub open: Duration,
    /// Calls at once that are let through to see whether it may close, and how many of them have to succeed.
    #[serde(default = "probes")]
    pub probes: u32,
    /// How long it takes after that until as many calls may be in flight as before.
    #[serde(default = "slow_start", with = "text::duration")]
    pub slow_start: Duration,
}

/// Longest time in a rule: what happened before that says nothing of a target.
const LONGEST: Duration = Duration::from_hours(1);

/// Shortest window, of ten buckets, and shortest time to be open: shorter than a call takes, and neither means anything.
const SHORTEST: Duration = Duration::from_millis(100);

/// Most calls in a rule: more in an hour are as good as these.
const MOST_CALLS: u32 = 1_000_000;

/// Most probes: more at once are no probe.
const MOST_PROBES: u32 = 1_000;

// === impl Breaker ===

impl Breaker {
    /// The rule this stands for.
    pub(super) fn rule(self) -> Result<Rule, Error> {
        let Self {
            failure_rate,
            slow_call,
            slow_rate,
            window,
            min_calls,
            open,
            probes,
            slow_start,
        } = self;
        if slow_rate.is_some() && slow_call.is_none() {
            let message = "`slow_rate` goes with `slow_call`, which says what is slow".into();
            return Err(error(&["breaker", "slow_rate"], message));
        }
        if let Some(slow_call) = slow_call {
            within("slow_call", slow_call, Duration::from_millis(1))?;
        }
        Ok(Rule {
            failure_rate: part("failure_rate", failure_rate)?,
            slow_call,
            slow_rate: slow_rate.map_or(Ok(Rule::DEFAULT.slow_rate), |part_of| {
                part("slow_rate", part_of)
            })?,
            window: within("window", window, SHORTEST)?,
            min_calls: count("min_calls", min_calls, MOST_CALLS)?,
            open: within("open", open, SHORTEST)?,
            probes: count("probes", probes, MOST_PROBES)?,
            slow_start: within("slow_start", slow_start, Duration::ZERO)?,
        })
    }
}

/// Which breaker of this rule is the target's, if it is called.
pub(super) fn key(rule: Rule, target: &TargetConfig) -> Option<Key> {
    let target = (*target.authority()?).into();
    Some(Key { target, rule })
}

/// What the wall of a scene's target is known by, if it is called, with this rule: each scene has its own.
pub(super) fn wall(name: &str, target: &TargetConfig, rule: Rule) -> Option<Key> {
    Some(Key {
        target: Subject::wall(&target.authority()?, name),
        rule,
    })
}

/// A part of all calls.
fn part(key: &str, value: f64) -> Result<Fraction, Error> {
    Fraction::try_new(value).ok_or_else(|| {
        let message = format!("expected a number over 0, at most 1, found `{value}`");
        error(&["breaker", key], message)
    })
}

/// A time of at least `least`, and not over the longest one.
fn within(key: &str, value: Duration, least: Duration) -> Result<Duration, Error> {
    if (least..=LONGEST).contains(&value) {
        return Ok(value);
    }
    let message = format!(
        "expected a duration of {} to {}",
        retide_core::span::text(least),
        retide_core::span::text(LONGEST)
    );
    Err(error(&["breaker", key], message))
}

/// A number of calls.
fn count(key: &str, value: u32, most: u32) -> Result<u32, Error> {
    if (1..=most).contains(&value) {
        return Ok(value);
    }
    let message = format!("expected a number of 1 to {most}, found `{value}`");
    Err(error(&["breaker", key], message))
}

/// The part of failed calls where none is named.
fn failure_rate() -> f64 {
    Rule::DEFAULT.failure_rate.part()
}

/// The window where none is named.
const fn window() -> Duration {
    Rule::DEFAULT.window
}

/// The slow start where none is named.
const fn slow_start() -> Duration {
    Rule::DEFAULT.slow_start
}

/// Calls of a window where none are named.
const fn min_calls() -> u32 {
    Rule::DEFAULT.min_calls
}

/// How long a breaker is open where it is not said.
const fn open() -> Duration {
    Rule::DEFAULT.open
}

/// Probes where none are named.
const fn probes() -> u32 {
    Rule::DEFAULT.probes
}
