//! How hard the target of a scene is pressed, and which of its tasks wait for which: rate, concurrency, breaker, order and weight.
//!
//! Not when attempts come. Invariant: what is said of a division over shards is what workers do, since it is asked of the same code.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::num::NonZeroU32;
use std::time::Duration;

use comfy_table::{Table, presets};
use serde::Serialize;

use retide_config::Scene;
use retide_core::duplicates::{self, Mode};
use retide_core::quota::{self, Division};
use retide_core::scene::{self, Of};
use retide_core::span::human;
use retide_core::{Ordering, Scenes, breaker};

use crate::cli::preview::millis;

/// How hard a target is pressed.
#[derive(Debug, Serialize)]
pub(super) struct Pacing {
    /// How many attempts start in a time; none if there is no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    rate: Option<Rate>,
    /// How many calls are in flight at once; none if nothing is called.
    #[serde(skip_serializing_if = "Option::is_none")]
    concurrency: Option<Concurrency>,
    /// When targets are left alone: the scene's, and that of its callbacks.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    breakers: Vec<Breaker>,
    /// How long a target may take that answers later; none if nothing is called.
    #[serde(skip_serializing_if = "Option::is_none")]
    pending: Option<Later>,
    /// Which tasks wait for each other.
    ordering: Ordering,
    /// What becomes of tasks whose id another one has.
    duplicates: Duplicates,
    /// What the scene counts where others wait, too.
    weight: u8,
}

/// What becomes of tasks whose id another one has.
#[derive(Debug, Serialize)]
struct Duplicates {
    /// What becomes of them.
    mode: Mode,
    /// How long after its end a task still has them, if that matters.
    #[serde(skip_serializing_if = "Option::is_none")]
    window_ms: Option<u64>,
}

/// Attempts in a time, of the whole group.
#[derive(Debug, Serialize)]
struct Rate {
    /// How many.
    limit: u32,
    /// In which time.
    per_ms: u64,
    /// How many may start at once after a quiet time.
    burst: u32,
    /// Whose attempts count.
    of: String,
    /// The other scenes whose attempts count.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    shared_with: Vec<String>,
    /// How it divides, if that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    shards: Option<Shards>,
}

/// The shards of a rate.
#[derive(Clone, Copy, Debug, Serialize)]
struct Shards {
    /// How many there are.
    all: u32,
    /// How many have a part of it.
    with_a_part: u32,
    /// Attempts of one of them in the time of the rate.
    limit_each: f64,
    /// Attempts of one of them that may start at once.
    burst_each: u32,
}

/// Calls in flight, per process.
#[derive(Debug, Serialize)]
struct Concurrency {
    /// The most.
    max: u32,
    /// The fewest, if the number follows the target.
    #[serde(skip_serializing_if = "Option::is_none")]
    min: Option<u32>,
    /// Whether it does.
    adaptive: bool,
    /// Whose calls count.
    of: String,
    /// The other scenes whose calls count.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    shared_with: Vec<String>,
}

/// How long a target may take that answers later.
#[derive(Clone, Copy, Debug, Serialize)]
struct Later {
    /// How long, where it does not say.
    for_ms: u64,
    /// How long at most.
    max_ms: u64,
}

/// When a target is left alone.
#[derive(Debug, Serialize)]
struct Breaker {
    /// The target.
    target: String,
    /// The other scenes that have it in common.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    shared_with: Vec<String>,
    /// The part of failed calls at which it opens.
    failure_rate: f64,
    /// A call that takes longer is slow.
    #[serde(skip_serializing_if = "Option::is_none")]
    slow_call_ms: Option<u64>,
    /// The part of slow calls at which it opens.
    #[serde(skip_serializing_if = "Option::is_none")]
    slow_rate: Option<f64>,
    /// How long a call counts.
    window_ms: u64,
    /// Calls below which it stays closed.
    min_calls: u32,
    /// How long it is open at first.
    open_ms: u64,
    /// How many calls find out whether it may close.
    probes: u32,
    /// How long it takes from then on until there are as many calls as before.
    slow_start_ms: u64,
}

// === impl Pacing ===

impl Pacing {
    /// That of a scene among others, where there are so many shards.
    pub(super) fn of(
        rules: &scene::Scene,
        scenes: &BTreeMap<String, Scene>,
        shards: Option<NonZeroU32>,
    ) -> Self {
        let all = scenes.iter();
        // Others that cannot be read are not in force.
        let all: Vec<scene::Scene> = all
            .filter_map(|(name, scene)| scene.rules(name).ok())
            .collect();
        let others = || all.iter().filter(|other| other.name != rules.name);
        let named = |with: &dyn Fn(&scene::Scene) -> bool| {
            let names = others().filter(|other| with(other));
            names.map(|other| other.name.to_string()).collect()
        };
        let rate = rules.rate.map(|rate| Rate {
            limit: rate.limit.get(),
            per_ms: millis(rate.per),
            burst: rate.burst.get(),
            of: rules.rate_of().to_string(),
            shared_with: named(&|other| {
                other.rate_of() == rules.rate_of() && other.rate == rules.rate
            }),
            shards: shards.and_then(|count| {
                let all: Scenes = all.iter().cloned().collect();
                let division = quota::division(&all, &rules.name, count)?;
                Some(Shards::of(division, rate.per, count))
            }),
        });
        let limits = |scene: &scene::Scene| (scene.concurrency, scene.least_concurrency);
        let concurrency = rules.calls_of().map(|of| Concurrency {
            max: rules.concurrency.get(),
            min: rules.least_concurrency.map(NonZeroU32::get),
            adaptive: rules.least_concurrency.is_some(),
            shared_with: named(&|other| {
                other.calls_of().as_ref() == Some(&of) && limits(other) == limits(rules)
            }),
            of: match of {
                Of::Scene(name) | Of::Host(name) => name.to_string(),
            },
        });
        let breakers = keys(rules)
            .map(|key| Breaker::of(key, named(&|other| keys(other).any(|own| own == key))));
        let mut breakers: Vec<Breaker> = breakers.collect();
        breakers.dedup_by(|one, other| one.target == other.target);
        Self {
            rate,
            concurrency,
            breakers,
            pending: (rules.target == scene::Target::Call).then(|| Later {
                for_ms: millis(rules.pending.usual),
                max_ms: millis(rules.pending.most),
            }),
            ordering: rules.ordering,
            duplicates: Duplicates::of(rules.duplicates),
            weight: rules.weight.get(),
        }
    }

    /// As people read it.
    pub(super) fn text(&self) -> String {
        let Self {
            rate,
            concurrency,
            breakers,
            pending,
            ordering,
            duplicates,
            weight,
        } = self;
        let mut table = Table::new();
        table.load_preset(presets::NOTHING);
        let none = || "none: as many as there are".to_owned();
        table.add_row(["rate", &rate.as_ref().map_or_else(none, Rate::text)]);
        let none = || "none: records are written with the ledger's".to_owned();
        let calls = concurrency.as_ref();
        table.add_row(["concurrency", &calls.map_or_else(none, Concurrency::text)]);
        for breaker in breakers {
            table.add_row(["breaker", &breaker.text()]);
        }
        if breakers.is_empty() {
            table.add_row(["breaker", "none"]);
        }
        if let Some(Later { for_ms, max_ms }) = pending {
            let (usual, most) = (human(*for_ms), human(*max_ms));
            let pending = format!(
                "a target that answers later has {usual} for it, or up to {most} if it asks for it"
            );
            table.add_row(["pending", &pending]);
        }
        let ordering = match ordering {
            Ordering::None => "none: no task waits for another one",
            Ordering::Key => "key: one task of a key after the other",
        };
        table.add_row(["ordering", ordering]);
        table.add_row(["duplicates", &duplicates.text()]);
        table.add_row(["weight", &format!("{weight}, where scenes take turns")]);
        table.trim_fmt()
    }
}

/// The breakers of a scene: its target's, and that of its callbacks.
fn keys(rules: &scene::Scene) -> impl Iterator<Item = &breaker::Key> {
    let callback = rules.callback.as_ref();
    let callback = callback.and_then(|callback| callback.breaker.as_ref());
    rules.breaker.iter().chain(callback)
}

// === impl Duplicates ===

impl Duplicates {
    /// Those of a scene.
    fn of(rule: duplicates::Rule) -> Self {
        Self {
            mode: rule.mode,
            window_ms: rule.looks().then(|| millis(rule.window)),
        }
    }

    /// As people read it.
    fn text(&self) -> String {
        let window = human(self.window_ms.unwrap_or_default());
        match (self.mode, self.window_ms) {
            (Mode::Allow, _) => "allow: each record is a task of its own".to_owned(),
            (Mode::Drop, None | Some(0)) => "drop: a record whose id is under way".to_owned(),
            (Mode::Drop, Some(_)) => {
                format!("drop: a record whose id is under way, or has ended less than {window} ago")
            }
            (mode @ (Mode::Replace | Mode::KeepDue), window_ms) => {
                let what = match mode {
                    Mode::KeepDue => {
                        "a record whose id is under way takes its task's place, at its due time"
                    }
                    Mode::Allow | Mode::Drop | Mode::Replace => {
                        "a record whose id is under way takes its task's place"
                    }
                };
                match window_ms {
                    None | Some(0) => format!("{}: {what}", mode.word()),
                    Some(_) => format!(
                        "{}: {what}; one whose id has ended less than {window} ago is dropped",
                        mode.word()
                    ),
                }
            }
        }
    }
}

// === impl Rate ===

impl Rate {
    /// As people read it.
    fn text(&self) -> String {
        let Self {
            limit,
            per_ms,
            burst,
            of,
            shared_with,
            shards,
        } = self;
        let per = human(*per_ms);
        let mut text =
            format!("{limit} per {per} and {burst} at once, of the whole group; counted for {of}");
        text.push_str(&shared(shared_with));
        let Some(Shards {
            all,
            with_a_part,
            limit_each,
            burst_each,
        }) = shards
        else {
            return text;
        };
        let _ = match with_a_part.cmp(all) {
            std::cmp::Ordering::Less => write!(
                text,
                "; belongs to {with_a_part} of {all} shards, and tasks of the others move there"
            ),
            std::cmp::Ordering::Equal | std::cmp::Ordering::Greater => {
                write!(text, "; belongs to all {all} shards")
            }
        };
        let _ = write!(
            text,
            ": {limit_each} per {per} and {burst_each} at once each"
        );
        text
    }
}

// === impl Shards ===

impl Shards {
    /// The parts of a rate in a time, where there are so many shards.
    fn of(division: Division, per: Duration, all: NonZeroU32) -> Self {
        let each = per.as_secs_f64() / division.period.as_secs_f64();
        Self {
            all: all.get(),
            with_a_part: division.shards,
            // As many digits as people read.
            limit_each: (each * 1_000.0).round() / 1_000.0,
            burst_each: division.burst.get(),
        }
    }
}

// === impl Concurrency ===

impl Concurrency {
    /// As people read it.
    fn text(&self) -> String {
        let Self {
            max,
            min,
            of,
            shared_with,
            ..
        } = self;
        let calls = match min {
            Some(min) => {
                format!("{min} to {max} calls at once, as many as the target answers well")
            }
            None => format!("{max} calls at once"),
        };
        let shared = shared(shared_with);
        format!("{calls}, per process; counted for {of}{shared}")
    }
}

// === impl Breaker ===

impl Breaker {
    /// A breaker that these other scenes have, too.
    fn of(key: &breaker::Key, shared_with: Vec<String>) -> Self {
        let breaker::Key { target, rule } = key;
        Self {
            target: target.to_string(),
            shared_with,
            failure_rate: rule.failure_rate.part(),
            slow_call_ms: rule.slow_call.map(millis),
            slow_rate: rule.slow_call.map(|_| rule.slow_rate.part()),
            window_ms: millis(rule.window),
            min_calls: rule.min_calls,
            open_ms: millis(rule.open),
            probes: rule.probes,
            slow_start_ms: millis(rule.slow_start),
        }
    }

    /// As people read it.
    fn text(&self) -> String {
        let mut text = format!(
            "of {}{}: opens where {} % of the calls of {}, {} at least, fail",
            self.target,
            shared(&self.shared_with),
            self.failure_rate * 100.0,
            human(self.window_ms),
            self.min_calls,
        );
        if let (Some(slow), Some(rate)) = (self.slow_call_ms, self.slow_rate) {
            let slow = human(slow);
            let _ = write!(text, ", or {} % take over {slow}", rate * 100.0);
        }
        let (open, start) = (human(self.open_ms), human(self.slow_start_ms));
        let _ = write!(
            text,
            "; probes of {} at once after {open}; slow start of {start}",
            self.probes
        );
        text
    }
}

/// The others that have something in common with a scene.
fn shared(with: &[String]) -> String {
    if with.is_empty() {
        return String::new();
    }
    format!(", together with {}", with.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The pacing of scene `a` among these, where there are so many shards.
    fn of(scenes: &[(&str, &str)], shards: Option<u32>) -> Pacing {
        let scenes: BTreeMap<String, Scene> = scenes
            .iter()
            .map(|(name, rules)| {
                let text = format!("target = {{ http = {{ url = 'http://h/{name}' }} }}\n{rules}");
                let scene = retide_config::rules(name, text).unwrap();
                ((*name).to_owned(), scene)
            })
            .collect();
        let rules = scenes["a"].rules("a").unwrap();
        Pacing::of(&rules, &scenes, shards.and_then(NonZeroU32::new))
    }

    #[test]
    fn a_scene_of_which_little_is_said_has_little_to_say() {
        let pacing = of(&[("a", "")], Some(12));

        assert_eq!(
            pacing.text().trim_start(),
            "\
 rate         none: as many as there are
 concurrency  64 calls at once, per process; counted for a
 breaker      none
 pending      a target that answers later has 1h for it, or up to 1d if it asks for it
 ordering     none: no task waits for another one
 duplicates   allow: each record is a task of its own
 weight       1, where scenes take turns"
        );
    }

    #[test]
    fn everything_that_is_said_of_a_scene_is_shown_and_who_shares_it() {
        let own = "rate = { limit = 100, burst = 20, of = 'host' }\nconcurrency = { max = 32, min = 2, of = 'host' }\n\
                   breaker = { slow_call = '5s', window = '1m' }\nordering = 'key'\nduplicates = { window = '90s' }\nweight = 3";
        let other = "rate = { limit = 100, burst = 20, of = 'host' }\nconcurrency = { max = 31, min = 2, of = 'host' }\n\
                     breaker = { slow_call = '5s', window = '1m' }";

        let pacing = of(&[("a", own), ("b", other), ("c", "")], Some(12));

        assert_eq!(
            pacing.text().trim_start(),
            "\
 rate         100 per 1s and 20 at once, of the whole group; counted for http://h:80, together with b; belongs to all 12 shards: \
8.333 per 1s and 1 at once each
 concurrency  2 to 32 calls at once, as many as the target answers well, per process; counted for http://h:80
 breaker      of http://h:80, together with b: opens where 50 % of the calls of 1m, 20 at least, fail, or 80 % take over 5s; probes of 5 \
at once after 10s; slow start of 30s
 pending      a target that answers later has 1h for it, or up to 1d if it asks for it
 ordering     key: one task of a key after the other
 duplicates   drop: a record whose id is under way, or has ended less than 1m 30s ago
 weight       3, where scenes take turns"
        );
        let json = serde_json::to_value(&pacing).unwrap();
        assert_eq!(json["rate"]["shards"]["limit_each"], 8.333);
        assert_eq!(json["concurrency"]["min"], 2);
        assert_eq!(json["breakers"][0]["slow_call_ms"], 5_000);
        assert_eq!(json["ordering"], "key");
        assert_eq!(json["duplicates"]["window_ms"], 90_000);
    }

    #[test]
    fn a_rate_of_few_shards_says_that_tasks_move_and_one_of_an_order_has_all_of_them() {
        let rate = "rate = { limit = 5, per = '1m' }";

        let text = |rules: &str, shards| of(&[("a", rules)], shards).rate.unwrap().text();

        assert_eq!(
            text(rate, Some(12)),
            "5 per 1m and 1 at once, of the whole group; counted for a; belongs to 1 of 12 shards, and tasks of the others move there: \
             5 per 1m and 1 at once each"
        );
        assert_eq!(
            text(&format!("{rate}\nordering = 'key'"), Some(12)),
            "5 per 1m and 1 at once, of the whole group; counted for a; belongs to all 12 shards: 0.417 per 1m and 1 at once each"
        );
        assert_eq!(
            text(rate, None),
            "5 per 1m and 1 at once, of the whole group; counted for a"
        );
    }
}
