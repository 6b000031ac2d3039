//! What in a cluster keeps retide from its promises, and the command line that mends it.
//!
//! Not how the cluster is asked. Invariant: what cannot be seen is not called wrong; it is said that it cannot be seen.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use rdkafka::error::{KafkaError, RDKafkaErrorCode};

use retide_core::span;
use retide_native::admin::Operation;

use crate::cluster::acl::{self, Resource, Scope, User};
use crate::cluster::plan::{self, Plan, TopicPlan};
use crate::cluster::tools::Tools;
use crate::topics::{COPY_BYTES, Cleanup, Role, Timestamps};

/// What is said of a topic that is not there.
pub const MISSING: &str = "does not exist";

/// What is said of a topic that is not there, and that groups have worked without before there was one.
const MISSING_NEW: &str =
    "does not exist: no task can be cancelled, hurried or moved until it does";

/// What is said where such a topic is there, and may not be used.
pub const DENIED_NEW: &str = "retide may not use it: no task can be cancelled, hurried or moved";

/// What is said of the retry topic where sources may not write it.
const UNCOPIED: &str =
    "retide may not write it: what stands on the topics of [sources] does not become tasks";

/// What is said of the signals topic if it is not there.
const MISSING_SIGNALS: &str =
    "does not exist: processes do not tell each other which targets want rest";

/// What is said of the signals topic if it may not be used.
const DENIED_SIGNALS: &str =
    "retide may not use it: processes do not tell each other which targets want rest";

/// Whether retide runs in spite of a finding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    /// It does not: tasks would be lost, early, or stuck.
    Refuse,
    /// It does, but part of what there is to do stands still, or is lost already.
    Limit,
    /// It does, but an operator should know.
    Warn,
}

/// One thing that is not as retide needs it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Whether retide runs in spite of it.
    pub severity: Severity,
    /// The topic or the transactional id that it is about.
    pub subject: String,
    /// What is wrong, and what comes of it.
    pub problem: String,
    /// The command line that mends it.
    pub fix: String,
}

/// What of a topic a finding is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Aspect {
    /// Whether it is there.
    Missing,
    /// How many partitions it has.
    Partitions,
    /// How it forgets.
    Cleanup,
    /// Whose clock its timestamps are from.
    Timestamps,
    /// How long it keeps records.
    Retention,
    /// How many bytes it keeps.
    RetentionBytes,
    /// How large its records may be.
    MaxBytes,
    /// How many replicas have its records.
    Replicas,
}

/// A cluster as far as it was looked at.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// The numbers of its brokers, and the addresses that they advertise.
    pub brokers: BTreeMap<i32, String>,
    /// The topics that may be described.
    pub topics: BTreeMap<String, SeenTopic>,
    /// Planned topics of which not even that may be seen whether they exist.
    pub hidden: BTreeSet<String>,
    /// What may be done with planned topics, where brokers tell.
    pub allowed: BTreeMap<String, BTreeSet<Operation>>,
}

/// Who asks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asking<'a> {
    /// As what.
    pub(super) user: User,
    /// What is used beside the topics; none if only the topics are of interest, not what may be done with them.
    pub(super) scope: Option<&'a Scope>,
}

/// A topic of a cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SeenTopic {
    /// The brokers that have each of its partitions.
    pub replicas: Vec<Vec<i32>>,
    /// Its settings; none if they may not be read.
    pub settings: BTreeMap<String, String>,
}

impl SeenTopic {
    /// A topic of which only is known how many partitions it has: where its replicas are is looked at when retide starts.
    pub fn of(partitions: usize) -> Self {
        Self {
            replicas: vec![Vec::new(); partitions],
            settings: BTreeMap::new(),
        }
    }
}

/// A planned topic that exists, and what it is measured by.
struct Subject<'a> {
    /// The topic as planned.
    topic: &'a TopicPlan,
    /// The topic as it is.
    seen: &'a SeenTopic,
    /// The brokers.
    brokers: &'a BTreeMap<i32, String>,
    /// Writes the fixes.
    tools: &'a Tools,
    /// The planned topic with the most partitions, and how many.
    widest: (&'a str, usize),
    /// The largest batch of the retry topic, where that is known.
    task_bytes: Option<i64>,
}

/// How long a topic that is read keeps its records at least, beyond their wait: an outage of a night must cost nothing.
const SHORTEST_OUTAGE: Duration = Duration::from_hours(24);

/// Largest record that the ledger's producers write.
const WRITABLE: i64 = 10_000_000;

/// Replicas of a partition that survive the loss of one broker while another one is down for maintenance.
const SAFE_REPLICAS: usize = 3;

/// Setting: how many replicas must have a record before it counts as written.
const MIN_INSYNC: &str = "min.insync.replicas";

/// What is wrong with the planned topics, refusals first.
pub(super) fn findings(plan: &Plan, seen: &Seen, tools: &Tools) -> Vec<Finding> {
    let findings = aspects(plan, seen, tools).into_iter();
    let mut findings: Vec<Finding> = findings.map(|(_, finding)| finding).collect();
    findings.sort_by_key(|finding| finding.severity == Severity::Warn);
    findings
}

/// What is wrong with the planned topics, topic by topic.
pub fn aspects(plan: &Plan, seen: &Seen, tools: &Tools) -> Vec<(Aspect, Finding)> {
    let widest = widest(plan, seen);
    let task_bytes = plan
        .topics
        .iter()
        .filter(|topic| topic.role == Role::Tasks)
        .find_map(|topic| seen.topics.get(&*topic.name)?.number(plan::MAX_BYTES));
    let mut findings = Vec::new();
    for topic in &plan.topics {
        match seen.topics.get(&*topic.name) {
            Some(found) => {
                let subject = Subject {
                    topic,
                    seen: found,
                    brokers: &seen.brokers,
                    tools,
                    widest,
                    task_bytes,
                };
                findings.extend(subject.findings());
            }
            // Said by [`denials`], all of them together.
            None if seen.hidden.contains(&*topic.name) => {}
            None => {
                let (severity, problem) = match new_words(topic.role) {
                    Some((missing, _)) => (Severity::Warn, missing),
                    None => (Severity::Refuse, MISSING),
                };
                let missing = Finding {
                    severity,
                    subject: topic.name.to_string(),
                    problem: problem.to_owned(),
                    fix: plan.invocation.line("init"),
                };
                findings.push((Aspect::Missing, missing));
            }
        }
    }
    findings
}

/// What is missing without a topic that groups have worked without: where it does not exist, and where it may not be used.
const fn new_words(role: Role) -> Option<(&'static str, &'static str)> {
    match role {
        Role::Commands => Some((MISSING_NEW, DENIED_NEW)),
        Role::Signals => Some((MISSING_SIGNALS, DENIED_SIGNALS)),
        Role::Tasks
        | Role::Callbacks
        | Role::Tier
        | Role::Alerts
        | Role::DeadLetters
        | Role::Events
        | Role::Order
        | Role::Scenes => None,
    }
}

/// What may not be done with the planned topics and would be: one finding for all topics that lack the same.
pub(super) fn denials(plan: &Plan, seen: &Seen, tools: &Tools, asking: Asking<'_>) -> Vec<Finding> {
    let mut lacking: BTreeMap<(Option<&str>, BTreeSet<Operation>), Vec<&TopicPlan>> =
        BTreeMap::new();
    for topic in &plan.topics {
        let mut needed = asking.user.on(topic.role, asking.scope);
        let exists = seen.topics.get(&*topic.name);
        if seen.hidden.contains(&*topic.name) {
            // All of it, since nothing is known of the rest.
            needed.insert(Operation::Describe);
        } else if let (Some(allowed), Some(_)) = (seen.allowed.get(&*topic.name), exists) {
            if asking.scope.is_none() {
                needed.retain(|operation| *operation == Operation::DescribeConfigs);
            }
            needed = needed.difference(allowed).copied().collect();
        } else if exists.is_some_and(|topic| topic.settings.is_empty()) {
            // Nobody tells what is allowed; this much was tried.
            needed.retain(|operation| *operation == Operation::DescribeConfigs);
        } else {
            needed.clear();
        }
        if !needed.is_empty() {
            let words = new_words(topic.role).map(|(_, denied)| denied);
            // Workers only read it.
            let is_for_sources =
                topic.role == Role::Tasks && needed == BTreeSet::from([Operation::Write]);
            let words = words.or(is_for_sources.then_some(UNCOPIED));
            let lacking = lacking.entry((words, needed));
            lacking.or_default().push(topic);
        }
    }
    let lacking = lacking.into_iter();
    let mut denials: Vec<Finding> = lacking
        .map(|((words, operations), topics)| {
            let (severity, problem) = match (denied(&operations), words) {
                ((Severity::Refuse | Severity::Limit, _), Some(words)) => (Severity::Warn, words),
                (denied, _) => denied,
            };
            Finding {
                severity,
                subject: together(plan, &topics),
                problem: problem.to_owned(),
                fix: acl::allow(&topics, plan, tools, &operations).join(" && "),
            }
        })
        .collect();
    denials.sort_by_key(|finding| finding.severity);
    denials
}

/// What it means that these operations are not allowed, and whether retide runs all the same.
fn denied(operations: &BTreeSet<Operation>) -> (Severity, &'static str) {
    let lacks = |operation| operations.contains(&operation);
    if lacks(Operation::Describe) {
        return (
            Severity::Refuse,
            "retide may not describe it, so it is not known whether it exists",
        );
    }
    // Only who deletes records needs it.
    if lacks(Operation::Delete) {
        return (Severity::Refuse, "retide may not delete its records");
    }
    match (lacks(Operation::Read), lacks(Operation::Write)) {
        (true, true) => (Severity::Refuse, "retide may neither read nor write it"),
        (true, false) => (Severity::Refuse, "retide may not read it"),
        // What needs no such record goes on.
        (false, true) => (Severity::Limit, "retide may not write it"),
        (false, false) => (
            Severity::Warn,
            "its settings may not be read, so they are not checked",
        ),
    }
}

/// The names of topics, those of tiers as one if it is all of them.
fn together(plan: &Plan, topics: &[&TopicPlan]) -> String {
    let is_tier = |topic: &&TopicPlan| topic.role == Role::Tier;
    let tiers = plan.topics.iter().filter(is_tier).count();
    let some = topics.iter().copied().filter(|topic| is_tier(topic));
    let (mut names, mut folded) = (Vec::new(), false);
    let all = tiers > 1 && some.count() == tiers;
    for topic in topics {
        match plan.tiers() {
            Some(prefix) if all && is_tier(topic) => {
                if !folded {
                    folded = true;
                    names.push(format!("{prefix}* ({tiers} topics)"));
                }
            }
            Some(_) | None => names.push(topic.name.to_string()),
        }
    }
    names.join(", ")
}

/// What it means that no transaction can be begun with `id`, one of the ids with `prefix`.
pub(super) fn no_transactions(
    prefix: &str,
    id: &str,
    error: &KafkaError,
    tools: &Tools,
) -> Finding {
    let (problem, fix) = match error.rdkafka_error_code() {
        Some(RDKafkaErrorCode::TransactionalIdAuthorizationFailed) => (
            "retide may not use transactions with this id".to_owned(),
            tools.allow_prefix(
                &[Operation::Write],
                Resource::TransactionalId,
                &format!("{prefix}-"),
            ),
        ),
        Some(
            RDKafkaErrorCode::OperationTimedOut
            | RDKafkaErrorCode::RequestTimedOut
            | RDKafkaErrorCode::CoordinatorNotAvailable
            | RDKafkaErrorCode::CoordinatorLoadInProgress,
        ) => (
            format!(
                "no transaction coordinator answers ({error}): the topic __transaction_state has no leaders, or cannot be created \
                 since the cluster has fewer brokers than the broker settings transaction.state.log.replication.factor (3 by \
                 default) and transaction.state.log.min.isr (2) ask for"
            ),
            tools.describe("__transaction_state"),
        ),
        _ => (
            format!("transactions fail ({error}), which guarantee = \"exactly_once\" needs"),
            "set guarantee = \"at_least_once\" in [processor] of retide.toml".to_owned(),
        ),
    };
    Finding {
        severity: Severity::Refuse,
        subject: format!("transactional id {id}"),
        problem,
        fix,
    }
}

/// The topic with the most partitions: partitions can be added, never taken away.
fn widest<'a>(plan: &'a Plan, seen: &Seen) -> (&'a str, usize) {
    let mut widest = ("", 0);
    for topic in &plan.topics {
        let partitions = seen
            .topics
            .get(&*topic.name)
            .map_or(0, |found| found.replicas.len());
        if topic.role.is_sharded() && partitions > widest.1 {
            widest = (&topic.name, partitions);
        }
    }
    widest
}

// === impl SeenTopic ===

impl SeenTopic {
    /// A setting, if it is known.
    fn text(&self, key: &str) -> Option<&str> {
        self.settings.get(key).map(String::as_str)
    }

    /// A setting that is a number, if it is known.
    fn number(&self, key: &str) -> Option<i64> {
        self.text(key)?.parse().ok()
    }
}

// === impl Subject ===

impl Subject<'_> {
    /// What is wrong with this topic.
    fn findings(&self) -> impl Iterator<Item = (Aspect, Finding)> {
        [
            (Aspect::Partitions, self.partitions()),
            (Aspect::Cleanup, self.cleanup()),
            (Aspect::Timestamps, self.timestamps()),
            (Aspect::Retention, self.retention()),
            (Aspect::RetentionBytes, self.retention_bytes()),
            (Aspect::MaxBytes, self.max_bytes()),
            (Aspect::Replicas, self.in_sync()),
            (Aspect::Replicas, self.replication()),
        ]
        .into_iter()
        .filter_map(|(aspect, finding)| Some((aspect, finding?)))
    }

    /// A finding about this topic.
    fn finding(&self, severity: Severity, problem: String, fix: String) -> Finding {
        Finding {
            severity,
            subject: self.topic.name.to_string(),
            problem,
            fix,
        }
    }

    /// The command line that sets one of its settings.
    fn set(&self, key: &str, value: &str) -> String {
        self.tools.set(&self.topic.name, key, value)
    }

    /// A shard is the same partition of every topic.
    fn partitions(&self) -> Option<Finding> {
        let (other, wanted) = self.widest;
        let partitions = self.seen.replicas.len();
        if !self.topic.role.is_sharded() || partitions == wanted {
            return None;
        }
        Some(self.finding(
            Severity::Limit,
            format!(
                "has {partitions} partitions, {other} has {wanted}: all must have the same number"
            ),
            self.tools.widen(&self.topic.name, wanted),
        ))
    }

    /// Rules are kept until they are replaced; everything else is kept whatever its key.
    fn cleanup(&self) -> Option<Finding> {
        let policy = self.seen.text(plan::CLEANUP)?;
        let policies: Vec<&str> = policy.split(',').map(str::trim).collect();
        let (problem, wanted) = match self.topic.role.about().cleanup {
            Cleanup::Compact { .. } if policies == ["compact"] => return None,
            Cleanup::Compact { otherwise } => (otherwise, "compact"),
            Cleanup::Delete { .. } if !policies.contains(&"compact") => return None,
            Cleanup::Delete { .. } => (
                "of records with the same key all but the last one get lost",
                "delete",
            ),
        };
        Some(self.finding(
            Severity::Refuse,
            format!("{} is {policy}: {problem}", plan::CLEANUP),
            self.set(plan::CLEANUP, wanted),
        ))
    }

    /// A tier's records wait from the moment the broker has them.
    fn timestamps(&self) -> Option<Finding> {
        match self.topic.role.about().timestamps {
            Timestamps::Waits => {}
            Timestamps::Any | Timestamps::Append => return None,
        }
        let found = self.seen.text(plan::TIMESTAMP_TYPE)?;
        let wanted = "LogAppendTime";
        (found != wanted).then(|| {
            self.finding(
                Severity::Refuse,
                format!(
                    "{} is {found}: the wait of a tier counts from the broker's append time",
                    plan::TIMESTAMP_TYPE
                ),
                self.set(plan::TIMESTAMP_TYPE, wanted),
            )
        })
    }

    /// Records are kept until they have waited, and an outage longer.
    fn retention(&self) -> Option<Finding> {
        let role = self.topic.role;
        // None at all is -1.
        let retention = u64::try_from(self.seen.number(plan::RETENTION)?).ok()?;
        let retention = Duration::from_millis(retention);
        let least = self.topic.delay + SHORTEST_OUTAGE;
        if !role.is_read() || retention >= least {
            return None;
        }
        let severity = match role.about().timestamps {
            Timestamps::Waits => Severity::Refuse,
            Timestamps::Any | Timestamps::Append => Severity::Warn,
        };
        Some(self.finding(
            severity,
            format!(
                "{} is {}, which is less than {}: tasks are deleted before they are read",
                plan::RETENTION,
                span::text(retention),
                span::text(least),
            ),
            self.set(plan::RETENTION, self.topic.config.get(plan::RETENTION)?),
        ))
    }

    /// Size knows nothing of due times.
    fn retention_bytes(&self) -> Option<Finding> {
        let bytes = self.seen.number(plan::RETENTION_BYTES)?;
        (self.topic.role.is_read() && bytes >= 0).then(|| {
            self.finding(
                Severity::Warn,
                format!(
                    "{} is {bytes}: tasks that wait are deleted once a partition has more than that",
                    plan::RETENTION_BYTES
                ),
                self.set(plan::RETENTION_BYTES, "-1"),
            )
        })
    }

    /// What the retry topic takes should fit, with what retide adds, wherever it may go: a task that does not ends there, alone.
    fn max_bytes(&self) -> Option<Finding> {
        let role = self.topic.role;
        let (found, tasks) = (self.seen.number(plan::MAX_BYTES)?, self.task_bytes?);
        let needed = plan::copy_bytes(tasks);
        if role == Role::Tasks && needed > WRITABLE {
            return Some(self.finding(
                Severity::Warn,
                format!(
                    "{} is {found}: a copy of a task may be larger than the {WRITABLE} bytes that retide writes, and one that is ends as a dead \
                     letter without its value",
                    plan::MAX_BYTES
                ),
                self.set(plan::MAX_BYTES, &plan::largest_task(WRITABLE).to_string()),
            ));
        }
        (role.about().copies && found < needed).then(|| {
            self.finding(
                Severity::Warn,
                format!(
                    "{} is {found}, and the retry topic's is {tasks}: a task with the headers that retide adds may need {needed}, and \
                     one that does not fit ends as a dead letter without its value",
                    plan::MAX_BYTES
                ),
                self.set(plan::MAX_BYTES, &needed.max(COPY_BYTES).to_string()),
            )
        })
    }

    /// With one replica in sync, the loss of its broker is the loss of records that counted as written.
    fn in_sync(&self) -> Option<Finding> {
        let least = self.seen.number(MIN_INSYNC)?;
        (least < 2 && self.least_replicas() >= SAFE_REPLICAS).then(|| {
            self.finding(
                Severity::Warn,
                format!("{MIN_INSYNC} is {least}: the loss of one broker can be the loss of tasks"),
                self.set(MIN_INSYNC, "2"),
            )
        })
    }

    /// A partition with one replica is lost with its broker.
    fn replication(&self) -> Option<Finding> {
        (self.least_replicas() < 2 && self.brokers.len() >= SAFE_REPLICAS).then(|| {
            self.finding(
                Severity::Warn,
                format!(
                    "has partitions with one replica on a cluster of {} brokers: the loss of one broker is the loss of tasks",
                    self.brokers.len()
                ),
                self.tools.reassign(&self.topic.name, &self.reassignment()),
            )
        })
    }

    /// The fewest replicas that one of its partitions has.
    fn least_replicas(&self) -> usize {
        self.seen.replicas.iter().map(Vec::len).min().unwrap_or(0)
    }

    /// More replicas for each of its partitions, spread over the brokers; those there are stay first.
    fn reassignment(&self) -> String {
        let mut partitions = Vec::new();
        for (partition, found) in self.seen.replicas.iter().enumerate() {
            let others = self.brokers.keys().filter(|broker| !found.contains(broker));
            let others: Vec<i32> = others.copied().collect();
            let missing = SAFE_REPLICAS.saturating_sub(found.len());
            let mut replicas = found.clone();
            replicas.extend(
                others
                    .iter()
                    .cycle()
                    .skip(partition)
                    .take(missing.min(others.len())),
            );
            partitions.push(serde_json::json!({
                "topic": &*self.topic.name,
                "partition": partition,
                "replicas": replicas,
            }));
        }
        serde_json::json!({ "version": 1, "partitions": partitions }).to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use rdkafka::ClientConfig;

    use retide_core::Ladder;

    use crate::cluster::Layout;
    use crate::topics::Topics;

    fn tools() -> Tools {
        Tools::new(&ClientConfig::new(), "a:9092")
    }

    /// The plan with one tier, and a cluster of `brokers` that has it, with `replicas` of each of its two partitions.
    fn planned(brokers: i32, replicas: usize) -> (Plan, Seen) {
        let ladder = Ladder::try_new(&["now"]).unwrap();
        let layout = Layout {
            partitions: 2,
            replication_factor: -1,
        };
        let plan = Plan::new(&Topics::new("r", &ladder), &ladder, layout);
        let topics = plan.topics.iter().map(|topic| {
            let settings = topic
                .config
                .iter()
                .map(|(key, value)| ((*key).to_owned(), value.clone()));
            let seen = SeenTopic {
                replicas: vec![(1..).take(replicas).collect(); topic.partitions as usize],
                settings: settings.collect(),
            };
            (topic.name.to_string(), seen)
        });
        let seen = Seen {
            brokers: (1..=brokers)
                .map(|broker| (broker, String::new()))
                .collect(),
            topics: topics.collect(),
            ..Seen::default()
        };
        (plan, seen)
    }

    /// What is found after one setting of a topic was changed.
    fn changed(topic: &str, key: &str, value: &str) -> Vec<Finding> {
        let (plan, mut seen) = planned(3, 3);
        let settings = &mut seen.topics.get_mut(topic).unwrap().settings;
        settings.insert(key.to_owned(), value.to_owned());
        findings(&plan, &seen, &tools())
    }

    fn finding(severity: Severity, subject: &str, problem: &str, fix: &str) -> Finding {
        Finding {
            severity,
            subject: subject.to_owned(),
            problem: problem.to_owned(),
            fix: fix.to_owned(),
        }
    }

    #[test]
    fn a_cluster_as_planned_has_nothing_wrong() {
        let (plan, seen) = planned(3, 3);

        assert_eq!(findings(&plan, &seen, &tools()), []);
    }

    #[test]
    fn one_replica_in_sync_is_worth_a_warning() {
        assert_eq!(
            changed("r.events", MIN_INSYNC, "1"),
            [finding(
                Severity::Warn,
                "r.events",
                "min.insync.replicas is 1: the loss of one broker can be the loss of tasks",
                "kafka-configs.sh --bootstrap-server a:9092 --alter --entity-type topics --entity-name r.events --add-config \
                 min.insync.replicas=2",
            )]
        );
    }

    #[test]
    fn one_replica_on_several_brokers_is_worth_a_warning_and_a_reassignment() {
        let (plan, mut seen) = planned(4, 3);
        seen.topics.get_mut("r.tasks").unwrap().replicas = vec![vec![2], vec![3]];

        assert_eq!(
            findings(&plan, &seen, &tools()),
            [finding(
                Severity::Warn,
                "r.tasks",
                "has partitions with one replica on a cluster of 4 brokers: the loss of one broker is the loss of tasks",
                "printf %s '{\"partitions\":[{\"partition\":0,\"replicas\":[2,1,3],\"topic\":\"r.tasks\"},\
                 {\"partition\":1,\"replicas\":[3,2,4],\"topic\":\"r.tasks\"}],\"version\":1}' > r.tasks.json && \
                 kafka-reassign-partitions.sh --bootstrap-server a:9092 --reassignment-json-file r.tasks.json --execute",
            )]
        );
        let (plan, seen) = planned(1, 1);
        assert_eq!(findings(&plan, &seen, &tools()), []);
    }

    /// What may not be done where this is allowed on each topic, and nothing is known of these.
    fn denied(allowed: &[Operation], hidden: &[&str]) -> Vec<Finding> {
        let (plan, mut seen) = planned(3, 3);
        for topic in &plan.topics {
            let allowed = allowed.iter().copied().collect();
            seen.allowed.insert(topic.name.to_string(), allowed);
        }
        for topic in hidden {
            seen.topics.remove(*topic);
            seen.hidden.insert((*topic).to_owned());
        }
        let scope = Scope {
            group: "g".to_owned(),
            transactions: None,
            targets: BTreeSet::new(),
            events: true,
            sources: BTreeSet::new(),
        };
        let asking = Asking {
            user: User::Run,
            scope: Some(&scope),
        };
        denials(&plan, &seen, &tools(), asking)
    }

    #[test]
    fn what_is_lacking_is_one_finding_for_all_topics_that_lack_it() {
        use Operation::{Describe, DescribeConfigs, Read, Write};
        let allow =
            "kafka-acls.sh --bootstrap-server a:9092 --add --allow-principal User:NAME --operation";

        assert_eq!(denied(&[Read, Write, Describe, DescribeConfigs], &[]), []);
        assert_eq!(
            denied(&[Read, Describe, DescribeConfigs], &[]),
            [
                finding(
                    Severity::Limit,
                    "r.callbacks, r.delay.now, r.alerts, r.dead-letters, r.events, r.order",
                    "retide may not write it",
                    &format!(
                        "{allow} Write --topic r.alerts --topic r.callbacks --topic r.dead-letters --topic r.events --topic r.order && \
                     {allow} Write --topic r.delay. --resource-pattern-type prefixed"
                    ),
                ),
                finding(
                    Severity::Warn,
                    "r.commands",
                    DENIED_NEW,
                    &format!("{allow} Write --topic r.commands"),
                ),
                finding(
                    Severity::Warn,
                    "r.signals",
                    DENIED_SIGNALS,
                    &format!("{allow} Write --topic r.signals"),
                ),
            ]
        );
        assert_eq!(
            denied(&[Read, Write, Describe], &["r.scenes"])[0],
            finding(
                Severity::Refuse,
                "r.scenes",
                "retide may not describe it, so it is not known whether it exists",
                &format!("{allow} Read --operation DescribeConfigs --topic r.scenes"),
            )
        );
    }

    #[test]
    fn a_retry_topic_that_takes_more_than_retide_writes_is_told() {
        let found = changed("r.tasks", plan::MAX_BYTES, "20000000");

        assert_eq!(
            found[0],
            finding(
                Severity::Warn,
                "r.tasks",
                "max.message.bytes is 20000000: a copy of a task may be larger than the 10000000 bytes that retide writes, and one \
                 that is ends as a dead letter without its value",
                "kafka-configs.sh --bootstrap-server a:9092 --alter --entity-type topics --entity-name r.tasks --add-config \
                 max.message.bytes=7450848",
            )
        );
        assert_eq!(changed("r.tasks", plan::MAX_BYTES, "1500000"), []);
    }

    #[test]
    fn transactions_that_are_not_allowed_need_an_acl() {
        let error = KafkaError::Global(RDKafkaErrorCode::TransactionalIdAuthorizationFailed);

        assert_eq!(
            no_transactions("r", "r-check", &error, &tools()),
            finding(
                Severity::Refuse,
                "transactional id r-check",
                "retide may not use transactions with this id",
                "kafka-acls.sh --bootstrap-server a:9092 --add --allow-principal User:NAME --operation Write \
                 --transactional-id r- --resource-pattern-type prefixed",
            )
        );
    }
}
