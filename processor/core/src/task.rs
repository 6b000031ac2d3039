//! A thing to be retried, and the record it travels in.
//!
//! Not the wire form: headers are parsed and written by `retide-avro`. Invariant: the payload, the key and the producer's own
//! headers are never changed, copied or reordered on the way.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::campaign::Replay;
use crate::control::Place;
use crate::time::Timestamp;
use crate::wait::Deferral;

/// The name of a header: UTF-8 says Kafka, and any bytes are what brokers take.
///
/// A name shares the memory of its record, and one that is known takes none.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Name(Bytes);

/// One header as it stands on a record; names may repeat, and the order counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// The header's name.
    pub name: Name,
    /// The header's value; Kafka allows none.
    pub value: Option<Bytes>,
}

/// What a producer wrote: key, payload and headers, byte for byte.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Record {
    /// The record's key.
    pub key: Option<Bytes>,
    /// The payload; `None` is a tombstone and is delivered as an empty body.
    pub value: Option<Bytes>,
    /// The headers, in order.
    pub headers: Vec<Header>,
}

/// Where a record first entered retide: `topic/partition/offset`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Origin {
    /// The topic it was read from.
    pub topic: Arc<str>,
    /// The partition of that topic.
    pub partition: i32,
    /// The offset in that partition.
    pub offset: i64,
}

/// Why the last attempt failed, kept short so that a record does not grow from hop to hop.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// A stable word a program can match on, such as `http-503` or `timeout`.
    pub class: Box<str>,
    /// A short text for people; at most [`MAX_MESSAGE`] bytes.
    pub message: Box<str>,
    /// The host of the target that was called, if a call has failed: see [`crate::breaker::Subject::host`].
    pub host: Option<Arc<str>>,
}

/// What the attempt of a task does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Kind {
    /// The thing a producer asked for; its end is reported on the callbacks topic.
    #[default]
    Work,
    /// The delivery of a callback record to a scene's callback target; its end is not reported again.
    Callback,
}

/// That a task was out of attempts, and was not given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exhausted {
    /// When it last was.
    pub at: Timestamp,
    /// The attempts made until then: those of its next round are counted from there.
    pub attempts: u32,
    /// Whether it waits for people: not once they have let it go.
    pub is_held: bool,
}

/// How the deadline of a task has stood still.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stopped {
    /// Since when it does, if it does now.
    pub since: Option<Timestamp>,
    /// For how long it did before.
    pub before: Duration,
    /// Up to when that counts what the task has waited; what was written by earlier versions does not say.
    pub to: Option<Timestamp>,
}

/// A task: something that failed and is to be tried again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Task {
    /// The stable identity, the same on each attempt and after a replay; also the idempotency key.
    pub id: Arc<str>,
    /// The name of the rules it follows.
    pub scene: Arc<str>,
    /// Whether this is the work itself or the delivery of its callback.
    pub kind: Kind,
    /// The number of the next attempt, from 1, or of the one that is pending.
    pub attempt: u32,
    /// The instant before which the next attempt must not start; a deferral does not move it. While an attempt is pending, its limit.
    pub due: Timestamp,
    /// The deferral of a due task whose gate was shut: until when it is parked, and its lateness by then.
    pub deferral: Option<Box<Deferral>>,
    /// When the task entered: see [`entered`].
    pub first_failed_at: Timestamp,
    /// The instant after which no attempt may start, if the producer named one.
    pub deadline: Option<Timestamp>,
    /// Where the task entered.
    pub origin: Origin,
    /// What the last attempt said, if there was one.
    pub failure: Option<Failure>,
    /// How many of the attempts made were throttled, since it was out of attempts if it ever was: they do not count for the most attempts of
    /// its scene.
    pub throttled: u32,
    /// That it was out of attempts and is, or was, held for people, if so.
    pub exhausted: Option<Box<Exhausted>>,
    /// How often it was forwarded between topics.
    pub hops: u32,
    /// Since when it is held because its scene does not exist, or since people hold it, if it is.
    pub held_since: Option<Timestamp>,
    /// Since when its attempt is *pending*: the target has said that it will answer later, by a command. Then [`Self::attempt`] is made, and
    /// [`Self::due`] is when the answer is given up.
    pub pending_since: Option<Timestamp>,
    /// How its deadline has stood still, if it has: a hold may stop it.
    pub stopped: Option<Box<Stopped>>,
    /// The last command that was applied to it: earlier ones are too late.
    pub commanded: Option<Box<Place>>,
    /// That it was replayed from its dead letter, if it was.
    pub replay: Option<Box<Replay>>,
    /// The producer's key, payload and headers; retide's own headers are not among them.
    pub record: Record,
}

/// Longest message kept in a [`Failure`]: enough for a person to recognise the error, small beside any payload.
pub const MAX_MESSAGE: usize = 256;

/// Longest class kept in a [`Failure`]; classes are words.
pub const MAX_CLASS: usize = 64;

/// Oldest record timestamp that is believed: as long as the retry topic keeps records unless it is configured otherwise. Older ones come from
/// clocks that were never set, or name the time of something else.
pub const OLDEST: Duration = Duration::from_hours(7 * 24);

/// Bytes that an open task takes besides what it holds, as measured: its place in the agenda, the headers it came with, which are in one piece
/// of memory with its payload, and what the allocator rounds up.
const OVERHEAD: usize = 768;

// === impl Kind ===

impl Kind {
    /// Every kind there is, in their order.
    pub const ALL: [Self; 2] = [Self::Work, Self::Callback];

    /// The word for this kind.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Work => "work",
            Self::Callback => "callback",
        }
    }
}

// === impl Name ===

impl Name {
    /// A name that is known; it takes no memory.
    pub const fn known(name: &'static str) -> Self {
        Self(Bytes::from_static(name.as_bytes()))
    }

    /// The bytes of the name.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The name, if it is the text that Kafka says it is.
    pub fn as_str(&self) -> Option<&str> {
        str::from_utf8(&self.0).ok()
    }
}

impl From<&str> for Name {
    fn from(name: &str) -> Self {
        Self(Bytes::copy_from_slice(name.as_bytes()))
    }
}

impl From<String> for Name {
    fn from(name: String) -> Self {
        Self(name.into())
    }
}

impl From<&[u8]> for Name {
    fn from(name: &[u8]) -> Self {
        Self(Bytes::copy_from_slice(name))
    }
}

impl From<Bytes> for Name {
    fn from(name: Bytes) -> Self {
        Self(name)
    }
}

impl PartialEq<str> for Name {
    fn eq(&self, other: &str) -> bool {
        *self.0 == *other.as_bytes()
    }
}

impl PartialEq<&str> for Name {
    fn eq(&self, other: &&str) -> bool {
        *self == **other
    }
}

/// The name as people read it: what is no text is escaped, as `caf\xe9`.
impl fmt::Display for Name {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.as_str() {
            Some(name) => formatter.write_str(name),
            None => write!(formatter, "{}", self.0.escape_ascii()),
        }
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "\"{}\"", self.0.escape_ascii())
    }
}

// === impl Record ===

impl Record {
    /// What tasks that keep an order have in common. An empty key is none: many producers send it for "no key".
    pub fn ordering_key(&self) -> Option<&Bytes> {
        self.key.as_ref().filter(|key| !key.is_empty())
    }

    /// Memory held by this record, in bytes: what the caps of agenda and lanes count.
    pub fn memory_size(&self) -> usize {
        let bytes = |value: &Option<Bytes>| value.as_ref().map_or(0, Bytes::len);
        let headers: usize = self
            .headers
            .iter()
            .map(|header| header.name.as_bytes().len() + bytes(&header.value) + size_of::<Header>())
            .sum();
        bytes(&self.key) + bytes(&self.value) + headers
    }
}

// === impl Failure ===

impl Failure {
    /// A failure with class and message cut to their limits, never inside a character, and free of control characters.
    ///
    /// The class is one word, so that `class: message` is read back as it was written.
    pub fn new(class: &str, message: &str) -> Self {
        Self {
            class: clip(class, MAX_CLASS).replace(' ', "-").into_boxed_str(),
            message: clip(message, MAX_MESSAGE),
            host: None,
        }
    }

    /// The same, of a call of this host.
    #[must_use]
    pub fn of_host(self, host: Option<Arc<str>>) -> Self {
        Self { host, ..self }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}: {}", self.class, self.message)
    }
}

/// At most `limit` bytes of `text`, with control characters replaced by spaces so that it stays one line of a header.
fn clip(text: &str, limit: usize) -> Box<str> {
    let mut end = text.len().min(limit);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].replace(char::is_control, " ").into_boxed_str()
}

// === impl Task ===

impl Task {
    /// Memory held while the task is open, in bytes.
    pub fn memory_size(&self) -> usize {
        OVERHEAD + size_of::<Self>() + self.id.len() + self.record.memory_size()
    }

    /// How many attempts were made.
    pub const fn attempts_made(&self) -> u32 {
        match self.pending_since {
            Some(_) => self.attempt,
            None => self.attempt.saturating_sub(1),
        }
    }

    /// How many of its attempts, the next one among them, count for the most attempts of its scene.
    pub fn attempts_of_round(&self) -> u32 {
        let before = self.exhausted.as_ref().map_or(0, |before| before.attempts);
        self.attempt.saturating_sub(before).max(1)
    }

    /// Whether it is out of attempts, and nobody has let it go by itself.
    pub fn is_exhausted(&self) -> bool {
        self.exhausted.as_ref().is_some_and(|last| last.is_held)
    }

    /// People let it go: its next attempt is the first one of another round.
    pub fn begin_round(&mut self) {
        if let Some(last) = &mut self.exhausted {
            last.is_held = false;
        }
    }

    /// Its deadline stands still from now on, if it has not so far.
    pub fn stop_deadline(&mut self, now: Timestamp) {
        let stopped = self.stopped.get_or_insert_default();
        stopped.since.get_or_insert(now);
    }

    /// Its deadline goes on, if it stood still: it is later by as long as that was.
    pub fn resume_deadline(&mut self, now: Timestamp) {
        if let Some(stopped) = &mut self.stopped
            && let Some(since) = stopped.since.take()
        {
            stopped.before = stopped.before.saturating_add(now.since(since));
            stopped.to = Some(now.ceil_to_millis());
        }
    }

    /// Whether its deadline stands still.
    pub fn is_stopped(&self) -> bool {
        self.stopped
            .as_ref()
            .is_some_and(|stopped| stopped.since.is_some())
    }

    /// When the task is to be looked at: when it is due or, if it is deferred, when that ends.
    pub fn wake(&self) -> Timestamp {
        let until = self.deferral.as_ref().map(|deferral| deferral.until);
        until.map_or(self.due, |until| until.max(self.due))
    }
}

/// When a record entered that is read `now` and bears the time `stamp`, or the epoch if it bears none: relative times count from then.
///
/// The time is the record's timestamp, which its producer or its broker set. A timestamp in the future counts as now, since the record was
/// produced before it was read: no wait is shorter by that than its producer asked for, and no clock that is ahead holds the task. A record
/// without a timestamp, or with one older than [`OLDEST`], entered now.
pub fn entered(stamp: Timestamp, now: Timestamp) -> Timestamp {
    if stamp < now.before(OLDEST) {
        return now;
    }
    stamp.min(now)
}

// === impl Origin ===

impl fmt::Display for Origin {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "{}/{}/{}",
            self.topic, self.partition, self.offset
        )
    }
}

#[cfg(test)]
mod tests {
    use std::iter;

    use super::*;

    #[test]
    fn a_failure_is_cut_at_a_character_and_stays_one_line() {
        let message = format!("line\n{}", "é".repeat(MAX_MESSAGE));

        let failure = Failure::new("timeout", &message);

        assert!(failure.message.len() <= MAX_MESSAGE);
        assert!(failure.message.starts_with("line é"));
    }

    #[test]
    fn a_record_entered_at_its_timestamp_unless_that_cannot_be() {
        let now = Timestamp::from_millis(1_700_000_000_000);
        let hour = Duration::from_hours(1);

        assert_eq!(entered(now.before(hour), now), now.before(hour));
        assert_eq!(entered(now.before(OLDEST), now), now.before(OLDEST));
        for stamp in [
            Timestamp::EPOCH,
            now.before(OLDEST + hour),
            now + hour,
            Timestamp::MAX,
        ] {
            assert_eq!(entered(stamp, now), now, "{stamp:?}");
        }
    }

    #[test]
    fn all_kinds_are_listed() {
        let next = |kind: &Kind| match kind {
            Kind::Work => Some(Kind::Callback),
            Kind::Callback => None,
        };

        let kinds: Vec<Kind> = iter::successors(Some(Kind::Work), next).collect();

        assert_eq!(kinds, Kind::ALL);
    }

    #[test]
    fn a_class_is_one_word() {
        let failure = Failure::new("http:\n503: busy", "try later");

        assert_eq!(failure.to_string(), "http:-503:-busy: try later");
    }
}
