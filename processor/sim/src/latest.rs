//! The judge's part in tasks that others of their id take the place of.
//!
//! Each record is judged by itself, whatever its id: it ends, is dropped, or is replaced, one of these and once. Invariant: nobody who owns its
//! shard starts a record that has come to that, or one before those of its id, or of its key, that stand before it have.

use std::collections::BTreeMap;
use std::sync::Arc;

use retide_core::duplicates::Schedule;
use retide_core::{Ended, Event, Kind, Ordering, Task, Timestamp, Transition};

use crate::broker::Payload;
use crate::plan::{LATEST, Submission};

/// What is known of the records of scenes that replace.
#[derive(Debug, Default)]
pub(crate) struct Latest {
    /// By partition and offset.
    records: BTreeMap<(i32, i64), Known>,
    /// Those before which a later one of their key started: nothing may come of them but that they were dropped.
    overtaken: Vec<(i32, i64)>,
}

/// What is known of a record.
#[derive(Debug)]
struct Known {
    /// What was asked for.
    submission: Arc<Submission>,
    /// What has become of it, once that is durable.
    fate: Option<&'static str>,
    /// The schedule of its task, as far as it is durable.
    schedule: (Timestamp, u32, u32),
    /// Whether it was parked since it was read.
    is_parked: bool,
}

/// Whether a scene lets the newcomers of an id take the place of its task.
pub(crate) fn is_latest(scene: &str) -> bool {
    LATEST.contains(&scene)
}

/// What a record of such a scene holds: no two hold the same.
pub(crate) fn value(id: &str, offset: i64) -> Vec<u8> {
    format!("{id}#{offset}").into_bytes()
}

// === impl Latest ===

impl Latest {
    /// Somebody has asked for something.
    pub(crate) fn submitted(&mut self, submission: &Arc<Submission>, offset: i64) {
        let known = Known {
            submission: Arc::clone(submission),
            fate: None,
            schedule: (submission.due.unwrap_or_default(), 1, 0),
            is_parked: false,
        };
        self.records.insert((submission.shard, offset), known);
    }

    /// Whoever owns its shard starts an attempt of a task, or delivers it.
    pub(crate) fn started(&mut self, task: &Task, ordering: Ordering) -> Result<(), String> {
        let at = (task.origin.partition, task.origin.offset);
        let Some(known) = self.records.get(&at) else {
            return Err(format!("{at:?} was never asked for"));
        };
        if let Some(fate) = known.fate {
            return Err(format!("{at:?} of {} started, and is {fate}", task.id));
        }
        unchanged(task)?;
        let is_ordered = ordering == Ordering::Key && task.record.ordering_key().is_some();
        let before = self.records.range((at.0, i64::MIN)..at);
        for (open, before) in before.filter(|(_, before)| before.fate.is_none()) {
            let of = &before.submission;
            if of.scene != task.scene {
                continue;
            }
            if of.id == task.id {
                return Err(format!("{at:?} of {} started before {open:?}", task.id));
            }
            if is_ordered && of.key == known.submission.key {
                self.overtaken.push(*open);
            }
        }
        Ok(())
    }

    /// Something is durable.
    pub(crate) fn written(&mut self, payload: &Payload) -> Result<(), String> {
        match payload {
            Payload::Callback(ended) if is_latest(&ended.scene) => self.ended(ended),
            Payload::Delivered(task) if is_latest(&task.scene) => self.delivered(task),
            Payload::Parked(task) if is_latest(&task.scene) && task.kind == Kind::Work => {
                unchanged(task)
            }
            Payload::Event(event) if is_latest(&event.scene) => self.told(event),
            Payload::Submitted(_)
            | Payload::Parked(_)
            | Payload::Callback(_)
            | Payload::Delivered(_)
            | Payload::DeadLetter(..)
            | Payload::Poison(_)
            | Payload::Event(_)
            | Payload::State(_)
            | Payload::Order(_)
            | Payload::Control(_)
            | Payload::Alert(_) => Ok(()),
        }
    }

    /// Something is durable, where no commands are: whether a record that gives its payload only goes by the schedule of the task that it
    /// replaces.
    pub(crate) fn keeps_schedule(&mut self, payload: &Payload) -> Result<(), String> {
        if let Payload::Parked(task) = payload
            && task.kind == Kind::Work
            && let Some(known) = self
                .records
                .get_mut(&(task.origin.partition, task.origin.offset))
            && is_latest(&task.scene)
        {
            let schedule = Schedule::of(task);
            known.schedule = (schedule.due, schedule.attempt, schedule.throttled);
            known.is_parked = true;
        }
        let Payload::Event(event) = payload else {
            return Ok(());
        };
        let Transition::Duplicate { fate, told } = &event.transition else {
            return Ok(());
        };
        if *fate != "payload-replaced" || !is_latest(&event.scene) {
            return Ok(());
        }
        let Some((at, other)) = places(&told.message) else {
            return Err(format!("{event:?} names no record"));
        };
        let (new, old) = (self.records.get(&at), self.records.get(&(at.0, other)));
        match (new, old) {
            (Some(new), Some(old)) if new.is_parked && new.schedule != old.schedule => {
                Err(format!(
                    "{at:?} goes by {:?}, and has the place of one that goes by {:?}",
                    new.schedule, old.schedule
                ))
            }
            _ => Ok(()),
        }
    }

    /// A task is delivered to a topic: its end, which stands beside that, may be known by now.
    fn delivered(&mut self, task: &Task) -> Result<(), String> {
        let at = (task.origin.partition, task.origin.offset);
        let known = self.records.get_mut(&at);
        let fate = known.and_then(|known| known.fate.take_if(|fate| *fate == "delivered"));
        let result = self.started(task, Ordering::None);
        if let Some(known) = self.records.get_mut(&at) {
            known.fate = known.fate.or(fate);
        }
        result
    }

    /// Everything has come to its end.
    pub(crate) fn finish(&self) -> Result<(), String> {
        for at in &self.overtaken {
            let fate = self.records.get(at).and_then(|known| known.fate);
            if fate != Some("dropped") {
                return Err(format!(
                    "one of its key started before {at:?}, which is {fate:?}"
                ));
            }
        }
        let mut open = self
            .records
            .iter()
            .filter(|(_, known)| known.fate.is_none());
        match open.next() {
            Some((at, known)) => Err(format!("nothing came of {at:?}: {:?}", known.submission)),
            None => Ok(()),
        }
    }

    /// A callback record is durable.
    fn ended(&mut self, ended: &Ended) -> Result<(), String> {
        let at = (ended.origin.partition, ended.origin.offset);
        self.is(at, ended.terminal.word())
    }

    /// A transition is durable.
    fn told(&mut self, event: &Event) -> Result<(), String> {
        let Transition::Duplicate { fate, told } = &event.transition else {
            return Ok(());
        };
        let Some((at, other)) = places(&told.message) else {
            return Err(format!("{event:?} names no record"));
        };
        match *fate {
            "dropped" => self.is(at, fate),
            _ => self.is((at.0, other), fate),
        }
    }

    /// This has become of a record.
    fn is(&mut self, at: (i32, i64), fate: &'static str) -> Result<(), String> {
        let Some(known) = self.records.get_mut(&at) else {
            return Err(format!("{at:?} is {fate}, and was never asked for"));
        };
        match known.fate.replace(fate) {
            None => Ok(()),
            Some(before) => Err(format!("{at:?} is {fate}, and was {before}")),
        }
    }
}

/// Where the record stands that an event of a duplicate is about, and the offset of the task that has, or had, its id.
fn places(message: &str) -> Option<((i32, i64), i64)> {
    let (origin, task) = message.split_once(": ")?;
    let mut origin = origin.rsplit('/').map(str::parse::<i64>);
    let (Some(Ok(offset)), Some(Ok(partition))) = (origin.next(), origin.next()) else {
        return None;
    };
    let other = task.split(' ').find_map(|word| word.parse().ok())?;
    Some(((partition as i32, offset), other))
}

/// Whether a task holds what its producer gave it.
fn unchanged(task: &Task) -> Result<(), String> {
    let wanted = value(&task.id, task.origin.offset);
    if task.record.value.as_deref() == Some(&wanted[..]) {
        Ok(())
    } else {
        Err(format!("{} carries other bytes: {task:?}", task.id))
    }
}
