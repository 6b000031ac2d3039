//! Sources: topics with dead letters of others, each copied by a thread of its own to the retry topic, where each letter is a task.
//!
//! | module | what |
//! |---|---|
//! | `session` | one try: a member of the source's group and a producer, until something fails |
//!
//! Not what a letter says, which is [`retide_avro::foreign`], nor what becomes of the task. Invariants: a copy and the offset of its letter are
//! one transaction (with `at_least_once`, the offset comes after the copy); whatever fails here is a trouble of the source, which is tried again,
//! and holds up neither workers nor other sources; memory is bounded whatever stands on the topic.

mod session;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use tracing::info;
use uuid::Uuid;

use retide_config::{Config, Foreign, Guarantee};
use retide_core::with_causes;
use retide_kafka::client::{client_config, is_missing};
use retide_kafka::topics::Topics;

use self::session::Session;
use crate::identity;
use crate::metrics::Metrics;
use crate::threads::{Ended, Threads};
use crate::trouble::{Effect, Kind, Trouble, Troubles};

/// A source of a process.
struct Source {
    /// Its name.
    name: String,
    /// What is configured of it.
    settings: Foreign,
    /// Its group.
    group: String,
    /// What its member of the group is called.
    client: String,
    /// The retry topic.
    tasks: Arc<str>,
    /// How its topic is read.
    consumer: ClientConfig,
    /// How the retry topic is written.
    producer: ClientConfig,
    /// The transactional id; none for `at_least_once`.
    transactions: Option<String>,
    /// How long a transaction collects.
    commit_interval: Duration,
    /// What lets retide's user do all that it has to.
    allow: String,
    /// Where copies are counted.
    metrics: Arc<Metrics>,
    /// Where it is told that it stands still.
    troubles: Troubles,
}

/// Why a source gets no further.
#[derive(Debug)]
struct Stuck {
    /// What it was about to do.
    doing: String,
    /// What Kafka or its client says.
    error: KafkaError,
}

/// Pause before a source that stands still is tried again, at first.
const FIRST: Duration = Duration::from_secs(1);

/// The longest such pause: soon enough after somebody has mended it.
const LONGEST: Duration = Duration::from_secs(30);

/// Starts the sources of a configuration. Transactional ids begin with the group of the workers and the `id` of the process, as theirs do.
pub(crate) fn start(
    config: &Config,
    topics: &Topics,
    id: Uuid,
    metrics: &Arc<Metrics>,
    (threads, stop): (&Threads, &Arc<AtomicBool>),
) -> io::Result<Vec<JoinHandle<()>>> {
    let workers = &config.processor.group;
    let mut started = Vec::new();
    for (name, settings) in &config.sources {
        let source = Source {
            group: settings.group(name, workers),
            client: identity::of_source(config, name),
            tasks: Arc::clone(&topics.tasks),
            consumer: client_config(config.kafka.consumer()),
            producer: client_config(config.kafka.producer()),
            transactions: match config.processor.guarantee {
                Guarantee::ExactlyOnce => Some(format!("{workers}-{id}-source-{name}")),
                Guarantee::AtLeastOnce => None,
            },
            commit_interval: config.processor.commit_interval,
            allow: config.invocation.line("init --acls"),
            metrics: Arc::clone(metrics),
            troubles: metrics.troubles().held_by(&format!("source-{name}")),
            name: name.clone(),
            settings: settings.clone(),
        };
        let stop = Arc::clone(stop);
        let body = move || source.run(&stop);
        started.push(threads.spawn(&format!("source-{name}"), body)?);
    }
    Ok(started)
}

// === impl Source ===

impl Source {
    /// Copies until it is time to end, however often that fails.
    fn run(self, stop: &AtomicBool) -> Ended {
        let Foreign { topic, scene, .. } = &self.settings;
        let (source, group) = (&self.name, &self.group);
        info!(source, topic, scene, group, "source begins");
        let mut pause = FIRST;
        while !stop.load(Ordering::Acquire) {
            let tried = Session::open(&self, stop);
            let ended = tried.and_then(|mut session| {
                session.copy(stop, &mut || {
                    self.troubles.end(Kind::SourceStopped, source);
                    pause = FIRST;
                })
            });
            if let Err(stuck) = ended {
                self.tell(&stuck);
                rest(pause, stop);
                pause = (pause * 2).min(LONGEST);
            }
        }
        self.troubles.end_all();
        Ended::Told
    }

    /// Says why it stands still, and what mends that.
    fn tell(&self, Stuck { doing, error }: &Stuck) {
        let topic = &self.settings.topic;
        let fix = match error.rdkafka_error_code() {
            Some(
                RDKafkaErrorCode::TopicAuthorizationFailed
                | RDKafkaErrorCode::GroupAuthorizationFailed
                | RDKafkaErrorCode::TransactionalIdAuthorizationFailed
                | RDKafkaErrorCode::ClusterAuthorizationFailed,
            ) => Some(format!(
                "{}, which prints what has to be allowed",
                self.allow
            )),
            Some(code) if is_missing(code) => Some(format!(
                "create {topic}, or correct `topic` of [sources.{}]",
                self.name
            )),
            Some(_) | None => None,
        };
        self.troubles.begin(Trouble {
            kind: Kind::SourceStopped,
            subject: self.name.clone(),
            says: format!(
                "letters of {topic} do not become tasks: {doing}: {}",
                with_causes(error)
            ),
            fix,
            effect: Effect::Limits,
        });
    }
}

// === impl Stuck ===

impl Stuck {
    /// That `error` came up while it was about to do this.
    fn at(doing: &str) -> impl FnOnce(KafkaError) -> Self {
        let doing = doing.to_owned();
        move |error| Self { doing, error }
    }
}

/// Waits, unless it is time to end.
fn rest(pause: Duration, stop: &AtomicBool) {
    let until = Instant::now() + pause;
    while !stop.load(Ordering::Acquire) {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return;
        }
        thread::park_timeout(left);
    }
}
