//! Commands of a history: what is sent, and the judge of what becomes of it.
//!
//! Invariants that are judged: a request ends once; what it counts as done is what was written for it; a task that was there when a request
//! was sent, and fits it, has ended, or was touched by it or a later one, when the request ends; only a task that fits a request is touched.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use retide_core::control::{Command, Control, Ended, Place, Verb};
use retide_core::selector::{Parts, Selector};
use retide_core::state::State;
use retide_core::{Event, Failure, Outcome, Task, Terminal, Timestamp, Transition};

use crate::broker::Payload;
use crate::chance::Chance;
use crate::forced::is_wish;
use crate::plan::Submission;
use crate::world::{At, MILLI, SECOND};

/// A command that somebody sends.
#[derive(Clone, Debug)]
pub(crate) struct Order {
    /// When.
    pub(crate) at: At,
    /// The partition.
    pub(crate) shard: i32,
    /// Its name.
    pub(crate) id: Arc<str>,
    /// What is to be done.
    verb: Sort,
    /// With which tasks.
    selector: Selector,
    /// How long it waits for tasks that do not exist yet.
    waits: Duration,
}

/// What is to be done, before it is known when the request is appended.
#[derive(Clone, Debug)]
pub(crate) enum Sort {
    /// [`Verb::Cancel`].
    Cancel,
    /// [`Verb::RunNow`].
    RunNow,
    /// [`Verb::Reschedule`].
    Reschedule(Duration),
    /// [`Verb::Complete`].
    Complete(Outcome),
}

/// What is known of a request.
#[derive(Debug)]
struct Sent {
    /// The request.
    command: Arc<Command>,
    /// The tasks that were there when it was sent, and fit it.
    there: BTreeSet<Arc<str>>,
    /// Those of which it may not have been known what they are, or that may have waited behind such a one.
    aside: BTreeSet<Arc<str>>,
    /// What was written for it.
    done: u64,
    /// What of it was with tasks that may have been set aside: the command may have said what it has done before.
    done_aside: u64,
    /// The tasks that it came too late for, as far as that was told.
    too_late: u64,
    /// Those of them that may have been set aside.
    too_late_aside: u64,
    /// What became of it.
    ended: Option<Ended>,
}

/// A record of a step, as the owner of a shard reads it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ReadStep {
    /// The assignment.
    pub(crate) assignment: u64,
    /// The offset of the record.
    pub(crate) offset: i64,
    /// The place of the command.
    pub(crate) place: Place,
}

/// The judge of commands.
#[derive(Debug, Default)]
pub(crate) struct Orders {
    /// The requests, by place.
    sent: BTreeMap<Place, Sent>,
    /// The place of each request, by its name.
    places: BTreeMap<Arc<str>, Place>,
    /// The last command that has touched a task.
    touched: BTreeMap<Arc<str>, Place>,
    /// When the next attempt of a task may start, as commands have said.
    due: BTreeMap<Arc<str>, BTreeSet<Timestamp>>,
    /// The tasks of which it may not have been known what they are, or that may have waited behind such a one.
    aside: BTreeSet<Arc<str>>,
    /// The keys of such tasks, by shard.
    aside_keys: BTreeSet<(i32, &'static str)>,
    /// The steps of each shard that are not over, as far as that is durable.
    live: BTreeSet<(i32, Place)>,
    /// The shard of each assignment, when it began, and the steps that stood there then.
    assigned: BTreeMap<u64, (i32, At, BTreeSet<Place>)>,
    /// The steps that were read in each assignment.
    heard: BTreeSet<(u64, Place)>,
    /// The same, by the offset that each has open there.
    open: BTreeMap<(u64, i64), Place>,
    /// Steps that the owner of an assignment ended, durable or not: it knows nothing of them any more.
    forgotten: BTreeSet<(u64, Place)>,
}

// === impl Order ===

impl Order {
    /// Commands for these tasks.
    pub(crate) fn draw(
        chance: &mut Chance,
        submissions: &[Arc<Submission>],
        heals_at: At,
        shards: i32,
    ) -> Vec<Self> {
        let many = chance.between(1, 6);
        let draw = |number| {
            let pick =
                |chance: &mut Chance| &submissions[chance.below(submissions.len() as u64) as usize];
            let mut parts = Parts::default();
            match chance.below(4) {
                0 | 1 => {
                    for _ in 0..chance.between(1, 4) {
                        parts.ids.insert(Arc::clone(&pick(chance).id));
                    }
                    if chance.one_in(4) {
                        parts.ids.insert("nobody".into());
                    }
                }
                2 => drop(parts.scenes.insert(Arc::clone(&pick(chance).scene))),
                _ => {
                    let key = submissions.iter().find_map(|submission| submission.key);
                    match key {
                        Some(key) if !key.is_empty() => {
                            parts.keys.insert(Bytes::from_static(key.as_bytes()));
                        }
                        Some(_) | None => {
                            parts.scenes.insert(Arc::clone(&pick(chance).scene));
                        }
                    }
                }
            }
            let failure = Failure::new("told", "from outside");
            Self {
                at: chance.between(500, heals_at / MILLI) * MILLI,
                shard: chance.below(shards as u64) as i32,
                id: format!("command-{number}").into(),
                verb: match chance.below(8) {
                    0..=2 => Sort::Cancel,
                    3 | 4 => Sort::RunNow,
                    5 | 6 => Sort::Reschedule(Duration::from_millis(chance.between(0, 40_000))),
                    _ => Sort::Complete(match chance.below(3) {
                        0 => Outcome::Success,
                        1 => Outcome::Permanent(failure),
                        _ => Outcome::Retryable(failure),
                    }),
                },
                selector: Selector::new(parts).unwrap_or_else(|error| unreachable!("{error}")),
                waits: Duration::from_secs(chance.pick(&[0, 5, 60])),
            }
        };
        (0..many).map(draw).collect()
    }

    /// A command about all tasks of a scene, sent at this time to this shard.
    pub(crate) fn of_scene((id, verb): (&str, Sort), (at, shard): (At, i32), scene: &str) -> Self {
        let mut parts = Parts::default();
        parts.scenes.insert(scene.into());
        Self {
            at,
            shard,
            id: format!("command-{id}").into(),
            verb,
            selector: Selector::new(parts).unwrap_or_else(|error| unreachable!("{error}")),
            waits: Duration::ZERO,
        }
    }

    /// What becomes of attempts that are pending: of some of these tasks, at some time.
    pub(crate) fn completions(
        chance: &mut Chance,
        submissions: &[Arc<Submission>],
        heals_at: At,
        shards: i32,
    ) -> Vec<Self> {
        let many = chance.between(1, 10);
        let draw = |number| {
            let task = &submissions[chance.below(submissions.len() as u64) as usize];
            let ids = [Arc::clone(&task.id)].into();
            let parts = Parts {
                ids,
                ..Parts::default()
            };
            let failure = Failure::new("told", "from outside");
            // Soon after its first attempt as a rule.
            let soon = task.at + chance.between(0, 20_000) * MILLI;
            Self {
                at: soon.clamp(500 * MILLI, heals_at),
                shard: chance.below(shards as u64) as i32,
                id: format!("completion-{number}").into(),
                verb: match chance.below(8) {
                    0..=2 => Sort::Complete(Outcome::Success),
                    3 | 4 => Sort::Complete(Outcome::Retryable(failure)),
                    5 => Sort::Complete(Outcome::Permanent(failure)),
                    6 => Sort::RunNow,
                    _ => Sort::Cancel,
                },
                selector: Selector::new(parts).unwrap_or_else(|error| unreachable!("{error}")),
                waits: Duration::from_secs(chance.pick(&[0, 5])),
            }
        };
        (0..many).map(draw).collect()
    }

    /// The request, as it is read.
    pub(crate) fn request(&self, shard: i32, offset: i64, appended: Timestamp) -> Command {
        let at = Timestamp::from_millis(appended.as_millis());
        Command {
            place: Place {
                at,
                partition: shard,
                offset,
            },
            id: Arc::clone(&self.id),
            verb: match &self.verb {
                Sort::Cancel => Verb::Cancel,
                Sort::RunNow => Verb::RunNow,
                Sort::Reschedule(after) => Verb::Reschedule { due: at + *after },
                Sort::Complete(outcome) => Verb::Complete(outcome.clone()),
            },
            selector: self.selector.clone(),
            by: "sim".into(),
            reason: "chance".into(),
            expires: at + self.waits,
        }
    }
}

// === impl Orders ===

impl Orders {
    /// A task was produced.
    pub(crate) fn submitted(&mut self, submission: &Submission) {
        let at = submission.key.map(|key| (submission.shard, key));
        if submission.named_at > 0 || at.is_some_and(|at| self.aside_keys.contains(&at)) {
            self.aside.insert(Arc::clone(&submission.id));
            self.aside_keys.extend(at);
        }
    }

    /// A request was sent, when these tasks were there and had not ended.
    pub(crate) fn sent<'a>(
        &mut self,
        command: Command,
        there: impl Iterator<Item = &'a Arc<Submission>>,
    ) {
        let fits = |submission: &&Arc<Submission>| {
            // What is delivered to a topic is decided before it is written: a command may find it so.
            let is_kept = !submission.poison && !submission.scene.ends_with("topic");
            is_kept && fits(&command.selector, submission)
        };
        let (mut known, mut aside) = (BTreeSet::new(), BTreeSet::new());
        for submission in there.filter(fits) {
            let id = Arc::clone(&submission.id);
            if self.aside.contains(&submission.id) {
                aside.insert(id);
            } else {
                known.insert(id);
            }
        }
        let place = command.place;
        self.places.insert(Arc::clone(&command.id), place);
        let sent = Sent {
            there: known,
            aside,
            command: Arc::new(command),
            done: 0,
            done_aside: 0,
            too_late_aside: 0,
            too_late: 0,
            ended: None,
        };
        self.sent.insert(place, sent);
    }

    /// Whether nobody has sent anything.
    pub(crate) fn is_empty(&self) -> bool {
        self.sent.is_empty()
    }

    /// Whether a command can have made the next attempt of a task due then.
    pub(crate) fn made_due(&self, id: &str, due: Timestamp) -> bool {
        self.due.get(id).is_some_and(|dues| dues.contains(&due))
    }

    /// Whether a task may have been completed from outside.
    pub(crate) fn may_be_completed(&self, submission: &Submission) -> bool {
        let completes = |sent: &Sent| {
            matches!(sent.command.verb, Verb::Complete(_))
                && fits(&sent.command.selector, submission)
        };
        self.sent.values().any(completes)
    }

    /// Whether a command may be about a task.
    pub(crate) fn may_be_about(&self, submission: &Submission) -> bool {
        let mut sent = self.sent.values();
        sent.any(|sent| fits(&sent.command.selector, submission))
    }

    /// A transition that follows from a command is durable.
    pub(crate) fn told(
        &mut self,
        event: &Event,
        submission: Option<&Arc<Submission>>,
    ) -> Result<(), String> {
        // Neither a hold nor a breaker by hand is a command.
        let command = event.command.as_ref();
        let Some(id) = command.filter(|id| !is_wish(id)) else {
            return match event.transition {
                Transition::Ended {
                    terminal: Terminal::Cancelled,
                    ..
                }
                | Transition::Rescheduled { .. }
                | Transition::Replayed { .. }
                | Transition::TooLate { .. } => Err(format!("nobody has asked for {event:?}")),
                Transition::Ended { .. }
                | Transition::Parked { .. }
                | Transition::Hopped { .. }
                | Transition::Deferred { .. }
                | Transition::Duplicate { .. }
                | Transition::Pending { .. }
                | Transition::Held { .. }
                | Transition::Failed { .. } => Ok(()),
            };
        };
        let place = self.places.get(id).copied();
        let Some((place, sent)) = place.and_then(|place| Some((place, self.sent.get_mut(&place)?)))
        else {
            return Err(format!("{event:?} follows from no command"));
        };
        if !submission.is_some_and(|submission| fits(&sent.command.selector, submission)) {
            return Err(format!("{event:?} is about a task that {id} does not name"));
        }
        if self
            .touched
            .get(&event.id)
            .is_some_and(|before| *before >= place)
        {
            return Err(format!(
                "{event:?}: the task was touched by a later command, or twice"
            ));
        }
        self.touched.insert(Arc::clone(&event.id), place);
        let is_done = !matches!(event.transition, Transition::TooLate { .. });
        let is_aside = self.aside.contains(&event.id);
        sent.done_aside += u64::from(is_done && is_aside);
        sent.too_late_aside += u64::from(!is_done && is_aside);
        match event.transition {
            Transition::TooLate { .. } => sent.too_late += 1,
            Transition::Rescheduled { due }
            | Transition::Pending { until: due, .. }
            | Transition::Failed { due, .. } => {
                sent.done += 1;
                self.due
                    .entry(Arc::clone(&event.id))
                    .or_default()
                    .insert(due);
            }
            Transition::Ended { .. }
            | Transition::Parked { .. }
            | Transition::Hopped { .. }
            | Transition::Replayed { .. }
            | Transition::Duplicate { .. }
            | Transition::Deferred { .. }
            | Transition::Held { .. } => {
                sent.done += 1;
            }
        }
        Ok(())
    }

    /// A record of a shard is durable: it may begin a step there, or end it.
    pub(crate) fn follow_step(&mut self, shard: i32, payload: &Payload) {
        if let Payload::Control(control) = payload
            && let Control::Step(step) = &**control
        {
            self.live.insert((shard, step.command.place));
        }
        if let Payload::State(State::Step {
            place,
            progress: None,
        }) = payload
        {
            self.live.remove(&(shard, *place));
        }
    }

    /// A worker has this assignment of a shard.
    pub(crate) fn assigned(&mut self, at: At, shard: i32, assignment: u64) {
        let steps = self.live.iter().filter(|(of, _)| *of == shard);
        let steps = steps.map(|(_, place)| *place).collect();
        self.assigned.insert(assignment, (shard, at, steps));
    }

    /// The owner of a shard reads a step.
    pub(crate) fn read(&mut self, read: ReadStep) {
        let at = (read.assignment, read.offset);
        self.open.insert(at, read.place);
    }

    /// The owner of a shard has a step from now on.
    pub(crate) fn heard(&mut self, read: ReadStep) {
        let step = (read.assignment, read.place);
        self.heard.insert(step);
        self.forgotten.remove(&step);
    }

    /// The owner of a shard settles an offset of its commands, maybe since it has just `read` a step: it may end one, by a clock that is set back
    /// before that is durable.
    pub(crate) fn settled(
        &mut self,
        (assignment, offset): (u64, i64),
        entries: &[retide_core::Entry],
        read: Option<ReadStep>,
    ) {
        let Some(place) = self.open.remove(&(assignment, offset)) else {
            return;
        };
        let begins_anew = read.is_some_and(|read| {
            (read.assignment, read.place) == (assignment, place) && read.offset != offset
        });
        let goes_on = entries.iter().any(|entry| {
            matches!(entry, retide_core::Entry::Control { control, .. }
                if matches!(&**control, Control::Step(step) if step.command.place == place))
        });
        if !begins_anew && !goes_on {
            self.forgotten.insert((assignment, place));
        }
    }

    /// A step of a shard is over: nothing may be set aside there that it may be about, as long as it has not expired.
    pub(crate) fn over<'a>(
        &self,
        (now, at): (At, Timestamp),
        (shard, place): (i32, Place),
        submitted: impl Fn(&str) -> Option<&'a Arc<Submission>>,
    ) -> Result<(), String> {
        let Some(sent) = self.sent.get(&place) else {
            return Ok(());
        };
        let command = &sent.command;
        if command.selector.ids().is_some() || command.expires <= at {
            return Ok(());
        }
        let is_aside = |id: &&Arc<str>| {
            let submission = submitted(id);
            submission.is_some_and(|of| of.shard == shard && of.named_at > now)
        };
        sent.aside.iter().find(is_aside).map_or(Ok(()), |id| {
            Err(format!(
                "{} is over in shard {shard} although {id} is set aside there",
                command.id
            ))
        })
    }

    /// The owner of a shard starts a task: no command may stand there that cancels it, and that it must know.
    pub(crate) fn started(
        &self,
        at: At,
        (assignment, wall): (u64, Timestamp),
        task: &Task,
    ) -> Result<(), String> {
        let Some((shard, since, stood)) = self.assigned.get(&assignment) else {
            return Ok(());
        };
        // What cannot be read for so long is not waited for.
        let is_late = at >= since + PATIENCE;
        for (_, place) in self
            .live
            .range((*shard, FIRST)..)
            .take_while(|(of, _)| of == shard)
        {
            let Some(sent) = self.sent.get(place) else {
                continue;
            };
            let command = &sent.command;
            let is_later = task.commanded.as_ref().is_none_or(|last| **last < *place);
            // One that has moved may stand where the first look has been; the second one finds it.
            let has_moved = task.origin.partition != *shard;
            let was_there = sent.there.contains(&task.id) || sent.aside.contains(&task.id);
            let was_there = was_there && !has_moved;
            let names = command
                .selector
                .ids()
                .is_some_and(|ids| ids.contains(&task.id));
            let is_known = stood.contains(place) || sent.ended.is_some();
            let is_heard = self.heard.contains(&(assignment, *place));
            let is_known = is_heard || (is_known && !is_late);
            if command.verb == Verb::Cancel
                && is_later
                && (names || was_there)
                && is_known
                && !self.forgotten.contains(&(assignment, *place))
                && wall < command.expires
            {
                return Err(format!(
                    "{} started although {} stood in its shard, which cancels it",
                    task.id, command.id
                ));
            }
        }
        Ok(())
    }

    /// A record of the commands topic is durable; `has_ended` says of a task whether it has.
    pub(crate) fn written(
        &mut self,
        control: &Control,
        has_ended: impl Fn(&str) -> bool,
    ) -> Result<(), String> {
        let Control::Ended(ended) = control else {
            return Ok(());
        };
        let Some(sent) = self.sent.get_mut(&ended.place) else {
            return Err(format!("nobody has sent {ended:?}"));
        };
        if sent.ended.is_some() {
            return Err(format!("{ended:?} is told twice"));
        }
        let counts = match &ended.result {
            Ok(counts) => *counts,
            Err(why) => return Err(format!("{} is refused: {why}", ended.id)),
        };
        sent.ended = Some(ended.clone());
        let names_ids = sent.command.selector.ids().is_some();
        // What waits for tasks that do not exist yet may have met some since.
        let is_right = if names_ids {
            counts.done <= sent.done
        } else {
            counts.done <= sent.done && counts.done + sent.done_aside >= sent.done
        };
        let is_late_told = names_ids || counts.too_late + sent.too_late_aside >= sent.too_late;
        if !is_right || !is_late_told {
            return Err(format!(
                "{ended:?}, but {} were done and {} were too late",
                sent.done, sent.too_late
            ));
        }
        if counts.found > u64::from(ended.ids) {
            return Err(format!("{ended:?} has found more than it names"));
        }
        let touched = &self.touched;
        let left = sent.there.iter().find(|id| {
            let is_touched = touched.get(*id).is_some_and(|last| *last >= ended.place);
            !is_touched && !has_ended(id)
        });
        match left {
            Some(left) => Err(format!(
                "{left} was there and fits {:?}, which has ended: {ended:?}",
                sent.command
            )),
            None => Ok(()),
        }
    }

    /// Everything has come to its end.
    pub(crate) fn finish(&self) -> Result<(), String> {
        let open = self.sent.values().find(|sent| sent.ended.is_none());
        open.map_or(Ok(()), |sent| {
            Err(format!("{:?} has not ended", sent.command))
        })
    }
}

/// Whether a selector, as they are drawn, is about a task, by what its producer said.
pub(crate) fn fits(selector: &Selector, submission: &Submission) -> bool {
    let parts = selector.parts();
    let key = submission.key.map(|key| Bytes::from_static(key.as_bytes()));
    (parts.ids.is_empty() || parts.ids.contains(&submission.id))
        && (parts.scenes.is_empty() || parts.scenes.contains(&submission.scene))
        && (parts.keys.is_empty() || key.is_some_and(|key| parts.keys.contains(&key)))
}

/// The first place of all.
const FIRST: Place = Place {
    at: Timestamp::EPOCH,
    partition: i32::MIN,
    offset: i64::MIN,
};

/// How long the commands that stand in a shard are waited for that cannot be read.
const PATIENCE: At = 25 * SECOND;

/// Longest pause of a look between two pieces.
pub(crate) const LOOK_PAUSE: At = SECOND / 20;
