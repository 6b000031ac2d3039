//! The export: what could be seen of a history from outside, in the ledgers that the checker of the crash campaign reads.
//!
//! Taken from the model of the broker, of the producers and of the targets. Nothing here is asked of the judge, and nothing is judged:
//! that is the checker's part, which is in another language and knows only the ledgers. Invariant: what a task must come to is written
//! down from the plan, before anything happens.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt::{Display, Write as _};
use std::fs;
use std::io;
use std::ops::Range;
use std::panic::{self, AssertUnwindSafe};
use std::path::Path;
use std::time::Duration;

use retide_core::{Ladder, Origin, Outcome, Source, Task, Transition};

use crate::broker::{Broker, Entry, Fate, PartitionId, Payload, Progress, Topic};
use crate::bug::Bug;
use crate::holds::Holding;
use crate::plan::{
    CAMPAIGN_BACKOFF, CAMPAIGN_CONCURRENCY, CAMPAIGN_HELD, CAMPAIGN_SCENES, Plan, Submission,
};
use crate::world::{At, World, wall};

/// Who writes down what can be seen from outside while it happens.
#[derive(Debug, Default)]
pub(crate) struct Witness {
    /// What the campaign is.
    campaign: Lines,
    /// What producers intend, and what they know to be written.
    generator: Lines,
    /// What targets are asked.
    target: Lines,
    /// What people hold and let go.
    holds: Lines,
    /// What goes wrong.
    faults: Lines,
    /// The offsets in force.
    offsets: Lines,
    /// The number of the last fault.
    last: u64,
    /// The faults that end when a process is back.
    open: BTreeMap<usize, Vec<u64>>,
}

/// Lines of fields.
#[derive(Debug, Default)]
struct Lines(String);

/// What a record says of its task, as its headers do on a real topic.
#[derive(Default)]
struct Headers<'a> {
    /// The task.
    id: &'a str,
    /// How it ended.
    outcome: Cow<'a, str>,
    /// What happened to it.
    event: &'a str,
    /// Its next attempt.
    attempt: u32,
    /// Its hops.
    hops: u32,
    /// What identifies the payload, if the record has one of the producer's.
    value: Option<&'a [u8]>,
}

/// The prefix of the topics.
const PREFIX: &str = "chaos";

/// Plays the campaign of `seed` with `bug` planted, and writes its ledgers to `dir`, which is created.
///
/// The campaign is played to its end whatever the judge says. One that panics ends there, as a process that ended by itself.
///
/// # Errors
///
/// When the ledgers cannot be written.
pub fn export(seed: u64, bug: Bug, dir: &Path) -> io::Result<()> {
    let mut world = World::campaign(seed, bug);
    let ended = panic::catch_unwind(AssertUnwindSafe(|| world.run_unjudged()));
    let env = world.env;
    let mut witness = env
        .witness
        .unwrap_or_else(|| unreachable!("a campaign without a witness"));
    if ended.is_err() {
        let at = micros(env.now);
        witness.faults.add(&[&"exit", &at, &"?", &"itself", &101]);
    }
    let topics = topics(&env.broker, &env.plan.ladder);
    fs::create_dir_all(dir)?;
    for (name, lines) in [
        ("campaign", witness.campaign),
        ("generator", witness.generator),
        ("target", witness.target),
        ("holds", witness.holds),
        ("faults", witness.faults),
        ("offsets", witness.offsets),
        ("topics", topics),
    ] {
        fs::write(dir.join(name).with_extension("tsv"), lines.0)?;
    }
    Ok(())
}

/// The records of all topics of ours.
fn topics(broker: &Broker, ladder: &Ladder) -> Lines {
    let mut lines = Lines::default();
    for (place, partition) in broker.partitions() {
        for (offset, entry) in partition.log.iter().enumerate() {
            if let Some(payload) = &entry.payload {
                lines.record(&name(place.topic, ladder), *place, offset, entry, payload);
            }
        }
    }
    lines
}

/// The name of a topic.
fn name(topic: Topic, ladder: &Ladder) -> String {
    let last = match topic {
        Topic::Read(Source::Tasks) => "tasks",
        Topic::Callbacks => "callbacks",
        Topic::Read(Source::Tier(tier)) => {
            return format!("{PREFIX}.delay.{}", ladder.tiers()[tier].name);
        }
        Topic::Read(Source::Commands) => "commands",
        Topic::Events => "events",
        Topic::DeadLetters => "dead-letters",
        Topic::Orders => return "orders".to_owned(),
        Topic::KeyOrder => "order",
        Topic::Alerts => "alerts",
    };
    format!("{PREFIX}.{last}")
}

/// What is on a record.
fn headers(payload: &Payload) -> Headers<'_> {
    let none = Headers::default();
    match payload {
        Payload::Submitted(submission) => Headers {
            id: &submission.id,
            value: Some(submission.id.as_bytes()),
            ..none
        },
        Payload::Parked(task) | Payload::Delivered(task) => of_task(task),
        Payload::DeadLetter(task, ended) => Headers {
            outcome: ended.terminal.word().into(),
            ..of_task(task)
        },
        Payload::Callback(ended) => Headers {
            id: &ended.id,
            outcome: ended.terminal.word().into(),
            ..none
        },
        Payload::Poison(poison) => Headers {
            id: &poison.id,
            outcome: "dead".into(),
            ..none
        },
        Payload::Event(event) => Headers {
            id: &event.id,
            outcome: one_too_many(&event.transition).into(),
            event: event.transition.word(),
            ..none
        },
        Payload::State(_) | Payload::Alert(_) | Payload::Order(_) | Payload::Control(_) => none,
    }
}

/// Where the record stands that is one too many, if that is what happened.
fn one_too_many(transition: &Transition) -> String {
    let Transition::Duplicate { told, .. } = transition else {
        return String::new();
    };
    let place = told.message.split(':').next().unwrap_or_default();
    let (_, place) = place.split_once('/').unwrap_or_default();
    format!("{PREFIX}.tasks/{place}")
}

/// What is on the record of a task.
fn of_task(task: &Task) -> Headers<'_> {
    Headers {
        id: &task.id,
        attempt: task.attempt,
        hops: task.hops,
        value: task.record.value.as_deref(),
        ..Headers::default()
    }
}

/// What identifies bytes: their length and 64 bits of FNV-1a.
fn fingerprint(bytes: Option<&[u8]>) -> String {
    let Some(bytes) = bytes else {
        return "-".to_owned();
    };
    let hash = bytes.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    });
    format!("{}:{hash:016x}", bytes.len())
}

/// An instant in microseconds since the epoch.
fn micros(at: At) -> u64 {
    wall(at, 0).as_micros()
}

// === impl Lines ===

impl Lines {
    /// Adds a line.
    fn add(&mut self, fields: &[&dyn Display]) {
        for (number, field) in fields.iter().enumerate() {
            let tab = if number > 0 { "\t" } else { "" };
            let _ = write!(self.0, "{tab}{field}");
        }
        self.0.push('\n');
    }

    /// Adds a record.
    fn record(
        &mut self,
        topic: &str,
        place: PartitionId,
        offset: usize,
        entry: &Entry,
        payload: &Payload,
    ) {
        let fate = match entry.fate {
            Fate::Committed => "C",
            // Nobody who reads committed records sees one that is open at the end.
            Fate::Open(_) | Fate::Aborted => "A",
        };
        let appended = entry.appended.as_millis();
        let Headers {
            id,
            outcome,
            event,
            attempt,
            hops,
            value,
        } = headers(payload);
        self.add(&[
            &fate,
            &topic,
            &place.shard,
            &offset,
            &appended,
            &id,
            &outcome,
            &event,
            &attempt,
            &hops,
            &"",
            &fingerprint(value),
        ]);
    }
}

// === impl Witness ===

impl Witness {
    /// A witness who knows what is intended.
    pub(crate) fn of(plan: &Plan) -> Self {
        let mut witness = Self::default();
        let backoff = CAMPAIGN_BACKOFF.map(|wait| wait.to_string()).join(",");
        for (key, value) in [
            ("prefix", PREFIX.to_owned()),
            ("processes", plan.workers.len().to_string()),
            (
                "concurrency",
                (CAMPAIGN_SCENES * CAMPAIGN_CONCURRENCY).to_string(),
            ),
            ("backoff_ms", backoff),
        ] {
            witness.campaign.add(&[&key, &value]);
        }
        for submission in plan.submissions.iter().filter(|one| !one.again) {
            witness.intends(submission);
        }
        for Holding {
            begins, ends, hold, ..
        } in &plan.holds
        {
            let (begins, known) = (micros(*begins), micros(begins + Holding::LONGEST_DELAY));
            let ends = micros(*ends);
            witness.holds.add(&[
                &"hold",
                &begins,
                &hold.name,
                &"scene",
                &CAMPAIGN_HELD,
                &known,
                &0,
                &ends,
                // From when all have heard of it.
                &(ends + Holding::LONGEST_DELAY),
                &0,
            ]);
        }
        witness
    }

    /// A producer intends this.
    fn intends(&mut self, submission: &Submission) {
        let Submission {
            id,
            at,
            due,
            key,
            scene,
            ..
        } = submission;
        let Some(fate) = submission.fate else {
            unreachable!("a campaign knows what its tasks must come to");
        };
        let delay = due.map_or(Duration::ZERO, |due| due.since(wall(*at, 0)));
        self.generator.add(&[
            &"intent",
            &micros(*at),
            id,
            &fate.outcome(),
            &fate.attempts(),
            &delay.as_millis(),
            &fingerprint(Some(id.as_bytes())),
            &key.unwrap_or_default(),
            &"",
            scene,
        ]);
    }

    /// The broker has told a producer where its record is.
    pub(crate) fn acknowledged(&mut self, at: At, submission: &Submission, offset: i64) {
        let Submission {
            id, shard, again, ..
        } = submission;
        let word = if *again { "again" } else { "ack" };
        self.generator
            .add(&[&word, &micros(at), id, shard, &offset]);
    }

    /// A target is asked, and will answer this.
    pub(crate) fn attempt(&mut self, at: At, task: &Task, answer: &Outcome) {
        let asked = match answer {
            Outcome::Throttled { after, .. } => *after,
            Outcome::Success
            | Outcome::Retryable(_)
            | Outcome::Permanent(_)
            | Outcome::Refused(_)
            | Outcome::Timeout(_)
            | Outcome::Pending { .. } => Duration::ZERO,
        };
        let limit = match answer {
            Outcome::Pending { limit } => limit.unwrap_or_default(),
            Outcome::Success
            | Outcome::Retryable(_)
            | Outcome::Permanent(_)
            | Outcome::Refused(_)
            | Outcome::Throttled { .. }
            | Outcome::Timeout(_) => Duration::ZERO,
        };
        let Origin {
            partition, offset, ..
        } = task.origin;
        self.target.add(&[
            &micros(at),
            &at,
            &task.id,
            &task.attempt,
            &task.due.as_millis(),
            &task.id,
            &fingerprint(task.record.value.as_deref()),
            &format_args!("{PREFIX}.tasks/{partition}/{offset}"),
            &answer.word(),
            &asked.as_millis(),
            &limit.as_millis(),
        ]);
    }

    /// Offsets are in force.
    pub(crate) fn offset(&mut self, at: At, progress: &Progress, ladder: &Ladder) {
        let Progress { lane, next, .. } = progress;
        let topic = name(Topic::Read(lane.source), ladder);
        self.offsets.add(&[&micros(at), &topic, &lane.shard, next]);
    }

    /// Something goes wrong for this time.
    pub(crate) fn fault(&mut self, kind: &str, time: Range<At>) {
        let number = self.begin(kind, time.start, "");
        self.end(number, time.end);
    }

    /// A process is gone until it is back.
    pub(crate) fn away(&mut self, kind: &str, at: At, process: usize) {
        let number = self.begin(kind, at, &process_name(process));
        self.open.entry(process).or_default().push(number);
    }

    /// A process starts.
    pub(crate) fn back(&mut self, at: At, process: usize) {
        for number in self.open.remove(&process).unwrap_or_default() {
            self.end(number, at);
        }
    }

    /// A process has left as it was told to.
    pub(crate) fn left(&mut self, at: At, process: usize) {
        let process = process_name(process);
        self.faults
            .add(&[&"exit", &micros(at), &process, &"sigterm", &0]);
    }

    /// A fault begins; gives its number.
    fn begin(&mut self, kind: &str, at: At, process: &str) -> u64 {
        self.last += 1;
        self.faults
            .add(&[&"begin", &self.last, &micros(at), &kind, &process, &""]);
        self.last
    }

    /// A fault has ended.
    fn end(&mut self, number: u64, at: At) {
        self.faults.add(&[&"end", &number, &micros(at)]);
    }
}

/// The name of a process.
fn process_name(process: usize) -> String {
    format!("p{process}")
}
