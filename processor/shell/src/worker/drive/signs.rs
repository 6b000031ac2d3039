//! Signs of life: what a worker holds, what is late, and what is wrong, every tenth of a second.

use std::collections::HashMap;
use std::mem;
use std::sync::Arc;
use std::time::{Duration, Instant};

use retide_core::{Alert, Input, Overdue, Timestamp, breaker};

use crate::event::IdsUnknown;
use crate::metrics::share::Load;
use crate::metrics::standing::Said;
use crate::trouble::{Effect, Kind, Trouble};
use crate::worker::drive::{BEAT, State};
use crate::worker::ledger::Ledger;

/// Time between two looks at what is late: short beside the time between two scrapes, and rare enough that the look costs nothing.
const SAY: Duration = Duration::from_secs(1);

// === impl State ===

impl<L: Ledger> State<L> {
    /// Gives a sign of life, if it is time, and says what the worker holds.
    pub(super) fn beat(&mut self) {
        let now = Instant::now();
        // Without its feed a worker only seems alive.
        if now < self.beat_at || self.parts.feed.has_ended() {
            return;
        }
        self.beat_at = now + BEAT;
        self.end_told(now);
        if let Some(registry) = &self.parts.registry {
            registry.forget_missing(now);
        }
        self.alert_of_troubles();
        self.follow_kept();
        self.look_for_awaited(now);
        self.parts.heartbeat.beat();
        self.parts.feed.turned();
        self.follow_commits(now);
        for shard in self.ids().due() {
            if self.shards.contains_key(&shard) {
                self.parts.engine.touch(shard);
                self.touched = true;
            }
        }
        let ids = self.ids().bytes();
        let engine = &self.parts.engine;
        self.share.report(Load {
            open: engine.open(),
            held: engine.bytes(),
            calls: engine.in_flight(),
            shards: self.shards.len(),
            keys: engine.keys(),
            steps: engine.steps(),
            campaigns: engine.campaigns().count(),
            on_hold: engine.held().values().map(|held| *held as usize).sum(),
            ids,
            known: engine.known_ids(),
        });
        self.say_unknown_ids();
        let engine = &self.parts.engine;
        let missing = engine.missing().map(|missing| Trouble {
            kind: Kind::SceneUnknown,
            subject: missing.scene.to_string(),
            says: format!(
                "{} of its tasks are held, {} among them: it does not exist",
                missing.tasks, missing.example
            ),
            fix: Some("retide scenes apply scenes.toml, with rules for it".to_owned()),
            effect: Effect::Limits,
        });
        self.troubles.only(Kind::SceneUnknown, missing);
        let commands = &self.parts.topics.commands;
        let unread = engine.unread_commands().map(|shard| Trouble {
            kind: Kind::CommandsUnread,
            subject: format!("{commands}/{shard}"),
            says: format!(
                "shard {shard} works, although the commands that stood there when it became ours cannot be read: a task that one of them \
                 cancels may be called"
            ),
            fix: None,
            effect: Effect::Limits,
        });
        self.troubles.only(Kind::CommandsUnread, unread);
        for (of, calls) in engine.call_limits() {
            self.parts.metrics.limit_is(&of, calls);
        }
        let floods = engine.floods();
        let braked = floods.iter().map(|target| Trouble {
            kind: Kind::SceneBraked,
            subject: target.text().to_string(),
            says: "its tasks did well and then died in numbers: those that are left wait, and a few find out when that is over; the alert \
                   names some of the dead"
                .to_owned(),
            fix: None,
            effect: Effect::Limits,
        });
        self.troubles.only(Kind::SceneBraked, braked);
        let mut walls = Vec::new();
        let by_people = engine.opened_by_people();
        for (target, state) in engine.breaker_states() {
            self.parts.metrics.breaker_is(target.text(), state);
            let is_open = state != breaker::State::Closed;
            let is_said = floods.contains(&target) || by_people.contains(&target);
            if target.is_wall() && is_open && !is_said {
                walls.push(Trouble {
                    kind: Kind::TargetWalled,
                    subject: target.text().to_string(),
                    says: "the target has done well and now refuses everything: its tasks wait, and a few find out when that is over"
                        .to_owned(),
                    fix: None,
                    effect: Effect::Limits,
                });
            }
        }
        self.troubles.only(Kind::TargetWalled, walls);
        if now >= self.say_at {
            self.say_at = now + SAY;
            self.say_what_is_late();
            let cooling = self.parts.engine.cooldowns(self.now().steady);
            self.parts.metrics.cooldowns_are(&cooling);
        }
    }

    /// Says so where there is no room for the ids of tasks.
    fn say_unknown_ids(&mut self) {
        let unknown = self.parts.engine.unknown_ids();
        let tasks = unknown - mem::replace(&mut self.unknown_ids, unknown);
        if tasks > 0 {
            IdsUnknown { tasks }.emit(&self.parts.metrics);
        }
    }

    /// Makes alerts of the troubles that have begun, and has them written as soon as the alerts topic takes them.
    fn alert_of_troubles(&mut self) {
        let Some(shard) = self.shards.keys().next().copied() else {
            return;
        };
        let now = self.now().wall;
        for (kind, subject) in self.troubles.take_alerts(shard == 0) {
            // What cannot be written cannot say so there.
            if kind != Kind::TopicUnwritable || *subject != *self.parts.topics.alerts {
                self.tell(shard, trouble_alert(kind, &subject, now));
            }
        }
        if !self.touched && self.parts.engine.has_alerts() {
            self.touch(|_| true);
        }
    }

    /// Has people told what was found out here, with the next commit.
    pub(super) fn tell(&mut self, shard: i32, alert: Alert) {
        let alert = Box::new(alert);
        self.step(Input::Alert { shard, alert });
    }

    /// Says which tasks are due and have not started.
    fn say_what_is_late(&mut self) {
        let mut overdue: HashMap<Arc<str>, Overdue> = HashMap::new();
        for (scene, tasks) in self.parts.engine.overdue(self.now().wall) {
            let label = Arc::clone(self.counters.of(&scene).label());
            overdue
                .entry(label)
                .and_modify(|others| *others = others.and(tasks))
                .or_insert(tasks);
        }
        let read = self.parts.engine.read_ends().collect();
        self.share.say(Said { overdue, read });
    }
}

/// The alert of a trouble that has begun.
fn trouble_alert(kind: Kind, subject: &str, at: Timestamp) -> Alert {
    Alert {
        rule: kind.word(),
        scene: "".into(),
        at,
        count: 1,
        example: subject.into(),
        reason: kind.word(),
        target: None,
        expiring: None,
    }
}
