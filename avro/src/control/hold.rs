//! Holds as they are written: records of the scenes topic whose keys begin with [`HOLD`].
//!
//! ```text
//! hold/payment  {"select":{"scene":"payment"},"by":"ann","reason":"the bank is down","for":"2h"}
//! ```
//!
//! A record without a value ends a hold. One whose deadlines have `stood` tells of a hold that is over, and when that was. The hold of a scene's tasks that are out of attempts has a name of its own, and a record lets those
//! go which it holds by then:
//!
//! ```text
//! hold/exhausted/payment  {"by":"ann","reason":"the bank is back"}
//! ```
//!
//! Invariant: what is read is bounded, ends by itself, and means no more tasks than it says.

use std::time::Duration;

use bytes::Bytes;
use serde_json::{Map, Value};

use retide_core::hold::{Deadlines, EXHAUSTED, HOLD, Hold, LASTS, LONGEST, MAX_NAME, Revision};
use retide_core::ramp::{FAILURE_RATE, MAX_STEPS, Ramp};
use retide_core::{Timestamp, span};

use super::select::select;
use super::written::SelectWire;
use super::{
    MAX_REFUSAL, MAX_REQUEST, Writer, clipped, duration, instant, line, needed, object, shortened,
};
use crate::json::{Broken, Object, expected, utf8};

/// The keys of a hold.
const KEYS: [&str; 9] = [
    "select",
    "by",
    "reason",
    "since",
    "until",
    "for",
    "deadlines",
    "ramp",
    "failure_rate",
];

/// Those of a release of tasks that are out of attempts.
const RELEASE_KEYS: [&str; 4] = ["by", "reason", "ramp", "failure_rate"];

/// The name of the hold that a key of the scenes topic is of, or none if it is that of a scene.
pub fn name_of(key: &[u8]) -> Option<&[u8]> {
    key.strip_prefix(HOLD.as_bytes())
}

/// Whether a hold may be called so: letters, digits, and `._:@-`.
pub fn is_name(name: &str) -> bool {
    let is_letter = |byte: u8| byte.is_ascii_alphanumeric() || b"._:@-".contains(&byte);
    (1..=MAX_NAME).contains(&name.len()) && name.bytes().all(is_letter)
}

/// Reads the hold of this name, whose record was appended at `at` and stands at `revision`.
///
/// # Errors
/// If it cannot be read, or is beyond its bounds.
pub fn decode(
    name: &[u8],
    value: &[u8],
    at: Timestamp,
    revision: Revision,
) -> Result<Hold, Box<str>> {
    read(name, value, at, revision).map_err(|Broken(why)| clipped(&why, MAX_REFUSAL).into())
}

/// Writes a hold; the value of its record.
pub fn encode(hold: &Hold) -> Bytes {
    let mut keys = Map::new();
    let mut put = |key: &str, value: Value| keys.insert(key.to_owned(), value);
    let is_exhausted = hold.of_scene().is_some();
    if !is_exhausted {
        put("select", select_value(hold));
    }
    for (key, text) in [("by", &hold.by), ("reason", &hold.reason)] {
        if !text.is_empty() {
            put(key, Value::from(&**text));
        }
    }
    if hold.deadlines == Deadlines::Stood {
        put("since", hold.since.as_millis().into());
    }
    if !is_exhausted {
        put("until", hold.until.as_millis().into());
    }
    if hold.deadlines != Deadlines::default() {
        put("deadlines", hold.deadlines.word().into());
    }
    if let Some(ramp) = &hold.ramp {
        put("ramp", ramp.steps().collect::<Vec<_>>().into());
        put("failure_rate", ramp.failure_rate().into());
    }
    Value::Object(keys).to_string().into()
}

/// The selector of a hold, in JSON.
pub fn select_value(hold: &Hold) -> Value {
    let wire = SelectWire::of(hold.selector.parts());
    serde_json::to_value(&wire).unwrap_or_else(|error| unreachable!("texts and numbers: {error}"))
}

/// As [`decode`], with what is wrong at its full length.
fn read(name: &[u8], value: &[u8], at: Timestamp, revision: Revision) -> Result<Hold, Broken> {
    if value.len() > MAX_REQUEST {
        return Err(Broken(format!(
            "the hold has {} bytes; it may have {MAX_REQUEST}",
            value.len()
        )));
    }
    let scene = name.strip_prefix(EXHAUSTED.as_bytes());
    if let Some(scene) = scene.and_then(|scene| str::from_utf8(scene).ok())
        && (1..=MAX_NAME).contains(&scene.len())
    {
        let members = object(utf8(value)?, "release")?;
        let members = Object::try_new("", members, &RELEASE_KEYS)?;
        return Ok(Hold {
            revision,
            by: line(&members, "by")?,
            reason: line(&members, "reason")?,
            since: at,
            ramp: ramp(&members)?,
            released: Some(at),
            ..Hold::of_exhausted(&scene.into())
        });
    }
    let named = str::from_utf8(name).ok().filter(|name| is_name(name));
    let Some(name) = named else {
        let name = shortened(&name.escape_ascii().to_string());
        return Err(Broken(format!(
            "{name} is no name of a hold: 1 to {MAX_NAME} letters, digits and ._:@- expected"
        )));
    };
    let members = object(utf8(value)?, "hold")?;
    let members = Object::try_new("", members, &KEYS)?;
    let selector = needed(&members, "select", "an object that says which tasks")?;
    let selector = object(selector.get(), "select")?;
    let deadlines = deadlines(&members)?;
    let until = until(&members, at, LASTS)?;
    let since = since(&members, (at, until), deadlines)?;
    Ok(Hold {
        name: name.into(),
        revision,
        selector: select(selector, at, Writer::Person)?,
        by: line(&members, "by")?,
        reason: line(&members, "reason")?,
        since,
        until,
        ramp: ramp(&members)?,
        deadlines,
        released: None,
    })
}

/// What becomes of the deadlines of the tasks of a hold.
fn deadlines(members: &Object<'_>) -> Result<Deadlines, Broken> {
    let Some(raw) = members.get("deadlines") else {
        return Ok(Deadlines::default());
    };
    let word: Option<String> = serde_json::from_str(raw.get()).ok();
    let read = word.as_deref().and_then(Deadlines::from_word);
    read.ok_or_else(|| expected("deadlines", raw, "run or stop"))
}

/// When a hold began whose record was appended at `at` and which ends at `until`: then, or as one says that is over.
fn since(
    members: &Object<'_>,
    (at, until): (Timestamp, Timestamp),
    deadlines: Deadlines,
) -> Result<Timestamp, Broken> {
    let since = match (members.get("since"), deadlines) {
        (None, Deadlines::Run | Deadlines::Stop) => return Ok(at),
        (Some(raw), Deadlines::Stood) => Timestamp::from_millis(instant("since", raw)?),
        (Some(_), Deadlines::Run | Deadlines::Stop) => {
            return Err(Broken(
                "since is said of a hold that is not over; one counts from its record".to_owned(),
            ));
        }
        (None, Deadlines::Stood) => {
            return Err(Broken(
                "deadlines have stood, and since is missing: when that began".to_owned(),
            ));
        }
    };
    if until > at + SLACK || since >= until || until > since + LONGEST + SLACK {
        let most = span::human(LONGEST.as_millis() as u64);
        return Err(Broken(format!(
            "deadlines have stood from since until until: a time of {most} at most that is over"
        )));
    }
    Ok(since)
}

/// How the tasks of a hold are let go.
pub(super) fn ramp(members: &Object<'_>) -> Result<Option<Ramp>, Broken> {
    let rate = members.get("failure_rate");
    let Some(raw) = members.get("ramp") else {
        return match rate {
            Some(_) => Err(Broken(
                "failure_rate is said without a ramp; it is part of one".to_owned(),
            )),
            None => Ok(None),
        };
    };
    let steps: Vec<u32> = serde_json::from_str(raw.get()).map_err(|_| {
        expected(
            "ramp",
            raw,
            "an array of tasks a second, such as [1,5,20,100]",
        )
    })?;
    let rate = match rate {
        None => FAILURE_RATE,
        Some(raw) => serde_json::from_str(raw.get())
            .map_err(|_| expected("failure_rate", raw, "a number from 0 to 1"))?,
    };
    let ramp = Ramp::try_new(&steps, rate).ok_or_else(|| {
        Broken(format!(
            "a ramp has 1 to {MAX_STEPS} rising numbers over 0, and a failure_rate from 0 to below 1"
        ))
    })?;
    Ok(Some(ramp))
}

/// When something that began at `at` ends by itself, after `lasts` where nothing is said of that.
pub(super) fn until(
    members: &Object<'_>,
    at: Timestamp,
    lasts: Duration,
) -> Result<Timestamp, Broken> {
    let until = match (members.get("until"), members.get("for")) {
        (Some(_), Some(_)) => {
            return Err(Broken(
                "both until and for are said; one of them is expected".to_owned(),
            ));
        }
        (None, None) => at + lasts,
        (None, Some(raw)) => at + duration("for", raw)?,
        (Some(raw), None) => Timestamp::from_millis(instant("until", raw)?),
    };
    let until = until.ceil_to_millis();
    // A clock that is a little ahead of the broker's takes nothing away.
    if until > at + LONGEST + SLACK {
        let most = span::human(LONGEST.as_millis() as u64);
        return Err(Broken(format!(
            "it lasts for {most} at most; name an earlier end, and say it again by then"
        )));
    }
    Ok(until)
}

/// How much later than the longest time an end may be that was counted by another clock.
const SLACK: Duration = Duration::from_hours(1);

#[cfg(test)]
mod tests {
    use super::*;

    /// When the records of these tests were appended.
    const AT: Timestamp = Timestamp::from_millis(1_700_000_000_000);

    fn read(name: &str, value: &str) -> Result<Hold, Box<str>> {
        decode(name.as_bytes(), value.as_bytes(), AT, Revision::default())
    }

    #[test]
    fn a_hold_lasts_as_long_as_it_says_or_a_day() {
        let until = |value: &str| read("h", value).map(|hold| hold.until);
        let select = r#""select":{"scene":"pay"}"#;

        assert_eq!(until(&format!("{{{select}}}")), Ok(AT + LASTS));
        let hour = Duration::from_hours(1);
        assert_eq!(until(&format!(r#"{{{select},"for":"1h"}}"#)), Ok(AT + hour));
        assert_eq!(
            until(&format!(r#"{{{select},"until":"2023-11-14T23:13:20Z"}}"#)),
            Ok(AT + hour)
        );
        for wrong in [
            r#""for":"31d""#,
            r#""for":"1h","until":1"#,
            r#""until":"never""#,
        ] {
            assert!(until(&format!("{{{select},{wrong}}}")).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_hold_that_means_nothing_or_cannot_be_read_is_refused() {
        for value in [
            "",
            "x",
            "[]",
            "{}",
            r#"{"select":{}}"#,
            r#"{"select":{"scene":""}}"#,
            r#"{"select":{"scene":"a"},"unti":"1h"}"#,
            r#"{"select":{"scene":"a"},"ramp":[2,1]}"#,
            r#"{"select":{"scene":"a"},"ramp":[1],"failure_rate":1}"#,
            r#"{"select":{"scene":"a"},"failure_rate":0.5}"#,
            r#"{"select":{"scene":"a"},"deadlines":"none"}"#,
            r#"{"select":{"scene":"a"},"since":1699999999000}"#,
            r#"{"select":{"scene":"a"},"deadlines":"stood","until":1699999999000}"#,
            r#"{"select":{"scene":"a"},"deadlines":"stood","since":1699999999000}"#,
            r#"{"select":{"scene":"a"},"deadlines":"stood","since":1699999999000,"until":1699999998000}"#,
            r#"{"select":{"scene":"a"},"deadlines":"stood","since":1690000000000,"until":1699999998000}"#,
            "{\"select\":{\"scene\":\"a\"}",
        ] {
            assert!(read("h", value).is_err(), "{value}");
        }
        let good = r#"{"select":{"scene":"a"}}"#;
        for name in ["", "a/b", "a b", &"x".repeat(MAX_NAME + 1)] {
            assert!(read(name, good).is_err(), "{name}");
        }
    }

    #[test]
    fn what_lets_tasks_go_that_are_out_of_attempts_names_a_scene_and_nothing_else() {
        let released = read(
            "exhausted/pay",
            r#"{"by":"ann","reason":"it is back","ramp":[1,5]}"#,
        )
        .unwrap();

        assert_eq!(released.of_scene(), Some("pay"));
        assert_eq!(
            (released.released, released.until),
            (Some(AT), Timestamp::MAX)
        );
        let again = decode(b"exhausted/pay", &encode(&released), AT, released.revision);
        assert_eq!(again, Ok(released));
        for (name, value) in [
            ("exhausted/", "{}"),
            ("exhausted/pay", ""),
            ("exhausted/pay", r#"{"for":"1h"}"#),
            ("exhausted/pay", r#"{"select":{"scene":"pay"}}"#),
            ("spent/pay", "{}"),
        ] {
            assert!(read(name, value).is_err(), "{name} {value}");
        }
    }

    #[test]
    fn what_is_written_is_read_back() {
        let hold = read(
            "bank@night",
            r#"{"select":{"target":"bank.example","header":{"tenant":"7"}},"by":"ann","reason":"it is down","for":"2h","deadlines":"stop","ramp":[2,9],"failure_rate":0.35}"#,
        )
        .unwrap();

        let again = decode(b"bank@night", &encode(&hold), AT, hold.revision);

        assert_eq!(again, Ok(hold.clone()));
        // And what is left of it when it is released.
        let later = AT + Duration::from_mins(1);
        let stood = hold.stood(later).unwrap();
        assert_eq!(
            (&*stood.name, stood.until),
            ("bank@night@1700000000000", later)
        );
        let again = decode(stood.name.as_bytes(), &encode(&stood), later, hold.revision);
        assert_eq!(again, Ok(stood));
    }
}
