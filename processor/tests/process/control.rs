//! Commands, on a real broker: how they are sent, what they say at their end, and that one id is found without its tier being read.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use serde_json::{Value, json};

use crate::commands::get;
use crate::rig::Rig;
use crate::support::{PATIENCE, free_address};

/// Sends a record to the commands topic.
pub(crate) fn send(rig: &Rig, producer: &BaseProducer, key: &str, request: &Value) {
    let (topic, value) = (rig.topic("commands"), request.to_string());
    let record = BaseRecord::to(&topic).key(key).payload(&value);
    producer.send(record).map_err(|(error, _)| error).unwrap();
    producer.poll(Duration::ZERO);
}

/// Waits until so many commands have ended, one soon enough after the other, and gives what their ends say by id.
pub(crate) fn ended(rig: &Rig, count: usize) -> BTreeMap<String, Value> {
    let reader = rig.reader("commands");
    let mut start = Instant::now();
    let mut ends = BTreeMap::new();
    while ends.len() < count {
        assert!(
            start.elapsed() < PATIENCE,
            "{} of {count} commands have ended: {:?}",
            ends.len(),
            ends.keys()
        );
        let Some(record) = reader.next(Duration::from_millis(100)) else {
            continue;
        };
        if record.text("retry-command-stage") == "ended" {
            let value: Value = serde_json::from_slice(&record.value.unwrap()).unwrap();
            let id = String::from_utf8(record.key.unwrap()).unwrap();
            let before = ends.insert(id, value);
            assert_eq!(before, None, "ended twice");
            start = Instant::now();
        }
    }
    ends
}

/// How many tasks the end of a command says it has met, by what was done.
pub(crate) fn counts(end: &Value) -> (u64, u64) {
    let number = |key: &str| end[key].as_u64().unwrap_or_else(|| panic!("{end}"));
    (number("done"), number("too_late"))
}

/// Records of tiers that a process has read for commands.
fn looked(address: &str) -> u64 {
    let (_, metrics) = get(address, "/metrics").unwrap();
    let mut lines = metrics.lines();
    let value = lines.find_map(|line| line.strip_prefix("retide_command_looked_records_total "));
    value.unwrap().parse().unwrap()
}

#[test]
fn one_id_is_found_without_its_tier_being_read() {
    /// Tasks of a tier: three ranges of each partition.
    const PARKED: usize = 12_000;
    /// Records that are read for an id at most: one range, in each of two looks.
    const FEW: u64 = 3_000;
    let scene =
        "[scenes.many]\ntarget = { http = { url = 'http://TARGET/flaky', timeout = '1m' } }\n";
    let rig = Rig::new(Duration::ZERO, scene);
    let address = free_address();
    let admin = format!("[admin]\nlisten = '{address}'\n");
    rig.configure(&format!("{}{admin}{scene}", rig.basics()));
    let producer = rig.producer();
    let name = |number: usize| format!("many-{number}");
    for number in 0..PARKED {
        let id = name(number);
        let headers = [
            ("retry-scene", "many"),
            ("retry-id", &*id),
            ("retry-delay-ms", "7200000"),
        ];
        rig.send(&producer, &headers, b"0");
    }
    producer.flush(PATIENCE).unwrap();
    let cancel = |id: &str| {
        let select = json!({ "id": id });
        let request =
            json!({ "command": "cancel", "id": id, "select": select, "expires_in": "0s" });
        send(&rig, &producer, id, &request);
        producer.flush(PATIENCE).unwrap();
    };

    let first = rig.run();
    let (reader, mut parked) = (rig.reader("events"), 0);
    let start = Instant::now();
    while parked < PARKED {
        assert!(start.elapsed() < PATIENCE, "{parked} are parked");
        let event = reader.next(Duration::from_millis(100));
        parked += usize::from(event.is_some_and(|event| event.text("retry-event") == "parked"));
    }
    cancel(&name(1_234));
    let mut ends = ended(&rig, 1);
    let read = looked(&address);
    assert!(read <= FEW, "{read} were read for one");
    // The next one knows what this one has known, and the one after that: one has ended in order, the other not.
    first.terminate();
    first.wait();
    let second = rig.run();
    cancel(&name(4_321));
    ended(&rig, 2);
    let read = looked(&address);
    assert!(read <= FEW, "{read} were read for one after a restart");
    second.kill();
    let _third = rig.run();
    cancel(&name(9_876));
    cancel("not-there");
    ends.extend(ended(&rig, 4));
    let read = looked(&address);
    assert!(read <= 2 * FEW, "{read} were read for two after a crash");
    for number in [1_234, 4_321, 9_876] {
        let end = &ends[&name(number)];
        assert_eq!(counts(end), (1, 0), "{end}");
    }
    assert_eq!(ends["not-there"]["not_found"], 1);
    let select = json!({ "scene": "many" });
    let all = json!({ "command": "cancel", "id": "all", "select": select });
    send(&rig, &producer, "all", &all);
    producer.flush(PATIENCE).unwrap();
    let ends = ended(&rig, 5);
    assert_eq!(counts(&ends["all"]), (PARKED as u64 - 3, 0));
}
