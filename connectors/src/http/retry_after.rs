//! `Retry-After`: for how long a target asks to be left alone, as servers say it.
//!
//! | header | read as |
//! | --- | --- |
//! | `retry-after-ms`, `x-ms-retry-after-ms` | milliseconds; they go before `Retry-After`, which they are finer than |
//! | `retry-after` | see [`span`] |
//! | `retry-pending-for` | the same, of a target that has taken the task and answers later |
//! | `ratelimit-reset` and the like ([`RESETS`]) | the same, if the target's configuration says so and there is no `Retry-After` |
//!
//! RFC 9110 has whole seconds and three forms of dates. Servers send more: fractions, units, quotes, several values, ISO 8601, seconds since
//! the epoch. What can mean one thing only is taken; what cannot be read is not there. Invariant: a point in time that has passed asks for
//! nothing, and nothing here is longer than a [`Duration`] can be.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use chrono::{DateTime, NaiveDate, NaiveDateTime};
use http::header::{HeaderMap, RETRY_AFTER};

/// Headers that say it in milliseconds: those of Azure and of services with language models.
const MILLIS: [&str; 2] = ["retry-after-ms", "x-ms-retry-after-ms"];

/// Headers that say when a limit begins anew, and those that say how much of it is left, where they belong together.
const RESETS: [(&str, &str); 4] = [
    ("ratelimit-reset", "ratelimit-remaining"),
    ("x-ratelimit-reset", "x-ratelimit-remaining"),
    ("x-rate-limit-reset", "x-rate-limit-remaining"),
    ("x-ratelimit-reset-after", "x-ratelimit-remaining"),
];

/// The header that says how long a target takes that answers later.
const PENDING_FOR: &str = "retry-pending-for";

/// A number of seconds from which on it is a point in time: as a wait, it would be 31 years. Seconds since the epoch have been more since
/// September 2001.
const EPOCH_SECONDS: f64 = 1e9;

/// Numbers from this one on are milliseconds since the epoch: as seconds, it would be the year 5138.
const EPOCH_MILLIS: f64 = 1e11;

/// Numbers from this one on are microseconds since the epoch.
const EPOCH_MICROS: f64 = 1e14;

/// Numbers from this one on are nanoseconds since the epoch.
const EPOCH_NANOS: f64 = 1e17;

/// How long the target asks to be left alone, if it does so in a way that can be read.
pub(super) fn asked(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let millis = MILLIS.into_iter().find_map(|name| {
        let value = headers.get(name)?.to_str().ok()?;
        let millis = number(unquoted(value))?;
        // Some write a point in time here as well.
        if millis >= EPOCH_MILLIS {
            return Some(until(millis, now));
        }
        Some(seconds(millis / 1_000.0))
    });
    millis.or_else(|| first(headers, RETRY_AFTER.as_str(), now))
}

/// When the target's limit begins anew, if it says so in a way that can be read; with `spent`, only where it says that nothing is left of it.
pub(super) fn reset(headers: &HeaderMap, now: SystemTime, spent: bool) -> Option<Duration> {
    let separate = RESETS.into_iter().find_map(|(reset, remaining)| {
        let left = headers.get(remaining);
        let left = left.and_then(|value| number(value.to_str().ok()?.trim()));
        if spent && left.is_none_or(|left| left > 0.0) {
            return None;
        }
        first(headers, reset, now)
    });
    // All in one: `limit=10, remaining=0, reset=30`, or `"hour";r=0;t=30`.
    separate.or_else(|| {
        let value = headers.get("ratelimit")?.to_str().ok()?;
        let part = |names: [&str; 2]| {
            value.split([',', ';']).find_map(|part| {
                let (name, value) = part.split_once('=')?;
                names.contains(&name.trim()).then(|| number(value.trim()))?
            })
        };
        if spent && part(["r", "remaining"]).is_none_or(|left| left > 0.0) {
            return None;
        }
        part(["t", "reset"]).map(seconds)
    })
}

/// How long the target will take at most that has taken the task and answers later, if it says so in a way that can be read, and more than
/// nothing.
pub(super) fn pending_for(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    first(headers, PENDING_FOR, now).filter(|span| !span.is_zero())
}

/// What the first value of the header says that can be read, of all its lines.
fn first(headers: &HeaderMap, name: &str, now: SystemTime) -> Option<Duration> {
    headers.get_all(name).iter().find_map(|value| {
        let value = value.to_str().ok()?;
        // A date has a comma of its own.
        span(value, now).or_else(|| value.split(',').find_map(|value| span(value, now)))
    })
}

/// The wait that one value says: seconds (`6`, `6.5`, `+6`), a number with a unit (`6s`, `6 seconds`, `1m 30s`, `500ms`), a number so large
/// that it is a point in time, an HTTP date, or an ISO 8601 one; in quotes or not, and what follows a semicolon says something else.
fn span(value: &str, now: SystemTime) -> Option<Duration> {
    let value = unquoted(value.split(';').next().unwrap_or_default());
    if let Some(number) = number(value) {
        if number >= EPOCH_SECONDS {
            return Some(until(number, now));
        }
        return Some(seconds(number));
    }
    with_units(value).or_else(|| {
        let at = date(value)?;
        // A date in the past asks for nothing.
        Some(at.duration_since(now).unwrap_or_default())
    })
}

/// A value without the quotes that some put around it.
fn unquoted(value: &str) -> &str {
    value.trim().trim_matches(['"', '\'']).trim()
}

/// A number as people write it: digits, perhaps with a fraction and a plus.
fn number(value: &str) -> Option<f64> {
    let value = value.strip_prefix('+').unwrap_or(value);
    let is_number = value.bytes().any(|byte| byte.is_ascii_digit())
        && value
            .bytes()
            .all(|byte| byte.is_ascii_digit() || byte == b'.');
    is_number.then(|| value.parse().ok()).flatten()
}

/// So many seconds; more than there can be are as many as there can be.
fn seconds(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX)
}

/// The time until the point that a number says since the epoch, in whatever unit makes it a date.
fn until(number: f64, now: SystemTime) -> Duration {
    let since_epoch = match number {
        nanos if nanos >= EPOCH_NANOS => seconds(nanos / 1e9),
        micros if micros >= EPOCH_MICROS => seconds(micros / 1e6),
        millis if millis >= EPOCH_MILLIS => seconds(millis / 1e3),
        whole => seconds(whole),
    };
    let now = now.duration_since(UNIX_EPOCH).unwrap_or_default();
    since_epoch.saturating_sub(now)
}

/// Numbers with units: `6s`, `1.5 s`, `6 seconds`, `1m 30s`, `1h30m`.
fn with_units(value: &str) -> Option<Duration> {
    let mut rest = value.strip_prefix('+').unwrap_or(value);
    let mut sum = Duration::ZERO;
    while !rest.is_empty() {
        let digits = rest.find(|character: char| !(character.is_ascii_digit() || character == '.'));
        let (count, after) = rest.split_at(digits?);
        let after = after.trim_start();
        let letters = after.find(|character: char| !character.is_ascii_alphabetic());
        let (unit, after) = after.split_at(letters.unwrap_or(after.len()));
        let unit = match unit.to_ascii_lowercase().as_str() {
            "ms" | "msec" | "msecs" | "millis" | "millisecond" | "milliseconds" => 0.001,
            "s" | "sec" | "secs" | "second" | "seconds" => 1.0,
            "m" | "min" | "mins" | "minute" | "minutes" => 60.0,
            "h" | "hr" | "hrs" | "hour" | "hours" => 3_600.0,
            "d" | "day" | "days" => 86_400.0,
            _ => return None,
        };
        sum = sum.saturating_add(seconds(number(count)? * unit));
        rest = after.trim_start();
    }
    (!value.is_empty()).then_some(sum)
}

/// The instant that a date says: one of HTTP's three forms, such as `Sun, 06 Nov 1994 08:49:37 GMT`, the same in another zone or without the
/// day of the week, or ISO 8601. The day of the week says nothing that the rest does not say, and is not compared with it.
fn date(value: &str) -> Option<SystemTime> {
    let seconds = http_date(value).or_else(|| iso_date(value))?;
    let seconds = u64::try_from(seconds).unwrap_or_default();
    UNIX_EPOCH.checked_add(Duration::from_secs(seconds))
}

/// Seconds since the epoch of an HTTP date; without a zone, it is UTC.
fn http_date(value: &str) -> Option<i64> {
    let value = match value.split_once([' ', ',']) {
        Some((day, rest)) if day.bytes().all(|byte| byte.is_ascii_alphabetic()) => {
            rest.trim_start_matches([' ', ','])
        }
        Some(_) | None => value,
    };
    let (local, zone) = match value.rsplit_once(' ') {
        Some((local, "GMT" | "UTC" | "UT" | "Z" | "gmt" | "utc")) => (local, "+0000"),
        Some((local, zone)) if zone.starts_with(['+', '-']) => (local, zone),
        Some(_) | None => (value, "+0000"),
    };
    let dated = format!("{local} {zone}");
    [
        "%d %b %Y %H:%M:%S %z",
        "%d-%b-%y %H:%M:%S %z",
        "%d-%b-%Y %H:%M:%S %z",
        "%b %e %H:%M:%S %Y %z",
    ]
    .into_iter()
    .find_map(|form| DateTime::parse_from_str(&dated, form).ok())
    .map(|time| time.timestamp())
}

/// Seconds since the epoch of an ISO 8601 date, rounded up; without a zone, it is UTC.
fn iso_date(value: &str) -> Option<i64> {
    let ceil = |seconds: i64, nanos: u32| seconds.saturating_add(i64::from(nanos > 0));
    let zoned = [
        "%Y-%m-%dT%H:%M:%S%.f%#z",
        "%Y-%m-%d %H:%M:%S%.f%#z",
        "%Y-%m-%d %H:%M:%S%.f %#z",
        "%Y%m%dT%H%M%S%#z",
    ];
    let value = value.to_ascii_uppercase();
    let value = match value
        .strip_suffix("GMT")
        .or_else(|| value.strip_suffix("UTC"))
    {
        Some(local) => format!("{}Z", local.trim_end()),
        None => value,
    };
    if let Ok(time) = DateTime::parse_from_rfc3339(&value) {
        return Some(ceil(time.timestamp(), time.timestamp_subsec_nanos()));
    }
    if let Some(time) = zoned
        .into_iter()
        .find_map(|form| DateTime::parse_from_str(&value, form).ok())
    {
        return Some(ceil(time.timestamp(), time.timestamp_subsec_nanos()));
    }
    let local = value.trim_end_matches('Z');
    let time = [
        "%Y-%m-%dT%H:%M:%S%.f",
        "%Y-%m-%d %H:%M:%S%.f",
        "%Y-%m-%dT%H:%M",
        "%Y%m%dT%H%M%S",
    ]
    .into_iter()
    .find_map(|form| NaiveDateTime::parse_from_str(local, form).ok())
    .or_else(|| {
        NaiveDate::parse_from_str(local, "%Y-%m-%d")
            .ok()?
            .and_hms_opt(0, 0, 0)
    })?
    .and_utc();
    Some(ceil(time.timestamp(), time.timestamp_subsec_nanos()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sunday, 6 November 1994, 08:49:37.
    const NOW: u64 = 784_111_777;

    fn headers(lines: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(*name, value.parse().expect("a header's value"));
        }
        headers
    }

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn millis(lines: &[(&'static str, &str)], now: u64) -> Option<u128> {
        asked(&headers(lines), at(now)).map(|wait| wait.as_millis())
    }

    #[test]
    fn retry_after_is_read_as_servers_write_it() {
        for (value, expected) in [
            ("6", 6_000),
            (" 6 ", 6_000),
            ("006", 6_000),
            ("6.5", 6_500),
            ("6.0", 6_000),
            (".5", 500),
            ("+6", 6_000),
            ("6s", 6_000),
            ("6S", 6_000),
            ("6 seconds", 6_000),
            ("1.5 s", 1_500),
            ("500ms", 500),
            ("1m 30s", 90_000),
            ("1h30m", 5_400_000),
            ("\"6\"", 6_000),
            ("'6'", 6_000),
            ("6, 8", 6_000),
            ("soon, 8", 8_000),
            ("6; comment", 6_000),
            ("0", 0),
            ("Sun, 06 Nov 1994 08:49:43 GMT", 6_000),
            ("Mon, 06 Nov 1994 08:49:43 GMT", 6_000),
            ("06 Nov 1994 08:49:43 GMT", 6_000),
            ("Sun, 06 Nov 1994 08:49:43 UTC", 6_000),
            ("Sun, 06 Nov 1994 08:49:43 +0000", 6_000),
            ("Sun, 06 Nov 1994 10:49:43 +0200", 6_000),
            ("Sun, 06 Nov 1994 08:49:43", 6_000),
            ("Sunday, 06-Nov-94 08:49:43 GMT", 6_000),
            ("Sun Nov  6 08:49:43 1994", 6_000),
            ("\"Sun, 06 Nov 1994 08:49:43 GMT\"", 6_000),
            ("1994-11-06T08:49:43Z", 6_000),
            ("1994-11-06T08:49:42.2Z", 6_000),
            ("1994-11-06t08:49:43z", 6_000),
            ("1994-11-06T09:49:43+01:00", 6_000),
            ("1994-11-06T09:49:43+0100", 6_000),
            ("1994-11-06T08:49:43", 6_000),
            ("1994-11-06 08:49:43", 6_000),
            ("1994-11-06 08:49:43 UTC", 6_000),
            ("1994-11-06 08:49:43 +0000", 6_000),
            ("19941106T084943Z", 6_000),
            ("Sun, 06 Nov 1994 08:49:37 GMT", 0),
            ("Sat, 05 Nov 1994 08:49:43 GMT", 0),
            ("Thu, 01 Jan 1970 00:00:00 GMT", 0),
            ("Mon, 01 Jan 0001 00:00:00 GMT", 0),
            ("1960-01-01T00:00:00Z", 0),
        ] {
            assert_eq!(
                millis(&[("retry-after", value)], NOW),
                Some(expected),
                "{value}"
            );
        }
        for value in [
            "",
            "soon",
            "-1",
            "1e3",
            "1.2.3",
            "6 parsecs",
            "s",
            ".",
            "NaN",
            "inf",
            "0x6",
            "6 6",
            "Sun, 06 Foo 1994 08:49:37 GMT",
            "Sun, 06 Nov 1994 08:49:37 CET",
            "Sun, 99 Nov 1994 99:49:37 GMT",
            "1994-13-06T08:49:43Z",
        ] {
            assert_eq!(millis(&[("retry-after", value)], NOW), None, "{value}");
        }
    }

    #[test]
    fn a_number_like_now_is_a_point_in_time() {
        let now = 1_764_000_000;

        for (value, expected) in [
            ("1764000006", 6_000),
            ("1764000006.5", 6_500),
            ("1764000006000", 6_000),
            ("1764000006000000", 6_000),
            ("1763999990", 0),
            ("1000000001", 0),
        ] {
            assert_eq!(
                millis(&[("retry-after", value)], now),
                Some(expected),
                "{value}"
            );
        }
        let long = millis(&[("retry-after", "99999999999999999999")], now);
        assert!(long > Some(86_400_000), "{long:?}");
    }

    #[test]
    fn the_first_line_that_can_be_read_counts_and_milliseconds_go_first() {
        let two = [("retry-after", "6"), ("retry-after", "8")];
        assert_eq!(millis(&two, NOW), Some(6_000));
        let broken = [("retry-after", "later"), ("retry-after", "8")];
        assert_eq!(millis(&broken, NOW), Some(8_000));
        let finer = [("retry-after", "6"), ("retry-after-ms", "5500")];
        assert_eq!(millis(&finer, NOW), Some(5_500));
        let both = [("retry-after", "6"), ("x-ms-retry-after-ms", "soon")];
        assert_eq!(millis(&both, NOW), Some(6_000));
        assert_eq!(millis(&[("ratelimit-reset", "6")], NOW), None);
        assert_eq!(asked(&HeaderMap::new(), at(NOW)), None);
    }

    #[test]
    fn a_limit_that_begins_anew_is_read_where_it_is_said() {
        let now = 1_764_000_000;
        let read = |lines: &[(&'static str, &str)], spent| {
            reset(&headers(lines), at(now), spent).map(|wait| wait.as_secs())
        };

        for lines in [
            &[("ratelimit-reset", "6")][..],
            &[("x-ratelimit-reset", "1764000006")],
            &[("x-rate-limit-reset", "1764000006")],
            &[("x-ratelimit-reset-after", "6.0")],
            &[("x-ratelimit-reset", "2025-11-24T16:00:06Z")],
            &[("ratelimit", "limit=10, remaining=0, reset=6")],
            &[("ratelimit", "\"hour\";r=0;t=6")],
        ] {
            assert_eq!(read(lines, false), Some(6), "{lines:?}");
        }
        let left = [("x-ratelimit-reset", "6"), ("x-ratelimit-remaining", "3")];
        let spent = [("x-ratelimit-reset", "6"), ("x-ratelimit-remaining", "0")];
        assert_eq!([read(&left, true), read(&spent, true)], [None, Some(6)]);
        assert_eq!(read(&[("x-ratelimit-reset", "6")], true), None);
        assert_eq!(read(&[("ratelimit", "\"hour\";r=3;t=6")], true), None);
        assert_eq!(read(&[("ratelimit", "\"hour\";r=0;t=6")], true), Some(6));
    }
}
