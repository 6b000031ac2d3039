//! The envelope of a producer that cannot set headers: a `RetryTask`, in Avro or JSON.
//!
//! Recognised by a content type or by an Avro frame. Invariant: an envelope is taken whole or not at all; bytes left over make it
//! broken.

mod avro;
mod json;

use std::str;

use bytes::Bytes;
use serde::de::IgnoredAny;

use retide_core::{Header, Record};

use crate::headers::{CONTENT_TYPE, MAX_ID, MAX_SCENE, is_named};
use crate::schema::Fingerprint;
use crate::wire::{CONFLUENT_MAGIC, MAX_ENCODED, SINGLE_OBJECT_MARKER};

/// The content type of a record whose value is a `RetryTask` in JSON.
pub const ENVELOPE_JSON: &str = "application/vnd.retide.task+json";

/// The content type of a record whose value is a `RetryTask` in Avro, in either frame.
pub const ENVELOPE_AVRO: &str = "application/vnd.retide.task+avro";

/// The content type of a payload that is JSON.
pub const JSON: &str = "application/json";

/// The Avro schema of the envelope.
pub const RETRY_TASK_SCHEMA: &str = include_str!("../schemas/RetryTask.avsc");

/// The CRC-64-AVRO fingerprint of [`RETRY_TASK_SCHEMA`] as it stands in a single-object frame, by Avro's specification; Java has made it.
pub const RETRY_TASK_FINGERPRINT: Fingerprint = 0xc667_1643_c7a0_366b_u64.to_be_bytes();

/// The fingerprint that earlier versions of retide, and goavro and `apache-avro` for Rust, make of it: their canonical form keeps an object
/// around a type whose logical type they have taken away.
pub const RETRY_TASK_FORMER: Fingerprint = 0x68cd_17be_6640_d9ec_u64.to_be_bytes();

/// Bytes before the datum in a Confluent frame: the magic byte and the schema's number.
const CONFLUENT_FRAME: usize = 5;

/// Bytes before the datum in a single-object frame: the marker and the fingerprint.
const SINGLE_OBJECT_FRAME: usize = 10;

/// A task as its envelope describes it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Envelope {
    /// The scene; neither empty nor too long.
    pub(crate) scene: String,
    /// The identity; neither empty nor too long.
    pub(crate) id: Option<String>,
    /// What the target receives.
    pub(crate) payload: Option<Bytes>,
    /// The payload's media type.
    pub(crate) content_type: Option<String>,
    /// Whether the payload was written as JSON, and not as text or bytes that may be anything.
    pub(crate) wrote_json: bool,
    /// Headers that travel with the payload.
    pub(crate) headers: Vec<Header>,
    /// The key, if it is not that of the record.
    pub(crate) key: Option<Bytes>,
    /// When the first attempt may start, in ms since the epoch.
    pub(crate) due_at: Option<i64>,
    /// Milliseconds until the first attempt may start.
    pub(crate) delay_ms: Option<i64>,
    /// When no attempt may start any more, in ms since the epoch.
    pub(crate) deadline_at: Option<i64>,
}

/// What was wrong with an envelope, in a few words.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Broken(pub(crate) String);

/// How sure it is that a value is an envelope.
enum Found {
    /// By its content type: JSON.
    Json,
    /// By its content type or by our fingerprint: the datum starts here.
    Avro(usize),
    /// Only by a magic byte that any Confluent value has; it may be somebody's payload.
    Perhaps(usize),
}

/// The envelope in the value of `record`; nothing if the value is a plain payload.
pub(crate) fn open(record: &Record) -> Result<Option<Envelope>, Broken> {
    let Some(value) = &record.value else {
        return Ok(None);
    };
    let Some(found) = find(record, value)? else {
        return Ok(None);
    };
    if value.len() > MAX_ENCODED {
        return match found {
            Found::Perhaps(_) => Ok(None),
            Found::Json | Found::Avro(_) => Err(broken("larger than an envelope may be")),
        };
    }
    match found {
        Found::Json => json::read(value).and_then(check).map(Some),
        Found::Avro(start) => avro::read(value.slice(start..)).and_then(check).map(Some),
        // A producer of plain Confluent values that sets no scene falls back to the default scene like any other.
        Found::Perhaps(start) => Ok(avro::read(value.slice(start..)).and_then(check).ok()),
    }
}

/// Whether a header is the content type; producers do not agree on its case.
pub(crate) fn is_content_type(header: &Header) -> bool {
    is_named(header.name.as_bytes(), CONTENT_TYPE)
}

/// Says of a payload that is JSON that it is, if its producer has said nothing: a service asked with anything else answers 415.
pub(crate) fn describe(envelope: &mut Envelope) {
    if envelope.content_type.is_some() || envelope.headers.iter().any(is_content_type) {
        return;
    }
    let payload = envelope.payload.as_deref();
    if payload.is_some_and(|payload| envelope.wrote_json || is_json(payload)) {
        envelope.content_type = Some(JSON.to_owned());
    }
}

/// Whether a payload is a JSON object or array. Of what is one number or one word nobody can tell.
pub fn is_json(payload: &[u8]) -> bool {
    matches!(payload.trim_ascii_start().first(), Some(b'{' | b'['))
        && serde_json::from_slice::<IgnoredAny>(payload).is_ok()
}

/// Recognises an envelope.
fn find(record: &Record, value: &Bytes) -> Result<Option<Found>, Broken> {
    let frame = frame(value);
    let declared = record
        .headers
        .iter()
        .rfind(|header| is_content_type(header))
        .and_then(|header| header.value.as_deref())
        .and_then(|value| str::from_utf8(value).ok())
        .and_then(|value| value.split(';').next())
        .map(str::trim);
    match (declared, frame) {
        (Some(declared), _) if declared.eq_ignore_ascii_case(ENVELOPE_JSON) => {
            Ok(Some(Found::Json))
        }
        (Some(declared), frame) if declared.eq_ignore_ascii_case(ENVELOPE_AVRO) => match frame {
            Some(Found::Avro(start) | Found::Perhaps(start)) => Ok(Some(Found::Avro(start))),
            Some(Found::Json) | None => Err(broken("neither Confluent nor single-object frame")),
        },
        (_, frame) => Ok(frame),
    }
}

/// Recognises an Avro frame.
fn frame(value: &[u8]) -> Option<Found> {
    let print = value.strip_prefix(&SINGLE_OBJECT_MARKER);
    let ours = [RETRY_TASK_FINGERPRINT, RETRY_TASK_FORMER];
    if print.is_some_and(|print| ours.iter().any(|ours| print.starts_with(ours))) {
        return Some(Found::Avro(SINGLE_OBJECT_FRAME));
    }
    (value.len() >= CONFLUENT_FRAME && value[0] == CONFLUENT_MAGIC)
        .then_some(Found::Perhaps(CONFLUENT_FRAME))
}

/// Refuses an envelope whose names could not be headers.
fn check(envelope: Envelope) -> Result<Envelope, Broken> {
    let word = |text: &str, limit: usize| {
        !text.is_empty() && text.len() <= limit && !text.contains(char::is_control)
    };
    if !word(&envelope.scene, MAX_SCENE) {
        return Err(broken("scene is empty, too long or not one line"));
    }
    if envelope.id.as_ref().is_some_and(|id| !word(id, MAX_ID)) {
        return Err(broken("id is empty, too long or not one line"));
    }
    Ok(envelope)
}

/// A reason to refuse.
fn broken(why: &str) -> Broken {
    Broken(why.to_owned())
}
