//! The window of one partition: which offsets are open, and what may be committed.
//!
//! Not the tasks themselves. Invariant: the watermark never passes an open offset, and every completion above it is in the
//! [`Completions`] that are committed with it, so a crash repeats only what is unknown.

use std::collections::{BTreeSet, VecDeque};

use crate::completions::{self, Completions};
use crate::taken::Taken;

/// Open and completed offsets of one partition, from the lowest open one up.
#[derive(Clone, Debug)]
pub struct Window {
    /// Offsets read and not yet below the watermark, rising; offsets between them never reach us (transaction markers, compaction).
    slots: VecDeque<Slot>,
    /// One past the last offset read.
    end: i64,
    /// The next offset of which it is not known whether it holds a record, if that is beyond `end`.
    passed: i64,
    /// Completions known from the offset commit that this window started from.
    known: Completions,
    /// Offsets beyond `end` whose consequence stands in a ledger batch, or is durable.
    taken: Taken,
    /// Offsets beyond `end` whose tasks are in memory all the same, since a command has reached them.
    early: BTreeSet<i64>,
    /// How many slots are open.
    open: usize,
}

/// One offset of the window.
#[derive(Clone, Copy, Debug)]
struct Slot {
    /// The offset.
    offset: i64,
    /// Whether its consequence stands in a ledger batch.
    complete: bool,
}

/// What reading an offset means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Read {
    /// New: its consequence is still to be found.
    Open,
    /// The consequence of the offset is durable already, or it was read before.
    Known,
}

/// Where an offset lies, seen from what was read so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ahead {
    /// The offset was read, and with it everything below.
    Read,
    /// The offset is still to be read, and complete, as the last commit says, which says of the offsets below which ones are open.
    Complete,
    /// Nobody has said anything of it.
    Unknown,
}

// === impl Window ===

impl Window {
    /// The window that continues from an offset commit: reading starts at `start`.
    pub fn resume(start: i64, known: Completions) -> Self {
        Self::resume_with(start, known, Taken::default())
    }

    /// As [`Self::resume`], where records beyond were taken.
    pub fn resume_with(start: i64, known: Completions, mut taken: Taken) -> Self {
        taken.forget_below(start);
        Self {
            slots: VecDeque::new(),
            end: start,
            passed: start,
            known,
            taken,
            early: BTreeSet::new(),
            open: 0,
        }
    }

    /// Notes that `offset` was read.
    pub fn read(&mut self, offset: i64) -> Read {
        if offset < self.end {
            return Read::Known;
        }
        self.end = offset + 1;
        let is_early = !self.early.is_empty() && self.early.remove(&offset);
        let taken = self.taken.contains(offset);
        let complete = taken || self.known.contains(offset);
        // Completed offsets with nothing open below them need no slot, unless the batch that completes them may still be refused.
        if complete && !taken && self.slots.is_empty() {
            return Read::Known;
        }
        self.slots.push_back(Slot { offset, complete });
        if complete {
            return Read::Known;
        }
        self.open += 1;
        if is_early { Read::Known } else { Read::Open }
    }

    /// Takes a record before it is read: its task is in memory from now on. False if it was read, or taken, or is complete.
    pub fn take(&mut self, offset: i64) -> bool {
        let is_done =
            offset < self.end || self.known.contains(offset) || self.taken.contains(offset);
        !is_done && self.early.insert(offset)
    }

    /// Whether an offset was taken whose consequence is not written.
    pub fn is_early(&self, offset: i64) -> bool {
        self.early.contains(&offset)
    }

    /// The taken offsets.
    pub const fn taken(&mut self) -> &mut Taken {
        &mut self.taken
    }

    /// Notes that nothing below `end` is still to be read: behind the last record are only markers of transactions, or what was aborted.
    pub fn pass(&mut self, end: i64) {
        self.passed = self.passed.max(end);
    }

    /// One past the last offset that was read, or passed.
    pub fn end(&self) -> i64 {
        self.end.max(self.passed)
    }

    /// Notes that the consequence of `offset` stands in a ledger batch.
    ///
    /// # Panics
    /// If `offset` is not open: a task would have two consequences.
    pub fn complete(&mut self, offset: i64) {
        if self.early.remove(&offset) {
            self.taken.insert(offset);
            return;
        }
        let index = self
            .slots
            .binary_search_by_key(&offset, |slot| slot.offset)
            .unwrap_or_else(|_| unreachable!("offset {offset} completed but not open"));
        assert!(
            !self.slots[index].complete,
            "offset {offset} completed twice"
        );
        self.slots[index].complete = true;
        self.open -= 1;
    }

    /// Takes back the completion of `offset`, whose ledger batch was refused.
    pub fn reopen(&mut self, offset: i64) {
        if offset >= self.end {
            assert!(
                self.taken.remove(offset),
                "offset {offset} reopened while open"
            );
            self.early.insert(offset);
            return;
        }
        // It may have been taken, and read since.
        self.taken.remove(offset);
        let index = self
            .slots
            .binary_search_by_key(&offset, |slot| slot.offset)
            .unwrap_or_else(|_| unreachable!("offset {offset} reopened after it was forgotten"));
        assert!(
            self.slots[index].complete,
            "offset {offset} reopened while open"
        );
        self.slots[index].complete = false;
        self.open += 1;
    }

    /// The next offset to commit: one past the last completed one with nothing open below it.
    pub fn watermark(&self) -> i64 {
        self.slots
            .iter()
            .find(|slot| !slot.complete)
            .map_or_else(|| self.end(), |slot| slot.offset)
            // What was completed before a restart and not read again yet stays completed.
            .max(self.known_prefix())
    }

    /// The completions above the watermark, to be committed with it.
    pub fn completions(&self) -> Completions {
        let watermark = self.watermark();
        let open = self
            .slots
            .iter()
            .filter(|slot| !slot.complete)
            .map(|slot| slot.offset);
        let mut completions = Completions::between(watermark, self.end, open);
        completions.extend(&self.known, watermark);
        completions
    }

    /// Forgets everything below `watermark`, which a commit has made durable.
    pub fn forget_below(&mut self, watermark: i64) {
        while self
            .slots
            .front()
            .is_some_and(|slot| slot.offset < watermark && slot.complete)
        {
            self.slots.pop_front();
        }
        self.taken.forget_below(watermark);
    }

    /// What is known of `offset`, seen from what was read so far.
    pub fn ahead(&self, offset: i64) -> Ahead {
        if offset < self.end {
            Ahead::Read
        } else if self.known.contains(offset) || self.taken.contains(offset) {
            Ahead::Complete
        } else {
            Ahead::Unknown
        }
    }

    /// Whether offsets are still to be read that the last commit said something of.
    pub fn is_behind_known(&self) -> bool {
        self.end < self.known.end()
    }

    /// How many offsets are open.
    pub const fn open(&self) -> usize {
        self.open
    }

    /// Whether one more offset may be read: whatever completes in whatever order, the completions still fit an offset commit.
    pub fn has_room(&self) -> bool {
        self.has_room_for(self.end)
    }

    /// Whether `offset` may be read, which may lie far beyond the last one: aborted transactions and compaction leave gaps of any
    /// length.
    ///
    /// Either every offset of the window has its bit, or so few are open that a run for each of them fits.
    pub fn has_room_for(&self, offset: i64) -> bool {
        let Some(low) = self.slots.front().map(|slot| slot.offset) else {
            // Nothing below it is open, so that nothing is to be remembered but what the last commit held.
            return true;
        };
        let span = self.end.max(self.known.end()).max(offset + 1) - low;
        span <= completions::MAX_SPAN
            || (self.open < completions::MAX_RUNS && span <= completions::MAX_RUN)
    }

    /// Where the completions known from the last commit leave the watermark while nothing is open below.
    fn known_prefix(&self) -> i64 {
        if self.open > 0 {
            return i64::MIN;
        }
        self.known.first_open_from(self.end())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use crate::completions::Binding;

    /// A step of the model.
    #[derive(Clone, Debug)]
    enum Step {
        /// Read the next offset, after a gap.
        Read { gap: i64 },
        /// Complete the n-th open offset.
        Complete { nth: usize },
        /// Commit, and crash and resume from the commit.
        Crash,
        /// Commit and forget.
        Commit,
        /// Pass the markers at the end of what was read.
        Pass { gap: i64 },
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            6 => (0_i64..3).prop_map(|gap| Step::Read { gap }),
            6 => (0_usize..64).prop_map(|nth| Step::Complete { nth }),
            1 => Just(Step::Crash),
            2 => Just(Step::Commit),
            1 => (1_i64..3).prop_map(|gap| Step::Pass { gap }),
        ]
    }

    /// What is known of every offset, kept naively.
    #[derive(Default)]
    struct Model {
        /// Every offset that holds a record.
        records: BTreeSet<i64>,
        /// Read and not completed.
        open: BTreeSet<i64>,
        /// Completed.
        complete: BTreeSet<i64>,
    }

    impl Model {
        fn lowest_unfinished(&self) -> Option<i64> {
            self.records
                .iter()
                .find(|offset| !self.complete.contains(offset))
                .copied()
        }
    }

    proptest! {
        #[test]
        fn a_commit_covers_exactly_what_is_complete(steps in prop::collection::vec(step(), 1..200)) {
            let mut window = Window::resume(0, Completions::default());
            let mut model = Model::default();
            let mut log_end = 0;

            for step in steps {
                match step {
                    Step::Read { gap } => {
                        // After a crash the records that were there are read again first.
                        let unread = model.records.iter().find(|offset| **offset >= window.end()).copied();
                        let offset = unread.unwrap_or(log_end + gap);
                        log_end = log_end.max(offset + 1);
                        model.records.insert(offset);
                        let read = window.read(offset);
                        prop_assert_eq!(read == Read::Known, model.complete.contains(&offset));
                        if read == Read::Open {
                            model.open.insert(offset);
                        }
                    }
                    Step::Complete { nth } => {
                        if let Some(offset) = model.open.iter().nth(nth % model.open.len().max(1)).copied() {
                            window.complete(offset);
                            model.open.remove(&offset);
                            model.complete.insert(offset);
                        }
                    }
                    Step::Crash => {
                        let text = window.completions().encode(Binding::default(), window.watermark());
                        let known = Completions::decode(&text, Binding::default(), window.watermark());
                        window = Window::resume(window.watermark(), known.unwrap());
                        model.open.clear();
                    }
                    Step::Commit => window.forget_below(window.watermark()),
                    // Only where everything was read that is there.
                    Step::Pass { gap } if window.end() >= log_end => {
                        log_end = window.end() + gap;
                        window.pass(log_end);
                        if window.open() == 0 {
                            prop_assert_eq!(window.watermark(), log_end);
                        }
                    }
                    Step::Pass { .. } => {}
                }
                let watermark = window.watermark();
                if let Some(lowest) = model.lowest_unfinished() {
                    prop_assert!(watermark <= lowest, "watermark {watermark} passes {lowest}");
                }
                let covered = window.completions();
                for offset in &model.records {
                    let known = *offset < watermark || covered.contains(*offset);
                    prop_assert_eq!(known, model.complete.contains(offset), "offset {}", offset);
                }
                prop_assert_eq!(window.open(), model.open.len());
            }
        }

        #[test]
        fn what_is_taken_has_one_consequence(steps in prop::collection::vec((0_u8..7, 0_usize..64), 1..300)) {
            let mut window = Window::resume(0, Completions::default());
            // In memory; done; done and durable; the marks as they are written.
            let (mut open, mut done, mut durable) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
            let mut marks = Taken::default();
            let mut kept = (0, String::new(), marks.clone());
            for (what, nth) in steps {
                match what {
                    0 | 1 => {
                        let offset = window.end();
                        if window.read(offset) == Read::Open {
                            prop_assert!(!done.contains(&offset) && open.insert(offset), "{} twice", offset);
                        } else {
                            prop_assert!(done.contains(&offset) || open.contains(&offset), "{} lost", offset);
                        }
                    }
                    2 => {
                        let offset = window.end() + nth as i64;
                        if window.take(offset) {
                            prop_assert!(!done.contains(&offset) && open.insert(offset), "{} twice", offset);
                        } else {
                            prop_assert!(done.contains(&offset) || open.contains(&offset), "{} lost", offset);
                        }
                    }
                    3 => if let Some(offset) = open.iter().nth(nth % open.len().max(1)).copied() {
                        window.complete(offset);
                        open.remove(&offset);
                        done.insert(offset);
                    }
                    // A batch is refused: everything that is not durable is open again.
                    4 => for offset in done.difference(&durable).copied().collect::<Vec<i64>>() {
                        window.reopen(offset);
                        done.remove(&offset);
                        open.insert(offset);
                    },
                    5 => {
                        let watermark = window.watermark();
                        let text = window.completions().encode(Binding::default(), watermark);
                        for (chunk, value) in window.taken().changes() {
                            marks.replay(chunk, value.as_deref()).unwrap();
                        }
                        kept = (watermark, text, marks.clone());
                        durable = done.clone();
                        window.forget_below(watermark);
                    }
                    _ => {
                        let (start, text, taken) = kept.clone();
                        let known = Completions::decode(&text, Binding::default(), start).unwrap();
                        window = Window::resume_with(start, known, taken.clone());
                        marks = taken;
                        open.clear();
                        done = durable.clone();
                    }
                }
                for offset in &open {
                    prop_assert!(window.watermark() <= *offset || *offset >= window.end());
                }
            }
        }

        #[test]
        fn completions_always_fit_an_offset_commit(done in prop::collection::vec(any::<bool>(), 1..2_000), stretch in 1_i64..40, gap in 0_i64..100_000, gap_at in 0_usize..10_000) {
            let mut window = Window::resume(7, Completions::default());
            let mut next = 7;
            for (number, complete) in done.iter().cycle().take(60_000).enumerate() {
                if !window.has_room_for(next) {
                    break;
                }
                window.read(next);
                if *complete {
                    window.complete(next);
                }
                next += stretch;
                if number == gap_at {
                    // A long transaction was aborted.
                    next += gap;
                }
            }

            let text = window.completions().encode(Binding::default(), 7);

            prop_assert!(text.len() <= completions::MAX_TEXT, "{} bytes", text.len());
        }
    }
}
