//! The short way: what nearly every packet looks like, read in one go.

use super::link::is_vlan;
use super::transport::set_segments;
use super::tunnel::is_tunnel_port;
use super::{
    ETHERNET_HEADER, ETHERTYPE_IPV4, ETHERTYPE_IPV6, Frame, Options, Packet, Place, Progress, Window as _, mark,
    protocol,
};
use crate::tcp::SYN;

/// Reads a frame with at most two VLAN tags, IPv4 without options or fragments or IPv6 without extension headers, and UDP
/// or TCP; the options of a SYN are left to [`syn_options`]. Of anything else it says [`Progress::More`], and nothing can be said of `packet`, which must
/// be [`Packet::start`] of the frame's length before.
#[inline(always)]
pub fn plain<F: Frame>(frame: F, options: Options, packet: &mut Packet) -> Progress {
    read(frame, options, packet).unwrap_or(Progress::More)
}

#[inline(always)]
fn read<F: Frame>(frame: F, options: Options, packet: &mut Packet) -> Option<Progress> {
    let ethernet = frame.window(0, ETHERNET_HEADER)?;
    let mut ethertype = ethernet.be16::<12>();
    let mut start = ETHERNET_HEADER;
    let mut vlan = 0;
    if let Some(tci) = frame.offloaded_vlan() {
        if is_vlan(ethertype) {
            return None;
        }
        vlan = tci & 0x0fff;
    } else if is_vlan(ethertype) {
        let tag = frame.window(start, 4)?;
        vlan = tag.be16::<0>() & 0x0fff;
        ethertype = tag.be16::<2>();
        start += 4;
        if is_vlan(ethertype) {
            let tag = frame.window(start, 4)?;
            packet.key.vlans[1] = tag.be16::<0>() & 0x0fff;
            ethertype = tag.be16::<2>();
            start += 4;
        }
    }
    let rest = packet.frame_len.checked_sub(start)?;
    let (number, before, len);
    match ethertype {
        ETHERTYPE_IPV4 => {
            let ip = frame.window(start, 20)?;
            len = ip.be16::<2>() as u32;
            let fragment = ip.be16::<6>();
            if ip.byte::<0>() != 0x45 || fragment & 0x3fff != 0 {
                return None;
            }
            number = ip.byte::<9>();
            packet.key.low[0] = ip.be32::<12>();
            packet.key.high[0] = ip.be32::<16>();
            packet.key.family = 4;
            packet.ttl = ip.byte::<8>();
            packet.traffic_class = ip.byte::<1>();
            packet.marks = (fragment >> 14) & mark::DONT_FRAGMENT;
            before = 20;
        }
        ETHERTYPE_IPV6 => {
            let ip = frame.window(start, 40)?;
            let word = ip.be32::<0>();
            let payload = ip.be16::<4>() as u32;
            if word >> 28 != 6 || payload == 0 {
                return None;
            }
            len = payload + 40;
            number = ip.byte::<6>();
            packet.key.low = [ip.be32::<8>(), ip.be32::<12>(), ip.be32::<16>(), ip.be32::<20>()];
            packet.key.high = [ip.be32::<24>(), ip.be32::<28>(), ip.be32::<32>(), ip.be32::<36>()];
            packet.ttl = ip.byte::<7>();
            packet.traffic_class = (word >> 20) as u8;
            packet.flow_label = word & 0x000f_ffff;
            packet.key.family = 6;
            before = 40;
        }
        _ => return None,
    }
    if len > rest {
        return None;
    }
    let offset = start + before;
    let header;
    match number {
        protocol::TCP => {
            let tcp = frame.window(offset, 20)?;
            packet.key.low_port = tcp.be16::<0>();
            packet.key.high_port = tcp.be16::<2>();
            packet.seq = tcp.be32::<4>();
            packet.ack = tcp.be32::<8>();
            packet.tcp_flags = tcp.byte::<13>();
            packet.window = tcp.be16::<14>();
            header = (tcp.byte::<12>() >> 4) as u32 * 4;
            if header < 20 {
                return None;
            }
        }
        protocol::UDP => {
            let udp = frame.window(offset, 8)?;
            let dst_port = udp.be16::<2>();
            packet.key.low_port = udp.be16::<0>();
            packet.key.high_port = dst_port;
            header = 8;
            // What IP carries behind the datagram, if anything, is not its payload.
            if udp.be16::<4>() as u32 + before != len || is_tunnel_port(dst_port, options) {
                return None;
            }
        }
        _ => return None,
    }
    packet.payload_len = len.checked_sub(before + header)?;
    packet.l3_offset = start as u16;
    packet.payload_offset = (offset + header) as u16;
    packet.header_len = before + header;
    packet.key.protocol = number;
    packet.key.vlans[0] = vlan;
    packet.from_low = packet.key.order();
    set_segments(frame, packet);
    let options = number == protocol::TCP && header > 20 && packet.tcp_flags & SYN != 0;
    Some(if options { Progress::Options } else { Progress::Done })
}

/// Where [`super::stage::tcp_options`] finds what [`plain`] leaves of a SYN with options.
#[inline(always)]
pub fn syn_options(packet: &Packet) -> Place {
    // Nothing lies between IP's fixed header and TCP.
    let before = if packet.key.family == 4 { 20 } else { 40 };
    let mut place = Place::start(packet.frame_len);
    place.offset = packet.l3_offset as u32 + before + 20;
    place.options = packet.header_len.wrapping_sub(before + 20);
    place
}
