//! Link types of captures: whatever is not Ethernet gets an Ethernet header in place of its own link header, so that
//! there is one parser ([`sensor_common::packet`]), and so that the programs in the kernel can be given the frame. Its
//! length is then that of the Ethernet frame: frame bytes do not depend on how a capture was taken.

use anyhow::{Error, Result, anyhow};
use sensor_common::counter::Cause;
use sensor_common::flow::FlowKey;
use sensor_common::fragment::Fragments;
use sensor_common::hash::Seed;
use sensor_common::packet::{self, MAX_HEADER_OFFSET, Options, Packet, Refusal, mark};

use super::capture::Captured;
use crate::context::REPLAY_SEED;

const ETHERNET: u32 = 1;
const ETHERNET_HEADER: usize = 14;
/// The link type in a capture's field of that name; other bits say how long checksums behind frames are.
const LINK_TYPE: u32 = 0x03ff_ffff;
/// Bytes behind the link header that the parser can look at.
const READABLE: usize = MAX_HEADER_OFFSET as usize + 64;

/// Parses captured frames of any supported link type, and gives later fragments the flow of the first.
#[derive(Clone, Debug)]
pub struct Parser {
    options: Options,
    fragments: Fragments,
}

impl Parser {
    /// A parser at the beginning of a capture.
    pub fn new(options: Options) -> Parser {
        // Which datagrams collide in the fragment table must not differ from run to run, nor from that of programs.
        Parser::seeded(options, REPLAY_SEED)
    }

    /// A parser whose fragment table is that of programs that were loaded with `seed`.
    pub fn seeded(options: Options, seed: Seed) -> Parser {
        Parser { options, fragments: Fragments::new(seed) }
    }

    /// Parses the next frame.
    ///
    /// # Errors
    /// The outer one if the link type is not supported; the inner [`Refusal`] if the frame belongs to no flow.
    pub fn parse(&mut self, captured: &Captured<'_>) -> Result<Result<Packet, Refusal>> {
        let parsed = parse(captured, self.options)?;
        Ok(parsed.and_then(|packet| self.resolve(packet, captured.time_ns)))
    }

    /// The second half of [`Parser::parse`], for those who look at the packet between them.
    ///
    /// # Errors
    /// [`Cause::Fragment`] for a later fragment whose first one is not known.
    pub fn resolve(&mut self, mut packet: Packet, time_ns: u64) -> Result<Packet, Refusal> {
        self.fragments.pass(&mut packet, time_ns).map(|()| packet)
    }
}

/// Parses one captured frame; a later fragment has no ports yet (see [`Parser`]).
///
/// # Errors
/// As for [`Parser::parse`].
pub fn parse(captured: &Captured<'_>, options: Options) -> Result<Result<Packet, Refusal>> {
    let Captured { time_ns: _, link: _, bytes, wire_len } = *captured;
    let (header, ethertype) = match header(captured)? {
        Some(Header::Ethernet) => return Ok(packet::parse_with(packet::Captured { bytes, wire_len }, options)),
        Some(Header::Other { len, ethertype }) => (len, ethertype),
        None => return Ok(Err(Cause::TruncatedLink)),
    };
    let rest = &bytes[header..];
    let rest = &rest[..rest.len().min(READABLE)];
    let mut frame = [0u8; ETHERNET_HEADER + READABLE];
    frame[12..14].copy_from_slice(&ethertype);
    frame[ETHERNET_HEADER..ETHERNET_HEADER + rest.len()].copy_from_slice(rest);
    let bytes = &frame[..ETHERNET_HEADER + rest.len()];
    Ok(packet::parse_with(packet::Captured { bytes, wire_len: ethernet_len(wire_len, header) }, options))
}

/// The flow that the ICMP error `packet` quotes, which was parsed from this frame; `None` if it is no error, or quotes none.
///
/// # Errors
/// If the link type is not supported.
pub fn quoted(captured: &Captured<'_>, packet: &Packet) -> Result<Option<FlowKey>> {
    if packet.marks & mark::ICMP_ERROR == 0 {
        return Ok(None);
    }
    let mut room = Vec::new();
    Ok(ethernet(captured, &mut room)?.and_then(|frame| packet::quoted_key(frame, packet)))
}

/// The whole captured frame with an Ethernet header, and its length on the wire then. `room` holds what had to be
/// changed. `None` if the frame ends inside its link header.
///
/// # Errors
/// If the link type is not supported.
pub fn ethernet<'a>(captured: &Captured<'a>, room: &'a mut Vec<u8>) -> Result<Option<packet::Captured<'a>>> {
    let Captured { time_ns: _, link: _, bytes, wire_len } = *captured;
    let (len, ethertype) = match header(captured)? {
        Some(Header::Ethernet) => return Ok(Some(packet::Captured { bytes, wire_len })),
        Some(Header::Other { len, ethertype }) => (len, ethertype),
        None => return Ok(None),
    };
    room.clear();
    room.resize(ETHERNET_HEADER - 2, 0);
    room.extend(ethertype);
    room.extend(&bytes[len..]);
    Ok(Some(packet::Captured { bytes: room, wire_len: ethernet_len(wire_len, len) }))
}

fn ethernet_len(wire_len: u32, header: usize) -> u32 {
    wire_len.saturating_sub(header as u32).saturating_add(ETHERNET_HEADER as u32)
}

/// Whether packets of this link type are read.
pub fn is_read(link: u32) -> bool {
    SUPPORTED.contains(&(link & LINK_TYPE))
}

/// Why a packet of this link type is not read.
pub(super) fn unsupported(link: u32) -> Error {
    let supported = SUPPORTED.map(|link| link.to_string()).join(", ");
    let link = link & LINK_TYPE;
    anyhow!("link type {link} is not supported (supported: {supported}; see tcpdump.org/linktypes.html)")
}

/// Link types that [`header`] reads.
const SUPPORTED: [u32; 14] = [0, ETHERNET, 9, 12, 14, 50, 51, 101, 104, 108, 113, 228, 229, 276];

/// A link header.
enum Header {
    Ethernet,
    /// Its length in bytes, and the EtherType of what follows.
    Other {
        len: usize,
        ethertype: [u8; 2],
    },
}

/// The link header of a frame, `None` if the frame ends inside.
fn header(captured: &Captured<'_>) -> Result<Option<Header>> {
    let bytes = captured.bytes;
    let (len, ethertype) = match captured.link & LINK_TYPE {
        ETHERNET => return Ok(Some(Header::Ethernet)),
        // Loopback of the BSDs: the address family, in the byte order of the host or of the network.
        0 | 108 => (4, bytes.get(..4).map(family)),
        // Raw IP, by its version.
        12 | 14 | 101 | 228 | 229 => (0, bytes.first().map(|first| version(first >> 4))),
        // PPP, bare or in HDLC-like framing.
        9 | 50 => match ppp(bytes) {
            Some((len, ethertype)) => (len, Some(ethertype)),
            None => (0, None),
        },
        // A PPPoE session without its Ethernet header.
        51 => (0, Some([0x88, 0x64])),
        // Cisco HDLC.
        104 => (4, bytes.get(..4).map(|header| [header[2], header[3]])),
        // Linux cooked capture, versions 1 and 2.
        113 => (16, bytes.get(..16).map(|header| [header[14], header[15]])),
        276 => (20, bytes.get(..20).map(|header| [header[0], header[1]])),
        link => return Err(unsupported(link)),
    };
    Ok(ethertype.map(|ethertype| Header::Other { len, ethertype }))
}

/// The EtherType of an IP version; an EtherType that is nobody's for any other.
fn version(version: u8) -> [u8; 2] {
    match version {
        4 => [0x08, 0x00],
        6 => [0x86, 0xdd],
        _ => [0, 0],
    }
}

/// Length of PPP's address, control and protocol fields, and the EtherType for the protocol (RFC 1661, RFC 1662, with the
/// fields compressed or not). `None` if the frame ends inside.
fn ppp(bytes: &[u8]) -> Option<(usize, [u8; 2])> {
    let framing = if bytes.starts_with(&[0xff, 0x03]) { 2 } else { 0 };
    let first = *bytes.get(framing)?;
    // The low bit ends a protocol number.
    let (len, protocol) = match first & 1 {
        1 => (1, first as u16),
        _ => (2, u16::from_be_bytes([first, *bytes.get(framing + 1)?])),
    };
    let ethertype = match protocol {
        0x0021 => version(4),
        0x0057 => version(6),
        0x0281 => [0x88, 0x47],
        _ => [0, 0],
    };
    Some((framing + len, ethertype))
}

/// The EtherType of an address family: AF_INET is 2 everywhere, AF_INET6 differs between the BSDs, macOS and Linux.
fn family(word: &[u8]) -> [u8; 2] {
    match word {
        [2, 0, 0, 0] | [0, 0, 0, 2] => version(4),
        [10 | 24 | 28 | 30, 0, 0, 0] | [0, 0, 0, 10 | 24 | 28 | 30] => version(6),
        _ => [0, 0],
    }
}
