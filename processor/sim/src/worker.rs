//! A worker: the feed and the drive of the shell, restated without threads around the real engine.
//!
//! The order of its steps is `shell::drive`'s: whatever shards are given away, all goes on. Invariant: it decides nothing; what it says to
//! the engine, the shell would say.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::num::NonZeroU32;
use std::sync::Arc;

use retide_core::Position;
use retide_core::breaker::State;
use retide_core::completions::Completions;
use retide_core::control::{Command, Control};
use retide_core::cooldown::{Heard, MOST_HEARD, Signal};
use retide_core::engine::LAST;
use retide_core::saved::{MachineTime, Saved};
use retide_core::step::Look;
use retide_core::{
    Action, Alert, Commit, Engine, Failure, Fate, Gates, Hold, Holds, Input, Kind, LaneId, Now,
    Ordering, Origin, Outcome, Overdue, Poison, Reason, Record, Returned, Scene, Scenes,
    Settlement, Sink, Sinks, Source, StateKey, Task, Terminal, Timestamp, Wait, Writable, task,
};

use crate::broker::{
    Cause, KnownShard, Outgoing, PartitionId, Payload, Progress, Topic, binding, binding_elsewhere,
};
use crate::bug::Bug;
use crate::check::{Start, counted_as, server, wall};
use crate::group::{Given, Group, Member, Membership, Protocol};
use crate::latest::{self, is_latest};
use crate::ledger::{Batch, CommitContext, Ledger, Ownership, Receipt, Settled, Told};
use crate::orders::{LOOK_PAUSE, ReadStep};
use crate::plan::{FLOOD, Submission};
use crate::world::{
    At, Caller, Env, Event, MILLI, News, POLLED, Part, Reply, Request, Told as Signalled,
};

/// What the judge has to know of an input, to judge what follows from it.
#[derive(Debug)]
struct Came {
    /// What the call is known by at the wall that has come back refused.
    refused: Option<Arc<str>>,
    /// The task of a call that has come back with success.
    succeeded: Option<(LaneId, Arc<str>)>,
    /// The step of a command that was read.
    step: Option<ReadStep>,
}

/// What the feed tells the drive.
#[derive(Debug)]
enum Reading {
    /// These lanes are ours.
    Assigned(BTreeSet<i32>, Vec<Progress>, Vec<(i32, KnownShard)>),
    /// These shards are to be given away.
    Revoked {
        /// The shards.
        shards: BTreeSet<i32>,
        /// Whether they are gone already.
        lost: bool,
    },
    /// Everything of a lane was read below an offset: there are markers before it.
    Passed {
        /// The lane, its run, and the offset.
        position: Position,
    },
    /// A record.
    Record {
        /// Where it was read.
        position: Position,
        /// When the broker appended it.
        appended: Timestamp,
        /// What it holds.
        payload: Payload,
    },
}

/// A record that was set aside.
#[derive(Debug)]
struct Aside {
    /// Where it was read.
    position: Position,
    /// When the broker appended it.
    appended: Timestamp,
    /// What it holds.
    submission: Arc<Submission>,
}

/// A look through tiers.
#[derive(Debug)]
struct LookThrough {
    /// What is looked through, from where it goes on.
    look: Look,
    /// Where that ends, once it is known.
    ends: Option<BTreeMap<LaneId, i64>>,
}

/// Where the consumer stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Not in the group.
    Out,
    /// Waits for the next generation.
    Joining,
    /// Waits for the offsets of new shards.
    Fetching,
    /// Reads.
    In,
    /// Waits for the drive to let go of shards.
    Revoking,
}

/// A lane as the consumer reads it.
#[derive(Clone, Copy, Debug)]
struct Reader {
    /// The next offset to read.
    next: i64,
    /// The run given with each record.
    run: u64,
    /// Whether it is not read.
    paused: bool,
}

/// Shards that are being given away.
#[derive(Debug)]
struct LettingGo {
    /// The shards.
    shards: BTreeSet<i32>,
    /// Until when calls are waited for that were in flight when it began.
    deadline: At,
    /// Until when they would be if nothing were wrong.
    due: At,
    /// How far it is.
    stage: Stage,
    /// Whether calls were left when they were not waited for any more.
    is_late: bool,
}

/// How far shards are that are being given away, as in `shell::leaving`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// All goes on.
    Working,
    /// Nothing is started or read any more, and whatever is left is left then.
    Stopped {
        /// When.
        end: At,
    },
    /// All that is waited for was settled and handed over.
    Committing {
        /// When whatever is left is left.
        end: At,
        /// The number of the last batch with something of it.
        batch: u64,
        /// Whether all calls were back by then, and nothing waited for a topic; what is settled later is not in it.
        clean: bool,
    },
}

/// The worker.
pub(crate) struct Worker {
    /// Its number, not used again.
    pub(crate) id: usize,
    /// The process it belongs to.
    pub(crate) process: usize,
    /// Tells the lives of a process apart.
    life: u64,
    /// The engine.
    engine: Engine,
    /// The ledger.
    ledger: Ledger,
    /// The shards whose offsets may be committed.
    ownership: Ownership,
    /// The consumer's place in the group.
    membership: Option<Membership>,
    /// Where the consumer stands.
    phase: Phase,
    /// How often it has asked to be a member.
    requests: u64,
    /// Whether another generation was announced while the consumer could not follow.
    announced: bool,
    /// The lanes that are read.
    readers: BTreeMap<LaneId, Reader>,
    /// Up to where the commands of a shard are to be read before its tasks start, as long as they are not.
    awaited: BTreeMap<i32, i64>,
    /// The shards that the group has given it.
    assigned: BTreeSet<i32>,
    /// The shards that the drive was told of.
    held: BTreeSet<i32>,
    /// The last assignment of each shard, for the judge.
    epochs: BTreeMap<i32, u64>,
    /// What was read and not handed on.
    readings: VecDeque<Reading>,
    /// What was read and set aside, until it is known what it is.
    aside: BTreeMap<(LaneId, i64), Aside>,
    /// Whether a look at the broker is planned.
    polling: bool,
    /// The request for offsets, or for the order of keys, that is under way.
    fetch: Option<u64>,
    /// The offsets that it has while it waits for the order of keys.
    fetched: Option<Vec<Progress>>,
    /// Each call in flight, for the judge: what it is counted as, its scene or its host, and its task.
    calls: BTreeMap<u64, (Arc<str>, Arc<Task>)>,
    /// What each call in flight is known by at the wall.
    walls: BTreeMap<u64, Arc<str>>,
    /// The server of each call in flight whose scene has cooldowns.
    servers: BTreeMap<u64, Arc<str>>,
    /// The task of each call in flight, where commands may tell what came of it.
    called: BTreeMap<u64, (LaneId, Arc<str>)>,
    /// The ramps that each call in flight went by.
    ramps: BTreeMap<u64, Vec<Arc<Hold>>>,
    /// What was settled since the last batch.
    settled: Vec<Settlement>,
    /// The look through tiers.
    look: Option<LookThrough>,
    /// The batches under way.
    under_way: VecDeque<UnderWay>,
    /// How many batches were handed back.
    returns: u64,
    /// How many of those under way will be, too.
    returning: usize,
    /// The topics that take no records, as far as it knows.
    closed: BTreeSet<Topic>,
    /// The offsets whose delivery to a topic was decided.
    delivered: BTreeSet<(LaneId, i64)>,
    /// When the batch being collected is due.
    commit_at: At,
    /// Where paused lanes read on.
    paused: BTreeMap<LaneId, i64>,
    /// Batches handed to the ledger.
    submitted: u64,
    /// Batches of which the ledger has said what became.
    received: u64,
    /// The shards being given away.
    letting_go: Option<LettingGo>,
    /// Rules that came while shards were being given away.
    rules: Option<Scenes>,
    /// Whether it is to end.
    stopping: bool,
    /// When it is woken next.
    tick_at: Option<At>,
    /// The mistake it makes.
    bug: Bug,
}

/// What makes a worker.
pub(crate) struct Birth {
    /// Its number.
    pub(crate) id: usize,
    /// The process it belongs to.
    pub(crate) process: usize,
    /// Tells the lives of a process apart.
    pub(crate) life: u64,
    /// The gates of its process.
    pub(crate) gates: Arc<Gates>,
    /// The mistake it makes.
    pub(crate) bug: Bug,
}

/// A batch that the ledger has.
#[derive(Debug)]
struct UnderWay {
    /// Its offsets.
    commits: Vec<Commit>,
    /// What stands in it.
    settled: Vec<Settlement>,
    /// The keys of whose order it holds something besides.
    changes: Vec<(i32, StateKey)>,
    /// The alerts that it holds besides.
    alerts: Vec<(i32, Box<Alert>)>,
}

/// Most batches under way, as in the shell.
const UNDER_WAY: usize = 2;

/// Pause before it is tried again whether a topic takes records.
const TRY: At = 1_000 * MILLI;

/// What every end is written to.
const EVERY_END: [Topic; 2] = [Topic::Callbacks, Topic::Events];

/// Most records handed on at once, so that other things happen between them.
const MOST_READ: u64 = 12;

// === impl Worker ===

impl Worker {
    /// A worker that asks to be a member.
    pub(crate) fn new(birth: Birth, (scenes, holds): (Scenes, Holds), env: &mut Env) -> Self {
        let Birth {
            id,
            process,
            life,
            gates,
            bug,
        } = birth;
        let mut engine = {
            let shards = NonZeroU32::new(env.plan.shards.unsigned_abs());
            let shards = shards.unwrap_or_else(|| unreachable!("a group without shards"));
            Engine::new(env.plan.ladder.clone(), env.plan.limits, gates, shards)
        };
        // Of two machines. What is steady in this world is so for all.
        let machine = [process as u8 % 2];
        engine.set_machine(MachineTime::new(&machine, std::time::Duration::ZERO));
        let engine = engine.planted(bug.of_core());
        let mut worker = Self {
            id,
            process,
            life,
            engine,
            ledger: Ledger::new(id, bug),
            ownership: Ownership::default(),
            membership: None,
            phase: Phase::Out,
            requests: 0,
            announced: false,
            readers: BTreeMap::new(),
            awaited: BTreeMap::new(),
            assigned: BTreeSet::new(),
            held: BTreeSet::new(),
            epochs: BTreeMap::new(),
            readings: VecDeque::new(),
            aside: BTreeMap::new(),
            polling: false,
            fetch: None,
            fetched: None,
            calls: BTreeMap::new(),
            walls: BTreeMap::new(),
            servers: BTreeMap::new(),
            called: BTreeMap::new(),
            ramps: BTreeMap::new(),
            settled: Vec::new(),
            look: None,
            under_way: VecDeque::new(),
            returns: 0,
            returning: 0,
            closed: BTreeSet::new(),
            delivered: BTreeSet::new(),
            commit_at: 0,
            paused: BTreeMap::new(),
            submitted: 0,
            received: 0,
            letting_go: None,
            rules: None,
            stopping: false,
            tick_at: None,
            bug,
        };
        env.judge.forcing.hear(worker.life, holds.forced());
        env.judge.heard.hear(id, holds.clone());
        worker.step(Input::Holds(holds), env);
        env.judge.heard.hear_rules(id, scenes.clone());
        worker.step(Input::Rules(scenes), env);
        worker.join(env);
        worker
    }

    /// Whether the worker has the shard.
    pub(crate) fn reads(&self, shard: i32) -> bool {
        let leaving = self.letting_go.as_ref();
        self.held.contains(&shard) || leaving.is_some_and(|leaving| leaving.shards.contains(&shard))
    }

    /// Its member id.
    pub(crate) fn member(&self) -> Option<Member> {
        self.membership.map(|membership| membership.member)
    }

    /// What it holds: open offsets and bytes.
    pub(crate) fn holds(&self) -> (usize, usize) {
        (self.engine.open(), self.engine.bytes())
    }

    /// Whether it has heard of the last generation of its group, and is in it.
    pub(crate) fn is_current(&self, group: &Group) -> bool {
        let membership = self.membership;
        membership.is_some_and(|membership| group.accepts(membership))
    }

    /// What it says is overdue, or will be.
    pub(crate) fn overdue(&mut self) -> HashMap<Arc<str>, Overdue> {
        self.engine.overdue(Timestamp::MAX)
    }

    /// Hears of something.
    pub(crate) fn hear(&mut self, news: News, env: &mut Env) {
        match news {
            News::Reply { part, call, reply } => self.answered(part, call, reply, env),
            News::Called { ticket, outcome } => self.called(ticket, outcome, env),
            News::Poll => self.poll(env),
            News::Named => self.named(env),
            News::Look(number) => self.go_on_looking(number, env),
            News::Tick { at } => self.tick(at, env),
            News::Again { writer } => self.again(writer, env),
            News::Joined(given) => self.joined(given, env),
            News::Notice { member } => self.noticed(member, env),
            News::Kicked { member } => self.kicked(member, env),
            News::Lost => self.lost(env),
            News::Try(topic) => self.try_topic(topic, env),
            News::Rules(scenes) => self.change(scenes, env),
            News::Cooldown(told) => self.told(told, env),
            News::Holds(holds) => self.hold(holds, env),
        }
    }

    /// Another process says that a server wants rest.
    fn told(&mut self, told: Signalled, env: &mut Env) {
        let Signalled { signal, life, at } = told;
        let Signal {
            server,
            left,
            passed,
        } = signal;
        let heard = Heard {
            by: life,
            left,
            passed,
            // As far as clocks tell.
            ago: env.wall_of(self.process).since(at),
        };
        self.step(Input::Cooldown { server, heard }, env);
        self.go_on(env);
    }

    // What the consumer is told.

    /// The next generation has begun.
    fn joined(&mut self, given: Given, env: &mut Env) {
        // What answers a request before the last one is nobody's any more.
        if self.phase != Phase::Joining || given.request != self.requests {
            return;
        }
        self.membership = Some(given.membership);
        self.assigned = given.shards;
        let new = self.new_shards();
        if new.is_empty() {
            self.phase = Phase::In;
            return self.follow(env);
        }
        self.phase = Phase::Fetching;
        self.ask_offsets(&new, env);
    }

    /// A new generation is being formed.
    fn noticed(&mut self, member: Member, env: &mut Env) {
        // It may have joined since this was said.
        let must_join = env.broker.group.must_join(member);
        if must_join && (self.member() == Some(member) || self.phase == Phase::Joining) {
            self.announced = true;
            self.follow(env);
        }
    }

    /// The group has given this member up: from now on the consumer has no membership.
    fn kicked(&mut self, member: Member, env: &mut Env) {
        let unknown =
            self.phase == Phase::Joining && env.broker.group.members_of(self.id).is_empty();
        if self.member() != Some(member) && !unknown {
            return;
        }
        self.membership = None;
        match self.phase {
            Phase::In | Phase::Fetching | Phase::Joining => {
                self.fetch = None;
                self.fetched = None;
                self.announced = false;
                self.phase = Phase::Revoking;
                // The drive hears of it when the consumer is polled next.
                let delay = env.chance.between(0, POLLED / MILLI) * MILLI;
                env.tell(delay, self.id, News::Lost);
            }
            Phase::Out | Phase::Revoking => {}
        }
    }

    /// The consumer tells that everything it had is lost.
    fn lost(&mut self, env: &mut Env) {
        self.assigned.clear();
        let shards = std::mem::take(&mut self.held);
        self.readings
            .push_back(Reading::Revoked { shards, lost: true });
        self.drive(env);
    }

    /// Ends, after giving everything away.
    pub(crate) fn stop(&mut self, env: &mut Env) {
        self.stopping = true;
        if self.letting_go.is_none() {
            self.let_go_of_all(env);
        }
    }

    /// Follows the announcement of a new generation, as soon as the consumer can.
    fn follow(&mut self, env: &mut Env) {
        if self.phase != Phase::In {
            return;
        }
        let gone: BTreeSet<i32> = match env.plan.protocol {
            Protocol::Eager if self.announced => self.held.clone(),
            Protocol::Eager => BTreeSet::new(),
            // What has moved is given away first, and given out in the next generation.
            Protocol::Cooperative => self.held.difference(&self.assigned).copied().collect(),
        };
        if !gone.is_empty() {
            self.phase = Phase::Revoking;
            self.held.retain(|shard| !gone.contains(shard));
            self.assigned = self.held.clone();
            self.readings.push_back(Reading::Revoked {
                shards: gone,
                lost: false,
            });
            self.drive(env);
        } else if self.announced {
            self.join(env);
        }
    }

    /// The shards that are given to it and not begun.
    fn new_shards(&self) -> BTreeSet<i32> {
        self.assigned.difference(&self.held).copied().collect()
    }

    /// Asks to be a member of the next generation.
    fn join(&mut self, env: &mut Env) {
        self.phase = Phase::Joining;
        self.announced = false;
        self.requests += 1;
        let event = Event::Join {
            worker: self.id,
            request: self.requests,
            member: self.member(),
            owned: self.held.clone(),
        };
        let delay = env.chance.between(1, 20) * MILLI;
        env.after(delay, event);
    }

    /// Asks where the last commits left the lanes of these shards.
    fn ask_offsets(&mut self, shards: &BTreeSet<i32>, env: &mut Env) {
        let tiers = env.plan.ladder.tiers().len();
        let sources = (0..tiers)
            .map(Source::Tier)
            .chain([Source::Tasks, Source::Commands]);
        let lanes = sources
            .flat_map(|source| {
                shards.iter().map(move |shard| LaneId {
                    shard: *shard,
                    source,
                })
            })
            .collect();
        let caller = Caller {
            worker: self.id,
            part: Part::Feed,
        };
        self.fetch = Some(env.ask(caller, &Request::Fetch { lanes }));
    }

    /// Asks what was written of the order of keys: after the offsets, so that who has changed it is not going to any more.
    fn ask_key_order(&mut self, shards: BTreeSet<i32>, env: &mut Env) {
        let caller = Caller {
            worker: self.id,
            part: Part::Feed,
        };
        self.fetch = Some(env.ask(caller, &Request::KeyOrder { shards }));
    }

    /// The offsets are there, or not.
    fn fetched(&mut self, call: u64, reply: Reply, env: &mut Env) {
        if self.fetch != Some(call) {
            return;
        }
        let new = self.new_shards();
        let (offsets, orders) = match (reply, self.fetched.take()) {
            (Reply::Offsets(offsets), _) if env.plan.keeps_state() => {
                self.fetched = Some(offsets);
                return self.ask_key_order(new, env);
            }
            (Reply::Offsets(offsets), _) => (offsets, Vec::new()),
            (Reply::KeyOrder(orders), Some(offsets)) => (offsets, orders),
            // The client asks again by itself.
            (_, None) => return self.ask_offsets(&new, env),
            (_, offsets) => {
                self.fetched = offsets;
                return self.ask_key_order(new, env);
            }
        };
        self.fetch = None;
        self.phase = Phase::In;
        self.held.extend(&new);
        self.readings
            .push_back(Reading::Assigned(new, offsets, orders));
        self.drive(env);
        self.follow(env);
        self.poll_soon(env);
    }

    // What the drive does.

    /// A request was answered, or not in time.
    fn answered(&mut self, part: Part, call: u64, reply: Reply, env: &mut Env) {
        match part {
            Part::Feed => self.fetched(call, reply, env),
            Part::Writer(writer) => {
                self.with_ledger(env, |ledger, context| {
                    ledger.answered(writer, call, reply, context);
                });
            }
        }
    }

    /// A writer's pause is over.
    fn again(&mut self, writer: usize, env: &mut Env) {
        self.with_ledger(env, |ledger, context| ledger.again(writer, context));
    }

    /// A call came back.
    fn called(&mut self, ticket: u64, outcome: Outcome, env: &mut Env) {
        if let Some((counted_as, task)) = self.calls.remove(&ticket) {
            if &*task.scene == FLOOD {
                if outcome == Outcome::Success {
                    env.judge.well(self.life);
                } else if let Outcome::Permanent(_) = outcome {
                    env.judge.ill(self.life, &task.id);
                }
            }
            env.judge.returned(self.life, counted_as);
        }
        if let Some(ramps) = self.ramps.remove(&ticket) {
            let failed = !matches!(outcome, Outcome::Success | Outcome::Pending { .. });
            env.judge.heard.came_back(env.now, self.id, &ramps, failed);
        }
        self.step(Input::Attempted { ticket, outcome }, env);
        self.go_on(env);
    }

    /// Other rules are in force.
    fn change(&mut self, scenes: Scenes, env: &mut Env) {
        self.rules = Some(scenes);
        self.drive(env);
    }

    /// Other holds are in force.
    fn hold(&mut self, holds: Holds, env: &mut Env) {
        env.judge.forcing.hear(self.life, holds.forced());
        env.judge.heard.hear(self.id, holds.clone());
        self.step(Input::Holds(holds), env);
        self.go_on(env);
    }

    /// Time has passed.
    fn tick(&mut self, at: At, env: &mut Env) {
        if self.tick_at != Some(at) {
            return;
        }
        self.tick_at = None;
        self.step(Input::Tick, env);
        self.go_on(env);
    }

    /// Its clock was set.
    pub(crate) fn clock_set(&mut self, env: &mut Env) {
        self.wake_at(env.now + 100 * MILLI, env);
    }

    /// Looks for records.
    fn poll(&mut self, env: &mut Env) {
        self.polling = false;
        let busy = !self.readings.is_empty();
        if !busy {
            self.fill(env);
        }
        self.drive(env);
        if busy || !self.readings.is_empty() {
            self.poll_soon(env);
        }
    }

    /// Plans a look for records.
    pub(crate) fn poll_soon(&mut self, env: &mut Env) {
        if !self.polling {
            self.polling = true;
            // As a rule at once; now and then the drive has been busy.
            let most = env.chance.pick(&[2_000, 2_000, 8_000, 80_000]);
            let delay = env.chance.between(100, most);
            env.tell(delay, self.id, News::Poll);
        }
    }

    /// Reads some records of each lane.
    fn fill(&mut self, env: &mut Env) {
        let mut more = false;
        for (lane, reader) in &mut self.readers {
            if reader.paused {
                continue;
            }
            let place = PartitionId {
                topic: Topic::Read(lane.source),
                shard: lane.shard,
            };
            let keeps_up = lane.source == Source::Commands || env.keeps_up();
            let partition = env.broker.partition(place);
            let end = if self.bug == Bug::ReadUncommitted {
                partition.log.len() as i64
            } else {
                partition.stable_end()
            };
            let most = reader.next + if keeps_up { MOST_READ as i64 } else { 0 };
            let (begun, mut seen) = (reader.next, reader.next);
            while reader.next < end.min(most) {
                let entry = &partition.log[reader.next as usize];
                if let (Some(payload), true) = (&entry.payload, entry.is_readable(self.bug)) {
                    self.readings.push_back(Reading::Record {
                        position: Position {
                            lane: *lane,
                            run: reader.run,
                            offset: reader.next,
                        },
                        appended: entry.appended,
                        payload: payload.clone(),
                    });
                    seen = reader.next + 1;
                }
                reader.next += 1;
            }
            if reader.next > seen.max(begun) {
                let position = Position {
                    lane: *lane,
                    run: reader.run,
                    offset: reader.next,
                };
                self.readings.push_back(Reading::Passed { position });
            }
            more |= reader.next < end;
        }
        if more {
            self.poll_soon(env);
        }
    }

    /// Hands on what was read.
    fn drive(&mut self, env: &mut Env) {
        let mut most = env.chance.between(1, MOST_READ);
        loop {
            if let Some(scenes) = self.rules.take() {
                env.judge.heard.hear_rules(self.id, scenes.clone());
                self.step(Input::Rules(scenes), env);
            }
            let Some(reading) = self.readings.pop_front() else {
                break;
            };
            match reading {
                // What comes now goes back with everything else.
                Reading::Assigned(..) | Reading::Revoked { lost: false, .. } if self.stopping => {}
                Reading::Assigned(shards, offsets, orders) => {
                    for (shard, known) in orders {
                        self.know(shard, known, env);
                    }
                    self.assign(shards, &offsets, env);
                }
                Reading::Revoked { shards, lost } => self.let_go(shards, lost, env),
                Reading::Passed { position } => self.step(Input::Passed { position }, env),
                Reading::Record {
                    position,
                    appended,
                    payload,
                } => {
                    if !self.set_aside(position, appended, &payload, env) {
                        let input = self.input(position, appended, payload, env);
                        self.step(input, env);
                    }
                    most -= 1;
                    if most == 0 {
                        self.poll_soon(env);
                        break;
                    }
                }
            }
        }
        self.go_on(env);
    }

    /// Sets a record aside of which it is not known what it is, or that has the key of one; false if it is neither.
    fn set_aside(
        &mut self,
        position: Position,
        appended: Timestamp,
        payload: &Payload,
        env: &mut Env,
    ) -> bool {
        let Payload::Submitted(submission) = payload else {
            return false;
        };
        let (lane, offset) = (position.lane, position.offset);
        let is_behind = self.waits_behind(lane, offset, submission);
        if submission.named_at <= env.now && !is_behind {
            return false;
        }
        let bytes = 100;
        self.step(Input::SetAside { position, bytes }, env);
        if self.engine.is_aside(lane, offset) {
            let aside = Aside {
                position,
                appended,
                submission: Arc::clone(submission),
            };
            self.aside.insert((lane, offset), aside);
            let delay = submission.named_at.saturating_sub(env.now);
            env.tell(delay, self.id, News::Named);
        }
        true
    }

    /// Whether a record that has the key of this one is set aside, and comes before it.
    fn waits_behind(&self, lane: LaneId, offset: i64, submission: &Submission) -> bool {
        let mut before = self.aside.range((lane, 0)..(lane, offset));
        before.any(|(_, aside)| {
            submission.key.is_some()
                && aside.submission.key == submission.key
                && self.bug != Bug::AsideOvertaken
        })
    }

    /// Takes those back of which it is known what they are, each behind the others of its key.
    fn named(&mut self, env: &mut Env) {
        let named = |aside: &Aside| aside.submission.named_at <= env.now;
        let all = self.aside.iter().filter(|(_, aside)| named(aside));
        let all: Vec<(LaneId, i64)> = all.map(|(at, _)| *at).collect();
        for (lane, offset) in all {
            let aside = &self.aside[&(lane, offset)];
            if self.waits_behind(lane, offset, &aside.submission) {
                // Asked again with the one before.
                continue;
            }
            let Some(aside) = self.aside.remove(&(lane, offset)) else {
                unreachable!("just looked at");
            };
            let Aside {
                position,
                appended,
                submission,
            } = aside;
            env.named += 1;
            let payload = Payload::Submitted(submission);
            let input = self.input(position, appended, payload, env);
            self.step(input, env);
        }
        self.go_on(env);
    }

    /// What former owners of a shard have written of it.
    fn know(&mut self, shard: i32, known: KnownShard, env: &mut Env) {
        let KnownShard {
            order,
            taken,
            steps,
            replayed: _,
            warned: _,
            holds,
            ids,
            replaced,
        } = known;
        let holds = holds.into_iter().collect();
        self.step(Input::HoldsKnown { shard, holds }, env);
        let ids = ids.into_iter().collect();
        let replaced = replaced.into_iter().collect();
        self.step(
            Input::IdsKnown {
                shard,
                ids,
                replaced,
            },
            env,
        );
        let order = Box::new(order);
        self.step(Input::Outstanding { shard, order }, env);
        let (taken, steps) = (taken.into_iter().collect(), steps.into_iter().collect());
        self.step(
            Input::Known {
                shard,
                taken,
                steps,
            },
            env,
        );
    }

    /// Tiers are to be looked through.
    fn begin_look(&mut self, look: Look, env: &mut Env) {
        let number = look.number;
        self.look = Some(LookThrough { look, ends: None });
        let delay = env.chance.between(1, 30) * MILLI;
        env.tell(delay, self.id, News::Look(number));
    }

    /// A look goes on: some records of each lane.
    fn go_on_looking(&mut self, number: u64, env: &mut Env) {
        let Some(mut through) = self.look.take() else {
            return;
        };
        if through.look.number != number {
            self.look = Some(through);
            return;
        }
        let place = |lane: LaneId| PartitionId {
            topic: Topic::Read(lane.source),
            shard: lane.shard,
        };
        let Some(ends) = through.ends.clone() else {
            let lanes = through.look.lanes.iter().map(|look| look.lane);
            let shards: BTreeSet<i32> = lanes.clone().map(|lane| lane.shard).collect();
            let source = Source::Tasks;
            let tasks = shards.into_iter().map(|shard| LaneId { shard, source });
            // What is committed may not have its markers yet: up to the end of the log.
            let ends: Vec<(LaneId, i64)> = lanes
                .chain(tasks)
                .map(|lane| (lane, env.broker.partition(place(lane)).log.len() as i64))
                .collect();
            through.ends = Some(ends.iter().copied().collect());
            self.look = Some(through);
            self.step(Input::LookBegun { number, ends }, env);
            env.tell(MILLI, self.id, News::Look(number));
            return self.go_on(env);
        };
        let mut inputs = Vec::new();
        let mut is_over = true;
        for look in &mut through.look.lanes {
            let lane = look.lane;
            let to = ends.get(&lane).copied().unwrap_or_default();
            let partition = env.broker.partition(place(lane));
            let most = look.from + env.chance.between(1, MOST_READ) as i64;
            let most = most.min(partition.stable_end());
            while look.from < to.min(most) && self.engine.wants_found() {
                let entry = &partition.log[look.from as usize];
                if let (Some(Payload::Parked(task)), true) =
                    (&entry.payload, entry.is_readable(self.bug))
                {
                    let fits = |command: &Arc<Command>| command.selector.fits(task, None);
                    if through.look.commands.iter().any(fits) {
                        inputs.push(Input::Found {
                            number,
                            lane,
                            offset: look.from,
                            task: Box::new(Task::clone(task)),
                        });
                    }
                }
                look.from += 1;
            }
            let next = look.from;
            inputs.push(Input::Looked { number, lane, next });
            is_over &= next >= to;
        }
        self.look = (!is_over).then_some(through);
        for input in inputs {
            self.step(input, env);
        }
        if !is_over {
            let delay = env.chance.between(100, LOOK_PAUSE);
            env.tell(delay, self.id, News::Look(number));
        }
        self.go_on(env);
    }

    /// Lanes are ours.
    fn assign(&mut self, shards: BTreeSet<i32>, offsets: &[Progress], env: &mut Env) {
        let tiers = env.plan.ladder.tiers().len();
        env.trace.note(env.now, "assign", &[self.id as u64], || {
            format!("{shards:?} {offsets:?}")
        });
        for shard in shards {
            let epoch = env.number();
            self.ownership.owned.insert(shard, epoch);
            self.epochs.insert(shard, epoch);
            env.assigned += 1;
            let tasks = offsets.iter().find(|progress| {
                let source = Source::Tasks;
                progress.lane == LaneId { shard, source }
            });
            if let Some(tasks) = tasks {
                let (_, saved) = self.known(tasks);
                self.step(Input::Saved { shard, saved }, env);
            }
            let sources = (0..tiers)
                .map(Source::Tier)
                .chain([Source::Tasks, Source::Commands]);
            for source in sources {
                let lane = LaneId { shard, source };
                let progress = offsets.iter().find(|progress| progress.lane == lane);
                let start = progress.map_or(0, |progress| progress.next);
                let known = progress
                    .map(|progress| self.known(progress).0)
                    .unwrap_or_default();
                let reader = Reader {
                    next: start,
                    run: 0,
                    paused: false,
                };
                self.readers.insert(lane, reader);
                self.step(Input::Assign { lane, start, known }, env);
            }
            let commands = PartitionId {
                topic: Topic::Read(Source::Commands),
                shard,
            };
            let to = env.broker.partition(commands).log.len() as i64;
            self.awaited.insert(shard, to);
            self.step(Input::Standing { shard, to }, env);
            env.judge.orders.assigned(env.now, shard, epoch);
        }
    }

    /// What a commit says of the offsets above it, and what is saved up.
    fn known(&self, progress: &Progress) -> (Completions, Saved) {
        let Progress {
            lane,
            next,
            metadata,
        } = progress;
        let decode = |binding, next| Completions::decode_with(metadata, binding, next);
        let known = decode(binding(*lane), *next);
        if self.bug == Bug::MetadataBelieved {
            // Whatever it was written for.
            return known
                .or_else(|_| decode(binding_elsewhere(*lane), *next))
                .or_else(|_| decode(binding(*lane), next + 1))
                .unwrap_or_default();
        }
        known.unwrap_or_default()
    }

    /// Begins to give shards away.
    fn let_go(&mut self, shards: BTreeSet<i32>, lost: bool, env: &mut Env) {
        env.trace
            .note(env.now, "let go", &[self.id as u64], String::new);
        if lost {
            return self.lose(&shards, env);
        }
        for shard in shards.iter().copied() {
            self.step(Input::Leave { shard }, env);
        }
        let patience = if self.bug == Bug::NoDrain {
            0
        } else {
            env.plan.drain_deadline
        };
        self.letting_go = Some(LettingGo {
            shards,
            deadline: env.now + patience,
            due: env.now + env.plan.drain_deadline,
            stage: Stage::Working,
            is_late: false,
        });
    }

    /// Shards are gone already.
    fn lose(&mut self, shards: &BTreeSet<i32>, env: &mut Env) {
        for shard in shards.iter().copied() {
            self.ownership.owned.remove(&shard);
            self.step(Input::Revoke { shard }, env);
        }
        if let Some(letting_go) = &mut self.letting_go {
            letting_go.shards.retain(|shard| !shards.contains(shard));
        }
        self.release(shards, false, env);
        self.given(env);
    }

    /// Gives everything away that is left.
    fn let_go_of_all(&mut self, env: &mut Env) {
        let all = self.readers.keys().map(|lane| lane.shard).collect();
        self.let_go(all, false, env);
        self.go_on(env);
    }

    /// Commits if it is time, and lets go if it is.
    fn go_on(&mut self, env: &mut Env) {
        while let Some(letting_go) = self.letting_go.take() {
            if !self.leave(letting_go, env) {
                break;
            }
        }
        let room = self.may_hand_over();
        let has_unsaved = self.engine.has_unsaved() || self.engine.has_untold_holds();
        let is_due = if self.settled.is_empty() && !has_unsaved {
            self.engine.has_passed() || self.engine.wants_fence()
        } else {
            self.engine.is_full() || env.now >= self.commit_at
        };
        if is_due && room {
            self.commit(env);
        }
        self.plan_tick(env);
    }

    /// Takes shards to their next stage, or gives them away; false if they wait.
    fn leave(&mut self, mut letting_go: LettingGo, env: &mut Env) -> bool {
        let shards = letting_go.shards.clone();
        let left = shards.iter().map(|shard| self.engine.calls_left(*shard));
        let (before, since) = left.fold((0, 0), |(before, since), left| {
            (before + left.before, since + left.since)
        });
        let waited = before == 0 || env.now >= letting_go.deadline;
        let theirs = |one: &Settlement| shards.contains(&one.lane.shard);
        match letting_go.stage {
            Stage::Working if waited => {
                // An answered call that a command has met is among them, and is read again by the next owner.
                letting_go.is_late = before > 0;
                for shard in shards.iter().copied() {
                    self.step(Input::Revoke { shard }, env);
                }
                for (lane, reader) in &mut self.readers {
                    reader.paused |= shards.contains(&lane.shard);
                }
                let end = letting_go.deadline.max(env.now + LAST.as_micros() as At);
                letting_go.stage = Stage::Stopped { end };
                self.letting_go = Some(letting_go);
                true
            }
            Stage::Stopped { end } if env.now < end && since == 0 && waited => {
                if self.engine.to_write_again() > 0 {
                    self.step(Input::Tick, env);
                }
                let is_left = |worker: &Self| {
                    worker.settled.iter().any(theirs) || worker.engine.has_unsaved()
                };
                if is_left(self) && self.may_hand_over() {
                    self.commit(env);
                }
                let is_left = is_left(self);
                let handed_over = !is_left && self.engine.to_write_again() == 0;
                if handed_over {
                    let batch = self.submitted;
                    let is_late = letting_go.is_late || before > 0;
                    let clean = !is_late && self.engine.unwritten() == 0;
                    letting_go.stage = Stage::Committing { end, batch, clean };
                }
                self.letting_go = Some(letting_go);
                handed_over
            }
            // What was settled while the last batch was written is as good as what was settled before.
            Stage::Committing { end, batch, .. }
                if self.received >= batch
                    && env.now < end
                    && self.settled.iter().any(theirs)
                    && self.bug != Bug::GivenUncommitted =>
            {
                letting_go.stage = Stage::Stopped { end };
                self.letting_go = Some(letting_go);
                true
            }
            Stage::Committing { batch, clean, .. }
                if self.received >= batch || self.bug == Bug::GivenUncommitted =>
            {
                self.gone(letting_go, clean, env);
                true
            }
            Stage::Stopped { end } | Stage::Committing { end, .. } if env.now >= end => {
                self.gone(letting_go, false, env);
                true
            }
            Stage::Working | Stage::Stopped { .. } | Stage::Committing { .. } => {
                self.letting_go = Some(letting_go);
                false
            }
        }
    }

    /// Lets go of shards.
    fn gone(&mut self, letting_go: LettingGo, clean: bool, env: &mut Env) {
        let LettingGo { shards, due, .. } = letting_go;
        // What waits for a topic is read again by the next owner.
        let waits = self.engine.unwritten() > 0;
        let clean = clean || (self.bug == Bug::NoDrain && env.now < due);
        let clean = clean && !waits;
        self.release(&shards, clean, env);
        self.given(env);
    }

    /// Forgets shards, of which all was written that was begun if it is `clean`.
    fn release(&mut self, shards: &BTreeSet<i32>, clean: bool, env: &mut Env) {
        for shard in shards {
            let epoch = self.ownership.owned.remove(shard);
            self.step(Input::Release { shard: *shard }, env);
            if let Some(epoch) = epoch.filter(|_| clean) {
                env.judge.drained(epoch);
            }
        }
        let gone = |lane: &LaneId| shards.contains(&lane.shard);
        self.settled.retain(|settlement| !gone(&settlement.lane));
        self.delivered.retain(|(lane, _)| !gone(lane));
        self.paused.retain(|lane, _| !gone(lane));
        self.readers.retain(|lane, _| !gone(lane));
        self.aside.retain(|(lane, _), _| !gone(lane));
        // What was read of another assignment is not looked at.
        self.readings.retain(|reading| match reading {
            Reading::Record { position, .. } | Reading::Passed { position } => {
                !gone(&position.lane)
            }
            Reading::Assigned(..) | Reading::Revoked { .. } => true,
        });
        env.trace
            .note(env.now, "gone", &[self.id as u64, u64::from(clean)], || {
                format!("{shards:?}")
            });
    }

    /// What follows when shards are gone.
    fn given(&mut self, env: &mut Env) {
        if self.stopping {
            if self.letting_go.is_some() {
                return;
            }
            if !self.readers.is_empty() {
                return self.let_go_of_all(env);
            }
            if self.phase != Phase::Out {
                self.phase = Phase::Out;
                let event = Event::Left {
                    worker: self.id,
                    process: self.process,
                };
                env.after(MILLI, event);
            }
            return;
        }
        if self.phase == Phase::Revoking {
            if self.membership.is_none() && !self.held.is_empty() {
                // Given up by the group in the middle of it: the rest is lost, too.
                return env.tell(0, self.id, News::Lost);
            }
            self.join(env);
        }
        self.poll_soon(env);
    }

    /// Hands over what was collected.
    fn commit(&mut self, env: &mut Env) {
        let settled = std::mem::take(&mut self.settled);
        let alerts = self.engine.alerts();
        let commits = self.engine.commits();
        let changes = self.engine.changes();
        let keys = changes.iter().map(|(shard, change)| (*shard, change.key()));
        let keys = keys.collect();
        let changes = changes
            .into_iter()
            .map(|(shard, change)| Settled::beside(shard, Topic::KeyOrder, Payload::State(change)));
        let told = alerts.iter().map(|(shard, alert)| {
            Settled::beside(*shard, Topic::Alerts, Payload::Alert(alert.clone()))
        });
        let batch = Batch {
            settled: settled
                .iter()
                .map(outgoing)
                .chain(told)
                .chain(changes)
                .collect(),
            progress: commits
                .iter()
                .map(|commit| Progress {
                    lane: commit.lane,
                    next: commit.watermark,
                    metadata: commit.metadata(binding(commit.lane)),
                })
                .collect(),
            returns: self.returns,
        };
        env.trace.note(env.now, "batch", &[self.id as u64], || {
            format!("{:?}", batch.progress)
        });
        self.submitted += 1;
        self.under_way.push_back(UnderWay {
            commits,
            settled,
            changes: keys,
            alerts,
        });
        self.with_ledger(env, |ledger, context| ledger.submit(batch, context));
    }

    /// Lets the ledger do something, and hears what became of batches.
    fn with_ledger(
        &mut self,
        env: &mut Env,
        act: impl FnOnce(&mut Ledger, &mut CommitContext<'_>),
    ) {
        let mut receipts = Vec::new();
        let mut context = CommitContext {
            env,
            ownership: &self.ownership,
            membership: self.membership,
            receipts: &mut receipts,
        };
        act(&mut self.ledger, &mut context);
        for told in receipts {
            let Some(under_way) = self.under_way.pop_front() else {
                unreachable!("a receipt without a batch");
            };
            self.received += 1;
            self.returning = self.returning.saturating_sub(1);
            let Told {
                receipt, replaced, ..
            } = &told;
            let commits = under_way.commits.clone();
            match receipt {
                Receipt::Returned => self.returned(under_way, told, env),
                Receipt::Committed => {
                    for Cause { lane, offset, .. } in replaced.clone() {
                        let commit = commits.iter().find(|commit| commit.lane == lane);
                        if let Some(Commit { epoch, .. }) = commit {
                            let epoch = *epoch;
                            self.step(
                                Input::Refused {
                                    lane,
                                    epoch,
                                    offset,
                                },
                                env,
                            );
                        }
                    }
                    for commit in commits {
                        let input = Input::Committed {
                            lane: commit.lane,
                            epoch: commit.epoch,
                            watermark: commit.watermark,
                        };
                        self.step(input, env);
                    }
                }
                Receipt::Dropped => {}
            }
        }
        self.go_on(env);
    }

    /// A batch was handed back: the engine settles again what can be written.
    fn returned(&mut self, batch: UnderWay, told: Told, env: &mut Env) {
        let UnderWay {
            commits,
            settled,
            changes,
            alerts,
        } = batch;
        self.returns += 1;
        self.returning = self.under_way.len();
        if let Some(letting_go) = &mut self.letting_go
            && let Stage::Committing { end, .. } = letting_go.stage
        {
            letting_go.stage = Stage::Stopped { end };
        }
        for topic in told.closed {
            if self.closed.insert(topic) {
                env.tell(TRY, self.id, News::Try(topic));
            }
        }
        self.follow_closed(env);
        let large = |settlement: &Settlement| {
            let at = (settlement.lane, settlement.offset);
            let mut large = told.large.iter();
            let found = large.find(|(cause, _)| (cause.lane, cause.offset) == at);
            found.map(|(_, topic)| *topic)
        };
        let settlements = settled.into_iter().map(|settlement| {
            let failure = Failure::new("too-large", "refused");
            let fate = match large(&settlement) {
                Some(Topic::DeadLetters) => Fate::Refused(Sink::DeadLetters, failure),
                Some(_) => Fate::Refused(Sink::Tiers, failure),
                None => Fate::Again,
            };
            (settlement, fate)
        });
        let returned = Returned {
            lanes: commits.iter().map(|of| (of.lane, of.epoch)).collect(),
            settlements: settlements.collect(),
            changes,
            alerts,
        };
        env.judge.figures.returned += 1;
        self.step(Input::Returned(Box::new(returned)), env);
    }

    /// Tries whether a topic takes records again.
    fn try_topic(&mut self, topic: Topic, env: &mut Env) {
        if env.is_closed(topic) {
            return env.tell(TRY, self.id, News::Try(topic));
        }
        self.closed.remove(&topic);
        self.follow_closed(env);
        self.go_on(env);
    }

    /// Tells the engine which topics take no records.
    fn follow_closed(&mut self, env: &mut Env) {
        let sinks = self.closed.iter().filter_map(|topic| topic.sink());
        let writable = Writable {
            closed: sinks.fold(Sinks::NONE, Sinks::with),
            ..Writable::default()
        };
        self.step(Input::Writable(writable), env);
    }

    /// Whether a batch may be handed over.
    fn may_hand_over(&self) -> bool {
        self.under_way.len() < UNDER_WAY && self.returning == 0
    }

    /// What the call is known by at the wall that has come back refused.
    fn refused(&mut self, input: &Input) -> Option<Arc<str>> {
        let Input::Attempted { ticket, outcome } = input else {
            return None;
        };
        let wall = self.walls.remove(ticket);
        wall.filter(|_| matches!(outcome, Outcome::Refused(_)))
    }

    /// The task of a call that has come back with success.
    fn succeeded(&mut self, input: &Input) -> Option<(LaneId, Arc<str>)> {
        let Input::Attempted { ticket, outcome } = input else {
            return None;
        };
        let task = self.called.remove(ticket);
        task.filter(|_| *outcome == Outcome::Success)
    }

    /// Which server wants rest, as the process learns by this input, and for how long.
    fn rests(&mut self, input: &Input) -> Option<(Arc<str>, At)> {
        if let Input::Cooldown { server, heard } = input {
            let left = heard.left.min(MOST_HEARD).checked_sub(heard.ago)?;
            return Some((Arc::clone(server), left.as_micros() as At));
        }
        let Input::Attempted { ticket, outcome } = input else {
            return None;
        };
        let server = self.servers.remove(ticket)?;
        let Outcome::Throttled { after, .. } = outcome else {
            return None;
        };
        Some((server, after.as_micros() as At))
    }

    /// The step of a command that this input is, with its assignment and its offset there.
    fn read_step(&self, input: &Input) -> Option<ReadStep> {
        let Input::Control { position, control } = input else {
            return None;
        };
        let Ok(Control::Step(step)) = control else {
            return None;
        };
        let assignment = *self.epochs.get(&position.lane.shard)?;
        Some(ReadStep {
            assignment,
            offset: position.offset,
            place: step.command.place,
        })
    }

    /// How many offsets are open besides that of a record that was set aside and is taken back.
    fn open_before(&self, input: &Input) -> usize {
        let (Input::Record { position, .. } | Input::Poison { position, .. }) = input else {
            return self.engine.open();
        };
        let is_aside = self.engine.is_aside(position.lane, position.offset);
        self.engine.open() - usize::from(is_aside)
    }

    /// Tells the engine what happened and does what it says.
    fn step(&mut self, input: Input, env: &mut Env) {
        let now = Now {
            wall: env.wall_of(self.process),
            steady: std::time::Duration::from_micros(env.now),
        };
        let came = Came {
            refused: self.refused(&input),
            succeeded: self.succeeded(&input),
            step: self.read_step(&input),
        };
        let steps = self.engine.steps();
        if let Some((server, left)) = self.rests(&input) {
            env.judge.rests(self.life, server, env.now + left);
        }
        let read = env.judge.fairness.read(&input);
        if let Input::Leave { shard } | Input::Revoke { shard } = input {
            env.judge.fairness.let_go(self.id, shard);
        }
        env.judge.fairness.begin(self.id, now.wall);
        let before = self.open_before(&input);
        let mut actions = Vec::new();
        self.engine.step(now, input, &mut actions);
        if let Some(step) = came.step {
            env.judge.orders.read(step);
        }
        let begins = self.engine.steps() > steps;
        let is_settled = |action: &&Action| matches!(action, Action::Settle(_));
        let settled = actions.iter().filter(is_settled).count();
        // One offset more is open than was: the record was not one that comes again.
        if let Some((at, waiting)) = read
            && self.engine.open() + settled > before
        {
            env.judge.fairness.taken(self.id, at, waiting);
        }
        for action in actions {
            match action {
                Action::Dispatch {
                    ticket,
                    lane,
                    scene,
                    task,
                    wait,
                } => self.dispatch(now, (ticket, lane, wait), &scene, &task, env),
                Action::Settle(settlement) => self.settle(now, settlement, &came, env),
                Action::Pause { lane, next } => {
                    self.paused.insert(lane, next);
                    if let Some(reader) = self.readers.get_mut(&lane) {
                        reader.paused = true;
                    }
                }
                Action::Resume { lane, run } => self.resume(lane, run, env),
                Action::Look(look) => self.begin_look(look, env),
                Action::ReadLetters(_) => unreachable!("no campaign is asked for"),
                Action::Drained { shard: _ }
                | Action::Judged { outcome: _ }
                | Action::LimitPassed { .. } => {}
                Action::Cooldown { signal, told_by } => {
                    let figures = [self.id as u64, told_by as u64];
                    let detail = || format!("{signal:?}");
                    env.trace.note(env.now, "cooldown", &figures, detail);
                    env.signal(self.process, self.life, signal);
                }
                Action::Switched { target, switch } => {
                    let figures = [self.id as u64, switch.to as u64];
                    let target = target.text();
                    let detail = || format!("{target} {switch:?}");
                    env.trace.note(env.now, "breaker", &figures, detail);
                    env.judge.switched(env.now, self.life, target, switch);
                }
            }
        }
        if let Some(step) = came.step.filter(|_| begins) {
            env.judge.orders.heard(step);
        }
        self.judge_turns(env);
        self.within_limits(env);
    }

    /// Takes a settlement into the next batch, and tells the judge of it.
    fn settle(&mut self, now: Now, settlement: Settlement, came: &Came, env: &mut Env) {
        let Settlement { lane, offset, .. } = settlement;
        if lane.source == Source::Commands
            && let Some(assignment) = self.epochs.get(&lane.shard)
        {
            let at = (*assignment, offset);
            env.judge.orders.settled(at, &settlement.entries, came.step);
        }
        if let Some(wall) = &came.refused {
            env.judge.refused(self.life, wall, &settlement.entries);
        }
        env.judge.dies(self.life, &settlement.entries);
        // Who was taken for dead may have the same task from another lane, too.
        if let Some((of, id)) = &came.succeeded
            && *of == lane
        {
            env.judge.succeeded(id, &settlement.entries);
        }
        env.judge.fairness.settled(self.id, (lane, offset));
        if self.settled.is_empty() {
            self.commit_at = env.now + env.plan.commit_interval;
        }
        let expired = settlement.entries.iter().find_map(|entry| {
            let retide_core::Entry::DeadLetter { task, ended } = entry else {
                return None;
            };
            (ended.terminal == Terminal::Expired).then_some(task)
        });
        if let Some(task) = expired
            && self.returns == 0
            && !settlement.is_of_call()
            && env.plan.clocks_are_right()
        {
            env.judge.expires_at(self.id, task, now.wall);
        }
        let parked = settlement.entries.iter().find_map(|entry| entry.parked());
        if let Some((_, task)) = parked
            && self.returns == 0
            && env.plan.clocks_are_right()
        {
            // By another clock, what an owner before has said may be far off.
            env.judge.parked_at(self.id, task, now.wall);
        }
        for entry in &settlement.entries {
            if let retide_core::Entry::Deliver { task, .. } = entry {
                // Scenes with a topic keep their order, or do not, for good.
                let scene = env
                    .plan
                    .scenes
                    .iter()
                    .find(|scene| scene.name == task.scene);
                let ordering = scene.map_or(Ordering::None, |scene| scene.ordering);
                if self.delivered.insert((lane, offset)) {
                    // What was handed back was decided before, by the clock of then.
                    if self.returns == 0 {
                        env.judge.delivers(task, ordering, now.wall);
                        let ramps = env.judge.not_on_hold(env.now, self.id, task);
                        env.judge.heard.came_back(env.now, self.id, &ramps, false);
                    } else {
                        env.judge.delivered_since(env.now, self.id, task);
                    }
                }
            }
        }
        self.settled.push(settlement);
    }

    /// Tells the judge whose turn it may be after a step.
    fn judge_turns(&mut self, env: &mut Env) {
        self.awaited.retain(|shard, to| {
            let source = Source::Commands;
            let reader = self.readers.get(&LaneId {
                shard: *shard,
                source,
            });
            let is_read = reader.is_some_and(|reader| reader.next >= *to);
            if is_read {
                env.judge.fairness.opens(self.id, *shard);
            }
            !is_read
        });
        let states = self.engine.breaker_states();
        let denied = states.values().any(|state| *state != State::Closed);
        let is_known = !denied && env.plan.clocks_are_right();
        if !is_known || self.engine.is_full() {
            // By a clock that was set, what is due may still be on its way through a tier. What its breaker turns away waits where no queue is, and others start. What people hold, or command, or what has expired, waits
            // for room in the batch.
            env.judge.fairness.is_held_up(self.id);
        }
        env.judge.fairness.end(self.id);
    }

    /// Calls a target.
    fn dispatch(
        &mut self,
        now: Now,
        (ticket, lane, wait): (u64, LaneId, Wait),
        scene: &Arc<Scene>,
        task: &Arc<Task>,
        env: &mut Env,
    ) {
        let LaneId { shard, .. } = lane;
        let start = Start {
            assignment: self.epochs.get(&shard).copied().unwrap_or_default(),
            process: self.life,
            wall: now.wall,
            wait,
            is_owner: self.owns(shard, env),
            is_member: self
                .member()
                .is_some_and(|member| env.broker.group.has(member)),
        };
        if let Some(topic) = EVERY_END.iter().find(|topic| self.closed.contains(topic)) {
            env.judge
                .object(|| format!("{} called although {topic:?} takes no records", task.id));
        }
        let call = (Arc::clone(counted_as(scene)), Arc::clone(task));
        self.calls.insert(ticket, call);
        if let Some(wall) = wall(scene, task.kind) {
            self.walls.insert(ticket, Arc::clone(wall));
        }
        if let Some(server) = server(scene, task.kind) {
            self.servers.insert(ticket, server);
        }
        // What shards that leave may not start any more takes turns, too.
        if !self.closed.is_empty() || self.letting_go.is_some() {
            env.judge.fairness.is_held_up(self.id);
        }
        if task.kind == Kind::Work && !env.plan.orders.is_empty() {
            self.called.insert(ticket, (lane, Arc::clone(&task.id)));
        }
        env.judge.takes_turn(self.id, lane, task);
        env.judge.held_by_none(task, wait);
        if start.is_owner && env.plan.clocks_are_right() {
            env.judge.goes_on(task);
        }
        let ramps = env.judge.not_on_hold(env.now, self.id, task);
        if !ramps.is_empty() {
            self.ramps.insert(ticket, ramps);
        }
        env.call(self.id, ticket, start, task, scene);
    }

    /// Reads a paused lane on.
    fn resume(&mut self, lane: LaneId, run: u64, env: &mut Env) {
        let next = self
            .paused
            .remove(&lane)
            .unwrap_or_else(|| unreachable!("{lane:?} resumed before it was paused"));
        if let Some(reader) = self.readers.get_mut(&lane) {
            *reader = Reader {
                next,
                run,
                paused: false,
            };
        }
        if self.bug == Bug::StaleRun {
            for reading in &mut self.readings {
                if let Reading::Record { position, .. } = reading
                    && position.lane == lane
                {
                    position.run = run;
                }
            }
        }
        self.poll_soon(env);
    }

    /// Whether a shard is this worker's as the group sees it.
    fn owns(&self, shard: i32, env: &Env) -> bool {
        self.member()
            .is_some_and(|member| env.broker.group.owns(member, shard))
    }

    /// Whether the engine holds no more than it may.
    fn within_limits(&self, env: &mut Env) {
        /// No record of a history is heavier.
        const HEAVIEST: usize = 1_024;
        /// What the first task of a key adds to what is known of keys, and more than any other.
        const HEAVIEST_KEY: usize = 152;
        let limits = env.plan.limits;
        let lanes = self.readers.len();
        let (open, held) = self.holds();
        // What was handed back is open again, beside what was read since.
        let unwritten = self.engine.unwritten();
        let open = open.saturating_sub(unwritten);
        let most_open = if env.plan.orders.is_empty() {
            lanes * limits.lane_open
        } else {
            // Lanes of commands are bounded by what a commit can hold.
            usize::MAX
        };
        if open > most_open {
            env.judge
                .object(|| format!("{open} offsets open in {lanes} lanes, {limits:?}"));
        }
        // What former owners of its shards knew, each within its limit, is known to it, and each of them has read a record at least.
        let (shards, assigned) = (env.plan.shards as usize, env.assigned);
        // What was set aside is taken back whatever is known of keys by then.
        let most = shards * limits.keys + (assigned + env.named) * HEAVIEST_KEY;
        // Who does not know yet that its shards are another's reads what that one parks, with the keys of it.
        let mut read = self.readers.keys();
        let owns = read.all(|lane| self.owns(lane.shard, env));
        let keys = self.engine.key_bytes();
        // What commands take out of tiers brings its keys with it.
        let is_bounded = env.plan.orders.is_empty();
        if is_bounded && keys > if owns { most } else { 2 * most } {
            env.judge
                .object(|| format!("{keys} bytes of keys in {shards} shards, {limits:?}"));
        }
        if unwritten == 0
            && env.plan.orders.is_empty()
            && held > limits.total + lanes * (limits.lane_least + HEAVIEST)
        {
            env.judge
                .object(|| format!("{held} bytes held in {lanes} lanes, {limits:?}"));
        }
    }

    /// Plans to be woken when there is something to do.
    fn plan_tick(&mut self, env: &mut Env) {
        let has_unsaved = self.engine.has_unsaved() || self.engine.has_untold_holds();
        let any = !self.settled.is_empty() || has_unsaved;
        let commit = any && self.may_hand_over();
        let wake = self.engine.next_wake();
        let wake = wake.map(|wake| env.at_of(self.process, wake));
        let leaving = self
            .letting_go
            .as_ref()
            .map(|letting_go| match letting_go.stage {
                Stage::Working => letting_go.deadline,
                Stage::Stopped { end } if env.now < letting_go.deadline => {
                    letting_go.deadline.min(end)
                }
                Stage::Stopped { end } | Stage::Committing { end, .. } => end,
            });
        let wake = commit
            .then_some(self.commit_at)
            .into_iter()
            .chain(wake)
            .chain(leaving)
            .min();
        if let Some(wake) = wake {
            self.wake_at(wake, env);
        }
    }

    /// Plans to be woken at `at`, or a little later, as timers do.
    fn wake_at(&mut self, at: At, env: &mut Env) {
        let at = at.max(env.now);
        if self.tick_at.is_some_and(|planned| planned <= at + 300) {
            return;
        }
        let at = at + env.chance.between(50, 300);
        self.tick_at = Some(at);
        env.tell(at - env.now, self.id, News::Tick { at });
    }

    /// A record as the engine wants it.
    fn input(&self, position: Position, appended: Timestamp, payload: Payload, env: &Env) -> Input {
        let now = env.wall_of(self.process);
        let origin = Origin {
            topic: "retry".into(),
            partition: position.lane.shard,
            offset: position.offset,
        };
        let task = match payload {
            Payload::Submitted(submission) if submission.poison => {
                let poison = Arc::new(Poison {
                    kind: Kind::Work,
                    id: Arc::clone(&submission.id),
                    scene: "".into(),
                    key: None,
                    origin,
                    record: Record::default(),
                    reason: Reason::BadHeader,
                    detail: Failure::new("bad", "cannot be read"),
                    replay: None,
                });
                return Input::Poison { position, poison };
            }
            Payload::Submitted(submission) => {
                submitted(&submission, origin, task::entered(appended, now))
            }
            Payload::Parked(task) => Arc::unwrap_or_clone(task),
            Payload::Order(order) => {
                let shard = position.lane.shard;
                let command = order.request(shard, position.offset, appended);
                let control = Ok(Control::Request(Arc::new(command)));
                return Input::Control { position, control };
            }
            Payload::Control(control) => {
                let control = Ok(*control);
                return Input::Control { position, control };
            }
            Payload::Callback(_)
            | Payload::DeadLetter(..)
            | Payload::Poison(_)
            | Payload::Delivered(_)
            | Payload::State(_)
            | Payload::Alert(_)
            | Payload::Event(_) => unreachable!("not on a topic that is read"),
        };
        Input::Record {
            position,
            appended,
            task: Box::new(task),
        }
    }
}

/// A task as `headers::ingest` reads it: with the time of its producer, or when it entered.
fn submitted(submission: &Submission, origin: Origin, entered: Timestamp) -> Task {
    let value = if is_latest(&submission.scene) {
        latest::value(&submission.id, origin.offset)
    } else {
        submission.id.as_bytes().to_vec()
    };
    Task {
        id: Arc::clone(&submission.id),
        scene: Arc::clone(&submission.scene),
        kind: Kind::Work,
        attempt: 1,
        due: submission.due.map_or(entered, |due| due.max(entered)),
        deferral: None,
        first_failed_at: entered,
        deadline: submission.deadline,
        origin,
        failure: None,
        hops: 0,
        throttled: 0,
        exhausted: None,
        held_since: None,
        pending_since: None,
        stopped: None,
        commanded: None,
        replay: None,
        record: Record {
            key: submission.key.map(|key| key.as_bytes().into()),
            value: Some(value.into()),
            ..Record::default()
        },
    }
}

/// A settlement as the ledger writes it.
fn outgoing(settlement: &Settlement) -> Settled {
    let records = |entries: &[retide_core::Entry]| -> Vec<Outgoing> {
        let cause = Cause {
            lane: settlement.lane,
            offset: settlement.offset,
            of: consequences(entries),
        };
        entries
            .iter()
            .map(|entry| record(entry, settlement, cause))
            .collect()
    };
    let written = records(&settlement.entries);
    Settled {
        cause: Cause {
            lane: settlement.lane,
            offset: settlement.offset,
            of: consequences(&settlement.entries),
        },
        records: written,
        otherwise: records(&settlement.otherwise),
    }
}

/// How many entries are consequences of an offset, rather than of all that has happened to a key.
fn consequences(entries: &[retide_core::Entry]) -> usize {
    let is_order = |entry: &&retide_core::Entry| matches!(entry, retide_core::Entry::State(_));
    entries.len() - entries.iter().filter(is_order).count()
}

/// The record of one entry.
fn record(entry: &retide_core::Entry, settlement: &Settlement, cause: Cause) -> Outgoing {
    use retide_core::Entry;
    let mut shard = settlement.home;
    let (topic, payload) = match entry {
        Entry::Park { tier, to, task } => {
            shard = to.unwrap_or(settlement.lane.shard);
            assert_eq!(
                task.due,
                task.due.ceil_to_millis(),
                "headers hold milliseconds"
            );
            let source = Source::Tier(*tier);
            (Topic::Read(source), Payload::Parked(Arc::clone(task)))
        }
        Entry::Deliver { task, .. } => (Topic::Orders, Payload::Delivered(Arc::clone(task))),
        Entry::DeadLetter { task, ended } => {
            let letter = Payload::DeadLetter(Arc::clone(task), Arc::clone(ended));
            (Topic::DeadLetters, letter)
        }
        Entry::Poison { poison, .. } => (Topic::DeadLetters, Payload::Poison(Arc::clone(poison))),
        Entry::Callback(ended) => (Topic::Callbacks, Payload::Callback(Arc::clone(ended))),
        Entry::DeliverCallback(ended) => {
            let source = Source::Tier(0);
            let mut task = ended.delivery();
            task.record.value = Some(ended.id.as_bytes().to_vec().into());
            (Topic::Read(source), Payload::Parked(Arc::new(task)))
        }
        Entry::Event(event) => (Topic::Events, Payload::Event(Arc::new(event.clone()))),
        Entry::State(change) => (Topic::KeyOrder, Payload::State(change.clone())),
        Entry::Control { to, control } => {
            shard = *to;
            let source = Source::Commands;
            (Topic::Read(source), Payload::Control(control.clone()))
        }
        Entry::Alert(alert) => (Topic::Alerts, Payload::Alert(alert.clone())),
    };
    Outgoing {
        place: PartitionId { topic, shard },
        payload,
        cause,
    }
}
