//! Records that are gone before they were read, and tasks that keys wait for and that do not come: they are looked for, and people are
//! told.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::mem;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::consumer::Consumer;

use retide_core::key_order::Awaited;
use retide_core::{Alert, Input, Source, Timestamp};

use crate::event::{AwaitedGone, RecordsGone, TopicDeleted};
use crate::trouble::{Effect, Kind, Trouble};
use crate::worker::drive::State;
use crate::worker::feed::Deleted;
use crate::worker::ledger::Ledger;
use crate::worker::restore::Gap;
use crate::worker::search::{Searched, Wanted};

/// What is done about tasks that keys wait for and that do not come.
pub(super) struct Awaiting {
    /// When it is looked for them next.
    pub(super) look_at: Instant,
    /// How long it is left alone after a search that has found all of them.
    pub(super) pause: Duration,
    /// Those of the last look, and the number of batches after which all that was decided before is durable.
    pub(super) suspects: Option<(HashSet<Awaited>, u64)>,
    /// Whether a search is under way.
    pub(super) is_searching: bool,
    /// Shards of whose tiers records are gone: there it is not waited until a task is due.
    pub(super) with_gaps: HashSet<i32>,
}

/// How late a parked task is that its tiers are searched for it: they come within milliseconds unless a flood is due.
pub(super) const LATE: Duration = Duration::from_secs(10);

/// Time between two looks for tasks that are that late.
const LOOK: Duration = Duration::from_secs(3);

/// Longest pause between two searches that find what they look for.
const RARELY: Duration = Duration::from_mins(10);

/// How long it is told that records are gone: long enough for somebody to be called, and to look.
const TOLD: Duration = Duration::from_mins(10);

// === impl State ===

impl<L: Ledger> State<L> {
    /// Records of our lanes are gone: people are told, and the offsets behind them are committed.
    pub(super) fn gone(&mut self, gaps: Vec<Gap>) {
        let now = self.now().wall;
        for gap in gaps {
            RecordsGone { gap: &gap }.emit(&self.parts.metrics);
            let shard = gap.lane.shard;
            self.tell_gone(format!("{}/{shard}", gap.topic), gap.says());
            self.tell(shard, gap.alert(now));
            if gap.lane.source != Source::Tasks {
                self.parts.engine.forget_deferred(shard);
                self.awaiting.with_gaps.insert(shard);
            }
        }
        self.touch(|_| true);
    }

    /// A topic was deleted: what was not read of it is lost.
    pub(super) fn deleted(&mut self, deleted: &Deleted) {
        let Deleted { source, ends } = deleted;
        let topic = Arc::clone(self.parts.topics.name(*source));
        let (mut records, mut shards) = (0, BTreeSet::new());
        for (lane, read) in self.parts.engine.ends() {
            let end = ends.get(&lane.shard).filter(|_| lane.source == *source);
            let left = end.map_or(0, |end| u64::try_from(end - read).unwrap_or_default());
            if left > 0 {
                records += left;
                shards.insert(lane.shard);
            }
        }
        let Some(first) = shards.first().copied() else {
            return;
        };
        TopicDeleted {
            topic: &topic,
            records,
        }
        .emit(&self.parts.metrics);
        self.tell_gone(
            topic.to_string(),
            format!(
                "the topic was deleted while up to {records} records of it were not read: their tasks are lost"
            ),
        );
        let alert = Alert {
            rule: Kind::RecordsGone.word(),
            scene: "".into(),
            at: self.now().wall,
            count: u32::try_from(records).unwrap_or(u32::MAX),
            example: topic,
            reason: "topic-deleted",
            target: None,
            expiring: None,
        };
        self.tell(first, alert);
        if *source != Source::Tasks {
            for shard in shards {
                self.parts.engine.forget_deferred(shard);
                self.awaiting.with_gaps.insert(shard);
            }
        }
        self.touch(|_| true);
    }

    /// Has the tiers searched for tasks that keys wait for, which should be back and are not: their records may be gone.
    pub(super) fn look_for_awaited(&mut self, now: Instant) {
        if now < self.awaiting.look_at || self.awaiting.is_searching {
            return;
        }
        self.awaiting.look_at = now + LOOK;
        let engine = &self.parts.engine;
        let late = self.now().wall.before(LATE);
        let with_gaps = &self.awaiting.with_gaps;
        let awaited = engine.awaited(|shard| {
            if with_gaps.contains(&shard) {
                Timestamp::MAX
            } else {
                late
            }
        });
        if awaited.is_empty() {
            self.awaiting.suspects = None;
            self.awaiting.with_gaps.clear();
            return;
        }
        // What is decided and not durable yet is in no tier either.
        let durable = self.submitted + u64::from(!self.settled.is_empty());
        let Some((before, mark)) = &self.awaiting.suspects else {
            self.awaiting.suspects = Some((awaited.into_iter().collect(), durable));
            return;
        };
        if self.received < *mark {
            return;
        }
        let tasks: Vec<Awaited> = awaited
            .into_iter()
            .filter(|of| before.contains(of))
            .collect();
        self.awaiting.suspects = None;
        if tasks.is_empty() || engine.unwritten() > 0 {
            return;
        }
        let shards: HashSet<i32> = tasks.iter().map(|task| task.shard).collect();
        let assignments = self
            .shards
            .iter()
            .filter(|(shard, _)| shards.contains(shard));
        let wanted = Wanted {
            ends: engine
                .ends()
                .filter(|(lane, _)| shards.contains(&lane.shard))
                .collect(),
            assignments: assignments.map(|(shard, of)| (*shard, *of)).collect(),
            tasks,
        };
        self.awaiting.is_searching = true;
        self.awaiting.with_gaps.clear();
        self.parts.feed.consumer.context().search(wanted);
    }

    /// The tiers were searched for tasks that keys wait for.
    pub(super) fn searched(&mut self, searched: Searched) {
        let Searched { gone, assignments } = searched;
        self.awaiting.is_searching = false;
        let gone: Vec<Awaited> = gone
            .into_iter()
            .filter(|task| self.shards.get(&task.shard) == assignments.get(&task.shard))
            .collect();
        let gone = self.parts.engine.forget_gone(gone);
        if gone.is_empty() {
            self.awaiting.look_at = Instant::now() + self.awaiting.pause;
            self.awaiting.pause = (self.awaiting.pause * 2).min(RARELY);
            return;
        }
        self.awaiting.pause = LATE;
        let mut shards: BTreeMap<i32, Vec<i64>> = BTreeMap::new();
        for Awaited { shard, offset, .. } in gone {
            shards.entry(shard).or_default().push(offset);
        }
        let now = self.now().wall;
        for (shard, tasks) in shards {
            let example = format!("{}/{shard}/{}", self.parts.topics.tasks, tasks[0]);
            let count = tasks.len();
            AwaitedGone {
                shard,
                tasks: count,
                example: &example,
            }
            .emit(&self.parts.metrics);
            let subject = format!("{}/{shard}", self.parts.topics.order);
            self.tell_gone(
                subject,
                format!(
                    "{count} parked tasks that others of their keys waited for, {example} among them, are in no tier any more: they are lost, \
                     and the next ones of their keys go on"
                ),
            );
            let alert = Alert {
                rule: Kind::RecordsGone.word(),
                scene: "".into(),
                at: now,
                count: u32::try_from(count).unwrap_or(u32::MAX),
                example: example.into(),
                reason: "parked-task-gone",
                target: None,
                expiring: None,
            };
            self.tell(shard, alert);
        }
        self.touch(|_| true);
        self.step(Input::Tick);
    }

    /// Tells for a while that records are gone.
    fn tell_gone(&mut self, subject: String, says: String) {
        self.troubles.begin(Trouble {
            kind: Kind::RecordsGone,
            subject: subject.clone(),
            says,
            fix: None,
            effect: Effect::Limits,
        });
        self.gone.push((Instant::now() + TOLD, subject));
    }

    /// Ends what has been told for long enough.
    pub(super) fn end_told(&mut self, now: Instant) {
        if self.gone.iter().all(|(until, _)| *until > now) {
            return;
        }
        let troubles = self.parts.metrics.troubles();
        let troubles = troubles.held_by(self.parts.heartbeat.name());
        let (stay, over) = mem::take(&mut self.gone)
            .into_iter()
            .partition::<Vec<_>, _>(|(until, _)| *until > now);
        for (_, subject) in &over {
            if !stay.iter().any(|(_, other)| other == subject) {
                troubles.end(Kind::RecordsGone, subject);
            }
        }
        self.gone = stay;
    }
}
