//! Slots by the hash of their flow's key: open addressing with linear probing, at most half full.
//!
//! The hash is the seeded one of the kernel's table, under keys drawn for each run: whoever wrote the capture cannot aim
//! for long chains. The order of the rows does not depend on it.

use std::hash::{BuildHasher, RandomState};

use sensor_common::flow::FlowKey;
use sensor_common::hash::{self, SEED_WORDS, Seed};

/// Smallest number of places.
const MIN_PLACES: usize = 1 << 10;

/// Finds slots.
pub(super) struct Index {
    seed: Seed,
    /// The hash in the upper half, the slot + 1 in the lower; 0 = empty. A power of two.
    places: Vec<u64>,
    used: usize,
}

impl Index {
    pub(super) fn new() -> Index {
        // The standard library's keys are random for each process; hashing positions under them gives independent words.
        let random = RandomState::new();
        let seed = std::array::from_fn::<u64, SEED_WORDS, _>(|position| random.hash_one(position));
        Index { seed, places: vec![0; MIN_PLACES], used: 0 }
    }

    pub(super) fn hash(&self, key: &FlowKey) -> u32 {
        hash::hash(key, |position| self.seed[position])
    }

    fn mask(&self) -> usize {
        self.places.len() - 1
    }

    /// A slot that may be the one of this hash. Reads one place.
    #[inline]
    pub(super) fn guess(&self, hash: u32) -> Option<u32> {
        let place = self.places[hash as usize & self.mask()];
        (place != 0).then(|| slot(place))
    }

    /// The slot of this hash that `is` says yes to.
    #[inline]
    pub(super) fn find(&self, hash: u32, is: impl Fn(u32) -> bool) -> Option<u32> {
        let mut at = hash as usize & self.mask();
        loop {
            let place = self.places[at];
            if place == 0 {
                return None;
            }
            if place >> 32 == hash as u64 && is(slot(place)) {
                return Some(slot(place));
            }
            at = (at + 1) & self.mask();
        }
    }

    pub(super) fn insert(&mut self, hash: u32, slot: u32) {
        if (self.used + 1) * 2 > self.places.len() {
            let twice = vec![0; self.places.len() * 2];
            for place in std::mem::replace(&mut self.places, twice).into_iter().filter(|place| *place != 0) {
                self.put(place);
            }
        }
        self.put((hash as u64) << 32 | (slot as u64 + 1));
        self.used += 1;
    }

    fn put(&mut self, place: u64) {
        let mut at = (place >> 32) as usize & self.mask();
        while self.places[at] != 0 {
            at = (at + 1) & self.mask();
        }
        self.places[at] = place;
    }

    /// Takes a slot out, and moves up what was displaced by it (Knuth, volume 3, 6.4, algorithm R), so that no
    /// tombstones are left.
    pub(super) fn remove(&mut self, hash: u32, number: u32) {
        let mut hole = hash as usize & self.mask();
        while self.places[hole] != 0 && slot(self.places[hole]) != number {
            hole = (hole + 1) & self.mask();
        }
        if self.places[hole] == 0 {
            return;
        }
        self.used -= 1;
        let mut at = hole;
        loop {
            at = (at + 1) & self.mask();
            let place = self.places[at];
            if place == 0 {
                break;
            }
            // It may move up to the hole if its home is not between the two.
            let home = (place >> 32) as usize & self.mask();
            if at.wrapping_sub(home) & self.mask() >= at.wrapping_sub(hole) & self.mask() {
                self.places[hole] = place;
                hole = at;
            }
        }
        self.places[hole] = 0;
    }
}

fn slot(place: u64) -> u32 {
    (place as u32).wrapping_sub(1)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    /// Few hash values, so that chains are long, wrap around and share homes.
    #[test]
    fn agrees_with_a_map_under_collisions() {
        let mut index = Index::new();
        let mut expected = HashMap::new();
        let mut state = 1u64;
        for step in 0..60_000u32 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let number = (state >> 40) as u32 % 2_000;
            let hash = u32::wrapping_add(number % 97 * 11, 0xffff_fff0);
            if expected.remove(&number).is_some() {
                index.remove(hash, number);
            } else {
                expected.insert(number, hash);
                index.insert(hash, number);
            }
            if step % 500 == 0 {
                for number in 0..2_000 {
                    let hash = u32::wrapping_add(number % 97 * 11, 0xffff_fff0);
                    let found = index.find(hash, |slot| slot == number);
                    assert_eq!(found.is_some(), expected.contains_key(&number), "slot {number} at step {step}");
                }
                assert_eq!(index.used, expected.len());
            }
        }
    }
}
