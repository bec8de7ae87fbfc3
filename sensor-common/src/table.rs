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

/// Stage byte: the bit length of the flow's packet count (1, 2–3, 4–7, 8–15 … packets are 1, 2, 3, 4 …), at most 31.
pub const STAGE_MASK: u8 = 0x1f;
/// Stage byte: packets of the flow are being dropped, so an insert does not take this way while they come.
pub const STAGE_HELD: u8 = 0x40;
/// Stage byte: what the flow has shown so far, one of [`phase`].
pub const STAGE_PHASE: u8 = 0xa0;
/// Largest stage, 2 to 3 packets, that is no history yet.
const NO_HISTORY: u8 = 2;
/// Largest stage, 8 to 15 packets, of a young flow.
const YOUNG: u8 = 4;

/// Values of a stage byte under [`STAGE_PHASE`]: how much it would harm to give the flow up.
pub mod phase {
    /// Nothing shows that there are two ends: one direction alone, or a TCP handshake that its initiator has not
    /// proven.
    pub const ONE_SIDED: u8 = 0;
    /// Both directions have packets.
    pub const ANSWERED: u8 = 0x20;
    /// TCP closed the flow.
    pub const CLOSED: u8 = 0x80;
    /// A TCP connection of two ends that receive what the other sends, and neither has begun to close it.
    pub const ESTABLISHED: u8 = 0xa0;
}

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

/// Ticks that a packet may be ahead of whoever looks, because the looker read its clock before: 275 s.
const AHEAD: u16 = 4096;

/// Idle time, in ticks, that the index shows of a way that is idle for longer: the longest timeout that is compared
/// with ticks, 60 minutes, and two ticks.
pub const AGED: u16 = (3_600_000_000_000u64 >> TICK_SHIFT) as u16 + 2;
/// Idle time, in ticks, from which on the agent writes [`AGED`] into the index. 16 bits tell 73 minutes apart: without
/// that, a way that is idle for longer would look as if its flow had just sent. What lies between is how often it is
/// written (4 minutes), what lies behind, up to the wrap, how late the agent may be (4 minutes).
pub const STALE: u16 = AGED + 3_700;

const _: () = assert!(STALE < u16::MAX - AHEAD - 3_700);

/// Ticks since a way's last packet, as seen at tick `now`.
#[inline(always)]
pub const fn idle_of(now: u16, seen: u16) -> u16 {
    let idle = now.wrapping_sub(seen);
    if idle > u16::MAX - AHEAD { 0 } else { idle }
}

/// The tick to be shown at tick `now` of a way that has been idle for `idle_ticks`, which may be more than a tick can
/// tell.
pub const fn shown_tick(now: u16, idle_ticks: u64) -> u16 {
    now.wrapping_sub(if idle_ticks > AGED as u64 { AGED } else { idle_ticks as u16 })
}

/// The number of bits of a packet count.
#[inline(always)]
pub fn bit_length(packets: u64) -> u8 {
    // A binary search: the BPF instruction set has no count-leading-zeros.
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
    length + value as u8
}

/// The stage of a packet count, and one of [`phase`].
#[inline(always)]
pub fn stage_of(packets: u64, phase: u8) -> u8 {
    bit_length(packets).min(STAGE_MASK) | phase
}

/// What a packet that begins a flow finds in a way of its bucket, beside tag and stage.
#[derive(Clone, Copy, Debug)]
pub struct Pressure {
    /// Ticks since the way's last packet.
    pub idle: u32,
    /// Idle time, in ticks, after which a flow with history may be given up.
    pub evict_idle: u32,
    /// The network that the way's flow came from holds more than half of the ways ([`Votes`]).
    pub crowds: bool,
    /// The packet opens a TCP connection.
    pub opens: bool,
}

/// How willingly a way is given up for a new flow: 0 = not at all, else larger is sooner. In the order of harm:
///
/// 1. free ways and closed flows;
/// 2. one-sided flows below 16 packets, and those that are idle: what anybody can forge goes before what two ends have
///    built, and a flood of it pushes out itself. Those with one packet do not go before those with more, or a handshake
///    would go before the flood around it;
/// 3. one-sided flows that go on: a log or a stream that nobody answers;
/// 4. flows of at most 3 packets: a look-up and its answer, a connection that nothing was sent on;
/// 5. flows that have been idle for `evict_idle`: they are known again by their next packet;
/// 6. active flows without a handshake, below 16 packets: a forged datagram gets an answer, too;
/// 7. active connections below 16 packets of a network that crowds the bucket, for the first segment of another
///    connection only: what comes back of a flow that was given up must not push out the next.
///
/// All other active flows, and those that a verdict of drop holds, are never given up. Within each, the ways of a
/// network that crowds the bucket go first, then the one idle longest.
#[inline(always)]
pub fn eviction_rank(tag: u32, stage: u8, pressure: Pressure) -> u32 {
    let Pressure { idle, evict_idle, crowds, opens } = pressure;
    if tag == 0 {
        return 8 << CLASS_SHIFT;
    }
    let (length, is_idle) = (stage & STAGE_MASK, idle >= evict_idle);
    let class = if stage & STAGE_HELD != 0 {
        if is_idle { 3 } else { 0 }
    } else {
        match stage & STAGE_PHASE {
            phase::CLOSED => 7,
            phase::ONE_SIDED if length > YOUNG && !is_idle => 5,
            phase::ONE_SIDED => 6,
            _ if length <= NO_HISTORY => 4,
            _ if is_idle => 3,
            _ if length > YOUNG => 0,
            phase::ANSWERED => 2,
            _ if crowds && opens => 1,
            _ => 0,
        }
    };
    if class == 0 { 0 } else { class << CLASS_SHIFT | (crowds as u32) << IDLE_BITS | idle.min((1 << IDLE_BITS) - 1) }
}

/// Bits of a rank that hold the idle time; above them is one for the crowd, and the class.
const IDLE_BITS: u32 = 17;
const CLASS_SHIFT: u32 = IDLE_BITS + 1;

/// Whether a rank is that of a free way or a closed flow, which nobody else's presence in the bucket changes.
#[inline(always)]
pub const fn is_spare(rank: u32) -> bool {
    rank >= 7 << CLASS_SHIFT
}

/// The network of an address, words as in [`crate::flow::FlowKey`]: its first 24 bits of IPv4, 56 of IPv6.
#[inline(always)]
pub const fn network_of(address: [u32; 2], family: u8) -> u64 {
    let [first, second] = address;
    if family == 4 {
        (first & 0xffff_ff00) as u64 | 4
    } else {
        (first as u64) << 32 | (second & 0xffff_ff00) as u64 | 6
    }
}

/// Which network holds more than half of the ways, if one does: a vote on each bit, in counters of four bits that lie
/// across four words. Without a branch and an array: the one would double what the verifier walks, for the other there
/// is no stack.
#[derive(Clone, Copy, Debug, Default)]
pub struct Votes([u64; 4]);

impl Votes {
    /// The network of one more way.
    #[inline(always)]
    pub fn add(&mut self, network: u64) {
        let [ones, twos, fours, eights] = &mut self.0;
        let carry = *ones & network;
        *ones ^= network;
        let next = *twos & carry;
        *twos ^= carry;
        let last = *fours & next;
        *fours ^= next;
        *eights ^= last;
    }

    /// After [`WAYS`] votes: the network that more than half were for. If none has so many, it is another word.
    #[inline(always)]
    pub fn leader(&self) -> u64 {
        let [ones, twos, fours, eights] = self.0;
        eights | fours & (twos | ones)
    }
}

const _: () = assert!(WAYS == 8, "five of eight is more than half");

/// Bit n of `ways`: way n belongs to the [leader](Votes::leader). The same, if these are more than half of the ways;
/// else 0.
#[inline(always)]
pub fn crowd_of(ways: u64) -> u64 {
    let held = (0..WAYS).fold(0, |sum, way| sum + (ways >> way & 1));
    ways & (((WAYS as u64 / 2).wrapping_sub(held) >> 63) & 1).wrapping_neg()
}

/// 1 if both are the same, else 0; without a branch.
#[inline(always)]
pub const fn is_same(one: u64, other: u64) -> u64 {
    let differ = one ^ other;
    ((differ | differ.wrapping_neg()) >> 63) ^ 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stage_is_the_bit_length() {
        for packets in [0u64, 1, 2, 3, 4, 7, 8, 63, 64, 65_535, 65_536, 1 << 30] {
            assert_eq!(stage_of(packets, 0), (64 - packets.leading_zeros()) as u8, "{packets}");
            assert_eq!(bit_length(packets), (64 - packets.leading_zeros()) as u8, "{packets}");
        }
        assert_eq!(bit_length(u64::MAX), 64);
        assert_eq!(stage_of(u64::MAX, phase::CLOSED), 31 | phase::CLOSED);
    }

    #[test]
    fn occupied_ways_are_counted() {
        assert_eq!(occupied_ways(&[0; WAYS]), 0);
        assert_eq!(occupied_ways(&[0, 1, u32::MAX, 0, 1 << 31, 0, 0, 7]), 4);
    }

    const EVICT_IDLE: u32 = 150;

    fn rank(stage: u8, idle: u32) -> u32 {
        eviction_rank(9, stage, Pressure { idle, evict_idle: EVICT_IDLE, crowds: false, opens: true })
    }

    fn crowding(stage: u8, idle: u32, opens: bool) -> u32 {
        eviction_rank(9, stage, Pressure { idle, evict_idle: EVICT_IDLE, crowds: true, opens })
    }

    #[test]
    fn flows_are_given_up_in_the_order_of_harm() {
        use phase::{ANSWERED, CLOSED, ESTABLISHED, ONE_SIDED};
        let free = eviction_rank(0, 0, Pressure { idle: 0, evict_idle: EVICT_IDLE, crowds: false, opens: false });
        let order = [
            (free, "a free way"),
            (rank(20 | CLOSED, 0), "a closed flow"),
            (rank(3 | ONE_SIDED, 100), "a one-sided flow, the longer idle"),
            (rank(1 | ONE_SIDED, 50), "a one-sided flow of one packet"),
            (rank(4 | ONE_SIDED, 0), "a one-sided flow that has just sent"),
            (rank(5 | ONE_SIDED, 149), "a stream that nobody answers"),
            (rank(2 | ANSWERED, 149), "a question and its answer"),
            (rank(2 | ESTABLISHED, 0), "a connection on which nothing was sent"),
            (rank(9 | ESTABLISHED, 50_000), "a connection that pauses for an hour"),
            (rank(9 | ANSWERED, 150), "a flow that pauses"),
            (rank(4 | ANSWERED, 149), "a young flow without a handshake"),
            (crowding(4 | ESTABLISHED, 149, true), "a young connection of a crowd"),
        ];
        for pair in order.windows(2) {
            assert!(pair[0].0 > pair[1].0, "{} goes before {}", pair[0].1, pair[1].1);
        }
        for (never, what) in [
            (rank(4 | ESTABLISHED, 149), "an active connection"),
            (rank(5 | ANSWERED, 149), "an active flow with history"),
            (crowding(5 | ESTABLISHED, 149, true), "a connection with history, of whatever network"),
            (crowding(3 | ESTABLISHED, 149, false), "a young connection, for what comes back"),
            (rank(1 | STAGE_HELD, 149), "a flow that is being dropped"),
            (rank(9 | CLOSED | STAGE_HELD, 149), "a flow that is being dropped"),
        ] {
            assert_eq!(never, 0, "{what} is never given up");
        }
        assert!(rank(5 | ONE_SIDED, 150) > rank(1 | ONE_SIDED, 149), "a stream that has ended is none");
        assert!(rank(1 | STAGE_HELD, 150) > 0, "but a verdict without packets holds no way");
        assert!(crowding(3, 10, false) > rank(3, 149), "of equals, those of the network with most ways go first");
        assert!(rank(3, u32::MAX) < rank(1 | CLOSED, 0), "idle time does not reach into the class");
    }

    #[test]
    fn the_network_with_more_than_half_of_the_ways_is_found() {
        let v4 = |last: u32| network_of([0xc612_0000 | last, 0], 4);
        let v6 = |second: u32| network_of([0x2001_0db8, second], 6);
        assert_eq!(v4(1), v4(255));
        assert_ne!(v4(1), v4(256));
        assert_eq!((v6(0x100) == v6(0x1ff), v6(0x100) == v6(0x200)), (true, false), "/56");
        assert_ne!(network_of([0xc612_0000, 0], 4), network_of([0, 0xc612_0000], 6));
        for pattern in 0u32..1 << WAYS {
            let network = |way: usize| if pattern >> way & 1 == 1 { v6(0x5a00) } else { v4(way as u32 * 777) };
            let mut votes = Votes::default();
            (0..WAYS).for_each(|way| votes.add(network(way)));
            let ways = crowd_of((0..WAYS).fold(0, |ways, way| ways | is_same(network(way), votes.leader()) << way));
            let expected = if pattern.count_ones() as usize > WAYS / 2 { u64::from(pattern) } else { 0 };
            assert_eq!(ways, expected, "{pattern:08b}");
        }
    }

    /// A way that is idle for eight days, under an agent that looks each second, and one that is four minutes late at
    /// the worst moment.
    #[test]
    fn a_flow_idle_for_days_never_looks_fresh() {
        const SECOND: u64 = 1_000_000_000;
        let last_ns = 77 * SECOND + 12_345;
        let mut seen = tick_of(last_ns);
        let (mut now_ns, mut late, mut written) = (last_ns, false, 0);
        while now_ns < last_ns + 8 * 86_400 * SECOND {
            let idle = (now_ns - last_ns) >> TICK_SHIFT;
            let shown = u64::from(idle_of(tick_of(now_ns), seen));
            let least = idle.min(u64::from(AGED));
            assert!((least..=idle + 1).contains(&shown), "idle for {idle} ticks, shown as {shown}");
            if shown >= u64::from(STALE) && late {
                seen = shown_tick(tick_of(now_ns), idle);
                written += 1;
                late = false;
            }
            // Every second time that it would be written, the agent stands for four minutes before it does.
            if shown + 15 >= u64::from(STALE) && !late {
                late = true;
                now_ns += if written % 2 == 0 { 240 * SECOND } else { 0 };
            }
            now_ns += SECOND;
        }
        assert!(written > 1_000, "{written}");
        assert!(u64::from(AGED) << TICK_SHIFT >= 3_600 * SECOND, "evict_idle and idle_timeout end at one hour");
    }
}
