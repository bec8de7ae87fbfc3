//! How a packet changes its direction. Called by [`FlowRecord`](crate::flow::FlowRecord) under the record's lock.

use super::{Direction, icmp_kind, ip_seen};
use crate::flow::bins::{IAT_BINS, SIZE_BINS, add_small_square, add_square, iat_bin, size_bin};
use crate::packet::{Packet, mark, protocol};
use crate::tcp;

impl Direction {
    /// Any frame. `now_ns`: not before `last_ns`.
    #[inline(always)]
    pub(in crate::flow) fn update(&mut self, packet: &Packet, now_ns: u64) {
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
    pub(in crate::flow) fn quick(&mut self, packet: &Packet, own_ns: u64, now_ns: u64) {
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
