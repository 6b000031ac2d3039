//! Records whose schema a registry has to be asked for: they are set aside, and taken back once there is an answer.
//!
//! Not the questions, which are the registry's. Invariant: where too many wait, their lane stands still.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use retide_avro::schemas::Key;
use retide_core::{Input, LaneId, Now, Position, Source};

use crate::registry::Registry;
use crate::trouble::{Effect, Kind, Trouble};
use crate::worker::drive::{BEAT, State};
use crate::worker::feed::{Read, Request};
use crate::worker::ledger::Ledger;

/// Time between two looks at what a registry has said: it answers within milliseconds as a rule.
pub(super) const ASK: Duration = Duration::from_millis(5);

// === impl State ===

impl<L: Ledger> State<L> {
    /// Whether a record cannot be read before a registry has said what its schema is, or comes behind one of its key. It is set aside, or
    /// its lane stands still where too many are: what comes behind it is read again then.
    pub(super) fn has_to_wait(&mut self, now: Now, read: &Read) -> bool {
        let (Some(registry), Ok(record)) = (&self.parts.registry, &read.record) else {
            return false;
        };
        let lane = read.position.lane;
        if lane.source != Source::Tasks {
            return false;
        }
        let asks = self.parts.topics.intake.asks(record);
        let before = || self.unnamed.before(lane, record.key.as_ref());
        let Some(key) = asks.or_else(before) else {
            return false;
        };
        registry.ask(key);
        if self.unnamed.has_room(lane) {
            let (position, bytes) = (read.position, record.memory_size() + size_of::<Read>());
            self.step_at(now, Input::SetAside { position, bytes });
            // It may be known to be complete.
            if self.parts.engine.is_aside(lane, position.offset) {
                self.unnamed.set_aside(read.clone(), key, bytes);
            }
            return true;
        }
        self.unnamed.wait(read.position, key);
        if !self.paused.contains_key(&lane) {
            self.parts.feed.request(Request::Pause { lane });
        }
        true
    }

    /// Takes records back that can be read now, reads lanes on that stood still, and says what the others wait for.
    pub(super) fn read_what_is_named(&mut self) {
        let Some(registry) = &self.parts.registry else {
            return;
        };
        let (now, answers) = (Instant::now(), registry.answers());
        if !self.unnamed.is_to_look() || (answers == self.answers && now < self.ask_at) {
            return;
        }
        let registry = registry.clone();
        self.answers = answers;
        self.ask_at = now + BEAT;
        let (shards, intake) = (&self.shards, &self.parts.topics.intake);
        self.unnamed.keep(|lane| shards.contains_key(&lane.shard));
        let schemas = &intake.schemas;
        let back = self.unnamed.take_back(|key| schemas.meaning(key).is_some());
        for (lane, key) in self.unnamed.waiting() {
            if schemas.meaning(key).is_none() && !self.unnamed.has_room(lane) {
                continue;
            }
            let Position { run, offset, .. } = self.unnamed.go_on(lane);
            // One that the engine has paused reads on when the engine says so.
            if self.paused.contains_key(&lane) {
                self.unnamed.forget(lane);
            } else {
                let next = offset;
                self.parts.feed.request(Request::Resume { lane, run, next });
            }
        }
        let mut failure = None;
        for (lane, key) in self.unnamed.wanted() {
            registry.ask(key);
            failure = failure.or_else(|| Some((lane, key, registry.failure(key)?)));
        }
        self.tell_registry(&registry, failure);
        let now = self.now();
        for read in back {
            self.record(now, read);
        }
        self.hand.empty();
    }

    /// Tells people what waits for a registry, if it has not answered one question at least.
    fn tell_registry(&mut self, registry: &Registry, failure: Option<(LaneId, Key, Arc<str>)>) {
        let stands = self.unnamed.waiting().len();
        let away = failure.map(|(lane, key, why)| {
            let records = self.unnamed.count();
            let mut says = format!(
                "{records} records of the retry topic wait for it, one of partition {} for {key}: {why}",
                lane.shard
            );
            if stands > 0 {
                let _ = write!(
                    says,
                    "; {stands} partitions stand still, since too many of their records wait"
                );
            }
            Trouble {
                kind: Kind::RegistryAway,
                subject: registry.address().to_owned(),
                says,
                fix: Some(
                    "see to the registry, or name the schema in [schemas] ids and start again"
                        .to_owned(),
                ),
                effect: if stands > 0 {
                    Effect::Stops
                } else {
                    Effect::Limits
                },
            }
        });
        // While a question is on its way, nothing has changed.
        if away.is_some() || !self.unnamed.is_any() {
            self.unnamed.told(away.is_some());
            self.troubles.only(Kind::RegistryAway, away);
        }
    }
}
