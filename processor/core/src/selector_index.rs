//! Selectors by a value that a task has to have to fit: which of many a task may fit is found without asking each.
//!
//! A hundred thousand commands may be under way, each for one order number, and every task that is read is held against them. Not whether
//! a task fits, which [`crate::selector::Selector::fits`] says. Invariant: a selector that a task fits is among its candidates.

use std::collections::{BTreeSet, HashMap};
use std::hash::Hash;
use std::sync::Arc;

use bytes::Bytes;

use crate::selector::Selector;
use crate::task::{Name, Task};

/// Selectors, each known by a `K`.
#[derive(Debug)]
pub struct SelectorIndex<K> {
    /// Those that name identities.
    ids: HashMap<Arc<str>, Vec<K>>,
    /// Of the others, those that name keys.
    keys: HashMap<Bytes, Vec<K>>,
    /// Of the others, those that name headers, by the first one and its value.
    headers: HashMap<Name, HashMap<Bytes, Vec<K>>>,
    /// Of the others, those that name scenes.
    scenes: HashMap<Arc<str>, Vec<K>>,
    /// All others.
    rest: BTreeSet<K>,
}

// === impl SelectorIndex ===

impl<K> Default for SelectorIndex<K> {
    fn default() -> Self {
        Self {
            ids: HashMap::new(),
            keys: HashMap::new(),
            headers: HashMap::new(),
            scenes: HashMap::new(),
            rest: BTreeSet::new(),
        }
    }
}

impl<K: Copy + Ord> SelectorIndex<K> {
    /// Adds a selector.
    pub fn insert(&mut self, key: K, selector: &Selector) {
        let parts = selector.parts();
        if !parts.ids.is_empty() {
            for id in &parts.ids {
                self.ids.entry(Arc::clone(id)).or_default().push(key);
            }
        } else if !parts.keys.is_empty() {
            for of in &parts.keys {
                self.keys.entry(of.clone()).or_default().push(key);
            }
        } else if let Some((name, value)) = parts.headers.first() {
            let values = self.headers.entry(name.clone()).or_default();
            values.entry(value.clone()).or_default().push(key);
        } else if !parts.scenes.is_empty() {
            for scene in &parts.scenes {
                self.scenes.entry(Arc::clone(scene)).or_default().push(key);
            }
        } else {
            self.rest.insert(key);
        }
    }

    /// Takes a selector out, which has to be the one that was added.
    pub fn remove(&mut self, key: K, selector: &Selector) {
        let parts = selector.parts();
        if !parts.ids.is_empty() {
            for id in &parts.ids {
                take(&mut self.ids, id, &key);
            }
        } else if !parts.keys.is_empty() {
            for of in &parts.keys {
                take(&mut self.keys, of, &key);
            }
        } else if let Some((name, value)) = parts.headers.first() {
            if let Some(values) = self.headers.get_mut(name) {
                take(values, value, &key);
                if values.is_empty() {
                    self.headers.remove(name);
                }
            }
        } else if !parts.scenes.is_empty() {
            for scene in &parts.scenes {
                take(&mut self.scenes, scene, &key);
            }
        } else {
            self.rest.remove(&key);
        }
    }

    /// Those that a task may fit; one may come twice.
    pub fn candidates<'a>(&'a self, task: &'a Task) -> impl Iterator<Item = K> + 'a {
        let key = task.record.key.as_ref();
        let by_key = key.and_then(|key| self.keys.get(key));
        let by_id = self.ids.get(&task.id);
        let by_scene = self.scenes.get(&task.scene);
        let named = by_id.into_iter().chain(by_key).chain(by_scene).flatten();
        let headers = (!self.headers.is_empty()).then_some(&task.record.headers);
        let by_header = headers.into_iter().flatten().filter_map(|header| {
            let values = self.headers.get(&header.name)?;
            values.get(header.value.as_ref()?)
        });
        named.chain(by_header.flatten()).chain(&self.rest).copied()
    }
}

/// Takes one of the values of a name out.
fn take<N: Eq + Hash, K: PartialEq>(all: &mut HashMap<N, Vec<K>>, name: &N, key: &K) {
    if let Some(keys) = all.get_mut(name) {
        keys.retain(|of| of != key);
        if keys.is_empty() {
            all.remove(name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::selector::Parts;
    use crate::task::{Header, Kind, Origin, Record};
    use crate::time::Timestamp;

    fn selector(change: impl FnOnce(&mut Parts)) -> Selector {
        let mut parts = Parts::default();
        change(&mut parts);
        Selector::new(parts).unwrap()
    }

    fn task() -> Task {
        Task {
            id: "a".into(),
            scene: "pay".into(),
            kind: Kind::Work,
            attempt: 1,
            due: Timestamp::EPOCH,
            deferral: None,
            first_failed_at: Timestamp::EPOCH,
            deadline: None,
            origin: Origin {
                topic: "retry.tasks".into(),
                partition: 0,
                offset: 0,
            },
            failure: None,
            throttled: 0,
            exhausted: None,
            hops: 0,
            held_since: None,
            pending_since: None,
            stopped: None,
            commanded: None,
            replay: None,
            record: Record {
                key: Some("k".into()),
                headers: vec![Header {
                    name: "order-no".into(),
                    value: Some("7".into()),
                }],
                ..Record::default()
            },
        }
    }

    #[test]
    fn a_selector_that_a_task_fits_is_among_its_candidates_and_others_mostly_are_not() {
        let fitting = [
            selector(|parts| parts.ids = ["a".into()].into()),
            selector(|parts| parts.keys = ["k".into()].into()),
            selector(|parts| parts.headers.push(("order-no".into(), "7".into()))),
            selector(|parts| parts.scenes = ["pay".into()].into()),
            selector(|parts| parts.attempts = Some(0..=1)),
        ];
        let others = [
            selector(|parts| parts.ids = ["b".into()].into()),
            selector(|parts| parts.keys = ["l".into()].into()),
            selector(|parts| parts.headers.push(("order-no".into(), "8".into()))),
            selector(|parts| parts.scenes = ["mail".into()].into()),
        ];
        let mut index = SelectorIndex::default();
        for (number, selector) in fitting.iter().chain(&others).enumerate() {
            index.insert(number, selector);
        }
        let task = task();

        let candidates: Vec<usize> = index.candidates(&task).collect();
        for (number, selector) in fitting.iter().chain(&others).enumerate() {
            assert_eq!(selector.fits(&task, None), number < 5, "{number}");
            index.remove(number, selector);
        }

        let sorted: BTreeSet<usize> = candidates.into_iter().collect();
        assert_eq!(sorted, BTreeSet::from([0, 1, 2, 3, 4]));
        assert_eq!(index.candidates(&task).count(), 0);
        assert!(index.ids.is_empty() && index.headers.is_empty());
    }
}
