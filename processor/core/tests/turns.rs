//! Weights: where scenes wait for each other, each has its part of the service, and none starves.

mod support;

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;

use retide_core::Position;
use retide_core::completions::Completions;
use retide_core::lane::Limits;
use retide_core::scene::{Host, Target};
use retide_core::{
    Action, Backoff, Engine, Entry, Gates, Input, Jitter, Ladder, Now, Outcome, Policy, Rate,
    Scene, Scenes, Task, Timestamp, Weight,
};

use support::TASKS;

/// Tasks of a scene of weight 1 that are started in one turn.
const QUANTUM: usize = 4;

/// Tasks that are started in one step besides those in line.
const BESIDE: usize = 1_000;

const fn at(millis: u64) -> Now {
    Now {
        wall: Timestamp::from_millis(1_000_000 + millis),
        steady: Duration::from_millis(millis),
    }
}

fn scene(name: &str, weight: u32, target: Target) -> Scene {
    Scene {
        concurrency: NonZeroU32::MAX,
        weight: Weight::try_new(weight).unwrap(),
        ..Scene::new(
            name,
            target,
            Policy {
                backoff: Backoff::classic(),
                jitter: Jitter::None,
                max_attempts: NonZeroU32::MIN,
            },
        )
    }
}

/// So many attempts a second, one after the other.
fn rate(limit: u32) -> Rate {
    Rate {
        limit: NonZeroU32::new(limit).unwrap(),
        per: Duration::from_secs(1),
        burst: NonZeroU32::MIN,
    }
}

/// A scene that shares a rate of ten attempts a second.
fn sharing(name: &str, weight: u32) -> Scene {
    Scene {
        host: Some(Host {
            name: "http://shop.example:80".into(),
            rate: true,
            concurrency: false,
        }),
        rate: Some(rate(10)),
        ..scene(name, weight, Target::Call)
    }
}

fn task(scene: &str, due: Timestamp) -> Task {
    let mut task = support::task("id", scene, due);
    task.origin.offset = 0;
    task
}

/// An engine with the backlogs of these scenes in its agenda, due half a second from the start, and in that order.
fn engine(scenes: &[(String, u32)], backlogs: &[usize], target: &Target, batch: usize) -> Engine {
    let tasks = |name: &str, _| task(name, at(500).wall);
    engine_with(scenes, backlogs, target, batch, tasks)
}

/// The same with tasks that are made of the name of their scene and of their offset.
fn engine_with(
    scenes: &[(String, u32)],
    backlogs: &[usize],
    target: &Target,
    batch: usize,
    tasks: impl Fn(&str, i64) -> Task,
) -> Engine {
    let limits = Limits {
        batch_tasks: batch,
        ..Limits::of(256 << 20)
    };
    let gates = Arc::new(Gates::default());
    let mut engine = Engine::new(Ladder::default(), limits, gates, NonZeroU32::MIN);
    let rules: Scenes = scenes
        .iter()
        .map(|(name, weight)| scene(name, *weight, target.clone()))
        .collect();
    let mut actions = Vec::new();
    engine.step(at(0), Input::Rules(rules), &mut actions);
    let assign = Input::Assign {
        lane: TASKS,
        start: 0,
        known: Completions::default(),
    };
    engine.step(at(0), assign, &mut actions);
    let mut offset = 0;
    for ((name, _), backlog) in scenes.iter().zip(backlogs) {
        for _ in 0..*backlog {
            let record = Input::Record {
                position: Position {
                    lane: TASKS,
                    run: 0,
                    offset,
                },
                appended: at(0).wall,
                task: Box::new(tasks(name, offset)),
            };
            engine.step(at(0), record, &mut actions);
            offset += 1;
        }
    }
    assert_eq!(actions, []);
    engine
}

/// The scenes of the attempts that these actions start, in order.
fn started(actions: &[Action]) -> Vec<String> {
    let scene = |action: &Action| match action {
        Action::Dispatch { task, .. } => Some(task.scene.to_string()),
        Action::Settle(settlement) => match &settlement.entries[0] {
            Entry::Deliver { task, .. } => Some(task.scene.to_string()),
            other => panic!("a delivery expected, not {other:?}"),
        },
        other => panic!("an attempt expected, not {other:?}"),
    };
    actions.iter().filter_map(scene).collect()
}

/// Runs until nothing is left: what was started, in order.
fn run(engine: &mut Engine, most: usize) -> Vec<String> {
    let mut all = Vec::new();
    let mut millis = 500;
    while all.len() < most {
        let mut actions = Vec::new();
        engine.step(at(millis), Input::Tick, &mut actions);
        assert_ne!(actions, [], "{} of {most} were started", all.len());
        all.extend(started(&actions));
        engine.commits();
        millis += 1;
    }
    all
}

#[test]
fn a_flood_that_comes_due_does_not_hold_up_what_is_due_after_it() {
    let scenes = [("flood".to_owned(), 1), ("calm".to_owned(), 1)];
    for target in [
        Target::Call,
        Target::Produce {
            topic: "orders".into(),
        },
    ] {
        let mut engine = engine(&scenes, &[20_000, 1], &target, 20_000);
        let mut actions = Vec::new();

        engine.step(at(500), Input::Tick, &mut actions);

        let started = started(&actions);
        let calm = started.iter().position(|scene| scene == "calm");
        assert!(matches!(calm, Some(0 | 1)), "{calm:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn each_scene_has_its_part_of_the_service_and_none_starves(
        weights in prop::collection::vec(1_u32..=100, 2..5),
        backlogs in prop::collection::vec(1_usize..3_900, 5),
        batch in 20_usize..3_000,
        by_call in any::<bool>(),
    ) {
        let scenes: Vec<(String, u32)> =
            weights.iter().enumerate().map(|(index, weight)| (format!("s{index}"), *weight)).collect();
        let target = if by_call { Target::Call } else { Target::Produce { topic: "orders".into() } };
        let total = backlogs[..scenes.len()].iter().sum();
        let mut engine = engine(&scenes, &backlogs, &target, batch);

        let order = run(&mut engine, total);

        // All of them fit in the lines that one step makes. The first step finds no lines and starts what is due scene by scene, whatever their weights; from then on, turns count.
        let order = &order[order.len().min(2 * BESIDE)..];
        let mut left: BTreeMap<&str, usize> = BTreeMap::new();
        for name in order {
            *left.entry(name).or_default() += 1;
        }
        let all: Vec<&str> = left.keys().copied().collect();
        let mut had: BTreeMap<&str, usize> = BTreeMap::new();
        for name in order {
            *had.entry(name).or_default() += 1;
            // As long as all of them have something in line, none is ahead of another one by more than a turn of each.
            if all.iter().any(|name| had.get(name) == left.get(name)) {
                break;
            }
            for (a, weight_a) in scenes.iter().filter(|(name, _)| left.contains_key(name.as_str())) {
                for (b, weight_b) in scenes.iter().filter(|(name, _)| left.contains_key(name.as_str())) {
                    let turns = |name: &str, weight: u32| {
                        let had = had.get(name).copied().unwrap_or_default();
                        had as f64 / (QUANTUM as f64 * f64::from(weight))
                    };
                    let ahead = turns(a, *weight_a) - turns(b, *weight_b);
                    prop_assert!(ahead <= 2.0, "{a} is {ahead} turns ahead of {b}: {had:?} of {scenes:?}");
                }
            }
        }
    }
}

#[test]
fn a_rate_that_scenes_share_is_theirs_by_weight() {
    let rules: Scenes = [("heavy", 3), ("light", 1)]
        .map(|(name, weight)| sharing(name, weight))
        .into_iter()
        .collect();
    let scenes = [("heavy".to_owned(), 3), ("light".to_owned(), 1)];
    let mut engine = engine(&scenes, &[200, 200], &Target::Call, 100);
    engine.step(at(1), Input::Rules(rules), &mut Vec::new());

    let mut order = Vec::new();
    let mut millis = 500;
    while order.len() < 160 {
        let mut actions = Vec::new();
        engine.step(at(millis), Input::Tick, &mut actions);
        order.extend(started(&actions));
        millis += 10;
    }
    let heavy = order.iter().filter(|name| *name == "heavy").count();

    assert!((116..=124).contains(&heavy), "{heavy} of {order:?}");
}

#[test]
fn tasks_that_expire_take_nothing_of_what_their_scene_may_start() {
    let rules: Scenes = ["dying", "well"]
        .map(|name| sharing(name, 1))
        .into_iter()
        .collect();
    let scenes = ["dying", "well"].map(|name| (name.to_owned(), 1));
    // Of those of one scene, three of four expire as soon as they are due.
    let tasks = |name: &str, offset: i64| Task {
        deadline: (name == "dying" && offset % 4 != 0).then_some(at(500).wall),
        ..task(name, at(500).wall)
    };
    let mut engine = engine_with(&scenes, &[400, 200], &Target::Call, 1_000, tasks);
    engine.step(at(1), Input::Rules(rules), &mut Vec::new());

    let mut order = Vec::new();
    let mut millis = 501;
    while order.len() < 100 {
        let mut actions = Vec::new();
        engine.step(at(millis), Input::Tick, &mut actions);
        actions.retain(|action| matches!(action, Action::Dispatch { .. }));
        order.extend(started(&actions));
        engine.commits();
        millis += 10;
    }
    let dying = order.iter().filter(|name| *name == "dying").count();

    assert!((46..=54).contains(&dying), "{dying} of {order:?}");
}

#[test]
fn a_rate_that_scenes_share_is_theirs_by_weight_whoever_else_is_started() {
    // With a rate of its own, and a turn between any two attempts of the others.
    let other = Scene {
        rate: Some(rate(20)),
        ..scene("other", 1, Target::Call)
    };
    let scenes = [("heavy", 3), ("light", 1), ("other", 1)];
    let scenes = scenes.map(|(name, weight)| (name.to_owned(), weight));
    let mut engine = engine(&scenes, &[200, 200, 400], &Target::Call, 100);
    let rules = [sharing("heavy", 3), sharing("light", 1), other];
    let rules = Input::Rules(rules.into_iter().collect());
    engine.step(at(1), rules, &mut Vec::new());

    let mut order = Vec::new();
    for millis in (500..16_500).step_by(10) {
        let mut actions = Vec::new();
        engine.step(at(millis), Input::Tick, &mut actions);
        order.extend(started(&actions));
    }
    let of = |name: &str| order.iter().filter(|started| *started == name).count();

    assert!((116..=124).contains(&of("heavy")), "{}", of("heavy"));
    assert!((36..=44).contains(&of("light")), "{}", of("light"));
}

#[test]
fn calls_that_scenes_of_a_host_share_are_theirs_by_weight() {
    let shared = |(name, weight)| Scene {
        host: Some(Host {
            name: "http://shop.example:80".into(),
            rate: false,
            concurrency: true,
        }),
        concurrency: NonZeroU32::MIN,
        ..scene(name, weight, Target::Call)
    };
    let weights = [("heavy", 3), ("light", 1)];
    let scenes = weights.map(|(name, weight)| (name.to_owned(), weight));
    let mut engine = engine(&scenes, &[200, 200], &Target::Call, 100);
    let rules = Input::Rules(weights.map(shared).into_iter().collect());
    engine.step(at(1), rules, &mut Vec::new());

    let mut actions = Vec::new();
    engine.step(at(500), Input::Tick, &mut actions);
    let mut order = started(&actions);
    // Calls are so fast that no time passes.
    for _ in 1..160 {
        let [Action::Dispatch { ticket, .. }] = actions[..] else {
            panic!("one call at a time expected, not {actions:?}");
        };
        let outcome = Outcome::Success;
        actions.clear();
        engine.step(at(500), Input::Attempted { ticket, outcome }, &mut actions);
        engine.commits();
        actions.retain(|action| matches!(action, Action::Dispatch { .. }));
        order.extend(started(&actions));
    }
    let heavy = order.iter().filter(|name| *name == "heavy").count();

    assert!((116..=124).contains(&heavy), "{heavy} of {order:?}");
}

#[test]
fn a_weight_of_three_gets_three_times_as_much_where_a_batch_is_too_small_for_all() {
    let scenes = [("heavy".to_owned(), 3), ("light".to_owned(), 1)];
    let target = Target::Produce {
        topic: "orders".into(),
    };
    let mut engine = engine(&scenes, &[4_000, 4_000], &target, 10);

    let order = run(&mut engine, 2_000);
    let heavy = order.iter().filter(|name| *name == "heavy").count();

    assert!((1_490..=1_530).contains(&heavy), "{heavy}");
}
