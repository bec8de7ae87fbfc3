//! Transport header, and the last stage, which makes the packet whole.

use super::{Frame, Packet, Place, Refusal, Window as _, extension, mark, protocol};
use crate::counter::Cause;
use crate::tcp::SYN;

/// The transport header at `place`. A fragment behind the first has none, and neither have protocols without ports.
#[inline(always)]
pub(super) fn transport<F: Frame>(frame: F, packet: &mut Packet, place: &mut Place) -> Result<(), Refusal> {
    let offset = place.offset(frame)?;
    let before = offset.wrapping_sub(packet.l3_offset as u32 + place.local as u32);
    if place.end < offset {
        return Err(Cause::MalformedNetwork);
    }
    let room = place.end - offset;
    let mut len = room;
    let number = F::reload(&place.protocol) as u8;
    packet.key.protocol = number;
    if number == protocol::ESP {
        packet.extensions |= extension::ESP;
    }
    let (mut src_port, mut dst_port) = (0, 0);
    let kind = if packet.marks & mark::LATER_FRAGMENT != 0 { protocol::ESP } else { number };
    let header = match kind {
        protocol::TCP => {
            let tcp = frame.window(offset, 20).ok_or(Cause::TruncatedTransport)?;
            src_port = tcp.be16::<0>();
            dst_port = tcp.be16::<2>();
            packet.seq = tcp.be32::<4>();
            packet.ack = tcp.be32::<8>();
            packet.tcp_flags = tcp.byte::<13>();
            packet.window = tcp.be16::<14>();
            let len = (tcp.byte::<12>() >> 4) as u32 * 4;
            if len < 20 {
                return Err(Cause::MalformedTransport);
            }
            len
        }
        protocol::UDP | protocol::UDP_LITE => {
            let udp = frame.window(offset, 8).ok_or(Cause::TruncatedTransport)?;
            src_port = udp.be16::<0>();
            dst_port = udp.be16::<2>();
            // UDP-Lite has the reach of its checksum there.
            if kind == protocol::UDP && frame.segments().1 == 0 {
                len = udp_len(udp.be16::<4>() as u32, room)?;
            }
            8
        }
        protocol::SCTP => {
            let sctp = frame.window(offset, 12).ok_or(Cause::TruncatedTransport)?;
            src_port = sctp.be16::<0>();
            dst_port = sctp.be16::<2>();
            12
        }
        protocol::ICMP | protocol::ICMPV6 => {
            let icmp = frame.window(offset, 8).ok_or(Cause::TruncatedTransport)?;
            let kind = icmp.byte::<0>();
            packet.icmp_type = kind;
            packet.icmp_code = icmp.byte::<1>();
            // Echo exchanges are told apart by their identifier (RFC 792, RFC 4443), which both directions carry.
            if is_echo(number, kind) {
                src_port = icmp.be16::<4>();
                dst_port = src_port;
            }
            if is_error(number, kind) {
                packet.marks |= mark::ICMP_ERROR;
            }
            8
        }
        _ => 0,
    };
    // Every read above lies inside the frame; a header that leaves the datagram is a lie of the sender.
    if header > room {
        return Err(Cause::MalformedTransport);
    }
    packet.key.low_port = src_port;
    packet.key.high_port = dst_port;
    packet.header_len = before.wrapping_add(header).wrapping_add(room - len);
    packet.payload_len = len - header;
    packet.payload_offset = offset.wrapping_add(header) as u16;
    place.offset = offset + 20;
    place.options = if kind == protocol::TCP && packet.tcp_flags & SYN != 0 { header - 20 } else { 0 };
    Ok(())
}

/// Bytes of a UDP datagram, header included: what its length field states (RFC 768), of the `room` bytes that IP
/// carries. The rest is no user data (RFC 9868). What is missing of the datagram is in other fragments, or was never
/// sent. A field of 0 is right where the length does not fit (RFC 2675). Segmentation writes the field anew, so
/// super-packets need not have the right one.
#[inline(always)]
fn udp_len(stated: u32, room: u32) -> Result<u32, Refusal> {
    if stated == 0 && room > u16::MAX as u32 {
        return Ok(room);
    }
    if stated < 8 {
        return Err(Cause::MalformedTransport);
    }
    Ok(if stated < room { stated } else { room })
}

/// Whether an ICMP or ICMPv6 message is an echo request or reply.
#[inline(always)]
pub(super) fn is_echo(protocol: u8, kind: u8) -> bool {
    if protocol == protocol::ICMP { matches!(kind, 0 | 8) } else { matches!(kind, 128 | 129) }
}

/// Whether an ICMP or ICMPv6 message quotes a packet that met an error (RFC 792, RFC 4443: types below 128).
#[inline(always)]
fn is_error(protocol: u8, kind: u8) -> bool {
    if protocol == protocol::ICMP { matches!(kind, 3 | 4 | 5 | 11 | 12) } else { kind != 0 && kind < 128 }
}

/// Puts the key in order, and says how many wire segments the frame stands for.
#[inline(always)]
pub(super) fn finish<F: Frame>(frame: F, packet: &mut Packet) {
    packet.from_low = packet.key.order();
    set_segments(frame, packet);
}

/// Segment figures come from the kernel; ones that do not fit the payload would make the sums lie.
#[inline(always)]
pub(super) fn set_segments<F: Frame>(frame: F, packet: &mut Packet) {
    let (mut segments, size) = frame.segments();
    if segments == 0 && size > 0 {
        segments = packet.payload_len.div_ceil(size);
    }
    let fits = segments > 1 && size > 0 && (segments as u64 - 1) * (size as u64) < packet.payload_len as u64;
    packet.segments = if fits { segments } else { 1 };
    packet.segment_size = if fits { size } else { 0 };
}
