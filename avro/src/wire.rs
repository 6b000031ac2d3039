//! The records on the topics of callbacks, events, alerts and scenes, and their bytes in Avro or JSON.
//!
//! Not the task: its payload is the producer's and its fields are headers. Both formats have the same field names; times are
//! whole milliseconds since the epoch, rounded up. Invariant: decoding refuses what is too large before it looks inside, and what
//! it accepts it has read to the last byte.

use std::fmt;
use std::io::Read as _;
use std::marker::PhantomData;

use apache_avro::rabin::Rabin;
use apache_avro::util::max_allocation_bytes;
use apache_avro::{Schema, from_avro_datum, from_value, write_avro_datum_ref};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::de::{self, DeserializeOwned, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use retide_core::selector::ErrorFingerprint;
use retide_core::wait::Waited;
use retide_core::{Ended, Failure, Omitted, Reason, Terminal, Transition, Wait};

use crate::headers::{kind_of, kind_word, millis, origin_of};
use crate::schema;

/// The first byte of a value in Confluent's frame; the schema's number follows, four bytes, highest first.
pub const CONFLUENT_MAGIC: u8 = 0;

/// The first bytes of a value in Avro's single-object frame; the schema's fingerprint follows.
pub const SINGLE_OBJECT_MARKER: [u8; 2] = [0xc3, 0x01];

/// Largest value that is decoded, in bytes: well above what brokers take by default (1 MiB), small beside a worker's memory.
pub const MAX_ENCODED: usize = 16 * 1024 * 1024;

/// What is read behind a datum that is too short: the Avro library takes an optional field that is not there for one that says nothing.
const BEHIND: [u8; 64] = [0; 64];

/// The content type of a record in JSON.
pub const CONTENT_TYPE_JSON: &str = "application/json";

/// The content type of a record in Avro.
pub const CONTENT_TYPE_AVRO: &str = "application/avro";

/// How a record is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// Avro, in a [`Framing`].
    #[default]
    Avro,
    /// JSON, unframed.
    Json,
}

/// What stands before an Avro datum so that a reader finds its schema.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Framing {
    /// Avro's own: marker and fingerprint. Needs no registry.
    #[default]
    SingleObject,
    /// Confluent's: the number that a schema registry gave the schema.
    Confluent {
        /// That number.
        schema_id: u32,
    },
}

/// Why a record could not be written or read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The value is larger than [`MAX_ENCODED`].
    #[error("value of {size} bytes is over the limit of {MAX_ENCODED}")]
    TooLarge {
        /// Its size in bytes.
        size: usize,
    },
    /// The value does not start with the frame of this codec.
    #[error("value is not in the expected avro frame")]
    Frame,
    /// The value goes on after the record's end.
    #[error("{left} bytes after the end of the record")]
    Trailing {
        /// How many bytes are left.
        left: usize,
    },
    /// The value ends before the record does.
    #[error("the value ends before the record does")]
    Short,
    /// The Avro datum could not be written or read.
    #[error("avro")]
    Avro(#[source] Box<apache_avro::Error>),
    /// The JSON text could not be written or read.
    #[error("json")]
    Json(#[source] serde_json::Error),
    /// A field has a value that this version does not know.
    #[error("unknown value in field {name}")]
    Field {
        /// The field's name, as in the schema.
        name: &'static str,
    },
}

/// A record with a schema of its own.
pub trait Wire: Serialize + DeserializeOwned {
    /// The Avro schema.
    const SCHEMA: &'static str;
    /// Those that it had in earlier versions, whose records are read as well.
    const EARLIER: &'static [&'static str] = &[];
}

/// Writes and reads records of one kind in one format.
pub struct Codec<R> {
    /// The parsed schema.
    schema: Schema,
    /// The format.
    format: Format,
    /// What stands before an Avro datum.
    frame: Vec<u8>,
    /// The same of records of earlier versions, and the schemas. Earlier versions had other fingerprints for the same schema, too.
    earlier: Vec<(Vec<u8>, Schema)>,
    /// The kind of record.
    record: PhantomData<fn(R) -> R>,
}

/// Bytes in a record: themselves in Avro, base64 in JSON.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Blob(pub Bytes);

/// The end of a task.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Callback {
    /// The task's identity.
    pub id: String,
    /// The scene it followed, or nothing.
    pub scene: String,
    /// `work` or `callback`.
    pub kind: String,
    /// How it ended, in the words of [`Terminal::word`].
    pub outcome: String,
    /// Why, if it ended badly, in the words of [`Reason::word`].
    pub reason: Option<String>,
    /// How many attempts were made.
    pub attempts: i64,
    /// Where the task entered: `topic/partition/offset`.
    pub origin: String,
    /// When retide first saw it.
    pub first_failed_at: i64,
    /// When it ended.
    pub ended_at: i64,
    /// The class of what the last failed attempt said.
    pub error_class: Option<String>,
    /// The message of what the last failed attempt said.
    pub error_message: Option<String>,
    /// The key of the producer's record.
    pub key: Option<Blob>,
    /// What its failure has in common with others: see [`Ended::fingerprint`].
    pub fingerprint: Option<String>,
}

/// A [`Callback`] that is only written: it borrows what it can from the end it is made of.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CallbackLine<'a> {
    /// As [`Callback::id`], and so are the others.
    id: &'a str,
    /// The scene.
    scene: &'a str,
    /// The kind.
    kind: &'a str,
    /// The outcome.
    outcome: &'a str,
    /// The reason.
    reason: Option<&'a str>,
    /// The attempts.
    attempts: i64,
    /// The origin.
    origin: String,
    /// The first sight.
    first_failed_at: i64,
    /// The end.
    ended_at: i64,
    /// The class of the error.
    error_class: Option<&'a str>,
    /// The message of the error.
    error_message: Option<&'a str>,
    /// The key.
    key: Option<Blob>,
    /// The fingerprint.
    #[serde(serialize_with = "fingerprint")]
    fingerprint: Option<ErrorFingerprint>,
}

/// One transition of one task.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Event {
    /// The task's identity.
    pub id: String,
    /// The scene it follows, or nothing.
    pub scene: String,
    /// `work` or `callback`.
    pub kind: String,
    /// When it was decided.
    pub at: i64,
    /// What happened, in the words of [`Transition::word`].
    pub event: String,
    /// When the next attempt may start, if there is one; on `pending`, the limit of the attempt.
    pub due_at: Option<i64>,
    /// When a due task is looked at again whose gate was shut; on `deferred`.
    pub deferred_until: Option<i64>,
    /// Attempts made by now; on `failed`, `pending` and on ends.
    pub attempts: Option<i64>,
    /// Forwards by now; on `hopped`.
    pub hops: Option<i64>,
    /// What the target said; on `failed`. On `too-late`, the end that was there before; on `duplicate`, what became of it.
    pub outcome: Option<String>,
    /// Why it ended badly.
    pub reason: Option<String>,
    /// The class of what the attempt said; on `failed`. On `duplicate`, that word.
    pub error_class: Option<String>,
    /// The message of what the attempt said; on `failed`. On `duplicate`, where it stands, and what task has its id.
    pub error_message: Option<String>,
    /// How late the attempt was, by cause.
    pub lateness: Option<Lateness>,
    /// Headers of the record that the attempt went without, each with its reason.
    pub headers_left_out: Option<String>,
    /// The id of the command that it follows from.
    pub command: Option<String>,
    /// What the failure has in common with others; on `failed` and `held`, and on ends with a failure.
    pub fingerprint: Option<String>,
}

/// How late an attempt was, by cause, in microseconds: see [`Wait`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Lateness {
    /// As [`Wait::rebalance`], and so are the others.
    pub rebalance: i64,
    /// Late read.
    pub read: i64,
    /// Unseen in memory.
    pub agenda: i64,
    /// The time for others of its key.
    pub order: i64,
    /// The time for the rate.
    pub rate: i64,
    /// The time for the concurrency.
    pub concurrency: i64,
    /// The time for the breaker.
    pub breaker: i64,
    /// The time for room.
    pub room: i64,
    /// The time for a cooldown.
    pub cooldown: i64,
}

/// An [`Event`] that is only written: it borrows what it can from the event it is made of.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct EventLine<'a> {
    /// As [`Event::id`], and so are the others.
    id: &'a str,
    /// The scene.
    scene: &'a str,
    /// The kind.
    kind: &'a str,
    /// The time.
    at: i64,
    /// The event.
    event: &'a str,
    /// The due time.
    due_at: Option<i64>,
    /// The end of the deferral.
    deferred_until: Option<i64>,
    /// The attempts.
    attempts: Option<i64>,
    /// The hops.
    hops: Option<i64>,
    /// The outcome.
    outcome: Option<&'a str>,
    /// The reason.
    reason: Option<&'a str>,
    /// The class of the error.
    error_class: Option<&'a str>,
    /// The message of the error.
    error_message: Option<&'a str>,
    /// The lateness.
    lateness: Option<Lateness>,
    /// The headers left out.
    headers_left_out: Option<&'a str>,
    /// The command.
    command: Option<&'a str>,
    /// The fingerprint.
    #[serde(serialize_with = "fingerprint")]
    fingerprint: Option<ErrorFingerprint>,
}

/// What a human must know.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Alert {
    /// The rule that fired.
    pub rule: String,
    /// The scene it is about; of a breaker, that of the task whose call made it switch.
    pub scene: String,
    /// When it fired.
    pub at: i64,
    /// How many tasks it is about; of a breaker, how many calls.
    pub count: i64,
    /// The identity of one of those tasks.
    pub example: String,
    /// Why that one ended, in the words of [`Reason::word`]; of a breaker, why it has switched, in those of [`retide_core::breaker::TripReason::word`].
    pub reason: String,
    /// The target whose breaker has switched.
    pub target: Option<String>,
    /// How many of its calls failed.
    pub failed: Option<i64>,
    /// How many of its calls were slow.
    pub slow: Option<i64>,
    /// When the target was last well.
    pub since: Option<i64>,
    /// When it is called again, if it may not be called now; of dead letters, from when on the first may be deleted.
    pub until: Option<i64>,
    /// Some of the tasks that died, where that has made it switch; of dead letters, where the first stands: `partition/offset`.
    pub samples: Option<Vec<String>>,
}

/// The rules of one scene, as they were applied.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Scene {
    /// The scene's name.
    pub name: String,
    /// The rules, as the text of their configuration.
    pub rules: String,
    /// When they were applied.
    pub updated_at: i64,
}

// === impl Wire ===

impl Wire for Callback {
    const SCHEMA: &'static str = include_str!("../schemas/Callback.avsc");
    const EARLIER: &'static [&'static str] = &[include_str!("../schemas/earlier/Callback.1.avsc")];
}

impl Wire for Event {
    const SCHEMA: &'static str = include_str!("../schemas/Event.avsc");
    const EARLIER: &'static [&'static str] = &[
        include_str!("../schemas/earlier/Event.1.avsc"),
        include_str!("../schemas/earlier/Event.2.avsc"),
        include_str!("../schemas/earlier/Event.3.avsc"),
        include_str!("../schemas/earlier/Event.4.avsc"),
        include_str!("../schemas/earlier/Event.5.avsc"),
        include_str!("../schemas/earlier/Event.6.avsc"),
        include_str!("../schemas/earlier/Event.7.avsc"),
    ];
}

impl Wire for Alert {
    const SCHEMA: &'static str = include_str!("../schemas/Alert.avsc");
    const EARLIER: &'static [&'static str] = &[
        include_str!("../schemas/earlier/Alert.1.avsc"),
        include_str!("../schemas/earlier/Alert.2.avsc"),
    ];
}

impl Wire for Scene {
    const SCHEMA: &'static str = include_str!("../schemas/Scene.avsc");
}

// === impl Format ===

impl Format {
    /// The content type of a record in this format.
    pub const fn content_type(self) -> &'static str {
        match self {
            Self::Avro => CONTENT_TYPE_AVRO,
            Self::Json => CONTENT_TYPE_JSON,
        }
    }
}

// === impl Codec ===

impl<R: Wire> Codec<R> {
    /// A codec; the framing counts for Avro only.
    ///
    /// The Avro library keeps its allocation limit in a global that can be set once per process; the first codec sets it.
    pub fn new(format: Format, framing: Framing) -> Self {
        max_allocation_bytes(MAX_ENCODED);
        let parse = |text| Schema::parse_str(text).expect("the schemas of this crate are valid");
        let schema = parse(R::SCHEMA);
        let (frame, earlier) = match framing {
            Framing::SingleObject => {
                let [frame, former] = frames(R::SCHEMA);
                let mut earlier = vec![(former, schema.clone())];
                for text in R::EARLIER {
                    earlier.extend(frames(text).map(|frame| (frame, parse(text))));
                }
                (frame, earlier)
            }
            Framing::Confluent { schema_id } => {
                let frame = [&[CONFLUENT_MAGIC][..], &schema_id.to_be_bytes()].concat();
                (frame, Vec::new())
            }
        };
        Self {
            schema,
            format,
            frame,
            earlier,
            record: PhantomData,
        }
    }

    /// The format it writes and reads.
    pub const fn format(&self) -> Format {
        self.format
    }

    /// The bytes of `record`: an `R`, or something with the same fields, such as an [`EventLine`].
    pub fn encode(&self, record: &impl Serialize) -> Result<Vec<u8>, Error> {
        // Most records of retide's own fit.
        let mut bytes = Vec::with_capacity(256);
        self.encode_into(record, &mut bytes)?;
        Ok(bytes)
    }

    /// Appends the bytes of `record` to `bytes`; see [`Self::encode`].
    pub fn encode_into(&self, record: &impl Serialize, bytes: &mut Vec<u8>) -> Result<(), Error> {
        match self.format {
            Format::Avro => {
                bytes.extend_from_slice(&self.frame);
                write_avro_datum_ref(&self.schema, record, bytes)
                    .map_err(|error| Error::Avro(Box::new(error)))?;
                Ok(())
            }
            Format::Json => serde_json::to_writer(bytes, record).map_err(Error::Json),
        }
    }

    /// The record in `bytes`.
    pub fn decode(&self, bytes: &[u8]) -> Result<R, Error> {
        if bytes.len() > MAX_ENCODED {
            return Err(Error::TooLarge { size: bytes.len() });
        }
        match self.format {
            Format::Avro => {
                let (datum, writer) = self.unframe(bytes).ok_or(Error::Frame)?;
                self.read(datum, writer)
            }
            Format::Json => serde_json::from_slice(bytes).map_err(Error::Json),
        }
    }
}

impl<R: Wire> Codec<R> {
    /// The record in a datum that was written with this schema; ours, if there is none.
    fn read(&self, datum: &[u8], writer: Option<&Schema>) -> Result<R, Error> {
        let reader = writer.map(|_| &self.schema);
        let mut bytes = datum.chain(&BEHIND[..]);
        let value = from_avro_datum(writer.unwrap_or(&self.schema), &mut bytes, reader)
            .map_err(|error| Error::Avro(Box::new(error)))?;
        let (left, behind) = bytes.into_inner();
        if !left.is_empty() {
            return Err(Error::Trailing { left: left.len() });
        }
        if behind.len() < BEHIND.len() {
            return Err(Error::Short);
        }
        from_value(&value).map_err(|error| Error::Avro(Box::new(error)))
    }

    /// The record in `bytes` from a topic that only retide writes, whatever number its registry has given the schema, of whichever version.
    pub fn decode_own(&self, bytes: &[u8]) -> Result<R, Error> {
        let decoded = self.decode(bytes);
        if self.format != Format::Avro || bytes.len() > MAX_ENCODED {
            return decoded;
        }
        let (Err(_), [CONFLUENT_MAGIC, _, _, _, _, datum @ ..]) = (&decoded, bytes) else {
            return decoded;
        };
        let earlier = self.earlier.iter().map(|(_, schema)| Some(schema));
        let mut versions = [None].into_iter().chain(earlier);
        versions
            .find_map(|version| self.read(datum, version).ok())
            .ok_or(Error::Frame)
    }
}

impl<R> Codec<R> {
    /// The datum in `bytes`, and its schema if it is an earlier one.
    fn unframe<'a>(&self, bytes: &'a [u8]) -> Option<(&'a [u8], Option<&Schema>)> {
        if let Some(datum) = bytes.strip_prefix(&self.frame[..]) {
            return Some((datum, None));
        }
        let mut earlier = self.earlier.iter();
        earlier.find_map(|(frame, schema)| {
            let datum = bytes.strip_prefix(&frame[..])?;
            Some((datum, Some(schema)))
        })
    }
}

impl<R> fmt::Debug for Codec<R> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Codec")
            .field("format", &self.format)
            .field("frame", &self.frame)
            .finish_non_exhaustive()
    }
}

// === impl Blob ===

impl Serialize for Blob {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            serializer.serialize_str(&STANDARD.encode(&self.0))
        } else {
            serializer.serialize_bytes(&self.0)
        }
    }
}

impl<'de> Deserialize<'de> for Blob {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if deserializer.is_human_readable() {
            let text = String::deserialize(deserializer)?;
            let bytes = STANDARD.decode(text).map_err(de::Error::custom)?;
            Ok(Self(bytes.into()))
        } else {
            deserializer.deserialize_byte_buf(BlobVisitor)
        }
    }
}

/// Takes bytes as they come.
struct BlobVisitor;

impl Visitor<'_> for BlobVisitor {
    type Value = Blob;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("bytes")
    }

    fn visit_bytes<E: de::Error>(self, bytes: &[u8]) -> Result<Blob, E> {
        Ok(Blob(Bytes::copy_from_slice(bytes)))
    }

    fn visit_byte_buf<E: de::Error>(self, bytes: Vec<u8>) -> Result<Blob, E> {
        Ok(Blob(bytes.into()))
    }
}

// === conversions ===

impl From<&Ended> for Callback {
    fn from(ended: &Ended) -> Self {
        let (error_class, error_message) = error_fields(ended.failure.as_ref());
        Self {
            id: ended.id.to_string(),
            scene: ended.scene.to_string(),
            kind: kind_word(ended.kind).to_owned(),
            outcome: ended.terminal.word().to_owned(),
            reason: ended.reason.map(|reason| reason.word().to_owned()),
            attempts: ended.attempts.into(),
            origin: ended.origin.to_string(),
            first_failed_at: millis(ended.first_failed_at) as i64,
            ended_at: millis(ended.at) as i64,
            error_class,
            error_message,
            key: ended.key.clone().map(Blob),
            fingerprint: ended.fingerprint().map(|print| print.to_string()),
        }
    }
}

impl<'a> From<&'a Ended> for CallbackLine<'a> {
    fn from(ended: &'a Ended) -> Self {
        let failure = ended.failure.as_ref();
        Self {
            id: &ended.id,
            scene: &ended.scene,
            kind: kind_word(ended.kind),
            outcome: ended.terminal.word(),
            reason: ended.reason.map(Reason::word),
            attempts: ended.attempts.into(),
            origin: ended.origin.to_string(),
            first_failed_at: millis(ended.first_failed_at) as i64,
            ended_at: millis(ended.at) as i64,
            error_class: failure.map(|failure| &*failure.class),
            error_message: failure.map(|failure| &*failure.message),
            key: ended.key.clone().map(Blob),
            fingerprint: ended.fingerprint(),
        }
    }
}

impl TryFrom<Callback> for Ended {
    type Error = Error;

    fn try_from(callback: Callback) -> Result<Self, Error> {
        let field = |name| Error::Field { name };
        let reason = match callback.reason {
            Some(word) => Some(reason_of(&word).ok_or_else(|| field("reason"))?),
            None => None,
        };
        let failure = match (callback.error_class, callback.error_message) {
            (None, None) => None,
            (class, message) => Some(Failure::new(
                &class.unwrap_or_default(),
                &message.unwrap_or_default(),
            )),
        };
        Ok(Self {
            id: callback.id.into(),
            scene: callback.scene.into(),
            kind: kind_of(&callback.kind).ok_or_else(|| field("kind"))?,
            terminal: Terminal::from_word(&callback.outcome).ok_or_else(|| field("outcome"))?,
            reason,
            attempts: u32::try_from(callback.attempts).map_err(|_| field("attempts"))?,
            origin: origin_of(&callback.origin).ok_or_else(|| field("origin"))?,
            first_failed_at: instant(callback.first_failed_at)
                .ok_or_else(|| field("firstFailedAt"))?,
            at: instant(callback.ended_at).ok_or_else(|| field("endedAt"))?,
            failure,
            key: callback.key.map(|Blob(bytes)| bytes),
            omitted: Omitted::Nothing,
        })
    }
}

impl<'a> From<&'a retide_core::Event> for EventLine<'a> {
    fn from(event: &'a retide_core::Event) -> Self {
        let mut line = Self {
            id: &event.id,
            scene: &event.scene,
            kind: kind_word(event.kind),
            at: millis(event.at) as i64,
            event: event.transition.word(),
            due_at: None,
            deferred_until: None,
            attempts: None,
            hops: None,
            outcome: None,
            reason: None,
            error_class: None,
            error_message: None,
            lateness: event.wait.map(Lateness::from),
            headers_left_out: event.left_out.as_deref(),
            command: event.command.as_deref(),
            fingerprint: None,
        };
        let print =
            |failure: &Failure| Some(ErrorFingerprint::of_kind(event.kind, &event.scene, failure));
        match &event.transition {
            Transition::Parked { due } | Transition::Rescheduled { due } => {
                line.due_at = Some(millis(*due) as i64);
            }
            Transition::Replayed {
                campaign,
                times,
                shard: _,
            } => {
                line.outcome = Some(campaign);
                line.attempts = Some((*times).into());
            }
            Transition::TooLate { why } => line.outcome = Some(why),
            Transition::Duplicate { fate, told } => {
                line.outcome = Some(fate);
                line.error_class = Some(&told.class);
                line.error_message = Some(&told.message);
            }
            Transition::Deferred { due, until } => {
                line.due_at = Some(millis(*due) as i64);
                line.deferred_until = Some(millis(*until) as i64);
            }
            Transition::Hopped { due, hops } => {
                line.due_at = Some(millis(*due) as i64);
                line.hops = Some((*hops).into());
            }
            Transition::Pending { attempt, until } => {
                line.due_at = Some(millis(*until) as i64);
                line.attempts = Some((*attempt).into());
            }
            Transition::Failed {
                attempt,
                outcome,
                failure,
                due,
            } => {
                line.due_at = Some(millis(*due) as i64);
                line.attempts = Some((*attempt).into());
                line.outcome = Some(outcome);
                line.error_class = Some(&failure.class);
                line.error_message = Some(&failure.message);
                line.fingerprint = print(failure);
            }
            Transition::Held {
                attempt,
                outcome,
                failure,
                reason,
            } => {
                line.attempts = Some((*attempt).into());
                line.outcome = Some(outcome);
                line.reason = Some(reason.word());
                line.error_class = Some(&failure.class);
                line.error_message = Some(&failure.message);
                line.fingerprint = print(failure);
            }
            Transition::Ended {
                terminal: _,
                attempts,
                reason,
                fingerprint,
            } => {
                line.attempts = Some((*attempts).into());
                line.reason = reason.map(Reason::word);
                line.fingerprint = *fingerprint;
            }
        }
        line
    }
}

impl Lateness {
    /// Its parts by name, in the order in which they come; nothing is earlier than nothing.
    pub fn by_cause(&self) -> [(&'static str, u64); 9] {
        let part = |long: i64| u64::try_from(long).unwrap_or_default();
        let waited = Waited {
            order: part(self.order),
            rate: part(self.rate),
            concurrency: part(self.concurrency),
            breaker: part(self.breaker),
            room: part(self.room),
            cooldown: part(self.cooldown),
        };
        let wait = Wait {
            rebalance: part(self.rebalance),
            read: part(self.read),
            agenda: part(self.agenda),
            waited,
        };
        wait.by_cause()
    }
}

impl From<Wait> for Lateness {
    fn from(wait: Wait) -> Self {
        let Wait {
            rebalance,
            read,
            agenda,
            waited,
        } = wait;
        let long = |micros| i64::try_from(micros).unwrap_or(i64::MAX);
        Self {
            rebalance: long(rebalance),
            read: long(read),
            agenda: long(agenda),
            order: long(waited.order),
            rate: long(waited.rate),
            concurrency: long(waited.concurrency),
            breaker: long(waited.breaker),
            room: long(waited.room),
            cooldown: long(waited.cooldown),
        }
    }
}

impl From<&retide_core::Alert> for Alert {
    fn from(alert: &retide_core::Alert) -> Self {
        let target = alert.target.as_ref();
        let samples = || {
            let samples = &target?.samples;
            let samples = samples.iter().map(ToString::to_string);
            Some(samples.collect()).filter(|samples: &Vec<String>| !samples.is_empty())
        };
        let expiring = alert.expiring.as_ref();
        let place = || expiring.map(|it| vec![format!("{}/{}", it.partition, it.offset)]);
        Self {
            rule: alert.rule.to_owned(),
            scene: alert.scene.to_string(),
            at: millis(alert.at) as i64,
            count: alert.count.into(),
            example: alert.example.to_string(),
            reason: alert.reason.to_owned(),
            target: target.map(|target| target.name.to_string()),
            failed: target.map(|target| target.failed.into()),
            slow: target.map(|target| target.slow.into()),
            since: target.map(|target| millis(target.since) as i64),
            until: target
                .and_then(|target| target.until)
                .or_else(|| expiring.map(|it| it.at))
                .map(|until| millis(until) as i64),
            samples: samples().or_else(place),
        }
    }
}

/// What stands before a datum of a schema of this crate: the frame of Avro's specification, and the one that versions of retide wrote whose
/// library did not shorten a type whose logical type it had taken away.
fn frames(text: &str) -> [Vec<u8>; 2] {
    let valid = "the schemas of this crate are valid";
    let schema = schema::Schema::parse(text, &[]).expect(valid);
    let former = Schema::parse_str(text).expect(valid);
    let former = former.fingerprint::<Rabin>().bytes;
    [&schema.fingerprint()[..], &former].map(|print| [&SINGLE_OBJECT_MARKER[..], print].concat())
}

/// Class and message, as fields.
fn error_fields(failure: Option<&Failure>) -> (Option<String>, Option<String>) {
    failure.map_or((None, None), |failure| {
        (
            Some(failure.class.to_string()),
            Some(failure.message.to_string()),
        )
    })
}

/// Writes a fingerprint as its text.
#[allow(clippy::ref_option, reason = "serde passes a reference to the field")]
fn fingerprint<S: Serializer>(
    print: &Option<ErrorFingerprint>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    print.map(|print| print.to_string()).serialize(serializer)
}

/// The reason that `word` names, if it names one.
fn reason_of(word: &str) -> Option<Reason> {
    Reason::ALL.into_iter().find(|reason| reason.word() == word)
}

/// The instant in a field.
fn instant(millis: i64) -> Option<retide_core::Timestamp> {
    u64::try_from(millis)
        .ok()
        .map(retide_core::Timestamp::from_millis)
}
