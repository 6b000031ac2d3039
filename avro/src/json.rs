//! JSON that people and programs write, read exactly: what is not taken is refused by its path, with what was found and what is expected.
//!
//! Not what the keys mean, which is for each reader (`envelope/json.rs`, `control.rs`). Invariant: nothing is passed over; a key that is
//! not known, or there twice, is refused; no nesting and no length makes it recurse or panic.

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

use crate::headers::shortened;
use crate::number;

/// What was wrong with a document, in a few words.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Broken(pub(crate) String);

/// The members of an object, in order.
pub(crate) type Members<'a> = Vec<(String, &'a RawValue)>;

/// Longest piece of a document that a refusal shows, in characters.
const LONGEST_PIECE: usize = 24;

/// Base64 of either alphabet, which are made one before, with padding or without.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

// === objects ===

/// The members of an object whose keys are all known.
pub(crate) struct Object<'a> {
    /// Where the object is, with a full stop behind it; nothing for the document.
    path: String,
    /// The members that are not null.
    members: Members<'a>,
}

impl<'a> Object<'a> {
    /// The object at `path`, of which only the keys `known` are expected, and each once.
    pub(crate) fn try_new(
        path: &str,
        members: Members<'a>,
        known: &[&str],
    ) -> Result<Self, Broken> {
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
    pub(crate) fn get(&self, key: &str) -> Option<&'a RawValue> {
        let mut members = self.members.iter();
        members.find(|(name, _)| name == key).map(|(_, raw)| *raw)
    }

    /// Bytes given as `text` under `key` or as base64 under another, but not both.
    pub(crate) fn either(
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
pub(crate) fn unknown(path: &str, key: &str, known: &[&str]) -> String {
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

// === values ===

/// The value of a key that has to be there.
pub(crate) fn needed<'a>(
    members: &Object<'a>,
    key: &str,
    what: &str,
) -> Result<&'a RawValue, Broken> {
    let raw = members.get(key);
    raw.ok_or_else(|| Broken(format!("{key} is missing; it is {what}")))
}

/// A text, or a number as it is written.
pub(crate) fn any_text(path: &str, raw: &RawValue) -> Result<String, Broken> {
    match raw.get().as_bytes().first() {
        Some(b'"') => string(path, raw),
        Some(b'-' | b'0'..=b'9') => Ok(raw.get().to_owned()),
        Some(_) | None => Err(expected(path, raw, "text or a number")),
    }
}

/// A text.
pub(crate) fn text(path: &str, raw: &RawValue) -> Result<String, Broken> {
    if raw.get().starts_with('"') {
        string(path, raw)
    } else {
        Err(expected(path, raw, "text"))
    }
}

/// What a text says.
pub(crate) fn string(path: &str, raw: &RawValue) -> Result<String, Broken> {
    serde_json::from_str(raw.get()).map_err(|_| {
        let found = found(raw);
        Broken(format!(
            "{path}: {found} with half a character (one of a pair of \\uD800 to \\uDFFF)"
        ))
    })
}

/// A number of milliseconds.
pub(crate) fn millis(path: &str, raw: &RawValue) -> Result<i64, Broken> {
    let what = "a whole number of milliseconds";
    whole(path, raw, |_| None, what)
}

/// A point in time.
pub(crate) fn time(path: &str, raw: &RawValue) -> Result<i64, Broken> {
    let what = "whole milliseconds since 1970, or a time as 2026-12-24T18:00:00Z,";
    whole(path, raw, number::rfc3339, what).map_err(|Broken(why)| {
        let hint = number::hint(raw.get().trim_matches('"')).unwrap_or_default();
        Broken(format!("{why}{hint}"))
    })
}

/// A whole number, or a text with one or with what `other` reads. What is too large for one is as far away as can be.
pub(crate) fn whole(
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
pub(crate) fn base64(path: &str, raw: &RawValue) -> Result<Bytes, Broken> {
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
pub(crate) fn expected(path: &str, raw: &RawValue, what: &str) -> Broken {
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
pub(crate) fn found(raw: &RawValue) -> String {
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
pub(crate) fn beginning(text: &str) -> String {
    match text.char_indices().nth(LONGEST_PIECE) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

// === the document ===

/// The text of a document.
pub(crate) fn utf8(value: &[u8]) -> Result<&str, Broken> {
    str::from_utf8(value).map_err(|error| {
        Broken(format!(
            "not UTF-8 at byte {} of the JSON",
            error.valid_up_to()
        ))
    })
}

/// What is wrong with a document, in words of JSON.
pub(crate) fn no_json(text: &str, most: usize, error: &serde_json::Error) -> Broken {
    let (line, column) = (error.line(), error.column());
    match error.classify() {
        Category::Eof => Broken(format!(
            "not JSON: it ends at line {line}, column {column}, in the middle"
        )),
        Category::Data => Broken(format!("over {most} keys")),
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

/// Collects the members of an object, also those before a break; at most so many.
pub(crate) fn members_of<'a>(
    text: &'a str,
    most: usize,
    members: &mut Members<'a>,
) -> Result<(), serde_json::Error> {
    let mut document = serde_json::Deserializer::from_str(text);
    document.deserialize_map(Collect { out: members, most })?;
    document.end()
}

/// Collects the elements of an array; at most so many.
pub(crate) fn elements_of<'a>(
    text: &'a str,
    most: usize,
    elements: &mut Vec<&'a RawValue>,
) -> Result<(), serde_json::Error> {
    let mut document = serde_json::Deserializer::from_str(text);
    document.deserialize_seq(Collect {
        out: elements,
        most,
    })?;
    document.end()
}

/// Where members or elements are collected.
struct Collect<'v, T> {
    /// Those so far.
    out: &'v mut Vec<T>,
    /// How many there may be.
    most: usize,
}

impl<'de> Visitor<'de> for Collect<'_, (String, &'de RawValue)> {
    type Value = ();

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(key) = map.next_key()? {
            if self.out.len() == self.most {
                return Err(A::Error::custom("too many members"));
            }
            self.out.push((key, map.next_value()?));
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
            if self.out.len() == self.most {
                return Err(A::Error::custom("too many elements"));
            }
            self.out.push(element);
        }
        Ok(())
    }
}
