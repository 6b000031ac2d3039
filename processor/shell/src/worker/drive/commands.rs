//! Commands: the tiers are swept for the tasks that they are about, and what is found goes to the engine.
//!
//! Invariant: what is found waits while the engine has enough of it, and delays nothing that is due.

use retide_core::campaign::Spec;
use retide_core::scene::TargetNames;
use retide_core::step::{LetterPurpose, Letters, Look, ReadLetters};
use retide_core::{Input, LaneId};

use crate::worker::drive::State;
use crate::worker::ledger::Ledger;
use crate::worker::letters::Asked;
use crate::worker::sweep::{Found, Sweeping};

// === impl State ===

impl<L: Ledger> State<L> {
    /// Has the tiers looked through.
    pub(super) fn look(&mut self, look: Look) {
        let is_absent =
            |lane: &LaneId| self.unreadable.is_deleted(lane.source) || self.unbound.contains(lane);
        let lanes = look.lanes.iter().map(|of| of.lane);
        let absent = lanes.filter(is_absent).collect();
        self.parts.feed.sweep(Sweeping { look, absent });
    }

    /// Has dead letters read.
    pub(super) fn read_letters(&mut self, read: ReadLetters) {
        let names_targets = |spec: &Spec| {
            let selector = spec.selector.as_ref();
            selector.is_some_and(|selector| !selector.parts().targets.is_empty())
        };
        let asks = match &read.purpose {
            LetterPurpose::Replay { spec, others } => {
                names_targets(spec) || others.iter().any(|(_, spec)| names_targets(spec))
            }
            LetterPurpose::Age => false,
        };
        let targets = if asks {
            self.rules.scenes.iter().map(|scene| &**scene).collect()
        } else {
            TargetNames::default()
        };
        self.parts.feed.read_letters(Asked {
            read,
            targets,
            registry: self.parts.registry.clone(),
        });
    }

    /// Dead letters were read.
    pub(super) fn letters(&mut self, letters: Letters) {
        self.step(Input::Letters(letters));
    }

    /// Takes some of what was found, if the engine wants it: once a turn, so that it is neither kept waiting by records nor keeps them
    /// waiting.
    pub(super) fn take_found(&mut self) {
        if self.parts.engine.wants_found()
            && let Ok(found) = self.parts.feed.found.try_recv()
        {
            self.found(found);
        }
    }

    /// The sweep has found something, and has looked so far.
    pub(super) fn found(&mut self, found: Vec<Found>) {
        let now = self.now();
        for found in found {
            let input = match found {
                Found::Begun { number, ends } => Input::LookBegun { number, ends },
                Found::Task {
                    number,
                    lane,
                    offset,
                    task,
                } => Input::Found {
                    number,
                    lane,
                    offset,
                    task,
                },
                Found::Looked { number, lane, next } => Input::Looked { number, lane, next },
            };
            self.step_at(now, input);
        }
    }
}
