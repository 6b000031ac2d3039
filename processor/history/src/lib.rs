//! The history of a task: the records that retide's topics hold of it, and the timeline that they make.
//!
//! | module | what |
//! |---|---|
//! | [`search`] | finds the records of a task |
//! | [`fact`] | what each of them says |
//! | `life` | facts, sorted by the task that they are about |
//! | `steps` | facts of one task, in order |
//! | [`state`] | how it stands now |
//! | [`timeline`] | all of it, as it is told |
//! | [`report`] | callbacks, events and alerts, in whichever format they are |
//!
//! Nothing of a worker: whoever tells of tasks must not be able to own a shard. Invariant: nothing is joined, committed or written.

pub mod fact;
mod life;
pub mod report;
pub mod search;
pub mod state;
mod steps;
pub mod timeline;
