//! The lanes of a worker: the state of each assigned partition, and what all of them hold together.
//!
//! Not the tasks, which wait in the agenda or the ready queues. What stops the reading of a lane: it has read far enough ahead; it holds as
//! many bytes or open offsets as it may; or all lanes together hold as much as the worker may. What lets it read on: half of that is free
//! again. What never happens: a lane drops what it has read. Invariant: bytes and the batch are the sums over the lanes.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::mem;
use std::sync::Arc;
use std::time::Duration;

use crate::key_order::{End, Ends, Fingerprint};
use crate::lane::{LaneId, Limits, Source};
use crate::overdue::{Move, Moves};
use crate::planted::{Bug, Planted};
use crate::saved::Saved;
use crate::state::State;
use crate::step::{Action, Commit, Position};
use crate::tier::HORIZON;
use crate::time::Timestamp;
use crate::window::{Ahead, Read, Window};

use super::leaving::Left;
use super::volatile::Volatile;

/// The assigned lanes.
#[derive(Debug)]
pub(super) struct Lanes {
    /// How much may be held.
    limits: Limits,
    /// The state of each lane.
    by_id: BTreeMap<LaneId, Lane>,
    /// When to ask whether paused lanes may read on.
    paused: BTreeSet<(Timestamp, LaneId)>,
    /// Bytes of the open tasks of all lanes.
    bytes: usize,
    /// What was settled since [`Self::commits`] was last asked.
    batch: Load,
    /// Whether an offset is to be committed that nothing else may be written for.
    has_passed: bool,
    /// The mistake they make.
    pub(super) bug: Planted,
}

/// What a lane begins with.
pub(super) struct Assigned {
    /// Which assignment of the partition this is.
    pub(super) epoch: u64,
    /// When it became ours.
    pub(super) at: Timestamp,
    /// The same, in steady time.
    pub(super) since: Duration,
    /// Open and completed offsets.
    pub(super) window: Window,
    /// As far as keys wait for its tasks: one past the last such offset, or 0.
    pub(super) awaited: i64,
}

/// What a durable commit of a lane lets go on.
pub(super) struct Durable {
    /// Ends of ordered tasks.
    pub(super) ends: Vec<End>,
    /// The number of what was committed of the shard's saved rates.
    pub(super) save: Option<u64>,
}

/// How much a worker holds in memory.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Memory {
    /// Bytes of open tasks.
    pub(super) tasks: usize,
    /// Bytes of what is known of keys.
    pub(super) keys: usize,
}

/// How much waits to be written.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Load {
    /// Settlements.
    pub(super) tasks: usize,
    /// Bytes of their tasks.
    pub(super) bytes: usize,
}

/// The state of one assigned partition.
#[derive(Clone, Debug)]
struct Lane {
    /// The topic.
    source: Source,
    /// Which assignment of the partition this is; an answer to a call of another one is not for this lane.
    epoch: u64,
    /// When it became ours.
    assigned: Timestamp,
    /// Open and completed offsets.
    window: Window,
    /// Counts resumptions; records polled before the last one are stale and come again.
    run: u64,
    /// Bytes of its open tasks, and of what is set aside.
    bytes: usize,
    /// The open offsets of which it is not known yet what their records are, and the bytes of each.
    aside: BTreeMap<i64, usize>,
    /// The part of the lane in the batch that is being collected.
    batch: Load,
    /// Calls in flight.
    calls: usize,
    /// Calls in flight that were so when the shard began to leave.
    before: usize,
    /// The last call that was started before the shard began to leave, if it has begun.
    leaving: Option<u64>,
    /// When the last record read is to be looked at.
    reach: Timestamp,
    /// The offset that lay too far beyond the open ones to be read when it came, or 0.
    wanted: i64,
    /// As far as keys waited for its tasks when it became ours, or all tasks for its commands: one past the last such offset, or 0.
    awaited: i64,
    /// Whether reading is stopped.
    paused: bool,
    /// Whether the shard is being given away.
    draining: bool,
    /// Whether there is something to commit.
    dirty: bool,
    /// Ends of ordered tasks that are not committed yet.
    ends: Ends,
    /// Tasks deferred in other shards, which is not committed yet.
    moves: Moves,
    /// The numbers of the commits under way, of what is saved up.
    saves: VecDeque<u64>,
    /// When a task moved to another shard last, in steady time, or when it became ours, since nobody knows.
    moved: Duration,
    /// The commit with which a task moves that is not durable yet, the last one.
    moving: Option<u64>,
    /// The tasks of which something is in commits that are not over.
    volatile: Volatile,
    /// How much the batch that is being collected has by which nothing of the commit changes: offsets that are taken ahead, and what is written
    /// besides.
    untold: usize,
    /// How many commits were given.
    given: u64,
    /// How many of them are over: durable, or not written.
    over: u64,
}

/// How far a lane reads ahead: as far as tasks wait in the agenda rather than in a tier.
const READ_AHEAD: Duration = HORIZON;

/// How much of [`READ_AHEAD`] is left when a lane reads on: half, so that a busy tier is fetched in large pieces.
const READ_ON: Duration = Duration::from_secs(5);

/// The part of the memory for keys that is free when a lane reads on that was paused for it: small, since keys may be freed one by one,
/// over hours, and enough that each time some are read together.
const KEYS_FREE: usize = 16;

/// The part of the open offsets that a lane may have at which it is crowded. Small: they also have to fit an offset commit.
const CROWDED: usize = 5;

// === impl Lanes ===

impl Lanes {
    /// No lanes, which may hold so much.
    pub(super) const fn new(limits: Limits) -> Self {
        Self {
            limits,
            by_id: BTreeMap::new(),
            paused: BTreeSet::new(),
            bytes: 0,
            batch: Load { tasks: 0, bytes: 0 },
            has_passed: false,
            bug: Planted::NONE,
        }
    }

    /// Adds a lane that is ours from now on.
    pub(super) fn assign(&mut self, id: LaneId, begins: Assigned) {
        self.by_id.insert(id, Lane::new(id.source, begins));
    }

    /// Notes a read. `None` if the record is stale, or to be read again when there is room for it, for which the lane is paused then.
    pub(super) fn read(
        &mut self,
        now: Timestamp,
        position: Position,
        actions: &mut Vec<Action>,
    ) -> Option<Read> {
        let Position {
            lane: id,
            run,
            offset,
        } = position;
        let lane = self.by_id.get_mut(&id)?;
        if lane.is_stale(run) {
            return None;
        }
        if !lane.window.has_room_for(offset) {
            lane.wanted = offset;
            self.pause(now, id, offset, actions);
            return None;
        }
        let read = lane.window.read(offset);
        lane.dirty = true;
        Some(read)
    }

    /// Notes that nothing is left to be read below an offset; false if that is stale.
    pub(super) fn pass(&mut self, position: Position) -> bool {
        let Position {
            lane: id,
            run,
            offset,
        } = position;
        let bug = self.bug;
        let Some(lane) = self.by_id.get_mut(&id) else {
            return false;
        };
        // What was read since it was paused comes again.
        if lane.is_stale(run) && !bug.is(Bug::StalePass) {
            return false;
        }
        let before = lane.window.watermark();
        lane.window.pass(offset);
        if lane.window.watermark() > before {
            lane.dirty = true;
            self.has_passed = true;
        }
        true
    }

    /// Counts the bytes of a task that is open from now on.
    pub(super) fn hold(&mut self, id: LaneId, bytes: usize) {
        self.bytes += bytes;
        self.of(id).bytes += bytes;
    }

    /// Counts the bytes of a record of which it is not known yet what it is; its offset is open.
    pub(super) fn set_aside(&mut self, id: LaneId, offset: i64, bytes: usize) {
        self.hold(id, bytes);
        self.of(id).aside.insert(offset, bytes);
    }

    /// Takes back a record that was set aside; false if it was not, or its lane is given away.
    pub(super) fn take_aside(&mut self, position: Position) -> bool {
        let Position {
            lane: id, offset, ..
        } = position;
        let Some(lane) = self.by_id.get_mut(&id).filter(|lane| !lane.draining) else {
            return false;
        };
        let Some(bytes) = lane.aside.remove(&offset) else {
            return false;
        };
        lane.bytes -= bytes;
        self.bytes -= bytes;
        true
    }

    /// Whether a lane is not read, since it holds enough.
    pub(super) fn is_paused(&self, id: LaneId) -> bool {
        self.by_id.get(&id).is_some_and(|lane| lane.paused)
    }

    /// Whether a record is set aside, and is taken back if it comes again.
    pub(super) fn is_aside(&self, id: LaneId, offset: i64) -> bool {
        let lane = self.by_id.get(&id).filter(|lane| !lane.draining);
        lane.is_some_and(|lane| lane.aside.contains_key(&offset))
    }

    /// The tasks of the shard wait for a lane to be read up to this offset.
    pub(super) fn await_to(&mut self, id: LaneId, to: i64) {
        if let Some(lane) = self.by_id.get_mut(&id) {
            lane.awaited = to;
        }
    }

    /// Whether a record below an offset is set aside, or was not read yet.
    pub(super) fn has_aside_below(&self, id: LaneId, offset: i64) -> bool {
        let lane = self.by_id.get(&id);
        lane.is_some_and(|lane| {
            lane.window.end() < offset || lane.aside.range(..offset).next().is_some()
        })
    }

    /// Completes an offset whose consequence goes into the batch, with the task that it is about and its deferral in another shard, if there
    /// are such.
    pub(super) fn complete(
        &mut self,
        id: LaneId,
        offset: i64,
        bytes: usize,
        task: Option<&Arc<str>>,
        moves: Option<Move>,
    ) {
        self.bytes -= bytes;
        self.batch.add(bytes);
        let lane = self.of(id);
        if let Some(task) = task {
            lane.volatile.add(lane.given + 1, task);
        }
        if let Some(moves) = moves {
            lane.moves.add(moves);
        }
        lane.batch.add(bytes);
        lane.bytes -= bytes;
        lane.untold += usize::from(lane.window.is_early(offset));
        lane.window.complete(offset);
        lane.dirty = true;
    }

    /// Takes a record of a tier that was not read yet; false if it was, or is complete, or the lane is not ours.
    pub(super) fn take(&mut self, id: LaneId, offset: i64) -> bool {
        let lane = self.by_id.get_mut(&id).filter(|lane| !lane.draining);
        lane.is_some_and(|lane| lane.window.take(offset))
    }

    /// Whether an offset was taken whose consequence is not written.
    pub(super) fn is_early(&self, id: LaneId, offset: i64) -> bool {
        self.by_id
            .get(&id)
            .is_some_and(|lane| lane.window.is_early(offset))
    }

    /// What is to be written of taken offsets.
    pub(super) fn taken_changes(&mut self, into: &mut Vec<(i32, State)>) {
        for (LaneId { shard, source }, lane) in &mut self.by_id {
            let changes = lane.window.taken().changes();
            into.extend(changes.map(|(chunk, marks)| {
                let source = *source;
                (
                    *shard,
                    State::Taken {
                        source,
                        chunk,
                        marks,
                    },
                )
            }));
        }
    }

    /// What was to be written of taken offsets was not.
    pub(super) fn taken_again(&mut self, id: LaneId, chunk: i64) {
        if let Some(lane) = self.by_id.get_mut(&id) {
            lane.window.taken().write_again(chunk);
        }
    }

    /// How many commits of a lane were given, and how many of them are over.
    pub(super) fn batches(&self, id: LaneId) -> (u64, u64) {
        self.by_id
            .get(&id)
            .map_or((0, 0), |lane| (lane.given, lane.over))
    }

    /// A task of a lane moves to another shard, with the batch that is being collected.
    pub(super) fn moves(&mut self, id: LaneId) {
        let lane = self.of(id);
        lane.moving = Some(lane.given + 1);
    }

    /// Whether something may be settled and not durable: of one of these tasks, if they are known.
    pub(super) fn is_volatile(&self, ids: Option<&BTreeSet<Arc<str>>>) -> bool {
        !self.is_settled()
            && ids.is_none_or(|ids| self.by_id.values().any(|lane| lane.volatile.may_have(ids)))
    }

    /// When a task of a shard may have moved to another one last, in steady time: one that moves may be there `now`.
    pub(super) fn last_move(&self, now: Duration, shard: i32) -> Duration {
        let lanes = self.by_id.iter().filter(|(id, _)| id.shard == shard);
        let moved = lanes.map(|(_, lane)| lane.moving.map_or(lane.moved, |_| now));
        moved.max().unwrap_or_default()
    }

    /// Whether nothing is settled that is not durable.
    pub(super) fn is_settled(&self) -> bool {
        self.batch.tasks == 0 && self.by_id.values().all(|lane| lane.given == lane.over)
    }

    /// Lets a lane be part of the next [`Self::commits`], changed or not.
    pub(super) fn touch_lane(&mut self, id: LaneId) {
        if let Some(lane) = self.by_id.get_mut(&id) {
            lane.dirty = true;
            lane.untold += 1;
        }
    }

    /// Which assignment of a lane this is.
    pub(super) fn epoch(&self, id: LaneId) -> Option<u64> {
        self.by_id
            .get(&id)
            .filter(|lane| !lane.draining)
            .map(|lane| lane.epoch)
    }

    /// Whether this assignment of a lane is not over, though nothing more may be read in it.
    pub(super) fn is_assigned(&self, id: LaneId, epoch: u64) -> bool {
        self.by_id.get(&id).is_some_and(|lane| lane.epoch == epoch)
    }

    /// How far a lane was read: the next offset.
    pub(super) fn end(&self, id: LaneId) -> Option<i64> {
        self.by_id.get(&id).map(|lane| lane.window.end())
    }

    /// The tiers of a shard, each with its assignment, and how far it was read.
    pub(super) fn tiers(&self, shard: i32) -> impl Iterator<Item = (Source, u64, i64)> {
        let lanes = self.by_id.iter().filter(move |(id, _)| id.shard == shard);
        let tiers = lanes.filter(|(id, _)| matches!(id.source, Source::Tier(_)));
        tiers.map(|(id, lane)| (id.source, lane.epoch, lane.window.end()))
    }

    /// Opens an offset again whose consequence was not written.
    pub(super) fn reopen(&mut self, id: LaneId, offset: i64, bytes: usize) {
        let bug = self.bug;
        self.bytes += bytes;
        let lane = self.of(id);
        lane.bytes += bytes;
        lane.window.reopen(offset);
        if bug.is(Bug::TakenKeptOnReturn) && lane.window.is_early(offset) {
            lane.window.taken().insert(offset);
        }
    }

    /// Whether so much was settled that it should be written before more is, where a batch has at most so many settlements and bytes.
    pub(super) fn is_full(&self, (tasks, bytes): (usize, usize)) -> bool {
        self.batch.tasks >= self.limits.batch_tasks.min(tasks)
            || self.batch.bytes >= self.limits.batch_bytes.min(bytes)
    }

    /// Whether the batch holds at least half of the settlements that it may.
    pub(super) const fn is_half_full(&self) -> bool {
        self.batch.tasks >= self.limits.batch_tasks / 2
    }

    /// What may be committed now, of the lanes where that has changed and of the retry topic of the shards in `save`. What is saved of a
    /// shard's rates, and the number of that, is `saved`'s to say.
    pub(super) fn commits(
        &mut self,
        now: Timestamp,
        save: &BTreeSet<i32>,
        mut saved: impl FnMut(i32) -> (Saved, u64),
    ) -> Vec<Commit> {
        self.batch = Load::default();
        self.has_passed = false;
        let mut commits = Vec::new();
        for (id, lane) in &mut self.by_id {
            lane.batch = Load::default();
            let is_first = id.source == Source::Tasks;
            if !(mem::take(&mut lane.dirty) || (is_first && save.contains(&id.shard))) {
                continue;
            }
            lane.given += 1;
            lane.ends.submit();
            lane.moves.submit();
            let mut kept = Saved::default();
            if is_first {
                let number;
                (kept, number) = saved(id.shard);
                lane.saves.push_back(number);
            }
            if mem::take(&mut lane.untold) > 0 && !self.bug.is(Bug::TakenUntold) {
                kept.mark(now);
            }
            commits.push(self.bug.commit(Commit {
                lane: *id,
                epoch: lane.epoch,
                watermark: lane.window.watermark(),
                completions: lane.window.completions(),
                saved: kept,
            }));
        }
        commits
    }

    /// Notes that a commit is durable, unless the lane is not the one any more that it was of.
    pub(super) fn committed(
        &mut self,
        now: Duration,
        (id, epoch): (LaneId, u64),
        watermark: i64,
    ) -> Option<Durable> {
        let lane = self.assignment(id, epoch)?;
        lane.window.forget_below(watermark);
        lane.end_commit(now);
        Some(Durable {
            ends: lane.ends.committed(),
            save: lane.saves.pop_front(),
        })
    }

    /// Notes that a commit was not written, unless the lane is not the one any more that it was of; the ends in it are open again.
    pub(super) fn returned(&mut self, now: Duration, id: LaneId, epoch: u64) -> Option<Vec<End>> {
        let lane = self.assignment(id, epoch)?;
        lane.dirty = true;
        lane.saves.pop_front();
        lane.end_commit(now);
        Some(lane.ends.committed())
    }

    /// Whether the next [`Self::commits`] has offsets that have moved behind markers of transactions only.
    pub(super) const fn has_passed(&self) -> bool {
        self.has_passed
    }

    /// Lets the offsets of a shard be part of the next [`Self::commits`], changed or not.
    pub(super) fn touch(&mut self, shard: i32) {
        for (id, lane) in &mut self.by_id {
            if id.shard == shard {
                lane.dirty = true;
                lane.untold += usize::from(id.source == Source::Tasks);
            }
        }
    }

    /// How far each lane was read: the next offset.
    pub(super) fn ends(&self) -> impl Iterator<Item = (LaneId, i64)> {
        self.by_id.iter().map(|(id, lane)| (*id, lane.window.end()))
    }

    /// How many offsets are open, over all lanes.
    pub(super) fn open(&self) -> usize {
        self.by_id.values().map(|lane| lane.window.open()).sum()
    }

    /// Bytes of the open tasks of all lanes.
    pub(super) const fn bytes(&self) -> usize {
        self.bytes
    }

    /// The shards that are ours.
    pub(super) fn shards(&self) -> impl Iterator<Item = i32> + use<> {
        let ids = self.by_id.keys();
        let tasks = ids.filter(|id| id.source == Source::Tasks);
        tasks.map(|id| id.shard).collect::<Vec<_>>().into_iter()
    }

    /// Whether a shard is ours.
    pub(super) fn has(&self, shard: i32) -> bool {
        let source = Source::Tasks;
        self.by_id.contains_key(&LaneId { shard, source })
    }

    /// When a lane became ours, if it is.
    pub(super) fn assigned(&self, id: LaneId) -> Option<Timestamp> {
        self.by_id.get(&id).map(|lane| lane.assigned)
    }

    /// How the tasks below an offset stand, as far as the lane is ours.
    pub(super) fn ahead(&self, id: LaneId, offset: i64) -> Option<Ahead> {
        self.by_id.get(&id).map(|lane| lane.window.ahead(offset))
    }

    /// Whether so much is held in a lane, or in all, that a task which waits for its gate is better parked. A lane that is not ours is.
    pub(super) fn is_crowded(&self, id: LaneId, memory: Memory) -> bool {
        let lane = self.by_id.get(&id);
        lane.is_none_or(|lane| lane.is_crowded(memory, &self.limits))
    }

    /// A lane reads on when the task read last is to be looked at, and no sooner.
    pub(super) fn reaches(&mut self, id: LaneId, wake: Timestamp) {
        let lane = self.of(id);
        lane.reach = lane.reach.max(wake);
    }

    /// The wall clock was set back: how far lanes have read ahead is not known any more.
    pub(super) fn follow_clock_back(&mut self, now: Timestamp) {
        for lane in self.by_id.values_mut() {
            lane.reach = lane.reach.min(now);
        }
        let paused = mem::take(&mut self.paused).into_iter();
        self.paused = paused.map(|(_, id)| (now, id)).collect();
    }

    /// Stops reading a lane that holds enough, where the worker holds `memory`.
    pub(super) fn pause_if_full(
        &mut self,
        now: Timestamp,
        position: Position,
        memory: Memory,
        actions: &mut Vec<Action>,
    ) {
        if self.bug.is(Bug::NeverFull) {
            return;
        }
        let Position {
            lane: id,
            run,
            offset,
        } = position;
        let lane = self.by_id.get(&id);
        let must = lane
            .is_some_and(|lane| !lane.is_stale(run) && lane.must_pause(now, memory, &self.limits));
        if must {
            self.pause(now, id, offset + 1, actions);
        }
    }

    /// Reads those paused lanes on that are to be asked and have room, where the worker holds `memory`; the others are asked again later.
    pub(super) fn resume(&mut self, now: Timestamp, memory: Memory, actions: &mut Vec<Action>) {
        while let Some((_, id)) = self.paused.first().copied().filter(|(at, _)| *at <= now) {
            self.paused.pop_first();
            let limits = self.limits;
            let lane = self.of(id);
            if !lane.may_resume(now, memory, &limits) {
                let again = lane.ask_again(now);
                self.paused.insert((again, id));
                continue;
            }
            lane.paused = false;
            lane.run += 1;
            let run = lane.run;
            actions.push(Action::Resume { lane: id, run });
        }
    }

    /// When a paused lane is to be asked next.
    pub(super) fn next_resume(&self) -> Option<Timestamp> {
        self.paused.first().map(|(at, _)| *at)
    }

    /// Counts a call that is started; the assignment that it belongs to.
    pub(super) fn call_started(&mut self, id: LaneId) -> u64 {
        let lane = self.of(id);
        lane.calls += 1;
        lane.epoch
    }

    /// Counts a call that is back; false if the assignment is over that it belongs to.
    pub(super) fn call_returned(&mut self, id: LaneId, epoch: u64, ticket: u64) -> bool {
        let bug = self.bug;
        let lane = self.by_id.get_mut(&id);
        let ours = |lane: &&mut Lane| lane.epoch == epoch || bug.is(Bug::NoEpochCheck);
        let Some(lane) = lane.filter(ours) else {
            return false;
        };
        lane.calls -= 1;
        if lane.leaving.is_some_and(|last| ticket <= last) {
            lane.before -= 1;
        }
        true
    }

    /// A shard is to leave; `last` was the number of the last call.
    pub(super) fn leave(&mut self, shard: i32, last: u64) {
        for (_, lane) in self.by_id.iter_mut().filter(|(id, _)| id.shard == shard) {
            lane.before = lane.calls;
            lane.leaving = Some(last);
        }
    }

    /// Whether a lane is of a shard that is to leave.
    pub(super) fn is_leaving(&self, id: LaneId) -> bool {
        let lane = self.by_id.get(&id);
        lane.is_some_and(|lane| lane.leaving.is_some())
    }

    /// How many calls of a shard are in flight, and how many of them since it began to leave.
    pub(super) fn calls_left(&self, shard: i32) -> Left {
        if self.bug.is(Bug::DrainedEarly) {
            return Left::default();
        }
        let lanes = self.by_id.iter().filter(|(id, _)| id.shard == shard);
        lanes.fold(Left::default(), |left, (_, lane)| Left {
            before: left.before + lane.before,
            since: left.since + lane.calls - lane.before,
        })
    }

    /// Forgets when the paused lanes of a shard are to be asked.
    pub(super) fn forget_paused(&mut self, shard: i32) {
        self.paused.retain(|(_, id)| id.shard != shard);
    }

    /// Reads nothing more of a shard.
    pub(super) fn drain(&mut self, shard: i32) {
        for (id, lane) in &mut self.by_id {
            lane.draining |= id.shard == shard;
        }
    }

    /// Whether a shard is draining, and its last call is back.
    pub(super) fn is_drained(&self, shard: i32) -> bool {
        // Each call that comes back asks, and hardly ever is there anything to look at.
        let source = Source::Tasks;
        let lane = self.by_id.get(&LaneId { shard, source });
        if lane.is_some_and(|lane| !lane.draining) {
            return false;
        }
        let mut lanes = self.by_id.iter().filter(|(id, _)| id.shard == shard);
        lanes.all(|(_, lane)| lane.draining && lane.calls == 0)
    }

    /// Forgets a shard; gives the deferrals in other shards that are not written.
    pub(super) fn release(&mut self, shard: i32) -> Vec<Move> {
        let mut unwritten = Vec::new();
        let (bytes, batch) = (&mut self.bytes, &mut self.batch);
        self.by_id.retain(|id, lane| {
            if id.shard == shard {
                assert!(
                    lane.draining,
                    "shard {shard} released before it was revoked"
                );
                *bytes -= lane.bytes;
                batch.take(lane.batch);
                unwritten.extend(mem::take(&mut lane.moves).into_unwritten());
            }
            id.shard != shard
        });
        unwritten
    }

    /// Notes the end of an ordered task, which goes into the batch.
    pub(super) fn add_end(&mut self, id: LaneId, end: End) {
        self.of(id).ends.add(end);
    }

    /// The end that an offset brings, if it is in a batch of this assignment that is not committed.
    pub(super) fn find_end(&mut self, id: LaneId, epoch: u64, offset: i64) -> Option<End> {
        self.assignment(id, epoch)?.ends.find(offset)
    }

    /// The key of the end that an offset brings, in the batch that is being collected.
    pub(super) fn key_of_end(&self, id: LaneId, offset: i64) -> Option<Fingerprint> {
        self.by_id.get(&id)?.ends.key(offset)
    }

    /// Takes the end that an offset brings out of the batch that is being collected.
    pub(super) fn take_end(&mut self, id: LaneId, offset: i64) -> Option<End> {
        self.of(id).ends.take(offset)
    }

    /// Stops reading a lane before `next`.
    fn pause(&mut self, now: Timestamp, id: LaneId, next: i64, actions: &mut Vec<Action>) {
        let lane = self.of(id);
        lane.paused = true;
        let again = lane.ask_again(now);
        self.paused.insert((again, id));
        actions.push(Action::Pause { lane: id, next });
    }

    /// A lane, if this assignment of it is not over.
    fn assignment(&mut self, id: LaneId, epoch: u64) -> Option<&mut Lane> {
        self.by_id.get_mut(&id).filter(|lane| lane.epoch == epoch)
    }

    /// An assigned lane.
    fn of(&mut self, id: LaneId) -> &mut Lane {
        self.by_id
            .get_mut(&id)
            .unwrap_or_else(|| unreachable!("{id:?} has tasks but is not assigned"))
    }
}

// === impl Load ===

impl Load {
    /// One more settlement.
    const fn add(&mut self, bytes: usize) {
        self.tasks += 1;
        self.bytes += bytes;
    }

    /// Takes away what is not to be written any more.
    const fn take(&mut self, part: Self) {
        self.tasks -= part.tasks;
        self.bytes -= part.bytes;
    }
}

// === impl Memory ===

impl Memory {
    /// All of it.
    const fn total(self) -> usize {
        self.tasks + self.keys
    }
}

// === impl Lane ===

impl Lane {
    /// A lane of `source` that is ours from now on.
    fn new(source: Source, begins: Assigned) -> Self {
        let Assigned {
            epoch,
            at,
            since,
            window,
            awaited,
        } = begins;
        Self {
            source,
            epoch,
            assigned: at,
            window,
            run: 0,
            bytes: 0,
            aside: BTreeMap::new(),
            batch: Load::default(),
            calls: 0,
            before: 0,
            leaving: None,
            reach: Timestamp::EPOCH,
            wanted: 0,
            awaited,
            paused: false,
            draining: false,
            dirty: false,
            ends: Ends::default(),
            moves: Moves::default(),
            saves: VecDeque::new(),
            moved: since,
            moving: None,
            volatile: Volatile::default(),
            untold: 0,
            given: 0,
            over: 0,
        }
    }

    /// The oldest commit is over, durable or not: what moved with it has.
    fn end_commit(&mut self, now: Duration) {
        self.over += 1;
        self.moves.over();
        self.volatile.over(self.over);
        if self.moving.take_if(|with| *with <= self.over).is_some() {
            self.moved = now;
        }
    }

    /// Whether a record that was read in `run` is not taken: it comes again, or is somebody else's.
    const fn is_stale(&self, run: u64) -> bool {
        self.draining || self.paused || self.run != run
    }

    /// Whether to stop reading, where the worker holds `memory`.
    fn must_pause(&self, now: Timestamp, memory: Memory, limits: &Limits) -> bool {
        self.reach > now + READ_AHEAD
            || self.is_full(self.bytes, memory, limits)
            || (self.brings_keys() && memory.keys >= limits.keys)
    }

    /// Whether to read on after a pause, where the worker holds `memory`.
    fn may_resume(&self, now: Timestamp, memory: Memory, limits: &Limits) -> bool {
        // Twice what is held: reading goes on at half the limit, not record by record.
        self.reach <= now + READ_ON
            && !self.is_full(self.bytes.saturating_mul(2), memory, limits)
            && !(self.brings_keys() && memory.keys >= limits.keys - limits.keys / KEYS_FREE)
    }

    /// Whether what it reads may bring keys that nobody waits for.
    ///
    /// Tasks that keys wait for are in tiers, which are read however many keys there are. So is the retry topic as far as the last owner
    /// was: a task that is complete there, and parked, waits until everything before it is read; and a key may be named of which the task
    /// was to be parked when the topic of that refused it.
    fn brings_keys(&self) -> bool {
        self.source == Source::Tasks
            && !self.window.is_behind_known()
            && self.window.end() >= self.awaited
    }

    /// When to ask again whether a paused lane may read on.
    fn ask_again(&self, now: Timestamp) -> Timestamp {
        // A full lane empties at a pace nobody knows; 20 ms is short beside the reading that follows.
        self.reach
            .before(READ_ON)
            .max(now + Duration::from_millis(20))
    }

    /// Whether so much is held, here or in all, that a task which waits for its gate is better parked, lest others cannot be read.
    fn is_crowded(&self, memory: Memory, limits: &Limits) -> bool {
        self.bytes >= limits.lane_most / 2
            || memory.tasks >= limits.total.saturating_sub(memory.keys) / 2
            || self.window.open() >= limits.lane_open / CROWDED
    }

    /// Whether the tasks of the shard wait for what is read here, so that its memory is not free before.
    fn is_awaited(&self) -> bool {
        self.source == Source::Commands && self.window.end() < self.awaited
    }

    /// Whether `bytes`, or the open offsets, are as much as this lane may hold.
    fn is_full(&self, bytes: usize, memory: Memory, limits: &Limits) -> bool {
        bytes >= limits.lane_most
            || (bytes >= limits.lane_least && memory.total() >= limits.total && !self.is_awaited())
            || (self.source != Source::Commands && self.window.open() >= limits.lane_open)
            || !self.window.has_room()
            || !self.window.has_room_for(self.wanted)
    }
}
