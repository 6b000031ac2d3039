//! `retide dead-letters ls`: dead letters, the newest first, or as they are read.
//!
//! Invariant: what is held in memory is bounded by what is printed.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use retide_config::Config;

use crate::cli::output::{Failed, Output, Rows, print};

use super::Ls;
use super::find::{self, Found, Wanted};
use super::line::Line;

/// The newest of what was added.
pub(super) struct Newest<T> {
    /// By when they died, and where they stand.
    kept: BTreeMap<(u64, i32, i64), T>,
    /// How many are kept.
    most: usize,
}

/// Lists dead letters.
pub(super) fn ls(config: &Config, options: &Ls, output: Output) -> Result<(), Failed> {
    let wanted = Wanted::of(&options.which)?;
    if output == Output::Ndjson {
        return stream(config, &wanted, options.limit.into());
    }
    let mut newest = Newest::new(options.limit as usize);
    let looked = find::each(config, &wanted, |found| {
        newest.add(&found, |found| Line::of(found));
        ControlFlow::Continue(())
    })?;
    let lines: Vec<Line> = newest.newest_first().collect();
    if !lines.is_empty() || output != Output::Table {
        print(&lines, output)?;
    }
    looked.end_newest(lines.len() as u64)
}

/// Prints dead letters as they are read.
fn stream(config: &Config, wanted: &Wanted, limit: u64) -> Result<(), Failed> {
    let mut rows = Rows::new(Output::Ndjson);
    let (mut printed, mut failed) = (0, None);
    let looked = find::each(config, wanted, |found| {
        printed += 1;
        if let Err(error) = rows.add(Line::of(&found)) {
            failed = Some(error);
        }
        if failed.is_some() || printed == limit {
            return ControlFlow::Break(());
        }
        ControlFlow::Continue(())
    })?;
    if let Some(failed) = failed {
        return Err(failed);
    }
    looked.end("")
}

// === impl Newest ===

impl<T> Newest<T> {
    /// Nothing yet; at most so many are kept.
    pub(super) fn new(most: usize) -> Self {
        Self {
            kept: BTreeMap::new(),
            most,
        }
    }

    /// Adds a dead letter, if it is among the newest so far; only then is it made into what is kept.
    pub(super) fn add<'a>(&mut self, found: &Found<'a>, make: impl FnOnce(&Found<'a>) -> T) {
        let key = (found.died.as_millis(), found.at.partition, found.at.offset);
        if self.kept.len() >= self.most {
            if self
                .kept
                .first_key_value()
                .is_none_or(|(first, _)| key <= *first)
            {
                return;
            }
            self.kept.pop_first();
        }
        self.kept.insert(key, make(found));
    }

    /// What is kept, newest first.
    pub(super) fn newest_first(self) -> impl Iterator<Item = T> {
        self.kept.into_values().rev()
    }
}
