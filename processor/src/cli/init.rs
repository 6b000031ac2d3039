//! `retide init`: creates the topics, or prints what would.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, ValueEnum};
use rdkafka::error::RDKafkaErrorCode;
use serde::Serialize;
use tokio::runtime::Runtime;

use retide_config::{Config, Scene};
use retide_kafka::client::client_config;
use retide_kafka::cluster::{self, Created, Plan, Scope, Severity, User};
use retide_kafka::topics::Role;
use retide_shell::process::plan;

use crate::cli::output::{Exit, Failed, Output, Row, print, put, say};
use crate::cli::run;

/// What `init` takes.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  retide init
      create what is missing; run it as often as you like
  retide init --dry-run
      only say what would be created
  retide init --partitions 24
      more shards: widen every topic, in the order that hurts nobody
  retide init --format kafka-topics
      print command lines for Kafka's own tool
  retide init --format strimzi | kubectl apply -f -
  retide init --acls --principal User:retide
      print what the user of `retide run` needs to be allowed, as lines of
      kafka-acls.sh
  retide init --acls --principal User:shop --role submit,explain

Topics that exist are never changed. What is wrong with them is said, with
the command that mends it.")]
pub(super) struct Options {
    /// Say what would be created, and create nothing
    #[arg(long)]
    dry_run: bool,
    /// Give all topics this many partitions, where they have fewer: the retry topic last. Workers may run meanwhile
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i32).range(1..=10_000))]
    partitions: Option<i32>,
    /// Print what creates the topics, for someone else to apply
    #[arg(long, value_enum, value_name = "FORMAT")]
    format: Option<Form>,
    /// The Kafka resource that Strimzi's topics are for
    #[arg(long, value_name = "NAME", default_value = "my-cluster")]
    strimzi_cluster: String,
    /// Print the least permissions (ACLs) that a user needs, and ask no broker
    #[arg(long)]
    acls: bool,
    /// The user, as brokers know it, such as User:retide or 'User:CN=retide,O=shop' [default: that of sasl.username]
    #[arg(long, value_name = "PRINCIPAL", requires = "acls")]
    principal: Option<String>,
    /// What the user does; may be repeated
    #[arg(
        long = "role",
        value_enum,
        value_name = "ROLE",
        value_delimiter = ',',
        requires = "acls",
        default_value = "run"
    )]
    roles: Vec<UserRole>,
    /// The address that the user connects from [default: any]
    #[arg(long, value_name = "ADDRESS", requires = "acls")]
    host: Option<String>,
    /// A file with scenes whose Kafka targets are written, too
    #[arg(long, value_name = "FILE", requires = "acls")]
    scenes: Option<PathBuf>,
}

/// What a user does, as the command line says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum UserRole {
    /// `retide run`, and `retide doctor` as the same user
    Run,
    /// `retide init`, with `--partitions` as well
    Init,
    /// `retide submit`, and any producer of tasks
    #[value(alias = "produce")]
    Submit,
    /// `retide explain`
    #[value(alias = "read-tasks")]
    Explain,
    /// `retide scenes apply`, `diff`, `export` and `delete`
    #[value(alias = "scenes")]
    ScenesApply,
    /// `retide tasks`, and any producer of commands
    #[value(alias = "commands")]
    Tasks,
    /// `retide dead-letters`, but for `purge`
    DeadLetters,
    /// `retide dead-letters purge`
    Purge,
    /// Whoever reads all of retide's topics, such as a console
    #[value(alias = "console")]
    Read,
}

/// The forms in which the topics can be printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Form {
    /// Command lines of kafka-topics.sh
    KafkaTopics,
    /// `KafkaTopic` resources for the Strimzi operator
    Strimzi,
}

/// What became of a topic.
#[derive(Debug, Serialize)]
struct TopicRow {
    /// The topic.
    topic: String,
    /// Its partitions: as many as it has, or would have.
    partitions: usize,
    /// `created`, `exists`, `missing`, or why it was refused.
    state: String,
    /// How many are configured, if it has another number.
    #[serde(skip_serializing_if = "Option::is_none")]
    configured_partitions: Option<usize>,
}

/// Longest time for creating the topics.
const CREATE: Duration = Duration::from_secs(30);

// === impl UserRole ===

impl UserRole {
    /// Who asks something of Kafka.
    const fn user(self) -> User {
        match self {
            Self::Run => User::Run,
            Self::Init => User::Init,
            Self::Submit => User::Submit,
            Self::Explain => User::Explain,
            Self::ScenesApply => User::ScenesApply,
            Self::Tasks => User::Tasks,
            Self::DeadLetters => User::DeadLetters,
            Self::Purge => User::Purge,
            Self::Read => User::Read,
        }
    }
}

// === impl TopicRow ===

impl Row for TopicRow {
    const HEADINGS: &'static [&'static str] = &["topic", "partitions", "state"];

    fn cells(&self) -> Vec<String> {
        vec![
            self.topic.clone(),
            self.partitions.to_string(),
            match self.configured_partitions {
                Some(configured) => format!("{}; {configured} are configured", self.state),
                None => self.state.clone(),
            },
        ]
    }
}

/// What workers use beside the topics: `scenes` are those of whose Kafka targets it is known.
pub(super) fn scope(config: &Config, scenes: &BTreeMap<String, Scene>) -> Scope {
    Scope {
        group: config.processor.group.clone(),
        transactions: run::transactions(config).map(str::to_owned),
        targets: targets(config.scenes.values().chain(scenes.values())),
        events: config.topics.events.enabled,
        sources: sources(config),
    }
}

/// The topics with dead letters of others, and the groups that read them.
fn sources(config: &Config) -> BTreeSet<(String, String)> {
    let workers = &config.processor.group;
    let sources = config.sources.iter();
    let sources = sources.map(|(name, source)| (source.topic.clone(), source.group(name, workers)));
    sources.collect()
}

/// The topics of Kafka targets and callbacks.
pub(super) fn targets<'a>(scenes: impl Iterator<Item = &'a Scene>) -> BTreeSet<String> {
    let mut topics = BTreeSet::new();
    for scene in scenes {
        let callback = scene.callback.as_ref().map(|callback| &callback.target);
        for target in [Some(&scene.target), callback].into_iter().flatten() {
            topics.extend(target.topic().map(str::to_owned));
        }
    }
    topics
}

/// Prints what users need to be allowed.
fn acls(config: &Config, plan: &Plan, options: &Options) -> Result<(), Failed> {
    let scenes = match &options.scenes {
        Some(file) => run::scenes(file, &config.topics.prefix)?,
        None => BTreeMap::new(),
    };
    let scope = scope(config, &scenes);
    let users: Vec<User> = options.roles.iter().map(|role| role.user()).collect();
    let host = options.host.as_deref();
    let text = match options.format {
        Some(Form::Strimzi) => {
            let principal = options.principal.as_deref().unwrap_or("User:retide");
            let cluster = &options.strimzi_cluster;
            cluster::strimzi_user(&users, (plan, &scope), principal, host, cluster)
        }
        Some(Form::KafkaTopics) | None => {
            let lines = cluster::allow_all(
                &client_config(config.kafka.client()),
                config.kafka.bootstrap(),
                &users,
                (plan, &scope),
                options.principal.as_deref(),
                host,
            );
            lines.join("\n")
        }
    };
    put(text.trim_end())?;
    if users.contains(&User::Run) {
        say(
            "DescribeConfigs lets retide check the settings of its topics; without it retide runs, and warns that nobody looked",
        );
        if scope.targets.is_empty() {
            say(
                "where scenes have Kafka targets, `run` needs Write on their topics, too: --scenes FILE adds them",
            );
        }
    }
    Ok(())
}

/// Creates the topics, or prints what would.
pub(super) fn init(config: &Config, options: &Options, output: Output) -> Result<(), Failed> {
    let mut plan = plan(config);
    if let Some(partitions) = options.partitions {
        for topic in &mut plan.topics {
            if topic.role.is_sharded() {
                topic.partitions = partitions;
            }
        }
    }
    if options.acls {
        return acls(config, &plan, options);
    }
    match options.format {
        Some(Form::KafkaTopics) => {
            return put(plan.kafka_topics(config.kafka.bootstrap()).trim_end());
        }
        Some(Form::Strimzi) => return put(plan.strimzi(&options.strimzi_cluster).trim_end()),
        None => {}
    }
    let runtime = Runtime::new()?;
    let client = client_config(config.kafka.client());
    if options.partitions.is_some() {
        let there = runtime.block_on(cluster::existing(&client, &plan))?;
        if !options.dry_run {
            let created = runtime.block_on(cluster::create(&client, &plan, CREATE))?;
            refuse_fewer(&plan, &there)?;
            return widen(&runtime, (config, &plan), (&created, &there), output);
        }
        refuse_fewer(&plan, &there)?;
        let lines: Vec<TopicRow> = plan
            .topics
            .iter()
            .map(|topic| {
                let partitions = there.get(&topic.name).copied();
                let state = match partitions {
                    Some(found) if found < topic.partitions as usize => {
                        format!("to be widened to {}", topic.partitions)
                    }
                    other => state(other.is_some()),
                };
                line(&plan, &topic.name, partitions, state)
            })
            .collect();
        return print(&lines, output);
    }
    if options.dry_run {
        let there = runtime.block_on(cluster::existing(&client, &plan))?;
        let lines: Vec<TopicRow> = plan
            .topics
            .iter()
            .map(|topic| {
                let partitions = there.get(&topic.name).copied();
                line(&plan, &topic.name, partitions, state(partitions.is_some()))
            })
            .collect();
        print(&lines, output)?;
        tell_of_partitions(&plan, &there);
        return Ok(());
    }
    let created = runtime.block_on(cluster::create(&client, &plan, CREATE))?;
    print(&lines(&plan, &created), output)?;
    tell_of_trimmed(&created);
    let refused = created
        .iter()
        .filter(|created| matches!(created, Created::Refused { .. }))
        .count();
    if refused > 0 {
        let exit = if refused == created.len() {
            Exit::Failure
        } else {
            Exit::Partly
        };
        let message = format!("{refused} of {} topics could not be created", created.len());
        let failed = Failed::because(exit, message);
        return Err(failed.with_fix(&mend(config, &plan, &created)));
    }
    let there = created.iter().filter_map(|created| match created {
        Created::Exists {
            topic,
            partitions: Some(partitions),
        } => Some((Arc::clone(topic), *partitions)),
        Created::Exists { .. }
        | Created::New { .. }
        | Created::Trimmed { .. }
        | Created::Refused { .. } => None,
    });
    tell_of_partitions(&plan, &there.collect());
    let scope = scope(config, &BTreeMap::new());
    let findings = runtime.block_on(cluster::check_as(&client, &plan, User::Init, &scope))?;
    tell(&findings);
    Ok(())
}

/// Partitions are never taken away.
fn refuse_fewer(plan: &Plan, there: &BTreeMap<Arc<str>, usize>) -> Result<(), Failed> {
    let wider = plan.topics.iter().find_map(|topic| {
        let found = there.get(&topic.name)?;
        (*found > topic.partitions as usize).then_some((topic, found))
    });
    let Some((topic, found)) = wider else {
        return Ok(());
    };
    let message = format!(
        "{} has {found} partitions, more than {}, and partitions cannot be taken away: give {found} or more",
        topic.name, topic.partitions
    );
    Err(Failed::because(Exit::Precondition, message))
}

/// Gives topics more partitions, and says what became of each.
fn widen(
    runtime: &Runtime,
    (config, plan): (&Config, &Plan),
    (created, there): (&[Created], &BTreeMap<Arc<str>, usize>),
    output: Output,
) -> Result<(), Failed> {
    let client = client_config(config.kafka.client());
    let widened = runtime.block_on(cluster::widen(&client, plan, CREATE))?;
    let mut all = lines(plan, created);
    for shown in &mut all {
        let known = widened.iter().find(|(topic, _)| ***topic == *shown.topic);
        match known {
            Some((_, (before, None))) => {
                shown.state = format!("widened from {before}");
                let planned = plan.topics.iter().find(|topic| *topic.name == *shown.topic);
                shown.configured_partitions = None;
                shown.partitions = planned.map_or(0, |topic| topic.partitions as usize);
            }
            Some((_, (_, Some(reason)))) => shown.state = format!("not widened: {reason}"),
            None => {}
        }
    }
    print(&all, output)?;
    let refused = widened.values().filter(|(_, refused)| refused.is_some());
    let refused = refused.count();
    // The retry topic is left as it is until all others have what it is to have.
    let waiting = plan.topics.iter().find(|topic| {
        topic.role == Role::Tasks
            && !widened.contains_key(&topic.name)
            && there
                .get(&topic.name)
                .is_some_and(|found| *found < topic.partitions as usize)
    });
    if refused > 0 || waiting.is_some() {
        let message = format!(
            "{refused} topics could not be widened; the retry topic is widened last, when all others are: run this again when that is mended"
        );
        return Err(Failed::because(Exit::Partly, message));
    }
    say(
        "workers take the new partitions over within half a minute; tasks of a key may go to another partition than before",
    );
    Ok(())
}

/// What became of each topic.
fn lines(plan: &Plan, created: &[Created]) -> Vec<TopicRow> {
    let created = created.iter();
    created
        .map(|created| match created {
            Created::New { topic } => line(plan, topic, None, "created".into()),
            Created::Trimmed { topic, without, .. } => {
                let state = format!("created, without {}", without.join(" and "));
                line(plan, topic, None, state)
            }
            Created::Exists { topic, partitions } => line(plan, topic, *partitions, EXISTS.into()),
            Created::Refused {
                topic,
                source,
                reason,
            } => {
                let state = match reason {
                    Some(reason) => format!("refused: {source}: {reason}"),
                    None => format!("refused: {source}"),
                };
                line(plan, topic, None, state)
            }
        })
        .collect()
}

/// Says which settings were left out, and why.
fn tell_of_trimmed(created: &[Created]) {
    for one in created {
        if let Created::Trimmed {
            topic,
            without,
            reason,
        } = one
        {
            say(&format!(
                "note: {topic} was created without {}, which the cluster refuses ({reason}); retide runs without",
                without.join(" and ")
            ));
        }
    }
}

/// Says where topics have another number of partitions than is configured.
fn tell_of_partitions(plan: &Plan, there: &BTreeMap<Arc<str>, usize>) {
    let mut others: BTreeMap<usize, Vec<&str>> = BTreeMap::new();
    let mut wanted = 0;
    for topic in &plan.topics {
        // The scenes topic has one, whatever is configured.
        let planned = topic.partitions as usize;
        if !topic.role.is_sharded() {
            continue;
        }
        wanted = planned;
        match there.get(&topic.name) {
            Some(found) if *found != planned => others.entry(*found).or_default().push(&topic.name),
            Some(_) | None => {}
        }
    }
    for (found, names) in others {
        say(&format!(
            "note: {} {found} partitions, and [topics] partitions is {wanted}: topics that exist are not changed",
            match names.as_slice() {
                [name] => format!("{name} has"),
                names => format!("{} topics have", names.len()),
            }
        ));
    }
}

/// What lets the topics be created that were refused.
fn mend(config: &Config, plan: &Plan, created: &[Created]) -> String {
    let denied = created.iter().any(|created| match created {
        Created::Refused { source, .. } => matches!(
            source,
            RDKafkaErrorCode::TopicAuthorizationFailed
                | RDKafkaErrorCode::ClusterAuthorizationFailed
        ),
        Created::New { .. } | Created::Trimmed { .. } | Created::Exists { .. } => false,
    });
    if denied {
        return allow(config, plan, User::Init);
    }
    format!(
        "ask who runs the cluster, or create them by hand; what a topic needs is printed by: {}",
        plan.invocation.line("init --format kafka-topics")
    )
}

/// The command lines that let retide's user do what `user` does, as one.
pub(super) fn allow(config: &Config, plan: &Plan, user: User) -> String {
    let scope = scope(config, &BTreeMap::new());
    let lines = cluster::allow_all(
        &client_config(config.kafka.client()),
        config.kafka.bootstrap(),
        &[user],
        (plan, &scope),
        None,
        None,
    );
    lines.join(" && ")
}

/// What is said where all that keeps retide from running is that topics do not exist, in one line.
pub(super) fn missing(findings: &[cluster::Finding]) -> Option<Failed> {
    let refusals = findings
        .iter()
        .filter(|finding| finding.severity == Severity::Refuse);
    let (missing, others): (Vec<_>, Vec<_>) =
        refusals.partition(|finding| finding.problem == cluster::MISSING);
    let first = missing.first()?;
    others.is_empty().then(|| {
        // Also those that it could do without.
        let all = findings.iter();
        let all = all.filter(|finding| finding.problem.starts_with(cluster::MISSING));
        let message = match all.count() {
            1 => format!("topic {} does not exist", first.subject),
            count => format!(
                "{count} topics of retide's do not exist, {} among them",
                first.subject
            ),
        };
        Failed::because(Exit::Precondition, message).with_fix(&first.fix)
    })
}

/// Says what is wrong with a cluster; true if something keeps retide from running.
pub(super) fn tell(findings: &[cluster::Finding]) -> bool {
    let mut refused = false;
    for cluster::Finding {
        severity,
        subject,
        problem,
        fix,
    } in findings
    {
        let word = match severity {
            Severity::Refuse => {
                refused = true;
                "error"
            }
            Severity::Limit | Severity::Warn => "warning",
        };
        say(&format!("{word}: {subject}: {problem}\n  fix: {fix}"));
    }
    refused
}

/// The state of a topic that is there.
const EXISTS: &str = "exists";

/// The state of a topic that is not to be created now.
fn state(there: bool) -> String {
    if there { EXISTS } else { "missing" }.to_owned()
}

/// One line of the answer, for a topic with so many partitions, or as many as planned.
fn line(plan: &Plan, topic: &str, partitions: Option<usize>, state: String) -> TopicRow {
    let planned = plan.topics.iter().find(|planned| &*planned.name == topic);
    let planned = planned.map_or(0, |planned| planned.partitions as usize);
    let other = partitions.is_some_and(|found| found != planned) && state == EXISTS;
    TopicRow {
        topic: topic.to_owned(),
        partitions: partitions.unwrap_or(planned),
        state,
        configured_partitions: other.then_some(planned),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_is_called_the_same_everywhere() {
        for role in UserRole::value_variants() {
            let value = role.to_possible_value().unwrap();

            assert_eq!(value.get_name(), role.user().word());
        }
    }
}
