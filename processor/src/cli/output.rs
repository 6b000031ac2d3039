//! Tables, JSON, and the ways a command can fail.

use std::io::{self, Write};

use clap::ValueEnum;
use comfy_table::{Table, presets};
use serde::Serialize;

use retide_core::with_causes;
use retide_shell::log::Log;

use crate::cli::terminal;

/// How data is printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum Output {
    /// For people.
    #[default]
    Table,
    /// One JSON document.
    Json,
    /// One JSON document per line.
    Ndjson,
}

/// How a command exits, other than well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Exit {
    /// Something went wrong.
    Failure = 1,
    /// The command line or the configuration is at fault.
    Usage = 2,
    /// What was named is not there.
    NotFound = 3,
    /// Something has to be put right first.
    Precondition = 4,
    /// Kafka does not answer.
    Unreachable = 5,
    /// Some of it was done.
    Partly = 6,
    /// It was told twice to stop.
    Interrupted = 130,
    /// Whoever reads its data has seen enough: what a shell says of a program that `SIGPIPE` ends.
    Unread = 141,
}

/// Why a command failed.
#[derive(Debug)]
pub(super) struct Failed {
    /// How to exit.
    exit: Exit,
    /// What to say; nothing if it was said already.
    message: Option<String>,
}

/// A row of a table, which is an object in JSON.
pub(super) trait Row: Serialize {
    /// What stands above the columns.
    const HEADINGS: &'static [&'static str];

    /// What stands in the columns.
    fn cells(&self) -> Vec<String>;
}

// === impl Failed ===

impl Failed {
    /// Fails with an error and its causes.
    pub(super) fn new(exit: Exit, error: &dyn std::error::Error) -> Self {
        Self::because(exit, with_causes(error))
    }

    /// Fails with a message.
    pub(super) fn because(exit: Exit, message: impl Into<String>) -> Self {
        Self {
            exit,
            message: Some(message.into()),
        }
    }

    /// The same, and what mends it.
    pub(super) fn with_fix(self, fix: &str) -> Self {
        Self {
            message: self
                .message
                .map(|message| format!("{message}\n  fix: {fix}")),
            ..self
        }
    }

    /// The same, but with this exit code if there was none but that of a failure.
    pub(super) fn or_exit(self, exit: Exit) -> Self {
        if self.exit == Exit::Failure {
            return Self { exit, ..self };
        }
        self
    }

    /// Fails after everything was said.
    pub(super) fn silently(exit: Exit) -> Self {
        Self {
            exit,
            message: None,
        }
    }

    /// What there is to say.
    pub(super) fn message(&self) -> Option<&str> {
        self.message.as_deref()
    }

    /// How it exits.
    pub(super) fn exit(&self) -> Exit {
        self.exit
    }

    /// Says why, and gives the exit code.
    pub(super) fn report(self, log: &Log) -> u8 {
        if let Some(message) = self.message {
            log.last_words(&terminal::lines(&message));
        }
        self.exit as u8
    }
}

impl From<io::Error> for Failed {
    fn from(error: io::Error) -> Self {
        Self::new(Exit::Failure, &error)
    }
}

impl From<retide_kafka::cluster::Error> for Failed {
    fn from(error: retide_kafka::cluster::Error) -> Self {
        let exit = match error {
            retide_kafka::cluster::Error::Unreachable { .. } => Exit::Unreachable,
            retide_kafka::cluster::Error::NoAddress => Exit::Usage,
            retide_kafka::cluster::Error::Client(_)
            | retide_kafka::cluster::Error::Request { .. }
            | retide_kafka::cluster::Error::Unseen { .. }
            | retide_kafka::cluster::Error::Thread(_) => Exit::Failure,
        };
        let failed = Self::new(exit, &error);
        match error.hint() {
            Some(hint) => failed.with_fix(hint),
            None => failed,
        }
    }
}

/// Prints rows.
pub(super) fn print<R: Row>(rows: &[R], output: Output) -> Result<(), Failed> {
    match output {
        Output::Table => {
            let mut table = Table::new();
            table.load_preset(presets::NOTHING);
            table.set_header(R::HEADINGS.iter().map(|heading| heading.to_uppercase()));
            for row in rows {
                table.add_row(cells(row));
            }
            put(&table.trim_fmt())
        }
        Output::Json => document(&rows, output),
        Output::Ndjson => {
            for row in rows {
                put(&serde_json::to_string(row).map_err(io::Error::from)?)?;
            }
            Ok(())
        }
    }
}

/// What stands in the columns of a row, as a terminal may have it.
fn cells<R: Row>(row: &R) -> Vec<String> {
    row.cells()
        .iter()
        .map(|cell| terminal::line(cell))
        .collect()
}

/// Prints a document: on one line where there is one a line.
pub(super) fn document(document: &impl Serialize, output: Output) -> Result<(), Failed> {
    let json = match output {
        Output::Ndjson => serde_json::to_string(document),
        Output::Table | Output::Json => serde_json::to_string_pretty(document),
    };
    put(&json.map_err(io::Error::from)?)
}

/// Rows that are printed as they come.
pub(super) struct Rows<R> {
    /// How they are printed.
    output: Output,
    /// Those of a table that is not printed yet: its columns are as wide as they have to be.
    held: Vec<R>,
    /// How many were printed.
    printed: usize,
}

// === impl Rows ===

impl<R: Row> Rows<R> {
    /// Nothing yet.
    pub(super) fn new(output: Output) -> Self {
        Self {
            output,
            held: Vec::new(),
            printed: 0,
        }
    }

    /// Prints a row, if it is not to stand in a table.
    pub(super) fn add(&mut self, row: R) -> Result<(), Failed> {
        match self.output {
            Output::Table => {
                self.held.push(row);
                return Ok(());
            }
            Output::Json => {
                let sign = if self.printed == 0 { "[" } else { "," };
                put(&format!("{sign}\n{}", json(&row)?))?;
            }
            Output::Ndjson => put(&json(&row)?)?,
        }
        self.printed += 1;
        Ok(())
    }

    /// Prints the table as far as it is known; its headings stand above the first row.
    pub(super) fn flush(&mut self) -> Result<(), Failed> {
        if self.held.is_empty() {
            return Ok(());
        }
        let mut table = Table::new();
        table.load_preset(presets::NOTHING);
        if self.printed == 0 {
            table.set_header(R::HEADINGS.iter().map(|heading| heading.to_uppercase()));
        }
        self.printed += self.held.len();
        for row in self.held.drain(..) {
            table.add_row(cells(&row));
        }
        put(&table.trim_fmt())
    }

    /// Prints what is left.
    pub(super) fn end(mut self) -> Result<(), Failed> {
        match (self.output, self.printed) {
            (Output::Table, _) => self.flush(),
            (Output::Json, 0) => put("[]"),
            (Output::Json, _) => put("]"),
            (Output::Ndjson, _) => Ok(()),
        }
    }
}

/// A row as JSON.
fn json(row: &impl Serialize) -> Result<String, Failed> {
    Ok(serde_json::to_string(row).map_err(io::Error::from)?)
}

/// Prints a line, or several, of data.
pub(super) fn put(text: &str) -> Result<(), Failed> {
    let mut stdout = io::stdout().lock();
    match writeln!(stdout, "{text}").and_then(|()| stdout.flush()) {
        Ok(()) => Ok(()),
        // Whoever reads has seen enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
            Err(Failed::silently(Exit::Unread))
        }
        Err(error) => Err(error.into()),
    }
}

/// How many characters a line on stdout has, if it is a terminal.
pub(super) fn width() -> Option<usize> {
    let (_, columns) = console::Term::stdout().size_checked()?;
    Some(columns.into())
}

/// Talks to the user.
pub(super) fn say(text: &str) {
    // Nothing can be done about a stderr that is closed.
    let _ = writeln!(io::stderr(), "{}", terminal::lines(text));
}
