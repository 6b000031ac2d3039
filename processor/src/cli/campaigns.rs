//! `retide campaigns`: the replays of dead letters, how they are, and what people do with them.
//!
//! | module | what |
//! |---|---|
//! | `read` | the campaigns that stand on the commands topic |
//! | `line` | a campaign, for people and programs |
//! | `follow` | a request is sent, and what becomes of it is waited for |
//!
//! What starts one is `retide dead-letters replay`. Invariant: nothing is sent before it was read as workers read it, and somebody has said yes.

pub(super) mod follow;
mod line;
pub(super) mod read;

use clap::{Args, Subcommand};
use serde_json::{Map, Value};

use retide_config::Config;
use retide_core::campaign::{Campaign, State, Verb};

use crate::cli::ask;
use crate::cli::output::{Exit, Failed, Output, print, say};

use self::follow::Asking;
use self::line::Line;

/// What is done with campaigns.
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// List campaigns, newest first
    Ls,
    /// Show a campaign: what it does, its counts and its log
    Show(Show),
    /// Let a campaign take no dead letters until it is resumed
    #[command(after_help = ACTING)]
    Pause(Acting),
    /// Let a campaign go on; where its brake has stopped it, from the first step of its ramp
    #[command(after_help = ACTING)]
    Resume(Acting),
    /// Let a campaign take no dead letters any more
    #[command(after_help = ACTING)]
    Abort(Acting),
}

/// What `show` takes.
#[derive(Debug, Args)]
pub(super) struct Show {
    /// The name of the campaign; of several with one name, the newest is shown
    #[arg(value_name = "NAME")]
    name: String,
    /// Tell how it goes until it is over, paused or stopped
    #[arg(long, short)]
    follow: bool,
}

/// What those take that change something.
#[derive(Debug, Args)]
pub(super) struct Acting {
    /// The name of the campaign
    #[arg(value_name = "NAME")]
    name: String,
    /// Who wants it, and whether it is done.
    #[command(flatten)]
    asking: Asking,
}

/// Shown by `--help` of what changes a campaign.
const ACTING: &str = "\
Examples:
  retide campaigns pause mend --reason 'the shop is being deployed'
  retide campaigns resume mend
  retide campaigns abort mend --yes

Tasks that a campaign has replayed go on in any case. Ctrl-C ends the waiting,
not the campaign. Exit code 3: there is no such campaign; 4: it is over already.";

// === impl Acting ===

impl Acting {
    /// The keys of the request.
    fn keys(&self, verb: &Verb) -> Map<String, Value> {
        self.asking.keys(verb.word(), &self.name)
    }
}

/// Does what is said with campaigns.
pub(super) fn campaigns(config: &Config, command: &Command, output: Output) -> Result<(), Failed> {
    match command {
        Command::Ls => ls(config, output),
        Command::Show(options) => show(config, options, output),
        Command::Pause(acting) => act(config, &Verb::Pause, acting, output),
        Command::Resume(acting) => act(config, &Verb::Resume, acting, output),
        Command::Abort(acting) => act(config, &Verb::Abort, acting, output),
    }
}

/// Lists campaigns.
fn ls(config: &Config, output: Output) -> Result<(), Failed> {
    let campaigns = read::all(config)?;
    let lines: Vec<Line> = campaigns.newest_first().map(Line::of).collect();
    if !lines.is_empty() || output != Output::Table {
        print(&lines, output)?;
    }
    campaigns.end()
}

/// Shows a campaign.
fn show(config: &Config, options: &Show, output: Output) -> Result<(), Failed> {
    let campaigns = read::all(config)?;
    let campaign = campaigns.named(&options.name)?;
    if options.follow && campaign.state == State::Running {
        return follow::watch(config, campaign, output);
    }
    line::print_whole(campaign, output)
}

/// Changes a campaign.
fn act(config: &Config, verb: &Verb, acting: &Acting, output: Output) -> Result<(), Failed> {
    let campaigns = read::all(config)?;
    let campaign = campaigns.named(&acting.name)?;
    if acting.asking.dry_run {
        line::print_whole(campaign, output)?;
        say("nothing was sent");
        return Ok(());
    }
    possible(verb, campaign)?;
    let what = format!("{} campaign {}", word(verb), campaign.id.name);
    if !acting.asking.yes {
        ask::somebody(|| {
            format!(
                "{what}, and nobody can be asked here whether it shall be: add --yes, or --dry-run to see the campaign"
            )
        })?;
        let out = format!("{what}, {}", line::words(campaign));
        ask::agreement(&out, "nothing was sent")?;
    }
    let keys = acting.keys(verb);
    let sent = follow::send(config, &acting.name, &keys)?;
    follow::accepted(config, &sent, &what, &acting.asking, output)
}

/// Whether a campaign can be changed so.
fn possible(verb: &Verb, campaign: &Campaign) -> Result<(), Failed> {
    let word = campaign.state.word();
    let name = &campaign.id.name;
    let why = match (verb, campaign.state) {
        (_, State::Done | State::Aborted) => format!("campaign {name} is over: {word}"),
        (Verb::Pause, State::Paused | State::Stopped) => {
            format!("campaign {name} is {word} already")
        }
        (Verb::Resume, State::Running) => format!("campaign {name} is running"),
        (Verb::Start(_) | Verb::Pause | Verb::Resume | Verb::Abort, _) => return Ok(()),
    };
    Err(Failed::because(Exit::Precondition, why))
}

/// The word for what is done, as people say it.
const fn word(verb: &Verb) -> &'static str {
    match verb {
        Verb::Start(_) => "start",
        Verb::Pause => "pause",
        Verb::Resume => "resume",
        Verb::Abort => "abort",
    }
}
