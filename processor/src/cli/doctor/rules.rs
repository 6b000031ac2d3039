//! Scenes that do not mean what they say.
//!
//! What cannot be scheduled at all was refused when the scene was read; what is here runs, but hardly as it was meant. Invariant: what a
//! scene may well mean is not called wrong.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::time::Duration;

use retide_config::{Config, Guarantee, Scene};
use retide_core::quota::{self, Division};
use retide_core::scene::{self, OnExhausted, Overrides};
use retide_core::{Ordering, Policy, Rate, Scenes, Timestamp, breaker, span};
use retide_shell::clock;

use crate::cli::doctor::{CheckRow, Section, change};

/// What is wrong, and the key to change.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Odd {
    /// What comes of the rules.
    message: String,
    /// The key, and what it should be.
    key: String,
}

/// Attempts after which no wait grows any more that people would write down.
const LATE: u32 = 1_000;

/// Trips through the longest tier from which on a longer tier is worth having: each is a record written and read.
const TRIPS: u32 = 100;

/// A call that takes less has no network in it.
const FASTEST: Duration = Duration::from_micros(100);

/// What is odd about scenes, where there are so many shards; one good line for all the others.
pub(super) fn lines(
    config: &Config,
    scenes: &BTreeMap<String, (Scene, Option<String>)>,
    shards: Option<NonZeroU32>,
) -> Vec<CheckRow> {
    let now = clock::timestamp();
    let longest = config.topics.tiers.tiers().last();
    let longest = longest.map_or(Duration::ZERO, |tier| tier.delay);
    let all = scenes.iter();
    let all: Vec<scene::Scene> = all
        .filter_map(|(name, (scene, _))| scene.rules(name).ok())
        .collect();
    let (mut lines, mut good) = (Vec::new(), 0);
    for (name, (scene, file)) in scenes {
        let mut odd = odd(name, scene, longest, now);
        odd.extend(loose_order(scene, config.processor.guarantee));
        odd.extend(loose_ids(scene, name, config.processor.guarantee));
        if let Some(rules) = all.iter().find(|rules| *rules.name == **name) {
            odd.extend(slow_part(rules, &all, shards));
            odd.extend(beside_others(rules, &all));
        }
        good += usize::from(odd.is_empty());
        let odd = odd.into_iter().map(|Odd { message, key }| {
            let fix = if key.starts_with("tiers") {
                format!(
                    "set {key} in [topics], then: {}",
                    config.invocation.line("init")
                )
            } else if key.starts_with("guarantee") {
                format!("set {key} in [processor]")
            } else {
                change(&config.invocation, name, file.as_deref(), &key)
            };
            CheckRow::warn(Section::Scenes, format!("scene {name}"), message, fix)
        });
        lines.extend(odd);
    }
    if good > 0 {
        let message = "their waits, deadlines, rates, concurrency and breakers fit together, and fit the tiers";
        lines.insert(
            0,
            CheckRow::ok(
                Section::Scenes,
                format!("{good} of {} scenes", scenes.len()),
                message,
            ),
        );
    }
    lines
}

/// What is odd about one scene, where the longest tier waits so long.
fn odd(name: &str, scene: &Scene, longest: Duration, now: Timestamp) -> Vec<Odd> {
    let rules = match scene.rules(name) {
        Ok(rules) => rules,
        Err(error) => {
            return vec![Odd {
                message: error.to_string(),
                key: error.path.join("."),
            }];
        }
    };
    let mut all = Vec::new();
    if scene.is_over(now) {
        all.push(Odd {
            message: "all times of `at` have passed: a task whose attempt fails is dead at once"
                .to_owned(),
            key: "backoff.at.times".to_owned(),
        });
    }
    for (key, policy) in policies(&rules) {
        all.extend(never_again(&key, policy, rules.deadline));
        all.extend(many_trips(policy, longest));
    }
    all.dedup();
    let timeout = scene.target.configured().timeout();
    if let Some(rate) = rules.rate {
        all.extend(slow_rate(rate, rules.deadline));
        // What the ledger produces takes no place of a call.
        if rules.target == scene::Target::Call {
            all.extend(fast_rate(rate, rules.concurrency.get()));
        }
    }
    if scene.pending.is_some() {
        all.extend(late_answer(&rules));
    }
    all.extend(stiff_concurrency(&rules));
    all.extend(held_for_ever(&rules));
    if let Some(timeout) = timeout {
        all.extend(odd_breaker(&rules, timeout));
    }
    all
}

/// An order that is not written down.
fn loose_order(scene: &Scene, guarantee: Guarantee) -> Option<Odd> {
    match (scene.ordering, guarantee) {
        (Ordering::None, _) | (Ordering::Key, Guarantee::ExactlyOnce) => None,
        (Ordering::Key, Guarantee::AtLeastOnce) => Some(Odd {
            message: "the order of its keys is kept as long as shards stay where they are: after a crash or a rebalance, parked tasks may be \
                      overtaken"
                .to_owned(),
            key: "guarantee (exactly_once)".to_owned(),
        }),
    }
}

/// Duplicates that are not found after a restart.
fn loose_ids(scene: &Scene, name: &str, guarantee: Guarantee) -> Option<Odd> {
    let rules = scene.rules(name).ok()?;
    match guarantee {
        Guarantee::ExactlyOnce => None,
        Guarantee::AtLeastOnce => rules.duplicates.looks().then(|| Odd {
            message: "its duplicates are found as long as shards stay where they are: after a crash or a rebalance, ids from before are not \
                      known"
                .to_owned(),
            key: "guarantee (exactly_once)".to_owned(),
        }),
    }
}

/// The policies of a scene, and the keys that lead to them.
fn policies(rules: &scene::Scene) -> Vec<(String, &Policy)> {
    let Overrides {
        throttled,
        timeout,
        retryable,
    } = &rules.on;
    let own = [
        ("on.throttled.backoff", throttled),
        ("on.timeout.backoff", timeout),
        ("on.retryable.backoff", retryable),
    ];
    let own = own
        .into_iter()
        .filter_map(|(key, policy)| Some((key.to_owned(), policy.as_ref()?)));
    [("backoff".to_owned(), &rules.policy)]
        .into_iter()
        .chain(own)
        .collect()
}

/// A deadline that has passed before there can be a second attempt.
fn never_again(key: &str, policy: &Policy, deadline: Option<Duration>) -> Option<Odd> {
    let deadline = deadline?;
    let (least, _) = policy.band(1)?;
    (policy.max_attempts.get() > 1 && least > deadline).then(|| Odd {
        message: format!(
            "the first wait of {key} is {} at least, and the deadline is {}: no task is ever tried a second time",
            span::text(least),
            span::text(deadline)
        ),
        key: format!("deadline (over {}) or {key}", span::text(least)),
    })
}

/// Waits that go through the longest tier again and again.
fn many_trips(policy: &Policy, longest: Duration) -> Option<Odd> {
    let last = policy.max_attempts.get().saturating_sub(1).min(LATE);
    let (_, most) = policy.band(last.max(1))?;
    if last == 0 || longest.is_zero() || most <= longest * TRIPS {
        return None;
    }
    let trips = most.as_secs() / longest.as_secs().max(1);
    Some(Odd {
        message: format!(
            "a wait of {} goes through the longest tier ({}) {trips} times, each time a record written and read",
            span::text(most),
            span::text(longest)
        ),
        key: "tiers (up to \"7d\")".to_owned(),
    })
}

/// A limit of pending attempts after which there is no time for another one.
fn late_answer(rules: &scene::Scene) -> Option<Odd> {
    let (usual, deadline) = (rules.pending.usual, rules.deadline?);
    (usual >= deadline).then(|| Odd {
        message: format!(
            "a target that answers later has {} for it, and the deadline is {}: a task whose target does not answer expires without \
             another attempt",
            span::text(usual),
            span::text(deadline)
        ),
        key: format!("pending.for (below {})", span::text(deadline)),
    })
}

/// A rate that leaves no time before the deadline.
fn slow_rate(rate: Rate, deadline: Option<Duration>) -> Option<Odd> {
    let deadline = deadline?;
    let every = rate.per / rate.limit.get();
    (every > deadline).then(|| Odd {
        message: format!(
            "its rate lets one attempt start every {}, and the deadline is {}: tasks that queue up expire",
            span::text(every),
            span::text(deadline)
        ),
        key: "rate.limit or deadline".to_owned(),
    })
}

/// A rate of which a shard has so small a part that tasks there expire.
fn slow_part(
    rules: &scene::Scene,
    all: &[scene::Scene],
    shards: Option<NonZeroU32>,
) -> Option<Odd> {
    let (rate, deadline) = (rules.rate?, rules.deadline?);
    let scenes: Scenes = all.iter().cloned().collect();
    let division = quota::division(&scenes, &rules.name, shards?)?;
    let Division { shards, period, .. } = division;
    // That the whole of it is too slow was said.
    let alone = rate.per / rate.limit.get();
    (period > deadline && alone <= deadline).then(|| {
        let burst = if rules.stays() {
            ""
        } else {
            // It belongs to as many shards as its burst has attempts.
            " or rate.burst (a smaller one)"
        };
        Odd {
            message: format!(
                "its rate belongs to {shards} shards, each of which lets one attempt start every {}, and the deadline is {}: where workers \
                 have few shards each, tasks that queue up expire",
                span::text(period),
                span::text(deadline)
            ),
            key: format!("rate.limit{burst} or deadline"),
        }
    })
}

/// Limits and a breaker that look as if they were shared with scenes that call the same host, and are not.
fn beside_others(rules: &scene::Scene, all: &[scene::Scene]) -> Vec<Odd> {
    let others = |differs: &dyn Fn(&scene::Scene) -> bool| {
        let others = all.iter().filter(|other| other.name != rules.name);
        let names = others
            .filter(|other| differs(other))
            .map(|other| &*other.name);
        Some(names.collect::<Vec<_>>().join(", ")).filter(|names| !names.is_empty())
    };
    let mut odd = Vec::new();
    if let Some(host) = rules.host.as_ref().filter(|host| host.rate)
        && let Some(names) = others(&|other| {
            let host = other.host.as_ref().filter(|host| host.rate);
            host.is_some() && other.rate_of() == rules.rate_of() && other.rate != rules.rate
        })
    {
        odd.push(Odd {
            message: format!(
                "its rate is that of {}, and scenes there name other ones ({names}): each counts for itself, and the host sees the sum",
                host.name
            ),
            key: "rate (the same in all of them)".to_owned(),
        });
    }
    let calls = |scene: &scene::Scene| (scene.concurrency, scene.least_concurrency);
    if let Some(host) = rules.concurrency_of()
        && let Some(names) =
            others(&|other| other.concurrency_of() == Some(host) && calls(other) != calls(rules))
    {
        odd.push(Odd {
            message: format!(
                "its concurrency is that of {host}, and scenes there name other ones ({names}): each counts for itself, and the host sees \
                 the sum"
            ),
            key: "concurrency (the same in all of them)".to_owned(),
        });
    }
    if let Some(own) = &rules.breaker
        && let Some(names) = others(&|other| {
            let breaker = other.breaker.as_ref();
            breaker.is_some_and(|other| other.target == own.target && other.rule != own.rule)
        })
    {
        odd.push(Odd {
            message: format!(
                "its breaker of {} goes by another rule than that of other scenes ({names}): each finds out for itself that it is down",
                own.target
            ),
            key: "breaker (the same in all of them)".to_owned(),
        });
    }
    odd
}

/// A concurrency that follows its target between bounds that leave no room.
fn stiff_concurrency(rules: &scene::Scene) -> Option<Odd> {
    let most = rules.concurrency;
    (rules.least_concurrency == Some(most)).then(|| Odd {
        message: format!(
            "its concurrency follows the target between {most} and {most}: it does not move"
        ),
        key: "concurrency.max (over min)".to_owned(),
    })
}

/// Tasks that wait for people, and for nothing else.
fn held_for_ever(rules: &scene::Scene) -> Option<Odd> {
    let is_held = matches!(rules.on_exhausted, OnExhausted::Hold { .. });
    (is_held && rules.deadline.is_none()).then(|| Odd {
        message: "its tasks are held when they are out of attempts, and there is no deadline: each one waits, and is looked at twice a minute, \
                  until somebody lets it go"
            .to_owned(),
        key: "deadline".to_owned(),
    })
}

/// A breaker that never opens, or is open for longer than tasks have time; calls end within this time.
fn odd_breaker(rules: &scene::Scene, timeout: Duration) -> Vec<Odd> {
    let Some(breaker::Key { rule, .. }) = &rules.breaker else {
        return Vec::new();
    };
    let mut odd = Vec::new();
    // Within a window, retries are of the same rate.
    if let Some(rate) = rules.rate.filter(|_| rules.host.is_none()) {
        let window = rule.window.as_secs_f64() / rate.per.as_secs_f64();
        let calls = window * f64::from(rate.limit.get()) + f64::from(rate.burst.get());
        if calls < f64::from(rule.min_calls) {
            odd.push(Odd {
                message: format!(
                    "its breaker needs {} calls within {} to open, and its rate lets {} start at most: it opens only if scenes that share it \
                     call, too",
                    rule.min_calls,
                    span::text(rule.window),
                    calls.floor()
                ),
                key: "breaker.min_calls or breaker.window".to_owned(),
            });
        }
    }
    if let Some(slow) = rule.slow_call.filter(|slow| *slow >= timeout) {
        odd.push(Odd {
            message: format!(
                "to its breaker a call is slow that takes over {}, and calls are given up after {}: none is ever slow",
                span::text(slow),
                span::text(timeout)
            ),
            key: "breaker.slow_call (below the target's timeout)".to_owned(),
        });
    }
    if let Some(deadline) = rules.deadline.filter(|deadline| *deadline <= rule.open) {
        odd.push(Odd {
            message: format!(
                "its breaker is open for {} at least, and the deadline is {}: tasks that are due meanwhile may expire untried",
                span::text(rule.open),
                span::text(deadline)
            ),
            key: "breaker.open or deadline".to_owned(),
        });
    }
    odd
}

/// A rate that so few calls at once can never reach.
fn fast_rate(rate: Rate, concurrency: u32) -> Option<Odd> {
    let each = rate.per.as_secs_f64() * f64::from(concurrency) / f64::from(rate.limit.get());
    (each < FASTEST.as_secs_f64()).then(|| Odd {
        message: format!(
            "its rate is never reached: with {concurrency} calls at once, each would have to take less than {:.0} µs",
            each * 1e6
        ),
        key: "concurrency or rate.limit".to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_hours(1);

    /// What is odd about a scene with these rules, where the longest tier is an hour.
    fn messages(rules: &str) -> Vec<String> {
        let text = format!("target = {{ http = {{ url = 'http://h/' }} }}\n{rules}");
        let scene = retide_config::rules("a", text).unwrap();
        let now = Timestamp::from_millis(1_700_000_000_000);
        let odd = odd("a", &scene, HOUR, now);
        odd.into_iter().map(|odd| odd.message).collect()
    }

    #[test]
    fn a_deadline_before_the_second_attempt_is_odd() {
        let fixed = |deadline| {
            format!("backoff = {{ fixed = {{ delay = '10m' }} }}\ndeadline = '{deadline}'")
        };

        assert_eq!(
            messages(&fixed("9m")),
            [
                "the first wait of backoff is 10m at least, and the deadline is 9m: no task is ever tried a second time"
            ]
        );
        assert!(messages(&fixed("10m")).is_empty());
        // Chance may make the wait short enough.
        assert!(messages(&format!("{}\njitter = 'full'", fixed("9m"))).is_empty());
        // There is no second attempt to wait for.
        assert!(messages(&format!("{}\nmax_attempts = 1", fixed("9m"))).is_empty());
        let own = "deadline = '1m'\n[on.throttled]\nbackoff = { fixed = { delay = '1h' } }";
        assert!(
            messages(own)[0].starts_with("the first wait of on.throttled.backoff is 1h at least")
        );
    }

    #[test]
    fn an_answer_that_may_come_after_the_deadline_is_odd() {
        let messages = |more: &str| {
            let text = format!("target = {{ http = {{ url = 'http://h/' }} }}\n{more}");
            let scene = retide_config::rules("a", text).unwrap();
            late_answer(&scene.rules("a").unwrap()).map(|odd| odd.key)
        };

        let key = messages("deadline = '30m'\npending = { for = '30m' }");
        assert_eq!(key.as_deref(), Some("pending.for (below 30m)"));
        assert_eq!(
            messages("deadline = '30m'\npending = { for = '29m' }"),
            None
        );
        assert_eq!(messages("pending = { for = '30m' }"), None);
    }

    #[test]
    fn a_wait_far_beyond_the_longest_tier_is_odd() {
        let fixed = |delay| format!("backoff = {{ fixed = {{ delay = '{delay}' }} }}");

        assert!(messages(&fixed("100h")).is_empty());
        assert_eq!(
            messages(&fixed("101h")),
            [
                "a wait of 4d 5h goes through the longest tier (1h) 101 times, each time a record written and read"
            ]
        );
    }

    #[test]
    fn a_rate_that_cannot_be_reached_or_leaves_no_time_is_odd() {
        assert_eq!(
            messages("rate = { limit = 100000, per = '1s' }\nconcurrency = 1"),
            [
                "its rate is never reached: with 1 calls at once, each would have to take less than 10 µs"
            ]
        );
        assert!(messages("rate = { limit = 10000, per = '1s' }\nconcurrency = 1").is_empty());
        assert_eq!(
            messages("rate = { limit = 1, per = '2h' }\ndeadline = '1h'"),
            [
                "its rate lets one attempt start every 2h, and the deadline is 1h: tasks that queue up expire"
            ]
        );
    }

    #[test]
    fn an_order_that_is_not_written_down_is_odd() {
        let text = "target = { http = { url = 'http://h/' } }\nordering = 'key'";
        let scene = retide_config::rules("a", text.to_owned()).unwrap();

        let odd = loose_order(&scene, Guarantee::AtLeastOnce).unwrap();

        assert_eq!(odd.key, "guarantee (exactly_once)");
        assert_eq!(loose_order(&scene, Guarantee::ExactlyOnce), None);
        assert!(messages("ordering = 'key'").is_empty());
    }

    #[test]
    fn duplicates_that_are_not_found_after_a_restart_are_odd() {
        let text = "target = { http = { url = 'http://h/' } }\nduplicates = 'drop'";
        let scene = retide_config::rules("a", text.to_owned()).unwrap();

        let odd = loose_ids(&scene, "a", Guarantee::AtLeastOnce).unwrap();

        assert_eq!(odd.key, "guarantee (exactly_once)");
        assert_eq!(loose_ids(&scene, "a", Guarantee::ExactlyOnce), None);
        assert!(messages("duplicates = 'drop'").is_empty());
    }

    /// What is odd about each of these scenes beside the others, where there are so many shards.
    fn among(rules: &[(&str, &str)], shards: u32) -> Vec<(String, Odd)> {
        let read = |(name, rules): &(&str, &str)| {
            let text = format!("target = {{ http = {{ url = 'http://h/{name}' }} }}\n{rules}");
            let scene = retide_config::rules(name, text).unwrap();
            scene.rules(name).unwrap()
        };
        let all: Vec<scene::Scene> = rules.iter().map(read).collect();
        let mut odd = Vec::new();
        for scene in &all {
            let one = slow_part(scene, &all, NonZeroU32::new(shards)).into_iter();
            let one = one.chain(beside_others(scene, &all));
            odd.extend(one.map(|odd| (scene.name.to_string(), odd)));
        }
        odd
    }

    #[test]
    fn limits_of_a_host_that_differ_are_odd_and_those_that_are_the_same_are_not() {
        let limits = |rate, max| {
            format!(
                "rate = {{ limit = {rate}, of = 'host' }}\nconcurrency = {{ max = {max}, of = 'host' }}\nbreaker = {{ probes = {max} }}"
            )
        };
        let (one, other) = (limits(9, 8), limits(7, 6));

        let odd = among(&[("a", &one), ("b", &one), ("c", &other), ("d", "")], 12);

        let of = |name: &str| -> Vec<&Odd> {
            let odd = odd.iter().filter(|(scene, _)| scene == name);
            odd.map(|(_, odd)| odd).collect()
        };
        assert_eq!(
            of("a").iter().map(|odd| &*odd.message).collect::<Vec<_>>(),
            [
                "its rate is that of http://h:80, and scenes there name other ones (c): each counts for itself, and the host sees the sum",
                "its concurrency is that of http://h:80, and scenes there name other ones (c): each counts for itself, and the host sees \
                 the sum",
                "its breaker of http://h:80 goes by another rule than that of other scenes (c): each finds out for itself that it is down",
            ]
        );
        assert_eq!(of("a")[0].key, "rate (the same in all of them)");
        assert_eq!(of("b").len(), 3);
        assert!(of("c")[0].message.contains("(a, b)"), "{odd:?}");
        assert!(of("d").is_empty());
        assert!(among(&[("a", &one), ("b", &one)], 12).is_empty());
    }

    #[test]
    fn a_part_of_a_rate_that_leaves_no_time_is_odd() {
        let rate = "rate = { limit = 1, per = '1m', burst = 12 }\ndeadline = '5m'";

        let odd = among(&[("a", rate)], 12);

        assert_eq!(
            odd[0].1.message,
            "its rate belongs to 12 shards, each of which lets one attempt start every 12m, and the deadline is 5m: where workers have few \
             shards each, tasks that queue up expire"
        );
        assert_eq!(
            odd[0].1.key,
            "rate.limit or rate.burst (a smaller one) or deadline"
        );
        assert!(among(&[("a", rate)], 5).is_empty());
        let few = "rate = { limit = 1, per = '1m' }\ndeadline = '5m'";
        assert!(among(&[("a", few)], 12).is_empty());
        // An order keeps tasks where they are: each shard has its part.
        let ordered = format!("{few}\nordering = 'key'");
        assert_eq!(
            among(&[("a", &ordered)], 12)[0].1.key,
            "rate.limit or deadline"
        );
        // That was said already.
        let slow = "rate = { limit = 1, per = '2h', burst = 12 }\ndeadline = '1h'";
        assert!(among(&[("a", slow)], 12).is_empty());
    }

    #[test]
    fn a_breaker_that_never_opens_or_outlasts_tasks_is_odd() {
        assert_eq!(
            messages("rate = { limit = 1, per = '1s' }\nbreaker = { window = '10s' }"),
            [
                "its breaker needs 20 calls within 10s to open, and its rate lets 11 start at most: it opens only if scenes that share it \
                 call, too"
            ]
        );
        assert!(messages("rate = { limit = 2 }\nbreaker = { window = '10s' }").is_empty());
        assert_eq!(
            messages("breaker = { slow_call = '10s' }"),
            [
                "to its breaker a call is slow that takes over 10s, and calls are given up after 10s: none is ever slow"
            ]
        );
        assert!(messages("breaker = { slow_call = '9s' }").is_empty());
        assert_eq!(
            messages("breaker = {}\ndeadline = '10s'"),
            [
                "its breaker is open for 10s at least, and the deadline is 10s: tasks that are due meanwhile may expire untried"
            ]
        );
        assert!(messages("breaker = {}\ndeadline = '11s'").is_empty());
    }

    #[test]
    fn a_concurrency_that_cannot_move_is_odd() {
        assert_eq!(
            messages("concurrency = { max = 5, min = 5 }"),
            ["its concurrency follows the target between 5 and 5: it does not move"]
        );
        assert!(messages("concurrency = { max = 5, min = 5, adaptive = false }").is_empty());
        assert!(messages("concurrency = { max = 5 }").is_empty());
    }

    #[test]
    fn points_in_time_that_have_passed_are_odd_and_an_ordinary_scene_is_not() {
        assert_eq!(
            messages("backoff = { at = { times = ['2020-01-01T00:00:00Z'] } }").len(),
            1
        );
        assert!(messages("").is_empty());
        assert!(
            messages("deadline = '24h'\nrate = { limit = 100, per = '1s', burst = 20 }").is_empty()
        );
    }
}
