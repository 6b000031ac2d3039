//! What may be asked of Kafka, and by whom: the least rules (ACLs) for each of retide's users.
//!
//! The one list of them: `retide init --acls` prints it, `retide doctor` compares it with what the brokers allow, and each refusal names
//! its line. Invariant: whoever has these rules and no other ones can do all that the user does, and nothing else of retide's.
//!
//! Kafka lets whoever may read or write a topic see that it is there (`Describe`), and so whoever may read a group see its offsets, and
//! whoever may write with a transactional id look for its coordinator. So `Describe` stands only where nothing else implies it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use retide_native::admin::Operation;

use crate::cluster::plan::{Plan, TopicPlan};
use crate::cluster::tools::Tools;
use crate::topics::{Reads, Role, Use, Writes};

/// Who asks something of Kafka.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum User {
    /// `retide run`, and `retide doctor` as the same user.
    Run,
    /// `retide init`, with `--partitions` as well.
    Init,
    /// `retide submit`, and any producer of tasks.
    Submit,
    /// `retide explain`.
    Explain,
    /// `retide scenes apply`, `diff`, `export` and `delete`.
    ScenesApply,
    /// `retide tasks`, and any producer of commands.
    Tasks,
    /// `retide dead-letters`, but for `purge`.
    DeadLetters,
    /// `retide dead-letters purge`.
    Purge,
    /// Whoever reads all of retide's topics, such as a console.
    Read,
}

/// What is used beside the topics of a plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scope {
    /// The consumer group of the workers.
    pub group: String,
    /// What transactional ids begin with; none for a guarantee that needs no transactions.
    pub transactions: Option<String>,
    /// The topics of Kafka targets.
    pub targets: BTreeSet<String>,
    /// Whether events are written.
    pub events: bool,
    /// The topics with dead letters of others, and the groups that read them.
    pub sources: BTreeSet<(String, String)>,
}

/// What a rule is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Resource {
    /// A topic.
    Topic,
    /// A consumer group.
    Group,
    /// A transactional id.
    TransactionalId,
}

/// Operations that are allowed on something.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Rule {
    /// What it is.
    pub resource: Resource,
    /// Its name, or what names begin with.
    pub name: Pattern,
    /// The operations.
    pub operations: BTreeSet<Operation>,
}

/// A name, or what names begin with.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Pattern {
    /// The name.
    Literal(String),
    /// The beginning of names, up to a separator.
    Prefix(String),
}

/// The separator behind the group in transactional ids.
const SEPARATOR: char = '-';

// === impl Scope ===

impl Scope {
    /// What the transactional ids of its workers begin with, to the separator.
    fn ids(&self) -> Option<String> {
        let prefix = self.transactions.as_ref()?;
        Some(format!("{prefix}{SEPARATOR}"))
    }
}

// === impl User ===

impl User {
    /// The operations that the user needs on a topic with this role; without a scope, as if everything was used.
    pub(super) fn on(self, role: Role, scope: Option<&Scope>) -> BTreeSet<Operation> {
        let events = scope.is_none_or(|scope| scope.events);
        let about = role.about();
        let mut operations = BTreeSet::new();
        match self {
            Self::Run => {
                // Settings are checked: without this one the user works, and is told that nobody looked.
                operations.insert(Operation::DescribeConfigs);
                match about.reads {
                    Reads::Tasks
                    | Reads::Commands
                    | Reads::State
                    | Reads::Signals
                    | Reads::Letters => operations.insert(Operation::Read),
                    Reads::Nothing => operations.insert(Operation::Describe),
                };
                let writes = match about.writes {
                    Writes::Nothing => false,
                    Writes::Always | Writes::Signals => true,
                    Writes::IfWanted => events,
                };
                // What sources read is written there.
                let copies =
                    role == Role::Tasks && scope.is_some_and(|scope| !scope.sources.is_empty());
                if writes || copies {
                    operations.insert(Operation::Write);
                }
            }
            Self::Init => operations.extend([
                Operation::Create,
                Operation::Alter,
                Operation::DescribeConfigs,
            ]),
            Self::Submit => operations.extend(of(about.submit)),
            Self::Explain => operations.extend(of(about.explain)),
            Self::ScenesApply => operations.extend(of(about.scenes)),
            Self::Tasks => operations.extend(of(about.tasks)),
            Self::DeadLetters => operations.extend(of(about.letters)),
            Self::Purge if role == Role::DeadLetters => {
                operations.extend([Operation::Read, Operation::Delete]);
            }
            Self::Purge => {}
            Self::Read => {
                operations.insert(Operation::Read);
            }
        }
        operations
    }

    /// The operation that the user needs on the group of the workers.
    const fn on_group(self) -> Option<Operation> {
        match self {
            Self::Run => Some(Operation::Read),
            Self::ScenesApply | Self::Tasks | Self::Read => Some(Operation::Describe),
            Self::Init | Self::Submit | Self::Explain | Self::DeadLetters | Self::Purge => None,
        }
    }

    /// The word for it on the command line.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Run => "run",
            Self::Init => "init",
            Self::Submit => "submit",
            Self::Explain => "explain",
            Self::ScenesApply => "scenes-apply",
            Self::Tasks => "tasks",
            Self::DeadLetters => "dead-letters",
            Self::Purge => "purge",
            Self::Read => "read",
        }
    }
}

/// The operations that what a command does takes.
const fn of(command: Use) -> &'static [Operation] {
    match command {
        Use::Nothing => &[],
        Use::Reads => &[Operation::Read],
        Use::Writes => &[Operation::Write],
        Use::Both => &[Operation::Read, Operation::Write],
    }
}

/// The rules that `users` need together, those of tiers as one.
pub(super) fn rules(users: &[User], plan: &Plan, scope: &Scope) -> Vec<Rule> {
    let mut all: BTreeMap<(Resource, Pattern), BTreeSet<Operation>> = BTreeMap::new();
    let mut add = |resource, pattern, operations: BTreeSet<Operation>| {
        if !operations.is_empty() {
            let rule = all.entry((resource, pattern)).or_default();
            rule.extend(operations);
        }
    };
    for user in users {
        for topic in &plan.topics {
            add(
                Resource::Topic,
                Pattern::of(plan, &topic.name, topic.role),
                user.on(topic.role, Some(scope)),
            );
        }
        if let Some(operation) = user.on_group() {
            let name = Pattern::Literal(scope.group.clone());
            add(Resource::Group, name, BTreeSet::from([operation]));
        }
        if *user == User::Run {
            for target in &scope.targets {
                let name = Pattern::Literal(target.clone());
                add(Resource::Topic, name, BTreeSet::from([Operation::Write]));
            }
            for (topic, group) in &scope.sources {
                // Its retention is looked at by `doctor`.
                let operations = [Operation::Read, Operation::DescribeConfigs];
                let name = Pattern::Literal(topic.clone());
                add(Resource::Topic, name, BTreeSet::from(operations));
                let name = Pattern::Literal(group.clone());
                add(Resource::Group, name, BTreeSet::from([Operation::Read]));
            }
            if let Some(ids) = scope.ids() {
                let name = Pattern::Prefix(ids);
                add(
                    Resource::TransactionalId,
                    name,
                    BTreeSet::from([Operation::Write]),
                );
            }
        }
    }
    let all = all.into_iter();
    all.map(|((resource, name), operations)| Rule {
        resource,
        name,
        operations: least(operations),
    })
    .collect()
}

/// The command lines that let retide's user do `operations` on these topics of a plan.
pub(super) fn allow(
    topics: &[&TopicPlan],
    plan: &Plan,
    tools: &Tools,
    operations: &BTreeSet<Operation>,
) -> Vec<String> {
    let tier = |topic: &&TopicPlan| topic.role == Role::Tier;
    let tiers = plan.topics.iter().filter(tier).count();
    let all = topics.iter().copied().filter(|topic| tier(topic)).count() == tiers;
    let names: BTreeSet<Pattern> = topics
        .iter()
        .map(|topic| {
            if all {
                Pattern::of(plan, &topic.name, topic.role)
            } else {
                Pattern::Literal(topic.name.to_string())
            }
        })
        .collect();
    let rules: Vec<Rule> = names
        .into_iter()
        .map(|name| Rule {
            resource: Resource::Topic,
            name,
            operations: least(operations.clone()),
        })
        .collect();
    lines(&rules, tools, tools.principal(), None)
}

/// The operations without those that others imply.
fn least(mut operations: BTreeSet<Operation>) -> BTreeSet<Operation> {
    let implies = |operation: &Operation| match operation {
        Operation::Read | Operation::Write | Operation::Delete | Operation::Alter => true,
        Operation::Create
        | Operation::Describe
        | Operation::DescribeConfigs
        | Operation::AlterConfigs => false,
    };
    if operations.iter().any(implies) {
        operations.remove(&Operation::Describe);
    }
    operations
}

/// The command lines that give `principal`, from `host` if one is named, these rules: one for all that have the same operations.
pub(super) fn lines(
    rules: &[Rule],
    tools: &Tools,
    principal: &str,
    host: Option<&str>,
) -> Vec<String> {
    let mut same: BTreeMap<_, Vec<&Pattern>> = BTreeMap::new();
    for rule in rules {
        let key = (rule.resource, rule.name.is_prefix(), &rule.operations);
        same.entry(key).or_default().push(&rule.name);
    }
    let mut lines = Vec::new();
    for ((resource, is_prefix, operations), names) in same {
        let mut words = vec!["--add", "--allow-principal", principal];
        if let Some(host) = host {
            words.extend(["--allow-host", host]);
        }
        for operation in operations {
            words.extend(["--operation", operation_word(*operation)]);
        }
        for name in names {
            words.extend([resource.option(), name.text()]);
        }
        if is_prefix {
            words.extend(["--resource-pattern-type", "prefixed"]);
        }
        lines.push(tools.acls(&words));
    }
    lines
}

/// The rules as a `KafkaUser`, as the operator of Strimzi 0.49 or later reads it, for the Kafka resource called `cluster_label`. How the
/// user logs in is left to whoever applies it.
pub(super) fn strimzi(
    rules: &[Rule],
    principal: &str,
    host: Option<&str>,
    cluster_label: &str,
) -> String {
    let quoted = |text: &str| serde_json::Value::from(text).to_string();
    let name = principal.strip_prefix("User:").unwrap_or(principal);
    let mut text = format!(
        "---\napiVersion: kafka.strimzi.io/v1\nkind: KafkaUser\nmetadata:\n  name: {}\n  labels:\n    strimzi.io/cluster: {}\n\
         spec:\n  authorization:\n    type: simple\n    acls:\n",
        quoted(name),
        quoted(cluster_label),
    );
    for rule in rules {
        let kind = match rule.resource {
            Resource::Topic => "topic",
            Resource::Group => "group",
            Resource::TransactionalId => "transactionalId",
        };
        let pattern = if rule.name.is_prefix() {
            "prefix"
        } else {
            "literal"
        };
        let operations: Vec<&str> = rule
            .operations
            .iter()
            .map(|operation| operation_word(*operation))
            .collect();
        let _ = write!(
            text,
            "      - resource:\n          type: {kind}\n          name: {}\n          patternType: {pattern}\n        operations: [{}]\n",
            quoted(rule.name.text()),
            operations.join(", "),
        );
        if let Some(host) = host {
            let _ = writeln!(text, "        host: {}", quoted(host));
        }
    }
    text
}

/// The word for an operation, as Kafka's tools and Strimzi take it.
pub(super) const fn operation_word(operation: Operation) -> &'static str {
    match operation {
        Operation::Read => "Read",
        Operation::Write => "Write",
        Operation::Create => "Create",
        Operation::Delete => "Delete",
        Operation::Alter => "Alter",
        Operation::Describe => "Describe",
        Operation::DescribeConfigs => "DescribeConfigs",
        Operation::AlterConfigs => "AlterConfigs",
    }
}

// === impl Resource ===

impl Resource {
    /// The option for it of `kafka-acls.sh`.
    pub(super) const fn option(self) -> &'static str {
        match self {
            Self::Topic => "--topic",
            Self::Group => "--group",
            Self::TransactionalId => "--transactional-id",
        }
    }
}

// === impl Pattern ===

impl Pattern {
    /// The pattern of a planned topic: all tiers have one.
    fn of(plan: &Plan, name: &str, role: Role) -> Self {
        match plan.tiers() {
            Some(prefix) if role == Role::Tier => Self::Prefix(prefix),
            Some(_) | None => Self::Literal(name.to_owned()),
        }
    }

    /// Whether it is the beginning of names.
    const fn is_prefix(&self) -> bool {
        match self {
            Self::Literal(_) => false,
            Self::Prefix(_) => true,
        }
    }

    /// Its text.
    fn text(&self) -> &str {
        match self {
            Self::Literal(text) | Self::Prefix(text) => text,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use rdkafka::ClientConfig;

    use retide_core::Ladder;

    use crate::cluster::Layout;
    use crate::topics::Topics;

    fn shown(users: &[User]) -> Vec<String> {
        shown_with(users, &[])
    }

    fn shown_with(users: &[User], sources: &[(&str, &str)]) -> Vec<String> {
        let sources = sources.iter();
        let sources = sources.map(|(topic, group)| ((*topic).to_owned(), (*group).to_owned()));
        let ladder = Ladder::try_new(&["now", "1m"]).unwrap();
        let layout = Layout {
            partitions: 2,
            replication_factor: -1,
        };
        let plan = Plan::new(&Topics::new("retry", &ladder), &ladder, layout);
        let scope = Scope {
            group: "retide".to_owned(),
            transactions: Some("retide".to_owned()),
            targets: BTreeSet::from(["paid".to_owned()]),
            events: true,
            sources: sources.collect(),
        };
        let tools = Tools::new(&ClientConfig::new(), "a:9092");
        let lines = lines(&rules(users, &plan, &scope), &tools, "User:x", None);
        let head = "kafka-acls.sh --bootstrap-server a:9092 --add --allow-principal User:x ";
        let lines = lines.into_iter();
        lines
            .map(|line| line.strip_prefix(head).unwrap().to_owned())
            .collect()
    }

    #[test]
    fn a_worker_needs_few_lines_and_no_prefix_but_those_that_end_in_a_separator() {
        assert_eq!(
            shown(&[User::Run]),
            [
                "--operation Read --operation Write --operation DescribeConfigs --topic retry.commands --topic retry.dead-letters --topic retry.order \
                 --topic retry.signals",
                "--operation Read --operation DescribeConfigs --topic retry.scenes --topic retry.tasks",
                "--operation Write --topic paid",
                "--operation Write --operation DescribeConfigs --topic retry.alerts --topic retry.callbacks --topic retry.events",
                "--operation Read --operation Write --operation DescribeConfigs --topic retry.delay. --resource-pattern-type prefixed",
                "--operation Read --group retide",
                "--operation Write --transactional-id retide- --resource-pattern-type prefixed",
            ]
        );
    }

    #[test]
    fn a_worker_with_a_source_also_reads_that_and_writes_the_retry_topic() {
        let plain = shown(&[User::Run]);

        let more = shown_with(&[User::Run], &[("orders-dlt", "retide-source-shop")]);

        let new: Vec<&String> = more.iter().filter(|line| !plain.contains(line)).collect();
        assert_eq!(
            new,
            [
                "--operation Read --operation Write --operation DescribeConfigs --topic retry.commands --topic retry.dead-letters \
                 --topic retry.order --topic retry.signals --topic retry.tasks",
                "--operation Read --operation DescribeConfigs --topic orders-dlt --topic retry.scenes",
                "--operation Read --group retide --group retide-source-shop",
            ]
        );
    }

    #[test]
    fn the_other_users_need_less_and_together_what_each_of_them_needs() {
        assert_eq!(
            shown(&[User::Submit]),
            [
                "--operation Read --topic retry.scenes",
                "--operation Write --topic retry.tasks",
            ]
        );
        assert_eq!(
            shown(&[User::Submit, User::ScenesApply]),
            [
                "--operation Read --operation Write --topic retry.scenes --topic retry.tasks",
                "--operation Read --topic retry.delay. --resource-pattern-type prefixed",
                "--operation Describe --group retide",
            ]
        );
        assert_eq!(
            shown(&[User::Tasks]),
            [
                "--operation Read --topic retry.order --topic retry.scenes --topic retry.tasks",
                "--operation Read --operation Write --topic retry.commands",
                "--operation Read --topic retry.delay. --resource-pattern-type prefixed",
                "--operation Describe --group retide",
            ]
        );
        assert_eq!(
            shown(&[User::DeadLetters]),
            [
                "--operation Read --topic retry.callbacks --topic retry.dead-letters --topic retry.events --topic retry.scenes \
                 --topic retry.tasks",
                "--operation Read --topic retry.delay. --resource-pattern-type prefixed",
            ]
        );
        assert_eq!(
            shown(&[User::Purge]),
            ["--operation Read --operation Delete --topic retry.dead-letters"]
        );
        assert_eq!(
            shown(&[User::Init]),
            [
                "--operation Create --operation Alter --operation DescribeConfigs --topic retry.alerts --topic retry.callbacks \
                 --topic retry.commands --topic retry.dead-letters --topic retry.events --topic retry.order --topic retry.scenes \
                 --topic retry.signals --topic retry.tasks",
                "--operation Create --operation Alter --operation DescribeConfigs --topic retry.delay. --resource-pattern-type prefixed",
            ]
        );
    }
}
