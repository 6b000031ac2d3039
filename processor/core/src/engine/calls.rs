//! The engine's part in attempts: the call of a target, or the delivery to a topic, and what follows from what was said.
//!
//! Invariant: a call returns what it was admitted with, also when its lane is not ours any more.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use super::breakers::{CallPermits, say_switch};
use super::{Closing, Engine};
use crate::agenda::Item;
use crate::alert;
use crate::breaker;
use crate::consequence::{self, Answer as Said, End};
use crate::cooldown::{Heard, Signal, Teller};
use crate::entry::Entry;
use crate::gate::Gate;
use crate::hold::HoldId;
use crate::lane::LaneId;
use crate::outcome::{Outcome, Terminal, Verdict};
use crate::planted::Bug;
use crate::scene::Scene;
use crate::step::{Action, Now};
use crate::task::{Failure, Kind, Task};
use crate::verdict;
use crate::wait::Wait;
use crate::wall;

/// A call in flight.
#[derive(Debug)]
pub(super) struct Call {
    /// The lane its task was read from.
    lane: LaneId,
    /// The assignment of that lane.
    epoch: u64,
    /// The offset of the task in that lane.
    offset: i64,
    /// The task.
    task: Arc<Task>,
    /// The rules it was started under.
    scene: Arc<Scene>,
    /// The gate to give it back to.
    gate: Arc<Gate>,
    /// The breaker and the wall to tell how it went.
    permits: CallPermits,
    /// The steady time at which it was started.
    started: Duration,
    /// How late that was.
    wait: Wait,
    /// The headers of its record that it is made without, in words.
    left_out: Option<Box<str>>,
    /// The ramps that it went by.
    ramps: Vec<HoldId>,
    /// Whether those wait for it that would take the place of its task.
    is_noted: bool,
}

// === impl Call ===

impl Call {
    /// The steady time at which the call was started.
    pub(super) const fn started(&self) -> Duration {
        self.started
    }

    /// Where the task of the call was read, and the task.
    pub(super) fn at(&self) -> (LaneId, i64, &Task) {
        (self.lane, self.offset, &self.task)
    }

    /// The scene of the call, and the kind of its task.
    pub(super) fn of(&self) -> (Arc<str>, Kind) {
        (Arc::clone(&self.scene.name), self.task.kind)
    }
}

// === impl Engine ===

impl Engine {
    /// Calls the target.
    pub(super) fn dispatch(
        &mut self,
        now: Now,
        mut item: Item,
        scene: Arc<Scene>,
        (gate, permits): (Arc<Gate>, CallPermits),
        actions: &mut Vec<Action>,
    ) {
        let ticket = self.number();
        let wait = self.wait_of(now, &item);
        self.resume_deadline(now, &mut item);
        self.uncount(&item);
        self.leave_exhausted(item.lane.shard, &item.task);
        let call = Call {
            lane: item.lane,
            epoch: self.lanes.call_started(item.lane),
            offset: item.offset,
            task: Arc::clone(&item.task),
            scene: Arc::clone(&scene),
            gate,
            permits,
            started: now.steady,
            wait,
            left_out: None,
            ramps: self.go_by_ramps(now, &scene, &item.task),
            is_noted: self.note_call(item.lane.shard, &item.task),
        };
        self.calls.insert(ticket, call);
        actions.push(Action::Dispatch {
            ticket,
            lane: item.lane,
            scene,
            wait,
            task: item.task,
        });
    }

    /// Delivers to a topic: the attempt is part of the settlement, and so is what follows if the topic refuses it.
    pub(super) fn deliver(
        &mut self,
        now: Now,
        mut item: Item,
        scene: &Scene,
        topic: &Arc<str>,
        actions: &mut Vec<Action>,
    ) {
        self.leave_exhausted(item.lane.shard, &item.task);
        self.resume_deadline(now, &mut item);
        // What a topic has refused is found out when it is committed, and does not happen as a rule.
        let ramps = self.go_by_ramps(now, scene, &item.task);
        self.came_back(now, &ramps, false, &item.task);
        let closing = self.closing(&item);
        let wait = self.wait_of(now, &item);
        let delivered = End {
            terminal: Terminal::Delivered,
            reason: None,
            attempts: item.task.attempt,
            wait: Some(wait),
        };
        let mut entries = vec![Entry::Deliver {
            topic: Arc::clone(topic),
            task: Arc::clone(&item.task),
            deadline: verdict::deadline(scene, &item.task),
            wait,
        }];
        entries.extend(consequence::delivered(
            Arc::clone(&item.task),
            delivered,
            now.wall,
        ));

        let failure = Failure::new("produce", "the target topic refused the record");
        let refused = Outcome::Retryable(failure.clone());
        let at = (scene, &*item.task);
        let verdict = self.judge(now, item.lane.shard, at, &refused);
        let mut otherwise = consequence::of_verdict(
            item.task,
            verdict,
            Said {
                outcome: refused.word(),
                failure: Some(failure),
                wait,
                left_out: None,
            },
            &self.ladder,
            now.wall,
        );
        self.deliver_in_order(closing, &mut entries, &mut otherwise);
        self.deliver_ids(closing, &mut entries, &mut otherwise);
        self.close(closing, entries, otherwise, actions);
    }

    /// A call is made without these headers of its record.
    pub(super) fn note_left_out(&mut self, ticket: u64, headers: Box<str>) {
        if let Some(call) = self.calls.get_mut(&ticket) {
            call.left_out = Some(headers);
        }
    }

    /// Decides what the outcome of a call means, unless its lane is not ours any more.
    pub(super) fn attempted(
        &mut self,
        now: Now,
        ticket: u64,
        outcome: &Outcome,
        actions: &mut Vec<Action>,
    ) {
        let Some(call) = self.calls.remove(&ticket) else {
            unreachable!("call {ticket} came back twice");
        };
        if call.is_noted {
            self.replacing.call_returned(call.lane.shard, &call.task);
        }
        let took = now.steady.saturating_sub(call.started);
        call.gate.took(call.task.kind, took);
        let went = breaker::Call::of(outcome, took);
        // Nobody could say later what came of the delivery of a callback: commands are about work.
        let outcome = match (call.task.kind, outcome) {
            (Kind::Callback, Outcome::Pending { .. }) => &Outcome::Success,
            (Kind::Work | Kind::Callback, _) => outcome,
        };
        let failed = !matches!(outcome, Outcome::Success | Outcome::Pending { .. });
        self.came_back(now, &call.ramps, failed, &call.task);
        match call.task.kind {
            Kind::Work => call.gate.returned(now.steady, went),
            // Of another target.
            Kind::Callback => call.gate.release(),
        }
        let cools = cool(now, &call, outcome, actions);
        let outcome = if cools {
            Cow::Borrowed(outcome)
        } else {
            self.behind_wall(now, &call, outcome, actions)
        };
        let outcome = &*outcome;
        if cools {
            // It is neither down nor well.
            call.permits.clone().unused();
        } else if let Some(permit) = &call.permits.breaker {
            let switch = permit.breaker.returned(now.steady, permit.permit, went);
            say_switch(&permit.target, switch, actions);
            // With what follows from this call, or, if that is not ours to write any more, from the next one.
            let alert = switch.and_then(|switch| {
                alert::of_switch(now, &permit.target, switch, &call.task, Vec::new())
            });
            self.alerts.say(alert);
        }
        self.ask_about_call(now.wall, &call.scene);
        let outcome = &*self.bug.heard(outcome);
        if !self.lanes.call_returned(call.lane, call.epoch, ticket) {
            // Nothing follows from it that somebody could wait for.
            self.replacing.look_again();
            return;
        }
        let closing = Closing {
            lane: call.lane,
            offset: call.offset,
            home: self.home(&call.task),
            bytes: call.task.memory_size(),
        };
        // By the rules that it was started under: it is their target that was called.
        let host = || call.scene.host_called(call.task.kind).map(Arc::clone);
        let failure = outcome.failure();
        let said = Said {
            outcome: outcome.word(),
            failure: failure.map(|failure| failure.clone().of_host(host())),
            wait: call.wait,
            left_out: call.left_out,
        };
        let task = call.task;
        let at = (call.lane, call.offset);
        let (entries, applied) = if let Some(met) = self.met_in_call(at, &task) {
            self.commanded(now, call.lane.shard, (task, met), said, outcome)
        } else {
            // A verdict is a decision of its own: by the rules in force now, not by those that the call was started under.
            let scene = self.scenes.find(&task.scene).unwrap_or(&call.scene);
            let verdict = self.judge(now, call.lane.shard, (scene, &task), outcome);
            let entries = consequence::of_verdict(task, verdict, said, &self.ladder, now.wall);
            (entries, Vec::new())
        };
        self.settle_by(closing, entries, applied, actions);
        self.say_if_drained(closing.lane.shard, actions);
    }

    /// A target says in a success that nothing is left of a limit.
    pub(super) fn spent(&self, now: Now, ticket: u64, after: Duration, actions: &mut Vec<Action>) {
        let call = self.calls.get(&ticket);
        let called = call.and_then(|call| call.permits.server.as_ref());
        if let Some(called) = called.filter(|_| !after.is_zero()) {
            let said = called.server.asked(now.steady, after);
            say_cooldown(&called.name, said, Teller::Server, actions);
        }
    }

    /// Another process says that a server has asked for rest. It is nothing to us if no scene calls it.
    pub(super) fn hear_cooldown(
        &self,
        now: Now,
        server: &str,
        heard: Heard,
        actions: &mut Vec<Action>,
    ) {
        if self.bug.is(Bug::CooldownUnheard) {
            return;
        }
        if let Some(called) = self.breakers.server(server) {
            let said = called.server.heard(now.steady, heard);
            say_cooldown(&called.name, said, Teller::Process, actions);
        }
    }

    /// What a target said, if it is about the task: what a wall refuses, and what dies in a flood, is tried again. Where no attempt is left for
    /// that, the attempt does not count: the target is to be left alone, as one that asks for it.
    fn behind_wall<'a>(
        &mut self,
        now: Now,
        call: &Call,
        outcome: &'a Outcome,
        actions: &mut Vec<Action>,
    ) -> Cow<'a, Outcome> {
        let Some(permit) = &call.permits.wall else {
            return Cow::Borrowed(outcome);
        };
        let scene = self.scenes.find(&call.task.scene).unwrap_or(&call.scene);
        let dies = |outcome: &Outcome| {
            let verdict = verdict::verdict(scene, &call.task, outcome, now.wall);
            matches!(verdict, Verdict::Dead(_))
        };
        let said = breaker::Said {
            outcome,
            task: &call.task.id,
            dies: *outcome != Outcome::Success && dies(outcome) && !self.bug.is(Bug::BrakeIgnored),
        };
        let breaker::Heard {
            switch,
            is_spared,
            samples,
        } = permit.breaker.heard(now.steady, permit.permit, said);
        say_switch(&permit.target, switch, actions);
        let is_spared = is_spared && !self.bug.is(Bug::WallIgnored);
        let failure = outcome.failure().filter(|_| is_spared);
        let taken = failure.map_or(Cow::Borrowed(outcome), |failure| {
            let again = Outcome::Retryable(failure.clone());
            Cow::Owned(if dies(&again) {
                Outcome::Throttled {
                    after: wall::RULE.open,
                    failure: failure.clone(),
                }
            } else {
                again
            })
        });
        let alert = switch
            .and_then(|switch| alert::of_switch(now, &permit.target, switch, &call.task, samples));
        self.alerts.say(alert);
        if is_spared || matches!(outcome, Outcome::Refused(_)) {
            actions.push(Action::Judged {
                outcome: taken.clone().into_owned(),
            });
        }
        taken
    }
}

/// Notes what a call says of its server's rest, and whether it is rest that the server asks for.
fn cool(now: Now, call: &Call, outcome: &Outcome, actions: &mut Vec<Action>) -> bool {
    let Some(called) = &call.permits.server else {
        return false;
    };
    let after = match outcome {
        Outcome::Success | Outcome::Pending { .. } => {
            called.server.succeeded(now.steady);
            return false;
        }
        Outcome::Throttled { after, .. } if !after.is_zero() => *after,
        Outcome::Throttled { .. }
        | Outcome::Retryable(_)
        | Outcome::Permanent(_)
        | Outcome::Refused(_)
        | Outcome::Timeout(_) => return false,
    };
    let said = called.server.asked(now.steady, after);
    say_cooldown(&called.name, said, Teller::Server, actions);
    true
}

/// Tells others of a cooldown, if it is news.
fn say_cooldown(
    server: &Arc<str>,
    said: Option<(Duration, u32)>,
    told_by: Teller,
    actions: &mut Vec<Action>,
) {
    if let Some((left, passed)) = said {
        let signal = Signal {
            server: Arc::clone(server),
            left,
            passed,
        };
        actions.push(Action::Cooldown { signal, told_by });
    }
}
