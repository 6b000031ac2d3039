//! The look at tiers: one reading for all steps that are so far, beside the lanes.
//!
//! The shell reads, from where the lanes are to where they end, and says what it finds and how far it is ([`Action::Look`]). A parked task
//! that is found is *taken*: its offset is open early, settled at once, and marked. Not which steps there are, which is `steps`'. Invariant: a
//! tier counts as looked at below an offset when everything is settled that was found there.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use super::super::Engine;
use super::memory::Met;
use super::step::Stage;
use crate::agenda::Item;
use crate::control::{Command, Place};
use crate::lane::{LaneId, Source};
use crate::step::{Action, Look, LookLane, Now};
use crate::task::Task;
use crate::wait::Waited;

/// What is looked for in tiers.
#[derive(Debug, Default)]
pub(super) struct Looks {
    /// The look that is under way.
    under_way: Option<UnderWay>,
    /// What it has found and how far it is, in that order.
    found: VecDeque<Found>,
    /// The bytes of the tasks that it has found.
    bytes: usize,
    /// The number of the last look.
    count: u64,
    /// When the next slice of it may be done, in steady time, and how much of the last one is left: see [`PACE`].
    slice_at: Duration,
    left: usize,
}

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

/// Most steps that one look is for.
const MOST_LOOKS: usize = 4_096;

/// What is found and not done, at most: after that, nothing more is taken from the look.
const MOST_FOUND: usize = 1_024;

/// The bytes of it, likewise: what a lane may hold of tasks that its commit waits for is more.
const MOST_BYTES: usize = 4 << 20;

/// Time for each task that is taken: 25,000 a second. A command about millions of them takes what is found evenly, and leaves a part of
/// the machine to what is due: as fast as the machine can, it takes a million in 10 to 25 s, and a healthy scene waits for that. What was
/// taken before costs next to nothing, and no time.
const PACE: Duration = Duration::from_micros(40);

/// How many follow one another at once: few enough that what is due does not notice, and enough that they cost no turn each.
const SLICE: usize = 64;

/// The time for these.
const SLICE_TIME: Duration = PACE.saturating_mul(SLICE as u32);

// === impl Looks ===

impl Looks {
    /// When more of what was found may be done, in steady time.
    pub(super) const fn next_at(&self) -> Duration {
        if self.left > 0 {
            Duration::ZERO
        } else {
            self.slice_at
        }
    }

    /// Whether a task that was found may be done `now`. One slice is caught up with, where a turn took long.
    fn may_take(&mut self, now: Duration) -> bool {
        if now < self.next_at() {
            return false;
        }
        if self.left == 0 {
            self.left = SLICE;
            self.slice_at = self.slice_at.max(now.saturating_sub(SLICE_TIME)) + SLICE_TIME;
        }
        true
    }

    /// Whether nothing was found that is not done.
    pub(super) fn is_done(&self) -> bool {
        self.found.is_empty()
    }

    /// Whether more was found than can be done now.
    fn is_behind(&self) -> bool {
        self.found.len() >= MOST_FOUND || self.bytes >= MOST_BYTES
    }

    /// Whether a look is under way.
    pub(super) const fn is_under_way(&self) -> bool {
        self.under_way.is_some()
    }

    /// Begins a look at these tiers, and gives its number.
    fn begin(&mut self, number: u64, lanes: &[LookLane]) {
        let lanes = lanes
            .iter()
            .map(|look| (look.lane, (look.epoch, look.from, None)));
        self.under_way = Some(UnderWay {
            number,
            lanes: lanes.collect(),
        });
    }

    /// The look of this number, if it is under way.
    fn of(&mut self, number: u64) -> Option<&mut UnderWay> {
        self.under_way.as_mut().filter(|look| look.number == number)
    }

    /// The number of the look, if it has passed all that it was to; another one can begin then.
    pub(super) fn end(&mut self) -> Option<u64> {
        let is_over = |look: &mut UnderWay| {
            let mut lanes = look.lanes.values();
            lanes.all(|(_, next, to)| to.is_some_and(|to| *next >= to))
        };
        self.under_way.take_if(is_over).map(|look| look.number)
    }

    /// Notes that everything of a tier below an offset was looked at; the number of the look.
    fn pass(&mut self, lane: LaneId, next: i64) -> Option<u64> {
        let look = self.under_way.as_mut()?;
        if let Some((_, known, _)) = look.lanes.get_mut(&lane) {
            *known = next.max(*known);
        }
        Some(look.number)
    }

    /// Adds what the look says.
    fn add(&mut self, found: Found) {
        self.bytes += found.memory_size();
        self.found.push_back(found);
    }

    /// What it has said first; a task only if one may be taken ([`Self::may_take`]).
    fn next(&mut self) -> Option<Found> {
        let found = self.found.pop_front()?;
        self.bytes -= found.memory_size();
        Some(found)
    }

    /// A task that was found is taken.
    const fn took(&mut self) {
        self.left -= 1;
    }

    /// Forgets a shard.
    pub(super) fn forget(&mut self, shard: i32) {
        self.found.retain(|found| match found {
            Found::Task { lane, .. } | Found::Passed(lane, _) => lane.shard != shard,
        });
        self.bytes = self.found.iter().map(Found::memory_size).sum();
        if let Some(look) = &mut self.under_way {
            look.lanes.retain(|lane, _| lane.shard != shard);
        }
    }
}

// === impl Found ===

impl Found {
    /// The bytes of its task.
    fn memory_size(&self) -> usize {
        match self {
            Self::Task { task, .. } => task.memory_size(),
            Self::Passed(..) => 0,
        }
    }
}

// === impl UnderWay ===

impl UnderWay {
    /// Notes where tiers end.
    fn ends_at(&mut self, ends: &[(LaneId, i64)]) {
        for (lane, to) in ends {
            if let Some((_, next, end)) = self.lanes.get_mut(lane) {
                *end = Some(*to);
                *next = (*next).min(*to);
            }
        }
    }
}

// === impl Engine ===

impl Engine {
    /// Begins a look at the tiers of the shards that have steps for it.
    pub(super) fn begin_look(&mut self, actions: &mut Vec<Action>) {
        self.commands.looks.count += 1;
        let number = self.commands.looks.count;
        let mut commands: BTreeMap<Place, Arc<Command>> = BTreeMap::new();
        let mut lanes: Vec<LookLane> = Vec::new();
        for (shard, steps) in self.commands.steps.shards_mut() {
            let mut from: BTreeMap<Source, i64> = BTreeMap::new();
            for (place, active) in steps {
                if active.stage != Stage::Looking(None) || commands.len() >= MOST_LOOKS {
                    continue;
                }
                active.stage = Stage::Looking(Some(number));
                commands.insert(place, Arc::clone(active.command()));
                for (source, epoch, end) in self.lanes.tiers(shard) {
                    let start = active.looks_from(source).max(end);
                    let from = from.entry(source).or_insert_with(|| {
                        lanes.push(LookLane {
                            lane: LaneId { shard, source },
                            epoch,
                            from: 0,
                        });
                        start
                    });
                    *from = start.min(*from);
                }
            }
            for look in lanes.iter_mut().filter(|look| look.lane.shard == shard) {
                look.from = from.get(&look.lane.source).copied().unwrap_or(0);
            }
        }
        self.commands.looks.begin(number, &lanes);
        actions.push(Action::Look(Look {
            number,
            commands: commands.into_values().collect(),
            lanes,
        }));
    }

    /// A look has begun: where what is looked at ends, the retry topic of its shards among it.
    pub(in crate::engine) fn look_begun(&mut self, number: u64, ends: &[(LaneId, i64)]) {
        let Some(look) = self.commands.looks.of(number) else {
            return;
        };
        look.ends_at(ends);
        for (shard, _, active) in self.commands.steps.all_mut() {
            if active.stage != Stage::Looking(Some(number)) {
                continue;
            }
            let source = Source::Tasks;
            let tasks = ends
                .iter()
                .find(|(lane, _)| *lane == LaneId { shard, source });
            active.tasks_end_at(tasks.map(|(_, to)| *to));
            for (lane, (_, next, to)) in look.lanes.iter().filter(|(lane, _)| lane.shard == shard) {
                active.looks_at(lane.source, *next, to.unwrap_or(*next));
            }
        }
    }

    /// The look has found a task that a command may be about.
    pub(in crate::engine) fn found(
        &mut self,
        number: u64,
        lane: LaneId,
        offset: i64,
        task: Box<Task>,
    ) {
        if self.is_looking(number, lane) {
            let found = Found::Task { lane, offset, task };
            self.commands.looks.add(found);
        }
    }

    /// The look has passed everything below an offset.
    pub(in crate::engine) fn looked(&mut self, number: u64, lane: LaneId, next: i64) {
        if self.is_looking(number, lane) {
            let found = Found::Passed(lane, next);
            self.commands.looks.add(found);
        }
    }

    /// Whether the look may bring more of what it finds.
    pub fn wants_found(&self) -> bool {
        !self.commands.looks.is_behind()
    }

    /// Whether this is the look that is under way, and the lane is the one that it is about.
    fn is_looking(&mut self, number: u64, lane: LaneId) -> bool {
        let look = self.commands.looks.of(number);
        let epoch = look
            .and_then(|look| look.lanes.get(&lane))
            .map(|(epoch, ..)| *epoch);
        epoch.is_some() && epoch == self.lanes.epoch(lane)
    }

    /// Does with what was found what the commands say, at most `most` of it, as far as there is room.
    pub(super) fn follow_found(&mut self, now: Now, most: usize, actions: &mut Vec<Action>) {
        for _ in 0..most {
            let is_met = self.commands.memory.is_done();
            if self.is_full() || !is_met || !self.commands.looks.may_take(now.steady) {
                break;
            }
            match self.commands.looks.next() {
                Some(Found::Task { lane, offset, task }) => {
                    self.take(now, lane, offset, *task, actions);
                }
                // What was found waits for the order of its key.
                Some(Found::Passed(lane, next)) if self.commands.memory.is_unsettled(lane) => {
                    let found = Found::Passed(lane, next);
                    self.commands.looks.found.push_front(found);
                    break;
                }
                Some(Found::Passed(lane, next)) => self.note_looked(lane, next),
                None => break,
            }
        }
    }

    /// Takes a parked task that a command is about, unless it was taken before.
    fn take(&mut self, now: Now, lane: LaneId, offset: i64, task: Task, actions: &mut Vec<Action>) {
        if self.places(lane, offset, &task).is_empty() || !self.lanes.take(lane, offset) {
            return;
        }
        self.commands.looks.took();
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
        self.enter(item.lane.shard, &item.task);
        self.apply(now, Met::alone(item), actions);
    }

    /// The look has passed everything of a tier below an offset, and what it has found there is settled.
    fn note_looked(&mut self, lane: LaneId, next: i64) {
        let Some(number) = self.commands.looks.pass(lane, next) else {
            return;
        };
        self.commands.steps.note_looked(number, lane, next);
    }
}
