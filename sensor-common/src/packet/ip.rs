//! IP headers and extension headers. Addresses go to the packet's key as they are sent, `low` holding the source: the
//! last stage puts them in order.

use super::{Frame, MAX_EXTENSION_HEADERS, Packet, Place, Refusal, Window as _, extension, mark, protocol};
use crate::counter::Cause;

/// Longest IPv6 datagram whose length its header can state, bytes.
const LONGEST_IPV6: u32 = u16::MAX as u32 + 40;

/// Bytes of a hop-by-hop header with nothing but the option of a jumbogram.
const JUMBO_HEADER: u16 = 8;

/// A header of that kind in front of TCP: next header, its length, type and length of the option (RFC 2675).
const JUMBO_BEFORE_TCP: u32 = (protocol::TCP as u32) << 24 | 0xc2 << 8 | 4;

/// Whether network cards segment this protocol.
#[inline(always)]
fn is_segmented(protocol: u8) -> bool {
    matches!(protocol, protocol::TCP | protocol::UDP)
}

/// RFC 791. The total length, not the frame's end, bounds the datagram: short frames are padded on Ethernet.
#[inline(always)]
pub(super) fn ipv4<F: Frame>(frame: F, packet: &mut Packet, place: &mut Place) -> Result<(), Refusal> {
    let start = place.offset(frame)?;
    let ip = frame.window(start, 20).ok_or(Cause::TruncatedNetwork)?;
    let header_len = ((ip.byte::<0>() & 0x0f) as u32) * 4;
    if ip.byte::<0>() >> 4 != 4 || header_len < 20 {
        return Err(Cause::MalformedNetwork);
    }
    // A length of 0 is BIG TCP, and then the frame is larger than the field could say; or its card fills it in.
    let stated = ip.be16::<2>() as u32;
    if stated == 0
        && place.end.saturating_sub(start) <= u16::MAX as u32
        && !(is_segmented(ip.byte::<9>()) && frame.is_unsegmented())
    {
        return Err(Cause::MalformedNetwork);
    }
    let len = datagram_len(place.end, start, stated)?;
    if len < header_len {
        return Err(Cause::MalformedNetwork);
    }
    let fragment = ip.be16::<6>();
    let mut marks = packet.marks & mark::OF_LINK;
    marks |= (fragment >> 14) & mark::DONT_FRAGMENT;
    if header_len > 20 {
        marks |= mark::IP_OPTIONS;
    }
    packet.fragment_id = 0;
    if fragment & 0x3fff != 0 {
        marks |= mark::FRAGMENT;
        packet.fragment_id = ip.be16::<4>() as u32;
    }
    if fragment & 0x1fff != 0 {
        marks |= mark::LATER_FRAGMENT;
    }
    packet.marks = marks;
    packet.key.low = [ip.be32::<12>(), 0, 0, 0];
    packet.key.high = [ip.be32::<16>(), 0, 0, 0];
    packet.key.family = 4;
    packet.ttl = ip.byte::<8>();
    packet.traffic_class = ip.byte::<1>();
    packet.flow_label = 0;
    packet.extensions = 0;
    packet.l3_offset = start as u16;
    place.local = 0;
    place.protocol = ip.byte::<9>() as u32;
    place.offset = start + header_len;
    place.end = start + len;
    Ok(())
}

/// RFC 8200, the fixed header.
#[inline(always)]
pub(super) fn ipv6<F: Frame>(frame: F, packet: &mut Packet, place: &mut Place) -> Result<(), Refusal> {
    let start = place.offset(frame)?;
    let ip = frame.window(start, 40).ok_or(Cause::TruncatedNetwork)?;
    if ip.byte::<0>() >> 4 != 6 {
        return Err(Cause::MalformedNetwork);
    }
    // A length of 0 is a jumbogram or BIG TCP if the frame is larger than the field could say, else an empty payload;
    // or its card fills it in.
    let stated = match ip.be16::<4>() as u32 {
        0 if place.end.saturating_sub(start) > LONGEST_IPV6 => 0,
        0 if is_segmented(ip.byte::<6>()) && frame.is_unsegmented() => 0,
        payload => payload + 40,
    };
    let len = datagram_len(place.end, start, stated)?;
    let word = ip.be32::<0>();
    packet.marks &= mark::OF_LINK;
    packet.key.low = [ip.be32::<8>(), ip.be32::<12>(), ip.be32::<16>(), ip.be32::<20>()];
    packet.key.high = [ip.be32::<24>(), ip.be32::<28>(), ip.be32::<32>(), ip.be32::<36>()];
    packet.key.family = 6;
    packet.ttl = ip.byte::<7>();
    packet.traffic_class = (word >> 20) as u8;
    packet.flow_label = word & 0x000f_ffff;
    packet.fragment_id = 0;
    packet.extensions = 0;
    packet.l3_offset = start as u16;
    place.local = 0;
    place.protocol = ip.byte::<6>() as u32;
    place.offset = start + 40;
    place.end = start + len;
    Ok(())
}

/// Length of the datagram in bytes: what its header states, or the rest of what carries it where it states 0
/// (segmentation offload above 64 KiB). A datagram that claims more than there is is refused.
#[inline(always)]
fn datagram_len(end: u32, start: u32, stated: u32) -> Result<u32, Refusal> {
    if end < start {
        return Err(Cause::TruncatedNetwork);
    }
    let rest = end - start;
    if stated == 0 {
        return Ok(rest);
    }
    if stated > rest {
        return Err(Cause::TruncatedNetwork);
    }
    Ok(stated)
}

/// Whether `protocol` is a header between IP and the transport. (ESP is one too, but nothing behind it can be read.)
#[inline(always)]
pub(super) fn is_extension(family: u8, protocol: u32) -> bool {
    let v6 = matches!(
        protocol as u8,
        protocol::HOP_BY_HOP
            | protocol::ROUTING
            | protocol::FRAGMENT
            | protocol::DESTINATION_OPTIONS
            | protocol::MOBILITY
            | protocol::HIP
            | protocol::SHIM6
    );
    protocol == protocol::AH as u32 || (family == 6 && v6)
}

/// Extension headers (RFC 8200; AH also behind IPv4) up to the transport header. ESP and "no next header" end the chain,
/// and so does the header of a fragment behind the first, where no header follows.
#[inline(always)]
pub(super) fn extensions<F: Frame>(frame: F, packet: &mut Packet, place: &mut Place) -> Result<(), Refusal> {
    let family = packet.key.family;
    for _ in 0..MAX_EXTENSION_HEADERS {
        let kind = F::reload(&place.protocol);
        if !is_extension(family, kind) {
            break;
        }
        let offset = place.offset(frame)?;
        // None is shorter.
        let header = frame.window(offset, 8).ok_or(Cause::TruncatedNetwork)?;
        place.protocol = header.byte::<0>() as u32;
        let mut len = (header.byte::<1>() as u32 + 1) * 8;
        let mut later = false;
        packet.extensions |= match kind as u8 {
            protocol::HOP_BY_HOP
                if header.be32::<0>() == JUMBO_BEFORE_TCP
                    && place.end.wrapping_sub(packet.l3_offset as u32) > LONGEST_IPV6 =>
            {
                // BIG TCP: Linux adds it for itself, and takes it out before it cuts the packet into segments.
                place.local = JUMBO_HEADER;
                0
            }
            protocol::HOP_BY_HOP => extension::HOP_BY_HOP,
            protocol::ROUTING => extension::ROUTING,
            protocol::DESTINATION_OPTIONS => extension::DESTINATION,
            protocol::MOBILITY => extension::MOBILITY,
            protocol::AH => {
                // RFC 4302: length in 4-byte units, minus 2.
                len = (header.byte::<1>() as u32 + 2) * 4;
                extension::AH
            }
            protocol::FRAGMENT => {
                len = 8;
                let fragment = header.be16::<2>();
                // A fragment that is the whole datagram (RFC 6946) is none.
                if fragment & 0xfff9 != 0 {
                    packet.marks |= mark::FRAGMENT;
                    packet.fragment_id = header.be32::<4>();
                }
                later = fragment & 0xfff8 != 0;
                extension::FRAGMENT
            }
            _ => extension::HIP_SHIM,
        };
        place.offset = offset + len;
        if later {
            packet.marks |= mark::LATER_FRAGMENT;
            break;
        }
    }
    if packet.marks & mark::LATER_FRAGMENT == 0 && is_extension(family, F::reload(&place.protocol)) {
        return Err(Cause::HeaderChain);
    }
    let offset = place.offset(frame)?;
    if offset > place.end {
        return Err(Cause::MalformedNetwork);
    }
    Ok(())
}
