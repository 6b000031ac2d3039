//! Which ids may stand in a range of offsets of a tier: a small set of hashes for each, so that who looks for a task by its id reads only
//! ranges that may hold it.
//!
//! A set says "no" for certain, and "perhaps" wrongly for one id in 4,096 where it holds [`MOST`]; it takes 14 bits an id. Hashes of
//! 22 bits, sorted, as the differences from one to the next in a Rice code, which is within a tenth of the least that such a set can
//! take. Not how ranges are found or kept, which is the shell's. The form is written down, so it never changes; another one has another
//! version.

use std::mem;

use xxhash_rust::xxh3::xxh3_64;

use crate::completions::{put_varint, take_varint};

/// The ids of a range of offsets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Block {
    /// The first offset behind the range.
    pub to: i64,
    /// How many hashes there are.
    count: u32,
    /// Bits of a difference that are written as they are; what is left is written in unary.
    rice: u32,
    /// The code, lowest bit first.
    code: Box<[u8]>,
}

/// The ids that somebody looks for.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// A bit for each hash.
    bits: Box<[u64]>,
}

/// The hashes of a code, in rising order.
struct Hashes<'a> {
    /// The code.
    code: &'a [u8],
    /// The bit at which it goes on.
    at: usize,
    /// Bits of a difference that are written as they are.
    rice: u32,
    /// The last hash.
    last: u32,
    /// How many are left.
    left: u32,
}

/// Most ids of a range.
pub const MOST: usize = 1_024;

/// Bits of a hash: 4,096 times as many as ids of a range.
const BITS: u32 = 22;

/// The version of the form.
const VERSION: u8 = 1;

/// The hash of an id.
pub fn hash(id: &[u8]) -> u32 {
    (xxh3_64(id) >> (64 - BITS)) as u32
}

// === impl Block ===

impl Block {
    /// The block of a range that ends before `to` and holds ids with these hashes, and no others.
    pub fn new(to: i64, mut hashes: Vec<u32>) -> Self {
        hashes.sort_unstable();
        hashes.dedup();
        let count = hashes.len() as u32;
        let rice = (1_u32 << BITS).checked_div(count).map_or(0, u32::ilog2);
        let (mut code, mut at, mut last) = (Vec::new(), 0, 0);
        for hash in hashes {
            let difference = hash - mem::replace(&mut last, hash);
            for _ in 0..difference >> rice {
                put(&mut code, &mut at, 1);
            }
            put(&mut code, &mut at, 0);
            for bit in 0..rice {
                put(&mut code, &mut at, difference >> bit & 1);
            }
        }
        Self {
            to,
            count,
            rice,
            code: code.into(),
        }
    }

    /// Whether one of the ids may be in the range.
    pub fn may_hold(&self, wanted: &Wanted) -> bool {
        self.hashes().any(|hash| wanted.has(hash))
    }

    /// Bytes that it takes besides itself.
    pub fn bytes(&self) -> usize {
        self.code.len()
    }

    /// As it is written down, for a range that begins at `from`.
    pub fn encode(&self, from: i64, into: &mut Vec<u8>) {
        into.push(VERSION);
        put_varint(into, (self.to - from).unsigned_abs());
        put_varint(into, self.count.into());
        into.push(self.rice as u8);
        into.extend_from_slice(&self.code);
    }

    /// Reads what [`Self::encode`] has written.
    pub fn decode(from: i64, value: &[u8]) -> Option<Self> {
        let (version, mut rest) = value.split_first()?;
        let length = i64::try_from(take_varint(&mut rest)?).ok()?;
        let count = u32::try_from(take_varint(&mut rest)?).ok()?;
        let (rice, code) = rest.split_first()?;
        let block = Self {
            to: from.checked_add(length)?,
            count,
            rice: (*rice).into(),
            code: code.into(),
        };
        let is_whole = *version == VERSION
            && block.rice <= BITS
            && count as usize <= MOST
            && block.hashes().count() == count as usize;
        is_whole.then_some(block)
    }

    /// The hashes.
    fn hashes(&self) -> Hashes<'_> {
        Hashes {
            code: &self.code,
            at: 0,
            rice: self.rice,
            last: 0,
            left: self.count,
        }
    }
}

/// Adds a bit.
fn put(code: &mut Vec<u8>, at: &mut usize, bit: u32) {
    if at.is_multiple_of(8) {
        code.push(0);
    }
    if let Some(byte) = code.last_mut() {
        *byte |= (bit as u8) << (*at % 8);
    }
    *at += 1;
}

// === impl Hashes ===

impl Hashes<'_> {
    /// The next bit.
    fn bit(&mut self) -> Option<u32> {
        let byte = self.code.get(self.at / 8)?;
        let bit = byte >> (self.at % 8) & 1;
        self.at += 1;
        Some(bit.into())
    }
}

impl Iterator for Hashes<'_> {
    type Item = u32;

    fn next(&mut self) -> Option<u32> {
        self.left = self.left.checked_sub(1)?;
        let mut difference = 0_u32;
        while self.bit()? == 1 {
            difference = difference.checked_add(1 << self.rice)?;
        }
        for bit in 0..self.rice {
            difference |= self.bit()? << bit;
        }
        self.last = self.last.checked_add(difference)?;
        (self.last < 1 << BITS).then_some(self.last)
    }
}

// === impl Wanted ===

impl Wanted {
    /// Looks for these ids.
    pub fn new<'a>(ids: impl IntoIterator<Item = &'a str>) -> Self {
        let mut bits = vec![0; 1 << (BITS - 6)].into_boxed_slice();
        for id in ids {
            let hash = hash(id.as_bytes());
            bits[hash as usize / 64] |= 1 << (hash % 64);
        }
        Self { bits }
    }

    /// Whether an id of this hash is looked for.
    pub fn has(&self, hash: u32) -> bool {
        let word = self.bits.get(hash as usize / 64);
        word.is_some_and(|word| word >> (hash % 64) & 1 == 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::collections::BTreeSet;

    use proptest::prelude::*;

    proptest! {
        // Each id that is looked for takes half a megabyte to be cleared.
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn what_is_in_a_block_is_found(ids in prop::collection::btree_set("[a-z0-9-]{0,40}", 0..300), from in 0_i64..1 << 40) {
            let hashes = ids.iter().map(|id| hash(id.as_bytes())).collect();
            let block = Block::new(from + 700, hashes);
            let mut written = Vec::new();
            block.encode(from, &mut written);
            let read = Block::decode(from, &written);
            prop_assert_eq!(read.as_ref(), Some(&block));
            for id in &ids {
                prop_assert!(block.may_hold(&Wanted::new([&**id])));
            }
            prop_assert!(!block.may_hold(&Wanted::new([])));
        }
    }

    proptest! {
        #[test]
        fn no_value_panics(value in prop::collection::vec(any::<u8>(), 0..64), from in any::<i64>()) {
            let _ = Block::decode(from, &value);
            let of_version = [&[VERSION][..], &value].concat();
            let _ = Block::decode(from, &of_version);
        }
    }

    #[test]
    fn a_block_is_small_and_seldom_wrong() {
        let id = |number: usize| format!("order-{number}");
        let hashes = (0..MOST)
            .map(|number| hash(id(number).as_bytes()))
            .collect();
        let block = Block::new(MOST as i64, hashes);

        assert!(block.bytes() * 8 <= MOST * 14, "{} bytes", block.bytes());
        let others = MOST..MOST + 40_960;
        let held: BTreeSet<u32> = block.hashes().collect();
        let wrong = others.filter(|number| held.contains(&hash(id(*number).as_bytes())));
        let wrong = wrong.count();
        assert!((1..40).contains(&wrong), "{wrong} of 40,960");
    }
}
