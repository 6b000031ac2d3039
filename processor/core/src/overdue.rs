//! How many tasks are overdue, by scene: due, and not started.
//!
//! Counts what a worker has in memory and what it has deferred in tiers itself; what a former owner of a shard deferred there counts from
//! when it is read again. Invariant: memory does not grow with the number of tasks, only with how far their due times are apart, up to a
//! bound.

use std::collections::{HashMap, VecDeque};
use std::mem;
use std::sync::Arc;

use crate::map::Map;
use crate::time::Timestamp;

/// Tasks that are due and have not started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Overdue {
    /// How many.
    pub tasks: u64,
    /// When the first of them was due.
    pub since: Timestamp,
}

/// The tasks of a worker that are due, or soon.
#[derive(Debug, Default)]
pub(crate) struct Dues {
    /// The due tasks of each shard.
    shards: Map<i32, Shard>,
}

/// The tasks of a shard.
#[derive(Debug, Default)]
struct Shard {
    /// The tasks in memory, by the scene that they name.
    here: Scenes,
    /// The tasks that are deferred in tiers.
    deferred: Scenes,
}

/// Tasks by scene.
type Scenes = Map<Arc<str>, Spans>;

/// Tasks by due time, to the span.
#[derive(Clone, Debug)]
struct Spans {
    /// The length of a span, in microseconds.
    length: u64,
    /// The spans that have tasks, or had some of late, in their order.
    spans: Vec<Span>,
}

/// The tasks that are due within one span.
#[derive(Clone, Copy, Debug)]
struct Span {
    /// The number of the span since the epoch.
    number: u64,
    /// How many there are.
    tasks: u64,
    /// When the first of them is due.
    first: Timestamp,
}

/// A task that is deferred in a tier of another shard.
#[derive(Clone, Debug)]
pub(crate) struct Move {
    /// The shard that it moves to.
    pub(crate) to: i32,
    /// The scene of the task.
    pub(crate) scene: Arc<str>,
    /// When it was due first.
    pub(crate) due: Timestamp,
}

/// The moves of a lane that are not committed yet. Whoever loses the lane before they are has deferred nothing: the next owner reads the
/// tasks where they were.
#[derive(Clone, Debug, Default)]
pub(crate) struct Moves {
    /// Of batches under way, oldest first.
    under_way: VecDeque<Vec<Move>>,
    /// Of the batch being collected.
    collecting: Vec<Move>,
}

/// The length of a span where due times are close: what people take for the same time, in microseconds.
const LENGTH: u64 = 1_000_000;

/// Most spans of a scene, beyond which they become longer: 12 KiB.
const MOST: usize = 512;

// === impl Dues ===

impl Dues {
    /// A task of this scene is in memory.
    pub(crate) fn add(&mut self, shard: i32, scene: &Arc<str>, due: Timestamp) {
        add(&mut self.shards.entry(shard).or_default().here, scene, due);
    }

    /// A task is in memory no more.
    pub(crate) fn take(&mut self, shard: i32, scene: &str, due: Timestamp) {
        let shard = self.shards.get_mut(&shard);
        if let Some(spans) = shard.and_then(|shard| shard.here.get_mut(scene)) {
            spans.take(due);
        }
    }

    /// A task is deferred in a tier of this shard.
    pub(crate) fn defer(&mut self, shard: i32, scene: &Arc<str>, due: Timestamp) {
        let shard = self.shards.entry(shard).or_default();
        add(&mut shard.deferred, scene, due);
    }

    /// A deferred task is back from a tier of this shard; one that somebody else has deferred was not counted.
    pub(crate) fn back(&mut self, shard: i32, scene: &str, due: Timestamp) {
        let shard = self.shards.get_mut(&shard);
        if let Some(spans) = shard.and_then(|shard| shard.deferred.get_mut(scene)) {
            spans.take(due);
        }
    }

    /// Tasks are not deferred in other shards: that was never written.
    pub(crate) fn undo(&mut self, moves: impl IntoIterator<Item = Move>) {
        for Move { to, scene, due } in moves {
            self.back(to, &scene, due);
        }
    }

    /// A shard is given away.
    pub(crate) fn forget(&mut self, shard: i32) {
        self.shards.remove(&shard);
    }

    /// What is deferred in the tiers of this shard is not known any more: some of it is gone.
    pub(crate) fn forget_deferred(&mut self, shard: i32) {
        if let Some(shard) = self.shards.get_mut(&shard) {
            shard.deferred.clear();
        }
    }

    /// The tasks that are due, by the scene that they name.
    pub(crate) fn overdue(&mut self, now: Timestamp) -> HashMap<Arc<str>, Overdue> {
        let mut all: HashMap<Arc<str>, Overdue> = HashMap::new();
        let shards = self.shards.values_mut();
        for scenes in shards.flat_map(|shard| [&mut shard.here, &mut shard.deferred]) {
            scenes.retain(|scene, spans| {
                if let Some(overdue) = spans.overdue(now) {
                    all.entry(Arc::clone(scene))
                        .and_modify(|other| *other = other.and(overdue))
                        .or_insert(overdue);
                }
                spans.sweep();
                !spans.spans.is_empty()
            });
        }
        all
    }
}

/// Counts a task of this scene.
fn add(scenes: &mut Scenes, scene: &Arc<str>, due: Timestamp) {
    if let Some(spans) = scenes.get_mut(scene) {
        return spans.add(due);
    }
    let spans = scenes.entry(Arc::clone(scene)).or_default();
    spans.add(due);
}

// === impl Moves ===

impl Moves {
    /// A task moves, in the batch that is being collected.
    pub(crate) fn add(&mut self, one: Move) {
        self.collecting.push(one);
    }

    /// The batch is handed over.
    pub(crate) fn submit(&mut self) {
        self.under_way.push_back(mem::take(&mut self.collecting));
    }

    /// The oldest batch is over: its moves are durable, or are added again with what is written again.
    pub(crate) fn over(&mut self) {
        self.under_way.pop_front();
    }

    /// All that are not durable.
    pub(crate) fn into_unwritten(self) -> impl Iterator<Item = Move> {
        self.under_way.into_iter().flatten().chain(self.collecting)
    }
}

// === impl Overdue ===

impl Overdue {
    /// Both.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self {
            tasks: self.tasks + other.tasks,
            since: self.since.min(other.since),
        }
    }
}

// === impl Spans ===

impl Default for Spans {
    fn default() -> Self {
        Self {
            length: LENGTH,
            spans: Vec::new(),
        }
    }
}

impl Spans {
    /// Counts a task.
    fn add(&mut self, due: Timestamp) {
        let number = due.as_micros() / self.length;
        // As a rule one of the last ones.
        let place = self.spans.iter().rposition(|span| span.number <= number);
        if let Some(place) = place
            && self.spans[place].number == number
        {
            let span = &mut self.spans[place];
            span.first = if span.tasks == 0 {
                due
            } else {
                span.first.min(due)
            };
            span.tasks += 1;
            return;
        }
        let span = Span {
            number,
            tasks: 1,
            first: due,
        };
        self.spans.insert(place.map_or(0, |place| place + 1), span);
        if self.spans.len() > MOST {
            self.sweep();
        }
        while self.spans.len() > MOST {
            self.lengthen();
        }
    }

    /// Counts a task no more; none if none is counted.
    fn take(&mut self, due: Timestamp) {
        let number = due.as_micros() / self.length;
        if let Ok(place) = self.spans.binary_search_by_key(&number, |span| span.number) {
            let tasks = &mut self.spans[place].tasks;
            *tasks = tasks.saturating_sub(1);
        }
    }

    /// Forgets spans without tasks.
    fn sweep(&mut self) {
        self.spans.retain(|span| span.tasks > 0);
        if self.spans.is_empty() {
            self.length = LENGTH;
        }
    }

    /// Makes spans twice as long.
    fn lengthen(&mut self) {
        self.length *= 2;
        let mut spans: Vec<Span> = Vec::with_capacity(self.spans.len());
        for span in self.spans.drain(..) {
            let number = span.number / 2;
            match spans.last_mut() {
                Some(last) if last.number == number => {
                    last.tasks += span.tasks;
                    last.first = last.first.min(span.first);
                }
                Some(_) | None => spans.push(Span { number, ..span }),
            }
        }
        self.spans = spans;
    }

    /// The tasks whose span is over.
    fn overdue(&self, now: Timestamp) -> Option<Overdue> {
        let over = now.as_micros() / self.length;
        let spans = self.spans.iter();
        let spans = spans.filter(|span| span.tasks > 0 && span.number < over);
        let overdue = spans.map(|span| Overdue {
            tasks: span.tasks,
            since: span.first,
        });
        overdue.reduce(Overdue::and)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::time::Duration;

    /// An instant of no meaning, at the begin of a span.
    const START: Timestamp = Timestamp::from_millis(1_700_000_000_000);

    fn after(seconds: u64) -> Timestamp {
        START + Duration::from_secs(seconds)
    }

    fn of(dues: &mut Dues, scene: &str, now: u64) -> Option<(u64, u64)> {
        let overdue = dues.overdue(after(now));
        let overdue = overdue.get(scene)?;
        Some((overdue.tasks, after(now).since(overdue.since).as_secs()))
    }

    #[test]
    fn what_is_due_and_not_started_is_overdue_here_or_deferred() {
        let (mut dues, scene) = (Dues::default(), Arc::from("pay"));
        dues.add(3, &scene, after(0));
        dues.add(3, &scene, after(5));
        dues.add(3, &scene, after(60));

        assert_eq!(of(&mut dues, "pay", 0), None);
        assert_eq!(of(&mut dues, "pay", 10), Some((2, 10)));

        // The first one is deferred, and still overdue.
        dues.take(3, "pay", after(0));
        dues.defer(3, &scene, after(0));
        dues.take(3, "pay", after(5));
        assert_eq!(of(&mut dues, "pay", 30), Some((1, 30)));

        dues.back(3, "pay", after(0));
        // Somebody else's.
        dues.back(3, "pay", after(0));
        dues.back(4, "pay", after(0));
        assert_eq!(of(&mut dues, "pay", 30), None);
        assert_eq!(of(&mut dues, "pay", 61), Some((1, 1)));
    }

    #[test]
    fn what_is_deferred_in_a_shard_that_is_given_away_is_forgotten() {
        let (mut dues, scene) = (Dues::default(), Arc::from("pay"));
        dues.defer(3, &scene, after(0));
        dues.defer(4, &scene, after(1));

        dues.forget(3);

        assert_eq!(of(&mut dues, "pay", 10), Some((1, 9)));
    }

    #[test]
    fn memory_is_bounded_however_far_due_times_are_apart_and_the_count_stays_right() {
        let (mut dues, scene) = (Dues::default(), Arc::from("pay"));
        let times = (0..10_000_u64).map(|number| number * 7_919 % 100_000);
        for seconds in times.clone() {
            dues.add(3, &scene, after(seconds));
        }

        assert!(dues.shards[&3].here["pay"].spans.len() <= MOST);
        assert_eq!(of(&mut dues, "pay", 200_000), Some((10_000, 200_000)));
        for seconds in times {
            dues.take(3, "pay", after(seconds));
        }
        assert_eq!(of(&mut dues, "pay", 200_000), None);
        assert!(dues.shards[&3].here.is_empty());
    }
}
