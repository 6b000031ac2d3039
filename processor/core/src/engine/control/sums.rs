//! The answers to requests: when those of all shards are there, a command has ended.
//!
//! An answer is an open offset of the lane of commands where its request stands, until all are there, and one record follows from them: the
//! end, or a step for each shard that all look once more. Not what a shard counts, which is a step's. Invariant: each shard is counted once,
//! however often its answer is written.

use std::collections::{BTreeMap, BTreeSet};
use std::mem;

use super::super::Engine;
use super::{FAR, told};
use crate::control::{Answer, Control, Counts, Ended, Place, Step};
use crate::entry::Entry;
use crate::lane::{LaneId, Source};
use crate::step::{Action, Now};

/// The answers to requests that stand in the shards of a worker.
#[derive(Debug, Default)]
pub(super) struct Sums {
    /// Those of which some are missing, by the shard and the place of the request.
    open: BTreeMap<(i32, Place), Sum>,
}

/// The answers to a request.
#[derive(Debug)]
struct Sum {
    /// The last answer, which says what is asked of all.
    of: Answer,
    /// The offset of each answer and what it says, by its first shard.
    answers: BTreeMap<i32, (i64, Answer)>,
}

/// What an answer makes of a sum.
enum Summed {
    /// Nothing: it was counted.
    Twice,
    /// Others are missing.
    Open,
    /// All are there.
    All(Sum),
}

// === impl Sums ===

impl Sums {
    /// Whether no answer waits for others.
    pub(super) fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    /// Counts an answer.
    fn add(&mut self, shard: i32, offset: i64, answer: Answer) -> Summed {
        let key = (shard, answer.place);
        let sum = self.open.entry(key).or_insert_with(|| Sum {
            of: answer.clone(),
            answers: BTreeMap::new(),
        });
        let is_known = |shard| {
            let mut others = sum.answers.values();
            others.any(|(_, other)| other.of.contains(shard))
        };
        let Some(first) = answer.of.first().copied() else {
            return Summed::Twice;
        };
        if answer.of.iter().any(is_known) {
            return Summed::Twice;
        }
        sum.answers.insert(first, (offset, answer));
        if sum.is_whole() {
            self.open.remove(&key).map_or(Summed::Twice, Summed::All)
        } else {
            Summed::Open
        }
    }

    /// Forgets the answers of a shard.
    pub(super) fn forget(&mut self, shard: i32) {
        self.open.retain(|(of, _), _| *of != shard);
    }
}

// === impl Sum ===

impl Sum {
    /// Whether all shards have answered.
    fn is_whole(&self) -> bool {
        let answers = self.answers.values();
        let there: usize = answers.map(|(_, answer)| answer.of.len()).sum();
        there >= self.of.shards as usize
    }

    /// What all of them have counted.
    fn counts(&self) -> Counts {
        let answers = self.answers.values();
        answers.fold(Counts::default(), |counts, (_, answer)| {
            counts.and(answer.counts)
        })
    }

    /// What follows from all of them.
    fn entries(&self, now: Now, shard: i32) -> Vec<Entry> {
        let counts = self.counts();
        let mut answers = self.answers.values();
        if let Some(again) = answers.find_map(|(_, answer)| answer.again.as_deref()) {
            let step = |shard| {
                let step = Step {
                    before: if shard == 0 {
                        counts
                    } else {
                        Counts::default()
                    },
                    ..again.clone()
                };
                told(shard, Control::Step(step))
            };
            return (0..self.of.shards.cast_signed()).map(step).collect();
        }
        let ended = Ended {
            place: self.of.place,
            id: self.of.id.clone(),
            at: now.wall,
            ids: self.of.ids,
            result: Ok(counts),
        };
        vec![told(shard, Control::Ended(ended))]
    }

    /// One answer that says what all of them do.
    fn joined(&self) -> Answer {
        let none = Answer {
            of: BTreeSet::new(),
            counts: Counts::default(),
            again: None,
            ..self.of.clone()
        };
        self.answers.values().fold(none, |mut all, (_, answer)| {
            all.of.extend(answer.of.iter().copied());
            all.counts = all.counts.and(answer.counts);
            all.again = all.again.or_else(|| answer.again.clone());
            all
        })
    }
}

// === impl Engine ===

impl Engine {
    /// An answer: when all are there, the command has ended.
    pub(super) fn sum_up(
        &mut self,
        now: Now,
        lane: LaneId,
        offset: i64,
        answer: Answer,
        actions: &mut Vec<Action>,
    ) {
        match self.commands.sums.add(lane.shard, offset, answer) {
            Summed::Twice => self.over(lane, offset, 0, Vec::new(), actions),
            Summed::Open => {}
            Summed::All(sum) => {
                let entries = sum.entries(now, lane.shard);
                self.over_all(lane, sum, entries, actions);
            }
        }
    }

    /// Several answers are over, and this follows from all of them.
    fn over_all(
        &mut self,
        lane: LaneId,
        sum: Sum,
        mut entries: Vec<Entry>,
        actions: &mut Vec<Action>,
    ) {
        for (offset, _) in sum.answers.into_values() {
            self.over(lane, offset, 0, mem::take(&mut entries), actions);
        }
    }

    /// Answers that wait far behind the end of a lane go to its end as one, so that the lane can be read on.
    pub(super) fn carry_sums_on(&mut self, actions: &mut Vec<Action>) {
        let mut far = Vec::new();
        // Of a command that is long over, somebody has answered twice.
        let oldest = self.latest.before(crate::control::LONGEST);
        for ((shard, place), sum) in &self.commands.sums.open {
            let lane = LaneId {
                shard: *shard,
                source: Source::Commands,
            };
            let end = self.lanes.end(lane).unwrap_or(0);
            if sum.answers.values().any(|(offset, _)| end - offset > FAR) || place.at < oldest {
                far.push((*shard, *place));
            }
        }
        for key in far {
            if self.is_full() {
                return;
            }
            let Some(sum) = self.commands.sums.open.remove(&key) else {
                continue;
            };
            let lane = LaneId {
                shard: key.0,
                source: Source::Commands,
            };
            let entries = if key.1.at < oldest {
                Vec::new()
            } else {
                vec![told(lane.shard, Control::Answer(sum.joined()))]
            };
            self.over_all(lane, sum, entries, actions);
        }
    }
}
