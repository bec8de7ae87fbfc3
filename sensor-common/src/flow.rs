//! Flow key and flow record: what the kernel keeps of a connection, and how a packet changes it.
//!
//! A record is bidirectional. "Forward" is the initiator's direction: the SYN's sender where one was seen, else the
//! sender of the first packet ([`state`] says which). All values are exact integers; means and deviations are derived
//! on the host ([`crate::features`]). Layout is by cache line: whoever adds a field says which line it is on.

use bytemuck::{Pod, Zeroable};

use crate::packet::{Packet, protocol};
use crate::tcp;
use crate::verdict::Verdict;

/// Arrivals whose size, spacing and flags are kept one by one.
pub const FIRST_N: usize = 16;
/// Size bins: payload of 0, 1–63, 64–127, 128–255, 256–511, 512–1023, 1024–1399, 1400 and more bytes.
pub const SIZE_BINS: usize = 8;

/// Bits of [`FlowRecord::state`].
pub mod state {
    /// The initiator is the key's `high` endpoint.
    pub const INITIATOR_HIGH: u32 = 1 << 0;
    /// The initiator is known from a SYN or SYN-ACK, not guessed from the first packet.
    pub const INITIATOR_BY_SYN: u32 = 1 << 1;
    /// SYN without ACK seen from the initiator.
    pub const SYN: u32 = 1 << 2;
    /// SYN with ACK seen from the responder.
    pub const SYN_ACK: u32 = 1 << 3;
    /// Three-way handshake completed.
    pub const ESTABLISHED: u32 = 1 << 4;
    /// FIN seen from the initiator; the next bit: from the responder.
    pub const FIN: u32 = 1 << 5;
    /// The initiator's FIN was acknowledged; the next bit: the responder's.
    pub const FIN_ACKED: u32 = 1 << 7;
    /// RST seen.
    pub const RST: u32 = 1 << 9;
    /// RST seen before the handshake was completed.
    pub const RST_EARLY: u32 = 1 << 10;
    /// The connection is over: both FINs acknowledged (RFC 9293) or reset.
    pub const CLOSED: u32 = 1 << 11;
    /// The reverse direction's half has been set up.
    pub const REVERSE: u32 = 1 << 12;
    /// Sender and receiver are the same endpoint: every packet counts as forward.
    pub const SELF: u32 = 1 << 13;
}

/// Identity of a flow, the same for both directions: the endpoint with the smaller (address, port) is `low`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Pod, Zeroable)]
#[repr(C)]
pub struct FlowKey {
    /// Address of the low endpoint; IPv4 in the first word.
    pub low: [u32; 4],
    /// Address of the high endpoint.
    pub high: [u32; 4],
    /// Port of the low endpoint (ICMP echo: the identifier; without ports: 0).
    pub low_port: u16,
    /// Port of the high endpoint.
    pub high_port: u16,
    /// IP protocol number.
    pub protocol: u8,
    /// 4 or 6.
    pub family: u8,
    /// Reserved for tunnel ids, zero.
    pub reserved: u16,
    /// VLAN ids, outer first, 0 = none.
    pub vlans: [u16; 2],
}

impl FlowKey {
    /// The key of a packet, and whether its sender is the low endpoint.
    #[inline(always)]
    pub fn canonical(
        src: [u32; 4],
        dst: [u32; 4],
        src_port: u16,
        dst_port: u16,
        protocol: u8,
        family: u8,
        vlans: [u16; 2],
    ) -> (FlowKey, bool) {
        let from_low = ordered(&src, &dst, src_port, dst_port);
        let (low, high, low_port, high_port) =
            if from_low { (src, dst, src_port, dst_port) } else { (dst, src, dst_port, src_port) };
        let key = FlowKey { low, high, low_port, high_port, protocol, family, reserved: 0, vlans };
        (key, from_low)
    }

    /// The key as 32-bit words: 0–3 low address, 4–7 high address, 8 ports, 9 protocol and family, 10 VLANs.
    #[inline(always)]
    pub fn words(&self) -> [u32; 11] {
        let FlowKey { low, high, low_port, high_port, protocol, family, reserved, vlans } = *self;
        [
            low[0],
            low[1],
            low[2],
            low[3],
            high[0],
            high[1],
            high[2],
            high[3],
            (low_port as u32) << 16 | high_port as u32,
            (protocol as u32) << 24 | (family as u32) << 16 | reserved as u32,
            (vlans[0] as u32) << 16 | vlans[1] as u32,
        ]
    }

    /// Equality without an early exit per byte: what the kernel compares on a hit.
    #[inline(always)]
    pub fn same(&self, other: &FlowKey) -> bool {
        let (a, b) = (self.words(), other.words());
        let mut differs = (a[0] ^ b[0]) | (a[4] ^ b[4]) | (a[8] ^ b[8]) | (a[9] ^ b[9]) | (a[10] ^ b[10]);
        if self.family != 4 {
            differs |= (a[1] ^ b[1]) | (a[2] ^ b[2]) | (a[3] ^ b[3]);
            differs |= (a[5] ^ b[5]) | (a[6] ^ b[6]) | (a[7] ^ b[7]);
        }
        differs == 0
    }
}

/// Whether (src, src_port) ≤ (dst, dst_port).
///
/// A subtraction from the lowest digit up, not a comparison from the highest down: each branch would double the ways
/// that the verifier has to walk from here on, and kernels before 6.2 merge few of them.
#[inline(always)]
fn ordered(src: &[u32; 4], dst: &[u32; 4], src_port: u16, dst_port: u16) -> bool {
    let mut borrow = (src_port as i64 - dst_port as i64 - 1) >> 63;
    borrow = (src[3] as i64 - dst[3] as i64 + borrow) >> 63;
    borrow = (src[2] as i64 - dst[2] as i64 + borrow) >> 63;
    borrow = (src[1] as i64 - dst[1] as i64 + borrow) >> 63;
    borrow = (src[0] as i64 - dst[0] as i64 + borrow) >> 63;
    borrow != 0
}

/// One direction of a flow: three cache lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Direction {
    /// Arrival of the last frame, monotonic ns.
    pub last_ns: u64,
    /// Arrival of the first frame, monotonic ns.
    pub first_ns: u64,
    /// Wire packets.
    pub packets: u64,
    /// L3 bytes (IP headers to end of datagram; no link header, no padding).
    pub l3_bytes: u64,
    /// L4 payload bytes.
    pub payload_bytes: u64,
    /// L3 and L4 header bytes.
    pub header_bytes: u64,
    /// Sum of squares of the packets' L3 lengths, bytes².
    pub l3_square: u64,
    /// Sum of squares of the packets' payload lengths, bytes².
    pub payload_square: u64,

    /// Sum of squares of inter-arrival times, ns², low 64 bits.
    pub iat_square_low: u64,
    /// The same, high 64 bits.
    pub iat_square_high: u64,
    /// Smallest inter-arrival time, ns; `u64::MAX` before the second frame.
    pub iat_min_ns: u64,
    /// Largest inter-arrival time, ns.
    pub iat_max_ns: u64,
    /// Smallest L3 length of a packet, bytes.
    pub l3_min: u32,
    /// Largest L3 length of a packet, bytes.
    pub l3_max: u32,
    /// Frames that arrived: a super-packet is one arrival of several packets.
    pub arrivals: u32,
    /// Packets with payload.
    pub payload_packets: u32,
    /// TCP window of the first frame, not scaled.
    pub window_first: u16,
    /// Smallest TCP window.
    pub window_min: u16,
    /// Largest TCP window.
    pub window_max: u16,
    /// Smallest TTL or hop limit.
    pub ttl_min: u8,
    /// Largest TTL or hop limit.
    pub ttl_max: u8,
    /// Largest payload of a packet, bytes.
    pub payload_max: u32,
    /// Traffic class (DSCP and ECN) of the first frame.
    pub traffic_class: u8,
    /// TCP flags of the first frame.
    pub flags_first: u8,
    /// Reserved, zero.
    pub reserved: u16,

    /// Packets with each TCP flag, from FIN (0x01) to CWR (0x80).
    pub flags: [u32; 8],
    /// Packets by payload size, see [`SIZE_BINS`].
    pub size_bins: [u32; SIZE_BINS],
}

/// One of the first [`FIRST_N`] arrivals of a flow, both directions in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Arrival {
    /// Time since the flow's previous arrival, µs, at most `u32::MAX`; 0 for the first.
    pub iat_us: u32,
    /// L4 payload, bytes, at most `u16::MAX`.
    pub payload: u16,
    /// TCP flags.
    pub flags: u8,
    /// 0 = forward, 1 = reverse.
    pub direction: u8,
}

/// All that the kernel keeps of a connection: 768 bytes, twelve cache lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C, align(64))]
pub struct FlowRecord {
    // Line 0: what every packet reads.
    /// Sequence lock: odd while a writer is inside.
    pub sequence: u32,
    /// Moves on each time the record is given to another connection.
    pub generation: u32,
    /// The verdict word ([`Verdict`]).
    pub verdict: u64,
    /// Identity.
    pub key: FlowKey,
    /// Bits of [`state`].
    pub state: u32,

    // Line 1: the flow as a whole.
    /// First arrival, monotonic ns.
    pub first_ns: u64,
    /// Last arrival, monotonic ns.
    pub last_ns: u64,
    /// Smallest inter-arrival time over both directions, ns; `u64::MAX` before the second frame.
    pub iat_min_ns: u64,
    /// Largest inter-arrival time over both directions, ns.
    pub iat_max_ns: u64,
    /// Sum of squares of inter-arrival times over both directions, ns², low 64 bits.
    pub iat_square_low: u64,
    /// The same, high 64 bits.
    pub iat_square_high: u64,
    /// Frame bytes on the wire, both directions, link headers and padding of each handed-over frame included.
    pub frame_bytes: u64,
    /// Interface of the first frame.
    pub ifindex: u32,
    /// Entries of `first` that are filled.
    pub first_len: u32,

    // Lines 2–4 and 5–7.
    /// Forward and reverse direction.
    pub directions: [Direction; 2],

    // Lines 8–9.
    /// The first arrivals.
    pub first: [Arrival; FIRST_N],

    // Line 10: handshake.
    /// Arrival of the first SYN, ns, 0 = none.
    pub syn_ns: u64,
    /// Arrival of the first SYN-ACK, ns, 0 = none.
    pub syn_ack_ns: u64,
    /// Arrival of the ACK that completed the handshake, ns, 0 = none.
    pub established_ns: u64,
    /// Per direction: sequence number after the FIN.
    pub fin_end: [u32; 2],
    /// Frames that a drop verdict stopped; they are in no other field. Added to without the lock.
    pub dropped: u64,
    /// Reserved, zero (line 10 and line 11).
    pub reserved: [u64; 11],
}

const _: () = assert!(size_of::<FlowRecord>() == 768 && size_of::<Direction>() == 192);
const _: () = assert!(core::mem::offset_of!(FlowRecord, first_ns) == 64);
const _: () = assert!(core::mem::offset_of!(FlowRecord, directions) == 128);

impl FlowRecord {
    /// A record of nothing.
    pub fn zeroed() -> FlowRecord {
        <FlowRecord as Zeroable>::zeroed()
    }

    /// Makes this the record of `packet`'s connection, with nothing counted yet: call [`FlowRecord::update`] next.
    /// Leaves `sequence` alone. Only the lines that are valid from the start are written; the reverse half is set up
    /// by its first packet and arrivals by theirs.
    #[inline(always)]
    pub fn start(&mut self, packet: &Packet, now_ns: u64, ifindex: u32, generation: u32) {
        self.generation = generation;
        self.verdict = Verdict::default().0;
        self.key = packet.key;
        self.state = initiator(packet);
        self.first_ns = now_ns;
        self.last_ns = now_ns;
        self.iat_min_ns = u64::MAX;
        self.iat_max_ns = 0;
        self.iat_square_low = 0;
        self.iat_square_high = 0;
        self.fin_end = [0; 2];
        self.ifindex = ifindex;
        self.first_len = 0;
        self.syn_ns = 0;
        self.syn_ack_ns = 0;
        self.established_ns = 0;
        self.frame_bytes = 0;
        self.dropped = 0;
        self.reserved = [0; 11];
        // The direction of the first packet need not be forward: a SYN-ACK can come first.
        self.directions[0].start(now_ns);
        if self.direction_of(packet) == 1 {
            self.directions[1].start(now_ns);
            self.state |= state::REVERSE;
        }
    }

    /// 0 if `packet` goes from the initiator to the responder, 1 if back.
    #[inline(always)]
    pub fn direction_of(&self, packet: &Packet) -> usize {
        let initiator_low = self.state & state::INITIATOR_HIGH == 0;
        let reverse = packet.from_low != initiator_low && self.state & state::SELF == 0;
        reverse as usize
    }

    /// Counts one frame of this connection that arrived at `now_ns`.
    #[inline(always)]
    pub fn update(&mut self, packet: &Packet, now_ns: u64) {
        let side = self.direction_of(packet) & 1;
        if side == 1 && self.state & state::REVERSE == 0 {
            self.directions[1].start(now_ns);
            self.state |= state::REVERSE;
        }
        // Clocks of two CPUs may differ by a little: time never runs backwards in a record.
        let iat_ns = now_ns.saturating_sub(self.last_ns);
        if self.frames() > 0 {
            self.iat_min_ns = self.iat_min_ns.min(iat_ns);
            self.iat_max_ns = self.iat_max_ns.max(iat_ns);
            add_square(&mut self.iat_square_low, &mut self.iat_square_high, iat_ns);
        }
        self.last_ns = self.last_ns.max(now_ns);
        self.frame_bytes = self.frame_bytes.wrapping_add(packet.frame_len as u64);
        if (self.first_len as usize) < FIRST_N {
            let micros = iat_ns / 1000;
            self.first[self.first_len as usize & (FIRST_N - 1)] = Arrival {
                iat_us: if micros > u32::MAX as u64 { u32::MAX } else { micros as u32 },
                payload: if packet.payload_len > u16::MAX as u32 { u16::MAX } else { packet.payload_len as u16 },
                flags: packet.tcp_flags,
                direction: side as u8,
            };
            self.first_len += 1;
        }
        self.directions[side].update(packet, now_ns);
        if packet.key.protocol == protocol::TCP {
            tcp::follow(self, packet, side, now_ns);
        }
    }

    #[inline(always)]
    fn reverse_arrivals(&self) -> u64 {
        if self.state & state::REVERSE == 0 { 0 } else { self.directions[1].arrivals as u64 }
    }

    /// The initiator's direction.
    pub fn forward(&self) -> &Direction {
        &self.directions[0]
    }

    /// The responder's direction, `None` while it has sent nothing (its lines are not valid then).
    pub fn reverse(&self) -> Option<&Direction> {
        (self.state & state::REVERSE != 0).then_some(&self.directions[1])
    }

    /// Frames of both directions, as the hooks handed them over.
    #[inline(always)]
    pub fn frames(&self) -> u64 {
        self.directions[0].arrivals as u64 + self.reverse_arrivals()
    }

    /// Wire packets of both directions.
    #[inline(always)]
    pub fn packets(&self) -> u64 {
        let reverse = if self.state & state::REVERSE == 0 { 0 } else { self.directions[1].packets };
        self.directions[0].packets.wrapping_add(reverse)
    }

    /// L3 bytes of both directions.
    #[inline(always)]
    pub fn l3_bytes(&self) -> u64 {
        let reverse = if self.state & state::REVERSE == 0 { 0 } else { self.directions[1].l3_bytes };
        self.directions[0].l3_bytes.wrapping_add(reverse)
    }

    /// Whether `packet` opens a new connection on the tuple of this finished one (TCP port reuse).
    #[inline(always)]
    pub fn is_reopened_by(&self, packet: &Packet) -> bool {
        self.state & state::CLOSED != 0 && tcp::is_first_syn(packet.tcp_flags)
    }
}

/// State bits that say who the initiator is, from the first packet that was seen.
#[inline(always)]
fn initiator(packet: &Packet) -> u32 {
    let mut from_initiator = true;
    let mut bits = 0;
    if packet.key.protocol == protocol::TCP && packet.tcp_flags & tcp::SYN != 0 {
        from_initiator = packet.tcp_flags & tcp::ACK == 0;
        bits |= state::INITIATOR_BY_SYN;
    }
    if packet.from_low != from_initiator {
        bits |= state::INITIATOR_HIGH;
    }
    let key = &packet.key;
    let same_address = key.low[0] == key.high[0]
        && key.low[1] == key.high[1]
        && key.low[2] == key.high[2]
        && key.low[3] == key.high[3];
    // ICMP echo carries one identifier for both ends, so equal ports alone do not make an endpoint talk to itself.
    if same_address && key.low_port == key.high_port {
        bits = (bits | state::SELF) & !state::INITIATOR_HIGH;
    }
    bits
}

impl Direction {
    #[inline(always)]
    fn start(&mut self, now_ns: u64) {
        // Field by field: a struct literal would be built on the kernel's small stack and copied byte by byte.
        let Direction {
            last_ns,
            first_ns,
            packets,
            l3_bytes,
            payload_bytes,
            header_bytes,
            l3_square,
            payload_square,
            iat_square_low,
            iat_square_high,
            iat_min_ns,
            iat_max_ns,
            l3_min,
            l3_max,
            arrivals,
            payload_packets,
            window_first,
            window_min,
            window_max,
            ttl_min,
            ttl_max,
            payload_max,
            traffic_class,
            flags_first,
            reserved,
            flags,
            size_bins,
        } = self;
        *last_ns = now_ns;
        *first_ns = now_ns;
        *packets = 0;
        *l3_bytes = 0;
        *payload_bytes = 0;
        *header_bytes = 0;
        *l3_square = 0;
        *payload_square = 0;
        *iat_square_low = 0;
        *iat_square_high = 0;
        *iat_min_ns = u64::MAX;
        *iat_max_ns = 0;
        *l3_min = u32::MAX;
        *l3_max = 0;
        *arrivals = 0;
        *payload_packets = 0;
        *window_first = 0;
        *window_min = u16::MAX;
        *window_max = 0;
        *ttl_min = u8::MAX;
        *ttl_max = 0;
        *payload_max = 0;
        *traffic_class = 0;
        *flags_first = 0;
        *reserved = 0;
        *flags = [0; 8];
        *size_bins = [0; SIZE_BINS];
    }

    #[inline(always)]
    fn update(&mut self, packet: &Packet, now_ns: u64) {
        if self.arrivals == 0 {
            self.window_first = packet.window;
            self.traffic_class = packet.traffic_class;
            self.flags_first = packet.tcp_flags;
            self.first_ns = now_ns;
        } else {
            let iat_ns = now_ns.saturating_sub(self.last_ns);
            self.iat_min_ns = self.iat_min_ns.min(iat_ns);
            self.iat_max_ns = self.iat_max_ns.max(iat_ns);
            add_square(&mut self.iat_square_low, &mut self.iat_square_high, iat_ns);
        }
        self.arrivals = self.arrivals.saturating_add(1);
        self.last_ns = self.last_ns.max(now_ns);
        self.packets = self.packets.wrapping_add(packet.segments as u64);
        self.l3_bytes = self.l3_bytes.wrapping_add(packet.l3_len());
        self.payload_bytes = self.payload_bytes.wrapping_add(packet.payload_len as u64);
        self.header_bytes = self.header_bytes.wrapping_add(packet.header_len as u64 * packet.segments as u64);
        self.window_min = self.window_min.min(packet.window);
        self.window_max = self.window_max.max(packet.window);
        self.ttl_min = self.ttl_min.min(packet.ttl);
        self.ttl_max = self.ttl_max.max(packet.ttl);
        self.size(packet.header_len, packet.last_segment(), 1);
        if packet.segments > 1 {
            self.size(packet.header_len, packet.segment_size, packet.segments - 1);
        }
        self.flags(packet);
    }

    /// Counts `times` packets of one size.
    #[inline(always)]
    fn size(&mut self, header: u32, payload: u32, times: u32) {
        let l3 = header.wrapping_add(payload);
        self.l3_min = self.l3_min.min(l3);
        self.l3_max = self.l3_max.max(l3);
        self.payload_max = self.payload_max.max(payload);
        self.l3_square = self.l3_square.wrapping_add((l3 as u64 * l3 as u64).wrapping_mul(times as u64));
        self.payload_square =
            self.payload_square.wrapping_add((payload as u64 * payload as u64).wrapping_mul(times as u64));
        if payload > 0 {
            self.payload_packets = self.payload_packets.saturating_add(times);
        }
        let bin = &mut self.size_bins[size_bin(payload) & (SIZE_BINS - 1)];
        *bin = bin.saturating_add(times);
    }

    /// Counts TCP flags. Of a super-packet, every segment carries the flags, but FIN and PSH go on the last segment
    /// alone and CWR on the first (tcp_gso_segment in the kernel).
    #[inline(always)]
    fn flags(&mut self, packet: &Packet) {
        if packet.key.protocol != protocol::TCP {
            return;
        }
        let flags = packet.tcp_flags as u32;
        let all = packet.segments;
        self.flags[0] = self.flags[0].saturating_add(flags & 1);
        self.flags[1] = self.flags[1].saturating_add((flags >> 1) & 1);
        self.flags[2] = self.flags[2].saturating_add((flags >> 2) & 1);
        self.flags[3] = self.flags[3].saturating_add((flags >> 3) & 1);
        self.flags[4] = self.flags[4].saturating_add(((flags >> 4) & 1).wrapping_mul(all));
        self.flags[5] = self.flags[5].saturating_add(((flags >> 5) & 1).wrapping_mul(all));
        self.flags[6] = self.flags[6].saturating_add(((flags >> 6) & 1).wrapping_mul(all));
        self.flags[7] = self.flags[7].saturating_add((flags >> 7) & 1);
    }
}

/// The bin of a payload size, see [`SIZE_BINS`].
#[inline(always)]
pub fn size_bin(payload: u32) -> usize {
    (payload > 0) as usize
        + (payload >= 64) as usize
        + (payload >= 128) as usize
        + (payload >= 256) as usize
        + (payload >= 512) as usize
        + (payload >= 1024) as usize
        + (payload >= 1400) as usize
}

/// Adds `value`² to a 128-bit sum kept in two words (the BPF machine multiplies 64 bits to 64 bits).
#[inline(always)]
fn add_square(low: &mut u64, high: &mut u64, value: u64) {
    let (upper, lower) = (value >> 32, value & 0xffff_ffff);
    add_wide(low, high, lower * lower, 0);
    if upper != 0 {
        // (upper·2^32 + lower)² = upper²·2^64 + 2·upper·lower·2^32 + lower²
        let cross = upper.wrapping_mul(lower);
        add_wide(low, high, cross << 33, cross >> 31);
        *high = high.wrapping_add(upper.wrapping_mul(upper));
    }
}

#[inline(always)]
fn add_wide(low: &mut u64, high: &mut u64, add_low: u64, add_high: u64) {
    let sum = low.wrapping_add(add_low);
    let carry = (sum < add_low) as u64;
    *low = sum;
    *high = high.wrapping_add(add_high).wrapping_add(carry);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn squares_are_exact_over_64_bits() {
        let (mut low, mut high) = (0, 0);
        let mut expected = 0u128;
        for value in [0, 1, u32::MAX as u64, 1 << 32, 3_600_000_000_000, (1 << 42) + 12_345, 40 * 3_600_000_000_000] {
            add_square(&mut low, &mut high, value);
            expected += value as u128 * value as u128;
        }
        assert_eq!((high as u128) << 64 | low as u128, expected);
    }

    #[test]
    fn bins_are_what_they_say() {
        let edges = [
            (0, 0),
            (1, 1),
            (63, 1),
            (64, 2),
            (127, 2),
            (128, 3),
            (255, 3),
            (256, 4),
            (511, 4),
            (512, 5),
            (1023, 5),
            (1024, 6),
            (1399, 6),
            (1400, 7),
            (65_000, 7),
        ];
        for (payload, bin) in edges {
            assert_eq!(size_bin(payload), bin, "payload {payload}");
        }
    }
}
