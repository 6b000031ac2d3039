//! Records of the commands topic as retide writes them, and its own as it reads them.
//!
//! Not requests and steps that are read, which are the parent's. Invariant: names and order of the keys do not change.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::str;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use retide_core::control::{Answer, Command, Counts, Ended, Place, Step, Verb};
use retide_core::selector::{ErrorFingerprint, OriginPattern, Parts, Span};
use retide_core::{Failure, Outcome, Timestamp};

use super::{MAX_REFUSAL, clipped};
use crate::headers::millis;
use crate::json::Broken;

/// Reads an answer.
pub(super) fn answer(
    value: &[u8],
    step: impl Fn(&[u8]) -> Result<Step, Broken>,
) -> Result<Answer, Broken> {
    let wire: AnswerWire<'_> = own(value)?;
    Ok(Answer {
        place: wire.place()?,
        id: wire.id.into(),
        of: wire.of,
        shards: wire.shards,
        ids: wire.ids,
        counts: wire.counts,
        again: wire
            .again
            .map(|again| step(again.as_bytes()))
            .transpose()?
            .map(Box::new),
    })
}

/// Reads an end.
pub(super) fn ended(value: &[u8]) -> Result<Ended, Broken> {
    let wire: EndedWire<'_> = own(value)?;
    let place = wire.place.parse();
    let counts = Counts {
        done: wire.done,
        too_late: wire.too_late,
        found: wire.found,
    };
    Ok(Ended {
        place: place.map_err(|()| Broken("place: millis/partition/offset expected".to_owned()))?,
        id: wire.id.into(),
        at: Timestamp::from_millis(wire.at),
        ids: wire.ids,
        result: wire
            .refused
            .map_or(Ok(counts), |why| Err(clipped(&why, MAX_REFUSAL).into())),
    })
}

/// A record of retide's. Keys of a later version are passed over.
pub(super) fn own<'a, T: Deserialize<'a>>(value: &'a [u8]) -> Result<T, Broken> {
    serde_json::from_slice(value)
        .map_err(|error| Broken(format!("a record of retide's cannot be read: {error}")))
}

// === what is written ===

/// A command in JSON.
#[derive(Serialize)]
pub(super) struct CommandWire<'a> {
    /// The word for what is to be done.
    command: &'static str,
    /// Which tasks.
    select: SelectWire<'a>,
    /// When they are to be due.
    #[serde(skip_serializing_if = "Option::is_none")]
    at: Option<u64>,
    /// What came of an attempt.
    #[serde(skip_serializing_if = "Option::is_none")]
    outcome: Option<&'static str>,
    /// What went wrong in it.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    /// The id.
    id: &'a str,
    /// Who wants it.
    #[serde(skip_serializing_if = "str::is_empty")]
    by: &'a str,
    /// Why.
    #[serde(skip_serializing_if = "str::is_empty")]
    reason: &'a str,
    /// Until when it waits.
    expires_at: u64,
}

/// A step in JSON.
#[derive(Serialize)]
pub(super) struct StepWire<'a> {
    /// The command.
    #[serde(flatten)]
    pub(super) command: CommandWire<'a>,
    /// Where its request stands.
    pub(super) place: String,
    /// How many shards have a step.
    pub(super) shards: u32,
    /// How far tiers were looked at.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) looked: Option<Vec<LookedWire>>,
    /// Whether all look once more.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(super) again: bool,
    /// What was done before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) before: Option<Before>,
}

/// What was done before a step, in JSON.
#[derive(Serialize, Deserialize)]
pub(super) struct Before(#[serde(with = "CountsWire")] pub(super) Counts);

/// How far a tier was looked at, in JSON.
#[derive(Serialize, Deserialize)]
pub(super) struct LookedWire {
    /// The topic.
    pub(super) topic: Arc<str>,
    /// The first offset that was not.
    pub(super) to: i64,
}

/// A selector in JSON.
#[derive(Serialize)]
pub(super) struct SelectWire<'a> {
    /// Identities.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    id: &'a BTreeSet<Arc<str>>,
    /// Scenes.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    scene: &'a BTreeSet<Arc<str>>,
    /// Keys that are text.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    key: Vec<&'a str>,
    /// Keys that are none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    key_base64: Vec<String>,
    /// Headers.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    header: Vec<HeaderWire<'a>>,
    /// Classes of failures.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    error: &'a BTreeSet<Box<str>>,
    /// Fingerprints of failures.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    fingerprint: Vec<String>,
    /// Targets.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    target: &'a BTreeSet<Box<str>>,
    /// Attempts made.
    #[serde(skip_serializing_if = "Option::is_none")]
    attempts: Option<String>,
    /// When they entered.
    #[serde(skip_serializing_if = "Option::is_none")]
    entered: Option<String>,
    /// When they are due.
    #[serde(skip_serializing_if = "Option::is_none")]
    due: Option<String>,
    /// Where they entered.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    origin: Vec<String>,
}

/// A header of a selector in JSON.
#[derive(Serialize)]
struct HeaderWire<'a> {
    /// The name.
    name: String,
    /// A value that is text.
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<&'a str>,
    /// A value that is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    value_base64: Option<String>,
}

/// An answer in JSON.
#[derive(Serialize, Deserialize)]
pub(super) struct AnswerWire<'a> {
    /// Where the request stands.
    place: String,
    /// The id of the command.
    #[serde(borrow)]
    id: Cow<'a, str>,
    /// The shards that it is of.
    of: BTreeSet<i32>,
    /// How many shards answer.
    shards: u32,
    /// How many ids the command names.
    ids: u32,
    /// What was done.
    #[serde(flatten, with = "CountsWire")]
    counts: Counts,
    /// The step that all make once more, as text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    again: Option<String>,
}

/// Counts in JSON.
#[derive(Serialize, Deserialize)]
#[serde(remote = "Counts")]
struct CountsWire {
    /// Those with which it was done.
    done: u64,
    /// Those for which it came too late.
    too_late: u64,
    /// The ids that were found.
    found: u64,
}

/// An end in JSON.
#[derive(Serialize, Deserialize)]
pub(super) struct EndedWire<'a> {
    /// Where the request stands.
    place: String,
    /// The id of the command.
    #[serde(borrow)]
    id: Cow<'a, str>,
    /// When it was done, in ms since the epoch.
    at: u64,
    /// Why nothing was done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    refused: Option<String>,
    /// How many tasks it has met.
    #[serde(default)]
    matched: u64,
    /// Those with which it was done.
    #[serde(default)]
    done: u64,
    /// Those for which it came too late.
    #[serde(default)]
    too_late: u64,
    /// How many of the ids that it names were not found.
    #[serde(default)]
    not_found: u64,
    /// How many ids it names.
    #[serde(default)]
    ids: u32,
    /// How many of those were found.
    #[serde(default)]
    found: u64,
}

impl<'a> CommandWire<'a> {
    /// How a command is written.
    pub(super) fn of(command: &'a Command) -> Self {
        let Command {
            place: _,
            id,
            verb,
            selector,
            by,
            reason,
            expires,
        } = command;
        let (at, outcome) = match verb {
            Verb::Cancel | Verb::RunNow => (None, None),
            Verb::Reschedule { due } => (Some(millis(*due)), None),
            Verb::Complete(outcome) => (None, Some(outcome)),
        };
        let word = outcome.map(|outcome| match outcome {
            Outcome::Success => "success",
            Outcome::Permanent(_) | Outcome::Refused(_) => "permanent",
            Outcome::Retryable(_)
            | Outcome::Throttled { .. }
            | Outcome::Timeout(_)
            | Outcome::Pending { .. } => "retryable",
        });
        let error = outcome.and_then(Outcome::failure);
        Self {
            command: verb.word(),
            select: SelectWire::of(selector.parts()),
            at,
            outcome: word,
            error: error.map(Failure::to_string),
            id,
            by,
            reason,
            expires_at: millis(*expires),
        }
    }
}

impl<'a> SelectWire<'a> {
    /// How a selector is written.
    pub(super) fn of(parts: &'a Parts) -> Self {
        let Parts {
            ids,
            scenes,
            keys,
            headers,
            errors,
            fingerprints,
            targets,
            attempts,
            entered,
            due,
            origins,
        } = parts;
        let is_text = |key: &&Bytes| str::from_utf8(key).is_ok();
        let binary = keys.iter().filter(|key| !is_text(key));
        let header = headers.iter().map(|(name, value)| {
            let text = str::from_utf8(value).ok();
            HeaderWire {
                name: String::from_utf8_lossy(name.as_bytes()).into_owned(),
                value: text,
                value_base64: text.is_none().then(|| STANDARD.encode(value)),
            }
        });
        let span = |span: &Option<Span>| span.map(spanned);
        Self {
            id: ids,
            scene: scenes,
            key: keys
                .iter()
                .filter_map(|key| str::from_utf8(key).ok())
                .collect(),
            key_base64: binary.map(|key| STANDARD.encode(key)).collect(),
            header: header.collect(),
            error: errors,
            fingerprint: fingerprints
                .iter()
                .map(ErrorFingerprint::to_string)
                .collect(),
            target: targets,
            attempts: attempts
                .as_ref()
                .map(|range| format!("{}..{}", range.start(), range.end())),
            entered: span(entered),
            due: span(due),
            origin: origins.iter().map(pattern).collect(),
        }
    }
}

/// How a span of time is written.
pub(super) fn spanned(Span { from, before }: Span) -> String {
    let to = (before < Timestamp::MAX).then(|| millis(before).to_string());
    format!("{}..{}", millis(from), to.unwrap_or_default())
}

/// How an origin is written.
fn pattern(origin: &OriginPattern) -> String {
    let partition = origin.partition.map(|partition| format!("/{partition}"));
    let offset = origin.offset.map(|offset| format!("/{offset}"));
    let (partition, offset) = (partition.unwrap_or_default(), offset.unwrap_or_default());
    format!("{}{partition}{offset}", origin.topic)
}

impl<'a> AnswerWire<'a> {
    /// How an answer is written.
    pub(super) fn of(answer: &'a Answer, again: Option<String>) -> Self {
        Self {
            place: answer.place.to_string(),
            id: (&*answer.id).into(),
            of: answer.of.clone(),
            shards: answer.shards,
            ids: answer.ids,
            counts: answer.counts,
            again,
        }
    }

    /// Where its request stands.
    fn place(&self) -> Result<Place, Broken> {
        let place = self.place.parse();
        place.map_err(|()| Broken("place: millis/partition/offset expected".to_owned()))
    }
}

impl<'a> EndedWire<'a> {
    /// How an end is written.
    pub(super) fn of(ended: &'a Ended) -> Self {
        let counts = ended.result.as_ref().ok().copied().unwrap_or_default();
        Self {
            place: ended.place.to_string(),
            id: (&*ended.id).into(),
            at: millis(ended.at),
            refused: ended.result.as_ref().err().map(ToString::to_string),
            matched: counts.matched(),
            done: counts.done,
            too_late: counts.too_late,
            not_found: counts.not_found(ended.ids),
            ids: ended.ids,
            found: counts.found,
        }
    }
}
