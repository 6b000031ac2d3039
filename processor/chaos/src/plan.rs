//! What the seed decides: the tasks, the faults and when they come.

use std::time::Duration;

use crate::options::{Options, Reply};
use crate::orders;
use crate::proxy::Loss;

/// Random numbers that are the same for the same seed (`SplitMix64`).
pub(crate) struct Random(u64);

/// What tasks a campaign has.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scope {
    /// How many.
    pub(crate) tasks: usize,
    /// Tasks a second.
    pub(crate) rate: u64,
    /// Whether people act on tasks.
    pub(crate) has_commands: bool,
    /// Whether one end is promised, and not one or more.
    pub(crate) is_once: bool,
}

/// What a task is there for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Its target fails now and then; the scene, the key and the batch may differ.
    Plain,
    /// Its target answers later.
    Later,
    /// Its record is produced more than once.
    Once,
    /// The same, and the later record takes its place.
    Latest,
    /// The same, with the schedule of the first one.
    Kept,
    /// It is held now and then.
    Held,
    /// It is held when it is out of attempts.
    Spent,
    /// A command waits for it.
    Awaited,
    /// Its target asks for rest now and then.
    Rested,
    /// Its target is down now and then, and people say whether it is called.
    Forced,
    /// It is held now and then, and its deadline stands still meanwhile.
    Stopped,
}

/// What a task is to go through.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    /// Its identity.
    pub(crate) id: String,
    /// What it is there for.
    pub(crate) kind: Kind,
    /// How the target answers.
    pub(crate) fate: Fate,
    /// How long its first attempt waits.
    pub(crate) delay: Duration,
    /// Its key, if it is of the ordered scene.
    pub(crate) key: Option<String>,
    /// The batch that a header names, if it is in one.
    pub(crate) batch: Option<usize>,
    /// The payload: the fate as text, a space, and bytes that are no text.
    pub(crate) payload: Vec<u8>,
}

/// How the target answers a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// So many attempts fail; the next one does not.
    Fails(u32),
    /// The first attempt is refused for good.
    Refused,
    /// The first attempt is taken, and this follows later.
    Later(After),
    /// So many attempts fail, and the next one does not, in as many rounds as that takes.
    Spent(u32),
    /// An attempt that comes while the target rests is throttled, another one succeeds.
    Rested,
    /// The same, of which the first attempt begins a rest.
    Rests,
    /// An attempt that comes while the target is down fails, another one succeeds.
    Forced,
    /// All attempts fail, until its deadline passes.
    Never,
}

/// What becomes of a task whose target answers later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum After {
    /// Somebody says that it went well.
    Success,
    /// Somebody says that it failed, and the next attempt does not.
    Retry,
    /// Somebody cancels it.
    Cancel,
    /// Nobody says anything within the limit, and the next attempt goes well.
    Limit,
}

/// One fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// A process is killed and started again after this time.
    Kill(Duration),
    /// A process is stopped, and goes on.
    Zombie,
    /// The next replies of this kind are lost, so many of them.
    Lose(Reply, Loss, usize),
    /// The broker is killed and started again after this time.
    Broker(Duration),
    /// Processes join and leave.
    Storm,
}

/// The scene of most tasks.
pub(crate) const SCENE: &str = "chaos";

/// The scene of those that go one after the other.
pub(crate) const ORDERED: &str = "chaos-ordered";

/// The scene that stands on the scenes topic, in a campaign with an adversary.
pub(crate) const APPLIED: &str = "chaos-applied";

/// How many tasks there are to one of that scene.
pub(crate) const TO_ONE_APPLIED: usize = 5;

/// The scene whose tasks commands are about, all of them.
pub(crate) const SWEPT: &str = "chaos-swept";

/// How many tasks there are to one of that scene.
pub(crate) const TO_ONE_SWEPT: usize = 10;

/// Tasks among which those are that a header makes a batch.
pub(crate) const BATCH: usize = 100;

/// The scene whose target answers later.
pub(crate) const LATER: &str = "chaos-later";

/// The scene that drops duplicates.
pub(crate) const ONCE: &str = "chaos-once";

/// The scene that is held now and then.
pub(crate) const HELD: &str = "chaos-held";

/// The scene whose tasks are held when they are out of attempts.
pub(crate) const SPENT: &str = "chaos-spent";

/// The scene in which a later record takes the place of the task.
pub(crate) const LATEST: &str = "chaos-latest";

/// The scene in which it does so with the schedule of the task.
pub(crate) const KEPT: &str = "chaos-kept";

/// Records of such a task.
pub(crate) const ROUNDS: usize = 3;

/// The scene whose target is down now and then.
pub(crate) const FORCED: &str = "chaos-forced";

/// The scene whose deadlines stand still while it is held.
pub(crate) const STOPPED: &str = "chaos-stopped";

/// These deadlines, in seconds: shorter than most holds, with what it takes until one is back after it.
pub(crate) const DEADLINE_S: u64 = 20;

/// The wait before each attempt of these two.
pub(crate) const PATIENT_BACKOFF_MS: u64 = 500;

/// The scene whose target asks for rest now and then.
pub(crate) const RESTED: &str = "chaos-rested";

/// For how long it does, in seconds.
pub(crate) const REST_S: u64 = 8;

/// How many times the tasks of a kind are to one that begins a rest: the pace after it is slow for half a minute.
const TO_ONE_REST: usize = 64;

/// Which one of those that is.
const RESTS: usize = 8;

/// Most attempts of a round of a task that is held then.
pub(crate) const SPENT_ATTEMPTS: u32 = 2;

/// The wait before the second attempt of such a round.
pub(crate) const SPENT_BACKOFF_MS: u64 = 500;

/// The limit of an answer that nobody gives, in seconds.
pub(crate) const LIMIT_S: u64 = 5;

/// How many keys the tasks have that are held now and then.
pub(crate) const WARDS: u64 = 3;

/// How many tasks there are to one of each of these kinds, at least; there is one of each in a second, at most.
const TO_ONE_KIND: usize = 100;

/// How many times that is to one that a command waits for: a group under faults is slow to say that it does.
const TO_ONE_AWAITED: usize = 4;

/// How many tasks there are to one of the ordered scene.
const TO_ONE_ORDERED: u64 = 10;

/// Seconds between two tasks of a key, on average: a few times what one takes, so that many wait for others while faults hold them up, and
/// the last ones end soon.
const APART: u64 = 12;

/// Most attempts of a task.
pub(crate) const MAX_ATTEMPTS: u32 = 4;

/// Waits before the second and later attempts: one rung exactly, and one that takes several.
pub(crate) const BACKOFF_MS: [u64; 3] = [500, 1_700, 6_000];

// === impl Random ===

impl Random {
    /// The numbers of this seed; `stream` keeps different uses apart.
    pub(crate) fn new(seed: u64, stream: u64) -> Self {
        Self(seed.wrapping_mul(0x2545_f491_4f6c_dd1d) ^ stream.wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    /// The next number.
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number from `from` to below `to`.
    pub(crate) fn between(&mut self, from: u64, to: u64) -> u64 {
        from + self.next() % (to - from)
    }

    /// A time from `from` to below `to` milliseconds.
    pub(crate) fn millis(&mut self, from: u64, to: u64) -> Duration {
        Duration::from_millis(self.between(from, to))
    }
}

// === impl Plan ===

impl Plan {
    /// The task with this number.
    pub(crate) fn of(seed: u64, number: usize, scope: Scope) -> Self {
        let kind = Kind::of(number, scope);
        let mut random = Random::new(seed, 1_000 + number as u64);
        let fate = match random.between(0, 100) {
            0..60 => Fate::Fails(0),
            60..80 => Fate::Fails(1),
            80..88 => Fate::Fails(2),
            88..92 => Fate::Fails(3),
            92..97 => Fate::Fails(9),
            _ => Fate::Refused,
        };
        // Commands reach most of those that are in a batch, or swept, before their time.
        let is_awaited = orders::batch(number).is_some() || orders::is_swept(number);
        let delay = match (random.between(0, 4), is_awaited) {
            _ if matches!(kind, Kind::Rested | Kind::Forced | Kind::Stopped) => Duration::ZERO,
            // Half of those wait in a tier for the records that take their place, the others for another attempt.
            (0 | 1, _) if kind.is_replaced() => random.millis(4_000, 9_000),
            (_, _) if kind.is_replaced() => Duration::ZERO,
            (0, _) => random.millis(1, 12_000),
            (1 | 2, true) => Duration::from_secs(9),
            (_, _) => Duration::ZERO,
        };
        let fate = if kind.is_replaced() {
            // The last attempt goes well, whichever record it is of.
            let least = u64::from(delay.is_zero());
            Fate::Fails(random.between(least, u64::from(MAX_ATTEMPTS)) as u32)
        } else {
            kind.fate(fate, number / scope.among())
        };
        let mut payload = format!("{} ", fate.word()).into_bytes();
        let length = random.between(0, 300);
        payload.extend((0..length).map(|_| random.next() as u8));
        let keys = (scope.rate * APART / TO_ONE_ORDERED).max(1);
        let is_ordered = random.between(0, TO_ONE_ORDERED) == 0 && kind == Kind::Plain;
        let key = is_ordered.then(|| format!("k{}", random.between(0, keys)));
        Self {
            id: format!("t{number}"),
            kind,
            fate,
            delay,
            key,
            batch: orders::batch(number),
            payload,
        }
    }

    /// The same task in a later round: with another payload, and a schedule of its own.
    pub(crate) fn in_round(self, seed: u64, number: usize, round: usize) -> Self {
        let mut random = Random::new(seed, 900_000 + (number * ROUNDS + round) as u64);
        let fate = Fate::Fails(random.between(0, u64::from(MAX_ATTEMPTS)) as u32);
        let payload = format!("{} round {round} {}", fate.word(), random.next());
        let delay = match random.between(0, 2) {
            0 => random.millis(1, 6_000),
            _ => Duration::ZERO,
        };
        Self {
            fate,
            delay,
            payload: payload.into_bytes(),
            ..self
        }
    }
}

// === impl Scope ===

impl Scope {
    /// How many tasks there are to one of each kind that is not plain.
    fn among(self) -> usize {
        TO_ONE_KIND
            .max(self.rate as usize)
            .next_multiple_of(TO_ONE_KIND)
    }

    /// Whether a task is so early that people can let it go twice, each time a minute and more after it was held, before the last ones come.
    const fn is_early(self, number: usize) -> bool {
        number < self.tasks / 3
    }
}

// === impl Kind ===

impl Kind {
    /// What the task with this number is there for: none that is in a batch or swept is there for more.
    pub(crate) fn of(number: usize, scope: Scope) -> Self {
        if !scope.has_commands {
            return Self::Plain;
        }
        let among = scope.among();
        match number % among {
            15 => Self::Later,
            25 if scope.is_once => Self::Latest,
            35 if scope.is_once => Self::Once,
            45 if scope.is_once => Self::Kept,
            55 | 65 => Self::Held,
            75 if scope.is_early(number) => Self::Spent,
            5 | 85 => Self::Rested,
            20 | 70 => Self::Forced,
            40 | 90 => Self::Stopped,
            95 if (number / among).is_multiple_of(TO_ONE_AWAITED) => Self::Awaited,
            _ => Self::Plain,
        }
    }

    /// Whether later records take the place of such a task.
    pub(crate) const fn is_replaced(self) -> bool {
        matches!(self, Self::Latest | Self::Kept)
    }

    /// How the target answers the nth task, which it would answer as `fate` says.
    fn fate(self, fate: Fate, nth: usize) -> Fate {
        match self {
            // What ends badly may be produced again.
            Self::Once | Self::Awaited if fate.outcome() != "delivered" => Fate::Fails(1),
            Self::Plain | Self::Held | Self::Once | Self::Latest | Self::Kept | Self::Awaited => {
                fate
            }
            Self::Later => Fate::Later(match nth % 4 {
                0 => After::Success,
                1 => After::Retry,
                2 => After::Cancel,
                _ => After::Limit,
            }),
            Self::Rested if nth % TO_ONE_REST == RESTS => Fate::Rests,
            Self::Rested => Fate::Rested,
            Self::Forced => Fate::Forced,
            Self::Stopped if nth % 4 == 3 => Fate::Never,
            Self::Stopped => Fate::Fails(0),
            Self::Spent => Fate::Spent(match nth % 4 {
                0 | 1 => SPENT_ATTEMPTS,
                2 => SPENT_ATTEMPTS + 1,
                _ => 2 * SPENT_ATTEMPTS,
            }),
        }
    }
}

// === impl Fate ===

impl Fate {
    /// How it is written at the front of a payload.
    pub(crate) fn word(self) -> String {
        match self {
            Self::Fails(times) | Self::Spent(times) => times.to_string(),
            Self::Refused => "x".to_owned(),
            Self::Rested => "rested".to_owned(),
            Self::Rests => "rests".to_owned(),
            Self::Forced => "forced".to_owned(),
            Self::Never => "never".to_owned(),
            Self::Later(after) => after.word().to_owned(),
        }
    }

    /// What stands at the front of a payload: what fails more often than there are attempts in a round does not differ from what is spent.
    pub(crate) fn of(payload: &[u8]) -> Self {
        let end = payload.iter().position(|byte| *byte == b' ');
        let word = &payload[..end.unwrap_or(payload.len())];
        let word = std::str::from_utf8(word).unwrap_or_default();
        match word {
            "rested" => return Self::Rested,
            "rests" => return Self::Rests,
            "forced" => return Self::Forced,
            "never" => return Self::Never,
            _ => {}
        }
        let later = After::ALL.into_iter().find(|after| after.word() == word);
        match (later, word.parse()) {
            (Some(after), _) => Self::Later(after),
            (None, Ok(times)) => Self::Fails(times),
            (None, Err(_)) => Self::Refused,
        }
    }

    /// How the task has to end.
    pub(crate) const fn outcome(self) -> &'static str {
        match self {
            Self::Fails(times) if times < MAX_ATTEMPTS => "delivered",
            Self::Fails(_) | Self::Refused => "dead",
            Self::Later(After::Cancel) => "cancelled",
            Self::Never => "expired",
            Self::Later(_) | Self::Spent(_) | Self::Rested | Self::Rests | Self::Forced => {
                "delivered"
            }
        }
    }

    /// How many attempts that takes.
    pub(crate) fn attempts(self) -> u32 {
        match self {
            Self::Fails(times) => MAX_ATTEMPTS.min(times + 1),
            Self::Spent(times) => times + 1,
            // Of what is throttled only the last one counts, and how many the others have is not known before.
            Self::Refused
            | Self::Rested
            | Self::Rests
            | Self::Forced
            | Self::Never
            | Self::Later(After::Success | After::Cancel) => 1,
            Self::Later(After::Retry | After::Limit) => 2,
        }
    }
}

// === impl After ===

impl After {
    /// All of them.
    const ALL: [Self; 4] = [Self::Success, Self::Retry, Self::Cancel, Self::Limit];

    /// How it is written at the front of a payload.
    const fn word(self) -> &'static str {
        match self {
            Self::Success => "later-success",
            Self::Retry => "later-retry",
            Self::Cancel => "later-cancel",
            Self::Limit => "later-limit",
        }
    }
}

/// Whether this is the identity of a task of a plan.
pub(crate) fn is_planned(id: &str) -> bool {
    let number = id.strip_prefix('t').unwrap_or_default();
    !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit())
}

/// The faults of a campaign, each with the pause before it.
pub(crate) fn faults(options: &Options) -> Vec<(Duration, Fault)> {
    let mut random = Random::new(options.seed, 1);
    let mut faults = Vec::new();
    for _ in 0..options.kills {
        faults.push(Fault::Kill(random.millis(0, 3_000)));
    }
    faults.extend((0..options.zombies).map(|_| Fault::Zombie));
    for (number, reply) in (0..options.lost_replies).zip(options.replies.iter().cycle()) {
        let loss = match number % 3 {
            0 => Loss::Silent,
            1 => Loss::Closing,
            // Around the ten seconds after which retide gives a call up.
            _ => Loss::Late(random.millis(2_000, 13_000)),
        };
        // Half of the time more than one: also the first call of whoever tries again.
        let count = random.between(0, 6).saturating_sub(2).max(1) as usize;
        faults.push(Fault::Lose(*reply, loss, count));
    }
    for _ in 0..options.broker_kills {
        let away = random.millis(1_000, 7_000);
        let away = options.broker_away.map_or(away, Duration::from_secs);
        faults.push(Fault::Broker(away));
    }
    faults.extend((0..options.storms).map(|_| Fault::Storm));
    // Fisher and Yates.
    for last in (1..faults.len()).rev() {
        faults.swap(last, random.between(0, last as u64 + 1) as usize);
    }
    faults
        .into_iter()
        .map(|fault| (random.millis(2_000, 7_000), fault))
        .collect()
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, HashSet};

    use super::*;

    const SCOPE: Scope = Scope {
        tasks: 6_000,
        rate: 60,
        has_commands: true,
        is_once: true,
    };

    #[test]
    fn a_payload_says_its_fate() {
        for number in 0..1_000 {
            let plan = Plan::of(7, number, SCOPE);

            let said = Fate::of(&plan.payload);

            assert_eq!(said.word(), plan.fate.word());
            assert!(said == plan.fate || plan.kind == Kind::Spent, "{plan:?}");
        }
    }

    #[test]
    fn a_tenth_of_the_tasks_is_ordered_and_shares_keys() {
        let plans = (0..10_000).map(|number| Plan::of(7, number, SCOPE));

        let keys: Vec<String> = plans.filter_map(|plan| plan.key).collect();

        assert!((800..1_000).contains(&keys.len()), "{}", keys.len());
        assert_eq!(keys.iter().collect::<HashSet<_>>().len(), 72);
    }

    #[test]
    fn few_tasks_are_of_each_kind_and_none_of_those_is_in_a_batch() {
        let mut kinds = BTreeMap::new();
        for number in 0..2_000 {
            let plan = Plan::of(7, number, SCOPE);
            let is_plain = plan.kind == Kind::Plain;
            *kinds.entry(format!("{:?}", plan.kind)).or_insert(0) += 1;

            assert!(is_plain || plan.batch.is_none() && !orders::is_swept(number));
        }

        let counts: Vec<(&str, i32)> = kinds
            .iter()
            .map(|(kind, count)| (&**kind, *count))
            .collect();
        assert_eq!(
            counts,
            [
                ("Awaited", 5),
                ("Forced", 40),
                ("Held", 40),
                ("Kept", 20),
                ("Later", 20),
                ("Latest", 20),
                ("Once", 20),
                ("Plain", 1_735),
                ("Rested", 40),
                ("Spent", 20),
                ("Stopped", 40)
            ]
        );
    }
}
