//! The decisions of retide: when an attempt may start, where a task waits, how it ends, and what may be committed.
//!
//! Pure: no clock, no randomness, no Kafka, no async. Time arrives as [`Timestamp`], randomness as a hash of the task.

#[cfg(all(feature = "planted", not(debug_assertions)))]
compile_error!("planted bugs do not go into a release build");

pub mod agenda;
pub mod alert;
pub mod backoff;
pub mod brake;
pub mod breaker;
pub mod campaign;
mod causes;
pub mod command;
pub mod completions;
pub mod concurrency;
mod consequence;
pub mod control;
pub mod cooldown;
pub mod cron;
pub mod digest;
pub mod duplicates;
pub mod engine;
pub mod entry;
mod fairness;
pub mod forced;
pub mod gate;
pub mod hold;
pub mod ids;
pub mod key_order;
pub mod lane;
mod map;
pub mod outcome;
pub mod overdue;
pub mod pending;
pub mod planted;
pub mod quota;
pub mod ramp;
pub mod saved;
pub mod scene;
pub mod selector;
pub mod selector_index;
pub mod sink;
pub mod span;
pub mod state;
pub mod step;
pub mod taken;
pub mod task;
pub mod tier;
pub mod time;
pub mod topic;
pub mod verdict;
pub mod wait;
pub mod wall;
pub mod window;

pub use backoff::{Backoff, Base, Jitter, Policy};
pub use causes::with_causes;
pub use digest::Digest;
pub use engine::Engine;
pub use entry::{Alert, Ended, Entry, Event, Omitted, Poison, Transition};
pub use gate::Gates;
pub use hold::{Hold, Holds};
pub use lane::{LaneId, Source};
pub use outcome::{Outcome, Reason, Terminal, Verdict};
pub use overdue::Overdue;
pub use scene::{Ordering, Overrides, Rate, Scene, Scenes, Weight};
pub use sink::{Sink, Sinks};
pub use state::{State, StateKey};
pub use step::{Action, Commit, Fate, Input, Now, Position, Returned, Settlement, Writable};
pub use task::{Exhausted, Failure, Header, Kind, Name, Origin, Record, Stopped, Task};
pub use tier::{Ladder, Tier};
pub use time::Timestamp;
pub use wait::{Deferral, Wait};
