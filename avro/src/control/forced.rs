//! Breakers by hand as that is written: records of the scenes topic whose keys begin with [`BREAKER`].
//!
//! ```text
//! breaker/shop.example  {"state":"open","by":"ann","reason":"they move their database","for":"30m"}
//! ```
//!
//! A record without a value takes it back. Invariant: what is read is bounded, and ends by itself.

use bytes::Bytes;
use serde_json::{Map, Value};

use retide_core::Timestamp;
use retide_core::forced::{BREAKER, Force, Forced, LASTS, MAX_TARGET, RESET_STANDS};
use retide_core::hold::Revision;

use super::hold::until;
use super::{MAX_REFUSAL, MAX_REQUEST, clipped, line, needed, object, shortened};
use crate::json::{Broken, Object, expected, utf8};

/// The keys of a record.
const KEYS: [&str; 5] = ["state", "by", "reason", "until", "for"];

/// The target that a key of the scenes topic is of, or none if it is something else.
pub fn target_of(key: &[u8]) -> Option<&[u8]> {
    key.strip_prefix(BREAKER.as_bytes())
}

/// Whether that may be a target: a host, with a port, a scheme, or both. There is one way to write it, since a record of another key would be
/// another one.
pub fn is_target(name: &str) -> bool {
    let is_letter =
        |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9') || b"._:-[]/".contains(&byte);
    let bare = name.split_once("://").map_or(name, |(_, host)| host);
    (1..=MAX_TARGET).contains(&name.len())
        && !bare.is_empty()
        && !bare.contains('/')
        && name.bytes().all(is_letter)
}

/// The host of a target, without its port.
pub fn host_of(target: &str) -> &str {
    let host = target.split_once("://").map_or(target, |(_, host)| host);
    let port = host.rsplit_once(':');
    let port = port.filter(|(_, port)| port.bytes().all(|byte| byte.is_ascii_digit()));
    // One with many colons is an address.
    let port = port.filter(|(bare, _)| !bare.contains(':') || bare.ends_with(']'));
    port.map_or(host, |(bare, _)| bare)
}

/// Reads what is wanted of this target, whose record was appended at `at` and stands at `revision`.
///
/// # Errors
/// If it cannot be read, or is beyond its bounds.
pub fn decode(
    target: &[u8],
    value: &[u8],
    at: Timestamp,
    revision: Revision,
) -> Result<Forced, Box<str>> {
    read(target, value, at, revision).map_err(|Broken(why)| clipped(&why, MAX_REFUSAL).into())
}

/// Writes what is wanted; the value of its record.
pub fn encode(forced: &Forced) -> Bytes {
    let mut keys = Map::new();
    let mut put = |key: &str, value: Value| keys.insert(key.to_owned(), value);
    put("state", forced.force.word().into());
    for (key, text) in [("by", &forced.by), ("reason", &forced.reason)] {
        if !text.is_empty() {
            put(key, Value::from(&**text));
        }
    }
    put("until", forced.until.as_millis().into());
    Value::Object(keys).to_string().into()
}

/// As [`decode`], with what is wrong at its full length.
fn read(target: &[u8], value: &[u8], at: Timestamp, revision: Revision) -> Result<Forced, Broken> {
    let named = str::from_utf8(target).ok().filter(|name| is_target(name));
    let Some(target) = named else {
        let target = shortened(&target.escape_ascii().to_string());
        return Err(Broken(format!(
            "{target} is no target: a host such as shop.example, or https://shop.example:443, in small letters, expected"
        )));
    };
    if value.len() > MAX_REQUEST {
        return Err(Broken(format!(
            "the record has {} bytes; it may have {MAX_REQUEST}",
            value.len()
        )));
    }
    let members = object(utf8(value)?, "record")?;
    let members = Object::try_new("", members, &KEYS)?;
    let raw = needed(&members, "state", "open, closed or reset")?;
    let word: Option<String> = serde_json::from_str(raw.get()).ok();
    let force = word.as_deref().and_then(Force::from_word);
    let force = force.ok_or_else(|| expected("state", raw, "open, closed or reset"))?;
    let lasts = match force {
        Force::Open | Force::Closed => LASTS,
        Force::Reset => RESET_STANDS,
    };
    Ok(Forced {
        target: target.into(),
        revision,
        force,
        by: line(&members, "by")?,
        reason: line(&members, "reason")?,
        since: at,
        until: until(&members, at, lasts)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::time::Duration;

    /// When the records of these tests were appended.
    const AT: Timestamp = Timestamp::from_millis(1_700_000_000_000);

    fn read(target: &str, value: &str) -> Result<Forced, Box<str>> {
        decode(target.as_bytes(), value.as_bytes(), AT, Revision::default())
    }

    #[test]
    fn what_is_written_is_read_back_and_ends_by_itself() {
        let value = r#"{"state":"open","by":"ann","reason":"they move","for":"30m"}"#;
        let open = read("shop.example", value).unwrap();

        let again = decode(b"shop.example", &encode(&open), AT, open.revision);

        assert_eq!(open.until, AT + Duration::from_mins(30));
        assert_eq!(again, Ok(open));
        let until = |value: &str| read("[::1]:80", value).map(|forced| forced.until);
        assert_eq!(until(r#"{"state":"closed"}"#), Ok(AT + LASTS));
        assert_eq!(until(r#"{"state":"reset"}"#), Ok(AT + RESET_STANDS));
    }

    #[test]
    fn the_host_of_a_target_is_without_scheme_and_port() {
        for (target, host) in [
            ("shop.example", "shop.example"),
            ("shop.example:80", "shop.example"),
            ("https://shop.example:443", "shop.example"),
            ("http://[::1]:80", "[::1]"),
            ("[::1]", "[::1]"),
        ] {
            assert_eq!(host_of(target), host);
        }
    }

    #[test]
    fn what_names_no_target_or_cannot_be_read_is_refused() {
        let good = r#"{"state":"open"}"#;
        for target in [
            "",
            "a b",
            "Shop",
            "https://",
            "https://a/b",
            &"a".repeat(301),
        ] {
            assert!(read(target, good).is_err(), "{target}");
        }
        for value in [
            "",
            "{}",
            r#"{"state":"half-open"}"#,
            r#"{"state":1}"#,
            r#"{"state":"open","for":"31d"}"#,
            r#"{"state":"open","select":{}}"#,
        ] {
            assert!(read("a", value).is_err(), "{value}");
        }
    }
}
