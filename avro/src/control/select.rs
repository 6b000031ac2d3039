//! Selectors as they are written: which keys there are, and what each of them takes.
//!
//! Invariant: what is null or empty is refused, so that a program that has lost a value is never about more tasks than it means.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;
use std::sync::Arc;

use bytes::Bytes;
use serde_json::value::RawValue;

use retide_core::selector::{ErrorFingerprint, MAX_VALUES, OriginPattern, Parts, Selector, Span};
use retide_core::{Name, Timestamp, span};

use super::{Writer, needed, object};
use crate::headers::shortened;
use crate::json::{
    Broken, Members, Object, any_text, base64, elements_of, expected, members_of, string,
};
use crate::number;

/// The keys of a selector.
const SELECT_KEYS: [&str; 12] = [
    "id",
    "scene",
    "key",
    "key_base64",
    "header",
    "error",
    "fingerprint",
    "target",
    "attempts",
    "entered",
    "due",
    "origin",
];

/// The keys of a header of a selector.
const HEADER_KEYS: [&str; 3] = ["name", "value", "value_base64"];

/// Numbers that are seconds since 1970 where milliseconds are meant: the years 2001 to 2286.
const SECONDS: RangeInclusive<i128> = 1_000_000_000..=9_999_999_999;

/// What a span of time looks like, for those who write another one.
const SPAN: &str = "FROM..TO expected, each RFC 3339, milliseconds since 1970, `now`, or relative such as -2h; one of them may be left out";

/// Reads a selector. What is null or empty is refused: a program that has lost a value would be about more tasks than it means.
pub(super) fn select(
    members: Members<'_>,
    now: Timestamp,
    writer: Writer,
) -> Result<Selector, Broken> {
    for (key, raw) in &members {
        if matches!(raw.get(), "null" | "\"\"" | "[]" | "{}") {
            let key = shortened(key);
            return Err(Broken(format!(
                "{key} of select is {}; leave it out, or name a value",
                raw.get()
            )));
        }
    }
    let members = Object::try_new("select", members, &SELECT_KEYS)?;
    let texts_of = |key: &str| {
        let raw = members.get(key);
        let path = format!("select.{key}");
        raw.map_or(Ok(Vec::new()), |raw| texts(&path, raw))
    };
    let mut keys: BTreeSet<Bytes> = texts_of("key")?.into_iter().map(Bytes::from).collect();
    if let Some(raw) = members.get("key_base64") {
        for raw in one_or_many("select.key_base64", raw)? {
            keys.insert(base64("select.key_base64", raw)?);
        }
    }
    let fingerprints = texts_of("fingerprint")?.into_iter().map(|text| {
        ErrorFingerprint::parse(&text).ok_or_else(|| {
            let text = shortened(&text);
            Broken(format!(
                "select.fingerprint is {text}; 16 hexadecimal digits expected"
            ))
        })
    });
    let span_of = |key: &'static str| {
        let raw = members.get(key);
        raw.map(|raw| span_at(key, raw, now, writer)).transpose()
    };
    let parts = Parts {
        ids: texts_of("id")?.into_iter().map(Arc::from).collect(),
        scenes: texts_of("scene")?.into_iter().map(Arc::from).collect(),
        keys,
        headers: members.get("header").map_or(Ok(Vec::new()), headers)?,
        errors: texts_of("error")?.into_iter().map(Box::from).collect(),
        fingerprints: fingerprints.collect::<Result<_, _>>()?,
        targets: texts_of("target")?.into_iter().map(Box::from).collect(),
        attempts: members.get("attempts").map(attempts).transpose()?,
        entered: span_of("entered")?,
        due: span_of("due")?,
        origins: texts_of("origin")?
            .iter()
            .map(|text| origin(text))
            .collect::<Result<_, _>>()?,
    };
    Selector::new(parts).map_err(|error| Broken(error.to_string()))
}

/// One value, or those of an array.
fn one_or_many<'a>(path: &str, raw: &'a RawValue) -> Result<Vec<&'a RawValue>, Broken> {
    if !raw.get().starts_with('[') {
        return Ok(vec![raw]);
    }
    let mut elements = Vec::new();
    elements_of(raw.get(), MAX_VALUES, &mut elements).map_err(|_| {
        Broken(format!(
            "{path} has over {MAX_VALUES} values; send several commands"
        ))
    })?;
    Ok(elements)
}

/// One text, or those of an array. An empty one is refused.
fn texts(path: &str, raw: &RawValue) -> Result<Vec<String>, Broken> {
    let texts = one_or_many(path, raw)?.into_iter().map(|raw| {
        let is_text = raw.get().starts_with(['"', '-']) || raw.get().starts_with(char::is_numeric);
        if !is_text {
            return Err(expected(path, raw, "text, or an array of texts,"));
        }
        match any_text(path, raw)? {
            text if text.is_empty() => Err(Broken(format!(
                "{path} holds an empty text; leave it out, or name a value"
            ))),
            text => Ok(text),
        }
    });
    texts.collect()
}

/// Headers: an object of names and values, a text `NAME=VALUE`, or an array of such texts, or of objects with name and value.
fn headers(raw: &RawValue) -> Result<Vec<(Name, Bytes)>, Broken> {
    const PATH: &str = "select.header";
    if !raw.get().starts_with('{') {
        return one_or_many(PATH, raw)?.into_iter().map(header).collect();
    }
    let mut members = Vec::new();
    members_of(raw.get(), MAX_VALUES, &mut members)
        .map_err(|_| Broken(format!("{PATH} has over {MAX_VALUES} names")))?;
    for (index, (name, _)) in members.iter().enumerate() {
        if members[..index].iter().any(|(before, _)| before == name) {
            let name = shortened(name);
            return Err(Broken(format!(
                "{PATH} has {name} twice; in an array, names may repeat"
            )));
        }
    }
    members
        .iter()
        .map(|(name, raw): &(String, &RawValue)| {
            if raw.get().starts_with('[') {
                let name = shortened(name);
                return Err(Broken(format!(
                    "{PATH} has an array for {name}; all headers have to be there, so send a command for each value"
                )));
            }
            let path = format!("{PATH}.{}", shortened(name));
            let value = any_text(&path, raw)?;
            named_header(name, value.into())
        })
        .collect()
}

/// One header of an array.
fn header(raw: &RawValue) -> Result<(Name, Bytes), Broken> {
    const PATH: &str = "select.header";
    if raw.get().starts_with('"') {
        let text = string(PATH, raw)?;
        let Some((name, value)) = text.split_once('=') else {
            return Err(Broken(format!(
                "{PATH} is {}; NAME=VALUE expected",
                shortened(&text)
            )));
        };
        return named_header(name, Bytes::copy_from_slice(value.as_bytes()));
    }
    if !raw.get().starts_with('{') {
        return Err(expected(PATH, raw, "an object of names and values"));
    }
    let members = Object::try_new(PATH, object(raw.get(), PATH)?, &HEADER_KEYS)?;
    let name = needed(&members, "name", "the name of a header")?;
    let value = members.get("value");
    let value = value
        .map(|raw| any_text("select.header.value", raw))
        .transpose()?;
    let value = members.either("value", value, "value_base64")?;
    let value = value.ok_or_else(|| Broken(format!("{PATH}.value is missing")))?;
    named_header(&any_text("select.header.name", name)?, value)
}

/// A header whose name is said.
fn named_header(name: &str, value: Bytes) -> Result<(Name, Bytes), Broken> {
    if name.is_empty() {
        return Err(Broken("select.header has an empty name".to_owned()));
    }
    Ok((name.into(), value))
}

/// Attempts: a number, or `N..M`, each end of which is in it and may be left out.
fn attempts(raw: &RawValue) -> Result<RangeInclusive<u32>, Broken> {
    let wrong = || {
        expected(
            "select.attempts",
            raw,
            "N, N..M, N.. or ..M attempts made so far",
        )
    };
    let text = any_text("select.attempts", raw)?;
    let count = |text: &str| {
        let number = number::whole(text).and_then(|number| u32::try_from(number).ok());
        number.ok_or_else(wrong)
    };
    match text.split_once("..") {
        None => {
            let made = count(&text)?;
            Ok(made..=made)
        }
        Some(("", "")) => Err(wrong()),
        Some((from, "")) => Ok(count(from)?..=u32::MAX),
        Some(("", to)) => Ok(0..=count(to)?),
        Some((from, to)) => Ok(count(from)?..=count(to)?),
    }
}

/// A span of time.
fn span_at(key: &str, raw: &RawValue, now: Timestamp, writer: Writer) -> Result<Span, Broken> {
    let path = format!("select.{key}");
    span_of(&path, &any_text(&path, raw)?, now, writer)
}

/// The span of time that a text says.
pub(super) fn span_of(
    path: &str,
    text: &str,
    now: Timestamp,
    writer: Writer,
) -> Result<Span, Broken> {
    let end = |text: &str| {
        point(text.trim(), now, writer).map_err(|hint| {
            let text = shortened(text);
            Broken(format!("{path}: {text} is no time{hint}; {SPAN}"))
        })
    };
    let (from, before) = match text.split_once("..") {
        None | Some(("", "")) => {
            let text = shortened(text);
            return Err(Broken(format!("{path} is {text}; {SPAN}")));
        }
        Some((from, "")) => (end(from)?, Timestamp::MAX),
        Some(("", to)) => (Timestamp::EPOCH, end(to)?),
        Some((from, to)) => (end(from)?, end(to)?),
    };
    Ok(Span { from, before })
}

/// A point in time, or a hint at what is wrong with it.
fn point(text: &str, now: Timestamp, writer: Writer) -> Result<Timestamp, &'static str> {
    let relative = text
        .strip_prefix('-')
        .map(|span| (span, true))
        .or_else(|| text.strip_prefix('+').map(|span| (span, false)));
    if let Some((text, is_before)) = relative
        && let Ok(span) = span::parse(text)
    {
        let point = if is_before {
            now.before(span)
        } else {
            now + span
        };
        return Ok(point.ceil_to_millis());
    }
    if text == "now" {
        return Ok(now);
    }
    if let Some(millis) = number::whole(text) {
        if writer == Writer::Person && SECONDS.contains(&millis) {
            return Err(" (seconds? milliseconds are meant)");
        }
        let millis = u64::try_from(millis).map_err(|_| "")?;
        return Ok(Timestamp::from_millis(millis));
    }
    if let Some(millis) = number::rfc3339(text) {
        let millis = u64::try_from(millis).map_err(|_| "")?;
        return Ok(Timestamp::from_millis(millis));
    }
    if span::meant(text).is_some() {
        return Err(" (a duration? with + or - before it, it counts from now)");
    }
    Err(number::hint(text).unwrap_or_default())
}

/// Where tasks entered: `TOPIC[/PARTITION[/OFFSET]]`.
fn origin(text: &str) -> Result<OriginPattern, Broken> {
    let wrong = || {
        let text = shortened(text);
        Broken(format!(
            "select.origin is {text}; TOPIC, TOPIC/PARTITION or TOPIC/PARTITION/OFFSET expected"
        ))
    };
    let mut parts = text.split('/');
    let topic = parts.next().filter(|topic| !topic.is_empty());
    let topic = topic.ok_or_else(wrong)?.into();
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    let (partition, offset) = (parts.next(), parts.next());
    if parts.next().is_some() || ![partition, offset].into_iter().flatten().all(digits) {
        return Err(wrong());
    }
    Ok(OriginPattern {
        topic,
        partition: partition.map(str::parse).transpose().map_err(|_| wrong())?,
        offset: offset.map(str::parse).transpose().map_err(|_| wrong())?,
    })
}
