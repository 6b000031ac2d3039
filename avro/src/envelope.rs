//! The envelope of a producer that cannot set headers: a `RetryTask`, in Avro or JSON.
//!
//! Recognised by our content type, by our fingerprint, or because every record of the topic is one. Nothing is guessed: what only looks
//! like an envelope is refused, with what would say that it is one. Invariant: an envelope is taken whole or not at all; bytes left over
//! make it broken.

mod avro;
mod json;

use std::fmt::Write as _;
use std::str;
use std::sync::Arc;

use bytes::Bytes;
use serde::Deserialize;
use serde::de::IgnoredAny;

use retide_core::{Header, Record};

use crate::headers::{
    self, CONTENT_TYPE, DEADLINE_AT, DELAY_MS, DUE_AT, ID, MAX_ID, MAX_SCENE, SCENE, is_media_type,
    is_named,
};
use crate::json::Broken;
use crate::schema::{Fingerprint, Schema};
use crate::schemas::{Key, Meaning, SCHEMA_ID, Schemas};
use crate::wire::{CONFLUENT_MAGIC, MAX_ENCODED, SINGLE_OBJECT_MARKER};

/// The content type of a record whose value is a `RetryTask` in JSON.
pub const ENVELOPE_JSON: &str = "application/vnd.retide.task+json";

/// The content type of a record whose value is a `RetryTask` in Avro, in either frame.
pub const ENVELOPE_AVRO: &str = "application/vnd.retide.task+avro";

/// What every content type of an envelope begins with.
const ENVELOPE: &str = "application/vnd.retide.task";

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

/// The mark of UTF-8 that some libraries put before a text.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// What stands before a datum of Avro that can be read.
const FRAMES: &str = "Avro in a Confluent or single-object frame, or with its schema in the header __value_schema_id,";

/// First bytes that a refusal shows: enough for the frames of all registries.
const SHOWN: usize = 8;

/// How the records of the retry topic are read.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Intake {
    /// The form of the envelope that every record is, whatever its headers say; nothing where envelopes say so themselves.
    ///
    /// Records with [`SCENE`] are plain tasks all the same (`submit`, dead letters that are produced again), unless they plainly are
    /// envelopes.
    pub envelope: Option<Form>,
    /// The schemas of Avro that are known.
    #[serde(skip)]
    pub schemas: Arc<Schemas>,
}

/// The form of an envelope.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Form {
    /// JSON.
    Json,
    /// Avro.
    Avro,
}

/// A task as its envelope describes it.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Envelope {
    /// The scene; neither empty nor too long. The header may name it instead.
    pub(crate) scene: Option<String>,
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

/// What could be read of an envelope that is refused.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Known {
    /// The scene.
    pub(crate) scene: Option<String>,
    /// The identity.
    pub(crate) id: Option<String>,
    /// The key.
    pub(crate) key: Option<Bytes>,
}

/// What a value was found to be, and where the envelope starts in it.
enum Found {
    /// An envelope in JSON.
    Json(usize),
    /// An envelope in Avro.
    Avro(usize, Writer),
    /// Looks like an envelope in JSON, but nothing says that it is one.
    Unsaid(usize),
}

/// Whose schema a datum was written with.
enum Writer {
    /// Retide's own.
    Own,
    /// Another one.
    Other(Arc<Schema>),
}

/// The envelope in the value of `record`; nothing if the value is a plain payload.
pub(crate) fn open(record: &Record, intake: &Intake) -> Result<Option<Envelope>, Broken> {
    let Some(found) = find(record, intake)? else {
        return Ok(None);
    };
    let value = record.value.clone().unwrap_or_default();
    if value.len() > MAX_ENCODED {
        return Err(broken("larger than an envelope may be"));
    }
    match found {
        Found::Json(start) => json::read(&value[start..]).and_then(check).map(Some),
        Found::Avro(start, writer) => {
            let datum = value.slice(start..);
            let read = match writer {
                Writer::Own => avro::read(datum),
                Writer::Other(schema) => avro::read_as(&schema, datum),
            };
            read.and_then(check).map(Some)
        }
        Found::Unsaid(_) => Err(Broken(format!(
            "looks like an envelope, and nothing says that it is: set the header {CONTENT_TYPE} to {ENVELOPE_JSON}, or \
             tasks = {{ envelope = \"json\" }} under [topics]; for a plain task, the header {SCENE}"
        ))),
    }
}

/// What can be read of an envelope that is refused: whoever waits for its task is to hear of it.
pub(crate) fn known(record: &Record, intake: &Intake) -> Known {
    let Some(value) = &record.value else {
        return Known::default();
    };
    let found = match find(record, intake) {
        Ok(found) => found,
        // Of another form than it is said to be.
        Err(_) => json_start(value).map(Found::Json),
    };
    let Some(found) = found.filter(|_| value.len() <= MAX_ENCODED) else {
        return Known::default();
    };
    let known = match found {
        Found::Json(start) | Found::Unsaid(start) => json::known(&value[start..]),
        Found::Avro(start, Writer::Own) => avro::known(value.slice(start..)),
        Found::Avro(start, Writer::Other(schema)) => avro::known_as(&schema, value.slice(start..)),
    };
    Known {
        scene: known.scene.filter(|scene| is_word(scene, MAX_SCENE)),
        id: known
            .id
            .filter(|id| is_word(id, MAX_ID) && !is_media_type(id)),
        key: known.key,
    }
}

/// The name of the schema that a record may be written with, if a registry has to be asked what it means before the record is read.
pub(crate) fn asks(record: &Record, intake: &Intake) -> Option<Key> {
    let value = record.value.as_deref()?;
    let (key, _) = mark(record, value)?;
    let schemas = &intake.schemas;
    if !schemas.may_ask(key) || schemas.meaning(key).is_some() {
        return None;
    }
    match said(record) {
        Ok(Some(Form::Json)) | Err(_) => None,
        Ok(None) if headers::names_scene(record) || is_of_another_type(record) => None,
        Ok(Some(Form::Avro) | None) => Some(key),
    }
}

/// Whether a header is the content type; producers do not agree on its case.
pub(crate) fn is_content_type(header: &Header) -> bool {
    is_named(header.name.as_bytes(), CONTENT_TYPE)
}

/// Whether a header says what the value of a record is, which its envelope was.
pub(crate) fn is_of_value(header: &Header) -> bool {
    is_content_type(header) || is_named(header.name.as_bytes(), SCHEMA_ID)
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

// === recognising ===

/// Recognises an envelope.
fn find(record: &Record, intake: &Intake) -> Result<Option<Found>, Broken> {
    let said = said(record)?;
    let has_scene = headers::names_scene(record);
    let Some(value) = &record.value else {
        return match said.or(intake.envelope.filter(|_| !has_scene)) {
            Some(_) => Err(broken("an envelope is expected, and there is no value")),
            None => Ok(None),
        };
    };
    if let Some(form) = said {
        return start(form, record, value, intake).map(Some);
    }
    let mark = mark(record, value);
    if let Some((key, start)) = mark {
        let schemas = &intake.schemas;
        // What names its scene does not wait for a registry: it is a plain task, unless its schema is known without one.
        let meaning = if has_scene {
            schemas.given(key)
        } else {
            schemas.meaning(key)
        };
        match meaning {
            Some(Meaning::Own) => return Ok(Some(Found::Avro(start, Writer::Own))),
            Some(Meaning::Writer(schema)) if schema.is_task() => {
                return Ok(Some(Found::Avro(start, Writer::Other(schema))));
            }
            // Whatever it is, it is no task; nor is a producer's frame that is known to be something else refused for being one.
            Some(Meaning::Writer(_)) if intake.envelope.is_none() => return Ok(None),
            Some(Meaning::Writer(_) | Meaning::Other(_) | Meaning::Missing) | None => {}
        }
    }
    if let Some(form) = intake.envelope
        && (!has_scene || json_start(value).is_some_and(|start| json::is_plain(&value[start..])))
    {
        return start(form, record, value, intake).map(Some);
    }
    if has_scene {
        return Ok(None);
    }
    if let Some(start) = json_start(value)
        && value.len() <= MAX_ENCODED
        && json::is_plain(&value[start..])
    {
        return Ok(Some(Found::Unsaid(start)));
    }
    if is_of_another_type(record) {
        return Ok(None);
    }
    match mark {
        Some((key, _)) => Err(unknown(key, value, intake)),
        None if is_of_glue(value) => Err(Broken(format!(
            "{}, which is not read; {FRAMES} expected, or for a plain task, the header {SCENE}",
            first_bytes(value)
        ))),
        None => Ok(None),
    }
}

/// How a record names the schema of its value, and where the datum starts: in a header, or in a frame before the datum.
fn mark(record: &Record, value: &[u8]) -> Option<(Key, usize)> {
    let is_it = |header: &&Header| is_named(header.name.as_bytes(), SCHEMA_ID);
    let named = record.headers.iter().rfind(is_it);
    if let Some(key) = named.and_then(|header| Key::of_header(header.value.as_deref()?)) {
        return Some((key, 0));
    }
    match value {
        [CONFLUENT_MAGIC, a, b, c, d, ..] => {
            let id = u32::from_be_bytes([*a, *b, *c, *d]);
            // A registry counts in positive numbers of 32 bits with a sign.
            (id <= i32::MAX.unsigned_abs()).then_some((Key::Id(id), CONFLUENT_FRAME))
        }
        [0xc3, 0x01, ..] => {
            let print = value.get(SINGLE_OBJECT_MARKER.len()..SINGLE_OBJECT_FRAME)?;
            let print = print.try_into().ok()?;
            Some((Key::Fingerprint(print), SINGLE_OBJECT_FRAME))
        }
        _ => None,
    }
}

/// Why a value cannot be read whose schema is named so.
fn unknown(key: Key, value: &[u8], intake: &Intake) -> Broken {
    // No registry gives this number; another frame looks like one with it.
    if key == Key::Id(0) {
        return Broken(format!("{}; {FRAMES} expected", first_bytes(value)));
    }
    let meaning = intake.schemas.meaning(key);
    Broken(intake.schemas.unknown(key, meaning.as_ref()))
}

/// Whether the content type says that the value is something that has no frame of Avro.
fn is_of_another_type(record: &Record) -> bool {
    let mut types = record.headers.iter().filter(|it| is_content_type(it));
    types.any(|header| {
        let value = header.value.as_deref().unwrap_or_default();
        let value = value.to_ascii_lowercase();
        let has = |word: &[u8]| value.windows(word.len()).any(|part| part == word);
        !value.is_empty() && !has(b"avro") && !has(b"octet-stream")
    })
}

/// Whether a value is in the frame of the AWS Glue registry: a version, whether it is compressed, and a UUID.
fn is_of_glue(value: &[u8]) -> bool {
    let is_uuid = |uuid: &[u8]| (0x10..0x60).contains(&uuid[6]) && uuid[8] & 0xc0 == 0x80;
    matches!(value, [0x03, 0x00 | 0x05, uuid @ ..] if uuid.len() >= 16 && is_uuid(uuid))
}

/// The form that the content type says; any of several that is ours counts, since proxies add their own.
fn said(record: &Record) -> Result<Option<Form>, Broken> {
    for header in record.headers.iter().rev() {
        let Some(value) = header.value.as_deref().filter(|_| is_content_type(header)) else {
            continue;
        };
        match form_of(value) {
            Ok(None) => {}
            said => return said,
        }
    }
    Ok(None)
}

/// The form that a content type names, if it is one of an envelope. Converters of headers to JSON put it in quotes.
fn form_of(content_type: &[u8]) -> Result<Option<Form>, Broken> {
    let Ok(text) = str::from_utf8(content_type) else {
        return Ok(None);
    };
    let is_around = |c: char| c.is_whitespace() || matches!(c, '"' | '\'');
    let media = text.trim_matches(is_around).split(';').next();
    let media = media.unwrap_or_default().trim_end_matches(is_around);
    if media.eq_ignore_ascii_case(ENVELOPE_JSON) {
        return Ok(Some(Form::Json));
    }
    if media.eq_ignore_ascii_case(ENVELOPE_AVRO) {
        return Ok(Some(Form::Avro));
    }
    let is_like_ours = media
        .get(..ENVELOPE.len())
        .is_some_and(|start| start.eq_ignore_ascii_case(ENVELOPE));
    if is_like_ours {
        return Err(Broken(format!(
            "{CONTENT_TYPE} is {media}: {ENVELOPE_JSON} or {ENVELOPE_AVRO} expected"
        )));
    }
    Ok(None)
}

/// Where an envelope that is said to be one starts in its value.
fn start(form: Form, record: &Record, value: &[u8], intake: &Intake) -> Result<Found, Broken> {
    let mark = mark(record, value);
    let meaning = mark.and_then(|(key, _)| intake.schemas.meaning(key));
    // Whatever the content type says, a datum with our fingerprint is one.
    if let (Some((Key::Fingerprint(_), start)), Some(Meaning::Own)) = (mark, &meaning) {
        return Ok(Found::Avro(start, Writer::Own));
    }
    match form {
        Form::Json => match json_start(value) {
            Some(start) => Ok(Found::Json(start)),
            None => Err(Broken(format!(
                "{}; an object of JSON expected",
                first_bytes(value)
            ))),
        },
        Form::Avro => match (mark, meaning) {
            (Some((_, start)), Some(Meaning::Own)) => Ok(Found::Avro(start, Writer::Own)),
            (Some((_, start)), Some(Meaning::Writer(schema))) => {
                Ok(Found::Avro(start, Writer::Other(schema)))
            }
            (Some((key, _)), Some(Meaning::Other(_) | Meaning::Missing) | None) => {
                Err(unknown(key, value, intake))
            }
            (None, _) => Err(Broken(format!("{}; {FRAMES} expected", first_bytes(value)))),
        },
    }
}

/// Where a JSON object starts: at the beginning, or after the frame of Confluent's serializer for JSON Schema.
fn json_start(value: &[u8]) -> Option<usize> {
    let after = |start: usize| {
        let rest = value.get(start..)?;
        let mark = if rest.starts_with(BYTE_ORDER_MARK) {
            BYTE_ORDER_MARK.len()
        } else {
            0
        };
        let rest = &rest[mark..];
        (rest.trim_ascii_start().first() == Some(&b'{')).then_some(start + mark)
    };
    match value.first() {
        Some(&CONFLUENT_MAGIC) => after(CONFLUENT_FRAME),
        Some(_) | None => after(0),
    }
}

/// The first bytes of a value and what they are known for.
fn first_bytes(value: &[u8]) -> String {
    if value.is_empty() {
        return "the value is empty".to_owned();
    }
    let mut text = "the first bytes are".to_owned();
    for byte in value.iter().take(SHOWN) {
        // Writing to a string cannot fail.
        let _ = write!(text, " {byte:02x}");
    }
    let about = match value {
        [0xc3, 0x01, ..] => " (a single-object frame of Avro with another schema)".to_owned(),
        [0x03, 0x00 | 0x05, ..] => " (a frame of the AWS Glue registry)".to_owned(),
        [0x00, 0x00, 0x00, 0x00, 0x00, a, b, c, d, ..] => {
            let id = u32::from_be_bytes([*a, *b, *c, *d]);
            format!(" (a frame of the Apicurio registry with 8 bytes, id {id})")
        }
        [0x00, a, b, c, d, ..] => {
            let id = u32::from_be_bytes([*a, *b, *c, *d]);
            format!(" (a frame of Confluent's registry, schema id {id})")
        }
        [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => " (text in UTF-16)".to_owned(),
        [0x1f, 0x8b, ..] => " (gzip)".to_owned(),
        [b'"', ..] => " (a text of JSON; was the object encoded twice?)".to_owned(),
        [b'[', ..] => " (an array of JSON; each task is a record of its own)".to_owned(),
        [b'{', ..] => " (JSON)".to_owned(),
        _ => String::new(),
    };
    text.push_str(&about);
    text
}

// === checking ===

/// Refuses an envelope whose names could not be headers, or whose headers would be ignored.
fn check(mut envelope: Envelope) -> Result<Envelope, Broken> {
    // Libraries write text that is not set as an empty one.
    envelope.scene = envelope.scene.filter(|scene| !scene.is_empty());
    if let Some(scene) = &envelope.scene
        && !is_word(scene, MAX_SCENE)
    {
        return Err(Broken(format!(
            "scene is over {MAX_SCENE} bytes long, or not one line"
        )));
    }
    if let Some(id) = &envelope.id {
        if id.is_empty() {
            return Err(broken("id is empty; leave it out, or name one"));
        }
        if !is_word(id, MAX_ID) {
            return Err(Broken(format!(
                "id is over {MAX_ID} bytes long, or not one line"
            )));
        }
        if is_media_type(id) {
            return Err(Broken(format!(
                "id is {id}, a media type; is it in the place of contentType?"
            )));
        }
    }
    let types = envelope.headers.iter().filter(|it| is_content_type(it));
    let types = types.filter_map(|header| header.value.as_deref());
    let inner = envelope.content_type.iter().map(String::as_bytes);
    for content_type in inner.chain(types) {
        if form_of(content_type)?.is_some() {
            return Err(broken(
                "contentType is that of an envelope; it is that of the payload in it",
            ));
        }
    }
    for (index, header) in envelope.headers.iter().enumerate() {
        if let Some((own, field)) = field_of(header.name.as_bytes()) {
            return Err(Broken(format!(
                "headers[{index}] is {}; in an envelope, {own} is the field {field}",
                header.name
            )));
        }
    }
    Ok(envelope)
}

/// The header of retide's that a producer sets and that `name` is or is meant to be, with the field that stands for it.
fn field_of(name: &[u8]) -> Option<(&'static str, &'static str)> {
    const FIELDS: [(&str, &str); 5] = [
        (SCENE, "scene"),
        (ID, "id"),
        (DUE_AT, "dueAt"),
        (DELAY_MS, "delayMs"),
        (DEADLINE_AT, "deadlineAt"),
    ];
    let misspelt = headers::misspelt(name);
    FIELDS
        .into_iter()
        .find(|(own, _)| is_named(name, own) || misspelt == Some(own))
}

/// Whether a text is one line of at most `limit` bytes.
fn is_word(text: &str, limit: usize) -> bool {
    !text.is_empty() && text.len() <= limit && !text.contains(char::is_control)
}

/// A reason to refuse.
fn broken(why: &str) -> Broken {
    Broken(why.to_owned())
}
