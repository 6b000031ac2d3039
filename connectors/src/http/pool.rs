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
//! A request takes a connection that is kept, else whichever comes first: one given back, or a new one. HTTP/2 is shared, up to as many
//! streams as the target takes, and dialled once for all who wait; HTTP/1.1 is dialled by everyone who waits.
//!
//! A dial has a time of its own. One that fails is the failure of who waited as it began, and for HTTP/2 of all of them: for those who came
//! later another one begins. One that hangs for [`HANGS`] has another one begun beside it, at the name's next address first.
//! Invariant: a connection is used by one request at a time, or speaks HTTP/2; who waits has a dial under way, or a stream to wait for.

use std::collections::VecDeque;
use std::collections::hash_map::RandomState;
use std::future::poll_fn;
use std::hash::BuildHasher;
use std::net::IpAddr;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use http::header::{HeaderMap, HeaderName};
use http_body_util::Full;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::dial::{Dialed, Dialer, Stage, Undialed};
use super::status::NoAnswer;
use super::wire::{Tap, Wire};
use crate::tls::Alpn;

/// Time between two looks at connections that nobody uses.
const LOOK: Duration = Duration::from_secs(1);

/// Time between two questions for the addresses of a name to which there are connections: so soon a move is followed.
const LOOK_UP: Duration = Duration::from_secs(5);

/// Time that such a question may take.
const LOOK_UP_LIMIT: Duration = Duration::from_secs(5);

/// Idle connections that are kept: more than any scene has calls in flight by default.
const MAX_IDLE: usize = 1024;

/// Age from which a connection that answers 5xx is given up: a target that answers nothing else must not cost a connection for each.
const TRIAL: Duration = Duration::from_secs(1);

/// Time in which a connection must be ready for the next request after an answer.
const READY: Duration = Duration::from_secs(1);

/// Streams that are opened on a connection before the target has said how many it takes. No server says just that, so it tells apart
/// that nothing was said.
const UNSAID: usize = 97;

/// Time in which a target is expected to say so.
const SAY: Duration = Duration::from_millis(500);

/// Time after which a dial is taken to hang, so that another one begins beside it: by then a healthy target has taken a
/// connection and shaken hands, wherever it is. A quarter of the time for a connection, if that is less.
const HANGS: Duration = Duration::from_secs(1);

/// Dials that hang and have another one begun beside them: each costs a socket, and an instance that hangs is one of a few.
const MOST_HANGING: usize = 3;

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

/// The state of a pool.
#[derive(Default)]
struct State {
    /// Connections without a request; the one used last is the last.
    idle: Vec<One>,
    /// Connections that speak HTTP/2.
    two: Vec<Arc<Two>>,
    /// Requests that wait for a connection, longest first.
    waiting: VecDeque<Waiting>,
    /// Dials begun so far.
    dials: u64,
    /// Dials under way.
    dialling: usize,
    /// Dials under way that hang.
    hanging: usize,
    /// The protocol that the target speaks, as far as is known.
    speaks: Speaks,
    /// Connections of earlier epochs are given up.
    epoch: u64,
    /// The addresses that the name has, if it is one and they are known.
    addresses: Option<Vec<IpAddr>>,
    /// Whether somebody looks after idle connections.
    is_kept: bool,
}

/// The protocol of a target.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Speaks {
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

/// The bounds of a connection's life.
struct Life {
    /// The address that it leads to.
    peer: IpAddr,
    /// When it was made.
    born: Instant,
    /// When it is given up, however good.
    until: Instant,
    /// The epoch of the pool in which it was made: see [`State::epoch`].
    epoch: u64,
}

/// A connection that speaks HTTP/1.1.
pub(super) struct One {
    pub(super) sender: http1::SendRequest<Full<Bytes>>,
    pub(super) tap: Arc<Tap>,
    life: Life,
    /// Time without use after which it is given up.
    idle: Duration,
    /// When it last answered; never, if it is new.
    answered: Option<Instant>,
    /// Whether it was kept without a request, be it after its dial, since who waited for it had another one by then.
    was_kept: bool,
}

/// A connection that speaks HTTP/2.
pub(super) struct Two {
    pub(super) sender: h2::client::SendRequest<Bytes>,
    pub(super) tap: Arc<Tap>,
    life: Life,
    /// Streams in use.
    streams: AtomicUsize,
    /// Milliseconds of its life at which it was last used.
    used: AtomicU64,
    /// Answers so far.
    answers: AtomicU64,
    /// Whether no further stream is to be opened.
    is_retired: AtomicBool,
}

/// A connection for a request that waits.
enum Grant {
    /// A connection.
    One(One),
    /// A stream of a connection, counted as in use.
    Two(Arc<Two>),
}

/// A connection for one request.
pub(super) enum Lease {
    /// Of HTTP/1.1.
    One(OneLease),
    /// Of HTTP/2.
    Two(TwoLease),
}

/// A connection of HTTP/1.1 in use; dropped, it is closed.
pub(super) struct OneLease {
    pub(super) one: One,
    pool: Pool,
}

/// A stream of HTTP/2 in use.
pub(super) struct TwoLease {
    pub(super) two: Arc<Two>,
    pool: Pool,
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

/// A dial under way, counted as such.
struct Dialling {
    pool: Pool,
    /// The number of the dial, from 1 on.
    number: u64,
    /// Whether it is counted as one that hangs.
    is_hanging: bool,
}

/// The task that looks after idle connections.
struct Keeper(Weak<Shared>);

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

    /// As many dials as are wanted for those who wait.
    fn dial_enough(&self, state: &mut State) {
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

    /// Looks after idle connections from now on, if nobody does.
    fn keep(&self, state: &mut State) {
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

// === impl State ===

impl State {
    /// A connection that is kept and good, if there is one.
    fn take(&mut self, now: Instant) -> Option<Grant> {
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
    fn share(&mut self) {
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
    fn is_good(&self, life: &Life, now: Instant) -> bool {
        let is_there = self
            .addresses
            .as_ref()
            .is_none_or(|addresses| addresses.contains(&life.peer));
        life.epoch == self.epoch && now < life.until && is_there
    }

    /// Takes out the connections that are not to be used again.
    fn sweep(&mut self, now: Instant, idle: Duration) -> (Vec<One>, Vec<Arc<Two>>) {
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

// === impl One ===

impl One {
    /// Whether it has answered before, or was kept: the target may have closed it meanwhile.
    pub(super) const fn is_reused(&self) -> bool {
        self.was_kept || self.answered.is_some()
    }

    /// Whether it can take a request. A new one takes the first one before it says so.
    fn is_open(&self) -> bool {
        if self.answered.is_some() {
            self.sender.is_ready()
        } else {
            !self.sender.is_closed()
        }
    }
}

// === impl Two ===

impl Two {
    /// Begins to speak HTTP/2, and waits until `deadline` for what the target says of itself.
    async fn open(
        wire: Wire,
        tap: Arc<Tap>,
        life: Life,
        deadline: Instant,
    ) -> Result<Grant, Undialed> {
        let peer = life.peer;
        let failed =
            |error: h2::Error| Undialed::new(NoAnswer::Connect, format!("{peer}: {error}"), true);
        let (sender, mut connection) = h2::client::Builder::new()
            .initial_max_send_streams(UNSAID)
            .enable_push(false)
            .handshake(wire)
            .await
            .map_err(failed)?;
        let said = poll_fn(|context| match Pin::new(&mut connection).poll(context) {
            Poll::Ready(Ok(())) => Poll::Ready(Err(None)),
            Poll::Ready(Err(error)) => Poll::Ready(Err(Some(error))),
            Poll::Pending if connection.max_concurrent_send_streams() == UNSAID => Poll::Pending,
            Poll::Pending => Poll::Ready(Ok(())),
        });
        match timeout_at(deadline, said).await {
            // A target that says nothing may answer all the same.
            Ok(Ok(())) | Err(_) => {}
            Ok(Err(Some(error))) => return Err(failed(error)),
            Ok(Err(None)) => {
                let message = format!("{peer}: closed before a request");
                return Err(Undialed::new(NoAnswer::Connect, message, true));
            }
        }
        let two = Arc::new(Self {
            sender,
            tap,
            life,
            streams: AtomicUsize::new(0),
            used: AtomicU64::new(0),
            answers: AtomicU64::new(0),
            is_retired: AtomicBool::new(false),
        });
        let held = Arc::downgrade(&two);
        tokio::spawn(async move {
            // Its errors are those of the requests that are under way.
            drop(connection.await);
            if let Some(two) = held.upgrade() {
                two.retire();
            }
        });
        Ok(Grant::Two(two))
    }

    /// No further stream is opened.
    pub(super) fn retire(&self) {
        self.is_retired.store(true, Ordering::Relaxed);
    }

    /// Whether it has answered before.
    pub(super) fn is_reused(&self) -> bool {
        self.answers.load(Ordering::Relaxed) > 0
    }

    /// For how long it has not been used.
    fn idle(&self, now: Instant) -> Duration {
        let used = Duration::from_millis(self.used.load(Ordering::Relaxed));
        now.duration_since(self.life.born).saturating_sub(used)
    }
}

// === impl OneLease ===

impl OneLease {
    /// The head of an answer has come.
    pub(super) fn answered(&mut self, status: StatusCode, headers: &HeaderMap) {
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
    pub(super) fn give_back(mut self) {
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
    pub(super) fn answered(&self, status: StatusCode) {
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
