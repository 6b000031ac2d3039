//! The connections to one target: kept while they are good, made anew, given up.
//!
//! | a connection is not used again | since |
//! | --- | --- |
//! | idle for `idle_timeout`, or as long as the target said less a second | servers close idle ones, and may do so as a request comes |
//! | `max_age` after it was made, each a little earlier | a target that moves must be followed, also by a busy connection |
//! | after a request that ended without an answer, and all that have not been used since | what is behind it may be gone |
//! | a second after it was made, if it answers 5xx | the next one may lead to a healthy instance |
//! | to an address that the name does not have any more | the target has moved |
//! | after the breaker has opened | its probes must not ask what has failed |
//! | after the files of its TLS have changed | what they say now is what counts |
//!
//! | module | what |
//! | --- | --- |
//! | `connection` | one connection, and how long it lives |
//! | `lease` | one in use by a request |
//! | `state` | those that nobody uses, and who waits |
//! | `dialling` | dials under way |
//! | `keeper` | who looks after those that nobody uses |
//!
//! A request takes a connection that is kept, else whichever comes first: one given back, or a new one. HTTP/2 is shared, up to as many
//! streams as the target takes, and dialled once for all who wait; HTTP/1.1 is dialled by everyone who waits.
//!
//! A dial has a time of its own. One that fails is the failure of who waited as it began, and for HTTP/2 of all of them: for those who came
//! later another one begins. One that hangs for `HANGS` has another one begun beside it, at the name's next address first.
//! Invariant: a connection is used by one request at a time, or speaks HTTP/2; who waits has a dial under way, or a stream to wait for.

mod connection;
mod dialling;
mod keeper;
mod lease;
mod state;

use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};

use super::dial::{Dialer, Stage, Undialed};
use super::status::NoAnswer;

use self::connection::{Grant, One};
use self::state::{Speaks, State};

pub(super) use self::lease::{Lease, OneLease, TwoLease};

/// Idle connections that are kept: more than any scene has calls in flight by default.
const MAX_IDLE: usize = 1024;

/// How long connections live.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Until there is one, at most.
    pub(super) connect: Duration,
    /// Without use.
    pub(super) idle: Duration,
    /// In all.
    pub(super) age: Duration,
}

/// A pool of connections to one target.
#[derive(Clone)]
pub(super) struct Pool(Arc<Shared>);

/// The part of a pool that all its users share.
struct Shared {
    dialer: Dialer,
    limits: Limits,
    /// The stage of the latest dial.
    stage: Stage,
    state: Mutex<State>,
}

/// The side of the pool of a request that waits.
struct Waiting {
    grant: oneshot::Sender<Result<Grant, Undialed>>,
    /// Dials that had begun when it came.
    dials: u64,
}

/// A request that waits. A connection that it was given and has not taken goes back.
struct Waiter {
    granted: oneshot::Receiver<Result<Grant, Undialed>>,
    pool: Pool,
}

// === impl Pool ===

impl Pool {
    /// A pool of connections that `dialer` makes; there are none yet.
    pub(super) fn new(dialer: Dialer, limits: Limits) -> Self {
        let speaks = if dialer.is_secure() {
            Speaks::Unknown
        } else {
            Speaks::OneOnly
        };
        Self(Arc::new(Shared {
            dialer,
            limits,
            stage: Stage::default(),
            state: Mutex::new(State {
                speaks,
                ..State::default()
            }),
        }))
    }

    /// A connection for a request, kept or new, by `deadline`.
    pub(super) async fn acquire(&self, deadline: Instant) -> Result<Lease, Undialed> {
        let mut waiter = {
            let mut state = self.lock();
            if let Some(grant) = state.take(Instant::now()) {
                drop(state);
                return Ok(self.lease(grant));
            }
            let (grant, granted) = oneshot::channel();
            state.waiting.retain(|waiting| !waiting.grant.is_closed());
            let dials = state.dials;
            state.waiting.push_back(Waiting { grant, dials });
            self.dial_enough(&mut state);
            let pool = self.clone();
            Waiter { granted, pool }
        };
        match timeout_at(deadline, &mut waiter.granted).await {
            Ok(Ok(granted)) => granted.map(|grant| self.lease(grant)),
            // Whoever grants has gone with its runtime.
            Ok(Err(_)) => {
                let message = "the connection was given up as it was made".to_owned();
                Err(Undialed::new(NoAnswer::Connect, message, false))
            }
            Err(_) => {
                let way = self.0.stage.way();
                let message = match way {
                    NoAnswer::Dns => "no answer of the name service in time",
                    NoAnswer::Tls => "no TLS handshake in time",
                    _ => "no connection in time",
                };
                Err(Undialed::new(way, message.to_owned(), false))
            }
        }
    }

    /// Gives up every connection, once its requests have ended.
    pub(super) fn renew(&self) {
        let mut state = self.lock();
        state.epoch += 1;
        let idle = std::mem::take(&mut state.idle);
        let two = std::mem::take(&mut state.two);
        drop(state);
        for two in &two {
            two.retire();
        }
        drop((idle, two));
    }

    /// Gives up the connections that have not answered since `since`, when a request began that has failed.
    pub(super) fn suspect(&self, since: Instant) {
        let mut state = self.lock();
        let all = std::mem::take(&mut state.idle);
        let (good, bad): (Vec<_>, Vec<_>) = all
            .into_iter()
            .partition(|one| one.answered.is_some_and(|answered| answered > since));
        state.idle = good;
        drop(state);
        drop(bad);
    }

    /// The cause in words of a connection that ended with this error, if TLS is to blame.
    pub(super) fn tls_cause(&self, error: &(dyn std::error::Error + 'static)) -> Option<String> {
        self.0.dialer.tls_cause(error)
    }

    /// HTTP/1.1 only from now on: the target has asked for it.
    pub(super) fn fall_back(&self) {
        self.lock().speaks = Speaks::OneOnly;
        self.renew();
    }

    /// A connection is free, and new or good: for who waits, else to be kept.
    fn put(&self, state: &mut State, one: One) {
        let mut grant = Grant::One(one);
        while let Some(waiting) = state.waiting.pop_front() {
            match waiting.grant.send(Ok(grant)) {
                Ok(()) => return,
                Err(Ok(back)) => grant = back,
                Err(Err(_)) => unreachable!("a connection was sent"),
            }
        }
        if let Grant::One(mut one) = grant
            && state.idle.len() < MAX_IDLE
        {
            one.was_kept = true;
            state.idle.push(one);
            self.keep(state);
        }
    }

    /// The name has these addresses: connections to others are not used again.
    pub(super) fn found(&self, addresses: Vec<IpAddr>) {
        self.lock().addresses = Some(addresses);
    }

    /// The dialer of the pool.
    #[cfg(test)]
    pub(super) fn dialer(&self) -> &Dialer {
        &self.0.dialer
    }

    /// The lease of what was granted.
    fn lease(&self, grant: Grant) -> Lease {
        let pool = self.clone();
        match grant {
            Grant::One(one) => Lease::One(OneLease { one, pool }),
            Grant::Two(two) => Lease::Two(TwoLease { two, pool }),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing here panics half-way.
        let state = &self.0.state;
        state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Waiter ===

impl Drop for Waiter {
    fn drop(&mut self) {
        self.granted.close();
        if let Ok(Ok(grant)) = self.granted.try_recv() {
            match grant {
                Grant::One(one) => {
                    let mut state = self.pool.lock();
                    self.pool.put(&mut state, one);
                }
                Grant::Two(_) => drop(self.pool.lease(grant)),
            }
        }
    }
}
