//! Tunnel headers: what they carry, and where it begins.

use super::{
    ETHERTYPE_ETHERNET, ETHERTYPE_IPV4, ETHERTYPE_IPV6, Encapsulation, Frame, Options, Packet, Place, Window as _,
    mark, protocol,
};

/// UDP port (IANA) of GTP-U; those of VXLAN and Geneve are [`Options`].
const PORT_GTP: u16 = 2152;
const UDP_HEADER: u32 = 8;
/// GTP-U extension headers that are skipped.
const MAX_GTP_EXTENSIONS: usize = 4;

/// Whether a datagram to this UDP port may be the packet of a tunnel that is read.
#[inline(always)]
pub(super) fn is_tunnel_port(port: u16, options: Options) -> bool {
    (options.has(Encapsulation::Vxlan) && options.vxlan_ports.has(port))
        || (options.has(Encapsulation::Geneve) && options.geneve_ports.has(port))
        || (options.has(Encapsulation::Gtp) && port == PORT_GTP)
}

/// Whether `place` may be at a tunnel header.
#[inline(always)]
pub(super) fn may_tunnel(packet: &Packet, place: &Place, options: Options) -> bool {
    packet.marks & mark::LATER_FRAGMENT == 0
        && match place.protocol as u8 {
            protocol::GRE => options.has(Encapsulation::Gre),
            protocol::IPV4 | protocol::IPV6 => options.has(Encapsulation::Ip),
            protocol::UDP => options.tunnels & !(Encapsulation::Gre.bit() | Encapsulation::Ip.bit()) != 0,
            _ => false,
        }
}

/// Goes into the tunnel whose header is at `place`: afterwards `place` is at what it carries. False, and nothing is
/// changed, if this is no tunnel that can be read.
#[inline(always)]
pub(super) fn tunnel<F: Frame>(frame: F, options: Options, packet: &mut Packet, place: &mut Place) -> bool {
    let Ok(offset) = place.offset(frame) else { return false };
    let found = match F::reload(&place.protocol) as u8 {
        protocol::IPV4 if options.has(Encapsulation::Ip) => Some((Encapsulation::Ip, 0, ETHERTYPE_IPV4, offset)),
        protocol::IPV6 if options.has(Encapsulation::Ip) => Some((Encapsulation::Ip, 0, ETHERTYPE_IPV6, offset)),
        protocol::GRE if options.has(Encapsulation::Gre) => gre(frame, offset),
        protocol::UDP => {
            let Some(udp) = frame.window(offset, UDP_HEADER) else { return false };
            match udp.be16::<2>() {
                port if options.has(Encapsulation::Vxlan) && options.vxlan_ports.has(port) => {
                    vxlan(frame, offset + UDP_HEADER)
                }
                port if options.has(Encapsulation::Geneve) && options.geneve_ports.has(port) => {
                    geneve(frame, offset + UDP_HEADER)
                }
                PORT_GTP if options.has(Encapsulation::Gtp) => gtp(frame, place, offset + UDP_HEADER),
                _ => None,
            }
        }
        _ => None,
    };
    let Some((encapsulation, id, next, inner)) = found else { return false };
    if !matches!(next, ETHERTYPE_IPV4 | ETHERTYPE_IPV6 | ETHERTYPE_ETHERNET) || inner > place.end {
        return false;
    }
    place.next = next;
    place.offset = inner;
    place.tunnels += 1;
    packet.key.encapsulation = encapsulation as u8;
    packet.key.tunnel = id;
    packet.marks |= mark::TUNNELLED;
    true
}

/// Kind, tunnel id, EtherType of what is carried, and where that begins.
type Found = Option<(Encapsulation, u32, u16, u32)>;

/// RFC 2784 with the key and sequence number of RFC 2890. Version 1 (PPTP) and source routes are not read.
#[inline(always)]
fn gre<F: Frame>(frame: F, offset: u32) -> Found {
    let header = frame.window(offset, 4)?;
    let flags = header.be16::<0>();
    if flags & 0x4007 != 0 {
        return None;
    }
    // Checksum, key and sequence number take 4 bytes each where there are any.
    let checksum = (flags >> 15 & 1) as u32 * 4;
    let sequence = (flags >> 12 & 1) as u32 * 4;
    let mut inner = offset + 4 + checksum;
    let mut key = 0;
    if flags & 0x2000 != 0 {
        key = frame.window(inner, 4)?.be32::<0>();
        inner += 4;
    }
    Some((Encapsulation::Gre, key, header.be16::<2>(), inner + sequence))
}

/// RFC 7348.
#[inline(always)]
fn vxlan<F: Frame>(frame: F, offset: u32) -> Found {
    let header = frame.window(offset, 8)?;
    // The flag that says the identifier is valid.
    if header.byte::<0>() & 0x08 == 0 {
        return None;
    }
    Some((Encapsulation::Vxlan, header.be32::<4>() >> 8, ETHERTYPE_ETHERNET, offset + 8))
}

/// RFC 8926. Control packets are not read.
#[inline(always)]
fn geneve<F: Frame>(frame: F, offset: u32) -> Found {
    let header = frame.window(offset, 8)?;
    let first = header.byte::<0>();
    if first >> 6 != 0 || header.byte::<1>() & 0x80 != 0 {
        return None;
    }
    let options = (first & 0x3f) as u32 * 4;
    Some((Encapsulation::Geneve, header.be32::<4>() >> 8, header.be16::<2>(), offset + 8 + options))
}

/// 3GPP TS 29.281, version 1: user data (message type 255), with its extension headers skipped.
#[inline(always)]
fn gtp<F: Frame>(frame: F, place: &mut Place, offset: u32) -> Found {
    let header = frame.window(offset, 8)?;
    let flags = header.byte::<0>();
    if flags >> 4 != 0x3 || header.byte::<1>() != 255 {
        return None;
    }
    place.position = offset + 8;
    // Sequence number, N-PDU number and the next extension's type are there if one of them is.
    if flags & 0x07 != 0 {
        let optional = frame.window(offset + 8, 4)?;
        place.position = offset + 12;
        // Non-zero: the type of the next extension header.
        place.scratch = if flags & 0x04 != 0 { optional.byte::<3>() as u32 } else { 0 };
        for _ in 0..MAX_GTP_EXTENSIONS {
            if F::reload(&place.scratch) == 0 {
                break;
            }
            let at = F::reload(&place.position);
            if at > super::MAX_HEADER_OFFSET {
                return None;
            }
            let len = frame.window(at, 1)?.byte::<0>() as u32 * 4;
            if len == 0 {
                return None;
            }
            // Not one back from its end: the verifier of Linux 6.1 takes a sum that was subtracted from for any number.
            place.position = at + (len - 1);
            let last = F::reload(&place.position);
            if last >= super::MAX_HEADER_OFFSET {
                return None;
            }
            place.position = last + 1;
            // The next one's type is the last byte of each.
            place.scratch = frame.window(last, 1)?.byte::<0>() as u32;
        }
        if F::reload(&place.scratch) != 0 {
            return None;
        }
    }
    let inner = F::reload(&place.position);
    if inner > super::MAX_HEADER_OFFSET {
        return None;
    }
    let next = match frame.window(inner, 1)?.byte::<0>() >> 4 {
        4 => ETHERTYPE_IPV4,
        6 => ETHERTYPE_IPV6,
        _ => return None,
    };
    Some((Encapsulation::Gtp, 0, next, inner))
}
