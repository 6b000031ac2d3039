//! Which ids of a shard are under way, or have ended of late, as it stands on the order topic.
//!
//! ```text
//! id/6f0c3a5be1d94b7f9f3d2c1a08e7b654  {"offset":17}
//! id/0b1c2d3e4f5061728394a5b6c7d8e9f0  {"offset":12,"until":1795836382000}
//! replaced/12                          {"by":17,"at":1795836382000}
//! ```
//!
//! Not what they are known for, which is [`retide_core::duplicates`].

use std::time::Duration;

use serde::{Deserialize, Serialize};

use retide_core::duplicates::{Known, Replaced, Schedule};
use retide_core::{Stopped, Timestamp};

/// What the keys of these records begin with.
pub(crate) const KEY: &str = "id/";

/// What the keys of those begin with that tell of tasks that are replaced; their offsets in the retry topic follow.
pub(crate) const REPLACED: &str = "replaced/";

/// The value of a record.
#[derive(Serialize, Deserialize)]
struct Wire {
    /// The offset in the retry topic at which the task entered.
    offset: i64,
    /// Until when its id is known, in ms since the epoch, if it has ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    until: Option<u64>,
    /// The schedule of the task, if it is kept.
    #[serde(default, flatten)]
    schedule: Option<WireSchedule>,
}

/// What a task keeps that gets the payload of another one.
#[derive(Serialize, Deserialize)]
struct WireSchedule {
    /// When the next attempt may start, in ms since the epoch, as all instants here.
    due: u64,
    /// The number of that attempt.
    attempt: u32,
    /// How many of those before it were throttled.
    throttled: u32,
    /// When the task entered.
    entered: u64,
    /// When no attempt may start any more, if the producer has named that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    deadline: Option<u64>,
    /// For how long its deadline has stood still, since when it does, and up to when the first counts, if it has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    stopped: Option<(u64, Option<u64>, Option<u64>)>,
}

/// The value of a record that tells of a task that is replaced.
#[derive(Serialize, Deserialize)]
struct WireReplaced {
    /// The offset of the task that has its place.
    by: i64,
    /// When it was replaced.
    at: u64,
}

/// Writes what is known of an id.
pub(crate) fn encode(known: &Known, value: &mut Vec<u8>) {
    let wire = Wire {
        offset: known.offset,
        until: known.until.map(Timestamp::as_millis),
        schedule: known.schedule.map(|schedule| WireSchedule {
            due: schedule.due.as_millis(),
            attempt: schedule.attempt,
            throttled: schedule.throttled,
            entered: schedule.entered.as_millis(),
            deadline: schedule.deadline.map(Timestamp::as_millis),
            stopped: schedule.stopped.map(|stopped| {
                let instants = [stopped.since, stopped.to];
                let [since, to] = instants.map(|instant| instant.map(Timestamp::as_millis));
                (stopped.before.as_millis() as u64, since, to)
            }),
        }),
    };
    serde_json::to_writer(value, &wire)
        .unwrap_or_else(|error| unreachable!("numbers in memory: {error}"));
}

/// Writes how a task was replaced.
pub(crate) fn encode_replaced(replaced: &Replaced, value: &mut Vec<u8>) {
    let wire = WireReplaced {
        by: replaced.by,
        at: replaced.at.as_millis(),
    };
    serde_json::to_writer(value, &wire)
        .unwrap_or_else(|error| unreachable!("two numbers in memory: {error}"));
}

/// Reads how a task was replaced; `None` if it is something else.
pub(crate) fn decode_replaced(value: &[u8]) -> Option<Replaced> {
    let wire: WireReplaced = serde_json::from_slice(value).ok()?;
    Some(Replaced {
        by: wire.by,
        at: Timestamp::from_millis(wire.at),
    })
}

/// Reads what is known of an id; `None` if it is something else.
pub(crate) fn decode(value: &[u8]) -> Option<Known> {
    let wire: Wire = serde_json::from_slice(value).ok()?;
    Some(Known {
        offset: wire.offset,
        until: wire.until.map(Timestamp::from_millis),
        schedule: wire.schedule.map(|schedule| Schedule {
            due: Timestamp::from_millis(schedule.due),
            attempt: schedule.attempt,
            throttled: schedule.throttled,
            entered: Timestamp::from_millis(schedule.entered),
            deadline: schedule.deadline.map(Timestamp::from_millis),
            stopped: schedule.stopped.map(|(before, since, to)| Stopped {
                since: since.map(Timestamp::from_millis),
                before: Duration::from_millis(before),
                to: to.map(Timestamp::from_millis),
            }),
        }),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_known_is_read_as_it_was_written() {
        let under_way = Known {
            offset: 17,
            until: None,
            schedule: None,
        };
        let ended = Known {
            until: Some(Timestamp::from_millis(1_795_836_382_000)),
            ..under_way
        };
        let instant = Timestamp::from_millis;
        let scheduled = Known {
            schedule: Some(Schedule {
                due: instant(30),
                attempt: 2,
                throttled: 1,
                entered: instant(10),
                deadline: Some(instant(90)),
                stopped: Some(Stopped {
                    since: Some(instant(20)),
                    before: Duration::from_millis(7),
                    to: Some(instant(15)),
                }),
            }),
            ..under_way
        };
        let written = [under_way, ended, scheduled].map(|known| {
            let mut value = Vec::new();
            encode(&known, &mut value);
            assert_eq!(decode(&value), Some(known));
            String::from_utf8(value).unwrap()
        });

        assert_eq!(
            written,
            [
                r#"{"offset":17}"#,
                r#"{"offset":17,"until":1795836382000}"#,
                r#"{"offset":17,"due":30,"attempt":2,"throttled":1,"entered":10,"deadline":90,"stopped":[7,20,15]}"#,
            ]
        );
        let replaced = Replaced {
            by: 17,
            at: instant(10),
        };
        let mut value = Vec::new();
        encode_replaced(&replaced, &mut value);
        assert_eq!(value, br#"{"by":17,"at":10}"#);
        assert_eq!(decode_replaced(&value), Some(replaced));
        assert_eq!(decode_replaced(br#"{"by":17}"#), None);
        assert_eq!(decode(b"17"), None);
    }
}
