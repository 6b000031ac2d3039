//! What tests of the engine begin with.

use retide_core::{Kind, Origin, Record, Task, Timestamp};

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
        commanded: None,
        record: Record::default(),
    }
}
