//! Values that are written as text: durations, sizes, addresses.

use std::fmt;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::time::{Duration, UNIX_EPOCH};

use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, Unexpected, Visitor};
use serde::{Serialize, Serializer};
use toml::value::Datetime;

use retide_avro::headers::MAX_SCENE;
use retide_core::{Ladder, Timestamp, span};

/// The units that a size may be written in, and their bytes.
const UNITS: [(&str, u64); 3] = [("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30)];

/// Least memory for tasks: one large record for each of some lanes.
const LEAST_MEMORY: u64 = 16 << 20;

/// A duration as text, such as `5s` or `24h`.
pub(super) struct Human(pub(super) Duration);

impl Serialize for Human {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&span::text(self.0))
    }
}

impl<'de> Deserialize<'de> for Human {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Span).map(Self)
    }
}

/// Reads a duration.
struct Span;

impl Visitor<'_> for Span {
    type Value = Duration;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a duration with its unit, such as \"5s\" or \"24h\"")
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Duration, E> {
        span::parse(text).map_err(E::custom)
    }
}

/// Reads text of a certain form.
struct Parse<T> {
    /// The form, in words.
    expected: &'static str,
    /// What the text stands for.
    parse: fn(&str) -> Option<T>,
}

impl<T> Visitor<'_> for Parse<T> {
    type Value = T;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.expected)
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<T, E> {
        (self.parse)(text).ok_or_else(|| E::invalid_value(Unexpected::Str(text), &self))
    }
}

/// A duration.
pub(super) mod duration {
    use super::{Deserialize, Deserializer, Duration, Human, Serialize, Serializer};

    /// Writes it.
    pub(crate) fn serialize<S: Serializer>(
        duration: &Duration,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        Human(*duration).serialize(serializer)
    }

    /// Reads it.
    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Duration, D::Error> {
        Human::deserialize(deserializer).map(|Human(duration)| duration)
    }
}

/// A duration that may be left out.
pub(super) mod maybe {
    use super::{Deserialize, Deserializer, Duration, Human, Serialize, Serializer};

    /// Writes it.
    #[allow(clippy::ref_option, reason = "the signature that derived code calls")]
    pub(crate) fn serialize<S: Serializer>(
        duration: &Option<Duration>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        duration.map(Human).serialize(serializer)
    }

    /// Reads it.
    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<Duration>, D::Error> {
        Option::<Human>::deserialize(deserializer)
            .map(|duration| duration.map(|Human(duration)| duration))
    }
}

/// Several durations.
pub(super) mod durations {
    use super::{Deserialize, Deserializer, Duration, Human, Serializer};

    /// Writes them.
    pub(crate) fn serialize<S: Serializer>(
        durations: &[Duration],
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(durations.iter().map(|&duration| Human(duration)))
    }

    /// Reads them.
    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Vec<Duration>, D::Error> {
        Vec::<Human>::deserialize(deserializer)
            .map(|all| all.into_iter().map(|Human(duration)| duration).collect())
    }
}

/// Points in time, as texts of RFC 3339 or as TOML's own dates.
pub(super) mod times {
    use super::{Deserialize, Deserializer, Instant, Serializer, Timestamp, rfc3339};

    /// Writes them.
    pub(crate) fn serialize<S: Serializer>(
        times: &[Timestamp],
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(times.iter().map(|&time| rfc3339(time)))
    }

    /// Reads them.
    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Vec<Timestamp>, D::Error> {
        Vec::<Instant>::deserialize(deserializer)
            .map(|all| all.into_iter().map(|Instant(time)| time).collect())
    }
}

/// A point in time.
struct Instant(Timestamp);

impl<'de> Deserialize<'de> for Instant {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // Either, and nothing else: each tells what it expected.
        deserializer.deserialize_any(Time).map(Self)
    }
}

/// Reads a point in time.
struct Time;

impl<'de> Visitor<'de> for Time {
    type Value = Timestamp;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a time with an offset such as \"2026-12-24T09:00:00+01:00\"")
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Timestamp, E> {
        Timestamp::from_rfc3339(text).ok_or_else(|| E::invalid_value(Unexpected::Str(text), &self))
    }

    fn visit_map<A: MapAccess<'de>>(self, date: A) -> Result<Timestamp, A::Error> {
        let date = Datetime::deserialize(MapAccessDeserializer::new(date))
            .map_err(|_| A::Error::invalid_type(Unexpected::Map, &Time))?;
        self.visit_str(&date.to_string())
    }
}

/// A point in time as text, in UTC.
pub fn rfc3339(time: Timestamp) -> String {
    let micros = time.as_micros();
    let time = UNIX_EPOCH + Duration::from_micros(micros);
    if micros.is_multiple_of(1_000_000) {
        humantime::format_rfc3339_seconds(time).to_string()
    } else if micros.is_multiple_of(1_000) {
        humantime::format_rfc3339_millis(time).to_string()
    } else {
        humantime::format_rfc3339_micros(time).to_string()
    }
}

/// Reads a duration.
pub(super) fn span<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    deserializer.deserialize_any(Span)
}

/// Reads a duration of more than nothing.
pub(super) fn positive<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let duration = deserializer.deserialize_any(Span)?;
    if duration.is_zero() {
        let message = "expected a duration of more than nothing, such as \"100ms\"";
        return Err(D::Error::custom(message));
    }
    Ok(duration)
}

/// Reads a number of bytes, such as `256MiB`.
pub(super) fn size<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    deserializer.deserialize_any(Size)
}

/// A number of bytes as [`bytes`] reads it.
pub(super) fn sized(bytes: u64) -> String {
    let fits = UNITS
        .iter()
        .rev()
        .find(|(_, unit)| bytes > 0 && bytes.is_multiple_of(*unit));
    match fits {
        Some((name, unit)) => format!("{}{name}", bytes / unit),
        None => bytes.to_string(),
    }
}

/// Reads a limit of memory: of less, nothing could be done.
pub(super) fn memory<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    let bytes = size(deserializer)?;
    if bytes < LEAST_MEMORY {
        return Err(D::Error::custom(format!(
            "expected at least {}, found {}",
            sized(LEAST_MEMORY),
            sized(bytes)
        )));
    }
    Ok(bytes)
}

/// A number of bytes, such as `256MiB`.
pub(super) fn bytes(text: &str) -> Option<u64> {
    let (number, unit) = UNITS
        .iter()
        .find_map(|(name, bytes)| Some((text.strip_suffix(name)?, *bytes)))
        .unwrap_or((text, 1));
    number.trim().parse::<u64>().ok()?.checked_mul(unit)
}

/// Reads a size from text or a plain number.
struct Size;

impl Visitor<'_> for Size {
    type Value = u64;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a size such as \"256MiB\" or a number of bytes, more than 0")
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<u64, E> {
        bytes(text)
            .filter(|&bytes| bytes > 0)
            .ok_or_else(|| E::invalid_value(Unexpected::Str(text), &self))
    }

    fn visit_i64<E: serde::de::Error>(self, number: i64) -> Result<u64, E> {
        u64::try_from(number)
            .ok()
            .filter(|&bytes| bytes > 0)
            .ok_or_else(|| E::invalid_value(Unexpected::Signed(number), &self))
    }
}

/// Reads an address to listen on; `off` stands for none.
pub(super) fn address<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<SocketAddr>, D::Error> {
    deserializer.deserialize_str(Parse {
        expected: "an address such as \"127.0.0.1:9464\", or \"off\"",
        parse: |text| match text {
            "off" => Some(None),
            _ => text.parse().ok().map(Some),
        },
    })
}

/// Reads a ladder of tiers.
pub(super) fn ladder<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Ladder, D::Error> {
    let names = Vec::<String>::deserialize(deserializer)?;
    Ladder::try_new(&names).map_err(D::Error::custom)
}

/// Reads what the names of topics begin with.
pub(super) fn prefix<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    deserializer.deserialize_str(Parse {
        expected: "1 to 200 letters, digits, dots, underscores or dashes",
        parse: super::prefix,
    })
}

/// Reads the name of a consumer group.
pub(super) fn group<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    deserializer.deserialize_str(Parse {
        expected: "1 to 200 letters, digits, dots, underscores or dashes",
        parse: |text| is_name(text, 200).then(|| text.to_owned()),
    })
}

/// Reads the name of a consumer group that may be left out.
pub(super) fn group_named<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<String>, D::Error> {
    group(deserializer).map(Some)
}

/// Reads the name of a topic.
pub(super) fn topic<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    deserializer.deserialize_str(Parse {
        expected: "the name of a topic: 1 to 249 letters, digits, dots, underscores or dashes",
        parse: |text| (is_name(text, 249) && text != "." && text != "..").then(|| text.to_owned()),
    })
}

/// Reads the name of a scene.
pub(super) fn scene<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    deserializer.deserialize_str(Parse {
        expected: "the name of a scene",
        parse: |text| {
            (!text.is_empty() && text.len() <= MAX_SCENE && text.trim() == text)
                .then(|| text.to_owned())
        },
    })
}

/// Reads a number of partitions.
pub(super) fn partitions<'de, D: Deserializer<'de>>(deserializer: D) -> Result<i32, D::Error> {
    within(
        deserializer,
        1..=10_000,
        "a number of partitions, 1 to 10000",
    )
    .map(|number| number as i32)
}

/// Reads a number of copies.
pub(super) fn replication_factor<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<i16, D::Error> {
    let number = i64::deserialize(deserializer)?;
    if number == -1 || (1..=100).contains(&number) {
        return Ok(number as i16);
    }
    let expected = "a number of replicas, or -1 for the broker's default";
    Err(D::Error::invalid_value(
        Unexpected::Signed(number),
        &expected,
    ))
}

/// Reads a whole number of a range.
fn within<'de, D: Deserializer<'de>>(
    deserializer: D,
    range: RangeInclusive<i64>,
    expected: &'static str,
) -> Result<i64, D::Error> {
    let number = i64::deserialize(deserializer)?;
    if range.contains(&number) {
        return Ok(number);
    }
    Err(D::Error::invalid_value(
        Unexpected::Signed(number),
        &expected,
    ))
}

/// Whether a name has between 1 and `most` characters, all of them letters, digits, dots, underscores or dashes.
pub(super) fn is_name(name: &str, most: usize) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    (1..=most).contains(&name.len()) && name.bytes().all(plain)
}
