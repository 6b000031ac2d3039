//! The engine's part in commands: which tasks a command meets, wherever they wait, what is done with them, and when that is all.
//!
//! A step of a command, which is an open offset of its shard's lane of commands, goes through these stages:
//! 1. *New*: every task in memory that it is about is taken out of its queue, and its consequence settled. Calls in flight are waited for.
//! 2. *Fenced*: what was settled before may be parked by now or not; that is over with the next batch.
//! 3. *Looking*: the tiers are read from where their lanes are to where they end, beside the lanes, for all steps that are so far
//!    ([`Action::Look`]). A parked task that is found is *taken*: its offset is open early, settled at once, and marked.
//! 4. *Looked*: when the retry topic is read as far as it was, the step answers.
//! 5. *Standing*: a step that names ids which were not found waits for them until it expires.
//!
//! What is read by a lane meanwhile is looked at on its way. A task bears the last command that was applied to it, so that none is applied
//! twice. How far a step is, is written with what follows from it. Invariant: a task that a command is about is settled by it before the step
//! answers, or its call is back; and an answer counts exactly what was settled.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::mem;
use std::sync::Arc;
use std::time::Duration;

use super::{Closing, Engine};
use crate::agenda::Item;
use crate::consequence::{self, Answer as Said, End};
use crate::control::{
    Answer, Command, Control, Counts, Ended, Looked, Looking, Place, Progress, Refusal, Step, Verb,
};
use crate::entry::{Entry, Transition};
use crate::lane::{LaneId, Source};
use crate::outcome::{Outcome, Terminal, Verdict};
use crate::planted::Bug;
use crate::scene::Scenes;
use crate::state::{State, StateKey};
use crate::step::{Action, Applied, Effect, Look, LookLane, Now, Position, Settlement};
use crate::taken::Taken;
use crate::task::Task;
use crate::time::Timestamp;
use crate::verdict;
use crate::wait::{Wait, Waited};

/// The commands of the shards of a worker.
#[derive(Debug, Default)]
pub(super) struct Commands {
    /// The steps of each shard that has some.
    shards: BTreeMap<i32, Steps>,
    /// Tasks that a command has met, and that wait for room in the batch, each with what is to be written besides.
    waiting: VecDeque<Met>,
    /// Tasks that a command has met, and that wait for the order of their keys to be settled.
    unsettled: BTreeSet<(LaneId, i64)>,
    /// What the look has found and how far it is, in that order.
    found: VecDeque<Found>,
    /// The look at tiers that is under way.
    look: Option<UnderWay>,
    /// The answers to requests that stand in these shards.
    sums: BTreeMap<(i32, Place), Sum>,
    /// What is known of shards whose lanes are not assigned yet.
    known: BTreeMap<i32, Known>,
    /// The steps whose progress is to be written.
    changed: BTreeSet<(i32, Place)>,
    /// When the stages of steps are looked at next, in steady time.
    check_at: Duration,
    /// The number of the last look.
    looks: u64,
}

/// A task that a command has met.
#[derive(Debug)]
struct Met {
    /// The task.
    item: Item,
    /// What is to be written besides, of what was decided before and is not written.
    besides: Vec<Entry>,
    /// The commands that this follows from.
    applied: Vec<Applied>,
}

/// What former owners of a shard have written of its commands.
#[derive(Debug, Default)]
struct Known {
    /// The taken offsets of its tiers.
    taken: BTreeMap<Source, Taken>,
    /// How far its steps are.
    steps: BTreeMap<Place, Progress>,
}

/// The steps of a shard.
#[derive(Debug, Default)]
struct Steps {
    /// The steps, by the place of their commands.
    active: BTreeMap<Place, Active>,
    /// Those that name ids, by id.
    ids: HashMap<Arc<str>, Vec<Place>>,
    /// Those that name none.
    others: BTreeSet<Place>,
}

/// A step.
#[derive(Debug)]
struct Active {
    /// Its open offset; none while the record is under way that it goes on with.
    offset: Option<i64>,
    /// The bytes that it holds.
    bytes: usize,
    /// What is to be done.
    step: Step,
    /// What was done.
    counts: Counts,
    /// The ids that were found.
    met: HashSet<Arc<str>>,
    /// How far it is.
    stage: Stage,
    /// The tiers that are looked at, and how far.
    looking: BTreeMap<Source, (i64, i64)>,
    /// The same, as it was written last.
    kept: Vec<Looking>,
    /// Where the retry topic ended.
    tasks_to: Option<i64>,
    /// Whether tasks were on their way to other shards when it began.
    moved: bool,
}

/// How far a step is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
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
}

/// What follows from a command, and which commands that is.
type Decided = (Vec<Entry>, Vec<Applied>);

/// A look at tiers.
#[derive(Debug)]
struct UnderWay {
    /// Its number.
    number: u64,
    /// The tiers, each with its assignment, how far it is looked at, and where that ends once that is known.
    lanes: BTreeMap<LaneId, (u64, i64, Option<i64>)>,
}

/// What a look says.
#[derive(Debug)]
enum Found {
    /// A task that a command may be about.
    Task {
        /// The tier.
        lane: LaneId,
        /// The offset.
        offset: i64,
        /// The task.
        task: Box<Task>,
    },
    /// All below an offset was looked at.
    Passed(LaneId, i64),
}

/// The answers to a request.
#[derive(Debug)]
struct Sum {
    /// The last answer, which says what is asked of all.
    of: Answer,
    /// The offset of each answer and what it says, by its first shard.
    answers: BTreeMap<i32, (i64, Answer)>,
}

/// How long a look may be waited for while others can be begun with it, and how often stages are looked at.
const CHECK: Duration = Duration::from_millis(5);

/// How often it is looked whether a step has waited long enough.
const REST: Duration = Duration::from_millis(250);

/// How long ago a task may have moved that a shard did not find which had looked by then: as late as a step may be read.
const MOVED: Duration = Duration::from_mins(10);

/// Most steps that one look is for.
const MOST_LOOKS: usize = 4_096;

/// Most ids of a shard that are waited for; the oldest step that names some is over where there are more.
const MOST_STANDING: usize = 10_000;

/// Offsets behind the end of the lane of commands at which a record that waits there goes to the end, so that the lane can be read on: half
/// of what a commit can hold.
const FAR: i64 = crate::completions::MAX_SPAN / 2;

/// What is found and not done, at most.
const MOST_FOUND: usize = 1_024;

/// The bytes that a record of a command holds besides its texts.
const OVERHEAD: usize = 1_024;

// === impl Commands ===

impl Commands {
    /// Whether there is nothing to do and nothing to wait for.
    pub(super) fn is_idle(&self) -> bool {
        self.shards.is_empty() && self.sums.is_empty() && self.found.is_empty()
    }

    /// The commands that a task of a lane meets and that were not applied to it, in their order.
    fn meets(&self, scenes: &Scenes, lane: LaneId, offset: i64, task: &Task) -> Vec<Place> {
        let Some(steps) = self.shards.get(&lane.shard) else {
            return Vec::new();
        };
        let by_id = steps.ids.get(&task.id).into_iter().flatten();
        let mut places = Vec::new();
        for place in by_id.chain(&steps.others) {
            let is_later = task.commanded.as_ref().is_none_or(|last| **last < *place);
            let fits = |active: &Active| {
                active.reaches(lane.source, offset)
                    && active
                        .step
                        .command
                        .selector
                        .fits(task, scenes.find(&task.scene).map(|scene| &**scene))
            };
            if is_later && steps.active.get(place).is_some_and(fits) {
                places.push(*place);
            }
        }
        places.sort_unstable();
        places
    }

    /// A step.
    fn active(&mut self, shard: i32, place: Place) -> Option<&mut Active> {
        self.shards.get_mut(&shard)?.active.get_mut(&place)
    }

    /// Forgets a step.
    fn remove(&mut self, shard: i32, place: Place) -> Option<Active> {
        let steps = self.shards.get_mut(&shard)?;
        let active = steps.active.remove(&place)?;
        for id in active.step.command.selector.ids().into_iter().flatten() {
            if let Some(places) = steps.ids.get_mut(id) {
                places.retain(|of| *of != place);
                if places.is_empty() {
                    steps.ids.remove(id);
                }
            }
        }
        steps.others.remove(&place);
        if steps.active.is_empty() {
            self.shards.remove(&shard);
        }
        Some(active)
    }

    /// How long stages need not be looked at.
    fn rest(&self) -> Duration {
        if !self.waiting.is_empty() || !self.found.is_empty() {
            return CHECK;
        }
        let active = self.shards.values().flat_map(|steps| steps.active.values());
        let rests = active.map(|active| match active.stage {
            Stage::New | Stage::Fenced(_) | Stage::Looking(_) | Stage::Counted(_) => CHECK,
            // A call, or reading, may take seconds.
            Stage::Looked => CHECK * 10,
            Stage::Standing => REST,
        });
        rests.min().unwrap_or(REST)
    }

    /// Whether the look has found more than can be done now.
    fn is_behind(&self) -> bool {
        self.found.len() >= MOST_FOUND
    }
}

// === impl Met ===

impl Met {
    /// A task of which nothing else is to be written.
    const fn alone(item: Item) -> Self {
        Self {
            item,
            besides: Vec::new(),
            applied: Vec::new(),
        }
    }
}

// === impl Steps ===

impl Steps {
    /// Adds a step.
    fn insert(&mut self, active: Active) {
        let place = active.step.command.place;
        match active.step.command.selector.ids() {
            Some(ids) => {
                for id in ids {
                    self.ids.entry(Arc::clone(id)).or_default().push(place);
                }
            }
            None => drop(self.others.insert(place)),
        }
        self.active.insert(place, active);
    }
}

// === impl Active ===

impl Active {
    /// Whether a record is one of those that the command is about by where it stands: what names ids is about later ones, too.
    fn reaches(&self, source: Source, offset: i64) -> bool {
        if self.step.command.selector.ids().is_some() {
            return true;
        }
        match source {
            Source::Tasks => self.tasks_to.is_none_or(|to| offset < to),
            Source::Tier(_) => self.looking.get(&source).is_none_or(|(_, to)| offset < *to),
            Source::Commands => false,
        }
    }

    /// How far it is, as it is written; how far it has looked only if `is_whole`, else as before.
    fn progress(&mut self, is_whole: bool) -> Progress {
        if is_whole {
            let looking = self.looking.iter();
            let looking = looking.map(|(source, (next, to))| Looking {
                source: *source,
                next: *next,
                to: *to,
            });
            self.kept = looking.collect();
        }
        Progress {
            counts: self.counts,
            looking: self.kept.clone(),
        }
    }

    /// Whether all ids that it names were found.
    fn has_met_all(&self) -> bool {
        let ids = self.step.command.selector.ids();
        ids.is_none_or(|ids| self.counts.found >= ids.len() as u64)
    }
}

// === impl Engine ===

impl Engine {
    /// What former owners of a shard have written of its commands; it comes before the shard's first lane.
    pub(super) fn know_commands(
        &mut self,
        shard: i32,
        taken: Vec<(Source, Taken)>,
        steps: Vec<(Place, Progress)>,
    ) {
        let known = Known {
            taken: taken.into_iter().collect(),
            steps: steps.into_iter().collect(),
        };
        self.commands.known.insert(shard, known);
    }

    /// The taken offsets that a lane begins with.
    pub(super) fn known_taken(&mut self, lane: LaneId) -> Taken {
        if self.bug.is(Bug::TakenForgotten) {
            return Taken::default();
        }
        let known = self.commands.known.get_mut(&lane.shard);
        known
            .and_then(|known| known.taken.remove(&lane.source))
            .unwrap_or_default()
    }

    /// A record of the commands topic was read.
    pub(super) fn control(
        &mut self,
        now: Now,
        position: Position,
        control: Result<Control, Box<Refusal>>,
        actions: &mut Vec<Action>,
    ) {
        if self.read(now, position, actions) {
            let Position { lane, offset, .. } = position;
            match control {
                Ok(Control::Request(command)) => self.request(now, lane, offset, &command, actions),
                Ok(Control::Step(step)) => self.begin_step(now, lane, offset, step, actions),
                Ok(Control::Answer(answer)) => self.sum_up(now, lane, offset, answer, actions),
                Ok(Control::Ended(_)) => self.over(lane, offset, 0, Vec::new(), actions),
                Err(refusal) => {
                    let Refusal { place, id, why } = *refusal;
                    let ended = Ended {
                        place,
                        id,
                        at: now.wall,
                        ids: 0,
                        result: Err(why),
                    };
                    let entries = vec![told(lane.shard, Control::Ended(ended))];
                    self.over(lane, offset, 0, entries, actions);
                }
            }
        }
        self.pause_if_full(now, position, actions);
    }

    /// A record of the commands topic is over, with what follows from it.
    fn over(
        &mut self,
        lane: LaneId,
        offset: i64,
        bytes: usize,
        entries: Vec<Entry>,
        actions: &mut Vec<Action>,
    ) {
        let closing = Closing {
            lane,
            offset,
            home: lane.shard,
            bytes,
        };
        self.settle(closing, entries, actions);
    }

    /// A request: each shard has a step of it.
    fn request(
        &mut self,
        now: Now,
        lane: LaneId,
        offset: i64,
        command: &Arc<Command>,
        actions: &mut Vec<Action>,
    ) {
        let shards = self.quotas.shards();
        let is_old = command.place.at + crate::control::LONGEST < now.wall;
        let entries = if is_old {
            let ended = Ended {
                place: command.place,
                id: Arc::clone(&command.id),
                at: now.wall,
                ids: 0,
                result: Err("the command is older than commands are kept".into()),
            };
            vec![told(lane.shard, Control::Ended(ended))]
        } else {
            let step = |shard| {
                let step = Step {
                    command: Arc::clone(command),
                    shards,
                    again: false,
                    before: Counts::default(),
                    looked: None,
                };
                told(shard, Control::Step(step))
            };
            (0..shards.cast_signed()).map(step).collect()
        };
        self.over(lane, offset, 0, entries, actions);
    }

    /// A step is to be made, or goes on.
    fn begin_step(
        &mut self,
        now: Now,
        lane: LaneId,
        offset: i64,
        step: Step,
        actions: &mut Vec<Action>,
    ) {
        let (shard, place) = (lane.shard, step.command.place);
        // What stands is bounded by its number.
        let bytes = if step.looked.is_some() {
            0
        } else {
            memory_size(&step.command)
        };
        let active = self.commands.active(shard, place);
        if step.looked.is_none() && active.is_some_and(|active| active.step.looked.is_some()) {
            // It begins anew, and so does what is written of it.
            let last = self.commands.remove(shard, place);
            self.commands.changed.insert((shard, place));
            if let Some(offset) = last.and_then(|last| last.offset) {
                self.over(lane, offset, 0, Vec::new(), actions);
            }
        }
        if let Some(active) = self.commands.active(shard, place) {
            if active.offset.is_some() {
                // Written twice, as can be without transactions.
                return self.over(lane, offset, 0, Vec::new(), actions);
            }
            active.offset = Some(offset);
            active.bytes = bytes;
            self.lanes.hold(lane, bytes);
            return;
        }
        self.lanes.hold(lane, bytes);
        let known = self.commands.known.get_mut(&shard);
        let known = known.and_then(|known| known.steps.remove(&place));
        let known = known.filter(|_| !self.bug.is(Bug::StepRestarted));
        let counts = known.as_ref().map_or(step.before, |known| known.counts);
        let known = known.unwrap_or_default();
        let looking = known.looking.iter().map(|of| (of.source, (of.next, of.to)));
        let active = Active {
            offset: Some(offset),
            bytes,
            counts,
            met: HashSet::new(),
            stage: Stage::New,
            looking: looking.collect(),
            kept: known.looking.clone(),
            moved: false,
            tasks_to: None,
            step,
        };
        self.commands
            .shards
            .entry(shard)
            .or_default()
            .insert(active);
        self.commands.check_at = self.commands.check_at.min(now.steady + CHECK);
    }

    /// An answer: when all are there, the command has ended.
    fn sum_up(
        &mut self,
        now: Now,
        lane: LaneId,
        offset: i64,
        answer: Answer,
        actions: &mut Vec<Action>,
    ) {
        let key = (lane.shard, answer.place);
        let sum = self.commands.sums.entry(key).or_insert_with(|| Sum {
            of: answer.clone(),
            answers: BTreeMap::new(),
        });
        let is_known = answer.of.iter().any(|shard| {
            sum.answers
                .values()
                .any(|(_, other)| other.of.contains(shard))
        });
        let Some(first) = answer.of.first().copied().filter(|_| !is_known) else {
            return self.over(lane, offset, 0, Vec::new(), actions);
        };
        sum.answers.insert(first, (offset, answer));
        let there: usize = sum
            .answers
            .values()
            .map(|(_, answer)| answer.of.len())
            .sum();
        if there < sum.of.shards as usize {
            return;
        }
        let Some(sum) = self.commands.sums.remove(&key) else {
            unreachable!("just summed up");
        };
        let answers = sum.answers.values().map(|(_, answer)| answer);
        let counts = answers.clone().fold(Counts::default(), |counts, answer| {
            counts.and(answer.counts)
        });
        let mut answers = answers;
        if let Some(again) = answers.find_map(|answer| answer.again.as_deref()) {
            let step = |shard| {
                let step = Step {
                    before: if shard == 0 {
                        counts
                    } else {
                        Counts::default()
                    },
                    ..again.clone()
                };
                told(shard, Control::Step(step))
            };
            let steps = (0..sum.of.shards.cast_signed()).map(step).collect();
            return self.over_all(lane, sum.answers, steps, actions);
        }
        let ended = Ended {
            place: sum.of.place,
            id: sum.of.id,
            at: now.wall,
            ids: sum.of.ids,
            result: Ok(counts),
        };
        let ended = vec![told(lane.shard, Control::Ended(ended))];
        self.over_all(lane, sum.answers, ended, actions);
    }

    /// Several answers are over, and this follows from all of them.
    fn over_all(
        &mut self,
        lane: LaneId,
        answers: BTreeMap<i32, (i64, Answer)>,
        mut entries: Vec<Entry>,
        actions: &mut Vec<Action>,
    ) {
        for (offset, _) in answers.into_values() {
            self.over(lane, offset, 0, mem::take(&mut entries), actions);
        }
    }

    /// The places of the commands that a task meets which is in memory, or is read.
    pub(super) fn meets(&self, item: &Item) -> bool {
        !self.commands.shards.is_empty()
            && !self.places(item.lane, item.offset, &item.task).is_empty()
    }

    /// The same of a task that has waited for others of its key.
    pub(super) fn is_met(&mut self, item: &Item) -> bool {
        self.commands.unsettled.remove(&(item.lane, item.offset));
        self.meets(item)
    }

    /// The same, by place.
    fn places(&self, lane: LaneId, offset: i64, task: &Task) -> Vec<Place> {
        self.commands.meets(&self.scenes, lane, offset, task)
    }

    /// A task that a command meets is in memory: what the command says is done with it, as soon as there is room.
    pub(super) fn command(&mut self, item: Item) {
        self.commands.waiting.push_back(Met::alone(item));
    }

    /// Does with a task what the last command says that it meets. Without one, the task goes on.
    fn apply(&mut self, now: Now, met: Met, actions: &mut Vec<Action>) {
        let Met {
            item,
            besides,
            applied: mut before,
        } = met;
        let places = self.places(item.lane, item.offset, &item.task);
        let at = (item.lane, item.offset);
        let Some(last) = places.last().copied() else {
            self.commands.unsettled.remove(&at);
            if besides.is_empty() {
                return self.outbound.push_back(item);
            }
            // It is parked as it was to be.
            let tier = self.ladder.tier_for(item.task.wake().since(now.wall));
            let closing = self.closing(&item);
            let park = Entry::Park {
                tier,
                to: None,
                task: item.task,
            };
            let entries = besides.into_iter().chain([park]).collect();
            return self.settle_by(closing, entries, before, actions);
        };
        let Some(item) = self.if_settled(item) else {
            self.commands.unsettled.insert(at);
            return;
        };
        self.commands.unsettled.remove(&at);
        let Some(active) = self.commands.active(item.lane.shard, last) else {
            unreachable!("met and gone");
        };
        let command = Arc::clone(&active.step.command);
        let wait = self.wait_of(now, &item);
        // Parked, it would be held as one that had a scene.
        let moves = matches!(command.verb, Verb::RunNow | Verb::Reschedule { .. });
        let is_lost = moves && self.is_without_scene(&item);
        let closing = self.closing(&item);
        let id = Arc::clone(&item.task.id);
        let mut task = Arc::unwrap_or_clone(item.task);
        task.commanded = Some(Box::new(last));
        let (mut entries, effect) = if is_lost {
            Self::died_without_scene(now, task, &command)
        } else {
            self.told_by(now, task, &command, wait)
        };
        match effect {
            Effect::Done => name(&mut entries, &command),
            Effect::TooLate => {}
        }
        let entries = besides.into_iter().chain(entries).collect();
        before.extend(applied(&places, effect, &id));
        self.settle_by(closing, entries, before, actions);
    }

    /// The end of a task that has no scene and never had one, with the word that the command came too late.
    fn died_without_scene(now: Now, task: Task, command: &Command) -> (Vec<Entry>, Effect) {
        let told = consequence::too_late(&task, now.wall, Terminal::Dead, &command.id);
        let how = End {
            terminal: Terminal::Dead,
            reason: Some(Self::reason_without_scene(&task)),
            attempts: task.attempt.saturating_sub(1),
            wait: None,
        };
        let mut entries = consequence::end(Arc::new(task), how, now.wall);
        entries.push(told);
        (entries, Effect::TooLate)
    }

    /// What follows for a task of which no call is in flight.
    fn told_by(
        &self,
        now: Now,
        mut task: Task,
        command: &Command,
        wait: Wait,
    ) -> (Vec<Entry>, Effect) {
        let due = match &command.verb {
            Verb::Cancel => {
                let how = End {
                    terminal: Terminal::Cancelled,
                    reason: None,
                    attempts: task.attempt.saturating_sub(1),
                    wait: None,
                };
                return (
                    consequence::end(Arc::new(task), how, now.wall),
                    Effect::Done,
                );
            }
            Verb::Complete(outcome) => {
                let Some(scene) = self.scenes.find(&task.scene) else {
                    // Without rules a task ends as somebody says, or waits for them.
                    return (
                        self.completed_without_rules(now, task, outcome, wait),
                        Effect::Done,
                    );
                };
                let verdict = verdict::verdict(scene, &task, outcome, now.wall);
                let said = Said {
                    outcome: outcome.word(),
                    failure: outcome.failure().cloned(),
                    wait,
                    left_out: None,
                };
                return (
                    consequence::of_verdict(task, verdict, said, &self.ladder, now.wall),
                    Effect::Done,
                );
            }
            Verb::RunNow => task.due.min(now.wall.ceil_to_millis()),
            Verb::Reschedule { due } => *due,
        };
        task.due = due.min(now.wall + crate::scene::MAX_DELAY).ceil_to_millis();
        task.deferral = None;
        let told = Transition::Rescheduled { due: task.due };
        (
            consequence::park(task, None, &self.ladder, now.wall, Some((told, None))),
            Effect::Done,
        )
    }

    /// The end of a task without rules of which somebody says what came of it; a failure that another attempt may mend leaves it as it is.
    fn completed_without_rules(
        &self,
        now: Now,
        task: Task,
        outcome: &Outcome,
        wait: Wait,
    ) -> Vec<Entry> {
        let verdict = match outcome {
            Outcome::Success => Verdict::Delivered,
            Outcome::Permanent(_) | Outcome::Refused(_) => {
                Verdict::Dead(crate::outcome::Reason::Rejected)
            }
            Outcome::Retryable(_) | Outcome::Throttled { .. } | Outcome::Timeout(_) => {
                Verdict::Retry {
                    due: (now.wall + verdict::LEAST_WAIT).ceil_to_millis(),
                }
            }
        };
        let said = Said {
            outcome: outcome.word(),
            failure: outcome.failure().cloned(),
            wait,
            left_out: None,
        };
        consequence::of_verdict(task, verdict, said, &self.ladder, now.wall)
    }

    /// What follows from a call of a task that a command met while it was in flight: `None` if none did.
    pub(super) fn commanded(
        &self,
        now: Now,
        (lane, offset): (LaneId, i64),
        mut task: Task,
        mut said: Said,
        outcome: &Outcome,
    ) -> Result<Decided, Box<(Task, Said)>> {
        if self.commands.shards.is_empty() {
            return Err(Box::new((task, said)));
        }
        let places = self.places(lane, offset, &task);
        let active = places
            .last()
            .and_then(|last| self.commands.shards.get(&lane.shard)?.active.get(last));
        let Some(active) = active else {
            return Err(Box::new((task, said)));
        };
        let command = Arc::clone(&active.step.command);
        let Some(scene) = self.scenes.find(&task.scene) else {
            return Err(Box::new((task, said)));
        };
        let id = Arc::clone(&task.id);
        task.commanded = Some(Box::new(command.place));
        let verdict = verdict::verdict(scene, &task, outcome, now.wall);
        let is_success = *outcome == Outcome::Success;
        let (verdict, effect) = match (&command.verb, verdict) {
            (_, verdict) if is_success => (verdict, Effect::TooLate),
            (Verb::Cancel, _) => {
                let how = End {
                    terminal: Terminal::Cancelled,
                    reason: None,
                    attempts: task.attempt,
                    wait: Some(said.wait),
                };
                task.failure = said.failure;
                let mut entries = consequence::end(Arc::new(task), how, now.wall);
                name(&mut entries, &command);
                return Ok((entries, applied(&places, Effect::Done, &id)));
            }
            (Verb::Complete(told), _) => {
                said.outcome = told.word();
                said.failure = told.failure().cloned();
                (verdict::verdict(scene, &task, told, now.wall), Effect::Done)
            }
            (Verb::RunNow, Verdict::Retry { .. }) => {
                let due = now.wall.ceil_to_millis();
                (Verdict::Retry { due }, Effect::Done)
            }
            (Verb::Reschedule { due }, Verdict::Retry { .. }) => {
                (Verdict::Retry { due: *due }, Effect::Done)
            }
            (Verb::RunNow | Verb::Reschedule { .. }, ended) => (ended, Effect::TooLate),
        };
        let why = match verdict {
            Verdict::Delivered => Terminal::Delivered,
            Verdict::Expired => Terminal::Expired,
            Verdict::Dead(_) | Verdict::Retry { .. } => Terminal::Dead,
        };
        let told = consequence::too_late(&task, now.wall, why, &command.id);
        let mut entries = consequence::of_verdict(task, verdict, said, &self.ladder, now.wall);
        match effect {
            Effect::Done => name(&mut entries, &command),
            Effect::TooLate => entries.push(told),
        }
        Ok((entries, applied(&places, effect, &id)))
    }

    /// Counts what a settlement that goes into the batch says of commands.
    pub(super) fn count_applied(&mut self, settlement: &Settlement) {
        self.note_applied(settlement, true);
    }

    /// A settlement was not written: what it says of commands does not count any more.
    pub(super) fn uncount_applied(&mut self, settlement: &Settlement) {
        if self.bug.is(Bug::AppliedKept) {
            return;
        }
        self.note_applied(settlement, false);
    }

    /// Counts, or takes back.
    fn note_applied(&mut self, settlement: &Settlement, is_written: bool) {
        let shard = settlement.lane.shard;
        for Applied { place, effect, id } in &settlement.applied {
            let Some(active) = self.commands.active(shard, *place) else {
                continue;
            };
            let is_named = active.step.command.selector.ids().is_some();
            let is_new = if is_written {
                active.met.insert(Arc::clone(id))
            } else {
                active.met.remove(id)
            };
            let counts = &mut active.counts;
            let sort = match effect {
                Effect::Done => &mut counts.done,
                Effect::TooLate => &mut counts.too_late,
            };
            if is_written {
                *sort += 1;
                counts.found += u64::from(is_named && is_new);
            } else {
                // What was counted before it began anew is not counted here.
                *sort = sort.saturating_sub(1);
                let lost = u64::from(is_named && is_new);
                counts.found = counts.found.saturating_sub(lost);
            }
            self.commands.changed.insert((shard, *place));
        }
    }

    /// What is to be written of the progress of steps and of taken offsets.
    pub(super) fn control_changes(&mut self, states: &mut Vec<(i32, State)>) {
        // What was looked at counts only if all is written that was found there.
        let is_whole = self.unwritten() == 0;
        let changed = mem::take(&mut self.commands.changed).into_iter();
        for (shard, place) in changed {
            let active = self.commands.active(shard, place);
            let progress = active.map(|active| active.progress(is_whole));
            states.push((shard, State::Step { place, progress }));
        }
        if !self.bug.is(Bug::TakenUnmarked) {
            self.lanes.taken_changes(states);
        }
    }

    /// What was to be written of a shard's commands was not.
    pub(super) fn control_unwritten(&mut self, shard: i32, key: StateKey) {
        match key {
            StateKey::Order(_) => {}
            StateKey::Taken { .. } if self.bug.is(Bug::TakenLostOnReturn) => {}
            StateKey::Taken { source, chunk } => {
                self.lanes.taken_again(LaneId { shard, source }, chunk);
            }
            StateKey::Step(place) => drop(self.commands.changed.insert((shard, place))),
        }
    }

    /// A look has begun: where what is looked at ends, the retry topic of its shards among it.
    pub(super) fn look_begun(&mut self, number: u64, ends: &[(LaneId, i64)]) {
        let Some(look) = self
            .commands
            .look
            .as_mut()
            .filter(|look| look.number == number)
        else {
            return;
        };
        for (lane, to) in ends {
            if let Some((_, next, end)) = look.lanes.get_mut(lane) {
                *end = Some(*to);
                *next = (*next).min(*to);
            }
        }
        let lanes = look.lanes.clone();
        for (shard, steps) in &mut self.commands.shards {
            let tasks = ends.iter().find(|(lane, _)| {
                *lane
                    == LaneId {
                        shard: *shard,
                        source: Source::Tasks,
                    }
            });
            for active in steps
                .active
                .values_mut()
                .filter(|active| active.stage == Stage::Looking(Some(number)))
            {
                active.tasks_to = tasks.map(|(_, to)| *to);
                for (lane, (_, next, to)) in lanes.iter().filter(|(lane, _)| lane.shard == *shard) {
                    active
                        .looking
                        .entry(lane.source)
                        .or_insert((*next, to.unwrap_or(*next)));
                }
            }
        }
    }

    /// The look has found a task that a command may be about.
    pub(super) fn found(&mut self, number: u64, lane: LaneId, offset: i64, task: Box<Task>) {
        if self.is_looking(number, lane) {
            self.commands
                .found
                .push_back(Found::Task { lane, offset, task });
        }
    }

    /// The look has passed everything below an offset.
    pub(super) fn looked(&mut self, number: u64, lane: LaneId, next: i64) {
        if self.is_looking(number, lane) {
            self.commands.found.push_back(Found::Passed(lane, next));
        }
    }

    /// Whether the look may bring more of what it finds.
    pub fn wants_found(&self) -> bool {
        !self.commands.is_behind()
    }

    /// Whether this is the look that is under way, and the lane is the one that it is about.
    fn is_looking(&self, number: u64, lane: LaneId) -> bool {
        let look = self
            .commands
            .look
            .as_ref()
            .filter(|look| look.number == number);
        let epoch = look
            .and_then(|look| look.lanes.get(&lane))
            .map(|(epoch, ..)| *epoch);
        epoch.is_some() && epoch == self.lanes.epoch(lane)
    }

    /// How many steps of commands are under way.
    pub fn steps(&self) -> usize {
        let shards = self.commands.shards.values();
        shards.map(|steps| steps.active.len()).sum()
    }

    /// Whether a commit is wanted although nothing may have been settled: steps wait for the batch before it.
    pub fn wants_fence(&self) -> bool {
        let lanes = |shard| LaneId {
            shard,
            source: Source::Commands,
        };
        self.commands.shards.iter().any(|(shard, steps)| {
            let given = self.lanes.batches(lanes(*shard)).0;
            steps
                .active
                .values()
                .any(|active| matches!(active.stage, Stage::Fenced(after) | Stage::Counted(after) if after > given))
        })
    }

    /// When commands are to be looked after next.
    pub(super) fn next_control(&self) -> Option<Timestamp> {
        if self.commands.is_idle() {
            return None;
        }
        let mut at = self.latest + self.commands.check_at.saturating_sub(self.steady);
        let has_more = !self.commands.waiting.is_empty() || !self.commands.found.is_empty();
        if has_more && !self.is_full() {
            at = self.latest;
        }
        Some(at)
    }

    /// Does what is to be done for commands, as far as there is room.
    pub(super) fn follow_commands(&mut self, now: Now, most: usize, actions: &mut Vec<Action>) {
        if self.commands.is_idle() && self.commands.waiting.is_empty() {
            return;
        }
        let is_due = self.commands.check_at <= now.steady;
        if is_due {
            self.reach_memory();
        }
        for _ in 0..most {
            if self.is_full() {
                break;
            }
            let Some(met) = self.commands.waiting.pop_front() else {
                break;
            };
            self.apply(now, met, actions);
        }
        for _ in 0..most {
            if self.is_full() || !self.commands.waiting.is_empty() {
                break;
            }
            match self.commands.found.pop_front() {
                Some(Found::Task { lane, offset, task }) => {
                    self.take(now, lane, offset, *task, actions);
                }
                // What was found waits for the order of its key.
                Some(Found::Passed(lane, next))
                    if self.commands.unsettled.iter().any(|(of, _)| *of == lane) =>
                {
                    self.commands.found.push_front(Found::Passed(lane, next));
                    break;
                }
                Some(Found::Passed(lane, next)) => self.note_looked(lane, next),
                None => break,
            }
        }
        if is_due {
            self.commands.check_at = now.steady + self.commands.rest();
            self.follow_steps(actions);
            self.end_steps(now, actions);
            self.carry_on(actions);
        }
    }

    /// Takes the tasks in memory out of their queues that new steps are about.
    fn reach_memory(&mut self) {
        let mut shards: BTreeSet<i32> = BTreeSet::new();
        for (shard, steps) in &self.commands.shards {
            if steps
                .active
                .values()
                .any(|active| active.stage == Stage::New)
            {
                shards.insert(*shard);
            }
        }
        if shards.is_empty() {
            return;
        }
        let is_idle = self.lanes.is_settled();
        let (commands, scenes) = (&self.commands, &self.scenes);
        let meets = |lane: LaneId, offset: i64, task: &Task| {
            shards.contains(&lane.shard) && !commands.meets(scenes, lane, offset, task).is_empty()
        };
        let of_item = |item: &Item| meets(item.lane, item.offset, &item.task);
        let mut met = Vec::new();
        self.agenda.extract(of_item, &mut met);
        self.ready.extract(of_item, &mut met);
        self.orders.extract(&shards, self.latest, of_item, &mut met);
        let outbound = mem::take(&mut self.outbound);
        for item in outbound {
            if of_item(&item) {
                met.push(item);
            } else {
                self.outbound.push_back(item);
            }
        }
        let unwritten = self.writing.extract(|settlement| {
            let parked = settlement.entries.iter().find_map(Entry::parked);
            parked.is_some_and(|(_, task)| meets(settlement.lane, settlement.offset, task))
        });
        let met = met.into_iter().map(Met::alone);
        self.commands.waiting.extend(met);
        for settlement in unwritten {
            self.command_again(settlement);
        }
        for shard in shards {
            let lane = LaneId {
                shard,
                source: Source::Commands,
            };
            let (given, _) = self.lanes.batches(lane);
            self.lanes.touch_lane(lane);
            let since = self.steady.saturating_sub(MOVED);
            let moved = self.lanes.has_moved(shard, since);
            let Some(steps) = self.commands.shards.get_mut(&shard) else {
                continue;
            };
            for active in steps
                .active
                .values_mut()
                .filter(|active| active.stage == Stage::New)
            {
                active.moved = moved;
                active.stage = if is_idle || self.bug.is(Bug::Unfenced) {
                    Stage::Looking(None)
                } else {
                    Stage::Fenced(given + 1)
                };
            }
        }
    }

    /// What such a settlement is of is in memory again, and waits for the command.
    pub(super) fn command_again(&mut self, settlement: Settlement) {
        let Settlement {
            lane,
            offset,
            entries,
            applied,
            ..
        } = settlement;
        let (mut parked, mut besides) = (None, Vec::new());
        for entry in entries {
            match entry {
                Entry::Park { to, task, .. } => parked = Some((to, task)),
                Entry::Deliver { .. }
                | Entry::DeadLetter { .. }
                | Entry::Poison { .. }
                | Entry::Callback(_)
                | Entry::DeliverCallback(_)
                | Entry::Event(_)
                | Entry::State(_)
                | Entry::Alert(_)
                | Entry::Control { .. } => besides.push(entry),
            }
        }
        let Some((to, task)) = parked else {
            unreachable!("a command meets a task that is not parked");
        };
        if task.deferral.is_some() {
            // It is not in its tier.
            let shard = to.unwrap_or(lane.shard);
            self.dues.back(shard, &task.scene, task.due);
        }
        let item = Item {
            wake: task.wake(),
            sequence: 0,
            lane,
            offset,
            read: self.latest,
            waited: Waited::default(),
            counted: false,
            task,
        };
        self.commands.waiting.push_back(Met {
            item,
            besides,
            applied,
        });
    }

    /// Whether a settlement that was not written parks a task that a command meets meanwhile.
    pub(super) fn is_commanded(&self, settlement: &Settlement) -> bool {
        if self.commands.shards.is_empty() || !settlement.otherwise.is_empty() {
            return false;
        }
        let parked = settlement.entries.iter().find_map(Entry::parked);
        parked.is_some_and(|(_, task)| {
            !self
                .places(settlement.lane, settlement.offset, task)
                .is_empty()
        })
    }

    /// Takes a parked task that a command is about.
    fn take(&mut self, now: Now, lane: LaneId, offset: i64, task: Task, actions: &mut Vec<Action>) {
        if self.places(lane, offset, &task).is_empty() || !self.lanes.take(lane, offset) {
            return;
        }
        let bytes = task.memory_size();
        self.lanes.hold(lane, bytes);
        if task.deferral.is_some() {
            self.dues.back(lane.shard, &task.scene, task.due);
        }
        let item = Item {
            wake: task.wake(),
            sequence: self.number(),
            lane,
            offset,
            read: now.wall,
            waited: Waited::default(),
            counted: false,
            task: Arc::new(task),
        };
        self.enter(&item);
        self.apply(now, Met::alone(item), actions);
    }

    /// The look has passed everything of a tier below an offset, and what it has found there is settled.
    fn note_looked(&mut self, lane: LaneId, next: i64) {
        let Some(look) = &mut self.commands.look else {
            return;
        };
        let number = look.number;
        if let Some((_, known, _)) = look.lanes.get_mut(&lane) {
            *known = next.max(*known);
        }
        let Some(steps) = self.commands.shards.get_mut(&lane.shard) else {
            return;
        };
        for (place, active) in &mut steps.active {
            if active.stage != Stage::Looking(Some(number)) {
                continue;
            }
            if let Some((known, _)) = active.looking.get_mut(&lane.source) {
                *known = next.max(*known);
            }
            // What names ids is looked for again at little cost.
            if active.step.command.selector.ids().is_none() {
                self.commands.changed.insert((lane.shard, *place));
            }
        }
    }

    /// Lets steps go on to their next stage.
    fn follow_steps(&mut self, actions: &mut Vec<Action>) {
        let look = self.commands.look.as_ref();
        let looked = look.filter(|look| {
            look.lanes
                .values()
                .all(|(_, next, to)| to.is_some_and(|to| *next >= to))
        });
        if let Some(number) = looked.map(|look| look.number) {
            self.commands.look = None;
            for active in self
                .commands
                .shards
                .values_mut()
                .flat_map(|steps| steps.active.values_mut())
            {
                if active.stage == Stage::Looking(Some(number)) {
                    active.stage = Stage::Looked;
                }
            }
        }
        let mut begins = false;
        for (shard, steps) in &mut self.commands.shards {
            let (_, over) = self.lanes.batches(LaneId {
                shard: *shard,
                source: Source::Commands,
            });
            for active in steps.active.values_mut() {
                if matches!(active.stage, Stage::Fenced(after) if over >= after) {
                    active.stage = Stage::Looking(None);
                }
                begins |= active.stage == Stage::Looking(None);
            }
        }
        if begins && self.commands.look.is_none() {
            self.begin_look(actions);
        }
    }

    /// Ends the steps that have done all.
    fn end_steps(&mut self, now: Now, actions: &mut Vec<Action>) {
        if !self.commands.waiting.is_empty() {
            return;
        }
        let busy = self.busy();
        let (mut over, mut uncounted) = (Vec::new(), Vec::new());
        for (shard, steps) in &self.commands.shards {
            let tasks = LaneId {
                shard: *shard,
                source: Source::Tasks,
            };
            let read = self.lanes.end(tasks).unwrap_or(i64::MAX);
            let is_unsettled = self
                .commands
                .unsettled
                .iter()
                .any(|(lane, _)| lane.shard == *shard);
            let is_unwritten = self.writing.has_of(*shard);
            let mut standing = 0;
            for (place, active) in steps.active.iter().rev() {
                let is_over = match active.stage {
                    Stage::New | Stage::Fenced(_) | Stage::Looking(_) => false,
                    Stage::Looked | Stage::Counted(_) => {
                        // What was decided before, and is not written, may be about a task of it.
                        !is_unsettled
                            && !is_unwritten
                            && !busy.contains(&(*shard, *place))
                            && active.tasks_to.is_none_or(|to| read >= to)
                    }
                    Stage::Standing => {
                        standing += active.step.command.selector.ids().map_or(1, BTreeSet::len);
                        let is_late =
                            active.step.command.expires <= now.wall || standing > MOST_STANDING;
                        active.offset.is_some() && (is_late || active.has_met_all())
                    }
                };
                if is_over {
                    over.push((*shard, *place));
                } else if let Stage::Counted(_) = active.stage {
                    // Not so any more.
                    uncounted.push((*shard, *place));
                }
            }
        }
        for (shard, place) in uncounted {
            if let Some(active) = self.commands.active(shard, place) {
                active.stage = Stage::Looked;
            }
        }
        let is_settled = self.lanes.is_settled();
        for (shard, place) in over {
            if self.is_full() {
                break;
            }
            let source = Source::Commands;
            let (given, passed) = self.lanes.batches(LaneId { shard, source });
            let Some(active) = self.commands.active(shard, place) else {
                continue;
            };
            match active.stage {
                Stage::Looked if !is_settled => {
                    active.stage = Stage::Counted(given + 1);
                    self.lanes.touch_lane(LaneId { shard, source });
                }
                Stage::Counted(after) if passed < after => {}
                Stage::New
                | Stage::Fenced(_)
                | Stage::Looking(_)
                | Stage::Looked
                | Stage::Counted(_)
                | Stage::Standing => self.end_step(now, shard, place, actions),
            }
        }
    }

    /// The steps that are about a task whose call is in flight.
    fn busy(&self) -> BTreeSet<(i32, Place)> {
        let mut busy = BTreeSet::new();
        for call in self.calls.values() {
            let (lane, offset, task) = call.at();
            busy.extend(
                self.places(lane, offset, task)
                    .into_iter()
                    .map(|place| (lane.shard, place)),
            );
        }
        busy
    }

    /// Begins a look at the tiers of the shards that have steps for it.
    fn begin_look(&mut self, actions: &mut Vec<Action>) {
        self.commands.looks += 1;
        let number = self.commands.looks;
        let mut commands: BTreeMap<Place, Arc<Command>> = BTreeMap::new();
        let mut lanes: Vec<LookLane> = Vec::new();
        for (shard, steps) in &mut self.commands.shards {
            let mut from: BTreeMap<Source, i64> = BTreeMap::new();
            for (place, active) in &mut steps.active {
                if active.stage != Stage::Looking(None) || commands.len() >= MOST_LOOKS {
                    continue;
                }
                active.stage = Stage::Looking(Some(number));
                commands.insert(*place, Arc::clone(&active.step.command));
                for (source, epoch, end) in self.lanes.tiers(*shard) {
                    let looked = active
                        .step
                        .looked
                        .iter()
                        .flatten()
                        .find(|looked| looked.source == source);
                    let next = active.looking.get(&source).map(|(next, _)| *next);
                    let start = looked
                        .map(|looked| looked.to)
                        .or(next)
                        .unwrap_or(0)
                        .max(end);
                    let from = from.entry(source).or_insert_with(|| {
                        lanes.push(LookLane {
                            lane: LaneId {
                                shard: *shard,
                                source,
                            },
                            epoch,
                            from: 0,
                        });
                        start
                    });
                    *from = start.min(*from);
                }
            }
            for look in lanes.iter_mut().filter(|look| look.lane.shard == *shard) {
                look.from = from.get(&look.lane.source).copied().unwrap_or(0);
            }
        }
        let under_way = lanes
            .iter()
            .map(|look| (look.lane, (look.epoch, look.from, None)));
        self.commands.look = Some(UnderWay {
            number,
            lanes: under_way.collect(),
        });
        actions.push(Action::Look(Look {
            number,
            commands: commands.into_values().collect(),
            lanes,
        }));
    }

    /// A step has done all: it answers, and waits for what it has not found, if it may; or it is over.
    fn end_step(&mut self, now: Now, shard: i32, place: Place, actions: &mut Vec<Action>) {
        let lane = LaneId {
            shard,
            source: Source::Commands,
        };
        let Some(active) = self.commands.active(shard, place) else {
            return;
        };
        let Some(offset) = active.offset.take() else {
            return;
        };
        let (bytes, counts, moved) = (active.bytes, active.counts, active.moved);
        let step = active.step.clone();
        let (stage, has_met_all) = (active.stage, active.has_met_all());
        let mut entries = Vec::new();
        let is_restored = step.looked.is_some();
        let is_looked = stage != Stage::Standing;
        if is_looked && !is_restored {
            // The second time, every shard has known of the command since the first one.
            let again = (moved && !step.again).then(|| {
                Box::new(Step {
                    again: true,
                    before: Counts::default(),
                    ..step.clone()
                })
            });
            let answer = Answer {
                place,
                id: Arc::clone(&step.command.id),
                of: BTreeSet::from([shard]),
                shards: step.shards,
                ids: count_ids(&step.command),
                counts,
                again,
            };
            entries.push(told(place.partition, Control::Answer(answer)));
        }
        let stands = is_looked && !has_met_all && step.command.expires > now.wall;
        if stands {
            active.stage = Stage::Standing;
            // The answer has told of the others.
            active.counts = Counts {
                found: counts.found,
                ..Counts::default()
            };
            if is_restored {
                active.offset = Some(offset);
                return;
            }
            let looked = active.looking.iter().map(|(source, (_, to))| Looked {
                source: *source,
                to: *to,
            });
            let looked: Vec<Looked> = looked.collect();
            active.step.looked = Some(looked.clone());
            let step = Step {
                looked: Some(looked),
                ..step
            };
            entries.push(told(shard, Control::Step(step)));
        } else {
            self.commands.remove(shard, place);
        }
        self.commands.changed.insert((shard, place));
        self.over(lane, offset, bytes, entries, actions);
    }

    /// What waits far behind the end of a lane of commands goes to its end, so that the lane can be read on.
    fn carry_on(&mut self, actions: &mut Vec<Action>) {
        let mut far = Vec::new();
        for (shard, steps) in &self.commands.shards {
            let lane = LaneId {
                shard: *shard,
                source: Source::Commands,
            };
            let end = self.lanes.end(lane).unwrap_or(0);
            for (place, active) in &steps.active {
                if active.stage == Stage::Standing
                    && active.offset.is_some_and(|offset| end - offset > FAR)
                {
                    far.push((*shard, *place));
                }
            }
        }
        for (shard, place) in far {
            if self.is_full() {
                return;
            }
            let Some(active) = self.commands.active(shard, place) else {
                continue;
            };
            let (step, bytes) = (active.step.clone(), active.bytes);
            if let Some(offset) = active.offset.take() {
                let lane = LaneId {
                    shard,
                    source: Source::Commands,
                };
                self.over(
                    lane,
                    offset,
                    bytes,
                    vec![told(shard, Control::Step(step))],
                    actions,
                );
            }
        }
        let mut far = Vec::new();
        // Of a command that is long over, somebody has answered twice.
        let oldest = self.latest.before(crate::control::LONGEST);
        for ((shard, place), sum) in &self.commands.sums {
            let lane = LaneId {
                shard: *shard,
                source: Source::Commands,
            };
            let end = self.lanes.end(lane).unwrap_or(0);
            if sum.answers.values().any(|(offset, ..)| end - offset > FAR) || place.at < oldest {
                far.push((*shard, *place));
            }
        }
        for key in far {
            if self.is_full() {
                return;
            }
            let Some(sum) = self.commands.sums.remove(&key) else {
                continue;
            };
            let lane = LaneId {
                shard: key.0,
                source: Source::Commands,
            };
            if key.1.at < oldest {
                self.over_all(lane, sum.answers, Vec::new(), actions);
                continue;
            }
            let answers = sum.answers.values().map(|(_, answer)| answer);
            let answer = answers.fold(
                Answer {
                    of: BTreeSet::new(),
                    counts: Counts::default(),
                    again: None,
                    ..sum.of
                },
                |mut all, answer| {
                    all.of.extend(answer.of.iter().copied());
                    all.counts = all.counts.and(answer.counts);
                    all.again = all.again.or_else(|| answer.again.clone());
                    all
                },
            );
            let entries = vec![told(lane.shard, Control::Answer(answer))];
            self.over_all(lane, sum.answers, entries, actions);
        }
    }

    /// Forgets what is known of the commands of a shard that is given away, its tasks among it.
    pub(super) fn forget_commands(&mut self, shard: i32) {
        let commands = &mut self.commands;
        commands.shards.remove(&shard);
        commands.known.remove(&shard);
        commands.sums.retain(|(of, _), _| *of != shard);
        commands.changed.retain(|(of, _)| *of != shard);
        self.forget_commanded(shard);
    }

    /// Forgets the tasks of a shard that commands have met: the next owner reads them again.
    pub(super) fn forget_commanded(&mut self, shard: i32) {
        let commands = &mut self.commands;
        commands.waiting.retain(|met| met.item.lane.shard != shard);
        commands.unsettled.retain(|(lane, _)| lane.shard != shard);
        commands.found.retain(|found| match found {
            Found::Task { lane, .. } | Found::Passed(lane, _) => lane.shard != shard,
        });
        if let Some(look) = &mut commands.look {
            look.lanes.retain(|lane, _| lane.shard != shard);
        }
    }
}

/// An entry for the commands topic.
fn told(to: i32, control: Control) -> Entry {
    Entry::Control {
        to,
        control: Box::new(control),
    }
}

/// Says in the event of a decision which command it follows from.
fn name(entries: &mut [Entry], command: &Command) {
    for entry in entries {
        if let Entry::Event(event) = entry {
            event.command = Some(Arc::clone(&command.id));
        }
    }
}

/// Of the commands that a task has met, the last one has this effect; the others are too late.
fn applied(places: &[Place], effect: Effect, id: &Arc<str>) -> Vec<Applied> {
    let Some((last, before)) = places.split_last() else {
        return Vec::new();
    };
    let too_late = before.iter().map(|place| (place, Effect::TooLate));
    let all = too_late.chain([(last, effect)]);
    all.map(|(place, effect)| Applied {
        place: *place,
        effect,
        id: Arc::clone(id),
    })
    .collect()
}

/// How many ids a command names.
fn count_ids(command: &Command) -> u32 {
    let ids = command.selector.ids().map_or(0, BTreeSet::len);
    u32::try_from(ids).unwrap_or(u32::MAX)
}

/// The bytes that a command holds in memory.
fn memory_size(command: &Command) -> usize {
    let ids = command.selector.ids().into_iter().flatten();
    OVERHEAD + ids.map(|id| id.len() + 128).sum::<usize>()
}
