//! A rate, as the target of a whole group sees it.

use std::ops::Range;
use std::thread;
use std::time::{Duration, Instant};

use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseRecord, Producer};

use crate::rig::{FLAKY, Rig};
use crate::support::PATIENCE;

/// Attempts in a second.
const LIMIT: usize = 100;

/// Attempts that may come at once besides: enough for late wakes to cost nothing.
const BURST: usize = 20;

/// How far the ways of two attempts to a target that is awake may differ: what started first may arrive together with what started this
/// much later. Three times the most that was seen; short, so that who has more than one burst at once is seen in a single second.
const ON_THE_WAY: Duration = Duration::from_millis(120);

/// How long before an attempt came a target that was not awake may have kept it from being seen.
const WAKING: Duration = Duration::from_secs(2);

#[test]
fn a_rate_is_that_of_the_whole_group_through_a_join_and_a_kill() {
    const TASKS: usize = 5_000;
    // Beyond, the first shards have no task left, and their part of the rate is unused.
    const MEASURED: usize = 4_250;
    let rig = Rig::calm(Duration::ZERO, &scenes());
    produce(&rig, TASKS, |number| number.to_string());
    let first = rig.run();
    let victim = rig.run();
    let third = rig.run();

    rig.target.wait_for(rig.target.count() + 1_000);
    let fourth = rig.run();
    rig.target.wait_for(rig.target.count() + 500);
    victim.kill();
    let killed = rig.target.count();
    rig.target.wait_for(killed + (MEASURED - killed) / 2);
    rig.target.wait_for(MEASURED);
    let ends = rig.ends(TASKS);

    assert!(ends.values().all(|outcomes| outcomes == &["delivered"]));
    // The last one has waited for most of a minute, and for its rate most of that.
    let times = times(&rig);
    let last = rig
        .target
        .requests()
        .into_iter()
        .max_by_key(|request| request.at_micros);
    let id = last.unwrap().headers["retry-id"]
        .to_str()
        .unwrap()
        .to_owned();
    let explained = rig.retide(&["--output", "json", "explain", &id]);
    let story: serde_json::Value = serde_json::from_slice(&explained.stdout).unwrap();
    let lines = story["stories"][0]["lines"].as_array().unwrap();
    // That of the attempt: a move to another shard tells how late it is until then.
    let lateness = lines.iter().rev().find_map(|line| line.get("lateness"));
    eprintln!("{id}: late by {lateness:?}");
    let rate = lateness.and_then(|causes| causes["rate"].as_u64());
    assert!(rate > Some(1_000_000), "{lines:?}");
    let (used, twice) = (used(&times[..MEASURED]), times.len() - TASKS);
    eprintln!("{used:.3} of the rate used, {twice} attempts twice");
    check_spans(&times, &rig.target.stalls());
    // For a seventh of the time nobody has the shards of the killed one, which are a quarter of all, or half of them.
    assert!(used >= 0.9, "{used} of the rate used");
    drop((first, third, fourth));
}

#[test]
fn a_shard_that_has_all_the_tasks_lets_the_others_help() {
    const TASKS: usize = 5_000;
    // Half a minute.
    const MEASURED: usize = 30 * LIMIT;
    let rig = Rig::calm(Duration::ZERO, &scenes());
    produce(&rig, TASKS, |_| "all of them".to_owned());

    let running = [rig.run(), rig.run()];
    rig.target.wait_for(MEASURED / 2);
    rig.target.wait_for(MEASURED);

    let times = times(&rig);
    let used = used(&times[..MEASURED]);
    eprintln!("{used:.3} of the rate used");
    check_spans(&times, &rig.target.stalls());
    assert!(used >= 0.9, "{used} of the rate used");
    drop(running);
}

#[test]
fn a_rate_that_is_slower_than_restarts_lets_attempts_start_and_is_kept() {
    // An attempt in so many seconds, and a life of a process that is shorter.
    const EVERY: Duration = Duration::from_secs(3);
    const LIFE: Duration = Duration::from_millis(1_500);
    const ATTEMPTS: usize = 3;
    let rig = Rig::calm(
        Duration::ZERO,
        &format!("{FLAKY}rate = {{ limit = 1, per = '3s' }}\n"),
    );
    produce(&rig, 2 * ATTEMPTS, |number| number.to_string());
    let began = Instant::now();
    let mut killed = 0;

    // Long enough for a machine that is slow; one that keeps its rate needs some four times three seconds.
    for life in 0..25 {
        let process = rig.run();
        process.wait_for("shards assigned");
        let born = Instant::now();
        while rig.target.count() < ATTEMPTS && born.elapsed() < LIFE {
            thread::sleep(Duration::from_millis(20));
        }
        if rig.target.count() >= ATTEMPTS {
            break;
        }
        // One of four dies.
        if life % 4 == 2 {
            process.kill();
            killed += 1;
        } else {
            process.terminate();
            assert_eq!(process.wait(), Some(0));
        }
    }

    let times = times(&rig);
    eprintln!("{times:?}, {killed} killed, {:?}", began.elapsed());
    assert!(times.len() >= ATTEMPTS, "{} attempts", times.len());
    for pair in times.windows(2) {
        let apart = Duration::from_micros((pair[1] - pair[0]) as u64);
        assert!(apart + ON_THE_WAY >= EVERY, "{apart:?} apart");
    }
}

/// Produces so many tasks that are due at once, each with its key: without keys, the producer sends most of them to one partition.
fn produce(rig: &Rig, tasks: usize, key: impl Fn(usize) -> String) {
    let producer = rig.producer();
    let topic = rig.topic("tasks");
    for number in 0..tasks {
        let header = Header {
            key: "retry-scene",
            value: Some("flaky"),
        };
        let key = key(number);
        let record = BaseRecord::<str, str>::to(&topic)
            .key(&key)
            .payload("0")
            .headers(OwnedHeaders::new().insert(header));
        producer.send(record).map_err(|(error, _)| error).unwrap();
        producer.poll(Duration::ZERO);
    }
    producer.flush(PATIENCE).unwrap();
}

/// The one scene, with its rate.
fn scenes() -> String {
    format!("{FLAKY}rate = {{ limit = {LIMIT}, per = '1s', burst = {BURST} }}\n")
}

/// When attempts came to the target, in order.
fn times(rig: &Rig) -> Vec<u128> {
    let requests = rig.target.requests();
    let mut times: Vec<u128> = requests.iter().map(|request| request.at_micros).collect();
    times.sort_unstable();
    times
}

/// The part of the rate that was used.
fn used(times: &[u128]) -> f64 {
    let seconds = (times[times.len() - 1] - times[0]) as f64 / 1e6;
    times.len() as f64 / (seconds * LIMIT as f64)
}

/// No span of time has more than the limit and one burst. Where the target was not awake, what had been sent meanwhile came in a span
/// that begins then.
fn check_spans(times: &[u128], stalls: &[Range<u128>]) {
    let (way, waking) = (ON_THE_WAY.as_micros(), WAKING.as_micros());
    let asleep = |at: u128| -> u128 {
        let (from, to) = (at - waking, at + way);
        let overlaps = stalls
            .iter()
            .filter(|stall| stall.start < to && stall.end > from);
        overlaps
            .map(|stall| stall.end.min(to) - stall.start.max(from))
            .sum()
    };
    let late: Vec<u128> = times.iter().map(|at| way + asleep(*at)).collect();
    for span in [1, 2, 5, 10, 20, 40, 80].map(Duration::from_secs) {
        let micros = span.as_micros();
        let spans = times
            .iter()
            .zip(&late)
            .enumerate()
            .map(|(first, (at, late))| {
                let count = times.partition_point(|time| *time < at + micros) - first;
                let allowed = (micros + late) * LIMIT as u128 / 1_000_000 + BURST as u128;
                (count as i128 - allowed as i128, count, allowed)
            });
        let (over, most, allowed) = spans.max().unwrap();
        eprintln!("{most} in {span:?}, where {allowed} may come");
        assert!(over <= 0, "{most} in {span:?}, where {allowed} may come");
    }
}
