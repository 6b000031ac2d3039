//! The scenes topic: the rules of scenes, keyed by name, and holds, read from its beginning and followed live.
//!
//! Not the rules' meaning. Invariant: a record that cannot be read leaves its scene, or its hold, as it was.

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
use retide_config::{self as config, Scene};
use retide_core::forced::{AllForced, Forced, MAX_FORCED, MAX_TARGET};
use retide_core::hold::{Hold, Revision};
use retide_core::{Timestamp, with_causes};
use retide_kafka::follow;
use retide_kafka::record::{OutHeaders, OutRecord};
use retide_native as native;

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
    /// The scenes whose last record cannot be read, by name. Where there was one before that can be, that one counts on.
    unreadable: BTreeMap<String, Unreadable>,
    /// The scenes that were taken off the topic, as far as it still says so.
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
    /// Whose last record cannot be read. Where there was one before that can be, that one counts on.
    unreadable: BTreeMap<String, Unreadable>,
}

/// A record of a scene that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unreadable {
    /// Its partition.
    pub partition: i32,
    /// Its offset.
    pub offset: i64,
    /// What is wrong with it.
    pub error: String,
}

/// A change of one scene.
#[derive(Clone, Debug)]
pub enum Change {
    /// The scene has these rules.
    Put(String, Box<Scene>),
    /// The scene is no more.
    Delete(String),
    /// What the scene is now cannot be read.
    Spoil(String, Unreadable),
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
            unreadable: BTreeMap::new(),
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

    /// The scenes whose last record cannot be read, by name.
    pub fn unreadable(&self) -> &BTreeMap<String, Unreadable> {
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
    pub fn unreadable_forced(&self) -> &BTreeMap<String, Unreadable> {
        &self.known.forced.unreadable
    }

    /// The holds whose last record cannot be read, by name.
    pub fn unreadable_holds(&self) -> &BTreeMap<String, Unreadable> {
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
        let Revision { partition, offset } = revision;
        if target.len() > MAX_TARGET {
            warn!(
                bytes = target.len(),
                partition, offset, "breaker not forced: no target has so long a name"
            );
            return false;
        }
        let shown = String::from_utf8_lossy(target).into_owned();
        let changed = if let Some(value) = message.payload() {
            let read = forced::decode(target, value, at, revision);
            match read.and_then(|read| self.room_for(&shown, at).map(|()| read)) {
                Ok(read) => {
                    let until = read.until.as_millis();
                    let (by, reason, state) = (&*read.by, &*read.reason, read.force.word());
                    info!(target = shown, state, by, reason, until, "breaker forced");
                    self.forced.put(shown, read)
                }
                Err(error) => {
                    warn!(%error, target = shown, partition, offset, "breaker not forced: its record does not count");
                    let unreadable = &self.forced.unreadable;
                    let has_room = unreadable.len() < MAX_FORCED || unreadable.contains_key(&shown);
                    has_room && self.forced.spoil(shown, revision, error)
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

    /// Makes room for what people want of one more target, as far as something else has ended by itself.
    fn room_for(&mut self, target: &str, at: Timestamp) -> Result<(), Box<str>> {
        let forced = &mut self.forced.counts;
        if forced.len() < MAX_FORCED || forced.contains_key(target) {
            return Ok(());
        }
        forced.retain(|_, forced| forced.is_on(at));
        if forced.len() < MAX_FORCED {
            return Ok(());
        }
        Err(format!("there are {MAX_FORCED} already, as many as may be").into())
    }

    /// Takes the record of a hold in; true if it changes anything.
    fn take_hold(&mut self, name: &[u8], message: &BorrowedMessage<'_>) -> bool {
        let (revision, at) = place(message);
        let Revision { partition, offset } = revision;
        let shown = String::from_utf8_lossy(name).into_owned();
        let Some(value) = message.payload() else {
            let (is_gone, changed) = self.holds.remove(&shown);
            if is_gone {
                info!(hold = shown, "hold released");
            }
            return changed;
        };
        match hold::decode(name, value, at, revision) {
            Ok(read) => {
                let until = read.until.as_millis();
                let (by, reason) = (&*read.by, &*read.reason);
                info!(hold = shown, by, reason, until, "hold read");
                self.holds.put(shown, read)
            }
            Err(error) => {
                warn!(%error, hold = shown, partition, offset, "hold ignored: it cannot be read");
                self.holds.spoil(shown, revision, error)
            }
        }
    }

    /// What a record says, if it can be read.
    fn change(&self, message: &BorrowedMessage<'_>) -> Option<Change> {
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
            });
        match scene {
            Ok(scene) => Some(Change::Put(name.to_owned(), Box::new(scene))),
            Err(error) => {
                warn!(%error, scene = name, partition, offset, "scene ignored: it cannot be read");
                let unreadable = Unreadable {
                    partition,
                    offset,
                    error,
                };
                Some(Change::Spoil(name.to_owned(), unreadable))
            }
        }
    }

    /// Takes a change in; true if it changes anything.
    fn apply(&mut self, change: Change) -> bool {
        match change {
            Change::Put(name, scene) => {
                self.gone.remove(&name);
                let mended = self.unreadable.remove(&name).is_some();
                if self.scenes.get(&name) == Some(&scene) {
                    return mended;
                }
                info!(scene = name, "scene read");
                self.scenes.insert(name, *scene);
                true
            }
            Change::Delete(name) => {
                let spoiled = self.unreadable.remove(&name).is_some();
                let known = self.scenes.remove(&name).is_some();
                if known {
                    info!(scene = name, "scene deleted");
                }
                self.gone.insert(name) || known || spoiled
            }
            Change::Spoil(name, unreadable) => {
                self.gone.remove(&name);
                let before = self.unreadable.insert(name, unreadable.clone());
                before != Some(unreadable)
            }
        }
    }
}

// === impl Said ===

impl<T> Said<T> {
    /// Takes in what is said now: it changes something.
    fn put(&mut self, name: String, said: T) -> bool {
        self.unreadable.remove(&name);
        self.counts.insert(name, Arc::new(said));
        true
    }

    /// Takes in that nothing is said any more: whether anything was, and whether that changes anything.
    fn remove(&mut self, name: &str) -> (bool, bool) {
        let was_unreadable = self.unreadable.remove(name).is_some();
        let is_gone = self.counts.remove(name).is_some();
        (is_gone, is_gone || was_unreadable)
    }

    /// Takes in that the last record cannot be read; true if that changes anything.
    fn spoil(&mut self, name: String, at: Revision, error: Box<str>) -> bool {
        let unreadable = Unreadable {
            partition: at.partition,
            offset: at.offset,
            error: error.into(),
        };
        let before = self.unreadable.insert(name, unreadable.clone());
        before != Some(unreadable)
    }
}

impl<T> Default for Said<T> {
    fn default() -> Self {
        Self {
            counts: BTreeMap::new(),
            unreadable: BTreeMap::new(),
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
