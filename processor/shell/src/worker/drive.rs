//! The drive: one thread per worker that carries what happened to the engine, and does what the engine says.
//!
//! | room | what |
//! |---|---|
//! | `records` | what was read |
//! | `schemas` | records that wait for a schema registry |
//! | `calls` | calls to targets |
//! | `batch`, `receipts` | what is handed to the ledger, and what became of it |
//! | `commands` | what the sweep finds that commands are about |
//! | `limits` | what can be written and committed |
//! | `shards` | assigned, given away, lost |
//! | `gone` | records that are not there any more |
//! | `signs` | signs of life |
//!
//! It decides nothing. Invariants: an offset is handed to the ledger together with everything settled before it, and a shard is let go
//! only after what was settled for it is durable, or can no longer be; whatever shards leave, the loop goes on.

mod batch;
mod calls;
mod commands;
mod gone;
mod limits;
mod receipts;
mod records;
mod schemas;
mod shards;
mod signs;

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::mem;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, never, select_biased, unbounded};
use rdkafka::consumer::Consumer;
use rdkafka::error::KafkaError;
use tokio::runtime::Handle;

use retide_connectors::Target;
use retide_core::completions::Binding;
use retide_core::step::LettersKept;
use retide_core::{
    Action, Engine, Holds, Input, Kind as TaskKind, LaneId, Now, Scenes, Timestamp, Writable,
    breaker,
};
use retide_kafka::topics::Topics;

use self::batch::{Hurry, REFRESH, UnderWay};
use self::calls::{Answered, Late};
use self::gone::{Awaiting, LATE};
use self::schemas::ASK;
use crate::clock;
use crate::event::{BreakerSwitched, CooldownBegan, RulesChanged, WorkerStarted, WorkerStopped};
use crate::health::Heartbeat;
use crate::kept::Kept;
use crate::machine::Began;
use crate::metrics::Metrics;
use crate::metrics::scenes::{SceneMetrics, SceneSet};
use crate::metrics::share::Share;
use crate::registry::Registry;
use crate::signals::Line;
use crate::threads::{Hand, wake_soon};
use crate::trouble::Troubles;
use crate::worker::encode::Encoder;
use crate::worker::feed::{Feed, Reading, Request};
use crate::worker::leaving::Leaving;
use crate::worker::ledger::{Ledger, Ownership, Settled};
use crate::worker::readable::Unreadable;
use crate::worker::unnamed::Unnamed;

/// The scenes in force and the targets they call.
#[derive(Clone, Default)]
pub struct Rules {
    /// The scenes.
    pub scenes: Scenes,
    /// Where the tasks of each kind go that name a scene.
    pub routes: Routes,
    /// The tasks that people do not want started.
    pub holds: Holds,
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
    /// What it tells other processes, and hears of them.
    pub signals: Line,
    /// How long dead letters are kept.
    pub kept: Kept,
    /// When steady time began.
    pub began: Began,
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
    settled: Vec<Settled>,
    /// What was written of the order of tasks and is to be forgotten, by shard.
    outdated: Vec<(i32, retide_core::State)>,
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
    /// How long dead letters are kept, as the engine was told.
    kept: Option<LettersKept>,
    /// When the batch being collected is due.
    commit_at: Instant,
    /// When the last batch was handed over.
    handed_at: Instant,
    /// Whether the next one is to be early.
    hurry: Hurry,
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
    /// How many tasks there were whose ids are not known, as far as that was told.
    unknown_ids: u64,
    /// When offsets may be committed again that have only moved behind markers of transactions.
    pass_at: Instant,
    /// What the engine says; empty between steps, and kept for its memory.
    actions: Vec<Action>,
    /// The record being looked at.
    hand: Arc<Hand>,
}

/// Settlements after which no more records are read until a batch is taken. The engine stops long before with all that can wait: left is
/// what follows from a record at once, such as a dead letter of one that cannot be read.
const MOST_SETTLED: usize = 40_000;

/// Time between two signs of life: as often as the loop turns when nothing happens, far less often than it can.
const BEAT: Duration = Duration::from_millis(100);

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
        wake_soon();
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
        let Began { at: start, machine } = parts.began;
        if let Some(began) = machine {
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
            kept: None,
            unreadable: Unreadable::default(),
            readable_version: 0,
            unbound: HashSet::new(),
            commit_at: now,
            handed_at: now,
            hurry: Hurry::new(now),
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
            start,
            counters,
            share,
            troubles,
            beat_at: now,
            say_at: now,
            unknown_ids: 0,
            pass_at: now,
            actions: Vec::new(),
            hand,
        }
    }

    /// The loop, until everything is given away that there is when it is to stop.
    fn run(&mut self, rules: &Receiver<Rules>, stop: &Receiver<()>) -> Result<(), KafkaError> {
        let (nothing, no_rules, no_stop, no_found) = (never(), never(), never(), never());
        let mut failed = Ok(());
        while !self.stopping || !self.leaving.is_empty() {
            self.beat();
            self.follow_writable();
            self.follow_readable();
            self.commit_if_due();
            self.give_away();
            self.read_what_is_named();
            self.take_found();
            let timeout = self.timeout();
            let full = self.settled.len() >= MOST_SETTLED;
            let feed = &self.parts.feed;
            // Before it is asked whether more is wanted, what was found is taken: see `take_found`.
            let found = if self.parts.engine.wants_found() {
                &feed.found
            } else {
                &no_found
            };
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
                recv(self.parts.signals.heard) -> told => match told {
                    Ok((server, heard)) => self.step(Input::Cooldown { server, heard }),
                    // Whoever hears has ended, as this worker is about to.
                    Err(_) => self.parts.signals.heard = never(),
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
                recv(found) -> found => self.found(found.unwrap_or_default()),
                recv(feed.letters) -> letters => self.letters(letters.unwrap_or_default()),
                default(timeout) => self.step(Input::Tick),
            }
        }
        failed
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
            timeout = timeout.min(self.due_at().saturating_duration_since(now));
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
                    self.hurry.note(&settlement);
                    self.settle(settlement);
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
                Action::LimitPassed { scene, outcome } => {
                    self.counters.of(&scene).limit_passed(&outcome);
                }
                // Who gives it away asks, since calls may hang: see `is_gone`.
                Action::Drained { shard: _ } => {}
                Action::Look(look) => self.look(look),
                Action::ReadLetters(read) => self.read_letters(read),
                Action::Switched { target, switch } => {
                    if switch.to == breaker::State::Open {
                        // Its probes find out whether others than those who failed are there by now.
                        let all = self.rules.routes.values();
                        all.for_each(|called| called.renew(target.target()));
                    }
                    let target = &**target.text();
                    BreakerSwitched { target, switch }.emit(&self.parts.metrics);
                }
                Action::Cooldown { signal, told_by } => {
                    // First the others: they are calling.
                    self.parts.signals.tell(&signal);
                    let signal = &signal;
                    CooldownBegan { signal, told_by }.emit(&self.parts.metrics);
                }
            }
        }
        self.actions = actions;
    }

    /// Other rules are in force.
    fn change(&mut self, rules: Rules) {
        let (scenes, holds) = (rules.scenes.clone(), rules.holds.clone());
        self.rules = rules;
        // Before anything of the new rules can start.
        self.step(Input::Holds(holds));
        self.counters = self.parts.metrics.put_in_force(&scenes);
        self.parts.heartbeat.ruled();
        RulesChanged {
            worker: self.parts.heartbeat.name(),
            scenes: scenes.iter().count(),
        }
        .emit(&self.parts.metrics);
        self.step(Input::Rules(scenes));
    }
}
