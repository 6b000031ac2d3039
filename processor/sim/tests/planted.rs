//! Planted bugs: the judge notices every one.
//!
use std::io::{self, Write as _};
use std::{env, panic};

use retide_sim::{AtBroken, Bug, campaign};

/// Histories within which a bug has to be noticed: most are within 20, the rarest, a clock set back at just the wrong moment, once in some
/// two thousand.
const MOST: u64 = 10_000;

/// Tests run beside others; two at a time leave room for them.
const JOBS: usize = 2;

#[test]
fn every_planted_bug_is_noticed() {
    // Engines that notice their own bug panic; the report says so.
    panic::set_hook(Box::new(|_| {}));
    let mut table = String::new();
    let mut unnoticed = Vec::new();

    for bug in Bug::all() {
        let summary = campaign(0..MOST, JOBS, bug, AtBroken::Stop);
        match summary.broken.first() {
            Some(report) => {
                let why = report.broken.as_deref().unwrap_or_default();
                let within = report.seed + 1;
                let line = format!("{bug:?}: within {within} seeds: {why}\n");
                // At once: a bug that takes long to be noticed is seen while it does.
                let _ = io::stderr().write_all(line.as_bytes());
                table.push_str(&line);
            }
            None => unnoticed.push(bug),
        }
    }

    let _ = panic::take_hook();
    assert_eq!(unnoticed, [], "{table}");
}

/// `BUG=Early FROM=0 SEEDS=500 cargo test -p retide-sim --features planted --test planted how_often -- --nocapture` says which of so many
/// histories notice a bug.
#[test]
fn how_often() {
    let Ok(name) = env::var("BUG") else { return };
    let number =
        |name, otherwise| env::var(name).map_or(otherwise, |number| number.parse().unwrap());
    let (from, seeds) = (number("FROM", 0), number("SEEDS", MOST));
    let is_it = |bug: &Bug| [name.clone(), format!("Core({name})")].contains(&format!("{bug:?}"));
    let mut all = Bug::all().into_iter().chain(Bug::rare());
    let bug = all.find(is_it).unwrap();
    panic::set_hook(Box::new(|_| {}));

    let summary = campaign(from..from + seeds, JOBS, bug, AtBroken::GoOn);

    let _ = panic::take_hook();
    let mut out = io::stderr();
    for report in &summary.broken {
        let why = report.broken.as_deref().unwrap_or_default();
        let _ = writeln!(out, "{bug:?}: seed {}: {why}", report.seed);
    }
    let broken = summary.broken.len();
    let _ = writeln!(out, "{bug:?}: {broken} of {seeds}");
}
