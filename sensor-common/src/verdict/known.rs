//! Sources that completed a handshake, by a hash of their address and the time of the last one: limits of half-open attempts
//! exempt them.
//!
//! A set of four words, each 32 bits of tag and 32 of time, 0 = empty; one store writes a source, so no lock is needed, and
//! of two that write the same word at once one is forgotten. A set that is full gives up the source not seen for longest.
//! Another source is taken for a known one with a probability of 2^-30, under keys that nobody outside knows.

use crate::hash::hash_words;

/// Words of a set.
pub const KNOWN_WAYS: usize = 4;
/// Sets, a power of two: 16,384 sources.
pub const KNOWN_SETS: u32 = 1 << 12;
/// How long a completed handshake exempts its source from limits of half-open attempts, ns: 10 minutes, and at most two ticks
/// of 67 ms more.
pub const KNOWN_NS: u64 = 600 * 1_000_000_000;
/// A set.
pub type KnownSet = [u64; KNOWN_WAYS];

/// Ticks of 2^26 ns. 32 bits hold nine years of them, and ages have a sign: a word that nobody replaced for 4.5 years holds again.
const SHIFT: u32 = 26;
/// Keys that one hash of an address takes.
const KEYS: usize = 5;

const fn tick(now_ns: u64) -> u32 {
    (now_ns >> SHIFT) as u32
}

/// The set and the tag of an address ([`super::mapped`]). `seed`: see [`crate::hash::hash`].
#[inline(always)]
pub fn place(address: &[u32; 4], seed: impl Fn(usize) -> u64) -> (u32, u32) {
    let set = hash_words(address, |position| seed(KEYS + position)) & (KNOWN_SETS - 1);
    (set, crate::table::tag_of(hash_words(address, &seed)))
}

/// The word of a source that completed a handshake at `now_ns`.
#[inline(always)]
pub const fn word(tag: u32, now_ns: u64) -> u64 {
    (tag as u64) << 32 | tick(now_ns) as u64
}

/// Whether a word says that the source with this tag is known at `now_ns`.
#[inline(always)]
pub const fn holds(word: u64, tag: u32, now_ns: u64) -> bool {
    // A word may be of a moment after `now_ns`: another CPU wrote it.
    let age = tick(now_ns).wrapping_sub(word as u32) as i32;
    (word >> 32) as u32 == tag && age <= (KNOWN_NS >> SHIFT) as i32 + 1
}

/// The word that a source with this tag takes: its own, else an empty one, else that of the source not seen for longest.
#[inline(always)]
pub fn way_of(set: &KnownSet, tag: u32, now_ns: u64) -> usize {
    let (mut found, mut most) = (0, 0);
    let mut way = 0;
    while way < KNOWN_WAYS {
        let age = (tick(now_ns).wrapping_sub(set[way] as u32) as i32).max(0) as u64;
        let rank = match set[way] {
            0 => u64::MAX - 1,
            word if (word >> 32) as u32 == tag => u64::MAX,
            _ => age,
        };
        if rank > most {
            (found, most) = (way, rank);
        }
        way += 1;
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 50_000 * 1_000_000_000;

    fn seed(position: usize) -> u64 {
        0x9e37_79b9_7f4a_7c15u64.wrapping_mul(position as u64 * 2 + 1)
    }

    #[test]
    fn is_known_for_ten_minutes() {
        let (_, tag) = place(&[0, 0, 0xffff_0000, 7], seed);
        let word = word(tag, NOW);
        assert!(holds(word, tag, NOW - (2 << SHIFT)), "noted by a CPU whose clock was read later");
        assert!(holds(word, tag, NOW + KNOWN_NS) && !holds(word, tag, NOW + KNOWN_NS + (2 << SHIFT)));
        assert!(!holds(word, tag ^ 1, NOW) && !holds(0, tag, NOW) && !holds(0, tag, 1));
    }

    #[test]
    fn the_oldest_of_a_full_set_goes() {
        let mut set = KnownSet::default();
        for (number, tag) in [5, 6, 7, 8, 6].into_iter().enumerate() {
            let now_ns = NOW + ((number as u64) << SHIFT);
            let way = way_of(&set, tag, now_ns);
            set[way] = word(tag, now_ns);
        }
        assert!([5, 6, 7, 8].iter().all(|tag| set.iter().any(|word| holds(*word, *tag, NOW + (9 << SHIFT)))));
        let later = NOW + (9 << SHIFT);
        set[way_of(&set, 9, later)] = word(9, later);
        assert!(set.iter().all(|word| (word >> 32) != 5), "{set:x?}");
        set[way_of(&set, 10, later)] = word(10, later);
        assert!(set.iter().all(|word| (word >> 32) != 7) && set.iter().any(|word| (word >> 32) == 6), "{set:x?}");
    }

    /// As many sources as there is room for, most of them in places of their own.
    #[test]
    fn sources_spread_over_the_sets() {
        let mut sets = vec![KnownSet::default(); KNOWN_SETS as usize];
        let address = |source: u32| [0, 0, 0xffff_0000, source.to_be()];
        for source in 0..8192 {
            let (set, tag) = place(&address(source), seed);
            let way = way_of(&sets[set as usize], tag, NOW);
            sets[set as usize][way] = word(tag, NOW);
        }
        let known = |source: &u32| {
            let (set, tag) = place(&address(*source), seed);
            sets[set as usize].iter().any(|word| holds(*word, tag, NOW))
        };
        let held = (0..8192).filter(known).count();
        assert!(held > 7500, "{held} of 8192 are still known");
        assert_eq!((8192..200_000).filter(known).count(), 0, "nobody is known by the hash of another");
    }
}
