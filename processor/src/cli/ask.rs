//! Who wants what a command does, and whether it shall be done.

use std::env;
use std::io::{self, IsTerminal, Write};

use crate::cli::output::{Exit, Failed, say};

/// Who wants it: whom `--by` names, or else the user.
pub(super) fn who(by: Option<&str>) -> String {
    let user = || env::var("USER").or_else(|_| env::var("LOGNAME")).ok();
    by.map(str::to_owned).or_else(user).unwrap_or_default()
}

/// Fails with this message if nobody can be asked.
pub(super) fn somebody(message: impl FnOnce() -> String) -> Result<(), Failed> {
    if io::stdin().is_terminal() {
        return Ok(());
    }
    Err(Failed::because(Exit::Usage, message()))
}

/// Says what is about to be done, and asks whether it shall be; fails with `otherwise` if not.
pub(super) fn agreement(what: &str, otherwise: &str) -> Result<(), Failed> {
    say(what);
    let mut stderr = io::stderr();
    let _ = write!(stderr, "do it? [y/N] ").and_then(|()| stderr.flush());
    let mut answer = String::new();
    io::stdin().read_line(&mut answer)?;
    if matches!(answer.trim(), "y" | "Y" | "yes") {
        return Ok(());
    }
    Err(Failed::because(Exit::Failure, otherwise))
}

/// Says what is about to be done, and asks for a word that says that it was read; fails with `otherwise` if another one comes.
pub(super) fn typed(what: &str, word: &str, otherwise: &str) -> Result<(), Failed> {
    say(what);
    let mut stderr = io::stderr();
    let _ = write!(stderr, "type {word} to go on: ").and_then(|()| stderr.flush());
    let mut answer = String::new();
    io::stdin().read_line(&mut answer)?;
    if answer.trim() == word {
        return Ok(());
    }
    Err(Failed::because(Exit::Failure, otherwise))
}
