//! `retide dead-letters show`: headers, payload, and what became of the task.
//!
//! The story is that of `retide explain`, read from the partition of the dead letter. Invariant: what is held in memory is bounded by what is
//! shown, which is at most [`MOST`] records.

use std::fmt::Write as _;
use std::ops::ControlFlow;
use std::time::Instant;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;

use retide_config::Config;
use retide_core::{Header, Record, Timestamp};
use retide_history::search::{Found as Facts, Query};
use retide_history::timeline::{self, Timeline};
use retide_kafka::cluster::User;
use retide_shell::clock;

use crate::cli::explain;
use crate::cli::output::{Exit, Failed, Output, put, say};
use crate::cli::reach::topics;
use crate::cli::terminal;

use super::find::{self, Looked, Wanted};
use super::line::Line;
use super::ls::Newest;
use super::payload::{self, Form, Room};

/// Most dead letters that are shown: each may have 2 MiB.
pub(super) const MOST: i64 = 50;

/// A dead letter that is shown.
struct Kept {
    /// What is known of it.
    line: Line,
    /// Its record.
    record: Record,
    /// When its task entered, if an attempt was made: the entry is read from there.
    entered: Option<Timestamp>,
}

/// A dead letter in JSON.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Document<'a> {
    /// What is known of it.
    #[serde(flatten)]
    line: &'a Line,
    /// All headers, byte for byte, in their order.
    record_headers: Vec<HeaderDocument>,
    /// The payload.
    #[serde(skip_serializing_if = "Option::is_none")]
    payload: Option<PayloadDocument>,
    /// What became of the task; more than one if the identity was used more than once.
    #[serde(skip_serializing_if = "Option::is_none")]
    stories: Option<Vec<Timeline>>,
}

/// A header in JSON.
#[derive(Serialize)]
struct HeaderDocument {
    /// Its name; escaped where it is no text.
    name: String,
    /// Its value, if that is text.
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<String>,
    /// Its value, if that is no text.
    #[serde(skip_serializing_if = "Option::is_none")]
    base64: Option<String>,
}

/// A payload in JSON.
#[derive(Serialize)]
struct PayloadDocument {
    /// How long it is.
    bytes: usize,
    /// What it is: `json`, `text` or `binary`.
    form: &'static str,
    /// The payload, if it is text.
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<String>,
    /// The payload.
    base64: String,
}

/// Shows dead letters.
pub(super) fn show(config: &Config, options: &super::Show, output: Output) -> Result<(), Failed> {
    let wanted = Wanted::of(&options.which)?;
    if !wanted.is_said() {
        let message = "say which dead letters: --id, --fingerprint, --died, or another option";
        return Err(Failed::because(Exit::Usage, message));
    }
    let mut newest = Newest::new(options.limit as usize);
    let looked = find::each(config, &wanted, |found| {
        newest.add(&found, |found| Kept {
            line: Line::of(found),
            record: found.record.clone(),
            entered: found
                .letter
                .entered
                .filter(|_| found.letter.attempts > Some(0)),
        });
        ControlFlow::Continue(())
    })?;
    let letters: Vec<Kept> = newest.newest_first().collect();
    let unread = told(config, options, &letters, output)?;
    let shown = letters.len() as u64;
    end(&looked, shown, &unread)
}

/// Tells of each; gives what was not read to its end for the stories.
fn told(
    config: &Config,
    options: &super::Show,
    letters: &[Kept],
    output: Output,
) -> Result<Vec<String>, Failed> {
    let deadline = Instant::now() + options.which.timeout;
    let room = if options.whole { Room::ALL } else { Room::SOME };
    let mut unread = Vec::new();
    for (number, kept) in letters.iter().enumerate() {
        let stories = if options.no_story {
            None
        } else {
            story(config, kept, deadline, &mut unread)
        };
        match output {
            Output::Table => {
                if number > 0 {
                    put("")?;
                }
                put(&kept.text(stories.as_deref(), room))?;
            }
            Output::Json => {
                let sign = if number == 0 { "[" } else { "," };
                let json = serde_json::to_string_pretty(&kept.document(stories));
                put(&format!("{sign}\n{}", json.map_err(std::io::Error::from)?))?;
            }
            Output::Ndjson => {
                let json = serde_json::to_string(&kept.document(stories));
                put(&json.map_err(std::io::Error::from)?)?;
            }
        }
    }
    if output == Output::Json {
        put(if letters.is_empty() { "[]" } else { "]" })?;
    }
    unread.sort();
    unread.dedup();
    Ok(unread)
}

/// What became of the task of a dead letter, as the topics tell it; what cannot be read is said, and is no reason not to show the rest.
fn story(
    config: &Config,
    kept: &Kept,
    deadline: Instant,
    unread: &mut Vec<String>,
) -> Option<Vec<Timeline>> {
    let query = Query {
        id: kept.line.id.clone(),
        // What is said of a task stands on the partition by which it entered, and so does its dead letter.
        partition: Some(kept.line.partition),
        from: kept.entered.map(|entered| entered.before(explain::MARGIN)),
        deadline,
    };
    let topics = topics(config);
    let Facts {
        facts, readings, ..
    } = match explain::look(config, &topics, &query, User::DeadLetters) {
        Ok(found) => found,
        Err(failed) => {
            let why = failed.message().unwrap_or("it cannot be read").to_owned();
            say(&format!("note: without the story of {}: {why}", query.id));
            return None;
        }
    };
    unread.extend(explain::unread(&readings));
    let now = clock::timestamp();
    let stories = timeline::tell(facts, &config.topics.tiers, now);
    // An id may have been used more than once: the one of this dead letter, if that can be told.
    let (own, others): (Vec<Timeline>, Vec<Timeline>) = stories
        .into_iter()
        .partition(|story| story.origin == kept.line.origin);
    Some(if own.is_empty() { others } else { own })
}

/// Says what was read, and what was not.
fn end(looked: &Looked, shown: u64, unread: &[String]) -> Result<(), Failed> {
    looked.end_newest(shown)?;
    if unread.is_empty() {
        return Ok(());
    }
    let message = format!(
        "stories may lack something, not read to the end: {}; --timeout gives more time",
        unread.join(", ")
    );
    Err(Failed::because(Exit::Partly, message))
}

// === impl Kept ===

impl Kept {
    /// All of it, for people.
    fn text(&self, stories: Option<&[Timeline]>, room: Room) -> String {
        let rows = self.line.rows().into_iter();
        let rows = rows.map(|(name, value)| format!("{name:<15}{}", terminal::line(&value)));
        let mut parts: Vec<String> = rows.collect();
        for header in &self.record.headers {
            let (name, value) = (header.name.to_string(), shown(header));
            parts.push(format!(
                "{:<15}{}: {value}",
                "header",
                terminal::line(&name)
            ));
        }
        parts.push(match &self.record.value {
            None => format!("{:<15}none", "payload"),
            Some(bytes) => {
                let (text, left) = payload::pretty(bytes, room);
                let form = Form::of(bytes).word();
                let mut part = format!("{:<15}{} bytes, {form}", "payload", bytes.len());
                if !bytes.is_empty() {
                    part.push('\n');
                    part.push_str(&text);
                }
                if left > 0 {
                    // Writing to a string cannot fail.
                    let _ = write!(part, "\n… {left} bytes more: --whole shows them");
                }
                part
            }
        });
        let of = stories.map_or(0, <[Timeline]>::len);
        for (number, story) in stories.unwrap_or_default().iter().enumerate() {
            parts.push(explain::table(&self.line.id, story, (number + 1, of)));
        }
        parts.join("\n")
    }

    /// All of it, for programs.
    fn document(&self, stories: Option<Vec<Timeline>>) -> Document<'_> {
        let headers = self.record.headers.iter();
        let payload = self.record.value.as_ref().map(|bytes| PayloadDocument {
            bytes: bytes.len(),
            form: Form::of(bytes).word(),
            text: str::from_utf8(bytes).ok().map(str::to_owned),
            base64: STANDARD.encode(bytes),
        });
        Document {
            line: &self.line,
            record_headers: headers.map(HeaderDocument::of).collect(),
            payload,
            stories,
        }
    }
}

impl HeaderDocument {
    /// A header.
    fn of(header: &Header) -> Self {
        let value = header.value.as_deref();
        let text = value.and_then(|value| str::from_utf8(value).ok());
        Self {
            name: header.name.to_string(),
            value: text.map(str::to_owned),
            base64: value
                .filter(|_| text.is_none())
                .map(|value| STANDARD.encode(value)),
        }
    }
}

/// The value of a header, for people.
fn shown(header: &Header) -> String {
    /// Bytes of a value that is no text which are shown.
    const BYTES: usize = 32;
    /// Letters of a value which are shown: enough for any that people write.
    const LETTERS: usize = 1_024;
    let Some(value) = header.value.as_deref() else {
        return "(no value)".to_owned();
    };
    let Ok(text) = str::from_utf8(value) else {
        let bytes = value.iter().take(BYTES);
        let bytes: Vec<String> = bytes.map(|byte| format!("{byte:02x}")).collect();
        let rest = if value.len() > BYTES { " …" } else { "" };
        return format!("{} bytes, no text: {}{rest}", value.len(), bytes.join(" "));
    };
    match text.char_indices().nth(LETTERS) {
        Some((end, _)) => {
            let left = text.len() - end;
            format!("{} … {left} bytes more", terminal::line(&text[..end]))
        }
        None => terminal::line(text),
    }
}
