//! The scenes topic: the rules of scenes, keyed by name, and holds, read from its beginning and followed live.
//!
//! Not the rules' meaning. Invariant: a record that cannot be read leaves its scene, or its hold, as it was.

mod unreadable;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use rdkafka::ClientConfig;
use rdkafka::error::KafkaError;
use rdkafka::message::{BorrowedMessage, Message};
use tracing::{info, warn};

use retide_avro::control::{forced, hold};
use retide_avro::headers::{CONTENT_TYPE, is_named};
use retide_avro::wire::{self, Codec, Format, Framing};
use retide_config::scene::MAX_NAME;
use retide_config::{self as config, Scene};
use retide_core::forced::{AllForced, Forced, MAX_FORCED};
use retide_core::hold::{Hold, Revision};
use retide_core::{Timestamp, with_causes};
use retide_kafka::follow;
use retide_kafka::record::{OutHeaders, OutRecord};
use retide_native as native;

pub use self::unreadable::{Unreadable, Unreadables};

/// Follows the scenes of the topic.
pub struct Follower {
    /// Follows the topic.
    topic: follow::Follower,
    /// The scenes.
    known: Known,
}

/// The scenes of the topic, as far as they were read.
struct Known {
    /// Reads records in Avro.
    avro: Codec<wire::Scene>,
    /// Reads records in JSON.
    json: Codec<wire::Scene>,
    /// The scenes by name.
    scenes: BTreeMap<String, Scene>,
    /// The bytes of their rules, by name, and in all.
    room: Room,
    /// The scenes whose last record cannot be read. Where there was one before that can be, that one counts on.
    unreadable: Unreadables,
    /// The scenes that were taken off the topic, as far as it still says so, at most [`MOST`].
    gone: BTreeSet<String>,
    /// The holds by name.
    holds: Said<Hold>,
    /// What people want of breakers, by target.
    forced: Said<Forced>,
    /// How often that has changed.
    forced_version: u64,
}

/// What is said of one kind of thing, by its name.
struct Said<T> {
    /// What counts.
    counts: BTreeMap<String, Arc<T>>,
    /// The bytes that it was said in.
    room: Room,
    /// Whose last record cannot be read. Where there was one before that can be, that one counts on.
    unreadable: Unreadables,
}

/// How much is said of one kind of thing.
#[derive(Default)]
struct Room {
    /// The bytes of the record of each name.
    bytes: BTreeMap<String, usize>,
    /// Their sum.
    sum: usize,
}

/// A change of one scene.
#[derive(Clone, Debug)]
pub enum Change {
    /// The scene has these rules.
    Put(String, Box<Scene>),
    /// The scene is no more.
    Delete(String),
    /// What the scene is now cannot be read, for this reason.
    Spoil(String, Revision, String),
}

/// Why scenes could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Kafka cannot be reached, or refuses.
    #[error("scenes topic {topic}")]
    Kafka {
        /// The topic.
        topic: String,
        /// What Kafka or its client says.
        #[source]
        source: KafkaError,
    },
    /// The topic does not exist.
    #[error("topic {topic} does not exist; `retide init` creates it")]
    Missing {
        /// The topic.
        topic: String,
    },
    /// The topic's end was not reached in time.
    #[error("topic {topic} not read within {} s", LOAD.as_secs())]
    Slow {
        /// The topic.
        topic: String,
    },
    /// A scene cannot be written as text.
    #[error("scene {name}: {message}")]
    Encode {
        /// The scene.
        name: String,
        /// Why not.
        message: String,
    },
}

/// Most scenes, and most holds: far more than people look after. Holds that count are fewer, see [`MAX_HOLDS`](retide_core::hold::MAX_HOLDS).
const MOST: usize = 10_000;

/// Most bytes of the records that they are said in, of each kind: hundreds of the largest, or as many as may be of a few kilobytes.
const MOST_BYTES: usize = 64 << 20;

/// Longest time for reading all scenes: compacted, they are few.
const LOAD: Duration = Duration::from_secs(30);

// === impl Follower ===

impl Follower {
    /// Reads the scenes that the topic holds now. The group is that of the workers: its name is one that they may ask for.
    pub fn start(config: &ClientConfig, topic: &str, group: &str) -> Result<Self, Error> {
        let mut known = Known {
            avro: Codec::new(Format::Avro, Framing::SingleObject),
            json: Codec::new(Format::Json, Framing::SingleObject),
            scenes: BTreeMap::new(),
            room: Room::default(),
            unreadable: Unreadables::default(),
            gone: BTreeSet::new(),
            holds: Said::default(),
            forced: Said::default(),
            forced_version: 0,
        };
        let followed =
            follow::Follower::start(config, (topic, group), Instant::now() + LOAD, |message| {
                known.take(message);
            });
        let named = topic.to_owned();
        match followed {
            Ok(topic) => Ok(Self { topic, known }),
            Err(follow::Error::Kafka(source)) => Err(Error::Kafka {
                topic: named,
                source,
            }),
            Err(follow::Error::Missing) => Err(Error::Missing { topic: named }),
            Err(follow::Error::Slow) => Err(Error::Slow { topic: named }),
        }
    }

    /// The scenes by name.
    pub fn scenes(&self) -> &BTreeMap<String, Scene> {
        &self.known.scenes
    }

    /// The scenes whose last record cannot be read.
    pub fn unreadable(&self) -> &Unreadables {
        &self.known.unreadable
    }

    /// The scenes that were taken off the topic, as far as it still says so.
    pub fn gone(&self) -> &BTreeSet<String> {
        &self.known.gone
    }

    /// The holds by name, also those that have ended by themselves.
    pub fn holds(&self) -> &BTreeMap<String, Arc<Hold>> {
        &self.known.holds.counts
    }

    /// What people want of breakers, by target, also what has ended by itself.
    pub fn forced(&self) -> &BTreeMap<String, Arc<Forced>> {
        &self.known.forced.counts
    }

    /// The same, for workers.
    pub(crate) fn all_forced(&self) -> AllForced {
        let all = self.known.forced.counts.values().map(Arc::clone);
        all.collect::<AllForced>()
            .at_version(self.known.forced_version)
    }

    /// The targets of whose breakers something is wanted that cannot be read.
    pub fn unreadable_forced(&self) -> &Unreadables {
        &self.known.forced.unreadable
    }

    /// The holds whose last record cannot be read.
    pub fn unreadable_holds(&self) -> &Unreadables {
        &self.known.holds.unreadable
    }

    /// Waits a short while for changes; true if there were any.
    pub fn follow(&mut self) -> bool {
        let mut changed = false;
        let known = &mut self.known;
        self.topic.follow(|message| changed |= known.take(message));
        changed
    }
}

// === impl Known ===

impl Known {
    /// Takes a record in; true if it changes anything.
    fn take(&mut self, message: &BorrowedMessage<'_>) -> bool {
        if let Some(target) = message.key().and_then(forced::target_of) {
            return self.take_forced(target, message);
        }
        if let Some(name) = message.key().and_then(hold::name_of) {
            return self.take_hold(name, message);
        }
        self.change(message)
            .is_some_and(|change| self.apply(change))
    }

    /// Takes in what people want of breakers; true if it changes anything.
    fn take_forced(&mut self, target: &[u8], message: &BorrowedMessage<'_>) -> bool {
        let (revision, at) = place(message);
        let shown = String::from_utf8_lossy(target).into_owned();
        let changed = if let Some(value) = message.payload() {
            let read = forced::decode(target, value, at, revision);
            let bytes = value.len();
            let forced = &mut self.forced;
            match read.and_then(|read| {
                forced.make_room(&shown, (MAX_FORCED, bytes), |one| one.is_on(at))?;
                Ok(read)
            }) {
                Ok(read) => {
                    let until = read.until.as_millis();
                    let (by, reason, state) = (&*read.by, &*read.reason, read.force.word());
                    info!(target = shown, state, by, reason, until, "breaker forced");
                    self.forced.put(shown, read)
                }
                Err(error) => {
                    let (changed, told) = self.forced.unreadable.insert(&shown, revision, &error);
                    if let Some(Unreadable {
                        partition,
                        offset,
                        error,
                    }) = told
                    {
                        warn!(%error, target = shown, partition, offset, "breaker not forced: its record does not count");
                    }
                    changed
                }
            }
        } else {
            let (is_gone, changed) = self.forced.remove(&shown);
            if is_gone {
                info!(target = shown, "breaker left to itself");
            }
            changed
        };
        self.forced_version += u64::from(changed);
        changed
    }

    /// Takes the record of a hold in; true if it changes anything.
    fn take_hold(&mut self, name: &[u8], message: &BorrowedMessage<'_>) -> bool {
        let (revision, at) = place(message);
        let shown = String::from_utf8_lossy(name).into_owned();
        let Some(value) = message.payload() else {
            let (is_gone, changed) = self.holds.remove(&shown);
            if is_gone {
                info!(hold = shown, "hold released");
            }
            return changed;
        };
        let bytes = value.len();
        let holds = &mut self.holds;
        let read = hold::decode(name, value, at, revision).and_then(|read| {
            holds.make_room(&shown, (MOST, bytes), |one| one.is_on(at))?;
            Ok(read)
        });
        match read {
            Ok(read) => {
                let until = read.until.as_millis();
                let (by, reason) = (&*read.by, &*read.reason);
                info!(hold = shown, by, reason, until, "hold read");
                self.holds.put(shown, read)
            }
            Err(error) => {
                let (changed, told) = self.holds.unreadable.insert(&shown, revision, &error);
                if let Some(Unreadable {
                    partition,
                    offset,
                    error,
                }) = told
                {
                    warn!(%error, hold = shown, partition, offset, "hold ignored: it cannot be read");
                }
                changed
            }
        }
    }

    /// What a record says, if it can be read.
    fn change(&mut self, message: &BorrowedMessage<'_>) -> Option<Change> {
        let (partition, offset) = (message.partition(), message.offset());
        let Some(name) = message.key().and_then(|key| str::from_utf8(key).ok()) else {
            warn!(partition, offset, "scene ignored: its key is no name");
            return None;
        };
        let Some(value) = message.payload() else {
            return Some(Change::Delete(name.to_owned()));
        };
        let codec = if is_json(message) {
            &self.json
        } else {
            &self.avro
        };
        let scene = codec
            .decode(value)
            .map_err(|error| with_causes(&error))
            .and_then(|scene| {
                config::rules(name, scene.rules)
                    .map_err(|error| with_causes(&error).replace('\n', "; "))
            })
            .and_then(|scene| self.room.take(name, (MOST, value.len())).map(|()| scene));
        Some(match scene {
            Ok(scene) => Change::Put(name.to_owned(), Box::new(scene)),
            Err(error) => {
                let at = Revision { partition, offset };
                Change::Spoil(name.to_owned(), at, error)
            }
        })
    }

    /// Takes a change in; true if it changes anything.
    fn apply(&mut self, change: Change) -> bool {
        match change {
            Change::Put(name, scene) => {
                self.gone.remove(&name);
                let mended = self.unreadable.remove(&name);
                if self.scenes.get(&name) == Some(&scene) {
                    return mended;
                }
                info!(scene = name, "scene read");
                self.scenes.insert(name, *scene);
                true
            }
            Change::Delete(name) => {
                self.room.leave(&name);
                let spoiled = self.unreadable.remove(&name);
                let known = self.scenes.remove(&name).is_some();
                if known {
                    info!(scene = name, "scene deleted");
                }
                let is_name = name.len() <= MAX_NAME && self.gone.len() < MOST;
                (is_name && self.gone.insert(name)) || known || spoiled
            }
            Change::Spoil(name, at, error) => {
                self.gone.remove(&name);
                let (changed, told) = self.unreadable.insert(&name, at, &error);
                if let Some(Unreadable {
                    partition,
                    offset,
                    error,
                }) = told
                {
                    warn!(%error, scene = name, partition, offset, "scene ignored: it cannot be read");
                }
                changed
            }
        }
    }
}

// === impl Said ===

impl<T> Said<T> {
    /// Makes room for one that is said in so many bytes, where there may be so many, by letting go of those that are not `on`.
    fn make_room(
        &mut self,
        name: &str,
        most: (usize, usize),
        is_on: impl Fn(&T) -> bool,
    ) -> Result<(), Box<str>> {
        if self.room.take(name, most).is_ok() {
            return Ok(());
        }
        let room = &mut self.room;
        self.counts.retain(|name, one| {
            let stays = is_on(one);
            if !stays {
                room.leave(name);
            }
            stays
        });
        Ok(room.take(name, most)?)
    }

    /// Takes in what is said now, for which there is room: it changes something.
    fn put(&mut self, name: String, said: T) -> bool {
        self.unreadable.remove(&name);
        self.counts.insert(name, Arc::new(said));
        true
    }

    /// Takes in that nothing is said any more: whether anything was, and whether that changes anything.
    fn remove(&mut self, name: &str) -> (bool, bool) {
        self.room.leave(name);
        let was_unreadable = self.unreadable.remove(name);
        let is_gone = self.counts.remove(name).is_some();
        (is_gone, is_gone || was_unreadable)
    }
}

// === impl Room ===

impl Room {
    /// Takes room for what is said of a name now, in so many bytes, where there may be `most` names.
    fn take(&mut self, name: &str, (most, bytes): (usize, usize)) -> Result<(), String> {
        let before = self.bytes.get(name).copied();
        if before.is_none() && self.bytes.len() >= most {
            return Err(format!("there are {most} already, as many as may be"));
        }
        let sum = self.sum - before.unwrap_or_default() + bytes;
        if sum > MOST_BYTES {
            return Err(format!(
                "with it they have {sum} bytes; all of them together may have {MOST_BYTES}"
            ));
        }
        self.sum = sum;
        match self.bytes.get_mut(name) {
            Some(known) => *known = bytes,
            None => {
                self.bytes.insert(name.to_owned(), bytes);
            }
        }
        Ok(())
    }

    /// Gives back the room of a name.
    fn leave(&mut self, name: &str) {
        self.sum -= self.bytes.remove(name).unwrap_or_default();
    }
}

impl<T> Default for Said<T> {
    fn default() -> Self {
        Self {
            counts: BTreeMap::new(),
            room: Room::default(),
            unreadable: Unreadables::default(),
        }
    }
}

/// Where a record stands, and when it was appended.
fn place(message: &BorrowedMessage<'_>) -> (Revision, Timestamp) {
    let revision = Revision {
        partition: message.partition(),
        offset: message.offset(),
    };
    let at = message.timestamp().to_millis();
    let at = at.and_then(|millis| u64::try_from(millis).ok());
    (revision, Timestamp::from_millis(at.unwrap_or_default()))
}

/// The record that puts a scene on the topic.
pub fn put(
    topic: &Arc<str>,
    format: Format,
    name: &str,
    scene: &Scene,
    now: Timestamp,
) -> Result<OutRecord, Error> {
    let encode = |message: String| Error::Encode {
        name: name.to_owned(),
        message,
    };
    let record = wire::Scene {
        name: name.to_owned(),
        rules: toml::to_string(scene).map_err(|error| encode(error.to_string()))?,
        updated_at: i64::try_from(now.as_millis()).unwrap_or(i64::MAX),
    };
    let value = Codec::<wire::Scene>::new(format, Framing::SingleObject)
        .encode(&record)
        .map_err(|error| encode(with_causes(&error)))?;
    let mut headers = OutHeaders::default();
    headers.push(
        CONTENT_TYPE.as_bytes(),
        Some(format.content_type().as_bytes()),
    );
    Ok(OutRecord {
        value: Some(value.into()),
        headers,
        ..delete(topic, name)
    })
}

/// The record that takes a scene off the topic.
pub fn delete(topic: &Arc<str>, name: &str) -> OutRecord {
    OutRecord {
        topic: Arc::clone(topic),
        partition: None,
        key: Some(Bytes::copy_from_slice(name.as_bytes())),
        value: None,
        headers: OutHeaders::default(),
    }
}

/// Whether a record says that it is in JSON.
fn is_json(message: &BorrowedMessage<'_>) -> bool {
    native::headers::read(message).is_ok_and(|headers| {
        headers.iter().any(|(name, value)| {
            is_named(name, CONTENT_TYPE) && value == Some(wire::CONTENT_TYPE_JSON.as_bytes())
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_is_bounded_in_number_and_bytes_and_what_has_ended_makes_room() {
        let mut said: Said<bool> = Said::default();
        let mut say = |name: &str, bytes, is_on: bool| {
            let room = said.make_room(name, (2, bytes), |one| *one);
            room.map(|()| said.put(name.to_owned(), is_on))
        };

        assert!(say("a", MOST_BYTES, true).is_ok());
        assert!(say("b", 1, true).unwrap_err().contains("67108864"));
        assert!(say("a", 10, true).is_ok());
        assert!(say("b", 1, true).is_ok());
        assert!(say("c", 1, true).unwrap_err().contains("2 already"));
        assert!(say("a", MOST_BYTES, true).is_err());
        assert!(say("b", 1, false).is_ok());
        assert!(say("c", 1, true).is_ok());
        assert!(said.counts.keys().eq(["a", "c"]));
        assert_eq!(said.remove("c"), (true, true));
        assert_eq!(said.room.sum, 10);
    }
}
