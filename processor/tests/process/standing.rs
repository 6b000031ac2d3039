//! Commands that stand when a shard changes hands, on a real broker: the next owner has read them before it calls anybody.

use std::time::{Duration, Instant};

use rdkafka::producer::{BaseRecord, Producer};
use serde_json::json;

use crate::rig::Rig;
use crate::support::PATIENCE;

/// Commands that wait for tasks, each for one: so many that reading them takes longer than reading what is due.
const STAND: usize = 400;

const SCENES: &str = "[scenes.pay]\n\
    target = { http = { url = \"http://TARGET/flaky\", timeout = \"1m\" } }\n\
    backoff = { fixed = { delay = \"2h\" } }\nmax_attempts = 4\n";

#[test]
fn the_next_owner_has_read_what_stands_before_it_calls() {
    let rig = Rig::new(Duration::ZERO, SCENES);
    let producer = rig.producer();
    let first = rig.run();
    let topic = rig.topic("commands");
    for number in 0..STAND {
        let id = format!("t-{number}");
        let request = json!({ "command": "cancel", "select": { "id": id } }).to_string();
        let record = BaseRecord::<str, str>::to(&topic).payload(&request);
        producer.send(record).map_err(|(error, _)| error).unwrap();
        producer.poll(Duration::ZERO);
    }
    producer.flush(PATIENCE).unwrap();
    let reader = rig.reader("commands");
    let (start, mut ended) = (Instant::now(), 0);
    while ended < STAND {
        assert!(start.elapsed() < PATIENCE, "{ended} of {STAND} have ended");
        if let Some(record) = reader.next(Duration::from_millis(100)) {
            ended += usize::from(record.text("retry-command-stage") == "ended");
        }
    }

    first.kill();
    for number in 0..STAND {
        let id = format!("t-{number}");
        let headers = [("retry-scene", "pay"), ("retry-id", &*id)];
        rig.send(&producer, &headers, b"0");
    }
    producer.flush(PATIENCE).unwrap();
    let _second = rig.run();

    let ends = rig.ends(STAND);
    let others = ends.iter().filter(|(_, ends)| **ends != ["cancelled"]);
    assert_eq!(others.collect::<Vec<_>>(), []);
    assert_eq!(rig.target.count(), 0);
}
