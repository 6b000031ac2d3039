//! Topics that were as retide needs them at the start, and are not any more, and members that disagree: looked at while workers run.
//!
//! Not what is wrong, which [`cluster`](retide_kafka::cluster) says, at the start as now. Invariant: what cannot be seen, be it for want of a
//! permission or of an answer, is neither called wrong nor mended.

use std::collections::{BTreeMap, BTreeSet};
use std::mem;
use std::sync::Arc;
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::client::{Client, ClientContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use tracing::debug;

use retide_kafka::cluster::standing::{disagreements, members_by};
use retide_kafka::cluster::{
    Aspect, Finding, Plan, Seen, SeenTopic, Severity, Tools, Whose, aspects, widen_all,
};
use retide_kafka::topics::Topics;
use retide_native::admin::settings;
use retide_native::topics::describe;

use crate::kept::Kept;
use crate::trouble::{Effect, Kind, Trouble, Troubles};

/// Looks at topics, again and again.
pub(crate) struct Drift {
    /// The topics as they should be.
    plan: Plan,
    /// The group.
    whose: Whose,
    /// Writes the fixes.
    tools: Tools,
    /// The names of the topics.
    topics: Arc<Topics>,
    /// The configuration of a client.
    config: ClientConfig,
    /// Where it is told.
    troubles: Troubles,
    /// How long dead letters are kept.
    kept: Kept,
    /// What was wrong at the last look, by topic.
    wrong: BTreeMap<String, Vec<Trouble>>,
    /// Topics that were not there at the last look: one is missed if it is not there twice.
    absent: BTreeSet<String>,
    /// Whether it was said that settings may not be read.
    is_said: bool,
}

/// Longest wait for one answer.
const ANSWER: Duration = Duration::from_secs(3);

// === impl Drift ===

impl Drift {
    /// Has not looked yet.
    pub(crate) fn new(
        whose: Whose,
        topics: &Arc<Topics>,
        config: &ClientConfig,
        bootstrap: &str,
        (troubles, kept): (Troubles, Kept),
    ) -> Self {
        Self {
            plan: whose.plan.clone(),
            whose,
            tools: Tools::new(config, bootstrap),
            topics: Arc::clone(topics),
            config: config.clone(),
            troubles,
            kept,
            wrong: BTreeMap::new(),
            absent: BTreeSet::new(),
            is_said: false,
        }
    }

    /// Looks by `client`, and tells what is wrong, and what is not any more. Waits for answers.
    pub(crate) fn look<C: ClientContext>(&mut self, client: &Client<C>) {
        self.look_at_topics(client);
        self.look_at_members(client);
    }

    /// Tells of members of the group that have another configuration. One that is started is refused; two that start together are not.
    fn look_at_members<C: ClientContext>(&self, client: &Client<C>) {
        let members = match members_by(client, &self.whose.group, ANSWER) {
            Ok(members) => members,
            Err(error) => return debug!(%error, "members of the group not looked at"),
        };
        let mut all = disagreements(&members, &self.whose).into_iter();
        let trouble = all.next().map(|first| Trouble {
            kind: Kind::GroupDisagrees,
            subject: self.whose.group.clone(),
            says: match all.count() {
                0 => format!("group {} {}", self.whose.group, first.problem),
                others => format!(
                    "group {} {}, and so do {others} others",
                    self.whose.group, first.problem
                ),
            },
            fix: Some(first.fix),
            effect: Effect::Limits,
        });
        self.troubles.only(Kind::GroupDisagrees, trouble);
    }

    /// Tells of topics.
    fn look_at_topics<C: ClientContext>(&mut self, client: &Client<C>) {
        let (seen, unknown) = match self.see(client) {
            Ok(seen) => seen,
            Err(error) => return debug!(%error, "topics not looked at"),
        };
        let letters = &*self.topics.dead_letters;
        if !unknown.contains(letters) {
            let settings = seen.topics.get(letters).map(|topic| &topic.settings);
            let setting = |name| settings.and_then(|settings| settings.get(name));
            self.kept
                .read(setting("cleanup.policy"), setting("retention.ms"));
        }
        let before = mem::take(&mut self.wrong);
        let mut narrow = Vec::new();
        for (aspect, finding) in aspects(&self.plan, &seen, &self.tools) {
            if unknown.contains(&finding.subject) {
                continue;
            }
            match kind(aspect) {
                Some(Kind::PartitionsDiffer) => narrow.push(finding.subject),
                Some(kind) if self.is_told(kind, &finding.subject) => {
                    let of = self.wrong.entry(finding.subject.clone()).or_default();
                    of.push(trouble(kind, finding));
                }
                Some(_) | None => {}
            }
        }
        for topic in unknown {
            if let Some(wrong) = before.get(&topic) {
                self.wrong.insert(topic, wrong.clone());
            }
        }
        let all: Vec<&Trouble> = self.wrong.values().flatten().collect();
        for kind in KINDS {
            let of = all.iter().filter(|trouble| trouble.kind == kind);
            self.troubles
                .only(kind, of.map(|trouble| (*trouble).clone()));
        }
        let differ = self.differ(&seen, &narrow);
        self.troubles.only(Kind::PartitionsDiffer, differ);
    }

    /// What there is, and the topics of which not all is known.
    fn see<C: ClientContext>(
        &mut self,
        client: &Client<C>,
    ) -> Result<(Seen, BTreeSet<String>), KafkaError> {
        let names: Vec<&str> = self.plan.names().collect();
        let (mut seen, mut unknown) = (Seen::default(), BTreeSet::new());
        let mut is_hidden = false;
        for topic in describe(client, &names, ANSWER)? {
            match topic {
                Ok(topic) => {
                    let found = SeenTopic::of(topic.partitions);
                    seen.topics.insert(topic.name, found);
                }
                Err(RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownTopic) => {
                }
                Err(_) => is_hidden = true,
            }
        }
        let others = names
            .iter()
            .filter(|name| !seen.topics.contains_key(**name));
        let mut absent: BTreeSet<String> = others.map(|name| (*name).to_owned()).collect();
        if is_hidden {
            // Of which of them it is not said.
            unknown.append(&mut absent);
        }
        // A broker that has not heard of it yet says the same of a topic that was just made.
        let new = absent.difference(&self.absent).cloned();
        unknown.extend(new);
        self.absent = absent;
        let there: Vec<&str> = seen.topics.keys().map(String::as_str).collect();
        let mut denied = Vec::new();
        for answer in settings(client, &there, ANSWER)? {
            match (answer.settings, seen.topics.get_mut(&answer.topic)) {
                (Ok(settings), Some(topic)) => topic.settings = settings,
                (Err(code), Some(_)) => {
                    if code == RDKafkaErrorCode::TopicAuthorizationFailed {
                        denied.push(answer.topic.clone());
                    }
                    unknown.insert(answer.topic);
                }
                (_, None) => {}
            }
        }
        if !denied.is_empty() && !mem::replace(&mut self.is_said, true) {
            debug!(topics = ?denied, "settings may not be read, so they are not watched");
        }
        Ok((seen, unknown))
    }

    /// Whether a trouble of this kind is told here: that a topic is missing which is written to is told by whoever writes.
    fn is_told(&self, kind: Kind, topic: &str) -> bool {
        let planned = self
            .plan
            .topics
            .iter()
            .find(|planned| &*planned.name == topic);
        let is_written = planned.is_some_and(|planned| {
            // Where it is missing, nobody tries to write it.
            planned.role.is_written() && !planned.role.is_new()
        });
        kind != Kind::TopicMissing || !is_written
    }

    /// The topics do not have the same number of partitions: one trouble for all, of the topic that stands out.
    fn differ(&self, seen: &Seen, narrow: &[String]) -> Option<Trouble> {
        let count = |topic: &String| seen.topics.get(topic).map(|found| found.replicas.len());
        let sharded = self.plan.topics.iter();
        let sharded = sharded.filter(|topic| topic.role.is_sharded());
        let counts: Vec<(&Arc<str>, usize)> = sharded
            .filter_map(|topic| Some((&topic.name, count(&topic.name.to_string())?)))
            .collect();
        let widest = counts.iter().map(|(_, count)| *count).max()?;
        let least = narrow.iter().filter_map(count).min()?;
        let wide: Vec<&str> = counts
            .iter()
            .filter(|(_, count)| *count == widest)
            .map(|(topic, _)| &***topic)
            .collect();
        let narrow: Vec<&str> = narrow.iter().map(String::as_str).collect();
        let subject = if wide.len() <= narrow.len() {
            wide.first()
        } else {
            narrow.first()
        };
        Some(Trouble {
            kind: Kind::PartitionsDiffer,
            subject: (*subject?).to_owned(),
            says: format!(
                "{} {widest} partitions, and {} fewer: shards from {least} on begin when all topics have them",
                have(&wide),
                have(&narrow),
            ),
            fix: Some(widen_all(&self.config, &self.topics, widest)),
            effect: Effect::Limits,
        })
    }
}

/// The kinds that are told here, but for that of partitions.
const KINDS: [Kind; 6] = [
    Kind::TopicMissing,
    Kind::UnsafeCleanupPolicy,
    Kind::UnsafeTimestampType,
    Kind::UnsafeRetentionMs,
    Kind::UnsafeRetentionBytes,
    Kind::UnsafeMaxMessageBytes,
];

/// The kind of trouble that a finding is; none if it is no trouble while workers run.
const fn kind(aspect: Aspect) -> Option<Kind> {
    Some(match aspect {
        Aspect::Missing => Kind::TopicMissing,
        Aspect::Partitions => Kind::PartitionsDiffer,
        Aspect::Cleanup => Kind::UnsafeCleanupPolicy,
        Aspect::Timestamps => Kind::UnsafeTimestampType,
        Aspect::Retention => Kind::UnsafeRetentionMs,
        Aspect::RetentionBytes => Kind::UnsafeRetentionBytes,
        Aspect::MaxBytes => Kind::UnsafeMaxMessageBytes,
        Aspect::Replicas => return None,
    })
}

/// A finding as a trouble.
fn trouble(kind: Kind, finding: Finding) -> Trouble {
    let Finding {
        severity,
        subject,
        problem,
        fix,
    } = finding;
    Trouble {
        kind,
        says: format!("{subject}: {problem}"),
        subject,
        fix: Some(fix),
        effect: if kind == Kind::TopicMissing && severity == Severity::Refuse {
            Effect::Stops
        } else {
            Effect::Limits
        },
    }
}

/// These topics, as the subject of a sentence.
fn have(topics: &[&str]) -> String {
    match topics {
        [one] => format!("{one} has"),
        [one, other] => format!("{one} and {other} have"),
        [one, others @ ..] => format!("{one} and {} other topics have", others.len()),
        [] => "none has".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topics_are_named_as_far_as_a_sentence_goes() {
        assert_eq!(have(&["a"]), "a has");
        assert_eq!(have(&["a", "b"]), "a and b have");
        assert_eq!(have(&["a", "b", "c"]), "a and 2 other topics have");
    }
}
