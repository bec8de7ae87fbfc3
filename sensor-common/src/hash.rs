//! Seeded hash of a flow key. Multilinear hashing over 32-bit words (Lemire and Kaser, "Strongly universal string
//! hashing is fast", 2014, arXiv:1202.4961): under random 64-bit keys the upper 32 bits of the sum are strongly
//! universal, so whoever does not know the keys cannot choose flows that collide, whatever flows they choose.

use crate::flow::{FlowKey, KEY_WORDS};

/// 64-bit keys that one load needs: one per key word and one to start from.
pub const SEED_WORDS: usize = KEY_WORDS + 1;

/// The random keys of one load, drawn by the agent and given to the programs as a load-time constant.
pub type Seed = [u64; SEED_WORDS];

/// The hash of `key`. `seed` gives the i-th key, i < [`SEED_WORDS`].
#[inline(always)]
pub fn hash(key: &FlowKey, seed: impl Fn(usize) -> u64) -> u32 {
    mix(universal(key, seed))
}

/// The 32 universal bits of the sum. They are linear in each word of the key: what counts up gives multiples of a random
/// number, which under one seed of fourteen crowd in a part of the buckets.
#[inline(always)]
fn universal(key: &FlowKey, seed: impl Fn(usize) -> u64) -> u32 {
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

/// Breaks sequences: all bits of the sum reach the lower ones. A permutation, which keeps what the universal hash before it promises.
/// One multiplication, by the prime next to 2^32 / φ; shifts and factor are the best of those that were tried (decision 0005).
#[inline(always)]
const fn mix(hash: u32) -> u32 {
    let hash = (hash ^ hash >> 15).wrapping_mul(0x9e37_79b1);
    hash ^ hash >> 17
}

/// A hash of up to eight words (a source, a service, a port …), mixed so that its parts can be used on their own: words in
/// sequence would else fall into places in sequence. The mixing is the finaliser of MurmurHash3, a permutation as well. `seed` as in
/// [`hash()`].
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
mod tests;
