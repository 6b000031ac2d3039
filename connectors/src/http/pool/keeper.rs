//! Looking after connections that nobody uses: what is too old, leads elsewhere or was made by other rules is given up.
//!
//! Invariant: as long as a pool holds a connection, one task looks after it.

use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::state::State;
use super::{Pool, Shared};

/// Time between two looks at connections that nobody uses.
const LOOK: Duration = Duration::from_secs(1);

/// Time between two questions for the addresses of a name to which there are connections: so soon a move is followed.
const LOOK_UP: Duration = Duration::from_secs(5);

/// Time that such a question may take.
const LOOK_UP_LIMIT: Duration = Duration::from_secs(5);

/// The task that looks after idle connections.
struct Keeper(Weak<Shared>);

// === impl Pool ===

impl Pool {
    /// Looks after idle connections from now on, if nobody does.
    pub(super) fn keep(&self, state: &mut State) {
        if state.is_kept {
            return;
        }
        state.is_kept = true;
        let mut keeper = Keeper(Arc::downgrade(&self.0));
        tokio::spawn(async move {
            let mut looked_up = Instant::now();
            loop {
                sleep(LOOK).await;
                let Some(pool) = keeper.0.upgrade().map(Pool) else {
                    return;
                };
                if looked_up.elapsed() >= LOOK_UP {
                    let limit = Instant::now() + LOOK_UP_LIMIT;
                    let found = pool.0.dialer.refresh(LOOK_UP, limit).await;
                    looked_up = Instant::now();
                    if let Some(addresses) = found {
                        pool.found(addresses);
                    }
                }
                if pool.0.dialer.has_changed() {
                    pool.renew();
                }
                let mut state = pool.lock();
                let bad = state.sweep(Instant::now(), pool.0.limits.idle);
                let is_over = state.idle.is_empty() && state.two.is_empty();
                if is_over {
                    state.is_kept = false;
                }
                drop(state);
                drop(bad);
                if is_over {
                    keeper.dismiss();
                    return;
                }
            }
        });
    }
}

// === impl Keeper ===

impl Keeper {
    /// Nothing is left to look after, and the pool knows.
    fn dismiss(&mut self) {
        self.0 = Weak::new();
    }
}

impl Drop for Keeper {
    /// Steps down with its runtime: whoever keeps the next connection looks after the pool.
    fn drop(&mut self) {
        if let Some(pool) = self.0.upgrade().map(Pool) {
            pool.lock().is_kept = false;
        }
    }
}
