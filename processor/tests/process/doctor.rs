//! What `retide doctor` says of planted defects, and that the commands which it prints mend them.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use rdkafka::consumer::BaseConsumer;
use serde_json::{Value, json};

use retide_core::Ladder;
use retide_kafka::cluster::{self, Layout, Plan};
use retide_kafka::topics::Topics;

use crate::bounded;
use crate::rig::{Rig, end_of};
use crate::support::{PATIENCE, bootstrap, config, free_address};

/// Kafka's tools by the names that its users know, and the classes behind them.
const TOOLS: [(&str, &str); 2] = [
    ("kafka-configs.sh", "kafka.admin.ConfigCommand"),
    ("kafka-topics.sh", "org.apache.kafka.tools.TopicCommand"),
];

/// Scenes with a target that listens; `TARGET` is its address.
const GOOD: &str = r#"
[scenes.good]
target = { http = { url = "http://TARGET/good" } }
"#;

/// The plan of a rig's configuration.
fn plan(rig: &Rig) -> Plan {
    let ladder = Ladder::try_new(&["now", "5s", "10s", "1m", "1h"]).unwrap();
    let layout = Layout {
        partitions: 4,
        replication_factor: -1,
    };
    Plan::new(&Topics::new(&rig.prefix, &ladder), &ladder, layout)
}

/// Creates the topics of a plan.
fn create(rig: &Rig, plan: &Plan) {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let client = config(&rig.bootstrap, "creator");
    let create = cluster::create(&client, plan, PATIENCE);
    runtime.block_on(create).unwrap();
}

/// The lines of an answer in NDJSON.
fn lines(output: &Output) -> Vec<Value> {
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

/// Those of them with this mark.
fn marked(output: &Output, mark: &str) -> Vec<Value> {
    let mut lines = lines(output);
    lines.retain(|line| line["mark"] == mark);
    lines
}

/// Kafka's tools in a folder of the rig's; none without Java and Maven.
fn tools(rig: &Rig) -> Option<String> {
    let run = concat!(env!("CARGO_MANIFEST_DIR"), "/../docker/kafka/run");
    let output = bounded::try_output(Command::new(run).arg("--jars")).ok()?;
    let jars = String::from_utf8(output.stdout).unwrap();
    if !output.status.success() {
        return None;
    }
    let folder = rig.file("tools");
    fs::create_dir(&folder).unwrap();
    for (name, class) in TOOLS {
        let script = format!(
            "#!/bin/sh\nexec java -cp '{}/*' {class} \"$@\"\n",
            jars.trim()
        );
        let file = folder.join(name);
        fs::write(&file, script).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
    }
    Some(folder.display().to_string())
}

/// Runs each command as it was printed, in a shell that finds Kafka's tools in the folder `tools`.
fn mend(rig: &Rig, tools: &str, failed: &[Value]) {
    for line in failed {
        match line["fix"].as_str().unwrap() {
            "retide init" => assert!(rig.retide(&["init"]).status.success()),
            fix if fix.starts_with("kafka-") => {
                let path = format!("{tools}:{}", std::env::var("PATH").unwrap());
                let mut shell = Command::new("sh");
                let mended = bounded::output(shell.args(["-c", fix]).env("PATH", path));
                assert!(mended.status.success(), "{fix}: {mended:?}");
            }
            fix => assert!(fix.starts_with("start what listens at "), "{fix}"),
        }
    }
}

/// The plan with a defect of each kind.
fn defective(rig: &Rig) -> Plan {
    let mut planted = plan(rig);
    let mut of = |name: &str| {
        let name = rig.topic(name);
        let mut topics = planted.topics.iter_mut();
        topics.position(|topic| *topic.name == *name).unwrap()
    };
    let (hour, narrow, order, events) = (of("delay.1h"), of("delay.5s"), of("order"), of("events"));
    let forgetful = &mut planted.topics[hour].config;
    forgetful.insert("retention.ms", "1000".to_owned());
    planted.topics[narrow].partitions = 2;
    let unordered = &mut planted.topics[order].config;
    unordered.insert("cleanup.policy", "delete".to_owned());
    planted.topics.remove(events);
    planted
}

/// Checks that each of two scenes is said to have another rate for the same host.
fn check_limits(rig: &Rig, warned: &[Value]) {
    let host = format!("http://{}", rig.target.address);
    for (scene, other) in [("other", "short"), ("short", "other")] {
        let line = json!({
            "section": "scenes", "mark": "warn", "subject": format!("scene {scene}"),
            "message": format!(
                "its rate is that of {host}, and scenes there name other ones ({other}): each counts for itself, and the host sees the sum"
            ),
            "fix": format!("set rate (the same in all of them) of [scenes.{scene}] in retide.toml"),
        });
        assert!(warned.contains(&line), "{warned:?}");
    }
}

#[test]
fn each_planted_defect_has_a_line_and_its_command_mends_it() {
    let dead = free_address();
    let rig = Rig::bare(bootstrap(), "");
    let Some(tools) = tools(&rig) else {
        eprintln!("NOT CHECKED: no Java and Maven for Kafka's own tools");
        return;
    };
    let prefix = rig.prefix.clone();
    rig.configure(&format!(
        "{}{GOOD}\n[scenes.dead]\ntarget = {{ http = {{ url = 'http://{dead}/?key=sesame' }} }}\n\
         [scenes.copy]\ntarget = {{ kafka = {{ topic = '{prefix}-copy' }} }}\n\
         [scenes.short]\ntarget = {{ http = {{ url = 'http://TARGET/' }} }}\n\
         backoff = {{ fixed = {{ delay = '10m' }} }}\ndeadline = '1m'\nordering = 'key'\n\
         rate = {{ limit = 9, of = 'host' }}\n\
         [scenes.other]\ntarget = {{ http = {{ url = 'http://TARGET/other' }} }}\n\
         rate = {{ limit = 8, of = 'host' }}\n",
        rig.basics()
    ));
    create(&rig, &defective(&rig));

    let output = rig.retide(&["doctor", "--output", "ndjson"]);
    let table = rig.retide(&["doctor"]);
    let run = rig.retide(&["run"]);

    assert_eq!(output.status.code(), Some(4), "{output:?}");
    let kafka = &rig.bootstrap;
    let expected = [
        json!({
            "section": "topics", "mark": "fail", "subject": format!("{prefix}.delay.5s"),
            "message": format!("has 2 partitions, {prefix}.tasks has 4: all must have the same number"),
            "fix": format!("kafka-topics.sh --bootstrap-server {kafka} --alter --topic {prefix}.delay.5s --partitions 4"),
        }),
        json!({
            "section": "topics", "mark": "fail", "subject": format!("{prefix}.delay.1h"),
            "message": "retention.ms is 1s, which is less than 1d 1h: tasks are deleted before they are read",
            "fix": format!(
                "kafka-configs.sh --bootstrap-server {kafka} --alter --entity-type topics --entity-name {prefix}.delay.1h \
                 --add-config retention.ms=608400000"
            ),
        }),
        json!({
            "section": "topics", "mark": "fail", "subject": format!("{prefix}.events"),
            "message": "does not exist", "fix": "retide init",
        }),
        json!({
            "section": "topics", "mark": "fail", "subject": format!("{prefix}.order"),
            "message": "cleanup.policy is delete: what is known of the order of tasks gets lost as it ages",
            "fix": format!(
                "kafka-configs.sh --bootstrap-server {kafka} --alter --entity-type topics --entity-name {prefix}.order \
                 --add-config cleanup.policy=compact"
            ),
        }),
        json!({
            "section": "targets", "mark": "fail", "subject": format!("scene copy: target topic {prefix}-copy"),
            "message": "does not exist, or retide may not describe it: its tasks cannot be delivered",
            "fix": format!("kafka-topics.sh --bootstrap-server {kafka} --create --if-not-exists --topic {prefix}-copy"),
        }),
        json!({
            "section": "targets", "mark": "fail", "subject": format!("http://{dead}"),
            "message": "takes no connections from here (Connection refused (os error 111); scenes: dead): attempts would fail and be \
                        made again",
            "fix": format!("start what listens at {dead}, or set target.http.url of [scenes.dead] in retide.toml"),
        }),
    ];
    let failed = marked(&output, "fail");
    assert_eq!(failed, expected);
    let warned = marked(&output, "warn");
    let short = warned.iter().find(|line| line["subject"] == "scene short");
    assert_eq!(
        short.unwrap()["message"],
        "the first wait of backoff is 10m at least, and the deadline is 1m: no task is ever tried a second time"
    );
    check_limits(&rig, &warned);
    // The same for people, and the same from `run` as far as that looks.
    let table = String::from_utf8(table.stdout).unwrap();
    let refusal = String::from_utf8(run.stderr).unwrap();
    assert_eq!(run.status.code(), Some(4), "{refusal}");
    for line in &failed {
        let text = |key: &str| line[key].as_str().unwrap();
        let (subject, message, fix) = (text("subject"), text("message"), text("fix"));
        let shown = format!("  ✖ {subject}: {message}\n      {fix}\n");
        assert!(format!("{table}\n").contains(&shown), "{table}");
        if text("section") == "topics" {
            // What only stands still as far as it goes is a warning there.
            let said = format!(": {subject}: {message}\n  fix: {fix}\n");
            assert!(refusal.contains(&said), "{refusal}");
        }
    }
    assert!(!table.contains("sesame"), "{table}");

    let listener = TcpListener::bind(&dead).unwrap();
    mend(&rig, &tools, &failed);
    let start = Instant::now();
    let output = loop {
        let output = rig.retide(&["doctor", "--output", "ndjson"]);
        // A broker may know a little later what its tools have made.
        if marked(&output, "fail").is_empty() || start.elapsed() > PATIENCE {
            break output;
        }
    };
    drop(listener);
    assert_eq!(marked(&output, "fail"), [] as [Value; 0]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert_eq!(rig.target.count(), 0);
}

#[test]
fn a_cluster_that_does_not_answer_is_exit_code_5_and_the_rest_is_looked_at() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = silent.local_addr().unwrap().to_string();
    let rig = Rig::bare(address.clone(), GOOD);

    let start = Instant::now();
    let children = [&["doctor"][..], &["doctor", "--write-probe"]]
        .map(|options| rig.start(&[options, &["--output", "ndjson"]].concat()));
    for child in children {
        let output = child.output();

        assert!(start.elapsed() < Duration::from_secs(20));
        assert_eq!(output.status.code(), Some(5), "{output:?}");
        let failed = marked(&output, "fail");
        assert_eq!(failed.len(), 1, "{failed:?}");
        assert_eq!(failed[0]["section"], "cluster");
        assert_eq!(failed[0]["subject"], address);
        let fix = failed[0]["fix"].as_str().unwrap();
        assert!(fix.contains("bootstrap.servers"), "{fix}");
        let listens = format!("http://{}", rig.target.address);
        assert!(
            marked(&output, "ok")
                .iter()
                .any(|line| line["subject"] == listens),
            "{output:?}"
        );
    }
}

#[test]
fn a_target_alone_that_does_not_answer_is_exit_code_5_and_need_not_be_looked_at() {
    let rig = Rig::new(Duration::ZERO, "");
    let scene = format!(
        "[scenes.dead]\ntarget = {{ http = {{ url = 'http://{}' }} }}\n",
        free_address()
    );
    fs::write(rig.file("scenes.toml"), scene).unwrap();
    assert!(
        rig.retide(&["scenes", "apply", "scenes.toml"])
            .status
            .success()
    );

    let looked = rig.retide(&["doctor", "--output", "ndjson"]);
    let not = rig.retide(&["doctor", "--no-targets", "--output", "ndjson"]);

    assert_eq!(looked.status.code(), Some(5), "{looked:?}");
    let failed = marked(&looked, "fail");
    assert_eq!(failed.len(), 1, "{failed:?}");
    let fix = failed[0]["fix"].as_str().unwrap();
    assert!(fix.ends_with("retide scenes apply dead.toml"), "{fix}");
    assert_eq!(not.status.code(), Some(0), "{not:?}");
}

/// The offsets that follow the last record of each partition of each topic, markers of transactions included.
fn high(rig: &Rig) -> i64 {
    let consumer: BaseConsumer = config(&rig.bootstrap, "watcher").create().unwrap();
    let mut sum = 0;
    for topic in plan(rig).topics {
        for partition in 0..topic.partitions {
            sum += end_of(&consumer, &topic.name, partition);
        }
    }
    sum
}

#[test]
fn nothing_is_written_without_consent_and_nothing_is_seen_of_what_is_written_with_it() {
    let rig = Rig::new(Duration::ZERO, GOOD);
    let clock = |output: &Output| {
        let lines = lines(output);
        let line = lines.into_iter().find(|line| line["section"] == "clock");
        line.unwrap()
    };

    let without = rig.retide(&["doctor", "--output", "ndjson"]);
    let before = high(&rig);
    let with = rig.retide(&["doctor", "--write-probe", "--output", "ndjson"]);
    let after = high(&rig);

    assert_eq!(without.status.code(), Some(0), "{without:?}");
    assert_eq!(clock(&without)["mark"], "warn");
    assert_eq!(clock(&without)["fix"], "retide doctor --write-probe");
    assert_eq!(before, 0);
    // One record and one marker on each of twelve topics: workers do not write the retry topic.
    assert_eq!(after, 24, "{with:?}");
    assert_eq!(with.status.code(), Some(0), "{with:?}");
    assert_eq!(clock(&with)["mark"], "ok", "{with:?}");
    let written = marked(&with, "ok");
    assert!(
        written.iter().any(
            |line| line["message"] == "retide may write them" && line["subject"] == "12 topics"
        ),
        "{written:?}"
    );
    for topic in ["tasks", "delay.now", "callbacks", "events", "dead-letters"] {
        assert!(rig.read(topic).is_empty(), "{topic}");
    }
}
