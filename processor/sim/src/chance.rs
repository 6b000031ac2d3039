//! Chance: everything in a history that is not decided by the code under test.
//!
//! Invariant: the same seed gives the same draws, on every machine and with every version of the generator's crate.

use rand_pcg::Pcg64Mcg;
use rand_pcg::rand_core::{RngCore, SeedableRng};

/// A stream of draws.
#[derive(Clone, Debug)]
pub(crate) struct Chance(Pcg64Mcg);

// === impl Chance ===

impl Chance {
    /// The stream of `seed`.
    pub(crate) fn new(seed: u64) -> Self {
        Self(Pcg64Mcg::seed_from_u64(seed))
    }

    /// A stream that depends on this one, and leaves it as it is.
    pub(crate) fn fork(&self) -> Self {
        // Any other seed than one that somebody would begin with.
        Self::new(self.clone().0.next_u64() ^ 0x6b65_795f_6f72_6465)
    }

    /// A number below `limit`, which is not 0.
    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        // The bias of the remainder is far below what a few thousand draws could show.
        self.0.next_u64() % limit
    }

    /// A number from `least` to `most`.
    pub(crate) fn between(&mut self, least: u64, most: u64) -> u64 {
        least + self.below(most - least + 1)
    }

    /// True once in `times`.
    pub(crate) fn one_in(&mut self, times: u64) -> bool {
        self.below(times) == 0
    }

    /// True with this many chances in a thousand.
    pub(crate) fn permille(&mut self, chances: u64) -> bool {
        self.below(1_000) < chances
    }

    /// One of these.
    pub(crate) fn pick<T: Copy>(&mut self, among: &[T]) -> T {
        among[self.below(among.len() as u64) as usize]
    }

    /// A number from `-most` to `most`.
    pub(crate) fn around_zero(&mut self, most: i64) -> i64 {
        self.between(0, 2 * most as u64) as i64 - most
    }
}
