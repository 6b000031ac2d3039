//! Which tasks are meant: the options, the same for everything that is done with tasks, and the selector of a command that they make.
//!
//! Not what the values mean: the reader of commands reads them, so that the command line takes what a command takes. Invariant: options
//! that name nothing are refused.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::{Map, Value};

use retide_avro::control;
use retide_core::selector::{MAX_VALUES, Selector};
use retide_shell::clock;

use crate::cli::output::{Exit, Failed};

/// Which tasks: those that fit every option, each by one of its values.
#[derive(Debug, Args)]
#[command(next_help_heading = "Which tasks (each option by one of its values)")]
pub(in crate::cli) struct Select {
    /// Of these identities; may be repeated
    #[arg(long = "id", value_name = "ID")]
    ids: Vec<String>,
    /// Of the identities in a file, one a line; - is stdin
    #[arg(long, value_name = "FILE")]
    id_file: Option<PathBuf>,
    /// Of these scenes; may be repeated
    #[arg(long = "scene", value_name = "NAME")]
    scenes: Vec<String>,
    /// With this key; may be repeated
    #[arg(long = "key", value_name = "KEY")]
    keys: Vec<String>,
    /// With this header of the producer's; of several, all have to be there
    #[arg(long = "header", value_name = "NAME=VALUE")]
    headers: Vec<String>,
    /// Whose last attempt failed so, such as http-503; may be repeated
    #[arg(long = "error", value_name = "CLASS")]
    errors: Vec<String>,
    /// Whose last attempt failed alike, as `tasks show` tells; may be repeated
    #[arg(long = "fingerprint", value_name = "FINGERPRINT")]
    fingerprints: Vec<String>,
    /// Whose scene calls this host, with or without its port; may be repeated
    #[arg(long = "target", value_name = "HOST")]
    targets: Vec<String>,
    /// With so many attempts made: 3, 2..5, 2.. or ..5
    #[arg(long, value_name = "N..M")]
    attempts: Option<String>,
    /// That entered then: RFC 3339, milliseconds since 1970, now, or relative such as -2h..
    #[arg(long, value_name = "FROM..TO", allow_hyphen_values = true)]
    entered: Option<String>,
    /// That are due then
    #[arg(long, value_name = "FROM..TO", allow_hyphen_values = true)]
    due: Option<String>,
    /// That entered there; may be repeated
    #[arg(long = "origin", value_name = "TOPIC[/PARTITION[/OFFSET]]")]
    origins: Vec<String>,
}

/// Largest file of identities that is read.
const MOST: u64 = 256 << 20;

// === impl Select ===

impl Select {
    /// The selectors that these options make, in JSON: more than one for more identities than a command may name.
    pub(in crate::cli) fn parts(&self) -> Result<Vec<Value>, Failed> {
        let mut ids = self.ids.clone();
        if let Some(file) = &self.id_file {
            let read = lines(file)?;
            if read.is_empty() {
                let message = format!("--id-file {} names no task", file.display());
                return Err(Failed::because(Exit::Usage, message));
            }
            ids.extend(read);
        }
        ids.sort();
        ids.dedup();
        let mut common = Map::new();
        for (key, values) in [
            ("scene", &self.scenes),
            ("key", &self.keys),
            ("header", &self.headers),
            ("error", &self.errors),
            ("fingerprint", &self.fingerprints),
            ("target", &self.targets),
            ("origin", &self.origins),
        ] {
            if !values.is_empty() {
                common.insert(key.to_owned(), Value::from(values.clone()));
            }
        }
        for (key, value) in [
            ("attempts", &self.attempts),
            ("entered", &self.entered),
            ("due", &self.due),
        ] {
            if let Some(value) = value {
                common.insert(key.to_owned(), Value::from(value.clone()));
            }
        }
        if ids.is_empty() {
            return Ok(vec![Value::Object(common)]);
        }
        let others = common.values().filter_map(Value::as_array);
        let others: usize = others.map(Vec::len).sum();
        let room = MAX_VALUES.saturating_sub(others).max(1);
        let parts = ids.chunks(room).map(|ids| {
            let mut part = common.clone();
            part.insert("id".to_owned(), Value::from(ids));
            Value::Object(part)
        });
        Ok(parts.collect())
    }

    /// The selectors of these options.
    pub(in crate::cli) fn selectors(&self) -> Result<Vec<Selector>, Failed> {
        read(&self.parts()?)
    }

    /// The same; none where no option is given, which means all that there is: for what only reads.
    pub(in crate::cli) fn selectors_if_any(&self) -> Result<Vec<Selector>, Failed> {
        let parts = self.parts()?;
        if parts.iter().all(|part| *part == Value::Object(Map::new())) {
            return Ok(Vec::new());
        }
        read(&parts)
    }
}

/// The selectors of a command, as workers read them.
fn read(parts: &[Value]) -> Result<Vec<Selector>, Failed> {
    let now = clock::timestamp();
    let selectors = parts.iter().map(|part| {
        let text = part.to_string();
        control::selector(text.as_bytes(), now)
            .map_err(|why| Failed::because(Exit::Usage, String::from(why)))
    });
    selectors.collect()
}

/// The lines of a file, without space around them and without empty ones.
fn lines(file: &Path) -> Result<Vec<String>, Failed> {
    let input: Box<dyn Read> = if file == Path::new("-") {
        Box::new(io::stdin())
    } else {
        let file = File::open(file).map_err(|error| {
            let message = format!("--id-file {}: {error}", file.display());
            Failed::because(Exit::Usage, message)
        })?;
        Box::new(file)
    };
    let mut lines = Vec::new();
    for line in BufReader::new(input.take(MOST)).lines() {
        let line = line.map_err(|error| {
            let message = format!("--id-file {}: {error}", file.display());
            Failed::because(Exit::Usage, message)
        })?;
        let line = line.trim();
        if !line.is_empty() {
            lines.push(line.to_owned());
        }
    }
    Ok(lines)
}

#[cfg(test)]
mod tests {
    use super::*;

    use clap::Parser;

    /// A command line of nothing else.
    #[derive(Parser)]
    struct Line {
        /// The options.
        #[command(flatten)]
        select: Select,
    }

    fn parts(arguments: &[&str]) -> Vec<Value> {
        let line = Line::try_parse_from([&["x"][..], arguments].concat());
        let parts = line.unwrap().select.parts();
        parts.unwrap_or_else(|_| panic!("parts"))
    }

    #[test]
    fn options_make_the_selector_of_a_command() {
        let made = parts(&[
            "--id", "b", "--id", "a", "--id", "b", "--scene", "s", "--header", "h=v", "--due",
            "-2h..",
        ]);

        let text = r#"{"due":"-2h..","header":["h=v"],"id":["a","b"],"scene":["s"]}"#;
        assert_eq!(made, [serde_json::from_str::<Value>(text).unwrap()]);
        assert_eq!(parts(&[]), [Value::Object(Map::new())]);
    }

    #[test]
    fn more_identities_than_a_command_may_name_are_several_selectors() {
        let ids: Vec<String> = (0..2 * MAX_VALUES).map(|id| format!("--id={id}")).collect();
        let mut arguments: Vec<&str> = ids.iter().map(String::as_str).collect();
        arguments.extend(["--scene", "s"]);

        let made = parts(&arguments);

        let counts = made.iter().map(|part| part["id"].as_array().unwrap().len());
        assert_eq!(
            counts.collect::<Vec<_>>(),
            [MAX_VALUES - 1, MAX_VALUES - 1, 2]
        );
        for part in made {
            assert_eq!(part["scene"][0], "s");
            assert!(control::selector(part.to_string().as_bytes(), clock::timestamp()).is_ok());
        }
    }
}
