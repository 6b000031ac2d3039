//! Turns: which scene's tasks are started next, where several have some in line.
//!
//! Deficit round robin (Shreedhar and Varghese, 1995), where every task costs the same: in a turn, a scene may start [`QUANTUM`] times its
//! weight; then it goes behind all others. What is left when a step ends, or when what scenes share is used up, room in the batch, a rate
//! or the calls of a host, is started when there is some again; what is left when it has no task is forfeited. Invariant: between two turns
//! of a scene, every other one that has tasks in line has one, unless something holds it that is its own.

use crate::scene::Weight;

/// The turn that a scene has, or waits for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Turn {
    /// Its place: who has waited for the longest has the lowest.
    pub(crate) place: u64,
    /// How many more tasks may be started in it; none before it has begun.
    left: usize,
}

/// Tasks of a scene of weight 1 that are started before those of the next one: few, so that others need not wait for long where a slow
/// rate is shared, and enough that turns cost little.
const QUANTUM: usize = 4;

// === impl Turn ===

impl Turn {
    /// A turn behind all others: no place was given before that is as high.
    pub(crate) const fn last(place: u64) -> Self {
        Self { place, left: 0 }
    }

    /// What may be started in it.
    pub(crate) fn begin(&mut self, weight: Weight) -> usize {
        if self.left == 0 {
            self.left = QUANTUM * usize::from(weight.get());
        }
        self.left
    }

    /// So many tasks were started in it; whether it goes on.
    pub(crate) const fn goes_on(&mut self, started: usize) -> bool {
        self.left -= started;
        self.left > 0
    }
}
