//! The trace: what happened, in order, as a hash and, if wanted, as text.
//!
//! Invariant: the hash does not depend on whether the text is kept.

use std::fmt::Write as _;

use xxhash_rust::xxh3::Xxh3;

use crate::world::At;

/// What happened so far.
#[derive(Default)]
pub(crate) struct Trace {
    /// Over everything noted.
    hash: Xxh3,
    /// One line for each note, if wanted.
    text: Option<String>,
    /// How many notes there are.
    notes: u64,
}

/// Whether the text of a trace is kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Keep {
    /// Only its hash: for campaigns.
    #[default]
    Hash,
    /// Every line: to look at one seed.
    Text,
}

// === impl Trace ===

impl Trace {
    /// An empty trace.
    pub(crate) fn new(keep: Keep) -> Self {
        Self {
            text: match keep {
                Keep::Hash => None,
                Keep::Text => Some(String::new()),
            },
            ..Self::default()
        }
    }

    /// Notes that `what` happened at `at`, with these figures; `detail` is for people only.
    pub(crate) fn note(
        &mut self,
        at: At,
        what: &'static str,
        figures: &[u64],
        detail: impl FnOnce() -> String,
    ) {
        self.notes += 1;
        self.hash.update(&at.to_le_bytes());
        self.hash.update(what.as_bytes());
        for figure in figures {
            self.hash.update(&figure.to_le_bytes());
        }
        if let Some(text) = &mut self.text {
            let (seconds, micros) = (at / 1_000_000, at % 1_000_000);
            let _ = write!(text, "{seconds:>5}.{micros:06} {what:<12}");
            for figure in figures {
                let _ = write!(text, " {figure}");
            }
            let _ = writeln!(text, " {}", detail());
        }
    }

    /// The hash of everything noted.
    pub(crate) fn hash(&self) -> u64 {
        self.hash.digest()
    }

    /// How many notes there are.
    pub(crate) const fn notes(&self) -> u64 {
        self.notes
    }

    /// The text, if it was kept.
    pub(crate) fn into_text(self) -> String {
        self.text.unwrap_or_default()
    }
}
