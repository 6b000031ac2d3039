//! Envelopes: what is accepted is what other readers of Avro and JSON find in it, and survives being written again; what is refused
//! carries scene, id and key as far as they find them.

use std::collections::BTreeMap;

use apache_avro::types::Value;
use apache_avro::{Schema, from_avro_datum, to_avro_datum};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;

use retide_avro::headers::{self, MAX_HEADERS, MAX_ID, MAX_SCENE};
use retide_avro::{
    Arrival, ENVELOPE_AVRO, ENVELOPE_JSON, Intake, JSON, RETRY_TASK_FINGERPRINT, RETRY_TASK_SCHEMA,
    Schemas, is_json,
};
use retide_core::{Header, Poison, Record, Task, Timestamp};

use crate::record;

/// When every record is read.
const NOW: Timestamp = Timestamp::from_millis(1_700_000_000_000);

/// The schema of a writer with more fields, which are nested and repeated.
const GROWN: &str = include_str!("../../../avro/tests/golden/schemas/grown.avsc");

/// The fields of an envelope as another reader finds them; a field that is not there has no entry.
#[derive(Debug, Default, PartialEq, Eq)]
struct Fields {
    /// Text: scene, id and content type.
    texts: BTreeMap<&'static str, String>,
    /// Bytes: payload and key.
    bytes: BTreeMap<&'static str, Vec<u8>>,
    /// Times.
    numbers: BTreeMap<&'static str, i64>,
    /// The headers, in order.
    headers: Vec<Header>,
    /// Whether the payload is written as JSON.
    wrote_json: bool,
}

/// Reads an envelope.
///
/// The first byte is the form (`0` JSON, `1` and `2` Avro without its frame, by content type; `3` and `4` the same without one; `5`
/// by content type, `6` by nothing, with whatever frame there is; `7` Avro of another writer), the others are the value.
pub fn envelope(data: &[u8]) {
    let Some((form, value)) = data.split_first() else {
        return;
    };
    let form = form.wrapping_sub(b'0') % 8;
    let single_object = [&[0xc3, 0x01][..], &RETRY_TASK_FINGERPRINT, value].concat();
    let confluent = [&[0, 0, 0, 0, 7], value].concat();
    let (content_type, framed) = match form {
        0 => (Some(ENVELOPE_JSON), value.to_vec()),
        1 => (Some(ENVELOPE_AVRO), single_object),
        2 => (Some(ENVELOPE_AVRO), confluent),
        3 => (None, single_object),
        4 => (None, confluent),
        5 => (Some(ENVELOPE_AVRO), value.to_vec()),
        7 => (Some(ENVELOPE_AVRO), [&[0, 0, 0, 0, 8], value].concat()),
        _ => (None, value.to_vec()),
    };
    let record = wrapped(content_type, framed);

    let task = match ingest(record.clone()) {
        Ok(task) => task,
        Err(poison) => {
            record::check_poison(&poison, &record);
            if form == 0 {
                check_known(&poison, value);
            }
            return;
        }
    };

    record::check_task(&task, data.len() + record.memory_size());
    record::check_count(&task);
    if task.scene.is_empty() {
        // Somebody's payload, which may look like an envelope only where nothing says that it is one.
        assert!(content_type.is_none() && form != 3);
        assert_eq!(task.record, record);
        return;
    }
    match form {
        0 => {
            if let Some(fields) = strictly(value) {
                check_fields(&task, &fields);
            }
            check_general(&task, value);
        }
        1..=4 => check_avro(&task, value),
        _ => {}
    }
}

/// Reads a record where schema 7 is ours, and 8 one of another writer.
fn ingest(record: Record) -> Result<Task, Box<Poison>> {
    let mut schemas = Schemas::default();
    for (id, schema) in [(7, RETRY_TASK_SCHEMA), (8, GROWN)] {
        schemas
            .add(Some(id), schema)
            .expect("the schemas are valid");
    }
    let intake = Intake {
        schemas: schemas.into(),
        ..Intake::default()
    };
    let arrival = Arrival {
        origin: record::place(),
        entered: NOW,
        stamped: NOW,
    };
    intake.ingest(record, arrival)
}

/// A record with a header and perhaps a content type.
fn wrapped(content_type: Option<&str>, value: Vec<u8>) -> Record {
    let content_type =
        content_type.map(|name| record::header(b"Content-Type", Some(name.as_bytes())));
    Record {
        key: Some(Bytes::from_static(b"key")),
        value: Some(value.into()),
        headers: [record::header(b"trace", None)]
            .into_iter()
            .chain(content_type)
            .collect(),
    }
}

/// The library finds the same in an accepted datum, and what the library writes gives the same task again.
fn check_avro(task: &Task, datum: &[u8]) {
    let schema = Schema::parse_str(RETRY_TASK_SCHEMA).expect("the schema is valid");
    let mut rest = datum;
    let value = from_avro_datum(&schema, &mut rest, None).expect("the library reads it");
    assert!(rest.is_empty(), "the library stopped before the end");
    check_fields(task, &by_library(&value));

    let datum = to_avro_datum(&schema, value).expect("the library writes it");
    let value = [&[0xc3, 0x01][..], &RETRY_TASK_FINGERPRINT, &datum].concat();
    let again = ingest(wrapped(None, value));
    assert_eq!(again.as_ref(), Ok(task));
}

/// A task is what the fields of its envelope say.
fn check_fields(task: &Task, fields: &Fields) {
    assert_eq!(*task.scene, fields.texts["scene"]);
    if let Some(id) = fields.texts.get("id") {
        assert_eq!(*task.id, **id);
    }
    let payload = fields.bytes.get("payload").map(Vec::as_slice);
    assert_eq!(task.record.value.as_deref(), payload);
    let key = fields.bytes.get("key").map_or(&b"key"[..], Vec::as_slice);
    assert_eq!(task.record.key.as_deref(), Some(key));

    let said = fields.texts.get("contentType").map(String::as_str);
    let in_headers = fields
        .headers
        .iter()
        .any(|header| header.name.as_bytes().eq_ignore_ascii_case(b"content-type"));
    let is_json = fields.wrote_json || payload.is_some_and(is_json);
    let carried = record::producers(&Record {
        headers: fields.headers.clone(),
        ..Record::default()
    });
    // Besides those of the envelope, there is one of the record.
    let has_room = carried.len() + 1 < MAX_HEADERS;
    let content_type = said.or((is_json && !in_headers && has_room).then_some(JSON));
    let content_type =
        content_type.map(|text| record::header(b"content-type", Some(text.as_bytes())));
    let inner = fields.headers.clone();
    let all = [record::header(b"trace", None)]
        .into_iter()
        .chain(content_type)
        .chain(inner);
    let headers = record::producers(&Record {
        headers: all.collect(),
        ..Record::default()
    });
    assert_eq!(task.record.headers, headers);

    let number = |name| fields.numbers.get(name).map(|&number| number as u64);
    let due = match (number("dueAt"), number("delayMs")) {
        (Some(due), _) => Timestamp::from_millis(due).max(NOW),
        (None, Some(delay)) => Timestamp::from_millis(NOW.as_millis() + delay),
        (None, None) => NOW,
    };
    assert_eq!(task.due, due);
    let deadline = number("deadlineAt").map(Timestamp::from_millis);
    assert_eq!(task.deadline, deadline);
}

/// What the Avro library found.
fn by_library(value: &Value) -> Fields {
    let Value::Record(values) = value else {
        unreachable!("the schema is that of a record")
    };
    let mut fields = Fields::default();
    for (name, value) in values {
        let name = match name.as_str() {
            "scene" => "scene",
            "id" => "id",
            "payload" => "payload",
            "contentType" => "contentType",
            "headers" => "headers",
            "key" => "key",
            "dueAt" => "dueAt",
            "delayMs" => "delayMs",
            "deadlineAt" => "deadlineAt",
            other => unreachable!("no field {other} in the schema"),
        };
        match optional(value) {
            Some(Value::String(text)) => drop(fields.texts.insert(name, text.clone())),
            Some(Value::Bytes(bytes)) => drop(fields.bytes.insert(name, bytes.clone())),
            Some(Value::Long(number) | Value::TimestampMillis(number)) => {
                fields.numbers.insert(name, *number);
            }
            Some(Value::Array(headers)) => {
                fields.headers.extend(headers.iter().map(library_header));
            }
            Some(other) => unreachable!("{other:?} in the schema"),
            None => {}
        }
    }
    fields
}

/// What a union holds, or the value itself.
fn optional(value: &Value) -> Option<&Value> {
    match value {
        Value::Union(_, value) if **value == Value::Null => None,
        Value::Union(_, value) => Some(value),
        value => Some(value),
    }
}

/// A header that the Avro library found.
fn library_header(value: &Value) -> Header {
    let Value::Record(fields) = value else {
        unreachable!("a header is a record")
    };
    let [(_, Value::String(name)), (_, value)] = &fields[..] else {
        unreachable!("a header is a name and a value")
    };
    match optional(value) {
        Some(Value::Bytes(bytes)) => record::header(name.as_bytes(), Some(bytes)),
        Some(other) => unreachable!("{other:?} as the value of a header"),
        None => record::header(name.as_bytes(), None),
    }
}

/// The JSON form as it is documented, to the letter.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Strict {
    scene: String,
    id: Option<String>,
    payload: Option<Box<RawValue>>,
    payload_base64: Option<String>,
    content_type: Option<String>,
    #[serde(default)]
    headers: Vec<StrictHeader>,
    key: Option<String>,
    key_base64: Option<String>,
    due_at: Option<i64>,
    delay_ms: Option<i64>,
    deadline_at: Option<i64>,
}

/// A header of the JSON form, to the letter.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct StrictHeader {
    name: String,
    value: Option<String>,
    value_base64: Option<String>,
}

/// What a strict reader finds, if it takes the document.
fn strictly(document: &[u8]) -> Option<Fields> {
    let strict: Strict = serde_json::from_slice(document).ok()?;
    let mut fields = Fields::default();
    let texts = [
        ("scene", Some(strict.scene)),
        ("id", strict.id),
        ("contentType", strict.content_type),
    ];
    for (name, text) in texts {
        fields.texts.extend(text.map(|text| (name, text)));
    }
    let numbers = [
        ("dueAt", strict.due_at),
        ("delayMs", strict.delay_ms),
        ("deadlineAt", strict.deadline_at),
    ];
    for (name, number) in numbers {
        fields.numbers.extend(number.map(|number| (name, number)));
    }
    let bytes = |text: Option<String>, base64: Option<String>| match (text, base64) {
        (Some(text), None) => Some(Some(text.into_bytes())),
        (None, Some(base64)) => STANDARD.decode(base64).ok().map(Some),
        (None, None) => Some(None),
        (Some(_), Some(_)) => None,
    };
    let payload = match strict.payload {
        Some(raw) if raw.get().starts_with('"') => Some(serde_json::from_str(raw.get()).ok()?),
        Some(raw) => {
            fields.wrote_json = true;
            Some(raw.get().to_owned())
        }
        None => None,
    };
    let payload = bytes(payload, strict.payload_base64)?;
    fields
        .bytes
        .extend(payload.map(|payload| ("payload", payload)));
    let key = bytes(strict.key, strict.key_base64)?;
    fields.bytes.extend(key.map(|key| ("key", key)));
    for header in strict.headers {
        let value = bytes(header.value, header.value_base64)?;
        let header = record::header(header.name.as_bytes(), value.as_deref());
        fields.headers.push(header);
    }
    Some(fields)
}

/// The members of an object as any reader of JSON finds them.
fn members(document: &[u8]) -> Option<BTreeMap<String, Box<RawValue>>> {
    serde_json::from_slice(document).ok()
}

/// A text or a number, as any reader of JSON finds it.
fn text_of(members: &BTreeMap<String, Box<RawValue>>, key: &str) -> Option<String> {
    let raw = members.get(key)?.get();
    let is_number = raw.starts_with(|c: char| c == '-' || c.is_ascii_digit());
    if is_number {
        return Some(raw.to_owned());
    }
    serde_json::from_str(raw).ok()
}

/// Whatever was tolerated, a task has the names that any reader of JSON finds, and a time only where there is one.
fn check_general(task: &Task, document: &[u8]) {
    // Neither a mark of the byte order nor a frame is JSON.
    let Some(members) = members(document) else {
        return;
    };
    assert_eq!(text_of(&members, "scene").as_deref(), Some(&*task.scene));
    if let Some(id) = text_of(&members, "id") {
        assert_eq!(*task.id, *id);
    }
    let has = |key: &str| members.get(key).is_some_and(|raw| raw.get() != "null");
    assert!(has("dueAt") || has("delayMs") || task.due == NOW);
    assert_eq!(has("deadlineAt"), task.deadline.is_some());
    let has_payload = has("payload") || has("payloadBase64");
    assert_eq!(has_payload, task.record.value.is_some());
}

/// What is refused carries the names that any reader of JSON finds: whoever waits for the task hears of it.
fn check_known(poison: &Poison, document: &[u8]) {
    let Some(members) = members(document) else {
        return;
    };
    let is_word = |text: &String, limit: usize| {
        !text.is_empty() && text.len() <= limit && !text.contains(char::is_control)
    };
    let scene = text_of(&members, "scene").filter(|scene| is_word(scene, MAX_SCENE));
    if let Some(scene) = scene {
        assert_eq!(*poison.scene, *scene);
    }
    let id = text_of(&members, "id").filter(|id| is_word(id, MAX_ID));
    if let Some(id) = id.filter(|id| !headers::is_media_type(id)) {
        assert_eq!(*poison.id, *id);
    }
    if let Some(key) = text_of(&members, "key") {
        assert_eq!(poison.key.as_deref(), Some(key.as_bytes()));
    }
}
