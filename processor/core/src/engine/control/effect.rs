//! What a command does with a task that it meets, and what is written of it.
//!
//! Not where the task is found, which is `memory`'s and `look`'s. Invariant: of the commands that a task meets the last one is in force, and
//! the task bears its place from then on; those before it come too late.

use std::sync::Arc;

use super::super::Engine;
use super::memory::Met;
use crate::consequence::{self, Answer as Said, End};
use crate::control::{Command, Place, Verb};
use crate::entry::{Entry, Transition};
use crate::lane::LaneId;
use crate::outcome::{Outcome, Terminal, Verdict};
use crate::planted::Bug;
use crate::scene::Scene;
use crate::step::{Action, Applied, Effect, Now};
use crate::task::{Exhausted, Task};
use crate::verdict;
use crate::wait::Wait;

/// What follows from a command, and which commands that is.
type Decided = (Vec<Entry>, Vec<Applied>);

/// What a task met while a call of it was in flight.
pub(in crate::engine) struct MetInCall<'a> {
    /// The rules of the task.
    scene: &'a Scene,
    /// The last command.
    command: Arc<Command>,
    /// The places of all commands.
    places: Vec<Place>,
}

// === impl Engine ===

impl Engine {
    /// Does with a task what the last command says that it meets. Without one, the task goes on.
    pub(super) fn apply(&mut self, now: Now, met: Met, actions: &mut Vec<Action>) {
        let Met {
            item,
            besides,
            applied: mut before,
        } = met;
        let at = (item.lane, item.offset);
        if self.is_replaced(&item) {
            self.commands.memory.settled(at);
            return self.leave_replaced(item, actions);
        }
        let places = self.places(item.lane, item.offset, &item.task);
        let Some((item, besides)) = self.take_place(now, item, besides, actions) else {
            return self.commands.memory.settled(at);
        };
        let Some(last) = places.last().copied() else {
            self.commands.memory.settled(at);
            if besides.is_empty() {
                return self.outbound.push_back(item);
            }
            // It is parked as it was to be.
            let tier = self.ladder.tier_for(item.task.wake().since(now.wall));
            let closing = self.closing(&item);
            let park = Entry::Park {
                tier,
                to: None,
                task: item.task,
            };
            let entries = besides.into_iter().chain([park]).collect();
            return self.settle_by(closing, entries, before, actions);
        };
        let Some(item) = self.if_settled(item) else {
            self.commands.memory.unsettled(at);
            return;
        };
        self.commands.memory.settled(at);
        let Some(active) = self.commands.steps.get(item.lane.shard, last) else {
            unreachable!("met and gone");
        };
        let command = Arc::clone(active.command());
        let wait = self.wait_of(now, &item);
        // Parked, it would be held as one that had a scene.
        let moves = match &command.verb {
            Verb::RunNow | Verb::Reschedule { .. } => true,
            Verb::Complete(outcome) => match outcome {
                Outcome::Success | Outcome::Permanent(_) | Outcome::Refused(_) => false,
                Outcome::Retryable(_)
                | Outcome::Throttled { .. }
                | Outcome::Timeout(_)
                | Outcome::Pending { .. } => true,
            },
            Verb::Cancel => false,
        };
        let is_lost = moves && self.is_without_scene(&item);
        let closing = self.closing(&item);
        let id = Arc::clone(&item.task.id);
        let shard = item.lane.shard;
        self.leave_exhausted(shard, &item.task);
        let mut task = Arc::unwrap_or_clone(item.task);
        task.commanded = Some(Box::new(last));
        let (mut entries, effect) = if is_lost {
            Self::died_without_scene(now, task, &command)
        } else {
            self.told_by(now, (shard, task), &command, wait)
        };
        match effect {
            Effect::Done => name(&mut entries, &command),
            Effect::TooLate => {}
        }
        let entries = besides.into_iter().chain(entries).collect();
        before.extend(applied(&places, effect, &id));
        self.settle_by(closing, entries, before, actions);
    }

    /// The end of a task that has no scene and never had one, with the word that the command came too late.
    fn died_without_scene(now: Now, task: Task, command: &Command) -> (Vec<Entry>, Effect) {
        let told = consequence::too_late(&task, now.wall, Terminal::Dead, &command.id);
        let how = End {
            terminal: Terminal::Dead,
            reason: Some(Self::reason_without_scene(&task)),
            attempts: task.attempts_made(),
            wait: None,
        };
        let mut entries = consequence::end(Arc::new(task), how, now.wall);
        entries.push(told);
        (entries, Effect::TooLate)
    }

    /// What follows for a task of which no call is in flight.
    fn told_by(
        &self,
        now: Now,
        (shard, mut task): (i32, Task),
        command: &Command,
        wait: Wait,
    ) -> (Vec<Entry>, Effect) {
        let due = match &command.verb {
            Verb::Cancel => {
                let how = End {
                    terminal: Terminal::Cancelled,
                    reason: None,
                    attempts: task.attempts_made(),
                    wait: None,
                };
                return (
                    consequence::end(Arc::new(task), how, now.wall),
                    Effect::Done,
                );
            }
            Verb::Complete(outcome) => {
                let Some(scene) = self.scenes.find(&task.scene) else {
                    // Without rules a task ends as somebody says, or waits for them.
                    return (
                        self.completed_without_rules(now, task, outcome, wait),
                        Effect::Done,
                    );
                };
                let verdict = self.judge(now, shard, (scene, &task), outcome);
                let said = Said {
                    outcome: outcome.word(),
                    failure: outcome.failure().cloned(),
                    wait,
                    left_out: None,
                };
                return (
                    consequence::of_verdict(Arc::new(task), verdict, said, &self.ladder, now.wall),
                    Effect::Done,
                );
            }
            Verb::RunNow => task.due.min(now.wall.ceil_to_millis()),
            Verb::Reschedule { due } => *due,
        };
        task.due = due.min(now.wall + crate::scene::MAX_DELAY).ceil_to_millis();
        task.deferral = None;
        // If it is still held then, its deadline stands still from there.
        task.resume_deadline(now.wall);
        // One that is out of attempts is tried once more, and as often as any other.
        task.begin_round();
        let told = Transition::Rescheduled { due: task.due };
        (
            consequence::park(
                Arc::new(task),
                None,
                &self.ladder,
                now.wall,
                Some((told, None)),
            ),
            Effect::Done,
        )
    }

    /// The end of a task without rules of which somebody says what came of it; a failure that another attempt may mend leaves it as it is.
    fn completed_without_rules(
        &self,
        now: Now,
        task: Task,
        outcome: &Outcome,
        wait: Wait,
    ) -> Vec<Entry> {
        let verdict = match outcome {
            Outcome::Success => Verdict::Delivered,
            Outcome::Permanent(_) | Outcome::Refused(_) => {
                Verdict::Dead(crate::outcome::Reason::Rejected)
            }
            Outcome::Retryable(_)
            | Outcome::Throttled { .. }
            | Outcome::Timeout(_)
            | Outcome::Pending { .. } => Verdict::Retry {
                due: (now.wall + verdict::LEAST_WAIT).ceil_to_millis(),
            },
        };
        let said = Said {
            outcome: outcome.word(),
            failure: outcome.failure().cloned(),
            wait,
            left_out: None,
        };
        consequence::of_verdict(Arc::new(task), verdict, said, &self.ladder, now.wall)
    }

    /// The commands that a task met while a call of it was in flight, if it met some and has rules.
    pub(in crate::engine) fn met_in_call(
        &self,
        (lane, offset): (LaneId, i64),
        task: &Task,
    ) -> Option<MetInCall<'_>> {
        if self.commands.steps.is_empty() {
            return None;
        }
        let places = self.places_of_call(lane, offset, task);
        let active = self.commands.steps.get(lane.shard, *places.last()?)?;
        Some(MetInCall {
            scene: self.scenes.find(&task.scene)?,
            command: Arc::clone(active.command()),
            places,
        })
    }

    /// What follows from a call of a task that commands met while it was in flight.
    pub(in crate::engine) fn commanded(
        &self,
        now: Now,
        shard: i32,
        (mut owned, met): (Arc<Task>, MetInCall<'_>),
        mut said: Said,
        outcome: &Outcome,
    ) -> Decided {
        let MetInCall {
            scene,
            command,
            places,
        } = met;
        let task = Arc::make_mut(&mut owned);
        let id = Arc::clone(&task.id);
        task.commanded = Some(Box::new(command.place));
        let verdict = self.judge(now, shard, (scene, task), outcome);
        let is_success = *outcome == Outcome::Success
            && !(self.bug.is(Bug::CompletedAfterEnd) && matches!(command.verb, Verb::Complete(_)));
        let (verdict, effect) = match (&command.verb, verdict) {
            (_, verdict) if is_success => (verdict, Effect::TooLate),
            (Verb::Cancel, _) => {
                let how = End {
                    terminal: Terminal::Cancelled,
                    reason: None,
                    attempts: task.attempt,
                    wait: Some(said.wait),
                };
                if said.failure.is_some() {
                    task.failure = said.failure;
                }
                let mut entries = consequence::end(owned, how, now.wall);
                name(&mut entries, &command);
                return (entries, applied(&places, Effect::Done, &id));
            }
            (Verb::Complete(told), _) => {
                said.outcome = told.word();
                said.failure = told.failure().cloned();
                let told = self.judge(now, shard, (scene, task), told);
                (told, Effect::Done)
            }
            (Verb::RunNow, Verdict::Retry { .. }) => {
                let due = now.wall.ceil_to_millis();
                (Verdict::Retry { due }, Effect::Done)
            }
            (Verb::Reschedule { due }, Verdict::Retry { .. }) => {
                (Verdict::Retry { due: *due }, Effect::Done)
            }
            // It moves the limit, as if the answer had been there before.
            (Verb::RunNow, Verdict::Pending { .. }) => {
                let until = now.wall.ceil_to_millis();
                (Verdict::Pending { until }, Effect::Done)
            }
            (Verb::Reschedule { due }, Verdict::Pending { .. }) => {
                (Verdict::Pending { until: *due }, Effect::Done)
            }
            (verb @ (Verb::RunNow | Verb::Reschedule { .. }), Verdict::Held { since }) => {
                // Somebody has let it go before it was held.
                task.exhausted = Some(Box::new(Exhausted {
                    at: since,
                    attempts: task.attempt,
                    is_held: false,
                }));
                task.throttled = 0;
                let due = match verb {
                    Verb::Reschedule { due } => *due,
                    Verb::RunNow | Verb::Cancel | Verb::Complete(_) => now.wall.ceil_to_millis(),
                };
                (Verdict::Retry { due }, Effect::Done)
            }
            (Verb::RunNow | Verb::Reschedule { .. }, ended) => (ended, Effect::TooLate),
        };
        let why = match verdict {
            Verdict::Delivered => Terminal::Delivered,
            Verdict::Expired => Terminal::Expired,
            Verdict::Dead(_)
            | Verdict::Retry { .. }
            | Verdict::Pending { .. }
            | Verdict::Held { .. } => Terminal::Dead,
        };
        let told = consequence::too_late(task, now.wall, why, &command.id);
        let mut entries = consequence::of_verdict(owned, verdict, said, &self.ladder, now.wall);
        match effect {
            Effect::Done => name(&mut entries, &command),
            Effect::TooLate => entries.push(told),
        }
        (entries, applied(&places, effect, &id))
    }
}

/// Says in the event of a decision which command it follows from.
fn name(entries: &mut [Entry], command: &Command) {
    for entry in entries {
        if let Entry::Event(event) = entry {
            event.command = Some(Arc::clone(&command.id));
        }
    }
}

/// Of the commands that a task has met, the last one has this effect; the others are too late.
fn applied(places: &[Place], effect: Effect, id: &Arc<str>) -> Vec<Applied> {
    let Some((last, before)) = places.split_last() else {
        return Vec::new();
    };
    let too_late = before.iter().map(|place| (place, Effect::TooLate));
    let all = too_late.chain([(last, effect)]);
    all.map(|(place, effect)| Applied {
        place: *place,
        effect,
        id: Arc::clone(id),
        again: false,
    })
    .collect()
}
