//! Holds of a history: what people hold, and the judge of what becomes of it.
//!
//! Invariants that are judged: from when a worker has taken a hold in, it starts nothing that the hold fits, whoever had the shard before; a
//! task that is held is looked at again within a minute; its deadline stands still if the hold says so, and that time counts later, also where
//! nobody has looked at the task meanwhile. That all tasks end shows that none is held for ever.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use retide_core::hold::{Deadlines, Revision};
use retide_core::ramp::Ramp;
use retide_core::scene::DEFAULT;
use retide_core::selector::{Parts, Selector};
use retide_core::task::Stopped;
use retide_core::{Event, Hold, Holds, Kind, Scenes, Task, Timestamp};

use crate::chance::Chance;
use crate::orders::fits;
use crate::plan::Submission;
use crate::world::{At, MILLI, SECOND, wall};

/// A hold that somebody asks for, and lets go.
#[derive(Clone, Debug)]
pub(crate) struct Holding {
    /// When it begins.
    pub(crate) begins: At,
    /// When its tasks are let go slowly, if that is before.
    pub(crate) climbs: Option<At>,
    /// When it is released.
    pub(crate) ends: At,
    /// The hold.
    pub(crate) hold: Arc<Hold>,
}

/// The judge of holds: what each worker knows.
#[derive(Debug, Default)]
pub(crate) struct Heard {
    /// The holds that each worker has taken in.
    holds: BTreeMap<usize, Holds>,
    /// The rules that each worker has taken in.
    rules: BTreeMap<usize, Scenes>,
    /// The last time that each task was out of attempts and was held.
    exhausted: BTreeMap<Arc<str>, Exhaustion>,
    /// How the deadline of each task stood still when it was parked last, and when it was to be looked at.
    stopped: BTreeMap<Arc<str>, (Stopped, Timestamp)>,
    /// When each task was to be looked at that is parked.
    wakes: BTreeMap<Arc<str>, Timestamp>,
    /// What has become of the ramps of each worker, by the name of the hold and where its record is: all scenes are let go by one record here.
    climbs: BTreeMap<(usize, Arc<str>, Revision), Climb>,
}

/// A ramp of a worker, as its rule says.
#[derive(Debug, Default)]
struct Climb {
    /// How many steps are over.
    step: u32,
    /// The tasks that were started in this step.
    started: u64,
    /// When the first one was.
    began: Option<At>,
    /// The calls that came back in it.
    calls: u64,
    /// Those that failed.
    failed: u64,
    /// Whether it fell back.
    fell: bool,
}

/// Longest time to the next look at a task that is held, with what is rounded.
const LONGEST_LOOK: Duration = Duration::from_secs(51);

// === impl Holding ===

impl Holding {
    /// Within this time every worker has heard of a change.
    pub(crate) const LONGEST_DELAY: At = 800 * MILLI;

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
            let deadlines = if (begins / SECOND).is_multiple_of(3) {
                Deadlines::Stop
            } else {
                Deadlines::Run
            };
            let hold = Hold {
                name: format!("hold-{}", chance.below(2)).into(),
                revision: Revision {
                    partition: 0,
                    offset: number as i64,
                },
                selector: Selector::new(parts).unwrap_or_else(|error| unreachable!("{error}")),
                by: "sim".into(),
                reason: "chance".into(),
                since: wall(begins, 0),
                until: Timestamp::MAX,
                ramp: None,
                deadlines,
                released: None,
            };
            let climbs = chance.one_in(2).then(|| {
                let after = chance.between(begins / SECOND, ends / SECOND);
                after * SECOND
            });
            Self {
                begins,
                climbs,
                ends,
                hold: Arc::new(hold),
            }
        };
        (0..many).map(draw).collect()
    }

    /// A hold of the tasks of a scene for this time.
    pub(crate) fn of_scene(scene: &str, time: Range<At>) -> Self {
        let mut parts = Parts::default();
        parts.scenes.insert(scene.into());
        let hold = Hold {
            name: "hold-0".into(),
            revision: Revision {
                partition: 0,
                offset: 0,
            },
            selector: Selector::new(parts).unwrap_or_else(|error| unreachable!("{error}")),
            by: "sim".into(),
            reason: "chance".into(),
            since: Timestamp::EPOCH,
            until: Timestamp::MAX,
            ramp: None,
            deadlines: Deadlines::Run,
            released: None,
        };
        Self {
            begins: time.start,
            climbs: None,
            ends: time.end,
            hold: Arc::new(hold),
        }
    }

    /// The hold, on a ramp.
    pub(crate) fn climbing(&self) -> Arc<Hold> {
        let mut hold = Hold::clone(&self.hold);
        hold.revision.offset += 100;
        hold.ramp = Some(Self::ramp());
        Arc::new(hold)
    }

    /// The ramp.
    pub(crate) fn ramp() -> Ramp {
        Ramp::try_new(&[1, 3, 20], 0.3).unwrap_or_else(|| unreachable!("a ramp"))
    }

    /// How long after a change a worker hears of it.
    pub(crate) fn delay(chance: &mut Chance) -> At {
        chance.between(0, Self::LONGEST_DELAY / MILLI) * MILLI
    }
}

/// A task that was out of attempts and was held.
#[derive(Debug)]
struct Exhaustion {
    /// When.
    at: Timestamp,
    /// The last attempt that was made since.
    last: u32,
    /// Whether somebody who knew that people have let it go has started it since.
    is_let_go: bool,
}

// === impl Heard ===

impl Heard {
    /// A worker takes holds in.
    pub(crate) fn hear(&mut self, worker: usize, holds: Holds) {
        self.holds.insert(worker, holds);
    }

    /// A worker takes rules in.
    pub(crate) fn hear_rules(&mut self, worker: usize, rules: Scenes) {
        self.rules.insert(worker, rules);
    }

    /// It is durable that a task is out of attempts, and held.
    pub(crate) fn exhausts(&mut self, event: &Event, attempt: u32) {
        let exhaustion = Exhaustion {
            at: event.at,
            last: attempt,
            is_let_go: false,
        };
        self.exhausted.insert(Arc::clone(&event.id), exhaustion);
    }

    /// A worker starts an attempt: whether it knows that people have let the task go, if that was out of attempts, or reads that in the task,
    /// which somebody who knew it has started since.
    pub(crate) fn lets_go(&mut self, worker: usize, task: &Task) -> Result<(), String> {
        let (Some(exhaustion), Some(holds)) =
            (self.exhausted.get_mut(&task.id), self.holds.get(&worker))
        else {
            return Ok(());
        };
        let Exhaustion {
            at,
            last,
            is_let_go,
        } = exhaustion;
        let holds = [&*task.scene, DEFAULT].map(|scene| holds.of_exhausted(scene));
        let holds = holds.into_iter().flatten();
        let released = holds.filter_map(|hold| hold.released).max();
        // Who has lost its shard may still make an attempt that others have made.
        let is_made = task.attempt <= *last;
        if task.kind == Kind::Callback || is_made {
            return Ok(());
        }
        let is_known = released.is_some_and(|released| released >= *at);
        let mut said = task.exhausted.iter();
        let is_said = said.any(|said| !said.is_held && said.at == at.ceil_to_millis());
        if is_known || (*is_let_go && is_said) {
            *is_let_go = true;
            *last = task.attempt;
            return Ok(());
        }
        Err(format!(
            "worker {worker} starts {}, which was out of attempts at {at} and was let go until {released:?}",
            task.id
        ))
    }

    /// A worker starts a task: the ramps that it goes by, if it may.
    pub(crate) fn starts(
        &mut self,
        now: At,
        worker: usize,
        task: &Task,
        submission: Option<&Arc<Submission>>,
    ) -> Result<Vec<Arc<Hold>>, String> {
        let of_task = self.of_task(worker, task, submission);
        for hold in &of_task {
            let known = || format!("worker {worker} starts {}, knowing of {hold:?}", task.id);
            let Some(ramp) = &hold.ramp else {
                return Err(known());
            };
            let at = (worker, Arc::clone(&hold.name), hold.revision);
            let climb = self.climbs.entry(at).or_default();
            if climb.fell {
                return Err(format!("{}, which fell back: {climb:?}", known()));
            }
            let began = *climb.began.get_or_insert(now);
            climb.started += 1;
            if let Some(pace) = ramp.pace(climb.step) {
                let seconds = (now - began).div_ceil(SECOND) + 2;
                if climb.started > 1 + u64::from(pace) * seconds {
                    return Err(format!("{}, too many of them: {climb:?}", known()));
                }
            }
        }
        Ok(of_task)
    }

    /// The holds that a worker knows of and that are about a task.
    pub(crate) fn of_task(
        &self,
        worker: usize,
        task: &Task,
        submission: Option<&Arc<Submission>>,
    ) -> Vec<Arc<Hold>> {
        let (Kind::Work, Some(submission), Some(holds)) =
            (task.kind, submission, self.holds.get(&worker))
        else {
            return Vec::new();
        };
        let is_about = |hold: &Hold| match hold.released {
            // Its ramp is not the one of other tasks of its scene.
            Some(_) => hold.ramp.is_some() && task.is_exhausted(),
            None => true,
        };
        let holds = holds.iter().filter(|hold| is_about(hold));
        let holds = holds.filter(|hold| fits(&hold.selector, submission));
        holds.cloned().collect()
    }

    /// A call has come back that went by these ramps.
    pub(crate) fn came_back(&mut self, now: At, worker: usize, ramps: &[Arc<Hold>], failed: bool) {
        for hold in ramps {
            let at = (worker, Arc::clone(&hold.name), hold.revision);
            let climb = self.climbs.get_mut(&at);
            let (Some(ramp), Some(climb)) = (&hold.ramp, climb) else {
                continue;
            };
            if climb.fell || ramp.pace(climb.step).is_none() {
                continue;
            }
            climb.calls += 1;
            climb.failed += u64::from(failed);
            if climb.calls < 5 {
                continue;
            }
            if climb.failed * 10 > climb.calls * 3 {
                climb.fell = true;
            } else if climb.began.is_some_and(|began| now - began >= 3 * SECOND) {
                *climb = Climb {
                    step: climb.step + 1,
                    ..Climb::default()
                };
            }
        }
    }

    /// A worker parks a task at `wall` that is held: whether its deadline stands still, if the worker knows of a hold that says so.
    pub(crate) fn stops(
        &self,
        worker: usize,
        (task, wall): (&Task, Timestamp),
        submission: Option<&Arc<Submission>>,
    ) -> Result<(), String> {
        let (Kind::Work, Some(submission), Some(holds)) =
            (task.kind, submission, self.holds.get(&worker))
        else {
            return Ok(());
        };
        let is_held = task.held_since.is_some() && task.due <= wall;
        // Those are held for other reasons: the scene may be gone, or the attempts of the task.
        let is_another = &*task.scene == "call" || task.exhausted.is_some();
        // One that goes on to another tier is not looked at.
        let is_another = is_another || self.wakes.get(&task.id) == Some(&task.wake());
        if !is_held || is_another || task.pending_since.is_some() || task.is_stopped() {
            return Ok(());
        }
        let mut holds = holds.iter().filter(|hold| hold.released.is_none());
        let hold = holds
            .find(|hold| hold.deadlines == Deadlines::Stop && fits(&hold.selector, submission));
        match hold {
            Some(hold) => Err(format!(
                "the deadline of {} goes on, though worker {worker} knows of {hold:?}",
                task.id
            )),
            None => Ok(()),
        }
    }

    /// A worker lets a due task expire at `wall`, of which no call was made: whether the time counts for which it was held and its deadline
    /// stood still, as far as the worker knows of the holds, those that are over among them.
    pub(crate) fn expires(
        &self,
        worker: usize,
        (task, wall): (&Task, Timestamp),
        submission: Option<&Arc<Submission>>,
    ) -> Result<(), String> {
        let (Kind::Work, Some(submission), Some(holds), Some(rules)) = (
            task.kind,
            submission,
            self.holds.get(&worker),
            self.rules.get(&worker),
        ) else {
            return Ok(());
        };
        let Some(scene) = rules.find(&task.scene) else {
            return Ok(());
        };
        let of_scene = scene.deadline.map(|span| task.first_failed_at + span);
        let deadline = task.deadline.into_iter().chain(of_scene).min();
        let (Some(deadline), None) = (deadline, task.pending_since) else {
            return Ok(());
        };
        let on = holds.iter();
        let on = on.filter(|hold| hold.deadlines == Deadlines::Stop);
        let on = on.map(|hold| (hold, wall));
        let over = holds.over().map(|hold| (hold, hold.until));
        let of_task = on
            .chain(over)
            .filter(|(hold, _)| fits(&hold.selector, submission));
        let mut times: Vec<_> = of_task.map(|(hold, until)| (hold.since, until)).collect();
        times.sort_unstable();
        let mut from = task.due.max(task.first_failed_at);
        let mut stood = Duration::ZERO;
        for (since, until) in times {
            let (since, until) = (since.max(from), until.min(wall));
            // What has passed by then has passed.
            if since < until && since <= deadline + stood {
                stood += until.since(since);
                from = until;
            }
        }
        let counts = task.stopped.as_deref().map(|stopped| stopped.before);
        let counts = counts.unwrap_or_default();
        // What is told is in whole milliseconds.
        if task.is_stopped() || counts + Duration::from_millis(4) < stood {
            return Err(format!(
                "{} expires at {wall}, its deadline being {deadline}: it stood still for {stood:?}, of which {counts:?} counts",
                task.id
            ));
        }
        Ok(())
    }

    /// It is durable that a task is parked: how its deadline stands.
    pub(crate) fn parked(&mut self, task: &Task) {
        if task.kind != Kind::Work {
            return;
        }
        self.wakes.insert(Arc::clone(&task.id), task.wake());
        match task.stopped.as_deref() {
            None => drop(self.stopped.remove(&task.id)),
            Some(stopped) => {
                let known = (*stopped, task.wake());
                self.stopped.insert(Arc::clone(&task.id), known);
            }
        }
    }

    /// The owner of a task starts an attempt of it, which no command has made due: whether the time counts for which its deadline stood still.
    pub(crate) fn goes_on(&self, task: &Task) -> Result<(), String> {
        let Some((known, wake)) = self.stopped.get(&task.id) else {
            return Ok(());
        };
        let since = known.since.map(|since| wake.since(since));
        let least = known.before + since.unwrap_or_default();
        let stopped = task.stopped.as_deref();
        let counts = stopped.map(|stopped| stopped.before).unwrap_or_default();
        // What is parked is in whole milliseconds.
        if task.is_stopped() || counts + Duration::from_millis(2) < least {
            return Err(format!(
                "{} starts with {stopped:?}, and was parked with {known:?} until {wake}",
                task.id
            ));
        }
        Ok(())
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
