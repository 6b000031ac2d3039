//! Calls to targets: each runs beside the drive, and comes back as one answer, whatever happens to it.
//!
//! Not what an outcome means, which the engine decides.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::FutureExt;

use retide_connectors::Attempt;
use retide_core::{Failure, Input, Outcome, Scene, Task, Wait};

use crate::event::TargetPanicked;
use crate::metrics::scenes::SceneMetrics;
use crate::threads::message;
use crate::worker::drive::State;
use crate::worker::ledger::Ledger;

/// A call that is back.
pub(super) struct Answered {
    /// Which.
    pub(super) ticket: u64,
    /// What the target said.
    pub(super) outcome: Outcome,
    /// The headers of its record that it went without, in words.
    pub(super) left_out: Option<Box<str>>,
    /// How long the target wants to be left alone although it has done the task.
    pub(super) spent: Option<Duration>,
    /// Where it is counted once it is known what the answer is taken for, and how long it took; nowhere, if it is counted already.
    pub(super) uncounted: Option<(Arc<SceneMetrics>, Duration)>,
}

/// How late a call is that is to be started.
#[derive(Clone, Copy)]
pub(super) struct Late {
    /// Until it was decided.
    pub(super) wait: Wait,
    /// When that was.
    pub(super) decided: Instant,
}

// === impl State ===

impl<L: Ledger> State<L> {
    /// Starts a call; its answer comes back as an outcome, whatever happens to it.
    pub(super) fn dispatch(&self, ticket: u64, scene: &Scene, task: Arc<Task>, late: Late) {
        let answer = self.answer.clone();
        let counters = Arc::clone(self.counters.of(&scene.name));
        let Late { wait, decided } = late;
        let route = (Arc::clone(&scene.name), task.kind);
        let Some(target) = self.rules.routes.get(&route).map(Arc::clone) else {
            let failure = Failure::new("no-target", "the scene's target could not be set up");
            let outcome = Outcome::Retryable(failure);
            counters.started(wait, Duration::ZERO);
            counters.answered(&outcome, Duration::ZERO);
            let _ = answer.send(Answered {
                ticket,
                outcome,
                left_out: None,
                spent: None,
                uncounted: None,
            });
            return;
        };
        let (name, metrics) = (Arc::clone(&scene.name), Arc::clone(&self.parts.metrics));
        self.parts.runtime.spawn(async move {
            let start = Instant::now();
            counters.started(wait, start.saturating_duration_since(decided));
            // Nothing of the target's is used after a panic but the target itself, which holds no state of a task.
            let call = AssertUnwindSafe(target.attempt(task)).catch_unwind();
            let attempt = call.await.unwrap_or_else(|panic| {
                let (scene, message) = (&*name, message(&*panic));
                TargetPanicked { scene, message }.emit(&metrics);
                let failure = Failure::new("panic", "the target's connector panicked");
                Outcome::Retryable(failure).into()
            });
            let Attempt {
                outcome,
                left_out,
                spent,
            } = attempt;
            if let Some(left_out) = &left_out {
                counters.left_out(left_out);
            }
            let took = start.elapsed();
            // Of what is no success, it is not known here what it is taken for.
            let uncounted = if outcome == Outcome::Success {
                counters.answered(&outcome, took);
                None
            } else {
                Some((counters, took))
            };
            let _ = answer.send(Answered {
                ticket,
                outcome,
                left_out: left_out.map(|left_out| left_out.to_string().into_boxed_str()),
                spent,
                uncounted,
            });
        });
    }

    /// A call came back.
    pub(super) fn answered(&mut self, answered: Option<Answered>) {
        if let Some(Answered {
            ticket,
            outcome,
            left_out,
            spent,
            uncounted,
        }) = answered
        {
            self.uncounted = uncounted;
            if let Some(headers) = left_out {
                self.step(Input::LeftOut { ticket, headers });
            }
            if let Some(after) = spent {
                self.step(Input::Spent { ticket, after });
            }
            let as_it_is = self.uncounted.is_some().then(|| outcome.clone());
            self.step(Input::Attempted { ticket, outcome });
            // What was taken for another is counted as that.
            if let (Some((counters, took)), Some(outcome)) = (self.uncounted.take(), as_it_is) {
                counters.answered(&outcome, took);
            }
        }
    }
}
