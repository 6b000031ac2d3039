//! What the text says after something has happened.

use std::sync::Arc;
use std::time::Duration;

use retide_connectors::left_out::{self, LeftOut};
use retide_core::breaker;
use retide_core::entry::Event;
use retide_core::task::{Failure, Header};
use retide_core::wait::Waited;
use retide_core::{
    Backoff, Ended, Entry, Jitter, Kind, LaneId, Omitted, Origin, Outcome, Overdue, Policy, Record,
    Scene, Settlement, Source, Task, Terminal, Timestamp, Transition, Wait, scene,
};

use super::scenes::{OUTCOMES, SceneSet, place};
use super::share::{Load, Share};
use super::standing::Said;
use super::tally::Tally;
use super::*;
use crate::clock;
use crate::event::{BatchCommitted, BatchDropped, BreakerSwitched, RecordsRefused, ShardsLost};
use crate::trouble::{self, Effect, Trouble};
use crate::worker::ledger::Settled;

fn rules(names: &[&str]) -> Scenes {
    let scene = |name: &&str| Scene {
        concurrency: 1.try_into().expect("not zero"),
        ..Scene::new(
            Arc::from(*name),
            scene::Target::Call,
            Policy {
                backoff: Backoff::Fixed {
                    delay: Duration::from_secs(1),
                },
                jitter: Jitter::None,
                max_attempts: 3.try_into().expect("not zero"),
            },
        )
    };
    names.iter().map(scene).collect()
}

fn metrics() -> Metrics {
    Metrics::new(&Ladder::try_new(&["now", "5s"]).expect("a ladder"))
}

fn origin() -> Origin {
    Origin {
        topic: "retry.tasks".into(),
        partition: 0,
        offset: 7,
    }
}

fn task(scene: &str, kind: Kind) -> Arc<Task> {
    Arc::new(Task {
        id: "the-id".into(),
        scene: scene.into(),
        kind,
        attempt: 1,
        due: Timestamp::from_millis(1_000),
        deferral: None,
        first_failed_at: Timestamp::EPOCH,
        deadline: None,
        origin: origin(),
        failure: None,
        hops: 0,
        throttled: 0,
        exhausted: None,
        held_since: None,
        pending_since: None,
        stopped: None,
        commanded: None,
        replay: None,
        record: Record::default(),
    })
}

fn event(scene: &str, kind: Kind, transition: Transition) -> Entry {
    Entry::Event(Event {
        id: "the-id".into(),
        scene: scene.into(),
        kind,
        at: Timestamp::EPOCH,
        transition,
        wait: None,
        left_out: None,
        command: None,
    })
}

fn ended(scene: &str, kind: Kind, terminal: Terminal) -> Entry {
    let transition = Transition::Ended {
        terminal,
        attempts: 1,
        reason: None,
        fingerprint: None,
    };
    event(scene, kind, transition)
}

fn dead_letter(scene: &str, reason: Reason) -> Entry {
    let task = task(scene, Kind::Work);
    let ended = Arc::new(Ended {
        id: Arc::clone(&task.id),
        scene: Arc::clone(&task.scene),
        kind: task.kind,
        terminal: Terminal::Dead,
        reason: Some(reason),
        attempts: 1,
        origin: origin(),
        first_failed_at: Timestamp::EPOCH,
        at: Timestamp::EPOCH,
        failure: None,
        key: None,
        omitted: Omitted::Nothing,
    });
    Entry::DeadLetter { task, ended }
}

/// One batch of these entries, all of one offset.
fn commit(metrics: &Metrics, set: &Arc<SceneSet>, entries: Vec<Entry>) -> BatchCommitted {
    let records = entries.len();
    let settlement = Settlement {
        lane: LaneId {
            shard: 0,
            source: Source::Tasks,
        },
        offset: 7,
        home: 0,
        entries,
        otherwise: Vec::new(),
        applied: Vec::new(),
    };
    let mut tally = Tally::new(metrics, set);
    tally.count(
        &Settled::of(settlement),
        records,
        Timestamp::from_millis(1_004),
    );
    BatchCommitted {
        took: Duration::from_millis(120),
        tally,
    }
}

/// Checks that the text has each of these lines.
fn says(metrics: &Metrics, lines: &[&str]) {
    let text = metrics.encode();
    for line in lines {
        let found = text.lines().any(|found| found == *line);
        assert!(found, "no {line} in\n{text}");
    }
}

#[test]
fn what_a_batch_holds_is_counted_once_it_is_durable() {
    let metrics = metrics();
    let set = metrics.put_in_force(&rules(&["pay"]));
    let due = Timestamp::EPOCH;
    let entries = vec![
        ended("pay", Kind::Work, Terminal::Dead),
        dead_letter("pay", Reason::AttemptsExhausted),
        ended("pay", Kind::Callback, Terminal::Delivered),
        Entry::Park {
            tier: 1,
            to: None,
            task: task("pay", Kind::Work),
        },
        event("pay", Kind::Work, Transition::Deferred { due, until: due }),
        Entry::Deliver {
            topic: "orders".into(),
            task: task("pay", Kind::Work),
            deadline: None,
            wait: Wait {
                read: 1_000,
                ..Wait::default()
            },
        },
    ];

    let batch = commit(&metrics, &set, entries);
    says(
        &metrics,
        &[r#"retide_tasks_ended_total{scene="pay",outcome="dead"} 0"#],
    );
    batch.emit(&metrics);

    says(
        &metrics,
        &[
            r#"retide_tasks_ended_total{scene="pay",outcome="dead"} 1"#,
            r#"retide_tasks_ended_total{scene="pay",outcome="delivered"} 0"#,
            r#"retide_callbacks_ended_total{scene="pay",outcome="delivered"} 1"#,
            r#"retide_dead_letters_total{reason="attempts-exhausted"} 1"#,
            r#"retide_dead_letters_total{reason="rejected"} 0"#,
            r#"retide_parked_total{tier="5s"} 1"#,
            r#"retide_parked_total{tier="now"} 0"#,
            r#"retide_deferred_total{scene="pay"} 1"#,
            r#"retide_attempts_total{scene="pay",outcome="success"} 1"#,
            r#"retide_lateness_seconds_bucket{le="0.005",scene="pay"} 1"#,
            r#"retide_lateness_seconds_bucket{le="0.003",scene="pay"} 0"#,
            r#"retide_lateness_by_cause_seconds_sum{cause="read"} 0.001"#,
            r#"retide_lateness_by_cause_seconds_sum{cause="rate"} 0.0"#,
            r#"retide_lateness_by_cause_seconds_sum{cause="start"} 0.003"#,
            "retide_ledger_records_total 6",
            "retide_ledger_commit_seconds_count 1",
            r#"retide_ledger_batches_total{result="committed"} 1"#,
        ],
    );
}

#[test]
fn events_are_counted_and_attempts_with_them() {
    let metrics = metrics();
    let set = metrics.put_in_force(&rules(&["pay"]));

    BatchDropped { lanes: 1 }.emit(&metrics);
    RecordsRefused { count: 3 }.emit(&metrics);
    ShardsLost {
        worker: "worker-0",
        shards: &[1, 2],
    }
    .emit(&metrics);
    let timeout = Outcome::Timeout(Failure::new("timeout", "too slow"));
    set.of("pay").answered(&timeout, Duration::from_secs(2));
    let wait = Wait {
        waited: Waited {
            rate: 2 * 3_600 * 1_000_000,
            ..Waited::default()
        },
        ..Wait::default()
    };
    set.of("pay").started(wait, Duration::from_secs(1));

    says(
        &metrics,
        &[
            r#"retide_ledger_batches_total{result="dropped"} 1"#,
            "retide_refused_records_total 3",
            r#"retide_rebalances_total{kind="lost"} 1"#,
            r#"retide_attempts_total{scene="pay",outcome="timeout"} 1"#,
            r#"retide_attempt_seconds_bucket{le="2.5",scene="pay"} 1"#,
            r#"retide_lateness_seconds_bucket{le="3600.0",scene="pay"} 0"#,
            r#"retide_lateness_seconds_bucket{le="+Inf",scene="pay"} 1"#,
            r#"retide_lateness_seconds_sum{scene="pay"} 7201.0"#,
            r#"retide_lateness_by_cause_seconds_sum{cause="rate"} 7200.0"#,
            r#"retide_lateness_by_cause_seconds_bucket{le="1.0",cause="start"} 1"#,
            r#"retide_lateness_by_cause_seconds_count{cause="agenda"} 1"#,
            r#"retide_lateness_by_cause_seconds_count{cause="order"} 1"#,
        ],
    );
}

#[test]
fn series_begin_when_there_is_something_to_say_and_those_of_most_scenes_are_one() {
    let ladder = Ladder::try_new(&["now", "5s"]).expect("a ladder");
    let metrics = Metrics::limited(&ladder, 3);
    let names: Vec<String> = (0..500).map(|number| format!("scene-{number}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let set = metrics.put_in_force(&rules(&names));
    let lines = |metrics: &Metrics| metrics.encode().lines().count();
    let before = lines(&metrics);
    for name in &names {
        metrics.limit_is(&Of::Scene((*name).into()), 7);
    }
    assert!(!metrics.encode().contains("scene-"), "{}", metrics.encode());
    assert_eq!(lines(&metrics), before);

    for name in &names {
        set.of(name).answered(&Outcome::Success, Duration::ZERO);
        set.of(name).started(Wait::default(), Duration::ZERO);
        commit(
            &metrics,
            &set,
            vec![ended(name, Kind::Callback, Terminal::Dead)],
        )
        .emit(&metrics);
        metrics.limit_is(&Of::Scene((*name).into()), 7);
    }

    says(
        &metrics,
        &[
            r#"retide_attempts_total{scene="scene-2",outcome="success"} 1"#,
            r#"retide_attempts_total{scene="other",outcome="success"} 497"#,
            r#"retide_callbacks_ended_total{scene="other",outcome="dead"} 497"#,
            r#"retide_lateness_seconds_count{scene="other"} 497"#,
            r#"retide_concurrency_limit{scene="scene-0"} 7"#,
            r#"retide_overdue_tasks{scene="other"} 0"#,
        ],
    );
    assert!(
        !metrics.encode().contains("scene-3"),
        "{}",
        metrics.encode()
    );
    // Three scenes, and the one that stands for the others.
    assert!(lines(&metrics) < before + 4 * 70, "{}", lines(&metrics));

    // Who goes makes room.
    drop(set);
    let set = metrics.put_in_force(&rules(&["late"]));
    set.of("late").answered(&Outcome::Success, Duration::ZERO);
    says(
        &metrics,
        &[r#"retide_attempts_total{scene="late",outcome="success"} 1"#],
    );
}

#[test]
fn what_is_late_is_the_sum_of_the_workers_and_grows_while_they_stand_still() {
    let metrics = Arc::new(metrics());
    let set = metrics.put_in_force(&rules(&["pay"]));
    let label = Arc::clone(set.of("pay").label());
    says(&metrics, &[r#"retide_overdue_tasks{scene="pay"} 0"#]);
    let now = clock::since_epoch();
    let ago = |seconds| (Timestamp::EPOCH + now).before(Duration::from_secs(seconds));
    let say = |share: &Share, tasks, seconds| {
        let since = ago(seconds);
        share.say(Said {
            overdue: [(Arc::clone(&label), Overdue { tasks, since })].into(),
            read: [(tasks as i32, 10)].into(),
        });
    };
    let one = Share::new(Arc::clone(&metrics));
    let other = Share::new(Arc::clone(&metrics));
    // Of shard 5 all was read, of shard 2 all but nine, and another one is nobody's here.
    metrics.ends_are([(5, 10), (2, 19), (3, 70)].into_iter());
    say(&one, 5, 60);
    say(&other, 2, 1_560);

    let value = |name: &str| -> f64 {
        let text = metrics.encode();
        let mut lines = text.lines();
        let line = lines.find_map(|line| line.strip_prefix(name)).expect(name);
        line.trim().parse().expect("a number")
    };
    says(
        &metrics,
        &[
            r#"retide_overdue_tasks{scene="pay"} 7"#,
            "retide_unread_records 9",
        ],
    );
    let oldest = value(r#"retide_oldest_overdue_seconds{scene="pay"}"#);
    assert!((1_560.0..1_700.0).contains(&oldest), "{oldest}");
    let unread = value("retide_oldest_unread_seconds");
    assert!(value("retide_oldest_unread_seconds") > unread && unread > 0.0);
    assert!(value(r#"retide_oldest_overdue_seconds{scene="pay"}"#) > oldest);
    drop(other);
    assert!(value(r#"retide_oldest_overdue_seconds{scene="pay"}"#) < 1_000.0);
    drop(one);
    says(&metrics, &[r#"retide_overdue_tasks{scene="pay"} 0"#]);
}

#[test]
fn a_task_read_from_the_retry_topic_counts_once_for_its_scene() {
    let metrics = metrics();
    let set = metrics.put_in_force(&rules(&["pay"]));
    let end = || ended("pay", Kind::Work, Terminal::Delivered);
    let mut tally = Tally::new(&metrics, &set);
    for source in [Source::Tasks, Source::Tier(1)] {
        let settlement = Settlement {
            lane: LaneId { shard: 0, source },
            offset: 1,
            home: 0,
            entries: vec![end(), end()],
            otherwise: Vec::new(),
            applied: Vec::new(),
        };
        tally.count(&Settled::of(settlement), 2, Timestamp::EPOCH);
    }

    tally.add_to(&metrics);

    says(&metrics, &[r#"retide_tasks_read_total{scene="pay"} 1"#]);
}

#[test]
fn only_scenes_in_force_are_named_and_no_task() {
    let metrics = metrics();
    let set = metrics.put_in_force(&rules(&["pay"]));

    for number in 0..1_000 {
        let scene = format!("made-up-{number}");
        let entries = vec![
            ended(&scene, Kind::Work, Terminal::Dead),
            dead_letter(&scene, Reason::UnknownScene),
        ];
        commit(&metrics, &set, entries).emit(&metrics);
    }

    let unknown = r#"retide_tasks_ended_total{scene="unknown",outcome="dead"} 1000"#;
    says(&metrics, &[unknown]);
    let text = metrics.encode();
    assert!(!text.contains("made-up"));
    assert!(!text.contains("the-id"));
}

#[test]
fn a_task_without_rules_of_its_own_counts_for_those_it_follows() {
    let metrics = metrics();
    let set = metrics.put_in_force(&rules(&["pay", "default"]));

    let entries = vec![ended("made-up", Kind::Work, Terminal::Delivered)];
    commit(&metrics, &set, entries).emit(&metrics);

    let line = r#"retide_tasks_ended_total{scene="default",outcome="delivered"} 1"#;
    says(&metrics, &[line]);
}

#[test]
fn the_series_of_a_scene_go_when_it_is_in_force_nowhere() {
    let metrics = metrics();
    let one = metrics.put_in_force(&rules(&["pay"]));
    let other = metrics.put_in_force(&rules(&["pay"]));
    one.of("pay").answered(&Outcome::Success, Duration::ZERO);
    let line = r#"retide_attempts_total{scene="pay",outcome="success"} 2"#;

    drop(one);
    other.of("pay").answered(&Outcome::Success, Duration::ZERO);
    let _set = metrics.put_in_force(&rules(&["ship"]));
    says(&metrics, &[line]);

    drop(other);
    assert!(!metrics.encode().contains("\"pay"));
}

#[test]
fn a_scenes_name_cannot_break_out_of_its_label() {
    let metrics = metrics();

    let set = metrics.put_in_force(&rules(&["a\"} 1\n\\"]));
    let _label = set.of("a\"} 1\n\\").label();

    let line = r#"retide_deferred_total{scene="a\"} 1\n\\"} 0"#;
    says(&metrics, &[line]);
}

#[test]
fn gauges_are_the_sum_of_the_workers_that_are_left() {
    let metrics = Arc::new(metrics());
    let load = Load {
        open: 5,
        held: 100,
        calls: 2,
        shards: 3,
        keys: 5,
        steps: 1,
        campaigns: 1,
        on_hold: 1,
        ids: 64,
        known: 7,
    };
    let mut one = Share::new(Arc::clone(&metrics));
    let mut other = Share::new(Arc::clone(&metrics));
    one.report(load);
    other.report(load);
    other.report(Load { open: 1, ..load });

    says(
        &metrics,
        &["retide_open_records 6", "retide_held_bytes 200"],
    );
    drop(one);
    says(
        &metrics,
        &["retide_open_records 1", "retide_owned_shards 3"],
    );
}

#[test]
fn places_and_words_are_in_the_same_order() {
    let failure = || Failure::new("x", "y");
    let outcomes = [
        Outcome::Success,
        Outcome::Retryable(failure()),
        Outcome::Permanent(failure()),
        Outcome::Throttled {
            after: Duration::ZERO,
            failure: failure(),
        },
        Outcome::Timeout(failure()),
    ];

    for outcome in &outcomes {
        assert_eq!(OUTCOMES[place(outcome)], outcome.word());
    }
    for (index, reason) in Reason::ALL.into_iter().enumerate() {
        assert_eq!(reason as usize, index);
    }
    for (index, terminal) in Terminal::ALL.into_iter().enumerate() {
        assert_eq!(terminal as usize, index);
    }
}

#[test]
fn how_many_calls_there_may_be_is_said_of_scenes_in_force_and_of_hosts() {
    let metrics = metrics();
    let mut common = Scene::clone(rules(&["ship"]).get("ship").expect("a scene"));
    common.host = Some(scene::Host {
        name: "http://h:80".into(),
        rate: false,
        concurrency: true,
    });
    let mut topic = Scene::clone(rules(&["copy"]).get("copy").expect("a scene"));
    topic.target = scene::Target::Produce { topic: "t".into() };
    let pay = rules(&["pay"]);
    let all = pay.iter().map(|scene| Scene::clone(scene));
    let set = metrics.put_in_force(&all.chain([common, topic]).collect());
    let _label = set.of("pay").label();

    metrics.limit_is(&Of::Scene("pay".into()), 7);
    metrics.limit_is(&Of::Host("http://h:80".into()), 9);
    metrics.limit_is(&Of::Scene("copy".into()), 8);
    let text = metrics.encode();
    drop(metrics.put_in_force(&rules(&["ship"])));
    metrics.limit_is(&Of::Scene("pay".into()), 7);
    let later = metrics.encode();

    let said = |text: &str| -> Vec<String> {
        let lines = text.lines();
        let mut lines: Vec<_> = lines
            .filter_map(|line| line.strip_prefix("retide_concurrency_limit"))
            .map(str::to_owned)
            .collect();
        lines.sort();
        lines
    };
    let expected = ["{scene=\"pay\"} 7", "{target=\"http://h:80\"} 9"];
    assert_eq!(said(&text), expected);
    assert_eq!(said(&later), Vec::<String>::new());
}

#[test]
fn what_makes_attempts_late_is_counted_by_the_words_of_a_wait() {
    let words = Wait::default().by_cause().map(|(cause, _)| cause);
    let words: Vec<&str> = words.into_iter().chain(["start"]).collect();

    assert_eq!(words, scenes::CAUSES);
}

#[test]
fn a_wall_is_counted_from_the_first_one_on_as_long_as_a_scene_has_it() {
    let metrics = metrics();
    let subject = breaker::Subject::wall("http://h:80", "pay");
    let mut scene = Scene::clone(rules(&["pay"]).get("pay").expect("a scene"));
    scene.walls.work = Some(breaker::Key {
        target: subject.clone(),
        rule: retide_core::wall::RULE,
    });
    drop(metrics.put_in_force(&[scene].into_iter().collect()));

    metrics.breaker_is(subject.text(), State::Closed);
    let before = metrics.encode();
    metrics.breaker_switched(subject.text(), State::Open);
    metrics.breaker_is(subject.text(), State::Open);
    let text = metrics.encode();
    drop(metrics.put_in_force(&rules(&["pay"])));
    let gone = metrics.encode();

    // The server has its cooldowns.
    assert!(!before.contains("http://h:80 ("), "{before}");
    for line in [
        "retide_breaker_state{target=\"http://h:80 (scene pay)\"} 2",
        "retide_breaker_transitions_total{target=\"http://h:80 (scene pay)\",to=\"open\"} 1",
    ] {
        assert!(text.contains(line), "{line}: {text}");
    }
    assert!(!gone.contains("http://h:80"), "{gone}");
}

/// A scene whose target has a breaker.
fn guarded(target: &str) -> Scenes {
    let mut scene = Scene::clone(rules(&["pay"]).get("pay").expect("a scene"));
    scene.breaker = Some(breaker::Key {
        target: target.into(),
        rule: breaker::Rule {
            failure_rate: breaker::Fraction::WHOLE,
            slow_call: None,
            slow_rate: breaker::Fraction::WHOLE,
            window: Duration::from_secs(1),
            min_calls: 1,
            open: Duration::from_secs(1),
            probes: 1,
            slow_start: Duration::ZERO,
        },
    });
    [scene].into_iter().collect()
}

#[test]
fn a_breaker_is_counted_for_its_target_as_long_as_a_scene_has_it() {
    let metrics = metrics();
    let target: Arc<str> = "http://h:80".into();
    drop(metrics.put_in_force(&guarded(&target)));

    let switch = breaker::StateChange {
        from: State::Closed,
        to: State::Open,
        why: breaker::TripReason::FailureRate,
        calls: breaker::Count::default(),
        since: Duration::ZERO,
        until: None,
        by_people: false,
    };
    let target_name = &*target;
    BreakerSwitched {
        target: target_name,
        switch,
    }
    .emit(&metrics);
    metrics.breaker_is(&target, State::Open);
    let text = metrics.encode();
    drop(metrics.put_in_force(&rules(&["pay"])));
    metrics.breaker_is(&target, State::Open);
    let gone = metrics.encode();

    for line in [
        "retide_breaker_state{target=\"http://h:80\"} 2",
        "retide_breaker_transitions_total{target=\"http://h:80\",to=\"open\"} 1",
        "retide_breaker_transitions_total{target=\"http://h:80\",to=\"closed\"} 0",
    ] {
        assert!(text.contains(line), "{line}: {text}");
    }
    assert!(!gone.contains("http://h:80"), "{gone}");
}

/// A process of which each family has a series.
fn busy() -> Metrics {
    let metrics = metrics();
    metrics.configured(&[
        ("group", "retide"),
        ("prefix", "retry"),
        ("guarantee", "exactly_once"),
        ("workers", "1"),
    ]);
    let target = "http://h:80";
    let mut common = Scene::clone(rules(&["ship"]).get("ship").expect("a scene"));
    common.host = Some(scene::Host {
        name: target.into(),
        rate: false,
        concurrency: true,
    });
    let guarded = guarded(target);
    let guarded = guarded.iter().map(|scene| Scene::clone(scene));
    common.walls.work = Some(breaker::Key {
        target: breaker::Subject::wall(target, "ship"),
        rule: retide_core::wall::RULE,
    });
    let set = metrics.put_in_force(&guarded.chain([common]).collect());
    metrics.sources.copied("shop", None);
    set.of("pay").answered(&Outcome::Success, Duration::ZERO);
    set.of("pay").started(Wait::default(), Duration::ZERO);
    let mut left_out = LeftOut::default();
    let header = Header {
        name: "cookie".into(),
        value: None,
    };
    left_out.add(&header, left_out::Reason::Null);
    set.of("pay").left_out(&left_out);
    set.of("pay")
        .limit_passed(&retide_core::pending::unanswered());
    let callback = ended("pay", Kind::Callback, Terminal::Delivered);
    let duplicate = Transition::Duplicate {
        fate: "dropped",
        told: Failure::new("duplicate", "one too many"),
    };
    let duplicate = event("pay", Kind::Work, duplicate);
    commit(&metrics, &set, vec![callback, duplicate]).emit(&metrics);
    metrics.limit_is(&Of::Scene("pay".into()), 7);
    metrics.limit_is(&Of::Host(target.into()), 7);
    metrics.breaker_is(&target.into(), State::Open);
    metrics.breaker_switched(target, State::Open);
    metrics.troubles().begin(Trouble {
        kind: trouble::Kind::BrokerAway,
        subject: "a broker".to_owned(),
        says: "nobody answers".to_owned(),
        fix: None,
        effect: Effect::Limits,
    });
    metrics
}

/// The rows of the table of metrics, as `/metrics` says them: name, type, labels and what it says.
fn rows(text: &str) -> Vec<String> {
    let mut rows = Vec::new();
    let mut help = "";
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            help = rest.split_once(' ').expect("a help").1;
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').expect("a type");
            let samples = text.lines().filter(|line| {
                let rest = line.strip_prefix(name);
                rest.is_some_and(|rest| rest.starts_with(['{', ' ', '_']))
            });
            let labels = samples.filter_map(|sample| sample.split_once('{'));
            let mut labels: Vec<String> = labels
                .flat_map(|(_, labels)| labels.split("=\""))
                .filter_map(|part| part.rsplit(['"', ',', '{']).next())
                .filter(|label| !label.is_empty() && *label != "le" && !label.contains('}'))
                .map(|label| format!("`{label}`"))
                .collect();
            labels.sort();
            labels.dedup();
            let labels = labels.join(", ");
            let help = help.trim_end_matches('.');
            rows.push(format!("| `{name}` | {kind} | {labels} | {help} |"));
        }
    }
    rows.sort();
    rows
}

#[test]
fn the_docs_list_every_metric_and_no_other() {
    let page = include_str!("../../../docs/monitoring.md");
    let metrics = busy();
    let families = format!("{:?}", metrics.registry)
        .matches("Descriptor {")
        .count();

    let rows = rows(&metrics.encode_as(Exposition::Text));

    assert_eq!(
        rows.len(),
        families,
        "a family has no series here: {rows:#?}"
    );
    let (_, table) = page
        .split_once("| metric | type | labels |")
        .expect("a table");
    let listed: Vec<&str> = table
        .lines()
        .skip(2)
        .take_while(|line| line.starts_with('|'))
        .collect();
    let rows = rows.join("\n");
    assert!(
        listed.join("\n") == rows,
        "docs/monitoring.md is to list\n{rows}"
    );
}
