//! Pending attempts: a target has taken a task and says later, by a command, what came of it.
//!
//! # What makes an attempt pending
//! The target says so in its answer ([`Outcome::Pending`]), and for how long if it likes; [`Pending`] gives the default and the bound.
//!
//! # What ends it
//! A command that completes the task: as if the attempt had come back so. A command that cancels it. Or its limit: then the attempt counts
//! as one without an answer ([`unanswered`]), and the next one follows as after any other timeout. A command that moves the time of the task
//! moves the limit.
//!
//! # What it never does
//! Hold a permit, a connection or memory: the task waits in tiers, due at its limit. Start a second attempt beside the pending one: whoever
//! reads the task knows by its record that the attempt is made. Free the turn of its key. Invariant: a pending attempt ends once.

use std::time::Duration;

use crate::outcome::Outcome;
use crate::scene::MAX_DELAY;
use crate::task::Failure;
use crate::verdict::LEAST_WAIT;

/// How long an attempt may be pending.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pending {
    /// How long, where the target does not say.
    pub usual: Duration,
    /// How long at most.
    pub most: Duration,
}

/// How long an attempt is pending where neither target nor scene say: long enough for a batch job or a person, short beside a working day.
pub const USUAL: Duration = Duration::from_hours(1);

/// How long it is at most where the scene does not say.
pub const MOST: Duration = Duration::from_hours(24);

/// The class of the failure of an attempt that was pending until its limit.
pub const UNANSWERED: &str = "pending-timeout";

// === impl Pending ===

impl Pending {
    /// How long an attempt is pending whose target has asked for so long, or for nothing in particular.
    pub fn limit(self, asked: Option<Duration>) -> Duration {
        let most = self.most.clamp(LEAST_WAIT, MAX_DELAY);
        asked.unwrap_or(self.usual).clamp(LEAST_WAIT, most)
    }
}

impl Default for Pending {
    fn default() -> Self {
        Self {
            usual: USUAL,
            most: MOST,
        }
    }
}

/// What a pending attempt comes to whose limit has passed.
pub fn unanswered() -> Outcome {
    let message = "the target said that it would answer later, and did not within the limit";
    Outcome::Timeout(Failure::new(UNANSWERED, message))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_is_what_the_target_asks_for_within_the_bound() {
        let minutes = Duration::from_mins;
        let pending = Pending {
            usual: minutes(10),
            most: minutes(60),
        };

        assert_eq!(pending.limit(None), minutes(10));
        assert_eq!(pending.limit(Some(minutes(30))), minutes(30));
        assert_eq!(pending.limit(Some(Duration::MAX)), minutes(60));
        assert_eq!(pending.limit(Some(Duration::ZERO)), LEAST_WAIT);
    }
}
