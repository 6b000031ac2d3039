//! From stage to stage: what a step waits for, and when it has done all.
//!
//! What begins a step: a record of its lane of commands, with what former owners have written of it. What ends it: everything is looked at,
//! what it has met is settled and durable, and it names nothing that is not found; or it has expired. What it never does: answer twice for
//! one record, or hold up the lane of commands. Invariant: what an answer counts is durable.

use std::collections::{BTreeMap, BTreeSet};

use super::super::Engine;
use super::step::{Active, Stage, memory_size};
use super::{CHECK, FAR, told};
use crate::control::{Control, Place, Progress, Step};
use crate::lane::{LaneId, Source};
use crate::planted::Bug;
use crate::state::State;
use crate::step::{Action, Now, Settlement};
use crate::taken::Taken;

/// Most ids of a shard that are waited for; the oldest step that names some is over where there are more.
const MOST_STANDING: usize = 10_000;

// === impl Engine ===

impl Engine {
    /// What former owners of a shard have written of its commands; it comes before the shard's first lane.
    pub(in crate::engine) fn know_commands(
        &mut self,
        shard: i32,
        taken: Vec<(Source, Taken)>,
        steps: Vec<(Place, Progress)>,
    ) {
        self.commands.steps.know(shard, taken, steps);
    }

    /// The taken offsets that a lane begins with.
    pub(in crate::engine) fn known_taken(&mut self, lane: LaneId) -> Taken {
        if self.bug.is(Bug::TakenForgotten) {
            return Taken::default();
        }
        self.commands.steps.known_taken(lane).unwrap_or_default()
    }

    /// A step is to be made, or goes on.
    pub(super) fn begin_step(
        &mut self,
        now: Now,
        lane: LaneId,
        offset: i64,
        step: Step,
        actions: &mut Vec<Action>,
    ) {
        let (shard, place) = (lane.shard, step.command.place);
        let bytes = memory_size(&step);
        let steps = &mut self.commands.steps;
        if !step.again && steps.has_looked_again(shard, place) {
            // A former owner has begun anew, and could not write that this record is over.
            return self.over(lane, offset, 0, Vec::new(), actions);
        }
        let active = steps.get(shard, place);
        let is_first = |active: &Active| step.again && !active.is_again();
        let begins = |active: &Active| step.looked.is_none() && active.is_restored();
        if active.is_some_and(|active| is_first(active) || begins(active)) {
            // It begins anew, and so does what is written of it.
            let last = steps.remove(shard, place);
            steps.change(shard, place);
            if let Some((offset, bytes)) = last.and_then(|last| Some((last.offset?, last.bytes))) {
                self.over(lane, offset, bytes, Vec::new(), actions);
            }
        }
        if let Some(active) = self.commands.steps.get_mut(shard, place) {
            if active.offset.is_some() || active.is_again() != step.again {
                // Written twice, as can be without transactions, or of the look before.
                return self.over(lane, offset, 0, Vec::new(), actions);
            }
            active.go_on(offset, bytes);
            self.lanes.hold(lane, bytes);
            return;
        }
        self.lanes.hold(lane, bytes);
        let known = self.commands.steps.known_step(shard, place);
        let known = known.filter(|known| known.again == step.again);
        let known = known.filter(|_| !self.bug.is(Bug::StepRestarted));
        let mut active = Active::new(now, offset, step, known);
        if self.lanes.is_leaving(lane) && !self.bug.is(Bug::AnsweredLeaving) {
            active.stage = Stage::Leaving;
        }
        self.commands.steps.insert(shard, active);
        self.commands.check_at = self.commands.check_at.min(now.steady + CHECK);
    }

    /// Counts what a settlement that goes into the batch says of commands.
    pub(in crate::engine) fn count_applied(&mut self, settlement: &mut Settlement) {
        let shard = settlement.lane.shard;
        let steps = &mut self.commands.steps;
        for applied in &mut settlement.applied {
            if let Some(active) = steps.get_mut(shard, applied.place) {
                applied.again = active.is_again();
                active.count(applied);
                steps.change(shard, applied.place);
            }
        }
    }

    /// A settlement was not written: what it says of commands does not count any more, unless it was counted by the look before.
    pub(in crate::engine) fn uncount_applied(&mut self, settlement: &Settlement) {
        if self.bug.is(Bug::AppliedKept) {
            return;
        }
        let shard = settlement.lane.shard;
        let steps = &mut self.commands.steps;
        for applied in &settlement.applied {
            let active = steps.get_mut(shard, applied.place);
            if let Some(active) = active.filter(|active| active.is_again() == applied.again) {
                active.uncount(applied);
                steps.change(shard, applied.place);
            }
        }
    }

    /// What is to be written of the progress of steps and of taken offsets.
    pub(in crate::engine) fn control_changes(&mut self, states: &mut Vec<(i32, State)>) {
        // What was looked at counts only if all is written that was found there.
        let is_whole = self.unwritten() == 0;
        let waiting = if self.bug.is(Bug::CountsForgotten) {
            BTreeSet::new()
        } else {
            self.writing.answering()
        };
        self.commands.steps.changes(is_whole, &waiting, states);
        if !self.bug.is(Bug::TakenUnmarked) {
            self.lanes.taken_changes(states);
        }
    }

    /// The progress of a step was to be written and was not.
    pub(super) fn step_unwritten(&mut self, shard: i32, place: Place) {
        if let Some(active) = self.commands.steps.get_mut(shard, place) {
            active.unwritten();
        } else if self.bug.is(Bug::ProgressOfBefore) {
            let _ = self.commands.steps.known_step(shard, place);
        }
        self.commands.steps.change(shard, place);
    }

    /// How many steps of commands are under way.
    pub fn steps(&self) -> usize {
        self.commands.steps.len()
    }

    /// Whether a commit is wanted although nothing may have been settled: steps wait for the batch before it.
    pub fn wants_fence(&self) -> bool {
        let mut fences = self.commands.steps.fences();
        fences.any(|(shard, look, answer)| look.max(answer) > self.given_of_commands(shard))
    }

    /// Whether one of those steps waits to look for its tasks. Others have only to say what was done.
    pub fn wants_fence_to_look(&self) -> bool {
        let mut fences = self.commands.steps.fences();
        fences.any(|(shard, look, _)| look > self.given_of_commands(shard))
    }

    /// How many commits of the commands of a shard were given.
    fn given_of_commands(&self, shard: i32) -> u64 {
        let source = Source::Commands;
        self.lanes.batches(LaneId { shard, source }).0
    }

    /// Lets steps go on to their next stage.
    pub(super) fn follow_steps(&mut self, actions: &mut Vec<Action>) {
        if let Some(number) = self.commands.looks.end() {
            self.commands.steps.end_look(number);
        }
        let deliveries = self.writing.deliveries();
        let mut begins = false;
        for (shard, _, active) in self.commands.steps.all_mut() {
            let source = Source::Commands;
            let (_, over) = self.lanes.batches(LaneId { shard, source });
            if matches!(active.stage, Stage::Fenced(after) if over >= after)
                && !deliveries.may_have(shard, active.ids())
            {
                active.stage = Stage::Looking(None);
            }
            begins |= active.stage == Stage::Looking(None);
        }
        if begins && !self.commands.looks.is_under_way() {
            self.begin_look(actions);
        }
    }

    /// What was decided of a shard, and not written, goes into the next batch: its steps wait for that.
    pub(in crate::engine) fn steps_wait_again(&mut self, shard: i32) {
        let source = Source::Commands;
        let lane = LaneId { shard, source };
        let (given, _) = self.lanes.batches(lane);
        if self.commands.steps.wait_again(shard, given + 1) {
            self.lanes.touch_lane(lane);
        }
    }

    /// Ends the steps that have done all.
    pub(super) fn end_steps(&mut self, now: Now, actions: &mut Vec<Action>) {
        if !self.commands.memory.is_done() {
            return;
        }
        let (over, mut under_way) = self.steps_over(now);
        for (shard, place) in over {
            if self.is_full() {
                break;
            }
            let source = Source::Commands;
            let lane = LaneId { shard, source };
            let (given, passed) = self.lanes.batches(lane);
            let Some(active) = self.commands.steps.get_mut(shard, place) else {
                continue;
            };
            match active.stage {
                Stage::Looked if self.lanes.is_volatile(active.ids()) => {
                    active.stage = Stage::Counted(given + 1);
                    self.commands.steps.wait_to_answer(shard, given + 1);
                    self.lanes.touch_lane(lane);
                }
                Stage::Counted(after) if passed < after => {}
                Stage::New
                | Stage::Fenced(_)
                | Stage::Looking(_)
                | Stage::Looked
                | Stage::Counted(_)
                | Stage::Standing
                | Stage::Leaving => {
                    let under_way = under_way.entry(shard).or_default();
                    self.end_step(now, (shard, place), under_way, actions);
                }
            }
        }
    }

    /// The steps that have done all, and how many ids of each shard wait with a record that is under way. Those that have done all no more
    /// are *looked* again.
    fn steps_over(&mut self, now: Now) -> (Vec<(i32, Place)>, BTreeMap<i32, usize>) {
        let busy = self.busy();
        let mut under_way: BTreeMap<i32, usize> = BTreeMap::new();
        let (mut over, mut uncounted) = (Vec::new(), Vec::new());
        for (shard, steps) in self.commands.steps.shards() {
            let source = Source::Tasks;
            let tasks = LaneId { shard, source };
            let read = self.lanes.end(tasks).unwrap_or(i64::MAX);
            let is_aside = |to| self.lanes.has_aside_below(tasks, to);
            // What was decided before, and is not written, may be about a task of it.
            let is_unwritten = self.commands.memory.has_unsettled(shard)
                || self.writing.has_of(shard)
                || self.replacing.has_newcomer(shard);
            let mut standing = 0;
            for (place, active) in steps.iter().rev() {
                let is_over = match active.stage {
                    Stage::New | Stage::Fenced(_) | Stage::Looking(_) | Stage::Leaving => false,
                    Stage::Looked | Stage::Counted(_) => {
                        !is_unwritten
                            && !busy.contains(&(shard, *place))
                            && active.tasks_to.is_none_or(|to| read >= to)
                    }
                    Stage::Standing => {
                        standing += active.waits_for();
                        if active.offset.is_none() {
                            *under_way.entry(shard).or_default() += active.waits_for();
                        }
                        let is_late =
                            active.command().expires <= now.wall || standing > MOST_STANDING;
                        let is_done = !is_unwritten
                            && !self.commands.unread.has_tasks(shard)
                            && active.has_met_all(is_aside);
                        active.offset.is_some() && (is_late || is_done)
                    }
                };
                if is_over {
                    over.push((shard, *place));
                } else if let Stage::Counted(_) = active.stage {
                    uncounted.push((shard, *place));
                }
            }
        }
        for (shard, place) in uncounted {
            if let Some(active) = self.commands.steps.get_mut(shard, place) {
                active.stage = Stage::Looked;
            }
        }
        (over, under_way)
    }

    /// The steps that are about a task whose call is in flight.
    fn busy(&self) -> BTreeSet<(i32, Place)> {
        let mut busy = BTreeSet::new();
        for call in self.calls.values() {
            let (lane, offset, task) = call.at();
            let places = self.places_of_call(lane, offset, task).into_iter();
            busy.extend(places.map(|place| (lane.shard, place)));
        }
        busy
    }

    /// A step has done all: it answers, and waits for what it has not found, if it may; or it is over. So it is, too, where the records of so
    /// many that wait are under way that nobody knows when they are read, behind a flood of others.
    fn end_step(
        &mut self,
        now: Now,
        (shard, place): (i32, Place),
        under_way: &mut usize,
        actions: &mut Vec<Action>,
    ) {
        let source = Source::Commands;
        let lane = LaneId { shard, source };
        let tasks = LaneId {
            shard,
            source: Source::Tasks,
        };
        let Some(active) = self.commands.steps.get_mut(shard, place) else {
            return;
        };
        let Some(offset) = active.offset.take() else {
            return;
        };
        let is_aside =
            |to| !self.bug.is(Bug::AsideForgotten) && self.lanes.has_aside_below(tasks, to);
        let has_met_all = active.has_met_all(is_aside);
        let bytes = active.bytes;
        let is_looked = active.stage != Stage::Standing;
        let is_restored = active.is_restored();
        let mut entries = Vec::new();
        if is_looked && !is_restored {
            let answer = Control::Answer(active.answer(shard));
            entries.push(told(place.partition, answer));
        }
        let may_stand = is_restored || *under_way < MOST_STANDING;
        if is_looked && !has_met_all && active.command().expires > now.wall && may_stand {
            active.stand();
            if is_restored {
                active.offset = Some(offset);
                return;
            }
            *under_way += active.waits_for();
            active.restore();
            entries.push(told(shard, Control::Step(active.again())));
        } else {
            self.commands.steps.remove(shard, place);
        }
        self.commands.steps.change(shard, place);
        self.over(lane, offset, bytes, entries, actions);
    }

    /// A step that waits far behind the end of its lane goes to its end, so that the lane can be read on.
    pub(super) fn carry_steps_on(&mut self, actions: &mut Vec<Action>) {
        let mut far = Vec::new();
        for (shard, steps) in self.commands.steps.shards() {
            let source = Source::Commands;
            let end = self.lanes.end(LaneId { shard, source }).unwrap_or(0);
            for (place, active) in steps {
                let is_far = active.offset.is_some_and(|offset| end - offset > FAR);
                if active.stage == Stage::Standing && is_far {
                    far.push((shard, *place));
                }
            }
        }
        for (shard, place) in far {
            if self.is_full() {
                return;
            }
            let Some(active) = self.commands.steps.get_mut(shard, place) else {
                continue;
            };
            let (step, bytes) = (active.again(), active.bytes);
            if let Some(offset) = active.offset.take() {
                let source = Source::Commands;
                let entries = vec![told(shard, Control::Step(step))];
                self.over(LaneId { shard, source }, offset, bytes, entries, actions);
            }
        }
    }
}
