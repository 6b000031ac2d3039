//! Taken offsets of one partition: records whose consequence is durable although the partition is not read as far as that.
//!
//! A command reaches a task that is parked hours before its tier is read there. What follows is written at once, and the offset of its record
//! is marked, in the same transaction, so that whoever reads it later passes it over. One bit an offset, in chunks of [`CHUNK`], each of them
//! one record of a compacted topic: flat memory, and what a batch writes is in proportion to what it takes. Invariant: a mark stands until
//! the watermark of its partition has passed the chunk.

use std::collections::{BTreeMap, BTreeSet};
use std::mem;

use bytes::Bytes;

use crate::completions::{put_varint, take_varint};

/// The taken offsets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Taken {
    /// The chunks in which something is taken, by their numbers.
    chunks: BTreeMap<i64, Box<Chunk>>,
    /// The chunks that are to be written.
    changed: BTreeSet<i64>,
}

/// A bit for each offset of a chunk.
type Chunk = [u64; WORDS];

/// Offsets of a chunk: 2 KiB of bits.
pub const CHUNK: i64 = 16_384;

/// Words of a chunk.
const WORDS: usize = CHUNK as usize / 64;

/// Marks a value of run lengths: not taken and taken in turn.
const RUNS: u8 = 1;

/// Marks a value of one bit per offset, lowest first.
const BITMAP: u8 = 2;

// === impl Taken ===

impl Taken {
    /// Whether nothing is taken.
    pub fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }

    /// The last offset that is taken.
    pub fn last(&self) -> Option<i64> {
        let (chunk, words) = self.chunks.last_key_value()?;
        let (word, bits) = words.iter().enumerate().rfind(|(_, bits)| **bits != 0)?;
        let within = word as i64 * 64 + 63 - i64::from(bits.leading_zeros());
        Some(chunk * CHUNK + within)
    }

    /// Whether something is to be written.
    pub fn has_changed(&self) -> bool {
        !self.changed.is_empty()
    }

    /// Whether an offset is taken.
    pub fn contains(&self, offset: i64) -> bool {
        let (chunk, word, bit) = place(offset);
        let chunk = self.chunks.get(&chunk);
        chunk.is_some_and(|words| words[word] & bit != 0)
    }

    /// Takes an offset; false if it was taken before.
    pub fn insert(&mut self, offset: i64) -> bool {
        let (chunk, word, bit) = place(offset);
        let words = self
            .chunks
            .entry(chunk)
            .or_insert_with(|| Box::new([0; WORDS]));
        let is_new = words[word] & bit == 0;
        words[word] |= bit;
        self.changed.insert(chunk);
        is_new
    }

    /// Takes an offset back; false if it was not taken.
    pub fn remove(&mut self, offset: i64) -> bool {
        let (chunk, word, bit) = place(offset);
        let Some(words) = self.chunks.get_mut(&chunk) else {
            return false;
        };
        let was = words[word] & bit != 0;
        words[word] &= !bit;
        if words.iter().all(|word| *word == 0) {
            self.chunks.remove(&chunk);
        }
        self.changed.insert(chunk);
        was
    }

    /// Forgets the chunks below a durable watermark.
    pub fn forget_below(&mut self, watermark: i64) {
        while let Some(entry) = self.chunks.first_entry()
            && (entry.key() + 1).saturating_mul(CHUNK) <= watermark
        {
            self.changed.insert(*entry.key());
            entry.remove();
        }
    }

    /// What is to be written since this was last asked, by chunk; nothing for one of which nothing is left.
    pub fn changes(&mut self) -> impl Iterator<Item = (i64, Option<Bytes>)> {
        let changed = mem::take(&mut self.changed).into_iter();
        changed.map(|chunk| (chunk, self.chunks.get(&chunk).map(|words| encode(words))))
    }

    /// A chunk was to be written and was not.
    pub fn write_again(&mut self, chunk: i64) {
        self.changed.insert(chunk);
    }

    /// Takes in a chunk that [`Self::changes`] has given, in the order in which they were written. `None` if it cannot be read, or is none.
    pub fn replay(&mut self, chunk: i64, value: Option<&[u8]>) -> Option<()> {
        if !(0..=i64::MAX / CHUNK - 1).contains(&chunk) {
            return None;
        }
        let Some(value) = value else {
            self.chunks.remove(&chunk);
            return Some(());
        };
        self.chunks.insert(chunk, decode(value)?);
        Some(())
    }

    /// Bytes that it takes.
    pub fn bytes(&self) -> usize {
        self.chunks.len() * (size_of::<Chunk>() + 64)
    }
}

/// The chunk of an offset, its word in the chunk, and its bit in the word.
const fn place(offset: i64) -> (i64, usize, u64) {
    let within = offset.rem_euclid(CHUNK) as usize;
    (offset.div_euclid(CHUNK), within / 64, 1 << (within % 64))
}

/// The shorter of both forms.
fn encode(words: &Chunk) -> Bytes {
    let is_taken = |at: usize| words[at / 64] >> (at % 64) & 1 == 1;
    let mut runs = vec![RUNS];
    let (mut taken, mut from) = (false, 0);
    for at in 0..CHUNK as usize {
        if is_taken(at) != taken {
            put_varint(&mut runs, (at - from) as u64);
            (taken, from) = (!taken, at);
            if runs.len() > WORDS * 8 {
                let bits = words.iter().flat_map(|word| word.to_le_bytes());
                return [BITMAP].into_iter().chain(bits).collect();
            }
        }
    }
    if taken {
        put_varint(&mut runs, (CHUNK as usize - from) as u64);
    }
    runs.into()
}

/// Reads what [`encode`] has written.
fn decode(value: &[u8]) -> Option<Box<Chunk>> {
    let mut words = Box::new([0; WORDS]);
    let (form, mut rest) = value.split_first()?;
    match *form {
        RUNS => {
            let (mut taken, mut at) = (false, 0);
            while !rest.is_empty() {
                let length = usize::try_from(take_varint(&mut rest)?).ok()?;
                let end = usize::checked_add(at, length).filter(|end| *end <= CHUNK as usize)?;
                if taken {
                    for at in at..end {
                        words[at / 64] |= 1 << (at % 64);
                    }
                }
                (taken, at) = (!taken, end);
            }
        }
        BITMAP => {
            if rest.len() != WORDS * 8 {
                return None;
            }
            let (bytes, _) = rest.as_chunks::<8>();
            for (word, bytes) in words.iter_mut().zip(bytes) {
                *word = u64::from_le_bytes(*bytes);
            }
        }
        _ => return None,
    }
    Some(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    use proptest::prelude::*;

    proptest! {
        // Each looks at every offset of three chunks.
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn what_is_written_is_read(
            offsets in prop::collection::btree_set(0_i64..3 * CHUNK, 0..300),
            run in 0_i64..3 * CHUNK, length in 0_i64..2 * CHUNK, every in 1_i64..4, removed in 0_usize..20,
        ) {
            let mut all: BTreeSet<i64> = offsets;
            all.extend((run..(run + length).min(3 * CHUNK)).filter(|offset| offset % every == 0));
            let mut taken = Taken::default();
            for offset in &all {
                prop_assert!(taken.insert(*offset));
            }
            for offset in all.clone().into_iter().take(removed) {
                prop_assert!(taken.remove(offset));
                all.remove(&offset);
            }
            let mut read = Taken::default();
            for (chunk, value) in taken.changes() {
                if let Some(value) = &value {
                    prop_assert!(value.len() <= WORDS * 8 + 10);
                }
                prop_assert_eq!(read.replay(chunk, value.as_deref()), Some(()));
            }
            prop_assert_eq!(&read.chunks, &taken.chunks);
            for offset in 0..3 * CHUNK {
                prop_assert_eq!(read.contains(offset), all.contains(&offset));
            }
        }
    }

    proptest! {
        #[test]
        fn no_value_panics(value in prop::collection::vec(any::<u8>(), 0..64), chunk in any::<i64>()) {
            let mut taken = Taken::default();
            let _ = taken.replay(chunk, Some(&value));
            let _ = taken.contains(i64::MAX);
            taken.forget_below(i64::MAX);
        }
    }

    #[test]
    fn a_chunk_is_forgotten_when_all_of_it_is_passed() {
        let mut taken = Taken::default();
        taken.insert(5);
        taken.insert(CHUNK + 5);
        let _ = taken.changes().count();

        taken.forget_below(CHUNK - 1);
        assert!(taken.contains(5));
        taken.forget_below(CHUNK);
        assert!(!taken.contains(5) && taken.contains(CHUNK + 5));
        assert_eq!(taken.changes().collect::<Vec<_>>(), [(0, None)]);
    }
}
