//! Fairness: which scene's ready queue is served next, where several have tasks.
//!
//! Deficit round robin (Shreedhar and Varghese, 1995): in a round, a scene may start [`QUANTUM`] tasks times its weight; then the scene goes
//! behind all others. A start costs [`START`], and a task that goes another way (it is deferred, expired, moved) costs 1: such tasks take
//! hardly anything of what the scene may start, and a scene with many of them does not hold up the others. What is left of a round when a step
//! ends, or when something that scenes share is used up (room in the batch, a rate, the calls of a host), is spent when there is some again.
//! What is left when the queue is empty is forfeited.
//! Invariant: between two rounds of a scene, every other scene that has ready tasks has one, unless something holds it that is its own.

use crate::scene::Weight;

/// The round that a scene has, or waits for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Deficit {
    /// The place of the scene among the others: the scene that has waited for the longest has the lowest.
    pub(crate) place: u64,
    /// What the scene may still spend in this round; nothing before it has begun.
    left: usize,
}

/// Tasks of a scene of weight 1 that are started before those of the next scene: few, so that others need not wait for long where a slow
/// rate is shared, and enough that a round costs little.
const QUANTUM: usize = 4;

/// What a start costs, where a task that goes another way costs 1.
const START: usize = 16;

// === impl Deficit ===

impl Deficit {
    /// A round behind all others: no place was given before that is as high.
    pub(crate) const fn last(place: u64) -> Self {
        Self { place, left: 0 }
    }

    /// Begins the round, unless it has begun.
    pub(crate) fn begin(&mut self, weight: Weight) {
        if self.left == 0 {
            self.left = QUANTUM * START * usize::from(weight.get());
        }
    }

    /// A task was started.
    pub(crate) const fn start(&mut self) {
        self.left = self.left.saturating_sub(START);
    }

    /// A task went another way than to be started.
    pub(crate) const fn pass(&mut self) {
        self.left = self.left.saturating_sub(1);
    }

    /// Whether the round is over.
    pub(crate) const fn is_over(&self) -> bool {
        self.left == 0
    }
}
