//! Alerts: what people must know, decided from what is written and from what is found out about targets and scenes.
//!
//! Not channels: an alert is an [`Entry::Alert`] of the transaction that it tells of. Rules are counters over what goes into the batch; the
//! window of the first one, `DeadTasks`, is a batch. Whom an alert is for:
//! - `next`: what the engine itself finds out, such as that a breaker has opened; it goes with the next settlement.
//! - `told`: what the shell has found out; it goes with the next batch, as soon as the alerts topic takes records.
//! - rules: what they have counted in a batch goes with that batch. A batch that was not written is counted anew when it is written again.
//!
//! A batch counts what it writes if no topic refuses a delivery. Whoever writes it finds out that one does, and so which other tasks have died
//! with their last attempts: [`of_dead`] decides what is told of those, in the same transaction.
//!
//! Invariant: an alert that a rule has made is committed together with what it counts, or not at all.

use std::collections::BTreeMap;
use std::mem;
use std::sync::Arc;

use crate::breaker::{State, StateChange, Subject, TripReason};
use crate::entry::{
    Alert, BREAKER_CLOSED, BREAKER_OPEN, DEAD_TASKS, Ended, Entry, FLOOD_BRAKE, TargetHealth,
};
use crate::outcome::{Reason, Terminal};
use crate::planted::{Bug, Planted};
use crate::step::Now;
use crate::task::Task;

/// What people are to be told.
#[derive(Debug, Default)]
pub(crate) struct Alerts {
    /// What goes with the next settlement; no more than calls whose shards are gone.
    next: Vec<Alert>,
    /// What goes with a batch as soon as the alerts topic takes records, each with the shard it is written in.
    told: Vec<(i32, Box<Alert>)>,
    /// The rule that counts the tasks that died.
    dead: DeadTasks,
    /// The mistake they make.
    pub(crate) bug: Planted,
}

/// The dead tasks of the batch that is being collected.
#[derive(Clone, Debug, Default)]
struct DeadTasks {
    /// An alert for each scene and shard that has some, in the order in which the shards had their first one.
    by_scene: BTreeMap<Arc<str>, Vec<(i32, Alert)>>,
}

/// Most alerts that wait for their topic: the oldest go first where there are more.
const MOST_TOLD: usize = 1_000;

// === impl Alerts ===

impl Alerts {
    /// Tells people with the next settlement.
    pub(crate) fn say(&mut self, alert: Option<Alert>) {
        self.next.extend(alert);
    }

    /// What goes with the settlement that is being made.
    pub(crate) fn take_next(&mut self) -> impl Iterator<Item = Entry> + '_ {
        self.next
            .drain(..)
            .map(|alert| Entry::Alert(Box::new(alert)))
    }

    /// Tells people with a batch, in the partition of this shard.
    pub(crate) fn tell(&mut self, shard: i32, alert: Box<Alert>) {
        self.told.push((shard, alert));
    }

    /// Does not tell people by this rule what is not written.
    pub(crate) fn untell(&mut self, rule: &str) {
        self.told.retain(|(_, alert)| alert.rule != rule);
    }

    /// Whether there is something to tell that no settlement has to come for.
    pub(crate) const fn has_told(&self) -> bool {
        !self.told.is_empty()
    }

    /// Counts what goes into the batch for an offset of this shard.
    pub(crate) fn count(&mut self, shard: i32, entries: &[Entry]) {
        for entry in entries {
            if matches!(entry, Entry::Poison { .. }) && self.bug.is(Bug::PoisonUncounted) {
                continue;
            }
            if let Some(ended) = entry.dead_letter() {
                self.dead.count(shard, ended);
            }
        }
    }

    /// What goes with the batch, each with the shard it is written in; what was told only if the alerts topic `takes` records.
    pub(crate) fn of_batch(&mut self, takes: bool) -> Vec<(i32, Box<Alert>)> {
        if !takes {
            let too_many = self.told.len().saturating_sub(MOST_TOLD);
            self.told.drain(..too_many);
        }
        let told = if takes {
            mem::take(&mut self.told)
        } else {
            Vec::new()
        };
        let dead = if self.bug.is(Bug::DeadCountedTwice) {
            self.dead.clone().by_batch()
        } else {
            mem::take(&mut self.dead).by_batch()
        };
        told.into_iter().chain(dead.map(boxed)).collect()
    }

    /// Takes back what was not written with its batch; what rules count is counted anew.
    pub(crate) fn returned(&mut self, alerts: Vec<(i32, Box<Alert>)>) {
        let told = alerts.into_iter().filter(|(_, alert)| {
            let is_counted = alert.rule == DEAD_TASKS;
            !is_counted || self.bug.is(Bug::ReturnedAlertKept)
        });
        self.told.extend(told);
    }

    /// A shard is given away: what its tasks have come to is its next owner's to say.
    pub(crate) fn forget(&mut self, shard: i32) {
        if !self.bug.is(Bug::DeadOfReleasedKept) {
            self.dead.forget(shard);
        }
    }
}

// === impl DeadTasks ===

impl DeadTasks {
    /// Counts the end of a task, if that died.
    fn count(&mut self, shard: i32, ended: &Ended) {
        let reason = match (ended.terminal, ended.reason) {
            (Terminal::Dead, Some(reason)) => reason,
            (Terminal::Dead, None)
            | (Terminal::Delivered | Terminal::Expired | Terminal::Cancelled, _) => return,
        };
        if !self.by_scene.contains_key(&ended.scene) {
            self.by_scene.insert(Arc::clone(&ended.scene), Vec::new());
        }
        let Some(shards) = self.by_scene.get_mut(&ended.scene) else {
            unreachable!("just put there");
        };
        match shards.iter_mut().find(|(known, _)| *known == shard) {
            Some((_, alert)) => alert.count += 1,
            None => shards.push((shard, Self::first(ended, reason))),
        }
    }

    /// The alert of the first task of a scene that died.
    fn first(ended: &Ended, reason: Reason) -> Alert {
        Alert {
            rule: DEAD_TASKS,
            scene: Arc::clone(&ended.scene),
            at: ended.at,
            count: 1,
            example: Arc::clone(&ended.id),
            reason: reason.word(),
            target: None,
            expiring: None,
        }
    }

    /// One alert for each scene, of the shard that had the first of its dead tasks.
    fn by_batch(self) -> impl Iterator<Item = (i32, Alert)> {
        self.by_scene.into_values().filter_map(|shards| {
            let mut shards = shards.into_iter();
            let (shard, mut alert) = shards.next()?;
            alert.count += shards.map(|(_, other)| other.count).sum::<u32>();
            Some((shard, alert))
        })
    }

    /// Drops what was counted of a shard.
    fn forget(&mut self, shard: i32) {
        for shards in self.by_scene.values_mut() {
            shards.retain(|(of, _)| *of != shard);
        }
    }
}

/// The alerts about tasks that have ended, each with its shard, as a batch has them: one for each scene with tasks that died, in the shard of
/// the first of them.
pub fn of_dead<'a>(
    all: impl IntoIterator<Item = (i32, &'a Ended)>,
) -> impl Iterator<Item = (i32, Box<Alert>)> {
    let mut dead = DeadTasks::default();
    for (shard, ended) in all {
        dead.count(shard, ended);
    }
    dead.by_batch().map(boxed)
}

/// An alert as an entry has it.
fn boxed((shard, alert): (i32, Alert)) -> (i32, Box<Alert>) {
    (shard, Box::new(alert))
}

/// What people must know of a switch that the call of a task has brought about: that a target is down, once, and that it is well again.
pub(crate) fn of_switch(
    now: Now,
    target: &Subject,
    switch: StateChange,
    task: &Task,
    samples: Vec<Arc<str>>,
) -> Option<Alert> {
    let rule = match (switch.from, switch.to) {
        (State::Closed, State::Open) if switch.why == TripReason::Flood => FLOOD_BRAKE,
        (State::Closed, State::Open) => BREAKER_OPEN,
        // What people have opened was no outage so far, of which anybody has been told.
        (State::HalfOpen, State::Open) if switch.by_people => BREAKER_OPEN,
        (State::HalfOpen, State::Closed) if switch.by_people => return None,
        (State::HalfOpen, State::Closed) => BREAKER_CLOSED,
        // It is the same outage, or only asked whether it still is.
        (State::HalfOpen | State::Open, State::Open)
        | (State::Open | State::Closed | State::HalfOpen, State::HalfOpen)
        | (State::Open | State::Closed, State::Closed) => return None,
    };
    let since = now.steady.saturating_sub(switch.since);
    let until = switch.until.map(|until| until.saturating_sub(now.steady));
    Some(Alert {
        rule,
        scene: Arc::clone(&task.scene),
        at: now.wall,
        count: switch.calls.calls,
        example: Arc::clone(&task.id),
        reason: switch.why.word(),
        target: Some(TargetHealth {
            name: Arc::clone(target.text()),
            failed: switch.calls.failed,
            slow: switch.calls.slow,
            since: now.wall.before(since),
            until: until.map(|wait| now.wall + wait),
            samples,
        }),
        expiring: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::entry::Omitted;
    use crate::task::{Kind, Origin};
    use crate::time::Timestamp;

    /// The end of a task of `scene`, as its dead letter has it.
    fn ended(scene: &str, id: &str, terminal: Terminal) -> Entry {
        let origin = Origin {
            topic: "retry.tasks".into(),
            partition: 0,
            offset: 0,
        };
        let poison = crate::entry::Poison {
            id: id.into(),
            scene: scene.into(),
            key: None,
            kind: Kind::Work,
            origin: origin.clone(),
            record: crate::task::Record::default(),
            reason: Reason::BadHeader,
            detail: crate::task::Failure::new("bad", "bad"),
            replay: None,
        };
        let ended = Ended {
            id: id.into(),
            scene: scene.into(),
            kind: Kind::Work,
            terminal,
            reason: Some(Reason::BadHeader),
            attempts: 0,
            origin,
            first_failed_at: Timestamp::EPOCH,
            at: Timestamp::EPOCH,
            failure: None,
            key: None,
            omitted: Omitted::Nothing,
        };
        Entry::Poison {
            poison: Arc::new(poison),
            ended: Arc::new(ended),
        }
    }

    /// Shard, scene, count and example of what goes with a batch.
    fn of_batch(alerts: &mut Alerts) -> Vec<(i32, String, u32, String)> {
        let all = alerts.of_batch(true).into_iter();
        all.map(|(shard, alert)| {
            let (scene, example) = (alert.scene.to_string(), alert.example.to_string());
            (shard, scene, alert.count, example)
        })
        .collect()
    }

    /// An alert that the shell tells.
    fn told(example: &str) -> Alert {
        Alert {
            rule: "records-gone",
            scene: "".into(),
            at: Timestamp::EPOCH,
            count: 1,
            example: example.into(),
            reason: "records-gone",
            target: None,
            expiring: None,
        }
    }

    #[test]
    fn the_dead_of_a_batch_are_told_of_by_scene_where_the_first_one_was() {
        let mut alerts = Alerts::default();
        alerts.count(4, &[ended("pay", "a", Terminal::Dead)]);
        alerts.count(2, &[ended("pay", "b", Terminal::Dead)]);
        alerts.count(4, &[ended("pay", "c", Terminal::Dead)]);
        alerts.count(2, &[ended("mail", "d", Terminal::Dead)]);
        alerts.count(2, &[ended("mail", "e", Terminal::Expired)]);

        let batch = of_batch(&mut alerts);

        let expected = [(2, "mail", 1, "d"), (4, "pay", 3, "a")];
        let expected =
            expected.map(|(shard, scene, count, id)| (shard, scene.into(), count, id.into()));
        assert_eq!(batch, expected);
        assert_eq!(of_batch(&mut alerts), []);
    }

    #[test]
    fn the_dead_of_a_shard_that_is_given_away_are_not_told_of() {
        let mut alerts = Alerts::default();
        alerts.count(4, &[ended("pay", "a", Terminal::Dead)]);
        alerts.count(2, &[ended("pay", "b", Terminal::Dead)]);

        alerts.forget(4);

        assert_eq!(of_batch(&mut alerts), [(2, "pay".into(), 1, "b".into())]);
    }

    #[test]
    fn what_a_batch_did_not_write_is_told_again_but_for_what_is_counted_again() {
        let mut alerts = Alerts::default();
        alerts.tell(1, Box::new(told("retry.tasks/1")));
        alerts.count(1, &[ended("pay", "a", Terminal::Dead)]);
        let batch = alerts.of_batch(true);
        assert_eq!(batch.len(), 2);

        alerts.returned(batch);

        assert!(alerts.has_told());
        let expected = [(1, String::new(), 1, "retry.tasks/1".into())];
        assert_eq!(of_batch(&mut alerts), expected);
    }

    #[test]
    fn the_latest_alerts_wait_for_a_topic_that_takes_no_records() {
        let mut alerts = Alerts::default();
        for number in 0..=MOST_TOLD {
            alerts.tell(0, Box::new(told(&number.to_string())));
        }

        assert_eq!(alerts.of_batch(false), []);

        let waited = of_batch(&mut alerts);
        assert_eq!(waited.len(), MOST_TOLD);
        assert_eq!(waited[0].3, "1");
    }
}
