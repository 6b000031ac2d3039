//! From what a target said to what is done about it.
//!
//! Not the records that follow from it. Invariant: a retry is due after now, within the deadline and the attempts of its scene.

use std::time::Duration;

use crate::outcome::{Outcome, Reason, Verdict};
use crate::scene::{MAX_DELAY, Scene};
use crate::task::Task;
use crate::time::Timestamp;

/// The instant after which no attempt of `task` may start: the earlier of its own deadline and its scene's.
pub fn deadline(scene: &Scene, task: &Task) -> Option<Timestamp> {
    let of_scene = scene.deadline.map(|span| task.first_failed_at + span);
    match (task.deadline, of_scene) {
        (Some(own), Some(of_scene)) => Some(own.min(of_scene)),
        (one, other) => one.or(other),
    }
}

/// Whether an attempt of `task` at `start` would come after its deadline.
pub fn expires(scene: &Scene, task: &Task, start: Timestamp) -> bool {
    deadline(scene, task).is_some_and(|deadline| start > deadline)
}

/// What to do about `outcome`, the answer to attempt number `task.attempt`, at `now`.
pub fn verdict(scene: &Scene, task: &Task, outcome: &Outcome, now: Timestamp) -> Verdict {
    match outcome {
        Outcome::Success => Verdict::Delivered,
        Outcome::Permanent(_) => Verdict::Dead(Reason::Rejected),
        Outcome::Retryable(_) | Outcome::Timeout(_) => retry(scene, task, Duration::ZERO, now),
        Outcome::Throttled { after, .. } => retry(scene, task, *after, now),
    }
}

/// Another attempt after the scene's wait, or after `least` if that is longer, as long as one is allowed.
fn retry(scene: &Scene, task: &Task, least: Duration, now: Timestamp) -> Verdict {
    if task.attempt >= scene.max_attempts.get() {
        return Verdict::Dead(Reason::AttemptsExhausted);
    }
    let wait = scene.delay(task, task.attempt).max(least).min(MAX_DELAY);
    let due = (now + wait).ceil_to_millis();
    if expires(scene, task, due) {
        return Verdict::Expired;
    }
    Verdict::Retry { due }
}
