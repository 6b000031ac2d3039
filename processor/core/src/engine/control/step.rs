//! One step of a command in a shard: what is to be done, how far that is, and what was counted.
//!
//! Not what it waits for, which is `steps`'. Invariant: `counts` says what is settled, and is written with it.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;
use std::time::Duration;

use crate::control::{Answer, Command, Counts, Looked, Looking, Place, Progress, Step};
use crate::lane::{LaneId, Source};
use crate::step::{Applied, Effect, Now};
use crate::task::{Origin, Task};

/// A step.
#[derive(Debug)]
pub(super) struct Active {
    /// Its open offset; none while the record is under way that it goes on with.
    pub(super) offset: Option<i64>,
    /// The bytes that it holds.
    pub(super) bytes: usize,
    /// How far it is.
    pub(super) stage: Stage,
    /// Where the retry topic ended.
    pub(super) tasks_to: Option<i64>,
    /// Whether tasks were on their way to other shards when it began.
    pub(super) moved: bool,
    /// When its command was appended at the latest, in steady time; none if the clock is so wrong that it does not say.
    pub(super) appended: Option<Duration>,
    /// What is to be done.
    step: Step,
    /// What was done.
    counts: Counts,
    /// The ids that were found, if it names some.
    met: HashSet<Arc<str>>,
    /// The tiers that are looked at, and how far.
    looking: BTreeMap<Source, Part>,
    /// The same, as it was written last.
    kept: Vec<Looking>,
}

/// The part of a tier that is looked at.
#[derive(Clone, Copy, Debug)]
struct Part {
    /// The first offset that was not.
    next: i64,
    /// The first one that is not to be.
    to: i64,
    /// Whether that was found out here: what former owners have parked since they looked stands behind where their look was to end.
    is_ours: bool,
}

/// How far a step is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// The tasks in memory are not looked at yet.
    New,
    /// The batch of this number is waited for.
    Fenced(u64),
    /// The tiers are to be looked at, or are.
    Looking(Option<u64>),
    /// All were looked at but what the retry topic held.
    Looked,
    /// All was done; the batch of this number is waited for, so that what is counted is durable.
    Counted(u64),
    /// Tasks are waited for that do not exist yet.
    Standing,
    /// Its shard leaves: the next owner goes on with it.
    Leaving,
}

/// As far as the clock of the broker may differ from ours.
pub(super) const SKEW: Duration = Duration::from_secs(10);

/// The bytes that a record of a command holds besides its texts.
const OVERHEAD: usize = 1_024;

// === impl Active ===

impl Active {
    /// A step that begins, or goes on from where a former owner has left it. What is read was appended by then, though the broker's clock is a
    /// little ahead.
    pub(super) fn new(now: Now, offset: i64, step: Step, known: Option<Progress>) -> Self {
        let mut looked = step.looked.iter().flatten();
        let tasks_to = looked
            .find(|looked| looked.source == Source::Tasks)
            .map(|looked| looked.to);
        let counts = known.as_ref().map_or(step.before, |known| known.counts);
        let kept = known.map_or_else(Vec::new, |known| known.looking);
        let looking = kept.iter().map(|of| {
            let part = Part {
                next: of.next,
                to: of.to,
                is_ours: false,
            };
            (of.source, part)
        });
        let at = step.command.place.at;
        let since = (at <= now.wall + SKEW).then(|| now.wall.since(at));
        Self {
            offset: Some(offset),
            bytes: memory_size(&step),
            stage: Stage::New,
            tasks_to,
            moved: false,
            appended: since.map(|since| now.steady.saturating_sub(since)),
            counts,
            met: HashSet::new(),
            looking: looking.collect(),
            kept,
            step,
        }
    }

    /// The command.
    pub(super) const fn command(&self) -> &Arc<Command> {
        &self.step.command
    }

    /// The identities that it names, if it names some.
    pub(super) fn ids(&self) -> Option<&BTreeSet<Arc<str>>> {
        self.step.command.selector.ids()
    }

    /// How many ids it waits for while it stands; what names none counts like one that names one.
    pub(super) fn waits_for(&self) -> usize {
        self.ids().map_or(1, BTreeSet::len)
    }

    /// Whether tiers were looked at by a record that came before, so that it waits for tasks that do not exist yet.
    pub(super) const fn is_restored(&self) -> bool {
        self.step.looked.is_some()
    }

    /// Whether all look once more.
    pub(super) const fn is_again(&self) -> bool {
        self.step.again
    }

    /// The record with which it goes on.
    pub(super) fn again(&self) -> Step {
        self.step.clone()
    }

    /// Goes on with the record at this offset.
    pub(super) fn go_on(&mut self, offset: i64, bytes: usize) {
        self.offset = Some(offset);
        self.bytes = bytes;
    }

    /// Whether a record is one of those that the command is about by where it stands: what names ids is about later ones, too.
    pub(super) fn reaches(&self, lane: LaneId, offset: i64, task: &Task) -> bool {
        if self.ids().is_some() {
            return true;
        }
        match lane.source {
            Source::Tasks => self.tasks_to.is_none_or(|to| offset < to),
            Source::Tier(_) if self.is_restored() => {
                self.stage != Stage::Standing && self.may_wait_for(lane.shard, task)
            }
            Source::Tier(_) => {
                let part = self.looking.get(&lane.source).filter(|part| part.is_ours);
                part.is_none_or(|part| offset < part.to)
            }
            Source::Commands => false,
        }
    }

    /// Whether a task may have been set aside when tiers were looked at, so that the command waits for it: a former owner may have taken it in
    /// without the command. Who has looked here meets what was set aside when it is taken in. What was in a tier then has met the command, or
    /// came to fit since by what an attempt has said.
    fn may_wait_for(&self, shard: i32, task: &Task) -> bool {
        let Origin {
            partition, offset, ..
        } = task.origin;
        let is_first = self.tasks_to.is_some_and(|to| offset < to);
        let selector = &self.command().selector;
        partition == shard && is_first && (task.failure.is_none() || selector.is_lasting())
    }

    /// Where the look at a tier begins: where this step, or what was written of it, has ended.
    pub(super) fn looks_from(&self, source: Source) -> i64 {
        let mut looked = self.step.looked.iter().flatten();
        let looked = looked.find(|looked| looked.source == source);
        let next = self.looking.get(&source).map(|part| part.next);
        looked.map(|looked| looked.to).or(next).unwrap_or(0)
    }

    /// A tier is looked at between these offsets, or from where it is known to be looked at.
    pub(super) fn looks_at(&mut self, source: Source, next: i64, to: i64) {
        let known = self.looking.get(&source).filter(|_| !self.is_restored());
        let part = Part {
            next: known.map_or(next, |part| part.next),
            to,
            is_ours: true,
        };
        self.looking.insert(source, part);
    }

    /// The retry topic ends there. What has answered waits for what was there when it did.
    pub(super) fn tasks_end_at(&mut self, to: Option<i64>) {
        if !self.is_restored() || self.ids().is_some() {
            self.tasks_to = to;
        }
    }

    /// Everything of a tier below an offset was looked at.
    pub(super) fn pass(&mut self, source: Source, next: i64) {
        if let Some(part) = self.looking.get_mut(&source) {
            part.next = next.max(part.next);
        }
    }

    /// Counts what goes into a batch, which is to be waited for before it is told.
    pub(super) fn count(&mut self, applied: &Applied) {
        if let Stage::Counted(_) = self.stage {
            self.stage = Stage::Looked;
        }
        let is_found = self.ids().is_some() && self.met.insert(Arc::clone(&applied.id));
        *self.sort_of(applied.effect) += 1;
        self.counts.found += u64::from(is_found);
    }

    /// Takes back what was counted and is not written. What was counted before it began anew is not counted here.
    pub(super) fn uncount(&mut self, applied: &Applied) {
        let is_lost = self.met.remove(&applied.id);
        let sort = self.sort_of(applied.effect);
        *sort = sort.saturating_sub(1);
        self.counts.found = self.counts.found.saturating_sub(u64::from(is_lost));
    }

    /// The count of tasks with which this was done.
    const fn sort_of(&mut self, effect: Effect) -> &mut u64 {
        match effect {
            Effect::Done => &mut self.counts.done,
            Effect::TooLate => &mut self.counts.too_late,
        }
    }

    /// How far it is, as it is written, with how far it has looked.
    pub(super) fn progress(&mut self) -> Progress {
        let looking = self.looking.iter();
        let looking = looking.map(|(source, part)| Looking {
            source: *source,
            next: part.next,
            to: part.to,
        });
        self.kept = looking.collect();
        self.progress_of_counts()
    }

    /// What was written of it last was not: how far it has looked is not known to others.
    pub(super) fn unwritten(&mut self) {
        self.kept.clear();
    }

    /// The same, where it has looked as far as was written before.
    pub(super) fn progress_of_counts(&self) -> Progress {
        Progress {
            again: self.step.again,
            counts: self.counts,
            looking: self.kept.clone(),
        }
    }

    /// Whether all ids that it names were found; if it names none, whether nothing `is_aside` below an offset of the retry topic that it may
    /// be about.
    pub(super) fn has_met_all(&self, is_aside: impl Fn(i64) -> bool) -> bool {
        match self.ids() {
            Some(ids) => self.counts.found >= ids.len() as u64,
            None => !self.tasks_to.is_some_and(is_aside),
        }
    }

    /// The answer to its request.
    pub(super) fn answer(&self, shard: i32) -> Answer {
        let Self { step, .. } = self;
        // The second time, every shard has known of the command since the first one.
        let again = (self.moved && !step.again).then(|| {
            Box::new(Step {
                again: true,
                before: Counts::default(),
                ..step.clone()
            })
        });
        let ids = self.ids().map_or(0, BTreeSet::len);
        Answer {
            place: step.command.place,
            id: Arc::clone(&step.command.id),
            of: BTreeSet::from([shard]),
            shards: step.shards,
            ids: u32::try_from(ids).unwrap_or(u32::MAX),
            counts: self.counts,
            again,
        }
    }

    /// Waits from now on for the tasks that it has not found; what was found before is told.
    pub(super) fn stand(&mut self) {
        self.stage = Stage::Standing;
        self.counts = Counts {
            found: self.counts.found,
            ..Counts::default()
        };
    }

    /// The tiers were looked at, which is written down by the record with which it goes on.
    pub(super) fn restore(&mut self) {
        let looked = self.looking.iter().map(|(source, part)| Looked {
            source: *source,
            to: part.to,
        });
        // What names ids is about whatever comes.
        let tasks_to = self.tasks_to.filter(|_| self.ids().is_none());
        let tasks = tasks_to.map(|to| Looked {
            source: Source::Tasks,
            to,
        });
        self.step.looked = Some(looked.chain(tasks).collect());
    }

    /// The place of its command.
    pub(super) fn place(&self) -> Place {
        self.step.command.place
    }
}

/// The bytes that a step holds in memory. What stands is bounded by its number.
pub(super) fn memory_size(step: &Step) -> usize {
    if step.looked.is_some() {
        return 0;
    }
    let ids = step.command.selector.ids().into_iter().flatten();
    OVERHEAD + ids.map(|id| id.len() + 128).sum::<usize>()
}
