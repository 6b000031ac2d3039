//! What does, where the core decides: reading, writing and the loop between them.

pub(crate) mod binding;
pub(crate) mod drift;
pub mod drive;
pub mod encode;
pub mod feed;
pub mod group;
pub mod identity;
mod leaving;
pub mod ledger;
mod look;
mod machine;
mod order;
mod presence;
pub(crate) mod readable;
pub mod restore;
pub mod search;
mod unnamed;
pub(crate) mod watch;
pub mod writable;
