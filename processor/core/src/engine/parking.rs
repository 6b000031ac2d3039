//! The engine's part in tiers: a task that is not due yet, or not where it may start, is parked until it is looked at again.
//!
//! Invariant: what is parked is settled, with the room for that in the batch; nothing but its due time, its deferral and its hops changes.

use std::sync::Arc;

use super::Engine;
use crate::agenda::Item;
use crate::consequence;
use crate::entry::Transition;
use crate::lane::Source;
use crate::step::{Action, Now};
use crate::time::Timestamp;
use crate::wait::{Cause, Deferral, Wait};

impl Engine {
    /// Appends a task that is not due yet, or not where it may start, to a tier, once there is room for that.
    pub(super) fn forward(&mut self, now: Now, item: Item, actions: &mut Vec<Action>) {
        let Some(item) = self.if_settled(item) else {
            return;
        };
        if self.is_full() {
            return self.wait_for_room(item);
        }
        // A task without a due time of its own is due when it entered, which may be the microsecond in which it was read.
        let due = item.task.due.ceil_to_millis();
        let transition = match item.lane.source {
            Source::Tasks => Transition::Parked { due },
            Source::Tier(_) | Source::Commands => Transition::Hopped {
                due,
                hops: item.task.hops.saturating_add(1),
            },
        };
        let scene = self.scenes.find(&item.task.scene);
        let to = scene.and_then(|scene| self.quotas.detour(&scene.name, item.lane.shard));
        if item.task.due <= now.wall && item.task.wake() <= now.wall {
            // It only goes where its rate is, and its lateness with it.
            let deferral = self.deferral(now, &item, now.wall, Cause::Rate);
            return self.park(
                now,
                item,
                (to, Some(deferral)),
                Some((transition, None)),
                actions,
            );
        }
        self.park(now, item, (to, None), Some((transition, None)), actions);
    }

    /// Defers a due task until then, in the shard `to` if it is to move, without an attempt. That is told once for each cause: a task may be
    /// deferred each minute as long as its target is down.
    pub(super) fn defer_until(
        &mut self,
        now: Now,
        item: Item,
        to: Option<i32>,
        (until, cause): (Timestamp, Cause),
        actions: &mut Vec<Action>,
    ) {
        let is_told = item
            .task
            .deferral
            .as_ref()
            .is_some_and(|before| before.is_for(cause));
        let told = (!is_told).then(|| {
            let transition = Transition::Deferred {
                due: item.task.due.ceil_to_millis(),
                until: until.ceil_to_millis(),
            };
            (transition, Some(self.wait_of(now, &item)))
        });
        let deferral = self.deferral(now, &item, until, cause);
        self.park(now, item, (to, Some(deferral)), told, actions);
    }

    /// The deferral of a due task until then.
    pub(super) fn deferral(
        &self,
        now: Now,
        item: &Item,
        until: Timestamp,
        cause: Cause,
    ) -> Deferral {
        let due = item.task.due.ceil_to_millis();
        Deferral::new(due, self.wait_of(now, item), until.ceil_to_millis(), cause)
    }

    /// Appends a task to a tier, in the shard `to` if it is to move, with its deferral if it has a new one.
    pub(super) fn park(
        &mut self,
        now: Now,
        item: Item,
        (to, deferral): (Option<i32>, Option<Deferral>),
        told: Option<(Transition, Option<Wait>)>,
        actions: &mut Vec<Action>,
    ) {
        let (closing, shard) = (self.closing(&item), to.unwrap_or(item.lane.shard));
        let mut owned = item.task;
        let task = Arc::make_mut(&mut owned);
        if task.held_since.is_some()
            && self.scenes.find(&task.scene).is_some()
            && !self.is_on_hold(now, task)
        {
            task.held_since = None;
        }
        // One that moves may be due already, to the microsecond; headers hold milliseconds.
        task.due = task.due.ceil_to_millis();
        if let Some(deferral) = deferral {
            task.deferral = Some(Box::new(deferral));
            self.bug.deferred(task);
        }
        if task.deferral.is_some() && self.has(shard) {
            self.dues.defer(shard, &task.scene, task.due);
        }
        let entries = consequence::park(owned, to, &self.ladder, now.wall, told);
        self.settle(closing, entries, actions);
    }
}
