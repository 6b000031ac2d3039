//! The engine: what happens to each record of a worker's shards, from the read to its one consequence.
//!
//! [`Engine::step`] takes one [`Input`] and first does what that input is about: a record is taken in, a call's outcome becomes a verdict, a
//! commit lets what waited for it go on. Then, after **every** input, it does what the time and the room in the batch allow, in this order:
//! settlements that were handed back are written again; tasks that wait for room are parked; the ready queues whose gates may have opened
//! are served; due tasks leave the agenda, through their gate or into their ready queue; lanes that have room again read on. How much of each
//! is done in a step is bounded (`TASKS_PER_TICK`, `TASKS_PER_INPUT`), and [`Engine::next_wake`] says when the next [`Input::Tick`] is wanted.
//!
//! Pure: the engine is told the time and what happened, and answers with actions. The shell reads, calls targets and writes. Invariants: an
//! open offset is settled exactly once; a call starts at or after its task's due time; a task that waits is either in memory with its
//! offset open, or parked in a tier.

mod admission;
mod breakers;
mod calls;
mod campaigns;
mod control;
mod due;
mod duplicates;
mod forced;
mod held;
mod lanes;
mod leaving;
mod looks;
mod missing;
mod ordering;
mod parking;
mod pending;
mod ready;
mod retention;
mod settling;
mod volatile;
mod writing;

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::mem;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use self::breakers::Breakers;
use self::calls::Call;
use self::campaigns::Campaigns;
use self::control::Commands;
use self::duplicates::Replacing;
use self::forced::Forcing;
use self::held::Held;
use self::lanes::{Assigned, Lanes, Memory};
use self::leaving::Slow;
pub use self::leaving::{LAST, Left, QUICK};
use self::missing::Missed;
pub use self::missing::{MissingScene, UNKNOWN_SCENE_HOLD};
use self::ready::Ready;
use self::retention::Retention;
use self::writing::Writing;
use crate::agenda::{Agenda, Item};
use crate::alert::Alerts;
use crate::breaker;
use crate::completions::Completions;
use crate::consequence::{self, End};
use crate::duplicates::Duplicates;
use crate::entry::{Alert, Poison};
use crate::gate::Gates;
use crate::key_order::Orders;
use crate::lane::{LaneId, Limits, Source};
use crate::map::Map;
use crate::outcome::{Outcome, Reason, Terminal, Verdict};
use crate::overdue::{Dues, Move, Overdue};
use crate::planted::{Bug, Planted};
use crate::quota::Quotas;
use crate::saved::MachineTime;
use crate::scene::{MAX_DELAY, Of, Scene, Scenes};
use crate::state::State;
use crate::step::{Action, Commit, Input, Now, Position, Settlement};
use crate::task::{Exhausted, Failure, Task};
use crate::tier::{HORIZON, Ladder, STRAIGHT};
use crate::time::Timestamp;
use crate::verdict;
use crate::wait::{Wait, Waited};
use crate::window::{Read, Window};

/// The decisions of one worker.
#[derive(Debug)]
pub struct Engine {
    /// The tiers.
    ladder: Ladder,
    /// The gates, shared with the other workers of the process.
    gates: Arc<Gates>,
    /// The breakers of the scenes in force, shared like the gates.
    breakers: Breakers,
    /// This worker's part of the group's rates.
    quotas: Quotas,
    /// The scenes in force.
    scenes: Scenes,
    /// The assigned lanes.
    lanes: Lanes,
    /// Tasks that wait for their time.
    agenda: Agenda,
    /// Tasks that are due and wait to be started, by scene.
    ready: Ready,
    /// Tasks that are to be parked, or to hop, and wait for room in the batch.
    outbound: VecDeque<Item>,
    /// Calls in flight.
    calls: Map<u64, Call>,
    /// What people must know.
    alerts: Alerts,
    /// Which scenes have calls that take long, while shards leave.
    slow: Slow,
    /// Which tasks with keys go one after the other.
    orders: Orders,
    /// Which ids are under way, or have ended of late.
    duplicates: Duplicates,
    /// The records that are to take the places of tasks, and tasks whose places are taken, which wait for something to be durable.
    replacing: Replacing,
    /// The tasks that are held since their scenes do not exist, by scene.
    missed: BTreeMap<Arc<str>, Missed>,
    /// Longest time for which they are.
    hold: Duration,
    /// The tasks that people do not want started.
    held: Held,
    /// What people want of breakers.
    forcing: Forcing,
    /// What people want done with tasks.
    commands: Commands,
    /// The campaigns, if their shard is ours.
    campaigns: Campaigns,
    /// The dead letters that go soon, if their leader's shard is ours.
    retention: Retention,
    /// What is not written yet.
    writing: Writing,
    /// The tasks that are due and have not started, or soon.
    dues: Dues,
    /// The wall-clock time of the last step.
    latest: Timestamp,
    /// The steady time of the last step.
    steady: Duration,
    /// The number of the next call, item, epoch or round.
    next: u64,
    /// The mistake it makes; none in a build that anyone runs.
    bug: Planted,
}

/// How full the batch may become of tasks that had to wait for room in it.
#[derive(Clone, Copy, Debug)]
enum Until {
    /// Half: the rest is for tasks that are due.
    HalfFull,
    /// As full as it may be.
    Full,
}

/// An open offset whose consequence is known.
#[derive(Clone, Copy, Debug)]
struct Closing {
    /// The lane.
    lane: LaneId,
    /// The offset.
    offset: i64,
    /// The shard in which its task entered.
    home: i32,
    /// The bytes it holds.
    bytes: usize,
}

/// Most tasks that are started or forwarded after a tick: a few milliseconds of work, after which outcomes are heard again.
const TASKS_PER_TICK: usize = 1_000;

/// Most tasks that are started or forwarded after any other input: more than one input can add, so that nothing piles up, and few enough
/// that reading goes on.
const TASKS_PER_INPUT: usize = 16;

/// Due tasks that may enter a ready queue for each task that may be started: behind those of one scene, others may be due that need not
/// wait.
const ENQUEUED_PER_START: usize = 16;

/// Hops after which a task is held for [`HOLD`] before it hops again: more than the ladder asks for within a day.
const MANY_HOPS: u32 = 40;

/// Least time between the hops of a task that has made many. To a clock that is ahead of the broker's by a tier's delay, every record of
/// that tier is readable at once, and without this it would hop as fast as transactions commit until it is due.
const HOLD: Duration = Duration::from_secs(5);

/// How long before its deadline a task is looked at that waits for a breaker: long enough to be read from its tier, and short.
const LAST_CHANCE: Duration = Duration::from_secs(1);

// === impl Closing ===

impl Closing {
    /// Of a settlement that holds `bytes` bytes.
    const fn of(settlement: &Settlement, bytes: usize) -> Self {
        Self {
            lane: settlement.lane,
            offset: settlement.offset,
            home: settlement.home,
            bytes,
        }
    }
}

// === impl Engine ===

impl Engine {
    /// The engine of a worker without shards and scenes, where the group has `shards` in all.
    pub fn new(ladder: Ladder, limits: Limits, gates: Arc<Gates>, shards: NonZeroU32) -> Self {
        Self {
            ladder,
            gates,
            breakers: Breakers::default(),
            quotas: Quotas::new(shards),
            scenes: Scenes::default(),
            lanes: Lanes::new(limits),
            agenda: Agenda::default(),
            ready: Ready::default(),
            outbound: VecDeque::new(),
            calls: Map::default(),
            alerts: Alerts::default(),
            slow: Slow::default(),
            orders: Orders::default(),
            duplicates: Duplicates::default(),
            replacing: Replacing::default(),
            missed: BTreeMap::new(),
            hold: UNKNOWN_SCENE_HOLD,
            held: Held::default(),
            forcing: Forcing::default(),
            commands: Commands::default(),
            campaigns: Campaigns::default(),
            retention: Retention::default(),
            writing: Writing::default(),
            dues: Dues::default(),
            latest: Timestamp::EPOCH,
            steady: Duration::ZERO,
            next: 0,
            bug: Planted::default(),
        }
    }

    /// This engine, making a mistake.
    #[must_use]
    pub fn planted(mut self, bug: Planted) -> Self {
        self.quotas.bug = bug;
        self.lanes.bug = bug;
        self.alerts.bug = bug;
        self.breakers.bug = bug;
        Self { bug, ..self }
    }

    /// Takes in what happened and says what is to be done.
    pub fn step(&mut self, now: Now, input: Input, actions: &mut Vec<Action>) {
        if now.wall < self.latest {
            self.follow_clock_back(now);
        }
        self.latest = now.wall;
        self.steady = now.steady;
        let most = budget(&input);
        match input {
            Input::Assign { lane, start, known } => self.assign(now, lane, (start, known), actions),
            Input::Saved { shard, saved } => self.quotas.bring(shard, saved),
            Input::Outstanding { shard, order } => self.begin_order(shard, *order),
            Input::Known {
                shard,
                taken,
                steps,
            } => self.know_commands(shard, taken, steps),
            Input::HoldsKnown { shard, holds } => self.know_holds(shard, holds),
            Input::IdsKnown {
                shard,
                ids,
                replaced,
            } => self.know_ids(now, shard, ids, replaced),
            Input::Holds(mut holds) => {
                let forced = holds.take_forced();
                self.follow_holds(now, holds);
                self.follow_forced(now, forced, actions);
            }
            Input::Standing { shard, to } => {
                self.await_campaigns(shard, to);
                self.await_commands(now, shard, to);
            }
            Input::ReplayedKnown {
                shard,
                marks,
                warned,
            } => {
                self.know_replayed(shard, marks);
                self.know_warned(shard, warned);
            }
            Input::Letters(read) => self.letters(now, read, actions),
            Input::LettersKept(kept) => self.follow_kept(kept),
            Input::Control { position, control } => self.control(now, position, control, actions),
            Input::LookBegun { number, ends } => self.look_begun(number, &ends),
            Input::Found {
                number,
                lane,
                offset,
                task,
            } => self.found(number, lane, offset, task),
            Input::Looked { number, lane, next } => self.looked(number, lane, next),
            Input::Record {
                position,
                appended,
                task,
            } => self.record(now, position, appended, task, actions),
            Input::Poison { position, poison } => self.poison(now, position, poison, actions),
            Input::SetAside { position, bytes } => self.set_aside(now, position, bytes, actions),
            Input::Passed { position } => self.passed(position),
            Input::LeftOut { ticket, headers } => self.note_left_out(ticket, headers),
            Input::Attempted { ticket, outcome } => self.attempted(now, ticket, &outcome, actions),
            Input::Refused {
                lane,
                epoch,
                offset,
            } => self.refused(lane, epoch, offset),
            Input::Committed {
                lane,
                epoch,
                watermark,
            } => self.committed(lane, epoch, watermark),
            Input::Returned(returned) => self.returned(now, *returned, actions),
            Input::Writable(writable) => self.follow_writable(now, writable),
            Input::Unreadable(sources) => self.follow_unreadable(now, sources),
            Input::Alert { shard, alert } => self.alerts.tell(shard, alert),
            Input::Spent { ticket, after } => self.spent(now, ticket, after, actions),
            Input::Cooldown { server, heard } => self.hear_cooldown(now, &server, heard, actions),
            Input::Tick => {}
            Input::Rules(scenes) => self.follow_rules(now, scenes, actions),
            Input::Shards(all) => {
                self.quotas.resize(now.steady, all, &self.scenes);
                self.ask_all_at(now.wall);
            }
            Input::Leave { shard } => self.leave(now, shard),
            Input::Revoke { shard } => {
                self.quotas.give_up(now.steady, shard);
                self.revoke(shard, actions);
            }
            Input::Release { shard } => self.release(shard),
        }
        self.wake(now, most, actions);
    }

    /// A lane is ours.
    fn assign(
        &mut self,
        now: Now,
        lane: LaneId,
        (start, known): (i64, Completions),
        actions: &mut Vec<Action>,
    ) {
        let epoch = self.number();
        let known = self.bug.known(known);
        let awaited = match lane.source {
            Source::Tasks => self.orders.named(lane.shard),
            Source::Tier(_) | Source::Commands => 0,
        };
        let taken = self.known_taken(lane);
        let begins = Assigned {
            epoch,
            at: now.wall,
            since: now.steady,
            window: Window::resume_with(start, known, taken),
            awaited,
        };
        self.lanes.assign(lane, begins);
        self.quotas.take(now.steady, lane.shard);
        if lane.source == Source::Tasks {
            self.begin_holds(lane.shard);
            self.begin_forced(now, lane.shard, actions);
        }
        self.ask_all_at(now.wall);
    }

    /// Other rules are in force.
    fn follow_rules(&mut self, now: Now, mut scenes: Scenes, actions: &mut Vec<Action>) {
        scenes.remember(&self.scenes);
        self.gates.follow(&scenes);
        self.breakers.follow(&scenes, &self.gates);
        self.quotas.follow(now.steady, &scenes);
        self.scenes = scenes;
        self.want_ids();
        self.replacing.look_again();
        self.follow_exhausted();
        self.forget_missed();
        // Those that are new, too.
        self.force_breakers(now, actions);
        self.reorder();
    }

    /// When [`Input::Tick`] is wanted next, if nothing else happens before.
    pub fn next_wake(&self) -> Option<Timestamp> {
        let room = !self.is_full();
        let outbound = !self.outbound.is_empty() || self.writing.has_more();
        let outbound = (room && outbound).then_some(self.latest);
        let saving = self.quotas.save_at();
        let saving = (saving < Duration::MAX)
            .then(|| self.latest + saving.saturating_sub(self.steady).min(MAX_DELAY));
        let asked = self.ready.next_ask(room).into_iter();
        asked
            .chain(self.lanes.next_resume())
            .chain(outbound)
            .chain(saving)
            .chain(self.next_control())
            .chain(self.next_hold())
            .chain(self.next_campaigns())
            .chain(self.next_retention())
            .chain(self.next_forced())
            .chain(self.next_take_in())
            .chain(self.next_replacing(room))
            .chain(self.agenda.next())
            .min()
    }

    /// Whether so much was settled that it should be written before more is: nothing that can wait is settled until
    /// [`Self::commits`] is asked.
    pub fn is_full(&self) -> bool {
        self.lanes.is_full(self.writing.most())
    }

    /// What may be committed now, of the lanes where that has changed; everything settled so far is to be written with it.
    pub fn commits(&mut self) -> Vec<Commit> {
        self.touch_untold_holds();
        self.touch_forgotten_ids();
        let save = self.quotas.save(self.steady);
        let now = self.latest;
        self.lanes
            .commits(now, &save, |shard| self.quotas.saved(shard))
    }

    /// Whether the next [`Self::commits`] has offsets that have moved behind markers of transactions only, which nothing else may be written
    /// for.
    pub const fn has_passed(&self) -> bool {
        self.lanes.has_passed()
    }

    /// How far the retry topic was read of each shard: the next offset.
    pub fn read_ends(&self) -> impl Iterator<Item = (i32, i64)> {
        let first = self.lanes.ends();
        let first = first.filter(|(id, _)| id.source == Source::Tasks);
        first.map(|(id, end)| (id.shard, end))
    }

    /// Nothing of a lane is still to be read below an offset.
    fn passed(&mut self, position: Position) {
        let Position { lane, offset, .. } = position;
        if self.lanes.pass(position) && lane.source == Source::Tasks {
            self.read_to(lane.shard, offset);
        }
    }

    /// Whether what is saved up of rates is to be committed soon, although nothing may have been settled.
    pub const fn has_unsaved(&self) -> bool {
        self.quotas.is_unsaved()
    }

    /// What the clock of this machine showed when steady time began.
    pub fn set_machine(&mut self, began: MachineTime) {
        self.quotas.set_machine(began);
    }

    /// How far each lane was read: the next offset.
    pub fn ends(&self) -> impl Iterator<Item = (LaneId, i64)> {
        self.lanes.ends()
    }

    /// Lets the offsets of a shard be part of the next [`Self::commits`], changed or not.
    pub fn touch(&mut self, shard: i32) {
        self.lanes.touch(shard);
    }

    /// What is to be written of the state of each shard, besides what settlements hold: to be asked when [`Self::commits`] is, and written
    /// with it.
    pub fn changes(&mut self) -> Vec<(i32, State)> {
        if !self.may_change_order() {
            return Vec::new();
        }
        let orders = self.orders.changes().into_iter();
        let mut states: Vec<(i32, State)> = orders
            .map(|(shard, change)| (shard, State::Order(change)))
            .collect();
        self.control_changes(&mut states);
        self.hold_changes(&mut states);
        self.id_changes(&mut states);
        self.forced_changes(&mut states);
        self.campaign_changes(&mut states);
        self.warned_changes(&mut states);
        states
    }

    /// What people must know of the batch that is handed over, or besides: to be asked when [`Self::commits`] is, and written with it, in the
    /// partitions of these shards.
    pub fn alerts(&mut self) -> Vec<(i32, Box<Alert>)> {
        self.alerts.of_batch(self.writing.takes_alerts())
    }

    /// Whether there are alerts that can be written, and that no settlement has to come for.
    pub const fn has_alerts(&self) -> bool {
        self.alerts.has_told() && self.writing.takes_alerts()
    }

    /// How many keys have outstanding tasks that go one after the other.
    pub fn keys(&self) -> usize {
        self.orders.keys()
    }

    /// How many offsets are open, over all lanes.
    pub fn open(&self) -> usize {
        self.lanes.open()
    }

    /// How many bytes open tasks hold.
    pub const fn bytes(&self) -> usize {
        self.lanes.bytes()
    }

    /// How many bytes are held by what is known of keys.
    pub fn key_bytes(&self) -> usize {
        self.orders.bytes()
    }

    /// Whether a record is set aside, and is taken back if it comes again.
    pub fn is_aside(&self, lane: LaneId, offset: i64) -> bool {
        self.lanes.is_aside(lane, offset)
    }

    /// How many calls are in flight.
    pub fn in_flight(&self) -> usize {
        self.calls.len()
    }

    /// The targets of the scenes in force that have a breaker, and the worst state that one of theirs is in.
    pub fn breaker_states(&self) -> HashMap<breaker::Subject, breaker::State> {
        self.breakers.states()
    }

    /// The targets of scenes that are braked since their tasks died in numbers.
    pub fn floods(&self) -> Vec<breaker::Subject> {
        self.breakers.floods()
    }

    /// The targets whose breakers are not closed since people want that, and not for what calls say.
    pub fn opened_by_people(&self) -> HashSet<breaker::Subject> {
        self.breakers.by_people()
    }

    /// The servers that have asked for rest, and how long each will be left alone.
    pub fn cooldowns(&self, now: Duration) -> HashMap<Arc<str>, Duration> {
        self.breakers.cooldowns(now)
    }

    /// What is held in memory.
    fn memory(&self) -> Memory {
        let keys = if self.bug.is(Bug::KeysUncounted) {
            0
        } else {
            self.key_bytes()
        };
        Memory {
            tasks: self.bytes() + self.id_bytes(),
            keys,
        }
    }

    /// Whether so much is held in a lane, or in all, that a task which waits for its gate is better parked.
    fn is_crowded(&self, lane: LaneId) -> bool {
        self.lanes.is_crowded(lane, self.memory())
    }

    /// Keeps a task that is to be parked, or to move on, until the batch has room for what follows from that.
    fn wait_for_room(&mut self, item: Item) {
        self.outbound.push_back(item);
    }

    /// How many calls may be in flight at once of each scene that calls something, or of all scenes of a host that have that in common: the
    /// fewest, where they name different limits.
    pub fn call_limits(&self) -> HashMap<Of, u32> {
        let mut limits = HashMap::new();
        for scene in self.scenes.iter() {
            let Some(of) = scene.calls_of() else { continue };
            let limit = self.gates.limit(scene);
            let known = limits.entry(of).or_insert(limit);
            *known = limit.min(*known);
        }
        limits
    }

    /// Notes a read; whether the record is to be taken in.
    fn read(&mut self, now: Now, position: Position, actions: &mut Vec<Action>) -> bool {
        let read = self.lanes.read(now.wall, position, actions);
        if read.is_some() && position.lane.source == Source::Tasks {
            self.read_to(position.lane.shard, position.offset + 1);
        }
        read == Some(Read::Open)
    }

    /// A task was read: run it soon, or park it.
    fn record(
        &mut self,
        now: Now,
        position: Position,
        appended: Timestamp,
        task: Box<Task>,
        actions: &mut Vec<Action>,
    ) {
        let is_aside = self.lanes.take_aside(position);
        let is_open = is_aside || self.read(now, position, actions);
        if is_open && !self.is_dropped(now, position, &task, actions) {
            let bytes = task.memory_size();
            self.lanes.hold(position.lane, bytes);
            if task.deferral.is_some() {
                self.dues.back(position.lane.shard, &task.scene, task.due);
            }
            let mut item = Item {
                wake: task.wake(),
                sequence: self.number(),
                lane: position.lane,
                offset: position.offset,
                read: now.wall,
                waited: Waited::default(),
                counted: false,
                task: Arc::new(*task),
            };
            self.count(now, &mut item);
            if self.is_replaced(&item) {
                self.leave_replaced(item, actions);
                if !is_aside {
                    self.pause_if_full(now, position, actions);
                }
                return;
            }
            self.enter(item.lane.shard, &item.task);
            if let Some(item) = self.if_commands_read(now, item, appended) {
                if self.meets(&item) {
                    self.command(item);
                } else {
                    self.take_in(now, item, appended, actions);
                }
            }
        }
        if !is_aside {
            self.pause_if_full(now, position, actions);
        }
    }

    /// Takes in a task that was read.
    fn take_in(&mut self, now: Now, item: Item, appended: Timestamp, actions: &mut Vec<Action>) {
        if self.is_replaced(&item) {
            return self.leave_replaced(item, actions);
        }
        match item.lane.source {
            Source::Tasks => self.ingest(now, item, actions),
            Source::Tier(tier) => self.unpark(now, tier, appended, item),
            Source::Commands => unreachable!("a task in the commands topic"),
        }
    }

    /// A record was read of which it is not known yet what it is.
    fn set_aside(&mut self, now: Now, position: Position, bytes: usize, actions: &mut Vec<Action>) {
        if self.read(now, position, actions) {
            let Position { lane, offset, .. } = position;
            if self.bug.is(Bug::AsideDone) {
                self.lanes.complete(lane, offset, 0, None, None);
            } else {
                self.lanes.set_aside(lane, offset, bytes);
            }
        }
        self.pause_if_full(now, position, actions);
    }

    /// A record was read that is no task: keep its bytes, say why, go on.
    fn poison(
        &mut self,
        now: Now,
        position: Position,
        poison: Arc<Poison>,
        actions: &mut Vec<Action>,
    ) {
        let is_aside = self.lanes.take_aside(position);
        if is_aside || self.read(now, position, actions) {
            let entries = consequence::poison(poison, now.wall);
            let closing = Closing {
                lane: position.lane,
                offset: position.offset,
                home: position.lane.shard,
                bytes: 0,
            };
            self.settle(closing, entries, actions);
        }
        if !is_aside {
            self.pause_if_full(now, position, actions);
        }
    }

    /// A task from the retry topic.
    fn ingest(&mut self, now: Now, item: Item, actions: &mut Vec<Action>) {
        let Some(mut item) = self.if_alone(now, item, actions) else {
            return;
        };
        let Some(scene) = self.scenes.find(&item.task.scene) else {
            return self.without_scene(now, item, actions);
        };
        if item.task.attempt > 1
            && let Err(end) = self.come_back(now, scene, &mut item)
        {
            return self.end(now, &item, end, actions);
        }
        if item.task.due <= now.wall {
            // It may have been held since before anybody read it.
            self.mind_deadline(now, &mut item);
        }
        if verdict::expires(scene, &item.task, item.task.due.max(now.wall)) {
            return self.expire(now, &item, actions);
        }
        let here = self.quotas.belongs(&scene.name, item.lane.shard);
        if here && item.task.due.since(now.wall) <= STRAIGHT {
            return self.agenda.push(item);
        }
        self.forward(now, item, actions);
    }

    /// Takes a record that its target has put back as what it is: an attempt that has failed, after which the next one waits. Or says how the
    /// task ends.
    fn come_back(
        &self,
        now: Now,
        scene: &Scene,
        item: &mut Item,
    ) -> Result<(), (Terminal, Reason)> {
        let shard = item.lane.shard;
        let task = Arc::make_mut(&mut item.task);
        let next = task.attempt;
        task.attempt = next - 1;
        let failure = Failure::new("returned", "the target put the record back");
        let outcome = Outcome::Retryable(failure.clone());
        let verdict = self.judge(now, shard, (scene, task), &outcome);
        task.attempt = next;
        task.failure = Some(failure);
        match verdict {
            Verdict::Retry { due } => task.due = task.due.max(due),
            Verdict::Held { since } => {
                task.exhausted = Some(Box::new(Exhausted {
                    at: since,
                    attempts: next - 1,
                    is_held: true,
                }));
            }
            Verdict::Dead(reason) => return Err((Terminal::Dead, reason)),
            Verdict::Expired => return Err((Terminal::Expired, Reason::DeadlinePassed)),
            Verdict::Delivered | Verdict::Pending { .. } => {
                unreachable!("a failure is no success")
            }
        }
        Ok(())
    }

    /// A task from a tier: into the agenda until it is due, or until it is to hop on to the next tier.
    fn unpark(&mut self, now: Now, tier: usize, appended: Timestamp, mut item: Item) {
        let wake = item.task.wake();
        if wake.since(now.wall) > HORIZON {
            let readable_at = self
                .ladder
                .tiers()
                .get(tier)
                .map_or(Timestamp::EPOCH, |tier| tier.readable_at(appended));
            let hold = if item.task.hops < MANY_HOPS {
                Duration::ZERO
            } else {
                HOLD
            };
            item.wake = readable_at.max(now.wall + hold).min(wake);
        }
        self.lanes.reaches(item.lane, item.wake);
        self.agenda.push(item);
    }

    /// Ends a task whose deadline has passed before its next attempt.
    fn expire(&mut self, now: Now, item: &Item, actions: &mut Vec<Action>) {
        let end = (Terminal::Expired, Reason::DeadlinePassed);
        self.end(now, item, end, actions);
    }

    /// Ends a task badly without another attempt.
    fn end(
        &mut self,
        now: Now,
        item: &Item,
        (terminal, reason): (Terminal, Reason),
        actions: &mut Vec<Action>,
    ) {
        self.leave_exhausted(item.lane.shard, &item.task);
        let how = End {
            terminal,
            reason: Some(reason),
            attempts: item.task.attempts_made(),
            wait: Some(self.wait_of(now, item)).filter(|_| item.task.due <= now.wall),
        };
        let entries = consequence::end(Arc::clone(&item.task), how, now.wall);
        self.settle_item(item, entries, actions);
    }

    /// Does what has come to its time, `most` of each sort; [`Self::next_wake`] says whether there is more.
    fn wake(&mut self, now: Now, most: usize, actions: &mut Vec<Action>) {
        let now = self.bug.clock(now);
        self.quotas.note_time(now.steady);
        self.turn_holds(now);
        self.duplicates.forget_over(now.wall);
        self.turn_forced(now, actions);
        self.write_again(most, actions);
        // Half of the room is for tasks that move on, however many are due. Then the queues: their tasks have waited longest.
        self.take_in_waiting(now, most, actions);
        self.follow_replacing(now, actions);
        self.follow_commands(now, most, actions);
        self.follow_campaigns(now, actions);
        self.follow_retention(now, actions);
        self.send_outbound(now, most, Until::HalfFull, actions);
        self.ask_gates(now, most, actions);
        let enough = actions.len() + most;
        for _ in 0..most * ENQUEUED_PER_START {
            let is_enough = actions.len() >= enough;
            if is_enough
                && self
                    .agenda
                    .peek()
                    .is_none_or(|item| !self.can_enqueue(now, item))
            {
                break;
            }
            let Some(item) = self.agenda.pop_due(now.wall) else {
                break;
            };
            if is_enough {
                self.enqueue(now, item);
            } else {
                self.look_at(now, item, actions);
            }
        }
        self.send_outbound(now, most, Until::Full, actions);
        self.lanes.resume(now.wall, self.memory(), actions);
    }

    /// Counts a task that is due, or soon; one that is not hops on, or is counted when it is looked at.
    fn count(&mut self, now: Now, item: &mut Item) {
        if !item.counted && item.task.due.since(now.wall) <= HORIZON {
            item.counted = true;
            let shard = item.lane.shard;
            self.dues.add(shard, &item.task.scene, item.task.due);
        }
    }

    /// The tasks that are due and have not started, by the scene that they name: those in memory, and those that are deferred in tiers as far
    /// as this worker has deferred them.
    pub fn overdue(&mut self, now: Timestamp) -> HashMap<Arc<str>, Overdue> {
        self.dues.overdue(now)
    }

    /// Records of a shard's tiers are gone: which tasks are deferred there is not known any more.
    pub fn forget_deferred(&mut self, shard: i32) {
        self.dues.forget_deferred(shard);
        self.duplicates.forget_under_way(shard);
    }

    /// A task is to be looked at: it is due, or soon, or far off.
    fn look_at(&mut self, now: Now, mut item: Item, actions: &mut Vec<Action>) {
        if self.is_replaced(&item) {
            if self.is_full() {
                return self.wait_for_room(item);
            }
            return self.leave_replaced(item, actions);
        }
        self.count(now, &mut item);
        let wake = item.task.wake();
        if wake <= now.wall {
            self.due(now, item, actions);
        } else if wake.since(now.wall) > HORIZON {
            self.forward(now, item, actions);
        } else {
            self.agenda.push(Item { wake, ..item });
        }
    }

    /// The wall clock was set back: tasks that were due may not be due any more, and how far lanes have read ahead is not known any more.
    fn follow_clock_back(&mut self, now: Now) {
        if self.bug.is(Bug::ClockBackIgnored) {
            return;
        }
        // What waits for a breaker wakes after its due time: by a clock that is not this one any more.
        let ready = self.ready.take_all();
        for mut items in ready
            .chain(mem::take(&mut self.agenda).into_queues())
            .collect::<Vec<_>>()
        {
            while let Some(item) = items.pop() {
                let wake = item.wake.min(item.task.wake());
                let waited = Waited::default();
                self.agenda.push(Item {
                    wake,
                    waited,
                    ..item
                });
            }
        }
        self.lanes.follow_clock_back(now.wall);
    }

    /// Forwards tasks that had to wait for room, at most `most`, until the batch is as full as that.
    fn send_outbound(&mut self, now: Now, most: usize, until: Until, actions: &mut Vec<Action>) {
        for _ in 0..self.outbound.len().min(most) {
            let is_enough = match until {
                Until::HalfFull => self.is_full() || self.lanes.is_half_full(),
                Until::Full => self.is_full(),
            };
            if is_enough {
                return;
            }
            if let Some(item) = self.outbound.pop_front() {
                self.look_at(now, item, actions);
            }
        }
    }

    /// What stands below a durable watermark need not be remembered.
    fn committed(&mut self, lane: LaneId, epoch: u64, watermark: i64) {
        let Some(durable) = self.lanes.committed(self.steady, (lane, epoch), watermark) else {
            return;
        };
        let number = durable.save;
        if number.is_some_and(|number| self.quotas.committed(number)) {
            self.ask_all_at(self.latest);
        }
        self.pass_on(lane.shard, durable.ends);
        let (_, over) = self.lanes.batches(lane);
        self.duplicates.committed(lane, over);
        self.replacing.look_again();
    }

    /// Stops everything of a shard that has not started; the next owner reads it again.
    fn revoke(&mut self, shard: i32, actions: &mut Vec<Action>) {
        if self.bug.is(Bug::DrainedEarly) {
            actions.push(Action::Drained { shard });
        }
        if self.bug.is(Bug::AgendaKept) {
            return self.drain(shard, actions);
        }
        self.agenda.forget(shard);
        self.ready.forget(shard);
        self.outbound.retain(|item| item.lane.shard != shard);
        self.forget_held(shard);
        self.leave_commands(shard);
        self.forget_commanded(shard);
        self.replacing.forget(shard);
        self.dues.forget(shard);
        self.lanes.forget_paused(shard);
        self.drain(shard, actions);
    }

    /// Reads nothing more of a shard.
    fn drain(&mut self, shard: i32, actions: &mut Vec<Action>) {
        self.lanes.drain(shard);
        self.say_if_drained(shard, actions);
    }

    /// Forgets a shard.
    fn release(&mut self, shard: i32) {
        let moves = self.lanes.release(shard);
        self.dues.undo(moves);
        let unwritten = self.forget_unwritten(shard);
        let moves = unwritten
            .iter()
            .filter_map(|settlement| self.deferral_elsewhere(settlement));
        let moves: Vec<Move> = moves.collect();
        self.dues.undo(moves);
        self.forget_commands(shard);
        self.forget_campaigns(shard);
        self.forget_retention(shard);
        self.forget_holds(shard);
        self.forget_forced(shard);
        self.alerts.forget(shard);
        self.quotas.release(shard);
        self.orders.end(shard);
        self.duplicates.end(shard);
        self.replacing.forget(shard);
        self.dues.forget(shard);
    }

    /// Says so when the last call of a draining shard is back.
    fn say_if_drained(&self, shard: i32, actions: &mut Vec<Action>) {
        if self.lanes.is_drained(shard) {
            actions.push(Action::Drained { shard });
        }
    }

    /// Stops reading a lane that holds enough.
    fn pause_if_full(&mut self, now: Now, position: Position, actions: &mut Vec<Action>) {
        let memory = self.memory();
        self.lanes
            .pause_if_full(now.wall, position, memory, actions);
    }

    /// Whether a shard is ours.
    fn has(&self, shard: i32) -> bool {
        self.lanes.has(shard)
    }

    /// How late a task is that is decided on now.
    fn wait_of(&self, now: Now, item: &Item) -> Wait {
        let assigned = self.lanes.assigned(item.lane);
        item.way(assigned.unwrap_or(item.read), now.wall).wait()
    }

    /// The shard in which a task entered.
    fn home(&self, task: &Task) -> i32 {
        self.quotas.shard(task.origin.partition)
    }

    /// A number not given before.
    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }
}

/// How many tasks may be started or forwarded after `input`.
const fn budget(input: &Input) -> usize {
    match input {
        Input::Tick => TASKS_PER_TICK,
        Input::Assign { .. }
        | Input::Saved { .. }
        | Input::Outstanding { .. }
        | Input::Known { .. }
        | Input::HoldsKnown { .. }
        | Input::IdsKnown { .. }
        | Input::Holds(_)
        | Input::Standing { .. }
        | Input::ReplayedKnown { .. }
        | Input::Letters(_)
        | Input::LettersKept(_)
        | Input::Control { .. }
        | Input::LookBegun { .. }
        | Input::Found { .. }
        | Input::Looked { .. }
        | Input::Record { .. }
        | Input::Poison { .. }
        | Input::SetAside { .. }
        | Input::Passed { .. }
        | Input::LeftOut { .. }
        | Input::Attempted { .. }
        | Input::Refused { .. }
        | Input::Committed { .. }
        | Input::Returned(_)
        | Input::Writable(_)
        | Input::Unreadable(_)
        | Input::Alert { .. }
        | Input::Spent { .. }
        | Input::Cooldown { .. }
        | Input::Rules(_)
        | Input::Shards(_)
        | Input::Leave { .. }
        | Input::Revoke { .. }
        | Input::Release { .. } => TASKS_PER_INPUT,
    }
}
