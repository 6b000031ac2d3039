//! Which tests run beside each other: a few that mostly wait, fewer beside one that judges how long something takes.
//!
//! The harness starts as many as `RUST_TEST_THREADS` says, by default one for each processor. Each has topics, a group and a target of its
//! own; what they share are the broker and the processors.

use std::sync::{Condvar, Mutex, PoisonError};

/// Tests that run beside each other at most: each starts a few processes, which wait for Kafka and for the clock most of the time.
const PLACES: usize = 6;

/// The places that nobody has, of this process.
static FREE: (Mutex<usize>, Condvar) = (Mutex::new(PLACES), Condvar::new());

/// Some places, until this is dropped.
pub(crate) struct Places(usize);

// === impl Places ===

impl Places {
    /// One place.
    pub(crate) fn one() -> Self {
        Self::take(1)
    }

    /// Half of all places, for a test that judges times: two of them run beside each other, or one beside few others.
    pub(crate) fn half() -> Self {
        Self::take(PLACES / 2)
    }

    fn take(places: usize) -> Self {
        let (free, changed) = &FREE;
        let free = free.lock().unwrap_or_else(PoisonError::into_inner);
        let free = changed.wait_while(free, |free| *free < places);
        *free.unwrap_or_else(PoisonError::into_inner) -= places;
        Self(places)
    }
}

impl Drop for Places {
    fn drop(&mut self) {
        let (free, changed) = &FREE;
        *free.lock().unwrap_or_else(PoisonError::into_inner) += self.0;
        changed.notify_all();
    }
}
