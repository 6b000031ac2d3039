//! Which ids of a shard are under way, or have ended of late, as it stands on the order topic.
//!
//! ```text
//! id/6f0c3a5be1d94b7f9f3d2c1a08e7b654  {"offset":17}
//! id/0b1c2d3e4f5061728394a5b6c7d8e9f0  {"offset":12,"until":1795836382000}
//! ```
//!
//! Not what they are known for, which is [`retide_core::duplicates`].

use serde::{Deserialize, Serialize};

use retide_core::Timestamp;
use retide_core::duplicates::Known;

/// What the keys of these records begin with.
pub(crate) const KEY: &str = "id/";

/// The value of a record.
#[derive(Serialize, Deserialize)]
struct Wire {
    /// The offset in the retry topic at which the task entered.
    offset: i64,
    /// Until when its id is known, in ms since the epoch, if it has ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    until: Option<u64>,
}

/// Writes what is known of an id.
pub(crate) fn encode(known: &Known, value: &mut Vec<u8>) {
    let wire = Wire {
        offset: known.offset,
        until: known.until.map(Timestamp::as_millis),
    };
    serde_json::to_writer(value, &wire)
        .unwrap_or_else(|error| unreachable!("two numbers in memory: {error}"));
}

/// Reads what is known of an id; `None` if it is something else.
pub(crate) fn decode(value: &[u8]) -> Option<Known> {
    let wire: Wire = serde_json::from_slice(value).ok()?;
    Some(Known {
        offset: wire.offset,
        until: wire.until.map(Timestamp::from_millis),
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
        };
        let ended = Known {
            until: Some(Timestamp::from_millis(1_795_836_382_000)),
            ..under_way
        };
        let written = [under_way, ended].map(|known| {
            let mut value = Vec::new();
            encode(&known, &mut value);
            assert_eq!(decode(&value), Some(known));
            String::from_utf8(value).unwrap()
        });

        assert_eq!(
            written,
            [r#"{"offset":17}"#, r#"{"offset":17,"until":1795836382000}"#]
        );
        assert_eq!(decode(b"17"), None);
    }
}
