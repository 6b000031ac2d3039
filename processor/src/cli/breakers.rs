//! `retide breakers`: how the breakers of targets are, and how people want them.
//!
//! What is written is a record of the scenes topic, as that of a hold is. Invariant: nothing is written before it was read as workers read
//! it, and somebody has said yes.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, Subcommand};
use serde::Serialize;
use serde_json::Value;

use retide_avro::control::forced;
use retide_config::Config;
use retide_core::breaker::State;
use retide_core::forced::{BREAKER, Force, Forced, MAX_FORCED};
use retide_core::hold::Revision;
use retide_core::{Timestamp, span};
use retide_history::timeline;
use retide_kafka::cluster::User;
use retide_shell::clock;

use crate::cli::board::{Acting, Board};
use crate::cli::output::{Exit, Failed, Output, Row, print, say};

/// What is done.
#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// List the targets whose breakers are not closed, or of which people want something
    Ls,
    /// Keep targets from being called, whatever their breakers find
    Open(Options),
    /// Let targets be called, whatever their breakers find
    Close(Options),
    /// Take back what was wanted, and let breakers begin anew
    Reset(Options),
}

/// What those take that change something.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  retide breakers open shop.example --for 30m --reason 'they move their database'
  retide breakers close https://shop.example:443 --yes
  retide breakers reset shop.example

A target is a host, with its port or without, or scheme, host and port. All
breakers of it are meant: those of scenes, of walls, and flood brakes. What is
forced ends by itself, after an hour where nothing else is said. Exit code 6:
not all shards know it yet; it counts for each of them as soon as it does.")]
pub(super) struct Options {
    /// The targets
    #[arg(value_name = "TARGET", required = true)]
    targets: Vec<String>,
    /// When it ends by itself: RFC 3339, or milliseconds since the epoch [default: in 1h]
    #[arg(long, value_name = "TIME", conflicts_with = "lasts")]
    until: Option<String>,
    /// When it ends by itself, counted from now, such as 30m; at most 30d
    #[arg(long = "for", value_name = "DURATION", value_parser = span::parse)]
    lasts: Option<Duration>,
    /// What all of them take.
    #[command(flatten)]
    acting: Acting,
}

/// A target, as it is printed.
#[derive(Debug, Serialize)]
struct Line {
    /// The target.
    target: String,
    /// The worst state of its breakers, as shards have written it; none has where it is not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    state: Option<&'static str>,
    /// What people want, if that is in force: `open`, `closed` or `reset`.
    #[serde(skip_serializing_if = "Option::is_none")]
    forced: Option<&'static str>,
    /// Who wanted it.
    #[serde(skip_serializing_if = "String::is_empty")]
    by: String,
    /// Why.
    #[serde(skip_serializing_if = "String::is_empty")]
    reason: String,
    /// When it ends by itself, in ms since the epoch.
    #[serde(skip_serializing_if = "Option::is_none")]
    until: Option<u64>,
    /// How many shards there are.
    shards: usize,
    /// How many of them know what is wanted; where nothing is, how many have that state.
    confirmed: usize,
    /// Why its record does not count, if it does not.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

// === impl Line ===

impl Row for Line {
    const HEADINGS: &'static [&'static str] = &[
        "target", "state", "forced", "shards", "until", "by", "reason",
    ];

    fn cells(&self) -> Vec<String> {
        let until = self.until.map(Timestamp::from_millis);
        vec![
            self.target.clone(),
            self.state.unwrap_or("unknown").to_owned(),
            self.forced.unwrap_or_default().to_owned(),
            format!("{} of {}", self.confirmed, self.shards),
            until.map(timeline::clock).unwrap_or_default(),
            self.by.clone(),
            self.error.clone().unwrap_or_else(|| self.reason.clone()),
        ]
    }
}

/// Does it.
pub(super) fn breakers(config: &Config, verb: &Verb, output: Output) -> Result<(), Failed> {
    match verb {
        Verb::Ls => list(config, output),
        Verb::Open(options) => force(config, Force::Open, options, output),
        Verb::Close(options) => force(config, Force::Closed, options, output),
        Verb::Reset(options) => force(config, Force::Reset, options, output),
    }
}

/// Lists targets.
fn list(config: &Config, output: Output) -> Result<(), Failed> {
    let board = Board::open(config, User::Read)?;
    let now = clock::timestamp();
    let told = board.standings.by_name.keys();
    let told = told.filter_map(|name| name.strip_prefix(BREAKER));
    let forced = board.forced.iter();
    let forced = forced.filter(|(_, forced)| forced.is_on(now));
    let forced = forced.map(|(target, _)| target.as_str());
    let targets: BTreeSet<&str> = told.chain(forced).collect();
    let lines = targets.iter().map(|target| {
        let forced = board.forced.get(*target);
        line(&board, target, forced.filter(|forced| forced.is_on(now)))
    });
    // What has ended by itself, and is closed.
    let is_open = |line: &Line| {
        line.state
            .is_some_and(|state| state != State::Closed.word())
    };
    let lines = lines.filter(|line| line.forced.is_some() || is_open(line));
    let unreadable = board.unreadable_forced.iter();
    let unreadable = unreadable.map(|(target, unreadable)| Line {
        error: Some(unreadable.error.clone()),
        ..line(&board, target, None)
    });
    let lines: Vec<Line> = lines.chain(unreadable).collect();
    board.tell_others(&board.unreadable_forced);
    if lines.is_empty() {
        say("all breakers are closed, and nothing is forced");
        if output == Output::Table {
            return Ok(());
        }
    }
    print(&lines, output)
}

/// Forces the breakers of targets, or lets them be.
fn force(config: &Config, force: Force, options: &Options, output: Output) -> Result<(), Failed> {
    let names: BTreeSet<&str> = options.targets.iter().map(String::as_str).collect();
    let mut wanted: Vec<Forced> = Vec::new();
    let mut odd = Vec::new();
    for target in names {
        let forced = read(target, force, options);
        if force == Force::Reset && !forced::is_target(target) {
            odd.push((target, forced));
        } else {
            wanted.push(forced?);
        }
    }
    let list = options.targets.join(", ");
    let what = match force {
        Force::Open => format!("keep {list} from being called"),
        Force::Closed => format!("let {list} be called, whatever breakers find"),
        Force::Reset => format!("let the breakers of {list} begin anew"),
    };
    if !options.acting.dry_run {
        options.acting.confirm("breakers", &what)?;
    }
    let mut board = Board::open(config, User::ScenesApply)?;
    let mut broken = Vec::new();
    for (name, forced) in odd {
        // Whoever has written a record of such a name wants to be rid of it.
        if board.unreadable_forced.contains(name) {
            broken.push(name);
        } else {
            wanted.push(forced?);
        }
    }
    let now = clock::timestamp();
    if force == Force::Reset && options.until.is_none() && options.lasts.is_none() {
        for reset in &mut wanted {
            outlast(reset, board.forced.values(), now);
        }
    }
    if options.acting.dry_run {
        let lines = wanted.iter();
        let lines: Vec<Line> = lines
            .map(|forced| line(&board, &forced.target, board.forced.get(&*forced.target)))
            .collect();
        print(&lines, output)?;
        say(&format!("{what}: nothing was written"));
        return Ok(());
    }
    let is_named = |target: &str| wanted.iter().any(|forced| *forced.target == *target);
    let others = board.forced.iter().filter(|(target, _)| !is_named(target));
    let (on, ended): (Vec<_>, Vec<_>) = others.partition(|(_, forced)| forced.is_on(now));
    if on.len() + wanted.len() > MAX_FORCED {
        let message = format!(
            "there are {} already, as many as may be; reset some",
            on.len()
        );
        return Err(Failed::because(Exit::Precondition, message));
    }
    let records = wanted.iter();
    let records = records.map(|forced| (&*forced.target, Some(forced::encode(forced))));
    // Nobody else takes those away that have ended by themselves.
    let ended = ended.iter().map(|(target, _)| (target.as_str(), None));
    let broken = broken.iter().map(|name| (*name, None));
    let records = records.chain(ended).chain(broken);
    let records: Vec<_> = records
        .map(|(target, value)| (format!("{BREAKER}{target}"), value))
        .collect();
    let written = board.write(&records)?;
    for (forced, revision) in wanted.iter_mut().zip(written) {
        forced.revision = revision;
    }
    say(&format!("{what}: written"));
    if !options.acting.no_wait {
        board.wait(options.acting.wait, |board, shard| {
            wanted.iter().all(|forced| knows(board, forced, shard))
        });
    }
    let lines = wanted.iter();
    let lines: Vec<Line> = lines
        .map(|forced| line(&board, &forced.target, Some(&Arc::new(forced.clone()))))
        .collect();
    print(&lines, output)?;
    if options.acting.no_wait {
        return Ok(());
    }
    let least = lines.iter().map(|line| line.confirmed).min();
    board.partly("it", "breakers ls", least.unwrap_or(usize::MAX))
}

/// Has a reset stand for longer than what it takes back under other names of the target, which would count again after it.
fn outlast<'a>(reset: &mut Forced, all: impl Iterator<Item = &'a Arc<Forced>>, now: Timestamp) {
    let host = |name: &str| forced::host_of(name).to_owned();
    let same = all.filter(|forced| {
        let is_other = forced.target != reset.target && forced.is_on(now);
        is_other && host(&forced.target) == host(&reset.target)
    });
    let last = same.map(|forced| forced.until).max();
    reset.until = last.map_or(reset.until, |last| reset.until.max(last));
}

/// Whether a shard knows what is wanted, or something later of the same target.
fn knows(board: &Board<'_>, forced: &Forced, shard: i32) -> bool {
    let name = format!("{BREAKER}{}", forced.target);
    board.knows(&name, forced.revision, shard)
}

/// A target, as it is printed.
fn line(board: &Board<'_>, target: &str, forced: Option<&Arc<Forced>>) -> Line {
    let name = format!("{BREAKER}{target}");
    let by_shard = board.standings.by_name.get(&*name).into_iter().flatten();
    let states: Vec<State> = by_shard
        .filter_map(|(_, standing)| standing.breaker)
        .collect();
    let shards = board.standings.shards;
    let worst = states.iter().max().copied();
    let confirmed = match forced {
        Some(forced) => {
            let shards = 0..shards as i32;
            shards.filter(|shard| knows(board, forced, *shard)).count()
        }
        None => states.iter().filter(|state| Some(**state) == worst).count(),
    };
    let text = |of: fn(&Forced) -> &str| forced.map(|forced| of(forced).to_owned());
    Line {
        target: target.to_owned(),
        state: worst.map(State::word),
        forced: forced.map(|forced| forced.force.word()),
        by: text(|forced| &forced.by).unwrap_or_default(),
        reason: text(|forced| &forced.reason).unwrap_or_default(),
        until: forced.map(|forced| forced.until.as_millis()),
        shards,
        confirmed,
        error: None,
    }
}

/// What is wanted of a target, as workers read it.
fn read(target: &str, force: Force, options: &Options) -> Result<Forced, Failed> {
    let (until, lasts) = (options.until.as_deref(), options.lasts);
    let mut keys = options.acting.said(until, lasts);
    keys.insert("state".to_owned(), force.word().into());
    let text = Value::Object(keys).to_string();
    let now = clock::timestamp();
    let target = target.to_ascii_lowercase();
    let forced = forced::decode(target.as_bytes(), text.as_bytes(), now, Revision::default())
        .map_err(|why| Failed::because(Exit::Usage, String::from(why)))?;
    if !forced.is_on(now) {
        let message = "it would be over already; name a later end";
        return Err(Failed::because(Exit::Usage, message));
    }
    Ok(forced)
}
