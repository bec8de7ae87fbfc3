//! What no verdict drops, as far as it shows in a packet or a record alone. The rest of the never-drop list is in maps.

use crate::flow::{FlowRecord, state};
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
    use crate::flow::FlowKey;

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
