//! A connection in use by one request, and what its answer says of its life.
//!
//! Invariant: what is dropped in the middle of an answer is not used again.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use http::StatusCode;
use http::header::{HeaderMap, HeaderName};
use tokio::time::{Instant, timeout};

use super::Pool;
use super::connection::{One, Two};

/// Age from which a connection that answers 5xx is given up: a target that answers nothing else must not cost a connection for each.
const TRIAL: Duration = Duration::from_secs(1);

/// Time in which a connection must be ready for the next request after an answer.
const READY: Duration = Duration::from_secs(1);

/// A connection for one request.
pub(in crate::http) enum Lease {
    /// Of HTTP/1.1.
    One(OneLease),
    /// Of HTTP/2.
    Two(TwoLease),
}

/// A connection of HTTP/1.1 in use; dropped, it is closed.
pub(in crate::http) struct OneLease {
    pub(in crate::http) one: One,
    pub(super) pool: Pool,
}

/// A stream of HTTP/2 in use.
pub(in crate::http) struct TwoLease {
    pub(in crate::http) two: Arc<Two>,
    pub(super) pool: Pool,
}

// === impl OneLease ===

impl OneLease {
    /// The head of an answer has come.
    pub(in crate::http) fn answered(&mut self, status: StatusCode, headers: &HeaderMap) {
        let Self { one, pool } = self;
        let now = Instant::now();
        one.answered = Some(now);
        one.idle = keep_alive(headers)
            .unwrap_or(Duration::MAX)
            .min(pool.0.limits.idle);
        if status.is_server_error() {
            one.life.until = one.life.until.min(one.life.born + TRIAL);
        }
    }

    /// The answer has been read to its end: the connection is free.
    pub(in crate::http) fn give_back(mut self) {
        if self.one.idle.is_zero() || self.one.sender.is_closed() {
            return;
        }
        if self.one.sender.is_ready() {
            self.put();
            return;
        }
        tokio::spawn(async move {
            if let Ok(Ok(())) = timeout(READY, self.one.sender.ready()).await {
                self.put();
            }
        });
    }

    /// Gives the connection back: it can take the next request.
    fn put(self) {
        let Self { one, pool } = self;
        let mut state = pool.lock();
        if state.is_good(&one.life, Instant::now()) {
            pool.put(&mut state, one);
        }
    }
}

// === impl TwoLease ===

impl TwoLease {
    /// The head of an answer has come.
    pub(in crate::http) fn answered(&self, status: StatusCode) {
        let Self { two, .. } = self;
        two.answers.fetch_add(1, Ordering::Relaxed);
        if status.is_server_error() && two.life.born.elapsed() >= TRIAL {
            two.retire();
        }
    }
}

impl Drop for TwoLease {
    fn drop(&mut self) {
        let Self { two, pool } = self;
        let used = two.life.born.elapsed().as_millis();
        let used = u64::try_from(used).unwrap_or(u64::MAX);
        two.used.store(used, Ordering::Relaxed);
        two.streams.fetch_sub(1, Ordering::Relaxed);
        let mut state = pool.lock();
        if !state.waiting.is_empty() {
            state.share();
        }
    }
}

/// How long the target says that it keeps an idle connection, less a second for the way.
fn keep_alive(headers: &HeaderMap) -> Option<Duration> {
    const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
    let value = headers.get(KEEP_ALIVE)?.to_str().ok()?;
    let seconds = value.split(',').find_map(|parameter| {
        let (name, seconds) = parameter.split_once('=')?;
        let seconds = name
            .trim()
            .eq_ignore_ascii_case("timeout")
            .then(|| seconds.trim().trim_matches('"'))?;
        seconds.parse::<u32>().ok()
    })?;
    Some(Duration::from_secs(seconds.saturating_sub(1).into()))
}
