//! `retide doctor`: what keeps retide from its promises here, what only looks wrong, and the command that mends each.
//!
//! | module | what |
//! |---|---|
//! | `rules` | scenes that do not mean what they say |
//! | `sources` | whether dead letters of others can become tasks |
//! | `targets` | whether attempts would reach where they go |
//!
//! What it says about topics and transactions is what `retide run` says: both ask [`cluster`]. Invariant: nothing is changed, no target
//! is sent more than a handshake of TLS, and it ends within half a minute.

mod rules;
mod sources;
mod targets;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use console::style;
use serde::Serialize;
use tokio::runtime::Runtime;
use tokio::time::timeout;

use retide_config::{Config, Scene};
use retide_connectors::{Destination, TargetConfig};
use retide_core::command::Invocation;
use retide_core::{span, with_causes};
use retide_kafka::client::client_config;
use retide_kafka::cluster::{
    self, Access, Answer, Clock, Finding, Plan, Questions, Severity, Survey,
};
use retide_kafka::topics::Topics;
use retide_native::admin::Operation;
use retide_shell::process;
use retide_shell::scenes::Follower;

use crate::cli::output::{Exit, Failed, Output, Row, print, put, say};
use crate::cli::{init, run};

/// What `doctor` takes.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  retide doctor
      before the first `retide run`, and after every change
  retide doctor --scenes scenes.toml
      with the scenes of a file, before they are applied
  retide doctor --write-probe
      also measure the brokers' clock, and try whether topics may be written
  retide doctor --output ndjson | jq 'select(.mark != \"ok\")'

Each line is ✔ as it should be, ! worth knowing, or ✖ to be mended, with the
command that does it. Nothing is changed, and targets are only connected to:
nothing is sent but the handshake of TLS. --write-probe writes one record to
each topic in a transaction that is aborted: who reads committed records, as
retide does, never sees it.

Exit codes: 0 nothing is to be mended · 4 something is · 5 Kafka, or nothing
but a target, is unreachable")]
pub(super) struct Options {
    /// A file with scenes; those on the scenes topic win over them
    #[arg(long, value_name = "FILE")]
    scenes: Option<PathBuf>,
    /// Write a record to each topic, in transactions that are aborted
    #[arg(long)]
    write_probe: bool,
    /// Do not connect to targets
    #[arg(long)]
    no_targets: bool,
}

/// What a line is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
enum Section {
    /// Brokers.
    Cluster,
    /// Topics and transactions.
    Topics,
    /// What the group has done, and who else works.
    Group,
    /// What the user may do.
    Access,
    /// The brokers' clock.
    Clock,
    /// The rules.
    Scenes,
    /// Where dead letters of others come from.
    Sources,
    /// Where attempts go.
    Targets,
}

/// How something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Mark {
    /// As it should be.
    Ok,
    /// Worth knowing.
    Warn,
    /// To be mended first.
    Fail,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct CheckRow {
    /// What it is about.
    section: Section,
    /// How it is.
    mark: Mark,
    /// The broker, topic, scene or target.
    subject: String,
    /// What was seen, and what comes of it.
    message: String,
    /// The command that mends it, or the key to change, or how to look.
    #[serde(skip_serializing_if = "Option::is_none")]
    fix: Option<String>,
}

/// What was found where scenes come from.
struct Found {
    /// The scenes in force, each with the file it stands in; none for the topic.
    scenes: BTreeMap<String, (Scene, Option<String>)>,
    /// What is said of the topic.
    lines: Vec<CheckRow>,
}

/// Longest time for reading the scenes topic: the cluster has answered by then.
const SCENES: Duration = Duration::from_secs(8);

/// How long a partition is looked at whose last records cannot be read yet: longer than a transaction of retide's takes.
const HELD_BACK: Duration = Duration::from_secs(11);

/// What stands for a user that the configuration does not name.
const WHO: &str = "NAME stands for the user that the brokers take retide for: with certificates their subject, such as CN=retide, unless \
                   ssl.principal.mapping.rules say otherwise; without a login ANONYMOUS";

/// Skew in milliseconds from which on it is said: half of what a tier is read ahead of time.
const SKEW: i64 = 1_000;

/// Skew in milliseconds from which on brokers refuse records as stamped too far in the future: Kafka's default.
const REFUSED: i64 = 3_600_000;

// === impl Section ===

impl Section {
    /// All of them, in the order in which they are shown.
    const ALL: [Self; 8] = [
        Self::Cluster,
        Self::Topics,
        Self::Group,
        Self::Access,
        Self::Clock,
        Self::Scenes,
        Self::Sources,
        Self::Targets,
    ];

    /// Its name.
    const fn name(self) -> &'static str {
        match self {
            Self::Cluster => "cluster",
            Self::Topics => "topics",
            Self::Group => "group",
            Self::Access => "access",
            Self::Clock => "clock",
            Self::Scenes => "scenes",
            Self::Sources => "sources",
            Self::Targets => "targets",
        }
    }
}

// === impl Mark ===

impl Mark {
    /// The sign that people see.
    const fn sign(self) -> &'static str {
        match self {
            Self::Ok => "✔",
            Self::Warn => "!",
            Self::Fail => "✖",
        }
    }
}

// === impl CheckRow ===

impl CheckRow {
    /// Something that is as it should be.
    fn ok(section: Section, subject: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            section,
            mark: Mark::Ok,
            subject: subject.into(),
            message: message.into(),
            fix: None,
        }
    }

    /// Something that is worth knowing, and what to do.
    fn warn(
        section: Section,
        subject: impl Into<String>,
        message: impl Into<String>,
        fix: impl Into<String>,
    ) -> Self {
        Self {
            mark: Mark::Warn,
            fix: Some(fix.into()),
            ..Self::ok(section, subject, message)
        }
    }

    /// Something that is to be mended, and how.
    fn fail(
        section: Section,
        subject: impl Into<String>,
        message: impl Into<String>,
        fix: impl Into<String>,
    ) -> Self {
        Self {
            mark: Mark::Fail,
            ..Self::warn(section, subject, message, fix)
        }
    }
}

impl Row for CheckRow {
    const HEADINGS: &'static [&'static str] = &["section", "mark", "subject", "message", "fix"];

    fn cells(&self) -> Vec<String> {
        vec![
            self.section.name().to_owned(),
            self.mark.sign().to_owned(),
            self.subject.clone(),
            self.message.clone(),
            self.fix.clone().unwrap_or_default(),
        ]
    }
}

/// Looks at everything, and says how it is.
pub(super) fn doctor(config: &Config, options: &Options, output: Output) -> Result<(), Failed> {
    let mut own = origin(&config.scenes, retide_config::FILE);
    if let Some(file) = &options.scenes {
        own.extend(origin(
            &run::scenes(file, &config.topics.prefix)?,
            &file.display().to_string(),
        ));
    }
    let plan = process::plan(config);
    let runtime = Runtime::new()?;
    let surveyed = runtime.block_on(cluster::survey(
        &client_config(config.kafka.client()),
        &questions(config, &plan, options),
    ));
    let found = runtime.block_on(scenes(config, surveyed.as_ref().ok(), own));
    let mut lines = Vec::new();
    match &surveyed {
        Ok(survey) => {
            lines.extend(brokers(survey));
            lines.extend(topics(config, &plan, survey));
            lines.extend(group(config, &runtime));
            lines.extend(access(config, survey));
            lines.push(clock(config, survey));
        }
        Err(error) => lines.push(silent(config, error)),
    }
    lines.extend(found.lines);
    let shards = surveyed.as_ref().ok().map(|survey| survey.shards);
    let shards = shards.and_then(|shards| NonZeroU32::new(shards as u32));
    lines.extend(rules::lines(config, &found.scenes, shards));
    if let Ok(survey) = &surveyed {
        lines.extend(runtime.block_on(sources::lines(config, survey, &found.scenes)));
    }
    let kafka = surveyed.as_ref().ok().map(|survey| &survey.topics);
    let (denied, denials) = match kafka {
        Some(_) => runtime.block_on(unwritable(config, &found.scenes)),
        None => (BTreeSet::new(), Vec::new()),
    };
    lines.extend(kafka_targets(config, kafka, &denied, &found.scenes));
    lines.extend(denials);
    if !options.no_targets {
        lines.extend(runtime.block_on(targets::lines(config, &found.scenes)));
    }
    // A name may still be looked up; nobody waits for it.
    runtime.shutdown_background();
    match output {
        Output::Table => put(&text(&lines))?,
        Output::Json | Output::Ndjson => print(&lines, output)?,
    }
    let fixes = lines.iter().filter_map(|line| line.fix.as_ref());
    if fixes.into_iter().any(|fix| fix.contains("User:NAME")) {
        say(WHO);
    }
    say(&summary(&lines));
    match surveyed {
        Err(error) => Err(Failed::silently(Failed::from(error).exit())),
        Ok(_) => exit(&lines).map_or(Ok(()), |exit| Err(Failed::silently(exit))),
    }
}

/// What is asked of the cluster.
fn questions(config: &Config, plan: &Plan, options: &Options) -> Questions {
    Questions {
        plan: plan.clone(),
        scope: init::scope(config, &BTreeMap::new()),
        consumer: client_config(config.kafka.consumer()),
        producer: options
            .write_probe
            .then(|| client_config(config.kafka.producer())),
    }
}

/// Scenes with the file that they stand in.
fn origin(
    scenes: &BTreeMap<String, Scene>,
    file: &str,
) -> BTreeMap<String, (Scene, Option<String>)> {
    let scenes = scenes.iter();
    scenes
        .map(|(name, scene)| (name.clone(), (scene.clone(), Some(file.to_owned()))))
        .collect()
}

/// How the process exits, other than well: what is to be mended goes before targets that do not answer.
fn exit(lines: &[CheckRow]) -> Option<Exit> {
    let mut failed = lines.iter().filter(|line| line.mark == Mark::Fail);
    let first = failed.next()?;
    let is_reach = |line: &CheckRow| {
        line.section == Section::Targets && line.message.starts_with(targets::REFUSES)
    };
    if is_reach(first) && failed.all(is_reach) {
        return Some(Exit::Unreachable);
    }
    Some(Exit::Precondition)
}

/// A cluster that cannot be asked.
fn silent(config: &Config, error: &cluster::Error) -> CheckRow {
    let fix = match error {
        cluster::Error::Unreachable { .. } | cluster::Error::NoAddress => {
            error.hint().unwrap_or_default()
        }
        cluster::Error::Client(_) => "correct [kafka] of retide.toml",
        cluster::Error::Request { .. }
        | cluster::Error::Unseen { .. }
        | cluster::Error::Thread(_) => "look into the brokers' logs, and try again",
    };
    CheckRow::fail(
        Section::Cluster,
        config.kafka.bootstrap(),
        with_causes(error),
        fix,
    )
}

/// The brokers.
fn brokers(survey: &Survey) -> Vec<CheckRow> {
    let mut lines = Vec::new();
    let mut recent = true;
    for broker in &survey.brokers {
        let subject = format!("broker {} at {}", broker.id, broker.address);
        lines.push(match &broker.answer {
            Answer::Recent => CheckRow::ok(Section::Cluster, subject, "answers; Kafka 3.6 or later"),
            Answer::Any => {
                recent = false;
                CheckRow::ok(Section::Cluster, subject, "answers")
            }
            Answer::Silence(reason) => CheckRow::fail(
                Section::Cluster,
                subject,
                format!("does not answer at the address that it advertises: {reason}"),
                "start it, or correct its advertised.listeners; clients have to reach every broker at that address",
            ),
        });
    }
    if !recent {
        lines.push(CheckRow::warn(
            Section::Cluster,
            "versions",
            "not known: brokers tell them only with a permission (DescribeConfigs on the cluster), or not at all; retide needs Kafka \
             2.5 or later",
            &*survey.show_versions,
        ));
    }
    lines
}

/// The topics, and transactions.
fn topics(config: &Config, plan: &Plan, survey: &Survey) -> Vec<CheckRow> {
    let mut lines = Vec::new();
    let findings = survey.findings.iter();
    let subjects: BTreeSet<&str> = findings.clone().map(|found| &*found.subject).collect();
    let names = plan.names();
    let there = names.filter(|name| survey.topics.contains(*name));
    let good = there.filter(|name| !subjects.contains(name)).count();
    if good > 0 {
        lines.push(CheckRow::ok(
            Section::Topics,
            format!("{good} of {} topics", plan.topics.len()),
            format!(
                "as they should be: {} partitions, replicas, retention, cleanup, timestamps, sizes",
                survey.shards
            ),
        ));
    }
    for found in findings {
        lines.push(line(Section::Topics, found));
    }
    let refused = subjects
        .iter()
        .any(|name| name.starts_with("transactional id"));
    if run::transactions(config).is_some() && !refused {
        lines.push(CheckRow::ok(
            Section::Topics,
            "transactions",
            "a coordinator answers, and retide may use them",
        ));
    }
    let workers = config.processor.workers.get() as usize;
    if survey.shards > 0 && workers > survey.shards {
        lines.push(CheckRow::warn(
            Section::Topics,
            "workers",
            format!(
                "{workers} workers of this process and {} partitions: the others have nothing to do",
                survey.shards
            ),
            format!("set workers = {} in [processor]", survey.shards),
        ));
    }
    lines
}

/// What the group has done of what is there, and who else works.
fn group(config: &Config, runtime: &Runtime) -> Vec<CheckRow> {
    let subject = format!("group {}", config.processor.group);
    let whose = process::whose(config, HELD_BACK);
    let standing = match runtime.block_on(cluster::standing(
        &client_config(config.kafka.client()),
        &whose,
    )) {
        Ok(standing) => standing,
        Err(error) => {
            let message = format!("not checked: {}", with_causes(&error));
            let fix = config.invocation.line("doctor");
            return vec![CheckRow::warn(Section::Group, &*subject, message, fix)];
        }
    };
    let mut lines = Vec::new();
    let findings = standing.findings.iter();
    if findings.clone().all(|found| found.subject != subject) {
        let message = if standing.is_without_offsets() {
            "has committed nothing yet, and nobody has worked here: `retide run` begins with the first task"
        } else {
            "goes on where it has stopped"
        };
        lines.push(CheckRow::ok(Section::Group, &*subject, message));
    }
    lines.extend(findings.map(|found| line(Section::Group, found)));
    if standing.members.is_empty() {
        lines.push(CheckRow::warn(
            Section::Group,
            &*subject,
            "no worker runs: tasks wait until one does",
            config.invocation.line("run"),
        ));
    }
    let empty = standing.strays.iter().filter(|(_, left)| **left == 0);
    lines.extend(empty.map(|(topic, _)| {
        CheckRow::warn(
            Section::Topics,
            topic,
            "is no tier of this configuration, and empty",
            format!("delete the topic, or add its tier to tiers in [topics]: {topic}"),
        )
    }));
    lines
}

/// What was found, as a line.
fn line(section: Section, found: &Finding) -> CheckRow {
    let line = match found.severity {
        Severity::Refuse | Severity::Limit => CheckRow::fail,
        Severity::Warn => CheckRow::warn,
    };
    line(section, &found.subject, &found.problem, &found.fix)
}

/// What the user may do.
fn access(config: &Config, survey: &Survey) -> Vec<CheckRow> {
    let group = format!("group {}", config.processor.group);
    let mut lines = vec![match &survey.group {
        Access::Granted => CheckRow::ok(Section::Access, &*group, "its offsets may be read"),
        other => refused(&group, "its offsets may not be read", other, survey),
    }];
    lines.push(match &survey.joining {
        Access::Granted => CheckRow::ok(
            Section::Access,
            &*group,
            "may be joined, and offsets may be committed for it",
        ),
        other => refused(&group, "retide may not join it", other, survey),
    });
    lines.extend(may("read", &survey.read, survey));
    lines.extend(
        survey
            .denials
            .iter()
            .map(|found| line(Section::Access, found)),
    );
    match (&survey.written, survey.may_write) {
        (Some(written), _) => lines.extend(may("write", written, survey)),
        (None, Some(0)) => {}
        (None, Some(granted)) => lines.push(CheckRow::ok(
            Section::Access,
            format!("{granted} topics"),
            "retide may write them",
        )),
        (None, None) => lines.push(CheckRow::warn(
            Section::Access,
            "writing",
            format!(
                "not checked: these brokers do not tell it, and it shows only by writing; `{}` does, in transactions that it aborts",
                config.invocation.line("doctor --write-probe")
            ),
            &*survey.list_acls,
        )),
    }
    lines
}

/// Whether topics may be read, or written.
fn may(what: &str, topics: &[(Arc<str>, Access)], survey: &Survey) -> Vec<CheckRow> {
    let mut lines = Vec::new();
    let granted = topics
        .iter()
        .filter(|(_, access)| *access == Access::Granted)
        .count();
    if granted > 0 {
        lines.push(CheckRow::ok(
            Section::Access,
            format!("{granted} topics"),
            format!("retide may {what} them"),
        ));
    }
    for (topic, access) in topics {
        if *access != Access::Granted {
            lines.push(refused(
                topic,
                &format!("retide may not {what} it"),
                access,
                survey,
            ));
        }
    }
    lines
}

/// Something that may not be done, or of which that is not known.
fn refused(subject: &str, denied: &str, access: &Access, survey: &Survey) -> CheckRow {
    match access {
        Access::Granted => CheckRow::ok(Section::Access, subject, "granted"),
        Access::Denied { fix } => CheckRow::fail(Section::Access, subject, denied, &**fix),
        Access::Unknown { reason } => CheckRow::warn(
            Section::Access,
            subject,
            format!("not checked: {reason}"),
            &*survey.list_acls,
        ),
    }
}

/// The brokers' clock.
fn clock(config: &Config, survey: &Survey) -> CheckRow {
    let subject = "brokers";
    let (least, most) = match survey.clock {
        Clock::Measured { least, most } => (least, most),
        Clock::AtLeast(least) if least > SKEW => (least, i64::MAX),
        Clock::AtLeast(_) | Clock::Unknown => {
            return CheckRow::warn(
                Section::Clock,
                subject,
                "not measured: a broker tells its time only with a record that it appends; no record that is there is from the future",
                config.invocation.line("doctor --write-probe"),
            );
        }
    };
    let fix = "chronyc tracking    # on the brokers and here: let all of them follow the same NTP servers";
    let by = |millis: i64| span::text(Duration::from_millis(millis.unsigned_abs()));
    if most < -REFUSED {
        let message = format!(
            "their clock is behind the one here by {} or more: they refuse records stamped over an hour ahead",
            by(most)
        );
        return CheckRow::fail(Section::Clock, subject, message, fix);
    }
    if least > SKEW {
        let message = format!(
            "their clock is ahead of the one here by {} or more: what waits in a tier may be late by as much, less 2 s",
            by(least)
        );
        return CheckRow::warn(Section::Clock, subject, message, fix);
    }
    if most < -SKEW {
        let message = format!(
            "their clock is behind the one here by {} or more: tiers let go too early, which costs hops but starts nothing early",
            by(most)
        );
        return CheckRow::warn(Section::Clock, subject, message, fix);
    }
    let message = format!("their clock less the one here is between {least} and {most} ms");
    CheckRow::ok(Section::Clock, subject, message)
}

/// The scenes in force: those of files, and over them those of the topic.
async fn scenes(
    config: &Config,
    survey: Option<&Survey>,
    own: BTreeMap<String, (Scene, Option<String>)>,
) -> Found {
    let topic = Topics::new(&config.topics.prefix, &config.topics.tiers).scenes;
    let mut found = Found {
        scenes: own,
        lines: Vec::new(),
    };
    // That it is missing was said with the topics, as that the cluster is.
    if survey.is_some_and(|survey| survey.topics.contains(&*topic)) {
        let consumer = client_config(config.kafka.consumer());
        let (name, group) = (Arc::clone(&topic), config.processor.group.clone());
        let read = tokio::task::spawn_blocking(move || {
            Follower::start(&consumer, &name, &group).map(|follower| follower.scenes().clone())
        });
        let read = match timeout(SCENES, read).await {
            Ok(Ok(Ok(scenes))) => Ok(scenes),
            Ok(Ok(Err(error))) => Err(with_causes(&error)),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err(format!("not read within {}", span::text(SCENES))),
        };
        match read {
            Ok(scenes) => {
                let scenes = scenes
                    .into_iter()
                    .map(|(name, scene)| (name, (scene, None)));
                found.scenes.extend(scenes);
            }
            Err(reason) => found.lines.push(CheckRow::fail(
                Section::Scenes,
                &*topic,
                format!("cannot be read: {reason}"),
                config.invocation.line("scenes export"),
            )),
        }
    }
    // Where nobody could look, or was refused, nothing is known.
    let looked = survey.is_some_and(|survey| survey.topics.contains(&*topic));
    if found.scenes.is_empty() && found.lines.is_empty() && looked {
        found.lines.push(CheckRow::warn(
            Section::Scenes,
            &*topic,
            "there is no scene: every task is a dead letter",
            config.invocation.line("scenes apply scenes.toml"),
        ));
    }
    found
}

/// How a scene is changed: where it stands, and what then.
fn change(retide: &Invocation, name: &str, file: Option<&str>, key: &str) -> String {
    match file {
        Some(file) => format!("set {key} of [scenes.{name}] in {file}"),
        None => format!(
            "{} > {name}.toml; set {key} of [scenes.{name}] in it; {}",
            retide.line(&format!("scenes export {name}")),
            retide.line(&format!("scenes apply {name}.toml"))
        ),
    }
}

/// Whether the topics of Kafka targets exist, but for those that are `denied`, of which nothing is known.
fn kafka_targets(
    config: &Config,
    topics: Option<&BTreeSet<String>>,
    denied: &BTreeSet<String>,
    scenes: &BTreeMap<String, (Scene, Option<String>)>,
) -> Vec<CheckRow> {
    let mut lines = Vec::new();
    for (name, (scene, _)) in scenes {
        let callback = scene.callback.as_ref().map(|callback| &callback.target);
        for (what, target) in [("target", Some(&scene.target)), ("callback", callback)] {
            let topic = match target.and_then(TargetConfig::destination) {
                Some(Destination::Topic(topic)) => topic,
                // These are called: `targets` examines them.
                Some(Destination::Server(_)) | None => continue,
            };
            let is_seen = topics.is_some_and(|topics| topics.contains(topic));
            if !is_seen && denied.contains(topic) {
                continue;
            }
            let subject = format!("scene {name}: {what} topic {topic}");
            let fix = || {
                cluster::create_topic(
                    &client_config(config.kafka.client()),
                    config.kafka.bootstrap(),
                    topic,
                )
            };
            lines.push(match topics {
                None => CheckRow::warn(Section::Targets, subject, "not checked: no broker", fix()),
                Some(_) if is_seen => CheckRow::ok(Section::Targets, subject, "exists"),
                Some(_) => CheckRow::fail(
                    Section::Targets,
                    subject,
                    "does not exist, or retide may not describe it: its tasks cannot be delivered",
                    fix(),
                ),
            });
        }
    }
    lines
}

/// The topics of Kafka targets that may not be written, and what is said of them.
async fn unwritable(
    config: &Config,
    scenes: &BTreeMap<String, (Scene, Option<String>)>,
) -> (BTreeSet<String>, Vec<CheckRow>) {
    let client = client_config(config.kafka.client());
    let topics = init::targets(scenes.values().map(|(scene, _)| scene));
    let writable = match cluster::writable(&client, &topics).await {
        Ok(writable) => writable,
        Err(error) => {
            let message = format!("not checked: {}", with_causes(&error));
            let fix = config.invocation.line("doctor");
            let line = CheckRow::warn(Section::Targets, "target topics", message, fix);
            return (BTreeSet::new(), vec![line]);
        }
    };
    let denied = writable.into_iter().filter(|(_, may)| !may);
    let denied: BTreeSet<String> = denied.map(|(topic, _)| topic).collect();
    let lines = denied
        .iter()
        .map(|topic| {
            let fix = cluster::allow(
                &client,
                config.kafka.bootstrap(),
                &[Operation::Write],
                topic,
            );
            let message = "retide may not write it: tasks of its scenes cannot be delivered";
            CheckRow::fail(
                Section::Targets,
                format!("target topic {topic}"),
                message,
                fix,
            )
        })
        .collect();
    (denied, lines)
}

/// All lines, as people read them.
fn text(lines: &[CheckRow]) -> String {
    let mut text = String::new();
    for section in Section::ALL {
        let some: Vec<&CheckRow> = lines
            .iter()
            .filter(|line| line.section == section)
            .collect();
        if some.is_empty() {
            continue;
        }
        let _ = writeln!(text, "{}", style(section.name()).bold());
        // What is said of many in the same words is said once.
        let alike = |one: &&CheckRow, other: &&CheckRow| {
            (one.mark, &one.message, &one.fix) == (other.mark, &other.message, &other.fix)
        };
        for run in some.chunk_by(alike) {
            let line = run[0];
            let subject = match run {
                [one, other, _, rest @ ..] if !rest.is_empty() => {
                    format!(
                        "{}, {} and {} more",
                        one.subject,
                        other.subject,
                        rest.len() + 1
                    )
                }
                few => {
                    let few: Vec<&str> = few.iter().map(|line| line.subject.as_str()).collect();
                    few.join(", ")
                }
            };
            let sign = style(line.mark.sign());
            let sign = match line.mark {
                Mark::Ok => sign.green(),
                Mark::Warn => sign.yellow(),
                Mark::Fail => sign.red(),
            };
            let _ = writeln!(text, "  {sign} {subject}: {}", line.message);
            if let Some(fix) = &line.fix {
                let _ = writeln!(text, "      {fix}");
            }
        }
    }
    text.trim_end().to_owned()
}

/// How many lines there are of each kind.
fn summary(lines: &[CheckRow]) -> String {
    let count = |mark| lines.iter().filter(|line| line.mark == mark).count();
    let (ok, warn, fail) = (count(Mark::Ok), count(Mark::Warn), count(Mark::Fail));
    format!("{ok} as they should be, {warn} worth knowing, {fail} to be mended")
}
