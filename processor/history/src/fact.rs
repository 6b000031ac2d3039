//! Facts: what each record of retide's topics says of a task.
//!
//! Not where they are found, which is `search`.

use std::sync::Arc;

use retide_avro::headers::{kind_word, origin_of};
use retide_avro::wire;
use retide_core::{Kind, Origin, Task, Terminal, Timestamp};

/// A record that tells of a task.
#[derive(Clone, Debug)]
pub struct Fact {
    /// Where it stands.
    pub at: Origin,
    /// Its time: when the broker appended it, or its producer made it.
    pub appended: Timestamp,
    /// What it says.
    pub what: Said,
}

/// What a record says of a task.
#[derive(Clone, Debug)]
pub enum Said {
    /// It came in.
    Entered {
        /// The scene it named, or nothing.
        scene: Arc<str>,
        /// When its first attempt was to start; none if it could not be read.
        due: Option<Timestamp>,
    },
    /// It waits in a tier, or has waited there: records stay after they were read.
    Parked {
        /// The tier.
        tier: usize,
        /// Its state.
        task: Box<Task>,
    },
    /// Something happened to it.
    Event(Box<wire::Event>),
    /// Something happened to it, and only the word for it can be read.
    Unreadable {
        /// The word.
        event: String,
    },
    /// It ended.
    Callback(Box<wire::Callback>),
    /// It ended badly, and is kept.
    DeadLetter(Box<DeadLetter>),
}

/// What the headers of a dead letter say.
#[derive(Clone, Debug)]
pub struct DeadLetter {
    /// Whether it is the work itself or the delivery of its callback.
    pub kind: Kind,
    /// The scene, or nothing.
    pub scene: String,
    /// Where the task entered, if that can be read.
    pub origin: Option<Origin>,
    /// How it ended.
    pub outcome: String,
    /// Why.
    pub reason: Option<String>,
    /// How many attempts were made.
    pub attempts: Option<i64>,
    /// What the last attempt said.
    pub error: Option<String>,
}

// === impl Fact ===

impl Fact {
    /// When it was: as an event says, else when its record was appended.
    pub(crate) fn when(&self) -> Timestamp {
        match &self.what {
            Said::Event(event) => instant(event.at),
            Said::Entered { .. }
            | Said::Parked { .. }
            | Said::Unreadable { .. }
            | Said::Callback(_)
            | Said::DeadLetter(_) => self.appended,
        }
    }
}

/// Whether an event is about the work itself.
pub(crate) fn is_work(event: &wire::Event) -> bool {
    event.kind == kind_word(Kind::Work)
}

/// Whether a record tells that a command came too late.
pub(crate) fn is_too_late(what: &Said) -> bool {
    matches!(what, Said::Event(event) if event.event == "too-late")
}

/// Where a record stands that was dropped, since another task had its id, and where that one entered: as the event says.
pub(crate) fn dropped(what: &Said) -> Option<(Origin, Origin)> {
    let Said::Event(event) = what else {
        return None;
    };
    let message = event.error_message.as_deref();
    let message = message.filter(|_| event.event == "duplicate")?;
    let (record, task) = message.split_once(": the task that entered at offset ")?;
    let record = origin_of(record)?;
    let offset = task.split(' ').next()?.parse().ok()?;
    let task = Origin {
        offset,
        ..record.clone()
    };
    Some((record, task))
}

/// Where the task entered whose place another record of its id has taken: as the event says.
pub(crate) fn replaced(what: &Said) -> Option<Origin> {
    let Said::Event(event) = what else {
        return None;
    };
    let message = event.error_message.as_deref();
    let message = message.filter(|_| event.event == "duplicate")?;
    let words = ": takes the place of the task that entered at offset ";
    let (record, task) = message.split_once(words)?;
    Some(Origin {
        offset: task.parse().ok()?,
        ..origin_of(record)?
    })
}

/// Whether an event tells of a task that is over since another record of its id has its place.
pub(crate) fn is_replaced(event: &wire::Event) -> bool {
    let fate = event.outcome.as_deref();
    event.event == "duplicate" && fate.is_some_and(|fate| fate.ends_with("replaced"))
}

/// Whether an event of this word is an end.
pub(crate) fn is_end(word: &str) -> bool {
    Terminal::from_word(word).is_some()
}

/// The instant in a field; what is before the epoch is the epoch.
pub(crate) fn instant(millis: i64) -> Timestamp {
    Timestamp::from_millis(u64::try_from(millis).unwrap_or_default())
}

/// Class and message as one text.
pub(crate) fn error(class: Option<&String>, message: Option<&String>) -> Option<String> {
    match (class, message) {
        (None, None) => None,
        (Some(only), None) | (None, Some(only)) => Some(only.clone()),
        (Some(class), Some(message)) => Some(format!("{class}: {message}")),
    }
}
