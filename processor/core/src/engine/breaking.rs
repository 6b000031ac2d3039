//! The engine's part in breakers: who may call a target that may be down, and where those wait who may not.
//!
//! When a breaker is open, is [`crate::breaker`]'s. Invariant: leave is given back exactly once, used or not, and who is turned away uses up
//! no attempt.

use std::sync::Arc;
use std::time::Duration;

use super::lines::Admission;
use super::{Engine, LAST_CHANCE};
use crate::agenda::Item;
use crate::breaker::{
    self, Answer, Breaker, Denied as Turned, Pass, Place, State, Subject, Switch,
};
use crate::entry::{Alert, BREAKER_CLOSED, BREAKER_OPEN, TargetHealth};
use crate::scene::{Scene, Target};
use crate::step::{Action, Now};
use crate::task::{Kind, Task};
use crate::verdict;
use crate::wait::Cause;

/// Leave of a breaker for one call.
#[derive(Clone, Debug)]
pub(super) struct Leave {
    /// Whom it is about.
    pub(super) target: Subject,
    /// Its breaker.
    pub(super) breaker: Arc<Breaker>,
    /// What it gave.
    pub(super) pass: Pass,
}

/// Leave for one call of a target: of its breaker, and of its wall.
#[derive(Clone, Debug, Default)]
pub(super) struct Leaves {
    /// That of its breaker, where it has one.
    pub(super) breaker: Option<Leave>,
    /// That of its wall.
    pub(super) wall: Option<Leave>,
}

// === impl Leaves ===

impl Leaves {
    /// Gives leave back for a call that is not made.
    pub(super) fn unused(self) {
        for Leave { breaker, pass, .. } in [self.breaker, self.wall].into_iter().flatten() {
            breaker.unused(pass);
        }
    }
}

// === impl Engine ===

impl Engine {
    /// Asks the wall and the breaker of a target whether it may be called; who says no, and how.
    pub(super) fn ask_leaves<'a>(
        &mut self,
        now: Now,
        (wall, breaker): (Option<&'a breaker::Key>, Option<&'a breaker::Key>),
        actions: &mut Vec<Action>,
    ) -> Result<Leaves, (&'a breaker::Key, Turned)> {
        let mut leaves = Leaves::default();
        if let Some(key) = wall {
            let leave = self.ask_breaker(now, key, actions);
            leaves.wall = Some(leave.map_err(|turned| (key, turned))?);
        }
        if let Some(key) = breaker {
            match self.ask_breaker(now, key, actions) {
                Ok(leave) => leaves.breaker = Some(leave),
                Err(turned) => {
                    leaves.unused();
                    return Err((key, turned));
                }
            }
        }
        Ok(leaves)
    }

    /// Asks the breaker of a target whether it may be called.
    pub(super) fn ask_breaker(
        &mut self,
        now: Now,
        key: &breaker::Key,
        actions: &mut Vec<Action>,
    ) -> Result<Leave, Turned> {
        let breaker = self.breakers.get(key, &self.gates);
        self.bug.asks(&breaker, now.steady)?;
        let Answer { permit, switch } = breaker.ask(now.steady);
        let target = key.target.clone();
        say_switch(&target, switch, actions);
        permit.map(|pass| Leave {
            target,
            breaker,
            pass,
        })
    }

    /// A due task whose target must not be called: it waits for the breaker in memory, if few do so, or else in a tier, and no attempt is
    /// used up. One whose deadline is before that expires.
    pub(super) fn turn_away(
        &mut self,
        now: Now,
        item: Item,
        (scene, key): (&Scene, &breaker::Key),
        turned: Turned,
        actions: &mut Vec<Action>,
    ) -> Admission {
        let Turned { until, down_for } = turned;
        let again = now.wall + until.saturating_sub(now.steady);
        let expires = verdict::expires(scene, &item.task, again);
        let (memory, limits) = (self.memory(), self.limits);
        let crowded = self.lane(item.lane).is_crowded(memory, &limits);
        let until = match self.breakers.place(key, now.steady, until) {
            Place::Memory if !crowded && !expires => {
                let mut item = Item {
                    wake: again,
                    ..item
                };
                let left = again.since(now.wall).as_micros() as u64;
                item.held.breaker = item.held.breaker.saturating_add(left);
                self.agenda.push(item);
                return Admission::Gone;
            }
            Place::Probe => again,
            Place::Memory | Place::Tier => {
                let due = now.wall + breaker::wait(&self.ladder, down_for);
                // It gets its chance before its deadline.
                verdict::deadline(scene, &item.task)
                    .map_or(due, |end| due.min(end.before(LAST_CHANCE)).max(again))
            }
        };
        if self.is_full() {
            return Admission::no_room(now, item);
        }
        if expires {
            self.expire(now, &item, actions);
        } else {
            self.defer_until(now, item, None, (until, Cause::Breaker), actions);
        }
        Admission::Gone
    }

    /// How long the target of a task may not be called as often as usual, having been down.
    pub(super) fn ramp_left(&mut self, now: Now, item: &Item) -> Option<Duration> {
        let scene = self.scenes.find(&item.task.scene)?;
        let (_, key) = aim(scene, item.task.kind)?;
        let breaker = self.breakers.get(key?, &self.gates);
        breaker.ramp_left(now.steady)
    }
}

/// How an attempt of this kind is made, and the breaker it needs leave of; none where the scene does not want it.
pub(super) fn aim(scene: &Scene, kind: Kind) -> Option<(&Target, Option<&breaker::Key>)> {
    let (target, breaker) = match (kind, &scene.callback) {
        (Kind::Work, _) => (&scene.target, &scene.breaker),
        (Kind::Callback, Some(callback)) => (&callback.target, &callback.breaker),
        (Kind::Callback, None) => return None,
    };
    Some((target, breaker.as_ref()))
}

/// What an attempt of this kind is known by at the wall.
pub(super) const fn wall(scene: &Scene, kind: Kind) -> Option<&breaker::Key> {
    match kind {
        Kind::Work => scene.walls.work.as_ref(),
        Kind::Callback => scene.walls.callback.as_ref(),
    }
}

/// What people must know of a switch that the call of a task has brought about: that a target is down, once, and that it is well again.
pub(super) fn alert(now: Now, target: &Subject, switch: Switch, task: &Task) -> Option<Alert> {
    let rule = match (switch.from, switch.to) {
        (State::Closed, State::Open) => BREAKER_OPEN,
        (State::HalfOpen, State::Closed) => BREAKER_CLOSED,
        // It is the same outage, or only asked whether it still is.
        (State::HalfOpen | State::Open, State::Open)
        | (State::Open | State::Closed | State::HalfOpen, State::HalfOpen)
        | (State::Open | State::Closed, State::Closed) => return None,
    };
    let since = now.steady.saturating_sub(switch.since);
    let until = switch.until.map(|until| until.saturating_sub(now.steady));
    Some(Alert {
        rule,
        scene: Arc::clone(&task.scene),
        at: now.wall,
        count: switch.calls.calls,
        example: Arc::clone(&task.id),
        reason: switch.why.word(),
        target: Some(TargetHealth {
            name: Arc::clone(target.text()),
            failed: switch.calls.failed,
            slow: switch.calls.slow,
            since: now.wall.before(since),
            until: until.map(|wait| now.wall + wait),
        }),
    })
}

/// Says that a breaker has switched, if it has.
pub(super) fn say_switch(target: &Subject, switch: Option<Switch>, actions: &mut Vec<Action>) {
    if let Some(switch) = switch {
        actions.push(Action::Switched {
            target: target.clone(),
            switch,
        });
    }
}
