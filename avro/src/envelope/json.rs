//! The JSON form of the envelope, read as producers in all languages write it, and never otherwise than they mean.
//!
//! `null` is absent; a text or a number stands for an identity, a key or the value of a header; a whole number may be a text, or have a
//! fraction of zeros; a time may be RFC 3339; headers are an array or an object; base64 is that of any alphabet. What is not taken is
//! refused by its path, with what was found and what is expected. Invariant: nothing is passed over; a key that is not known, or there
//! twice, is refused.

use std::fmt;
use std::str;

use base64::alphabet;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig};
use base64::engine::{DecodePaddingMode, Engine as _};
use bytes::Bytes;
use serde::Deserializer as _;
use serde::de::{Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::error::Category;
use serde_json::value::RawValue;

use retide_core::Header;

use super::{Broken, Envelope, Known, broken};
use crate::headers::{MAX_HEADERS, shortened};
use crate::number;

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

/// The keys of a header.
const HEADER_KEYS: [&str; 3] = ["name", "value", "valueBase64"];

/// Most members of an object, and elements of an array, that are looked at: more than an envelope has headers.
const MAX_MEMBERS: usize = MAX_HEADERS + 1;

/// What `JSON.stringify` makes of bytes begins so.
const NODE_BUFFER: &str = r#"{"type":"Buffer","data":["#;

/// Longest piece of a document that a refusal shows, in characters.
const LONGEST_PIECE: usize = 24;

/// Base64 of either alphabet, which are made one before, with padding or without.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// The members of an object, in order.
type Members<'a> = Vec<(String, &'a RawValue)>;

/// Reads the JSON form.
pub(super) fn read(value: &[u8]) -> Result<Envelope, Broken> {
    let document = utf8(value)?;
    let mut members = Vec::new();
    members_of(document, &mut members).map_err(|error| no_json(document, &error))?;
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
        let _ = members_of(text, &mut members);
    }
    if let Some(inner) = in_connect(&members) {
        let text = inner.get();
        members = Vec::new();
        let _ = members_of(text, &mut members);
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
            members_of(raw.get(), &mut members).ok()?;
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
    let is_object = utf8(value).is_ok_and(|text| members_of(text, &mut members).is_ok());
    let is_text = |(name, raw): &(String, &RawValue)| name == "scene" && raw.get().starts_with('"');
    let has_payload = || {
        let mut names = members.iter().map(|(name, _)| name);
        names.any(|name| name == "payload" || name == "payloadBase64")
    };
    let are_known = || members.iter().all(|(name, _)| KEYS.contains(&&**name));
    is_object && members.iter().any(is_text) && (has_payload() || are_known())
}

// === objects ===

/// The members of an object whose keys are all known.
struct Object<'a> {
    /// Where the object is, with a full stop behind it; nothing for the document.
    path: String,
    /// The members that are not null.
    members: Members<'a>,
}

impl<'a> Object<'a> {
    /// The object at `path`, of which only the keys `known` are expected, and each once.
    fn try_new(path: &str, members: Members<'a>, known: &[&str]) -> Result<Self, Broken> {
        let path = if path.is_empty() {
            String::new()
        } else {
            format!("{path}.")
        };
        for (index, (key, _)) in members.iter().enumerate() {
            if !known.contains(&&**key) {
                return Err(Broken(unknown(&path, key, known)));
            }
            if members[..index].iter().any(|(before, _)| before == key) {
                return Err(Broken(format!("{path}{key} is there twice")));
            }
        }
        let members = members.into_iter();
        let members = members.filter(|(_, raw)| raw.get() != "null").collect();
        Ok(Self { path, members })
    }

    /// The value of a key, unless it is absent or null.
    fn get(&self, key: &str) -> Option<&'a RawValue> {
        let mut members = self.members.iter();
        members.find(|(name, _)| name == key).map(|(_, raw)| *raw)
    }

    /// Bytes given as `text` under `key` or as base64 under another, but not both.
    fn either(
        &self,
        key: &str,
        text: Option<String>,
        other: &str,
    ) -> Result<Option<Bytes>, Broken> {
        let path = &self.path;
        match (text, self.get(other)) {
            (Some(_), Some(_)) => Err(Broken(format!(
                "both {path}{key} and {path}{other}; one of them is expected"
            ))),
            (Some(text), None) => Ok(Some(text.into())),
            (None, Some(raw)) => base64(&format!("{path}{other}"), raw).map(Some),
            (None, None) => Ok(None),
        }
    }
}

/// Says of a key that it is not known, and which one may be meant.
fn unknown(path: &str, key: &str, known: &[&str]) -> String {
    let letters = |text: &str| -> String {
        let letters = text.chars().filter(char::is_ascii_alphanumeric);
        letters.map(|c| c.to_ascii_lowercase()).collect()
    };
    let distance = |other: &str| {
        let (key, other) = (letters(key), letters(other));
        // Longer ones are not like any.
        if key.len() > LONGEST_PIECE {
            return usize::MAX;
        }
        strsim::damerau_levenshtein(&key, &other)
    };
    let closest = known.iter().map(|other| (distance(other), *other)).min();
    let hint = match closest {
        Some((distance, other)) if distance <= other.len() / 4 => format!("did you mean {other}?"),
        Some(_) | None => format!("expected are {}", known.join(", ")),
    };
    format!("unknown key {}; {hint}", shortened(&format!("{path}{key}")))
}

// === headers ===

/// The headers of an envelope: an array of objects with name and value, or one object.
fn headers(raw: &RawValue) -> Result<Vec<Header>, Broken> {
    let text = raw.get();
    let many = |_| Broken(format!("headers: over {MAX_HEADERS}"));
    match text.as_bytes().first() {
        Some(b'[') => {
            let mut elements = Vec::new();
            elements_of(text, &mut elements).map_err(many)?;
            let elements = elements.into_iter().enumerate();
            let elements = elements.filter(|(_, raw): &(usize, &RawValue)| raw.get() != "null");
            elements.map(|(index, raw)| header(index, raw)).collect()
        }
        Some(b'{') => {
            let mut members = Vec::new();
            members_of(text, &mut members).map_err(many)?;
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
    members_of(raw.get(), &mut members).map_err(|_| Broken(format!("{path}: too many keys")))?;
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

// === values ===

/// A text, or a number as it is written.
fn any_text(path: &str, raw: &RawValue) -> Result<String, Broken> {
    match raw.get().as_bytes().first() {
        Some(b'"') => string(path, raw),
        Some(b'-' | b'0'..=b'9') => Ok(raw.get().to_owned()),
        Some(_) | None => Err(expected(path, raw, "text or a number")),
    }
}

/// A text.
fn text(path: &str, raw: &RawValue) -> Result<String, Broken> {
    if raw.get().starts_with('"') {
        string(path, raw)
    } else {
        Err(expected(path, raw, "text"))
    }
}

/// What a text says.
fn string(path: &str, raw: &RawValue) -> Result<String, Broken> {
    serde_json::from_str(raw.get()).map_err(|_| {
        let found = found(raw);
        Broken(format!(
            "{path}: {found} with half a character (one of a pair of \\uD800 to \\uDFFF)"
        ))
    })
}

/// A number of milliseconds.
fn millis(path: &str, raw: &RawValue) -> Result<i64, Broken> {
    let what = "a whole number of milliseconds";
    whole(path, raw, |_| None, what)
}

/// A point in time.
fn time(path: &str, raw: &RawValue) -> Result<i64, Broken> {
    let what = "whole milliseconds since 1970, or a time as 2026-12-24T18:00:00Z,";
    whole(path, raw, number::rfc3339, what).map_err(|Broken(why)| {
        let hint = number::hint(raw.get().trim_matches('"')).unwrap_or_default();
        Broken(format!("{why}{hint}"))
    })
}

/// A whole number, or a text with one or with what `other` reads. What is too large for one is as far away as can be.
fn whole(
    path: &str,
    raw: &RawValue,
    other: fn(&str) -> Option<i128>,
    what: &str,
) -> Result<i64, Broken> {
    let number = match raw.get().as_bytes().first() {
        Some(b'"') => {
            let text = string(path, raw)?;
            number::whole(&text).or_else(|| other(&text))
        }
        Some(_) | None => number::whole(raw.get()),
    };
    match number {
        Some(number) => {
            Ok(i64::try_from(number).unwrap_or(if number < 0 { i64::MIN } else { i64::MAX }))
        }
        None => Err(expected(path, raw, what)),
    }
}

/// Bytes in base64 of either alphabet, padded or not, in one line or in many.
fn base64(path: &str, raw: &RawValue) -> Result<Bytes, Broken> {
    if !raw.get().starts_with('"') {
        return Err(expected(path, raw, "text in base64"));
    }
    let text = string(path, raw)?;
    let mut symbols = Vec::with_capacity(text.len());
    for (index, symbol) in text.chars().enumerate() {
        match symbol {
            ' ' | '\t' | '\r' | '\n' => {}
            '-' => symbols.push(b'+'),
            '_' => symbols.push(b'/'),
            'A'..='Z' | 'a'..='z' | '0'..='9' | '+' | '/' | '=' => symbols.push(symbol as u8),
            other => {
                let place = index + 1;
                return Err(Broken(format!(
                    "{path}: {other:?} at character {place}; base64 expected"
                )));
            }
        }
    }
    match BASE64.decode(&symbols) {
        Ok(bytes) => Ok(bytes.into()),
        Err(_) => Err(Broken(format!(
            "{path}: {} symbols of base64 that do not end at a byte; is it cut off, or twice base64 in a row?",
            symbols.len()
        ))),
    }
}

/// Says what is at `path`, and what is expected there.
fn expected(path: &str, raw: &RawValue, what: &str) -> Broken {
    let found = found(raw);
    // Avro's own JSON writes a union as an object of its type.
    let is_union = ["{\"string\":", "{\"long\":", "{\"bytes\":", "{\"int\":"]
        .iter()
        .any(|start| raw.get().starts_with(start));
    let hint = if is_union {
        " (Avro's JSON encoding is not read; write the value itself)"
    } else {
        ""
    };
    Broken(format!("{path}: {found} found, {what} expected{hint}"))
}

/// The type of a value and its beginning.
fn found(raw: &RawValue) -> String {
    let text = raw.get();
    let kind = match text.as_bytes().first() {
        Some(b'"') => "text",
        Some(b'{') => "an object",
        Some(b'[') => "an array",
        Some(b'-' | b'0'..=b'9') => "the number",
        Some(_) | None => return text.to_owned(),
    };
    format!("{kind} {}", beginning(text))
}

/// At most the first characters of a text.
fn beginning(text: &str) -> String {
    match text.char_indices().nth(LONGEST_PIECE) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

// === the document ===

/// The text of a document.
fn utf8(value: &[u8]) -> Result<&str, Broken> {
    str::from_utf8(value).map_err(|error| {
        Broken(format!(
            "not UTF-8 at byte {} of the JSON",
            error.valid_up_to()
        ))
    })
}

/// What is wrong with a document, in words of JSON.
fn no_json(text: &str, error: &serde_json::Error) -> Broken {
    let (line, column) = (error.line(), error.column());
    match error.classify() {
        Category::Eof => Broken(format!(
            "not JSON: it ends at line {line}, column {column}, in the middle"
        )),
        Category::Data => broken("over 512 keys"),
        Category::Syntax | Category::Io => {
            let lines: usize = text
                .split_inclusive('\n')
                .take(line.saturating_sub(1))
                .map(str::len)
                .sum();
            let mut at = (lines + column.saturating_sub(1)).min(text.len());
            while !text.is_char_boundary(at) {
                at -= 1;
            }
            let piece = beginning(text[at..].lines().next().unwrap_or_default());
            Broken(format!(
                "not JSON at line {line}, column {column}, from {}",
                shortened(&piece)
            ))
        }
    }
}

/// Collects the members of an object, also those before a break.
fn members_of<'a>(text: &'a str, members: &mut Members<'a>) -> Result<(), serde_json::Error> {
    let mut document = serde_json::Deserializer::from_str(text);
    document.deserialize_map(Collect(members))?;
    document.end()
}

/// Collects the elements of an array.
fn elements_of<'a>(
    text: &'a str,
    elements: &mut Vec<&'a RawValue>,
) -> Result<(), serde_json::Error> {
    let mut document = serde_json::Deserializer::from_str(text);
    document.deserialize_seq(Collect(elements))?;
    document.end()
}

/// Where members or elements are collected.
struct Collect<'v, T>(&'v mut Vec<T>);

impl<'de> Visitor<'de> for Collect<'_, (String, &'de RawValue)> {
    type Value = ();

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(key) = map.next_key()? {
            if self.0.len() == MAX_MEMBERS {
                return Err(A::Error::custom("too many members"));
            }
            self.0.push((key, map.next_value()?));
        }
        Ok(())
    }
}

impl<'de> Visitor<'de> for Collect<'_, &'de RawValue> {
    type Value = ();

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("an array")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<(), A::Error> {
        while let Some(element) = sequence.next_element()? {
            if self.0.len() == MAX_MEMBERS {
                return Err(A::Error::custom("too many elements"));
            }
            self.0.push(element);
        }
        Ok(())
    }
}
