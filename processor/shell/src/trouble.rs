//! Troubles: what is wrong for longer than a moment, told in the log, as a metric and on `/readyz` at the same time.
//!
//! Not events, which happen once. Invariants: a trouble is one line when it begins, one a minute while it lasts, and one when it is over,
//! however often it is reported; a trouble that one holder ends lasts while another has it; what people must act on is handed out once,
//! when it begins, for whoever writes alerts.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::mem;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use serde::Serialize;
use tracing::{error, info, warn};

use crate::metrics::escape;

/// The troubles of a process, as one of its threads sees them. Cheap to clone.
#[derive(Clone)]
pub struct Troubles {
    /// What all threads share.
    shared: Arc<Shared>,
    /// Who reports and ends them by this handle.
    holder: Arc<str>,
}

/// A lasting trouble.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    /// What kind it is of.
    pub kind: Kind,
    /// Whom it befalls: a topic, `topic/partition`, a group, a scene. With the kind, it is what tells troubles apart.
    pub subject: String,
    /// What is wrong, as people read it.
    pub says: String,
    /// What mends it: a command as a rule.
    pub fix: Option<String>,
    /// What it keeps from being done.
    pub effect: Effect,
}

/// What kind a trouble is of. Its word is a label: there are few.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// No broker answers.
    BrokerAway,
    /// A topic takes no records of ours.
    TopicUnwritable,
    /// A topic that is a scene's target takes no records.
    TargetUnwritable,
    /// What was decided could not be committed for long.
    CommitStuck,
    /// A topic may not be read.
    TopicUnreadable,
    /// A partition can be read no further.
    PartitionStuck,
    /// Records were gone before they were read.
    RecordsGone,
    /// A topic that was there at the start does not exist.
    TopicMissing,
    /// A topic deletes records before they are read.
    UnsafeRetentionMs,
    /// A topic deletes records before they are read, once there are too many.
    UnsafeRetentionBytes,
    /// A topic forgets what is needed, or keeps only the last record of a key.
    UnsafeCleanupPolicy,
    /// A tier does not count from the broker's append time.
    UnsafeTimestampType,
    /// A topic does not take what others let in.
    UnsafeMaxMessageBytes,
    /// The topics do not have the same number of partitions.
    PartitionsDiffer,
    /// Tasks are in a tier that the configuration does not name.
    StrayTier,
    /// Members of the group have different configurations.
    GroupDisagrees,
    /// Tasks wait for a scene that is not known.
    SceneUnknown,
    /// The record of a scene cannot be read.
    SceneUnreadable,
    /// A scene delivers to a topic of retide's own.
    SceneRefused,
    /// The record of a hold cannot be read.
    HoldUnreadable,
    /// A hold has lasted for long.
    HoldLasting,
    /// There are more holds than count.
    HoldsTooMany,
    /// What people want of a breaker cannot be read.
    BreakerUnreadable,
    /// A breaker is forced for long.
    BreakerForced,
    /// A target refuses everything, having done well: see [`retide_core::wall`].
    TargetWalled,
    /// The tasks of a scene die in numbers, having done well: see [`retide_core::brake`].
    SceneBraked,
    /// The files of a profile of TLS cannot be used, or there is no such profile.
    TlsUnusable,
    /// The client's certificate of a profile of TLS has expired, or is about to.
    TlsExpires,
    /// A secret of a scene cannot be read.
    SecretMissing,
    /// A schema registry does not answer that is asked for the schema of a record.
    RegistryAway,
    /// Tiers cannot be looked through for tasks that commands are about.
    SweepFailing,
    /// The dead letters cannot be read that campaigns replay.
    LettersUnread,
    /// The commands of a shard cannot be read as far as they stood when it was assigned.
    CommandsUnread,
    /// Dead letters of others do not become tasks.
    SourceStopped,
}

/// Whose word on the alerts topic a trouble is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Teller {
    /// Each process that has it: others may not.
    Each,
    /// That of the process which has the first shard: all see the same.
    First,
}

/// What a trouble keeps from being done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Effect {
    /// Part of what this process owns stands still: the process is not ready.
    Stops,
    /// Everything goes on, with less than there could be: the process stays ready.
    Limits,
}

/// A trouble as `/readyz` lists it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Listed {
    /// What kind it is of.
    pub kind: Kind,
    /// Whom it befalls.
    pub subject: String,
    /// What is wrong.
    pub says: String,
    /// What mends it.
    pub fix: Option<String>,
    /// What it keeps from being done.
    pub effect: Effect,
    /// How long it has lasted, in milliseconds.
    pub since_ms: u64,
}

/// What all handles share.
struct Shared {
    /// The troubles that last, and those that are over for less than [`QUIET`].
    lasting: Mutex<Lasting>,
    /// One series for each that lasts.
    series: Series,
    /// Those that began and are to be alerts.
    alerts: Mutex<Vec<(Instant, Kind, String)>>,
    /// Whether there are any: this is looked at often.
    has_alerts: AtomicBool,
}

/// The troubles of a process by what tells them apart.
type Lasting = BTreeMap<(Kind, String), State>;

/// One series for each trouble that lasts.
pub(crate) type Series = Family<[(&'static str, String); 2], Gauge>;

/// How a trouble stands.
struct State {
    /// What was reported last.
    trouble: Trouble,
    /// Those who have reported it and not ended it; none once it is over.
    holders: BTreeSet<Arc<str>>,
    /// When it was reported first.
    since: Instant,
    /// When it was over, unless it lasts.
    over: Option<Instant>,
    /// When the last line was written.
    told: Instant,
    /// How often it was reported.
    times: u64,
}

/// Time between two lines about a trouble that lasts.
const REMINDER: Duration = Duration::from_mins(1);

/// How long a trouble has to be over before that is said: one that comes back earlier goes on, so that what comes and goes is not a flood.
const QUIET: Duration = Duration::from_secs(10);

/// How long a trouble waits to be an alert: a process that does not get the first shard within that time leaves it to the one that has it.
const ALERT: Duration = Duration::from_mins(1);

/// Most troubles at once. A process has a few; whoever reports one for each of too many subjects has to fold them.
const MOST: usize = 1000;

// === impl Troubles ===

impl Default for Troubles {
    fn default() -> Self {
        let shared = Shared {
            lasting: Mutex::default(),
            series: Family::default(),
            alerts: Mutex::default(),
            has_alerts: AtomicBool::new(false),
        };
        Self {
            shared: Arc::new(shared),
            holder: "process".into(),
        }
    }
}

impl Troubles {
    /// The same troubles for another holder, such as a worker: what is reported by this handle lasts until it is ended by a handle of the
    /// same holder.
    #[must_use]
    pub fn held_by(&self, holder: &str) -> Self {
        Self {
            shared: Arc::clone(&self.shared),
            holder: holder.into(),
        }
    }

    /// There is a trouble, or there still is: reporting it again is cheap. What is reported last counts.
    pub fn begin(&self, trouble: Trouble) {
        self.begin_at(Instant::now(), trouble);
    }

    /// This holder does not have the trouble any more; nothing happens if it had not.
    pub fn end(&self, kind: Kind, subject: &str) {
        self.end_at(Instant::now(), kind, subject);
    }

    /// Of this kind, the holder has these troubles and no others.
    pub fn only(&self, kind: Kind, troubles: impl IntoIterator<Item = Trouble>) {
        let mut stay = BTreeSet::new();
        for trouble in troubles {
            stay.insert(trouble.subject.clone());
            self.begin(trouble);
        }
        self.end_others(kind, |subject| stay.contains(subject));
    }

    /// Of this kind, the holder has no troubles any more but those whose subject `stays`.
    pub fn end_others(&self, kind: Kind, stays: impl Fn(&str) -> bool) {
        let now = Instant::now();
        for ((of, subject), state) in self.lock().iter_mut() {
            if *of == kind && !stays(subject) {
                self.let_go(now, state);
            }
        }
    }

    /// The holder has ended, and all it had with it.
    pub fn end_all(&self) {
        let now = Instant::now();
        for state in self.lock().values_mut() {
            self.let_go(now, state);
        }
    }

    /// The troubles that began and are to be alerts, each given out once; those of the group only to who `has_first`, the first shard.
    pub(crate) fn take_alerts(&self, has_first: bool) -> Vec<(Kind, String)> {
        if !self.shared.has_alerts.load(Ordering::Acquire) {
            return Vec::new();
        }
        let now = Instant::now();
        let mut alerts = self.alerts();
        let (mut taken, mut left) = (Vec::new(), Vec::new());
        for (began, kind, subject) in mem::take(&mut *alerts) {
            let is_others = kind.teller() == Some(Teller::First) && !has_first;
            if !is_others {
                taken.push((kind, subject));
            } else if now.saturating_duration_since(began) < ALERT {
                left.push((began, kind, subject));
            }
        }
        self.shared
            .has_alerts
            .store(!left.is_empty(), Ordering::Release);
        *alerts = left;
        taken
    }

    /// Whether the trouble lasts, for whomever.
    pub fn has(&self, kind: Kind, subject: &str) -> bool {
        let lasting = self.lock();
        let state = lasting.get(&(kind, subject.to_owned()));
        state.is_some_and(|state| state.over.is_none())
    }

    /// What lasts now, what stops something first.
    pub fn list(&self) -> Vec<Listed> {
        let now = Instant::now();
        let lasting = self.lock();
        let lasting = lasting.values().filter(|state| state.over.is_none());
        let mut list: Vec<Listed> = lasting.map(|state| state.listed(now)).collect();
        list.sort_by_key(|listed| listed.effect == Effect::Limits);
        list
    }

    /// Writes the lines that are due: of what lasts, and of what is over. To be called every second or so.
    pub(crate) fn tick(&self) {
        self.tick_at(Instant::now());
    }

    /// Where the troubles are counted.
    pub(crate) fn series(&self) -> &Series {
        &self.shared.series
    }

    /// As [`Self::begin`], at this time.
    fn begin_at(&self, now: Instant, trouble: Trouble) {
        let mut lasting = self.lock();
        let key = (trouble.kind, trouble.subject.clone());
        if let Some(state) = lasting.get_mut(&key) {
            if state.over.take().is_some() {
                self.shared.series.get_or_create(&labels(&key)).set(1);
            }
            state.trouble = trouble;
            state.times += 1;
            if !state.holders.contains(&self.holder) {
                state.holders.insert(Arc::clone(&self.holder));
            }
            return;
        }
        if lasting.len() >= MOST {
            return;
        }
        let state = State {
            trouble,
            holders: BTreeSet::from([Arc::clone(&self.holder)]),
            since: now,
            over: None,
            told: now,
            times: 1,
        };
        state.tell_begin();
        self.shared.series.get_or_create(&labels(&key)).set(1);
        if key.0.teller().is_some() {
            let mut alerts = self.alerts();
            alerts.truncate(MOST - 1);
            alerts.push((now, key.0, key.1.clone()));
            self.shared.has_alerts.store(true, Ordering::Release);
        }
        lasting.insert(key, state);
    }

    /// As [`Self::end`], at this time.
    fn end_at(&self, now: Instant, kind: Kind, subject: &str) {
        let mut lasting = self.lock();
        if let Some(state) = lasting.get_mut(&(kind, subject.to_owned())) {
            self.let_go(now, state);
        }
    }

    /// The holder does not have this trouble any more.
    fn let_go(&self, now: Instant, state: &mut State) {
        if state.holders.remove(&self.holder) && state.holders.is_empty() {
            state.over = Some(now);
            let Trouble { kind, subject, .. } = &state.trouble;
            self.shared
                .series
                .remove(&labels(&(*kind, subject.clone())));
        }
    }

    /// As [`Self::tick`], at this time.
    fn tick_at(&self, now: Instant) {
        self.lock().retain(|_, state| match state.over {
            Some(over) if now.saturating_duration_since(over) >= QUIET => {
                state.tell_end(over);
                false
            }
            _ => {
                if now.saturating_duration_since(state.told) >= REMINDER {
                    state.told = now;
                    state.tell_again(now);
                }
                true
            }
        });
    }

    /// Those that are to be alerts.
    fn alerts(&self) -> MutexGuard<'_, Vec<(Instant, Kind, String)>> {
        let alerts = &self.shared.alerts;
        alerts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Locks what no panic leaves half-changed.
    fn lock(&self) -> MutexGuard<'_, Lasting> {
        let lasting = &self.shared.lasting;
        lasting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Troubles {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut list = formatter.debug_list();
        list.entries(self.list()).finish()
    }
}

// === impl Kind ===

impl Kind {
    /// The word for it.
    pub const fn word(self) -> &'static str {
        match self {
            Self::BrokerAway => "broker-away",
            Self::TopicUnwritable => "topic-unwritable",
            Self::TargetUnwritable => "target-unwritable",
            Self::CommitStuck => "commit-stuck",
            Self::TopicUnreadable => "topic-unreadable",
            Self::PartitionStuck => "partition-stuck",
            Self::RecordsGone => "records-gone",
            Self::TopicMissing => "topic-missing",
            Self::UnsafeRetentionMs => "unsafe-retention-ms",
            Self::UnsafeRetentionBytes => "unsafe-retention-bytes",
            Self::UnsafeCleanupPolicy => "unsafe-cleanup-policy",
            Self::UnsafeTimestampType => "unsafe-timestamp-type",
            Self::UnsafeMaxMessageBytes => "unsafe-max-message-bytes",
            Self::PartitionsDiffer => "partitions-differ",
            Self::StrayTier => "stray-tier",
            Self::GroupDisagrees => "group-disagrees",
            Self::SceneUnknown => "scene-unknown",
            Self::SceneUnreadable => "scene-unreadable",
            Self::SceneRefused => "scene-refused",
            Self::HoldUnreadable => "hold-unreadable",
            Self::HoldLasting => "hold-lasting",
            Self::HoldsTooMany => "holds-too-many",
            Self::BreakerUnreadable => "breaker-unreadable",
            Self::BreakerForced => "breaker-forced",
            Self::TargetWalled => "target-walled",
            Self::SceneBraked => "scene-braked",
            Self::TlsUnusable => "tls-unusable",
            Self::TlsExpires => "tls-expires",
            Self::SecretMissing => "secret-missing",
            Self::RegistryAway => "registry-away",
            Self::SweepFailing => "sweep-failing",
            Self::LettersUnread => "letters-unread",
            Self::CommandsUnread => "commands-unread",
            Self::SourceStopped => "source-stopped",
        }
    }

    /// Whose alert it is; none if it is no alert, or one already by those who have found out.
    const fn teller(self) -> Option<Teller> {
        match self {
            // Files are each process's own.
            Self::TopicUnwritable
            | Self::TlsUnusable
            | Self::TlsExpires
            | Self::SecretMissing
            | Self::SourceStopped
            | Self::RegistryAway => Some(Teller::Each),
            Self::TopicUnreadable
            | Self::TopicMissing
            | Self::UnsafeRetentionMs
            | Self::UnsafeRetentionBytes
            | Self::UnsafeCleanupPolicy
            | Self::UnsafeTimestampType
            | Self::UnsafeMaxMessageBytes
            | Self::PartitionsDiffer
            | Self::HoldUnreadable
            | Self::HoldLasting
            | Self::HoldsTooMany
            | Self::BreakerUnreadable
            | Self::BreakerForced
            | Self::GroupDisagrees => Some(Teller::First),
            Self::BrokerAway
            | Self::TargetUnwritable
            | Self::CommitStuck
            | Self::PartitionStuck
            | Self::RecordsGone
            | Self::StrayTier
            | Self::SceneUnknown
            | Self::SceneUnreadable
            | Self::SceneRefused
            | Self::SweepFailing
            | Self::LettersUnread
            | Self::CommandsUnread
            | Self::TargetWalled
            | Self::SceneBraked => None,
        }
    }
}

// === impl State ===

impl State {
    /// Says that it has begun.
    fn tell_begin(&self) {
        let (kind, subject, says, fix) = self.trouble.fields();
        match self.trouble.effect {
            Effect::Stops => error!(trouble = kind, subject, says, fix, "trouble begins"),
            Effect::Limits => warn!(trouble = kind, subject, says, fix, "trouble begins"),
        }
    }

    /// Says that it lasts.
    fn tell_again(&self, now: Instant) {
        let (kind, subject, says, fix) = self.trouble.fields();
        let (times, lasts_s) = (self.times, self.lasts(now).as_secs());
        match self.trouble.effect {
            Effect::Stops => {
                error!(
                    trouble = kind,
                    subject, says, fix, times, lasts_s, "trouble lasts"
                );
            }
            Effect::Limits => {
                warn!(
                    trouble = kind,
                    subject, says, fix, times, lasts_s, "trouble lasts"
                );
            }
        }
    }

    /// Says that it is over.
    fn tell_end(&self, over: Instant) {
        let (kind, subject, ..) = self.trouble.fields();
        let (times, lasted_s) = (self.times, self.lasts(over).as_secs());
        info!(trouble = kind, subject, times, lasted_s, "trouble over");
    }

    /// How long it has lasted.
    fn lasts(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.since)
    }

    /// As `/readyz` lists it.
    fn listed(&self, now: Instant) -> Listed {
        let trouble = self.trouble.clone();
        Listed {
            kind: trouble.kind,
            subject: trouble.subject,
            says: trouble.says,
            fix: trouble.fix,
            effect: trouble.effect,
            since_ms: u64::try_from(self.lasts(now).as_millis()).unwrap_or(u64::MAX),
        }
    }
}

// === impl Trouble ===

impl Trouble {
    /// What a line of it says.
    fn fields(&self) -> (&'static str, &str, &str, Option<&str>) {
        let Self { subject, says, .. } = self;
        (self.kind.word(), subject, says, self.fix.as_deref())
    }
}

/// The labels of a trouble's series.
fn labels((kind, subject): &(Kind, String)) -> [(&'static str, String); 2] {
    [
        ("kind", kind.word().to_owned()),
        ("subject", escape(subject)),
    ]
}

#[cfg(test)]
mod tests {
    use std::io::{self, Write};

    use tracing_subscriber::fmt::MakeWriter;

    use super::*;

    /// A log in memory.
    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<u8>>>);

    impl Log {
        /// What `body` writes, line by line.
        fn of(body: impl FnOnce()) -> Vec<String> {
            let log = Self::default();
            let lines = tracing_subscriber::fmt().with_writer(log.clone());
            let lines = lines.with_ansi(false).without_time().with_target(false);
            tracing::subscriber::with_default(lines.finish(), body);
            let bytes = log.0.lock().expect("not poisoned").clone();
            let text = String::from_utf8(bytes).expect("text");
            text.lines().map(|line| line.trim().to_owned()).collect()
        }
    }

    impl Write for Log {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().expect("not poisoned").write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl MakeWriter<'_> for Log {
        type Writer = Self;

        fn make_writer(&self) -> Self {
            self.clone()
        }
    }

    /// The words of all kinds, as they stand in this file.
    fn kinds() -> Vec<String> {
        let (_, rest) = include_str!("trouble.rs")
            .split_once("pub enum Kind {")
            .expect("the kinds");
        let (body, _) = rest.split_once('}').expect("an end");
        let names = body.lines().map(str::trim);
        let names = names.filter(|line| line.ends_with(',') && !line.starts_with("///"));
        let kebab = |name: &str| -> String {
            let mut word = String::new();
            for letter in name.trim_end_matches(',').chars() {
                if letter.is_uppercase() && !word.is_empty() {
                    word.push('-');
                }
                word.extend(letter.to_lowercase());
            }
            word
        };
        names.map(kebab).collect()
    }

    #[test]
    fn the_docs_list_every_kind_and_no_other() {
        let page = include_str!("../../docs/troubles.md");
        let (_, table) = page.split_once("| kind | effect |").expect("a table");
        let rows = table
            .lines()
            .skip(2)
            .take_while(|line| line.starts_with('|'));
        let cells = rows.map(|row| row.split('|').nth(1).expect("a kind").trim());
        let mut listed: Vec<&str> = cells.flat_map(|cell| cell.split(", ")).collect();
        listed.sort_unstable();

        let mut kinds: Vec<String> = kinds().iter().map(|kind| format!("`{kind}`")).collect();
        kinds.sort();
        assert_eq!(listed, kinds, "docs/troubles.md is to list all kinds");
    }

    fn unwritable(topic: &str) -> Trouble {
        Trouble {
            kind: Kind::TopicUnwritable,
            subject: topic.to_owned(),
            says: "no permission".to_owned(),
            fix: Some("kafka-acls".to_owned()),
            effect: Effect::Stops,
        }
    }

    #[test]
    fn a_trouble_is_a_line_when_it_begins_one_a_minute_and_one_when_it_is_over() {
        let lines = Log::of(|| {
            let troubles = Troubles::default();
            let start = Instant::now();
            for second in 0..130 {
                let now = start + Duration::from_secs(second);
                troubles.begin_at(now, unwritable("t"));
                troubles.tick_at(now);
            }
            let over = start + Duration::from_secs(130);
            troubles.end_at(over, Kind::TopicUnwritable, "t");
            for second in 130..300 {
                troubles.tick_at(start + Duration::from_secs(second));
            }
        });

        assert_eq!(lines.len(), 4, "{lines:#?}");
        assert!(lines[0].starts_with("ERROR trouble begins trouble=\"topic-unwritable\""));
        assert!(lines[0].contains("fix=\"kafka-acls\""), "{}", lines[0]);
        assert!(lines[1].contains("trouble lasts") && lines[1].contains("times=61 lasts_s=60"));
        assert!(lines[2].contains("times=121 lasts_s=120"), "{}", lines[2]);
        assert!(lines[3].starts_with("INFO trouble over"), "{}", lines[3]);
    }

    #[test]
    fn a_trouble_that_comes_and_goes_is_no_flood() {
        let lines = Log::of(|| {
            let troubles = Troubles::default();
            let start = Instant::now();
            for second in 0..50 {
                let now = start + Duration::from_secs(second);
                troubles.begin_at(now, unwritable("t"));
                troubles.end_at(now, Kind::TopicUnwritable, "t");
                troubles.tick_at(now);
            }
        });

        assert_eq!(lines.len(), 1, "{lines:#?}");
    }

    #[test]
    fn a_trouble_lasts_while_one_holder_has_it() {
        let troubles = Troubles::default();
        let (one, other) = (troubles.held_by("worker-0"), troubles.held_by("worker-1"));
        one.begin(unwritable("t"));
        other.begin(unwritable("t"));

        one.end(Kind::TopicUnwritable, "t");
        assert!(troubles.has(Kind::TopicUnwritable, "t"));
        troubles.end(Kind::TopicUnwritable, "t");
        assert!(troubles.has(Kind::TopicUnwritable, "t"), "not its own");

        other.end_all();
        assert!(!troubles.has(Kind::TopicUnwritable, "t"));
        assert_eq!(troubles.list(), []);
    }

    #[test]
    fn what_people_must_act_on_is_an_alert_once_and_what_all_see_that_of_one() {
        let troubles = Troubles::default();
        let everybodys = Trouble {
            kind: Kind::UnsafeRetentionMs,
            ..unwritable("t")
        };
        let nobodys = Trouble {
            kind: Kind::BrokerAway,
            ..unwritable("b")
        };
        for trouble in [unwritable("t"), everybodys, nobodys] {
            troubles.begin(trouble.clone());
            troubles.begin(trouble);
        }

        let taken = troubles.take_alerts(false);
        let of_first = troubles.take_alerts(true);

        assert_eq!(taken, [(Kind::TopicUnwritable, "t".to_owned())]);
        assert_eq!(of_first, [(Kind::UnsafeRetentionMs, "t".to_owned())]);
        assert_eq!(troubles.take_alerts(true), []);
    }

    #[test]
    fn what_stops_something_is_listed_first() {
        let troubles = Troubles::default();
        let limits = Trouble {
            kind: Kind::BrokerAway,
            effect: Effect::Limits,
            ..unwritable("b")
        };
        troubles.begin(limits);
        troubles.only(Kind::TopicUnwritable, ["a", "b"].map(unwritable));
        troubles.only(Kind::TopicUnwritable, ["b", "c"].map(unwritable));

        let listed = troubles.list().into_iter();
        let listed: Vec<_> = listed
            .map(|listed| (listed.kind.word(), listed.subject))
            .collect();

        let all = [
            ("topic-unwritable", "b"),
            ("topic-unwritable", "c"),
            ("broker-away", "b"),
        ];
        assert_eq!(
            listed,
            all.map(|(kind, subject)| (kind, subject.to_owned()))
        );
    }
}
