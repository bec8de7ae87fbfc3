//! IP header and extension headers → [`Network`].

use super::names::protocol;
use super::{Frame, MAX_EXTENSION_HEADERS, MAX_HEADER_OFFSET, Refusal, Window as _};
use crate::counter::Cause;

/// What the IP layer says, before the transport is looked at.
pub(super) struct Network {
    pub(super) protocol: u8,
    pub(super) family: u8,
    pub(super) src: [u32; 4],
    pub(super) dst: [u32; 4],
    /// Offset of the transport header from the start of the frame.
    pub(super) transport: u32,
    /// Offset of the IP header from the start of the frame.
    pub(super) start: u32,
    /// Bytes from the IP header to the end of the datagram.
    pub(super) len: u32,
    pub(super) ttl: u8,
    pub(super) traffic_class: u8,
}

/// RFC 791. The total length, not the frame's end, bounds the datagram: short frames are padded on Ethernet.
#[inline(always)]
pub(super) fn ipv4<F: Frame>(frame: F, start: u32) -> Result<Network, Refusal> {
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
pub(super) fn ipv6<F: Frame>(frame: F, start: u32) -> Result<Network, Refusal> {
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
