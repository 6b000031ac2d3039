//! The whole way of a task: from the retry topic over tiers and a target to exactly one end.

use std::collections::{BTreeMap, HashMap};
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use crossbeam_channel::{Receiver, Sender, bounded};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::{Header as OutHeader, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use tokio::runtime::Runtime;
use tokio::sync::watch;

use retide_connectors::Target;
use retide_core::engine::LAST;
use retide_core::lane::Limits;
use retide_core::{
    Backoff, Engine, Failure, Gates, Jitter, Kind, Ladder, Outcome, Policy, Scene, Task, Timestamp,
    scene,
};
use retide_kafka::topics::Topics;
use retide_shell::clock;
use retide_shell::health::{Health, STALL};
use retide_shell::identity::Identity;
use retide_shell::kept::Kept;
use retide_shell::machine::Began;
use retide_shell::metrics::Metrics;
use retide_shell::signals::Line;
use retide_shell::threads::Threads;
use retide_shell::worker::drive::{Drive, Pace, Rules};
use retide_shell::worker::encode::{Encoder, Formats};
use retide_shell::worker::feed::Feed;
use retide_shell::worker::ledger::{AtLeastOnce, Batch, Ledger, Ownership, Receipt, Transactional};

use crate::support::{Guarantee, PATIENCE, SHARDS, bootstrap, config, create, metrics};

/// One attempt as the target saw it.
#[derive(Clone, Debug)]
struct Attempt {
    number: u32,
    early: bool,
    value: Vec<u8>,
    foreign: Vec<(String, Vec<u8>)>,
}

/// A target that fails each task as often as its payload says, and remembers what it saw.
#[derive(Default)]
struct Recorder {
    takes: Duration,
    /// Panics where it would fail.
    panics: bool,
    attempts: Mutex<HashMap<String, Vec<Attempt>>>,
}

#[async_trait]
impl Target for Recorder {
    async fn attempt(&self, task: Arc<Task>) -> retide_connectors::Attempt {
        let wall = clock::since_epoch();
        let value = task.record.value.clone().unwrap_or_default();
        let failures: u32 = String::from_utf8_lossy(&value).parse().unwrap();
        let foreign = task.record.headers.iter().map(|header| {
            let value = header.value.as_deref().unwrap_or_default();
            (header.name.to_string(), value.to_vec())
        });
        let attempt = Attempt {
            number: task.attempt,
            early: Timestamp::EPOCH + wall < task.due,
            value: value.to_vec(),
            foreign: foreign.collect(),
        };
        self.attempts
            .lock()
            .unwrap()
            .entry(task.id.to_string())
            .or_default()
            .push(attempt);
        tokio::time::sleep(self.takes).await;
        if task.attempt > failures {
            Outcome::Success.into()
        } else {
            assert!(!self.panics, "as it was told to");
            Outcome::Retryable(Failure::new("test", "not yet")).into()
        }
    }
}

/// A worker under test.
struct Running {
    metrics: Arc<Metrics>,
    health: Health,
    stop: Sender<()>,
    _rules: Sender<Rules>,
    /// Ends with the moment at which the worker had given all away.
    thread: JoinHandle<Instant>,
    _runtime: Runtime,
}

impl Running {
    fn start<L: Guarantee>(
        bootstrap: &str,
        group: &str,
        topics: &Arc<Topics>,
        recorder: &Arc<Recorder>,
    ) -> Self {
        let target: Arc<dyn Target> = Arc::<Recorder>::clone(recorder);
        let drain = Duration::from_secs(5);
        Self::start_with(bootstrap, group, topics, (target, drain), |ledger: L| {
            ledger
        })
    }

    /// Starts a worker that calls this target, and waits so long for its calls when it ends; its ledger is what `wrap` makes of one.
    fn start_with<L: Guarantee, W: Ledger + 'static>(
        bootstrap: &str,
        group: &str,
        topics: &Arc<Topics>,
        (target, drain_deadline): (Arc<dyn Target>, Duration),
        wrap: impl FnOnce(L) -> W,
    ) -> Self {
        let runtime = Runtime::new().unwrap();
        let (metrics, health) = (metrics(), Health::new(STALL));
        let threads = Threads::default();
        let config = config(bootstrap, group);
        let identity = Identity::named("test");
        let feed = Feed::start(&config, &identity, topics, &metrics, &threads).unwrap();
        let ownership = Arc::new(Ownership::default());
        let id = format!("{group}-{}", uuid::Uuid::new_v4());
        let encoder = Arc::new(Encoder::new(Arc::clone(topics), Formats::default()));
        let ledger = L::start(bootstrap, &id, &feed.consumer, &ownership, &encoder);
        let ladder = Ladder::try_new(&["now", "5s", "1m"]).unwrap();
        let drive = Drive {
            engine: Engine::new(
                ladder,
                Limits::of(64 << 20),
                Arc::new(Gates::default()),
                NonZeroU32::new(SHARDS.unsigned_abs()).unwrap(),
            ),
            feed,
            ledger: wrap(ledger),
            ownership,
            encoder,
            topics: Arc::clone(topics),
            pace: Pace {
                commit_interval: Duration::from_millis(100),
                drain_deadline,
            },
            runtime: runtime.handle().clone(),
            metrics: Arc::clone(&metrics),
            heartbeat: health.worker("test"),
            registry: None,
            signals: Line::none(),
            kept: Kept::new(Duration::ZERO),
            began: Began::now(),
        };
        let scene = Scene {
            concurrency: NonZeroU32::new(64).unwrap(),
            ..Scene::new(
                "flaky",
                scene::Target::Call,
                Policy {
                    backoff: Backoff::Fixed {
                        delay: Duration::from_millis(300),
                    },
                    jitter: Jitter::None,
                    max_attempts: NonZeroU32::new(4).unwrap(),
                },
            )
        };
        let (rules, changed) = bounded(1);
        rules
            .send(Rules {
                holds: retide_core::Holds::default(),
                routes: [((Arc::clone(&scene.name), Kind::Work), target)].into(),
                scenes: [scene].into_iter().collect(),
            })
            .unwrap();
        let (stop, stopped) = bounded(1);
        let thread = thread::spawn(move || {
            let (feed, ledger, _) = drive.run(&changed, &stopped).unwrap();
            let ended = Instant::now();
            ledger.stop();
            drop(feed);
            ended
        });
        Self {
            metrics,
            health,
            stop,
            _rules: rules,
            thread,
            _runtime: runtime,
        }
    }

    /// Stops the worker; gives what its metrics say in the end.
    fn stop(self) -> String {
        assert!(self.health.liveness().live && self.health.readiness().ready);
        self.health.drain();
        self.stop.send(()).unwrap();
        self.thread.join().unwrap();
        self.metrics.encode()
    }
}

/// A target that answers each task when it is told to.
#[derive(Default)]
struct Doors {
    /// The payloads of the tasks that were called.
    called: Mutex<Vec<String>>,
    /// Those that are answered.
    open: watch::Sender<Vec<String>>,
}

impl Doors {
    fn open(&self, payload: &str) {
        self.open.send_modify(|open| open.push(payload.to_owned()));
    }

    fn wait_for_calls(&self, count: usize) {
        wait_until("a call", || self.called.lock().unwrap().len() >= count);
    }
}

#[async_trait]
impl Target for Doors {
    async fn attempt(&self, task: Arc<Task>) -> retide_connectors::Attempt {
        let value = task.record.value.clone().unwrap_or_default();
        let payload = String::from_utf8_lossy(&value).into_owned();
        let mut open = self.open.subscribe();
        self.called.lock().unwrap().push(payload.clone());
        open.wait_for(|open| open.contains(&payload)).await.unwrap();
        Outcome::Success.into()
    }
}

/// A ledger whose worker hears of no batch before it is told to.
struct Silent {
    ledger: Transactional,
    /// Batches that were handed over.
    submitted: Arc<AtomicUsize>,
    receipts: Receiver<Receipt>,
}

impl Silent {
    /// Whether somebody speaks stands in `speaks`.
    fn new(ledger: Transactional, submitted: &Arc<AtomicUsize>, speaks: Receiver<()>) -> Self {
        let (tell, receipts) = bounded(16);
        let own = ledger.receipts().clone();
        thread::spawn(move || {
            // Until whoever might speak is gone, which is as good.
            let _ = speaks.recv();
            while let Ok(receipt) = own.recv() {
                let _ = tell.send(receipt);
            }
        });
        Self {
            ledger,
            submitted: Arc::clone(submitted),
            receipts,
        }
    }
}

impl Ledger for Silent {
    fn submit(&mut self, batch: Batch) {
        self.ledger.submit(batch);
        self.submitted.fetch_add(1, Ordering::SeqCst);
    }

    fn receipts(&self) -> &Receiver<Receipt> {
        &self.receipts
    }

    fn keeps_order(&self) -> bool {
        self.ledger.keeps_order()
    }

    fn stop(self) {
        self.ledger.stop();
    }
}

fn wait_until(what: &str, holds: impl Fn() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < PATIENCE, "{what}");
        thread::park_timeout(Duration::from_millis(2));
    }
}

/// A worker ends while one call hangs for longer than is waited for, and comes back as the last batch is written: the tasks that have ended
/// when it is gone, unless this machine was so slow that its time was up.
fn end_with_a_late_answer() -> Option<usize> {
    let bootstrap = bootstrap();
    let group = format!("drive-{}", uuid::Uuid::new_v4());
    let topics = create(&bootstrap, &group);
    let doors = Arc::<Doors>::default();
    let submitted = Arc::<AtomicUsize>::default();
    let (speak, speaks) = bounded(1);
    let drain = Duration::from_millis(200);
    let producer: BaseProducer = config(&bootstrap, &group).create().unwrap();
    for payload in ["soon", "late"] {
        let header = OutHeader {
            key: "retry-scene",
            value: Some("flaky"),
        };
        let record = BaseRecord::<(), str>::to(&topics.tasks)
            .payload(payload)
            .partition(0)
            .headers(OwnedHeaders::new().insert(header));
        producer.send(record).map_err(|(error, _)| error).unwrap();
    }
    producer.flush(PATIENCE).unwrap();
    let target: Arc<dyn Target> = Arc::<Doors>::clone(&doors);
    let running = Running::start_with(&bootstrap, &group, &topics, (target, drain), |ledger| {
        Silent::new(ledger, &submitted, speaks)
    });
    doors.wait_for_calls(2);

    let before = submitted.load(Ordering::SeqCst);
    let start = Instant::now();
    running.stop.send(()).unwrap();
    doors.open("soon");
    wait_until("a batch", || submitted.load(Ordering::SeqCst) > before);
    // Until it is not waited for any more.
    wait_until("the deadline", || start.elapsed() > drain * 2);
    doors.open("late");
    let answered = "retide_attempts_total{scene=\"flaky\",outcome=\"success\"} 2";
    wait_until("an answer", || running.metrics.encode().contains(answered));
    speak.send(()).unwrap();
    let ended = running.thread.join().unwrap();

    let is_in_time = ended.duration_since(start) < drain + LAST;
    is_in_time.then(|| {
        // A commit is answered before all can see it.
        let start = Instant::now();
        loop {
            let ended = outcomes(&bootstrap, &topics.callbacks).len();
            if ended >= 2 || start.elapsed() > PATIENCE {
                return ended;
            }
        }
    })
}

/// The header `name` of every record of a topic, as a read-committed consumer sees them, with the record's `retry-id`.
fn outcomes(bootstrap: &str, topic: &str) -> Vec<(String, String)> {
    let consumer: BaseConsumer = config(bootstrap, "reader")
        .set("isolation.level", "read_committed")
        .set("enable.partition.eof", "true")
        .create()
        .unwrap();
    let mut list = TopicPartitionList::new();
    for shard in 0..SHARDS {
        list.add_partition_offset(topic, shard, Offset::Beginning)
            .unwrap();
    }
    #[allow(
        clippy::disallowed_methods,
        reason = "what judges retide shares no reader with it"
    )]
    consumer.assign(&list).unwrap();
    let (mut seen, mut ends) = (Vec::new(), 0);
    while ends < SHARDS {
        match consumer.poll(PATIENCE).expect("an end of the partition") {
            Ok(message) => {
                let text = |name: &str| {
                    let headers = retide_native::headers::read(&message).unwrap();
                    let value = headers.last(name.as_bytes()).unwrap_or_default();
                    String::from_utf8_lossy(value).into_owned()
                };
                seen.push((text("retry-id"), text("retry-outcome")));
            }
            Err(rdkafka::error::KafkaError::PartitionEOF(_)) => ends += 1,
            Err(error) => panic!("{error}"),
        }
    }
    seen
}

/// Produces a task of the scene `flaky` that fails `failures` times, with headers of its own and one that only retide may set.
fn produce(producer: &BaseProducer, topics: &Topics, number: u32, failures: u32) {
    let header = |key, value| OutHeader { key, value };
    let headers = OwnedHeaders::new()
        .insert(header("trace", Some("1")))
        .insert(header("retry-scene", Some("flaky")))
        .insert(header("trace", Some("2")))
        .insert(header("retry-attempt", Some("99")));
    let failures = failures.to_string();
    let record = BaseRecord::<(), str>::to(&topics.tasks)
        .payload(&failures)
        .partition(number.cast_signed() % SHARDS)
        .headers(headers);
    producer.send(record).map_err(|(error, _)| error).unwrap();
}

/// Waits until there are as many callbacks.
fn wait_for_ends(bootstrap: &str, topics: &Topics, count: usize) {
    let start = Instant::now();
    loop {
        let ended = outcomes(bootstrap, &topics.callbacks).len();
        if ended >= count {
            return;
        }
        assert!(start.elapsed() < PATIENCE, "only {ended} of {count} ended");
    }
}

#[test]
fn a_task_is_tried_until_it_succeeds_or_is_given_up_and_ends_exactly_once() {
    each_task_ends_once::<Transactional>();
}

#[test]
fn a_task_ends_exactly_once_at_least_once_too_if_nothing_crashes() {
    each_task_ends_once::<AtLeastOnce>();
}

fn each_task_ends_once<L: Guarantee>() {
    let bootstrap = bootstrap();
    let group = format!("drive-{}", uuid::Uuid::new_v4());
    let topics = create(&bootstrap, &group);
    let recorder = Arc::new(Recorder::default());
    let tasks = 1_000_u32;
    let producer: BaseProducer = config(&bootstrap, &group).create().unwrap();
    for number in 0..tasks {
        produce(&producer, &topics, number, number % 5);
    }
    producer.flush(PATIENCE).unwrap();

    let running = Running::start::<L>(&bootstrap, &group, &topics, &recorder);
    wait_for_ends(&bootstrap, &topics, tasks as usize);
    let metrics = [running.stop()];
    // A second worker goes on where the first one stopped: at one more task in each shard, and nothing else.
    let again = Running::start::<L>(&bootstrap, &group, &topics, &recorder);
    for shard in 0..SHARDS.cast_unsigned() {
        produce(&producer, &topics, shard, 0);
    }
    producer.flush(PATIENCE).unwrap();
    let all = tasks as usize + SHARDS as usize;
    wait_for_ends(&bootstrap, &topics, all);
    let metrics = [&metrics[..], &[again.stop()]].concat();

    let callbacks = outcomes(&bootstrap, &topics.callbacks);
    assert_eq!(callbacks.len(), all);
    check_metrics(&bootstrap, &topics, &metrics);
    let ends: BTreeMap<String, String> = callbacks.into_iter().collect();
    assert_eq!(ends.len(), all, "each id once");
    let dead = outcomes(&bootstrap, &topics.dead_letters);
    assert_eq!(dead.len(), tasks as usize / 5);
    check_attempts(&recorder, &ends);
}

#[test]
fn a_target_that_panics_has_failed_and_is_tried_again() {
    let bootstrap = bootstrap();
    let group = format!("drive-{}", uuid::Uuid::new_v4());
    let topics = create(&bootstrap, &group);
    let recorder = Arc::new(Recorder {
        panics: true,
        ..Recorder::default()
    });
    let producer: BaseProducer = config(&bootstrap, &group).create().unwrap();
    produce(&producer, &topics, 0, 1);
    producer.flush(PATIENCE).unwrap();

    let running = Running::start::<Transactional>(&bootstrap, &group, &topics, &recorder);
    wait_for_ends(&bootstrap, &topics, 1);
    let metrics = running.stop();

    let [(_, outcome)] = &outcomes(&bootstrap, &topics.callbacks)[..] else {
        panic!("one callback expected");
    };
    assert_eq!(outcome, "delivered");
    let attempts = recorder.attempts.lock().unwrap();
    assert_eq!(attempts.values().map(Vec::len).sum::<usize>(), 2);
    assert!(
        metrics.contains("retide_target_panics_total 1"),
        "{metrics}"
    );
}

#[test]
fn an_answer_that_comes_while_the_last_batch_is_written_is_committed_too() {
    let ended = (0..10).find_map(|_| end_with_a_late_answer());

    assert_eq!(ended, Some(2));
}

#[test]
fn workers_that_join_and_leave_lose_nothing_and_repeat_nothing() {
    workers_join_and_leave::<Transactional>();
}

#[test]
fn workers_that_join_and_leave_repeat_nothing_at_least_once_either() {
    workers_join_and_leave::<AtLeastOnce>();
}

fn workers_join_and_leave<L: Guarantee>() {
    let bootstrap = bootstrap();
    let group = format!("drive-{}", uuid::Uuid::new_v4());
    let topics = create(&bootstrap, &group);
    // So slow that calls are in flight at each moment of the test.
    let recorder = Arc::new(Recorder {
        takes: Duration::from_millis(100),
        ..Recorder::default()
    });
    let tasks = 2_000_u32;
    let producer: BaseProducer = config(&bootstrap, &group).create().unwrap();
    let worker = || Running::start::<L>(&bootstrap, &group, &topics, &recorder);

    let first = worker();
    for number in 0..tasks / 2 {
        produce(&producer, &topics, number, number % 5);
    }
    producer.flush(PATIENCE).unwrap();
    wait_for_ends(&bootstrap, &topics, 1);
    let second = worker();
    for number in tasks / 2..tasks {
        produce(&producer, &topics, number, number % 5);
    }
    producer.flush(PATIENCE).unwrap();
    wait_for_ends(&bootstrap, &topics, tasks as usize / 2);
    first.stop();
    wait_for_ends(&bootstrap, &topics, tasks as usize);
    second.stop();

    let callbacks = outcomes(&bootstrap, &topics.callbacks);
    assert_eq!(callbacks.len(), tasks as usize);
    let ends: BTreeMap<String, String> = callbacks.into_iter().collect();
    check_attempts(&recorder, &ends);
}

/// Checks that each task that ended was tried as often as it had to be, never twice, never early, and unchanged.
fn check_attempts(recorder: &Recorder, ends: &BTreeMap<String, String>) {
    let attempts = recorder.attempts.lock().unwrap();
    assert_eq!(attempts.len(), ends.len(), "each task ends once");
    for (id, attempts) in attempts.iter() {
        let failures: u32 = String::from_utf8_lossy(&attempts[0].value).parse().unwrap();
        let numbers: Vec<u32> = attempts.iter().map(|attempt| attempt.number).collect();
        // Four attempts at most: a task that fails four times is given up.
        assert_eq!(numbers, (1..=(failures + 1).min(4)).collect::<Vec<_>>());
        let end = if failures < 4 { "delivered" } else { "dead" };
        assert_eq!(ends[id], end);
        for attempt in attempts {
            assert!(!attempt.early, "{id} was tried early");
            let foreign = [("trace", "1"), ("trace", "2")];
            let foreign = foreign.map(|(name, value)| (name.to_owned(), value.into()));
            assert_eq!(attempt.foreign, foreign);
        }
    }
}

/// Checks that what the workers counted, all together, is what stands on the topics.
fn check_metrics(bootstrap: &str, topics: &Topics, metrics: &[String]) {
    let counted = |sample: &str| -> usize {
        let lines = metrics.iter().flat_map(|text| text.lines());
        let values = lines.filter_map(|line| line.strip_prefix(sample)?.strip_prefix(' '));
        values.map(|value| value.parse::<usize>().unwrap()).sum()
    };
    let records = |topic: &str, outcome: &str| {
        let all = outcomes(bootstrap, topic);
        all.iter().filter(|(_, found)| found == outcome).count()
    };
    let parked: Vec<usize> = topics
        .tiers
        .iter()
        .map(|topic| outcomes(bootstrap, topic).len())
        .collect();
    let (delivered, dead) = (
        records(&topics.callbacks, "delivered"),
        records(&topics.callbacks, "dead"),
    );

    for (sample, count) in [
        (
            r#"retide_tasks_ended_total{scene="flaky",outcome="delivered"}"#,
            delivered,
        ),
        (
            r#"retide_tasks_ended_total{scene="flaky",outcome="dead"}"#,
            dead,
        ),
        (
            r#"retide_dead_letters_total{reason="attempts-exhausted"}"#,
            dead,
        ),
        (
            r#"retide_attempts_total{scene="flaky",outcome="success"}"#,
            delivered,
        ),
        // Each failed attempt is a record on a tier, but for the last one of a dead task.
        (
            r#"retide_attempts_total{scene="flaky",outcome="retryable"}"#,
            parked.iter().sum::<usize>() + dead,
        ),
        (r#"retide_parked_total{tier="now"}"#, parked[0]),
        (r#"retide_parked_total{tier="5s"}"#, parked[1]),
        (r#"retide_ledger_batches_total{result="dropped"}"#, 0),
        ("retide_open_records", 0),
        ("retide_held_bytes", 0),
        ("retide_calls_in_flight", 0),
        ("retide_owned_shards", 0),
        ("retide_workers", 0),
    ] {
        assert_eq!(counted(sample), count, "{sample}");
    }
    // One for each member, and more where shards move to one that comes later.
    let assigned = counted(r#"retide_rebalances_total{kind="assigned"}"#);
    assert!(assigned >= metrics.len(), "{assigned}");
}
