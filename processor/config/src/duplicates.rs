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
    #[serde(default, with = "text::maybe", skip_serializing_if = "Option::is_none")]
    pub window: Option<Duration>,
}

/// The window of a scene that drops duplicates, where none is named: as long as producers try again, as a rule. One that replaces has none:
/// what comes after the end is news.
pub const WINDOW: Duration = Duration::from_hours(1);

/// The longest window: as long as the retry topic keeps records unless it is configured otherwise.
pub const MAX_WINDOW: Duration = Duration::from_hours(7 * 24);

// === impl Duplicates ===

impl Duplicates {
    /// The rule that this stands for.
    pub(super) fn rules(self) -> Result<Rule, Error> {
        let Within { mode, window } = match self {
            Self::Mode(mode) => Within { mode, window: None },
            Self::Within(within) => within,
        };
        let window = window.unwrap_or(if mode.replaces() {
            Duration::ZERO
        } else {
            WINDOW
        });
        if window > MAX_WINDOW {
            let message = "expected a duration of at most 7d".to_owned();
            return Err(error(&["duplicates", "window"], message));
        }
        Ok(match mode {
            Mode::Allow => Rule::default(),
            Mode::Drop | Mode::Replace | Mode::KeepDue => Rule { mode, window },
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
        let words = "`\"allow\"`, `\"drop\"`, `\"replace\"`, `\"keep-due\"` or `{ mode, window }`";
        formatter.write_str(words)
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
