//! Selectors: which tasks a command is about.
//!
//! Not how one is written down, which is `retide-avro`'s and the command line's. Invariant: a selector names something: an empty one, which
//! would be about every task, cannot be made.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;
use std::sync::Arc;

use bytes::Bytes;
use thiserror::Error;
use xxhash_rust::xxh3::Xxh3;

use crate::scene::Scene;
use crate::task::{Failure, Kind, Name, Task};
use crate::time::Timestamp;

/// Which tasks are meant: those that fit every part that is said, each by one of its values.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Parts {
    /// Identities.
    pub ids: BTreeSet<Arc<str>>,
    /// Scenes.
    pub scenes: BTreeSet<Arc<str>>,
    /// Keys of the producer's records.
    pub keys: BTreeSet<Bytes>,
    /// Headers of the producer's records, each with a value; all of them have to be there.
    pub headers: Vec<(Name, Bytes)>,
    /// Classes of the last failure, such as `http-503`.
    pub errors: BTreeSet<Box<str>>,
    /// Fingerprints of the last failure.
    pub fingerprints: BTreeSet<ErrorFingerprint>,
    /// Targets: a host, or scheme, host and port as a breaker names it.
    pub targets: BTreeSet<Box<str>>,
    /// Attempts made so far.
    pub attempts: Option<RangeInclusive<u32>>,
    /// When the task entered: from, and before.
    pub entered: Option<Span>,
    /// When its next attempt may start: from, and before.
    pub due: Option<Span>,
    /// Where the task entered.
    pub origins: Vec<OriginPattern>,
}

/// A span of time: from an instant, and before another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// The first instant.
    pub from: Timestamp,
    /// The first instant that is not in it.
    pub before: Timestamp,
}

/// Where tasks entered: a topic, one of its partitions, or one record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OriginPattern {
    /// The topic.
    pub topic: Arc<str>,
    /// The partition; every one if none is said.
    pub partition: Option<i32>,
    /// The offset; every one if none is said.
    pub offset: Option<i64>,
}

/// What failures have in common that are the same but for numbers and names in their messages. It is written down, so it never changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ErrorFingerprint(u64);

/// Parts of which at least one is said, and none is beyond its bounds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selector(Parts);

/// Why parts make no selector.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Error {
    /// Nothing is said.
    #[error(
        "the selector is empty, and would be about every task; name an id, a scene, a key, or another part"
    )]
    Empty,
    /// Too many values.
    #[error("the selector has {0} values; it may have {MAX_VALUES}")]
    TooMany(usize),
    /// A value that is too long.
    #[error("a value of the selector has {0} bytes; it may have {MAX_BYTES}")]
    TooLong(usize),
    /// A span that holds nothing.
    #[error("{0} ends before it begins")]
    Backwards(&'static str),
}

/// Most values of a selector: what a command for many tasks needs, and a record holds.
pub const MAX_VALUES: usize = 1_000;

/// Longest value: as long as an id may be, and longer than any key or header that people select by.
pub const MAX_BYTES: usize = 1_024;

// === impl Selector ===

impl Selector {
    /// The selector of these parts.
    ///
    /// # Errors
    /// If nothing is said, or too much.
    pub fn new(parts: Parts) -> Result<Self, Error> {
        let Parts {
            ids,
            scenes,
            keys,
            headers,
            errors,
            fingerprints,
            targets,
            attempts,
            entered,
            due,
            origins,
        } = &parts;
        let spans = [("attempts", attempts.as_ref().map(RangeInclusive::is_empty))]
            .into_iter()
            .chain(
                [("entered", entered), ("due", due)]
                    .map(|(name, span)| (name, span.map(|span| span.from >= span.before))),
            );
        let mut said = 0;
        for (name, is_empty) in spans {
            match is_empty {
                Some(true) => return Err(Error::Backwards(name)),
                Some(false) => said += 1,
                None => {}
            }
        }
        let lengths = (ids.iter().chain(scenes).map(|text| text.len()))
            .chain(errors.iter().chain(targets).map(|text| text.len()))
            .chain(keys.iter().map(Bytes::len))
            .chain(
                headers
                    .iter()
                    .map(|(name, value)| name.as_bytes().len().max(value.len())),
            )
            .chain(origins.iter().map(|origin| origin.topic.len()));
        let mut values = fingerprints.len();
        for length in lengths {
            values += 1;
            if length > MAX_BYTES {
                return Err(Error::TooLong(length));
            }
        }
        match values + said {
            0 => Err(Error::Empty),
            _ if values > MAX_VALUES => Err(Error::TooMany(values)),
            _ => Ok(Self(parts)),
        }
    }

    /// What is said.
    pub const fn parts(&self) -> &Parts {
        &self.0
    }

    /// The identities that it names, if it names some: such a command waits for tasks that do not exist yet.
    pub fn ids(&self) -> Option<&BTreeSet<Arc<str>>> {
        (!self.0.ids.is_empty()).then_some(&self.0.ids)
    }

    /// Whether a task is meant, whose rules are these. Only work is: the delivery of a callback follows from an end that is told already.
    pub fn fits(&self, task: &Task, scene: Option<&Scene>) -> bool {
        self.fits_made(&[task.attempts_made()], task, scene)
    }

    /// The same of a task that is called: its attempt counts as made and as not made. Who is called may say what came of it before its answer
    /// is heard.
    pub fn fits_call(&self, task: &Task, scene: Option<&Scene>) -> bool {
        self.fits_made(&[task.attempts_made(), task.attempt], task, scene)
    }

    /// Whether a task is meant of which so many attempts are made, or so many.
    fn fits_made(&self, made: &[u32], task: &Task, scene: Option<&Scene>) -> bool {
        let parts = &self.0;
        if task.kind != Kind::Work {
            return false;
        }
        if !parts.ids.is_empty() && !parts.ids.contains(&task.id) {
            return false;
        }
        if !parts.scenes.is_empty() && !parts.scenes.contains(&task.scene) {
            return false;
        }
        if !parts.keys.is_empty()
            && !task
                .record
                .key
                .as_ref()
                .is_some_and(|key| parts.keys.contains(key))
        {
            return false;
        }
        let has = |(name, value): &(Name, Bytes)| {
            let mut headers = task.record.headers.iter();
            headers.any(|header| header.name == *name && header.value.as_ref() == Some(value))
        };
        if !parts.headers.iter().all(has) {
            return false;
        }
        let failure = task.failure.as_ref();
        if !parts.errors.is_empty()
            && !failure.is_some_and(|failure| parts.errors.contains(&failure.class))
        {
            return false;
        }
        let is_like = |failure: &Failure| {
            parts
                .fingerprints
                .contains(&ErrorFingerprint::of(&task.scene, failure))
        };
        if !parts.fingerprints.is_empty() && !failure.is_some_and(is_like) {
            return false;
        }
        let calls = scene.and_then(Scene::calls);
        if !parts.targets.is_empty()
            && !calls
                .is_some_and(|calls| parts.targets.iter().any(|target| is_target(calls, target)))
        {
            return false;
        }
        let is_one =
            |attempts: &RangeInclusive<u32>| made.iter().any(|made| attempts.contains(made));
        if !parts.attempts.as_ref().is_none_or(is_one) {
            return false;
        }
        let within =
            |span: &Option<Span>, at| span.is_none_or(|span| span.from <= at && at < span.before);
        if !within(&parts.entered, task.first_failed_at) || !within(&parts.due, task.due) {
            return false;
        }
        parts.origins.is_empty() || parts.origins.iter().any(|from| from.holds(task))
    }
}

/// Whether a target that is called so is the one that a person names: all of it, or its host, with or without the port.
fn is_target(calls: &str, named: &str) -> bool {
    (target_names(calls).iter()).any(|text| text.eq_ignore_ascii_case(named))
}

/// The names by which people may call a target: all of it, its host with the port, and its host.
pub(crate) fn target_names(calls: &str) -> [&str; 3] {
    let host = calls.split_once("://").map_or(calls, |(_, host)| host);
    let bare = host.rsplit_once(':').map_or(host, |(bare, _)| bare);
    [calls, host, bare]
}

// === impl OriginPattern ===

impl OriginPattern {
    /// Whether a task entered there.
    fn holds(&self, task: &Task) -> bool {
        let origin = &task.origin;
        origin.topic == self.topic
            && self
                .partition
                .is_none_or(|partition| partition == origin.partition)
            && self.offset.is_none_or(|offset| offset == origin.offset)
    }
}

// === impl ErrorFingerprint ===

impl ErrorFingerprint {
    /// What `failure` has in common with those of the scene that are the same but for numbers: words with a digit in them, which are ids,
    /// times, sizes and addresses, do not count, nor does what is between quotes.
    pub fn of(scene: &str, failure: &Failure) -> Self {
        let mut hash = Xxh3::new();
        hash.update(scene.as_bytes());
        hash.update(&[0]);
        hash.update(failure.class.as_bytes());
        let separator =
            |letter: char| !(letter.is_alphanumeric() || matches!(letter, '-' | '_' | '.'));
        for word in failure.message.split(separator) {
            if word.is_empty() || word.bytes().any(|byte| byte.is_ascii_digit()) {
                continue;
            }
            hash.update(&[0]);
            hash.update(word.as_bytes());
        }
        Self(hash.digest())
    }

    /// The number.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The fingerprint that is written so: 16 hexadecimal digits.
    pub fn parse(text: &str) -> Option<Self> {
        let is_hex = text.len() == 16 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        is_hex.then(|| u64::from_str_radix(text, 16).ok().map(Self))?
    }
}

impl std::fmt::Display for ErrorFingerprint {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{:016x}", self.0)
    }
}
