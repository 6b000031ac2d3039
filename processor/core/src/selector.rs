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
use crate::task::{Failure, Header, Kind, Name, Origin, Task};
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

/// What failures have in common that are the same but for numbers and ids in their messages. It is written down, so it never changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ErrorFingerprint(u64);

/// What a selector looks at: a task, or its dead letter. What is not known fits no part that asks for it.
#[derive(Clone, Copy)]
pub struct Subject<'a> {
    /// The identity.
    pub id: &'a str,
    /// The scene.
    pub scene: &'a str,
    /// The key of the record.
    pub key: Option<&'a [u8]>,
    /// The headers of the record.
    pub headers: &'a [Header],
    /// The class of the last failure.
    pub error: Option<&'a str>,
    /// The fingerprint of the last failure: computed only where one is asked for.
    pub fingerprint: &'a dyn Fn() -> Option<ErrorFingerprint>,
    /// The target, as a breaker names it.
    pub target: Option<&'a str>,
    /// Numbers of attempts that count as made.
    pub made: &'a [u32],
    /// When the task entered.
    pub entered: Option<Timestamp>,
    /// When its next attempt may start, or might have.
    pub due: Option<Timestamp>,
    /// Where the task entered.
    pub origin: Option<&'a Origin>,
}

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

/// Words of a message that a fingerprint counts. Messages are cut at [`crate::task::MAX_MESSAGE`] bytes, so that the last words of a long one
/// depend on how long its numbers are.
pub const MOST_WORDS: usize = 16;

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
        if task.kind != Kind::Work {
            return false;
        }
        let failure = task.failure.as_ref();
        self.fits_subject(&Subject {
            id: &task.id,
            scene: &task.scene,
            key: task.record.key.as_deref(),
            headers: &task.record.headers,
            error: failure.map(|failure| &*failure.class),
            fingerprint: &|| failure.map(|failure| ErrorFingerprint::of(&task.scene, failure)),
            target: scene.and_then(Scene::calls),
            made,
            entered: Some(task.first_failed_at),
            due: Some(task.due),
            origin: Some(&task.origin),
        })
    }

    /// Whether what becomes of a task decides nothing: it is meant from the first attempt to the last, or never.
    pub fn is_lasting(&self) -> bool {
        let Parts {
            ids: _,
            scenes: _,
            keys: _,
            headers: _,
            errors,
            fingerprints,
            targets: _,
            attempts,
            entered: _,
            due,
            origins: _,
        } = &self.0;
        errors.is_empty() && fingerprints.is_empty() && attempts.is_none() && due.is_none()
    }

    /// Whether it is meant, of whatever kind it is.
    pub fn fits_subject(&self, subject: &Subject<'_>) -> bool {
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
        } = &self.0;
        let has = |(name, value): &(Name, Bytes)| {
            let mut headers = subject.headers.iter();
            headers.any(|header| header.name == *name && header.value.as_ref() == Some(value))
        };
        let is_called = |calls| targets.iter().any(|target| is_target(calls, target));
        let is_one = |attempts: &RangeInclusive<u32>| {
            let mut made = subject.made.iter();
            made.any(|made| attempts.contains(made))
        };
        let within = |span: &Option<Span>, at: Option<Timestamp>| {
            span.is_none_or(|span| at.is_some_and(|at| span.has(at)))
        };
        let is_from = |from: &Origin| origins.iter().any(|pattern| pattern.holds(from));
        (ids.is_empty() || ids.contains(subject.id))
            && (scenes.is_empty() || scenes.contains(subject.scene))
            && (keys.is_empty() || subject.key.is_some_and(|key| keys.contains(key)))
            && headers.iter().all(has)
            && (errors.is_empty() || subject.error.is_some_and(|class| errors.contains(class)))
            && (fingerprints.is_empty()
                || (subject.fingerprint)().is_some_and(|print| fingerprints.contains(&print)))
            && (targets.is_empty() || subject.target.is_some_and(is_called))
            && attempts.as_ref().is_none_or(is_one)
            && within(entered, subject.entered)
            && within(due, subject.due)
            && (origins.is_empty() || subject.origin.is_some_and(is_from))
    }
}

/// Whether a target that is called so is the one that a person names: all of it, or its host, with or without the port.
fn is_target(calls: &str, named: &str) -> bool {
    (target_names(calls).iter()).any(|text| text.eq_ignore_ascii_case(named))
}

/// The host of a target that is called so, such as `https://shop.example:443`: without its port. None of what names no scheme.
pub fn host_of(calls: &str) -> Option<&str> {
    let [calls, host, bare] = target_names(calls);
    (calls.len() != host.len() && !bare.is_empty()).then_some(bare)
}

/// The names by which people may call a target: all of it, its host with the port, and its host.
pub(crate) fn target_names(calls: &str) -> [&str; 3] {
    let host = calls.split_once("://").map_or(calls, |(_, host)| host);
    let bare = host.rsplit_once(':').map_or(host, |(bare, _)| bare);
    [calls, host, bare]
}

// === impl Span ===

impl Span {
    /// Whether an instant is in it.
    pub fn has(self, at: Timestamp) -> bool {
        self.from <= at && at < self.before
    }
}

// === impl OriginPattern ===

impl OriginPattern {
    /// Whether a task that entered at `origin` entered there.
    fn holds(&self, origin: &Origin) -> bool {
        origin.topic == self.topic
            && self
                .partition
                .is_none_or(|partition| partition == origin.partition)
            && self.offset.is_none_or(|offset| offset == origin.offset)
    }
}

// === impl ErrorFingerprint ===

impl ErrorFingerprint {
    /// What `failure` of the work of a task has in common with those of the scene, and of the host that was called if one was, that are the same
    /// but for numbers: words with a digit in them, which are ids, times, sizes and addresses, do not count. Of the others the first
    /// [`MOST_WORDS`] do.
    pub fn of(scene: &str, failure: &Failure) -> Self {
        Self::of_kind(Kind::Work, scene, failure)
    }

    /// The same of a task of any kind: what delivers a callback calls another target, so that its failures have others in common.
    pub fn of_kind(kind: Kind, scene: &str, failure: &Failure) -> Self {
        let mut hash = Xxh3::new();
        match kind {
            Kind::Work => {}
            // No scene has a NUL in its name.
            Kind::Callback => hash.update(b"\0callback\0"),
        }
        hash.update(scene.as_bytes());
        hash.update(&[0]);
        if let Some(host) = &failure.host {
            // No class begins like this: those have no control characters.
            hash.update(&[1]);
            hash.update(host.as_bytes());
            hash.update(&[0]);
        }
        hash.update(failure.class.as_bytes());
        let separator =
            |letter: char| !(letter.is_alphanumeric() || matches!(letter, '-' | '_' | '.'));
        let words = failure.message.split(separator);
        let words = words
            .filter(|word| !word.is_empty() && !word.bytes().any(|byte| byte.is_ascii_digit()));
        for word in words.take(MOST_WORDS) {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn print(class: &str, message: &str) -> String {
        ErrorFingerprint::of("payment", &Failure::new(class, message)).to_string()
    }

    /// They stand in dead letters, holds and commands of other versions: where one changes here, the change is wrong.
    #[test]
    fn a_fingerprint_is_the_same_for_ever() {
        let long = "word ".repeat(40);

        for (class, message, expected) in [
            ("timeout", "", "1f58f9fcb66d76a1"),
            ("http-503", "Service Unavailable", "b7b08647f7768abf"),
            (
                "http-400",
                r#"{"error":"card declined","at":1795836382000}"#,
                "83ee440f59c03ac2",
            ),
            (
                "connect",
                "shop.example:443: connection refused",
                "e67c0ef37559c0e9",
            ),
            (
                "bad-due",
                r#"retry-due-at is "bald…"; milliseconds since 1970 expected"#,
                "f839fc5e849da4a7",
            ),
            ("x", "größer als 5\u{301} 🙂 it's", "807a3e37a6101cb9"),
            ("x", long.as_str(), "194e0e30c1fa1078"),
        ] {
            assert_eq!(print(class, message), expected, "{class}: {message}");
        }
        for (host, class, message, expected) in [
            (
                "shop.example",
                "http-503",
                "Service Unavailable",
                "88aa7abaa81673c1",
            ),
            (
                "[::1]",
                "http-503",
                "Service Unavailable",
                "1255b29f92f63207",
            ),
            ("shop.example", "timeout", "", "5175331d62609072"),
            ("shop.example", "", "", "d64e473310172f1f"),
        ] {
            let failure = Failure::new(class, message).of_host(Some(host.into()));
            let print = ErrorFingerprint::of("payment", &failure).to_string();
            assert_eq!(print, expected, "{host}: {class}: {message}");
        }
        let failure = Failure::new("http-503", "Service Unavailable");
        let callback = ErrorFingerprint::of_kind(Kind::Callback, "payment", &failure);
        assert_eq!(callback.to_string(), "067814cfe734762a");
        let called = failure.clone().of_host(Some("shop.example".into()));
        let called = ErrorFingerprint::of_kind(Kind::Callback, "payment", &called);
        assert_eq!(called.to_string(), "a2b6bb9ee5d892fb");
        assert_eq!(
            ErrorFingerprint::parse(&callback.to_string()),
            Some(callback)
        );
    }

    #[test]
    fn failures_that_differ_in_numbers_and_ids_are_alike_and_no_others() {
        let one = print(
            "http-409",
            "order 4711 of 0f3a-77: locked for 12.5s, 3 times",
        );
        let other = print("http-409", "order 12 of ee41-01: locked for 7s, 44 times");

        assert_eq!(one, other);
        assert_ne!(
            one,
            print(
                "http-410",
                "order 4711 of 0f3a-77: locked for 12.5s, 3 times"
            )
        );
        assert_ne!(
            one,
            print("http-409", "order 4711 of 0f3a-77: gone for 12.5s, 3 times")
        );
        let scene = Failure::new(
            "http-409",
            "order 4711 of 0f3a-77: locked for 12.5s, 3 times",
        );
        assert_ne!(one, ErrorFingerprint::of("refund", &scene).to_string());
    }

    #[test]
    fn failures_of_one_host_are_alike_and_no_others() {
        let at = |host: Option<&str>| {
            let failure = Failure::new("http-503", "busy").of_host(host.map(Arc::from));
            ErrorFingerprint::of("payment", &failure)
        };

        let prints = [at(None), at(Some("a.example")), at(Some("b.example"))];

        assert_eq!(at(Some("a.example")), prints[1]);
        assert_eq!(BTreeSet::from(prints).len(), prints.len());
    }

    #[test]
    fn a_host_is_what_selectors_take_for_one() {
        for (calls, host) in [
            ("https://shop.example:443", Some("shop.example")),
            ("http://[::1]:8080", Some("[::1]")),
            ("http://10.0.0.1:80", Some("10.0.0.1")),
            ("topic orders", None),
            ("billing", None),
        ] {
            assert_eq!(host_of(calls), host, "{calls}");
            assert!(host.is_none_or(|host| is_target(calls, host)), "{calls}");
        }
    }

    #[test]
    fn a_message_that_is_cut_has_the_fingerprint_of_one_that_is_cut_elsewhere() {
        let message = |id: &str| {
            let rest = "and so on with words and more words ".repeat(9);
            format!("id {id} of the batch, and then a list of what is wrong: {rest}")
        };

        assert_eq!(
            print("x", &message("1")),
            print("x", &message(&"9".repeat(60)))
        );
    }

    #[test]
    fn what_is_not_known_of_a_subject_fits_no_part_that_asks_for_it() {
        let unknown = Subject {
            id: "",
            scene: "",
            key: None,
            headers: &[],
            error: None,
            fingerprint: &|| None,
            target: None,
            made: &[],
            entered: None,
            due: None,
            origin: None,
        };
        let span = Some(Span {
            from: Timestamp::EPOCH,
            before: Timestamp::from_millis(u64::MAX / 2_000),
        });
        let pattern = OriginPattern {
            topic: "t".into(),
            partition: None,
            offset: None,
        };

        for parts in [
            Parts {
                ids: ["a".into()].into(),
                ..Parts::default()
            },
            Parts {
                scenes: ["a".into()].into(),
                ..Parts::default()
            },
            Parts {
                keys: [Bytes::new()].into(),
                ..Parts::default()
            },
            Parts {
                headers: vec![("a".as_bytes().into(), Bytes::new())],
                ..Parts::default()
            },
            Parts {
                errors: ["a".into()].into(),
                ..Parts::default()
            },
            Parts {
                fingerprints: [ErrorFingerprint(0)].into(),
                ..Parts::default()
            },
            Parts {
                targets: ["a".into()].into(),
                ..Parts::default()
            },
            Parts {
                attempts: Some(0..=u32::MAX),
                ..Parts::default()
            },
            Parts {
                entered: span,
                ..Parts::default()
            },
            Parts {
                due: span,
                ..Parts::default()
            },
            Parts {
                origins: vec![pattern],
                ..Parts::default()
            },
        ] {
            let selector = Selector::new(parts).unwrap();
            assert!(!selector.fits_subject(&unknown), "{selector:?}");
        }
    }
}
