//! An admin of the cluster: a Java process that does what it is told, one command at a time.
//!
//! Invariant: a command has been carried out, and has been answered, before the next one is given.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};

use crate::Failed;

/// The admin; cheap to clone. Its process ends with the last clone.
#[derive(Clone)]
pub(crate) struct Admin(Arc<Mutex<Process>>);

/// The process of an admin.
struct Process {
    /// The process.
    child: Child,
    /// Takes commands.
    commands: ChildStdin,
    /// Gives answers.
    answers: BufReader<ChildStdout>,
}

// === impl Admin ===

impl Admin {
    /// Starts an admin of the broker at `bootstrap`, who may do everything.
    pub(crate) fn start(jars: &Path, bootstrap: &str, log: &Path) -> Result<Self, Failed> {
        let mut child = Command::new("java")
            .args(["-Xmx256m", "-XX:TieredStopAtLevel=1", "-cp"])
            .arg(format!("{}/*", jars.display()))
            .arg("-Dorg.slf4j.simpleLogger.defaultLogLevel=error")
            .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/Adversary.java"))
            .arg(bootstrap)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(std::fs::File::create(log)?)
            .spawn()?;
        let (Some(commands), Some(answers)) = (child.stdin.take(), child.stdout.take()) else {
            return Err("the admin has no pipes".into());
        };
        Ok(Self(Arc::new(Mutex::new(Process {
            child,
            commands,
            answers: BufReader::new(answers),
        }))))
    }

    /// Carries out a command; gives the answer, or why it could not be done.
    pub(crate) async fn tell(&self, command: String) -> Result<String, Failed> {
        let process = Arc::clone(&self.0);
        tokio::task::spawn_blocking(move || {
            let mut process = process.lock().unwrap_or_else(PoisonError::into_inner);
            writeln!(process.commands, "{command}")?;
            process.commands.flush()?;
            let mut answer = String::new();
            process.answers.read_line(&mut answer)?;
            match answer.trim_end().split_once(' ') {
                _ if answer.trim_end() == "ok" => Ok(String::new()),
                Some(("ok", rest)) => Ok(rest.to_owned()),
                _ => Err(format!("{command}: {}", answer.trim_end()).into()),
            }
        })
        .await?
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
