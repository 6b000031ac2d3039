//! The shell around `retide-core`: workers that read and write Kafka and call targets as the core decides, and the process they run in.
//!
//! | module | what |
//! |---|---|
//! | [`worker`] | a worker: group, feed, drive, ledger, in the order of a record's way |
//! | [`process`] | the workers of a process, and their rules |
//! | [`scenes`] | the scenes topic |
//! | [`signals`] | the signals topic: what processes tell each other |
//! | `sources` | topics with dead letters of others, whose records become tasks |
//! | [`rules`] | scenes put in force |
//! | [`parked`] | which scenes still have tasks |
//! | [`replayed`] | which dead letters were replayed |
//! | [`registry`] | a schema registry, asked off the way of the records |
//! | `watch`, `writable`, `drift` | which topics take records, and whether they are as they have to be |
//! | `broker` | whether Kafka answers |
//! | [`outbound`] | whether files of certificates have changed |
//! | [`identity`], [`machine`], [`clock`] | what a process is called, and what time it is |
//! | [`threads`], `suspects` | the threads of a process, and at which records it died |
//! | [`leave`] | how a process ends |
//! | `event` | what is worth telling people: log line and metric together |
//! | [`mod@log`], `failing` | lines on stderr that hold nobody up, and what goes wrong in a scene as lines |
//! | [`metrics`] | the numbers of a process |
//! | [`health`] | whether its workers turn and have what they need |
//! | [`trouble`] | what is wrong for longer than a moment |
//! | [`admin`] | all of it over HTTP |
//! | [`librdkafka`] | what the Kafka client takes of a configuration |
//!
//! Not what is decided, which is `retide-core`, nor what users type, which is the binary. Invariant: a consumed offset is committed only
//! together with what was decided for it.

pub mod admin;
mod broker;
pub mod clock;
mod drift;
mod event;
mod failing;
pub mod health;
pub mod holds;
pub mod identity;
pub mod kept;
pub mod leave;
pub mod librdkafka;
pub mod log;
pub mod machine;
pub mod metrics;
pub mod outbound;
pub mod parked;
pub mod process;
pub mod registry;
pub mod replayed;
pub mod rules;
pub mod scenes;
pub mod signals;
mod sources;
mod suspects;
pub mod threads;
pub mod trouble;
mod watch;
pub mod worker;
mod writable;
