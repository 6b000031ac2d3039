//! Steps: the facts of one task in the order in which they happened, each once.
//!
//! Invariant: what no record tells is not made up, but named as missing.

use retide_avro::headers::kind_word;
use retide_avro::wire;
use retide_core::{Kind, Origin, Task, Timestamp};

use crate::fact::{Fact, Said, error, instant, is_end, is_replaced, is_work};
use crate::life::Life;
use crate::state::deferred_until;
use crate::timeline::Moment;

/// One thing that happened, on its way into a [`Moment`].
#[derive(Debug)]
pub(crate) struct Step {
    /// The moment, but for how long was waited.
    pub(crate) moment: Moment,
    /// The task as it was parked then, if that record was found.
    pub(crate) park: Option<Park>,
    /// Whether it ended the task.
    pub(crate) is_end: bool,
}

/// A record of a tier.
#[derive(Clone, Debug)]
pub(crate) struct Park {
    /// Where it stands.
    pub(crate) at: Origin,
    /// When it was appended.
    pub(crate) appended: Timestamp,
    /// The tier.
    pub(crate) tier: usize,
    /// The task.
    pub(crate) task: Box<Task>,
}

// === impl Life ===

impl Life {
    /// What happened to the work, or to the delivery of its callback, in order.
    pub(crate) fn steps(&self, kind: Kind) -> Vec<Step> {
        let mut parks = self.parks(kind);
        let mut steps: Vec<Step> = Vec::new();
        for fact in &self.facts {
            match &fact.what {
                Said::Event(event) if event.kind == kind_word(kind) => {
                    let park = parks.iter().position(|park| park.is_told_by(event));
                    steps.push(Step::of_event(event, park.map(|park| parks.remove(park))));
                }
                // Its kind is in what cannot be read.
                Said::Unreadable { event } if kind == Kind::Work => steps.push(Step {
                    moment: Moment {
                        at: fact.appended,
                        what: event.clone(),
                        kind: kind_word(kind),
                        error: Some(format!("the event in {} cannot be read", fact.at)),
                        by_event: true,
                        ..Moment::default()
                    },
                    park: None,
                    is_end: is_end(event),
                }),
                Said::Entered { .. }
                | Said::Parked { .. }
                | Said::Event(_)
                | Said::Unreadable { .. }
                | Said::Callback(_)
                | Said::DeadLetter(_) => {}
            }
        }
        for park in parks {
            insert(&mut steps, park);
        }
        self.add_ends(kind, &mut steps);
        if kind == Kind::Work {
            let entered = self.facts.iter().filter_map(Step::of_entry);
            steps.splice(0..0, entered.collect::<Vec<_>>());
        }
        steps
    }

    /// The records of tiers, in the order in which they were written; one that was written twice counts once.
    fn parks(&self, kind: Kind) -> Vec<Park> {
        let parks = self.facts.iter().filter_map(|fact| match &fact.what {
            Said::Parked { tier, task } if task.kind == kind => Some(Park {
                at: fact.at.clone(),
                appended: fact.appended,
                tier: *tier,
                task: task.clone(),
            }),
            Said::Parked { .. }
            | Said::Entered { .. }
            | Said::Event(_)
            | Said::Unreadable { .. }
            | Said::Callback(_)
            | Said::DeadLetter(_) => None,
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
        let mut facts: Vec<&Fact> = self.facts.iter().collect();
        facts.sort_by_key(|fact| matches!(fact.what, Said::DeadLetter(_)));
        for fact in facts {
            let (mut moment, record) = match &fact.what {
                Said::Callback(callback) if kind == Kind::Work => (
                    Moment {
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
                        fingerprint: callback.fingerprint.clone(),
                        ..Moment::default()
                    },
                    "callback",
                ),
                Said::DeadLetter(letter) if letter.kind == kind => (
                    Moment {
                        at: fact.appended,
                        what: letter.outcome.clone(),
                        attempt: letter.attempts,
                        reason: letter.reason.clone(),
                        error: letter.error.clone(),
                        ..Moment::default()
                    },
                    "dead-letter",
                ),
                Said::Entered { .. }
                | Said::Parked { .. }
                | Said::Event(_)
                | Said::Unreadable { .. }
                | Said::Callback(_)
                | Said::DeadLetter(_) => continue,
            };
            moment.kind = kind_word(kind);
            if !has_end {
                steps.push(Step {
                    moment: moment.clone(),
                    park: None,
                    is_end: true,
                });
                has_end = true;
            }
            record.clone_into(&mut moment.what);
            moment.place = Some(fact.at.to_string());
            moment.attempt = None;
            if record == "callback" {
                // The end and the dead letter say the same.
                (moment.reason, moment.error) = (None, None);
                moment.fingerprint = None;
            }
            steps.push(Step {
                moment,
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
        if event.event == "replayed" {
            let replay = task.replay.as_ref().filter(|_| task.hops == 0);
            return replay.is_some_and(|it| event.attempts == Some(it.times.into()));
        }
        if event.event == "held" {
            return task.exhausted.is_some() && event.attempts == Some(i64::from(task.attempt) - 1);
        }
        let is_due = event.due_at.map(instant) == Some(task.due.ceil_to_millis());
        let until = task.deferral.as_ref().map(|deferral| deferral.until);
        is_due
            && match event.event.as_str() {
                "deferred" => event.deferred_until.map(instant) == until,
                "failed" => event.attempts == Some(i64::from(task.attempt) - 1),
                "pending" => {
                    task.pending_since.is_some() && event.attempts == Some(task.attempt.into())
                }
                "hopped" => event.hops == Some(task.hops.into()),
                _ => true,
            }
    }
}

// === impl Step ===

impl Step {
    /// The entry of a task.
    fn of_entry(fact: &Fact) -> Option<Self> {
        let Said::Entered { due, .. } = &fact.what else {
            return None;
        };
        Some(Self {
            moment: Moment {
                at: fact.appended,
                what: "entered".to_owned(),
                kind: kind_word(Kind::Work),
                due: due.filter(|due| *due > fact.appended),
                place: Some(fact.at.to_string()),
                ..Moment::default()
            },
            park: None,
            is_end: false,
        })
    }

    /// What an event tells, and where the task was parked then.
    fn of_event(event: &wire::Event, park: Option<Park>) -> Self {
        let is_work = is_work(event);
        Self {
            is_end: is_end(&event.event) || is_replaced(event),
            moment: Moment {
                at: instant(event.at),
                what: event.event.clone(),
                kind: kind_word(if is_work { Kind::Work } else { Kind::Callback }),
                // On this one, how often that was done.
                attempt: event.attempts.filter(|_| event.event != "replayed"),
                outcome: event.outcome.clone(),
                reason: event.reason.clone(),
                error: error(event.error_class.as_ref(), event.error_message.as_ref()),
                fingerprint: event.fingerprint.clone(),
                due: event.due_at.map(instant),
                deferred_until: event.deferred_until.map(instant),
                lateness: event.lateness,
                left_out: event.headers_left_out.clone(),
                command: event.command.clone(),
                place: park.as_ref().map(|park| park.at.to_string()),
                by_event: true,
                ..Moment::default()
            },
            park,
        }
    }
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
    let last = park.task.exhausted.as_ref();
    let is_held = last.is_some_and(|last| last.is_held && last.attempts == park.task.attempt - 1);
    let (what, failed) = match before {
        _ if park.task.pending_since.is_some()
            && before.is_none_or(|before| before.task.pending_since != park.task.pending_since) =>
        {
            ("pending", Some(i64::from(park.task.attempt)))
        }
        _ if park.task.attempt > attempt && is_held => {
            ("held", Some(i64::from(park.task.attempt) - 1))
        }
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
    let error = park.task.failure.as_ref();
    let error = error.filter(|_| failed.is_some() && what == "failed");
    let moment = Moment {
        at: park.appended,
        what: what.to_owned(),
        kind: kind_word(park.task.kind),
        attempt: failed,
        error: error.map(ToString::to_string),
        due: Some(park.task.due),
        deferred_until: deferred_until(&park.task),
        place: Some(park.at.to_string()),
        ..Moment::default()
    };
    steps.insert(
        index,
        Step {
            moment,
            park: Some(park),
            is_end: false,
        },
    );
}

/// Names the attempts that no record tells of, before `step`; gives the number of the next attempt.
pub(crate) fn gap(next: i64, step: &Step, moments: &mut Vec<Moment>) -> i64 {
    let (known, after) = match (&step.moment.attempt, &step.park) {
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
        moments.push(Moment {
            at: step.moment.at,
            what: "gap".to_owned(),
            kind: step.moment.kind,
            error: Some(format!(
                "of {attempts} nothing was found: neither the event nor the record it was parked in"
            )),
            ..Moment::default()
        });
    }
    after.max(next)
}

/// Says how long was waited between things, and how much of that was scheduled.
pub(crate) fn explain_waits(moments: &mut [Moment]) {
    let mut before: Option<(Timestamp, Option<Timestamp>)> = None;
    for moment in moments {
        if matches!(moment.what.as_str(), "gap" | "callback" | "dead-letter") {
            continue;
        }
        if let Some((since, due)) = before {
            moment.waited_ms = Some(moment.at.since(since).as_millis() as u64);
            let scheduled = due.map(|due| moment.at.min(due).since(since).as_millis() as u64);
            moment.scheduled_ms = Some(scheduled.unwrap_or_default());
        }
        before = Some((moment.at, moment.due));
    }
}
