//! Campaigns, on a real broker: dead letters that are replayed exactly once, whoever dies meanwhile, and stopped where they fail again.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use rdkafka::producer::Producer;
use serde_json::{Value, json};

use crate::control::{ended, send};
use crate::rig::{Reader, Rig};
use crate::support::PATIENCE;

/// A scene whose tasks have one attempt, which fails, and one whose target is well.
const SCENES: &str = r#"
[scenes.flaky]
target = { http = { url = "http://TARGET/flaky", timeout = "1m" } }
backoff = { fixed = { delay = "1s" } }
max_attempts = 1
brake = false
[scenes.mended]
target = { http = { url = "http://TARGET/mended", timeout = "1m" } }
backoff = { fixed = { delay = "1s" } }
"#;

/// Follows what is said of campaigns.
struct Follower {
    /// The commands topic.
    reader: Reader,
    /// The last word on each.
    last: BTreeMap<String, Value>,
}

// === impl Follower ===

impl Follower {
    /// Knows nothing yet.
    fn new(rig: &Rig) -> Self {
        Self {
            reader: rig.reader("commands"),
            last: BTreeMap::new(),
        }
    }

    /// Waits until that is so of a campaign, and gives it.
    fn wait(&mut self, name: &str, until: impl Fn(&Value) -> bool) -> Value {
        let start = Instant::now();
        loop {
            if let Some(last) = self.last.get(name).filter(|last| until(last)) {
                return last.clone();
            }
            assert!(
                start.elapsed() < PATIENCE,
                "{name} is {:?}",
                self.last.get(name)
            );
            let Some(record) = self.reader.next(Duration::from_millis(100)) else {
                continue;
            };
            if record.text("retry-command-stage") == "campaign" {
                let value: Value = serde_json::from_slice(&record.value.unwrap()).unwrap();
                let name = value["campaign"].as_str().unwrap().to_owned();
                self.last.insert(name, value);
            }
        }
    }

    /// Waits for a state.
    fn wait_for(&mut self, name: &str, state: &str) -> Value {
        self.wait(name, |last| last["state"] == state)
    }
}

/// How often each task was told so, by an event.
fn told(rig: &Rig, event: &str) -> BTreeMap<String, usize> {
    let mut told = BTreeMap::new();
    for record in rig.read("events") {
        if record.text("retry-event") == event {
            *told.entry(record.text("retry-id")).or_default() += 1;
        }
    }
    told
}

/// Waits until so many letters are there.
fn letters(rig: &Rig, count: usize) {
    let (reader, mut seen, start) = (rig.reader("dead-letters"), 0, Instant::now());
    while seen < count {
        assert!(start.elapsed() < PATIENCE, "{seen} of {count} have died");
        seen += usize::from(reader.next(Duration::from_millis(100)).is_some());
    }
}

#[test]
fn a_cohort_is_stopped_while_its_target_fails_and_replayed_once_when_it_does_not_over_two_kills() {
    const TASKS: usize = 400;
    let rig = Rig::new(Duration::ZERO, SCENES);
    let producer = rig.producer();
    let survivor = rig.run();
    let first = rig.run();
    rig.produce(0, (0..TASKS).map(|_| 9));
    letters(&rig, TASKS);
    let before = rig.target.count();
    let mut campaigns = Follower::new(&rig);

    // The target still fails.
    let broken = json!({ "command": "replay", "name": "broken", "select": { "scene": "flaky" }, "ramp": [5, 50], "by": "ann" });
    send(&rig, &producer, "broken", &broken);
    producer.flush(PATIENCE).unwrap();
    let stopped = campaigns.wait_for("broken", "stopped");
    let calls = rig.target.count() - before;
    assert!(calls < 30, "{calls} calls: {stopped}");
    let abort = json!({ "command": "abort-campaign", "name": "broken", "id": "stop it" });
    send(&rig, &producer, "abort", &abort);
    producer.flush(PATIENCE).unwrap();
    let aborted = campaigns.wait("broken", |last| {
        last["state"] == "aborted" && last["out"] == 0
    });
    let replayed = aborted["replayed"].as_u64().unwrap();
    assert!((5..30).contains(&replayed), "{aborted}");
    assert_eq!(aborted["dead"], replayed, "{aborted}");
    letters(&rig, TASKS + replayed as usize);

    // Where it does not fail, all are replayed: those that have died again by their last letters.
    let mend = json!({
        "command": "replay", "name": "mend", "select": { "scene": "flaky" }, "scene": "mended",
        "ramp": [40, 80, 160], "by": "ann", "reason": "it is back",
        "set_headers": [{ "name": "mended-by", "value": "ann" }],
    });
    send(&rig, &producer, "mend", &mend);
    producer.flush(PATIENCE).unwrap();
    campaigns.wait("mend", |last| last["replayed"].as_u64() >= Some(60));
    first.kill();
    let second = rig.run();
    campaigns.wait("mend", |last| last["replayed"].as_u64() >= Some(160));
    survivor.kill();
    let done = campaigns.wait_for("mend", "done");

    assert_eq!(done["replayed"], TASKS, "{done}");
    assert_eq!(done["delivered"], TASKS, "{done}");
    assert_eq!(done["came_back"], TASKS, "{done}");
    assert_eq!(
        done["ineligible"],
        json!({ "replayed-before": replayed }),
        "{done}"
    );
    let mut times = told(&rig, "replayed");
    assert_eq!(times.len(), TASKS);
    times.retain(|_, times| *times > 1);
    assert_eq!(times.len() as u64, replayed);
    let delivered = told(&rig, "delivered");
    assert_eq!(delivered.len(), TASKS);
    assert!(delivered.values().all(|times| *times == 1));
    assert_eq!(
        rig.read("dead-letters").len() as u64,
        TASKS as u64 + replayed
    );
    let requests = rig.target.requests();
    let mut mended = requests.iter().filter(|it| it.path == "mended");
    assert!(mended.all(|it| it.text("mended-by") == "ann" && it.body == b"9"));
    let ends = ended(&rig, 3);
    assert!(
        ends.values().all(|end| end.get("refused").is_none()),
        "{ends:?}"
    );
    drop(second);
}
