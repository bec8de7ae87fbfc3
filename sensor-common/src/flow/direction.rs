//! One direction of a flow: its fields, how they begin, and what is read from them. How a packet changes them is in [`count`].

mod count;

use bytemuck::{Pod, Zeroable};

use super::bins::{IAT_BINS, SIZE_BINS};

/// Bits of [`Direction::ip_seen`].
pub mod ip_seen {
    /// A packet with "don't fragment" (IPv4).
    pub const DF_SET: u8 = 1;
    /// A packet without it.
    pub const DF_CLEAR: u8 = 2;
    /// A packet with IPv4 options.
    pub const OPTIONS: u8 = 4;
    /// A packet with another DSCP than the first one.
    pub const DSCP_CHANGED: u8 = 8;
    /// A packet with ECN code point 0 (not ECN-capable); the next bits: 1 (ECT(1)), 2 (ECT(0)), 3 (congestion).
    pub const ECN: u8 = 16;
}

/// Numbers for [`Direction::icmp`].
pub mod icmp_kind {
    /// Echo request.
    pub const ECHO_REQUEST: usize = 0;
    /// Echo reply.
    pub const ECHO_REPLY: usize = 1;
    /// An error that quotes another packet.
    pub const ERROR: usize = 2;
    /// Anything else.
    pub const OTHER: usize = 3;
}

/// One direction of a flow: four cache lines. An ordinary packet ([`super::FlowRecord::quick`]) leaves the fourth alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Direction {
    // First line.
    /// Arrival of the last frame, monotonic ns.
    pub last_ns: u64,
    /// Wire packets.
    pub packets: u64,
    /// L3 bytes (IP headers to end of datagram; no link header, no padding).
    pub l3_bytes: u64,
    /// L4 payload bytes.
    pub payload_bytes: u64,
    /// Sum of squares of the packets' L3 lengths, bytes².
    pub l3_square: u64,
    /// Sum of squares of the packets' payload lengths, bytes².
    pub payload_square: u64,
    /// Smallest inter-arrival time, ns; `u64::MAX` before the second frame.
    pub iat_min_ns: u64,
    /// Largest inter-arrival time, ns.
    pub iat_max_ns: u64,

    // Second line.
    /// Sum of squares of inter-arrival times, ns², low 64 bits (96 in all: exact up to 78 hours).
    pub iat_square_low: u64,
    /// Payload bytes of the bulks.
    pub bulk_bytes: u64,
    /// Time in bulks, ns.
    pub bulk_ns: u64,
    /// Largest L3 length of a packet, bytes.
    pub l3_max: u32,
    /// Largest payload of a packet, bytes.
    pub payload_max: u32,
    /// Frames by time since the direction's previous frame, see [`super::IAT_BIN_EDGES_NS`]; the first is in none.
    pub iat_bins: [u32; IAT_BINS],

    // Third line.
    /// Packets by payload size, see [`SIZE_BINS`].
    pub size_bins: [u32; SIZE_BINS],
    /// Packets of the bulks.
    pub bulk_packets: u32,
    /// TCP packets with ACK.
    pub acks: u32,
    /// TCP packets with PSH.
    pub pushes: u32,
    /// TCP: one past the highest sequence number seen; from the first FIN on, one past that FIN.
    pub next: u32,
    /// TCP: greatest acknowledgement sent.
    pub ack: u32,
    /// [`Packet::look`] of a frame whose figures are in the fourth line already.
    pub usual: u32,
    /// Smallest L3 length of a packet, bytes, at most `u16::MAX`.
    pub l3_min: u16,
    /// Smallest payload of a packet, bytes, at most `u16::MAX`.
    pub payload_min: u16,
    /// TCP window of the last acknowledgement, not scaled.
    pub window_last: u16,
    /// TCP keep-alives (RFC 9293 §3.8.4), at most `u16::MAX`.
    pub keep_alives: u16,

    // Fourth line: what is out of the ordinary, or seldom changes.
    /// Packets with the TCP flags FIN, SYN, RST, URG, ECE and CWR ([`Direction::flag`] has them all); in ICMP flows,
    /// packets by [`icmp_kind`].
    pub flags: [u32; 6],
    /// The high 32 bits of the sum of squares of inter-arrival times.
    pub iat_square_high: u32,
    /// TCP: bytes that were skipped and have not come since (see [`crate::tcp`]).
    pub missing: u32,
    /// TCP: end of the newest skipped range.
    pub gap_end: u32,
    /// TCP packets that were sent again.
    pub retransmitted: u32,
    /// TCP packets that came after their successors.
    pub out_of_order: u32,
    /// TCP duplicate acknowledgements (RFC 5681 §2).
    pub duplicate_acks: u32,
    /// TCP packets that close the window (no SYN, FIN or RST).
    pub zero_windows: u32,
    /// Bulks: at least four packets with payload, no payload of the other side between, gaps of at most 1 s.
    pub bulks: u32,
    /// Smallest TCP window, not scaled; `u16::MAX` in other flows.
    pub window_min: u16,
    /// Largest TCP window, not scaled.
    pub window_max: u16,
    /// Smallest TTL or hop limit.
    pub ttl_min: u8,
    /// Largest TTL or hop limit.
    pub ttl_max: u8,
    /// Bits of [`ip_seen`].
    pub ip_seen: u8,
    /// Traffic class (DSCP and ECN) of the first frame.
    pub traffic_class: u8,
}

const _: () = assert!(core::mem::offset_of!(Direction, iat_square_low) == 64);
const _: () = assert!(core::mem::offset_of!(Direction, size_bins) == 128);
const _: () = assert!(core::mem::offset_of!(Direction, flags) == 192 && size_of::<Direction>() == 256);

impl Direction {
    #[inline(always)]
    pub(super) fn start(&mut self, now_ns: u64) {
        // Field by field: a struct literal would be built on the kernel's small stack and copied byte by byte.
        let Direction {
            last_ns,
            packets,
            l3_bytes,
            payload_bytes,
            l3_square,
            payload_square,
            iat_min_ns,
            iat_max_ns,
            iat_square_low,
            bulk_bytes,
            bulk_ns,
            l3_max,
            payload_max,
            iat_bins,
            size_bins,
            bulk_packets,
            acks,
            pushes,
            next,
            ack,
            usual,
            l3_min,
            payload_min,
            window_last,
            keep_alives,
            flags,
            iat_square_high,
            missing,
            gap_end,
            retransmitted,
            out_of_order,
            duplicate_acks,
            zero_windows,
            bulks,
            window_min,
            window_max,
            ttl_min,
            ttl_max,
            ip_seen,
            traffic_class,
        } = self;
        *last_ns = now_ns;
        *packets = 0;
        *l3_bytes = 0;
        *payload_bytes = 0;
        *l3_square = 0;
        *payload_square = 0;
        *iat_min_ns = u64::MAX;
        *iat_max_ns = 0;
        *iat_square_low = 0;
        *bulk_bytes = 0;
        *bulk_ns = 0;
        *l3_max = 0;
        *payload_max = 0;
        *iat_bins = [0; IAT_BINS];
        *size_bins = [0; SIZE_BINS];
        *bulk_packets = 0;
        *acks = 0;
        *pushes = 0;
        *next = 0;
        *ack = 0;
        *usual = 0;
        *l3_min = u16::MAX;
        *payload_min = u16::MAX;
        *window_last = 0;
        *keep_alives = 0;
        *flags = [0; 6];
        *iat_square_high = 0;
        *missing = 0;
        *gap_end = 0;
        *retransmitted = 0;
        *out_of_order = 0;
        *duplicate_acks = 0;
        *zero_windows = 0;
        *bulks = 0;
        *window_min = u16::MAX;
        *window_max = 0;
        *ttl_min = u8::MAX;
        *ttl_max = 0;
        *ip_seen = 0;
        *traffic_class = 0;
    }

    /// Frames that arrived: a super-packet is one arrival of several packets. (Exact as long as no bin of
    /// `iat_bins` is full, which takes 2^32 frames.)
    #[inline(always)]
    pub fn arrivals(&self) -> u64 {
        let [a, b, c, d, e, f, g, h] = self.iat_bins;
        let later = a as u64 + b as u64 + c as u64 + d as u64 + e as u64 + f as u64 + g as u64 + h as u64;
        if self.packets == 0 { 0 } else { later + 1 }
    }

    /// Packets with the TCP flag of this bit, from 0 (FIN) to 7 (CWR); 0 for other bits.
    pub fn flag(&self, bit: usize) -> u32 {
        match bit {
            0..=2 => self.flags[bit],
            3 => self.pushes,
            4 => self.acks,
            5..=7 => self.flags[bit - 2],
            _ => 0,
        }
    }

    /// Packets of this [`icmp_kind`] in an ICMP or ICMPv6 flow; 0 for other numbers.
    pub fn icmp(&self, kind: usize) -> u32 {
        if kind <= icmp_kind::OTHER { self.flags[kind] } else { 0 }
    }

    /// Packets with payload.
    pub fn payload_packets(&self) -> u64 {
        self.packets.saturating_sub(self.size_bins[0] as u64)
    }

    /// L3 and L4 header bytes.
    pub fn header_bytes(&self) -> u64 {
        self.l3_bytes.saturating_sub(self.payload_bytes)
    }
}
