//! A process: its workers, and the thread that keeps their rules up to date.
//!
//! Not the command: no signals, no files, no exit codes. Invariant: when [`Process::stop`] returns, every shard was drained and given
//! away, or its deadline has passed.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, TryRecvError, bounded};
use rdkafka::consumer::Consumer;
use rdkafka::error::KafkaError;
use rdkafka::types::RDKafkaErrorCode;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tracing::info;
use uuid::Uuid;

use retide_avro::Framing;
use retide_avro::beside::Beside;
use retide_avro::wire::{self, Wire as _};
use retide_config::{Config, Frame, Guarantee, Reports, Scene};
use retide_core::command::line;
use retide_core::forced::Force;
use retide_core::hold::MAX_HOLDS;
use retide_core::lane::Limits;
use retide_core::{Engine, Gates};
use retide_kafka::client::client_config;
use retide_kafka::cluster::{Layout, Plan, Tools, Whose};
use retide_kafka::scan;
use retide_kafka::topics::{Draining, Topics};
use retide_native::admin::{Operation, permitted};
use retide_native::topics;

use crate::broker;
use crate::clock;
use crate::drift::Drift;
use crate::health::{Health, Heartbeat};
use crate::holds;
use crate::identity::{Identity, fingerprint};
use crate::kept::Kept;
use crate::machine::Began;
use crate::metrics::Metrics;
use crate::outbound;
use crate::registry::Registry;
use crate::rules::Connected;
use crate::scenes::{self, Follower, Unreadable};
use crate::signals::{Line, Signals};
use crate::sources;
use crate::threads::{Death, Ended, Threads};
use crate::trouble::{Effect, Kind, Trouble, Troubles};
use crate::watch::Watch;
use crate::worker::drive::{Drive, Pace, Rules};
use crate::worker::encode::{Encoder, Formats};
use crate::worker::feed::Feed;
use crate::worker::group::Client;
use crate::worker::ledger::{AtLeastOnce, Ledger, Ownership, Transactional};
use crate::writable::Writability;

/// A running process.
pub struct Process {
    /// Its workers.
    workers: Vec<Worker>,
    /// The thread that follows the scenes.
    follower: JoinHandle<()>,
    /// The thread that watches which topics take records.
    watch: JoinHandle<()>,
    /// The thread that tells of lasting troubles.
    reminder: JoinHandle<()>,
    /// The thread that sees whether Kafka answers.
    broker: JoinHandle<()>,
    /// The thread that watches the files of TLS.
    tls: JoinHandle<()>,
    /// The thread that hears other processes.
    signals: JoinHandle<()>,
    /// The threads that copy dead letters of others.
    sources: Vec<JoinHandle<()>>,
    /// Set to end these threads.
    stop: Arc<AtomicBool>,
    /// Whether the workers turn.
    health: Arc<Health>,
    /// The threads.
    threads: Threads,
    /// Tells of workers that ended by themselves.
    failures: mpsc::Receiver<Error>,
}

/// Why a process cannot start, or a worker cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Scenes on the scenes topic cannot be used.
    #[error("{0}")]
    Unusable(String),
    /// The client library does not take the configuration.
    #[error("configure the kafka client")]
    Client(#[source] KafkaError),
    /// The scenes could not be read.
    #[error("read scenes")]
    Scenes(#[from] scenes::Error),
    /// The tiers that there are could not be listed.
    #[error("list tiers")]
    Tiers(#[source] KafkaError),
    /// The number of a schema could not be had.
    #[error(
        "{topic} is written with the number of its schema, which the registry does not give: {why}"
    )]
    Registry {
        /// The topic that is written.
        topic: String,
        /// Why it does not.
        why: String,
    },
    /// A worker's Kafka client gave up.
    #[error("worker {worker}")]
    Worker {
        /// The number of the worker.
        worker: usize,
        /// What Kafka or its client says.
        #[source]
        source: KafkaError,
    },
    /// What targets have answered could not be written before the shards were given away.
    #[error(
        "worker {worker}: the answers to {tasks} calls could not be committed: they are made again by whoever goes on"
    )]
    Uncommitted {
        /// The number of the worker.
        worker: usize,
        /// How many calls it were.
        tasks: usize,
    },
    /// A thread cannot be started.
    #[error("start a thread")]
    Thread(#[from] io::Error),
    /// A thread panicked, or ended without being told to.
    #[error("thread died: {0}")]
    Died(Death),
}

/// One worker: its thread, and the ways to reach it.
struct Worker {
    /// Its thread.
    thread: JoinHandle<()>,
    /// Sent to, or dropped, when it is to drain and end.
    stop: Sender<()>,
}

/// What the workers of a process share.
struct Shared<'a> {
    /// The configuration.
    config: &'a Config,
    /// The topics.
    topics: &'a Arc<Topics>,
    /// Which topics take records.
    writability: &'a Arc<Writability>,
    /// How long dead letters are kept.
    kept: Kept,
    /// The gates.
    gates: Arc<Gates>,
    /// When steady time began.
    began: Began,
    /// What the process is called in transactional ids: another one each time it starts.
    id: Uuid,
    /// Where calls run.
    runtime: &'a Handle,
    /// The numbers.
    metrics: &'a Arc<Metrics>,
    /// The threads.
    threads: &'a Threads,
    /// Where schemas are asked for, if there is a registry.
    registry: Option<Registry>,
    /// What stands before callbacks and alerts in Avro.
    frames: [Framing; 2],
    /// To tell of a worker that ended by itself.
    failed: mpsc::Sender<Error>,
}

/// Time between two looks for troubles of which a line is due.
const REMIND: Duration = Duration::from_secs(1);

/// The part of a worker's memory limit, in whole numbers, that may hold which ids may be where in tiers: of 18 million tasks, by default.
const IDS: usize = 8;

/// Longest wait for the number of shards.
const CALL: Duration = Duration::from_secs(10);

// === impl Process ===

impl Process {
    /// Reads the scenes of the topic, joins the group and starts to work. `scenes` are those configured outside the topic; calls run
    /// on `runtime`, everything else on `threads`; what can be known of the workers is in `metrics` and `health`.
    pub fn start(
        config: &Config,
        scenes: BTreeMap<String, Scene>,
        runtime: &Handle,
        threads: &Threads,
        metrics: &Arc<Metrics>,
        health: &Arc<Health>,
    ) -> Result<Self, Error> {
        let count = config.processor.workers.get() as usize;
        let names = (0..count).map(|number| format!("worker-{number}"));
        // All of them before the first one starts: a process is ready when all are.
        let heartbeats: Vec<_> = names.map(|name| health.worker(&name)).collect();
        let topics = Arc::new(topics_of(config)?);
        let follower = Follower::start(
            &client_config(config.kafka.consumer()),
            &topics.scenes,
            &config.processor.group,
        )?;
        let producer = client_config(config.kafka.producer());
        threads.suspects().mark_on(producer, &topics);
        let (failed, failures) = mpsc::channel(count);
        let id = Uuid::new_v4();
        let writability = writability(config, &topics, metrics);
        let kept = Kept::new(config.topics.dead_letters.warn_before);
        let topics_watch = Watch::new(
            &client_config(config.kafka.producer()),
            format!("{}-{id}-watch", config.processor.group),
            &topics,
            config.topics.events.enabled,
            &writability,
            drift(config, &topics, metrics, kept.clone()),
        );
        // Before the first call: none is made whose end could not be written.
        topics_watch.ask();
        let registry = Registry::of(config, runtime);
        let frames = frames(config, &topics, registry.as_ref())?;
        let shared = Shared {
            config,
            writability: &writability,
            kept,
            topics: &topics,
            gates: Arc::new(Gates::seeded(id.as_u64_pair().0)),
            began: Began::now(),
            id,
            runtime,
            metrics,
            threads,
            registry,
            frames,
            failed,
        };
        refuse_unusable(config, &topics, &follower)?;
        let outbound = config.outbound();
        // Read before the first call.
        let tls = outbound::Watch::new(&outbound.tls, metrics.troubles());
        let mut connected = Connected::new(topics.prefix(), outbound);
        let rules = connected.in_force(&scenes, &follower);
        info!(scenes = rules.scenes.len(), "rules in force");
        let mut signals = Signals::new(config, &topics.signals, id, metrics.troubles());
        let (mut workers, mut told) = (Vec::new(), Vec::new());
        for (number, heartbeat) in heartbeats.into_iter().enumerate() {
            // One change waits while the worker drains; the thread that follows the scenes waits with it.
            let (to_worker, changes) = bounded(1);
            let _ = to_worker.send(rules.clone());
            let ends = (changes, signals.line());
            workers.push(shared.worker(number, heartbeat, ends)?);
            told.push(to_worker);
        }
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let signals = threads.spawn("signals", move || signals.run(&stopped))?;
        let watch = broker::Watch::new(
            &client_config(config.kafka.client()),
            config.kafka.bootstrap(),
            &topics.tasks,
            metrics,
        )
        .map_err(Error::Client)?;
        let stopped = Arc::clone(&stop);
        let broker = threads.spawn("broker", move || watch.run(&stopped))?;
        let following = Following {
            troubles: metrics.troubles().held_by("scenes"),
            metrics: Arc::clone(metrics),
            config: config.clone(),
            follower,
            scenes,
            connected,
            told,
            stop: Arc::clone(&stop),
        };
        let follower = threads.spawn("scenes", move || following.run())?;
        let watched = Arc::clone(&stop);
        let topics_watch = threads.spawn("watch", move || topics_watch.run(&watched))?;
        let stopped = Arc::clone(&stop);
        let tls = threads.spawn("tls", move || tls.run(&stopped))?;
        let reminder = remind(threads, metrics, &stop)?;
        Ok(Self {
            workers,
            follower,
            watch: topics_watch,
            reminder,
            broker,
            tls,
            signals,
            sources: sources::start(config, &topics, id, metrics, (threads, &stop))?,
            stop,
            health: Arc::clone(health),
            threads: threads.clone(),
            failures,
        })
    }

    /// Waits for a thread that is missing, or a worker that cannot go on.
    pub async fn failure(&mut self) -> Error {
        tokio::select! {
            biased;
            // A death first: other failures may follow from it.
            death = self.threads.death() => Error::Died(death),
            Some(failure) = self.failures.recv() => failure,
        }
    }

    /// Drains all workers and leaves the group.
    pub fn stop(self) -> Result<(), Error> {
        let Self {
            workers,
            follower,
            watch,
            reminder,
            broker,
            tls,
            signals,
            sources,
            stop,
            health,
            threads: supervised,
            mut failures,
        } = self;
        health.drain();
        // All drain at the same time.
        let threads: Vec<_> = workers
            .into_iter()
            .map(|Worker { thread, stop }| {
                drop(stop);
                thread
            })
            .collect();
        stop.store(true, Ordering::Release);
        let others = [follower, watch, reminder, broker, tls, signals];
        let others: Vec<_> = others.into_iter().chain(sources).collect();
        for thread in &others {
            thread.thread().unpark();
        }
        for thread in threads.into_iter().chain(others) {
            // Its panic was told.
            let _ = thread.join();
        }
        match supervised.missing() {
            Some(death) => Err(Error::Died(death)),
            None => failures.try_recv().map_or(Ok(()), Err),
        }
    }
}

/// Starts the thread that writes again what lasts.
fn remind(
    threads: &Threads,
    metrics: &Arc<Metrics>,
    stop: &Arc<AtomicBool>,
) -> io::Result<JoinHandle<()>> {
    let (lines, stopped) = (Arc::clone(metrics), Arc::clone(stop));
    threads.spawn("troubles", move || {
        while !stopped.load(Ordering::Acquire) {
            thread::park_timeout(REMIND);
            lines.tick();
        }
        Ended::Told
    })
}

/// What stands before callbacks and alerts in Avro; the registry gives the numbers of schemas that are not configured.
fn frames(
    config: &Config,
    topics: &Topics,
    registry: Option<&Registry>,
) -> Result<[Framing; 2], Error> {
    let frame = |reports: Reports, topic: &str, schema: &str| {
        let number = match (reports.framing, reports.schema_id, registry) {
            (Frame::SingleObject, _, _) => return Ok::<_, Error>(Framing::SingleObject),
            (Frame::Confluent, Some(number), _) => Ok(number),
            (Frame::Confluent, None, Some(registry)) => {
                registry.register(&format!("{topic}-value"), schema)
            }
            (Frame::Confluent, None, None) => Err("no registry is configured".to_owned()),
        };
        let number = number.map_err(|why| Error::Registry {
            topic: topic.to_owned(),
            why,
        })?;
        Ok(Framing::Confluent { schema_id: number })
    };
    Ok([
        frame(
            config.topics.callbacks,
            &topics.callbacks,
            wire::Callback::SCHEMA,
        )?,
        frame(config.topics.alerts, &topics.alerts, wire::Alert::SCHEMA)?,
    ])
}

// === impl Shared ===

impl Shared<'_> {
    /// Starts worker `number`.
    fn worker(
        &self,
        number: usize,
        heartbeat: Arc<Heartbeat>,
        (rules, line): (Receiver<Rules>, Line),
    ) -> Result<Worker, Error> {
        let failed = |source| Error::Worker {
            worker: number,
            source,
        };
        let Self { config, topics, .. } = self;
        let mut consumer = client_config(config.kafka.consumer());
        consumer.set("group.id", &config.processor.group);
        let identity = Identity::of(config, number);
        let feed = Feed::start(&consumer, &identity, topics, self.metrics, self.threads)
            .map_err(failed)?;
        let shards = shards(&feed.consumer, topics).map_err(failed)?;
        self.metrics.shards.set(shards.get().into());
        let ownership = Arc::new(Ownership::default());
        let producer = client_config(config.kafka.producer());
        let encoder = &self.encoder();
        let group = &feed.consumer;
        match config.processor.guarantee {
            Guarantee::ExactlyOnce => {
                let id = format!("{}-{}-{number}", config.processor.group, self.id);
                let ledger = Transactional::start(&producer, &id, group, &ownership, encoder)
                    .map_err(failed)?;
                let drive = self.drive(
                    (feed, shards),
                    (ledger, encoder),
                    ownership,
                    (heartbeat, line),
                );
                self.run(number, drive, rules)
            }
            Guarantee::AtLeastOnce => {
                let ledger =
                    AtLeastOnce::start(&producer, group, &ownership, encoder).map_err(failed)?;
                let drive = self.drive(
                    (feed, shards),
                    (ledger, encoder),
                    ownership,
                    (heartbeat, line),
                );
                self.run(number, drive, rules)
            }
        }
    }

    /// What turns a worker's decisions into records.
    fn encoder(&self) -> Arc<Encoder> {
        let config = self.config;
        let [callback_frame, alert_frame] = self.frames;
        let formats = Formats {
            callbacks: config.topics.callbacks.format,
            events: Some(config.topics.events)
                .filter(|events| events.enabled)
                .map(|events| events.format),
            alerts: config.topics.alerts.format,
            callback_frame,
            alert_frame,
        };
        let encoder = Encoder::new(Arc::clone(self.topics), formats).with(self.writability);
        let library = config.topics.dead_letters.also.library();
        Arc::new(encoder.beside(library.map(|library| Beside {
            library,
            group: config.processor.group.as_str().into(),
        })))
    }

    /// The parts of a worker.
    fn drive<L: Ledger>(
        &self,
        (feed, shards): (Feed, NonZeroU32),
        (ledger, encoder): (L, &Arc<Encoder>),
        ownership: Arc<Ownership>,
        (heartbeat, line): (Arc<Heartbeat>, Line),
    ) -> Drive<L> {
        let config = self.config;
        let memory = config.processor.memory_limit / u64::from(config.processor.workers.get());
        let memory = usize::try_from(memory).unwrap_or(usize::MAX);
        let limits = Limits::of(memory);
        feed.limit_ids(memory / IDS);
        Drive {
            engine: Engine::new(
                config.topics.tiers.clone(),
                limits,
                Arc::clone(&self.gates),
                shards,
            )
            .holding(config.processor.unknown_scene_hold),
            feed,
            ledger,
            ownership,
            encoder: Arc::clone(encoder),
            topics: Arc::clone(self.topics),
            pace: Pace {
                commit_interval: config.processor.commit_interval,
                drain_deadline: config.processor.drain_deadline,
            },
            runtime: self.runtime.clone(),
            metrics: Arc::clone(self.metrics),
            heartbeat,
            registry: self.registry.clone(),
            signals: line,
            kept: self.kept.clone(),
            began: self.began,
        }
    }

    /// Runs a worker on a thread of its own.
    fn run<L: Ledger + 'static>(
        &self,
        number: usize,
        drive: Drive<L>,
        rules: Receiver<Rules>,
    ) -> Result<Worker, Error> {
        let (stop, stopped) = bounded(1);
        let failed = self.failed.clone();
        let body = move || {
            match drive.run(&rules, &stopped) {
                Ok((feed, ledger, tasks)) => {
                    if tasks > 0 {
                        let failure = Error::Uncommitted {
                            worker: number,
                            tasks,
                        };
                        let _ = failed.try_send(failure);
                    }
                    ledger.stop();
                    drop(feed);
                    if stopped.try_recv() != Err(TryRecvError::Disconnected) {
                        return Ended::Early("a thread it needs has ended".to_owned());
                    }
                }
                Err(source) => {
                    let failure = Error::Worker {
                        worker: number,
                        source,
                    };
                    // There is room for one failure of each worker.
                    let _ = failed.try_send(failure);
                }
            }
            Ended::Told
        };
        let thread = self.threads.spawn(&format!("worker-{number}"), body)?;
        Ok(Worker { thread, stop })
    }
}

/// Time between two looks at the secrets of scenes: soon after one is replaced, and a handful of small reads.
const LOOK: Duration = Duration::from_secs(2);

/// Keeps the rules of the workers up to date.
struct Following {
    /// Where scenes are listed that cannot be used.
    troubles: Troubles,
    /// The numbers.
    metrics: Arc<Metrics>,
    /// The configuration.
    config: Config,
    /// Reads the scenes topic.
    follower: Follower,
    /// The scenes configured outside the topic.
    scenes: BTreeMap<String, Scene>,
    /// Keeps what is connected.
    connected: Connected,
    /// The workers.
    told: Vec<Sender<Rules>>,
    /// Set when it is time to end.
    stop: Arc<AtomicBool>,
}

// === impl Following ===

impl Following {
    /// Tells the workers of every change until it is time to end.
    fn run(mut self) -> Ended {
        self.tell_troubles();
        self.tell_holds();
        let mut looked = Instant::now();
        while !self.stop.load(Ordering::Acquire) {
            let mut changed = self.follower.follow();
            if looked.elapsed() >= LOOK {
                self.tell_holds();
                changed |= self.connected.look(&self.scenes, &self.follower);
                looked = Instant::now();
            }
            if !changed {
                continue;
            }
            let rules = self.connected.in_force(&self.scenes, &self.follower);
            self.tell_troubles();
            self.tell_holds();
            info!(scenes = rules.scenes.len(), "rules changed");
            for worker in &self.told {
                // A worker that has ended needs no rules.
                let _ = worker.send(rules.clone());
            }
        }
        Ended::Told
    }

    /// Says how many holds there are, and what is wrong with them.
    fn tell_holds(&self) {
        let now = clock::timestamp();
        let holds = self.follower.holds().values();
        let on = holds.filter(|hold| hold.is_on(now) && hold.of_scene().is_none());
        let on = on.count();
        self.metrics.holds.in_force.set(on.min(MAX_HOLDS) as i64);
        let forced = self.follower.forced().values();
        let forced = forced.filter(|forced| forced.is_on(now) && forced.force != Force::Reset);
        self.metrics.holds.forced.set(forced.count() as i64);
        for (kind, troubles) in holds::troubles(&self.follower, now, &self.config.invocation) {
            self.troubles.only(kind, troubles);
        }
    }

    /// Lists the scenes that cannot be used.
    fn tell_troubles(&self) {
        let retide = &self.config.invocation;
        let missing = self.connected.missing().iter();
        let missing = missing.map(|(name, problem)| Trouble {
            kind: Kind::SecretMissing,
            subject: name.clone(),
            says: format!("{problem}: its tasks are held until there is a secret again"),
            fix: Some(
                "put the secret there, for this process to read; it looks again by itself"
                    .to_owned(),
            ),
            effect: Effect::Limits,
        });
        self.troubles.only(Kind::SecretMissing, missing);
        let unreadable = self.follower.unreadable().iter();
        let unreadable = unreadable.map(|(name, Unreadable { partition, offset, error })| Trouble {
            kind: Kind::SceneUnreadable,
            subject: name.clone(),
            says: format!("its record at partition {partition}, offset {offset} of the scenes topic cannot be read, what it was before counts on: {error}"),
            fix: Some(retide.line("scenes apply scenes.toml")),
            effect: Effect::Limits,
        });
        let others = self.follower.unreadable().others();
        let others = others.map(|others| Trouble {
            kind: Kind::SceneUnreadable,
            subject: holds::OTHERS.to_owned(),
            says: format!(
                "the records of {others} on the scenes topic cannot be read; tasks of scenes that are not known wait"
            ),
            fix: Some(format!(
                "see who writes to the scenes topic; `{}` takes one away by its name",
                retide.line("scenes delete NAME")
            )),
            effect: Effect::Limits,
        });
        self.troubles
            .only(Kind::SceneUnreadable, unreadable.chain(others));
        let prefix = &self.config.topics.prefix;
        let refused = self.follower.scenes().iter().filter_map(|(name, scene)| {
            let (keys, topic) = scene.own_topic(prefix)?;
            let keys = keys.join(".");
            Some(Trouble {
                kind: Kind::SceneRefused,
                subject: name.clone(),
                says: format!(
                    "its {keys} is {topic}, which is retide's own: nothing is delivered there"
                ),
                fix: Some(retide.line("scenes apply scenes.toml")),
                effect: Effect::Limits,
            })
        });
        self.troubles.only(Kind::SceneRefused, refused);
        let named = self.follower.scenes().iter().flat_map(|(name, scene)| {
            let profiles = scene.profiles();
            profiles.map(move |(_, profile)| (name, profile))
        });
        let unknown = named.filter(|(_, profile)| !self.config.tls.contains_key(*profile));
        let unknown = unknown.map(|(name, profile)| Trouble {
            kind: Kind::TlsUnusable,
            subject: profile.to_owned(),
            says: format!(
                "this process has no [tls.{profile}], which scene {name} names: its attempts fail and are made again"
            ),
            fix: Some(format!("set [tls.{profile}] in the configuration of the process")),
            effect: Effect::Limits,
        });
        self.troubles.only(Kind::TlsUnusable, unknown);
    }
}

/// Refuses to start where scenes of the topic cannot be used, unless that is to be ignored.
fn refuse_unusable(config: &Config, topics: &Topics, follower: &Follower) -> Result<(), Error> {
    if config.processor.ignore_unusable_scenes {
        return Ok(());
    }
    let retide = &config.invocation;
    let (mut wrong, mut names) = (Vec::new(), BTreeSet::new());
    for (
        name,
        Unreadable {
            partition,
            offset,
            error,
        },
    ) in follower.unreadable().iter()
    {
        wrong.push(format!(
            "scene {name}: its record on {}, partition {partition}, offset {offset} cannot be read: {error}",
            topics.scenes
        ));
        names.insert(name.as_str());
    }
    if let Some(others) = follower.unreadable().others() {
        wrong.push(format!(
            "{others} on {} cannot be read either",
            topics.scenes
        ));
    }
    for (name, scene) in follower.scenes() {
        if let Some((keys, topic)) = scene.own_topic(topics.prefix()) {
            let keys = keys.join(".");
            wrong.push(format!(
                "scene {name}, on {}: its {keys} is {topic}, which is retide's own",
                topics.scenes
            ));
            names.insert(name.as_str());
        }
    }
    if wrong.is_empty() {
        return Ok(());
    }
    let mut names: Vec<&str> = names.into_iter().collect();
    if names.is_empty() {
        names.push("NAME");
    }
    let delete = retide.line(&format!("scenes delete {}", line(&names)));
    Err(Error::Unusable(format!(
        "{}\nfix: {} with rules for it, or {delete}, or {} to start without",
        wrong.join("\n"),
        retide.line("scenes apply scenes.toml"),
        retide.line("run --ignore-unusable-scenes")
    )))
}

/// The topics that a configuration needs.
pub fn plan(config: &Config) -> Plan {
    let layout = Layout {
        partitions: config.topics.partitions,
        replication_factor: config.topics.replication_factor,
    };
    let topics = Topics::new(&config.topics.prefix, &config.topics.tiers);
    Plan {
        invocation: config.invocation.clone(),
        ..Plan::new(&topics, &config.topics.tiers, layout)
    }
}

/// The group of a configuration, of whom the cluster is asked; partitions that cannot be read to their end are looked at for `patience`.
pub fn whose(config: &Config, patience: Duration) -> Whose {
    Whose {
        plan: plan(config),
        prefix: config.topics.prefix.clone(),
        group: config.processor.group.clone(),
        consumer: client_config(config.kafka.consumer()),
        fingerprint: fingerprint(config),
        patience,
    }
}

/// The topics of a group, with the tiers that drain.
fn topics_of(config: &Config) -> Result<Topics, Error> {
    let topics = Topics::new(&config.topics.prefix, &config.topics.tiers);
    let draining = draining(config, &topics).map_err(Error::Tiers)?;
    let topics = topics.with_intake(config.topics.tasks.clone());
    with_commands(config, topics.with_draining(draining))
}

/// Who looks at the topics and the group while workers run.
fn drift(config: &Config, topics: &Arc<Topics>, metrics: &Metrics, kept: Kept) -> Drift {
    let troubles = metrics.troubles().held_by("drift");
    let (client, bootstrap) = (
        client_config(config.kafka.client()),
        config.kafka.bootstrap(),
    );
    let whose = whose(config, Duration::ZERO);
    Drift::new(whose, topics, &client, bootstrap, (troubles, kept))
}

/// Which topics take records, and whom that is told.
fn writability(config: &Config, topics: &Arc<Topics>, metrics: &Metrics) -> Arc<Writability> {
    let troubles = metrics.troubles().held_by("topics");
    let tools = Tools::new(
        &client_config(config.kafka.producer()),
        config.kafka.bootstrap(),
    );
    let init = config.invocation.line("init");
    Arc::new(Writability::telling(topics, troubles, tools, init))
}

/// How many shards there are: as many as partitions that all topics have, whatever was configured when they were made.
fn shards(consumer: &Client, topics: &Topics) -> Result<NonZeroU32, KafkaError> {
    let all = [&topics.tasks].into_iter().chain(&topics.tiers);
    let names: Vec<&str> = all.chain(topics.written()).map(|name| &**name).collect();
    let described = topics::describe(consumer.client(), &names, CALL)?;
    // What may not be described, or is not there, is said elsewhere.
    let counts = described.iter().flatten().map(|topic| topic.partitions);
    let least = counts.min().and_then(|least| u32::try_from(least).ok());
    let missing = KafkaError::MetadataFetch(RDKafkaErrorCode::UnknownTopicOrPartition);
    least.and_then(NonZeroU32::new).ok_or(missing)
}

/// The topics with that of commands, unless it may not be read: groups have worked before there was one. One that does not exist is read
/// when it does.
fn with_commands(config: &Config, topics: Topics) -> Result<Topics, Error> {
    let client = scan::consumer(
        client_config(config.kafka.consumer()),
        &config.processor.group,
    )
    .map_err(Error::Client)?;
    let permitted = permitted(client.client(), &[&topics.commands], CALL);
    // What is not told is found out by reading.
    let permitted = permitted.unwrap_or_default();
    let is_denied = permitted.iter().any(|topic| match &topic.operations {
        Ok(Some(operations)) => !operations.contains(&Operation::Read),
        Ok(None) => false,
        Err(code) => *code == RDKafkaErrorCode::TopicAuthorizationFailed,
    });
    Ok(if is_denied {
        topics
    } else {
        topics.with_commands()
    })
}

/// The tiers on the cluster that the configuration does not have any more: they are read until they are empty.
fn draining(config: &Config, topics: &Topics) -> Result<Vec<Draining>, KafkaError> {
    let prefix = format!("{}.delay.", config.topics.prefix);
    let client = scan::consumer(
        client_config(config.kafka.consumer()),
        &config.processor.group,
    )?;
    // All topics: asking for one by its name could create it.
    let metadata = client.fetch_metadata(None, CALL)?;
    let strays = metadata.topics().iter().filter(|topic| {
        let is_tier = topic.name().starts_with(&prefix);
        is_tier && topics.source(topic.name()).is_none() && !topic.partitions().is_empty()
    });
    let draining: Vec<Draining> = strays
        .map(|topic| Draining {
            topic: topic.name().into(),
            partitions: topic.partitions().len() as i32,
        })
        .collect();
    for Draining { topic, .. } in &draining {
        info!(
            topic = &**topic,
            "tier is not configured any more: read until it is empty"
        );
    }
    Ok(draining)
}
