//! Transport header → [`Packet`].

use super::names::protocol;
use super::network::Network;
use super::{Frame, NO_WSCALE, Packet, Refusal, Window as _};
use crate::counter::Cause;
use crate::flow::{Domain, FlowKey};

/// Transport header → packet.
#[inline(always)]
pub(super) fn transport<F: Frame>(frame: F, network: &Network, vlans: [u16; 2]) -> Result<Packet, Refusal> {
    let offset = network.transport;
    let before = offset - network.start;
    let room = network.len - before;
    let (mut src_port, mut dst_port) = (0, 0);
    let (mut tcp_flags, mut window, mut seq, mut ack) = (0, 0, 0, 0);
    let header = match network.protocol {
        protocol::TCP => {
            let tcp = frame.window(offset, 20).ok_or(Cause::TruncatedTransport)?;
            src_port = tcp.be16::<0>();
            dst_port = tcp.be16::<2>();
            seq = tcp.be32::<4>();
            ack = tcp.be32::<8>();
            tcp_flags = tcp.byte::<13>();
            window = tcp.be16::<14>();
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
            // Echo exchanges are told apart by their identifier (RFC 792, RFC 4443), which both directions carry.
            let echo = match network.family {
                4 => matches!(icmp.byte::<0>(), 0 | 8),
                _ => matches!(icmp.byte::<0>(), 128 | 129),
            };
            if echo {
                src_port = icmp.be16::<4>();
                dst_port = src_port;
            }
            8
        }
        _ => 0,
    };
    // Every read above lies inside the frame; a header that leaves the datagram is a lie of the sender.
    if header > room {
        return Err(Cause::MalformedTransport);
    }
    let (segments, segment_size) = frame.segments();
    let domain = Domain { vlans, encapsulation: 0, tunnel: 0 };
    let (key, from_low) =
        FlowKey::canonical(network.src, network.dst, src_port, dst_port, network.protocol, network.family, domain);
    let payload_len = room - header;
    // Segment figures come from the kernel; ones that do not fit the payload would make the sums lie.
    let fits = segments > 1 && segment_size > 0 && (segments as u64 - 1) * (segment_size as u64) < payload_len as u64;
    Ok(Packet {
        key,
        from_low,
        frame_len: frame.wire_len(),
        l3_offset: network.start,
        header_len: before + header,
        payload_len,
        segments: if fits { segments } else { 1 },
        segment_size: if fits { segment_size } else { 0 },
        tcp_flags,
        window,
        seq,
        ack,
        ttl: network.ttl,
        traffic_class: network.traffic_class,
        icmp_type: 0,
        icmp_code: 0,
        marks: 0,
        mss: 0,
        wscale: NO_WSCALE,
        tcp_options: 0,
        extensions: 0,
        sample_len: 0,
        flow_label: 0,
        fragment_id: 0,
        sample: [0; 4],
    })
}
