//! The envelope of a producer that cannot set headers: a `RetryTask`, in Avro or JSON.
//!
//! Recognised by a content type or by an Avro frame. The Avro form is read by a cursor of its own rather than through a generic
//! value: the payload stays a slice of the record, and a forged count of headers allocates nothing. Invariant: an envelope is
//! taken whole or not at all; bytes left over make it broken.

use std::str;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::value::RawValue;

use retide_core::{Header, Record};

use crate::headers::{CONTENT_TYPE, MAX_HEADERS, MAX_ID, MAX_SCENE, is_named};
use crate::wire::{CONFLUENT_MAGIC, MAX_ENCODED, SINGLE_OBJECT_MARKER};

/// The content type of a record whose value is a `RetryTask` in JSON.
pub const ENVELOPE_JSON: &str = "application/vnd.retide.task+json";

/// The content type of a record whose value is a `RetryTask` in Avro, in either frame.
pub const ENVELOPE_AVRO: &str = "application/vnd.retide.task+avro";

/// The content type of a payload that is JSON.
pub const JSON: &str = "application/json";

/// The Avro schema of the envelope.
pub const RETRY_TASK_SCHEMA: &str = include_str!("../schemas/RetryTask.avsc");

/// The CRC-64-AVRO fingerprint of [`RETRY_TASK_SCHEMA`] as it stands in a single-object frame; a test holds it to the schema.
pub const RETRY_TASK_FINGERPRINT: [u8; 8] = [104, 205, 23, 190, 102, 64, 217, 236];

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
        Found::Json => read_json(value).and_then(check).map(Some),
        Found::Avro(start) => read_avro(value.slice(start..)).and_then(check).map(Some),
        // A producer of plain Confluent values that sets no scene falls back to the default scene like any other.
        Found::Perhaps(start) => Ok(read_avro(value.slice(start..)).and_then(check).ok()),
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
    if value.len() >= SINGLE_OBJECT_FRAME
        && value.starts_with(&SINGLE_OBJECT_MARKER)
        && value[SINGLE_OBJECT_MARKER.len()..].starts_with(&RETRY_TASK_FINGERPRINT)
    {
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

// === JSON ===

/// The JSON form of the envelope.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Json {
    /// The scene.
    scene: String,
    /// The identity.
    id: Option<String>,
    /// The payload: the text of a string, or the JSON of anything else as it was written.
    payload: Option<Box<RawValue>>,
    /// The payload, when it is not text.
    payload_base64: Option<String>,
    /// The payload's media type.
    content_type: Option<String>,
    /// Headers that travel with the payload.
    #[serde(default)]
    headers: Vec<JsonHeader>,
    /// The key, as text.
    key: Option<String>,
    /// The key, when it is not text.
    key_base64: Option<String>,
    /// When the first attempt may start.
    due_at: Option<i64>,
    /// Milliseconds until the first attempt may start.
    delay_ms: Option<i64>,
    /// When no attempt may start any more.
    deadline_at: Option<i64>,
}

/// A header in the JSON form.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct JsonHeader {
    /// The name.
    name: String,
    /// The value, as text.
    value: Option<String>,
    /// The value, when it is not text.
    value_base64: Option<String>,
}

/// Reads the JSON form.
fn read_json(value: &[u8]) -> Result<Envelope, Broken> {
    let json: Json = serde_json::from_slice(value).map_err(|error| Broken(error.to_string()))?;
    let wrote_json = json
        .payload
        .as_ref()
        .is_some_and(|raw| !raw.get().starts_with('"'));
    let text = match json.payload {
        // A string is its text; any other JSON is the payload itself.
        Some(raw) if raw.get().starts_with('"') => {
            Some(serde_json::from_str(raw.get()).map_err(|error| Broken(error.to_string()))?)
        }
        Some(raw) => Some(String::from(Box::<str>::from(raw))),
        None => None,
    };
    let mut headers = Vec::with_capacity(json.headers.len());
    for header in json.headers {
        headers.push(Header {
            name: header.name.into(),
            value: either(header.value, header.value_base64)?,
        });
    }
    Ok(Envelope {
        scene: json.scene,
        id: json.id,
        payload: either(text, json.payload_base64)?,
        content_type: json.content_type,
        wrote_json,
        headers,
        key: either(json.key, json.key_base64)?,
        due_at: json.due_at,
        delay_ms: json.delay_ms,
        deadline_at: json.deadline_at,
    })
}

/// Bytes given as text or as base64, but not both.
fn either(text: Option<String>, base64: Option<String>) -> Result<Option<Bytes>, Broken> {
    match (text, base64) {
        (Some(_), Some(_)) => Err(broken("the same thing as text and as base64")),
        (Some(text), None) => Ok(Some(text.into())),
        (None, Some(base64)) => match STANDARD.decode(base64) {
            Ok(bytes) => Ok(Some(bytes.into())),
            Err(error) => Err(Broken(error.to_string())),
        },
        (None, None) => Ok(None),
    }
}

// === Avro ===

/// What is left of an Avro datum.
struct Cursor(Bytes);

/// Reads the Avro form: the fields of `RetryTask` in their order.
fn read_avro(datum: Bytes) -> Result<Envelope, Broken> {
    let mut cursor = Cursor(datum);
    let envelope = Envelope {
        scene: cursor.string()?,
        id: cursor.optional(Cursor::string)?,
        payload: Some(cursor.bytes()?),
        content_type: cursor.optional(Cursor::string)?,
        wrote_json: false,
        headers: cursor.headers()?,
        key: cursor.optional(Cursor::bytes)?,
        due_at: cursor.optional(Cursor::long)?,
        delay_ms: cursor.optional(Cursor::long)?,
        deadline_at: cursor.optional(Cursor::long)?,
    };
    if cursor.0.is_empty() {
        Ok(envelope)
    } else {
        Err(broken("bytes after the end"))
    }
}

// === impl Cursor ===

impl Cursor {
    /// A zigzag variable-length integer of at most ten bytes.
    fn long(&mut self) -> Result<i64, Broken> {
        let mut zigzag = 0_u64;
        for place in 0..10 {
            let Some(&byte) = self.0.get(place) else {
                return Err(broken("ends inside a number"));
            };
            // The tenth byte has room for one bit only.
            if place == 9 && byte > 1 {
                break;
            }
            zigzag |= u64::from(byte & 0x7f) << (7 * place);
            if byte & 0x80 == 0 {
                self.0 = self.0.slice(place + 1..);
                return Ok((zigzag >> 1) as i64 ^ -((zigzag & 1) as i64));
            }
        }
        Err(broken("a number of more than 64 bits"))
    }

    /// A length and that many bytes, still in the record's buffer.
    fn bytes(&mut self) -> Result<Bytes, Broken> {
        let length = usize::try_from(self.long()?).map_err(|_| broken("a negative length"))?;
        if length > self.0.len() {
            return Err(broken("ends inside a value"));
        }
        Ok(self.0.split_to(length))
    }

    /// Text.
    fn string(&mut self) -> Result<String, Broken> {
        let bytes = self.bytes()?;
        str::from_utf8(&bytes)
            .map(str::to_owned)
            .map_err(|_| broken("text is not UTF-8"))
    }

    /// A union of null and what `read` reads.
    fn optional<T>(
        &mut self,
        read: fn(&mut Self) -> Result<T, Broken>,
    ) -> Result<Option<T>, Broken> {
        match self.long()? {
            0 => Ok(None),
            1 => read(self).map(Some),
            _ => Err(broken("no such branch of a union")),
        }
    }

    /// An array of headers: blocks, each with its count, ended by an empty one.
    fn headers(&mut self) -> Result<Vec<Header>, Broken> {
        let mut headers = Vec::new();
        loop {
            let mut count = self.long()?;
            if count == 0 {
                return Ok(headers);
            }
            if count < 0 {
                // A negative count is followed by the block's size, for readers that skip.
                self.long()?;
                count = count.checked_neg().unwrap_or(i64::MAX);
            }
            for _ in 0..count {
                if headers.len() >= MAX_HEADERS {
                    return Err(broken("too many headers"));
                }
                headers.push(Header {
                    name: self.string()?.into(),
                    value: self.optional(Self::bytes)?,
                });
            }
        }
    }
}
