//! Breakers by hand: a target that people want called, or not called, whatever its breaker finds.
//!
//! Not how that is written down, which is `retide-avro`'s, nor what a breaker does by itself ([`crate::breaker`]). Invariant: what is forced
//! names a target and ends by itself.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::breaker::Subject;
use crate::hold::Revision;
use crate::selector::target_names;
use crate::time::Timestamp;

/// What people want of the breakers of a target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forced {
    /// The target as they name it: a host, or scheme, host and port.
    pub target: Arc<str>,
    /// Where the record stands that says so.
    pub revision: Revision,
    /// What is wanted.
    pub force: Force,
    /// Who wants it.
    pub by: Box<str>,
    /// Why.
    pub reason: Box<str>,
    /// Since when.
    pub since: Timestamp,
    /// When it ends by itself.
    pub until: Timestamp,
}

/// What is wanted of a breaker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Force {
    /// It is open: the target is not called.
    Open,
    /// It is closed: the target is called, whatever it says.
    Closed,
    /// It begins anew, and decides by itself from then on.
    Reset,
}

/// What is wanted, by target.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AllForced {
    /// What is wanted.
    by_target: BTreeMap<Arc<str>, Arc<Forced>>,
    /// How often that has changed in this process: its workers hear of a change one after the other.
    version: u64,
}

/// Most targets of which something is wanted at once: more than people look after, and each shard writes down that it knows.
pub const MAX_FORCED: usize = 1_000;

/// Longest name of a target, in bytes: a host has 253 at most.
pub const MAX_TARGET: usize = 300;

/// How long a breaker is forced where nothing is said of that: as long as somebody looks after it.
pub const LASTS: Duration = Duration::from_hours(1);

/// How long a record stands that resets a breaker: long enough for every process to read it that stood still.
pub const RESET_STANDS: Duration = Duration::from_mins(10);

/// What stands before a target in the key of such a record, in an event, and where shards write down what they know. No name of a scene has a
/// slash in it.
pub const BREAKER: &str = "breaker/";

// === impl Forced ===

impl Forced {
    /// Whether it is in force.
    pub fn is_on(&self, now: Timestamp) -> bool {
        now < self.until
    }
}

// === impl Force ===

impl Force {
    /// Every one there is.
    pub const ALL: [Self; 3] = [Self::Open, Self::Closed, Self::Reset];

    /// The word for it.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Closed => "closed",
            Self::Reset => "reset",
        }
    }

    /// What `word` says, if it is one of these.
    pub fn from_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|force| force.word() == word)
    }
}

impl fmt::Display for Force {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.word())
    }
}

// === impl AllForced ===

impl AllForced {
    /// These, after so many changes.
    #[must_use]
    pub fn at_version(self, version: u64) -> Self {
        Self { version, ..self }
    }

    /// How often that has changed in this process.
    pub const fn version(&self) -> u64 {
        self.version
    }

    /// All of them, by target.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Forced>> {
        self.by_target.values()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.by_target.is_empty()
    }

    /// What is wanted of the target of this name.
    pub fn get(&self, target: &str) -> Option<&Arc<Forced>> {
        self.by_target.get(target)
    }

    /// Everything that means a breaker, in force or not.
    pub fn about(&self, subject: &Subject) -> impl Iterator<Item = &Arc<Forced>> {
        let target = if self.is_empty() {
            String::new()
        } else {
            subject.target().to_ascii_lowercase()
        };
        let mut about: [Option<&Arc<Forced>>; 3] = target_names(&target).map(|name| self.get(name));
        // A name that is another one, too, is said once.
        for later in 1..about.len() {
            if about[..later].contains(&about[later]) {
                about[later] = None;
            }
        }
        about.into_iter().flatten()
    }

    /// What is wanted of a breaker: what was said last, of what is in force.
    pub fn of(&self, now: Timestamp, subject: &Subject) -> Option<&Arc<Forced>> {
        let on = self.about(subject).filter(|forced| forced.is_on(now));
        on.max_by_key(|forced| (forced.since, forced.revision))
    }

    /// When the first one ends of those that are in force.
    pub fn next_end(&self, now: Timestamp) -> Option<Timestamp> {
        let on = self.iter().filter(|forced| forced.is_on(now));
        on.map(|forced| forced.until).min()
    }
}

impl FromIterator<Arc<Forced>> for AllForced {
    /// Of more than [`MAX_FORCED`], those that come first.
    fn from_iter<I: IntoIterator<Item = Arc<Forced>>>(all: I) -> Self {
        let mut by_target = BTreeMap::new();
        for forced in all {
            if by_target.len() < MAX_FORCED || by_target.contains_key(&forced.target) {
                by_target.insert(Arc::clone(&forced.target), forced);
            }
        }
        Self {
            by_target,
            version: 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is wanted of a target since then, for ten minutes.
    fn forced(target: &str, force: Force, since: u64) -> Arc<Forced> {
        let since = Timestamp::from_millis(since);
        Arc::new(Forced {
            target: target.into(),
            revision: Revision::default(),
            force,
            by: "ann".into(),
            reason: "test".into(),
            since,
            until: since + Duration::from_mins(10),
        })
    }

    #[test]
    fn what_was_said_last_counts_of_whatever_means_a_target_until_it_ends() {
        let all: AllForced = [
            forced("shop.example", Force::Open, 600_000),
            forced("shop.example:443", Force::Closed, 300_000),
            forced("https://shop.example:443", Force::Reset, 1),
            forced("other.example", Force::Reset, 700_000),
        ]
        .into_iter()
        .collect();
        let of = |at, target: &str| {
            let of = all.of(Timestamp::from_millis(at), &Subject::from(target));
            of.map(|forced| forced.force)
        };

        assert_eq!(of(800_000, "https://shop.example:443"), Some(Force::Open));
        assert_eq!(of(800_000, "HTTP://Shop.Example:80"), Some(Force::Open));
        assert_eq!(of(1_200_000, "https://shop.example:443"), None);
        assert_eq!(of(800_000, "https://my.shop.example:443"), None);
        let at = Timestamp::from_millis(800_000);
        assert_eq!(all.next_end(at), Some(Timestamp::from_millis(900_000)));
        assert_eq!(all.about(&Subject::from("shop.example")).count(), 1);
    }

    #[test]
    fn there_are_no_more_than_fit() {
        let all = (0..MAX_FORCED + 9).map(|number| forced(&number.to_string(), Force::Open, 1));
        let all: AllForced = all.collect();

        assert_eq!(all.iter().count(), MAX_FORCED);
    }
}
