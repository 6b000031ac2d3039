//! `retide scenes`: shows and changes the rules on the scenes topic.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU32;
use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde::Serialize;

use retide_config::secrets::masked;
use retide_config::{Config, Scene};
use retide_core::Origin;
use retide_kafka::client::client_config;
use retide_kafka::cluster::User;
use retide_kafka::publish::Publisher;
use retide_kafka::record::OutRecord;
use retide_kafka::topics::Topics;
use retide_shell::clock;
use retide_shell::parked::{self, Found};
use retide_shell::rules;
use retide_shell::scenes::{self, Unreadables};

use crate::cli::output::{Exit, Failed, Output, Row, print, put, say};
use crate::cli::reach::{failed, reach, scenes_of, topics};
use crate::cli::{outlook, preview, run, suggest};

/// What `scenes` does.
#[derive(Debug, Subcommand)]
#[command(after_help = "\
Examples:
  retide scenes list                  which ones there are
  retide scenes apply scenes.toml     put the file's scenes in force
  retide scenes diff scenes.toml      what that would change
  retide scenes export > scenes.toml  what is in force
  retide scenes preview payment       when its tasks are tried again
  retide scenes delete payment")]
pub(super) enum Command {
    /// Show which scenes there are, on the topic and in the configuration
    List,
    /// Put the scenes of a file on the topic; the same ones are left alone
    Apply(Apply),
    /// Show how a file differs from the topic
    Diff(Diff),
    /// Print the scenes of the topic, as a file that `apply` takes
    #[command(after_help = "\
Examples:
  retide scenes export > scenes.toml
  retide scenes export --show-secrets payment > payment.toml

Secrets that stand in a scene in clear are left out, and `apply` takes no
file in which they are; --show-secrets prints them. Those that stand in a
file or a variable ({ file = … }, { env = … }) are never in a scene.")]
    Export {
        /// The scenes [default: all]
        #[arg(value_name = "NAME")]
        names: Vec<String>,
        /// Print secrets that stand in scenes in clear
        #[arg(long)]
        show_secrets: bool,
    },
    /// Show when a scene's tasks are tried again, attempt by attempt
    Preview(preview::Options),
    /// Take scenes off the topic
    Delete(Delete),
}

/// What `apply` takes.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  retide scenes apply scenes.toml
  retide scenes apply --prune --dry-run scenes.toml
  retide scenes apply - < scenes.toml

The file holds [scenes.NAME] sections as retide.toml does.")]
pub(super) struct Apply {
    /// The file; - for stdin
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Delete scenes that are not in the file
    #[arg(long)]
    prune: bool,
    /// Delete them even if they have tasks under way
    #[arg(long, requires = "prune")]
    force: bool,
    /// Only say what would change
    #[arg(long)]
    dry_run: bool,
}

/// What `delete` takes.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  retide scenes delete payment
  retide scenes delete --force payment

A scene whose tasks are under way is not deleted without --force: those
tasks would follow the scene `default`, or be held if there is none: until
the scene is back, at most for `[processor] unknown_scene_hold`.")]
pub(super) struct Delete {
    /// The scenes
    #[arg(value_name = "NAME", required = true)]
    names: Vec<String>,
    /// Even if they have tasks under way
    #[arg(long)]
    force: bool,
}

/// What `diff` takes.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  retide scenes diff scenes.toml
  retide scenes diff --exit-code scenes.toml || echo 'not applied yet'")]
pub(super) struct Diff {
    /// The file; - for stdin
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Exit with 1 if there are differences
    #[arg(long)]
    exit_code: bool,
}

/// What becomes of a scene.
#[derive(Debug, Serialize)]
struct ChangeRow {
    /// The scene.
    scene: String,
    /// `created`, `changed`, `deleted` or `unchanged`.
    change: &'static str,
    /// The rules before, as text; nothing if there were none.
    #[serde(skip_serializing_if = "Option::is_none")]
    before: Option<String>,
    /// The rules after, as text; nothing if there are none.
    #[serde(skip_serializing_if = "Option::is_none")]
    after: Option<String>,
}

/// A scene, as it is listed.
#[derive(Debug, Serialize)]
struct Listed {
    /// The scene.
    scene: String,
    /// Where its rules stand.
    from: &'static str,
    /// Where attempts go.
    #[serde(skip_serializing_if = "Option::is_none")]
    target: Option<String>,
    /// The kind of backoff.
    #[serde(skip_serializing_if = "Option::is_none")]
    backoff: Option<String>,
    /// Attempts until a task is given up.
    #[serde(skip_serializing_if = "Option::is_none")]
    max_attempts: Option<u32>,
    /// Why it cannot be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

/// The scenes topic and what stands on it.
struct Board<'a> {
    /// The configuration.
    config: &'a Config,
    /// The topics.
    topics: Topics,
    /// The scenes on the topic.
    scenes: BTreeMap<String, Scene>,
    /// The scenes whose last record cannot be read.
    unreadable: Unreadables,
    /// How many shards there are, if there is a retry topic.
    shards: Option<NonZeroU32>,
}

/// A scene that another command makes, such as that of a campaign.
pub(super) struct Proposed<'a> {
    /// What stands on the topic.
    board: Board<'a>,
    /// Its name.
    name: String,
    /// The scene.
    scene: Scene,
}

// === impl Proposed ===

impl<'a> Proposed<'a> {
    /// Looks whether a scene can be put in force under its name, and says what its target would meet. Fails if there is another scene of that
    /// name.
    pub(super) fn of(config: &'a Config, name: String, scene: Scene) -> Result<Self, Failed> {
        let board = Board::open(config, User::ScenesApply)?;
        let before = board.scenes.get(&name).or(config.scenes.get(&name));
        if board.unreadable.contains(&name) || before.is_some_and(|before| *before != scene) {
            let message = format!("there is a scene {name} already, and it is another one");
            return Err(Failed::because(Exit::Usage, message));
        }
        outlook::tell(config, [(&name, &scene)].into_iter())?;
        Ok(Self { board, name, scene })
    }

    /// Puts it in force.
    pub(super) fn put(&self) -> Result<(), Failed> {
        let Self { board, name, scene } = self;
        let format = board.config.topics.scenes.format;
        let now = clock::timestamp();
        let record = scenes::put(&board.topics.scenes, format, name, scene, now)?;
        board.write(&[record])
    }

    /// Its name.
    pub(super) fn name(&self) -> &str {
        &self.name
    }
}

// === impl ChangeRow ===

impl Row for ChangeRow {
    const HEADINGS: &'static [&'static str] = &["scene", "change"];

    fn cells(&self) -> Vec<String> {
        vec![self.scene.clone(), self.change.to_owned()]
    }
}

impl Row for Listed {
    const HEADINGS: &'static [&'static str] = &["scene", "target", "backoff", "attempts", "from"];

    fn cells(&self) -> Vec<String> {
        let text = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
        vec![
            self.scene.clone(),
            text(&self.target),
            text(&self.backoff),
            text(&self.max_attempts.map(|most| most.to_string())),
            self.from.to_owned(),
        ]
    }
}

/// The word for a kind of backoff, as it stands in a file.
fn word(backoff: &impl Serialize) -> Result<String, Failed> {
    let value = serde_json::to_value(backoff).map_err(json)?;
    let key = value.as_object().and_then(|object| object.keys().next());
    Ok(key.cloned().unwrap_or_default())
}

/// Shows and changes the rules on the scenes topic.
pub(super) fn scenes(config: &Config, command: Command, output: Output) -> Result<(), Failed> {
    // The file first: what is wrong with it needs no broker.
    match command {
        Command::Apply(options) => {
            let file = run::scenes(&options.file, &config.topics.prefix)?;
            Board::open(config, User::ScenesApply)?.apply(&file, &options, output)
        }
        Command::Diff(options) => {
            let file = run::scenes(&options.file, &config.topics.prefix)?;
            Board::open(config, User::Read)?.diff(&file, &options, output)
        }
        Command::List => Board::open(config, User::Read)?.list(output),
        Command::Export {
            names,
            show_secrets,
        } => {
            let board = Board::open(config, User::Read)?;
            let some = board.some(&names)?;
            let retide = &config.invocation;
            if show_secrets {
                return export(&some, output);
            }
            let (mut shown, mut left_out) = (BTreeMap::new(), Vec::new());
            for (name, scene) in some {
                let (scene, places) = masked(scene);
                left_out.extend(
                    places
                        .into_iter()
                        .map(|place| format!("scenes.{name}.{place}")),
                );
                shown.insert(name, scene);
            }
            if !left_out.is_empty() {
                say(&format!(
                    "secrets are left out at {}: `{}` prints them, and `apply` takes no file without them; better, let them stand in a file or a variable: {{ file = … }}, {{ env = … }}",
                    left_out.join(", "),
                    retide.line("scenes export --show-secrets")
                ));
            }
            let shown = shown.iter().map(|(name, scene)| (*name, scene));
            export(&shown.collect(), output)
        }
        Command::Preview(options) => {
            let (scenes, shards) = if let Some(file) = &options.scenes {
                (run::scenes(file, &config.topics.prefix)?, None)
            } else {
                let Board { scenes, shards, .. } = Board::open(config, User::Read)?;
                (rules::merged(&config.scenes, &scenes), shards)
            };
            preview::preview((&scenes, shards), &options, output)?;
            outlook::tell(config, scenes.get_key_value(options.name()).into_iter())
        }
        Command::Delete(options) => {
            Board::open(config, User::ScenesApply)?.delete(&options, output)
        }
    }
}

// === impl Board ===

impl<'a> Board<'a> {
    /// Reads the topic, as somebody who may do what `user` does.
    fn open(config: &'a Config, user: User) -> Result<Self, Failed> {
        let topics = topics(config);
        // Finds out whether Kafka can be reached at all, and says so well.
        let there = reach(config, user, &[&topics.scenes])?;
        let shards = there.get(&topics.tasks).copied();
        let shards = shards.and_then(|shards| u32::try_from(shards).ok());
        let follower = scenes_of(config, user, &topics)?;
        Ok(Self {
            config,
            scenes: follower.scenes().clone(),
            unreadable: follower.unreadable().clone(),
            shards: shards.and_then(NonZeroU32::new),
            topics,
        })
    }

    /// Puts the scenes of a file on the topic.
    fn apply(
        &self,
        file: &BTreeMap<String, Scene>,
        options: &Apply,
        output: Output,
    ) -> Result<(), Failed> {
        if file.is_empty() && !options.prune {
            return Err(Failed::because(
                Exit::Usage,
                format!("{} holds no [scenes.NAME]", options.file.display()),
            ));
        }
        let lines = self.changes(file, options.prune)?;
        let now = clock::timestamp();
        for name in file
            .iter()
            .filter(|(_, scene)| scene.is_over(now))
            .map(|(name, _)| name)
        {
            say(&format!(
                "scene {name}: all times of `at` have passed; a task whose attempt fails is dead at once"
            ));
        }
        tell_plain(file);
        outlook::tell(self.config, file.iter())?;
        if !options.dry_run {
            if !options.force {
                let gone = lines.iter().filter(|line| line.change == "deleted");
                self.check_unused(&gone.map(|line| line.scene.clone()).collect())?;
            }
            let mut records = Vec::new();
            for line in lines.iter().filter(|line| line.change != "unchanged") {
                records.push(match file.get(&line.scene) {
                    Some(scene) => scenes::put(
                        &self.topics.scenes,
                        self.config.topics.scenes.format,
                        &line.scene,
                        scene,
                        now,
                    )?,
                    None => scenes::delete(&self.topics.scenes, &line.scene),
                });
            }
            self.write(&records)?;
        }
        print(&lines, output)
    }

    /// Shows how a file differs from the topic.
    fn diff(
        &self,
        file: &BTreeMap<String, Scene>,
        options: &Diff,
        output: Output,
    ) -> Result<(), Failed> {
        let mut lines = self.changes(file, true)?;
        lines.retain(|line| line.change != "unchanged");
        match output {
            Output::Table => {
                for line in &lines {
                    put(&difference(line))?;
                }
            }
            Output::Json | Output::Ndjson => print(&lines, output)?,
        }
        if lines.is_empty() {
            say("no differences");
        } else if options.exit_code {
            return Err(Failed::silently(Exit::Failure));
        }
        Ok(())
    }

    /// Shows which scenes there are; those of the topic go before those of the configuration.
    fn list(&self, output: Output) -> Result<(), Failed> {
        let mut rows = Vec::new();
        let merged = rules::merged(&self.config.scenes, &self.scenes);
        for (name, scene) in &merged {
            let on_topic = self.scenes.contains_key(name);
            rows.push(Listed {
                scene: name.clone(),
                from: match (on_topic, self.config.scenes.contains_key(name)) {
                    (true, true) => "topic, over the configuration",
                    (true, false) => "topic",
                    (false, _) => "configuration",
                },
                target: Some(
                    scene
                        .target
                        .destination()
                        .map_or_else(String::new, |destination| destination.to_string()),
                ),
                backoff: Some(word(&scene.backoff)?),
                max_attempts: Some(scene.max_attempts.get()),
                error: None,
            });
        }
        let unreadable = self.unreadable.iter();
        rows.extend(unreadable.map(|(name, unreadable)| Listed {
            scene: name.clone(),
            from: "topic, not readable",
            target: None,
            backoff: None,
            max_attempts: None,
            error: Some(unreadable.error.clone()),
        }));
        if let Some(others) = self.unreadable.others() {
            say(&format!(
                "{others} on {} cannot be read, and are not listed",
                self.topics.scenes
            ));
        }
        if rows.is_empty() {
            say(&format!(
                "no scenes yet; to put some on {}: {}",
                self.topics.scenes,
                self.config.invocation.line("scenes apply FILE")
            ));
            if output == Output::Table {
                return Ok(());
            }
        }
        rows.sort_by(|one, other| one.scene.cmp(&other.scene));
        print(&rows, output)
    }

    /// The scenes of these names; all, where none is named.
    fn some<'b>(&'b self, names: &'b [String]) -> Result<BTreeMap<&'b str, &'b Scene>, Failed> {
        let mut some = BTreeMap::new();
        for name in names {
            some.insert(name.as_str(), self.find(name)?);
        }
        if names.is_empty() {
            some.extend(
                self.scenes
                    .iter()
                    .map(|(name, scene)| (name.as_str(), scene)),
            );
        }
        Ok(some)
    }

    /// Refuses if one of these scenes has tasks under way.
    fn check_unused(&self, names: &BTreeSet<String>) -> Result<(), Failed> {
        if names.is_empty() {
            return Ok(());
        }
        let found = parked::find(self.config, &self.topics, &self.scenes, names).map_err(
            |error| match &error {
                parked::Error::Kafka(source) => {
                    let what = "whether tasks are under way is not known (--force does not look)";
                    failed(self.config, User::ScenesApply, what, source)
                }
                parked::Error::Committed { .. } | parked::Error::Slow { .. } => Failed::because(
                    Exit::Precondition,
                    format!(
                        "whether tasks are under way is not known: {error}; --force does not look"
                    ),
                ),
            },
        )?;
        if found.is_empty() {
            return Ok(());
        }
        let lines: Vec<String> = found
            .iter()
            .map(|(name, Found { id, origin })| {
                let Origin {
                    topic,
                    partition,
                    offset,
                } = origin;
                format!("scene {name} has tasks under way: the first one seen is {id}, on {topic}, partition {partition}, offset {offset}")
            })
            .collect();
        let message = format!(
            "{}\nnothing was deleted; --force does it, and tasks follow the scene `default` then, or are held if there is none",
            lines.join("\n")
        );
        Err(Failed::because(Exit::Precondition, message))
    }

    /// Takes scenes off the topic; all of them, or none.
    fn delete(&self, options: &Delete, output: Output) -> Result<(), Failed> {
        let mut lines = Vec::new();
        for name in options.names.iter().collect::<BTreeSet<_>>() {
            let before = match self.scenes.get(name) {
                None if self.unreadable.contains(name) => None,
                _ => Some(shown(self.find(name)?)?),
            };
            lines.push(ChangeRow {
                scene: name.clone(),
                change: "deleted",
                before,
                after: None,
            });
        }
        if !options.force {
            self.check_unused(&options.names.iter().cloned().collect())?;
        }
        let records: Vec<OutRecord> = lines
            .iter()
            .map(|line| scenes::delete(&self.topics.scenes, &line.scene))
            .collect();
        self.write(&records)?;
        print(&lines, output)
    }

    /// A scene of the topic.
    fn find(&self, name: &str) -> Result<&Scene, Failed> {
        self.scenes.get(name).ok_or_else(|| {
            let known: Vec<&String> = self.scenes.keys().collect();
            let hint = suggest::words(name, &known);
            let message = format!("scene {name} is not on topic {}{hint}", self.topics.scenes);
            Failed::because(Exit::NotFound, message)
        })
    }

    /// What a file changes; with `prune`, what is not in it is deleted.
    fn changes(
        &self,
        file: &BTreeMap<String, Scene>,
        prune: bool,
    ) -> Result<Vec<ChangeRow>, Failed> {
        let mut lines = Vec::new();
        for (name, scene) in file {
            let before = self.scenes.get(name);
            lines.push(ChangeRow {
                scene: name.clone(),
                change: match before {
                    // What is there cannot be read by anybody who starts now.
                    _ if self.unreadable.contains(name) => "changed",
                    None => "created",
                    Some(before) if before == scene => "unchanged",
                    Some(_) => "changed",
                },
                before: before.map(shown).transpose()?,
                after: Some(shown(scene)?),
            });
        }
        let gone = self
            .scenes
            .iter()
            .filter(|(name, _)| !file.contains_key(*name));
        for (name, scene) in gone.filter(|_| prune) {
            lines.push(ChangeRow {
                scene: name.clone(),
                change: "deleted",
                before: Some(shown(scene)?),
                after: None,
            });
        }
        Ok(lines)
    }

    /// Produces records and waits until they are stored.
    fn write(&self, records: &[OutRecord]) -> Result<(), Failed> {
        if records.is_empty() {
            return Ok(());
        }
        let mut publisher = Publisher::try_new(&client_config(self.config.kafka.producer()))
            .map_err(|error| Failed::new(Exit::Failure, &error))?;
        for record in records {
            publisher.send(record);
        }
        let results = publisher.finish();
        let refused: Vec<_> = results
            .iter()
            .filter_map(|result| result.as_ref().err())
            .collect();
        let Some(error) = refused.first() else {
            return Ok(());
        };
        let exit = if refused.len() == records.len() {
            Exit::Failure
        } else {
            Exit::Partly
        };
        let (count, all) = (refused.len(), records.len());
        let what = format!(
            "{count} of {all} changes were not stored on {}",
            self.topics.scenes
        );
        Err(failed(self.config, User::ScenesApply, &what, error).or_exit(exit))
    }
}

/// Prints scenes.
fn export(some: &BTreeMap<&str, &Scene>, output: Output) -> Result<(), Failed> {
    match output {
        Output::Table => {
            let file = BTreeMap::from([("scenes", some)]);
            put(rendered(&file)?.trim_end())
        }
        Output::Json => put(&serde_json::to_string_pretty(&some).map_err(json)?),
        Output::Ndjson => {
            for (name, scene) in some {
                let one = BTreeMap::from([(name, scene)]);
                put(&serde_json::to_string(&one).map_err(json)?)?;
            }
            Ok(())
        }
    }
}

/// Says which secrets of scenes stand in them in clear, where everybody may read them who reads the topic.
fn tell_plain(scenes: &BTreeMap<String, Scene>) {
    for (name, scene) in scenes {
        let (_, places) = masked(scene);
        if !places.is_empty() {
            say(&format!(
                "scene {name}: {} in clear, readable by whoever reads the scenes topic: let it stand in a file or a variable of the process, as {{ file = \"/run/secrets/…\" }} or {{ env = \"…\" }}",
                places.join(", ")
            ));
        }
    }
}

/// A scene as text of the configuration, without its secrets.
fn shown(scene: &Scene) -> Result<String, Failed> {
    rendered(&masked(scene).0)
}

/// The lines of a scene that differ, as `diff` shows them.
fn difference(line: &ChangeRow) -> String {
    let lines = |text: &Option<String>| -> Vec<String> {
        let text = text.as_deref().unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    };
    let (before, after) = (lines(&line.before), lines(&line.after));
    let mut text = vec![format!("[scenes.{}] {}", line.scene, line.change)];
    let gone = before.iter().filter(|line| !after.contains(line));
    text.extend(gone.map(|line| format!("- {line}")));
    let new = after.iter().filter(|line| !before.contains(line));
    text.extend(new.map(|line| format!("+ {line}")));
    if text.len() == 1 && line.change == "changed" {
        text.push("~ what is secret in it, which is not shown".to_owned());
    }
    text.join("\n")
}

/// Something as text of the configuration.
fn rendered(value: &impl Serialize) -> Result<String, Failed> {
    toml::to_string(value).map_err(|error| Failed::new(Exit::Failure, &error))
}

/// JSON that cannot be written.
fn json(error: serde_json::Error) -> Failed {
    Failed::from(std::io::Error::from(error))
}

impl From<scenes::Error> for Failed {
    /// A topic that cannot be read or written.
    fn from(error: scenes::Error) -> Self {
        let exit = match &error {
            scenes::Error::Missing { .. } => Exit::Precondition,
            scenes::Error::Kafka { .. }
            | scenes::Error::Slow { .. }
            | scenes::Error::Encode { .. } => Exit::Failure,
        };
        Failed::new(exit, &error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A scene with a secret in clear, as the commands show it.
    fn with(secret: &str) -> Option<String> {
        let text = format!(
            "[scenes.pay.target.http]\nurl = 'http://h/'\nheaders = {{ authorization = '{secret}' }}\n"
        );
        let scenes = retide_config::scenes("s.toml", text, "retry").unwrap();
        shown(&scenes["pay"]).ok()
    }

    #[test]
    fn a_secret_that_differs_is_told_of_and_not_shown() {
        let line = ChangeRow {
            scene: "pay".to_owned(),
            change: "changed",
            before: with("0ld"),
            after: with("n3w"),
        };

        assert_eq!(
            difference(&line),
            "[scenes.pay] changed\n~ what is secret in it, which is not shown"
        );
        let printed = serde_json::to_string(&line).unwrap();
        assert!(printed.contains("<masked>"), "{printed}");
        assert!(!printed.contains("0ld") && !printed.contains("n3w"));
    }
}
