//! Clients that completed a handshake, by a hash of their network and the time of the last one: limits of half-open
//! attempts exempt them.
//!
//! A client is an IPv4 address or an IPv6 /64: who has one address of a /64 has all 2^64 of them. So a /24 and a /56
//! have 256 clients each, and hold 256 of the 16,384 places at most (1.6 %), whatever they send.
//!
//! A set has four words, each of 28 bits of tag, 12 bits of the client's surroundings (its /24, or its /48) and 24 of
//! time; 0 = empty. One store writes a client, so no lock is needed, and of two that write the same word at once one is
//! forgotten. A set that is full gives up a client of the newcomer's own surroundings first, so that surroundings of
//! any size push out one client of others in each set at most; else the one not seen for longest. Another client is
//! taken for a known one with a probability of 2^-26, under keys that nobody outside knows.

use crate::hash::hash_words;

/// Words of a set.
pub const KNOWN_WAYS: usize = 4;
/// Sets, a power of two: 16,384 clients.
pub const KNOWN_SETS: u32 = 1 << 12;
/// How long a completed handshake exempts its client from limits of half-open attempts, ns: 10 minutes, and at most two
/// ticks of [`KNOWN_TICK_NS`] more.
pub const KNOWN_NS: u64 = 600 * 1_000_000_000;
/// Unit of the time that a word holds, ns.
pub const KNOWN_TICK_NS: u64 = 1 << SHIFT;
/// A set.
pub type KnownSet = [u64; KNOWN_WAYS];

/// Ticks of 2^30 ns. 24 bits hold 208 days of them: a word that nobody replaced for so long holds again for ten
/// minutes.
const SHIFT: u32 = 30;
const TICK_BITS: u32 = 24;
const TICK_MASK: u32 = (1 << TICK_BITS) - 1;
const AROUND_BITS: u32 = 12;
const TAG_BITS: u32 = 64 - TICK_BITS - AROUND_BITS;
/// Keys that one hash of an address takes.
const KEYS: usize = 5;
/// Where the keys of the third hash begin: the last five that there are.
const LAST_KEYS: usize = crate::hash::SEED_WORDS - KEYS;

const fn tick(now_ns: u64) -> u32 {
    (now_ns >> SHIFT) as u32 & TICK_MASK
}

/// Where a client is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Number of its set.
    pub set: u32,
    /// What tells it from the others of its set; never 0.
    pub tag: u32,
    /// The same for its surroundings; other surroundings may have the same.
    pub around: u32,
}

/// The place of a client with this address ([`super::mapped`]). `seed`: see [`crate::hash::hash`].
#[inline(always)]
pub fn place(address: &[u32; 4], seed: impl Fn(usize) -> u64) -> Place {
    let [a, b, c, d] = *address;
    let v4 = a | b == 0 && c == 0xffffu32.to_be();
    // Masks and not two ways: the verifier would walk what follows for each.
    let low = if v4 { u32::MAX } else { 0 };
    let client = [a, b, c & low, d & low];
    let around = [a, b & (0xffff_0000u32.to_be() | low), c & low, d & 0xffff_ff00u32.to_be() & low];
    let set = hash_words(&client, |position| seed(KEYS + position)) & (KNOWN_SETS - 1);
    let tag = hash_words(&client, &seed) >> (32 - TAG_BITS);
    let around = hash_words(&around, |position| seed(LAST_KEYS + position)) >> (32 - AROUND_BITS);
    Place { set, tag: if tag == 0 { 1 } else { tag }, around }
}

/// The word of a client that completed a handshake at `now_ns`.
#[inline(always)]
pub const fn word(place: Place, now_ns: u64) -> u64 {
    (place.tag as u64) << (TICK_BITS + AROUND_BITS) | (place.around as u64) << TICK_BITS | tick(now_ns) as u64
}

/// Ticks since the handshake of a word. It may be of a moment after `now_ns`: another CPU wrote it.
#[inline(always)]
const fn age(word: u64, now_ns: u64) -> u32 {
    let age = tick(now_ns).wrapping_sub(word as u32) & TICK_MASK;
    if age == TICK_MASK { 0 } else { age }
}

/// Whether a handshake of so many ticks ago still exempts.
#[inline(always)]
const fn is_recent(age: u32) -> bool {
    age <= (KNOWN_NS >> SHIFT) as u32 + 1
}

#[inline(always)]
const fn tag_in(word: u64) -> u32 {
    (word >> (TICK_BITS + AROUND_BITS)) as u32
}

/// Whether a word says that the client of this place is known at `now_ns`.
#[inline(always)]
pub const fn holds(word: u64, place: Place, now_ns: u64) -> bool {
    tag_in(word) == place.tag && is_recent(age(word, now_ns))
}

/// The word that a client takes: its own, else one that is empty or holds no more, else that of the client of the same
/// surroundings not seen for longest, else that of the client not seen for longest.
#[inline(always)]
pub fn way_of(set: &KnownSet, place: Place, now_ns: u64) -> usize {
    const OWN: u32 = u32::MAX;
    const FREE: u32 = OWN - 1;
    let (mut found, mut most) = (0, 0);
    let mut way = 0;
    while way < KNOWN_WAYS {
        let word = set[way];
        let age = age(word, now_ns);
        let near = (word >> TICK_BITS) as u32 & ((1 << AROUND_BITS) - 1) == place.around;
        let rank = if word != 0 && tag_in(word) == place.tag {
            OWN
        } else if word == 0 || !is_recent(age) {
            FREE
        } else {
            (near as u32) << TICK_BITS | (age + 1)
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

    fn v4(address: u32) -> Place {
        place(&[0, 0, 0xffffu32.to_be(), address.to_be()], seed)
    }

    fn v6(network: u64, host: u64) -> Place {
        let words = [network >> 32, network, host >> 32, host];
        place(&words.map(|word| (word as u32).to_be()), seed)
    }

    /// All sets, as the programs keep them.
    struct Memory(Vec<KnownSet>);

    impl Memory {
        fn new() -> Memory {
            Memory(vec![KnownSet::default(); KNOWN_SETS as usize])
        }

        fn note(&mut self, place: Place, now_ns: u64) {
            let set = &mut self.0[place.set as usize];
            set[way_of(set, place, now_ns)] = word(place, now_ns);
        }

        fn knows(&self, place: Place, now_ns: u64) -> bool {
            self.0[place.set as usize].iter().any(|word| holds(*word, place, now_ns))
        }

        fn held(&self) -> usize {
            self.0.iter().flatten().filter(|word| **word != 0).count()
        }
    }

    #[test]
    fn is_known_for_ten_minutes() {
        let place = v4(7);
        let word = word(place, NOW);
        assert!(holds(word, place, NOW - KNOWN_TICK_NS), "noted by a CPU whose clock was read later");
        assert!(holds(word, place, NOW + KNOWN_NS) && !holds(word, place, NOW + KNOWN_NS + 2 * KNOWN_TICK_NS));
        assert!(!holds(word, Place { tag: place.tag ^ 1, ..place }, NOW));
        assert!(!holds(0, place, NOW) && !holds(0, place, 1), "an empty word is nobody's");
    }

    #[test]
    fn the_oldest_of_a_full_set_goes() {
        let place = |tag: u32| Place { set: 0, tag, around: tag };
        let mut set = KnownSet::default();
        for (number, tag) in [5, 6, 7, 8, 6].into_iter().enumerate() {
            let now_ns = NOW + number as u64 * KNOWN_TICK_NS;
            set[way_of(&set, place(tag), now_ns)] = word(place(tag), now_ns);
        }
        let later = NOW + 9 * KNOWN_TICK_NS;
        let has = |set: &KnownSet, tag: u32| set.iter().any(|word| holds(*word, place(tag), later));
        assert!([5, 6, 7, 8].iter().all(|tag| has(&set, *tag)));
        set[way_of(&set, place(9), later)] = word(place(9), later);
        assert!(!has(&set, 5), "{set:x?}");
        set[way_of(&set, place(10), later)] = word(place(10), later);
        assert!(!has(&set, 7) && has(&set, 6), "{set:x?}");
    }

    /// As many clients as there is room for, most of them in places of their own.
    #[test]
    fn clients_spread_over_the_sets() {
        let mut memory = Memory::new();
        // Each of another /24.
        (0..8192).for_each(|client| memory.note(v4(client << 8), NOW));
        let held = (0..8192).filter(|client| memory.knows(v4(client << 8), NOW)).count();
        assert!(held > 7500, "{held} of 8192 are still known");
        let strangers = (8192..200_000).filter(|client| memory.knows(v4(client << 8), NOW)).count();
        assert_eq!(strangers, 0, "nobody is known by the hash of another");
    }

    /// 40 clients of ten networks, and then one network that does what it can.
    fn known_beside(attack: impl Iterator<Item = Place>) -> usize {
        let mut memory = Memory::new();
        let clients: Vec<Place> = (0..40).map(|client| v4(0xc612_0000 + (client % 10) * 256 + client)).collect();
        clients.iter().for_each(|client| memory.note(*client, NOW));
        let before = memory.held();
        attack.enumerate().for_each(|(number, place)| memory.note(place, NOW + 1 + number as u64 * 250_000));
        assert!(memory.held() - before <= 256, "{} places for one network", memory.held() - before);
        clients.iter().filter(|client| memory.knows(**client, NOW)).count()
    }

    #[test]
    fn one_network_holds_few_places_and_pushes_nobody_out() {
        let network = 0x2001_0db8_0066_0000;
        let host = known_beside((0..40_000).map(|number| v6(network, number)));
        let wide = known_beside((0..40_000).map(|number| v6(network | (number & 0xff), number)));
        let v4s = known_beside((0..40_000).map(|number| v4(0xc612_4200 | (number & 0xff))));
        assert_eq!([host, wide, v4s], [40; 3], "one /64, one /56, one /24");
        assert_eq!(v6(network, 1), v6(network, 2), "a /64 is one client");
        assert_ne!(v6(network, 1), v6(network | 1, 1));
    }

    /// However many networks of one /48 come, a full set loses one client of others.
    #[test]
    fn a_48_takes_one_place_of_a_full_set() {
        let mut memory = Memory::new();
        let clients: Vec<Place> = (0..200_000).map(|client| v4(client << 8)).collect();
        clients.iter().for_each(|client| memory.note(*client, NOW));
        assert_eq!(memory.held(), KNOWN_SETS as usize * KNOWN_WAYS, "full");
        let known = |memory: &Memory| clients.iter().filter(|client| memory.knows(**client, NOW)).count();
        let before = known(&memory);
        (0..65_536).for_each(|number| memory.note(v6(0x2001_0db8_0066_0000 | number, 1), NOW + KNOWN_TICK_NS));
        let lost = before - known(&memory);
        assert!(lost <= KNOWN_SETS as usize, "{lost} of {before}");
    }
}
