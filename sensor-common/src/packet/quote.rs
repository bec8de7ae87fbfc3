//! The flow that an ICMP error quotes.

use super::ip::is_extension;
use super::transport::is_echo;
use super::walk::OnHost;
use super::{Frame, MAX_HEADER_OFFSET, Options, Packet, Place, Stages, Window as _, mark, protocol};
use crate::flow::FlowKey;

/// The key of the flow that `packet` of `frame` quotes, if it is an ICMP error that quotes one; for the host, which keeps the
/// packet. See [`quoted`].
pub fn quoted_key<F: Frame>(frame: F, packet: &Packet) -> Option<FlowKey> {
    let mut packet = *packet;
    quoted(frame, OnHost(frame, Options::NONE), &mut packet).then_some(packet.key)
}

/// Puts the key of the flow that `packet`, an ICMP error of `frame`, quotes into `packet.key`; whether there is one.
///
/// A quote holds the IP header and at least 8 bytes more (RFC 792), or as much as fits (RFC 4443), and may end anywhere
/// behind them, so its lengths are not checked. Quotes of fragments behind the first name no flow.
#[inline(always)]
pub fn quoted<F: Frame, S: Stages>(frame: F, stages: S, packet: &mut Packet) -> bool {
    if packet.marks & (mark::ICMP_ERROR | mark::LATER_FRAGMENT) != mark::ICMP_ERROR {
        return false;
    }
    let start = F::reload16(&packet.payload_offset);
    // No lower bound: the compiler would test the difference to it, from which kernels before 6.10 learn nothing of the number.
    if start > 2 * MAX_HEADER_OFFSET {
        return false;
    }
    let (number, next);
    if packet.key.family == 4 {
        let Some(ip) = frame.window(start, 20) else { return false };
        let first = ip.byte::<0>();
        if first >> 4 != 4 || first & 0x0f < 5 || ip.be16::<6>() & 0x1fff != 0 {
            return false;
        }
        packet.key.low[0] = ip.be32::<12>();
        packet.key.high[0] = ip.be32::<16>();
        number = ip.byte::<9>();
        next = start + (first & 0x0f) as u32 * 4;
    } else {
        let Some(ip) = frame.window(start, 40) else { return false };
        if ip.byte::<0>() >> 4 != 6 {
            return false;
        }
        packet.key.low = [ip.be32::<8>(), ip.be32::<12>(), ip.be32::<16>(), ip.be32::<20>()];
        packet.key.high = [ip.be32::<24>(), ip.be32::<28>(), ip.be32::<32>(), ip.be32::<36>()];
        number = ip.byte::<6>();
        next = start + 40;
    }
    if !is_extension(packet.key.family, number as u32) {
        return transport(frame, packet, number, next);
    }
    // The end of the quote is not that of the packet.
    let mut place = Place::start(u32::MAX);
    place.offset = next;
    place.protocol = number as u32;
    if stages.extensions(packet, &mut place).is_err() || packet.marks & mark::LATER_FRAGMENT != 0 {
        return false;
    }
    let Ok(next) = place.offset(frame) else { return false };
    transport(frame, packet, F::reload(&place.protocol) as u8, next)
}

/// The quote's transport header at `offset`: ports, and the key in order.
#[inline(always)]
fn transport<F: Frame>(frame: F, packet: &mut Packet, number: u8, offset: u32) -> bool {
    let Some(head) = frame.window(offset, 8) else { return false };
    let (src_port, dst_port) = match number {
        protocol::TCP | protocol::UDP | protocol::UDP_LITE | protocol::SCTP => (head.be16::<0>(), head.be16::<2>()),
        protocol::ICMP | protocol::ICMPV6 if is_echo(number, head.byte::<0>()) => (head.be16::<4>(), head.be16::<4>()),
        _ => (0, 0),
    };
    packet.key.low_port = src_port;
    packet.key.high_port = dst_port;
    packet.key.protocol = number;
    packet.from_low = packet.key.order();
    true
}
