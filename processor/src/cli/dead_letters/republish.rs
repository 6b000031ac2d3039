//! A replay whose tasks are produced to a topic, such as that where their records were before they failed: everybody who reads it gets them
//! again.
//!
//! Not how that is done, which is what a scene with a Kafka target does. Invariant: nothing is sent to a topic before its readers were named,
//! and somebody has said that it shall.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::Serialize;

use retide_avro::foreign::Foreign;
use retide_config::Config;
use retide_core::scene::Target;
use retide_kafka::cluster::User;
use retide_kafka::cluster::standing::{ReadingGroup, ReadingGroups, reading_groups};
use retide_shell::rules::merged;

use crate::cli::output::{Exit, Failed, say};
use crate::cli::reach::{failed, reach, scenes_of, topics};

use super::find::{self, Found};

/// The topic that a replay produces to, and who reads it.
pub(super) struct Republish {
    /// The topic.
    topic: Arc<str>,
    /// The groups that read it.
    readers: ReadingGroups,
    /// Of letters whose records did not come from there: where they came from, and how many.
    elsewhere: BTreeMap<Arc<str>, u64>,
}

/// The same, as it is printed for programs.
#[derive(Serialize)]
pub(super) struct Said<'a> {
    /// The topic.
    topic: &'a str,
    /// The groups that read it.
    groups: Vec<Group<'a>>,
    /// Groups of which nobody knows whether they read it.
    unknown_groups: usize,
    /// Of letters whose records did not come from there: where they came from, and how many.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    elsewhere: &'a BTreeMap<Arc<str>, u64>,
}

/// A group that reads the topic.
#[derive(Serialize)]
struct Group<'a> {
    /// The group.
    group: &'a str,
    /// Its members that read it now.
    members: usize,
}

/// What a scene for it looks like.
const SCENE: &str = "target = { kafka = { topic = \"TOPIC\" } }";

// === impl Republish ===

impl Republish {
    /// What the options mean: the topic of the scene that tasks are to follow, if it has one. Fails if that was not asked for, or was and
    /// cannot be.
    pub(super) fn of(
        config: &Config,
        to_scene: Option<&str>,
        is_asked: bool,
    ) -> Result<Option<Self>, Failed> {
        let Some(name) = to_scene else {
            return Ok(None);
        };
        let Some(topic) = produced_to(config, name, is_asked)? else {
            return Ok(None);
        };
        let republish = Self {
            readers: find_readers(config, &topic)?,
            topic,
            elsewhere: BTreeMap::new(),
        };
        if is_asked {
            return Ok(Some(republish));
        }
        let message = format!(
            "scene {name} produces to the topic {}. {}; if that is meant, say --republish",
            republish.topic,
            republish.words()
        );
        Err(Failed::because(Exit::Usage, message))
    }

    /// Looks where the record of a dead letter came from that is to be replayed.
    pub(super) fn look(&mut self, found: &Found<'_>) {
        let foreign = Foreign::of(&found.record, None).origin;
        let origin = foreign.as_ref().or(found.letter.origin.as_ref());
        if let Some(origin) = origin
            && origin.topic != self.topic
        {
            *self.elsewhere.entry(Arc::clone(&origin.topic)).or_default() += 1;
        }
    }

    /// Says who gets the records.
    pub(super) fn tell(&self) {
        let Self {
            topic, elsewhere, ..
        } = self;
        say(&format!(
            "the tasks are produced to the topic {topic}. {}",
            self.words()
        ));
        if !elsewhere.is_empty() {
            let from = elsewhere.iter();
            let from = from.map(|(topic, count)| format!("{count} from {topic}"));
            let from: Vec<String> = from.collect();
            say(&format!(
                "note: not all of their records came from {topic}: {}",
                from.join(", ")
            ));
        }
    }

    /// The same, for programs.
    pub(super) fn said(&self) -> Said<'_> {
        let groups = self.readers.groups.iter();
        let groups = groups.map(|ReadingGroup { group, members }| Group {
            group,
            members: *members,
        });
        Said {
            topic: &self.topic,
            groups: groups.collect(),
            unknown_groups: self.readers.unseen,
            elsewhere: &self.elsewhere,
        }
    }

    /// Who reads the topic, in words.
    fn words(&self) -> String {
        let ReadingGroups { groups, unseen } = &self.readers;
        let names = groups.iter().map(|reader| {
            let ReadingGroup { group, members } = reader;
            match members {
                0 => format!("{group} (no member reads it now)"),
                1 => format!("{group} (1 member)"),
                _ => format!("{group} ({members} members)"),
            }
        });
        let names: Vec<String> = names.collect();
        let words = match names.len() {
            0 => "No group is known to read it".to_owned(),
            1 => format!(
                "This group reads it, and gets these records again: {}",
                names[0]
            ),
            count => format!(
                "These {count} groups read it, and each of them gets these records again: {}",
                names.join(", ")
            ),
        };
        match *unseen {
            0 => words,
            unseen => format!("{words}; of {unseen} more groups it is not known"),
        }
    }
}

/// The topic that a scene produces to, if it does. Fails where nobody knows: what is produced there cannot be taken back.
fn produced_to(config: &Config, name: &str, is_asked: bool) -> Result<Option<Arc<str>>, Failed> {
    let topics = topics(config);
    reach(config, User::DeadLetters, &[&topics.scenes])?;
    let follower = scenes_of(config, User::DeadLetters, &topics)?;
    let scenes = merged(&config.scenes, follower.scenes());
    let rules = scenes.get(name).map(|scene| scene.rules(name));
    let rules = rules.transpose().map_err(|error| {
        Failed::because(
            Exit::Failure,
            format!("scene {name} cannot be read: {error}"),
        )
    })?;
    let target = rules.map(|rules| rules.target);
    let message = match target {
        Some(Target::Produce { topic }) => return Ok(Some(topic)),
        Some(Target::Call) | None if !is_asked => return Ok(None),
        Some(Target::Call) => format!(
            "scene {name} produces to no topic, as --republish wants it; one that does has {SCENE}"
        ),
        None => format!(
            "there is no scene {name} in the configuration or on {}; make one with {SCENE}",
            topics.scenes
        ),
    };
    Err(Failed::because(Exit::Usage, message))
}

/// The groups that read a topic.
fn find_readers(config: &Config, topic: &str) -> Result<ReadingGroups, Failed> {
    let consumer = find::consumer(config, User::DeadLetters)?;
    let topics = BTreeSet::from([topic.to_owned()]);
    reading_groups(&consumer, &topics).map_err(|error| {
        let what = format!("ask who reads {topic}");
        failed(config, User::DeadLetters, &what, &error)
    })
}
