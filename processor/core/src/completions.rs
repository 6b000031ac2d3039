//! Completions above the watermark, as they ride in the metadata of an offset commit.
//!
//! Text form: `2.<bound>.<checksum>.<base64url>`, at most 4,096 bytes (Kafka's `offset.metadata.max.bytes`). `bound` is a hash of what the set
//! was written for: cluster, topic, partition and committed offset. The body is `base` and `end` as varints, then the shorter of a bitmap and
//! alternating run lengths. Where the shard has saved up something ([`Saved`]), and there is room for it, `.<base64url>` follows; the body may
//! be empty then.
//!
//! Invariant: decoding what cannot be read gives an error, never a guess. Nor is a set believed that was written for something else: tools
//! that copy offsets between clusters, or put back older ones, copy the text as it is, and every task it names would be lost. A text of
//! version 1 does not say what it was written for, and is not believed either.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use thiserror::Error;
use xxhash_rust::xxh3::xxh3_64;

use crate::saved::Saved;

/// Longest text: Kafka's default limit for commit metadata.
pub const MAX_TEXT: usize = 4_096;

/// Longest span of offsets whose bitmap always fits the text: 3,000 bytes of bitmap become 4,000 characters.
pub const MAX_SPAN: i64 = 24_000;

/// Most open offsets whose runs always fit the text: two runs for each, of at most three bytes as long as [`MAX_RUN`] holds.
pub const MAX_RUNS: usize = 480;

/// Longest span that [`MAX_RUNS`] reckons with: what a varint of three bytes holds.
pub const MAX_RUN: i64 = (1 << 21) - 1;

/// The version of the text form.
const VERSION: &str = "2";

/// The version before, which says nothing of cluster, topic and offset.
const UNBOUND: &str = "1";

/// Marks a body of run lengths.
const RUNS: u8 = 0;
/// Marks a body of one bit per offset.
const BITMAP: u8 = 1;

/// A set of offsets whose consequence is durable although one below them is open.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Completions {
    /// Disjoint, rising, non-adjacent ranges `start..end`.
    ranges: Vec<(i64, i64)>,
}

/// What a set is written for: a partition of one topic of one cluster. A topic that is created again is another one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Binding(u64);

/// Why commit metadata is not believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Error {
    /// Written before a set said what it was written for.
    #[error("written by an earlier version, which does not say for which offset")]
    Unbound,
    /// Written for another cluster, topic, partition or offset.
    #[error("written for another cluster, topic or offset")]
    Elsewhere,
    /// Written by something else or by a newer version.
    #[error("unknown version")]
    Version,
    /// Changed on its way.
    #[error("checksum does not match")]
    Checksum,
    /// Not in the documented form.
    #[error("malformed")]
    Malformed,
}

// === impl Binding ===

impl Binding {
    /// A partition of the topic that the cluster of this id knows by this name and id.
    pub fn new(cluster: &str, topic: &str, id: u128, partition: i32) -> Self {
        let mut bytes = Vec::with_capacity(cluster.len() + topic.len() + 2 + 16 + 4);
        // No name of a cluster or topic has a NUL.
        for name in [cluster, topic] {
            bytes.extend_from_slice(name.as_bytes());
            bytes.push(0);
        }
        bytes.extend_from_slice(&id.to_le_bytes());
        bytes.extend_from_slice(&partition.to_le_bytes());
        Self(xxh3_64(&bytes))
    }

    /// What other records say that they are bound to.
    pub const fn to_bytes(self) -> [u8; 8] {
        self.0.to_le_bytes()
    }

    /// What a set says that is written with the commit of `offset`.
    fn at(self, offset: i64) -> u64 {
        let [partition, offset] = [self.0, offset.cast_unsigned()].map(u64::to_le_bytes);
        xxh3_64(&[partition, offset].concat())
    }
}

// === impl Completions ===

impl Completions {
    /// Everything in `start..end` except `open`, which rises.
    pub fn between(start: i64, end: i64, open: impl Iterator<Item = i64>) -> Self {
        let mut ranges = Vec::new();
        let mut from = start;
        for offset in open {
            if offset > from {
                ranges.push((from, offset));
            }
            from = from.max(offset + 1);
        }
        if end > from {
            ranges.push((from, end));
        }
        Self { ranges }
    }

    /// Whether `offset` is complete.
    pub fn contains(&self, offset: i64) -> bool {
        let index = self.ranges.partition_point(|(_, end)| *end <= offset);
        self.ranges
            .get(index)
            .is_some_and(|(start, _)| *start <= offset)
    }

    /// One past the last completed offset, or 0.
    pub fn end(&self) -> i64 {
        self.ranges.last().map_or(0, |(_, end)| *end)
    }

    /// The first offset at or after `offset` that is not complete.
    pub fn first_open_from(&self, offset: i64) -> i64 {
        let index = self.ranges.partition_point(|(_, end)| *end <= offset);
        match self.ranges.get(index) {
            Some((start, end)) if *start <= offset => *end,
            _ => offset,
        }
    }

    /// Adds what `other` holds at or above `floor` and beyond the end of this set.
    pub fn extend(&mut self, other: &Self, floor: i64) {
        let from = self.end().max(floor);
        for (start, end) in other.ranges.iter().filter(|(_, end)| *end > from) {
            let start = *start.max(&floor);
            match self.ranges.last_mut() {
                Some(last) if last.1 >= start => last.1 = *end,
                _ => self.ranges.push((start, *end)),
            }
        }
    }

    /// Takes `offset` out.
    pub fn remove(&mut self, offset: i64) {
        let index = self.ranges.partition_point(|(_, end)| *end <= offset);
        let Some((start, end)) = self.ranges.get(index).copied() else {
            return;
        };
        if start > offset {
            return;
        }
        let halves = [(start, offset), (offset + 1, end)];
        self.ranges.splice(
            index..=index,
            halves.into_iter().filter(|(start, end)| start < end),
        );
    }

    /// Adds everything in `start..end`, all of which lies below the set.
    pub fn prepend(&mut self, start: i64, end: i64) {
        if start >= end {
            return;
        }
        match self.ranges.first_mut() {
            Some(first) if first.0 <= end => first.0 = start,
            _ => self.ranges.insert(0, (start, end)),
        }
    }

    /// Whether the set is empty.
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// The set with every offset `by` higher.
    pub(crate) fn moved(&self, by: i64) -> Self {
        let moved = |(start, end): &(i64, i64)| (start + by, end + by);
        Self {
            ranges: self.ranges.iter().map(moved).collect(),
        }
    }

    /// What the set holds of `start..end`.
    #[must_use]
    pub fn within(&self, start: i64, end: i64) -> Self {
        let clipped = self.ranges.iter();
        let clipped = clipped.map(|(from, to)| (*from.max(&start), *to.min(&end)));
        Self {
            ranges: clipped.filter(|(from, to)| from < to).collect(),
        }
    }

    /// The text for the metadata of a commit of `offset`; empty for the empty set.
    pub fn encode(&self, binding: Binding, offset: i64) -> String {
        self.encode_with(&Saved::default(), binding, offset)
    }

    /// The text for the metadata of a commit, with what the shard has saved up of its rates.
    pub fn encode_with(&self, saved: &Saved, binding: Binding, offset: i64) -> String {
        if self.is_empty() && saved.is_empty() {
            return String::new();
        }
        let mut body = self.body();
        let set = URL_SAFE_NO_PAD.encode(&body);
        // A version, hashes and points.
        let head = 2 + 17 + 9;
        let room = MAX_TEXT.saturating_sub(head + set.len() + 1) * 3 / 4;
        let saved = saved.encode(room);
        if body.is_empty() && saved.is_empty() {
            return String::new();
        }
        body.extend_from_slice(&saved);
        let mut text = format!(
            "{VERSION}.{:016x}.{:08x}.{set}",
            binding.at(offset),
            xxh3_64(&body) as u32,
        );
        if !saved.is_empty() {
            text.push('.');
            URL_SAFE_NO_PAD.encode_string(saved, &mut text);
        }
        text
    }

    /// The body of the text; empty for the empty set.
    fn body(&self) -> Vec<u8> {
        let mut body = Vec::new();
        let Some((base, _)) = self.ranges.first().copied() else {
            return body;
        };
        put_varint(&mut body, base as u64);
        put_varint(&mut body, (self.end() - base) as u64);
        let runs = self.encode_runs(base);
        // One bit per offset, rounded up to whole bytes.
        let bitmap_length = ((self.end() - base) as usize).div_ceil(8);
        if runs.len() <= bitmap_length {
            body.push(RUNS);
            body.extend(runs);
        } else {
            body.push(BITMAP);
            body.extend(self.encode_bitmap(base, bitmap_length));
        }
        body
    }

    /// Reads what [`Self::encode`] wrote with the same commit.
    pub fn decode(text: &str, binding: Binding, offset: i64) -> Result<Self, Error> {
        Self::decode_with(text, binding, offset).map(|(set, _)| set)
    }

    /// Reads what [`Self::encode_with`] wrote with the same commit.
    pub fn decode_with(text: &str, binding: Binding, offset: i64) -> Result<(Self, Saved), Error> {
        if text.is_empty() {
            return Ok((Self::default(), Saved::default()));
        }
        if text.len() > MAX_TEXT {
            return Err(Error::Malformed);
        }
        let mut parts = text.splitn(5, '.');
        match parts.next() {
            Some(VERSION) => {}
            Some(UNBOUND) => return Err(Error::Unbound),
            Some(_) | None => return Err(Error::Version),
        }
        let (Some(bound), Some(checksum), Some(body)) = (parts.next(), parts.next(), parts.next())
        else {
            return Err(Error::Malformed);
        };
        if u64::from_str_radix(bound, 16) != Ok(binding.at(offset)) {
            return Err(Error::Elsewhere);
        }
        let mut body = URL_SAFE_NO_PAD.decode(body).map_err(|_| Error::Malformed)?;
        let set = body.len();
        let saved = parts.next();
        if let Some(saved) = saved {
            URL_SAFE_NO_PAD
                .decode_vec(saved, &mut body)
                .map_err(|_| Error::Malformed)?;
        }
        if u32::from_str_radix(checksum, 16) != Ok(xxh3_64(&body) as u32) {
            return Err(Error::Checksum);
        }
        let (set, form) = body.split_at(set);
        let Some(saved) = saved.map_or(Some(Saved::default()), |_| Saved::decode(form)) else {
            return Err(Error::Malformed);
        };
        if set.is_empty() && !saved.is_empty() {
            return Ok((Self::default(), saved));
        }
        let set = Self::decode_body(set).ok_or(Error::Malformed)?;
        Ok((set, saved))
    }

    /// Run lengths, complete and open in turn, starting with complete at `base`.
    fn encode_runs(&self, base: i64) -> Vec<u8> {
        let mut runs = Vec::new();
        let mut from = base;
        for (start, end) in &self.ranges {
            if *start > base {
                put_varint(&mut runs, (start - from) as u64);
            }
            put_varint(&mut runs, (end - start) as u64);
            from = *end;
        }
        runs
    }

    /// One bit per offset from `base`, lowest bit first.
    fn encode_bitmap(&self, base: i64, length: usize) -> Vec<u8> {
        let mut bits = vec![0_u8; length];
        for (start, end) in &self.ranges {
            for offset in (start - base)..(end - base) {
                bits[(offset / 8) as usize] |= 1 << (offset % 8);
            }
        }
        bits
    }

    /// Reads the body, checked to be a set that can be written.
    fn decode_body(mut body: &[u8]) -> Option<Self> {
        let base = i64::try_from(take_varint(&mut body)?).ok()?;
        let span = i64::try_from(take_varint(&mut body)?).ok()?;
        let end = base.checked_add(span)?;
        let (form, mut rest) = body.split_first()?;
        let mut ranges = Vec::new();
        let mut from = base;
        match *form {
            RUNS => {
                let mut complete = true;
                while !rest.is_empty() {
                    let length = i64::try_from(take_varint(&mut rest)?).ok()?;
                    let to = from.checked_add(length).filter(|to| *to > from)?;
                    if complete {
                        ranges.push((from, to));
                    }
                    complete = !complete;
                    from = to;
                }
            }
            BITMAP => {
                for (index, bits) in rest.iter().enumerate() {
                    for bit in (0..8).filter(|bit| bits >> bit & 1 == 1) {
                        let offset = base.checked_add(index as i64 * 8 + bit)?;
                        let next = offset.checked_add(1)?;
                        match ranges.last_mut() {
                            Some((_, last)) if *last == offset => *last = next,
                            _ => ranges.push((offset, next)),
                        }
                    }
                }
            }
            _ => return None,
        }
        (ranges.last()?.1 == end).then_some(Self { ranges })
    }
}

/// Appends `value`, seven bits per byte, lowest first (as in Protocol Buffers).
pub(crate) fn put_varint(into: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        into.push(value as u8 | 0x80);
        value >>= 7;
    }
    into.push(value as u8);
}

/// Takes what [`put_varint`] wrote.
pub(crate) fn take_varint(from: &mut &[u8]) -> Option<u64> {
    let mut value = 0_u64;
    for shift in (0..63).step_by(7) {
        let (byte, rest) = from.split_first()?;
        *from = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::saved::MachineTime;

    use std::collections::BTreeSet;
    use std::time::Duration;

    use proptest::prelude::*;

    fn set(offsets: &BTreeSet<i64>) -> Completions {
        let (Some(first), Some(last)) = (offsets.first(), offsets.last()) else {
            return Completions::default();
        };
        Completions::between(
            *first,
            last + 1,
            (*first..=*last).filter(|offset| !offsets.contains(offset)),
        )
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded(offsets in prop::collection::btree_set(1_000_i64..3_000, 0..400), base in 0_i64..1 << 50) {
            let offsets = offsets.into_iter().map(|offset| offset + base).collect();
            let completions = set(&offsets);

            let decoded = decode(&encode(&completions));

            prop_assert_eq!(decoded, Ok(completions.clone()));
            for offset in base..base + 3_100 {
                prop_assert_eq!(completions.contains(offset), offsets.contains(&offset));
            }
        }

        #[test]
        fn removing_leaves_the_rest(offsets in prop::collection::btree_set(0_i64..60, 0..40), removed in 0_i64..60) {
            let mut completions = set(&offsets);

            completions.remove(removed);

            let mut rest = offsets;
            rest.remove(&removed);
            prop_assert_eq!(completions, set(&rest));
        }

        #[test]
        fn no_text_panics(text in "\\PC{0,64}", bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let _ = decode(&text);
            let _ = Saved::decode(&bytes);
            // Whatever is accepted can be written again.
            if let Ok(completions) = decode(&forged(&bytes)) {
                prop_assert_eq!(decode(&encode(&completions)), Ok(completions));
            }
        }

        #[test]
        fn what_is_clipped_is_within(
            offsets in prop::collection::btree_set(0_i64..60, 0..40), start in 0_i64..60, end in 0_i64..60,
        ) {
            let clipped = set(&offsets).within(start, end);

            let within: BTreeSet<i64> = offsets.into_iter().filter(|offset| (start..end).contains(offset)).collect();
            prop_assert_eq!(clipped, set(&within));
        }
    }

    /// A partition of a topic of a cluster.
    fn binding() -> Binding {
        Binding::new("cluster", "retry.tasks", 7, 3)
    }

    fn encode(completions: &Completions) -> String {
        completions.encode(binding(), 5)
    }

    fn decode(text: &str) -> Result<Completions, Error> {
        Completions::decode(text, binding(), 5)
    }

    /// The text of a body, however senseless, with the right checksum.
    fn forged(body: &[u8]) -> String {
        let checksum = xxh3_64(body) as u32;
        let bound = binding().at(5);
        format!(
            "2.{bound:016x}.{checksum:08x}.{}",
            URL_SAFE_NO_PAD.encode(body)
        )
    }

    #[test]
    fn what_is_saved_up_rides_along_as_far_as_there_is_room() {
        let mut saved = Saved::default();
        for id in 0..200 {
            saved.put(id, Duration::from_secs(id.into()), Duration::from_secs(7));
        }
        let machine = MachineTime::new(b"machine", Duration::from_secs(99));
        saved.at = Some(machine);
        // All odd offsets of as many as fit.
        let full = Completions::between(0, MAX_SPAN, (0..MAX_SPAN).step_by(2));
        let read = |set: &Completions| {
            let text = set.encode_with(&saved, binding(), 5);
            assert!(text.len() <= MAX_TEXT);
            let (read, saved) = Completions::decode_with(&text, binding(), 5).unwrap();
            assert_eq!(&read, set);
            assert_eq!(decode(&text).as_ref(), Ok(set));
            saved
        };

        let (alone, beside) = (read(&Completions::default()), read(&full));

        // The slowest go first.
        assert_eq!(alone.rates().count(), 48);
        assert_eq!(alone.of(199), Some(Duration::from_secs(7)));
        assert_eq!(alone.of(0), None);
        assert_eq!(alone.at, Some(machine));
        assert!(beside.rates().count() < 10 && beside.of(199).is_some());
    }

    #[test]
    fn a_set_at_the_end_of_all_offsets_is_refused() {
        for form in [RUNS, BITMAP] {
            let mut body = Vec::new();
            put_varint(&mut body, i64::MAX as u64);
            put_varint(&mut body, 0);
            body.extend([form, 1]);

            assert_eq!(decode(&forged(&body)), Err(Error::Malformed));
        }
    }

    #[test]
    fn no_text_makes_a_set_larger_than_itself() {
        // The most ranges that fit: every other bit, and runs of one.
        let bits = [vec![0, 0xff, 0xb7, 1, BITMAP], vec![0x55; 3_040]].concat();
        let runs = [vec![0, 0xdf, 0x17, RUNS], vec![1; 3_039]].concat();

        for body in [bits, runs] {
            let text = forged(&body);
            assert!(text.len() <= MAX_TEXT);
            if let Ok(set) = decode(&text) {
                assert!(set.ranges.len() <= 4 * MAX_TEXT);
            }
        }
        let long = forged(&[1; MAX_TEXT]);
        assert_eq!(decode(&long), Err(Error::Malformed));
    }

    #[test]
    fn a_set_is_believed_for_what_it_was_written_for_only() {
        let completions = Completions {
            ranges: vec![(6, 9), (12, 13)],
        };
        let text = encode(&completions);
        let elsewhere = [
            (Binding::new("other", "retry.tasks", 7, 3), 5),
            (Binding::new("cluster", "retry.delay.now", 7, 3), 5),
            (Binding::new("cluster", "retry.tasks", 8, 3), 5),
            (Binding::new("cluster", "retry.tasks", 7, 4), 5),
            (binding(), 0),
        ];

        assert_eq!(decode(&text), Ok(completions));
        for (binding, offset) in elsewhere {
            let found = Completions::decode(&text, binding, offset);
            assert_eq!(found, Err(Error::Elsewhere), "{binding:?} {offset}");
        }
        // As seen on a broker: it had skipped 490 of 500 tasks of another prefix.
        let before = "1.681478ff.AfMDADEBMQExATEBMQExATEBMQExATE";
        assert_eq!(decode(before), Err(Error::Unbound));
    }

    #[test]
    fn a_changed_text_is_refused() {
        let text = encode(&Completions {
            ranges: vec![(5, 9), (12, 13)],
        });
        let other = encode(&Completions {
            ranges: vec![(5, 9), (12, 14)],
        });
        let body = other.rsplit('.').next().unwrap_or_default();
        let (head, _) = text.rsplit_once('.').unwrap_or_default();

        assert_eq!(decode(&format!("{head}.{body}")), Err(Error::Checksum));
        assert_eq!(decode("3.x.y"), Err(Error::Version));
        assert_eq!(decode("written by something else"), Err(Error::Version));
        assert_eq!(decode("2.x"), Err(Error::Malformed));
        assert_eq!(decode(""), Ok(Completions::default()));
    }
}
