//! What `retide doctor` says of planted defects of sources: their topics, their groups, and who else is in these.

use std::fs;
use std::process::Output;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rdkafka::admin::{AdminClient, AdminOptions};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::producer::{BaseRecord, Producer};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use serde_json::Value;
use tokio::runtime::Runtime;

use crate::rig::Rig;
use crate::secured::secured;
use crate::support::{PATIENCE, config, create_topics};

/// A scene whose target takes everything.
const TAKEN: &str = "\n[scenes.taken]\ntarget = { http = { url = 'http://TARGET/taken' } }\n";

/// The topic of the rig's source.
fn letters(rig: &Rig) -> String {
    format!("{}-dlt", rig.prefix)
}

/// The group of the rig's source.
fn group(rig: &Rig) -> String {
    format!("{}-source-shop", rig.prefix)
}

/// The lines that a configuration has for the source.
fn source(rig: &Rig) -> String {
    let (topic, group) = (letters(rig), group(rig));
    format!("{TAKEN}[sources.shop]\ntopic = '{topic}'\nscene = 'taken'\ngroup = '{group}'\n")
}

/// Produces letters without headers, so many to partition 1.
fn produce(rig: &Rig, count: usize) {
    let (producer, topic) = (rig.producer(), letters(rig));
    for _ in 0..count {
        let record = BaseRecord::<str, str>::to(&topic).payload("x").partition(1);
        producer.send(record).map_err(|(error, _)| error).unwrap();
    }
    producer.flush(PATIENCE).unwrap();
}

/// Deletes all letters of partition 1.
fn delete(rig: &Rig) {
    let mut list = TopicPartitionList::new();
    list.add_partition_offset(&letters(rig), 1, Offset::End)
        .unwrap();
    let admin: AdminClient<DefaultClientContext> =
        config(&rig.bootstrap, "admin").create().unwrap();
    let deleted = admin.delete_records(&list, &AdminOptions::new());
    Runtime::new().unwrap().block_on(deleted).unwrap();
}

/// What `doctor` says of the source that is not as it should be: mark, subject, message and what mends it.
fn faults(output: &Output) -> Vec<[String; 4]> {
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    let lines = text.lines().map(|line| serde_json::from_str(line).unwrap());
    let of_source = |line: &Value| line["section"] == "sources" && line["mark"] != "ok";
    let lines = lines.filter(of_source);
    let words = |line: Value| {
        ["mark", "subject", "message", "fix"].map(|key| line[key].as_str().unwrap().to_owned())
    };
    lines.map(words).collect()
}

/// Asks until what it says is as wanted.
fn until(rig: &Rig, config: &str, wanted: impl Fn(&[[String; 4]]) -> bool) -> Vec<[String; 4]> {
    let start = Instant::now();
    loop {
        let words = ["doctor", "--no-targets", "--output", "ndjson"];
        let output = rig.retide(&[&words[..], &["--config", config]].concat());
        let faults = faults(&output);
        if wanted(&faults) {
            return faults;
        }
        assert!(start.elapsed() < PATIENCE, "{faults:?}: {output:?}");
    }
}

/// Does something while another application is a member of the group and reads `topic`.
fn beside_a_stranger<T>(rig: &Rig, topic: &str, then: impl FnOnce() -> T) -> T {
    let consumer: BaseConsumer = config(&rig.bootstrap, &group(rig))
        .set("client.id", "shop-tool")
        .create()
        .unwrap();
    #[allow(
        clippy::disallowed_methods,
        reason = "the stranger that retide is to see"
    )]
    consumer.subscribe(&[topic]).unwrap();
    let is_enough = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !is_enough.load(Ordering::Acquire) {
                consumer.poll(Duration::from_millis(100));
            }
        });
        let result = then();
        is_enough.store(true, Ordering::Release);
        result
    })
}

#[test]
fn letters_that_were_deleted_before_they_were_copied_are_told() {
    let rig = Rig::new(Duration::ZERO, TAKEN);
    rig.configure(&format!("{}{}", rig.basics(), source(&rig)));
    let topic = letters(&rig);
    create_topics(&rig.bootstrap, &[&topic]);
    produce(&rig, 3);
    let first = rig.run();
    rig.ends(3);
    first.terminate();
    assert_eq!(first.wait(), Some(0));
    let fine = until(&rig, "retide.toml", <[_]>::is_empty);
    assert!(fine.is_empty());
    // What was copied may go.
    delete(&rig);
    until(&rig, "retide.toml", <[_]>::is_empty);

    produce(&rig, 5);
    delete(&rig);
    produce(&rig, 1);
    let faults = until(&rig, "retide.toml", |faults| !faults.is_empty());

    let [[mark, subject, message, fix]] = faults.try_into().expect("one");
    assert_eq!(
        (&*mark, &*subject),
        ("warn", &*format!("source shop: group {}", group(&rig)))
    );
    let said = "of partition 1 it has read up to 3, and the log begins at 8: up to 5 letters were deleted before they were copied";
    assert!(message.starts_with(said), "{message}");
    assert!(
        fix.contains(&format!("--describe --topic {topic}")) && fix.contains("retention.ms"),
        "{fix}"
    );
    // What is left goes on, and then all is well again.
    let _second = rig.run();
    rig.ends(4);
    until(&rig, "retide.toml", <[_]>::is_empty);
}

#[test]
fn a_topic_that_was_made_anew_is_told() {
    let rig = Rig::new(Duration::ZERO, TAKEN);
    rig.configure(&format!("{}{}", rig.basics(), source(&rig)));
    create_topics(&rig.bootstrap, &[&letters(&rig)]);
    let consumer: BaseConsumer = config(&rig.bootstrap, &group(&rig)).create().unwrap();
    let mut list = TopicPartitionList::new();
    list.add_partition_offset(&letters(&rig), 1, Offset::Offset(7))
        .unwrap();
    // A broker may know a little later of a topic that was just made.
    let start = Instant::now();
    while let Err(error) = consumer.commit(&list, CommitMode::Sync) {
        assert!(start.elapsed() < PATIENCE, "{error}");
    }

    let is_of_group = |fault: &[String; 4]| fault[1].contains(": group ");
    let faults = until(&rig, "retide.toml", |faults| faults.iter().any(is_of_group));

    let [[mark, _, message, _]] = faults.try_into().expect("one");
    assert_eq!(mark, "warn");
    let said = "of partition 1 it has read up to 7, and the log ends at 0: the topic was made anew";
    assert!(message.starts_with(said), "{message}");
}

#[test]
fn who_takes_letters_away_is_told_and_retides_own_members_are_not() {
    let rig = Rig::new(Duration::ZERO, TAKEN);
    rig.configure(&format!("{}{}", rig.basics(), source(&rig)));
    let (topic, other) = (letters(&rig), rig.topic("tasks"));
    create_topics(&rig.bootstrap, &[&topic]);
    let retide = rig.run();
    produce(&rig, 1);
    rig.ends(1);
    until(&rig, "retide.toml", <[_]>::is_empty);

    let is_told = |faults: &[[String; 4]]| !faults.is_empty();
    let taking = beside_a_stranger(&rig, &topic, || until(&rig, "retide.toml", is_told));
    let idle = beside_a_stranger(&rig, &other, || {
        until(&rig, "retide.toml", |faults| {
            faults.iter().any(|fault| fault[0] == "warn")
        })
    });
    until(&rig, "retide.toml", <[_]>::is_empty);

    let subject = format!("source shop: group {}", group(&rig));
    for (faults, mark, what) in [
        (taking, "fail", "becomes no task"),
        (idle, "warn", "pauses"),
    ] {
        let [[found, about, message, fix]] = faults.try_into().expect("one");
        assert_eq!((&*found, &*about), (mark, &*subject), "{message}");
        assert!(
            message.contains("shop-tool at ") && message.contains(what),
            "{message}"
        );
        assert!(fix.contains("another `group` of [sources.shop]"), "{fix}");
    }

    // The same source of another prefix copies elsewhere.
    let text = fs::read_to_string(rig.file("retide.toml")).unwrap();
    let prefix = format!("{}.other", rig.prefix);
    let text = text.replace(
        &format!("prefix = '{}'", rig.prefix),
        &format!("prefix = '{prefix}'"),
    );
    let text = text.replace(
        &format!("[processor]\ngroup = '{}'", rig.prefix),
        &format!("[processor]\ngroup = '{prefix}'"),
    );
    fs::write(rig.file("other.toml"), text).unwrap();
    assert!(
        rig.retide(&["init", "--config", "other.toml"])
            .status
            .success()
    );
    let faults = until(&rig, "other.toml", is_told);
    assert_eq!(faults[0][0], "fail", "{faults:?}");
    assert!(faults[0][2].contains("becomes no task"), "{faults:?}");
    retide.terminate();
    assert_eq!(retide.wait(), Some(0));
    until(&rig, "other.toml", <[_]>::is_empty);
}

#[test]
fn what_a_source_may_not_see_is_not_called_missing_and_what_is_printed_mends_it() {
    let Some(broker) = secured() else { return };
    let rig = Rig::bare(broker.plain.clone(), TAKEN);
    assert!(rig.retide(&["init"]).status.success());
    let (topic, group) = (letters(&rig), group(&rig));
    let missing = format!("{topic}-missing");
    create_topics(&rig.bootstrap, &[&topic]);
    let text = format!("{}{}", rig.basics(), source(&rig));
    let text = text.replace("TARGET", &rig.target.address.to_string());
    let (_, rest) = text.split_once("\n[kafka.consumer]").unwrap();
    let login = broker.login("sources");
    let none = format!("[sources.none]\ntopic = '{missing}'\nscene = 'taken'\n");
    let text = format!("{login}[kafka.consumer]{rest}{none}");
    fs::write(rig.file("user.toml"), text).unwrap();
    let words = ["init", "--acls", "--role", "run"];
    let printed = rig.retide(
        &[
            &words[..],
            &["--principal", "User:sources", "--config", "user.toml"],
        ]
        .concat(),
    );
    let all = String::from_utf8(printed.stdout).unwrap();
    let less = all.replace(&format!(" --topic {topic} "), " ");
    let less = less.replace(&format!(" --topic {topic}\n"), "\n");
    let less = less.replace(&format!(" --group {group}"), "");
    assert!(
        !less.contains(&format!("{topic}\n")) && less.contains(&missing),
        "{less}"
    );
    broker.grant(&less);

    // The group may not be used, the topic not be seen; and of what may be seen it is known that it is not there.
    let faults = until(&rig, "user.toml", |faults| {
        faults.len() == 3
            && faults
                .iter()
                .any(|fault| fault[2].starts_with("does not exist"))
    });
    let of = |subject: &str| {
        let mut all = faults.iter().filter(|fault| fault[1].ends_with(subject));
        let fault = all
            .next()
            .unwrap_or_else(|| panic!("{subject}: {faults:?}"));
        assert_eq!((all.next(), &*fault[0]), (None, "fail"), "{faults:?}");
        fault
    };
    assert_eq!(
        of(&format!("shop: topic {topic}"))[2],
        "retide may not describe it, so it is not known whether it exists: nothing is copied"
    );
    assert_eq!(
        of(&format!("shop: group {group}"))[2],
        "retide may not join it: nothing is copied"
    );
    assert_eq!(
        of(&format!("none: topic {missing}"))[2],
        "does not exist: nothing is copied"
    );
    assert_eq!(faults.len(), 3, "{faults:?}");

    for subject in [
        format!("shop: topic {topic}"),
        format!("shop: group {group}"),
    ] {
        broker.grant(&of(&subject)[3]);
    }
    create_topics(&rig.bootstrap, &[&missing]);
    until(&rig, "user.toml", <[_]>::is_empty);
}
