//! What became of one task, told from the records that retide's topics hold of it.
//!
//! Not the search for them. Events name no origin: where an identity was used more than once on a partition, an event belongs to the
//! task that ends first at or after it. Invariant: what no record tells is not made up, but named as missing.

pub mod search;

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use serde::ser::SerializeMap as _;
use serde::{Serialize, Serializer};

use retide_avro::headers::kind_word;
use retide_avro::wire;
use retide_core::span::human;
use retide_core::tier::HORIZON;
use retide_core::{Kind, Ladder, Origin, Task, Terminal, Timestamp};

/// A record that tells of a task.
#[derive(Clone, Debug)]
pub struct Clue {
    /// Where it stands.
    pub at: Origin,
    /// Its time: when the broker appended it, or its producer made it.
    pub appended: Timestamp,
    /// What it says.
    pub what: What,
}

/// What a record says of a task.
#[derive(Clone, Debug)]
pub enum What {
    /// It came in.
    Entered {
        /// The scene it named, or nothing.
        scene: Arc<str>,
        /// When its first attempt was to start; none if it could not be read.
        due: Option<Timestamp>,
    },
    /// It waits in a tier, or has waited there: records stay after they were read.
    Parked {
        /// The tier.
        tier: usize,
        /// Its state.
        task: Box<Task>,
    },
    /// Something happened to it.
    Event(Box<wire::Event>),
    /// Something happened to it, and only the word for it can be read.
    Unreadable {
        /// The word.
        event: String,
    },
    /// It ended.
    Callback(Box<wire::Callback>),
    /// It ended badly, and is kept.
    DeadLetter(Box<DeadLetter>),
}

/// What the headers of a dead letter say.
#[derive(Clone, Debug)]
pub struct DeadLetter {
    /// Whether it is the work itself or the delivery of its callback.
    pub kind: Kind,
    /// The scene, or nothing.
    pub scene: String,
    /// Where the task entered, if that can be read.
    pub origin: Option<Origin>,
    /// How it ended.
    pub outcome: String,
    /// Why.
    pub reason: Option<String>,
    /// How many attempts were made.
    pub attempts: Option<i64>,
    /// What the last attempt said.
    pub error: Option<String>,
}

/// What became of a task.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Story {
    /// The scene it follows, or nothing.
    pub scene: String,
    /// Where it entered, if any record says so.
    pub origin: Option<String>,
    /// What happened, in order.
    pub lines: Vec<Line>,
    /// How it stands now.
    pub state: State,
    /// What makes the story less than certain.
    pub notes: Vec<String>,
}

/// One thing that happened.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Line {
    /// When.
    #[serde(serialize_with = "time")]
    pub at: Timestamp,
    /// What: `entered`, the word of an event, `callback`, `dead-letter`, or `gap` where records are missing.
    pub what: String,
    /// `work`, or `callback` for the delivery of its callback.
    pub kind: &'static str,
    /// The attempt that failed; on ends, the attempts made.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attempt: Option<i64>,
    /// What the target said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub outcome: Option<String>,
    /// Why it ended badly.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Class and message of an error, or what is missing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// When the next attempt may start.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "maybe_time")]
    pub due: Option<Timestamp>,
    /// When a due task is looked at again whose gate was shut.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "maybe_time")]
    pub deferred_until: Option<Timestamp>,
    /// Milliseconds since the thing before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub waited_ms: Option<u64>,
    /// How many of them were scheduled; the rest went into reading, the gate, the attempt itself, or a worker that was not there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scheduled_ms: Option<u64>,
    /// How late the attempt started, by cause.
    #[serde(flatten, serialize_with = "lateness")]
    pub lateness: Option<wire::Lateness>,
    /// Headers of the record that the attempt went without, each with its reason.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub left_out: Option<String>,
    /// The command that it follows from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub command: Option<String>,
    /// The record that holds the task from here on, or its end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub place: Option<String>,
    /// Whether it is told by an event; else it follows from another record.
    pub by_event: bool,
}

/// How a task stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct State {
    /// `entered`, `waiting`, `parked`, or how it ended.
    pub word: String,
    /// The same in a sentence, and what comes next.
    pub text: String,
    /// The record it waits in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub place: Option<String>,
    /// When its next attempt may start.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "maybe_time")]
    pub due: Option<Timestamp>,
    /// Milliseconds until then.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remaining_ms: Option<u64>,
}

/// The records of one task.
#[derive(Debug, Default)]
struct Life {
    /// Where it entered, if any record says so.
    origin: Option<Origin>,
    /// When it was first seen.
    start: Option<Timestamp>,
    /// When it ended.
    end: Option<Timestamp>,
    /// Its records, in the order in which they were found; of one topic, that is the order of their partition.
    clues: Vec<Clue>,
}

/// One thing that happened, on its way into a [`Line`].
#[derive(Debug)]
struct Step {
    /// The line, but for how long was waited.
    line: Line,
    /// The task as it was parked then, if that record was found.
    park: Option<Park>,
    /// Whether it ended the task.
    is_end: bool,
}

/// A record of a tier.
#[derive(Clone, Debug)]
struct Park {
    /// Where it stands.
    at: Origin,
    /// When it was appended.
    appended: Timestamp,
    /// The tier.
    tier: usize,
    /// The task.
    task: Box<Task>,
}

/// Tells what became of each task whose records are among `clues`, in the order in which they entered.
pub fn tell(clues: Vec<Clue>, ladder: &Ladder, now: Timestamp) -> Vec<Story> {
    let lives = lives(clues);
    let notes: Vec<Vec<String>> = lives.iter().map(|life| notes(life, &lives)).collect();
    lives
        .iter()
        .zip(notes)
        .map(|(life, notes)| Story {
            notes,
            ..life.story(ladder, now)
        })
        .collect()
}

// === impl Line ===

impl Line {
    /// What there is to say besides time and word.
    pub fn details(&self) -> String {
        let mut parts = Vec::new();
        if self.kind == kind_word(Kind::Callback) {
            parts.push("delivery of its callback".to_owned());
        }
        match (self.what.as_str(), self.attempt) {
            ("failed", Some(attempt)) => parts.push(format!("attempt {attempt}")),
            (_, Some(1)) => parts.push("after 1 attempt".to_owned()),
            (_, Some(attempts)) => parts.push(format!("after {attempts} attempts")),
            (_, None) => {}
        }
        parts.extend(self.outcome.clone());
        parts.extend(self.reason.clone());
        parts.extend(self.error.clone());
        let command = self.command.as_ref();
        parts.extend(command.map(|command| format!("by command {command}")));
        parts.extend(self.due.map(|due| format!("due {}", clock(due))));
        let until = self.deferred_until.map(clock);
        parts.extend(until.map(|until| format!("deferred until {until}")));
        if let Some(waited) = self.waited_ms {
            parts.push(match self.scheduled_ms {
                Some(scheduled) => {
                    format!("waited {}, scheduled {}", human(waited), human(scheduled))
                }
                None => format!("waited {}", human(waited)),
            });
        }
        parts.extend(self.lateness.as_ref().and_then(late));
        let left_out = self.left_out.as_ref();
        parts.extend(left_out.map(|headers| format!("without headers {headers}")));
        parts.extend(self.place.as_ref().map(|place| format!("in {place}")));
        parts.join(" · ")
    }
}

// === impl Life ===

impl Life {
    /// Whether its events stand on this partition.
    fn is_on(&self, partition: i32) -> bool {
        match &self.origin {
            Some(origin) => origin.partition == partition,
            None => self.clues.iter().any(|clue| clue.at.partition == partition),
        }
    }

    /// Takes a record in.
    fn add(&mut self, clue: Clue) {
        let (seen, ended) = match &clue.what {
            What::Entered { .. } => (Some(clue.appended), None),
            What::Parked { task, .. } if task.kind == Kind::Work => {
                (Some(task.first_failed_at), None)
            }
            What::Event(event) if is_work(event) => {
                let at = instant(event.at);
                (Some(at), is_end(&event.event).then_some(at))
            }
            What::Callback(callback) => (
                Some(instant(callback.first_failed_at)),
                Some(instant(callback.ended_at)),
            ),
            What::Unreadable { event } => (None, is_end(event).then_some(clue.appended)),
            What::Parked { .. } | What::Event(_) | What::DeadLetter(_) => (None, None),
        };
        self.start = [self.start, seen].into_iter().flatten().min();
        self.end = self.end.or(ended);
        self.clues.push(clue);
    }

    /// What became of it.
    fn story(&self, ladder: &Ladder, now: Timestamp) -> Story {
        let work = self.steps(Kind::Work);
        let delivery = self.steps(Kind::Callback);
        let state = state(&work, &delivery, ladder, now);
        let mut lines = Vec::new();
        let mut next = 1;
        for step in &work {
            next = gap(next, step, &mut lines);
            lines.push(step.line.clone());
        }
        lines.extend(delivery.into_iter().map(|step| step.line));
        explain_waits(&mut lines);
        Story {
            scene: self.scene(),
            origin: self.origin.as_ref().map(Origin::to_string),
            lines,
            state,
            notes: Vec::new(),
        }
    }

    /// The scene, by the first record that names it.
    fn scene(&self) -> String {
        let mut scenes = self.clues.iter().filter_map(|clue| match &clue.what {
            What::Entered { scene, .. } => Some(scene.to_string()),
            What::Parked { task, .. } => Some(task.scene.to_string()),
            What::Event(event) => Some(event.scene.clone()),
            What::Callback(callback) => Some(callback.scene.clone()),
            What::DeadLetter(letter) => Some(letter.scene.clone()),
            What::Unreadable { .. } => None,
        });
        scenes.find(|scene| !scene.is_empty()).unwrap_or_default()
    }

    /// What happened to the work, or to the delivery of its callback, in order.
    fn steps(&self, kind: Kind) -> Vec<Step> {
        let mut parks = self.parks(kind);
        let mut steps: Vec<Step> = Vec::new();
        for clue in &self.clues {
            match &clue.what {
                What::Event(event) if event.kind == kind_word(kind) => {
                    let park = parks.iter().position(|park| park.is_told_by(event));
                    steps.push(Step::of_event(event, park.map(|park| parks.remove(park))));
                }
                // Its kind is in what cannot be read.
                What::Unreadable { event } if kind == Kind::Work => steps.push(Step {
                    line: Line {
                        at: clue.appended,
                        what: event.clone(),
                        kind: kind_word(kind),
                        error: Some(format!("the event in {} cannot be read", clue.at)),
                        by_event: true,
                        ..Line::default()
                    },
                    park: None,
                    is_end: is_end(event),
                }),
                What::Entered { .. }
                | What::Parked { .. }
                | What::Event(_)
                | What::Unreadable { .. }
                | What::Callback(_)
                | What::DeadLetter(_) => {}
            }
        }
        for park in parks {
            insert(&mut steps, park);
        }
        self.add_ends(kind, &mut steps);
        if kind == Kind::Work {
            let entered = self.clues.iter().filter_map(Step::of_entry);
            steps.splice(0..0, entered.collect::<Vec<_>>());
        }
        steps
    }

    /// The records of tiers, in the order in which they were written; one that was written twice counts once.
    fn parks(&self, kind: Kind) -> Vec<Park> {
        let parks = self.clues.iter().filter_map(|clue| match &clue.what {
            What::Parked { tier, task } if task.kind == kind => Some(Park {
                at: clue.at.clone(),
                appended: clue.appended,
                tier: *tier,
                task: task.clone(),
            }),
            _ => None,
        });
        let mut parks: Vec<Park> = parks.collect();
        parks.sort_by_key(|park| (park.task.hops, park.appended));
        parks.dedup_by_key(|park| (park.task.hops, park.task.due, park.task.attempt));
        parks
    }

    /// Adds what callback record and dead letter say; they are the end themselves if there is no event of it.
    fn add_ends(&self, kind: Kind, steps: &mut Vec<Step>) {
        let mut has_end = steps.iter().any(|step| step.is_end);
        // Callback records first: they know the time of the end.
        let mut clues: Vec<&Clue> = self.clues.iter().collect();
        clues.sort_by_key(|clue| matches!(clue.what, What::DeadLetter(_)));
        for clue in clues {
            let mut line = match &clue.what {
                What::Callback(callback) if kind == Kind::Work => Line {
                    at: instant(callback.ended_at),
                    what: callback.outcome.clone(),
                    attempt: Some(callback.attempts),
                    reason: callback.reason.clone(),
                    // A success says nothing; what is kept is of the attempt before.
                    error: error(
                        callback.error_class.as_ref(),
                        callback.error_message.as_ref(),
                    )
                    .filter(|_| callback.reason.is_some()),
                    ..Line::default()
                },
                What::DeadLetter(letter) if letter.kind == kind => Line {
                    at: clue.appended,
                    what: letter.outcome.clone(),
                    attempt: letter.attempts,
                    reason: letter.reason.clone(),
                    error: letter.error.clone(),
                    ..Line::default()
                },
                _ => continue,
            };
            line.kind = kind_word(kind);
            if !has_end {
                steps.push(Step {
                    line: line.clone(),
                    park: None,
                    is_end: true,
                });
                has_end = true;
            }
            line.what = match &clue.what {
                What::DeadLetter(_) => "dead-letter".to_owned(),
                _ => "callback".to_owned(),
            };
            line.place = Some(clue.at.to_string());
            if line.what == "callback" {
                // The end and the dead letter say the same.
                (line.attempt, line.reason, line.error) = (None, None, None);
            } else {
                line.attempt = None;
            }
            steps.push(Step {
                line,
                park: None,
                is_end: false,
            });
        }
    }
}

// === impl Park ===

impl Park {
    /// Whether an event tells of it.
    fn is_told_by(&self, event: &wire::Event) -> bool {
        let Self { task, .. } = self;
        let is_due = event.due_at.map(instant) == Some(task.due.ceil_to_millis());
        let until = task.deferral.as_ref().map(|deferral| deferral.until);
        is_due
            && match event.event.as_str() {
                "deferred" => event.deferred_until.map(instant) == until,
                "failed" => event.attempts == Some(i64::from(task.attempt) - 1),
                "hopped" => event.hops == Some(task.hops.into()),
                _ => true,
            }
    }
}

// === impl Step ===

impl Step {
    /// The entry of a task.
    fn of_entry(clue: &Clue) -> Option<Self> {
        let What::Entered { due, .. } = &clue.what else {
            return None;
        };
        Some(Self {
            line: Line {
                at: clue.appended,
                what: "entered".to_owned(),
                kind: kind_word(Kind::Work),
                due: due.filter(|due| *due > clue.appended),
                place: Some(clue.at.to_string()),
                ..Line::default()
            },
            park: None,
            is_end: false,
        })
    }

    /// What an event tells, and where the task was parked then.
    fn of_event(event: &wire::Event, park: Option<Park>) -> Self {
        let is_work = is_work(event);
        Self {
            is_end: is_end(&event.event),
            line: Line {
                at: instant(event.at),
                what: event.event.clone(),
                kind: kind_word(if is_work { Kind::Work } else { Kind::Callback }),
                attempt: event.attempts,
                outcome: event.outcome.clone(),
                reason: event.reason.clone(),
                error: error(event.error_class.as_ref(), event.error_message.as_ref()),
                due: event.due_at.map(instant),
                deferred_until: event.deferred_until.map(instant),
                lateness: event.lateness,
                left_out: event.headers_left_out.clone(),
                command: event.command.clone(),
                place: park.as_ref().map(|park| park.at.to_string()),
                by_event: true,
                ..Line::default()
            },
            park,
        }
    }
}

// === sorting records by task ===

/// The records sorted by task, in the order in which tasks entered.
fn lives(clues: Vec<Clue>) -> Vec<Life> {
    let mut lives: Vec<Life> = Vec::new();
    let (mut events, mut deliveries) = (Vec::new(), Vec::new());
    for clue in clues {
        let origin = match &clue.what {
            What::Entered { .. } => Some(clue.at.clone()),
            What::Parked { task, .. } if task.kind == Kind::Work => Some(task.origin.clone()),
            What::Callback(callback) => retide_avro::headers::origin_of(&callback.origin),
            What::DeadLetter(letter) if letter.kind == Kind::Work => letter.origin.clone(),
            What::Event(event) if is_work(event) => {
                events.push(clue);
                continue;
            }
            What::Unreadable { .. } => {
                events.push(clue);
                continue;
            }
            What::Parked { .. } | What::Event(_) | What::DeadLetter(_) => {
                deliveries.push(clue);
                continue;
            }
        };
        let index = lives.iter().position(|life| life.origin == origin);
        let index = index.unwrap_or_else(|| {
            lives.push(Life {
                origin,
                ..Life::default()
            });
            lives.len() - 1
        });
        lives[index].add(clue);
    }
    events.sort_by_key(|clue| (clue.at.partition, clue.at.offset));
    for event in events {
        let at = match &event.what {
            What::Event(event) => instant(event.at),
            _ => event.appended,
        };
        let partition = event.at.partition;
        let open = lives
            .iter()
            .enumerate()
            .filter(|(_, life)| life.is_on(partition) && life.end.is_none_or(|end| end >= at));
        let first = open.min_by_key(|(_, life)| (life.end.unwrap_or(Timestamp::MAX), life.start));
        // A command may come after the end.
        let ended = lives.iter().enumerate();
        let ended = ended.filter(|(_, life)| is_too_late(&event.what) && life.is_on(partition));
        let first = first.or_else(|| ended.max_by_key(|(_, life)| life.end));
        let index = if let Some((index, _)) = first {
            index
        } else {
            lives.push(Life::default());
            lives.len() - 1
        };
        lives[index].add(event);
    }
    for delivery in deliveries {
        add_delivery(&mut lives, delivery);
    }
    lives.sort_by_key(|life| life.start);
    lives
}

/// Adds a record about the delivery of a callback to the task whose callback it is.
fn add_delivery(lives: &mut Vec<Life>, clue: Clue) {
    let origin = match &clue.what {
        What::Parked { task, .. } => Some(&task.origin),
        What::DeadLetter(letter) => letter.origin.as_ref(),
        _ => None,
    };
    let at = match &clue.what {
        What::Event(event) => instant(event.at),
        _ => clue.appended,
    };
    // A record says whose it is, an event does not.
    let index = origin.and_then(|origin| {
        let mut lives = lives.iter();
        lives.position(|life| life.origin.as_ref() == Some(origin))
    });
    let index = index.or_else(|| {
        let ended = lives.iter().enumerate().filter(|(_, life)| {
            life.is_on(clue.at.partition) && life.end.is_some_and(|end| end <= at)
        });
        let last = ended.max_by_key(|(_, life)| life.end);
        last.map(|(index, _)| index)
    });
    let index = index.unwrap_or_else(|| {
        lives.push(Life::default());
        lives.len() - 1
    });
    lives[index].add(clue);
}

/// What makes the story of `life` less than certain.
fn notes(life: &Life, lives: &[Life]) -> Vec<String> {
    let Some(partition) = life.origin.as_ref().map(|origin| origin.partition) else {
        return vec!["where it entered is not told by any record that was found".to_owned()];
    };
    let overlaps = lives.iter().any(|other| {
        other.origin != life.origin
            && other.is_on(partition)
            && other.start <= Some(life.end.unwrap_or(Timestamp::MAX))
            && life.start <= Some(other.end.unwrap_or(Timestamp::MAX))
    });
    let mut notes = Vec::new();
    if !life
        .clues
        .iter()
        .any(|clue| matches!(clue.what, What::Entered { .. }))
    {
        notes.push("its record on the retry topic was not found".to_owned());
    }
    if overlaps {
        notes.push(
            "another task with this identity was under way on this partition at the same time; events name no origin, so some may belong to the other one"
                .to_owned(),
        );
    }
    notes
}

// === telling ===

/// How late an attempt started, and where the time went, unless it was hardly late.
fn late(lateness: &wire::Lateness) -> Option<String> {
    let causes = lateness.by_cause();
    let total: u64 = causes.iter().map(|(_, micros)| micros / 1_000).sum();
    if total == 0 {
        return None;
    }
    let mut parts = causes.map(|(cause, micros)| (cause, micros / 1_000));
    parts.sort_by_key(|(_, millis)| Reverse(*millis));
    let parts = parts.into_iter().filter(|(_, millis)| *millis > 0);
    let parts: Vec<String> = parts
        .map(|(cause, millis)| format!("{cause} {}", human(millis)))
        .collect();
    Some(format!("late by {}", parts.join(" + ")))
}

/// Puts a record of a tier that no event tells of where it belongs: tasks count their hops.
fn insert(steps: &mut Vec<Step>, park: Park) {
    let later = steps.iter().position(|step| {
        step.is_end
            || step
                .park
                .as_ref()
                .is_some_and(|other| other.task.hops > park.task.hops)
    });
    let index = later.unwrap_or(steps.len());
    let before = steps[..index]
        .iter()
        .rev()
        .find_map(|step| step.park.as_ref());
    let attempt = before.map_or(1, |before| before.task.attempt);
    let (what, failed) = match before {
        _ if park.task.attempt > attempt => ("failed", Some(i64::from(park.task.attempt) - 1)),
        None => ("parked", None),
        Some(before) if before.task.commanded != park.task.commanded => ("rescheduled", None),
        // Only the first deferral for a cause is told; earlier versions moved the due time.
        Some(before)
            if before.task.due != park.task.due || before.task.deferral != park.task.deferral =>
        {
            ("deferred", None)
        }
        Some(_) => ("hopped", None),
    };
    let error = park.task.failure.as_ref().filter(|_| failed.is_some());
    let line = Line {
        at: park.appended,
        what: what.to_owned(),
        kind: kind_word(park.task.kind),
        attempt: failed,
        error: error.map(ToString::to_string),
        due: Some(park.task.due),
        deferred_until: deferred_until(&park.task),
        place: Some(park.at.to_string()),
        ..Line::default()
    };
    steps.insert(
        index,
        Step {
            line,
            park: Some(park),
            is_end: false,
        },
    );
}

/// Names the attempts that no record tells of, before `step`; gives the number of the next attempt.
fn gap(next: i64, step: &Step, lines: &mut Vec<Line>) -> i64 {
    let (known, after) = match (&step.line.attempt, &step.park) {
        // The last attempt is the end itself, or one that failed before.
        (Some(attempts), _) if step.is_end => (*attempts, *attempts),
        (Some(attempt), _) => (*attempt, attempt + 1),
        (None, Some(park)) => (park.task.attempt.into(), park.task.attempt.into()),
        (None, None) => return next,
    };
    if known > next {
        let attempts = if known - next == 1 {
            format!("attempt {next}")
        } else {
            format!("attempts {next} to {}", known - 1)
        };
        lines.push(Line {
            at: step.line.at,
            what: "gap".to_owned(),
            kind: step.line.kind,
            error: Some(format!(
                "of {attempts} nothing was found: neither the event nor the record it was parked in"
            )),
            ..Line::default()
        });
    }
    after.max(next)
}

/// Says how long was waited between things, and how much of that was scheduled.
fn explain_waits(lines: &mut [Line]) {
    let mut before: Option<(Timestamp, Option<Timestamp>)> = None;
    for line in lines {
        if matches!(line.what.as_str(), "gap" | "callback" | "dead-letter") {
            continue;
        }
        if let Some((since, due)) = before {
            line.waited_ms = Some(line.at.since(since).as_millis() as u64);
            let scheduled = due.map(|due| line.at.min(due).since(since).as_millis() as u64);
            line.scheduled_ms = Some(scheduled.unwrap_or_default());
        }
        before = Some((line.at, line.due));
    }
}

/// How the task stands.
fn state(work: &[Step], delivery: &[Step], ladder: &Ladder, now: Timestamp) -> State {
    if let Some(end) = work.iter().find(|step| step.is_end) {
        return ended(&end.line, work, delivery, ladder, now);
    }
    match work.iter().rev().find(|step| step.park.is_some() || step.line.due.is_some()) {
        Some(step) => waits(step, ladder, now),
        None if delivery.is_empty() => State {
            word: "entered".to_owned(),
            text: "no end and no wait was found: its first attempt is under way, workers have not come to it yet, or none runs"
                .to_owned(),
            place: work.last().and_then(|step| step.line.place.clone()),
            due: None,
            remaining_ms: None,
        },
        None => State {
            word: "ended".to_owned(),
            text: format!("it ended, how is not known; {}", delivered(delivery, ladder, now)),
            place: None,
            due: None,
            remaining_ms: None,
        },
    }
}

/// How a task that ended stands.
fn ended(end: &Line, work: &[Step], delivery: &[Step], ladder: &Ladder, now: Timestamp) -> State {
    let mut text = vec![end.what.clone()];
    match end.attempt {
        Some(1) => text.push(" after 1 attempt".to_owned()),
        Some(attempts) => text.push(format!(" after {attempts} attempts")),
        None => {}
    }
    if let Some(reason) = &end.reason {
        text.push(format!(" ({reason})"));
    }
    if let Some(first) = work.first().filter(|first| !first.is_end) {
        let took = end.at.since(first.line.at).as_millis() as u64;
        text.push(format!(
            ", {} after it was {}",
            human(took),
            first.line.what
        ));
    }
    let kept = work.iter().any(|step| step.line.what == "dead-letter");
    let is_bad = match Terminal::from_word(&end.what) {
        Some(Terminal::Delivered | Terminal::Cancelled) => false,
        Some(Terminal::Dead | Terminal::Expired) | None => true,
    };
    let next = match (is_bad, kept) {
        (false, _) => "; nothing comes next",
        (true, true) => {
            "; nothing comes next, its dead letter can be produced to the retry topic again"
        }
        (true, false) => "; nothing comes next, and its dead letter was not found",
    };
    text.push(next.to_owned());
    if !delivery.is_empty() {
        text.push(format!("; {}", delivered(delivery, ladder, now)));
    }
    State {
        word: end.what.clone(),
        text: text.concat(),
        place: None,
        due: None,
        remaining_ms: None,
    }
}

/// How the delivery of a callback stands.
fn delivered(delivery: &[Step], ladder: &Ladder, now: Timestamp) -> String {
    if let Some(end) = delivery.iter().find(|step| step.is_end) {
        return format!("the delivery of its callback ended as {}", end.line.what);
    }
    let last = delivery.last();
    last.map_or_else(String::new, |last| {
        format!(
            "the delivery of its callback: {}",
            waits(last, ladder, now).text
        )
    })
}

/// How a task that waits since `step` stands.
fn waits(step: &Step, ladder: &Ladder, now: Timestamp) -> State {
    let due = step
        .park
        .as_ref()
        .map(|park| park.task.due)
        .or(step.line.due);
    let left = due
        .filter(|due| *due > now)
        .map(|due| human(due.since(now).as_millis() as u64));
    let (word, place) = match &step.park {
        Some(park) => ("parked", Some(park.at.to_string())),
        None => ("waiting", step.line.place.clone()),
    };
    let attempt = match &step.park {
        Some(park) => format!("attempt {}", park.task.attempt),
        None => "its next attempt".to_owned(),
    };
    let mut text = vec![match &place {
        Some(place) => format!("{word} in {place}"),
        None => "waiting; the record it waits in was not found".to_owned(),
    }];
    let deferred = step.park.as_ref();
    let deferred = deferred.and_then(|park| deferred_until(&park.task));
    let deferred = deferred.filter(|until| *until > now);
    match (due, left) {
        (Some(due), Some(left)) => {
            text.push(format!(", {attempt} is due in {left}, at {}", clock(due)));
            text.extend(step.park.as_ref().map(|park| hop(park, ladder)));
        }
        (Some(due), None) => {
            let late = human(now.since(due).as_millis() as u64);
            text.push(format!(", {attempt} was due {late} ago, at {}", clock(due)));
            text.push(match deferred {
                Some(until) => format!(
                    "; its gate was shut, it is deferred for another {}, until {}",
                    human(until.since(now).as_millis() as u64),
                    clock(until)
                ),
                None => {
                    ": it is under way, waits for room at its gate, or no worker runs".to_owned()
                }
            });
        }
        (None, _) => {}
    }
    State {
        word: word.to_owned(),
        text: text.concat(),
        place,
        due,
        remaining_ms: due.map(|due| due.since(now).as_millis() as u64),
    }
}

/// Until when a parked task is deferred, if it is.
fn deferred_until(task: &Task) -> Option<Timestamp> {
    let deferral = task.deferral.as_ref()?;
    Some(deferral.until)
}

/// What happens to a parked task before it is due.
fn hop(
    Park {
        appended,
        tier,
        task,
        ..
    }: &Park,
    ladder: &Ladder,
) -> String {
    let Some(tier) = ladder.tiers().get(*tier) else {
        return String::new();
    };
    let readable = tier.readable_at(*appended).max(*appended);
    let left = task.due.since(readable);
    if left <= HORIZON {
        return "; nothing happens before".to_owned();
    }
    let next = &ladder.tiers()[ladder.tier_for(left)];
    format!("; before, at {}, it hops to tier {next}", clock(readable))
}

// === reading ===

/// Whether an event is about the work itself.
fn is_work(event: &wire::Event) -> bool {
    event.kind == kind_word(Kind::Work)
}

/// Whether a record tells that a command came too late.
fn is_too_late(what: &What) -> bool {
    matches!(what, What::Event(event) if event.event == "too-late")
}

/// Whether an event of this word is an end.
fn is_end(word: &str) -> bool {
    Terminal::from_word(word).is_some()
}

/// The instant in a field; what is before the epoch is the epoch.
fn instant(millis: i64) -> Timestamp {
    Timestamp::from_millis(u64::try_from(millis).unwrap_or_default())
}

/// Class and message as one text.
fn error(class: Option<&String>, message: Option<&String>) -> Option<String> {
    match (class, message) {
        (None, None) => None,
        (Some(only), None) | (None, Some(only)) => Some(only.clone()),
        (Some(class), Some(message)) => Some(format!("{class}: {message}")),
    }
}

// === writing ===

/// A point in time, in UTC and milliseconds.
pub fn clock(time: Timestamp) -> String {
    /// The end of the year 9999, after which there is no text for it.
    const LAST: Duration = Duration::from_secs(253_402_300_799);
    let since = Duration::from_millis(time.as_micros().div_ceil(1_000));
    humantime::format_rfc3339_millis(UNIX_EPOCH + since.min(LAST)).to_string()
}

/// Lateness by cause, serialized: in milliseconds as `lateness_ms`, and in microseconds as `lateness`, which is what events call it.
#[allow(clippy::ref_option, reason = "serde passes a reference to the field")]
fn lateness<S: Serializer>(
    lateness: &Option<wire::Lateness>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    let Some(lateness) = lateness else {
        return serializer.serialize_map(Some(0))?.end();
    };
    let millis = lateness.by_cause();
    let millis: BTreeMap<&str, f64> = millis
        .into_iter()
        .map(|(cause, micros)| (cause, micros as f64 / 1e3))
        .collect();
    let mut map = serializer.serialize_map(Some(2))?;
    map.serialize_entry("lateness_ms", &millis)?;
    map.serialize_entry("lateness", lateness)?;
    map.end()
}

/// A point in time, serialized.
#[allow(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde hands over a reference to the field"
)]
fn time<S: Serializer>(time: &Timestamp, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&clock(*time))
}

/// A point in time, serialized, if there is one.
#[allow(
    clippy::ref_option,
    reason = "serde hands over a reference to the field"
)]
fn maybe_time<S: Serializer>(time: &Option<Timestamp>, serializer: S) -> Result<S::Ok, S::Error> {
    time.map(clock).serialize(serializer)
}

#[cfg(test)]
mod tests;
