//! One direction of a flow: its fields, how a packet changes them, and the exact 128-bit sums behind the deviations.
//! Called by [`super::FlowRecord`] under the record's lock.

use bytemuck::{Pod, Zeroable};

use crate::packet::{Packet, protocol};

/// Size bins: payload of 0, 1–63, 64–127, 128–255, 256–511, 512–1023, 1024–1399, 1400 and more bytes.
pub const SIZE_BINS: usize = 8;

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

impl Direction {
    #[inline(always)]
    pub(super) fn start(&mut self, now_ns: u64) {
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
    pub(super) fn update(&mut self, packet: &Packet, now_ns: u64) {
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
pub(super) fn add_square(low: &mut u64, high: &mut u64, value: u64) {
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
