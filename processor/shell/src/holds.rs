//! How holds stand in each shard: records of the order topic, written by the owners of the shards and read by people's tools.
//!
//! ```text
//! held/payment  {"revision":"3/17","waiting":42}
//! ```
//!
//! Not the holds themselves, which are records of the scenes topic. Invariant: a shard that has written a revision starts nothing that
//! this hold, or a later one of its name, fits.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use retide_core::Timestamp;
use retide_core::breaker::State;
use retide_core::command::{Invocation, line};
use retide_core::forced::Force;
use retide_core::hold::{MAX_HOLDS, Standing};
use retide_core::ramp::Progress;

use crate::scenes::{Follower, Unreadable, Unreadables};
use crate::trouble::{Effect, Kind, Trouble};

/// What the keys of these records begin with.
pub const HELD: &str = "held/";

/// The value of a record.
#[derive(Serialize, Deserialize)]
struct Wire {
    /// Where the hold stands that the shard knows.
    revision: String,
    /// How many due tasks it holds there.
    waiting: u32,
    /// How many steps of its ramp are over, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    step: Option<u32>,
    /// How the breakers of a target are, where it is of those.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    state: Option<String>,
    /// Whether the ramp fell back.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    fell_back: bool,
}

/// How holds stand, as far as it was written.
#[derive(Debug, Default)]
pub struct Standings {
    /// How many shards there are.
    pub shards: usize,
    /// How each hold stands in each shard that knows it, by name.
    pub by_name: BTreeMap<Arc<str>, BTreeMap<i32, Standing>>,
}

/// How long a hold is in force before people are told that it still is: half a day, and half of what one lasts where nothing is said.
const LONG: Duration = Duration::from_hours(12);

/// Writes how a hold stands.
pub(crate) fn encode(standing: &Standing, value: &mut Vec<u8>) {
    let wire = Wire {
        revision: standing.revision.to_string(),
        waiting: standing.waiting,
        step: standing.ramp.map(|ramp| ramp.step),
        state: standing.breaker.map(|state| state.word().to_owned()),
        fell_back: standing.ramp.is_some_and(|ramp| ramp.fell),
    };
    serde_json::to_writer(value, &wire)
        .unwrap_or_else(|error| unreachable!("a text and a number in memory: {error}"));
}

/// Reads how a hold stands; `None` if it is something else.
pub(crate) fn decode(value: &[u8]) -> Option<Standing> {
    let wire: Wire = serde_json::from_slice(value).ok()?;
    Some(Standing {
        revision: wire.revision.parse().ok()?,
        waiting: wire.waiting,
        ramp: wire.step.map(|step| Progress {
            step,
            fell: wire.fell_back,
        }),
        breaker: wire.state.as_deref().and_then(State::from_word),
    })
}

/// The name of the hold that a key of the order topic is of.
pub(crate) fn name_of(key: &[u8]) -> Option<&str> {
    str::from_utf8(key.strip_prefix(HELD.as_bytes())?).ok()
}

/// The troubles of holds, by their kind: those that cannot be read, those that last long, and more than count; and those of breakers by hand.
pub(crate) fn troubles(
    follower: &Follower,
    now: Timestamp,
    retide: &Invocation,
) -> [(Kind, Vec<Trouble>); 5] {
    let on = follower.holds().values();
    let on = on.filter(|hold| hold.is_on(now) && hold.of_scene().is_none());
    let lasting = on.clone().filter(|hold| now.since(hold.since) >= LONG);
    let lasting = lasting.map(|hold| Trouble {
        kind: Kind::HoldLasting,
        subject: hold.name.to_string(),
        says: format!(
            "its tasks are held since {} hours, by {:?} for {:?}; it ends by itself in {} hours",
            hours(now.since(hold.since)),
            hold.by,
            hold.reason,
            hours(hold.until.since(now)),
        ),
        fix: Some(retide.line(&format!("release {}", hold.name))),
        effect: Effect::Limits,
    });
    let too_many = on.skip(MAX_HOLDS).take(1).map(|first| Trouble {
        kind: Kind::HoldsTooMany,
        subject: "holds".to_owned(),
        says: format!(
            "there are over {MAX_HOLDS} holds: {} and what comes after it by name does not count",
            first.name
        ),
        fix: Some(retide.line("holds")),
        effect: Effect::Limits,
    });
    [
        (
            Kind::HoldUnreadable,
            unreadable(
                follower.unreadable_holds(),
                (Kind::HoldUnreadable, "cannot be read", "release"),
                retide,
            ),
        ),
        (Kind::HoldLasting, lasting.take(MOST_LASTING).collect()),
        (Kind::HoldsTooMany, too_many.collect()),
        (
            Kind::BreakerUnreadable,
            unreadable(
                follower.unreadable_forced(),
                (Kind::BreakerUnreadable, "does not count", "breakers reset"),
                retide,
            ),
        ),
        (
            Kind::BreakerForced,
            forced_breakers(follower, now, retide)
                .take(MOST_LASTING)
                .collect(),
        ),
    ]
}

/// Whom a trouble befalls that stands for those which are not listed. No name has a star in it.
pub(crate) const OTHERS: &str = "*";

/// Most holds, and most breakers, that are told of one by one since they last long.
const MOST_LASTING: usize = 100;

/// The troubles of a kind: records by name that do not count; why in words, and the command that takes them away.
fn unreadable(
    all: &Unreadables,
    (kind, why, command): (Kind, &str, &str),
    retide: &Invocation,
) -> Vec<Trouble> {
    let troubles = all.iter().map(|(name, unreadable)| {
        let Unreadable {
            partition,
            offset,
            error,
        } = unreadable;
        Trouble {
            kind,
            subject: name.clone(),
            says: format!(
                "its record at partition {partition}, offset {offset} of the scenes topic {why}, what it was before counts on: {error}"
            ),
            fix: Some(retide.line(&format!("{command} {}", line(&[name.as_str()])))),
            effect: Effect::Limits,
        }
    });
    let others = all.others().map(|others| Trouble {
        kind,
        subject: OTHERS.to_owned(),
        says: format!(
            "the records of {others} on the scenes topic cannot be read or do not count; they are not listed here"
        ),
        fix: Some(format!(
            "see who writes to the scenes topic; `{}` takes one away by its name",
            retide.line(&format!("{command} NAME"))
        )),
        effect: Effect::Limits,
    });
    troubles.chain(others).collect()
}

/// The troubles of breakers that are forced for long.
fn forced_breakers(
    follower: &Follower,
    now: Timestamp,
    retide: &Invocation,
) -> impl Iterator<Item = Trouble> {
    let on = follower.forced().values();
    let lasting = on.filter(move |forced| {
        let is_long = now.since(forced.since) >= LONG;
        forced.is_on(now) && is_long && forced.force != Force::Reset
    });
    lasting.map(move |forced| Trouble {
        kind: Kind::BreakerForced,
        subject: forced.target.to_string(),
        says: format!(
            "its breakers are kept {} since {} hours, by {:?} for {:?}; that ends by itself in {} hours",
            forced.force,
            hours(now.since(forced.since)),
            forced.by,
            forced.reason,
            hours(forced.until.since(now)),
        ),
        fix: Some(retide.line(&format!("breakers reset {}", forced.target))),
        effect: Effect::Limits,
    })
}

/// Whole hours.
const fn hours(span: Duration) -> u64 {
    span.as_secs() / 3_600
}

// === impl Standings ===

impl Standings {
    /// Takes a record in.
    pub fn take(&mut self, shard: i32, key: Option<&[u8]>, value: Option<&[u8]>) {
        let Some(name) = name_of(key.unwrap_or_default()) else {
            return;
        };
        match value.and_then(decode) {
            Some(standing) => {
                let by_shard = self.by_name.entry(name.into()).or_default();
                by_shard.insert(shard, standing);
            }
            None => {
                if let Some(by_shard) = self.by_name.get_mut(name) {
                    by_shard.remove(&shard);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use retide_core::hold::Revision;

    #[test]
    fn what_a_shard_has_written_counts_until_it_writes_that_the_hold_is_over() {
        let standing = Standing {
            revision: Revision {
                partition: 3,
                offset: 17,
            },
            waiting: 42,
            ramp: None,
            breaker: None,
        };
        let mut value = Vec::new();
        encode(&standing, &mut value);
        let mut all = Standings::default();

        all.take(0, Some(b"held/night"), Some(&value));
        all.take(1, Some(b"held/night"), Some(&value));
        all.take(1, Some(b"held/night"), None);
        all.take(0, Some(b"step/1/2/3"), Some(&value));

        assert_eq!(value, br#"{"revision":"3/17","waiting":42}"#);
        let ramp = Progress {
            step: 3,
            fell: true,
        };
        let climbs = Standing {
            ramp: Some(ramp),
            ..standing
        };
        let mut value = Vec::new();
        encode(&climbs, &mut value);
        assert_eq!(decode(&value), Some(climbs));
        let night = BTreeMap::from([(0, standing)]);
        assert_eq!(all.by_name, BTreeMap::from([("night".into(), night)]));
    }
}
