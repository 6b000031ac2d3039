//! `retide scenes preview`: when a scene's tasks are tried again, attempt by attempt, as a table with a plot; and, in `pacing`, how hard its
//! target is pressed.
//!
//! Every attempt is taken to fail as soon as it starts. Invariant: whatever a task's chance, its attempts lie within what is shown.

mod pacing;

use std::collections::BTreeMap;
use std::fmt::Write;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use comfy_table::{Table, presets};
use serde::{Serialize, Serializer};

use retide_config::{Scene, rfc3339};
use retide_core::cron::{self, Schedule};
use retide_core::scene::{self, MAX_DELAY, OnExhausted};
use retide_core::span::human;
use retide_core::verdict::LEAST_WAIT;
use retide_core::{Backoff, Base, Failure, Outcome, Policy, Reason, Terminal, Timestamp};
use retide_shell::clock;

use crate::cli::output::{Exit, Failed, Output, document, put};
use crate::cli::preview::pacing::Pacing;
use crate::cli::suggest;

/// What `preview` takes.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  retide scenes preview payment
  retide scenes preview payment --scenes scenes.toml
      before it is applied; needs no broker
  retide scenes preview payment --on throttled --attempts 100

Every attempt is taken to fail as soon as it starts. Waits are shown from
the shortest to the longest that chance can make them. Below that: how many
attempts start, and wait for each other. How a rate divides over shards is
known where there is a broker to ask.")]
pub(super) struct Options {
    /// The scene
    #[arg(value_name = "NAME")]
    name: String,
    /// A file to find it in [default: the scenes topic, then the configuration]
    #[arg(long, value_name = "FILE")]
    pub(super) scenes: Option<PathBuf>,
    /// How the attempts fail
    #[arg(long, value_enum, value_name = "CLASS", default_value_t)]
    on: Class,
    /// Show at most so many attempts
    #[arg(long, value_name = "N", default_value_t = 40, value_parser = clap::value_parser!(u32).range(1..=MOST))]
    attempts: u32,
    /// When the first attempt starts, such as 2026-12-24T09:00:00+01:00 [default: now]
    #[arg(long, value_name = "TIME", value_parser = time)]
    start: Option<Timestamp>,
}

/// How attempts fail.
#[derive(Clone, Copy, Debug, Default, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
enum Class {
    /// In a way that another one may mend.
    #[default]
    Retryable,
    /// The target asks for some rest, without saying how long.
    Throttled,
    /// No answer in time.
    Timeout,
}

/// What is shown of a scene.
#[derive(Debug, Serialize)]
struct Preview {
    /// The scene.
    scene: String,
    /// How the attempts fail.
    on: Class,
    /// When the first one starts.
    start: String,
    /// What waits are counted from.
    from: Base,
    /// Attempts that are made at most.
    max_attempts: u32,
    /// Time from the first attempt after which none starts.
    #[serde(skip_serializing_if = "Option::is_none")]
    deadline_ms: Option<u64>,
    /// The attempts, as far as they are shown.
    attempts: Vec<AttemptRow>,
    /// How it ends, if that is shown.
    #[serde(skip_serializing_if = "Option::is_none")]
    end: Option<End>,
    /// How hard its target is pressed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pacing: Option<Pacing>,
    /// What those should know of its schedule who know another scheduler.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    notes: Vec<String>,
    /// The schedule, if there is one.
    #[serde(skip)]
    schedule: Option<Schedule>,
}

/// One attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
struct AttemptRow {
    /// Its number.
    attempt: u32,
    /// How long it waits after the one before.
    wait_ms: Band,
    /// How long it comes after the first one.
    since_first_ms: Band,
    /// When it is due, where there is a point in time for it, rather than a wait.
    #[serde(serialize_with = "point", skip_serializing_if = "Option::is_none")]
    due: Option<Timestamp>,
    /// Whether chance may put it after the deadline, so that it is not made.
    may_expire: bool,
}

/// From the shortest to the longest time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
struct Band {
    /// The shortest.
    min: u64,
    /// The longest.
    max: u64,
}

/// The end of a task that never succeeds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
struct End {
    /// The last attempt that is made.
    after_attempt: u32,
    /// How it ends.
    outcome: &'static str,
    /// Why.
    reason: &'static str,
}

/// Attempts that can be shown at most.
const MOST: i64 = 100_000;

/// Characters of the longest bar.
const WIDTH: usize = 40;

/// The longest wait is so many times the shortest where bars are better logarithmic: else the short ones could not be told apart.
const WIDE: u64 = WIDTH as u64;

/// Shows a scene, where there are so many shards.
pub(super) fn preview(
    (scenes, shards): (&BTreeMap<String, Scene>, Option<NonZeroU32>),
    options: &Options,
    output: Output,
) -> Result<(), Failed> {
    let name = &options.name;
    let scene = scenes.get(name).ok_or_else(|| {
        let place = match &options.scenes {
            Some(file) => format!("not in {}", file.display()),
            None => "neither on the scenes topic nor in the configuration".into(),
        };
        let known: Vec<&String> = scenes.keys().collect();
        let hint = suggest::words(name, &known);
        Failed::because(Exit::NotFound, format!("scene {name} is {place}{hint}"))
    })?;
    let rules = scene
        .rules(name)
        .map_err(|error| Failed::new(Exit::Usage, &error))?;
    let start = options.start.unwrap_or_else(|| {
        let now = clock::since_epoch().as_millis();
        Timestamp::from_millis(u64::try_from(now).unwrap_or(u64::MAX))
    });
    let mut preview = Preview::of(&rules, options.on, start, options.attempts);
    preview.pacing = Some(Pacing::of(&rules, scenes, shards));
    match output {
        Output::Table => put(&preview.text(start)),
        Output::Json | Output::Ndjson => document(&preview, output),
    }
}

// === impl Options ===

impl Options {
    /// The scene.
    pub(super) fn name(&self) -> &str {
        &self.name
    }
}

// === impl Class ===

impl Class {
    /// An outcome of this class.
    fn outcome(self) -> Outcome {
        let failure = Failure::new("preview", "");
        match self {
            Self::Retryable => Outcome::Retryable(failure),
            Self::Throttled => Outcome::Throttled {
                after: Duration::ZERO,
                failure,
            },
            Self::Timeout => Outcome::Timeout(failure),
        }
    }
}

// === impl End ===

impl End {
    /// The end where that becomes of tasks that are out of attempts.
    fn of(&self, on_exhausted: OnExhausted) -> Self {
        let is_held = matches!(on_exhausted, OnExhausted::Hold { .. });
        let is_exhausted = self.reason == Reason::AttemptsExhausted.word();
        Self {
            outcome: if is_held && is_exhausted {
                "held"
            } else {
                self.outcome
            },
            ..*self
        }
    }
}

// === impl Preview ===

impl Preview {
    /// The attempts of a task of `scene` whose first one starts at `start`, at most `most` of them.
    fn of(scene: &scene::Scene, on: Class, start: Timestamp, most: u32) -> Self {
        let mut policy = scene.policy_for(&on.outcome()).clone();
        if let Class::Throttled = on {
            policy.max_attempts = scene.max_throttled;
        }
        let policy = &policy;
        let mut preview = Self {
            scene: scene.name.to_string(),
            on,
            start: rfc3339(start),
            from: scene.base,
            max_attempts: policy.max_attempts.get(),
            deadline_ms: scene.deadline.map(millis),
            attempts: Vec::new(),
            end: None,
            pacing: None,
            notes: Vec::new(),
            schedule: None,
        };
        if let Backoff::Cron(schedule) = &policy.backoff {
            preview.notes = schedule.notes();
            preview.schedule = Some(schedule.clone());
        }
        let mut row = AttemptRow {
            attempt: 1,
            wait_ms: Band::default(),
            since_first_ms: Band::default(),
            due: None,
            may_expire: false,
        };
        loop {
            preview.attempts.push(row);
            if let Some(end) = next(policy, scene.deadline, start, &mut row) {
                preview.end = Some(end.of(scene.on_exhausted));
                preview.notes.extend(held(scene, &end));
                return preview;
            }
            if row.attempt > most {
                return preview;
            }
        }
    }

    /// The table and the plot.
    fn text(&self, start: Timestamp) -> String {
        let Self {
            scene,
            on,
            from,
            max_attempts,
            deadline_ms,
            attempts,
            end,
            pacing,
            notes,
            ..
        } = self;
        let on = match on {
            Class::Retryable => "each one failing",
            Class::Throttled => "each one throttled",
            Class::Timeout => "each one timing out",
        };
        let from = match from {
            Base::Actual => "waits count from the end of an attempt",
            Base::Scheduled => "waits count from when an attempt was due",
        };
        let deadline = deadline_ms.map_or_else(
            || "no deadline".into(),
            |deadline| format!("deadline {}", human(deadline)),
        );
        let mut text =
            format!("scene {scene}, {on}: at most {max_attempts} attempts, {deadline}; {from}\n");
        let scale = Scale::of(attempts);
        let points = attempts.iter().any(|row| row.due.is_some());
        let mut table = Table::new();
        table.load_preset(presets::NOTHING);
        let due = points.then_some("DUE");
        let headings = ["ATTEMPT", "WAIT", "SINCE THE FIRST"].into_iter();
        table.set_header(headings.chain(due).chain(["", ""]));
        for row in attempts {
            let due = row.due.unwrap_or(start);
            let due = points.then(|| self.wall(due));
            let cells = [
                row.attempt.to_string(),
                row.wait_ms.text(),
                row.since_first_ms.text(),
            ];
            let note = if row.may_expire { "may expire" } else { "" };
            let plot = [scale.bar(row.wait_ms), note.to_owned()];
            table.add_row(cells.into_iter().chain(due).chain(plot));
        }
        text.push_str(&table.trim_fmt());
        let last = attempts.last().map_or(0, |row| row.attempt);
        let _ = match end {
            Some(End {
                after_attempt,
                outcome,
                reason,
            }) => write!(text, "\n{outcome} after attempt {after_attempt}: {reason}"),
            None => write!(text, "\nand so on; --attempts shows more than {last}"),
        };
        let _ = write!(text, "\n{}", scale.legend());
        for note in notes {
            let _ = write!(text, "\nnote: {note}");
        }
        if let Some(pacing) = pacing {
            let _ = write!(text, "\n\n{}", pacing.text());
        }
        text
    }

    /// An instant as the clock on the wall says it that the schedule goes by, with the weekday, and in UTC if that is another.
    fn wall(&self, instant: Timestamp) -> String {
        let wall = match &self.schedule {
            Some(schedule) => schedule.wall(instant),
            None => cron::in_utc(instant),
        };
        let instant = rfc3339(Timestamp::from_millis(instant.as_millis()));
        match wall {
            Some(wall) if wall.ends_with('Z') => wall,
            Some(wall) => format!("{wall} = {instant}"),
            None => instant,
        }
    }
}

/// What there is to say of tasks that are held when they are out of attempts.
fn held(scene: &scene::Scene, end: &End) -> Option<String> {
    let OnExhausted::Hold { most } = scene.on_exhausted else {
        return None;
    };
    (end.reason == Reason::AttemptsExhausted.word()).then(|| {
        format!(
            "held: until people let it go (release exhausted/{}), which begins another round, or its deadline passes; at most {most} in a shard, \
             more are dead",
            scene.name
        )
    })
}

/// Goes on from `row` to the next attempt, unless it was the last one: says how the task ends then.
fn next(
    policy: &Policy,
    deadline: Option<Duration>,
    start: Timestamp,
    row: &mut AttemptRow,
) -> Option<End> {
    let end = |terminal: Terminal, reason: Reason| {
        Some(End {
            after_attempt: row.attempt,
            outcome: terminal.word(),
            reason: reason.word(),
        })
    };
    if row.attempt >= policy.max_attempts.get() {
        return end(Terminal::Dead, Reason::AttemptsExhausted);
    }
    let Band { min, max } = row.since_first_ms;
    let (due, wait_ms, since_first_ms) = if let Some((least, most)) = policy.band(row.attempt) {
        let least = millis(least).max(millis(LEAST_WAIT));
        let most = millis(most).max(least);
        (
            None,
            Band {
                min: least,
                max: most,
            },
            Band {
                min: min + least,
                max: max + most,
            },
        )
    } else {
        let now = row
            .due
            .unwrap_or_else(|| start + Duration::from_millis(min));
        let Some(due) = policy.next("", row.attempt, now, now + LEAST_WAIT) else {
            return end(Terminal::Dead, Reason::ScheduleEnded);
        };
        if due.since(now) > MAX_DELAY {
            return end(Terminal::Dead, Reason::DueTooFar);
        }
        let since = millis(due.since(start));
        let wait = since.saturating_sub(min);
        (
            Some(due),
            Band {
                min: wait,
                max: wait,
            },
            Band {
                min: since,
                max: since,
            },
        )
    };
    let deadline = deadline.map_or(u64::MAX, millis);
    if since_first_ms.min > deadline {
        return end(Terminal::Expired, Reason::DeadlinePassed);
    }
    *row = AttemptRow {
        attempt: row.attempt.saturating_add(1),
        wait_ms,
        since_first_ms,
        due,
        may_expire: since_first_ms.max > deadline,
    };
    None
}

// === impl Band ===

impl Band {
    /// As people read it.
    fn text(self) -> String {
        if self.max == 0 {
            return "-".into();
        }
        if self.min == self.max {
            return human(self.min);
        }
        format!("{} to {}", human(self.min), human(self.max))
    }
}

/// How long bars are.
#[derive(Clone, Copy, Debug)]
enum Scale {
    /// In proportion to the wait, the longest of which is this.
    Linear(u64),
    /// In proportion to the logarithm of the wait over the first of these, up to the second.
    Logarithmic(u64, u64),
}

// === impl Scale ===

impl Scale {
    /// A scale on which the waits of `rows` can be told apart.
    fn of(rows: &[AttemptRow]) -> Self {
        let waits = rows.iter().skip(1).map(|row| row.wait_ms);
        let longest = waits.clone().map(|wait| wait.max).max().unwrap_or(0);
        let shortest = waits.map(|wait| wait.max).min().unwrap_or(0);
        if shortest > 0 && longest / shortest >= WIDE {
            // Half the shortest longest wait still shows.
            return Self::Logarithmic((shortest / 4).max(1), longest);
        }
        Self::Linear(longest.max(1))
    }

    /// The characters that a wait takes.
    fn length(self, wait: u64) -> usize {
        let share = match self {
            Self::Linear(longest) => wait as f64 / longest as f64,
            Self::Logarithmic(least, longest) => {
                let over = (wait as f64 / least as f64).max(1.0);
                over.ln() / (longest as f64 / least as f64).ln()
            }
        };
        (share * WIDTH as f64).round() as usize
    }

    /// The bar of a wait: what is sure, and what chance may add.
    fn bar(self, wait: Band) -> String {
        if wait.max == 0 {
            return String::new();
        }
        let sure = self.length(wait.min);
        let most = self.length(wait.max).max(1);
        let chance = most.saturating_sub(sure);
        format!("|{}{}", "=".repeat(sure), "-".repeat(chance))
    }

    /// What the bars mean.
    fn legend(self) -> String {
        let scale = match self {
            Self::Linear(_) => "",
            Self::Logarithmic(..) => ", on a logarithmic scale",
        };
        format!("bars: = waited in any case, - as chance has it{scale}")
    }
}

/// A point in time, for serde.
#[expect(clippy::ref_option, reason = "serde passes it so")]
fn point<S: Serializer>(due: &Option<Timestamp>, serializer: S) -> Result<S::Ok, S::Error> {
    match due {
        Some(due) => serializer.serialize_str(&rfc3339(*due)),
        None => serializer.serialize_none(),
    }
}

/// Whole milliseconds, rounded up as due times are.
fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_micros().div_ceil(1_000)).unwrap_or(u64::MAX)
}

/// A point in time.
fn time(text: &str) -> Result<Timestamp, String> {
    Timestamp::from_rfc3339(text)
        .ok_or_else(|| "expected a time with an offset such as 2026-12-24T09:00:00+01:00".into())
}

#[cfg(test)]
mod tests {
    use retide_core::{Kind, Origin, Record, Task, Verdict, verdict};

    use super::*;

    const START: Timestamp = Timestamp::from_millis(1_700_000_000_000);

    fn rules(text: &str) -> scene::Scene {
        let text = format!("target = {{ kafka = {{ topic = 'x' }} }}\n{text}");
        let scene = retide_config::rules("a", text).unwrap();
        scene.rules("a").unwrap()
    }

    fn of(text: &str) -> Preview {
        Preview::of(&rules(text), Class::Retryable, START, 1_000)
    }

    #[test]
    fn attempts_that_are_throttled_have_a_bound_of_their_own() {
        let throttled = |text: &str| {
            let preview = Preview::of(&rules(text), Class::Throttled, START, 1_000);
            preview.attempts.len()
        };

        assert_eq!(throttled("max_attempts = 2"), 20);
        assert_eq!(throttled("max_attempts = 2\nmax_throttled = 7"), 7);
    }

    /// What happens to a task that fails at once, each time: how long after the first its attempts come, and how it ends.
    fn history(scene: &scene::Scene, id: &str) -> (Vec<u64>, Verdict) {
        let mut task = Task {
            id: id.into(),
            scene: "a".into(),
            kind: Kind::Work,
            attempt: 1,
            due: START,
            deferral: None,
            first_failed_at: START,
            deadline: None,
            origin: Origin {
                topic: "t".into(),
                partition: 0,
                offset: 0,
            },
            failure: None,
            hops: 0,
            throttled: 0,
            exhausted: None,
            held_since: None,
            pending_since: None,
            stopped: None,
            commanded: None,
            replay: None,
            record: Record::default(),
        };
        let mut times = vec![0];
        loop {
            let outcome = Class::Retryable.outcome();
            match verdict::verdict(scene, &task, &outcome, task.due) {
                Verdict::Retry { due } => {
                    task.due = due;
                    task.attempt += 1;
                    times.push(millis(due.since(START)));
                }
                end => return (times, end),
            }
        }
    }

    #[test]
    fn what_happens_lies_within_what_is_shown() {
        for text in [
            "",
            "jitter = 'full'\nmax_attempts = 200",
            "jitter = 'equal'\ndeadline = '1h'",
            "jitter = 'decorrelated'\ndeadline = '3h'\nmax_attempts = 300",
            "backoff = { linear = { first = '1ms', step = '1s', max = '5s' } }\njitter = 'full'",
            "backoff = { random = { min = '1s', max = '1m' } }\nfrom = 'scheduled'\ndeadline = '2m'",
            "backoff = { levels = { preset = 'classic' } }\nmax_attempts = 40",
            "backoff = { cron = { schedule = '*/7 * * * *', timezone = 'Asia/Kathmandu' } }\ndeadline = '30m'",
            "backoff = { at = { times = [2023-11-14T22:13:20Z, 2023-11-14T22:13:20.001Z, 2023-11-15T00:00:00Z] } }",
            "backoff = { at = { times = [2023-11-15T00:00:00Z, 2030-01-01T00:00:00Z] } }",
        ] {
            let scene = rules(text);
            let preview = Preview::of(&scene, Class::Retryable, START, 1_000);
            let shown = preview.end.expect("an end");
            for task in 0..200 {
                let (times, end) = history(&scene, &format!("task-{task}"));

                for (row, time) in preview.attempts.iter().zip(&times) {
                    // A millisecond for each rounding on the way.
                    let Band { min, max } = row.since_first_ms;
                    let slack = u64::from(row.attempt);
                    assert!(
                        (min.saturating_sub(slack)..=max + slack).contains(time),
                        "{text}: {row:?} {time}"
                    );
                }
                assert!(times.len() <= preview.attempts.len(), "{text}");
                let sure = preview
                    .attempts
                    .iter()
                    .filter(|row| !row.may_expire)
                    .count();
                assert!(times.len() >= sure, "{text}");
                let reason = match end {
                    Verdict::Dead(reason) => reason.word(),
                    Verdict::Expired => "deadline-passed",
                    Verdict::Delivered
                    | Verdict::Retry { .. }
                    | Verdict::Pending { .. }
                    | Verdict::Held { .. } => {
                        panic!("{end:?}")
                    }
                };
                let may_expire = preview.attempts.iter().any(|row| row.may_expire);
                assert!(
                    reason == shown.reason || may_expire && reason == "deadline-passed",
                    "{text}: {reason}"
                );
            }
        }
    }

    #[test]
    fn a_schedule_is_a_table_with_bars() {
        let text = of("backoff = { exponential = { first = '1s', max = '4s' } }\njitter = 'equal'\nmax_attempts = 5\ndeadline = '10s'")
            .text(START);

        assert_eq!(
            text,
            "\
scene a, each one failing: at most 5 attempts, deadline 10s; waits count from the end of an attempt
 ATTEMPT  WAIT         SINCE THE FIRST
 1        -            -
 2        500ms to 1s  500ms to 1s      |=====-----
 3        1s to 2s     1s 500ms to 3s   |==========----------
 4        2s to 4s     3s 500ms to 7s   |====================--------------------
 5        2s to 4s     5s 500ms to 11s  |====================--------------------  may expire
dead after attempt 5: attempts-exhausted
bars: = waited in any case, - as chance has it"
        );
    }

    #[test]
    fn a_point_in_time_is_shown_with_its_date_and_waits_far_apart_on_a_logarithmic_scale() {
        let points =
            of("backoff = { cron = { schedule = '0 0 * * *' } }\nmax_attempts = 2").text(START);
        assert!(points.contains("2023-11-15T00:00:00Z"), "{points}");

        let far = of("backoff = { exponential = { first = '1s', max = '1h' } }").text(START);
        assert!(far.contains("logarithmic"), "{far}");
        let widths: Vec<usize> = far.lines().map(|line| line.matches('=').count()).collect();
        assert!(
            widths[3..14].windows(2).all(|pair| pair[0] < pair[1]),
            "{far}"
        );
        assert_eq!(widths.iter().max(), Some(&WIDTH));
    }

    #[test]
    fn times_of_a_schedule_are_whole_seconds_with_their_weekday_and_a_note() {
        let start = Timestamp::from_micros(1_795_870_800_000_128);
        let rules =
            rules("backoff = { cron = { schedule = '0 9 * * 1-5', timezone = 'Europe/Berlin' } }");

        let preview = Preview::of(&rules, Class::Retryable, start, 3);

        let text = preview.text(start);
        assert!(
            text.contains("Mon 2026-11-30T09:00:00+01:00 = 2026-11-30T08:00:00Z"),
            "{text}"
        );
        assert!(
            text.contains("note: weekdays `1-5` are counted as in Unix: MON-FRI"),
            "{text}"
        );
        let json = serde_json::to_string(&preview).unwrap();
        assert!(json.contains("\"due\":\"2026-11-30T08:00:00Z\""), "{json}");
    }

    #[test]
    fn as_many_attempts_as_there_can_be_are_shown_as_far_as_asked_for() {
        let scene = rules("max_attempts = 4294967295\nbackoff = { fixed = { delay = '1ms' } }");

        let preview = Preview::of(&scene, Class::Timeout, START, 3);

        assert_eq!(preview.attempts.len(), 3);
        assert_eq!(preview.end, None);
        let most = preview.text(START);
        assert!(most.contains("--attempts shows more than 3"), "{most}");
    }
}
