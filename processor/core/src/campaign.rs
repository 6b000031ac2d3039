//! Campaigns: dead letters that are played back, as people have said, at a pace, and with a brake.
//!
//! All campaigns are led by the owner of shard [`LEADER`], which is the only one that takes letters. A campaign is a chain of records in that
//! shard's lane of commands: its last one ([`Campaign`]) says all there is to know, and its offset is open until what follows from it is
//! settled together with the next one. So whoever gets the shard goes on from there, and takes no letter twice. Not how the records are
//! written down, which is `retide-avro`'s, nor what is done, which is the engine's (`engine/campaigns.rs`). Invariant: a letter is replayed by
//! one campaign, once.

use std::fmt;
use std::num::NonZeroU32;
use std::str::FromStr;
use std::sync::Arc;

use bytes::Bytes;

use crate::control::Place;
use crate::outcome::Terminal;
use crate::ramp::Ramp;
use crate::selector::{Selector, Span};
use crate::task::{Header, Name, Task};
use crate::time::Timestamp;

/// What tells a campaign apart: a name may be used again when the campaign before is over.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Id {
    /// Where its request stands.
    pub place: Place,
    /// Its name.
    pub name: Arc<str>,
}

/// What somebody wants of a campaign.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Where the request stands, which is where it was first written.
    pub place: Place,
    /// The name that its sender has given it, at most [`crate::control::MAX_ID`] bytes.
    pub id: Arc<str>,
    /// The campaign.
    pub name: Arc<str>,
    /// What is to be done.
    pub verb: Verb,
    /// Who wants it, at most [`crate::control::MAX_TEXT`] bytes.
    pub by: Box<str>,
    /// Why, at most [`crate::control::MAX_TEXT`] bytes.
    pub reason: Box<str>,
}

/// What is to be done with a campaign.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verb {
    /// It begins.
    Start(Arc<Spec>),
    /// It takes no letters until it is resumed.
    Pause,
    /// It goes on; where the brake has stopped it, from the first step of its ramp.
    Resume,
    /// It takes no letters any more.
    Abort,
}

/// What a campaign is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spec {
    /// Which letters it means; with [`Self::died`], at least one of both is said.
    pub selector: Option<Selector>,
    /// When those have died.
    pub died: Option<Span>,
    /// How fast it goes, and which part of the attempts of its tasks may fail in each step.
    pub ramp: Ramp,
    /// Most letters a second.
    pub rate: Option<NonZeroU32>,
    /// The scene that its tasks follow instead of their own.
    pub scene: Option<Arc<str>>,
    /// Headers that its tasks have instead of those of the same names.
    pub set_headers: Vec<Header>,
    /// Headers that its tasks do not have.
    pub remove_headers: Vec<Name>,
    /// What its tasks have instead of the payloads of their letters.
    pub edit: Option<Edit>,
    /// Whether letters that arrive after its start are replayed, too.
    pub include_new: bool,
    /// Whether the tasks keep the deadlines that their producers have named.
    pub keep_deadline: bool,
}

/// What becomes of payloads. Whoever reads a letter does it: the engine is told of the letter as it is to be replayed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Edit {
    /// This payload takes the place of each.
    Payload(Bytes),
    /// They are documents in JSON, which are changed by this patch (RFC 6902).
    Patch(Box<str>),
}

/// A campaign, as its last record says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Campaign {
    /// What tells it apart.
    pub id: Id,
    /// What it is to do.
    pub spec: Arc<Spec>,
    /// Who wanted it.
    pub by: Box<str>,
    /// Why.
    pub reason: Box<str>,
    /// What it does now.
    pub state: State,
    /// How far it is in each partition of the dead letters; nothing before it is known where they end.
    pub parts: Vec<Part>,
    /// What it has done.
    pub counts: Counts,
    /// How many steps of its ramp are over.
    pub step: u32,
    /// Up to which offset of the leader's lane of commands reports are counted.
    pub counted_to: i64,
    /// When that was written.
    pub at: Timestamp,
    /// What has happened, the newest last; at most [`MAX_LOG`] lines.
    pub log: Vec<Line>,
}

/// What a campaign does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum State {
    /// It takes letters.
    Running,
    /// Somebody has paused it.
    Paused,
    /// Its brake has stopped it.
    Stopped,
    /// Somebody has ended it; what is out goes on.
    Aborted,
    /// All letters were taken, and all tasks have ended.
    Done,
}

/// How far a campaign is in a partition of the dead letters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// The partition.
    pub partition: i32,
    /// The first offset that was not looked at; over `to` where what arrives later is counted.
    pub next: i64,
    /// The first offset that stood there after its start.
    pub to: i64,
}

/// What a campaign has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Letters that were replayed.
    pub replayed: u64,
    /// Letters that it means and that were not, by [`Ineligible`].
    pub ineligible: [u64; Ineligible::ALL.len()],
    /// Letters that it means and that have arrived after its start, and are left alone.
    pub late: u64,
    /// Records that are no dead letters of retide's.
    pub unread: u64,
    /// What its tasks have said.
    pub said: Said,
}

/// What tasks of a campaign have said: sums.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Said {
    /// Attempts that have come back.
    pub came_back: u64,
    /// Those of them that have failed.
    pub failed: u64,
    /// Tasks that were delivered.
    pub delivered: u64,
    /// Tasks that are dead again.
    pub dead: u64,
    /// Tasks that have expired.
    pub expired: u64,
    /// Tasks that were cancelled.
    pub cancelled: u64,
}

/// Why a letter that a campaign means is not replayed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Ineligible {
    /// It was replayed, by this campaign or another one.
    Replayed,
    /// Its task was replayed [`MOST_REPLAYS`] times: it waits for a person.
    TooOften,
    /// It lacks its payload, and cannot say what that was.
    Omitted,
    /// It is of a record that could not be read as a task.
    Unreadable,
    /// Its task was replayed by this campaign, and has died again.
    OfThis,
    /// Another campaign means it that began earlier and is not over.
    Claimed,
    /// What would be written of it is refused, such as one that is too large with other headers.
    Refused,
    /// What the campaign changes in payloads cannot be done to its one.
    EditFailed,
    /// It lacks its payload, which does not stand any more where its task entered.
    OriginGone,
    /// It lacks its payload, and what stands where its task entered may not be read.
    OriginDenied,
}

/// Something that has happened to a campaign.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// When.
    pub at: Timestamp,
    /// What, at most [`crate::control::MAX_TEXT`] bytes.
    pub text: Box<str>,
}

/// That a task was replayed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replay {
    /// By which campaign, the last time.
    pub campaign: Id,
    /// How often.
    pub times: u32,
}

/// What tasks of a campaign say to its leader.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// The campaign.
    pub campaign: Id,
    /// What they say.
    pub said: Said,
}

/// A dead letter as the engine is told of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Letter {
    /// The partition of the dead letters.
    pub partition: i32,
    /// The offset.
    pub offset: i64,
    /// When it died: the time of its record.
    pub at: Timestamp,
    /// The task as it died; its due time and its place among attempts are those of its last one.
    pub task: Box<Task>,
    /// What keeps it from being replayed, of what the letter says by itself.
    pub ineligible: Option<Ineligible>,
    /// The campaigns that mean it, too, of those that were named: see [`crate::step::LetterPurpose::Replay::others`].
    pub others: Vec<Id>,
}

/// The shard whose owner leads all campaigns.
pub const LEADER: i32 = 0;

/// What the key of a campaign's record begins with.
pub const CAMPAIGN: &str = "campaign/";

/// Longest name of a campaign.
pub const MAX_NAME: usize = 128;

/// Most campaigns that are not over: each may hold letters in memory.
pub const MOST: usize = 32;

/// Most lines of a log; the oldest but the first are left out.
pub const MAX_LOG: usize = 50;

/// Most replays of a task: what has died so often is for a person.
pub const MOST_REPLAYS: u32 = 5;

/// Most headers that are set, and most that are removed.
pub const MAX_HEADERS: usize = 32;

/// Longest value of a header that is set.
pub const MAX_HEADER: usize = 4_096;

/// Headers of producers that belong to one way of a record: what connects, who may, and where it was copied from. On another way they are
/// wrong, or give away what they should not.
pub const STRIPPED: [&str; 20] = [
    "authorization",
    "cookie",
    "set-cookie",
    "connection",
    "keep-alive",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "host",
    "content-length",
    "expect",
    "via",
    "forwarded",
    "x-forwarded-for",
    "x-forwarded-host",
    "x-forwarded-proto",
    "x-real-ip",
    "traceparent",
    "tracestate",
];

/// What the names of others of them begin with: proxies, and replicators of clusters.
pub const STRIPPED_PREFIXES: [&str; 4] = [
    "proxy-",
    "mm2-",
    "__connect.replicator.",
    "confluent.replicator.",
];

/// The header that keeps the trace in which a task died, as a link: the replay is a trace of its own.
pub const LINK: &str = "replayed-traceparent";

/// The task that a letter is played back as: with its identity and its payload, and everything else anew.
pub fn replayed(letter: Task, spec: &Spec, replay: Replay, now: Timestamp) -> Task {
    let at = now.ceil_to_millis();
    let mut record = letter.record;
    let trace = record
        .headers
        .iter()
        .rfind(|it| is(&it.name, "traceparent"));
    let link = trace.map(|trace| Header {
        name: Name::known(LINK),
        value: trace.value.clone(),
    });
    record.headers.retain(|header| {
        let is_link = link.is_some() && is(&header.name, LINK);
        !spec.changes(&header.name) && !is_link && !is_stripped(&header.name)
    });
    record.headers.extend(link);
    record.headers.extend(spec.set_headers.iter().cloned());
    Task {
        scene: spec.scene.as_ref().map_or(letter.scene, Arc::clone),
        attempt: 1,
        due: at,
        deferral: None,
        first_failed_at: if spec.keep_deadline {
            letter.first_failed_at
        } else {
            at
        },
        deadline: letter.deadline.filter(|_| spec.keep_deadline),
        failure: None,
        throttled: 0,
        exhausted: None,
        hops: 0,
        held_since: None,
        pending_since: None,
        stopped: None,
        commanded: None,
        replay: Some(Box::new(replay)),
        record,
        ..letter
    }
}

/// Whether a header is not to travel twice.
pub fn is_stripped(name: &Name) -> bool {
    let name = name.as_bytes();
    let starts = |start: &&str| {
        let begin = name.get(..start.len());
        begin.is_some_and(|begin| begin.eq_ignore_ascii_case(start.as_bytes()))
    };
    STRIPPED
        .iter()
        .any(|known| name.eq_ignore_ascii_case(known.as_bytes()))
        || STRIPPED_PREFIXES.iter().any(starts)
}

/// Whether a header has this name, in whatever case it is written.
fn is(name: &Name, known: &str) -> bool {
    name.as_bytes().eq_ignore_ascii_case(known.as_bytes())
}

/// Whether both are one name.
fn same(one: &Name, other: &Name) -> bool {
    one.as_bytes().eq_ignore_ascii_case(other.as_bytes())
}

// === impl Id ===

impl fmt::Display for Id {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}/{}", self.name, self.place)
    }
}

impl FromStr for Id {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (name, place) = text.split_once('/').ok_or(())?;
        if name.is_empty() || name.len() > MAX_NAME {
            return Err(());
        }
        Ok(Self {
            place: place.parse()?,
            name: name.into(),
        })
    }
}

// === impl Spec ===

impl Spec {
    /// Whether letters lose their headers of this name: they are removed, or others are set.
    pub fn changes(&self, name: &Name) -> bool {
        let set = self.set_headers.iter().map(|set| &set.name);
        let mut names = set.chain(&self.remove_headers);
        names.any(|changed| same(changed, name))
    }
}

// === impl Verb ===

impl Verb {
    /// The words for what is to be done, in commands.
    pub const WORDS: [&str; 4] = [
        "replay",
        "pause-campaign",
        "resume-campaign",
        "abort-campaign",
    ];

    /// The word for this verb.
    pub const fn word(&self) -> &'static str {
        match self {
            Self::Start(_) => Self::WORDS[0],
            Self::Pause => Self::WORDS[1],
            Self::Resume => Self::WORDS[2],
            Self::Abort => Self::WORDS[3],
        }
    }
}

// === impl State ===

impl State {
    /// Every state, in their order.
    pub const ALL: [Self; 5] = [
        Self::Running,
        Self::Paused,
        Self::Stopped,
        Self::Aborted,
        Self::Done,
    ];

    /// The word for this state.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
            Self::Aborted => "aborted",
            Self::Done => "done",
        }
    }

    /// The state that `word` names, if it names one.
    pub fn from_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.word() == word)
    }
}

// === impl Ineligible ===

impl Ineligible {
    /// Every reason, in the order in which they are counted.
    pub const ALL: [Self; 10] = [
        Self::Replayed,
        Self::TooOften,
        Self::Omitted,
        Self::Unreadable,
        Self::OfThis,
        Self::Claimed,
        Self::Refused,
        Self::EditFailed,
        Self::OriginGone,
        Self::OriginDenied,
    ];

    /// The word for this reason.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Replayed => "replayed-before",
            Self::TooOften => "replayed-too-often",
            Self::Omitted => "payload-omitted",
            Self::Unreadable => "no-task",
            Self::OfThis => "died-again",
            Self::Claimed => "in-campaign",
            Self::Refused => "refused",
            Self::EditFailed => "edit-failed",
            Self::OriginGone => "origin-gone",
            Self::OriginDenied => "origin-denied",
        }
    }

    /// The reason that `word` names, if it names one.
    pub fn from_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|why| why.word() == word)
    }

    /// Its place among the counts.
    pub const fn index(self) -> usize {
        self as usize
    }
}

// === impl Campaign ===

impl Campaign {
    /// How many of its tasks have not ended.
    pub const fn out(&self) -> u64 {
        self.counts
            .replayed
            .saturating_sub(self.counts.said.ended())
    }

    /// Whether nothing is left to be done, nor to be counted.
    pub const fn is_over(&self) -> bool {
        match self.state {
            State::Done => true,
            State::Aborted => self.out() == 0,
            State::Running | State::Paused | State::Stopped => false,
        }
    }

    /// Whether letters that it means are its own: it takes them, or may go on.
    pub const fn has_claims(&self) -> bool {
        match self.state {
            State::Running | State::Paused | State::Stopped => true,
            State::Aborted | State::Done => false,
        }
    }

    /// Whether a letter that it means is its own, so that no later campaign replays it. `replay` is the last replay of its task.
    pub fn claims(&self, partition: i32, offset: i64, replay: Option<&Replay>) -> bool {
        let is_of_this = replay.is_some_and(|replay| replay.campaign == self.id);
        if !self.has_claims() || is_of_this {
            return false;
        }
        let mut parts = self.parts.iter();
        match parts.find(|part| part.partition == partition) {
            Some(part) => offset >= part.next && (offset < part.to || self.spec.include_new),
            // It has just begun, and all that stands there is before its end.
            None => self.parts.is_empty() || self.spec.include_new,
        }
    }

    /// Notes in the log what has happened.
    pub fn note(&mut self, at: Timestamp, text: &str) {
        let mut end = text.len().min(crate::control::MAX_TEXT);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        // The first line says how it began.
        if self.log.len() >= MAX_LOG {
            self.log.remove(1);
        }
        self.log.push(Line {
            at,
            text: text[..end].into(),
        });
    }
}

// === impl Counts ===

impl Counts {
    /// All letters that it means and has looked at, but for those that came later.
    pub fn matched(&self) -> u64 {
        self.ineligible
            .iter()
            .fold(self.replayed, |sum, count| sum.saturating_add(*count))
    }
}

// === impl Said ===

impl Said {
    /// An attempt that has come back.
    pub const fn came_back(failed: bool) -> Self {
        Self {
            came_back: 1,
            failed: failed as u64,
            delivered: 0,
            dead: 0,
            expired: 0,
            cancelled: 0,
        }
    }

    /// The end of a task.
    pub fn end(terminal: Terminal) -> Self {
        let mut said = Self::default();
        match terminal {
            Terminal::Delivered => said.delivered = 1,
            Terminal::Dead => said.dead = 1,
            Terminal::Expired => said.expired = 1,
            Terminal::Cancelled => said.cancelled = 1,
        }
        said
    }

    /// The sum of both.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self {
            came_back: self.came_back.saturating_add(other.came_back),
            failed: self.failed.saturating_add(other.failed),
            delivered: self.delivered.saturating_add(other.delivered),
            dead: self.dead.saturating_add(other.dead),
            expired: self.expired.saturating_add(other.expired),
            cancelled: self.cancelled.saturating_add(other.cancelled),
        }
    }

    /// How many tasks have ended.
    pub const fn ended(&self) -> u64 {
        self.delivered
            .saturating_add(self.dead)
            .saturating_add(self.expired)
            .saturating_add(self.cancelled)
    }
}
