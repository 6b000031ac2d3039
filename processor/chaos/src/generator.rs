//! The generator: produces the tasks of a plan at a steady pace, and writes down what it intended and what was acknowledged.
//!
//! Invariant: an intent is in the ledger before its record is handed to the client, an acknowledgement after the broker's word.

use std::iter::Peekable;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;
use std::vec;

use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, Producer};

use crate::Failed;
use crate::campaign::Ended;
use crate::ledger::{Ledger, fingerprint, now_micros};
use crate::orders;
use crate::pace::{Acks, COPY, Pace, Progress, ROUND, Record, hand};
use crate::plan::{
    APPLIED, FORCED, HELD, KEPT, Kind, LATER, LATEST, ONCE, ORDERED, Plan, RESTED, ROUNDS, Random,
    SCENE, SPENT, STOPPED, SWEPT, Scope, TO_ONE_APPLIED, WARDS,
};

/// What is produced, and where.
pub(crate) struct Generator {
    /// The broker.
    pub(crate) bootstrap: String,
    /// The retry topic.
    pub(crate) topic: String,
    /// Its partitions.
    pub(crate) partitions: u64,
    /// The seed of the tasks.
    pub(crate) seed: u64,
    /// How many tasks.
    pub(crate) tasks: usize,
    /// What tasks there are.
    pub(crate) scope: Scope,
    /// Whether some tasks are of the scene on the scenes topic.
    pub(crate) applied: bool,
    /// The commands that wait for tasks, and the tasks.
    pub(crate) awaited: Vec<(String, usize)>,
    /// The commands that have said what they have done, and that they wait.
    pub(crate) ended: Ended,
    /// Intents and acknowledgements.
    pub(crate) ledger: Ledger,
    /// How far it is, for whoever waits.
    pub(crate) progress: Arc<Progress>,
}

/// A record to be produced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    /// The task with this number.
    Task(usize),
    /// The same once more, with another payload.
    Copy(usize),
    /// The same once more, in this round, to take its place.
    Round(usize, usize),
    /// None by now.
    Nothing,
}

/// The records in their order.
struct Agenda {
    /// Those that have a time.
    timed: Peekable<vec::IntoIter<(Duration, What)>>,
    /// Those that follow a command.
    awaited: Vec<(String, usize)>,
    /// The commands that have ended.
    ended: Ended,
    /// Whether somebody wants it to end.
    progress: Arc<Progress>,
}

/// How often it is looked whether a command has ended, when there is nothing else to do.
const TURN: Duration = Duration::from_millis(20);

// === impl Generator ===

impl Generator {
    /// Starts on a thread of its own.
    pub(crate) fn start(self) -> Result<(), Failed> {
        let all = self.agenda();
        let Self {
            bootstrap,
            topic,
            partitions,
            seed,
            scope,
            applied,
            ledger,
            progress,
            ..
        } = self;
        let pace = Pace {
            name: "generator",
            bootstrap,
            ledger,
            progress,
            part: |progress| &progress.tasks,
        };
        pace.start(all, move |producer, what| {
            let (What::Task(number) | What::Copy(number) | What::Round(number, _)) = what else {
                producer.poll(Duration::ZERO);
                return;
            };
            let plan = Plan::of(seed, number, scope);
            let scene = match (plan.kind, &plan.key) {
                (Kind::Later, _) => LATER,
                (Kind::Once, _) => ONCE,
                (Kind::Latest, _) => LATEST,
                (Kind::Kept, _) => KEPT,
                (Kind::Forced, _) => FORCED,
                (Kind::Stopped, _) => STOPPED,
                (Kind::Held, _) => HELD,
                (Kind::Spent, _) => SPENT,
                (Kind::Rested, _) => RESTED,
                (Kind::Plain, Some(_)) => ORDERED,
                (Kind::Plain, None) if applied && number % TO_ONE_APPLIED == 0 => APPLIED,
                (Kind::Plain, None) if scope.has_commands && orders::is_swept(number) => SWEPT,
                (Kind::Awaited, _) | (Kind::Plain, None) => SCENE,
            };
            let goes = Place {
                topic: &topic,
                // What has the same identity goes to the same partition.
                partition: (plan.kind == Kind::Once || plan.kind.is_replaced())
                    .then(|| (number as u64 / 7 % partitions) as i32),
                // Those that are held together.
                ward: (plan.kind == Kind::Held).then(|| format!("w{}", number as u64 % WARDS)),
                scene,
            };
            match what {
                What::Copy(_) => copy(producer, &goes, &plan),
                What::Round(_, round) => {
                    again(producer, &goes, &plan.in_round(seed, number, round));
                }
                What::Task(_) | What::Nothing => send(producer, &goes, &plan),
            }
        })
    }

    /// The records, and when they are produced.
    fn agenda(&self) -> Agenda {
        let rate = self.scope.rate;
        let at = |number| Duration::from_secs_f64(number as f64 / rate as f64);
        let mut timed = Vec::new();
        for number in 0..self.tasks {
            match Kind::of(number, self.scope) {
                Kind::Awaited => continue,
                Kind::Once => {
                    let mut random = Random::new(self.seed, 800_000 + number as u64);
                    // One while the task is under way, most likely, and one that may come after its end.
                    for (from, to) in [(0, 2_000), (2_000, 20_000)] {
                        let at = at(number) + random.millis(from, to);
                        timed.push((at, What::Copy(number)));
                    }
                }
                Kind::Latest | Kind::Kept => {
                    let mut random = Random::new(self.seed, 800_000 + number as u64);
                    let mut at = at(number);
                    for round in 1..ROUNDS {
                        at += random.millis(200, 7_000);
                        timed.push((at, What::Round(number, round)));
                    }
                }
                Kind::Plain
                | Kind::Later
                | Kind::Held
                | Kind::Spent
                | Kind::Rested
                | Kind::Forced
                | Kind::Stopped => {}
            }
            timed.push((at(number), What::Task(number)));
        }
        // The task itself goes first where the times are equal.
        timed.sort_by_key(|(at, what)| (*at, !matches!(what, What::Task(_))));
        Agenda {
            timed: timed.into_iter().peekable(),
            awaited: self.awaited.clone(),
            ended: self.ended.clone(),
            progress: Arc::clone(&self.progress),
        }
    }
}

// === impl Agenda ===

impl Iterator for Agenda {
    type Item = (Duration, What);

    fn next(&mut self) -> Option<Self::Item> {
        let mut awaited = self.awaited.iter();
        if let Some(at) = awaited.position(|(name, _)| self.ended.contains(name)) {
            let (_, number) = self.awaited.swap_remove(at);
            return Some((Duration::ZERO, What::Task(number)));
        }
        if self.timed.peek().is_some() {
            return self.timed.next();
        }
        if self.awaited.is_empty() || self.progress.stop.load(Ordering::Acquire) {
            return None;
        }
        thread::sleep(TURN);
        Some((Duration::ZERO, What::Nothing))
    }
}

/// Where a task goes.
struct Place<'a> {
    /// The topic.
    topic: &'a str,
    /// The partition, if it must be one.
    partition: Option<i32>,
    /// Its key, if it is not one of an ordered scene.
    ward: Option<String>,
    /// The scene.
    scene: &'a str,
}

/// Hands one task to the client.
fn send(producer: &BaseProducer<Acks>, place: &Place<'_>, plan: &Plan) {
    let Plan {
        id,
        kind: _,
        fate,
        delay,
        key,
        batch,
        payload,
    } = plan;
    let delay = delay.as_millis().to_string();
    let batch = batch.map(|batch| batch.to_string());
    producer.context().write(&[
        "intent",
        &now_micros().to_string(),
        id,
        fate.outcome(),
        &fate.attempts().to_string(),
        &delay,
        &fingerprint(payload),
        key.as_deref().unwrap_or_default(),
        batch.as_deref().unwrap_or_default(),
        place.scene,
        place.ward.as_deref().unwrap_or_default(),
        &fate.word(),
    ]);
    let mut headers = headers(place.scene, id).insert(header("retry-delay-ms", &delay));
    if let Some(batch) = &batch {
        headers = headers.insert(header("batch", batch));
    }
    let mut record = Record::with_opaque_to(place.topic, Box::new(id.clone()))
        .payload(payload)
        .headers(headers);
    // Records without one go anywhere, those of a key to one partition.
    record.key = key.as_deref().or(place.ward.as_deref());
    record.partition = place.partition;
    hand(producer, id, record);
}

/// Hands the client another record of a task, which differs from the first one in everything that a task can be known by but its identity.
fn copy(producer: &BaseProducer<Acks>, place: &Place<'_>, plan: &Plan) {
    let name = format!("{}{COPY}", plan.id);
    let mut record = Record::with_opaque_to(place.topic, Box::new(name))
        .payload(b"x again")
        .headers(headers(place.scene, &plan.id));
    record.partition = place.partition;
    hand(producer, &plan.id, record);
}

/// Hands the client another record of a task, which is to take its place.
fn again(producer: &BaseProducer<Acks>, place: &Place<'_>, plan: &Plan) {
    let delay = plan.delay.as_millis().to_string();
    producer.context().write(&[
        "round",
        &now_micros().to_string(),
        &plan.id,
        &delay,
        &fingerprint(&plan.payload),
    ]);
    let name = format!("{}{ROUND}", plan.id);
    let mut record = Record::with_opaque_to(place.topic, Box::new(name))
        .payload(&plan.payload)
        .headers(headers(place.scene, &plan.id).insert(header("retry-delay-ms", &delay)));
    record.partition = place.partition;
    hand(producer, &plan.id, record);
}

/// The headers that every task has.
fn headers(scene: &str, id: &str) -> OwnedHeaders {
    OwnedHeaders::new()
        .insert(header("retry-scene", scene))
        .insert(header("retry-id", id))
}

/// A header.
fn header<'a>(key: &'a str, value: &'a str) -> Header<'a, &'a str> {
    Header {
        key,
        value: Some(value),
    }
}
