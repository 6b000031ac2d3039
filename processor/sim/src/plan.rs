//! The plan of one history: who takes part, what is asked of them, and what goes wrong.
//!
//! All of it drawn from the seed before anything happens. Invariant: faults end at [`Plan::heals_at`]; from there on everything works.

use std::num::NonZeroU32;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use retide_core::breaker::{Fraction, Key, Rule, Subject};
use retide_core::completions::Completions;
use retide_core::duplicates::{Mode, Rule as Duplicates};
use retide_core::lane::Limits;
use retide_core::pending::Pending;
use retide_core::scene::{
    CONCURRENCY, Callback, Cooldown, DEFAULT, Host, OnExhausted, Target, Walls,
};
use retide_core::wall::RULE;
use retide_core::{
    Backoff, Base, Failure, Jitter, Ladder, LaneId, Ordering, Outcome, Policy, Rate, Scene, Source,
    Terminal, Timestamp, Weight,
};

use crate::broker::Topic;
use crate::broker::{Progress, binding, binding_elsewhere};
use crate::chance::Chance;
use crate::forced::Wish;
use crate::group::Protocol;
use crate::holds::Holding;
use crate::orders::{Order, Sort};
use crate::world::{At, MILLI, SECOND, wall};

/// What a producer asks for.
#[derive(Clone, Debug)]
pub(crate) struct Submission {
    /// Its identity.
    pub(crate) id: Arc<str>,
    /// When it is produced.
    pub(crate) at: At,
    /// The partition.
    pub(crate) shard: i32,
    /// The scene it names.
    pub(crate) scene: Arc<str>,
    /// When its first attempt may start, if not at once.
    pub(crate) due: Option<Timestamp>,
    /// When no attempt may start any more.
    pub(crate) deadline: Option<Timestamp>,
    /// The key of its record.
    pub(crate) key: Option<&'static str>,
    /// Whether it is a record that cannot be read.
    pub(crate) poison: bool,
    /// When whoever is asked what its record is says so; 0 if nobody has to be asked.
    pub(crate) named_at: At,
    /// What it is to go through; none if chance decides at each call.
    pub(crate) fate: Option<Fate>,
    /// Whether it is one that was asked for before, a second time.
    pub(crate) again: bool,
}

/// What a task of a campaign is to go through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// So many attempts fail, and the next one does not.
    Fails(u32),
    /// The first attempt is throttled for this time, and the next one succeeds.
    Throttled(Duration),
    /// The first attempt is refused for good.
    Refused,
    /// Its deadline is before its first attempt.
    Expires,
    /// The first attempt is answered later than within this limit, that is never, and the next one succeeds.
    Later(Duration),
}

/// Something that goes wrong at an instant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// A process ends without a word, and starts again after this time.
    Crash(usize, At),
    /// A process stands still for this time.
    Freeze(usize, At),
    /// A process drains, leaves and starts again after this time.
    Leave(usize, At),
    /// The group does not hear of a process for longer than it waits.
    Cut(usize),
    /// The group forms a new generation for no reason of its own.
    Rebalance,
    /// A process's wall clock is set by so many microseconds.
    Step(usize, i64),
    /// The broker's clock is set by so many microseconds.
    StepBroker(i64),
    /// Other rules are in force.
    Rules,
    /// The targets' topic refuses records, or accepts them again.
    Refuse(bool),
    /// The targets of calls answer none for this time.
    Down(At),
    /// One of retide's topics takes no records for this time.
    Close(Topic, At),
}

/// What goes wrong with requests to the broker and calls of targets, in chances of a thousand.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Odds {
    /// A request never arrives.
    pub(crate) request_lost: u64,
    /// A request is followed, but nobody hears of it.
    pub(crate) reply_lost: u64,
    /// A request arrives after its sender has stopped waiting.
    pub(crate) request_late: u64,
    /// A request is answered with an error that passes.
    pub(crate) refused: u64,
    /// A request is followed and answered with an error.
    pub(crate) indeterminate: u64,
    /// A request is sent twice by the client, and the first one arrives last.
    pub(crate) repeated: u64,
    /// A call takes seconds.
    pub(crate) slow: u64,
    /// A call is not answered within its limit.
    pub(crate) hung: u64,
}

/// The plan.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    /// How many shards there are.
    pub(crate) shards: i32,
    /// How many workers each process has.
    pub(crate) workers: Vec<usize>,
    /// How shards change hands.
    pub(crate) protocol: Protocol,
    /// How much a worker holds.
    pub(crate) limits: Limits,
    /// The tiers.
    pub(crate) ladder: Ladder,
    /// How long a batch is collected.
    pub(crate) commit_interval: At,
    /// How long a drain may take.
    pub(crate) drain_deadline: At,
    /// The scenes at the start.
    pub(crate) scenes: Vec<Scene>,
    /// What is asked for.
    pub(crate) submissions: Vec<Arc<Submission>>,
    /// The commands that are sent.
    pub(crate) orders: Vec<Order>,
    /// What people hold.
    pub(crate) holds: Vec<Holding>,
    /// What people want of breakers.
    pub(crate) wishes: Vec<Wish>,
    /// When people let those tasks go that are out of attempts, and whether by a ramp. Once everything works, they do so again and again.
    pub(crate) lets_go: Vec<(At, bool)>,
    /// By how many microseconds each process's clock is off, the broker's last.
    pub(crate) skews: Vec<i64>,
    /// The offsets that somebody has set before anybody works, with metadata that was not written for them.
    pub(crate) copied: Vec<Progress>,
    /// What goes wrong at an instant.
    pub(crate) faults: Vec<(At, Fault)>,
    /// What goes wrong by chance.
    pub(crate) odds: Odds,
    /// When everything works again.
    pub(crate) heals_at: At,
    /// The longest rest that targets ask for, in histories with cooldowns; in others it is [`LONGEST_WAIT`].
    pub(crate) rest: Option<Duration>,
    /// When the target of [`FLOOD`] refuses everybody, if there is such a scene.
    pub(crate) flood: Option<Range<At>>,
    /// Of so many looks at a lane of tasks one finds time for it, as long as anything goes wrong; 1 where workers keep up.
    pub(crate) behind: u64,
    /// The longest time for which targets take tasks and answer later, in histories in which they do.
    pub(crate) pending: Option<Duration>,
}

/// The longest wait that targets ask for, for the task itself.
pub(crate) const LONGEST_WAIT: Duration = Duration::from_secs(30);

/// The topics that may take no records for a while.
const CLOSING: [Topic; 5] = [
    Topic::Callbacks,
    Topic::DeadLetters,
    Topic::Events,
    Topic::Alerts,
    Topic::KeyOrder,
];

/// The scenes' names: a call, a call with a rate and callbacks, a topic.
const SCENES: [&str; 3] = ["call", "rate", "topic"];

/// The one of them with callbacks, which is never taken away.
const ALWAYS: &str = "rate";

/// The scenes of those that keep the order of their keys: a call, and a topic.
const KEYED: [&str; 2] = ["keyed", "keyed-topic"];

/// The scenes of those that share the rate of a host.
const SHARING: [&str; 2] = ["shared", "too"];

/// The scenes of those that drop duplicates: a call, and a topic.
const ONCE: [&str; 2] = ["once", "once-topic"];

/// The scenes of those where newcomers take the place of the task of their id: a call, and a topic.
pub(crate) const LATEST: [&str; 2] = ["latest", "latest-topic"];

/// How long after its end a task of those still has its id: longer than from the first task of a history to when its last one is read.
const WINDOW: Duration = Duration::from_hours(1);
/// The scene whose target is well, then refuses everybody for good, and is well again.
pub(crate) const FLOOD: &str = "flood";

/// Calls of a host in flight, where they are few: two.
const FEW: NonZeroU32 = NonZeroU32::MIN.saturating_add(1);

/// The scene of a campaign.
const CAMPAIGN: &str = "chaos";

/// Its scene that keeps the order of its keys.
const CAMPAIGN_ORDERED: &str = "chaos-ordered";

/// Its scene whose targets answer later.
const CAMPAIGN_LATER: &str = "chaos-later";

/// Its scene that is held for a while.
pub(crate) const CAMPAIGN_HELD: &str = "chaos-held";

/// Its scene that drops duplicates.
const CAMPAIGN_ONCE: &str = "chaos-once";

/// How many scenes a campaign has.
pub(crate) const CAMPAIGN_SCENES: u32 = 5;

/// Most attempts of a task of a campaign: one for each wait.
const CAMPAIGN_ATTEMPTS: u32 = 4;

/// Waits before the second and later attempts of a campaign, in milliseconds: those of the crash campaign.
pub(crate) const CAMPAIGN_BACKOFF: [u64; 3] = [500, 1_700, 6_000];

/// Most calls of a scene of a campaign that a process has in flight: so many that few tasks wait for one, so few that it bounds something.
pub(crate) const CAMPAIGN_CONCURRENCY: u32 = 8;

/// Largest step and skew of a clock.
const HOUR: i64 = 3_600 * SECOND as i64;

/// Kinds of faults that happen to processes and to the group.
const KINDS: u32 = 8;

/// Those of a campaign: no other rules, and no topic that refuses.
const CAMPAIGN_KINDS: u32 = 5;

// === impl Submission ===

impl Submission {
    /// A task that is due at once, and of which chance decides at each call.
    fn new(id: String, at: At, shard: i32, scene: &str) -> Self {
        Self {
            id: id.into(),
            at,
            shard,
            scene: scene.into(),
            due: None,
            deadline: None,
            key: None,
            poison: false,
            named_at: 0,
            fate: None,
            again: false,
        }
    }
}

// === impl Fate ===

impl Fate {
    /// How the task has to end.
    pub(crate) const fn outcome(self) -> &'static str {
        match self {
            Self::Fails(times) if times < CAMPAIGN_ATTEMPTS => "delivered",
            Self::Fails(_) | Self::Refused => "dead",
            Self::Throttled(_) | Self::Later(_) => "delivered",
            Self::Expires => "expired",
        }
    }

    /// How many attempts that takes.
    pub(crate) fn attempts(self) -> u32 {
        match self {
            Self::Fails(times) => CAMPAIGN_ATTEMPTS.min(times + 1),
            Self::Throttled(_) | Self::Later(_) => 2,
            Self::Refused => 1,
            Self::Expires => 0,
        }
    }

    /// What the target answers to this attempt.
    pub(crate) fn answer(self, attempt: u32) -> Outcome {
        let failure = Failure::new("target", "no");
        match self {
            Self::Fails(times) if attempt <= times => Outcome::Retryable(failure),
            Self::Throttled(after) if attempt <= 1 => Outcome::Throttled { after, failure },
            Self::Later(limit) if attempt <= 1 => Outcome::Pending { limit: Some(limit) },
            Self::Fails(_) | Self::Throttled(_) | Self::Later(_) => Outcome::Success,
            Self::Refused | Self::Expires => Outcome::Permanent(failure),
        }
    }
}

// === impl Plan ===

impl Plan {
    /// The plan that follows from `chance`.
    pub(crate) fn draw(chance: &mut Chance) -> Self {
        let shards = chance.between(1, 4) as i32;
        let processes = chance.between(1, 6).min(chance.between(1, 6)) as usize;
        let workers = (0..processes)
            .map(|_| 1 + usize::from(chance.one_in(3)))
            .collect();
        let heals_at = chance.between(20, 60) * SECOND;
        let mut plan = Self {
            shards,
            workers,
            protocol: chance.pick(&[Protocol::Eager, Protocol::Cooperative]),
            limits: limits(chance),
            ladder: Ladder::try_new(&["now", "5s", "10s", "30s"])
                .unwrap_or_else(|error| unreachable!("{error}")),
            commit_interval: chance.pick(&[20, 100, 300]) * MILLI,
            drain_deadline: chance.pick(&[200, 2_000, 5_000]) * MILLI,
            scenes: scenes(chance),
            submissions: submissions(chance, heals_at, shards),
            orders: Vec::new(),
            holds: Vec::new(),
            wishes: Vec::new(),
            lets_go: Vec::new(),
            skews: vec![0; processes + 1],
            copied: Vec::new(),
            faults: Vec::new(),
            odds: Odds::default(),
            heals_at,
            rest: None,
            flood: None,
            behind: 1,
            pending: None,
        };
        plan.draw_odds(chance);
        plan.draw_clocks(chance);
        plan.draw_faults(chance, KINDS);
        plan.faults.sort_by_key(|(at, _)| *at);
        let mut fork = chance.fork();
        plan.draw_order(&mut fork);
        plan.draw_weights(&mut fork, shards);
        plan.draw_copied(&mut fork, shards);
        plan.draw_refusals(&mut fork);
        plan.draw_walls(&mut fork);
        plan.draw_nameless(&mut fork);
        plan.draw_orders(&mut fork);
        plan.draw_cooldowns(&mut fork);
        plan.draw_holds(&mut fork);
        plan.draw_closed_commands(&mut fork);
        plan.draw_behind(&mut fork, shards);
        plan.draw_flood(&mut fork, shards);
        plan.draw_duplicates(&mut fork, shards);
        plan.draw_pending(&mut fork);
        plan.draw_exhausted(&mut fork);
        plan.draw_wishes(&mut fork);
        plan.draw_replaced(&mut fork, shards);
        plan
    }

    /// The plan of a campaign as the checker knows it: one scene, clocks that are right, and what each task must come to is known before.
    pub(crate) fn draw_campaign(chance: &mut Chance) -> Self {
        let mut plan = Self::draw(chance);
        plan.drain_deadline = 5 * SECOND;
        plan.limits = Limits::of(1 << 20);
        if chance.one_in(2) {
            // So few that lanes are paused, and enough for attempts to be in time.
            plan.limits.lane_open = chance.between(8, 24) as usize;
        }
        plan.scenes = vec![
            campaign_scene(CAMPAIGN, Ordering::None),
            campaign_scene(CAMPAIGN_ORDERED, Ordering::Key),
            campaign_scene(CAMPAIGN_LATER, Ordering::None),
            campaign_scene(CAMPAIGN_HELD, Ordering::None),
            Scene {
                duplicates: Duplicates {
                    mode: Mode::Drop,
                    window: WINDOW,
                },
                ..campaign_scene(CAMPAIGN_ONCE, Ordering::None)
            },
        ];
        plan.orders.clear();
        plan.rest = None;
        plan.behind = 1;
        plan.flood = None;
        plan.pending = None;
        plan.holds.clear();
        plan.wishes.clear();
        plan.lets_go.clear();
        plan.submissions = campaign_submissions(chance, plan.heals_at, plan.shards);
        order_some(&mut plan.submissions, &mut chance.fork());
        plan.draw_campaign_kinds(&mut chance.fork());
        plan.skews.fill(0);
        plan.odds = Odds::default();
        plan.draw_odds(chance);
        // Calls take the time that the model of the target says; one without an answer would be an attempt more than planned.
        plan.odds.slow = 0;
        plan.odds.hung = 0;
        plan.faults.clear();
        plan.draw_faults(chance, CAMPAIGN_KINDS);
        plan.faults.sort_by_key(|(at, _)| *at);
        // Who stands still is not stopped again: when it hears of anything would not be known when that happens.
        let mut until = vec![0; plan.workers.len()];
        plan.faults.retain(|(at, fault)| {
            let Fault::Freeze(process, span) = *fault else {
                return true;
            };
            let stands = until[process] > *at;
            if !stands {
                until[process] = at + span;
            }
            !stands
        });
        plan
    }

    /// Lets targets of a campaign answer later, people hold some of its tasks, and some of its records be there more than once.
    fn draw_campaign_kinds(&mut self, chance: &mut Chance) {
        let mut copies = Vec::new();
        for submission in &mut self.submissions {
            let kind = chance.below(12);
            if &*submission.scene != CAMPAIGN || kind > 2 {
                continue;
            }
            let submission = Arc::make_mut(submission);
            match kind {
                0 => {
                    submission.scene = CAMPAIGN_LATER.into();
                    let limit = Duration::from_millis(chance.between(1_000, 12_000));
                    submission.fate = Some(Fate::Later(limit));
                }
                1 => {
                    submission.scene = CAMPAIGN_ONCE.into();
                    // What ends badly may be asked for again.
                    submission.fate = Some(Fate::Fails(chance.pick(&[0, 0, 1, 3])));
                }
                _ => {
                    submission.scene = CAMPAIGN_HELD.into();
                    submission.fate = Some(Fate::Fails(chance.pick(&[0, 1, 9])));
                }
            }
            submission.deadline = None;
            for _ in 0..if kind == 1 { chance.between(1, 3) } else { 0 } {
                // Beside it, or up to the end.
                let longest = chance.pick(&[1, 200, 6_000, self.heals_at / MILLI]) * MILLI;
                let at = submission.at + chance.between(1, longest);
                copies.push(Arc::new(Submission {
                    at: at.min(self.heals_at),
                    again: true,
                    ..submission.clone()
                }));
            }
        }
        self.submissions.append(&mut copies);
        if chance.one_in(2) {
            let begins = chance.between(0, self.heals_at / 2);
            let ends = begins + chance.between(3 * SECOND, self.heals_at / 2);
            self.holds = vec![Holding::of_scene(CAMPAIGN_HELD, begins..ends)];
        }
    }

    /// Lets commands be sent in a fourth of all histories.
    fn draw_orders(&mut self, chance: &mut Chance) {
        if chance.one_in(4) {
            let (heals_at, shards) = (self.heals_at, self.shards);
            self.orders = Order::draw(chance, &self.submissions, heals_at, shards);
        }
    }

    /// Lets a fourth of all histories have targets that are left alone by everybody when they ask for it.
    fn draw_cooldowns(&mut self, chance: &mut Chance) {
        if !chance.one_in(4) {
            return;
        }
        // So short that many follow each other, or so long that tasks wait in tiers.
        let longest = chance.pick(&[300, 3_000, 15_000]);
        self.rest = Some(Duration::from_millis(longest));
        for scene in &mut self.scenes {
            let most = chance.pick(&[2, 4, 10]) as u32;
            if SHARING.contains(&&*scene.name) {
                // Nothing holds them but what they share.
                continue;
            }
            scene.max_throttled = NonZeroU32::new(most).unwrap_or(NonZeroU32::MIN);
            // That one is always in force, and with it what is known of its servers.
            if &*scene.name == ALWAYS || !chance.one_in(4) {
                scene.cooldown = Cooldown::Host;
            }
        }
    }

    /// Lets people hold tasks in a fourth of all histories.
    fn draw_holds(&mut self, chance: &mut Chance) {
        if chance.one_in(4) {
            self.holds = Holding::draw(chance, &self.submissions, self.heals_at);
        }
    }

    /// Lets people want something of breakers in a third of all histories that have some.
    fn draw_wishes(&mut self, chance: &mut Chance) {
        if self.has_breakers() && chance.one_in(3) {
            self.wishes = Wish::draw(chance, self.heals_at);
        }
    }

    /// Lets a fourth of all histories whose clocks are right have scenes that drop duplicates, and tasks that are asked for more than once.
    ///
    /// None of those tasks ends badly, after which it could be asked for again; and all are asked for again within the window.
    fn draw_duplicates(&mut self, chance: &mut Chance, shards: i32) {
        if !self.clocks_are_right() || !chance.one_in(4) {
            return;
        }
        for name in ONCE {
            let mut scene = scene(name, chance);
            scene.duplicates = Duplicates {
                mode: Mode::Drop,
                window: WINDOW,
            };
            scene.policy.max_attempts = NonZeroU32::MIN.saturating_add(1_000);
            scene.max_throttled = scene.policy.max_attempts;
            scene.policy.backoff = Backoff::Fixed {
                delay: Duration::from_millis(chance.pick(&[10, 700, 4_000])),
            };
            scene.deadline = None;
            if chance.one_in(3) {
                scene.ordering = Ordering::Key;
            }
            scene.rate = chance.one_in(3).then(|| Rate {
                limit: NonZeroU32::MIN.saturating_add(chance.between(1, 7) as u32),
                per: Duration::from_secs(1),
                // For each shard one, so that what is allowed is what the rule says.
                burst: NonZeroU32::MIN.saturating_add(3),
            });
            self.scenes.push(scene);
        }
        let count = chance.pick(&[1, 3, 12]);
        for number in 0..count {
            let at = chance.between(0, self.heals_at / 2);
            let wait = chance.pick(&[0, 1, 800, 9_000, 12_000, 33_000]);
            let (shard, scene) = (chance.below(shards as u64) as i32, chance.pick(&ONCE));
            let first = Submission {
                due: Some((wall(at, 0) + Duration::from_millis(wait)).ceil_to_millis()),
                // Another one than those that commands name.
                key: chance.one_in(2).then_some("once"),
                fate: Some(Fate::Fails(chance.pick(&[0, 0, 1, 3]))),
                ..Submission::new(format!("once{number}"), at, shard, scene)
            };
            for _ in 0..chance.between(0, 3) {
                // Beside it, or up to the end.
                let longest = chance.pick(&[1, 200, 6_000, self.heals_at / MILLI]) * MILLI;
                let at = at + chance.between(1, longest);
                self.submissions.push(Arc::new(Submission {
                    at: at.min(self.heals_at),
                    again: true,
                    ..first.clone()
                }));
            }
            self.submissions.push(Arc::new(first));
        }
        if chance.one_in(3) {
            let failure = Failure::new("told", "from outside");
            let verb = match chance.below(4) {
                0 => Sort::Cancel,
                1 => Sort::RunNow,
                2 => Sort::Reschedule(Duration::from_millis(chance.between(0, 20_000))),
                _ => Sort::Complete(Outcome::Retryable(failure)),
            };
            let at = chance.between(SECOND, self.heals_at);
            let shard = chance.below(shards as u64) as i32;
            let order = Order::of_scene(("once", verb), (at, shard), chance.pick(&ONCE));
            self.orders.push(order);
        }
    }

    /// Gives a fourth of all histories whose clocks are right scenes where newcomers take the place of the task of their id.
    fn draw_replaced(&mut self, chance: &mut Chance, shards: i32) {
        if !self.clocks_are_right() || !chance.one_in(4) {
            return;
        }
        for name in LATEST {
            let mut scene = scene(name, chance);
            scene.duplicates = Duplicates {
                mode: chance.pick(&[Mode::Replace, Mode::KeepDue]),
                window: Duration::from_millis(chance.pick(&[0, 0, 5_000])),
            };
            scene.policy.max_attempts = NonZeroU32::MIN.saturating_add(1_000);
            scene.max_throttled = scene.policy.max_attempts;
            scene.policy.backoff = Backoff::Fixed {
                delay: Duration::from_millis(chance.pick(&[10, 700, 4_000, 12_000])),
            };
            scene.deadline = None;
            if chance.one_in(2) {
                scene.ordering = Ordering::Key;
            }
            self.scenes.push(scene);
        }
        for number in 0..chance.pick(&[1, 3, 8]) {
            let (shard, scene) = (chance.below(shards as u64) as i32, chance.pick(&LATEST));
            let first = chance.between(0, self.heals_at / 2);
            for _ in 0..chance.between(1, 6) {
                // Beside it, or up to the end.
                let longest = chance.pick(&[1, 200, 6_000, self.heals_at / MILLI]) * MILLI;
                let at = (first + chance.between(0, longest)).min(self.heals_at);
                let wait = chance.pick(&[0, 1, 800, 9_000, 12_000, 33_000]);
                self.submissions.push(Arc::new(Submission {
                    due: Some((wall(at, 0) + Duration::from_millis(wait)).ceil_to_millis()),
                    key: chance.one_in(2).then_some("latest"),
                    fate: Some(Fate::Fails(chance.pick(&[0, 0, 1, 3]))),
                    ..Submission::new(format!("latest{number}"), at, shard, scene)
                }));
            }
        }
    }

    /// Whether anything is written of shards that the next owner has to know.
    pub(crate) fn keeps_state(&self) -> bool {
        let mut scenes = self.scenes.iter();
        let looks = scenes.any(|scene| scene.duplicates.looks());
        looks || self.keeps_order() || !self.orders.is_empty()
    }

    /// Lets the commands topic take no records for a while, in half of all histories with commands.
    fn draw_closed_commands(&mut self, chance: &mut Chance) {
        if self.orders.is_empty() || chance.one_in(2) {
            return;
        }
        for _ in 0..chance.between(1, 4) {
            let span = chance.between(100, 5_000) * MILLI;
            self.add(chance, Fault::Close(Topic::Read(Source::Commands), span));
        }
        self.faults.sort_by_key(|(at, _)| *at);
    }

    /// Lets workers be far behind in a tenth of all histories: many tasks come at once, are read slowly, and wait where they are while commands
    /// are about them and shards change hands.
    fn draw_behind(&mut self, chance: &mut Chance, shards: i32) {
        // Whose turn it is where scenes share a rate is judged by what workers can read.
        let mut scenes = self.scenes.iter();
        let is_shared = scenes.any(|scene| SHARING.contains(&&*scene.name));
        if is_shared || !chance.one_in(10) {
            return;
        }
        self.behind = chance.pick(&[5, 50, 300]);
        let name = chance.pick(&SCENES);
        let first = self.submissions.len();
        let at = chance.between(0, self.heals_at / 2);
        for number in 0..chance.pick(&[20, 60, 120]) {
            self.submissions.push(Arc::new(Submission::new(
                format!("many{number}"),
                at + chance.between(0, 5_000) * MILLI,
                chance.below(shards as u64) as i32,
                name,
            )));
        }
        let mut orders = Order::draw(chance, &self.submissions[first..], self.heals_at, shards);
        for (number, order) in orders.iter_mut().enumerate() {
            order.id = format!("many-{number}").into();
        }
        self.orders.append(&mut orders);
        for _ in 0..chance.between(0, 6) {
            let process = self.process(chance);
            let fault = match chance.below(5) {
                0 => Fault::Crash(process, chance.between(1, 4_000) * MILLI),
                1 => Fault::Freeze(process, chance.between(1, 25_000) * MILLI),
                2 => Fault::Leave(process, chance.between(1, 4_000) * MILLI),
                3 => Fault::Cut(process),
                _ => Fault::Rebalance,
            };
            self.add(chance, fault);
        }
        self.faults.sort_by_key(|(at, _)| *at);
    }

    /// Lets a tenth of all histories have a scene whose tasks suddenly die in numbers.
    fn draw_flood(&mut self, chance: &mut Chance, shards: i32) {
        if !chance.one_in(10) {
            return;
        }
        let mut scene = scene(FLOOD, chance);
        scene.deadline = None;
        // A limit that is low takes them longer than there is.
        scene.concurrency = CONCURRENCY;
        scene.least_concurrency = None;
        self.scenes.push(scene);
        let begins = self.heals_at / 2;
        let ends = begins + chance.between(1, 15) * SECOND;
        self.flood = Some(begins..ends);
        // One owner has all of them, unless the shard changes hands.
        let shard = chance.below(shards as u64) as i32;
        let (well, ill) = (chance.between(70, 120), chance.between(10, 60));
        let before = (0..well).map(|_| (0, begins));
        let meanwhile = (0..ill).map(|_| (begins, ends));
        for (number, (from, to)) in before.chain(meanwhile).enumerate() {
            self.submissions.push(Arc::new(Submission::new(
                format!("{FLOOD}{number}"),
                chance.between(from, to),
                shard,
                FLOOD,
            )));
        }
    }

    /// Lets a fifth of all histories have targets that answer later, and people who tell what came of it, or do not.
    fn draw_pending(&mut self, chance: &mut Chance) {
        if !chance.one_in(5) {
            return;
        }
        let longest = chance.pick(&[400, 4_000, 15_000, 40_000]);
        self.pending = Some(Duration::from_millis(longest));
        for scene in &mut self.scenes {
            scene.pending = Pending {
                usual: Duration::from_millis(chance.between(1, longest)),
                most: Duration::from_millis(longest),
            };
        }
        let (heals_at, shards) = (self.heals_at, self.shards);
        // What others are to go through is planned, and who dies in a flood is counted.
        let tasks = self.submissions.iter();
        let tasks = tasks.filter(|task| task.fate.is_none() && &*task.scene != FLOOD);
        let tasks: Vec<Arc<Submission>> = tasks.map(Arc::clone).collect();
        let told = Order::completions(chance, &tasks, heals_at, shards);
        self.orders.extend(told);
    }

    /// Whether the target of a scene may answer later: nothing holds the tasks of those that share a rate but that, and in a flood all of them
    /// end at once.
    pub(crate) fn answers_later(&self, scene: &str) -> Option<Duration> {
        let at_once = SHARING.contains(&scene) || scene == FLOOD;
        self.pending.filter(|_| !at_once)
    }

    /// Lets scenes of a fourth of all histories hold the tasks that are out of attempts.
    fn draw_exhausted(&mut self, chance: &mut Chance) {
        if !chance.one_in(4) || !self.clocks_are_right() {
            return;
        }
        // What may be asked for again ends well.
        let scenes = self.scenes.iter_mut();
        for scene in scenes.filter(|scene| !ONCE.contains(&&*scene.name)) {
            if chance.one_in(2) {
                let most = chance.pick(&[1, 4, 1_000]) as u32;
                let most = NonZeroU32::new(most).unwrap_or(NonZeroU32::MIN);
                scene.on_exhausted = OnExhausted::Hold { most };
            }
        }
        for _ in 0..chance.between(1, 3) {
            let at = chance.between(SECOND, self.heals_at);
            self.lets_go.push((at, chance.one_in(2)));
        }
    }

    /// Whether a target has a breaker, or a wall that so few answers make.
    pub(crate) fn has_breakers(&self) -> bool {
        let has_wall = |scene: &Scene| {
            let wall = scene.walls.work.as_ref();
            wall.is_some_and(|key| key.rule.min_calls < RULE.min_calls)
        };
        let mut scenes = self.scenes.iter();
        scenes.any(|scene| scene.breaker.is_some() || has_wall(scene))
    }

    /// Whether no clock is off, and none is set.
    pub(crate) fn clocks_are_right(&self) -> bool {
        let sets = |fault: &Fault| matches!(fault, Fault::Step(..) | Fault::StepBroker(_));
        self.skews.iter().all(|skew| *skew == 0)
            && !self.faults.iter().any(|(_, fault)| sets(fault))
    }

    /// Whether any scene keeps the order of its keys.
    pub(crate) fn keeps_order(&self) -> bool {
        let mut scenes = self.scenes.iter();
        scenes.any(|scene| scene.ordering == Ordering::Key)
    }

    /// Lets a third of all histories keep the order of keys: of half of their tasks.
    fn draw_order(&mut self, chance: &mut Chance) {
        if !chance.one_in(3) {
            return;
        }
        for name in KEYED {
            let mut scene = scene(name, chance);
            scene.ordering = Ordering::Key;
            scene.rate = chance.one_in(3).then(|| Rate {
                limit: NonZeroU32::MIN.saturating_add(chance.between(1, 7) as u32),
                per: Duration::from_secs(1),
                // For each shard one, so that what is allowed is what the rule says.
                burst: NonZeroU32::MIN.saturating_add(3),
            });
            self.scenes.push(scene);
        }
        let keys = chance.between(1, 3) as usize;
        for submission in &mut self.submissions {
            if submission.poison || chance.one_in(2) {
                continue;
            }
            let submission = Arc::make_mut(submission);
            submission.scene = chance.pick(&KEYED).into();
            submission.key = Some(chance.pick(&["a", "b", "c"][..keys]));
            if chance.one_in(8) {
                // Which is the same.
                submission.key = [None, Some("")][(submission.at % 2) as usize];
            }
        }
        if chance.one_in(2) {
            // For one to four keys, or one with more tasks.
            self.limits.keys = chance.between(100, 600) as usize;
        }
    }

    /// Lets a third of all histories have records that are too large for retide's topics, and a third topics that take none for a while.
    fn draw_refusals(&mut self, chance: &mut Chance) {
        if chance.one_in(3) {
            for submission in &mut self.submissions {
                if !submission.poison && chance.one_in(6) {
                    let submission = Arc::make_mut(submission);
                    submission.id = format!("large-{}", submission.id).into();
                }
            }
        }
        if chance.one_in(3) {
            for _ in 0..chance.between(1, 6) {
                let topic = chance.pick(&CLOSING);
                let fault = Fault::Close(topic, chance.between(100, 20_000) * MILLI);
                self.add(chance, fault);
            }
            self.faults.sort_by_key(|(at, _)| *at);
        }
    }

    /// Lets a fifth of all histories have records of which it takes a while to learn what they are.
    fn draw_nameless(&mut self, chance: &mut Chance) {
        if !chance.one_in(5) {
            return;
        }
        let longest = chance.pick(&[10, 2_000, 20_000]) * MILLI;
        for submission in &mut self.submissions {
            if chance.one_in(4) {
                let named_at = submission.at + chance.between(0, longest);
                Arc::make_mut(submission).named_at = named_at.min(self.heals_at);
            }
        }
    }

    /// Lets a third of all histories have targets of which a few answers make a wall: by chance, so many in a row do not come.
    fn draw_walls(&mut self, chance: &mut Chance) {
        if !chance.one_in(3) {
            return;
        }
        let rule = Rule {
            min_calls: chance.between(1, 2) as u32,
            open: Duration::from_millis(chance.pick(&[200, 1_000, 6_000, 15_000])),
            probes: chance.between(1, 2) as u32,
            ..RULE
        };
        for scene in &mut self.scenes {
            if SHARING.contains(&&*scene.name) {
                // Nothing holds them but what they share.
                continue;
            }
            let Walls { work, callback } = &mut scene.walls;
            for key in [work, callback].into_iter().flatten() {
                key.rule = rule;
            }
        }
    }

    /// Gives scenes their weights, and lets a quarter of all histories have two more that share the rate of a host, with more tasks than it
    /// admits at once.
    fn draw_weights(&mut self, chance: &mut Chance, shards: i32) {
        if chance.one_in(4) {
            self.draw_sharing(chance, shards);
        }
        for scene in &mut self.scenes {
            let weight = Weight::try_new(chance.pick(&[1, 1, 2, 5]));
            scene.weight = weight.unwrap_or_default();
        }
    }

    /// Lets a tenth of all histories begin with offsets that were copied from another cluster, or that somebody has set and left their
    /// metadata as it was.
    fn draw_copied(&mut self, chance: &mut Chance, shards: i32) {
        if !chance.one_in(10) {
            return;
        }
        let tiers = self.ladder.tiers().len();
        let sources = (0..tiers).map(Source::Tier).chain([Source::Tasks]);
        for source in sources {
            let shard = chance.below(shards as u64) as i32;
            let lane = LaneId { shard, source };
            let end = chance.between(2, 60) as i64;
            let open: Vec<i64> = (1..end).filter(|_| chance.one_in(5)).collect();
            let done = Completions::between(1, end, open.into_iter());
            let metadata = if chance.one_in(2) {
                done.encode(binding_elsewhere(lane), 0)
            } else {
                done.encode(binding(lane), 1)
            };
            self.copied.push(Progress {
                lane,
                next: 0,
                metadata,
            });
        }
    }

    /// The scenes that share a rate, and their tasks.
    fn draw_sharing(&mut self, chance: &mut Chance, shards: i32) {
        let host = Host {
            name: "http://shared:80".into(),
            rate: true,
            // Other workers of the process would take part in it, and each knows its own ready queues only.
            concurrency: self.workers.iter().all(|workers| *workers == 1) && chance.one_in(2),
        };
        let rate = Rate {
            limit: NonZeroU32::MIN.saturating_add(chance.between(3, 9) as u32),
            per: Duration::from_secs(1),
            // For each shard one, so that tasks wait where they are read.
            burst: NonZeroU32::MIN.saturating_add(3),
        };
        let few = host.concurrency && chance.one_in(2);
        let at = chance.between(0, self.heals_at);
        let shard = chance.below(shards as u64) as i32;
        for name in SHARING {
            let mut scene = scene(name, chance);
            scene.host = Some(host.clone());
            scene.rate = Some(rate);
            scene.concurrency = if few { FEW } else { CONCURRENCY };
            self.scenes.push(scene);
            for number in 0..chance.between(10, 40) {
                let at = at + chance.between(0, 2_000) * MILLI;
                self.submissions.push(Arc::new(Submission::new(
                    format!("{name}{number}"),
                    at,
                    shard,
                    name,
                )));
            }
        }
    }

    /// Which requests and calls go wrong.
    fn draw_odds(&mut self, chance: &mut Chance) {
        let often = chance.pick(&[5, 20, 60]);
        for odds in [
            &mut self.odds.request_lost,
            &mut self.odds.reply_lost,
            &mut self.odds.request_late,
            &mut self.odds.refused,
            &mut self.odds.indeterminate,
            &mut self.odds.repeated,
            &mut self.odds.slow,
            &mut self.odds.hung,
        ] {
            if chance.one_in(3) {
                *odds = often;
            }
        }
    }

    /// Which clocks are wrong.
    fn draw_clocks(&mut self, chance: &mut Chance) {
        let most = chance.pick(&[
            20 * MILLI as i64,
            3 * SECOND as i64,
            60 * SECOND as i64,
            HOUR,
        ]);
        if chance.one_in(3) {
            for skew in &mut self.skews {
                *skew = chance.around_zero(most);
            }
        }
        if chance.one_in(3) {
            // Many, so that some of them find tasks that are due and wait in a ready queue.
            for _ in 0..chance.pick(&[1, 5, 20]) {
                let by = chance.around_zero(most);
                let fault = if chance.one_in(5) {
                    Fault::StepBroker(by)
                } else {
                    Fault::Step(self.process(chance), by)
                };
                self.add(chance, fault);
            }
        }
    }

    /// What happens to processes and to the group, of so many kinds.
    fn draw_faults(&mut self, chance: &mut Chance, kinds: u32) {
        for kind in 0..kinds {
            if !chance.one_in(3) {
                continue;
            }
            for _ in 0..chance.between(1, 4) {
                let process = self.process(chance);
                let fault = match kind {
                    0 => Fault::Crash(process, chance.between(1, 8_000) * MILLI),
                    1 => Fault::Freeze(process, chance.between(1, 25_000) * MILLI),
                    2 => Fault::Leave(process, chance.between(1, 8_000) * MILLI),
                    3 => Fault::Cut(process),
                    4 => Fault::Rebalance,
                    5 => Fault::Rules,
                    6 => Fault::Refuse(!chance.one_in(3)),
                    _ => Fault::Down(chance.between(500, 30_000) * MILLI),
                };
                self.add(chance, fault);
            }
        }
    }

    /// Adds a fault at some time before the end of all faults.
    fn add(&mut self, chance: &mut Chance, fault: Fault) {
        let at = chance.between(SECOND, self.heals_at - SECOND);
        self.faults.push((at, fault));
    }

    /// One of the processes.
    fn process(&self, chance: &mut Chance) -> usize {
        chance.below(self.workers.len() as u64) as usize
    }
}

/// How much a worker holds: as a rule more than enough, else hardly anything.
fn limits(chance: &mut Chance) -> Limits {
    if !chance.one_in(3) {
        return Limits::of(1 << 20);
    }
    let lane_least = chance.between(300, 1_500) as usize;
    Limits {
        total: chance.between(1_000, 6_000) as usize,
        lane_least,
        lane_most: lane_least * 2,
        lane_open: chance.between(1, 5) as usize,
        batch_tasks: chance.between(1, 5) as usize,
        batch_bytes: chance.between(300, 3_000) as usize,
        keys: 1 << 20,
    }
}

/// The scenes at the start, with or without one for tasks that name none.
fn scenes(chance: &mut Chance) -> Vec<Scene> {
    let names = if chance.one_in(2) {
        [SCENES.as_slice(), &[DEFAULT]].concat()
    } else {
        SCENES.to_vec()
    };
    let mut scenes: Vec<Scene> = names.iter().map(|name| scene(name, chance)).collect();
    if chance.one_in(3) {
        // One rule: those that have it have a breaker in common.
        let rule = breaker_rule(chance);
        for scene in &mut scenes {
            if !chance.one_in(4) {
                give_breakers(scene, rule);
            }
        }
    }
    scenes
}

/// A scene. Its target and its callback stay what they are; [`change`] changes the rest.
fn scene(name: &str, chance: &mut Chance) -> Scene {
    let topic = name.ends_with("topic").then(|| Target::Produce {
        topic: "orders".into(),
    });
    let callback = (name == "rate").then(|| Callback {
        target: Target::Call,
        breaker: None,
        on: vec![Terminal::Delivered, Terminal::Dead],
    });
    let key = |target: &str| Key {
        target: Subject::wall(target, name),
        rule: RULE,
    };
    let walls = Walls {
        work: topic.is_none().then(|| key("http://target:80")),
        callback: callback.is_some().then(|| key("http://ended:80")),
    };
    let mut scene = Scene {
        concurrency: NonZeroU32::MIN,
        walls,
        callback,
        // As long as it is not drawn: see [`Plan::draw_cooldowns`].
        cooldown: Cooldown::None,
        ..Scene::new(
            name,
            topic.unwrap_or(Target::Call),
            Policy {
                backoff: Backoff::Fixed {
                    delay: Duration::from_secs(1),
                },
                jitter: Jitter::None,
                max_attempts: NonZeroU32::MIN,
            },
        )
    };
    change(&mut scene, chance);
    scene
}

/// Changes the rules of a scene.
pub(crate) fn change(scene: &mut Scene, chance: &mut Chance) {
    if scene.duplicates.looks() {
        // None of its tasks is to end badly.
        return;
    }
    let count = |count: u64| NonZeroU32::new(count as u32).unwrap_or(NonZeroU32::MIN);
    let calls = scene.concurrency;
    scene.policy.backoff = Backoff::Fixed {
        delay: Duration::from_millis(chance.pick(&[10, 700, 4_000, 5_000, 12_000, 20_000])),
    };
    scene.policy.jitter = chance.pick(&[Jitter::None, Jitter::Full, Jitter::Equal]);
    scene.policy.max_attempts = count(chance.between(1, 5));
    scene.concurrency = count(chance.pick(&[1, 2, 64]));
    scene.least_concurrency = chance.one_in(4).then_some(NonZeroU32::MIN);
    scene.deadline = chance
        .one_in(4)
        .then(|| Duration::from_millis(chance.between(1, 60_000)));
    if KEYED.contains(&&*scene.name) {
        // One after the other, they have to come to their end, too.
        scene.policy.backoff = Backoff::Fixed {
            delay: Duration::from_millis(chance.pick(&[10, 700, 4_000, 12_000])),
        };
        scene.policy.max_attempts = count(chance.between(1, 3));
    }
    if SHARING.contains(&&*scene.name) {
        // Nothing holds them but what they share.
        scene.concurrency = calls;
        scene.least_concurrency = None;
        scene.deadline = None;
    }
    if &*scene.name == "rate" {
        scene.rate = Some(Rate {
            limit: count(chance.between(1, 5)),
            per: Duration::from_secs(chance.between(1, 2)),
            burst: count(chance.between(1, 4)),
        });
    }
}

/// When breakers open, and how they close.
fn breaker_rule(chance: &mut Chance) -> Rule {
    let part = |part| Fraction::try_new(part).unwrap_or(Fraction::WHOLE);
    Rule {
        failure_rate: part(chance.pick(&[0.3, 0.5, 1.0])),
        slow_call: chance.one_in(3).then(|| Duration::from_secs(1)),
        slow_rate: part(0.8),
        window: Duration::from_secs(chance.pick(&[2, 30])),
        min_calls: chance.between(1, 4) as u32,
        open: Duration::from_millis(chance.pick(&[200, 1_000, 6_000, 15_000])),
        // What targets answer is a matter of chance, and so is whether two answers in a row are good ones.
        probes: chance.between(1, 2) as u32,
        slow_start: Duration::from_secs(chance.pick(&[0, 2, 20])),
    }
}

/// Gives the targets of a scene breakers.
fn give_breakers(scene: &mut Scene, rule: Rule) {
    let key = |target: &str| Key {
        target: target.into(),
        rule,
    };
    scene.breaker = Some(key("http://target:80"));
    if let Some(callback) = &mut scene.callback {
        callback.breaker = Some(key("http://ended:80"));
    }
}

/// What is asked for, and when.
fn submissions(chance: &mut Chance, heals_at: At, shards: i32) -> Vec<Arc<Submission>> {
    // Half of all seeds ask for little, so that one thing after the other happens to it.
    let count = chance.pick(&[3, 12, 25, 50]);
    let mut submissions = Vec::new();
    for number in 0..count {
        let at = chance.between(0, heals_at);
        let wait = chance.pick(&[0, 1, 800, 3_000, 9_000, 12_000, 33_000, 65_000]);
        let name = if chance.one_in(20) {
            chance.pick(&["", "nobody"])
        } else {
            chance.pick(&SCENES)
        };
        submissions.push(Arc::new(Submission {
            id: format!("t{number}").into(),
            at,
            shard: chance.below(shards as u64) as i32,
            scene: name.into(),
            due: chance
                .one_in(2)
                .then(|| (wall(at, 0) + Duration::from_millis(wait)).ceil_to_millis()),
            deadline: chance
                .one_in(10)
                .then(|| wall(at, 0) + Duration::from_millis(chance.between(1, 40_000))),
            key: None,
            poison: chance.one_in(25),
            named_at: 0,
            fate: None,
            again: false,
        }));
    }
    submissions
}

/// A scene of a campaign.
fn campaign_scene(name: &str, ordering: Ordering) -> Scene {
    let count = |count| NonZeroU32::new(count).unwrap_or(NonZeroU32::MIN);
    Scene {
        base: Base::default(),
        concurrency: count(CAMPAIGN_CONCURRENCY),
        ordering,
        ..Scene::new(
            name,
            Target::Call,
            Policy {
                backoff: Backoff::Levels {
                    delays: CAMPAIGN_BACKOFF.map(Duration::from_millis).to_vec(),
                },
                jitter: Jitter::None,
                max_attempts: count(CAMPAIGN_ATTEMPTS),
            },
        )
    }
}

/// Gives a fifth of the tasks of a campaign one of a few keys.
fn order_some(submissions: &mut [Arc<Submission>], chance: &mut Chance) {
    for submission in submissions {
        if chance.one_in(5) {
            let submission = Arc::make_mut(submission);
            submission.scene = CAMPAIGN_ORDERED.into();
            submission.key = Some(chance.pick(&["a", "b", "c"]));
        }
    }
}

/// What a campaign asks for.
fn campaign_submissions(chance: &mut Chance, heals_at: At, shards: i32) -> Vec<Arc<Submission>> {
    let count = chance.pick(&[12, 50, 150]);
    let mut submissions = Vec::new();
    for number in 0..count {
        let at = chance.between(0, heals_at);
        let fate = match chance.below(20) {
            0..=7 => Fate::Fails(0),
            8..=11 => Fate::Fails(1),
            12 => Fate::Fails(2),
            13 => Fate::Fails(3),
            14 | 15 => Fate::Fails(9),
            16 => Fate::Refused,
            17 | 18 => Fate::Throttled(Duration::from_millis(chance.between(600, 12_000))),
            _ => Fate::Expires,
        };
        let delayed = fate == Fate::Expires || chance.one_in(4);
        let wait = Duration::from_millis(if delayed {
            chance.between(2, 12_000)
        } else {
            0
        });
        let due = (wall(at, 0) + wait).ceil_to_millis();
        let deadline = wall(at, 0) + Duration::from_millis(1);
        let shard = chance.below(shards as u64) as i32;
        submissions.push(Arc::new(Submission {
            due: delayed.then_some(due),
            deadline: (fate == Fate::Expires).then_some(deadline),
            fate: Some(fate),
            ..Submission::new(format!("t{number}"), at, shard, CAMPAIGN)
        }));
    }
    submissions
}
