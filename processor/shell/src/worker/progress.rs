//! How far the step of a command is, as it stands on the order topic: JSON that people can read.
//!
//! Not what follows from it, which is the engine's. Invariant: tiers have the names of their topics, since their numbers change with the
//! configuration; what is said of a topic that is not read any more is left out.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use retide_core::control::{Counts, Looking, Progress};
use retide_kafka::topics::Topics;

/// The value of a record.
#[derive(Serialize, Deserialize)]
struct Wire<'a> {
    /// Whether it looks once more.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    again: bool,
    /// With how many tasks it was done.
    done: u64,
    /// For how many it was too late.
    too_late: u64,
    /// How many of the ids that it names were found.
    found: u64,
    /// How far the tiers were looked at.
    #[serde(borrow, default, skip_serializing_if = "Vec::is_empty")]
    looking: Vec<LookingWire<'a>>,
}

/// How far a tier was looked at.
#[derive(Serialize, Deserialize)]
struct LookingWire<'a> {
    /// The topic.
    #[serde(borrow)]
    topic: Cow<'a, str>,
    /// The first offset that was not looked at.
    next: i64,
    /// The first one that is not to be.
    to: i64,
}

/// Writes how far a step is.
pub(crate) fn encode(progress: &Progress, topics: &Topics, value: &mut Vec<u8>) {
    let Progress {
        again,
        counts,
        looking,
    } = progress;
    let looking = looking.iter().map(|of| LookingWire {
        topic: Cow::Borrowed(&**topics.name(of.source)),
        next: of.next,
        to: of.to,
    });
    let wire = Wire {
        again: *again,
        done: counts.done,
        too_late: counts.too_late,
        found: counts.found,
        looking: looking.collect(),
    };
    serde_json::to_writer(value, &wire)
        .unwrap_or_else(|error| unreachable!("numbers and names in memory: {error}"));
}

/// Reads what [`encode`] has written; `None` if it is something else.
pub(crate) fn decode(value: &[u8], topics: &Topics) -> Option<Progress> {
    let wire: Wire<'_> = serde_json::from_slice(value).ok()?;
    let looking = wire.looking.into_iter().filter_map(|of| {
        Some(Looking {
            source: topics.source(&of.topic)?,
            next: of.next,
            to: of.to,
        })
    });
    Some(Progress {
        again: wire.again,
        counts: Counts {
            done: wire.done,
            too_late: wire.too_late,
            found: wire.found,
        },
        looking: looking.collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    use retide_core::{Ladder, Source};

    #[test]
    fn what_is_written_is_read_by_the_names_of_topics() {
        let topics = |tiers: &[&str]| Topics::new("r", &Ladder::try_new(tiers).unwrap());
        let before = topics(&["now", "5s", "1m"]);
        let progress = Progress {
            again: false,
            counts: Counts {
                done: 3,
                too_late: 1,
                found: 2,
            },
            looking: vec![Looking {
                source: Source::Tier(2),
                next: 7,
                to: 9,
            }],
        };
        let mut value = Vec::new();

        encode(&progress, &before, &mut value);

        let text = r#"{"done":3,"too_late":1,"found":2,"looking":[{"topic":"r.delay.1m","next":7,"to":9}]}"#;
        assert_eq!(str::from_utf8(&value).unwrap(), text);
        assert_eq!(decode(&value, &before), Some(progress.clone()));
        let again = Progress {
            again: true,
            ..progress.clone()
        };
        let mut other = Vec::new();
        encode(&again, &before, &mut other);
        assert_eq!(decode(&other, &before), Some(again));
        let moved = decode(&value, &topics(&["now", "1m"])).unwrap();
        assert_eq!(moved.looking[0].source, Source::Tier(1));
        let gone = decode(&value, &topics(&["now"])).unwrap();
        assert_eq!((gone.counts, gone.looking.len()), (progress.counts, 0));
        for other in [&b""[..], b"{}", b"[1]", b"\xff"] {
            assert_eq!(decode(other, &before), None);
        }
    }
}
