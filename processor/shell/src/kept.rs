//! How long dead letters are kept: found out by the thread that looks at settings, and told to each engine.
//!
//! Not what follows from it, which the engine decides. Invariant: what is not known now is as it was known last.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use retide_core::step::LettersKept;

/// How long dead letters are kept. Cheap to clone; all clones say the same.
#[derive(Clone, Debug)]
pub struct Kept {
    /// How long before a letter goes people are told.
    warn_before: Duration,
    /// How long letters are kept, in milliseconds, or [`UNKNOWN`].
    keeps: Arc<AtomicU64>,
}

/// The number for a time that is not known, or has no end.
const UNKNOWN: u64 = u64::MAX;

// === impl Kept ===

impl Kept {
    /// Nothing is known yet; people are told so long before a letter goes.
    pub fn new(warn_before: Duration) -> Self {
        Self {
            warn_before,
            keeps: Arc::new(AtomicU64::new(UNKNOWN)),
        }
    }

    /// What engines are told.
    pub(crate) fn get(&self) -> Option<LettersKept> {
        let keeps = self.keeps.load(Ordering::Relaxed);
        (keeps != UNKNOWN).then_some(LettersKept {
            keeps: Duration::from_millis(keeps),
            warn_before: self.warn_before,
        })
    }

    /// The topic has these settings: those that delete by time count.
    pub(crate) fn read(&self, cleanup_policy: Option<&String>, retention_ms: Option<&String>) {
        let deletes = cleanup_policy.is_none_or(|policy| policy.contains("delete"));
        let millis = retention_ms.filter(|_| deletes);
        let millis = millis.and_then(|millis| millis.parse().ok());
        self.keeps
            .store(millis.unwrap_or(UNKNOWN), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn letters_are_kept_as_long_as_their_topic_does_not_delete_by_time() {
        let kept = Kept::new(Duration::from_secs(1));
        let read = |policy: &str, millis: &str| {
            kept.read(Some(&policy.to_owned()), Some(&millis.to_owned()));
            kept.get().map(|kept| kept.keeps.as_millis())
        };

        assert_eq!(kept.get(), None);
        assert_eq!(read("delete", "5000"), Some(5_000));
        assert_eq!(read("compact,delete", "6000"), Some(6_000));
        assert_eq!(read("compact", "5000"), None);
        assert_eq!(read("delete", "-1"), None);
        assert_eq!(read("delete", "soon"), None);
        kept.read(None, None);
        assert_eq!(kept.get(), None);
    }
}
