//! Whole numbers and times as producers write them: digits, with a fraction of nothing but zeros, an exponent, space around them.
//!
//! Never through a floating-point number: what is taken is exactly what was written.

use retide_core::Timestamp;

/// Most digits of a number: far above any time in any unit, so that what is longer is no number anybody means.
const MAX_DIGITS: usize = 36;

/// Digits of a time in seconds since the epoch, until the year 2286.
const SECONDS_DIGITS: usize = 10;

/// Length of a date, such as 2026-12-24.
const DATE: usize = 10;

/// Length of a separator and a time of day without its seconds.
const MINUTES: usize = 6;

/// The whole number that `text` is, if it is one. The grammar is that of JSON, and zeros may come first.
pub(crate) fn whole(text: &str) -> Option<i128> {
    let text = text.trim();
    // By far the most: digits and nothing else.
    if !text.is_empty() && text.len() < 19 && text.bytes().all(|byte| byte.is_ascii_digit()) {
        return text.parse().ok();
    }
    let (negative, text) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let (mantissa, exponent) = match text.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => {
            let digits = exponent.strip_prefix(['+', '-']).unwrap_or(exponent);
            (mantissa, exponent_of(exponent, digits)?)
        }
        None => (text, 0),
    };
    let (int, fraction) = match mantissa.split_once('.') {
        Some((int, fraction)) if !fraction.is_empty() => (int, fraction),
        Some(_) => return None,
        None => (mantissa, ""),
    };
    let are_digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if int.is_empty() || !are_digits(int) || !are_digits(fraction) {
        return None;
    }
    let digits = format!("{int}{fraction}");
    let digits = digits.trim_start_matches('0');
    let significant = digits.trim_end_matches('0');
    if significant.is_empty() {
        return Some(0);
    }
    let zeros = i64::try_from(digits.len() - significant.len()).ok()?;
    let shift = exponent - i64::try_from(fraction.len()).ok()? + zeros;
    let shift = usize::try_from(shift).ok()?;
    if significant.len() + shift > MAX_DIGITS {
        return None;
    }
    let number: i128 = significant.parse().ok()?;
    let number = number * 10_i128.pow(u32::try_from(shift).ok()?);
    Some(if negative { -number } else { number })
}

/// The exponent of a number; `digits` is it without its sign.
fn exponent_of(text: &str, digits: &str) -> Option<i64> {
    let are_digits = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    // Leading zeros aside, one of five digits is none that anybody means.
    (are_digits && digits.trim_start_matches('0').len() < 5)
        .then(|| text.parse().ok())
        .flatten()
}

/// The milliseconds since the epoch that a text of RFC 3339 names, rounded up; it says its offset from UTC.
///
/// What libraries write beside that grammar is read, too, as long as it means one time: no seconds and the name of a zone behind the
/// offset (`java.time`), an offset without a colon or minutes (`strftime`, `SimpleDateFormat`, Postgres).
pub(crate) fn rfc3339(text: &str) -> Option<i128> {
    let text = text.trim();
    let time =
        Timestamp::from_rfc3339(text).or_else(|| Timestamp::from_rfc3339(&in_full(text)?))?;
    Some(time.ceil_to_millis().as_millis().into())
}

/// A time with what its writer has left out, and without the name of its zone.
fn in_full(text: &str) -> Option<String> {
    let text = match text.split_once('[') {
        Some((time, zone)) if zone.ends_with(']') => time,
        Some(_) => return None,
        None => text,
    };
    // Behind the date, whose dashes are none of an offset.
    let (date, time) = (text.get(..DATE)?, text.get(DATE..)?);
    let at = time.rfind(['Z', 'z', '+', '-'])?;
    let (clock, offset) = time.split_at(at);
    let seconds = if clock.len() == MINUTES { ":00" } else { "" };
    let offset = match offset.len() {
        // Of hours alone, or of hours and minutes in a row.
        3 => format!("{offset}:00"),
        5 => format!("{}:{}", offset.get(..3)?, offset.get(3..)?),
        _ => offset.to_owned(),
    };
    Some(format!("{date}{clock}{seconds}{offset}"))
}

/// What a text that is no time may be meant as, in brackets.
pub(crate) fn hint(text: &str) -> Option<&'static str> {
    let text = text.trim();
    let is_time = |behind: &str| rfc3339(&format!("{text}{behind}")).is_some();
    if is_time("Z") {
        return Some(" (it does not say its offset from UTC, such as Z)");
    }
    if is_time("T00:00:00Z") {
        return Some(" (a date? a time with its offset from UTC is meant)");
    }
    let (int, fraction) = text.split_once('.')?;
    let are_digits = |text: &str| !text.is_empty() && text.bytes().all(|it| it.is_ascii_digit());
    if !are_digits(int) || !are_digits(fraction) {
        return None;
    }
    Some(if int.len() == SECONDS_DIGITS {
        " (seconds with a fraction? whole milliseconds are meant)"
    } else {
        " (without a fraction)"
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_whole_number_is_read_as_it_is_written_or_not_at_all() {
        for (text, number) in [
            ("0", 0),
            ("2000", 2_000),
            (" 2000\n", 2_000),
            ("2000.0", 2_000),
            ("007", 7),
            ("1795836382000", 1_795_836_382_000),
            ("1.795e12", 1_795_000_000_000),
            ("1795E+9", 1_795_000_000_000),
            ("20000e-1", 2_000),
            ("0.0e99", 0),
            ("-5", -5),
            ("18446744073709551615", u64::MAX.into()),
            ("9007199254740993", 9_007_199_254_740_993),
        ] {
            assert_eq!(whole(text), Some(number), "{text}");
        }
        for text in [
            "",
            " ",
            "-",
            "+1",
            "1.5",
            "1.",
            ".5",
            "1e",
            "1e+",
            "e3",
            "1e-3",
            "1e99",
            "1e99999999999",
            "0x10",
            "1_000",
            "1,000",
            "1 000",
            "NaN",
            "Infinity",
            "soon",
            "٣",
            "--1",
            "1e1.0",
        ] {
            assert_eq!(whole(text), None, "{text}");
        }
    }

    #[test]
    fn a_time_is_never_rounded_down_and_says_its_offset() {
        assert_eq!(rfc3339("1970-01-01T00:00:01Z"), Some(1_000));
        assert_eq!(rfc3339("1970-01-01T01:00:00.0000001+01:00"), Some(1));
        assert_eq!(rfc3339("1970-01-01t00:00:01.5z"), Some(1_500));
        for text in [
            "2026-12-24T18:00:00",
            "2026-12-24T18:00",
            "2026-12-24",
            "2026-12-24Z",
            "2026-12-24T18Z",
            "2026-12-24T18:00[Europe/Berlin]",
            "2026-12-24T18:00:00Z[UTC",
            "2026-12-24T18:00:00+1",
            "2026-12-24T18:00:00+é",
            "2026-12-2é",
        ] {
            assert_eq!(rfc3339(text), None, "{text}");
        }
    }

    #[test]
    fn a_time_is_read_as_libraries_write_it() {
        let time = rfc3339("2026-12-24T18:00:00Z");
        for text in [
            "2026-12-24T18:00Z",
            "2026-12-24T19:00+01:00",
            "2026-12-24T19:00+01:00[Europe/Berlin]",
            "2026-12-24T19:00:00.000000000+01:00[Europe/Berlin]",
            "2026-12-24T18:00:00.000+0000",
            "2026-12-24T12:30:00-0530",
            "2026-12-24 18:00:00.000Z",
            "2026-12-24 18:00:00+00",
            "2026-12-24T18:00:00.0000000+00:00",
        ] {
            assert_eq!(rfc3339(text), time, "{text}");
        }
    }

    #[test]
    fn what_a_text_is_meant_as_that_is_no_time() {
        for (text, word) in [
            ("2026-12-24T18:00:00", "offset"),
            ("2026-12-24 18:00:00.000", "offset"),
            ("2026-12-24", "a date?"),
            ("1795905406.6184623", "seconds"),
            ("1795905406618.4458", "without a fraction"),
        ] {
            let hint = hint(text).unwrap_or_default();
            assert!(hint.contains(word), "{text}: {hint}");
        }
        for text in [
            "",
            "soon",
            "1.2.3",
            ".5",
            "5.",
            "Sat Nov 28 2026 22:37:53 GMT+0000",
        ] {
            assert_eq!(hint(text), None, "{text}");
        }
    }
}
