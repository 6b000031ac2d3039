//! An HTTP request per attempt.
//!
//! Not a general client: one method, one address, no redirects, no proxy and no state of a task. Invariant: whatever a record holds
//! and whatever the other side answers, an attempt ends within its timeout with an [`Outcome`], and the payload is sent byte for byte.
//!
//! | read | for |
//! | --- | --- |
//! | `config` | the keys, and what is refused |
//! | `request` | what goes out, and the rules of its headers |
//! | `client` | a request sent, and sent again where it was not processed |
//! | `pool`, `dial`, `wire` | connections: kept, made anew, given up |
//! | `head`, `body`, `answer`, `status` | what comes back, and what it means |

mod answer;
mod body;
mod client;
mod config;
mod dial;
mod error;
mod head;
mod pool;
mod probe;
mod request;
mod status;
#[cfg(test)]
mod tests;
mod wire;

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use http::Uri;
use http::header::HeaderMap;
use retide_core::{Outcome, Task};
use tokio::time::Instant;

use crate::{Outbound, Target};

use self::client::{Answer, Client, NotAnswered};
use self::dial::Dialer;
use self::pool::Pool;
use self::status::Meaning;

pub use self::answer::MAX_RETRY_AFTER;
pub use self::config::{Config, DEFAULT_MAX_REPLY, DEFAULT_TIMEOUT, MAX_TIMEOUT};
pub use self::error::Error;
pub use self::probe::{Reached, Unreached, denied, foresee, probe};
pub use self::request::MAX_HEADERS;
pub use self::status::{NoAnswer, Status};

/// Makes attempts as HTTP requests over a pool of connections.
pub struct Http {
    /// What sends them.
    client: Client,
    /// The parsed address.
    uri: Uri,
    /// The parsed headers of the configuration.
    headers: HeaderMap,
    /// The configuration, valid.
    config: Config,
}

// === impl Http ===

impl Http {
    /// Checks the configuration and sets up the client, by the rules of a process that configures none; connects to nothing yet.
    pub fn try_new(config: Config) -> Result<Self, Error> {
        Self::within(config, &Outbound::default())
    }

    /// The same by the rules of a process.
    pub fn within(config: Config, outbound: &Outbound) -> Result<Self, Error> {
        let url = config.parse_url()?;
        let uri = url.as_str().parse().map_err(|source| {
            let source: http::uri::InvalidUri = source;
            Error::Url {
                source: source.into(),
            }
        })?;
        let headers = config.parse_headers()?;
        config.check_statuses()?;
        config.check_spans()?;
        let limits = config.limits();
        let tls = config.parse_tls(&url, &outbound.tls)?;
        let dialer = Dialer::new(&url, Arc::clone(&outbound.egress), tls);
        let pool = Pool::new(dialer, limits);
        Ok(Self {
            client: Client::new(pool, &uri, limits.connect, config.resend),
            uri,
            headers,
            config,
        })
    }

    /// What an answer means for the attempt: its status is the answer, and what comes after it changes nothing.
    async fn judge(&self, answer: Answer, deadline: Instant) -> Outcome {
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
        answer::outcome(&self.config, status, &headers, &start)
    }
}

#[async_trait]
impl Target for Http {
    async fn attempt(&self, task: Arc<Task>) -> Outcome {
        let deadline = Instant::now() + self.config.timeout;
        let make = || request::make(&self.uri, &self.headers, &task);
        match self.client.send(make, deadline).await {
            Ok(answer) => self.judge(answer, deadline).await,
            Err(NotAnswered { way, message }) => answer::none(&self.config, way, &message),
        }
    }

    fn renew(&self) {
        self.client.renew();
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
