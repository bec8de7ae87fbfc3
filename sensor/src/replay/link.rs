//! Link types of captures: whatever is not Ethernet gets an Ethernet header in front of its IP header, so that there
//! is one parser ([`sensor_common::packet`]). The length of the frame stays that of the capture.

use anyhow::{Result, bail};
use sensor_common::counter::Cause;
use sensor_common::packet::{self, MAX_HEADER_OFFSET, Packet, Refusal};

use super::capture::Captured;

const ETHERNET: u32 = 1;
const ETHERNET_HEADER: usize = 14;
/// Bytes behind the link header that the parser can look at.
const READABLE: usize = MAX_HEADER_OFFSET as usize + 64;

/// Parses a captured frame of any supported link type.
///
/// # Errors
/// The outer one if the link type is not supported; the inner [`Refusal`] if the frame belongs to no flow.
pub fn parse(captured: &Captured<'_>) -> Result<Result<Packet, Refusal>> {
    let Captured { time_ns: _, link, bytes, wire_len } = *captured;
    if link == ETHERNET {
        return Ok(packet::parse(packet::Captured { bytes, wire_len }));
    }
    let (header, ethertype) = match link {
        // Loopback of the BSDs: the address family, in the byte order of the host or of the network.
        0 | 108 => (4, bytes.get(..4).map(family)),
        // Raw IP, by its version.
        12 | 14 | 101 | 228 | 229 => (0, bytes.first().map(|first| version(first >> 4))),
        // Linux cooked capture, versions 1 and 2.
        113 => (16, bytes.get(..16).map(|header| [header[14], header[15]])),
        276 => (20, bytes.get(..20).map(|header| [header[0], header[1]])),
        _ => bail!(
            "link type {link} is not supported (supported: 0, 1, 12, 14, 101, 108, 113, 228, 229, 276; \
             see tcpdump.org/linktypes.html)"
        ),
    };
    let Some(ethertype) = ethertype else { return Ok(Err(Cause::TruncatedLink)) };
    let rest = &bytes[header..];
    let rest = &rest[..rest.len().min(READABLE)];
    let mut frame = [0u8; ETHERNET_HEADER + READABLE];
    frame[12..14].copy_from_slice(&ethertype);
    frame[ETHERNET_HEADER..ETHERNET_HEADER + rest.len()].copy_from_slice(rest);
    let len = wire_len.saturating_sub(header as u32).saturating_add(ETHERNET_HEADER as u32);
    let frame = packet::Captured { bytes: &frame[..ETHERNET_HEADER + rest.len()], wire_len: len };
    Ok(packet::parse(frame).map(|packet| Packet { frame_len: wire_len, ..packet }))
}

/// The EtherType of an IP version; an EtherType that is nobody's for any other.
fn version(version: u8) -> [u8; 2] {
    match version {
        4 => [0x08, 0x00],
        6 => [0x86, 0xdd],
        _ => [0, 0],
    }
}

/// The EtherType of an address family: AF_INET is 2 everywhere, AF_INET6 differs between the BSDs, macOS and Linux.
fn family(word: &[u8]) -> [u8; 2] {
    match word {
        [2, 0, 0, 0] | [0, 0, 0, 2] => version(4),
        [10 | 24 | 28 | 30, 0, 0, 0] | [0, 0, 0, 10 | 24 | 28 | 30] => version(6),
        _ => [0, 0],
    }
}
