//! The shell around `retide-core`: it reads and writes Kafka and calls targets, as the core decides.
//!
//! | module | what |
//! |---|---|
//! | [`config`] | what users configure |
//! | [`topics`] | the names of retide's topics |
//! | [`shell`] | feed, ledger and the loop between them |

pub mod config;
pub mod embedded;
pub mod shell;
pub mod topics;
