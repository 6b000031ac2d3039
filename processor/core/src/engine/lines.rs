//! The engine's part in what is due: who waits in line for its gate, whose turn it is, and who goes elsewhere since the line is long.
//!
//! What a line is, is [`crate::line`]'s, and whose turn it is [`crate::turn`]'s. Invariant: a task that is due has started, is in the line of
//! its scene, or was moved or settled; only [`Engine::admit`] starts one.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use super::breaking::{Leave, aim, wall};
use super::{Engine, LAST_CHANCE};
use crate::agenda::Item;
use crate::breaker::Fraction;
use crate::gate::{Denied, Gate};
use crate::line::{Hold, Line};
use crate::planted::Bug;
use crate::scene::{MAX_DELAY, Scene, Target};
use crate::step::{Action, Now};
use crate::time::Timestamp;
use crate::turn::Turn;
use crate::verdict;
use crate::wait::Cause;

/// Tasks of one scene that may wait in memory for its gate in any case; more are deferred to a tier where their lane is crowded.
const READY: usize = 1_000;

/// How long to wait before asking a gate whose calls are all in flight again: another worker may have given one back.
const ASK_CALLS: Duration = Duration::from_millis(5);

/// Pause before it is asked again whether what follows from a call could be written; it is asked at once when that changes.
const ASK_WRITABLE: Duration = Duration::from_millis(250);

/// Least wait of a deferred task: shorter, and it would be back before there is room.
const DEFER: Duration = Duration::from_secs(5);

/// Percent of the time that calls have taken of late after which a deferred task is back, where no rate says when its gate admits it, and
/// no later than can be foreseen. A task that is back too soon is deferred again at worst; one that is back too late leaves the gate without
/// work, which then looks slow, and the next ones are deferred for longer still.
const SOONER: u32 = 60;

/// Whether a due task found its way.
pub(super) enum Admission {
    /// It was dispatched or settled.
    Gone,
    /// It is held, and to be looked at again then.
    Held(Item, Hold, Timestamp),
}

// === impl Admission ===

impl Admission {
    /// It is held until then, in steady time.
    fn held(now: Now, item: Item, hold: Hold, until: Duration) -> Self {
        let wait = until.saturating_sub(now.steady).min(MAX_DELAY);
        Self::Held(item, hold, now.wall + wait)
    }

    /// The batch has no room for what follows from it.
    pub(super) const fn no_room(now: Now, item: Item) -> Self {
        Self::Held(item, Hold::Room, now.wall)
    }
}

// === impl Engine ===

impl Engine {
    /// A task is due: through its gate, or in line before it.
    pub(super) fn due(&mut self, now: Now, mut item: Item, actions: &mut Vec<Action>) {
        let name = self.scene_of(&item);
        let (memory, limits, full) = (self.memory(), self.limits, self.is_full());
        let crowded = self.lane(item.lane).is_crowded(memory, &limits);
        if self.ready.contains_key(&name) {
            // Those that wait for others of their key are not in line.
            match self.in_turn(now, item, actions) {
                Some(first) => item = first,
                None => return,
            }
        }
        let Some(item) = self.move_on(now, &name, item, actions) else {
            return;
        };
        let gated = self.gated(&name);
        if let Some(line) = self.ready.get_mut(&name) {
            // What waits for the batch, or its turn, is not helped by another record in it.
            if gated < READY || !crowded || full {
                return line.push(now.wall, item);
            }
            return self.defer(now, &name, item, actions);
        }
        if let Admission::Held(item, hold, until) = self.admit(now, item, actions) {
            let mut line = Line::new(now.wall, Turn::last(self.number()));
            line.push(now.wall, item);
            line.wait(now.wall, hold, until);
            self.ready.insert(name, line);
        }
    }

    /// Moves a task that is due behind a long line to another shard of its scene's rate, so that all of them have as much to do; gives it
    /// back if it stays. Only where it entered: it moves once, and nothing goes round where there is too much for all of them.
    fn move_on(
        &mut self,
        now: Now,
        name: &Arc<str>,
        item: Item,
        actions: &mut Vec<Action>,
    ) -> Option<Item> {
        if !self.is_far_back(name, &item) {
            return Some(item);
        }
        let shard = item.lane.shard;
        if self.is_full() {
            self.outbound.push_back(item);
            return None;
        }
        let Some(to) = self.shares.elsewhere(name, shard) else {
            return Some(item);
        };
        let cause = self.ready.get(name).map_or(Cause::Rate, Line::cause);
        self.defer_until(now, item, Some(to), (now.wall, cause), actions);
        None
    }

    /// Whether a task where it entered would wait so long for the rate of its scene that it is better off in another shard.
    fn is_far_back(&self, name: &str, item: &Item) -> bool {
        let line = self.shares.line(name);
        line.is_some_and(|most| self.gated(name) > most) && self.home(&item.task) == item.lane.shard
    }

    /// How many tasks of a scene are in line, if its gate is what holds them.
    fn gated(&self, name: &str) -> usize {
        match self.ready.get(name) {
            Some(line) if matches!(line.hold(), Hold::Rate | Hold::Concurrency) => line.len(),
            Some(_) | None => 0,
        }
    }

    /// Parks a due task that finds no place in line until its gate is expected to admit it: behind the line, and behind those that found
    /// no place before it. Where its rate belongs to several shards, each one goes to the next. One that its rate cannot admit before its
    /// deadline expires; where that is less certain, it gets its chance before.
    fn defer(&mut self, now: Now, name: &Arc<str>, item: Item, actions: &mut Vec<Action>) {
        let scene = self.scenes.find(&item.task.scene);
        let deadline = scene.and_then(|scene| verdict::deadline(scene, &item.task));
        let left = self.ramp_left(now, &item);
        let spacing = self.shares.spacing(name);
        let Some(line) = self.ready.get_mut(name) else {
            unreachable!("deferred behind a line that does not exist");
        };
        let pace = spacing.unwrap_or_else(|| line.spacing(now.wall) * SOONER / 100);
        let wait = pace.saturating_mul(line.len() as u32);
        if spacing.is_some() && deadline.is_some_and(|deadline| now.wall + wait > deadline) {
            return self.expire(now, &item, actions);
        }
        let soonest = now.wall + DEFER;
        let chance = deadline.map(|deadline| deadline.before(LAST_CHANCE));
        if chance.is_some_and(|chance| chance < soonest) {
            // It would not be back in time.
            return line.push(now.wall, item);
        }
        let cause = if left.is_some() {
            Cause::Breaker
        } else {
            line.cause()
        };
        let (until, to) = if let Some(left) = left {
            // At what pace the gate admits is not known before that.
            (soonest.max(now.wall + left), None)
        } else {
            let latest = match spacing {
                Some(_) => now.wall + MAX_DELAY,
                None => now.wall + line.foreseen(now.wall).max(DEFER * 2),
            };
            let first = soonest.max(now.wall + wait).min(latest);
            let next = line.expected.max(first) + pace;
            // Beyond what can be foreseen, they are between those that are back before.
            line.expected = if next > latest { first } else { next };
            let to = self.shares.elsewhere(name, item.lane.shard);
            (line.expected, to)
        };
        let until = until.min(now.wall + MAX_DELAY);
        let until = chance.map_or(until, |chance| until.min(chance));
        self.defer_until(now, item, to, (until, cause), actions);
    }

    /// Whether a task is due and has a place in line: nothing is to be written of it yet.
    pub(super) fn can_line_up(&self, now: Now, item: &Item) -> bool {
        let name = self.scene_of(item);
        let crowded = self
            .lanes
            .get(&item.lane)
            .is_none_or(|lane| lane.is_crowded(self.memory(), &self.limits));
        item.task.wake() <= now.wall
            && !self.is_far_back(&name, item)
            && (self.gated(&name) < READY || !crowded)
    }

    /// Puts a due task in line, where those that come to their turn first are started first.
    pub(super) fn line_up(&mut self, now: Now, item: Item) {
        let turn = Turn::last(self.number());
        let line = self.ready.entry(self.scene_of(&item));
        let line = line.or_insert_with(|| Line::new(now.wall, turn));
        line.push(now.wall, item);
    }

    /// Asks the gates that have tasks waiting and may be open again, scene by scene in turn.
    pub(super) fn ask_gates(&mut self, now: Now, most: usize, actions: &mut Vec<Action>) {
        let room = !self.is_full();
        let mut asked: BTreeSet<(u64, Arc<str>)> = self
            .ready
            .iter()
            .filter(|(_, line)| line.ask_at <= now.wall && (room || line.hold() != Hold::Room))
            .map(|(name, line)| (line.turn.place, Arc::clone(name)))
            .collect();
        let mut left = most;
        while left > 0
            && let Some((_, name)) = asked.pop_first()
        {
            left -= self.serve(now, &name, left, actions);
            // Its turn is over, and nothing holds it: it may have another one.
            if let Some(line) = self.ready.get(&name)
                && line.hold() == Hold::Turn
            {
                asked.insert((line.turn.place, name));
            }
        }
    }

    /// Starts tasks of one scene, at most `most` and what it may in its turn; how many it were.
    fn serve(
        &mut self,
        now: Now,
        name: &Arc<str>,
        most: usize,
        actions: &mut Vec<Action>,
    ) -> usize {
        let Some(mut line) = self.ready.remove(name) else {
            return 0;
        };
        line.wait(now.wall, Hold::Turn, now.wall);
        let scene = self.scenes.get(name);
        let weight = scene.map(|scene| scene.weight).unwrap_or_default();
        let weight = self.bug.weight(weight);
        let most = most.min(line.turn.begin(weight));
        let mut started = 0;
        while started < most
            && let Some(item) = line.pop(now.wall)
        {
            match self.admit(now, item, actions) {
                Admission::Gone => started += 1,
                Admission::Held(item, hold, until) => {
                    line.push(now.wall, item);
                    line.wait(now.wall, hold, until);
                    break;
                }
            }
        }
        line.serve(now.wall, started);
        let goes_on = line.turn.goes_on(started);
        let goes_on = goes_on || self.bug.is(Bug::TurnKept);
        if !goes_on {
            line.turn = Turn::last(self.number());
        }
        if !line.is_empty() {
            self.ready.insert(Arc::clone(name), line);
        }
        started
    }

    /// Asks for every task in line again at `now`: what was said of their gates does not hold any more.
    pub(super) fn ask_all_at(&mut self, now: Timestamp) {
        for line in self.ready.values_mut() {
            line.ask_at = line.ask_at.min(now);
        }
    }

    /// Asks for the tasks in line again at `now` that a call of `scene` may have held, which is back.
    pub(super) fn ask_about_call(&mut self, now: Timestamp, scene: &Scene) {
        let Some(host) = scene.concurrency_of() else {
            if let Some(line) = self.ready.get_mut(&scene.name) {
                line.ask_at = line.ask_at.min(now);
            }
            return;
        };
        for (name, line) in &mut self.ready {
            let other = self.scenes.get(name);
            if other.and_then(|other| other.concurrency_of()) == Some(host) {
                line.ask_at = line.ask_at.min(now);
            }
        }
    }

    /// Starts the attempt of a due task if its gate is open.
    fn admit(&mut self, now: Now, item: Item, actions: &mut Vec<Action>) -> Admission {
        let full = self.is_full();
        let Some(scene) = self.scenes.find(&item.task.scene).map(Arc::clone) else {
            if full {
                return Admission::no_room(now, item);
            }
            self.without_scene(now, item, actions);
            return Admission::Gone;
        };
        let Some(item) = self.in_turn(now, item, actions) else {
            return Admission::Gone;
        };
        if verdict::expires(&scene, &item.task, now.wall) {
            if full {
                return Admission::no_room(now, item);
            }
            self.expire(now, &item, actions);
            return Admission::Gone;
        }
        let Some((target, key)) = aim(&scene, item.task.kind) else {
            // The scene no longer wants its callbacks delivered.
            self.settle_item(&item, Vec::new(), actions);
            return Admission::Gone;
        };
        if full && matches!(target, Target::Produce { .. }) {
            return Admission::no_room(now, item);
        }
        if !self.shares.belongs(&scene.name, item.lane.shard) {
            if full {
                return Admission::no_room(now, item);
            }
            self.forward(now, item, actions);
            return Admission::Gone;
        }
        if !self.can_be_written(&scene, item.lane.source) {
            return Admission::held(now, item, Hold::Room, now.steady + ASK_WRITABLE);
        }
        match target {
            Target::Call if !self.may_start(now, item.lane, &scene, &item.task) => {
                // The next owner reads it again.
                self.uncount(&item);
            }
            Target::Call => {
                let keys = (wall(&scene, item.task.kind), key);
                let leaves = match self.ask_leaves(now, keys, actions) {
                    Ok(leaves) => leaves,
                    Err((key, turned)) => {
                        return self.turn_away(now, item, (&scene, key), turned, actions);
                    }
                };
                let gate = self.gates.gate(&scene);
                let leave = leaves.breaker.as_ref();
                if let Err((hold, until)) = self.pass(now, &scene, &gate, leave) {
                    leaves.unused();
                    return Admission::held(now, item, hold, until);
                }
                self.dispatch(now, item, Arc::clone(&scene), (gate, leaves), actions);
            }
            Target::Produce { topic } => {
                if let Err(until) = self.shares.admit(now.steady, &scene.name) {
                    return Admission::held(now, item, Hold::Rate, until);
                }
                self.deliver(now, item, &scene, topic, actions);
            }
        }
        Admission::Gone
    }

    /// Lets a call through its gate and its rate; if it may not, says what holds it, and until when, in steady time.
    fn pass(
        &mut self,
        now: Now,
        scene: &Scene,
        gate: &Gate,
        leave: Option<&Leave>,
    ) -> Result<(), (Hold, Duration)> {
        let ramp = leave.map_or(Fraction::WHOLE, |leave| leave.pass.ramp);
        gate.admit(ramp)
            .map_err(|Denied| (Hold::Concurrency, now.steady + ASK_CALLS))?;
        self.shares.admit(now.steady, &scene.name).map_err(|until| {
            gate.release();
            (Hold::Rate, until)
        })
    }

    /// The scene whose rules a task follows, or the one it names.
    fn scene_of(&self, item: &Item) -> Arc<str> {
        let scene = self.scenes.find(&item.task.scene);
        Arc::clone(scene.map_or(&item.task.scene, |scene| &scene.name))
    }
}
