//! The judge's part in fairness: where scenes wait for a rate that they share, each has its part of it by its weight, and none starves.
//!
//! It knows what a worker has read and not started, and when that is due; of ready queues and rounds it knows nothing. Invariant: a start counts
//! only while all scenes of the host have had ready tasks since the one before.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use retide_core::{Input, Kind, LaneId, Scene, Task, Timestamp};

/// Who waits at each worker for the rate of a host.
#[derive(Debug, Default)]
pub(crate) struct Fairness {
    /// The attempts that each scene which shares a rate may start in a round.
    sizes: BTreeMap<Arc<str>, u64>,
    /// The workers.
    workers: BTreeMap<usize, Worker>,
}

/// Who waits at a worker.
#[derive(Debug, Default)]
struct Worker {
    /// The tasks that were read and neither started nor settled.
    tasks: BTreeMap<(LaneId, i64), Waiting>,
    /// The shards whose tasks may start: their commands are read, or one was started before.
    open: BTreeSet<i32>,
    /// What each scene has started since all of them have ready tasks; none of them if they have not.
    started: BTreeMap<Arc<str>, u64>,
    /// The wall clock at the last step.
    latest: Timestamp,
}

/// A task that waits.
#[derive(Debug)]
pub(crate) struct Waiting {
    /// Its scene.
    scene: Arc<str>,
    /// Its identity.
    id: Arc<str>,
    /// When it is due, or looked at again if it is deferred.
    due: Timestamp,
    /// Whether it was due when the last step had ended: it is ready.
    is_in_line: bool,
}

/// Attempts in a round, for each of a scene's weight.
const TURN: u64 = 4;

/// Fairness that a scene may be ahead of another one: the one that it has, and the one that the other waits for.
const AHEAD: u64 = 2;

// === impl Fairness ===

impl Fairness {
    /// This scene is in force. Those that share a rate keep their weights.
    pub(crate) fn know(&mut self, scene: &Scene) {
        if scene.host.as_ref().is_some_and(|host| host.rate) {
            let size = TURN * u64::from(scene.weight.get());
            self.sizes.insert(Arc::clone(&scene.name), size);
        }
    }

    /// A worker begins a step; what is ready by a clock that was set back since is not known any more.
    pub(crate) fn begin(&mut self, worker: usize, wall: Timestamp) {
        let worker = self.workers.entry(worker).or_default();
        if wall < worker.latest {
            worker.started.clear();
        }
        worker.latest = wall;
    }

    /// What waits if a worker takes the task that is read.
    pub(crate) fn read(&self, input: &Input) -> Option<((LaneId, i64), Waiting)> {
        let Input::Record { position, task, .. } = input else {
            return None;
        };
        let shares = task.kind == Kind::Work && self.sizes.contains_key(&task.scene);
        let waiting = || Waiting {
            scene: Arc::clone(&task.scene),
            id: Arc::clone(&task.id),
            due: task.wake(),
            is_in_line: false,
        };
        shares.then(|| ((position.lane, position.offset), waiting()))
    }

    /// A worker has taken a task.
    pub(crate) fn taken(&mut self, worker: usize, at: (LaneId, i64), waiting: Waiting) {
        let worker = self.workers.entry(worker).or_default();
        worker.tasks.insert(at, waiting);
    }

    /// A worker starts a task: whether all scenes had ready tasks, or why it was not the round of this one.
    pub(crate) fn started(
        &mut self,
        worker: usize,
        lane: LaneId,
        task: &Task,
    ) -> Result<bool, String> {
        let Some(worker) = self.workers.get_mut(&worker) else {
            return Ok(false);
        };
        worker.open.insert(lane.shard);
        let mut tasks = worker.tasks.iter();
        let found = tasks.find(|((of, _), waiting)| *of == lane && waiting.id == task.id);
        let Some((at, _)) = found.map(|(at, waiting)| (*at, waiting)) else {
            return Ok(false);
        };
        let counts = worker.started.contains_key(&task.scene);
        if let Some(count) = worker.started.get_mut(&task.scene) {
            *count += 1;
        }
        let fair = self.sizes.iter().try_for_each(|(other, size)| {
            let of = |scene: &Arc<str>| worker.started.get(scene).copied().unwrap_or_default();
            let own = self.sizes[&task.scene];
            // Ahead by rounds, without fractions.
            let ahead = (of(&task.scene) * size).saturating_sub(of(other) * own);
            if ahead > AHEAD * own * size {
                return Err(format!(
                    "{} is {AHEAD} rounds ahead of {other}, which is ready: {:?} of {:?}",
                    task.id, worker.started, self.sizes
                ));
            }
            Ok(())
        });
        worker.tasks.remove(&at);
        if !worker.has_in_line(&task.scene) {
            worker.started.clear();
        }
        fair.map(|()| counts)
    }

    /// A worker has read the commands of a shard, for which its tasks wait.
    pub(crate) fn opens(&mut self, worker: usize, shard: i32) {
        let worker = self.workers.entry(worker).or_default();
        worker.open.insert(shard);
    }

    /// A worker has settled an offset.
    pub(crate) fn settled(&mut self, worker: usize, at: (LaneId, i64)) {
        if let Some(worker) = self.workers.get_mut(&worker) {
            worker.tasks.remove(&at);
        }
    }

    /// A worker may not start what is ready.
    pub(crate) fn is_held_up(&mut self, worker: usize) {
        if let Some(worker) = self.workers.get_mut(&worker) {
            worker.started.clear();
        }
    }

    /// A worker lets go of a shard.
    pub(crate) fn let_go(&mut self, worker: usize, shard: i32) {
        if let Some(worker) = self.workers.get_mut(&worker) {
            worker.tasks.retain(|(lane, _), _| lane.shard != shard);
            worker.open.remove(&shard);
        }
    }

    /// A step of a worker has ended: which scenes have ready tasks now.
    pub(crate) fn end(&mut self, worker: usize) {
        let Some(worker) = self.workers.get_mut(&worker) else {
            return;
        };
        for ((lane, _), waiting) in &mut worker.tasks {
            waiting.is_in_line = waiting.due <= worker.latest && worker.open.contains(&lane.shard);
        }
        if !self.sizes.keys().all(|scene| worker.has_in_line(scene)) {
            worker.started.clear();
        } else if worker.started.is_empty() {
            worker.started = self
                .sizes
                .keys()
                .map(|scene| (Arc::clone(scene), 0))
                .collect();
        }
    }
}

// === impl Worker ===

impl Worker {
    /// Whether a task of this scene is ready.
    fn has_in_line(&self, scene: &str) -> bool {
        let mut tasks = self.tasks.values();
        tasks.any(|waiting| waiting.is_in_line && &*waiting.scene == scene)
    }
}
