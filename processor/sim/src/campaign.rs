//! Campaigns: many histories, several at a time.
//!
//! The only place with threads; a history never knows of another one.

use std::ops::Range;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use crate::{Bug, Figures, Keep, Report, play};

/// What a campaign has shown.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// How many histories were played.
    pub histories: u64,
    /// Those in which a promise was broken, by seed.
    pub broken: Vec<Report>,
    /// Figures of all of them.
    pub figures: Figures,
}

/// Whether a campaign goes on when a promise was broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AtBroken {
    /// It goes on.
    GoOn,
    /// It ends; seeds below the first one found are still played.
    Stop,
}

/// Plays the histories of `seeds`, `jobs` at a time, with `bug` planted.
pub fn campaign(seeds: Range<u64>, jobs: usize, bug: Bug, at_broken: AtBroken) -> Summary {
    let next = AtomicU64::new(seeds.start);
    let stop = AtomicBool::new(false);
    let summary = Mutex::new(Summary::default());
    thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.end {
                        break;
                    }
                    let report = play(seed, bug, Keep::Hash);
                    if report.broken.is_some() && at_broken == AtBroken::Stop {
                        stop.store(true, Ordering::Relaxed);
                    }
                    let mut summary = summary.lock().unwrap_or_else(PoisonError::into_inner);
                    summary.add(report);
                }
            });
        }
    });
    let mut summary = summary.into_inner().unwrap_or_else(PoisonError::into_inner);
    summary.broken.sort_by_key(|report| report.seed);
    summary
}

// === impl Summary ===

impl Summary {
    /// Adds what a history has shown.
    fn add(&mut self, report: Report) {
        self.histories += 1;
        self.figures = self.figures.and(report.figures);
        if report.broken.is_some() {
            self.broken.push(report);
        }
    }
}
