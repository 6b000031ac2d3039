//! What an admin changes while retide runs: it is told, with what mends it, and it is over when it is mended.

use std::collections::BTreeMap;
use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use rdkafka::admin::{AdminClient, AdminOptions, NewPartitions};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::producer::Producer;
use rdkafka::topic_partition_list::TopicPartitionList;
use tokio::runtime::Runtime;

use crate::commands::get;
use crate::rig::{FLAKY, Retide, Rig};
use crate::support::{config, free_address};

/// How long a trouble may take to be told.
const TOLD: Duration = Duration::from_secs(30);

/// A rig whose processes answer on an address of their own.
fn rig(scenes: &str) -> (Rig, String) {
    let rig = Rig::new(Duration::ZERO, scenes);
    let address = free_address();
    rig.configure(&format!(
        "{}[admin]\nlisten = '{address}'\n{scenes}",
        rig.basics()
    ));
    (rig, address)
}

/// An admin client.
fn admin(rig: &Rig) -> AdminClient<DefaultClientContext> {
    config(&rig.bootstrap, "admin").create().unwrap()
}

/// How many offsets of a topic the group is done with.
fn done(rig: &Rig, topic: &str) -> i64 {
    let member: BaseConsumer = config(&rig.bootstrap, &rig.prefix).create().unwrap();
    let mut partitions = TopicPartitionList::new();
    partitions.add_partition_range(&rig.topic(topic), 0, 3);
    let committed = member.committed_offsets(partitions, TOLD).unwrap();
    let committed = committed.elements();
    let offsets = committed.iter().map(|of| of.offset().to_raw());
    offsets.map(|offset| offset.unwrap_or(0).max(0)).sum()
}

/// Waits until `/readyz` says what `is_so` wants.
fn until(what: &str, retide: &Retide, address: &str, is_so: impl Fn(&str) -> bool) -> String {
    let start = Instant::now();
    loop {
        let (status, body) = get(address, "/readyz").unwrap_or_default();
        // It may be told before the process is ready.
        if status == 200 && is_so(&body) {
            return body;
        }
        assert!(
            start.elapsed() < TOLD,
            "{what}: {status} {body}\n{}",
            retide.log()
        );
        thread::park_timeout(Duration::from_millis(50));
    }
}

/// Tasks that wait in `1h` until they are told to run.
const LATER: [(&str, &str); 2] = [("retry-scene", "flaky"), ("retry-delay-ms", "3700000")];

#[test]
fn tiers_taken_out_are_drained_and_members_that_disagree_are_told_and_refused() {
    let (rig, address) = rig(FLAKY);
    let whole = fs::read_to_string(rig.file("retide.toml")).unwrap();
    let less = whole.replace(", \"1h\"", "");
    assert_ne!(whole, less);
    let init = rig.retide(&["init"]);
    assert!(init.status.success(), "{init:?}");
    let first = rig.run();
    let producer = rig.producer();
    for number in 0..400 {
        let id = format!("later-{number}");
        rig.send(
            &producer,
            &[&LATER[..], &[("retry-id", &id)]].concat(),
            b"0",
        );
    }
    producer.flush(TOLD).unwrap();
    let start = Instant::now();
    while rig.read("delay.1h").len() < 400 {
        assert!(start.elapsed() < TOLD, "{}", first.log());
    }
    first.terminate();
    assert_eq!(first.wait(), Some(0));

    rig.configure(&less);
    let second = rig.run();
    let other = whole.replace(&address, "127.0.0.1:0");
    fs::write(rig.file("whole.toml"), other).unwrap();
    let other = rig.launch(&["run", "--config", "whole.toml"]);
    let stray = format!(
        r#""kind":"stray-tier","subject":"{}""#,
        rig.topic("delay.1h")
    );
    // What waits there moves to other tiers at once, which may be done before anybody looks.
    until("stray", &second, &address, |body| {
        body.contains(&stray) || done(&rig, "delay.1h") >= 400
    });
    let now = rig.retide(&["tasks", "run-now", "--scene", "flaky", "--yes"]);
    assert!(now.status.success(), "{now:?}");
    let ends = rig.ends(400);
    assert!(ends.values().all(|ends| ends == &["delivered"]));
    assert_eq!(rig.target.early(), 0);
    until("drained", &second, &address, |body| {
        !body.contains("stray-tier")
    });
    other.wait_for("has other tiers, or another guarantee");
    assert_eq!(other.wait(), Some(4));

    // One that is a member all the same, as of two that start together.
    let member: BaseConsumer = config(&rig.bootstrap, &rig.prefix)
        .set("client.id", "x-exactly_once.0badcafe")
        .set("partition.assignment.strategy", "cooperative-sticky")
        .create()
        .unwrap();
    #[allow(
        clippy::disallowed_methods,
        reason = "what judges retide shares no reader with it"
    )]
    member.subscribe(&[&rig.topic("tasks")]).unwrap();
    let disagrees = format!(r#""kind":"group-disagrees","subject":"{}""#, rig.prefix);
    until("disagrees", &second, &address, |body| {
        member.poll(Duration::ZERO);
        body.contains(&disagrees) && body.contains("has other tiers, or another guarantee")
    });
    drop(member);
    until("agree", &second, &address, |body| {
        !body.contains("group-disagrees")
    });
    rig.produce(0, [0; 4].into_iter());
    rig.ends(404);
    second.terminate();
    assert_eq!(second.wait(), Some(0));
}

/// Each topic, what it is left with, how that is called, and how it is mended.
const CHANGES: [[&str; 5]; 6] = [
    [
        "delay.10s",
        "retention.ms",
        "60000",
        "unsafe-retention-ms",
        "retention.ms=604810000",
    ],
    [
        "tasks",
        "retention.bytes",
        "1000",
        "unsafe-retention-bytes",
        "retention.bytes=-1",
    ],
    [
        "callbacks",
        "cleanup.policy",
        "compact",
        "unsafe-cleanup-policy",
        "cleanup.policy=delete",
    ],
    [
        "order",
        "cleanup.policy",
        "delete",
        "unsafe-cleanup-policy",
        "cleanup.policy=compact",
    ],
    [
        "delay.5s",
        "message.timestamp.type",
        "CreateTime",
        "unsafe-timestamp-type",
        "LogAppendTime",
    ],
    [
        "delay.1m",
        "max.message.bytes",
        "1048588",
        "unsafe-max-message-bytes",
        "max.message.bytes=2097152",
    ],
];

/// The settings of a topic as they were. It keeps what is not said of it from its broker.
fn whole(topic: &str) -> BTreeMap<&'static str, &'static str> {
    let large = [("retention.bytes", "-1"), ("max.message.bytes", "2097152")];
    match topic {
        "order" => BTreeMap::from([("cleanup.policy", "compact")]),
        "tasks" => BTreeMap::from([("retention.bytes", "-1"), ("max.message.bytes", "1048588")]),
        topic if topic.starts_with("delay.") => {
            let tier = [
                ("message.timestamp.type", "LogAppendTime"),
                ("retention.ms", "700000000"),
            ];
            large.into_iter().chain(tier).collect()
        }
        _ => large.into(),
    }
}

/// The records on the alerts topic.
fn alerts(rig: &Rig) -> Vec<String> {
    let alerts = rig.read("alerts").into_iter();
    let texts = alerts.filter_map(|alert| String::from_utf8(alert.value?).ok());
    texts.collect()
}

#[test]
fn settings_and_partitions_changed_while_it_runs_are_told_until_they_are_mended() {
    let (rig, address) = rig(FLAKY);
    let retide = rig.run();
    for [topic, key, value, _, _] in CHANGES {
        let mut settings = whole(topic);
        settings.insert(key, value);
        let settings: Vec<_> = settings.into_iter().collect();
        rig.set(topic, &settings);
    }
    let tier = rig.topic("delay.10s");
    let new = [NewPartitions::new(&tier, 6)];
    let admin = admin(&rig);
    let widened = admin.create_partitions(&new, &AdminOptions::new());
    Runtime::new().unwrap().block_on(widened).unwrap();
    let is_told = |body: &str, topic: &str, kind: &str| {
        body.contains(&format!(
            r#""kind":"{kind}","subject":"{}""#,
            rig.topic(topic)
        ))
    };
    let body = until("told", &retide, &address, |body| {
        let mut changes = CHANGES.iter();
        changes.all(|[topic, _, _, kind, _]| is_told(body, topic, kind))
            && is_told(body, "delay.10s", "partitions-differ")
    });
    assert!(body.contains("--partitions 6"), "{body}");

    let (_, metrics) = get(&address, "/metrics").unwrap();
    for [topic, key, _, kind, mends] in CHANGES {
        let topic = rig.topic(topic);
        let fix = format!("--entity-name {topic} --add-config {key}=");
        assert!(
            body.contains(&fix) && body.contains(mends),
            "{topic}: {body}"
        );
        let series = format!("retide_trouble{{kind=\"{kind}\",subject=\"{topic}\"}} 1");
        assert!(metrics.contains(&series), "{metrics}");
        retide.wait_for(&format!(
            "trouble begins trouble=\"{kind}\" subject=\"{topic}\""
        ));
    }
    rig.produce(0, [1; 4].into_iter());
    rig.ends(4);
    let start = Instant::now();
    let is_alert = |[topic, _, _, kind, _]: &[&str; 5]| {
        let topic = format!("\"{}\"", rig.topic(topic));
        let alerts = alerts(&rig);
        let of = alerts
            .iter()
            .filter(|text| text.contains(kind) && text.contains(&topic));
        of.count() == 1
    };
    while !CHANGES.iter().all(is_alert) {
        assert!(start.elapsed() < TOLD, "{:#?}", alerts(&rig));
    }

    for [topic, _, _, _, _] in CHANGES {
        let settings: Vec<_> = whole(topic).into_iter().collect();
        rig.set(topic, &settings);
    }
    assert!(rig.retide(&["init", "--partitions", "6"]).status.success());
    until("mended", &retide, &address, |body| {
        !body.contains("unsafe-") && !body.contains("partitions-differ")
    });
    retide.wait_for("trouble over trouble=\"unsafe-retention-ms\"");
    retide.terminate();
    assert_eq!(retide.wait(), Some(0));
}
