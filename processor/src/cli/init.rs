//! `retide init`: creates the topics, or prints what would.

use std::time::Duration;

use clap::{Args, ValueEnum};
use serde::Serialize;
use tokio::runtime::Runtime;

use crate::cli::output::{Exit, Failed, Output, Row, print, put, say};
use crate::cluster::{self, Created, Layout, Plan, Severity};
use crate::config::Config;
use crate::topics::Topics;

/// What `init` takes.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  retide init                                   create what is missing; run it as often as you like
  retide init --dry-run                         only say what would be created
  retide init --format kafka-topics             print command lines for Kafka's own tool
  retide init --format strimzi | kubectl apply -f -

Topics that exist are never changed. What is wrong with them is said, with the command that mends it.")]
pub(super) struct Options {
    /// Say what would be created, and create nothing
    #[arg(long)]
    dry_run: bool,
    /// Print what creates the topics, for someone else to apply
    #[arg(long, value_enum, value_name = "FORMAT")]
    format: Option<Form>,
    /// The Kafka resource that Strimzi's topics are for
    #[arg(long, value_name = "NAME", default_value = "my-cluster")]
    strimzi_cluster: String,
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
struct Line {
    /// The topic.
    topic: String,
    /// Its partitions.
    partitions: i32,
    /// `created`, `exists`, `missing`, or why it was refused.
    state: String,
}

/// Longest time for creating the topics.
const CREATE: Duration = Duration::from_secs(30);

// === impl Line ===

impl Row for Line {
    const HEADINGS: &'static [&'static str] = &["topic", "partitions", "state"];

    fn cells(&self) -> Vec<String> {
        vec![
            self.topic.clone(),
            self.partitions.to_string(),
            self.state.clone(),
        ]
    }
}

/// The topics that a configuration needs.
pub(super) fn plan(config: &Config) -> Plan {
    let layout = Layout {
        partitions: config.topics.partitions,
        replication_factor: config.topics.replication_factor,
    };
    let topics = Topics::new(&config.topics.prefix, &config.topics.tiers);
    Plan::new(&topics, &config.topics.tiers, layout)
}

/// Creates the topics, or prints what would.
pub(super) fn init(config: &Config, options: &Options, output: Output) -> Result<(), Failed> {
    let plan = plan(config);
    match options.format {
        Some(Form::KafkaTopics) => {
            return put(plan.kafka_topics(config.kafka.bootstrap()).trim_end());
        }
        Some(Form::Strimzi) => return put(plan.strimzi(&options.strimzi_cluster).trim_end()),
        None => {}
    }
    let runtime = Runtime::new()?;
    let client = config.kafka.client();
    if options.dry_run {
        let there = runtime.block_on(cluster::existing(&client, &plan))?;
        let lines: Vec<Line> = plan
            .topics
            .iter()
            .map(|topic| line(&plan, &topic.name, state(there.contains_key(&topic.name))))
            .collect();
        return print(&lines, output);
    }
    let created = runtime.block_on(cluster::create(&client, &plan, CREATE))?;
    let refused = created
        .iter()
        .filter(|created| matches!(created, Created::Refused { .. }))
        .count();
    let lines: Vec<Line> = created
        .iter()
        .map(|created| match created {
            Created::New { topic } => line(&plan, topic, "created".into()),
            Created::Exists { topic } => line(&plan, topic, "exists".into()),
            Created::Refused { topic, source } => line(&plan, topic, format!("refused: {source}")),
        })
        .collect();
    print(&lines, output)?;
    if refused > 0 {
        let exit = if refused == lines.len() {
            Exit::Failure
        } else {
            Exit::Partly
        };
        let message = format!("{refused} of {} topics could not be created", lines.len());
        return Err(Failed::because(exit, message));
    }
    let findings = runtime.block_on(cluster::check(&client, &plan, None))?;
    tell(&findings);
    Ok(())
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
            Severity::Warn => "warning",
        };
        say(&format!("{word}: {subject}: {problem}\n  fix: {fix}"));
    }
    refused
}

/// The state of a topic that is not to be created now.
fn state(there: bool) -> String {
    if there { "exists" } else { "missing" }.to_owned()
}

/// One line of the answer.
fn line(plan: &Plan, topic: &str, state: String) -> Line {
    let planned = plan.topics.iter().find(|planned| &*planned.name == topic);
    Line {
        topic: topic.to_owned(),
        partitions: planned.map_or(0, |planned| planned.partitions),
        state,
    }
}
