//! A target in a process of its own, so that what it costs is not taken for retide's or its baseline's.
//!
//! The process is this program again, with a command that is not listed. It says its address, answers questions on its standard input,
//! one line each, and ends when that does: it does not outlive who started it.

use std::env;
use std::io::{self, BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::{Mutex, PoisonError};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::bench::Error;
use crate::bench::target::{Arrivals, Lateness, Manner, Target, Window};

/// A target in a process of its own, until it is dropped.
pub(crate) struct Remote {
    /// Where it listens.
    pub(crate) address: SocketAddr,
    /// What it is asked through, one question at a time.
    pipes: Mutex<Pipes>,
    /// The process.
    child: Child,
}

/// The way to a target.
struct Pipes {
    /// Where questions go; none when there are no more.
    questions: Option<ChildStdin>,
    /// Where answers come from.
    answers: BufReader<ChildStdout>,
}

/// What a target is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Question {
    /// How many requests it has seen.
    Requests,
    /// How many requests it has seen, and how late they were together.
    Arrivals,
    /// From now on, to note the lateness of those only that are due in this time.
    Measure(Window),
    /// How late they were since this was last asked.
    TakeLateness,
}

/// The command of the process, and its argument that says how it answers, as JSON.
const COMMAND: [&str; 2] = ["bench-target", "--manner"];

// === impl Remote ===

impl Remote {
    /// Starts the process and waits until it listens.
    pub(crate) fn start(manner: Manner) -> Result<Self, Error> {
        let manner = serde_json::to_string(&manner).map_err(io::Error::from)?;
        let mut child = Command::new(env::current_exe()?)
            .args(COMMAND)
            .arg(manner)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let questions = child.stdin.take();
        let Some(answers) = child.stdout.take() else {
            unreachable!("asked for above");
        };
        let mut pipes = Pipes {
            questions,
            answers: BufReader::new(answers),
        };
        let address = pipes.answer();
        // Before the address is looked at: the process is waited for in any case.
        let mut remote = Self {
            address: SocketAddr::from(([127, 0, 0, 1], 0)),
            pipes: Mutex::new(pipes),
            child,
        };
        remote.address = address?;
        Ok(remote)
    }

    /// How many requests it has seen.
    pub(crate) fn requests(&self) -> Result<u64, Error> {
        self.ask(Question::Requests)
    }

    /// How many requests it has seen, and how late they were together.
    pub(crate) fn arrivals(&self) -> Result<Arrivals, Error> {
        self.ask(Question::Arrivals)
    }

    /// Forgets how late they were, and notes from now on the lateness of those only that are due in this time.
    pub(crate) fn measure(&self, window: Window) -> Result<(), Error> {
        self.ask(Question::Measure(window))
    }

    /// How late they were since this was last asked.
    pub(crate) fn take_lateness(&self) -> Result<Lateness, Error> {
        self.ask(Question::TakeLateness)
    }

    /// Asks one question.
    fn ask<A: DeserializeOwned>(&self, question: Question) -> Result<A, Error> {
        let mut pipes = self.pipes.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(questions) = &mut pipes.questions {
            let mut text = serde_json::to_vec(&question).map_err(io::Error::from)?;
            text.push(b'\n');
            questions.write_all(&text)?;
        }
        pipes.answer()
    }
}

impl Drop for Remote {
    fn drop(&mut self) {
        let pipes = self.pipes.get_mut();
        pipes.unwrap_or_else(PoisonError::into_inner).questions = None;
        // It ends when its input does; there is nothing to be done about it if it does not.
        let _ = self.child.wait();
    }
}

// === impl Pipes ===

impl Pipes {
    /// Reads one answer.
    fn answer<A: DeserializeOwned>(&mut self) -> Result<A, Error> {
        let mut text = String::new();
        self.answers.read_line(&mut text)?;
        serde_json::from_str(&text).map_err(|source| Error::Target { text, source })
    }
}

/// The process: a target that answers as `manner` says, until there are no more questions.
///
/// # Errors
/// If it cannot listen, or nobody hears its answers.
pub fn serve(manner: &str) -> io::Result<()> {
    let manner: Manner = serde_json::from_str(manner)?;
    let target = Target::start(manner)?;
    let mut out = io::stdout().lock();
    let mut say = |answer: serde_json::Result<String>| {
        writeln!(out, "{}", answer?)?;
        out.flush()
    };
    say(serde_json::to_string(&target.address))?;
    for question in io::stdin().lock().lines() {
        say(match serde_json::from_str(&question?)? {
            Question::Requests => serde_json::to_string(&target.requests()),
            Question::Arrivals => serde_json::to_string(&target.arrivals()),
            Question::Measure(window) => {
                target.measure(window);
                serde_json::to_string(&())
            }
            Question::TakeLateness => serde_json::to_string(&target.take_lateness()),
        })?;
    }
    Ok(())
}
