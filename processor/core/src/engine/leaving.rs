//! The engine's part in giving a shard away while its work goes on.
//!
//! A shard is given away when its calls in flight are back, and one that hangs keeps it for as long as calls are waited for. Meanwhile the
//! shard is read, and its tasks are started, but for those that might not be back in time either:
//! - What is started: a task whose scene is quick, which is known from its calls: one has come back, of late none took longer than
//!   [`QUICK`], and none in flight is older.
//! - What is not: any other call. It is forgotten, with its offset open, and the next owner reads it again.
//! - What goes on in any case: what needs no call, such as parking, hopping, expiring, or delivering to a topic.
//!
//! Invariant: a shard that leaves loses nothing, and starts nothing that its last moment cannot wait for, as far as calls go on as before.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use super::Engine;
use crate::gate::Gate;
use crate::lane::LaneId;
use crate::scene::Scene;
use crate::step::Now;
use crate::task::{Kind, Task};

/// How many calls of a shard are in flight that is to be given away.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Left {
    /// Calls that were in flight when the shard began to leave.
    pub before: usize,
    /// Calls that were started since.
    pub since: usize,
}

/// What is known of calls in flight while shards leave.
#[derive(Debug, Default)]
pub(super) struct Slow {
    /// The scenes of which a call in flight is older than [`QUICK`], by what it was for.
    scenes: HashSet<(Arc<str>, Kind)>,
    /// When calls are looked at again, in steady time.
    again: Duration,
}

/// Longest call of a scene whose tasks are started in a shard that leaves: half of what the last moment of a shard waits for calls at least
/// ([`LAST`]), so that one that takes twice as long as all before it is back in time.
pub const QUICK: Duration = Duration::from_millis(500);

/// How long the calls that were started in a shard that leaves are waited for at least when nothing is started any more.
pub const LAST: Duration = Duration::from_secs(1);

/// Time between two looks at the calls in flight: short beside [`QUICK`].
const LOOK: Duration = Duration::from_millis(50);

// === impl Engine ===

impl Engine {
    /// How many calls of a shard are in flight, and how many of them since it began to leave. One that is back, and that a command has met
    /// before what follows from it was written, counts until that is settled.
    pub fn calls_left(&self, shard: i32) -> Left {
        let mut left = self.lanes.calls_left(shard);
        left.before += self.answered_and_met(shard);
        left
    }

    /// A shard is to leave: calls are told from now on apart from those in flight.
    pub(super) fn leave(&mut self, now: Now, shard: i32) {
        self.lanes.leave(shard, self.next);
        self.leave_commands(shard);
        self.slow.again = now.steady;
    }

    /// Whether a call for `task` is to be started, be it in a shard that leaves.
    pub(super) fn may_start(
        &mut self,
        now: Now,
        lane: LaneId,
        scene: &Arc<Scene>,
        task: &Task,
    ) -> bool {
        if !self.lanes.is_leaving(lane) {
            return true;
        }
        self.look_for_slow(now);
        let gate: &Gate = &self.gates.gate(scene);
        gate.longest(task.kind).is_some_and(|took| took <= QUICK)
            && !self
                .slow
                .scenes
                .contains(&(Arc::clone(&scene.name), task.kind))
    }

    /// Looks which scenes have calls in flight that take long, if that was not done a moment ago.
    fn look_for_slow(&mut self, now: Now) {
        if now.steady < self.slow.again {
            return;
        }
        self.slow.again = now.steady + LOOK;
        let slow = self
            .calls
            .values()
            .filter(|call| now.steady.saturating_sub(call.started()) > QUICK);
        self.slow.scenes = slow.map(super::calls::Call::of).collect();
    }
}
