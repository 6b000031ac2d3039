//! What a replay changes in dead letters: one of them in an editor, or the payloads of many by a patch.
//!
//! The text that is edited is like a message of HTTP: a line for each header, an empty line, the payload. Not what is made of a payload, which
//! is `retide-avro`'s. Invariant: what cannot be edited as text stays as it is.

use std::env;
use std::fs;
use std::io::{self, Read, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::Command;

use bytes::Bytes;
use serde::Serialize;
use serde_json::{Map, Value};
use similar::TextDiff;

use retide_avro::letter;
use retide_config::Config;
use retide_core::campaign::{Edit, Spec, is_stripped};
use retide_core::{Header, Record};

use crate::cli::output::{Exit, Failed};
use crate::cli::terminal;

use super::find::{self, Found, Wanted};
use super::lacking::{Lacking, Whole};
use super::payload::{Form, Room, pretty};
use super::replay::Past;

/// What is different about a dead letter.
#[derive(Debug, Serialize)]
pub(super) struct Difference {
    /// The identity of its task.
    pub(super) id: String,
    /// Its lines, each with ` `, `-` or `+` before it.
    pub(super) diff: String,
}

/// A dead letter that is edited.
struct Edited {
    /// Its record, without what retide has written on it.
    record: Record,
    /// Its identity.
    id: String,
    /// Whether it has its payload, at least since that was fetched.
    whole: Whole,
}

/// What somebody has made of a text.
#[derive(Debug, PartialEq, Eq)]
struct Changes {
    /// Headers that are set, with all of their values.
    set: Vec<(String, String)>,
    /// Headers that are there no more.
    removed: Vec<String>,
    /// The payload, if it is another one.
    payload: Option<String>,
}

/// What stands before the headers of a text that is edited.
const HELP: &str = "\
# The headers and the payload of a dead letter, as its task is to have them.
# A header is a line; behind the empty line is the payload. Lines with # before
# the empty line are left out. Without a change, nothing is replayed.
";

/// The same, of a payload that is no text.
const NO_TEXT: &str = "# The payload is no text: it is not here, and stays as it is.\n";

/// The same, of a payload that the dead letter lacks and that was not found.
const LACKING: &str = "\
# The payload is not here: the dead letter lacks it, and it was not found where
# the task entered. What is written behind the empty line is the payload.
";

/// Lines around a change that are shown.
const AROUND: usize = 3;

/// The patch in a file, or on the standard input for `-`.
pub(super) fn patch(path: &Path) -> Result<String, Failed> {
    let read = if path.as_os_str() == "-" {
        let mut text = String::new();
        io::stdin().read_to_string(&mut text).map(|_| text)
    } else {
        fs::read_to_string(path)
    };
    read.map_err(|error| {
        let message = format!("--edit: {} cannot be read: {error}", path.display());
        Failed::because(Exit::Usage, message)
    })
}

/// Lets somebody edit the one dead letter that is meant, and puts what is other then among the keys of the request.
pub(super) fn in_editor(
    config: &Config,
    wanted: &Wanted,
    past: &Past,
    keys: &mut Map<String, Value>,
) -> Result<(), Failed> {
    let Some(editor) = editor() else {
        let message = "--edit: no editor is known; set EDITOR, or name a file with a JSON patch";
        return Err(Failed::because(Exit::Usage, message));
    };
    let is_one = keys.get("select").and_then(|select| select.get("id"));
    let is_one = is_one.is_some_and(|id| id.as_array().is_none_or(|ids| ids.len() == 1));
    if !is_one {
        let message = "--edit without a file is for one dead letter: say which with --id";
        return Err(Failed::because(Exit::Usage, message));
    }
    let edited = only(config, wanted, past)?;
    let before = edited.text();
    let after = edit(&editor, &before)?;
    let changes = edited.changes(&after)?;
    if changes.is_none() {
        return Err(Failed::because(
            Exit::Failure,
            "nothing was changed, and nothing was sent",
        ));
    }
    changes.put(keys);
    Ok(())
}

/// What a campaign changes in a dead letter whose payload becomes this one, if it becomes another one; nothing if it changes nothing.
pub(super) fn difference(
    found: &Found<'_>,
    spec: &Spec,
    payload: Option<Bytes>,
) -> Option<Difference> {
    let before = letter::record_of(found.record.clone());
    let mut after = before.clone();
    after.value = payload.or(after.value);
    after.headers.retain(|header| !spec.changes(&header.name));
    after.headers.extend(spec.set_headers.iter().cloned());
    let (before, after) = (lines(&before), lines(&after));
    if before == after {
        return None;
    }
    let diff = TextDiff::from_lines(&before, &after);
    let diff = diff.unified_diff().context_radius(AROUND).to_string();
    Some(Difference {
        id: found.letter.id.clone(),
        diff,
    })
}

/// The dead letter that is meant, which is the only one that would be replayed.
fn only(config: &Config, wanted: &Wanted, past: &Past) -> Result<Edited, Failed> {
    let (mut open, mut lacking) = (Vec::new(), Lacking::of(config));
    // Whoever edits it may give it a payload, if it lacks its own.
    let given = Edit::Payload(Bytes::new());
    let looked = find::each(config, wanted, |mut found| {
        if past.ineligible(&found, Some(&given)).is_none() {
            let whole = lacking.look(&mut found, None);
            open.push(Edited {
                id: found.letter.id.clone(),
                record: letter::record_of(found.record),
                whole: whole.unwrap_or(Whole::NotYet),
            });
        }
        if open.len() > 1 {
            return ControlFlow::Break(());
        }
        ControlFlow::Continue(())
    })?;
    match open.pop() {
        Some(edited) if open.is_empty() => Ok(edited),
        Some(_) => {
            let message = "several dead letters have this id, and would all be what is edited; say which with --died FROM..TO";
            Err(Failed::because(Exit::Usage, message))
        }
        None => {
            looked.end("")?;
            let message =
                "no dead letter with this id can be replayed; --dry-run without --edit says why";
            Err(Failed::because(Exit::NotFound, message))
        }
    }
}

/// The editor of whoever uses this.
fn editor() -> Option<String> {
    let named = ["VISUAL", "EDITOR"].map(|name| env::var(name).ok());
    let mut named = named.into_iter().flatten();
    named.find(|editor| !editor.trim().is_empty())
}

/// Lets somebody edit a text, in a file that only they can read.
fn edit(editor: &str, text: &str) -> Result<String, Failed> {
    let failed = |what: &str, error: &dyn std::fmt::Display| {
        let message = format!("--edit: {what}: {error}; nothing was sent");
        Failed::because(Exit::Failure, message)
    };
    let file = tempfile::Builder::new()
        .prefix("dead-letter-")
        .suffix(".txt")
        .tempfile();
    let mut file = file.map_err(|error| failed("no file can be made", &error))?;
    file.write_all(text.as_bytes())
        .and_then(|()| file.flush())
        .map_err(|error| failed("the file cannot be written", &error))?;
    let path: PathBuf = file.path().to_owned();
    // As git does it: the variable may have options in it.
    let status = Command::new("sh")
        .args(["-c", &format!("{editor} \"$@\""), "editor"])
        .arg(&path)
        .status()
        .map_err(|error| failed("the editor does not start", &error))?;
    if !status.success() {
        return Err(failed("the editor has failed", &status));
    }
    // Many editors put another file in its place.
    fs::read_to_string(&path).map_err(|error| failed("the file cannot be read", &error))
}

/// The headers that a task keeps when it is replayed, and that are text.
fn kept(record: &Record) -> impl Iterator<Item = (&str, &str)> {
    fn texts(header: &Header) -> Option<(&str, &str)> {
        let name = std::str::from_utf8(header.name.as_bytes()).ok()?;
        let value = std::str::from_utf8(header.value.as_ref()?).ok()?;
        let is_line = |text: &str| !text.contains(char::is_control);
        let is_text = is_line(name) && is_line(value) && value.trim() == value;
        let is_name = !name.contains([':', '#']) && name.trim() == name && !name.is_empty();
        (is_text && is_name).then_some((name, value))
    }
    let headers = record.headers.iter();
    let headers = headers.filter(|it| !is_stripped(&it.name));
    headers.filter_map(texts)
}

/// The payload, if it is text.
fn payload(record: &Record) -> Option<&str> {
    let bytes = record.value.as_deref().unwrap_or_default();
    match Form::of(bytes) {
        Form::Json | Form::Text => std::str::from_utf8(bytes).ok(),
        Form::Binary => None,
    }
}

/// A dead letter as lines that are compared.
fn lines(record: &Record) -> String {
    let mut lines = String::new();
    for header in &record.headers {
        if !is_stripped(&header.name) {
            let value = header.value.as_deref().unwrap_or_default();
            let value = String::from_utf8_lossy(value);
            let name = header.name.to_string();
            lines.extend([&terminal::line(&name), ": ", &terminal::line(&value), "\n"]);
        }
    }
    lines.push('\n');
    let (text, _) = pretty(record.value.as_deref().unwrap_or_default(), Room::SOME);
    lines.push_str(&text);
    lines.push('\n');
    lines
}

// === impl Edited ===

impl Edited {
    /// The text that is edited.
    fn text(&self) -> String {
        let mut text = format!("# {}\n{HELP}", terminal::line(&self.id));
        let payload = payload(&self.record);
        if payload.is_none() {
            text.push_str(NO_TEXT);
        }
        match self.whole {
            Whole::Yes => {}
            Whole::NotYet => text.push_str(LACKING),
        }
        for (name, value) in kept(&self.record) {
            text.extend([name, ": ", value, "\n"]);
        }
        text.push('\n');
        text.push_str(payload.unwrap_or_default());
        if !text.ends_with('\n') {
            text.push('\n');
        }
        text
    }

    /// What is other in a text that was edited.
    fn changes(&self, text: &str) -> Result<Changes, Failed> {
        let (head, body) = match text.split_once("\n\n") {
            Some((head, body)) => (head, body),
            None => (text.trim_end_matches('\n'), ""),
        };
        let mut after = Vec::new();
        for line in head.lines().filter(|line| !line.starts_with('#')) {
            let Some((name, value)) = line.split_once(':') else {
                let message = format!(
                    "--edit: {} is no header: NAME: VALUE expected, and an empty line before the payload; nothing was sent",
                    terminal::line(line)
                );
                return Err(Failed::because(Exit::Usage, message));
            };
            after.push((name.trim().to_owned(), value.trim().to_owned()));
        }
        let before: Vec<_> = kept(&self.record)
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect();
        let of = |all: &[(String, String)], name: &str| -> Vec<String> {
            let all = all.iter().filter(|(it, _)| it.eq_ignore_ascii_case(name));
            all.map(|(_, value)| value.clone()).collect()
        };
        let is_other = |name: &str| of(&before, name) != of(&after, name);
        let set = after.iter().filter(|(name, _)| is_other(name));
        let set: Vec<_> = set.cloned().collect();
        let mut removed: Vec<String> = Vec::new();
        for (name, _) in &before {
            let is_known = removed.iter().any(|it| it.eq_ignore_ascii_case(name));
            if of(&after, name).is_empty() && !is_known {
                removed.push(name.clone());
            }
        }
        let payload = match payload(&self.record) {
            Some(before) => {
                // Editors end the last line, also where it had no end.
                let ended = body.strip_suffix('\n').filter(|_| !before.ends_with('\n'));
                Some(ended.unwrap_or(body)).filter(|after| *after != before)
            }
            None if body.trim().is_empty() => None,
            None => {
                let message =
                    "--edit: the payload is no text, and cannot be given here; nothing was sent";
                return Err(Failed::because(Exit::Usage, message));
            }
        };
        Ok(Changes {
            set,
            removed,
            payload: payload.map(str::to_owned),
        })
    }
}

// === impl Changes ===

impl Changes {
    /// Whether nothing is other.
    fn is_none(&self) -> bool {
        self.set.is_empty() && self.removed.is_empty() && self.payload.is_none()
    }

    /// Puts them among the keys of a request.
    fn put(self, keys: &mut Map<String, Value>) {
        let mut add = |key: &str, more: Vec<Value>| {
            if more.is_empty() {
                return;
            }
            let all = keys.entry(key).or_insert_with(|| Value::Array(Vec::new()));
            if let Value::Array(all) = all {
                all.extend(more);
            }
        };
        let set = self.set.into_iter().map(|(name, value)| {
            let pairs = [("name", name), ("value", value)];
            let pairs = pairs.map(|(key, text)| (key.to_owned(), text.into()));
            Value::Object(pairs.into_iter().collect())
        });
        add("set_headers", set.collect());
        add(
            "remove_headers",
            self.removed.into_iter().map(Value::from).collect(),
        );
        if let Some(payload) = self.payload {
            keys.insert("payload".to_owned(), payload.into());
        }
    }
}
