//! The engine's part in tasks whose scene does not exist: who is held until it comes back, and who is dead.
//!
//! What holds a task: it had a scene when it was parked, or its scene is known to have existed, or to stand where it cannot be read. What
//! lets it go on: its scene is in force when it is looked at next, within half a minute as a rule. What ends it: its own deadline, or
//! [`Engine::hold`] after it was held first. What holding never does: use an attempt, or keep a task in memory.

use std::sync::Arc;
use std::time::Duration;

use super::Engine;
use super::looks::Looks;
use crate::agenda::Item;
use crate::entry::{Alert, SCENE_UNKNOWN, Transition};
use crate::lane::Source;
use crate::outcome::{Reason, Terminal};
use crate::planted::Bug;
use crate::scene::{DEFAULT, Missing};
use crate::step::{Action, Now};
use crate::task::Task;
use crate::time::Timestamp;
use crate::verdict::{self, LEAST_WAIT};
use crate::wait::Cause;

/// The tasks that are held, of one scene.
#[derive(Debug)]
pub(super) struct Missed {
    /// When they are looked at.
    looks: Looks,
    /// One of the tasks.
    example: Arc<str>,
    /// When people are told next.
    alert_at: Timestamp,
}

/// A scene that does not exist and has tasks that are held.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MissingScene {
    /// The scene that they name.
    pub scene: Arc<str>,
    /// How many of them this worker has seen of late.
    pub tasks: u32,
    /// One of them.
    pub example: Arc<str>,
}

/// How long a task is held at most where nothing is said of that: long enough for a weekend, and somebody who comes back from it.
pub const UNKNOWN_SCENE_HOLD: Duration = Duration::from_hours(7 * 24);

/// How long tasks are counted before people are told the first time.
const COUNTED: Duration = Duration::from_secs(1);

/// Time between two alerts of one scene.
const REMINDER: Duration = Duration::from_hours(1);

impl Engine {
    /// This engine, which holds tasks whose scene does not exist for so long at most.
    #[must_use]
    pub const fn holding(mut self, longest: Duration) -> Self {
        self.hold = longest;
        self
    }

    /// The scenes that do not exist and have tasks that are held.
    pub fn missing(&self) -> impl Iterator<Item = MissingScene> {
        let missed = self.missed.iter();
        let missed = missed.map(|(scene, missed)| MissingScene {
            scene: Arc::clone(scene),
            tasks: missed.looks.count(self.latest),
            example: Arc::clone(&missed.example),
        });
        missed.filter(|missing| missing.tasks > 0)
    }

    /// What becomes of a task without rules, once there is room to write that.
    pub(super) fn without_scene(&mut self, now: Now, item: Item, actions: &mut Vec<Action>) {
        if !self.is_held(&item) {
            return self.end_without_scene(now, &item, actions);
        }
        // It had rules, which those of its scene that are new hear of in this way if in no other.
        self.scenes
            .miss(Arc::clone(&item.task.scene), Missing::Gone);
        if item.task.due > now.wall {
            return self.forward(now, item, actions);
        }
        let since = item.task.held_since.unwrap_or(now.wall).min(now.wall);
        let deadline = verdict::own_deadline(&item.task);
        if deadline.is_some_and(|deadline| now.wall > deadline) {
            return self.expire(now, &item, actions);
        }
        let last = since + self.hold;
        if now.wall >= last {
            return self.end_without_scene(now, &item, actions);
        }
        let Some(mut item) = self.if_settled(item) else {
            return;
        };
        if self.is_full() {
            return self.wait_for_room(item);
        }
        let look = Looks::after(since, now.wall);
        let missed = self.missed.get(missing_name(&item));
        let due = missed.map_or(now.wall + look, |missed| {
            missed.looks.next(now.wall, look, Duration::MAX)
        });
        let due = due.min(last);
        let due = deadline.map_or(due, |deadline| due.min(deadline + LEAST_WAIT));
        let due = due.max(now.wall + LEAST_WAIT).ceil_to_millis();
        self.count_missed(now, &item, due);
        let deferral = self.deferral(now, &item, due, Cause::Scene);
        // That is told once.
        let told = item.task.held_since.is_none().then(|| {
            let transition = Transition::Deferred {
                due: item.task.due.ceil_to_millis(),
                until: due,
            };
            (transition, Some(self.wait_of(now, &item)))
        });
        Arc::make_mut(&mut item.task).held_since = Some(since);
        self.park(now, item, (None, Some(deferral)), told, actions);
    }

    /// Other rules are in force: those of scenes that are back go on.
    pub(super) fn forget_missed(&mut self) {
        let scenes = &self.scenes;
        self.missed.retain(|name, _| scenes.find(name).is_none());
    }

    /// Whether a task waits for its scene: it had one when it was parked, or there was one.
    fn is_held(&self, item: &Item) -> bool {
        if self.bug.is(Bug::MissingSceneKills) {
            return false;
        }
        matches!(item.lane.source, Source::Tier(_)) || self.scenes.is_missing(&item.task.scene)
    }

    /// A task is held until `due`.
    fn count_missed(&mut self, now: Now, item: &Item, due: Timestamp) {
        let name = missing_name(item);
        if !self.missed.contains_key(name) {
            let missed = Missed {
                looks: Looks::default(),
                example: Arc::clone(&item.task.id),
                alert_at: now.wall + COUNTED,
            };
            self.missed.insert(Arc::from(name), missed);
        }
        let Some(missed) = self.missed.get_mut(name) else {
            unreachable!("just put there");
        };
        missed.looks.add(now.wall, due);
        if now.wall >= missed.alert_at {
            missed.alert_at = now.wall + REMINDER;
            self.alerts.say(Some(Alert {
                rule: SCENE_UNKNOWN,
                scene: Arc::from(name),
                at: now.wall,
                count: missed.looks.count(now.wall),
                example: Arc::clone(&item.task.id),
                reason: Reason::UnknownScene.word(),
                target: None,
                expiring: None,
            }));
        }
    }

    /// Ends a task whose scene does not exist.
    fn end_without_scene(&mut self, now: Now, item: &Item, actions: &mut Vec<Action>) {
        let reason = Self::reason_without_scene(&item.task);
        self.end(now, item, (Terminal::Dead, reason), actions);
    }

    /// Why a task without rules dies.
    pub(super) fn reason_without_scene(task: &Task) -> Reason {
        if task.scene.is_empty() {
            Reason::NoScene
        } else {
            Reason::UnknownScene
        }
    }

    /// Whether a task has no rules and never had some: it dies as soon as it is looked at.
    pub(super) fn is_without_scene(&self, item: &Item) -> bool {
        self.scenes.find(&item.task.scene).is_none() && !self.is_held(item)
    }
}

/// What people know the scene by that a task waits for.
fn missing_name(item: &Item) -> &str {
    if item.task.scene.is_empty() {
        DEFAULT
    } else {
        &item.task.scene
    }
}
