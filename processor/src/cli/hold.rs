//! `retide hold`, `release` and `holds`: tasks that are not started until somebody lets them go.
//!
//! What is written is a record of the scenes topic, which any producer may write. Invariant: nothing is written before it was read as
//! workers read it, and somebody has said yes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use clap::Args;
use serde::Serialize;
use serde_json::{Map, Value};

use retide_avro::control::hold;
use retide_config::Config;
use retide_core::hold::{Deadlines, EXHAUSTED, HOLD, Hold, HoldId, LASTS, MAX_HOLDS, Revision};
use retide_core::ramp::{FAILURE_RATE, MAX_STEPS, Progress, Ramp};
use retide_core::selector::Selector;
use retide_core::{Timestamp, span};
use retide_history::timeline;
use retide_kafka::cluster::User;
use retide_shell::clock;

use crate::cli::board::{Acting, Board};
use crate::cli::output::{Exit, Failed, Output, Row, print, say};
use crate::cli::suggest;
use crate::cli::tasks::selector::Select;
use crate::cli::tasks::under_way;

/// What `hold` takes.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  retide hold --scene payment --reason 'the bank is down' --for 2h
  retide hold --target shop.example --dry-run
  retide hold --header tenant=7 --name tenant-7 --yes

What is held is not started, uses no attempt, and keeps its deadline, unless
--deadlines stop says that it stands still; calls in flight come back. The same
tasks are held once: a second `hold` of them is for the first one's place. Exit
code 6: not all shards know it yet; it counts for each of them as soon as it
does.")]
pub(super) struct Options {
    /// Which tasks.
    #[command(flatten)]
    select: Select,
    /// What the hold is called: 1 to 100 letters, digits and ._:@- [default: made of what it holds]
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// When it ends by itself: RFC 3339, or milliseconds since the epoch [default: in 24h]
    #[arg(long, value_name = "TIME", conflicts_with = "lasts")]
    until: Option<String>,
    /// When it ends by itself, counted from now, such as 2h; at most 30d
    #[arg(long = "for", value_name = "DURATION", value_parser = span::parse)]
    lasts: Option<Duration>,
    /// Whether the deadlines of its tasks go on (run), or stand still while they are due and held (stop)
    #[arg(long, value_name = "WORD", default_value = "run", value_parser = ["run", "stop"])]
    deadlines: String,
    /// What all of them take.
    #[command(flatten)]
    acting: Acting,
}

/// What `release` takes.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  retide release scene-payment
  retide release --scene payment --reason 'the bank is back'
  retide release scene-payment --ramp
  retide release exhausted/payment --reason 'it is mended'
  retide release --all --dry-run

Options that name tasks mean the hold of exactly those. Tasks are back within a
minute; with --ramp a few a second at first, and more as long as they do well.
exhausted/SCENE are the tasks that are out of attempts, of a scene that holds
those: each of them is tried again as often as a new one.
Exit code 3: there is no such hold.")]
pub(super) struct Release {
    /// The holds, by name
    #[arg(value_name = "NAME")]
    names: Vec<String>,
    /// All holds
    #[arg(long, conflicts_with = "names")]
    all: bool,
    /// Let so many tasks go a second, of the whole group, then so many, then twice as many each time [default: 1,5,20,100]
    #[arg(
        long,
        value_name = "N,N,…",
        num_args = 0..=1,
        require_equals = true,
        value_delimiter = ',',
        default_missing_value = "1,5,20,100"
    )]
    ramp: Option<Vec<u32>>,
    /// The part of the calls of a step that may fail; if more do, all is held again [default: 0.2]
    #[arg(long, value_name = "PART", requires = "ramp")]
    failure_rate: Option<f64>,
    /// Which tasks.
    #[command(flatten)]
    select: Select,
    /// What all of them take.
    #[command(flatten)]
    acting: Acting,
}

/// A hold, as it is printed.
#[derive(Debug, Serialize)]
struct Line {
    /// Its name.
    name: String,
    /// How it stands: `held`, `exhausted` where its tasks are out of attempts, on a `ramp`, `fell-back` from one, `released`, `ended` by itself,
    /// or `unreadable`.
    state: &'static str,
    /// Which tasks.
    #[serde(skip_serializing_if = "Value::is_null")]
    select: Value,
    /// Who wanted it.
    #[serde(skip_serializing_if = "String::is_empty")]
    by: String,
    /// Why.
    #[serde(skip_serializing_if = "String::is_empty")]
    reason: String,
    /// Since when, in ms since the epoch.
    #[serde(skip_serializing_if = "Option::is_none")]
    since: Option<u64>,
    /// When it ends by itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    until: Option<u64>,
    /// What becomes of the deadlines of its tasks, if they do not run.
    #[serde(skip_serializing_if = "Option::is_none")]
    deadlines: Option<&'static str>,
    /// How many shards there are.
    shards: usize,
    /// How many of them know it, or that it is released.
    confirmed: usize,
    /// How many tasks a second its ramp lets go at least, of the whole group.
    #[serde(skip_serializing_if = "Option::is_none")]
    pace: Option<u32>,
    /// How many due tasks it holds, as far as shards have seen them in the last seconds.
    waiting: u64,
    /// What is wrong with it.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

/// Longest name that is made of what a hold holds; others are numbers.
const LONGEST_MADE: usize = 64;

// === impl Line ===

impl Row for Line {
    const HEADINGS: &'static [&'static str] = &[
        "hold", "state", "tasks", "waiting", "shards", "until", "by", "reason",
    ];

    fn cells(&self) -> Vec<String> {
        let until = self.until.map(Timestamp::from_millis);
        vec![
            self.name.clone(),
            match self.pace {
                Some(pace) => format!("{} {pace}/s", self.state),
                None => self.state.to_owned(),
            },
            match &self.error {
                Some(error) => error.clone(),
                None => self.select.to_string(),
            },
            self.waiting.to_string(),
            format!("{} of {}", self.confirmed, self.shards),
            until.map(timeline::clock).unwrap_or_default(),
            self.by.clone(),
            self.reason.clone(),
        ]
    }
}

// === impl Board ===

impl Board<'_> {
    /// A hold, as it is printed; `released` is one that was taken off the topic.
    fn line(&self, hold: &Hold, state: &'static str, is_told: impl Fn(i32) -> bool) -> Line {
        let by_shard = self.standings.by_name.get(&hold.name);
        let waiting = by_shard.into_iter().flatten();
        let waiting = waiting.map(|(_, standing)| u64::from(standing.waiting));
        let shards = self.standings.shards;
        Line {
            name: hold.name.to_string(),
            state,
            select: hold::select_value(hold),
            by: hold.by.to_string(),
            reason: hold.reason.to_string(),
            since: Some(hold.since.as_millis()).filter(|_| !hold.is_unsaid()),
            until: Some(hold.until.as_millis()).filter(|_| hold.until < Timestamp::MAX),
            deadlines: (hold.deadlines == Deadlines::Stop).then(|| hold.deadlines.word()),
            shards,
            confirmed: (0..shards as i32).filter(|shard| is_told(*shard)).count(),
            pace: hold.ramp.as_ref().and_then(|ramp| {
                let steps = self.steps(hold);
                ramp.pace(
                    steps
                        .map(|progress| progress.step)
                        .min()
                        .unwrap_or_default(),
                )
            }),
            waiting: waiting.sum(),
            error: None,
        }
    }

    /// The hold of this name, if there is one.
    fn hold(&self, name: &str) -> Option<Arc<Hold>> {
        let exhausted = || {
            let scene = name.strip_prefix(EXHAUSTED)?;
            let is_there =
                self.holding.contains(scene) || self.standings.by_name.contains_key(name);
            is_there.then(|| Arc::new(Hold::of_exhausted(&scene.into())))
        };
        self.holds.get(name).cloned().or_else(exhausted)
    }

    /// Every hold, and those of tasks that are out of attempts as far as there are some.
    fn all(&self) -> Vec<Arc<Hold>> {
        let names = self.standings.by_name.iter();
        let exhausted = names.filter(|(name, by_shard)| {
            name.starts_with(EXHAUSTED) && by_shard.values().any(|standing| standing.waiting > 0)
        });
        let exhausted = exhausted.map(|(name, _)| name.to_string());
        let asked = self.holds.values().filter(|hold| hold.of_scene().is_none());
        // Those only tell what was.
        let asked = asked.filter(|hold| hold.deadlines != Deadlines::Stood);
        let asked = asked.map(|hold| hold.name.to_string());
        let names: BTreeSet<String> = asked.chain(exhausted).collect();
        names.iter().filter_map(|name| self.hold(name)).collect()
    }

    /// How far the ramp of a hold is in each shard that has begun it.
    fn steps(&self, hold: &Hold) -> impl Iterator<Item = Progress> {
        let by_shard = self.standings.by_name.get(&hold.name);
        let standings = by_shard.into_iter().flat_map(BTreeMap::values);
        let standings = standings.filter(|standing| standing.revision >= hold.revision);
        standings.filter_map(|standing| standing.ramp)
    }

    /// How a hold stands, in a word.
    fn state(&self, hold: &Hold, now: Timestamp) -> &'static str {
        if !hold.is_on(now) {
            return "ended";
        }
        let Some(ramp) = &hold.ramp else {
            return if hold.of_scene().is_some() {
                "exhausted"
            } else {
                "held"
            };
        };
        if self.steps(hold).any(|progress| progress.fell) {
            return "fell-back";
        }
        let shards = self.standings.shards;
        let over = self.steps(hold);
        let over = over.filter(|progress| ramp.pace(progress.step).is_none());
        if shards > 0 && over.count() >= shards {
            "released"
        } else {
            "ramp"
        }
    }

    /// Whether a shard knows a hold, or something later of its name.
    fn knows_hold(&self, hold: &Hold, shard: i32) -> bool {
        self.knows(&hold.name, hold.revision, shard)
    }

    /// Whether a shard has written that a hold is over.
    fn has_let_go(&self, hold: &Hold, shard: i32) -> bool {
        let by_shard = self.standings.by_name.get(&hold.name);
        by_shard.is_none_or(|by_shard| !by_shard.contains_key(&shard))
    }

    /// Writes down that these holds have let deadlines stand still, those that did: they are to be over.
    fn remember<'a>(&self, over: impl Iterator<Item = &'a Hold>) -> Result<(), Failed> {
        let now = clock::timestamp();
        let stood = over.filter_map(|hold| hold.stood(now));
        let stood = stood.filter(|stood| stood.since < stood.until);
        let records: Vec<_> = stood
            .map(|stood| (stood.name.to_string(), Some(hold::encode(&stood))))
            .collect();
        if !records.is_empty() {
            self.write_holds(&records)?;
        }
        Ok(())
    }

    /// Writes records of holds, and says where they stand.
    fn write_holds(&self, records: &[(String, Option<Bytes>)]) -> Result<Vec<Revision>, Failed> {
        let records = records.iter();
        let records: Vec<_> = records
            .map(|(name, value)| (format!("{HOLD}{name}"), value.clone()))
            .collect();
        self.write(&records)
    }
}

/// Holds tasks.
pub(super) fn hold(config: &Config, options: &Options, output: Output) -> Result<(), Failed> {
    let (mut hold, text) = read(options)?;
    if options.acting.dry_run {
        let selectors = [hold.selector];
        return under_way::dry_run(config, "hold", &selectors, output);
    }
    let what = format!(
        "hold all tasks with {text}, until {}",
        timeline::clock(hold.until)
    );
    options.acting.confirm("hold", &what)?;
    let mut board = Board::open(config, User::ScenesApply)?;
    let now = clock::timestamp();
    let others = board.holds.values().filter(|other| other.is_on(now));
    let others = others.filter(|other| other.name != hold.name && other.of_scene().is_none());
    let others = others.count();
    if others >= MAX_HOLDS {
        let message = format!("there are {others} holds, as many as may be; release some");
        return Err(Failed::because(Exit::Precondition, message));
    }
    let mut records = vec![(hold.name.to_string(), Some(hold::encode(&hold)))];
    // Nobody else takes those away that have ended by themselves.
    let ended = board.holds.values().filter(|other| !other.is_on(now));
    let ended = ended.filter(|other| other.name != hold.name);
    // That deadlines stood still is remembered for a while.
    let ended =
        ended.filter(|other| other.deadlines != Deadlines::Stood || other.is_forgotten(now));
    records.extend(ended.map(|other| (other.name.to_string(), None)));
    let over = board.holds.values();
    let over = over.filter(|other| other.name == hold.name || !other.is_on(now));
    board.remember(over.map(|other| &**other))?;
    hold.revision = board.write_holds(&records)?[0];
    say(&format!("hold {} is written", hold.name));
    if !options.acting.no_wait {
        board.wait(options.acting.wait, |board, shard| {
            board.knows_hold(&hold, shard)
        });
    }
    let line = board.line(&hold, "held", |shard| board.knows_hold(&hold, shard));
    let confirmed = line.confirmed;
    print(&[line], output)?;
    if options.acting.no_wait {
        return Ok(());
    }
    board.partly(&format!("hold {}", hold.name), "holds", confirmed)
}

/// Lets go what holds hold.
pub(super) fn release(config: &Config, options: &Release, output: Output) -> Result<(), Failed> {
    let selects = options.select.parts()?;
    let has_select = selects
        .iter()
        .any(|select| select != &Value::Object(Map::new()));
    let said = [!options.names.is_empty(), options.all, has_select];
    if said.iter().filter(|is_said| **is_said).count() != 1 {
        let message = "name the holds, or say which tasks they hold, or --all";
        return Err(Failed::because(Exit::Usage, message));
    }
    let selectors = if has_select {
        options.select.selectors()?
    } else {
        Vec::new()
    };
    let ramp = ramp(options)?;
    let mut board = Board::open(config, User::ScenesApply)?;
    let names = meant(&board, options, &selectors)?;
    let holds: Vec<Arc<Hold>> = names.iter().filter_map(|name| board.hold(name)).collect();
    let list = names
        .iter()
        .map(String::as_str)
        .collect::<Vec<_>>()
        .join(", ");
    if options.acting.dry_run {
        let lines = holds.iter();
        let lines: Vec<Line> = lines
            .map(|hold| {
                let state = board.state(hold, clock::timestamp());
                board.line(hold, state, |shard| board.knows_hold(hold, shard))
            })
            .collect();
        print(&lines, output)?;
        say(&format!("release {list}: nothing was written"));
        return Ok(());
    }
    options
        .acting
        .confirm("release", &format!("release {list}"))?;
    if let Some(ramp) = ramp {
        return climb(&mut board, &holds, (ramp, options), output);
    }
    let_go(&mut board, &names, (&holds, options), output)
}

/// The names of the holds that are meant.
fn meant(
    board: &Board<'_>,
    options: &Release,
    selectors: &[Selector],
) -> Result<BTreeSet<String>, Failed> {
    let mut names: BTreeSet<String> = if options.all {
        let unreadable = board.unreadable.iter().map(|(name, _)| name.clone());
        let all = board.all();
        let all = all.iter().map(|hold| hold.name.to_string());
        all.chain(unreadable).collect()
    } else {
        options.names.iter().cloned().collect()
    };
    let holds = board
        .holds
        .values()
        .filter(|hold| hold.of_scene().is_none());
    let holds = holds.filter(|hold| hold.deadlines != Deadlines::Stood);
    let fitting = holds.filter(|hold| selectors.contains(&hold.selector));
    names.extend(fitting.map(|hold| hold.name.to_string()));
    for name in &names {
        if board.hold(name).is_none() && !board.unreadable.contains(name) {
            let known: Vec<String> = board
                .all()
                .iter()
                .map(|hold| hold.name.to_string())
                .collect();
            let known: Vec<&String> = known.iter().collect();
            let message = format!("there is no hold {name}{}", suggest::words(name, &known));
            return Err(Failed::because(Exit::NotFound, message));
        }
    }
    if names.is_empty() {
        let message = if options.all {
            "there is no hold"
        } else {
            "there is no hold of exactly these tasks; `retide holds` lists them"
        };
        return Err(Failed::because(Exit::NotFound, message));
    }
    Ok(names)
}

/// Lets go at once what these holds hold.
fn let_go(
    board: &mut Board<'_>,
    names: &BTreeSet<String>,
    (holds, options): (&[Arc<Hold>], &Release),
    output: Output,
) -> Result<(), Failed> {
    let by = options.acting.by();
    let reason = options.acting.reason.as_deref().unwrap_or_default();
    // What is out of attempts is let go by a record: the hold itself goes on.
    let mut going: Vec<Hold> = holds
        .iter()
        .filter(|hold| hold.of_scene().is_some())
        .map(|hold| Hold {
            by: by.clone().into(),
            reason: reason.into(),
            ramp: None,
            ..Hold::clone(hold)
        })
        .collect();
    let goes_on = |name: &str| going.iter().any(|hold| *hold.name == *name);
    let over = names.iter().filter(|name| !goes_on(name));
    let over: Vec<_> = over.map(|name| (name.clone(), None)).collect();
    let records = going.iter();
    let records = records.map(|hold| (hold.name.to_string(), Some(hold::encode(hold))));
    let records: Vec<_> = records.chain(over).collect();
    board.remember(holds.iter().map(|hold| &**hold))?;
    let written = board.write_holds(&records)?;
    for (hold, revision) in going.iter_mut().zip(written) {
        hold.revision = revision;
    }
    let going: BTreeMap<Arc<str>, Hold> = going
        .into_iter()
        .map(|hold| (Arc::clone(&hold.name), hold))
        .collect();
    let is_done = |board: &Board<'_>, hold: &Hold, shard: i32| match going.get(&hold.name) {
        Some(hold) => board.knows_hold(hold, shard),
        None => board.has_let_go(hold, shard),
    };
    let list: Vec<&str> = names.iter().map(String::as_str).collect();
    say(&format!("released: {}", list.join(", ")));
    let mut lines: Vec<Line> = holds
        .iter()
        .map(|hold| Line {
            by: by.clone(),
            reason: reason.to_owned(),
            ..board.line(hold, "released", |_| false)
        })
        .collect();
    if !options.acting.no_wait {
        board.wait(options.acting.wait, |board, shard| {
            holds.iter().all(|hold| is_done(board, hold, shard))
        });
    }
    let shards = board.standings.shards as i32;
    for (line, hold) in lines.iter_mut().zip(holds) {
        let told = (0..shards).filter(|shard| is_done(board, hold, *shard));
        line.confirmed = told.count();
    }
    print(&lines, output)?;
    if options.acting.no_wait {
        return Ok(());
    }
    let least = lines.iter().map(|line| line.confirmed).min();
    board.partly("the release", "holds", least.unwrap_or(usize::MAX))
}

/// The ramp that is asked for.
fn ramp(options: &Release) -> Result<Option<Ramp>, Failed> {
    let Some(steps) = &options.ramp else {
        return Ok(None);
    };
    let rate = options.failure_rate.unwrap_or(FAILURE_RATE);
    let ramp = Ramp::try_new(steps, rate).ok_or_else(|| {
        let message = format!(
            "a ramp has 1 to {MAX_STEPS} rising numbers over 0, and a failure rate from 0 to below 1"
        );
        Failed::because(Exit::Usage, message)
    })?;
    Ok(Some(ramp))
}

/// Lets go slowly what these holds hold.
fn climb(
    board: &mut Board<'_>,
    holds: &[Arc<Hold>],
    (ramp, options): (Ramp, &Release),
    output: Output,
) -> Result<(), Failed> {
    let now = clock::timestamp();
    let mut climbing: Vec<Hold> = holds
        .iter()
        .map(|hold| Hold {
            by: options.acting.by().into(),
            reason: options.acting.reason.clone().unwrap_or_default().into(),
            since: now,
            // What is left then is let go at once.
            until: match hold.of_scene() {
                Some(_) => hold.until,
                None => (now + LASTS).ceil_to_millis(),
            },
            ramp: Some(ramp.clone()),
            ..Hold::clone(hold)
        })
        .collect();
    let records = climbing.iter();
    let records: Vec<_> = records
        .map(|hold| (hold.name.to_string(), Some(hold::encode(hold))))
        .collect();
    board.remember(holds.iter().map(|hold| &**hold))?;
    let written = board.write_holds(&records)?;
    for (hold, revision) in climbing.iter_mut().zip(written) {
        hold.revision = revision;
        say(&format!(
            "hold {} is on its ramp; `retide holds` tells how far",
            hold.name
        ));
    }
    if !options.acting.no_wait {
        board.wait(options.acting.wait, |board, shard| {
            climbing.iter().all(|hold| board.knows_hold(hold, shard))
        });
    }
    let lines = climbing.iter();
    let lines: Vec<Line> = lines
        .map(|hold| {
            let state = board.state(hold, now);
            board.line(hold, state, |shard| board.knows_hold(hold, shard))
        })
        .collect();
    print(&lines, output)?;
    if options.acting.no_wait {
        return Ok(());
    }
    let least = lines.iter().map(|line| line.confirmed).min();
    board.partly("the ramp", "holds", least.unwrap_or(usize::MAX))
}

/// Lists holds.
pub(super) fn holds(config: &Config, output: Output) -> Result<(), Failed> {
    let board = Board::open(config, User::Read)?;
    let now = clock::timestamp();
    let holds = board.all();
    let holds = holds.iter();
    let mut lines: Vec<Line> = holds
        .map(|hold| {
            let state = board.state(hold, now);
            board.line(hold, state, |shard| board.knows_hold(hold, shard))
        })
        .collect();
    board.tell_others(&board.unreadable);
    for (name, unreadable) in board.unreadable.iter() {
        lines.push(Line {
            name: name.clone(),
            state: "unreadable",
            select: Value::Null,
            by: String::new(),
            reason: String::new(),
            since: None,
            until: None,
            deadlines: None,
            shards: board.standings.shards,
            confirmed: 0,
            pace: None,
            waiting: 0,
            error: Some(unreadable.error.clone()),
        });
    }
    if lines.is_empty() {
        say("nothing is held");
        if output == Output::Table {
            return Ok(());
        }
    }
    print(&lines, output)
}

/// The hold that is asked for, as workers read it, and what it holds, for people.
fn read(options: &Options) -> Result<(Hold, String), Failed> {
    let selects = options.select.parts()?;
    let [select] = &selects[..] else {
        let message = "one hold may not name so many identities; use several";
        return Err(Failed::because(Exit::Usage, message));
    };
    let (until, lasts) = (options.until.as_deref(), options.lasts);
    let mut keys = options.acting.said(until, lasts);
    keys.insert("select".to_owned(), select.clone());
    keys.insert("deadlines".to_owned(), options.deadlines.clone().into());
    let text = Value::Object(keys).to_string();
    let now = clock::timestamp();
    let name = options.name.clone().unwrap_or_else(|| made_of(select));
    let hold = hold::decode(name.as_bytes(), text.as_bytes(), now, Revision::default())
        .map_err(|why| Failed::because(Exit::Usage, String::from(why)))?;
    if !hold.is_on(now) {
        let message = "the hold would be over already; name a later end";
        return Err(Failed::because(Exit::Usage, message));
    }
    Ok((hold, select.to_string()))
}

/// The name of a hold of these tasks where none is said: the same for the same tasks.
fn made_of(select: &Value) -> String {
    let parts = select.as_object();
    if let Some(parts) = parts.filter(|parts| parts.len() == 1)
        && let Some((part, value)) = parts.iter().next()
        && let [Value::String(value)] = &value.as_array().map_or(&[][..], Vec::as_slice)
    {
        let name = format!("{part}-{}", value.replace('=', "-"));
        if name.len() <= LONGEST_MADE && hold::is_name(&name) {
            return name;
        }
    }
    format!("hold-{:016x}", HoldId::of(&select.to_string()).get())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hold_is_called_by_what_it_holds_where_that_makes_a_name() {
        let made = |text: &str| made_of(&serde_json::from_str(text).unwrap());

        assert_eq!(made(r#"{"scene":["payment"]}"#), "scene-payment");
        assert_eq!(made(r#"{"header":["tenant=7"]}"#), "header-tenant-7");
        assert_eq!(
            made(r#"{"target":["shop.example:443"]}"#),
            "target-shop.example:443"
        );
        let two = made(r#"{"scene":["a","b"]}"#);
        assert!(two.starts_with("hold-") && hold::is_name(&two), "{two}");
        assert_eq!(two, made(r#"{"scene":["a","b"]}"#));
        assert_ne!(two, made(r#"{"scene":["a b"]}"#));
    }
}
