//! An HTTP request per attempt.
//!
//! Not a general client: one method, one address, no redirects, no proxy and no state of a task. Invariant: whatever a record holds
//! and whatever the other side answers, an attempt ends within its timeout with an [`Outcome`], and the payload is sent byte for byte.
//!
//! | read | for |
//! | --- | --- |
//! | `config` | the keys, and what is refused |
//! | `request` | what goes out, and the rules of its headers |
//! | `client`, `dial` | connections: kept, made anew, given up |
//! | `answer`, `status`, `body` | what comes back, and what it means |

mod answer;
mod body;
mod client;
mod config;
mod dial;
mod error;
mod request;
mod status;
#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use http::header::HeaderMap;
use http::{Response, Uri};
use hyper::body::Incoming;
use retide_core::{Outcome, Task};
use tokio::time::{Instant, timeout_at};

use crate::tls::Alpn;
use crate::{Outbound, Target};

use self::client::{Client, client, root_cause};

pub use self::answer::MAX_RETRY_AFTER;
pub use self::config::{Config, DEFAULT_MAX_REPLY, DEFAULT_TIMEOUT, MAX_TIMEOUT};
pub use self::error::Error;
pub use self::request::MAX_HEADERS;
pub use self::status::{NoAnswer, Status};

/// Makes attempts as HTTP requests over a pool of connections.
pub struct Http {
    /// The pooled client.
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
        if config.timeout.is_zero() || config.timeout > MAX_TIMEOUT {
            return Err(Error::Timeout);
        }
        let tls = config.parse_tls(&url, &outbound.tls)?;
        let current = tls.and_then(|tls| tls.current(Alpn::Any).ok());
        let tls = dial::tls(current).map_err(|source| Error::Client { source })?;
        Ok(Self {
            client: client(tls),
            uri,
            headers,
            config,
        })
    }

    /// What an answer means for the attempt.
    async fn classify(&self, response: Response<Incoming>, deadline: Instant) -> Outcome {
        let (answer, body) = response.into_parts();
        // The status is the answer; a body that breaks off or takes too long does not change it.
        let start = body::read(body, self.config.max_reply, deadline).await;
        answer::outcome(&self.config, answer.status, &answer.headers, &start)
    }
}

#[async_trait]
impl Target for Http {
    async fn attempt(&self, task: Arc<Task>) -> Outcome {
        let deadline = Instant::now() + self.config.timeout;
        let request = request::make(&self.uri, &self.headers, &task);
        match timeout_at(deadline, self.client.request(request)).await {
            Ok(Ok(response)) => self.classify(response, deadline).await,
            Ok(Err(error)) if error.is_connect() => {
                answer::none(&self.config, NoAnswer::Connect, &root_cause(&error))
            }
            Ok(Err(error)) => answer::none(&self.config, NoAnswer::Reply, &root_cause(&error)),
            Err(_) => answer::none(&self.config, NoAnswer::Timeout, "no answer in time"),
        }
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
