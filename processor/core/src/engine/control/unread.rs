//! Commands that stand in a shard when it becomes ours: until they are read, its tasks are not taken in, and none of them is followed.
//!
//! Why: what stands there is read again from the committed offset. A task that one of them cancels may be due at once, and what an earlier one
//! moves may be where a later one has looked. What ends the
//! wait: the lane of commands is read up to where it ended then; or [`PATIENCE`] is over, whatever hinders it. What it never does: lose a
//! task, which waits with its offset open, or hold up other shards. Invariant: the tasks of a lane are taken in in the order in which they
//! were read.
//!
//! Where more commands stand than may be held, those that are read are followed first, as they are after [`PATIENCE`]. A task that is read
//! then meets them at once: they may be over before it is taken in. And what moves meanwhile may be behind where one that is not read has
//! looked, under a former owner: that one looks on from there.

use std::collections::{BTreeMap, VecDeque};
use std::mem;
use std::time::Duration;

use super::super::Engine;
use crate::agenda::Item;
use crate::lane::{LaneId, Source};
use crate::planted::Bug;
use crate::step::{Action, Now};
use crate::time::Timestamp;

/// The shards whose commands are not read, and the tasks that wait for that.
#[derive(Debug, Default)]
pub(super) struct Unread {
    /// By shard.
    shards: BTreeMap<i32, Behind>,
}

/// A shard whose commands are not read.
#[derive(Debug)]
struct Behind {
    /// The first offset of its lane of commands that need not be.
    to: i64,
    /// When its tasks are taken in all the same, in steady time.
    until: Duration,
    /// Tasks that were read, each with when the broker appended it.
    tasks: VecDeque<(Item, Timestamp)>,
}

/// Longest wait for the commands of a shard: as long as a broker may take to end the transaction of a process that died, which is its
/// timeout of 10 s and the time between two looks at timeouts, which is 10 s, too.
const PATIENCE: Duration = Duration::from_secs(25);

// === impl Unread ===

impl Unread {
    /// Whether tasks of a shard wait.
    pub(super) fn has_tasks(&self, shard: i32) -> bool {
        let behind = self.shards.get(&shard);
        behind.is_some_and(|behind| !behind.tasks.is_empty())
    }

    /// Takes the tasks out that fit.
    pub(super) fn extract(&mut self, fits: impl Fn(&Item) -> bool, into: &mut Vec<Item>) {
        for behind in self.shards.values_mut() {
            let (met, others) = mem::take(&mut behind.tasks)
                .into_iter()
                .partition(|(item, _)| fits(item));
            behind.tasks = others;
            let met: VecDeque<(Item, Timestamp)> = met;
            into.extend(met.into_iter().map(|(item, _)| item));
        }
    }

    /// Forgets the tasks of a shard.
    pub(super) fn forget_tasks(&mut self, shard: i32) {
        if let Some(behind) = self.shards.get_mut(&shard) {
            behind.tasks.clear();
        }
    }

    /// Forgets a shard.
    pub(super) fn forget(&mut self, shard: i32) {
        self.shards.remove(&shard);
    }
}

// === impl Engine ===

impl Engine {
    /// Commands stand in the lane of a shard up to this offset, and are to be read before its tasks are taken in.
    pub(in crate::engine) fn await_commands(&mut self, now: Now, shard: i32, to: i64) {
        if self.bug.is(Bug::CommandsUnawaited) {
            return;
        }
        let behind = Behind {
            to,
            until: now.steady + PATIENCE,
            tasks: VecDeque::new(),
        };
        self.commands.unread.shards.insert(shard, behind);
        let source = Source::Commands;
        self.lanes.await_to(LaneId { shard, source }, to);
        self.forget_read(shard);
    }

    /// Forgets that the commands of a shard are not read, if they are.
    fn forget_read(&mut self, shard: i32) {
        let source = Source::Commands;
        let end = self.lanes.end(LaneId { shard, source });
        let unread = &mut self.commands.unread;
        let is_read =
            |behind: &Behind| behind.tasks.is_empty() && end.is_none_or(|end| end >= behind.to);
        if unread.shards.get(&shard).is_some_and(is_read) {
            unread.forget(shard);
        }
    }

    /// Whether a task may leave a shard where it need not: not where commands stand that are not read yet. One of them may have answered, and
    /// wait for that very task, which was set aside: elsewhere, nobody looks for it any more.
    pub(in crate::engine) fn may_leave(&self, shard: i32) -> bool {
        !self.commands.unread.shards.contains_key(&shard)
    }

    /// Whether the tasks of a shard wait for its commands.
    fn is_behind(&self, now: Now, shard: i32, behind: &Behind) -> bool {
        let source = Source::Commands;
        let end = self.lanes.end(LaneId { shard, source });
        now.steady < behind.until && end.is_some_and(|end| end < behind.to)
    }

    /// Whether commands of a shard are to be read before any of them is followed: not where there are more than may be held.
    pub(super) fn awaits_commands(&self, shard: i32) -> bool {
        let now = Now {
            wall: self.latest,
            steady: self.steady,
        };
        let behind = self.commands.unread.shards.get(&shard);
        let source = Source::Commands;
        behind.is_some_and(|behind| self.is_behind(now, shard, behind))
            && !self.lanes.is_paused(LaneId { shard, source })
    }

    /// Gives a task back that was read, unless it waits for the commands of its shard, or behind others that do.
    pub(in crate::engine) fn if_commands_read(
        &mut self,
        now: Now,
        item: Item,
        appended: Timestamp,
    ) -> Option<Item> {
        let shard = item.lane.shard;
        let Some(behind) = self.commands.unread.shards.get(&shard) else {
            return Some(item);
        };
        if behind.tasks.is_empty() && !self.is_behind(now, shard, behind) {
            return Some(item);
        }
        let mut places = self.places(item.lane, item.offset, &item.task).into_iter();
        if places.any(|place| self.commands.steps.is_followed(shard, place)) {
            self.command(item);
            return None;
        }
        if let Some(behind) = self.commands.unread.shards.get_mut(&shard) {
            behind.tasks.push_back((item, appended));
        }
        None
    }

    /// Takes in the tasks of shards whose commands are read, or were waited for long enough, at most `most`.
    pub(in crate::engine) fn take_in_waiting(
        &mut self,
        now: Now,
        most: usize,
        actions: &mut Vec<Action>,
    ) {
        let shards = self.commands.unread.shards.iter();
        let open = shards.filter(|(shard, behind)| !self.is_behind(now, **shard, behind));
        let open: Vec<i32> = open.map(|(shard, _)| *shard).collect();
        let mut left = most;
        for shard in open {
            while left > 0 {
                let behind = self.commands.unread.shards.get_mut(&shard);
                let Some((item, appended)) = behind.and_then(|behind| behind.tasks.pop_front())
                else {
                    break;
                };
                left -= 1;
                // What waits for tasks that were set aside is read after them.
                if self.meets(&item) {
                    self.command(item);
                } else {
                    self.take_in(now, item, appended, actions);
                }
            }
            self.forget_read(shard);
        }
    }

    /// When tasks that wait for commands are to be taken in, if nothing else happens before.
    pub(in crate::engine) fn next_take_in(&self) -> Option<Timestamp> {
        let now = Now {
            wall: self.latest,
            steady: self.steady,
        };
        let shards = self.commands.unread.shards.iter();
        let waiting = shards.filter(|(_, behind)| !behind.tasks.is_empty());
        let at = waiting.map(|(shard, behind)| {
            if self.is_behind(now, *shard, behind) {
                self.latest + behind.until.saturating_sub(self.steady)
            } else {
                self.latest
            }
        });
        at.min()
    }

    /// The shards whose commands could not be read in time: their tasks go on, also those that are cancelled there.
    pub fn unread_commands(&self) -> impl Iterator<Item = i32> {
        let shards = self.commands.unread.shards.iter();
        let late = shards.filter(|(_, behind)| behind.until <= self.steady);
        late.map(|(shard, _)| *shard)
    }
}
