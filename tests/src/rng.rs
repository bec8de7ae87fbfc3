//! A small seeded generator (SplitMix64), so that a run can be repeated from its seed. Not for secrets.

use std::ops::Range;
use std::time::Duration;

/// SplitMix64: any seed is good, also 0.
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    /// A generator that gives the same numbers for the same seed.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// An independent generator for a part with a number of its own.
    #[must_use]
    pub fn fork(&mut self) -> Self {
        Self(self.next_u64())
    }

    /// The next 64 bits.
    pub const fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A number of the range; its start when the range is empty.
    pub fn range(&mut self, range: Range<u64>) -> u64 {
        let width = range.end.saturating_sub(range.start).max(1);
        range.start + self.next_u64() % width
    }

    /// One of `items`, which must not be empty.
    pub fn pick<T: Copy>(&mut self, items: &[T]) -> T {
        let last = items.len().saturating_sub(1);
        let index = self.range(0..items.len() as u64);
        items[usize::try_from(index).unwrap_or(last)]
    }

    /// True once in `n` calls on average.
    pub fn one_in(&mut self, n: u64) -> bool {
        self.range(0..n) == 0
    }

    /// A time in milliseconds from the range.
    pub fn millis(&mut self, range: Range<u64>) -> Duration {
        Duration::from_millis(self.range(range))
    }
}

#[cfg(test)]
mod tests {
    use super::Rng;

    #[test]
    fn the_same_seed_gives_the_same_numbers_within_the_range() {
        let (mut a, mut b) = (Rng::new(7), Rng::new(7));
        for _ in 0..1000 {
            let x = a.range(10..20);
            assert_eq!(x, b.range(10..20));
            assert!((10..20).contains(&x));
        }
    }
}
