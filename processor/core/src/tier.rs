//! The ladder of tiers: which delay topic a task waits in, and when a tier's records may be read.
//!
//! Every record of a tier waits the same time, so a partition is in release order and nothing waits behind a later record.
//! Invariant: a task is never released from a tier after it is due, provided the tier was chosen by [`Ladder::tier_for`].

use std::fmt;
use std::time::Duration;

use thiserror::Error;

use crate::span;
use crate::time::Timestamp;

/// How long before the end of a tier's delay its head may be read, so that the task is in the agenda when it is due.
pub const LOOKAHEAD: Duration = Duration::from_secs(2);

/// How much longer than a task has left its tier may be: a wait of exactly a rung that lost some milliseconds on its way here still
/// makes one hop. Small beside [`LOOKAHEAD`], so that the tier lets go of the task before it is due.
pub const GRACE: Duration = Duration::from_millis(500);

/// A task read with no more than this left waits in the agenda; with more left, it hops to another tier.
pub const HORIZON: Duration = Duration::from_secs(10);

/// A new task due within this time goes straight to the agenda, without a trip through a tier.
pub const STRAIGHT: Duration = Duration::from_secs(1);

/// Delay of the first tier in which every record is of its shard's owner: what moves to another shard waits in a shorter one, and goes on
/// from there, so that the owner knows what longer ones hold.
pub const OWNED: Duration = Duration::from_secs(10);

/// The tiers a cluster has unless it is configured otherwise.
pub const DEFAULT_TIERS: [&str; 11] = [
    "now", "5s", "10s", "30s", "1m", "5m", "10m", "30m", "1h", "6h", "24h",
];

/// The name of the tier without delay: where short waits are made durable.
pub const NOW: &str = "now";

/// One delay class.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tier {
    /// The name of the tier, which is its delay as text, and the last part of its topic's name.
    pub name: Box<str>,
    /// How long each of its records waits.
    pub delay: Duration,
}

/// The tiers, shortest first; the first one is `now`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ladder {
    /// The tiers, in rising order of their delays.
    tiers: Vec<Tier>,
}

/// Why a list of tiers is not a ladder.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Error {
    /// A name that is neither `now` nor a duration; says why.
    #[error("a tier is `now` or a duration such as `30s`, `5m`, `6h`: {0}")]
    NotADuration(String),
    /// A duration with other characters than a topic's name may end in.
    #[error(
        "tier `{0}` is part of a topic's name: letters and digits only, such as `90s` or `1h30m`"
    )]
    NotAName(String),
    /// A first tier other than `now`.
    #[error("the first tier must be `now`")]
    NoNow,
    /// A tier that is not longer than the one before it.
    #[error("tier `{0}` is not longer than the tier before it")]
    NotRising(String),
    /// A delay too short to be worth a hop, or too long.
    #[error("tier `{0}` must be between 5s and 7 days")]
    OutOfRange(String),
    /// More tiers than have a use.
    #[error("at most 32 tiers, {0} given")]
    TooMany(usize),
}

/// Shortest delay of a tier: below it, the lookahead leaves nothing to wait for.
const SHORTEST: Duration = Duration::from_secs(5);
/// Longest delay of a tier: keeps the retention that a tier needs within a month.
const LONGEST: Duration = Duration::from_hours(7 * 24);
/// Most tiers: each one costs partitions.
const MOST: usize = 32;

// === impl Ladder ===

impl Ladder {
    /// The ladder of these names, such as [`DEFAULT_TIERS`].
    pub fn try_new<S: AsRef<str>>(names: &[S]) -> Result<Self, Error> {
        if names.first().is_none_or(|name| name.as_ref() != NOW) {
            return Err(Error::NoNow);
        }
        if names.len() > MOST {
            return Err(Error::TooMany(names.len()));
        }
        let mut tiers = vec![Tier {
            name: NOW.into(),
            delay: Duration::ZERO,
        }];
        for name in names[1..].iter().map(AsRef::as_ref) {
            let delay =
                span::parse(name).map_err(|error| Error::NotADuration(error.to_string()))?;
            if !name.chars().all(|letter| letter.is_ascii_alphanumeric()) {
                return Err(Error::NotAName(name.to_owned()));
            }
            if !(SHORTEST..=LONGEST).contains(&delay) {
                return Err(Error::OutOfRange(name.to_owned()));
            }
            if tiers.last().is_some_and(|before| before.delay >= delay) {
                return Err(Error::NotRising(name.to_owned()));
            }
            tiers.push(Tier {
                name: name.into(),
                delay,
            });
        }
        Ok(Self { tiers })
    }

    /// The tiers, shortest first.
    pub fn tiers(&self) -> &[Tier] {
        &self.tiers
    }

    /// The longest tier that does not release a task after it is due, if `remaining` is left now.
    pub fn tier_for(&self, remaining: Duration) -> usize {
        // The first tier has no delay, so there is always one.
        let most = remaining.saturating_add(GRACE);
        self.tiers.partition_point(|tier| tier.delay <= most) - 1
    }

    /// The same of a task that moves to another shard: a tier shorter than [`OWNED`].
    pub fn tier_to_move(&self, remaining: Duration) -> usize {
        let shared = self.tiers.partition_point(|tier| tier.delay < OWNED);
        self.tier_for(remaining).min(shared.saturating_sub(1))
    }

    /// Whether all that a tier of the ladder holds was written by the owner of its shard.
    pub fn is_owned(&self, tier: usize) -> bool {
        self.tiers.get(tier).is_some_and(|tier| tier.delay >= OWNED)
    }
}

impl Default for Ladder {
    fn default() -> Self {
        Self::try_new(&DEFAULT_TIERS).unwrap_or_else(|error| unreachable!("{error}"))
    }
}

// === impl Tier ===

impl Tier {
    /// When a record that the broker appended at `appended` may be read.
    pub fn readable_at(&self, appended: Timestamp) -> Timestamp {
        if self.delay.is_zero() {
            // Never held back, whatever the broker's clock says.
            return Timestamp::EPOCH;
        }
        (appended + self.delay).before(LOOKAHEAD)
    }
}

impl fmt::Display for Tier {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use proptest::prelude::*;

    /// Follows a task due `wait` after `start` through the tiers; gives the hops and the instant it reached the agenda.
    fn travel(ladder: &Ladder, wait: Duration) -> (u32, Timestamp) {
        let start = Timestamp::from_millis(1_000_000);
        let due = start + wait;
        let (mut now, mut hops) = (start, 0);
        let mut limit = STRAIGHT;
        while due.since(now) > limit {
            let tier = &ladder.tiers()[ladder.tier_for(due.since(now))];
            now = now.max(tier.readable_at(now));
            hops += 1;
            limit = HORIZON;
        }
        (hops, now)
    }

    #[test]
    fn a_wait_of_exactly_a_rung_makes_one_hop() {
        let ladder = Ladder::default();

        for tier in &ladder.tiers()[1..] {
            assert_eq!(travel(&ladder, tier.delay).0, 1, "{tier}");
            assert_eq!(
                travel(&ladder, tier.delay.saturating_sub(GRACE)).0,
                1,
                "{tier}"
            );
        }
        assert_eq!(travel(&ladder, STRAIGHT).0, 0);
        assert_eq!(travel(&ladder, Duration::from_secs(3)).0, 1);
    }

    #[test]
    fn names_that_are_not_a_ladder_are_refused() {
        let error = |names: &[&str]| Ladder::try_new(names).unwrap_err();

        assert_eq!(error(&[]), Error::NoNow);
        assert_eq!(error(&["5s"]), Error::NoNow);
        assert!(matches!(error(&["now", "x"]), Error::NotADuration(_)));
        assert!(
            error(&["now", "1day"])
                .to_string()
                .ends_with("did you mean `1d`? (units are `ms`, `s`, `m`, `h` and `d`)")
        );
        assert_eq!(error(&["now", "1m 5s"]), Error::NotAName("1m 5s".into()));
        assert_eq!(error(&["now", "1s"]), Error::OutOfRange("1s".into()));
        assert_eq!(error(&["now", "1m", "60s"]), Error::NotRising("60s".into()));
        assert_eq!(error(&["now"; 33]), Error::TooMany(33));
    }

    proptest! {
        #[test]
        fn no_task_reaches_the_agenda_after_it_is_due_and_hops_are_bounded(millis in 0_u64..366 * 86_400_000) {
            let wait = Duration::from_millis(millis);

            let (hops, reached) = travel(&Ladder::default(), wait);

            let due = Timestamp::from_millis(1_000_000) + wait;
            prop_assert!(reached <= due);
            // In the agenda, or so close to due that it goes there at once: the waits add up to the delay.
            prop_assert!(due.since(reached) <= HORIZON);
            // One hop a day, and at most two for each rung below it.
            prop_assert!(u64::from(hops) <= millis / 86_398_000 + 22, "{hops} hops for {millis} ms");
        }
    }
}
