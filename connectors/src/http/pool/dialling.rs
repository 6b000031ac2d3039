//! Dials: how many are under way for those who wait, and what comes of each.
//!
//! Not the dial itself. Invariant: who waits has a dial under way that is not known to hang, as far as there may be so many.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::pin::pin;
use std::time::Duration;

use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::time::{Instant, timeout};

use super::super::dial::{Dialed, Undialed};
use super::super::status::NoAnswer;
use super::super::wire::Wire;
use super::connection::{Grant, Life, One, SAY, Two};
use super::state::{Speaks, State};
use super::{Pool, Shared};
use crate::tls::Alpn;

/// Time after which a dial is taken to hang, so that another one begins beside it: by then a healthy target has taken a
/// connection and shaken hands, wherever it is. A quarter of the time for a connection, if that is less.
const HANGS: Duration = Duration::from_secs(1);

/// Dials that hang and have another one begun beside them: each costs a socket, and an instance that hangs is one of a few.
const MOST_HANGING: usize = 3;

/// A dial under way, counted as such.
struct Dialling {
    pool: Pool,
    /// The number of the dial, from 1 on.
    number: u64,
    /// Whether it is counted as one that hangs.
    is_hanging: bool,
}

// === impl Pool ===

impl Pool {
    /// As many dials as are wanted for those who wait.
    pub(super) fn dial_enough(&self, state: &mut State) {
        let wanted = match state.speaks {
            Speaks::Unknown | Speaks::Two => state.waiting.len().min(1),
            Speaks::One | Speaks::OneOnly => state.waiting.len(),
        };
        // Nobody depends on dials that hang.
        let beside = if wanted > 0 {
            state.hanging.min(MOST_HANGING)
        } else {
            0
        };
        while state.dialling < wanted + beside {
            state.dials += 1;
            state.dialling += 1;
            let dialling = Dialling {
                pool: self.clone(),
                number: state.dials,
                is_hanging: false,
            };
            let offer = match state.speaks {
                Speaks::Unknown | Speaks::One | Speaks::Two => Alpn::Any,
                Speaks::OneOnly => Alpn::Http1,
            };
            let (epoch, skip) = (state.epoch, state.hanging);
            tokio::spawn(dialling.run(offer, epoch, skip));
        }
    }

    /// Makes a connection, to the addresses after the first `skip` ones before those.
    async fn dial(&self, offer: Alpn, epoch: u64, skip: usize) -> Result<Grant, Undialed> {
        let Shared {
            dialer,
            limits,
            stage,
            ..
        } = &*self.0;
        let born = Instant::now();
        let deadline = born + limits.connect;
        let Dialed {
            stream,
            peer,
            is_two,
        } = dialer.dial(offer, skip, stage, deadline).await?;
        // Connections that were made together are not given up together.
        let jitter = RandomState::new().hash_one(peer) % 256;
        let life = Life {
            peer,
            born,
            until: born + limits.age - limits.age / 1024 * u32::try_from(jitter).unwrap_or(0),
            epoch,
        };
        let (wire, tap) = Wire::new(stream);
        if is_two {
            let timeout_at = deadline.min(Instant::now() + SAY);
            return Two::open(wire, tap, life, timeout_at).await;
        }
        let shaken = http1::Builder::new().handshake(TokioIo::new(wire)).await;
        let (sender, connection) = shaken
            .map_err(|error| Undialed::new(NoAnswer::Connect, format!("{peer}: {error}"), true))?;
        // Its errors are those of the request that is under way, if there is one.
        tokio::spawn(async move { drop(connection.await) });
        let idle = limits.idle;
        Ok(Grant::One(One {
            sender,
            tap,
            life,
            idle,
            answered: None,
            was_kept: false,
        }))
    }

    /// The dial of this number has ended.
    fn dialled(&self, number: u64, dialled: Result<Grant, Undialed>) {
        let mut state = self.lock();
        match dialled {
            Ok(Grant::One(one)) => {
                if state.speaks != Speaks::OneOnly {
                    state.speaks = Speaks::One;
                }
                self.put(&mut state, one);
            }
            Ok(Grant::Two(two)) => {
                if state.speaks != Speaks::OneOnly {
                    state.speaks = Speaks::Two;
                    state.two.push(two);
                    self.keep(&mut state);
                    state.share();
                }
            }
            Err(undialed) => {
                let all = matches!(state.speaks, Speaks::Unknown | Speaks::Two);
                // Who came after it began is not to have its failure: such a one has time left, and another dial.
                while let Some(waiting) = state.waiting.pop_front() {
                    if waiting.dials >= number {
                        state.waiting.push_front(waiting);
                        break;
                    }
                    if waiting.grant.send(Err(undialed.clone())).is_ok() && !all {
                        break;
                    }
                }
            }
        }
        self.dial_enough(&mut state);
    }
}

// === impl Dialling ===

impl Dialling {
    /// Makes a connection for those who wait; has another one begun beside it if it hangs.
    async fn run(mut self, offer: Alpn, epoch: u64, skip: usize) {
        let pool = self.pool.clone();
        let mut dial = pin!(pool.dial(offer, epoch, skip));
        let soon = HANGS.min(pool.0.limits.connect / 4);
        let dialled = if let Ok(dialled) = timeout(soon, &mut dial).await {
            dialled
        } else {
            self.hangs();
            dial.await
        };
        let number = self.number;
        drop(self);
        pool.dialled(number, dialled);
    }

    /// Counts the dial as one that hangs: those who wait are not to depend on it.
    fn hangs(&mut self) {
        let mut state = self.pool.lock();
        self.is_hanging = true;
        state.hanging += 1;
        self.pool.dial_enough(&mut state);
    }
}

impl Drop for Dialling {
    fn drop(&mut self) {
        let mut state = self.pool.lock();
        state.dialling -= 1;
        state.hanging -= usize::from(self.is_hanging);
    }
}
