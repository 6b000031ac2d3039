//! Due tasks: through admission, into the ready queue of their scene, or elsewhere since that queue is long.
//!
//! What is done with a due task, in this order: it waits for others of its key; it moves to another shard of its scene's rate, if the queue
//! here is long; it enters the ready queue, if there is one; it is deferred to a tier, if the queue is long and its lane crowded; else it is
//! admitted, or begins a queue. Invariant: a task that is due has started, is in the ready queue of its scene, or was moved or settled.

use std::sync::Arc;
use std::time::Duration;

use super::admission::{ASK_CALLS, Admission};
use super::breakers::{Denied, Shelter};
use super::ready::{Hold, ReadyQueue};
use super::{Engine, LAST_CHANCE};
use crate::agenda::Item;
use crate::breaker::{self, Rejected};
use crate::fairness::Deficit;
use crate::planted::Bug;
use crate::scene::{MAX_DELAY, Scene};
use crate::step::{Action, Now};
use crate::time::Timestamp;
use crate::verdict;
use crate::wait::Cause;

/// How long after its deadline a task is looked at that waits for that: it expires then.
const EXPIRED: Duration = Duration::from_millis(1);

/// Tasks of one scene that may wait in memory for its gate in any case; more are deferred to a tier where their lane is crowded.
const READY: usize = 1_000;

/// Least wait of a deferred task: shorter, and it would be back before there is room.
const DEFER: Duration = Duration::from_secs(5);

/// The pace at which deferred tasks come back, in percent of the time between two admissions of late, where no rate says when the gate admits
/// them. A task that is back too soon is deferred again at worst; a task that is back too late leaves the gate without work, which then looks
/// slow, and the next tasks are deferred for longer still.
const DEFER_PACE_PERCENT: u32 = 60;

// === impl Engine ===

impl Engine {
    /// Lets a due task start, or puts it where it waits for that.
    pub(super) fn due(&mut self, now: Now, mut item: Item, actions: &mut Vec<Action>) {
        if item.task.pending_since.is_some() {
            // Nothing that others wait for is asked for.
            if let Admission::Held(item, ..) = self.admit(now, item, actions) {
                self.wait_for_room(item);
            }
            return;
        }
        // A hold may stop its deadline, which is looked at where the task finds no place.
        self.mind_deadline(now, &mut item);
        let name = self.scene_of(&item);
        let (full, crowded) = (self.is_full(), self.is_crowded(item.lane));
        if self.ready.get(&name).is_some() {
            // Tasks that wait for others of their key are not in the queue.
            match self.if_first(now, item, actions) {
                Some(first) => item = first,
                None => return,
            }
        }
        let Some(item) = self.move_on(now, &name, item, actions) else {
            return;
        };
        let gated = self.ready.gated(&name);
        if let Some(queue) = self.ready.get_mut(&name) {
            // A queue that waits for the batch, or for its round, is not helped by another record in the batch.
            if gated < READY || !crowded || full {
                return queue.push(now.wall, item);
            }
            return self.defer(now, &name, item, actions);
        }
        if let Admission::Held(item, hold, until) = self.admit(now, item, actions) {
            let mut queue = ReadyQueue::new(now.wall, Deficit::last(self.number()));
            queue.push(now.wall, item);
            queue.wait(now.wall, hold, until);
            self.ready.put(name, queue);
        }
    }

    /// Moves a due task from behind a long queue to another shard of its scene's rate, so that all of them have as much to do; gives the task
    /// back if it stays. A task moves only out of the shard in which it entered, so that nothing goes round where there is too much for all.
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
            self.wait_for_room(item);
            return None;
        }
        let Some(to) = self.quotas.elsewhere(name, shard) else {
            return Some(item);
        };
        let cause = self.ready.get(name).map_or(Cause::Rate, ReadyQueue::cause);
        self.defer_until(now, item, Some(to), (now.wall, cause), actions);
        None
    }

    /// Whether a task where it entered would wait so long for the rate of its scene that it is better off in another shard.
    fn is_far_back(&self, name: &str, item: &Item) -> bool {
        let most = self.quotas.longest_queue(name);
        most.is_some_and(|most| self.ready.gated(name) > most)
            && self.home(&item.task) == item.lane.shard
            && self.may_leave(item.lane.shard)
    }

    /// Parks a due task that finds no place in the ready queue until its gate is expected to admit it: after the queue, and after the tasks
    /// that found no place before. Where the rate belongs to several shards, each such task goes to the next one. A task that the rate cannot
    /// admit before its deadline expires; where that is less certain, the task gets its chance before.
    fn defer(&mut self, now: Now, name: &Arc<str>, item: Item, actions: &mut Vec<Action>) {
        let scene = self.scenes.find(&item.task.scene);
        let deadline = scene.and_then(|scene| verdict::deadline(scene, &item.task));
        let left = self.ramp_left(now, &item);
        let spacing = self.quotas.spacing(name);
        let may_leave = self.may_leave(item.lane.shard);
        let Some(queue) = self.ready.get_mut(name) else {
            unreachable!("deferred behind a queue that does not exist");
        };
        let pace = spacing.unwrap_or_else(|| queue.spacing(now.wall) * DEFER_PACE_PERCENT / 100);
        let wait = pace.saturating_mul(queue.len() as u32);
        if spacing.is_some() && deadline.is_some_and(|deadline| now.wall + wait > deadline) {
            return self.expire(now, &item, actions);
        }
        let soonest = now.wall + DEFER;
        let chance = deadline.map(|deadline| deadline.before(LAST_CHANCE));
        if chance.is_some_and(|chance| chance < soonest) {
            // The task would not be back in time.
            return queue.push(now.wall, item);
        }
        let cause = if left.is_some() {
            Cause::Breaker
        } else {
            queue.cause()
        };
        let (until, to) = if let Some(left) = left {
            // At what pace the gate admits is not known before that.
            (soonest.max(now.wall + left), None)
        } else {
            let latest = match spacing {
                Some(_) => now.wall + MAX_DELAY,
                None => now.wall + queue.foreseen(now.wall).max(DEFER * 2),
            };
            let first = soonest.max(now.wall + wait).min(latest);
            let next = queue.expected.max(first) + pace;
            // Beyond what can be foreseen, tasks come between those that are back before.
            queue.expected = if next > latest { first } else { next };
            let to = may_leave.then(|| self.quotas.elsewhere(name, item.lane.shard));
            (queue.expected, to.flatten())
        };
        let until = until.min(now.wall + MAX_DELAY);
        let until = chance.map_or(until, |chance| until.min(chance));
        self.defer_until(now, item, to, (until, cause), actions);
    }

    /// Whether a task is due and has a place in the ready queue: nothing is to be written of it yet.
    pub(super) fn can_enqueue(&self, now: Now, item: &Item) -> bool {
        let name = self.scene_of(item);
        let crowded = self.is_crowded(item.lane);
        item.task.wake() <= now.wall
            && item.task.pending_since.is_none()
            && !self.is_far_back(&name, item)
            && (self.ready.gated(&name) < READY || !crowded)
    }

    /// Puts a due task into its ready queue, where admission is asked in the order of rounds.
    pub(super) fn enqueue(&mut self, now: Now, item: Item) {
        let deficit = Deficit::last(self.number());
        let name = self.scene_of(&item);
        self.ready.enqueue(now.wall, name, deficit, item);
    }

    /// Serves the ready queues whose gates may be open again, scene by scene, `most` tasks in all.
    pub(super) fn ask_gates(&mut self, now: Now, most: usize, actions: &mut Vec<Action>) {
        let room = !self.is_full();
        let mut asked = self.ready.to_ask(now.wall, room);
        let mut left = most;
        while left > 0
            && let Some((_, name)) = asked.pop_first()
        {
            left -= self.serve(now, &name, left, actions);
            // The round of the scene is over, and nothing holds its tasks: it may have another one.
            if let Some(queue) = self.ready.get(&name)
                && queue.hold() == Hold::Round
            {
                asked.insert((queue.deficit.place, name));
            }
        }
    }

    /// Starts tasks of one scene, as many as its round allows; looks at `most` of them, and says at how many.
    fn serve(
        &mut self,
        now: Now,
        name: &Arc<str>,
        most: usize,
        actions: &mut Vec<Action>,
    ) -> usize {
        let Some(mut queue) = self.ready.take(name) else {
            return 0;
        };
        queue.wait(now.wall, Hold::Round, now.wall);
        let scene = self.scenes.get(name);
        let weight = scene.map(|scene| scene.weight).unwrap_or_default();
        queue.deficit.begin(self.bug.weight(weight));
        let mut served = 0;
        while served < most
            && !queue.deficit.is_over()
            && let Some(item) = queue.pop(now.wall)
        {
            match self.admit(now, item, actions) {
                Admission::Gone => queue.deficit.pass(),
                Admission::Started => queue.deficit.start(),
                Admission::Last => {
                    queue.deficit.start();
                    served += 1;
                    // The next one would be looked at for nothing: each call that comes back lets one start, under load.
                    queue.wait(now.wall, Hold::Concurrency, now.wall + ASK_CALLS);
                    break;
                }
                Admission::Held(item, hold, until) => {
                    queue.push(now.wall, item);
                    queue.wait(now.wall, hold, until);
                    break;
                }
            }
            served += 1;
        }
        queue.serve(now.wall, served);
        if queue.deficit.is_over() && !self.bug.is(Bug::TurnKept) {
            queue.deficit = Deficit::last(self.number());
        }
        self.ready.put(Arc::clone(name), queue);
        served
    }

    /// Asks every gate again at `now`: what the gates said does not hold any more.
    pub(super) fn ask_all_at(&mut self, now: Timestamp) {
        self.ready.ask_again(now, |_| true);
    }

    /// Asks those gates again at `now` that a call of `scene` may have kept shut, which is back.
    pub(super) fn ask_about_call(&mut self, now: Timestamp, scene: &Scene) {
        let Some(host) = scene.concurrency_of() else {
            if let Some(queue) = self.ready.get_mut(&scene.name) {
                queue.ask_at = queue.ask_at.min(now);
            }
            return;
        };
        let scenes = &self.scenes;
        self.ready.ask_again(now, |name| {
            let other = scenes.get(name);
            other.and_then(|other| other.concurrency_of()) == Some(host)
        });
    }

    /// Keeps a due task whose target must not be called: in memory if few wait for the same there, or else in a tier; no attempt is used
    /// up. A task whose deadline is before that expires; where people keep the breaker open, at its deadline, since they may take it back.
    pub(super) fn turn_away(
        &mut self,
        now: Now,
        item: Item,
        scene: &Scene,
        denied: Denied<'_>,
        actions: &mut Vec<Action>,
    ) -> Admission {
        let mut breaker = None;
        let (shelter, until, down_for, cause) = match denied {
            Denied::Breaker(key, Rejected { until, down_for }) => {
                let shelter = self.breakers.shelter(key, now.steady, until);
                breaker = Some(&key.target);
                (shelter, until, down_for, Cause::Breaker)
            }
            Denied::Cooldown(server, until) | Denied::Pace(server, until) => {
                let shelter = self.breakers.shelter_cooling(&server, now.steady, until);
                (shelter, until, Duration::ZERO, Cause::Cooldown)
            }
        };
        let mut again = now.wall + until.saturating_sub(now.steady).min(MAX_DELAY);
        let mut expires = verdict::expires(scene, &item.task, again);
        if expires && breaker.is_some_and(|subject| self.is_kept_open(now, subject)) {
            let end = verdict::deadline(scene, &item.task).unwrap_or(again);
            again = again.min(end.max(now.wall) + EXPIRED);
            expires = false;
        }
        let crowded = self.is_crowded(item.lane);
        let until = match shelter {
            Shelter::Memory if !crowded && !expires => {
                let mut item = Item {
                    wake: again,
                    ..item
                };
                let left = again.since(now.wall).as_micros() as u64;
                let waited = match cause {
                    Cause::Cooldown => &mut item.waited.cooldown,
                    Cause::Breaker
                    | Cause::Order
                    | Cause::Rate
                    | Cause::Concurrency
                    | Cause::Scene
                    | Cause::Hold => &mut item.waited.breaker,
                };
                *waited = waited.saturating_add(left);
                self.agenda.push(item);
                return Admission::Gone;
            }
            Shelter::ProbeTier if cause == Cause::Cooldown => again.max(now.wall + DEFER),
            Shelter::ProbeTier => again,
            Shelter::Memory | Shelter::Tier => {
                let due = now.wall + breaker::wait(&self.ladder, down_for);
                // The task gets its chance before its deadline.
                verdict::deadline(scene, &item.task)
                    .map_or(due, |end| due.min(end.before(LAST_CHANCE)).max(again))
            }
        };
        if self.is_full() {
            return Admission::no_room(now, item);
        }
        if expires {
            self.expire(now, &item, actions);
        } else {
            let first = actions.len();
            self.defer_until(now, item, None, (until, cause), actions);
            if let Some(subject) = breaker {
                self.name_forced(now, subject, &mut actions[first..]);
            }
        }
        Admission::Gone
    }

    /// How long the target of a task may not be called as often as usual, having been down.
    fn ramp_left(&mut self, now: Now, item: &Item) -> Option<Duration> {
        let scene = self.scenes.find(&item.task.scene)?;
        let route = scene.route(item.task.kind)?;
        let keys = [route.breaker, route.wall].into_iter().flatten();
        let lefts = keys.filter_map(|key| self.breakers.ramp_left(now.steady, key, &self.gates));
        lefts.max()
    }

    /// The scene whose rules a task follows, or the one it names.
    fn scene_of(&self, item: &Item) -> Arc<str> {
        let scene = self.scenes.find(&item.task.scene);
        Arc::clone(scene.map_or(&item.task.scene, |scene| &scene.name))
    }
}
