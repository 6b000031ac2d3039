//! The timeline of a task: what became of it, told from the records that retide's topics hold of it.
//!
//! Not the search for them. Invariant: what no record tells is not made up, but named as missing.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::time::{Duration, UNIX_EPOCH};

use serde::ser::SerializeMap as _;
use serde::{Serialize, Serializer};

use retide_avro::headers::kind_word;
use retide_avro::wire;
use retide_core::span::human;
use retide_core::{Kind, Ladder, Origin, Timestamp};

use crate::fact::Fact;
use crate::life::{Life, lives, notes};
use crate::state::{State, state};
use crate::steps::{explain_waits, gap};

/// What became of a task.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Timeline {
    /// The scene it follows, or nothing.
    pub scene: String,
    /// Where it entered, if any record says so.
    pub origin: Option<String>,
    /// What happened, in order.
    #[serde(rename = "lines")]
    pub moments: Vec<Moment>,
    /// How it stands now.
    pub state: State,
    /// What makes the timeline less than certain.
    pub notes: Vec<String>,
}

/// One thing that happened.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Moment {
    /// When.
    #[serde(serialize_with = "time")]
    pub at: Timestamp,
    /// What: `entered`, the word of an event, `callback`, `dead-letter`, or `gap` where records are missing.
    pub what: String,
    /// `work`, or `callback` for the delivery of its callback.
    pub kind: &'static str,
    /// The attempt that failed, or is pending; on ends, the attempts made.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attempt: Option<i64>,
    /// What the target said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub outcome: Option<String>,
    /// Why it ended badly.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Class and message of an error, or what is missing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// What the failure has in common with others: the fingerprint of its cohort.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fingerprint: Option<String>,
    /// When the next attempt may start.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "maybe_time")]
    pub due: Option<Timestamp>,
    /// When a due task is looked at again whose gate was shut.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "maybe_time")]
    pub deferred_until: Option<Timestamp>,
    /// Milliseconds since the thing before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub waited_ms: Option<u64>,
    /// How many of them were scheduled; the rest went into reading, the gate, the attempt itself, or a worker that was not there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scheduled_ms: Option<u64>,
    /// How late the attempt started, by cause.
    #[serde(flatten, serialize_with = "lateness")]
    pub lateness: Option<wire::Lateness>,
    /// Headers of the record that the attempt went without, each with its reason.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub left_out: Option<String>,
    /// The command that it follows from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub command: Option<String>,
    /// The record that holds the task from here on, or its end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub place: Option<String>,
    /// Whether it is told by an event; else it follows from another record.
    pub by_event: bool,
}

/// Tells what became of each task whose records are among `facts`, in the order in which they entered.
pub fn tell(facts: Vec<Fact>, ladder: &Ladder, now: Timestamp) -> Vec<Timeline> {
    let lives = lives(facts);
    let notes: Vec<Vec<String>> = lives.iter().map(|life| notes(life, &lives)).collect();
    lives
        .iter()
        .zip(notes)
        .map(|(life, notes)| Timeline {
            notes,
            ..life.timeline(ladder, now)
        })
        .collect()
}

// === impl Life ===

impl Life {
    /// What became of it.
    fn timeline(&self, ladder: &Ladder, now: Timestamp) -> Timeline {
        let work = self.steps(Kind::Work);
        let delivery = self.steps(Kind::Callback);
        let state = state(&work, &delivery, ladder, now);
        let mut moments = Vec::new();
        let mut next = 1;
        for step in &work {
            next = gap(next, step, &mut moments);
            moments.push(step.moment.clone());
        }
        moments.extend(delivery.into_iter().map(|step| step.moment));
        explain_waits(&mut moments);
        Timeline {
            scene: self.scene(),
            origin: self.origin.as_ref().map(Origin::to_string),
            moments,
            state,
            notes: Vec::new(),
        }
    }
}

// === impl Moment ===

impl Moment {
    /// What there is to say besides time and word.
    pub fn details(&self) -> String {
        let mut parts = Vec::new();
        if self.kind == kind_word(Kind::Callback) {
            parts.push("delivery of its callback".to_owned());
        }
        match (self.what.as_str(), self.attempt) {
            ("failed" | "pending" | "held", Some(attempt)) => {
                parts.push(format!("attempt {attempt}"));
            }
            (_, Some(1)) => parts.push("after 1 attempt".to_owned()),
            (_, Some(attempts)) => parts.push(format!("after {attempts} attempts")),
            (_, None) => {}
        }
        parts.extend(self.outcome.clone());
        parts.extend(self.reason.clone());
        parts.extend(self.error.clone());
        // Of a task that does not go on by itself: by this, others are found that died alike.
        if matches!(self.what.as_str(), "dead" | "expired" | "held") {
            let print = self.fingerprint.as_ref();
            parts.extend(print.map(|print| format!("fingerprint {print}")));
        }
        let command = self.command.as_ref();
        parts.extend(command.map(|command| match command.split_once('/') {
            Some(("hold", hold)) => format!("held by {hold}"),
            Some(("breaker", target)) => format!("people keep {target} from being called"),
            _ => format!("by command {command}"),
        }));
        let due = if self.what == "pending" {
            "until"
        } else {
            "due"
        };
        parts.extend(self.due.map(|at| format!("{due} {}", clock(at))));
        let until = self.deferred_until.map(clock);
        parts.extend(until.map(|until| format!("deferred until {until}")));
        if let Some(waited) = self.waited_ms {
            parts.push(match self.scheduled_ms {
                Some(scheduled) => {
                    format!("waited {}, scheduled {}", human(waited), human(scheduled))
                }
                None => format!("waited {}", human(waited)),
            });
        }
        parts.extend(self.lateness.as_ref().and_then(late));
        let left_out = self.left_out.as_ref();
        parts.extend(left_out.map(|headers| format!("without headers {headers}")));
        parts.extend(self.place.as_ref().map(|place| format!("in {place}")));
        parts.join(" · ")
    }
}

/// How late an attempt started, and where the time went, unless it was hardly late.
pub(crate) fn late(lateness: &wire::Lateness) -> Option<String> {
    let causes = lateness.by_cause();
    let total: u64 = causes.iter().map(|(_, micros)| micros / 1_000).sum();
    if total == 0 {
        return None;
    }
    let mut parts = causes.map(|(cause, micros)| (cause, micros / 1_000));
    parts.sort_by_key(|(_, millis)| Reverse(*millis));
    let parts = parts.into_iter().filter(|(_, millis)| *millis > 0);
    let parts: Vec<String> = parts
        .map(|(cause, millis)| format!("{cause} {}", human(millis)))
        .collect();
    Some(format!("late by {}", parts.join(" + ")))
}

/// A point in time, in UTC and milliseconds.
pub fn clock(time: Timestamp) -> String {
    /// The end of the year 9999, after which there is no text for it.
    const LAST: Duration = Duration::from_secs(253_402_300_799);
    let since = Duration::from_millis(time.as_micros().div_ceil(1_000));
    humantime::format_rfc3339_millis(UNIX_EPOCH + since.min(LAST)).to_string()
}

/// Lateness by cause, serialized: in milliseconds as `lateness_ms`, and in microseconds as `lateness`, which is what events call it.
#[allow(clippy::ref_option, reason = "serde passes a reference to the field")]
pub(crate) fn lateness<S: Serializer>(
    lateness: &Option<wire::Lateness>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    let Some(lateness) = lateness else {
        return serializer.serialize_map(Some(0))?.end();
    };
    let millis = lateness.by_cause();
    let millis: BTreeMap<&str, f64> = millis
        .into_iter()
        .map(|(cause, micros)| (cause, micros as f64 / 1e3))
        .collect();
    let mut map = serializer.serialize_map(Some(2))?;
    map.serialize_entry("lateness_ms", &millis)?;
    map.serialize_entry("lateness", lateness)?;
    map.end()
}

/// A point in time, serialized.
#[allow(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde hands over a reference to the field"
)]
pub(crate) fn time<S: Serializer>(time: &Timestamp, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&clock(*time))
}

/// A point in time, serialized, if there is one.
#[allow(
    clippy::ref_option,
    reason = "serde hands over a reference to the field"
)]
pub(crate) fn maybe_time<S: Serializer>(
    time: &Option<Timestamp>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    time.map(clock).serialize(serializer)
}

#[cfg(test)]
mod tests;
