//! A cluster as retide needs it: which topics, with which settings, and what is wrong with those that are there.
//!
//! | module | what |
//! |---|---|
//! | `plan` | the topics, and the forms in which other tools create them |
//! | `check` | what is wrong with a cluster, and how it is mended |
//! | `session` | the clients that ask, and why they cannot |
//! | `create` | creating what is missing |
//! | `purge` | deleting the beginning of partitions |
//! | `standing` | what a group has done of what is there, and who else works |
//! | `survey` | what can be asked besides: brokers, permissions, the clock |
//! | `foreign` | topics that others write and retide reads, and the groups that read them |
//! | `acl` | who may do what: the least rules of each user |
//! | `cause` | why a broker cannot be talked to, and what to do about it |
//! | `handshake` | what a port speaks, and what is wrong with its certificate |
//! | `commands` | command lines for people |
//! | `tools` | command lines of Kafka's own tools |
//!
//! Not the command line that calls it. Invariant: a topic that exists is never changed here, but for what `purge` is told
//! to delete, and no call waits without a limit.

mod acl;
mod cause;
mod check;
mod commands;
mod create;
mod foreign;
mod handshake;
mod plan;
mod purge;
mod session;
pub mod standing;
mod survey;
mod tools;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use thiserror::Error;

use retide_native::admin::{self, Operation};

use crate::cluster::check::Asking;
use crate::cluster::session::{LEAST, Looked, Reasons, Session, apart};
pub use crate::cluster::tools::Tools;

pub use acl::{Scope, User};
pub use check::{Aspect, Finding, Seen, SeenTopic, Severity, aspects};
pub use check::{DENIED_NEW, MISSING};
pub use commands::{abort, allow, allow_all, create_topic, find_hanging, strimzi_user, widen_all};
pub use create::{Created, Widened, create, widen};
pub use foreign::{Foreign, Lost, Reader, Sight, foreign, mark, marked};
pub use plan::{Layout, Plan, TopicPlan, copy_bytes};
pub use purge::{Purged, purge};
pub use standing::DISAGREES;
pub use standing::{
    AT_LEAST_ONCE, Begin, Committed, EXACTLY_ONCE, LaneStanding, Member, Standing, Whose, begin,
    fingerprint, others, standing,
};
pub use survey::{Access, Answer, Broker, Clock, Questions, Survey, survey};

/// Why a cluster could not be asked.
#[derive(Debug, Error)]
pub enum Error {
    /// No address to ask at.
    #[error("no bootstrap.servers in the client's configuration")]
    NoAddress,
    /// A property that the client library does not take.
    #[error("configure the kafka client")]
    Client(#[source] KafkaError),
    /// No broker answers.
    #[error("no kafka broker answers at {address}")]
    Unreachable {
        /// The addresses tried: as configured, or as brokers advertise them.
        address: String,
        /// What happened at each of them.
        source: Box<Silence>,
    },
    /// A broker answers, but not to this.
    #[error("{request} at {address}")]
    Request {
        /// What was asked for.
        request: &'static str,
        /// The addresses of the cluster.
        address: String,
        /// What came back.
        source: KafkaError,
    },
    /// A topic was created and does not appear.
    #[error("topic {topic} was created but is not there after {waited:?}")]
    Unseen {
        /// The topic.
        topic: Arc<str>,
        /// How long it was waited for.
        waited: Duration,
    },
    /// No thread to ask on.
    #[error("start a thread")]
    Thread(#[source] io::Error),
}

/// What happened instead of an answer.
#[derive(Debug)]
pub struct Silence {
    /// The last thing that each address was at fault for, in the words of the client library.
    pub reasons: Vec<String>,
    /// What the call came back with.
    pub error: KafkaError,
    /// What to do about it.
    pub hint: String,
}

/// The topics of `plan` that exist, and how many partitions each of them has.
///
/// # Errors
/// If the cluster cannot be asked.
pub async fn existing(
    config: &ClientConfig,
    plan: &Plan,
) -> Result<BTreeMap<Arc<str>, usize>, Error> {
    let plan = plan.clone();
    apart(config, move |session| {
        let seen = session.find_named(plan.names())?;
        Ok(there(&plan, &seen))
    })
    .await
}

/// What a user finds before it begins.
#[derive(Clone, Debug)]
pub struct There {
    /// The planned topics that exist, and how many partitions each of them has.
    pub partitions: BTreeMap<Arc<str>, usize>,
    /// What the user may not do with the topics that it is about to use, as far as brokers tell.
    pub denials: Vec<Finding>,
}

/// As [`existing`], and whether `user` may do what it does with `topics`, some of the planned ones.
///
/// # Errors
/// If the cluster cannot be asked.
pub async fn reach(
    config: &ClientConfig,
    plan: &Plan,
    (user, scope): (User, &Scope),
    topics: &[&str],
) -> Result<There, Error> {
    let (plan, scope) = (plan.clone(), scope.clone());
    let mut some = plan.clone();
    some.topics.retain(|topic| topics.contains(&&*topic.name));
    apart(config, move |session| {
        let mut seen = session.find_named(plan.names())?;
        session.read_permissions(&some, &mut seen);
        let tools = Tools::new(&session.config, &session.address);
        let asking = Asking {
            user,
            scope: Some(&scope),
        };
        Ok(There {
            denials: check::denials(&some, &seen, &tools, asking),
            partitions: there(&plan, &seen),
        })
    })
    .await
}

/// The topics of a plan that exist, and how many partitions each of them has.
fn there(plan: &Plan, seen: &Seen) -> BTreeMap<Arc<str>, usize> {
    let names = plan.topics.iter().map(|topic| Arc::clone(&topic.name));
    names
        .filter_map(|name| {
            let partitions = seen.topics.get(&*name)?.replicas.len();
            Some((name, partitions))
        })
        .collect()
}

/// Looks for what keeps retide from its promises: refusals first, then warnings; nothing if all is well.
///
/// `transactions` is the prefix of the transactional ids that retide will use; none for a guarantee that needs no transactions.
///
/// # Errors
/// If the cluster cannot be asked.
pub async fn check(
    config: &ClientConfig,
    plan: &Plan,
    transactions: Option<&str>,
) -> Result<Vec<Finding>, Error> {
    let plan = plan.clone();
    let transactions = transactions.map(str::to_owned);
    apart(config, move |session| {
        let asking = Asking {
            user: User::Run,
            scope: None,
        };
        let looked = session.look(&plan, transactions.as_deref(), asking)?;
        Ok(looked.all())
    })
    .await
}

/// As [`check`], and whether `user` may do all that it does on the topics.
///
/// # Errors
/// If the cluster cannot be asked.
pub async fn check_as(
    config: &ClientConfig,
    plan: &Plan,
    user: User,
    scope: &Scope,
) -> Result<Vec<Finding>, Error> {
    let (plan, scope) = (plan.clone(), scope.clone());
    apart(config, move |session| {
        // Who creates topics does not use them.
        let asking = Asking {
            user,
            scope: Some(&scope).filter(|_| user != User::Init),
        };
        let transactions = match user {
            User::Run => scope.transactions.as_deref(),
            User::Init
            | User::Submit
            | User::Explain
            | User::ScenesApply
            | User::Tasks
            | User::DeadLetters
            | User::Purge
            | User::Read => None,
        };
        let looked = session.look(&plan, transactions, asking)?;
        Ok(looked.all())
    })
    .await
}

/// Which of `topics` retide's user may write, where brokers tell: none that may not be described. A topic that is not there is left out.
///
/// # Errors
/// If the cluster cannot be asked.
pub async fn writable(
    config: &ClientConfig,
    topics: &BTreeSet<String>,
) -> Result<BTreeMap<String, bool>, Error> {
    let topics = topics.clone();
    apart(config, move |session| {
        if topics.is_empty() {
            return Ok(BTreeMap::new());
        }
        let names: Vec<&str> = topics.iter().map(|topic| &**topic).collect();
        let seen = session.find_named(names.iter().copied())?;
        let answer = admin::permitted(session.admin.inner(), &names, session.left().max(LEAST));
        let answer = session.answer("describe topics", answer, &seen)?;
        let told = answer.into_iter().filter_map(|permitted| {
            let may = match permitted.operations {
                Ok(operations) => operations?.contains(&Operation::Write),
                // Whoever may write a topic may describe it.
                Err(RDKafkaErrorCode::TopicAuthorizationFailed) => false,
                Err(_) => return None,
            };
            Some((permitted.topic, may))
        });
        Ok(told.collect())
    })
    .await
}

// === impl Silence ===

impl fmt::Display for Silence {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.reasons.is_empty() {
            return write!(formatter, "no answer in time");
        }
        write!(formatter, "{}", self.reasons.join("; "))
    }
}

impl std::error::Error for Silence {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        // What was heard says more.
        self.reasons
            .is_empty()
            .then_some(&self.error as &(dyn std::error::Error + 'static))
    }
}

// === impl Error ===

impl Error {
    /// What to do about it, if that is known.
    pub fn hint(&self) -> Option<&str> {
        match self {
            Self::Unreachable { source, .. } => Some(&source.hint),
            Self::NoAddress => {
                Some("set bootstrap.servers in [kafka] of retide.toml, or --bootstrap HOST:PORT")
            }
            Self::Client(_) | Self::Request { .. } | Self::Unseen { .. } | Self::Thread(_) => None,
        }
    }
}
