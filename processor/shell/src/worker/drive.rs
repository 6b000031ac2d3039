//! The drive: one thread per worker that carries what happened to the engine, and does what the engine says.
//!
//! It decides nothing. Invariants: an offset is handed to the ledger together with everything settled before it, and a shard is let go
//! only after what was settled for it is durable, or can no longer be; whatever shards leave, the loop goes on.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::fmt::Write as _;
use std::mem;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, never, select_biased, unbounded};
use futures_util::FutureExt;
use rdkafka::consumer::Consumer;
use rdkafka::error::KafkaError;
use rdkafka::topic_partition_list::Offset;
use tokio::runtime::Handle;

use retide_avro::Arrival;
use retide_avro::headers::{self, Headless};
use retide_avro::schemas::Key;
use retide_connectors::{Attempt, Target};
use retide_core::Position;
use retide_core::completions::Binding;
use retide_core::engine::Left;
use retide_core::key_order::{self, Awaited, Change};
use retide_core::{
    Action, Alert, Commit, Engine, Entry, Failure, Fate, Input, Kind as TaskKind, LaneId, Now,
    Origin, Outcome, Overdue, Returned, Scene, Scenes, Settlement, Source, Task, Timestamp, Wait,
    Writable, breaker, task,
};
use retide_kafka::topics::Topics;

use crate::clock;
use crate::event::{
    AwaitedGone, BatchCommitted, BatchDropped, BatchReturned, BreakerSwitched, RecordSetAside,
    RecordsGone, RecordsRefused, RulesChanged, TargetPanicked, TopicDeleted, WorkerStarted,
    WorkerStopped,
};
use crate::health::Heartbeat;
use crate::machine;
use crate::metrics::standing::Said;
use crate::metrics::{Load, Metrics, SceneMetrics, SceneSet, Share, Tally};
use crate::registry::Registry;
use crate::threads::{Hand, message};
use crate::trouble::{Effect, Kind, Trouble, Troubles};
use crate::worker::encode::{Encoder, Place};
use crate::worker::feed::{Assignment, Deleted, Feed, Passed, Read, Reading, Reads, Request};
use crate::worker::leaving::Leaving;
use crate::worker::ledger::{
    Batch, Content, Ledger, Ownership, Progress, Receipt, ReturnedBatch, Settled, Share as Part,
};
use crate::worker::readable::Unreadable;
use crate::worker::restore::Gap;
use crate::worker::search::{Searched, Wanted};
use crate::worker::unnamed::Unnamed;

/// The scenes in force and the targets they call.
#[derive(Clone, Default)]
pub struct Rules {
    /// The scenes.
    pub scenes: Scenes,
    /// Where the tasks of each kind go that name a scene.
    pub routes: Routes,
}

/// The target of each scene and kind of task that is called.
pub type Routes = HashMap<(Arc<str>, TaskKind), Arc<dyn Target>>;

/// How a worker paces itself.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// How long a batch is collected.
    pub commit_interval: Duration,
    /// How long calls in flight are waited for when a shard is given away.
    pub drain_deadline: Duration,
}

/// What a worker is made of.
pub struct Drive<L> {
    /// Decides.
    pub engine: Engine,
    /// Reads.
    pub feed: Feed,
    /// Writes.
    pub ledger: L,
    /// Which shards the ledger may commit for.
    pub ownership: Arc<Ownership>,
    /// Turns decisions into records.
    pub encoder: Arc<Encoder>,
    /// The topics.
    pub topics: Arc<Topics>,
    /// How a worker paces itself.
    pub pace: Pace,
    /// Where calls run.
    pub runtime: Handle,
    /// Where events are counted.
    pub metrics: Arc<Metrics>,
    /// Says that the loop turns.
    pub heartbeat: Arc<Heartbeat>,
    /// Where schemas are asked for, if there is a registry.
    pub registry: Option<Registry>,
}

/// What changes while a worker runs.
struct State<L> {
    /// What it is made of.
    parts: Drive<L>,
    /// The rules in force.
    rules: Rules,
    /// Calls that came back.
    outcomes: Receiver<Answered>,
    /// Where the call that has come back is counted, and how long it took, until it is known as what.
    uncounted: Option<(Arc<SceneMetrics>, Duration)>,
    /// Given to each call. As many answers can wait as there are calls in flight, which the gates limit.
    answer: Sender<Answered>,
    /// What was settled since the last batch.
    settled: Vec<Settlement>,
    /// What was written of the order of tasks and is to be forgotten, by shard.
    outdated: Vec<(i32, Change)>,
    /// The batches under way, oldest first.
    under_way: VecDeque<UnderWay>,
    /// How many batches were returned.
    returns: u64,
    /// How many of those under way rest on one that was returned, and will be, too: none is handed over before that.
    returning: usize,
    /// Answered calls that could not be committed before their shards were given away.
    uncommitted: usize,
    /// Since when something has been waiting for a commit.
    waiting_since: Option<Instant>,
    /// What can be written, as the engine knows it.
    writable: Writable,
    /// The version of what takes records, as the engine knows it.
    writable_version: u64,
    /// When the batch being collected is due.
    commit_at: Instant,
    /// Where paused lanes read on.
    paused: HashMap<LaneId, i64>,
    /// The records and lanes that wait for what a registry says of a schema.
    unnamed: Unnamed,
    /// How many answers it had given when they were looked at last.
    answers: u64,
    /// When they are looked at again if it gives no more.
    ask_at: Instant,
    /// What the metadata of each lane's commits is bound to.
    bindings: HashMap<LaneId, Binding>,
    /// Assigned shards, each with the number of its assignment.
    shards: BTreeMap<i32, u64>,
    /// The number of the last assignment.
    assignment: u64,
    /// Shards being given away.
    leaving: Vec<Leaving>,
    /// Who waits until shards are given away.
    asked: Vec<(Vec<i32>, Sender<()>)>,
    /// Whether the worker is to end, once nothing is left to be given away.
    stopping: bool,
    /// Whether the tiers' records are to be looked at before the retry topic's.
    tiers_first: bool,
    /// The topics of which offsets cannot be committed.
    unreadable: Unreadable,
    /// The version of that.
    readable_version: u64,
    /// Lanes that were begun while their topic did not exist: no offset of theirs is one of a topic that is there again.
    unbound: HashSet<LaneId>,
    /// Batches handed to the ledger.
    submitted: u64,
    /// Batches of which the ledger has said what became.
    received: u64,
    /// When the offsets of all lanes are to be committed again, changed or not.
    refresh_at: Instant,
    /// Whether there are offsets to commit although nothing was settled.
    touched: bool,
    /// The partitions that have lost records, each with the time until which that is told.
    gone: Vec<(Instant, String)>,
    /// What is done about tasks that keys wait for and that do not come.
    awaiting: Awaiting,
    /// The instant steady time is measured from.
    start: Instant,
    /// The counters of the scenes in force.
    counters: Arc<SceneSet>,
    /// This worker's part in the gauges of the process.
    share: Share,
    /// Where lasting troubles of this worker are told.
    troubles: Troubles,
    /// When to give the next sign of life.
    beat_at: Instant,
    /// When to say again what is late.
    say_at: Instant,
    /// When offsets may be committed again that have only moved behind markers of transactions.
    pass_at: Instant,
    /// What the engine says; empty between steps, and kept for its memory.
    actions: Vec<Action>,
    /// The record being looked at.
    hand: Arc<Hand>,
}

/// What is done about tasks that keys wait for and that do not come.
struct Awaiting {
    /// When it is looked for them next.
    look_at: Instant,
    /// How long it is left alone after a search that has found all of them.
    pause: Duration,
    /// Those of the last look, and the number of batches after which all that was decided before is durable.
    suspects: Option<(HashSet<Awaited>, u64)>,
    /// Whether a search is under way.
    is_searching: bool,
    /// Shards of whose tiers records are gone: there it is not waited until a task is due.
    with_gaps: HashSet<i32>,
}

/// A call that is back.
struct Answered {
    /// Which.
    ticket: u64,
    /// What the target said.
    outcome: Outcome,
    /// The headers of its record that it went without, in words.
    left_out: Option<Box<str>>,
    /// Where it is counted once it is known what the answer is taken for, and how long it took; nowhere, if it is counted already.
    uncounted: Option<(Arc<SceneMetrics>, Duration)>,
}

/// How late a call is that is to be started.
#[derive(Clone, Copy)]
struct Late {
    /// Until it was decided.
    wait: Wait,
    /// When that was.
    decided: Instant,
}

/// A batch that the ledger has.
struct UnderWay {
    /// Its offsets.
    commits: Vec<Commit>,
    /// How many consequences stand in it.
    tasks: usize,
    /// What to count once it is durable.
    tally: Tally,
}

/// How long nothing may be committed before no more calls are started: longer than an election, short beside what calls cost that are made
/// again.
const STUCK: Duration = Duration::from_secs(5);

/// How long before people are told.
const STUCK_LONG: Duration = Duration::from_secs(10);

/// A batch that took no longer leaves room for larger ones.
const FITS: Duration = Duration::from_secs(2);

/// A batch that took longer is too large, although it was committed.
const FITS_NOT: Duration = Duration::from_secs(4);

/// Settlements of a batch from which on their number is not limited any more.
const WIDE_TASKS: usize = 20_000;

/// Bytes of a batch from which on they are not limited any more.
const WIDE_BYTES: usize = 64 << 20;

/// Most batches under way: one commits while the other fills.
const UNDER_WAY: usize = 2;

/// Settlements after which no more records are read until a batch is taken. The engine stops long before with all that can wait: left is
/// what follows from a record at once, such as a dead letter of one that cannot be read.
const MOST_SETTLED: usize = 40_000;

/// How late a parked task is that its tiers are searched for it: they come within milliseconds unless a flood is due.
const LATE: Duration = Duration::from_secs(10);

/// Time between two looks at what a registry has said: it answers within milliseconds as a rule.
const ASK: Duration = Duration::from_millis(5);

/// Time between two looks for tasks that are that late.
const LOOK: Duration = Duration::from_secs(3);

/// Longest pause between two searches that find what they look for.
const RARELY: Duration = Duration::from_mins(10);

/// Time between two commits of offsets that have not changed. Brokers forget those of topics that nobody subscribes to, a week after the last
/// commit as they come, and sooner where an operator says so.
const REFRESH: Duration = Duration::from_hours(1);

/// How long it is told that records are gone: long enough for somebody to be called, and to look.
const TOLD: Duration = Duration::from_mins(10);

/// Time between two signs of life: as often as the loop turns when nothing happens, far less often than it can.
const BEAT: Duration = Duration::from_millis(100);

/// Time between two commits of offsets that have only moved behind markers of transactions: such a commit is a transaction of its own.
const PASS: Duration = Duration::from_secs(3);

/// Time between two looks at what is late: short beside the time between two scrapes, and rare enough that the look costs nothing.
const SAY: Duration = Duration::from_secs(1);

// === impl Drive ===

impl<L: Ledger> Drive<L> {
    /// Runs until `stop` is sent to or dropped, then drains. Rules from `rules` take effect at once.
    ///
    /// # Errors
    /// If the consumer cannot go on.
    pub fn run(
        self,
        rules: &Receiver<Rules>,
        stop: &Receiver<()>,
    ) -> Result<(Feed, L, usize), KafkaError> {
        let (metrics, heartbeat) = (Arc::clone(&self.metrics), Arc::clone(&self.heartbeat));
        let worker = heartbeat.name();
        WorkerStarted { worker }.emit(&metrics);
        let mut state = State::new(self);
        let result = state.run(rules, stop);
        heartbeat.ended();
        let error = result.as_ref().err();
        WorkerStopped { worker, error }.emit(&metrics);
        result.map(|()| (state.parts.feed, state.parts.ledger, state.uncommitted))
    }
}

// === impl State ===

impl<L: Ledger> State<L> {
    /// The state of a worker that has nothing yet.
    fn new(mut parts: Drive<L>) -> Self {
        #[allow(
            clippy::disallowed_methods,
            reason = "one outcome for each call in flight, and those are limited"
        )]
        let (answer, outcomes) = unbounded();
        let counters = parts.metrics.in_force();
        let share = Share::new(Arc::clone(&parts.metrics));
        let troubles = parts.metrics.troubles().held_by(parts.heartbeat.name());
        let hand = Hand::new(&parts.topics);
        parts.feed.consumer.context().threads().works_with(&hand);
        let now = Instant::now();
        if let Some(began) = machine::now() {
            parts.engine.set_machine(began);
        }
        Self {
            parts,
            rules: Rules::default(),
            outcomes,
            uncounted: None,
            answer,
            settled: Vec::new(),
            outdated: Vec::new(),
            under_way: VecDeque::new(),
            returns: 0,
            returning: 0,
            uncommitted: 0,
            waiting_since: None,
            writable: Writable::default(),
            writable_version: 0,
            unreadable: Unreadable::default(),
            readable_version: 0,
            unbound: HashSet::new(),
            commit_at: now,
            paused: HashMap::new(),
            unnamed: Unnamed::default(),
            answers: 0,
            ask_at: now,
            bindings: HashMap::new(),
            shards: BTreeMap::new(),
            assignment: 0,
            leaving: Vec::new(),
            asked: Vec::new(),
            stopping: false,
            tiers_first: false,
            submitted: 0,
            received: 0,
            refresh_at: now + REFRESH,
            touched: false,
            gone: Vec::new(),
            awaiting: Awaiting {
                look_at: now + LATE,
                pause: LATE,
                suspects: None,
                is_searching: false,
                with_gaps: HashSet::new(),
            },
            start: now,
            counters,
            share,
            troubles,
            beat_at: now,
            say_at: now,
            pass_at: now,
            actions: Vec::new(),
            hand,
        }
    }

    /// The loop, until everything is given away that there is when it is to stop.
    fn run(&mut self, rules: &Receiver<Rules>, stop: &Receiver<()>) -> Result<(), KafkaError> {
        let (nothing, no_rules, no_stop) = (never(), never(), never());
        let mut failed = Ok(());
        while !self.stopping || !self.leaving.is_empty() {
            self.beat();
            self.follow_writable();
            self.follow_readable();
            self.commit_if_due();
            self.give_away();
            self.read_what_is_named();
            let timeout = self.timeout();
            let full = self.settled.len() >= MOST_SETTLED;
            let feed = &self.parts.feed;
            let (tasks, tiers) = if full {
                (&nothing, &nothing)
            } else {
                (&feed.tasks, &feed.tiers)
            };
            // In turn where both have some: neither keeps the other waiting, however much there is of it.
            let (first, second) = if self.tiers_first {
                (tiers, tasks)
            } else {
                (tasks, tiers)
            };
            let (rules, stop) = if self.stopping {
                (&no_rules, &no_stop)
            } else {
                (rules, stop)
            };
            // Answers and receipts before records: what is under way has to end before more begins.
            select_biased! {
                recv(self.outcomes) -> answered => self.answered(answered.ok()),
                recv(self.parts.ledger.receipts()) -> receipt => self.received(receipt.ok()),
                recv(stop) -> _ => self.stop(),
                recv(rules) -> rules => match rules {
                    Ok(rules) => self.change(rules),
                    // Whoever made the rules has ended, and so shall we.
                    Err(_) => self.stop(),
                },
                recv(feed.readings) -> reading => match reading {
                    Ok(Reading::Failed(error)) => {
                        failed = Err(error);
                        self.stop();
                    }
                    Ok(reading) => self.read(reading),
                    // Without its feed it has no part in the group, and nothing can be committed.
                    Err(_) => {
                        self.lose_all();
                        return failed;
                    }
                },
                recv(first) -> records => {
                    self.tiers_first = !self.tiers_first;
                    self.records(records.unwrap_or_default());
                },
                recv(second) -> records => self.records(records.unwrap_or_default()),
                default(timeout) => self.step(Input::Tick),
            }
        }
        failed
    }

    /// Gives a sign of life, if it is time, and says what the worker holds.
    fn beat(&mut self) {
        let now = Instant::now();
        // Without its feed a worker only seems alive.
        if now < self.beat_at || self.parts.feed.has_ended() {
            return;
        }
        self.beat_at = now + BEAT;
        self.end_told(now);
        if let Some(registry) = &self.parts.registry {
            registry.forget_missing(now);
        }
        self.alert_of_troubles();
        self.look_for_awaited(now);
        self.parts.heartbeat.beat();
        self.parts.feed.turned();
        self.follow_commits(now);
        let engine = &self.parts.engine;
        self.share.report(Load {
            open: engine.open(),
            held: engine.bytes(),
            calls: engine.in_flight(),
            shards: self.shards.len(),
            keys: engine.keys(),
        });
        let missing = engine.missing().map(|missing| Trouble {
            kind: Kind::SceneUnknown,
            subject: missing.scene.to_string(),
            says: format!(
                "{} of its tasks are held, {} among them: it does not exist",
                missing.tasks, missing.example
            ),
            fix: Some("retide scenes apply scenes.toml, with rules for it".to_owned()),
            effect: Effect::Limits,
        });
        self.troubles.only(Kind::SceneUnknown, missing);
        for (of, calls) in engine.call_limits() {
            self.parts.metrics.limit_is(&of, calls);
        }
        let mut walls = Vec::new();
        for (target, state) in engine.breaker_states() {
            self.parts.metrics.breaker_is(target.text(), state);
            if target.is_wall() && state != breaker::State::Closed {
                walls.push(Trouble {
                    kind: Kind::TargetWalled,
                    subject: target.text().to_string(),
                    says: "the target has done well and now refuses everything: its tasks wait, and a few find out when that is over"
                        .to_owned(),
                    fix: None,
                    effect: Effect::Limits,
                });
            }
        }
        self.troubles.only(Kind::TargetWalled, walls);
        if now >= self.say_at {
            self.say_at = now + SAY;
            self.say_what_is_late();
        }
    }

    /// Makes alerts of the troubles that have begun, and has them written as soon as the alerts topic takes them.
    fn alert_of_troubles(&mut self) {
        let Some(shard) = self.shards.keys().next().copied() else {
            return;
        };
        let now = self.now().wall;
        for (kind, subject) in self.troubles.take_alerts(shard == 0) {
            // What cannot be written cannot say so there.
            if kind != Kind::TopicUnwritable || *subject != *self.parts.topics.alerts {
                self.tell(shard, trouble_alert(kind, &subject, now));
            }
        }
        if !self.touched && self.parts.engine.has_alerts() {
            self.touch(|_| true);
        }
    }

    /// Has people told what was found out here, with the next commit.
    fn tell(&mut self, shard: i32, alert: Alert) {
        let alert = Box::new(alert);
        self.step(Input::Alert { shard, alert });
    }

    /// Has the tiers searched for tasks that keys wait for, which should be back and are not: their records may be gone.
    fn look_for_awaited(&mut self, now: Instant) {
        if now < self.awaiting.look_at || self.awaiting.is_searching {
            return;
        }
        self.awaiting.look_at = now + LOOK;
        let engine = &self.parts.engine;
        let late = self.now().wall.before(LATE);
        let with_gaps = &self.awaiting.with_gaps;
        let awaited = engine.awaited(|shard| {
            if with_gaps.contains(&shard) {
                Timestamp::MAX
            } else {
                late
            }
        });
        if awaited.is_empty() {
            self.awaiting.suspects = None;
            self.awaiting.with_gaps.clear();
            return;
        }
        // What is decided and not durable yet is in no tier either.
        let durable = self.submitted + u64::from(!self.settled.is_empty());
        let Some((before, mark)) = &self.awaiting.suspects else {
            self.awaiting.suspects = Some((awaited.into_iter().collect(), durable));
            return;
        };
        if self.received < *mark {
            return;
        }
        let tasks: Vec<Awaited> = awaited
            .into_iter()
            .filter(|of| before.contains(of))
            .collect();
        self.awaiting.suspects = None;
        if tasks.is_empty() || engine.unwritten() > 0 {
            return;
        }
        let shards: HashSet<i32> = tasks.iter().map(|task| task.shard).collect();
        let assignments = self
            .shards
            .iter()
            .filter(|(shard, _)| shards.contains(shard));
        let wanted = Wanted {
            ends: engine
                .ends()
                .filter(|(lane, _)| shards.contains(&lane.shard))
                .collect(),
            assignments: assignments.map(|(shard, of)| (*shard, *of)).collect(),
            tasks,
        };
        self.awaiting.is_searching = true;
        self.awaiting.with_gaps.clear();
        self.parts.feed.consumer.context().search(wanted);
    }

    /// The tiers were searched for tasks that keys wait for.
    fn searched(&mut self, searched: Searched) {
        let Searched { gone, assignments } = searched;
        self.awaiting.is_searching = false;
        let gone: Vec<Awaited> = gone
            .into_iter()
            .filter(|task| self.shards.get(&task.shard) == assignments.get(&task.shard))
            .collect();
        let gone = self.parts.engine.forget_gone(gone);
        if gone.is_empty() {
            self.awaiting.look_at = Instant::now() + self.awaiting.pause;
            self.awaiting.pause = (self.awaiting.pause * 2).min(RARELY);
            return;
        }
        self.awaiting.pause = LATE;
        let mut shards: BTreeMap<i32, Vec<i64>> = BTreeMap::new();
        for Awaited { shard, offset, .. } in gone {
            shards.entry(shard).or_default().push(offset);
        }
        let now = self.now().wall;
        for (shard, tasks) in shards {
            let example = format!("{}/{shard}/{}", self.parts.topics.tasks, tasks[0]);
            let count = tasks.len();
            AwaitedGone {
                shard,
                tasks: count,
                example: &example,
            }
            .emit(&self.parts.metrics);
            let subject = format!("{}/{shard}", self.parts.topics.order);
            self.tell_gone(
                subject,
                format!(
                    "{count} parked tasks that others of their keys waited for, {example} among them, are in no tier any more: they are lost, \
                     and the next ones of their keys go on"
                ),
            );
            let alert = Alert {
                rule: Kind::RecordsGone.word(),
                scene: "".into(),
                at: now,
                count: u32::try_from(count).unwrap_or(u32::MAX),
                example: example.into(),
                reason: "parked-task-gone",
                target: None,
            };
            self.tell(shard, alert);
        }
        self.touch(|_| true);
        self.step(Input::Tick);
    }

    /// Tells for a while that records are gone.
    fn tell_gone(&mut self, subject: String, says: String) {
        self.troubles.begin(Trouble {
            kind: Kind::RecordsGone,
            subject: subject.clone(),
            says,
            fix: None,
            effect: Effect::Limits,
        });
        self.gone.push((Instant::now() + TOLD, subject));
    }

    /// Says which tasks are due and have not started.
    fn say_what_is_late(&mut self) {
        let mut overdue: HashMap<Arc<str>, Overdue> = HashMap::new();
        for (scene, tasks) in self.parts.engine.overdue(self.now().wall) {
            let label = Arc::clone(self.counters.of(&scene).label());
            overdue
                .entry(label)
                .and_modify(|others| *others = others.and(tasks))
                .or_insert(tasks);
        }
        let read = self.parts.engine.read_ends().collect();
        self.share.say(Said { overdue, read });
    }

    /// How long nothing has to be done.
    fn timeout(&self) -> Duration {
        // A clock that is set forward is noticed within this time.
        let mut timeout = BEAT;
        if let Some(wake) = self.parts.engine.next_wake() {
            timeout = timeout.min(wake.since(self.now().wall));
        }
        let now = Instant::now();
        if self.has_to_commit() && self.may_hand_over() {
            timeout = timeout.min(self.commit_at.saturating_duration_since(now));
        }
        let registry = self.parts.registry.as_ref();
        if self.unnamed.is_any() && registry.is_some_and(Registry::is_asking) {
            timeout = timeout.min(ASK);
        }
        for leaving in &self.leaving {
            let next = leaving.next(now);
            timeout = timeout.min(next.saturating_duration_since(now));
        }
        timeout
    }

    /// The time.
    fn now(&self) -> Now {
        let wall = clock::since_epoch();
        Now {
            wall: Timestamp::EPOCH + wall,
            steady: self.start.elapsed(),
        }
    }

    /// Tells the engine what happened and does what it says.
    fn step(&mut self, input: Input) {
        self.step_at(self.now(), input);
    }

    /// As [`Self::step`], at a time that was looked up already.
    fn step_at(&mut self, now: Now, input: Input) {
        let mut actions = mem::take(&mut self.actions);
        self.parts.engine.step(now, input, &mut actions);
        for action in actions.drain(..) {
            match action {
                Action::Dispatch {
                    ticket,
                    scene,
                    task,
                    wait,
                    lane: _,
                } => {
                    let decided = self.start + now.steady;
                    self.dispatch(ticket, &scene, task, Late { wait, decided });
                }
                Action::Settle(settlement) => {
                    if self.settled.is_empty() {
                        self.commit_at = Instant::now() + self.parts.pace.commit_interval;
                    }
                    self.settled.push(settlement);
                }
                Action::Pause { lane, next } => {
                    self.paused.insert(lane, next);
                    self.parts.feed.request(Request::Pause { lane });
                }
                Action::Resume { lane, run } => {
                    // Whatever it waits for is met again.
                    self.unnamed.forget(lane);
                    let next = self
                        .paused
                        .remove(&lane)
                        .unwrap_or_else(|| unreachable!("{lane:?} resumed before it was paused"));
                    self.parts.feed.request(Request::Resume { lane, run, next });
                }
                Action::Judged { outcome } => {
                    if let Some((counters, took)) = self.uncounted.take() {
                        counters.answered(&outcome, took);
                    }
                }
                // Who gives it away asks, since calls may hang: see `is_gone`.
                Action::Drained { shard: _ } => {}
                Action::Switched { target, switch } => {
                    if switch.to == breaker::State::Open {
                        // Its probes find out whether others than those who failed are there by now.
                        let all = self.rules.routes.values();
                        all.for_each(|called| called.renew(target.target()));
                    }
                    let target = &**target.text();
                    BreakerSwitched { target, switch }.emit(&self.parts.metrics);
                }
            }
        }
        self.actions = actions;
    }

    /// Starts a call; its answer comes back as an outcome, whatever happens to it.
    fn dispatch(&self, ticket: u64, scene: &Scene, task: Arc<Task>, late: Late) {
        let answer = self.answer.clone();
        let counters = Arc::clone(self.counters.of(&scene.name));
        let Late { wait, decided } = late;
        let route = (Arc::clone(&scene.name), task.kind);
        let Some(target) = self.rules.routes.get(&route).map(Arc::clone) else {
            let failure = Failure::new("no-target", "the scene's target could not be set up");
            let outcome = Outcome::Retryable(failure);
            counters.started(wait, Duration::ZERO);
            counters.answered(&outcome, Duration::ZERO);
            let _ = answer.send(Answered {
                ticket,
                outcome,
                left_out: None,
                uncounted: None,
            });
            return;
        };
        let (name, metrics) = (Arc::clone(&scene.name), Arc::clone(&self.parts.metrics));
        self.parts.runtime.spawn(async move {
            let start = Instant::now();
            counters.started(wait, start.saturating_duration_since(decided));
            // Nothing of the target's is used after a panic but the target itself, which holds no state of a task.
            let call = AssertUnwindSafe(target.attempt(task)).catch_unwind();
            let attempt = call.await.unwrap_or_else(|panic| {
                let (scene, message) = (&*name, message(&*panic));
                TargetPanicked { scene, message }.emit(&metrics);
                let failure = Failure::new("panic", "the target's connector panicked");
                Outcome::Retryable(failure).into()
            });
            let Attempt { outcome, left_out } = attempt;
            if let Some(left_out) = &left_out {
                counters.left_out(left_out);
            }
            let took = start.elapsed();
            // Of what may be about everybody, it is not known here what it is.
            let uncounted = if let Outcome::Refused(_) = outcome {
                Some((counters, took))
            } else {
                counters.answered(&outcome, took);
                None
            };
            let _ = answer.send(Answered {
                ticket,
                outcome,
                left_out: left_out.map(|left_out| left_out.to_string().into_boxed_str()),
                uncounted,
            });
        });
    }

    /// A call came back.
    fn answered(&mut self, answered: Option<Answered>) {
        if let Some(Answered {
            ticket,
            outcome,
            left_out,
            uncounted,
        }) = answered
        {
            self.uncounted = uncounted;
            if let Some(headers) = left_out {
                self.step(Input::LeftOut { ticket, headers });
            }
            self.step(Input::Attempted { ticket, outcome });
        }
    }

    /// A batch is durable, or was dropped with its shards.
    fn received(&mut self, receipt: Option<Receipt>) {
        let Some(receipt) = receipt else { return };
        let UnderWay {
            commits, mut tally, ..
        } = self
            .under_way
            .pop_front()
            .unwrap_or_else(|| unreachable!("a receipt without a batch"));
        self.received += 1;
        self.returning = self.returning.saturating_sub(1);
        if !matches!(receipt, Receipt::Returned(_)) {
            let rest = !self.under_way.is_empty() || !self.settled.is_empty();
            self.waiting_since = rest.then(Instant::now);
        }
        match receipt {
            Receipt::Committed { took, refused } => {
                self.widen(took);
                for settled in &refused {
                    if let (Content::Entries(entries), Content::Entries(otherwise)) =
                        (&settled.records, &settled.otherwise)
                    {
                        let [before, records] =
                            [entries, otherwise].map(|entries| self.parts.encoder.records(entries));
                        tally.refuse((entries, before), (otherwise, records));
                    }
                }
                let metrics = &self.parts.metrics;
                BatchCommitted { took, tally }.emit(metrics);
                if !refused.is_empty() {
                    let count = refused.len();
                    RecordsRefused { count }.emit(metrics);
                }
                for (lane, offset) in refused.into_iter().filter_map(|settled| settled.offset) {
                    if let Some(commit) = commits.iter().find(|commit| commit.lane == lane) {
                        let epoch = commit.epoch;
                        self.step(Input::Refused {
                            lane,
                            epoch,
                            offset,
                        });
                    }
                }
                for commit in commits {
                    self.step(Input::Committed {
                        lane: commit.lane,
                        epoch: commit.epoch,
                        watermark: commit.watermark,
                    });
                }
            }
            Receipt::Dropped => {
                let lanes = commits.len();
                BatchDropped { lanes }.emit(&self.parts.metrics);
            }
            Receipt::Returned(batch) => self.returned(&commits, *batch),
        }
    }

    /// A batch was not written: the engine settles what can be written again.
    fn returned(&mut self, commits: &[Commit], batch: ReturnedBatch) {
        self.returns += 1;
        // What it held is durable later than was thought.
        self.awaiting.suspects = None;
        self.returning = self.under_way.len();
        let ReturnedBatch {
            settled,
            mut refused,
            written,
            slow,
        } = batch;
        let count = refused.len();
        BatchReturned { refused: count }.emit(&self.parts.metrics);
        let now = self.now().wall;
        let mut returned = Returned {
            lanes: commits.iter().map(|of| (of.lane, of.epoch)).collect(),
            ..Returned::default()
        };
        let mut tally = Tally::new(&self.parts.metrics, &self.counters);
        let mut bytes = 0;
        for (index, settled) in settled.into_iter().enumerate() {
            let Settled {
                place,
                offset,
                records,
                otherwise,
                refused: _,
            } = settled;
            let (entries, otherwise) = match (records, otherwise) {
                (Content::Entries(entries), Content::Entries(otherwise)) => (entries, otherwise),
                (Content::Records(_) | Content::Entries(_), _) => continue,
            };
            let Some((lane, offset)) = offset else {
                let is_over = written.contains(&index) || refused.contains_key(&index);
                self.unwritten_beside(place.shard, entries, is_over, &mut returned);
                continue;
            };
            let mut settlement = Settlement {
                lane,
                offset,
                home: place.home,
                entries,
                otherwise,
            };
            bytes += settlement.memory_size();
            if written.contains(&index) {
                let records = self.parts.encoder.records(&settlement.entries);
                tally.count(&settlement, records, now);
                settlement.entries.clear();
                settlement.otherwise.clear();
            }
            let refused = refused.remove(&index);
            let fate = refused.map_or(Fate::Again, |(sink, failure)| Fate::Refused(sink, failure));
            returned.settlements.push((settlement, fate));
        }
        tally.add_to(&self.parts.metrics);
        if let Some(share) = slow {
            self.narrow(share, returned.settlements.len(), bytes);
        }
        self.follow_writable();
        self.follow_readable();
        self.step(Input::Returned(Box::new(returned)));
        for leaving in &mut self.leaving {
            leaving.unwritten();
        }
        if self.settled.is_empty() && self.parts.engine.to_write_again() == 0 {
            // What is left waits for a topic.
            self.waiting_since = None;
        }
    }

    /// What was to be written besides settlements was not, unless that `is_over`: of the order of keys, or for people.
    fn unwritten_beside(
        &mut self,
        shard: i32,
        entries: Vec<Entry>,
        is_over: bool,
        returned: &mut Returned,
    ) {
        for entry in entries {
            match entry {
                Entry::Order(change) if self.parts.ledger.keeps_order() => {
                    returned.changes.push((shard, change.key));
                }
                Entry::Order(change) => self.outdated.push((shard, change)),
                Entry::Alert(_) if is_over => {}
                Entry::Alert(alert) => returned.alerts.push((shard, alert)),
                Entry::Park { .. }
                | Entry::Deliver { .. }
                | Entry::DeadLetter { .. }
                | Entry::Poison { .. }
                | Entry::Callback(_)
                | Entry::DeliverCallback(_)
                | Entry::Event(_) => unreachable!("a consequence of no offset"),
            }
        }
    }

    /// Makes batches smaller, after one of `tasks` and `bytes` was too large for the time it had.
    fn narrow(&mut self, share: Part, tasks: usize, bytes: usize) {
        let Part { done, of } = share;
        // Half of what was done, so that the next one fits; where nothing was, nothing is known.
        let part = |whole: usize| (whole * done / of.max(1) / 2).max(whole / 16).max(1);
        let writable = Writable {
            batch_tasks: self.writable.batch_tasks.min(part(tasks)),
            batch_bytes: self.writable.batch_bytes.min(part(bytes)),
            ..self.writable
        };
        self.set_writable(writable);
    }

    /// Makes batches larger again, after one that took little time.
    fn widen(&mut self, took: Duration) {
        let Writable {
            batch_tasks,
            batch_bytes,
            ..
        } = self.writable;
        if batch_tasks == usize::MAX && batch_bytes == usize::MAX {
            return;
        }
        let wider = |limit: usize, most: usize| {
            match took {
                took if took < FITS => Some(limit.saturating_mul(2)),
                took if took < FITS_NOT => Some(limit),
                _ => Some((limit / 2).max(1)),
            }
            .filter(|limit| *limit < most)
            .unwrap_or(usize::MAX)
        };
        self.set_writable(Writable {
            batch_tasks: wider(batch_tasks, WIDE_TASKS),
            batch_bytes: wider(batch_bytes, WIDE_BYTES),
            ..self.writable
        });
    }

    /// Follows which topics take records.
    fn follow_writable(&mut self) {
        let writability = self.parts.encoder.writability();
        let version = writability.version();
        if version != self.writable_version {
            let closed = writability.closed();
            self.writable_version = version;
            self.set_writable(Writable {
                closed,
                ..self.writable
            });
        }
    }

    /// Follows of which topics offsets can be committed.
    fn follow_readable(&mut self) {
        let readability = self.parts.feed.consumer.context().readability();
        let version = readability.version();
        if version == self.readable_version {
            return;
        }
        self.readable_version = version;
        let unreadable = readability.unreadable();
        let is_back = self.unreadable.without(&unreadable).next().is_some();
        let denied = unreadable.denied().collect();
        self.unreadable = unreadable;
        self.step(Input::Unreadable(denied));
        if is_back {
            // What was left out meanwhile.
            self.touch(|_| true);
        }
    }

    /// Follows whether anything is committed at all.
    fn follow_commits(&mut self, now: Instant) {
        let busy = !self.under_way.is_empty()
            || !self.settled.is_empty()
            || self.parts.engine.to_write_again() > 0;
        let since = self.waiting_since.filter(|_| busy);
        self.waiting_since = since.or_else(|| busy.then_some(now));
        let since = self.waiting_since.unwrap_or(now);
        let waits = now.saturating_duration_since(since);
        let stuck = waits >= STUCK;
        if stuck || self.writable.stuck {
            self.tell_stuck(waits);
        }
        self.set_writable(Writable {
            stuck,
            ..self.writable
        });
    }

    /// Tells people that nothing is committed, or that it is again.
    fn tell_stuck(&self, waits: Duration) {
        let worker = self.parts.heartbeat.name();
        let troubles = self.parts.metrics.troubles().held_by(worker);
        if waits < STUCK_LONG {
            return troubles.end(Kind::CommitStuck, worker);
        }
        let calls = self.parts.engine.unwritten() + self.settled.len();
        troubles.begin(Trouble {
            kind: Kind::CommitStuck,
            subject: worker.to_owned(),
            says: format!(
                "nothing could be committed for {} s, no call is started until that is over; {calls} tasks and the batches under way wait",
                waits.as_secs()
            ),
            fix: None,
            effect: Effect::Stops,
        });
    }

    /// Tells the engine what can be written, if that has changed.
    fn set_writable(&mut self, writable: Writable) {
        if writable != self.writable {
            self.writable = writable;
            self.step(Input::Writable(writable));
        }
    }

    /// Whether a batch may be handed over.
    fn may_hand_over(&self) -> bool {
        self.under_way.len() < UNDER_WAY && self.returning == 0
    }

    /// Other rules are in force.
    fn change(&mut self, rules: Rules) {
        let scenes = rules.scenes.clone();
        self.rules = rules;
        self.counters = self.parts.metrics.put_in_force(&scenes);
        self.parts.heartbeat.ruled();
        RulesChanged {
            worker: self.parts.heartbeat.name(),
            scenes: scenes.iter().count(),
        }
        .emit(&self.parts.metrics);
        self.step(Input::Rules(scenes));
    }

    /// The group says something.
    fn read(&mut self, reading: Reading) {
        match reading {
            // What comes now goes back with everything else.
            Reading::Assigned(..) if self.stopping => {}
            Reading::Assigned(assignments, orders) => self.assigned(assignments, orders),
            Reading::Revoked { shards, lost, done } => {
                if lost {
                    self.parts.heartbeat.lost();
                    self.lose(&shards);
                } else {
                    self.leave(&shards);
                }
                self.asked.push((shards, done));
                self.answer();
            }
            Reading::Gaps(gaps) => self.gone(gaps),
            Reading::Deleted(deleted) => self.deleted(&deleted),
            Reading::Alerts(alerts) => {
                for (shard, alert) in alerts {
                    self.tell(shard, alert);
                }
                self.touch(|_| true);
            }
            Reading::Searched(searched) => self.searched(searched),
            Reading::Shards(all) => {
                self.parts.metrics.shards.set(all.get().into());
                self.step(Input::Shards(all));
            }
            Reading::Failed(_) => unreachable!("the loop ends with it"),
        }
    }

    /// Lanes are ours.
    fn assigned(&mut self, assignments: Vec<Assignment>, orders: Vec<(i32, key_order::Shard)>) {
        self.follow_readable();
        for (shard, order) in orders {
            self.know_order(shard, order);
        }
        for assignment in &assignments {
            let (shard, saved) = (assignment.lane.shard, assignment.saved.clone());
            if !saved.is_empty() {
                self.step(Input::Saved { shard, saved });
            }
        }
        // What waits in its tiers is to be read first.
        self.awaiting.look_at = Instant::now() + LATE;
        self.awaiting.suspects = None;
        self.assignment += 1;
        let mut lanes = Vec::with_capacity(assignments.len());
        for assignment in assignments {
            let Assignment {
                lane,
                start,
                known,
                saved: _,
                binding,
            } = assignment;
            self.bindings.insert(lane, binding);
            self.unnamed.begin(lane);
            if self.unreadable.is_deleted(lane.source) {
                self.unbound.insert(lane);
            }
            self.shards.insert(lane.shard, self.assignment);
            self.parts.ownership.take(lane.shard);
            self.step(Input::Assign { lane, start, known });
            lanes.push((lane, Offset::Offset(start)));
        }
        if !lanes.is_empty() {
            let assignment = self.assignment;
            self.parts.feed.request(Request::Read { assignment, lanes });
            self.touch(|since| since == assignment);
        }
        // No shard at all, where there are more workers than shards, is an assignment too.
        self.parts.heartbeat.assigned();
    }

    /// Records of our lanes are gone: people are told, and the offsets behind them are committed.
    fn gone(&mut self, gaps: Vec<Gap>) {
        let now = self.now().wall;
        for gap in gaps {
            RecordsGone { gap: &gap }.emit(&self.parts.metrics);
            let shard = gap.lane.shard;
            self.tell_gone(format!("{}/{shard}", gap.topic), gap.says());
            self.tell(shard, gap.alert(now));
            if gap.lane.source != Source::Tasks {
                self.parts.engine.forget_deferred(shard);
                self.awaiting.with_gaps.insert(shard);
            }
        }
        self.touch(|_| true);
    }

    /// A topic was deleted: what was not read of it is lost.
    fn deleted(&mut self, deleted: &Deleted) {
        let Deleted { source, ends } = deleted;
        let topic = Arc::clone(self.parts.topics.name(*source));
        let (mut records, mut shards) = (0, BTreeSet::new());
        for (lane, read) in self.parts.engine.ends() {
            let end = ends.get(&lane.shard).filter(|_| lane.source == *source);
            let left = end.map_or(0, |end| u64::try_from(end - read).unwrap_or_default());
            if left > 0 {
                records += left;
                shards.insert(lane.shard);
            }
        }
        let Some(first) = shards.first().copied() else {
            return;
        };
        TopicDeleted {
            topic: &topic,
            records,
        }
        .emit(&self.parts.metrics);
        self.tell_gone(
            topic.to_string(),
            format!(
                "the topic was deleted while up to {records} records of it were not read: their tasks are lost"
            ),
        );
        let alert = Alert {
            rule: Kind::RecordsGone.word(),
            scene: "".into(),
            at: self.now().wall,
            count: u32::try_from(records).unwrap_or(u32::MAX),
            example: topic,
            reason: "topic-deleted",
            target: None,
        };
        self.tell(first, alert);
        if *source != Source::Tasks {
            for shard in shards {
                self.parts.engine.forget_deferred(shard);
                self.awaiting.with_gaps.insert(shard);
            }
        }
        self.touch(|_| true);
    }

    /// Ends what has been told for long enough.
    fn end_told(&mut self, now: Instant) {
        if self.gone.iter().all(|(until, _)| *until > now) {
            return;
        }
        let troubles = self.parts.metrics.troubles();
        let troubles = troubles.held_by(self.parts.heartbeat.name());
        let (stay, over) = mem::take(&mut self.gone)
            .into_iter()
            .partition::<Vec<_>, _>(|(until, _)| *until > now);
        for (_, subject) in &over {
            if !stay.iter().any(|(_, other)| other == subject) {
                troubles.end(Kind::RecordsGone, subject);
            }
        }
        self.gone = stay;
    }

    /// Commits the offsets of the shards of these assignments soon, changed or not.
    fn touch(&mut self, of: impl Fn(u64) -> bool) {
        for (shard, assignment) in &self.shards {
            if of(*assignment) {
                self.parts.engine.touch(*shard);
            }
        }
        self.touched = true;
    }

    /// Records were read.
    fn records(&mut self, Reads { records, passed }: Reads) {
        // One look at the clock for all: if anything, it is behind, and nothing is early by that.
        let now = self.now();
        for mut read in records {
            let lane = read.position.lane;
            // One of an assignment that is over comes to whoever has the shard now.
            let is_ours = self.shards.get(&lane.shard) == Some(&read.assignment);
            if is_ours
                && !self.begins_anew(lane)
                && self.unnamed.is_in_turn(&mut read.position)
                && !self.has_to_wait(now, &read)
            {
                self.record(now, read);
            }
        }
        for Passed {
            assignment,
            mut position,
        } in passed
        {
            let is_ours = self.shards.get(&position.lane.shard) == Some(&assignment);
            if is_ours && !self.begins_anew(position.lane) && self.unnamed.is_in_turn(&mut position)
            {
                self.step_at(now, Input::Passed { position });
            }
        }
        self.hand.empty();
    }

    /// Whether a record cannot be read before a registry has said what its schema is, or comes behind one of its key. It is set aside, or
    /// its lane stands still where too many are: what comes behind it is read again then.
    fn has_to_wait(&mut self, now: Now, read: &Read) -> bool {
        let (Some(registry), Ok(record)) = (&self.parts.registry, &read.record) else {
            return false;
        };
        let lane = read.position.lane;
        if lane.source != Source::Tasks {
            return false;
        }
        let asks = self.parts.topics.intake.asks(record);
        let before = || self.unnamed.before(lane, record.key.as_ref());
        let Some(key) = asks.or_else(before) else {
            return false;
        };
        registry.ask(key);
        if self.unnamed.has_room(lane) {
            let (position, bytes) = (read.position, record.memory_size() + size_of::<Read>());
            self.step_at(now, Input::SetAside { position, bytes });
            // It may be known to be complete.
            if self.parts.engine.is_aside(lane, position.offset) {
                self.unnamed.set_aside(read.clone(), key, bytes);
            }
            return true;
        }
        self.unnamed.wait(read.position, key);
        if !self.paused.contains_key(&lane) {
            self.parts.feed.request(Request::Pause { lane });
        }
        true
    }

    /// Takes records back that can be read now, reads lanes on that stood still, and says what the others wait for.
    fn read_what_is_named(&mut self) {
        let Some(registry) = &self.parts.registry else {
            return;
        };
        let (now, answers) = (Instant::now(), registry.answers());
        if !self.unnamed.is_to_look() || (answers == self.answers && now < self.ask_at) {
            return;
        }
        let registry = registry.clone();
        self.answers = answers;
        self.ask_at = now + BEAT;
        let (shards, intake) = (&self.shards, &self.parts.topics.intake);
        self.unnamed.keep(|lane| shards.contains_key(&lane.shard));
        let schemas = &intake.schemas;
        let back = self.unnamed.take_back(|key| schemas.meaning(key).is_some());
        for (lane, key) in self.unnamed.waiting() {
            if schemas.meaning(key).is_none() && !self.unnamed.has_room(lane) {
                continue;
            }
            let Position { run, offset, .. } = self.unnamed.go_on(lane);
            // One that the engine has paused reads on when the engine says so.
            if self.paused.contains_key(&lane) {
                self.unnamed.forget(lane);
            } else {
                let next = offset;
                self.parts.feed.request(Request::Resume { lane, run, next });
            }
        }
        let mut failure = None;
        for (lane, key) in self.unnamed.wanted() {
            registry.ask(key);
            failure = failure.or_else(|| Some((lane, key, registry.failure(key)?)));
        }
        self.tell_registry(&registry, failure);
        let now = self.now();
        for read in back {
            self.record(now, read);
        }
        self.hand.empty();
    }

    /// Tells people what waits for a registry, if it has not answered one question at least.
    fn tell_registry(&mut self, registry: &Registry, failure: Option<(LaneId, Key, Arc<str>)>) {
        let stands = self.unnamed.waiting().len();
        let away = failure.map(|(lane, key, why)| {
            let records = self.unnamed.count();
            let mut says = format!(
                "{records} records of the retry topic wait for it, one of partition {} for {key}: {why}",
                lane.shard
            );
            if stands > 0 {
                let _ = write!(
                    says,
                    "; {stands} partitions stand still, since too many of their records wait"
                );
            }
            Trouble {
                kind: Kind::RegistryAway,
                subject: registry.address().to_owned(),
                says,
                fix: Some(
                    "see to the registry, or name the schema in [schemas] ids and start again"
                        .to_owned(),
                ),
                effect: if stands > 0 {
                    Effect::Stops
                } else {
                    Effect::Limits
                },
            }
        });
        // While a question is on its way, nothing has changed.
        if away.is_some() || !self.unnamed.is_any() {
            self.unnamed.told(away.is_some());
            self.troubles.only(Kind::RegistryAway, away);
        }
    }

    /// Whether the topic of a lane is deleted, or was as the lane began: what comes of it is of a topic that is there again, and is read
    /// when the lane has begun anew.
    fn begins_anew(&self, lane: LaneId) -> bool {
        self.unreadable.is_deleted(lane.source) || self.unbound.contains(&lane)
    }

    /// What former owners knew of the order of a shard's tasks: to go on with, or, where it is not kept, to be forgotten by all.
    fn know_order(&mut self, shard: i32, order: key_order::Shard) {
        if self.parts.ledger.keeps_order() {
            let order = Box::new(order);
            self.step(Input::Outstanding { shard, order });
        } else {
            let tombstones = order.tombstones().map(|change| (shard, change));
            self.outdated.extend(tombstones);
        }
    }

    /// What is to be written of the order of tasks besides what settlements hold.
    fn changes(&mut self) -> Vec<(i32, Change)> {
        let changes = self.parts.engine.changes();
        if self.parts.ledger.keeps_order() {
            return changes;
        }
        mem::take(&mut self.outdated)
    }

    /// A record was read: a task, or poison.
    fn record(&mut self, now: Now, read: Read) {
        let Read {
            assignment: _,
            position,
            appended,
            record,
        } = read;
        let LaneId { shard, source } = position.lane;
        let origin = Origin {
            topic: Arc::clone(self.parts.topics.name(source)),
            partition: shard,
            offset: position.offset,
        };
        let threads = self.parts.feed.consumer.context().threads();
        let deaths = threads
            .suspects()
            .deaths(&origin.topic, shard, origin.offset);
        if deaths > 0 {
            RecordSetAside {
                origin: &origin,
                deaths,
            }
            .emit(&self.parts.metrics);
            let (Ok(record) | Err(Headless(record))) = record;
            let poison = Arc::from(headers::set_aside(record, source, origin, deaths));
            return self.step_at(now, Input::Poison { position, poison });
        }
        self.hand.take(position.lane, position.offset);
        let read = match (record, source) {
            (Ok(record), Source::Tasks) => {
                let arrival = Arrival {
                    origin,
                    entered: task::entered(appended, now.wall),
                    stamped: appended,
                };
                self.parts.topics.intake.ingest(record, arrival)
            }
            (Ok(record), Source::Tier(_)) => headers::parked(record, origin),
            (Err(headless), Source::Tasks | Source::Tier(_)) => {
                Err(headers::headless(headless, origin))
            }
        };
        let input = match read {
            Ok(task) => Input::Record {
                position,
                appended,
                task: Box::new(task),
            },
            Err(poison) => Input::Poison {
                position,
                poison: Arc::from(poison),
            },
        };
        self.step_at(now, input);
    }

    /// Hands over what was collected, if it is time and the ledger has room.
    fn commit_if_due(&mut self) {
        let now = Instant::now();
        if now >= self.refresh_at {
            self.refresh_at = now + REFRESH;
            self.touch(|_| true);
        }
        // Where something is settled, it goes with that.
        if now >= self.pass_at && self.settled.is_empty() && self.parts.engine.has_passed() {
            self.pass_at = now + PASS;
            self.touched = true;
        }
        if self.has_to_commit()
            && self.may_hand_over()
            && (self.parts.engine.is_full() || now >= self.commit_at)
        {
            self.commit();
        }
    }

    /// Whether there is anything to hand over.
    fn has_to_commit(&self) -> bool {
        self.touched || !self.settled.is_empty() || self.parts.engine.has_unsaved()
    }

    /// Hands over what was collected.
    fn commit(&mut self) {
        let mut batch = Batch {
            returns: self.returns,
            ..Batch::default()
        };
        batch.settled.reserve(self.settled.len());
        let mut tally = Tally::new(&self.parts.metrics, &self.counters);
        let now = self.now().wall;
        let keeps_order = self.parts.ledger.keeps_order();
        for mut settlement in self.settled.drain(..) {
            if !keeps_order {
                let is_kept = |entry: &Entry| !matches!(entry, Entry::Order(_));
                settlement.entries.retain(is_kept);
                settlement.otherwise.retain(is_kept);
            }
            let records = self.parts.encoder.records(&settlement.entries);
            tally.count(&settlement, records, now);
            batch.settled.push(Settled {
                place: Place {
                    shard: settlement.lane.shard,
                    home: settlement.home,
                },
                offset: Some((settlement.lane, settlement.offset)),
                records: Content::Entries(settlement.entries),
                otherwise: Content::Entries(settlement.otherwise),
                refused: false,
            });
        }
        for (shard, alert) in self.parts.engine.alerts() {
            tally.count_records(1);
            batch.settled.push(Settled {
                place: Place::at(shard),
                offset: None,
                records: Content::Entries(vec![Entry::Alert(alert)]),
                otherwise: Content::none(),
                refused: false,
            });
        }
        // Where offsets cannot be committed beside their consequences, others of their shard stand for them: it is theirs to commit.
        let mut blind = BTreeSet::new();
        if !self.unreadable.is_empty() {
            let settled = batch.settled.iter();
            let lanes = settled.filter_map(|settled| settled.offset.map(|(lane, _)| lane));
            blind.extend(lanes.filter(|lane| self.unreadable.has(lane.source)));
        }
        for lane in &blind {
            self.parts.engine.touch(lane.shard);
        }
        batch.has_more = !blind.is_empty();
        let commits = self.parts.engine.commits();
        for (shard, change) in self.changes() {
            tally.count_records(1);
            batch.settled.push(Settled {
                place: Place::at(shard),
                offset: None,
                records: Content::Entries(vec![Entry::Order(change)]),
                otherwise: Content::none(),
                refused: false,
            });
        }
        for commit in &commits {
            if self.unreadable.has(commit.lane.source) || self.unbound.contains(&commit.lane) {
                continue;
            }
            batch.progress.push(Progress {
                topic: Arc::clone(self.parts.topics.name(commit.lane.source)),
                shard: commit.lane.shard,
                next: commit.watermark,
                metadata: commit.metadata(self.binding(commit)),
            });
        }
        self.touched = false;
        self.submitted += 1;
        self.under_way.push_back(UnderWay {
            commits,
            tasks: batch.settled.len(),
            tally,
        });
        self.parts.ledger.submit(batch);
    }

    /// What the metadata of a commit is bound to.
    fn binding(&self, commit: &Commit) -> Binding {
        let binding = self.bindings.get(&commit.lane);
        *binding.unwrap_or_else(|| unreachable!("a commit of a lane that is not assigned"))
    }

    /// Is to end, after giving everything away.
    fn stop(&mut self) {
        self.stopping = true;
        let all: Vec<i32> = self.shards.keys().copied().collect();
        self.leave(&all);
    }

    /// Begins to give those of these shards away that are not being given away yet: all goes on, and calls in flight are waited for.
    fn leave(&mut self, shards: &[i32]) {
        let is_leaving = |shard: &i32| {
            let mut leaving = self.leaving.iter();
            leaving.any(|leaving| leaving.shards().contains(shard))
        };
        let owned = shards
            .iter()
            .filter(|shard| self.shards.contains_key(shard));
        let shards: Vec<i32> = owned.filter(|shard| !is_leaving(shard)).copied().collect();
        for shard in shards.iter().copied() {
            self.step(Input::Leave { shard });
        }
        if !shards.is_empty() {
            let patience = self.parts.pace.drain_deadline;
            self.leaving
                .push(Leaving::new(shards, Instant::now(), patience));
        }
    }

    /// Gives shards away as far as they are ready.
    fn give_away(&mut self) {
        if self.leaving.is_empty() {
            return;
        }
        for mut leaving in mem::take(&mut self.leaving) {
            if self.is_gone(&mut leaving) {
                self.count_uncommitted(leaving.shards());
                self.release(leaving.shards());
            } else {
                self.leaving.push(leaving);
            }
        }
        self.answer();
    }

    /// Takes shards through their stages as far as they come; whether they can be released.
    fn is_gone(&mut self, leaving: &mut Leaving) -> bool {
        let now = Instant::now();
        if leaving.is_written(self.received) {
            let mut settled = self.settled.iter();
            if settled.any(|one| leaving.shards().contains(&one.lane.shard)) {
                // Answers that came while the last batch was written are as good as those before.
                leaving.unwritten();
            }
        }
        let left = self.calls_left(leaving.shards());
        if leaving.is_to_stop(now, left) {
            for shard in leaving.shards().iter().copied() {
                self.step(Input::Revoke { shard });
            }
            let shards = leaving.shards().to_vec();
            self.parts.feed.request(Request::Leave { shards });
            leaving.stopped(now);
        }
        if leaving.is_to_commit(now, left) {
            let is_theirs = |one: &Settlement| leaving.shards().contains(&one.lane.shard);
            let is_left = self.settled.iter().any(is_theirs) || self.parts.engine.has_unsaved();
            if is_left && self.may_hand_over() {
                self.commit();
            }
            // What was given back to be written again is settled with the next step.
            let is_left = self.settled.iter().any(is_theirs) || self.parts.engine.has_unsaved();
            if !is_left && self.parts.engine.to_write_again() == 0 {
                leaving.committing(self.submitted);
            }
        }
        leaving.is_written(self.received) || leaving.is_late(now)
    }

    /// Counts the answered calls of shards that are not committed when the worker ends, and will not be.
    fn count_uncommitted(&mut self, shards: &[i32]) {
        if !self.stopping {
            return;
        }
        let is_theirs = |one: &&Settlement| shards.contains(&one.lane.shard) && one.is_of_call();
        let settled = self.settled.iter().filter(is_theirs).count();
        // Whatever is in them, it is not waited for any more.
        let under_way: usize = self.under_way.iter().map(|batch| batch.tasks).sum();
        self.uncommitted += settled + under_way + self.parts.engine.unwritten_calls(shards);
    }

    /// How many calls of shards are in flight.
    fn calls_left(&self, shards: &[i32]) -> Left {
        let mut all = Left::default();
        for shard in shards {
            let left = self.parts.engine.calls_left(*shard);
            all.before += left.before;
            all.since += left.since;
        }
        all
    }

    /// Shards are gone: nothing can be committed for them any more, and nothing is to be waited for.
    fn lose(&mut self, shards: &[i32]) {
        let owned = shards.iter().copied();
        let lost: Vec<i32> = owned
            .filter(|shard| self.shards.contains_key(shard))
            .collect();
        for shard in lost.iter().copied() {
            self.parts.ownership.give_up(shard);
            self.step(Input::Revoke { shard });
        }
        for leaving in &mut self.leaving {
            leaving.forget(&lost);
        }
        self.leaving.retain(|leaving| !leaving.shards().is_empty());
        self.release(&lost);
        self.parts.feed.request(Request::Leave { shards: lost });
    }

    /// Everything is gone.
    fn lose_all(&mut self) {
        let all: Vec<i32> = self.shards.keys().copied().collect();
        self.lose(&all);
    }

    /// Forgets shards.
    fn release(&mut self, shards: &[i32]) {
        for shard in shards {
            // From here on nothing is committed for it, even if a batch is still under way.
            self.parts.ownership.give_up(*shard);
            self.step(Input::Release { shard: *shard });
            self.shards.remove(shard);
        }
        self.settled
            .retain(|settlement| !shards.contains(&settlement.lane.shard));
        self.outdated.retain(|(shard, _)| !shards.contains(shard));
        self.paused.retain(|lane, _| !shards.contains(&lane.shard));
        self.bindings
            .retain(|lane, _| !shards.contains(&lane.shard));
        self.unbound.retain(|lane| !shards.contains(&lane.shard));
    }

    /// Tells those who wait for shards to be given away that all of theirs are.
    fn answer(&mut self) {
        let owned = &self.shards;
        self.asked
            .retain(|(shards, _)| shards.iter().any(|shard| owned.contains_key(shard)));
    }
}

/// The alert of a trouble that has begun.
fn trouble_alert(kind: Kind, subject: &str, at: Timestamp) -> Alert {
    Alert {
        rule: kind.word(),
        scene: "".into(),
        at,
        count: 1,
        example: subject.into(),
        reason: kind.word(),
        target: None,
    }
}
