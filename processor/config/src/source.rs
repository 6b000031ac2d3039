//! Where the configuration is read: a file, and environment variables over it. Errors say where, which key, what was expected.
//!
//! Not what the keys mean. Invariant: no value of a secret key is ever part of an error.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::io;
use std::iter;
use std::path::Path;

use serde::de::DeserializeOwned;
use serde_path_to_error::{Segment, Track};
use toml::de::{DeTable, DeValue};
use toml::{Spanned, Table, Value};

/// What the names of the variables that are read begin with; `__` stands between the keys.
const VARIABLES: &str = "RETIDE__";

/// The end of the name of a variable that names a file with the value in it.
const FROM_FILE: &str = "_FILE";

/// The section whose keys are the Kafka client's: its names have dots where variables have underscores, its values are text.
const KAFKA: &str = "kafka";

/// The section whose keys are names of the user's.
const SCENES: &str = "scenes";

/// The section whose keys are the names of profiles.
const TLS: &str = "tls";

/// What stands in the place of a secret where it is not shown. No value that is read may have it.
pub const MASKED: &str = "<masked>";

/// What some editors begin a file with.
const MARK: char = '\u{feff}';

/// Most mistakes that are told at once.
const MOST: usize = 20;

/// Most edits between a key and the one that was probably meant: two letters swapped, or two typed wrong.
const EDITS: usize = 2;

/// Words in the name of a key whose value must not be shown.
const SECRETS: [&str; 7] = [
    "password",
    "secret",
    "key",
    "token",
    "jaas",
    "authorization",
    "headers",
];

/// What was read, not yet given meaning.
#[derive(Debug, Default)]
pub struct Source {
    /// The keys and values of the file, with those of the variables over them.
    table: Table,
    /// The name and the text of the file, if there is one.
    file: Option<(String, String)>,
    /// The variables.
    variables: Vec<Variable>,
}

/// A variable that sets a key.
#[derive(Clone, Debug)]
struct Variable {
    /// Its name.
    name: String,
    /// The way to the key.
    keys: Vec<String>,
    /// Its text, or that of the file it names.
    text: String,
    /// Whether it names a file.
    names_file: bool,
}

/// What was read, and what is wrong with it.
#[derive(Debug)]
pub struct Found<T> {
    /// What was read, without what is wrong with it.
    pub value: Option<T>,
    /// What is wrong.
    wrong: Vec<Error>,
    /// Where that stands, which `value` does not have.
    left_out: BTreeSet<Vec<String>>,
}

/// Why a configuration was refused.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file cannot be read.
    #[error("read {file}")]
    Read {
        /// The file, and the variable that names it, if one does.
        file: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Something in it is wrong.
    #[error("{place}{path}{message}")]
    Invalid {
        /// The file, line and column, or the variable.
        place: Place,
        /// The keys that lead to what is wrong.
        path: Keys,
        /// What is wrong.
        message: String,
    },
    /// Several things in it are wrong.
    #[error("{}", lines(.0))]
    Several(Vec<Error>),
}

/// Where something was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// Nowhere in particular.
    Unknown,
    /// In a file; line and column count from 1.
    File {
        /// Its name.
        file: String,
        /// The line.
        line: usize,
        /// The character in the line.
        column: usize,
    },
    /// In an environment variable of this name.
    Variable(String),
}

/// The keys that lead to a value, outermost first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Keys(pub Vec<String>);

// === impl Source ===

impl Source {
    /// Reads a file, which must exist.
    pub fn file(path: &Path) -> Result<Self, Error> {
        let file = path.display().to_string();
        let text = fs::read_to_string(path).map_err(|source| Error::Read {
            file: file.clone(),
            source,
        })?;
        Self::text(&file, text)
    }

    /// Reads the text of a file called `file`.
    pub fn text(file: &str, mut text: String) -> Result<Self, Error> {
        // Some editors begin a file with a mark that says how it is encoded.
        if text.starts_with(MARK) {
            text.remove(0);
        }
        let table = toml::from_str(&text).map_err(|error| {
            let offset = error.span().map_or(0, |span| span.start);
            Error::Invalid {
                place: Place::line(file, &text, offset),
                path: Keys::default(),
                message: error.message().lines().collect::<Vec<_>>().join(", "),
            }
        })?;
        Ok(Self {
            table,
            file: Some((file.to_owned(), text)),
            variables: Vec::new(),
        })
    }

    /// Lays the variables whose names begin with `RETIDE__` over what was read.
    pub fn overlay(
        mut self,
        variables: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, Error> {
        let mut variables: Vec<_> = variables
            .into_iter()
            .filter(|(name, _)| name.starts_with(VARIABLES))
            .collect();
        // The same order whatever the system's, so that a whole section and a key of it give the same result.
        variables.sort();
        for (name, text) in variables {
            let names_file = name.ends_with(FROM_FILE);
            let (base, text) = match name.strip_suffix(FROM_FILE) {
                Some(base) => (base, secret(&name, &text)?),
                None => (name.as_str(), text),
            };
            let keys = keys(&base[VARIABLES.len()..], &self.table).map_err(|message| {
                let (place, path) = (Place::Variable(name.clone()), Keys::default());
                Error::Invalid {
                    place,
                    path,
                    message,
                }
            })?;
            let value = if keys.first().is_some_and(|key| key == KAFKA) || names_file {
                Value::String(text.clone())
            } else {
                typed(text.clone())
            };
            if !insert(&mut self.table, &keys, value) {
                return Err(Error::Invalid {
                    place: Place::Variable(name),
                    path: Keys(keys),
                    message: "not a key of the configuration".into(),
                });
            }
            self.variables.push(Variable {
                name,
                keys,
                text,
                names_file,
            });
        }
        Ok(self)
    }

    /// Reads it as a `T`, and says where what is wrong stands: all of it, as far as it can be told apart.
    pub fn read<T: DeserializeOwned>(&self) -> Found<T> {
        let mut table = self.table.clone();
        let mut found = Found {
            value: None,
            wrong: Vec::new(),
            left_out: BTreeSet::new(),
        };
        let mut as_text = BTreeSet::new();
        while found.wrong.len() < MOST {
            let mut track = Track::new();
            let value = Value::Table(table.clone());
            let deserializer = serde_path_to_error::Deserializer::new(value, &mut track);
            let error = match T::deserialize(deserializer) {
                Ok(value) => {
                    found.value = Some(value);
                    break;
                }
                Err(error) => error,
            };
            let path: Vec<String> = track.path().iter().filter_map(key).collect();
            let message = error.message();
            // What looks like a number may be text: a variable does not say.
            let text = self.text_of(&path).filter(|_| is_no_text(message));
            if let Some(text) = text
                && as_text.insert(path.clone())
                && insert(&mut table, &path, Value::String(text.to_owned()))
            {
                continue;
            }
            if !found.follows(&path, message) {
                found.wrong.push(self.error(path.clone(), message));
            }
            let Some(gone) = remove(&mut table, &path) else {
                break;
            };
            found.left_out.insert(gone);
        }
        found
    }

    /// Values that somebody meant to be replaced, or that stand for a secret that was not shown: neither is what was meant.
    pub fn literals(&self) -> Vec<Error> {
        let mut wrong = Vec::new();
        let mut way = Vec::new();
        self.collect_literals(&Value::Table(self.table.clone()), &mut way, &mut wrong);
        wrong
    }

    /// The same below `way`.
    fn collect_literals(&self, value: &Value, way: &mut Vec<String>, wrong: &mut Vec<Error>) {
        match value {
            Value::String(text) => {
                let variable = self.variable(way);
                let in_scene = way.first().is_some_and(|section| section == SCENES);
                let is_meant = match variable {
                    Some(variable) => variable.names_file || !in_scene,
                    None => is_expanded(way),
                };
                if let Some(message) = literal(text, way).filter(|_| !is_meant) {
                    wrong.push(Error::Invalid {
                        place: self.place(way),
                        path: Keys(way.clone()),
                        message,
                    });
                }
            }
            Value::Table(table) => {
                for (key, value) in table {
                    way.push(key.clone());
                    self.collect_literals(value, way, wrong);
                    way.pop();
                }
            }
            Value::Array(values) => {
                for (index, value) in values.iter().enumerate() {
                    way.push(format!("[{index}]"));
                    self.collect_literals(value, way, wrong);
                    way.pop();
                }
            }
            Value::Integer(_) | Value::Float(_) | Value::Boolean(_) | Value::Datetime(_) => {}
        }
    }

    /// Changes what was read, as it would have been written elsewhere; places stay what they are.
    pub(super) fn amend(&mut self, change: impl FnOnce(&mut Table)) {
        change(&mut self.table);
    }

    /// What was read.
    pub(super) const fn table(&self) -> &Table {
        &self.table
    }

    /// Where the value that `path` leads to was read, if it was.
    pub fn origin(&self, path: &[String]) -> Option<Place> {
        holds(&self.table, path).then(|| self.place(path))
    }

    /// The variable that sets exactly the value that `path` leads to.
    fn variable(&self, path: &[String]) -> Option<&Variable> {
        self.variables
            .iter()
            .rev()
            .find(|variable| variable.keys == path)
    }

    /// The text of the variable that sets the value.
    fn text_of(&self, path: &[String]) -> Option<&str> {
        self.variable(path).map(|variable| variable.text.as_str())
    }

    /// An error at the value that `path` leads to.
    pub fn error(&self, path: Vec<String>, message: &str) -> Error {
        let message = if is_secret(&path) {
            without_value(message)
        } else {
            message.to_owned()
        };
        Error::Invalid {
            place: self.place(&path),
            message: worded(&message),
            path: Keys(path),
        }
    }

    /// Where the value that `path` leads to was read, or the last one on the way.
    fn place(&self, path: &[String]) -> Place {
        let sets = |variable: &&Variable| path.starts_with(&variable.keys);
        if let Some(variable) = self.variables.iter().rev().find(sets) {
            return Place::Variable(variable.name.clone());
        }
        // What only variables say anything of.
        let below = |variable: &&Variable| variable.keys.starts_with(path);
        let made = self.variables.iter().find(below);
        let in_file = self.file.as_ref().is_some_and(|(_, text)| {
            let table = toml::from_str::<Table>(text).unwrap_or_default();
            holds(&table, path)
        });
        if let Some(variable) = made.filter(|_| !in_file && !path.is_empty()) {
            return Place::Variable(variable.name.clone());
        }
        let Some((file, text)) = &self.file else {
            return Place::Unknown;
        };
        let offset = DeTable::parse(text).map_or(0, |table| offset(table.get_ref(), path));
        Place::line(file, text, offset)
    }
}

// === impl Found ===

impl<T> Found<T> {
    /// What was read, if nothing is wrong with it or by what `check` finds.
    pub fn checked(self, check: impl FnOnce(&T) -> Vec<Error>) -> Result<T, Error> {
        let Self {
            value,
            mut wrong,
            left_out,
        } = self;
        let more = value.as_ref().map(check).unwrap_or_default();
        wrong.extend(more.into_iter().filter(|error| !follows(&left_out, error)));
        match value {
            Some(value) if wrong.is_empty() => Ok(value),
            _ => Err(Error::of(wrong)),
        }
    }

    /// Whether an error follows only from what was left out.
    fn follows(&self, path: &[String], message: &str) -> bool {
        let missing = message
            .strip_prefix("missing field `")
            .and_then(|rest| rest.split('`').next());
        match missing {
            Some(key) => {
                let mut path = path.to_vec();
                path.push(key.to_owned());
                self.left_out.contains(&path)
            }
            None => self
                .left_out
                .iter()
                .any(|gone| gone.len() > path.len() && gone.starts_with(path)),
        }
    }
}

/// Whether an error may follow from what was left out beside it: keys of a table within a scene go together.
fn follows(left_out: &BTreeSet<Vec<String>>, error: &Error) -> bool {
    let Error::Invalid { path, .. } = error else {
        return false;
    };
    let table = |path: &[String]| path[..path.len().saturating_sub(1)].to_vec();
    let own = table(&path.0);
    left_out
        .iter()
        .any(|gone| own.len() > 2 && table(gone) == own || gone.starts_with(&path.0))
}

// === impl Error ===

impl Error {
    /// One error of many, in the order of their places.
    pub fn of(mut errors: Vec<Self>) -> Self {
        let line = |error: &Self| match error {
            Self::Invalid {
                place: Place::File { line, column, .. },
                ..
            } => (*line, *column),
            Self::Invalid { .. } | Self::Read { .. } | Self::Several(_) => (0, 0),
        };
        errors.sort_by_key(line);
        errors.dedup_by_key(|error| error.to_string());
        match errors.pop() {
            Some(only) if errors.is_empty() => only,
            Some(last) => {
                errors.push(last);
                Self::Several(errors)
            }
            None => Self::Several(errors),
        }
    }
}

// === impl Place ===

impl Place {
    /// The place of byte `offset` of the text of `file`.
    fn line(file: &str, text: &str, offset: usize) -> Self {
        let before = text.get(..offset).unwrap_or(text);
        let start = before.rfind('\n').map_or(0, |newline| newline + 1);
        Self::File {
            file: file.to_owned(),
            line: before.matches('\n').count() + 1,
            column: before[start..].chars().count() + 1,
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown => Ok(()),
            Self::File { file, line, column } => write!(formatter, "{file}:{line}:{column}: "),
            Self::Variable(name) => write!(formatter, "{name}: "),
        }
    }
}

// === impl Keys ===

impl fmt::Display for Keys {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, key) in self.0.iter().enumerate() {
            if position > 0 && !key.starts_with('[') {
                formatter.write_str(".")?;
            }
            formatter.write_str(key)?;
        }
        if self.0.is_empty() {
            return Ok(());
        }
        formatter.write_str(": ")
    }
}

/// What is said of variables that are not read, and were probably meant to be: those with one underscore where there are two.
pub fn misnamed<'a>(names: impl Iterator<Item = &'a str>) -> Vec<String> {
    // Whatever else begins so is somebody else's, such as what Kubernetes says of a service.
    let sections = [
        "kafka",
        "topics",
        "processor",
        "admin",
        "egress",
        "secrets",
        "schemas",
        "tls",
        "scenes",
    ];
    let mut wrong = Vec::new();
    for name in names {
        let upper = name.to_ascii_uppercase();
        if name.starts_with(VARIABLES) {
            continue;
        }
        let rest = upper
            .strip_prefix("RETIDE_")
            .map(|rest| rest.trim_start_matches('_'));
        let found = rest.and_then(|rest| {
            let section = sections.iter().find(|section| {
                let left = rest.strip_prefix(&section.to_ascii_uppercase());
                left.is_some_and(|left| left.starts_with('_'))
            })?;
            let key = rest[section.len()..].trim_start_matches('_');
            Some((section.to_ascii_uppercase(), key.to_owned()))
        });
        if let Some((section, key)) = found {
            let key = ["CONSUMER_", "PRODUCER_"]
                .iter()
                .find(|word| section == "KAFKA" && key.starts_with(**word))
                .map_or(key.clone(), |word| {
                    let (client, property) = key.split_at(word.len() - 1);
                    format!("{client}__{}", property.trim_start_matches('_'))
                });
            wrong.push(format!(
                "the variable {name} is not read; did you mean {VARIABLES}{section}__{key}? (two underscores between the keys)"
            ));
        }
    }
    wrong
}

/// The contents of the file that a variable names, without the newline that editors put at its end.
fn secret(variable: &str, file: &str) -> Result<String, Error> {
    let text = fs::read_to_string(file).map_err(|source| Error::Read {
        file: format!("{file}, named by {variable},"),
        source,
    })?;
    Ok(text.trim_end_matches(['\r', '\n']).to_owned())
}

/// The keys that the name of a variable stands for, over those of `table`; or why that is not clear.
fn keys(name: &str, table: &Table) -> Result<Vec<String>, String> {
    let mut keys: Vec<String> = name.split("__").map(str::to_ascii_lowercase).collect();
    let as_written: Vec<&str> = name.split("__").collect();
    let Some(section) = keys.first().cloned() else {
        return Ok(keys);
    };
    if section == KAFKA
        && let Some(property) = keys.last_mut()
    {
        *property = property.replace('_', ".");
    }
    if [SCENES, TLS].contains(&section.as_str())
        && let Some(written) = as_written.get(1)
    {
        let known = table.get(&section).and_then(Value::as_table);
        keys[1] = known_as(written, known)?;
        let headers = keys.iter().position(|key| key == "headers");
        if let Some(at) = headers.filter(|at| section == SCENES && *at + 1 < keys.len()) {
            let known = keys[..=at]
                .iter()
                .try_fold(table, |table, key| table.get(key).and_then(Value::as_table));
            let name = known_as(as_written[at + 1], known)?;
            let is_known = known.is_some_and(|known| known.contains_key(&name));
            // No shell has variables with dashes, and hardly any header has underscores.
            keys[at + 1] = if is_known {
                name
            } else {
                name.to_ascii_lowercase().replace('_', "-")
            };
        }
    }
    Ok(keys)
}

/// The name of the user's that a variable means: one of those known, whatever its letters' case, or else as it is written.
fn known_as(written: &str, known: Option<&Table>) -> Result<String, String> {
    let fold = |name: &str| name.to_ascii_lowercase().replace(['-', '.'], "_");
    let known: Vec<&String> = known
        .map(|table| table.keys().collect())
        .unwrap_or_default();
    if known.iter().any(|name| *name == written) {
        return Ok(written.to_owned());
    }
    let alike: Vec<&&String> = known
        .iter()
        .filter(|name| fold(name) == fold(written))
        .collect();
    match alike[..] {
        [one] => Ok((*one).clone()),
        [] if written.chars().any(|letter| letter.is_ascii_lowercase()) => Ok(written.to_owned()),
        [] => Ok(written.to_ascii_lowercase()),
        [..] => {
            let names: Vec<String> = alike.iter().map(|name| format!("`{name}`")).collect();
            Err(format!(
                "`{written}` may be {}: write the name as it is written there",
                names.join(" or ")
            ))
        }
    }
}

/// Why a text is not taken as it is, if somebody meant it to be replaced; `way` leads to it.
fn literal(text: &str, way: &[String]) -> Option<String> {
    let in_scene = way.first().is_some_and(|section| section == SCENES);
    if text.contains(MASKED) {
        return Some(format!(
            "`{MASKED}` stands where `retide scenes export` leaves a secret out: write the secret, or {}",
            by_reference(way, "TOKEN", "")
        ));
    }
    let (written, name) = template(text, in_scene)?;
    let prefix = text.split(&written).next().unwrap_or_default();
    let is_header = way.len() > 1 && way[way.len() - 2] == "headers";
    let instead = if in_scene && is_header {
        by_reference(way, &name, prefix)
    } else {
        let of_client = way.first().is_some_and(|section| section == KAFKA);
        let sections = if !of_client {
            way.len()
        } else if way
            .get(1)
            .is_some_and(|key| key == "consumer" || key == "producer")
        {
            2
        } else {
            1
        };
        let mut keys: Vec<String> = way[..sections].to_vec();
        if of_client {
            // A property is one key, whose dots are underscores.
            keys.push(way[sections..].join("_").replace('.', "_"));
        }
        for (place, key) in keys.iter_mut().enumerate() {
            if !in_scene || place != 1 {
                *key = key.to_ascii_uppercase();
            }
        }
        let variable = keys.join("__");
        format!(
            "set it by the variable {VARIABLES}{variable}, or from a file by {VARIABLES}{variable}{FROM_FILE}"
        )
    };
    Some(format!(
        "`{written}` is not replaced: values are taken as they are written; {instead}"
    ))
}

/// How a header is written whose value stands elsewhere.
fn by_reference(way: &[String], name: &str, prefix: &str) -> String {
    let header = way.last().map_or("authorization", String::as_str);
    let prefix = if prefix.is_empty() {
        String::new()
    } else {
        format!(", prefix = \"{prefix}\"")
    };
    format!(
        "write `{header} = {{ env = \"{name}\"{prefix} }}` or `{header} = {{ file = \"/run/secrets/{}\"{prefix} }}`",
        name.to_ascii_lowercase()
    )
}

/// What of a text looks like it were to be replaced, and the name in it. In a scene, more does than in values of others' properties.
fn template(text: &str, in_scene: bool) -> Option<(String, String)> {
    let name_of = |inside: &str| {
        let name = |letter: &char| letter.is_ascii_alphanumeric() || *letter == '_';
        let name: String = inside
            .trim_start_matches([' ', '.'])
            .chars()
            .take_while(name)
            .collect();
        if name.is_empty() {
            "NAME".to_owned()
        } else {
            name
        }
    };
    let mut shapes = vec![("${", "}"), ("{{", "}}")];
    if in_scene {
        shapes.extend([("$(", ")"), ("<%", "%>")]);
    }
    for (start, end) in shapes {
        if let Some((_, rest)) = text.split_once(start) {
            let inside = rest.split_once(end).map(|(inside, _)| inside);
            let plain = |letter: char| letter.is_ascii_alphanumeric() || "_. ".contains(letter);
            // What is no name may be part of a secret.
            let shown = inside.filter(|inside| inside.chars().all(plain) && inside.len() <= 60);
            let written = shown.map_or_else(
                || start.to_owned(),
                |inside| format!("{start}{inside}{end}"),
            );
            return Some((written, name_of(inside.unwrap_or_default())));
        }
    }
    if !in_scene {
        return None;
    }
    // A word of a shell: `$TOKEN`.
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('$') {
        let name: String = after
            .chars()
            .take_while(|letter| {
                letter.is_ascii_uppercase() || letter.is_ascii_digit() || *letter == '_'
            })
            .collect();
        let ends = after[name.len()..].chars().next();
        let alone = before
            .chars()
            .next_back()
            .is_none_or(|letter| !letter.is_ascii_alphanumeric());
        let begins = name.starts_with(|letter: char| letter.is_ascii_uppercase());
        if alone
            && begins
            && name.len() > 1
            && ends.is_none_or(|next| !next.is_ascii_alphanumeric())
        {
            return Some((format!("${name}"), name));
        }
        rest = after;
    }
    None
}

/// Whether retide puts the values of variables in the place of `${NAME}` there.
fn is_expanded(way: &[String]) -> bool {
    match way {
        [section, key] if section == "processor" => key == "instance_id",
        [section, keys @ ..] if section == KAFKA => keys.join(".").ends_with("group.instance.id"),
        _ => false,
    }
}

/// Whether a message says that text is wanted where there is something else.
fn is_no_text(message: &str) -> bool {
    ["integer", "floating point", "boolean", "map", "sequence"]
        .iter()
        .any(|found| {
            message
                .strip_prefix("invalid type: ")
                .is_some_and(|rest| rest.starts_with(found))
        })
}

/// Whether a table has something where `path` leads.
fn holds(table: &Table, path: &[String]) -> bool {
    let Some((key, rest)) = path.split_first() else {
        return true;
    };
    match table.get(key) {
        Some(Value::Table(table)) => holds(table, rest),
        Some(_) => true,
        None => dotted(table, &path.join(".")),
    }
}

/// Whether a table has a value at a key with dots, which stands in tables of its own.
fn dotted(table: &Table, key: &str) -> bool {
    table.iter().any(|(name, value)| {
        if name == key {
            return true;
        }
        let left = key
            .strip_prefix(name.as_str())
            .and_then(|left| left.strip_prefix('.'));
        match (left, value) {
            (Some(left), Value::Table(table)) => dotted(table, left),
            _ => false,
        }
    })
}

/// Takes the value away that `path` leads to, or the list it is in; says what is gone.
fn remove(table: &mut Table, path: &[String]) -> Option<Vec<String>> {
    let length = path
        .iter()
        .position(|key| key.starts_with('['))
        .unwrap_or(path.len());
    let (last, way) = path[..length].split_last()?;
    let mut table = table;
    for (depth, key) in way.iter().enumerate() {
        match table.get(key) {
            Some(Value::Table(_)) => {}
            // A word where there could be a table, too.
            Some(_) => {
                table.remove(key);
                return Some(path[..=depth].to_vec());
            }
            None => return None,
        }
        let Some(Value::Table(next)) = table.get_mut(key) else {
            return None;
        };
        table = next;
    }
    table.remove(last).map(|_| path[..length].to_vec())
}

/// Errors, one a line.
fn lines(errors: &[Error]) -> String {
    let lines: Vec<String> = errors.iter().map(ToString::to_string).collect();
    lines.join("\n")
}

/// The value that the text of a variable stands for: what it would in a file, or else itself.
fn typed(text: String) -> Value {
    let parsed = toml::from_str::<Table>(&format!("value = {text}"));
    match parsed.map(|mut table| (table.len(), table.remove("value"))) {
        Ok((1, Some(value))) => value,
        _ => Value::String(text),
    }
}

/// Puts a value where `keys` lead; false if something else than a table is on the way.
fn insert(table: &mut Table, keys: &[String], value: Value) -> bool {
    let Some((last, way)) = keys.split_last() else {
        return false;
    };
    let mut table = table;
    for key in way {
        let next = table
            .entry(key.clone())
            .or_insert_with(|| Value::Table(Table::new()));
        match next {
            Value::Table(next) => table = next,
            _ => return false,
        }
    }
    table.insert(last.clone(), value);
    true
}

/// One step of the way to a value, as it is shown.
fn key(segment: &Segment) -> Option<String> {
    match segment {
        Segment::Seq { index } => Some(format!("[{index}]")),
        Segment::Map { key } => Some(key.clone()),
        Segment::Enum { variant } => Some(variant.clone()),
        Segment::Unknown => None,
    }
}

/// Where in the text of a file the value that `path` leads to begins: at its key, or at that of the last one on the way.
fn offset(table: &DeTable<'_>, path: &[String]) -> usize {
    let Some((key, rest)) = path.split_first() else {
        return 0;
    };
    let Some((name, value)) = table.iter().find(|(name, _)| name.get_ref() == key) else {
        return 0;
    };
    inside(value, rest).unwrap_or(name.span().start)
}

/// Where what `path` leads to within `value` begins, if there is such a thing.
fn inside(value: &Spanned<DeValue<'_>>, path: &[String]) -> Option<usize> {
    let (key, rest) = path.split_first()?;
    match value.get_ref() {
        DeValue::Table(table) => {
            if let Some((name, value)) = table.iter().find(|(name, _)| name.get_ref() == key) {
                return Some(inside(value, rest).unwrap_or(name.span().start));
            }
            // A key with dots that stands unquoted is a table in a table.
            let (name, value, left) = table.iter().find_map(|(name, value)| {
                let left = key.strip_prefix(&**name.get_ref())?.strip_prefix('.')?;
                Some((name, value, left.to_owned()))
            })?;
            let path: Vec<String> = iter::once(left).chain(rest.iter().cloned()).collect();
            Some(inside(value, &path).unwrap_or(name.span().start))
        }
        DeValue::Array(values) => {
            let index: usize = key.trim_matches(['[', ']']).parse().ok()?;
            let value = values.get(index)?;
            Some(inside(value, rest).unwrap_or(value.span().start))
        }
        DeValue::String(_)
        | DeValue::Integer(_)
        | DeValue::Float(_)
        | DeValue::Boolean(_)
        | DeValue::Datetime(_) => None,
    }
}

/// Whether the value that `path` leads to must not be shown.
fn is_secret(path: &[String]) -> bool {
    let keys = match path {
        [section, ..] if section == KAFKA => return true,
        // A scene may be called `token`; what its rules are is not secret for that.
        [section, _, keys @ ..] if section == SCENES => keys,
        // The way to a key is not the key.
        [section, ..] if section == TLS => return false,
        keys => keys,
    };
    keys.iter().any(|key| {
        let key = key.to_ascii_lowercase();
        SECRETS.iter().any(|word| key.contains(word))
    })
}

/// A message of serde's without the value it complains about.
fn without_value(message: &str) -> String {
    let with_value = ["invalid ", "unknown variant "]
        .iter()
        .any(|start| message.starts_with(start));
    // The last one: the value itself may speak of what it expects.
    match message.rsplit_once(", expected ") {
        Some((_, expected)) if with_value => {
            format!("the value is not shown; expected {expected}")
        }
        _ => message.to_owned(),
    }
}

/// A message of serde's in the words of those who write the file.
fn worded(message: &str) -> String {
    suggest(message)
        .replace("missing field", "missing key")
        .replace("a nonzero u32", "a whole number of at least 1")
        .replace("expected u32", "expected a whole number")
        .replace("a map", "a table")
        .replace("a sequence", "an array")
}

/// A message of serde's about an unknown key or word, with the one that was probably meant.
fn suggest(message: &str) -> String {
    let Some(rest) = message
        .strip_prefix("unknown field `")
        .or_else(|| message.strip_prefix("unknown variant `"))
    else {
        return message.to_owned();
    };
    let Some((word, known)) = rest.split_once('`') else {
        return message.to_owned();
    };
    let nearest = known
        .split('`')
        .skip(1)
        .step_by(2)
        .map(|candidate| (strsim::damerau_levenshtein(word, candidate), candidate))
        .min();
    let what = if message.starts_with("unknown field") {
        "unknown key"
    } else {
        "unknown value"
    };
    let known = known.trim_start_matches(", ");
    match nearest {
        Some((edits, candidate)) if edits <= EDITS.max(word.len() / 3) && edits < word.len() => {
            format!("{what} `{word}`; did you mean `{candidate}`?")
        }
        _ => format!("{what} `{word}`; {known}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_misspelt_key_names_the_one_that_was_meant() {
        let message = "unknown field `tmeout`, expected one of `url`, `timeout`, `headers`";

        assert_eq!(
            suggest(message),
            "unknown key `tmeout`; did you mean `timeout`?"
        );
        assert_eq!(
            suggest("unknown variant `zzz`, expected `avro` or `json`"),
            "unknown value `zzz`; expected `avro` or `json`"
        );
    }

    #[test]
    fn a_secret_is_not_shown_whatever_it_says() {
        for message in [
            "invalid type: string \"a, expected s3cret\", expected a map",
            "unknown variant `a, expected s3cret`, expected a map",
        ] {
            assert_eq!(
                without_value(message),
                "the value is not shown; expected a map"
            );
        }
    }

    #[test]
    fn the_name_of_a_scene_makes_no_secret_of_its_rules() {
        let secret =
            |path: &str| is_secret(&path.split('.').map(str::to_owned).collect::<Vec<_>>());

        assert!(!secret("scenes.token.jitter"));
        assert!(secret("scenes.token.target.http.headers.x"));
        assert!(secret("target.http.headers"));
        assert!(secret("kafka.client.id"));
    }

    #[test]
    fn a_variable_stands_for_what_its_text_would_in_a_file() {
        assert_eq!(typed("12".into()), Value::Integer(12));
        assert_eq!(typed("100ms".into()), Value::String("100ms".into()));
        assert_eq!(
            typed("[\"now\", \"5s\"]".into()),
            Value::Array(vec!["now".into(), "5s".into()])
        );
        assert_eq!(
            typed("1\nother = 2".into()),
            Value::String("1\nother = 2".into())
        );
    }

    #[test]
    fn variables_of_the_kafka_section_name_properties_with_dots() {
        assert_eq!(
            keys("KAFKA__CONSUMER__SESSION_TIMEOUT_MS", &Table::new()).unwrap(),
            ["kafka", "consumer", "session.timeout.ms"]
        );
        assert_eq!(
            keys("PROCESSOR__COMMIT_INTERVAL", &Table::new()).unwrap(),
            ["processor", "commit_interval"]
        );
    }
}
