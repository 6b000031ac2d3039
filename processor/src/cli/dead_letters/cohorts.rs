//! `retide dead-letters cohorts`: how many died alike.
//!
//! What has one fingerprint is a cohort: a count, two times and one sample. Invariant: memory does not grow with the dead letters, nor with
//! the fingerprints that they have. At most [`MOST`] cohorts are known. Where there are more, the smaller half is forgotten: its dead letters
//! are counted as others, and a cohort that begins after that says that it has *at least* so many.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ops::ControlFlow;

use serde::Serialize;

use retide_config::Config;
use retide_core::selector::{ErrorFingerprint, host_of};
use retide_core::{Kind, Origin, Timestamp};
use retide_history::timeline;

use crate::cli::output::{Failed, Output, Row, print};

use super::find::{self, Found, Wanted};

/// Dead letters by what they have in common.
#[derive(Default)]
struct Known {
    /// The cohorts, by fingerprint; those without one are one cohort.
    cohorts: HashMap<Option<ErrorFingerprint>, Cohort>,
    /// How many dead letters of cohorts that were forgotten.
    others: u64,
    /// How many cohorts were forgotten; one that came back counts again.
    forgotten: u64,
    /// How many dead letters there are in all.
    all: u64,
}

/// What has one fingerprint.
struct Cohort {
    /// How many.
    count: u64,
    /// When the first of them died.
    first: Timestamp,
    /// When the last of them died.
    last: Timestamp,
    /// Whether none of them was forgotten.
    is_whole: bool,
    /// The scene of the sample.
    scene: String,
    /// Whether that is work or a callback.
    kind: Kind,
    /// Why it died.
    reason: Option<String>,
    /// The host that was called; as its scene calls it now, if it does. Where none was, what the scene calls now.
    target: Option<String>,
    /// The last of them that was read.
    sample: Sample,
}

/// One dead letter of a cohort.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Sample {
    /// The identity of its task.
    id: String,
    /// What its last attempt said.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    /// Where it stands.
    at: String,
}

/// A cohort, as it is printed.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct CohortRow {
    /// The fingerprint; `none` of those without one, `others` of what is counted together.
    fingerprint: String,
    /// How many.
    count: u64,
    /// Their part of all that were counted.
    share: f64,
    /// Whether there may be more: the cohort was forgotten before.
    at_least: bool,
    /// When the first of them died, in ms since the epoch.
    #[serde(skip_serializing_if = "Option::is_none")]
    first: Option<u64>,
    /// When the last of them died.
    #[serde(skip_serializing_if = "Option::is_none")]
    last: Option<u64>,
    /// The scene.
    #[serde(skip_serializing_if = "Option::is_none")]
    scene: Option<String>,
    /// `work` or `callback`.
    #[serde(skip_serializing_if = "Option::is_none")]
    kind: Option<&'static str>,
    /// Why the sample died.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    /// As [`Cohort::target`].
    #[serde(skip_serializing_if = "Option::is_none")]
    target: Option<String>,
    /// One of them.
    #[serde(skip_serializing_if = "Option::is_none")]
    sample: Option<Sample>,
    /// How many cohorts are counted together.
    #[serde(skip_serializing_if = "Option::is_none")]
    cohorts: Option<u64>,
}

/// Most cohorts that are known at a time. Each takes at most some 1.5 KiB, since ids, scenes and messages are bounded: 30 MiB in all. People look
/// at some ten.
const MOST: usize = 20_000;

/// Tells how many died alike.
pub(super) fn cohorts(
    config: &Config,
    options: &super::Cohorts,
    output: Output,
) -> Result<(), Failed> {
    let wanted = Wanted::of(&options.which)?;
    let mut known = Known::default();
    let looked = find::each(config, &wanted, |found| {
        known.add(found);
        ControlFlow::Continue(())
    })?;
    let (count, forgotten) = (known.cohorts.len(), known.forgotten);
    let rows = known.rows(options.limit as usize);
    if !rows.is_empty() || output != Output::Table {
        print(&rows, output)?;
    }
    looked.end(&match forgotten {
        0 => format!(" in {count} cohorts"),
        _ => format!(
            " in more than {count} cohorts, of which the smallest were forgotten on the way"
        ),
    })
}

// === impl Known ===

impl Known {
    /// Counts a dead letter.
    fn add(&mut self, found: Found<'_>) {
        let Found {
            letter,
            at,
            died,
            target,
            ..
        } = found;
        self.all += 1;
        let is_whole = self.forgotten == 0;
        let cohort = match self.cohorts.entry(letter.fingerprint) {
            Entry::Occupied(entry) => {
                let cohort = entry.into_mut();
                cohort.count += 1;
                cohort.first = cohort.first.min(died);
                if died < cohort.last {
                    return;
                }
                cohort.last = died;
                cohort
            }
            Entry::Vacant(entry) => entry.insert(Cohort {
                count: 1,
                first: died,
                last: died,
                is_whole,
                scene: String::new(),
                kind: letter.kind,
                reason: None,
                target: None,
                sample: Sample {
                    id: String::new(),
                    error: None,
                    at: String::new(),
                },
            }),
        };
        // The newest is the one that is most likely to be there when somebody looks for it.
        cohort.describe(Found {
            letter,
            at,
            died,
            target,
            record: retide_core::Record::default(),
        });
        if self.cohorts.len() > MOST {
            self.forget();
        }
    }

    /// Forgets the smaller half, of which those whose last dead letter is the oldest.
    fn forget(&mut self) {
        let sizes = self.cohorts.iter();
        let mut sizes: Vec<_> = sizes
            .map(|(print, cohort)| (cohort.count, cohort.last, *print))
            .collect();
        sizes.sort_unstable();
        for (count, _, print) in sizes.into_iter().take(MOST / 2) {
            self.cohorts.remove(&print);
            self.others += count;
            self.forgotten += 1;
        }
    }

    /// The largest cohorts, and the others together.
    fn rows(self, limit: usize) -> Vec<CohortRow> {
        let Self {
            cohorts,
            mut others,
            mut forgotten,
            all,
        } = self;
        let share = |count: u64| count as f64 / all.max(1) as f64;
        let mut cohorts: Vec<_> = cohorts.into_iter().collect();
        cohorts.sort_unstable_by(|(a_print, a), (b_print, b)| {
            let (a, b) = ((a.count, a.last, a_print), (b.count, b.last, b_print));
            b.cmp(&a)
        });
        let rest = cohorts.split_off(limit.min(cohorts.len()));
        for (_, cohort) in &rest {
            others += cohort.count;
            forgotten += 1;
        }
        let rows = cohorts.into_iter();
        let mut rows: Vec<CohortRow> = rows
            .map(|(print, cohort)| CohortRow {
                fingerprint: print.map_or_else(|| "none".to_owned(), |print| print.to_string()),
                count: cohort.count,
                share: share(cohort.count),
                at_least: !cohort.is_whole,
                first: Some(cohort.first.as_millis()),
                last: Some(cohort.last.as_millis()),
                scene: Some(cohort.scene),
                kind: Some(cohort.kind.word()),
                reason: cohort.reason,
                target: cohort.target,
                sample: Some(cohort.sample),
                cohorts: None,
            })
            .collect();
        if others > 0 {
            rows.push(CohortRow {
                fingerprint: "others".to_owned(),
                count: others,
                share: share(others),
                at_least: false,
                first: None,
                last: None,
                scene: None,
                kind: None,
                reason: None,
                target: None,
                sample: None,
                cohorts: Some(forgotten),
            });
        }
        rows
    }
}

// === impl Cohort ===

impl Cohort {
    /// Takes a dead letter for its sample.
    fn describe(&mut self, found: Found<'_>) {
        let Found {
            letter, at, target, ..
        } = found;
        let host = letter
            .failure
            .as_ref()
            .and_then(|failure| failure.host.as_deref());
        // With scheme and port as long as the scene calls that host.
        let target = match host {
            Some(host) => target
                .filter(|target| host_of(target) == Some(host))
                .or(Some(host)),
            None => target,
        };
        if self.target.as_deref() != target {
            self.target = target.map(str::to_owned);
        }
        self.scene = letter.scene;
        self.kind = letter.kind;
        self.reason = letter.reason;
        let Origin {
            partition, offset, ..
        } = at;
        self.sample = Sample {
            id: letter.id,
            error: letter.failure.map(|failure| failure.to_string()),
            at: format!("{partition}/{offset}"),
        };
    }
}

impl Row for CohortRow {
    const HEADINGS: &'static [&'static str] = &[
        "fingerprint",
        "count",
        "share",
        "first",
        "last",
        "scene",
        "target",
        "sample",
        "error",
    ];

    fn cells(&self) -> Vec<String> {
        let clock = |millis: u64| timeline::clock(Timestamp::from_millis(millis));
        let sign = if self.at_least { "≥" } else { "" };
        let sample = self.sample.as_ref();
        let error = sample.and_then(|sample| sample.error.clone());
        let error = error.or_else(|| self.reason.clone());
        let cohorts = self
            .cohorts
            .map(|cohorts| format!("{cohorts} other fingerprints"));
        let kind = self.kind.filter(|kind| *kind != Kind::Work.word());
        let scene = self.scene.as_deref().unwrap_or_default();
        vec![
            self.fingerprint.clone(),
            format!("{sign}{}", self.count),
            format!("{:.1}%", self.share * 100.0),
            self.first.map(clock).unwrap_or_default(),
            self.last.map(clock).unwrap_or_default(),
            match kind {
                Some(kind) => format!("{scene}, {kind}"),
                None => scene.to_owned(),
            },
            self.target.clone().unwrap_or_default(),
            sample.map(|sample| sample.id.clone()).unwrap_or_default(),
            error.or(cohorts).unwrap_or_default(),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use retide_avro::letter::Letter;
    use retide_core::{Failure, Record, Terminal};

    /// A dead letter with this fingerprint, which died then.
    fn found(print: u64, at: u64, number: i64) -> Found<'static> {
        let failure = Failure::new("http-503", &format!("number {number}"));
        Found {
            letter: Letter {
                id: format!("task-{number}"),
                scene: "pay".into(),
                kind: Kind::Work,
                outcome: Terminal::Dead,
                reason: Some("rejected".into()),
                failure: Some(failure),
                fingerprint: ErrorFingerprint::parse(&format!("{print:016x}")),
                attempts: Some(1),
                entered: None,
                due: None,
                deadline: None,
                origin: None,
                omitted: None,
                digest: None,
                replay: None,
                is_poison: false,
            },
            record: Record::default(),
            at: Origin {
                topic: "retry.dead-letters".into(),
                partition: 2,
                offset: number,
            },
            died: Timestamp::from_millis(at),
            target: Some("https://shop.example:443"),
        }
    }

    #[test]
    fn cohorts_are_told_largest_first_with_times_share_and_the_newest_as_a_sample() {
        let mut known = Known::default();
        for (number, (print, at)) in [(7, 50), (8, 10), (7, 90), (7, 20)].into_iter().enumerate() {
            known.add(found(print, at, number as i64));
        }

        let rows = known.rows(10);

        let told: Vec<_> = rows
            .iter()
            .map(|row| {
                (
                    &*row.fingerprint,
                    row.count,
                    row.first,
                    row.last,
                    row.at_least,
                )
            })
            .collect();
        assert_eq!(
            told,
            [
                ("0000000000000007", 3, Some(20), Some(90), false),
                ("0000000000000008", 1, Some(10), Some(10), false),
            ]
        );
        let sample = Sample {
            id: "task-2".into(),
            error: Some("http-503: number 2".into()),
            at: "2/2".into(),
        };
        assert_eq!(rows[0].sample, Some(sample));
        assert_eq!(rows[0].target.as_deref(), Some("https://shop.example:443"));
        assert!((rows[0].share - 0.75).abs() < f64::EPSILON);
        assert_eq!(rows[0].cells()[2], "75.0%");
    }

    #[test]
    fn what_is_not_printed_is_counted_together() {
        let mut known = Known::default();
        for number in 0..10 {
            known.add(found(number.min(3), 5, number as i64));
        }

        let rows = known.rows(2);

        let counts: Vec<_> = rows
            .iter()
            .map(|row| (&*row.fingerprint, row.count, row.cohorts))
            .collect();
        assert_eq!(
            counts,
            [
                ("0000000000000003", 7, None),
                ("0000000000000002", 1, None),
                ("others", 2, Some(2)),
            ]
        );
    }

    #[test]
    fn memory_does_not_grow_with_fingerprints_and_every_dead_letter_is_counted() {
        let mut known = Known::default();
        let all = 10 * MOST as u64;

        for number in 0..all {
            // Every tenth is of one large cohort that was there from the beginning, or of one that came when others were forgotten.
            let print = match number % 20 {
                0 => 1,
                10 if number > all / 2 => 2,
                _ => 100 + number,
            };
            known.add(found(print, number, number as i64));
            assert!(known.cohorts.len() <= MOST);
        }

        let rows = known.rows(2);
        let sum: u64 = rows.iter().map(|row| row.count).sum();
        assert_eq!(sum, all);
        let told: Vec<_> = rows
            .iter()
            .map(|row| (&*row.fingerprint, row.count, row.at_least))
            .take(2)
            .collect();
        let (first, later) = (all / 20, all / 40);
        assert_eq!(
            told,
            [
                ("0000000000000001", first, false),
                ("0000000000000002", later, true),
            ]
        );
        assert_eq!(rows[0].cells()[1], first.to_string());
        assert_eq!(rows[1].cells()[1], format!("≥{later}"));
    }
}
