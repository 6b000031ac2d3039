//! Where the time between a task's due time and its attempt went.
//!
//! Invariant: the parts add up to the time from the due time to the decision to start, exactly.

use std::time::Duration;

use crate::time::Timestamp;

/// How late a decision to start an attempt was, by cause, in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Wait {
    /// The task was due before its lane was ours: nobody had it, or it was on its way to us.
    pub rebalance: u64,
    /// It was due before it was read: its tier, the broker or the fetch was slow.
    pub read: u64,
    /// It was in memory and could have started: nobody looked at it, or it was another scene's turn.
    pub agenda: u64,
    /// What held it.
    pub held: Held,
}

/// How long a task was held by others of its key, or in line before its gate, by cause, in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Held {
    /// Tasks of its key had not ended that are before it.
    pub order: u64,
    /// The rate of its scene was used up.
    pub rate: u64,
    /// As many calls of its scene were in flight as may be.
    pub concurrency: u64,
    /// The breaker of its target was open.
    pub breaker: u64,
    /// There was no room to write what follows from it.
    pub room: u64,
}

/// What a task went through on its way to its attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Way {
    /// When its attempt may start.
    pub due: Timestamp,
    /// When its lane became ours.
    pub assigned: Timestamp,
    /// When it was read.
    pub read: Timestamp,
    /// What held it since.
    pub held: Held,
    /// When its attempt was decided.
    pub decided: Timestamp,
}

// === impl Wait ===

impl Wait {
    /// All of it.
    pub fn total(&self) -> Duration {
        let causes = self.by_cause().into_iter();
        causes
            .map(|(_, micros)| Duration::from_micros(micros))
            .sum()
    }

    /// Its parts by name, in the order in which they come.
    pub const fn by_cause(&self) -> [(&'static str, u64); 8] {
        let Self {
            rebalance,
            read,
            agenda,
            held,
        } = self;
        [
            ("rebalance", *rebalance),
            ("read", *read),
            ("agenda", *agenda),
            ("order", held.order),
            ("rate", held.rate),
            ("concurrency", held.concurrency),
            ("breaker", held.breaker),
            ("room", held.room),
        ]
    }
}

// === impl Held ===

impl Held {
    /// What came since `other`. A line that has held its tasks for `self` in all gives with it, from what a task was held for before, what is
    /// to be remembered of it in line; and from that, what it was held for in the end: it wraps, and back.
    pub(crate) const fn less(self, other: Self) -> Self {
        Self {
            order: self.order.wrapping_sub(other.order),
            rate: self.rate.wrapping_sub(other.rate),
            concurrency: self.concurrency.wrapping_sub(other.concurrency),
            breaker: self.breaker.wrapping_sub(other.breaker),
            room: self.room.wrapping_sub(other.room),
        }
    }

    /// As much of it as fits into `span`, and what is left of that.
    fn within(self, mut span: u64) -> (Self, u64) {
        let mut take = |part: u64| {
            let part = part.min(span);
            span -= part;
            part
        };
        let held = Self {
            order: take(self.order),
            rate: take(self.rate),
            concurrency: take(self.concurrency),
            breaker: take(self.breaker),
            room: take(self.room),
        };
        (held, span)
    }
}

// === impl Way ===

impl Way {
    /// How late the decision was, by cause. A clock that was set in between cannot make the parts more, or less, than the whole.
    pub fn wait(self) -> Wait {
        let Self {
            due, decided, held, ..
        } = self;
        let in_memory = self.read.max(due).min(decided);
        let ours = self.assigned.max(due).min(in_memory);
        let micros =
            |from: Timestamp, to: Timestamp| to.as_micros().saturating_sub(from.as_micros());
        let (held, agenda) = held.within(micros(in_memory, decided));
        Wait {
            rebalance: micros(due, ours),
            read: micros(ours, in_memory),
            agenda,
            held,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use proptest::prelude::*;

    const fn at(micros: u64) -> Timestamp {
        Timestamp::from_micros(micros)
    }

    const HELD: Held = Held {
        order: 8,
        rate: 16,
        concurrency: 32,
        breaker: 64,
        room: 128,
    };

    #[test]
    fn each_cause_has_its_part() {
        let way = Way {
            due: at(100),
            assigned: at(101),
            read: at(103),
            held: HELD,
            decided: at(355),
        };

        let expected = Wait {
            rebalance: 1,
            read: 2,
            agenda: 4,
            held: HELD,
        };
        assert_eq!(way.wait(), expected);
        // Ours and read in time, it was not late by that.
        let before = Way {
            assigned: at(4),
            read: at(5),
            ..way
        };
        assert_eq!(
            before.wait(),
            Wait {
                rebalance: 0,
                read: 0,
                agenda: 7,
                held: HELD,
            }
        );
    }

    #[test]
    fn what_held_a_task_comes_out_of_a_line_as_it_went_in_and_what_came_since() {
        let line = |rate| Held { rate, ..HELD };

        let remembered = line(5).less(HELD);

        assert_eq!(line(9).less(remembered), line(9 + HELD.rate - 5));
    }

    proptest! {
        #[test]
        fn the_parts_add_up_whatever_the_clock_did(
            times in prop::array::uniform4(0_u64..1_000),
            held in prop::array::uniform5(0_u64..1_000),
        ) {
            let [due, assigned, read, decided] = times.map(Timestamp::from_micros);
            let [order, rate, concurrency, breaker, room] = held;
            let held = Held { order, rate, concurrency, breaker, room };

            let wait = Way { due, assigned, read, held, decided }.wait();

            prop_assert_eq!(wait.total(), decided.since(due));
        }
    }
}
