//! The steps of the shards of a worker: which there are, which tasks they meet, and how far they are.
//!
//! Not what takes them from stage to stage, which is `stages`'. Invariant: a step that a former owner has begun goes on with its counts.

use std::collections::{BTreeMap, BTreeSet};
use std::mem;
use std::sync::Arc;
use std::time::Duration;

use super::CHECK;
use super::step::{Active, SKEW, Stage};
use crate::control::{Place, Progress};
use crate::lane::{LaneId, Source};
use crate::scene::{Scene, Scenes};
use crate::selector::Selector;
use crate::selector_index::SelectorIndex;
use crate::state::State;
use crate::taken::Taken;
use crate::task::Task;

/// The steps of the shards of a worker.
#[derive(Debug, Default)]
pub(super) struct Steps {
    /// The steps of each shard that has some.
    shards: BTreeMap<i32, OfShard>,
    /// What is known of shards whose lanes are not assigned yet.
    known: BTreeMap<i32, Known>,
    /// The steps whose progress is to be written.
    changed: BTreeSet<(i32, Place)>,
}

/// The steps of a shard.
#[derive(Debug, Default)]
struct OfShard {
    /// The steps, by the place of their commands.
    active: BTreeMap<Place, Active>,
    /// Which of them a task may be meant by.
    index: SelectorIndex<Place>,
    /// The last batch that one of them waits for before it looks at tiers.
    fence: u64,
    /// The last batch that one of them waits for before it answers.
    answer: u64,
}

/// What former owners of a shard have written of its commands.
#[derive(Debug, Default)]
struct Known {
    /// The taken offsets of its tiers.
    taken: BTreeMap<Source, Taken>,
    /// How far its steps are.
    steps: BTreeMap<Place, Progress>,
}

/// How often it is looked whether a step has waited long enough.
const REST: Duration = Duration::from_millis(250);

// === impl Steps ===

impl Steps {
    /// Whether there are none.
    pub(super) fn is_empty(&self) -> bool {
        self.shards.is_empty()
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.shards.values().map(|steps| steps.active.len()).sum()
    }

    /// The steps of each shard, by place.
    pub(super) fn shards(&self) -> impl Iterator<Item = (i32, &BTreeMap<Place, Active>)> {
        let shards = self.shards.iter();
        shards.map(|(shard, steps)| (*shard, &steps.active))
    }

    /// The same, to be changed.
    pub(super) fn shards_mut(
        &mut self,
    ) -> impl Iterator<Item = (i32, impl Iterator<Item = (Place, &mut Active)>)> {
        let shards = self.shards.iter_mut();
        shards.map(|(shard, steps)| {
            let active = steps.active.iter_mut();
            (*shard, active.map(|(place, active)| (*place, active)))
        })
    }

    /// Every step.
    pub(super) fn all_mut(&mut self) -> impl Iterator<Item = (i32, Place, &mut Active)> {
        let shards = self.shards_mut();
        shards.flat_map(|(shard, steps)| steps.map(move |(place, active)| (shard, place, active)))
    }

    /// A step.
    pub(super) fn get(&self, shard: i32, place: Place) -> Option<&Active> {
        self.shards.get(&shard)?.active.get(&place)
    }

    /// A step, to be changed.
    pub(super) fn get_mut(&mut self, shard: i32, place: Place) -> Option<&mut Active> {
        self.shards.get_mut(&shard)?.active.get_mut(&place)
    }

    /// Adds a step.
    pub(super) fn insert(&mut self, shard: i32, active: Active) {
        self.shards.entry(shard).or_default().insert(active);
    }

    /// Forgets a step.
    pub(super) fn remove(&mut self, shard: i32, place: Place) -> Option<Active> {
        let steps = self.shards.get_mut(&shard)?;
        let active = steps.remove(place)?;
        if steps.active.is_empty() {
            self.shards.remove(&shard);
        }
        Some(active)
    }

    /// The progress of a step is to be written, or that it is over.
    pub(super) fn change(&mut self, shard: i32, place: Place) {
        self.changed.insert((shard, place));
    }

    /// The commands that a task of a lane meets and that were not applied to it, in their order.
    pub(super) fn meets(
        &self,
        scenes: &Scenes,
        lane: LaneId,
        offset: i64,
        task: &Task,
    ) -> Vec<Place> {
        self.meets_by(Selector::fits, (scenes, lane, offset), task)
    }

    /// The same of a task that is called.
    pub(super) fn meets_call(
        &self,
        scenes: &Scenes,
        lane: LaneId,
        offset: i64,
        task: &Task,
    ) -> Vec<Place> {
        self.meets_by(Selector::fits_call, (scenes, lane, offset), task)
    }

    /// The places of the steps whose selectors fit a task so.
    fn meets_by(
        &self,
        fits: fn(&Selector, &Task, Option<&Scene>) -> bool,
        (scenes, lane, offset): (&Scenes, LaneId, i64),
        task: &Task,
    ) -> Vec<Place> {
        let Some(steps) = self.shards.get(&lane.shard) else {
            return Vec::new();
        };
        let mut places = Vec::new();
        for place in steps.index.candidates(task) {
            let is_later = task.commanded.as_ref().is_none_or(|last| **last < place);
            let is_met = |active: &Active| {
                let scene = scenes.find(&task.scene).map(|scene| &**scene);
                active.reaches(lane, offset, task) && fits(&active.command().selector, task, scene)
            };
            if is_later && steps.active.get(&place).is_some_and(is_met) {
                places.push(place);
            }
        }
        places.sort_unstable();
        places.dedup();
        places
    }

    /// Whether memory was looked at for a step, so that it answers soon.
    pub(super) fn is_followed(&self, shard: i32, place: Place) -> bool {
        let active = self.get(shard, place);
        active.is_some_and(|active| match active.stage {
            Stage::Fenced(_) | Stage::Looking(_) | Stage::Looked | Stage::Counted(_) => true,
            // What stands waits for what has not been taken in.
            Stage::New | Stage::Standing | Stage::Leaving => false,
        })
    }

    /// The shards that have steps for which memory is not looked at yet.
    pub(super) fn new_shards(&self) -> BTreeSet<i32> {
        let has_new = |active: &BTreeMap<Place, Active>| {
            let mut active = active.values();
            active.any(|active| active.stage == Stage::New)
        };
        let shards = self.shards();
        shards
            .filter(|(_, active)| has_new(active))
            .map(|(shard, _)| shard)
            .collect()
    }

    /// A step of a shard waits for the batch of this number before it answers.
    pub(super) fn wait_to_answer(&mut self, shard: i32, batch: u64) {
        if let Some(steps) = self.shards.get_mut(&shard) {
            steps.answer = steps.answer.max(batch);
        }
    }

    /// What was decided of a shard before goes into the batch of this number, after all: steps that have not begun to look wait for that,
    /// and those that were to answer have not done all. Whether some wait.
    pub(super) fn wait_again(&mut self, shard: i32, batch: u64) -> bool {
        let Some(steps) = self.shards.get_mut(&shard) else {
            return false;
        };
        let mut waits = false;
        for active in steps.active.values_mut() {
            match active.stage {
                Stage::Fenced(_) | Stage::Looking(None) => {
                    active.stage = Stage::Fenced(batch);
                    steps.fence = steps.fence.max(batch);
                    waits = true;
                }
                Stage::Counted(_) => active.stage = Stage::Looked,
                Stage::New
                | Stage::Looking(Some(_))
                | Stage::Looked
                | Stage::Standing
                | Stage::Leaving => {}
            }
        }
        waits
    }

    /// The last batches of each shard that steps wait for: before they look at tiers, and before they answer.
    pub(super) fn fences(&self) -> impl Iterator<Item = (i32, u64, u64)> {
        let shards = self.shards.iter();
        shards.map(|(shard, steps)| (*shard, steps.fence, steps.answer))
    }

    /// Memory is looked at for the new steps of a shard, of which a task moved to another one at `moved` last, in steady time. Those that are
    /// fenced, by the ids that they name, wait for a batch.
    pub(super) fn begin(
        &mut self,
        shard: i32,
        batch: u64,
        moved: Duration,
        is_fenced: impl Fn(Option<&BTreeSet<Arc<str>>>) -> bool,
    ) {
        let Some(steps) = self.shards.get_mut(&shard) else {
            return;
        };
        for active in steps.active.values_mut() {
            if active.stage != Stage::New {
                continue;
            }
            // A shard that had looked by then did not find it, by the clock that is wrong the other way.
            active.moved = active.appended.is_none_or(|at| at <= moved + SKEW);
            active.stage = if is_fenced(active.ids()) {
                steps.fence = steps.fence.max(batch);
                Stage::Fenced(batch)
            } else {
                Stage::Looking(None)
            };
        }
    }

    /// A shard leaves: its steps go no further here.
    pub(super) fn leave(&mut self, shard: i32) {
        for (of, _, active) in self.all_mut() {
            if of == shard {
                active.stage = Stage::Leaving;
            }
        }
    }

    /// The look of this number has passed everything of a tier below an offset, and what it has found there is settled.
    pub(super) fn note_looked(&mut self, number: u64, lane: LaneId, next: i64) {
        let Some(steps) = self.shards.get_mut(&lane.shard) else {
            return;
        };
        for (place, active) in &mut steps.active {
            if active.stage != Stage::Looking(Some(number)) {
                continue;
            }
            active.pass(lane.source, next);
            // What names ids is looked for again at little cost.
            if active.ids().is_none() {
                self.changed.insert((lane.shard, *place));
            }
        }
    }

    /// The look of this number has passed everything.
    pub(super) fn end_look(&mut self, number: u64) {
        for (_, _, active) in self.all_mut() {
            if active.stage == Stage::Looking(Some(number)) {
                active.stage = Stage::Looked;
            }
        }
    }

    /// How far the changed steps are; how far they have looked only if `is_whole`, else as before. Of those whose answers are `waiting` to be
    /// written, what was counted stands until they are.
    pub(super) fn changes(
        &mut self,
        is_whole: bool,
        waiting: &BTreeSet<(i32, Place)>,
        states: &mut Vec<(i32, State)>,
    ) {
        for (shard, place) in mem::take(&mut self.changed) {
            if waiting.contains(&(shard, place)) {
                self.changed.insert((shard, place));
                continue;
            }
            // It was to be written when the shard was ours before; the step goes on with what is written by now.
            if self.is_known(shard, place) {
                continue;
            }
            let active = self.get_mut(shard, place);
            let progress = active.map(|active| {
                if is_whole {
                    active.progress()
                } else {
                    active.progress_of_counts()
                }
            });
            states.push((shard, State::Step { place, progress }));
        }
    }

    /// How long stages need not be looked at.
    pub(super) fn rest(&self) -> Duration {
        let shards = self.shards();
        let active = shards.flat_map(|(_, active)| active.values());
        let rests = active.map(|active| match active.stage {
            Stage::New | Stage::Fenced(_) | Stage::Looking(_) | Stage::Counted(_) => CHECK,
            // A call, or reading, may take seconds.
            Stage::Looked => CHECK * 10,
            Stage::Standing | Stage::Leaving => REST,
        });
        rests.min().unwrap_or(REST)
    }

    /// Notes what former owners of a shard have written of its commands.
    pub(super) fn know(
        &mut self,
        shard: i32,
        taken: Vec<(Source, Taken)>,
        steps: Vec<(Place, Progress)>,
    ) {
        let known = Known {
            taken: taken.into_iter().collect(),
            steps: steps.into_iter().collect(),
        };
        self.known.insert(shard, known);
    }

    /// What they have written of the taken offsets of a lane; once.
    pub(super) fn known_taken(&mut self, lane: LaneId) -> Option<Taken> {
        self.known.get_mut(&lane.shard)?.taken.remove(&lane.source)
    }

    /// Whether they have looked for a step once more.
    pub(super) fn has_looked_again(&self, shard: i32, place: Place) -> bool {
        let known = self.known.get(&shard);
        let known = known.and_then(|known| known.steps.get(&place));
        known.is_some_and(|known| known.again)
    }

    /// What they have written of a step; once.
    pub(super) fn known_step(&mut self, shard: i32, place: Place) -> Option<Progress> {
        self.known.get_mut(&shard)?.steps.remove(&place)
    }

    /// Whether they have written of a step that has not begun here.
    fn is_known(&self, shard: i32, place: Place) -> bool {
        let known = self.known.get(&shard);
        known.is_some_and(|known| known.steps.contains_key(&place))
    }

    /// Forgets a shard.
    pub(super) fn forget(&mut self, shard: i32) {
        self.shards.remove(&shard);
        self.known.remove(&shard);
        self.changed.retain(|(of, _)| *of != shard);
    }
}

// === impl OfShard ===

impl OfShard {
    /// Adds a step.
    fn insert(&mut self, active: Active) {
        let place = active.place();
        self.index.insert(place, &active.command().selector);
        self.active.insert(place, active);
    }

    /// Forgets a step.
    fn remove(&mut self, place: Place) -> Option<Active> {
        let active = self.active.remove(&place)?;
        self.index.remove(place, &active.command().selector);
        Some(active)
    }
}
