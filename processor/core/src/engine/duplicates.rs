//! The engine's part in duplicates: a task whose id is under way, or has ended of late, is dropped where its scene wants that.
//!
//! What is known of ids is [`crate::duplicates`]'s. Invariants: a task is a duplicate or not when it is read from the retry topic, before
//! anything else is done with it; and what is known of its id is written in the transaction that makes it so.

use super::{Closing, Engine};
use crate::consequence;
use crate::duplicates::{Became, Decided, Identity, Known, Newcomer, Told};
use crate::entry::{Ended, Entry};
use crate::lane::Source;
use crate::outcome::Terminal;
use crate::planted::Bug;
use crate::state::State;
use crate::step::{Action, Now, Position, Settlement};
use crate::task::{Kind, Task};
use crate::time::Timestamp;

impl Engine {
    /// A shard is ours, of whose ids former owners have written this.
    pub(super) fn know_ids(&mut self, now: Now, shard: i32, ids: Vec<(Identity, Known)>) {
        if self.bug.is(Bug::IdsForgotten) {
            return;
        }
        self.duplicates.begin(shard, now.wall, ids);
    }

    /// Other rules are in force: whether one of them looks for duplicates.
    pub(super) fn want_ids(&mut self) {
        let mut scenes = self.scenes.iter();
        self.duplicates.is_wanted = scenes.any(|scene| scene.duplicates.looks());
    }

    /// Whether a task that was read is a duplicate; it is dropped then.
    pub(super) fn is_dropped(
        &mut self,
        now: Now,
        position: Position,
        task: &Task,
        actions: &mut Vec<Action>,
    ) -> bool {
        let Position { lane, offset, .. } = position;
        if !self.duplicates.is_wanted || lane.source != Source::Tasks {
            return false;
        }
        let scene = self.scenes.find(&task.scene);
        if !scene.is_some_and(|scene| scene.duplicates.looks()) {
            return false;
        }
        let id = Identity::of_task(task);
        if task.attempt > 1 {
            self.duplicates.come_back(lane.shard, id, offset);
            return false;
        }
        match self.duplicates.enter(now.wall, lane.shard, id, offset) {
            Newcomer::First | Newcomer::Unknown => false,
            Newcomer::Duplicate(known) => {
                let told = consequence::duplicate(task, known, "dropped", now.wall);
                let closing = Closing {
                    lane,
                    offset,
                    home: lane.shard,
                    bytes: 0,
                };
                self.settle(closing, vec![told], actions);
                true
            }
        }
    }

    /// A settlement: what it means for the id of its task is written with it.
    pub(super) fn note_ids(&mut self, closing: Closing, entries: &mut Vec<Entry>) {
        if self.duplicates.is_idle() || closing.home != closing.lane.shard {
            return;
        }
        let Some(decided) = self.decided(closing, entries) else {
            return;
        };
        if let Some(state) = self.duplicates.became(closing.lane.shard, decided) {
            let is_lost = decided.became == Became::Parked && self.bug.is(Bug::IdUnwritten);
            if !is_lost {
                entries.push(Entry::State(state));
            }
        }
    }

    /// A delivery to a topic: both forms of what follows from it get what is known of its id then.
    pub(super) fn deliver_ids(
        &mut self,
        closing: Closing,
        entries: &mut Vec<Entry>,
        otherwise: &mut Vec<Entry>,
    ) {
        if self.duplicates.is_idle() || closing.home != closing.lane.shard {
            return;
        }
        let taken = self.decided(closing, entries);
        let refused = self.decided(closing, otherwise);
        let (Some(taken), Some(refused)) = (taken, refused) else {
            return;
        };
        if self.duplicates.delivers(closing.lane.shard, taken) {
            for (entries, decided) in [(entries, taken), (otherwise, refused)] {
                let Decided {
                    id, offset, became, ..
                } = decided;
                let known = became.known(offset);
                entries.push(Entry::State(State::Id { id, known }));
            }
        }
    }

    /// A delivery goes into the batch: which of both has become of it is known when that is over.
    pub(super) fn note_delivery(&mut self, settlement: &Settlement) {
        let Settlement {
            lane,
            offset,
            entries,
            otherwise,
            ..
        } = settlement;
        if self.duplicates.is_idle() || otherwise.is_empty() {
            return;
        }
        let state = |entries: &[Entry]| {
            let mut states = entries.iter().filter_map(Entry::state);
            states.find_map(State::id)
        };
        let delivered = entries.iter().find_map(Entry::delivered);
        let (Some((_, task)), Some((id, if_taken)), Some((_, if_refused))) =
            (delivered, state(entries), state(otherwise))
        else {
            return;
        };
        let (given, _) = self.lanes.batches(*lane);
        let told = Told {
            id,
            task: task.origin.offset,
            if_taken,
            if_refused,
        };
        self.duplicates.delivered((*lane, *offset), given + 1, told);
    }

    /// What was to be written of an id that is forgotten was not.
    pub(super) fn id_unwritten(&mut self, shard: i32, id: Identity) {
        if self.has(shard) {
            self.duplicates.unwritten(shard, id);
        }
    }

    /// What is to be written of ids that are forgotten.
    pub(super) fn id_changes(&mut self, states: &mut Vec<(i32, State)>) {
        let gone = self.duplicates.changes().into_iter();
        states.extend(gone.map(|(shard, id)| (shard, State::Id { id, known: None })));
    }

    /// Lets the offsets of shards be committed beside what is to be written of ids: nothing is written that goes with none.
    pub(super) fn touch_forgotten_ids(&mut self) {
        for shard in self.duplicates.forgotten() {
            self.lanes.touch(shard);
        }
    }

    /// How many ids are known that are under way, or have ended of late.
    pub fn known_ids(&self) -> usize {
        self.duplicates.len()
    }

    /// How many tasks there were so far whose ids are not known since there was no room: duplicates of theirs are tasks like any other.
    pub const fn unknown_ids(&self) -> u64 {
        self.duplicates.unknown()
    }

    /// The bytes that is known of ids takes.
    pub(super) fn id_bytes(&self) -> usize {
        self.duplicates.bytes()
    }

    /// What the entries of a settlement say of a task of the shard, if they are about one.
    fn decided(&self, closing: Closing, entries: &[Entry]) -> Option<Decided> {
        // What cannot be read has no place among the ids: it may name one that another task has.
        if entries
            .iter()
            .any(|entry| matches!(entry, Entry::Poison { .. }))
        {
            return None;
        }
        entries.iter().find_map(|entry| {
            if let Some((to, task)) = entry.parked().filter(|(_, task)| task.kind == Kind::Work) {
                let scene = self.scenes.find(&task.scene);
                let looks = scene.is_some_and(|scene| scene.duplicates.looks());
                let stays = to.is_none_or(|to| to == closing.lane.shard);
                return Some(Decided {
                    id: Identity::of_task(task),
                    offset: task.origin.offset,
                    became: if stays { Became::Parked } else { Became::Gone },
                    is_wanted: looks && stays,
                });
            }
            let ended = entry.ended()?;
            let until = self.known_until(ended);
            Some(Decided {
                id: Identity::of(&ended.scene, &ended.id),
                offset: ended.origin.offset,
                became: until.map_or(Became::Gone, Became::Ended),
                is_wanted: until.is_some(),
            })
        })
    }

    /// Until when the id of a task that has ended is known, if it is: what has ended badly may be produced again at once.
    fn known_until(&self, ended: &Ended) -> Option<Timestamp> {
        let rule = self.scenes.find(&ended.scene)?.duplicates;
        let is_kept = match ended.terminal {
            Terminal::Delivered | Terminal::Cancelled => true,
            Terminal::Dead | Terminal::Expired => false,
        };
        if !is_kept || !rule.looks() || rule.window.is_zero() {
            return None;
        }
        let window = if self.bug.is(Bug::DuplicateWindowShort) {
            rule.window / 1_000
        } else {
            rule.window
        };
        Some((ended.at + window).ceil_to_millis())
    }
}
