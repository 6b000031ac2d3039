//! The demo: a broker in this process, a target that fails by a script, retide between them, and a count of what came out.
//!
//! | module | what |
//! |---|---|
//! | `plan` | what happens to each task, by a seed |
//! | `target` | the target, and what it saw |
//! | `tally` | what the callbacks topic says |
//!
//! Invariant: every figure is counted from what the target and the topics saw; none is retide's own.

pub(crate) mod plan;
mod tally;
mod target;

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use rdkafka::ClientConfig;
use rdkafka::error::KafkaError;
use serde::Serialize;
use tokio::runtime::Runtime;

use retide_avro::headers;
use retide_config::{self as config, Config};
use retide_core::{Header, Ladder, Terminal};
use retide_embedded::Broker;
use retide_kafka::client::client_config;
use retide_kafka::cluster;
use retide_kafka::follow;
use retide_kafka::publish::Publisher;
use retide_kafka::record::OutRecord;
use retide_kafka::topics::Topics;
use retide_shell::clock;
use retide_shell::health::{Health, STALL};
use retide_shell::metrics::Metrics;
use retide_shell::process::{self, Process};
use retide_shell::scenes;
use retide_shell::threads::Threads;

use self::plan::{DEADLINE, Kind, POISON_ATTEMPTS, Script, TIMEOUT};
use self::tally::Tally;
use self::target::Target;

/// A running demo.
pub struct Demo {
    /// What happens.
    script: Script,
    /// How many tasks there are.
    tasks: u64,
    /// When it began.
    start: Instant,
    /// Where calls and the target run.
    runtime: Runtime,
    /// The target.
    target: Target,
    /// Counts ends.
    tally: Tally,
    /// retide.
    process: Process,
    /// The broker; ends last.
    broker: Broker,
}

/// How far a demo has come.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Tasks that are to end.
    pub tasks: u64,
    /// Tasks that have ended.
    pub ended: u64,
    /// Attempts that the target has seen.
    pub attempts: u64,
    /// The same by scene.
    pub scenes: Vec<SceneProgress>,
}

/// How far the tasks of one scene have come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SceneProgress {
    /// The scene.
    pub scene: &'static str,
    /// Its tasks that have ended.
    pub ended: u64,
    /// Its tasks that wait for their next attempt.
    pub waiting: u64,
    /// Why, in words: what the target said to most of them.
    pub why: Option<&'static str>,
}

/// What came out.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Tasks produced.
    pub tasks: u64,
    /// Tasks that the target took.
    pub delivered: u64,
    /// Tasks that were given up.
    pub dead: u64,
    /// Tasks whose deadline passed.
    pub expired: u64,
    /// Tasks without an end.
    pub lost: u64,
    /// Attempts before their due time.
    pub early: u64,
    /// Attempts and ends beyond the first of their number.
    pub duplicates: u64,
    /// Attempts that the target saw.
    pub attempts: u64,
    /// Callback records.
    pub callbacks: u64,
    /// Arrival at the target after the due time.
    pub lateness_ms: Lateness,
    /// Time from the first task to the last end.
    pub seconds: f64,
    /// The ends by scene.
    #[serde(skip)]
    pub scenes: Vec<SceneReport>,
    /// What differs from the script, in words; empty if nothing does.
    #[serde(skip)]
    pub differences: Vec<String>,
    /// What the machine is to blame for, in words.
    #[serde(skip)]
    pub notes: Vec<String>,
    /// A task whose story is worth reading.
    #[serde(skip)]
    pub example: String,
}

/// Lateness in milliseconds.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Lateness {
    /// Of half the attempts, at most.
    pub p50: f64,
    /// Of 99 in 100 attempts, at most.
    pub p99: f64,
    /// Of all attempts, at most.
    pub max: f64,
}

/// The ends of one scene's tasks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SceneReport {
    /// The scene.
    pub scene: &'static str,
    /// Tasks that the target took.
    pub delivered: u64,
    /// Tasks that were given up.
    pub dead: u64,
    /// Tasks whose deadline passed.
    pub expired: u64,
}

/// Why the demo cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Something of the system's is missing.
    #[error("start the demo")]
    Start(#[from] io::Error),
    /// The topics could not be created.
    #[error("create the demo's topics")]
    Topics(#[from] cluster::Error),
    /// The scenes are not valid, which is a fault of this program's.
    #[error("read the demo's scenes")]
    Scenes(#[from] config::Error),
    /// The scenes could not be put on their topic, which is a fault of this program's.
    #[error("write the demo's scenes")]
    Publish(#[from] scenes::Error),
    /// retide could not start, or could not go on.
    #[error("run retide")]
    Process(#[from] process::Error),
    /// The callbacks topic cannot be read.
    #[error("count the demo's tasks")]
    Follow(#[from] follow::Error),
    /// A client of the demo's own failed.
    #[error("produce and count the demo's tasks")]
    Kafka(#[from] KafkaError),
}

/// Partitions of the demo's topics: enough to show several shards, few beside a broker in memory.
const PARTITIONS: i32 = 4;

/// Longest time for creating the topics, which takes milliseconds.
const CREATE: Duration = Duration::from_secs(20);

/// How fast tasks are produced, in tasks per second: fast, and well below what two cores carry.
const PACE: u64 = 400;

/// Longest time without a single end before the rest counts as lost: far beyond any wait in the demo.
const PATIENCE: Duration = Duration::from_secs(30);

// === impl Demo ===

impl Demo {
    /// Starts the broker, the target and retide, which wait for tasks.
    pub fn start(tasks: u64, seed: u64) -> Result<Self, Error> {
        let script = Script { seed };
        let broker = Broker::start()?;
        let runtime = Runtime::new()?;
        let target = runtime.block_on(Target::start(script))?;
        let config = Self::config(&broker, &target)?;
        let topics = Topics::new(&config.topics.prefix, &config.topics.tiers);
        let plan = process::plan(&config);
        let client = client_config(config.kafka.client());
        runtime.block_on(cluster::create(&client, &plan, CREATE))?;
        let tally = Tally::start(&client, &topics.callbacks, script)?;
        // So that every command knows them, as it would on any cluster.
        publish(&client, &topics.scenes, &config)?;
        let own = config.scenes.clone();
        let process = {
            // Not shown: the demo counts from outside.
            let metrics = Arc::new(Metrics::new(&config.topics.tiers));
            let health = Arc::new(Health::new(STALL).with_troubles(metrics.troubles()));
            Process::start(
                &config,
                own,
                runtime.handle(),
                &Threads::default(),
                &metrics,
                &health,
            )?
        };
        Ok(Self {
            script,
            tasks,
            start: Instant::now(),
            runtime,
            target,
            tally,
            process,
            broker,
        })
    }

    /// The address of the broker.
    pub fn bootstrap(&self) -> &str {
        self.broker.bootstrap()
    }

    /// Produces the tasks and waits for their ends, telling `progress` now and then.
    pub fn run(&mut self, mut progress: impl FnMut(Progress)) -> Result<Report, Error> {
        self.start = Instant::now();
        let producing = self.produce();
        let (mut ended, mut since) = (0, Instant::now());
        while self.tally.score.ended() < self.tasks && since.elapsed() < PATIENCE {
            self.tally.read();
            if self.tally.score.ended() > ended {
                (ended, since) = (self.tally.score.ended(), Instant::now());
            }
            progress(self.progress());
        }
        let seconds = self.start.elapsed().as_secs_f64();
        producing
            .join()
            .unwrap_or_else(|_| Err(KafkaError::Canceled))?;
        // Whatever came twice comes now.
        self.tally.read();
        Ok(self.report(seconds))
    }

    /// How far it has come.
    fn progress(&self) -> Progress {
        let ended = |index: &u64| self.tally.score.has_ended(*index);
        self.target.seen.read(|seen| Progress {
            tasks: self.tasks,
            ended: self.tally.score.ended(),
            attempts: seen.attempts,
            scenes: Kind::ALL
                .into_iter()
                .map(|kind| {
                    let said = seen.said.get(&kind);
                    let waiting = said.into_iter().flatten();
                    let waiting = waiting.filter(|(index, _)| !ended(index));
                    let mut whys: BTreeMap<&'static str, u64> = BTreeMap::new();
                    for (_, answer) in waiting {
                        if let Some(why) = answer.why() {
                            *whys.entry(why).or_default() += 1;
                        }
                    }
                    SceneProgress {
                        scene: kind.name(),
                        ended: self.tally.score.counts.all(kind),
                        waiting: whys.values().sum(),
                        why: whys
                            .into_iter()
                            .max_by_key(|(_, count)| *count)
                            .map(|(why, _)| why),
                    }
                })
                .collect(),
        })
    }

    /// Where the demo's own futures can run.
    pub fn runtime(&self) -> &Runtime {
        &self.runtime
    }

    /// Drains retide and ends the broker.
    pub fn stop(self) -> Result<(), Error> {
        let Self {
            process,
            tally,
            broker,
            ..
        } = self;
        let stopped = process.stop();
        // Clients first: they would complain about a broker that is gone.
        drop(tally);
        broker.stop();
        Ok(stopped?)
    }

    /// What retide runs with.
    fn config(broker: &Broker, target: &Target) -> Result<Config, Error> {
        let mut config = Config::default();
        config.kafka.set("bootstrap.servers", broker.bootstrap());
        config.topics.partitions = PARTITIONS;
        config.topics.replication_factor = 1;
        config.topics.tiers = Ladder::default();
        // Half the default: the demo shows short waits.
        config.processor.commit_interval = Duration::from_millis(50);
        config.scenes = config::scenes("demo.toml", rules(target), &config.topics.prefix)?;
        Ok(config)
    }

    /// Produces the tasks at their pace, on a thread of its own.
    fn produce(&self) -> thread::JoinHandle<Result<(), KafkaError>> {
        let (script, tasks) = (self.script, self.tasks);
        let mut client = ClientConfig::new();
        client.set("bootstrap.servers", self.broker.bootstrap());
        client.set("linger.ms", "1");
        let topic: Arc<str> = Arc::clone(&Topics::new("retry", &Ladder::default()).tasks);
        thread::spawn(move || {
            let mut publisher = Publisher::try_new(&client)?;
            let start = Instant::now();
            for index in 0..tasks {
                let at = start + Duration::from_micros(index * 1_000_000 / PACE);
                thread::sleep(at.saturating_duration_since(Instant::now()));
                publisher.send(&task(&topic, script, index));
            }
            publisher
                .finish()
                .into_iter()
                .try_for_each(|result| result.map(drop))
        })
    }

    /// The first task that failed a few times before it was delivered, else the first one.
    fn example(&self) -> String {
        let index = (0..self.tasks).find(|index| {
            let plan = self.script.plan(*index);
            plan.kind == Kind::Flaky && plan.attempts() > 2
        });
        Script::id(index.unwrap_or_default())
    }

    /// What came out.
    fn report(&self, seconds: f64) -> Report {
        let counts = &self.tally.score.counts;
        let lost = self.tasks - self.tally.score.ended().min(self.tasks);
        let expected: u64 = (0..self.tasks)
            .map(|index| u64::from(self.script.plan(index).attempts()))
            .sum();
        self.target.seen.read(|seen| {
            let quantile = |quantile| seen.lateness.value_at_quantile(quantile) as f64 / 1e3;
            let mut differences = Vec::new();
            for (what, count) in [
                ("tasks without an end", lost),
                ("attempts before their due time", seen.early),
                ("attempts repeated", seen.repeated),
                ("ends beyond the first of a task", counts.repeated),
                ("ends other than the script says", counts.unexpected),
            ] {
                if count > 0 {
                    differences.push(format!("{count} {what}"));
                }
            }
            let mut notes = Vec::new();
            if seen.skipped > 0 {
                let skipped = seen.skipped;
                notes.push(format!(
                    "{skipped} attempts never reached the target: this machine is so busy that they timed out on the way"
                ));
            }
            // An answer that comes too late is one that did not come: the task is tried once more.
            if seen.attempts > expected {
                let more = seen.attempts - expected;
                notes.push(format!(
                    "{more} attempts more than the script says: this machine is so busy that answers came too late"
                ));
            }
            if counts.out_of_time > 0 {
                let late = counts.out_of_time;
                notes.push(format!(
                    "{late} tasks ran out of time before the target took them: this machine is that busy"
                ));
            }
            Report {
                tasks: self.tasks,
                delivered: counts.total(Terminal::Delivered),
                dead: counts.total(Terminal::Dead),
                expired: counts.total(Terminal::Expired),
                lost,
                early: seen.early,
                duplicates: seen.repeated + counts.repeated,
                attempts: seen.attempts,
                callbacks: counts.callbacks,
                lateness_ms: Lateness {
                    p50: quantile(0.5),
                    p99: quantile(0.99),
                    max: seen.lateness.max() as f64 / 1e3,
                },
                seconds,
                scenes: Kind::ALL
                    .into_iter()
                    .map(|kind| SceneReport {
                        scene: kind.name(),
                        delivered: counts.of(kind, Terminal::Delivered),
                        dead: counts.of(kind, Terminal::Dead),
                        expired: counts.of(kind, Terminal::Expired),
                    })
                    .collect(),
                differences,
                notes,
                example: self.example(),
            }
        })
    }
}

/// Puts the scenes on their topic.
fn publish(client: &ClientConfig, topic: &Arc<str>, config: &Config) -> Result<(), Error> {
    let now = clock::timestamp();
    let mut publisher = Publisher::try_new(client)?;
    for (name, scene) in &config.scenes {
        let format = config.topics.scenes.format;
        publisher.send(&scenes::put(topic, format, name, scene, now)?);
    }
    for stored in publisher.finish() {
        stored?;
    }
    Ok(())
}

/// The scenes of the demo, as they would stand in a file.
fn rules(target: &Target) -> String {
    let address = target.address;
    let timeout = format!("{}ms", TIMEOUT.as_millis());
    let deadline = format!("{}s", DEADLINE.as_secs());
    format!(
        r#"
[scenes.steady]
target = {{ http = {{ url = "http://{address}/steady", timeout = "5s" }} }}

[scenes.flaky]
target = {{ http = {{ url = "http://{address}/flaky", timeout = "{timeout}" }} }}
backoff = {{ exponential = {{ first = "200ms", factor = 2.0, max = "2s" }} }}
jitter = "equal"

[scenes.poison]
target = {{ http = {{ url = "http://{address}/poison", timeout = "5s" }} }}
backoff = {{ fixed = {{ delay = "500ms" }} }}
max_attempts = {POISON_ATTEMPTS}

[scenes.throttled]
target = {{ http = {{ url = "http://{address}/throttled", timeout = "5s" }} }}
backoff = {{ fixed = {{ delay = "500ms" }} }}
deadline = "{deadline}"
cooldown = "none"
"#
    )
}

/// The record of one task: what any producer would send.
fn task(topic: &Arc<str>, script: Script, index: u64) -> OutRecord {
    let header = |name: &str, value: String| Header {
        name: headers::name(name),
        value: Some(value.into()),
    };
    OutRecord {
        topic: Arc::clone(topic),
        partition: None,
        key: Some(Bytes::from(index.to_string())),
        value: Some(Bytes::from(format!("{{\"order\":{index}}}"))),
        headers: [
            header(headers::SCENE, script.plan(index).kind.name().to_owned()),
            header(headers::ID, Script::id(index)),
            header("content-type", "application/json".to_owned()),
        ]
        .into_iter()
        .collect(),
    }
}
