//! The group: one OS thread per worker that is its member, and learns which shards are the worker's.
//!
//! It reads no task: that is [`super::feed`]'s, by consumers that join nothing, so that a rebalance stops no reading. Invariants: a shard is
//! given away when the drive has let go of it, and not before; what is committed is committed by a membership whose shards are known.
//!
//! Ownership: a member owns shard p if it was given partition p of the retry topic, the one topic that is subscribed to, with the
//! `cooperative-sticky` assignor: only what moves is taken back, and given out in a second round. Nobody else stops for it, and what moves
//! goes on until its calls are back ([`Reading::Revoked`]). The other ways were measured, or read:
//! - `range` on all topics takes everything back from everybody in each rebalance, and all wait for the slowest one: with a call that
//!   hangs, every join and leave was a standstill of `drain_deadline` for all scenes.
//! - The same, given back late, cannot be clean: nobody is told when the last one has given back, until when others may go on.
//! - KIP-848 tells the next owner of a shard with its next heartbeat, whose interval is the broker's to say: 5 s where nobody has changed it.
//!
//! What nobody subscribes to, brokers forget the offsets of, a week after the last commit: workers commit the offsets of all lanes when
//! they get them, and every hour.

use std::collections::{BTreeMap, BTreeSet};
use std::mem;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, TryRecvError, bounded};
use rdkafka::ClientConfig;
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext, ConsumerGroupMetadata};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::topic_partition_list::{TopicPartitionList, TopicPartitionListElem};
use rdkafka::types::RDKafkaRespErr;
use tracing::error;

use retide_core::Source;
use retide_kafka::client::{Lifeline, ask_often, complained, is_missing, logged};
use retide_kafka::topics::Topics;
use retide_native::membership::membership;

use crate::clock;
use crate::event::{ShardsAssigned, ShardsLost, ShardsRevoked};
use crate::identity::Identity;
use crate::metrics::Metrics;
use crate::threads::Threads;
use crate::trouble::Troubles;
use crate::worker::feed::{Around, Deleted, Reading, ended, failure};
use crate::worker::ids::Ids;
use crate::worker::look::Look;
use crate::worker::order;
use crate::worker::presence::Presence;
use crate::worker::readable::{Readability, Why};
use crate::worker::restore::{Asking, Described, Pending, Renewed};
use crate::worker::search::{Search, Wanted};

/// The consumer that is a worker's member of the group.
pub type Client = BaseConsumer<Context>;

/// What runs inside the member's callbacks.
#[derive(Debug)]
pub struct Context {
    /// The consumer's configuration, for others that do not join.
    config: ClientConfig,
    /// Asks whether anything is known of the order of tasks.
    probe: order::Probe,
    /// The topics.
    topics: Arc<Topics>,
    /// To the drive.
    readings: Sender<Reading>,
    /// Where events are counted.
    metrics: Arc<Metrics>,
    /// The worker.
    name: String,
    /// The name that it has from one start to the next, if it is a static member.
    instance_id: Option<String>,
    /// The threads of the process.
    threads: Threads,
    /// Set to leave the group.
    stop: Arc<AtomicBool>,
    /// Shards that are to be begun anew.
    anew: Arc<Mutex<BTreeSet<i32>>>,
    /// What is known of where ids are.
    ids: Arc<Ids>,
    /// Partitions whose topics were made anew.
    renewed: Renewed,
    /// What the group has said.
    known: Mutex<Known>,
    /// When the drive has turned.
    turns: Turns,
    /// Of which topics offsets can be committed.
    readability: Readability,
    /// Whether the topics are to be looked at now.
    is_look_due: AtomicBool,
    /// What the drive wants to be searched, until that begins.
    wanted: Mutex<Option<Wanted>>,
}

/// When the drive has turned: one that does not has to give its shards to others, however well its member speaks to the group.
#[derive(Debug)]
struct Turns {
    /// The instant that turns are measured from.
    start: Instant,
    /// The last one, in milliseconds since `start`.
    last: AtomicU64,
    /// How long it may not turn, in milliseconds.
    most: u64,
}

/// What the group has said to its member.
#[derive(Default)]
struct Known {
    /// The membership of the last assignment, as offsets are committed with it; none before the first one, and when all was lost.
    membership: Option<Arc<ConsumerGroupMetadata>>,
    /// The member id of that assignment.
    member: String,
    /// The shards that the drive was told of, and not asked for again.
    shards: BTreeSet<i32>,
    /// The shards that are ours and cannot be worked on yet.
    pending: BTreeMap<i32, Standstill>,
    /// How often a shard began to stand still.
    epoch: u64,
    /// The drive's word that it has let go of what is taken back, until it comes.
    leaving: Option<Receiver<()>>,
}

/// A shard that is ours and cannot be worked on yet.
#[derive(Clone, Debug)]
struct Standstill {
    /// Which time it is: one that was away meanwhile is another one.
    epoch: u64,
    /// Why.
    why: Pending,
}

/// The member of a worker.
pub(crate) struct Member {
    /// The consumer, for group metadata and committed offsets.
    pub(crate) consumer: Arc<Client>,
    /// Its threads: the one that hears the group, and the one that asks for shards that stand still.
    pub(crate) threads: [JoinHandle<()>; 2],
}

/// Longest wait for a word of the group. After it, the client's thread is woken, which by itself looks only twice a second whether a
/// heartbeat is due: in a rebalance, all wait for the one that hears of it last.
const TURN: Duration = Duration::from_millis(50);

/// The same while the drive is waited for: short beside what follows from its word.
const LEAVING: Duration = Duration::from_millis(2);

/// How long a drive may not turn before its member is silent, too; and no longer than half of the time that the client takes for a silent one.
const STUCK: Duration = Duration::from_secs(30);

/// Longest wait for what has to be known of shards within a rebalance: longer than a commit of the former owner takes; what is not known
/// by then is asked for beside it.
const PATIENCE: Duration = Duration::from_secs(3);

/// Longest time for it beside a rebalance: the order of many keys takes seconds to read.
const LATER: Duration = Duration::from_secs(20);

/// Pause before shards that stand still are asked for again.
const AGAIN: Duration = Duration::from_millis(500);

/// Time between two looks at how many shards there are, and whether they can be read.
const LOOK: Duration = Duration::from_secs(5);

// === impl Member ===

impl Member {
    /// Joins the group of `config`.
    pub(crate) fn join(
        config: &ClientConfig,
        identity: &Identity,
        around: Around<'_>,
    ) -> Result<Self, KafkaError> {
        let mut config = config.clone();
        for (key, value) in [
            ("partition.assignment.strategy", "cooperative-sticky"),
            ("enable.auto.commit", "false"),
            ("enable.auto.offset.store", "false"),
            ("auto.offset.reset", "error"),
            ("isolation.level", "read_committed"),
        ] {
            config.set(key, value);
        }
        ask_often(&mut config);
        let context = Context {
            probe: order::Probe::new(config.clone())?,
            config: config.clone(),
            topics: Arc::clone(around.topics),
            readings: around.readings.clone(),
            metrics: Arc::clone(around.metrics),
            name: identity.name.clone(),
            instance_id: identity.instance_id.clone(),
            threads: around.threads.clone(),
            stop: Arc::clone(around.stop),
            anew: Arc::clone(around.anew),
            ids: Arc::clone(around.ids),
            renewed: Renewed::default(),
            known: Mutex::default(),
            turns: Turns::new(&config),
            readability: Readability::default(),
            is_look_due: AtomicBool::new(false),
            wanted: Mutex::default(),
        };
        if let Some(id) = &identity.client_id {
            config.set("client.id", id);
        }
        if let Some(id) = &identity.instance_id {
            config.set("group.instance.id", id);
        }
        let lifeline = Lifeline::new(&config);
        let consumer: Arc<Client> = Arc::new(config.create_with_context(context)?);
        #[allow(clippy::disallowed_methods, reason = "the member of the group")]
        consumer.subscribe(&[&*around.topics.tasks])?;
        let (member, readings) = (Arc::clone(&consumer), around.readings.clone());
        let stop = Arc::clone(around.stop);
        let body = move || {
            run(&member, &lifeline, &readings, &stop);
            ended(&stop)
        };
        let hearing = around
            .threads
            .spawn(&format!("{}-group", identity.name), body)
            .map_err(|error| KafkaError::ClientCreation(error.to_string()))?;
        // It does not hold the consumer: the group hears that a member leaves when the last one lets go of it.
        let (context, stop) = (Arc::clone(consumer.context()), Arc::clone(around.stop));
        let body = move || {
            restore_all(&context, &stop);
            ended(&stop)
        };
        let restoring = around
            .threads
            .spawn(&format!("{}-restore", identity.name), body)
            .map_err(|error| KafkaError::ClientCreation(error.to_string()))?;
        let threads = [hearing, restoring];
        Ok(Self { consumer, threads })
    }
}

/// Hears what the group says until told to stop.
fn run(consumer: &Client, lifeline: &Lifeline, readings: &Sender<Reading>, stop: &AtomicBool) {
    let context = consumer.context();
    while !stop.load(Ordering::Acquire) {
        if context.turns.is_stuck() {
            // The client takes it as dead after `max.poll.interval.ms`, and so does the group.
            thread::sleep(TURN);
            continue;
        }
        let wait = if context.known().leaving.is_some() {
            LEAVING
        } else {
            TURN
        };
        // Rebalances are answered in here. No record comes: nothing is assigned to this consumer.
        if let Some(Err(error)) = consumer.poll(wait)
            && let Some(failed) = failure(error, &context.metrics)
        {
            context.say_if_fenced(consumer);
            if readings.send(failed).is_err() {
                break;
            }
        }
        if context.has_let_go() {
            context.say(taken_back(consumer));
        }
        let _ = membership(consumer.client());
        lifeline.hold(consumer.client());
    }
    if context.known().leaving.take().is_some() {
        context.say(taken_back(consumer));
    }
}

// === impl Turns ===

impl Turns {
    /// As often as `config` wants it.
    fn new(config: &ClientConfig) -> Self {
        let patience = config.get("max.poll.interval.ms");
        let patience = patience.and_then(|text| text.parse().ok());
        let most = patience.map_or(STUCK, |millis| STUCK.min(Duration::from_millis(millis) / 2));
        Self {
            start: Instant::now(),
            last: AtomicU64::new(0),
            most: u64::try_from(most.as_millis()).unwrap_or(u64::MAX),
        }
    }

    /// How long it is since `start`, in milliseconds.
    fn now(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Whether the drive has not turned for long.
    fn is_stuck(&self) -> bool {
        self.now().saturating_sub(self.last.load(Ordering::Acquire)) > self.most
    }
}

// === impl Context ===

impl ClientContext for Context {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        logged(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        complained(&error, reason);
    }
}

impl ConsumerContext for Context {
    fn rebalance(
        &self,
        consumer: &BaseConsumer<Self>,
        err: RDKafkaRespErr,
        partitions: &mut TopicPartitionList,
    ) {
        let shards = shards(partitions);
        let done = match err {
            RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS => self.assign(consumer, shards),
            _ if self.stop.load(Ordering::Acquire) => taken_back(consumer),
            _ => {
                self.revoke(consumer, shards);
                Ok(())
            }
        };
        self.say(done);
    }
}

impl Context {
    /// What is known of where ids are.
    pub(crate) fn ids(&self) -> &Ids {
        &self.ids
    }

    /// The drive turns.
    pub(crate) fn turned(&self) {
        self.turns.last.store(self.turns.now(), Ordering::Release);
    }

    /// Searches tiers for tasks, beside everything else: what comes of it is a reading.
    pub(crate) fn search(&self, wanted: Wanted) {
        *self.wanted() = Some(wanted);
    }

    /// Of which topics offsets can be committed.
    pub(crate) const fn readability(&self) -> &Readability {
        &self.readability
    }

    /// A commit of offsets was refused: if a topic is the cause, it is found out soon.
    pub(crate) fn refused(&self, error: &KafkaError) {
        let is_of_topic =
            |code| is_missing(code) || code == RDKafkaErrorCode::TopicAuthorizationFailed;
        if error.rdkafka_error_code().is_some_and(is_of_topic) {
            self.is_look_due.store(true, Ordering::Release);
        }
    }

    /// What the drive wants to be searched.
    fn wanted(&self) -> MutexGuard<'_, Option<Wanted>> {
        self.wanted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where events are counted.
    pub(crate) fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// The worker.
    pub(crate) fn worker(&self) -> &str {
        &self.name
    }

    /// The threads of the process.
    pub(crate) fn threads(&self) -> &Threads {
        &self.threads
    }

    /// The membership of the last assignment: the shards that it comes with are known, unlike those of one that the client has meanwhile.
    pub(crate) fn membership(&self) -> Option<Arc<ConsumerGroupMetadata>> {
        self.known().membership.clone()
    }

    /// What the group has said.
    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells the drive if what was to be done failed: the worker cannot go on.
    fn say(&self, done: Result<(), KafkaError>) {
        if let Err(error) = done
            && !self.stop.load(Ordering::Acquire)
        {
            error!(%error, "rebalance failed");
            let _ = self.readings.send(Reading::Failed(error));
        }
    }

    /// Says what has happened if another member has the name of this one.
    fn say_if_fenced(&self, consumer: &Client) {
        let Some((RDKafkaErrorCode::FencedInstanceId, _)) = consumer.client().fatal_error() else {
            return;
        };
        error!(
            worker = self.name,
            instance_id = self.instance_id,
            "another process has joined with the same instance_id, and this one ends: each process needs its own, such as that of its pod, \
             instance_id = \"${{HOSTNAME}}\" in [processor]"
        );
    }

    /// Whether the drive was asked for shards, and has let go of them.
    fn has_let_go(&self) -> bool {
        let mut known = self.known();
        // An error says the same as a word: the drive has let go.
        let waits = |leaving: &Receiver<()>| leaving.try_recv() == Err(TryRecvError::Empty);
        known.leaving.take_if(|leaving| !waits(leaving)).is_some()
    }

    /// The group has given out `shards`, to be begun where their last commits left them.
    fn assign(&self, consumer: &Client, shards: Vec<i32>) -> Result<(), KafkaError> {
        let mut shards: BTreeSet<i32> = shards.into_iter().collect();
        shards.extend(self.remember(consumer, &BTreeSet::new()));
        // The group goes on; what follows is between this worker and the brokers.
        #[allow(
            clippy::disallowed_methods,
            reason = "the member of the group reads nothing"
        )]
        consumer.incremental_assign(&TopicPartitionList::new())?;
        self.begin(&shards);
        Ok(())
    }

    /// The group wants `shards` back: asks the drive for them, and does not wait for the answer.
    fn revoke(&self, consumer: &Client, shards: Vec<i32>) {
        let lost = consumer.assignment_lost();
        let mut again = BTreeSet::new();
        if lost {
            self.known().membership = None;
            ShardsLost {
                worker: &self.name,
                shards: &shards,
            }
            .emit(&self.metrics);
        } else {
            again = self.remember(consumer, &shards.iter().copied().collect());
            ShardsRevoked {
                worker: &self.name,
                shards: &shards,
            }
            .emit(&self.metrics);
        }
        let (done, leaving) = bounded(1);
        {
            let mut known = self.known();
            known.shards.retain(|shard| !shards.contains(shard));
            let (gone, stay) = mem::take(&mut known.pending)
                .into_iter()
                .partition::<BTreeMap<_, _>, _>(|(shard, _)| shards.contains(shard));
            known.pending = stay;
            known.leaving = Some(leaving);
            self.goes_on(gone.iter());
        }
        // A drive that has ended drops the word that is waited for.
        let _ = self.readings.send(Reading::Revoked { shards, lost, done });
        if !again.is_empty() {
            self.begin(&again);
        }
    }

    /// Remembers the membership that the group has just confirmed. Where it is another one than before, although nothing was said to be
    /// lost, everything was: a static member that comes back after its session is given what it claims to have, whatever others did with it
    /// meanwhile. Gives the shards, but for those that are `leaving`, which are to be begun anew then.
    fn remember(&self, consumer: &Client, leaving: &BTreeSet<i32>) -> BTreeSet<i32> {
        let member = membership(consumer.client()).map(|membership| membership.member);
        let mut known = self.known();
        known.membership = consumer.group_metadata().map(Arc::new);
        let before = mem::replace(&mut known.member, member.unwrap_or_default());
        if before == known.member || known.shards.is_empty() {
            return BTreeSet::new();
        }
        let lost = mem::take(&mut known.shards);
        drop(known);
        let shards: Vec<i32> = lost.iter().copied().collect();
        ShardsLost {
            worker: &self.name,
            shards: &shards,
        }
        .emit(&self.metrics);
        let (done, _) = bounded(1);
        let lost_all = Reading::Revoked {
            shards,
            lost: true,
            done,
        };
        let _ = self.readings.send(lost_all);
        lost.difference(leaving).copied().collect()
    }

    /// Tells the drive where to begin the lanes of `shards`: of those of which that is known within [`PATIENCE`]. The others stand still,
    /// and are asked for again ([`restore_all`]).
    fn begin(&self, shards: &BTreeSet<i32>) {
        // As a rule a rebalance changes nothing here, which is no news; that there is nothing at all is.
        let has_nothing = {
            let known = self.known();
            known.shards.is_empty() && known.pending.is_empty()
        };
        if !shards.is_empty() || has_nothing {
            let shards: Vec<i32> = shards.iter().copied().collect();
            ShardsAssigned {
                worker: &self.name,
                shards: &shards,
            }
            .emit(&self.metrics);
        }
        let wanted: Vec<i32> = shards.iter().copied().collect();
        let mut found = self.asking().known(&wanted, PATIENCE);
        if self.stop.load(Ordering::Acquire) {
            return;
        }
        let mut known = self.known();
        for (shard, why) in mem::take(&mut found.pending) {
            known.epoch += 1;
            let epoch = known.epoch;
            self.stands_still(shard, &why);
            known.pending.insert(shard, Standstill { epoch, why });
        }
        known.shards.extend(found.shards());
        drop(known);
        for reading in found.readings() {
            let _ = self.readings.send(reading);
        }
    }

    /// Who is asked for what has to be known of shards.
    fn asking(&self) -> Asking<'_> {
        Asking {
            config: &self.config,
            probe: &self.probe,
            topics: &self.topics,
            threads: &self.threads,
            metrics: &self.metrics,
            renewed: &self.renewed,
            readability: &self.readability,
            stop: &self.stop,
        }
    }

    /// A shard cannot be worked on.
    fn stands_still(&self, shard: i32, why: &Pending) {
        if let Some(trouble) = why.trouble(shard, &self.topics, &self.config) {
            self.troubles().begin(trouble);
        }
    }

    /// The troubles of this worker's shards.
    fn troubles(&self) -> Troubles {
        self.metrics.troubles().held_by(&self.name)
    }

    /// Shards are not ours any more, or known: they stand still no longer.
    fn goes_on<'a>(&self, standing: impl Iterator<Item = (&'a i32, &'a Standstill)>) {
        for (shard, standstill) in standing {
            if let Some((kind, subject)) = standstill.why.subject(*shard, &self.topics) {
                self.troubles().end(kind, &subject);
            }
        }
    }

    /// Takes shards from the drive that are to be begun anew, as if they were lost.
    fn begin_anew(&self) {
        let anew = mem::take(&mut *self.anew.lock().unwrap_or_else(PoisonError::into_inner));
        if anew.is_empty() {
            return;
        }
        let mut known = self.known();
        let shards: Vec<i32> = anew.intersection(&known.shards).copied().collect();
        ShardsLost {
            worker: &self.name,
            shards: &shards,
        }
        .emit(&self.metrics);
        for shard in &shards {
            known.epoch += 1;
            let (epoch, why) = (known.epoch, Pending::Anew);
            known.shards.remove(shard);
            known.pending.insert(*shard, Standstill { epoch, why });
        }
        let (done, _) = bounded(1);
        let lost = Reading::Revoked {
            shards,
            lost: true,
            done,
        };
        let _ = self.readings.send(lost);
    }

    /// Follows what has become of topics that are read. Where one is there again, or is another one, all shards begin anew: where it is read
    /// on, other records are now, or none yet.
    fn follow_presence(&self, presence: &mut Presence, described: &Described, look: Option<&Look>) {
        let read: BTreeMap<&str, Source> = self
            .topics
            .read()
            .map(|(source, topic)| (&**topic, source))
            .collect();
        let seen = described
            .iter()
            .filter(|(topic, _)| read.contains_key(&**topic));
        let change = presence.see(seen.map(|(topic, seen)| (topic, *seen)));
        for topic in &change.deleted {
            let source = read[&**topic];
            let ends = look.map(|look| look.ends(source)).unwrap_or_default();
            let deleted = Deleted { source, ends };
            // A drive that has ended has nothing to tell.
            let _ = self.readings.send(Reading::Deleted(deleted));
        }
        if !change.anew.is_empty() || change.is_back {
            let shards: Vec<i32> = self.known().shards.iter().copied().collect();
            {
                let mut renewed = self.renewed.lock().unwrap_or_else(PoisonError::into_inner);
                let partitions = |topic: Arc<str>| {
                    let shards = shards.iter();
                    shards.map(move |shard| (Arc::clone(&topic), *shard))
                };
                renewed.extend(change.anew.into_iter().flat_map(partitions));
            }
            let mut anew = self.anew.lock().unwrap_or_else(PoisonError::into_inner);
            anew.extend(shards);
            drop(anew);
            // Before what comes of them counts again.
            self.begin_anew();
        }
        let missing = self.topics.read();
        let missing = missing.filter(|(_, topic)| presence.is_missing(topic));
        self.readability.only(Why::Deleted, missing);
    }

    /// Asks for the shards that stand still, and gives those that are known to the drive.
    fn restore(&self) {
        let waiting: BTreeMap<i32, Standstill> = self.known().pending.clone();
        if waiting.is_empty() {
            return;
        }
        let wanted: Vec<i32> = waiting.keys().copied().collect();
        let mut found = self.asking().known(&wanted, LATER);
        let mut known = self.known();
        // The group may have taken them back meanwhile, and given them out again.
        let is_same = |known: &Known, shard: i32| {
            let (before, now) = (waiting.get(&shard), known.pending.get(&shard));
            before.map(|at| at.epoch) == now.map(|at| at.epoch) && now.is_some()
        };
        found.keep(|shard| is_same(&known, shard));
        for (shard, why) in mem::take(&mut found.pending) {
            if !is_same(&known, shard) {
                continue;
            }
            if let Some(standstill) = known.pending.get_mut(&shard) {
                if standstill.why.subject(shard, &self.topics) != why.subject(shard, &self.topics) {
                    let before = [(shard, standstill.clone())];
                    self.goes_on(before.iter().map(|(shard, before)| (shard, before)));
                }
                self.stands_still(shard, &why);
                standstill.why = why;
            }
        }
        let shards: Vec<i32> = found.shards().collect();
        // Still under the lock: what takes a shard back says so to the drive after this. It waits for nobody who waits for the lock.
        for reading in found.readings() {
            if self.readings.try_send(reading).is_err() {
                return;
            }
        }
        for shard in shards {
            if let Some(standstill) = known.pending.remove(&shard) {
                self.goes_on([(&shard, &standstill)].into_iter());
            }
            known.shards.insert(shard);
        }
    }
}

/// Asks for the shards that stand still, until told to stop; and for how many shards there are. Who tells it wakes it.
fn restore_all(context: &Context, stop: &AtomicBool) {
    let troubles = context.metrics.troubles();
    let troubles = troubles.held_by(&format!("{}-look", context.name));
    let mut look = Look::new(&context.config, &context.topics, troubles).ok();
    // At once: what the topics' ids are is known from then on.
    let mut look_at = Instant::now();
    let mut presence = Presence::default();
    let mut count = None;
    // The shards that were looked at: new ones are at once.
    let mut looked: Vec<i32> = Vec::new();
    let mut search: Option<Search> = None;
    while !stop.load(Ordering::Acquire) {
        thread::park_timeout(AGAIN);
        if stop.load(Ordering::Acquire) {
            break;
        }
        context.begin_anew();
        context.restore();
        if let Some(wanted) = context.wanted().take() {
            search = Some(Search::new(wanted));
        }
        if let Some(under_way) = &mut search {
            let (config, topics) = (&context.config, &context.topics);
            let searched = under_way.go_on(config, topics, context.probe.client());
            if let Some(searched) = searched
                && context
                    .readings
                    .try_send(Reading::Searched(searched))
                    .is_ok()
            {
                search = None;
            }
        }
        let is_due = context.is_look_due.swap(false, Ordering::AcqRel);
        let has_new = context
            .known()
            .shards
            .iter()
            .any(|shard| !looked.contains(shard));
        if Instant::now() < look_at && !is_due && !has_new {
            continue;
        }
        let described = context.asking().described().ok();
        if let Some(described) = &described {
            context.follow_presence(&mut presence, described, look.as_ref());
        }
        // A topic that is missing is looked at again with the next turn.
        let pause = if presence.is_in_doubt() {
            Duration::ZERO
        } else {
            LOOK
        };
        look_at = Instant::now() + pause;
        let now = described.and_then(|described| context.asking().count(&described));
        if let Some(now) = now.filter(|now| count != Some(*now))
            && context.readings.try_send(Reading::Shards(now)).is_ok()
        {
            count = Some(now);
        }
        let shards: Vec<i32> = context.known().shards.iter().copied().collect();
        looked.clone_from(&shards);
        if let Some(look) = &mut look {
            let now = clock::timestamp();
            let alerts = look.at(&shards, context.probe.client(), &context.readability, now);
            if !alerts.is_empty() {
                let _ = context.readings.try_send(Reading::Alerts(alerts));
            }
        }
    }
}

impl std::fmt::Debug for Known {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Known")
            .field("member", &self.member)
            .field("shards", &self.shards)
            .finish_non_exhaustive()
    }
}

/// Tells the client that what the group wants back may go. Nothing was ever assigned to this consumer, so nothing is taken from it.
fn taken_back(consumer: &Client) -> Result<(), KafkaError> {
    consumer.incremental_unassign(&TopicPartitionList::new())
}

/// The shards of `partitions`, each once.
fn shards(partitions: &TopicPartitionList) -> Vec<i32> {
    let elements = partitions.elements();
    let shards: BTreeSet<i32> = elements
        .iter()
        .map(TopicPartitionListElem::partition)
        .collect();
    shards.into_iter().collect()
}
