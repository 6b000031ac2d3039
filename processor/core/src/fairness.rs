//! Fairness: which scene's ready queue is served next, where several have tasks.
//!
//! Deficit round robin (Shreedhar and Varghese, 1995), where every task costs the same: in a round, a scene may start [`QUANTUM`] times its
//! weight; then the scene goes behind all others. What is left of that when a step ends, or when something that scenes share is used up (room
//! in the batch, a rate, the calls of a host), is started when there is some again. What is left when the queue is empty is forfeited.
//! Invariant: between two rounds of a scene, every other scene that has ready tasks has one, unless something holds it that is its own.

use crate::scene::Weight;

/// The round that a scene has, or waits for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Deficit {
    /// The place of the scene among the others: the scene that has waited for the longest has the lowest.
    pub(crate) place: u64,
    /// How many more tasks may be started in this round; none before it has begun.
    left: usize,
}

/// Tasks of a scene of weight 1 that are started before those of the next scene: few, so that others need not wait for long where a slow
/// rate is shared, and enough that a round costs little.
const QUANTUM: usize = 4;

// === impl Deficit ===

impl Deficit {
    /// A round behind all others: no place was given before that is as high.
    pub(crate) const fn last(place: u64) -> Self {
        Self { place, left: 0 }
    }

    /// Begins the round, unless it has begun; how many tasks may be started in it.
    pub(crate) fn begin(&mut self, weight: Weight) -> usize {
        if self.left == 0 {
            self.left = QUANTUM * usize::from(weight.get());
        }
        self.left
    }

    /// Counts tasks that were started; whether the round goes on.
    pub(crate) const fn goes_on(&mut self, started: usize) -> bool {
        self.left -= started;
        self.left > 0
    }
}
