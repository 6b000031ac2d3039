//! The world: time, what happens in which order, and the way between workers, broker and targets.
//!
//! One queue of events, one instant after the other; nothing here waits, and nothing depends on anything but the seed.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::sync::Arc;
use std::time::Duration;

use retide_core::cooldown::Signal;
use retide_core::forced::{AllForced, Forced};
use retide_core::hold::Revision;
use retide_core::scene::{Missing, OnExhausted};
use retide_core::{
    Failure, Gates, Hold, Holds, LaneId, Outcome, Scene, Scenes, Source, Task, Timestamp,
};

use crate::broker::{
    Aside, Broker, Cause, Decided, Fate, KnownShard, MAX_METADATA, Outgoing, PartitionId, Payload,
    ProducerId, Progress, Refusal, Topic,
};
use crate::bug::Bug;
use crate::chance::Chance;
use crate::check::{
    Judge, LONGEST, LONGEST_BEHIND, LONGEST_BY_BREAKERS, LONGEST_BY_COOLDOWNS,
    LONGEST_BY_WRONG_CLOCKS, Start,
};
use crate::export::Witness;
use crate::group::{Given, Member, Membership};
use crate::holds::Holding;
use crate::plan::{self, FLOOD, Fate as Planned, Fault, LONGEST_WAIT, Odds, Plan};
use crate::trace::{Keep, Trace};
use crate::worker::{Birth, Worker};

/// An instant: microseconds since the beginning of the world.
pub(crate) type At = u64;

/// A millisecond.
pub(crate) const MILLI: At = 1_000;

/// A second.
pub(crate) const SECOND: At = 1_000 * MILLI;

/// The beginning of the world on a wall clock that is right, in microseconds since the epoch: far enough from it for clocks to go back.
const BEGINNING: u64 = 1_700_000_000_000_000;

/// Longest wait for an answer of the broker, as in the shell.
const CALL: At = 10 * SECOND;

/// How long the group does not hear of a member before it gives it up.
const SESSION: At = 10 * SECOND;

/// Longest time between two heartbeats: how late a member hears of a new generation.
const HEARTBEAT: At = 3 * SECOND;

/// How long the group waits for its members when it forms a generation.
const REBALANCE: At = 30 * SECOND;

/// Longest time until a consumer that has lost everything is polled, and says so.
pub(crate) const POLLED: At = 200 * MILLI;

/// How long a transaction may be open.
const TRANSACTION: At = 10 * SECOND;

/// How long a campaign waits for its tasks when nothing goes wrong any more: a transaction that has to time out, a generation that waits
/// for its members, and then all attempts of a task with its longest waits, several times over.
const PATIENCE: At = 180 * SECOND;

/// How many signals of a thousand are not heard: they are advice.
const SIGNALS_LOST: u64 = 100;

/// Most events of one history: more, and it goes round in circles.
const MOST_EVENTS: u64 = 3_000_000;

/// Who asks the broker.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Caller {
    /// The worker.
    pub(crate) worker: usize,
    /// Which part of it.
    pub(crate) part: Part,
}

/// A part of a worker that asks the broker.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Part {
    /// The consumer.
    Feed,
    /// One of the ledger's writers.
    Writer(usize),
}

/// What is asked of the broker.
#[derive(Clone, Debug)]
pub(crate) enum Request {
    /// An epoch.
    Init {
        /// The transactional id.
        id: ProducerId,
    },
    /// To add records to a transaction.
    Produce {
        /// The transactional id.
        id: ProducerId,
        /// Its epoch.
        epoch: u32,
        /// The records.
        records: Vec<Outgoing>,
    },
    /// To add offsets to a transaction.
    Offsets {
        /// The transactional id.
        id: ProducerId,
        /// Its epoch.
        epoch: u32,
        /// The offsets.
        offsets: Vec<Progress>,
        /// What the records of the transaction do not say.
        aside: Aside,
        /// The consumer's place in the group.
        membership: Membership,
    },
    /// To end a transaction.
    End {
        /// The transactional id.
        id: ProducerId,
        /// Its epoch.
        epoch: u32,
        /// How.
        fate: Fate,
    },
    /// The offsets in force.
    Fetch {
        /// Of these lanes.
        lanes: Vec<LaneId>,
    },
    /// What was written of the order of keys.
    KeyOrder {
        /// Of these shards.
        shards: BTreeSet<i32>,
    },
}

/// What the broker answers.
#[derive(Clone, Debug)]
pub(crate) enum Reply {
    /// An epoch.
    Epoch(u32),
    /// It is done.
    Done,
    /// It is done, and the client had to send it more than once.
    DoneAgain,
    /// It was not done, and may be asked again.
    Refused(Refusal),
    /// Topics refuse the records of these consequences.
    Rejected(Vec<Cause>),
    /// Records will never be taken, or not for long.
    Unwritable {
        /// The topics of retide that take none.
        closed: BTreeSet<Topic>,
        /// The consequences with a record that is too large, and its topic.
        large: BTreeMap<Cause, Topic>,
    },
    /// An error that passes; it may have been done.
    Failed,
    /// The offsets in force.
    Offsets(Vec<Progress>),
    /// The order of keys, by shard.
    KeyOrder(Vec<(i32, KnownShard)>),
    /// Nothing was heard in time.
    TimedOut,
}

/// What becomes of a request on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// It is answered.
    Answered,
    /// It is followed, and answered with an error.
    Indeterminate,
    /// It is followed, and nobody hears of it.
    Unheard,
    /// It is answered, but the client has sent it before.
    Repeated,
    /// It is what the client has sent before, and nobody waits for it any more.
    Copy,
}

/// What happens.
#[derive(Debug)]
pub(crate) enum Event {
    /// A producer asks for something.
    Submit(usize),
    /// Somebody sends a command.
    Order(usize),
    /// A hold begins.
    Hold(usize),
    /// What a hold holds is let go slowly.
    Climb(usize),
    /// A hold is released.
    Release(usize),
    /// People want something of a breaker.
    Wish(usize),
    /// People let those tasks go that are out of attempts: as planned, or again and again.
    LetGo(Option<usize>),
    /// A request arrives at the broker.
    Arrive {
        /// Who asks.
        caller: Caller,
        /// The number of the request.
        call: u64,
        /// What is asked.
        request: Request,
        /// What becomes of it.
        way: Way,
    },
    /// A worker hears of something, now or when it is awake.
    News {
        /// The worker.
        worker: usize,
        /// What it hears.
        news: News,
    },
    /// The broker writes a marker.
    Mark {
        /// The transactional id.
        id: ProducerId,
        /// The partition; none for the offsets.
        place: Option<PartitionId>,
    },
    /// A transaction has been open for long.
    Overdue {
        /// The transactional id.
        id: ProducerId,
        /// The transaction.
        serial: u64,
    },
    /// A worker asks to be a member.
    Join {
        /// The worker.
        worker: usize,
        /// Which of its requests this is.
        request: u64,
        /// Its member id.
        member: Option<Member>,
        /// The shards it has.
        owned: BTreeSet<i32>,
    },
    /// A worker has ended.
    Left {
        /// The worker.
        worker: usize,
        /// Its process.
        process: usize,
    },
    /// The group has not heard of a worker for long, if it still stands still.
    Silent {
        /// The worker.
        worker: usize,
    },
    /// The group has waited long enough for its members.
    Impatient {
        /// The generation before.
        generation: u64,
    },
    /// Something goes wrong.
    Fault(Fault),
    /// A process starts.
    Start(usize),
    /// Nothing goes wrong any more.
    Heal,
    /// Has everything come to its end?
    Look,
    /// What a process tells all others arrives at one of them.
    Signal {
        /// The process that hears it.
        process: usize,
        /// What is said.
        told: Told,
    },
}

/// What a worker hears of.
#[derive(Debug)]
pub(crate) enum News {
    /// The broker has answered, or not in time.
    Reply {
        /// Which part of the worker asked.
        part: Part,
        /// The number of the request.
        call: u64,
        /// The answer.
        reply: Reply,
    },
    /// A target has answered.
    Called {
        /// The number of the call.
        ticket: u64,
        /// The answer.
        outcome: Outcome,
    },
    /// There may be records to read.
    Poll,
    /// It is known what a record is that was set aside.
    Named,
    /// The look through tiers of this number goes on.
    Look(u64),
    /// It is the time it wanted to be woken at.
    Tick {
        /// The time.
        at: At,
    },
    /// A writer's pause is over.
    Again {
        /// The writer.
        writer: usize,
    },
    /// A generation has begun.
    Joined(Given),
    /// A generation is being formed.
    Notice {
        /// The member it is to be told as.
        member: Member,
    },
    /// It is no member any more.
    Kicked {
        /// The member it was.
        member: Member,
    },
    /// The drive hears that all shards are lost.
    Lost,
    /// It is to try whether a topic takes records again.
    Try(Topic),
    /// Other rules are in force.
    Rules(Scenes),
    /// Other holds are in force.
    Holds(Holds),
    /// Another process says that a server wants rest.
    Cooldown(Told),
}

/// What a process tells all others, by its own wall clock.
#[derive(Clone, Debug)]
pub(crate) struct Told {
    /// What it says.
    pub(crate) signal: Signal,
    /// The process.
    pub(crate) life: u64,
    /// When.
    pub(crate) at: Timestamp,
}

/// An event and its time.
#[derive(Debug)]
struct Scheduled {
    /// When.
    at: At,
    /// Tells events of the same time apart: first in, first out.
    sequence: u64,
    /// What.
    event: Event,
}

/// Everything but the workers.
pub(crate) struct Env {
    /// The time.
    pub(crate) now: At,
    /// What is not decided by the code under test.
    pub(crate) chance: Chance,
    /// What happened.
    pub(crate) trace: Trace,
    /// The broker.
    pub(crate) broker: Broker,
    /// The judge.
    pub(crate) judge: Judge,
    /// Who writes down what can be seen from outside, if that is to be exported.
    pub(crate) witness: Option<Witness>,
    /// The plan.
    pub(crate) plan: Plan,
    /// What is still to happen.
    queue: BinaryHeap<Reverse<Scheduled>>,
    /// The last number given.
    last: u64,
    /// By how much each clock is off, the broker's last.
    clocks: Vec<i64>,
    /// The mistake that is made.
    bug: Bug,
    /// What goes wrong by chance now.
    odds: Odds,
    /// Until when the targets of calls answer none.
    down_until: At,
    /// Of so many looks at a lane of tasks one finds time for it.
    behind: u64,
    /// How often shards were assigned.
    pub(crate) assigned: usize,
    /// How many records were set aside and taken back.
    pub(crate) named: usize,
}

/// A process.
#[derive(Default)]
struct Process {
    /// Its workers.
    workers: Vec<usize>,
    /// Until when it stands still.
    frozen_until: At,
    /// How long after its end it starts again.
    restart: At,
}

/// The world.
pub(crate) struct World {
    /// Everything but the workers.
    pub(crate) env: Env,
    /// All workers there ever were.
    workers: Vec<Option<Worker>>,
    /// The processes.
    processes: Vec<Process>,
    /// The rules in force.
    scenes: BTreeMap<Arc<str>, Scene>,
    /// A scene that was taken out of force.
    shelved: Option<Scene>,
    /// The holds in force.
    held: BTreeMap<Arc<str>, Arc<Hold>>,
    /// What people want of breakers.
    forced: BTreeMap<Arc<str>, Arc<Forced>>,
    /// How often that has changed.
    wishes: u64,
    /// How often people have let tasks go that were out of attempts.
    releases: i64,
    /// What was produced so far.
    submitted: usize,
    /// How many commands were sent so far.
    ordered: usize,
    /// The mistake that workers make.
    bug: Bug,
}

/// The instant `at` on a wall clock that is `off` by so many microseconds.
pub(crate) fn wall(at: At, off: i64) -> Timestamp {
    Timestamp::from_micros((BEGINNING + at).saturating_add_signed(off))
}

// === impl Caller ===

impl Caller {
    /// It hears the answer to its request.
    fn hears(self, call: u64, reply: Reply) -> Event {
        let Self { worker, part } = self;
        let news = News::Reply { part, call, reply };
        Event::News { worker, news }
    }
}

// === impl Scheduled ===

impl PartialEq for Scheduled {
    fn eq(&self, other: &Self) -> bool {
        (self.at, self.sequence) == (other.at, other.sequence)
    }
}

impl Eq for Scheduled {}

impl PartialOrd for Scheduled {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Scheduled {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.sequence).cmp(&(other.at, other.sequence))
    }
}

// === impl Env ===

impl Env {
    /// Lets something happen after `delay`.
    pub(crate) fn after(&mut self, delay: At, event: Event) {
        let scheduled = Scheduled {
            at: self.now + delay,
            sequence: self.number(),
            event,
        };
        self.queue.push(Reverse(scheduled));
    }

    /// Lets a worker hear of something after `delay`.
    pub(crate) fn tell(&mut self, delay: At, worker: usize, news: News) {
        self.after(delay, Event::News { worker, news });
    }

    /// A number not given before.
    pub(crate) fn number(&mut self) -> u64 {
        self.last += 1;
        self.last
    }

    /// The wall clock of a process.
    pub(crate) fn wall_of(&self, process: usize) -> Timestamp {
        wall(self.now, self.clocks[process])
    }

    /// When the wall clock of a process shows `time`, as it goes now.
    pub(crate) fn at_of(&self, process: usize, time: Timestamp) -> At {
        let beginning = wall(0, self.clocks[process]);
        time.since(beginning).as_micros() as u64
    }

    /// The broker's wall clock.
    fn broker_wall(&self) -> Timestamp {
        wall(self.now, self.clocks.last().copied().unwrap_or_default())
    }

    /// Asks something of the broker; the answer comes with the number given here.
    pub(crate) fn ask(&mut self, caller: Caller, request: &Request) -> u64 {
        let call = self.number();
        let odds = self.odds;
        let delay = self.chance.between(200, 3_000);
        let arrive = |way| Event::Arrive {
            caller,
            call,
            request: request.clone(),
            way,
        };
        let timed_out = caller.hears(call, Reply::TimedOut);
        if self.chance.permille(odds.request_lost) {
            self.stalls();
            self.after(CALL, timed_out);
        } else if self.chance.permille(odds.reply_lost) {
            self.stalls();
            self.after(delay, arrive(Way::Unheard));
            self.after(CALL, timed_out);
        } else if self.chance.permille(odds.request_late) {
            // It may meet whatever its sender does next.
            self.stalls();
            let late = CALL + self.chance.between(1, 120) * MILLI;
            self.after(CALL, timed_out);
            self.after(late, arrive(Way::Unheard));
        } else if self.chance.permille(odds.refused) {
            self.after(delay, caller.hears(call, Reply::Failed));
        } else if self.chance.permille(odds.indeterminate) && request.may_be_indeterminate() {
            self.after(delay, arrive(Way::Indeterminate));
        } else if self.chance.permille(odds.repeated) && request.may_be_repeated() {
            // The connection was lost; the client has sent it again, and what it sent first comes later.
            let first = delay + self.chance.between(1, 300) * MILLI;
            self.after(delay, arrive(Way::Repeated));
            self.after(first, arrive(Way::Copy));
        } else {
            self.after(delay, arrive(Way::Answered));
        }
        call
    }

    /// Someone waits for an answer that does not come.
    fn stalls(&mut self) {
        if let Some(witness) = &mut self.witness {
            witness.fault("stall", self.now..self.now + CALL);
        }
    }

    /// A process tells all others that a server wants rest: each hears it some time later, if it is not lost.
    pub(crate) fn signal(&mut self, process: usize, life: u64, signal: Signal) {
        let at = self.wall_of(process);
        let told = Told { signal, life, at };
        for other in (0..self.plan.workers.len()).filter(|other| *other != process) {
            if self.chance.permille(SIGNALS_LOST) {
                continue;
            }
            let delay = self.chance.between(1, 500) * MILLI;
            let told = told.clone();
            self.after(
                delay,
                Event::Signal {
                    process: other,
                    told,
                },
            );
        }
    }

    /// Calls a target.
    pub(crate) fn call(
        &mut self,
        worker: usize,
        ticket: u64,
        start: Start,
        task: &Arc<Task>,
        scene: &Scene,
    ) {
        let now = self.now;
        self.trace
            .note(now, "call", &[worker as u64, task.attempt.into()], || {
                format!("{start:?} {task:?}")
            });
        self.judge.started(now, start, task, scene);
        if let Some(fate) = self.fate(task) {
            let outcome = fate.answer(task.attempt);
            if let Some(witness) = &mut self.witness {
                witness.attempt(now, task, &outcome);
            }
            self.judge.answered(task, &outcome);
            // Some long enough to be in flight when something happens, none too long for a drain.
            let longest = self.chance.pick(&[60, 60, 60, 60, 60, 60, 60, 1_500]);
            let delay = self.chance.between(5, longest) * MILLI;
            return self.tell(delay, worker, News::Called { ticket, outcome });
        }
        let failure = || Failure::new("target", "no");
        if &*task.scene == FLOOD {
            let flood = self.plan.flood.as_ref();
            let is_ill = flood.is_some_and(|flood| flood.contains(&now));
            let outcome = if is_ill {
                Outcome::Permanent(failure())
            } else {
                Outcome::Success
            };
            self.judge.answered(task, &outcome);
            let delay = self.chance.between(1, 50) * MILLI;
            return self.tell(delay, worker, News::Called { ticket, outcome });
        }
        let longest = self.plan.rest.unwrap_or(LONGEST_WAIT);
        let mut outcome = match self.chance.below(10) {
            0..=3 => Outcome::Success,
            4..=6 => Outcome::Retryable(failure()),
            7 => Outcome::Refused(failure()),
            8 => Outcome::Throttled {
                after: Duration::from_millis(self.chance.between(0, longest.as_millis() as u64)),
                failure: failure(),
            },
            _ => Outcome::Timeout(failure()),
        };
        if let Some(longest) = self.plan.answers_later(&scene.name)
            && self.chance.one_in(3)
        {
            let most = 2 * longest.as_millis() as u64;
            let asks = self.chance.one_in(2);
            let limit = asks.then(|| Duration::from_millis(self.chance.between(0, most)));
            outcome = Outcome::Pending { limit };
        }
        let mut delay = self.chance.between(1, 50) * MILLI;
        if self.chance.permille(self.odds.slow) {
            delay = self.chance.between(50, 4_900) * MILLI;
        }
        if self.chance.permille(self.odds.hung) {
            // Done or not, nobody hears of it.
            delay = 5 * SECOND;
            outcome = Outcome::Timeout(failure());
        }
        if self.now < self.down_until {
            delay = self.chance.between(1, 20) * MILLI;
            outcome = Outcome::Retryable(Failure::new("connect", "refused"));
        }
        self.judge.answered(task, &outcome);
        self.tell(delay, worker, News::Called { ticket, outcome });
    }

    /// Whether a worker finds the time to read a lane of tasks.
    pub(crate) fn keeps_up(&mut self) -> bool {
        self.behind == 1 || self.chance.one_in(self.behind)
    }

    /// What a task is to go through, if that was planned.
    fn fate(&self, task: &Task) -> Option<Planned> {
        let mut submissions = self.plan.submissions.iter();
        let submission = submissions.find(|submission| submission.id == task.id)?;
        submission.fate
    }

    /// Whether a topic of retide takes no records now.
    pub(crate) fn is_closed(&self, topic: Topic) -> bool {
        let until = self.broker.closed.get(&topic);
        until.is_some_and(|until| self.now < *until)
    }

    /// A request has arrived: follows it, unless something is in its way that passes.
    fn follow(&mut self, request: &Request) -> Result<Reply, Refusal> {
        let appended = self.broker_wall();
        match request.clone() {
            Request::Init { id } => {
                let (epoch, decided) = self.broker.init(id);
                if let Some(decided) = decided {
                    self.decided(id, decided);
                }
                epoch.map(Reply::Epoch)
            }
            Request::Produce { id, epoch, records } => {
                let rejected: Vec<Cause> = records
                    .iter()
                    .filter(|record| record.place.topic == Topic::Orders)
                    .filter(|_| self.broker.refuses_orders)
                    .map(|record| record.cause)
                    .collect();
                if !rejected.is_empty() {
                    return Ok(Reply::Rejected(rejected));
                }
                let closed: BTreeSet<Topic> = records
                    .iter()
                    .map(|record| record.place.topic)
                    .filter(|topic| self.is_closed(*topic))
                    .collect();
                let large = records.iter().filter(|record| record.is_too_large());
                let large: BTreeMap<Cause, Topic> = large
                    .map(|record| (record.cause, record.place.topic))
                    .collect();
                if !closed.is_empty() || !large.is_empty() {
                    return Ok(Reply::Unwritable { closed, large });
                }
                self.broker.produce(id, epoch, records, appended)?;
                Ok(Reply::Done)
            }
            Request::Offsets {
                id,
                epoch,
                offsets,
                aside,
                membership,
            } => {
                for progress in &offsets {
                    if progress.metadata.len() > MAX_METADATA {
                        self.judge
                            .object(|| format!("metadata too large: {progress:?}"));
                    }
                }
                let offsets = (offsets, aside);
                self.broker.add_offsets(id, epoch, offsets, membership)?;
                Ok(Reply::Done)
            }
            Request::End { id, epoch, fate } => {
                if let Some(decided) = self.broker.end(id, epoch, fate)? {
                    self.decided(id, decided);
                }
                Ok(Reply::Done)
            }
            Request::Fetch { lanes } => self
                .broker
                .fetch(&lanes)
                .map(Reply::Offsets)
                .ok_or(Refusal::Concurrent),
            Request::KeyOrder { shards } => self
                .broker
                .key_order(&shards, self.bug)
                .map(Reply::KeyOrder)
                .ok_or(Refusal::Concurrent),
        }
    }

    /// A request arrives at the broker.
    fn arrive(&mut self, caller: Caller, call: u64, request: Request, way: Way) {
        // Kafka makes sure that the transaction is open to which offsets are added, and only a first copy opens one.
        if let (Way::Copy, Request::Offsets { id, .. }) = (way, &request)
            && !self.broker.has_open(*id)
        {
            return;
        }
        let followed = self.follow(&request);
        if let Some((id, serial)) = self.broker.begun() {
            let delay = TRANSACTION + self.chance.between(0, 10) * SECOND;
            self.after(delay, Event::Overdue { id, serial });
        }
        let reply = match followed {
            Ok(reply) => reply,
            Err(Refusal::Concurrent) => {
                // The client asks again until it is over.
                let delay = self.chance.between(5, 40) * MILLI;
                let event = Event::Arrive {
                    caller,
                    call,
                    request,
                    way,
                };
                return self.after(delay, event);
            }
            Err(refusal) => Reply::Refused(refusal),
        };
        let now = self.now;
        self.trace
            .note(now, request.word(), &[caller.worker as u64, call], || {
                format!("{way:?} {reply:?} {request:?}")
            });
        let reply = match (way, reply) {
            (Way::Unheard | Way::Copy, _) => return,
            (Way::Indeterminate, Reply::Done) => Reply::Failed,
            (Way::Repeated, Reply::Done) => Reply::DoneAgain,
            (Way::Answered | Way::Indeterminate | Way::Repeated, reply) => reply,
        };
        let delay = self.chance.between(200, 3_000);
        self.after(delay, caller.hears(call, reply));
    }

    /// A transaction is decided: its markers are written one by one.
    fn decided(&mut self, id: ProducerId, decided: Decided) {
        let figures = [id.worker as u64, u64::from(decided.committed)];
        self.trace.note(self.now, "decided", &figures, || {
            format!("{:?}", decided.aside.silent)
        });
        if decided.committed {
            let clocks = self.plan.clocks_are_right();
            let clocks = clocks.then(|| (self.now, wall(self.now, 0)));
            self.judge
                .committed(&decided.records, &decided.aside, clocks);
        }
        for place in decided.places.into_iter().map(Some).chain([None]) {
            let delay = self.chance.between(0, 6) * self.chance.between(0, 4) * MILLI;
            self.after(delay, Event::Mark { id, place });
        }
    }

    /// Offsets are in force, and the judge looks at them.
    fn marked_offsets(&mut self, id: ProducerId) {
        for progress in self.broker.mark_offsets(id) {
            let place = PartitionId {
                topic: Topic::Read(progress.lane.source),
                shard: progress.lane.shard,
            };
            if let Some(witness) = &mut self.witness {
                witness.offset(self.now, &progress, &self.plan.ladder);
            }
            let log = &self.broker.partition(place).log;
            self.judge.offsets(&progress, log);
        }
    }

    /// The first records that are to be read and have no durable consequence: where they are, and of which task.
    fn unfinished(&self) -> Vec<(LaneId, i64, Option<Arc<str>>)> {
        let mut unfinished = Vec::new();
        for (place, partition) in self.broker.partitions() {
            let Topic::Read(source) = place.topic else {
                continue;
            };
            let shard = place.shard;
            let lane = LaneId { shard, source };
            for (offset, entry) in (0..).zip(&partition.log) {
                let payload = entry.payload.as_ref();
                let payload = payload.filter(|_| entry.is_readable(Bug::None));
                if let Some(payload) = payload.filter(|_| !self.judge.is_done(lane, offset)) {
                    let id = if let Payload::Parked(task) = payload {
                        Some(Arc::clone(&task.id))
                    } else {
                        None
                    };
                    unfinished.push((lane, offset, id));
                }
            }
        }
        unfinished.truncate(10);
        unfinished
    }

    /// A worker asks to be a member.
    fn join(
        &mut self,
        (worker, request): (usize, u64),
        member: Option<Member>,
        owned: BTreeSet<i32>,
    ) {
        if let Some(member) = member.filter(|member| !self.broker.group.has(*member)) {
            // It hears so now, if it has not before.
            return self.tell(MILLI, worker, News::Kicked { member });
        }
        self.broker.group.join((worker, request), member, owned);
        self.form();
    }

    /// A generation is to be formed.
    fn form(&mut self) {
        let was_forming = self.broker.group.is_forming();
        for (worker, member) in self.broker.group.form() {
            let delay = self.chance.between(0, HEARTBEAT);
            self.tell(delay, worker, News::Notice { member });
        }
        if !was_forming {
            let generation = self.broker.group.generation();
            self.after(REBALANCE, Event::Impatient { generation });
        }
        self.complete();
    }

    /// The next generation begins, if all are there.
    fn complete(&mut self) {
        let Some(given) = self.broker.group.complete() else {
            return;
        };
        let generation = self.broker.group.generation();
        self.trace.note(self.now, "generation", &[generation], || {
            format!("{given:?}")
        });
        for given in given {
            let delay = self.chance.between(1, 20) * MILLI;
            self.tell(delay, given.worker, News::Joined(given));
        }
    }

    /// The group gives a member up; gives the worker that it was, and how long it takes to hear of it.
    fn kick(&mut self, member: Member) -> Option<(usize, At)> {
        let worker = self.broker.group.remove(member)?;
        self.trace
            .note(self.now, "kick", &[worker as u64, member], String::new);
        let delay = self.chance.between(0, HEARTBEAT);
        self.tell(delay, worker, News::Kicked { member });
        self.form();
        Some((worker, delay))
    }
}

// === impl Request ===

impl Request {
    /// Whether it can be followed and answered with an error that lets its sender abort.
    const fn may_be_indeterminate(&self) -> bool {
        matches!(self, Self::Produce { .. } | Self::Offsets { .. })
    }

    /// Whether a copy of it can do harm that comes after the client has heard the answer to the next one; of records, the broker knows
    /// their sequence.
    const fn may_be_repeated(&self) -> bool {
        matches!(self, Self::Offsets { .. } | Self::End { .. })
    }

    /// A word for the trace.
    const fn word(&self) -> &'static str {
        match self {
            Self::Init { .. } => "init",
            Self::Produce { .. } => "produce",
            Self::Offsets { .. } => "offsets",
            Self::End { .. } => "end",
            Self::Fetch { .. } => "fetch",
            Self::KeyOrder { .. } => "key order",
        }
    }
}

// === impl World ===

impl World {
    /// The world of a seed.
    pub(crate) fn new(seed: u64, bug: Bug, keep: Keep) -> Self {
        let mut chance = Chance::new(seed);
        let plan = Plan::draw(&mut chance);
        Self::of(seed, plan, chance, bug, keep)
    }

    /// The world of a seed, for a campaign with a witness.
    pub(crate) fn campaign(seed: u64, bug: Bug) -> Self {
        let mut chance = Chance::new(seed);
        let plan = Plan::draw_campaign(&mut chance);
        let witness = Witness::of(&plan);
        let mut world = Self::of(seed, plan, chance, bug, Keep::Hash);
        world.env.witness = Some(witness);
        world
    }

    /// The world of a plan.
    fn of(seed: u64, plan: Plan, chance: Chance, bug: Bug, keep: Keep) -> Self {
        let mut broker = Broker::default();
        broker.group.protocol = plan.protocol;
        broker.group.shards = plan.shards;
        for progress in &plan.copied {
            broker.set_offset(progress.clone());
        }
        let mut env = Env {
            now: 0,
            chance,
            trace: Trace::new(keep),
            broker,
            judge: Judge::default(),
            witness: None,
            queue: BinaryHeap::new(),
            last: 0,
            clocks: plan.skews.clone(),
            bug,
            odds: plan.odds,
            down_until: 0,
            behind: plan.behind,
            assigned: 0,
            named: 0,
            plan,
        };
        env.trace.note(0, "plan", &[seed], String::new);
        let mut world = Self {
            workers: Vec::new(),
            processes: env
                .plan
                .workers
                .iter()
                .map(|_| Process::default())
                .collect(),
            scenes: BTreeMap::new(),
            shelved: None,
            held: BTreeMap::new(),
            forced: BTreeMap::new(),
            wishes: 0,
            releases: 0,
            submitted: 0,
            ordered: 0,
            bug,
            env,
        };
        world.begin();
        world
    }

    /// Plans what is to happen anyway.
    fn begin(&mut self) {
        let Plan {
            scenes,
            faults,
            submissions,
            heals_at,
            ..
        } = self.env.plan.clone();
        self.env.judge.rules(0, &scenes);
        let named = |scene: Scene| (Arc::clone(&scene.name), scene);
        self.scenes = scenes.into_iter().map(named).collect();
        for process in 0..self.processes.len() {
            let delay = self.env.chance.between(0, 500) * MILLI;
            self.env.after(delay, Event::Start(process));
        }
        for (number, submission) in submissions.iter().enumerate() {
            self.env.after(submission.at, Event::Submit(number));
        }
        for (number, order) in self.env.plan.orders.clone().iter().enumerate() {
            self.env.after(order.at, Event::Order(number));
        }
        for (number, holding) in self.env.plan.holds.clone().iter().enumerate() {
            self.env.after(holding.begins, Event::Hold(number));
            if let Some(climbs) = holding.climbs {
                self.env.after(climbs, Event::Climb(number));
            }
            self.env.after(holding.ends, Event::Release(number));
        }
        for (number, wish) in self.env.plan.wishes.clone().iter().enumerate() {
            self.env.after(wish.at, Event::Wish(number));
        }
        for (number, (at, _)) in self.env.plan.lets_go.clone().iter().enumerate() {
            self.env.after(*at, Event::LetGo(Some(number)));
        }
        if !self.env.plan.lets_go.is_empty() {
            self.env.after(heals_at, Event::LetGo(None));
        }
        for (at, fault) in faults {
            self.env.after(at, Event::Fault(fault));
        }
        self.env.after(heals_at, Event::Heal);
    }

    /// Runs until everything has come to its end, or a promise is broken.
    pub(crate) fn run(&mut self) {
        let mut events = 0_u64;
        let longest = self.env.plan.heals_at
            + if !self.env.plan.clocks_are_right() {
                LONGEST_BY_WRONG_CLOCKS
            } else if self.env.plan.has_breakers() {
                LONGEST_BY_BREAKERS
            } else if self.env.plan.rest.is_some() || !self.env.plan.lets_go.is_empty() {
                LONGEST_BY_COOLDOWNS
            } else if self.env.plan.behind > 1 {
                LONGEST_BEHIND
            } else {
                LONGEST
            };
        while let Some(Reverse(Scheduled { at, event, .. })) = self.env.queue.pop() {
            self.env.now = at;
            if matches!(event, Event::Look) && self.is_over() {
                return self.finish();
            }
            self.happen(event);
            events += 1;
            if self.env.judge.broken().is_some() {
                return;
            }
            if at > longest || events > MOST_EVENTS {
                return self.never_ends(events);
            }
        }
        self.never_ends(events);
    }

    /// Runs for as long as a campaign waits for its tasks, whatever the judge says.
    pub(crate) fn run_unjudged(&mut self) {
        let end = self.env.plan.heals_at + PATIENCE;
        let mut events = 0_u64;
        while let Some(Reverse(Scheduled { at, event, .. })) = self.env.queue.pop() {
            if at > end || events > MOST_EVENTS {
                return;
            }
            self.env.now = at;
            self.happen(event);
            events += 1;
        }
    }

    /// Whether there is nothing left to do.
    fn is_over(&self) -> bool {
        let produced = self.submitted == self.env.plan.submissions.len()
            && self.ordered == self.env.plan.orders.len();
        let open: usize = self
            .workers
            .iter()
            .flatten()
            .map(|worker| worker.holds().0)
            .sum();
        produced && self.env.judge.unfinished() == 0 && !self.env.broker.is_busy() && open == 0
    }

    /// Checks the end.
    fn finish(&mut self) {
        self.env.judge.finish();
        let held: usize = self
            .workers
            .iter()
            .flatten()
            .map(|worker| worker.holds().1)
            .sum();
        if held > 0 {
            self.env
                .judge
                .object(|| format!("{held} bytes held and no offset open"));
        }
        let workers = self.workers.iter_mut().flatten();
        // One that has not heard yet that its shards are another's has deferred what that one has ended: it forgets it when it hears.
        let group = &self.env.broker.group;
        let workers = workers.filter(|worker| worker.is_current(group));
        let overdue: Vec<_> = workers.flat_map(Worker::overdue).collect();
        if !overdue.is_empty() {
            self.env
                .judge
                .object(|| format!("all has ended, and is said to be overdue: {overdue:?}"));
        }
        let shards: BTreeSet<i32> = (0..self.env.plan.shards).collect();
        let orders = self.env.broker.key_order(&shards, self.bug);
        for (shard, known) in orders.unwrap_or_default() {
            let order = &known.order;
            if !known.steps.is_empty() {
                let steps = &known.steps;
                let judge = &mut self.env.judge;
                judge.object(|| format!("steps of shard {shard} are written down: {steps:?}"));
            }
            if !order.is_empty() {
                self.env
                    .judge
                    .object(|| format!("keys of shard {shard} are written down: {order:?}"));
            }
        }
    }

    /// It does not end.
    fn never_ends(&mut self, events: u64) {
        let now = self.env.now / SECOND;
        let holds: Vec<_> = self.workers.iter().flatten().map(Worker::holds).collect();
        let unfinished = self.env.judge.unfinished();
        let records = self.env.unfinished();
        self.env.judge.object(|| {
            format!(
                "no end in sight after {now} s and {events} events, {unfinished} records unfinished, first of all {records:?}; open and held: {holds:?}"
            )
        });
    }

    /// Something happens.
    fn happen(&mut self, event: Event) {
        match event {
            Event::Submit(number) => self.submit(number),
            Event::Order(number) => self.order(number),
            Event::Hold(number) => self.hold(number),
            Event::Climb(number) => self.climb(number),
            Event::Release(number) => self.release(number),
            Event::Wish(number) => self.wish(number),
            Event::LetGo(number) => self.let_go(number),
            Event::Arrive {
                caller,
                call,
                request,
                way,
            } => self.env.arrive(caller, call, request, way),
            Event::Mark { id, place } => match place {
                None => self.env.marked_offsets(id),
                Some(place) => {
                    let appended = self.env.broker_wall();
                    self.env.broker.mark(id, place, appended);
                    self.wake_readers(place);
                }
            },
            Event::Overdue { id, serial } => {
                if let Some(decided) = self.env.broker.time_out(id, serial) {
                    self.env.decided(id, decided);
                }
            }
            Event::Join {
                worker,
                request,
                member,
                owned,
            } => {
                if self.workers[worker].is_some() {
                    self.env.join((worker, request), member, owned);
                }
            }
            Event::Silent { worker } => {
                if !self.is_awake(worker) {
                    for member in self.env.broker.group.members_of(worker) {
                        self.kick(member);
                    }
                }
            }
            Event::Impatient { generation } => {
                let group = &self.env.broker.group;
                if group.is_forming() && group.generation() == generation {
                    for member in group.silent() {
                        self.kick(member);
                    }
                }
            }
            Event::Left { worker, process } => self.left(worker, process),
            Event::Fault(fault) => self.go_wrong(fault),
            Event::Start(process) => self.start(process),
            Event::Heal => self.heal(),
            Event::Look => self.env.after(SECOND, Event::Look),
            Event::News { worker, news } => self.tell(worker, news),
            Event::Signal { process, told } => {
                for worker in self.processes[process].workers.clone() {
                    self.tell(worker, News::Cooldown(told.clone()));
                }
            }
        }
    }

    /// A worker hears of something, now or when it is awake.
    fn tell(&mut self, worker: usize, news: News) {
        // What a process that was frozen hears comes in any order; the rules that it reads then are the last ones.
        let news = match news {
            News::Rules(_) => News::Rules(self.in_force()),
            News::Holds(_) => News::Holds(self.holds()),
            other => other,
        };
        let Some(listener) = &mut self.workers[worker] else {
            return;
        };
        let frozen_until = self.processes[listener.process].frozen_until;
        if frozen_until > self.env.now {
            let delay = frozen_until - self.env.now;
            return self.env.tell(delay, worker, news);
        }
        listener.hear(news, &mut self.env);
    }

    /// Whether a worker is there and not frozen.
    fn is_awake(&self, worker: usize) -> bool {
        self.workers[worker]
            .as_ref()
            .is_some_and(|worker| self.processes[worker.process].frozen_until <= self.env.now)
    }

    /// The group gives a member up.
    fn kick(&mut self, member: Member) {
        let Some((worker, unheard)) = self.env.kick(member) else {
            return;
        };
        let now = self.env.now;
        if let (Some(witness), Some(worker)) = (&mut self.env.witness, &self.workers[worker]) {
            // Its consumer hears of it when it is awake, and tells it when it is polled next.
            let heard = (now + unheard).max(self.processes[worker.process].frozen_until);
            witness.fault("cut", now..heard + POLLED);
        }
    }

    /// A producer asks for something.
    fn submit(&mut self, number: usize) {
        let submission = Arc::clone(&self.env.plan.submissions[number]);
        self.submitted += 1;
        let place = PartitionId {
            topic: Topic::Read(Source::Tasks),
            shard: submission.shard,
        };
        // Records bear milliseconds.
        let appended = Timestamp::from_millis(self.env.broker_wall().as_millis());
        let payload = Payload::Submitted(Arc::clone(&submission));
        let offset = self.env.broker.append(place, payload, appended);
        self.env.judge.submitted(&submission, offset, appended);
        if let Some(witness) = &mut self.env.witness {
            witness.acknowledged(self.env.now, &submission, offset);
        }
        self.wake_readers(place);
    }

    /// Somebody holds tasks.
    fn hold(&mut self, number: usize) {
        let hold = Arc::clone(&self.env.plan.holds[number].hold);
        self.remember(&hold.name);
        self.held.insert(Arc::clone(&hold.name), hold);
        self.tell_holds();
    }

    /// Somebody lets tasks go slowly, if another hold has not come in the place of theirs.
    fn climb(&mut self, number: usize) {
        let holding = &self.env.plan.holds[number];
        if self.held.get(&holding.hold.name) == Some(&holding.hold) {
            let mut climbing = Hold::clone(&holding.climbing());
            climbing.since = wall(self.env.now, 0);
            let climbing = Arc::new(climbing);
            self.remember(&climbing.name);
            self.held.insert(Arc::clone(&climbing.name), climbing);
            self.tell_holds();
        }
    }

    /// Somebody lets tasks go, if another hold has not come in the place of theirs.
    fn release(&mut self, number: usize) {
        let hold = Arc::clone(&self.env.plan.holds[number].hold);
        let known = self.held.get(&hold.name);
        if known.is_some_and(|known| known.selector == hold.selector) {
            self.remember(&hold.name);
            self.held.remove(&hold.name);
            self.tell_holds();
        }
    }

    /// The hold of this name is over, or another one comes in its place: that it has let deadlines stand still is written down.
    fn remember(&mut self, name: &str) {
        let now = wall(self.env.now, 0);
        let stood = self.held.get(name).and_then(|hold| hold.stood(now));
        if let Some(stood) = stood.filter(|stood| stood.since < stood.until) {
            self.held.insert(Arc::clone(&stood.name), Arc::new(stood));
        }
    }

    /// Somebody wants something of a breaker, or takes that back.
    fn wish(&mut self, number: usize) {
        let wish = self.env.plan.wishes[number];
        self.wishes += 1;
        let since = self.env.broker_wall();
        match wish.forced(self.wishes as i64, since) {
            Some(forced) => drop(self.forced.insert(wish.target.into(), forced)),
            None => drop(self.forced.remove(wish.target)),
        }
        let holds = self.holds();
        for worker in self.workers.iter().flatten() {
            // Not by chance: what else happens is as it would be without.
            let delay = (wish.at / MILLI + 37 * worker.id as u64) % 800 * MILLI;
            self.env.tell(delay, worker.id, News::Holds(holds.clone()));
        }
    }

    /// Somebody lets all tasks go that are out of attempts.
    fn let_go(&mut self, number: Option<usize>) {
        let by_ramp = number.is_some_and(|number| self.env.plan.lets_go[number].1);
        let released = Timestamp::from_millis(self.env.broker_wall().as_millis());
        self.releases += 1;
        let scenes = self.env.plan.scenes.iter();
        let scenes = scenes.filter(|scene| scene.on_exhausted != OnExhausted::Dead);
        for scene in scenes {
            let hold = Hold {
                released: Some(released),
                revision: Revision {
                    partition: 1,
                    offset: self.releases,
                },
                ramp: by_ramp.then(Holding::ramp),
                ..Hold::of_exhausted(&scene.name)
            };
            self.held.insert(Arc::clone(&hold.name), Arc::new(hold));
        }
        self.tell_holds();
        if number.is_none() {
            self.env.after(20 * SECOND, Event::LetGo(None));
        }
    }

    /// All workers hear of the holds in force.
    fn tell_holds(&mut self) {
        let holds = self.holds();
        for worker in self.workers.iter().flatten() {
            let delay = Holding::delay(&mut self.env.chance);
            self.env.tell(delay, worker.id, News::Holds(holds.clone()));
        }
    }

    /// The holds in force.
    fn holds(&self) -> Holds {
        let holds: Holds = self.held.values().map(Arc::clone).collect();
        let forced: AllForced = self.forced.values().map(Arc::clone).collect();
        holds.with_forced(forced.at_version(self.wishes))
    }

    /// Somebody sends a command.
    fn order(&mut self, number: usize) {
        let order = self.env.plan.orders[number].clone();
        let place = PartitionId {
            topic: Topic::Read(Source::Commands),
            shard: order.shard,
        };
        let appended = Timestamp::from_millis(self.env.broker_wall().as_millis());
        let payload = Payload::Order(Box::new(order.clone()));
        let offset = self.env.broker.append(place, payload, appended);
        let command = order.request(place.shard, offset, appended);
        self.ordered += 1;
        self.env.judge.ordered(command);
        self.wake_readers(place);
    }

    /// There may be something new to read.
    fn wake_readers(&mut self, place: PartitionId) {
        let Topic::Read(_) = place.topic else { return };
        for worker in self.workers.iter_mut().flatten() {
            if worker.reads(place.shard) {
                worker.poll_soon(&mut self.env);
            }
        }
    }

    /// A process starts.
    fn start(&mut self, process: usize) {
        if let Some(witness) = &mut self.env.witness {
            witness.back(self.env.now, process);
        }
        let life = self.env.number();
        let gates = Arc::new(Gates::seeded(life));
        for _ in 0..self.env.plan.workers[process] {
            let birth = Birth {
                id: self.workers.len(),
                process,
                life,
                gates: Arc::clone(&gates),
                bug: self.bug,
            };
            self.processes[process].workers.push(birth.id);
            let rules = (self.in_force(), self.holds());
            let worker = Worker::new(birth, rules, &mut self.env);
            self.workers.push(Some(worker));
        }
    }

    /// A worker has drained and left.
    fn left(&mut self, worker: usize, process: usize) {
        self.workers[worker] = None;
        for member in self.env.broker.group.members_of(worker) {
            self.env.broker.group.remove(member);
        }
        self.env.form();
        let Process {
            workers, restart, ..
        } = &mut self.processes[process];
        workers.retain(|id| *id != worker);
        if workers.is_empty() {
            let restart = *restart;
            if let Some(witness) = &mut self.env.witness {
                witness.left(self.env.now, process);
            }
            self.env.after(restart, Event::Start(process));
        }
    }

    /// Writes a fault down, if it meets anyone.
    fn witness(&mut self, fault: Fault) {
        let now = self.env.now;
        let Some(witness) = &mut self.env.witness else {
            return;
        };
        let meets = |process: usize| !self.processes[process].workers.is_empty();
        let awake = |process: usize| self.processes[process].frozen_until <= now;
        match fault {
            Fault::Crash(process, _) if meets(process) => witness.away("kill", now, process),
            Fault::Leave(process, _) if meets(process) && awake(process) => {
                witness.away("storm", now, process);
            }
            // One that is away stands still when it is back.
            Fault::Freeze(_, span) => witness.fault("zombie", now..now + span),
            // Whoever is cut off is given up, which is written down there.
            Fault::Crash(..) | Fault::Leave(..) | Fault::Cut(_) => {}
            Fault::Rebalance => witness.fault("storm", now..now),
            Fault::Step(..)
            | Fault::StepBroker(_)
            | Fault::Rules
            | Fault::Refuse(_)
            | Fault::Down(_)
            | Fault::Close(..) => {
                unreachable!("not a fault of a campaign")
            }
        }
    }

    /// Something goes wrong.
    fn go_wrong(&mut self, fault: Fault) {
        self.witness(fault);
        self.env
            .trace
            .note(self.env.now, "fault", &[], || format!("{fault:?}"));
        match fault {
            Fault::Crash(process, restart) => {
                let workers = std::mem::take(&mut self.processes[process].workers);
                if workers.is_empty() {
                    return;
                }
                for worker in workers {
                    self.workers[worker] = None;
                    self.env.after(SESSION, Event::Silent { worker });
                }
                self.processes[process].frozen_until = 0;
                self.env.after(restart, Event::Start(process));
            }
            Fault::Freeze(process, span) => {
                let Process {
                    workers,
                    frozen_until,
                    ..
                } = &mut self.processes[process];
                *frozen_until = (*frozen_until).max(self.env.now + span);
                for worker in workers.clone() {
                    self.env.after(SESSION, Event::Silent { worker });
                }
            }
            Fault::Leave(process, restart) => {
                if self.processes[process].frozen_until > self.env.now {
                    return;
                }
                self.processes[process].restart = restart;
                for worker in self.processes[process].workers.clone() {
                    if let Some(worker) = &mut self.workers[worker] {
                        worker.stop(&mut self.env);
                    }
                }
            }
            Fault::Cut(process) => {
                for worker in self.processes[process].workers.clone() {
                    for member in self.env.broker.group.members_of(worker) {
                        self.kick(member);
                    }
                }
            }
            Fault::Rebalance => self.env.form(),
            Fault::Step(process, by) => {
                self.env.clocks[process] += by;
                for worker in self.processes[process].workers.clone() {
                    if let Some(worker) = &mut self.workers[worker] {
                        worker.clock_set(&mut self.env);
                    }
                }
            }
            Fault::StepBroker(by) => {
                if let Some(clock) = self.env.clocks.last_mut() {
                    *clock += by;
                }
            }
            Fault::Rules => self.change_rules(),
            Fault::Refuse(refuses) => self.env.broker.refuses_orders = refuses,
            Fault::Down(span) => {
                self.env.down_until = self.env.down_until.max(self.env.now + span);
            }
            Fault::Close(topic, span) => {
                let until = self.env.now + span;
                self.env.broker.closed.insert(topic, until);
            }
        }
    }

    /// Other rules are in force.
    fn change_rules(&mut self) {
        for scene in self.scenes.values_mut() {
            if self.env.chance.one_in(2) {
                plan::change(scene, &mut self.env.chance);
                let now = self.env.now;
                self.env.judge.rules(now, std::slice::from_ref(scene));
            }
        }
        if self.env.chance.one_in(3) {
            match self.shelved.take() {
                Some(scene) => {
                    self.scenes.insert(Arc::clone(&scene.name), scene);
                }
                None => self.shelved = self.scenes.remove("call"),
            }
        }
        self.tell_rules();
    }

    /// All workers hear of the rules in force.
    fn tell_rules(&mut self) {
        self.env.judge.in_force(self.scenes.values());
        let scenes = self.in_force();
        for worker in self.workers.iter().flatten() {
            self.env.tell(0, worker.id, News::Rules(scenes.clone()));
        }
    }

    /// The rules in force, and the scene that is known to have had some.
    fn in_force(&self) -> Scenes {
        let mut scenes: Scenes = self.scenes.values().cloned().collect();
        if let Some(shelved) = &self.shelved {
            scenes.miss(Arc::clone(&shelved.name), Missing::Gone);
        }
        scenes
    }

    /// Nothing goes wrong any more.
    fn heal(&mut self) {
        self.env.trace.note(self.env.now, "heal", &[], String::new);
        self.env.odds = Odds::default();
        self.env.down_until = 0;
        self.env.behind = 1;
        self.env.broker.refuses_orders = false;
        if let Some(scene) = self.shelved.take() {
            // Its tasks would be held until they are dead.
            self.scenes.insert(Arc::clone(&scene.name), scene);
            self.tell_rules();
        }
        self.env.broker.closed.clear();
        self.env.after(SECOND, Event::Look);
    }
}
