//! A dead letter, for people and programs.

use bytes::Bytes;
use serde::Serialize;

use retide_avro::headers::{is_own, kind_word};
use retide_core::{Kind, Timestamp};
use retide_history::timeline;

use crate::cli::output::Row;

use super::find::Found;

/// A dead letter, without its payload.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Line {
    /// The identity of its task.
    pub(super) id: String,
    /// The scene; nothing where none is known.
    pub(super) scene: String,
    /// `work`, or `callback` of what delivers one.
    kind: &'static str,
    /// How it ended: `dead` or `expired`.
    outcome: &'static str,
    /// Why.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    /// What its last attempt said, or why there was none.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    /// The host that was called, if that is what failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    host: Option<String>,
    /// What that has in common with others.
    #[serde(skip_serializing_if = "Option::is_none")]
    fingerprint: Option<String>,
    /// Attempts made.
    #[serde(skip_serializing_if = "Option::is_none")]
    attempts: Option<u32>,
    /// When it died, in ms since the epoch.
    pub(super) died_at: u64,
    /// When it entered, in ms since the epoch.
    #[serde(skip_serializing_if = "Option::is_none")]
    entered_at: Option<u64>,
    /// When its last attempt was due.
    #[serde(skip_serializing_if = "Option::is_none")]
    due_at: Option<u64>,
    /// When no attempt might start any more.
    #[serde(skip_serializing_if = "Option::is_none")]
    deadline_at: Option<u64>,
    /// Where it entered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) origin: Option<String>,
    /// What its scene calls now.
    #[serde(skip_serializing_if = "Option::is_none")]
    target: Option<String>,
    /// The key of its record, as text.
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<String>,
    /// The producer's headers, as text.
    headers: Vec<(String, String)>,
    /// How long the payload is; none where there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    bytes: Option<usize>,
    /// What it lacks of the record that it is of.
    #[serde(skip_serializing_if = "Option::is_none")]
    omitted: Option<String>,
    /// The topic it stands in.
    topic: String,
    /// The partition.
    pub(super) partition: i32,
    /// The offset.
    pub(super) offset: i64,
}

// === impl Line ===

impl Line {
    /// A dead letter that was found.
    pub(super) fn of(found: &Found<'_>) -> Self {
        let Found {
            letter,
            record,
            at,
            died,
            target,
        } = found;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let headers = record.headers.iter();
        let headers = headers.filter(|header| !is_own(header.name.as_bytes()));
        Self {
            id: letter.id.clone(),
            scene: letter.scene.clone(),
            kind: kind_word(letter.kind),
            outcome: letter.outcome.word(),
            reason: letter.reason.clone(),
            error: letter.failure.as_ref().map(ToString::to_string),
            host: (letter.failure.as_ref())
                .and_then(|failure| failure.host.as_ref())
                .map(ToString::to_string),
            fingerprint: letter.fingerprint.map(|print| print.to_string()),
            attempts: letter.attempts,
            died_at: died.as_millis(),
            entered_at: letter.entered.map(Timestamp::as_millis),
            due_at: letter.due.map(Timestamp::as_millis),
            deadline_at: letter.deadline.map(Timestamp::as_millis),
            origin: letter.origin.as_ref().map(ToString::to_string),
            target: target.map(str::to_owned),
            key: record.key.as_ref().map(|key| text(key)),
            headers: headers
                .map(|header| {
                    let value = header.value.as_deref().unwrap_or_default();
                    (header.name.to_string(), text(value))
                })
                .collect(),
            bytes: record.value.as_ref().map(Bytes::len),
            omitted: letter.omitted.clone(),
            topic: at.topic.to_string(),
            partition: at.partition,
            offset: at.offset,
        }
    }

    /// What is known of it, for people: names and texts.
    pub(super) fn rows(&self) -> Vec<(&'static str, String)> {
        let clock = |millis| timeline::clock(Timestamp::from_millis(millis));
        let (topic, partition, offset) = (&self.topic, self.partition, self.offset);
        let mut rows = vec![
            ("task", self.id.clone()),
            ("scene", self.scene.clone()),
            ("died", clock(self.died_at)),
        ];
        if self.kind != kind_word(Kind::Work) {
            rows.push(("kind", self.kind.to_owned()));
        }
        rows.push(("outcome", self.end()));
        rows.extend(self.error.clone().map(|error| ("error", error)));
        rows.extend(self.host.clone().map(|host| ("called", host)));
        rows.extend(self.fingerprint.clone().map(|print| ("fingerprint", print)));
        rows.extend(self.attempts.map(|made| ("attempts", made.to_string())));
        rows.extend(self.target.clone().map(|target| ("target", target)));
        let origin = self.origin.as_ref();
        let origin = origin.map_or_else(String::new, |origin| format!(" as {origin}"));
        rows.extend(
            self.entered_at
                .map(|at| ("entered", format!("{}{origin}", clock(at)))),
        );
        rows.extend(self.deadline_at.map(|at| ("deadline", clock(at))));
        rows.extend(self.key.clone().map(|key| ("key", key)));
        rows.extend(self.omitted().map(|what| ("omitted", what)));
        rows.push((
            "stands in",
            format!("{topic}, partition {partition}, offset {offset}"),
        ));
        rows
    }

    /// What it lacks, and where that stands: what a callback delivers stands nowhere else.
    fn omitted(&self) -> Option<String> {
        let what = self.omitted.as_ref()?;
        let is_work = self.kind == kind_word(Kind::Work);
        let origin = self.origin.as_ref().filter(|_| is_work);
        Some(origin.map_or_else(
            || what.clone(),
            |origin| format!("{what}; stands at {origin}, as long as that is retained"),
        ))
    }

    /// How it ended, and why.
    fn end(&self) -> String {
        match &self.reason {
            Some(reason) => format!("{}: {reason}", self.outcome),
            None => self.outcome.to_owned(),
        }
    }
}

impl Row for Line {
    const HEADINGS: &'static [&'static str] = &[
        "died",
        "id",
        "scene",
        "why",
        "attempts",
        "fingerprint",
        "error",
    ];

    fn cells(&self) -> Vec<String> {
        vec![
            timeline::clock(Timestamp::from_millis(self.died_at)),
            self.id.clone(),
            self.scene.clone(),
            self.end(),
            self.attempts
                .map(|made| made.to_string())
                .unwrap_or_default(),
            self.fingerprint.clone().unwrap_or_default(),
            self.error.clone().unwrap_or_default(),
        ]
    }
}
