//! Lives: facts, sorted by the task that they are about.
//!
//! Events name no origin: where an identity was used more than once on a partition, an event belongs to the task that ends first at or
//! after it.

use retide_core::{Kind, Origin, Timestamp};

use crate::fact::{Fact, Said, dropped, instant, is_end, is_too_late, is_work, replaced};

/// The records of one task.
#[derive(Debug, Default)]
pub(crate) struct Life {
    /// Where it entered, if any record says so.
    pub(crate) origin: Option<Origin>,
    /// When it was first seen.
    pub(crate) start: Option<Timestamp>,
    /// When it ended.
    pub(crate) end: Option<Timestamp>,
    /// Its records, in the order in which they were found; of one topic, that is the order of their partition.
    pub(crate) facts: Vec<Fact>,
}

// === impl Life ===

impl Life {
    /// Whether its events stand on this partition.
    pub(crate) fn is_on(&self, partition: i32) -> bool {
        match &self.origin {
            Some(origin) => origin.partition == partition,
            None => self.facts.iter().any(|fact| fact.at.partition == partition),
        }
    }

    /// Takes a record in.
    pub(crate) fn add(&mut self, fact: Fact) {
        let (seen, ended) = match &fact.what {
            Said::Entered { .. } => (Some(fact.appended), None),
            Said::Parked { task, .. } if task.kind == Kind::Work => {
                (Some(task.first_failed_at), None)
            }
            Said::Event(event) if is_work(event) => {
                let at = instant(event.at);
                (Some(at), is_end(&event.event).then_some(at))
            }
            Said::Callback(callback) => (
                Some(instant(callback.first_failed_at)),
                Some(instant(callback.ended_at)),
            ),
            Said::Unreadable { event } => (None, is_end(event).then_some(fact.appended)),
            Said::Parked { .. } | Said::Event(_) | Said::DeadLetter(_) => (None, None),
        };
        self.start = [self.start, seen].into_iter().flatten().min();
        self.end = self.end.or(ended);
        self.facts.push(fact);
    }

    /// The scene, by the first record that names it.
    pub(crate) fn scene(&self) -> String {
        let mut scenes = self.facts.iter().filter_map(|fact| match &fact.what {
            Said::Entered { scene, .. } => Some(scene.to_string()),
            Said::Parked { task, .. } => Some(task.scene.to_string()),
            Said::Event(event) => Some(event.scene.clone()),
            Said::Callback(callback) => Some(callback.scene.clone()),
            Said::DeadLetter(letter) => Some(letter.scene.clone()),
            Said::Unreadable { .. } => None,
        });
        scenes.find(|scene| !scene.is_empty()).unwrap_or_default()
    }
}

/// The records sorted by task, in the order in which tasks entered.
pub(crate) fn lives(facts: Vec<Fact>) -> Vec<Life> {
    let mut lives: Vec<Life> = Vec::new();
    let (mut events, mut deliveries) = (Vec::new(), Vec::new());
    let gone: Vec<Origin> = facts
        .iter()
        .filter_map(|fact| dropped(&fact.what).map(|(record, _)| record))
        .collect();
    for fact in facts {
        // It is no task, and the event tells of it.
        if matches!(fact.what, Said::Entered { .. }) && gone.contains(&fact.at) {
            continue;
        }
        let origin = match &fact.what {
            Said::Entered { .. } => Some(fact.at.clone()),
            Said::Parked { task, .. } if task.kind == Kind::Work => Some(task.origin.clone()),
            Said::Callback(callback) => retide_avro::headers::origin_of(&callback.origin),
            Said::DeadLetter(letter) if letter.kind == Kind::Work => letter.origin.clone(),
            Said::Event(event) if is_work(event) => {
                events.push(fact);
                continue;
            }
            Said::Unreadable { .. } => {
                events.push(fact);
                continue;
            }
            Said::Parked { .. } | Said::Event(_) | Said::DeadLetter(_) => {
                deliveries.push(fact);
                continue;
            }
        };
        let index = lives.iter().position(|life| life.origin == origin);
        let index = index.unwrap_or_else(|| {
            lives.push(Life {
                origin,
                ..Life::default()
            });
            lives.len() - 1
        });
        lives[index].add(fact);
    }
    events.sort_by_key(|fact| (fact.at.partition, fact.at.offset));
    for event in &events {
        // Its life is over then.
        let task = replaced(&event.what);
        let task = task.and_then(|task| {
            let mut lives = lives.iter_mut();
            lives.find(|life| life.origin.as_ref() == Some(&task))
        });
        if let Some(life) = task {
            life.end = life.end.or(Some(event.when()));
        }
    }
    for event in events {
        let at = event.when();
        let partition = event.at.partition;
        let open = lives
            .iter()
            .enumerate()
            .filter(|(_, life)| life.is_on(partition) && life.end.is_none_or(|end| end >= at));
        let first = open.min_by_key(|(_, life)| (life.end.unwrap_or(Timestamp::MAX), life.start));
        // It says whose it is.
        let named = dropped(&event.what).map(|(_, task)| task);
        let named = named.or_else(|| replaced(&event.what)).and_then(|task| {
            let mut lives = lives.iter().enumerate();
            lives.find(|(_, life)| life.origin.as_ref() == Some(&task))
        });
        let first = named.or(first);
        // A command may come after the end.
        let ended = lives.iter().enumerate();
        let ended = ended.filter(|(_, life)| is_too_late(&event.what) && life.is_on(partition));
        let first = first.or_else(|| ended.max_by_key(|(_, life)| life.end));
        let index = if let Some((index, _)) = first {
            index
        } else {
            lives.push(Life::default());
            lives.len() - 1
        };
        lives[index].add(event);
    }
    for delivery in deliveries {
        add_delivery(&mut lives, delivery);
    }
    lives.sort_by_key(|life| life.start);
    lives
}

/// Adds a record about the delivery of a callback to the task whose callback it is.
fn add_delivery(lives: &mut Vec<Life>, fact: Fact) {
    let origin = match &fact.what {
        Said::Parked { task, .. } => Some(&task.origin),
        Said::DeadLetter(letter) => letter.origin.as_ref(),
        Said::Entered { .. } | Said::Event(_) | Said::Unreadable { .. } | Said::Callback(_) => None,
    };
    let at = fact.when();
    // A record says whose it is, an event does not.
    let index = origin.and_then(|origin| {
        let mut lives = lives.iter();
        lives.position(|life| life.origin.as_ref() == Some(origin))
    });
    let index = index.or_else(|| {
        let ended = lives.iter().enumerate().filter(|(_, life)| {
            life.is_on(fact.at.partition) && life.end.is_some_and(|end| end <= at)
        });
        let last = ended.max_by_key(|(_, life)| life.end);
        last.map(|(index, _)| index)
    });
    let index = index.unwrap_or_else(|| {
        lives.push(Life::default());
        lives.len() - 1
    });
    lives[index].add(fact);
}

/// What makes the timeline of `life` less than certain.
pub(crate) fn notes(life: &Life, lives: &[Life]) -> Vec<String> {
    let Some(partition) = life.origin.as_ref().map(|origin| origin.partition) else {
        return vec!["where it entered is not told by any record that was found".to_owned()];
    };
    let overlaps = lives.iter().any(|other| {
        other.origin != life.origin
            && other.is_on(partition)
            && other.start <= Some(life.end.unwrap_or(Timestamp::MAX))
            && life.start <= Some(other.end.unwrap_or(Timestamp::MAX))
    });
    let mut notes = Vec::new();
    if !life
        .facts
        .iter()
        .any(|fact| matches!(fact.what, Said::Entered { .. }))
    {
        notes.push("its record on the retry topic was not found".to_owned());
    }
    if overlaps {
        notes.push(
            "another task with this identity was under way on this partition at the same time; events name no origin, so some may belong to the other one"
                .to_owned(),
        );
    }
    notes
}
