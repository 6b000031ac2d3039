//! A worker: what does, where the core decides. Reading, writing, and the loop between them.
//!
//! | module | what |
//! |---|---|
//! | [`group`] | the member of the group, and which shards are the worker's |
//! | [`restore`] | what has to be known of a shard before it is worked on |
//! | [`feed`] | the readers |
//! | [`drive`] | the loop: what happened goes to the engine, and what the engine says is done |
//! | `ids` | which ids may stand where in tiers |
//! | `letters` | reads dead letters: those that campaigns replay, and the oldest |
//! | `sweep` | looks through tiers for the tasks that commands are about |
//! | [`ledger`] | transactions |
//! | [`encode`] | from decisions to records |

pub mod binding;
pub mod drive;
mod duplicates;
pub mod encode;
pub mod feed;
pub mod group;
mod ids;
mod leaving;
pub mod ledger;
mod letters;
mod look;
pub(crate) mod order;
mod presence;
mod progress;
pub mod readable;
pub mod restore;
pub mod search;
mod sweep;
mod unnamed;
