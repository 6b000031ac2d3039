//! The target: answers as the payload says, and writes down what it saw before it answers.
//!
//! Invariant: an attempt that anyone could know of is in the ledger.

use std::collections::HashSet;
use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, post};
use tokio::net::TcpListener;

use crate::Failed;
use crate::ledger::{Ledger, fingerprint, now_micros};
use crate::orders::{CAMPAIGN, Later};
use crate::plan::{After, Fate, LIMIT_S, REST_S};
use crate::replays::Broken;

/// The target, as others know it.
#[derive(Clone)]
pub(crate) struct Parts {
    /// The port of most tasks.
    pub(crate) all: u16,
    /// The port of its part that asks for rest now and then.
    pub(crate) rested: u16,
    /// The port of its part that may be down.
    pub(crate) forced: u16,
    /// Whether that one is.
    pub(crate) is_down: Arc<AtomicBool>,
    /// The campaigns for whose tasks it is broken.
    pub(crate) broken: Broken,
}

/// What the target keeps.
struct Target {
    /// Where it writes down what it saw.
    ledger: Ledger,
    /// Says later what came of what it took.
    later: Later,
    /// Until when it rests, where it is the one that does, and the tasks that have begun a rest.
    rest: Mutex<(Option<Instant>, HashSet<String>)>,
    /// Whether its part that may be down is.
    is_down: Arc<AtomicBool>,
    /// The campaigns for whose tasks it is broken.
    broken: Broken,
    /// The instant monotonic time is measured from.
    start: Instant,
}

/// Starts a target that writes to `path` and says `later` what it does not know at once.
pub(crate) async fn start(path: &Path, later: Later) -> Result<Parts, Failed> {
    let is_down = Arc::<AtomicBool>::default();
    let broken = Broken::default();
    let target = Arc::new(Target {
        ledger: Ledger::create(path)?,
        later,
        rest: Mutex::default(),
        is_down: Arc::clone(&is_down),
        broken: broken.clone(),
        start: Instant::now(),
    });
    let [all, rested, forced] = [
        post(answer).with_state(Arc::clone(&target)),
        post(rest).with_state(Arc::clone(&target)),
        post(fail).with_state(target),
    ];
    Ok(Parts {
        all: serve(all).await?,
        rested: serve(rested).await?,
        forced: serve(forced).await?,
        is_down,
        broken,
    })
}

/// Serves attempts; gives the port.
async fn serve(route: MethodRouter) -> Result<u16, Failed> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let port = listener.local_addr()?.port();
    let router = Router::new().route("/task", route);
    tokio::spawn(async move { axum::serve(listener, router).await });
    Ok(port)
}

/// One attempt.
async fn answer(State(target): State<Arc<Target>>, headers: HeaderMap, body: Bytes) -> Response {
    let seen = Seen::of(&target, &headers, &body);
    let number = seen.number();
    // Between 5 and 60 ms, so that there is something in flight when a process dies.
    let chance = u64::from(body.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte)));
    let fate = if seen.campaign.is_empty() {
        Fate::of(&body)
    } else {
        replayed(&target, &seen.campaign, chance)
    };
    let status = match fate {
        Fate::Later(_) if number == 1 => StatusCode::ACCEPTED,
        Fate::Later(_) => StatusCode::OK,
        Fate::Fails(times) | Fate::Spent(times) if number > times => StatusCode::OK,
        Fate::Fails(_) | Fate::Spent(_) | Fate::Never => StatusCode::SERVICE_UNAVAILABLE,
        Fate::Refused => StatusCode::BAD_REQUEST,
        // Those are asked for at the other ports.
        Fate::Rested | Fate::Rests | Fate::Forced => StatusCode::NOT_FOUND,
    };
    let limit = match (fate, status) {
        (Fate::Later(After::Limit), StatusCode::ACCEPTED) => Some(Duration::from_secs(LIMIT_S)),
        // Longer than a campaign.
        (_, StatusCode::ACCEPTED) => Some(Duration::from_hours(1)),
        (_, _) => None,
    };
    seen.write(&target, status, (0, limit.unwrap_or_default()));
    if let (Fate::Later(after), Some(_)) = (fate, limit) {
        // From before the answer to some seconds after it.
        target
            .later
            .say(seen.id, after, Duration::from_millis(chance * 20));
    }
    tokio::time::sleep(Duration::from_millis(5 + chance % 56)).await;
    let Some(limit) = limit else {
        return status.into_response();
    };
    let limit = format!("{}s", limit.as_secs());
    let headers = [
        ("retry-control", "pending".to_owned()),
        ("retry-pending-for", limit),
    ];
    (status, headers).into_response()
}

/// How it answers a task that a campaign has replayed: it has been mended since, for most of them, unless it is broken once more.
fn replayed(target: &Target, campaign: &str, chance: u64) -> Fate {
    if target.broken.has(campaign) {
        return Fate::Never;
    }
    // Another one for each campaign.
    let chance = campaign
        .bytes()
        .fold(chance, |sum, byte| sum + u64::from(byte));
    match chance % 16 {
        0 => Fate::Refused,
        1 | 2 => Fate::Fails(1),
        _ => Fate::Fails(0),
    }
}

/// One attempt at the part that may be down.
async fn fail(State(target): State<Arc<Target>>, headers: HeaderMap, body: Bytes) -> StatusCode {
    let status = if target.is_down.load(Ordering::Acquire) {
        StatusCode::SERVICE_UNAVAILABLE
    } else {
        StatusCode::OK
    };
    Seen::of(&target, &headers, &body).write(&target, status, (0, Duration::ZERO));
    status
}

/// One attempt at the part that rests now and then.
async fn rest(State(target): State<Arc<Target>>, headers: HeaderMap, body: Bytes) -> Response {
    let seen = Seen::of(&target, &headers, &body);
    let now = Instant::now();
    let left = {
        let mut rest = target.rest.lock().unwrap_or_else(PoisonError::into_inner);
        let (until, begun) = &mut *rest;
        if Fate::of(&body) == Fate::Rests && begun.insert(seen.id.clone()) {
            *until = Some(now + Duration::from_secs(REST_S));
        }
        let left = until.map(|until| until.saturating_duration_since(now));
        left.filter(|left| !left.is_zero())
    };
    let Some(left) = left else {
        seen.write(&target, StatusCode::OK, (0, Duration::ZERO));
        return StatusCode::OK.into_response();
    };
    let seconds = left.as_secs() + 1;
    let status = StatusCode::TOO_MANY_REQUESTS;
    seen.write(&target, status, (seconds, Duration::ZERO));
    (status, [("retry-after", seconds.to_string())]).into_response()
}

/// An attempt, as it came.
struct Seen {
    /// When, by the wall.
    wall: u128,
    /// When, since the start.
    steady: Duration,
    /// The task.
    id: String,
    /// Which attempt it says it is.
    attempt: String,
    /// When it was due.
    due: String,
    /// What is to be the same for all attempts of the task.
    key: String,
    /// The record that it is about.
    origin: String,
    /// What identifies its body.
    body: String,
    /// The campaign that has replayed it, if one has.
    campaign: String,
}

// === impl Seen ===

impl Seen {
    /// What has come.
    fn of(target: &Target, headers: &HeaderMap, body: &[u8]) -> Self {
        let (wall, steady) = (now_micros(), target.start.elapsed());
        let text = |name: &str| {
            let value = headers.get(name).and_then(|value| value.to_str().ok());
            value.unwrap_or_default().replace(['\t', '\n'], " ")
        };
        Self {
            wall,
            steady,
            id: text("retry-id"),
            attempt: text("retry-attempt"),
            due: text("retry-due-at"),
            key: text("idempotency-key"),
            origin: text("retry-origin"),
            body: fingerprint(body),
            campaign: text(CAMPAIGN),
        }
    }

    /// Which attempt it is; 0 if it does not say so.
    fn number(&self) -> u32 {
        self.attempt.parse().unwrap_or_default()
    }

    /// Writes it down, with the answer: the seconds of rest that it asks for, and the limit of what is answered later.
    fn write(&self, target: &Target, status: StatusCode, (rest, limit): (u64, Duration)) {
        target.ledger.write(&[
            &self.wall.to_string(),
            &self.steady.as_micros().to_string(),
            &self.id,
            &self.attempt,
            &self.due,
            &self.key,
            &self.body,
            &self.origin,
            status.as_str(),
            &(rest * 1_000).to_string(),
            &limit.as_millis().to_string(),
            &self.campaign,
        ]);
    }
}
