//! What a worker knows of where ids are: for each tier, ranges of offsets and which ids may stand in each of them.
//!
//! A command that names a task by its id would have to read all tiers to find it. What is read instead are the ranges that may hold it.
//! They are told apart by [`Block`]s, which come from three sides: from the ledger, which knows at which offset each task was parked; from
//! the sweep, which learns of a range while it reads it for the first time; and from what former owners of a shard have written of it on the
//! topic of shard state, under the keys `ids/TOPIC/FROM`.
//!
//! That the ledger knows of all that stands in a range rests on this: all but the shortest tiers are written by the owners of their shards
//! alone ([`Topics::shared`]), what transactions of former owners may have left there is decided before a shard's end is asked for, and what is written later
//! without the right to do so is never committed. Invariants: a range of which anything is not known is read; what is written down goes with
//! offsets of its shard into one transaction, so that only its owner can have done so; all of it takes no more memory than it may.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io::Write as _;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use retide_core::completions::Binding;
use retide_core::ids::{Block, MOST, Wanted};
use retide_core::{LaneId, Source};
use retide_kafka::topics::Topics;

/// What is known of ids; shared by the threads of a worker.
#[derive(Debug)]
pub(crate) struct Ids {
    /// The topics.
    topics: Arc<Topics>,
    /// Bytes that it may take.
    most: AtomicUsize,
    /// What is known.
    state: Mutex<State>,
    /// Bytes that it takes, told to others.
    bytes: AtomicUsize,
}

/// What is known.
#[derive(Debug, Default)]
struct State {
    /// Whether a ledger tells of all that it writes.
    is_told: bool,
    /// By lane.
    lanes: BTreeMap<LaneId, Lane>,
    /// The batches that are being written, with how far lanes were known to be written before.
    filling: BTreeMap<u64, HashMap<LaneId, i64>>,
    /// The number of the last one.
    last: u64,
    /// Bytes of all blocks.
    bytes: usize,
    /// When something may be written down again.
    write_at: Option<Instant>,
    /// Shards that are being given away.
    leaving: BTreeSet<i32>,
}

/// What is known of a partition of a tier.
#[derive(Debug)]
struct Lane {
    /// What is written down is bound to this.
    binding: Binding,
    /// Ranges, by their first offsets.
    blocks: BTreeMap<i64, Kept>,
    /// Where a range begins of which the ids are in `open`, and which ends with `end`, or where a batch that is being written may write; none
    /// if that is not known.
    open_from: Option<i64>,
    /// Tasks that were parked there: where, and the hash of the id.
    open: Vec<(i64, u32)>,
    /// One past the last offset at which something was parked.
    end: i64,
    /// The last batch of which it is not known where it has written.
    lost: u64,
    /// The ranges that are to be written down.
    unwritten: BTreeSet<i64>,
    /// The ranges that are written down, and over.
    over: BTreeSet<i64>,
    /// What was written down of `open`: where it begins, and how many ids it has.
    partial: Option<(i64, usize)>,
    /// When it may be written down again.
    partial_at: Instant,
}

/// A range.
#[derive(Clone, Debug)]
struct Kept {
    /// Its ids.
    block: Block,
    /// Whether it is written down, perhaps as it was before.
    is_written: bool,
}

/// A range that is to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Range {
    /// The first offset.
    pub(crate) from: i64,
    /// The first one behind it.
    pub(crate) to: i64,
    /// Whether nothing is known of it, and what is read there is to be learned.
    pub(crate) is_new: bool,
}

/// The ranges of a lane that are to be read.
struct Ranges {
    /// Up to where that is known.
    at: i64,
    /// The first offset that is not to be read.
    to: i64,
    /// The ranges.
    all: Vec<Range>,
}

/// A batch that is being written.
#[derive(Debug)]
pub(crate) struct Filling<'a> {
    /// What is known of ids.
    ids: &'a Ids,
    /// Its number.
    number: u64,
}

/// A task that is parked by a batch.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Parked {
    /// The number of its record.
    pub(crate) number: usize,
    /// The tier.
    pub(crate) lane: LaneId,
    /// The hash of its id.
    pub(crate) hash: u32,
}

/// A record for the topic of shard state.
#[derive(Debug)]
pub(crate) struct Note {
    /// The lane.
    lane: LaneId,
    /// Where the range begins.
    from: i64,
    /// How many ids of an open range it holds.
    open: Option<usize>,
    /// The key.
    pub(crate) key: Vec<u8>,
    /// The value; none if the range is over.
    pub(crate) value: Option<Vec<u8>>,
}

/// What former owners have written of a shard, by tier.
pub(crate) type Written = BTreeMap<Source, BTreeMap<i64, Block>>;

/// What the keys begin with.
pub(crate) const KEY: &str = "ids/";

/// Bytes that it may take unless somebody says: of nine million tasks.
const LIMIT: usize = 16 << 20;

/// Pause between two batches that write something down: what is not written down is read again after a crash.
const PAUSE: Duration = Duration::from_secs(1);

/// The same of a range that is not full yet.
const PARTIAL: Duration = Duration::from_secs(10);

/// Pause after it could not be written down.
const REFUSED: Duration = Duration::from_mins(1);

/// Most bytes of a batch for it.
const MOST_WRITTEN: usize = 256 << 10;

/// Bytes of a range besides its ids.
const OVERHEAD: usize = 128;

/// Offsets that are read along between two ranges, rather than sought.
const NEAR: i64 = 64;

// === impl Ids ===

impl Ids {
    /// Nothing is known yet.
    pub(crate) fn new(topics: &Arc<Topics>) -> Self {
        Self {
            topics: Arc::clone(topics),
            most: AtomicUsize::new(LIMIT),
            state: Mutex::default(),
            bytes: AtomicUsize::new(0),
        }
    }

    /// It may take so many bytes from here on.
    pub(crate) fn limit(&self, most: usize) {
        self.most.store(most, Ordering::Relaxed);
    }

    /// Bytes that it may take.
    fn most(&self) -> usize {
        self.most.load(Ordering::Relaxed)
    }

    /// A ledger tells of all that it writes from here on.
    pub(crate) fn told(&self) {
        self.lock().is_told = true;
    }

    /// Bytes that it takes.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Whether anything may be known of a tier.
    pub(crate) fn is_of(&self, source: Source) -> bool {
        match source {
            Source::Tier(tier) => (self.topics.shared..self.topics.tiers.len()).contains(&tier),
            Source::Tasks | Source::Commands => false,
        }
    }

    /// The tier that a record goes to, if anything may be known of it.
    pub(crate) fn lane(&self, topic: &Arc<str>, shard: i32) -> Option<LaneId> {
        let mut tiers = self.topics.tiers.iter();
        let tier = tiers.position(|tier| Arc::ptr_eq(tier, topic))?;
        let source = Source::Tier(tier);
        self.is_of(source).then_some(LaneId { shard, source })
    }

    /// A lane is ours, and begins with `start`; others have written up to `end`, and `known` of it.
    pub(crate) fn begin(
        &self,
        lane: LaneId,
        binding: Binding,
        (start, end): (i64, i64),
        known: BTreeMap<i64, Block>,
    ) {
        if !self.is_of(lane.source) {
            return;
        }
        let mut state = self.lock();
        state.forget(lane);
        state.leaving.remove(&lane.shard);
        let is_told = state.is_told;
        let mut new = Lane {
            binding,
            blocks: BTreeMap::new(),
            open_from: is_told.then_some(end),
            open: Vec::new(),
            end,
            lost: 0,
            unwritten: BTreeSet::new(),
            over: BTreeSet::new(),
            partial: None,
            partial_at: Instant::now() + PARTIAL,
        };
        for (from, block) in known {
            let bytes = OVERHEAD + block.bytes();
            if block.to <= start || block.to > end {
                new.over.insert(from);
            } else if state.bytes + bytes <= self.most() {
                state.bytes += bytes;
                let is_written = true;
                new.blocks.insert(from, Kept { block, is_written });
            }
        }
        state.lanes.insert(lane, new);
        self.count(&state);
    }

    /// A shard is being given away: whether something of it is to be written down.
    pub(crate) fn leave(&self, shard: i32) -> bool {
        let mut state = self.lock();
        let mut lanes = state.lanes.iter().filter(|(lane, _)| lane.shard == shard);
        let has_more = state.is_told
            && lanes.any(|(_, of)| !of.unwritten.is_empty() || of.open.len() > of.partial_len());
        if has_more {
            state.leaving.insert(shard);
            state.write_at = None;
        }
        has_more
    }

    /// A shard is given away.
    pub(crate) fn release(&self, shard: i32) {
        let mut state = self.lock();
        state.leaving.remove(&shard);
        let lanes: Vec<LaneId> = state.lanes.keys().copied().collect();
        for lane in lanes.into_iter().filter(|lane| lane.shard == shard) {
            state.forget(lane);
        }
        self.count(&state);
    }

    /// A batch begins to be written.
    pub(crate) fn fill(&self) -> Filling<'_> {
        let mut state = self.lock();
        state.last += 1;
        let number = state.last;
        let ends = state.lanes.iter().map(|(lane, of)| (*lane, of.end));
        let ends = ends.collect();
        state.filling.insert(number, ends);
        Filling { ids: self, number }
    }

    /// The ranges of a lane that are to be read for ids, in their order; what is not among them does not hold them. Without ids, all of it.
    pub(crate) fn ranges(
        &self,
        lane: LaneId,
        (from, to): (i64, i64),
        wanted: Option<&Wanted>,
    ) -> Vec<Range> {
        let state = self.lock();
        let is_new = self.is_of(lane.source) && !state.is_told;
        let mut ranges = Ranges {
            at: from,
            to,
            all: Vec::new(),
        };
        if let Some(of) = state.lanes.get(&lane) {
            for (from, kept) in &of.blocks {
                let is_wanted = || wanted.is_none_or(|wanted| kept.block.may_hold(wanted));
                ranges.pass((*from, kept.block.to), is_wanted);
            }
            let end = state.certain(lane, of);
            if let Some(open) = of.open_from.filter(|open| *open <= end) {
                ranges.read_to(open, true);
                if let Some(wanted) = wanted {
                    let open = of.open.iter();
                    let found = open.filter(|(at, hash)| *at < end && wanted.has(*hash));
                    let mut found: Vec<i64> = found.map(|(at, _)| *at).collect();
                    found.sort_unstable();
                    for at in found {
                        ranges.pass((ranges.at, at), || false);
                        ranges.pass((at, at + 1), || true);
                    }
                    ranges.pass((ranges.at, end), || false);
                }
            }
        }
        // What batches write now.
        ranges.read_to(to, is_new);
        ranges.all
    }

    /// A range was read as a whole, and holds ids with these hashes.
    pub(crate) fn learn(&self, lane: LaneId, from: i64, block: Block) {
        let mut state = self.lock();
        let bytes = OVERHEAD + block.bytes();
        if state.bytes + bytes > self.most() {
            return;
        }
        let Some(of) = state.lanes.get_mut(&lane) else {
            return;
        };
        if of.blocks.contains_key(&from) || block.to <= from {
            return;
        }
        let is_written = of.over.remove(&from);
        of.blocks.insert(from, Kept { block, is_written });
        of.unwritten.insert(from);
        state.bytes += bytes;
        self.count(&state);
    }

    /// The shards of which something is to be written down, whatever else is.
    pub(crate) fn due(&self) -> BTreeSet<i32> {
        let state = self.lock();
        let now = Instant::now();
        if !state.is_told || state.write_at.is_some_and(|at| now < at) {
            return BTreeSet::new();
        }
        let has_some = |of: &Lane| {
            !of.unwritten.is_empty()
                || !of.over.is_empty()
                || of.open.len() >= MOST
                || of.is_partial_due(now)
        };
        let lanes = state.lanes.iter().filter(|(_, of)| has_some(of));
        lanes.map(|(lane, _)| lane.shard).collect()
    }

    /// What is to be written down with offsets of these shards.
    pub(crate) fn notes(&self, shards: &BTreeSet<i32>) -> Vec<Note> {
        let mut state = self.lock();
        let now = Instant::now();
        if !state.is_told || state.write_at.is_some_and(|at| now < at) {
            return Vec::new();
        }
        // What another batch was in the way of when it was written.
        let full = state.lanes.iter().filter(|(_, of)| of.open.len() >= MOST);
        let full: Vec<LaneId> = full.map(|(lane, _)| *lane).collect();
        for lane in full {
            state.close(lane, self.most());
        }
        let (mut notes, mut bytes) = (Vec::new(), 0);
        let mut has_more = false;
        for (lane, of) in state
            .lanes
            .iter()
            .filter(|(lane, _)| shards.contains(&lane.shard))
        {
            let topic = self.topics.name(lane.source);
            let mut add = |from: i64, open, block: Option<&Block>| {
                let mut key = Vec::new();
                let _ = write!(key, "{KEY}{topic}/{from}");
                let value = block.map(|block| {
                    let mut value = of.binding.to_bytes().to_vec();
                    block.encode(from, &mut value);
                    value
                });
                bytes += key.len() + value.as_ref().map_or(0, Vec::len);
                notes.push(Note {
                    lane: *lane,
                    from,
                    open,
                    key,
                    value,
                });
                bytes >= MOST_WRITTEN
            };
            let mut is_enough = of.over.iter().any(|from| add(*from, None, None));
            is_enough = is_enough
                || of.unwritten.iter().any(|from| {
                    let kept = of.blocks.get(from);
                    kept.is_some_and(|kept| add(*from, None, Some(&kept.block)))
                });
            let is_due = of.is_partial_due(now) || state.leaving.contains(&lane.shard);
            let partial = of.partial(state.certain(*lane, of)).filter(|_| is_due);
            if let Some((from, count, block)) = partial {
                is_enough = is_enough || add(from, Some(count), Some(&block));
            }
            if is_enough {
                has_more = true;
                break;
            }
        }
        if !notes.is_empty() && !has_more {
            state.write_at = Some(now + PAUSE);
        }
        notes
    }

    /// What was to be written down is.
    pub(crate) fn written(&self, notes: Vec<Note>) {
        let mut state = self.lock();
        for note in notes {
            let Some(of) = state.lanes.get_mut(&note.lane) else {
                continue;
            };
            match (note.open, note.value) {
                (_, None) => drop(of.over.remove(&note.from)),
                (Some(count), Some(_)) if of.open_from == Some(note.from) => {
                    of.partial = Some((note.from, count));
                    of.partial_at = Instant::now() + PARTIAL;
                }
                (open, Some(_)) => match of.blocks.get_mut(&note.from) {
                    Some(kept) => {
                        kept.is_written = true;
                        // One that was open then is to be written as a whole.
                        if open.is_none() {
                            of.unwritten.remove(&note.from);
                        }
                    }
                    None => drop(of.over.insert(note.from)),
                },
            }
        }
    }

    /// It could not be written down.
    pub(crate) fn refused(&self) {
        self.lock().write_at = Some(Instant::now() + REFUSED);
    }

    /// Nothing of a lane below an offset is wanted any more.
    pub(crate) fn forget_below(&self, lane: LaneId, next: i64) {
        let mut state = self.lock();
        let state = &mut *state;
        let Some(of) = state.lanes.get(&lane) else {
            return;
        };
        let certain = state.certain(lane, of);
        let Some(of) = state.lanes.get_mut(&lane) else {
            return;
        };
        while let Some(first) = of.blocks.first_entry()
            && first.get().block.to <= next
        {
            let (from, kept) = first.remove_entry();
            state.bytes -= OVERHEAD + kept.block.bytes();
            of.unwritten.remove(&from);
            if kept.is_written {
                of.over.insert(from);
            }
        }
        if let Some(open) = of.open_from
            && open < next.min(certain)
        {
            let next = next.min(certain);
            of.open.retain(|(offset, _)| *offset >= next);
            of.open_from = Some(next);
            if let Some((from, _)) = of.partial.take() {
                of.over.insert(from);
            }
        }
        self.count(state);
    }

    /// Tells others what it takes.
    fn count(&self, state: &State) {
        self.bytes.store(state.bytes, Ordering::Relaxed);
    }

    /// Locks what no panic leaves half-changed.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Note ===

impl Note {
    /// The shard that it is of.
    pub(crate) const fn shard(&self) -> i32 {
        self.lane.shard
    }
}

// === impl Filling ===

impl Filling<'_> {
    /// All records of the batch are acknowledged: where each of these was written, as far as that was said.
    pub(crate) fn done(self, parked: &[Parked], mut offsets: Vec<(usize, i64)>) {
        if parked.is_empty() {
            return;
        }
        offsets.sort_unstable();
        let mut offsets = offsets.into_iter().peekable();
        let mut state = self.ids.lock();
        let state = &mut *state;
        let mut full: BTreeSet<LaneId> = BTreeSet::new();
        for Parked { number, lane, hash } in parked {
            while offsets.next_if(|(of, _)| of < number).is_some() {}
            let offset = offsets.next_if(|(of, _)| of == number);
            let offset = offset
                .map(|(_, offset)| offset)
                .filter(|offset| *offset >= 0);
            let ends = state.filling.get(&self.number);
            let was_ours = ends.is_some_and(|ends| ends.contains_key(lane));
            let Some(of) = state.lanes.get_mut(lane).filter(|_| was_ours) else {
                continue;
            };
            match offset {
                Some(offset) => of.add(self.number, offset, *hash),
                None => of.lose(state.last),
            }
            if of.open.len() >= MOST {
                full.insert(*lane);
            }
        }
        state.filling.remove(&self.number);
        for lane in full {
            state.close(lane, self.ids.most());
        }
        self.ids.count(state);
    }
}

impl Drop for Filling<'_> {
    fn drop(&mut self) {
        self.ids.lock().filling.remove(&self.number);
    }
}

// === impl State ===

impl State {
    /// How far all is known that is or will be committed: what is being written stands behind what was written when that began.
    fn certain(&self, id: LaneId, lane: &Lane) -> i64 {
        let filling = self.filling.values().filter_map(|ends| ends.get(&id));
        filling.copied().min().unwrap_or(lane.end).min(lane.end)
    }

    /// Forgets a lane.
    fn forget(&mut self, lane: LaneId) {
        if let Some(of) = self.lanes.remove(&lane) {
            let blocks = of.blocks.values();
            let bytes: usize = blocks.map(|kept| OVERHEAD + kept.block.bytes()).sum();
            self.bytes -= bytes;
        }
        for ends in self.filling.values_mut() {
            ends.remove(&lane);
        }
    }

    /// Makes ranges of what is full.
    fn close(&mut self, id: LaneId, most: usize) {
        let Some(lane) = self.lanes.get(&id) else {
            return;
        };
        let certain = self.certain(id, lane);
        let Some(lane) = self.lanes.get_mut(&id) else {
            return;
        };
        lane.open.sort_unstable();
        while let Some(from) = lane.open_from
            && let Some((last, _)) = lane.open.get(MOST - 1)
            && *last < certain
        {
            let to = last + 1;
            let hashes: Vec<u32> = lane.open.drain(..MOST).map(|(_, hash)| hash).collect();
            lane.open_from = Some(to);
            lane.partial_at = Instant::now() + PARTIAL;
            let is_written = lane.partial.take().is_some();
            let block = Block::new(to, hashes);
            let bytes = OVERHEAD + block.bytes();
            if self.bytes + bytes <= most {
                self.bytes += bytes;
                lane.blocks.insert(from, Kept { block, is_written });
                lane.unwritten.insert(from);
            } else if is_written {
                // It is read when it is looked for.
                lane.over.insert(from);
            }
        }
    }
}

// === impl Lane ===

impl Lane {
    /// A task was parked there by a batch.
    fn add(&mut self, batch: u64, offset: i64, hash: u32) {
        let before = self.end;
        self.end = before.max(offset + 1);
        let open = match self.open_from {
            Some(open) => open,
            // What was written by a batch of those that are lost stands below, or was told before.
            None if batch > self.lost => *self.open_from.insert(before.max(offset)),
            None => return,
        };
        if offset >= open {
            self.open.push((offset, hash));
        }
    }

    /// A task was parked somewhere, by one of the batches up to `last`: all that they write is read.
    fn lose(&mut self, last: u64) {
        self.lost = last;
        self.open.clear();
        self.open_from = None;
        if let Some((from, _)) = self.partial.take() {
            self.over.insert(from);
        }
    }

    /// How many ids of those that are open are written down.
    fn partial_len(&self) -> usize {
        let partial = self
            .partial
            .filter(|(from, _)| self.open_from == Some(*from));
        partial.map_or(0, |(_, count)| count)
    }

    /// Whether what is open is to be written down.
    fn is_partial_due(&self, now: Instant) -> bool {
        now >= self.partial_at && self.open.len() > self.partial_len()
    }

    /// What is to be written down of what is open, and how many ids that are.
    fn partial(&self, certain: i64) -> Option<(i64, usize, Block)> {
        let from = self.open_from.filter(|from| *from < certain)?;
        let open = self.open.iter().filter(|(offset, _)| *offset < certain);
        let hashes: Vec<u32> = open.map(|(_, hash)| *hash).collect();
        let count = hashes.len();
        let is_more = count > self.partial_len() && count <= MOST;
        is_more.then(|| (from, count, Block::new(certain, hashes)))
    }
}

// === impl Ranges ===

impl Ranges {
    /// Ids are known up to `range.1` from `range.0` on; what stands before is not.
    fn pass(&mut self, (from, to): (i64, i64), is_wanted: impl FnOnce() -> bool) {
        if to <= self.at || from >= self.to {
            return;
        }
        self.read_to(from, true);
        let to = to.min(self.to);
        if is_wanted() {
            self.read_to(to, false);
        }
        self.at = self.at.max(to);
    }

    /// All up to there is read.
    fn read_to(&mut self, to: i64, is_new: bool) {
        let (from, to) = (self.at, to.min(self.to));
        if to <= from {
            return;
        }
        self.at = to;
        match self.all.last_mut() {
            Some(last) if !last.is_new && !is_new && from - last.to <= NEAR => last.to = to,
            _ => self.all.push(Range { from, to, is_new }),
        }
    }
}

#[cfg(test)]
mod tests {
    use retide_core::ids::hash;

    use super::*;

    /// A long tier of the default ladder.
    const LANE: LaneId = LaneId {
        shard: 3,
        source: Source::Tier(8),
    };

    fn ids() -> Ids {
        let topics = Topics::new("retry", &retide_core::Ladder::default());
        let ids = Ids::new(&Arc::new(topics));
        ids.told();
        ids
    }

    fn begun(end: i64, known: BTreeMap<i64, Block>) -> Ids {
        let ids = ids();
        ids.begin(LANE, binding(), (0, end), known);
        ids
    }

    fn binding() -> Binding {
        Binding::new("cluster", "retry.delay.1h", 7, 3)
    }

    fn name(number: i64) -> String {
        format!("order-{number}")
    }

    /// A batch writes the tasks with these numbers at the offsets of the same numbers.
    fn write(filling: Filling<'_>, numbers: impl Iterator<Item = i64>) {
        let (mut parked, mut offsets) = (Vec::new(), Vec::new());
        for (number, offset) in numbers.enumerate() {
            let hash = hash(name(offset).as_bytes());
            let lane = LANE;
            parked.push(Parked { number, lane, hash });
            offsets.push((number, offset));
        }
        filling.done(&parked, offsets);
    }

    /// The offsets that are read for a task.
    fn read(ids: &Ids, number: i64, to: i64) -> Vec<i64> {
        let name = name(number);
        let ranges = ids.ranges(LANE, (0, to), Some(&Wanted::new([&*name])));
        ranges
            .iter()
            .flat_map(|range| range.from..range.to)
            .collect()
    }

    #[test]
    fn what_is_parked_is_found_and_little_else_is_read() {
        let ids = begun(0, BTreeMap::new());
        for batch in 0..100 {
            write(ids.fill(), batch * 100..batch * 100 + 99);
        }

        for number in (0..9_900).filter(|number| number % 100 != 99).step_by(97) {
            let read = read(&ids, number, 9_999);
            assert!(read.contains(&number), "{number}");
            assert!(read.len() <= 3 * MOST, "{} for {number}", read.len());
        }
        assert!(read(&ids, 20_000, 9_999).len() <= 2 * MOST);
        // Behind the last of them there may be anything.
        assert!(read(&ids, 20_000, 12_000).ends_with(&[11_998, 11_999]));
    }

    #[test]
    fn what_another_batch_may_have_written_is_read() {
        let ids = begun(0, BTreeMap::new());
        write(ids.fill(), 0..2_000);
        let first = ids.fill();
        let second = ids.fill();
        write(second, (2_000..6_000).filter(|offset| offset % 2 == 0));

        assert!(read(&ids, 2_001, 6_000).contains(&2_001));
        write(first, (2_000..6_000).filter(|offset| offset % 2 == 1));
        let notes = ids.notes(&BTreeSet::from([LANE.shard]));
        assert_eq!(notes.len(), 5, "and what is full is written down");
        let read = read(&ids, 2_001, 6_000);
        assert!(
            read.contains(&2_001) && read.len() <= 2 * MOST,
            "{}",
            read.len()
        );
    }

    #[test]
    fn where_it_is_not_said_where_a_task_is_all_is_read() {
        let ids = begun(0, BTreeMap::new());
        write(ids.fill(), 0..1_500);
        let beside = ids.fill();
        let parked = [Parked {
            number: 0,
            lane: LANE,
            hash: hash(name(1_700).as_bytes()),
        }];
        ids.fill().done(&parked, vec![(0, -1)]);
        write(beside, [1_600, 1_800].into_iter());

        assert!(read(&ids, 1_700, 1_900).contains(&1_700));
        // What begins after that is known again.
        write(ids.fill(), 1_900..4_000);
        let ranges = read(&ids, 1_700, 4_000);
        assert!(ranges.contains(&1_700) && ranges.contains(&1_600));
        assert!(ranges.len() <= 3 * MOST, "{}", ranges.len());
    }

    #[test]
    fn the_next_owner_knows_what_was_written_down() {
        let ids = begun(0, BTreeMap::new());
        write(ids.fill(), 0..5_000);
        assert_eq!(ids.due(), BTreeSet::from([LANE.shard]));
        assert!(ids.notes(&BTreeSet::from([LANE.shard + 1])).is_empty());
        assert!(ids.leave(LANE.shard));
        let notes = ids.notes(&BTreeSet::from([LANE.shard]));
        let mut known = BTreeMap::new();
        for note in &notes {
            let value = note.value.as_deref().unwrap();
            let value = value.strip_prefix(&binding().to_bytes()[..]).unwrap();
            let key = format!("{KEY}retry.delay.1h/{}", note.from);
            assert_eq!(str::from_utf8(&note.key), Ok(&*key));
            known.insert(note.from, Block::decode(note.from, value).unwrap());
        }
        ids.written(notes);
        assert!(!ids.leave(LANE.shard), "all is written down");

        // One more that was not, before it crashed.
        let next = begun(5_200, known);
        let read_there = read(&next, 1_234, 5_200);
        assert!(read_there.contains(&1_234) && read_there.contains(&5_100));
        assert!(read_there.len() <= 2 * MOST + 200, "{}", read_there.len());
        let wanted = Wanted::new([]);
        let new = next.ranges(LANE, (0, 5_200), Some(&wanted));
        let (from, to, is_new) = (5_000, 5_200, true);
        assert_eq!(new, [Range { from, to, is_new }]);
        next.learn(LANE, 5_000, Block::new(5_200, Vec::new()));
        assert_eq!(next.ranges(LANE, (0, 5_200), Some(&wanted)), []);
        // What the lane has passed is forgotten, and that is written down.
        next.forget_below(LANE, 5_200);
        assert_eq!(next.bytes(), 0);
        let over = next.notes(&BTreeSet::from([LANE.shard]));
        assert!(over.len() == 5 && over.iter().all(|note| note.value.is_none()));
    }

    #[test]
    fn what_there_is_no_memory_for_is_read() {
        let ids = begun(0, BTreeMap::new());
        ids.limit(5_000);
        write(ids.fill(), 0..50_000);

        assert!(ids.bytes() <= 5_000);
        let read = read(&ids, 30_000, 50_000);
        assert!(read.contains(&30_000) && read.len() > 40_000);
    }

    #[test]
    fn tiers_that_others_write_to_are_read() {
        let ids = ids();
        let lane = LaneId {
            shard: 3,
            source: Source::Tier(1),
        };
        ids.begin(lane, binding(), (0, 0), BTreeMap::new());

        let ranges = ids.ranges(lane, (5, 9), Some(&Wanted::new([])));
        let (from, to, is_new) = (5, 9, false);
        assert_eq!(ranges, [Range { from, to, is_new }]);
    }
}
