//! Histories in which every promise is kept: those that once broke one, and two thousand more.

use std::env;
use std::io::{self, Write as _};

use retide_sim::{AtBroken, Bug, Keep, campaign, play};

/// Every seed that ever failed.
const FAILED_ONCE: &str = include_str!("../seeds.txt");

/// Histories that are played: those of a build without optimization take ten times as long, see `apart.rs`.
const SEEDS: u64 = if cfg!(feature = "planted") { 2_000 } else { 50 };

/// Tests run beside others; two at a time leave room for them.
const JOBS: usize = 2;

#[test]
fn every_promise_is_kept() {
    for seed in FAILED_ONCE.lines().filter(|line| !line.starts_with('#')) {
        let seed = seed.parse().unwrap();
        let report = play(seed, Bug::None, Keep::Hash);
        assert_eq!(report.broken, None, "seed {seed}, which failed before");
    }

    let summary = campaign(0..SEEDS, JOBS, Bug::None, AtBroken::GoOn);

    let broken: Vec<_> = summary
        .broken
        .iter()
        .map(|report| (report.seed, report.broken.clone()))
        .collect();
    assert_eq!(broken, []);
    assert_eq!(summary.histories, SEEDS);
    // A world in which nothing happens keeps every promise.
    assert!(summary.figures.attempts > SEEDS * 10, "{summary:?}");
    assert!(summary.figures.duplicates > SEEDS, "{summary:?}");
    assert!(summary.figures.openings > SEEDS, "{summary:?}");
    assert!(summary.figures.deferred > SEEDS, "{summary:?}");
    assert!(summary.figures.shared > SEEDS * 8, "{summary:?}");
    assert!(summary.figures.told_dead > SEEDS, "{summary:?}");
}

#[test]
fn the_same_seed_is_the_same_history() {
    // Of the last ones, some were not.
    for seed in (0..30).chain([1_294, 646_891]) {
        let first = play(seed, Bug::None, Keep::Hash);
        let second = play(seed, Bug::None, Keep::Text);
        let other = play(seed + 1, Bug::None, Keep::Hash);

        assert_eq!(first.hash, second.hash, "seed {seed}");
        assert_ne!(first.hash, other.hash, "seed {seed}");
    }
}

/// `SEED=7 cargo test -p retide-sim replay -- --nocapture` prints the history of seed 7.
#[test]
fn replay() {
    let Ok(seed) = env::var("SEED") else { return };

    let report = play(seed.parse().unwrap(), Bug::None, Keep::Text);

    let _ = io::stderr().write_all(report.text.as_bytes());
    assert_eq!(
        report.broken, None,
        "seed {seed}, hash {:016x}",
        report.hash
    );
}

/// `REPLAYS=0..500 cargo test -p retide-sim replays_of -- --nocapture` plays histories of replays only.
#[test]
fn replays_of() {
    let Ok(range) = env::var("REPLAYS") else {
        return;
    };
    let (from, to) = range.split_once("..").unwrap();

    for seed in from.parse::<u64>().unwrap()..to.parse().unwrap() {
        let broken = retide_sim::play_replays(seed, Bug::None);
        assert_eq!(broken, None, "seed {seed}");
    }
}
