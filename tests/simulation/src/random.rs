//! The world's only source of chance: the same seed gives the same numbers for ever.

use rand::{Rng as _, SeedableRng as _};
use rand_pcg::Pcg64Mcg;

#[derive(Debug, Clone)]
pub struct Random(Pcg64Mcg);

impl Random {
    pub fn new(seed: u64) -> Random {
        Random(Pcg64Mcg::seed_from_u64(seed))
    }

    pub fn number(&mut self) -> u64 {
        self.0.next_u64()
    }

    /// A number below `n`; 0 for an `n` of 0.
    pub fn below(&mut self, n: u64) -> u64 {
        // The upper half of a product: no division, and the bias is far below what a world could show.
        ((u128::from(self.number()) * u128::from(n)) >> 64) as u64
    }

    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    /// One of them; `None` of none.
    pub fn of<'a, T>(&mut self, all: &'a [T]) -> Option<&'a T> {
        all.get(self.below(all.len() as u64) as usize)
    }

    /// A seed for a part of the world, so that what one part draws changes nothing in another.
    pub fn fork(&mut self) -> Random {
        Random::new(self.number())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_these_numbers_in_every_version() {
        let mut random = Random::new(1);
        let got: Vec<u64> = (0..4).map(|_| random.below(1_000)).collect();
        assert_eq!(got, [856, 137, 470, 726]);
    }

    #[test]
    fn every_number_below_the_bound_comes() {
        let mut random = Random::new(2);
        let mut seen = [0u32; 10];
        (0..10_000).for_each(|_| seen[random.below(10) as usize] += 1);
        assert!(seen.iter().all(|n| (800..1_200).contains(n)), "{seen:?}");
        assert_eq!(random.below(0), 0);
    }
}
