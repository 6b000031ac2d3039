//! Where the time between a task's due time and its attempt went.
//!
//! Invariant: the parts add up to the time from the due time to the decision to start, exactly.

use std::time::Duration;

use crate::time::Timestamp;

/// How late a decision to start an attempt was, by cause.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Wait {
    /// The task was due before it was read: its tier, the broker or the fetch was slow, or nobody was there.
    pub read: Duration,
    /// It was in memory, and nobody looked at it.
    pub agenda: Duration,
    /// Somebody looked at it, and it had to stay in line before its gate, or for room to write what follows from it.
    pub gate: Duration,
}

/// What a task went through on its way to its attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Way {
    /// When its attempt may start.
    pub due: Timestamp,
    /// When it was read.
    pub read: Timestamp,
    /// When it came before its gate.
    pub in_line: Timestamp,
    /// When its attempt was decided.
    pub decided: Timestamp,
}

// === impl Wait ===

impl Wait {
    /// All of it.
    pub fn total(&self) -> Duration {
        let Self { read, agenda, gate } = *self;
        read + agenda + gate
    }
}

// === impl Way ===

impl Way {
    /// How late the decision was, by cause. A clock that was set in between cannot make the parts more, or less, than the whole.
    pub fn wait(self) -> Wait {
        let Self { due, decided, .. } = self;
        let in_memory = self.read.max(due).min(decided);
        let in_line = self.in_line.max(in_memory).min(decided);
        Wait {
            read: in_memory.since(due),
            agenda: in_line.since(in_memory),
            gate: decided.since(in_line),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use proptest::prelude::*;

    const fn at(millis: u64) -> Timestamp {
        Timestamp::from_millis(millis)
    }

    #[test]
    fn each_cause_has_its_part() {
        let way = Way {
            due: at(100),
            read: at(101),
            in_line: at(103),
            decided: at(107),
        };

        let expected = Wait {
            read: Duration::from_millis(1),
            agenda: Duration::from_millis(2),
            gate: Duration::from_millis(4),
        };
        assert_eq!(way.wait(), expected);
        // Read in time, it was not late by that.
        assert_eq!(
            Way { read: at(5), ..way }.wait(),
            Wait {
                read: Duration::ZERO,
                agenda: Duration::from_millis(3),
                ..expected
            }
        );
    }

    proptest! {
        #[test]
        fn the_parts_add_up_whatever_the_clock_did(times in prop::array::uniform4(0_u64..1_000)) {
            let [due, read, in_line, decided] = times.map(Timestamp::from_micros);

            let wait = Way { due, read, in_line, decided }.wait();

            prop_assert_eq!(wait.total(), decided.since(due));
        }
    }
}
