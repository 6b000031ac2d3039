//! The records that follow from a decision about a task.
//!
//! Not the decision. Invariant: an end of work is one callback and one event; a bad end is a dead letter besides.

use std::iter;
use std::sync::Arc;

use crate::campaign::{LEADER, Replay, Report, Said};
use crate::control::Control;
use crate::duplicates::Known;
use crate::entry::{Ended, Entry, Event, Omitted, Poison, Transition};
use crate::outcome::{Outcome, Reason, Terminal, Verdict};
use crate::task::{Exhausted, Failure, Kind, Task};
use crate::tier::Ladder;
use crate::time::Timestamp;
use crate::wait::Wait;

/// How a task ended.
#[derive(Clone, Copy, Debug)]
pub(crate) struct End {
    /// How.
    pub(crate) terminal: Terminal,
    /// Why, if badly.
    pub(crate) reason: Option<Reason>,
    /// How many attempts were made.
    pub(crate) attempts: u32,
    /// How late the last one was, or the decision that there is none.
    pub(crate) wait: Option<Wait>,
}

/// What an attempt came to.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    /// In the words of [`crate::Outcome::word`].
    pub(crate) outcome: &'static str,
    /// In detail, unless it succeeded.
    pub(crate) failure: Option<Failure>,
    /// How late it was.
    pub(crate) wait: Wait,
    /// The headers of the record that it went without, in words.
    pub(crate) left_out: Option<Box<str>>,
}

/// Parks `task` until it is to be looked at, in the shard `to` if it is to move; it is counted as one hop. What is `told` of that, if
/// anything, is with the lateness of the attempt that was made of it, or of the one that is put off.
pub(crate) fn park(
    mut task: Arc<Task>,
    to: Option<i32>,
    ladder: &Ladder,
    now: Timestamp,
    told: Option<(Transition, Option<Wait>)>,
) -> Vec<Entry> {
    let parked = Arc::make_mut(&mut task);
    parked.hops = parked.hops.saturating_add(1);
    let event = told.map(|(transition, wait)| event(&task, now, transition, wait));
    let remaining = task.wake().since(now);
    let tier = match to {
        Some(_) => ladder.tier_to_move(remaining),
        None => ladder.tier_for(remaining),
    };
    let park = Entry::Park { tier, to, task };
    iter::once(park).chain(event).collect()
}

/// Parks a task that is replayed, in its own shard.
pub(crate) fn replay(task: Task, tier: usize, home: i32, now: Timestamp) -> [Entry; 2] {
    let replay = task.replay.as_deref();
    let replay = replay.unwrap_or_else(|| unreachable!("replayed by nobody"));
    let transition = Transition::Replayed {
        campaign: Arc::clone(&replay.campaign.name),
        times: replay.times,
        shard: home,
    };
    let event = event(&task, now, transition, None);
    let park = Entry::Park {
        tier,
        to: Some(home),
        task: Arc::new(task),
    };
    [park, event]
}

/// What a task that was replayed says to the leader of its campaign.
pub(crate) fn report(task: &Task, said: Said) -> Option<Entry> {
    task.replay.as_deref().map(|replay| report_of(replay, said))
}

/// What a task that was replayed so says to the leader of its campaign.
fn report_of(replay: &Replay, said: Said) -> Entry {
    let report = Report {
        campaign: replay.campaign.clone(),
        said,
    };
    Entry::Control {
        to: LEADER,
        control: Box::new(Control::Report(report)),
    }
}

/// Ends `task`.
pub(crate) fn end(task: Arc<Task>, how: End, now: Timestamp) -> Vec<Entry> {
    end_of(task, how, Said::default(), now)
}

/// Ends `task`, which was delivered to a topic.
pub(crate) fn delivered(task: Arc<Task>, how: End, now: Timestamp) -> Vec<Entry> {
    end_of(task, how, Said::came_back(false), now)
}

/// Ends `task`, of which an attempt may have said something.
fn end_of(task: Arc<Task>, how: End, said: Said, now: Timestamp) -> Vec<Entry> {
    let End {
        terminal,
        reason,
        attempts,
        wait,
    } = how;
    let ended = Arc::new(Ended {
        id: Arc::clone(&task.id),
        scene: Arc::clone(&task.scene),
        kind: task.kind,
        terminal,
        reason,
        attempts,
        origin: task.origin.clone(),
        first_failed_at: task.first_failed_at,
        at: now,
        failure: task.failure.clone(),
        key: task.record.key.clone(),
        omitted: Omitted::Nothing,
    });
    let transition = Transition::Ended {
        terminal,
        attempts,
        reason,
        fingerprint: ended.fingerprint(),
    };
    let mut entries = vec![event(&task, now, transition, wait)];
    entries.extend(report(&task, said.and(Said::end(terminal))));
    match task.kind {
        Kind::Work => entries.push(Entry::Callback(Arc::clone(&ended))),
        // Its end stands in the events; a callback about a callback would never end.
        Kind::Callback => {}
    }
    match terminal {
        Terminal::Delivered | Terminal::Cancelled => {}
        Terminal::Dead | Terminal::Expired => entries.push(Entry::DeadLetter { task, ended }),
    }
    entries
}

/// What follows from `verdict` on attempt number `task.attempt`.
pub(crate) fn of_verdict(
    mut shared: Arc<Task>,
    verdict: Verdict,
    answer: Answer,
    ladder: &Ladder,
    now: Timestamp,
) -> Vec<Entry> {
    let Answer {
        outcome,
        failure,
        wait,
        left_out,
    } = answer;
    // Nobody else has it, as a rule.
    let task = Arc::make_mut(&mut shared);
    let attempts = task.attempt;
    task.held_since = None;
    task.pending_since = None;
    if failure.is_some() {
        task.failure.clone_from(&failure);
    }
    let said = match verdict {
        Verdict::Delivered => Said::came_back(false),
        Verdict::Retry { .. } | Verdict::Held { .. } | Verdict::Dead(_) | Verdict::Expired => {
            Said::came_back(true)
        }
        Verdict::Pending { .. } => Said::default(),
    };
    let told_of = |task: &Task| report(task, said);
    let (terminal, reason) = match verdict {
        Verdict::Retry { due } => {
            task.attempt = attempts.saturating_add(1);
            if outcome == Outcome::THROTTLED {
                task.throttled = task.throttled.saturating_add(1);
            }
            task.due = due;
            task.deferral = None;
            task.begin_round();
            let transition = Transition::Failed {
                attempt: attempts,
                outcome,
                failure: failure.unwrap_or_else(|| unreachable!("a retry without a failure")),
                due,
            };
            let told = Some((transition, Some(wait)));
            let report = told_of(task);
            let mut entries = park(shared, None, ladder, now, told);
            entries.extend(report);
            return note(entries, left_out);
        }
        Verdict::Pending { until } => {
            task.pending_since = Some(now);
            task.begin_round();
            task.due = until;
            task.deferral = None;
            let transition = Transition::Pending {
                attempt: attempts,
                until,
            };
            let told = Some((transition, Some(wait)));
            return note(park(shared, None, ladder, now, told), left_out);
        }
        Verdict::Held { since } => {
            task.attempt = attempts.saturating_add(1);
            task.throttled = 0;
            task.exhausted = Some(Box::new(Exhausted {
                at: since,
                attempts,
                is_held: true,
            }));
            // It is due, and held when it is looked at first.
            task.due = now.ceil_to_millis();
            task.deferral = None;
            task.held_since = Some(now.ceil_to_millis());
            let transition = Transition::Held {
                attempt: attempts,
                outcome,
                failure: failure.unwrap_or_else(|| unreachable!("held without a failure")),
                reason: Reason::AttemptsExhausted,
            };
            let told = Some((transition, Some(wait)));
            let report = told_of(task);
            let mut entries = park(shared, None, ladder, now, told);
            entries.extend(report);
            return note(entries, left_out);
        }
        Verdict::Delivered => (Terminal::Delivered, None),
        Verdict::Dead(reason) => (Terminal::Dead, Some(reason)),
        Verdict::Expired => (Terminal::Expired, Some(Reason::DeadlinePassed)),
    };
    let how = End {
        terminal,
        reason,
        attempts,
        wait: Some(wait),
    };
    note(end_of(shared, how, said, now), left_out)
}

/// Adds to the event which headers of the record the attempt went without.
fn note(mut entries: Vec<Entry>, left_out: Option<Box<str>>) -> Vec<Entry> {
    if left_out.is_some() {
        for entry in &mut entries {
            if let Entry::Event(event) = entry {
                event.left_out = left_out;
                break;
            }
        }
    }
    entries
}

/// Ends a record that could not be read as a task.
pub(crate) fn poison(poison: Arc<Poison>, now: Timestamp) -> Vec<Entry> {
    let omitted = if poison.reason == Reason::Crashed {
        // Nobody looks at it, not even to copy it.
        Omitted::Record(None)
    } else {
        Omitted::Nothing
    };
    let ended = Arc::new(Ended {
        id: Arc::clone(&poison.id),
        scene: Arc::clone(&poison.scene),
        kind: poison.kind,
        terminal: Terminal::Dead,
        reason: Some(poison.reason),
        attempts: 0,
        origin: poison.origin.clone(),
        first_failed_at: now,
        at: now,
        failure: Some(poison.detail.clone()),
        key: poison.key.clone(),
        omitted,
    });
    let event = Entry::Event(Event {
        id: Arc::clone(&poison.id),
        scene: Arc::clone(&poison.scene),
        kind: poison.kind,
        at: now,
        transition: Transition::Ended {
            terminal: Terminal::Dead,
            attempts: 0,
            reason: Some(poison.reason),
            fingerprint: ended.fingerprint(),
        },
        wait: None,
        left_out: None,
        command: None,
    });
    let mut entries = vec![event];
    match poison.kind {
        Kind::Work => entries.push(Entry::Callback(Arc::clone(&ended))),
        // The end that it reports has been reported.
        Kind::Callback => {}
    }
    let replay = poison.replay.as_deref();
    let report = replay.map(|replay| report_of(replay, Said::end(Terminal::Dead)));
    entries.push(Entry::Poison { poison, ended });
    entries.extend(report);
    entries
}

/// Tells that a command came too late for `task`, which has ended so.
pub(crate) fn too_late(task: &Task, now: Timestamp, end: Terminal, command: &Arc<str>) -> Entry {
    Entry::Event(Event {
        id: Arc::clone(&task.id),
        scene: Arc::clone(&task.scene),
        kind: task.kind,
        at: now,
        transition: Transition::TooLate { why: end.word() },
        wait: None,
        left_out: None,
        command: Some(Arc::clone(command)),
    })
}

/// Tells of a record that is one too many, since another task has its id: `known` says which one.
pub(crate) fn duplicate(task: &Task, known: Known, fate: &'static str, now: Timestamp) -> Entry {
    let what = match known.until {
        None => "is under way".to_owned(),
        Some(until) => format!("has ended, and has its id until {until}"),
    };
    let message = format!(
        "{}: the task that entered at offset {} {what}",
        task.origin, known.offset
    );
    let told = Failure::new("duplicate", &message);
    event(task, now, Transition::Duplicate { fate, told }, None)
}

/// Tells that `task` takes the place of the task of its id that entered at `replaced`.
pub(crate) fn replaces(task: &Task, replaced: i64, fate: &'static str, now: Timestamp) -> Entry {
    let message = format!(
        "{}: takes the place of the task that entered at offset {replaced}",
        task.origin
    );
    let told = Failure::new("duplicate", &message);
    event(task, now, Transition::Duplicate { fate, told }, None)
}

/// The event that tells of `transition`.
fn event(task: &Task, now: Timestamp, transition: Transition, wait: Option<Wait>) -> Entry {
    Entry::Event(Event {
        id: Arc::clone(&task.id),
        scene: Arc::clone(&task.scene),
        kind: task.kind,
        at: now,
        transition,
        wait,
        left_out: None,
        command: None,
    })
}
