//! The sweep: looks through tiers, beside the lanes, for parked tasks that commands are about.
//!
//! Of what names ids, only the ranges of offsets are read that may hold them, as far as [`Ids`] tells; what it does not know yet, it learns
//! while this reads. A thread of its own with clients of its own, so that millions of parked tasks that are looked at keep nobody waiting. Not what is done
//! with what is found: the engine asks again whether a command is about a task, and takes it. Invariants: all that was committed to a tier
//! when a look began is looked at, from where its lane was; what is said of a lane is in order, and behind what was found below it; what is
//! on its way to the drive is bounded, in records and in bytes.

use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque};
use std::mem;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, SendTimeoutError, Sender, bounded};
use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Message};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use tracing::debug;

use retide_avro::headers::{self, ID, SCENE};
use retide_core::control::Command;
use retide_core::ids::{Block, MOST, Wanted, hash};
use retide_core::selector::{Parts, Selector};
use retide_core::step::Look;
use retide_core::{LaneId, Origin, Source, Task};
use retide_kafka::client::{Kept, LoggingContext, is_of_group};
use retide_kafka::failure::Failure;
use retide_kafka::offsets::{self, Edge, Offsets};
use retide_kafka::record::received;
use retide_kafka::scan;
use retide_kafka::topics::Topics;
use retide_native::positions;

use crate::metrics::Metrics;
use crate::threads::{Hand, Threads};
use crate::trouble::{Effect, Kind, Trouble, Troubles};
use crate::worker::feed::{Around, ended};
use crate::worker::ids::{Ids, Range};

/// A look, and what of it is not there.
#[derive(Clone, Debug)]
pub(crate) struct Sweeping {
    /// The look.
    pub(crate) look: Look,
    /// Those of its lanes whose topics do not exist.
    pub(crate) absent: HashSet<LaneId>,
}

/// What a look says: see [`retide_core::Input`].
#[derive(Debug)]
pub(crate) enum Found {
    /// It has begun.
    Begun {
        /// The look.
        number: u64,
        /// Where its lanes end, and the retry topic of its shards.
        ends: Vec<(LaneId, i64)>,
    },
    /// It has found a task that a command may be about.
    Task {
        /// The look.
        number: u64,
        /// Where.
        lane: LaneId,
        /// At which offset.
        offset: i64,
        /// The task.
        task: Box<Task>,
    },
    /// It has passed everything of a lane below an offset.
    Looked {
        /// The look.
        number: u64,
        /// The lane.
        lane: LaneId,
        /// The offset.
        next: i64,
    },
}

/// The sweep as the feed has it: the way to ask, what it finds, and its thread.
pub(crate) struct Sweep {
    /// To the thread.
    pub(crate) asks: Asks,
    /// What was found, in the order in which it is to be told.
    pub(crate) found: Receiver<Vec<Found>>,
    /// The thread.
    pub(crate) thread: JoinHandle<()>,
}

/// What a sweep is asked for. Cheap to clone.
#[derive(Clone, Default)]
pub(crate) struct Asks {
    /// What is not heard of yet.
    told: Arc<Mutex<Told>>,
    /// Counts looks that were asked for. It changes under the lock only.
    version: Arc<AtomicU64>,
}

/// What a sweep was told and has not heard of yet.
#[derive(Default)]
struct Told {
    /// The last look.
    look: Option<Sweeping>,
    /// Shards that are given away.
    left: BTreeSet<i32>,
}

/// The thread.
struct Sweeper {
    /// The configuration of a consumer.
    config: ClientConfig,
    /// Sees everything: asks where partitions end.
    all: Kept<BaseConsumer<LoggingContext>>,
    /// The topics.
    topics: Arc<Topics>,
    /// The threads of the process, which know at which records processes have died.
    threads: Threads,
    /// The record being looked at.
    hand: Arc<Hand>,
    /// What is known of where ids are.
    ids: Arc<Ids>,
    /// Where records are counted.
    metrics: Arc<Metrics>,
    /// What is asked for.
    asks: Asks,
    /// To the drive.
    found: Sender<Vec<Found>>,
    /// Where it is told that a look fails.
    troubles: Troubles,
    /// Whom that befalls.
    worker: String,
    /// Set to end.
    stop: Arc<AtomicBool>,
}

/// A consumer that reads for looks.
struct Reader {
    /// The consumer.
    consumer: BaseConsumer<LoggingContext>,
    /// The lanes whose leaders it has looked up.
    known: BTreeSet<LaneId>,
}

/// One that has read for a look, and reads for the next one: to make one, and to close it, takes longer than most looks.
struct Spare {
    /// The reader, to which nothing is assigned.
    reader: Reader,
    /// What was assigned to it. No list of the client: with one that names its partitions, it does not close.
    read: Vec<LaneId>,
    /// Since when it is not used.
    since: Instant,
}

/// A look that is under way.
struct UnderWay {
    /// Its number.
    number: u64,
    /// The version of what was asked for when it was heard of.
    version: u64,
    /// What fits one of the commands.
    filter: Filter,
    /// The ids that are looked for, if all commands name some.
    wanted: Option<Wanted>,
    /// The shards whose retry topic ends are to be said.
    shards: BTreeSet<i32>,
    /// The lanes that are not looked through yet.
    lanes: BTreeMap<LaneId, Way>,
    /// The lanes of it whose topics do not exist.
    absent: HashSet<LaneId>,
    /// The lanes of which another range is to be read, or nothing more.
    moved: Vec<LaneId>,
    /// Records that were looked at and are not counted yet.
    looked: u64,
    /// Whether it was said where they end.
    is_begun: bool,
}

/// How far a lane is looked through.
#[derive(Clone, Debug)]
struct Way {
    /// The ranges that are read; once that is known, the first one is being read.
    ranges: VecDeque<Range>,
    /// What was read of a range of which nothing is known yet: where that begins, and the hashes of its ids.
    new: (i64, Vec<u32>),
    /// The next offset.
    next: i64,
    /// How far the drive knows it to be.
    told: i64,
    /// The first offset that is not to be looked at, once that is known.
    to: i64,
}

/// What a look is for.
struct Filter {
    /// The ids, if all commands name some: what has none of them is not even decoded.
    ids: Option<HashSet<Arc<str>>>,
    /// The scenes, likewise.
    scenes: Option<HashSet<Arc<str>>>,
    /// What is asked of tasks; nothing where a command is about all of some targets, which are known to the engine.
    selectors: Vec<Option<Selector>>,
}

/// How a look came out.
enum Outcome {
    /// All is looked through, or given away.
    Done,
    /// Another one is wanted, or none any more.
    Over,
    /// Nothing has come for long: it goes on where it is, with other connections.
    Stands,
}

/// Most of what is found that goes to the drive at once.
const BATCH: usize = 64;

/// Most bytes of tasks in it, but for the last one.
const BATCH_BYTES: usize = 256 << 10;

/// What is on its way to the drive at once: with tasks of a megabyte, few of them.
const BUFFER: usize = 4;

/// Offsets of a look that reads little: less is fetched at once then.
const FEW: i64 = 20_000;

/// Most bytes of a partition that are fetched at once then.
const SMALL: &str = "65536";

/// Longest wait for the client to seek another range, which it does by itself.
const SEEK: Duration = Duration::from_millis(500);

/// Time after which it is said how far the lanes are looked through, whatever was found.
const SAY: Duration = Duration::from_millis(50);

/// How long a consumer is kept that is not used.
const SPARE: Duration = Duration::from_secs(30);

/// Longest wait for it to forget what it has read.
const FORGETS: Duration = Duration::from_millis(50);

/// Longest wait for a record.
const POLL: Duration = Duration::from_millis(20);

/// How often it is looked whether something is asked for; whoever asks wakes the thread.
const TURN: Duration = Duration::from_millis(200);

/// Longest wait for where partitions end.
const ASK: Duration = Duration::from_secs(3);

/// How long nothing comes before a look begins anew where it is.
const STANDS: Duration = Duration::from_secs(5);

/// Pause before a look that has failed goes on.
const AGAIN: Duration = Duration::from_secs(1);

/// How long a look may fail before people are told.
const PATIENCE: Duration = Duration::from_secs(5);

// === impl Asks ===

impl Asks {
    /// Asks for a look, which stands for the one before.
    pub(crate) fn look(&self, sweeping: Sweeping) {
        let mut told = self.lock();
        told.look = Some(sweeping);
        // What was given away before is another assignment.
        told.left.clear();
        self.version.fetch_add(1, Ordering::AcqRel);
    }

    /// Says that shards are given away.
    pub(crate) fn leave(&self, shards: &[i32]) {
        self.lock().left.extend(shards);
    }

    /// Locks what no panic leaves half-changed.
    fn lock(&self) -> MutexGuard<'_, Told> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Sweep ===

impl Sweep {
    /// Starts the thread, which is called `name`.
    pub(crate) fn start(
        config: &ClientConfig,
        name: &str,
        around: Around<'_>,
    ) -> Result<Self, KafkaError> {
        let group = config.get("group.id").unwrap_or("retide").to_owned();
        let mut config = config.clone();
        for (key, value) in [
            // They would pile up between two looks.
            ("statistics.interval.ms", "0"),
            // What is prefetched, over all lanes.
            ("queued.max.messages.kbytes", "4096"),
        ] {
            config.set(key, value);
        }
        config
            .set("group.id", &group)
            .set("isolation.level", "read_uncommitted");
        let all = Kept::make(&config, |config| {
            scan::consumer_as_is(config.clone(), &group)
        })?;
        let (to_drive, found) = bounded(BUFFER);
        let asks = Asks::default();
        let hand = Hand::new(around.topics);
        let sweeper = Sweeper {
            config,
            all,
            topics: Arc::clone(around.topics),
            threads: around.threads.clone(),
            hand: Arc::clone(&hand),
            ids: Arc::clone(around.ids),
            metrics: Arc::clone(around.metrics),
            asks: asks.clone(),
            found: to_drive,
            troubles: around.metrics.troubles().held_by(name),
            worker: name.to_owned(),
            stop: Arc::clone(around.stop),
        };
        let stop = Arc::clone(around.stop);
        let body = move || {
            sweeper.threads.works_with(&hand);
            sweeper.run();
            ended(&stop)
        };
        let thread = around
            .threads
            .spawn(name, body)
            .map_err(|error| KafkaError::ClientCreation(error.to_string()))?;
        Ok(Self {
            asks,
            found,
            thread,
        })
    }
}

// === impl Reader ===

impl Reader {
    /// Reads these lanes from these offsets. It looks up their leaders first: what it has none of when it is to read, it would look up a second
    /// later.
    fn read(&mut self, from: &[(LaneId, i64)], topics: &Topics) -> Result<(), KafkaError> {
        let lanes = from.iter().map(|(lane, _)| *lane);
        let new: Vec<LaneId> = lanes.filter(|lane| !self.known.contains(lane)).collect();
        let named = new.iter();
        let named = named.map(|lane| (&**topics.name(lane.source), lane.shard));
        offsets::edges(&self.consumer, named, Edge::First, ASK)?;
        self.known.extend(new);
        let mut starts = TopicPartitionList::with_capacity(from.len());
        for (lane, offset) in from {
            let topic = topics.name(lane.source);
            starts.add_partition_offset(topic, lane.shard, Offset::Offset(*offset))?;
        }
        scan::read_on(&self.consumer, &starts)
    }
}

// === impl Spare ===

impl Spare {
    /// One that has read these, if it lets go of them.
    fn new(reader: Reader, read: Vec<LaneId>, topics: &Topics) -> Option<Self> {
        // It would keep in mind what was paused.
        reader.consumer.resume(&partitions(&read, topics)).ok()?;
        reader.consumer.unassign().ok()?;
        Some(Self {
            reader,
            read,
            since: Instant::now(),
        })
    }

    /// Serves it; whether it may be needed.
    fn is_kept(&self) -> bool {
        while self.reader.consumer.poll(Duration::ZERO).is_some() {}
        self.since.elapsed() < SPARE
    }

    /// Its reader, once that has forgotten where it has read to: a look would take that for its own.
    fn take(self, topics: &Topics) -> Option<Reader> {
        let (consumer, until) = (&self.reader.consumer, Instant::now() + FORGETS);
        while !positions::none(consumer.client(), &partitions(&self.read, topics)) {
            if Instant::now() >= until {
                return None;
            }
            consumer.poll(Duration::from_millis(1));
        }
        Some(self.reader)
    }
}

/// The partitions of lanes.
fn partitions(lanes: &[LaneId], topics: &Topics) -> TopicPartitionList {
    let mut list = TopicPartitionList::with_capacity(lanes.len());
    for lane in lanes {
        list.add_partition(topics.name(lane.source), lane.shard);
    }
    list
}

// === impl Sweeper ===

impl Sweeper {
    /// Looks through what it is asked to, until told to stop.
    fn run(&self) {
        let mut under_way: Option<UnderWay> = None;
        let mut failing_since: Option<Instant> = None;
        let mut spare: Option<Spare> = None;
        while !self.stop.load(Ordering::Acquire) {
            while self.all.poll(Duration::ZERO).is_some() {}
            self.all.hold();
            if let Some(new) = self.heard() {
                under_way = Some(new);
            }
            spare.take_if(|spare| !spare.is_kept());
            let Some(look) = &mut under_way else {
                thread::park_timeout(TURN);
                continue;
            };
            let done = self.go_on(look, &mut spare);
            self.hand.empty();
            match done {
                Ok(Outcome::Done) => under_way = None,
                Ok(Outcome::Over) => {
                    if self.asks.version.load(Ordering::Acquire) == look.version {
                        // Nobody takes what it finds.
                        return;
                    }
                    under_way = None;
                }
                Ok(Outcome::Stands) => continue,
                Err(error) => {
                    let since = *failing_since.get_or_insert_with(Instant::now);
                    if since.elapsed() >= PATIENCE {
                        self.troubles.begin(Trouble {
                            kind: Kind::SweepFailing,
                            subject: self.worker.clone(),
                            says: format!(
                                "the tiers cannot be looked through for tasks that commands are about, which waits: {error}"
                            ),
                            fix: None,
                            effect: Effect::Limits,
                        });
                    }
                    thread::park_timeout(AGAIN);
                    continue;
                }
            }
            failing_since = None;
            self.troubles.end(Kind::SweepFailing, &self.worker);
        }
    }

    /// The look that is asked for, if it is another one.
    fn heard(&self) -> Option<UnderWay> {
        let mut told = self.asks.lock();
        let version = self.asks.version.load(Ordering::Acquire);
        let sweeping = told.look.take()?;
        drop(told);
        Some(UnderWay::new(sweeping, version))
    }

    /// Drops the lanes of shards that are given away.
    fn leave(&self, look: &mut UnderWay) {
        let left = mem::take(&mut self.asks.lock().left);
        if !left.is_empty() {
            look.lanes.retain(|lane, _| !left.contains(&lane.shard));
            look.shards.retain(|shard| !left.contains(shard));
        }
    }

    /// Goes on with a look from where it is.
    fn go_on(&self, look: &mut UnderWay, spare: &mut Option<Spare>) -> Result<Outcome, KafkaError> {
        self.leave(look);
        let mut told = Vec::new();
        self.begin(look, &mut told)?;
        if !self.tell(look, told) {
            return Ok(Outcome::Over);
        }
        let from = look.lanes.iter().map(|(lane, way)| (*lane, way.next));
        let from: Vec<(LaneId, i64)> = from.collect();
        if from.is_empty() {
            return Ok(Outcome::Done);
        }
        let ranges = look.lanes.values().flat_map(|way| &way.ranges);
        let offsets: i64 = ranges.map(|range| range.to - range.from).sum();
        let is_small = offsets <= FEW;
        let kept = spare.take_if(|_| is_small);
        let kept = kept.and_then(|spare| spare.take(&self.topics));
        let mut reader = kept.map_or_else(|| self.reader(is_small), Ok)?;
        reader.read(&from, &self.topics)?;
        let outcome = self.read(&reader.consumer, look)?;
        match outcome {
            Outcome::Done | Outcome::Over if is_small => {
                let read = from.into_iter().map(|(lane, _)| lane).collect();
                *spare = Spare::new(reader, read, &self.topics);
            }
            // Other connections may do better.
            Outcome::Done | Outcome::Over | Outcome::Stands => {}
        }
        Ok(outcome)
    }

    /// A reader for a look; for small ones it fetches less at once.
    fn reader(&self, is_small: bool) -> Result<Reader, KafkaError> {
        let group = self.config.get("group.id").unwrap_or("retide");
        let mut config = self.config.clone();
        if is_small {
            config.set("fetch.message.max.bytes", SMALL);
        }
        Ok(Reader {
            consumer: scan::consumer(config, group)?,
            known: BTreeSet::new(),
        })
    }

    /// Asks where the lanes begin and end, and says so, if that was not done; what is looked through already is over.
    fn begin(&self, look: &mut UnderWay, told: &mut Vec<Found>) -> Result<(), KafkaError> {
        let there: Vec<LaneId> = look.lanes.keys().copied().collect();
        let there = there.iter().filter(|lane| !look.absent.contains(lane));
        let tasks = look.shards.iter().map(|shard| LaneId {
            shard: *shard,
            source: Source::Tasks,
        });
        let all: Vec<LaneId> = there.copied().chain(tasks).collect();
        let first = self.edges(&all, Edge::First)?;
        let mut ends = Vec::with_capacity(all.len());
        if !look.is_begun {
            // Of all that is written: what is committed may stand behind what a transaction still holds back, and is waited for.
            let end = self.edges(&all, Edge::End)?;
            for lane in all {
                let at = (self.topics.name(lane.source).to_string(), lane.shard);
                let Some(to) = end.get(&at).copied() else {
                    return Err(KafkaError::OffsetFetch(RDKafkaErrorCode::NoOffset));
                };
                ends.push((lane, to));
                if let Some(way) = look.lanes.get_mut(&lane) {
                    way.to = to;
                }
            }
            let absent = look.absent.iter();
            ends.extend(absent.filter_map(|lane| Some((*lane, look.lanes.get(lane)?.next))));
            look.is_begun = true;
            let number = look.number;
            told.push(Found::Begun { number, ends });
        }
        for (lane, way) in &mut look.lanes {
            let at = (self.topics.name(lane.source).to_string(), lane.shard);
            // What is gone meanwhile is not looked at.
            way.next = way.next.max(first.get(&at).copied().unwrap_or(0));
        }
        for (lane, way) in &mut look.lanes {
            way.learn(*lane, &self.ids);
            if !look.absent.contains(lane) {
                let all = (way.next, way.to);
                let ranges = self.ids.ranges(*lane, all, look.wanted.as_ref());
                if let [first, ..] = &ranges[..] {
                    let offsets: i64 = ranges.iter().map(|range| range.to - range.from).sum();
                    let (topic, ranges) = (self.topics.name(lane.source), ranges.len());
                    let (partition, from, of) = (lane.shard, first.from, all.1 - all.0);
                    debug!(%topic, partition, from, ranges, offsets, of, "looking through");
                }
                way.ranges = ranges.into();
                way.go_on(way.next);
            }
        }
        look.say(told);
        Ok(())
    }

    /// Where lanes begin, or end.
    fn edges(&self, lanes: &[LaneId], edge: Edge) -> Result<Offsets, KafkaError> {
        let lanes = lanes.iter();
        let lanes = lanes.map(|lane| (&**self.topics.name(lane.source), lane.shard));
        offsets::edges(&self.all, lanes, edge, ASK)
    }

    /// Reads the lanes that are assigned.
    fn read(
        &self,
        consumer: &BaseConsumer<LoggingContext>,
        look: &mut UnderWay,
    ) -> Result<Outcome, KafkaError> {
        let (mut told, mut bytes) = (Vec::new(), 0);
        let (mut said_at, mut moved_at) = (Instant::now(), Instant::now());
        let mut last = Source::Tasks;
        loop {
            let is_idle = match consumer.poll(POLL) {
                Some(Ok(message)) => {
                    moved_at = Instant::now();
                    if let Some((lane, task)) = self.look_at(&message, look, &mut last) {
                        bytes += task.memory_size();
                        told.push(Found::Task {
                            number: look.number,
                            lane,
                            offset: message.offset(),
                            task: Box::new(task),
                        });
                    }
                    false
                }
                None | Some(Err(KafkaError::PartitionEOF(_))) => true,
                Some(Err(error)) if is_of_group(&error) => true,
                Some(Err(error)) => match Failure::of(&error) {
                    Failure::Passing => true,
                    Failure::Lasting | Failure::Fatal | Failure::Fenced => return Err(error),
                },
            };
            let moved = mem::take(&mut look.moved);
            for lane in &moved {
                self.move_on(consumer, *lane, look)?;
            }
            let is_time = said_at.elapsed() >= SAY;
            let is_idle = is_idle || !moved.is_empty();
            if told.len() < BATCH && bytes < BATCH_BYTES && !is_time && !is_idle {
                continue;
            }
            if is_idle {
                // Behind the last record there may be markers of transactions.
                self.follow_positions(consumer, look);
            }
            if is_time {
                self.leave(look);
            }
            self.metrics.commands.looked(mem::take(&mut look.looked));
            look.say(&mut told);
            said_at = Instant::now();
            bytes = 0;
            if !self.tell(look, mem::take(&mut told)) {
                return Ok(Outcome::Over);
            }
            if look.lanes.is_empty() {
                return Ok(Outcome::Done);
            }
            if moved_at.elapsed() >= STANDS {
                return Ok(Outcome::Stands);
            }
        }
    }

    /// A record of a tier: the task in it, if a command may be about it.
    fn look_at(
        &self,
        message: &BorrowedMessage<'_>,
        look: &mut UnderWay,
        last: &mut Source,
    ) -> Option<(LaneId, Task)> {
        let topic = message.topic();
        if **self.topics.name(*last) != *topic {
            *last = self.topics.source(topic)?;
        }
        let lane = LaneId {
            shard: message.partition(),
            source: *last,
        };
        let offset = message.offset();
        let way = look.lanes.get_mut(&lane)?;
        if way.pass(lane, offset, &self.ids) {
            look.moved.push(lane);
        }
        let range = way.ranges.front();
        let range = range.filter(|range| (range.from..range.to).contains(&offset))?;
        look.looked += 1;
        if range.is_new {
            let id = scan::last_bytes(message, ID).unwrap_or_default();
            way.note(lane, offset, hash(id), &self.ids);
        }
        way.next = offset + 1;
        if !look.filter.may_fit(message) {
            return None;
        }
        // Whoever reads the lane sets it aside.
        if self.threads.suspects().deaths(topic, lane.shard, offset) > 0 {
            return None;
        }
        self.hand.take(lane, offset);
        let origin = Origin {
            topic: Arc::clone(self.topics.name(lane.source)),
            partition: lane.shard,
            offset,
        };
        let task = headers::parked(received(message).ok()?, origin).ok()?;
        look.filter.fits(&task).then_some((lane, task))
    }

    /// Follows where the client has come to.
    fn follow_positions(&self, consumer: &BaseConsumer<LoggingContext>, look: &mut UnderWay) {
        let Ok(positions) = consumer.position() else {
            return;
        };
        for (lane, way) in &mut look.lanes {
            let topic = self.topics.name(lane.source);
            let found = positions.find_partition(topic, lane.shard);
            if let Some(Offset::Offset(offset)) = found.map(|found| found.offset())
                && way.pass(*lane, offset, &self.ids)
            {
                look.moved.push(*lane);
            }
        }
    }

    /// Reads the next range of a lane, or nothing of it any more.
    fn move_on(
        &self,
        consumer: &BaseConsumer<LoggingContext>,
        lane: LaneId,
        look: &UnderWay,
    ) -> Result<(), KafkaError> {
        let topic = self.topics.name(lane.source);
        let range = look.lanes.get(&lane).and_then(|way| way.ranges.front());
        if let Some(range) = range {
            // Until that is done, what comes is what was behind the range before, and is passed over.
            return consumer.seek(topic, lane.shard, Offset::Offset(range.from), SEEK);
        }
        let mut over = TopicPartitionList::with_capacity(1);
        over.add_partition(topic, lane.shard);
        consumer.pause(&over)
    }

    /// Tells the drive; false if another look is wanted, or nothing any more.
    fn tell(&self, look: &UnderWay, mut told: Vec<Found>) -> bool {
        let is_over = || {
            self.stop.load(Ordering::Acquire)
                || self.asks.version.load(Ordering::Acquire) != look.version
        };
        if told.is_empty() {
            return !is_over();
        }
        while !is_over() {
            match self.found.send_timeout(told, TURN) {
                Ok(()) => return true,
                Err(SendTimeoutError::Timeout(back)) => told = back,
                Err(SendTimeoutError::Disconnected(_)) => return false,
            }
        }
        false
    }
}

// === impl Way ===

impl Way {
    /// All below an offset was read, as far as it is in the first range; whether another one is to be sought.
    fn pass(&mut self, lane: LaneId, below: i64, ids: &Ids) -> bool {
        let count = self.ranges.len();
        while let Some(range) = self.ranges.front().filter(|range| range.to <= below) {
            self.next = range.to;
            self.learn(lane, ids);
            self.ranges.pop_front();
            self.go_on(below);
        }
        if let Some(range) = self.ranges.front()
            && range.from <= below
        {
            self.next = self.next.max(below);
        }
        self.ranges.len() < count && self.ranges.front().is_none_or(|range| range.from > below)
    }

    /// Goes on where the first range begins, or at `below` where that is in it.
    fn go_on(&mut self, below: i64) {
        let range = self.ranges.front();
        self.next = range.map_or(self.to, |range| below.max(range.from));
        self.new = (self.next, Vec::new());
    }

    /// A record was read in a range of which nothing is known yet.
    fn note(&mut self, lane: LaneId, offset: i64, hash: u32, ids: &Ids) {
        self.new.1.push(hash);
        if self.new.1.len() >= MOST {
            self.next = offset + 1;
            self.learn(lane, ids);
        }
    }

    /// Tells of what was read of a range of which nothing was known.
    fn learn(&mut self, lane: LaneId, ids: &Ids) {
        let (from, hashes) = mem::replace(&mut self.new, (self.next, Vec::new()));
        if self.ranges.front().is_some_and(|range| range.is_new) && from < self.next {
            ids.learn(lane, from, Block::new(self.next, hashes));
        }
    }
}

// === impl UnderWay ===

impl UnderWay {
    /// A look that begins.
    fn new(Sweeping { look, absent }: Sweeping, version: u64) -> Self {
        let Look {
            number,
            commands,
            lanes,
        } = look;
        let way = |from| Way {
            ranges: VecDeque::from([Range {
                from,
                to: i64::MAX,
                is_new: false,
            }]),
            new: (from, Vec::new()),
            next: from,
            told: -1,
            to: i64::MAX,
        };
        let filter = Filter::of(&commands);
        let ids = filter.ids.as_ref();
        Self {
            number,
            version,
            wanted: ids.map(|ids| Wanted::new(ids.iter().map(|id| &**id))),
            filter,
            shards: lanes.iter().map(|of| of.lane.shard).collect(),
            lanes: lanes.iter().map(|of| (of.lane, way(of.from))).collect(),
            absent,
            moved: Vec::new(),
            looked: 0,
            is_begun: false,
        }
    }

    /// Says how far the lanes are looked through, where that is news; those that are through are over.
    fn say(&mut self, told: &mut Vec<Found>) {
        let (number, absent) = (self.number, &self.absent);
        self.lanes.retain(|lane, way| {
            if absent.contains(lane) {
                way.to = way.to.min(way.next);
            }
            let next = way.next.min(way.to);
            if next > way.told {
                way.told = next;
                told.push(Found::Looked {
                    number,
                    lane: *lane,
                    next,
                });
            }
            way.next < way.to
        });
    }
}

// === impl Filter ===

impl Filter {
    /// What fits one of these commands.
    fn of(commands: &[Arc<Command>]) -> Self {
        /// All values, if each command names some.
        fn all<'a>(
            commands: &'a [Arc<Command>],
            of: impl Fn(&'a Parts) -> &'a BTreeSet<Arc<str>>,
        ) -> Option<HashSet<Arc<str>>> {
            let parts = || commands.iter().map(|command| of(command.selector.parts()));
            let each = parts().all(|values| !values.is_empty());
            each.then(|| parts().flatten().cloned().collect())
        }
        let selector = |command: &Arc<Command>| {
            let selector = &command.selector;
            if selector.parts().targets.is_empty() {
                return Some(selector.clone());
            }
            // Which target a scene has is known to the engine, which asks again.
            let parts = Parts {
                targets: BTreeSet::new(),
                ..selector.parts().clone()
            };
            Selector::new(parts).ok()
        };
        Self {
            ids: all(commands, |parts| &parts.ids),
            scenes: all(commands, |parts| &parts.scenes),
            selectors: commands.iter().map(selector).collect(),
        }
    }

    /// Whether a record may hold a task that is meant, by its headers.
    fn may_fit(&self, message: &BorrowedMessage<'_>) -> bool {
        let has = |values: &Option<HashSet<Arc<str>>>, name| {
            values.as_ref().is_none_or(|values| {
                let value = scan::last_bytes(message, name);
                let text = value.and_then(|value| str::from_utf8(value).ok());
                text.is_some_and(|text| values.contains(text))
            })
        };
        has(&self.ids, ID) && has(&self.scenes, SCENE)
    }

    /// Whether a task may be meant.
    fn fits(&self, task: &Task) -> bool {
        let mut selectors = self.selectors.iter();
        selectors.any(|selector| {
            selector
                .as_ref()
                .is_none_or(|selector| selector.fits(task, None))
        })
    }
}
