//! What becomes of a task whose id another one has, or had, as it is written: a word, or a table with a window.

use std::fmt;
use std::time::Duration;

use serde::de::value::{MapAccessDeserializer, StrDeserializer};
use serde::de::{self, Deserializer, MapAccess, Visitor};
use serde::{Deserialize, Serialize};

use retide_core::duplicates::{Mode, Rule};

use crate::scene::{Error, error};
use crate::text;

/// What becomes of duplicates.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Duplicates {
    /// This, with the usual window.
    Mode(Mode),
    /// This, with a window.
    Within(Within),
}

/// What becomes of duplicates, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Within {
    /// What becomes of them.
    #[serde(default = "drop_them")]
    pub mode: Mode,
    /// How long after its end a task still has them.
    #[serde(with = "text::duration", default = "window")]
    pub window: Duration,
}

/// The window where none is named: as long as producers try again, as a rule.
pub const WINDOW: Duration = Duration::from_hours(1);

/// The longest window: as long as the retry topic keeps records unless it is configured otherwise.
pub const MAX_WINDOW: Duration = Duration::from_hours(7 * 24);

// === impl Duplicates ===

impl Duplicates {
    /// The rule that this stands for.
    pub(super) fn rules(self) -> Result<Rule, Error> {
        let Within { mode, window } = match self {
            Self::Mode(mode) => Within {
                mode,
                window: WINDOW,
            },
            Self::Within(within) => within,
        };
        if window > MAX_WINDOW {
            let message = "expected a duration of at most 7d".to_owned();
            return Err(error(&["duplicates", "window"], message));
        }
        Ok(match mode {
            Mode::Allow => Rule::default(),
            Mode::Drop => Rule { mode, window },
        })
    }
}

impl Default for Duplicates {
    fn default() -> Self {
        Self::Mode(Mode::Allow)
    }
}

impl<'de> Deserialize<'de> for Duplicates {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // Either, and nothing else: each tells what it expected.
        deserializer.deserialize_any(Either)
    }
}

/// Reads a word, or a table.
struct Either;

impl<'de> Visitor<'de> for Either {
    type Value = Duplicates;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("`\"allow\"`, `\"drop\"` or `{ mode, window }`")
    }

    fn visit_str<E: de::Error>(self, word: &str) -> Result<Duplicates, E> {
        Mode::deserialize(StrDeserializer::new(word)).map(Duplicates::Mode)
    }

    fn visit_map<A: MapAccess<'de>>(self, within: A) -> Result<Duplicates, A::Error> {
        Within::deserialize(MapAccessDeserializer::new(within)).map(Duplicates::Within)
    }
}

/// For serde: what a table means that names no mode.
const fn drop_them() -> Mode {
    Mode::Drop
}

/// For serde: see [`WINDOW`].
const fn window() -> Duration {
    WINDOW
}
