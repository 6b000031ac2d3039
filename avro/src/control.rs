//! Records of the commands topic: a request in JSON or Avro, as people and programs write it, and the records that retide makes of it.
//!
//! ```text
//! {"command":"cancel","select":{"scene":"payment","header":{"order-no":"4711"}},"by":"ann","reason":"refunded"}
//! ```
//!
//! A request needs no header. Steps, answers and ends have [`STAGE`], and [`COMMAND`] with the place of their request, so that any Kafka
//! tool can follow along. Not what a command does, which is the engine's. Invariant: what [`encode`] writes, [`decode`] reads back equal,
//! times in whole milliseconds; a request is read as it is meant or refused with a bounded text, and never means more tasks than it says.

pub mod campaign;
pub mod forced;
mod framed;
pub mod hold;
mod select;
mod written;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde::Serialize;
use serde_json::value::RawValue;

use retide_core::campaign::CAMPAIGN;
use retide_core::control::{
    Command, Control, Counts, EXPIRY, LONGEST, Looked, MAX_ID, MAX_TEXT, Place, Refusal, Step, Verb,
};
use retide_core::scene::MAX_DELAY;
use retide_core::selector::{Selector, Span};
use retide_core::{Failure, Header, Name, Outcome, Record, Source, Timestamp, span};

use crate::headers::{COMMAND, check_due, is_named, shortened};
use crate::json::{Broken, Members, Object, any_text, expected, members_of, needed, no_json, utf8};
use crate::number;

pub use framed::COMMAND_SCHEMA;
use select::{select, span_of};
use written::{AnswerWire, Before, CommandWire, EndedWire, LookedWire, StepWire, answer, ended};

/// What a record of the commands topic is: `step`, `answer` or `ended`; of campaigns `asked`, `campaign` or `report`. A request has no such
/// header.
pub const STAGE: &str = "retry-command-stage";

/// What a record of the commands topic is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// What somebody wants.
    Request,
    /// What a shard has to do for it.
    Step,
    /// What a shard has done for it.
    Answer,
    /// What became of it.
    Ended,
    /// What somebody wants of a campaign, passed on to its leader.
    Asked,
    /// How a campaign is.
    Campaign,
    /// What tasks of a campaign say.
    Report,
}

/// A record to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// Its key: the id of the command, or `campaign/NAME`.
    pub key: Bytes,
    /// Its headers.
    pub headers: Vec<Header>,
    /// Its value.
    pub value: Bytes,
}

/// Largest request: it is copied for each shard, with what retide adds to it, and has to fit a record of any broker.
pub const MAX_REQUEST: usize = 512 << 10;

/// Longest text of a refusal: it goes on into records and events.
pub const MAX_REFUSAL: usize = 512;

/// The shortest request, for those whose record is none.
const EXAMPLE: &str = r#"{"command":"cancel","select":{"id":"4711"}}"#;

/// The mark of UTF-8 that some programs put before a text.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// The keys of a request.
const KEYS: [&str; 11] = [
    "command",
    "select",
    "id",
    "by",
    "reason",
    "at",
    "in",
    "outcome",
    "error",
    "expires_in",
    "expires_at",
];

/// The keys that a step has besides.
const STEP_KEYS: [&str; 5] = ["place", "shards", "looked", "again", "before"];

/// The words for what is to be done.
const VERBS: [&str; 4] = ["cancel", "run-now", "reschedule", "complete"];

/// The words for what came of an attempt that was made elsewhere.
const OUTCOMES: [&str; 3] = ["success", "retryable", "permanent"];

/// Most keys of an object: more than any of them has, and bounded.
const MAX_KEYS: usize = 64;

/// Longest word that may be another one misspelt.
const LONGEST_WORD: usize = 24;

/// The class of a failure that a command tells without a class.
const TOLD: &str = "reported";

/// Who has written a command.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Writer {
    /// Somebody; what is not plausible is refused.
    Person,
    /// Retide, which has read it before.
    Retide,
}

/// Reads a record of the commands topic that stands at `place`; `tier` says which tier a topic is.
///
/// # Errors
/// If it is a request that cannot be done, or a record of retide's that it would not write.
pub fn decode(
    record: &Record,
    place: Place,
    tier: &dyn Fn(&str) -> Option<Source>,
) -> Result<Control, Box<Refusal>> {
    let value = record.value.as_deref().unwrap_or_default();
    let value = value.strip_prefix(BYTE_ORDER_MARK).unwrap_or(value);
    let framed = framed::json(value);
    let framed_text = framed.as_ref().and_then(|read| read.as_ref().ok());
    let said = framed_text.map_or(value, String::as_bytes);
    let refuse = |Broken(why): Broken| {
        Box::new(Refusal {
            place,
            id: known_id(said).unwrap_or_else(|| place.to_string().into()),
            why: clipped(&why, MAX_REFUSAL).into(),
        })
    };
    let stage = Stage::of(record).map_err(refuse)?;
    let control = match stage {
        Stage::Request => match &framed {
            Some(Err(Broken(why))) => Err(Broken(why.clone())),
            Some(Ok(_)) | None if campaign::is_request(said) => {
                campaign::request(said, place).map(|asked| Control::Ask(Arc::new(asked)))
            }
            Some(Ok(_)) | None => {
                request(said, place).map(|command| Control::Request(Arc::new(command)))
            }
        },
        Stage::Step => step(value, tier).map(Control::Step),
        Stage::Answer => answer(value, |value| step(value, tier)).map(Control::Answer),
        Stage::Ended => ended(value).map(Control::Ended),
        Stage::Asked => campaign::asked(value).map(|asked| Control::Ask(Arc::new(asked))),
        Stage::Campaign => campaign::read(value).map(|read| Control::Campaign(Box::new(read))),
        Stage::Report => campaign::report(value).map(Control::Report),
    };
    control.map_err(refuse)
}

/// Writes a record of the commands topic; `tier` names the topic of a tier.
pub fn encode(control: &Control, tier: &dyn Fn(Source) -> Arc<str>) -> Written {
    let (stage, place, id, value): (Stage, Place, &str, Bytes) = match control {
        Control::Request(command) => {
            let wire = CommandWire::of(command);
            (Stage::Request, command.place, &command.id, json(&wire))
        }
        Control::Step(Step {
            command,
            shards,
            again,
            before,
            looked,
        }) => {
            let looked = looked.as_ref().map(|looked| {
                let looked = looked.iter();
                let looked = looked.map(|Looked { source, to }| LookedWire {
                    topic: tier(*source),
                    to: *to,
                });
                looked.collect()
            });
            let wire = StepWire {
                command: CommandWire::of(command),
                place: command.place.to_string(),
                shards: *shards,
                looked,
                again: *again,
                before: (*before != Counts::default()).then_some(Before(*before)),
            };
            (Stage::Step, command.place, &command.id, json(&wire))
        }
        Control::Answer(answer) => {
            let again = answer.again.as_deref().map(|step| {
                let written = encode(&Control::Step(step.clone()), tier);
                String::from_utf8_lossy(&written.value).into_owned()
            });
            let wire = AnswerWire::of(answer, again);
            (Stage::Answer, answer.place, &answer.id, json(&wire))
        }
        Control::Ended(ended) => {
            let wire = EndedWire::of(ended);
            (Stage::Ended, ended.place, &ended.id, json(&wire))
        }
        Control::Ask(asked) => {
            let value = campaign::write_asked(asked);
            (Stage::Asked, asked.place, &asked.id, value)
        }
        Control::Campaign(campaign) => {
            let value = campaign::write(campaign);
            (Stage::Campaign, campaign.id.place, &campaign.id.name, value)
        }
        Control::Report(report) => {
            let value = campaign::write_report(report);
            let of = &report.campaign;
            (Stage::Report, of.place, &of.name, value)
        }
    };
    let headers = match stage {
        Stage::Request => Vec::new(),
        Stage::Step
        | Stage::Answer
        | Stage::Ended
        | Stage::Asked
        | Stage::Campaign
        | Stage::Report => vec![
            Header {
                name: Name::known(STAGE),
                value: Some(Bytes::from_static(stage.word().as_bytes())),
            },
            Header {
                name: Name::known(COMMAND),
                value: Some(place.to_string().into()),
            },
        ],
    };
    let key = match stage {
        Stage::Request | Stage::Step | Stage::Answer | Stage::Ended | Stage::Asked => {
            Bytes::copy_from_slice(id.as_bytes())
        }
        Stage::Campaign => format!("{CAMPAIGN}{id}").into(),
        Stage::Report => format!("report/{id}").into(),
    };
    Written {
        key,
        headers,
        value,
    }
}

/// Reads the selector of a request, `now` being what relative times count from.
///
/// # Errors
/// If it is empty, or cannot be read.
pub fn selector(value: &[u8], now: Timestamp) -> Result<Selector, Box<str>> {
    let read = || {
        let members = object(utf8(value)?, "select")?;
        select(members, now, Writer::Person)
    };
    read().map_err(|Broken(why)| clipped(&why, MAX_REFUSAL).into())
}

/// Reads a span of time as a selector has it, `now` being what relative times count from; `name` is what a refusal calls it.
///
/// # Errors
/// If it cannot be read.
pub fn span(name: &str, text: &str, now: Timestamp) -> Result<Span, Box<str>> {
    span_of(name, text, now, Writer::Person)
        .map_err(|Broken(why)| clipped(&why, MAX_REFUSAL).into())
}

// === impl Stage ===

impl Stage {
    /// Every stage, in their order.
    pub const ALL: [Self; 7] = [
        Self::Request,
        Self::Step,
        Self::Answer,
        Self::Ended,
        Self::Asked,
        Self::Campaign,
        Self::Report,
    ];

    /// The word for this stage in the header [`STAGE`].
    pub const fn word(self) -> &'static str {
        match self {
            Self::Request => "request",
            Self::Step => "step",
            Self::Answer => "answer",
            Self::Ended => "ended",
            Self::Asked => "asked",
            Self::Campaign => "campaign",
            Self::Report => "report",
        }
    }

    /// What a record is, by its last header of that name.
    fn of(record: &Record) -> Result<Self, Broken> {
        let mut headers = record.headers.iter();
        let Some(header) = headers.rfind(|header| is_named(header.name.as_bytes(), STAGE)) else {
            return Ok(Self::Request);
        };
        let word = header.value.as_deref().unwrap_or_default();
        let mut stages = Self::ALL.into_iter();
        let stage = stages.find(|stage| stage.word().as_bytes() == word);
        stage.ok_or_else(|| {
            let word = shortened(&word.escape_ascii().to_string());
            Broken(format!(
                "header {STAGE} is {word}, which this version does not know; leave it out of a request"
            ))
        })
    }
}

// === requests and steps ===

/// Reads a request.
fn request(value: &[u8], place: Place) -> Result<Command, Broken> {
    if value.len() > MAX_REQUEST {
        return Err(Broken(format!(
            "the command has {} bytes; it may have {MAX_REQUEST}: send several, each for some of the tasks",
            value.len()
        )));
    }
    let members = object(utf8(value)?, "")?;
    let members = Object::try_new("", members, &KEYS)?;
    command(&members, place, Writer::Person)
}

/// Reads a step.
fn step(value: &[u8], tier: &dyn Fn(&str) -> Option<Source>) -> Result<Step, Broken> {
    let members = object(utf8(value)?, "")?;
    let keys = [&KEYS[..], &STEP_KEYS].concat();
    let members = Object::try_new("", members, &keys)?;
    let place = needed(&members, "place", "the place of a request")?;
    let shards = needed(&members, "shards", "a number of shards")?;
    let shards = number::whole(shards.get()).and_then(|shards| u32::try_from(shards).ok());
    let looked = members.get("looked").map(|raw| {
        let looked: Vec<LookedWire> = serde_json::from_str(raw.get())
            .map_err(|_| expected("looked", raw, "an array of topics and offsets"))?;
        // Of a tier that is not there any more, nothing is left to be looked at.
        let looked = looked.into_iter();
        let looked = looked.filter_map(|LookedWire { topic, to }| {
            let source = tier(&topic)?;
            Some(Looked { source, to })
        });
        Ok(looked.collect())
    });
    Ok(Step {
        command: Arc::new(command(
            &members,
            place_of("place", place)?,
            Writer::Retide,
        )?),
        shards: shards
            .filter(|shards| *shards > 0)
            .ok_or_else(|| Broken("shards: a number of shards expected".to_owned()))?,
        again: members.get("again").is_some_and(|raw| raw.get() == "true"),
        before: match members.get("before") {
            None => Counts::default(),
            Some(raw) => {
                let before: Before = serde_json::from_str(raw.get())
                    .map_err(|_| expected("before", raw, "counts"))?;
                before.0
            }
        },
        looked: looked.transpose()?,
    })
}

/// Reads a command that stands at `place`.
fn command(members: &Object<'_>, place: Place, writer: Writer) -> Result<Command, Broken> {
    let now = place.at;
    let verb = needed(members, "command", &format!("one of {}", VERBS.join(", ")))?;
    let word = any_text("command", verb)?;
    let verb = verb_of(&word, members, now, writer)?;
    let selector = needed(members, "select", "an object that says which tasks")?;
    let selector = object(selector.get(), "select")?;
    Ok(Command {
        place,
        id: match members.get("id") {
            Some(raw) => id("id", raw)?,
            None => place.to_string().into(),
        },
        verb,
        selector: select(selector, now, writer)?,
        by: line(members, "by")?,
        reason: line(members, "reason")?,
        expires: expiry(members, now, writer)?,
    })
}

/// What is to be done, by its word and the keys that belong to it.
fn verb_of(
    word: &str,
    members: &Object<'_>,
    now: Timestamp,
    writer: Writer,
) -> Result<Verb, Broken> {
    let only = |of: &str, keys: &[&str]| match keys.iter().find(|key| members.get(key).is_some()) {
        Some(key) => Err(Broken(format!(
            "{key} is said, which belongs to the command {of}; this one is {word}"
        ))),
        None => Ok(()),
    };
    if word != "reschedule" {
        only("reschedule", &["at", "in"])?;
    }
    if word != "complete" {
        only("complete", &["outcome", "error"])?;
    }
    match word {
        "cancel" => Ok(Verb::Cancel),
        "run-now" => Ok(Verb::RunNow),
        "reschedule" => Ok(Verb::Reschedule {
            due: due(members, now, writer)?,
        }),
        "complete" => Ok(Verb::Complete(outcome(members)?)),
        _ => Err(one_of("command", word, &VERBS)),
    }
}

/// When a task is to be due.
fn due(members: &Object<'_>, now: Timestamp, writer: Writer) -> Result<Timestamp, Broken> {
    match (members.get("at"), members.get("in")) {
        (Some(_), Some(_)) => Err(Broken(
            "both at and in are said; one of them is expected".to_owned(),
        )),
        (None, None) => Err(Broken(
            "reschedule needs at (a time) or in (a duration such as 10m)".to_owned(),
        )),
        (Some(raw), None) => {
            let at = instant("at", raw)?;
            if writer == Writer::Person {
                check_due("at", at, now).map_err(|why| Broken(why.into()))?;
            }
            Ok(Timestamp::from_millis(at))
        }
        (None, Some(raw)) => {
            let wait = duration("in", raw)?;
            if wait > MAX_DELAY {
                let most = span::human(MAX_DELAY.as_millis() as u64);
                return Err(Broken(format!("in is over {most}, the longest wait")));
            }
            Ok((now + wait).ceil_to_millis())
        }
    }
}

/// What came of an attempt that was made elsewhere.
fn outcome(members: &Object<'_>) -> Result<Outcome, Broken> {
    let word = needed(
        members,
        "outcome",
        &format!("one of {}", OUTCOMES.join(", ")),
    )?;
    let word = any_text("outcome", word)?;
    let error = members.get("error");
    let error = error.map(|raw| any_text("error", raw)).transpose()?;
    let failure = || {
        let reason = line(members, "reason")?;
        Ok(match error.as_deref() {
            None if reason.is_empty() => Failure::new(TOLD, "told by a command"),
            None => Failure::new(TOLD, &reason),
            Some(text) => match text.split_once(": ") {
                Some((class, message)) if !class.is_empty() => Failure::new(class, message),
                Some(_) | None => Failure::new(TOLD, text),
            },
        })
    };
    match &*word {
        "success" if error.is_some() => Err(Broken(
            "error is said, and outcome is success; leave one of them out".to_owned(),
        )),
        "success" => Ok(Outcome::Success),
        "retryable" => failure().map(Outcome::Retryable),
        "permanent" => failure().map(Outcome::Permanent),
        _ => Err(one_of("outcome", &word, &OUTCOMES)),
    }
}

/// Until when a command waits for tasks that do not exist yet.
fn expiry(members: &Object<'_>, now: Timestamp, writer: Writer) -> Result<Timestamp, Broken> {
    let expires = match (members.get("expires_in"), members.get("expires_at")) {
        (Some(_), Some(_)) => {
            return Err(Broken(
                "both expires_in and expires_at are said; one of them is expected".to_owned(),
            ));
        }
        (None, None) => now + EXPIRY,
        (Some(raw), None) => now + duration("expires_in", raw)?,
        (None, Some(raw)) => Timestamp::from_millis(instant("expires_at", raw)?),
    };
    let expires = expires.ceil_to_millis();
    if writer == Writer::Retide {
        return Ok(expires);
    }
    if expires < now {
        let late = span::human(now.since(expires).as_millis() as u64);
        return Err(Broken(format!(
            "the command expired {late} before the broker got it; send it again if it is still wanted"
        )));
    }
    if expires > now + LONGEST {
        let most = span::human(LONGEST.as_millis() as u64);
        return Err(Broken(format!(
            "a command expires after {most} at the latest; name an earlier time"
        )));
    }
    Ok(expires)
}

// === values ===

/// The members of the object at `path`.
fn object<'a>(text: &'a str, path: &str) -> Result<Members<'a>, Broken> {
    let text = text.trim_start();
    if text.is_empty() {
        return Err(Broken(format!(
            "there is no value; a command is JSON, such as {EXAMPLE}"
        )));
    }
    if !text.starts_with('{') {
        let text = shortened(text);
        return Err(Broken(if path.is_empty() {
            format!("{text} is no command; JSON is expected, such as {EXAMPLE}")
        } else {
            format!("{path} is {text}; an object is expected")
        }));
    }
    let mut members = Vec::new();
    members_of(text, MAX_KEYS, &mut members).map_err(|error| no_json(text, MAX_KEYS, &error))?;
    Ok(members)
}

/// A word that is none of those that are known, and which one may be meant.
fn one_of(path: &str, word: &str, words: &[&str]) -> Broken {
    let letters = |text: &str| text.to_ascii_lowercase().replace(['_', ' '], "-");
    // Longer ones are not like any.
    let like = (word.len() <= LONGEST_WORD).then(|| {
        let letters = letters(word);
        let distance = |known: &&str| strsim::damerau_levenshtein(&letters, known);
        words.iter().map(|known| (distance(known), *known)).min()
    });
    let (said, word) = (word.to_owned(), shortened(word));
    Broken(match like.flatten() {
        Some((distance, known))
            if distance <= known.len() / 3 || letters(&said).starts_with(known) =>
        {
            format!("{path} is {word}; did you mean {known}?")
        }
        Some(_) | None => format!("{path} is {word}; one of {} expected", words.join(", ")),
    })
}

/// The id of a command: one line, not empty.
fn id(path: &str, raw: &RawValue) -> Result<Arc<str>, Broken> {
    let text = any_text(path, raw)?;
    if text.is_empty() {
        return Err(Broken(format!(
            "{path} is empty; leave it out, or name one"
        )));
    }
    if text.len() > MAX_ID {
        return Err(Broken(format!(
            "{path} has {} bytes; it may have {MAX_ID}",
            text.len()
        )));
    }
    if text.contains(char::is_control) {
        return Err(Broken(format!(
            "{path} is {}; one line is expected",
            shortened(&text.escape_debug().to_string())
        )));
    }
    Ok(text.into())
}

/// A text for people; nothing if it is not there.
fn line(members: &Object<'_>, key: &str) -> Result<Box<str>, Broken> {
    let Some(raw) = members.get(key) else {
        return Ok("".into());
    };
    let text = any_text(key, raw)?;
    if text.len() > MAX_TEXT {
        return Err(Broken(format!(
            "{key} has {} bytes; it may have {MAX_TEXT}",
            text.len()
        )));
    }
    Ok(text.into())
}

/// A point in time, in milliseconds since the epoch.
fn instant(path: &str, raw: &RawValue) -> Result<u64, Broken> {
    let text = any_text(path, raw)?;
    let number = number::whole(&text).or_else(|| number::rfc3339(&text));
    let number = number.and_then(|number| u64::try_from(number).ok());
    number.ok_or_else(|| {
        let hint = number::hint(&text).unwrap_or_default();
        let text = shortened(&text);
        Broken(format!(
            "{path} is {text}{hint}; a time as 2026-12-24T18:00:00Z, or milliseconds since 1970, expected"
        ))
    })
}

/// A duration.
fn duration(path: &str, raw: &RawValue) -> Result<Duration, Broken> {
    let text = any_text(path, raw)?;
    span::parse(&text).map_err(|error| Broken(format!("{path}: {error}")))
}

/// The place of a request.
fn place_of(path: &str, raw: &RawValue) -> Result<Place, Broken> {
    let text = any_text(path, raw)?;
    let place = text.parse();
    place.map_err(|()| {
        let text = shortened(&text);
        Broken(format!(
            "{path} is {text}; millis/partition/offset expected"
        ))
    })
}

/// The id of a command that is refused, if it can be read.
fn known_id(value: &[u8]) -> Option<Arc<str>> {
    let text = utf8(value).ok()?;
    let mut members = Vec::new();
    // What was wrong has been told.
    let _ = members_of(text, MAX_KEYS, &mut members);
    let (_, raw) = members.iter().rfind(|(key, _)| key == "id")?;
    id("id", raw).ok()
}

/// At most `limit` bytes of a text, with a mark if there were more.
fn clipped(text: &str, limit: usize) -> String {
    if text.len() <= limit {
        return text.to_owned();
    }
    let mut end = limit - '…'.len_utf8();
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}…", &text[..end])
}

/// The JSON of a record.
fn json(value: &impl Serialize) -> Bytes {
    serde_json::to_vec(value)
        .unwrap_or_else(|error| unreachable!("texts and numbers are JSON: {error}"))
        .into()
}
