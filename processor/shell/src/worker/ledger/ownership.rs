//! Ownership: the shards whose offsets may be committed.
//!
//! Invariant: a shard that was away in between is another one, so what was settled before is not committed for it.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard};

use crate::worker::ledger::lock;

/// The shards whose offsets may be committed: taken by the drive at assignment, given up before anyone else has them.
#[derive(Debug, Default)]
pub struct Ownership {
    /// The shards and how often we have had each of them: a shard that was away in between is another one.
    shards: Mutex<Owned>,
    /// Locked while offsets are on their way whose commit no generation guards.
    commit: Mutex<()>,
}

/// The shards that are ours.
#[derive(Debug, Default)]
struct Owned {
    /// Each with the epoch in which it was taken.
    owned: BTreeMap<i32, u64>,
    /// The latest epoch.
    epoch: u64,
}

// === impl Ownership ===

impl Ownership {
    /// The shard is ours. Batches of the time before it was given up stay dropped.
    pub fn take(&self, shard: i32) {
        let mut shards = lock(&self.shards);
        if !shards.owned.contains_key(&shard) {
            shards.epoch += 1;
            let epoch = shards.epoch;
            shards.owned.insert(shard, epoch);
        }
    }

    /// The shard is ours no more: what is not committed for it yet will not be. Waits for a commit that is held.
    pub fn give_up(&self, shard: i32) {
        lock(&self.shards).owned.remove(&shard);
        drop(lock(&self.commit));
    }

    /// Owned found to be ours from here on are not given up before the guard is dropped.
    pub(super) fn hold(&self) -> MutexGuard<'_, ()> {
        lock(&self.commit)
    }

    /// Our shards, each with its epoch.
    pub(super) fn epochs(&self) -> BTreeMap<i32, u64> {
        lock(&self.shards).owned.clone()
    }

    /// Whether the shard has been ours without a break since `epochs`.
    pub(super) fn still_has(&self, shard: i32, epochs: &BTreeMap<i32, u64>) -> bool {
        let since = epochs.get(&shard);
        since.is_some() && lock(&self.shards).owned.get(&shard) == since
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn a_shard_is_not_given_up_in_the_middle_of_a_commit() {
        // Only the right order passes every time.
        for _ in 0..100 {
            let ownership = Ownership::default();
            let order = Mutex::new(Vec::new());
            ownership.take(0);
            let epochs = ownership.epochs();

            let commit = ownership.hold();
            thread::scope(|scope| {
                scope.spawn(|| {
                    ownership.give_up(0);
                    lock(&order).push("given up");
                });
                while ownership.still_has(0, &epochs) {
                    thread::yield_now();
                }
                thread::yield_now();
                lock(&order).push("committed");
                drop(commit);
            });

            assert_eq!(*lock(&order), ["committed", "given up"]);
        }
    }
}
