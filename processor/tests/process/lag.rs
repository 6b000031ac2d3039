//! What tools that know nothing of retide say of its group: a lag of 0 everywhere when there is nothing to do.

use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use rdkafka::producer::{BaseProducer, Producer};

use crate::bounded;
use crate::rig::{FLAKY, Rig};
use crate::support::{PATIENCE, config, free_address};
use crate::time::value;

/// For so long nothing is committed any more. Where offsets followed markers that their own commits have written, there would be a commit
/// every 3 s.
const QUIET: Duration = Duration::from_secs(6);

/// Hands one task, which fails once, to the open transaction of a producer.
fn send(rig: &Rig, producer: &BaseProducer, partition: i32, id: &str) {
    let headers = [("retry-scene", "flaky"), ("retry-id", id)];
    rig.send_to(partition, producer, &headers, b"1");
}

/// What `kafka-consumer-groups --describe` says, where Kafka's tools are: topic, partition, committed offset, end and lag.
fn describe(rig: &Rig) -> Option<Vec<Vec<String>>> {
    let run = concat!(env!("CARGO_MANIFEST_DIR"), "/../docker/kafka/run");
    let output = bounded::try_output(Command::new(run).arg("--jars")).ok()?;
    if !output.status.success() {
        return None;
    }
    let jars = String::from_utf8(output.stdout).unwrap();
    let mut java = Command::new("java");
    let java = java
        .args(["-cp", &format!("{}/*", jars.trim())])
        .arg("org.apache.kafka.tools.consumer.group.ConsumerGroupCommand")
        .args(["--bootstrap-server", &rig.bootstrap])
        .args(["--describe", "--group", &rig.prefix]);
    let output = bounded::output(java);
    let text = String::from_utf8(output.stdout).unwrap();
    let lines = text.lines().map(str::split_whitespace);
    let lines = lines.map(|words| words.skip(1).take(5).map(str::to_owned).collect());
    let ours = |line: &Vec<String>| {
        let topic = line.first();
        topic.is_some_and(|topic| topic.starts_with(&rig.prefix))
    };
    Some(lines.filter(ours).collect())
}

#[test]
fn a_group_with_nothing_to_do_has_no_lag_and_commits_nothing() {
    let rig = Rig::new(Duration::ZERO, "");
    let admin = free_address();
    let basics = rig.basics();
    rig.configure(&format!("{basics}[admin]\nlisten = '{admin}'\n{FLAKY}"));
    let retide = rig.run();
    // The first commit is that of the assignment: who looks before there is anything sees zeros, and no dashes.
    rig.wait_for_no_lag();

    // Partition 0 has tasks and a marker behind them, 1 what was aborted, 2 both, 3 nothing. The tasks are parked in a tier once: retide's own
    // transactions leave markers there, and on whatever else they wrote to.
    let producer: BaseProducer = config(&rig.bootstrap, "producer")
        .set("transactional.id", format!("{}-producer", rig.prefix))
        .create()
        .unwrap();
    producer.init_transactions(PATIENCE).unwrap();
    for (aborts, partitions) in [(false, [0, 2]), (true, [1, 2])] {
        producer.begin_transaction().unwrap();
        for partition in partitions {
            send(&rig, &producer, partition, &format!("{partition}-{aborts}"));
        }
        producer.flush(PATIENCE).unwrap();
        if aborts {
            producer.abort_transaction(PATIENCE).unwrap();
        } else {
            producer.commit_transaction(PATIENCE).unwrap();
        }
    }
    rig.ends(2);
    rig.wait_for_no_lag();

    let committed = r#"retide_ledger_batches_total{result="committed"}"#;
    let commits = || value(&admin, committed).unwrap() as u64;
    let (before, since) = (commits(), Instant::now());
    let offsets = rig.offsets();
    let described = describe(&rig);
    thread::park_timeout(QUIET.saturating_sub(since.elapsed()));
    assert_eq!(commits(), before, "it commits on and on");
    assert_eq!(rig.offsets(), offsets);
    if let Some(lines) = described {
        assert_eq!(lines.len(), 7 * 4, "{lines:?}");
        assert!(lines.iter().all(|line| line[4] == "0"), "{lines:?}");
    }

    // Whoever comes next begins behind the markers.
    retide.terminate();
    assert_eq!(retide.wait(), Some(0));
    let next = rig.run();
    rig.wait_for_no_lag();
    next.terminate();
    assert_eq!(next.wait(), Some(0));
    assert_eq!(rig.offsets(), offsets);
}
