//! What does not fit in how a group stands, and what mends it.
//!
//! Not what was asked for it. Invariant: the same standing has the same faults.

use super::{Committed, LaneStanding, Standing, Whose, disagreements};
use crate::cluster::check::{Finding, Severity};
use crate::cluster::tools::Tools;

// === impl Standing ===

impl Standing {
    /// What does not fit.
    pub(super) fn find_faults(&self, whose: &Whose, tools: &Tools) -> Vec<Finding> {
        let mut findings: Vec<Finding> = [
            self.lost(whose),
            self.two_prefixes(whose, tools),
            self.other_groups(whose, tools),
        ]
        .into_iter()
        .flatten()
        .collect();
        findings.extend(disagreements(&self.members, whose));
        findings.extend(self.stray_tiers(whose));
        findings.extend(self.gone(whose));
        findings
    }

    /// A group without offsets where somebody has worked.
    fn lost(&self, whose: &Whose) -> Option<Finding> {
        let worked = self.worked.as_ref()?;
        let entrance = format!("{}.tasks", whose.prefix);
        let in_tasks = |lane: &&LaneStanding| lane.topic == entrance;
        let count = |lanes: Vec<&LaneStanding>| -> i64 {
            let records = lanes.iter().map(|lane| {
                let (first, end) = (lane.first.unwrap_or(0), lane.end.unwrap_or(0));
                (end - first).max(0)
            });
            records.sum()
        };
        let (tasks, tiers): (Vec<_>, Vec<_>) = self.lanes.iter().partition(in_tasks);
        let (tasks, tiers) = (count(tasks), count(tiers));
        let name = if self.others.is_empty() {
            String::new()
        } else {
            let others: Vec<&str> = self.others.iter().map(String::as_str).collect();
            format!(
                "if it was renamed, set group in [processor] back (there are offsets of {}); else ",
                others.join(", ")
            )
        };
        Some(Finding {
            severity: Severity::Refuse,
            subject: format!("group {}", whose.group),
            problem: format!(
                "has no committed offset on {}, but work was done here before ({worked}): it was renamed or deleted, or its offsets have \
                 expired. Up to {tasks} records of the retry topic and {tiers} of tiers would be done again, those that have ended \
                 among them, with second callbacks",
                whose.prefix
            ),
            fix: format!(
                "{name}`{}` to do what is produced from now on, and leave up to {} records undone; or `{}` to do all of them again",
                whose.plan.invocation.line("run --from-now"),
                tasks + tiers,
                whose.plan.invocation.line("run --from-beginning"),
            ),
        })
    }

    /// A group that works on two prefixes.
    fn two_prefixes(&self, whose: &Whose, tools: &Tools) -> Option<Finding> {
        let other = self.prefixes.first()?;
        Some(Finding {
            severity: Severity::Refuse,
            subject: format!("group {}", whose.group),
            problem: format!(
                "has offsets on prefix {other}, too: members of one group would read different topics, and rates and shards are divided \
                 over all of them"
            ),
            fix: format!(
                "set another group in [processor] for prefix {}; if nobody works on {other} any more: {}",
                whose.prefix,
                tools.delete_offsets(&whose.group, &format!("{other}.tasks"))
            ),
        })
    }

    /// Other groups that work here.
    fn other_groups(&self, whose: &Whose, tools: &Tools) -> Option<Finding> {
        if self.others.is_empty() {
            return None;
        }
        let others: Vec<&str> = self.others.iter().map(String::as_str).collect();
        Some(Finding {
            severity: Severity::Warn,
            subject: format!("group {}", whose.group),
            problem: format!(
                "is not the only one on prefix {}: {} has offsets or members there. Each group of retide's does every task",
                whose.prefix,
                others.join(", ")
            ),
            fix: format!(
                "run retide with one group only; to forget a group that nobody uses: {}",
                tools.delete_group(others[0])
            ),
        })
    }

    /// Tiers that are not configured any more, with records in them.
    fn stray_tiers(&self, whose: &Whose) -> Vec<Finding> {
        let strays = self.strays.iter().filter(|(_, left)| **left > 0);
        strays
            .map(|(topic, left)| {
                let tier = topic.rsplit(".delay.").next().unwrap_or(topic);
                Finding {
                    severity: Severity::Warn,
                    subject: topic.clone(),
                    problem: format!(
                        "is no tier of this configuration, and up to {left} records in it are not done: `retide run` reads it until it is \
                         empty, and parks nothing there"
                    ),
                    fix: format!(
                        "leave it until it is empty and delete it then, or add \"{tier}\" to tiers in [topics] of prefix {}",
                        whose.prefix
                    ),
                }
            })
            .collect()
    }

    /// Partitions of which records are gone that were not read.
    fn gone(&self, whose: &Whose) -> Vec<Finding> {
        let mut findings = Vec::new();
        for lane in &self.lanes {
            let Committed::At(next) = lane.committed else {
                continue;
            };
            let subject = format!("{}/{}", lane.topic, lane.partition);
            let finding = |problem: String, fix: String| Finding {
                severity: Severity::Limit,
                subject: subject.clone(),
                problem,
                fix,
            };
            if let Some(first) = lane.first.filter(|first| *first > next) {
                findings.push(finding(
                    format!(
                        "group {} has read up to offset {next}, and the log begins at {first}: up to {} records were deleted before they \
                         were read, and their tasks are lost; `retide run` goes on behind them",
                        whose.group,
                        first - next
                    ),
                    "find out what deletes them: retention.ms and retention.bytes of the topic, kafka-delete-records.sh, a broker that \
                     was down for longer than its replicas"
                        .to_owned(),
                ));
            }
            if let Some(end) = lane.end.filter(|end| *end < next) {
                findings.push(finding(
                    format!(
                        "group {} has read up to offset {next}, and the log ends at {end}: the topic was made anew, or its end was lost; \
                         `retide run` begins with what is there",
                        whose.group
                    ),
                    "find out which: the topic's id and the brokers' logs tell".to_owned(),
                ));
            }
        }
        findings
    }
}
