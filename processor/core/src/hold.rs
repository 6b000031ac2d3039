//! Holds: tasks that people do not want started, until somebody lets them go.
//!
//! Not how a hold is written down, which is `retide-avro`'s, nor what becomes of a task that is held, which is the engine's
//! (`engine/held.rs`). Invariants: a hold names something and ends by itself; there are no more than [`MAX_HOLDS`].

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use xxhash_rust::xxh3::xxh3_64;

use crate::breaker;
use crate::forced::AllForced;
use crate::ramp::{Progress, Ramp};
use crate::scene::{OnExhausted, Scene, Scenes};
use crate::selector::{Parts, Selector};
use crate::task::Task;
use crate::time::Timestamp;

/// Tasks that are not to be started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hold {
    /// Its name.
    pub name: Arc<str>,
    /// Where the record stands that says so: a hold of the same name that is said anew is another one.
    pub revision: Revision,
    /// Which tasks.
    pub selector: Selector,
    /// Who wants it.
    pub by: Box<str>,
    /// Why.
    pub reason: Box<str>,
    /// Since when.
    pub since: Timestamp,
    /// When it ends by itself.
    pub until: Timestamp,
    /// How its tasks are let go; none if they are not.
    pub ramp: Option<Ramp>,
    /// What becomes of the deadlines of its tasks.
    pub deadlines: Deadlines,
    /// If it is that of a scene whose tasks are held when they are out of attempts: up to when people have let those go.
    pub released: Option<Timestamp>,
}

/// What becomes of the deadline of a task that is held.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Deadlines {
    /// It goes on, and the task expires at it.
    #[default]
    Run,
    /// It stands still as long as the task is due and held.
    Stop,
    /// It stood still while the hold was in force, which is over: whoever was due by then and nobody has looked at is later by that.
    Stood,
}

/// Where the record of a hold stands on its topic.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Revision {
    /// The partition.
    pub partition: i32,
    /// The offset.
    pub offset: i64,
}

/// What tells holds apart by their names, in as many bytes as a number has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HoldId(u64);

/// How a hold stands in a shard: what is written down of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// The hold that the owner of the shard has taken in.
    pub revision: Revision,
    /// How many due tasks it holds there, as far as the owner has seen them of late.
    pub waiting: u32,
    /// How far its ramp is there, if it has one.
    pub ramp: Option<Progress>,
    /// How the breakers of a target are there, if it is of those rather than of a hold: see [`crate::forced`].
    pub breaker: Option<breaker::State>,
}

/// The holds in force, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Holds {
    /// Those of people.
    asked: BTreeMap<Arc<str>, Arc<Hold>>,
    /// Those of tasks that are out of attempts, by scene.
    exhausted: BTreeMap<Arc<str>, Arc<Hold>>,
    /// What people want of breakers besides.
    forced: AllForced,
    /// Those that are over and let deadlines stand still, the last to end first.
    over: Vec<Arc<Hold>>,
}

/// Most holds at once: more than people look after, and a task that is due is compared with each of them.
pub const MAX_HOLDS: usize = 1_000;

/// How long it is remembered that a hold has let deadlines stand still: as long as the longest hold lasts, and far longer than the retry topic
/// keeps tasks that nobody reads.
pub const REMEMBERED: Duration = LONGEST;

/// Most holds of which that is remembered; beyond, those that ended first are forgotten.
pub const MAX_REMEMBERED: usize = MAX_HOLDS;

/// Longest name of a hold, in bytes: it is part of keys and events.
pub const MAX_NAME: usize = 100;

/// What the name of the hold of a scene's tasks begins with that are out of attempts. No name that people give has a slash in it.
pub const EXHAUSTED: &str = "exhausted/";

/// What stands before the name of a hold in the key of its record, and in an event, in the place of the command that it follows from. No name
/// of a scene has a slash in it.
pub const HOLD: &str = "hold/";

/// How long a hold lasts where nothing is said of that: long enough for a night, and for whoever comes back in the morning.
pub const LASTS: Duration = Duration::from_hours(24);

/// Longest time for which a hold may be asked for; it can be asked for again.
pub const LONGEST: Duration = Duration::from_hours(30 * 24);

// === impl Hold ===

impl Hold {
    /// What tells it apart.
    pub fn id(&self) -> HoldId {
        HoldId::of(&self.name)
    }

    /// The hold of a scene's tasks that are out of attempts, of which nobody has let any go.
    ///
    /// # Panics
    /// If the name of the scene is longer than a selector takes, which that of a scene in force is not.
    pub fn of_exhausted(scene: &Arc<str>) -> Self {
        let parts = Parts {
            scenes: BTreeSet::from([Arc::clone(scene)]),
            ..Parts::default()
        };
        Self {
            name: format!("{EXHAUSTED}{scene}").into(),
            revision: Revision::NONE,
            selector: Selector::new(parts).unwrap_or_else(|error| unreachable!("{error}")),
            by: Box::default(),
            reason: Box::default(),
            since: Timestamp::EPOCH,
            until: Timestamp::MAX,
            ramp: None,
            deadlines: Deadlines::Run,
            released: Some(Timestamp::EPOCH),
        }
    }

    /// Whether it is in force.
    pub fn is_on(&self, now: Timestamp) -> bool {
        now < self.until && self.deadlines != Deadlines::Stood
    }

    /// What is left of it when it ends at `now` at the latest, if anything is: that deadlines stood still.
    pub fn stood(&self, now: Timestamp) -> Option<Self> {
        (self.deadlines == Deadlines::Stop).then(|| {
            let since = self.since.as_millis().to_string();
            let most = MAX_NAME - 1 - since.len();
            let name = &self.name[..self.name.floor_char_boundary(most)];
            Self {
                name: format!("{name}@{since}").into(),
                until: self.until.min(now).ceil_to_millis(),
                ramp: None,
                deadlines: Deadlines::Stood,
                ..self.clone()
            }
        })
    }

    /// Whether it may be forgotten that it has let deadlines stand still.
    pub fn is_forgotten(&self, now: Timestamp) -> bool {
        self.until + REMEMBERED < now
    }

    /// The scene whose tasks it is of that are out of attempts, if it is of those.
    pub fn of_scene(&self) -> Option<&str> {
        self.released
            .and_then(|_| self.name.strip_prefix(EXHAUSTED))
    }

    /// Whether it is of tasks that are out of attempts, and nobody has said anything of it.
    pub fn is_unsaid(&self) -> bool {
        self.released == Some(Timestamp::EPOCH)
    }

    /// Whether a task that is out of attempts is held whatever the ramp lets through: nobody has let it go.
    fn keeps(&self, task: &Task) -> bool {
        let exhausted = task.exhausted.as_ref();
        self.released.is_some_and(|released| {
            exhausted.is_some_and(|last| last.is_held && last.at > released)
        })
    }

    /// Whether a task that it fits is held, or goes by its ramp.
    pub(crate) fn is_about(&self, task: &Task) -> bool {
        self.keeps(task) || (self.ramp.is_some() && task.is_exhausted())
    }

    /// The ramp that a task may go by.
    pub fn ramp_of(&self, task: &Task) -> Option<&Ramp> {
        self.ramp.as_ref().filter(|_| !self.keeps(task))
    }
}

// === impl Deadlines ===

impl Deadlines {
    /// The word for it.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Run => "run",
            Self::Stop => "stop",
            Self::Stood => "stood",
        }
    }

    /// What `word` says, if it is one of these.
    pub fn from_word(word: &str) -> Option<Self> {
        let all = [Self::Run, Self::Stop, Self::Stood];
        all.into_iter().find(|deadlines| deadlines.word() == word)
    }
}

// === impl HoldId ===

impl HoldId {
    /// The id of the hold of this name.
    pub fn of(name: &str) -> Self {
        Self(xxh3_64(name.as_bytes()))
    }

    /// The number.
    pub const fn get(self) -> u64 {
        self.0
    }
}

// === impl Revision ===

impl Revision {
    /// That of what stands nowhere: before every record.
    pub const NONE: Self = Self {
        partition: -1,
        offset: -1,
    };
}

impl fmt::Display for Revision {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}/{}", self.partition, self.offset)
    }
}

impl std::str::FromStr for Revision {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (partition, offset) = text.split_once('/').ok_or(())?;
        Ok(Self {
            partition: partition.parse().map_err(|_| ())?,
            offset: offset.parse().map_err(|_| ())?,
        })
    }
}

// === impl Holds ===

impl Holds {
    /// These, and what people want of breakers besides.
    #[must_use]
    pub fn with_forced(self, forced: AllForced) -> Self {
        Self { forced, ..self }
    }

    /// What people want of breakers.
    pub const fn forced(&self) -> &AllForced {
        &self.forced
    }

    /// The same, which is not there any more.
    pub fn take_forced(&mut self) -> AllForced {
        std::mem::take(&mut self.forced)
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.asked.is_empty() && self.exhausted.is_empty()
    }

    /// How many there are that people have asked for.
    pub fn len(&self) -> usize {
        self.asked.len()
    }

    /// Every hold.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Hold>> {
        self.asked.values().chain(self.exhausted.values())
    }

    /// The hold of this name.
    pub fn get(&self, name: &str) -> Option<&Arc<Hold>> {
        match name.strip_prefix(EXHAUSTED) {
            Some(scene) => self.exhausted.get(scene),
            None => self.asked.get(name),
        }
    }

    /// The hold of the tasks of this scene that are out of attempts, if such tasks are held.
    pub fn of_exhausted(&self, scene: &str) -> Option<&Arc<Hold>> {
        self.exhausted.get(scene)
    }

    /// The holds in force that a task is meant by, whose rules are these.
    pub fn of(
        &self,
        now: Timestamp,
        task: &Task,
        scene: &Scene,
    ) -> impl Iterator<Item = &Arc<Hold>> {
        let asked = self.asked.values();
        let asked =
            asked.filter(move |hold| hold.is_on(now) && hold.selector.fits(task, Some(scene)));
        let exhausted = task.exhausted.as_ref();
        let exhausted = exhausted.and_then(|_| self.exhausted.get(&scene.name));
        asked.chain(exhausted.filter(|hold| hold.is_about(task)))
    }

    /// Has a hold for the tasks that are out of attempts of each of these scenes that wants that. What people have said of others is kept: a
    /// scene may want it again.
    pub fn follow(&mut self, scenes: &Scenes) {
        let wants = |scene: &Scene| matches!(scene.on_exhausted, OnExhausted::Hold { .. });
        self.exhausted.retain(|name, hold| {
            !hold.is_unsaid() || scenes.get(name).is_some_and(|scene| wants(scene))
        });
        for scene in scenes.iter().filter(|scene| wants(scene)) {
            let name = &scene.name;
            if !self.exhausted.contains_key(name) {
                let hold = Hold::of_exhausted(name);
                self.exhausted.insert(Arc::clone(name), Arc::new(hold));
            }
        }
    }

    /// The first time at which one of them ends by itself.
    pub fn next_end(&self) -> Option<Timestamp> {
        self.asked.values().map(|hold| hold.until).min()
    }

    /// Takes those out that have ended, and gives their names.
    pub fn take_ended(&mut self, now: Timestamp) -> Vec<Arc<str>> {
        let ended = self.asked.extract_if(.., |_, hold| !hold.is_on(now));
        let ended: Vec<Arc<Hold>> = ended.map(|(_, hold)| hold).collect();
        let over = ended.iter().filter_map(|hold| hold.stood(now));
        self.over.extend(over.map(Arc::new));
        self.bound(now);
        ended.iter().map(|hold| Arc::clone(&hold.name)).collect()
    }

    /// Remembers what those before have let stand still that are not there any more.
    pub(crate) fn remember(&mut self, now: Timestamp, before: &Self) {
        for hold in before.asked.values() {
            let goes_on = self.asked.get(&hold.name);
            if goes_on.is_none_or(|other| other.revision != hold.revision) {
                self.over.extend(hold.stood(now).map(Arc::new));
            }
        }
        self.over.extend(before.over.iter().map(Arc::clone));
        self.bound(now);
    }

    /// Those that are over and have let the deadlines stand still of what was due before, from the first to the last.
    pub(crate) fn stood(
        &self,
        from: Timestamp,
        task: &Task,
        scene: &Scene,
    ) -> Vec<(Timestamp, Timestamp)> {
        let late = self.over.iter().take_while(|hold| hold.until > from);
        let of_task = late.filter(|hold| hold.selector.fits(task, Some(scene)));
        let mut stood: Vec<_> = of_task.map(|hold| (hold.since, hold.until)).collect();
        stood.sort_unstable();
        stood
    }

    /// When the last one has ended that let deadlines stand still.
    pub(crate) fn stood_to(&self) -> Timestamp {
        self.over
            .first()
            .map_or(Timestamp::EPOCH, |hold| hold.until)
    }

    /// Those that are over and have let deadlines stand still.
    pub fn over(&self) -> impl Iterator<Item = &Arc<Hold>> {
        self.over.iter()
    }

    /// Forgets that deadlines stood still, while that was.
    pub(crate) fn forget_stood(&mut self) {
        self.over.clear();
    }

    /// Of those that are over, leaves one of each, and what is to be remembered.
    fn bound(&mut self, now: Timestamp) {
        // Of what is told twice, the earlier end was told by somebody: the other was found out.
        self.over
            .sort_by(|one, other| (&one.name, one.until).cmp(&(&other.name, other.until)));
        self.over
            .dedup_by(|one, other| (&one.name, &one.selector) == (&other.name, &other.selector));
        self.over.retain(|hold| !hold.is_forgotten(now));
        self.over
            .sort_by(|one, other| (other.until, &one.name).cmp(&(one.until, &other.name)));
        self.over.truncate(MAX_REMEMBERED);
    }

    /// Takes out what people have said of tasks that are out of attempts.
    pub(crate) fn forget_releases(&mut self) {
        self.exhausted.clear();
    }

    /// Takes all of them out that people have asked for.
    pub fn clear(&mut self) {
        self.asked.clear();
    }
}

impl FromIterator<Arc<Hold>> for Holds {
    /// Of more than [`MAX_HOLDS`] that people have asked for, those that come first.
    fn from_iter<I: IntoIterator<Item = Arc<Hold>>>(holds: I) -> Self {
        let mut all = Self::default();
        for hold in holds {
            if hold.deadlines == Deadlines::Stood {
                all.over.push(hold);
            } else if let Some(scene) = hold.of_scene() {
                all.exhausted.insert(scene.into(), hold);
            } else if all.asked.len() < MAX_HOLDS || all.asked.contains_key(&hold.name) {
                all.asked.insert(Arc::clone(&hold.name), hold);
            }
        }
        all.bound(Timestamp::EPOCH);
        all
    }
}
