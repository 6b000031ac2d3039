//! Lanes that stand still until a registry has said what the schema of their next record is.
//!
//! Not the asking. Invariant: of a lane that has waited, the record that it waited at is read before all that came behind it, although some
//! of that was on its way already: each wait is a round of its own, and what comes of an earlier one is left out.

use std::collections::HashMap;

use retide_avro::schemas::Key;
use retide_core::LaneId;
use retide_core::Position;

/// The lanes that wait.
#[derive(Debug, Default)]
pub(super) struct Unnamed {
    /// Where each waits, and for what.
    waiting: HashMap<LaneId, (Position, Key)>,
    /// How often each has waited since its reading began.
    rounds: HashMap<LaneId, u64>,
}

/// Where the round stands in the number of a run, which the feed gives back as it is. The engine counts the others from zero, one for each
/// time that a lane is full.
const ROUND: u32 = 32;

// === impl Unnamed ===

impl Unnamed {
    /// Whether a lane waits.
    pub(super) fn is_any(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Whether what was read there is the next of its lane; its run is the engine's then.
    pub(super) fn is_in_turn(&self, position: &mut Position) -> bool {
        if self.rounds.is_empty() && self.waiting.is_empty() {
            return true;
        }
        let round = self.rounds.get(&position.lane).copied().unwrap_or_default();
        let is_in_turn = position.run >> ROUND == round;
        position.run &= (1 << ROUND) - 1;
        is_in_turn && !self.waiting.contains_key(&position.lane)
    }

    /// A lane waits at a record for what `key` means.
    pub(super) fn wait(&mut self, at: Position, key: Key) {
        self.waiting.insert(at.lane, (at, key));
    }

    /// The lanes that wait, and for what.
    pub(super) fn waiting(&self) -> Vec<(LaneId, Key)> {
        let waiting = self.waiting.iter();
        waiting.map(|(lane, (_, key))| (*lane, *key)).collect()
    }

    /// Where a lane that waits reads on, with the run that is to be given with each record.
    pub(super) fn go_on(&mut self, lane: LaneId) -> Position {
        let (at, _) = self
            .waiting
            .remove(&lane)
            .unwrap_or_else(|| unreachable!("{lane:?} does not wait"));
        let round = self.rounds.entry(lane).or_default();
        *round += 1;
        let run = at.run | *round << ROUND;
        Position { run, ..at }
    }

    /// A lane begins with a run of its own, or is gone.
    pub(super) fn forget(&mut self, lane: LaneId) {
        self.waiting.remove(&lane);
        self.rounds.remove(&lane);
    }

    /// Forgets the lanes that are not `ours`.
    pub(super) fn keep(&mut self, ours: impl Fn(LaneId) -> bool) {
        self.waiting.retain(|lane, _| ours(*lane));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use retide_core::Source;

    const LANE: LaneId = LaneId {
        shard: 3,
        source: Source::Tasks,
    };

    fn at(run: u64, offset: i64) -> Position {
        Position {
            lane: LANE,
            run,
            offset,
        }
    }

    #[test]
    fn the_record_that_was_waited_at_comes_before_what_was_on_its_way() {
        let mut unnamed = Unnamed::default();
        assert!(unnamed.is_in_turn(&mut at(2, 7)));

        unnamed.wait(at(2, 7), Key::Id(103));
        assert!(!unnamed.is_in_turn(&mut at(2, 8)));
        let again = unnamed.go_on(LANE);

        assert_eq!(again.offset, 7);
        // Read before the lane stood still.
        assert!(!unnamed.is_in_turn(&mut at(2, 9)));
        let mut first = at(again.run, 7);
        assert!(unnamed.is_in_turn(&mut first));
        assert_eq!(first, at(2, 7));

        // The engine has it read again for its own reasons.
        unnamed.forget(LANE);
        assert!(unnamed.is_in_turn(&mut at(3, 10)));
    }
}
