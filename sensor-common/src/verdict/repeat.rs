//! SYNs that were dropped and may come again: over a limit of half-open attempts, a client is asked to repeat itself.
//!
//! A host that gets no answer to its SYN sends the same one again after 1 s (RFC 6298 §2), with the same ports and the
//! same sequence number. Who makes up source addresses does not: a SYN that comes twice, [`REPEAT_FROM_NS`] to
//! [`REPEAT_UNTIL_NS`] apart, passes. (An attacker who repeats each SYN passes as well, with half of what it sends.)
//!
//! A hash-indexed memory of words of 20 bits of fingerprint and 12 of time, 0 = empty, four to a set. One store writes
//! a word, so no lock is needed. A word is lost when four more SYNs fall into its set before it comes again: of first
//! repeats, at 20,000 dropped SYNs a second fewer than one in a thousand, at 100,000 one in twelve. A SYN is taken for
//! a repetition by chance with a probability of 2^-18, under keys that nobody outside knows.

use crate::hash::hash_words;

/// Words of a set.
pub const REPEAT_WAYS: usize = 4;
/// Sets, a power of two: 262,144 SYNs, 1 MiB.
pub const REPEAT_SETS: u32 = 1 << 16;
/// A set.
pub type RepeatSet = [u32; REPEAT_WAYS];

/// Shortest time between a SYN and its repetition, ns: half of the shortest that RFC 6298 allows.
pub const REPEAT_FROM_NS: u64 = 500_000_000;
/// Longest, ns: the first three repetitions come 1, 2 and 4 s apart, the fourth 8 s.
pub const REPEAT_UNTIL_NS: u64 = 10_000_000_000;

/// Ticks of 2^26 ns; 12 bits hold 275 s of them.
const SHIFT: u32 = 26;
const TICK_BITS: u32 = 12;
const TICK_MASK: u32 = (1 << TICK_BITS) - 1;
/// Whole ticks that are within the time for certain.
const FROM: u32 = (REPEAT_FROM_NS >> SHIFT) as u32;
const UNTIL: u32 = (REPEAT_UNTIL_NS >> SHIFT) as u32 + 1;
/// Keys that one hash of a SYN takes.
const KEYS: usize = 4;

/// The set and the fingerprint of a SYN. `flow`: the hash of its flow's key ([`crate::hash::hash()`]). `seed`: as
/// there.
#[inline(always)]
pub fn place(flow: u32, from_low: bool, sequence: u32, seed: impl Fn(usize) -> u64) -> (u32, u32) {
    let words = [flow, sequence, from_low as u32];
    let set = hash_words(&words, |position| seed(KEYS + position)) & (REPEAT_SETS - 1);
    let fingerprint = hash_words(&words, &seed) >> TICK_BITS;
    (set, if fingerprint == 0 { 1 } else { fingerprint })
}

/// What is known of a SYN that is over a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heard {
    /// The same one was dropped not long ago: it passes.
    Repeated,
    /// It was not: once it is dropped, this word of the set is to hold this.
    New {
        /// Number of the word.
        way: usize,
        /// What it holds then.
        word: u32,
    },
}

/// Whether a SYN repeats one that is in its set.
#[inline(always)]
pub fn hear(set: &RepeatSet, fingerprint: u32, now_ns: u64) -> Heard {
    let now = (now_ns >> SHIFT) as u32 & TICK_MASK;
    let (mut found, mut most) = (0, 0);
    let mut word = fingerprint << TICK_BITS | now;
    let mut repeated = false;
    let mut way = 0;
    while way < REPEAT_WAYS {
        let old = set[way];
        let age = now.wrapping_sub(old) & TICK_MASK;
        // Another CPU may have written it a moment after `now_ns`.
        let age = if age == TICK_MASK { 0 } else { age };
        let same = old >> TICK_BITS == fingerprint;
        repeated |= same && (FROM..=UNTIL).contains(&age);
        let rank = if same {
            // Too early: the time of the first one stays. Too late: it is the first one again.
            word = if age < FROM { old } else { word };
            u32::MAX
        } else if old == 0 || age > UNTIL {
            u32::MAX - 1
        } else {
            age + 1
        };
        if rank > most {
            (found, most) = (way, rank);
        }
        way += 1;
    }
    if repeated { Heard::Repeated } else { Heard::New { way: found, word } }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND_NS: u64 = 1_000_000_000;
    const NOW: u64 = 50_000 * SECOND_NS;

    fn seed(position: usize) -> u64 {
        0x9e37_79b9_7f4a_7c15u64.wrapping_mul(position as u64 * 2 + 1)
    }

    struct Memory(Vec<RepeatSet>);

    impl Memory {
        fn new() -> Memory {
            Memory(vec![RepeatSet::default(); REPEAT_SETS as usize])
        }

        /// A SYN over the limit: whether it passes.
        fn syn(&mut self, flow: u32, sequence: u32, now_ns: u64) -> bool {
            let (number, fingerprint) = place(flow, false, sequence, seed);
            let set = &mut self.0[number as usize];
            match hear(set, fingerprint, now_ns) {
                Heard::Repeated => true,
                Heard::New { way, word } => {
                    set[way] = word;
                    false
                }
            }
        }
    }

    #[test]
    fn the_same_syn_passes_when_it_comes_again_in_time() {
        // What a client sends that gets no answer: after 1, 3, 7 and 15 s (RFC 6298), or each second (Linux from 6.5
        // on).
        for times in [[1, 3, 7, 15], [1, 2, 3, 4]] {
            let mut memory = Memory::new();
            assert!(!memory.syn(1, 2, NOW));
            assert!(times.iter().all(|second| {
                let passes = memory.syn(1, 2, NOW + second * SECOND_NS);
                passes || *second == 15
            }));
        }
        let mut memory = Memory::new();
        assert!(!memory.syn(1, 2, NOW));
        assert!(!memory.syn(1, 3, NOW + SECOND_NS), "another sequence number");
        assert!(!memory.syn(2, 2, NOW + SECOND_NS), "another flow");
        assert!(memory.syn(1, 2, NOW + SECOND_NS / 2 + (1 << SHIFT)));
        let (set, fingerprint) = place(1, true, 2, seed);
        assert_ne!(Heard::Repeated, hear(&memory.0[set as usize], fingerprint, NOW + SECOND_NS), "the other direction");
    }

    #[test]
    fn too_early_is_dropped_and_does_not_begin_anew_and_too_late_does() {
        let mut memory = Memory::new();
        assert!(!memory.syn(1, 2, NOW));
        for tenth in 1..=4 {
            assert!(!memory.syn(1, 2, NOW + tenth * SECOND_NS / 10), "{tenth}");
        }
        assert!(memory.syn(1, 2, NOW + SECOND_NS), "the time since the first counts");
        let late = NOW + REPEAT_UNTIL_NS + (3 << SHIFT);
        assert!(!memory.syn(1, 2, late));
        assert!(memory.syn(1, 2, late + SECOND_NS));
    }

    /// At least 90 % of first repeats are known at 20,000 SYNs a second, and next to no made-up SYN passes.
    #[test]
    fn a_flood_does_not_wash_out_who_comes_again() {
        for (rate, least) in [(20_000u32, 995), (100_000, 900)] {
            let mut memory = Memory::new();
            let (mut repeats, mut forged) = (0, 0);
            // Three seconds of made-up SYNs; a thousand clients in the second one, each again after 1 s.
            for number in 0..3 * rate {
                let now_ns = NOW + u64::from(number) * SECOND_NS / u64::from(rate);
                forged += u32::from(memory.syn(number.wrapping_mul(0x9e37_79b1), number, now_ns));
                let client = number % rate;
                if client.is_multiple_of(rate / 1000) && number >= rate {
                    let passes = memory.syn(client, 77, now_ns);
                    repeats += u32::from(passes && number >= 2 * rate);
                }
            }
            assert!(repeats >= least, "{rate}/s: {repeats} of 1000");
            assert!(forged <= 10, "{rate}/s: {forged} made-up SYNs of {} pass", 3 * rate);
            println!("{rate} SYNs/s: {repeats} of 1000 first repeats are known, {forged} made-up SYNs pass");
        }
    }
}
