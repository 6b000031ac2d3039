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
    /// The task was due before it was read: its tier, the broker or the fetch was slow.
    pub read: u64,
    /// The task was in memory and could have started: nobody looked at it, or other scenes had their round. Or its scene did not exist, or
    /// people held it.
    pub agenda: u64,
    /// What the task waited for in memory.
    pub waited: Waited,
}

/// How long a task waited for others of its key, or for its gate, by cause, in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Waited {
    /// Tasks before it, of the same key, had not ended.
    pub order: u64,
    /// The rate of its scene was used up.
    pub rate: u64,
    /// As many calls of its scene were in flight as may be.
    pub concurrency: u64,
    /// The breaker of its target was open.
    pub breaker: u64,
    /// There was no room to write what follows from it.
    pub room: u64,
    /// Its target had asked for rest, or for a slower pace.
    pub cooldown: u64,
}

/// What a due task is deferred for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// As [`Waited::order`], and so are the others.
    Order,
    /// The rate.
    Rate,
    /// The concurrency.
    Concurrency,
    /// The breaker.
    Breaker,
    /// The cooldown of its target.
    Cooldown,
    /// The scene of the task does not exist. That is a part of [`Wait::agenda`]: nobody knows what to do with it.
    Scene,
    /// People hold the task. That is a part of [`Wait::agenda`], too.
    Hold,
}

/// A due task is parked until its gate is asked again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deferral {
    /// When it is looked at again.
    pub until: Timestamp,
    /// The lateness of the task by then, by cause: all of the time since its due time.
    pub wait: Wait,
}

/// What a task went through on its way to its attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Way {
    /// When its attempt may start.
    pub due: Timestamp,
    /// The last deferral of the task, if there was one.
    pub deferral: Option<Deferral>,
    /// When its lane became ours.
    pub assigned: Timestamp,
    /// When it was read.
    pub read: Timestamp,
    /// What the task waited for since it was read.
    pub waited: Waited,
    /// When its attempt was decided.
    pub decided: Timestamp,
}

// === impl Wait ===

impl Wait {
    /// The sum of the parts.
    pub fn total(&self) -> Duration {
        let causes = self.by_cause().into_iter();
        causes
            .map(|(_, micros)| Duration::from_micros(micros))
            .sum()
    }

    /// The parts by name, in the order in which they come.
    pub const fn by_cause(&self) -> [(&'static str, u64); 9] {
        let Self {
            rebalance,
            read,
            agenda,
            waited,
        } = self;
        [
            ("rebalance", *rebalance),
            ("read", *read),
            ("agenda", *agenda),
            ("order", waited.order),
            ("rate", waited.rate),
            ("concurrency", waited.concurrency),
            ("breaker", waited.breaker),
            ("room", waited.room),
            ("cooldown", waited.cooldown),
        ]
    }
}

impl Wait {
    /// Sets the part of this name in [`Self::by_cause`], if there is one.
    pub fn set(&mut self, cause: &str, micros: u64) {
        let part = match cause {
            "rebalance" => &mut self.rebalance,
            "read" => &mut self.read,
            "agenda" => &mut self.agenda,
            "order" => &mut self.waited.order,
            "rate" => &mut self.waited.rate,
            "concurrency" => &mut self.waited.concurrency,
            "breaker" => &mut self.waited.breaker,
            "room" => &mut self.waited.room,
            "cooldown" => &mut self.waited.cooldown,
            _ => return,
        };
        *part = micros;
    }

    /// The part of a deferral's cause.
    const fn part(&mut self, cause: Cause) -> &mut u64 {
        match cause {
            Cause::Order => &mut self.waited.order,
            Cause::Rate => &mut self.waited.rate,
            Cause::Concurrency => &mut self.waited.concurrency,
            Cause::Breaker => &mut self.waited.breaker,
            Cause::Cooldown => &mut self.waited.cooldown,
            Cause::Scene | Cause::Hold => &mut self.agenda,
        }
    }

    /// As much of it as fits into `span`, and what is left of that.
    fn within(self, span: u64) -> (Self, u64) {
        let rebalance = self.rebalance.min(span);
        let read = self.read.min(span - rebalance);
        let agenda = self.agenda.min(span - rebalance - read);
        let (waited, left) = self.waited.within(span - rebalance - read - agenda);
        let wait = Self {
            rebalance,
            read,
            agenda,
            waited,
        };
        (wait, left)
    }

    /// Both, part by part.
    const fn and(self, other: Self) -> Self {
        let (waited, more) = (self.waited, other.waited);
        Self {
            rebalance: self.rebalance.saturating_add(other.rebalance),
            read: self.read.saturating_add(other.read),
            agenda: self.agenda.saturating_add(other.agenda),
            waited: Waited {
                order: waited.order.saturating_add(more.order),
                rate: waited.rate.saturating_add(more.rate),
                concurrency: waited.concurrency.saturating_add(more.concurrency),
                breaker: waited.breaker.saturating_add(more.breaker),
                room: waited.room.saturating_add(more.room),
                cooldown: waited.cooldown.saturating_add(more.cooldown),
            },
        }
    }
}

// === impl Deferral ===

impl Deferral {
    /// The deferral of a task that was due at `due` and is late by `wait` so far: until `until`, which is all for `cause`.
    pub fn new(due: Timestamp, wait: Wait, until: Timestamp, cause: Cause) -> Self {
        let until = until.max(due);
        let (mut wait, left) = wait.within(micros(due, until));
        *wait.part(cause) += left;
        Self { until, wait }
    }

    /// A deferral as it was written, with parts that may be rounded, or missing: what nobody names, the read took.
    pub fn written(due: Timestamp, wait: Wait, until: Timestamp) -> Self {
        let until = until.max(due);
        let (mut wait, left) = wait.within(micros(due, until));
        wait.read += left;
        Self { until, wait }
    }

    /// Whether the task was deferred for this cause by now.
    pub fn is_for(mut self, cause: Cause) -> bool {
        *self.wait.part(cause) > 0
    }
}

// === impl Waited ===

impl Waited {
    /// The difference to `other`, part by part, modulo 2^64. A ready queue counts for all of its tasks together how long they waited. A task
    /// that enters it remembers the queue's count less its own; when the task leaves, the queue's count less what the task remembers is the
    /// task's own again, with what was added meanwhile. The first difference may be below zero, so both wrap.
    pub(crate) const fn less(self, other: Self) -> Self {
        Self {
            order: self.order.wrapping_sub(other.order),
            rate: self.rate.wrapping_sub(other.rate),
            concurrency: self.concurrency.wrapping_sub(other.concurrency),
            breaker: self.breaker.wrapping_sub(other.breaker),
            room: self.room.wrapping_sub(other.room),
            cooldown: self.cooldown.wrapping_sub(other.cooldown),
        }
    }

    /// As much of it as fits into `span`, and what is left of that.
    fn within(self, mut span: u64) -> (Self, u64) {
        let mut take = |part: u64| {
            let part = part.min(span);
            span -= part;
            part
        };
        let waited = Self {
            order: take(self.order),
            rate: take(self.rate),
            concurrency: take(self.concurrency),
            breaker: take(self.breaker),
            room: take(self.room),
            cooldown: take(self.cooldown),
        };
        (waited, span)
    }
}

// === impl Way ===

impl Way {
    /// How late the decision was, by cause. A clock that was set in between cannot make the parts more, or less, than the whole.
    pub fn wait(self) -> Wait {
        let Self {
            due,
            decided,
            waited,
            ..
        } = self;
        let (before, since) = match self.deferral {
            Some(Deferral { until, wait }) => {
                let (wait, _) = wait.within(micros(due, decided));
                (wait, until.max(due))
            }
            None => (Wait::default(), due),
        };
        let in_memory = self.read.max(since).min(decided);
        let ours = self.assigned.max(since).min(in_memory);
        let (waited, agenda) = waited.within(micros(in_memory, decided));
        before.and(Wait {
            rebalance: micros(since, ours),
            read: micros(ours, in_memory),
            agenda,
            waited,
        })
    }
}

/// Microseconds from one instant to another; none if that is not later.
const fn micros(from: Timestamp, to: Timestamp) -> u64 {
    to.as_micros().saturating_sub(from.as_micros())
}

#[cfg(test)]
mod tests {
    use super::*;

    use proptest::prelude::*;

    const fn at(micros: u64) -> Timestamp {
        Timestamp::from_micros(micros)
    }

    const HELD: Waited = Waited {
        order: 8,
        rate: 16,
        concurrency: 32,
        breaker: 64,
        room: 128,
        cooldown: 256,
    };

    #[test]
    fn each_cause_has_its_part() {
        let way = Way {
            due: at(100),
            deferral: None,
            assigned: at(101),
            read: at(103),
            waited: HELD,
            decided: at(611),
        };

        let expected = Wait {
            rebalance: 1,
            read: 2,
            agenda: 4,
            waited: HELD,
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
                waited: HELD,
            }
        );
    }

    #[test]
    fn a_deferral_is_all_for_its_cause_and_what_comes_after_it_is_not() {
        let so_far = Wait {
            agenda: 7,
            ..Wait::default()
        };

        let deferral = Deferral::new(at(100), so_far, at(1_107), Cause::Breaker);
        let way = Way {
            due: at(100),
            deferral: Some(deferral),
            assigned: at(1_110),
            read: at(1_115),
            waited: Waited::default(),
            decided: at(1_120),
        };

        let expected = Wait {
            rebalance: 3,
            read: 5,
            agenda: 12,
            waited: Waited {
                breaker: 1_000,
                ..Waited::default()
            },
        };
        assert_eq!(way.wait(), expected);
        assert!(deferral.is_for(Cause::Breaker));
        assert!(!deferral.is_for(Cause::Rate));
        // As it was written with its parts rounded.
        let rounded = Deferral::written(at(100), Wait::default(), at(1_107));
        assert_eq!(rounded.wait.read, 1_007);
    }

    #[test]
    fn what_held_a_task_comes_out_of_a_line_as_it_went_in_and_what_came_since() {
        let line = |rate| Waited { rate, ..HELD };

        let remembered = line(5).less(HELD);

        assert_eq!(line(9).less(remembered), line(9 + HELD.rate - 5));
    }

    proptest! {
        #[test]
        fn the_parts_add_up_whatever_the_clock_did(
            times in prop::array::uniform4(0_u64..1_000),
            waited in prop::array::uniform6(0_u64..1_000),
            until in 0_u64..1_000,
        ) {
            let [due, assigned, read, decided] = times.map(Timestamp::from_micros);
            let [order, rate, concurrency, breaker, room, cooldown] = waited;
            let waited = Waited { order, rate, concurrency, breaker, room, cooldown };

            let way = Way { due, deferral: None, assigned, read, waited, decided };

            prop_assert_eq!(way.wait().total(), decided.since(due));
            let deferral = Deferral::new(due, way.wait(), at(until), Cause::Breaker);
            let way = Way { deferral: Some(deferral), ..way };
            prop_assert_eq!(way.wait().total(), decided.since(due));
        }
    }
}
