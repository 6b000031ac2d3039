//! The judge: watches what becomes durable and what targets see, and says where a promise is broken.
//!
//! It knows what was asked for and what the broker keeps; of the code under test it asks only how much memory it holds. Invariant: a
//! promise that is broken is reported at the step that breaks it, or at the end if only the end shows it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use retide_core::brake::{HEALTHY, LEAST, RECENT};
use retide_core::breaker::{Key, State, StateChange};
use retide_core::completions::Completions;
use retide_core::control::Command;
use retide_core::entry::{DEAD_TASKS, RAMP_FELL, SCENE_UNKNOWN, TASKS_EXHAUSTED, TargetHealth};
use retide_core::scene::{Cooldown, DEFAULT};
use retide_core::state::State as Kept;
use retide_core::taken::Taken;
use retide_core::{
    Alert, Ended, Event, Hold, Kind, LaneId, Omitted, Ordering, Outcome, Rate, Reason, Scene, Task,
    Terminal, Timestamp, Transition, Wait,
};

use crate::broker::{
    Aside, Cause, Entry, Fate, NO_OFFSET, Outgoing, Payload, Progress, Topic, binding,
};
use crate::fairness::Fairness;
use crate::forced::{Forcing, is_wish};
use crate::holds::Heard;
use crate::latest::{Latest, is_latest};
use crate::orders::Orders;
use crate::plan::{FLOOD, Submission};
use crate::world::{At, SECOND};

/// One attempt of one task.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Attempt {
    /// The task.
    id: Arc<str>,
    /// Whether it is the delivery of the task's callback.
    of_callback: bool,
    /// The number of the attempt.
    number: u32,
}

/// A key of a scene in a shard.
type KeyQueue = (i32, Arc<str>, Vec<u8>);

/// What is known of an attempt.
#[derive(Clone, Debug, Default)]
struct Known {
    /// The assignments in which it was started.
    starts: Vec<u64>,
    /// Whether what followed from it is durable.
    durable: bool,
    /// Whether a target said that it is done.
    succeeded: bool,
    /// The least wait that the target asked for.
    asked: Duration,
    /// What else targets said.
    said: Said,
    /// The earliest due time of the next attempt, once that is durable.
    next_due: Option<Timestamp>,
}

/// What targets said of an attempt.
#[derive(Clone, Copy, Debug, Default)]
struct Said {
    /// Whether one said that it is throttled.
    throttled: bool,
    /// Whether one said anything else.
    otherwise: bool,
}

/// What is known of a task.
#[derive(Clone, Debug, Default)]
struct Ends {
    /// Its callback records.
    callbacks: Vec<Arc<Ended>>,
    /// How often the end of its callback's delivery was told.
    reports_ended: u32,
    /// How often it was delivered to a topic.
    delivered: u32,
    /// How often it was kept as a dead letter.
    dead_letters: u32,
}

/// How many attempts the group may start under a rate.
#[derive(Clone, Copy, Debug)]
struct Allowance {
    /// What may start at once, in parts of an attempt: as many as the rate's span has microseconds are one.
    saved: u64,
    /// When that was so.
    since: At,
}

/// Where a start comes from.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Start {
    /// The assignment of the shard.
    pub(crate) assignment: u64,
    /// The process, as it runs since it was last started.
    pub(crate) process: u64,
    /// Its wall clock.
    pub(crate) wall: Timestamp,
    /// How late it says that it is.
    pub(crate) wait: Wait,
    /// Whether the group takes its worker for the owner of the shard.
    pub(crate) is_owner: bool,
    /// Whether the group takes its worker for a member: one that was given up counts on until it hears of it.
    pub(crate) is_member: bool,
}

/// What became of the tasks of a scene in a process.
#[derive(Clone, Debug, Default)]
struct Flood {
    /// Those that were delivered.
    delivered: u32,
    /// Answers so far: a number for each.
    answers: u64,
    /// The last answer of each task that is to die of it.
    ill: BTreeMap<Arc<str>, u64>,
    /// Whether some were to die before it was known what is usual.
    early: bool,
    /// The answers that tasks died of.
    deadly: BTreeSet<u64>,
}

/// How many attempts of a task were throttled, and how many were not.
#[derive(Clone, Copy, Debug, Default)]
struct Counted {
    /// Those that were, whoever made them.
    surely_throttled: u32,
    /// Those that were not, whoever made them.
    surely_others: u32,
    /// Those that somebody knows as throttled.
    maybe_throttled: u32,
    /// Those that somebody knows as something else.
    maybe_others: u32,
}

/// Figures of a history.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// Tasks that ended.
    pub tasks: u64,
    /// Attempts that targets saw.
    pub attempts: u64,
    /// Attempts that targets saw more than once.
    pub duplicates: u64,
    /// Records that were settled.
    pub settled: u64,
    /// Most hops of a task.
    pub hops: u64,
    /// Tasks deferred.
    pub deferred: u64,
    /// Tasks that died, and that people were told of.
    pub told_dead: u64,
    /// Breakers that opened.
    pub openings: u64,
    /// Attempts of tasks that keep the order of their key.
    pub in_turn: u64,
    /// Attempts of scenes that shared a rate while all of them had ready tasks.
    pub shared: u64,
    /// Batches that were handed back.
    pub returned: u64,
    /// Dead letters without the value of their record.
    pub omitted: u64,
    /// Records that were dropped, since another task had their id.
    pub dropped: u64,
    /// Records that others of their id have taken the place of, or that were dropped beside those.
    pub replaced: u64,
    /// Attempts that were pending.
    pub pending: u64,
}

/// The judge.
#[derive(Debug, Default)]
pub(crate) struct Judge {
    /// What was asked for.
    submitted: BTreeMap<Arc<str>, Arc<Submission>>,
    /// How often each task was asked for again, less how often that was dropped.
    again: BTreeMap<Arc<str>, i64>,
    /// What is known of tasks that others take the place of: all that is judged by ids is not about them.
    latest: Latest,
    /// When the first attempt of each task is due at the latest: what was asked for, or when the broker got it.
    first_due: BTreeMap<Arc<str>, Timestamp>,
    /// The tasks of each key of a scene that keeps order, in the order of their offsets.
    key_queues: BTreeMap<KeyQueue, Vec<(i64, Arc<str>)>>,
    /// What is known of each attempt.
    attempts: BTreeMap<Attempt, Known>,
    /// What is known of each task's end.
    ends: BTreeMap<Arc<str>, Ends>,
    /// The offsets whose consequence is durable.
    done: BTreeSet<(LaneId, i64)>,
    /// Records that are to be read and not done.
    unfinished: u64,
    /// The offsets in force.
    committed: BTreeMap<LaneId, (i64, Completions)>,
    /// Attempts started in an assignment that has not ended.
    by_assignment: BTreeMap<u64, Vec<Attempt>>,
    /// What the group may start, by scene or host, limit, span and burst: while other rules are on their way, each has its own.
    allowances: BTreeMap<(Arc<str>, u32, Duration, u32), Allowance>,
    /// Calls in flight, by process and scene or host.
    calls: BTreeMap<(u64, Arc<str>), u32>,
    /// How long the breaker of a target stays open at least.
    open_for: BTreeMap<Arc<str>, At>,
    /// The targets whose breakers the rules in force have, once those have changed.
    targets: Option<BTreeSet<Arc<str>>>,
    /// Since when breakers are open, by process and target.
    open_since: BTreeMap<(u64, Arc<str>), At>,
    /// Until when servers want rest, as processes know.
    rests: BTreeMap<(u64, Arc<str>), At>,
    /// The scenes that ever were in force.
    scenes: BTreeSet<Arc<str>>,
    /// Whose turn it is where scenes share a rate.
    pub(crate) fairness: Fairness,
    /// How often targets were found down, or well again, without an alert of it so far.
    alerts_due: BTreeMap<(Arc<str>, State), u64>,
    /// The judge of commands.
    pub(crate) orders: Orders,
    /// The judge of what people want of breakers.
    pub(crate) forcing: Forcing,
    /// The judge of holds.
    pub(crate) heard: Heard,
    /// What became of the tasks of [`FLOOD`], by process.
    floods: BTreeMap<u64, Flood>,
    /// The tasks of which an attempt is pending: its number, and its limit.
    pending: BTreeMap<Arc<str>, (u32, Timestamp)>,
    /// What is marked as taken.
    taken: BTreeMap<LaneId, Taken>,
    /// The longest time for which any rules let an attempt be pending.
    longest_pending: Duration,
    /// The most attempts any rules allowed.
    most_attempts: u32,
    /// The same of attempts that are throttled.
    most_throttled: u32,
    /// How often each task was let go that was out of attempts, or may have been.
    rounds: BTreeMap<Arc<str>, u32>,
    /// The fewest of both that any rules of a scene allowed.
    fewest: BTreeMap<Arc<str>, (u32, u32)>,
    /// The first promise found broken.
    broken: Option<String>,
    /// Figures.
    pub(crate) figures: Figures,
}

// === impl Figures ===

impl Figures {
    /// These figures and those of another history.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self {
            tasks: self.tasks + other.tasks,
            attempts: self.attempts + other.attempts,
            duplicates: self.duplicates + other.duplicates,
            settled: self.settled + other.settled,
            hops: self.hops.max(other.hops),
            deferred: self.deferred + other.deferred,
            told_dead: self.told_dead + other.told_dead,
            openings: self.openings + other.openings,
            in_turn: self.in_turn + other.in_turn,
            shared: self.shared + other.shared,
            returned: self.returned + other.returned,
            omitted: self.omitted + other.omitted,
            dropped: self.dropped + other.dropped,
            replaced: self.replaced + other.replaced,
            pending: self.pending + other.pending,
        }
    }
}

// === impl Flood ===

impl Flood {
    /// A task dies. Says whether too many have died of answers that the brake saw near each other: it looks at answers in the order in which
    /// they came, and what follows from them is written later, and in another order.
    fn is_too_many(&mut self, id: &Arc<str>) -> bool {
        self.deadly.extend(self.ill.get(id));
        let first = self.deadly.iter();
        let last = first.clone().skip(LEAST as usize - 1);
        first
            .zip(last)
            .any(|(first, last)| last - first < u64::from(RECENT))
    }
}

// === impl Judge ===

impl Judge {
    /// The first promise found broken.
    pub(crate) fn broken(&self) -> Option<&String> {
        self.broken.as_ref()
    }

    /// A promise is broken.
    pub(crate) fn object(&mut self, why: impl FnOnce() -> String) {
        if self.broken.is_none() {
            self.broken = Some(why());
        }
    }

    /// Whether the consequence of an offset is durable.
    pub(crate) fn is_done(&self, lane: LaneId, offset: i64) -> bool {
        self.done.contains(&(lane, offset))
    }

    /// How many records wait for their consequence.
    pub(crate) fn unfinished(&self) -> u64 {
        self.unfinished
    }

    /// These scenes are in force somewhere, from now on or longer.
    pub(crate) fn rules(&mut self, at: At, scenes: &[Scene]) {
        for scene in scenes {
            self.scenes.insert(Arc::clone(&scene.name));
            if let Some(rate) = scene.rate {
                // Nothing can have been saved up under rules that nobody knew.
                let new = Allowance {
                    saved: 0,
                    since: at,
                };
                self.allowances.entry(under(scene, rate)).or_insert(new);
            }
            self.fairness.know(scene);
            self.longest_pending = self.longest_pending.max(scene.pending.most);
            self.most_attempts = self.most_attempts.max(scene.most_attempts().get());
            let (attempts, throttled) =
                (scene.policy.max_attempts.get(), scene.max_throttled.get());
            self.most_throttled = self.most_throttled.max(throttled);
            let fewest = self.fewest.entry(Arc::clone(&scene.name));
            let fewest = fewest.or_insert((attempts, throttled));
            *fewest = (fewest.0.min(attempts), fewest.1.min(throttled));
            for key in keys(scene) {
                let span = key.rule.open.as_micros() as At;
                self.open_for.insert(Arc::clone(key.target.text()), span);
            }
        }
    }

    /// A producer has asked for something.
    pub(crate) fn submitted(
        &mut self,
        submission: &Arc<Submission>,
        offset: i64,
        appended: Timestamp,
    ) {
        self.unfinished += 1;
        if is_latest(&submission.scene) {
            return self.latest.submitted(submission, offset);
        }
        if submission.again {
            *self.again.entry(Arc::clone(&submission.id)).or_default() += 1;
            return;
        }
        self.orders.submitted(submission);
        let due = submission.due.unwrap_or(appended).max(appended);
        self.first_due.insert(Arc::clone(&submission.id), due);
        if let (Some(key), false) = (submission.key, submission.poison) {
            let scene = Arc::clone(&submission.scene);
            let queue = (submission.shard, scene, key.as_bytes().to_vec());
            let task = (offset, Arc::clone(&submission.id));
            self.key_queues.entry(queue).or_default().push(task);
        }
        self.submitted
            .insert(Arc::clone(&submission.id), Arc::clone(submission));
    }

    /// Somebody has sent a command.
    pub(crate) fn ordered(&mut self, command: Command) {
        self.unfinished += 1;
        let ends = &self.ends;
        let has_ended = |id: &Arc<str>| ends.get(id).is_some_and(|ends| !ends.callbacks.is_empty());
        let there = self.submitted.values();
        let there = there.filter(|submission| !has_ended(&submission.id));
        self.orders.sent(command, there);
    }

    /// A target is called.
    pub(crate) fn started(&mut self, at: At, start: Start, task: &Task, scene: &Scene) {
        if let Err(why) = self.forcing.calls(start.process, task, scene) {
            self.object(|| why);
        }
        self.figures.attempts += 1;
        if task.due > start.wall {
            self.object(|| {
                format!(
                    "{} started early: due {}, now {}",
                    task.id, task.due, start.wall
                )
            });
        }
        let late = start.wall.since(task.due);
        if start.wait.total() != late {
            self.object(|| format!("{} is late by {late:?}, told is {:?}", task.id, start.wait));
        }
        if is_latest(&task.scene) {
            if start.is_owner
                && task.kind == Kind::Work
                && let Err(why) = self.latest.started(task, scene.ordering)
            {
                self.object(|| why);
            }
            if let Some(rate) = scene.rate.filter(|_| start.is_member) {
                self.within_rate(at, scene, rate);
            }
            return self.within_concurrency(start.process, scene);
        }
        let attempt = Attempt::of(task, task.attempt);
        self.in_order(&attempt, task);
        self.in_turn(task, scene.ordering);
        if let Some(rate) = scene.rate.filter(|_| start.is_member) {
            self.within_rate(at, scene, rate);
        }
        self.within_concurrency(start.process, scene);
        self.allowed_by_breaker(start.process, task, scene);
        self.allowed_by_server(at, start.process, task, scene);
        let ends = self.ends.get(&attempt.id);
        let is_cancelled = ends.is_some_and(|ends| {
            let mut ends = ends.callbacks.iter();
            ends.any(|ended| ended.terminal == Terminal::Cancelled)
        });
        if is_cancelled && !attempt.of_callback && start.is_owner {
            self.object(|| format!("{attempt:?} started after it was cancelled"));
        }
        if !attempt.of_callback
            && start.is_owner
            && let Err(why) = self
                .orders
                .started(at, (start.assignment, start.wall), task)
        {
            self.object(|| why);
        }
        let known = self.attempts.entry(attempt.clone()).or_default();
        let twice = known.starts.contains(&start.assignment) && start.is_owner;
        // Someone whose shard was taken away without a word may still start what another one has ended.
        let settled = known.durable && start.is_owner;
        self.figures.duplicates += u64::from(!known.starts.is_empty());
        known.starts.push(start.assignment);
        if twice {
            self.object(|| format!("{attempt:?} started twice in one assignment"));
        }
        if settled {
            self.object(|| format!("{attempt:?} started by its owner after its end was durable"));
        }
        self.by_assignment
            .entry(start.assignment)
            .or_default()
            .push(attempt);
    }

    /// A worker starts a task that it has read in a lane: whether it is the turn of its scene.
    pub(crate) fn takes_turn(&mut self, worker: usize, lane: LaneId, task: &Task) {
        // What waits for a target that people keep from being called has no turn, and comes back when it is looked at.
        if self.forcing.is_used() {
            return;
        }
        match self.fairness.started(worker, lane, task) {
            Ok(counts) => self.figures.shared += u64::from(counts),
            Err(why) => self.object(|| why),
        }
    }

    /// A process says that the breaker of a target has switched.
    pub(crate) fn switched(
        &mut self,
        at: At,
        process: u64,
        target: &Arc<str>,
        switch: StateChange,
    ) {
        let StateChange { from, to, .. } = switch;
        // An outage that shows when people let go is told then.
        let is_first = from == State::Closed || switch.by_people;
        if is_first || to == State::Closed {
            *self.alerts_due.entry((Arc::clone(target), to)).or_default() += 1;
        }
        // What people open and take back is open for as long as they want.
        let least = self
            .open_for
            .get(target)
            .filter(|_| !self.forcing.is_used());
        let least = least.copied().unwrap_or_default();
        let key = (process, Arc::clone(target));
        match to {
            State::Open => {
                self.figures.openings += 1;
                // A process that was frozen may open one by rules that are not in force any more, and forgets it when it reads the others.
                let targets = self.targets.as_ref();
                if targets.is_none_or(|targets| targets.contains(target)) {
                    self.open_since.insert(key, at);
                }
            }
            State::HalfOpen | State::Closed => {
                let since = self.open_since.remove(&key);
                if since.is_some_and(|since| at < since + least) {
                    self.object(|| format!("the breaker of {target} was open for too short"));
                }
            }
        }
    }

    /// An alert is durable: there is one for each time a target was found down, or well again, at most; or it tells of a scene that was
    /// taken away.
    fn alerted(&mut self, alert: &Alert) {
        // What died is counted by the transaction.
        if alert.rule == DEAD_TASKS
            || alert.rule == RAMP_FELL
            || alert.rule == TASKS_EXHAUSTED
            || (alert.rule == SCENE_UNKNOWN && self.scenes.contains(&alert.scene))
            // A command has parked a task of a scene that nobody knows.
            || (alert.rule == SCENE_UNKNOWN && !self.orders.is_empty())
        {
            return;
        }
        let Some(TargetHealth { name, until, .. }) = &alert.target else {
            return self.object(|| format!("an alert without a target: {alert:?}"));
        };
        let to = until.map_or(State::Closed, |_| State::Open);
        let due = self.alerts_due.get_mut(&(Arc::clone(name), to));
        match due.filter(|due| **due > 0) {
            Some(due) => *due -= 1,
            None => self.object(|| format!("nothing has switched: {alert:?}")),
        }
    }

    /// Only these scenes are in force from now on: a breaker that none of them has may be forgotten.
    pub(crate) fn in_force<'a>(&mut self, scenes: impl Iterator<Item = &'a Scene>) {
        let keys = scenes.flat_map(keys);
        let targets: BTreeSet<Arc<str>> = keys.map(|key| Arc::clone(key.target.text())).collect();
        self.open_since
            .retain(|(_, target), _| targets.contains(target));
        self.targets = Some(targets);
    }

    /// A process has heard the answer to a call.
    pub(crate) fn returned(&mut self, process: u64, counted_as: Arc<str>) {
        *self.calls.entry((process, counted_as)).or_default() -= 1;
    }

    /// A target has delivered a task of [`FLOOD`].
    pub(crate) fn well(&mut self, process: u64) {
        let flood = self.floods.entry(process).or_default();
        flood.delivered += 1;
        flood.answers += 1;
    }

    /// A target says of a task of [`FLOOD`] that it is never going to take it.
    pub(crate) fn ill(&mut self, process: u64, id: &Arc<str>) {
        let flood = self.floods.entry(process).or_default();
        flood.answers += 1;
        flood.ill.insert(Arc::clone(id), flood.answers);
        flood.early |= flood.delivered < HEALTHY;
    }

    /// A process decides what becomes of a task: of a flood, no more die than the brake needs to see.
    pub(crate) fn dies(&mut self, process: u64, entries: &[retide_core::Entry]) {
        if is_told(entries) {
            return;
        }
        for entry in entries {
            let retide_core::Entry::Callback(ended) = entry else {
                continue;
            };
            if &*ended.scene != FLOOD || ended.reason != Some(Reason::Rejected) {
                continue;
            }
            let flood = self.floods.entry(process).or_default();
            // What died before is usual, and takes more. A brake that people keep from acting does not.
            let may_act = !self.forcing.is_used() && !flood.early;
            if flood.is_too_many(&ended.id) && may_act {
                let why = format!("process {process} lets too many die: {flood:?}");
                return self.object(|| why);
            }
        }
    }

    /// A task is delivered to a topic.
    pub(crate) fn delivers(&mut self, task: &Task, ordering: Ordering, wall: Timestamp) {
        self.in_turn(task, ordering);
        if task.due > wall {
            self.object(|| format!("{} delivered early: due {}, now {wall}", task.id, task.due));
        }
    }

    /// What the target said, or would have, had its answer arrived.
    pub(crate) fn answered(&mut self, task: &Task, outcome: &Outcome) {
        if is_latest(&task.scene) {
            return;
        }
        let known = self
            .attempts
            .entry(Attempt::of(task, task.attempt))
            .or_default();
        match outcome {
            // Of the delivery of a callback nobody will say more.
            Outcome::Pending { .. } if task.kind == Kind::Callback => {
                (known.succeeded, known.said.otherwise) = (true, true);
            }
            Outcome::Success => (known.succeeded, known.said.otherwise) = (true, true),
            Outcome::Throttled { after, .. } => {
                known.asked = known.asked.max(*after);
                known.said.throttled = true;
            }
            Outcome::Retryable(_)
            | Outcome::Permanent(_)
            | Outcome::Refused(_)
            | Outcome::Timeout(_)
            | Outcome::Pending { .. } => known.said.otherwise = true,
        }
    }

    /// A shard was given away after all its calls were back and everything was committed.
    pub(crate) fn drained(&mut self, assignment: u64) {
        for attempt in self.by_assignment.remove(&assignment).unwrap_or_default() {
            let known = self.attempts.get(&attempt);
            // Whoever was taken for dead may find that its task has expired elsewhere, without another attempt.
            let has_ended = self.ends.get(&attempt.id).is_some_and(|ends| {
                if attempt.of_callback {
                    ends.reports_ended > 0
                } else {
                    !ends.callbacks.is_empty()
                }
            });
            if !has_ended && !known.is_some_and(|known| known.durable) {
                self.object(|| {
                    format!("{attempt:?} is not durable although its shard was drained")
                });
            }
        }
    }

    /// A transaction was decided to commit, at this instant of the clocks if all are right.
    pub(crate) fn committed(
        &mut self,
        records: &[Outgoing],
        aside: &Aside,
        clocks: Option<(At, Timestamp)>,
    ) {
        self.dead_are_told(records, aside);
        let silent = aside.silent.iter();
        let mut counts: BTreeMap<Cause, usize> = silent.map(|cause| (*cause, 0)).collect();
        // What is written of the order of a key follows from all that has happened to it, and an alert may count a whole batch.
        let follows = |record: &&Outgoing| {
            record.place.topic != Topic::KeyOrder && record.cause.offset != NO_OFFSET
        };
        for record in records.iter().filter(follows) {
            *counts.entry(record.cause).or_default() += 1;
        }
        for (cause, count) in counts {
            let Cause { lane, offset, of } = cause;
            if count != of {
                self.object(|| {
                    format!("{count} of {of} consequences of {lane:?}/{offset} are durable")
                });
            }
            if !self.done.insert((lane, offset)) {
                self.object(|| format!("{lane:?}/{offset} was settled twice"));
            }
            self.figures.settled += 1;
            self.unfinished = self.unfinished.saturating_sub(1);
        }
        for record in records {
            if let Topic::Read(_) = record.place.topic {
                self.unfinished += 1;
            }
            if let Payload::State(Kept::Taken {
                source,
                chunk,
                marks,
            }) = &record.payload
            {
                let (shard, source) = (record.place.shard, *source);
                let taken = self.taken.entry(LaneId { shard, source }).or_default();
                let _ = taken.replay(*chunk, marks.as_deref());
            }
            let shard = record.place.shard;
            if let Payload::State(Kept::Step {
                place,
                progress: None,
            }) = &record.payload
                && let Some(clocks) = clocks
            {
                let submitted = |id: &str| self.submitted.get(id);
                if let Err(why) = self.orders.over(clocks, (shard, *place), submitted) {
                    self.object(|| why);
                }
            }
            self.orders.follow_step(shard, &record.payload);
            self.written(&record.payload);
        }
    }

    /// The tasks of each scene that died in a transaction are told of in it, all of them together, once, with one of them as the example.
    fn dead_are_told(&mut self, records: &[Outgoing], aside: &Aside) {
        if aside.is_partial {
            // It was counted before shards were lost.
            return;
        }
        let mut dead: BTreeMap<&Arc<str>, Vec<&Arc<str>>> = BTreeMap::new();
        for record in records {
            match &record.payload {
                Payload::DeadLetter(_, ended) if is_dead(ended) => {
                    dead.entry(&ended.scene).or_default().push(&ended.id);
                }
                Payload::Poison(poison) => dead.entry(&poison.scene).or_default().push(&poison.id),
                Payload::DeadLetter(..)
                | Payload::Submitted(_)
                | Payload::Parked(_)
                | Payload::Callback(_)
                | Payload::Delivered(_)
                | Payload::Event(_)
                | Payload::State(_)
                | Payload::Order(_)
                | Payload::Control(_)
                | Payload::Alert(_) => {}
            }
        }
        let mut told: BTreeMap<&Arc<str>, (usize, Vec<&Arc<str>>)> = BTreeMap::new();
        for record in records {
            let Payload::Alert(alert) = &record.payload else {
                continue;
            };
            if alert.rule == DEAD_TASKS {
                let (count, examples) = told.entry(&alert.scene).or_default();
                *count += usize::try_from(alert.count).unwrap_or(usize::MAX);
                examples.push(&alert.example);
            }
        }
        for (scene, (count, examples)) in told {
            let died = dead.remove(scene).unwrap_or_default();
            let is_one = |example| died.contains(example);
            // Those that a topic has refused are told of by themselves.
            if count != died.len() || examples.len() > 2 || !examples.iter().all(is_one) {
                self.object(|| format!("{died:?} died, and people are told {count}, {examples:?}"));
            }
            self.figures.told_dead += died.len() as u64;
        }
        if let Some((scene, died)) = dead.first_key_value() {
            self.object(|| format!("nobody is told that {died:?} of {scene} died"));
        }
    }

    /// Offsets are in force.
    pub(crate) fn offsets(&mut self, progress: &Progress, log: &[Entry]) {
        let Progress {
            lane,
            next,
            metadata,
        } = progress;
        let completions = Completions::decode(metadata, binding(*lane), *next).unwrap_or_default();
        let (before, known) = self.committed.get(lane).cloned().unwrap_or_default();
        if *next < before {
            self.object(|| format!("{lane:?} went back from {before} to {next}"));
        }
        for offset in before..completions.end().max(*next) {
            let covered = offset < *next || completions.contains(offset);
            let is_done = match log.get(offset as usize) {
                None => false,
                Some(
                    Entry { payload: None, .. }
                    | Entry {
                        fate: Fate::Aborted,
                        ..
                    },
                ) => true,
                Some(_) => self.done.contains(&(*lane, offset)),
            };
            if covered && !is_done {
                self.object(|| {
                    format!("{lane:?}/{offset} is committed, up to {next}, but not done")
                });
            }
            if !covered && known.contains(offset) {
                self.object(|| format!("{lane:?}/{offset} was complete and is no more"));
            }
        }
        self.committed.insert(*lane, (*next, completions));
    }

    /// Whether everything settled is covered by the offsets in force.
    pub(crate) fn all_covered(&mut self) {
        for (lane, offset) in &self.done {
            let covered = self
                .committed
                .get(lane)
                .is_some_and(|(next, completions)| offset < next || completions.contains(*offset));
            let covered = covered
                || self
                    .taken
                    .get(lane)
                    .is_some_and(|taken| taken.contains(*offset));
            if !covered && self.broken.is_none() {
                self.broken = Some(format!("{lane:?}/{offset} is done but not committed"));
            }
        }
    }

    /// Everything has come to its end: is it the right one?
    pub(crate) fn finish(&mut self) {
        self.all_covered();
        if let Err(why) = self.orders.finish() {
            self.object(|| why);
        }
        if let Err(why) = self.latest.finish() {
            self.object(|| why);
        }
        if let Some((id, left)) = self.again.clone().iter().find(|(_, left)| **left != 0) {
            self.object(|| format!("of the duplicates of {id}, {left} were not dropped"));
        }
        for submission in self.submitted.clone().into_values() {
            self.figures.tasks += 1;
            let ends = self.ends.remove(&submission.id).unwrap_or_default();
            if let Err(why) = self.right_end(&submission, &ends) {
                self.object(|| format!("{}: {why}: {ends:?}", submission.id));
            }
        }
        if let Some((id, ends)) = self.ends.pop_first() {
            self.object(|| format!("{id} was never asked for: {ends:?}"));
        }
    }

    /// Whether a task ended as it should.
    fn right_end(&self, submission: &Submission, ends: &Ends) -> Result<(), &'static str> {
        let [ended] = &ends.callbacks[..] else {
            return Err("not one terminal outcome");
        };
        let good = ended.terminal == Terminal::Delivered;
        let is_cancelled = ended.terminal == Terminal::Cancelled;
        if ends.dead_letters != u32::from(!good && !is_cancelled) {
            return Err("dead letters do not fit its end");
        }
        let to_topic = good && ["topic", "keyed-topic", "once-topic"].contains(&&*submission.scene);
        let may_be_completed = self.orders.may_be_completed(submission);
        if ends.delivered != u32::from(to_topic) && !may_be_completed {
            return Err("deliveries to the topic do not fit its end");
        }
        let wanted =
            &*submission.scene == "rate" && ended.terminal != Terminal::Expired && !is_cancelled;
        if ends.reports_ended != u32::from(wanted && !submission.poison) {
            return Err("its callback was not delivered once");
        }
        let last = Attempt {
            id: Arc::clone(&submission.id),
            of_callback: false,
            number: ended.attempts,
        };
        if good
            && !to_topic
            && !may_be_completed
            && !self
                .attempts
                .get(&last)
                .is_some_and(|known| known.succeeded)
        {
            return Err("delivered, but no target has said so");
        }
        if submission.poison && good {
            return Err("poison delivered");
        }
        let without_rules = [Reason::UnknownScene, Reason::NoScene].map(Some);
        if without_rules.contains(&ended.reason) && self.scenes.contains(&submission.scene) {
            return Err("dead for want of rules that there were");
        }
        Ok(())
    }

    /// Whether an attempt comes after the one before it, and no earlier than that one allows.
    fn in_order(&mut self, attempt: &Attempt, task: &Task) {
        let (due, latest) = if attempt.number <= 1 {
            let submission = self.submitted.get(&attempt.id);
            let due = submission.and_then(|submission| submission.due);
            let latest = self.first_due.get(&attempt.id).copied();
            // A callback is due when what it tells of has ended.
            if attempt.of_callback {
                (None, None)
            } else {
                (due, latest)
            }
        } else {
            let before = Attempt {
                number: attempt.number - 1,
                ..attempt.clone()
            };
            let before = self.attempts.entry(before).or_default().clone();
            if !before.durable {
                self.object(|| format!("{attempt:?} started before the attempt before it"));
            }
            if before.next_due.is_none() && self.is_pending(attempt) {
                self.object(|| format!("{attempt:?} started while the one before it is pending"));
            }
            (before.next_due, before.next_due)
        };
        let is_commanded = !attempt.of_callback && self.orders.made_due(&attempt.id, task.due);
        if due.is_some_and(|due| task.due < due) && !is_commanded {
            self.object(|| format!("{attempt:?} is due at {}, {due:?} was promised", task.due));
        }
        // Its lateness counts from then, whatever has held it.
        if latest.is_some_and(|latest| task.due > latest.ceil_to_millis()) && !is_commanded {
            self.object(|| format!("{attempt:?} is due at {}, not at {latest:?}", task.due));
        }
        let before = self.counted(attempt, attempt.number - 1);
        // Whoever lets it go that is out of attempts allows as many again.
        let rounds = 1 + self.rounds.get(&attempt.id).copied().unwrap_or_default();
        if before.surely_others >= self.most_attempts.saturating_mul(rounds)
            || before.surely_throttled >= self.most_throttled.saturating_mul(rounds)
        {
            self.object(|| format!("{attempt:?} is more than any rules allowed: {before:?}"));
        }
    }

    /// Whether an attempt of a task is pending, for good, before this one.
    fn is_pending(&self, attempt: &Attempt) -> bool {
        let pending = self.pending.get(&attempt.id);
        !attempt.of_callback && pending.is_some_and(|(number, _)| *number < attempt.number)
    }

    /// A pending attempt is over, as an event tells: by a command, or at its limit, as one without an answer.
    fn not_before_its_limit(&mut self, event: &Event, is_timeout: bool) {
        let Some((number, until)) = self.pending.remove(&event.id) else {
            return;
        };
        let is_told = event.command.as_ref().is_some_and(|id| !is_wish(id));
        if !is_told && (event.at < until || !is_timeout) {
            self.object(|| {
                format!(
                    "attempt {number} of {} is pending until {until}: {event:?}",
                    event.id
                )
            });
        }
    }

    /// A call has come back with success: what follows is that its task is delivered, whatever else was told of it. What ends without an attempt
    /// is another record of the same task.
    pub(crate) fn succeeded(&mut self, id: &Arc<str>, entries: &[retide_core::Entry]) {
        for event in entries.iter().filter_map(retide_core::Entry::event) {
            if event.id != *id || event.kind != Kind::Work {
                continue;
            }
            match event.transition {
                Transition::Failed { .. }
                | Transition::Pending { .. }
                | Transition::Held { .. }
                | Transition::Ended {
                    terminal: Terminal::Dead | Terminal::Expired | Terminal::Cancelled,
                    attempts: 1..,
                    ..
                } => self.object(|| format!("the target has done {id}: {event:?}")),
                Transition::Ended { .. }
                | Transition::Parked { .. }
                | Transition::Hopped { .. }
                | Transition::Deferred { .. }
                | Transition::Rescheduled { .. }
                | Transition::Duplicate { .. }
                | Transition::Replayed { .. }
                | Transition::TooLate { .. } => {}
            }
        }
    }

    /// How many of the first attempts of a task were throttled, as far as targets know: one that was made twice may have been both.
    fn counted(&self, attempt: &Attempt, attempts: u32) -> Counted {
        let mut counted = Counted::default();
        for number in 1..=attempts {
            let known = self.attempts.get(&Attempt {
                number,
                ..attempt.clone()
            });
            let Said {
                throttled,
                otherwise,
            } = known.map(|known| known.said).unwrap_or_default();
            counted.surely_throttled += u32::from(throttled && !otherwise);
            counted.surely_others += u32::from(!throttled);
            counted.maybe_throttled += u32::from(throttled);
            counted.maybe_others += u32::from(!throttled || otherwise);
        }
        counted
    }

    /// A task has used up its attempts: as many as its rules allow at least, of those that were throttled or of the others.
    fn exhausted(&mut self, ended: &Ended) {
        let submission = self.submitted.get(&ended.id);
        if submission.is_some_and(|submission| self.orders.may_be_completed(submission)) {
            // What is told from outside is an attempt that nobody has seen.
            return;
        }
        // While its scene is taken away, the rules of the default one count.
        let rules = [&*ended.scene, DEFAULT].map(|scene| self.fewest.get(scene));
        let rules = rules.into_iter().flatten().copied();
        let Some((attempts, throttled)) =
            rules.reduce(|one, other| (one.0.min(other.0), one.1.min(other.1)))
        else {
            return;
        };
        let attempt = Attempt {
            id: Arc::clone(&ended.id),
            of_callback: false,
            number: ended.attempts,
        };
        let made = self.counted(&attempt, ended.attempts);
        if made.maybe_others < attempts && made.maybe_throttled < throttled {
            self.object(|| format!("{} is given up too early: {made:?}", ended.id));
        }
    }

    /// A process learns that a server wants rest until then.
    pub(crate) fn rests(&mut self, process: u64, server: Arc<str>, until: At) {
        let known = self.rests.entry((process, server)).or_default();
        *known = until.max(*known);
    }

    /// Whether the server of a task's target is not called by a process that knows that it wants rest.
    fn allowed_by_server(&mut self, at: At, process: u64, task: &Task, scene: &Scene) {
        let Some(server) = server(scene, task.kind) else {
            return;
        };
        let until = self.rests.get(&(process, Arc::clone(&server)));
        if until.is_some_and(|until| at < *until) {
            self.object(|| format!("{} called {server} while it wants rest", task.id));
        }
    }

    /// A worker starts a task: whether it is not held, as far as the worker knows, and the ramps that it goes by.
    pub(crate) fn not_on_hold(&mut self, at: At, worker: usize, task: &Task) -> Vec<Arc<Hold>> {
        let submission = self.submitted.get(&task.id);
        // A command lets a task go by itself.
        let is_commanded =
            submission.is_some_and(|submission| self.orders.may_be_about(submission));
        if !is_commanded && let Err(why) = self.heard.lets_go(worker, task) {
            self.object(|| why);
            return Vec::new();
        }
        match self.heard.starts(at, worker, task, submission) {
            Ok(ramps) => ramps,
            Err(why) => {
                self.object(|| why);
                Vec::new()
            }
        }
    }

    /// A delivery comes back that was decided while others were handed back: by its ramps, whenever it was started.
    pub(crate) fn delivered_since(&mut self, at: At, worker: usize, task: &Task) {
        let submission = self.submitted.get(&task.id);
        let ramps = self.heard.of_task(worker, task, submission);
        self.heard.came_back(at, worker, &ramps, false);
    }

    /// A task is parked at this time of its worker's clock.
    pub(crate) fn parked_at(&mut self, worker: usize, task: &Task, wall: Timestamp) {
        // What a command does with a task does not look at holds.
        let submission = self.submitted.get(&task.id);
        let submission = submission.filter(|submission| !self.orders.may_be_about(submission));
        let stops = self.heard.stops(worker, (task, wall), submission);
        if let Err(why) = Heard::parks(task, wall).and(stops) {
            self.object(|| why);
        }
    }

    /// A task expires at this time of its worker's clock, without a call.
    pub(crate) fn expires_at(&mut self, worker: usize, task: &Task, wall: Timestamp) {
        let submission = self.submitted.get(&task.id);
        let submission = submission.filter(|submission| !self.orders.may_be_about(submission));
        if let Err(why) = self.heard.expires(worker, (task, wall), submission) {
            self.object(|| why);
        }
    }

    /// The owner of a task starts it, all clocks being right: whether the time counts for which its deadline stood still.
    pub(crate) fn goes_on(&mut self, task: &Task) {
        let submission = self.submitted.get(&task.id);
        let is_commanded =
            submission.is_some_and(|submission| self.orders.may_be_about(submission));
        if task.kind == Kind::Work
            && !is_commanded
            && let Err(why) = self.heard.goes_on(task)
        {
            self.object(|| why);
        }
    }

    /// A task without a key starts: others cannot have held it.
    pub(crate) fn held_by_none(&mut self, task: &Task, wait: Wait) {
        if task.record.ordering_key().is_none() && wait.waited.order > 0 {
            self.object(|| format!("{} has no key and waited for others of it", task.id));
        }
    }

    /// Whether all tasks of its key that were produced before it have ended durably.
    fn in_turn(&mut self, task: &Task, ordering: Ordering) {
        let (Kind::Work, Ordering::Key, Some(key)) = (task.kind, ordering, &task.record.key) else {
            return;
        };
        if key.is_empty() {
            return;
        }
        let offset = task.origin.offset;
        let queue = (task.origin.partition, Arc::clone(&task.scene), key.to_vec());
        let before = self.key_queues.get(&queue).into_iter().flatten();
        let open = before
            .take_while(|(before, _)| *before < offset)
            .map(|(_, id)| id)
            .find(|id| {
                let ends = self.ends.get(*id);
                ends.is_none_or(|ends| ends.callbacks.is_empty())
            });
        if let Some(open) = open.cloned() {
            self.object(|| format!("{} started before {open} of its key had ended", task.id));
        }
        self.figures.in_turn += 1;
    }

    /// Whether a process may have one more call of a scene in flight.
    fn within_concurrency(&mut self, process: u64, scene: &Scene) {
        let calls = self
            .calls
            .entry((process, Arc::clone(counted_as(scene))))
            .or_default();
        *calls += 1;
        let calls = *calls;
        if calls > scene.concurrency.get() {
            self.object(|| {
                format!(
                    "process {process} has {calls} calls of {} in flight",
                    counted_as(scene)
                )
            });
        }
    }

    /// Whether a process may call the target of a task.
    fn allowed_by_breaker(&mut self, process: u64, task: &Task, scene: &Scene) {
        let key = match (task.kind, &scene.callback) {
            (Kind::Work, _) => &scene.breaker,
            (Kind::Callback, Some(callback)) => &callback.breaker,
            (Kind::Callback, None) => &None,
        };
        let breaker = key.as_ref().map(|key| key.target.text());
        for target in breaker.into_iter().chain(wall(scene, task.kind)) {
            let key = (process, Arc::clone(target));
            if self.open_since.contains_key(&key) {
                self.object(|| format!("{} called {target} while its breaker is open", task.id));
            }
        }
    }

    /// What a task came to whose target has refused it: behind a wall, that is not its end, unless a command says so.
    pub(crate) fn refused(
        &mut self,
        process: u64,
        wall: &Arc<str>,
        entries: &[retide_core::Entry],
    ) {
        if !self.open_since.contains_key(&(process, Arc::clone(wall))) || is_told(entries) {
            return;
        }
        for entry in entries {
            if let retide_core::Entry::Callback(ended) = entry
                && ended.reason == Some(Reason::Rejected)
            {
                let id = &ended.id;
                self.object(|| format!("{id} is given up behind the wall of {wall}"));
            }
        }
    }

    /// Whether the group may start one more under the rate of its scene, in any span of time that ends now.
    fn within_rate(&mut self, at: At, scene: &Scene, rate: Rate) {
        let cost = rate.per.as_micros() as u64;
        let most = cost * u64::from(rate.burst.get());
        let Some(allowance) = self.allowances.get_mut(&under(scene, rate)) else {
            return self.object(|| format!("{} starts under rules that nobody made", scene.name));
        };
        let gained = (at - allowance.since) * u64::from(rate.limit.get());
        let saved = (allowance.saved + gained).min(most);
        allowance.since = at;
        if let Some(left) = saved.checked_sub(cost) {
            allowance.saved = left;
        } else {
            self.object(|| {
                format!(
                    "the group starts more of {} than {rate:?} at {at}",
                    scene.name
                )
            });
        }
    }

    /// A record is durable.
    fn written(&mut self, payload: &Payload) {
        let others = self.latest.written(payload);
        let moved = if self.orders.is_empty() {
            self.latest.keeps_schedule(payload)
        } else {
            Ok(())
        };
        if let Err(why) = others.and(moved) {
            self.object(|| why);
        }
        match payload {
            Payload::Callback(ended) if is_latest(&ended.scene) => {}
            Payload::Delivered(task) if is_latest(&task.scene) => {}
            Payload::Event(event) if is_latest(&event.scene) => {
                let is_replaced = matches!(event.transition, Transition::Duplicate { .. });
                self.figures.replaced += u64::from(is_replaced);
            }
            Payload::Parked(task) => {
                if !is_latest(&task.scene) {
                    self.heard.parked(task);
                }
                self.figures.hops = self.figures.hops.max(task.hops.into());
                if task.hops > MOST_HOPS {
                    self.object(|| format!("{} hops in circles", task.id));
                }
            }
            Payload::Callback(ended) => {
                self.unexpected(&ended.id);
                let ends = self.ends.entry(Arc::clone(&ended.id)).or_default();
                ends.callbacks.push(Arc::clone(ended));
                if ends.callbacks.len() > 1 {
                    self.object(|| format!("{} has two terminal outcomes", ended.id));
                }
                if ended.reason == Some(Reason::AttemptsExhausted) {
                    self.exhausted(ended);
                }
            }
            Payload::DeadLetter(task, ended) if ended.kind == Kind::Work => {
                match ended.omitted {
                    Omitted::Nothing => self.unchanged(task),
                    Omitted::Value(_) | Omitted::Record(_) => self.figures.omitted += 1,
                }
                self.ends
                    .entry(Arc::clone(&ended.id))
                    .or_default()
                    .dead_letters += 1;
            }
            Payload::Poison(poison) => {
                self.ends
                    .entry(Arc::clone(&poison.id))
                    .or_default()
                    .dead_letters += 1;
            }
            Payload::Delivered(task) => {
                self.unchanged(task);
                self.ends.entry(Arc::clone(&task.id)).or_default().delivered += 1;
            }
            Payload::Event(event) => self.told(event),
            Payload::Alert(alert) => self.alerted(alert),
            Payload::Control(control) => {
                let ends = &self.ends;
                let has_ended =
                    |id: &str| ends.get(id).is_some_and(|ends| !ends.callbacks.is_empty());
                if let Err(why) = self.orders.written(control, has_ended) {
                    self.object(|| why);
                }
            }
            Payload::DeadLetter(..)
            | Payload::Submitted(_)
            | Payload::Order(_)
            | Payload::State(_) => {}
        }
    }

    /// A transition of a task is durable.
    fn told(&mut self, event: &Event) {
        let submission = self.submitted.get(&event.id);
        if let Err(why) = self.orders.told(event, submission) {
            self.object(|| why);
        }
        let attempt = |number: u32| Attempt {
            id: Arc::clone(&event.id),
            of_callback: event.kind == Kind::Callback,
            number,
        };
        if event.kind == Kind::Work {
            match &event.transition {
                Transition::Failed { outcome, .. } | Transition::Held { outcome, .. } => {
                    self.not_before_its_limit(event, *outcome == "timeout");
                }
                Transition::Ended {
                    terminal, reason, ..
                } => {
                    let is_timeout = match terminal {
                        Terminal::Delivered | Terminal::Cancelled => false,
                        Terminal::Dead | Terminal::Expired => *reason != Some(Reason::Rejected),
                    };
                    self.not_before_its_limit(event, is_timeout);
                }
                // A command has moved the limit.
                Transition::Rescheduled { due } => {
                    if let Some((_, until)) = self.pending.get_mut(&event.id) {
                        *until = *due;
                    }
                }
                Transition::Pending { attempt, until } => {
                    self.is_told_pending(event, *attempt, *until);
                }
                Transition::Parked { .. }
                | Transition::Hopped { .. }
                | Transition::Deferred { .. }
                | Transition::Duplicate { .. }
                | Transition::Replayed { .. }
                | Transition::TooLate { .. } => {}
            }
        }
        if event.command.is_some() {
            // Whoever moves a task lets it go that is out of attempts.
            *self.rounds.entry(Arc::clone(&event.id)).or_default() += 1;
        }
        match &event.transition {
            Transition::Pending {
                attempt: number, ..
            } => {
                let known = self.attempts.entry(attempt(*number)).or_default();
                known.durable = true;
            }
            Transition::Failed {
                attempt: number,
                due,
                outcome,
                ..
            } => {
                let attempt = attempt(*number);
                let known = self.attempts.entry(attempt.clone()).or_default();
                known.durable = true;
                // What a wall refuses is taken for that where it was the last attempt.
                known.said.throttled |= *outcome == Outcome::THROTTLED;
                known.next_due = Some(*due);
                let least = event.at + known.asked;
                // The answer of a start that came to nothing may have asked for more.
                if known.starts.len() == 1 && *due < least && event.command.is_none() {
                    self.object(|| format!("{attempt:?}: {least} was asked for, not {due}"));
                }
            }
            Transition::Held {
                attempt: number,
                outcome,
                ..
            } => {
                let known = self.attempts.entry(attempt(*number)).or_default();
                known.durable = true;
                known.said.throttled |= *outcome == Outcome::THROTTLED;
                self.heard.exhausts(event, *number);
                *self.rounds.entry(Arc::clone(&event.id)).or_default() += 1;
            }
            Transition::Ended { attempts, .. } => {
                let known = self.attempts.entry(attempt(*attempts)).or_default();
                known.durable = true;
                if event.kind == Kind::Callback {
                    let ends = self.ends.entry(Arc::clone(&event.id)).or_default();
                    ends.reports_ended += 1;
                }
            }
            Transition::Deferred { .. } => self.figures.deferred += 1,
            Transition::Duplicate { .. } => {
                *self.again.entry(Arc::clone(&event.id)).or_default() -= 1;
                self.figures.dropped += 1;
            }
            Transition::Parked { .. }
            | Transition::Hopped { .. }
            | Transition::Rescheduled { .. }
            | Transition::Replayed { .. }
            | Transition::TooLate { .. } => {}
        }
    }

    /// An attempt is pending until then: once, and no longer than the rules of any scene allow.
    fn is_told_pending(&mut self, event: &Event, attempt: u32, until: Timestamp) {
        self.figures.pending += 1;
        if event.command.is_none() && until > event.at + self.longest_pending + MILLISECOND {
            self.object(|| format!("{} is pending for too long: {event:?}", event.id));
        }
        let id = Arc::clone(&event.id);
        if self.pending.insert(id, (attempt, until)).is_some() {
            self.object(|| format!("{} is pending twice: {event:?}", event.id));
        }
    }

    /// Whether a task was asked for.
    fn unexpected(&mut self, id: &Arc<str>) {
        if !self.submitted.contains_key(id) {
            self.object(|| format!("{id} ended but was never asked for"));
        }
    }

    /// Whether a task still carries what its producer gave it.
    fn unchanged(&mut self, task: &Task) {
        if task.record.value.as_deref() != Some(task.id.as_bytes()) {
            self.object(|| format!("{} carries other bytes", task.id));
        }
    }
}

// === impl Attempt ===

impl Attempt {
    /// Attempt `number` of `task`.
    fn of(task: &Task, number: u32) -> Self {
        Self {
            id: Arc::clone(&task.id),
            of_callback: task.kind == Kind::Callback,
            number,
        }
    }
}

/// Whose calls in flight those of a scene are.
pub(crate) fn counted_as(scene: &Scene) -> &Arc<str> {
    scene.concurrency_of().unwrap_or(&scene.name)
}

/// Whether it is a command that says what becomes of a task.
fn is_told(entries: &[retide_core::Entry]) -> bool {
    let mut events = entries.iter().filter_map(retide_core::Entry::event);
    events.any(|event| event.command.is_some())
}

/// What an allowance is known by.
fn under(scene: &Scene, rate: Rate) -> (Arc<str>, u32, Duration, u32) {
    let Rate { limit, per, burst } = rate;
    (Arc::clone(scene.rate_of()), limit.get(), per, burst.get())
}

/// What due times are counted in.
const MILLISECOND: Duration = Duration::from_millis(1);

/// Most hops of a task. No task has more than a few minutes to wait, but clocks are set by hours, several times; the engine holds what
/// comes too soon for seconds.
const MOST_HOPS: u32 = 10_000;

/// Longest time from the healing to the end: the last task, with all the attempts it may make and the longest waits between them, and
/// as much again for its callback and for those before it in its key queue.
pub(crate) const LONGEST: At = 900 * SECOND;

/// The same where many tasks come at once, of a scene that may start one in two seconds.
pub(crate) const LONGEST_BEHIND: At = 3_600 * SECOND;

/// The same where targets have breakers. What a target answers stays a matter of chance: each attempt may be a probe that fails, and cost
/// all others a minute.
pub(crate) const LONGEST_BY_BREAKERS: At = 6 * 3_600 * SECOND;

/// The same where targets ask for rest: what is left of it for each afterwards is one call in many seconds.
pub(crate) const LONGEST_BY_COOLDOWNS: At = 3 * 3_600 * SECOND;

/// The same where clocks are hours off, and tasks wait for them.
pub(crate) const LONGEST_BY_WRONG_CLOCKS: At = 24 * 3_600 * SECOND;

/// The breakers of a scene's targets, and their walls.
fn keys(scene: &Scene) -> impl Iterator<Item = &Key> {
    let callback = scene.callback.as_ref();
    let callback = callback.and_then(|callback| callback.breaker.as_ref());
    let walls = scene.walls.work.iter().chain(&scene.walls.callback);
    scene.breaker.iter().chain(callback).chain(walls)
}

/// What a call of this kind is known by at the wall.
pub(crate) fn wall(scene: &Scene, kind: Kind) -> Option<&Arc<str>> {
    let key = match kind {
        Kind::Work => scene.walls.work.as_ref(),
        Kind::Callback => scene.walls.callback.as_ref(),
    };
    key.map(|key| key.target.text())
}

/// The server that a call of this kind goes to, if its scene leaves it alone when it asks for it.
pub(crate) fn server(scene: &Scene, kind: Kind) -> Option<Arc<str>> {
    let key = match kind {
        Kind::Work => scene.walls.work.as_ref(),
        Kind::Callback => scene.walls.callback.as_ref(),
    };
    let key = key.filter(|_| scene.cooldown == Cooldown::Host)?;
    Some(key.target.target().into())
}

/// Whether a task died.
fn is_dead(ended: &Ended) -> bool {
    match ended.terminal {
        Terminal::Dead => true,
        Terminal::Delivered | Terminal::Expired | Terminal::Cancelled => false,
    }
}
