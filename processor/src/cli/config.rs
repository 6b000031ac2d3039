//! `retide config`: what is in force, and from where.

use clap::Subcommand;

use retide_config::keys::{self, Shown};
use retide_config::{Config, Overrides, Source};

use crate::cli::output::{Failed, Output, Row, print, say};

/// What `config` does.
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Print each key in force with its value, secrets left out, and where that was read
    #[command(after_help = "\
Examples:
  retide config show
  retide config show --output json
  RETIDE__PROCESSOR__WORKERS=4 retide config show

The origin is `default`, a file with its line, a variable, or an option.
Scenes are those of the configuration; those on the scenes topic go before
them: `retide scenes export` prints them.")]
    Show,
}

// === impl Shown ===

impl Row for Shown {
    const HEADINGS: &'static [&'static str] = &["key", "value", "origin"];

    fn cells(&self) -> Vec<String> {
        vec![self.key.clone(), self.value.clone(), self.origin.clone()]
    }
}

/// Shows a configuration, which was read from `source` under `overrides`.
pub(super) fn config(
    (config, source): (&Config, &Source),
    overrides: &Overrides,
    command: &Command,
    output: Output,
) -> Result<(), Failed> {
    match command {
        Command::Show => {
            print(&keys::shown(config, source, overrides), output)?;
            if output == Output::Table && !config.scenes.is_empty() {
                say(
                    "scenes on the scenes topic go before those shown here: `retide scenes export` prints them",
                );
            }
            Ok(())
        }
    }
}
