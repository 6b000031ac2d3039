//! What a pool holds: connections that nobody uses, requests that wait for one, and what is known of the target.
//!
//! Pure but for the counts of streams: the time is told. Invariant: a connection that may not be used any more is not given.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::Instant;

use super::Waiting;
use super::connection::{Grant, Life, One, Two};

/// The state of a pool.
#[derive(Default)]
pub(super) struct State {
    /// Connections without a request; the one used last is the last.
    pub(super) idle: Vec<One>,
    /// Connections that speak HTTP/2.
    pub(super) two: Vec<Arc<Two>>,
    /// Requests that wait for a connection, longest first.
    pub(super) waiting: VecDeque<Waiting>,
    /// Dials begun so far.
    pub(super) dials: u64,
    /// Dials under way.
    pub(super) dialling: usize,
    /// Dials under way that hang.
    pub(super) hanging: usize,
    /// The protocol that the target speaks, as far as is known.
    pub(super) speaks: Speaks,
    /// Connections of earlier epochs are given up.
    pub(super) epoch: u64,
    /// The addresses that the name has, if it is one and they are known.
    pub(super) addresses: Option<Vec<IpAddr>>,
    /// Whether somebody looks after idle connections.
    pub(super) is_kept: bool,
}

/// The protocol of a target.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Speaks {
    /// Nothing is known yet.
    #[default]
    Unknown,
    /// HTTP/1.1, as it has chosen.
    One,
    /// HTTP/2.
    Two,
    /// HTTP/1.1, for it has asked for that in HTTP/2: nothing else is offered.
    OneOnly,
}

// === impl State ===

impl State {
    /// A connection that is kept and good, if there is one.
    pub(super) fn take(&mut self, now: Instant) -> Option<Grant> {
        if let Some(two) = self.stream(now) {
            return Some(Grant::Two(two));
        }
        while let Some(one) = self.idle.pop() {
            let answered = one.answered.unwrap_or(one.life.born);
            if self.is_good(&one.life, now)
                && now.duration_since(answered) < one.idle
                && one.is_open()
            {
                return Some(Grant::One(one));
            }
        }
        None
    }

    /// A stream of a connection that has one to spare, counted as in use.
    fn stream(&self, now: Instant) -> Option<Arc<Two>> {
        let two = self.two.iter().find(|two| {
            !two.is_retired.load(Ordering::Relaxed)
                && self.is_good(&two.life, now)
                && two.streams.load(Ordering::Relaxed) < two.sender.current_max_send_streams()
        })?;
        two.streams.fetch_add(1, Ordering::Relaxed);
        Some(Arc::clone(two))
    }

    /// Gives those who wait the streams that are to spare.
    pub(super) fn share(&mut self) {
        let now = Instant::now();
        while let Some(waiting) = self.waiting.pop_front() {
            if waiting.grant.is_closed() {
                continue;
            }
            let Some(two) = self.stream(now) else {
                self.waiting.push_front(waiting);
                return;
            };
            if let Err(Ok(Grant::Two(two))) = waiting.grant.send(Ok(Grant::Two(two))) {
                two.streams.fetch_sub(1, Ordering::Relaxed);
            }
        }
    }

    /// Whether a connection may be used at `now`.
    pub(super) fn is_good(&self, life: &Life, now: Instant) -> bool {
        let is_there = self
            .addresses
            .as_ref()
            .is_none_or(|addresses| addresses.contains(&life.peer));
        life.epoch == self.epoch && now < life.until && is_there
    }

    /// Takes out the connections that are not to be used again.
    pub(super) fn sweep(&mut self, now: Instant, idle: Duration) -> (Vec<One>, Vec<Arc<Two>>) {
        let all = std::mem::take(&mut self.idle);
        let (good, bad) = all.into_iter().partition(|one| {
            let answered = one.answered.unwrap_or(one.life.born);
            self.is_good(&one.life, now)
                && now.duration_since(answered) < one.idle
                && !one.sender.is_closed()
        });
        self.idle = good;
        let all = std::mem::take(&mut self.two);
        let (good, bad_two) = all.into_iter().partition(|two| {
            let is_used = two.streams.load(Ordering::Relaxed) > 0;
            !two.is_retired.load(Ordering::Relaxed)
                && self.is_good(&two.life, now)
                && (is_used || two.idle(now) < idle)
        });
        self.two = good;
        (bad, bad_two)
    }
}
