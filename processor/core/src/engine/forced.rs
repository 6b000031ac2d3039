//! The engine's part in breakers by hand: what people want of them, and what is written down of that and of breakers that are not closed.
//!
//! What a breaker does that is forced, is [`crate::breaker`]'s. Invariant: a shard has written down that it knows of a record no sooner than
//! its worker's breakers do what it says.

use std::collections::{BTreeMap, BTreeSet};
use std::mem;
use std::sync::Arc;
use std::time::Duration;

use super::Engine;
use crate::breaker::{State as Health, Subject};
use crate::entry::Entry;
use crate::forced::{AllForced, BREAKER, Force, Forced};
use crate::hold::Standing;
use crate::planted::Bug;
use crate::state::State;
use crate::step::{Action, Now};
use crate::time::Timestamp;

/// What people want of breakers, and what shards have written down.
#[derive(Debug, Default)]
pub(super) struct Forcing {
    /// What is wanted.
    all: AllForced,
    /// When the first of that ends by itself.
    ends_at: Option<Timestamp>,
    /// What is written down in each shard, by target, as far as this worker has handed it out.
    told: BTreeMap<i32, BTreeMap<Arc<str>, Standing>>,
    /// What is to be written down.
    changed: BTreeSet<(i32, Arc<str>)>,
    /// When states are looked at next, in steady time.
    look_at: Duration,
}

/// Time between two looks at the states of breakers: what people read of them is a few seconds old.
const LOOK: Duration = Duration::from_secs(3);

/// Most targets of which a shard writes down that they are not closed, besides those of which people want something: more than people read.
const MAX_TOLD: usize = 100;

// === impl Engine ===

impl Engine {
    /// People want something else of breakers.
    pub(super) fn follow_forced(&mut self, now: Now, all: AllForced, actions: &mut Vec<Action>) {
        if all == self.forcing.all {
            return;
        }
        let before = mem::replace(&mut self.forcing.all, all);
        let all = &self.forcing.all;
        let news = all.iter();
        let news = news.filter(|forced| before.get(&forced.target) != Some(*forced));
        let gone = before.iter();
        let gone = gone.filter(|forced| all.get(&forced.target).is_none());
        let targets: Vec<Arc<str>> = news
            .chain(gone)
            .map(|forced| Arc::clone(&forced.target))
            .collect();
        for shard in self.lanes.shards() {
            let targets = targets.iter().map(|target| (shard, Arc::clone(target)));
            self.forcing.changed.extend(targets);
        }
        self.force_breakers(now, actions);
    }

    /// The breakers of the scenes in force do what people want of them.
    pub(super) fn force_breakers(&mut self, now: Now, actions: &mut Vec<Action>) {
        self.breakers.force(now, &self.forcing.all, actions);
        self.forcing.ends_at = self.forcing.all.next_end(now.wall);
        self.ask_all_at(now.wall);
    }

    /// A shard is ours: that this worker knows what is wanted is written down.
    pub(super) fn begin_forced(&mut self, now: Now, shard: i32, actions: &mut Vec<Action>) {
        if self.bug.is(Bug::ForcedForgotten) {
            let none = AllForced::default().at_version(self.forcing.all.version());
            self.breakers.force(now, &none, actions);
        }
        let all = self.forcing.all.iter();
        let all = all.map(|forced| (shard, Arc::clone(&forced.target)));
        self.forcing.changed.extend(all);
    }

    /// What former owners have written down; whether it is of a breaker.
    pub(super) fn know_forced(&mut self, shard: i32, name: &str, standing: Standing) -> bool {
        let Some(target) = name.strip_prefix(BREAKER) else {
            return false;
        };
        let target: Arc<str> = target.into();
        self.forcing.changed.insert((shard, Arc::clone(&target)));
        let told = self.forcing.told.entry(shard).or_default();
        told.insert(target, standing);
        true
    }

    /// Ends what is over by itself, and sees how breakers are.
    pub(super) fn turn_forced(&mut self, now: Now, actions: &mut Vec<Action>) {
        if self.forcing.ends_at.is_some_and(|end| end <= now.wall) {
            self.force_breakers(now, actions);
        }
        if now.steady < self.forcing.look_at {
            return;
        }
        self.forcing.look_at = now.steady + LOOK;
        let standings = self.breaker_standings();
        let none = BTreeMap::new();
        for shard in self.lanes.shards() {
            let told = self.forcing.told.get(&shard).unwrap_or(&none);
            let news = standings
                .iter()
                .filter(|(target, standing)| told.get(*target) != Some(*standing));
            let news = news.map(|(target, _)| target);
            let over = told
                .keys()
                .filter(|target| !standings.contains_key(*target));
            let news = news.chain(over).map(|target| (shard, Arc::clone(target)));
            self.forcing.changed.extend(news);
        }
    }

    /// When breakers are to be looked at next without anything else happening.
    pub(super) fn next_forced(&self) -> Option<Timestamp> {
        let is_told = self.forcing.told.values().any(|told| !told.is_empty());
        let look = is_told.then(|| self.latest + self.forcing.look_at.saturating_sub(self.steady));
        self.forcing.ends_at.into_iter().chain(look).min()
    }

    /// Says in the events of settlements that people keep the breaker open for which their tasks wait, if they do.
    pub(super) fn name_forced(&self, now: Now, subject: &Subject, actions: &mut [Action]) {
        let Some(forced) = self.forced_open(now, subject) else {
            return;
        };
        for action in actions {
            let Action::Settle(settlement) = action else {
                continue;
            };
            for entry in &mut settlement.entries {
                if let Entry::Event(event) = entry {
                    event.command = Some(format!("{BREAKER}{}", forced.target).into());
                }
            }
        }
    }

    /// Whether people keep the breaker of a target open.
    pub(super) fn is_kept_open(&self, now: Now, subject: &Subject) -> bool {
        self.forced_open(now, subject).is_some()
    }

    /// The record by which people keep the breaker of a target open, if they do.
    fn forced_open(&self, now: Now, subject: &Subject) -> Option<&Arc<Forced>> {
        let forced = self.forcing.all.of(now.wall, subject);
        forced.filter(|forced| forced.force == Force::Open)
    }

    /// Whether something is to be written down.
    pub(super) fn has_forced_to_tell(&self) -> bool {
        !self.forcing.changed.is_empty()
    }

    /// The shards in which something is to be written down.
    pub(super) fn shards_to_tell_forced(&self) -> impl Iterator<Item = i32> {
        self.forcing.changed.iter().map(|(shard, _)| *shard)
    }

    /// What is to be written down.
    pub(super) fn forced_changes(&mut self, states: &mut Vec<(i32, State)>) {
        let changed = mem::take(&mut self.forcing.changed);
        if changed.is_empty() {
            return;
        }
        let standings = self.breaker_standings();
        for (shard, target) in changed {
            if !self.has(shard) {
                continue;
            }
            let standing = standings.get(&target).copied();
            let name = format!("{BREAKER}{target}").into();
            let told = self.forcing.told.entry(shard).or_default();
            let before = match standing {
                Some(standing) => told.insert(target, standing),
                None => told.remove(&target),
            };
            if before.is_some() || standing.is_some() {
                states.push((shard, State::Hold { name, standing }));
            }
        }
    }

    /// What was to be written down was not; whether it was of a breaker.
    pub(super) fn forced_unwritten(&mut self, shard: i32, name: &str) -> bool {
        let Some(target) = name.strip_prefix(BREAKER) else {
            return false;
        };
        let target: Arc<str> = target.into();
        // It may or may not be there.
        let told = self.forcing.told.entry(shard).or_default();
        told.entry(Arc::clone(&target)).or_default();
        self.forcing.changed.insert((shard, target));
        true
    }

    /// A shard is given away.
    pub(super) fn forget_forced(&mut self, shard: i32) {
        self.forcing.told.remove(&shard);
        self.forcing.changed.retain(|(of, _)| *of != shard);
    }

    /// How breakers stand: those of targets of which something is wanted, and those that are not closed.
    fn breaker_standings(&self) -> BTreeMap<Arc<str>, Standing> {
        let all = &self.forcing.all;
        let forced = all.iter().map(|forced| {
            let standing = Standing {
                revision: forced.revision,
                ..Standing::default()
            };
            (Arc::clone(&forced.target), standing)
        });
        let mut standings: BTreeMap<Arc<str>, Standing> = forced.collect();
        let mut open: BTreeMap<&str, Health> = BTreeMap::new();
        for (subject, health) in self.breakers.healths() {
            for forced in all.about(subject) {
                if let Some(standing) = standings.get_mut(&forced.target) {
                    standing.breaker = standing.breaker.max(Some(health));
                }
            }
            if health != Health::Closed {
                let worst = open.entry(subject.target()).or_insert(health);
                *worst = health.max(*worst);
            }
        }
        for (target, health) in open.into_iter().take(MAX_TOLD) {
            standings.entry(target.into()).or_insert_with(|| Standing {
                breaker: Some(health),
                ..Standing::default()
            });
        }
        standings
    }
}
