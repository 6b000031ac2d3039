//! The engine's part in the retention of dead letters: people are told before letters go that nobody has replayed.
//!
//! The owner of [`LEADER`] looks, which knows the letters that were replayed: at the start, and then a few times in the span in which people
//! are told. A look reads the oldest letters of each partition, passes over those that were replayed, and counts the others as far as
//! [`MOST_COUNTED`].
//! - *Told* is once for each partition and [`AGAIN`], in the transaction that says when; the next owner of the shard goes on from there.
//! - *Not told* is of partitions whose letters were all replayed, of what is no dead letter of retide's, and while nobody knows how long
//!   letters are kept.
//!
//! Not how long letters are kept, which the shell finds out, nor what is deleted and when, which is the broker's: it deletes no letter before
//! the time that is told, and whole segments after it. Invariant: an alert is about letters none of which was replayed when it was decided.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::Engine;
use crate::campaign::LEADER;
use crate::entry::{Alert, DEAD_LETTERS_EXPIRE, Expiring};
use crate::planted::Bug;
use crate::state::State;
use crate::step::{Action, LetterPurpose, LetterWant, Letters, LettersKept, Now, ReadLetters};
use crate::time::Timestamp;

/// What is known of letters that go.
#[derive(Debug, Default)]
pub(super) struct Retention {
    /// How long letters are kept, if that is known and people want to be told.
    kept: Option<LettersKept>,
    /// When people were told last, by partition.
    warned: BTreeMap<i32, Warned>,
    /// Everything below was replayed, or has gone, by partition.
    clear: BTreeMap<i32, i64>,
    /// The look that is under way.
    look: Option<Look>,
    /// When the next one begins, in steady time.
    look_at: Duration,
}

/// When people were told of a partition.
#[derive(Clone, Copy, Debug)]
struct Warned {
    /// When; none if that does not count any more.
    at: Option<Timestamp>,
    /// Whether it is to be written.
    has_changed: bool,
}

/// A look at the oldest letters.
#[derive(Debug)]
struct Look {
    /// The number of the reading that is under way.
    number: u64,
    /// Letters that died before this go soon.
    before: Timestamp,
    /// The partitions; none of them is known until the first reading is back.
    parts: Option<BTreeMap<i32, Part>>,
}

/// A partition that is looked at.
#[derive(Debug)]
struct Part {
    /// Everything below was looked at.
    next: i64,
    /// The first offset that is not looked at.
    end: i64,
    /// The letters that go soon and were not replayed.
    open: Vec<Open>,
}

/// A letter that goes soon.
#[derive(Debug)]
struct Open {
    /// Where it stands.
    offset: i64,
    /// When it died.
    died: Timestamp,
    /// Its task.
    id: Arc<str>,
    /// The scene of that.
    scene: Arc<str>,
}

/// How long nobody is told of a partition again: who was told looks within a day.
const AGAIN: Duration = Duration::from_hours(24);

/// Most letters that are counted: of more, it is said that there are at least so many. Each takes some hundred bytes while a look lasts.
const MOST_COUNTED: usize = 1_000;

/// Longest time between two looks.
const LONGEST: Duration = Duration::from_mins(5);

/// Least time between two looks.
const LEAST: Duration = Duration::from_secs(1);

/// Looks in the span in which people are told, at least: so that most of it is left to them.
const LOOKS: u32 = 4;

/// People are told in this part of the time for which letters are kept, at most: where that is short, a day would be all of it.
const PART: u32 = 10;

/// Letters that are read of a partition at first: the oldest of them says that nothing goes, as a rule.
const FIRST: u32 = 1;

/// Letters that are read of a partition at once where some go.
const SLICE: u32 = 512;

/// Most bytes of letters that are read at once, over all partitions, but for one of each.
const BYTES: usize = 4 << 20;

// === impl LettersKept ===

impl LettersKept {
    /// How long before a letter goes people are told.
    fn warning(self) -> Duration {
        self.warn_before.min(self.keeps / PART)
    }

    /// The time between two looks.
    fn pause(self) -> Duration {
        (self.warning() / LOOKS).clamp(LEAST, LONGEST)
    }
}

// === impl Retention ===

impl Retention {
    /// Begins anew at the first letter of each partition: one that was passed over was not replayed after all.
    pub(super) fn look_anew(&mut self) {
        self.clear.clear();
    }

    /// Whether people were told of a partition a short while ago.
    fn is_told(&self, now: Timestamp, partition: i32) -> bool {
        let warned = self.warned.get(&partition);
        let at = warned.and_then(|warned| warned.at);
        at.is_some_and(|at| now.before(AGAIN) < at)
    }
}

// === impl Engine ===

impl Engine {
    /// Letters are kept so long from now on.
    pub(super) fn follow_kept(&mut self, kept: Option<LettersKept>) {
        self.retention.kept = kept.filter(|kept| !kept.warning().is_zero());
        self.retention.look = None;
        self.retention.look_at = self.steady;
    }

    /// What former owners of the leader's shard have written of when people were told.
    pub(super) fn know_warned(&mut self, shard: i32, warned: Vec<(i32, Timestamp)>) {
        if shard == LEADER && !self.bug.is(Bug::WarnedForgotten) {
            let warned = warned.into_iter().map(|(partition, at)| {
                let warned = Warned {
                    at: Some(at),
                    has_changed: false,
                };
                (partition, warned)
            });
            self.retention.warned = warned.collect();
        }
    }

    /// When letters are looked at next.
    pub(super) fn next_retention(&self) -> Option<Timestamp> {
        let Retention {
            kept,
            look,
            look_at,
            ..
        } = &self.retention;
        let waits = kept.is_some() && look.is_none() && self.leads_campaigns();
        waits.then(|| self.latest + look_at.saturating_sub(self.steady))
    }

    /// Begins a look, if it is time.
    pub(super) fn follow_retention(&mut self, now: Now, actions: &mut Vec<Action>) {
        let is_due = self.retention.look_at <= now.steady && self.retention.look.is_none();
        let Some(kept) = self.retention.kept.filter(|_| is_due) else {
            return;
        };
        if !self.leads_campaigns() {
            return;
        }
        self.retention.look = Some(Look {
            number: self.read_oldest(Vec::new(), FIRST, actions),
            before: now.wall.before(kept.keeps.saturating_sub(kept.warning())),
            parts: None,
        });
    }

    /// Letters were read; given back if a campaign has asked for them.
    pub(super) fn looked_at_letters(
        &mut self,
        now: Now,
        read: Letters,
        actions: &mut Vec<Action>,
    ) -> Option<Letters> {
        let look = self.retention.look.take_if(|it| it.number == read.number);
        let Some(mut look) = look else {
            return Some(read);
        };
        for slice in &read.slices {
            self.know_edges(slice);
        }
        let most = match &mut look.parts {
            None => {
                look.parts = Some(self.oldest_parts(now, &read));
                FIRST
            }
            Some(parts) => {
                self.count_open(look.before, parts, read);
                SLICE
            }
        };
        let parts = look.parts.iter().flatten();
        let left = parts.filter(|(_, part)| part.next < part.end);
        let wants: Vec<LetterWant> = left
            .map(|(partition, part)| LetterWant {
                partition: *partition,
                from: part.next,
                to: Some(part.end),
            })
            .collect();
        if wants.is_empty() {
            self.warn(now, look.parts.unwrap_or_default());
        } else {
            look.number = self.read_oldest(wants, most, actions);
            self.retention.look = Some(look);
        }
        None
    }

    /// What was to be written of when people were told was not.
    pub(super) fn warned_unwritten(&mut self, shard: i32, partition: i32) {
        if shard == LEADER && self.has(shard) {
            let warned = self.retention.warned.entry(partition);
            // What is not known here was taken away.
            let gone = Warned {
                at: None,
                has_changed: true,
            };
            warned.or_insert(gone).has_changed = true;
        }
    }

    /// When people were told, as far as that has changed: with the alerts, which wait where their topic takes none.
    pub(super) fn warned_changes(&mut self, states: &mut Vec<(i32, State)>) {
        if !self.writing.takes_alerts() {
            return;
        }
        for (partition, warned) in &mut self.retention.warned {
            if warned.has_changed {
                warned.has_changed = false;
                let state = State::Warned {
                    partition: *partition,
                    at: warned.at,
                };
                states.push((LEADER, state));
            }
        }
        self.retention
            .warned
            .retain(|_, warned| warned.at.is_some());
    }

    /// Forgets what is known of letters that go, if their shard is given away.
    pub(super) fn forget_retention(&mut self, shard: i32) {
        if shard == LEADER {
            // The next owner does not know of what is not written, and tells it.
            self.alerts.untell(DEAD_LETTERS_EXPIRE);
            self.retention = Retention {
                kept: self.retention.kept,
                look_at: self.steady,
                ..Retention::default()
            };
        }
    }

    // === steps ===

    /// Asks for the oldest letters; the number of the reading.
    fn read_oldest(&mut self, wants: Vec<LetterWant>, most: u32, actions: &mut Vec<Action>) -> u64 {
        let number = self.next_reading();
        let bytes = BYTES / wants.len().max(1);
        actions.push(Action::ReadLetters(ReadLetters {
            number,
            purpose: LetterPurpose::Age,
            wants,
            most,
            bytes,
        }));
        number
    }

    /// The partitions to look at, of which people were not told a short while ago.
    fn oldest_parts(&mut self, now: Now, read: &Letters) -> BTreeMap<i32, Part> {
        let retention = &mut self.retention;
        let mut parts = BTreeMap::new();
        for slice in &read.slices {
            let clear = retention.clear.get(&slice.partition).copied();
            // Where the topic was made anew, nothing of it is known.
            let clear = clear.filter(|clear| *clear <= slice.end);
            let next = slice.first.max(clear.unwrap_or(0));
            retention.clear.insert(slice.partition, next);
            if !retention.is_told(now.wall, slice.partition) {
                let part = Part {
                    next,
                    end: slice.end,
                    open: Vec::new(),
                };
                parts.insert(slice.partition, part);
            }
        }
        parts
    }

    /// Counts letters that go soon, and notes how far each partition was looked at.
    fn count_open(&mut self, before: Timestamp, parts: &mut BTreeMap<i32, Part>, read: Letters) {
        for letter in read.letters {
            let Some(part) = parts.get_mut(&letter.partition) else {
                continue;
            };
            if letter.offset >= part.end {
                continue;
            }
            // Behind a letter that stays are those that died later.
            if letter.at >= before || part.open.len() >= MOST_COUNTED {
                part.end = letter.offset;
            } else if !self.is_replayed(letter.partition, letter.offset) {
                part.open.push(Open {
                    offset: letter.offset,
                    died: letter.at,
                    id: letter.task.id,
                    scene: letter.task.scene,
                });
            }
        }
        for slice in read.slices {
            let Some(part) = parts.get_mut(&slice.partition) else {
                continue;
            };
            part.next = slice.next.max(slice.first).max(part.next).min(part.end);
            let first = part.open.first().map_or(part.next, |open| open.offset);
            self.retention.clear.insert(slice.partition, first);
        }
    }

    /// A look is over: people are told of what goes.
    fn warn(&mut self, now: Now, parts: BTreeMap<i32, Part>) {
        let Some(kept) = self.retention.kept else {
            unreachable!("a look that nobody wants")
        };
        self.retention.look_at = now.steady + kept.pause();
        for (partition, Part { mut open, .. }) in parts {
            // Meanwhile a campaign may have replayed some.
            if !self.bug.is(Bug::ReplayedWarned) {
                open.retain(|open| !self.is_replayed(partition, open.offset));
            }
            let Some(first) = open.first() else {
                if let Some(warned) = self.retention.warned.get_mut(&partition) {
                    (warned.at, warned.has_changed) = (None, true);
                }
                continue;
            };
            let alert = Alert {
                rule: DEAD_LETTERS_EXPIRE,
                scene: Arc::clone(&first.scene),
                at: now.wall,
                count: u32::try_from(open.len()).unwrap_or(u32::MAX),
                example: Arc::clone(&first.id),
                reason: "retention",
                target: None,
                expiring: Some(Expiring {
                    at: first.died + kept.keeps,
                    partition,
                    offset: first.offset,
                }),
            };
            self.alerts.tell(LEADER, Box::new(alert));
            let warned = Warned {
                at: Some(now.wall.ceil_to_millis()),
                has_changed: true,
            };
            self.retention.warned.insert(partition, warned);
        }
    }
}
