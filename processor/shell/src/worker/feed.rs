//! The feed: what a worker learns of its shards, and the records of them.
//!
//! One OS thread is the worker's member of the group ([`super::group`]). Two more read, each with a consumer of its own that joins nothing
//! and is told by the drive what to read: one reads the retry topic, one the tiers. So what is new on the retry topic does not wait behind
//! what is due in tiers, neither in the client nor on the connection: with one consumer for all, it was read seconds late while a million
//! tasks came due at once. Nothing user-written runs here, and nothing is decided: it decodes nothing and keeps no offsets. Invariant:
//! records of a lane come in order, each with the number of the assignment that it was read for.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::mem;
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded, never};
use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Message};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use tracing::warn;

use retide_avro::headers::Headless;
use retide_core::Position;
use retide_core::completions::{Binding, Completions};
use retide_core::saved::Saved;
use retide_core::step::Letters;
use retide_core::{Alert, LaneId, Record, Source, Timestamp};
use retide_kafka::client::{Kept, LoggingContext, ask_often, is_of_group};
use retide_kafka::failure::Failure;
use retide_kafka::offsets::{self, Edge};
use retide_kafka::record::received;
use retide_kafka::scan;
use retide_kafka::topics::Topics;
use retide_native as native;

use crate::event::ConsumerReported;
use crate::identity::Identity;
use crate::metrics::Metrics;
use crate::suspects::MOST_DEATHS;
use crate::threads::{Ended, Hand, Threads};
use crate::worker::group::{Client, Member};
use crate::worker::ids::Ids;
use crate::worker::letters::{Asked, LetterReader, Wants};
use crate::worker::order::Written;
use crate::worker::restore::{Gap, Gone};
use crate::worker::search::Searched;
use crate::worker::sweep::{Asks, Found, Sweep, Sweeping};

/// What the group tells the drive.
#[derive(Debug)]
pub enum Reading {
    /// These lanes are ours, and this was written of their shards.
    Assigned(Vec<Assignment>, Vec<(i32, Written)>),
    /// These shards are to be given away.
    Revoked {
        /// The shards.
        shards: Vec<i32>,
        /// Whether they are gone already, so that nothing more can be committed for them.
        lost: bool,
        /// Dropped or sent to when the drive has let go of them. Until then the group waits, and others work on.
        done: Sender<()>,
    },
    /// Records of our lanes were gone before they were read.
    Gaps(Vec<Gap>),
    /// The group has so many shards now.
    Shards(NonZeroU32),
    /// A topic that was read does not exist any more, or is another one.
    Deleted(Deleted),
    /// People must know this of these shards.
    Alerts(Vec<(i32, Alert)>),
    /// This came of the search that the drive has asked for.
    Searched(Searched),
    /// The consumer cannot go on.
    Failed(KafkaError),
}

/// A topic that was deleted under a worker that reads it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Deleted {
    /// Which one.
    pub source: Source,
    /// Where its partitions ended when they were last seen.
    pub ends: BTreeMap<i32, i64>,
}

/// A record, as it stands on the topic.
#[derive(Clone, Debug)]
pub struct Read {
    /// The number of the assignment that it was read for.
    pub assignment: u64,
    /// Where it was read.
    pub position: Position,
    /// When the broker appended it, or what its producer said if the topic does not keep append times; the epoch if it bears no time.
    pub appended: Timestamp,
    /// The record, whole or as far as it could be read.
    pub record: Result<Record, Headless>,
}

/// What was read, in order.
#[derive(Clone, Debug, Default)]
pub struct Reads {
    /// Records; at most [`BATCH`].
    pub records: Vec<Read>,
    /// Lanes of which, with these records, nothing is left to be read below an offset.
    pub passed: Vec<Passed>,
}

/// Nothing of a lane is left to be read below an offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Passed {
    /// The number of the assignment.
    pub assignment: u64,
    /// The lane, its run, and the offset.
    pub position: Position,
}

/// A lane that was assigned, and where its last commit left it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Assignment {
    /// The lane.
    pub lane: LaneId,
    /// The next offset to read.
    pub start: i64,
    /// One past the last one that others have written before the lane was ours.
    pub end: i64,
    /// What is complete above it.
    pub known: Completions,
    /// What its shard has saved up of rates; of the retry topic only.
    pub saved: Saved,
    /// What the metadata of its commits is bound to.
    pub binding: Binding,
}

/// What the drive asks of the feed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// Read lanes.
    Read {
        /// The number to give with each record.
        assignment: u64,
        /// The lanes, each with the first offset wanted.
        lanes: Vec<(LaneId, Offset)>,
        /// The lanes of which it is waited for that they are read up to an offset.
        awaited: Vec<(LaneId, i64)>,
    },
    /// Read nothing more of these shards.
    Leave {
        /// The shards.
        shards: Vec<i32>,
    },
    /// Stop reading a lane.
    Pause {
        /// The lane.
        lane: LaneId,
    },
    /// Read a lane from `next` on.
    Resume {
        /// The lane.
        lane: LaneId,
        /// The run to give with each record.
        run: u64,
        /// The first offset wanted.
        next: i64,
    },
}

/// The feed as the drive sees it. Dropping it leaves the group; the drive has to have let go of every shard.
pub struct Feed {
    /// What the group says.
    pub readings: Receiver<Reading>,
    /// What was read of the retry topic, and of that of commands.
    pub tasks: Receiver<Reads>,
    /// What was read of the tiers.
    pub tiers: Receiver<Reads>,
    /// The consumer that is the member of the group, for group metadata and committed offsets.
    pub consumer: Arc<Client>,
    /// What was found in tiers that commands are about.
    pub(crate) found: Receiver<Vec<Found>>,
    /// What was read of the dead letters that campaigns replay.
    pub(crate) letters: Receiver<Letters>,
    /// To the thread that looks for it.
    asks: Asks,
    /// To the thread that reads those.
    wants: Wants,
    /// To the reader of the retry topic, and to that of the tiers.
    requests: [Sender<Request>; 2],
    /// Set to leave the group.
    stop: Arc<AtomicBool>,
    /// The threads, until they are waited for; the last ones look through tiers, and read dead letters.
    threads: Vec<JoinHandle<()>>,
}

/// Most records that go to the drive at once: enough that the hand-over costs nothing, few enough that no timer waits for them.
pub const BATCH: usize = 64;

/// Readings on their way to the drive: enough to bridge a commit, few beside what lanes hold.
const BUFFER: usize = 32;

/// Requests on their way to the feed: a drive never has more lanes to pause at once.
const REQUESTS: usize = 1_024;

/// Longest wait for where lanes begin and end.
const EDGES: Duration = Duration::from_secs(2);

/// Longest wait for what the cluster says of topics.
const REFRESH: Duration = Duration::from_millis(500);

/// Time between two looks at how far lanes were read: people look at lags less often.
const LOOK: Duration = Duration::from_secs(1);

/// How long a lane is looked at after each poll that is waited for: what takes longer is not waited for by the millisecond.
const AWAITED: Duration = Duration::from_secs(5);

/// Longest wait for a record, after which requests are looked at again.
const POLL: Duration = Duration::from_millis(10);

// === impl Feed ===

impl Feed {
    /// Joins the group of `config` and starts to read.
    ///
    /// # Errors
    /// If the configuration is refused, or a thread cannot be started.
    pub fn start(
        config: &ClientConfig,
        identity: &Identity,
        topics: &Arc<Topics>,
        metrics: &Arc<Metrics>,
        threads: &Threads,
    ) -> Result<Self, KafkaError> {
        let (to_drive, readings) = bounded(BUFFER);
        let stop = Arc::new(AtomicBool::new(false));
        let name = &identity.name;
        let around = Around {
            topics,
            metrics,
            threads,
            stop: &stop,
            readings: &to_drive,
            anew: &Arc::default(),
            ids: &Arc::new(Ids::new(topics)),
        };
        // Before the member joins: what it is given is to be read at once.
        let (tasks, to_tasks, tasks_thread) =
            Reader::start(config, &format!("{name}-tasks"), around)?;
        let (tiers, to_tiers, tiers_thread) =
            Reader::start(config, &format!("{name}-tiers"), around)?;
        let Sweep {
            asks,
            found,
            thread: sweeping,
        } = Sweep::start(config, &format!("{name}-sweep"), around)?;
        let LetterReader {
            wants,
            letters,
            thread: letters_thread,
        } = LetterReader::start(config, &format!("{name}-letters"), around)?;
        let Member { consumer, threads } = Member::join(config, identity, around)?;
        let [hearing, restoring] = threads;
        Ok(Self {
            readings,
            tasks,
            tiers,
            consumer,
            requests: [to_tasks, to_tiers],
            stop,
            found,
            asks,
            letters,
            wants,
            threads: vec![
                tasks_thread,
                tiers_thread,
                hearing,
                restoring,
                sweeping,
                letters_thread,
            ],
        })
    }

    /// Whether one of its threads has ended, so that nothing will be read any more.
    pub fn has_ended(&self) -> bool {
        self.threads.is_empty() || self.threads.iter().any(JoinHandle::is_finished)
    }

    /// Says that whoever works with it turns: otherwise the group is to think that it is dead, which it may be.
    pub fn turned(&self) {
        self.consumer.context().turned();
    }

    /// So many bytes may hold which ids may be where in tiers.
    pub(crate) fn limit_ids(&self, most: usize) {
        self.consumer.context().ids().limit(most);
    }

    /// Has tiers looked through; what is found comes as [`Self::found`].
    pub(crate) fn sweep(&self, sweeping: Sweeping) {
        self.asks.look(sweeping);
        self.wake_last();
    }

    /// Has dead letters read, which come as [`Self::letters`].
    pub(crate) fn read_letters(&self, asked: Asked) {
        self.wants.ask(asked);
        self.wake_last();
    }

    /// Wakes the threads that wait until they are asked.
    fn wake_last(&self) {
        for thread in self.threads.iter().rev().take(2) {
            thread.thread().unpark();
        }
    }

    /// Asks something of whoever reads what it is about.
    pub fn request(&self, request: Request) {
        let [tasks, tiers] = &self.requests;
        // Who has ended reads nothing anyway.
        match request {
            Request::Read {
                assignment,
                lanes,
                awaited,
            } => {
                let is_tasks =
                    |(lane, _): &(LaneId, Offset)| !matches!(lane.source, Source::Tier(_));
                let (of_tasks, of_tiers) = lanes.into_iter().partition(is_tasks);
                for (reader, lanes, awaited) in
                    [(tasks, of_tasks, awaited), (tiers, of_tiers, Vec::new())]
                {
                    let _ = reader.send(Request::Read {
                        assignment,
                        lanes,
                        awaited,
                    });
                }
            }
            Request::Leave { shards } => {
                self.asks.leave(&shards);
                self.wants.leave(&shards);
                for reader in [tasks, tiers] {
                    let shards = shards.clone();
                    let _ = reader.send(Request::Leave { shards });
                }
            }
            Request::Pause { lane } | Request::Resume { lane, .. } => {
                let reader = match lane.source {
                    Source::Tasks | Source::Commands => tasks,
                    Source::Tier(_) => tiers,
                };
                let _ = reader.send(request);
            }
        }
    }
}

impl Drop for Feed {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        let readings = mem::replace(&mut self.readings, never());
        self.tasks = never();
        self.tiers = never();
        self.found = never();
        self.letters = never();
        for thread in &self.threads {
            thread.thread().unpark();
        }
        for thread in mem::take(&mut self.threads) {
            // A channel keeps what is in it beyond its last receiver: a revocation would wait for ever for somebody to drop its `done`.
            while !thread.is_finished() {
                let _ = readings.recv_timeout(POLL);
            }
            // Its panic was told.
            let _ = thread.join();
        }
    }
}

/// What is around the threads of a feed.
#[derive(Clone, Copy)]
pub(crate) struct Around<'a> {
    /// The topics.
    pub(crate) topics: &'a Arc<Topics>,
    /// Where events are counted.
    pub(crate) metrics: &'a Arc<Metrics>,
    /// The threads of the process.
    pub(crate) threads: &'a Threads,
    /// Set to leave the group.
    pub(crate) stop: &'a Arc<AtomicBool>,
    /// To the drive.
    pub(crate) readings: &'a Sender<Reading>,
    /// Shards that are to be begun anew, since a topic of theirs was made anew.
    pub(crate) anew: &'a Arc<Mutex<BTreeSet<i32>>>,
    /// What is known of where ids are.
    pub(crate) ids: &'a Arc<Ids>,
}

/// The state of a thread that reads.
struct Reader {
    /// The consumer.
    consumer: Kept<BaseConsumer<LoggingContext>>,
    /// The topics.
    topics: Arc<Topics>,
    /// The lanes that are read.
    lanes: HashMap<LaneId, Way>,
    /// What the last record was read from.
    last: Source,
    /// The record being read.
    hand: Arc<Hand>,
    /// The threads of the process, which know at which records processes have died.
    threads: Threads,
    /// What the drive asked for and could not be done yet.
    failed: Vec<Request>,
    /// Whether the log does not have what is to be read next of some lane: the client does not say of which, and reads nothing of it.
    lost: bool,
    /// The gaps that the drive is to be told of.
    gaps: Vec<Gap>,
    /// The lanes that were read beyond what the drive has records of.
    passed: Vec<Passed>,
    /// When to look for such lanes again.
    look_at: Instant,
    /// The lanes of which it is waited for that they are read up to an offset, and until when: the look is at once.
    awaited: (Vec<(LaneId, i64)>, Instant),
    /// The shards that are to be begun anew.
    anew: Arc<Mutex<BTreeSet<i32>>>,
    /// Records, to the drive.
    records: Sender<Reads>,
    /// What went wrong, to the drive.
    readings: Sender<Reading>,
    /// From the drive.
    requests: Receiver<Request>,
    /// Where events are counted.
    metrics: Arc<Metrics>,
}

/// How a lane is read.
#[derive(Clone, Copy, Debug)]
struct Way {
    /// The number of the assignment.
    assignment: u64,
    /// The run of the lane in it.
    run: u64,
    /// Where the client was told to read last.
    from: Offset,
    /// How far it had read when the drive was last told, or where it was to begin: what is beyond that is news.
    told: i64,
    /// Whether it is to read nothing for now.
    paused: bool,
}

/// What the drive has of a thread that reads: records, the way to ask, and the thread.
type Started = (Receiver<Reads>, Sender<Request>, JoinHandle<()>);

// === impl Reader ===

impl Reader {
    /// Starts to read, for now nothing. The thread is called `name`.
    fn start(config: &ClientConfig, name: &str, around: Around<'_>) -> Result<Started, KafkaError> {
        let mut config = config.clone();
        for (key, value) in [
            ("enable.auto.commit", "false"),
            ("enable.auto.offset.store", "false"),
            ("auto.offset.reset", "error"),
            ("isolation.level", "read_committed"),
            // One queue for all partitions: what is prefetched stays within this, however many lanes there are, and so does one fetch. This is
            // some 60 ms of work on small tasks, 16 MiB was four times as much and no faster.
            ("queued.max.messages.kbytes", "4096"),
        ] {
            config.set(key, value);
        }
        ask_often(&mut config);
        let (to_drive, records) = bounded(BUFFER);
        let (requests, from_drive) = bounded(REQUESTS);
        let reader = Self {
            consumer: Kept::make(&config, |config| config.create_with_context(LoggingContext))?,
            topics: Arc::clone(around.topics),
            lanes: HashMap::new(),
            last: Source::Tasks,
            hand: Hand::new(around.topics),
            threads: around.threads.clone(),
            failed: Vec::new(),
            lost: false,
            gaps: Vec::new(),
            passed: Vec::new(),
            look_at: Instant::now(),
            awaited: (Vec::new(), Instant::now()),
            anew: Arc::clone(around.anew),
            records: to_drive,
            readings: around.readings.clone(),
            requests: from_drive,
            metrics: Arc::clone(around.metrics),
        };
        let stop = Arc::clone(around.stop);
        let body = move || {
            reader.threads.works_with(&reader.hand);
            reader.run(&stop);
            ended(&stop)
        };
        let thread = around
            .threads
            .spawn(name, body)
            .map_err(|error| KafkaError::ClientCreation(error.to_string()))?;
        Ok((records, requests, thread))
    }

    /// Polls until told to stop.
    fn run(mut self, stop: &AtomicBool) {
        while !stop.load(Ordering::Acquire) {
            self.follow_all();
            let (records, failed) = self.collect();
            self.look_how_far();
            if records.is_empty() {
                self.consumer.hold();
            }
            if self.lost && !self.go_on_behind_gaps() {
                // What was read before is told first.
                thread::sleep(POLL);
            }
            let passed = mem::take(&mut self.passed);
            let is_news = !records.is_empty() || !passed.is_empty();
            if is_news && self.records.send(Reads { records, passed }).is_err() {
                return;
            }
            let gaps = mem::take(&mut self.gaps);
            let gaps = (!gaps.is_empty()).then_some(Reading::Gaps(gaps));
            for reading in gaps.into_iter().chain(failed) {
                if self.readings.send(reading).is_err() {
                    return;
                }
            }
        }
    }

    /// Reads on behind what is gone, of all lanes that have lost something; false if it cannot be found out yet which.
    fn go_on_behind_gaps(&mut self) -> bool {
        let name = |lane: &LaneId| &**self.topics.name(lane.source);
        let ask = |edge| {
            let lanes = self.lanes.keys().map(|lane| (name(lane), lane.shard));
            offsets::edges(&self.consumer, lanes, edge, EDGES)
        };
        let (Ok(first), Ok(end), Ok(positions)) =
            (ask(Edge::First), ask(Edge::End), self.consumer.position())
        else {
            return false;
        };
        let mut starts = TopicPartitionList::new();
        let mut paused = Vec::new();
        let mut gaps = Vec::new();
        let mut anew = BTreeSet::new();
        for (lane, run) in &mut self.lanes {
            let topic = self.topics.name(lane.source);
            let at = (topic.to_string(), lane.shard);
            // One that has no leader, or is deleted, keeps nobody waiting: what is gone of it is heard of again.
            let (first, end) = match (first.get(&at), end.get(&at)) {
                (Some(first), Some(end)) => (*first, *end),
                _ => (0, i64::MAX),
            };
            let next = match (position(&positions, topic, lane.shard), run.from) {
                (Some(next), _) | (None, Offset::Offset(next)) => next,
                (None, _) => first,
            };
            let to = next.max(first);
            if next > end {
                // Its offsets begin anew: so must the shard, which is asked for and told of as if it had just been given out.
                anew.insert(lane.shard);
            } else if to > next {
                gaps.push(Gap {
                    topic: Arc::clone(topic),
                    lane: *lane,
                    from: next,
                    to,
                    what: Gone::Deleted,
                });
                self.passed.push(run.passed(*lane, to));
            }
            run.from = Offset::Offset(to);
            run.told = to;
            if run.paused {
                paused.push(*lane);
            }
            if starts
                .add_partition_offset(topic, lane.shard, run.from)
                .is_err()
            {
                return false;
            }
        }
        // All of them: the client has stopped reading those of which it has said nothing else.
        let all = self.partitions(self.lanes.keys().copied());
        let paused = self.partitions(paused);
        let done = self
            .consumer
            .incremental_unassign(&all)
            .and_then(|()| scan::read_on(&self.consumer, &starts))
            .and_then(|()| self.consumer.resume(&starts))
            .and_then(|()| self.consumer.pause(&paused));
        if let Err(error) = done {
            warn!(%error, "lanes with gaps not assigned anew, trying again");
            return false;
        }
        self.begin_elsewhere(|_| true);
        self.gaps.extend(gaps);
        if !anew.is_empty() {
            let mut all = self.anew.lock().unwrap_or_else(PoisonError::into_inner);
            all.extend(anew);
        }
        self.lost = false;
        true
    }

    /// Looks which lanes were read beyond their last records, now and then.
    ///
    /// The client hands markers of transactions to nobody, but it keeps them in order with the records, and moves its position behind them
    /// as it comes to them. Without that, committed offsets would stay before the marker of the last transaction, and every tool would
    /// show a lag where there is nothing.
    fn look_how_far(&mut self) {
        let now = Instant::now();
        if now < self.look_at && !self.is_awaited(now) {
            return;
        }
        self.look_at = now + LOOK;
        let Ok(positions) = self.consumer.position() else {
            return;
        };
        for (lane, way) in self.lanes.iter_mut().filter(|(_, way)| !way.paused) {
            let topic = self.topics.name(lane.source);
            if let Some(offset) = position(&positions, topic, lane.shard)
                && offset > way.told
            {
                way.told = offset;
                self.passed.push(way.passed(*lane, offset));
            }
        }
    }

    /// Whether a lane is not read as far as that is waited for.
    fn is_awaited(&mut self, now: Instant) -> bool {
        let (awaited, until) = &mut self.awaited;
        if awaited.is_empty() {
            return false;
        }
        let lanes = &self.lanes;
        awaited.retain(|(lane, to)| lanes.get(lane).is_some_and(|way| way.told < *to));
        if now >= *until {
            awaited.clear();
        }
        !awaited.is_empty()
    }

    /// These lanes are to be read from elsewhere. The client forgets where it was, and has no position until it has read something; should
    /// it still have the one of before, that says nothing of what it reads now.
    fn begin_elsewhere(&mut self, is_one: impl Fn(&LaneId) -> bool) {
        let Ok(positions) = self.consumer.position() else {
            return;
        };
        for (lane, way) in self.lanes.iter_mut().filter(|(lane, _)| is_one(lane)) {
            let topic = self.topics.name(lane.source);
            let before = position(&positions, topic, lane.shard);
            way.told = way.told.max(before.unwrap_or(way.told));
        }
    }

    /// Polls until there is nothing, enough, or a failure.
    fn collect(&mut self) -> (Vec<Read>, Option<Reading>) {
        let mut records = Vec::new();
        let mut wait = POLL;
        while records.len() < BATCH {
            match self.consumer.poll(wait) {
                None => break,
                Some(Ok(message)) => {
                    let with = (&*self.hand, &self.threads);
                    let read = read(&message, &self.topics, &mut self.last, &self.lanes, with);
                    records.extend(read);
                }
                Some(Err(error)) => {
                    self.lost |= is_gone(&error);
                    if let Some(failed) = failure(error, &self.metrics) {
                        return (records, Some(failed));
                    }
                }
            }
            wait = Duration::ZERO;
        }
        (records, None)
    }

    /// Does everything the drive has asked for. What fails is tried again after each poll, as long as the lane is read.
    fn follow_all(&mut self) {
        let mut requests = mem::take(&mut self.failed);
        let old = requests.len();
        requests.extend(self.requests.try_iter());
        for (number, request) in requests.into_iter().enumerate() {
            let Err(error) = self.follow(&request) else {
                continue;
            };
            if number >= old {
                warn!(%error, ?request, "lanes not followed, trying again");
            }
            self.failed.push(request);
        }
    }

    /// Does what the drive asks.
    fn follow(&mut self, request: &Request) -> Result<(), KafkaError> {
        match request {
            Request::Read {
                assignment,
                lanes,
                awaited,
            } => {
                let mut starts = TopicPartitionList::with_capacity(lanes.len());
                for (lane, start) in lanes {
                    let topic = self.topics.name(lane.source);
                    starts.add_partition_offset(topic, lane.shard, *start)?;
                }
                scan::read_on(&self.consumer, &starts)?;
                let is_read = |source| self.lanes.keys().any(|lane| lane.source == source);
                if !lanes.iter().all(|(lane, _)| is_read(lane.source)) {
                    // Without an answer it finds the topics by itself, later.
                    let _ = native::topics::refresh(self.consumer.client(), REFRESH);
                }
                for (lane, from) in lanes {
                    let way = Way {
                        assignment: *assignment,
                        run: 0,
                        from: *from,
                        told: from.to_raw().unwrap_or_default(),
                        paused: false,
                    };
                    self.lanes.insert(*lane, way);
                }
                self.awaited.0.extend(awaited);
                self.awaited.1 = Instant::now() + AWAITED;
                self.begin_elsewhere(|lane| lanes.iter().any(|(other, _)| other == lane));
                // The client keeps a lane paused that was paused before it went away.
                self.consumer.resume(&starts)
            }
            Request::Leave { shards } => {
                let is_gone = |lane: &LaneId| shards.contains(&lane.shard);
                let gone = self.lanes.keys().filter(|lane| is_gone(lane));
                let gone = self.partitions(gone.copied());
                self.lanes.retain(|lane, _| !is_gone(lane));
                self.consumer.incremental_unassign(&gone)
            }
            Request::Pause { lane } | Request::Resume { lane, .. }
                if !self.lanes.contains_key(lane) =>
            {
                // It has just been given away.
                Ok(())
            }
            Request::Pause { lane } => {
                if let Some(known) = self.lanes.get_mut(lane) {
                    known.paused = true;
                }
                self.consumer.pause(&self.partitions([*lane]))
            }
            Request::Resume { lane, run, next } => {
                let topic = self.topics.name(lane.source);
                self.consumer.seek(
                    topic,
                    lane.shard,
                    Offset::Offset(*next),
                    Duration::from_secs(5),
                )?;
                if let Some(known) = self.lanes.get_mut(lane) {
                    known.run = *run;
                    known.from = Offset::Offset(*next);
                    known.told = *next;
                    known.paused = false;
                }
                self.begin_elsewhere(|other| other == lane);
                self.consumer.resume(&self.partitions([*lane]))
            }
        }
    }

    /// Lanes as the client names them.
    fn partitions(&self, lanes: impl IntoIterator<Item = LaneId>) -> TopicPartitionList {
        let mut list = TopicPartitionList::new();
        for lane in lanes {
            list.add_partition(self.topics.name(lane.source), lane.shard);
        }
        list
    }
}

// === impl Way ===

impl Way {
    /// What the drive is told of a lane that was read up to `offset`.
    const fn passed(&self, lane: LaneId, offset: i64) -> Passed {
        Passed {
            assignment: self.assignment,
            position: Position {
                lane,
                run: self.run,
                offset,
            },
        }
    }
}

/// Where the client has come to in a partition, if it has read anything of it since it was told where to begin.
fn position(positions: &TopicPartitionList, topic: &str, partition: i32) -> Option<i64> {
    match positions.find_partition(topic, partition)?.offset() {
        Offset::Offset(offset) => Some(offset),
        _ => None,
    }
}

/// A record as the drive wants it, if its lane is read; `last` is the topic of the last one.
fn read(
    message: &BorrowedMessage<'_>,
    topics: &Topics,
    last: &mut Source,
    lanes: &HashMap<LaneId, Way>,
    (hand, threads): (&Hand, &Threads),
) -> Option<Read> {
    let topic = message.topic();
    // Records come in bundles from one topic.
    if **topics.name(*last) != *topic {
        *last = topics.source(topic)?;
    }
    let lane = LaneId {
        shard: message.partition(),
        source: *last,
    };
    let suspects = threads.suspects();
    let deaths = suspects.deaths(topic, lane.shard, message.offset());
    if deaths == 0 {
        hand.take(lane, message.offset());
    }
    let Way {
        assignment, run, ..
    } = *lanes.get(&lane)?;
    let millis = message.timestamp().to_millis().unwrap_or_default();
    Some(Read {
        assignment,
        position: Position {
            lane,
            run,
            offset: message.offset(),
        },
        appended: Timestamp::from_millis(u64::try_from(millis).unwrap_or_default()),
        // Who died last may have died of its headers.
        record: if deaths > MOST_DEATHS {
            Ok(Record::default())
        } else {
            received(message)
        },
    })
}

/// How a thread of the feed has ended.
pub(crate) fn ended(stop: &AtomicBool) -> Ended {
    if stop.load(Ordering::Acquire) {
        Ended::Told
    } else {
        Ended::Early("nobody takes what it reads".to_owned())
    }
}

/// Whether an error says that the log does not have what is to be read next.
fn is_gone(error: &KafkaError) -> bool {
    error.rdkafka_error_code() == Some(RDKafkaErrorCode::AutoOffsetReset)
}

/// What an error of the consumer means to the drive, if it is more than passing.
pub(crate) fn failure(error: KafkaError, metrics: &Metrics) -> Option<Reading> {
    match Failure::of(&error) {
        Failure::Fatal | Failure::Fenced => return Some(Reading::Failed(error)),
        Failure::Lasting if is_of_group(&error) => return Some(Reading::Failed(error)),
        // What may not be read stands still alone, and a login may be mended while workers wait.
        Failure::Lasting | Failure::Passing => {}
    }
    ConsumerReported { error: &error }.emit(metrics);
    None
}
