//! The binary as a library: what users type, and what wires the crates below.
//!
//! | module | what |
//! |---|---|
//! | [`cli`] | the command line |
//! | [`demo`] | everything on one machine |
//! | `playground` | an HTTP target to play with |
//! | [`mod@bench`] | measurements, each beside a raw baseline |
//!
//! Not a worker, which is `retide-shell`. Invariant: nothing below this crate prints to stdout.

pub mod bench;
pub mod cli;
pub mod demo;
mod playground;
