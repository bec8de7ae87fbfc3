//! Seeded hash of a flow key. Multilinear hashing over 32-bit words (Lemire and Kaser, "Strongly universal string
//! hashing is fast", 2014, arXiv:1202.4961): under random 64-bit keys the upper 32 bits of the sum are strongly
//! universal, so whoever does not know the keys cannot choose flows that collide, whatever flows they choose.

use crate::flow::{FlowKey, KEY_WORDS};

/// 64-bit keys that one load needs: one per key word and one to start from.
pub const SEED_WORDS: usize = KEY_WORDS + 1;

/// The random keys of one load, drawn by the agent and given to the programs as a load-time constant.
pub type Seed = [u64; SEED_WORDS];

/// The 32 universal bits of `key`'s hash. `seed` gives the i-th key, i < [`SEED_WORDS`].
#[inline(always)]
pub fn hash(key: &FlowKey, seed: impl Fn(usize) -> u64) -> u32 {
    let words = key.words();
    // Pairs share a multiplication ("multilinear-HM" in the paper), which halves their number.
    let pair = |a: usize, b: usize, position: usize| {
        (words[a] as u64).wrapping_add(seed(position)).wrapping_mul((words[b] as u64).wrapping_add(seed(position + 1)))
    };
    let mut sum = seed(0).wrapping_add(pair(8, 9, 1)).wrapping_add(pair(0, 4, 3)).wrapping_add(pair(10, 11, 5));
    if key.family == 6 {
        sum = sum.wrapping_add(pair(1, 5, 7)).wrapping_add(pair(2, 6, 9)).wrapping_add(pair(3, 7, 11));
    }
    (sum >> 32) as u32
}

/// A hash of up to eight words (a source, a service, a port …), mixed so that its parts can be used on their own: words in
/// sequence would else fall into places in sequence. The mixing is the finaliser of MurmurHash3, a permutation, which
/// keeps what the universal hash before it promises. `seed` as in [`hash`].
#[inline(always)]
pub fn hash_words(words: &[u32], seed: impl Fn(usize) -> u64) -> u32 {
    let mut sum = seed(0);
    for (position, word) in words.iter().enumerate() {
        sum = sum.wrapping_add((*word as u64).wrapping_mul(seed(position + 1)));
    }
    let mut hash = (sum >> 32) as u32;
    hash = (hash ^ hash >> 16).wrapping_mul(0x85eb_ca6b);
    hash = (hash ^ hash >> 13).wrapping_mul(0xc2b2_ae35);
    hash ^ hash >> 16
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::Domain;

    fn key(host: u32, port: u16) -> FlowKey {
        FlowKey::canonical([host, 0, 0, 0], [0xc612_0001, 0, 0, 0], port, 443, 6, 4, Domain::default()).0
    }

    /// Flows chosen to share a bucket under one seed must spread under another: that is what the seed is for.
    #[test]
    fn collisions_under_one_seed_do_not_hold_under_another() {
        let known = |i: usize| 0x9e37_79b9_7f4a_7c15u64.wrapping_mul(i as u64 * 2 + 1);
        let other = |i: usize| 0xd1b5_4a32_d192_ed03u64.wrapping_mul(i as u64 * 2 + 3).rotate_left(17);
        let aimed: Vec<_> = (0..400_000u32)
            .map(|i| key(i.wrapping_mul(2_654_435_761), (i >> 3) as u16))
            .filter(|key| hash(key, known) % 4096 == 7)
            .collect();
        assert!(aimed.len() > 60, "found {}", aimed.len());
        let mut load = std::collections::HashMap::new();
        for key in &aimed {
            *load.entry(hash(key, other) % 4096).or_insert(0u32) += 1;
        }
        assert!(load.values().max() < Some(&6), "{:?}", load.values().max());
    }
}
