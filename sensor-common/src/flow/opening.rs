//! The first packets of one direction of a flow. Called by [`super::FlowRecord`] under the record's lock.

use bytemuck::{Pod, Zeroable};

use crate::packet::Packet;

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
