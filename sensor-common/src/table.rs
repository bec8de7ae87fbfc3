//! Geometry of the flow table: buckets, ways, ticks, stages, and which way a new flow may take.
//!
//! Bucket `b`, way `w` describes record `b · WAYS + w`. A bucket is one cache line, and the agent's scan and the
//! kernel's look-up read nothing else to find what they want.

use bytemuck::{Pod, Zeroable};

/// Ways of a bucket.
pub const WAYS: usize = 8;
/// Smallest and largest number of buckets that can be configured (a power of two): 8,192 to 1,048,576 flows.
pub const MIN_BUCKETS: u32 = 1 << 10;
/// See [`MIN_BUCKETS`].
pub const MAX_BUCKETS: u32 = 1 << 17;
/// Bytes of the ring through which records that are given up reach the agent.
pub const EVICTED_BYTES: u32 = 1 << 20;
/// Last-seen ticks are 2^26 ns (67 ms) and wrap after 73 minutes.
pub const TICK_SHIFT: u32 = 26;

/// Stage byte: the bit length of the flow's packet count (1, 2–3, 4–7, 8–15 … packets are 1, 2, 3, 4 …).
pub const STAGE_MASK: u8 = 0x3f;
/// A stage up to here, 2 to 3 packets, is no history yet.
const NO_HISTORY: u8 = 2;
/// Stage byte: packets of the flow are being dropped, so an insert does not take this way while they come.
pub const STAGE_HELD: u8 = 0x40;
/// Stage byte: TCP closed the flow.
pub const STAGE_CLOSED: u8 = 0x80;

/// One cache line of the index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C, align(64))]
pub struct Bucket {
    /// Hash of the flow in each way, 0 = free.
    pub tags: [u32; WAYS],
    /// Tick of each way's last packet (wraps).
    pub seen: [u16; WAYS],
    /// Stage byte of each way.
    pub stages: [u8; WAYS],
    /// Sequence lock ([`crate::lock`]) of the giving away of ways.
    pub lock: u32,
    /// Bit n: the initiator of the flow in way n is the key's high endpoint. A hint: where it is wrong, the programs
    /// wait for memory a little longer.
    pub high: u32,
}

const _: () = assert!(size_of::<Bucket>() == 64);

impl Bucket {
    /// Writes the hint on who began the flow in `way`.
    #[inline(always)]
    pub fn set_high(&mut self, way: usize, high: bool) {
        let bit = 1 << (way & (WAYS - 1));
        self.high = if high { self.high | bit } else { self.high & !bit };
    }
}

/// The bucket of a hash. `buckets` is a power of two.
#[inline(always)]
pub const fn bucket_of(hash: u32, buckets: u32) -> u32 {
    hash & (buckets - 1)
}

/// The tag of a hash: itself, but never the "free" mark.
#[inline(always)]
pub const fn tag_of(hash: u32) -> u32 {
    if hash == 0 { 1 } else { hash }
}

/// The tick of a monotonic time.
#[inline(always)]
pub const fn tick_of(now_ns: u64) -> u16 {
    (now_ns >> TICK_SHIFT) as u16
}

/// How many ways of a bucket hold a flow.
#[inline(always)]
pub fn occupied_ways(tags: &[u32; WAYS]) -> u32 {
    // Without a branch per way: a tag that is not 0 borrows.
    let held = |tag: u32| 0u64.wrapping_sub(tag as u64) >> 63;
    let [a, b, c, d, e, f, g, h] = *tags;
    (held(a) + held(b) + held(c) + held(d) + held(e) + held(f) + held(g) + held(h)) as u32
}

/// Ticks that a packet may be ahead of whoever looks, because the looker read its clock before: 275 s. Timeouts end at
/// 60 of the 73 minutes that ticks can tell apart, so no idle time is mistaken for it.
const AHEAD: u16 = 4096;

/// Ticks since a way's last packet, as seen at tick `now`.
#[inline(always)]
pub const fn idle_of(now: u16, seen: u16) -> u16 {
    let idle = now.wrapping_sub(seen);
    if idle > u16::MAX - AHEAD { 0 } else { idle }
}

/// The stage of a packet count: its bit length, and whether the flow is closed.
#[inline(always)]
pub fn stage_of(packets: u64, closed: bool) -> u8 {
    // A binary search over the length: the BPF instruction set has no count-leading-zeros.
    let mut value = packets;
    let mut length = 0u8;
    if value >> 32 != 0 {
        value >>= 32;
        length += 32;
    }
    if value >> 16 != 0 {
        value >>= 16;
        length += 16;
    }
    if value >> 8 != 0 {
        value >>= 8;
        length += 8;
    }
    if value >> 4 != 0 {
        value >>= 4;
        length += 4;
    }
    if value >> 2 != 0 {
        value >>= 2;
        length += 2;
    }
    if value >> 1 != 0 {
        value >>= 1;
        length += 1;
    }
    length += value as u8;
    length.min(STAGE_MASK) | if closed { STAGE_CLOSED } else { 0 }
}

/// How willingly a way is given up for a new flow: 0 = not at all, else larger is sooner.
///
/// Free ways first, then closed flows, then flows of at most [`NO_HISTORY`] packets, then flows that have been idle for
/// `idle_ticks`; within a class the one idle longest. Active flows with history, or held by a verdict, are never given
/// up: a flood of attempts (a SYN and the answer to it are two packets) can push out only itself.
#[inline(always)]
pub fn eviction_rank(tag: u32, stage: u8, seen: u16, now: u16, idle_ticks: u32) -> u32 {
    if tag == 0 {
        return 4 << 16;
    }
    let idle = idle_of(now, seen) as u32;
    if stage & STAGE_HELD == 0 {
        if stage & STAGE_CLOSED != 0 {
            return 3 << 16 | idle;
        }
        if stage & STAGE_MASK <= NO_HISTORY {
            return 2 << 16 | idle;
        }
    }
    if idle >= idle_ticks { 1 << 16 | idle } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stage_is_the_bit_length() {
        for packets in [0u64, 1, 2, 3, 4, 7, 8, 63, 64, 65_535, 65_536, u32::MAX as u64, 1 << 40] {
            assert_eq!(stage_of(packets, false), (64 - packets.leading_zeros()) as u8, "{packets}");
        }
        assert_eq!(stage_of(u64::MAX, true), 63 | STAGE_CLOSED);
    }

    #[test]
    fn occupied_ways_are_counted() {
        assert_eq!(occupied_ways(&[0; WAYS]), 0);
        assert_eq!(occupied_ways(&[0, 1, u32::MAX, 0, 1 << 31, 0, 0, 7]), 4);
    }

    #[test]
    fn history_survives_a_flood() {
        let now = 10_000;
        let rank = |tag, stage, seen| eviction_rank(tag, stage, seen, now, 150);
        assert!(rank(0, 0, 0) > rank(9, STAGE_CLOSED | 5, now - 149));
        assert!(rank(9, STAGE_CLOSED | 5, now) > rank(9, 1, now - 5_000));
        assert!(rank(9, 1, now - 10) > rank(9, 1, now));
        assert!(rank(9, 1, now) > rank(9, 4, now - 200));
        assert_eq!(rank(9, 4, now - 149), 0, "an active flow with history is never evicted");
        assert_eq!(rank(9, 1 | STAGE_HELD, now - 149), 0, "nor one under a verdict");
        assert_eq!(rank(9, 4, now + 1), 0, "nor one whose packet was stamped by a CPU that is ahead");
        assert!(rank(9, 1 | STAGE_HELD, now - 150) > 0, "but a verdict without packets holds no way");
        assert!(rank(9, 1, now.wrapping_sub(40_000)) > 0, "ticks wrap");
    }
}
