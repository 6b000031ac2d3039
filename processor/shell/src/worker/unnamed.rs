//! Records that wait until a registry has said what their schema is, and lanes that stand still behind too many of them.
//!
//! Not the asking. A record whose schema is not known is set aside, and its lane goes on without it: whoever cannot be read stops nobody else.
//! So many are set aside of a lane that its open offsets fit a commit for a long time; a lane that meets one more stands still at it.
//! Invariants: what is set aside is taken back in the order of its offsets where records have the same key, and a record whose key is that
//! of one that is set aside waits behind it; of a lane that stood still, the record that it stood still at is read before all that came
//! behind it, although some of that was on its way already: each stop is a round of its own, and what comes of an earlier one is left out.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};

use bytes::Bytes;

use retide_avro::schemas::Key;
use retide_core::LaneId;
use retide_core::Position;

use crate::worker::feed::Read;

/// The records and lanes that wait.
#[derive(Debug, Default)]
pub(super) struct Unnamed {
    /// The records that are set aside, in the order of their offsets.
    aside: BTreeMap<LaneId, Beside>,
    /// Where each lane stands still, and for what.
    waiting: HashMap<LaneId, (Position, Key)>,
    /// How often each has stood still since its reading began.
    rounds: HashMap<LaneId, u64>,
    /// Whether people were told of what waits.
    told: bool,
}

/// What is set aside of a lane.
#[derive(Debug, Default)]
struct Beside {
    /// The records.
    records: VecDeque<Aside>,
    /// The bytes that they hold.
    bytes: usize,
}

/// A record that is set aside.
#[derive(Debug)]
struct Aside {
    /// What its schema is named; of one that only waits behind another of its key, what that one's is.
    key: Key,
    /// The bytes that it holds.
    bytes: usize,
    /// The record.
    read: Read,
}

/// Where the round stands in the number of a run, which the feed gives back as it is. The engine counts the others from zero, one for each
/// time that a lane is full.
const ROUND: u32 = 32;

/// Most records that are set aside of a lane. Half of [`retide_core::completions::MAX_RUNS`]: with so few open offsets, what is complete
/// behind them fits a commit for two million records, and as many calls may be under way.
const MOST: usize = retide_core::completions::MAX_RUNS / 2;

/// Most bytes that are set aside of a lane, but for the last record: with 12 partitions, a fifth of the memory that a process has unless it
/// is configured.
const MOST_BYTES: usize = 4 << 20;

// === impl Unnamed ===

impl Unnamed {
    /// Whether anything waits.
    pub(super) fn is_any(&self) -> bool {
        !self.waiting.is_empty() || !self.aside.is_empty()
    }

    /// Whether to look after what waits, or after what people were told.
    pub(super) fn is_to_look(&self) -> bool {
        self.is_any() || self.told
    }

    /// People were told that something waits, or that nothing does any more.
    pub(super) const fn told(&mut self, waits: bool) {
        self.told = waits;
    }

    /// Whether one more record of a lane may be set aside.
    pub(super) fn has_room(&self, lane: LaneId) -> bool {
        let beside = self.aside.get(&lane);
        beside.is_none_or(|of| of.records.len() < MOST && of.bytes < MOST_BYTES)
    }

    /// What is waited for by a record that is set aside and has the same key, if there is one.
    pub(super) fn before(&self, lane: LaneId, key: Option<&Bytes>) -> Option<Key> {
        let records = &self.aside.get(&lane)?.records;
        let key = key.filter(|key| !key.is_empty())?;
        let before = records.iter().find(|aside| aside.record_key() == Some(key));
        before.map(|aside| aside.key)
    }

    /// A record that holds so many bytes is set aside until it is known what `key` means.
    pub(super) fn set_aside(&mut self, read: Read, key: Key, bytes: usize) {
        let beside = self.aside.entry(read.position.lane).or_default();
        beside.bytes += bytes;
        beside.records.push_back(Aside { key, bytes, read });
    }

    /// Takes back what waits for nothing any more: not for what `is_known`, nor behind another record of its key.
    pub(super) fn take_back(&mut self, is_known: impl Fn(Key) -> bool) -> Vec<Read> {
        let mut back = Vec::new();
        for beside in self.aside.values_mut() {
            let mut stay: VecDeque<Aside> = VecDeque::with_capacity(beside.records.len());
            for aside in beside.records.drain(..) {
                let key = aside.record_key().filter(|key| !key.is_empty());
                let is_behind = key.is_some() && stay.iter().any(|of| of.record_key() == key);
                if is_known(aside.key) && !is_behind {
                    beside.bytes -= aside.bytes;
                    back.push(aside.read);
                } else {
                    stay.push_back(aside);
                }
            }
            beside.records = stay;
        }
        self.aside.retain(|_, beside| !beside.records.is_empty());
        back
    }

    /// How many records are set aside.
    pub(super) fn count(&self) -> usize {
        self.aside.values().map(|beside| beside.records.len()).sum()
    }

    /// What is waited for, and in which lanes, each name once for a lane.
    pub(super) fn wanted(&self) -> Vec<(LaneId, Key)> {
        let mut wanted = self.waiting();
        for (lane, beside) in &self.aside {
            let mut seen = HashSet::new();
            let records = beside.records.iter();
            let new = records.filter(|aside| seen.insert(aside.key));
            wanted.extend(new.map(|aside| (*lane, aside.key)));
        }
        wanted
    }

    /// Whether what was read there is the next of its lane; its run is the engine's then.
    pub(super) fn is_in_turn(&self, position: &mut Position) -> bool {
        if self.rounds.is_empty() && self.waiting.is_empty() {
            return true;
        }
        let round = self.rounds.get(&position.lane).copied().unwrap_or_default();
        let is_in_turn = position.run >> ROUND == round;
        position.run &= (1 << ROUND) - 1;
        is_in_turn && !self.waiting.contains_key(&position.lane)
    }

    /// A lane stands still at a record until it is known what `key` means.
    pub(super) fn wait(&mut self, at: Position, key: Key) {
        self.waiting.insert(at.lane, (at, key));
    }

    /// The lanes that stand still, and for what.
    pub(super) fn waiting(&self) -> Vec<(LaneId, Key)> {
        let waiting = self.waiting.iter();
        waiting.map(|(lane, (_, key))| (*lane, *key)).collect()
    }

    /// Where a lane that stands still reads on, with the run that is to be given with each record.
    pub(super) fn go_on(&mut self, lane: LaneId) -> Position {
        let (at, _) = self
            .waiting
            .remove(&lane)
            .unwrap_or_else(|| unreachable!("{lane:?} does not wait"));
        let round = self.rounds.entry(lane).or_default();
        *round += 1;
        let run = at.run | *round << ROUND;
        Position { run, ..at }
    }

    /// A lane reads on with a run of its own: what it stood still at is met again.
    pub(super) fn forget(&mut self, lane: LaneId) {
        self.waiting.remove(&lane);
        self.rounds.remove(&lane);
    }

    /// A lane begins.
    pub(super) fn begin(&mut self, lane: LaneId) {
        self.forget(lane);
        self.aside.remove(&lane);
    }

    /// Forgets the lanes that are not `ours`.
    pub(super) fn keep(&mut self, ours: impl Fn(LaneId) -> bool) {
        self.waiting.retain(|lane, _| ours(*lane));
        self.aside.retain(|lane, _| ours(*lane));
    }
}

// === impl Aside ===

impl Aside {
    /// The key of the record.
    fn record_key(&self) -> Option<&Bytes> {
        self.read.record.as_ref().ok()?.key.as_ref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use retide_core::{Record, Source, Timestamp};

    const LANE: LaneId = LaneId {
        shard: 3,
        source: Source::Tasks,
    };

    fn at(run: u64, offset: i64) -> Position {
        Position {
            lane: LANE,
            run,
            offset,
        }
    }

    #[test]
    fn the_record_that_was_waited_at_comes_before_what_was_on_its_way() {
        let mut unnamed = Unnamed::default();
        assert!(unnamed.is_in_turn(&mut at(2, 7)));

        unnamed.wait(at(2, 7), Key::Id(103));
        assert!(!unnamed.is_in_turn(&mut at(2, 8)));
        let again = unnamed.go_on(LANE);

        assert_eq!(again.offset, 7);
        // Read before the lane stood still.
        assert!(!unnamed.is_in_turn(&mut at(2, 9)));
        let mut first = at(again.run, 7);
        assert!(unnamed.is_in_turn(&mut first));
        assert_eq!(first, at(2, 7));

        // The engine has it read again for its own reasons.
        unnamed.forget(LANE);
        assert!(unnamed.is_in_turn(&mut at(3, 10)));
    }

    fn record(offset: i64, key: Option<&'static str>) -> Read {
        let record = Record {
            key: key.map(|key| Bytes::from_static(key.as_bytes())),
            ..Record::default()
        };
        Read {
            assignment: 1,
            position: at(0, offset),
            appended: Timestamp::EPOCH,
            record: Ok(record),
        }
    }

    fn offsets(reads: &[Read]) -> Vec<i64> {
        reads.iter().map(|read| read.position.offset).collect()
    }

    #[test]
    fn what_is_known_is_taken_back_unless_one_before_has_its_key() {
        let mut unnamed = Unnamed::default();
        let (known, away) = (Key::Id(1), Key::Id(2));
        let key = Bytes::from_static(b"a");
        assert_eq!(unnamed.before(LANE, Some(&key)), None);
        // An empty key is none.
        unnamed.set_aside(record(2, Some("")), away, 10);
        assert_eq!(unnamed.before(LANE, Some(&Bytes::new())), None);
        unnamed.set_aside(record(3, Some("a")), away, 10);
        assert_eq!(unnamed.before(LANE, Some(&key)), Some(away));
        assert_eq!(unnamed.before(LANE, None), None);
        unnamed.set_aside(record(4, None), known, 10);
        unnamed.set_aside(record(5, Some("a")), known, 10);
        unnamed.set_aside(record(6, Some("b")), known, 10);
        unnamed.set_aside(record(7, Some("")), known, 10);
        assert_eq!(unnamed.wanted(), [(LANE, away), (LANE, known)]);

        let first = unnamed.take_back(|of| of == known);
        assert_eq!(offsets(&first), [4, 6, 7]);
        let second = unnamed.take_back(|_| true);
        assert_eq!(offsets(&second), [2, 3, 5]);
        assert!(!unnamed.is_any());
    }

    #[test]
    fn so_many_records_and_so_many_bytes_are_set_aside_of_a_lane() {
        let mut unnamed = Unnamed::default();
        let other = LaneId { shard: 4, ..LANE };
        for offset in 0.. {
            if !unnamed.has_room(LANE) {
                break;
            }
            unnamed.set_aside(record(offset, None), Key::Id(1), 1);
        }
        assert_eq!(unnamed.count(), MOST);
        assert!(unnamed.has_room(other));
        unnamed.begin(LANE);
        unnamed.set_aside(record(1, None), Key::Id(1), MOST_BYTES);
        assert!(!unnamed.has_room(LANE));
        unnamed.keep(|lane| lane == other);
        assert_eq!(unnamed.count(), 0);
    }
}
