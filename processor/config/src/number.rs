//! Numbers among the properties of librdkafka.
//!
//! The library reads a number up to the first character that is none, and takes what it has: `"10s"` is 10 milliseconds to it. Invariant:
//! a number that passes here is the number that the library reads.

use retide_core::span;

use super::kafka::{Client, Refusal};

/// What is wrong with a value, if the property is a number and the library would read another one than is written.
pub(super) fn refusal(property: &str, value: &str, client: &dyn Client) -> Option<String> {
    let text = value.trim();
    let begins = text.trim_start_matches(['+', '-']);
    // What does not begin with a digit is a word, which the library knows or refuses.
    if !begins.starts_with(|first: char| first.is_ascii_digit()) || !is_number(property, client) {
        return None;
    }
    if is_plain(text) {
        return None;
    }
    let unit = Unit::of(property);
    let expected = unit.words();
    Some(match unit.number(text) {
        Some(number) => format!("expected {expected}, found \"{text}\"; write {number}"),
        None => format!("expected {expected}, found \"{text}\""),
    })
}

/// What a number counts, by the end of the property's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Unit {
    /// Milliseconds.
    Millis,
    /// Bytes.
    Bytes,
    /// 1,024 bytes.
    Kibibytes,
    /// Things.
    Count,
}

// === impl Unit ===

impl Unit {
    /// The unit of a property.
    fn of(property: &str) -> Self {
        match property.rsplit(['.', '_']).next() {
            Some("ms") => Self::Millis,
            Some("bytes") => Self::Bytes,
            Some("kbytes") => Self::Kibibytes,
            Some(_) | None => Self::Count,
        }
    }

    /// What is expected.
    const fn words(self) -> &'static str {
        match self {
            Self::Millis => "a whole number of milliseconds",
            Self::Bytes => "a whole number of bytes",
            Self::Kibibytes => "a whole number of KiB",
            Self::Count => "a whole number",
        }
    }

    /// The number that was meant, if that can be told.
    fn number(self, text: &str) -> Option<u64> {
        match self {
            Self::Millis => {
                let duration = span::meant(text)?;
                u64::try_from(duration.as_millis()).ok()
            }
            Self::Bytes => super::text::bytes(text),
            Self::Kibibytes => Some(super::text::bytes(text)?.div_ceil(1_024)),
            Self::Count => text.replace([',', '_', ' '], "").parse().ok(),
        }
    }
}

/// Whether the library reads all of a text, as people do: it takes a leading zero for octal, and drops what does not fit 32 bits.
fn is_plain(text: &str) -> bool {
    if let Some(digits) = text.strip_prefix("0x") {
        return i32::from_str_radix(digits, 16).is_ok();
    }
    let digits = text.trim_start_matches(['+', '-']);
    (digits == "0" || !digits.starts_with('0')) && text.parse::<i32>().is_ok()
}

/// Whether a property is a number to the library: it refuses a word for it.
fn is_number(property: &str, client: &dyn Client) -> bool {
    matches!(
        client.check(property, "no-number"),
        Err(Refusal::NotANumber(_))
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    use super::super::kafka::Properties;

    /// A client all of whose properties are numbers.
    struct Numbers;

    impl Client for Numbers {
        fn check(&self, _: &str, _: &str) -> Result<(), Refusal> {
            Err(Refusal::NotANumber(String::new()))
        }

        fn create(&self, _: &Properties, _: &Properties) -> Result<(), String> {
            Ok(())
        }
    }

    #[test]
    fn a_number_with_a_unit_is_refused_with_the_number_that_was_meant() {
        let cases = [
            (
                "session.timeout.ms",
                "10s",
                Some("a whole number of milliseconds, found \"10s\"; write 10000"),
            ),
            (
                "session.timeout.ms",
                "1m 30s",
                Some("a whole number of milliseconds, found \"1m 30s\"; write 90000"),
            ),
            (
                "linger.ms",
                "0.5",
                Some("a whole number of milliseconds, found \"0.5\""),
            ),
            (
                "fetch.max.bytes",
                "50MiB",
                Some("a whole number of bytes, found \"50MiB\"; write 52428800"),
            ),
            (
                "queued.max.messages.kbytes",
                "64MiB",
                Some("a whole number of KiB, found \"64MiB\"; write 65536"),
            ),
            (
                "batch.num.messages",
                "10_000",
                Some("a whole number, found \"10_000\"; write 10000"),
            ),
            ("retries", "5x", Some("a whole number, found \"5x\"")),
            (
                "message.timeout.ms",
                "30s",
                Some("a whole number of milliseconds, found \"30s\"; write 30000"),
            ),
            (
                "request.timeout.ms",
                "010",
                Some("a whole number of milliseconds, found \"010\""),
            ),
            (
                "metadata.max.age.ms",
                "99999999999",
                Some("a whole number of milliseconds, found \"99999999999\""),
            ),
            ("session.timeout.ms", "10000", None),
            ("linger.ms", "5", None),
        ];
        for (property, value, expected) in cases {
            let expected = expected.map(|expected| format!("expected {expected}"));

            assert_eq!(
                refusal(property, value, &Numbers),
                expected,
                "{property} = {value}"
            );
        }
    }
}
