//! Where the configuration is read: a file, and environment variables over it. Errors say where, which key, what was expected.
//!
//! Not what the keys mean. Invariant: no value of a secret key is ever part of an error.

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
    /// The variables, with the way to the key that each one sets.
    variables: Vec<(String, Vec<String>)>,
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
    pub fn text(file: &str, text: String) -> Result<Self, Error> {
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
            let (base, text) = match name.strip_suffix(FROM_FILE) {
                Some(base) => (base, secret(&name, &text)?),
                None => (name.as_str(), text),
            };
            let keys = keys(&base[VARIABLES.len()..]);
            let value = if keys.first().is_some_and(|key| key == KAFKA) {
                Value::String(text)
            } else {
                typed(text)
            };
            if !insert(&mut self.table, &keys, value) {
                return Err(Error::Invalid {
                    place: Place::Variable(name),
                    path: Keys(keys),
                    message: "not a key of the configuration".into(),
                });
            }
            self.variables.push((name, keys));
        }
        Ok(self)
    }

    /// Reads it as a `T`, and says where what is wrong stands.
    pub fn read<T: DeserializeOwned>(&self) -> Result<T, Error> {
        let mut track = Track::new();
        let value = Value::Table(self.table.clone());
        let deserializer = serde_path_to_error::Deserializer::new(value, &mut track);
        T::deserialize(deserializer).map_err(|error| {
            let path = track.path().iter().filter_map(key).collect();
            self.error(path, error.message())
        })
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
        let variable = self
            .variables
            .iter()
            .find(|(_, keys)| path.starts_with(keys) || keys.starts_with(path) && keys == path);
        if let Some((name, _)) = variable {
            return Place::Variable(name.clone());
        }
        let Some((file, text)) = &self.file else {
            return Place::Unknown;
        };
        let offset = DeTable::parse(text).map_or(0, |table| offset(table.get_ref(), path));
        Place::line(file, text, offset)
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

/// The contents of the file that a variable names, without the newline that editors put at its end.
fn secret(variable: &str, file: &str) -> Result<String, Error> {
    let text = fs::read_to_string(file).map_err(|source| Error::Read {
        file: format!("{file}, named by {variable},"),
        source,
    })?;
    Ok(text.trim_end_matches(['\r', '\n']).to_owned())
}

/// The keys that the name of a variable stands for.
fn keys(name: &str) -> Vec<String> {
    let mut keys: Vec<String> = name.split("__").map(str::to_ascii_lowercase).collect();
    if keys.first().is_some_and(|section| section == KAFKA)
        && let Some(property) = keys.last_mut()
    {
        *property = property.replace('_', ".");
    }
    keys
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
            keys("KAFKA__CONSUMER__SESSION_TIMEOUT_MS"),
            ["kafka", "consumer", "session.timeout.ms"]
        );
        assert_eq!(
            keys("PROCESSOR__COMMIT_INTERVAL"),
            ["processor", "commit_interval"]
        );
    }
}
