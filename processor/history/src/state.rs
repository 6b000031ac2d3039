//! The state of a task: how it stands now, and what comes next.

use serde::Serialize;

use retide_core::span::human;
use retide_core::tier::HORIZON;
use retide_core::{Ladder, Task, Terminal, Timestamp};

use crate::steps::{Park, Step};
use crate::timeline::{Moment, clock, maybe_time};

/// How a task stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct State {
    /// `entered`, `waiting`, `parked`, `pending`, or how it ended.
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

/// How the task stands.
pub(crate) fn state(work: &[Step], delivery: &[Step], ladder: &Ladder, now: Timestamp) -> State {
    if let Some(end) = work.iter().find(|step| step.is_end) {
        return ended(&end.moment, work, delivery, ladder, now);
    }
    match work.iter().rev().find(|step| step.park.is_some() || step.moment.due.is_some()) {
        Some(step) => waits(step, ladder, now),
        None if delivery.is_empty() => State {
            word: "entered".to_owned(),
            text: "no end and no wait was found: its first attempt is under way, workers have not come to it yet, or none runs"
                .to_owned(),
            place: work.last().and_then(|step| step.moment.place.clone()),
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
pub(crate) fn ended(
    end: &Moment,
    work: &[Step],
    delivery: &[Step],
    ladder: &Ladder,
    now: Timestamp,
) -> State {
    if end.what == "duplicate" {
        return State {
            word: "replaced".to_owned(),
            text: "replaced: a later record of its id has its place; nothing comes next".to_owned(),
            place: None,
            due: None,
            remaining_ms: None,
        };
    }
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
        let took = end.at.since(first.moment.at).as_millis() as u64;
        text.push(format!(
            ", {} after it was {}",
            human(took),
            first.moment.what
        ));
    }
    let kept = work.iter().any(|step| step.moment.what == "dead-letter");
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
        return format!("the delivery of its callback ended as {}", end.moment.what);
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
        .or(step.moment.due);
    let left = due
        .filter(|due| *due > now)
        .map(|due| human(due.since(now).as_millis() as u64));
    let (word, place) = match &step.park {
        Some(park) if park.task.pending_since.is_some() => ("pending", Some(park.at.to_string())),
        Some(park) => ("parked", Some(park.at.to_string())),
        None => ("waiting", step.moment.place.clone()),
    };
    let pending = step
        .park
        .as_ref()
        .is_some_and(|park| park.task.pending_since.is_some());
    let attempt = match &step.park {
        Some(park) if pending => {
            format!(
                "attempt {} is pending: its target answers by a command; that",
                park.task.attempt
            )
        }
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
        (Some(due), Some(left)) if pending => {
            text.push(format!(
                ", {attempt} is given up in {left}, at {}",
                clock(due)
            ));
            text.extend(step.park.as_ref().map(|park| hop(park, ladder)));
        }
        (Some(due), Some(left)) => {
            text.push(format!(", {attempt} is due in {left}, at {}", clock(due)));
            text.extend(step.park.as_ref().map(|park| hop(park, ladder)));
        }
        (Some(due), None) => {
            let late = human(now.since(due).as_millis() as u64);
            text.push(format!(", {attempt} was due {late} ago, at {}", clock(due)));
            let held = step.park.as_ref().and_then(|park| park.task.held_since);
            let exhausted = step.park.as_ref().and_then(|park| exhausted(&park.task));
            text.push(match deferred {
                Some(until) if exhausted.is_some() => format!(
                    "; it is out of attempts since {} and held until people let it go, and looked at again in {}, at {}",
                    exhausted.map(clock).unwrap_or_default(),
                    human(until.since(now).as_millis() as u64),
                    clock(until)
                ),
                Some(until) if held.is_some() => format!(
                    "; it is held, and looked at again in {}, at {}",
                    human(until.since(now).as_millis() as u64),
                    clock(until)
                ),
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

/// Since when a parked task is out of attempts, if nobody has let it go by itself.
fn exhausted(task: &Task) -> Option<Timestamp> {
    let last = task.exhausted.as_ref()?;
    last.is_held.then_some(last.at)
}

/// Until when a parked task is deferred, if it is.
pub(crate) fn deferred_until(task: &Task) -> Option<Timestamp> {
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
