//! Waking those that wait: for data, or for the end.
//!
//! Invariant: a change after `changes` was read ends a wait for more than it, so nobody sleeps through a change.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Tells waiting threads that something may have changed.
#[derive(Debug, Default)]
pub(super) struct Notify {
    /// What they wait for.
    state: Mutex<State>,
    /// Rings at every change of it.
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// Changes so far.
    changes: u64,
    /// Whether the broker is about to end.
    stopped: bool,
}

// === impl Notify ===

impl Notify {
    /// Changes so far: read it before you look, and wait for more than it after.
    pub(super) fn changes(&self) -> u64 {
        self.lock().changes
    }

    /// Something may have changed.
    pub(super) fn notify_all(&self) {
        let mut state = self.lock();
        state.changes = state.changes.wrapping_add(1);
        self.changed.notify_all();
    }

    /// The end, once and for all.
    pub(super) fn stop(&self) {
        self.lock().stopped = true;
        self.changed.notify_all();
    }

    pub(super) fn is_stopped(&self) -> bool {
        self.lock().stopped
    }

    /// Waits for a beat after `seen` or for the end, at most for `patience`.
    pub(super) fn wait_past(&self, seen: u64, patience: Duration) {
        drop(self.wait(patience, |state| !state.stopped && state.changes == seen));
    }

    /// Waits for the end, at most for `patience`; true if it has come.
    pub(super) fn stopped_within(&self, patience: Duration) -> bool {
        self.wait(patience, |state| !state.stopped).stopped
    }

    fn wait(
        &self,
        patience: Duration,
        unchanged: impl Fn(&State) -> bool,
    ) -> MutexGuard<'_, State> {
        self.changed
            .wait_timeout_while(self.lock(), patience, |state| unchanged(state))
            .unwrap_or_else(PoisonError::into_inner)
            .0
    }

    /// The state is two plain values, which a panic cannot leave half done.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
