//! The engine's part in commands: which tasks a command meets, wherever they wait, what is done with them, and when that is all.
//!
//! A step of a command, which is an open offset of its shard's lane of commands, goes through these stages:
//! 1. *New*: every task in memory that it is about is taken out of its queue, and its consequence settled. Calls in flight are waited for.
//! 2. *Fenced*: what was settled before may be parked by now or not; that is over with the next batch.
//! 3. *Looking*: the tiers are read from where their lanes are to where they end, beside the lanes, for all steps that are so far
//!    ([`Action::Look`]). A parked task that is found is *taken*: its offset is open early, settled at once, and marked.
//! 4. *Looked*: when the retry topic is read as far as it was, the step answers.
//! 5. *Standing*: a step that names ids which were not found waits for them until it expires.
//!
//! What is read by a lane meanwhile is looked at on its way. A task bears the last command that was applied to it, so that none is applied
//! twice. How far a step is, is written with what follows from it. Invariant: a task that a command is about is settled by it before the step
//! answers, or its call is back; and an answer counts exactly what was settled.

mod effect;
mod look;
mod memory;
mod stages;
mod step;
mod steps;
mod sums;
mod unread;

use std::sync::Arc;
use std::time::Duration;

use self::look::Looks;
use self::memory::Memory;
use self::steps::Steps;
use self::sums::Sums;
use self::unread::Unread;
use super::{Closing, Engine};
use crate::control::{Command, Control, Counts, Ended, Refusal, Step};
use crate::entry::Entry;
use crate::lane::LaneId;
use crate::planted::Bug;
use crate::state::StateKey;
use crate::step::{Action, Now, Position};
use crate::time::Timestamp;

/// The commands of the shards of a worker.
#[derive(Debug, Default)]
pub(super) struct Commands {
    /// What the shards have to do.
    steps: Steps,
    /// The tasks that commands have met.
    memory: Memory,
    /// What is looked for in tiers.
    looks: Looks,
    /// The answers to requests that stand in these shards.
    sums: Sums,
    /// The shards whose commands are to be read before their tasks are taken in.
    unread: Unread,
    /// When the stages of steps are looked at next, in steady time.
    check_at: Duration,
}

/// How long a look may be waited for while others can be begun with it, and how often stages are looked at.
const CHECK: Duration = Duration::from_millis(5);

/// Offsets behind the end of the lane of commands at which a record that waits there goes to the end, so that the lane can be read on: half
/// of what a commit can hold.
const FAR: i64 = crate::completions::MAX_SPAN / 2;

// === impl Commands ===

impl Commands {
    /// Whether there is nothing to do and nothing to wait for.
    fn is_idle(&self) -> bool {
        self.steps.is_empty() && self.sums.is_empty() && self.looks.is_done()
    }

    /// Whether something was met, or found, that only waits for room.
    fn has_more(&self) -> bool {
        !self.memory.is_done() || !self.looks.is_done()
    }

    /// How long stages need not be looked at.
    fn rest(&self) -> Duration {
        if self.has_more() {
            CHECK
        } else {
            self.steps.rest()
        }
    }
}

// === impl Engine ===

impl Engine {
    /// A record of the commands topic was read.
    pub(super) fn control(
        &mut self,
        now: Now,
        position: Position,
        control: Result<Control, Box<Refusal>>,
        actions: &mut Vec<Action>,
    ) {
        if self.read(now, position, actions) {
            let Position { lane, offset, .. } = position;
            match control {
                Ok(Control::Request(command)) => self.request(now, lane, offset, &command, actions),
                Ok(Control::Step(step)) => self.begin_step(now, lane, offset, step, actions),
                Ok(Control::Answer(answer)) => self.sum_up(now, lane, offset, answer, actions),
                Ok(Control::Ended(_)) => self.over(lane, offset, 0, Vec::new(), actions),
                Ok(Control::Ask(request)) => self.ask_campaign(lane, offset, request, actions),
                Ok(Control::Report(report)) => self.report(lane, offset, report, actions),
                Ok(Control::Campaign(campaign)) => {
                    self.campaign_read(now, lane, offset, *campaign, actions);
                }
                Err(refusal) => {
                    let Refusal { place, id, why } = *refusal;
                    let ended = Ended {
                        place,
                        id,
                        at: now.wall,
                        ids: 0,
                        result: Err(why),
                    };
                    let entries = vec![told(lane.shard, Control::Ended(ended))];
                    self.over(lane, offset, 0, entries, actions);
                }
            }
        }
        self.pause_if_full(now, position, actions);
    }

    /// A record of the commands topic is over, with what follows from it.
    fn over(
        &mut self,
        lane: LaneId,
        offset: i64,
        bytes: usize,
        entries: Vec<Entry>,
        actions: &mut Vec<Action>,
    ) {
        let closing = Closing {
            lane,
            offset,
            home: lane.shard,
            bytes,
        };
        self.settle(closing, entries, actions);
    }

    /// A request: each shard has a step of it.
    fn request(
        &mut self,
        now: Now,
        lane: LaneId,
        offset: i64,
        command: &Arc<Command>,
        actions: &mut Vec<Action>,
    ) {
        let shards = self.quotas.shards();
        let is_old = command.place.at + crate::control::LONGEST < now.wall;
        let entries = if is_old {
            let ended = Ended {
                place: command.place,
                id: Arc::clone(&command.id),
                at: now.wall,
                ids: 0,
                result: Err("the command is older than commands are kept".into()),
            };
            vec![told(lane.shard, Control::Ended(ended))]
        } else {
            let step = |shard| {
                let step = Step {
                    command: Arc::clone(command),
                    shards,
                    again: false,
                    before: Counts::default(),
                    looked: None,
                };
                told(shard, Control::Step(step))
            };
            (0..shards.cast_signed()).map(step).collect()
        };
        self.over(lane, offset, 0, entries, actions);
    }

    /// What was to be written of a shard's commands was not.
    pub(super) fn control_unwritten(&mut self, shard: i32, key: &StateKey) {
        match *key {
            StateKey::Order(_)
            | StateKey::Hold(_)
            | StateKey::Id(_)
            | StateKey::Replaced(_)
            | StateKey::Letters { .. }
            | StateKey::Warned(_) => {}
            StateKey::Taken { source, chunk } => {
                self.lanes.taken_again(LaneId { shard, source }, chunk);
            }
            // Of a shard that was given away, its next owner says how far steps are.
            StateKey::Step(_) if !self.has(shard) && !self.bug.is(Bug::ProgressOfBefore) => {}
            StateKey::Step(place) => self.step_unwritten(shard, place),
        }
    }

    /// When commands are to be looked after next.
    pub(super) fn next_control(&self) -> Option<Timestamp> {
        if self.commands.is_idle() {
            return None;
        }
        let commands = &self.commands;
        let mut at = commands.check_at;
        if !self.is_full() {
            if !commands.memory.is_done() {
                at = self.steady;
            } else if !commands.looks.is_done() {
                at = at.min(commands.looks.next_at());
            }
        }
        Some(self.latest + at.saturating_sub(self.steady))
    }

    /// Does what is to be done for commands, as far as there is room.
    pub(super) fn follow_commands(&mut self, now: Now, most: usize, actions: &mut Vec<Action>) {
        if self.commands.is_idle() && self.commands.memory.is_done() {
            return;
        }
        let is_due = self.commands.check_at <= now.steady;
        if is_due {
            self.reach_memory();
        }
        for _ in 0..most {
            if self.is_full() {
                break;
            }
            let Some(met) = self.commands.memory.next() else {
                break;
            };
            self.apply(now, met, actions);
        }
        self.follow_found(now, most, actions);
        if is_due {
            self.commands.check_at = now.steady + self.commands.rest();
            self.follow_steps(actions);
            self.end_steps(now, actions);
            self.carry_steps_on(actions);
            self.carry_sums_on(actions);
        }
    }

    /// Forgets what is known of the commands of a shard that is given away, its tasks among it.
    pub(super) fn forget_commands(&mut self, shard: i32) {
        self.commands.steps.forget(shard);
        self.commands.sums.forget(shard);
        self.commands.unread.forget(shard);
        self.forget_commanded(shard);
    }

    /// A shard is to leave. No step of it answers from now on: tasks that are due wait for the next owner, and are not in memory any more.
    pub(super) fn leave_commands(&mut self, shard: i32) {
        self.leave_campaigns(shard);
        if !self.bug.is(Bug::AnsweredLeaving) {
            self.commands.steps.leave(shard);
        }
    }

    /// How many tasks of a shard commands have met of which what a call has said is not written.
    pub(super) fn answered_and_met(&self, shard: i32) -> usize {
        self.commands.memory.answered(shard)
    }

    /// Forgets the tasks of a shard that commands have met: the next owner reads them again.
    pub(super) fn forget_commanded(&mut self, shard: i32) {
        self.commands.memory.forget(shard);
        self.commands.looks.forget(shard);
        self.commands.unread.forget_tasks(shard);
    }
}

/// An entry for the commands topic.
fn told(to: i32, control: Control) -> Entry {
    Entry::Control {
        to,
        control: Box::new(control),
    }
}
