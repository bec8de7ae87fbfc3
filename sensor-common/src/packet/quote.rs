//! The flow that an ICMP error quotes.

use super::transport::is_echo;
use super::{Frame, Packet, Window as _, mark, protocol};
use crate::flow::{Domain, FlowKey};

/// The key of the flow that `packet` of `frame` quotes, if it is an ICMP error that quotes one; for the host, which keeps the
/// packet. See [`quoted`].
pub fn quoted_key<F: Frame>(frame: F, packet: &Packet) -> Option<FlowKey> {
    let mut packet = *packet;
    quoted(frame, &mut packet).then_some(packet.key)
}

/// Puts the key of the flow that `packet`, an ICMP error of `frame`, quotes into `packet.key`; whether there is one.
///
/// A quote holds the IP header and at least 8 bytes more (RFC 792, RFC 4443), and may end anywhere behind them, so its
/// lengths are not checked. Quotes of fragments behind the first, and of IPv6 packets with extension headers, name none.
#[inline(always)]
pub fn quoted<F: Frame>(frame: F, packet: &mut Packet) -> bool {
    if packet.marks & (mark::ICMP_ERROR | mark::LATER_FRAGMENT) != mark::ICMP_ERROR {
        return false;
    }
    let (start, header) = (F::reload(&packet.l3_offset), F::reload(&packet.header_len));
    // No lower bound: the compiler would test the difference to it, from which kernels before 6.10 learn nothing of the number.
    if start > super::MAX_HEADER_OFFSET || header > super::MAX_HEADER_OFFSET {
        return false;
    }
    let start = start + header;
    let (src, dst, number, transport);
    if packet.key.family == 4 {
        let Some(ip) = frame.window(start, 20) else { return false };
        let first = ip.byte::<0>();
        if first >> 4 != 4 || first & 0x0f < 5 || ip.be16::<6>() & 0x1fff != 0 {
            return false;
        }
        (src, dst) = ([ip.be32::<12>(), 0, 0, 0], [ip.be32::<16>(), 0, 0, 0]);
        number = ip.byte::<9>();
        transport = start + (first & 0x0f) as u32 * 4;
    } else {
        let Some(ip) = frame.window(start, 40) else { return false };
        if ip.byte::<0>() >> 4 != 6 {
            return false;
        }
        src = [ip.be32::<8>(), ip.be32::<12>(), ip.be32::<16>(), ip.be32::<20>()];
        dst = [ip.be32::<24>(), ip.be32::<28>(), ip.be32::<32>(), ip.be32::<36>()];
        number = ip.byte::<6>();
        transport = start + 40;
    }
    let Some(head) = frame.window(transport, 8) else { return false };
    let (src_port, dst_port) = match number {
        protocol::TCP | protocol::UDP | protocol::UDP_LITE | protocol::SCTP => (head.be16::<0>(), head.be16::<2>()),
        protocol::ICMP | protocol::ICMPV6 if is_echo(number, head.byte::<0>()) => (head.be16::<4>(), head.be16::<4>()),
        _ => (0, 0),
    };
    let key = packet.key;
    let domain = Domain { vlans: key.vlans, encapsulation: key.encapsulation, tunnel: key.tunnel };
    (packet.key, packet.from_low) = FlowKey::canonical(src, dst, src_port, dst_port, number, key.family, domain);
    true
}
