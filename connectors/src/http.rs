//! An HTTP request per attempt.
//!
//! Not a general client: one method, one address, no redirects, no proxy and no state of a task. Invariant: whatever a record holds
//! and whatever the other side answers, an attempt ends within its timeout with an [`Outcome`], and the payload is sent byte for byte.
//!
//! | read | for |
//! | --- | --- |
//! | `config` | the keys, and what is refused |
//! | `request`, `carried` | what goes out, and which headers of a record do |
//! | `client` | a request sent, and sent again where it was not processed |
//! | `pool`, `dial`, `race`, `wire` | connections: kept, made anew, given up |
//! | `head`, `body`, `answer`, `retry_after`, `status` | what comes back, and what it means |

mod answer;
mod body;
mod carried;
mod client;
mod config;
mod dial;
mod error;
mod head;
mod pool;
mod race;
mod request;
mod retry_after;
mod status;
#[cfg(test)]
mod tests;
mod wire;

use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use async_trait::async_trait;
use http::Uri;
use retide_core::{Failure, Outcome, Task, scene};
use tokio::time::Instant;

use crate::secret::Reference;
use crate::{Attempt, Configured, Destination, Exposed, Outbound, Target};

use self::carried::Carry;
use self::client::{Answer, Client, NotAnswered};
use self::dial::Dialer;
use self::pool::Pool;
use self::request::Requests;
use self::status::Meaning;

pub use self::carried::{MAX_HEAD, MAX_HEADERS, MAX_VALUE, Pattern};
pub use self::config::{
    Config, DEFAULT_MAX_REPLY, DEFAULT_MAX_RETRY_AFTER, DEFAULT_TIMEOUT, MAX_TIMEOUT,
};
pub use self::error::Error;
pub use self::status::{NoAnswer, Status};

/// Makes attempts as HTTP requests over a pool of connections.
pub struct Http {
    /// The client that sends requests.
    client: Client,
    /// The maker of requests.
    requests: Requests,
    /// The configuration, valid.
    config: Config,
    /// Whether the start of an answer is part of an error.
    error_bodies: bool,
}

// === impl Http ===

impl Http {
    /// Checks the configuration and sets up the client, by the rules of a process that configures none; connects to nothing yet.
    pub fn try_new(config: Config) -> Result<Self, Error> {
        Self::within(config, &Outbound::default())
    }

    /// Checks the configuration and sets up the client by the rules of a process.
    pub fn within(config: Config, outbound: &Outbound) -> Result<Self, Error> {
        let url = config.parse_url()?;
        let uri: Uri = url.as_str().parse().map_err(|source| {
            let source: http::uri::InvalidUri = source;
            Error::Url {
                source: source.into(),
            }
        })?;
        let requests = Requests::try_new(&config, uri.clone(), &outbound.secrets)?;
        config.check_statuses()?;
        config.check_spans()?;
        config.check_max_retry_after()?;
        let limits = config.limits();
        let tls = config.parse_tls(&url, &outbound.tls)?;
        let dialer = Dialer::new(&url, Arc::clone(&outbound.egress), tls);
        let pool = Pool::new(dialer, limits);
        Ok(Self {
            client: Client::new(pool, &uri, limits.connect, config.resend),
            requests,
            config,
            error_bodies: outbound.egress.error_bodies,
        })
    }

    /// All that keeps a target from being used as it is configured.
    fn problems(config: &Config, outbound: &Outbound) -> Vec<Error> {
        let url = config.parse_url();
        let tls = url
            .as_ref()
            .ok()
            .map(|url| config.parse_tls(url, &outbound.tls));
        let errors = [
            tls.and_then(Result::err),
            url.err(),
            config.parse_headers().err(),
            config.parse_content_type().err(),
            config.check_statuses().err(),
            config.check_spans().err(),
            config.check_max_retry_after().err(),
        ];
        let errors: Vec<Error> = errors.into_iter().flatten().collect();
        if errors.is_empty() {
            return Self::within(config.clone(), outbound)
                .err()
                .into_iter()
                .collect();
        }
        errors
    }

    /// A target that finds the headers too large is asked once more, without the record's: it has not looked at the task.
    async fn ask(&self, task: &Task) -> Attempt {
        let deadline = Instant::now() + self.config.timeout;
        let first = self.call(task, Carry::All, deadline).await;
        let Some(refused) = self.requests.refused(task, Carry::All, &first.outcome) else {
            return first;
        };
        let least = self.requests.left_out(task, Carry::Least);
        if least == first.left_out {
            // None of the record's was there.
            let outcome = refused;
            return Attempt { outcome, ..first };
        }
        let second = self.call(task, Carry::Least, deadline).await;
        let refused = self.requests.refused(task, Carry::Least, &second.outcome);
        Attempt {
            outcome: refused.unwrap_or(second.outcome),
            left_out: least,
            spent: second.spent,
        }
    }

    /// Makes a request of `task`, and says what came of it, and what of its record was left out if it was sent at all.
    async fn call(&self, task: &Task, carry: Carry, deadline: Instant) -> Attempt {
        let left_out = OnceLock::new();
        let make = || {
            let (request, not_sent) = self.requests.make(task, carry);
            let _ = left_out.set(not_sent);
            request
        };
        let (outcome, spent) = match self.client.send(make, deadline).await {
            Ok(answer) => self.judge(answer, deadline).await,
            Err(NotAnswered { way, message }) => (answer::none(&self.config, way, &message), None),
        };
        Attempt {
            outcome,
            left_out: left_out.into_inner().flatten(),
            spent,
        }
    }

    /// The outcome that an answer is, and how long the target wants to be left alone although it is a success: status and headers decide, and
    /// what comes after them changes nothing.
    async fn judge(&self, answer: Answer, deadline: Instant) -> (Outcome, Option<Duration>) {
        let Answer {
            status,
            headers,
            body,
        } = answer;
        let limit = self.config.max_reply;
        let start = if self.config.meaning(status.as_u16()) == Meaning::Success {
            body.discard(limit);
            Vec::new()
        } else {
            let until = deadline.min(Instant::now() + body::MAX_WAIT);
            body.read(limit, until).await
        };
        let outcome = answer::outcome(&self.config, status, &headers, &start);
        let spent = answer::spent(&self.config, &outcome, &headers);
        (outcome, spent)
    }
}

#[async_trait]
impl Target for Http {
    async fn attempt(&self, task: Arc<Task>) -> Attempt {
        if let Some(name) = self.requests.missing() {
            // Its scene is not in force until there is a value: this is a matter of moments.
            let message = format!("the secret of header {name} cannot be read");
            return Outcome::Retryable(Failure::new("secret", &message)).into();
        }
        let attempt = self.ask(&task).await;
        if self.error_bodies {
            return attempt;
        }
        Attempt {
            outcome: answer::without_body(attempt.outcome),
            ..attempt
        }
    }

    fn renew(&self, authority: &str) {
        if self.config.authority().as_deref() == Some(authority) {
            self.client.renew();
        }
    }
}

impl Configured for Config {
    fn kind(&self) -> &'static str {
        "http"
    }

    fn core(&self) -> scene::Target {
        scene::Target::Call
    }

    fn destination(&self) -> Result<Destination<'_>, crate::Error> {
        Ok(Destination::Server(self.server()?))
    }

    fn timeout(&self) -> Option<Duration> {
        Some(self.timeout)
    }

    fn profile(&self) -> Option<&str> {
        self.tls.as_deref()
    }

    fn references(&self) -> Vec<(String, &Reference)> {
        let headers = self.references();
        let headers = headers.map(|(name, reference)| (format!("headers.{name}"), reference));
        headers.collect()
    }

    fn exposed(&mut self) -> Vec<(String, Exposed<'_>)> {
        let Self { headers, url, .. } = self;
        let headers = headers.iter_mut().map(|(name, value)| {
            let key = format!("headers.{name}");
            (key, Exposed::Header { name, value })
        });
        let url = ("url".to_owned(), Exposed::Url(url));
        headers.chain([url]).collect()
    }

    fn problems(&self, outbound: &Outbound) -> Vec<crate::Error> {
        let errors = Http::problems(self, outbound).into_iter();
        errors.map(crate::Error::Http).collect()
    }

    fn build(&self, outbound: &Outbound) -> Result<Option<Arc<dyn Target>>, crate::Error> {
        let http = Http::within(self.clone(), outbound)?;
        Ok(Some(Arc::new(http)))
    }
}

impl fmt::Debug for Http {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Http")
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}
