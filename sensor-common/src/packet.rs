//! Frame → [`Packet`]: the one parser of Sensor, run by the kernel programs and by the agent over captures.
//!
//! Carries Ethernet, up to two VLAN tags (802.1Q, 802.1ad), IPv4 with options, IPv6 with extension headers, and TCP,
//! UDP, ICMP, ICMPv6 and other transport protocols. Everything else is a [`Refusal`], which callers count by
//! cause and pass. Invariant: a returned [`Packet`] has lengths that are consistent with each other, so nothing
//! after this module has to check a length again.
//!
//! Written for the BPF verifier too: every read goes through a window that was bounds-checked once, loops are bounded
//! by constants, and offsets stay below [`MAX_HEADER_OFFSET`].

use crate::counter::Cause;
use crate::flow::FlowKey;

/// Where parsing of headers gives up (bytes from the start of the frame); a longer chain is [`Cause::HeaderChain`].
pub const MAX_HEADER_OFFSET: u32 = 1024;
/// VLAN tags that are read; a third one is [`Cause::VlanDepth`].
pub const MAX_VLAN_TAGS: usize = 2;
/// IPv6 extension headers that are skipped; one more is [`Cause::HeaderChain`].
pub const MAX_EXTENSION_HEADERS: usize = 8;

/// IP protocol numbers (IANA) that the parser treats by name.
pub mod protocol {
    #![expect(missing_docs, reason = "IANA names")]
    pub const HOP_BY_HOP: u8 = 0;
    pub const ICMP: u8 = 1;
    pub const TCP: u8 = 6;
    pub const UDP: u8 = 17;
    pub const ROUTING: u8 = 43;
    pub const FRAGMENT: u8 = 44;
    pub const AH: u8 = 51;
    pub const ICMPV6: u8 = 58;
    pub const DESTINATION_OPTIONS: u8 = 60;
    pub const SCTP: u8 = 132;
    pub const MOBILITY: u8 = 135;
    pub const UDP_LITE: u8 = 136;
    pub const HIP: u8 = 139;
    pub const SHIM6: u8 = 140;
}

const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_IPV6: u16 = 0x86dd;
const ETHERTYPE_VLAN: u16 = 0x8100;
const ETHERTYPE_QINQ: u16 = 0x88a8;
const ETHERTYPE_QINQ_OLD: u16 = 0x9100;
const ETHERNET_HEADER: u32 = 14;
const VLAN_HEADER: u32 = 4;

/// A bounds-checked view of some bytes of a frame. `AT` must lie inside the length that was asked for. (A constant, so
/// that the kernel side can make each read one instruction.)
pub trait Window: Copy {
    /// The byte at `AT`.
    fn byte<const AT: usize>(self) -> u8;
    /// The big-endian 16-bit number at `AT`.
    fn be16<const AT: usize>(self) -> u16;
    /// The big-endian 32-bit number at `AT`.
    fn be32<const AT: usize>(self) -> u32;
}

/// A frame, wherever it lies: a slice on the host, packet pointers in the kernel.
pub trait Frame: Copy {
    /// What [`Frame::window`] gives.
    type Window: Window;
    /// `len` readable bytes from `offset` on, or `None` if the frame ends before that.
    fn window(self, offset: u32, len: u32) -> Option<Self::Window>;
    /// Length of the frame on the wire in bytes, which may be more than what is readable.
    fn wire_len(self) -> u32;
    /// Wire segments this frame stands for, and the payload bytes in each but the last: (1, 0) for an ordinary frame,
    /// `gso_segs` and `gso_size` for a super-packet of segmentation offload.
    #[inline(always)]
    fn segments(self) -> (u32, u32) {
        (1, 0)
    }
    /// VLAN tag that hardware took out of the frame (TCI, 16 bits), if any.
    #[inline(always)]
    fn offloaded_vlan(self) -> Option<u16> {
        None
    }
}

impl Window for &[u8] {
    #[inline(always)]
    fn byte<const AT: usize>(self) -> u8 {
        self[AT]
    }
    #[inline(always)]
    fn be16<const AT: usize>(self) -> u16 {
        u16::from_be_bytes([self[AT], self[AT + 1]])
    }
    #[inline(always)]
    fn be32<const AT: usize>(self) -> u32 {
        u32::from_be_bytes([self[AT], self[AT + 1], self[AT + 2], self[AT + 3]])
    }
}

impl<'a> Frame for &'a [u8] {
    type Window = &'a [u8];
    #[inline(always)]
    fn window(self, offset: u32, len: u32) -> Option<&'a [u8]> {
        self.get(offset as usize..offset as usize + len as usize)
    }
    #[inline(always)]
    fn wire_len(self) -> u32 {
        self.len() as u32
    }
}

/// A frame of a capture that may have been cut at the snap length.
#[derive(Clone, Copy, Debug)]
pub struct Captured<'a> {
    /// The bytes that were kept.
    pub bytes: &'a [u8],
    /// The frame's length on the wire, in bytes.
    pub wire_len: u32,
}

impl<'a> Frame for Captured<'a> {
    type Window = &'a [u8];
    #[inline(always)]
    fn window(self, offset: u32, len: u32) -> Option<&'a [u8]> {
        self.bytes.window(offset, len)
    }
    #[inline(always)]
    fn wire_len(self) -> u32 {
        self.wire_len
    }
}

/// Why a frame is not part of any flow; it is counted under this cause and passed.
pub type Refusal = Cause;

/// What Sensor takes from one frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Packet {
    /// The flow it belongs to, the same for both directions.
    pub key: FlowKey,
    /// Whether the sender is the key's `low` endpoint.
    pub from_low: bool,
    /// Frame length on the wire in bytes, link header included.
    pub frame_len: u32,
    /// Offset of the IP header from the start of the frame, in bytes.
    pub l3_offset: u32,
    /// Length of one wire segment's headers from the start of L3 to the start of the L4 payload, in bytes.
    pub header_len: u32,
    /// L4 payload in bytes (all segments together).
    pub payload_len: u32,
    /// Wire segments (1 but for segmentation-offload super-packets).
    pub segments: u32,
    /// Payload bytes in each segment but the last (0 for an ordinary frame).
    pub segment_size: u32,
    /// TCP flags byte (FIN 0x01 … CWR 0x80), 0 for other protocols.
    pub tcp_flags: u8,
    /// TCP window as sent, not scaled.
    pub window: u16,
    /// TCP sequence number.
    pub seq: u32,
    /// TCP acknowledgement number.
    pub ack: u32,
    /// IPv4 TTL or IPv6 hop limit.
    pub ttl: u8,
    /// IPv4 TOS or IPv6 traffic class (DSCP and ECN).
    pub traffic_class: u8,
}

impl Packet {
    /// L3 length in bytes, headers and payload of all wire segments, without link header or padding.
    #[inline(always)]
    pub fn l3_len(&self) -> u64 {
        self.header_len as u64 * self.segments as u64 + self.payload_len as u64
    }

    /// Payload bytes of the last (for an ordinary frame: the only) wire segment.
    #[inline(always)]
    pub fn last_segment(&self) -> u32 {
        self.payload_len.wrapping_sub((self.segments - 1).wrapping_mul(self.segment_size))
    }
}

/// What the IP layer says, before the transport is looked at.
struct Network {
    protocol: u8,
    family: u8,
    src: [u32; 4],
    dst: [u32; 4],
    /// Offset of the transport header from the start of the frame.
    transport: u32,
    /// Offset of the IP header from the start of the frame.
    start: u32,
    /// Bytes from the IP header to the end of the datagram.
    len: u32,
    ttl: u8,
    traffic_class: u8,
}

/// Parses one Ethernet frame.
///
/// # Errors
/// A [`Refusal`] says why the frame belongs to no flow (not IP, cut short, malformed, a later fragment …).
#[inline(always)]
pub fn parse<F: Frame>(frame: F) -> Result<Packet, Refusal> {
    let ethernet = frame.window(0, ETHERNET_HEADER).ok_or(Cause::TruncatedLink)?;
    let mut ethertype = ethernet.be16::<12>();
    let mut offset = ETHERNET_HEADER;
    let mut vlans = [0u16; MAX_VLAN_TAGS];
    let mut depth = 0;
    if let Some(tci) = frame.offloaded_vlan() {
        vlans[0] = tci & 0x0fff;
        depth = 1;
    }
    if is_vlan(ethertype) {
        let tag = frame.window(offset, VLAN_HEADER).ok_or(Cause::TruncatedLink)?;
        vlans[depth] = tag.be16::<0>() & 0x0fff;
        depth += 1;
        ethertype = tag.be16::<2>();
        offset += VLAN_HEADER;
        if is_vlan(ethertype) && depth < MAX_VLAN_TAGS {
            let tag = frame.window(offset, VLAN_HEADER).ok_or(Cause::TruncatedLink)?;
            vlans[1] = tag.be16::<0>() & 0x0fff;
            ethertype = tag.be16::<2>();
            offset += VLAN_HEADER;
        }
        if is_vlan(ethertype) {
            return Err(Cause::VlanDepth);
        }
    }
    let network = match ethertype {
        ETHERTYPE_IPV4 => ipv4(frame, offset)?,
        ETHERTYPE_IPV6 => ipv6(frame, offset)?,
        _ => return Err(Cause::NotIp),
    };
    transport(frame, &network, vlans)
}

#[inline(always)]
fn is_vlan(ethertype: u16) -> bool {
    matches!(ethertype, ETHERTYPE_VLAN | ETHERTYPE_QINQ | ETHERTYPE_QINQ_OLD)
}

/// RFC 791. The total length, not the frame's end, bounds the datagram: short frames are padded on Ethernet.
#[inline(always)]
fn ipv4<F: Frame>(frame: F, start: u32) -> Result<Network, Refusal> {
    let ip = frame.window(start, 20).ok_or(Cause::TruncatedNetwork)?;
    let header_len = ((ip.byte::<0>() & 0x0f) as u32) * 4;
    if ip.byte::<0>() >> 4 != 4 || header_len < 20 {
        return Err(Cause::MalformedNetwork);
    }
    // A length of 0 is BIG TCP, and then the frame is larger than the field could say.
    let stated = ip.be16::<2>() as u32;
    if stated == 0 && frame.wire_len().saturating_sub(start) <= u16::MAX as u32 {
        return Err(Cause::MalformedNetwork);
    }
    let len = datagram_len(frame, start, stated)?;
    if len < header_len {
        return Err(Cause::MalformedNetwork);
    }
    if ip.be16::<6>() & 0x1fff != 0 {
        return Err(Cause::Fragment);
    }
    Ok(Network {
        protocol: ip.byte::<9>(),
        family: 4,
        src: [ip.be32::<12>(), 0, 0, 0],
        dst: [ip.be32::<16>(), 0, 0, 0],
        transport: start + header_len,
        start,
        len,
        ttl: ip.byte::<8>(),
        traffic_class: ip.byte::<1>(),
    })
}

/// RFC 8200. Extension headers are skipped up to the transport header; ESP and "no next header" end the chain.
#[inline(always)]
fn ipv6<F: Frame>(frame: F, start: u32) -> Result<Network, Refusal> {
    let ip = frame.window(start, 40).ok_or(Cause::TruncatedNetwork)?;
    if ip.byte::<0>() >> 4 != 6 {
        return Err(Cause::MalformedNetwork);
    }
    // A length of 0 is a jumbogram or BIG TCP if the frame is larger than the field could say, else an empty payload.
    let stated = match ip.be16::<4>() as u32 {
        0 if frame.wire_len().saturating_sub(start) > u16::MAX as u32 + 40 => 0,
        payload => payload + 40,
    };
    let len = datagram_len(frame, start, stated)?;
    let mut protocol = ip.byte::<6>();
    let mut offset = start + 40;
    for _ in 0..MAX_EXTENSION_HEADERS {
        let len = match protocol {
            protocol::HOP_BY_HOP
            | protocol::ROUTING
            | protocol::DESTINATION_OPTIONS
            | protocol::MOBILITY
            | protocol::HIP
            | protocol::SHIM6 => {
                let header = frame.window(offset, 2).ok_or(Cause::TruncatedNetwork)?;
                protocol = header.byte::<0>();
                (header.byte::<1>() as u32 + 1) * 8
            }
            protocol::AH => {
                // RFC 4302: length in 4-byte units, minus 2.
                let header = frame.window(offset, 2).ok_or(Cause::TruncatedNetwork)?;
                protocol = header.byte::<0>();
                (header.byte::<1>() as u32 + 2) * 4
            }
            protocol::FRAGMENT => {
                let header = frame.window(offset, 8).ok_or(Cause::TruncatedNetwork)?;
                if header.be16::<2>() & 0xfff8 != 0 {
                    return Err(Cause::Fragment);
                }
                protocol = header.byte::<0>();
                8
            }
            _ => break,
        };
        offset += len;
        if offset > MAX_HEADER_OFFSET {
            return Err(Cause::HeaderChain);
        }
    }
    if is_extension(protocol) {
        return Err(Cause::HeaderChain);
    }
    if offset - start > len {
        return Err(Cause::MalformedNetwork);
    }
    Ok(Network {
        protocol,
        family: 6,
        src: [ip.be32::<8>(), ip.be32::<12>(), ip.be32::<16>(), ip.be32::<20>()],
        dst: [ip.be32::<24>(), ip.be32::<28>(), ip.be32::<32>(), ip.be32::<36>()],
        transport: offset,
        start,
        len,
        ttl: ip.byte::<7>(),
        traffic_class: (ip.be16::<0>() >> 4) as u8,
    })
}

#[inline(always)]
fn is_extension(protocol: u8) -> bool {
    matches!(
        protocol,
        protocol::HOP_BY_HOP
            | protocol::ROUTING
            | protocol::FRAGMENT
            | protocol::AH
            | protocol::DESTINATION_OPTIONS
            | protocol::MOBILITY
            | protocol::HIP
            | protocol::SHIM6
    )
}

/// Length of the datagram in bytes: what its header states, or the rest of the frame where it states 0 (segmentation
/// offload above 64 KiB). A datagram that claims more than the frame holds is refused.
#[inline(always)]
fn datagram_len<F: Frame>(frame: F, start: u32, stated: u32) -> Result<u32, Refusal> {
    let wire = frame.wire_len();
    if wire < start {
        return Err(Cause::TruncatedNetwork);
    }
    let rest = wire - start;
    if stated == 0 {
        return Ok(rest);
    }
    if stated > rest {
        return Err(Cause::TruncatedNetwork);
    }
    Ok(stated)
}

/// Transport header → packet.
#[inline(always)]
fn transport<F: Frame>(frame: F, network: &Network, vlans: [u16; 2]) -> Result<Packet, Refusal> {
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
    let (key, from_low) =
        FlowKey::canonical(network.src, network.dst, src_port, dst_port, network.protocol, network.family, vlans);
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
    })
}
