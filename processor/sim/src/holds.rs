//! Holds of a history: what people hold, and the judge of what becomes of it.
//!
//! Invariants that are judged: from when a worker has taken a hold in, it starts nothing that the hold fits, whoever had the shard before; a
//! task that is held is looked at again within a minute. That all tasks end shows that none is held for ever.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use retide_core::hold::Revision;
use retide_core::selector::{Parts, Selector};
use retide_core::{Hold, Holds, Kind, Task, Timestamp};

use crate::chance::Chance;
use crate::orders::fits;
use crate::plan::Submission;
use crate::world::{At, MILLI, SECOND};

/// A hold that somebody asks for, and lets go.
#[derive(Clone, Debug)]
pub(crate) struct Holding {
    /// When it begins.
    pub(crate) begins: At,
    /// When it is released.
    pub(crate) ends: At,
    /// The hold.
    pub(crate) hold: Arc<Hold>,
}

/// The judge of holds: what each worker knows.
#[derive(Debug, Default)]
pub(crate) struct Heard(BTreeMap<usize, Holds>);

/// Longest time to the next look at a task that is held, with what is rounded.
const LONGEST_LOOK: Duration = Duration::from_secs(51);

// === impl Holding ===

impl Holding {
    /// Holds of some of these tasks, all of which are released by `heals_at`.
    pub(crate) fn draw(
        chance: &mut Chance,
        submissions: &[Arc<Submission>],
        heals_at: At,
    ) -> Vec<Self> {
        let many = chance.between(1, 3);
        let draw = |number| {
            let picked = &submissions[chance.below(submissions.len() as u64) as usize];
            let mut parts = Parts::default();
            match (chance.below(3), picked.key) {
                (0, Some(key)) if !key.is_empty() => {
                    parts.keys.insert(Bytes::from_static(key.as_bytes()));
                }
                (1, _) => drop(parts.ids.insert(Arc::clone(&picked.id))),
                _ => drop(parts.scenes.insert(Arc::clone(&picked.scene))),
            }
            let begins = chance.between(0, heals_at / SECOND * 3 / 4) * SECOND;
            let ends = chance.between(begins / SECOND, heals_at / SECOND) * SECOND;
            let hold = Hold {
                name: format!("hold-{}", chance.below(2)).into(),
                revision: Revision {
                    partition: 0,
                    offset: number as i64,
                },
                selector: Selector::new(parts).unwrap_or_else(|error| unreachable!("{error}")),
                by: "sim".into(),
                reason: "chance".into(),
                since: Timestamp::EPOCH,
                until: Timestamp::MAX,
            };
            Self {
                begins,
                ends,
                hold: Arc::new(hold),
            }
        };
        (0..many).map(draw).collect()
    }

    /// How long after a change a worker hears of it.
    pub(crate) fn delay(chance: &mut Chance) -> At {
        chance.between(0, 800) * MILLI
    }
}

// === impl Heard ===

impl Heard {
    /// A worker takes holds in.
    pub(crate) fn hear(&mut self, worker: usize, holds: Holds) {
        self.0.insert(worker, holds);
    }

    /// A worker starts a task, by this clock: whether it may.
    pub(crate) fn starts(
        &self,
        worker: usize,
        task: &Task,
        submission: Option<&Arc<Submission>>,
    ) -> Result<(), String> {
        let (Kind::Work, Some(submission), Some(holds)) =
            (task.kind, submission, self.0.get(&worker))
        else {
            return Ok(());
        };
        let mut holds = holds.iter();
        match holds.find(|hold| fits(&hold.selector, submission)) {
            Some(hold) => Err(format!(
                "worker {worker} starts {}, although it knows of {hold:?}",
                task.id
            )),
            None => Ok(()),
        }
    }

    /// A task that is held is parked at `wall`: whether it is looked at soon.
    pub(crate) fn parks(task: &Task, wall: Timestamp) -> Result<(), String> {
        let is_due = task.due <= wall;
        if is_due && task.held_since.is_some() && task.wake() > wall + LONGEST_LOOK {
            return Err(format!(
                "{} is held, and looked at no sooner than {}, at {wall}",
                task.id,
                task.wake()
            ));
        }
        Ok(())
    }
}
