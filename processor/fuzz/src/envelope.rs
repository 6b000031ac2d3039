//! Envelopes: what is accepted is what other readers of Avro and JSON find in it, and survives being written again.

use std::collections::BTreeMap;

use apache_avro::types::Value;
use apache_avro::{Schema, from_avro_datum, to_avro_datum};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde_json::value::RawValue;

use retide_avro::headers::MAX_HEADERS;
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
        Err(poison) => return record::check_poison(&poison, &record),
    };

    record::check_task(&task, data.len() + record.weight());
    record::check_count(&task);
    if task.scene.is_empty() {
        // Somebody's payload, which may look like an envelope only where nothing says that it is one.
        assert!(content_type.is_none() && form != 3);
        assert_eq!(task.record, record);
        return;
    }
    match form {
        0 => check_fields(&task, &by_json(value)),
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

/// What a general reader of JSON finds.
fn by_json(text: &[u8]) -> Fields {
    let object: BTreeMap<String, Box<RawValue>> = serde_json::from_slice(text).expect("an object");
    let mut fields = Fields::default();
    for name in ["scene", "id", "contentType"] {
        if let Some(text) = text_of(&object, name) {
            fields.texts.insert(name, text);
        }
    }
    for name in ["dueAt", "delayMs", "deadlineAt"] {
        let number = object
            .get(name)
            .and_then(|raw| serde_json::from_str(raw.get()).ok());
        if let Some(number) = number {
            fields.numbers.insert(name, number);
        }
    }
    for (name, base64) in [("payload", "payloadBase64"), ("key", "keyBase64")] {
        if let Some(bytes) = json_bytes(&object, name, base64) {
            fields.bytes.insert(name, bytes);
        }
    }
    let payload = object.get("payload").map(|raw| raw.get());
    fields.wrote_json = payload.is_some_and(|raw| raw != "null" && !raw.starts_with('"'));
    if let Some(headers) = object.get("headers") {
        let headers: Vec<BTreeMap<String, Box<RawValue>>> =
            serde_json::from_str(headers.get()).expect("an array of objects");
        for header in headers {
            let name = text_of(&header, "name").expect("a name");
            let value = json_bytes(&header, "value", "valueBase64");
            fields
                .headers
                .push(record::header(name.as_bytes(), value.as_deref()));
        }
    }
    fields
}

/// The text under a key, unless there is none or null.
fn text_of(object: &BTreeMap<String, Box<RawValue>>, key: &str) -> Option<String> {
    serde_json::from_str(object.get(key)?.get()).ok()
}

/// Bytes under one of two keys: as text or as any other JSON, or as base64.
fn json_bytes(
    object: &BTreeMap<String, Box<RawValue>>,
    key: &str,
    base64: &str,
) -> Option<Vec<u8>> {
    match object.get(key).map(|raw| raw.get()) {
        Some("null") | None => {
            text_of(object, base64).map(|text| STANDARD.decode(text).expect("base64"))
        }
        Some(text) if text.starts_with('"') => text_of(object, key).map(String::into_bytes),
        Some(json) => Some(json.as_bytes().to_vec()),
    }
}
