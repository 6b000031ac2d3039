//! `retide-sim`: campaigns of many histories, one history in every detail, or histories for the checker of the crash campaign.

use std::env;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use retide_sim::{AtBroken, Bug, Keep, campaign, export, play};

/// How to call it.
const USAGE: &str = "usage: retide-sim --seeds N [--from S] [--jobs J]
       retide-sim --seed S
       retide-sim --seeds N [--from S] [--bug BUG] --export DIR

Plays N histories from seed S on, J at a time, and names those in which a promise is broken;
or one history, and prints its trace; or as many campaigns, with a bug if one is named, of which it writes
the ledgers to DIR/SEED, for the checker of the crash campaign.
";

/// Histories between two words about how far it is.
const CHUNK: u64 = 1_000;

/// What is asked for.
struct Order {
    /// The one seed to look at, if only one.
    seed: Option<u64>,
    /// How many seeds.
    seeds: u64,
    /// The first one.
    from: u64,
    /// How many at a time.
    jobs: usize,
    /// The bug to plant in what is exported.
    bug: Bug,
    /// Where to export to, if that is asked for.
    export: Option<PathBuf>,
}

fn main() -> ExitCode {
    let Some(order) = parse(env::args().skip(1)) else {
        let _ = io::stderr().write_all(USAGE.as_bytes());
        return ExitCode::from(2);
    };
    let done = match (&order.export, order.seed) {
        (Some(dir), _) => export_all(&order, dir),
        (None, Some(seed)) => show(seed),
        (None, None) => play_all(&order),
    };
    done.unwrap_or(ExitCode::FAILURE)
}

/// Reads the arguments.
fn parse(mut arguments: impl Iterator<Item = String>) -> Option<Order> {
    let mut order = Order {
        seed: None,
        seeds: 0,
        from: 0,
        jobs: std::thread::available_parallelism().map_or(1, usize::from),
        bug: Bug::None,
        export: None,
    };
    while let Some(name) = arguments.next() {
        let value = arguments.next()?;
        match name.as_str() {
            "--seed" => order.seed = Some(value.parse().ok()?),
            "--seeds" => order.seeds = value.parse().ok()?,
            "--from" => order.from = value.parse().ok()?,
            "--jobs" => order.jobs = value.parse().ok()?,
            "--bug" => order.bug = bug(&value)?,
            "--export" => order.export = Some(value.into()),
            _ => return None,
        }
    }
    let exports = order.export.is_some();
    // What is judged here is the code as it is.
    let fits = exports || order.bug == Bug::None;
    let asked = order.seeds > 0 || order.seed.is_some() && !exports;
    (fits && asked).then_some(order)
}

/// The bug of this name.
fn bug(name: &str) -> Option<Bug> {
    Bug::all()
        .into_iter()
        .find(|bug| format!("{bug:?}") == name)
}

/// Exports many campaigns.
fn export_all(order: &Order, dir: &Path) -> io::Result<ExitCode> {
    let end = order.from.saturating_add(order.seeds);
    for seed in order.from..end {
        export(seed, order.bug, &dir.join(seed.to_string()))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Shows one history.
fn show(seed: u64) -> io::Result<ExitCode> {
    let report = play(seed, Bug::None, Keep::Text);
    let mut out = io::stdout().lock();
    out.write_all(report.text.as_bytes())?;
    writeln!(
        out,
        "seed {seed}, hash {:016x}: {:?}",
        report.hash, report.figures
    )?;
    match report.broken {
        None => Ok(ExitCode::SUCCESS),
        Some(why) => {
            writeln!(out, "broken: {why}")?;
            Ok(ExitCode::FAILURE)
        }
    }
}

/// Plays many histories.
fn play_all(order: &Order) -> io::Result<ExitCode> {
    let begun = Instant::now();
    let end = order.from.saturating_add(order.seeds);
    let (mut from, mut broken) = (order.from, 0);
    let mut out = io::stdout().lock();
    let mut total = retide_sim::Figures::default();
    while from < end {
        let to = end.min(from.saturating_add(CHUNK));
        let summary = campaign(from..to, order.jobs, Bug::None, AtBroken::GoOn);
        for report in &summary.broken {
            let why = report.broken.as_deref().unwrap_or_default();
            writeln!(out, "seed {}: {why}", report.seed)?;
        }
        broken += summary.broken.len();
        total = total.and(summary.figures);
        let seconds = begun.elapsed().as_secs();
        writeln!(io::stderr(), "{to}: {broken} broken, {seconds} s")?;
        from = to;
    }
    let seconds = begun.elapsed().as_secs();
    writeln!(
        out,
        "{} histories, {broken} broken, {seconds} s: {total:?}",
        order.seeds
    )?;
    Ok(if broken == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
