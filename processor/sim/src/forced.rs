//! Breakers by hand in a history: what people want, and the judge of what becomes of it.
//!
//! Invariant that is judged: from when a worker of a process has heard that a target is to be left alone, no worker of that process calls it,
//! until one of them hears otherwise.

use std::collections::BTreeMap;
use std::sync::Arc;

use retide_core::breaker::Key;
use retide_core::forced::{AllForced, BREAKER, Force, Forced};
use retide_core::hold::{HOLD, Revision};
use retide_core::{Kind, Scene, Task, Timestamp};

use crate::chance::Chance;
use crate::world::{At, SECOND};

/// What somebody wants of a target from then on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wish {
    /// From when on.
    pub(crate) at: At,
    /// The target, as people name it.
    pub(crate) target: &'static str,
    /// What is wanted; none if that is taken back.
    pub(crate) force: Option<Force>,
}

/// The judge of what people want: what each process knows.
#[derive(Debug, Default)]
pub(crate) struct Forcing(BTreeMap<u64, AllForced>);

/// Names of the targets that have breakers, and of one that nobody calls.
const NAMES: [&str; 5] = [
    "target",
    "target:80",
    "http://ended:80",
    "ended",
    "nobody.example",
];

// === impl Wish ===

impl Wish {
    /// What people want in the course of a history; they take all of it back by `heals_at`.
    pub(crate) fn draw(chance: &mut Chance, heals_at: At) -> Vec<Self> {
        let count = chance.between(1, 5);
        let draw = |_| Self {
            at: chance.between(0, heals_at / SECOND) * SECOND,
            target: chance.pick(&NAMES),
            force: chance.pick(&[
                Some(Force::Open),
                Some(Force::Open),
                Some(Force::Closed),
                Some(Force::Reset),
                None,
            ]),
        };
        let mut wishes: Vec<Self> = (0..count).map(draw).collect();
        wishes.sort_by_key(|wish| wish.at);
        let back = NAMES.map(|target| Self {
            at: heals_at,
            target,
            force: None,
        });
        wishes.extend(back);
        wishes
    }

    /// What is wanted, as the record of this offset says it.
    pub(crate) fn forced(&self, offset: i64, since: Timestamp) -> Option<Arc<Forced>> {
        let force = self.force?;
        Some(Arc::new(Forced {
            target: self.target.into(),
            revision: Revision {
                partition: 2,
                offset,
            },
            force,
            by: "sim".into(),
            reason: "chance".into(),
            since,
            until: Timestamp::MAX,
        }))
    }
}

// === impl Forcing ===

impl Forcing {
    /// A worker of a process hears of what people want.
    pub(crate) fn hear(&mut self, process: u64, all: &AllForced) {
        let known = self.0.entry(process).or_default();
        if all.version() >= known.version() {
            *known = all.clone();
        }
    }

    /// Whether somebody has wanted something so far.
    pub(crate) fn is_used(&self) -> bool {
        self.0.values().any(|known| known.version() > 0)
    }

    /// A process calls the target of a task: whether it may.
    pub(crate) fn calls(&self, process: u64, task: &Task, scene: &Scene) -> Result<(), String> {
        let Some(known) = self.0.get(&process) else {
            return Ok(());
        };
        for key in keys_of(scene, task.kind) {
            // None of them ends by itself.
            let forced = known.of(Timestamp::EPOCH, &key.target);
            if let Some(forced) = forced.filter(|forced| forced.force == Force::Open) {
                return Err(format!(
                    "{} is called at {}, knowing of {forced:?}",
                    task.id, key.target
                ));
            }
        }
        Ok(())
    }
}

/// Whether that is what an event follows from that follows from a hold or a breaker by hand, and from no command.
pub(crate) fn is_wish(name: &str) -> bool {
    name.starts_with(HOLD) || name.starts_with(BREAKER)
}

/// The breakers that a task of this kind goes through.
fn keys_of(scene: &Scene, kind: Kind) -> impl Iterator<Item = &Key> {
    let route = scene.route(kind).into_iter();
    route.flat_map(|route| [route.breaker, route.wall].into_iter().flatten())
}
