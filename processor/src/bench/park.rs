//! Tasks that are parked: what a process with many of them costs that has nothing to do, how fast another one takes over, and what happens
//! when as many more come due at once. Beside a process on the same topics with none.

use std::collections::BTreeMap;
use std::thread;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use rdkafka::message::{BorrowedMessage, Header as OutHeader, Message, OwnedHeaders};
use rdkafka::producer::{BaseRecord, Producer};
use serde::Serialize;

use retide_avro::headers;
use retide_config::Config;
use retide_core::Timestamp;
use retide_kafka::client::client_config;
use retide_native as native;

use crate::bench::stream::{Flow, Stream, account, arrive, identity, none_early, now, producer};
use crate::bench::target::{Lateness, Manner, Target};
use crate::bench::testbed::{self, send};
use crate::bench::worker::{Memory, Worker, is_told};
use crate::bench::{Error, PATIENCE, Testbed};

/// How much is parked, and what is done with it.
#[derive(Clone, Copy, Debug)]
pub struct Parked {
    /// Tasks.
    pub tasks: u64,
    /// Bytes of each payload.
    pub bytes: usize,
    /// How long an idle process is watched.
    pub idle: Duration,
    /// When as many more tasks are all due, from the start of producing them; without it there are none.
    pub due_in: Option<Duration>,
}

/// What was measured.
#[derive(Clone, Debug, Serialize)]
pub struct Park {
    /// Tasks.
    pub tasks: u64,
    /// Bytes of each payload.
    pub bytes: usize,
    /// The tiers they were parked in.
    pub tiers: Vec<String>,
    /// A process with nothing parked.
    pub empty: Stage,
    /// A process with the tasks parked, none of them due.
    pub parked: Stage,
    /// Another process in its place.
    pub take_over: TakeOver,
    /// As many more tasks, all due at once.
    pub drain: Option<Drained>,
}

/// One process that has nothing to do. What the system does not tell is null.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Stage {
    /// From its start to its first word that it is ready.
    pub ready_seconds: f64,
    /// Bytes, after the time it was watched.
    pub memory: Option<Memory>,
    /// The share of one processor that it used in that time, in per cent.
    pub processor_percent: Option<f64>,
}

/// One process killed, another one in its place.
#[derive(Clone, Debug, Serialize)]
pub struct TakeOver {
    /// From the start of the second process until both are ready.
    pub join_seconds: f64,
    /// From the kill of the first one until the second one is ready with all shards.
    pub seconds: f64,
    /// After how long the group misses a process, as consumers are configured; part of `seconds`.
    pub session_timeout_ms: Option<String>,
}

/// Tasks that were all due at once, on their way to a Kafka target.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Drained {
    /// Tasks, each of which was found on the target's topic once.
    pub tasks: u64,
    /// From the due time to the last record on the target's topic.
    pub seconds: f64,
    /// `tasks` by `seconds`.
    pub per_second: f64,
    /// Their arrival on the topic after the due time.
    pub drained_ms: Lateness,
    /// Bytes, at the end. The peak is that of the whole life of the process.
    pub memory: Option<Memory>,
    /// The share of one processor that retide used from the due time on, in per cent.
    pub processor_percent: Option<f64>,
    /// New tasks a second of another scene, to an HTTP target.
    pub other_rate: u64,
    /// How late they were before.
    pub before_ms: Lateness,
    /// How late they were from the due time until all was drained.
    pub meanwhile_ms: Lateness,
}

/// A process that has taken over, and what it works with.
struct Drain<'a> {
    /// The topics.
    bed: &'a Testbed,
    /// How much.
    parked: Parked,
    /// When all are due, from the start of producing them.
    due_in: Duration,
    /// The topic they go to.
    topic: &'a str,
    /// Where the tasks of the other scene go.
    target: &'a Target,
    /// The process.
    worker: &'a mut Worker,
}

/// The shortest tiers that tasks are parked in: none of them ends during a measurement.
const LONG: Duration = Duration::from_hours(1);

/// How far off the tasks are due: beyond the longest tier.
const LATER: Duration = Duration::from_hours(30 * 24);

/// Longest time that a process that has just become ready is left alone before it is watched: its first fetches and rules are not idling.
const SETTLE: Duration = Duration::from_secs(3);

/// Tasks between two looks at the clock when they are produced: a few milliseconds.
const CHUNK: u64 = 500;

/// The other scene's tasks: as many at once as take the straight way and as wait in a tier.
const OTHER: Flow = Flow {
    scene: "other",
    rate: 50,
    leads: &[Duration::from_millis(500), Duration::from_millis(2_500)],
};

/// Measures what parked tasks cost on the cluster that `config` names; `say` is told what is going on.
///
/// # Errors
/// If a client or a process fails, nothing moves for a minute, or what comes out is not what went in.
pub fn park(config: &Config, parked: Parked, say: impl Fn(&str)) -> Result<Park, Error> {
    let mut bed = Testbed::make(config)?;
    let measured = bed
        .add("drained")
        .and_then(|topic| measure(&bed, parked, &topic, say));
    bed.remove();
    measured
}

/// Measures on topics that are there.
fn measure(bed: &Testbed, parked: Parked, topic: &str, say: impl Fn(&str)) -> Result<Park, Error> {
    if !is_told() {
        say("this system has no /proc: memory and processor time are not measured");
    }
    let target = Target::start(Manner::default())?;
    let scenes = format!(
        "[scenes.parked]\ntarget = {{ kafka = {{ topic = '{topic}' }} }}\n\
         [scenes.drain]\ntarget = {{ kafka = {{ topic = '{topic}' }} }}\n\
         [scenes.other]\ntarget = {{ http = {{ url = 'http://{}/', timeout = '30s' }} }}\n",
        target.address
    );
    let group = &*bed.config.processor.group;
    say("a process with nothing parked");
    // Of another group: one that is killed stays a member until its session ends, and the next one would wait for that.
    let mut worker = Worker::start(bed, &format!("{group}-empty"), &scenes)?;
    let empty = idle(&mut worker, parked.idle)?;
    worker.kill()?;
    say(&format!("parking {} tasks", parked.tasks));
    let start = Instant::now();
    let tiers = long_tiers(bed);
    let due = Timestamp::EPOCH + now() + LATER;
    let mut next = 0;
    fill(bed, "parked", parked, due, || {
        next += 1;
        tiers[next % tiers.len()]
    })?;
    say("a process with all of them parked");
    let mut first = Worker::start(bed, group, &scenes)?;
    let stage = idle(&mut first, parked.idle)?;
    say("another one takes over");
    let mut second = Worker::start(bed, group, &scenes)?;
    let take_over = take_over(bed, first, &mut second)?;
    let drain = match parked.due_in {
        Some(due_in) => {
            let drain = Drain {
                bed,
                parked,
                due_in,
                topic,
                target: &target,
                worker: &mut second,
            };
            Some(drain.run(&say)?)
        }
        None => None,
    };
    second.check()?;
    let all = bed.config.topics.tiers.tiers();
    // After that, or where the others come through the same tiers, they hold copies.
    let until = all[tiers[0]].delay;
    if start.elapsed() < until && parked.due_in.is_none_or(|due_in| due_in < until) {
        say("counting those that are parked");
        let waiting = tiers.iter().map(|tier| bed.count(&bed.topics.tiers[*tier]));
        let found = waiting.sum::<Result<u64, Error>>()?;
        if found != parked.tasks {
            return Err(Error::Count {
                what: "parked tasks",
                found,
                expected: parked.tasks,
            });
        }
    } else {
        say("the tiers are too short for the tasks in them to be counted");
    }
    Ok(Park {
        tasks: parked.tasks,
        bytes: parked.bytes,
        tiers: tiers.iter().map(|tier| all[*tier].to_string()).collect(),
        empty,
        parked: stage,
        take_over,
        drain,
    })
}

/// Watches a process that has nothing to do.
fn idle(worker: &mut Worker, time: Duration) -> Result<Stage, Error> {
    let ready = worker.ready()?;
    thread::sleep(SETTLE.min(time));
    let (start, before) = (Instant::now(), worker.processor_seconds());
    thread::sleep(time);
    let (time, after) = (start.elapsed(), worker.processor_seconds());
    worker.check()?;
    Ok(Stage {
        ready_seconds: ready.as_secs_f64(),
        memory: worker.memory(),
        processor_percent: percent(before, after, time),
    })
}

/// Kills the first process once the second one has its part.
fn take_over(bed: &Testbed, mut first: Worker, second: &mut Worker) -> Result<TakeOver, Error> {
    second.ready()?;
    // The second one is ready when the rebalance is over for it; the first one has its shards back by then, or a moment later.
    let joined = {
        first.ready()?;
        second.ready()?
    };
    let start = Instant::now();
    first.kill()?;
    second.ready_with_all(bed.config.topics.partitions)?;
    let consumer = client_config(bed.config.kafka.consumer());
    Ok(TakeOver {
        join_seconds: joined.as_secs_f64(),
        seconds: start.elapsed().as_secs_f64(),
        session_timeout_ms: consumer.get("session.timeout.ms").map(str::to_owned),
    })
}

/// The share of one processor between two looks, in per cent.
fn percent(before: Option<f64>, after: Option<f64>, time: Duration) -> Option<f64> {
    Some((after? - before?) / time.as_secs_f64() * 100.0)
}

/// The tiers that tasks are parked in, as their places in the ladder: the long ones, or the longest.
fn long_tiers(bed: &Testbed) -> Vec<usize> {
    let tiers = bed.config.topics.tiers.tiers();
    let long: Vec<usize> = (0..tiers.len())
        .filter(|tier| tiers[*tier].delay >= LONG)
        .collect();
    if long.is_empty() {
        vec![tiers.len() - 1]
    } else {
        long
    }
}

/// Produces parked tasks of a scene straight into tiers, as retide would write them, over all partitions in turn.
fn fill(
    bed: &Testbed,
    scene: &str,
    parked: Parked,
    due: Timestamp,
    mut tier: impl FnMut() -> usize,
) -> Result<(), Error> {
    let producer = producer(bed, "20")?;
    let mut payload = Payload::new(parked.bytes);
    let partitions = bed.config.topics.partitions as u64;
    let common = waiting(scene, due);
    let mut topic = &bed.topics.tiers[0];
    for index in 0..parked.tasks {
        if index % CHUNK == 0 {
            topic = &bed.topics.tiers[tier()];
        }
        let id = identity(scene, index);
        let record = BaseRecord::to(topic)
            .partition((index % partitions) as i32)
            .payload(payload.of(index))
            .headers(common.clone().insert(OutHeader {
                key: headers::ID,
                value: Some(&id),
            }));
        send(&producer, record)?;
    }
    producer.flush(PATIENCE * 2)?;
    Ok(())
}

/// Payloads that compress as JSON full of identities does with lz4, about by half: what is fetched is counted in compressed bytes, and
/// what is held is not.
struct Payload(Vec<u8>);

// === impl Payload ===

impl Payload {
    /// What a payload repeats.
    const PIECE: &[u8] = b"{\"order\":\"0123456789abcdef\",\"paid\":true},";

    /// Where its identity begins.
    const IDENTITY: usize = 10;

    /// Payloads of so many bytes.
    fn new(bytes: usize) -> Self {
        Self(Self::PIECE.iter().copied().cycle().take(bytes).collect())
    }

    /// The payload of a task.
    fn of(&mut self, index: u64) -> &[u8] {
        // SplitMix64 (Steele, Lea and Flood, 2014).
        let mut state = index << 20;
        for piece in self.0.chunks_mut(Self::PIECE.len()) {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut mixed = state;
            mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            mixed ^= mixed >> 31;
            for (number, byte) in piece.iter_mut().skip(Self::IDENTITY).take(16).enumerate() {
                *byte = b"0123456789abcdef"[(mixed >> (4 * number)) as usize & 15];
            }
        }
        &self.0
    }
}

/// What retide sets on a task that is parked, but for its identity.
fn waiting(scene: &str, due: Timestamp) -> OwnedHeaders {
    let task = testbed::parked(scene, 1, due);
    let mut written = OwnedHeaders::new();
    headers::write_task(&task, &mut |name, value| {
        if name != headers::ID.as_bytes() {
            native::headers::add(&mut written, name, value);
        }
    });
    written
}

// === impl Drain ===

impl Drain<'_> {
    /// Parks as many tasks again, all due at one instant, while another scene has its steady load.
    fn run(self, say: impl Fn(&str)) -> Result<Drained, Error> {
        let Self { parked, due_in, .. } = self;
        let other = Stream::start(self.bed, OTHER)?;
        say("warming up another scene");
        arrive(self.target, OTHER.rate * 3)?;
        self.target.take_lateness();
        thread::sleep(parked.idle);
        let before = self.target.take_lateness();
        let due = (Timestamp::EPOCH + now() + due_in).ceil_to_millis();
        say(&format!(
            "parking {} more, all due in {} s",
            parked.tasks,
            due_in.as_secs()
        ));
        self.fill(due)?;
        thread::sleep(due.since(Timestamp::EPOCH + now()));
        say("all due");
        self.target.take_lateness();
        let (start, processor) = (Instant::now(), self.worker.processor_seconds());
        self.follow()?;
        let time = start.elapsed();
        let memory = self.worker.memory();
        let processor_percent = percent(processor, self.worker.processor_seconds(), time);
        let others = other.stop()?;
        arrive(self.target, others)?;
        let meanwhile = self.target.take_lateness();
        say("counting");
        let drained = self.count(due)?;
        let ends = BTreeMap::from([("drain", parked.tasks), (OTHER.scene, others)]);
        account(self.bed, &self.bed.topics.callbacks, &ends, |_| {})?;
        none_early(before.early + meanwhile.early + drained.early)?;
        let seconds = drained.max / 1e3;
        Ok(Drained {
            tasks: parked.tasks,
            seconds,
            per_second: parked.tasks as f64 / seconds.max(1e-3),
            drained_ms: drained,
            memory,
            processor_percent,
            other_rate: OTHER.rate,
            before_ms: before,
            meanwhile_ms: meanwhile,
        })
    }

    /// Parks the tasks, each where retide would park it at that time.
    fn fill(&self, due: Timestamp) -> Result<(), Error> {
        let start = Instant::now();
        let ladder = &self.bed.config.topics.tiers;
        let mut least = self.due_in;
        fill(self.bed, "drain", self.parked, due, || {
            least = due.since(Timestamp::EPOCH + now());
            ladder.tier_for(least)
        })?;
        if due.since(Timestamp::EPOCH + now()).is_zero() {
            return Err(Error::TooSoon {
                count: self.parked.tasks,
                due_in: self.due_in,
                took: start.elapsed(),
            });
        }
        Ok(())
    }

    /// Waits until about as much stands on the topic as there are tasks. Marks of transactions count here, which is good enough to know
    /// when to begin to read it.
    fn follow(&self) -> Result<(), Error> {
        let reader = producer(self.bed, "0")?;
        let (mut seen, mut since) = (0, Instant::now());
        while seen < self.parked.tasks {
            if since.elapsed() > PATIENCE {
                return Err(Error::Stuck {
                    what: "tasks drained",
                    done: seen,
                    all: self.parked.tasks,
                });
            }
            // Rarely: it is the broker that is at work.
            thread::sleep(Duration::from_millis(200));
            let mut stands = 0;
            for partition in 0..self.bed.config.topics.partitions {
                let client = reader.client();
                let (low, high) = client.fetch_watermarks(self.topic, partition, PATIENCE)?;
                stands += (high - low) as u64;
            }
            if stands > seen {
                (seen, since) = (stands, Instant::now());
            }
        }
        Ok(())
    }

    /// Reads what was drained: every task once, and how long after `due` it was appended.
    fn count(&self, due: Timestamp) -> Result<Lateness, Error> {
        let due = i64::try_from(due.as_millis()).unwrap_or(i64::MAX);
        // A day, to a thousandth.
        let mut late = Histogram::<u64>::new_with_bounds(1, 86_400_000, 3)
            .unwrap_or_else(|error| unreachable!("{error}"));
        let mut early = 0;
        let wanted = BTreeMap::from([("drain", self.parked.tasks)]);
        let look = |message: &BorrowedMessage<'_>| {
            let appended = message.timestamp().to_millis().unwrap_or(due);
            match u64::try_from(appended - due) {
                Ok(millis) => late.saturating_record(millis),
                Err(_) => early += 1,
            }
        };
        account(self.bed, self.topic, &wanted, look)?;
        let at = |quantile| late.value_at_quantile(quantile) as f64;
        Ok(Lateness {
            p50: at(0.5),
            p99: at(0.99),
            p999: at(0.999),
            max: late.max() as f64,
            early,
            attempts: late.len() + early,
        })
    }
}
