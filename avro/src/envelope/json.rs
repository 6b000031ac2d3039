//! The JSON form of the envelope, read as producers in all languages write it, and never otherwise than they mean.
//!
//! `null` is absent; a text or a number stands for an identity, a key or the value of a header; a whole number may be a text, or have a
//! fraction of zeros; a time may be RFC 3339; headers are an array or an object; base64 is that of any alphabet. What is not taken is
//! refused by its path, with what was found and what is expected. Invariant: nothing is passed over; a key that is not known, or there
//! twice, is refused.

use bytes::Bytes;
use serde_json::value::RawValue;

use retide_core::Header;

use super::{Broken, Envelope, Known, broken};
use crate::headers::MAX_HEADERS;
use crate::json::{
    Members, Object, any_text, base64, elements_of, expected, members_of, millis, no_json, string,
    text, time, utf8,
};

/// The keys of an envelope.
const KEYS: [&str; 11] = [
    "scene",
    "id",
    "payload",
    "payloadBase64",
    "contentType",
    "headers",
    "key",
    "keyBase64",
    "dueAt",
    "delayMs",
    "deadlineAt",
];

/// Most members of an object, and elements of an array, that are looked at: more than an envelope has headers.
const MAX_MEMBERS: usize = MAX_HEADERS + 1;

/// The keys of a header.
const HEADER_KEYS: [&str; 3] = ["name", "value", "valueBase64"];

/// What `JSON.stringify` makes of bytes begins so.
const NODE_BUFFER: &str = r#"{"type":"Buffer","data":["#;

/// Reads the JSON form.
pub(super) fn read(value: &[u8]) -> Result<Envelope, Broken> {
    let document = utf8(value)?;
    let mut members = Vec::new();
    members_of(document, MAX_MEMBERS, &mut members)
        .map_err(|error| no_json(document, MAX_MEMBERS, &error))?;
    if in_connect(&members).is_some() {
        return Err(broken(
            "an object of schema and payload, as the JSON converter of Kafka Connect writes it; set its schemas.enable to false",
        ));
    }
    let members = Object::try_new("", members, &KEYS)?;

    let text_of = |key| members.get(key).map(|raw| any_text(key, raw)).transpose();
    let time_of = |key| members.get(key).map(|raw| time(key, raw)).transpose();
    let payload = members.get("payload");
    if payload.is_some_and(|raw| raw.get().starts_with(NODE_BUFFER)) {
        return Err(broken(
            "payload: a Buffer of Node found; payloadBase64 expected, with its toString(\"base64\")",
        ));
    }
    let wrote_json = payload.is_some_and(|raw| !raw.get().starts_with('"'));
    let payload = match payload {
        // A text is what it says; any other JSON is the payload itself, as it was written.
        Some(raw) if raw.get().starts_with('"') => Some(string("payload", raw)?),
        Some(raw) => Some(raw.get().to_owned()),
        None => None,
    };
    let delay_ms = members.get("delayMs");
    let content_type = members.get("contentType");
    Ok(Envelope {
        scene: text_of("scene")?,
        id: text_of("id")?,
        payload: members.either("payload", payload, "payloadBase64")?,
        content_type: content_type
            .map(|raw| text("contentType", raw))
            .transpose()?,
        wrote_json,
        headers: match members.get("headers") {
            Some(raw) => headers(raw)?,
            None => Vec::new(),
        },
        key: members.either("key", text_of("key")?, "keyBase64")?,
        due_at: time_of("dueAt")?,
        delay_ms: delay_ms.map(|raw| millis("delayMs", raw)).transpose()?,
        deadline_at: time_of("deadlineAt")?,
    })
}

/// What can be read of a document that is refused: also what stands before a break, and in Avro's own JSON.
pub(super) fn known(value: &[u8]) -> Known {
    let mut members = Vec::new();
    if let Ok(text) = utf8(value) {
        // What was wrong has been told.
        let _ = members_of(text, MAX_MEMBERS, &mut members);
    }
    if let Some(inner) = in_connect(&members) {
        let text = inner.get();
        members = Vec::new();
        let _ = members_of(text, MAX_MEMBERS, &mut members);
    }
    let find = |key: &str| {
        // Of several, most readers take the last one; a name in another case is refused, and still what was meant.
        let mut exact = members.iter();
        let exact = exact.rfind(|(name, _)| name == key);
        let mut meant = members.iter();
        exact.or_else(|| meant.rfind(|(name, _)| name.eq_ignore_ascii_case(key)))
    };
    let text_of = |key| {
        let (_, raw) = find(key)?;
        any_text(key, raw).ok().or_else(|| {
            let mut members = Vec::new();
            members_of(raw.get(), MAX_MEMBERS, &mut members).ok()?;
            match &members[..] {
                [(branch, raw)] if branch == "string" || branch == "bytes" => {
                    any_text(key, raw).ok()
                }
                _ => None,
            }
        })
    };
    let key = text_of("key").map(Bytes::from).or_else(|| {
        let (_, raw) = find("keyBase64")?;
        base64("keyBase64", raw).ok()
    });
    Known {
        scene: text_of("scene"),
        id: text_of("id"),
        key,
    }
}

/// The value in an object of schema and value, which the JSON converter of Kafka Connect writes unless it is told otherwise.
fn in_connect<'a>(members: &Members<'a>) -> Option<&'a RawValue> {
    match &members[..] {
        [(schema, _), (payload, raw)] | [(payload, raw), (schema, _)]
            if schema == "schema" && payload == "payload" =>
        {
            Some(*raw)
        }
        _ => None,
    }
}

/// Whether a document plainly is an envelope: an object that names a scene, and has a payload or nothing but keys of an envelope.
pub(super) fn is_plain(value: &[u8]) -> bool {
    const SCENE: &[u8] = b"\"scene\"";
    if !value.windows(SCENE.len()).any(|window| window == SCENE) {
        return false;
    }
    let mut members = Vec::new();
    let is_object =
        utf8(value).is_ok_and(|text| members_of(text, MAX_MEMBERS, &mut members).is_ok());
    let is_text = |(name, raw): &(String, &RawValue)| name == "scene" && raw.get().starts_with('"');
    let has_payload = || {
        let mut names = members.iter().map(|(name, _)| name);
        names.any(|name| name == "payload" || name == "payloadBase64")
    };
    let are_known = || members.iter().all(|(name, _)| KEYS.contains(&&**name));
    is_object && members.iter().any(is_text) && (has_payload() || are_known())
}

// === headers ===

/// The headers of an envelope: an array of objects with name and value, or one object.
fn headers(raw: &RawValue) -> Result<Vec<Header>, Broken> {
    let text = raw.get();
    let many = |_| Broken(format!("headers: over {MAX_HEADERS}"));
    match text.as_bytes().first() {
        Some(b'[') => {
            let mut elements = Vec::new();
            elements_of(text, MAX_MEMBERS, &mut elements).map_err(many)?;
            let elements = elements.into_iter().enumerate();
            let elements = elements.filter(|(_, raw): &(usize, &RawValue)| raw.get() != "null");
            elements.map(|(index, raw)| header(index, raw)).collect()
        }
        Some(b'{') => {
            let mut members = Vec::new();
            members_of(text, MAX_MEMBERS, &mut members).map_err(many)?;
            for (index, (name, _)) in members.iter().enumerate() {
                if members[..index].iter().any(|(before, _)| before == name) {
                    return Err(Broken(format!(
                        "headers.{name} is there twice; in an array, names may repeat"
                    )));
                }
            }
            members
                .iter()
                .map(|(name, raw): &(String, &RawValue)| {
                    let path = format!("headers.{name}");
                    let value = (raw.get() != "null")
                        .then(|| any_text(&path, raw))
                        .transpose()?;
                    Ok(Header {
                        name: name.as_str().into(),
                        value: value.map(Bytes::from),
                    })
                })
                .collect()
        }
        Some(_) | None => Err(expected(
            "headers",
            raw,
            "an object, or an array of objects with name and value,",
        )),
    }
}

/// One header of an array.
fn header(index: usize, raw: &RawValue) -> Result<Header, Broken> {
    let path = format!("headers[{index}]");
    if !raw.get().starts_with('{') {
        return Err(expected(&path, raw, "an object with name and value"));
    }
    let mut members = Vec::new();
    members_of(raw.get(), MAX_MEMBERS, &mut members)
        .map_err(|_| Broken(format!("{path}: too many keys")))?;
    let members = Object::try_new(&path, members, &HEADER_KEYS)?;
    let Some(name) = members.get("name") else {
        return Err(Broken(format!("{path}.name is missing")));
    };
    let value = members.get("value");
    let value = value
        .map(|raw| any_text(&format!("{path}.value"), raw))
        .transpose()?;
    Ok(Header {
        name: text(&format!("{path}.name"), name)?.into(),
        value: members.either("value", value, "valueBase64")?,
    })
}
