//! Campaigns that replay dead letters: a history of their own, with a judge of its own.
//!
//! One engine at a time has all shards. It dies in between, with what it was about to write; the next one goes on from what is committed. What
//! replays mean for all else is small; so the large history has none, and this one has only what campaigns need: commands, tiers, letters and
//! targets. Invariants that are judged:
//! - a letter is replayed once, by one campaign, and while that runs;
//! - no campaign replays a letter that an earlier one means which is not over;
//! - people are told once that a campaign has stopped, in the transaction that says so;
//! - the letters of a partition are replayed in their order, and no campaign goes back;
//! - a campaign whose tasks all fail stops;
//! - people are told once of a partition that letters of it go which were not replayed, not before it is time, and never of others;
//! - what a campaign has counted at its end is what has happened.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use retide_core::campaign::{Campaign, Id, Letter, Request, Said, Spec, State, Verb};
use retide_core::completions::Completions;
use retide_core::control::{Control, Place};
use retide_core::entry::{CAMPAIGN_STOPPED, DEAD_LETTERS_EXPIRE};
use retide_core::lane::Limits;
use retide_core::ramp::Ramp;
use retide_core::scene::{Callback, Ordering, Scene, Target};
use retide_core::selector::{Parts, Selector};
use retide_core::step::{
    LetterPurpose, LetterSlice, LetterWant, Letters, LettersKept, ReadLetters,
};
use retide_core::{
    Action, Alert, Backoff, Commit, Engine, Entry, Failure, Fate, Gates, Input, Jitter, Kind,
    Ladder, LaneId, Now, Origin, Outcome, Policy, Position, Reason, Record, Returned, Settlement,
    Source, StateKey, Task, Terminal, Timestamp, Transition,
};

use crate::broker::KnownShard;
use crate::bug::Bug;
use crate::chance::Chance;

/// Milliseconds since the history began.
type At = u64;

/// Plays the history of `seed`, with `bug` planted: the promise that was broken, if one was.
pub(crate) fn play(seed: u64, bug: Bug) -> Option<String> {
    let mut world = World::new(seed, bug);
    world.run();
    world.judge.broken
}

/// Whether a bug is one that only these histories notice.
#[cfg(feature = "planted")]
pub(crate) fn is_ours(bug: Bug) -> bool {
    use retide_core::planted::Bug as Core;
    matches!(
        bug,
        Bug::Core(
            Core::LetterTwice
                | Core::CampaignRestarted
                | Core::CampaignBrakeIgnored
                | Core::ReplayOutOfOrder
                | Core::ClaimIgnored
                | Core::CampaignUntold
                | Core::WarnedForgotten
                | Core::ReplayedWarned
        )
    )
}

/// Everything around the engine.
struct World {
    chance: Chance,
    bug: Bug,
    now: At,
    shards: i32,
    ladder: Ladder,
    scenes: Vec<Scene>,
    /// The commands of each shard; nothing where a marker stands.
    commands: Vec<Vec<Option<Control>>>,
    /// What is parked, by tier and shard, each with when it was appended.
    tiers: BTreeMap<LaneId, Vec<Option<(Timestamp, Task)>>>,
    /// The dead letters of each partition, and the first that is there.
    letters: Vec<Vec<Option<Letter>>>,
    /// What owners have written of shards.
    known: Vec<KnownShard>,
    /// What is committed of lanes.
    committed: BTreeMap<LaneId, (i64, Completions)>,
    /// What people want, and when.
    wishes: Vec<(At, Wish)>,
    /// From when to when targets fail.
    broken: (At, At),
    /// One in so many calls fails besides.
    fails: u64,
    /// How long letters are kept, if that is known.
    keeps: Option<At>,
    /// When the owner dies.
    deaths: Vec<At>,
    owner: Option<Owner>,
    judge: Judge,
}

/// What people want.
#[derive(Clone, Debug)]
struct Wish {
    shard: i32,
    name: Arc<str>,
    verb: Verb,
}

/// The engine that has the shards, and what is around it.
struct Owner {
    engine: Engine,
    readers: BTreeMap<LaneId, Reader>,
    settled: Vec<Settlement>,
    commit_at: Option<At>,
    batch: Option<Batch>,
    calls: Vec<(At, u64, Arc<Task>)>,
    reads: Vec<(At, ReadLetters)>,
}

/// How far a lane is read.
#[derive(Clone, Copy, Debug)]
struct Reader {
    next: i64,
    run: u64,
    paused: bool,
}

/// What is being written.
struct Batch {
    at: At,
    commits: Vec<Commit>,
    settlements: Vec<Settlement>,
    changes: Vec<(i32, retide_core::State)>,
    alerts: Vec<(i32, Box<Alert>)>,
}

/// What stands at an offset: a record, or a marker.
struct Stands(Option<Input>);

/// Knows what has happened.
#[derive(Default)]
struct Judge {
    broken: Option<String>,
    /// Where each letter stands, by its task, and how often that was replayed before.
    letters: BTreeMap<(Arc<str>, u32), (i32, i64)>,
    /// The letters, by where they stand.
    stands: BTreeMap<(i32, i64), Letter>,
    /// The letters that were replayed.
    replayed: BTreeMap<(i32, i64), Id>,
    /// The campaign that a task is out for.
    out: BTreeMap<Arc<str>, Id>,
    /// What tasks of campaigns have said.
    said: BTreeMap<Id, Said>,
    /// The last records of campaigns.
    last: BTreeMap<Id, Campaign>,
    /// The last letter of each partition that a campaign has replayed.
    order: BTreeMap<(Id, i32), i64>,
    /// The campaigns that somebody has resumed.
    resumed: BTreeSet<Arc<str>>,
    /// The partitions of which people were told that letters go.
    warned: BTreeSet<i32>,
}

/// The longest history.
const END: At = 900_000;

/// Longest time from when people may be told of letters until they are: looks, readings and commits, of an owner that has died meanwhile.
const TOLD: At = 30_000;

/// When people resume what stands, for the last time.
const LAST: At = 240_000;

/// The first offset of the retry topic that is not committed: all tasks have entered before.
const ENTERED: i64 = 100_000;

/// Where the clock stands when a history begins.
const START: u64 = 1_700_000_000_000;

// === impl World ===

impl World {
    /// What the seed says.
    fn new(seed: u64, bug: Bug) -> Self {
        let mut chance = Chance::new(seed ^ 0x0072_6570_6c61_7973);
        let shards = chance.between(1, 3) as i32;
        let attempts = chance.between(1, 3) as u32;
        let scene = |name: &str, ordering| Scene {
            ordering,
            // Letters of callbacks have somewhere to go, and no end makes another one.
            callback: Some(Callback {
                target: Target::Call,
                breaker: None,
                on: Vec::new(),
            }),
            ..Scene::new(
                name,
                Target::Call,
                Policy {
                    backoff: Backoff::Fixed {
                        delay: Duration::from_secs(2),
                    },
                    jitter: Jitter::None,
                    max_attempts: NonZeroU32::new(attempts).unwrap_or(NonZeroU32::MIN),
                },
            )
        };
        let mut world = Self {
            bug,
            now: 0,
            shards,
            ladder: Ladder::default(),
            scenes: vec![scene("pay", Ordering::Key), scene("other", Ordering::None)],
            commands: vec![Vec::new(); shards as usize],
            tiers: BTreeMap::new(),
            letters: vec![Vec::new(); shards as usize],
            known: (0..shards).map(|_| KnownShard::default()).collect(),
            committed: BTreeMap::new(),
            wishes: Vec::new(),
            broken: (0, chance.pick(&[0, 0, 20_000, 120_000])),
            fails: chance.pick(&[1_000, 20, 8]),
            keeps: None,
            deaths: Vec::new(),
            owner: None,
            judge: Judge::default(),
            chance,
        };
        world.draw_letters();
        world.draw_wishes();
        for _ in 0..world.chance.below(6) {
            let at = world.chance.between(500, LAST);
            world.deaths.push(at);
        }
        world.keeps = match world.chance.below(4) {
            0 => None,
            1 => Some(world.chance.between(200_000, 400_000)),
            _ => Some(world.chance.between(5_000, 60_000)),
        };
        // Most of what happens happens early.
        for _ in 0..world.chance.below(8) {
            let at = world.chance.between(500, 20_000);
            world.deaths.push(at);
        }
        world
    }

    /// Letters that are there from the beginning.
    fn draw_letters(&mut self) {
        for shard in 0..self.shards {
            for number in 0..self.chance.between(3, 60) as i64 {
                let is_there = !self.chance.one_in(20);
                let scene = self.chance.pick(&["pay", "other"]);
                let key = self.chance.pick(&["", "a", "b"]);
                let kind = if self.chance.one_in(12) {
                    Kind::Callback
                } else {
                    Kind::Work
                };
                let letter = is_there.then(|| {
                    let id: Arc<str> = format!("{shard}-{number}").into();
                    letter((shard, number), &id, scene, key, kind)
                });
                self.add_letter(shard, letter);
            }
        }
    }

    /// A letter, or a marker, is there.
    fn add_letter(&mut self, shard: i32, letter: Option<Letter>) {
        let letters = &mut self.letters[shard as usize];
        let offset = letters.len() as i64;
        let letter = letter.map(|letter| Letter {
            partition: shard,
            offset,
            at: Timestamp::from_millis(START + self.now),
            ..letter
        });
        if let Some(letter) = &letter {
            let times = letter.task.replay.as_ref().map_or(0, |it| it.times);
            let key = (Arc::clone(&letter.task.id), times);
            self.judge.letters.insert(key, (shard, offset));
            self.judge.stands.insert((shard, offset), letter.clone());
        }
        letters.push(letter);
    }

    /// Campaigns, and what people want of them.
    fn draw_wishes(&mut self) {
        for number in 0..self.chance.between(1, 3) {
            let name: Arc<str> = format!("c{number}").into();
            let at = self.chance.between(0, 15_000);
            let mut parts = Parts::default();
            match self.chance.below(4) {
                0 => drop(parts.scenes.insert("other".into())),
                1 => {
                    for _ in 0..self.chance.between(1, 20) {
                        let shard = self.chance.below(self.shards as u64);
                        let id = format!("{shard}-{}", self.chance.below(60));
                        parts.ids.insert(id.into());
                    }
                }
                _ => drop(parts.scenes.insert("pay".into())),
            }
            let steps = self.chance.pick(&[&[1, 5, 20][..], &[5, 50], &[2, 100]]);
            let rate = self.chance.pick(&[0, 0, 7]);
            let spec = Spec {
                selector: Selector::new(parts).ok(),
                died: None,
                ramp: Ramp::try_new(steps, 0.2).unwrap_or_else(|| unreachable!("rising")),
                rate: NonZeroU32::new(rate),
                scene: self.chance.one_in(6).then(|| "other".into()),
                set_headers: Vec::new(),
                remove_headers: Vec::new(),
                edit: None,
                include_new: self.chance.one_in(4),
                keep_deadline: false,
            };
            let wish = |world: &mut Self, at, verb| {
                let shard = world.chance.below(world.shards as u64) as i32;
                let name = Arc::clone(&name);
                world.wishes.push((at, Wish { shard, name, verb }));
            };
            wish(self, at, Verb::Start(Arc::new(spec)));
            if self.chance.one_in(2) {
                let pause = at + self.chance.between(100, 9_000);
                wish(self, pause, Verb::Pause);
                let resume = pause + self.chance.between(100, 9_000);
                wish(self, resume, Verb::Resume);
            }
            if self.chance.one_in(6) {
                let abort = at + self.chance.between(100, 20_000);
                wish(self, abort, Verb::Abort);
            }
            if self.chance.one_in(2) {
                let resume = at + self.chance.between(100, 60_000);
                wish(self, resume, Verb::Resume);
            }
            for last in 0..20 {
                wish(self, LAST + last * 10_000, Verb::Resume);
            }
        }
        self.wishes.sort_by_key(|(at, _)| *at);
        self.deaths.sort_unstable();
    }

    /// The time as the engine is told.
    fn time(&self) -> Now {
        Now {
            wall: Timestamp::from_millis(START + self.now),
            steady: Duration::from_millis(self.now),
        }
    }

    /// Plays until all is over.
    fn run(&mut self) {
        self.begin();
        let mut quiet = 0;
        while self.now < END && self.judge.broken.is_none() {
            let before = self.now;
            self.wish();
            if self.deaths.first().is_some_and(|at| *at <= self.now) {
                self.deaths.remove(0);
                self.die();
            }
            let did = self.turn();
            quiet = if did { 0 } else { quiet + 1 };
            let is_told = self.untold().is_none() || self.now > LAST;
            if quiet > 50 && self.wishes.is_empty() && self.is_over() && is_told {
                break;
            }
            self.now = before + if did { 1 } else { self.chance.between(5, 40) };
        }
        if let Some(partition) = self.untold() {
            let why = format!("nobody is told that letters of {partition} go");
            self.judge.object(why);
        }
        self.judge.finish(&self.letters);
    }

    /// A partition of which people should have been told that a letter goes, and were not.
    fn untold(&self) -> Option<i32> {
        let keeps = self.keeps?;
        let is_late = |letter: &Letter| {
            let age = self.now.saturating_sub(letter.at.as_millis() - START);
            let at = (letter.partition, letter.offset);
            age >= keeps - keeps / 10 + TOLD && !self.judge.replayed.contains_key(&at)
        };
        let letters = self.letters.iter().flatten().flatten();
        let mut late = letters.filter(|letter| is_late(letter));
        late.find(|letter| !self.judge.warned.contains(&letter.partition))
            .map(|letter| letter.partition)
    }

    /// Whether all campaigns are over.
    fn is_over(&self) -> bool {
        let is_done = self.owner.as_ref().is_some_and(|owner| {
            owner.settled.is_empty() && owner.batch.is_none() && owner.calls.is_empty()
        });
        is_done && self.judge.last.values().all(Campaign::is_over)
    }

    /// What people want by now is written.
    fn wish(&mut self) {
        while self.wishes.first().is_some_and(|(at, _)| *at <= self.now) {
            let (_, Wish { shard, name, verb }) = self.wishes.remove(0);
            if matches!(verb, Verb::Resume) {
                self.judge.resumed.insert(Arc::clone(&name));
            }
            let log = &mut self.commands[shard as usize];
            let place = Place {
                at: Timestamp::from_millis(START + self.now),
                partition: shard,
                offset: log.len() as i64,
            };
            log.push(Some(Control::Ask(Arc::new(Request {
                place,
                id: place.to_string().into(),
                name,
                verb,
                by: "".into(),
                reason: "".into(),
            }))));
        }
    }

    /// The owner dies; what it was writing is committed, or not.
    fn die(&mut self) {
        let Some(owner) = self.owner.take() else {
            return;
        };
        if let Some(batch) = owner.batch
            && self.chance.one_in(2)
        {
            self.apply(&batch);
        }
        self.begin();
    }

    /// Another engine has the shards.
    fn begin(&mut self) {
        let shards = NonZeroU32::new(self.shards as u32).unwrap_or(NonZeroU32::MIN);
        let gates = Arc::new(Gates::default());
        let limits = Limits::of(16 << 20);
        let engine = Engine::new(self.ladder.clone(), limits, gates, shards);
        let mut owner = Owner {
            engine: engine.planted(self.bug.of_core()),
            readers: BTreeMap::new(),
            settled: Vec::new(),
            commit_at: None,
            batch: None,
            calls: Vec::new(),
            reads: Vec::new(),
        };
        let kept = self.keeps.map(|keeps| LettersKept {
            keeps: Duration::from_millis(keeps),
            warn_before: Duration::from_hours(24),
        });
        let mut inputs = vec![
            Input::Rules(self.scenes.iter().cloned().collect()),
            Input::LettersKept(kept),
        ];
        for shard in 0..self.shards {
            let known = &self.known[shard as usize];
            inputs.push(Input::ReplayedKnown {
                shard,
                marks: known.replayed.clone().into_iter().collect(),
                warned: known.warned.clone().into_iter().collect(),
            });
            let order = Box::new(known.order.clone());
            inputs.push(Input::Outstanding { shard, order });
            let tiers = (0..self.ladder.tiers().len()).map(Source::Tier);
            for source in tiers.chain([Source::Tasks, Source::Commands]) {
                let lane = LaneId { shard, source };
                let first = if source == Source::Tasks { ENTERED } else { 0 };
                let (start, known) = self
                    .committed
                    .get(&lane)
                    .cloned()
                    .unwrap_or_else(|| (first, Completions::default()));
                let reader = Reader {
                    next: start,
                    run: 0,
                    paused: false,
                };
                owner.readers.insert(lane, reader);
                inputs.push(Input::Assign { lane, start, known });
            }
            let to = self.commands[shard as usize].len() as i64;
            inputs.push(Input::Standing { shard, to });
        }
        self.owner = Some(owner);
        for input in inputs {
            self.step(input);
        }
    }

    /// Does what there is to do now; whether there was anything.
    fn turn(&mut self) -> bool {
        let mut did = self.end_batch();
        did |= self.answer();
        did |= self.read();
        let now = self.time();
        let Some(owner) = &mut self.owner else {
            return did;
        };
        let is_due = owner.engine.next_wake().is_some_and(|at| at <= now.wall);
        if is_due {
            self.step(Input::Tick);
        }
        self.begin_batch() || did
    }

    /// Hands over what was settled.
    fn begin_batch(&mut self) -> bool {
        let at = self.now + self.chance.between(5, 150);
        let Some(owner) = &mut self.owner else {
            return false;
        };
        let is_due = owner.commit_at.is_some_and(|at| at <= self.now);
        if owner.batch.is_some() || !is_due {
            return false;
        }
        owner.commit_at = None;
        let commits = owner.engine.commits();
        let changes = owner.engine.changes();
        let alerts = owner.engine.alerts();
        owner.batch = Some(Batch {
            at,
            commits,
            settlements: std::mem::take(&mut owner.settled),
            changes,
            alerts,
        });
        true
    }

    /// A batch is written, or handed back.
    fn end_batch(&mut self) -> bool {
        let Some(owner) = &mut self.owner else {
            return false;
        };
        let Some(batch) = owner.batch.take_if(|batch| batch.at <= self.now) else {
            return false;
        };
        if self.chance.one_in(12) {
            let changes = batch.changes.iter();
            let changes: Vec<(i32, StateKey)> = changes
                .map(|(shard, state)| (*shard, state.key()))
                .collect();
            let all = batch.settlements.into_iter();
            let lanes = batch.commits.iter().map(|it| (it.lane, it.epoch));
            let returned = Returned {
                lanes: lanes.collect(),
                settlements: all.map(|settlement| (settlement, Fate::Again)).collect(),
                changes,
                alerts: batch.alerts,
            };
            self.step(Input::Returned(Box::new(returned)));
            return true;
        }
        self.apply(&batch);
        for commit in &batch.commits {
            self.step(Input::Committed {
                lane: commit.lane,
                epoch: commit.epoch,
                watermark: commit.watermark,
            });
        }
        true
    }

    /// What a batch says is durable.
    fn apply(&mut self, batch: &Batch) {
        let mut ends = BTreeSet::new();
        // What is replayed in the same batch was not when they were decided.
        for (_, alert) in &batch.alerts {
            self.judge.warns(alert, self.keeps);
        }
        for settlement in as_decided(&batch.settlements) {
            self.judge.settled(settlement);
            for entry in &settlement.entries {
                self.write(settlement.lane, entry, &mut ends);
            }
        }
        for (shard, state) in &batch.changes {
            self.known[*shard as usize].replay(state);
        }
        // Markers of the transaction.
        for lane in ends {
            match lane.source {
                Source::Commands => self.commands[lane.shard as usize].push(None),
                Source::Tier(_) => self.tiers.entry(lane).or_default().push(None),
                Source::Tasks => self.add_letter(lane.shard, None),
            }
        }
        for commit in &batch.commits {
            let at = (commit.watermark, commit.completions.clone());
            self.committed.insert(commit.lane, at);
        }
    }

    /// A record is durable.
    fn write(&mut self, lane: LaneId, entry: &Entry, ends: &mut BTreeSet<LaneId>) {
        match entry {
            Entry::Park { tier, to, task } => {
                let lane = LaneId {
                    shard: to.unwrap_or(lane.shard),
                    source: Source::Tier(*tier),
                };
                let appended = Timestamp::from_millis(START + self.now);
                let parked = self.tiers.entry(lane).or_default();
                parked.push(Some((appended, Task::clone(task))));
                ends.insert(lane);
            }
            Entry::Control { to, control } => {
                self.commands[*to as usize].push(Some(Control::clone(control)));
                ends.insert(LaneId {
                    shard: *to,
                    source: Source::Commands,
                });
            }
            Entry::DeadLetter { task, .. } => {
                let shard = task.origin.partition;
                let mut task = Task::clone(task);
                task.attempt += 1;
                let letter = Letter {
                    partition: shard,
                    offset: 0,
                    at: Timestamp::EPOCH,
                    task: Box::new(task),
                    ineligible: None,
                    others: Vec::new(),
                };
                self.add_letter(shard, Some(letter));
                ends.insert(LaneId {
                    shard,
                    source: Source::Tasks,
                });
            }
            Entry::State(state) => self.known[lane.shard as usize].replay(state),
            Entry::Event(_)
            | Entry::Callback(_)
            | Entry::DeliverCallback(_)
            | Entry::Deliver { .. }
            | Entry::Poison { .. }
            | Entry::Alert(_) => {}
        }
    }

    /// Calls come back, and letters are read.
    fn answer(&mut self) -> bool {
        let (now, mut inputs) = (self.now, Vec::new());
        let Some(owner) = &mut self.owner else {
            return false;
        };
        let (back, calls) = owner.calls.drain(..).partition(|(at, ..)| *at <= now);
        owner.calls = calls;
        let back: Vec<(At, u64, Arc<Task>)> = back;
        let (read, reads) = owner.reads.drain(..).partition(|(at, _)| *at <= now);
        owner.reads = reads;
        let read: Vec<(At, ReadLetters)> = read;
        for (_, ticket, _) in back {
            let is_broken = (self.broken.0..self.broken.1).contains(&now);
            let fails = is_broken || self.chance.one_in(self.fails);
            let failure = || Failure::new("http-503", "busy");
            let outcome = if fails {
                Outcome::Retryable(failure())
            } else {
                Outcome::Success
            };
            inputs.push(Input::Attempted { ticket, outcome });
        }
        for (_, read) in read {
            inputs.push(Input::Letters(self.letters_of(&read)));
        }
        let did = !inputs.is_empty();
        for input in inputs {
            self.step(input);
        }
        did
    }

    /// The letters that are asked for.
    fn letters_of(&mut self, read: &ReadLetters) -> Letters {
        let mut letters = Letters {
            number: read.number,
            ..Letters::default()
        };
        let all = (0..self.shards).map(|partition| LetterWant {
            partition,
            from: 0,
            to: Some(0),
        });
        let wants: Vec<LetterWant> = if read.wants.is_empty() {
            all.collect()
        } else {
            read.wants.clone()
        };
        for LetterWant {
            partition,
            from,
            to,
        } in wants
        {
            let stored = &self.letters[partition as usize];
            let end = stored.len() as i64;
            let to = to.unwrap_or(end).min(end);
            let most = self.chance.between(1, 30) as usize;
            let (mut next, mut count) = (from, 0);
            while next < to && count < most {
                if let Some(letter) = &stored[next as usize]
                    && let Some(letter) = asked(&read.purpose, letter)
                {
                    letters.letters.push(letter);
                    count += 1;
                }
                next += 1;
            }
            letters.slices.push(LetterSlice {
                partition,
                first: 0,
                next,
                end,
                unread: 0,
            });
        }
        letters
    }

    /// Records are read that can be.
    fn read(&mut self) -> bool {
        let lanes: Vec<LaneId> = self
            .owner
            .iter()
            .flat_map(|owner| owner.readers.keys().copied())
            .collect();
        let mut did = false;
        for lane in lanes {
            let mut last = None;
            for _ in 0..20 {
                let Some(reader) = self.owner.as_ref().and_then(|it| it.readers.get(&lane)) else {
                    break;
                };
                let Reader { next, run, paused } = *reader;
                if paused {
                    last = None;
                    break;
                }
                let position = Position {
                    lane,
                    run,
                    offset: next,
                };
                let Some(Stands(input)) = self.record(position) else {
                    break;
                };
                if let Some(reader) = self.owner.as_mut().and_then(|it| it.readers.get_mut(&lane)) {
                    reader.next += 1;
                }
                last = Some(Position {
                    offset: next + 1,
                    ..position
                });
                did = true;
                if let Some(input) = input {
                    self.step(input);
                }
            }
            // Behind the last record there may be markers.
            if let Some(position) = last {
                let is_same = self.owner.as_ref().and_then(|it| it.readers.get(&lane));
                if is_same.is_some_and(|it| !it.paused && it.next == position.offset) {
                    self.step(Input::Passed { position });
                }
            }
        }
        did
    }

    /// What stands at a position, if anything does that can be read.
    fn record(&self, position: Position) -> Option<Stands> {
        let Position { lane, offset, .. } = position;
        let at = usize::try_from(offset).ok()?;
        match lane.source {
            Source::Tasks => None,
            Source::Commands => {
                let control = self.commands[lane.shard as usize].get(at)?;
                let input = control.as_ref().map(|control| Input::Control {
                    position,
                    control: Ok(control.clone()),
                });
                Some(Stands(input))
            }
            Source::Tier(tier) => {
                let parked = self.tiers.get(&lane)?.get(at)?;
                let Some((appended, task)) = parked else {
                    return Some(Stands(None));
                };
                let readable = self.ladder.tiers()[tier].readable_at(*appended);
                (readable <= self.time().wall).then(|| {
                    Stands(Some(Input::Record {
                        position,
                        appended: *appended,
                        task: Box::new(task.clone()),
                    }))
                })
            }
        }
    }

    /// Tells the engine what happened and does what it says.
    fn step(&mut self, input: Input) {
        let now = self.time();
        let mut actions = Vec::new();
        let Some(owner) = &mut self.owner else { return };
        owner.engine.step(now, input, &mut actions);
        for action in actions {
            match action {
                Action::Dispatch { ticket, task, .. } => {
                    let back = self.now + self.chance.between(1, 300);
                    owner.calls.push((back, ticket, task));
                }
                Action::Settle(settlement) => {
                    owner.settled.push(settlement);
                    let due = self.now + 100;
                    owner.commit_at.get_or_insert(due);
                }
                Action::Pause { lane, next } => {
                    if let Some(reader) = owner.readers.get_mut(&lane) {
                        reader.paused = true;
                        reader.next = next;
                    }
                }
                Action::Resume { lane, run } => {
                    if let Some(reader) = owner.readers.get_mut(&lane) {
                        reader.paused = false;
                        reader.run = run;
                    }
                }
                Action::ReadLetters(read) => {
                    let at = self.now + self.chance.between(1, 400);
                    owner.reads.push((at, read));
                }
                Action::Drained { .. }
                | Action::Judged { .. }
                | Action::LimitPassed { .. }
                | Action::Look(_)
                | Action::Cooldown { .. }
                | Action::Switched { .. } => {}
            }
        }
        let engine = &owner.engine;
        let touches = engine.wants_fence() || engine.has_unsaved() || engine.has_alerts();
        if touches && owner.commit_at.is_none() {
            owner.commit_at = Some(self.now + 100);
        }
    }
}

// === impl Judge ===

impl Judge {
    /// A promise is broken.
    fn object(&mut self, why: String) {
        self.broken.get_or_insert(why);
    }

    /// A settlement is durable.
    fn settled(&mut self, settlement: &Settlement) {
        let campaign = campaign_of(settlement);
        for entry in &settlement.entries {
            if let Some((_, task)) = entry.parked()
                && settlement.lane.source == Source::Commands
            {
                match campaign {
                    Some(campaign) => self.replays(campaign, task),
                    None => self.object(format!("{} is replayed by nobody", task.id)),
                }
            }
            if let Some(event) = entry.event() {
                self.told(event);
            }
        }
        let alerts = settlement.entries.iter().filter_map(|entry| match entry {
            Entry::Alert(alert) if alert.rule == CAMPAIGN_STOPPED => Some(&*alert.example),
            _ => None,
        });
        let alerts: Vec<&str> = alerts.collect();
        let stops = campaign.filter(|campaign| {
            let before = self.last.get(&campaign.id).map(|before| before.state);
            // Where it stood before, it was resumed in the same round if people hear of it again.
            let is_again = before == Some(State::Stopped);
            campaign.state == State::Stopped && (!is_again || !alerts.is_empty())
        });
        let stops: Vec<&str> = stops.map(|it| &*it.id.name).into_iter().collect();
        if alerts != stops {
            self.object(format!("{stops:?} stop, and people hear of {alerts:?}"));
        }
        if let Some(campaign) = campaign {
            self.goes_on(campaign);
        }
    }

    /// People are told.
    fn warns(&mut self, alert: &Alert, keeps: Option<At>) {
        if alert.rule != DEAD_LETTERS_EXPIRE {
            return;
        }
        let (Some(first), Some(keeps)) = (alert.expiring, keeps) else {
            return self.object(format!("people are told of nothing: {alert:?}"));
        };
        let keeps = Duration::from_millis(keeps);
        let goes = |letter: &Letter| letter.at + keeps < alert.at + keeps / 10;
        let at = (first.partition, first.offset);
        let is_right = self.stands.get(&at).is_some_and(|letter| {
            let is_it = letter.task.id == alert.example && letter.at + keeps == first.at;
            is_it && goes(letter) && !self.replayed.contains_key(&at)
        });
        let all = self.stands.iter();
        let open = all.filter(|(at, letter)| {
            at.0 == first.partition && goes(letter) && !self.replayed.contains_key(at)
        });
        let open = open.count();
        if !is_right || alert.count as usize > open {
            self.object(format!("{open} letters go, and people hear of {alert:?}"));
        }
        if !self.warned.insert(first.partition) {
            self.object(format!("people are told again: {alert:?}"));
        }
    }

    /// A campaign has replayed a letter.
    fn replays(&mut self, campaign: &Campaign, task: &Task) {
        let Some(replay) = &task.replay else {
            return self.object(format!("{} bears no campaign", task.id));
        };
        let key = (Arc::clone(&task.id), replay.times - 1);
        let Some(at) = self.letters.get(&key).copied() else {
            return self.object(format!("{key:?} has no letter"));
        };
        if let Some(other) = self.replayed.insert(at, campaign.id.clone()) {
            self.object(format!(
                "{at:?} is replayed twice: by {other} and {}",
                campaign.id
            ));
        }
        if !matches!(campaign.state, State::Running | State::Done) {
            let word = campaign.state.word();
            self.object(format!(
                "{at:?} is replayed while {} is {word}",
                campaign.id
            ));
        }
        let mut earlier = self.last.range(..&campaign.id);
        let claims = |other: &Campaign| {
            let letter = self.stands.get(&at);
            letter.is_some_and(|letter| {
                let replay = letter.task.replay.as_deref();
                // Until it has said where partitions end, what has come since is not told apart.
                let is_known = !other.parts.is_empty();
                is_known && other.claims(at.0, at.1, replay) && means(&other.spec, letter)
            })
        };
        let claimant = earlier.find(|(_, other)| claims(other));
        if let Some((other, _)) = claimant {
            let why = format!("{at:?} is replayed by {}, and is {other}'s", campaign.id);
            self.object(why);
        }
        let last = self.order.insert((campaign.id.clone(), at.0), at.1);
        if last.is_some_and(|last| last >= at.1) {
            self.object(format!("{at:?} is replayed behind {last:?}"));
        }
        self.out.insert(Arc::clone(&task.id), campaign.id.clone());
    }

    /// What is told of a task.
    fn told(&mut self, event: &retide_core::Event) {
        let Some(id) = self.out.get(&event.id).cloned() else {
            return;
        };
        let said = self.said.entry(id).or_default();
        match &event.transition {
            Transition::Failed { .. } | Transition::Held { .. } => {
                *said = said.and(Said::came_back(true));
            }
            Transition::Ended {
                terminal, reason, ..
            } => {
                *said = said.and(Said::end(*terminal));
                let is_of_call = matches!(
                    reason,
                    None | Some(Reason::AttemptsExhausted | Reason::Rejected)
                );
                if is_of_call && *terminal != Terminal::Cancelled {
                    let failed = *terminal != Terminal::Delivered;
                    *said = said.and(Said::came_back(failed));
                }
                self.out.remove(&event.id);
            }
            Transition::Parked { .. }
            | Transition::Hopped { .. }
            | Transition::Deferred { .. }
            | Transition::Rescheduled { .. }
            | Transition::Replayed { .. }
            | Transition::TooLate { .. }
            | Transition::Duplicate { .. }
            | Transition::Pending { .. } => {}
        }
    }

    /// A record of a campaign is durable.
    fn goes_on(&mut self, campaign: &Campaign) {
        let before = self.last.insert(campaign.id.clone(), campaign.clone());
        let said = campaign.counts.said;
        let fails = said.came_back >= 60 && said.failed == said.came_back;
        let is_resumed = self.resumed.contains(&campaign.id.name);
        if fails && !is_resumed && campaign.state == State::Running {
            self.object(format!(
                "{} goes on although all fails: {said:?}",
                campaign.id
            ));
        }
        let Some(before) = before else { return };
        for part in &before.parts {
            let mut parts = campaign.parts.iter();
            let now = parts.find(|now| now.partition == part.partition);
            if now.is_none_or(|now| now.next < part.next || now.to != part.to) {
                self.object(format!("{} goes back: {part:?} to {now:?}", campaign.id));
            }
        }
        if campaign.counts.replayed < before.counts.replayed {
            self.object(format!("{} has replayed less than before", campaign.id));
        }
    }

    /// Everything has come to its end.
    fn finish(&mut self, letters: &[Vec<Option<Letter>>]) {
        if self.broken.is_some() {
            return;
        }
        for (id, campaign) in std::mem::take(&mut self.last) {
            if !campaign.is_over() {
                let word = campaign.state.word();
                let said = self.said.get(&id);
                return self.object(format!(
                    "{id} is {word} at the end, out {:?}, said {said:?}: {campaign:?}",
                    self.out
                ));
            }
            let said = self.said.get(&id).copied().unwrap_or_default();
            let replayed = self.replayed.values().filter(|by| **by == id).count() as u64;
            if campaign.counts.replayed != replayed || campaign.counts.said != said {
                return self.object(format!(
                    "{id} has replayed {replayed} and heard {said:?}: {campaign:?}"
                ));
            }
            let is_in = |letter: &&Letter| {
                let mut parts = campaign.parts.iter();
                let part = parts.find(|part| part.partition == letter.partition);
                part.is_some_and(|part| letter.offset < part.to) && means(&campaign.spec, letter)
            };
            let meant = letters.iter().flatten().flatten().filter(is_in).count() as u64;
            let matched = campaign.counts.matched();
            let is_whole = campaign.state == State::Done;
            let is_right = matched == meant || (campaign.spec.include_new && matched > meant);
            if is_whole && !is_right {
                return self.object(format!("{id} means {meant} letters: {campaign:?}"));
            }
        }
        let left = self.out.keys().next().cloned();
        if let Some(left) = left {
            self.object(format!("{left} was replayed and has not ended"));
        }
    }
}

/// A letter of a task that entered there.
fn letter(
    (partition, number): (i32, i64),
    id: &Arc<str>,
    scene: &str,
    key: &'static str,
    kind: Kind,
) -> Letter {
    let at = Timestamp::from_millis(START - 1_000_000);
    let task = Task {
        id: Arc::clone(id),
        scene: scene.into(),
        kind,
        attempt: 4,
        due: at,
        deferral: None,
        first_failed_at: at,
        deadline: None,
        origin: Origin {
            topic: "retry.tasks".into(),
            partition,
            offset: number,
        },
        failure: Some(Failure::new("http-503", "busy")),
        throttled: 0,
        exhausted: None,
        hops: 0,
        held_since: None,
        pending_since: None,
        stopped: None,
        commanded: None,
        replay: None,
        record: Record {
            key: Some(key.into()),
            ..Record::default()
        },
    };
    Letter {
        partition,
        offset: number,
        at,
        task: Box::new(task),
        ineligible: None,
        others: Vec::new(),
    }
}

/// A letter as it is told, if it is meant.
fn asked(purpose: &LetterPurpose, letter: &Letter) -> Option<Letter> {
    let LetterPurpose::Replay { spec, others } = purpose else {
        return Some(letter.clone());
    };
    means(spec, letter).then(|| {
        let others = others.iter().filter(|(_, spec)| means(spec, letter));
        Letter {
            others: others.map(|(id, _)| id.clone()).collect(),
            ..letter.clone()
        }
    })
}

/// What a batch settles, with the campaigns in it as they have gone on: it settles each of them where its record before stands.
fn as_decided(settlements: &[Settlement]) -> Vec<&Settlement> {
    let mut settlements: Vec<&Settlement> = settlements.iter().collect();
    let is_campaign = |settlement: &&Settlement| campaign_of(settlement).is_some();
    let mut campaigns: Vec<&Settlement> = settlements.iter().copied().filter(is_campaign).collect();
    campaigns.sort_by_key(|settlement| campaign_of(settlement).map(|campaign| campaign.at));
    let places = settlements.iter_mut().filter(|it| is_campaign(it));
    for (place, campaign) in places.zip(campaigns) {
        *place = campaign;
    }
    settlements
}

/// The record of a campaign that a settlement writes, if it writes one.
fn campaign_of(settlement: &Settlement) -> Option<&Campaign> {
    settlement.entries.iter().find_map(|entry| {
        let Entry::Control { control, .. } = entry else {
            return None;
        };
        let Control::Campaign(campaign) = &**control else {
            return None;
        };
        Some(&**campaign)
    })
}

/// Whether a campaign means a letter, as these histories draw them.
fn means(spec: &Spec, letter: &Letter) -> bool {
    let selector = spec.selector.as_ref();
    selector.is_none_or(|selector| {
        let parts = selector.parts();
        let ids = parts.ids.is_empty() || parts.ids.contains(&letter.task.id);
        ids && (parts.scenes.is_empty() || parts.scenes.contains(&letter.task.scene))
    })
}
