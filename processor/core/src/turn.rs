//! Turns: which scene's tasks are started next, where several have some in line.
//!
//! Deficit round robin (Shreedhar and Varghese, 1995), where every task costs the same: in a turn, a scene may start [`QUANTUM`] times its
//! weight. What is left when a step ends, or when what scenes share is used up, room in the batch or a rate, is started when there is some
//! again; what is left when it has no task, or no call, is forfeited. Invariant: between two turns of a scene, every other one that has
//! tasks in line has one.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::scene::Weight;

/// Whose turn it is.
#[derive(Debug, Default)]
pub(crate) struct Turns {
    /// The scene whose tasks were started last.
    last: Option<Arc<str>>,
    /// Whether its turn goes on.
    goes_on: bool,
}

/// Tasks of a scene of weight 1 that are started before those of the next one: few, so that others need not wait for long where a slow
/// rate is shared, and enough that turns cost little.
const QUANTUM: usize = 4;

/// What a scene may start in a turn.
pub(crate) fn credit(weight: Weight) -> usize {
    QUANTUM * usize::from(weight.get())
}

// === impl Turns ===

impl Turns {
    /// Puts scenes, in order of their names, in the order of their turns.
    pub(crate) fn order(&self, scenes: &mut VecDeque<Arc<str>>) {
        let Some(last) = &self.last else { return };
        let next = match scenes.binary_search(last) {
            Ok(next) if self.goes_on => next,
            Ok(last) => last + 1,
            Err(next) => next,
        };
        scenes.rotate_left(next);
    }

    /// Tasks of this scene were started, and it may start `left` more in this turn.
    pub(crate) fn started(&mut self, scene: &Arc<str>, left: usize) {
        self.last = Some(Arc::clone(scene));
        self.goes_on = left > 0;
    }
}
