//! What the callbacks topic says of the demo's tasks, as any read-committed consumer sees it.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::message::BorrowedMessage;

use retide_avro::headers;
use retide_core::Terminal;
use retide_kafka::follow::{self, Follower};
use retide_native as native;

use crate::demo::plan::{Kind, Script};

/// Counts the ends of tasks, as they come.
pub(crate) struct Tally {
    /// Reads the callbacks topic.
    follower: Follower,
    /// What was counted.
    pub(crate) score: Score,
}

/// The ends of tasks.
pub(crate) struct Score {
    /// What should have happened.
    script: Script,
    /// The end of each task, by its number.
    ends: HashMap<u64, Terminal>,
    /// What was counted.
    pub(crate) counts: Counts,
}

/// Counts of ends.
#[derive(Clone, Debug, Default)]
pub(crate) struct Counts {
    /// Callback records of the demo's tasks.
    pub(crate) callbacks: u64,
    /// Callback records beyond the first of a task.
    pub(crate) repeated: u64,
    /// Tasks that ended otherwise than the script says.
    pub(crate) unexpected: u64,
    /// Tasks whose deadline passed before the target took them, which only a machine that stands still does.
    pub(crate) out_of_time: u64,
    /// Tasks by scene and end, each once.
    by_scene: HashMap<(Kind, Terminal), u64>,
}

/// What the client is told that its group is.
const GROUP: &str = "demo-tally";

/// Longest time for reading the topic, which is empty.
const START: Duration = Duration::from_secs(20);

// === impl Tally ===

impl Tally {
    /// Reads `topic` from its beginning.
    pub(crate) fn start(
        config: &ClientConfig,
        topic: &str,
        script: Script,
    ) -> Result<Self, follow::Error> {
        let mut score = Score::new(script);
        let take = |message: &BorrowedMessage<'_>| score.take(message);
        // The client wants a group, although nothing joins it.
        let follower = Follower::start(config, (topic, GROUP), Instant::now() + START, take)?;
        Ok(Self { follower, score })
    }

    /// Reads what is there, waiting a short while for the first record.
    pub(crate) fn read(&mut self) {
        let Self { follower, score } = self;
        follower.follow(|message| score.take(message));
    }
}

// === impl Score ===

impl Score {
    /// Nothing has ended.
    fn new(script: Script) -> Self {
        Self {
            script,
            ends: HashMap::new(),
            counts: Counts::default(),
        }
    }

    /// Counts what a record says.
    fn take(&mut self, message: &BorrowedMessage<'_>) {
        if let Some((index, end)) = end(message) {
            self.count(index, end);
        }
    }

    /// How many tasks have ended.
    pub(crate) fn ended(&self) -> u64 {
        self.ends.len() as u64
    }

    /// Whether the task of this number has ended.
    pub(crate) fn has_ended(&self, index: u64) -> bool {
        self.ends.contains_key(&index)
    }

    /// Counts one end.
    fn count(&mut self, index: u64, end: Terminal) {
        self.counts.callbacks += 1;
        if self.ends.insert(index, end).is_some() {
            self.counts.repeated += 1;
            return;
        }
        let plan = self.script.plan(index);
        if plan.terminal() != end {
            match (plan.kind, end) {
                (Kind::Throttled, Terminal::Expired) => self.counts.out_of_time += 1,
                _ => self.counts.unexpected += 1,
            }
        }
        *self.counts.by_scene.entry((plan.kind, end)).or_default() += 1;
    }
}

// === impl Counts ===

impl Counts {
    /// Tasks of one scene that ended so.
    pub(crate) fn of(&self, kind: Kind, end: Terminal) -> u64 {
        self.by_scene.get(&(kind, end)).copied().unwrap_or_default()
    }

    /// Tasks of one scene that ended.
    pub(crate) fn all(&self, kind: Kind) -> u64 {
        let ends = self.by_scene.iter().filter(|((own, _), _)| *own == kind);
        ends.map(|(_, count)| count).sum()
    }

    /// Tasks that ended so.
    pub(crate) fn total(&self, end: Terminal) -> u64 {
        Kind::ALL.iter().map(|kind| self.of(*kind, end)).sum()
    }
}

/// The number and the end of the task that a callback record is about, if it is one of the demo's.
fn end(message: &BorrowedMessage<'_>) -> Option<(u64, Terminal)> {
    let text = |name: &str| {
        let headers = native::headers::read(message).ok()?;
        let (_, value) = headers
            .iter()
            .find(|(other, _)| *other == name.as_bytes())?;
        str::from_utf8(value?).ok()
    };
    let index = Script::index(text(headers::ID)?)?;
    Some((index, Terminal::from_word(text(headers::OUTCOME)?)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_throttled_task_may_run_out_of_time_and_no_other_end_is_off_the_script() {
        let script = Script { seed: 3 };
        let delivered = |kind| {
            let is_it = |index: &u64| {
                let plan = script.plan(*index);
                plan.kind == kind && plan.terminal() == Terminal::Delivered
            };
            (0..1_000).find(is_it).unwrap()
        };
        let mut score = Score::new(script);

        score.count(delivered(Kind::Throttled), Terminal::Expired);
        score.count(delivered(Kind::Steady), Terminal::Expired);
        score.count(delivered(Kind::Steady), Terminal::Delivered);

        let Counts {
            callbacks,
            repeated,
            unexpected,
            out_of_time,
            ..
        } = score.counts;
        assert_eq!((callbacks, repeated, unexpected, out_of_time), (3, 1, 1, 1));
    }
}
