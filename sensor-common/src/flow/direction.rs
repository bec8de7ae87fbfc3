//! One direction of a flow: its fields and how a packet changes them. Called by [`super::FlowRecord`] under the
//! record's lock.

use bytemuck::{Pod, Zeroable};

use super::bins::{IAT_BINS, SIZE_BINS, add_small_square, add_square, iat_bin, size_bin};
use crate::packet::{Packet, mark, protocol};
use crate::tcp;

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

/// What is taken from a direction's first packets alone. Valid where the direction has an arrival.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Opening {
    /// IPv6 flow label of the first packet, 0 for IPv4.
    pub flow_label: u32,
    /// Packets that are IP fragments.
    pub fragments: u32,
    /// What the first payload says it is, 0 = nothing known: TLS version (0x0300 to 0x0304) in TCP flows, in UDP flows
    /// DTLS version (0xfe..) or QUIC version (RFC 9000: 1).
    pub version: u32,
    /// TCP window of the first packet, not scaled.
    pub window: u16,
    /// TCP maximum segment size of the last SYN, bytes, 0 = none.
    pub mss: u16,
    /// TCP window scale of the last SYN, [`crate::packet::NO_WSCALE`] = none.
    pub wscale: u8,
    /// [`crate::packet::tcp_option`] bits of the SYNs.
    pub tcp_options: u8,
    /// TCP flags of the first packet.
    pub flags: u8,
    /// TTL or hop limit of the first packet.
    pub ttl: u8,
    /// [`crate::packet::extension`] bits of all packets.
    pub extensions: u8,
    /// Payload bytes that the next three look at, at most 16; 0 = no payload yet, or hints are off.
    pub hint_len: u8,
    /// Of these: printable ASCII, tab, line feed, carriage return.
    pub hint_text: u8,
    /// Of these: 0x80 and above.
    pub hint_high: u8,
    /// Their Shannon entropy in 1/32 bit ([`super::ENTROPY_UNIT`]), rounded down.
    pub hint_entropy: u8,
    /// Type and code of the first packet in an ICMP or ICMPv6 flow.
    pub icmp_type: u8,
    /// See `icmp_type`.
    pub icmp_code: u8,
    /// Reserved, zero.
    pub reserved: u8,
}

impl Opening {
    /// From the direction's first packet. Field by field, as in [`Direction::start`].
    #[inline(always)]
    pub(super) fn start(&mut self, packet: &Packet) {
        let Opening {
            flow_label,
            fragments,
            version,
            window,
            mss,
            wscale,
            tcp_options,
            flags,
            ttl,
            extensions,
            hint_len,
            hint_text,
            hint_high,
            hint_entropy,
            icmp_type,
            icmp_code,
            reserved,
        } = self;
        *flow_label = packet.flow_label;
        *fragments = 0;
        *version = 0;
        *window = packet.window;
        *mss = packet.mss;
        *wscale = packet.wscale;
        *tcp_options = packet.tcp_options;
        *flags = packet.tcp_flags;
        *ttl = packet.ttl;
        *extensions = 0;
        *hint_len = 0;
        *hint_text = 0;
        *hint_high = 0;
        *hint_entropy = 0;
        *icmp_type = packet.icmp_type;
        *icmp_code = packet.icmp_code;
        *reserved = 0;
    }
}

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

    /// Any frame. `now_ns`: not before `last_ns`.
    #[inline(always)]
    pub(super) fn update(&mut self, packet: &Packet, now_ns: u64) {
        if self.packets == 0 {
            self.traffic_class = packet.traffic_class;
        } else {
            let iat_ns = now_ns.wrapping_sub(self.last_ns);
            self.iat_min_ns = self.iat_min_ns.min(iat_ns);
            self.iat_max_ns = self.iat_max_ns.max(iat_ns);
            add_square(&mut self.iat_square_low, &mut self.iat_square_high, iat_ns);
            let bin = &mut self.iat_bins[iat_bin(iat_ns) & (IAT_BINS - 1)];
            *bin = bin.saturating_add(1);
        }
        self.last_ns = now_ns;
        self.packets = self.packets.wrapping_add(packet.segments as u64);
        self.l3_bytes = self.l3_bytes.wrapping_add(packet.l3_len());
        self.payload_bytes = self.payload_bytes.wrapping_add(packet.payload_len as u64);
        self.usual = packet.look();
        self.ip(packet);
        self.size(packet.header_len, packet.last_segment(), 1);
        if packet.segments > 1 {
            self.size(packet.header_len, packet.segment_size, packet.segments - 1);
        }
        match packet.key.protocol {
            protocol::TCP => self.tcp(packet),
            protocol::ICMP | protocol::ICMPV6 => {
                let count = &mut self.flags[icmp_kind(packet) & 3];
                *count = count.saturating_add(1);
            }
            _ => {}
        }
    }

    /// What [`Direction::update`] does for a frame of one packet, `own_ns` after the direction's last one, at `now_ns`.
    /// The caller has seen to it that `packets` is below `u32::MAX`, which no counter of packets exceeds, that `own_ns`
    /// has at most 32 bits, and that the packet looks like one that was counted ([`Direction::usual`]).
    #[inline(always)]
    pub(super) fn quick(&mut self, packet: &Packet, own_ns: u64, now_ns: u64) {
        if own_ns < self.iat_min_ns {
            self.iat_min_ns = own_ns;
        }
        if own_ns > self.iat_max_ns {
            self.iat_max_ns = own_ns;
        }
        add_small_square(&mut self.iat_square_low, &mut self.iat_square_high, own_ns);
        let bin = &mut self.iat_bins[iat_bin(own_ns) & (IAT_BINS - 1)];
        *bin = bin.wrapping_add(1);
        self.last_ns = now_ns;
        self.packets = self.packets.wrapping_add(1);
        let payload = packet.payload_len;
        let l3 = packet.header_len.wrapping_add(payload);
        self.l3_bytes = self.l3_bytes.wrapping_add(l3 as u64);
        self.payload_bytes = self.payload_bytes.wrapping_add(payload as u64);
        self.l3_square = self.l3_square.wrapping_add(l3 as u64 * l3 as u64);
        self.payload_square = self.payload_square.wrapping_add(payload as u64 * payload as u64);
        if l3 < self.l3_min as u32 {
            self.l3_min = l3 as u16;
        }
        if payload < self.payload_min as u32 {
            self.payload_min = payload as u16;
        }
        if l3 > self.l3_max {
            self.l3_max = l3;
        }
        if payload > self.payload_max {
            self.payload_max = payload;
        }
        let bin = &mut self.size_bins[size_bin(payload) & (SIZE_BINS - 1)];
        *bin = bin.wrapping_add(1);
    }

    #[inline(always)]
    fn ip(&mut self, packet: &Packet) {
        self.ttl_min = self.ttl_min.min(packet.ttl);
        self.ttl_max = self.ttl_max.max(packet.ttl);
        const _: () = assert!(mark::DONT_FRAGMENT == 1 && mark::IP_OPTIONS == 8);
        let df = ip_seen::DF_CLEAR >> (packet.marks & 1);
        let options = (packet.marks >> 1) as u8 & ip_seen::OPTIONS;
        // 252 + anything from 4 to 252 has a bit above 255.
        let other = ((packet.traffic_class ^ self.traffic_class) & 0xfc) as u32;
        let changed = ((other + 252) >> 5) as u8 & ip_seen::DSCP_CHANGED;
        self.ip_seen |= df | options | changed | ip_seen::ECN << (packet.traffic_class & 3);
    }

    /// Counts `times` packets of one size.
    #[inline(always)]
    fn size(&mut self, header: u32, payload: u32, times: u32) {
        let l3 = header.wrapping_add(payload);
        if l3 < self.l3_min as u32 {
            self.l3_min = l3 as u16;
        }
        if payload < self.payload_min as u32 {
            self.payload_min = payload as u16;
        }
        self.l3_max = self.l3_max.max(l3);
        self.payload_max = self.payload_max.max(payload);
        self.l3_square = self.l3_square.wrapping_add((l3 as u64 * l3 as u64).wrapping_mul(times as u64));
        self.payload_square =
            self.payload_square.wrapping_add((payload as u64 * payload as u64).wrapping_mul(times as u64));
        let bin = &mut self.size_bins[size_bin(payload) & (SIZE_BINS - 1)];
        *bin = bin.saturating_add(times);
    }

    /// Counts windows and TCP flags. Of a super-packet, every segment carries the flags, but FIN and PSH go on the last
    /// segment alone and CWR on the first (tcp_gso_segment in the kernel).
    #[inline(always)]
    fn tcp(&mut self, packet: &Packet) {
        if packet.marks & mark::LATER_FRAGMENT != 0 {
            return;
        }
        self.window_min = self.window_min.min(packet.window);
        self.window_max = self.window_max.max(packet.window);
        let flags = packet.tcp_flags as u32;
        let all = packet.segments;
        if packet.window == 0 && packet.tcp_flags & (tcp::SYN | tcp::FIN | tcp::RST) == 0 {
            self.zero_windows = self.zero_windows.saturating_add(all);
        }
        self.acks = self.acks.saturating_add(((flags >> 4) & 1).wrapping_mul(all));
        self.pushes = self.pushes.saturating_add((flags >> 3) & 1);
        if packet.tcp_flags & !(tcp::ACK | tcp::PSH) == 0 {
            return;
        }
        self.flags[0] = self.flags[0].saturating_add(flags & 1);
        self.flags[1] = self.flags[1].saturating_add((flags >> 1) & 1);
        self.flags[2] = self.flags[2].saturating_add((flags >> 2) & 1);
        self.flags[3] = self.flags[3].saturating_add(((flags >> 5) & 1).wrapping_mul(all));
        self.flags[4] = self.flags[4].saturating_add(((flags >> 6) & 1).wrapping_mul(all));
        self.flags[5] = self.flags[5].saturating_add((flags >> 7) & 1);
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

#[inline(always)]
fn icmp_kind(packet: &Packet) -> usize {
    if packet.marks & mark::ICMP_ERROR != 0 {
        return icmp_kind::ERROR;
    }
    match (packet.key.family, packet.icmp_type) {
        (4, 8) | (6, 128) => icmp_kind::ECHO_REQUEST,
        (4, 0) | (6, 129) => icmp_kind::ECHO_REPLY,
        _ => icmp_kind::OTHER,
    }
}
