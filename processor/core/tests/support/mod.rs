//! What tests of the engine begin with.

#![allow(dead_code, reason = "no test needs all of it")]

use std::num::NonZeroU32;
use std::time::Duration;

use retide_core::{
    Backoff, Jitter, Kind, LaneId, Now, Origin, Policy, Record, Source, Task, Timestamp,
};

/// Where tests start, in milliseconds: an instant of no meaning.
pub(crate) const START: u64 = 1_000_000_000_000;

/// The retry topic of the shard that most tests are about.
pub(crate) const TASKS: LaneId = LaneId {
    shard: 0,
    source: Source::Tasks,
};

/// Its shortest tier.
pub(crate) const NOW_TIER: LaneId = LaneId {
    shard: 0,
    source: Source::Tier(0),
};

/// So many milliseconds after the start.
pub(crate) fn at(millis: u64) -> Now {
    Now {
        wall: Timestamp::from_millis(START + millis),
        steady: Duration::from_millis(millis),
    }
}

/// So many attempts, the same time apart.
pub(crate) fn policy(delay: Duration, attempts: u32) -> Policy {
    Policy {
        backoff: Backoff::Fixed { delay },
        jitter: Jitter::None,
        max_attempts: NonZeroU32::new(attempts).unwrap(),
    }
}

/// A task that was never tried and carries nothing; what a test is about differs, with `..task(…)`.
pub(crate) fn task(id: &str, scene: &str, due: Timestamp) -> Task {
    Task {
        id: id.into(),
        scene: scene.into(),
        kind: Kind::Work,
        attempt: 1,
        due,
        deferral: None,
        first_failed_at: due,
        deadline: None,
        origin: Origin {
            topic: "retry.tasks".into(),
            partition: 0,
            offset: 7,
        },
        failure: None,
        throttled: 0,
        exhausted: None,
        hops: 0,
        held_since: None,
        pending_since: None,
        stopped: None,
        commanded: None,
        replay: None,
        record: Record::default(),
    }
}
