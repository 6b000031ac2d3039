//! The names of retide's topics and what is read from them.
//!
//! Invariant: shard p is partition p of every one of them but the scenes topic, so that a record never changes its owner on its way.

use std::sync::Arc;

use retide_avro::Intake;
use retide_core::{Ladder, Source};

/// The names of a prefix's topics.
#[derive(Clone, Debug)]
pub struct Topics {
    /// The retry topic: anyone produces here.
    pub tasks: Arc<str>,
    /// One record per end of a task.
    pub callbacks: Arc<str>,
    /// What a human must know.
    pub alerts: Arc<str>,
    /// Tasks that ended badly.
    pub dead_letters: Arc<str>,
    /// Every transition of every task.
    pub events: Arc<str>,
    /// Which tasks of a key are outstanding, for scenes that keep an order.
    pub order: Arc<str>,
    /// Scene rules, keyed by name; one partition.
    pub scenes: Arc<str>,
    /// Parked tasks, one topic for each tier of the ladder.
    pub tiers: Vec<Arc<str>>,
    /// Tiers that the ladder does not have any more: they are read until they are empty, and nothing is parked there.
    pub draining: Vec<Draining>,
    /// How records of the retry topic are read.
    pub intake: Intake,
}

/// A tier that is read until it is empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Draining {
    /// The topic.
    pub topic: Arc<str>,
    /// How many partitions it has: others may have been widened since it was a tier.
    pub partitions: i32,
}

// === impl Topics ===

impl Topics {
    /// The topics of `prefix` with the tiers of `ladder`.
    pub fn new(prefix: &str, ladder: &Ladder) -> Self {
        let topic = |name: &str| Arc::from(format!("{prefix}.{name}"));
        Self {
            tasks: topic("tasks"),
            callbacks: topic("callbacks"),
            alerts: topic("alerts"),
            dead_letters: topic("dead-letters"),
            events: topic("events"),
            order: topic("order"),
            scenes: topic("scenes"),
            tiers: ladder
                .tiers()
                .iter()
                .map(|tier| topic(&format!("delay.{tier}")))
                .collect(),
            draining: Vec::new(),
            intake: Intake::default(),
        }
    }

    /// The prefix of them all.
    pub fn prefix(&self) -> &str {
        self.tasks.strip_suffix(".tasks").unwrap_or(&self.tasks)
    }

    /// The same, with tiers that are to be drained.
    #[must_use]
    pub fn with_draining(self, draining: Vec<Draining>) -> Self {
        Self { draining, ..self }
    }

    /// The same, with a retry topic that is read so.
    #[must_use]
    pub fn with_intake(self, intake: Intake) -> Self {
        Self { intake, ..self }
    }

    /// The topics that tasks are read from. All but those that are drained have the same number of partitions.
    pub fn read(&self) -> impl Iterator<Item = (Source, &Arc<str>)> {
        let draining = self.draining.iter().map(|tier| &tier.topic);
        let tiers = self.tiers.iter().chain(draining).enumerate();
        let tiers = tiers.map(|(index, topic)| (Source::Tier(index), topic));
        [(Source::Tasks, &self.tasks)].into_iter().chain(tiers)
    }

    /// The topics that the tasks of a shard are read from.
    pub fn of_shard(&self, shard: i32) -> impl Iterator<Item = (Source, &Arc<str>)> {
        self.read().filter(move |(source, _)| match source {
            Source::Tasks => true,
            Source::Tier(index) => index
                .checked_sub(self.tiers.len())
                .is_none_or(|index| shard < self.draining[index].partitions),
        })
    }

    /// The topics that are only written, or read by whoever gets a shard, with the same number of partitions again.
    pub fn written(&self) -> [&Arc<str>; 5] {
        [
            &self.callbacks,
            &self.alerts,
            &self.dead_letters,
            &self.events,
            &self.order,
        ]
    }

    /// The name of a topic that is read.
    pub fn name(&self, source: Source) -> &Arc<str> {
        match source {
            Source::Tasks => &self.tasks,
            Source::Tier(index) => match index.checked_sub(self.tiers.len()) {
                None => &self.tiers[index],
                Some(index) => &self.draining[index].topic,
            },
        }
    }

    /// What is read from `topic`, if it is one that is read.
    pub fn source(&self, topic: &str) -> Option<Source> {
        self.read()
            .find_map(|(source, name)| (&**name == topic).then_some(source))
    }
}

#[cfg(test)]
mod tests {
    use retide_core::topic::is_own;

    use super::*;

    #[test]
    fn every_topic_that_is_read_is_found_by_its_name() {
        let topics = Topics::new("retry", &Ladder::default());

        for (source, name) in topics.read() {
            assert_eq!(topics.source(name), Some(source));
            assert_eq!(topics.name(source), name);
        }
        assert_eq!(&*topics.tiers[4], "retry.delay.1m");
        assert_eq!(topics.source("retry.scenes"), None);
    }

    #[test]
    fn a_tier_that_is_drained_is_read_as_far_as_it_has_partitions() {
        let draining = Draining {
            topic: "retry.delay.2m".into(),
            partitions: 4,
        };
        let topics = Topics::new("retry", &Ladder::default()).with_draining(vec![draining]);
        let source = Source::Tier(topics.tiers.len());

        assert_eq!(topics.source("retry.delay.2m"), Some(source));
        assert_eq!(&**topics.name(source), "retry.delay.2m");
        let has = |shard| topics.of_shard(shard).any(|(of, _)| of == source);
        assert!(has(3) && !has(4));
    }

    #[test]
    fn all_topics_of_the_prefix_are_own_and_no_others() {
        let topics = Topics::new("retry", &Ladder::default());
        assert_eq!(topics.prefix(), "retry");

        let read = topics.read().map(|(_, name)| name);
        for name in read.chain(topics.written()).chain([&topics.scenes]) {
            assert!(is_own("retry", name), "{name}");
        }
        assert!(is_own("retry", "retry.delay.7m"));
        for other in [
            "retry",
            "retry.work",
            "other.tasks",
            "retry2.tasks",
            "tasks",
        ] {
            assert!(!is_own("retry", other), "{other}");
        }
    }
}
