//! The engine's part in pending attempts whose limit has passed: what follows, without a call.
//!
//! What a pending attempt is: [`crate::pending`]. That it is parked, and what commands do with it, follows from its verdict like everything
//! else. Invariant: no permit is asked for, and no call made, for an attempt that is made already.

use std::sync::Arc;

use super::Engine;
use crate::agenda::Item;
use crate::consequence::{self, Answer as Said};
use crate::pending;
use crate::planted::Bug;
use crate::scene::Scene;
use crate::step::{Action, Now};

impl Engine {
    /// The limit of a pending attempt has passed, and nobody has said what came of it: an attempt without an answer. There is room for
    /// what follows.
    pub(super) fn limit_passed(
        &mut self,
        now: Now,
        item: Item,
        scene: &Scene,
        actions: &mut Vec<Action>,
    ) {
        let Some(item) = self.if_settled(item) else {
            return;
        };
        let wait = self.wait_of(now, &item);
        let closing = self.closing(&item);
        let mut task = Arc::unwrap_or_clone(item.task);
        if self.bug.is(Bug::PendingKept) {
            task.due = (now.wall + scene.pending.limit(None)).ceil_to_millis();
            let entries = consequence::park(Arc::new(task), None, &self.ladder, now.wall, None);
            return self.settle(closing, entries, actions);
        }
        let outcome = pending::unanswered();
        actions.push(Action::LimitPassed {
            scene: Arc::clone(&scene.name),
            outcome: outcome.clone(),
        });
        let verdict = self.judge(now, closing.lane.shard, (scene, &task), &outcome);
        let said = Said {
            outcome: outcome.word(),
            failure: outcome.failure().cloned(),
            wait,
            left_out: None,
        };
        let entries =
            consequence::of_verdict(Arc::new(task), verdict, said, &self.ladder, now.wall);
        self.settle(closing, entries, actions);
    }
}
