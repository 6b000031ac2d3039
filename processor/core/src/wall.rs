//! A wall: a target that has done well suddenly refuses everything, as an ingress without a backend does with 404, or everybody with 401
//! while keys change. What it says then is not about the tasks, and they are not given up for it.
//!
//! What makes a wall: refusals ([`Outcome::Refused`]) in a row, with no other answer in between, that the target's own history makes
//! improbable, one in a million: [`LEAST`] of a target that refused hardly anything before, more of one that refuses often, and of one that
//! has not done well twice as often none at all. So single bad tasks in between successes, and a target that refuses from the start, get
//! what they always got.
//!
//! What it does: [`crate::breaker`] does the rest, by a [`RULE`] that opens for nothing else. Calls stop at once, the task whose answer made
//! it a wall and all after it are tried again, probes look whether it is gone, and people are told once.
//!
//! What it never does: bring back those that were refused before it was one: fewer than there have to be in a row. Nor does it know anything
//! of before its process began. Invariant: pure; a few numbers for each scene.

use std::time::Duration;

use crate::breaker::{Fraction, Rule};
use crate::outcome::Outcome;

/// Fewest refusals in a row that are a wall: two or three bad tasks come together now and then.
pub const LEAST: u32 = 5;

/// Successes without which there is no wall, for each refusal that makes one: before that, nobody knows what is usual here.
const HEALTHY: u32 = 2;

/// How improbable refusals in a row have to be, for each that makes a wall: one in a million for [`LEAST`].
const CHANCE: f64 = 0.063_095_734;

/// Answers after which the older ones count for half.
const MEMORY: u32 = 1_000;

/// When the breaker of a wall opens, and how it closes: as a scene's breaker does, but for nothing that it counts. The slow start is that of the
/// [brake](crate::brake), which opens it where half of the last tasks died: a wall that is gone opens at once to all calls, since a target that
/// refused them was not overloaded. No scene can name such a one.
pub const RULE: Rule = Rule {
    failure_rate: Fraction::HALF,
    slow_call: None,
    slow_rate: Fraction::WHOLE,
    window: Duration::from_secs(30),
    min_calls: LEAST,
    open: Duration::from_secs(10),
    probes: 3,
    slow_start: Duration::from_secs(30),
};

/// The same without a [brake](crate::brake).
pub const UNBRAKED: Rule = Rule {
    failure_rate: Fraction::WHOLE,
    ..RULE
};

/// What is known of the answers of one scene's target.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Watch {
    /// Answers that count, refusals among them; those of the run do not.
    answers: u32,
    /// How many of them are refusals.
    refused: u32,
    /// Successes so far, up to those without which there is no wall.
    successes: u32,
    /// Refusals in a row.
    run: u32,
}

// === impl Watch ===

impl Watch {
    /// Takes in what a target said; how many refusals in a row it were, if that makes it a wall, for which `least` are needed.
    pub fn hear(&mut self, outcome: &Outcome, least: u32) -> Option<u32> {
        let healthy = least.saturating_mul(HEALTHY);
        match outcome {
            Outcome::Refused(_) => {
                self.run = self.run.saturating_add(1);
                (self.successes >= healthy && self.run >= self.most(least)).then_some(self.run)
            }
            Outcome::Success | Outcome::Pending { .. } => {
                self.successes = (self.successes + 1).min(healthy);
                self.open();
                None
            }
            // Whoever finds a task bad has let it in.
            Outcome::Permanent(_) => {
                self.open();
                None
            }
            // It has let nobody in, and has refused nobody either.
            Outcome::Retryable(_) | Outcome::Throttled { .. } | Outcome::Timeout(_) => None,
        }
    }

    /// The wall is gone: what it refused says nothing of what is usual.
    pub const fn forget(&mut self) {
        self.run = 0;
    }

    /// Refusals in a row that are a wall here.
    fn most(&self, least: u32) -> u32 {
        // As if there had been one more of each: nothing is impossible.
        let part = f64::from(self.refused + 1) / f64::from(self.answers + 2);
        let most = f64::from(least) * CHANCE.ln() / part.ln();
        (most.ceil() as u32).max(least)
    }

    /// Ends the run with an answer that is no refusal.
    fn open(&mut self) {
        self.refused = self.refused.saturating_add(self.run);
        self.answers = self.answers.saturating_add(self.run).saturating_add(1);
        self.run = 0;
        if self.answers >= MEMORY {
            self.answers /= 2;
            self.refused /= 2;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::task::Failure;

    fn refused() -> Outcome {
        Outcome::Refused(Failure::new("http-404", ""))
    }

    fn watch(answers: impl IntoIterator<Item = Outcome>) -> Watch {
        let mut watch = Watch::default();
        for answer in answers {
            assert_eq!(watch.hear(&answer, LEAST), None, "{watch:?}");
        }
        watch
    }

    /// Refusals in a row until it is a wall, if they ever are.
    fn until_wall(mut watch: Watch) -> Option<u32> {
        (0..10_000).find_map(|_| watch.hear(&refused(), LEAST))
    }

    #[test]
    fn a_few_refusals_in_a_row_are_a_wall_where_there_were_none() {
        let well = |count| watch((0..count).map(|_| Outcome::Success));

        assert_eq!(until_wall(well(10)), Some(6));
        assert_eq!(until_wall(well(20)), Some(5));
        assert_eq!(until_wall(well(100_000)), Some(LEAST));
    }

    #[test]
    fn whoever_refuses_from_the_start_is_no_wall() {
        assert_eq!(until_wall(Watch::default()), None);
        let few = watch((1..LEAST * HEALTHY).map(|_| Outcome::Success));
        assert_eq!(until_wall(few), None);
        // Nor is one that refuses nearly everything ever after.
        let mut mixed = Watch::default();
        for number in 0..100_000_u32 {
            let answer = if number % 50 == 0 {
                Outcome::Success
            } else {
                refused()
            };
            assert_eq!(mixed.hear(&answer, LEAST), None);
        }
    }

    #[test]
    fn the_more_is_refused_usually_the_longer_it_takes() {
        let usual = |every: u32| {
            watch((0..2_000).map(|number| {
                if number % every == 0 {
                    refused()
                } else {
                    Outcome::Success
                }
            }))
        };

        assert_eq!(until_wall(usual(20)), Some(LEAST));
        assert_eq!(until_wall(usual(10)), Some(7));
        assert_eq!(until_wall(usual(2)), Some(20));
    }

    #[test]
    fn any_other_answer_ends_the_row_and_none_at_all_does_not() {
        let mut watch = watch((0..100).map(|_| Outcome::Success));
        let failure = || Failure::new("x", "");
        for _ in 0..4 {
            assert_eq!(watch.hear(&refused(), LEAST), None);
        }
        assert_eq!(watch.hear(&Outcome::Permanent(failure()), LEAST), None);
        for _ in 0..4 {
            assert_eq!(watch.hear(&refused(), LEAST), None);
            assert_eq!(watch.hear(&Outcome::Timeout(failure()), LEAST), None);
            assert_eq!(watch.hear(&Outcome::Retryable(failure()), LEAST), None);
        }

        // The four of before have made it a little more usual.
        assert_eq!(watch.hear(&refused(), LEAST), Some(5));
    }
}
