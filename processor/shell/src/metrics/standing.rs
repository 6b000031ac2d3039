//! What is late at the moment: tasks that are overdue, by scene, and records that nobody has read.
//!
//! Workers say since when; how long that is, is worked out when it is read. So it grows on when a worker stands still. Invariant: what a
//! worker has said is forgotten with it.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex};

use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use retide_core::{Overdue, Timestamp};

use crate::clock;

use super::scenes::SceneLabels;
use super::{add, gauge, lock};

/// What is late at the moment.
pub(super) struct Standing {
    /// Tasks that are due and have not started.
    tasks: Family<SceneLabels, Gauge>,
    /// How long the first of them is.
    oldest: Family<SceneLabels, Seconds>,
    /// Records of the retry topic that are not read.
    unread: Gauge,
    /// How long the first of them is not.
    oldest_unread: Seconds,
    /// What each worker has said, by a number of its own.
    said: Mutex<HashMap<u64, Said>>,
    /// What is known of the ends of the retry topic's partitions.
    ends: Mutex<HashMap<i32, Ends>>,
}

/// What a worker says.
#[derive(Clone, Debug, Default)]
pub(crate) struct Said {
    /// What is overdue, by the scene that it counts for.
    pub(crate) overdue: HashMap<Arc<str>, Overdue>,
    /// How far it has read the retry topic, by shard: the next offset.
    pub(crate) read: HashMap<i32, i64>,
}

/// What is known of the end of a partition of the retry topic.
#[derive(Debug, Default)]
struct Ends {
    /// Where it ended, and when that was seen, oldest first: of those that nobody has read beyond, the first one.
    seen: VecDeque<(Timestamp, i64)>,
}

/// A gauge of seconds.
type Seconds = Gauge<f64, AtomicU64>;

// === impl Standing ===

impl Standing {
    /// Registers what there is to say.
    pub(super) fn register(registry: &mut Registry) -> Self {
        let r = registry;
        let help = "Tasks that are due and have not started, in memory or deferred in a tier";
        let tasks = add(r, ("overdue_tasks", help), Family::default());
        let help = "How long the first task that has not started has been due";
        let oldest = add(r, ("oldest_overdue_seconds", help), Family::default());
        let help = "Records of the retry topic that were not read yet, about";
        let unread = gauge(r, "unread_records", help);
        let help = "How long the first record of the retry topic was not read";
        let oldest_unread = add(r, ("oldest_unread_seconds", help), Seconds::default());
        Self {
            tasks,
            oldest,
            unread,
            oldest_unread,
            said: Mutex::default(),
            ends: Mutex::default(),
        }
    }

    /// A worker says this.
    pub(super) fn say(&self, worker: u64, said: Said) {
        lock(&self.said).insert(worker, said);
    }

    /// A worker is no more.
    pub(super) fn forget(&self, worker: u64) {
        lock(&self.said).remove(&worker);
    }

    /// The partitions of the retry topic end there now.
    pub(super) fn ends_are(&self, ends: impl Iterator<Item = (i32, i64)>) {
        let now = now();
        let mut known = lock(&self.ends);
        for (shard, end) in ends {
            known.entry(shard).or_default().is(now, end);
        }
    }

    /// Works out what is to be read: of these scenes, and all that have something overdue.
    pub(super) fn look(&self, scenes: impl Iterator<Item = Arc<str>>) {
        let now = now();
        let mut all: HashMap<Arc<str>, Option<Overdue>> =
            scenes.map(|scene| (scene, None)).collect();
        let (mut unread, mut unread_since) = (0, None);
        let mut ends = lock(&self.ends);
        for said in lock(&self.said).values() {
            for (scene, overdue) in &said.overdue {
                let sum = all.entry(Arc::clone(scene)).or_default();
                *sum = Some(sum.map_or(*overdue, |other| other.and(*overdue)));
            }
            for (shard, next) in &said.read {
                let Some(ends) = ends.get_mut(shard) else {
                    continue;
                };
                let (records, since) = ends.beyond(*next);
                unread += records;
                unread_since = [unread_since, since].into_iter().flatten().min();
            }
        }
        drop(ends);
        let age =
            |since: Option<Timestamp>| since.map_or(0.0, |since| now.since(since).as_secs_f64());
        self.tasks.clear();
        self.oldest.clear();
        for (scene, overdue) in all {
            let labels = SceneLabels::new(&scene);
            let tasks = overdue.map_or(0, |overdue| overdue.tasks);
            let since = overdue.map(|overdue| overdue.since);
            self.tasks
                .get_or_create_owned(&labels)
                .set(i64::try_from(tasks).unwrap_or(i64::MAX));
            self.oldest.get_or_create_owned(&labels).set(age(since));
        }
        self.unread.set(unread);
        self.oldest_unread.set(age(unread_since));
    }
}

// === impl Ends ===

impl Ends {
    /// It ends there now.
    fn is(&mut self, now: Timestamp, end: i64) {
        if self.seen.back().is_some_and(|(_, last)| *last > end) {
            // It was made anew.
            self.seen.clear();
        }
        if self.seen.back().is_none_or(|(_, last)| *last < end) {
            self.seen.push_back((now, end));
        }
        if self.seen.len() > MOST {
            // The oldest one counts, and the newest.
            self.seen.remove(1);
        }
    }

    /// How many records are there from `next` on, and since when the first of them is there, as far as that was seen.
    fn beyond(&mut self, next: i64) -> (i64, Option<Timestamp>) {
        while self.seen.len() > 1 && self.seen.front().is_some_and(|(_, end)| *end <= next) {
            self.seen.pop_front();
        }
        let last = self.seen.back().map_or(next, |(_, end)| *end);
        let first = self.seen.front().filter(|(_, end)| *end > next);
        ((last - next).max(0), first.map(|(since, _)| *since))
    }
}

/// Most ends that are remembered of a partition: some minutes.
const MOST: usize = 256;

/// The time.
fn now() -> Timestamp {
    clock::timestamp()
}
