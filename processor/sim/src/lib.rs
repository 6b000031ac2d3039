//! A deterministic simulation of a whole group of retide processes: the real engine of `retide-core`, and models of everything around
//! it.
//!
//! | module | what |
//! |---|---|
//! | `world` | time, events, the way between workers, broker and targets |
//! | `plan` | who takes part, what is asked for, what goes wrong: all of it from the seed |
//! | `broker`, `group` | a model of Kafka: partitions, transactions, offsets, generations |
//! | `worker`, `ledger` | the shell's duties around the engine, without threads |
//! | `check`, `fairness`, `latest` | the judge, which knows the promises and nothing of the code |
//! | `replays` | a history of its own: campaigns that replay dead letters, and their judge |
//! | `campaign` | many histories at a time |
//! | `export` | what could be seen of a history from outside, for the checker of the crash campaign |
//! | `bug` | mistakes to plant, to see that the judge notices |
//!
//! One seed is one history: the same seed gives the same [`Report::hash`].
//!
//! ```text
//! cargo test -p retide-sim                                              seeds that once failed, and 2,000 more
//! cargo test -p retide-sim --features planted                           and every planted bug, those of the core too
//! SEED=7 cargo test -p retide-sim replay -- --nocapture                 one history, line by line
//! cargo run --release -p retide-sim -- --seeds 1000000 --from 0 --jobs 2   a campaign
//! cargo run -p retide-sim -- --seeds 9 --bug NoDrain --export DIR       ledgers for the checker, with a bug
//! ```
//!
//! The crash campaign has a checker of its own, in another language. It judges these histories, too: [`export()`] plays a campaign as that
//! checker knows it and writes down what producers, targets and topics saw; `tests/checker.rs` shows that it takes no history without a bug
//! for a broken one, and catches planted bugs.
//!
//! A seed that fails goes into `seeds.txt`. What it means changes with the model: it is worth a new test, too, where the rule is clear.
//!
//! Not modelled: brokers that die, the guarantee `at_least_once`, what librdkafka does between a call and its requests (but for requests
//! that it sends twice), encoding, ready queues of more than a thousand tasks, and gaps in offsets longer than a few dozen.

mod broker;
mod bug;
mod campaign;
mod chance;
mod check;
mod export;
mod fairness;
mod forced;
mod group;
mod holds;
mod latest;
mod ledger;
mod orders;
mod plan;
mod replays;
mod trace;
mod worker;
mod world;

use std::any::Any;
use std::panic::{self, AssertUnwindSafe};

pub use bug::Bug;
pub use campaign::{AtBroken, Summary, campaign};
pub use check::Figures;
pub use export::export;
pub use trace::Keep;

use crate::world::World;

/// What one history has shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// Its seed.
    pub seed: u64,
    /// The hash of its trace.
    pub hash: u64,
    /// How much happened.
    pub notes: u64,
    /// The promise that was broken, if one was.
    pub broken: Option<String>,
    /// Figures.
    pub figures: Figures,
    /// The trace, if it was to be kept.
    pub text: String,
}

/// Plays the history of `seed`, with `bug` planted.
pub fn play(seed: u64, bug: Bug, keep: Keep) -> Report {
    let mut report = play_world(seed, bug, keep);
    if report.broken.is_none() && (seed.is_multiple_of(REPLAYS) || is_of_replays(bug)) {
        let ended = panic::catch_unwind(AssertUnwindSafe(|| replays::play(seed, bug)));
        report.broken = ended.unwrap_or_else(|panicked| {
            let why = message(panicked.as_ref());
            Some(format!("panic: {why}"))
        });
    }
    report
}

/// Plays the history of replays of `seed` alone: the promise that was broken, if one was.
pub fn play_replays(seed: u64, bug: Bug) -> Option<String> {
    replays::play(seed, bug)
}

/// One history in so many has one of replays beside it.
const REPLAYS: u64 = 10;

/// Whether a bug is noticed by histories of replays only.
#[cfg(feature = "planted")]
fn is_of_replays(bug: Bug) -> bool {
    replays::is_ours(bug)
}

/// As above: none is planted.
#[cfg(not(feature = "planted"))]
const fn is_of_replays(_: Bug) -> bool {
    false
}

/// Plays the history of `seed` without replays.
fn play_world(seed: u64, bug: Bug, keep: Keep) -> Report {
    let mut world = World::new(seed, bug, keep);
    // An engine that finds itself in a state that cannot be has found a bug, too.
    let ended = panic::catch_unwind(AssertUnwindSafe(|| world.run()));
    if let Err(panicked) = ended {
        let why = message(panicked.as_ref());
        world.env.judge.object(|| format!("panic: {why}"));
    }
    let env = world.env;
    Report {
        seed,
        hash: env.trace.hash(),
        notes: env.trace.notes(),
        broken: env.judge.broken().cloned(),
        figures: env.judge.figures,
        text: env.trace.into_text(),
    }
}

/// What a panic said.
fn message(panicked: &(dyn Any + Send)) -> String {
    let text = panicked.downcast_ref::<String>().map(String::as_str);
    text.or(panicked.downcast_ref::<&str>().copied())
        .unwrap_or("without a word")
        .to_owned()
}
