//! Durations as people write and read them: numbers with the units `ms`, `s`, `m`, `h` and `d`, such as `5s`, `1.5h` or `1h 30m`.
//!
//! A grammar of retide's own, the same in files, variables, options, scenes and names of tiers, so that no library decides that `5M` is
//! five months. Invariant: what [`text`] writes, [`parse`] reads as the same duration, and what is not read is refused with what was
//! probably meant.

use std::fmt::Write;
use std::time::Duration;

/// Why a text is no duration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The text is no span of time, and this is what was probably meant.
    #[error("`{text}` is no duration; did you mean `{meant}`? (units are {WORDS})")]
    Meant {
        /// What was written.
        text: String,
        /// What was probably meant.
        meant: String,
    },
    /// A number without a unit.
    #[error(
        "`{0}` has no unit: expected a duration such as `{0}ms`, `{0}s` or `{0}m` (units are {WORDS})"
    )]
    NoUnit(String),
    /// The text is no span of time.
    #[error("`{0}` is no duration such as `5s`, `1h 30m` or `24h` (units are {WORDS})")]
    Unreadable(String),
    /// The span is longer than durations can be.
    #[error("`{0}` is too long")]
    TooLong(String),
}

/// The units, longest first, and their nanoseconds.
const UNITS: [(&str, u64); 5] = [
    ("d", 86_400_000_000_000),
    ("h", 3_600_000_000_000),
    ("m", 60_000_000_000),
    ("s", 1_000_000_000),
    ("ms", 1_000_000),
];

/// A span of time in words.
const WORDS: &str = "`ms`, `s`, `m`, `h` and `d`";

/// Words of others for units, and ours, with the factor between them.
const OTHERS: [(&str, &str, u32); 31] = [
    ("millisecond", "ms", 1),
    ("milliseconds", "ms", 1),
    ("millis", "ms", 1),
    ("milli", "ms", 1),
    ("msec", "ms", 1),
    ("msecs", "ms", 1),
    ("second", "s", 1),
    ("seconds", "s", 1),
    ("sec", "s", 1),
    ("secs", "s", 1),
    ("minute", "m", 1),
    ("minutes", "m", 1),
    ("min", "m", 1),
    ("mins", "m", 1),
    ("hour", "h", 1),
    ("hours", "h", 1),
    ("hr", "h", 1),
    ("hrs", "h", 1),
    ("day", "d", 1),
    ("days", "d", 1),
    ("w", "d", 7),
    ("week", "d", 7),
    ("weeks", "d", 7),
    ("month", "d", 30),
    ("months", "d", 30),
    ("y", "d", 365),
    ("year", "d", 365),
    ("years", "d", 365),
    ("ms", "ms", 1),
    ("s", "s", 1),
    ("h", "h", 1),
];

/// Digits after the point that still count: a nanosecond is less than that of any unit.
const DIGITS: usize = 18;

/// Longest text that is repeated in an error.
const SHOWN: usize = 60;

/// The duration that a text stands for.
///
/// # Errors
///
/// If it stands for none: with what was probably meant, where that can be told.
pub fn parse(text: &str) -> Result<Duration, Error> {
    read(text).map_err(|wrong| match wrong {
        Wrong::Shape => refusal(text),
        Wrong::Size => Error::TooLong(shown(text)),
    })
}

/// The duration that a text stands for, in this grammar or another one that people know.
pub fn meant(text: &str) -> Option<Duration> {
    let own = parse(text).ok();
    own.or_else(|| read(&guess(text.trim())?).ok())
}

/// A duration as [`parse`] reads it.
pub fn text(span: Duration) -> String {
    let mut left = span.as_nanos();
    let mut text = String::new();
    for (unit, nanos) in UNITS {
        let nanos = u128::from(nanos);
        let count = left / nanos;
        let rest = left % nanos;
        // What is shorter than the shortest unit is a fraction of it.
        let fraction = if unit == "ms" { rest } else { 0 };
        if count > 0 || fraction > 0 {
            let gap = if text.is_empty() { "" } else { " " };
            let _ = write!(text, "{gap}{count}");
            if fraction > 0 {
                let digits = format!("{fraction:06}");
                let _ = write!(text, ".{}", digits.trim_end_matches('0'));
            }
            text.push_str(unit);
        }
        left = rest;
    }
    if text.is_empty() {
        "0s".to_owned()
    } else {
        text
    }
}

/// A time as people read it: not more exact than its length makes worthwhile.
pub fn human(millis: u64) -> String {
    const DAY: u64 = 86_400_000;
    let unit = match millis {
        0..60_000 => 1,
        60_000..DAY => 1_000,
        _ => 60_000,
    };
    let rounded = millis.saturating_add(unit / 2) / unit * unit;
    let (days, rest) = (rounded / DAY, Duration::from_millis(rounded % DAY));
    match (days, rest.is_zero()) {
        (0, _) => text(rest),
        (_, true) => format!("{days}d"),
        (_, false) => format!("{days}d {}", text(rest)),
    }
}

/// Why a text is not in our grammar.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wrong {
    /// The span is written in another way.
    Shape,
    /// The span is too long.
    Size,
}

/// The duration of a text in our grammar.
fn read(text: &str) -> Result<Duration, Wrong> {
    let mut rest = text.trim();
    let mut nanos = Ok(0_u128);
    let mut next = 0;
    if rest.is_empty() {
        return Err(Wrong::Shape);
    }
    while !rest.is_empty() {
        let (number, after) = split(rest, |letter| letter.is_ascii_digit() || letter == '.');
        let (unit, after) = split(after.trim_start(), |letter| letter.is_ascii_alphabetic());
        // From the longest unit to the shortest, each at most once.
        let place = UNITS[next..].iter().position(|(name, _)| *name == unit);
        let place = place.ok_or(Wrong::Shape)? + next;
        let part = scaled(number, UNITS[place].1);
        if part == Err(Wrong::Shape) {
            return Err(Wrong::Shape);
        }
        nanos = nanos.and_then(|sum| sum.checked_add(part?).ok_or(Wrong::Size));
        next = place + 1;
        rest = after.trim_start();
    }
    let nanos = nanos?;
    let seconds = u64::try_from(nanos / 1_000_000_000).map_err(|_| Wrong::Size)?;
    Ok(Duration::new(seconds, (nanos % 1_000_000_000) as u32))
}

/// So many units of `nanos`. What is below a nanosecond is dropped.
fn scaled(number: &str, nanos: u64) -> Result<u128, Wrong> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if !digits(whole) || !digits(fraction) || fraction.len() > DIGITS {
        return Err(Wrong::Shape);
    }
    let whole: u64 = whole.parse().map_err(|_| Wrong::Size)?;
    let parts: u128 = fraction.parse().map_err(|_| Wrong::Shape)?;
    let parts = parts * u128::from(nanos) / 10_u128.pow(fraction.len() as u32);
    Ok(u128::from(whole) * u128::from(nanos) + parts)
}

/// The start of a text whose letters are so, and the rest.
fn split(text: &str, is: impl Fn(char) -> bool) -> (&str, &str) {
    let end = text.find(|letter| !is(letter)).unwrap_or(text.len());
    text.split_at(end)
}

/// Why a text is refused.
fn refusal(text: &str) -> Error {
    let trimmed = text.trim();
    if !trimmed.is_empty() && trimmed.bytes().all(|byte| byte.is_ascii_digit()) {
        return Error::NoUnit(shown(trimmed));
    }
    let meant = guess(trimmed).filter(|meant| read(meant).is_ok());
    let text = shown(text);
    match meant {
        Some(meant) => Error::Meant { text, meant },
        None => Error::Unreadable(text),
    }
}

/// What was probably meant, in our grammar.
fn guess(text: &str) -> Option<String> {
    let lower = text.to_ascii_lowercase();
    if let Some(clock) = clock(&lower) {
        return Some(clock);
    }
    let of_iso = lower
        .strip_prefix('p')
        .map(|rest| rest.replacen('t', "", 1));
    let plain = of_iso
        .unwrap_or(lower)
        .replace(" and ", " ")
        .replace([',', '_', '+'], " ");
    let mut rest = plain.trim();
    let mut sum = Duration::ZERO;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let (number, after) = split(rest, |letter| letter.is_ascii_digit() || letter == '.');
        let (unit, after) = split(after.trim_start(), |letter| {
            letter.is_alphabetic() || letter == 'µ'
        });
        let number = match number.strip_prefix('.') {
            Some(fraction) => format!("0.{fraction}"),
            None => number.trim_end_matches('.').to_owned(),
        };
        sum = sum.checked_add(other(&number, unit)?)?;
        rest = after.trim_start();
    }
    Some(self::text(sum))
}

/// A number of somebody else's units.
fn other(number: &str, unit: &str) -> Option<Duration> {
    let small = match unit {
        "us" | "µs" | "μs" | "micros" | "microseconds" => Some(1_000),
        "ns" | "nanos" | "nanoseconds" => Some(1),
        _ => None,
    };
    if let Some(nanos) = small {
        let nanos = scaled(number, nanos).ok()?;
        return Some(Duration::from_nanos(u64::try_from(nanos).ok()?));
    }
    let own = UNITS.iter().find(|(name, _)| *name == unit);
    let (name, factor) = if let Some((name, _)) = own {
        (*name, 1)
    } else {
        let known = OTHERS.iter().find(|(word, ..)| *word == unit)?;
        (known.1, known.2)
    };
    let one = read(&format!("{number}{name}")).ok()?;
    one.checked_mul(factor)
}

/// What `01:30:00` stands for.
fn clock(text: &str) -> Option<String> {
    let parts: Vec<u64> = text
        .split(':')
        .map(|part| part.parse().ok())
        .collect::<Option<_>>()?;
    let [hours, minutes, seconds] = parts[..] else {
        return None;
    };
    let seconds = hours
        .checked_mul(3_600)?
        .checked_add(minutes.checked_mul(60)?)?
        .checked_add(seconds)?;
    Some(self::text(Duration::from_secs(seconds)))
}

/// A text as far as an error repeats it.
fn shown(text: &str) -> String {
    text.chars().take(SHOWN).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    use proptest::prelude::*;

    #[test]
    fn numbers_with_our_units_are_durations() {
        for (written, millis) in [
            ("5ms", 5),
            ("5s", 5_000),
            ("5 m", 300_000),
            ("1h", 3_600_000),
            ("2d", 172_800_000),
            ("1h30m", 5_400_000),
            ("1h 30m", 5_400_000),
            ("1d 2h 3m 4s 5ms", 93_784_005),
            ("1.5s", 1_500),
            ("0.5h", 1_800_000),
            (" 10s ", 10_000),
            ("0s", 0),
        ] {
            assert_eq!(
                parse(written),
                Ok(Duration::from_millis(millis)),
                "{written}"
            );
        }
        assert_eq!(parse("0.25ms"), Ok(Duration::from_micros(250)));
        assert!(matches!(
            parse("99999999999999999d"),
            Err(Error::TooLong(_))
        ));
    }

    #[test]
    fn what_is_of_another_grammar_is_refused_with_what_was_meant() {
        for (written, expected) in [
            ("5M", "5m"),
            ("5S", "5s"),
            ("1H", "1h"),
            ("5D", "5d"),
            ("5MS", "5ms"),
            ("30 min", "30m"),
            ("5 minutes", "5m"),
            ("2 hours and 30 minutes", "2h 30m"),
            ("1 hour, 5 sec", "1h 5s"),
            ("PT5M", "5m"),
            ("PT1H30M", "1h 30m"),
            ("P1DT2H", "1d 2h"),
            ("1w", "7d"),
            ("1day", "1d"),
            ("1month", "30d"),
            (".5s", "500ms"),
            ("5.s", "5s"),
            ("30m1h", "1h 30m"),
            ("5s5s", "10s"),
            ("500us", "0.5ms"),
            ("500µs", "0.5ms"),
            ("01:30:00", "1h 30m"),
            ("+5s", "5s"),
        ] {
            let meant = match parse(written) {
                Err(Error::Meant { meant, .. }) => meant,
                other => panic!("{written}: {other:?}"),
            };
            assert_eq!(meant, expected, "{written}");
        }
        assert_eq!(
            parse("5M").unwrap_err().to_string(),
            "`5M` is no duration; did you mean `5m`? (units are `ms`, `s`, `m`, `h` and `d`)"
        );
        assert!(matches!(parse("500"), Err(Error::NoUnit(_))));
        for written in [
            "", " ", "s", "-5s", "1e3s", "1_000", "five", "5x", "1.2.3s", "s5", "tomorrow", "5s!",
        ] {
            assert!(
                matches!(
                    parse(written),
                    Err(Error::Unreadable(_) | Error::Meant { .. })
                ),
                "{written}"
            );
        }
    }

    #[test]
    fn durations_are_written_from_the_longest_unit_to_the_shortest() {
        for (span, written) in [
            (Duration::ZERO, "0s"),
            (Duration::from_millis(1_500), "1s 500ms"),
            (Duration::from_hours(24), "1d"),
            (Duration::from_hours(24 * 366), "366d"),
            (Duration::from_micros(1_250), "1.25ms"),
            (Duration::new(3_600, 1), "1h 0.000001ms"),
        ] {
            assert_eq!(text(span), written);
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_as_the_same(seconds in any::<u64>(), nanos in 0_u32..1_000_000_000) {
            let span = Duration::new(seconds, nanos);

            prop_assert_eq!(parse(&text(span)), Ok(span));
        }

        #[test]
        fn no_text_breaks_it(written in prop_oneof!["\\PC{0,30}", "[0-9.dhmsPT :]{0,20}"]) {
            match parse(&written) {
                Ok(span) => prop_assert_eq!(parse(&text(span)), Ok(span)),
                Err(Error::Meant { meant, .. }) => prop_assert!(parse(&meant).is_ok(), "{}", meant),
                Err(_) => {}
            }
        }
    }
}
