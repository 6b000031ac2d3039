//! Of which topics a worker can commit what it has read: known to its threads as soon as one of them has found out.
//!
//! A commit of offsets is refused as a whole if one of its topics does not exist or may not be read, so that one topic would stop all.
//! Not what is done about it: the core decides what waits, and the drive what is committed. Invariant: only what a broker said of a topic
//! takes it out, and puts it in again.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use retide_core::Source;

/// Of which topics offsets cannot be committed.
#[derive(Debug, Default)]
pub(crate) struct Readability {
    /// What is known.
    state: Mutex<Unreadable>,
    /// Counts changes of it.
    version: AtomicU64,
}

/// The topics of which offsets cannot be committed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Unreadable(BTreeMap<Source, (Arc<str>, Why)>);

/// Why offsets of a topic cannot be committed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Why {
    /// It may not be read: what was read of it before waits until it may.
    Denied,
    /// It does not exist: nothing of it will be read again, so that what was read before needs no offset.
    Deleted,
}

// === impl Readability ===

impl Readability {
    /// A number that changes with [`Self::unreadable`].
    pub(crate) fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    /// The topics of which offsets cannot be committed.
    pub(crate) fn unreadable(&self) -> Unreadable {
        self.lock().clone()
    }

    /// These, of all topics that are read, are in this state, and no other one is.
    pub(crate) fn only<'a>(
        &self,
        why: Why,
        topics: impl IntoIterator<Item = (Source, &'a Arc<str>)>,
    ) {
        let mut state = self.lock();
        let before = state.clone();
        state.0.retain(|_, (_, of)| *of != why);
        for (source, topic) in topics {
            state.0.insert(source, (Arc::clone(topic), why));
        }
        if *state != before {
            self.version.fetch_add(1, Ordering::AcqRel);
        }
    }

    /// Locks what no panic leaves half-changed.
    fn lock(&self) -> MutexGuard<'_, Unreadable> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Unreadable ===

impl Unreadable {
    /// Whether there are none.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether no offset of this source can be committed.
    pub(crate) fn has(&self, source: Source) -> bool {
        self.0.contains_key(&source)
    }

    /// Whether no offset of this topic can be committed.
    pub(crate) fn has_topic(&self, topic: &str) -> bool {
        self.0.values().any(|(of, _)| **of == *topic)
    }

    /// Whether this source may not be read.
    pub(crate) fn is_denied(&self, source: Source) -> bool {
        self.0
            .get(&source)
            .is_some_and(|(_, why)| *why == Why::Denied)
    }

    /// Whether this source's topic does not exist.
    pub(crate) fn is_deleted(&self, source: Source) -> bool {
        self.0
            .get(&source)
            .is_some_and(|(_, why)| *why == Why::Deleted)
    }

    /// Those that may not be read.
    pub(crate) fn denied(&self) -> impl Iterator<Item = Source> {
        let denied = self.0.iter().filter(|(_, (_, why))| *why == Why::Denied);
        denied.map(|(source, _)| *source)
    }

    /// The sources that are in this and not in `other`.
    pub(crate) fn without(&self, other: &Self) -> impl Iterator<Item = Source> {
        self.0.keys().filter(|source| !other.has(**source)).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_of_one_reason_leaves_the_other_alone() {
        let readability = Readability::default();
        let topic = |name: &str| Arc::<str>::from(name);
        let (one, two) = (topic("one"), topic("two"));
        let (first, second) = (Source::Tier(0), Source::Tier(1));

        readability.only(Why::Denied, [(first, &one)]);
        readability.only(Why::Deleted, [(second, &two)]);
        let version = readability.version();
        readability.only(Why::Denied, [(first, &one)]);
        assert_eq!(readability.version(), version, "nothing has changed");
        let both = readability.unreadable();
        assert!(both.is_denied(first) && both.has(second) && !both.is_denied(second));
        assert!(both.has_topic("two") && !both.has_topic("three"));

        readability.only(Why::Denied, []);
        let left = readability.unreadable();
        assert_ne!(readability.version(), version);
        assert_eq!(both.without(&left).collect::<Vec<_>>(), [first]);
        assert_eq!(left.denied().count(), 0);
    }
}
