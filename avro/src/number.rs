//! Whole numbers and times as producers write them: digits, with a fraction of nothing but zeros, an exponent, space around them.
//!
//! Never through a floating-point number: what is taken is exactly what was written.

use retide_core::Timestamp;

/// Most digits of a number: far above any time in any unit, so that what is longer is no number anybody means.
const MAX_DIGITS: usize = 36;

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
pub(crate) fn rfc3339(text: &str) -> Option<i128> {
    let time = Timestamp::from_rfc3339(text.trim())?;
    Some(time.ceil_to_millis().as_millis().into())
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
        assert_eq!(rfc3339("2026-12-24T18:00:00"), None);
        assert_eq!(rfc3339("2026-12-24"), None);
    }
}
