//! Scenes that keep the order of their keys, as their target sees it.

use std::collections::BTreeMap;
use std::fs;
use std::ops::Range;
use std::time::{Duration, Instant};

use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseRecord, Producer};

use crate::rig::{FLAKY, Request, Rig};
use crate::support::PATIENCE;

/// How much there is to do.
#[derive(Clone, Copy)]
struct Volume {
    /// Keys.
    keys: usize,
    /// Tasks of each of them.
    tasks: usize,
}

impl Volume {
    const fn all(self) -> usize {
        self.keys * self.tasks
    }
}

/// The scene, in this order.
fn scene(ordering: &str) -> String {
    format!("{FLAKY}ordering = \"{ordering}\"\n")
}

/// How often a task fails: as a rule never or once or twice, and sometimes for good. Anything that is the same each time will do.
fn failures(key: usize, number: usize) -> u32 {
    match (key * 7_919 + number * 104_729) % 97 {
        0..55 => 0,
        55..80 => 1,
        80..92 => 2,
        _ => 9,
    }
}

/// Produces the tasks of all keys, in turn, to this scene; they fail as often as `failures` says.
fn produce(rig: &Rig, scene: &str, volume: Volume, failures: impl Fn(usize, usize) -> u32) {
    produce_some(rig, scene, volume.keys, 0..volume.tasks, failures);
}

/// As [`produce`], with these numbers.
fn produce_some(
    rig: &Rig,
    scene: &str,
    keys: usize,
    numbers: Range<usize>,
    failures: impl Fn(usize, usize) -> u32,
) {
    let producer = rig.producer();
    let topic = rig.topic("tasks");
    for number in numbers {
        for key in 0..keys {
            let (id, name) = (format!("{key}/{number}"), format!("key-{key}"));
            let mut headers = OwnedHeaders::new();
            for (key, value) in [("retry-scene", scene), ("retry-id", id.as_str())] {
                let value = Some(value);
                headers = headers.insert(Header { key, value });
            }
            let value = failures(key, number).to_string();
            let record = BaseRecord::to(&topic)
                .key(&name)
                .payload(&value)
                .headers(headers);
            producer.send(record).map_err(|(error, _)| error).unwrap();
            producer.poll(Duration::ZERO);
        }
    }
    producer.flush(PATIENCE).unwrap();
}

/// The key and the number of a task.
fn place(id: &str) -> (usize, usize) {
    let (key, number) = id.split_once('/').unwrap();
    (key.parse().unwrap(), number.parse().unwrap())
}

/// Attempts that came before the last one of an earlier task of their key.
fn overtakers(requests: &[Request]) -> Vec<String> {
    let mut furthest: BTreeMap<usize, usize> = BTreeMap::new();
    let mut overtakers = Vec::new();
    for request in requests {
        let id = request.text("retry-id");
        let (key, number) = place(&id);
        let furthest = furthest.entry(key).or_default();
        if number < *furthest {
            overtakers.push(format!("{key}/{furthest} before {id}"));
        }
        *furthest = number.max(*furthest);
    }
    overtakers
}

/// Every task has ended once, as it has to.
fn check_ends(rig: &Rig, volume: Volume) {
    let ends = rig.ends(volume.all());
    assert_eq!(ends.len(), volume.all());
    for (id, outcomes) in &ends {
        let (key, number) = place(id);
        let expected = if failures(key, number) > 3 {
            "dead"
        } else {
            "delivered"
        };
        assert_eq!(outcomes, &[expected], "{id}");
    }
    assert_eq!(rig.read("callbacks").len(), volume.all());
    assert_eq!(rig.target.early(), 0);
}

#[test]
fn the_order_of_a_thousand_keys_survives_three_kills() {
    let volume = Volume {
        keys: 1_000,
        tasks: 10,
    };
    let rig = Rig::new(Duration::from_millis(20), &scene("key"));
    let start = Instant::now();
    let survivor = rig.run();
    let mut victim = rig.run();

    // Some before each kill: a fast machine does not run out of work while a process joins.
    for (kill, numbers) in (1..).zip([0..4, 4..7, 7..volume.tasks]) {
        let seen = rig.target.count();
        produce_some(&rig, "flaky", volume.keys, numbers, failures);
        rig.target.wait_for(seen + 2_500);
        victim.kill();
        eprintln!("kill {kill} at {} attempts", rig.target.count());
        victim = rig.run();
    }
    check_ends(&rig, volume);

    let requests = rig.target.requests();
    let attempts = rig.target.attempts();
    eprintln!(
        "{} attempts, {} of them made twice, in {:?}",
        requests.len(),
        requests.len() - attempts.len(),
        start.elapsed()
    );
    assert_eq!(overtakers(&requests), Vec::<String>::new());
    let parked =
        rig.read("delay.now").len() + rig.read("delay.5s").len() + rig.read("delay.10s").len();
    eprintln!("{parked} records parked");
    // Nothing is remembered of a key whose tasks have ended: the last that was written of each is a tombstone.
    drop((survivor, victim));
    let last = remembered(&rig);
    assert!(!last.is_empty(), "nothing was written");
    assert_eq!(last.values().flatten().count(), 0, "{last:?}");
}

/// Puts the scene in force.
fn apply(rig: &Rig, scene: &str) {
    let text = scene.replace("TARGET", &rig.target.address.to_string());
    fs::write(rig.file("scenes.toml"), text).unwrap();
    let output = rig.retide(&["scenes", "apply", "scenes.toml"]);
    assert!(output.status.success(), "{output:?}");
}

/// What is known of keys, as it was written last.
fn remembered(rig: &Rig) -> BTreeMap<Option<Vec<u8>>, Option<Vec<u8>>> {
    let records = rig.read("order").into_iter();
    records.map(|record| (record.key, record.value)).collect()
}

#[test]
fn a_scene_that_becomes_ordered_keeps_its_order_through_a_kill() {
    const KEYS: usize = 50;
    let rig = Rig::new(Duration::from_millis(20), "");
    apply(&rig, &scene("none"));
    let retide = rig.run();
    produce_some(&rig, "flaky", KEYS, 0..2, failures);
    rig.ends(2 * KEYS);
    assert!(remembered(&rig).is_empty());
    let before = rig.target.count();

    apply(&rig, &scene("key"));
    retide.wait_for_times(2, "scene rules changed");
    produce_some(&rig, "flaky", KEYS, 2..10, failures);
    rig.target.wait_for(before + 2 * KEYS);
    retide.kill();
    let _successor = rig.run();
    let all = Volume {
        keys: KEYS,
        tasks: 10,
    };
    check_ends(&rig, all);

    let requests = &rig.target.requests()[before..];
    assert_eq!(overtakers(requests), Vec::<String>::new());
    let remembered = remembered(&rig);
    assert!(!remembered.is_empty(), "nothing was written");
    assert_eq!(remembered.values().flatten().count(), 0, "{remembered:?}");
}

#[test]
fn what_is_known_of_keys_is_forgotten_as_tasks_end_also_where_no_scene_is_ordered_any_more() {
    let all = Volume { keys: 50, tasks: 3 };
    let rig = Rig::new(Duration::ZERO, "");
    apply(&rig, &scene("key").replace("700ms", "4s"));
    let retide = rig.run();
    produce(&rig, "flaky", all, |_, number| u32::from(number == 0));
    rig.target.wait_for(all.keys);
    let deadline = Instant::now() + PATIENCE;
    while remembered(&rig).len() < all.keys {
        assert!(Instant::now() < deadline, "not written");
    }
    retide.kill();

    apply(&rig, &scene("none"));
    let _successor = rig.run();
    let ends = rig.ends(all.all());

    assert_eq!(ends.len(), all.all());
    // The last of them is committed with the last end.
    let remembered = remembered(&rig);
    assert_eq!(remembered.len(), all.keys);
    assert_eq!(remembered.values().flatten().count(), 0, "{remembered:?}");
}

#[test]
fn without_order_tasks_overtake_those_of_their_key_that_fail() {
    let volume = Volume {
        keys: 50,
        tasks: 10,
    };
    let rig = Rig::new(Duration::ZERO, &scene("none"));
    let _retide = rig.run();

    produce(&rig, "flaky", volume, failures);
    check_ends(&rig, volume);

    assert!(!overtakers(&rig.target.requests()).is_empty());
    assert_eq!(rig.read("order").len(), 0);
}

/// Attempts per second from the first to the last of `volume`, each of which fails `fails` times, in this scene.
fn pace(rig: &Rig, scene: &str, volume: Volume, fails: u32) -> f64 {
    let before = rig.target.count();
    let attempts = volume.all() * (fails as usize + 1);
    produce(rig, scene, volume, |_, _| fails);
    let retide = rig.run();
    rig.target.wait_for(before + attempts);
    retide.terminate();
    assert_eq!(retide.wait(), Some(0));
    let requests = &rig.target.requests()[before..];
    assert_eq!(requests.len(), attempts);
    let took = requests[attempts - 1].at_micros - requests[0].at_micros;
    attempts as f64 / (took as f64 / 1e6)
}

/// Prints what order costs.
#[test]
#[ignore = "it measures; that nothing is lost or made twice is shown by the others"]
fn what_order_costs() {
    let keyed = scene("key").replace("[scenes.flaky]", "[scenes.keyed]");
    let rig = Rig::new(Duration::ZERO, &format!("{FLAKY}{keyed}"));
    let of = |keys, tasks| Volume { keys, tasks };

    for (what, volume, fails) in [
        ("4,000 keys, no failures", of(4_000, 1), 0),
        ("4,000 keys, one failure each", of(4_000, 1), 1),
        ("400 keys with 10 tasks, no failures", of(400, 10), 0),
        ("one key with 50 tasks, no failures", of(1, 50), 0),
    ] {
        let free = pace(&rig, "flaky", volume, fails);
        let ordered = pace(&rig, "keyed", volume, fails);
        eprintln!(
            "{what}: {ordered:.0}/s in order, {free:.0}/s without, {:.2}",
            ordered / free
        );
    }
}
