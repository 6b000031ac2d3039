//! Partitions whose last records cannot be read, since nobody ends a transaction.
//!
//! Not what ends it. Invariant: a transaction that goes on is not told of.

use std::thread;
use std::time::{Duration, Instant};

use rdkafka::consumer::BaseConsumer;

use super::ANSWER;
use crate::client::LoggingContext;
use crate::cluster::check::{Finding, Severity};
use crate::cluster::tools::Tools;
use crate::offsets::{self, Edge};

/// Pause between two looks at a partition that may be held back.
const STANDS: Duration = Duration::from_secs(1);

/// A partition whose last records cannot be read, since a transaction is open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hanging {
    /// The topic.
    pub topic: String,
    /// The partition.
    pub partition: i32,
    /// The first offset that cannot be read, which is the first one of the transaction.
    pub stable: i64,
    /// One past the last offset.
    pub end: i64,
    /// Whether retide reads it.
    pub is_read: bool,
}

// === impl Hanging ===

impl Hanging {
    /// What is wrong, and what mends it.
    pub(super) fn finding(&self, tools: &Tools) -> Finding {
        let Self {
            topic, partition, ..
        } = self;
        Finding {
            severity: if self.is_read {
                Severity::Limit
            } else {
                Severity::Warn
            },
            subject: format!("{topic}/{partition}"),
            problem: self.says(),
            fix: self.fix(tools),
        }
    }

    /// What is wrong.
    pub fn says(&self) -> String {
        let Self { stable, end, .. } = self;
        format!(
            "cannot be read beyond offset {stable}, and ends at {end}: a transaction that began there is not ended, and holds readers back"
        )
    }

    /// What mends it.
    fn fix(&self, tools: &Tools) -> String {
        let Self {
            topic,
            partition,
            stable,
            ..
        } = self;
        tools.abort(topic, *partition, *stable)
    }
}

/// The partitions whose last stable offset stands still for `patience` while there are records behind it.
pub(super) fn hanging(
    (all, committed): (&BaseConsumer<LoggingContext>, &BaseConsumer<LoggingContext>),
    read: &[(String, i32)],
    written: &[(String, i32)],
    patience: Duration,
) -> Vec<Hanging> {
    let deadline = Instant::now() + patience;
    let mut held: Vec<Hanging> = Vec::new();
    let mut wanted: Vec<(String, i32)> = read.iter().chain(written).cloned().collect();
    let mut is_first = true;
    while !wanted.is_empty() && !patience.is_zero() {
        let ask = |consumer| {
            let partitions = wanted
                .iter()
                .map(|(topic, partition)| (&**topic, *partition));
            offsets::edges(consumer, partitions, Edge::End, ANSWER)
        };
        let (Ok(ends), Ok(stable)) = (ask(all), ask(committed)) else {
            return Vec::new();
        };
        // What is asked for last is never behind what was asked for first, unless it is held back.
        let now: Vec<Hanging> = stable
            .iter()
            .filter_map(|(at, stable)| {
                let end = *ends.get(at).filter(|end| *end > stable)?;
                Some(Hanging {
                    topic: at.0.clone(),
                    partition: at.1,
                    stable: *stable,
                    end,
                    is_read: read.contains(at),
                })
            })
            .collect();
        let stands = |at: &Hanging| {
            is_first
                || held.iter().any(|before| {
                    (&before.topic, before.partition, before.stable)
                        == (&at.topic, at.partition, at.stable)
                })
        };
        held = now.into_iter().filter(stands).collect();
        is_first = false;
        wanted = held
            .iter()
            .map(|at| (at.topic.clone(), at.partition))
            .collect();
        if Instant::now() >= deadline {
            return held;
        }
        if !wanted.is_empty() {
            thread::sleep(STANDS);
        }
    }
    Vec::new()
}
