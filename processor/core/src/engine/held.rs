//! The engine's part in holds: who is held, for how long it is parked, and what is written down of that.
//!
//! What holds a task: a hold in force fits it when it is to start. What lets it go on: none does when it is looked at next, within a minute
//! of the end of the hold. What ends it meanwhile: its deadline, or a command. What holding never does: use an attempt, take a permit, or
//! keep a task in memory. Invariant: from the step that takes a hold in on, no attempt starts of what it fits.

use std::collections::{BTreeMap, BTreeSet};
use std::mem;
use std::sync::Arc;
use std::time::Duration;

use super::Engine;
use super::looks::{Looks, SHORTEST};
use crate::agenda::Item;
use crate::entry::{Alert, Entry, RAMP_FELL, TASKS_EXHAUSTED, Transition};
use crate::hold::{Deadlines, EXHAUSTED, HOLD, Hold, HoldId, Holds, Standing};
use crate::outcome::{Outcome, Reason, Verdict};
use crate::planted::Bug;
use crate::ramp::{Climb, Part, Progress, Turn};
use crate::scene::{OnExhausted, Scene};
use crate::state::State;
use crate::step::{Action, Now};
use crate::task::{Kind, Task};
use crate::time::Timestamp;
use crate::verdict::{self, LEAST_WAIT};
use crate::wait::Cause;

/// The holds in force, and what is known of the tasks that they hold.
#[derive(Debug, Default)]
pub(super) struct Held {
    /// The holds.
    holds: Holds,
    /// The ramps of those that have one, as this worker climbs them.
    climbs: BTreeMap<HoldId, Climb>,
    /// How holds stood in shards when they became ours, of which nothing else is known yet.
    known: BTreeMap<(i32, HoldId), Standing>,
    /// The tasks that they hold in each shard.
    waiting: BTreeMap<(i32, HoldId), Looks>,
    /// What is written down of each hold in each shard, as far as this worker has handed it out.
    told: BTreeMap<(i32, HoldId), Standing>,
    /// What is to be written down.
    changed: BTreeSet<(i32, HoldId)>,
    /// The names of the holds that are in force or written down.
    names: BTreeMap<HoldId, Arc<str>>,
    /// How many tasks out of attempts former owners have seen held, of which this worker has not seen all yet, and until when that counts.
    before: BTreeMap<(i32, HoldId), (u32, Timestamp)>,
    /// When people are told next that tasks of a scene are held which are out of attempts.
    alert_at: BTreeMap<Arc<str>, Timestamp>,
    /// When the first hold ends by itself.
    ends_at: Option<Timestamp>,
    /// Whether one of them lets deadlines stand still, or did before it ended.
    stops: bool,
    /// When counts are looked at next, in steady time.
    count_at: Duration,
}

/// Looks at tasks that are held are spread by so much at most, so that all are back within a minute, however many they are.
const SPREAD: Duration = Duration::from_secs(20);

/// The same where a ramp lets them through slowly: some of them come at each moment, and all within a minute.
const RAMP_SPREAD: Duration = Duration::from_secs(45);

/// Time between two looks at how many tasks are held: what people read of it is a few seconds old.
const COUNT: Duration = Duration::from_secs(3);

/// How long it counts what former owners have seen: as long as it takes until each of their tasks was looked at.
const KNOWN: Duration = Duration::from_mins(1);

/// How long tasks out of attempts are counted before people are told the first time.
const COUNTED: Duration = Duration::from_secs(1);

/// Time between two alerts of one scene.
const REMINDER: Duration = Duration::from_hours(1);

/// What times are counted in on topics.
const MILLI: Duration = Duration::from_millis(1);

impl Engine {
    /// Other holds are in force.
    pub(super) fn follow_holds(&mut self, now: Now, mut holds: Holds) {
        holds.take_ended(now.wall);
        if self.bug.is(Bug::ExhaustedKept) {
            holds.forget_releases();
        }
        holds.follow(&self.scenes);
        self.held.ends_at = holds.next_end();
        self.held.stops = (holds.iter()).any(|hold| hold.deadlines == Deadlines::Stop);
        holds.remember(now.wall, &self.held.holds);
        if self.bug.is(Bug::StoodForgotten) {
            holds.forget_stood();
        }
        let before = mem::replace(&mut self.held.holds, holds);
        let mut changed: Vec<HoldId> = Vec::new();
        for hold in self.held.holds.iter() {
            let known = before.get(&hold.name);
            if known.is_none_or(|known| known.revision != hold.revision) {
                changed.push(hold.id());
                self.held.climbs.remove(&hold.id());
                let name = Arc::clone(&hold.name);
                self.held.names.insert(hold.id(), name);
            }
        }
        for hold in before.iter() {
            if self.held.holds.get(&hold.name).is_none() {
                changed.push(hold.id());
                self.held.climbs.remove(&hold.id());
            }
        }
        self.begin_climbs();
        self.tell_all(&changed);
        self.ask_all_at(now.wall);
    }

    /// Other rules are in force: other scenes may want their tasks held that are out of attempts.
    pub(super) fn follow_exhausted(&mut self) {
        let scenes = &self.scenes;
        self.held.holds.follow(scenes);
        self.held
            .alert_at
            .retain(|name, _| scenes.get(name).is_some());
        let held = self.held.holds.iter();
        let held: Vec<(HoldId, Arc<str>)> = held
            .filter(|hold| hold.released.is_some())
            .map(|hold| (hold.id(), Arc::clone(&hold.name)))
            .collect();
        self.held.names.extend(held);
        self.begin_climbs();
    }

    /// A shard is ours, of which former owners have written down these holds.
    pub(super) fn know_holds(&mut self, shard: i32, holds: Vec<(Arc<str>, Standing)>) {
        for (name, standing) in holds {
            if self.know_forced(shard, &name, standing) {
                continue;
            }
            let id = HoldId::of(&name);
            self.held.changed.insert((shard, id));
            if name.starts_with(EXHAUSTED) {
                let until = self.latest + KNOWN;
                self.held.told.insert((shard, id), standing);
                self.held
                    .before
                    .insert((shard, id), (standing.waiting, until));
            }
            self.held.names.insert(id, name);
            self.held.known.insert((shard, id), standing);
        }
        self.begin_climbs();
    }

    /// Begins the ramps that are not begun, and lets all go on from where owners before have got to.
    fn begin_climbs(&mut self) {
        let Held {
            holds,
            climbs,
            known,
            ..
        } = &mut self.held;
        for hold in holds.iter().filter(|hold| hold.ramp.is_some()) {
            let id = hold.id();
            let of = |(_, of): &(i32, HoldId), _: &mut Standing| *of == id;
            let known = known.extract_if(.., of);
            let known = known.filter(|(_, known)| known.revision == hold.revision);
            let known: Vec<Progress> = known.filter_map(|(_, known)| known.ramp).collect();
            let climb = climbs.entry(id).or_insert_with(|| {
                let least = known.iter().min_by_key(|known| known.step);
                Climb::from(least.copied().unwrap_or_default())
            });
            for known in known {
                climb.meet(known);
            }
        }
    }

    /// A shard is ours: that this worker knows the holds is written down.
    pub(super) fn begin_holds(&mut self, shard: i32) {
        if self.bug.is(Bug::HoldForgotten) {
            self.held.holds.clear();
        }
        let ids = self.held.holds.iter().map(|hold| (shard, hold.id()));
        self.held.changed.extend(ids);
    }

    /// Ends the holds whose time is over, and sees how many tasks the others hold.
    pub(super) fn turn_holds(&mut self, now: Now) {
        if self.held.holds.is_empty() {
            return;
        }
        if self.held.ends_at.is_some_and(|end| end <= now.wall) {
            let ended = self.held.holds.take_ended(now.wall);
            self.held.ends_at = self.held.holds.next_end();
            let ended: Vec<HoldId> = ended.iter().map(|name| HoldId::of(name)).collect();
            self.tell_all(&ended);
        }
        if now.steady >= self.held.count_at {
            self.held.count_at = now.steady + COUNT;
            self.held.before.retain(|_, (_, until)| *until > now.wall);
            let all = self.held.waiting.keys().chain(self.held.told.keys());
            let news = all.filter(|at| {
                let (count, told) = (self.held.count(**at, now.wall), self.held.told.get(at));
                told.map_or(count > 0, |told| told.waiting != count)
            });
            let news: Vec<(i32, HoldId)> = news.copied().collect();
            self.held.changed.extend(news);
        }
    }

    /// When holds are to be looked at next without anything else happening.
    pub(super) fn next_hold(&self) -> Option<Timestamp> {
        let counts = (!self.held.waiting.is_empty() && !self.held.holds.is_empty())
            .then(|| self.latest + self.held.count_at.saturating_sub(self.steady));
        self.held.ends_at.into_iter().chain(counts).min()
    }

    /// The deadline of a task stands still while it is due and a hold says so, and goes on when none does any more.
    pub(super) fn mind_deadline(&self, now: Now, item: &mut Item) {
        let may_have_stood = item.task.due < self.held.holds.stood_to();
        let is_still = self.held.stops || item.task.is_stopped();
        if !is_still && !may_have_stood || self.bug.is(Bug::DeadlineRuns) {
            return;
        }
        if item.task.kind != Kind::Work || item.task.pending_since.is_some() {
            return;
        }
        let scene = self.scenes.find(&item.task.scene);
        let stops = scene.and_then(|scene| {
            let holds = self.held.holds.of(now.wall, &item.task, scene);
            let stops = holds.filter(|hold| hold.deadlines == Deadlines::Stop);
            Some((scene, stops.map(|hold| hold.since).min()?))
        });
        if may_have_stood {
            // Since then, it stands still by a hold that is on.
            let to = stops.map_or(Timestamp::MAX, |(_, held)| held);
            self.count_stood(now, item, to);
        }
        let task = &item.task;
        match (stops, task.is_stopped()) {
            (Some((scene, held)), false) => {
                // It may have waited elsewhere meanwhile.
                let since = held.max(waits_since(now, task)).min(now.wall);
                let since = since.ceil_to_millis();
                // One that has passed by then has passed.
                if !verdict::expires(scene, task, since) {
                    Arc::make_mut(&mut item.task).stop_deadline(since);
                }
            }
            (None, true) => self.resume_deadline(now, item),
            (Some(_), true) | (None, false) => {}
        }
    }

    /// The deadline of a due task has stood still while holds were in force that are over, and nobody could look at it: that counts now, as
    /// far as it was before `to`.
    fn count_stood(&self, now: Now, item: &mut Item, to: Timestamp) {
        if item.task.is_stopped() {
            return;
        }
        let Some(scene) = self.scenes.find(&item.task.scene) else {
            return;
        };
        let from = waits_since(now, &item.task);
        for (since, until) in self.held.holds.stood(from, &item.task, scene) {
            let since = since.max(waits_since(now, &item.task)).ceil_to_millis();
            let until = until.min(now.wall).min(to);
            // One that has passed by then has passed.
            if since < until && !verdict::expires(scene, &item.task, since) {
                let task = Arc::make_mut(&mut item.task);
                task.stop_deadline(since);
                task.resume_deadline(until);
            }
        }
    }

    /// The deadline of a task goes on, if it stood still: no hold stops it any more, or one lets the task go by a ramp.
    pub(super) fn resume_deadline(&self, now: Now, item: &mut Item) {
        if !item.task.is_stopped() {
            return;
        }
        let task = Arc::make_mut(&mut item.task);
        let before = task.stopped.as_deref().map(|stopped| stopped.before);
        task.resume_deadline(now.wall);
        if self.bug.is(Bug::StoppedTimeLost)
            && let (Some(stopped), Some(before)) = (&mut task.stopped, before)
        {
            stopped.before = before;
        }
    }

    /// The hold that keeps a task from starting now, if there is one.
    pub(super) fn hold_of(&mut self, now: Now, scene: &Scene, task: &Task) -> Option<Arc<Hold>> {
        let part = self.ramp_part();
        let is_ignored = self.bug.is(Bug::RampIgnored);
        let starts = self.bug.is(Bug::ExhaustedStarts);
        let Held { holds, climbs, .. } = &mut self.held;
        let hold = holds.of(now.wall, task, scene).find(|hold| {
            if starts && hold.released.is_some() {
                return false;
            }
            let climb = climbs.get_mut(&hold.id());
            let (Some(ramp), Some(climb)) = (hold.ramp_of(task), climb) else {
                return true;
            };
            !climb.may_start(now.steady, ramp, part) && !is_ignored
        });
        hold.map(Arc::clone)
    }

    /// Whether a task is held, or on a ramp.
    pub(super) fn is_on_hold(&self, now: Now, task: &Task) -> bool {
        let scene = self.scenes.find(&task.scene);
        scene.is_some_and(|scene| self.held.holds.of(now.wall, task, scene).next().is_some())
    }

    /// A task starts: the ramps that it goes by, which are to be told when its call is back.
    pub(super) fn go_by_ramps(&mut self, now: Now, scene: &Scene, task: &Task) -> Vec<HoldId> {
        let Held { holds, climbs, .. } = &mut self.held;
        let mut ids = Vec::new();
        for hold in holds.of(now.wall, task, scene) {
            if let Some(climb) = climbs.get_mut(&hold.id()) {
                climb.start(now.steady);
                ids.push(hold.id());
            }
        }
        ids
    }

    /// A call has come back that went by these ramps.
    pub(super) fn came_back(&mut self, now: Now, ids: &[HoldId], failed: bool, example: &Task) {
        for id in ids {
            let Held {
                holds,
                climbs,
                names,
                ..
            } = &mut self.held;
            let hold = names.get(id).and_then(|name| holds.get(name));
            let ramp = hold.and_then(|hold| hold.ramp.as_ref());
            let (Some(ramp), Some(climb)) = (ramp, climbs.get_mut(id)) else {
                continue;
            };
            let failed = failed && !self.bug.is(Bug::RampNeverFalls);
            match climb.returned(now.steady, failed, ramp) {
                Turn::None => {}
                Turn::Up => self.tell_all(&[*id]),
                Turn::Fell { calls: _, failed } => {
                    self.alerts.say(Some(Alert {
                        rule: RAMP_FELL,
                        scene: Arc::clone(&example.scene),
                        at: now.wall,
                        count: failed,
                        example: Arc::clone(&example.id),
                        reason: RAMP_FELL,
                        target: None,
                        expiring: None,
                    }));
                    self.tell_all(&[*id]);
                }
            }
        }
    }

    /// The part of all ramps that this worker has.
    fn ramp_part(&self) -> Part {
        let (owned, all) = self.quotas.shares();
        Part { owned, all }
    }

    /// Parks a task that is held until it is looked at again; there is room for that.
    pub(super) fn hold_back(
        &mut self,
        now: Now,
        item: Item,
        hold: &Hold,
        actions: &mut Vec<Action>,
    ) {
        let Some(mut item) = self.if_settled(item) else {
            return;
        };
        let is_exhausted = hold.released.is_some();
        if is_exhausted {
            self.leave_exhausted(item.lane.shard, &item.task);
        }
        let since = item.task.held_since;
        let look = Looks::after(since.unwrap_or(now.wall), now.wall);
        let at = (item.lane.shard, hold.id());
        let pace = self.spacing_of(hold);
        let looks = self.held.waiting.entry(at).or_default();
        let due = match pace {
            // As the ramp lets them through.
            Some(apart) => looks.next_apart(now.wall, (SHORTEST, apart), RAMP_SPREAD),
            None => looks.next(now.wall, look, SPREAD),
        };
        let deadline = self.scenes.find(&item.task.scene);
        let deadline = deadline.and_then(|scene| verdict::deadline(scene, &item.task));
        // It ends at its deadline, and goes on when the hold ends by itself.
        let due = deadline.map_or(due, |deadline| due.min(deadline + LEAST_WAIT));
        let due = due.min(hold.until).max(now.wall + LEAST_WAIT);
        let due = due.ceil_to_millis();
        let due = if self.bug.is(Bug::HeldTooLong) {
            due + Duration::from_mins(10)
        } else {
            due
        };
        if is_exhausted {
            // It is counted with its record.
            looks.expect(due);
            self.tell_exhausted(now, hold, &item);
        } else {
            looks.add(now.wall, due);
        }
        let deferral = self.deferral(now, &item, due, Cause::Hold);
        // That is told once.
        let told = since.is_none().then(|| {
            let transition = Transition::Deferred {
                due: item.task.due.ceil_to_millis(),
                until: due,
            };
            (transition, Some(self.wait_of(now, &item)))
        });
        Arc::make_mut(&mut item.task).held_since = Some(since.unwrap_or(now.wall).min(now.wall));
        let first = actions.len();
        self.park(now, item, (None, Some(deferral)), told, actions);
        for action in &mut actions[first..] {
            name(action, hold);
        }
    }

    /// How many due tasks are held, by the name of the hold.
    pub fn held(&self) -> BTreeMap<Arc<str>, u32> {
        let holds = self.held.holds.iter();
        let mut held: BTreeMap<Arc<str>, u32> =
            holds.map(|hold| (Arc::clone(&hold.name), 0)).collect();
        for at in self.held.waiting.keys() {
            let name = self.held.names.get(&at.1);
            if let Some(count) = name.and_then(|name| held.get_mut(name)) {
                *count += self.held.count(*at, self.latest);
            }
        }
        held
    }

    /// What is to be done about an outcome: where the task is out of attempts and would be held, it is dead if too many are.
    pub(super) fn judge(
        &self,
        now: Now,
        shard: i32,
        (scene, task): (&Scene, &Task),
        outcome: &Outcome,
    ) -> Verdict {
        let verdict = verdict::verdict(scene, task, outcome, now.wall);
        let (Verdict::Held { since }, OnExhausted::Hold { most }) = (verdict, scene.on_exhausted)
        else {
            return verdict;
        };
        // A scene that is gone has none any more: its task waits for it.
        let Some(hold) = self.held.holds.of_exhausted(&scene.name) else {
            return verdict;
        };
        if self.held.count((shard, hold.id()), now.wall) >= most.get() {
            return Verdict::Dead(Reason::TooManyHeld);
        }
        // What people let go was held before.
        let released = hold.released.map_or(since, |released| released + MILLI);
        Verdict::Held {
            since: since.max(released),
        }
    }

    /// The hold that keeps a task which is out of attempts, or lets it go by its ramp.
    fn exhausted_by(&self, task: &Task) -> Option<&Arc<Hold>> {
        if !task.is_exhausted() {
            return None;
        }
        let scene = self.scenes.find(&task.scene)?;
        self.held.holds.of_exhausted(&scene.name)
    }

    /// A task is parked that is out of attempts: it is counted.
    pub(super) fn count_exhausted(&mut self, now: Timestamp, shard: i32, task: &Task) {
        if let Some(hold) = self.exhausted_by(task)
            && self.has(shard)
        {
            let at = (shard, hold.id());
            let looks = self.held.waiting.entry(at).or_default();
            looks.count_in(now, task.wake());
        }
    }

    /// A parked task that was out of attempts is looked at: it is not counted any more.
    pub(super) fn leave_exhausted(&mut self, shard: i32, task: &Task) {
        let Some(hold) = self.exhausted_by(task) else {
            return;
        };
        let at = (shard, hold.id());
        let looks = self.held.waiting.get_mut(&at);
        let was_counted = looks.is_some_and(|looks| looks.count_out(task.wake()));
        if !was_counted && let Some((before, _)) = self.held.before.get_mut(&at) {
            *before = before.saturating_sub(1);
        }
    }

    /// A task that was out of attempts is looked at and nothing of that holds it any more: people have let it go.
    pub(super) fn let_go(&mut self, item: &mut Item) {
        if item.task.is_exhausted()
            && let Some(scene) = self.scenes.find(&item.task.scene)
            && let Some(hold) = self.held.holds.of_exhausted(&scene.name)
            && !hold.is_about(&item.task)
        {
            self.leave_exhausted(item.lane.shard, &item.task);
            Arc::make_mut(&mut item.task).begin_round();
        }
    }

    /// Tells people that tasks of a scene are held which are out of attempts.
    fn tell_exhausted(&mut self, now: Now, hold: &Hold, item: &Item) {
        let Some(scene) = hold.of_scene() else {
            return;
        };
        let first = now.wall + COUNTED;
        let alert_at = self.held.alert_at.entry(scene.into()).or_insert(first);
        if now.wall < *alert_at {
            return;
        }
        *alert_at = now.wall + REMINDER;
        self.alerts.say(Some(Alert {
            rule: TASKS_EXHAUSTED,
            scene: scene.into(),
            at: now.wall,
            count: self.held.count((item.lane.shard, hold.id()), now.wall) + 1,
            example: Arc::clone(&item.task.id),
            reason: Reason::AttemptsExhausted.word(),
            target: None,
            expiring: None,
        }));
    }

    /// Whether something is to be written down of holds, although nothing may have been settled.
    pub fn has_untold_holds(&self) -> bool {
        (!self.held.changed.is_empty() || self.has_forced_to_tell()) && self.may_be_told()
    }

    /// Lets the offsets of shards be committed beside what is to be written down of holds: nothing is written that goes with none.
    pub(super) fn touch_untold_holds(&mut self) {
        if self.has_untold_holds() {
            let shards = self.held.changed.iter().map(|(shard, _)| *shard);
            let shards: BTreeSet<i32> = shards.chain(self.shards_to_tell_forced()).collect();
            for shard in shards {
                self.lanes.touch(shard);
            }
        }
    }

    /// What is to be written down of holds.
    pub(super) fn hold_changes(&mut self, states: &mut Vec<(i32, State)>) {
        let now = self.latest;
        for (shard, id) in mem::take(&mut self.held.changed) {
            let Some(name) = self.held.names.get(&id).map(Arc::clone) else {
                continue;
            };
            if !self.has(shard) {
                continue;
            }
            let hold = self.held.holds.get(&name);
            let waiting = self.held.count((shard, id), now);
            // One that nobody has said anything of stands for the tasks that it has.
            let hold = hold.filter(|hold| waiting > 0 || !hold.is_unsaid());
            if hold.is_none()
                && name.starts_with(EXHAUSTED)
                && !self.held.told.contains_key(&(shard, id))
            {
                continue;
            }
            let standing = hold.map(|hold| Standing {
                revision: hold.revision,
                waiting,
                ramp: (self.held.climbs.get(&id)).map(Climb::progress),
                breaker: None,
            });
            if let Some(standing) = standing {
                self.held.told.insert((shard, id), standing);
            } else {
                self.held.told.remove(&(shard, id));
                if hold.is_none_or(|hold| hold.released.is_none()) {
                    self.held.waiting.remove(&(shard, id));
                }
            }
            states.push((shard, State::Hold { name, standing }));
        }
        // Names that nobody writes down any more.
        let Held {
            holds, told, names, ..
        } = &mut self.held;
        if names.len() > holds.len() + told.len() {
            let told: BTreeSet<HoldId> = told.keys().map(|(_, id)| *id).collect();
            names.retain(|id, name| told.contains(id) || holds.get(name).is_some());
        }
    }

    /// What was to be written down of a hold was not.
    pub(super) fn hold_unwritten(&mut self, shard: i32, name: Arc<str>) {
        if self.forced_unwritten(shard, &name) {
            return;
        }
        let id = HoldId::of(&name);
        self.held.names.insert(id, name);
        self.held.changed.insert((shard, id));
    }

    /// A shard is given away.
    pub(super) fn forget_holds(&mut self, shard: i32) {
        let Held {
            waiting,
            told,
            changed,
            known,
            before,
            ..
        } = &mut self.held;
        before.retain(|(of, _), _| *of != shard);
        known.retain(|(of, _), _| *of != shard);
        waiting.retain(|(of, _), _| *of != shard);
        told.retain(|(of, _), _| *of != shard);
        changed.retain(|(of, _)| *of != shard);
    }

    /// The time between two tasks that the ramp of a hold lets through here, if it has one that goes on.
    fn spacing_of(&self, hold: &Hold) -> Option<Duration> {
        let ramp = hold.ramp.as_ref()?;
        let climb = self.held.climbs.get(&hold.id())?;
        let is_on = !climb.progress().fell;
        climb.spacing(ramp, self.ramp_part()).filter(|_| is_on)
    }

    /// What is known of these holds is to be written down in each shard.
    fn tell_all(&mut self, ids: &[HoldId]) {
        for shard in self.lanes.shards() {
            let ids = ids.iter().map(|id| (shard, *id));
            self.held.changed.extend(ids);
        }
    }
}

// === impl Held ===

impl Held {
    /// How many due tasks a hold holds in a shard, as far as is known.
    fn count(&self, at: (i32, HoldId), now: Timestamp) -> u32 {
        let seen = self.waiting.get(&at).map_or(0, |looks| looks.count(now));
        let before = self.before.get(&at).filter(|(_, until)| now < *until);
        seen + before.map_or(0, |(before, _)| *before)
    }
}

/// Since when a due task waits, without what has counted already as time for which its deadline stood still.
fn waits_since(now: Now, task: &Task) -> Timestamp {
    let counted = match task.stopped.as_deref() {
        None => Timestamp::EPOCH,
        Some(stopped) => stopped.to.unwrap_or(now.wall),
    };
    task.due.max(task.first_failed_at).max(counted)
}

/// Says in the event of a settlement which hold it follows from.
fn name(action: &mut Action, hold: &Hold) {
    let Action::Settle(settlement) = action else {
        return;
    };
    for entry in &mut settlement.entries {
        if let Entry::Event(event) = entry {
            event.command = Some(format!("{HOLD}{}", hold.name).into());
        }
    }
}
