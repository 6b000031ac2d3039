//! The history of a task: the records that retide's topics hold of it, and the timeline that they make.
//!
//! | module | what |
//! |---|---|
//! | [`story`] | facts of a task, told as a timeline |
//! | [`report`] | callbacks, events and alerts, in whichever format they are |
//!
//! Nothing of a worker: whoever tells of tasks must not be able to own a shard. Invariant: nothing is joined, committed or written.

pub mod report;
pub mod story;
