//! Scenes on the topic as older versions of retide wrote them, in the words of today.
//!
//! Durations were written with words such as `1day`, and a wait of nothing meant the shortest one. Invariant: what means the same today is
//! not changed.

use toml::{Table, Value};

use retide_core::span;

/// Units that are written in other words today.
const WORDS: [&str; 9] = [
    "year", "years", "month", "months", "day", "days", "us", "ns", "µs",
];

/// The days of a year and of a month were fractions: those of the library that wrote them.
const LENGTHS: [(&str, u64); 2] = [("year", 31_557_600), ("month", 2_630_016)];

/// The keys of waits that have to be some.
const WAITS: [&str; 3] = ["delay", "delays", "first"];

/// Puts a scene in the words of today.
pub(super) fn mend(table: &mut Table) {
    for (key, value) in table {
        match value {
            // Headers are anybody's words.
            Value::Table(_) if key == "headers" => {}
            Value::Table(table) => mend(table),
            Value::Array(values) => {
                for value in values {
                    if let Value::String(text) = value {
                        one(key, text);
                    }
                }
            }
            Value::String(text) => one(key, text),
            Value::Integer(_) | Value::Float(_) | Value::Boolean(_) | Value::Datetime(_) => {}
        }
    }
}

/// Mends one value.
fn one(key: &str, text: &mut String) {
    let mended = match former(text) {
        Some(mended) => mended,
        None if WAITS.contains(&key) && span::parse(text).is_ok_and(|span| span.is_zero()) => {
            "1ms".to_owned()
        }
        None => return,
    };
    *text = mended;
}

/// A duration in the words of before, in those of today.
fn former(text: &str) -> Option<String> {
    let mut sum = std::time::Duration::ZERO;
    let mut is_former = false;
    for part in text.split(' ') {
        let end = part.find(|letter: char| !letter.is_ascii_digit())?;
        let (number, unit) = part.split_at(end);
        let number: u32 = number.parse().ok()?;
        is_former |= WORDS.contains(&unit);
        let length = LENGTHS
            .iter()
            .find(|(word, _)| unit.trim_end_matches('s') == *word);
        let one = match length {
            Some((_, seconds)) => std::time::Duration::from_secs(*seconds),
            None => span::meant(&format!("1{unit}"))?,
        };
        sum = sum.checked_add(one.checked_mul(number)?)?;
    }
    is_former.then(|| span::text(sum))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mended(text: &str) -> String {
        let mut table: Table = toml::from_str(text).unwrap();
        mend(&mut table);
        table.to_string()
    }

    #[test]
    fn durations_of_before_mean_what_they_meant() {
        for (before, now) in [
            ("deadline = '1day'", "deadline = \"1d\"\n"),
            ("deadline = '2days 3h'", "deadline = \"2d 3h\"\n"),
            ("deadline = '1month'", "deadline = \"30d 10h 33m 36s\"\n"),
            ("delay = '0s'", "delay = \"1ms\"\n"),
            ("timeout = '1ms 500us'", "timeout = \"1.5ms\"\n"),
        ] {
            assert_eq!(mended(before), now);
        }
        for today in [
            "deadline = '1d'",
            "headers = { a = '1day' }",
            "url = '5 days'",
            "min = '0s'",
        ] {
            let table: Table = toml::from_str(today).unwrap();
            assert_eq!(mended(today), table.to_string());
        }
    }
}
