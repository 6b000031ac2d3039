//! The client: sends a request over a connection of the pool, and again where it was certainly not processed.
//!
//! | what happens | and so |
//! | --- | --- |
//! | no connection, no TLS; a request that was never written | once more, for [`PATIENCE`] at most |
//! | a kept connection that breaks before a byte of the answer; 408 on one; `GOAWAY` above the last stream; `REFUSED_STREAM` | once more, until the time is up; `unsent` instead with `resend = false` |
//! | `HTTP_1_1_REQUIRED` | once more, by HTTP/1.1 |
//! | a status line, whatever follows or does not follow | the answer |
//! | a new connection that breaks, half a status line | `reply` |
//! | something else than HTTP | `malformed` |
//!
//! The first time at once, then after pauses that grow a little. Invariant: what may have been processed is not sent again, but on a kept
//! connection, of which servers close many as the next request comes; for that case requests carry an idempotency key.

use std::error::Error;
use std::time::Duration;

use bytes::Bytes;
use h2::Reason;
use http::header::{CONNECTION, HOST, HeaderMap, HeaderValue};
use http::{Request, StatusCode, Uri};
use http_body_util::Full;
use tokio::time::{Instant, sleep_until, timeout_at};

use super::body::Body;
use super::dial::Undialed;
use super::head::{self, Head};
use super::pool::{Lease, OneLease, Pool, TwoLease};
use super::status::NoAnswer;

/// Time for which a target that refuses connections is asked again within an attempt: a restart takes as long, as a rule.
const PATIENCE: Duration = Duration::from_secs(1);

/// The first pause before a request is sent once more; the time before it there is none.
const FIRST_PAUSE: Duration = Duration::from_millis(4);

/// The longest pause.
const LAST_PAUSE: Duration = Duration::from_millis(64);

/// Part of the time of an attempt that must be left for a request to be sent again: one that is cut short may be processed, and is a timeout.
const LAST_SHARE: u32 = 8;

/// Words for a kept connection that breaks before a byte of the answer.
const CUT: &str = "the target closed a kept connection as the request came";

/// Sends requests to one target.
pub(super) struct Client {
    pool: Pool,
    /// The address as HTTP/1.1 sends it: path and query.
    origin: Uri,
    /// The address as HTTP/2 sends it.
    absolute: Uri,
    /// Host and port, for HTTP/1.1.
    host: HeaderValue,
    /// Time until there is a connection.
    connect: Duration,
    /// Whether a request is sent again that was sent and not processed.
    resend: bool,
}

/// An answer, up to its body.
pub(super) struct Answer {
    /// The status.
    pub(super) status: StatusCode,
    /// The headers.
    pub(super) headers: HeaderMap,
    /// The body, as far as it has come.
    pub(super) body: Body,
}

/// No answer came.
#[derive(Debug)]
pub(super) struct NotAnswered {
    /// In which way.
    pub(super) way: NoAnswer,
    /// In words.
    pub(super) message: String,
}

/// A request of the attempt was cut off on a kept connection.
#[derive(Clone, Copy)]
struct Cut;

/// The end of sending a request once.
#[expect(
    clippy::large_enum_variant,
    reason = "there is one for a moment, and nearly always it is the large one"
)]
enum Sent {
    /// An answer.
    Answered(Answer),
    /// No answer, and it may have been processed.
    Ended(NotAnswered),
    /// No connection.
    Undialed(Undialed),
    /// A connection, and not a byte on it.
    Unwritten(String),
    /// Sent, and certainly not processed.
    TurnedAway(String),
    /// Sent on a kept connection that broke before a byte of the answer: as good as certainly not processed.
    Cut(String),
}

// === impl NotAnswered ===

impl NotAnswered {
    /// The end of an attempt, of which a request before may have been cut off: then nobody knows for certain that it has not been seen.
    fn after(cut: Option<Cut>, way: NoAnswer, message: String) -> Self {
        if cut.is_none() || way == NoAnswer::Unsent {
            return Self { way, message };
        }
        Self {
            way: NoAnswer::Unsent,
            message: format!("{CUT}, and then: {message}"),
        }
    }
}

// === impl Client ===

impl Client {
    /// A client for `uri`, which connects to nothing yet.
    pub(super) fn new(pool: Pool, uri: &Uri, connect: Duration, resend: bool) -> Self {
        let origin = uri.path_and_query().map_or("/", |path| path.as_str());
        let host = uri.authority().map_or("", |authority| authority.as_str());
        Self {
            pool,
            origin: origin.parse().unwrap_or_else(|_| Uri::from_static("/")),
            absolute: uri.clone(),
            host: HeaderValue::from_str(host).unwrap_or(HeaderValue::from_static("")),
            connect,
            resend,
        }
    }

    /// New connections from now on.
    pub(super) fn renew(&self) {
        self.pool.renew();
    }

    /// The name of the target has moved to these addresses.
    #[cfg(test)]
    pub(super) fn found(&self, addresses: Vec<std::net::IpAddr>) {
        self.pool.found(addresses);
    }

    /// The name of the target has the addresses that these are at each moment.
    #[cfg(test)]
    pub(super) fn resolves_by(&self, names: super::dial::Names) {
        self.pool.dialer().resolves_by(names);
    }

    /// Sends the request that `make` makes, as often as is right, until there is an answer or none can come any more by `deadline`.
    pub(super) async fn send(
        &self,
        make: impl Fn() -> Request<Full<Bytes>>,
        deadline: Instant,
    ) -> Result<Answer, NotAnswered> {
        let mut pause = Duration::ZERO;
        let mut failing = None;
        let mut cut = None;
        let last = deadline - deadline.duration_since(Instant::now()) / LAST_SHARE;
        loop {
            let (way, message) = match self.send_once(&make, deadline).await {
                Sent::Answered(answer) => return Ok(answer),
                Sent::Ended(end) => return Err(end),
                Sent::Undialed(Undialed {
                    way,
                    message,
                    is_passing,
                }) => {
                    let since: &mut Instant = failing.get_or_insert_with(Instant::now);
                    if !is_passing || since.elapsed() >= PATIENCE {
                        return Err(NotAnswered::after(cut, way, message));
                    }
                    (way, message)
                }
                Sent::Unwritten(message) => (NoAnswer::Connect, message),
                Sent::Cut(message) if self.resend => {
                    (failing, cut) = (None, Some(Cut));
                    (NoAnswer::Unsent, message)
                }
                Sent::TurnedAway(message) if self.resend => {
                    failing = None;
                    (NoAnswer::Connect, message)
                }
                Sent::Cut(message) | Sent::TurnedAway(message) => {
                    let way = NoAnswer::Unsent;
                    return Err(NotAnswered { way, message });
                }
            };
            let next = Instant::now() + pause;
            if next >= last {
                return Err(NotAnswered::after(cut, way, message));
            }
            sleep_until(next).await;
            pause = (pause * 2).clamp(FIRST_PAUSE, LAST_PAUSE);
        }
    }

    /// Sends the request once.
    async fn send_once(&self, make: &impl Fn() -> Request<Full<Bytes>>, deadline: Instant) -> Sent {
        let connected = deadline.min(Instant::now() + self.connect);
        match self.pool.acquire(connected).await {
            Ok(Lease::One(lease)) => self.send_one(lease, make(), deadline).await,
            Ok(Lease::Two(lease)) => self.send_two(lease, make(), deadline).await,
            Err(undialed) => Sent::Undialed(undialed),
        }
    }

    /// Sends the request by HTTP/1.1.
    async fn send_one(
        &self,
        mut lease: OneLease,
        mut request: Request<Full<Bytes>>,
        deadline: Instant,
    ) -> Sent {
        *request.uri_mut() = self.origin.clone();
        let headers = request.headers_mut();
        headers.entry(HOST).or_insert_with(|| self.host.clone());
        lease.one.tap.begin();
        let begun = Instant::now();
        let sent = lease.one.sender.try_send_request(request);
        let error = match timeout_at(deadline, sent).await {
            Ok(Ok(response)) => {
                lease.one.tap.end();
                let (parts, incoming) = response.into_parts();
                let (status, headers) = (parts.status, parts.headers);
                if self.resend && lease.one.is_reused() && is_goodbye(status, &headers) {
                    let message = "the target closed an idle connection with 408".to_owned();
                    return Sent::TurnedAway(message);
                }
                lease.answered(status, &headers);
                let body = Body::One { incoming, lease };
                return Sent::Answered(Answer {
                    status,
                    headers,
                    body,
                });
            }
            Ok(Err(mut error)) => {
                if error.take_message().is_some() {
                    return Sent::Unwritten(words(&error.into_error()));
                }
                Some(error.into_error())
            }
            Err(_) => None,
        };
        let glimpse = lease.one.tap.glimpse();
        let end = |way, message| Sent::Ended(NotAnswered { way, message });
        let is_reused = lease.one.is_reused();
        drop(lease);
        let sent = match (head::read(&glimpse.start), error) {
            (
                Head::Answer {
                    status,
                    headers,
                    body,
                },
                _,
            ) => {
                let body = Body::Read(body);
                return Sent::Answered(Answer {
                    status,
                    headers,
                    body,
                });
            }
            (Head::Odd(message), _) => end(NoAnswer::Malformed, message),
            (Head::Cut, None) if !glimpse.gone => {
                let message = "the request could not be written in time".to_owned();
                return Sent::Unwritten(message);
            }
            (Head::Cut, None) => end(NoAnswer::Timeout, "no answer in time".to_owned()),
            (Head::Cut, Some(error)) if !glimpse.gone => return Sent::Unwritten(words(&error)),
            (Head::Cut, Some(_)) if !glimpse.came && is_reused => {
                return Sent::Cut(CUT.to_owned());
            }
            (Head::Cut, Some(error)) if let Some(message) = self.pool.tls_cause(&error) => {
                end(NoAnswer::Tls, message)
            }
            (Head::Cut, Some(error)) => {
                let message = if glimpse.came {
                    "the connection broke within the head of the answer".to_owned()
                } else {
                    format!("the connection broke before an answer: {}", words(&error))
                };
                end(NoAnswer::Reply, message)
            }
        };
        self.pool.suspect(begun);
        sent
    }

    /// Sends the request by HTTP/2.
    async fn send_two(
        &self,
        lease: TwoLease,
        request: Request<Full<Bytes>>,
        deadline: Instant,
    ) -> Sent {
        let (mut parts, body) = request.into_parts();
        parts.uri = self.absolute.clone();
        parts.version = http::Version::HTTP_2;
        parts.headers.remove(HOST);
        let body = body.into_inner().unwrap_or_default();
        let is_reused = lease.two.is_reused();
        let came = lease.two.tap.came();
        let mut sender = lease.two.sender.clone();
        let request = Request::from_parts(parts, ());
        let (response, mut stream) = match sender.send_request(request, body.is_empty()) {
            Ok(sent) => sent,
            Err(error) => {
                lease.two.retire();
                return Sent::Unwritten(words(&error));
            }
        };
        if !body.is_empty() {
            // What fails here fails the answer, too, or it has come already. Memory is no matter: the body is in it anyway.
            let _ = stream.send_data(body, true);
        }
        let error = match timeout_at(deadline, response).await {
            Ok(Ok(response)) => {
                let (parts, incoming) = response.into_parts();
                lease.answered(parts.status);
                return Sent::Answered(Answer {
                    status: parts.status,
                    headers: parts.headers,
                    body: Body::Two { incoming, lease },
                });
            }
            Ok(Err(error)) => error,
            Err(_) => {
                lease.two.retire();
                let (way, message) = (NoAnswer::Timeout, "no answer in time".to_owned());
                return Sent::Ended(NotAnswered { way, message });
            }
        };
        let is_silent = lease.two.tap.came() == came;
        let reason = error.reason();
        if error.is_remote() && reason == Some(Reason::HTTP_1_1_REQUIRED) {
            self.pool.fall_back();
            return Sent::Unwritten("the target asks for HTTP/1.1".to_owned());
        }
        if error.is_go_away() && error.is_remote() {
            // Streams up to the last one that the target takes end in another way.
            lease.two.retire();
            let message = format!(
                "the target closed its connection (GOAWAY): {}",
                words(&error)
            );
            return Sent::TurnedAway(message);
        }
        if error.is_reset() && error.is_remote() && reason == Some(Reason::REFUSED_STREAM) {
            let message = "the target refused the stream (REFUSED_STREAM)".to_owned();
            return Sent::TurnedAway(message);
        }
        lease.two.retire();
        if error.is_io() && is_silent && is_reused {
            return Sent::Cut(CUT.to_owned());
        }
        let (way, message) = if error.is_library() {
            let message = format!("the answer breaks the rules of HTTP/2: {}", words(&error));
            (NoAnswer::Malformed, message)
        } else {
            let message = format!("the connection broke before an answer: {}", words(&error));
            (NoAnswer::Reply, message)
        };
        Sent::Ended(NotAnswered { way, message })
    }
}

/// Whether this is what some servers say as they close an idle connection, which then looks like an answer to the request that crossed it.
/// A request on another connection is what it asks for (RFC 9110, 15.5.9).
fn is_goodbye(status: StatusCode, headers: &HeaderMap) -> bool {
    status == StatusCode::REQUEST_TIMEOUT
        && headers
            .get_all(CONNECTION)
            .iter()
            .any(|value| value.as_bytes().eq_ignore_ascii_case(b"close"))
}

/// The innermost error, which says most in the fewest words.
fn words(error: &dyn Error) -> String {
    let mut cause = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}
