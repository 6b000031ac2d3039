//! The headers of a task: read from a record, written to one.
//!
//! Times are decimal milliseconds since the epoch, rounded up: a task is never early by its trip through a header. Names may
//! repeat on a record; where one of retide's does, **the last one counts**, as in Kafka's own `Headers.lastHeader`. That is what
//! lets a dead letter keep every header it came with and still carry retide's, written after them. Invariant: what [`write_task`]
//! writes, [`parked`] reads back equal, and a refused record is handed back untouched, but for what [`beside`] takes off.

use std::fmt::Write as _;
use std::str;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use bytes::Bytes;
use uuid::Uuid;

use retide_core::{
    Alert, Deferral, Ended, Event, Exhausted, Failure, Header, Kind, Name, Origin, Poison, Reason,
    Record, Source, Stopped, Task, Timestamp, Wait, scene, task,
};

use crate::beside;
use crate::control::campaign;
use crate::envelope::{self, Envelope, Intake, Known};
use crate::json::Broken;
use crate::number;
use crate::schemas::Key;

/// The name of the rules; the only header that a producer must set.
pub const SCENE: &str = "retry-scene";
/// The stable identity; a producer may set it.
pub const ID: &str = "retry-id";
/// The number of the next attempt, from 1, or of the one that is pending; on dead letters, the attempts made.
pub const ATTEMPT: &str = "retry-attempt";
/// How many of the attempts made were throttled, if any: they do not count for the most attempts of a scene.
pub const THROTTLED: &str = "retry-throttled";
/// When the next attempt may start; a producer may set it.
pub const DUE_AT: &str = "retry-due-at";
/// Milliseconds from the time at which the task entered to its first attempt; only a producer sets it.
pub const DELAY_MS: &str = "retry-delay-ms";
/// Until when a due task is parked whose gate was shut; its due time stays what it was.
pub const DEFERRED_UNTIL: &str = "retry-deferred-until";
/// How late a deferred task is by then, by cause, in microseconds: `breaker=61000000 read=1200`.
pub const LATE_BY: &str = "retry-late-by";
/// When the task entered: what relative times count from.
pub const FIRST_FAILED_AT: &str = "retry-first-failed-at";
/// When no attempt may start any more; a producer may set it.
pub const DEADLINE_AT: &str = "retry-deadline-at";
/// Where the task entered: `topic/partition/offset`.
pub const ORIGIN: &str = "retry-origin";
/// What the last attempt said: `class: message`.
pub const ERROR: &str = "retry-error";
/// The host that was called, if [`ERROR`] is what became of a call of one.
pub const ERROR_HOST: &str = "retry-error-host";
/// How often the task was forwarded between topics.
pub const HOPS: &str = "retry-hops";
/// The place of the last command that was applied to the task, `millis/partition/offset`: earlier ones come too late. On records of the
/// commands topic, that of the request.
pub const COMMAND: &str = "retry-command";
/// That the task was out of attempts and was not given up: when it last was, the attempts made until then, and whether it is still held for
/// people or was let go, `millis/attempts/held` or `millis/attempts/let-go`.
pub const EXHAUSTED: &str = "retry-exhausted";
/// Since when the task is held, because its scene does not exist, or because people hold it.
pub const HELD_SINCE: &str = "retry-held-since";
/// Since when the attempt of a parked task is pending, which [`ATTEMPT`] numbers: its target has said that it will answer later, and
/// [`DUE_AT`] is when that is given up.
pub const PENDING_SINCE: &str = "retry-pending-since";
/// The campaign that has replayed the task last, `name/millis/partition/offset` where that is the place of its request.
pub const CAMPAIGN: &str = "retry-campaign";
/// How often the task was replayed from a dead letter, if it was.
pub const REPLAYED: &str = "retry-replayed";
/// How the deadline of the task has stood still, if it has: for how long before, since when it does now, and up to when the first counts what
/// the task has waited, `millis/since/to`; what is behind the last that is known is left out.
pub const STOPPED: &str = "retry-stopped";
/// On a record that a target was given, the attempt it was given for. On a record that a target puts back on the retry topic, the attempts
/// made so far: the next one is counted on from there.
pub const ROUND: &str = "retry-round";
/// Whether the task is the work itself (`work`) or the delivery of its callback (`callback`).
pub const KIND: &str = "retry-kind";
/// Why the task ended badly.
pub const REASON: &str = "retry-reason";
/// What the failure of a task that ended badly has in common with others: see [`Ended::fingerprint`].
pub const FINGERPRINT: &str = "retry-fingerprint";
/// How the task ended.
pub const OUTCOME: &str = "retry-outcome";
/// What happened to the task.
pub const EVENT: &str = "retry-event";
/// On the dead letter of a record that is no task: where its scene was read, if no header named it. Such a scene makes no plain task of the
/// record when it is produced again.
pub const READ_FROM: &str = "retry-read-from";
/// What a dead letter lacks of the record it is of, since the topic would not take it: `value`, `value and headers`, or `headers` of which
/// there were too many. The record itself is at its [`ORIGIN`] as long as that is retained.
pub const OMITTED: &str = "retry-omitted";
/// The digest of what a dead letter lacks, see [`retide_core::Digest`]: what is fetched from its [`ORIGIN`] has to have the same.
pub const OMITTED_XXH3: &str = "retry-omitted-xxh3";
/// On the copy of a dead letter of others, why it is no task: `reason: detail`. Such a record is a dead letter with this reason, also where it is
/// produced again.
pub const REFUSED: &str = "retry-refused";

/// The words of [`EXHAUSTED`].
const HELD: &str = "held";
/// As [`HELD`].
const LET_GO: &str = "let-go";

/// What the payload is, by its media type; a producer's, as it is on the way to a target.
pub const CONTENT_TYPE: &str = "content-type";

/// What every name that is retide's begins with.
const OWN: &str = "retry-";

/// Every name that is retide's; a task's record holds none of them, except [`OUTCOME`] where the task is the delivery of a callback.
pub const NAMES: [&str; 31] = [
    SCENE,
    ID,
    ATTEMPT,
    THROTTLED,
    DUE_AT,
    DELAY_MS,
    DEFERRED_UNTIL,
    LATE_BY,
    FIRST_FAILED_AT,
    DEADLINE_AT,
    ORIGIN,
    ERROR,
    ERROR_HOST,
    HOPS,
    COMMAND,
    EXHAUSTED,
    HELD_SINCE,
    PENDING_SINCE,
    STOPPED,
    CAMPAIGN,
    REPLAYED,
    ROUND,
    KIND,
    REASON,
    FINGERPRINT,
    OUTCOME,
    EVENT,
    READ_FROM,
    OMITTED,
    OMITTED_XXH3,
    REFUSED,
];

/// Most headers a producer's record may have besides retide's: far above any real record, low enough that looking through them is cheap.
pub const MAX_HEADERS: usize = 512;

/// How long before its record a time may be: longer ago, it is taken for one in another unit.
pub const YEAR: Duration = Duration::from_hours(366 * 24);

/// How far away a time may be that is taken for one in another unit.
const PLAUSIBLE: Duration = Duration::from_hours(10 * 366 * 24);

/// Record timestamps before 2001 come from clocks that were never set, or are in another unit.
const CLOCKS_SET: Timestamp = Timestamp::from_millis(1_000_000_000_000);

/// Longest scene name, in bytes: it is a key, a label of metrics and part of every record.
pub const MAX_SCENE: usize = 128;

/// Longest identity, in bytes: it is a key and travels as the idempotency key.
pub const MAX_ID: usize = 256;

/// The namespace of identities derived from an [`Origin`]; drawn at random once. Changing it changes the identity of replays.
pub const ORIGIN_NAMESPACE: Uuid = Uuid::from_u128(0x6f1d_9c52_0b7e_4a86_9d35_e2c4_71a8_f30b);

/// Longest text of a producer's that a refusal shows, in characters: it tells which one, and leaves room for the reason.
const LONGEST_SHOWN: usize = 40;

/// Bytes of a value without text that a refusal shows: those of a number in binary.
const BYTES_SHOWN: usize = 8;

/// Most headers of a record that every client reads: librdkafka takes one with more for broken.
pub const READABLE: usize = 100_000;

/// Where headers are written to: a name and a value, in order.
pub type Sink<'a> = dyn FnMut(&[u8], Option<&[u8]>) + 'a;

/// A record whose headers the client could not read; they are not among its parts, which does not mean that there are none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Headless(pub Record);

/// Why a record is not a task.
struct Refusal {
    /// The word for it.
    reason: Reason,
    /// What exactly was wrong.
    detail: Failure,
}

/// Where and when a record arrived.
#[derive(Clone, Debug)]
pub struct Arrival {
    /// Its place.
    pub origin: Origin,
    /// When its task entered, see [`retide_core::task::entered`]: relative times count from then.
    pub entered: Timestamp,
    /// Its own timestamp, or the epoch: what is a plausible time depends on it, however long ago that was.
    pub stamped: Timestamp,
}

/// A point in time that a producer named, in ms since the epoch.
#[derive(Clone, Copy)]
struct Given {
    /// The header or the field of the envelope that names it.
    name: &'static str,
    /// The number.
    value: u64,
}

/// What a producer asked for.
struct Order {
    /// The identity, if it named one.
    id: Option<Arc<str>>,
    /// The scene, or nothing.
    scene: Arc<str>,
    /// When the first attempt may start.
    due: Timestamp,
    /// When no attempt may start any more.
    deadline: Option<Timestamp>,
    /// How many attempts were made before the record came back.
    round: u32,
    /// What the value was wrapped in.
    envelope: Option<Envelope>,
}

/// Reads a record as [`Intake::ingest`] does where no topic is configured; its timestamp is the time at which it `entered`.
pub fn ingest(record: Record, origin: Origin, entered: Timestamp) -> Result<Task, Box<Poison>> {
    // Its schemas are parsed once.
    static USUAL: LazyLock<Intake> = LazyLock::new(Intake::default);
    let arrival = Arrival {
        origin,
        entered,
        stamped: entered,
    };
    USUAL.ingest(record, arrival)
}

impl Arrival {
    /// A record of this place that bears the time `stamped`, or the epoch, and is read `now`.
    pub fn new(origin: Origin, stamped: Timestamp, now: Timestamp) -> Self {
        Self {
            origin,
            entered: task::entered(stamped, now),
            stamped,
        }
    }

    /// A record that enters `now`, from nowhere.
    fn at(now: Timestamp) -> Self {
        Self {
            origin: Origin {
                topic: "".into(),
                partition: 0,
                offset: 0,
            },
            entered: now,
            stamped: now,
        }
    }
}

impl Intake {
    /// The name of the schema that a registry has to be asked for before `record` is read, if there is one.
    pub fn asks(&self, record: &Record) -> Option<Key> {
        envelope::asks(record, self)
    }

    /// Reads a record of the retry topic, which anyone may have written.
    ///
    /// A producer decides scene, id, due time and deadline. Headers that only retide may set are dropped and set afresh. A record may be
    /// an envelope; its fields stand in for headers that are not there, and must not say something else than those that are. A record that
    /// names no scene at all becomes a task with an empty one: whether that can run is for the rules in force to say.
    ///
    /// A record with [`ROUND`] was given to a target, which has put it back: its next attempt is one more than that. Nobody need be kept
    /// from setting it, since that only takes attempts away.
    ///
    /// What retide has written for other libraries on a dead letter that is produced again is no part of it.
    pub fn ingest(&self, mut record: Record, arrival: Arrival) -> Result<Task, Box<Poison>> {
        beside::take_off(&mut record);
        let Order {
            id,
            scene,
            due,
            deadline,
            round,
            envelope,
        } = match order(&record, self, &arrival) {
            Ok(order) => order,
            Err(refusal) => {
                let known = envelope::known(&record, self);
                return Err(poison(record, arrival.origin, known, refusal));
            }
        };
        let Arrival {
            origin, entered, ..
        } = arrival;
        Ok(Task {
            id: id.unwrap_or_else(|| identity(&origin)),
            scene,
            kind: Kind::Work,
            attempt: round.saturating_add(1),
            due,
            deferral: None,
            first_failed_at: entered,
            deadline,
            origin,
            failure: None,
            hops: 0,
            throttled: 0,
            exhausted: None,
            held_since: None,
            pending_since: None,
            stopped: None,
            commanded: None,
            replay: None,
            record: strip(match envelope {
                Some(envelope) => unwrap(record, envelope),
                None => record,
            }),
        })
    }
}

/// Reads a record of a delay topic, which only retide writes: every header of its own must be there and in order.
pub fn parked(record: Record, at: Origin) -> Result<Task, Box<Poison>> {
    match resume(&record) {
        Ok(task) => {
            // The end that a callback reports is part of what it delivers.
            let outcome = match task.kind {
                Kind::Work => None,
                Kind::Callback => record
                    .headers
                    .iter()
                    .rfind(|header| is_named(header.name.as_bytes(), OUTCOME))
                    .cloned(),
            };
            let mut record = strip(record);
            record.headers.extend(outcome);
            Ok(Task { record, ..task })
        }
        Err(refusal) => Err(parked_poison(record, at, refusal)),
    }
}

/// A record whose headers the client could not read is no task: all that is known of it is key, value and place.
pub fn headless(Headless(record): Headless, origin: Origin) -> Box<Poison> {
    let why = format!(
        "the headers cannot be read (over {READABLE}, or broken); they are on the record at {ORIGIN}"
    );
    let refusal = refuse(Reason::TooManyHeaders, &why);
    poison(record, origin, Known::default(), refusal)
}

/// A record at which so many processes have died is no task: nothing of it is looked at but the headers that say which task it is, and its
/// dead letter holds nothing of it but its place.
pub fn set_aside(record: Record, source: Source, origin: Origin, deaths: u32) -> Box<Poison> {
    let why =
        format!("{deaths} processes died with this record in hand; it is at {ORIGIN} as it was");
    let refusal = refuse(Reason::Crashed, &why);
    let poison = match source {
        Source::Tasks => poison(record, origin, Known::default(), refusal),
        Source::Tier(_) => parked_poison(record, origin, refusal),
        Source::Commands => unreachable!("a task in the commands topic"),
    };
    let record = Record::default();
    Box::new(Poison {
        key: None,
        record,
        ..*poison
    })
}

/// The identity of a task that came without one: the same whenever the record is read again.
pub fn identity(origin: &Origin) -> Arc<str> {
    Uuid::new_v5(&ORIGIN_NAMESPACE, origin.to_string().as_bytes())
        .to_string()
        .into()
}

/// Writes the headers of a task that goes on: the producer's in order, then retide's.
pub fn write_task(task: &Task, sink: &mut Sink<'_>) {
    write_headers(&task.record, sink);
    write_state(task, task.attempt, sink);
    if let Some(since) = task.pending_since {
        write_number(sink, PENDING_SINCE, millis(since));
    }
    if let Some(deferral) = &task.deferral {
        write_number(sink, DEFERRED_UNTIL, millis(deferral.until));
        let causes = deferral.wait.by_cause().into_iter();
        let causes = causes.filter(|(_, micros)| *micros > 0);
        let causes: Vec<String> = causes
            .map(|(cause, micros)| format!("{cause}={micros}"))
            .collect();
        write_text(sink, LATE_BY, &causes.join(" "));
    }
    write_failure(task.failure.as_ref(), sink);
}

/// Writes when no attempt may start any more, on a record that may come back.
pub fn write_deadline(deadline: Option<Timestamp>, sink: &mut Sink<'_>) {
    if let Some(deadline) = deadline {
        write_number(sink, DEADLINE_AT, millis(deadline));
    }
}

/// Writes the headers of a dead letter: the producer's in order, then the task's last state and how it ended.
///
/// Produced to the retry topic as it is, it is a new attempt at the same task: id, scene and deadline count, the rest is dropped.
pub fn write_dead_letter(task: &Task, ended: &Ended, sink: &mut Sink<'_>) {
    write_headers(&task.record, sink);
    write_state(task, ended.attempts, sink);
    write_end(ended, sink);
}

/// Writes the headers of a record that could not be read: all it came with, byte for byte, then retide's.
///
/// A name that was there already stays where it was, and retide's comes after it: the last one counts. Due time and deadline are
/// not written, so that whatever was wrong with them is still wrong, and still to be seen. Headers beyond what every client can read
/// are left out, or nobody would read any: they are on the record that [`ORIGIN`] names.
pub fn write_poison(poison: &Poison, ended: &Ended, sink: &mut Sink<'_>) {
    let (all, most) = (poison.record.headers.len(), READABLE - NAMES.len());
    for Header { name, value } in poison.record.headers.iter().take(most) {
        sink(name.as_bytes(), value.as_deref());
    }
    if all > most {
        let omitted = format!("headers: {} of {all}", all - most);
        write_text(sink, OMITTED, &omitted);
    }
    if !poison.scene.is_empty() {
        write_text(sink, SCENE, &poison.scene);
        if !names_scene(&poison.record) {
            write_text(sink, READ_FROM, "envelope");
        }
    }
    write_text(sink, ID, &poison.id);
    write_text(sink, KIND, kind_word(ended.kind));
    write_number(sink, ATTEMPT, ended.attempts.into());
    write_number(sink, FIRST_FAILED_AT, millis(ended.first_failed_at));
    write_text(sink, ORIGIN, &poison.origin.to_string());
    write_end(ended, sink);
}

/// Writes the text headers of a callback record.
pub fn write_ended(ended: &Ended, sink: &mut Sink<'_>) {
    write_text(sink, ID, &ended.id);
    write_text(sink, SCENE, &ended.scene);
    write_text(sink, OUTCOME, ended.terminal.word());
}

/// Writes the text headers of an event.
pub fn write_event(event: &Event, sink: &mut Sink<'_>) {
    write_text(sink, ID, &event.id);
    write_text(sink, SCENE, &event.scene);
    write_text(sink, EVENT, event.transition.word());
}

/// Writes the text headers of an alert.
pub fn write_alert(alert: &Alert, sink: &mut Sink<'_>) {
    write_text(sink, ID, &alert.example);
    write_text(sink, SCENE, &alert.scene);
    write_text(sink, REASON, alert.reason);
}

/// Refuses a due time, in ms since the epoch, that no task that enters `now` may have; `name` says what names it.
///
/// # Errors
/// With the words of the refusal.
pub fn check_due(name: &'static str, millis: u64, now: Timestamp) -> Result<(), Box<str>> {
    let given = Given {
        name,
        value: millis,
    };
    due(Some(given), None, &Record::default(), &Arrival::at(now))
        .map(drop)
        .map_err(|refusal| refusal.detail.message)
}

/// Refuses a deadline, in ms since the epoch, that no task that enters `now` may have; `name` says what names it.
///
/// # Errors
/// With the words of the refusal.
pub fn check_deadline(name: &'static str, millis: u64, now: Timestamp) -> Result<(), Box<str>> {
    let given = Given {
        name,
        value: millis,
    };
    last_time(Some(given), &Record::default(), &Arrival::at(now))
        .map(drop)
        .map_err(|refusal| refusal.detail.message)
}

/// A header's name to keep.
pub fn name(name: impl AsRef<[u8]>) -> Name {
    let name = name.as_ref();
    known(name).unwrap_or_else(|| name.into())
}

/// The name that is spelt so, if it is one of retide's or that of the content type: it takes no memory.
pub fn known(name: &[u8]) -> Option<Name> {
    let known = NAMES.into_iter().chain([CONTENT_TYPE]);
    // Most names differ in their length already.
    let mut known = known.filter(|known| known.len() == name.len());
    known
        .find(|known| known.as_bytes() == name)
        .map(Name::known)
}

/// Whether a header of this name is retide's, in whatever case it is written: bridges from HTTP capitalise names.
pub fn is_own(name: &[u8]) -> bool {
    name.get(..OWN.len())
        .is_some_and(|start| start.eq_ignore_ascii_case(OWN.as_bytes()))
        && NAMES.iter().any(|own| is_named(name, own))
}

/// Whether a header is the one that is called `own`, in whatever case it is written.
#[inline]
pub fn is_named(name: &[u8], own: &str) -> bool {
    /// The last letter.
    fn last(name: &[u8]) -> Option<u8> {
        name.last().map(u8::to_ascii_lowercase)
    }
    // Each header of a task is compared with each name there is. Those of retide's begin alike; few end alike and are as long.
    let own = own.as_bytes();
    name.len() == own.len() && last(name) == last(own) && name.eq_ignore_ascii_case(own)
}

/// Whether a producer's header names the scene of a record: not one that retide has read from the envelope of a dead letter.
pub(crate) fn names_scene(record: &Record) -> bool {
    let last = |name: &str| {
        let mut headers = record.headers.iter();
        headers.rfind(|header| is_named(header.name.as_bytes(), name))
    };
    let is_empty = |name: &Bytes| str::from_utf8(name).is_ok_and(|name| bare(name).is_empty());
    last(SCENE).is_some_and(|scene| scene.value.as_ref().is_some_and(|name| !is_empty(name)))
        && last(READ_FROM).is_none()
}

/// The header of retide's that `name` is meant to be, if it is spelt like one but for quotes or space around it or, where a task would
/// run early without it, for what stands between its words. In another case alone it is that header.
pub fn misspelt(name: &[u8]) -> Option<&'static str> {
    const SET: [&str; 5] = [SCENE, ID, DUE_AT, DELAY_MS, DEADLINE_AT];
    /// The letters of a name, whatever stands between its words.
    fn letters(name: &[u8]) -> impl Iterator<Item = u8> {
        let letters = name.iter().filter(|byte| !b"-_. ".contains(byte));
        letters.map(u8::to_ascii_lowercase)
    }
    let is_around =
        |byte: &u8| byte.is_ascii_whitespace() || matches!(byte, b'"' | b'\'' | b'`' | b':');
    let from = name.iter().position(|byte| !is_around(byte))?;
    let to = name.iter().rposition(|byte| !is_around(byte))?;
    let inner = &name[from..=to];
    let is_like = inner
        .get(..5)
        .is_some_and(|start| start.eq_ignore_ascii_case(b"retry"));
    if !is_like || SET.iter().any(|own| is_named(name, own)) {
        return None;
    }
    SET.into_iter().find(|own| {
        is_named(inner, own) || (*own != ID && letters(inner).eq(letters(own.as_bytes())))
    })
}

/// Whether an identity is a media type: it stands where that belongs, and all tasks of its kind would have the same one.
pub fn is_media_type(id: &str) -> bool {
    /// Of types with names of their own; an identity such as `video/42` is none.
    const NAMED: [&str; 26] = [
        "application/avro",
        "application/cbor",
        "application/gzip",
        "application/json",
        "application/msgpack",
        "application/ndjson",
        "application/octet-stream",
        "application/pdf",
        "application/protobuf",
        "application/xml",
        "application/yaml",
        "application/zip",
        "avro/binary",
        "image/gif",
        "image/jpeg",
        "image/png",
        "image/webp",
        "multipart/form-data",
        "multipart/mixed",
        "text/css",
        "text/csv",
        "text/html",
        "text/javascript",
        "text/markdown",
        "text/plain",
        "text/xml",
    ];
    let media = id.split(';').next().unwrap_or_default().trim();
    let Some((class, name)) = media.split_once('/') else {
        return false;
    };
    let class = class.to_ascii_lowercase();
    let name = name.to_ascii_lowercase();
    let is_open = class == "application"
        && !name.contains('/')
        && (name.starts_with("x-") || name.starts_with("vnd."));
    let has_suffix = ["application", "image", "message"].contains(&&*class)
        && ["+json", "+xml", "+avro", "+protobuf", "+cbor"]
            .iter()
            .any(|end| name.ends_with(end));
    let media = format!("{class}/{name}");
    is_open || has_suffix || NAMED.contains(&&*media)
}

/// The word for a kind of task.
pub const fn kind_word(kind: Kind) -> &'static str {
    kind.word()
}

/// The kind of task that `word` names, if it names one.
pub fn kind_of(word: &str) -> Option<Kind> {
    Kind::ALL.into_iter().find(|kind| kind.word() == word)
}

/// The place that `text` names as `topic/partition/offset`, if it does.
pub fn origin_of(text: &str) -> Option<Origin> {
    let mut parts = text.rsplitn(3, '/');
    let offset = parts.next()?.parse().ok()?;
    let partition = parts.next()?.parse().ok()?;
    let topic = parts.next()?.into();
    Some(Origin {
        topic,
        partition,
        offset,
    })
}

/// Whole milliseconds since the epoch, rounded up even where [`Timestamp::ceil_to_millis`] would saturate.
pub fn millis(time: Timestamp) -> u64 {
    time.as_micros().div_ceil(1_000)
}

// === reading ===

/// What the producer of `record` asked for.
fn order(record: &Record, intake: &Intake, arrival: &Arrival) -> Result<Order, Refusal> {
    // A dead letter that is produced again has retide's on top.
    if record.headers.len() > MAX_HEADERS + NAMES.len() {
        return Err(too_many(record.headers.len()));
    }
    for Header { name, .. } in &record.headers {
        if name.as_str().is_none() {
            let why = format!("header name {name} is not UTF-8");
            return Err(refuse(Reason::BadHeader, &why));
        }
        if let Some(own) = misspelt(name.as_bytes()) {
            let why = format!("header name {name} is not {own}, and seems to be meant so");
            return Err(refuse(Reason::BadHeader, &why));
        }
    }
    if let Some(refused) = text(record, REFUSED, Reason::BadHeader)? {
        return Err(refused_before(refused));
    }
    let omitted = text(record, OMITTED, Reason::BadHeader)?;
    if let Some(omitted) = omitted.filter(|omitted| omitted.starts_with("value")) {
        // A dead letter without its value: nobody is to be called with nothing.
        let why = format!("its {omitted} was left out of its dead letter");
        return Err(refuse(Reason::BadHeader, &why));
    }
    let scene = word(record, SCENE, MAX_SCENE)?.map(bare);
    let scene = scene.filter(|scene| !scene.is_empty());
    let id = identifier(record)?;
    if let Some(id) = id.filter(|id| is_media_type(id)) {
        let why = format!("{ID} is {id}, a media type");
        return Err(refuse(Reason::BadHeader, &why));
    }
    let mut envelope = envelope::open(record, intake).map_err(bad_envelope)?;
    let kept = kept(record, envelope.as_ref());
    if kept > MAX_HEADERS {
        return Err(too_many(kept));
    }
    if kept < MAX_HEADERS
        && let Some(envelope) = &mut envelope
    {
        envelope::describe(envelope);
    }
    let inner = envelope.as_ref();
    let (scene, id) = named(record, (scene, id), inner)?;
    let due_at = time(record, DUE_AT, Reason::BadDue)?;
    let delay_ms = number(record, DELAY_MS, Reason::BadDue)?;
    let deadline = time(record, DEADLINE_AT, Reason::BadHeader)?;
    let due_at = either(DUE_AT, due_at, field("dueAt", inner, |it| it.due_at)?)?;
    let delay_ms = either(
        DELAY_MS,
        delay_ms,
        field("delayMs", inner, |it| it.delay_ms)?,
    )?;
    let deadline_at = field("deadlineAt", inner, |it| it.deadline_at)?;
    let deadline = either(DEADLINE_AT, deadline, deadline_at)?;
    let round = number(record, ROUND, Reason::BadHeader)?.unwrap_or_default();
    // The due time on a record that came back is that of the attempt it was given for.
    let due_at = due_at.filter(|_| round == 0 || delay_ms.is_none());

    Ok(Order {
        id: id.map(Arc::from),
        scene: scene.unwrap_or_default().into(),
        due: due(due_at, delay_ms, record, arrival)?,
        deadline: last_time(deadline, record, arrival)?,
        round: u32::try_from(round).map_err(|_| unreadable(ROUND, Reason::BadHeader))?,
        envelope,
    })
}

/// Scene and identity of a record, by its headers and by its envelope: where both name one, it is the same.
fn named<'a>(
    record: &'a Record,
    (scene, id): (Option<&'a str>, Option<&'a str>),
    envelope: Option<&'a Envelope>,
) -> Result<(Option<&'a str>, Option<&'a str>), Refusal> {
    let Some(envelope) = envelope else {
        return Ok((scene, id));
    };
    let differs = |(header, said): (&str, &str), (field, wrapped): (&str, &str)| {
        let why = format!(
            "{header} is {} in the headers, {field} is {} in the envelope",
            shortened(said),
            shortened(wrapped)
        );
        refuse(Reason::BadEnvelope, &why)
    };
    let scene = match (scene, envelope.scene.as_deref()) {
        // What retide has read from the envelope is not the producer's word.
        (Some(_), Some(wrapped)) if !names_scene(record) => wrapped,
        (Some(said), Some(wrapped)) if said != wrapped => {
            return Err(differs((SCENE, said), ("scene", wrapped)));
        }
        (Some(scene), _) | (None, Some(scene)) => scene,
        (None, None) => {
            return Err(bad_envelope(Broken(format!(
                "scene is missing in the envelope, and there is no header {SCENE}"
            ))));
        }
    };
    let id = match (id, envelope.id.as_deref()) {
        // The dead letter of an envelope that could not be read has an identity made of its place.
        (Some(said), Some(wrapped)) if is_derived(record, said) => Some(wrapped),
        (Some(said), Some(wrapped)) if said != wrapped => {
            return Err(differs((ID, said), ("id", wrapped)));
        }
        (said, wrapped) => said.or(wrapped),
    };
    Ok((Some(scene), id))
}

/// Whether an identity is the one that retide made of the record's origin.
fn is_derived(record: &Record, id: &str) -> bool {
    let origin = text(record, ORIGIN, Reason::BadHeader)
        .ok()
        .flatten()
        .and_then(origin_of);
    origin.is_some_and(|origin| *identity(&origin) == *id)
}

/// A number of the envelope, if it has it.
fn field(
    name: &'static str,
    envelope: Option<&Envelope>,
    get: fn(&Envelope) -> Option<i64>,
) -> Result<Option<Given>, Refusal> {
    let Some(number) = envelope.and_then(get) else {
        return Ok(None);
    };
    match u64::try_from(number) {
        Ok(value) => Ok(Some(Given { name, value })),
        Err(_) => Err(refuse(
            Reason::BadDue,
            &format!("{name} is {number}, before 0; milliseconds are expected"),
        )),
    }
}

/// A number of the headers or of the envelope: where both say one, it is the same.
fn either(
    header: &'static str,
    said: Option<u64>,
    wrapped: Option<Given>,
) -> Result<Option<Given>, Refusal> {
    let said = said.map(|value| Given {
        name: header,
        value,
    });
    match (said, wrapped) {
        (Some(said), Some(wrapped)) if said.value != wrapped.value => {
            let why = format!(
                "{header} is {} in the headers, {} is {} in the envelope",
                said.value, wrapped.name, wrapped.value
            );
            Err(refuse(Reason::BadEnvelope, &why))
        }
        (said, wrapped) => Ok(said.or(wrapped)),
    }
}

/// How many headers the task will carry along.
fn kept(record: &Record, envelope: Option<&Envelope>) -> usize {
    let outer = record.headers.iter();
    let outer = outer.filter(|header| envelope.is_none() || !envelope::is_of_value(header));
    let inner = envelope.iter().flat_map(|envelope| &envelope.headers);
    let content_type = envelope.is_some_and(|envelope| envelope.content_type.is_some());
    let kept = outer
        .chain(inner)
        .filter(|header| !is_own(header.name.as_bytes()));
    kept.count() + usize::from(content_type)
}

/// When the first attempt may start: not before the task entered, not further away from that than retide parks tasks.
fn due(
    due_at: Option<Given>,
    delay_ms: Option<Given>,
    record: &Record,
    arrival: &Arrival,
) -> Result<Timestamp, Refusal> {
    let entered = arrival.entered;
    let (given, due) = match (due_at, delay_ms) {
        (Some(due), Some(delay)) => {
            // Which of them is meant nobody can tell; where one is the envelope's and one a header, they do not fit.
            let is_ours = |given: Given| is_own(given.name.as_bytes());
            let reason = if is_ours(due) == is_ours(delay) {
                Reason::BadDue
            } else {
                Reason::BadEnvelope
            };
            let why = format!(
                "both {} ({}) and {} ({}); one of them is expected",
                due.name, due.value, delay.name, delay.value
            );
            return Err(refuse(reason, &why));
        }
        (Some(given), None) => {
            not_long_ago(given, record, arrival)?;
            (given, Timestamp::from_millis(given.value).max(entered))
        }
        (None, Some(given)) => (given, entered + Duration::from_millis(given.value)),
        (None, None) => return Ok(entered),
    };
    if due > entered + scene::MAX_DELAY {
        let hint = match delay_ms {
            Some(_) if is_plausible(given.value.into(), arrival) => {
                " (a point in time? milliseconds from now are meant)"
            }
            Some(_) => "",
            None => finer_unit(given.value, arrival).unwrap_or_default(),
        };
        let wait = due.since(entered).as_millis();
        let why = format!(
            "{} is {}: due {wait} ms from now{hint}",
            given.name, given.value
        );
        return Err(refuse(Reason::DueTooFar, &why));
    }
    Ok(due)
}

/// When no attempt may start any more. It may be as far away as anybody likes, but not in another unit.
fn last_time(
    deadline: Option<Given>,
    record: &Record,
    arrival: &Arrival,
) -> Result<Option<Timestamp>, Refusal> {
    let Some(given) = deadline else {
        return Ok(None);
    };
    not_long_ago(given, record, arrival)?;
    if let Some(hint) = finer_unit(given.value, arrival) {
        let why = format!("{} is {}{hint}", given.name, given.value);
        return Err(refuse(Reason::BadDue, &why));
    }
    Ok(Some(Timestamp::from_millis(given.value)))
}

/// Refuses a time that is more than a year before the record: nobody asks for that.
fn not_long_ago(given: Given, record: &Record, arrival: &Arrival) -> Result<(), Refusal> {
    // A dead letter that is produced again was plausible when its task entered: what is written before the hops is retide's.
    let place = |name: &str| {
        let mut headers = record.headers.iter();
        headers.rposition(|header| is_named(header.name.as_bytes(), name))
    };
    let is_retides = || place(given.name).is_some_and(|at| Some(at) < place(HOPS));
    if Timestamp::from_millis(given.value) >= earliest(arrival) || is_retides() {
        return Ok(());
    }
    let value = given.value;
    let hint = if is_plausible(u128::from(value) * 1_000, arrival) {
        " (seconds? milliseconds are meant)"
    } else if value == 0 {
        " (leave it out for none)"
    } else if u128::from(value) <= scene::MAX_DELAY.as_millis() {
        " (a delay? milliseconds since 1970 are meant)"
    } else {
        ""
    };
    let why = format!(
        "{} is {value}, over a year before its record{hint}",
        given.name
    );
    Err(refuse(Reason::BadDue, &why))
}

/// The earliest time that is plausible.
fn earliest(arrival: &Arrival) -> Timestamp {
    let stamped = arrival.stamped;
    let reference = if stamped < CLOCKS_SET {
        arrival.entered
    } else {
        stamped.min(arrival.entered)
    };
    reference.before(YEAR)
}

/// Whether a number of milliseconds since the epoch is a time that somebody may ask for, or may have asked for.
fn is_plausible(millis: u128, arrival: &Arrival) -> bool {
    let latest = arrival.entered + PLAUSIBLE;
    let range = CLOCKS_SET.as_millis()..=latest.as_millis();
    u64::try_from(millis).is_ok_and(|millis| range.contains(&millis))
}

/// Asks for the unit of a time that is plausible in a finer one than milliseconds.
fn finer_unit(value: u64, arrival: &Arrival) -> Option<&'static str> {
    if is_plausible(value.into(), arrival) {
        None
    } else if is_plausible((value / 1_000).into(), arrival) {
        Some(" (microseconds? milliseconds are meant)")
    } else if is_plausible((value / 1_000_000).into(), arrival) {
        Some(" (nanoseconds? milliseconds are meant)")
    } else {
        None
    }
}

/// The state of a parked task; its record is left empty.
fn resume(record: &Record) -> Result<Task, Refusal> {
    // Retide's own come on top of what ingest let through.
    if record.headers.len() > MAX_HEADERS + NAMES.len() {
        return Err(too_many(record.headers.len()));
    }
    let bad = |name| unreadable(name, Reason::BadHeader);
    let required = |name| number(record, name, Reason::BadHeader)?.ok_or_else(|| missing(name));
    let count = |name| u32::try_from(required(name)?).map_err(|_| bad(name));

    let attempt = count(ATTEMPT)?;
    if attempt == 0 {
        return Err(bad(ATTEMPT));
    }
    let due = number(record, DUE_AT, Reason::BadDue)?.ok_or_else(|| missing(DUE_AT))?;
    let due = Timestamp::from_millis(due);
    let deferral = deferral(record, due)?;
    let kind = text(record, KIND, Reason::BadHeader)?.ok_or_else(|| missing(KIND))?;
    let origin = text(record, ORIGIN, Reason::BadHeader)?.ok_or_else(|| missing(ORIGIN))?;
    let failure = match text(record, ERROR, Reason::BadHeader)? {
        Some(error) => {
            let (class, message) = error.split_once(": ").ok_or_else(|| bad(ERROR))?;
            let host = text(record, ERROR_HOST, Reason::BadHeader)?;
            Some(Failure::new(class, message).of_host(host.map(Arc::from)))
        }
        None => None,
    };
    Ok(Task {
        id: identifier(record)?.ok_or_else(|| missing(ID))?.into(),
        scene: word(record, SCENE, MAX_SCENE)?
            .ok_or_else(|| missing(SCENE))?
            .into(),
        kind: kind_of(kind).ok_or_else(|| bad(KIND))?,
        attempt,
        due,
        deferral,
        first_failed_at: Timestamp::from_millis(required(FIRST_FAILED_AT)?),
        deadline: number(record, DEADLINE_AT, Reason::BadHeader)?.map(Timestamp::from_millis),
        origin: origin_of(origin).ok_or_else(|| bad(ORIGIN))?,
        failure,
        // Of the attempts made: neither of the next one, nor of one that is pending.
        throttled: number(record, THROTTLED, Reason::BadHeader)?.map_or(0, |throttled| {
            u32::try_from(throttled).map_or(attempt - 1, |throttled| throttled.min(attempt - 1))
        }),
        exhausted: text(record, EXHAUSTED, Reason::BadHeader)?
            .map(|text| exhausted(text, attempt).ok_or_else(|| bad(EXHAUSTED)))
            .transpose()?,
        hops: count(HOPS)?,
        held_since: number(record, HELD_SINCE, Reason::BadHeader)?.map(Timestamp::from_millis),
        pending_since: number(record, PENDING_SINCE, Reason::BadHeader)?
            .map(Timestamp::from_millis),
        stopped: text(record, STOPPED, Reason::BadHeader)?
            .map(|text| stopped(text).ok_or_else(|| bad(STOPPED)))
            .transpose()?,
        commanded: text(record, COMMAND, Reason::BadHeader)?
            .map(|place| place.parse().map(Box::new).map_err(|()| bad(COMMAND)))
            .transpose()?,
        replay: match text(record, CAMPAIGN, Reason::BadHeader)? {
            Some(campaign) => {
                let times = required(REPLAYED)?;
                let replay = campaign::replay(campaign, times).ok_or_else(|| bad(CAMPAIGN))?;
                Some(Box::new(replay))
            }
            None => None,
        },
        record: Record::default(),
    })
}

/// That a task was out of attempts whose next one has this number.
fn exhausted(text: &str, attempt: u32) -> Option<Box<Exhausted>> {
    let mut parts = text.split('/');
    let (at, attempts, word) = (parts.next()?, parts.next()?, parts.next()?);
    let attempts: u32 = attempts.parse().ok()?;
    Some(Box::new(Exhausted {
        at: Timestamp::from_millis(at.parse().ok()?),
        // Of the attempts made: not of the next one.
        attempts: attempts.min(attempt - 1),
        is_held: match word {
            HELD => true,
            LET_GO => false,
            _ => return None,
        },
    }))
    .filter(|_| parts.next().is_none())
}

/// How the deadline of a task has stood still.
fn stopped(text: &str) -> Option<Box<Stopped>> {
    let mut parts = text.split('/');
    let before = parts.next()?.parse().ok()?;
    let mut instant = || match parts.next() {
        None | Some("") => Some(None),
        Some(part) => Some(Some(Timestamp::from_millis(part.parse().ok()?))),
    };
    let (since, to) = (instant()?, instant()?);
    Some(Box::new(Stopped {
        since,
        before: Duration::from_millis(before),
        to,
    }))
    .filter(|_| parts.next().is_none())
}

/// The deferral of a parked task that is due at `due`, if it has one. Earlier versions wrote none: they moved the due time.
fn deferral(record: &Record, due: Timestamp) -> Result<Option<Box<Deferral>>, Refusal> {
    let Some(until) = number(record, DEFERRED_UNTIL, Reason::BadHeader)? else {
        return Ok(None);
    };
    let mut wait = Wait::default();
    for part in text(record, LATE_BY, Reason::BadHeader)?
        .unwrap_or_default()
        .split(' ')
    {
        // A cause of a later release is as good as none: what it took counts for the read.
        if let Some((cause, micros)) = part.split_once('=')
            && let Ok(micros) = micros.parse()
        {
            wait.set(cause, micros);
        }
    }
    let until = Timestamp::from_millis(until);
    Ok(Some(Box::new(Deferral::written(due, wait, until))))
}

/// The record without retide's headers, the others as they were; a task that waits does not hold the room of those that are gone.
pub(crate) fn strip(mut record: Record) -> Record {
    record
        .headers
        .retain(|header| !is_own(header.name.as_bytes()));
    record.headers.shrink_to_fit();
    record
}

/// What the envelope holds, as if its producer had set headers.
///
/// The record's own content type described the envelope, which is gone; its other headers stay, before those of the envelope.
fn unwrap(mut record: Record, envelope: Envelope) -> Record {
    record
        .headers
        .retain(|header| !envelope::is_of_value(header));
    if let Some(content_type) = envelope.content_type {
        record.headers.push(Header {
            name: Name::known(CONTENT_TYPE),
            value: Some(Bytes::from(content_type)),
        });
    }
    record.headers.extend(envelope.headers);
    Record {
        key: envelope.key.or(record.key),
        value: envelope.payload,
        headers: record.headers,
    }
}

/// The last header of this name, if there is one; one without a value, or with one that is no text, is refused.
fn text<'a>(record: &'a Record, name: &str, reason: Reason) -> Result<Option<&'a str>, Refusal> {
    let is_it = |header: &&Header| is_named(header.name.as_bytes(), name);
    let Some(header) = record.headers.iter().rfind(is_it) else {
        return Ok(None);
    };
    let Some(value) = header.value.as_deref() else {
        let why = format!("{name} has no value; leave it out, or give it one");
        return Err(refuse(reason, &why));
    };
    str::from_utf8(value)
        .map(Some)
        .map_err(|_| no_text(name, value, reason))
}

/// What a value is without the space, the quotes of JSON and the byte order mark that converters put around it. What is left is left as it
/// is when it is read again.
fn bare(text: &str) -> &str {
    text.trim_matches(|c: char| c.is_whitespace() || matches!(c, '"' | '\u{feff}'))
}

/// One line of at most `limit` bytes: it goes on into headers of other protocols.
fn word<'a>(record: &'a Record, name: &str, limit: usize) -> Result<Option<&'a str>, Refusal> {
    let reason = Reason::BadHeader;
    match text(record, name, reason)? {
        Some(text) if text.len() > limit => {
            let why = format!("{name} has {} bytes; at most {limit} expected", text.len());
            Err(refuse(reason, &why))
        }
        // Serializers of numbers write these.
        Some(text) if text.contains('\0') => Err(no_text(name, text.as_bytes(), reason)),
        Some(text) if text.contains(char::is_control) => {
            let text = shortened(&text.escape_default().to_string());
            Err(refuse(
                reason,
                &format!("{name} is {text}; one line expected"),
            ))
        }
        found => Ok(found),
    }
}

/// The identity; an empty one is refused.
fn identifier(record: &Record) -> Result<Option<&str>, Refusal> {
    match word(record, ID, MAX_ID)? {
        Some("") => {
            let why = format!("{ID} is empty; leave it out, or name one");
            Err(refuse(Reason::BadHeader, &why))
        }
        found => Ok(found),
    }
}

/// A whole number that is not negative, as producers write it.
fn number(record: &Record, name: &str, reason: Reason) -> Result<Option<u64>, Refusal> {
    let Some(text) = text(record, name, reason)? else {
        return Ok(None);
    };
    let number = number::whole(bare(text)).and_then(|number| u64::try_from(number).ok());
    number
        .map(Some)
        .ok_or_else(|| not_a_number(name, text, "a whole number expected", reason))
}

/// A point in time, in ms since the epoch: a whole number, or a text of RFC 3339.
fn time(record: &Record, name: &str, reason: Reason) -> Result<Option<u64>, Refusal> {
    let Some(text) = text(record, name, reason)? else {
        return Ok(None);
    };
    let time = bare(text);
    let time = number::whole(time).or_else(|| number::rfc3339(time));
    let time = time.and_then(|time| u64::try_from(time).ok());
    time.map(Some).ok_or_else(|| {
        let hint = number::hint(bare(text)).unwrap_or_default();
        let expected = format!("milliseconds since 1970 expected{hint}");
        not_a_number(name, text, &expected, reason)
    })
}

// === refusing ===

/// The record as it came, with the reason. Identity and scene are those of its headers or, as far as they are `known`, of its envelope.
fn poison(
    record: Record,
    origin: Origin,
    known: Known,
    Refusal { reason, detail }: Refusal,
) -> Box<Poison> {
    let is_made_up =
        |id: &str| is_media_type(id) || (known.id.is_some() && is_derived(&record, id));
    let id = match identifier(&record) {
        Ok(Some(id)) if !is_made_up(id) => Some(id),
        Ok(_) | Err(_) => None,
    };
    let scene = match word(&record, SCENE, MAX_SCENE) {
        Ok(Some(scene)) if names_scene(&record) || known.scene.is_none() => Some(bare(scene)),
        Ok(_) | Err(_) => None,
    };
    Box::new(Poison {
        id: match id.or(known.id.as_deref()) {
            Some(id) => id.into(),
            None => identity(&origin),
        },
        scene: scene.or(known.scene.as_deref()).unwrap_or_default().into(),
        key: known.key.or_else(|| record.key.clone()),
        kind: Kind::Work,
        origin,
        record,
        reason,
        detail,
        replay: None,
    })
}

/// As [`poison`], of a record that retide has parked: it says whether it is the delivery of a callback, and whether a campaign has replayed it.
fn parked_poison(record: Record, origin: Origin, refusal: Refusal) -> Box<Poison> {
    let kind = text(&record, KIND, Reason::BadHeader)
        .ok()
        .flatten()
        .and_then(kind_of);
    let kind = kind.unwrap_or_default();
    let said = |name| text(&record, name, Reason::BadHeader).ok().flatten();
    let times = said(REPLAYED).and_then(|times| times.parse().ok());
    let replay = said(CAMPAIGN).zip(times);
    let replay = replay.and_then(|(campaign, times)| campaign::replay(campaign, times));
    let poison = poison(record, origin, Known::default(), refusal);
    Box::new(Poison {
        kind,
        replay: replay.map(Box::new),
        ..*poison
    })
}

/// A refusal whose class is the reason's word.
fn refuse(reason: Reason, why: &str) -> Refusal {
    Refusal {
        reason,
        detail: Failure::new(reason.word(), why),
    }
}

/// The header `name` does not say what it should.
fn unreadable(name: &str, reason: Reason) -> Refusal {
    refuse(reason, &format!("cannot read {name}"))
}

/// The header `name` is no text: its bytes, and what they may be.
fn no_text(name: &str, value: &[u8], reason: Reason) -> Refusal {
    let mut why = format!("{name} is the bytes");
    for byte in value.iter().take(BYTES_SHOWN) {
        // Writing to a string cannot fail.
        let _ = write!(why, " {byte:02x}");
    }
    let is_wide =
        value.len().is_multiple_of(2) && value.iter().skip(1).step_by(2).all(|byte| *byte == 0);
    why.push_str(if value.len() > BYTES_SHOWN {
        " …"
    } else {
        ""
    });
    why.push_str(match value.len() {
        4 | 8 if value.first() == Some(&0) => " (a number in binary? its digits are meant)",
        _ if is_wide => " (UTF-16?)",
        _ => "",
    });
    why.push_str("; text in UTF-8 expected");
    refuse(reason, &why)
}

/// The header `name` says `text`, which is not what is `expected`.
fn not_a_number(name: &str, text: &str, expected: &str, reason: Reason) -> Refusal {
    if text.contains('\0') {
        return no_text(name, text.as_bytes(), reason);
    }
    let text = shortened(text);
    refuse(reason, &format!("{name} is {text}; {expected}"))
}

/// A text of a producer's in quotes, or its beginning.
pub(crate) fn shortened(text: &str) -> String {
    match text.char_indices().nth(LONGEST_SHOWN) {
        Some((end, _)) => format!("\"{}…\"", &text[..end]),
        None => format!("\"{text}\""),
    }
}

/// An envelope that is none.
fn bad_envelope(Broken(why): Broken) -> Refusal {
    refuse(Reason::BadEnvelope, &why)
}

/// The header `name` is not there.
fn missing(name: &str) -> Refusal {
    refuse(Reason::BadHeader, &format!("no {name}"))
}

/// Whoever has written the record says that it is no task, and why.
fn refused_before(text: &str) -> Refusal {
    /// What a source of letters finds out.
    const KNOWN: [Reason; 3] = [
        Reason::OriginGone,
        Reason::Unwritable,
        Reason::TooManyHeaders,
    ];
    let parts = text.split_once(": ");
    let known = parts.and_then(|(word, detail)| {
        let mut known = KNOWN.into_iter();
        Some((known.find(|reason| reason.word() == word)?, detail))
    });
    match known {
        Some((reason, detail)) => refuse(reason, detail),
        None => unreadable(REFUSED, Reason::BadHeader),
    }
}

/// There are `count` headers.
fn too_many(count: usize) -> Refusal {
    refuse(Reason::TooManyHeaders, &format!("{count} headers"))
}

// === writing ===

/// Writes one header of text.
fn write_text(sink: &mut Sink<'_>, name: &str, text: &str) {
    sink(name.as_bytes(), Some(text.as_bytes()));
}

/// Writes one header of decimal digits.
fn write_number(sink: &mut Sink<'_>, name: &str, number: u64) {
    write_text(sink, name, itoa::Buffer::new().format(number));
}

/// Writes the headers of a record as they are.
fn write_headers(record: &Record, sink: &mut Sink<'_>) {
    for header in &record.headers {
        sink(header.name.as_bytes(), header.value.as_deref());
    }
}

/// Writes what retide knows of a task, except its last failure.
fn write_state(task: &Task, attempt: u32, sink: &mut Sink<'_>) {
    write_text(sink, SCENE, &task.scene);
    write_text(sink, ID, &task.id);
    write_text(sink, KIND, kind_word(task.kind));
    write_number(sink, ATTEMPT, attempt.into());
    if task.throttled > 0 {
        write_number(sink, THROTTLED, task.throttled.into());
    }
    write_number(sink, DUE_AT, millis(task.due));
    write_number(sink, FIRST_FAILED_AT, millis(task.first_failed_at));
    write_deadline(task.deadline, sink);
    write_text(sink, ORIGIN, &task.origin.to_string());
    write_number(sink, HOPS, task.hops.into());
    if let Some(command) = &task.commanded {
        write_text(sink, COMMAND, &command.to_string());
    }
    if let Some(replay) = &task.replay {
        write_text(sink, CAMPAIGN, &replay.campaign.to_string());
        write_number(sink, REPLAYED, replay.times.into());
    }
    if let Some(last) = &task.exhausted {
        let word = if last.is_held { HELD } else { LET_GO };
        let text = format!("{}/{}/{word}", millis(last.at), last.attempts);
        write_text(sink, EXHAUSTED, &text);
    }
    if let Some(stopped) = &task.stopped {
        let before = stopped.before.as_micros().div_ceil(1_000);
        let since = stopped.since.map(|since| millis(since).to_string());
        let text = match (since, stopped.to.map(millis)) {
            (None, None) => before.to_string(),
            (Some(since), None) => format!("{before}/{since}"),
            (since, Some(to)) => format!("{before}/{}/{to}", since.unwrap_or_default()),
        };
        write_text(sink, STOPPED, &text);
    }
    if let Some(since) = task.held_since {
        write_number(sink, HELD_SINCE, millis(since));
    }
}

/// Writes what the last attempt said, if it failed.
fn write_failure(failure: Option<&Failure>, sink: &mut Sink<'_>) {
    let Some(failure) = failure else {
        return;
    };
    write_text(sink, ERROR, &failure.to_string());
    if let Some(host) = &failure.host {
        write_text(sink, ERROR_HOST, host);
    }
}

/// Writes how a task ended.
fn write_end(ended: &Ended, sink: &mut Sink<'_>) {
    if let Some(words) = ended.omitted.words() {
        write_text(sink, OMITTED, words);
    }
    if let Some(digest) = ended.omitted.digest() {
        write_text(sink, OMITTED_XXH3, &digest.to_string());
    }
    write_text(sink, OUTCOME, ended.terminal.word());
    if let Some(reason) = ended.reason {
        write_text(sink, REASON, reason.word());
    }
    write_failure(ended.failure.as_ref(), sink);
    if let Some(print) = ended.fingerprint() {
        write_text(sink, FINGERPRINT, &print.to_string());
    }
}
