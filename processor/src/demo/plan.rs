//! What happens to each task of the demo: its scene, what the target says to each attempt, and how it must end.
//!
//! Pure and made from a seed, so that two runs with the same seed ask the same of retide.

use std::num::NonZeroU32;
use std::time::Duration;

use retide_core::Terminal;
use uuid::Uuid;

/// What the target says to one attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// 200.
    Accept,
    /// 503.
    Fail,
    /// Nothing, for longer than the scene waits.
    Hang,
    /// 422: it will never take this task.
    Reject,
    /// 429, and how long to leave it alone.
    Throttle(Duration),
}

/// The scenes of the demo.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Kind {
    /// The target takes everything at once.
    Steady,
    /// It fails or hangs a few times, and then takes it.
    Flaky,
    /// It rejects it, or never takes it.
    Poison,
    /// It asks to be left alone, some tasks for longer than they have.
    Throttled,
}

/// One task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Plan {
    /// Its scene.
    pub(crate) kind: Kind,
    /// What the target says to the first attempts; the last one to all others, too.
    answers: Vec<Answer>,
}

/// The task whose answers a run of the demo is made of.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Script {
    /// Where its chance comes from.
    pub(crate) seed: u64,
}

/// How long a scene of the demo waits for an answer.
pub(crate) const TIMEOUT: Duration = Duration::from_millis(300);
/// How long the target hangs: well beyond [`TIMEOUT`].
pub(crate) const HANG: Duration = Duration::from_secs(2);
/// The time that the tasks of the throttled scene have; a target that asks for more gets none.
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);
/// The attempts of the poison scene.
pub(crate) const POISON_ATTEMPTS: NonZeroU32 = NonZeroU32::new(3).unwrap();

// === impl Answer ===

impl Answer {
    /// Why a task waits that got it, in words; nothing if it does not wait.
    pub(crate) const fn why(self) -> Option<&'static str> {
        match self {
            Self::Fail => Some("got 503: is tried again"),
            Self::Hang => Some("got no answer in time"),
            Self::Throttle(_) => Some("got 429: try again later"),
            Self::Accept | Self::Reject => None,
        }
    }
}

// === impl Kind ===

impl Kind {
    /// All of them.
    pub(crate) const ALL: [Self; 4] = [Self::Steady, Self::Flaky, Self::Poison, Self::Throttled];

    /// The scene's name.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Steady => "steady",
            Self::Flaky => "flaky",
            Self::Poison => "poison",
            Self::Throttled => "throttled",
        }
    }
}

// === impl Script ===

impl Script {
    /// The id of the task of this number.
    pub(crate) fn id(index: u64) -> String {
        format!("demo-{index:06}")
    }

    /// The number of the task with this id.
    pub(crate) fn index(id: &str) -> Option<u64> {
        id.strip_prefix("demo-")?.parse().ok()
    }

    /// What happens to the task of this number.
    pub(crate) fn plan(self, index: u64) -> Plan {
        let chance = self.chance(index);
        let [first, second, third, ..] = chance;
        let (kind, answers) = match first % 20 {
            0..8 => (Kind::Steady, vec![Answer::Accept]),
            8..14 => {
                let failures = (0..third % 4).map(|nth| match (second >> nth) % 4 {
                    0 => Answer::Hang,
                    _ => Answer::Fail,
                });
                let answers = failures.chain([Answer::Accept]).collect();
                (Kind::Flaky, answers)
            }
            14..17 => match second % 2 {
                0 => (Kind::Poison, vec![Answer::Reject]),
                _ => (Kind::Poison, vec![Answer::Fail]),
            },
            _ if second % 10 == 0 => (Kind::Throttled, vec![Answer::Throttle(DEADLINE * 3)]),
            _ => {
                let throttled = Answer::Throttle(Duration::from_secs(1));
                let mut answers = vec![throttled; usize::from(third % 2) + 1];
                answers.push(Answer::Accept);
                (Kind::Throttled, answers)
            }
        };
        Plan { kind, answers }
    }

    /// Bytes that look random, the same ones for the same seed and number: a version 5 UUID of both.
    fn chance(self, index: u64) -> [u8; 16] {
        let space = Uuid::from_u64_pair(self.seed, 0);
        *Uuid::new_v5(&space, &index.to_be_bytes()).as_bytes()
    }
}

// === impl Plan ===

impl Plan {
    /// What the target says to attempt number `attempt`, from 1.
    pub(crate) fn answer(&self, attempt: u32) -> Answer {
        let last = self.answers.len() - 1;
        self.answers[last.min(attempt.saturating_sub(1) as usize)]
    }

    /// How the task must end.
    pub(crate) fn terminal(&self) -> Terminal {
        match self.answers.last() {
            Some(Answer::Accept) => Terminal::Delivered,
            Some(Answer::Throttle(_)) => Terminal::Expired,
            Some(Answer::Fail | Answer::Hang | Answer::Reject) | None => Terminal::Dead,
        }
    }

    /// How many attempts it takes.
    pub(crate) fn attempts(&self) -> u32 {
        match self.answers.as_slice() {
            [Answer::Fail] => POISON_ATTEMPTS.get(),
            answers => answers.len() as u32,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_scene_and_every_end_occurs_and_a_seed_repeats_itself() {
        let script = Script { seed: 7 };
        let plans: Vec<_> = (0..200).map(|index| script.plan(index)).collect();

        for kind in Kind::ALL {
            assert!(plans.iter().any(|plan| plan.kind == kind), "{kind:?}");
        }
        for end in [Terminal::Delivered, Terminal::Dead, Terminal::Expired] {
            assert!(plans.iter().any(|plan| plan.terminal() == end), "{end:?}");
        }
        let again: Vec<_> = (0..200).map(|index| script.plan(index)).collect();
        assert_eq!(plans, again);
        let other: Vec<_> = (0..200)
            .map(|index| Script { seed: 8 }.plan(index))
            .collect();
        assert_ne!(plans, other);
    }

    #[test]
    fn the_last_answer_is_given_to_all_further_attempts() {
        let plan = Plan {
            kind: Kind::Flaky,
            answers: vec![Answer::Fail, Answer::Accept],
        };

        assert_eq!(plan.answer(1), Answer::Fail);
        assert_eq!(plan.answer(2), Answer::Accept);
        assert_eq!(plan.answer(9), Answer::Accept);
    }
}
