//! How many calls of a scene are in flight, as it is written: a number, or the bounds of one that follows the target.

use std::fmt;
use std::num::NonZeroU32;

use serde::de::value::MapAccessDeserializer;
use serde::de::{self, Deserializer, MapAccess, Unexpected, Visitor};
use serde::{Deserialize, Serialize};

use retide_core::scene::CONCURRENCY;

use crate::scene::{Error, Of, error, is_default};

/// Calls in flight at once, per process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Concurrency {
    /// Always so many.
    Fixed(NonZeroU32),
    /// Within these bounds.
    Within(Bounds),
}

/// The bounds of a number of calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bounds {
    /// The most.
    #[serde(default = "most")]
    pub max: NonZeroU32,
    /// The fewest.
    #[serde(default = "least")]
    pub min: NonZeroU32,
    /// Whether the number follows the target; if not, it is the most.
    #[serde(default = "adaptive")]
    pub adaptive: bool,
    /// Whose calls count.
    #[serde(default, skip_serializing_if = "is_default")]
    pub of: Of,
}

// === impl Concurrency ===

impl Concurrency {
    /// The most calls.
    pub(super) const fn most(self) -> NonZeroU32 {
        match self {
            Self::Fixed(calls) => calls,
            Self::Within(bounds) => bounds.max,
        }
    }

    /// Whose calls count.
    pub(super) fn of(self) -> Of {
        match self {
            Self::Fixed(_) => Of::Scene,
            Self::Within(bounds) => bounds.of,
        }
    }

    /// The fewest calls, if the number follows the target.
    pub(super) fn least(self) -> Result<Option<NonZeroU32>, Error> {
        match self {
            Self::Fixed(_) => Ok(None),
            Self::Within(Bounds { max, min, .. }) if min > max => {
                let message = format!("expected a number of at most `max`, {max}, found `{min}`");
                Err(error(&["concurrency", "min"], message))
            }
            Self::Within(bounds) => Ok(Some(bounds.min).filter(|_| bounds.adaptive)),
        }
    }
}

impl Default for Concurrency {
    fn default() -> Self {
        Self::Fixed(most())
    }
}

impl<'de> Deserialize<'de> for Concurrency {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // Either, and nothing else: each tells what it expected.
        deserializer.deserialize_any(Either)
    }
}

/// Reads a number, or bounds.
struct Either;

impl<'de> Visitor<'de> for Either {
    type Value = Concurrency;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a whole number of at least 1, or `{ max, min, adaptive, of }`")
    }

    fn visit_i64<E: de::Error>(self, number: i64) -> Result<Concurrency, E> {
        let calls = u32::try_from(number).ok().and_then(NonZeroU32::new);
        calls
            .map(Concurrency::Fixed)
            .ok_or_else(|| E::invalid_value(Unexpected::Signed(number), &self))
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<Concurrency, E> {
        let calls = u32::try_from(number).ok().and_then(NonZeroU32::new);
        calls
            .map(Concurrency::Fixed)
            .ok_or_else(|| E::invalid_value(Unexpected::Unsigned(number), &self))
    }

    fn visit_map<A: MapAccess<'de>>(self, bounds: A) -> Result<Concurrency, A::Error> {
        Bounds::deserialize(MapAccessDeserializer::new(bounds)).map(Concurrency::Within)
    }
}

/// For serde: see [`CONCURRENCY`].
const fn most() -> NonZeroU32 {
    CONCURRENCY
}

/// The fewest where none are named.
const fn least() -> NonZeroU32 {
    NonZeroU32::MIN
}

/// Whether bounds mean that the number moves between them, where it is not said.
const fn adaptive() -> bool {
    true
}
