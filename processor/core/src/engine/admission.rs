//! Admission: whether a due task starts, and if not, what becomes of it.
//!
//! What is looked at, in this order: whether the task has a scene; whether its attempt is made and only
//! its limit has passed; whether tasks of its key are before it; whether its deadline has passed;
//! whether its scene wants it tried, and holds it if it is out of attempts; whether people hold it; whether its shard has a part of the scene's rate; whether what follows from it could be written;
//! whether its shard leaves. The result is a value, [`Way`], and nothing has happened so far. Then a task whose way ends in the batch waits
//! if the batch is full. Only then is it acted on, once: a call asks for its permits, of the server, the wall, the breaker, the gate and the rate, in
//! this order, and returns those it has if one is refused. Invariant: only [`Engine::admit`] starts an attempt.

use std::sync::Arc;
use std::time::Duration;

use super::Engine;
use super::breakers::{CallPermits, Denied};
use super::ordering::Precedence;
use super::ready::Hold as Held;
use crate::agenda::Item;
use crate::gate::{Full, Gate};
use crate::hold::Hold;
use crate::outcome::{Reason, Terminal};
use crate::planted::Bug;
use crate::scene::{MAX_DELAY, OnExhausted, Scene, Target};
use crate::step::{Action, Now};
use crate::task::Kind;
use crate::time::Timestamp;
use crate::verdict;

/// Whether a due task found its way.
pub(super) enum Admission {
    /// The task was moved or settled, or waits for others of its key.
    Gone,
    /// The task was dispatched, or its record is written.
    Started,
    /// The task was dispatched, and as many calls are in flight now as may be.
    Last,
    /// Something holds the task, which is to be looked at again then.
    Held(Item, Held, Timestamp),
}

/// The way of a due task.
enum Way {
    /// The scene of the task does not exist.
    NoScene,
    /// The attempt of the task is made, and its limit has passed.
    LimitPassed(Arc<Scene>),
    /// Others of its key are before it, or it belongs to another shard for the sake of its key.
    Behind(Precedence),
    /// The deadline of the task has passed.
    Expired,
    /// The task is out of attempts, and its scene does not hold such tasks any more.
    Exhausted,
    /// People hold the task.
    OnHold(Arc<Hold>),
    /// The scene does not want the task tried any more.
    NotWanted,
    /// The shard has no part of the scene's rate.
    Elsewhere,
    /// What follows from the attempt could not be written.
    Unwritable,
    /// The shard leaves, and the call might not be back in time: the next owner reads it again.
    NextOwner,
    /// A command meets it.
    Commanded,
    /// A call of its target.
    Call(Arc<Scene>),
    /// A record to a topic.
    Produce(Arc<Scene>, Arc<str>),
}

/// How long to wait before asking a gate whose calls are all in flight again: another worker may have given one back.
pub(super) const ASK_CALLS: Duration = Duration::from_millis(5);

/// How long to wait before asking again whether what follows from a call could be written; it is asked at once when that changes.
const ASK_WRITABLE: Duration = Duration::from_millis(250);

// === impl Admission ===

impl Admission {
    /// Something holds the task until then, in steady time.
    fn held(now: Now, item: Item, hold: Held, until: Duration) -> Self {
        let wait = until.saturating_sub(now.steady).min(MAX_DELAY);
        Self::Held(item, hold, now.wall + wait)
    }

    /// The batch has no room for what follows from the task.
    pub(super) const fn no_room(now: Now, item: Item) -> Self {
        Self::Held(item, Held::Room, now.wall)
    }
}

// === impl Way ===

impl Way {
    /// Whether it ends in the batch at once, which has to have room for that.
    const fn needs_room(&self) -> bool {
        match self {
            Self::NoScene
            | Self::LimitPassed(_)
            | Self::Expired
            | Self::Exhausted
            | Self::OnHold(_)
            | Self::Elsewhere
            | Self::Produce(..) => true,
            // A call may be back when there is room. A task that is not wanted any more only completes its offset. One that is behind
            // others sees for itself whether there is room.
            Self::Behind(_)
            | Self::NotWanted
            | Self::Commanded
            | Self::Unwritable
            | Self::NextOwner
            | Self::Call(_) => false,
        }
    }
}

// === impl Engine ===

impl Engine {
    /// Starts the attempt of a due task, or does what there is to be done instead.
    pub(super) fn admit(
        &mut self,
        now: Now,
        mut item: Item,
        actions: &mut Vec<Action>,
    ) -> Admission {
        if self.is_replaced(&item) {
            self.leave_replaced(item, actions);
            return Admission::Gone;
        }
        self.let_go(&mut item);
        self.mind_deadline(now, &mut item);
        let way = self.way(now, &item);
        if way.needs_room() && self.is_full() {
            return Admission::no_room(now, item);
        }
        match way {
            Way::NoScene => self.without_scene(now, item, actions),
            Way::LimitPassed(scene) => self.limit_passed(now, item, &scene, actions),
            Way::Behind(precedence) => self.wait_behind(now, item, &precedence, actions),
            Way::Expired => self.expire(now, &item, actions),
            Way::Exhausted => {
                let end = (Terminal::Dead, Reason::AttemptsExhausted);
                self.end(now, &item, end, actions);
            }
            Way::OnHold(hold) => self.hold_back(now, item, &hold, actions),
            Way::NotWanted => self.settle_item(&item, Vec::new(), actions),
            Way::Elsewhere => self.forward(now, item, actions),
            Way::Unwritable => {
                return Admission::held(now, item, Held::Room, now.steady + ASK_WRITABLE);
            }
            Way::NextOwner => self.uncount(&item),
            Way::Commanded => self.command(item),
            Way::Call(scene) => return self.call(now, item, &scene, actions),
            Way::Produce(scene, topic) => {
                if let Err(until) = self.quotas.admit(now.steady, &scene.name) {
                    return Admission::held(now, item, Held::Rate, until);
                }
                self.deliver(now, item, &scene, &topic, actions);
                return Admission::Started;
            }
        }
        Admission::Gone
    }

    /// The way of a due task, which is only looked at.
    fn way(&mut self, now: Now, item: &Item) -> Way {
        if self.meets(item) && !self.bug.is(Bug::CancelledAttempted) {
            return Way::Commanded;
        }
        let Some(scene) = self.scenes.find(&item.task.scene).map(Arc::clone) else {
            return Way::NoScene;
        };
        if item.task.pending_since.is_some() && !self.bug.is(Bug::PendingAttempted) {
            return Way::LimitPassed(scene);
        }
        match self.precedence(now, item) {
            Precedence::First => {}
            behind @ (Precedence::Unread(_)
            | Precedence::PutOff
            | Precedence::Unsettled(_)
            | Precedence::Behind(..)
            | Precedence::NotAtHome(_)) => return Way::Behind(behind),
        }
        if verdict::expires(&scene, &item.task, now.wall) {
            return Way::Expired;
        }
        let Some(route) = scene.route(item.task.kind) else {
            return Way::NotWanted;
        };
        if item.task.is_exhausted() && scene.on_exhausted == OnExhausted::Dead {
            return Way::Exhausted;
        }
        let goes_by = self.bug.is(Bug::HoldCallsOnly) && *route.target != Target::Call;
        if let Some(hold) = self.hold_of(now, &scene, &item.task)
            && !goes_by
        {
            return Way::OnHold(hold);
        }
        if !self.quotas.belongs(&scene.name, item.lane.shard) {
            return Way::Elsewhere;
        }
        if !self.can_be_written(&scene, item.lane.source) {
            return Way::Unwritable;
        }
        match route.target {
            Target::Produce { topic } => {
                let topic = Arc::clone(topic);
                Way::Produce(scene, topic)
            }
            Target::Call if self.may_start(now, item.lane, &scene, &item.task) => Way::Call(scene),
            Target::Call => Way::NextOwner,
        }
    }

    /// Calls the target of a task if all permits for that are given.
    fn call(
        &mut self,
        now: Now,
        item: Item,
        scene: &Arc<Scene>,
        actions: &mut Vec<Action>,
    ) -> Admission {
        let Some(route) = scene.route(item.task.kind) else {
            unreachable!("a call without a route");
        };
        let part = self.quotas.part();
        let asked = self
            .breakers
            .ask(now.steady, (scene, route), part, &self.gates, actions);
        let permits = match asked {
            Ok(permits) => permits,
            // Work waits in order. The callbacks of a scene go elsewhere, and do not hold up its work.
            Err(Denied::Pace(_, until)) if item.task.kind == Kind::Work => {
                return Admission::held(now, item, Held::Pace, until);
            }
            Err(denied) => return self.turn_away(now, item, scene, denied, actions),
        };
        let gate = self.gates.gate(scene);
        if let Err((hold, until)) = self.pass(now, scene, &gate, &permits) {
            permits.unused();
            return Admission::held(now, item, hold, until);
        }
        self.breakers.started(now.steady, &permits);
        let is_last = gate.is_full();
        self.dispatch(now, item, Arc::clone(scene), (gate, permits), actions);
        if is_last {
            Admission::Last
        } else {
            Admission::Started
        }
    }

    /// Lets a call through its gate and its rate; if it may not, says what holds it, and until when, in steady time.
    fn pass(
        &mut self,
        now: Now,
        scene: &Scene,
        gate: &Gate,
        permits: &CallPermits,
    ) -> Result<(), (Held, Duration)> {
        gate.admit(permits.ramp())
            .map_err(|Full| (Held::Concurrency, now.steady + ASK_CALLS))?;
        self.quotas.admit(now.steady, &scene.name).map_err(|until| {
            gate.release();
            (Held::Rate, until)
        })
    }
}
