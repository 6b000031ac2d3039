//! `retide demo`: shows it all on this machine.

use std::io::{self, IsTerminal};
use std::time::{Duration, Instant};

use clap::Args;
use console::style;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;

use crate::cli::output::{Exit, Failed, Output, Row, print, put, say};
use crate::cli::run::Signals;
use crate::demo::{Demo, Progress, Report, SceneProgress, SceneReport};

/// What `demo` takes.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  retide demo
      run it, then stay up to be looked at with any Kafka tool
  retide demo --exit --json | tail -1 | jq
      run it, count, and end
  retide demo --tasks 10000 --seed 7

A broker in memory, a target that fails, and retide between them.
Every figure is counted from what the target and the topics saw.
Exit code 1 if a task is lost, early, or ended otherwise than it had to.")]
pub(super) struct Options {
    /// End after the summary
    #[arg(long)]
    exit: bool,
    /// How many tasks
    #[arg(long, default_value_t = 2_000, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    tasks: u64,
    /// Print the summary as one JSON object
    #[arg(long)]
    json: bool,
    /// Where chance comes from: the same seed, the same failures
    #[arg(long, default_value_t = 1, value_name = "N")]
    seed: u64,
}

/// How often progress is said where it cannot be drawn.
const SAY: Duration = Duration::from_secs(2);

/// Shows it all.
pub(super) fn demo(options: &Options) -> Result<(), Failed> {
    say("starting a Kafka broker in this process, a target that fails,\nand retide between them");
    let mut demo = Demo::start(options.tasks, options.seed)?;
    let mut shown = Shown::start(options.tasks);
    let report = demo.run(|progress| shown.show(&progress));
    shown.end();
    let report = match report {
        Ok(report) => report,
        Err(error) => {
            // What went wrong first is what counts.
            let _ = demo.stop();
            return Err(error.into());
        }
    };
    summary(options, &report)?;
    if !options.exit {
        stay(&demo, &report.example)?;
    }
    demo.stop()?;
    match report.differences.as_slice() {
        [] => Ok(()),
        differences => Err(Failed::because(
            Exit::Failure,
            format!("not as it should be: {}", differences.join(", ")),
        )),
    }
}

/// Prints what came out.
fn summary(options: &Options, report: &Report) -> Result<(), Failed> {
    for note in &report.notes {
        say(&format!("note: {note}"));
    }
    if options.json {
        return put(&serde_json::to_string(report).map_err(io::Error::from)?);
    }
    let mut rows: Vec<SceneRow> = report.scenes.iter().map(SceneRow::of).collect();
    rows.push(SceneRow {
        scene: "all",
        tasks: report.delivered + report.dead + report.expired,
        delivered: report.delivered,
        dead: report.dead,
        expired: report.expired,
    });
    print(&rows, Output::Table)?;
    let lateness = &report.lateness_ms;
    put(&format!(
        "\n{} tasks, {} attempts and {} callbacks in {:.1} s\n\
         lost {} · early {} · duplicates {}\n\
         late at the target: p50 {:.1} ms · p99 {:.1} ms · max {:.1} ms",
        report.tasks,
        report.attempts,
        report.callbacks,
        report.seconds,
        report.lost,
        report.early,
        report.duplicates,
        lateness.p50,
        lateness.p99,
        lateness.max,
    ))
}

/// Says how to look around, and waits for Ctrl-C.
fn stay(demo: &Demo, example: &str) -> Result<(), Failed> {
    let bootstrap = demo.bootstrap();
    let head = |text: &str| style(text).for_stderr().bold().to_string();
    say(&format!(
        "
{}
Ctrl-C ends it; nothing is left behind.

{}
  kcat -b {bootstrap} -L
  kcat -b {bootstrap} -t retry.callbacks -C -e -q
  kcat -b {bootstrap} -t retry.dead-letters -C -e -q
{}
  retide --bootstrap {bootstrap} scenes list
  retide --bootstrap {bootstrap} callbacks --last 5
{}
  echo '{{\"order\":7}}' | retide --bootstrap {bootstrap} \\
    submit --scene flaky --id order-7
{}
  retide --bootstrap {bootstrap} explain {example}",
        head(&format!("The broker stays up at {bootstrap}.")),
        head("Look around with any Kafka tool:"),
        head("Or with retide's own commands:"),
        head("Give it more to do:"),
        head("See what became of one task:"),
    ));
    demo.runtime().block_on(async {
        Signals::listen()?.next().await;
        Ok(())
    })
}

/// A row of the summary.
#[derive(Debug, Serialize)]
struct SceneRow {
    /// The scene.
    scene: &'static str,
    /// Its tasks.
    tasks: u64,
    /// Those that the target took.
    delivered: u64,
    /// Those that were given up.
    dead: u64,
    /// Those whose deadline passed.
    expired: u64,
}

// === impl SceneRow ===

impl SceneRow {
    /// The row of a scene.
    fn of(report: &SceneReport) -> Self {
        let SceneReport {
            scene,
            delivered,
            dead,
            expired,
        } = *report;
        Self {
            scene,
            tasks: delivered + dead + expired,
            delivered,
            dead,
            expired,
        }
    }
}

impl Row for SceneRow {
    const HEADINGS: &'static [&'static str] = &["scene", "ended", "delivered", "dead", "expired"];

    fn cells(&self) -> Vec<String> {
        let numbers = [self.tasks, self.delivered, self.dead, self.expired];
        let numbers = numbers.iter().map(u64::to_string);
        [self.scene.to_owned()].into_iter().chain(numbers).collect()
    }
}

/// Progress on a terminal, or in lines.
struct Shown {
    /// Drawn on a terminal, hidden elsewhere.
    bar: ProgressBar,
    /// When a line was said last.
    said: Instant,
}

// === impl Shown ===

impl Shown {
    /// Nothing has ended yet.
    fn start(tasks: u64) -> Self {
        let bar = ProgressBar::with_draw_target(Some(tasks), ProgressDrawTarget::stderr());
        let style = ProgressStyle::with_template("{bar:20.green} {pos}/{len} ended · {msg}");
        bar.set_style(style.unwrap_or_else(|error| unreachable!("{error}")));
        Self {
            bar,
            said: Instant::now(),
        }
    }

    /// Shows how far the demo has come: a line for all, and one for each scene.
    fn show(&mut self, progress: &Progress) {
        let Progress {
            tasks,
            ended,
            attempts,
            scenes,
        } = progress;
        let scenes: Vec<String> = scenes.iter().map(scene).collect();
        let scenes = scenes.join("\n");
        self.bar
            .set_message(format!("{attempts} attempts\n{scenes}"));
        self.bar.set_position(*ended);
        if !io::stderr().is_terminal() && self.said.elapsed() >= SAY {
            self.said = Instant::now();
            say(&format!(
                "{ended}/{tasks} tasks ended, {attempts} attempts\n{scenes}"
            ));
        }
    }

    /// Clears what is drawn.
    fn end(&self) {
        self.bar.finish_and_clear();
    }
}

/// A line of one scene, of at most 60 characters: what has ended, what waits, and why.
fn scene(progress: &SceneProgress) -> String {
    let SceneProgress {
        scene,
        ended,
        waiting,
        why,
    } = progress;
    let name = style(format!("{scene:<9}")).for_stderr().cyan();
    let waits = match why {
        Some(why) => style(format!("{waiting:>4} wait: {why}"))
            .for_stderr()
            .yellow(),
        None => style(String::new()),
    };
    format!("  {name} {ended:>5} ended {waits}")
        .trim_end()
        .to_owned()
}

impl From<crate::demo::Error> for Failed {
    /// A demo that cannot go on.
    fn from(error: crate::demo::Error) -> Self {
        Failed::new(Exit::Failure, &error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use console::measure_text_width;

    use crate::demo::plan::Answer;

    #[test]
    fn the_line_of_a_scene_fits_60_columns() {
        let answers = [Answer::Fail, Answer::Hang, Answer::Throttle(Duration::ZERO)];
        for answer in answers {
            let line = scene(&SceneProgress {
                scene: "throttled",
                ended: 12_345,
                waiting: 1_234,
                why: answer.why(),
            });

            let columns = measure_text_width(&line);
            assert!((50..=60).contains(&columns), "{columns}: {line}");
        }
    }
}
