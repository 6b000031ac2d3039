//! Dead letters: what their headers say, as far as they can be read.
//!
//! Anybody may write to the topic, and other versions of retide do. So each header is read by itself, and one that cannot be read is as good
//! as one that is not there. Not what retide writes: see [`crate::headers::write_dead_letter`]. Invariant: what was written by retide is read as
//! it was meant, also where the record had headers of the same names before: the last one counts.

use std::mem;
use std::str;
use std::sync::Arc;

use bytes::Bytes;

use retide_core::campaign::{self, Edit, Ineligible, Replay, Spec};
use retide_core::selector::{ErrorFingerprint, Selector, Subject};
use retide_core::{Digest, Failure, Kind, Origin, Record, Task, Terminal, Timestamp};

use crate::beside;
use crate::control::campaign::replay;
use crate::envelope::Intake;

use crate::headers::{
    ATTEMPT, Arrival, CAMPAIGN, DEADLINE_AT, DUE_AT, ERROR, ERROR_HOST, FINGERPRINT,
    FIRST_FAILED_AT, HOPS, ID, KIND, MAX_ID, MAX_SCENE, OMITTED, OMITTED_XXH3, ORIGIN, OUTCOME,
    REASON, REPLAYED, SCENE, is_named, kind_of, origin_of, strip,
};
use crate::patch::Patch;

/// A dead letter: what its headers say of the task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Letter {
    /// The identity.
    pub id: String,
    /// The scene; nothing where none is known.
    pub scene: String,
    /// Whether it is the work or the delivery of a callback.
    pub kind: Kind,
    /// How it ended: `dead` or `expired`.
    pub outcome: Terminal,
    /// Why, in a word; later versions may have others than this one.
    pub reason: Option<String>,
    /// What the last attempt said, or why there was none.
    pub failure: Option<Failure>,
    /// What that has in common with others; of a letter of an earlier version, which does not say it, computed.
    pub fingerprint: Option<ErrorFingerprint>,
    /// How many attempts were made.
    pub attempts: Option<u32>,
    /// When the task entered.
    pub entered: Option<Timestamp>,
    /// When its last attempt was due.
    pub due: Option<Timestamp>,
    /// When no attempt might start any more.
    pub deadline: Option<Timestamp>,
    /// Where it entered.
    pub origin: Option<Origin>,
    /// What it lacks of the record it is of.
    pub omitted: Option<String>,
    /// The digest of what it lacks, if it says it.
    pub digest: Option<Digest>,
    /// That its task was replayed before it died, if it was.
    pub replay: Option<Replay>,
    /// Whether it is of a record that could not be read as a task.
    pub is_poison: bool,
}

/// What a campaign has read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Read {
    /// A dead letter that it means.
    Meant(campaign::Letter),
    /// A dead letter that it means, and that lacks what its replay needs.
    Lacking(Box<Lacking>),
    /// Another one.
    Other,
    /// No dead letter of retide's.
    Foreign,
}

/// A dead letter that a campaign means, and that lacks what its replay needs. It may be found where its task entered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lacking {
    /// What its headers say.
    letter: Letter,
    /// Its record.
    record: Record,
    /// Where it stands.
    at: Origin,
    /// When it died.
    died: Timestamp,
    /// The other campaigns that mean it.
    others: Vec<campaign::Id>,
    /// Where its task entered.
    origin: Origin,
}

/// Reads a record of the dead letters for a campaign: `at` is where it stands, `died` the time of it, `others` are campaigns of which is told
/// whether they mean it, too, and `target` says what scenes call.
pub fn read<'a>(
    record: Record,
    at: &Origin,
    died: Timestamp,
    (spec, others): (&Spec, &[(campaign::Id, Arc<Spec>)]),
    target: impl FnOnce(&str, Kind) -> Option<&'a str>,
) -> Read {
    let Some(letter) = Letter::of(&record) else {
        return Read::Foreign;
    };
    let calls = target(&letter.scene, letter.kind);
    if !letter.is_meant(&record, died, calls, spec) {
        return Read::Other;
    }
    let others = others.iter();
    let others = others.filter(|(_, spec)| letter.is_meant(&record, died, calls, spec));
    let others = others.map(|(id, _)| id.clone()).collect();
    let edit = spec.edit.as_ref();
    let why = letter.ineligible(edit);
    let origin = letter.fetched_from(edit).cloned();
    let lacking = Lacking {
        // Where it lacks nothing, nobody asks.
        origin: origin.clone().unwrap_or_else(|| at.clone()),
        letter,
        record,
        at: at.clone(),
        died,
        others,
    };
    match origin {
        Some(_) => Read::Lacking(Box::new(lacking)),
        None => Read::Meant(lacking.meant(why, edit)),
    }
}

/// Reads a record of the dead letters as it stands: where it does, and the time of it are `at` and `died`. `None` of what is no dead letter of
/// retide's.
pub fn read_as_is(record: Record, at: &Origin, died: Timestamp) -> Option<campaign::Letter> {
    let letter = Letter::of(&record)?;
    Some(campaign::Letter {
        partition: at.partition,
        offset: at.offset,
        at: died,
        ineligible: letter.ineligible(None),
        others: Vec::new(),
        task: Box::new(letter.task(record, at, died)),
    })
}

/// The record of the task that a letter is of: without what retide has written on it.
pub fn record_of(letter: Record) -> Record {
    strip(letter)
}

/// The payload that the task of a letter gets.
///
/// # Errors
/// Why the campaign's patch cannot be done to this one.
pub fn edited(record: &Record, edit: &Edit) -> Result<Bytes, String> {
    match edit {
        Edit::Payload(payload) => Ok(payload.clone()),
        Edit::Patch(patch) => {
            let document = record.value.as_deref().unwrap_or_default();
            Patch::parse(patch)?.apply(document)
        }
    }
}

// === impl Lacking ===

impl Lacking {
    /// Where what it lacks may stand.
    pub const fn origin(&self) -> &Origin {
        &self.origin
    }

    /// The letter with what it lacks, which is taken from the record at its origin: see [`Letter::restore`].
    pub fn found(
        mut self,
        (record, arrival): (Record, Arrival),
        intake: &Intake,
        edit: Option<&Edit>,
    ) -> campaign::Letter {
        let is_its = self
            .letter
            .restore(&mut self.record, (record, arrival), intake);
        let why = (!is_its).then_some(Ineligible::OriginGone);
        self.meant(why, edit)
    }

    /// The letter, which is not replayed for this reason.
    pub fn left(self, why: Ineligible) -> campaign::Letter {
        self.meant(Some(why), None)
    }

    /// The letter as the engine is told of it, with its payload edited if it can be replayed.
    fn meant(self, why: Option<Ineligible>, edit: Option<&Edit>) -> campaign::Letter {
        let Self {
            letter,
            mut record,
            at,
            died,
            others,
            origin: _,
        } = self;
        let changed = match edit {
            Some(edit) if why.is_none() => edited(&record, edit).map(Some),
            Some(_) | None => Ok(None),
        };
        let ineligible = match changed {
            Ok(Some(payload)) => {
                record.value = Some(payload);
                None
            }
            Ok(None) => why,
            Err(_) => Some(Ineligible::EditFailed),
        };
        campaign::Letter {
            partition: at.partition,
            offset: at.offset,
            at: died,
            ineligible,
            others,
            task: Box::new(letter.task(record, &at, died)),
        }
    }
}

/// What [`Letter::omitted`] says where it is nothing but the value.
const VALUE: &str = "value";

/// Longest reason that is taken for one: they are words.
const MAX_WORD: usize = 64;

/// Longest host that is taken for one: names are shorter.
const MAX_HOST: usize = 1_024;

/// Longest text of what is omitted: `value and headers`, or a number of headers.
const MAX_OMITTED: usize = 64;

/// Longest name and place of a campaign.
const MAX_CAMPAIGN: usize = 256;

/// The values of retide's headers, each the last of its name.
#[derive(Default)]
struct Last<'a> {
    /// In the order of [`READ`].
    values: [Option<&'a [u8]>; READ.len()],
}

/// The headers that are read.
const READ: [&str; 18] = [
    ID,
    SCENE,
    KIND,
    OUTCOME,
    REASON,
    ERROR,
    ERROR_HOST,
    FINGERPRINT,
    ATTEMPT,
    FIRST_FAILED_AT,
    DUE_AT,
    DEADLINE_AT,
    ORIGIN,
    OMITTED,
    OMITTED_XXH3,
    HOPS,
    CAMPAIGN,
    REPLAYED,
];

// === impl Letter ===

impl Letter {
    /// Reads the headers of a record; none if it is no dead letter of retide's, which names a task and says that it has ended badly.
    pub fn of(record: &Record) -> Option<Self> {
        let last = Last::of(record);
        let id = last.text(ID, MAX_ID).filter(|id| !id.is_empty())?;
        let outcome = last.text(OUTCOME, MAX_WORD).and_then(Terminal::from_word)?;
        match outcome {
            Terminal::Dead | Terminal::Expired => {}
            Terminal::Delivered | Terminal::Cancelled => return None,
        }
        let scene = last.text(SCENE, MAX_SCENE).unwrap_or_default();
        let kind = last.text(KIND, MAX_WORD).and_then(kind_of);
        let kind = kind.unwrap_or_default();
        let reason = last.text(REASON, MAX_WORD).map(str::to_owned);
        let failure = last.bytes(ERROR).map(|error| {
            let error = String::from_utf8_lossy(error);
            let (class, message) = error.split_once(": ").unwrap_or(("", &error));
            let host = last
                .text(ERROR_HOST, MAX_HOST)
                .filter(|host| !host.is_empty());
            Failure::new(class, message).of_host(host.map(Arc::from))
        });
        let written = last.text(FINGERPRINT, MAX_WORD);
        let of = |failure: &Failure| ErrorFingerprint::of_kind(kind, scene, failure);
        let computed = || {
            let why = || Some(of(&Failure::new(reason.as_deref()?, "")));
            failure.as_ref().map(of).or_else(why)
        };
        Some(Self {
            id: id.to_owned(),
            scene: scene.to_owned(),
            kind,
            outcome,
            fingerprint: written.and_then(ErrorFingerprint::parse).or_else(computed),
            reason,
            failure,
            attempts: last.number(ATTEMPT).and_then(|made| made.try_into().ok()),
            entered: last.time(FIRST_FAILED_AT),
            due: last.time(DUE_AT),
            deadline: last.time(DEADLINE_AT),
            origin: last.text(ORIGIN, usize::MAX).and_then(origin_of),
            omitted: last.text(OMITTED, MAX_OMITTED).map(str::to_owned),
            digest: last
                .text(OMITTED_XXH3, MAX_WORD)
                .and_then(|digest| digest.parse().ok()),
            replay: last.text(CAMPAIGN, MAX_CAMPAIGN).and_then(|campaign| {
                replay(
                    campaign,
                    last.number(REPLAYED).unwrap_or(u64::from(u32::MAX)),
                )
            }),
            is_poison: last.bytes(HOPS).is_none(),
        })
    }

    /// Whether it fits one of the selectors, or there is none: `target` is what its scene calls, and `record` what it was read from.
    pub fn fits_any<'a>(
        &self,
        record: &Record,
        target: Option<&str>,
        selectors: impl IntoIterator<Item = &'a Selector>,
    ) -> bool {
        let made: Vec<u32> = self.attempts.into_iter().collect();
        let subject = Subject {
            id: &self.id,
            scene: &self.scene,
            key: record.key.as_deref(),
            headers: &record.headers,
            error: self.failure.as_ref().map(|failure| &*failure.class),
            fingerprint: &|| self.fingerprint,
            target,
            made: &made,
            entered: self.entered,
            due: self.due,
            origin: self.origin.as_ref(),
        };
        let mut selectors = selectors.into_iter().peekable();
        selectors.peek().is_none() || selectors.any(|selector| selector.fits_subject(&subject))
    }

    /// Whether a campaign means it: `died` is when it did, and the rest as for [`Self::fits_any`].
    pub fn is_meant(
        &self,
        record: &Record,
        died: Timestamp,
        target: Option<&str>,
        spec: &Spec,
    ) -> bool {
        spec.died.is_none_or(|span| span.has(died)) && self.fits_any(record, target, &spec.selector)
    }

    /// What keeps it from being replayed with its payload changed so, of what it says by itself. What it lacks may have to be fetched first:
    /// see [`Self::fetched_from`].
    pub fn ineligible(&self, edit: Option<&Edit>) -> Option<Ineligible> {
        if self.is_poison || self.origin.is_none() {
            Some(Ineligible::Unreadable)
        } else if self.lacks(edit) && !self.can_be_restored() {
            Some(Ineligible::Omitted)
        } else {
            None
        }
    }

    /// Where the record stands, as long as it is retained, that has what this letter lacks; none if a replay with its payload changed so needs
    /// nothing of it, or it cannot be found.
    pub fn fetched_from(&self, edit: Option<&Edit>) -> Option<&Origin> {
        let origin = self.origin.as_ref()?;
        let is_wanted = self.lacks(edit) && self.ineligible(edit).is_none();
        is_wanted.then_some(origin)
    }

    /// Puts what this letter lacks into its `record`, out of the one that was `found` at its origin and has arrived so. Whether that was done:
    /// not if another record stands there by now.
    ///
    /// It is the one that the task was made of if, read as a task, it has the same identity, the same key, and what was left out by its digest.
    /// So nothing is taken from a topic that was made anew, nor a payload that an earlier replay has changed since.
    pub fn restore(
        &self,
        record: &mut Record,
        (found, arrival): (Record, Arrival),
        intake: &Intake,
    ) -> bool {
        let Ok(task) = intake.ingest(found, arrival) else {
            return false;
        };
        let Record {
            key,
            value,
            headers,
        } = task.record;
        let mut digest = Digest::of_value(value.as_deref());
        let has_headers = self.omitted.as_deref() == Some(VALUE);
        if !has_headers {
            digest = digest.with_headers(&headers);
        }
        if *task.id != *self.id || key != record.key || self.digest != Some(digest) {
            return false;
        }
        record.value = value;
        if !has_headers {
            // The last one of a name counts, which is retide's.
            let own = mem::replace(&mut record.headers, headers);
            record.headers.extend(own);
        }
        true
    }

    /// Whether it lacks what its replay needs: its payload, unless the replay has another one, or its headers.
    fn lacks(&self, edit: Option<&Edit>) -> bool {
        match (self.omitted.as_deref(), edit) {
            (None, _) | (Some(VALUE), Some(Edit::Payload(_))) => false,
            (Some(_), Some(Edit::Payload(_) | Edit::Patch(_)) | None) => true,
        }
    }

    /// Whether what it lacks can be told from anything else, and stands on a topic: what a callback delivers never did.
    fn can_be_restored(&self) -> bool {
        match self.kind {
            Kind::Work => self.digest.is_some(),
            Kind::Callback => false,
        }
    }

    /// The task as it died, whose letter stands there.
    fn task(self, mut record: Record, at: &Origin, died: Timestamp) -> Task {
        beside::take_off(&mut record);
        // The end that a callback reports is part of what it delivers; behind it is how the delivery ended.
        let mut outcomes = record.headers.iter().rev();
        let mut outcomes = outcomes
            .by_ref()
            .filter(|header| is_named(header.name.as_bytes(), OUTCOME));
        let outcome = match self.kind {
            Kind::Work => None,
            Kind::Callback => outcomes.nth(1).cloned(),
        };
        let mut record = strip(record);
        record.headers.extend(outcome);
        Task {
            id: self.id.into(),
            scene: self.scene.into(),
            kind: self.kind,
            attempt: self.attempts.unwrap_or_default().saturating_add(1),
            due: self.due.unwrap_or(died),
            deferral: None,
            first_failed_at: self.entered.unwrap_or(died),
            deadline: self.deadline,
            origin: self.origin.unwrap_or_else(|| at.clone()),
            failure: self.failure,
            throttled: 0,
            exhausted: None,
            hops: 0,
            held_since: None,
            pending_since: None,
            stopped: None,
            commanded: None,
            replay: self.replay.map(Box::new),
            record,
        }
    }
}

// === impl Last ===

impl<'a> Last<'a> {
    /// The headers of a record.
    fn of(record: &'a Record) -> Self {
        let mut last = Self::default();
        for header in &record.headers {
            let name = header.name.as_bytes();
            // Few names have the length of one of these.
            let mut read = READ.iter().enumerate();
            if let Some((at, _)) = read.find(|(_, own)| is_named(name, own)) {
                last.values[at] = header.value.as_deref();
            }
        }
        last
    }

    /// The value of a header.
    fn bytes(&self, name: &str) -> Option<&'a [u8]> {
        let at = READ.iter().position(|read| *read == name)?;
        self.values[at]
    }

    /// The same, if it is text of at most so many bytes.
    fn text(&self, name: &str, most: usize) -> Option<&'a str> {
        let text = str::from_utf8(self.bytes(name)?).ok()?;
        (text.len() <= most).then_some(text)
    }

    /// The same, if it is a number.
    fn number(&self, name: &str) -> Option<u64> {
        self.text(name, MAX_WORD)?.parse().ok()
    }

    /// The same, if it is a time.
    fn time(&self, name: &str) -> Option<Timestamp> {
        self.number(name).map(Timestamp::from_millis)
    }
}
