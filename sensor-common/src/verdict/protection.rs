//! What no verdict drops, as far as it shows in a packet or a record alone. The rest of the never-drop list is in maps.

use crate::flow::{FlowKey, FlowRecord, state};
use crate::packet::{Packet, protocol};

/// Whether hosts lose their network without this packet: router and neighbour discovery and redirects from the link itself
/// (ICMPv6 types 133 to 137 with hop limit 255, RFC 4861 §7.1), what path MTU discovery needs (RFC 1191, RFC 8201), DHCP
/// (RFC 2131) and DHCPv6 (RFC 8415) between their own ports. Nothing inside a tunnel is.
#[inline(always)]
pub const fn is_essential(packet: &Packet) -> bool {
    let key = &packet.key;
    if key.encapsulation != 0 {
        return false;
    }
    match key.protocol {
        protocol::ICMP => packet.icmp_type == 3 && packet.icmp_code == 4,
        protocol::ICMPV6 => match packet.icmp_type {
            133..=137 => packet.ttl == 255,
            kind => kind == 2,
        },
        protocol::UDP => {
            let (low, high) = (key.low_port, key.high_port);
            let v4 = (low == 67 || low == 68) && (high == 67 || high == 68);
            let v6 = (low == 546 || low == 547) && (high == 546 || high == 547);
            if key.family == 4 { v4 } else { v6 }
        }
        _ => false,
    }
}

/// Where a packet passes, as far as addresses of a link depend on it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Link {
    /// It is the loopback interface.
    pub loopback: bool,
    /// Neighbours may have IPv4 link-local addresses: the interface has one itself, or a route to some.
    pub link_local: bool,
    /// The packet goes out.
    pub egress: bool,
}

/// Index of the loopback interface, in every network namespace (`LOOPBACK_IFINDEX`).
pub const LOOPBACK: u32 = 1;

const fn is_loopback4(address: u32) -> bool {
    address >> 24 == 127
}

const fn is_link_local4(address: u32) -> bool {
    address >> 16 == 0xa9fe
}

/// Multicast, or the limited broadcast.
const fn is_group4(address: u32) -> bool {
    address >> 28 == 0xe || address == u32::MAX
}

const fn is_loopback6(address: &[u32; 4]) -> bool {
    address[0] | address[1] | address[2] == 0 && address[3] == 1
}

const fn is_link_local6(address: &[u32; 4]) -> bool {
    address[0] >> 22 == 0xfe80 >> 6
}

const fn is_group6(address: &[u32; 4]) -> bool {
    address[0] >> 24 == 0xff
}

/// Whether an address has its meaning on a link alone: loopback, link-local, multicast, broadcast. What protects a
/// packet with one of these depends on the packet ([`is_of_link`]).
#[inline(always)]
pub const fn is_scoped(address: &[u32; 4], family: u8) -> bool {
    if family == 4 {
        let v4 = address[0];
        return is_loopback4(v4) || is_link_local4(v4) || is_group4(v4);
    }
    is_loopback6(address) || is_link_local6(address) || is_group6(address)
}

/// Whether a packet is what a link cannot do without, by its addresses, and can be what it says it is there. No router
/// forwards these addresses, so whoever sends one from farther away has made it up:
///
/// * loopback (127.0.0.0/8, ::1): on the loopback interface (RFC 1122 §3.2.1.3, RFC 4291 §2.5.3);
/// * multicast and the limited broadcast: as a destination, never as a source (RFC 1112 §7.2, RFC 4291 §2.7). VRRP,
///   OSPF hellos, mDNS, IGMP, MLD, router advertisements are sent there;
/// * IPv4 link-local (169.254.0.0/16): to another such address; from and to one where the interface may have such
///   neighbours; and to one that this host itself sends to (RFC 3927 §2.7);
/// * IPv6 link-local (fe80::/10): from one to another or to a group, and where the hop limit says that no router has
///   forwarded it (RFC 4291 §2.5.6, RFC 5082); and to one that this host itself sends to.
///
/// Inside a tunnel, no address is of this link.
#[inline(always)]
pub const fn is_of_link(key: &FlowKey, from_low: bool, ttl: u8, link: Link) -> bool {
    if key.encapsulation != 0 {
        return false;
    }
    let (from, to) = if from_low { (&key.low, &key.high) } else { (&key.high, &key.low) };
    if key.family == 4 {
        let (from, to) = (from[0], to[0]);
        if is_loopback4(from) || is_loopback4(to) {
            return link.loopback;
        }
        if is_group4(from) || is_group4(to) {
            return !is_group4(from);
        }
        return match (is_link_local4(from), is_link_local4(to)) {
            (false, false) => false,
            (true, true) => true,
            (true, false) => link.link_local,
            (false, true) => link.link_local || link.egress,
        };
    }
    if is_loopback6(from) || is_loopback6(to) {
        return link.loopback;
    }
    if is_group6(from) || is_group6(to) {
        return !is_group6(from);
    }
    match (is_link_local6(from), is_link_local6(to)) {
        (false, false) => false,
        (true, true) => true,
        (true, false) => ttl == 255,
        (false, true) => ttl == 255 || link.egress,
    }
}

/// Number of epochs of the never-drop list, 1 to this: they wrap in the 14 bits that a record has for one.
pub const EPOCHS: u32 = (1 << 14) - 1;
/// Bits of [`FlowRecord::cleared`]: nothing protects the flow's packets where its low endpoint is the local one …
pub const CLEARED_LOW: u16 = 1;
/// … or where its high endpoint is.
pub const CLEARED_HIGH: u16 = 2;

/// Of a packet, the bit of the endpoint that is this host's side: the receiver of what comes in, the sender of what goes out.
#[inline(always)]
pub const fn local_end(from_low: bool, egress: bool) -> u16 {
    if from_low == egress { CLEARED_LOW } else { CLEARED_HIGH }
}

/// [`FlowRecord::cleared`] with one more `end` that was found to be without protection at `epoch`.
#[inline(always)]
pub const fn cleared(before: u16, epoch: u32, end: u16) -> u16 {
    let epoch = (epoch << 2) as u16;
    if before & !3 == epoch { before | end } else { epoch | end }
}

/// Whether the initiator of a TCP flow has shown that it receives what is sent to its address: after the handshake it has
/// acknowledged what the responder sent, whose sequence numbers somebody who forges a source address does not see. A
/// guess is one in 2^31, and more for each byte of payload that the responder sent to it. Inside a tunnel nothing is
/// shown: its sender writes both sides. Nor is it to a host on the same link that forges the responder's packets, too.
#[inline(always)]
pub const fn is_proven(record: &FlowRecord) -> bool {
    let wanted = state::ESTABLISHED | state::SYN_ACK | state::ACK_KNOWN | state::SEQUENCE_KNOWN << 1 | state::REVERSE;
    if record.key.protocol != protocol::TCP || record.key.encapsulation != 0 || record.state & wanted != wanted {
        return false;
    }
    let [forward, reverse] = &record.directions;
    // SYN-ACK's number and at most all payload (a FIN counts as one more) are behind what may be acknowledged.
    reverse.next.wrapping_sub(forward.ack) as u64 <= reverse.payload_bytes + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(key: FlowKey, icmp_type: u8) -> Packet {
        Packet { key, icmp_type, ..Packet::start(60) }
    }

    fn key(protocol: u8, family: u8, low_port: u16, high_port: u16) -> FlowKey {
        FlowKey { protocol, family, low_port, high_port, ..bytemuck::Zeroable::zeroed() }
    }

    #[test]
    fn discovery_and_dhcp_are_essential() {
        for (kind, expected) in [(132, false), (133, true), (135, true), (137, true), (138, false), (128, false)] {
            let near = Packet { ttl: 255, ..packet(key(protocol::ICMPV6, 6, 0, 0), kind) };
            assert_eq!(is_essential(&near), expected, "{kind}");
            assert!(!is_essential(&Packet { ttl: 254, ..near }), "{kind} through a router");
        }
        assert!(is_essential(&packet(key(protocol::ICMPV6, 6, 0, 0), 2)), "packet too big, from any hop");
        let unreachable = packet(key(protocol::ICMP, 4, 0, 0), 3);
        assert!(is_essential(&Packet { icmp_code: 4, ..unreachable }), "fragmentation needed");
        assert!(!is_essential(&Packet { icmp_code: 3, ..unreachable }));
        for (family, low, high, expected) in [
            (4, 67, 68, true),
            (4, 67, 67, true),
            (6, 546, 547, true),
            (4, 68, 53, false),
            (4, 546, 547, false),
            (6, 67, 68, false),
            (4, 40_000, 67, false),
        ] {
            let mut packet = packet(key(protocol::UDP, family, low, high), 0);
            assert_eq!(is_essential(&packet), expected, "{family} {low} {high}");
            packet.key.encapsulation = 1;
            assert!(!is_essential(&packet), "in a tunnel");
        }
        assert!(!is_essential(&packet(key(protocol::TCP, 4, 67, 68), 0)));
    }

    fn of_link(from: &str, to: &str, ttl: u8, link: Link) -> bool {
        use core::net::IpAddr;
        let words = |text: &str| match text.parse().expect("an address") {
            IpAddr::V4(v4) => ([v4.to_bits(), 0, 0, 0], 4),
            IpAddr::V6(v6) => ([96, 64, 32, 0].map(|shift| (v6.to_bits() >> shift) as u32), 6),
        };
        let ((src, family), (dst, _)) = (words(from), words(to));
        let (key, from_low) = FlowKey::canonical(src, dst, 5000, 80, 17, family, crate::flow::Domain::default());
        assert_eq!(
            is_scoped(&src, family) || is_scoped(&dst, family),
            is_scoped(&key.low, family) || is_scoped(&key.high, family)
        );
        is_of_link(&key, from_low, ttl, link)
    }

    #[test]
    fn addresses_of_a_link_protect_where_they_can_be() {
        let wire = Link::default();
        let (out, lo) = (Link { egress: true, ..wire }, Link { loopback: true, ..wire });
        let near = Link { link_local: true, ..wire };
        for (from, to, ttl, link, expected) in [
            // Made up: a flood in the name of what no router forwards.
            ("169.254.1.9", "198.18.0.10", 64, wire, false),
            ("224.0.0.5", "198.18.0.10", 1, wire, false),
            ("239.1.2.3", "224.0.0.251", 255, wire, false),
            ("255.255.255.255", "198.18.0.10", 255, wire, false),
            ("127.0.0.1", "198.18.0.10", 64, wire, false),
            ("198.18.0.10", "127.0.0.1", 64, near, false),
            ("::1", "2001:db8::10", 64, wire, false),
            ("ff02::1", "2001:db8::10", 255, wire, false),
            ("fe80::9", "2001:db8::10", 64, wire, false),
            ("2001:db8::66", "fe80::10", 64, wire, false),
            ("198.18.66.1", "169.254.1.1", 64, wire, false),
            ("198.18.66.1", "198.18.0.10", 255, lo, false),
            // What an edge lives by.
            ("127.0.0.1", "127.0.0.53", 64, lo, true),
            ("::1", "::1", 64, lo, true),
            ("198.18.0.1", "224.0.0.18", 255, wire, true),
            ("198.18.0.1", "224.0.0.5", 1, wire, true),
            ("198.18.0.7", "224.0.0.251", 255, wire, true),
            ("0.0.0.0", "255.255.255.255", 64, wire, true),
            ("fe80::1", "ff02::1", 255, wire, true),
            ("fe80::1", "ff02::5", 1, wire, true),
            ("2001:db8::7", "ff02::fb", 255, wire, true),
            ("::", "ff02::16", 1, wire, true),
            ("fe80::1", "fe80::10", 64, wire, true),
            ("fe80::1", "2001:db8::10", 255, wire, true),
            ("2001:db8::10", "fe80::1", 64, out, true),
            ("169.254.1.9", "169.254.1.1", 64, wire, true),
            ("169.254.1.9", "198.18.0.10", 64, near, true),
            ("198.18.0.7", "169.254.1.1", 64, near, true),
            ("198.18.0.10", "169.254.169.254", 64, out, true),
        ] {
            assert_eq!(of_link(from, to, ttl, link), expected, "{from} to {to}, hop limit {ttl}, {link:?}");
        }
        let mut inner = key(protocol::UDP, 4, 1, 2);
        (inner.low[0], inner.high[0], inner.encapsulation) = (0x7f00_0001, 0xe000_0001, 1);
        assert!(!is_of_link(&inner, true, 255, lo), "in a tunnel");
        assert!(is_scoped(&[0xffff_ffff, 0, 0, 0], 4) && !is_scoped(&[0xc612_0001, 0, 0, 0], 4));
        assert!(!is_scoped(&[0x2001_0db8, 0, 0, 1], 6) && is_scoped(&[0, 0, 0, 1], 6));
    }

    #[test]
    fn what_was_cleared_is_so_for_one_end_and_epoch() {
        let one = cleared(0, 5, local_end(true, false));
        assert_eq!(one, 5 << 2 | CLEARED_HIGH, "an incoming packet of the low endpoint goes to the high one");
        assert_eq!(cleared(one, 5, local_end(true, true)), 5 << 2 | 3);
        assert_eq!(cleared(one, 6, CLEARED_LOW), 6 << 2 | CLEARED_LOW);
        assert_eq!(local_end(false, false), local_end(true, true), "the answer's local end is that of the question");
        assert_eq!((EPOCHS << 2) as u16 as u32 >> 2, EPOCHS);
    }

    #[test]
    fn a_forged_acknowledgement_proves_nothing() {
        let mut record = FlowRecord::zeroed();
        record.key = key(protocol::TCP, 4, 1, 2);
        record.state =
            state::ESTABLISHED | state::SYN_ACK | state::ACK_KNOWN | state::SEQUENCE_KNOWN << 1 | state::REVERSE;
        record.directions[1].next = 1000;
        for (ack, proven) in [(1000, true), (999, true), (998, false), (1001, false), (5, false)] {
            record.directions[0].ack = ack;
            assert_eq!(is_proven(&record), proven, "{ack}");
        }
        record.directions[1].payload_bytes = 500;
        record.directions[0].ack = 600;
        assert!(is_proven(&record), "what was acknowledged of the payload");
        record.key.encapsulation = 1;
        assert!(!is_proven(&record), "in a tunnel");
        record.key.encapsulation = 0;
        record.state &= !state::ESTABLISHED;
        assert!(!is_proven(&record));
    }
}
