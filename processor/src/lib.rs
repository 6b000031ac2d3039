//! The shell around `retide-core`: it reads and writes Kafka and calls targets, as the core decides.
//!
//! | module | what |
//! |---|---|
//! | [`cli`] | the command line |
//! | [`process`] | the workers of a process, and their rules |
//! | [`shell`] | a worker: feed, ledger and the loop between them |
//! | [`scenes`] | the scenes topic |
//! | [`rules`] | scenes put in force |
//! | [`parked`] | which scenes still have tasks |
//! | `playground` | an HTTP target to play with |
//! | [`demo`] | everything on one machine |
//! | [`mod@bench`] | measurements, each beside a raw baseline |
//! | `event` | what is worth telling people: log line and metric together |
//! | `failing` | what goes wrong in a scene, as lines |
//! | [`metrics`] | the numbers of a process |
//! | [`health`] | whether its workers turn and have what they need |
//! | `broker` | whether Kafka answers |
//! | [`threads`] | the threads of a process, and that none is missed |
//! | [`librdkafka`] | what the Kafka client takes of a configuration |
//! | `log` | lines on stderr that hold nobody up |
//! | `leave` | how a process ends |
//! | [`trouble`] | what is wrong for longer than a moment |
//! | [`admin`] | all of it over HTTP |

pub mod admin;
pub mod bench;
mod broker;
pub mod cli;
pub mod clock;
pub mod demo;
mod event;
mod failing;
pub mod health;
mod leave;
pub mod librdkafka;
mod log;
pub mod metrics;
mod outbound;
pub mod parked;
mod playground;
pub mod process;
pub mod registry;
pub mod rules;
pub mod scenes;
pub mod shell;
mod suspects;
pub mod threads;
pub mod trouble;

pub use retide_config as config;
pub(crate) use retide_kafka::{client, failure, follow, offsets, producer, publish, record, scan};
pub use retide_kafka::{cluster, topics};
