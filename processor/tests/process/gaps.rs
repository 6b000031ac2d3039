//! What is gone before it is read, and what cannot be read: the rest goes on, and it is said.

use std::io::{Read as _, Write as _};
use std::thread;
use std::time::{Duration, Instant};

use rdkafka::admin::{AdminClient, AdminOptions, NewPartitions};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use tokio::runtime::Runtime;

use crate::bounded;
use crate::rig::{FLAKY, Retide, Rig, end_of};
use crate::support::{PATIENCE, config};

/// Tasks are parked in the tier `5s` once, and then delivered.
const SLOW: &str = r#"
[scenes.flaky]
target = { http = { url = "http://TARGET/flaky", timeout = "1m" } }
backoff = { fixed = { delay = "6s" } }
max_attempts = 4
"#;

/// The same, one task of a key after the other.
const LINE: &str = r#"
[scenes.flaky]
target = { http = { url = "http://TARGET/flaky", timeout = "1m" } }
backoff = { fixed = { delay = "6s" } }
max_attempts = 4
ordering = "key"
"#;

/// An admin client.
fn admin(rig: &Rig) -> AdminClient<DefaultClientContext> {
    config(&rig.bootstrap, "admin").create().unwrap()
}

/// A rig whose processes answer on an address of their own.
fn rig(scenes: &str) -> (Rig, String) {
    rig_with(Duration::ZERO, scenes)
}

/// The same, with a target that takes `takes` for each answer.
fn rig_with(takes: Duration, scenes: &str) -> (Rig, String) {
    let rig = Rig::new(takes, scenes);
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    rig.configure(&format!(
        "{}[admin]\nlisten = '{address}'\n{scenes}",
        rig.basics()
    ));
    (rig, address)
}

/// What a process answers.
fn get(address: &str, path: &str) -> String {
    let Ok(mut stream) = bounded::connect(address) else {
        return String::new();
    };
    let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    let mut text = String::new();
    let _ = stream.write_all(request.as_bytes());
    let _ = stream.read_to_string(&mut text);
    text
}

/// Waits until a process answers with `part`.
fn wait_for(address: &str, path: &str, part: &str) {
    let start = Instant::now();
    while !get(address, path).contains(part) {
        assert!(start.elapsed() < PATIENCE, "{part}: {}", get(address, path));
        thread::sleep(Duration::from_millis(50));
    }
}

/// Deletes all records of a partition.
fn delete(rig: &Rig, topic: &str, partition: i32) {
    let mut list = TopicPartitionList::new();
    list.add_partition_offset(&rig.topic(topic), partition, Offset::End)
        .unwrap();
    // It lives until the answer: without it nobody would hear that.
    let admin = admin(rig);
    let deleted = admin.delete_records(&list, &AdminOptions::new());
    Runtime::new().unwrap().block_on(deleted).unwrap();
}

/// How many records are on a topic.
fn count(rig: &Rig, topic: &str) -> usize {
    rig.read(topic).len()
}

/// Waits until so many records are on a topic.
fn wait_for_records(rig: &Rig, topic: &str, records: usize) {
    let start = Instant::now();
    while count(rig, topic) < records {
        assert!(start.elapsed() < PATIENCE, "{topic}: {records}");
        thread::sleep(Duration::from_millis(50));
    }
}

/// Sends a task of `flaky` that fails so often to a partition; all of a partition have the same key.
fn send(rig: &Rig, producer: &BaseProducer, partition: i32, id: &str, failures: &str) {
    let key = partition.to_string();
    let headers = rdkafka::message::OwnedHeaders::new();
    let headers = [("retry-scene", "flaky"), ("retry-id", id)].iter().fold(
        headers,
        |headers, (key, value)| {
            headers.insert(rdkafka::message::Header {
                key,
                value: Some(value.as_bytes()),
            })
        },
    );
    let topic = rig.topic("tasks");
    let record = BaseRecord::<str, str>::to(&topic)
        .key(&key)
        .payload(failures)
        .partition(partition)
        .headers(headers);
    producer.send(record).map_err(|(error, _)| error).unwrap();
    producer.flush(PATIENCE).unwrap();
}

#[test]
fn records_deleted_before_they_were_read_are_told_and_the_rest_goes_on() {
    let (rig, address) = rig(SLOW);
    let producer = rig.producer();
    let first = rig.run();
    for index in 0..8 {
        send(&rig, &producer, index % 4, &format!("task-{index}"), "1");
    }
    wait_for_records(&rig, "delay.5s", 8);
    first.kill();
    delete(&rig, "delay.5s", 1);
    let tier = format!("{}/1", rig.topic("delay.5s"));

    let doctor = rig.retide(&["doctor", "--no-targets"]);
    let second = rig.run();
    let ends = rig.ends(6);

    let doctor = String::from_utf8(doctor.stdout).unwrap();
    assert!(
        doctor.contains(&format!("✖ {tier}: ")) && doctor.contains("were deleted before"),
        "{doctor}"
    );
    assert!(!ends.contains_key("task-1") && !ends.contains_key("task-5"));
    assert_eq!(second.log().matches("records gone before").count(), 1);
    wait_for(&address, "/readyz", &format!(r#""subject":"{tier}""#));
    assert!(get(&address, "/readyz").starts_with("HTTP/1.1 200"));
    wait_for(&address, "/metrics", "retide_records_gone_total ");
    assert!(!get(&address, "/metrics").contains("retide_records_gone_total 0"));
    let alerts = rig.read("alerts");
    let alert = alerts
        .iter()
        .filter_map(|alert| alert.value.clone())
        .map(|value| String::from_utf8(value).unwrap())
        .find(|text| text.contains("records-gone"));
    assert!(alert.is_some_and(|text| text.contains(&tier)));

    // Behind the gap nothing is gone any more, and what comes is done.
    rig.wait_for_no_lag();
    send(&rig, &producer, 1, "task-8", "1");
    rig.ends(7);
    second.terminate();
    assert_eq!(second.wait(), Some(0));
    let third = rig.run();
    assert!(!third.log().contains("records gone before"));
}

/// Sets the group's offset of a partition; without one, to its end.
fn commit(rig: &Rig, topic: &str, partition: i32, offset: Option<i64>) {
    let group: BaseConsumer = config(&rig.bootstrap, "admin")
        .set("group.id", &rig.prefix)
        .create()
        .unwrap();
    let topic = rig.topic(topic);
    let mut list = TopicPartitionList::new();
    let offset = Offset::Offset(offset.unwrap_or_else(|| end_of(&group, &topic, partition)));
    list.add_partition_offset(&topic, partition, offset)
        .unwrap();
    group.commit(&list, CommitMode::Sync).unwrap();
}

#[test]
fn a_key_goes_on_when_the_parked_task_it_waits_for_is_gone() {
    let (rig, address) = rig(LINE);
    let producer = rig.producer();
    let first = rig.run();
    for partition in 0..3 {
        send(
            &rig,
            &producer,
            partition,
            &format!("first-{partition}"),
            "1",
        );
    }
    wait_for_records(&rig, "delay.5s", 3);
    first.terminate();
    assert_eq!(first.wait(), Some(0));

    // One is deleted, one is passed over, and one is only late.
    delete(&rig, "delay.5s", 0);
    commit(&rig, "delay.5s", 1, None);
    let second = rig.run();
    for partition in 0..3 {
        send(
            &rig,
            &producer,
            partition,
            &format!("second-{partition}"),
            "0",
        );
    }
    let ends = rig.ends(4);

    let ended: Vec<&str> = ends.keys().map(String::as_str).collect();
    assert_eq!(ended, ["first-2", "second-0", "second-1", "second-2"]);
    let ids = rig.target.requests().into_iter();
    let ids: Vec<String> = ids.map(|request| request.text("retry-id")).collect();
    let last = |id: &str| ids.iter().rposition(|other| other == id);
    assert!(last("first-2") < last("second-2"), "{ids:?}");
    wait_for(&address, "/metrics", "retide_ordered_tasks_gone_total 2");
    // Nobody after this process hears of them.
    wait_for(&address, "/metrics", "retide_ordered_keys 0");
    let (tasks, order) = (rig.topic("tasks"), rig.topic("order"));
    let alerts = rig.read("alerts").into_iter();
    let alerts = alerts.filter_map(|alert| String::from_utf8(alert.value?).ok());
    let alerts: Vec<String> = alerts.collect();
    for partition in 0..2 {
        let at = format!("{tasks}/{partition}/0");
        wait_for(
            &address,
            "/readyz",
            &format!(r#""subject":"{order}/{partition}""#),
        );
        assert!(second.log().contains(&at));
        let is_told = |text: &String| text.contains("parked-task-gone") && text.contains(&at);
        assert!(alerts.iter().any(is_told), "{alerts:#?}");
    }
}

/// The process stays, and does a task on each of these partitions.
fn works(rig: &Rig, retide: &mut Retide, partitions: &[i32], round: usize, ends: usize) {
    let producer = rig.producer();
    for partition in partitions {
        send(
            rig,
            &producer,
            *partition,
            &format!("{round}-{partition}"),
            "0",
        );
    }
    rig.ends(ends);
    assert!(retide.child.try_wait().unwrap().is_none(), "it has ended");
}

#[test]
fn records_deleted_while_they_are_read_do_not_end_the_process() {
    let (rig, address) = rig(FLAKY);
    let mut retide = rig.run();
    works(&rig, &mut retide, &[0, 1, 2, 3], 0, 4);
    // What is to be read next does not exist: an hour's tier is read up to its first record, which is not due.
    let producer = rig.producer();
    for index in 0..40 {
        let id = format!("later-{index}");
        let headers = [
            ("retry-scene", "flaky"),
            ("retry-id", &id),
            ("retry-delay-ms", "4000000"),
        ];
        rig.send(&producer, &headers, &[b'0'; 1]);
    }
    producer.flush(PATIENCE).unwrap();
    wait_for_records(&rig, "delay.1h", 40);
    for partition in 0..4 {
        delete(&rig, "delay.1h", partition);
        delete(&rig, "tasks", partition);
    }
    works(&rig, &mut retide, &[0, 1, 2, 3], 1, 8);
    let _ = address;
}

/// Deletes a topic.
fn delete_topic(rig: &Rig, topic: &str) {
    let admin = admin(rig);
    let deleted = admin.delete_topics(&[topic], &AdminOptions::new());
    let deleted = Runtime::new().unwrap().block_on(deleted).unwrap();
    assert!(deleted.iter().all(Result::is_ok), "{deleted:?}");
}

/// Has the topics made that do not exist; the broker takes a moment to forget one that was deleted.
fn init(rig: &Rig) {
    let start = Instant::now();
    loop {
        let init = rig.retide(&["init"]);
        let said = String::from_utf8(init.stdout).unwrap();
        if init.status.success() && said.contains("created") {
            return;
        }
        assert!(start.elapsed() < PATIENCE, "{said}");
    }
}

/// Deletes a topic and has it made anew.
fn make_anew(rig: &Rig, topic: &str) {
    delete_topic(rig, &rig.topic(topic));
    init(rig);
}

/// Configures processes that hear within seconds of topics that are changed.
fn hears_soon(rig: &Rig, address: &str) {
    let basics = rig.basics().replace(
        "[kafka.consumer]\n",
        "topic.metadata.refresh.interval.ms = 2000\n[kafka.consumer]\n",
    );
    rig.configure(&format!("{basics}[admin]\nlisten = '{address}'\n{FLAKY}"));
}

#[test]
fn a_topic_that_is_made_anew_is_told_and_work_goes_on() {
    let (rig, address) = rig(FLAKY);
    let mut first = rig.run();
    works(&rig, &mut first, &[0, 1, 2, 3], 0, 4);
    works(&rig, &mut first, &[0, 1, 2, 3], 1, 8);
    first.terminate();
    assert_eq!(first.wait(), Some(0));

    // Brokers forget what was committed for a topic that is deleted, but not what is restored later, or of a log that was cut.
    make_anew(&rig, "tasks");
    commit(&rig, "tasks", 0, Some(1_000));
    let mut second = rig.run();
    works(&rig, &mut second, &[0, 1, 2, 3], 2, 12);
    let tasks = rig.topic("tasks");
    let ready = get(&address, "/readyz");
    let subject = format!(r#""kind":"records-gone","subject":"{tasks}/0""#);
    assert!(
        ready.starts_with("HTTP/1.1 200") && ready.contains(&subject),
        "{ready}"
    );
    assert!(
        ready.contains("offset 1000, up to which the group has read, is beyond the end"),
        "{ready}"
    );
    let alerts = rig.read("alerts").into_iter();
    let mut alerts = alerts.filter_map(|alert| String::from_utf8(alert.value?).ok());
    assert!(alerts.any(|text| text.contains("made-anew") && text.contains(&tasks)));

    // The same under a running process.
    make_anew(&rig, "tasks");
    works(&rig, &mut second, &[0, 1, 2, 3], 3, 16);
    second.terminate();
    assert_eq!(second.wait(), Some(0));
}

#[test]
fn a_tier_that_is_deleted_under_a_process_stops_nothing_else() {
    let (rig, address) = rig_with(Duration::from_secs(2), SLOW);
    let mut retide = rig.run();
    let producer = rig.producer();
    for partition in 0..3 {
        send(
            &rig,
            &producer,
            partition,
            &format!("called-{partition}"),
            "1",
        );
    }
    for partition in 0..4 {
        let id = format!("parked-{partition}");
        let headers = [
            ("retry-scene", "flaky"),
            ("retry-id", &*id),
            ("retry-delay-ms", "90000"),
        ];
        rig.send_to(partition, &producer, &headers, b"0");
    }
    producer.flush(PATIENCE).unwrap();
    wait_for_records(&rig, "delay.1m", 4);
    let start = Instant::now();
    while rig.target.requests().len() < 6 {
        assert!(start.elapsed() < PATIENCE, "not called twice");
        thread::sleep(Duration::from_millis(20));
    }

    // Calls for tasks from the one are in flight, and the other one has tasks that nobody has read.
    delete_topic(&rig, &rig.topic("delay.5s"));
    delete_topic(&rig, &rig.topic("delay.1m"));
    works(&rig, &mut retide, &[0, 1, 2, 3], 0, 7);
    let gone = rig.topic("delay.1m");
    let told = format!(r#""kind":"records-gone","subject":"{gone}""#);
    wait_for(&address, "/readyz", &told);
    let start = Instant::now();
    let is_told = |text: &String| text.contains("topic-deleted") && text.contains(&gone);
    let alerts = || {
        let alerts = rig.read("alerts").into_iter();
        alerts.filter_map(|alert| String::from_utf8(alert.value?).ok())
    };
    while !alerts().any(|text| is_told(&text)) {
        assert!(start.elapsed() < PATIENCE, "{}", retide.log());
    }
    let metrics = get(&address, "/metrics");
    let lost = metrics
        .lines()
        .find_map(|line| line.strip_prefix("retide_records_gone_total "));
    let lost: u64 = lost.unwrap().parse().unwrap();
    assert!(lost >= 4, "{lost}");

    // When they are there again, all goes on as before.
    init(&rig);
    send(&rig, &producer, 0, "again", "1");
    let ends = rig.ends(8);
    assert!(ends.values().all(|ends| *ends == ["delivered"]), "{ends:?}");
    retide.terminate();
    assert_eq!(retide.wait(), Some(0));
}

#[test]
fn a_partition_that_cannot_be_read_stands_still_alone() {
    let (rig, address) = rig(FLAKY);
    // A transaction that is not ended: readers of its partition see nothing behind its first record.
    let hanging: BaseProducer = config(&rig.bootstrap, "hanging")
        .set("transactional.id", format!("{}-hanging", rig.prefix))
        .set("transaction.timeout.ms", "600000")
        .create()
        .unwrap();
    hanging.init_transactions(PATIENCE).unwrap();
    hanging.begin_transaction().unwrap();
    let order = rig.topic("order");
    let record = BaseRecord::<str, str>::to(&order)
        .key("x")
        .payload("x")
        .partition(2);
    hanging.send(record).map_err(|(error, _)| error).unwrap();
    hanging.flush(PATIENCE).unwrap();

    let mut retide = rig.run();
    works(&rig, &mut retide, &[0, 1, 3], 0, 3);

    let stuck = format!("{order}/2");
    wait_for(&address, "/readyz", &format!(r#""subject":"{stuck}""#));
    let ready = get(&address, "/readyz");
    assert!(ready.starts_with("HTTP/1.1 503"), "{ready}");
    assert!(
        ready.contains(&format!(
            "abort --topic {order} --partition 2 --start-offset 0"
        )),
        "{ready}"
    );
    let doctor = rig.retide(&["doctor", "--no-targets"]);
    let doctor = String::from_utf8(doctor.stdout).unwrap();
    assert!(doctor.contains(&stuck), "{doctor}");
    send(&rig, &rig.producer(), 2, "behind", "0");
    hanging.abort_transaction(PATIENCE).unwrap();
    assert!(rig.ends(4).contains_key("behind"));
    wait_for(&address, "/readyz", "HTTP/1.1 200");

    // The same on a partition that is being read.
    let tier = rig.topic("delay.now");
    hanging.begin_transaction().unwrap();
    let record = BaseRecord::<str, str>::to(&tier)
        .key("x")
        .payload("x")
        .partition(1);
    hanging.send(record).map_err(|(error, _)| error).unwrap();
    hanging.flush(PATIENCE).unwrap();
    wait_for(&address, "/readyz", &format!(r#""subject":"{tier}/1""#));
    wait_for(&address, "/metrics", &format!(r#"subject="{tier}/1""#));
    assert!(
        retide
            .log()
            .contains(&format!("abort --topic {tier} --partition 1"))
    );
    let alerts = rig.read("alerts").into_iter();
    let alerts = alerts.filter_map(|alert| alert.value);
    let mut alerts = alerts.map(|text| String::from_utf8(text).unwrap());
    assert!(alerts.any(|text| text.contains("partition-stuck") && text.contains(&tier)));
    works(&rig, &mut retide, &[0, 2, 3], 1, 7);
    hanging.abort_transaction(PATIENCE).unwrap();
    wait_for(&address, "/readyz", "HTTP/1.1 200");
}

#[test]
fn partitions_added_in_any_order_end_nothing_and_begin_when_all_topics_have_them() {
    let (rig, address) = rig(FLAKY);
    hears_soon(&rig, &address);
    let mut retide = rig.run();
    works(&rig, &mut retide, &[0, 1, 2, 3], 0, 4);
    let widen = |topic: &str| {
        let topic = rig.topic(topic);
        let new = [NewPartitions::new(&topic, 6)];
        let runtime = Runtime::new().unwrap();
        let admin = admin(&rig);
        let widened = admin.create_partitions(&new, &AdminOptions::new());
        runtime.block_on(widened).unwrap();
    };

    widen("tasks");
    // Only some have them.
    wait_for(&address, "/readyz", "partitions-differ");
    assert!(get(&address, "/readyz").starts_with("HTTP/1.1 200"));
    works(&rig, &mut retide, &[0, 1, 2, 3], 1, 8);
    let producer = config(&rig.bootstrap, "producer").create().unwrap();
    send(&rig, &producer, 5, "new-5", "0");
    let init = rig.retide(&["init", "--partitions", "6"]);
    let init = String::from_utf8(init.stdout).unwrap();
    assert_eq!(init.matches("widened from 4").count(), 11, "{init}");

    rig.target.wait_for(9);
    let seen = rig.target.requests();
    assert!(
        seen.iter()
            .any(|request| request.text("retry-id") == "new-5")
    );
    works(&rig, &mut retide, &[0, 1, 2, 3], 2, 12);
    wait_for(&address, "/metrics", "retide_owned_shards 6");
    assert_eq!(
        rig.retide(&["init", "--partitions", "4"]).status.code(),
        Some(4),
        "partitions are not taken away"
    );
}
