//! A schema registry, as Confluent's is: asked what the schemas are that others write with, off the way of the records.
//!
//! Not what a schema means, which is [`retide_avro::schemas`]. A worker sets a record aside whose schema it does not know, asks here, and
//! reads it once there is an answer. Invariants: no thread waits for the registry; a registry that is away kills no task, and one that says
//! that it does not know a schema is asked again after `MISSING`; forged names take no more memory than `MOST_REMEMBERED` of them.

use std::collections::{HashMap, VecDeque};
use std::error::Error as _;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use reqwest::{Client, Method, RequestBuilder, Response, StatusCode, Url};
use serde::Deserialize;
use serde_json::json;
use tokio::runtime::Handle;
use tracing::debug;
use uuid::Uuid;

use retide_avro::Schemas as Known;
use retide_avro::schema::{MAX_SCHEMA, Schema};
use retide_avro::schemas::{Key, Meaning};
use retide_config::Config;
use retide_connectors::tls::{Alpn, Tls};

/// A schema registry. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Registry {
    /// What all workers share.
    shared: Arc<Shared>,
}

/// What all workers share.
struct Shared {
    /// The address, without a slash at its end.
    address: String,
    /// The name and the password that it is shown.
    basic: Option<(String, String)>,
    /// The token that it is shown instead.
    token: Option<String>,
    /// How TLS is spoken with it.
    tls: Option<Tls>,
    /// How long an answer is waited for.
    timeout: Duration,
    /// What it has said.
    known: Arc<Known>,
    /// Where it is asked from.
    runtime: Handle,
    /// What it is being asked, or was asked in vain.
    asked: Mutex<Questions>,
    /// How many questions were given up or answered.
    answers: AtomicU64,
}

/// The questions that have no answer to be remembered.
#[derive(Default)]
struct Questions {
    /// What is being asked, or was asked in vain, and when it may be asked again.
    open: HashMap<Key, Asked>,
    /// How many of them are on their way.
    under_way: usize,
    /// What the registry does not know, and when that is forgotten; the oldest first.
    missing: VecDeque<(Instant, Key)>,
}

/// How a question stands.
enum Asked {
    /// It is on its way.
    UnderWay,
    /// There was no answer.
    Failed {
        /// When it is asked again.
        again: Instant,
        /// How long that was waited for.
        pause: Duration,
        /// Why.
        why: Arc<str>,
    },
}

/// What the registry says of a schema.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Said {
    /// Its text.
    schema: String,
    /// What it is written in; Avro if it does not say.
    schema_type: Option<String>,
    /// Whose types it uses.
    #[serde(default)]
    references: Vec<Reference>,
}

/// A schema whose types another one uses.
#[derive(Deserialize)]
struct Reference {
    /// What it is registered as.
    subject: String,
    /// Which version.
    version: i64,
}

/// Why there is no answer.
#[derive(Debug)]
enum Failure {
    /// The registry does not know it.
    Missing,
    /// It has something else than a schema of Avro.
    Other(String),
    /// It could not be asked, or did not answer as a registry does.
    Away(String),
}

/// How long a schema is taken for missing: somebody may register it a moment after the first record.
const MISSING: Duration = Duration::from_secs(30);

/// Pause before a question is asked again, the first and the longest.
const PAUSES: [Duration; 2] = [Duration::from_millis(500), Duration::from_secs(10)];

/// Most questions on their way: forged numbers must not become a flood of them.
const MOST_ASKED: usize = 16;

/// Most names that are remembered of which nothing is known: more than can be waited for at once by a process of a few hundred partitions.
const MOST_REMEMBERED: usize = 10_000;

/// Most schemas that one may refer to, with all that those refer to.
const MOST_REFERENCES: usize = 64;

/// Most bytes of an answer: a schema whose quotes are escaped.
const MOST_BYTES: usize = 2 * MAX_SCHEMA;

// === impl Registry ===

impl Registry {
    /// The registry of a configuration, if it names one; it is asked on `runtime`.
    pub fn of(config: &Config, runtime: &Handle) -> Option<Self> {
        let schemas = &config.schemas;
        let address = schemas.registry.as_ref()?;
        // The client wants one even where TLS is not spoken.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let host = address.host_str().unwrap_or_default();
        let tls = config.outbound().tls;
        let tls = tls.of(schemas.tls.as_deref(), host.trim_matches(['[', ']']));
        let basic = schemas.username.clone().zip(schemas.password.clone());
        let shared = Shared {
            address: address.as_str().trim_end_matches('/').to_owned(),
            basic,
            token: schemas.token.clone(),
            tls: tls.ok(),
            timeout: schemas.timeout,
            known: Arc::clone(&config.topics.tasks.schemas),
            runtime: runtime.clone(),
            asked: Mutex::default(),
            answers: AtomicU64::new(0),
        };
        Some(Self {
            shared: Arc::new(shared),
        })
    }

    /// Asks what a name means, unless that is known, is being asked, or was a moment ago. What is said is known to all workers then.
    pub fn ask(&self, key: Key) {
        if self.shared.known.meaning(key).is_some() {
            return;
        }
        let mut asked = self.shared.asked();
        let Some(pause) = asked.begin(key, Instant::now()) else {
            return;
        };
        drop(asked);
        let shared = Arc::clone(&self.shared);
        self.shared.runtime.spawn(async move {
            let asking = Arc::clone(&shared);
            let answer = tokio::spawn(async move { asking.find(key).await }).await;
            // After a panic there is no answer, either.
            let answer = answer.unwrap_or_else(|error| Err(Failure::Away(error.to_string())));
            shared.told(key, pause, answer);
        });
    }

    /// Asks what a name means and waits for the answer, where that holds up nobody.
    ///
    /// # Errors
    ///
    /// There is no answer: why.
    pub fn ask_now(&self, key: Key) -> Result<(), String> {
        let shared = &self.shared;
        let meaning = match shared.runtime.block_on(shared.find(key)) {
            Ok(meaning) => meaning,
            Err(Failure::Missing) => Meaning::Missing,
            Err(Failure::Other(why)) => Meaning::Other(why.into()),
            Err(Failure::Away(why)) => return Err(why),
        };
        shared.known.learn(key, meaning);
        Ok(())
    }

    /// Why the last question for a name has had no answer, if it had none.
    pub fn failure(&self, key: Key) -> Option<Arc<str>> {
        match self.shared.asked().open.get(&key)? {
            Asked::Failed { why, .. } => Some(Arc::clone(why)),
            Asked::UnderWay => None,
        }
    }

    /// Whether an answer may come at any moment.
    pub fn is_asking(&self) -> bool {
        self.shared.asked().under_way > 0
    }

    /// How many answers there have been, or questions without one: while it stays the same, nothing is known that was not.
    pub fn answers(&self) -> u64 {
        self.shared.answers.load(Ordering::Acquire)
    }

    /// Forgets what the registry did not know for long enough, so that it is asked again.
    pub fn forget_missing(&self, now: Instant) {
        let mut asked = self.shared.asked();
        while let Some((until, key)) = asked.missing.front().copied()
            && (until <= now || asked.missing.len() > MOST_REMEMBERED)
        {
            asked.missing.pop_front();
            self.shared.known.forget(key);
        }
    }

    /// Its address.
    pub fn address(&self) -> &str {
        &self.shared.address
    }

    /// The number of a schema of retide's own that is registered as `subject`; it is registered where it is not.
    ///
    /// # Errors
    ///
    /// The registry cannot be asked, or refuses the schema.
    pub fn register(&self, subject: &str, schema: &str) -> Result<u32, String> {
        let shared = &self.shared;
        shared.runtime.block_on(shared.register(subject, schema))
    }
}

// === impl Shared ===

impl Shared {
    /// What is being asked.
    fn asked(&self) -> MutexGuard<'_, Questions> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Remembers an answer, or that there was none.
    fn told(&self, key: Key, pause: Duration, answer: Result<Meaning, Failure>) {
        let now = Instant::now();
        let mut asked = self.asked();
        asked.under_way -= 1;
        let meaning = match answer {
            Ok(meaning) => meaning,
            Err(Failure::Missing) => {
                asked.missing.push_back((now + MISSING, key));
                Meaning::Missing
            }
            Err(Failure::Other(why)) => Meaning::Other(why.into()),
            Err(Failure::Away(why)) => {
                debug!(registry = self.address, schema = %key, why, "schema registry gives no answer");
                asked.fail(key, now, pause, why.into());
                drop(asked);
                self.answers.fetch_add(1, Ordering::Release);
                return;
            }
        };
        debug!(registry = self.address, schema = %key, ?meaning, "schema registry answered");
        self.known.learn(key, meaning);
        asked.open.remove(&key);
        asked.hurry(now);
        drop(asked);
        self.answers.fetch_add(1, Ordering::Release);
    }

    /// What a name means.
    async fn find(&self, key: Key) -> Result<Meaning, Failure> {
        let path = match key {
            Key::Id(id) => format!("schemas/ids/{id}"),
            Key::Guid(guid) => format!("schemas/guids/{}", Uuid::from_u128(guid)),
            Key::Fingerprint(_) => return Err(Failure::Missing),
        };
        let said = self.said(&path).await?;
        if let Some(kind) = said.schema_type.filter(|kind| kind != "AVRO") {
            let why = format!("its registry says that it is a schema of type {kind}, not Avro");
            return Ok(Meaning::Other(why.into()));
        }
        let others = self.referred(said.references).await?;
        let others: Vec<&str> = others.iter().map(String::as_str).collect();
        Ok(match Schema::parse(&said.schema, &others) {
            Ok(schema) => self.known.meaning_of(schema),
            Err(error) => {
                let why = format!("what its registry has is no Avro schema: {error}");
                Meaning::Other(why.into())
            }
        })
    }

    /// The texts of the schemas that one refers to, each after those that it refers to itself.
    async fn referred(&self, references: Vec<Reference>) -> Result<Vec<String>, Failure> {
        let mut texts: Vec<String> = Vec::new();
        let mut left = references;
        let mut asked = 0;
        while let Some(Reference { subject, version }) = left.pop() {
            asked += 1;
            if asked > MOST_REFERENCES {
                let why = format!(
                    "it refers to more than {MOST_REFERENCES} other schemas, directly and through them"
                );
                return Err(Failure::Other(why));
            }
            let subject = encoded(&subject);
            let path = format!("subjects/{subject}/versions/{version}");
            let said = self.said(&path).await?;
            // One that several refer to comes first, once.
            texts.retain(|text| *text != said.schema);
            texts.insert(0, said.schema);
            left.extend(said.references);
        }
        Ok(texts)
    }

    /// What the registry has at a path.
    async fn said(&self, path: &str) -> Result<Said, Failure> {
        let request = self.request(Method::GET, path).map_err(Failure::Away)?;
        let (status, body) = answer(request).await.map_err(Failure::Away)?;
        if status == StatusCode::NOT_FOUND && is_of_registry(&body) {
            return Err(Failure::Missing);
        }
        if !status.is_success() {
            return Err(Failure::Away(refusal(status, &body)));
        }
        serde_json::from_slice(&body)
            .map_err(|error| Failure::Away(format!("its answer is no schema: {error}")))
    }

    /// The number of a schema that is registered as `subject`.
    async fn register(&self, subject: &str, schema: &str) -> Result<u32, String> {
        #[derive(Deserialize)]
        struct Registered {
            id: u32,
        }
        let subject = encoded(subject);
        let schema = json!({ "schema": schema }).to_string();
        // One that is registered need not be written: that takes a right which a process should not have.
        for path in [
            format!("subjects/{subject}"),
            format!("subjects/{subject}/versions"),
        ] {
            let request = self.request(Method::POST, &path)?;
            let (status, body) = answer(request.body(schema.clone())).await?;
            if status.is_success() {
                let registered: Registered = serde_json::from_slice(&body)
                    .map_err(|error| format!("its answer has no id: {error}"))?;
                return Ok(registered.id);
            }
            if status != StatusCode::NOT_FOUND || !is_of_registry(&body) {
                return Err(refusal(status, &body));
            }
        }
        Err("it does not take schemas at this address".to_owned())
    }

    /// A request. The client is made anew for each: they are rare, and the files of TLS may be others than the last time.
    fn request(&self, method: Method, path: &str) -> Result<RequestBuilder, String> {
        let address = format!("{}/{path}", self.address);
        let url = Url::parse(&address).map_err(|error| error.to_string())?;
        let mut client = Client::builder().no_proxy().timeout(self.timeout);
        if url.scheme() == "https" {
            let tls = self
                .tls
                .as_ref()
                .ok_or("its host cannot be the name of a certificate")?;
            let config = tls.current(Alpn::Http1)?;
            client = client.tls_backend_preconfigured((*config).clone());
        }
        let client = client.build().map_err(|error| causes(&error))?;
        let request = client
            .request(method, url)
            .header(
                "accept",
                "application/vnd.schemaregistry.v1+json, application/json",
            )
            .header("content-type", "application/vnd.schemaregistry.v1+json");
        Ok(match (&self.basic, &self.token) {
            (Some((username, password)), _) => request.basic_auth(username, Some(password)),
            (None, Some(token)) => request.bearer_auth(token),
            (None, None) => request,
        })
    }
}

// === impl Questions ===

impl Questions {
    /// Begins a question, if it may be asked now; the pause after it, if it is in vain.
    fn begin(&mut self, key: Key, now: Instant) -> Option<Duration> {
        if self.under_way >= MOST_ASKED {
            return None;
        }
        let pause = match self.open.get(&key) {
            Some(Asked::UnderWay) => return None,
            Some(Asked::Failed { again, .. }) if now < *again => return None,
            Some(Asked::Failed { pause, .. }) => (*pause * 2).min(PAUSES[1]),
            None => PAUSES[0],
        };
        self.under_way += 1;
        self.open.insert(key, Asked::UnderWay);
        Some(pause)
    }

    /// The registry has answered: what was asked in vain may be asked again at once.
    fn hurry(&mut self, now: Instant) {
        for asked in self.open.values_mut() {
            if let Asked::Failed { again, .. } = asked {
                *again = now.min(*again);
            }
        }
    }

    /// A question was in vain. What nobody has asked again for longest is forgotten where there are too many.
    fn fail(&mut self, key: Key, now: Instant, pause: Duration, why: Arc<str>) {
        let again = now + pause;
        if self.open.len() > MOST_REMEMBERED {
            let failed = self.open.iter().filter_map(|(key, asked)| match asked {
                Asked::Failed { again, .. } => Some((*again, *key)),
                Asked::UnderWay => None,
            });
            if let Some((_, oldest)) = failed.min_by_key(|(again, _)| *again) {
                self.open.remove(&oldest);
            }
        }
        self.open.insert(key, Asked::Failed { again, pause, why });
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Registry")
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}

/// What is answered, read no further than an answer may be long.
async fn answer(request: RequestBuilder) -> Result<(StatusCode, Vec<u8>), String> {
    let mut response: Response = request.send().await.map_err(|error| causes(&error))?;
    let status = response.status();
    let mut body = Vec::new();
    while let Some(part) = response.chunk().await.map_err(|error| causes(&error))? {
        if body.len() + part.len() > MOST_BYTES {
            return Err(format!("its answer is over {MOST_BYTES} bytes long"));
        }
        body.extend_from_slice(&part);
    }
    Ok((status, body))
}

/// Whether an answer is a registry's: something else at the address knows no schema, either.
fn is_of_registry(body: &[u8]) -> bool {
    #[derive(Deserialize)]
    struct Refused {
        #[serde(rename = "error_code")]
        _error_code: i64,
    }
    serde_json::from_slice::<Refused>(body).is_ok()
}

/// What a status means that is no success.
fn refusal(status: StatusCode, body: &[u8]) -> String {
    #[derive(Deserialize)]
    struct Refused {
        message: String,
    }
    let said = serde_json::from_slice::<Refused>(body);
    let said = said.map_or_else(
        |_| String::new(),
        |refused| format!(": {}", refused.message),
    );
    let said: String = said.chars().take(200).collect();
    format!("it answers {status}{said}")
}

/// An error with what caused it; its address is known.
fn causes(error: &reqwest::Error) -> String {
    let mut text = if error.is_timeout() {
        "no answer in time".to_owned()
    } else {
        "no connection".to_owned()
    };
    let mut last = error.source();
    while let Some(cause) = last.and_then(|cause| cause.source()) {
        last = Some(cause);
    }
    if let Some(cause) = last {
        text.push_str(": ");
        text.push_str(&cause.to_string());
    }
    text
}

/// A name as a part of a path.
fn encoded(name: &str) -> String {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    let encode = |byte: u8| {
        if is_plain(byte) {
            char::from(byte).to_string()
        } else {
            format!("%{byte:02X}")
        }
    };
    name.bytes().map(encode).collect()
}

#[cfg(test)]
mod tests;
